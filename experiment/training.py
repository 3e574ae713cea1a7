"""The recipe at work: optimizer, learning rate, lengths and tapes at each iteration."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from experiment.configuration import Data, Recipe
from ntm import FREE, NTM, Costs
from tasks import Batch, Task

SPARE_ROWS = 2  # the tightest tape has this many rows more than a batch's sequences have vectors
FIRST_LENGTH = 10  # where the curriculum begins: from shorter ones, the machine may put two vectors on one row


def make_optimizer(recipe: Recipe, weights: Tensor, fused: bool) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), or the paper's RMSprop (Graves 2013).

    Args:
        recipe: which one, and its numbers.
        weights: as `NTM.flatten_parameters` gives them.
        fused: whether the model runs on the fused path, and so may Adam.
    """
    if recipe.optimizer == "adam":
        numbers = recipe.lr, (recipe.beta1, recipe.beta2), recipe.eps, recipe.weight_decay
        if not fused:
            return torch.optim.AdamW([weights], *numbers, fused=True)
        from experiment.adam import CompiledAdamW  # here, so that the readable path does without Numba

        return CompiledAdamW([weights], *numbers)
    # Graves adds 1e-4 under the root, for a loss that is the sum over all bits; ours is their mean, a hundredth of it.
    return torch.optim.RMSprop([weights], recipe.lr, recipe.alpha, eps=1e-4, momentum=recipe.momentum, centered=True)


def blind_share(recipe: Recipe, step: int) -> float:
    """The share of sequences without content addressing: `content_dropout`, then, with `weaning`, rising to 1."""
    if not (recipe.content_dropout and recipe.weaning):
        return recipe.content_dropout
    return min(1.0, max(recipe.content_dropout, step / (recipe.weaning * recipe.num_iters)))


def set_schedule(recipe: Recipe, step: int, found: bool, optimizer: torch.optim.Optimizer, model: NTM) -> float:
    """Set what a step's training takes: the learning rate, which is returned, and the model's regularisers.

    The rate is constant, or half a cosine down to 0.
    What keeps heads from looking by content waits until the tape is `found`: before, it hides the rows that the machine
    has yet to learn to use.
    """
    falling = 0.5 * (1 + math.cos(math.pi * step / recipe.num_iters))
    lr = recipe.lr if recipe.lr_schedule == "constant" else recipe.lr * falling
    for group in optimizer.param_groups:
        group["lr"] = lr
    now = found or recipe.content_at_once
    model.content_dropout = blind_share(recipe, step) if now else 0.0
    model.costs = Costs(recipe.content_cost, recipe.blur_cost) if now else FREE
    return lr


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what an NTM's dropout draws from on a device; `torch.manual_seed`, which seeds all devices, is slow."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def longest_length(recipe: Recipe, data: Data, step: int) -> int:
    """The curriculum: the longest length grows linearly over the first `curriculum` share of the iterations."""
    growing = recipe.curriculum * recipe.num_iters
    if step >= growing:
        return data.max_seq_len
    first = min(max(FIRST_LENGTH, data.min_seq_len), data.max_seq_len)
    return round(first + (data.max_seq_len - first) * step / growing)


def draw_batch(
    recipe: Recipe, data: Data, task: Task, memory_units: int, step: int, source: torch.Generator
) -> tuple[Batch, int]:
    """Draw a training batch of one length, and the rows of memory that it gets.

    A tape hardly longer than the sequence punishes a machine that wanders, or that parks its write head on whatever
    rows are blank; longer ones keep content addressing honest. So half the batches get the tightest tape, the others
    one between that of the longest sequence and the configured memory, uniform in the logarithm. No weight depends on
    the number of rows.
    """
    longest = longest_length(recipe, data, step)
    length = int(torch.randint(data.min_seq_len, longest + 1, (), generator=source))
    tight, where = torch.rand(2, generator=source).tolist()
    if recipe.full_tape:
        rows = memory_units
    elif tight < 0.5:
        rows = min(length + SPARE_ROWS, memory_units)
    else:
        shortest = min(longest + SPARE_ROWS, memory_units)
        rows = round(shortest * (memory_units / shortest) ** where)
    return task.sample(recipe.batch_size, length, source, recipe.uneven), rows


