"""tasks/reverse.py, tasks/vectors.py and tasks/task.py: its sequences, and how answers are counted."""

import math

import pytest
import torch

from ntm.loss import cross_entropy
from tasks import TASKS
from tasks.reverse import Reverse


def test_the_worked_example_of_the_docstring():
    batch = Reverse(2).batch(torch.tensor([[[1.0, 0]], [[1, 1]]]))
    assert batch.inputs[:, 0].T.tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ]
    assert batch.targets[:, 0].T.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0]]
    assert batch.mask[:, 0].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("length", [1, 2, 20])
def test_samples_are_reversed_random_and_reproducible(length):
    task = TASKS["reverse"](8)
    batch = task.sample(64, (length,), torch.Generator().manual_seed(1))
    assert batch.inputs.shape == (2 * length + 2, 64, 10)
    assert torch.equal(batch.targets[length + 2 :].flip(0), batch.inputs[1 : length + 1, :, :8])
    assert batch.inputs[length + 2 :].sum() == 0
    assert batch.mask.sum() == 64 * length
    assert 0.4 < batch.inputs[1 : length + 1, :, :8].mean() < 0.6
    again = task.sample(64, (length,), torch.Generator().manual_seed(1))
    assert torch.equal(batch.inputs, again.inputs)
    assert not torch.equal(batch.inputs, task.sample(64, (length,), torch.Generator().manual_seed(2)).inputs)


def test_uneven_sequences_are_monotonous_or_varied():
    batch = Reverse(8).sample(600, (12,), torch.Generator().manual_seed(1), uneven=1.0)
    vectors = batch.inputs[1:13, :, :8]
    assert torch.equal(batch.targets[14:].flip(0), vectors)
    different = torch.tensor([len(torch.unique(vectors[:, b], dim=0)) for b in range(600)])
    spread = vectors.mean(-1).std(0)  # of the share of ones, from vector to vector
    monotonous = different < 7
    assert different.min() == 1
    assert 150 < monotonous.sum() < 450
    assert vectors[:, monotonous].mean((0, 2)).min() < 0.05
    assert vectors[:, monotonous].mean((0, 2)).max() > 0.95
    assert spread[~monotonous].mean() > 0.25
    assert 0.08 < (vectors[0].sum(-1) == 0).float().mean() < 0.15  # 1 / 9 begin with an empty vector
    plain = Reverse(8).sample(600, (12,), torch.Generator().manual_seed(1)).inputs[1:13, :, :8]
    assert plain.mean(-1).std(0).max() < 0.3
    assert (plain[0].sum(-1) == 0).float().mean() < 0.02


def test_scoring_counts_only_what_the_mask_marks():
    task = Reverse(2)
    batch = task.batch(torch.tensor([[[1.0, 0], [0, 0]], [[1, 1], [0, 1]]]))
    perfect = torch.where(batch.targets > 0.5, 20.0, -20.0)
    noise = torch.where(batch.mask.unsqueeze(-1) > 0, perfect, 99.0)
    assert task.wrong_bits(noise, batch).tolist() == [0, 0]
    assert cross_entropy(noise, batch.targets, batch.mask) < 1e-6
    noise[-1, 1] *= -1
    assert task.wrong_bits(noise, batch).tolist() == [0, 2]
    assert cross_entropy(noise, batch.targets, batch.mask).item() == pytest.approx(2 * 20 / 8, rel=1e-6)
    assert cross_entropy(torch.zeros_like(noise), batch.targets, batch.mask).item() == pytest.approx(math.log(2))
    noise[-1, 0] = float("nan")
    assert task.wrong_bits(noise, batch).tolist() == [2, 2]


@pytest.mark.parametrize("uneven", [0.0, 0.5, 1.0])
def test_uneven_sequences_are_drawn_as_often_as_asked(uneven):
    batch = Reverse(8).sample(4000, (1,), torch.Generator().manual_seed(1), uneven=uneven)
    empty = (batch.targets.sum((0, 2)) == 0).float().mean()
    assert empty == pytest.approx(uneven / 9 + (1 - uneven) / 256, abs=0.02)
