"""ntm/fused/ against the reference model: numbers, gradients, and use under stress."""

import copy
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from conftest import flat, lively_model, lively_state, nested
from hypothesis import given, settings
from hypothesis import strategies as st

from ntm import NTM, Backend, fused
from ntm.loss import cross_entropy
from ntm.memory import INITIAL_VALUE

settings.register_profile("fused", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fused")

PATHS = Backend.REFERENCE, Backend.FUSED


def outputs_and_gradients(model, inputs, state, backend, cell_mask=None, unroll=None):
    """Outputs and all gradients of a random projection of all outputs, of a call of the model, or of another unroll."""
    free = [part.detach().clone().requires_grad_() for part in (inputs, *flat(state))]
    model.backend = backend
    torch.manual_seed(7)  # the projection
    logits, end = (unroll or model)(free[0], nested(free[1:]), cell_mask=cell_mask)
    outputs = (logits, *flat(end))
    loss = sum((out * torch.randn(out.shape, dtype=torch.float64).to(out.dtype)).sum() for out in outputs)
    wanted = [*free, *(p for name, p in model.named_parameters() if "initial" not in name)]
    return (*outputs, *torch.autograd.grad(loss, wanted))


def both_paths(model, inputs, state, cell_mask=None):
    """Outputs and gradients, on each path."""
    return zip(*(outputs_and_gradients(model, inputs, state, path, cell_mask) for path in PATHS), strict=True)


def assert_close(theirs, ours, tolerance):
    """Equal to within `tolerance` of the largest element."""
    scale = theirs.abs().max().item() + 1e-30
    assert (theirs - ours).abs().max().item() <= tolerance * scale


sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 19),
        "steps": st.integers(1, 12),
        "rows": st.integers(1, 37),
        "width": st.integers(1, 23),
        "controller": st.integers(1, 20),
        "heads": st.integers(1, 3),
        "lstm": st.booleans(),
        "forget": st.sampled_from([None, 0.2, 1.0]),
        "blur_cost": st.sampled_from([0.0, 100.0]),
        "scale": st.sampled_from([0.1, 0.5, 1.0]),
    }
)


def model_and_inputs(size):
    torch.manual_seed(1)
    sizes = size["rows"], size["width"], size["controller"], size["scale"]
    model = lively_model(size["heads"], torch.float64, *sizes, controller="lstm" if size["lstm"] else "feedforward")
    inputs, state = torch.rand(size["steps"], size["batch"], 5).double(), lively_state(model, size["batch"])
    cells = size["steps"], size["batch"], size["controller"]
    masked = size["lstm"] and size["forget"] is not None
    return model, inputs, state, torch.rand(cells) >= size["forget"] if masked else None


@given(size=sizes)
def test_any_shape_in_float64(size):
    for theirs, ours in both_paths(*model_and_inputs(size)):
        assert_close(theirs, ours, 1e-9)


@given(size=sizes)
def test_any_shape_in_float32(size):
    """Within 1e-4 of the float64 numbers; where rounding alone takes the reference path farther, as near as it."""
    model, inputs, state, cell_mask = model_and_inputs(size)
    exact = outputs_and_gradients(model, inputs, state, Backend.REFERENCE, cell_mask)
    model, state = model.float(), nested([part.float() for part in flat(state)])
    for true, (theirs, ours) in zip(exact, both_paths(model, inputs.float(), state, cell_mask), strict=True):
        rounding = (theirs - true).abs().max().item()
        assert (ours - true).abs().max().item() <= 1e-4 * true.abs().max().item() + 4 * rounding + 1e-30


@pytest.mark.parametrize("value", [0.0, INITIAL_VALUE])
def test_empty_memory_and_one_hot_weightings(value):
    model = lively_model(memory_units=20, scale=0.3)
    state = model.initial_state(9)._replace(memory=torch.full((9, 20, 5), value, dtype=torch.float64))
    for theirs, ours in both_paths(model, torch.rand(15, 9, 5, dtype=torch.float64), state):
        assert ours.isfinite().all()
        assert_close(theirs, ours, 1e-8)


