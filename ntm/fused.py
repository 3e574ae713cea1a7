"""The fast path: a whole unroll of the NTM, forward and hand-derived backward, as one call on the CPU.

A time step of the readable model (ntm/ntm.py) is about sixty small PyTorch operations, and starting them takes longer
than their arithmetic. Here a step is plain loops, compiled by Numba, around BLAS matrix products. The readable model is
the definition; this file computes the same numbers, and the tests hold one against the other.

How it is laid out
    * Memory is [M][N] here, a row of the paper a column, so that the N rows lie along the vector lanes.
    * Sequences go in groups of 8. `unroll` takes all groups forward and, when autograd asks, all of them back;
      `forward_backward` takes each there and back before the next, so that what it keeps stays in cache. Groups are
      shared out over threads, in parts that do not depend on the number of threads; so neither does any result.
    * `History` holds what backward needs. Step t has slot `t % slots`, and in arrays that carry a value on to the next
      step, `t % (slots + 1)`: as many slots as steps, or a single one where no gradient is wanted.
    * There is a write head for each read head; heads are numbered read heads first.
    * Each equation is a small function with its backward next to it. A gradient carries the name of its variable with a
      `d_` in front. Backward functions that several users of a value share add to its gradient, others set it.
    * Loops avoid literals such as `1 - x`: an integer beside a float32 would make Numba compute in float64.
"""

import ctypes
import math
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.cpu import CPUTargetOptions
from numba.extending import get_cython_function_address, intrinsic, overload
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ntm import addressing
from ntm.ntm import FREE, NOTHING, NTM, Costs, Dropped, NTMState

# The arrays that one of the small functions below takes never overlap. Numba has a flag that says so, but no option for
# it; without, each short loop would begin with comparing all its arrays' addresses, which takes longer than the loop.
CPUTargetOptions.noalias = CPUTargetOptions.Mapping("noalias")
if config.CPU_FEATURES is None and platform.machine() in ("x86_64", "AMD64"):  # vectors as wide as the processor has
    config.CPU_FEATURES = llvmlite.binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"
# Sums may be reordered and products fused, which vectorises them; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function, counted: bool = False):
    """Compile a function with Numba: cached on disk where that can be written, without Python's global lock.

    Unless `counted`, arrays are not reference-counted, which costs more than the arithmetic where a loop makes many
    small views; such a function can take views of the arrays that it is given, and make no array of its own. It is
    always inlined: a copy of its own would be rounded differently by the process that compiles than by those to come.
    """
    options = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
    options |= {"_nrt": counted, "noalias": not counted, "forceinline": not counted}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # Numba found no folder for its cache
        return njit(function, **options)


def compiled_with_counts(function):
    """Compile a function that calls BLAS or makes arrays."""
    return compiled(function, counted=True)


# --- exp and log that vectorise ---------------------------------------------------------------------------------------
# In float32, polynomials: a call of the C library would keep a loop from being vectorised. In float64, the C library.

LOG2_E = np.float32(1 / math.log(2))
LN2_HIGH, LN2_LOW = (
    np.float32(0.693359375),
    np.float32(math.log(2) - 0.693359375),
)  # n * LN2_HIGH is exact for |n| < 2^9
EXP_LOW, EXP_HIGH = np.float32(-87), np.float32(88)
E7, E6, E5, E4, E3 = (np.float32(1 / math.factorial(n)) for n in (7, 6, 5, 4, 3))
L9, L7, L5, L3 = (np.float32(2 / n) for n in (9, 7, 5, 3))
# Written out: Numba's cache notices a change in this file, and would not notice one in ntm/addressing.py.
NORM_EPSILON, LOG_EPSILON = np.float32(2.0**-20), np.float32(2.0**-53)
assert (NORM_EPSILON, LOG_EPSILON) == (addressing.NORM_EPSILON, addressing.LOG_EPSILON)
HALF, ONE, TWO = np.float32(0.5), np.float32(1), np.float32(2)  # float32 constants leave float64 sums in float64
BIAS, MANTISSA_BITS, SQRT_HALF_BITS = np.int32(127), np.int32(23), np.float32(math.sqrt(0.5)).view(np.int32)


def exp(x):
    """e^x, in compiled code only."""


def log(x):
    """The natural logarithm of x > 0, in compiled code only."""


