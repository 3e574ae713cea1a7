"""The controller: an LSTM cell (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000)."""

import torch
from torch import Tensor, nn


class LSTMController(nn.Module):
    """One LSTM layer that sees the input, the last reads and its own last output.

    Args:
        input_size: width of the external input plus that of all reads, flattened.
        controller_size: number of cells, C.
    """

    def __init__(self, input_size: int, controller_size: int) -> None:
        super().__init__()
        self.controller_size = controller_size
        # One map for the four gates, in the order input, forget, cell, output.
        self.gates_map = nn.Linear(input_size + controller_size, 4 * controller_size)

    def forward(
        self, x: Tensor, hidden: Tensor, cell: Tensor, cell_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            x: external input and last reads, (B, input_size).
            hidden: h_{t-1}, (B, C).
            cell: c_{t-1}, (B, C).
            cell_mask: false where a cell is made to forget, (B, C); None keeps all.

        Returns:
            h_t and c_t, each (B, C).
        """
        gates = self.gates_map(torch.cat((x, hidden), dim=-1))
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget_gate) * cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
        if cell_mask is not None:
            cell = cell * cell_mask
        return torch.sigmoid(output_gate) * torch.tanh(cell), cell
