"""The Neural Turing Machine of Graves, Wayne and Danihelka 2014 (arXiv 1410.5401).

Glossary: the paper's symbol, the name in this code, its shape, its equation. B sequences in a batch, T steps, N rows
of memory (`memory_units`), M the width of a row (`memory_unit_size`), R read and W write heads, H = R + W, C cells of
the controller.

    M_t      memory              (B, N, M)   eq. 3-4     ntm/memory.py
    w_t      weighting           (B, H, N)   eq. 1, 9    ntm/addressing.py (read heads first, then write heads)
    r_t      reads               (B, R, M)   eq. 2       ntm/memory.py
    e_t      erase               (B, W, M)   eq. 3       ntm/memory.py
    a_t      add                 (B, W, M)   eq. 4       ntm/memory.py
    k_t      key                 (B, H, M)   eq. 5-6     ntm/addressing.py
    beta_t   key_strength        (B, H, 1)   eq. 5       ntm/addressing.py
    g_t      interpolation_gate  (B, H, 1)   eq. 7       ntm/addressing.py
    s_t      shift_weighting     (B, H, 3)   eq. 8       ntm/addressing.py (shifts -1, 0, +1)
    gamma_t  sharpening          (B, H, 1)   eq. 9       ntm/addressing.py (at least 1)
    h_t, c_t hidden, cell        (B, C)      LSTM        ntm/controller.py
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntm.backend import Backend, use_fused
from ntm.controller import LSTMController
from ntm.heads import Controls, Heads
from ntm.memory import initial_memory, read, write


class NTMState(NamedTuple):
    """All that the machine carries from one step to the next."""

    memory: Tensor  # M_t (B, N, M)
    weighting: Tensor  # w_t (B, H, N)
    reads: Tensor  # r_t (B, R, M)
    hidden: Tensor  # h_t (B, C)
    cell: Tensor  # c_t (B, C)


class Dropped(NamedTuple):
    """What dropout takes away in one unroll; None where it takes nothing."""

    cells: Tensor | None = None  # false where a controller cell forgets (T, B, C)
    blind: Tensor | None = None  # true where a sequence goes without content addressing (B,)

    def at(self, t: int) -> "Dropped":
        """What is dropped at step t: cells (B, C)."""
        return Dropped(None if self.cells is None else self.cells[t], self.blind)


NOTHING = Dropped()


class Costs(NamedTuple):
    """What is added to a loss in training, as means over steps, sequences and heads."""

    content: float = 0.0  # times g_t, followed or not: a head asks for content only where that pays
    blur: float = 0.0  # times 1 - sum_i w_t(i)^2: a head stands on one row rather than between many


FREE = Costs()


class Charge(torch.autograd.Function):
    """Hands logits on as they are; on the way back, gates and weightings get the gradients of `Costs` added to theirs.

    So whatever loss is made of the logits, its gradient is that of the loss with the costs. A loss that is scaled does
    not scale them.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, gates: Tensor, weightings: Tensor, costs: Costs) -> Tensor:
        """Return a view of `logits`. Gates are (T, B, H, 1), weightings (T, B, H, N)."""
        ctx.save_for_backward(weightings)
        ctx.shape, ctx.costs = gates.shape, costs
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, d_logits: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return a gradient for each argument of `forward`."""
        (weightings,), count = ctx.saved_tensors, ctx.shape.numel()
        d_gates = d_logits.new_full(ctx.shape, ctx.costs.content / count)
        return d_logits, d_gates, -2 * ctx.costs.blur / count * weightings, None


def chances(probability: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw true with a probability, to 1 in 65,536, else false.

    Sixteen random bits a chance: a sixth of the time of `Tensor.bernoulli_`, which is noticed beside the fast path.
    """
    count, limit = math.prod(shape), round(probability * 2**16) - 2**15
    if abs(limit) == 2**15:  # never, or always; and a limit that is no int16
        return torch.full(shape, limit > 0, device=device)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    if device.type == "cpu":  # NumPy compares such numbers faster
        return torch.from_numpy((words.numpy().view(np.int16)[:count] < limit).reshape(shape))
    return (words.view(torch.int16)[:count] < limit).view(shape)


BY_COLUMNS = 0, 2, 4  # of `NTM.in_order`, the maps' weights


def in_a_row(parameters: list[Tensor]) -> Tensor:
    """Copy parameters, which are `NTM.in_order`, into one tensor.

    The weight of a map goes by columns, its bias after it: as the fused path multiplies them.
    """
    return torch.cat([(p.t() if i in BY_COLUMNS else p).detach().flatten() for i, p in enumerate(parameters)])


