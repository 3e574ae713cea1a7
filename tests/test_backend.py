"""Both backend.py, and experiment/machine_check.py: the fused path takes the stock machine alone, and says why."""

import copy
import dataclasses
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, lively_model
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode

from experiment.backend import choose_device, start_backend
from experiment.checkpoint import makes_again, save
from experiment.configuration import load_configuration
from experiment.errors import InputError
from experiment.machine_check import answers_alike, check_forgets, check_remade
from ntm import NTM, Backend, BackendError, LSTMBaseline, NTMState, addressing
from ntm import ntm as machine
from ntm.backend import Contents
from ntm.controller import CONTROLLERS, FeedForwardController, LSTMController, LSTMState
from ntm.heads import Controls, Heads
from ntm.loss import cross_entropy
from ntm.memory import INITIAL_VALUE


class OwnStep(NTM):
    def step_with_focus(self, x, state, cell_mask=None):
        logits, state, focus = super().step_with_focus(x, state, cell_mask)
        return 2 * logits, state, focus


class OwnStart(NTM):
    def initial_state(self, batch_size, memory_units=None):
        state = super().initial_state(batch_size, memory_units)
        return state._replace(reads=state.reads + 1)


class Counter(nn.Module):
    """A controller of one's own: it knows nothing of masks, and its state is a number."""

    def __init__(self, input_size, output_size):
        super().__init__()
        self.output_size = output_size
        self.proj = nn.Linear(input_size + 1, output_size)

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, 1, dtype=torch.float64)

    def forward(self, x, state):
        return torch.tanh(self.proj(torch.cat((x, state), -1))), state + 1


class OwnController(LSTMController):
    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return 2 * output, state


class OwnHeads(Heads):
    def controls(self, hidden):
        controls = super().controls(hidden)
        return controls._replace(interpolation_gate=0 * controls.interpolation_gate)


class OwnCall(LSTMController):
    def __call__(self, *arguments):
        output, state = super().__call__(*arguments)
        return output / 2, state


class OwnAttributes(LSTMController):
    def __getattr__(self, name):
        value = super().__getattr__(name)
        return value / 2 if name == "initial_hidden" else value


class OwnMap(LSTMController):
    @property
    def gate_proj(self):
        twin = copy.deepcopy(self._modules["gate_proj"])
        twin.weight.data *= 2
        return twin

    @gate_proj.setter
    def gate_proj(self, module):
        self.register_module("gate_proj", module)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def put(model, name, value):
    setattr(model, name, value.double() if isinstance(value, nn.Module) else value)


def five_shifts(model):
    model.heads.control_proj = nn.Linear(6, model.heads.control_proj.out_features + 4).double()


def buffer_for_parameter(module, name):
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)


