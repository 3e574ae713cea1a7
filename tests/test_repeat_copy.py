"""tasks/repeat_copy.py: what it asks, and both ends of both numbers."""

import math

import pytest
import torch
from conftest import shown

from experiment.configuration import load_configuration
from experiment.scoring import generator
from experiment.training import draw_iteration
from tasks.repeat_copy import RepeatCopy


def test_repeat_copys_worked_example():
    batch = RepeatCopy(2, 10).batch(torch.tensor([[[1.0, 0]], [[1, 1]]]), 2)
    assert shown(batch, "inputs")[:3] == [[0, 1, 1, *[0] * 6], [0, 0, 1, *[0] * 6], [1, *[0] * 8]]
    assert shown(batch, "inputs")[3] == pytest.approx([0, 0, 0, -3.5 / math.sqrt(8.25), 0, 0, 0, 0, 0])
    assert shown(batch, "targets") == [[0, 0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0, 1, 0], [0] * 8 + [1]]
    assert shown(batch, "mask") == [0, 0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("largest", [2, 10])
def test_the_number_of_repeats_has_mean_0_and_variance_1_in_training(largest):
    numbers = torch.tensor([RepeatCopy(8, largest).normalised(n) for n in range(1, largest + 1)])
    assert numbers.mean() == pytest.approx(0, abs=1e-6)
    assert numbers.var(correction=0) == pytest.approx(1, rel=1e-5)


def test_both_numbers_of_a_size_are_drawn_from_end_to_end():
    configuration = load_configuration("repeat_copy")
    task, drawn = configuration.task, set()
    for step in range(1500):
        batch = draw_iteration(configuration, 10**9, generator(1, 0, step)).batch
        length = int(torch.nonzero(batch.inputs[:, 0, task.seq_width + 1])[0]) - 1
        drawn.add((length, (len(batch.inputs) - length - 3) // length))
    assert {length for length, _ in drawn} == {repeats for _, repeats in drawn} == set(range(1, 11))
    assert {(1, 1), (1, 10), (10, 1), (10, 10)} <= drawn
