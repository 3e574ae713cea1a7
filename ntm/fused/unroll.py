"""A group of sequences, and several groups: forward through all time steps, and backward through the same.

A group is `GROUP` sequences that go through the matrix products together. A shard is whole groups, or one smaller
rest (ntm/shards.py): so all groups of a shard have equally many sequences. `first` is the first sequence of a group.
Shapes are in the letters of layout.py, whose tuples have the names of arguments that step.py gives them.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from ntm.fused.blas import matmul_tn
from ntm.fused.jit import jit, jit_entry, jit_inline, jit_refcounted
from ntm.fused.layout import (
    Sizes,
    State,
    carve_saved,
    input_offsets,
    reads_width,
    state_cells,
    unpack_transposed,
    unpack_weights,
)
from ntm.fused.loss import group_blur, group_loss
from ntm.fused.mathlib import ONE, accumulate_rows, copy, copy_matrix
from ntm.fused.step import Scratch, step, step_backward
from ntm.shards import GROUP


class UnrollArgs(NamedTuple):
    """One unroll of a batch."""

    inputs: np.ndarray  # (T, B, I)
    cell_mask: np.ndarray  # (T, B, C), false where a cell is made to forget; or (T, B, 0) where none is
    initial_state: State  # each array of B sequences, or of one for all
    weights: np.ndarray  # all `Weights`, flat
    weights_transposed: np.ndarray  # `TransposedWeights`, flat; empty until backward
    sizes: Sizes
    blur_weight: np.floating  # blur_cost / (H B T): the blur of one head, sequence and step is multiplied by it
    logits: np.ndarray  # (T, B, O): the answer, overwritten by forward


@jit
def load_state(first, sizes, initial, saved):
    """Copy a group's initial state, of which each array may be of one sequence for all, into slot 0.

    Ends each row of `controller_input`, of all slots, with the 1 that biases are multiplied by.
    """
    reads_offset, hidden_offset = input_offsets(sizes)
    for g in range(saved.controller_input.shape[1]):
        sequence, row = first + g, saved.controller_input[0, g]
        copy_matrix(initial.memory[sequence % len(initial.memory)], saved.memory[0, g])
        copy_matrix(initial.weighting[sequence % len(initial.weighting)], saved.weighting[0, g])
        copy(initial.cell[sequence % len(initial.cell)], saved.cell[0, g])
        copy(initial.hidden[sequence % len(initial.hidden)], row[hidden_offset:])
        copy(initial.reads[sequence % len(initial.reads)].reshape(reads_width(sizes)), row[reads_offset:])
        for slot in range(saved.controller_input.shape[0]):
            saved.controller_input[slot, g, saved.controller_input.shape[2] - 1] = ONE


@jit
def store_state(first, sizes, after, saved, final):
    """Copy a group's final state from the slot after its last step to its rows of `final`, the batch's."""
    reads_offset, hidden_offset = input_offsets(sizes)
    for g in range(saved.controller_input.shape[1]):
        sequence, row = first + g, saved.controller_input[after, g]
        copy_matrix(saved.memory[after, g], final.memory[sequence])
        copy_matrix(saved.weighting[after, g], final.weighting[sequence])
        copy(saved.cell[after, g], final.cell[sequence])
        copy(row[hidden_offset : hidden_offset + final.hidden.shape[1]], final.hidden[sequence])
        copy(row[reads_offset:hidden_offset], final.reads[sequence].reshape(reads_width(sizes)))


@jit_inline
def forward_group(first, args, weights, saved):
    """Run a group, the batch's sequences from `first` on: overwrites logits, returns the slot after its last step."""
    load_state(first, args.sizes, args.initial_state, saved)
    gated = np.empty(saved.weighting.shape[2:], saved.memory.dtype)
    for t in range(args.inputs.shape[0]):
        step(first, args, weights, saved, t, gated)
    return args.inputs.shape[0] % (saved.gates.shape[0] + 1)