CHANGES = {
    "a parameter put in": (
        lambda m: put(m, "temperature", nn.Parameter(torch.ones(16).double())),
        "a parameter of its own, temperature",
    ),
    "a layer put in": (lambda m: put(m, "norm", nn.LayerNorm(3)), "a parameter of its own, norm.weight"),
    "a parameter within the controller": (
        lambda m: put(m.controller, "extra", nn.Linear(2, 2)),
        "a parameter of its own, controller.extra.weight",
    ),
    "a cell that is not learned": (
        lambda m: buffer_for_parameter(m.controller, "initial_cell"),
        "no parameter controller.initial_cell of shape (6,)",
    ),
    "reads that are not learned": (lambda m: buffer_for_parameter(m, "initial_reads"), "no parameter initial_reads"),
    "a map without a bias": (
        lambda m: put(m, "output_proj", nn.Linear(11, 3, bias=False)),
        "no parameter output_proj.bias of shape (3,)",
    ),
    "a parametrised start": (
        lambda m: parametrize.register_parametrization(m.controller, "initial_hidden", Doubled()),
        "no parameter controller.initial_hidden",
    ),
    "a hook on a gradient": (
        lambda m: m.output_proj.weight.register_hook(torch.zeros_like),
        "hooks on the gradient of output_proj.weight",
    ),
    "a controller of one's own": (lambda m: put(m, "controller", Counter(10, 6)), "controller is a Counter"),
    "a controller's own step": (
        lambda m: put(m, "controller", OwnController(10, 6)),
        "controller has its own forward",
    ),
    "a controller's own call": (
        lambda m: setattr(m.controller, "__class__", OwnCall),
        "controller has its own __call__",
    ),
    "a controller's own attributes": (
        lambda m: setattr(m.controller, "__class__", OwnAttributes),
        "controller has its own __getattr__",
    ),
    "a map that is a property": (
        lambda m: put(m, "controller", OwnMap(10, 6)),
        "controller has its own gate_proj",
    ),
    "heads of one's own": (lambda m: put(m, "heads", OwnHeads(6, 5, 1, 1)), "heads has its own controls"),
    "a step put in": (lambda m: put(m, "step", lambda *a: NTM.step(m, *a)), "NTM has its own step"),
    "a hook": (lambda m: m.heads.register_forward_hook(lambda *a: None), "heads has hooks on itself"),
    "a hook before": (
        lambda m: m.controller.register_forward_pre_hook(lambda *a: None),
        "controller has hooks on itself",
    ),
    "pruning": (lambda m: prune.l1_unstructured(m.controller.gate_proj, "weight", 0.5), "hooks on gate_proj"),
    "a parametrised map": (
        lambda m: parametrize.register_parametrization(m.output_proj, "weight", Doubled()),
        "its own output_proj, a ParametrizedLinear",
    ),
    "another map": (
        lambda m: put(m, "output_proj", nn.Sequential(nn.Linear(11, 4), nn.Linear(4, 3))),
        "its own output_proj, a Sequential",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_machine_that_is_not_stock_runs_on_the_reference_path_and_says_why(change):
    model, (make, why) = lively_model(), CHANGES[change]
    make(model)
    assert why in model.why_not_fused()
    inputs, targets, mask = torch.rand(4, 2, 5).double(), torch.ones(4, 2, 3).double(), torch.ones(4, 2).double()
    found = []
    for model.backend in (Backend.REFERENCE, Backend.AUTO):
        model.zero_grad()
        loss, logits = model.forward_backward(inputs, targets, mask)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append((torch.tensor(loss), logits, model(inputs)[0], *gradients))
    for theirs, ours in zip(*found, strict=True):
        assert torch.equal(theirs, ours)
    model.backend = Backend.FUSED
    for call in (lambda: model(inputs), lambda: model.forward_backward(inputs, targets, mask)):
        with pytest.raises(BackendError, match="stock machine"):
            call()


def new_with(kind, **changes):
    """What makes tuples of a kind, some of their parts changed."""
    kept = kind.__new__

    def new(cls, *given, **named):
        made = kept(cls, *given, **named)
        return made._replace(**{name: change(getattr(made, name)) for name, change in changes.items()})

    return new


REPLACEMENTS = {
    "ntm.addressing.sharpen": lambda weighting, sharpening: weighting,
    "ntm.heads.address": lambda memory, previous, *controls: (previous, previous),
    "ntm.ntm.write": lambda memory, *controls: memory,
    "ntm.heads.Heads.bias_gates": lambda self, bias: None,
    "ntm.controller.LSTMController.forward": lambda self, x, state, cell_mask=None: (state.hidden, state),
    "ntm.state.NTMState.__new__": new_with(NTMState, reads=lambda reads: reads / 2),
    "ntm.controller.LSTMState.__new__": new_with(LSTMState, cell=lambda cell: cell / 2),
    "ntm.heads.Controls.__new__": new_with(Controls, erase=lambda erase: erase / 2),
    "ntm.ntm.NTM.unroll": lambda self, inputs, *rest: (inputs[..., :3], None),
}


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_function_of_the_package_that_was_replaced_is_not_passed_over(name, monkeypatch):
    model, inputs = lively_model(), torch.rand(4, 2, 5).double()
    before = model(inputs)[0]
    monkeypatch.setattr(name, REPLACEMENTS[name])
    owner, _, function = name.rpartition(".")
    assert f"{owner.rpartition('.')[2]}.{function} was replaced" in model.why_not_fused()
    after = model(inputs)[0]
    model.backend = Backend.REFERENCE
    assert torch.equal(after, model(inputs)[0])
    assert "bias_gates" in name or not torch.allclose(after, before)
    monkeypatch.undo()
    assert model.why_not_fused() is None


@pytest.mark.parametrize(
    "name",
    [
        *("Linear.forward", "Linear.__call__", "Module.__call__", "functional.linear", "functional.softplus"),
        *("functional.binary_cross_entropy_with_logits", "functional.normalize", "Module.__getattribute__"),
    ],
)
def test_what_was_replaced_in_pytorch_is_not_passed_over(name, monkeypatch):
    model, (owner, _, function) = lively_model(), name.partition(".")
    owner = getattr(nn, owner)
    kept = getattr(owner, function)
    used = function != "normalize"  # which the machine does not call
    monkeypatch.setattr(owner, function, lambda *given, **named: kept(*given, **named))
    assert (f"{function} was replaced" in (model.why_not_fused() or "")) == used
    monkeypatch.undo()
    assert model.why_not_fused() is None


@pytest.mark.parametrize(
    "name", ["softmax", "sigmoid", "tanh", "cat", "stack", "__matmul__", "__rsub__", "__getitem__"]
)
def test_an_operation_that_was_replaced_is_not_passed_over(name, monkeypatch):
    model, owners = lively_model(), [owner for owner in (torch, torch.Tensor) if hasattr(owner, name)]
    for owner in owners:
        kept = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, kept=kept, **named: kept(*given, **named))
    assert f"{name} was replaced" in model.why_not_fused()


def test_a_name_of_python_that_a_module_gets_anew_is_not_passed_over(monkeypatch):
    model, inputs = lively_model(), torch.rand(4, 2, 5).double()
    monkeypatch.setattr(addressing, "sum", lambda terms: 2 * sum(terms), raising=False)
    assert "ntm.addressing.sum was put in the place of Python's own" in model.why_not_fused()
    answer = model(inputs)[0]
    model.backend = Backend.REFERENCE
    assert torch.equal(answer, model(inputs)[0])
    monkeypatch.undo()
    assert model.why_not_fused() is None


@pytest.mark.parametrize(
    "name", ["torch.softmax", "torch.nn.functional.linear", "torch.nn.Linear.forward", "torch.Tensor.__matmul__"]
)
def test_what_was_replaced_in_pytorch_before_the_package_was_imported_is_not_passed_over(name):
    program = f"""
import functools, torch
kept = {name}
{name} = functools.wraps(kept)(lambda *given, **named: 2 * kept(*given, **named))
from ntm import NTM
print(NTM(1, 1, 1, 1, 1).why_not_fused())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert f"{name.rpartition('.')[2]} was replaced before ntm was imported" in done.stdout, done.stderr


def test_a_function_whose_code_was_replaced_is_not_passed_over(monkeypatch):
    """As jurigged and IPython's autoreload do."""
    model, inputs = lively_model(), torch.rand(4, 2, 5).double()
    monkeypatch.setattr(addressing.sharpen, "__code__", (lambda weighting, sharpening: weighting).__code__)
    assert model.why_not_fused().endswith("the code of ntm.addressing.sharpen was replaced")
    answer = model(inputs)[0]
    model.backend = Backend.REFERENCE
    assert torch.equal(answer, model(inputs)[0])


class Rounded(torch.Tensor):
    """Its elements are rounded before an operation sees them, as a quantised weight's are."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("detach", "requires_grad_"):
            return super().__torch_function__(function, types, args, kwargs)
        args = [arg.as_subclass(torch.Tensor).round() if isinstance(arg, cls) else arg for arg in args]
        return function(*args, **(kwargs or {}))


class Doubling(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 2 * result if function is nn.functional.linear else result


def test_tensors_and_modes_that_change_operations_are_declined():
    model, inputs = lively_model(), torch.rand(4, 2, 5).double()
    state = model.initial_state(2)
    rounded = state._replace(memory=state.memory.detach().as_subclass(Rounded))
    for call in (lambda: model(inputs.as_subclass(Rounded))[0], lambda: model(inputs, rounded)[0]):
        model.backend = Backend.AUTO
        answer = call()
        model.backend = Backend.REFERENCE
        assert torch.equal(answer, call())
        model.backend = Backend.FUSED
        with pytest.raises(BackendError, match="a class with operations of its own"):
            call()
    model.backend = Backend.AUTO
    with Doubling():
        assert "there is a Doubling" in model.why_not_fused()
    with torch.device("cpu"):
        assert model.why_not_fused() is None
    weight = model.output_proj.weight
    model.output_proj.weight = nn.Parameter(weight.detach().as_subclass(Rounded), requires_grad=False)
    assert "has a Rounded for output_proj.weight" in model.why_not_fused()


def test_a_function_that_was_replaced_where_it_is_not_called_is_said_to_be_called_as_it_was(monkeypatch):
    monkeypatch.setattr("ntm.memory.write", lambda memory, *controls: memory)
    said = "ntm.memory.write was replaced, but not in ntm.ntm, which imported it, and calls it as it was"
    assert said in lively_model().why_not_fused()


def made_again(model, name):
    """Register a map's weight once more, behind its bias, as `prune.remove` does."""
    linear = model.get_submodule(name)
    prune.l1_unstructured(linear, "weight", amount=0.0)
    prune.remove(linear, "weight")
    assert list(linear._parameters) == ["bias", "weight"]


@pytest.mark.parametrize("name", ["output_proj", "heads.control_proj", "controller.gate_proj"])
@pytest.mark.parametrize("flat", [False, True])
def test_the_order_in_which_parameters_were_made_does_not_matter(name, flat):
    model, inputs = lively_model(backend=Backend.FUSED), torch.rand(4, 2, 5).double()
    made_again(model, name)
    model.heads = model._modules.pop("heads")  # behind output_proj
    model.output_proj.bias = nn.Parameter(model.output_proj.bias.detach().clone())
    if flat:
        model.flatten_parameters()
    targets, mask = torch.ones(4, 2, 3).double(), torch.ones(4, 2).double()
    found = []
    for model.backend in ("reference", "fused"):
        model.zero_grad()
        loss, logits = model.forward_backward(inputs, targets, mask)
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        found.append((torch.tensor(loss), logits, model(inputs)[0].detach(), *gradients))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, check_dtype=False)


