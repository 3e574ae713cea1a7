"""Addressing (ntm/addressing.py, eq. 5-9), one head of one sequence, each equation with its backward.

Shapes, with the letters of layout.py: memory (M, N), key (M), shift weighting `s` (3), key strength, gate and
sharpening are numbers, all else (N); in `key_memory_dots`, of all heads at once, keys (H M) and similarity (H, N).
`x - x` is a 0 of x's type from which to add up: with a constant 0 the compiler adds in another order, and rounds so.
"""

import numpy as np

from ntm.addressing import LOG_EPSILON as REFERENCE_LOG_EPSILON
from ntm.addressing import NORM_EPSILON as REFERENCE_NORM_EPSILON
from ntm.fused.jit import jit
from ntm.fused.mathlib import INFINITY, NAN, ONE, TWO, ZERO, dot, log, softmax

# Written out: the cache of compiled code would not notice a change in ntm/addressing.py.
NORM_EPSILON, LOG_EPSILON = np.float32(2.0**-20), np.float32(2.0**-53)
if (NORM_EPSILON, LOG_EPSILON) != (REFERENCE_NORM_EPSILON, REFERENCE_LOG_EPSILON):
    raise ImportError("NORM_EPSILON or LOG_EPSILON of ntm/addressing.py is another than in ntm/fused")


@jit
def key_memory_dots(memory, keys, squares, similarity):
    """The products of eq. 6: fills `squares` with |M(n)|^2 + NORM_EPSILON, and `similarity` with each head's k.M(n).

    Two heads a pass and four columns at a time, so as to touch each number as rarely as can be.
    """
    width, rows = memory.shape
    squares[:] = NORM_EPSILON
    similarity[:] = memory.dtype.type(0)
    for h in range(0, similarity.shape[0], 2):
        similarity_a, similarity_b = similarity[h], similarity[h + 1]
        key_a, key_b = keys[h * width : (h + 1) * width], keys[(h + 1) * width : (h + 2) * width]
        for m in range(0, width - 3, 4):
            a0, a1, a2, a3 = key_a[m], key_a[m + 1], key_a[m + 2], key_a[m + 3]
            b0, b1, b2, b3 = key_b[m], key_b[m + 1], key_b[m + 2], key_b[m + 3]
            m0, m1, m2, m3 = memory[m], memory[m + 1], memory[m + 2], memory[m + 3]
            if h == 0:
                for n in range(rows):
                    squares[n] += m0[n] * m0[n] + m1[n] * m1[n] + m2[n] * m2[n] + m3[n] * m3[n]
                    similarity_a[n] += a0 * m0[n] + a1 * m1[n] + a2 * m2[n] + a3 * m3[n]
                    similarity_b[n] += b0 * m0[n] + b1 * m1[n] + b2 * m2[n] + b3 * m3[n]
            else:
                for n in range(rows):
                    similarity_a[n] += a0 * m0[n] + a1 * m1[n] + a2 * m2[n] + a3 * m3[n]
                    similarity_b[n] += b0 * m0[n] + b1 * m1[n] + b2 * m2[n] + b3 * m3[n]
        for m in range(width - width % 4, width):
            for n in range(rows):
                if h == 0:
                    squares[n] += memory[m, n] * memory[m, n]
                similarity_a[n] += key_a[m] * memory[m, n]
                similarity_b[n] += key_b[m] * memory[m, n]


@jit
def content_weighting(inverse_norm, key, key_strength, similarity, content):
    """eq. 6 and 5: `similarity` comes in as products and leaves as K; fills `content` (w^c)."""
    inverse_key_norm = ONE / np.sqrt(dot(key, key) + NORM_EPSILON)
    for n in range(similarity.shape[0]):
        similarity[n] *= inverse_norm[n] * inverse_key_norm
    softmax(key_strength, similarity, content)