@overload(exp)
def _exp(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp32(x):
        x = EXP_LOW if x < EXP_LOW else x
        x = EXP_HIGH if x > EXP_HIGH else x
        n = np.floor(x * LOG2_E + HALF)
        r = x - n * LN2_HIGH - n * LN2_LOW  # |r| <= ln(2) / 2, and e^x = 2^n e^r
        series = ((((((E7 * r + E6) * r + E5) * r + E4) * r + E3) * r + HALF) * r + ONE) * r + ONE
        return series * np.int32((np.int32(n) + BIAS) << MANTISSA_BITS).view(np.float32)

    return exp32


@overload(log)
def _log(x):
    if x != types.float32:
        return lambda x: math.log(x)

    def log32(x):
        bits = np.float32(x).view(np.int32)
        exponent = np.int32(bits - SQRT_HALF_BITS) >> MANTISSA_BITS
        m = np.int32(bits - (exponent << MANTISSA_BITS)).view(np.float32)  # in [sqrt(1/2), sqrt(2))
        s = (m - ONE) / (m + ONE)
        square = s * s
        series = (((L9 * square + L7) * square + L5) * square + L3) * square + TWO  # log m = 2 artanh s
        n = np.float32(exponent)
        return s * series + n * LN2_LOW + n * LN2_HIGH + (x - x)  # the last term hands a NaN on

    return log32


def order(x):
    """A whole number that is larger where x is, in compiled code only: a search among floats would not vectorise."""


def unorder(x):
    """The way back from `order`, in compiled code only."""


LOW_BITS = np.int32(0x7FFFFFFF)


@overload(order)
def _order(x):
    if x != types.float32:
        return lambda x: x

    def order32(x):
        bits = np.float32(x).view(np.int32)
        return np.int32(bits ^ ((bits >> np.int32(31)) & LOW_BITS))

    return order32


@overload(unorder)
def _unorder(x):
    if x != types.int32:
        return lambda x: x

    return lambda x: np.int32(x ^ ((x >> np.int32(31)) & LOW_BITS)).view(np.float32)


@compiled
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@compiled
def tanh(x):
    return TWO / (ONE + exp(-TWO * x)) - ONE


@compiled
def softplus(x):
    return max(x, x - x) + log(ONE + exp(-abs(x)))


# --- Loops that others share ------------------------------------------------------------------------------------------


@compiled
def dot(a, b):
    total = a.dtype.type(0)
    for n in range(a.shape[0]):
        total += a[n] * b[n]
    return total


@compiled
def copy(a, out):
    for n in range(a.shape[0]):
        out[n] = a[n]


@compiled
def largest(a):
    top = order(a[0])
    for n in range(a.shape[0]):
        top = max(top, order(a[n]))
    return unorder(top)


# --- The controller ---------------------------------------------------------------------------------------------------


@compiled
def lstm(gates, cell, cell_mask, new_cell, tanh_cell, hidden):
    """One step of the LSTM. `gates` (4C) holds sums when it comes in and activations when it leaves."""
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
    for j in range(cell_mask.shape[0]):  # empty where no cell is made to forget
        new_cell[j] *= cell_mask[j]
    for j in range(size):
        tanh_cell[j] = tanh(new_cell[j])
        hidden[j] = gate_out[j] * tanh_cell[j]


@compiled
def lstm_backward(gates, cell, cell_mask, tanh_cell, d_hidden, d_cell, d_gates):
    """`d_cell` comes in as the gradient of c_t and leaves as that of c_{t-1}."""
    size = cell.shape[0]
    for j in range(size):
        output = gates[3 * size + j]
        d_gates[3 * size + j] = d_hidden[j] * tanh_cell[j] * (output - output * output)
        d_cell[j] += d_hidden[j] * (output - output * tanh_cell[j] * tanh_cell[j])
    for j in range(cell_mask.shape[0]):
        d_cell[j] *= cell_mask[j]
    for j in range(size):
        gate_in, forget, candidate = gates[j], gates[size + j], gates[2 * size + j]
        d_gates[j] = d_cell[j] * candidate * (gate_in - gate_in * gate_in)
        d_gates[size + j] = d_cell[j] * cell[j] * (forget - forget * forget)
        d_gates[2 * size + j] = d_cell[j] * (gate_in - gate_in * candidate * candidate)
        d_cell[j] *= forget


# --- The controls -----------------------------------------------------------------------------------------------------


class Controls(NamedTuple):
    """Views of one sequence's controls at one step, in the order of ntm/heads.py; each is flat, heads first."""

    key: np.ndarray  # (H * M)
    key_strength: np.ndarray  # (H)
    interpolation_gate: np.ndarray  # (H)
    shift_weighting: np.ndarray  # (H * 3)
    sharpening: np.ndarray  # (H)
    erase: np.ndarray  # (W * M)
    add: np.ndarray  # (W * M)


@compiled
def named(flat, heads, width):
    """Cut the output of the controls map (P) into named controls."""
    a = heads * width
    b, c, d, e = a + heads, a + 2 * heads, a + 5 * heads, a + 6 * heads
    f = e + heads // 2 * width
    return Controls(flat[:a], flat[a:b], flat[b:c], flat[c:d], flat[d:e], flat[e:f], flat[f:])


@compiled
def activate(c):
    """Bring each control into the range that its equation asks for, in place."""
    for h in range(c.key_strength.shape[0]):
        c.key_strength[h] = softplus(c.key_strength[h])
        c.interpolation_gate[h] = sigmoid(c.interpolation_gate[h])
        s = c.shift_weighting[3 * h : 3 * h + 3]
        top = max(s[0], s[1], s[2])
        s[0], s[1], s[2] = exp(s[0] - top), exp(s[1] - top), exp(s[2] - top)
        total = s[0] + s[1] + s[2]
        s[0], s[1], s[2] = s[0] / total, s[1] / total, s[2] / total
        c.sharpening[h] = ONE + softplus(c.sharpening[h])
    for m in range(c.erase.shape[0]):
        c.erase[m] = sigmoid(c.erase[m])


@compiled
def activate_backward(c, d):
    """Turn gradients of activated controls into those of the sums, in place. The key and add have no activation."""
    for h in range(c.key_strength.shape[0]):
        d.key_strength[h] *= ONE - exp(-c.key_strength[h])  # softplus' = sigmoid = 1 - exp(-softplus)
        d.interpolation_gate[h] *= c.interpolation_gate[h] - c.interpolation_gate[h] * c.interpolation_gate[h]
        s, d_s = c.shift_weighting[3 * h : 3 * h + 3], d.shift_weighting[3 * h : 3 * h + 3]
        mean = s[0] * d_s[0] + s[1] * d_s[1] + s[2] * d_s[2]
        d_s[0], d_s[1], d_s[2] = s[0] * (d_s[0] - mean), s[1] * (d_s[1] - mean), s[2] * (d_s[2] - mean)
        d.sharpening[h] *= ONE - exp(ONE - c.sharpening[h])
    for m in range(c.erase.shape[0]):
        d.erase[m] *= c.erase[m] - c.erase[m] * c.erase[m]


# --- Addressing, one head of one sequence -----------------------------------------------------------------------------


@compiled
def compare(memory, keys, squares, similarity):
    """The products of eq. 6: fills `squares` with |M(n)|^2, and `similarity` with each head's k.M(n).

    Two heads a pass and four columns at a time, so as to touch each number as rarely as can be.
    """
    width, rows = memory.shape
    squares[:] = NORM_EPSILON
    similarity[:] = memory.dtype.type(0)
    for h in range(0, similarity.shape[0], 2):
        first = h == 0
        one, two = similarity[h], similarity[h + 1]
        k, j = keys[h * width : (h + 1) * width], keys[(h + 1) * width : (h + 2) * width]
        for m in range(0, width - 3, 4):
            k0, k1, k2, k3, j0, j1, j2, j3 = k[m], k[m + 1], k[m + 2], k[m + 3], j[m], j[m + 1], j[m + 2], j[m + 3]
            m0, m1, m2, m3 = memory[m], memory[m + 1], memory[m + 2], memory[m + 3]
            if first:
                for n in range(rows):
                    squares[n] += m0[n] * m0[n] + m1[n] * m1[n] + m2[n] * m2[n] + m3[n] * m3[n]
                    one[n] += k0 * m0[n] + k1 * m1[n] + k2 * m2[n] + k3 * m3[n]
                    two[n] += j0 * m0[n] + j1 * m1[n] + j2 * m2[n] + j3 * m3[n]
            else:
                for n in range(rows):
                    one[n] += k0 * m0[n] + k1 * m1[n] + k2 * m2[n] + k3 * m3[n]
                    two[n] += j0 * m0[n] + j1 * m1[n] + j2 * m2[n] + j3 * m3[n]
        for m in range(width - width % 4, width):
            for n in range(rows):
                if first:
                    squares[n] += memory[m, n] * memory[m, n]
                one[n] += k[m] * memory[m, n]
                two[n] += j[m] * memory[m, n]


@compiled
def softmax(logits):
    """In place."""
    top = largest(logits)
    total = top - top
    for n in range(logits.shape[0]):
        logits[n] = exp(logits[n] - top)
        total += logits[n]
    scale = ONE / total
    for n in range(logits.shape[0]):
        logits[n] *= scale


@compiled
def content_weighting(inverse_norm, key, key_strength, similarity, content):
    """eq. 6 and 5: `similarity` comes in as products and leaves as K; fills `content` (w^c)."""
    inverse_key_norm = ONE / np.sqrt(dot(key, key) + NORM_EPSILON)
    for n in range(similarity.shape[0]):
        similarity[n] *= inverse_norm[n] * inverse_key_norm
        content[n] = key_strength * similarity[n]
    softmax(content)


@compiled
def content_weighting_backward(inverse_norm, key, key_strength, similarity, content, d_content, direct, along_row):
    """The gradient of eq. 5, and of eq. 6 up to the products with memory, which `memory_backward` has.

    With u.v / (|u| |v|) for K: sets `direct`, the gradient of u.v, and adds to `along_row`, that of |v|^2, doubled and
    negative. Returns d_key_strength and the like of `along_row` for the key.
    """
    inverse_key_norm = ONE / np.sqrt(dot(key, key) + NORM_EPSILON)
    mean = dot(d_content, content)
    d_key_strength = along_key = mean - mean
    for n in range(similarity.shape[0]):
        d_logit = content[n] * (d_content[n] - mean)
        d_key_strength += d_logit * similarity[n]
        along = key_strength * d_logit * similarity[n]
        along_key += along
        along_row[n] += along * inverse_norm[n] * inverse_norm[n]
        direct[n] = key_strength * d_logit * inverse_norm[n] * inverse_key_norm
    return d_key_strength, along_key * inverse_key_norm * inverse_key_norm


@compiled
def interpolate(content, previous, gate, gated):
    """eq. 7."""
    for n in range(gated.shape[0]):
        gated[n] = previous[n] + gate * (content[n] - previous[n])


@compiled
def interpolate_backward(content, previous, gate, d_gated, d_content, d_previous):
    """Sets `d_content` and `d_previous`; returns d_gate."""
    d_gate = gate - gate
    for n in range(d_gated.shape[0]):
        d_gate += d_gated[n] * (content[n] - previous[n])
        d_content[n] = gate * d_gated[n]
        d_previous[n] = d_gated[n] - d_content[n]
    return d_gate


@compiled
def shift(gated, s, shifted):
    """eq. 8: row i takes from rows i + 1, i and i - 1, around the ends."""
    back, stay, forward, last = s[0], s[1], s[2], gated.shape[0] - 1
    for i in range(1, last):
        shifted[i] = back * gated[i + 1] + stay * gated[i] + forward * gated[i - 1]
    shifted[0] = back * gated[min(1, last)] + stay * gated[0] + forward * gated[last]
    if last > 0:
        shifted[last] = back * gated[0] + stay * gated[last] + forward * gated[last - 1]


@compiled
def shift_backward(gated, s, d_shifted, d_gated, d_s):
    """Sets `d_gated` and `d_s`. The convolution with the mirrored shifts."""
    back, stay, forward, last = s[0], s[1], s[2], gated.shape[0] - 1
    for i in range(1, last):
        d_gated[i] = back * d_shifted[i - 1] + stay * d_shifted[i] + forward * d_shifted[i + 1]
    d_gated[0] = back * d_shifted[last] + stay * d_shifted[0] + forward * d_shifted[min(1, last)]
    if last > 0:
        d_gated[last] = back * d_shifted[last - 1] + stay * d_shifted[last] + forward * d_shifted[0]
    d_s[0] = dot(d_shifted[:last], gated[1:]) + d_shifted[last] * gated[0]
    d_s[1] = dot(d_shifted, gated)
    d_s[2] = dot(d_shifted[1:], gated[:last]) + d_shifted[0] * gated[last]


@compiled
def sharpen(shifted, sharpening, log_shifted, weighting):
    """eq. 9: fills `log_shifted` and `weighting`."""
    for n in range(shifted.shape[0]):
        log_shifted[n] = log(shifted[n] + LOG_EPSILON)
        weighting[n] = sharpening * log_shifted[n]
    softmax(weighting)


@compiled
def sharpen_backward(shifted, sharpening, log_shifted, weighting, d_weighting, d_shifted):
    """Sets `d_shifted`; returns d_sharpening."""
    mean = dot(d_weighting, weighting)
    d_sharpening = mean - mean
    for n in range(shifted.shape[0]):
        d_logit = weighting[n] * (d_weighting[n] - mean)
        d_sharpening += d_logit * log_shifted[n]
        d_shifted[n] = sharpening * d_logit / (shifted[n] + LOG_EPSILON)
    return d_sharpening


@compiled
def charge_blur(cost, weighting, d_weighting):
    """Adds to `d_weighting` the gradient of `cost` * (1 - sum_n w(n)^2)."""
    for n in range(weighting.shape[0]):
        d_weighting[n] -= TWO * cost * weighting[n]


# --- Reading and writing, all heads of one sequence -------------------------------------------------------------------


@compiled
def read(memory, weighting, reads):
    """eq. 2. Fills `reads` (R * M)."""
    width = memory.shape[0]
    for h in range(weighting.shape[0]):
        for m in range(width):
            reads[h * width + m] = dot(weighting[h], memory[m])


@compiled
def write(memory, weighting, erase, add, new_memory):
    """eq. 3 and 4."""
    width, rows = memory.shape
    erased = memory
    for h in range(1, weighting.shape[0]):  # all heads erase ...
        for m in range(width):
            for n in range(rows):
                new_memory[m, n] = erased[m, n] - erased[m, n] * weighting[h, n] * erase[h * width + m]
        erased = new_memory
    for m in range(width):  # (the first head erases last and adds first, in one pass)
        for n in range(rows):
            new_memory[m, n] = erased[m, n] + weighting[0, n] * (add[m] - erased[m, n] * erase[m])
    for h in range(1, weighting.shape[0]):  # ... before any adds
        for m in range(width):
            for n in range(rows):
                new_memory[m, n] += weighting[h, n] * add[h * width + m]


@compiled
def read_write_backward(memory, weighting, erase, add, d_reads, d_memory, d_weighting, d_erase, d_add, scratch):
    """The gradient of eq. 2, 3 and 4 but for that of the memory, which `memory_backward` has.

    `d_memory` is the gradient of M_t. Adds to `d_weighting`, of all heads; sets `d_erase` and `d_add`.
    """
    (width, rows), readers, zero = memory.shape, weighting.shape[0] // 2, memory.dtype.type(0)
    for h in range(readers):
        found = memory  # what this head had to erase: the memory, less what the other heads erased
        for other in range(readers):
            if other != h:
                for m in range(width):
                    for n in range(rows):
                        scratch[m, n] = (
                            found[m, n] - found[m, n] * weighting[readers + other, n] * erase[other * width + m]
                        )
                found = scratch
        reading, writing, written = d_weighting[h], d_weighting[readers + h], weighting[readers + h]
        for m in range(width):
            erase_m, add_m, d_read = erase[h * width + m], add[h * width + m], d_reads[h * width + m]
            total_erase = total_add = zero
            row, had, d_row = memory[m], found[m], d_memory[m]
            for n in range(rows):
                d_written = d_row[n] * written[n]
                total_add += d_written
                total_erase += d_written * had[n]
                writing[n] += d_row[n] * (add_m - erase_m * had[n])
                reading[n] += d_read * row[n]
            d_add[h * width + m] = total_add
            d_erase[h * width + m] = -total_erase


@compiled
def memory_backward(memory, weighting, erase, keys, d_reads, direct, along_row, along_key, d_memory, d_keys):
    """The memory's gradient by eq. 2, 3, 4 and 6. `d_memory` comes in as that of M_t and leaves as that of M_{t-1}.

    Sets `d_keys`. One pass for each read head with a write head; `along_row` counts once, and is left at 0.
    """
    (width, rows), readers, zero = memory.shape, weighting.shape[0] // 2, memory.dtype.type(0)
    for h in range(1, readers):  # all heads erase before any adds
        for m in range(width):
            for n in range(rows):
                d_memory[m, n] -= d_memory[m, n] * weighting[readers + h, n] * erase[h * width + m]
    for h in range(readers):
        one, two, read, written = direct[h], direct[readers + h], weighting[h], weighting[readers + h]
        k, j = keys[h * width : (h + 1) * width], keys[(readers + h) * width : (readers + h + 1) * width]
        d_k, d_j = d_keys[h * width : (h + 1) * width], d_keys[(readers + h) * width : (readers + h + 1) * width]
        e, d_read = erase[h * width : (h + 1) * width], d_reads[h * width : (h + 1) * width]
        erases = memory.dtype.type(h == 0)
        for m in range(0, width - 1, 2):
            p = m + 1
            row, d_row, row_p, d_row_p = memory[m], d_memory[m], memory[p], d_memory[p]
            k_m, j_m, e_m, r_m = k[m], j[m], e[m] * erases, d_read[m]
            k_p, j_p, e_p, r_p = k[p], j[p], e[p] * erases, d_read[p]
            total_k = total_j = total_k_p = total_j_p = zero
            for n in range(rows):
                total_k += one[n] * row[n]
                total_j += two[n] * row[n]
                total_k_p += one[n] * row_p[n]
                total_j_p += two[n] * row_p[n]
                kept, kept_p = d_row[n] - d_row[n] * written[n] * e_m, d_row_p[n] - d_row_p[n] * written[n] * e_p
                d_row[n] = kept + r_m * read[n] + one[n] * k_m + two[n] * j_m - along_row[n] * row[n]
                d_row_p[n] = kept_p + r_p * read[n] + one[n] * k_p + two[n] * j_p - along_row[n] * row_p[n]
            d_k[m], d_j[m] = total_k - along_key[h] * k_m, total_j - along_key[readers + h] * j_m
            d_k[p], d_j[p] = total_k_p - along_key[h] * k_p, total_j_p - along_key[readers + h] * j_p
        for m in range(width - width % 2, width):
            total_k = total_j = zero
            row, d_row = memory[m], d_memory[m]
            for n in range(rows):
                total_k += one[n] * row[n]
                total_j += two[n] * row[n]
                kept = d_row[n] - d_row[n] * written[n] * e[m] * erases
                d_row[n] = kept + d_read[m] * read[n] + one[n] * k[m] + two[n] * j[m] - along_row[n] * row[n]
            d_k[m], d_j[m] = total_k - along_key[h] * k[m], total_j - along_key[readers + h] * j[m]
        along_row[:] = memory.dtype.type(0)


# --- The loss ---------------------------------------------------------------------------------------------------------


@compiled
def cross_entropy(logits, targets, share, d_logits):
    """Binary cross-entropy, each bit counted so much; sets `d_logits`."""
    loss = share - share
    for j in range(logits.shape[0]):
        loss += share * (softplus(logits[j]) - targets[j] * logits[j])
        d_logits[j] = share * (sigmoid(logits[j]) - targets[j])
    return loss


# --- Matrix products --------------------------------------------------------------------------------------------------


def _find_blas() -> Callable[[int], int]:
    """Tell compiled code where a BLAS is: PyTorch's MKL, or SciPy's, half as fast where matrices have few rows.

    Returns:
        What sets the number of threads that this thread's products take; it gives back what it was, or 0 for all.
    """
    try:
        pytorch = ctypes.CDLL(torch._C.__file__)
        limit, routines = pytorch.MKL_Set_Num_Threads_Local, (pytorch.sgemm_, pytorch.dgemm_)
        addresses = [ctypes.cast(routine, ctypes.c_void_p).value for routine in routines]
    except (AttributeError, OSError):  # PyTorch has another BLAS, or keeps it to itself
        addresses = [get_cython_function_address("scipy.linalg.cython_blas", name) for name in ("sgemm", "dgemm")]
        threadpool_limits(limits=1, user_api="blas")  # of NumPy's and SciPy's products in the whole process
        limit = int
    for name, address in zip(("ntm_sgemm", "ntm_dgemm"), addresses, strict=True):
        llvmlite.binding.add_symbol(name, address)
    return limit


limit_product_threads = _find_blas()


@intrinsic
def gemm(_, flip_a, flip_b, rows, columns, inner, alpha, a, a_stride, b, b_stride, beta, c, c_stride):
    """BLAS: c = alpha a b + beta c, of matrices stored column by column; it takes everything by address."""
    kind, n = alpha, types.int32
    name = {types.float32: "ntm_sgemm", types.float64: "ntm_dgemm"}[kind]

    def call(context, builder, signature, values):
        addresses = [
            context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Array)
            else cgutils.alloca_once_value(builder, value)
            for kind, value in zip(signature.args, values, strict=True)
        ]
        routine = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] * len(addresses))
        routine = cgutils.get_or_insert_function(builder.module, routine, name)
        builder.call(routine, [builder.bitcast(address, cgutils.voidptr_t) for address in addresses])
        return context.get_dummy_value()

    return types.void(types.uint8, types.uint8, n, n, n, kind, a, n, b, n, kind, c, n), call


