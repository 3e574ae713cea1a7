"""tasks/ngram.py: its source, and the optimal estimator against exact enumeration."""

import itertools
import math

import pytest
import torch
from conftest import shown

from experiment.scoring import generator, sample_sizes, score, sequence_bits
from tasks.copy import Copy
from tasks.ngram import NGram
from tasks.vectors import Length


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