def test_sharp_weightings_as_after_training():
    model = lively_model(memory_units=24, controller_size=16)
    with torch.no_grad():  # push key strength, sharpening and gate towards sure decisions
        bias, heads, width = model.heads.control_proj.bias, 2, 5
        bias[heads * width : heads * width + heads] += 8
        bias[heads * width + 5 * heads : heads * width + 6 * heads] += 12
    for theirs, ours in both_paths(model, torch.rand(20, 4, 5, dtype=torch.float64), model.initial_state(4)):
        assert_close(theirs, ours, 1e-8)


@given(size=sizes)
def test_there_and_back_at_once_is_the_same_as_a_loss_and_backward(size):
    model, inputs, start, cell_mask = model_and_inputs(size)
    more = start.memory, cell_mask, size["blur_cost"]
    targets = torch.randint(0, 2, (size["steps"], size["batch"], 3)).double()
    mask = (torch.rand(size["steps"], size["batch"]) < 0.7).double()
    mask[0, 0] = 1
    state, outputs, blurs = model.initial_state(size["batch"])._replace(memory=start.memory), [], []
    for t, x in enumerate(inputs):
        logits, state, focus = model.step_with_focus(x, state, None if cell_mask is None else cell_mask[t])
        outputs.append(logits)
        blurs.append(1 - focus.shifted.square().sum(-1))
    logits = torch.stack(outputs)
    loss = cross_entropy(logits, targets, mask) + size["blur_cost"] * torch.stack(blurs).mean()
    loss.backward()
    expected = [loss.detach(), logits.detach(), *(2 * p.grad for p in model.parameters())]
    rounding = 1e-13 * max(x.abs().max().item() for x in expected)  # some gradients are 0 but for rounding
    for model.backend, flattened in ((Backend.REFERENCE, False), (Backend.FUSED, False), (Backend.FUSED, True)):
        model.zero_grad()
        if flattened:
            model.flatten_parameters()
        for _ in range(2):  # gradients add up
            found, logits = model.forward_backward(inputs, targets, mask, *more)
        found = [torch.tensor(found, dtype=torch.float64), logits, *(p.grad for p in model.parameters())]
        assert not any(x.requires_grad for x in found)
        for theirs, ours in zip(expected, found, strict=True):
            assert (theirs - ours).abs().max().item() <= 1e-9 * theirs.abs().max().item() + rounding


def test_what_is_frozen_gets_no_gradient():
    inputs, targets, mask = torch.rand(4, 2, 5).double(), torch.ones(4, 2, 3).double(), torch.ones(4, 2).double()
    for backend in (Backend.REFERENCE, Backend.FUSED):
        model = lively_model(backend=backend)
        model.output_proj.requires_grad_(False)
        model.controller.initial_cell.requires_grad_(False)
        model.forward_backward(inputs, targets, mask)
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {"output_proj.weight", "output_proj.bias", "controller.initial_cell"}


def test_backward_goes_through_the_weights_of_its_forward():
    model, inputs = lively_model(backend=Backend.FUSED), torch.rand(4, 2, 5, dtype=torch.float64)
    expected = gradients(model, inputs)
    flat = model.flatten_parameters()
    loss = model(inputs)[0].square().sum()
    with torch.no_grad():
        flat.mul_(2)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        assert_close(theirs, ours, 1e-12)


def test_fifty_training_steps_agree():
    from experiment.configuration import Recipe, load_configuration
    from experiment.training import Clipper, make_optimizer

    losses = {}
    for backend in (Backend.REFERENCE, Backend.FUSED):
        torch.manual_seed(3)
        recipe = Recipe()
        configuration = load_configuration("m1d2")
        model, task = configuration.make_model(backend), configuration.task
        weights = model.flatten_parameters()
        optimizer, clipper = make_optimizer(recipe, weights, backend is Backend.FUSED), Clipper(recipe)
        source = torch.Generator().manual_seed(3)
        losses[backend] = []
        for step in range(50):
            batch = task.sample(4, (1 + step % 3,), source)
            weights.grad.zero_()
            loss, _ = model.forward_backward(*batch, memory=torch.full((1, 9, 20), INITIAL_VALUE))
            clipper.clip(weights.grad)
            optimizer.step()
            losses[backend].append(loss)
    assert losses[Backend.FUSED][-1] < losses[Backend.FUSED][0]
    torch.testing.assert_close(*(torch.tensor(values) for values in losses.values()), rtol=2e-3, atol=1e-5)


