"""The heads' controls (ntm/heads.py), one step of one sequence, forward and backward."""

from typing import NamedTuple

import numpy as np

from ntm.fused.jit import jit
from ntm.fused.mathlib import ONE, exp, sigmoid, softplus


class Controls(NamedTuple):
    """Views of one sequence's controls at one step, as ntm/heads.py orders them; each is flat, head after head."""

    key: np.ndarray  # (H * M)
    key_strength: np.ndarray  # (H)
    interpolation_gate: np.ndarray  # (H)
    shift_weighting: np.ndarray  # (H * 3)
    sharpening: np.ndarray  # (H)
    erase: np.ndarray  # (R * M), of the write heads
    add: np.ndarray  # (R * M)


@jit
def split_controls(flat, heads, width):
    """Cut the output of the controls map (P) into named controls."""
    a = heads * width
    b, c, d, e = a + heads, a + 2 * heads, a + 5 * heads, a + 6 * heads
    f = e + heads // 2 * width
    return Controls(flat[:a], flat[a:b], flat[b:c], flat[c:d], flat[d:e], flat[e:f], flat[f:])


@jit
def apply_activations(c):
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


@jit
def apply_activations_backward(c, d):
    """Turn gradients of activated controls into those of pre-activations, in place. Key and add have no activation."""
    for h in range(c.key_strength.shape[0]):
        d.key_strength[h] *= ONE - exp(-c.key_strength[h])  # softplus' = sigmoid = 1 - exp(-softplus)
        d.interpolation_gate[h] *= c.interpolation_gate[h] - c.interpolation_gate[h] * c.interpolation_gate[h]
        s, d_s = c.shift_weighting[3 * h : 3 * h + 3], d.shift_weighting[3 * h : 3 * h + 3]
        mean = s[0] * d_s[0] + s[1] * d_s[1] + s[2] * d_s[2]
        d_s[0], d_s[1], d_s[2] = s[0] * (d_s[0] - mean), s[1] * (d_s[1] - mean), s[2] * (d_s[2] - mean)
        d.sharpening[h] *= ONE - exp(ONE - c.sharpening[h])
    for m in range(c.erase.shape[0]):
        d.erase[m] *= c.erase[m] - c.erase[m] * c.erase[m]
