"""tasks/copy.py: its worked example."""

import torch
from conftest import shown

from tasks.copy import Copy


def test_copys_worked_example():
    batch = Copy(2).batch(torch.tensor([[[1.0, 0]], [[1, 1]]]))
    bits, marks = [[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]], [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert shown(batch, "inputs") == bits + marks
    assert shown(batch, "targets") == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert shown(batch, "mask") == [0, 0, 0, 0, 1, 1]
