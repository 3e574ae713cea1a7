"""The recipe at work: optimizer, learning rate, lengths and tapes at each iteration."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from experiment.configuration import Data, Recipe

SPARE_ROWS = 4  # the tightest tape has this many rows more than the longest sequence
FIRST_LENGTH = 3  # where the curriculum begins


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), or RMSprop as in the paper."""
    if recipe.optimizer == "adam":
        betas = recipe.beta1, recipe.beta2
        return torch.optim.AdamW(parameters, recipe.lr, betas, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.RMSprop(parameters, recipe.lr, recipe.alpha, momentum=recipe.momentum)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate at `step` of `num_iters`: constant, or half a cosine from `lr` down to 0."""
    if recipe.lr_schedule == "constant":
        return recipe.lr
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * step / recipe.num_iters))


def longest_length(recipe: Recipe, data: Data, step: int) -> int:
    """The curriculum: the longest length grows linearly over the first `curriculum` share of the iterations."""
    growing = recipe.curriculum * recipe.num_iters
    if step >= growing:
        return data.max_seq_len
    first = min(max(FIRST_LENGTH, data.min_seq_len), data.max_seq_len)
    return round(first + (data.max_seq_len - first) * step / growing)


def draw_length_and_tape(
    recipe: Recipe, data: Data, memory_units: int, step: int, source: torch.Generator
) -> tuple[int, int]:
    """Draw a batch's length, and the rows of memory that it gets.

    A tape hardly longer than the longest sequence punishes a machine that wanders; longer ones keep content addressing
    honest. So half the batches get the tightest tape, the others one between it and the configured memory, uniform in
    the logarithm. No weight depends on the number of rows.
    """
    longest = longest_length(recipe, data, step)
    length = int(torch.randint(data.min_seq_len, longest + 1, (), generator=source))
    tight, where = torch.rand(2, generator=source).tolist()
    tightest = min(longest + SPARE_ROWS, memory_units)
    if recipe.full_tape:
        return length, memory_units
    if tight < 0.5:
        return length, tightest
    return length, round(tightest * (memory_units / tightest) ** where)


def clip_gradients(recipe: Recipe, parameters: list[nn.Parameter]) -> float:
    """Clip by value, then by norm, each where the recipe says so (0: off); returns the norm before clipping by norm."""
    if recipe.clip_value > 0:
        nn.utils.clip_grad_value_(parameters, recipe.clip_value)
    return nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf).item()