def out_of_a_row(flat: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Views of a tensor that is laid out in that way, in the shapes of the parameters."""
    parts = flat.split([p.numel() for p in parameters])
    pairs = enumerate(zip(parts, parameters, strict=True))
    return [part.view(p.shape[::-1]).t() if i in BY_COLUMNS else part.view(p.shape) for i, (part, p) in pairs]


class NTM(nn.Module):
    """A Neural Turing Machine with an LSTM controller.

    No parameter depends on the number of memory rows: any call may use its own `memory_units`.

    Args:
        input_size, output_size: widths of the external input and output.
        controller_size: LSTM cells, C.
        memory_units: rows of memory used when a call names no other number, N.
        memory_unit_size: width of a row, M.
        num_heads: this many read heads and as many write heads.
        cell_dropout: in training, the probability that a cell of the controller forgets, drawn anew for each cell at
            each step. A controller that cannot trust its own memory learns to use the external one. Off in `eval()`.
        content_dropout: in training, the probability that a sequence goes without content addressing: its gates are
            held at 0. A machine that may lose sight at any time learns to find its way by moving. Off in `eval()`.
        costs: in training, what open gates and blurred weightings add to the gradient of the loss. Off in `eval()`.
        backend: which code runs `forward`; the numbers are the same.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        controller_size: int,
        memory_units: int,
        memory_unit_size: int,
        num_heads: int = 1,
        cell_dropout: float = 0.0,
        content_dropout: float = 0.0,
        costs: Costs = FREE,
        backend: Backend = Backend.AUTO,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.backend = backend
        self.flat: Tensor | None = None  # all parameters as one, after `flatten_parameters`
        self.memory_units = memory_units
        self.cell_dropout = cell_dropout
        self.content_dropout = content_dropout
        self.costs = costs
        reads_size = num_heads * memory_unit_size
        self.controller = LSTMController(input_size + reads_size, controller_size)
        self.heads = Heads(controller_size, memory_unit_size, num_read=num_heads, num_write=num_heads)
        self.output_map = nn.Linear(controller_size + reads_size, output_size)
        self.initial_hidden = nn.Parameter(torch.zeros(controller_size))
        self.initial_cell = nn.Parameter(torch.zeros(controller_size))
        self.initial_reads = nn.Parameter(torch.zeros(num_heads, memory_unit_size))

    def in_order(self) -> list[nn.Parameter]:
        """List all parameters, each map's weight before its bias, in the order of `flatten_parameters`."""
        maps = self.controller.gates_map, self.heads.controls_map, self.output_map
        map_parameters = [parameter for linear in maps for parameter in (linear.weight, linear.bias)]
        return [*map_parameters, self.initial_reads, self.initial_hidden, self.initial_cell]

    def flatten_parameters(self) -> Tensor:
        """Lay all parameters out in one tensor, `flat`, and their gradients in another; they become views of these.

        The fused path then need not copy them; clipping and optimizers have one tensor to go through, not nine that
        take longer to start on.

        Returns:
            All parameters as one, with `grad`, which is 0. Zero that in place, lest the parameters get others. What
            gives them other tensors, as `to`, `deepcopy` or `load_state_dict(assign=True)`, wants this called again.
        """
        parameters = self.in_order()
        self.flat = in_a_row(parameters).requires_grad_()
        self.flat.grad = torch.zeros_like(self.flat)
        values, gradients = (out_of_a_row(flat, parameters) for flat in (self.flat.detach(), self.flat.grad))
        for parameter, value, gradient in zip(parameters, values, gradients, strict=True):
            parameter.data, parameter.grad = value, gradient
        return self.flat

    def initial_state(self, batch_size: int, memory_units: int | None = None) -> NTMState:
        """Make the state before the first step.

        The controller's state and the reads are learned, the memory is a small constant, and every head stands on row
        0: from uniform weightings over equal rows nothing would ever tell one row from another.

        Args:
            batch_size: B.
            memory_units: N; None for the configured number.
        """
        rows = self.memory_units if memory_units is None else memory_units
        heads, width = self.heads.num_read + self.heads.num_write, self.heads.memory_unit_size
        weighting = self.initial_hidden.new_zeros(batch_size, heads, rows)
        weighting[..., 0] = 1
        return NTMState(
            memory=initial_memory(batch_size, rows, width, like=self.initial_hidden),
            weighting=weighting,
            reads=self.initial_reads.expand(batch_size, -1, -1),
            hidden=self.initial_hidden.expand(batch_size, -1),
            cell=self.initial_cell.expand(batch_size, -1),
        )

    def step(self, x: Tensor, state: NTMState, dropped: Dropped = NOTHING) -> tuple[Tensor, NTMState]:
        """Take one step.

        Args:
            x: external input, (B, input_size).
            state: the state that the last step left.
            dropped: what dropout takes away at this step.

        Returns:
            Output logits (B, output_size) and the new state.
        """
        logits, state, _ = self.explained_step(x, state, dropped)
        return logits, state

    def explained_step(
        self, x: Tensor, state: NTMState, dropped: Dropped = NOTHING
    ) -> tuple[Tensor, NTMState, Controls]:
        """Take one step as `step` does, and give the heads' controls as well, for pictures."""
        seen = torch.cat((x, state.reads.flatten(1)), dim=-1)
        hidden, cell = self.controller(seen, state.hidden, state.cell, dropped.cells)
        reading, writing, controls = self.heads(hidden, state.memory, state.weighting, dropped.blind)
        reads = read(state.memory, reading)
        memory = write(state.memory, writing, controls.erase, controls.add)
        logits = self.output_map(torch.cat((reads.flatten(1), hidden), dim=-1))
        weighting = torch.cat((reading, writing), dim=1)
        return logits, NTMState(memory, weighting, reads, hidden, cell), controls

    def draw_dropped(self, steps: int, batch_size: int) -> Dropped:
        """Draw from torch's default generator what dropout takes away from one unroll."""
        if not self.training:
            return NOTHING
        device, cells = self.initial_hidden.device, (steps, batch_size, len(self.initial_cell))
        kept = chances(1 - self.cell_dropout, cells, device) if self.cell_dropout else None
        blind = chances(self.content_dropout, (batch_size,), device) if self.content_dropout else None
        return Dropped(kept, blind)

    def forward(
        self, inputs: Tensor, state: NTMState | None = None, memory_units: int | None = None
    ) -> tuple[Tensor, NTMState]:
        """Run over whole sequences.

        Args:
            inputs: (T, B, input_size).
            state: where to start; None for `initial_state`.
            memory_units: rows of a fresh memory; None for the configured number.

        Returns:
            Output logits (T, B, output_size) and the final state.

        Raises:
            BackendError: the fused path was asked for and cannot be had.
        """
        steps, batch_size, _ = inputs.shape
        dropped, costs = self.draw_dropped(steps, batch_size), self.costs if self.training else FREE
        if use_fused(self.backend, self.initial_hidden):
            from ntm import fused  # here, so that the readable path does without Numba

            state = self.initial_state(1, memory_units) if state is None else state  # one for all sequences
            return fused.unroll(self, inputs, state, dropped, costs)
        state = self.initial_state(batch_size, memory_units) if state is None else state
        return self.unroll(inputs, state, dropped, costs)

    def forward_backward(
        self, inputs: Tensor, targets: Tensor, mask: Tensor, memory_units: int | None = None
    ) -> tuple[float, Tensor]:
        """Run over whole sequences and go back: adds to each parameter's `grad`, as `backward()` of the loss does.

        The loss is the mean binary cross-entropy of the bits of the steps that count. On the fused path a few sequences
        at a time go forward and back, while what they leave behind is in cache: faster than `forward` and `backward()`.

        Args:
            inputs: (T, B, input_size).
            targets: bits, (T, B, output_size).
            mask: (T, B), 1 at the steps that count, else 0.
            memory_units: rows of memory; None for the configured number.

        Returns:
            The loss in nats, and output logits (T, B, output_size) without a graph.

        Raises:
            BackendError: the fused path was asked for and cannot be had.
        """
        steps, batch_size, _ = inputs.shape
        dropped, costs = self.draw_dropped(steps, batch_size), self.costs if self.training else FREE
        if use_fused(self.backend, self.initial_hidden):
            from ntm import fused

            return fused.forward_backward(self, inputs, targets, mask, memory_units, dropped, costs)
        logits, _ = self.unroll(inputs, self.initial_state(batch_size, memory_units), dropped, costs)
        share = (mask / (mask.sum() * targets.shape[2])).unsqueeze(-1)
        loss = F.binary_cross_entropy_with_logits(logits, targets, share, reduction="sum")
        loss.backward()
        return loss.item(), logits.detach()

    def unroll(
        self, inputs: Tensor, state: NTMState, dropped: Dropped = NOTHING, costs: Costs = FREE
    ) -> tuple[Tensor, NTMState]:
        """Apply `step` T times: the readable path, on any device and in any floating-point type."""
        outputs, gates, weightings = [], [], []
        for t, x in enumerate(inputs):
            logits, state, controls = self.explained_step(x, state, dropped.at(t))
            outputs.append(logits)
            if costs != FREE:
                gates.append(controls.interpolation_gate)
                weightings.append(state.weighting)
        if costs == FREE:
            return torch.stack(outputs), state
        return Charge.apply(torch.stack(outputs), torch.stack(gates), torch.stack(weightings), costs), state
