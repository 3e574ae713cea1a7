"""ntm/fused/adamw.py: its steps are PyTorch's."""

import sys
import types

import pytest
import torch

from experiment import training
from experiment.configuration import Recipe
from experiment.errors import InputError
from experiment.training import make_optimizer
from ntm.fused import FusedAdamW, adamw


@pytest.mark.parametrize("odd", [torch.zeros(2, 3), torch.zeros(6)[::2], torch.zeros(3).half()])
def test_what_is_not_flat_is_refused(odd):
    with pytest.raises(ValueError, match="FusedAdamW takes what flatten_parameters gives"):
        FusedAdamW([torch.zeros(3), odd], 1e-3, (0.9, 0.999), 1e-8, 0.0)


def test_compiled_adamw_is_pytorchs():
    recipe, found = Recipe(lr=1e-2, eps=1e-6, weight_decay=0.1), []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(1000, generator=generator))
        weights.grad = torch.zeros(1000)
        optimizer = make_optimizer(recipe, weights, fused)
        for step in range(20):
            weights.grad.copy_(torch.randn(1000, generator=generator) * 10.0 ** torch.arange(-10, 0).repeat(100))
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
            optimizer.step()
            if step == 10:  # the other one goes on where this one is
                state = optimizer.state_dict()
                optimizer = make_optimizer(recipe, weights, not fused)
                optimizer.load_state_dict(state)
        found.append((weights.detach(), *optimizer.state[weights].values()))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda p, lr, betas, eps, decay, **_: torch.optim.AdamW(p, lr, betas, eps, decay, amsgrad=True),
        lambda p, lr, betas, eps, decay, **_: torch.optim.AdamW(p, lr, betas, eps, decay, maximize=True),
        lambda p, *numbers, **_: torch.optim.NAdam(p, *numbers, decoupled_weight_decay=True),
        lambda p, lr, *_, **__: torch.optim.SGD(p, lr),
        lambda p, lr, betas, eps, decay, **_: torch.optim.AdamW(p, 2 * lr, betas, eps, 0.3, fused=True),
    ],
)
def test_an_optimizer_edited_in_its_file_is_the_one_on_either_path(make, monkeypatch):
    """`make_optimizer` calls `AdamW`; whoever edits that line has another optimizer, or other numbers, there."""

    class Edited:
        def __new__(cls, parameters, *numbers, **options):
            return make(parameters, *numbers, **options)

    found = []
    for fused in (False, True):
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 50))
        weights.grad = torch.linspace(3, -1, 50)
        with monkeypatch.context() as patch:
            patch.setattr(training, "torch", types.SimpleNamespace(optim=types.SimpleNamespace(AdamW=Edited)))
            optimizer = make_optimizer(Recipe(lr=1e-2), weights, fused)
        for _ in range(3):
            optimizer.step()
        found.append(weights.detach())
    torch.testing.assert_close(*found)


EDITS = {  # of what `make_optimizer` makes, or of PyTorch, and whether before the compiled one takes its place
    "a hook before": (True, lambda o, w, _: o.register_step_pre_hook(lambda *_: (w.grad.mul_(0.5), None)[1])),
    "a hook after": (True, lambda o, w, _: o.register_step_post_hook(lambda *_: w.data.mul_(0.5))),
    "a hook before, later": (False, lambda o, w, _: o.register_step_pre_hook(lambda *_: (w.grad.mul_(0.5), None)[1])),
    "a hook after, later": (False, lambda o, w, _: o.register_step_post_hook(lambda *_: w.data.mul_(0.5))),
    "a step of its own": (True, lambda o, w, _: setattr(o, "step", lambda: w.data.mul_(0.5))),
    "a step of its own, later": (False, lambda o, w, _: setattr(o, "step", lambda: w.data.mul_(0.5))),
    "a state": (
        True,
        lambda o, w, _: o.state[w].update(step=torch.tensor(3.0), exp_avg=w.detach() + 1, exp_avg_sq=w.detach() + 2),
    ),
    "PyTorch's step": (
        True,
        lambda o, w, patch: patch.setattr(torch.optim.AdamW, "step", lambda self: w.data.mul_(0.5)),
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_step_is_the_one_on_either_path(edit, monkeypatch):
    (before, make), kept, found = EDITS[edit], torch.optim.AdamW, []
    for fused in (False, True):
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 50))
        weights.grad = torch.linspace(3, -1, 50)
        with monkeypatch.context() as patch:

            def edited(*given, weights=weights, patch=patch, **named):
                optimizer = kept(*given, **named)
                if before:
                    make(optimizer, weights, patch)
                return optimizer

            patch.setattr(training, "torch", types.SimpleNamespace(optim=types.SimpleNamespace(AdamW=edited)))
            optimizer = make_optimizer(Recipe(lr=1e-2), weights, fused)
            if not before:
                make(optimizer, weights, patch)
            for _ in range(3):
                optimizer.step()
        found.append(weights.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("register", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
def test_hooks_on_all_optimizers_are_called(register):
    weights, called = torch.nn.Parameter(torch.ones(3)), []
    weights.grad = torch.ones(3)
    optimizer = make_optimizer(Recipe(), weights, fused=True)
    assert type(optimizer) is FusedAdamW
    handle = getattr(sys.modules["torch.optim.optimizer"], register)(lambda *_: called.append(1))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert called == [1]


def test_an_edit_of_the_compiled_steps_is_noticed(monkeypatch):
    stock = adamw.adamw_step
    monkeypatch.setattr(adamw, "adamw_step", lambda w, g, m, s, d, rate, *rest: stock(w, g, m, s, d, 0.5 * rate, *rest))
    weights = torch.nn.Parameter(torch.ones(3))
    make_optimizer(Recipe(), weights, fused=False)
    with pytest.raises(InputError, match=r"other steps than torch\.optim\.AdamW"):
        make_optimizer(Recipe(), weights, fused=True)


@pytest.mark.parametrize("option", ["maximize", "amsgrad", "foreach", "capturable"])
def test_options_that_it_has_not_are_refused(option):
    with pytest.raises(TypeError, match=option):
        FusedAdamW([torch.zeros(3)], 1e-3, (0.9, 0.999), 1e-8, 0.0, **{option: True})


@pytest.mark.parametrize(
    "option", [{"maximize": True}, {"amsgrad": True}, {"lr": torch.tensor(0.01)}, {"weight_decay": 0.5}]
)
def test_an_option_that_is_set_later_is_heeded(option):
    found = []
    for fused in (False, True):
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 50))
        optimizer = make_optimizer(Recipe(lr=1e-2), weights, fused)
        optimizer.param_groups[0].update(option)
        for step in range(3):
            weights.grad = torch.linspace(3, -1, 50) / (1 + step)
            optimizer.step()
        found.append(weights.detach())
    torch.testing.assert_close(*found)
