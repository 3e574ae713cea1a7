"""The processes of one command, where torchrun started several: who does what, and where they meet."""

import importlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from experiment.errors import InputError
from ntm.shards import Part, add_in_pairs, part_counts

T = TypeVar("T")


@contextmanager
def _meeting() -> Iterator[None]:
    """Turn the error of a process that waits for one that has ended into one line."""
    try:
        yield
    except RuntimeError as error:
        raise InputError("another process has ended, so this one ends too; -resume goes on with a run") from error


class Processes:
    """All processes of this command, on one computer or on several.

    As a context, it connects them, lets only the first process that fails say why, and closes the connections.

    Attributes:
        rank: which one this is, from 0.
        count: how many there are.
        local_rank: which one of those on this computer this is.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, store: dist.Store | None = None) -> None:
        self.rank, self.count, self.local_rank, self._store = rank, count, local_rank, store
        self._numbers = itertools.count()

    @classmethod
    def join(cls) -> "Processes":
        """Learn of the others that torchrun has started; without torchrun there is this one alone.

        The environment no longer says so afterwards: a script that this process starts is on its own.

        Raises:
            InputError: they cannot be reached.
        """
        if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            return cls()
        # torch.optim imports this module later, and its functions keep, as a default, the group that there is then: the
        # threads of that group would never end.
        importlib.import_module("torch.distributed.nn.functional")
        with _meeting():
            store, rank, count = next(dist.rendezvous("env://"))
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
        return cls(rank, count, int(os.environ.get("LOCAL_RANK", 0)), store)

    def __enter__(self) -> "Processes":
        if self._store is not None:
            try:
                with _meeting():
                    dist.init_process_group(store=self._store, rank=self.rank, world_size=self.count)
            except InputError as error:  # another was connected before this one, and has failed since
                self.__exit__(InputError, error, None)
                raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self._store is None:
            return
        told = kind is not None and issubclass(kind, InputError | OSError) and not self._first_to_fail()
        if dist.is_initialized():
            dist.destroy_process_group()  # its threads end here: one that is busy when Python ends aborts the process
        if told:
            raise SystemExit(2)

    def _first_to_fail(self) -> bool:
        try:
            return self._store.add("failed", 1) == 1
        except RuntimeError:  # the process that keeps the store has ended
            return True

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, and writes files."""
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, in all of them.

        Raises:
            InputError: another process has ended.
        """
        box = [make() if self.first else None]
        if self.count > 1:
            with _meeting():
                dist.broadcast_object_list(box)
        return box[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process of each computer, then in the others: they find in caches what it left.

        Raises:
            InputError: another process has ended.
        """
        if self.local_rank == 0:
            result = work()
        if self.count > 1:
            with _meeting():
                dist.barrier()
        return result if self.local_rank == 0 else work()

    def next(self) -> int:
        """Count up, over all processes: each number, from 0, is given out once.

        Raises:
            InputError: the process that counts has ended.
        """
        if self._store is None:
            return next(self._numbers)
        with _meeting():
            return self._store.add("next", 1) - 1

    def require_shared(self, folder: Path) -> None:
        """Stop if a folder is not the same one for all processes.

        Raises:
            InputError: it is not, or another process has ended.
        """
        if self.count == 1:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = f".shared-{secrets.token_hex(8)}"
        probe = folder / self.share(lambda: (folder / name).touch() or name)  # there once all know its name
        try:
            if not probe.exists():
                raise InputError(
                    f"{folder}: is not the same folder on all computers; name one by -output that they share"
                )
            with _meeting():
                dist.barrier()  # all have seen it
        finally:
            if self.first:
                probe.unlink()

    def part(self, batch_size: int) -> Part:
        """The part of each batch that this process computes.

        Raises:
            InputError: a batch cannot be split into as many parts as there are processes.
        """
        allowed = part_counts(batch_size)
        if self.count not in allowed:
            counts = ", ".join(map(str, allowed))
            raise InputError(
                f"-batch_size {batch_size}: cannot be shared out over {self.count} processes; allowed are {counts}; "
                "16 sequences go to two processes, 64 to four, 256 and more to 16"
            )
        return Part(self.rank, self.count)

    def combine(
        self, weights: Tensor, loss: float, logits: Tensor, batch_size: int, stop: bool
    ) -> tuple[float, Tensor, bool]:
        """Put the parts of a batch together: one exchange of one flat tensor an iteration.

        Gradients and losses are added in the order in which a single process adds those of its shards: the sums are the
        same to the bit.

        Args:
            weights: flat, with the gradient of this process's part, which becomes that of the batch.
            loss, logits: of this process's part; (T, sequences of the part, output_size).
            batch_size: B.
            stop: whether this process was asked to end.

        Returns:
            The loss of the batch; its logits, (T, B, output_size); and whether any process was asked to end.

        Raises:
            InputError: another process has ended, or has other weights.
        """
        if self.count == 1:
            return loss, logits, stop
        gradient, (steps, _, bits) = weights.grad, logits.shape
        parts = [Part(i, self.count).sequences(batch_size) for i in range(self.count)]
        widths = [part.stop - part.start for part in parts]
        told = torch.tensor([loss, stop, weights.detach().view(torch.int32).sum()], dtype=torch.float64)
        head = told.view(gradient.dtype).to(gradient.device)
        padded = logits.new_zeros(steps, max(widths), bits)
        padded[:, : widths[self.rank]] = logits
        message = torch.cat((head, gradient, padded.flatten()))
        messages = message.new_empty(self.count, len(message))
        with _meeting():
            dist.all_gather(list(messages.unbind()), message)

        headers, gradients, answers = messages.split((len(head), len(gradient), padded.numel()), dim=1)
        losses, stops, sums = headers.cpu().contiguous().view(torch.float64).t().tolist()
        if len(set(sums)) > 1:
            raise InputError(
                "the processes' weights differ: all computers need the same kind of processor and the same versions"
            )
        gradient.copy_(add_in_pairs(list(gradients.unbind())))
        answers = (each.view_as(padded)[:, :width] for each, width in zip(answers, widths, strict=True))
        return add_in_pairs(losses), torch.cat(list(answers), dim=1), any(stops)
