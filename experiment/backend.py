"""Bring up the code that runs a model, and say which it is."""

import sys
import threading
from copy import deepcopy

import torch
from torch import Tensor

from experiment.errors import InputError
from ntm import Backend, BackendError
from ntm.machine import Machine

DIFFERENCE = 1e-3  # between the paths, relative: a thousand times their rounding
PATIENCE = 1.5  # seconds before a user is told what takes so long


def choose_device(name: str) -> torch.device:
    """Turn a -device flag into a device that is there; auto is cuda if there is one, else cpu.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"-device {name}: no such device here; try cpu") from error
    return torch.device(name)


def first_step(model: Machine, backend: Backend, training: bool) -> Tensor:
    """Take one small batch through a copy of a model; returns what it answers, or, in training, all its gradients."""
    model, source = deepcopy(model), torch.Generator().manual_seed(0)
    model.backend, like = backend, next(model.parameters())
    inputs, memory = (
        torch.randn(*shape, generator=source).to(like)
        for shape in ((3, 2, model.input_size), (2, 5, model.heads.memory_unit_size))
    )
    if not training:
        with torch.no_grad():
            return model(inputs, model.initial_state(2, 5)._replace(memory=memory))[0]
    weights, outputs = model.flatten_parameters(), model.output_proj.out_features
    model.forward_backward(inputs, inputs.new_ones(3, 2, outputs), inputs.new_ones(3, 2), memory, blur_cost=0.1)
    return weights.grad


def warm_up(model: Machine, training: bool) -> None:
    """Compile what a command needs of the fast path, or load it from the cache, and hold it against the readable path.

    Raises:
        InputError: the two give different numbers.
    """
    for back in (False, True)[: 1 + training]:
        readable, fused = (first_step(model, backend, back) for backend in (Backend.REFERENCE, Backend.FUSED))
        if not (fused - readable).norm() <= DIFFERENCE * readable.norm():
            what = "gradients" if back else "answers"
            raise InputError(
                f"the fast path gives other {what} than ntm/ntm.py on one small batch: ntm/ or ntm/fused/ was changed, "
                "and not the other; -backend reference takes ntm/ntm.py's"
            )


def start_backend(model: Machine, training: bool = False, threads: int | None = None) -> str:
    """Compile the fast path if the model runs on it, or load it from its cache; returns the path in words.

    Args:
        training: whether the model is to be trained, by `forward_backward`.
        threads: how many the fast path gets; None for as many as PyTorch had.

    Raises:
        InputError: the model asks for the fused path, and it cannot be had.
    """
    device = model.device
    try:
        if not model.use_fused():
            return f"reference path on {device}"
    except BackendError as error:
        raise InputError(f"-backend {model.backend.value}: {error}") from error
    line = "compiling the fast path: once, for 10 to 30 seconds; later runs find it on disk"
    notice = threading.Timer(PATIENCE, print, (line,), {"file": sys.stderr, "flush": True})
    notice.start()
    from ntm import fused  # here, so that the readable path does without Numba

    try:
        warm_up(model, training)
    finally:
        notice.cancel()
    threads = fused.use_threads(threads)
    return f"fused path on {device}, {threads} thread{'s' * (threads > 1)}"
