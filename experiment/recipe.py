"""How a network is trained: each setting declared once, with its default, its bounds and its help text."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiment.errors import Bounds, InputError

OPTIMIZERS = ("adam", "rmsprop")


def setting(default: Any, help: str, low: float = 0, high: float = math.inf, **more: Any) -> Any:
    """Declare a field of `Recipe`.

    Args:
        default: its value where nothing else is said.
        help: what it is, for `train.py -h`.
        low, high: the least and the greatest number allowed.
        more: `above`, true where `low` itself is not allowed; `choices`, the strings allowed; `optimizer`, the only one
            that the setting belongs to; `needs`, what a machine must have for it, "memory" or "cells"; `section`, the
            title in `train.py -h` of this setting and those after it.
    """
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, **more})


@dataclass(frozen=True)
class Recipe:
    """How a run trains; every field is a flag of train.py.

    A new part of the recipe is a field here, its use (docs/extending.md says where), and a line in
    `reproduce.ABLATIONS`.
    """

    batch_size: int = setting(16, "sequences an iteration", 1, 100_000)
    num_iters: int = setting(5_000, "iterations", 1, 10**9)
    seed: int = setting(0, "everything random follows from it", 0, 2**63 - 1)
    optimizer: str = setting("adam", "which one", choices=OPTIMIZERS, section="the optimizer")
    lr: float = setting(2e-3, "learning rate", above=True)
    lr_cells: int = setting(
        100, "lr is for this many cells of the controller; with C, it is lr * sqrt(this / C); 0: always lr", 0, 10**9
    )
    lr_schedule: str = setting("cosine", "how the rate goes on: half a cosine down to 0, or constant",
                               choices=("cosine", "constant"))  # fmt: skip
    beta1: float = setting(0.8, "decay of the gradient's mean", 0, 0.999999, optimizer="adam")
    beta2: float = setting(0.999, "decay of its square's mean", 0, 0.999999, optimizer="adam")
    eps: float = setting(1e-8, "gradients well below this hardly move a weight", above=True, optimizer="adam")
    weight_decay: float = setting(0.0, "decoupled weight decay", optimizer="adam")
    momentum: float = setting(0.9, "momentum", 0, 0.999999, optimizer="rmsprop")
    alpha: float = setting(0.95, "decay of the squared gradient's mean", 0, 0.999999, optimizer="rmsprop")
    clip_typical: float = setting(2.0, "clip the gradient's norm to this many times its typical one; 0: off")
    clip_value: float = setting(0.0, "clip each element of the gradient; 0: off")
    dirty: float = setting(
        0.5, "share of sequences that begin on a dirty memory", 0, 1, needs="memory", section="the recipe"
    )
    dirt: float = setting(
        2.0, "largest standard deviation of the numbers in a dirty memory; each sequence draws its own", needs="memory"
    )
    blur_cost: float = setting(
        0.2,
        "weight in the loss of the mean blur of w~ (eq. 8, before sharpening); grows from 0 to this",
        needs="memory",
    )
    cell_dropout: float = setting(
        0.25,
        "chance that a cell of an LSTM controller is set to 0, at each step; falls to 0 over the second half",
        0,
        0.999999,
        needs="cells",
    )
    gate_bias: float = setting(
        -2.0,
        "added to the bias of the heads' interpolation gates (eq. 7) at the start: below 0, they begin by location",
        -100,
        100,
        needs="memory",
    )
    uneven: float = setting(
        0.5,
        "share of sequences that are uneven: with vectors nearly empty, nearly full or repeated, or items alike",
        0,
        1,
    )
    full_tape: bool = setting(False, "always train on all rows of memory", needs="memory")
    curriculum: float = setting(1.0, "share of iterations in which sizes grow", 0, 1)


OPTIMIZER_SETTINGS = {field.name for field in dataclasses.fields(Recipe) if "optimizer" in field.metadata}


def bounds(field: dataclasses.Field) -> Bounds:
    """What a field of `Recipe` that is a number may be."""
    return Bounds(field.type, field.metadata["low"], field.metadata["high"], field.metadata.get("above", False))


def make_recipe(settings: dict[str, Any], source: str) -> Recipe:
    """Make a recipe of some settings, each of its field's type; the others have their defaults.

    Raises:
        InputError: one is impossible; the message begins with `source` and its name.
    """
    for field in dataclasses.fields(Recipe):
        value, choices = settings.get(field.name, field.default), field.metadata.get("choices")
        if choices and value not in choices:
            raise InputError(f"{source}{field.name} is {value!r}; allowed are {', '.join(choices)}")
        if field.type in (int, float) and not bounds(field).hold(value):
            raise InputError(f"{source}{field.name} is {value!r}; allowed is {bounds(field)}")
    return Recipe(**settings)


def settings_in_use(recipe: Recipe, has: set[str]) -> dict[str, Any]:
    """The settings that do something: those of its optimizer, on a machine that has "memory", "cells" or neither."""
    return {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(Recipe)
        if field.metadata.get("optimizer", recipe.optimizer) == recipe.optimizer
        and field.metadata.get("needs") in {None, *has}
    }


def useless(given: dict[str, Any], recipe: Recipe, has: set[str], name: str, source: str) -> Iterator[str]:
    """Name the settings that would do nothing: of another optimizer, or for want of a memory or of LSTM cells.

    Args:
        given: the settings that somebody gave.
        recipe: with them.
        has: what the machine has of "memory" and "cells".
        name: of the configuration.
        source: what a message begins with.

    Yields:
        A message for each.
    """
    for field in dataclasses.fields(Recipe):
        owner, needs = field.metadata.get("optimizer", recipe.optimizer), field.metadata.get("needs")
        if field.name in given and owner != recipe.optimizer:
            yield f"{source}{field.name}: is a setting of {owner}; this run uses {recipe.optimizer}"
        if given.get(field.name) and needs and needs not in has:
            what = {"memory": "memory", "cells": "cells of an LSTM controller"}[needs]
            yield f"{source}{field.name}: would do nothing, since {name} has no {what}"
    if "dirt" in given and recipe.dirty == 0:
        yield f"{source}dirt: would do nothing, since dirty is 0"
