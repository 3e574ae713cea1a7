"""What every task shares: the batch it makes and how an answer is scored."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Batch(NamedTuple):
    """Sequences of one length: T steps, B sequences."""

    inputs: Tensor  # (T, B, input_size)
    targets: Tensor  # (T, B, output_size), bits as 0 and 1
    mask: Tensor  # (T, B), 1 at the steps that count

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the batch to a device."""
        return Batch(*(part.to(device) for part in self))


class Task(ABC):
    """A task over binary sequences: makes batches, and scores logits (T, B, output_size) against their targets."""

    input_size: int
    output_size: int

    @abstractmethod
    def sample(self, batch_size: int, length: int, generator: torch.Generator, uneven: float = 0.0) -> Batch:
        """Draw a batch of sequences of one length; all randomness comes from `generator`.

        Args:
            uneven: for training, the share of sequences in which what is rare in the task is common; never in tests.
        """

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy in nats, averaged over the bits of the steps that count: a scalar."""
        by_bit = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none")
        return (by_bit * batch.mask.unsqueeze(-1)).sum() / (batch.mask.sum() * self.output_size)

    def wrong_bits(self, logits: Tensor, batch: Batch) -> Tensor:
        """Count the wrong bits of each sequence at the steps that count: (B,), whole numbers as floats.

        A sequence is exact where this is 0. A logit that is not a number is wrong whatever the target.
        """
        target = batch.targets > 0.5
        right = torch.where(target, logits > 0, logits <= 0)
        return (~right * batch.mask.unsqueeze(-1)).sum((0, 2))
