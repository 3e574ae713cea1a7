"""What the machine carries from step to step."""

from typing import Any, NamedTuple

from torch import Tensor

from ntm.controller import LSTMState


class NTMState(NamedTuple):
    """All that the machine carries from one step to the next."""

    memory: Tensor  # M_t (B, N, M)
    weighting: Tensor  # w_t (B, H, N)
    reads: Tensor  # r_t (B, R, M)
    controller: Any  # the controller's own: an `LSTMState`, or () of a feed-forward one


def state_shapes(state: NTMState) -> list[tuple[int, ...]]:
    """The shapes of a state's tensors; of those of the controller's state only where that is an `LSTMState`."""
    own = state.controller if isinstance(state.controller, LSTMState) else ()
    return [tuple(part.shape) for part in (*state[:3], *own)]