def gradients(model, inputs):
    model.zero_grad()
    model(inputs)[0].square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_no_result_depends_on_the_number_of_threads():
    model, inputs = lively_model(dtype=torch.float32, backend=Backend.FUSED), torch.rand(6, 40, 5)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append([model(inputs)[0].detach(), *gradients(model, inputs)])
            model.zero_grad()
            model.forward_backward(inputs, torch.ones(6, 40, 3), torch.ones(6, 40))
            results[-1] += [parameter.grad.clone() for parameter in model.parameters()]
    finally:
        torch.set_num_threads(threads)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_two_forwards_before_a_backward_and_two_models_at_once():
    models = [lively_model(backend=Backend.FUSED) for _ in range(2)]
    inputs = [torch.rand(t, b, 5, dtype=torch.float64) for t, b in ((6, 3), (6, 3), (9, 11))]
    expected = [gradients(model, x) for model in models for x in inputs]
    runs = [(model, model(x)[0]) for model in models for x in inputs]
    for (model, logits), wanted in zip(runs, expected, strict=True):
        for ours, theirs in zip(torch.autograd.grad(logits.square().sum(), model.parameters()), wanted, strict=True):
            assert torch.equal(ours, theirs)


def test_backward_twice_through_a_kept_graph_gives_the_same():
    model = lively_model(backend=Backend.FUSED)
    loss = model(torch.rand(4, 2, 5, dtype=torch.float64))[0].square().sum()
    first = torch.autograd.grad(loss, model.parameters(), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, model.parameters()), strict=True):
        assert torch.equal(a, b)


def test_a_weight_changed_before_backward_is_noticed():
    model = lively_model(backend=Backend.FUSED)
    loss = model(torch.rand(4, 2, 5, dtype=torch.float64))[0].sum()
    with torch.no_grad():
        model.output_proj.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_calls_from_threads():
    model, inputs = lively_model(backend=Backend.FUSED), torch.rand(6, 20, 5, dtype=torch.float64)

    @torch.no_grad()  # PyTorch 2.13 itself can hang where two threads begin a graph on the same parameter
    def call(_):
        return model(inputs)[0]

    expected = call(0)
    with ThreadPoolExecutor(4) as pool:
        for ours in pool.map(call, range(16)):
            assert torch.equal(ours, expected)


def _in_child(model, inputs, pipe):
    pipe.send(model(inputs)[0].detach().tolist())


def test_after_a_fork():
    model, inputs = lively_model(backend=Backend.FUSED), torch.rand(6, 20, 5, dtype=torch.float64)
    expected = model(inputs)[0].detach()  # starts this process's threads
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(model, inputs, theirs))
    child.start()
    assert ours.poll(60), "the child process hangs"
    assert torch.equal(torch.tensor(ours.recv(), dtype=torch.float64), expected)
    child.join()


def test_without_fork_as_on_windows():
    code = "import os, torch, numba\ndel os.register_at_fork\nfrom experiment import backend\n"
    code += "backend.use_widest_vectors()\nfrom ntm import NTM, Backend\n"
    code += "print(NTM(3, 2, 4, 5, 3, backend=Backend.FUSED)(torch.rand(2, 1, 3))[0].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 1, 2])\n", done.stderr


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("flattened", [False, True])
def test_copies_are_independent(duplicate, flattened):
    model, inputs = lively_model(backend=Backend.FUSED), torch.rand(4, 2, 5, dtype=torch.float64)
    if flattened:
        model.flatten_parameters()
    twin = duplicate(model)
    assert torch.equal(twin(inputs)[0], model(inputs)[0])
    with torch.no_grad():
        twin.output_proj.bias.add_(1)
    torch.testing.assert_close(twin(inputs)[0], model(inputs)[0] + 1)


