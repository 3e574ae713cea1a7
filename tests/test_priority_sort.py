"""tasks/priority_sort.py: what it asks, and ties of priority."""

import pytest
import torch
from conftest import shown

from tasks.priority_sort import PrioritySort
from tasks.vectors import Length


def test_sorts_worked_example_and_ties():
    vectors = torch.tensor([[[1.0, 0]], [[1, 1]], [[0, 1]]])
    batch = PrioritySort(2, 2).batch(vectors, torch.tensor([[0.1], [-0.6], [0.8]]))
    assert shown(batch, "inputs")[:2] == [[0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]]
    assert shown(batch, "inputs")[2] == pytest.approx([0, 0.1, -0.6, 0.8, 0, 0, 0])
    assert shown(batch, "inputs")[3:] == [[1, *[0] * 6], [0, 0, 0, 0, 1, 0, 0]]
    assert shown(batch, "targets") == [[0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]
    assert shown(batch, "mask") == [0, 0, 0, 0, 0, 1, 1]
    tied = PrioritySort(2, 3).batch(vectors, torch.tensor([[0.5], [0.5], [0.5]]))
    assert tied.targets[5:, 0].tolist() == vectors[:, 0].tolist()


@pytest.mark.parametrize(("length", "answers"), [(20, 16), (3, 3)])
def test_sort_gives_the_highest_in_order(length, answers):
    batch = PrioritySort(8, 16).sample(40, Length(length), torch.Generator().manual_seed(0))
    vectors, priorities = batch.inputs[1 : length + 1, :, :8], batch.inputs[1 : length + 1, :, 8]
    assert -1 <= priorities.min() < -0.8
    assert 0.8 < priorities.max() <= 1
    for b in range(40):
        ranked = sorted(zip(priorities[:, b].tolist(), vectors[:, b].tolist(), strict=True), reverse=True)
        assert batch.targets[batch.mask[:, b] > 0, b].tolist() == [vector for _, vector in ranked[:answers]]
    assert torch.equal(batch.mask.sum(0), torch.full((40,), float(answers)))
