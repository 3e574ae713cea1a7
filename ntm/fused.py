"""The fast path: a whole unroll of the NTM, forward and hand-derived backward, as one call on the CPU.

A time step of the readable model (ntm/ntm.py) is about sixty small PyTorch operations, and starting them takes longer
than their arithmetic. Here a step is plain loops, compiled by Numba, around BLAS matrix products. The readable model is
the definition; this file computes the same numbers, and the tests hold one against the other.

How it is laid out
    * Memory is [M][N] here, a row of the paper a column, so that the N rows lie along the vector lanes.
    * Sequences go in groups of 8. `unroll` takes all groups forward and, when autograd asks, all of them back;
      `forward_backward` takes each there and back before the next, so that what it keeps stays in cache. Groups are
      shared out over threads, in parts that do not depend on the number of threads; so neither does any result.
    * Parameters are one flat array, and so are their gradients, in the layout of `NTM.flatten_parameters`; a model that
      was not flattened is copied. `Parameters` is a view of it, `Turned` of a transposed copy made for each way back.
    * `History`, views of one flat array too, holds what backward needs. Step t has slot `t % slots`, and in arrays that
      carry a value on to the next step, `t % (slots + 1)`: as many slots as steps, or one where no gradient is wanted.
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
from copy import deepcopy
from functools import cache, partial
from itertools import accumulate
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
from ntm.ntm import NTM, NTMState, in_a_row, out_of_a_row

# The arrays that one of the small functions below takes never overlap. Numba has a flag that says so, but no option for
# it; without, each short loop would begin with comparing all its arrays' addresses, which takes longer than the loop.
CPUTargetOptions.noalias = CPUTargetOptions.Mapping("noalias")
if config.CPU_FEATURES is None and platform.machine() in ("x86_64", "AMD64"):  # vectors as wide as the processor has
    config.CPU_FEATURES = llvmlite.binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"
# Sums may be reordered and products fused, which vectorises them; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function, counted: bool = False, **more):
    """Compile a function with Numba: cached on disk where that can be written, without Python's global lock.

    Unless `counted`, arrays are not reference-counted, which costs more than the arithmetic where a loop makes many
    small views; such a function can take views of the arrays that it is given, and make no array of its own. It is
    always inlined: a copy of its own would be rounded differently by the process that compiles than by those to come.
    """
    options = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
    options |= {"_nrt": counted, "noalias": not counted, "forceinline": not counted, **more}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # Numba found no folder for its cache
        return njit(function, **options)


def compiled_with_counts(function, **more):
    """Compile a function that calls BLAS or makes arrays. It leaves arithmetic on floats to others: see above."""
    return compiled(function, counted=True, **more)


def part_of_its_caller(function):
    """Compile a function that calls BLAS and does arithmetic, within each that calls it: no copy of its own."""
    return compiled_with_counts(function, inline="always")


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
        new_cell[j] *= cell.dtype.type(cell_mask[j])
    for j in range(size):
        tanh_cell[j] = tanh(new_cell[j])
        hidden[j] = gate_out[j] * tanh_cell[j]


@compiled
def lstm_backward(gates, cell, cell_mask, tanh_cell, d_hidden, d_cell):
    """`gates` come in as activations and leave as the gradients of their sums, `d_cell` as c_t's and as c_{t-1}'s."""
    size = cell.shape[0]
    for j in range(size):
        output = gates[3 * size + j]
        gates[3 * size + j] = d_hidden[j] * tanh_cell[j] * (output - output * output)
        d_cell[j] += d_hidden[j] * (output - output * tanh_cell[j] * tanh_cell[j])
    for j in range(cell_mask.shape[0]):
        d_cell[j] *= cell.dtype.type(cell_mask[j])
    for j in range(size):
        gate_in, forget, candidate = gates[j], gates[size + j], gates[2 * size + j]
        gates[j] = d_cell[j] * candidate * (gate_in - gate_in * gate_in)
        gates[size + j] = d_cell[j] * cell[j] * (forget - forget * forget)
        gates[2 * size + j] = d_cell[j] * (gate_in - gate_in * candidate * candidate)
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
def softmax(factor, x, out):
    """Fills `out` with the softmax of factor * x; the factor is not negative."""
    top = factor * largest(x)
    total = top - top
    for n in range(x.shape[0]):
        out[n] = exp(factor * x[n] - top)
        total += out[n]
    scale = ONE / total
    for n in range(x.shape[0]):
        out[n] *= scale


@compiled
def content_weighting(inverse_norm, key, key_strength, similarity, content):
    """eq. 6 and 5: `similarity` comes in as products and leaves as K; fills `content` (w^c)."""
    inverse_key_norm = ONE / np.sqrt(dot(key, key) + NORM_EPSILON)
    for n in range(similarity.shape[0]):
        similarity[n] *= inverse_norm[n] * inverse_key_norm
    softmax(key_strength, similarity, content)


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
    softmax(sharpening, log_shifted, weighting)


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
def blur(weighting):
    """How far a head is from standing on one row: 1 - sum_n w(n)^2."""
    return ONE - dot(weighting, weighting)


@compiled
def blur_backward(weighting, d_blur, d_weighting):
    """Adds to `d_weighting`."""
    for n in range(weighting.shape[0]):
        d_weighting[n] -= TWO * d_blur * weighting[n]


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
def head_backward(memory, found, written, erase, add, d_reads, d_memory, reading, writing, d_erase, d_add):
    """The gradient of eq. 2, 3 and 4 for a read head with a write head, which `found` this to erase.

    Adds to `reading` and `writing`, the gradients of their weightings. Two columns a pass.
    """
    (width, rows), zero = memory.shape, memory.dtype.type(0)
    for m in range(0, width - 1, 2):
        p = m + 1
        e_m, e_p, a_m, a_p, r_m, r_p = erase[m], erase[p], add[m], add[p], d_reads[m], d_reads[p]
        row, row_p, had, had_p, d_row, d_row_p = memory[m], memory[p], found[m], found[p], d_memory[m], d_memory[p]
        total_a = total_e = total_a_p = total_e_p = zero
        for n in range(rows):
            d_written, d_written_p = d_row[n] * written[n], d_row_p[n] * written[n]
            total_a += d_written
            total_e += d_written * had[n]
            total_a_p += d_written_p
            total_e_p += d_written_p * had_p[n]
            writing[n] += d_row[n] * (a_m - e_m * had[n]) + d_row_p[n] * (a_p - e_p * had_p[n])
            reading[n] += r_m * row[n] + r_p * row_p[n]
        d_add[m], d_add[p], d_erase[m], d_erase[p] = total_a, total_a_p, -total_e, -total_e_p
    for m in range(width - width % 2, width):
        total_a = total_e = zero
        row, had, d_row = memory[m], found[m], d_memory[m]
        for n in range(rows):
            d_written = d_row[n] * written[n]
            total_a += d_written
            total_e += d_written * had[n]
            writing[n] += d_row[n] * (add[m] - erase[m] * had[n])
            reading[n] += d_reads[m] * row[n]
        d_add[m], d_erase[m] = total_a, -total_e


@compiled
def read_write_backward(memory, weighting, erase, add, d_reads, d_memory, d_weighting, d_erase, d_add, found):
    """The gradient of eq. 2, 3 and 4 but for that of the memory, which `memory_backward` has.

    `d_memory` is the gradient of M_t. Adds to `d_weighting`, of all heads; sets `d_erase` and `d_add`.
    """
    (width, rows), readers = memory.shape, weighting.shape[0] // 2
    if readers == 1:  # there is nothing but the memory to erase
        written, reading, writing = weighting[1], d_weighting[0], d_weighting[1]
        head_backward(memory, memory, written, erase, add, d_reads, d_memory, reading, writing, d_erase, d_add)
        return
    for h in range(readers):
        for m in range(width):
            copy(memory[m], found[m])
        for other in range(readers):  # what this head had to erase: the memory, less what the other heads erased
            if other != h:
                for m in range(width):
                    for n in range(rows):
                        found[m, n] -= found[m, n] * weighting[readers + other, n] * erase[other * width + m]
        mine = slice(h * width, (h + 1) * width)
        written, reading, writing = weighting[readers + h], d_weighting[h], d_weighting[readers + h]
        head_backward(
            *(memory, found, written, erase[mine], add[mine], d_reads[mine], d_memory),
            *(reading, writing, d_erase[mine], d_add[mine]),
        )


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
def cross_entropy(logits, targets, share, loss, d_logits):
    """Binary cross-entropy, of which each bit is so much; sets `loss` and `d_logits`."""
    for j in range(logits.shape[0]):
        loss[j] = share[j] * (softplus(logits[j]) - targets[j] * logits[j])
        d_logits[j] = share[j] * (sigmoid(logits[j]) - targets[j])


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
def add_product(a, b, keep, out):
    """out = a.T @ b + keep * out."""
    kind = out.dtype.type
    rows, columns, inner = out.shape[0], out.shape[1], a.shape[0]
    gemm(NO, YES, columns, rows, inner, kind(1), b, stride(b), a, stride(a), kind(keep), out, stride(out))


# --- The arrays of an unroll ------------------------------------------------------------------------------------------

GROUP = 8  # sequences: few enough to stay in cache, enough to feed a matrix product


class Sizes(NamedTuple):
    """A machine's own sizes, in the letters of ntm/ntm.py."""

    inputs: int  # I
    readers: int  # R
    width: int  # M
    cells: int  # C
    outputs: int  # O


