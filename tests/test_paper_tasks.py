"""The paper's five tasks: every rule of what they ask, and their configurations."""

import itertools
import math

import pytest
import torch

from experiment.configuration import MACHINES, PAPER, PAPER_TASKS, load_configuration
from experiment.scoring import generator, sample_sizes, score, sequence_bits
from experiment.training import draw_iteration, largest_size
from tasks import TASKS
from tasks.associative_recall import AssociativeRecall, Items
from tasks.copy import Copy
from tasks.ngram import NGram
from tasks.priority_sort import PrioritySort
from tasks.repeat_copy import LengthAndRepeats, RepeatCopy
from tasks.vectors import Length


def shown(batch, part):
    """The first sequence of a batch, channel by channel."""
    return getattr(batch, part)[:, 0].transpose(0, -1).tolist()


def test_copys_worked_example():
    batch = Copy(2).batch(torch.tensor([[[1.0, 0]], [[1, 1]]]))
    bits, marks = [[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]], [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert shown(batch, "inputs") == bits + marks
    assert shown(batch, "targets") == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert shown(batch, "mask") == [0, 0, 0, 0, 1, 1]


def test_repeat_copys_worked_example():
    batch = RepeatCopy(2, 10).batch(torch.tensor([[[1.0, 0]], [[1, 1]]]), 2)
    assert shown(batch, "inputs")[:3] == [[0, 1, 1, *[0] * 6], [0, 0, 1, *[0] * 6], [1, *[0] * 8]]
    assert shown(batch, "inputs")[3] == pytest.approx([0, 0, 0, -3.5 / math.sqrt(8.25), 0, 0, 0, 0, 0])
    assert shown(batch, "targets") == [[0, 0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0, 1, 0], [0] * 8 + [1]]
    assert shown(batch, "mask") == [0, 0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("largest", [2, 10])
def test_the_number_of_repeats_has_mean_0_and_variance_1_in_training(largest):
    numbers = torch.tensor([RepeatCopy(8, largest).normalised(n) for n in range(1, largest + 1)])
    assert numbers.mean() == pytest.approx(0, abs=1e-6)
    assert numbers.var(correction=0) == pytest.approx(1, rel=1e-5)


def test_recalls_worked_example():
    items = torch.tensor([[1.0, 0], [0, 0], [1, 1]])[:, :, None, None]  # (3 items, 2 vectors, 1 sequence, 1 bit)
    batch = AssociativeRecall(1, 2).batch(items, torch.tensor([1]))
    assert shown(batch, "inputs") == [
        [0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0],
    ]
    assert shown(batch, "targets") == [[0] * 14 + [1, 1]]
    assert shown(batch, "mask") == [0] * 14 + [1, 1]


def items_and_query(batch, task, count):
    """Cut a batch of recall into items (K, B, item_len * width), the query and the answer, by its marks."""
    n, width = task.item_len, task.seq_width
    starts = torch.nonzero(batch.inputs[:, 0, width])[:, 0].tolist()
    assert starts == [k * (n + 1) for k in range(count + 1)]
    bits = batch.inputs[..., :width]
    items = torch.stack([bits[s + 1 : s + 1 + n].transpose(0, 1).flatten(1) for s in starts[:-1]])
    first, last = torch.nonzero(batch.inputs[:, 0, width + 1])[:, 0].tolist()
    assert (first, last) == (starts[-1] + 1, starts[-1] + n + 2)
    return (
        items,
        bits[first + 1 : last].transpose(0, 1).flatten(1),
        batch.targets[last + 1 :].transpose(0, 1).flatten(1),
    )


@pytest.mark.parametrize("count", [2, 6, 20])
def test_recall_asks_for_any_item_but_the_last_and_wants_the_one_after_it(count):
    task = AssociativeRecall(6, 3)
    batch = task.sample(500, Items(count), torch.Generator().manual_seed(0))
    items, query, answer = items_and_query(batch, task, count)
    asked = (items == query).all(-1)
    assert torch.equal(asked.sum(0), torch.ones(500, dtype=torch.long))  # items differ, so the query is one of them
    places = asked.int().argmax(0)
    assert sorted(set(places.tolist())) == list(range(count - 1))
    assert torch.equal(items[places + 1, torch.arange(500)], answer)
    assert torch.equal(batch.mask.sum(0), torch.full((500,), 3.0))
    assert batch.inputs[batch.mask > 0].sum() == 0


def test_recall_of_tiny_items_does_not_look_for_ever_for_ones_that_differ():
    batch = AssociativeRecall(1, 1).sample(50, Items(6), torch.Generator().manual_seed(0))
    assert len(batch.inputs) == 6 * 2 + 5


def test_sorts_worked_example_and_ties():
    vectors = torch.tensor([[[1.0, 0]], [[1, 1]], [[0, 1]]])
    batch = PrioritySort(2, 2).batch(vectors, torch.tensor([[0.1], [-0.6], [0.8]]))
    assert shown(batch, "inputs")[:2] == [[0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]]
    assert shown(batch, "inputs")[2] == pytest.approx([0, 0.1, -0.6, 0.8, 0, 0, 0])
    assert shown(batch, "inputs")[3:] == [[1, *[0] * 6], [0, 0, 0, 0, 1, 0, 0]]
    assert shown(batch, "targets") == [[0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]
    assert shown(batch, "mask") == [0, 0, 0, 0, 0, 1, 1]
    tied = PrioritySort(2, 3).batch(vectors, torch.tensor([[0.5], [0.5], [0.5]]))
    assert tied.targets[5:, 0].tolist() == vectors[:, 0].tolist()


@pytest.mark.parametrize(("length", "answers"), [(20, 16), (3, 3)])
def test_sort_gives_the_highest_in_order(length, answers):
    batch = PrioritySort(8, 16).sample(40, Length(length), torch.Generator().manual_seed(0))
    vectors, priorities = batch.inputs[1 : length + 1, :, :8], batch.inputs[1 : length + 1, :, 8]
    assert -1 <= priorities.min() < -0.8
    assert 0.8 < priorities.max() <= 1
    for b in range(40):
        ranked = sorted(zip(priorities[:, b].tolist(), vectors[:, b].tolist(), strict=True), reverse=True)
        assert batch.targets[batch.mask[:, b] > 0, b].tolist() == [vector for _, vector in ranked[:answers]]
    assert torch.equal(batch.mask.sum(0), torch.full((40,), float(answers)))


def test_ngrams_worked_example():
    batch = NGram(1).batch(torch.tensor([[1.0], [0], [0], [1], [0]]))
    assert shown(batch, "inputs") == [[1, 0, 0, 1]]
    assert shown(batch, "targets") == [[0, 0, 1, 0]]
    assert shown(batch, "mask") == [1, 1, 1, 1]
    assert shown(NGram(5).batch(torch.zeros(9, 1)), "mask") == [0, 0, 0, 0, 1, 1, 1, 1]


def test_an_ngram_source_follows_a_table_of_beta_half_half():
    batch = NGram(2).sample(400, Length(4000), torch.Generator().manual_seed(0))
    bits = batch.inputs[..., 0]
    context = 2 * bits[:-1] + bits[1:]
    shares = []
    for c in range(4):
        here = context == c
        count, ones = here.sum(0), (batch.targets[1:, :, 0] * here).sum(0)
        shares.append((ones / count)[count > 300])
        half = len(here) // 2
        ones_here = batch.targets[1:, :, 0] * here
        early, late = ones_here[:half].sum(0) / here[:half].sum(0), ones_here[half:].sum(0) / here[half:].sum(0)
        often = (here[:half].sum(0) > 500) & (here[half:].sum(0) > 500)
        assert (early - late)[often].abs().quantile(0.9) < 0.1  # the same rule throughout a sequence
    shares = torch.cat(shares)
    # Beta(1/2, 1/2) has mean 1/2, variance 1/8, and a third of its mass below 1/4 (the arcsine law).
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(1 / 8, abs=0.02)
    assert (shares < 0.25).float().mean() == pytest.approx(1 / 3, abs=0.05)


def log_chance(bits, context):
    """ln P of all bits after the first `context`, with the table integrated out: a beta function a context, exactly."""
    counts = {}
    for t in range(context, len(bits)):
        seen = counts.setdefault(tuple(bits[t - context : t]), [0, 0])
        seen[bits[t]] += 1
    return sum(
        math.lgamma(n0 + 0.5) + math.lgamma(n1 + 0.5) - math.lgamma(n0 + n1 + 1) - 2 * math.lgamma(0.5)
        for n0, n1 in counts.values()
    )


@pytest.mark.parametrize("context", [1, 2])
def test_the_optimal_estimator_is_the_exact_one(context):
    # P(next = 1 | past) = P(past, 1) / (P(past, 0) + P(past, 1)), for every sequence of seven bits.
    for bits in itertools.product((0, 1), repeat=7):
        batch = NGram(context).batch(torch.tensor(bits, dtype=torch.float32).unsqueeze(1))
        estimate = NGram(context).optimal_probability(batch)[:, 0]
        for t in range(context, 7):
            zero, one = (math.exp(log_chance((*bits[:t], b), context)) for b in (0, 1))
            assert estimate[t - 1] == pytest.approx(one / (zero + one), rel=1e-5)
        exact = -log_chance(bits, context) / math.log(2)
        assert NGram(context).optimal_cost(batch).item() == pytest.approx(exact, rel=1e-4)


class Always(torch.nn.Module):
    """A model that answers what it is given."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.device = logits, torch.device("cpu")

    def initial_state(self, batch_size, memory_units):
        return ()

    def forward(self, inputs, state):
        return self.logits, state


def test_the_cost_of_a_score_is_in_bits_a_sequence():
    task = NGram(5)
    (batch,) = sample_sizes(task, [Length(200)], 8, generator(0, 1))
    p = task.optimal_probability(batch).unsqueeze(-1)
    result, _ = score(Always(torch.log(p / (1 - p))), task, [batch])
    assert result.cost == pytest.approx(task.optimal_cost(batch).mean().item(), rel=1e-4)
    even, _ = score(Always(torch.zeros_like(p)), task, [batch])
    assert even.cost == pytest.approx(196, rel=1e-6)  # a bit a bit, and the first four do not count
    copy = Copy(8).sample(2, Length(5), generator(0, 1))
    assert sequence_bits(math.log(2), copy) == pytest.approx(40)


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


def test_both_numbers_of_a_size_are_drawn_from_end_to_end():
    configuration = load_configuration("repeat_copy")
    task, drawn = configuration.task, set()
    for step in range(1500):
        batch = draw_iteration(configuration, 10**9, generator(1, 0, step)).batch
        length = int(torch.nonzero(batch.inputs[:, 0, task.seq_width + 1])[0]) - 1
        drawn.add((length, (len(batch.inputs) - length - 3) // length))
    assert {length for length, _ in drawn} == {repeats for _, repeats in drawn} == set(range(1, 11))
    assert {(1, 1), (1, 10), (10, 1), (10, 10)} <= drawn


def test_there_is_a_configuration_for_each_task_and_machine():
    assert set(PAPER_TASKS) | {"reverse"} == set(TASKS)
    assert len(PAPER) == len(PAPER_TASKS) * len(MACHINES) == 15
    assert LengthAndRepeats(3, 2)._fields == ("seq_len", "repeats")
