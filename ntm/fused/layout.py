"""Flat arrays and the views that they are carved into: weights, and what a group of sequences saves for backward.

Memory is [M][N] here: `memory[m]` is column m of the paper's, number m of all rows, so that the N rows lie along the
vector lanes. Step t of a group has slot `t % slots`, and in arrays that carry a value on to the next step,
`t % (slots + 1)`: as many slots as steps, or one where no gradient is wanted.

B sequences of T steps, I inputs and O outputs; C cells or units; N rows of width M; R read heads and as many write
heads, H of both; P controls of all heads; G sequences of a group.
"""

import math
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from ntm.fused.jit import jit, jit_entry, jit_refcounted


class Sizes(NamedTuple):
    """A machine's own sizes."""

    inputs: int  # I
    num_read_heads: int  # R
    width: int  # M
    cells: int  # C
    outputs: int  # O
    lstm: bool  # the controller is an LSTM; else feed-forward, and C is the number of its units


class State(NamedTuple):
    """An `NTMState`, or its gradient, of B sequences, or one for all. A feed-forward controller has no state."""

    memory: np.ndarray  # (B, M, N)
    weighting: np.ndarray  # (B, H, N)
    reads: np.ndarray  # (B, R, M)
    hidden: np.ndarray  # (B, C), or (B, 0)
    cell: np.ndarray  # (B, C), or (B, 0)


class Weights(NamedTuple):
    """All parameters, or their gradients, as `NTM.flatten_parameters` lays them out.

    A row of `controller_input` is input, last reads, last controller output and a 1. Each map multiplies a contiguous
    slice of it; its last row is its bias, which the 1 multiplies. A feed-forward controller's map does not take the
    last output, which lies before the 1: so its bias is added apart.
    """

    gate_proj: np.ndarray  # (I + R M + C + 1, 4 C); of a feed-forward controller (I + R M + 1, C)
    control_proj: np.ndarray  # (C + 1, P)
    output_proj: np.ndarray  # (R M + C + 1, O)
    initial_reads: np.ndarray  # (R M), learned
    initial_hidden: np.ndarray  # (C), or (0)
    initial_cell: np.ndarray  # (C), or (0)


class TransposedWeights(NamedTuple):
    """The three maps transposed, for the way back."""

    gate_proj: np.ndarray  # (4 C, I + R M + C + 1); of a feed-forward controller (C, I + R M + 1)
    control_proj: np.ndarray  # (P, C + 1)
    output_proj: np.ndarray  # (O, R M + C + 1)


class SavedForBackward(NamedTuple):
    """What G sequences leave behind, by time slot: with a slot for each step for the way back, else with one slot.

    Carried values have one slot more, for the initial state. A feed-forward controller has C gates, its units, and no
    cell: the arrays of cells are empty.
    """

    memory: np.ndarray  # (slots + 1, G, M, N)
    weighting: np.ndarray  # (slots + 1, G, H, N)
    cell: np.ndarray  # (slots + 1, G, C)
    # [x_t, r_{t-1}, h_{t-1}, 1] in the slot before step t. The slot after it ends with [r_t, h_t, 1], which the output
    # map takes, and with [h_t, 1], which the control map takes.
    controller_input: np.ndarray  # (slots + 1, G, I + R M + C + 1)
    gates: np.ndarray  # (slots, G, 4 C): activations
    tanh_cell: np.ndarray  # (slots, G, C): tanh c_t
    controls: np.ndarray  # (slots, G, P): activated
    inverse_norm: np.ndarray  # (slots, G, N): 1 / |M(n)|
    similarity: np.ndarray  # (slots, G, H, N): K (eq. 6)
    content: np.ndarray  # (slots, G, H, N): w^c (eq. 5)
    shifted: np.ndarray  # (slots, G, H, N): w~ (eq. 8)
    log_shifted: np.ndarray  # (slots, G, H, N): log w~ (eq. 9)
    d_logits: np.ndarray  # (slots, G, O), filled before the way back
    d_gates: np.ndarray  # (slots, G, 4 C): activations, then gradients of pre-activations; may be `gates`
    d_controls: np.ndarray  # (slots, G, P), filled on the way back


