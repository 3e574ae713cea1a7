"""How a batch is shared out, over threads and over processes, so that no sum depends on how many there are.

A batch is split into shards. Their gradients are added in pairs, and the pairs in pairs: a part of the batch, which a
process computes, is a branch of that tree.
"""

from functools import cache
from typing import Any, NamedTuple

GROUP = 8  # sequences that are computed together: few enough to stay in cache, enough to feed a matrix product
MAX_SHARDS = 16  # of whole groups, and one more for the rest


@cache
def shards(batch: int) -> tuple[tuple[int, int], ...]:
    """Split a batch: at most MAX_SHARDS ranges of whole groups, and the remainder; depends on the batch size alone."""
    whole = batch // GROUP * GROUP
    count = min(MAX_SHARDS, max(2, whole // (2 * GROUP)))
    size = GROUP * max(1, -(-whole // (GROUP * count)))
    ranges = [(first, min(first + size, whole)) for first in range(0, whole, size)]
    return (*ranges, *[(whole, batch)] * (whole < batch))


def add_in_pairs(terms: list[Any]) -> Any:
    """Add numbers, arrays or tensors: the sum of the first half and that of the second; into the first, in place."""
    if len(terms) == 1:
        return terms[0]
    middle = (len(terms) + 1) // 2
    total = add_in_pairs(terms[:middle])
    total += add_in_pairs(terms[middle:])
    return total


class Part(NamedTuple):
    """One of `count` parts of a batch; `count` is a power of two.

    The sums of the parts, added by `add_in_pairs`, are those of the whole, to the bit.
    """

    index: int = 0
    count: int = 1

    def shards(self, batch: int) -> tuple[tuple[int, int], ...]:
        """The shards of a batch that are this part's.

        Raises:
            ValueError: a batch of this size cannot be split into so many parts, or there is no such part.
        """
        ranges, count, index = shards(batch), self.count, self.index
        if not 0 <= index < count:
            raise ValueError(f"part {index} of {count}: parts are counted from 0")
        if count > 1 and count not in part_counts(batch):
            raise ValueError(f"a batch of {batch} has {part_counts(batch)} parts, not {count}")
        while count > 1:
            count //= 2
            middle = (len(ranges) + 1) // 2
            ranges = ranges[middle:] if index >= count else ranges[:middle]
            index %= count
        return ranges

    def sequences(self, batch: int) -> slice:
        """The sequences of a batch that are this part's."""
        ranges = self.shards(batch) or ((0, 0),)
        return slice(ranges[0][0], ranges[-1][1])


WHOLE = Part()


def part_counts(batch: int) -> list[int]:
    """Into how many parts a batch of this size can be split."""
    return [2**k for k in range(MAX_SHARDS.bit_length()) if 2**k <= max(1, len(shards(batch)))]