class Parameters(NamedTuple):
    """All parameters, or their gradients, as `NTM.flatten_parameters` lays them out.

    `seen` is a row of input, last reads, last hidden and a 1. Each map takes a stretch of it: its bias is its last row.
    """

    gates: np.ndarray  # (I + R M + C + 1, 4 C)
    controls: np.ndarray  # (C + 1, P)
    output: np.ndarray  # (R M + C + 1, O)
    reads: np.ndarray  # (R M), and where the machine starts:
    hidden: np.ndarray  # (C)
    cell: np.ndarray  # (C)


class Turned(NamedTuple):
    """The three maps transposed, for the way back."""

    gates: np.ndarray  # (4 C, I + R M + C + 1)
    controls: np.ndarray  # (P, C + 1)
    output: np.ndarray  # (O, R M + C + 1)


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
    d_gates: np.ndarray  # (slots, G, 4 C): activations, and after the way back gradients of their sums; may be `gates`
    d_controls: np.ndarray  # (slots, G, P), filled on the way back


class StateGradients(NamedTuple):
    """Gradients of a group's final state; `backward_group` turns them into those of the initial state, in place."""

    memory: np.ndarray  # (G, M, N)
    weighting: np.ndarray  # (G, H, N)
    cell: np.ndarray  # (G, C)
    answer: np.ndarray  # (G, R M + C): reads, hidden


