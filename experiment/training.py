"""The recipe at work: optimizer, learning rate, and what each iteration trains on."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiment.configuration import Configuration, Data, Network, Recipe
from experiment.errors import InputError
from experiment.path_check import compare_optimizers
from experiment.scoring import dirty_memory
from experiment.task_check import sound
from ntm.memory import initial_memory
from tasks import Batch

SPARE_ROWS = 2  # a batch's tape is the rows of memory that it gets: the tightest has so many more than it needs


def make_optimizer(recipe: Recipe, weights: Tensor, fused: bool) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), or the paper's RMSprop (Graves 2013).

    Args:
        recipe: which one, and its numbers.
        weights: as `NTM.flatten_parameters` gives them.
        fused: whether the model runs on the fused path, and so may AdamW. Another optimizer, and an option that the
            compiled one has not, is PyTorch's own.

    Raises:
        InputError: as in `compare_optimizers`.
    """
    if recipe.optimizer == "adam":
        betas = recipe.beta1, recipe.beta2
        optimizer = torch.optim.AdamW([weights], recipe.lr, betas, recipe.eps, recipe.weight_decay, fused=True)
        if not fused:
            return optimizer
        from ntm.fused import FusedAdamW  # here, so that the reference path does without Numba

        compiled = FusedAdamW.in_place_of(optimizer)
        if compiled:
            compare_optimizers()
        return compiled or optimizer
    # Graves adds 1e-4 under the root, for a loss that is the sum over all bits; ours is their mean, a hundredth of it.
    return torch.optim.RMSprop([weights], recipe.lr, recipe.alpha, eps=1e-4, momentum=recipe.momentum, centered=True)


def learning_rate(recipe: Recipe, cells: int, step: int) -> float:
    """The rate of an iteration: constant, or half a cosine down to 0; lower with more cells.

    Adam moves each weight by about the rate; so the more weights a cell sums up, the more that changes.
    """
    lr = recipe.lr * (math.sqrt(recipe.lr_cells / cells) if recipe.lr_cells else 1)
    if recipe.lr_schedule == "cosine":
        lr *= 0.5 * (1 + math.cos(math.pi * step / recipe.num_iters))
    elif recipe.lr_schedule != "constant":
        raise NotImplementedError(f"there is no schedule {recipe.lr_schedule!r} in experiment/training.py")
    return lr


def resume_optimizer(
    optimizer: torch.optim.Optimizer, stored: dict[str, Any], made: list[dict[str, Any]] | None
) -> None:
    """Give an optimizer the state of a checkpoint, and the options that its run has set since it began.

    One with which it is made otherwise than then, by an edit of the code, stays as it is made now; so does the learning
    rate, which each iteration sets.

    Args:
        stored: its `state_dict` in the checkpoint.
        made: its groups when that run began; None of an older checkpoint.

    Raises:
        ValueError, RuntimeError: it has other groups or tensors.
    """
    groups = []
    now = optimizer.state_dict()["param_groups"]
    for own, old, first in zip(now, stored["param_groups"], made or [{}] * len(now), strict=True):
        as_made = {key for key in old if key not in own or own[key] == first.get(key)} - {"lr", "lr_set_here"}
        groups.append(own | {key: old[key] for key in as_made | {"params"}})
    optimizer.load_state_dict({"state": stored["state"], "param_groups": groups})


def set_learning_rate(recipe: Recipe, cells: int, step: int, optimizer: torch.optim.Optimizer) -> float:
    """Set the rate of an iteration, and return it.

    Raises:
        InputError: another one has been set since the last, by a scheduler or for a group, and this would undo it.
    """
    lr = learning_rate(recipe, cells, step)
    for group in optimizer.param_groups:
        if group["lr"] != group.get("lr_set_here", recipe.lr):
            raise InputError(
                f"a learning rate of {group['lr']:g} was set on the optimizer, and each iteration sets that of "
                "`learning_rate` in experiment/training.py: change it there"
            )
        group["lr"] = group["lr_set_here"] = lr
    return lr


def blur_cost(recipe: Recipe, step: int) -> float:
    """What blur costs at an iteration: it grows linearly from 0, since a head must blur to learn where to go."""
    return recipe.blur_cost * step / recipe.num_iters


def cell_dropout(recipe: Recipe, step: int) -> float:
    """The chance that a cell forgets at an iteration: it falls linearly to 0 over the second half.

    While a machine looks for a way, cells that forget keep it from storing the sequence in its controller. Once it has
    one, they make it forget whether it reads or answers: a wrong answer, and a gradient that may undo what was learned.
    """
    return recipe.cell_dropout * min(1.0, 2 * (1 - step / recipe.num_iters))


def largest_size(recipe: Recipe, data: Data, step: int) -> tuple:
    """The curriculum: the largest size grows linearly over the first `curriculum` share of the iterations."""
    growing = recipe.curriculum * recipe.num_iters
    if step >= growing:
        return data.high
    starts = (min(max(first, low), high) for first, low, high in zip(data.task.first, data.low, data.high, strict=True))
    return data.task.Size(
        *(round(start + (high - start) * step / growing) for start, high in zip(starts, data.high, strict=True))
    )


def draw_size(data: Data, largest: tuple, source: torch.Generator) -> tuple:
    """Draw a size, each part of it evenly from its range."""
    ends = zip(data.low, largest, strict=True)
    return data.task.Size(*(int(torch.randint(low, high + 1, (), generator=source)) for low, high in ends))


