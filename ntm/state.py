"""What both the readable model and the fast path know: the state, and how parameters are packed into one tensor."""

from typing import NamedTuple

import torch
from torch import Tensor


class NTMState(NamedTuple):
    """All that the machine carries from one step to the next."""

    memory: Tensor  # M_t (B, N, M)
    weighting: Tensor  # w_t (B, H, N)
    reads: Tensor  # r_t (B, R, M)
    hidden: Tensor  # h_t (B, C)
    cell: Tensor  # c_t (B, C)


TRANSPOSED = 0, 2, 4  # of `NTM.packed_parameters`, the maps' weights


def pack_parameters(parameters: list[Tensor]) -> Tensor:
    """Copy parameters, which are `NTM.packed_parameters`, into one tensor.

    The weight of a map goes by columns, its bias after it: as the fused path multiplies them.
    """
    return torch.cat([(p.t() if i in TRANSPOSED else p).detach().flatten() for i, p in enumerate(parameters)])


def unpack_parameters(flat: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Views of a tensor that is laid out in that way, in the shapes of the parameters."""
    parts = flat.split([p.numel() for p in parameters])
    pairs = enumerate(zip(parts, parameters, strict=True))
    return [part.view(p.shape[::-1]).t() if i in TRANSPOSED else part.view(p.shape) for i, (part, p) in pairs]
