"""The lookup task: read pairs of a key and a value, then one of the keys, give back its value."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from tasks.task import Batch, Task


class Pairs(NamedTuple):
    """How many pairs there are."""

    pairs: int


@dataclass(frozen=True)
class Lookup(Task):
    """Read K pairs, each one vector: `width` bits of key and `width` random bits of value. Then comes one of the keys.

    Its value is due at the step after it. The keys of a sequence differ. Were `width` 2, the pairs (01, 11) and
    (10, 01) would be:

        step      0  1  2  3
        key       01 10 01 ..      target (3)  11
        value     11 01 .. ..
        query     .  .  1  .
        mask      0  0  0  1
    """

    width: int

    Size = Pairs
    first = Pairs(2)
    limits: ClassVar[dict[str, tuple[int, int]]] = {"width": (6, 12), "pairs": (1, 64)}
    tested = (Pairs(9), Pairs(12))

    @property
    def input_size(self) -> int:
        """Key, value and the query's mark."""
        return 2 * self.width + 1

    @property
    def output_size(self) -> int:
        """A value."""
        return self.width

    def rows_needed(self, size: tuple[int]) -> int:
        """One for each pair."""
        return size[0]

    def sample(self, batch_size: int, size: tuple[int], generator: torch.Generator) -> Batch:
        """Draw `batch_size` sequences of K pairs: inputs (K + 2, B, 2 width + 1)."""
        count, each = size[0], torch.arange(batch_size)
        order = torch.rand(batch_size, 2**self.width, generator=generator).argsort(1)
        keys = (order[:, :count].t().unsqueeze(-1) >> torch.arange(self.width)) % 2  # (K, B, width)
        values = torch.randint(0, 2, keys.shape, generator=generator)
        asked = torch.randint(0, count, (batch_size,), generator=generator)
        inputs, mask = torch.zeros(count + 2, batch_size, self.input_size), torch.zeros(count + 2, batch_size)
        inputs[:count, :, :-1] = torch.cat((keys, values), -1).float()
        inputs[count, :, : self.width], inputs[count, :, -1] = keys[asked, each].float(), 1
        targets = torch.zeros(count + 2, batch_size, self.width)
        targets[-1], mask[-1] = values[asked, each].float(), 1
        return Batch(inputs, targets, mask)