WITHOUT_MKL = """
import ctypes, torch
found = ctypes.CDLL
def refuse(name, *options, **more):
    if name == torch._C.__file__:
        raise OSError(name)
    return found(name, *options, **more)
ctypes.CDLL = refuse
from experiment.backend import use_widest_vectors
use_widest_vectors()
from ntm import NTM, Backend
from ntm.fused import blas
assert blas.set_blas_threads is blas._limit_all_blas
torch.manual_seed(0)
model = NTM(5, 3, 6, 7, 5)
results = []
for model.backend in (Backend.REFERENCE, Backend.FUSED):
    model.zero_grad()
    model.forward_backward(*(torch.ones(6, 9, *last) for last in ((5,), (3,), ())))
    results.append([parameter.grad for parameter in model.parameters()])
for theirs, ours in zip(*results, strict=True):
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.slow
def test_with_scipys_blas_where_pytorch_has_no_mkl():
    done = subprocess.run([sys.executable, "-c", WITHOUT_MKL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FIVE_STEPS = """
import hashlib, torch
from experiment.backend import use_widest_vectors
use_widest_vectors()
from ntm import NTM, Backend
torch.manual_seed(0)
model = NTM(10, 8, 100, 128, 20, backend=Backend.FUSED)
flat = model.flatten_parameters()
for _ in range(5):
    batch = torch.rand(22, 16, 10), torch.rand(22, 16, 8).round(), torch.ones(22, 16)
    model.forward_backward(*batch, torch.randn(16, 128, 20), torch.rand(22, 16, 100) < 0.9, 0.1)
    with torch.no_grad():
        flat.sub_(flat.grad)
