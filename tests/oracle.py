"""The paper's equations once more, as slowly and plainly as they can be written: loops over floats, one sequence."""

import math

import numpy as np

from ntm.addressing import LOG_EPSILON, NORM_EPSILON


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def softmax(xs):
    top = max(xs)
    powers = [math.exp(x - top) for x in xs]
    return [p / sum(powers) for p in powers]


def similarity(key, row):
    dot = sum(k * m for k, m in zip(key, row, strict=True))
    return dot / math.sqrt((sum(k * k for k in key) + NORM_EPSILON) * (sum(m * m for m in row) + NORM_EPSILON))


def address(memory, previous, key, beta, g, s, gamma):
    """One head: equations 6, 5, 7, 8, 9; w and w~. `s` is in the order of the shifts -1, 0, +1."""
    rows = len(memory)
    content = softmax([beta * similarity(key, row) for row in memory])
    gated = [g * content[i] + (1 - g) * previous[i] for i in range(rows)]
    shifted = [0.0] * rows
    for i in range(rows):
        for j in range(rows):
            for offset, weight in zip((-1, 0, 1), s, strict=True):
                if (j + offset) % rows == i:
                    shifted[i] += gated[j] * weight
    powers = [(w + LOG_EPSILON) ** gamma for w in shifted]
    return [p / sum(powers) for p in powers], shifted


def read(memory, weighting):
    width = len(memory[0])
    return [sum(weighting[i] * memory[i][m] for i in range(len(memory))) for m in range(width)]


def write(memory, weightings, erases, adds):
    new = [list(row) for row in memory]
    for w, e in zip(weightings, erases, strict=True):
        for i, row in enumerate(new):
            for m in range(len(row)):
                row[m] *= 1 - w[i] * e[m]
    for w, a in zip(weightings, adds, strict=True):
        for i, row in enumerate(new):
            for m in range(len(row)):
                row[m] += w[i] * a[m]
    return new


def linear(weight, bias, x):
    return [float(sum(a * b for a, b in zip(row, x, strict=True)) + c) for row, c in zip(weight, bias, strict=True)]


def lstm(p, seen, hidden, cell, mask):
    """One step; changes hidden and cell in place."""
    sums = linear(p["controller.gate_proj.weight"], p["controller.gate_proj.bias"], [*seen, *hidden])
    size = len(hidden)
    for j in range(size):
        i, f, c, o = (sums[k * size + j] for k in range(4))
        cell[j] = sigmoid(f) * cell[j] + sigmoid(i) * math.tanh(c)
        if mask is not None:
            cell[j] *= mask[j]
        hidden[j] = sigmoid(o) * math.tanh(cell[j])
    return hidden


def feedforward(p, seen):
    return [math.tanh(x) for x in linear(p["controller.hidden_proj.weight"], p["controller.hidden_proj.bias"], seen)]


def unroll(model, inputs, state, cell_mask=None):
    """Run one sequence, inputs (T, I), from a state of arrays without batch dimension; logits and the last state.

    A state is memory, weighting and reads, and of an LSTM controller its hidden state and cell.
    """
    p = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    memory, weighting, reads, *controller = (np.asarray(part, dtype=float).tolist() for part in state)
    readers, writers = model.heads.num_read, model.heads.num_write
    heads, width = readers + writers, len(memory[0])
    logits = []
    for t, x in enumerate(inputs):
        seen = [*x, *(value for row in reads for value in row)]
        mask = None if cell_mask is None else cell_mask[t]
        output = lstm(p, seen, *controller, mask) if controller else feedforward(p, seen)
        controls = iter(linear(p["heads.control_proj.weight"], p["heads.control_proj.bias"], output))
        keys = [[next(controls) for _ in range(width)] for _ in range(heads)]
        betas = [softplus(next(controls)) for _ in range(heads)]
        gates = [sigmoid(next(controls)) for _ in range(heads)]
        shifts = [softmax([next(controls) for _ in range(3)]) for _ in range(heads)]
        gammas = [1 + softplus(next(controls)) for _ in range(heads)]
        erases = [[sigmoid(next(controls)) for _ in range(width)] for _ in range(writers)]
        adds = [[next(controls) for _ in range(width)] for _ in range(writers)]
        weighting = [
            address(memory, weighting[h], keys[h], betas[h], gates[h], shifts[h], gammas[h])[0] for h in range(heads)
        ]
        reads = [read(memory, w) for w in weighting[:readers]]
        memory = write(memory, weighting[readers:], erases, adds)
        answer = [*(value for row in reads for value in row), *output]
        logits.append(linear(p["output_proj.weight"], p["output_proj.bias"], answer))
    return np.array(logits), [np.array(part) for part in (memory, weighting, reads, *controller)]
