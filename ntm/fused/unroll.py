"""Time steps, groups of sequences, and several groups: forward, and backward through the same steps.

A group is `GROUP` sequences that go through the matrix products together. There is a write head for each read head;
heads are numbered read heads first. A gradient carries the name of its variable with a `d_` in front.
"""

from functools import partial
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
from ntm.fused.blas import matmul, matmul_tn
from ntm.fused.controller import feedforward, feedforward_backward, lstm, lstm_backward
from ntm.fused.controls import apply_activations, apply_activations_backward, split_controls
from ntm.fused.jit import jit, jit_entry, jit_inline
from ntm.fused.layout import GROUP, Sizes, State, carve_saved, row_offsets, unpack_transposed, unpack_weights
from ntm.fused.loss import group_blur, group_loss
from ntm.fused.mathlib import ONE, copy
from ntm.fused.memory import memory_backward, read, read_write_backward, write


class UnrollArgs(NamedTuple):
    """One unroll of a batch."""

    inputs: np.ndarray  # (T, B, I)
    cell_mask: np.ndarray  # (T, B, C), false where a cell is made to forget; or (T, B, 0) where none is
    start: State  # each part of B sequences, or one for all
    weights: np.ndarray  # all `Weights`, flat
    weights_t: np.ndarray  # `TransposedWeights`, flat; empty until backward
    sizes: Sizes
    blur_cost: np.floating  # of one head of one sequence at one step
    logits: np.ndarray  # (T, B, O), overwritten by forward


class Scratch(NamedTuple):
    """Arrays that one time step of one sequence uses on the way back."""

    gated: np.ndarray  # (N): the value, computed again
    d_content: np.ndarray  # (N)
    d_gated: np.ndarray  # (N)
    d_shifted: np.ndarray  # (N)
    d_dot: np.ndarray  # (H, N)
    row_norm_grad: np.ndarray  # (N), zero between uses
    key_norm_grad: np.ndarray  # (H)
    memory: np.ndarray  # (M, N)


@jit
def copy_columns(a, out):
    """Copy a matrix into the first columns of another."""
    for g in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[g, j] = a[g, j]


@jit
def copy_rows(row, out):
    """Copy a vector into each row of a matrix."""
    for g in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[g, j] = row[j]


@jit
def add_rows(a, total):
    """Add each row of a matrix to a vector."""
    for g in range(a.shape[0]):
        for j in range(a.shape[1]):
            total[j] += a[g, j]


@jit_inline
def controller_step(first, args, p, saved, t, now, after, slot):
    """The controller, each sequence of the group: fills the gates and, in the next row, the controller's output."""
    gates, (_, output_at) = saved.gates[slot], row_offsets(args.sizes)
    if args.sizes.lstm:
        matmul(saved.controller_input[now], p.gates, 0, gates)
        for g in range(len(gates)):
            mask, output = args.cell_mask[t, first + g], saved.controller_input[after, g, output_at:-1]
            lstm(gates[g], saved.cell[now, g], mask, saved.cell[after, g], saved.tanh_cell[slot, g], output)
    else:
        copy_rows(p.gates[-1], gates)
        matmul(saved.controller_input[now, :, :output_at], p.gates[:-1], 1, gates)
        for g in range(len(gates)):
            feedforward(gates[g], saved.controller_input[after, g, output_at:-1])


@jit_inline
def controller_step_backward(first, args, weights_t, saved, t, d):
    """The way back through `controller_step`: `d.answer` comes in as that of step t and leaves as that of t - 1."""
    d_gates, (reads_at, output_at) = saved.d_gates[t], row_offsets(args.sizes)
    for g in range(len(d_gates)):
        d_output = d.answer[g, output_at - reads_at :]
        if args.sizes.lstm:
            lstm_backward(
                d_gates[g], saved.cell[t, g], args.cell_mask[t, first + g], saved.tanh_cell[t, g], d_output, d.cell[g]
            )
        else:
            feedforward_backward(d_gates[g], d_output)
    seen = weights_t.gates.shape[1] - 1 - reads_at  # what the controller sees of reads and its own output
    matmul(d_gates, weights_t.gates[:, reads_at:-1], 0, d.answer[:, :seen])
    d.answer[:, seen:] = 0


