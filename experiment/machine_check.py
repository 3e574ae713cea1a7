"""A look at a machine before a run: is it what its file would make, and would training move all that it is?"""

import math
from copy import deepcopy

import torch
from torch import Tensor

from experiment.configuration import Configuration
from experiment.errors import InputError
from experiment.state_check import FEW, alike, check_kept, generators_kept
from ntm import NTM, Backend
from ntm.controller import LSTMController
from ntm.machine import Machine
from ntm.memory import INITIAL_VALUE, initial_memory
from ntm.ntm import OWN_FORWARD
from ntm.state import tensors_of

DIFFERENCE = 1e-4  # of two ways to the same numbers, relative to their norm


def stirred(model: Machine, seed: int) -> Machine:
    """A copy with large random weights, so that controls reach both ends of their ranges."""
    model, source = deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 5 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source))
    return model


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
        raise InputError(
            f"controller {name}: its output must be of shape and type {wanted} for B = 2, by its output_size, and is "
            f"{given}"
        )


def check_forgets(model: Machine, configuration: Configuration) -> None:
    """Refuse a controller that does not take the mask by which training makes cells forget, or does nothing with it.

    Raises:
        InputError: it raises something, or gives the same whatever the mask.
    """
    if not configuration.recipe.cell_dropout or "cells" not in configuration.network.has:
        return
    controller, like = deepcopy(model.controller), model.initial_reads
    x, mask = like.new_ones(2, model.input_size + like.numel()), like.new_ones(2, controller.output_size).bool()
    given = []
    try:
        for each in (mask, ~mask):
            with torch.no_grad(), generators_kept(like):
                torch.manual_seed(0)
                _, state = controller(x, controller.initial_state(2), each)
                given.append(controller(x, state, each)[0])
    except Exception as error:  # of whatever kind a mistake in it makes
        raise InputError(
            f"controller {type(controller).__name__}: is called lstm, of which training makes cells forget, by a "
            f"cell_mask that this one does not take ({error}): give it a name of its own, or -cell_dropout 0"
        ) from error
    if torch.equal(*given):
        raise InputError(
            f"controller {type(controller).__name__}: does nothing with the cell_mask by which training makes cells "
            "forget: -cell_dropout 0 says so"
        )


def check_step(model: NTM) -> None:
    """Refuse a model whose `step` was edited: the machine takes its steps by `step_with_focus`.

    Raises:
        InputError: the two give different numbers.
    """
    model, like = stirred(model, 0), model.initial_reads
    x = torch.linspace(-1, 1, 2 * model.input_size).view(2, -1).to(like)
    found = []
    with torch.no_grad(), generators_kept(like):
        for name in ("step", "step", "step_with_focus"):
            own = deepcopy(model)  # so that what a call leaves in it is of no consequence for the next
            torch.manual_seed(0)
            logits, after, *_ = getattr(own, name)(x, own.initial_state(2, 3))
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
    first = deepcopy(model).initial_state(1, 3).memory
    if first.requires_grad or not torch.equal(first, initial_memory(*first.shape, like=first)):
        raise InputError(
            "training begins on the memory of ntm.memory.initial_memory, and the model on another one, or on another "
            "each time: edit that function, without a draw or a parameter in it"
        )
    if blur_cost and model.overrides("step"):
        raise InputError("the model has a `step` of its own: override `step_with_focus` instead, or give -blur_cost 0")


def no_gradient(idle: list[str]) -> str:
    """Say which parameters get no gradient, and what one can do about it."""
    own = [name for name in idle if name != "initial_reads"]
    said = f"{', '.join(own or idle)} {'gets' if len(own or idle) == 1 else 'get'} no gradient"
    if len(own) < len(idle):  # what was read comes into the machine by the controller alone
        return (
            f"{said}, and none goes through the controller back to what was read: torch.no_grad, detach, or units that "
            "are never on cut it off"
        )
    return f"{said}, so that nothing trains {'it' if len(own) == 1 else 'them'}: make a buffer of it, or leave it away"


def check_trainable(model: Machine, blur_cost: float) -> None:
    """Refuse a model of which training would not train all that it is, or not the same when it is repeated.

    Raises:
        InputError: a parameter is frozen, or gets no gradient; it has a `forward` that does more than
            `forward_backward`, which does not call it; it draws from elsewhere than torch's own generators; or as in
            `check_override` and `check_kept`.
    """
    if model.frozen:
        raise InputError(f"{model.frozen[0]} is frozen, and train.py trains all parameters: make it a buffer instead")
    if isinstance(model, NTM):
        check_override(model, blur_cost)
    tried = stirred(model, 0).train()
    (trained, _, *gradients), (again, *_) = (
        small_batch(tried, Backend.REFERENCE, back=True, blur_cost=0.0) for _ in range(2)
    )
    if not torch.allclose(trained, again, 0, 0, equal_nan=True):
        raise InputError("the machine draws from elsewhere than torch's own generators: a run could not be repeated")
    pairs = zip(model.named_parameters(), gradients, strict=True)
    if idle := [name for (name, _), gradient in pairs if not gradient.any()]:
        raise InputError(no_gradient(idle))
    check_kept(tried)
    if not isinstance(model, NTM):
        return
    (answered,) = small_batch(tried, Backend.REFERENCE, back=False)
    if not torch.allclose(answered, trained, DIFFERENCE, DIFFERENCE, equal_nan=True):
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


def check_remade(model: Machine, configuration: Configuration) -> None:
    """Refuse a model that its configuration and its weights do not make again: evaluate.py would score another.

    Raises:
        InputError: they do not.
    """
    with generators_kept(next(model.parameters())):
        made = configuration.make_model(Backend.REFERENCE).to(model.device)
    other = InputError(
        "the model is another than its configuration and weights make: what was done to it is in no file, and "
        "evaluate.py would score a machine without it; do it in its class, in ntm/, where tensors are parameters or "
        "buffers, and several layers an nn.ModuleList"
    )
    try:
        made.load_state_dict(model.state_dict())
        pair = stirred(model, 0), stirred(made, 0)
    except RuntimeError as error:  # weights of other names or shapes, or that cannot be copied, as pruning makes them
        raise other from error
    try:
        same = answers_alike(*pair) or not answers_alike(pair[0], pair[0])  # that draws from a generator of its own
    except Exception:  # of a machine that cannot run at all: `check_machine` says so
        return
    if not same:
        raise other


def check_machine(model: Machine, training: bool, blur_cost: float) -> None:
    """Refuse a model that a script cannot run as it is, by whichever path.

    Raises:
        InputError: as in `check_controller`, `check_step` and, in training, `check_trainable`.
    """
    if isinstance(model, NTM) and type(model).step_with_focus is NTM.step_with_focus:
        check_controller(model)
    if isinstance(model, NTM) and not model.overrides("step"):
        check_step(model)
    if training:
        check_trainable(model, blur_cost)