NO, YES = np.uint8(ord("N")), np.uint8(ord("T"))


@compiled
def stride(a):
    """From a row to the next, in numbers; those of a row lie side by side."""
    return a.strides[0] // a.itemsize


@compiled
def product(a, b, keep, out):
    """out = a @ b + keep * out. (Stored by columns, a matrix is its transpose: so out' = b' a'.)"""
    kind = out.dtype.type
    rows, columns, inner = out.shape[0], out.shape[1], a.shape[1]
    gemm(NO, NO, columns, rows, inner, kind(1), b, stride(b), a, stride(a), kind(keep), out, stride(out))


@compiled
def add_product(a, b, out):
    """out += a.T @ b."""
    kind = out.dtype.type
    rows, columns, inner = out.shape[0], out.shape[1], a.shape[0]
    gemm(NO, YES, columns, rows, inner, kind(1), b, stride(b), a, stride(a), kind(1), out, stride(out))


# --- The unroll, one group of sequences -------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """The three maps. `seen` is a row of input, last reads, last hidden and a 1, each map of a stretch of it."""

    gates_t: np.ndarray  # (I + R M + C + 1, 4 C): for the way forward, with the bias as the last row
    controls_t: np.ndarray  # (C + 1, P)
    output_t: np.ndarray  # (R M + C + 1, O)
    gates: np.ndarray  # (4 C, R M + C): for the way back, without the input and the bias
    controls: np.ndarray  # (P, C)
    output: np.ndarray  # (O, R M + C)


