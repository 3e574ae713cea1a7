"""A look at what a machine keeps from call to call, and shares between sequences: a run could not be resumed so.

It is by doing, on a copy in float64 with a small memory: float32 rounds away what a mean over many rows dilutes.
"""

from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from experiment.errors import InputError
from ntm import NTM, Backend
from ntm.machine import Machine
from ntm.shards import GROUP, WHOLE, Part

FEW = 6, 2, 6  # of a small batch: T, B and N


class Precision(TorchFunctionMode):
    """Sees whether what is computed while it lasts is all in float64.

    Attributes:
        tolerance: how far answers that are the same may be apart, relative to their size.
    """

    tolerance = 1e-9

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call a function of PyTorch, and look at what it gives."""
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.dtype is not torch.float64:
            self.tolerance = 1e-3
        return result


def in_float64(model: Machine) -> Machine:
    """A copy of a model on the reference path, in float64 if it runs in that, else as it is."""
    model = deepcopy(model)
    model.backend = Backend.REFERENCE
    lifted = deepcopy(model).double()
    try:
        with torch.no_grad(), generators_kept(next(model.parameters())):
            deepcopy(lifted)(torch.zeros(2, 2, model.input_size).to(next(lifted.parameters())))
    except Exception:  # of types that do not go together, or that a part of it refuses
        return model
    return lifted


def generators_kept(like: Tensor) -> AbstractContextManager:
    """While this lasts, what is drawn from torch's own generators, or seeds them, is of no consequence afterwards."""
    return torch.random.fork_rng([like.device] if like.is_cuda else [])