class Run(NamedTuple):
    """One unroll of a batch."""

    inputs: np.ndarray  # (T, B, I)
    cell_mask: np.ndarray  # (T, B, C), false where a cell is made to forget; or (T, B, 0) where none is
    start: NTMState  # each part of B sequences, or one for all; its memory is [M][N]
    weights: np.ndarray  # all `Parameters`, flat
    turned: np.ndarray  # their maps `Turned`, flat; empty until the way back
    sizes: Sizes
    blur_cost: np.floating  # of one head of one sequence at one step
    logits: np.ndarray  # (T, B, O), to be filled


class Goal(NamedTuple):
    """What a run is to answer."""

    targets: np.ndarray  # (T, B, O)
    mask: np.ndarray  # (T, B)
    share: np.floating  # what each bit of a step that counts is of the loss


@compiled_with_counts
def cut(flat, at, shape):
    """An array of this shape out of a flat one, and where it ends there."""
    count = 1
    for length in shape:
        count *= length
    return flat[at : at + count].reshape(shape), at + count


def up_to_line(at):
    """Where the next cache line begins, in numbers: 64 bytes, or two lines of float64."""
    return (at + 15) // 16 * 16


line = compiled(up_to_line)


@compiled_with_counts
def map_shapes(s):
    """Of the three maps in `Parameters`."""
    answer = s.readers * s.width + s.cells + 1
    return (s.inputs + answer, 4 * s.cells), (s.cells + 1, s.readers * (4 * s.width + 12)), (answer, s.outputs)


@compiled_with_counts
def parameters_in(flat, s):
    """Cut a flat array into `Parameters`."""
    gates_shape, controls_shape, output_shape = map_shapes(s)
    gates, at = cut(flat, 0, gates_shape)
    controls, at = cut(flat, at, controls_shape)
    output, at = cut(flat, at, output_shape)
    hidden_at = at + s.readers * s.width
    cell_at = hidden_at + s.cells
    return Parameters(gates, controls, output, flat[at:hidden_at], flat[hidden_at:cell_at], flat[cell_at:])


@compiled_with_counts
def turned_in(flat, s):
    """Cut a flat array into `Turned`."""
    gates_shape, controls_shape, output_shape = map_shapes(s)
    gates, at = cut(flat, 0, gates_shape[::-1])
    controls, at = cut(flat, at, controls_shape[::-1])
    output, at = cut(flat, at, output_shape[::-1])
    return Turned(gates, controls, output)


@compiled
def transpose(a, out):
    """Eight columns at a time: a cache line of eight rows is filled while it is at hand."""
    rows, columns = a.shape
    for j in range(0, columns - 7, 8):
        for i in range(rows):
            x = a[i, j : j + 8]
            x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
            out[j, i], out[j + 1, i], out[j + 2, i], out[j + 3, i] = x0, x1, x2, x3
            out[j + 4, i], out[j + 5, i], out[j + 6, i], out[j + 7, i] = x4, x5, x6, x7
    for j in range(columns - columns % 8, columns):
        for i in range(rows):
            out[j, i] = a[i, j]


@compiled_with_counts
def turn(weights, s, turned):
    """Fill `turned` with the maps in `weights`, transposed."""
    p, back = parameters_in(weights, s), turned_in(turned, s)
    transpose(p.gates, back.gates)
    transpose(p.controls, back.controls)
    transpose(p.output, back.output)


@compiled_with_counts
def history_shapes(slots, group, rows, s, twice):
    """The shapes of `History` and `StateGradients`; `twice` where the way back may be taken again."""
    heads, answer = 2 * s.readers, s.readers * s.width + s.cells
    controls, by_head, again = s.readers * (4 * s.width + 12), (slots, group, heads, rows), slots if twice else 0
    history = History(
        memory=(slots + 1, group, s.width, rows),
        weighting=(slots + 1, group, heads, rows),
        cell=(slots + 1, group, s.cells),
        seen=(slots + 1, group, s.inputs + answer + 1),
        gates=(slots, group, 4 * s.cells),
        tanh_cell=(slots, group, s.cells),
        controls=(slots, group, controls),
        inverse_norm=(slots, group, rows),
        similarity=by_head,
        content=by_head,
        shifted=by_head,
        log_shifted=by_head,
        d_logits=(slots, group, s.outputs),
        d_gates=(again, group, 4 * s.cells),
        d_controls=(slots, group, controls),
    )
    return history, StateGradients((group, s.width, rows), (group, heads, rows), (group, s.cells), (group, answer))


@compiled_with_counts
def history_in(room, slots, group, rows, s, twice):
    """Cut a flat array into `History` and `StateGradients`, each of their arrays at the beginning of a cache line."""
    shapes, d_shapes = history_shapes(slots, group, rows, s, twice)
    memory, at = cut(room, 0, shapes.memory)
    weighting, at = cut(room, line(at), shapes.weighting)
    cell, at = cut(room, line(at), shapes.cell)
    seen, at = cut(room, line(at), shapes.seen)
    gates, at = cut(room, line(at), shapes.gates)
    tanh_cell, at = cut(room, line(at), shapes.tanh_cell)
    controls, at = cut(room, line(at), shapes.controls)
    inverse_norm, at = cut(room, line(at), shapes.inverse_norm)
    similarity, at = cut(room, line(at), shapes.similarity)
    content, at = cut(room, line(at), shapes.content)
    shifted, at = cut(room, line(at), shapes.shifted)
    log_shifted, at = cut(room, line(at), shapes.log_shifted)
    d_logits, at = cut(room, line(at), shapes.d_logits)
    d_gates, at = cut(room, line(at), shapes.d_gates)
    d_controls, at = cut(room, line(at), shapes.d_controls)
    d_memory, at = cut(room, line(at), d_shapes.memory)
    d_weighting, at = cut(room, line(at), d_shapes.weighting)
    d_cell, at = cut(room, line(at), d_shapes.cell)
    d_answer, at = cut(room, line(at), d_shapes.answer)
    carried, addressing = (memory, weighting, cell, seen), (inverse_norm, similarity, content, shifted, log_shifted)
    gradients = d_logits, d_gates if twice else gates, d_controls
    history = History(*(carried + (gates, tanh_cell, controls) + addressing + gradients))  # noqa: RUF005 (Numba)
    return history, StateGradients(d_memory, d_weighting, d_cell, d_answer)


