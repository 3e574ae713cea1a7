"""Adam in one compiled pass over the weights: what PyTorch's takes to start is noticed beside the fast path."""

import numpy as np
import torch

from ntm.fused import ONE, compiled


@compiled
def adamw(weights, gradient, mean, square, kept, rate, beta1, beta2, eps, unbias):
    """Loshchilov & Hutter 2019, algorithm 2. Weight decay leaves `kept`; `unbias` makes up for a start at 0."""
    kind = weights.dtype.type
    kept, rate, beta1, beta2, eps, unbias = kind(kept), kind(rate), kind(beta1), kind(beta2), kind(eps), kind(unbias)
    for i in range(weights.shape[0]):
        mean[i] += (ONE - beta1) * (gradient[i] - mean[i])
        square[i] = beta2 * square[i] + (ONE - beta2) * gradient[i] * gradient[i]
        weights[i] = kept * weights[i] - rate * mean[i] / (np.sqrt(square[i] * unbias) + eps)


class CompiledAdamW(torch.optim.AdamW):
    """PyTorch's AdamW, with the same state, for flat weights on the CPU."""

    def step(self) -> None:
        """Take a step."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weights in group["params"]:
                state = self.state[weights]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
                count, mean, square = (state[key].numpy() for key in ("step", "exp_avg", "exp_avg_sq"))
                count += 1
                steps, kept = float(count), 1 - group["lr"] * group["weight_decay"]
                rate, unbias = group["lr"] / (1 - beta1**steps), 1 / (1 - beta2**steps)
                arrays = weights.detach().numpy(), weights.grad.numpy(), mean, square
                adamw(*arrays, kept, rate, beta1, beta2, group["eps"], unbias)

    step.hooked = True  # so that PyTorch does not wrap it for its profiler, which takes as long as the step
