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


def tensors_of(state: NTMState | None) -> list[Tensor]:
    """A state's tensors, of which the controller's are known only where it is an `LSTMState`; none of None."""
    if state is None:
        return []
    return [*state[:3], *(state.controller if isinstance(state.controller, LSTMState) else ())]