def draw_rows(recipe: Recipe, needed: int, longest: int, memory_units: int, source: torch.Generator) -> int:
    """Draw how many rows of memory a batch gets.

    Half the batches get the tightest tape: no rows to wander on, and none on which a write head could wait. The others
    get one between that of the largest size and the configured memory, uniform in the logarithm, so that a head that
    looks by content has many rows to tell apart. No weight depends on the number of rows.

    Args:
        needed, longest: what `Task.rows_needed` says of the batch's size, and of the largest.
    """
    tight, where = torch.rand(2, generator=source).tolist()
    if recipe.full_tape:
        return memory_units
    if tight < 0.5:
        return min(needed + SPARE_ROWS, memory_units)
    shortest = min(longest + SPARE_ROWS, memory_units)
    return round(shortest * (memory_units / shortest) ** where)


def draw_memory(recipe: Recipe, rows: int, width: int, source: torch.Generator) -> Tensor:
    """Draw M_0 of a batch, (B, N, M): a share `dirty` of its sequences begins on a dirty memory, the others on a blank.

    Dirt is normal, of a standard deviation that each sequence draws evenly from (0, `dirt`). What it is for:
    docs/recipe.md.
    """
    dirty = np.flatnonzero(torch.rand(recipe.batch_size, generator=source).numpy() < recipe.dirty)
    deviation = recipe.dirt * torch.rand(len(dirty), generator=source)
    blank = initial_memory(recipe.batch_size, rows, width, like=deviation).transpose(1, 2)
    memory = np.array(blank.numpy(), order="C")  # rows last, as in `dirty_memory`
    memory[dirty] = dirty_memory(deviation, rows, width, source).transpose(1, 2).numpy()
    return torch.from_numpy(memory).transpose(1, 2)


def draw_mask(probability: float, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """Draw true with a probability, to 1 in 65,536, else false.

    Sixteen random bits each: a sixth of the time of `Tensor.bernoulli_`, which is noticed beside the fused path.
    """
    count, limit = math.prod(shape), round(probability * 2**16) - 2**15
    if abs(limit) == 2**15:  # never, or always; and a limit that is no int16
        return torch.full(shape, limit > 0)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=source)
    return torch.from_numpy((words.numpy().view(np.int16)[:count] < limit).reshape(shape))


class Iteration(NamedTuple):
    """What one iteration trains on. An LSTM alone has no memory, a feed-forward controller no cells."""

    batch: Batch
    memory: Tensor | None  # M_0 (B, N, M)
    cell_mask: Tensor | None  # false where a cell of the controller is made to forget (T, B, C)

    def to(self, device: torch.device) -> "Iteration":
        """Copy to a device."""
        return Iteration(*(None if part is None else part.to(device) for part in self))


def draw_iteration(configuration: Configuration, step: int, source: torch.Generator) -> Iteration:
    """Draw what an iteration trains on: sequences of one size, each with its memory, and which cells forget."""
    recipe, data, network, task = configuration.recipe, configuration.data, configuration.network, configuration.task
    largest = largest_size(recipe, data, step)
    size = draw_size(data, largest, source)
    has_memory, rows = isinstance(network, Network), 0
    if has_memory:
        rows = draw_rows(recipe, task.rows_needed(size), task.rows_needed(largest), network.memory_units, source)
    uneven = (recipe.uneven,) if recipe.uneven else ()  # not every task can be
    batch = sound(task.sample(recipe.batch_size, size, source, *uneven), recipe.batch_size, task, size)
    if not has_memory:
        return Iteration(batch, None, None)
    memory = draw_memory(recipe, rows, network.memory_unit_size, source)
    cells = *batch.inputs.shape[:2], network.controller_size
    forgets = recipe.cell_dropout > 0 and "cells" in network.has
    return Iteration(batch, memory, draw_mask(1 - cell_dropout(recipe, step), cells, source) if forgets else None)


class Clipper:
    """Clips gradients by value, and down to a multiple of their typical norm, each where the recipe says so.

    A machine that has learned has gradients of norm 0.01, and once in a thousand iterations one of norm 100: a head
    between two rows multiplies a gradient at each time step that it stays there. So the norm is held below
    `clip_typical` times its running geometric mean (after AutoClip, Seetharaman et al. 2020). The mean is of the norms
    as they were clipped: a burst of spikes does not raise the limit for those to come.

    Attributes:
        log_typical: logarithm of the running mean; None before the first iteration. The state to keep in a checkpoint.
    """

    DECAY = 0.99  # of the running mean: it looks back about a hundred iterations

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.log_typical: float | None = None

    def clip(self, gradient: Tensor) -> float:
        """Clip a gradient in place; returns its norm, as it was before its norm was clipped."""
        if self.recipe.clip_value > 0:
            gradient.clamp_(-self.recipe.clip_value, self.recipe.clip_value)
        norm = torch.linalg.vector_norm(gradient).item()
        typical = None if self.log_typical is None or self.recipe.clip_typical == 0 else math.exp(self.log_typical)
        if math.isinf(norm) and typical is not None:  # of finite elements, perhaps, whose squares no float32 holds
            norm = torch.linalg.vector_norm(gradient, dtype=torch.float64).item()
        kept = norm if typical is None else min(norm, self.recipe.clip_typical * typical)
        if kept < norm:
            gradient.mul_(kept / norm)
        if kept > 0 and math.isfinite(norm):
            last = math.log(kept) if self.log_typical is None else self.log_typical
            self.log_typical = self.DECAY * last + (1 - self.DECAY) * math.log(kept)
        return norm
