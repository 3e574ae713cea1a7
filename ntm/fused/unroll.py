"""A group of sequences, and several groups: forward through all time steps, and backward through the same.

A group is `GROUP` sequences that go through the matrix products together.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from ntm.fused.blas import matmul, matmul_tn
from ntm.fused.jit import jit, jit_entry, jit_inline
from ntm.fused.layout import Sizes, State, carve_saved, input_offsets, unpack_transposed, unpack_weights
from ntm.fused.loss import group_blur, group_loss
from ntm.fused.mathlib import ONE, accumulate_rows, copy, copy_matrix
from ntm.fused.step import Scratch, controller_step, controller_step_backward, memory_step, memory_step_backward
from ntm.shards import GROUP


class UnrollArgs(NamedTuple):
    """One unroll of a batch."""

    inputs: np.ndarray  # (T, B, I)
    cell_mask: np.ndarray  # (T, B, C), false where a cell is made to forget; or (T, B, 0) where none is
    initial_state: State  # each part of B sequences, or one for all
    weights: np.ndarray  # all `Weights`, flat
    weights_transposed: np.ndarray  # `TransposedWeights`, flat; empty until backward
    sizes: Sizes
    blur_weight: np.floating  # the cost of blur of one head of one sequence at one step
    logits: np.ndarray  # (T, B, O), overwritten by forward


@jit
def load_state(first, sizes, initial, saved):
    """Copy a group's initial state, of which each part may be one for all sequences, into slot 0."""
    reads_offset, output_offset = input_offsets(sizes)
    for g in range(saved.controller_input.shape[1]):
        b, row = first + g, saved.controller_input[0, g]
        copy_matrix(initial.memory[b % len(initial.memory)], saved.memory[0, g])
        copy_matrix(initial.weighting[b % len(initial.weighting)], saved.weighting[0, g])
        copy(initial.cell[b % len(initial.cell)], saved.cell[0, g])
        copy(initial.hidden[b % len(initial.hidden)], row[output_offset:])
        copy(initial.reads[b % len(initial.reads)].reshape(output_offset - reads_offset), row[reads_offset:])
        for slot in range(saved.controller_input.shape[0]):
            saved.controller_input[slot, g, saved.controller_input.shape[2] - 1] = ONE


@jit
def store_state(first, sizes, slot, saved, final):
    """Copy a group's final state from its slot to its rows of `final`, the batch's."""
    reads_offset, output_offset = input_offsets(sizes)
    for g in range(saved.controller_input.shape[1]):
        b, row = first + g, saved.controller_input[slot, g]
        copy_matrix(saved.memory[slot, g], final.memory[b])
        copy_matrix(saved.weighting[slot, g], final.weighting[b])
        copy(saved.cell[slot, g], final.cell[b])
        copy(row[output_offset : output_offset + final.hidden.shape[1]], final.hidden[b])
        copy(row[reads_offset:output_offset], final.reads[b].reshape(output_offset - reads_offset))


@jit_inline
def forward_group(first, args, weights, saved):
    """Run a group, the batch's sequences from `first` on; returns the slot of its final state."""
    (slots, group, _), (reads_offset, output_offset) = saved.gates.shape, input_offsets(args.sizes)
    load_state(first, args.sizes, args.initial_state, saved)
    gated = np.empty(saved.weighting.shape[2:], saved.memory.dtype)
    for t in range(args.inputs.shape[0]):
        before, after, slot = t % (slots + 1), (t + 1) % (slots + 1), t % slots
        copy_matrix(args.inputs[t, first : first + group], saved.controller_input[before])
        controller_step(first, args, weights, saved, t, before, after, slot)
        matmul(saved.controller_input[after, :, output_offset:], weights.controls, 0, saved.controls[slot])
        memory_step(args.sizes, saved, before, after, slot, gated)
        matmul(
            saved.controller_input[after, :, reads_offset:], weights.output, 0, args.logits[t, first : first + group]
        )
    return args.inputs.shape[0] % (slots + 1)


@jit_inline
def backward_group(first, args, weights_transposed, saved, d_state, d_inputs, accumulate, d_weights):
    """Go back through the time steps of `forward_group`.

    Turns `d_state` from the final state's gradients into the initial state's, and overwrites the group's part of
    `d_inputs`, which may be empty. `d_weights` gets the maps' gradients: overwritten, or accumulated into.
    """
    (steps, group, _), dtype = saved.d_logits.shape, saved.d_logits.dtype
    _, _, width, rows = saved.memory.shape
    heads, input_size = saved.weighting.shape[2], saved.controller_input.shape[2]
    reads_offset, output_offset = input_offsets(args.sizes)
    scratch = Scratch(
        np.empty(rows, dtype),
        np.empty(rows, dtype),
        np.empty(rows, dtype),
        np.empty(rows, dtype),
        np.empty((heads, rows), dtype),
        np.zeros(rows, dtype),
        np.empty(heads, dtype),
        np.empty((width, rows), dtype),
    )
    for t in range(steps - 1, -1, -1):
        matmul(saved.d_logits[t], weights_transposed.output[:, :-1], 1, d_state.reads_and_output)
        memory_step_backward(args.blur_weight, saved, t, d_state, scratch)
        matmul(
            saved.d_controls[t],
            weights_transposed.controls[:, :-1],
            1,
            d_state.reads_and_output[:, output_offset - reads_offset :],
        )
        controller_step_backward(first, args, weights_transposed, saved, t, d_state)
        if d_inputs.shape[0]:
            matmul(saved.d_gates[t], weights_transposed.gates[:, :reads_offset], 0, d_inputs[t, first : first + group])
    samples = steps * group  # all steps of all sequences are rows before
    controller_input = saved.controller_input[:steps].reshape(samples, input_size)
    after = saved.controller_input[1:].reshape(samples, input_size)
    d_gates = saved.d_gates.reshape(samples, d_weights.gates.shape[1])
    if args.sizes.lstm:
        matmul_tn(controller_input, d_gates, accumulate, d_weights.gates)
    else:
        matmul_tn(controller_input[:, :output_offset], d_gates, accumulate, d_weights.gates[:-1])
        if not accumulate:
            d_weights.gates[-1] = 0
        accumulate_rows(d_gates, d_weights.gates[-1])
    matmul_tn(
        after[:, output_offset:],
        saved.d_controls.reshape(samples, d_weights.controls.shape[1]),
        accumulate,
        d_weights.controls,
    )
    matmul_tn(
        after[:, reads_offset:],
        saved.d_logits.reshape(samples, d_weights.output.shape[1]),
        accumulate,
        d_weights.output,
    )


