"""The controllers: an LSTM and a feed-forward network, the two of the paper (Graves et al. 2014, section 3.4).

A controller has an `output_size`, an `initial_state(batch_size)`, and takes a step by `forward(x, state)`, which gives
its output and its new state. What a state holds only the controller knows: the machine hands it on as it is.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class LSTMState(NamedTuple):
    """What an LSTM carries from one step to the next."""

    hidden: Tensor  # h_t (B, C)
    cell: Tensor  # c_t (B, C)


class LSTMController(nn.Module):
    """One LSTM layer (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000).

    It sees the input, the last reads and its own last output; where it starts is learned.

    Args:
        input_size: width of the external input plus that of all reads, flattened.
        controller_size: number of cells, C.
    """

    def __init__(self, input_size: int, controller_size: int) -> None:
        super().__init__()
        self.output_size = controller_size
        # One map for the four gates, in the order input, forget, cell, output.
        self.gate_proj = nn.Linear(input_size + controller_size, 4 * controller_size)
        self.initial_hidden = nn.Parameter(torch.zeros(controller_size))
        self.initial_cell = nn.Parameter(torch.zeros(controller_size))

    def initial_state(self, batch_size: int) -> LSTMState:
        """The learned state before the first step, one for all sequences."""
        return LSTMState(self.initial_hidden.expand(batch_size, -1), self.initial_cell.expand(batch_size, -1))

    def forward(self, x: Tensor, state: LSTMState, cell_mask: Tensor | None = None) -> tuple[Tensor, LSTMState]:
        """Take one step.

        Args:
            x: external input and last reads, (B, input_size).
            state: h_{t-1} and c_{t-1}.
            cell_mask: false where a cell is made to forget, (B, C); None keeps all.

        Returns:
            The output, which is h_t (B, C), and the new state.

        Raises:
            ValueError: `cell_mask` has another shape.
        """
        gates = self.gate_proj(torch.cat((x, state.hidden), dim=-1))
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget_gate) * state.cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
        if cell_mask is not None:
            if cell_mask.shape != cell.shape:
                raise ValueError(f"cell_mask must be {tuple(cell.shape)} at a step, not {tuple(cell_mask.shape)}")
            cell = cell * cell_mask
        hidden = torch.sigmoid(output_gate) * torch.tanh(cell)
        return hidden, LSTMState(hidden, cell)


class FeedForwardController(nn.Module):
    """One hidden layer of tanh units: all that it knows of the past, it has just read from memory.

    Args:
        input_size: width of the external input plus that of all reads, flattened.
        controller_size: number of units, C.
    """

    def __init__(self, input_size: int, controller_size: int) -> None:
        super().__init__()
        self.output_size = controller_size
        self.hidden_proj = nn.Linear(input_size, controller_size)

    def initial_state(self, batch_size: int) -> tuple[()]:
        """It carries nothing."""
        return ()

    def forward(self, x: Tensor, state: tuple[()], cell_mask: Tensor | None = None) -> tuple[Tensor, tuple[()]]:
        """Take one step: the output (B, C), and the state, which is empty.

        Args:
            x: external input and last reads, (B, input_size).
            state: ().
            cell_mask: None.

        Raises:
            ValueError: there is a cell mask.
        """
        if cell_mask is not None:
            raise ValueError("a feed-forward controller has no cells that could forget: leave cell_mask away")
        return torch.tanh(self.hidden_proj(x)), state


CONTROLLERS = {"lstm": LSTMController, "feedforward": FeedForwardController}
