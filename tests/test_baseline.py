"""ntm/baseline.py: the LSTM alone, against the oracle, and called as an NTM is."""

import numpy as np
import oracle
import pytest
import torch

from experiment.backend import start_backend
from experiment.configuration import load_configuration
from experiment.errors import InputError
from ntm import LSTMBaseline
from ntm.controller import LSTMState
from ntm.loss import cross_entropy


def lively_baseline(layers=2):
    model = LSTMBaseline(5, 3, 4, layers).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def test_a_parameter_that_nothing_trains_is_refused():
    model = lively_baseline().float()
    start_backend(model, training=True)
    model.temperature = torch.nn.Parameter(torch.ones(3))
    start_backend(model)
    with pytest.raises(InputError, match="temperature gets no gradient"):
        start_backend(model, training=True)


def test_layers_of_lstm_one_above_the_other():
    model, inputs = lively_baseline(), torch.rand(6, 2, 5, dtype=torch.float64)
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    logits, end = model(inputs)
    for b in range(2):
        hidden, cell = p["initial_hidden"].copy(), p["initial_cell"].copy()
        for t in range(6):
            seen = inputs[t, b].tolist()
            for layer in range(2):
                weight = np.concatenate((p[f"layers.weight_ih_l{layer}"], p[f"layers.weight_hh_l{layer}"]), axis=1)
                bias = p[f"layers.bias_ih_l{layer}"] + p[f"layers.bias_hh_l{layer}"]
                maps = {"controller.gate_proj.weight": weight, "controller.gate_proj.bias": bias}
                seen = oracle.lstm(maps, seen, hidden[layer], cell[layer], None).tolist()
            theirs = oracle.linear(p["output_proj.weight"], p["output_proj.bias"], seen)
            np.testing.assert_allclose(logits[t, b].detach(), theirs, rtol=1e-9)
        np.testing.assert_allclose(end.hidden[:, b].detach(), hidden, rtol=1e-9)
        np.testing.assert_allclose(end.cell[:, b].detach(), cell, rtol=1e-9)


def test_two_halves_are_the_whole_and_a_step_is_one_of_them():
    model, inputs = lively_baseline(), torch.rand(5, 2, 5, dtype=torch.float64)
    whole, end = model(inputs)
    first, middle = model(inputs[:4], memory_units=99)
    last, after = model(inputs[4:], middle)
    torch.testing.assert_close(torch.cat((first, last)), whole)
    assert isinstance(after, LSTMState)
    for a, b in zip(after, end, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("flattened", [False, True])
def test_forward_backward_is_a_loss_and_backward(flattened):
    model = lively_baseline()
    inputs, targets = torch.rand(5, 3, 5).double(), torch.rand(5, 3, 3).double().round()
    mask = torch.tensor([0, 1, 1, 0, 1]).double().unsqueeze(1).expand(5, 3)
    logits, _ = model(inputs)
    by_bit = -(targets * logits.sigmoid().log() + (1 - targets) * (1 - logits.sigmoid()).log())
    expected = by_bit[[1, 2, 4]].mean()
    torch.testing.assert_close(cross_entropy(logits, targets, mask), expected)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    if flattened:
        assert model.flatten_parameters().numel() == sum(p.numel() for p in model.parameters())
    for _ in range(2):
        loss, found = model.forward_backward(inputs, targets, mask, blur_cost=0.3)
    assert loss == pytest.approx(expected.item())
    torch.testing.assert_close(found, logits.detach())
    for parameter, their in zip(model.parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * their)


def test_what_it_has_not_is_refused():
    model, batch = (
        lively_baseline(),
        (torch.rand(2, 1, 5).double(), torch.ones(2, 1, 3).double(), torch.ones(2, 1).double()),
    )
    with pytest.raises(ValueError, match="no memory"):
        model.forward_backward(*batch, memory=torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="no cell dropout"):
        model.forward_backward(*batch, cell_mask=torch.ones(2, 1, 4, dtype=torch.bool))


def test_its_size_in_the_papers_table_3():
    model = load_configuration("l1d1").make_model()  # 3 layers of 256; the paper's, for copy: 1,352,969
    assert sum(p.numel() for p in model.parameters()) == 1_330_696