def test_hooks_on_all_modules_are_declined():
    model = lively_model()
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert "hooks on the calls of all modules" in model.why_not_fused()
    finally:
        handle.remove()
    assert model.why_not_fused() is None


def test_a_backend_by_its_name():
    assert not lively_model(backend="reference").use_fused()
    model = lively_model(backend="fused")
    assert model.use_fused()
    model.backend = "reference"
    assert not model.use_fused()
    with pytest.raises(ValueError, match="rubbish"):
        lively_model(backend="rubbish")


def test_a_frozen_parameter_is_no_part_of_flat_ones():
    model = lively_model()
    model.initial_reads.requires_grad_(False)
    with pytest.raises(ValueError, match="initial_reads is frozen"):
        model.flatten_parameters()
    with pytest.raises(InputError, match=r"initial_reads is frozen, and train\.py trains all parameters"):
        start_backend(model, training=True)


@pytest.mark.parametrize(("kind", "why"), [(OwnStep, "step_with_focus"), (OwnStart, "initial_state")])
def test_a_subclass_that_overrides_a_method_is_declined(kind, why):
    assert f"NTM has its own {why}" in kind(5, 3, 6, 7, 5).why_not_fused()


def test_a_subclass_that_overrides_nothing_runs_on_the_fused_path():
    class Named(NTM):
        def describe(self):
            return "mine"

    assert Named(5, 3, 6, 7, 5).why_not_fused() is None


