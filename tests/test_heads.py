"""ntm/heads.py: controls in the ranges that their equations ask for, up to both ends; read heads first."""

import pytest
import torch

from ntm.heads import Heads


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_controls_keep_to_their_ranges(size):
    heads = Heads(3, 4, 2, 1).double()
    torch.nn.init.normal_(heads.control_proj.weight, std=1.0)
    controls = heads.controls(size * torch.randn(50, 3, dtype=torch.float64))
    shapes = [(4,), (1,), (1,), (3,), (1,)]
    assert [part.shape for part in controls[:5]] == [(50, 3, *shape) for shape in shapes]
    assert controls.erase.shape == controls.add.shape == (50, 1, 4)
    assert all(part.isfinite().all() for part in controls)
    assert (controls.key_strength >= 0).all()
    assert (controls.sharpening >= 1).all()
    for part in (controls.interpolation_gate, controls.shift_weighting, controls.erase):
        assert part.min() >= 0
        assert part.max() <= 1
    torch.testing.assert_close(controls.shift_weighting.sum(-1), torch.ones(50, 3, dtype=torch.float64))
    if size > 1:  # both ends are reached
        assert controls.key_strength.min() < 1e-3 < 1e3 < controls.key_strength.max()
        assert controls.sharpening.min() < 1.001 < 1e3 < controls.sharpening.max()
        assert controls.interpolation_gate.min() < 1e-3 < 0.999 < controls.interpolation_gate.max()


def test_the_read_heads_come_first():
    heads = Heads(3, 4, 2, 1).double()
    hidden, memory = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 6, 4, dtype=torch.float64)
    previous = torch.softmax(torch.randn(5, 3, 6, dtype=torch.float64), -1)
    before = heads(hidden, memory, previous)
    assert before.weighting.shape == before.shifted.shape == (5, 3, 6)
    changed = previous.clone()
    changed[:, 2] = changed[:, 2].roll(1, -1)  # where the write head was
    after = heads(hidden, memory, changed)
    for part, again in zip(before[:2], after[:2], strict=True):
        assert torch.equal(again[:, :2], part[:, :2])
        assert not torch.equal(again[:, 2], part[:, 2])