@cache
def room_for(*arguments) -> int:
    """How many numbers `history_in` needs, with the same arguments."""
    history, gradients = history_shapes.py_func(*arguments)
    return sum(up_to_line(math.prod(shape)) for shape in (*history, *gradients))


# --- The unroll, one group of sequences -------------------------------------------------------------------------------


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
def memory_step(history, now, after, slot, gated):
    """From the controls' sums to new memory, weightings and reads, each sequence of the group.

    Each equation is taken for all heads before the next, so that none waits for what the last has just written.
    """
    heads, width = history.weighting.shape[2], history.memory.shape[2]
    readers, (reads_at, hidden_at) = heads // 2, places(history)
    for g in range(history.cell.shape[1]):
        memory, inverse_norm = history.memory[now, g], history.inverse_norm[slot, g]
        previous, weighting = history.weighting[now, g], history.weighting[after, g]
        similarity, content = history.similarity[slot, g], history.content[slot, g]
        shifted, log_shifted = history.shifted[slot, g], history.log_shifted[slot, g]
        c = named(history.controls[slot, g], heads, width)
        activate(c)
        compare(memory, c.key, inverse_norm, similarity)
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
        read(memory, weighting[:readers], history.seen[after, g, reads_at:hidden_at])
        write(memory, weighting[readers:], c.erase, c.add, history.memory[after, g])


@compiled_with_counts
def put_start(first, start, history):
    """Put a group's initial state, of which each part may be one for all, into the first slots of its history."""
    reads_at, hidden_at = places(history)
    for g in range(history.seen.shape[1]):
        b = first + g
        history.memory[0, g] = start.memory[b % len(start.memory)]
        history.weighting[0, g] = start.weighting[b % len(start.weighting)]
        history.cell[0, g] = start.cell[b % len(start.cell)]
        history.seen[0, g, hidden_at:-1] = start.hidden[b % len(start.hidden)]
        history.seen[0, g, reads_at:hidden_at] = start.reads[b % len(start.reads)].reshape(hidden_at - reads_at)
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


@part_of_its_caller
def forward_group(first, run, p, history):
    """Run a group, the batch's sequences from `first` on; returns the slot of its final state."""
    (slots, group, _), (reads_at, hidden_at) = history.gates.shape, places(history)
    put_start(first, run.start, history)
    gated = np.empty(history.weighting.shape[2:], history.memory.dtype)
    for t in range(run.inputs.shape[0]):
        now, after, slot = t % (slots + 1), (t + 1) % (slots + 1), t % slots
        copy_columns(run.inputs[t, first : first + group], history.seen[now])
        product(history.seen[now], p.gates, 0, history.gates[slot])
        controller_step(first, run.cell_mask, history, t, now, after, slot)
        product(history.seen[after, :, hidden_at:], p.controls, 0, history.controls[slot])
        memory_step(history, now, after, slot, gated)
        product(history.seen[after, :, reads_at:], p.output, 0, run.logits[t, first : first + group])
    return run.inputs.shape[0] % (slots + 1)


class Scratch(NamedTuple):
    """Room for the gradients of one time step of one sequence."""

    gated: np.ndarray  # (N): the value, made again
    d_content: np.ndarray  # (N)
    d_gated: np.ndarray  # (N)
    d_shifted: np.ndarray  # (N)
    direct: np.ndarray  # (H, N)
    along_row: np.ndarray  # (N), zero between uses
    along_key: np.ndarray  # (H)
    found: np.ndarray  # (M, N)