@pytest.mark.parametrize(
    "heads", [Heads(6, 5, num_read=2, num_write=1), Heads(6, 5, num_read=1, num_write=2)], ids=["2 1", "1 2"]
)
def test_a_read_head_without_a_write_head_is_declined(heads):
    model = lively_model()
    model.heads = heads.double()
    assert "no parameter heads.control_proj.weight of shape" in model.why_not_fused()


def test_more_shifts_than_three_are_declined():
    model = lively_model()
    five_shifts(model)
    assert "no parameter heads.control_proj.weight of shape" in model.why_not_fused()


def limited(**limits):
    """Edit the heads' controls: hold some within limits."""

    def edit(old):
        def controls(self, hidden):
            c = old(self, hidden)
            return c._replace(**{name: getattr(c, name).clamp(*limit) for name, limit in limits.items()})

        return controls

    return edit


def blank_rows_alike(old):
    return lambda key, memory: torch.where(memory.abs().amax(-1).unsqueeze(1) < 1e-5, 0.5, old(key, memory))


EDITS = {  # of equations, as if ntm/fused/ were said to have them, too: where they stand, and the edit
    "sharpening limited": (Heads, "controls", limited(sharpening=(1, 2))),
    "what is added limited": (Heads, "controls", limited(add=(-1, 1))),
    "memory limited": (machine, "write", lambda old: lambda *a: old(*a).clamp(-5, 5)),
    "blank rows": (addressing, "cosine_similarity", blank_rows_alike),
    "a shift the other way": (addressing, "shift", lambda old: lambda w, s: old(w, s.flip(-1))),
}


COMPARED = pytest.mark.parametrize(("controller", "training"), [("lstm", True), ("lstm", False), ("feedforward", True)])


@COMPARED
def test_equations_that_nobody_edited_agree(controller, training):
    assert "fused path" in start_backend(NTM(5, 3, 20, 16, 8, 2, controller=controller), training)


def test_where_nothing_was_replaced_nothing_is_compared_one_by_one(monkeypatch):
    assert machine.STOCK.changed() is None
    monkeypatch.setattr("ntm.backend.is_other", None)  # which would take longer than a step's start
    assert machine.STOCK.changed() is None


