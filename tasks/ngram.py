"""The dynamic n-grams task (paper, 4.4): predict the next bit of a source whose rule each sequence draws anew."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tasks.task import Batch, Task
from tasks.vectors import Length


@dataclass(frozen=True)
class NGram(Task):
    """Predict each bit from those before it; the probability of a 1 depends on the last `context` bits alone.

    Each sequence has a table of 2^context such probabilities, each from Beta(1/2, 1/2). The first `context` bits are
    even; the input at a step is a bit, the target the bit after it. With context 1, the bits 1 0 0 1 0 and T = 4 steps,
    the prediction counts from the first bit that the table decides:

        step      0   1   2   3
        input     1   0   0   1      target   0   0   1   0
        mask      1   1   1   1

    With context 5, the first four steps do not count.
    """

    context: int  # bits that the next one depends on: n - 1

    Size = Length
    first = Length(50)
    limits: ClassVar[dict[str, tuple[int, int]]] = {"context": (1, 16), "seq_len": (16, 1_000_000)}
    tested = (Length(1000),)

    input_size = 1  # the bit
    output_size = 1  # the next bit

    def rows_needed(self, size: tuple[int]) -> int:
        """One for each context."""
        return 2**self.context

    def sample(self, batch_size: int, size: tuple[int], generator: torch.Generator) -> Batch:
        """Draw `batch_size` sequences of L + 1 bits: L steps."""
        # Beta(1/2, 1/2) is the arcsine distribution: sin^2 of an even angle.
        table = torch.sin(torch.rand(batch_size, 2**self.context, generator=generator) * math.pi / 2) ** 2
        bits = torch.empty(size[0] + 1, batch_size)
        chance, context = torch.rand(bits.shape, generator=generator), torch.zeros(batch_size, dtype=torch.long)
        for t in range(len(bits)):
            share = table.gather(1, context.unsqueeze(1))[:, 0] if t >= self.context else 0.5
            bits[t] = chance[t] < share
            context = (2 * context + bits[t].long()) % 2**self.context
        return self.batch(bits)

    def batch(self, bits: Tensor) -> Batch:
        """Lay out given bits, (L + 1, B)."""
        mask = torch.ones(len(bits) - 1, bits.shape[1])
        mask[: self.context - 1] = 0
        return Batch(bits[:-1].unsqueeze(-1), bits[1:].unsqueeze(-1), mask)

    def optimal_probability(self, batch: Batch) -> Tensor:
        """The best estimate that the next bit is 1, (T, B): (N1 + 1/2) / (N0 + N1 + 1).

        N1 and N0 count how often a 1 and a 0 came after the present context, so far in the sequence (paper, eq. 10;
        Murphy 2012). Steps that do not count have 1/2.
        """
        bits = batch.inputs[..., 0].long()
        steps, batch_size = bits.shape
        seen = torch.zeros(batch_size, 2**self.context, 2)
        context, each = torch.zeros(batch_size, dtype=torch.long), torch.arange(batch_size)
        estimate = torch.full((steps, batch_size), 0.5)
        for t in range(steps):
            context = (2 * context + bits[t]) % 2**self.context
            if t >= self.context - 1:
                counts = seen[each, context]
                estimate[t] = (counts[:, 1] + 0.5) / (counts.sum(1) + 1)
                seen[each, context, batch.targets[t, :, 0].long()] += 1
        return estimate

    def optimal_cost(self, batch: Batch) -> Tensor:
        """The bits that `optimal_probability` needs for each sequence, (B,)."""
        p, target = self.optimal_probability(batch), batch.targets[..., 0]
        return -(torch.where(target > 0.5, p, 1 - p).log2() * batch.mask).sum(0)
