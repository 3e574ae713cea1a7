"""The LSTM alone (Graves et al. 2014, Table 3): layers of cells, and no memory beside."""

import torch
from torch import Tensor, nn

from ntm.backend import Backend
from ntm.controller import LSTMState
from ntm.loss import cross_entropy
from ntm.machine import Machine, require_sizes
from ntm.shards import WHOLE, Part


class LSTMBaseline(Machine):
    """Layers of LSTM cells, one above the other, called as an `NTM` is; where they start is learned.

    Args:
        input_size, output_size: widths of the external input and output.
        hidden_size: cells of a layer, C.
        num_layers: layers, L.
        backend: AUTO or REFERENCE; it runs on PyTorch's own code.
    """

    first_names = "output_proj.weight", "output_proj.bias"

    def __init__(
        self, input_size: int, output_size: int, hidden_size: int, num_layers: int, backend: Backend = Backend.AUTO
    ) -> None:
        super().__init__(backend)
        require_sizes(input_size, output_size, hidden_size, num_layers)
        self.input_size = input_size
        self.layers = nn.LSTM(input_size, hidden_size, num_layers)
        self.output_proj = nn.Linear(hidden_size, output_size)
        self.initial_hidden = nn.Parameter(torch.zeros(num_layers, hidden_size))
        self.initial_cell = nn.Parameter(torch.zeros(num_layers, hidden_size))

    def initial_state(self, batch_size: int, memory_units: int | None = None) -> LSTMState:
        """Make the state before the first step, each part (L, B, C); `memory_units` is not looked at."""
        initial = self.initial_hidden, self.initial_cell
        return LSTMState(*(part.unsqueeze(1).expand(-1, batch_size, -1).contiguous() for part in initial))

    def forward(
        self, inputs: Tensor, state: LSTMState | None = None, memory_units: int | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Run over whole sequences.

        Args:
            inputs: (T, B, input_size).
            state: where to start; None for `initial_state`.
            memory_units: not looked at.

        Returns:
            Output logits (T, B, output_size) and the final state.

        Raises:
            BackendError: the fused path was asked for.
            ValueError: inputs are not (T, B, input_size), or have no step.
        """
        self.require_inputs(inputs)
        self.use_fused()  # an error where that is asked for
        state = self.initial_state(inputs.shape[1]) if state is None else state
        outputs, state = self.layers(inputs, tuple(state))
        return self.output_proj(outputs), LSTMState(*state)

    def forward_backward(
        self,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        memory: None = None,
        cell_mask: None = None,
        blur_cost: float = 0.0,
        part: Part = WHOLE,
    ) -> tuple[float, Tensor]:
        """Run over whole sequences and go back: adds to each parameter's `grad`, as `backward()` of the loss does.

        Args:
            inputs, targets, mask, part: as in `NTM.forward_backward`.
            memory, cell_mask, blur_cost: None, None, and not looked at: there is no memory, and no head.

        Returns:
            The loss in nats, and output logits (T, B, output_size) without a graph; of the part.

        Raises:
            RuntimeError: as in `Machine.require_flat`.
            ValueError: arguments do not fit together, there is a memory or a cell mask, or the batch cannot be split
                into so many parts.
        """
        if memory is not None or cell_mask is not None:
            raise ValueError("an LSTM alone has no memory and no cell dropout: leave memory and cell_mask away")
        self.require_batch(inputs, targets, mask, None, None)
        self.require_flat(self.packed_parameters().values())
        here = part.sequences(inputs.shape[1])
        logits, _ = self(inputs[:, here])
        loss = cross_entropy(logits, targets[:, here], mask[:, here], mask.sum())
        loss.backward()
        return loss.item(), logits.detach()
