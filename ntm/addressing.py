"""How a head finds its rows: the addressing mechanism of Graves et al. 2014, section 3.3.

One pure function an equation, batched over sequences (B) and heads (H). A weighting is a distribution over the N rows
of memory. `address` chains the five equations as the paper's Figure 2 does.
"""

import torch
from torch import Tensor

# Powers of two, so that they are the same number in every floating-point type.
NORM_EPSILON = 2.0**-20  # added to squared norms: the similarity with an empty row is 0, and its gradient finite
SHIFTS = (-1, 0, 1)  # rows that a head may move at a step
LOG_EPSILON = 2.0**-53  # added to a weighting before its logarithm: sharpening a one-hot weighting is finite


def initial_weighting(batch_size: int, heads: int, rows: int, like: Tensor) -> Tensor:
    """Make w_0, every head on row 0: (B, H, N), of the dtype and on the device of `like`.

    From uniform weightings over equal rows nothing would ever tell one row from another.
    """
    weighting = like.new_zeros(batch_size, heads, rows)
    weighting.select(-1, 0).fill_(1)
    return weighting


def cosine_similarity(key: Tensor, memory: Tensor) -> Tensor:
    """Compare each head's key with each row (eq. 6): `K[u, v] = u.v / (|u| |v|)`.

    Args:
        key: k_t, (B, H, M).
        memory: M_{t-1}, (B, N, M).

    Returns:
        Similarities in [-1, 1], (B, H, N).
    """
    key_norm = (key.square().sum(-1, keepdim=True) + NORM_EPSILON).sqrt()
    row_norm = (memory.square().sum(-1) + NORM_EPSILON).sqrt()
    return key @ memory.transpose(1, 2) / (key_norm * row_norm.unsqueeze(1))


def content_weighting(similarity: Tensor, key_strength: Tensor) -> Tensor:
    """Focus by content (eq. 5): `w^c = softmax(beta K)` over the rows.

    Args:
        similarity: K, (B, H, N).
        key_strength: beta_t >= 0, (B, H, 1).

    Returns:
        w^c_t, (B, H, N).
    """
    return torch.softmax(key_strength * similarity, dim=-1)


def interpolate(content: Tensor, previous: Tensor, interpolation_gate: Tensor) -> Tensor:
    """Choose between content and the last location (eq. 7): `w^g = g w^c + (1 - g) w_{t-1}`.

    Args:
        content: w^c_t, (B, H, N).
        previous: w_{t-1}, (B, H, N).
        interpolation_gate: g_t in (0, 1), (B, H, 1).

    Returns:
        w^g_t, (B, H, N).
    """
    return previous + interpolation_gate * (content - previous)


def shift(gated: Tensor, shift_weighting: Tensor) -> Tensor:
    """Rotate the focus (eq. 8), a circular convolution: `w~(i) = sum_j w^g(j) s(i - j)`.

    Args:
        gated: w^g_t, (B, H, N).
        shift_weighting: s_t, a distribution over `SHIFTS`, (B, H, S).

    Returns:
        w~_t, (B, H, N).
    """
    return sum(s * gated.roll(offset, -1) for offset, s in zip(SHIFTS, shift_weighting.split(1, dim=-1), strict=True))


def sharpen(shifted: Tensor, sharpening: Tensor) -> Tensor:
    """Undo the blur of a soft shift (eq. 9): `w(i) = w~(i)^gamma / sum_j w~(j)^gamma`.

    Computed as `softmax(gamma log w~)`, which cannot underflow to 0/0.

    Args:
        shifted: w~_t, (B, H, N).
        sharpening: gamma_t >= 1, (B, H, 1).

    Returns:
        w_t, (B, H, N).
    """
    return torch.softmax(sharpening * (shifted + LOG_EPSILON).log(), dim=-1)


def address(
    memory: Tensor,
    previous: Tensor,
    key: Tensor,
    key_strength: Tensor,
    interpolation_gate: Tensor,
    shift_weighting: Tensor,
    sharpening: Tensor,
) -> tuple[Tensor, Tensor]:
    """Produce each head's weighting (Figure 2): eq. 6, 5, 7, 8 and 9 in turn.

    Args:
        memory: M_{t-1}, (B, N, M).
        previous: w_{t-1}, (B, H, N).
        key, key_strength, interpolation_gate, shift_weighting, sharpening: the heads' controls, as above.

    Returns:
        w_t, and w~_t, which is what it was before eq. 9; each (B, H, N).
    """
    content = content_weighting(cosine_similarity(key, memory), key_strength)
    gated = interpolate(content, previous, interpolation_gate)
    shifted = shift(gated, shift_weighting)
    return sharpen(shifted, sharpening), shifted


def blur(shifted: Tensor) -> Tensor:
    """How far a head is from one row before it is sharpened: `1 - sum_i w~(i)^2`, 0 on one row, 1 - 1/N on all alike.

    Before, since after it 0.6 and 0.4 look like 0.9 and 0.1: a shift that hardly chooses between rows would not show.

    Args:
        shifted: w~_t, (..., N).

    Returns:
        (...).
    """
    return 1 - shifted.square().sum(-1)