@jit
def accumulate_map_gradients(sizes, saved, accumulate, d_weights):
    """The gradients of the three maps in `d_weights`, over all steps and sequences of the group at once.

    Added to what is there if `accumulate`, else overwritten.
    """
    (steps, group, _), (reads_offset, hidden_offset) = saved.d_logits.shape, input_offsets(sizes)
    input_width = saved.controller_input.shape[2]
    steps_and_group = steps * group
    controller_inputs_before = saved.controller_input[:steps].reshape(steps_and_group, input_width)
    controller_inputs_after = saved.controller_input[1:].reshape(steps_and_group, input_width)
    d_gates = saved.d_gates.reshape(steps_and_group, d_weights.gate_proj.shape[1])
    if sizes.lstm:
        matmul_tn(controller_inputs_before, d_gates, accumulate, d_weights.gate_proj)
    else:  # which does not take its own last output; see `Weights`
        matmul_tn(controller_inputs_before[:, :hidden_offset], d_gates, accumulate, d_weights.gate_proj[:-1])
        if not accumulate:
            d_weights.gate_proj[-1] = 0
        accumulate_rows(d_gates, d_weights.gate_proj[-1])
    d_controls = saved.d_controls.reshape(steps_and_group, d_weights.control_proj.shape[1])
    d_logits = saved.d_logits.reshape(steps_and_group, d_weights.output_proj.shape[1])
    matmul_tn(controller_inputs_after[:, hidden_offset:], d_controls, accumulate, d_weights.control_proj)
    matmul_tn(controller_inputs_after[:, reads_offset:], d_logits, accumulate, d_weights.output_proj)


@jit_inline
def backward_group(first, args, weights_transposed, saved, d_state, d_inputs, accumulate, d_weights):
    """Go back through the time steps of `forward_group`.

    Needs `saved.d_logits`, and in `saved.d_gates` the gates' activations, whose place their gradients take. Turns
    `d_state` from the final state's gradients into the initial state's, the cost of blur included. Overwrites
    `saved.d_controls`, and the group's part of `d_inputs`, which may be empty. The maps' gradients in `d_weights` are
    added to what is there if `accumulate`, else overwritten.
    """
    heads, dtype = saved.weighting.shape[2], saved.d_logits.dtype
    _, _, width, rows = saved.memory.shape
    scratch = Scratch(
        gated=np.empty(rows, dtype),
        d_content=np.empty(rows, dtype),
        d_gated=np.empty(rows, dtype),
        d_shifted=np.empty(rows, dtype),
        d_dot=np.empty((heads, rows), dtype),
        row_norm_grad=np.zeros(rows, dtype),
        key_norm_grad=np.empty(heads, dtype),
        memory_before_erase=np.empty((width, rows), dtype),
    )
    for t in range(saved.d_logits.shape[0] - 1, -1, -1):
        step_backward(first, args, weights_transposed, saved, t, d_state, d_inputs, scratch)
    accumulate_map_gradients(args.sizes, saved, accumulate, d_weights)


@jit_refcounted
def split_reads_and_hidden(d_state, sizes):
    """Views of a `StateGrads`: the gradients of the reads (G, R M), and of the controller's output (G, C).

    The output is an LSTM's hidden state, h. Of a feed-forward controller it is no state: (G, 0).
    """
    d_both, reads_end = d_state.reads_and_hidden, reads_width(sizes)
    return d_both[:, :reads_end], d_both[:, reads_end : reads_end + state_cells(sizes)]


# The three that follow work on a shard, and make arrays.


@partial(jit_entry, refcounted=True)
def groups_forward(shard_first, shard_stop, args, buffers, save_for_backward, final):
    """Overwrite logits and final states. To save for backward, there is a buffer for each group, else a single one."""
    steps, group, rows = len(args.inputs), min(GROUP, shard_stop - shard_first), args.initial_state.memory.shape[2]
    weights, slots = unpack_weights(args.weights, args.sizes), steps if save_for_backward else 1
    for i, first in enumerate(range(shard_first, shard_stop, group)):
        saved, _ = carve_saved(buffers[i % len(buffers)], slots, group, rows, args.sizes, retain_activations=True)
        after = forward_group(first, args, weights, saved)
        store_state(first, args.sizes, after, saved, final)


