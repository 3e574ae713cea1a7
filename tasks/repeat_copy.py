"""The repeat copy task (paper, 4.2): read a sequence and a number, give the sequence back that many times."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tasks.task import Batch
from tasks.vectors import BitVectorTask, random_vectors


class LengthAndRepeats(NamedTuple):
    """The size of a sequence that is to be repeated."""

    seq_len: int
    repeats: int


@dataclass(frozen=True)
class RepeatCopy(BitVectorTask):
    """Read L vectors of `seq_width` random bits and a number K, then answer them K times, and an end mark.

    The number comes on a channel of its own, normalised to mean 0 and variance 1 over 1 to `normal_repeats`, the
    trained range. With seq_width 2, normal_repeats 10, the vectors (1, 0) and (1, 1), and K = 2, there are
    T = L + 3 + K L = 9 steps; 2 comes as (2 - 5.5) / 2.87 = -1.22:

        step      0   1   2     3     4   5   6   7   8
        bit 0     .   1   1     .     .   .   .   .   .      target   .   .   .   .   1   1   1   1   .
        bit 1     .   0   1     .     .   .   .   .   .               .   .   .   .   0   1   0   1   .
        start     1   .   .     .     .   .   .   .   .      end      .   .   .   .   .   .   .   .   1
        number    .   .   .   -1.22   .   .   .   .   .
        mask      0   0   0     0     1   1   1   1   1
    """

    normal_repeats: int  # the largest number in training, at least 2

    marks: ClassVar[tuple[str, ...]] = ("start", "number")
    Size = LengthAndRepeats
    first = LengthAndRepeats(10, 2)
    limits: ClassVar[dict[str, tuple[int, int]]] = {"normal_repeats": (2, 10_000)}
    tested = LengthAndRepeats(20, 10), LengthAndRepeats(10, 15), LengthAndRepeats(10, 20)
    can_be_uneven: ClassVar[bool] = True

    @property
    def output_size(self) -> int:
        """The bits, the end mark."""
        return self.seq_width + 1

    def normalised(self, repeats: int) -> float:
        """The number as the machine sees it: 1 to n, evenly, have mean (n + 1) / 2 and variance (n^2 - 1) / 12."""
        n = self.normal_repeats
        return (repeats - (n + 1) / 2) / math.sqrt((n * n - 1) / 12)

    def sample(self, batch_size: int, size: tuple[int, int], generator: torch.Generator, uneven: float = 0.0) -> Batch:
        """Draw `batch_size` sequences: inputs (L + 3 + K L, B, seq_width + 2); see `random_vectors`."""
        length, repeats = size
        return self.batch(random_vectors(batch_size, length, self.seq_width, generator, uneven), repeats)

    def batch(self, vectors: Tensor, repeats: int) -> Batch:
        """Lay out given vectors, (L, B, seq_width) of 0 and 1, as `sample` does its random ones."""
        length, batch_size, width = vectors.shape
        steps = length + 3 + repeats * length
        inputs = torch.zeros(steps, batch_size, self.input_size)
        inputs[0, :, width] = 1
        inputs[1 : length + 1, :, :width] = vectors
        inputs[length + 1, :, width + 1] = self.normalised(repeats)
        targets = torch.zeros(steps, batch_size, self.output_size)
        targets[length + 2 : -1, :, :width] = vectors.repeat(repeats, 1, 1)
        targets[-1, :, width] = 1
        mask = torch.zeros(steps, batch_size)
        mask[length + 2 :] = 1
        return Batch(inputs, targets, mask)
