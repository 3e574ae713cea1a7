"""What a machine keeps from call to call and shares between sequences: such as a run could not resume is refused."""

import pytest
import torch
from torch import nn

from experiment.backend import start_backend
from experiment.configuration import load_configuration
from experiment.errors import InputError
from experiment.machine_check import stirred
from experiment.state_check import alike, check_kept, check_shareable
from ntm import NTM, LSTMBaseline, addressing
from ntm import ntm as machine
from ntm.controller import LSTMController
from ntm.heads import Heads


class Untrained(LSTMController):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = torch.ones(self.output_size, requires_grad=True)

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return self.scale * output, state


class Keeps(LSTMController):
    def forward(self, x, state, cell_mask=None):
        self.last, state = super().forward(x, state, cell_mask)
        return self.last, state


class Counts(LSTMController):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x, state, cell_mask=None):
        self.steps = self.steps + 1
        return super().forward(x, state, cell_mask)


class Remembers(LSTMController):
    last = None

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        if not self.training and self.last is not None and len(self.last) == len(x):
            output = output + self.last
        self.last = output.detach()
        return output, state


class OfItsBatch(LSTMController):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.norm = nn.BatchNorm1d(self.output_size, track_running_stats=False)

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return self.norm(output), state


class CutOff(LSTMController):
    def forward(self, x, state, cell_mask=None):
        return super().forward(x.detach(), state, cell_mask)


class CutOffInside(LSTMController):
    def forward(self, x, state, cell_mask=None):
        with torch.no_grad():
            return super().forward(x, state, cell_mask)


class Mixes(LSTMController):
    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return output - output.mean(0), state


class Clock(LSTMController):
    """That goes on otherwise every `period` steps, and counts them on itself."""

    period, steps = 2, 0

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        self.steps += 1
        return output * (1 + (self.steps % self.period == 0)), state


class EverySecondSequence(Clock):
    """That counts calls."""

    def initial_state(self, batch_size):
        self.steps += 1
        return super().initial_state(batch_size)

    def forward(self, x, state, cell_mask=None):
        output, state = LSTMController.forward(self, x, state, cell_mask)
        return output * (1 + self.steps % 2), state


class KeepsItsState(LSTMController):
    def initial_state(self, batch_size):
        self.kept = super().initial_state(batch_size)
        return ()

    def forward(self, x, state, cell_mask=None):
        output, self.kept = super().forward(x, self.kept, cell_mask)
        return output, ()


class KeepsItsPast(LSTMController):
    def initial_state(self, batch_size):
        self.past = []
        return super().initial_state(batch_size)

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        self.past.append(output)
        return torch.stack(self.past).mean(0), state


class AlwaysDropsOut(LSTMController):
    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return nn.functional.dropout(output, 0.2), state


class Normalizes(LSTMController):
    """By a mean that it keeps in training alone, and in no buffer."""

    mean = 0.0

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * output.mean().item()
        return output - self.mean, state


