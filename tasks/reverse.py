"""The reverse task: read a sequence of random bit vectors, give it back in reverse."""

import torch

from tasks.task import Batch, Task


class Reverse(Task):
    """Read L vectors of `seq_width` random bits between two delimiters, then answer them last to first.

    Two input channels after the bits carry the start and the end delimiter. With seq_width 2 and the two vectors
    (1, 0) and (1, 1), T = 2 L + 2 = 6 steps:

        step      0   1   2   3   4   5
        bit 0     .   1   1   .   .   .      target   .   .   .   .   1   1
        bit 1     .   0   1   .   .   .               .   .   .   .   1   0
        start     1   .   .   .   .   .
        end       .   .   .   1   .   .
        mask      0   0   0   0   1   1

    Args:
        seq_width: bits in a vector, at least 1.
    """

    def __init__(self, seq_width: int) -> None:
        self.seq_width = seq_width
        self.input_size = seq_width + 2
        self.output_size = seq_width

    def sample(self, batch_size: int, length: int, generator: torch.Generator, uneven: float = 0.0) -> Batch:
        """Draw `batch_size` sequences of `length` >= 1 vectors: inputs (2 L + 2, B, seq_width + 2).

        Args:
            uneven: the share of sequences that are not made of even random bits. Half of these are monotonous: one
                share of ones, uniform in (0, 1), for the whole sequence, and an alphabet of 1 to L vectors. The others
                are varied: a share of ones for each vector. A nearly empty vector looks like the silence in which the
                machine is to answer, above all where a sequence begins with one; a vector that comes again misleads a
                machine that finds its place by content.
        """
        size = (length, batch_size, self.seq_width)
        if uneven == 0:
            return self.batch(torch.randint(0, 2, size, generator=generator).float())
        kind = torch.rand(batch_size, generator=generator)
        monotonous, varied = kind < uneven / 2, (uneven / 2 <= kind) & (kind < uneven)
        share = torch.rand(length, batch_size, generator=generator)
        share[:, monotonous] = share[0, monotonous]
        share[:, ~(monotonous | varied)] = 0.5
        bits = (torch.rand(size, generator=generator) < share.unsqueeze(-1)).float()
        letters = torch.randint(1, length + 1, (batch_size,), generator=generator)
        drawn = (torch.rand(length, batch_size, generator=generator) * letters).long()
        each = torch.arange(length).unsqueeze(1).expand(length, batch_size)
        return self.batch(bits.gather(0, torch.where(monotonous, drawn, each).unsqueeze(-1).expand(size)))

    def batch(self, bits: torch.Tensor) -> Batch:
        """Lay out given vectors, (L, B, seq_width) of 0 and 1, as `sample` does its random ones."""
        length, batch_size, width = bits.shape
        steps = 2 * length + 2
        inputs = torch.zeros(steps, batch_size, self.input_size)
        inputs[0, :, width] = 1
        inputs[1 : length + 1, :, :width] = bits
        inputs[length + 1, :, width + 1] = 1
        targets = torch.zeros(steps, batch_size, width)
        targets[length + 2 :] = bits.flip(0)
        mask = torch.zeros(steps, batch_size)
        mask[length + 2 :] = 1
        return Batch(inputs, targets, mask)
