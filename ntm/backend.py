"""Which code runs an unroll: the reference model, or the fused path, which computes the stock machine and no other."""

import importlib
from enum import Enum
from functools import cache
from types import ModuleType

import torch
from torch import nn
from torch.autograd import forward_ad


class Backend(Enum):
    """AUTO takes the fused path where it applies, and the reference elsewhere."""

    AUTO = "auto"
    FUSED = "fused"
    REFERENCE = "reference"


class BackendError(RuntimeError):
    """The fused path was asked for and cannot be had; the message says why."""


@cache
def import_trouble() -> str | None:
    """Say in one phrase why the fused path cannot be imported; None where it can."""
    try:
        importlib.import_module("ntm.fused")
    except Exception as error:  # Numba, for one, raises where it does not know the NumPy that is there
        return f"the fused path cannot be imported ({error})"
    return None


def mode_trouble() -> str | None:
    """Say in one phrase what PyTorch does just now that the fused path does not; None where that is nothing."""
    try:
        if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return "the fused path is not one for the transforms of torch.func, nor for forward-mode differentiation"
        if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
            return "the fused path cannot be traced, nor seen by a dispatch mode"
        if torch.is_autocast_enabled("cpu"):
            return "the fused path computes in the type of the weights, and autocast is on"
        if nn.modules.module._has_any_global_hook():
            return "the fused path calls no module, and there are hooks on the calls of all modules"
    except AttributeError as error:  # these names are not public
        return f"the fused path must know what PyTorch does just now, and this version does not say ({error})"
    return None


class Contents:
    """What modules and their classes of `nn.Module` hold, by name: to see later whether one was replaced."""

    def __init__(self, *modules: ModuleType) -> None:
        kinds = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
        owners = *modules, *(kind for kind in dict.fromkeys(kinds) if issubclass(kind, nn.Module))
        self.owners = [(owner, vars(owner)) for owner in owners]
        self.before = [
            (names, name, value)
            for _, names in self.owners
            for name, value in names.items()
            if not name.startswith("__")
        ]

    def changed(self) -> str | None:
        """Return a phrase that names what was replaced since, or None where nothing was."""
        for names, name, value in self.before:
            if names.get(name) is not value:
                owner = next(owner for owner, of in self.owners if of is names)
                said = f"{owner.__name__}.{name} was replaced"
                importers = [other.__name__ for other, of in self.owners if of.get(name) is value]
                if importers and getattr(value, "__module__", None) == owner.__name__:
                    said += f", but not in {', '.join(importers)}, which imported it, and calls it as it was"
                return said
        return None


def has_hooks(module: nn.Module) -> bool:
    """Whether there are hooks on a module's calls, forward or backward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def changed_part(module: nn.Module, stock: type[nn.Module], map_name: str) -> str | None:
    """Return a phrase that says how a module differs from a class of this package, or None where it does not.

    Args:
        module: the module; a subclass will do that overrides no method of the class.
        stock: the class that the fused path computes.
        map_name: its linear map.
    """
    kind, own = type(module), vars(module)
    if not isinstance(module, stock):
        return f"is a {kind.__name__}"
    for name, method in vars(stock).items():
        replaced = name in own or (kind is not stock and getattr(kind, name) is not method)
        if replaced and callable(method) and name != "__init__":
            return f"has its own {name}"
    if kind.__call__ is not nn.Module.__call__:
        return "has its own __call__"
    linear = getattr(module, map_name)
    if type(linear) is not nn.Linear or "forward" in vars(linear):
        return f"has its own {map_name}, a {type(linear).__name__}"
    for name, part in (("itself", module), (map_name, linear)):
        if has_hooks(part):
            return f"has hooks on {name} (pruning puts some there, too)"
    return None


def changed_parameter(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Return a phrase that says how a model's parameters differ from these, or None where they do not.

    Args:
        model: the model.
        shapes: by name, all parameters that the fused path knows.
    """
    parameters = dict(model.named_parameters())
    for name, shape in shapes.items():
        parameter = parameters.pop(name, None)
        if parameter is None or parameter.shape != shape:
            return f"has no parameter {name} of shape {shape}"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"has hooks on the gradient of {name}"
    return f"has a parameter of its own, {next(iter(parameters))}" if parameters else None
