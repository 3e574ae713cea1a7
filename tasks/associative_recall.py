"""The associative recall task (paper, 4.3): read items, then one of them again, give back the one that followed it."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tasks.task import Batch
from tasks.vectors import BitVectorTask


class Items(NamedTuple):
    """How many items there are."""

    items: int


@dataclass(frozen=True)
class AssociativeRecall(BitVectorTask):
    """Read items of `item_len` vectors of `seq_width` random bits, then a query item; answer the item that followed it.

    A mark stands before each item and after the last one; between two items there is one. The query is one of the items
    but never the last, and stands between two marks of its own. With seq_width 1, item_len 2, the items (1, 0), (0, 0)
    and (1, 1), and the query (0, 0), T = K (item_len + 1) + 1 + 2 item_len + 2 = 16 steps:

        step      0  1  2  3  4  5  6  7  8  9  10 11 12 13 14 15
        bit       .  1  0  .  0  0  .  1  1  .  .  0  0  .  .  .       target (14, 15)   1  1
        item      1  .  .  1  .  .  1  .  .  1  .  .  .  .  .  .
        query     .  .  .  .  .  .  .  .  .  .  1  .  .  1  .  .
        mask      0  0  0  0  0  0  0  0  0  0  0  0  0  0  1  1

    Items of a sequence differ from each other where there are enough different ones for that to be certain to end
    (2^(seq_width item_len) at least the square of their number); else two may be the same.
    """

    item_len: int  # vectors in an item

    marks: ClassVar[tuple[str, ...]] = ("item", "query")
    Size = Items
    first = Items(3)  # of two items, the answer is always the second: nothing to look for
    can_be_uneven: ClassVar[bool] = True
    limits: ClassVar[dict[str, tuple[int, int]]] = {"items": (2, 500)}
    tested = tuple(map(Items, (8, 10, 12, 15, 20)))

    def rows_needed(self, size: tuple[int]) -> int:
        """One for each vector and each mark of the items."""
        return size[0] * (self.item_len + 1) + 1

    def sample(self, batch_size: int, size: tuple[int], generator: torch.Generator, uneven: float = 0.0) -> Batch:
        """Draw `batch_size` sequences of K >= 2 items: inputs (K (item_len + 1) + 2 item_len + 3, B, seq_width + 2).

        Args:
            uneven: the share of sequences whose items are alike: all are one item with a few bits flipped, each bit of
                each item with a chance that the sequence draws from (0, 1/2). Among random items, two that differ in
                one bit are rare, and in a test of thousands sure to happen.
        """
        alike = torch.rand(batch_size, generator=generator) < uneven if uneven else torch.zeros(batch_size).bool()
        items = self._draw_items(size[0], alike, generator)
        if 2 ** min(self.seq_width * self.item_len, 60) >= size[0] ** 2:
            while (again := self._with_twins(items)).any():
                items[:, :, again] = self._draw_items(size[0], alike[again], generator)
        asked = torch.randint(0, size[0] - 1, (batch_size,), generator=generator)
        return self.batch(items, asked)

    def _draw_items(self, count: int, alike: Tensor, generator: torch.Generator) -> Tensor:
        """Draw items of each sequence, (K, item_len, B, seq_width), alike or not, (B,)."""
        shape = count, self.item_len, len(alike), self.seq_width
        items = torch.randint(0, 2, shape, generator=generator).float()
        if not alike.any():
            return items
        chance = torch.rand(len(alike), 1, generator=generator) / 2
        flips = (torch.rand(shape, generator=generator) < chance).float()
        return torch.where(alike.unsqueeze(-1), (items[:1] - flips).abs(), items)

    @staticmethod
    def _with_twins(items: Tensor) -> Tensor:
        """Which sequences, (B,), have two items that are the same."""
        flat = items.permute(2, 0, 1, 3).flatten(2)
        same = (flat.unsqueeze(1) == flat.unsqueeze(2)).all(-1)
        return same.sum((1, 2)) > items.shape[0]

    def batch(self, items: Tensor, asked: Tensor) -> Batch:
        """Lay out given items, (K, item_len, B, seq_width) of 0 and 1, and which of them is asked for, (B,)."""
        count, length, batch_size, width = items.shape
        steps = count * (length + 1) + 2 * length + 3
        inputs, targets = (torch.zeros(steps, batch_size, n) for n in (self.input_size, self.output_size))
        for k in range(count):
            start = k * (length + 1)
            inputs[start, :, width] = 1
            inputs[start + 1 : start + 1 + length, :, :width] = items[k]
        end, each = count * (length + 1), torch.arange(batch_size)
        inputs[end, :, width] = 1
        inputs[end + 1, :, width + 1] = inputs[end + length + 2, :, width + 1] = 1
        inputs[end + 2 : end + 2 + length, :, :width] = items[asked, :, each].transpose(0, 1)
        targets[end + length + 3 :] = items[asked + 1, :, each].transpose(0, 1)
        mask = torch.zeros(steps, batch_size)
        mask[end + length + 3 :] = 1
        return Batch(inputs, targets, mask)