def test_after_a_harmless_name_was_added_nothing_is_compared_one_by_one(monkeypatch):
    monkeypatch.setattr(Heads, "a_note_of_mine", "is no method", raising=False)
    assert machine.STOCK.changed() is None
    monkeypatch.setattr("ntm.backend.is_other", None)
    assert machine.STOCK.changed() is None


def edit_file(monkeypatch, where, name, change):
    """Change what a module or class holds as if it had stood so in its file when ntm/fused/stock.json was written."""
    monkeypatch.setattr(where, name, change(getattr(where, name)))
    monkeypatch.setattr(machine, "STOCK", Contents())


@COMPARED
@pytest.mark.parametrize("edit", EDITS)
def test_paths_that_do_not_agree_are_noticed(edit, controller, training, monkeypatch):
    model = NTM(5, 3, 20, 16, 8, 2, controller=controller)
    edit_file(monkeypatch, *EDITS[edit])
    with pytest.raises(InputError, match="no longer agree"):
        start_backend(model, training)


def test_a_loss_and_answers_of_the_fused_path_are_compared_before_training(monkeypatch):
    from ntm import fused

    model, both, forward = NTM(5, 3, 20, 16, 8, 2), fused.forward_backward, fused.unroll

    def twice(*arguments):
        loss, logits = both(*arguments)
        return 2 * loss, logits

    def negative(*arguments):
        logits, state = forward(*arguments)
        return -logits, state

    for name, edited, said in ("forward_backward", twice, "another loss"), ("unroll", negative, "other answers"):
        with monkeypatch.context() as patch:
            patch.setattr(fused, name, edited)
            with pytest.raises(InputError, match=said):
                start_backend(model, training=True)
    start_backend(model, training=True)


def test_an_edit_of_the_loss_where_no_step_counts_is_noticed(monkeypatch):
    def edited(logits, targets, mask, *counted):
        return cross_entropy(logits, targets, 0.9 * mask + 0.1, *counted)

    monkeypatch.setattr(machine, "cross_entropy", edited)
    monkeypatch.setattr(machine, "STOCK", Contents())
    with pytest.raises(InputError, match="no longer agree"):
        start_backend(NTM(5, 3, 20, 16, 8, 2), training=True)


@pytest.mark.parametrize(("side", "backend"), [("inputs", "auto"), ("answers", "reference")])
def test_a_forward_edited_in_its_file_is_not_trained_without_it(side, backend, monkeypatch):
    def change(forward):
        def edited(self, inputs, *rest, **named):
            logits, state = forward(self, 2 * inputs - 1 if side == "inputs" else inputs, *rest, **named)
            return (1.1 * logits if side == "answers" else logits), state

        return edited

    model = NTM(5, 3, 20, 16, 8, 2, backend=backend)
    start_backend(model, training=True)
    edit_file(monkeypatch, NTM, "forward", change)
    start_backend(model)
    with pytest.raises(InputError, match="step_with_focus"):
        start_backend(model, training=True)


def test_a_machine_that_has_no_blur_and_no_cell_mask_can_be_trained():
    class Plain(LSTMController):
        def forward(self, x, state):
            return super().forward(x, state)

    class Own(NTM):
        def step_with_focus(self, x, state, cell_mask=None):
            return *super().step_with_focus(x, state, cell_mask)[:2], None

    model = Own(5, 3, 20, 16, 8, 2)
    model.controller = Plain(5 + 16, 20)
    assert "reference path" in start_backend(model, training=True)


def from_numpy(x):
    return torch.from_numpy(np.random.randn(*x.shape)).to(x)