@jit
def memory_step(s, saved, now, after, slot, gated):
    """From the controls' sums to new memory, weightings and reads, each sequence of the group.

    Each equation is taken for all heads before the next, so that none waits for what the last has just written.
    """
    heads, width, num_read_heads = 2 * s.num_read_heads, s.width, s.num_read_heads
    reads_at, output_at = row_offsets(s)
    for g in range(saved.cell.shape[1]):
        memory, inverse_norm = saved.memory[now, g], saved.inverse_norm[slot, g]
        previous, weighting = saved.weighting[now, g], saved.weighting[after, g]
        similarity, content = saved.similarity[slot, g], saved.content[slot, g]
        shifted, log_shifted = saved.shifted[slot, g], saved.log_shifted[slot, g]
        c = split_controls(saved.controls[slot, g], heads, width)
        apply_activations(c)
        key_memory_dots(memory, c.key, inverse_norm, similarity)
        for n in range(inverse_norm.shape[0]):
            inverse_norm[n] = ONE / np.sqrt(inverse_norm[n])
        for h in range(heads):
            key = c.key[h * width : (h + 1) * width]
            content_weighting(inverse_norm, key, c.key_strength[h], similarity[h], content[h])
        for h in range(heads):
            interpolate(content[h], previous[h], c.interpolation_gate[h], gated[h])
        for h in range(heads):
            shift(gated[h], c.shift_weighting[3 * h :], shifted[h])
        for h in range(heads):
            sharpen(shifted[h], c.sharpening[h], log_shifted[h], weighting[h])
        read(memory, weighting[:num_read_heads], saved.controller_input[after, g, reads_at:output_at])
        write(memory, weighting[num_read_heads:], c.erase, c.add, saved.memory[after, g])


@jit
def memory_step_backward(blur_cost, saved, t, d, r):
    """The way back through `memory_step`; `blur_cost` is that of one head of one sequence at one step."""
    heads, width = saved.weighting.shape[2], saved.memory.shape[2]
    num_read_heads = heads // 2
    for g in range(saved.cell.shape[1]):
        memory, inverse_norm = saved.memory[t, g], saved.inverse_norm[t, g]
        previous, weighting = saved.weighting[t, g], saved.weighting[t + 1, g]
        similarity, content = saved.similarity[t, g], saved.content[t, g]
        shifted, log_shifted = saved.shifted[t, g], saved.log_shifted[t, g]
        d_memory, d_weighting, d_reads = d.memory[g], d.weighting[g], d.answer[g, : num_read_heads * width]
        c = split_controls(saved.controls[t, g], heads, width)
        d_c = split_controls(saved.d_controls[t, g], heads, width)
        read_write_backward(
            memory, weighting, c.erase, c.add, d_reads, d_memory, d_weighting, d_c.erase, d_c.add, r.memory
        )
        for h in range(heads):
            blur_backward(weighting[h], blur_cost, d_weighting[h])
            gate, s, d_s = c.interpolation_gate[h], c.shift_weighting[3 * h :], d_c.shift_weighting[3 * h :]
            interpolate(content[h], previous[h], gate, r.gated)
            d_c.sharpening[h] = sharpen_backward(
                shifted[h], c.sharpening[h], log_shifted[h], weighting[h], d_weighting[h], r.d_shifted
            )
            shift_backward(r.gated, s, r.d_shifted, r.d_gated, d_s)
            d_c.interpolation_gate[h] = interpolate_backward(
                content[h], previous[h], gate, r.d_gated, r.d_content, d_weighting[h]
            )
            key = c.key[h * width : (h + 1) * width]
            d_c.key_strength[h], r.key_norm_grad[h] = content_weighting_backward(
                inverse_norm,
                key,
                c.key_strength[h],
                similarity[h],
                content[h],
                r.d_content,
                r.d_dot[h],
                r.row_norm_grad,
            )
        memory_backward(
            memory, weighting, c.erase, c.key, d_reads, r.d_dot, r.row_norm_grad, r.key_norm_grad, d_memory, d_c.key
        )
        apply_activations_backward(c, d_c)


@jit
def load_state(first, s, start, saved):
    """Copy a group's initial state, of which each part may be one for all sequences, into slot 0."""
    reads_at, output_at = row_offsets(s)
    for g in range(saved.controller_input.shape[1]):
        b, row = first + g, saved.controller_input[0, g]
        copy_columns(start.memory[b % len(start.memory)], saved.memory[0, g])
        copy_columns(start.weighting[b % len(start.weighting)], saved.weighting[0, g])
        copy(start.cell[b % len(start.cell)], saved.cell[0, g])
        copy(start.hidden[b % len(start.hidden)], row[output_at:])
        copy(start.reads[b % len(start.reads)].reshape(output_at - reads_at), row[reads_at:])
        for slot in range(saved.controller_input.shape[0]):
            saved.controller_input[slot, g, saved.controller_input.shape[2] - 1] = ONE