class Progress:
    """Follows a run by its own training loss: when it finds the tape, and whether it loses it again.

    Until the tape is found, the controller holds what it can in its own cells, and the loss falls slowly; with the tape
    it falls to nearly nothing within some hundred iterations. Afterwards a run may still fall apart: a head between two
    rows passes on a gradient that may be a thousand times the usual one, and clipping bounds the step, not its
    direction. Then the machine goes back to when it last was sure. That costs only the iterations since: the batches to
    come are others.

    Some machines do not get there: their read head rests while they read and jumps to the last vector by content. With
    content dropout their training loss says so, and after `restart_after` iterations they start over.

    Attributes:
        state: for a checkpoint: the iteration at which this attempt began, and how many there were before; the sum of
            losses since the last look, the iteration at which the tape was found, and from the best look since then
            its mean loss, weights and optimizer.
    """

    EVERY = 100  # iterations between looks
    FOUND = 0.05  # a mean loss below this needs the tape
    LEARNED = 0.01  # one below this needs heads that walk; it is worth going back to, the latest as much as the best
    MOST_RESTARTS = 4

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.state: dict[str, Any] = {"began": 0, "restarts": 0, "sum": 0.0, "found": None, "best": None}

    @property
    def began(self) -> int:
        """The iteration at which this attempt began: 0, but for a machine that started over."""
        return self.state["began"]

    @property
    def end(self) -> int:
        """The iteration at which the run ends."""
        return self.began + self.recipe.num_iters

    @property
    def found(self) -> bool:
        """Whether the tape has been found."""
        return self.state["found"] is not None

    def see(self, step: int, loss: float, model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
        """Take in an iteration's loss; at a look, keep model and optimizer, or take them back; returns what to log."""
        self.state["sum"] += loss
        if step % self.EVERY:
            return None
        mean, best = self.state["sum"] / self.EVERY, self.state["best"]
        self.state["sum"] = 0.0
        if not self.found:
            if mean < self.FOUND:
                self.state["found"] = step
                return f"iteration {step}: the tape is found"
        elif best is None or mean <= max(best["loss"], self.LEARNED):
            now = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            self.state["best"] = {"loss": mean, **copy.deepcopy(now)}
        elif self.recipe.rollback and best["loss"] < self.LEARNED and mean > self.recipe.rollback:
            model.load_state_dict(best["model"])
            optimizer.load_state_dict(copy.deepcopy(best["optimizer"]))
            return f"iteration {step}: what was learned was lost; back to the last weights from before"
        return None

    def stuck(self, step: int) -> bool:
        """Whether this attempt has had its time and not learned."""
        best, restarts = self.state["best"], self.state["restarts"]
        learned = best is not None and best["loss"] < self.LEARNED
        had_its_time = step - self.began == self.recipe.restart_after  # never, where that is 0
        return had_its_time and step < self.end and not learned and restarts < self.MOST_RESTARTS

    def start_over(self, step: int) -> None:
        """Begin the next attempt."""
        self.state = {**Progress(self.recipe).state, "began": step, "restarts": self.state["restarts"] + 1}


class Best:
    """Keeps the model with the fewest wrong bits in a held-out set, the later of two that are equal.

    Attributes:
        state: its step, bits and weights, for a checkpoint; None before the first.
    """

    RIGHT, COLLAPSED = 0.1, 1.0  # wrong bits a sequence: below the one, and later above the other, is a collapse

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def see(self, step: int, bits: float, model: nn.Module) -> str | None:
        """Compare the model at a step, with its wrong bits a sequence; returns a warning if it has collapsed."""
        if self.state is None or bits <= self.state["bits"]:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self.state = {"step": step, "bits": bits, "model": weights}
        elif self.state["bits"] < self.RIGHT and bits > self.COLLAPSED:
            return f"iteration {step}: what was learned at iteration {self.state['step']} is lost again"
        return None


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

    def clip(self, gradient: Tensor) -> float:
        """Clip a gradient in place; returns its norm before clipping by norm."""
        recipe = self.recipe
        if recipe.clip_value > 0:
            gradient.clamp_(-recipe.clip_value, recipe.clip_value)
        norm = torch.linalg.vector_norm(gradient).item()
        limit = recipe.clip_norm or math.inf
        if self.log_typical is not None and recipe.clip_spike > 0:
            limit = min(limit, recipe.clip_spike * math.exp(self.log_typical))
        if norm > limit:
            gradient.mul_(limit / norm)
        if norm > 0 and math.isfinite(norm):
            log_norm = math.log(norm)
            last = log_norm if self.log_typical is None else self.log_typical
            self.log_typical = self.MEMORY * last + (1 - self.MEMORY) * log_norm
        return norm
