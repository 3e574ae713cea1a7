"""The priority sort task (paper, 4.5): read vectors, each with a priority; give back the highest ones in order."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tasks.task import Batch
from tasks.vectors import BitVectorTask, Length


@dataclass(frozen=True)
class PrioritySort(BitVectorTask):
    """Read L vectors of `seq_width` random bits with a priority from [-1, 1], then answer the highest, highest first.

    At most `answers` of them are asked for. The priority has a channel of its own. With seq_width 2, answers 2, and the
    vectors (1, 0), (1, 1), (0, 1) of priorities 0.1, -0.6 and 0.8, T = L + 2 + 2 = 7 steps:

        step        0     1     2     3    4   5   6
        bit 0       .     1     1     0    .   .   .      target   .   .   .   .   .   0   1
        bit 1       .     0     1     1    .   .   .               .   .   .   .   .   1   0
        priority    .    0.1  -0.6   0.8   .   .   .
        start       1     .     .     .    .   .   .
        end         .     .     .     .    1   .   .
        mask        0     0     0     0    0   1   1

    Of vectors of the same priority, the one that came first goes first.
    """

    answers: int  # at most so many are asked for

    marks: ClassVar[tuple[str, ...]] = ("priority", "start", "end")
    Size = Length
    first = Length(4)
    tested = ()

    def sample(self, batch_size: int, size: tuple[int], generator: torch.Generator) -> Batch:
        """Draw `batch_size` sequences of L vectors: inputs (L + 2 + min(L, answers), B, seq_width + 3)."""
        vectors = torch.randint(0, 2, (size[0], batch_size, self.seq_width), generator=generator).float()
        return self.batch(vectors, 2 * torch.rand(size[0], batch_size, generator=generator) - 1)

    def batch(self, vectors: Tensor, priorities: Tensor) -> Batch:
        """Lay out given vectors, (L, B, seq_width) of 0 and 1, and their priorities, (L, B)."""
        length, batch_size, width = vectors.shape
        count = min(length, self.answers)
        steps = length + 2 + count
        inputs = torch.zeros(steps, batch_size, self.input_size)
        inputs[1 : length + 1, :, :width] = vectors
        inputs[1 : length + 1, :, width] = priorities
        inputs[0, :, width + 1] = inputs[length + 1, :, width + 2] = 1
        order = priorities.argsort(stable=True, dim=0, descending=True)[:count]
        targets = torch.zeros(steps, batch_size, width)
        targets[length + 2 :] = vectors.gather(0, order.unsqueeze(-1).expand(count, batch_size, width))
        mask = torch.zeros(steps, batch_size)
        mask[length + 2 :] = 1
        return Batch(inputs, targets, mask)