class StateGrads(NamedTuple):
    """Gradients of a group's final state; `backward_group` turns them into those of the initial state, in place."""

    memory: np.ndarray  # (G, M, N)
    weighting: np.ndarray  # (G, H, N)
    cell: np.ndarray  # (G, C)
    reads_and_hidden: np.ndarray  # (G, R M + C): r_t, and h_t, the controller's output


@jit_refcounted
def carve(flat, at, shape):
    """An array of this shape out of a flat one, and where it ends there."""
    count = 1
    for length in shape:
        count *= length
    return flat[at : at + count].reshape(shape), at + count


# `register_jitable`: Python calls these four as well as compiled code.


@register_jitable
def align_up(at):
    """Where the next cache line begins, in numbers: 64 bytes, or two lines of float64."""
    return (at + 15) // 16 * 16


@register_jitable
def state_cells(sizes):
    """Width of the hidden state and of the cell that the controller carries from step to step."""
    return sizes.cells if sizes.lstm else 0


@register_jitable
def reads_width(sizes):
    """Width of what all read heads read, R M."""
    return sizes.num_read_heads * sizes.width


@register_jitable
def controls_width(sizes):
    """Width of all controls, P: a key and 6 numbers (3 of them shifts) of each head, two rows of each write head."""
    return 2 * sizes.num_read_heads * (sizes.width + 6) + sizes.num_read_heads * 2 * sizes.width


@jit_refcounted
def map_shapes(sizes):
    """The shapes of the three maps in `Weights`."""
    reads, cells = reads_width(sizes), sizes.cells
    gates = (sizes.inputs + reads + cells + 1, 4 * cells) if sizes.lstm else (sizes.inputs + reads + 1, cells)
    return gates, (cells + 1, controls_width(sizes)), (reads + cells + 1, sizes.outputs)


@jit_refcounted
def unpack_weights(flat, sizes):
    """Views of a flat array as `Weights`."""
    gate_shape, control_shape, output_shape = map_shapes(sizes)
    gate_proj, at = carve(flat, 0, gate_shape)
    control_proj, at = carve(flat, at, control_shape)
    output_proj, at = carve(flat, at, output_shape)
    hidden_at = at + reads_width(sizes)
    cell_at = hidden_at + state_cells(sizes)
    return Weights(gate_proj, control_proj, output_proj, flat[at:hidden_at], flat[hidden_at:cell_at], flat[cell_at:])


@jit_refcounted
def unpack_transposed(flat, sizes):
    """Views of a flat array as `TransposedWeights`."""
    gate_shape, control_shape, output_shape = map_shapes(sizes)
    gate_proj, at = carve(flat, 0, gate_shape[::-1])
    control_proj, at = carve(flat, at, control_shape[::-1])
    output_proj, at = carve(flat, at, output_shape[::-1])
    return TransposedWeights(gate_proj, control_proj, output_proj)


@jit
def transpose(a, out):
    """Transpose `a` into `out`, eight rows at a time, which are read side by side: eight numbers of `out` at once."""
    rows, columns = a.shape
    for start in range(0, rows - 7, 8):
        for j in range(columns):
            eight = out[j, start : start + 8]
            for i in range(8):
                eight[i] = a[start + i, j]
    for i in range(rows - rows % 8, rows):
        for j in range(columns):
            out[j, i] = a[i, j]


@partial(jit_entry, refcounted=True)
def transpose_weights(weights, sizes, weights_transposed):
    """Fill `weights_transposed` with the maps in `weights`, transposed."""
    maps, maps_t = unpack_weights(weights, sizes), unpack_transposed(weights_transposed, sizes)
    transpose(maps.gate_proj, maps_t.gate_proj)
    transpose(maps.control_proj, maps_t.control_proj)
    transpose(maps.output_proj, maps_t.output_proj)


