"""What the machine carries from step to step, and how parameters are packed into one tensor."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class NTMState(NamedTuple):
    """All that the machine carries from one step to the next."""

    memory: Tensor  # M_t (B, N, M)
    weighting: Tensor  # w_t (B, H, N)
    reads: Tensor  # r_t (B, R, M)
    controller: Any  # the controller's own: an `LSTMState`, or () of a feed-forward one


def packed_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List a model's parameters as `pack_parameters` wants them: each map's weight and bias, then all others."""
    maps = [p for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters(recurse=False)]
    return maps + [p for p in model.parameters() if not any(p is other for other in maps)]


TRANSPOSED = 0, 2, 4  # of `packed_parameters` of an NTM: the weights of its three maps


def pack_parameters(parameters: list[Tensor]) -> Tensor:
    """Copy parameters, which are `packed_parameters`, into one tensor.

    The weight of a map goes by columns, its bias after it: as the fused path multiplies them.
    """
    return torch.cat([(p.t() if _transposed(i, p) else p).detach().flatten() for i, p in enumerate(parameters)])


def unpack_parameters(flat: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Views of a tensor that is laid out in that way, in the shapes of the parameters."""
    parts = flat.split([p.numel() for p in parameters])
    pairs = enumerate(zip(parts, parameters, strict=True))
    return [part.view(p.shape[::-1]).t() if _transposed(i, p) else part.view(p.shape) for i, (part, p) in pairs]


def _transposed(i: int, parameter: Tensor) -> bool:
    return i in TRANSPOSED and parameter.dim() == 2


class FlatParameters(nn.Module):
    """A model whose parameters can be views of one tensor: clipping and optimizers then have one to go through."""

    flat_parameters: Tensor | None = None  # all parameters as one, after `flatten_parameters`

    def flatten_parameters(self) -> Tensor:
        """Pack all parameters into one tensor, `flat_parameters`, and their gradients into another, as views of these.

        Returns:
            All parameters as one, with `grad`, which is 0. Zero that in place, lest the parameters get others. What
            gives them other tensors, as `to`, `deepcopy` or `load_state_dict(assign=True)`, wants this called again.
        """
        parameters = packed_parameters(self)
        self.flat_parameters = flat = pack_parameters(parameters).requires_grad_()
        flat.grad = torch.zeros_like(flat)
        values, gradients = (unpack_parameters(packed, parameters) for packed in (flat.detach(), flat.grad))
        for parameter, value, gradient in zip(parameters, values, gradients, strict=True):
            parameter.data, parameter.grad = value, gradient
        return flat