@jit
def store_state(first, s, slot, saved, end):
    """Copy a group's final state from its slot to its rows of `end`, the batch's."""
    reads_at, output_at = row_offsets(s)
    for g in range(saved.controller_input.shape[1]):
        b, row = first + g, saved.controller_input[slot, g]
        copy_columns(saved.memory[slot, g], end.memory[b])
        copy_columns(saved.weighting[slot, g], end.weighting[b])
        copy(saved.cell[slot, g], end.cell[b])
        copy(row[output_at : output_at + end.hidden.shape[1]], end.hidden[b])
        copy(row[reads_at:output_at], end.reads[b].reshape(output_at - reads_at))


@jit_inline
def forward_group(first, args, p, saved):
    """Run a group, the batch's sequences from `first` on; returns the slot of its final state."""
    (slots, group, _), (reads_at, output_at) = saved.gates.shape, row_offsets(args.sizes)
    load_state(first, args.sizes, args.start, saved)
    gated = np.empty(saved.weighting.shape[2:], saved.memory.dtype)
    for t in range(args.inputs.shape[0]):
        now, after, slot = t % (slots + 1), (t + 1) % (slots + 1), t % slots
        copy_columns(args.inputs[t, first : first + group], saved.controller_input[now])
        controller_step(first, args, p, saved, t, now, after, slot)
        matmul(saved.controller_input[after, :, output_at:], p.controls, 0, saved.controls[slot])
        memory_step(args.sizes, saved, now, after, slot, gated)
        matmul(saved.controller_input[after, :, reads_at:], p.output, 0, args.logits[t, first : first + group])
    return args.inputs.shape[0] % (slots + 1)


@jit_inline
def backward_group(first, args, weights_t, saved, d, d_inputs, accumulate, d_p):
    """Go back through the time steps of `forward_group`.

    Turns `d` from the final state's gradients into the initial state's, and overwrites the group's part of `d_inputs`,
    which may be empty. `d_p` gets the maps' gradients: overwritten, or accumulated into.
    """
    (steps, group, _), kind = saved.d_logits.shape, saved.d_logits.dtype
    _, _, width, rows = saved.memory.shape
    heads, input_size = saved.weighting.shape[2], saved.controller_input.shape[2]
    reads_at, output_at = row_offsets(args.sizes)
    r = Scratch(
        np.empty(rows, kind),
        np.empty(rows, kind),
        np.empty(rows, kind),
        np.empty(rows, kind),
        np.empty((heads, rows), kind),
        np.zeros(rows, kind),
        np.empty(heads, kind),
        np.empty((width, rows), kind),
    )
    for t in range(steps - 1, -1, -1):
        matmul(saved.d_logits[t], weights_t.output[:, :-1], 1, d.answer)
        memory_step_backward(args.blur_cost, saved, t, d, r)
        matmul(saved.d_controls[t], weights_t.controls[:, :-1], 1, d.answer[:, output_at - reads_at :])
        controller_step_backward(first, args, weights_t, saved, t, d)
        if d_inputs.shape[0]:
            matmul(saved.d_gates[t], weights_t.gates[:, :reads_at], 0, d_inputs[t, first : first + group])
    count = steps * group  # all steps of all sequences are rows now
    controller_input = saved.controller_input[:steps].reshape(count, input_size)
    after = saved.controller_input[1:].reshape(count, input_size)
    d_gates = saved.d_gates.reshape(count, d_p.gates.shape[1])
    if args.sizes.lstm:
        matmul_tn(controller_input, d_gates, accumulate, d_p.gates)
    else:
        matmul_tn(controller_input[:, :output_at], d_gates, accumulate, d_p.gates[:-1])
        if not accumulate:
            d_p.gates[-1] = 0
        add_rows(d_gates, d_p.gates[-1])
    matmul_tn(after[:, output_at:], saved.d_controls.reshape(count, d_p.controls.shape[1]), accumulate, d_p.controls)
    matmul_tn(after[:, reads_at:], saved.d_logits.reshape(count, d_p.output.shape[1]), accumulate, d_p.output)