@partial(jit_entry, refcounted=True)
def groups_backward(shard_first, shard_stop, args, buffers, d_logits, d_final, d_initial, d_inputs, d_weights_flat):
    """Go back from the gradients of logits and final states: overwrites those of initial states, inputs and maps."""
    steps, group, rows = len(args.inputs), min(GROUP, shard_stop - shard_first), args.initial_state.memory.shape[2]
    weights_transposed = unpack_transposed(args.weights_transposed, args.sizes)
    d_weights = unpack_weights(d_weights_flat, args.sizes)
    # By way of `d_initial`, autograd gives the learned initial state its gradients.
    d_weights.initial_reads[:], d_weights.initial_hidden[:], d_weights.initial_cell[:] = 0, 0, 0
    for i in range(len(buffers) - 1, -1, -1):  # what the last one left may still be in cache
        saved, d_state = carve_saved(buffers[i], steps, group, rows, args.sizes, retain_activations=True)
        first, (d_reads, d_hidden) = shard_first + i * group, split_reads_and_hidden(d_state, args.sizes)
        for t in range(steps):
            copy_matrix(d_logits[t, first : first + group], saved.d_logits[t])
            copy_matrix(saved.gates[t], saved.d_gates[t])  # activations: backward may be called once more
        d_state.reads_and_hidden[:] = 0
        for g in range(group):
            copy_matrix(d_final.memory[first + g], d_state.memory[g])
            copy_matrix(d_final.weighting[first + g], d_state.weighting[g])
            copy(d_final.cell[first + g], d_state.cell[g])
            copy(d_final.reads[first + g].reshape(d_reads.shape[1]), d_reads[g])
            copy(d_final.hidden[first + g], d_hidden[g])
        add_to_gradients = i < len(buffers) - 1
        backward_group(first, args, weights_transposed, saved, d_state, d_inputs, add_to_gradients, d_weights)
        for g in range(group):
            copy_matrix(d_state.memory[g], d_initial.memory[first + g])
            copy_matrix(d_state.weighting[g], d_initial.weighting[first + g])
            copy(d_state.cell[g], d_initial.cell[first + g])
            copy(d_reads[g], d_initial.reads[first + g].reshape(d_reads.shape[1]))
            copy(d_hidden[g], d_initial.hidden[first + g])


@partial(jit_entry, refcounted=True)
def groups_forward_backward(shard_first, shard_stop, args, loss_args, buffer, accumulate, d_weights_flat):
    """Each group forward, through the loss and back; returns the loss, and overwrites the logits.

    `d_weights_flat` gets the gradients of all parameters, the learned initial state's too: added to what is there if
    `accumulate`, else overwritten.
    """
    steps, group, rows = len(args.inputs), min(GROUP, shard_stop - shard_first), args.initial_state.memory.shape[2]
    weights, d_weights = unpack_weights(args.weights, args.sizes), unpack_weights(d_weights_flat, args.sizes)
    weights_transposed = unpack_transposed(args.weights_transposed, args.sizes)
    saved, d_state = carve_saved(buffer, steps, group, rows, args.sizes, retain_activations=False)
    if not accumulate:
        d_weights.initial_reads[:], d_weights.initial_hidden[:], d_weights.initial_cell[:] = 0, 0, 0
    loss, bits, dtype = 0.0, args.sizes.outputs, d_weights_flat.dtype
    d_reads, d_hidden = split_reads_and_hidden(d_state, args.sizes)
    bit_weights, bit_loss = np.empty((group, bits), dtype), np.empty(group * bits, dtype)
    no_d_inputs = np.empty((0, 0, 0), dtype)
    for first in range(shard_first, shard_stop, group):
        forward_group(first, args, weights, saved)
        loss += group_loss(first, args.logits, loss_args, saved, bit_weights, bit_loss)
        if args.blur_weight != 0:
            loss += group_blur(saved, args.blur_weight)
        d_state.memory[:], d_state.weighting[:], d_state.cell[:], d_state.reads_and_hidden[:] = 0, 0, 0, 0
        add_to_gradients = accumulate or first > shard_first
        backward_group(first, args, weights_transposed, saved, d_state, no_d_inputs, add_to_gradients, d_weights)
        accumulate_rows(d_reads, d_weights.initial_reads)
        accumulate_rows(d_hidden, d_weights.initial_hidden)
        accumulate_rows(d_state.cell, d_weights.initial_cell)
    return loss
