"""One time step of a group of sequences: controller and memory, each forward and backward, and the step whole.

There is a write head for each read head; heads are numbered read heads first. A gradient carries the name of its
variable with a `d_` in front. State has a slot `before` the step and one `after` it; what backward needs of the step
itself is in `slot`. On the way back, where each step has a slot of its own, these are t, t + 1 and t.

Shapes are in the letters of layout.py. Of its tuples, `weights` is `Weights`, `weights_transposed` is
`TransposedWeights`, `saved` is `SavedForBackward`, `d_state` is `StateGrads`; `args` is the `UnrollArgs` of unroll.py.
A function takes a group of sequences, of which `first` is the first one's number in the batch. The controller's output,
(G, C), is h_t; of an LSTM it is the hidden state that goes on to the next step, too.
"""

from typing import NamedTuple

import numpy as np

from ntm.fused.addressing import (
    blur_backward,
    content_weighting,
    content_weighting_backward,
    interpolate,
    interpolate_backward,
    key_memory_dots,
    sharpen,
    sharpen_backward,
    shift,
    shift_backward,
)
from ntm.fused.blas import matmul
from ntm.fused.controller import feedforward, feedforward_backward, lstm, lstm_backward
from ntm.fused.controls import apply_activations, apply_activations_backward, split_controls
from ntm.fused.jit import jit
from ntm.fused.layout import input_offsets, reads_width
from ntm.fused.mathlib import ONE, broadcast_row, copy_matrix
from ntm.fused.memory import memory_backward, read, read_write_backward, write


class Scratch(NamedTuple):
    """Arrays that one time step of one sequence uses on the way back."""

    gated: np.ndarray  # (N): w^g of one head, computed again: forward does not save it
    d_content: np.ndarray  # (N)
    d_gated: np.ndarray  # (N)
    d_shifted: np.ndarray  # (N)
    d_dot: np.ndarray  # (H, N)
    row_norm_grad: np.ndarray  # (N): -2 dL/d|M(n)|^2, zero between uses
    key_norm_grad: np.ndarray  # (H): -2 dL/d|k|^2
    memory_before_erase: np.ndarray  # (M, N): what a write head had to erase


@jit
def controller_step(first, args, weights, saved, t, before, after, slot):
    """The controller, each sequence of the group.

    Overwrites `saved.gates[slot]`, and of `saved.controller_input[after]` the part that is the controller's output.
    """
    gates, (_, hidden_offset) = saved.gates[slot], input_offsets(args.sizes)
    if args.sizes.lstm:
        matmul(saved.controller_input[before], weights.gate_proj, 0, gates)
    else:  # which does not take its own last output; see `Weights`
        broadcast_row(weights.gate_proj[-1], gates)
        matmul(saved.controller_input[before, :, :hidden_offset], weights.gate_proj[:-1], 1, gates)
    for g in range(gates.shape[0]):
        output = saved.controller_input[after, g, hidden_offset:-1]
        if args.sizes.lstm:
            cell_mask, tanh_cell = args.cell_mask[t, first + g], saved.tanh_cell[slot, g]
            lstm(gates[g], saved.cell[before, g], cell_mask, saved.cell[after, g], tanh_cell, output)
        else:
            feedforward(gates[g], output)


@jit
def controller_step_backward(first, args, weights_transposed, saved, t, d_state):
    """Gradient of `controller_step`: `d_state.reads_and_hidden` comes in as that of step t, leaves as that of t - 1.

    The gates' gradients take the place of their activations.
    """
    d_gates, reads_end, (reads_offset, _) = saved.d_gates[t], reads_width(args.sizes), input_offsets(args.sizes)
    for g in range(d_gates.shape[0]):
        d_hidden = d_state.reads_and_hidden[g, reads_end:]
        if args.sizes.lstm:
            cell_mask, tanh_cell = args.cell_mask[t, first + g], saved.tanh_cell[t, g]
            lstm_backward(d_gates[g], saved.cell[t, g], cell_mask, tanh_cell, d_hidden, d_state.cell[g])
        else:
            feedforward_backward(d_gates[g], d_hidden)
    if args.sizes.lstm:
        matmul(d_gates, weights_transposed.gate_proj[:, reads_offset:-1], 0, d_state.reads_and_hidden)
    else:  # which does not take its own last output
        d_state.reads_and_hidden[:, reads_end:] = 0
        d_reads = d_state.reads_and_hidden[:, :reads_end]
        matmul(d_gates, weights_transposed.gate_proj[:, reads_offset:-1], 0, d_reads)


@jit
def memory_step(sizes, saved, before, after, slot, gated):
    """From the controls' pre-activations to new memory, weightings and reads, each sequence of the group.

    Each equation is taken for all heads before the next, so that no loop over rows waits for what the one just before
    it has stored: that one was another head's. `gated` (H, N) is scratch.
    """
    heads, width, num_read_heads = 2 * sizes.num_read_heads, sizes.width, sizes.num_read_heads
    reads_offset, hidden_offset = input_offsets(sizes)
    for g in range(saved.memory.shape[1]):
        memory, inverse_norm = saved.memory[before, g], saved.inverse_norm[slot, g]
        previous, weighting = saved.weighting[before, g], saved.weighting[after, g]
        similarity, content = saved.similarity[slot, g], saved.content[slot, g]
        shifted, log_shifted = saved.shifted[slot, g], saved.log_shifted[slot, g]
        controls = split_controls(saved.controls[slot, g], heads, width)
        apply_activations(controls)
        key_memory_dots(memory, controls.key, inverse_norm, similarity)  # squared norms at first
        for n in range(inverse_norm.shape[0]):
            inverse_norm[n] = ONE / np.sqrt(inverse_norm[n])
        for h in range(heads):
            key = controls.key[h * width : (h + 1) * width]
            content_weighting(inverse_norm, key, controls.key_strength[h], similarity[h], content[h])
        for h in range(heads):
            interpolate(content[h], previous[h], controls.interpolation_gate[h], gated[h])
        for h in range(heads):
            shift(gated[h], controls.shift_weighting[3 * h : 3 * h + 3], shifted[h])
        for h in range(heads):
            sharpen(shifted[h], controls.sharpening[h], log_shifted[h], weighting[h])
        read(memory, weighting[:num_read_heads], saved.controller_input[after, g, reads_offset:hidden_offset])
        write(memory, weighting[num_read_heads:], controls.erase, controls.add, saved.memory[after, g])


