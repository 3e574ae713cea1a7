"""The loss of a group of sequences: binary cross-entropy (ntm/loss.py), and the cost of blur."""

from typing import NamedTuple

import numpy as np

from ntm.fused.addressing import blur
from ntm.fused.jit import jit
from ntm.fused.mathlib import sigmoid, softplus


class LossArgs(NamedTuple):
    """Targets, mask and scale of the loss."""

    targets: np.ndarray  # (T, B, O)
    mask: np.ndarray  # (T, B), 1 at the steps that count, else 0
    bit_weight: np.floating  # 1 / the number of bits that count


@jit
def cross_entropy(logits, targets, bit_weight, loss, d_logits):
    """Binary cross-entropy with logits, weighted by `bit_weight`; overwrites `loss` and `d_logits`."""
    for j in range(logits.shape[0]):
        loss[j] = bit_weight[j] * (softplus(logits[j]) - targets[j] * logits[j])
        d_logits[j] = bit_weight[j] * (sigmoid(logits[j]) - targets[j])


@jit
def group_loss(first, logits, loss_args, saved, bit_weights, bit_loss):
    """The group's part of the loss; fills `saved.d_logits`. All bits of a step are taken as one vector.

    `bit_weights` (G, O), for each bit's weight, which is 0 where the mask is 0, and `bit_loss` (G * O) are scratch.
    """
    steps, group, bits = saved.d_logits.shape
    stop, count, total = first + group, group * bits, 0.0
    for t in range(steps):
        for g in range(group):
            for j in range(bits):
                bit_weights[g, j] = loss_args.bit_weight * loss_args.mask[t, first + g]
        z, target = logits[t, first:stop].reshape(count), loss_args.targets[t, first:stop].reshape(count)
        cross_entropy(z, target, bit_weights.reshape(count), bit_loss, saved.d_logits[t].reshape(count))
        for j in range(count):
            total += bit_loss[j]
    return total


@jit
def group_blur(saved, blur_weight):
    """The sum of `blur_weight` * blur over all steps, sequences and heads of a group."""
    total = 0.0
    for t in range(saved.shifted.shape[0]):
        for g in range(saved.shifted.shape[1]):
            for h in range(saved.shifted.shape[2]):
                total += blur_weight * blur(saved.shifted[t, g, h])
    return total
