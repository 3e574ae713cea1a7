"""The fast path: a whole unroll of the NTM, forward and hand-derived backward, as one call on the CPU.

A time step of the readable model (ntm/ntm.py) is about sixty small PyTorch operations, and starting them takes longer
than their arithmetic. Here a step is plain loops, compiled by Numba, around BLAS matrix products. The readable model is
the definition; this file computes the same numbers, and the tests hold one against the other.

How it is laid out
    * Memory is [M][N] here, a row of the paper a column, so that the N rows lie along the vector lanes.
    * Sequences go in groups of 8 or 16, and groups are shared out over threads, one call a thread. A group's size
      does not depend on the number of threads, and neither does any result.
    * `History` holds what backward needs. Step t has slot `t % slots`, and in arrays that carry a value on to the next
      step, `t % (slots + 1)`: as many slots as steps, or a single one where no gradient is wanted.
    * There is a write head for each read head; heads are numbered read heads first.
    * Each equation is a small function with its backward next to it. A gradient carries the name of its variable with a
      `d_` in front. Backward functions that several users of a value share add to its gradient, others set it.
    * Loops avoid literals such as `1 - x`: an integer beside a float32 would make Numba compute in float64.
"""

import math
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  the BLAS behind np.dot in compiled code
import torch
from llvmlite.binding import get_host_cpu_features
from numba import config, njit, types
from numba.core.cpu import CPUTargetOptions
from numba.extending import overload
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.autograd.function import once_differentiable

from ntm import addressing
from ntm.ntm import FREE, NOTHING, NTM, Costs, Dropped, NTMState

# Groups have the threads; a product inside one must not start more. This holds for all of NumPy's and SciPy's products
# in the process; PyTorch has a BLAS of its own.
threadpool_limits(limits=1, user_api="blas")

WORTH_SHARING = 1000  # steps times sequences: with fewer, handing a product to a thread takes longer than the product
SMALL_PRODUCT = 1_000_000  # multiplications: beyond it, OpenBLAS packs its operands first, which costs more here
# The arrays that one of the small functions below takes never overlap. Numba has a flag that says so, but no option for
# it; without, each short loop would begin with comparing all its arrays' addresses, which takes longer than the loop.
CPUTargetOptions.noalias = CPUTargetOptions.Mapping("noalias")
if config.CPU_FEATURES is None and platform.machine() in ("x86_64", "AMD64"):  # vectors as wide as the processor has
    config.CPU_FEATURES = get_host_cpu_features().flatten() + ",-prefer-256-bit"
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
    gate_in, forget, candidate, gate_out = (
        gates[:size],
        gates[size : 2 * size],
        gates[2 * size : 3 * size],
        gates[3 * size :],
    )
    for j in range(size):
        gate_in[j] = sigmoid(gate_in[j])
    for j in range(size):
        forget[j] = sigmoid(forget[j])
    for j in range(size):
        candidate[j] = tanh(candidate[j])
    for j in range(size):
        gate_out[j] = sigmoid(gate_out[j])
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


# --- The unroll, one group of sequences -------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """The model's weights, as `nn.Linear` lays them out, (out, in), and the maps of the forward pass transposed."""

    gates: np.ndarray
    gates_t: np.ndarray
    gates_bias: np.ndarray
    controls: np.ndarray
    controls_t: np.ndarray
    controls_bias: np.ndarray
    output: np.ndarray
    output_t: np.ndarray
    output_bias: np.ndarray


class History(NamedTuple):
    """What a batch leaves behind, by time slot. Carried values have a slot more, for the step before."""

    memory: np.ndarray  # (slots + 1, B, M, N)
    weighting: np.ndarray  # (slots + 1, B, H, N)
    cell: np.ndarray  # (slots + 1, B, C)
    seen: np.ndarray  # (slots + 1, B, I + R M + C): input, last reads, last hidden
    gates: np.ndarray  # (slots, B, 4 C)
    tanh_cell: np.ndarray  # (slots, B, C)
    hidden: np.ndarray  # (slots, B, C)
    controls: np.ndarray  # (slots, B, P)
    inverse_norm: np.ndarray  # (slots, B, N)
    similarity: np.ndarray  # (slots, B, H, N)
    content: np.ndarray  # (slots, B, H, N)
    shifted: np.ndarray  # (slots, B, H, N)
    log_shifted: np.ndarray  # (slots, B, H, N)
    answer: np.ndarray  # (slots, B, C + R M): hidden, reads
    d_gates: np.ndarray  # (slots, B, 4 C), filled on the way back: gradients of the gates' sums,
    d_controls: np.ndarray  # (slots, B, P), and of the controls' sums


