"""AdamW in one compiled pass over flat weights: PyTorch's has an overhead comparable to a fused step."""

from typing import Self

import numpy as np
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ntm.backend import is_torchs
from ntm.fused.jit import jit_entry
from ntm.fused.mathlib import ONE


@jit_entry
def adamw_step(weights, gradient, mean, square, decay_factor, rate, beta1, beta2, eps, inverse_correction2):
    """Loshchilov & Hutter 2019, algorithm 2. Weight decay leaves `decay_factor` of a weight.

    `rate` is divided by the first bias correction already, and `inverse_correction2` is 1 over the second.
    """
    kind = weights.dtype.type
    decay_factor, rate, beta1, beta2 = kind(decay_factor), kind(rate), kind(beta1), kind(beta2)
    eps, inverse_correction2 = kind(eps), kind(inverse_correction2)
    for i in range(weights.shape[0]):
        mean[i] += (ONE - beta1) * (gradient[i] - mean[i])
        square[i] = beta2 * square[i] + (ONE - beta2) * gradient[i] * gradient[i]
        weights[i] = decay_factor * weights[i] - rate * mean[i] / (np.sqrt(square[i] * inverse_correction2) + eps)


def is_other_adamw(group: dict) -> bool:
    """Whether a group has options that `adamw_step` has not; they may be set after it was made."""
    other = group["maximize"] or group["amsgrad"] or group["capturable"] or group["differentiable"]
    return other or not group["decoupled_weight_decay"] or isinstance(group["lr"], torch.Tensor)


class FusedAdamW(torch.optim.AdamW):
    """PyTorch's AdamW, with the same state, for flat weights on the CPU.

    What `flatten_parameters` gives always has a gradient, and other weights need one: none is passed over.

    Args:
        params, lr, betas, eps, weight_decay: as there; it has no other options.

    Raises:
        ValueError: a parameter is not flat, or not on the CPU, or of another type than float32 and float64.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    @classmethod
    def in_place_of(cls, optimizer: torch.optim.Optimizer) -> Self | None:
        """The same as one of PyTorch's, before its first step; None where that is no AdamW, or more than one.

        More is: other options or groups, hooks, a state, a step of its own, or one that was replaced.
        """
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        if type(optimizer) is not torch.optim.AdamW or len(optimizer.param_groups) > 1:
            return None
        if hooks or optimizer.state or "step" in vars(optimizer) or not is_torchs(torch.optim.AdamW.step):
            return None
        (group,) = optimizer.param_groups
        plain = torch.optim.AdamW([torch.zeros(())], fused=True).param_groups[0]
        numbers = {name: group[name] for name in ("params", "lr", "betas", "eps", "weight_decay")}
        if any(group[name] != plain[name] for name in plain.keys() - numbers.keys()):
            return None
        return cls(**numbers)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters, as PyTorch's does; raises as the class does."""
        super().add_param_group(param_group)
        for weights in self.param_groups[-1]["params"]:
            flat = weights.dim() == 1 and weights.is_contiguous() and weights.device.type == "cpu"
            if not flat or weights.dtype not in (torch.float32, torch.float64):
                raise ValueError("FusedAdamW takes what flatten_parameters gives: flat, of the CPU, float32 or float64")

    def step(self) -> None:
        """Take a step, and call the hooks on it, where there are any; there is no closure that it could call."""
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if any(map(is_other_adamw, self.param_groups)):
            super().step()
        elif hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            torch.optim.Optimizer.profile_hook_step(FusedAdamW._step)(self)
        else:
            self._step()

    def _step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weights in group["params"]:
                state = self.state[weights]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
                count, mean, square = (state[key].numpy() for key in ("step", "exp_avg", "exp_avg_sq"))
                count += 1
                steps, decay_factor = float(count), 1 - group["lr"] * group["weight_decay"]
                rate, inverse_correction2 = group["lr"] / (1 - beta1**steps), 1 / (1 - beta2**steps)
                arrays = weights.detach().numpy(), weights.grad.numpy(), mean, square
                adamw_step(*arrays, decay_factor, rate, beta1, beta2, group["eps"], inverse_correction2)

    step.hooked = True  # so that PyTorch does not wrap it for its profiler, which takes as long as the step
