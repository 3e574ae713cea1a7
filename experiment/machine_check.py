"""Look at a machine before a run: do the two paths agree on it, and would training move all that it is?"""

import math
from contextlib import AbstractContextManager
from copy import deepcopy

import torch
from torch import Tensor

from experiment.configuration import Configuration
from experiment.errors import InputError
from ntm import NTM, Backend
from ntm.controller import LSTMController
from ntm.machine import Machine
from ntm.memory import INITIAL_VALUE, initial_memory
from ntm.ntm import OWN_FORWARD
from ntm.state import tensors_of

DIFFERENCE = 1e-4  # between the paths, of logits and of each gradient, relative to their norm
ROUNDING = 300  # a difference may also be this many times the rounding of the reference path itself
FEW, MORE, MOST_ROWS = (6, 2, 6), (24, 11), 1024  # of the batches that compare the paths: T, B and N; T and B; N


def stirred(model: Machine, seed: int) -> Machine:
    """A copy with large random weights, so that controls reach both ends of their ranges."""
    model, source = deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 5 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source))
    return model


def generators_kept(like: Tensor) -> AbstractContextManager:
    """While this lasts, what is drawn from torch's own generators, or seeds them, is of no consequence afterwards."""
    return torch.random.fork_rng([like.device] if like.is_cuda else [])


def small_batch(
    model: Machine,
    backend: Backend,
    back: bool,
    size: tuple[int, int, int] = FEW,
    blur_cost: float = 0.1,
    own_memory: bool = False,
) -> list[Tensor]:
    """Take one small batch through a copy of a model, in the mode that it is in.

    Its memory has blank rows, faint ones and strong ones, and not all of its steps count.

    Args:
        back: whether to go back, as training does, at a loss with this `blur_cost`.
        size: T, B and N.
        own_memory: going forward alone, whether to begin on the memory on which the model does by itself.

    Returns:
        The logits; going back, also the loss and each gradient.
    """
    (steps, batch, rows), source = size, torch.Generator().manual_seed(0)
    model, like = deepcopy(model), next(model.parameters())
    model.backend = backend
    if model.training:
        model.flatten_parameters()
    inputs = torch.randn(steps, batch, model.input_size, generator=source).to(like)
    memory = cell_mask = None
    if isinstance(model, NTM):
        strength = torch.tensor([0, INITIAL_VALUE, 1e-3, 0.1, 1, 3])[torch.arange(rows) % 6].unsqueeze(1)
        memory = (strength * torch.randn(batch, rows, model.heads.memory_unit_size, generator=source)).to(like)
        if model.training and type(model.controller).forward is LSTMController.forward:  # others may have no such cells
            cells = model.controller.output_size
            cell_mask = (torch.rand(steps, batch, cells, generator=source) < 0.7).to(like.device)
    with generators_kept(like):
        torch.manual_seed(0)
        if not back:
            state = model.initial_state(batch, rows)
            if isinstance(model, NTM) and not own_memory:
                state = state._replace(memory=memory)
            masks = {} if cell_mask is None else {"cell_mask": cell_mask}
            with torch.no_grad():
                return [model(inputs, state, **masks)[0]]
        targets = torch.rand(steps, batch, model.output_proj.out_features, generator=source).round().to(like)
        mask = (torch.arange(steps * batch).view(steps, batch) % 3 > 0).to(like)
        loss, logits = model.forward_backward(inputs, targets, mask, memory, cell_mask, blur_cost)
    return [logits, torch.tensor(loss), *(parameter.grad for parameter in model.parameters())]


def compare(model: Machine, back: bool, size: tuple[int, int, int] = FEW) -> None:
    """Compare the two paths on one `small_batch`.

    Raises:
        InputError: they give different numbers.
    """
    reference, fused = (small_batch(model, backend, back, size) for backend in (Backend.REFERENCE, Backend.FUSED))
    if all((b - a).norm() <= DIFFERENCE / 2 * a.norm() for a, b in zip(reference, fused, strict=True)):
        return  # so near that float64, which takes longer, would not refuse it either
    exact = small_batch(deepcopy(model).double(), Backend.REFERENCE, back, size)
    names = ["other answers", "another loss", *(f"another gradient of {name}" for name, _ in model.named_parameters())]
    for name, right, a, b in zip(names[: len(exact)], exact, reference, fused, strict=True):
        if not (b - right).norm() <= max(DIFFERENCE * right.norm(), ROUNDING * (a - right).norm()):  # nor NaN
            raise InputError(
                f"the fused path has {name} than ntm/ntm.py on a small batch: ntm/ and ntm/fused/ no longer agree; "
                "-backend reference takes ntm/ntm.py's"
            )