@jit_refcounted
def saved_shapes(slots, group, rows, sizes, retain_activations):
    """The shapes of `SavedForBackward` and `StateGrads`; `retain_activations` where backward may be called again."""
    heads, width, controls = 2 * sizes.num_read_heads, sizes.width, controls_width(sizes)
    reads_and_hidden = reads_width(sizes) + sizes.cells
    by_head = slots, group, heads, rows
    cells, gates = (sizes.cells, 4 * sizes.cells) if sizes.lstm else (0, sizes.cells)
    saved = SavedForBackward(
        memory=(slots + 1, group, width, rows),
        weighting=(slots + 1, group, heads, rows),
        cell=(slots + 1, group, cells),
        controller_input=(slots + 1, group, sizes.inputs + reads_and_hidden + 1),
        gates=(slots, group, gates),
        tanh_cell=(slots, group, cells),
        controls=(slots, group, controls),
        inverse_norm=(slots, group, rows),
        similarity=by_head,
        content=by_head,
        shifted=by_head,
        log_shifted=by_head,
        d_logits=(slots, group, sizes.outputs),
        d_gates=(slots if retain_activations else 0, group, gates),
        d_controls=(slots, group, controls),
    )
    return saved, StateGrads((group, width, rows), (group, heads, rows), (group, cells), (group, reads_and_hidden))


@jit_refcounted
def carve_saved(buffer, slots, group, rows, sizes, retain_activations):
    """Views of a flat array as `SavedForBackward` and `StateGrads`, each array at the beginning of a cache line."""
    shapes, d_shapes = saved_shapes(slots, group, rows, sizes, retain_activations)
    memory, at = carve(buffer, 0, shapes.memory)
    weighting, at = carve(buffer, align_up(at), shapes.weighting)
    cell, at = carve(buffer, align_up(at), shapes.cell)
    controller_input, at = carve(buffer, align_up(at), shapes.controller_input)
    gates, at = carve(buffer, align_up(at), shapes.gates)
    tanh_cell, at = carve(buffer, align_up(at), shapes.tanh_cell)
    controls, at = carve(buffer, align_up(at), shapes.controls)
    inverse_norm, at = carve(buffer, align_up(at), shapes.inverse_norm)
    similarity, at = carve(buffer, align_up(at), shapes.similarity)
    content, at = carve(buffer, align_up(at), shapes.content)
    shifted, at = carve(buffer, align_up(at), shapes.shifted)
    log_shifted, at = carve(buffer, align_up(at), shapes.log_shifted)
    d_logits, at = carve(buffer, align_up(at), shapes.d_logits)
    d_gates, at = carve(buffer, align_up(at), shapes.d_gates)
    d_controls, at = carve(buffer, align_up(at), shapes.d_controls)
    d_memory, at = carve(buffer, align_up(at), d_shapes.memory)
    d_weighting, at = carve(buffer, align_up(at), d_shapes.weighting)
    d_cell, at = carve(buffer, align_up(at), d_shapes.cell)
    d_reads_and_hidden, at = carve(buffer, align_up(at), d_shapes.reads_and_hidden)
    carried = memory, weighting, cell, controller_input
    addressing = inverse_norm, similarity, content, shifted, log_shifted
    gradients = d_logits, d_gates if retain_activations else gates, d_controls
    saved = SavedForBackward(*(carried + (gates, tanh_cell, controls) + addressing + gradients))  # noqa: RUF005 (Numba)
    return saved, StateGrads(d_memory, d_weighting, d_cell, d_reads_and_hidden)


@cache
def workspace_size(slots: int, group: int, rows: int, sizes: Sizes, retain_activations: bool) -> int:
    """How many numbers `carve_saved` needs, with the same arguments."""
    saved, gradients = saved_shapes.py_func(slots, group, rows, sizes, retain_activations)
    return sum(align_up(math.prod(shape)) for shape in (*saved, *gradients))


@jit
def input_offsets(sizes):
    """Where the reads begin in a row of `controller_input`, and where h, the controller's output, does."""
    return sizes.inputs, sizes.inputs + reads_width(sizes)
