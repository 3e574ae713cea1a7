"""Which code runs an unroll: the readable model, or the fast path, which computes the stock machine and no other."""

import importlib.util
from enum import Enum
from functools import cache

from torch import nn


class Backend(Enum):
    """AUTO takes the fused path where it applies, and the readable one elsewhere."""

    AUTO = "auto"
    FUSED = "fused"
    REFERENCE = "reference"


class BackendError(RuntimeError):
    """The fused path was asked for and cannot be had; the message says why."""


@cache
def missing_packages() -> list[str]:
    """What the fused path imports and this Python has not."""
    return [name for name in ("numba", "scipy", "threadpoolctl") if importlib.util.find_spec(name) is None]


def changed_part(module: nn.Module, stock: type[nn.Module]) -> str | None:
    """Say in which way a module computes something else than its class in this package may; None where in none.

    Args:
        module: the module; a subclass will do that overrides no method of the class.
        stock: the class that the fused path computes.
    """
    kind, own = type(module), vars(module)
    if not isinstance(module, stock):
        return f"is a {kind.__name__}"
    for name, method in vars(stock).items():
        if callable(method) and name != "__init__" and (name in own or getattr(kind, name) is not method):
            return f"has a {name} of its own"
    for child_name, child in module.named_children():
        if isinstance(child, nn.Linear) and (type(child) is not nn.Linear or "forward" in vars(child)):
            return f"has a {child_name} that is a {type(child).__name__} of its own"
    for child_name, child in (("", module), *module.named_children()):
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks:
            return f"has hooks on {child_name or 'itself'} (as pruning puts there)"
    return None
