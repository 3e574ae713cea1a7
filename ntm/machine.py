"""What the NTM and its baseline share: parameters that lie in one tensor, and the choice of the path."""

from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ntm.backend import Backend, BackendError, is_special, parameters_by_name

TRANSPOSED = 0, 2, 4  # of the `packed_parameters` of an NTM: the weights of its three maps


def require_sizes(*sizes: int) -> None:
    """Raise a ValueError where one of a machine's sizes is no whole number, or below 1."""
    for size in sizes:
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"each of a machine's sizes is a whole number of at least 1, and one is {size!r}")


def pack_parameters(parameters: list[Tensor], transposed: tuple[int, ...] = TRANSPOSED) -> Tensor:
    """Copy parameters into one tensor, those in `transposed` column by column, as the fused path multiplies them."""
    pairs = enumerate(p.detach() for p in parameters)
    return torch.cat([(p.t() if i in transposed and p.dim() == 2 else p).flatten() for i, p in pairs])


def unpack_parameters(flat: Tensor, parameters: list[Tensor], transposed: tuple[int, ...] = TRANSPOSED) -> list[Tensor]:
    """Views of a tensor that `pack_parameters` laid out, in the shapes of the parameters."""
    parts = flat.split([p.numel() for p in parameters])
    pairs = enumerate(zip(parts, parameters, strict=True))
    return [
        part.view(p.shape[::-1]).t() if i in transposed and p.dim() == 2 else part.view(p.shape)
        for i, (part, p) in pairs
    ]


def lie_in_flat(tensors: Collection[Tensor], flat: Tensor) -> bool:
    """Whether tensors lie one after the other from the beginning of a flat one, as `flatten_parameters` lays them."""
    at = flat.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != at:
            return False
        at += tensor.nbytes
    return True


REPLACED = "parameters were replaced since flatten_parameters: call it again, or nothing trains them"


class FlatPart(NamedTuple):
    """A parameter that lies in a flat tensor."""

    siblings: dict[str, nn.Parameter]  # those of its module, itself among them
    name: str  # there
    parameter: nn.Parameter
    address: int  # of its values
    gradient: Tensor  # its part of the flat gradient