@partial(jit_entry, refcounted=True)
def groups_forward(first, stop, args, buffers, save_for_backward, final):
    """Overwrite logits and final states. To save for backward, there is a buffer for each group, else a single one."""
    steps, group, rows = len(args.inputs), min(GROUP, stop - first), args.initial_state.memory.shape[2]
    weights = unpack_weights(args.weights, args.sizes)
    for i, b in enumerate(range(first, stop, group)):
        slots = steps if save_for_backward else 1
        saved, _ = carve_saved(buffers[i % len(buffers)], slots, group, rows, args.sizes, True)
        store_state(b, args.sizes, forward_group(b, args, weights, saved), saved, final)


@partial(jit_entry, refcounted=True)
def groups_backward(first, stop, args, buffers, d_logits, d_final, d_initial, d_inputs, d_weights_flat):
    """Go back from the gradients of logits and final states: overwrites those of initial states, inputs and maps."""
    steps, group, rows = len(args.inputs), min(GROUP, stop - first), args.initial_state.memory.shape[2]
    weights_transposed, d_weights = (
        unpack_transposed(args.weights_transposed, args.sizes),
        unpack_weights(d_weights_flat, args.sizes),
    )
    d_weights.reads[:], d_weights.hidden[:], d_weights.cell[:] = 0, 0, 0  # they are in `d_initial`
    for i in range(len(buffers) - 1, -1, -1):  # what the last one left may still be in cache
        saved, d_state = carve_saved(buffers[i], steps, group, rows, args.sizes, True)
        b, reads_size, cells = first + i * group, args.sizes.num_read_heads * args.sizes.width, d_state.cell.shape[1]
        for t in range(steps):
            copy_matrix(d_logits[t, b : b + group], saved.d_logits[t])
            copy_matrix(saved.gates[t], saved.d_gates[t])
        d_state.reads_and_output[:] = 0
        for g in range(group):
            copy_matrix(d_final.memory[b + g], d_state.memory[g])
            copy_matrix(d_final.weighting[b + g], d_state.weighting[g])
            copy(d_final.cell[b + g], d_state.cell[g])
            copy(d_final.reads[b + g].reshape(reads_size), d_state.reads_and_output[g])
            copy(d_final.hidden[b + g], d_state.reads_and_output[g, reads_size:])
        backward_group(b, args, weights_transposed, saved, d_state, d_inputs, i < len(buffers) - 1, d_weights)
        for g in range(group):
            copy_matrix(d_state.memory[g], d_initial.memory[b + g])
            copy_matrix(d_state.weighting[g], d_initial.weighting[b + g])
            copy(d_state.cell[g], d_initial.cell[b + g])
            copy(d_state.reads_and_output[g, :reads_size], d_initial.reads[b + g].reshape(reads_size))
            copy(d_state.reads_and_output[g, reads_size : reads_size + cells], d_initial.hidden[b + g])


@partial(jit_entry, refcounted=True)
def groups_forward_backward(first, stop, args, loss_args, buffer, accumulate, d_weights_flat):
    """Each group forward, through the loss and back; returns the loss.

    `d_weights_flat` gets the gradients of all parameters, the initial state's too: overwritten, or accumulated into.
    """
    steps, group, rows = len(args.inputs), min(GROUP, stop - first), args.initial_state.memory.shape[2]
    weights, weights_transposed = (
        unpack_weights(args.weights, args.sizes),
        unpack_transposed(args.weights_transposed, args.sizes),
    )
    d_weights = unpack_weights(d_weights_flat, args.sizes)
    saved, d_state = carve_saved(buffer, steps, group, rows, args.sizes, False)
    if not accumulate:
        d_weights.reads[:], d_weights.hidden[:], d_weights.cell[:] = 0, 0, 0
    loss, bits, dtype = 0.0, args.sizes.outputs, d_weights_flat.dtype
    bit_weights, bit_loss = np.empty((group, bits), dtype), np.empty(group * bits, dtype)
    no_d_inputs = np.empty((0, 0, 0), dtype)
    for b in range(first, stop, group):
        forward_group(b, args, weights, saved)
        loss += group_loss(b, args.logits, loss_args, saved, bit_weights, bit_loss)
        if args.blur_weight != 0:
            loss += group_blur(saved, args.blur_weight)
        d_state.memory[:], d_state.weighting[:], d_state.cell[:], d_state.reads_and_output[:] = 0, 0, 0, 0
        backward_group(b, args, weights_transposed, saved, d_state, no_d_inputs, accumulate or b > first, d_weights)
        accumulate_rows(d_state.reads_and_output[:, : len(d_weights.reads)], d_weights.reads)
        accumulate_rows(
            d_state.reads_and_output[:, len(d_weights.reads) : len(d_weights.reads) + len(d_weights.hidden)],
            d_weights.hidden,
        )
        accumulate_rows(d_state.cell, d_weights.cell)
    return loss
