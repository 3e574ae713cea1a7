"""ntm/machine.py: all parameters in one flat tensor."""

import copy

import numpy as np
import pytest
import torch
from conftest import lively_model

from ntm import NTM, Backend, LSTMBaseline
from ntm.fused import FusedAdamW
from ntm.loss import cross_entropy

BACKENDS = [Backend.REFERENCE, Backend.FUSED]


@pytest.mark.parametrize("backend", BACKENDS)
def test_flat_parameters_are_the_model(backend):
    model, twin = (lively_model(2, backend=backend) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    flat = model.flatten_parameters()
    assert flat.numel() == sum(parameter.numel() for parameter in model.parameters())
    batch = torch.rand(4, 3, 5).double(), torch.ones(4, 3, 3).double(), torch.ones(4, 3).double()

    def check():
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(ours.grad, theirs.grad)

    for _ in range(2):  # gradients add up, whichever way they come
        for each in (model, twin):
            each.forward_backward(*batch)
            each(batch[0])[0].sum().backward()
    check()
    assert flat.grad.norm().item() == pytest.approx(sum(p.grad.square().sum().item() for p in twin.parameters()) ** 0.5)
    with torch.no_grad():
        flat.add_(flat.grad)
        for parameter in twin.parameters():
            parameter.add_(parameter.grad)
    check()
    model.load_state_dict({name: 0 * value for name, value in twin.state_dict().items()})  # as after a rollback
    assert not flat.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("replace", ["assign", "data", "parameter"])
def test_a_parameter_that_left_the_flat_tensor_is_refused_not_left_untrained(replace, backend):
    model, batch = lively_model(backend=backend), (torch.rand(4, 3, 5).double(), torch.ones(4, 3, 3).double())
    mask = torch.ones(4, 3).double()
    model.flatten_parameters()
    model.forward_backward(*batch, mask)
    if replace == "assign":
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    elif replace == "data":
        model.output_proj.bias.data = torch.zeros(3).double()
    else:
        model.controller.gate_proj.bias = torch.nn.Parameter(torch.zeros_like(model.controller.gate_proj.bias))
    with pytest.raises(RuntimeError, match="replaced since flatten_parameters: call it again"):
        model.forward_backward(*batch, mask)
    twin = lively_model()
    twin.load_state_dict(model.state_dict())
    model.flatten_parameters()
    assert model.forward_backward(*batch, mask)[0] == pytest.approx(twin.forward_backward(*batch, mask)[0])
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_that_are_flat_already_stay_where_an_optimizer_has_them(backend):
    model = lively_model(backend=backend)
    batch = torch.rand(4, 3, 5).double(), torch.ones(4, 3, 3).double(), torch.ones(4, 3).double()
    flat = model.flatten_parameters()
    optimizer, before = torch.optim.SGD([flat], lr=0.5), flat.detach().clone()
    model.forward_backward(*batch)
    assert model.flatten_parameters() is flat
    assert not flat.grad.any()
    model.forward_backward(*batch)
    optimizer.step()
    assert not torch.equal(flat, before)
    twin = lively_model()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(batch[0])[0], twin(batch[0])[0])