@jit
def content_weighting_backward(inverse_norm, key, key_strength, similarity, content, d_content, d_dot, row_norm_grad):
    """The gradient of eq. 5, and of eq. 6 up to the products with memory, which `memory_backward` has.

    Overwrites `d_dot`, the gradient of the products k.M(n), and accumulates into `row_norm_grad`, which is
    -2 dL/d|M(n)|^2. Returns d_key_strength, and -2 dL/d|k|^2 of the key.
    """
    inverse_key_norm = ONE / np.sqrt(dot(key, key) + NORM_EPSILON)
    mean = dot(d_content, content)
    d_key_strength = key_norm_grad = mean - mean
    for n in range(similarity.shape[0]):
        d_logit = content[n] * (d_content[n] - mean)
        d_key_strength += d_logit * similarity[n]
        norm_grad = key_strength * d_logit * similarity[n]
        key_norm_grad += norm_grad
        row_norm_grad[n] += norm_grad * inverse_norm[n] * inverse_norm[n]
        d_dot[n] = key_strength * d_logit * inverse_norm[n] * inverse_key_norm
    return d_key_strength, key_norm_grad * inverse_key_norm * inverse_key_norm


@jit
def interpolate(content, previous, gate, gated):
    """eq. 7."""
    for n in range(gated.shape[0]):
        gated[n] = previous[n] + gate * (content[n] - previous[n])


@jit
def interpolate_backward(content, previous, gate, d_gated, d_content, d_previous):
    """Gradient of eq. 7. Overwrites `d_content` and `d_previous`; returns d_gate."""
    d_gate = gate - gate
    for n in range(d_gated.shape[0]):
        d_gate += d_gated[n] * (content[n] - previous[n])
        d_content[n] = gate * d_gated[n]
        d_previous[n] = d_gated[n] - d_content[n]
    return d_gate


@jit
def shift(gated, s, shifted):
    """eq. 8: row i takes from rows i + 1, i and i - 1, around the ends."""
    back, stay, forward, last = s[0], s[1], s[2], gated.shape[0] - 1
    for i in range(1, last):
        shifted[i] = back * gated[i + 1] + stay * gated[i] + forward * gated[i - 1]
    shifted[0] = back * gated[min(1, last)] + stay * gated[0] + forward * gated[last]
    if last > 0:
        shifted[last] = back * gated[0] + stay * gated[last] + forward * gated[last - 1]


@jit
def shift_backward(gated, s, d_shifted, d_gated, d_s):
    """Gradient of eq. 8, the convolution with the mirrored shifts. Overwrites `d_gated` and `d_s`."""
    back, stay, forward, last = s[0], s[1], s[2], gated.shape[0] - 1
    for i in range(1, last):
        d_gated[i] = back * d_shifted[i - 1] + stay * d_shifted[i] + forward * d_shifted[i + 1]
    d_gated[0] = back * d_shifted[last] + stay * d_shifted[0] + forward * d_shifted[min(1, last)]
    if last > 0:
        d_gated[last] = back * d_shifted[last - 1] + stay * d_shifted[last] + forward * d_shifted[0]
    d_s[0] = dot(d_shifted[:last], gated[1:]) + d_shifted[last] * gated[0]
    d_s[1] = dot(d_shifted, gated)
    d_s[2] = dot(d_shifted[1:], gated[:last]) + d_shifted[0] * gated[last]


@jit
def sharpen(shifted, sharpening, log_shifted, weighting):
    """eq. 9: fills `log_shifted` and `weighting`."""
    for n in range(shifted.shape[0]):
        x = shifted[n] + LOG_EPSILON
        logarithm = log(x) if x < INFINITY else x  # infinity and NaN are handed on
        log_shifted[n] = NAN if x < ZERO else logarithm
    softmax(sharpening, log_shifted, weighting)


@jit
def sharpen_backward(shifted, sharpening, log_shifted, weighting, d_weighting, d_shifted):
    """Gradient of eq. 9. Overwrites `d_shifted`; returns d_sharpening."""
    mean = dot(d_weighting, weighting)
    d_sharpening = mean - mean
    for n in range(shifted.shape[0]):
        d_logit = weighting[n] * (d_weighting[n] - mean)
        d_sharpening += d_logit * log_shifted[n]
        d_shifted[n] = sharpening * d_logit / (shifted[n] + LOG_EPSILON)
    return d_sharpening


@jit
def blur(shifted):
    """How far a head is from one row before it is sharpened: 1 - sum_n w~(n)^2."""
    return ONE - dot(shifted, shifted)


@jit
def blur_backward(shifted, d_blur, d_shifted):
    """Gradient of `blur`. Accumulates into `d_shifted`."""
    for n in range(shifted.shape[0]):
        d_shifted[n] -= TWO * d_blur * shifted[n]
