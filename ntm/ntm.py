"""The Neural Turing Machine of Graves, Wayne and Danihelka 2014 (arXiv 1410.5401).

Glossary: the paper's symbol, the name in this code, its shape, its equation. B sequences in a batch, T steps, N rows
of memory (`memory_units`), M the width of a row (`memory_unit_size`), R read and W write heads, H = R + W, C cells of
the controller.

    M_t      memory              (B, N, M)   eq. 3-4     ntm/memory.py
    K        similarity          (B, H, N)   eq. 6       ntm/addressing.py
    w^c_t    content             (B, H, N)   eq. 5       ntm/addressing.py
    w^g_t    gated               (B, H, N)   eq. 7       ntm/addressing.py
    w~_t     shifted             (B, H, N)   eq. 8       ntm/addressing.py (the weighting before it is sharpened)
    w_t      weighting           (B, H, N)   eq. 1, 9    ntm/addressing.py (read heads first, then write heads)
    r_t      reads               (B, R, M)   eq. 2       ntm/memory.py
    e_t      erase               (B, W, M)   eq. 3       ntm/memory.py
    a_t      add                 (B, W, M)   eq. 4       ntm/memory.py
    k_t      key                 (B, H, M)   eq. 5-6     ntm/addressing.py
    beta_t   key_strength        (B, H, 1)   eq. 5       ntm/addressing.py
    g_t      interpolation_gate  (B, H, 1)   eq. 7       ntm/addressing.py
    s_t      shift_weighting     (B, H, S)   eq. 8       ntm/addressing.py (S = 3 shifts: -1, 0, +1)
    gamma_t  sharpening          (B, H, 1)   eq. 9       ntm/addressing.py (at least 1)
    h_t      controller output   (B, C)      3.4         ntm/controller.py (and c_t, an LSTM's cell)
"""

import sys

import torch
from torch import Tensor, nn

from ntm.addressing import SHIFTS, blur, initial_weighting
from ntm.backend import (
    Backend,
    Contents,
    changed_parameter,
    changed_part,
    has_hooks,
    import_trouble,
    mode_trouble,
    stock_shapes,
)
from ntm.controller import CONTROLLERS, FeedForwardController, LSTMController
from ntm.heads import Focus, Heads
from ntm.loss import cross_entropy
from ntm.machine import TRANSPOSED, Machine, require_sizes
from ntm.memory import initial_memory, read, write
from ntm.shards import WHOLE, Part
from ntm.state import NTMState, tensors_of
from ntm.stock import edited

OWN_FORWARD = "forward_backward does not call the model, and this one has its own `forward` or `__call__`, or hooks"