class ParameterGradients(NamedTuple):
    """Sums over sequences, in the layout of `seen`."""

    gates: np.ndarray  # (4 C, I + R M + C + 1): of each map, with its bias as the last column
    controls: np.ndarray  # (P, C + 1)
    output: np.ndarray  # (O, R M + C + 1)
    start_cell: np.ndarray  # (C): of an initial state that all sequences share
    start_answer: np.ndarray  # (R M + C): its reads and hidden


class History(NamedTuple):
    """What a group of G sequences leaves behind, by time slot. Carried values have a slot more, for the step before."""

    memory: np.ndarray  # (slots + 1, G, M, N)
    weighting: np.ndarray  # (slots + 1, G, H, N)
    cell: np.ndarray  # (slots + 1, G, C)
    seen: np.ndarray  # (slots + 1, G, I + R M + C + 1): input, last reads, last hidden, 1
    gates: np.ndarray  # (slots, G, 4 C)
    tanh_cell: np.ndarray  # (slots, G, C)
    controls: np.ndarray  # (slots, G, P)
    inverse_norm: np.ndarray  # (slots, G, N)
    similarity: np.ndarray  # (slots, G, H, N)
    content: np.ndarray  # (slots, G, H, N)
    shifted: np.ndarray  # (slots, G, H, N)
    log_shifted: np.ndarray  # (slots, G, H, N)
    d_logits: np.ndarray  # (slots, G, O), filled before the way back
    d_gates: np.ndarray  # (slots, G, 4 C), and on the way back: gradients of the gates' sums,
    d_controls: np.ndarray  # (slots, G, P), and of the controls' sums