@compiled
def add_bias(sums, bias):
    for b in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            sums[b, j] += bias[j]


@compiled_with_counts
def product(a, b, out):
    """`np.dot(a, b, out)`, in pieces small enough for the kernels that OpenBLAS has for small products."""
    pieces = -(-a.shape[0] // max(1, SMALL_PRODUCT // b.size))
    rows = -(-a.shape[0] // pieces)
    for row in range(0, a.shape[0], rows):
        np.dot(a[row : row + rows], b, out[row : row + rows])


@compiled
def copy_columns(a, out, count):
    """Copy the first columns of a matrix."""
    for b in range(a.shape[0]):
        for j in range(count):
            out[b, j] = a[b, j]


@compiled
def controller_step(first, last, gates_bias, cell_mask, history, t, now, after, slot):
    """From the gates' sums to the controller's output, each sequence of the group."""
    add_bias(history.gates[slot, first:last], gates_bias)
    for b in range(first, last):
        lstm(
            history.gates[slot, b],
            history.cell[now, b],
            cell_mask[t, b],
            history.cell[after, b],
            history.tanh_cell[slot, b],
            history.hidden[slot, b],
        )


@compiled
def memory_step(first, last, controls_bias, blind, history, now, after, slot, gated):
    """From the controls' sums to new memory, weightings and reads, each sequence of the group."""
    heads, size, width = history.weighting.shape[2], history.cell.shape[2], history.memory.shape[2]
    readers = heads // 2
    add_bias(history.controls[slot, first:last], controls_bias)
    for b in range(first, last):
        memory, inverse_norm = history.memory[now, b], history.inverse_norm[slot, b]
        previous, weighting = history.weighting[now, b], history.weighting[after, b]
        c = named(history.controls[slot, b], heads, width)
        activate(c)
        if not blind[b]:
            compare(memory, c.key, inverse_norm, history.similarity[slot, b])
            for n in range(inverse_norm.shape[0]):
                inverse_norm[n] = ONE / np.sqrt(inverse_norm[n])
        for h in range(heads):
            similarity, content = history.similarity[slot, b, h], history.content[slot, b, h]
            shifted, log_shifted = history.shifted[slot, b, h], history.log_shifted[slot, b, h]
            key = c.key[h * width : (h + 1) * width]
            if blind[b]:
                copy(previous[h], gated)
            else:
                content_weighting(inverse_norm, key, c.key_strength[h], similarity, content)
                interpolate(content, previous[h], c.interpolation_gate[h], gated)
            shift(gated, c.shift_weighting[3 * h : 3 * h + 3], shifted)
            sharpen(shifted, c.sharpening[h], log_shifted, weighting[h])
        hidden, answer, seen = history.hidden[slot, b], history.answer[slot, b], history.seen[after, b]
        read(memory, weighting[:readers], answer[size:])
        write(memory, weighting[readers:], c.erase, c.add, history.memory[after, b])
        reads_at, hidden_at = seen.shape[0] - size - readers * width, seen.shape[0] - size
        for j in range(size):
            answer[j] = seen[hidden_at + j] = hidden[j]
        for j in range(readers * width):
            seen[reads_at + j] = answer[size + j]


@compiled_with_counts
def forward_groups(begin, end, group, inputs, cell_mask, blind, p, history, logits):
    """Run sequences `begin` to `end` of a batch, a group at a time: inputs (T, B, I) to logits (T, B, O).

    The first slot of `history` holds the start.
    """
    slots = history.gates.shape[0]
    gated = np.empty(history.weighting.shape[3], inputs.dtype)
    for first in range(begin, end, group):
        last = min(first + group, end)
        for t in range(inputs.shape[0]):
            now, after, slot = t % (slots + 1), (t + 1) % (slots + 1), t % slots
            copy_columns(inputs[t, first:last], history.seen[now, first:last], inputs.shape[2])
            product(history.seen[now, first:last], p.gates_t, history.gates[slot, first:last])
            controller_step(first, last, p.gates_bias, cell_mask, history, t, now, after, slot)
            product(history.hidden[slot, first:last], p.controls_t, history.controls[slot, first:last])
            memory_step(first, last, p.controls_bias, blind, history, now, after, slot, gated)
            product(history.answer[slot, first:last], p.output_t, logits[t, first:last])
            add_bias(logits[t, first:last], p.output_bias)


class StateGradients(NamedTuple):
    """Gradients of the final state; `backward_groups` turns them into those of the initial state, in place."""

    memory: np.ndarray  # (B, M, N)
    weighting: np.ndarray  # (B, H, N)
    cell: np.ndarray  # (B, C)
    reads_hidden: np.ndarray  # (B, R M + C)


class Scratch(NamedTuple):
    """Room for the gradients of one time step of a group of G sequences, and of one sequence."""

    answer: np.ndarray  # (G, C + R M)
    hidden: np.ndarray  # (G, C)
    seen: np.ndarray  # (G, I + R M + C)
    reads: np.ndarray  # (R M)
    gated: np.ndarray  # (N): the value, made again
    d_gated: np.ndarray  # (N)
    content: np.ndarray  # (N)
    shifted: np.ndarray  # (N)
    direct: np.ndarray  # (H, N)
    along_row: np.ndarray  # (N), zero between uses
    along_key: np.ndarray  # (H)
    found: np.ndarray  # (M, N)


@compiled
def memory_step_backward(first, last, blind, gate_cost, blur_cost, history, t, d, r):
    """The way back through `memory_step`. The costs are those of one head at one step."""
    heads, size, width = history.weighting.shape[2], history.cell.shape[2], history.memory.shape[2]
    readers = heads // 2
    reads_at = r.seen.shape[1] - size - readers * width
    for b in range(first, last):
        memory, inverse_norm = history.memory[t, b], history.inverse_norm[t, b]
        previous, weighting = history.weighting[t, b], history.weighting[t + 1, b]
        d_memory, d_weighting = d.memory[b], d.weighting[b]
        c = named(history.controls[t, b], heads, width)
        d_c = named(history.d_controls[t, b], heads, width)
        for j in range(readers * width):
            r.reads[j] = r.answer[b - first, size + j] + r.seen[b - first, reads_at + j]
        read_write_backward(
            memory, weighting, c.erase, c.add, r.reads, d_memory, d_weighting, d_c.erase, d_c.add, r.found
        )
        for h in range(heads):
            charge_blur(blur_cost, weighting[h], d_weighting[h])
            similarity, content = history.similarity[t, b, h], history.content[t, b, h]
            shifted, log_shifted = history.shifted[t, b, h], history.log_shifted[t, b, h]
            gate, s, d_s = c.interpolation_gate[h], c.shift_weighting[3 * h :], d_c.shift_weighting[3 * h :]
            if blind[b]:
                copy(previous[h], r.gated)
            else:
                interpolate(content, previous[h], gate, r.gated)
            d_c.sharpening[h] = sharpen_backward(
                shifted, c.sharpening[h], log_shifted, weighting[h], d_weighting[h], r.shifted
            )
            shift_backward(r.gated, s, r.shifted, r.d_gated, d_s)
            if blind[b]:  # the gate was not followed, but it costs what it asks
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
        if blind[b]:
            d_c.key_strength[:] = r.along_key[:] = 0
            r.direct[:] = 0
        memory_backward(
            memory, weighting, c.erase, c.key, r.reads, r.direct, r.along_row, r.along_key, d_memory, d_c.key
        )
        activate_backward(c, d_c)


@compiled
def controller_step_backward(first, last, cell_mask, history, t, d, r):
    """The way back through `controller_step`; `r.hidden` comes with what the controls hand back."""
    size = history.cell.shape[2]
    hidden_at = r.seen.shape[1] - size
    for b in range(first, last):
        g = b - first
        for j in range(size):
            r.hidden[g, j] += r.answer[g, j] + r.seen[g, hidden_at + j]
        lstm_backward(
            history.gates[t, b],
            history.cell[t, b],
            cell_mask[t, b],
            history.tanh_cell[t, b],
            r.hidden[g],
            d.cell[b],
            history.d_gates[t, b],
        )


@compiled_with_counts
def backward_groups(begin, end, group, cell_mask, blind, gate_cost, blur_cost, p, history, d_logits, d, d_inputs):
    """Go back through the time steps of `forward_groups`.

    Turns `d` from the final state's gradients into the initial state's, sets `d_inputs` (T, B, I), and fills
    `history.d_gates` and `history.d_controls`, from which the gradients of the weights follow.
    """
    (steps, _, input_size), kind = d_inputs.shape, d_inputs.dtype
    _, _, width, rows = history.memory.shape
    heads, size, seen = history.weighting.shape[2], history.cell.shape[2], history.seen.shape[2]
    reads = history.answer.shape[2] - size
    r = Scratch(
        np.empty((group, size + reads), kind),
        np.empty((group, size), kind),
        np.empty((group, seen), kind),
        np.empty(reads, kind),
        np.empty(rows, kind),
        np.empty(rows, kind),
        np.empty(rows, kind),
        np.empty(rows, kind),
        np.empty((heads, rows), kind),
        np.zeros(rows, kind),
        np.empty(heads, kind),
        np.empty((width, rows), kind),
    )
    for first in range(begin + (end - begin - 1) // group * group, begin - 1, -group):  # the last is still in cache
        last = min(first + group, end)
        r_answer, r_hidden, r_seen = r.answer[: last - first], r.hidden[: last - first], r.seen[: last - first]
        r_seen[:, input_size:] = d.reads_hidden[first:last]
        for t in range(steps - 1, -1, -1):
            product(d_logits[t, first:last], p.output, r_answer)
            memory_step_backward(first, last, blind, gate_cost, blur_cost, history, t, d, r)
            product(history.d_controls[t, first:last], p.controls, r_hidden)
            controller_step_backward(first, last, cell_mask, history, t, d, r)
            product(history.d_gates[t, first:last], p.gates, r_seen)
            copy_columns(r_seen, d_inputs[t, first:last], input_size)
        d.reads_hidden[first:last] = r_seen[:, input_size:]


# --- The unroll, a whole batch ----------------------------------------------------------------------------------------


_spare: list[np.ndarray] = []  # room of histories that are gone, to be used again: fresh memory costs page faults
MOST_SPARE = 2


class Kept:
    """What forward leaves for backward, and room for what backward makes. The room is handed on when it goes."""

    def __init__(self, room: np.ndarray, arrays: list[np.ndarray]) -> None:
        self.room = room  # in which all the arrays lie
        self.history, self.d = History(*arrays[: len(History._fields)]), StateGradients(*arrays[len(History._fields) :])

    def __del__(self) -> None:
        if len(_spare) < MOST_SPARE:
            _spare.append(self.room)


@cache
def layout(
    kind: np.dtype, slots: int, batch: int, rows: int, width: int, heads: int, size: int, seen: int, controls: int
) -> tuple[tuple, int]:
    """Lay the arrays of `History` and `StateGradients` one after the other, 64 bytes aligned to one another.

    Returns:
        Shape and offset in bytes of each, and the bytes in all.
    """
    reads = heads // 2 * width
    history = History(
        memory=(slots + 1, batch, width, rows),
        weighting=(slots + 1, batch, heads, rows),
        cell=(slots + 1, batch, size),
        seen=(slots + 1, batch, seen),
        gates=(slots, batch, 4 * size),
        tanh_cell=(slots, batch, size),
        hidden=(slots, batch, size),
        controls=(slots, batch, controls),
        inverse_norm=(slots, batch, rows),
        similarity=(slots, batch, heads, rows),
        content=(slots, batch, heads, rows),
        shifted=(slots, batch, heads, rows),
        log_shifted=(slots, batch, heads, rows),
        answer=(slots, batch, size + reads),
        d_gates=(slots, batch, 4 * size),
        d_controls=(slots, batch, controls),
    )
    gradients = StateGradients((batch, width, rows), (batch, heads, rows), (batch, size), (batch, reads + size))
    places, end = [], 0
    for shape in (*history, *gradients):
        places.append((shape, end))
        end += -(-math.prod(shape) * kind.itemsize // 64) * 64
    return tuple(places), end


def keep_room(slots: int, batch: int, start: NTMState, p: Parameters) -> Kept:
    """Make room for a batch's history, and put the initial state in its first slot.

    Args:
        slots: the number of steps, or 1 to keep nothing.
        batch: B.
        start: the initial state, as arrays, of B sequences or one for all.
        p: the weights.
    """
    (_, heads, rows), size, kind = start.weighting.shape, start.cell.shape[1], p.gates.dtype
    width, seen, reads = start.memory.shape[2], p.gates.shape[1], start.reads[0].size
    places, needed = layout(kind, slots, batch, rows, width, heads, size, seen, len(p.controls_bias))
    try:
        room = _spare.pop()
    except IndexError:
        room = np.empty(0, np.uint8)
    if room.nbytes < needed:
        room = np.empty(needed, np.uint8)
    kept = Kept(room, [np.ndarray(shape, kind, room, offset) for shape, offset in places])
    history = kept.history
    history.memory[0] = start.memory.transpose(0, 2, 1)
    history.weighting[0], history.cell[0] = start.weighting, start.cell
    history.seen[0, :, seen - size - reads : seen - size] = start.reads.reshape(-1, reads)
    history.seen[0, :, seen - size :] = start.hidden
    return kept


class DenormalsFlushed:
    """While it lasts, this thread takes numbers below the smallest normal one for 0.

    Weightings and their gradients fade to such numbers everywhere, and arithmetic on them is many times slower.
    """

    TINY = np.array(1e-40, np.float32)

    def __enter__(self) -> None:
        self.before = bool(self.TINY * 1 == 0)
        torch.set_flush_denormal(True)

    def __exit__(self, *_) -> None:
        torch.set_flush_denormal(self.before)


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


def threads_for(jobs: int) -> int:
    """The number of threads that so many jobs get."""
    return max(1, min(_threads or torch.get_num_threads(), jobs))


def at_once(jobs: list[Callable[[], Any]]) -> list:
    """Call the jobs, at once where there are threads for that; results in order."""
    global _pool
    threads = threads_for(len(jobs))
    if threads == 1:
        return [job() for job in jobs]
    if _pool is None or _pool._max_workers < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1)
    others = [_pool.submit(job) for job in jobs[1:]]
    try:
        return [jobs[0](), *(other.result() for other in others)]
    finally:
        wait(others)  # whatever happened: they write to rooms that would be handed on


def share_out(work, batch: int, *arguments) -> None:
    """Call `work(begin, end, group, *arguments)` for all of a batch: parts of whole groups, one for each thread."""
    group = 8 if batch < 32 else 16  # few enough to stay in cache, enough to feed a matrix product and two threads
    groups = -(-batch // group)
    threads = threads_for(groups)
    bounds = [min(groups * i // threads * group, batch) for i in range(threads + 1)]

    def part(begin: int, end: int) -> None:
        with DenormalsFlushed():
            work(begin, end, group, *arguments)

    at_once([partial(part, begin, end) for begin, end in pairwise(bounds)])


def forward(
    p: Parameters,
    inputs: np.ndarray,
    cell_mask: np.ndarray,
    blind: np.ndarray,
    start: NTMState,
    keep: bool,
) -> tuple[np.ndarray, NTMState, Kept]:
    """Run a batch: logits (T, B, O), the final state, and what was kept: with `keep`, all that backward needs."""
    steps, batch, input_size = inputs.shape
    kept = keep_room(steps if keep else 1, batch, start, p)
    history, size = kept.history, start.cell.shape[1]
    logits = np.empty((steps, batch, len(p.output_bias)), inputs.dtype)
    share_out(forward_groups, batch, inputs, cell_mask, blind, p, history, logits)
    last = steps % len(history.memory)
    end = NTMState(
        memory=history.memory[last].copy().transpose(0, 2, 1),
        weighting=history.weighting[last].copy(),
        reads=history.seen[last, :, input_size:-size].copy().reshape(batch, *start.reads.shape[1:]),
        hidden=history.seen[last, :, -size:].copy(),
        cell=history.cell[last].copy(),
    )
    return logits, end, kept


def backward(
    p: Parameters,
    costs: Costs,
    cell_mask: np.ndarray,
    blind: np.ndarray,
    kept: Kept,
    d_logits: np.ndarray,
    d_end: NTMState,
) -> tuple[np.ndarray, NTMState, list[np.ndarray]]:
    """Turn gradients of what `forward` gave into those of inputs, initial state, and weights with their biases.

    What is None in `d_end` has no gradient. The initial state's gradients last no longer than what was kept.
    """
    history, d, (steps, batch, _), kind = kept.history, kept.d, d_logits.shape, d_logits.dtype
    heads, size = history.weighting.shape[2], history.cell.shape[2]
    reads_size, width = history.answer.shape[2] - size, history.memory.shape[2]
    d_state = NTMState(
        memory=d.memory.transpose(0, 2, 1),
        weighting=d.weighting,
        reads=d.reads_hidden[:, :reads_size].reshape(batch, -1, width),
        hidden=d.reads_hidden[:, reads_size:],
        cell=d.cell,
    )
    for ours, given in zip(d_state, d_end, strict=True):
        ours[:] = 0 if given is None else given
    d_inputs = np.empty((steps, batch, history.seen.shape[2] - reads_size - size), kind)
    charged = kind.type(costs.content / (heads * batch * steps)), kind.type(costs.blur / (heads * batch * steps))
    share_out(backward_groups, batch, cell_mask, blind, *charged, p, history, d_logits, d, d_inputs)
    return d_inputs, d_state, weight_gradients(history, d_logits)


def weight_gradients(history: History, d_logits: np.ndarray) -> list[np.ndarray]:
    """Make the gradients of the weights and biases of the three maps, sums = source @ weight.T + bias.

    One product over all time steps and sequences for each map; that of the gates, which is the largest, in two halves.
    """
    maps = (history.d_gates, history.seen[:-1]), (history.d_controls, history.hidden), (d_logits, history.answer)
    (gates, seen), *others = [(sums.reshape(-1, sums.shape[2]), x.reshape(-1, x.shape[2])) for sums, x in maps]
    d_gates, half = np.empty((gates.shape[1], seen.shape[1]), gates.dtype), gates.shape[1] // 2

    def first_half() -> np.ndarray:
        np.dot(gates[:, :half].T, seen, d_gates[:half])
        return gates.sum(0)

    def rest() -> list[np.ndarray]:
        np.dot(gates[:, half:].T, seen, d_gates[half:])
        return [d_weight for sums, x in others for d_weight in (sums.T @ x, sums.sum(0))]

    jobs = [first_half, rest]
    d_gates_bias, d_others = at_once(jobs) if len(gates) > WORTH_SHARING else [job() for job in jobs]
    return [d_gates, d_gates_bias, *d_others]


class Unroll(torch.autograd.Function):
    """`forward` and `backward` as PyTorch sees them."""

    @staticmethod
    def forward(ctx, keep, dropped, costs, inputs, memory, weighting, reads, hidden, cell, *weights):
        """Return logits and the final state's five tensors. The initial state may be one for all sequences."""
        start = NTMState(*(s.numpy() for s in (memory, weighting, reads, hidden, cell)))
        steps, batch, _ = inputs.shape
        cells = np.empty((steps, batch, 0), start.cell.dtype) if dropped.cells is None else _flat(dropped.cells)
        blind = np.zeros(batch, bool) if dropped.blind is None else _flat(dropped.blind)
        p = _parameters(weights)
        logits, end, kept = forward(p, _flat(inputs), cells, blind, start, keep)
        if keep:
            ctx.save_for_backward(*weights)  # so that PyTorch notices a weight that changes before backward
            ctx.arguments, ctx.start_batch = (p, costs, cells, blind, kept), len(start.cell)
            ctx.set_materialize_grads(False)
        return tuple(map(torch.from_numpy, (logits, *end)))

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logits, *d_end):
        """Return a gradient for each argument of `forward`."""
        _ = ctx.saved_tensors
        p, kept = ctx.arguments[0], ctx.arguments[-1]
        steps, batch, _ = kept.history.gates.shape
        arguments = ctx.arguments
        if d_logits is None:  # costs come with the logits' gradient, as in ntm.Charge
            d_logits = np.zeros((steps, batch, len(p.output)), p.gates.dtype)
            arguments = (*arguments[:1], FREE, *arguments[2:])
        else:
            d_logits = _flat(d_logits)
        d_end = NTMState(*(None if d is None else d.numpy() for d in d_end))
        d_inputs, d_start, d_weights = backward(*arguments, d_logits, d_end)
        summed = ctx.start_batch < batch
        d_start = [
            torch.from_numpy(d.sum(0, keepdims=True) if summed else d.copy()) if needed else None
            for d, needed in zip(d_start, ctx.needs_input_grad[4:9], strict=True)
        ]
        return None, None, None, torch.from_numpy(d_inputs), *d_start, *map(torch.from_numpy, d_weights)


def _flat(tensor: Tensor) -> np.ndarray:
    """An array without gaps, for which alone the functions above are compiled."""
    return np.ascontiguousarray(tensor.numpy())


def _parameters(weights: tuple[Tensor, ...]) -> Parameters:
    gates, gates_bias, controls, controls_bias, output, output_bias = (w.detach().numpy() for w in weights)
    return Parameters(
        *(gates, gates.T.copy(), gates_bias),
        *(controls, controls.T.copy(), controls_bias),
        *(output, output.T.copy(), output_bias),
    )


def unroll(
    model: NTM, inputs: Tensor, state: NTMState, dropped: Dropped = NOTHING, costs: Costs = FREE
) -> tuple[Tensor, NTMState]:
    """Compute what `NTM.unroll` computes, faster. Twice differentiable it is not.

    Raises:
        TypeError: inputs, state, mask and weights are not all of one floating-point type on the CPU.
        ValueError: inputs or state do not have the model's shapes.
    """
    maps = model.controller.gates_map, model.heads.controls_map, model.output_map
    weights = [tensor for linear in maps for tensor in (linear.weight, linear.bias)]
    given = [inputs, *state, *weights] + ([] if dropped.cells is None else [dropped.cells])
    if any(x.dtype != inputs.dtype or x.device.type != "cpu" for x in given):
        raise TypeError(f"the fused path needs inputs, state and weights all in {weights[0].dtype} on the CPU")
    rows, (readers, width), cells = state.memory.shape[1], model.initial_reads.shape, model.initial_cell.shape
    shapes = [(rows, width), (2 * readers, rows), (readers, width), cells, cells]
    if inputs.shape[2] != model.input_size or [part.shape[1:] for part in state] != shapes:
        raise ValueError(
            f"this model takes {model.input_size} inputs a step, and a state of shapes {shapes} a sequence"
        )
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    logits, *end = Unroll.apply(keep, dropped, costs, inputs, *state, *weights)
    return logits, NTMState(*end)


def warm_up(model: NTM) -> None:
    """Compile what a model needs, or load it from the cache, by taking a step and going back."""
    inputs = model.initial_hidden.new_zeros(1, 1, model.input_size)
    with torch.enable_grad():
        logits, _ = unroll(model, inputs, model.initial_state(1))
        torch.autograd.grad(logits.sum(), model.output_map.weight)
