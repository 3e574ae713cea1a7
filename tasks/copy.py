"""The copy task (paper, 4.1): read a sequence of random bit vectors, give it back."""

from dataclasses import dataclass

from torch import Tensor

from tasks.vectors import VectorTask


@dataclass(frozen=True)
class Copy(VectorTask):
    """Read L vectors of `seq_width` random bits between two marks, then answer them first to last.

    With seq_width 2 and the two vectors (1, 0) and (1, 1), T = 2 L + 2 = 6 steps:

        step      0   1   2   3   4   5
        bit 0     .   1   1   .   .   .      target   .   .   .   .   1   1
        bit 1     .   0   1   .   .   .               .   .   .   .   0   1
        start     1   .   .   .   .   .
        end       .   .   .   1   .   .
        mask      0   0   0   0   1   1
    """

    def answer(self, vectors: Tensor) -> Tensor:
        """As they came."""
        return vectors
