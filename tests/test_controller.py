"""ntm/controller.py: the LSTM is PyTorch's, and can be made to forget; the other carries nothing."""

import pytest
import torch

from ntm.controller import FeedForwardController, LSTMController, LSTMState


def test_the_lstm_is_pytorchs():
    ours, theirs = LSTMController(3, 4).double(), torch.nn.LSTMCell(3, 4).double()
    weight, bias = ours.gate_proj.weight.detach(), ours.gate_proj.bias.detach()
    theirs.load_state_dict(
        {"weight_ih": weight[:, :3], "weight_hh": weight[:, 3:], "bias_ih": bias, "bias_hh": torch.zeros_like(bias)}
    )
    state = LSTMState(*torch.randn(2, 5, 4, dtype=torch.float64))
    for _ in range(3):
        x = torch.randn(5, 3, dtype=torch.float64)
        wanted = theirs(x, tuple(state))
        output, state = ours(x, state)
        torch.testing.assert_close(tuple(state), wanted)
        assert output is state.hidden


def test_a_cell_that_is_made_to_forget_starts_from_nothing():
    controller = LSTMController(3, 4)
    x, state = torch.randn(2, 3), LSTMState(*torch.randn(2, 2, 4))
    keep = torch.tensor([[True, True, False, True], [False, False, False, False]])
    _, kept = controller(x, state)
    _, masked = controller(x, state, keep)
    assert torch.equal(masked.cell, torch.where(keep, kept.cell, 0))
    assert torch.equal(masked.hidden, torch.where(keep, kept.hidden, 0))


def test_the_feed_forward_controller_carries_nothing_and_has_no_cells():
    controller = FeedForwardController(3, 4)
    x = torch.randn(2, 3)
    output, state = controller(x, controller.initial_state(2))
    assert state == ()
    torch.testing.assert_close(output, torch.tanh(x @ controller.hidden_proj.weight.T + controller.hidden_proj.bias))
    with pytest.raises(ValueError, match="no cells that could forget"):
        controller(x, (), torch.ones(2, 4, dtype=torch.bool))