def alike(given: Tensor, others: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether answers are the same to within a share of their size."""
    others = others.to(given.device)
    if given.shape != others.shape or given.dtype != others.dtype:
        return False
    if not given.is_floating_point() or not given.numel():
        return torch.equal(given, others)
    within = tolerance * torch.cat((given.new_zeros(1), given[given.isfinite()].abs())).mean().item()
    return torch.allclose(given, others, tolerance, within, equal_nan=True)


def leaves(output: Tensor) -> list[Tensor]:
    """The tensors from which a result was computed, and which its gradient would reach."""
    pending, seen, found = [output.grad_fn], {None}, []
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            pending += [before for before, _ in node.next_functions]
    return found


def require_parameters(model: Machine, output: Tensor) -> None:
    """Refuse, by an InputError, what wants a gradient and is no parameter, in what a result was computed from."""
    others = [leaf for leaf in leaves(output) if all(leaf is not each for each in model.parameters())]
    if others:
        raise InputError(
            f"a tensor of shape {tuple(others[0].shape)} wants a gradient and is no parameter, so that nothing "
            "trains it: make it an nn.Parameter"
        )


def plain_values(model: Machine) -> dict[str, Any]:
    """The numbers and words that the parts of a model keep as attributes, in no file."""
    return {
        f"{part}.{name}".lstrip("."): value
        for part, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str)
    }


def check_kept(model: Machine) -> None:
    """Refuse a model that keeps what it should not.

    Raises:
        InputError: a tensor wants a gradient, and is no parameter; a call leaves a tensor behind that it computed, or
            in training what is in no file; what the model's file will hold changes in eval mode; or there, an answer
            is drawn, or depends on calls before, or on other sequences of the batch.
    """
    model, (steps, batch, rows), source = in_float64(model), FEW, torch.Generator().manual_seed(0)
    like = next(model.parameters())
    inputs, others_before = torch.randn(2, steps, batch, model.input_size, generator=source).to(like)

    def answer(inputs: Tensor, seed: int = 0, model: Machine = model) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(inputs, memory_units=rows)[0]

    with generators_kept(like), Precision() as precision:
        require_parameters(model, model(inputs)[0])
        try:
            resumed, before = deepcopy(model), deepcopy(model).state_dict()
        except RuntimeError as error:
            raise InputError(
                "the machine keeps a tensor that it computed, from its last step perhaps: what goes on from one step "
                "to the next belongs into the state that a controller takes and gives"
            ) from error
        trained, goes_on, counts = deepcopy(model), [], []
        for length in (1, steps):  # of what is counted modulo anything, one step makes a difference
            answer(others_before[:length], model=trained)
            resumed.load_state_dict(trained.state_dict())
            goes_on.append((answer(inputs, model=trained), answer(inputs, model=resumed)))
            counts.append(plain_values(trained))
        resumed.load_state_dict(trained.state_dict())
        goes_on.append([answer(inputs, model=each.eval()) for each in (trained, resumed)])
        model.eval()
        given, again = answer(inputs), [answer(inputs)]
        answer(others_before[:1])
        again, drawn = [*again, answer(inputs)], answer(inputs, seed=1)
        try:
            alone = torch.cat([answer(inputs[:, b : b + 1]) for b in range(batch)], 1)
        except Exception as error:  # of whatever kind a mistake in it makes
            raise InputError(f"the machine answers {batch} sequences at once, and not one alone ({error})") from error
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        raise InputError(f"{changed[0]} changes in eval mode, in which a machine only answers: where self.training is")
    if not all(alike(given, each, precision.tolerance) for each in again):
        raise InputError(
            "the machine gives other answers to the same sequences after others: what a part of it keeps from one call "
            "to the next belongs into its state"
        )
    counted = [name for name, value in counts[1].items() if counts[0].get(name) != value]
    if counted or not all(alike(*pair, precision.tolerance) for pair in goes_on):
        what = counted[0] if counted else "what the machine keeps"
        raise InputError(
            f"{what} changes from one call to the next in training, and is in no file, so that a resumed run would go "
            "on without it: make it a persistent buffer"
        )
    if not alike(given, drawn, precision.tolerance):
        raise InputError(
            "in eval mode, in which a machine only answers, it draws, as a dropout does that is not told of "
            "self.training: its answers would be others each time"
        )
    if not alike(given, alone, precision.tolerance):
        raise InputError(
            "in eval mode, the machine's answer to a sequence depends on the others of its batch, as where a mean over "
            "dimension 0 is taken, which is that of the sequences"
        )


def check_shareable(model: Machine) -> None:
    """Refuse a model that makes other things of two parts of a batch than of the whole.

    Raises:
        InputError: it does, as one that draws in training, or keeps statistics of a batch.
    """
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return  # which sees the whole batch
    model, (steps, _, rows), batch = in_float64(model), FEW, 2 * GROUP
    source, like = torch.Generator().manual_seed(0), next(model.parameters())
    inputs = torch.randn(steps, batch, model.input_size, generator=source).to(like)
    targets = torch.rand(steps, batch, model.output_proj.out_features, generator=source).round().to(like)
    memory = model.blank_memory(1, rows) if isinstance(model, NTM) else None
    made = []
    with generators_kept(like), Precision() as precision:
        for part in WHOLE, Part(0, 2), Part(1, 2):
            own = deepcopy(model).train()
            own.backend, weights = Backend.REFERENCE, own.flatten_parameters()
            torch.manual_seed(0)
            _, logits = own.forward_backward(inputs, targets, targets.new_ones(steps, batch), memory, part=part)
            made.append((logits, weights.grad, *own.buffers()))
    (logits, gradient, *buffers), first, second = made
    pairs = [(logits, torch.cat((first[0], second[0]), 1)), (gradient, first[1] + second[1])]
    pairs += [pair for half in (first, second) for pair in zip(buffers, half[2:], strict=True)]
    if not all(alike(whole, parts, precision.tolerance) for whole, parts in pairs):
        raise InputError(
            "processes that see a part of a batch each would not make of it what one makes of the whole: the machine "
            "draws in training, as a dropout does, or keeps statistics of the batch, as a batch norm does; train it in "
            "one process"
        )
