"""Bring up the code that runs a model, and say which it is."""

import sys
import threading
from copy import deepcopy

import torch

from experiment.errors import InputError
from ntm import BackendError
from ntm.machine import Machine

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


def warm_up(model: Machine, training: bool) -> None:
    """Compile what a command needs of the fast path, or load it from the cache, by taking a step."""
    model = deepcopy(model)  # which gets the gradients
    inputs = next(model.parameters()).new_zeros(1, 1, model.input_size)
    with torch.no_grad():
        logits, _ = model(inputs)
    if training:
        model.forward_backward(inputs, torch.zeros_like(logits), torch.ones_like(logits[..., 0]))


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
