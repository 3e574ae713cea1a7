"""What the machine carries from step to step."""

from typing import Any, NamedTuple

from torch import Tensor


class NTMState(NamedTuple):
    """All that the machine carries from one step to the next."""

    memory: Tensor  # M_t (B, N, M)
    weighting: Tensor  # w_t (B, H, N)
    reads: Tensor  # r_t (B, R, M)
    controller: Any  # the controller's own: an `LSTMState`, or () of a feed-forward one