class Run(NamedTuple):
    """One unroll of a batch: what goes in, and room for what comes out."""

    inputs: np.ndarray  # (T, B, I)
    cells: np.ndarray  # (T, B, C), or (T, B, 0) where no cell is made to forget
    blind: np.ndarray  # (B)
    start: NTMState  # of B sequences or one for all; its memory is [M][N]
    p: Parameters
    gate_cost: np.floating  # of one head at one step
    blur_cost: np.floating
    logits: np.ndarray  # (T, B, O)
    end: NTMState


class Goal(NamedTuple):
    """What a run is to answer."""

    targets: np.ndarray  # (T, B, O)
    mask: np.ndarray  # (T, B)
    share: np.floating  # what each bit of a step that counts is of the loss


@compiled
def copy_columns(a, out):
    """Copy a matrix into the first columns of another."""
    for g in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[g, j] = a[g, j]


@compiled
def add_rows(a, total):
    """Add each row of a matrix to a vector."""
    for g in range(a.shape[0]):
        for j in range(a.shape[1]):
            total[j] += a[g, j]


@compiled
def places(history):
    """Where the reads begin in a row of `seen`, and where the hidden state does."""
    (_, _, width, _), readers = history.memory.shape, history.weighting.shape[2] // 2
    hidden_at = history.seen.shape[2] - 1 - history.cell.shape[2]
    return hidden_at - readers * width, hidden_at


@compiled
def controller_step(first, cell_mask, history, t, now, after, slot):
    """From the gates' sums to the controller's output, each sequence of the group."""
    _, hidden_at = places(history)
    for g in range(history.cell.shape[1]):
        lstm(
            history.gates[slot, g],
            history.cell[now, g],
            cell_mask[t, first + g],
            history.cell[after, g],
            history.tanh_cell[slot, g],
            history.seen[after, g, hidden_at:-1],
        )


@compiled
def memory_step(first, blind, history, now, after, slot, gated):
    """From the controls' sums to new memory, weightings and reads, each sequence of the group."""
    heads, width = history.weighting.shape[2], history.memory.shape[2]
    readers, (reads_at, hidden_at) = heads // 2, places(history)
    for g in range(history.cell.shape[1]):
        memory, inverse_norm = history.memory[now, g], history.inverse_norm[slot, g]
        previous, weighting = history.weighting[now, g], history.weighting[after, g]
        c = named(history.controls[slot, g], heads, width)
        activate(c)
        if not blind[first + g]:
            compare(memory, c.key, inverse_norm, history.similarity[slot, g])
            for n in range(inverse_norm.shape[0]):
                inverse_norm[n] = ONE / np.sqrt(inverse_norm[n])
        for h in range(heads):
            similarity, content = history.similarity[slot, g, h], history.content[slot, g, h]
            shifted, log_shifted = history.shifted[slot, g, h], history.log_shifted[slot, g, h]
            key = c.key[h * width : (h + 1) * width]
            if blind[first + g]:
                copy(previous[h], gated)
            else:
                content_weighting(inverse_norm, key, c.key_strength[h], similarity, content)
                interpolate(content, previous[h], c.interpolation_gate[h], gated)
            shift(gated, c.shift_weighting[3 * h : 3 * h + 3], shifted)
            sharpen(shifted, c.sharpening[h], log_shifted, weighting[h])
        read(memory, weighting[:readers], history.seen[after, g, reads_at:hidden_at])
        write(memory, weighting[readers:], c.erase, c.add, history.memory[after, g])


@compiled_with_counts
def put_start(first, start, history):
    """Put a group's initial state, which may be one for all sequences, into the first slots of its history."""
    reads_at, hidden_at = places(history)
    for g in range(history.seen.shape[1]):
        b = first + g if len(start.cell) > 1 else 0
        history.memory[0, g], history.weighting[0, g] = start.memory[b], start.weighting[b]
        history.cell[0, g], history.seen[0, g, hidden_at:-1] = start.cell[b], start.hidden[b]
        history.seen[0, g, reads_at:hidden_at] = start.reads[b].reshape(hidden_at - reads_at)
    history.seen[:, :, -1] = 1


@compiled_with_counts
def get_end(first, slot, history, end):
    """Copy a group's final state, which is in this slot, to where the batch's is gathered."""
    reads_at, hidden_at = places(history)
    for g in range(history.seen.shape[1]):
        b = first + g
        end.memory[b], end.weighting[b] = history.memory[slot, g], history.weighting[slot, g]
        end.cell[b], end.hidden[b] = history.cell[slot, g], history.seen[slot, g, hidden_at:-1]
        end.reads[b].reshape(hidden_at - reads_at)[:] = history.seen[slot, g, reads_at:hidden_at]


@compiled_with_counts
def forward_group(first, run, history):
    """Run a group, the batch's sequences from `first` on."""
    (slots, group, _), (reads_at, hidden_at) = history.gates.shape, places(history)
    put_start(first, run.start, history)
    gated = np.empty(history.weighting.shape[3], history.memory.dtype)
    for t in range(run.inputs.shape[0]):
        now, after, slot = t % (slots + 1), (t + 1) % (slots + 1), t % slots
        copy_columns(run.inputs[t, first : first + group], history.seen[now])
        product(history.seen[now], run.p.gates_t, 0, history.gates[slot])
        controller_step(first, run.cells, history, t, now, after, slot)
        product(history.seen[after, :, hidden_at:], run.p.controls_t, 0, history.controls[slot])
        memory_step(first, run.blind, history, now, after, slot, gated)
        product(history.seen[after, :, reads_at:], run.p.output_t, 0, run.logits[t, first : first + group])
    get_end(first, run.inputs.shape[0] % (slots + 1), history, run.end)


class StateGradients(NamedTuple):
    """Gradients of a group's final state; `backward_group` turns them into those of the initial state, in place."""

    memory: np.ndarray  # (G, M, N)
    weighting: np.ndarray  # (G, H, N)
    cell: np.ndarray  # (G, C)
    answer: np.ndarray  # (G, R M + C): reads, hidden


class Scratch(NamedTuple):
    """Room for the gradients of one time step of one sequence."""

    gated: np.ndarray  # (N): the value, made again
    d_gated: np.ndarray  # (N)
    content: np.ndarray  # (N)
    shifted: np.ndarray  # (N)
    direct: np.ndarray  # (H, N)
    along_row: np.ndarray  # (N), zero between uses
    along_key: np.ndarray  # (H)
    found: np.ndarray  # (M, N)


