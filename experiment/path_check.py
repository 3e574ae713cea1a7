"""Do the two paths agree on a machine? Before a run, small batches with large random weights tell."""

from copy import deepcopy

import torch

from experiment.errors import InputError
from experiment.machine_check import DIFFERENCE, FEW, small_batch, stirred
from ntm import NTM, Backend
from ntm.machine import Machine

ROUNDING = 300  # a difference may also be this many times the rounding of the reference path itself
MORE, MOST_ROWS = (24, 11), 1024  # of a larger batch: T and B; N


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