def compare_optimizers() -> None:
    """Compare two steps of the compiled AdamW with PyTorch's.

    With what `torch.optim.AdamW(fused=True)` calls: its own `step` would first import a second's worth of PyTorch.

    Raises:
        InputError: they differ.
    """
    from ntm.fused import FusedAdamW

    weights, gradient = torch.linspace(-1, 1, 9), torch.linspace(2, -1, 9)
    theirs, mean, square, steps = weights.clone(), torch.zeros(9), torch.zeros(9), torch.zeros(())
    weights.requires_grad_().grad = gradient
    numbers = {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}
    ours, more = FusedAdamW([weights], betas=(0.8, 0.9), **numbers), {"amsgrad": False, "maximize": False}
    for _ in range(2):
        ours.step()
        steps += 1
        torch._fused_adamw_(
            [theirs], [gradient], [mean], [square], [], [steps], beta1=0.8, beta2=0.9, **numbers, **more
        )
    if not torch.allclose(weights, theirs, rtol=1e-5, atol=1e-6):
        raise InputError(
            "ntm/fused/adamw.py takes other steps than torch.optim.AdamW; -backend reference takes PyTorch's"
        )


def check_fused(model: NTM, training: bool) -> None:
    """Refuse a model on which the fused path has other numbers than the reference path.

    Args:
        training: whether to compare what training does, too. That comes first: meanwhile another process compiles what
            answers need (`telling_of_compilation` in experiment/backend.py).

    Raises:
        InputError: it has.
    """
    for back in (True, False) if training else (False,):
        for seed, size in enumerate((FEW, (*MORE, min(model.memory_units, MOST_ROWS)))):
            compare(stirred(model, seed).train(back), back, size)


def check_controller(model: NTM) -> None:
    """Take two steps with the controller, and refuse one whose results have another form.

    Raises:
        InputError: they are not an output, (B, C), and a state that the controller takes again.
    """
    controller, name = deepcopy(model.controller), type(model.controller).__name__
    x = model.initial_reads.new_zeros(2, model.input_size + model.initial_reads.numel())
    wanted = (2, model.heads.control_proj.in_features), x.dtype
    try:
        with torch.no_grad():
            output, state = controller(x, controller.initial_state(2))
            output, _ = controller(x, state)
        given = tuple(output.shape), output.dtype
    except Exception as error:  # of whatever kind a mistake in it makes
        raise InputError(f"controller {name}: from a state it must give its output and its state ({error})") from error
    if given != wanted:
        raise InputError(f"controller {name}: its output must be of shape and type {wanted} for B = 2, and is {given}")


def check_step(model: NTM) -> None:
    """Refuse a model whose `step` was edited: the machine takes its steps by `step_with_focus`.

    Raises:
        InputError: the two give different numbers.
    """
    model, like = stirred(model, 0), model.initial_reads
    x, state = torch.linspace(-1, 1, 2 * model.input_size).view(2, -1).to(like), model.initial_state(2, 3)
    found = []
    with torch.no_grad(), generators_kept(like):
        for step in (model.step, model.step, model.step_with_focus):
            torch.manual_seed(0)
            logits, after, *_ = step(x, state)
            found.append([logits, *tensors_of(after)])
    same, other = (all(map(torch.equal, found[0], numbers)) for numbers in found[1:])
    if same and not other:  # else it draws from a generator of its own
        raise InputError(
            "NTM.step does more than NTM.step_with_focus, by which the machine takes its steps: what is done at a step "
            "belongs there"
        )


