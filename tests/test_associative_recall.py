"""tasks/associative_recall.py: every rule of what it asks."""

import pytest
import torch
from conftest import shown

from tasks.associative_recall import AssociativeRecall, Items


def test_recalls_worked_example():
    items = torch.tensor([[1.0, 0], [0, 0], [1, 1]])[:, :, None, None]  # (3 items, 2 vectors, 1 sequence, 1 bit)
    batch = AssociativeRecall(1, 2).batch(items, torch.tensor([1]))
    assert shown(batch, "inputs") == [
        [0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0],
    ]
    assert shown(batch, "targets") == [[0] * 14 + [1, 1]]
    assert shown(batch, "mask") == [0] * 14 + [1, 1]


def items_and_query(batch, task, count):
    """Cut a batch of recall into items (K, B, item_len * width), the query and the answer, by its marks."""
    n, width = task.item_len, task.seq_width
    starts = torch.nonzero(batch.inputs[:, 0, width])[:, 0].tolist()
    assert starts == [k * (n + 1) for k in range(count + 1)]
    bits = batch.inputs[..., :width]
    items = torch.stack([bits[s + 1 : s + 1 + n].transpose(0, 1).flatten(1) for s in starts[:-1]])
    first, last = torch.nonzero(batch.inputs[:, 0, width + 1])[:, 0].tolist()
    assert (first, last) == (starts[-1] + 1, starts[-1] + n + 2)
    return (
        items,
        bits[first + 1 : last].transpose(0, 1).flatten(1),
        batch.targets[last + 1 :].transpose(0, 1).flatten(1),
    )


@pytest.mark.parametrize("count", [2, 6, 20])
def test_recall_asks_for_any_item_but_the_last_and_wants_the_one_after_it(count):
    task = AssociativeRecall(6, 3)
    batch = task.sample(500, Items(count), torch.Generator().manual_seed(0))
    items, query, answer = items_and_query(batch, task, count)
    asked = (items == query).all(-1)
    assert torch.equal(asked.sum(0), torch.ones(500, dtype=torch.long))  # items differ, so the query is one of them
    places = asked.int().argmax(0)
    assert sorted(set(places.tolist())) == list(range(count - 1))
    assert torch.equal(items[places + 1, torch.arange(500)], answer)
    assert torch.equal(batch.mask.sum(0), torch.full((500,), 3.0))
    assert batch.inputs[batch.mask > 0].sum() == 0


def test_recall_of_tiny_items_does_not_look_for_ever_for_ones_that_differ():
    batch = AssociativeRecall(1, 1).sample(50, Items(6), torch.Generator().manual_seed(0))
    assert len(batch.inputs) == 6 * 2 + 5
