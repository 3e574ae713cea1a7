"""ntm/ntm.py and state.py, with controllers and heads: the oracle, and what holds for any such machine."""

import re

import numpy as np
import oracle
import pytest
import torch
from conftest import flat, lively_model, lively_state, nested
from torch.autograd import forward_ad, gradcheck
from torch.utils.flop_counter import FlopCounterMode

from experiment.backend import start_backend
from experiment.configuration import load_configuration
from experiment.errors import InputError
from ntm import NTM, Backend, BackendError, LSTMBaseline
from ntm.loss import cross_entropy
from ntm.state import NTMState
from tasks import Batch

BACKENDS = [Backend.REFERENCE, Backend.FUSED]
CONTROLLERS = ["lstm", "feedforward"]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unroll_is_the_paper(heads, controller, backend):
    model = lively_model(heads, controller=controller, backend=backend)
    inputs, state = torch.rand(6, 3, 5, dtype=torch.float64), lively_state(model, 3)
    cell_mask = torch.rand(6, 3, 6) < 0.7 if controller == "lstm" else None
    logits, end = model(inputs, state, cell_mask=cell_mask)
    for b in range(3):
        start, mask = [part[b] for part in flat(state)], None if cell_mask is None else cell_mask[:, b].numpy()
        theirs, their_end = oracle.unroll(model, inputs[:, b].numpy(), start, mask)
        np.testing.assert_allclose(logits[:, b].detach(), theirs, rtol=1e-9, atol=1e-12)
        for ours, other in zip(flat(end), their_end, strict=True):
            np.testing.assert_allclose(ours[b].detach(), other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("heads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_an_unroll(heads, controller, backend):
    model = lively_model(heads, memory_units=4, width=3, controller_size=4, controller=controller, backend=backend)
    inputs, state = torch.rand(3, 2, 5, dtype=torch.float64), lively_state(model, 2)
    parameters, count = dict(model.named_parameters()), len(flat(state))

    def run(inputs, *parts):
        state, weights = nested(parts[:count]), dict(zip(parameters, parts[count:], strict=True))
        logits, end = torch.func.functional_call(model, weights, (inputs, state))
        return (logits, *flat(end))

    free = [part.detach().clone().requires_grad_() for part in (inputs, *flat(state), *parameters.values())]
    # The reference path has no backward pass of its own: there, one random direction finds what is cut off.
    assert gradcheck(run, free, atol=1e-6, fast_mode=backend == Backend.REFERENCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_default_state_and_rows_at_call_time(backend):
    model = lively_model(memory_units=7, backend=backend)
    inputs = torch.rand(5, 2, 5, dtype=torch.float64)
    for rows in (1, 2, 7, 30):
        logits, end = model(inputs, memory_units=rows)
        assert end.memory.shape == (2, rows, 5)
        again, _ = model(inputs, model.initial_state(2, rows))
        assert torch.equal(logits, again)
    assert model(inputs)[1].memory.shape == (2, 7, 5)


def test_the_initial_state_is_one_hot_on_row_0_and_the_constant():
    state = lively_model().initial_state(2)
    assert (state.weighting == torch.eye(7)[0]).all()
    assert (state.memory == 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_halves_are_the_whole(backend):
    model = lively_model(backend=backend)
    inputs = torch.rand(8, 2, 5, dtype=torch.float64)
    whole, end = model(inputs)
    first, middle = model(inputs[:3])
    second, end_again = model(inputs[3:], middle)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    for a, b in zip(flat(end), flat(end_again), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_16_is_16_batches_of_one(backend):
    model = lively_model(backend=backend)
    inputs = torch.rand(5, 16, 5, dtype=torch.float64)
    together, _ = model(inputs)
    alone = torch.cat([model(inputs[:, b : b + 1])[0] for b in range(16)], dim=1)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", ["m1d1", "m2d1", "m3d1", "f1d1"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_parameter_gets_a_gradient(name, backend):
    configuration = load_configuration(name)
    model, task = configuration.make_model(backend), configuration.task
    batch = task.sample(4, (3,), torch.Generator().manual_seed(0))
    cross_entropy(model(batch.inputs)[0], batch.targets, batch.mask).backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def test_parameter_counts_do_not_depend_on_rows():
    counts = {sum(p.numel() for p in NTM(10, 8, 100, rows, 20).parameters()) for rows in (8, 128, 1024)}
    assert counts == {62_880}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_backward_is_the_papers_loss_with_blur_from_any_memory(backend, shared):
    model, rows = lively_model(2, backend=backend), 9
    memory = torch.randn(1 if shared else 6, rows, 5, dtype=torch.float64)
    batch = Batch(torch.rand(5, 6, 5).double(), torch.rand(5, 6, 3).double().round(), (torch.rand(5, 6) < 0.7).double())
    cell_mask, blur_cost = torch.rand(5, 6, 6) < 0.7, 0.7

    state, outputs, blurs = model.initial_state(6, rows)._replace(memory=memory), [], []
    for x, keep in zip(batch.inputs, cell_mask, strict=True):
        logits, state, focus = model.step_with_focus(x, state, keep)
        outputs.append(logits)
        blurs.append(1 - focus.shifted.square().sum(-1))
    loss = cross_entropy(torch.stack(outputs), batch.targets, batch.mask) + blur_cost * torch.stack(blurs).mean()
    wanted = torch.autograd.grad(loss, model.parameters())

    ours, logits = model.forward_backward(*batch, memory, cell_mask, blur_cost)
    assert ours == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(logits, torch.stack(outputs).detach())
    for parameter, theirs in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_machine_draws_nothing_and_is_the_same_in_training_and_in_eval(backend):
    model, inputs = lively_model(backend=backend), torch.rand(5, 2, 5, dtype=torch.float64)
    state = torch.get_rng_state()
    assert torch.equal(model.train()(inputs)[0], model.eval()(inputs)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_asking_for_the_fused_path_where_it_cannot_be_had_is_an_error():
    model = lively_model(dtype=torch.float16, backend=Backend.FUSED)
    with pytest.raises(BackendError, match="float32 or float64"):
        model(torch.rand(2, 1, 5, dtype=torch.float16))


def test_second_derivatives_are_right_or_refused():
    model, inputs = lively_model(backend=Backend.FUSED), torch.rand(3, 2, 5, dtype=torch.float64)
    weight = model.output_proj.weight
    with pytest.raises(RuntimeError, match="not twice differentiable"):
        torch.autograd.grad(model(inputs)[0].square().sum(), weight, create_graph=True)
    model.backend = Backend.REFERENCE
    (first,) = torch.autograd.grad(model(inputs)[0].square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    assert second.abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_memory_without_rows_is_refused(backend):
    model = lively_model(backend=backend)
    for _ in range(2):
        for graph in (True, False):
            with pytest.raises(ValueError, match="at least one row"), torch.set_grad_enabled(graph):
                model(torch.rand(2, 1, 5, dtype=torch.float64), memory_units=0)
        batch = torch.rand(2, 1, 5), torch.ones(2, 1, 3), torch.ones(2, 1), torch.ones(1, 0, 5)
        with pytest.raises(ValueError, match="at least one row"):
            model.forward_backward(*(part.double() for part in batch))
        model(torch.rand(2, 1, 5, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_memory_of_another_width_is_refused(backend):
    batch = torch.rand(2, 1, 5), torch.ones(2, 1, 3), torch.ones(2, 1), torch.ones(1, 4, 6)
    with pytest.raises(ValueError, match=r"memory of shape|a state of shapes"):
        lively_model(backend=backend).forward_backward(*(part.double() for part in batch))


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.FUSED])
def test_rows_that_a_state_has_not_are_refused(backend):
    model = lively_model(backend=backend)
    state = model.initial_state(2, 9)
    assert model(torch.zeros(3, 2, 5).double(), state, memory_units=9)[1].memory.shape[1] == 9
    with pytest.raises(ValueError, match="memory_units is 30, and the state has 9 rows"):
        model(torch.zeros(3, 2, 5).double(), state, memory_units=30)
    none = state._replace(memory=state.memory[:, :0], weighting=state.weighting[..., :0])
    with pytest.raises(ValueError, match="the state has no rows; a memory has at least one row"):
        model(torch.zeros(3, 2, 5).double(), none)


def test_an_unknown_controller_is_refused():
    with pytest.raises(ValueError, match="controller is 'gru'; allowed are lstm, feedforward"):
        NTM(5, 3, 6, 7, 5, controller="gru")


@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 4), (0, 2, 5)])
@pytest.mark.parametrize(
    "model", [NTM(5, 3, 6, 7, 5), NTM(5, 3, 6, 7, 5, backend="reference"), LSTMBaseline(5, 3, 6, 1)]
)
def test_inputs_that_are_no_sequences_are_refused(model, shape):
    with pytest.raises(ValueError, match=rf"inputs of shape {re.escape(str(shape))}: .* \(T, B, 5\), of at least one"):
        model(torch.zeros(shape))
    with pytest.raises(ValueError, match="inputs of shape"):
        model.forward_backward(torch.zeros(shape), torch.zeros(6, 2, 3), torch.ones(6, 2))


def test_a_step_of_ones_own_counts_or_is_refused():
    class OwnStep(NTM):
        def step(self, x, state, cell_mask=None):
            logits, state = super().step(x, state, cell_mask)
            return 2 * logits, state

    own, stock = OwnStep(5, 3, 6, 7, 5), NTM(5, 3, 6, 7, 5, backend="reference")
    stock.load_state_dict(own.state_dict())
    inputs, targets, mask = torch.rand(4, 2, 5), torch.ones(4, 2, 3), torch.ones(4, 2)
    torch.testing.assert_close(own(inputs)[0], 2 * stock(inputs)[0])
    with pytest.raises(ValueError, match="override `step_with_focus`"):
        own.forward_backward(inputs, targets, mask, blur_cost=0.1)
    _, logits = own.forward_backward(inputs, targets, mask)
    torch.testing.assert_close(logits, 2 * stock(inputs)[0])


@pytest.mark.parametrize("kind", ["fused", "reference", "lstm"])
@pytest.mark.parametrize("wrong", ["targets", "mask", "one mask", "memory", "cell_mask", "one cell"])
def test_batches_that_do_not_fit_are_refused_not_broadcast(kind, wrong):
    model = LSTMBaseline(5, 3, 6, 1) if kind == "lstm" else NTM(5, 3, 6, 7, 5, backend=kind)
    given = {"inputs": torch.rand(4, 2, 5), "targets": torch.ones(4, 2, 3), "mask": torch.ones(4, 2)}
    given |= {
        "targets": {"targets": torch.ones(4, 4, 3)},
        "mask": {"mask": torch.ones(4, 4)},
        "one mask": {"mask": torch.ones(4, 1)},
        "memory": {"memory": torch.ones(4, 7, 5)},
        "cell_mask": {"cell_mask": torch.ones(4, 1, 6, dtype=torch.bool)},
        "one cell": {"cell_mask": torch.ones(4, 2, 1, dtype=torch.bool)},
    }[wrong]
    with pytest.raises(ValueError, match=r"mask|targets|memory"):
        model.forward_backward(**given)


class Scaled(NTM):
    def forward(self, inputs, *rest):
        return super().forward(3 * inputs, *rest)


class Called(NTM):
    def __call__(self, inputs, *rest):
        return super().__call__(3 * inputs, *rest)


OWN = {
    "forward": lambda m: setattr(m, "__class__", Scaled),
    "__call__": lambda m: setattr(m, "__class__", Called),
    "put in": lambda m: setattr(m, "forward", lambda *a: None),
    "hook": lambda m: m.register_forward_hook(lambda m, a, out: (3 * out[0], out[1])),
    "hook before": lambda m: m.register_forward_pre_hook(lambda m, a: (3 * a[0], *a[1:])),
    "hook on the way back": lambda m: m.register_full_backward_hook(lambda *a: None),
    "hook before the way back": lambda m: m.register_full_backward_pre_hook(lambda *a: None),
}


@pytest.mark.parametrize("own", OWN)
def test_what_forward_backward_would_not_call_is_refused(own):
    model = NTM(5, 3, 6, 7, 5)
    handle = OWN[own](model)
    try:
        with pytest.raises(ValueError, match="does not call the model, and this one has its own `forward`"):
            model.forward_backward(torch.rand(4, 2, 5), torch.ones(4, 2, 3), torch.ones(4, 2))
        with pytest.raises(InputError, match="override `step_with_focus` instead"):
            start_backend(model, training=True)
    finally:
        if handle:
            handle.remove()


def test_an_own_step_that_gives_no_blur_is_refused_before_a_run_where_blur_costs_something():
    model = NTM(5, 3, 6, 7, 5)
    model.step = model.step
    start_backend(model, training=True)
    with pytest.raises(InputError, match="override `step_with_focus` instead, or give -blur_cost 0"):
        start_backend(model, training=True, blur_cost=0.2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 2, 6), (4, 1, 6), (4, 2)])
def test_a_cell_mask_that_does_not_fit_is_refused(backend, shape):
    with pytest.raises(ValueError, match=r"cell_mask of shape .* it is \(T, B, C\)"):
        lively_model(backend=backend)(torch.rand(4, 2, 5).double(), cell_mask=torch.ones(shape).bool())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", ["memory", "weighting", "reads", "hidden", "cell"])
def test_a_state_that_does_not_fit_is_not_broadcast(backend, part):
    model = lively_model(backend=backend)
    state, inputs = model.initial_state(2), torch.rand(4, 2, 5).double()

    def with_part(narrower):
        if part in NTMState._fields:
            return state._replace(**{part: narrower(getattr(state, part))})
        return state._replace(controller=state.controller._replace(**{part: narrower(getattr(state.controller, part))}))

    for narrower in (lambda tensor: tensor[..., :1], lambda tensor: tensor[:1]):
        with pytest.raises(ValueError, match="state does not fit"):
            model(inputs, with_part(narrower))
    with pytest.raises(ValueError, match="state does not fit"):
        model(inputs, model.initial_state(1))


def made_by_fx(model, x):
    from torch.fx.experimental.proxy_tensor import make_fx  # here: it warns

    return make_fx(lambda x: model(x)[0])(x)


TRACED = {
    "make_fx": made_by_fx,
    "jit.trace": lambda model, x: torch.jit.trace(lambda x: model(x)[0].detach(), (x,), check_trace=False),
    "compile": lambda model, x: torch.compile(model, backend="eager", fullgraph=True),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", TRACED)
def test_what_is_traced_is_the_reference_path(how):
    model, (x, other) = lively_model().requires_grad_(False), torch.rand(2, 4, 2, 5).double()
    found = TRACED[how](model, x)(other)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, model(other)[0])


def test_what_counts_operations_counts_those_of_forward_backward():
    model, batch = (
        lively_model(),
        (torch.rand(4, 2, 5).double(), torch.ones(4, 2, 3).double(), torch.ones(4, 2).double()),
    )
    with FlopCounterMode(display=False) as counter:
        model.forward_backward(*batch)
    assert counter.get_total_flops() > 0


def test_forward_mode_takes_the_reference_path():
    model, x, tangent = lively_model(), *torch.rand(2, 4, 2, 5).double()
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, tangent))[0]).tangent
    expected = (model(x + 1e-6 * tangent)[0] - model(x - 1e-6 * tangent)[0]) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_transforms_of_torch_func_take_the_reference_path():
    model, inputs = lively_model(), torch.rand(4, 2, 5).double()
    parameters = dict(model.named_parameters())

    def mean(parameters):
        return torch.func.functional_call(model, parameters, (inputs,))[0].mean()

    found = torch.func.grad(mean)(parameters)
    mean(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)
    model.backend = Backend.FUSED
    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.grad(mean)(parameters)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [*BACKENDS, "baseline"])
def test_forward_backward_without_gradients_is_refused(kind, off):
    model = LSTMBaseline(5, 3, 6, 1).double() if kind == "baseline" else lively_model(backend=kind)
    batch = torch.rand(4, 2, 5).double(), torch.ones(4, 2, 3).double(), torch.ones(4, 2).double()
    with off(), pytest.raises(RuntimeError, match="forward_backward adds to gradients"):
        model.forward_backward(*batch)
    assert all(parameter.grad is None for parameter in model.parameters())