def check_override(model: NTM, blur_cost: float) -> None:
    """Refuse a model that overrides what training does not call, or begins on another memory.

    Raises:
        InputError: it does.
    """
    if model.own_forward():
        raise InputError(f"{OWN_FORWARD}: override `step_with_focus` instead")
    first = model.initial_state(1, 3).memory
    if first.requires_grad or not torch.equal(first, initial_memory(*first.shape, like=first)):
        raise InputError(
            "training begins on the memory of ntm.memory.initial_memory, and the model on another one, or on another "
            "each time: edit that function, without a draw or a parameter in it"
        )
    if blur_cost and model.overrides("step"):
        raise InputError("the model has a `step` of its own: override `step_with_focus` instead, or give -blur_cost 0")


def check_trainable(model: Machine, blur_cost: float) -> None:
    """Refuse a model of which training would not train all that it is.

    Raises:
        InputError: a parameter is frozen, or gets no gradient; it has a `forward` that does more than
            `forward_backward`, which does not call it; or as of `check_override`.
    """
    if model.frozen:
        raise InputError(f"{model.frozen[0]} is frozen, and train.py trains all parameters: make it a buffer instead")
    if isinstance(model, NTM):
        check_override(model, blur_cost)
    tried = stirred(model, 0).train()
    trained, _, *gradients = small_batch(tried, Backend.REFERENCE, back=True, blur_cost=0.0)
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        if not gradient.any():
            raise InputError(f"{name} gets no gradient, so that nothing trains it: make it a buffer, or leave it away")
    if not isinstance(model, NTM):
        return
    answered, again = (small_batch(tried, Backend.REFERENCE, back=False)[0] for _ in range(2))
    same = torch.allclose(answered, trained, DIFFERENCE, DIFFERENCE, equal_nan=True)
    if not same and torch.allclose(answered, again, 0, 0, equal_nan=True):  # else it draws from a generator of its own
        raise InputError(
            "NTM.forward gives other answers than NTM.forward_backward, by which train.py trains: what is done to "
            "inputs or answers belongs in `step_with_focus`, which both call"
        )


def answers(model: Machine) -> Tensor:
    """What a model answers to a small batch in eval mode, on a dirty memory and on its own: (T, 2B, output_size)."""
    model = deepcopy(model).eval()
    given = [small_batch(model, Backend.REFERENCE, back=False, own_memory=own)[0] for own in (False, True)]
    return torch.cat(given, dim=1)


def answers_alike(model: Machine, other: Machine) -> bool:
    """Whether two machines give the same answers to a small batch, to a thousandth."""
    return alike(answers(model), answers(other))


def alike(given: Tensor, others: Tensor) -> bool:
    """Whether answers are the same to a thousandth of their size."""
    within = 1e-3 * given[given.isfinite()].abs().mean().item()
    fit = given.shape == others.shape and given.dtype == others.dtype
    return fit and torch.allclose(given, others.to(given.device), 1e-3, within, equal_nan=True)


def check_remade(model: Machine, configuration: Configuration) -> None:
    """Refuse a model that its configuration and its weights do not make again: evaluate.py would score another.

    Raises:
        InputError: they do not.
    """
    with generators_kept(next(model.parameters())):
        made = configuration.make_model(Backend.REFERENCE).to(model.device)
    other = InputError(
        "the model is another than its configuration and weights make: what was done to it is in no file, and "
        "evaluate.py would score a machine without it; do it in its class, in ntm/"
    )
    try:
        made.load_state_dict(model.state_dict())
        pair = stirred(model, 0), stirred(made, 0)
    except RuntimeError as error:  # weights of other names or shapes, or that cannot be copied, as pruning makes them
        raise other from error
    try:
        alike = answers_alike(*pair) or not answers_alike(pair[0], pair[0])  # that draws from a generator of its own
    except Exception:  # of a machine that cannot run at all: `check_machine` says so
        return
    if not alike:
        raise other


def check_machine(model: Machine, training: bool, blur_cost: float) -> None:
    """Refuse a model that a script cannot run as it is, by whichever path.

    Raises:
        InputError: as of `check_controller`, `check_step` and, in training, `check_trainable`.
    """
    if isinstance(model, NTM) and type(model).step_with_focus is NTM.step_with_focus:
        check_controller(model)
    if isinstance(model, NTM) and not model.overrides("step"):
        check_step(model)
    if training:
        check_trainable(model, blur_cost)
