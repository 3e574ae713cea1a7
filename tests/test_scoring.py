"""experiment/scoring.py: held-out sequences, and what is said of answers."""

import numpy as np
import pytest
import torch

from experiment.configuration import load_configuration
from experiment.errors import InputError
from experiment.scoring import (
    counts_each_bit,
    generator,
    optimal_cost,
    sample_sizes,
    score,
    spread_sizes,
    summarise,
    trace,
)
from ntm import NTM
from ntm.controller import LSTMController
from tasks import Task
from tasks.copy import Copy
from tasks.repeat_copy import LengthAndRepeats
from tasks.vectors import Length


def test_spread_sizes_has_both_ends():
    spread = spread_sizes(Length(1), Length(20), 8)
    assert (spread[0], spread[-1], len(spread)) == ((1,), (20,), 8)
    assert spread_sizes(Length(4), Length(4), 8) == [(4,)]
    spread = spread_sizes(LengthAndRepeats(1, 2), LengthAndRepeats(10, 5), 4)
    assert spread == sorted([(1, 2), (4, 3), (7, 4), (10, 5), (1, 5), (4, 4), (7, 3), (10, 2)])
    assert all(isinstance(size, LengthAndRepeats) for size in spread)


def test_summary_intervals():
    wrong = torch.tensor([0.0] * 98 + [3.0, 5.0])
    result = summarise([0.1, 0.3], [8, 4], [wrong[:75], wrong[75:]])
    assert result.loss == pytest.approx(0.75 * 0.1 + 0.25 * 0.3)
    assert result.cost == pytest.approx(0.75 * 8 + 0.25 * 4)
    assert result.exact == pytest.approx(0.98)
    assert result.bits == pytest.approx(0.08)
    assert result.bits_interval == pytest.approx(1.96 * np.std(wrong.numpy(), ddof=1) / 10, rel=1e-6)
    assert result.exact_low == pytest.approx(0.9300, abs=1e-4)  # Wilson, from a published calculator's formula
    assert result.exact_high == pytest.approx(0.9945, abs=1e-4)


@pytest.mark.parametrize("n", [1, 3, 10, 256, 1000])
def test_the_interval_of_exact_ends_at_0_and_1(n):
    right, wrong = (summarise([0.0], [0.0], [torch.full((n,), bits)]) for bits in (0.0, 1.0))
    part = n / (n + 1.96**2)
    assert (right.exact_low, right.exact_high) == (pytest.approx(part), 1.0)
    assert (wrong.exact_low, wrong.exact_high) == (0.0, pytest.approx(1 - part))


def test_scoring_leaves_the_model_as_it_was_and_draws_nothing():
    configuration = load_configuration("m1d2")
    model, task = configuration.make_model(), configuration.task
    batches = sample_sizes(task, [(2,), (3,)], 70, generator(0, 1))
    assert [b.inputs.shape[1] for b in batches] == [64, 6, 64, 6]
    state = torch.get_rng_state()
    first, wrong = score(model, task, batches)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert first.sequences == 140 == sum(map(len, wrong))
    assert score(model, task, batches)[0] == first
    assert first.bits == pytest.approx((2 + 3) / 2 * 4, rel=0.2)  # an untrained model guesses


class Noisy(LSTMController):
    """A controller that behaves otherwise in training."""

    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return torch.nn.functional.dropout(output, 0.5, self.training), state


def test_an_optimum_of_0_is_none():
    class Easy(Copy):
        def optimal_cost(self, batch):
            return torch.zeros(batch.mask.shape[1])

    assert optimal_cost(Easy(8), sample_sizes(Easy(8), [Easy.Size(3)], 4, torch.Generator())) is None


@pytest.mark.parametrize("name", ["step", "forward"])
def test_no_picture_is_drawn_of_what_a_machine_does_not_do(name):
    model, task = NTM(10, 8, 6, 7, 5), Copy(8)
    setattr(model, name, getattr(model, name))
    with pytest.raises(InputError, match="the model has its own `step` or `forward`, or hooks"):
        trace(model, task, task.sample(1, task.Size(3), torch.Generator()))


def test_a_look_at_the_heads_is_in_eval_mode_and_leaves_the_model_as_it_was():
    configuration = load_configuration("m1d2")
    model, task = configuration.make_model(), configuration.task
    batch = task.sample(1, (3,), generator(0, 1))
    model.controller = Noisy(30, 100)
    state = torch.get_rng_state()
    first, again = trace(model, task, batch), trace(model, task, batch)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_task_that_counts_wrong_bits_in_its_own_way_is_shown_with_its_own_count():
    class Strict(Copy):
        def wrong_bits(self, logits, batch):
            return super().wrong_bits(logits, batch) + 1000

    model = NTM(10, 8, 6, 7, 5)
    shown = [
        trace(model, task, task.sample(1, task.Size(3), torch.Generator().manual_seed(0))).wrong_bits
        for task in (Copy(8), Strict(8))
    ]
    assert shown[1] == shown[0] + 1000


def test_an_optimum_that_is_known_of_some_batches_alone_is_refused():
    class Some(Copy):
        def optimal_cost(self, batch):
            return None if len(batch.mask) > 8 else torch.ones(batch.mask.shape[1])

    batches = sample_sizes(Some(8), [Some.Size(2), Some.Size(9)], 4, torch.Generator())
    assert optimal_cost(Some(8), batches[:1]) == 1
    for order in batches, batches[::-1]:
        with pytest.raises(InputError, match="an optimal_cost at some sizes, and None at others"):
            optimal_cost(Some(8), order)


def test_what_a_task_counts_in_a_way_of_its_own_is_told_from_each_bit(monkeypatch):
    task = Copy(8)
    batch = task.sample(3, Copy.Size(4), torch.Generator())
    assert counts_each_bit(task, batch)
    monkeypatch.setattr(Task, "wrong_bits", lambda self, said, batch: ((said > 0) != (batch.targets > 0)).sum((0, 2)))
    assert not counts_each_bit(task, batch)