def test_a_flat_tensor_is_copied_with_its_model_alone():
    model = lively_model()
    optimizer = torch.optim.SGD([model.flatten_parameters()], lr=0.5)
    for alone in model.flat_parameters, optimizer:
        with pytest.raises(RuntimeError, match="is not copied, nor an optimizer of it: copy the model"):
            copy.deepcopy(alone)
    twin = copy.deepcopy(model)
    flat = twin.flatten_parameters()
    again = torch.optim.SGD([flat], lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.param_groups[0]["lr"] == 0.5
    assert torch.equal(flat, model.flat_parameters)
    assert flat.data_ptr() != model.flat_parameters.data_ptr()


@pytest.mark.parametrize("replace", ["assign", "to", "data", "one", "module"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, FusedAdamW])
def test_an_optimizer_of_parameters_that_left_the_flat_tensor_takes_no_step(kind, replace):
    model = lively_model(dtype=torch.float32)
    options = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0} if kind is FusedAdamW else {}
    optimizer = kind([model.flatten_parameters()], lr=0.5, **options)
    model(torch.rand(4, 3, 5))[0].sum().backward()
    optimizer.step()
    if replace == "assign":
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    elif replace == "to":
        model.double().float()
    elif replace == "module":
        model.output_proj = torch.nn.Linear(model.output_proj.in_features, 3)
    elif replace == "one":
        model.output_proj.bias = torch.nn.Parameter(model.output_proj.bias.detach())
    else:
        first = next(iter(model.packed_parameters().values()))
        first.data = first.data.clone()
    model(torch.rand(4, 3, 5))[0].sum().backward()
    with pytest.raises(RuntimeError, match="replaced since flatten_parameters"):
        optimizer.step()
    model.flatten_parameters()  # which that optimizer does not have
    with pytest.raises(RuntimeError, match="replaced since flatten_parameters"):
        optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_the_flat_tensor_that_nothing_would_train_are_refused(backend):
    model = lively_model(backend=backend)
    batch = torch.rand(4, 3, 5).double(), torch.ones(4, 3, 3).double(), torch.ones(4, 3).double()
    flat = model.flatten_parameters()
    model.output_proj.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"output_proj\.weight was frozen since flatten_parameters"):
        model.forward_backward(*batch)
    model.output_proj.requires_grad_(True)
    for register in (flat.register_hook, flat.register_post_accumulate_grad_hook):
        handle = register(lambda *a: None)
        with pytest.raises(RuntimeError, match="hooks on what flatten_parameters gave are never called"):
            model.forward_backward(*batch)
        handle.remove()
    model.forward_backward(*batch)
    assert flat.grad.any()
    model.output_proj.requires_grad_(False)
    model.flat_parameters = None  # as the message says
    model.output_proj.weight.grad.zero_()
    model.forward_backward(*batch)
    assert not model.output_proj.weight.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ["before", "between"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("by", ["optimizer", "model", "hand"])
def test_an_optimizer_over_flat_parameters_learns_whoever_sets_gradients_to_none(backend, order, at_once, by):
    inputs, targets, mask = torch.rand(5, 4, 5).double(), torch.ones(5, 4, 3).double(), torch.ones(5, 4).double()
    found = []
    for flattened in (False, True):
        torch.manual_seed(3)
        model = lively_model(backend=backend)
        optimizer = torch.optim.SGD([model.flatten_parameters()] if flattened else model.parameters(), lr=0.5)

        def zero_grad(model=model, optimizer=optimizer):
            if by == "hand":
                for parameter in model.parameters():
                    parameter.grad = None
            else:
                (optimizer if by == "optimizer" else model).zero_grad()

        for _ in range(3):
            if at_once:
                zero_grad()
                model.forward_backward(inputs, targets, mask)
            else:
                if order == "before":
                    zero_grad()
                loss = cross_entropy(model(inputs)[0], targets, mask)
                if order == "between":
                    zero_grad()
                loss.backward()
            optimizer.step()
        found.append([parameter.detach() for parameter in model.parameters()])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_was_put_in_is_that_of_the_flat_parameters(backend):
    inputs, targets, mask = torch.rand(5, 4, 5).double(), torch.ones(5, 4, 3).double(), torch.ones(5, 4).double()
    model = lively_model(backend=backend)
    flat = model.flatten_parameters()
    model.forward_backward(inputs, targets, mask)
    once = flat.grad.clone()
    for parameter in model.parameters():
        parameter.grad = 2 * parameter.grad
    torch.testing.assert_close(flat.grad, 2 * once)
    for parameter in model.parameters():
        parameter.grad = 2 * parameter.grad
    model.forward_backward(inputs, targets, mask)
    torch.testing.assert_close(flat.grad, 5 * once)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whole", [False, True])
def test_a_gradient_that_is_assigned_is_that_of_the_parameters(backend, whole):
    """As where gradients are scaled or clipped by `flat.grad = ...` before a step."""
    batch = torch.rand(5, 4, 5).double(), torch.ones(5, 4, 3).double(), torch.ones(5, 4).double()
    found = []
    for flattened in (False, True):
        torch.manual_seed(3)
        model = lively_model(backend=backend)
        trained = [model.flatten_parameters()] if flattened else list(model.parameters())
        optimizer = torch.optim.SGD(trained, lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            if whole:
                model.forward_backward(*batch)
            else:
                cross_entropy(model(batch[0])[0], *batch[1:]).backward()
            for each in trained:
                each.grad = each.grad / 2
            optimizer.step()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours)
    with pytest.raises(RuntimeError, match="a gradient of shape"):
        trained[0].grad = torch.ones(())


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "3", None])
@pytest.mark.parametrize("at", range(6))
def test_sizes_that_are_no_whole_numbers_are_refused(wrong, at):
    sizes = [5, 3, 6, 7, 5, 1]
    NTM(*map(np.int64, sizes))
    for kind, wanted in (NTM, 6), (LSTMBaseline, 4):
        if at < wanted:
            with pytest.raises(ValueError, match="a whole number of at least 1, and one is"):
                kind(*sizes[:at], wrong, *sizes[at + 1 : wanted])