@partial(jit_entry, counted=True)
def groups_forward(first, last, args, buffers, save_for_backward, end):
    """Overwrite logits and final states. To save for backward, there is a buffer for each group, else a single one."""
    steps, group, rows = len(args.inputs), min(GROUP, last - first), args.start.memory.shape[2]
    p = unpack_weights(args.weights, args.sizes)
    for i, b in enumerate(range(first, last, group)):
        slots = steps if save_for_backward else 1
        saved, _ = carve_saved(buffers[i % len(buffers)], slots, group, rows, args.sizes, True)
        store_state(b, args.sizes, forward_group(b, args, p, saved), saved, end)


@partial(jit_entry, counted=True)
def groups_backward(first, last, args, buffers, d_logits, d_end, d_start, d_inputs, d_weights):
    """Go back from the gradients of logits and final states: overwrites those of initial states, inputs and maps."""
    steps, group, rows = len(args.inputs), min(GROUP, last - first), args.start.memory.shape[2]
    weights_t, d_p = unpack_transposed(args.weights_t, args.sizes), unpack_weights(d_weights, args.sizes)
    d_p.reads[:], d_p.hidden[:], d_p.cell[:] = 0, 0, 0  # they are in `d_start`
    for i in range(len(buffers) - 1, -1, -1):  # what the last one left may still be in cache
        saved, d = carve_saved(buffers[i], steps, group, rows, args.sizes, True)
        b, reads_size, cells = first + i * group, args.sizes.num_read_heads * args.sizes.width, d.cell.shape[1]
        for t in range(steps):
            copy_columns(d_logits[t, b : b + group], saved.d_logits[t])
            copy_columns(saved.gates[t], saved.d_gates[t])
        d.answer[:] = 0
        for g in range(group):
            copy_columns(d_end.memory[b + g], d.memory[g])
            copy_columns(d_end.weighting[b + g], d.weighting[g])
            copy(d_end.cell[b + g], d.cell[g])
            copy(d_end.reads[b + g].reshape(reads_size), d.answer[g])
            copy(d_end.hidden[b + g], d.answer[g, reads_size:])
        backward_group(b, args, weights_t, saved, d, d_inputs, i < len(buffers) - 1, d_p)
        for g in range(group):
            copy_columns(d.memory[g], d_start.memory[b + g])
            copy_columns(d.weighting[g], d_start.weighting[b + g])
            copy(d.cell[g], d_start.cell[b + g])
            copy(d.answer[g, :reads_size], d_start.reads[b + g].reshape(reads_size))
            copy(d.answer[g, reads_size : reads_size + cells], d_start.hidden[b + g])


@partial(jit_entry, counted=True)
def groups_forward_backward(first, last, args, loss_args, buffer, accumulate, d_weights):
    """Each group forward, through the loss and back; returns the loss.

    `d_weights` gets the gradients of all parameters, the initial state's too: overwritten, or accumulated into.
    """
    steps, group, rows = len(args.inputs), min(GROUP, last - first), args.start.memory.shape[2]
    p, weights_t = unpack_weights(args.weights, args.sizes), unpack_transposed(args.weights_t, args.sizes)
    d_p = unpack_weights(d_weights, args.sizes)
    saved, d = carve_saved(buffer, steps, group, rows, args.sizes, False)
    if not accumulate:
        d_p.reads[:], d_p.hidden[:], d_p.cell[:] = 0, 0, 0
    loss, bits, kind = 0.0, args.sizes.outputs, d_weights.dtype
    bit_weight, bit_loss = np.empty((group, bits), kind), np.empty(group * bits, kind)
    no_inputs = np.empty((0, 0, 0), kind)
    for b in range(first, last, group):
        forward_group(b, args, p, saved)
        loss += group_loss(b, args.logits, loss_args, saved, bit_weight, bit_loss)
        if args.blur_cost != 0:
            loss += group_blur(saved, args.blur_cost)
        d.memory[:], d.weighting[:], d.cell[:], d.answer[:] = 0, 0, 0, 0
        backward_group(b, args, weights_t, saved, d, no_inputs, accumulate or b > first, d_p)
        add_rows(d.answer[:, : len(d_p.reads)], d_p.reads)
        add_rows(d.answer[:, len(d_p.reads) : len(d_p.reads) + len(d_p.hidden)], d_p.hidden)
        add_rows(d.cell, d_p.cell)
    return loss
