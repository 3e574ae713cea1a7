"""ntm/memory.py: equations 2 to 4 against the oracle, and where the answer is plain to see."""

import numpy as np
import oracle
import pytest
import torch

from ntm import memory

B, H, N, M = 2, 3, 6, 4


@pytest.fixture
def given():
    return {
        "memory": torch.randn(B, N, M, dtype=torch.float64),
        "previous": torch.softmax(3 * torch.randn(B, H, N, dtype=torch.float64), -1),
    }


def by_head(function, *tensors):
    """Apply a function of one head's arrays to each sequence and head."""
    heads = [[function(*(t[b, h].numpy() for t in tensors)) for h in range(H)] for b in range(B)]
    return np.array(heads)


def test_reading_a_one_hot_weighting_gives_that_row(given):
    weighting = torch.eye(N, dtype=torch.float64)[[2, 0, 5]].expand(B, H, N)
    assert torch.equal(memory.read(given["memory"], weighting), given["memory"][:, [2, 0, 5]])


def test_reading_is_equation_2(given):
    ours = memory.read(given["memory"], given["previous"])
    rows = given["memory"].unsqueeze(1).expand(B, H, N, M)
    np.testing.assert_allclose(ours, by_head(oracle.read, rows, given["previous"]), rtol=1e-10)


def test_an_erase_of_ones_with_a_one_hot_weighting_clears_exactly_one_row(given):
    weighting = torch.eye(N, dtype=torch.float64)[3].expand(B, 1, N)
    ones, nothing = torch.ones(B, 1, M, dtype=torch.float64), torch.zeros(B, 1, M, dtype=torch.float64)
    left = memory.write(given["memory"], weighting, ones, nothing)
    assert (left[:, 3] == 0).all()
    others = [0, 1, 2, 4, 5]
    assert torch.equal(left[:, others], given["memory"][:, others])


def test_writing_is_equations_3_and_4_for_several_heads(given):
    erase, add = torch.rand(B, H, M, dtype=torch.float64), torch.randn(B, H, M, dtype=torch.float64)
    ours = memory.write(given["memory"], given["previous"], erase, add)
    for b in range(B):
        theirs = oracle.write(*(part[b].tolist() for part in (given["memory"], given["previous"], erase, add)))
        np.testing.assert_allclose(ours[b], theirs, rtol=1e-10)
