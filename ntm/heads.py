"""The heads: from the controller's output to named controls, and from those to weightings."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntm.addressing import SHIFTS, address


class Controls(NamedTuple):
    """What the controller tells the heads at one step. H heads: the R read heads first, then the W write heads."""

    key: Tensor  # k_t      (B, H, M)  what to look for                       all heads
    key_strength: Tensor  # beta_t   (B, H, 1)  how firmly, >= 0                       all heads
    interpolation_gate: Tensor  # g_t      (B, H, 1)  1: by content, 0: from the last place  all heads
    shift_weighting: Tensor  # s_t      (B, H, S)  over `SHIFTS`: -1, 0, +1              all heads
    sharpening: Tensor  # gamma_t  (B, H, 1)  >= 1                                   all heads
    erase: Tensor  # e_t      (B, W, M)  in (0, 1)                              write heads
    add: Tensor  # a_t      (B, W, M)                                         write heads


def control_sizes(num_read: int, num_write: int, width: int, shifts: int = len(SHIFTS)) -> tuple[int, ...]:
    """How many numbers each of the named controls has, all heads together, in the order of `Controls`."""
    heads = num_read + num_write
    return heads * width, heads, heads, heads * shifts, heads, num_write * width, num_write * width


class Focus(NamedTuple):
    """The heads' weightings at one step, after and before sharpening, and their controls; read heads first."""

    weighting: Tensor  # w_t   (B, H, N)
    shifted: Tensor  # w~_t  (B, H, N)  before eq. 9
    controls: Controls


class Heads(nn.Module):
    """All read and write heads; one linear map makes the controls of every head at once.

    Args:
        controller_size: width of the controller's output, C.
        memory_unit_size: width of a memory row, M.
        num_read, num_write: how many heads of each kind, R and W.
    """

    def __init__(self, controller_size: int, memory_unit_size: int, num_read: int, num_write: int) -> None:
        super().__init__()
        self.memory_unit_size = memory_unit_size
        self.num_read = num_read
        self.num_write = num_write
        self.sizes = control_sizes(num_read, num_write, memory_unit_size)
        self.control_proj = nn.Linear(controller_size, sum(self.sizes))

    @torch.no_grad()
    def bias_gates(self, bias: float) -> None:
        """Add to the bias of the interpolation gates (eq. 7): of one below 0, heads begin by location."""
        Controls(*self.control_proj.bias.split(self.sizes)).interpolation_gate.add_(bias)

    def controls(self, hidden: Tensor) -> Controls:
        """Turn the controller's output h_t (B, C) into controls, each in the range that its equation asks for."""
        parts = self.control_proj(hidden).split(self.sizes, dim=-1)
        heads = self.num_read + self.num_write
        key, key_strength, gate, shift_weighting, sharpening = (p.unflatten(-1, (heads, -1)) for p in parts[:5])
        erase, add = (p.unflatten(-1, (self.num_write, -1)) for p in parts[5:])
        return Controls(
            key=key,
            key_strength=F.softplus(key_strength),
            interpolation_gate=torch.sigmoid(gate),
            shift_weighting=torch.softmax(shift_weighting, dim=-1),
            sharpening=1 + F.softplus(sharpening),
            erase=torch.sigmoid(erase),
            add=add,
        )

    def forward(self, hidden: Tensor, memory: Tensor, previous: Tensor) -> Focus:
        """Address the memory with every head.

        Args:
            hidden: h_t, (B, C).
            memory: M_{t-1}, (B, N, M).
            previous: w_{t-1} of all heads, (B, H, N).

        Returns:
            The weightings and controls of all heads.
        """
        controls = self.controls(hidden)
        return Focus(*address(memory, previous, *controls[:5]), controls)