answer = model(torch.rand(22, 16, 10))[0]
answer.square().sum().backward()
assert flat.isfinite().all()
print(*(hashlib.sha256(x.detach().numpy()).hexdigest() for x in (flat, flat.grad, answer)))
"""


@pytest.mark.slow
def test_freshly_compiled_code_rounds_as_code_from_the_cache(tmp_path):
    command, environment = [sys.executable, "-c", FIVE_STEPS], {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    fresh, cached = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert fresh == cached
    assert len(fresh.split()) == 3


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("rows", [None, 1, 17])
@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_without_gradients_nothing_is_kept_and_the_answers_are_the_same(controller, rows, flattened):
    model, inputs = lively_model(2, backend=Backend.FUSED, controller=controller), torch.rand(50, 3, 5).double()
    if flattened:
        model.flatten_parameters()
    with torch.no_grad():
        logits, state = model(inputs, memory_units=rows)
    kept, kept_state = model(inputs, memory_units=rows)
    assert kept.requires_grad
    assert not any(part.requires_grad for part in (logits, *flat(state)))
    assert torch.equal(logits, kept)
    for part, kept_part in zip(flat(state), flat(kept_state), strict=True):
        assert torch.equal(part, kept_part)


def test_extreme_parameters_stay_finite():
    for backend in (Backend.REFERENCE, Backend.FUSED):
        model = lively_model(dtype=torch.float32, memory_units=20, scale=30.0, backend=backend)
        inputs = torch.rand(10, 3, 5)
        for out in (model(inputs)[0], *flat(model(inputs)[1]), *gradients(model, inputs)):
            assert out.isfinite().all()


def test_not_a_number_in_gives_not_a_number_out():
    model, inputs = lively_model(dtype=torch.float32, backend=Backend.FUSED), torch.rand(4, 2, 5)
    inputs[1, 0, 0] = float("nan")
    logits, _ = model(inputs)
    assert logits[1:, 0].isnan().all()
    assert logits[:, 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weighting_below_0_has_no_logarithm_on_either_path(dtype):
    model = lively_model(dtype=dtype)
    state = model.initial_state(2)
    weighting = state.weighting.clone()
    weighting[0] -= 0.3
    for model.backend in (Backend.REFERENCE, Backend.FUSED):
        logits, _ = model(torch.rand(4, 2, 5).to(dtype), state._replace(weighting=weighting))
        assert logits[:, 0].isnan().all()
        assert logits[:, 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_in_a_control_is_nowhere_lost(dtype):
    """Each control of a read and of a write head in turn: on both paths the same answers are numbers."""
    model, inputs = lively_model(dtype=dtype), torch.rand(4, 2, 5).to(dtype)
    bias, finite = model.heads.control_proj.bias, {}
    for i in range(len(bias)):
        for value in (float("nan"), float("inf"), -float("inf")):
            kept = bias[i].item()
            for model.backend in (Backend.REFERENCE, Backend.FUSED):
                with torch.no_grad():
                    bias[i] = value
                    logits = model(inputs)[0]
                loss, _ = model.forward_backward(inputs, torch.ones(4, 2, 3).to(dtype), torch.ones(4, 2).to(dtype))
                finite[model.backend] = [*logits.isfinite().flatten().tolist(), math.isfinite(loss)]
            assert finite[Backend.FUSED] == finite[Backend.REFERENCE], (i, value)
            with torch.no_grad():
                bias[i] = kept


def test_each_part_of_a_state_may_be_one_for_all():
    model, inputs = lively_model(), torch.rand(4, 11, 5, dtype=torch.float64)
    whole = lively_state(model, 11)
    for i, part in enumerate(flat(whole)):
        parts = flat(whole)
        parts[i] = part[:1]
        state = nested(parts)
        parts[i] = part[:1].expand_as(part)
        expanded = nested(parts)
        theirs = outputs_and_gradients(model, inputs, expanded, Backend.REFERENCE)
        unroll = partial(fused.unroll, model.packed_parameters(), None)
        ours = outputs_and_gradients(model, inputs, state, Backend.FUSED, unroll=unroll)
        for their, our in zip(theirs, ours, strict=True):
            assert_close(their.sum(0) if our.shape[0] == 1 < their.shape[0] else their, our, 1e-9)


def test_an_empty_batch():
    model = lively_model(dtype=torch.float32)
    for model.backend in (Backend.REFERENCE, Backend.FUSED):
        logits, end = model(torch.rand(4, 0, 5))
        assert logits.shape == (4, 0, 3)
        assert len(end.memory) == 0


def test_wrong_shapes_are_refused():
    model = lively_model(dtype=torch.float32, backend=Backend.FUSED)
    inputs, state = torch.rand(4, 2, 5), model.initial_state(2)
    with pytest.raises(ValueError, match=r"takes \(T, B, 5\)"):
        model(inputs[..., :4])
    lstm, short = state.controller, state.controller._replace(cell=state.controller.cell[:, 1:])
    for change in ({"controller": short}, {"weighting": state.weighting[..., 1:]}, {"reads": state.reads[:, :0]}):
        with pytest.raises(ValueError, match="shapes"):
            model(inputs, state._replace(**change))
    for wrong in (model.initial_state(3), state._replace(controller=lstm._replace(cell=lstm.cell[:0]))):
        with pytest.raises(ValueError, match="shapes"):
            model(inputs, wrong)
    with pytest.raises(ValueError, match="cell_mask"):
        model(inputs, cell_mask=torch.ones(3, 2, 6, dtype=torch.bool))
    with pytest.raises(TypeError, match="cell_mask"):
        model(inputs, cell_mask=torch.ones(4, 2, 6))
    with pytest.raises(ValueError, match="at least one step"):
        model(inputs[:0])


def test_targets_and_mask_that_do_not_fit_are_refused():
    model = lively_model(dtype=torch.float32, backend=Backend.FUSED)
    inputs, targets, mask = torch.rand(4, 2, 5), torch.ones(4, 2, 3), torch.ones(4, 2)
    for bad in ((targets[1:], mask), (targets[..., :1], mask), (targets, mask[:, :1])):
        with pytest.raises(ValueError, match=r"targets|mask"):
            model.forward_backward(inputs, *bad)
    for bad in ((targets.double(), mask), (targets, mask.double())):
        with pytest.raises(TypeError, match="targets and mask in float32"):
            model.forward_backward(inputs, *bad)
    with pytest.raises(ValueError, match="no step counts"):
        model.forward_backward(inputs, targets, 0 * mask)
    with pytest.raises(ValueError, match="no step counts"):
        model.forward_backward(inputs[:, :0], targets[:, :0], mask[:, :0])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mixed_types_are_refused():
    model = lively_model(dtype=torch.float32, backend=Backend.FUSED)
    with pytest.raises(TypeError, match="float32"):
        model(torch.rand(4, 2, 5, dtype=torch.float64))


def test_a_gradient_that_forward_backward_does_not_give_is_refused():
    model = lively_model(dtype=torch.float32, backend=Backend.FUSED)
    batch = torch.rand(4, 2, 5), torch.ones(4, 2, 3), torch.ones(4, 2)
    memory = torch.rand(2, 7, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="gives inputs and memory no gradient"):
        model.forward_backward(*batch, memory)
    with pytest.raises(RuntimeError, match="gives inputs and memory no gradient"):
        model.forward_backward(batch[0].requires_grad_(), *batch[1:])


def test_autocast_takes_the_reference_path():
    model = lively_model(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast is on" in model.why_not_fused()
        assert model(torch.rand(4, 2, 5))[0].dtype == torch.bfloat16
    assert model.why_not_fused() is None


def all_gradients(model, inputs, state, loss, backend):
    """Of the loss: that of each parameter, and of each part of the state, or None."""
    model.backend = backend
    parts = [part.detach().clone().requires_grad_() for part in flat(state)]
    logits, end = model(inputs, nested(parts))
    wanted = [*model.parameters(), *parts]
    return torch.autograd.grad(loss(logits, end).square().sum(), wanted, allow_unused=True)


LOSSES = {
    "logits": lambda logits, end: logits,
    "memory": lambda logits, end: end.memory,
    "weighting": lambda logits, end: end.weighting,
    "reads": lambda logits, end: end.reads,
    "hidden": lambda logits, end: end.controller.hidden,
    "cell": lambda logits, end: end.controller.cell,
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_has_no_gradient_on_the_reference_path_has_none(loss, steps):
    """Else weight decay and momentum would move what a loss does not depend on."""
    model = lively_model()
    inputs, state = torch.rand(steps, 11, 5).double(), lively_state(model, 11)
    found = [all_gradients(model, inputs, state, LOSSES[loss], path) for path in PATHS]
    for their, our in zip(*found, strict=True):
        assert (their is None) == (our is None)
        if our is not None:
            assert_close(their, our, 1e-9)


def test_a_cell_mask_that_changes_between_the_ways_does_no_harm():
    model, inputs, mask = lively_model(backend=Backend.FUSED), torch.rand(4, 2, 5).double(), torch.rand(4, 2, 6) < 0.5
    answer, found = model(inputs, cell_mask=mask)[0].sum(), []
    for change in (lambda: None, mask.logical_not_):
        change()
        found.append(torch.autograd.grad(answer, list(model.parameters()), retain_graph=True))
    for before, after in zip(*found, strict=True):
        assert torch.equal(before, after)


def test_batched_gradients_are_refused_in_words():
    model, inputs = lively_model(backend=Backend.FUSED), torch.rand(4, 2, 5).double()
    with pytest.raises(RuntimeError, match="no batched gradients"):
        torch.autograd.functional.jacobian(lambda x: model(x)[0][-1], inputs, vectorize=True)


def test_a_parameter_of_another_type_is_an_error_and_no_number_is_rounded():
    model = NTM(5, 3, 6, 7, 5, backend=Backend.FUSED)
    model.output_proj.double()
    for call in (lambda x: model(x), lambda x: model.forward_backward(x, torch.zeros(2, 1, 3), torch.ones(2, 1))):
        with pytest.raises(TypeError, match="in float64, as the weights are"):
            call(torch.zeros(2, 1, 5))
