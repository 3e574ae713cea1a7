"""The controllers (ntm/controller.py), one step of one sequence, forward and backward."""

from ntm.fused.jit import jit
from ntm.fused.mathlib import ONE, TWO, sigmoid, tanh


@jit
def lstm(gates, cell, cell_mask, new_cell, tanh_cell, hidden):
    """One step of the LSTM. `gates` (4C) comes in as pre-activations and leaves as activations.

    `cell_mask` (C) is false where a cell is made to forget, or empty where none is.
    """
    size = cell.shape[0]
    gate_in, forget, candidate, gate_out = gates[:size], gates[size : 2 * size], gates[2 * size : -size], gates[-size:]
    for j in range(size):
        candidate[j] *= TWO
    for j in range(4 * size):  # all in one loop, of whole vectors: tanh(x) = 2 sigmoid(2 x) - 1
        gates[j] = sigmoid(gates[j])
    for j in range(size):
        candidate[j] = TWO * candidate[j] - ONE
    for j in range(size):
        new_cell[j] = forget[j] * cell[j] + gate_in[j] * candidate[j]
    for j in range(cell_mask.shape[0]):
        new_cell[j] *= cell.dtype.type(cell_mask[j])
    for j in range(size):
        tanh_cell[j] = tanh(new_cell[j])
        hidden[j] = gate_out[j] * tanh_cell[j]


@jit
def lstm_backward(gates, cell, cell_mask, tanh_cell, d_hidden, d_cell):
    """`gates` come in as activations and leave as gradients of the pre-activations.

    `d_cell` comes in as the gradient of c_t and leaves as that of c_{t-1}; `cell_mask` is as in `lstm`.
    """
    size = cell.shape[0]
    for j in range(size):
        gate_out = gates[3 * size + j]
        gates[3 * size + j] = d_hidden[j] * tanh_cell[j] * (gate_out - gate_out * gate_out)
        d_cell[j] += d_hidden[j] * (gate_out - gate_out * tanh_cell[j] * tanh_cell[j])
    for j in range(cell_mask.shape[0]):
        d_cell[j] *= cell.dtype.type(cell_mask[j])
    for j in range(size):
        gate_in, forget, candidate = gates[j], gates[size + j], gates[2 * size + j]
        gates[j] = d_cell[j] * candidate * (gate_in - gate_in * gate_in)
        gates[size + j] = d_cell[j] * cell[j] * (forget - forget * forget)
        gates[2 * size + j] = d_cell[j] * (gate_in - gate_in * candidate * candidate)
        d_cell[j] *= forget


@jit
def feedforward(units, output):
    """One step of the hidden layer. `units` (C) come in as pre-activations and leave as activations."""
    for j in range(units.shape[0]):
        units[j] = tanh(units[j])
        output[j] = units[j]


@jit
def feedforward_backward(units, d_hidden):
    """`units` come in as activations and leave as the gradients of the pre-activations."""
    for j in range(units.shape[0]):
        units[j] = d_hidden[j] * (ONE - units[j] * units[j])