@compiled
def memory_step_backward(blur_cost, history, t, d, r):
    """The way back through `memory_step`; `blur_cost` is that of one head of one sequence at one step."""
    heads, width = history.weighting.shape[2], history.memory.shape[2]
    readers = heads // 2
    for g in range(history.cell.shape[1]):
        memory, inverse_norm = history.memory[t, g], history.inverse_norm[t, g]
        previous, weighting = history.weighting[t, g], history.weighting[t + 1, g]
        similarity, content = history.similarity[t, g], history.content[t, g]
        shifted, log_shifted = history.shifted[t, g], history.log_shifted[t, g]
        d_memory, d_weighting, d_reads = d.memory[g], d.weighting[g], d.answer[g, : readers * width]
        c = named(history.controls[t, g], heads, width)
        d_c = named(history.d_controls[t, g], heads, width)
        read_write_backward(
            memory, weighting, c.erase, c.add, d_reads, d_memory, d_weighting, d_c.erase, d_c.add, r.found
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
            d_c.key_strength[h], r.along_key[h] = content_weighting_backward(
                inverse_norm, key, c.key_strength[h], similarity[h], content[h], r.d_content, r.direct[h], r.along_row
            )
        memory_backward(
            memory, weighting, c.erase, c.key, d_reads, r.direct, r.along_row, r.along_key, d_memory, d_c.key
        )
        activate_backward(c, d_c)


@compiled
def controller_step_backward(first, cell_mask, history, t, d):
    """The way back through `controller_step`."""
    for g in range(history.cell.shape[1]):
        lstm_backward(
            history.d_gates[t, g],
            history.cell[t, g],
            cell_mask[t, first + g],
            history.tanh_cell[t, g],
            d.answer[g, d.answer.shape[1] - d.cell.shape[1] :],
            d.cell[g],
        )


@part_of_its_caller
def backward_group(first, run, back, history, d, d_inputs, add, d_p):
    """Go back through the time steps of `forward_group`.

    Turns `d` from the final state's gradients into the initial state's, and fills the group's part of `d_inputs`, which
    may be empty. The maps' gradients are set in `d_p`, or, with `add`, added.
    """
    (steps, group, _), kind = history.d_logits.shape, history.d_logits.dtype
    _, _, width, rows = history.memory.shape
    heads, seen_size = history.weighting.shape[2], history.seen.shape[2]
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
        product(history.d_logits[t], back.output[:, :-1], 1, d.answer)
        memory_step_backward(run.blur_cost, history, t, d, r)
        product(history.d_controls[t], back.controls[:, :-1], 1, d.answer[:, hidden_at - reads_at :])
        controller_step_backward(first, run.cell_mask, history, t, d)
        product(history.d_gates[t], back.gates[:, reads_at:-1], 0, d.answer)
        if d_inputs.shape[0]:
            product(history.d_gates[t], back.gates[:, :reads_at], 0, d_inputs[t, first : first + group])
    count = steps * group  # all steps of all sequences are rows now
    seen = history.seen[:steps].reshape(count, seen_size)
    after = history.seen[1:].reshape(count, seen_size)
    add_product(seen, history.d_gates.reshape(count, d_p.gates.shape[1]), add, d_p.gates)
    add_product(after[:, hidden_at:], history.d_controls.reshape(count, d_p.controls.shape[1]), add, d_p.controls)
    add_product(after[:, reads_at:], history.d_logits.reshape(count, d_p.output.shape[1]), add, d_p.output)


@compiled
def loss_of_group(first, logits, goal, history, share, each):
    """The group's part of the loss; fills `history.d_logits`. All bits of a step are a vector, of all its sequences.

    `share` (G, O) and `each` (G * O) are room for what each bit is of the loss, and adds to it.
    """
    steps, group, bits = history.d_logits.shape
    last, count, total = first + group, group * bits, 0.0
    for t in range(steps):
        for g in range(group):
            for j in range(bits):
                share[g, j] = goal.share * goal.mask[t, first + g]
        answer, target = logits[t, first:last].reshape(count), goal.targets[t, first:last].reshape(count)
        cross_entropy(answer, target, share.reshape(count), each, history.d_logits[t].reshape(count))
        for j in range(count):
            total += each[j]
    return total


@compiled
def blur_of_group(history, cost):
    """The sum of `cost` * blur over all steps, sequences and heads of a group."""
    total = 0.0
    for t in range(1, history.weighting.shape[0]):
        for g in range(history.weighting.shape[1]):
            for h in range(history.weighting.shape[2]):
                total += cost * blur(history.weighting[t, g, h])
    return total


# --- Several groups, one after the other ------------------------------------------------------------------------------
# Sequences `first` up to `last`, in groups of `GROUP` or, where they are fewer, in one.


@compiled_with_counts
def forward(first, last, run, rooms, keep, end):
    """Fill logits and final states. There is a room for each group to keep what backward needs, else a single one."""
    steps, group, rows = len(run.inputs), min(GROUP, last - first), run.start.memory.shape[2]
    p = parameters_in(run.weights, run.sizes)
    for i, b in enumerate(range(first, last, group)):
        history, _ = history_in(rooms[i % len(rooms)], steps if keep else 1, group, rows, run.sizes, True)
        get_end(b, forward_group(b, run, p, history), history, end)


@compiled_with_counts
def backward(first, last, run, rooms, d_logits, d_end, d_start, d_inputs, d_weights):
    """Go back from the gradients of logits and final states: fills those of initial states, inputs and maps."""
    steps, group, rows = len(run.inputs), min(GROUP, last - first), run.start.memory.shape[2]
    back, d_p = turned_in(run.turned, run.sizes), parameters_in(d_weights, run.sizes)
    d_p.reads[:], d_p.hidden[:], d_p.cell[:] = 0, 0, 0  # they are in `d_start`
    for i in range(len(rooms) - 1, -1, -1):  # what the last one left may still be in cache
        history, d = history_in(rooms[i], steps, group, rows, run.sizes, True)
        b, reads_size = first + i * group, d.answer.shape[1] - d.cell.shape[1]
        history.d_logits[:], history.d_gates[:] = d_logits[:, b : b + group], history.gates
        for g in range(group):
            d.memory[g], d.weighting[g], d.cell[g] = d_end.memory[b + g], d_end.weighting[b + g], d_end.cell[b + g]
            d.answer[g, :reads_size] = d_end.reads[b + g].reshape(reads_size)
            d.answer[g, reads_size:] = d_end.hidden[b + g]
        backward_group(b, run, back, history, d, d_inputs, i < len(rooms) - 1, d_p)
        for g in range(group):
            d_start.memory[b + g], d_start.weighting[b + g] = d.memory[g], d.weighting[g]
            d_start.reads[b + g].reshape(reads_size)[:] = d.answer[g, :reads_size]
            d_start.hidden[b + g], d_start.cell[b + g] = d.answer[g, reads_size:], d.cell[g]


@compiled_with_counts
def there_and_back(first, last, run, goal, room, add, d_weights):
    """Each group forward, through the loss and back; returns the loss.

    Gradients of all parameters, of which the initial state is made, are set in `d_weights`, or, with `add`, added.
    """
    steps, group, rows = len(run.inputs), min(GROUP, last - first), run.start.memory.shape[2]
    p, back = parameters_in(run.weights, run.sizes), turned_in(run.turned, run.sizes)
    d_p = parameters_in(d_weights, run.sizes)
    history, d = history_in(room, steps, group, rows, run.sizes, False)
    if not add:
        d_p.reads[:], d_p.hidden[:], d_p.cell[:] = 0, 0, 0
    loss, bits, kind = 0.0, run.sizes.outputs, d_weights.dtype
    share, each, no_inputs = np.empty((group, bits), kind), np.empty(group * bits, kind), np.empty((0, 0, 0), kind)
    for b in range(first, last, group):
        forward_group(b, run, p, history)
        loss += loss_of_group(b, run.logits, goal, history, share, each)
        if run.blur_cost != 0:
            loss += blur_of_group(history, run.blur_cost)
        d.memory[:], d.weighting[:], d.cell[:], d.answer[:] = 0, 0, 0, 0
        backward_group(b, run, back, history, d, no_inputs, add or b > first, d_p)
        add_rows(d.answer[:, : len(d_p.reads)], d_p.reads)
        add_rows(d.answer[:, len(d_p.reads) :], d_p.hidden)
        add_rows(d.cell, d_p.cell)
    return loss


# --- A whole batch ----------------------------------------------------------------------------------------------------

MOST_PARTS = 16  # of a batch, for as many threads; not theirs, so that no sum depends on the number of threads
MOST_SPARE = 2**26  # bytes

_spare: list[np.ndarray] = []  # memory of rooms that are gone, for others: fresh memory costs page faults


class Room:
    """Flat arrays with anything in them, each at the beginning of a cache line.

    Keep this for as long as its arrays are used: when it goes, the next room takes their memory.

    Args:
        lengths: of the arrays.
        kind: the type of their numbers.
    """

    def __init__(self, lengths: list[int], kind: np.dtype) -> None:
        starts = [0, *accumulate(map(up_to_line, lengths))]
        self.memory = spare_memory(starts[-1] * kind.itemsize)
        numbers = self.memory[: starts[-1] * kind.itemsize].view(kind)
        self.arrays = [numbers[start : start + length] for start, length in zip(starts, lengths, strict=False)]

    def __del__(self, spare=_spare, most=MOST_SPARE) -> None:  # arguments: at a program's end there are no globals
        if self.memory.nbytes <= most:
            spare.append(self.memory)
            while sum(memory.nbytes for memory in spare) > most:
                del spare[:1]


def spare_memory(needed: int) -> np.ndarray:
    """At least so many bytes, from the beginning of a cache line on: the latest left that are enough, or new ones."""
    for i in range(len(_spare) - 1, -1, -1):
        try:
            if _spare[i].nbytes >= needed:
                memory = _spare.pop(i)
                if memory.nbytes >= needed:  # else another thread took what was there
                    return memory
        except IndexError:  # another thread took it
            continue
    memory = np.empty(needed + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :]


def turned_memory(state: NTMState) -> NTMState:
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
        with Calculating():
            return [job() for job in jobs]
    if _pool is None or _pool._max_workers < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1)
    results, left = [None] * len(jobs), iter(range(len(jobs)))

    def take_what_is_left() -> None:
        with Calculating():
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


