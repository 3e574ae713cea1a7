"""experiment/run.py: what is said of a model at the end of its run."""

import re

import pytest
import torch

from experiment.run import verdict
from experiment.scoring import summarise


def scored(wrong: int, of: int, cost: float = 0.0):
    return summarise([0.0], [cost], [torch.tensor([3.0] * wrong + [0.0] * (of - wrong))])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (0, "1000 of 1000 held-out sequences of trained sizes are right"),
        (
            1,
            "999 of 1000 .* are right \\(0.003 wrong bits a sequence\\): it has nearly learned; more -num_iters may do",
        ),
        (50, "950 of 1000 .* \\(0.15 wrong bits a sequence\\): it has nearly learned; more -num_iters may do"),
        (51, "949 of 1000 .* a sequence\\): it has not learned; try another -seed, or more -num_iters"),
        (1000, "0 of 1000 .* \\(3 wrong bits a sequence\\): it has not learned; try another -seed.*"),
    ],
)
def test_a_run_says_whether_it_has_learned(wrong, said):
    assert re.fullmatch(said, verdict(scored(wrong, 1000)))


@pytest.mark.parametrize(("cost", "learned"), [(100.0, True), (104.9, True), (105.1, False)])
def test_where_the_optimum_is_wrong_at_times_a_run_is_measured_by_it(cost, learned):
    said = verdict(scored(7, 10, cost), 100.0)
    assert said.startswith(f"{cost:.2f} bits for a held-out sequence, {cost / 100 - 1:.2%} above the optimal predictor")
    assert said.endswith("above the optimal predictor") == learned
    assert ("it has not learned" in said) != learned
