"""The recipe at work: optimizer, learning rate, lengths and tapes at each iteration."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from experiment.configuration import Data, Recipe
from ntm import NTM
from tasks import Batch, Task

SPARE_ROWS = 2  # the tightest tape has this many rows more than the sequence has vectors
FIRST_LENGTH = 3  # where the curriculum begins


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), or RMSprop as in the paper."""
    if recipe.optimizer == "adam":
        betas = recipe.beta1, recipe.beta2
        return torch.optim.AdamW(parameters, recipe.lr, betas, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.RMSprop(parameters, recipe.lr, recipe.alpha, momentum=recipe.momentum)


def falling(schedule: str, step: int, num_iters: int) -> float:
    """The share of the learning rate left at `step`: always 1 (constant), or half a cosine from 1 down to 0."""
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / num_iters))


def set_schedule(recipe: Recipe, step: int, optimizer: torch.optim.Optimizer, model: NTM) -> float:
    """Set the learning rate and the cell dropout of a step, which fall together; returns the rate."""
    share = falling(recipe.lr_schedule, step, recipe.num_iters)
    for group in optimizer.param_groups:
        group["lr"] = share * recipe.lr
    model.cell_dropout = share * recipe.cell_dropout
    return share * recipe.lr


def longest_length(recipe: Recipe, data: Data, step: int) -> int:
    """The curriculum: the longest length grows linearly over the first `curriculum` share of the iterations."""
    growing = recipe.curriculum * recipe.num_iters
    if step >= growing:
        return data.max_seq_len
    first = min(max(FIRST_LENGTH, data.min_seq_len), data.max_seq_len)
    return round(first + (data.max_seq_len - first) * step / growing)


def draw_tape(recipe: Recipe, length: int, longest: int, memory_units: int, source: torch.Generator) -> int:
    """Draw the rows of memory that a batch gets.

    Half the batches get hardly more rows than their sequences have vectors: with rows to spare, a machine that wanders,
    or that parks its write head on whatever rows are blank, is never punished. The others get up to the configured
    number, uniform in the logarithm, which keeps content addressing honest. No weight depends on the number of rows.
    """
    tight, where = torch.rand(2, generator=source).tolist()
    if recipe.full_tape:
        return memory_units
    if tight < 0.5:
        return min(length + SPARE_ROWS, memory_units)
    shortest = min(longest + SPARE_ROWS, memory_units)
    return round(shortest * (memory_units / shortest) ** where)


def draw_batch(
    recipe: Recipe, data: Data, task: Task, memory_units: int, step: int, source: torch.Generator
) -> tuple[Batch, int]:
    """Draw a training batch of one length, and the rows of memory that it gets."""
    longest = longest_length(recipe, data, step)
    length = int(torch.randint(data.min_seq_len, longest + 1, (), generator=source))
    rows = draw_tape(recipe, length, longest, memory_units, source)
    # Not while lengths grow: two vectors with little in them fit on one row, and a machine that begins so stays so.
    grown = step >= recipe.curriculum * recipe.num_iters
    uneven = torch.rand((), generator=source).item() < recipe.uneven and grown
    return task.sample(recipe.batch_size, length, source, uneven), rows


class Clipper:
    """Clips gradients by value, by norm, and down to a multiple of their typical norm, each where the recipe says so.

    A machine that has learned has gradients of norm 0.01, and once in a thousand steps one of norm 100. Cut to 1, that
    is still a blow that Adam deals to all weights at once, and from some the machine does not recover. So the norm is
    held below `clip_spike` times its running geometric mean as well (after AutoClip, Seetharaman et al. 2020).

    Attributes:
        log_typical: logarithm of the running mean; None before the first step. The state to keep in a checkpoint.
    """

    MEMORY = 0.99  # of the running mean: it looks back about a hundred steps

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.log_typical: float | None = None

    def clip(self, parameters: list[nn.Parameter]) -> float:
        """Clip the parameters' gradients in place; returns their norm before clipping by norm."""
        recipe = self.recipe
        if recipe.clip_value > 0:
            nn.utils.clip_grad_value_(parameters, recipe.clip_value)
        total = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        norm = total.item()
        limit = recipe.clip_norm or math.inf
        if self.log_typical is not None and recipe.clip_spike > 0:
            limit = min(limit, recipe.clip_spike * math.exp(self.log_typical))
        if norm > limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, total)
        if norm > 0 and math.isfinite(norm):
            log_norm = math.log(norm)
            last = log_norm if self.log_typical is None else self.log_typical
            self.log_typical = self.MEMORY * last + (1 - self.MEMORY) * log_norm
        return norm