class CountsInTraining(LSTMController):
    """Whose noise falls, after many more calls than anyone looks at."""

    calls = 0

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        if self.training:
            self.calls += 1
            output = output + 0.9 ** (self.calls // 10000) * torch.randn_like(output)
        return output, state


class NormalizesLater(LSTMController):
    """By a mean that it keeps in training, in no buffer, for eval mode."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.mean = torch.zeros(())

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * output.mean().detach()
            return output - output.mean(), state
        return output - self.mean, state


class KeepsItsLength(LSTMController):
    """In an attribute that begins anew with each sequence."""

    def initial_state(self, batch_size):
        self.steps = 0
        return super().initial_state(batch_size)

    def forward(self, x, state, cell_mask=None):
        self.steps += 1
        return super().forward(x, state, cell_mask)


class InSingle(LSTMController):
    """Whose answers round differently for one sequence than for two."""

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return (output.float() * (1 + 1e-7 * len(x))).to(output), state


class SinglePrecision(nn.Linear):
    """A map that runs in float32 alone."""

    def forward(self, x):
        assert x.dtype == torch.float32
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Remembers, "the machine gives other answers to the same sequences after others"),
        (Mixes, "answer to a sequence depends on the others of its batch"),
        (OfItsBatch, "answers 2 sequences at once, and not one alone .Expected more than 1 value per channel"),
        (CutOff, "none goes through the controller back to what was read"),
        (
            CutOffInside,
            r"controller\.gate_proj\.weight, controller\.gate_proj\.bias get no gradient, and none",
        ),
        (Untrained, r"a tensor of shape \(20,\) wants a gradient and is no parameter"),
        (Keeps, "the machine keeps a tensor that it computed"),
        (Counts, "controller.steps changes in eval mode"),
        *((type(f"Clock{n}", (Clock,), {"period": n}), "other answers to the same") for n in (2, 3, 6, 7)),
        (EverySecondSequence, "other answers to the same"),
        (AlwaysDropsOut, "in eval mode, in which a machine only answers, it draws"),
        (KeepsItsState, "the machine keeps a tensor that it computed"),
        (KeepsItsPast, "the machine keeps a tensor that it computed"),
        (Normalizes, r"controller\.mean changes from one call to the next in training, and is in no file"),
        (CountsInTraining, r"controller\.calls changes from one call to the next in training, and is in no file"),
        (NormalizesLater, "what the machine keeps changes from one call to the next in training"),
    ],
)
def test_a_machine_that_keeps_what_it_should_not_is_refused(kind, why):
    model = NTM(5, 3, 20, 16, 8, 2)
    model.controller = kind(5 + 2 * 8, 20)
    with pytest.raises(InputError, match=why):
        start_backend(model, training=True)


def controls_with(change):
    """An edit of `Heads.controls`: it gives these of its controls by name another value."""

    def edit(controls):
        def edited(self, hidden):
            given = controls(self, hidden)
            return given._replace(**change(self, given))

        return edited

    return edit


def by_running_mean(self, given):
    self.running = 0.99 * getattr(self, "running", 1.0) + 0.01 * given.key_strength.mean().item()
    return {"key_strength": given.key_strength / self.running}


def over_sequences(similarity, key_strength):
    return torch.softmax(key_strength * similarity, dim=0)


BATCH = "answer to a sequence depends on the others of its batch"
EDITS = {
    "a softmax over the batch": (addressing, "content_weighting", lambda old: over_sequences, BATCH),
    "a norm over the batch": (Heads, "controls", controls_with(lambda _, c: {"add": c.add / c.add.norm()}), BATCH),
    "keys less their mean": (Heads, "controls", controls_with(lambda _, c: {"key": c.key - c.key.mean(0)}), BATCH),
    "one sharpening for all": (
        *(Heads, "controls", controls_with(lambda _, c: {"sharpening": 0 * c.sharpening + c.sharpening.mean(0)})),
        BATCH,
    ),
    "memory less its mean": (machine, "read", lambda old: lambda memory, w: old(memory - memory.mean(), w), BATCH),
    "a running mean": (Heads, "controls", controls_with(by_running_mean), "other answers to the same sequences after"),
}


@pytest.mark.parametrize("name", ["m1d1", "m3d1", "f1d1"])
@pytest.mark.parametrize("edit", EDITS)
def test_what_many_rows_of_memory_dilute_is_seen(edit, name, monkeypatch):
    model = stirred(load_configuration(name).make_model(), 0).train()
    check_kept(model)
    where, what, change, why = EDITS[edit]
    monkeypatch.setattr(where, what, change(getattr(where, what)))
    with pytest.raises(InputError, match=why):
        check_kept(model)


@pytest.mark.parametrize("name", ["m2d1", "l1d1"])
def test_the_shipped_machines_keep_nothing(name):
    check_kept(load_configuration(name).make_model().train())


def test_a_count_that_begins_anew_with_each_sequence_may_stand_anywhere():
    model = NTM(5, 3, 20, 16, 8, 2)
    model.controller = KeepsItsLength(5 + 2 * 8, 20)
    check_kept(model)


def test_rounding_of_what_runs_in_float32_is_no_difference():
    model = NTM(5, 3, 20, 16, 8, 2)
    model.controller = InSingle(5 + 2 * 8, 20)
    check_kept(model)
    model = NTM(5, 3, 20, 16, 8, 2)
    model.output_proj = SinglePrecision(20 + 16, 3)
    check_kept(model)
    model.controller = Mixes(5 + 2 * 8, 20)
    with pytest.raises(InputError, match=BATCH):
        check_kept(model)


@pytest.mark.parametrize(
    ("given", "others", "same"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0005, torch.nan]), True),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), False),
        (torch.full((2,), torch.nan), torch.full((2,), torch.nan), True),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.tensor([True]), torch.tensor([True]), True),
        (torch.zeros(0), torch.zeros(0), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
    ],
)
def test_answers_are_alike_to_within_a_thousandth(given, others, same):
    assert alike(given, others) is same


class Wrapped(LSTMController):
    """A controller whose output goes through another module."""

    def __init__(self, module, *sizes):
        super().__init__(*sizes)
        self.module = module

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return self.module(output), state


class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.mean, self.calls = x.detach().mean(0), self.calls + 1
        return x


@pytest.mark.parametrize(
    ("module", "shared"),
    [
        *((each, True) for each in (nn.Identity(), nn.LayerNorm(4), nn.Dropout(0.0))),
        *((each, False) for each in (nn.Dropout(0.2), nn.BatchNorm1d(4), RunningMean())),
    ],
)
def test_what_draws_or_keeps_statistics_of_a_batch_is_not_shared_out(module, shared):
    model = NTM(5, 3, 4, 7, 5)
    model.controller = Wrapped(module, 5 + 5, 4)
    before = torch.get_rng_state()
    if shared:
        check_shareable(model)
    else:
        with pytest.raises(InputError, match="processes that see a part of a batch each would not make of it"):
            check_shareable(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stock_machines_are_shared_out():
    for model in NTM(5, 3, 4, 7, 5), NTM(5, 3, 4, 7, 5, controller="feedforward"), LSTMBaseline(5, 3, 4, 2):
        check_shareable(model)