@compiled
def memory_step_backward(first, blind, gate_cost, blur_cost, history, t, d, r):
    """The way back through `memory_step`. The costs are those of one head at one step."""
    heads, width = history.weighting.shape[2], history.memory.shape[2]
    readers = heads // 2
    for g in range(history.cell.shape[1]):
        memory, inverse_norm = history.memory[t, g], history.inverse_norm[t, g]
        previous, weighting = history.weighting[t, g], history.weighting[t + 1, g]
        d_memory, d_weighting, d_reads = d.memory[g], d.weighting[g], d.answer[g, : readers * width]
        c = named(history.controls[t, g], heads, width)
        d_c = named(history.d_controls[t, g], heads, width)
        read_write_backward(
            memory, weighting, c.erase, c.add, d_reads, d_memory, d_weighting, d_c.erase, d_c.add, r.found
        )
        for h in range(heads):
            charge_blur(blur_cost, weighting[h], d_weighting[h])
            similarity, content = history.similarity[t, g, h], history.content[t, g, h]
            shifted, log_shifted = history.shifted[t, g, h], history.log_shifted[t, g, h]
            gate, s, d_s = c.interpolation_gate[h], c.shift_weighting[3 * h :], d_c.shift_weighting[3 * h :]
            if blind[first + g]:
                copy(previous[h], r.gated)
            else:
                interpolate(content, previous[h], gate, r.gated)
            d_c.sharpening[h] = sharpen_backward(
                shifted, c.sharpening[h], log_shifted, weighting[h], d_weighting[h], r.shifted
            )
            shift_backward(r.gated, s, r.shifted, r.d_gated, d_s)
            if blind[first + g]:  # the gate was not followed, but it costs what it asks
                copy(r.d_gated, d_weighting[h])
                d_c.interpolation_gate[h] = gate_cost
                continue
            d_c.interpolation_gate[h] = gate_cost + interpolate_backward(
                content, previous[h], gate, r.d_gated, r.content, d_weighting[h]
            )
            key = c.key[h * width : (h + 1) * width]
            d_c.key_strength[h], r.along_key[h] = content_weighting_backward(
                inverse_norm, key, c.key_strength[h], similarity, content, r.content, r.direct[h], r.along_row
            )
        if blind[first + g]:
            d_c.key_strength[:] = r.along_key[:] = 0
            r.direct[:] = 0
        memory_backward(
            memory, weighting, c.erase, c.key, d_reads, r.direct, r.along_row, r.along_key, d_memory, d_c.key
        )
        activate_backward(c, d_c)


@compiled
def controller_step_backward(first, cell_mask, history, t, d):
    """The way back through `controller_step`."""
    for g in range(history.cell.shape[1]):
        lstm_backward(
            history.gates[t, g],
            history.cell[t, g],
            cell_mask[t, first + g],
            history.tanh_cell[t, g],
            d.answer[g, d.answer.shape[1] - d.cell.shape[1] :],
            d.cell[g],
            history.d_gates[t, g],
        )


@compiled_with_counts
def backward_group(first, run, history, d, d_p):
    """Go back through the time steps of `forward_group`.

    Turns `d` from the final state's gradients into the initial state's, fills `history.d_gates` and
    `history.d_controls` beside `history.d_logits`, and adds to `d_p`.
    """
    (steps, group, _), kind = history.d_logits.shape, history.d_logits.dtype
    _, _, width, rows = history.memory.shape
    heads, size, seen_size = history.weighting.shape[2], history.cell.shape[2], history.seen.shape[2]
    reads_at, hidden_at = places(history)
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
        product(history.d_logits[t], run.p.output, 1, d.answer)
        memory_step_backward(first, run.blind, run.gate_cost, run.blur_cost, history, t, d, r)
        product(history.d_controls[t], run.p.controls, 1, d.answer[:, hidden_at - reads_at :])
        controller_step_backward(first, run.cells, history, t, d)
        product(history.d_gates[t], run.p.gates, 0, d.answer)
    count = steps * group  # all steps of all sequences are rows now
    seen = history.seen[:steps].reshape(count, seen_size)
    after = history.seen[1:].reshape(count, seen_size)
    add_product(history.d_gates.reshape(count, 4 * size), seen, d_p.gates)
    add_product(history.d_controls.reshape(count, d_p.controls.shape[0]), after[:, hidden_at:], d_p.controls)
    add_product(history.d_logits.reshape(count, d_p.output.shape[0]), after[:, reads_at:], d_p.output)
    add_rows(d.cell, d_p.start_cell)
    add_rows(d.answer, d_p.start_answer)


@compiled
def add_map(d_both, weight, bias, to):
    """Add the gradient of a map with its bias to those of weight and bias; column j goes to column `to` + j, round."""
    columns = weight.shape[1]
    for i in range(weight.shape[0]):
        for j in range(columns - to):
            weight[i, to + j] += d_both[i, j]
        for j in range(to):
            weight[i, j] += d_both[i, columns - to + j]
        bias[i] += d_both[i, columns]


@compiled
def add_gradients(d_p, gates, gates_bias, controls, controls_bias, output, output_bias):
    """Add gradients to those of the model's weights, where hidden comes before reads in the output map."""
    add_map(d_p.gates, gates, gates_bias, 0)
    add_map(d_p.controls, controls, controls_bias, 0)
    add_map(d_p.output, output, output_bias, controls.shape[1])


@compiled
def loss_of_group(first, logits, goal, history):
    """The group's part of the loss; fills `history.d_logits`."""
    loss = 0.0
    for t in range(logits.shape[0]):
        for g in range(history.d_logits.shape[1]):
            b = first + g
            share = goal.share * goal.mask[t, b]
            loss += cross_entropy(logits[t, b], goal.targets[t, b], share, history.d_logits[t, g])
    return loss


@compiled_with_counts
def there_and_back(first, last, run, goal, history, d, d_p):
    """Forward, loss and backward of several groups, from sequence `first` up to `last`; returns the loss."""
    loss = 0.0
    for b in range(first, last, history.cell.shape[1]):
        forward_group(b, run, history)
        loss += loss_of_group(b, run.logits, goal, history)
        d.memory[:], d.weighting[:], d.cell[:], d.answer[:] = 0, 0, 0, 0
        backward_group(b, run, history, d, d_p)
    return loss


# --- The unroll, a whole batch ----------------------------------------------------------------------------------------

GROUP = 8  # sequences: few enough to stay in cache, enough to feed a matrix product
MOST_PARTS = 16  # of a batch, for as many threads; not theirs, so that no sum depends on the number of threads
MOST_SPARE = 2**26  # bytes

_spare: list[np.ndarray] = []  # room of histories that are gone, to be used again: fresh memory costs page faults


