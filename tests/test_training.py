"""experiment/training.py: what training draws, and what it does with a gradient."""

import dataclasses
import math

import pytest
import torch

from experiment.configuration import NINE, PAPER, Recipe, load_configuration
from experiment.errors import InputError
from experiment.scoring import generator
from experiment.training import (
    Clipper,
    blur_cost,
    draw_iteration,
    draw_mask,
    draw_memory,
    largest_size,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from ntm.memory import INITIAL_VALUE


def configured(name, recipe):
    return dataclasses.replace(load_configuration(name), recipe=recipe)


@pytest.mark.parametrize("name", NINE)
def test_training_draws_both_ends_of_the_range_and_nothing_else(name):
    source, data = generator(0, 0), load_configuration(name).data

    def draw(recipe):
        batch, memory, cell_mask = draw_iteration(configured(name, recipe), 15_000, source)
        assert cell_mask.shape[:2] == batch.inputs.shape[:2]
        return len(batch.inputs) // 2 - 1, memory.shape[1]

    drawn = [draw(Recipe(batch_size=1)) for _ in range(2000)]
    lengths, rows = (sorted(set(values)) for values in zip(*drawn, strict=True))
    assert lengths == list(range(data.low.seq_len, data.high.seq_len + 1))
    assert rows[0] == data.low.seq_len + 2
    assert 120 < rows[-1] <= 128
    assert all(r >= n + 2 for n, r in drawn)
    assert {draw(Recipe(batch_size=1, full_tape=True))[1] for _ in range(100)} == {128}


def test_the_curriculum_grows_from_short_to_the_whole_range():
    data = load_configuration("m1d3").data
    recipe = Recipe(num_iters=1000, curriculum=0.5)
    longest = [largest_size(recipe, data, step).seq_len for step in range(1000)]
    assert longest[0] == 10
    assert longest == sorted(longest)
    assert longest[499] == 30 == longest[500] == longest[999]
    assert largest_size(Recipe(curriculum=0), data, 0) == (30,)


def test_learning_rate_falls_or_stays():
    recipe = Recipe(num_iters=100, lr=1e-2)
    for step, left in ((0, 1.0), (50, 0.5), (100, 0.0)):
        assert learning_rate(recipe, 100, step) == pytest.approx(1e-2 * left)
    constant = Recipe(num_iters=100, lr=1e-2, lr_schedule="constant")
    assert learning_rate(constant, 100, 99) == 1e-2
    assert learning_rate(constant, 400, 99) == 5e-3  # four times the cells, half the rate
    always = Recipe(num_iters=100, lr=1e-2, lr_schedule="constant", lr_cells=0)
    assert learning_rate(always, 400, 99) == 1e-2


def of_two_groups(weights):
    return torch.optim.AdamW([{"params": [weights]}, {"params": [torch.zeros(1)], "lr": 1e-20}], lr=1e-2)


SCHEDULERS = {
    "none": None,
    "that falls": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    "that warms up": torch.optim.lr_scheduler.LinearLR,
}


@pytest.mark.parametrize("lr_schedule", ["cosine", "constant"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_learning_rate_that_the_next_iteration_would_undo_is_refused(scheduler, lr_schedule):
    recipe, make = Recipe(num_iters=9, lr=1e-2, lr_schedule=lr_schedule), SCHEDULERS[scheduler]
    optimizer = make_optimizer(recipe, configured("m1d1", recipe).make_model().flatten_parameters(), fused=False)
    other = make and make(optimizer)

    def iterate():
        for step in range(9):
            rate = set_learning_rate(recipe, 100, step, optimizer)
            assert optimizer.param_groups[0]["lr"] == rate == learning_rate(recipe, 100, step)
            optimizer.step()
            if other:
                other.step()

    if make is None:
        iterate()
        return
    with pytest.raises(InputError, match=r"`learning_rate` in experiment/training\.py"):
        iterate()


def test_a_learning_rate_that_was_set_back_is_refused():
    recipe = Recipe(num_iters=9, lr=1e-2)
    optimizer = make_optimizer(recipe, configured("m1d1", recipe).make_model().flatten_parameters(), fused=True)
    for step in range(3):
        set_learning_rate(recipe, 100, step, optimizer)
    optimizer.param_groups[0]["lr"] = recipe.lr
    with pytest.raises(InputError, match=r"a learning rate of 0\.01 was set"):
        set_learning_rate(recipe, 100, 3, optimizer)


def test_a_learning_rate_of_a_group_is_refused():
    with pytest.raises(InputError, match="a learning rate of 1e-20 was set"):
        set_learning_rate(Recipe(lr=1e-2), 100, 0, of_two_groups(torch.zeros(2)))


def test_the_blur_cost_grows_from_nothing():
    assert [blur_cost(Recipe(num_iters=100, blur_cost=0.4), step) for step in (0, 25, 100)] == [0, 0.1, 0.4]


@pytest.mark.parametrize("step", [0, 49, 50, 75, 99])
def test_fewer_cells_forget_in_the_second_half_of_a_run(step):
    recipe = Recipe(num_iters=100, cell_dropout=0.4, curriculum=0)
    mask = draw_iteration(configured("m1d1", recipe), step, generator(5, 0)).cell_mask
    assert mask.double().mean().item() == pytest.approx(1 - 0.4 * min(1, 2 - step / 50), abs=0.01)


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
    configuration = load_configuration("m1d1")
    first, again, other = (draw_iteration(configuration, 9, generator(1, 0, step)) for step in (9, 9, 10))
    for one, two in zip((*first.batch, *first[1:]), (*again.batch, *again[1:]), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.memory[:, :2], other.memory[:, :2])
    assert draw_iteration(configured("m1d1", Recipe(cell_dropout=0)), 9, generator(1, 0)).cell_mask is None


def test_an_iteration_draws_what_the_network_has():
    batch, memory, cell_mask = draw_iteration(load_configuration("f1d1"), 9, generator(1, 0))
    assert memory.shape[::2] == (16, 20)
    assert cell_mask is None
    batch, *nothing = draw_iteration(load_configuration("l1d1"), 9, generator(1, 0))
    assert batch.inputs.shape[1:] == (16, 10)
    assert nothing == [None, None]


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
    norm, after = clipped(clipper, 1e30, 1.0)  # of which the square is more than a float32 holds
    assert norm == pytest.approx(1e30 * 3**0.5, rel=1e-6)
    assert after == pytest.approx(3 * math.exp(before), rel=1e-4)
    assert math.isinf(clipped(clipper, float("inf"), 1.0)[0])
    never = Clipper(Recipe(clip_typical=0.0))
    assert [clipped(never, value, value)[1] for value in (0.1, 10.0)] == pytest.approx([0.1 * 5**0.5, 10 * 5**0.5])
    assert math.isinf(clipped(never, 1e30, 1.0)[0])  # what is not cut would stay in Adam's mean of squares for good
    by_value = Clipper(Recipe(clip_typical=0.0, clip_value=2.0))
    assert clipped(by_value, 10.0, -10.0)[1] == pytest.approx(2 * 5**0.5)


@pytest.mark.parametrize("name", PAPER)
def test_a_configuration_of_the_paper_trains_on_its_range_and_nothing_else(name):
    configuration = load_configuration(name)
    data, task = configuration.data, configuration.task
    kind = {"": "lstm", "_ff": "feedforward", "_lstm": None}[name.removeprefix(data.name)]
    assert getattr(configuration.network, "controller", None) == kind
    steps = set()
    for step in range(configuration.recipe.num_iters - 60, configuration.recipe.num_iters):
        batch, memory, _ = draw_iteration(configuration, step, generator(0, 0, step))
        assert batch.inputs.shape[2] == task.input_size
        assert batch.targets.shape[2] == task.output_size
        assert (memory is None) == (kind is None)
        steps.add(len(batch.inputs))
    smallest, largest = (len(task.sample(1, size, generator(0, 0)).inputs) for size in (data.low, data.high))
    assert smallest <= min(steps)
    assert max(steps) <= largest
    first = largest_size(configuration.recipe, data, 0)
    assert all(low <= part <= high for low, part, high in zip(data.low, first, data.high, strict=True))


def test_heads_begin_by_location():
    models = []
    for bias in (0.0, -3.0):
        torch.manual_seed(1)
        models.append(configured("m1d1", Recipe(gate_bias=bias)).make_model())
    without, model = (dict(m.named_parameters()) for m in models)
    name, sizes = "heads.control_proj.bias", models[0].heads.sizes
    moved = [d.unique().tolist() for d in (model[name] - without[name]).round(decimals=5).split(sizes)]
    assert moved == [[0], [0], [-3], [0], [0], [0], [0]]
    assert all(torch.equal(without[key], model[key]) for key in model if key != name)


def test_blank_rows_are_as_the_machine_makes_them(monkeypatch):
    monkeypatch.setattr("experiment.training.initial_memory", lambda b, n, m, like: torch.full((b, n, m), 0.5))
    assert (draw_memory(Recipe(dirty=0), 7, 3, generator(0, 0)) == 0.5).all()
