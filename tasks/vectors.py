"""Sequences of bit vectors, and the tasks whose input they are, one vector a step."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tasks.task import Batch, Task


def random_vectors(batch_size: int, length: int, width: int, generator: torch.Generator, uneven: float = 0.0) -> Tensor:
    """Draw sequences of bit vectors: (length, B, width) of 0 and 1.

    Args:
        uneven: the share of sequences that are not made of even random bits. Half of these are monotonous: one
            share of ones, uniform in (0, 1), for the whole sequence, and an alphabet of 1 to L vectors. The others
            are varied: a share of ones for each vector. A nearly empty vector looks like the silence in which the
            machine is to answer, above all where a sequence begins with one; a vector that comes again misleads a
            machine that finds its place by content.
    """
    size = (length, batch_size, width)
    if uneven == 0:
        return torch.randint(0, 2, size, generator=generator).float()
    kind = torch.rand(batch_size, generator=generator)
    monotonous = kind < uneven / 2
    share = torch.rand(length, batch_size, generator=generator)
    share = torch.where(monotonous, share[0], share)
    share = torch.where(kind < uneven, share, 0.5)
    bits = (torch.rand(size, generator=generator) < share.unsqueeze(-1)).float()
    letters = torch.randint(1, length + 1, (batch_size,), generator=generator)
    drawn = (torch.rand(length, batch_size, generator=generator) * letters).long()
    each = torch.arange(length).unsqueeze(1).expand(length, batch_size)
    return bits.gather(0, torch.where(monotonous, drawn, each).unsqueeze(-1).expand(size))


class Length(NamedTuple):
    """The size of a sequence of vectors."""

    seq_len: int


@dataclass(frozen=True)
class BitVectorTask(Task):
    """A task on vectors of `seq_width` bits: each channel of `marks` comes after those of the bits."""

    seq_width: int  # bits in a vector

    marks: ClassVar[tuple[str, ...]]  # what the channels after the bits carry

    @property
    def input_size(self) -> int:
        """The bits and the marks."""
        return self.seq_width + len(self.marks)

    @property
    def output_size(self) -> int:
        """The bits."""
        return self.seq_width

    def rows_needed(self, size: tuple) -> int:
        """One for each vector."""
        return size[0]


@dataclass(frozen=True)
class VectorTask(BitVectorTask):
    """Read L vectors of `seq_width` random bits between two marks, then answer one vector for each, in silence."""

    marks: ClassVar[tuple[str, ...]] = ("start", "end")
    Size = Length
    first = Length(10)  # from shorter ones, the machine may put two vectors on one row
    tested = tuple(map(Length, (20, 30, 50, 75, 100, 120)))
    can_be_uneven: ClassVar[bool] = True

    @abstractmethod
    def answer(self, vectors: Tensor) -> Tensor:
        """What to answer to some vectors, (L, B, seq_width): as many."""

    def sample(self, batch_size: int, size: tuple[int], generator: torch.Generator, uneven: float = 0.0) -> Batch:
        """Draw `batch_size` sequences of L >= 1 vectors: inputs (2 L + 2, B, seq_width + 2); see `random_vectors`."""
        return self.batch(random_vectors(batch_size, size[0], self.seq_width, generator, uneven))

    def batch(self, vectors: Tensor) -> Batch:
        """Lay out given vectors, (L, B, seq_width) of 0 and 1, as `sample` does its random ones."""
        length, batch_size, width = vectors.shape
        steps = 2 * length + 2
        inputs = torch.zeros(steps, batch_size, self.input_size)
        inputs[0, :, width] = 1
        inputs[1 : length + 1, :, :width] = vectors
        inputs[length + 1, :, width + 1] = 1
        targets = torch.zeros(steps, batch_size, width)
        targets[length + 2 :] = self.answer(vectors)
        mask = torch.zeros(steps, batch_size)
        mask[length + 2 :] = 1
        return Batch(inputs, targets, mask)
