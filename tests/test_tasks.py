"""The reverse task, its scoring, and the lengths and tapes that training draws."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from experiment.configuration import NINE, PAPER, Recipe, load_configuration
from experiment.errors import InputError
from experiment.scoring import generator, sample_sizes, score, spread_sizes, summarise
from experiment.task_check import check_task
from experiment.training import (
    Clipper,
    blur_cost,
    draw_iteration,
    draw_mask,
    draw_memory,
    largest_size,
    make_optimizer,
    set_learning_rate,
)
from ntm.memory import INITIAL_VALUE
from tasks import TASKS, Batch, Task
from tasks.copy import Copy
from tasks.repeat_copy import LengthAndRepeats
from tasks.reverse import Reverse
from tasks.vectors import Length


def test_the_worked_example_of_the_docstring():
    batch = Reverse(2).batch(torch.tensor([[[1.0, 0]], [[1, 1]]]))
    assert batch.inputs[:, 0].T.tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ]
    assert batch.targets[:, 0].T.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0]]
    assert batch.mask[:, 0].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("length", [1, 2, 20])
def test_samples_are_reversed_random_and_reproducible(length):
    task = TASKS["reverse"](8)
    batch = task.sample(64, (length,), torch.Generator().manual_seed(1))
    assert batch.inputs.shape == (2 * length + 2, 64, 10)
    assert torch.equal(batch.targets[length + 2 :].flip(0), batch.inputs[1 : length + 1, :, :8])
    assert batch.inputs[length + 2 :].sum() == 0
    assert batch.mask.sum() == 64 * length
    assert 0.4 < batch.inputs[1 : length + 1, :, :8].mean() < 0.6
    again = task.sample(64, (length,), torch.Generator().manual_seed(1))
    assert torch.equal(batch.inputs, again.inputs)
    assert not torch.equal(batch.inputs, task.sample(64, (length,), torch.Generator().manual_seed(2)).inputs)


def test_uneven_sequences_are_monotonous_or_varied():
    batch = Reverse(8).sample(600, (12,), torch.Generator().manual_seed(1), uneven=1.0)
    vectors = batch.inputs[1:13, :, :8]
    assert torch.equal(batch.targets[14:].flip(0), vectors)
    different = torch.tensor([len(torch.unique(vectors[:, b], dim=0)) for b in range(600)])
    spread = vectors.mean(-1).std(0)  # of the share of ones, from vector to vector
    monotonous = different < 7
    assert different.min() == 1
    assert 150 < monotonous.sum() < 450
    assert vectors[:, monotonous].mean((0, 2)).min() < 0.05
    assert vectors[:, monotonous].mean((0, 2)).max() > 0.95
    assert spread[~monotonous].mean() > 0.25
    assert 0.08 < (vectors[0].sum(-1) == 0).float().mean() < 0.15  # 1 / 9 begin with an empty vector
    plain = Reverse(8).sample(600, (12,), torch.Generator().manual_seed(1)).inputs[1:13, :, :8]
    assert plain.mean(-1).std(0).max() < 0.3
    assert (plain[0].sum(-1) == 0).float().mean() < 0.02


def test_scoring_counts_only_what_the_mask_marks():
    task = Reverse(2)
    batch = task.batch(torch.tensor([[[1.0, 0], [0, 0]], [[1, 1], [0, 1]]]))
    perfect = torch.where(batch.targets > 0.5, 20.0, -20.0)
    noise = torch.where(batch.mask.unsqueeze(-1) > 0, perfect, 99.0)
    assert task.wrong_bits(noise, batch).tolist() == [0, 0]
    assert task.loss(noise, batch) < 1e-6
    noise[-1, 1] *= -1
    assert task.wrong_bits(noise, batch).tolist() == [0, 2]
    assert task.loss(noise, batch).item() == pytest.approx(2 * 20 / 8, rel=1e-6)
    assert task.loss(torch.zeros_like(noise), batch).item() == pytest.approx(math.log(2))
    noise[-1, 0] = float("nan")
    assert task.wrong_bits(noise, batch).tolist() == [2, 2]


@pytest.mark.parametrize("name", NINE)
def test_training_draws_both_ends_of_the_range_and_nothing_else(name):
    source, data = generator(0, 0), load_configuration(name, Recipe()).data

    def draw(recipe):
        batch, memory, cell_mask = draw_iteration(load_configuration(name, recipe), 15_000, source)
        assert cell_mask.shape[:2] == batch.inputs.shape[:2]
        return len(batch.inputs) // 2 - 1, memory.shape[1]

    drawn = [draw(Recipe(batch_size=1)) for _ in range(2000)]
    lengths, rows = (sorted(set(values)) for values in zip(*drawn, strict=True))
    assert lengths == list(range(data.low.seq_len, data.high.seq_len + 1))
    assert rows[0] == data.low.seq_len + 2
    assert 120 < rows[-1] <= 128
    assert all(r >= n + 2 for n, r in drawn)
    assert {draw(Recipe(batch_size=1, full_tape=True))[1] for _ in range(100)} == {128}


@pytest.mark.parametrize("uneven", [0.0, 0.5, 1.0])
def test_uneven_sequences_are_drawn_as_often_as_asked(uneven):
    batch = Reverse(8).sample(4000, (1,), torch.Generator().manual_seed(1), uneven=uneven)
    empty = (batch.targets.sum((0, 2)) == 0).float().mean()
    assert empty == pytest.approx(uneven / 9 + (1 - uneven) / 256, abs=0.02)


def test_the_curriculum_grows_from_short_to_the_whole_range():
    data = load_configuration("m1d3", Recipe()).data
    recipe = Recipe(num_iters=1000, curriculum=0.5)
    longest = [largest_size(recipe, data, step).seq_len for step in range(1000)]
    assert longest[0] == 10
    assert longest == sorted(longest)
    assert longest[499] == 30 == longest[500] == longest[999]
    assert largest_size(Recipe(curriculum=0), data, 0) == (30,)


def test_learning_rate_falls_or_stays():
    recipe = Recipe(num_iters=100, lr=1e-2)
    model = load_configuration("m1d1", recipe).make_model()
    optimizer = make_optimizer(recipe, model.flatten_parameters(), fused=False)
    for step, left in ((0, 1.0), (50, 0.5), (100, 0.0)):
        assert set_learning_rate(recipe, 100, step, optimizer) == pytest.approx(1e-2 * left)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * left)
    constant = Recipe(num_iters=100, lr=1e-2, lr_schedule="constant")
    assert set_learning_rate(constant, 100, 99, optimizer) == 1e-2
    assert set_learning_rate(constant, 400, 99, optimizer) == 5e-3  # four times the cells, half the rate
    always = Recipe(num_iters=100, lr=1e-2, lr_schedule="constant", lr_cells=0)
    assert set_learning_rate(always, 400, 99, optimizer) == 1e-2


def test_the_blur_cost_grows_from_nothing():
    assert [blur_cost(Recipe(num_iters=100, blur_cost=0.4), step) for step in (0, 25, 100)] == [0, 0.1, 0.4]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_sequences_begins_on_a_dirty_memory_and_the_others_on_a_blank_one(share):
    memory = draw_memory(Recipe(batch_size=2000, dirty=share, dirt=3.0), 30, 20, generator(0, 0))
    assert memory.shape == (2000, 30, 20)
    dirty = memory[(memory != INITIAL_VALUE).any((1, 2))]
    assert len(dirty) / 2000 == pytest.approx(share, abs=0.04)
    if share:
        deviation = dirty.std((1, 2))
        assert deviation.min() < 0.03
        assert 2.9 < deviation.max() < 3.15
        assert deviation.mean() == pytest.approx(1.5, abs=0.1)
        assert dirty.mean().abs() < 0.03


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.15, 0.85, 1 - 1e-9, 1.0])
def test_masks_are_as_asked_up_to_both_ends(probability):
    drawn = draw_mask(probability, (500, 333), generator(0, 0)).double()
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(probability, abs=5e-3 if 0.1 < probability < 0.9 else 1e-6)


def test_an_iteration_follows_from_its_generator_alone():
    configuration = load_configuration("m1d1", Recipe())
    first, again, other = (draw_iteration(configuration, 9, generator(1, 0, step)) for step in (9, 9, 10))
    for one, two in zip((*first.batch, *first[1:]), (*again.batch, *again[1:]), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.memory[:, :2], other.memory[:, :2])
    assert draw_iteration(load_configuration("m1d1", Recipe(cell_dropout=0)), 9, generator(1, 0)).cell_mask is None


def test_an_iteration_draws_what_the_network_has():
    batch, memory, cell_mask = draw_iteration(load_configuration("f1d1", Recipe()), 9, generator(1, 0))
    assert memory.shape[::2] == (16, 20)
    assert cell_mask is None
    batch, *nothing = draw_iteration(load_configuration("l1d1", Recipe()), 9, generator(1, 0))
    assert batch.inputs.shape[1:] == (16, 10)
    assert nothing == [None, None]


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
    assert summarise([0.0], [0.0], [torch.zeros(256)]).exact_low == pytest.approx(256 / (256 + 1.96**2), abs=1e-6)


def test_scoring_leaves_the_model_as_it_was_and_draws_nothing():
    configuration = load_configuration("m1d2", Recipe())
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


def test_clipping():
    def clipped(clipper, *values):
        gradient = torch.tensor([values[0]] * 3 + [values[1]] * 2)
        return clipper.clip(gradient), gradient.norm().item()

    clipper = Clipper(Recipe(clip_typical=3.0))
    assert clipped(clipper, 0.01, 0.01)[1] == pytest.approx(0.01 * 5**0.5)  # small ones pass
    norm, after = clipped(clipper, 10.0, 10.0)
    assert norm == pytest.approx(10 * 5**0.5)
    assert after == pytest.approx(3 * 0.01 * 5**0.5, rel=1e-4)  # a spike is cut to three times the typical norm
    typical = math.log(0.01 * 5**0.5)
    assert clipper.log_typical == pytest.approx(typical + 0.01 * math.log(3))  # ... and counts as that
    before = clipper.log_typical
    assert not math.isfinite(clipped(clipper, float("nan"), 1.0)[0])
    assert clipper.log_typical == before
    never = Clipper(Recipe(clip_typical=0.0))
    assert [clipped(never, value, value)[1] for value in (0.1, 10.0)] == pytest.approx([0.1 * 5**0.5, 10 * 5**0.5])
    by_value = Clipper(Recipe(clip_typical=0.0, clip_value=2.0))
    assert clipped(by_value, 10.0, -10.0)[1] == pytest.approx(2 * 5**0.5)


class Broken(Copy):
    """Copy with one mistake."""

    def change(self, batch):
        return batch

    def sample(self, *arguments):
        return self.change(super().sample(*arguments))


MISTAKES = {
    "batch first": (
        lambda b: Batch(*(part.transpose(0, 1) for part in b)),
        r"inputs must be \(T, B, 10\), of T steps of",
    ),
    "too narrow": (lambda b: b._replace(inputs=b.inputs[..., :9]), r"inputs must be \(T, B, 10\)"),
    "float64": (lambda b: b._replace(inputs=b.inputs.double()), "inputs must be float32, and are torch.float64"),
    "minus ones": (lambda b: b._replace(targets=2 * b.targets - 1), "targets must be 0 or 1"),
    "no mask": (lambda b: b._replace(mask=0 * b.mask), "the mask is 0 at all steps"),
    "infinite": (lambda b: b._replace(inputs=b.inputs / 0), "inputs are not all finite"),
    "global randomness": (lambda b: b._replace(targets=torch.randint(0, 2, b.targets.shape).float()), "from elsewhere"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_task_of_ones_own_is_named(monkeypatch, mistake):
    change, said = MISTAKES[mistake]
    configuration = load_configuration("copy")
    data = dataclasses.replace(configuration.data, task=Broken(8))
    configuration = dataclasses.replace(configuration, data=data)
    check_task(configuration)
    monkeypatch.setattr(Broken, "change", lambda self, batch: change(batch))
    with pytest.raises(InputError, match=said):
        check_task(configuration)


def test_a_loss_of_a_tasks_own_and_no_rows_are_refused(monkeypatch):
    for name in (*PAPER, "m1d1"):
        check_task(load_configuration(name))
    monkeypatch.setattr(Copy, "rows_needed", lambda self, size: 0)
    with pytest.raises(InputError, match="task copy, size 1: rows_needed is 0"):
        check_task(load_configuration("copy"))
    monkeypatch.setattr(Copy, "loss", lambda self, logits, batch: logits.sum())
    with pytest.raises(InputError, match="task copy: has a loss of its own"):
        check_task(load_configuration("copy"))


def test_an_edit_of_the_loss_that_training_would_not_see_is_refused(monkeypatch):
    original = Task.loss
    monkeypatch.setattr(Task, "loss", lambda self, logits, batch: 3 * original(self, logits, batch))
    with pytest.raises(InputError, match=r"has a loss of its own, and train\.py trains on that of"):
        check_task(load_configuration("copy"))
