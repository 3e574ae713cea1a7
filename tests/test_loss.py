"""ntm/loss.py: how far a head is from standing on one row."""

import torch

from ntm.addressing import blur


def test_blur_is_0_on_one_row_and_largest_on_all():
    weighting = torch.tensor([[0.0, 1, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert blur(weighting).tolist() == [0, 0.5, 0.75]
