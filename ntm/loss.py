"""The loss that a machine is trained on."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy in nats, averaged over the bits of the steps that count: a scalar.

    Args:
        logits: (T, B, output_size).
        targets: bits, (T, B, output_size).
        mask: (T, B), 1 at the steps that count, else 0.
    """
    bit_weight = (mask / (mask.sum() * targets.shape[2])).unsqueeze(-1)
    return F.binary_cross_entropy_with_logits(logits, targets, bit_weight, reduction="sum")
