"""ntm/loss.py: the mean over the bits that count, and its parts."""

import numpy as np
import pytest
import torch

from ntm.loss import cross_entropy


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_it_is_the_mean_over_the_bits_that_count(size):
    logits, mask = size * torch.randn(5, 3, 2, dtype=torch.float64), (torch.rand(5, 3) < 0.5).double()
    mask[0, 0] = 1
    targets = torch.rand(5, 3, 2, dtype=torch.float64).round()
    z, y, counts = logits.numpy(), targets.numpy(), mask.numpy().astype(bool)
    theirs = (np.logaddexp(0, z) - y * z)[counts].mean()
    assert cross_entropy(logits, targets, mask).item() == pytest.approx(theirs, rel=1e-12)
    logits[mask == 0] = 1e300  # steps that do not count
    assert cross_entropy(logits, targets, mask).item() == pytest.approx(theirs, rel=1e-12)


def test_parts_add_up_to_the_whole():
    logits, targets, mask = torch.randn(5, 6, 2), torch.rand(5, 6, 2).round(), (torch.rand(5, 6) < 0.7).float()
    parts = [cross_entropy(*(part[:, at] for part in (logits, targets, mask)), mask.sum())
             for at in (slice(0, 4), slice(4, 6))]  # fmt: skip
    torch.testing.assert_close(sum(parts), cross_entropy(logits, targets, mask))