class NTM(Machine):
    """A Neural Turing Machine.

    No parameter depends on the number of memory rows: any call may use its own `memory_units`.

    Args:
        input_size, output_size: widths of the external input and output.
        controller_size: cells or units of the controller, C.
        memory_units: rows of memory used when a call names no other number, N.
        memory_unit_size: width of a row, M.
        num_heads: this many read heads and as many write heads.
        controller: one of `CONTROLLERS`.
        backend: which path computes forward and backward; they agree to within rounding.
    """

    first_names = (  # in the order that the fused path knows; hidden_proj is a feed-forward controller's
        *("controller.gate_proj.weight", "controller.gate_proj.bias"),
        *("controller.hidden_proj.weight", "controller.hidden_proj.bias"),
        *("heads.control_proj.weight", "heads.control_proj.bias", "output_proj.weight", "output_proj.bias"),
        *("initial_reads", "controller.initial_hidden", "controller.initial_cell"),
    )
    transposed = TRANSPOSED

    def __init__(
        self,
        input_size: int,
        output_size: int,
        controller_size: int,
        memory_units: int,
        memory_unit_size: int,
        num_heads: int = 1,
        controller: str = "lstm",
        backend: Backend = Backend.AUTO,
    ) -> None:
        super().__init__(backend)
        if controller not in CONTROLLERS:
            raise ValueError(f"controller is {controller!r}; allowed are {', '.join(CONTROLLERS)}")
        require_sizes(input_size, output_size, controller_size, memory_units, memory_unit_size, num_heads)
        self.input_size = input_size
        self.memory_units = memory_units
        reads_size = num_heads * memory_unit_size
        self.controller = CONTROLLERS[controller](input_size + reads_size, controller_size)
        if not hasattr(self.controller, "output_size"):
            raise ValueError(f"the controller {controller!r} has no output_size, the width of its output")
        self.heads = Heads(self.controller.output_size, memory_unit_size, num_read=num_heads, num_write=num_heads)
        self.output_proj = nn.Linear(self.controller.output_size + reads_size, output_size)
        self.initial_reads = nn.Parameter(torch.zeros(num_heads, memory_unit_size))

    def blank_memory(self, batch_size: int, memory_units: int | None = None) -> Tensor:
        """Make M_0, (B, N, M), of so many rows, or of the configured number; a ValueError where there are none."""
        rows = self.memory_units if memory_units is None else memory_units
        if rows < 1:
            raise ValueError(f"memory_units is {rows}; a memory has at least one row")
        return initial_memory(batch_size, rows, self.heads.memory_unit_size, like=self.initial_reads)

    def initial_state(self, batch_size: int, memory_units: int | None = None) -> NTMState:
        """Make the state before the first step.

        The controller's state and the reads are learned; the memory is a small constant; every head stands on row 0.
        Parts of it may be views of parameters: change nothing in place.

        Args:
            batch_size: B.
            memory_units: N, at least 1; None for the configured number.

        Raises:
            ValueError: there are no rows.
        """
        memory, heads = self.blank_memory(batch_size, memory_units), self.heads.num_read + self.heads.num_write
        return NTMState(
            memory=memory,
            weighting=initial_weighting(batch_size, heads, memory.shape[1], like=self.initial_reads),
            reads=self.initial_reads.expand(batch_size, -1, -1),
            controller=self.controller.initial_state(batch_size),
        )

    def step(self, x: Tensor, state: NTMState, cell_mask: Tensor | None = None) -> tuple[Tensor, NTMState]:
        """Take one step.

        Args:
            x: external input, (B, input_size).
            state: the state that the last step left.
            cell_mask: false where a cell of the controller is made to forget, (B, C); None keeps all.

        Returns:
            Output logits (B, output_size) and the new state.
        """
        logits, state, _ = self.step_with_focus(x, state, cell_mask)  # that is the one to override
        return logits, state

    def step_with_focus(
        self, x: Tensor, state: NTMState, cell_mask: Tensor | None = None
    ) -> tuple[Tensor, NTMState, Focus]:
        """Take one step as `step` does; returns the heads' `Focus` as well."""
        x_and_reads = torch.cat((x, state.reads.flatten(1)), dim=-1)
        maybe_mask = () if cell_mask is None else (cell_mask,)  # a custom controller need not take one
        output, controller_state = self.controller(x_and_reads, state.controller, *maybe_mask)
        focus = self.heads(output, state.memory, state.weighting)
        reading, writing = focus.weighting.split((self.heads.num_read, self.heads.num_write), dim=1)
        reads = read(state.memory, reading)
        memory = write(state.memory, writing, focus.controls.erase, focus.controls.add)
        logits = self.output_proj(torch.cat((reads.flatten(1), output), dim=-1))
        return logits, NTMState(memory, focus.weighting, reads, controller_state), focus

    def forward(
        self,
        inputs: Tensor,
        state: NTMState | None = None,
        memory_units: int | None = None,
        cell_mask: Tensor | None = None,
    ) -> tuple[Tensor, NTMState]:
        """Run over whole sequences.

        Args:
            inputs: (T, B, input_size).
            state: where to start; None for `initial_state`.
            memory_units: rows of a blank memory; None for the configured number.
            cell_mask: false where a cell of the controller is made to forget, (T, B, C); None keeps all.

        Returns:
            Output logits (T, B, output_size) and the final state.

        Raises:
            BackendError: the fused path was asked for and cannot be had.
            TypeError: on the fused path, the types of inputs, state and weights differ, or `cell_mask` is not bool.
            ValueError: inputs are not (T, B, input_size), or state or `cell_mask` do not fit them; or there are both a
                state and a number of rows, and they do not agree; or the state has no rows.
        """
        self.require_inputs(inputs, cell_mask)
        if state is not None and memory_units not in (None, state.memory.shape[1]):
            raise ValueError(f"memory_units is {memory_units}, and the state has {state.memory.shape[1]} rows")
        if state is not None and not state.memory.shape[1]:
            raise ValueError("the state has no rows; a memory has at least one row")
        parameters, batch = self.packed_parameters(), inputs.shape[1]
        takes_fused = self.use_fused(inputs, *tensors_of(state), cell_mask, parameters=parameters)
        rows = memory_units if state is None else state.memory.shape[1]
        if takes_fused:
            from ntm import fused  # here, so that the reference path does without Numba

            if state is None and not torch.is_grad_enabled():
                return fused.unroll(parameters, self.flat_parameters, inputs, self.blank_memory(1, rows), cell_mask)
        one_for_all = takes_fused and state is None  # the fused path takes one initial state for all sequences
        own = self.initial_state(1 if one_for_all else batch, rows)
        if state is not None:
            shapes, wanted = ([tuple(part.shape) for part in tensors_of(each)] for each in (state, own))
            if shapes != wanted:
                raise ValueError(f"state does not fit: its shapes are {shapes}, and here {wanted}")
        state = own if state is None else state
        if takes_fused:
            return fused.unroll(parameters, self.flat_parameters, inputs, state, cell_mask)
        return self.unroll(inputs, state, cell_mask)

    def forward_backward(
        self,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        memory: Tensor | None = None,
        cell_mask: Tensor | None = None,
        blur_cost: float = 0.0,
        part: Part = WHOLE,
    ) -> tuple[float, Tensor]:
        """Run over whole sequences and go back: adds to each parameter's `grad`, as `backward()` of the loss does.

        The loss is the mean binary cross-entropy of the bits of the steps that count, and `blur_cost` times the mean
        blur of all heads at all steps. The fused path takes a few sequences at a time there and back, while in cache.

        Args:
            inputs: (T, B, input_size).
            targets: bits, (T, B, output_size).
            mask: (T, B), 1 at the steps that count, else 0.
            memory: M_0, (B, N, M), or (1, N, M) for all sequences; None for a blank one of the configured size.
            cell_mask: false where a cell of the controller is made to forget, (T, B, C); None keeps all.
            blur_cost: what the mean blur is multiplied by; `ntm.addressing.blur` says what blur is.
            part: which part of the batch to compute. The losses of all parts add up to that of the batch, and so do
                their gradients; on the fused path to the bit, if they are added by `ntm.shards.add_in_pairs`.

        Returns:
            The loss in nats, or the part's share of it, and output logits (T, B, output_size) without a graph, of the
            part's sequences.

        Raises:
            BackendError: the fused path was asked for and cannot be had.
            RuntimeError: gradients are switched off; what `require_flat` raises; or, on the fused path, inputs or
                memory want a gradient.
            TypeError: on the fused path, the types of arguments and weights differ, or `cell_mask` is not bool.
            ValueError: arguments do not fit together; the batch has no such part; there is a `blur_cost`, and the model
                overrides `step`; or it overrides `forward`, or has hooks.
        """
        self.require_batch(inputs, targets, mask, memory, cell_mask)
        parameters, flat = self.packed_parameters(), self.flat_parameters
        self.require_flat(parameters.values())
        if self.use_fused(inputs, targets, mask, memory, cell_mask, parameters=parameters):
            from ntm import fused

            memory = self.blank_memory(1) if memory is None else memory
            return fused.forward_backward(parameters, flat, inputs, targets, mask, memory, cell_mask, blur_cost, part)
        if self.own_forward():
            raise ValueError(f"{OWN_FORWARD}: override `step_with_focus`, or take `backward()` of a loss")
        here = part.sequences(batch := inputs.shape[1])
        state = self.initial_state(here.stop - here.start, None if memory is None else memory.shape[1])
        if memory is not None and memory.shape[2] != state.memory.shape[2]:
            raise ValueError(f"memory of shape {tuple(memory.shape)}: its rows are {state.memory.shape[2]} wide here")
        if memory is not None:
            state = state._replace(memory=memory if len(memory) == 1 else memory[here])
        shifted, cell_mask = [] if blur_cost else None, None if cell_mask is None else cell_mask[:, here]
        logits, _ = self.unroll(inputs[:, here], state, cell_mask, shifted)
        loss = cross_entropy(logits, targets[:, here], mask[:, here], mask.sum())
        if blur_cost:
            loss = loss + blur_cost * blur(torch.stack(shifted)).mean() * logits.shape[1] / batch
        loss.backward()
        return loss.item(), logits.detach()

    def overrides(self, *names: str) -> bool:
        """Whether one of these methods is the model's own, and not that of this class."""
        return any(getattr(type(self), name) is not getattr(NTM, name) or name in vars(self) for name in names)

    def own_forward(self) -> bool:
        """Whether calling the model is more than `NTM.forward`: `forward_backward` does not call it."""
        return self.overrides("forward", "__call__") or has_hooks(self)

    def unroll(
        self,
        inputs: Tensor,
        state: NTMState,
        cell_mask: Tensor | None = None,
        shifted: list[Tensor] | None = None,
    ) -> tuple[Tensor, NTMState]:
        """Take T steps: the reference path, on any device and in any floating-point type.

        Args:
            inputs, state, cell_mask: as in `forward`.
            shifted: a list that gets each step's w~_t, (B, H, N).

        Raises:
            ValueError: there is such a list, and the model has a `step` of its own, which gives no w~_t.
        """
        own_step = self.overrides("step")
        if own_step and shifted is not None:
            raise ValueError(
                "blur_cost needs w~_t, which this model's own `step` does not give: override `step_with_focus`"
            )
        outputs = []
        for t, x in enumerate(inputs):
            cell_mask_t = None if cell_mask is None else cell_mask[t]
            if own_step:
                logits, state = self.step(x, state, cell_mask_t)
            else:
                logits, state, focus = self.step_with_focus(x, state, cell_mask_t)
            if shifted is not None:
                shifted.append(focus.shifted)
            outputs.append(logits)
        return torch.stack(outputs), state

    def why_not_fused(self, parameters: dict[str, nn.Parameter] | None = None) -> str | None:
        """Say in one phrase why this model cannot run on the fused path; None where it can. As `Machine.why_not_fused`.

        That path has the equations of this package written down once more. So this declines a model of which a class,
        method, map, parameter or hook is not this package's, and any model where a function or method of the package
        was replaced, or edited in its file.
        """
        parameters = self.packed_parameters() if parameters is None else parameters
        parameter = next(iter(parameters.values()))
        if not parameter.is_cpu:
            return f"the fused path runs on the CPU, not on {parameter.device}"
        if parameter.dtype not in (torch.float32, torch.float64):
            return f"the fused path computes in float32 or float64, not {parameter.dtype}"
        trouble = mode_trouble() or (
            None if edited() else import_trouble()
        )  # no import, which torch.compile cannot follow, where it decides nothing
        if trouble:
            return trouble
        change = edited() or STOCK.changed()
        if change:
            return f"the fused path computes the stock machine, and {change}"
        controller, heads = self.controller, self.heads
        kind = FeedForwardController if isinstance(controller, FeedForwardController) else LSTMController
        map_name = "hidden_proj" if kind is FeedForwardController else "gate_proj"
        for name, part in {
            "NTM": (self, NTM, "output_proj"),
            "controller": (controller, kind, map_name),
            "heads": (heads, Heads, "control_proj"),
        }.items():
            change = changed_part(*part)
            if change:
                return f"the fused path computes the stock machine, and this one's {name} {change}"
        sizes = self.input_size, self.output_proj.out_features, controller.output_size
        shapes = stock_shapes(*sizes, heads.num_read, heads.memory_unit_size, kind is LSTMController)
        if SHIFTS != (-1, 0, 1):
            return f"the fused path knows the three shifts -1, 0 and 1, not {', '.join(map(str, SHIFTS))}"
        change = changed_parameter(parameters, shapes)
        return f"the fused path computes the stock machine, and this one {change}" if change else None


STOCK_MODULES = "addressing", "memory", "heads", "controller", "loss", "ntm"
STOCK = Contents(*(sys.modules[f"ntm.{name}"] for name in STOCK_MODULES))  # last: what they hold once all is defined
