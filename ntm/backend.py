"""Which code runs an unroll: the readable model, or the fast path. This is the one place that chooses."""

import importlib.util
from enum import Enum
from functools import cache

import torch
from torch import Tensor


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


def why_not_fused(parameter: Tensor) -> str | None:
    """Say in one phrase why a model with such a parameter cannot run on the fused path; None where it can."""
    if parameter.device.type != "cpu":
        return f"the fused path runs on the CPU, not on {parameter.device}"
    if parameter.dtype not in (torch.float32, torch.float64):
        return f"the fused path computes in float32 or float64, not {parameter.dtype}"
    missing = missing_packages()
    if missing:
        return f"the fused path needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    return None


def use_fused(backend: Backend, parameter: Tensor) -> bool:
    """Choose the path for a model with such a parameter.

    Raises:
        BackendError: `backend` is FUSED and it cannot be had.
    """
    if backend is Backend.REFERENCE:
        return False
    reason = why_not_fused(parameter)
    if reason and backend is Backend.FUSED:
        raise BackendError(reason)
    return reason is None