def parts(batch: int) -> list[tuple[int, int]]:
    """Cut a batch into parts of whole groups, each for one thread; what is left over is one more. Where each is."""
    whole = batch // GROUP * GROUP
    each = GROUP * max(1, -(-whole // (GROUP * min(MOST_PARTS, max(2, whole // (2 * GROUP))))))
    cuts = [(first, min(first + each, whole)) for first in range(0, whole, each)]
    return cuts + [(whole, batch)] * (whole < batch)


def _flat(tensor: Tensor) -> np.ndarray:
    """An array without gaps, for which alone the functions above are compiled."""
    return np.ascontiguousarray(tensor.numpy())


def as_arrays(state: NTMState) -> NTMState:
    """A state's arrays, its memory [M][N]."""
    return NTMState(*(_flat(part.detach()) for part in turned_memory(state)))


def as_it_lies(tensors: list[Tensor], flat: Tensor) -> np.ndarray | None:
    """The flat tensor's array, if the others lie in it one after the other: `NTM.flatten_parameters` made them so."""
    at = flat.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != at:
            return None
        at += tensor.nbytes
    return flat.detach().numpy()


def weights_of(model: NTM, parameters: list[nn.Parameter]) -> np.ndarray:
    """All parameters, which are `NTM.in_order`, as one array: a view where they lie so, else a copy."""
    weights = None if model.flat is None else as_it_lies(parameters, model.flat)
    return in_a_row(parameters).numpy() if weights is None else weights


def gradients_of(parameters: list[Tensor], flat: np.ndarray) -> list[Tensor]:
    """Flat gradients in the shapes of the parameters; copies where these do not lie by columns themselves."""
    pieces = out_of_a_row(torch.from_numpy(flat), parameters)
    return [d.contiguous() if p.is_contiguous() else d for d, p in zip(pieces, parameters, strict=True)]


def run_of(
    weights: np.ndarray,
    s: Sizes,
    inputs: Tensor,
    start: NTMState,
    cell_mask: Tensor | None = None,
    blur_cost: float = 0.0,
) -> Run:
    """Make a run.

    Args:
        weights: `weights_of` a model.
        s: its sizes.
        inputs: (T, B, input_size).
        start: the initial state, each part of the batch or one for all, as arrays, its memory [M][N].
        cell_mask, blur_cost: as in `NTM.forward_backward`.

    Raises:
        TypeError: inputs, state and weights are not all of one floating-point type on the CPU, or the mask is not bool.
        ValueError: inputs, state or mask do not have the model's shapes, or there is no step.
    """
    (steps, batch, width), array, kind = inputs.shape, _flat(inputs), weights.dtype
    if any(x.dtype != kind for x in (array, *start)):
        raise TypeError(f"the fused path needs inputs and state in {kind}, as the weights are")
    shapes = [(s.width, start.memory.shape[2]), (2 * s.readers, start.memory.shape[2]), (s.readers, s.width)]
    shapes += [(s.cells,), (s.cells,)]
    if width != s.inputs or [part.shape[1:] for part in start] != shapes:
        raise ValueError(f"this model takes {s.inputs} inputs a step, and a state of shapes {shapes} a sequence")
    if not steps or not {len(part) for part in start} <= {1, batch}:
        raise ValueError(
            f"at least one step, and a state of {batch} sequences or one for all: {steps} steps were given"
        )
    if cell_mask is not None and cell_mask.dtype != torch.bool:
        raise TypeError(f"cell_mask must be of type bool, not {cell_mask.dtype}")
    if cell_mask is not None and cell_mask.shape != (steps, batch, s.cells):
        raise ValueError(f"cell_mask must be {(steps, batch, s.cells)}, not {tuple(cell_mask.shape)}")
    return Run(
        inputs=array,
        cell_mask=np.empty((steps, batch, 0), bool) if cell_mask is None else _flat(cell_mask),
        start=start,
        weights=weights,
        turned=weights[:0],
        sizes=s,
        blur_cost=kind.type(blur_cost / (2 * s.readers * max(1, batch * steps))),
        logits=np.empty((steps, batch, s.outputs), kind),
    )


def sizes_of(parameters: list[nn.Parameter]) -> Sizes:
    """Read a model's sizes off its parameters, in `NTM.in_order`."""
    gates, _, _, _, output, _, reads, *_ = (parameter.shape for parameter in parameters)
    (readers, width), cells = reads, gates[0] // 4
    return Sizes(gates[1] - readers * width - cells, readers, width, cells, output[0])


class Unroll(torch.autograd.Function):
    """A run as PyTorch sees it."""

    @staticmethod
    def forward(ctx, run, keep, inputs, memory, weighting, reads, hidden, cell, *parameters):
        """Return logits and the final state's five tensors."""
        (steps, batch, _), rows, kind = inputs.shape, run.start.memory.shape[2], run.logits.dtype
        end, cuts = NTMState(*(np.empty((batch, *part.shape[1:]), kind) for part in run.start)), parts(batch)
        needed = [room_for(steps if keep else 1, min(GROUP, b - a), rows, run.sizes, True) for a, b in cuts]
        groups = [(b - a) // min(GROUP, b - a) if keep else 1 for a, b in cuts]
        room = Room([n * count for n, count in zip(groups, needed, strict=True)], kind)
        rooms = [array.reshape(-1, count) for array, count in zip(room.arrays, needed, strict=True)]
        at_once([partial(forward, a, b, run, each, keep, end) for (a, b), each in zip(cuts, rooms, strict=True)])
        if keep:
            ctx.save_for_backward(*parameters)  # so that PyTorch notices a weight that changes before backward
            ctx.run, ctx.room, ctx.kept = run, room, list(zip(cuts, rooms, strict=True))
            ctx.set_materialize_grads(False)
        return tuple(map(torch.from_numpy, (run.logits, *turned_memory(end))))

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logits, *d_end):
        """Return a gradient for each argument of `forward`."""
        parameters, run, needed, kind = ctx.saved_tensors, ctx.run, ctx.needs_input_grad, ctx.run.logits.dtype
        batch, count = run.inputs.shape[1], run.weights.size
        room = Room([count] * (1 + len(ctx.kept)), kind)
        turned, *d_parts = room.arrays
        turn(run.weights, run.sizes, turned)
        run = run._replace(turned=turned)
        d_logits = np.zeros_like(run.logits) if d_logits is None else _flat(d_logits)
        d_start = NTMState(*(np.empty((batch, *part.shape[1:]), kind) for part in run.start))
        d_end = turned_memory(NTMState(*d_end))
        d_end = NTMState(*(np.zeros_like(z) if d is None else _flat(d) for d, z in zip(d_end, d_start, strict=True)))
        d_inputs = np.empty(run.inputs.shape if needed[2] else (0, 0, 0), kind)
        jobs = [
            partial(backward, a, b, run, rooms, d_logits, d_end, d_start, d_inputs, d_part)
            for ((a, b), rooms), d_part in zip(ctx.kept, d_parts, strict=True)
        ]
        at_once(jobs)
        d_start = turned_memory(NTMState(*map(torch.from_numpy, d_start)))
        shared = (len(part) < batch for part in run.start)
        d_start = [d.sum(0, keepdim=True) if one else d for d, one in zip(d_start, shared, strict=True)]
        d_weights = gradients_of(parameters, sum(d_parts, np.zeros(count, kind)))
        return None, None, torch.from_numpy(d_inputs) if needed[2] else None, *d_start, *d_weights


def unroll(model: NTM, inputs: Tensor, state: NTMState, cell_mask: Tensor | None = None) -> tuple[Tensor, NTMState]:
    """Compute what `NTM.unroll` computes, faster. Twice differentiable it is not.

    Raises:
        TypeError, ValueError: as `run_of`.
    """
    parameters = model.in_order()
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (inputs, *state, *parameters))
    weights = in_a_row(parameters).numpy() if keep else weights_of(model, parameters)  # they may change before backward
    run = run_of(weights, sizes_of(parameters), inputs.detach(), as_arrays(state), cell_mask)
    logits, *end = Unroll.apply(run, keep, inputs, *state, *parameters)
    return logits, NTMState(*end)


def goal_of(run: Run, targets: Tensor, mask: Tensor) -> Goal:
    """Make a run's goal.

    Raises:
        ValueError: targets or mask do not fit, or no step counts.
    """
    wanted, counted, shape, kind = _flat(targets), _flat(mask), run.logits.shape, run.logits.dtype
    if wanted.shape != shape or counted.shape != shape[:2] or not wanted.dtype == counted.dtype == kind:
        raise ValueError(f"targets and mask must be {shape} and {shape[:2]}, in {kind}")
    steps = counted.sum()
    if steps == 0:
        raise ValueError("no step counts: the mask is 0 everywhere")
    return Goal(wanted, counted, kind.type(1 / (steps * shape[2])))


def loss_and_gradients(run: Run, goal: Goal, gradients: np.ndarray) -> float:
    """Take a run forward and back, each group while it is in cache: returns the loss, adds to the flat gradients."""
    count, cuts, rows = gradients.size, parts(run.inputs.shape[1]), run.start.memory.shape[2]
    room = Room([count] * len(cuts), gradients.dtype)
    turned, *sums = room.arrays
    turn(run.weights, run.sizes, turned)
    run = run._replace(turned=turned)

    def part(first: int, last: int, add: bool, into: np.ndarray) -> float:
        needed = room_for(len(run.inputs), min(GROUP, last - first), rows, run.sizes, False)
        own = Room([needed], into.dtype)  # now and not for all parts at once
        return there_and_back(first, last, run, goal, own.arrays[0], add, into)

    jobs = [partial(part, *cuts[0], True, gradients)]  # adds to what is there
    jobs += [partial(part, *where, False, total) for where, total in zip(cuts[1:], sums, strict=True)]
    losses = at_once(jobs)
    for total in sums:
        gradients += total
    return sum(losses)


def learned_start(weights: np.ndarray, s: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The initial reads, hidden state and cell in flat weights, one for all sequences: views."""
    hidden_at, cell_at = len(weights) - 2 * s.cells, len(weights) - s.cells
    reads = weights[hidden_at - s.readers * s.width : hidden_at].reshape(1, s.readers, s.width)
    return reads, weights[None, hidden_at:cell_at], weights[None, cell_at:]


def forward_backward(
    model: NTM,
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor,
    state: NTMState,
    cell_mask: Tensor | None = None,
    blur_cost: float = 0.0,
) -> tuple[float, Tensor]:
    """Compute what `NTM.forward_backward` computes, faster.

    Args:
        model, inputs, targets, mask, cell_mask, blur_cost: as there.
        state: where the batch starts. Its reads, hidden state and cell are not looked at: the learned ones are taken.

    Raises:
        TypeError, ValueError: as `run_of` and `goal_of`.
    """
    parameters = model.in_order()
    weights, sizes = weights_of(model, parameters), sizes_of(parameters)
    memory, weighting = as_arrays(state)[:2]
    start = NTMState(memory, weighting, *learned_start(weights, sizes))
    run = run_of(weights, sizes, inputs, start, cell_mask, blur_cost)
    goal = goal_of(run, targets, mask)
    wanted = [p.grad for p in parameters if p.requires_grad and p.grad is not None]
    if len(wanted) == len(parameters) and model.flat is not None and model.flat.grad is not None:
        gradients = as_it_lies(wanted, model.flat.grad)
        if gradients is not None:
            return loss_and_gradients(run, goal, gradients), torch.from_numpy(run.logits)
    gradients = np.zeros_like(run.weights)
    loss = loss_and_gradients(run, goal, gradients)
    for parameter, gradient in zip(parameters, gradients_of(parameters, gradients), strict=True):
        if parameter.requires_grad and parameter.grad is not None:
            parameter.grad += gradient
        elif parameter.requires_grad:
            parameter.grad = gradient
    return loss, torch.from_numpy(run.logits)


def warm_up(model: NTM) -> None:
    """Compile what a model needs, or load it from the cache, by taking a step and going back, both ways."""
    model = deepcopy(model)  # which gets the gradients
    inputs = model.initial_hidden.new_zeros(1, 1, model.input_size, requires_grad=True)
    with torch.enable_grad():
        logits, _ = unroll(model, inputs, model.initial_state(1))
        torch.autograd.grad(logits.sum(), inputs)
    model.forward_backward(inputs.detach(), torch.zeros_like(logits), torch.ones_like(logits[..., 0]))