class FlatParameters(torch.Tensor):
    """All parameters of a model as one tensor, whose `grad` is always there, and always that of the parameters.

    Set to None, as by an optimizer's `zero_grad`, it becomes 0 in place; set to another tensor, it takes its values. A
    parameter's gradient that is None, as after a model's `zero_grad`, or that lies elsewhere, is brought back into it
    when it is asked for. Where the parameters were given other values than these, asking for it is a RuntimeError: an
    optimizer would move what no longer is the model's.

    Attributes:
        parts: of each parameter.
        modules: each part of the model, after those beside it, by name, and its own name there.
    """

    parts: Sequence[FlatPart] = ()
    modules: Sequence[tuple[dict[str, nn.Module | None], str, nn.Module | None]] = ()
    __torch_function__ = nn.Parameter.__torch_function__  # none: what is computed from it is a plain tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse a copy, as one of an optimizer is, too, by a RuntimeError: no model's parameters would lie in it."""
        raise RuntimeError(
            "what flatten_parameters gave is not copied, nor an optimizer of it: copy the model, call its "
            "flatten_parameters, and load the optimizer's state_dict into a new one"
        )

    @property
    def grad(self) -> Tensor:
        """The gradient of all parameters as one."""
        if any(siblings.get(name) is not module for siblings, name, module in self.modules):
            raise RuntimeError(REPLACED)
        for siblings, name, parameter, address, own in self.parts:
            if siblings.get(name) is not parameter or parameter.data_ptr() != address:
                raise RuntimeError(REPLACED)
            there = parameter.grad
            if there is not own:
                parameter.grad = own.zero_() if there is None else own.copy_(there)
        return torch.Tensor.grad.__get__(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        own = self.grad
        if own is None:
            torch.Tensor.grad.__set__(self, value)
        elif value is None:
            own.zero_()
        elif value.shape != own.shape:
            raise RuntimeError(f"a gradient of shape {tuple(value.shape)} for parameters of {tuple(own.shape)}")
        else:
            own.copy_(value.detach())


class Machine(nn.Module):
    """A model that takes whole sequences, (T, B, input_size), and answers them.

    Attributes:
        input_size: width of the external input.
        backend: which path computes it; they agree to within rounding.
        flat_parameters: all parameters as one tensor, after `flatten_parameters`.
        first_names: the parameters that come first in `packed_parameters`, if they are there.
        transposed: which of `packed_parameters` lie there by columns.
    """

    input_size: int
    first_names: tuple[str, ...] = ()
    transposed: tuple[int, ...] = ()

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = Backend(backend)
        self.flat_parameters: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets: parameters of its own, which lie in no flat tensor."""
        return {**self.__dict__, "flat_parameters": None}

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def frozen(self) -> list[str]:
        """The names of the parameters that get no gradient."""
        return [name for name, parameter in self.named_parameters() if not parameter.requires_grad]

    def require_inputs(self, inputs: Tensor, cell_mask: Tensor | None = None) -> None:
        """Refuse inputs that are not (T, B, input_size) with at least one step, or another cell mask: a ValueError."""
        if inputs.dim() != 3 or inputs.shape[2] != self.input_size or not len(inputs):
            wanted = f"(T, B, {self.input_size}), of at least one step"
            raise ValueError(f"inputs of shape {tuple(inputs.shape)}: this model takes {wanted}")
        if cell_mask is not None and (cell_mask.dim() != 3 or cell_mask.shape[:2] != inputs.shape[:2]):
            raise ValueError(
                f"cell_mask of shape {tuple(cell_mask.shape)}: it is (T, B, C), with T and B of the inputs"
            )

    def require_batch(
        self, inputs: Tensor, targets: Tensor, mask: Tensor, memory: Tensor | None, cell_mask: Tensor | None
    ) -> None:
        """Refuse arguments of `forward_backward` that do not fit together, by a ValueError: they would be broadcast.

        Where gradients are switched off, by a RuntimeError.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("forward_backward adds to gradients, which torch.no_grad or inference_mode switches off")
        self.require_inputs(inputs, cell_mask)
        steps_and_batch = inputs.shape[:2]
        for name, part in {"targets": targets, "mask": mask}.items():
            if part.shape[:2] != steps_and_batch or part.dim() != (2 if part is mask else 3):
                raise ValueError(f"{name} of shape {tuple(part.shape)} does not fit {tuple(steps_and_batch)}, (T, B)")
        if memory is not None and (memory.dim() != 3 or len(memory) not in (1, steps_and_batch[1])):
            raise ValueError(f"memory of shape {tuple(memory.shape)}: there are {steps_and_batch[1]} sequences")
        if memory is not None and not memory.shape[1]:
            raise ValueError(f"memory of shape {tuple(memory.shape)}: a memory has at least one row")

    def packed_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by name, in the order of `flat_parameters`, whatever order they were made in."""
        parameters = parameters_by_name(self)  # each step on the fused path asks for them
        if len({*map(id, parameters.values())}) < len(parameters):
            parameters = dict(self.named_parameters())
        first = {name: parameters.pop(name) for name in self.first_names if name in parameters}
        return first | parameters

    def flatten_parameters(self) -> Tensor:
        """Pack all parameters into one tensor, `flat_parameters`, and their gradients into another, as views of these.

        The fused path then need not copy them; clipping and optimizers go through one tensor, not nine, for
        which calls take longer than arithmetic.

        Returns:
            All parameters as one, with `grad`, which is 0; the same tensor as before, if they lie in that still. Call
            this again after `to`, `deepcopy` or `load_state_dict(assign=True)`, which give the parameters other
            tensors: `forward_backward` refuses such, and so does an optimizer's step. Parameters that were frozen
            since are refused by `forward_backward` alone. A change of the flat tensor between forward and backward goes
            unnoticed on the reference path, where PyTorch would refuse one of a parameter. Weights and their gradients
            are then transposed views, on which `view(-1)` fails, as in `torch.optim.LBFGS` of the parameters: give it
            this one tensor.

        Raises:
            ValueError: a parameter is frozen: an optimizer of one tensor would move it, if only by weight decay.
        """
        if self.frozen:
            raise ValueError(f"{self.frozen[0]} is frozen, and an optimizer of all parameters as one would move it")
        parameters, flat = list(self.packed_parameters().values()), self.flat_parameters
        known = [] if flat is None else [id(part.parameter) for part in flat.parts]
        if known == [*map(id, parameters)] and lie_in_flat(parameters, flat):
            flat.grad = None  # which is 0
            return flat
        packed = pack_parameters(parameters, self.transposed)
        self.flat_parameters = flat = packed.as_subclass(FlatParameters).requires_grad_()
        flat.grad = torch.zeros_like(flat)
        values, gradients = (
            unpack_parameters(packed, parameters, self.transposed) for packed in (flat.detach(), flat.grad)
        )
        for parameter, value, gradient in zip(parameters, values, gradients, strict=True):
            parameter.data, parameter.grad = value, gradient
        modules = [module._parameters for module in self.modules()]
        where = {id(each): (siblings, name) for siblings in modules for name, each in siblings.items()}
        pairs = zip(parameters, gradients, strict=True)
        children = (
            (module._modules, name, child) for module in self.modules() for name, child in module._modules.items()
        )
        flat.modules = list(children)
        flat.parts = [FlatPart(*where[id(each)], each, each.data_ptr(), gradient) for each, gradient in pairs]
        return flat

    def require_flat(self, parameters: Collection[nn.Parameter]) -> None:
        """Refuse parameters that an optimizer of `flat_parameters` would not move, or move though they are frozen.

        Args:
            parameters: those of `packed_parameters`.

        Raises:
            RuntimeError: one was replaced or frozen since `flatten_parameters`; or there are hooks on the flat tensor,
                which nothing calls.
        """
        flat = self.flat_parameters
        if flat is None:
            return
        if not lie_in_flat(parameters, flat):
            raise RuntimeError(REPLACED)
        if not all(parameter.requires_grad for parameter in parameters):
            raise RuntimeError(
                f"{self.frozen[0]} was frozen since flatten_parameters, and an optimizer of all as one would move it: "
                "set flat_parameters to None, and give an optimizer the parameters"
            )
        if flat._backward_hooks or flat._post_accumulate_grad_hooks:
            raise RuntimeError("hooks on what flatten_parameters gave are never called: put them on the parameters")

    def why_not_fused(self, parameters: dict[str, nn.Parameter] | None = None) -> str | None:
        """Say in one phrase why this model cannot run on the fused path; None where it can.

        Args:
            parameters: `packed_parameters`, where they were asked for just now.
        """
        return f"the fused path knows the NTM, and no {type(self).__name__}"

    def use_fused(self, *tensors: Tensor | None, parameters: dict[str, nn.Parameter] | None = None) -> bool:
        """Choose the path, by `backend`, by what the model is, and by the tensors that it is called with.

        Args:
            tensors: what it is called with.
            parameters: as in `why_not_fused`.

        Raises:
            BackendError: `backend` is FUSED and it cannot be had.
            ValueError: `backend` is none.
        """
        backend = Backend(self.backend)  # an error where it is none
        if backend is Backend.REFERENCE:
            return False
        reason = self.why_not_fused(parameters)
        if reason is None and any(map(is_special, tensors)):
            reason = "the fused path takes tensors for numbers, and one is of a class with operations of its own"
        if reason and backend is Backend.FUSED:
            raise BackendError(reason)
        return reason is None
