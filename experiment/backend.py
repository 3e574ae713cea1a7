"""Compile the path that runs a model, check it, and say which it is."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor

from experiment.configuration import ROOT
from experiment.errors import InputError
from ntm import NTM, Backend, BackendError
from ntm.controller import LSTMController
from ntm.machine import Machine
from ntm.memory import INITIAL_VALUE, initial_memory
from ntm.ntm import OWN_FORWARD

DIFFERENCE = 1e-4  # between the paths, of logits and of each gradient, relative to their norm
ROUNDING = 300  # a difference may also be this many times the rounding of the reference path itself
# Of the batches that compare the paths, T, B and N: some edits show only with many rows, steps or sequences.
SHORT, FEW = (3, 16, 6), (6, 2, 6)
MORE_STEPS, MORE_SEQUENCES, MOST_ROWS, MOST_STEPS = (24, 2, 6), (6, 11, 6), 1024, 256
FAR = 40.0  # a control before its activation: a key strength of 40, a gate of 1 or 0


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
    if model and model.backend is not Backend.REFERENCE:
        use_widest_vectors()
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() and not (model and model.use_fused()) else "cpu"
        device = torch.device(name)
        device = torch.device(device.type, index) if device.type == "cuda" and device.index is None else device
        torch.zeros((), device=device).item()  # an error, too, where it computes no numbers: meta
    except BackendError as error:
        raise InputError(f"-backend {model.backend.value}: {error}") from error
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"-device {name}: no such device here; try cpu") from error
    return device


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
    training: bool,
    size: tuple[int, int, int] = FEW,
    back: bool = True,
    blur_cost: float = 0.1,
    seed: int = 0,
) -> list[Tensor]:
    """Take one small batch through a copy of a model.

    Its memory has blank rows, faint ones and strong ones, and not all of its steps count.

    Args:
        training: whether to take it as training does, too.
        size: T, B and N.
        back: whether to go back, in training, at a loss with this `blur_cost`.
        seed: of what the model itself may draw, each time.

    Returns:
        The logits of the model's `forward`, in training also those in training mode; and going back, the logits of
        `forward_backward` and each gradient.
    """
    (steps, batch, rows), source = size, torch.Generator().manual_seed(0)
    model = deepcopy(model)
    if training:
        model.flatten_parameters()
    model.backend, like = backend, next(model.parameters())
    inputs = torch.randn(steps, batch, model.input_size, generator=source).to(like)
    strength = torch.tensor([0, INITIAL_VALUE, 1e-3, 0.1, 1, 3])[torch.arange(rows) % 6].unsqueeze(1)
    memory = (strength * torch.randn(batch, rows, model.heads.memory_unit_size, generator=source)).to(like)
    mask, cell_mask = (torch.arange(steps * batch).view(steps, batch) % 3 > 0).to(like), None
    if training and type(model.controller).forward is LSTMController.forward:  # others may have no cells that forget
        cell_mask = (torch.rand(steps, batch, model.controller.output_size, generator=source) < 0.7).to(like.device)
    numbers = []
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        for mode in (False, True) if training else (False,):
            torch.manual_seed(seed)
            with torch.no_grad():
                state = model.train(mode).initial_state(batch, rows)._replace(memory=memory)
                numbers.append(model(inputs, state, cell_mask=cell_mask)[0])
        if training and back:
            targets = torch.rand(numbers[0].shape, generator=source).round().to(like)
            torch.manual_seed(seed)
            numbers.append(model.forward_backward(inputs, targets, mask, memory, cell_mask, blur_cost)[1])
            numbers += [parameter.grad for parameter in model.parameters()]
    return numbers


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


def with_far_controls(model: NTM) -> Iterator[NTM]:
    """Copies in each of which one of the controls is FAR towards an end of its range: a limit set there is seen."""
    for control in range(len(model.heads.sizes)):
        for far in (-FAR, FAR):
            copy = stirred(model, control)
            with torch.no_grad():
                bias = copy.heads.control_proj.bias.zero_()  # the other controls differ, then, between sequences
                bias.split(copy.heads.sizes)[control].fill_(far)
            yield copy


def compare(model: Machine, training: bool, size: tuple[int, int, int] = FEW, back: bool = True) -> None:
    """Compare the two paths on one `small_batch`.

    Raises:
        InputError: they give different numbers.
    """
    paths = Backend.REFERENCE, Backend.FUSED
    reference, fused = (small_batch(model, backend, training, size, back) for backend in paths)
    if all((b - a).norm() <= DIFFERENCE / 2 * a.norm() for a, b in zip(reference, fused, strict=True)):
        return
    exact = small_batch(deepcopy(model).double(), Backend.REFERENCE, training, size, back)
    gradients = [f"another gradient of {name}" for name, _ in model.named_parameters()] if training and back else []
    names = ["other answers"] * (len(exact) - len(gradients)) + gradients
    for name, right, near, other in zip(names, exact, reference, fused, strict=True):
        if not (other - right).norm() <= max(DIFFERENCE * right.norm(), ROUNDING * (near - right).norm()):  # nor NaN
            raise InputError(
                f"the fused path has {name} than ntm/ntm.py on a small batch: ntm/ and ntm/fused/ no longer agree; "
                "-backend reference takes ntm/ntm.py's"
            )


def repeats(model: Machine, training: bool, seeds: tuple[int, int], **more: float) -> bool:
    """Whether a `small_batch` has the same numbers twice, by the reference path, with these seeds of what it draws."""
    twice = [small_batch(model, Backend.REFERENCE, training, seed=seed, **more) for seed in seeds]
    return all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in zip(*twice, strict=True))


def check_trainable(model: Machine, blur_cost: float) -> None:
    """Refuse a model of which training would not train all that it is.

    Raises:
        InputError: a parameter is frozen; it has a `forward` that does more than `forward_backward`, which does not
            call it, or gets no gradient; it begins on another memory than training; or it has a `step` of its own, and
            blur costs something.
    """
    if model.frozen:
        raise InputError(f"{model.frozen[0]} is frozen, and train.py trains all parameters: make it a buffer instead")
    if not isinstance(model, NTM):
        return
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
    tried = stirred(model, 0)
    _, answers, trained, *gradients = small_batch(tried, Backend.REFERENCE, training=True, blur_cost=0.0)
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        if not gradient.any():
            raise InputError(f"{name} gets no gradient, so that nothing trains it: make it a buffer, or leave it away")
    same = torch.allclose(answers, trained, DIFFERENCE, DIFFERENCE, equal_nan=True)
    if not same and repeats(tried, True, seeds=(0, 0), blur_cost=0.0):  # else it draws from a generator of its own
        raise InputError(
            "NTM.forward gives other answers than NTM.forward_backward, by which train.py trains: what is done to "
            "inputs or answers belongs in `step_with_focus`, which both call"
        )


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
    "import torch; from ntm import NTM; from experiment.backend import use_widest_vectors; use_widest_vectors(); "
    "torch.set_grad_enabled(False); NTM(1, 1, 1, 1, 1)(torch.zeros(1, 1, 1))"
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
        if child:
            child.wait()


def start_backend(
    model: Machine, training: bool = False, threads: int | None = None, blur_cost: float = 0.0, most_steps: int = 0
) -> str:
    """Compile the fused path if the model runs on it, or load it from its cache; returns the path in words.

    Args:
        training: whether the model is to be trained, by `forward_backward`.
        threads: how many it gets; None for as many as PyTorch had, and one for an NTM on the reference path.
        blur_cost: what training makes blur cost at most.
        most_steps: T of the longest sequences in training: what happens at a late step alone, as gradients that are cut
            each 30 steps, is seen up to there, or to `MOST_STEPS`.

    Raises:
        InputError: the model asks for the fused path, and it cannot be had, or has other numbers than the reference
            path; its controller's results have another form; or as of `check_trainable`.
    """
    device = model.device
    if isinstance(model, NTM) and type(model).step_with_focus is NTM.step_with_focus:
        check_controller(model)
    if training:
        check_trainable(model, blur_cost)
    if model.backend is not Backend.REFERENCE:
        use_widest_vectors()
    try:
        if not model.use_fused():
            why = "" if model.backend is Backend.REFERENCE else f" ({model.why_not_fused()})"
            if device.type == "cpu" and (threads or isinstance(model, NTM)):
                torch.set_num_threads(threads or 1)  # an NTM's operations are too small to share out
            return f"reference path on {device}{why}"
    except BackendError as error:
        raise InputError(f"-backend {model.backend.value}: {error}") from error
    from ntm import fused  # here, so that the reference path does without Numba

    if not repeats(stirred(model, 0), training, seeds=(0, 1)):
        raise InputError(
            "the same batch gives other numbers each time by ntm/ntm.py: it draws some, as noise or dropout, and the "
            "fused path does not; -backend reference takes ntm/ntm.py's"
        )
    with telling_of_compilation(training):
        more_rows = 6, 2, min(model.memory_units, MOST_ROWS)
        for seed, size in enumerate((FEW, more_rows, MORE_STEPS, MORE_SEQUENCES)):
            compare(stirred(model, seed), training, size)  # compiles what is needed, or loads it
    if most_steps > MORE_STEPS[0]:  # with its own weights: with large random ones, what is late follows from rounding
        compare(model, training, (min(most_steps, MOST_STEPS), *MORE_STEPS[1:]))
    for copy in with_far_controls(model):
        compare(copy, training, SHORT, back=False)  # the way back is compared above
    threads = fused.use_threads(threads)
    gpu = "; there is a GPU: -device cuda takes it, by the reference path" if torch.cuda.is_available() else ""
    return f"fused path on {device}, {threads} thread{'s' * (threads > 1)}{gpu}"