@cache
def layout(kind: np.dtype, slots: int, group: int, sizes: tuple[int, ...]) -> tuple[tuple, int]:
    """Lay the arrays of `History` and `StateGradients` one after the other, 64 bytes aligned to one another.

    Args:
        kind: the type of their numbers.
        slots, group: slots and G.
        sizes: M, N, H, C, the width of a row of `seen`, P and O.

    Returns:
        Shape and offset in bytes of each, and the bytes in all.
    """
    width, rows, heads, size, seen, controls, outputs = sizes
    history = History(
        memory=(slots + 1, group, width, rows),
        weighting=(slots + 1, group, heads, rows),
        cell=(slots + 1, group, size),
        seen=(slots + 1, group, seen),
        gates=(slots, group, 4 * size),
        tanh_cell=(slots, group, size),
        controls=(slots, group, controls),
        inverse_norm=(slots, group, rows),
        similarity=(slots, group, heads, rows),
        content=(slots, group, heads, rows),
        shifted=(slots, group, heads, rows),
        log_shifted=(slots, group, heads, rows),
        d_logits=(slots, group, outputs),
        d_gates=(slots, group, 4 * size),
        d_controls=(slots, group, controls),
    )
    answer = heads // 2 * width + size
    gradients = StateGradients((group, width, rows), (group, heads, rows), (group, size), (group, answer))
    places, end = [], 0
    for shape in (*history, *gradients):
        places.append((shape, end))
        end += -(-math.prod(shape) * kind.itemsize // 64) * 64
    return tuple(places), end


class Kept:
    """What a group's way forward leaves for the way back, and room for what that makes. The room is handed on later.

    Args:
        slots: the number of steps, or 1 to keep nothing.
        group: which sequences of the batch.
        run: which of a batch.
    """

    def __init__(self, slots: int, group: slice, run: Run) -> None:
        start, p, kind = run.start, run.p, run.logits.dtype
        heads, size = start.weighting.shape[1], start.cell.shape[1]
        sizes = *start.memory.shape[1:], heads, size, len(p.gates_t), len(p.controls), len(p.output)
        places, needed = layout(kind, slots, group.stop - group.start, sizes)
        try:
            self.room = _spare.pop()
        except IndexError:
            self.room = np.empty(0, np.uint8)
        if self.room.nbytes < needed + 63:
            self.room = np.empty(needed + 63, np.uint8)
        aligned = -self.room.ctypes.data % 64
        arrays = [np.ndarray(shape, kind, self.room, aligned + offset) for shape, offset in places]
        self.group = group
        self.history, self.d = History(*arrays[: len(History._fields)]), StateGradients(*arrays[len(History._fields) :])

    def __del__(self) -> None:
        if self.room.nbytes + sum(room.nbytes for room in _spare) <= MOST_SPARE:
            _spare.append(self.room)

    def state_gradients(self) -> NTMState:
        """The gradients `d`, as those of a state whose memory is [M][N]."""
        memory, weighting, cell, answer = self.d
        reads = answer.shape[1] - cell.shape[1]
        return NTMState(
            memory=memory,
            weighting=weighting,
            reads=answer[:, :reads].reshape(len(answer), -1, memory.shape[1]),
            hidden=answer[:, reads:],
            cell=cell,
        )


def turned(state: NTMState) -> NTMState:
    """A view of a state with [N][M] and [M][N] exchanged in its memory, which may be None."""
    return state._replace(memory=None if state.memory is None else state.memory.swapaxes(1, 2))


class Calculating:
    """While it lasts, this thread multiplies matrices alone, and takes numbers below the smallest normal one for 0.

    Weightings and their gradients fade to such numbers everywhere, and arithmetic on them is many times slower.
    """

    TINY = np.array(1e-40, np.float32)

    def __enter__(self) -> None:
        self.before = bool(self.TINY * 1 == 0), limit_product_threads(1)
        torch.set_flush_denormal(True)

    def __exit__(self, *_) -> None:
        flushed, threads = self.before
        torch.set_flush_denormal(flushed)
        limit_product_threads(threads)


_threads: int | None = None
_pool: ThreadPoolExecutor | None = None


def use_threads(count: int | None = None) -> int:
    """Give the fast path threads of its own, as many as PyTorch had if not said otherwise, and PyTorch a single one.

    PyTorch's threads wait by spinning, on the cores that the fast path wants, and what else a training step does is too
    little to share out. Without this call, the fast path takes as many threads as PyTorch has; after it, a later
    `torch.set_num_threads` no longer matters to it.
    """
    global _threads
    _threads = count or _threads or torch.get_num_threads()
    torch.set_num_threads(1)
    return _threads


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork


def at_once(jobs: list[Callable[[], Any]]) -> list:
    """Call the jobs, at once where there are threads for that; results in order."""
    global _pool
    threads = min(_threads or torch.get_num_threads(), len(jobs))
    if threads < 2:
        return [job() for job in jobs]
    if _pool is None or _pool._max_workers < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1)
    results, left = [None] * len(jobs), iter(range(len(jobs)))

    def take_what_is_left() -> None:
        for i in left:
            results[i] = jobs[i]()

    others = [_pool.submit(take_what_is_left) for _ in range(threads - 1)]
    try:
        take_what_is_left()
    finally:
        wait(others)  # whatever happened: they write to rooms that would be handed on
    for other in others:
        other.result()
    return results