@pytest.mark.parametrize("draw", [torch.randn_like, from_numpy])
def test_looking_at_a_model_that_draws_changes_nothing_of_what_its_run_draws(draw, monkeypatch):
    def change(step):
        return lambda self, x, *rest: step(self, x + 1e-3 * draw(x) * self.training, *rest)

    edit_file(monkeypatch, NTM, "step_with_focus", change)
    model = NTM(5, 3, 20, 16, 8, 2, backend="reference")
    before = torch.get_rng_state()
    if draw is from_numpy:  # which no run could repeat
        with pytest.raises(InputError, match="draws from elsewhere than torch's own generators"):
            start_backend(model, training=True)
    else:
        assert "reference path" in start_backend(model, training=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_nan_on_one_path_is_a_difference(monkeypatch):
    def change(forward):
        return lambda self, *arguments: forward(self, *arguments)._replace(weighting=arguments[2] * math.nan)

    edit_file(monkeypatch, Heads, "forward", change)
    with pytest.raises(InputError, match="small batch"):
        start_backend(NTM(5, 3, 20, 16, 8, 2))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_edited_step_that_nothing_takes_is_refused(backend, monkeypatch):
    def change(step):
        def edited(*arguments):
            logits, state = step(*arguments)
            return 2 * logits + 1, state

        return edited

    model = NTM(5, 3, 20, 16, 8, 2, backend=backend)
    edit_file(monkeypatch, NTM, "step", change)
    for training in (False, True):
        with pytest.raises(InputError, match=r"NTM\.step does more than NTM\.step_with_focus"):
            start_backend(model, training)


def test_a_machine_that_begins_on_another_memory_than_training_is_refused():
    class Own(NTM):
        def initial_state(self, batch_size, memory_units=None):
            state = super().initial_state(batch_size, memory_units)
            return state._replace(memory=state.memory + 0.5)

    model = Own(5, 3, 20, 16, 8, 2)
    assert "reference path" in start_backend(model)
    with pytest.raises(InputError, match=r"training begins on the memory of ntm\.memory\.initial_memory"):
        start_backend(model, training=True)


def test_a_parameter_that_training_would_not_move_is_refused():
    class Learned(NTM):  # begins where training does, so that only its parameter tells of it
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.blank = torch.nn.Parameter(torch.full((8,), INITIAL_VALUE))

        def initial_state(self, batch_size, memory_units=None):
            state = super().initial_state(batch_size, memory_units)
            return state._replace(memory=self.blank.expand_as(state.memory))

    assert "reference path" in start_backend(Learned(5, 3, 20, 16, 8, 2))
    with pytest.raises(InputError, match=r"training begins on the memory of ntm\.memory\.initial_memory"):
        start_backend(Learned(5, 3, 20, 16, 8, 2), training=True)
    model = NTM(5, 3, 20, 16, 8, 2)
    model.register_parameter("temperature", torch.nn.Parameter(torch.ones(())))
    with pytest.raises(InputError, match="temperature gets no gradient"):
        start_backend(model, training=True)


def test_a_controller_that_is_not_whole_is_one_line(monkeypatch):
    class WithoutSize(LSTMController):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            del self.output_size

    class Lazy(LSTMController):
        def __init__(self, input_size, controller_size):
            super().__init__(input_size, controller_size)
            self.gate_proj = nn.LazyLinear(4 * controller_size)

    class Wide(LSTMController):
        def __init__(self, input_size, controller_size):
            super().__init__(input_size, 2 * controller_size)

    for kind, said in (
        (WithoutSize, "the controller 'lstm' has no output_size, the width of its output"),
        (Lazy, r"controller\.gate_proj\.weight has no size before a call"),
    ):
        monkeypatch.setitem(CONTROLLERS, "lstm", kind)
        with pytest.raises(InputError, match=f"m1d1: {said}"):
            load_configuration("m1d1").make_model()
    monkeypatch.setitem(CONTROLLERS, "lstm", Wide)  # whose output is wider than there are cells
    assert load_configuration("m1d1").make_model()(torch.rand(3, 2, 10))[0].shape == (3, 2, 8)


def hook(part):
    return lambda model: model.get_submodule(part).register_forward_hook(lambda module, inputs, output: -output)


DONE_TO_IT = {  # what no file keeps
    "a hook": hook("output_proj"),
    "a hook on the controller": lambda model: model.controller.register_forward_hook(lambda m, i, o: (-o[0], o[1])),
    "pruning": lambda model: prune.l1_unstructured(model.heads.control_proj, "weight", 0.5),
    "a parametrization": lambda model: nn.utils.parametrizations.spectral_norm(model.output_proj),
    "another part": lambda model: setattr(model, "output_proj", nn.Sequential(model.output_proj)),
    "another type": lambda model: model.double(),
    "one more weight": lambda model: model.register_parameter("more", nn.Parameter(torch.zeros(1))),
    "another controller": lambda model: setattr(model, "controller", FeedForwardController(28, 100)),
}


def test_what_is_done_to_an_lstm_alone_is_in_no_file_either():
    configuration = load_configuration("copy_lstm")
    model = configuration.make_model()
    check_remade(model, configuration)
    hook("output_proj")(model)
    with pytest.raises(InputError, match="another than its configuration and weights make"):
        check_remade(model, configuration)


@pytest.mark.parametrize("done", DONE_TO_IT)
def test_a_model_that_its_file_would_not_make_again_is_refused(done):
    configuration = load_configuration("m1d1")
    model = configuration.make_model()
    check_remade(model, configuration)
    DONE_TO_IT[done](model)
    with pytest.raises(InputError, match="another than its configuration and weights make"):
        check_remade(model, configuration)


def test_a_hook_that_only_looks_other_weights_and_noise_in_training_are_kept():
    configuration = load_configuration("m1d1")
    model = configuration.make_model()
    model.output_proj.register_forward_hook(lambda module, inputs, output: None)
    model.output_proj.register_forward_pre_hook(lambda m, x: (x[0] + torch.randn_like(x[0]),) if m.training else None)
    nn.init.zeros_(model.output_proj.bias)
    check_remade(model, configuration)
    same = load_configuration("m1d1").make_model()
    same.load_state_dict(model.state_dict())
    assert answers_alike(model, same)
    hook("output_proj")(model)
    assert not answers_alike(model, same)


class OfItsOwnGenerator(LSTMController):
    source = torch.Generator()

    def forward(self, x, state):
        return super().forward(x + torch.randn(x.shape, generator=self.source), state)


class OfNaN(LSTMController):
    def forward(self, x, state):
        output, state = super().forward(x, state)
        return torch.where(output > 0.9, math.nan, output), state


class OfAnotherWidth(LSTMController):
    def forward(self, x, state):
        return super().forward(x[:, 1:], state)


@pytest.mark.parametrize("kind", [OfItsOwnGenerator, OfNaN, OfAnotherWidth])
def test_a_controller_that_is_made_again_is_left_to_what_looks_at_it(kind, monkeypatch):
    monkeypatch.setitem(CONTROLLERS, "mine", kind)
    m1d1 = load_configuration("m1d1")
    configuration = dataclasses.replace(m1d1, network=dataclasses.replace(m1d1.network, controller="mine"))
    check_remade(configuration.make_model(), configuration)


@pytest.mark.parametrize("done", ["a hook", "pruning", "one more weight"])
def test_whether_a_file_makes_again_what_was_trained(done, tmp_path):
    configuration = load_configuration("m1d1")
    model = configuration.make_model()
    save(tmp_path / "model.pt", {"configuration": configuration.as_dict(), "model": model.state_dict()})
    assert makes_again(tmp_path / "model.pt", configuration, model)
    DONE_TO_IT[done](model)
    save(tmp_path / "model.pt", {"configuration": configuration.as_dict(), "model": model.state_dict()})
    assert not makes_again(tmp_path / "model.pt", configuration, model)


class TakesNoMask(LSTMController):
    def forward(self, x, state):
        return super().forward(x, state)


class IgnoresTheMask(LSTMController):
    def forward(self, x, state, cell_mask=None):
        return super().forward(x, state)


def test_a_controller_that_is_called_lstm_takes_the_mask_of_cells_that_forget(monkeypatch):
    configuration = load_configuration("m1d1")
    for name in "m1d1", "f1d1", "l1d1":
        check_forgets(load_configuration(name).make_model(), load_configuration(name))
    monkeypatch.setitem(CONTROLLERS, "lstm", TakesNoMask)
    model = configuration.make_model()
    with pytest.raises(InputError, match="controller TakesNoMask: is called lstm"):
        check_forgets(model, configuration)
    monkeypatch.setitem(CONTROLLERS, "lstm", IgnoresTheMask)
    with pytest.raises(InputError, match="controller IgnoresTheMask: does nothing with the cell_mask"):
        check_forgets(configuration.make_model(), configuration)
    recipe = dataclasses.replace(configuration.recipe, cell_dropout=0.0)
    check_forgets(model, dataclasses.replace(configuration, recipe=recipe))


class Gives(LSTMController):
    """A controller whose results are made into others."""

    make = staticmethod(lambda hidden, state: (hidden, state))

    def forward(self, x, state):
        return self.make(*super().forward(x, state))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda hidden, state: hidden, "must give its output and its state"),
        (lambda hidden, state: (hidden, state, 0), "must give its output and its state"),
        (
            lambda hidden, state: (hidden.double(), state),
            "must be of shape and type .*float32.* is .*float64",
        ),
        (lambda hidden, state: hidden @ hidden, "must give its output and its state .*shapes"),
        (lambda hidden, state: (hidden[:1], state), r"must be of shape and type .* is .*\(1, 6\)|must give"),
        (lambda hidden, state: (None, state), "NoneType"),
        (lambda hidden, state: (hidden, hidden), "must give its output and its state"),
    ],
)
def test_a_controller_that_gives_something_else_is_refused_in_words(make, said):
    model = lively_model(dtype=torch.float32)
    model.controller = Gives(10, 6)
    start_backend(model)
    model.controller.make = make
    with pytest.raises(InputError, match=f"controller Gives: .*{said}"):
        start_backend(model)