@jit
def memory_step_backward(blur_weight, saved, t, d_state, scratch):
    """Gradient of `memory_step`, and of the cost of blur (`UnrollArgs.blur_weight`).

    `d_state.memory` and `d_state.weighting` come in as the gradients of step t's state, and leave as those of step
    t - 1's. Of `d_state.reads_and_hidden` the reads are used, and not changed. Overwrites `saved.d_controls[t]`, with
    the gradients of the controls' pre-activations.
    """
    heads, width = saved.weighting.shape[2], saved.memory.shape[2]
    num_read_heads = heads // 2
    for g in range(saved.memory.shape[1]):
        memory, inverse_norm = saved.memory[t, g], saved.inverse_norm[t, g]
        previous, weighting = saved.weighting[t, g], saved.weighting[t + 1, g]
        similarity, content = saved.similarity[t, g], saved.content[t, g]
        shifted, log_shifted = saved.shifted[t, g], saved.log_shifted[t, g]
        d_memory, d_weighting = d_state.memory[g], d_state.weighting[g]
        d_reads = d_state.reads_and_hidden[g, : num_read_heads * width]
        controls = split_controls(saved.controls[t, g], heads, width)
        d_controls = split_controls(saved.d_controls[t, g], heads, width)
        erase, d_erase, add, d_add = controls.erase, d_controls.erase, controls.add, d_controls.add
        read_write_backward(
            memory, weighting, erase, add, d_reads, d_memory, d_weighting, d_erase, d_add, scratch.memory_before_erase
        )
        for h in range(heads):
            gate = controls.interpolation_gate[h]
            shifts = slice(3 * h, 3 * h + 3)
            s, d_s = controls.shift_weighting[shifts], d_controls.shift_weighting[shifts]
            interpolate(content[h], previous[h], gate, scratch.gated)
            d_controls.sharpening[h] = sharpen_backward(
                shifted[h], controls.sharpening[h], log_shifted[h], weighting[h], d_weighting[h], scratch.d_shifted
            )
            blur_backward(shifted[h], blur_weight, scratch.d_shifted)
            shift_backward(scratch.gated, s, scratch.d_shifted, scratch.d_gated, d_s)
            d_controls.interpolation_gate[h] = interpolate_backward(
                content[h], previous[h], gate, scratch.d_gated, scratch.d_content, d_weighting[h]
            )  # d_weighting[h] was dL/dw_t, and is dL/dw_{t-1} from here on
            key, strength = controls.key[h * width : (h + 1) * width], controls.key_strength[h]
            d_controls.key_strength[h], scratch.key_norm_grad[h] = content_weighting_backward(
                inverse_norm, key, strength, similarity[h], content[h], scratch.d_content, scratch.d_dot[h],
                scratch.row_norm_grad,
            )  # fmt: skip
        memory_backward(
            memory, weighting, erase, controls.key, d_reads, scratch.d_dot, scratch.row_norm_grad,
            scratch.key_norm_grad, d_memory, d_controls.key,
        )  # fmt: skip
        apply_activations_backward(controls, d_controls)


@jit
def step(first, args, weights, saved, t, gated):
    """One step of the machine (`NTM.step`), each sequence of the group from `first` on: overwrites its logits.

    `gated` (H, N) is scratch.
    """
    (slots, group, _), (reads_offset, hidden_offset) = saved.gates.shape, input_offsets(args.sizes)
    before, after, slot = t % (slots + 1), (t + 1) % (slots + 1), t % slots
    copy_matrix(args.inputs[t, first : first + group], saved.controller_input[before])
    controller_step(first, args, weights, saved, t, before, after, slot)
    matmul(saved.controller_input[after, :, hidden_offset:], weights.control_proj, 0, saved.controls[slot])
    memory_step(args.sizes, saved, before, after, slot, gated)
    logits = args.logits[t, first : first + group]
    matmul(saved.controller_input[after, :, reads_offset:], weights.output_proj, 0, logits)


@jit
def step_backward(first, args, weights_transposed, saved, t, d_state, d_inputs, scratch):
    """Gradient of `step`: `d_state` comes in as that of step t's state, and leaves as that of step t - 1's.

    Overwrites `saved.d_controls[t]`, and the group's part of `d_inputs[t]`, where that is not empty.
    """
    group, (reads_offset, _) = saved.d_logits.shape[1], input_offsets(args.sizes)
    matmul(saved.d_logits[t], weights_transposed.output_proj[:, :-1], 1, d_state.reads_and_hidden)
    memory_step_backward(args.blur_weight, saved, t, d_state, scratch)
    d_hidden = d_state.reads_and_hidden[:, reads_width(args.sizes) :]
    matmul(saved.d_controls[t], weights_transposed.control_proj[:, :-1], 1, d_hidden)
    controller_step_backward(first, args, weights_transposed, saved, t, d_state)
    if d_inputs.shape[0]:
        matmul(saved.d_gates[t], weights_transposed.gate_proj[:, :reads_offset], 0, d_inputs[t, first : first + group])
