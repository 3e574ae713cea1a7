"""The loss that a machine is trained on."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor, counted: Tensor | None = None) -> Tensor:
    """Binary cross-entropy in nats, averaged over the bits of the steps that count: a scalar.

    Args:
        logits: (T, B, output_size).
        targets: bits, (T, B, output_size).
        mask: (T, B), 1 at the steps that count, else 0.
        counted: how many steps count; None for those of the mask. For a part of a batch, those of the batch.

    Raises:
        ValueError: no step counts.
    """
    counted = mask.sum() if counted is None else counted
    if counted == 0:
        raise ValueError("no step counts: the mask is 0 everywhere")
    bit_weight = (mask / (counted * targets.shape[2])).unsqueeze(-1)
    return F.binary_cross_entropy_with_logits(logits, targets, bit_weight, reduction="sum")