def parts(batch: int) -> list[list[slice]]:
    """Cut a batch into groups of one size, and these into parts, each for one thread; what is left is one more."""
    whole = batch // GROUP
    groups = [slice(first, first + GROUP) for first in range(0, whole * GROUP, GROUP)]
    each = max(1, -(-whole // min(MOST_PARTS, max(2, whole // 2))))
    left = [[slice(whole * GROUP, batch)]] if batch % GROUP else []
    return [groups[i : i + each] for i in range(0, whole, each)] + left


def _flat(tensor: Tensor) -> np.ndarray:
    """An array without gaps, for which alone the functions above are compiled."""
    return np.ascontiguousarray(tensor.numpy())


def as_arrays(state: NTMState) -> NTMState:
    """A state's arrays, its memory [M][N]."""
    return NTMState(*(_flat(part.detach()) for part in turned(state)))


def run_of(
    weights: list[nn.Parameter], model: NTM, inputs: Tensor, start: NTMState, dropped: Dropped, costs: Costs
) -> Run:
    """Make a run.

    Args:
        weights: `weights_of(model)`.
        model: the machine.
        inputs: (T, B, input_size).
        start: the initial state, of the batch or one for all, as arrays, its memory [M][N].
        dropped, costs: as in `NTM.unroll`.

    Raises:
        TypeError: inputs, state, mask and weights are not all of one floating-point type on the CPU.
        ValueError: inputs or state do not have the model's shapes.
    """
    (steps, batch, width), array, kind = inputs.shape, _flat(inputs), weights[0].detach().numpy().dtype
    cells = np.empty((steps, batch, 0), kind) if dropped.cells is None else _flat(dropped.cells)
    if any(x.dtype != kind for x in (array, cells, *start)):
        raise TypeError(f"the fused path needs inputs and state in {kind}, as the weights are")
    (readers, row), size, rows = model.initial_reads.shape, model.initial_cell.shape[0], start.memory.shape[2]
    shapes = [(rows, row), (2 * readers, rows), (readers, row), (size,), (size,)]
    if width != model.input_size or [part.shape[1:] for part in turned(start)] != shapes:
        raise ValueError(
            f"this model takes {model.input_size} inputs a step, and a state of shapes {shapes} a sequence"
        )
    heads = 2 * readers * max(1, batch * steps)
    return Run(
        inputs=array,
        cells=cells,
        blind=np.zeros(batch, bool) if dropped.blind is None else _flat(dropped.blind),
        start=start,
        p=parameters(weights, inputs.shape[2]),
        gate_cost=kind.type(costs.content / heads),
        blur_cost=kind.type(costs.blur / heads),
        logits=np.empty((steps, batch, len(weights[-1])), kind),
        end=NTMState(*(np.empty((batch, *part.shape[1:]), kind) for part in start)),
    )


def weights_of(model: NTM) -> list[nn.Parameter]:
    """The three maps' weights and biases."""
    maps = model.controller.gates_map, model.heads.controls_map, model.output_map
    return [tensor for linear in maps for tensor in (linear.weight, linear.bias)]


def parameters(weights: list[Tensor], input_size: int) -> Parameters:
    """Lay weights out for the two ways."""
    kind = weights[0].dtype
    gates, gates_bias, controls, controls_bias, output, output_bias = (w.detach().numpy() for w in weights)
    size = controls.shape[1]
    output = np.concatenate((output[:, size:], output[:, :size]), 1)  # reads first, as in `seen`

    def transposed(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        both = torch.empty(weight.shape[1] + 1, len(weight), dtype=kind).numpy()  # 64 bytes aligned
        both[:-1], both[-1] = weight.T, bias
        return both

    way_forward = transposed(gates, gates_bias), transposed(controls, controls_bias), transposed(output, output_bias)
    return Parameters(*way_forward, gates[:, input_size:], controls, output)


def zero_gradients(p: Parameters) -> ParameterGradients:
    """Make room for sums over sequences."""
    maps = [way.shape[::-1] for way in (p.gates_t, p.controls_t, p.output_t)]
    shapes = *maps, p.controls.shape[1], p.gates.shape[1]
    return ParameterGradients(*(np.zeros(shape, p.gates.dtype) for shape in shapes))


class Unroll(torch.autograd.Function):
    """A run as PyTorch sees it."""

    @staticmethod
    def forward(ctx, run, keep, inputs, memory, weighting, reads, hidden, cell, *weights):
        """Return logits and the final state's five tensors."""

        def forward(group: slice) -> Kept | None:
            kept = Kept(len(inputs) if keep else 1, group, run)
            forward_group(group.start, run, kept.history)
            return kept if keep else None

        def part(groups: list[slice]) -> list[Kept | None]:
            with Calculating():
                return [forward(group) for group in groups]

        kept = at_once([partial(part, groups) for groups in parts(inputs.shape[1])])
        if keep:
            ctx.save_for_backward(*weights)  # so that PyTorch notices a weight that changes before backward
            ctx.run, ctx.kept = run, kept
            ctx.set_materialize_grads(False)
        return tuple(map(torch.from_numpy, (run.logits, *turned(run.end))))

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logits, *d_end):
        """Return a gradient for each argument of `forward`."""
        (gates, *_), run, needed = ctx.saved_tensors, ctx.run, ctx.needs_input_grad
        d_end = turned(NTMState(*d_end))
        if d_logits is None:  # then costs are not paid either, as in ntm.Charge
            run = run._replace(gate_cost=run.gate_cost * 0, blur_cost=run.blur_cost * 0)

        def part(several: list[Kept]) -> ParameterGradients:
            with Calculating():
                d_p = zero_gradients(run.p)
                for kept in reversed(several):  # the last is still in cache
                    kept.history.d_logits[...] = 0 if d_logits is None else d_logits[:, kept.group]
                    for ours, d in zip(kept.state_gradients(), d_end, strict=True):
                        ours[...] = 0 if d is None else d[kept.group]
                    backward_group(kept.group.start, run, kept.history, kept.d, d_p)
                return d_p

        d_p = at_once([partial(part, several) for several in ctx.kept])
        groups = [kept for several in ctx.kept for kept in several]
        d_inputs, d_start = None, [None] * 5
        if needed[2]:
            into = gates[:, : run.inputs.shape[2]]
            d_inputs = torch.cat([torch.from_numpy(kept.history.d_gates) @ into for kept in groups], 1)
        if any(needed[3:8]):
            arrays = zip(*(kept.state_gradients() for kept in groups), strict=True)
            d_start = turned(NTMState(*(torch.from_numpy(np.concatenate(array)) for array in arrays)))
            if len(run.start.cell) < len(d_start.cell):
                d_start = [d.sum(0, keepdim=True) for d in d_start]
        d_weights = [torch.zeros_like(weight) for weight in ctx.saved_tensors]
        for one in d_p:
            add_gradients(one, *(d.numpy() for d in d_weights))
        return None, None, d_inputs, *d_start, *d_weights


def unroll(
    model: NTM, inputs: Tensor, state: NTMState, dropped: Dropped = NOTHING, costs: Costs = FREE
) -> tuple[Tensor, NTMState]:
    """Compute what `NTM.unroll` computes, faster. Twice differentiable it is not.

    Raises:
        TypeError, ValueError: as `run_of`.
    """
    weights = weights_of(model)
    run = run_of(weights, model, inputs.detach(), as_arrays(state), dropped, costs)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (inputs, *state, *weights))
    logits, *end = Unroll.apply(run, keep, inputs, *state, *weights)
    return logits, NTMState(*end)


def loss_and_gradients(run: Run, targets: Tensor, mask: Tensor) -> tuple[float, tuple[ParameterGradients, ...]]:
    """Take a run forward and back, each group while it is in cache: the loss, and parts of the gradient.

    Raises:
        ValueError: targets or mask do not fit, or no step counts.
    """
    logits, kind = run.logits, run.logits.dtype.type
    wanted, counted = _flat(targets), _flat(mask)
    if (
        wanted.shape != logits.shape
        or counted.shape != logits.shape[:2]
        or {wanted.dtype, counted.dtype} != {logits.dtype}
    ):
        raise ValueError(f"targets and mask must be {logits.shape} and {logits.shape[:2]}, in {logits.dtype}")
    if not counted.any():
        raise ValueError("no step counts: the mask is 0 everywhere")
    goal = Goal(wanted, counted, kind(1) / kind(counted.sum() * logits.shape[2]))

    def part(groups: list[slice]) -> tuple[float, ParameterGradients]:
        with Calculating():
            kept, d_p = Kept(len(run.inputs), groups[0], run), zero_gradients(run.p)
            return there_and_back(groups[0].start, groups[-1].stop, run, goal, kept.history, kept.d, d_p), d_p

    losses, d_parts = zip(*at_once([partial(part, groups) for groups in parts(run.inputs.shape[1])]), strict=True)
    return sum(losses), d_parts


_blank: dict[tuple, NTMState] = {}


def common_start(model: NTM, memory_units: int | None) -> NTMState:
    """`model.initial_state(1, memory_units)` as arrays; memory and weightings, which nothing changes, are made once."""
    reads, hidden, cell = (p.detach().numpy() for p in (model.initial_reads, model.initial_hidden, model.initial_cell))
    key = memory_units or model.memory_units, reads.shape, reads.dtype
    if key not in _blank:
        _blank[key] = as_arrays(model.initial_state(1, memory_units))
    return NTMState(*_blank[key][:2], reads[None], hidden[None], cell[None])


def forward_backward(
    model: NTM,
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor,
    memory_units: int | None = None,
    dropped: Dropped = NOTHING,
    costs: Costs = FREE,
) -> tuple[float, Tensor]:
    """Compute what `NTM.forward_backward` computes, faster.

    Raises:
        TypeError, ValueError: as `run_of` and `loss_and_gradients`.
    """
    weights = weights_of(model)
    run = run_of(weights, model, inputs, common_start(model, memory_units), dropped, costs)
    loss, d_parts = loss_and_gradients(run, targets, mask)
    learned = *weights, model.initial_reads, model.initial_hidden, model.initial_cell
    for parameter in learned:
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    *maps, reads, hidden, cell = ((p.grad if p.requires_grad else torch.zeros_like(p)).numpy() for p in learned)
    for d_p in d_parts:
        add_gradients(d_p, *maps)
        reads += d_p.start_answer[: reads.size].reshape(reads.shape)
        hidden += d_p.start_answer[reads.size :]
        cell += d_p.start_cell
    return loss, torch.from_numpy(run.logits)


def warm_up(model: NTM) -> None:
    """Compile what a model needs, or load it from the cache, by taking a step and going back, both ways."""
    inputs = model.initial_hidden.new_zeros(1, 1, model.input_size)
    with torch.enable_grad():
        logits, _ = unroll(model, inputs, model.initial_state(1))
        torch.autograd.grad(logits.sum(), model.output_map.weight)
    run = run_of(weights_of(model), model, inputs, common_start(model, None), NOTHING, FREE)
    loss_and_gradients(run, torch.zeros_like(logits), torch.ones_like(logits[..., 0]))
