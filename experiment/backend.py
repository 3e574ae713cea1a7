"""Compile the path that runs a model, check it, and say which it is."""

import gc
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from experiment.configuration import ROOT
from experiment.errors import InputError
from experiment.machine_check import check_machine
from experiment.path_check import check_fused
from ntm import NTM, Backend, BackendError
from ntm.machine import Machine


def choose_device(name: str, model: Machine | None = None, index: int = 0) -> torch.device:
    """Turn a -device flag into a device that is there.

    `auto` is the CPU for a model that runs on the fused path, which a GPU has not: there the reference path starts some
    sixty small operations a time step. For all others it is a GPU if there is one.

    Args:
        name: of the flag.
        model: what is to run, on the CPU so far.
        index: which GPU, where the flag says none.

    Raises:
        InputError: there is no such device, or the model asks for the fused path, and it cannot be had.
    """
    if model is not None and model.backend is not Backend.REFERENCE:
        use_widest_vectors()
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() and not (model is not None and model.use_fused()) else "cpu"
        device = torch.device(name)
        device = torch.device(device.type, index) if device.type == "cuda" and device.index is None else device
        torch.zeros((), device=device).item()  # an error, too, where it computes no numbers: meta
    except BackendError as error:
        raise InputError(f"-backend {model.backend.value}: {error}") from error
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"-device {name}: no such device here; try cpu") from error
    return device


def use_widest_vectors() -> None:
    """Let Numba use vectors as wide as the processor has, where LLVM else takes half of AVX-512.

    It is a setting of the whole process, to be made before the fused path is imported; so the scripts make it, and
    `ntm`, which others import, makes none.
    """
    try:
        from llvmlite.binding import get_host_cpu_features
        from numba import config
    except Exception:  # then there is no fused path, and `NTM.why_not_fused` says why
        return
    if config.CPU_FEATURES is None and platform.machine() in ("x86_64", "AMD64"):
        config.CPU_FEATURES = get_host_cpu_features().flatten() + ",-prefer-256-bit"


FORWARD = (
    "import gc, torch; from ntm import NTM; from experiment.backend import use_widest_vectors; use_widest_vectors(); "
    "gc.disable(); torch.set_grad_enabled(False); NTM(1, 1, 1, 1, 1)(torch.zeros(1, 1, 1))"
)


@contextmanager
def telling_of_compilation(training: bool) -> Iterator[None]:
    """Say it once the fused path is being compiled, and not loaded from its cache.

    What training needs besides, the forward pass for the held-out set, is then compiled by a process of its own on
    another core, which leaves it in the cache.
    """
    from numba.core.event import Listener, install_listener  # here, so that the reference path does without Numba

    from ntm.fused.jit import kept_in

    told, child = False, None

    class Tell(Listener):
        def on_start(self, _) -> None:
            nonlocal told, child
            if told:
                return
            told = True
            gc.disable()  # a compiler's objects live until it is done: looking for garbage takes 7% of its time
            folder = kept_in()
            kept = f"; later runs find it in {folder}" if folder else ""
            print(f"compiling the fused path, for 10 to 30 seconds{kept}", file=sys.stderr, flush=True)
            if training and folder and (os.cpu_count() or 1) > 1:
                child = subprocess.Popen([sys.executable, "-c", FORWARD], cwd=ROOT, stderr=subprocess.DEVNULL)

        def on_end(self, _) -> None:
            pass

    try:
        with install_listener("numba:compile", Tell()):
            yield
    finally:
        if told:
            gc.enable()
        if child:
            child.wait()


def on_threads(count: int) -> str:
    """How many threads, as a part of a sentence."""
    return f", {count} thread{'s' * (count > 1)}"


def start_backend(model: Machine, training: bool = False, threads: int | None = None, blur_cost: float = 0.0) -> str:
    """Compile the fused path if the model runs on it, or load it from its cache; returns the path in words.

    Args:
        training: whether the model is to be trained, by `forward_backward`.
        threads: how many it gets; None for as many as PyTorch had, and one for an NTM on the reference path.
        blur_cost: what training makes blur cost at most.

    Raises:
        InputError: the model asks for the fused path, and it cannot be had; or as in `check_machine` and `check_fused`.
    """
    device = model.device
    check_machine(model, training, blur_cost)
    if model.backend is not Backend.REFERENCE:
        use_widest_vectors()
    try:
        if not model.use_fused():
            why = "" if model.backend is Backend.REFERENCE else f" ({model.why_not_fused()})"
            if device.type == "cpu" and (threads or isinstance(model, NTM)):
                torch.set_num_threads(threads or 1)  # an NTM's operations are too small to share out
            return (
                f"reference path on {device}{on_threads(torch.get_num_threads()) if device.type == 'cpu' else ''}{why}"
            )
    except BackendError as error:
        raise InputError(f"-backend {model.backend.value}: {error}") from error
    from ntm import fused  # here, so that the reference path does without Numba

    with telling_of_compilation(training):
        check_fused(model, training)  # compiles what is needed, or loads it
    threads = fused.use_threads(threads)
    gpu = "; there is a GPU: -device cuda takes it, by the reference path" if torch.cuda.is_available() else ""
    return f"fused path on {device}{on_threads(threads)}{gpu}"