def test_the_baseline_has_no_fused_path():
    model = LSTMBaseline(5, 3, 4, 1, backend=Backend.FUSED)
    with pytest.raises(BackendError, match="knows the NTM, and no LSTMBaseline"):
        model(torch.rand(2, 1, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("raise ImportError('Numba needs NumPy 2.4 or less')", "cannot be imported (Numba needs NumPy 2.4 or less)"),
        ("raise SystemError('initialization failed')", "cannot be imported (initialization failed)"),
    ],
)
def test_numba_that_fails_to_import_means_the_reference_path_and_a_reason(repository, tmp_path, broken, why):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(broken)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "train.py", "-config", "m1d2", "-num_iters", "1", "-output", tmp_path / "out"]
    done = subprocess.run(command, cwd=repository.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert why in done.stdout
    assert "compiling" not in done.stderr
    done = subprocess.run(
        [*command, "-backend", "fused"], cwd=repository.folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_edit_that_keeps_the_fused_path_from_being_imported_is_named(tmp_path):
    shutil.copytree(ROOT / "ntm", tmp_path / "ntm", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "ntm" / "addressing.py"
    path.write_text(path.read_text().replace("NORM_EPSILON = 2.0**-20", "NORM_EPSILON = 2.0**-21"))
    program = "from ntm import NTM; print(NTM(3, 2, 4, 5, 6).why_not_fused())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert "ntm/addressing.py was edited (NORM_EPSILON" in done.stdout, done.stderr


@pytest.mark.slow
def test_pip_installs_the_machine_and_importing_it_changes_no_setting_of_the_process(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", ROOT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path / "site")!r})
from numba import config
from threadpoolctl import threadpool_info
import scipy.linalg
def settings():
    numba = {{key: value for key, value in vars(config).items() if key.isupper()}}
    return numba, threadpool_info(), torch.get_num_threads()
before = settings()
import ntm, ntm.fused
assert ntm.__file__.startswith({str(tmp_path)!r})
assert settings() == before
model = ntm.NTM(10, 8, 16, 12, 6, backend=ntm.Backend.FUSED)
print(tuple(model(torch.rand(5, 2, 10))[0].shape))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(5, 2, 8)\n", done.stderr
    assert not {"experiment", "tasks", "tests", "configs"} & {path.name for path in (tmp_path / "site").iterdir()}


def test_auto_takes_a_gpu_for_what_the_fused_path_cannot_run(monkeypatch):
    stock, changed = lively_model(), lively_model()
    five_shifts(changed)
    lstm = LSTMBaseline(5, 3, 6, 1)
    assert [choose_device("auto", model).type for model in (stock, lstm, None)] == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(()))  # so that any device can be had
    assert [choose_device("auto", model).type for model in (stock, changed, lstm, None)] == ["cpu", *["cuda"] * 3]
    assert choose_device("auto", lstm, 3) == choose_device("cuda", stock, 3) == torch.device("cuda", 3)
    assert choose_device("cuda:1", stock, 3) == torch.device("cuda", 1)
    stock.backend = Backend.REFERENCE
    assert choose_device("auto", stock).type == "cuda"


@pytest.mark.parametrize(
    "use",
    [
        "choose_device('auto', model)",
        "draw(Path('reproduced'), [0], [], Path('reproduced/paper')); model.use_fused()",
    ],
)
def test_vectors_are_as_wide_as_can_be_wherever_the_fused_path_comes_in(repository, use):
    """Numba looks at the setting when the first function is decorated: later ones change nothing."""
    script = f"""
from pathlib import Path
import torch
from experiment.backend import choose_device, use_widest_vectors
from experiment.paper import draw
from ntm import NTM
torch.cuda.is_available = lambda: True
model = NTM(1, 1, 1, 1, 1)
{use}
import ntm.fused
from numba.core.registry import cpu_target
features = cpu_target.target_context.codegen().magic_tuple()[2]
use_widest_vectors()
from numba import config
print(config.CPU_FEATURES is None or features == config.CPU_FEATURES)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=repository.folder, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_what_pytorch_no_longer_says_is_declined_in_words(monkeypatch):
    model = lively_model()
    assert model.why_not_fused() is None
    monkeypatch.delattr(torch._C, "_len_torch_dispatch_stack")
    assert "this version does not say" in model.why_not_fused()


def test_a_device_that_cannot_compute_is_refused():
    with pytest.raises(InputError, match="-device meta: no such device here"):
        choose_device("meta")
