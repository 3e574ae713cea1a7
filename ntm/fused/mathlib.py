"""exp and log that vectorise, and loops that the equations share.

In float32, exp and log are polynomials: a call of the C library would keep a loop from being vectorised. In float64,
they are the C library's. Loops avoid literals such as `1 - x`: an integer beside a float32 would make Numba compute in
float64. Constants are in float32, which leaves sums in float64 as they are.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from ntm.fused.jit import jit

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
INFINITY, NAN = np.float32(np.inf), np.float32(np.nan)
LOG2_E = np.float32(1 / math.log(2))
LN2_HIGH = np.float32(0.693359375)  # n * LN2_HIGH is exact for |n| < 2^9
LN2_LOW = np.float32(math.log(2) - 0.693359375)
EXP_LOW, EXP_HIGH = np.float32(-87), np.float32(88)
E7, E6, E5, E4, E3 = (np.float32(1 / math.factorial(n)) for n in (7, 6, 5, 4, 3))
L9, L7, L5, L3 = (np.float32(2 / n) for n in (9, 7, 5, 3))
BIAS, MANTISSA_BITS, SQRT_HALF_BITS = np.int32(127), np.int32(23), np.float32(math.sqrt(0.5)).view(np.int32)
LOW_BITS = np.int32(0x7FFFFFFF)


def exp(x):
    """e^x, in compiled code only."""


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


def log(x):
    """The natural logarithm, in compiled code only; in float32 x is above 0 and finite (of NaN, it is a number)."""


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
        return s * series + n * LN2_LOW + n * LN2_HIGH

    return log32


def ordered(x):
    """Of a float32 a whole number that is larger where x is, and of that the float32, in compiled code only.

    A search among floats would not vectorise.
    """


@overload(ordered)
def _ordered(x):
    if x == types.float32:
        return lambda x: turned(np.float32(x).view(np.int32))
    return (lambda x: np.int32(turned(x)).view(np.float32)) if x == types.int32 else (lambda x: x)


@jit
def turned(bits):
    """The bits of a float32, those but the sign turned round where it is below 0; twice, and they are as before."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & LOW_BITS))


@jit
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@jit
def tanh(x):
    return TWO / (ONE + exp(-TWO * x)) - ONE


@jit
def softplus(x):
    return max(x, ZERO) + log(ONE + exp(-abs(x)))


@jit
def dot(a, b):
    total = a.dtype.type(0)
    for n in range(a.shape[0]):
        total += a[n] * b[n]
    return total


@jit
def copy(a, out):
    """Copy a vector into the first numbers of another."""
    for n in range(a.shape[0]):
        out[n] = a[n]


@jit
def copy_matrix(a, out):
    """Copy a matrix into the first columns of another."""
    for g in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[g, j] = a[g, j]


@jit
def broadcast_row(row, out):
    """Copy a vector into each row of a matrix."""
    for g in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[g, j] = row[j]


@jit
def accumulate_rows(a, total):
    """Add each row of a matrix to a vector."""
    for g in range(a.shape[0]):
        for j in range(a.shape[1]):
            total[j] += a[g, j]


@jit
def reduce_max(a):
    top = ordered(a[0])
    for n in range(a.shape[0]):
        top = max(top, ordered(a[n]))
    return ordered(top)


@jit
def softmax(factor, x, out):
    """Fills `out` with the softmax of factor * x; the factor is not negative."""
    top = factor * reduce_max(x)
    total = top - top  # 0 of its type, as in addressing.py
    for n in range(x.shape[0]):
        out[n] = exp(factor * x[n] - top)
        total += out[n]
    scale = ONE / total
    for n in range(x.shape[0]):
        out[n] *= scale
