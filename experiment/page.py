"""A page of its own for a browser, with a trained model inside: one gives it sequences and watches the heads move."""

import base64
import hashlib
import inspect
import json
import sys
from pathlib import Path

from experiment.checkpoint import write_atomically
from experiment.configuration import Configuration
from experiment.errors import InputError
from experiment.scoring import EVALUATION, counts_each_bit, generator
from experiment.task_check import shown_size
from ntm import NTM, addressing, memory, stock
from tasks import Copy, Reverse, Task, VectorTask, label

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "/*SPEC*/null"  # where the template takes the model
SAMPLES = 8  # sequences that come with a page on which none can be typed
SHOWN_SIZE = 30  # each part of their size, or the nearest in training
FEWEST_ROWS, MOST_ROWS = 4, 256  # that the page shows
FIRST_ROWS = 32  # of a page on which sequences are typed
TYPED = Reverse, Copy  # tasks whose sequences are vectors, and can be typed
# Digests of what page.html has once more: the machine's equations, and the layout of these tasks' sequences.
MACHINE_MARK, TASK_MARK = "5458ab59dfadcc14", "7ab42bf7964c5e28"


def machine_mark() -> str:
    """A digest of the equations in ntm/, as the record of the fused path has them."""
    record = json.loads(stock.RECORD.read_text(encoding="utf-8"))
    parts = [record[file] for file in ("addressing", "memory", "heads", "controller")]
    return hashlib.sha256(json.dumps([*parts, record["ntm"]["NTM.step_with_focus"]]).encode()).hexdigest()[:16]


def task_mark() -> str:
    """A digest of the tasks whose sequences can be typed, and of the class that lays these out."""
    parts = [
        stock.digests(stock.definitions(inspect.getsource(sys.modules[kind.__module__])))
        for kind in (*TYPED, VectorTask)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def asks(task: Task) -> str:
    """What a task asks for, in a sentence: the first line of its docstring, with its parameters' values."""
    sentence, name = inspect.getdoc(type(task)).split("\n")[0], type(task).__name__
    if sentence.startswith(f"{name}("):  # it has none, and this is the signature that a dataclass puts there
        return name
    for name, value in vars(task).items():
        sentence = sentence.replace(f"`{name}`", str(value))
    return sentence


def samples(task: Task, size: tuple) -> list[dict[str, list]]:
    """Some sequences of a task: inputs and targets by step, null where no answer counts."""
    source, drawn = generator(0, EVALUATION), []
    for _ in range(SAMPLES):
        batch = task.sample(1, size, source)
        inputs, targets, mask = (part[:, 0].tolist() for part in batch)
        wanted = [target if counts else None for target, counts in zip(targets, mask, strict=True)]
        drawn.append({"inputs": inputs, "targets": wanted})
    return drawn


def page(model: NTM, configuration: Configuration, rows: int | None = None) -> str:
    """Make the page: the template, with the model's sizes and weights (float32, base64) in it.

    Args:
        rows: of memory at first; None for as many as the page chooses.

    Raises:
        InputError: heads of this machine begin elsewhere than on row 0, or its memory not as the page's does; the task
            counts wrong bits in a way of its own; or the page does not show so many or few rows.
    """
    if rows and not FEWEST_ROWS <= rows <= MOST_ROWS:
        raise InputError(f"-memory_units {rows}: the page shows {FEWEST_ROWS} to {MOST_ROWS} rows")
    data, task = configuration.data, configuration.task
    if not counts_each_bit(task, task.sample(2, data.high, generator(0, EVALUATION))):
        raise InputError(f"-page: counts wrong bits, and {data.name} does so in a way of its own")
    state = model.initial_state(1, 3)
    if state.weighting.unique(dim=1).tolist() != [[[1, 0, 0]]]:
        raise InputError("-page: knows heads that begin on row 0, and these begin elsewhere")
    if (state.memory != memory.INITIAL_VALUE).any():
        raise InputError("-page: knows a memory that is INITIAL_VALUE everywhere at first, and this one is not")
    weights = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    network = configuration.network
    typed = type(task) in TYPED and task_mark() == TASK_MARK  # else some sequences come with it
    size = None if typed else shown_size(configuration, SHOWN_SIZE)
    spec = {
        "name": configuration.name,
        "task": data.name.replace("_", " "),
        "asks": asks(task),
        "inputs": task.input_size,
        "outputs": task.output_size,
        "marks": list(getattr(task, "marks", ())),
        "reversed": typed and type(task) is Reverse,
        "samples": None if typed else samples(task, size),
        "trained": [label(data.low), label(data.high)],
        "longest": data.high[0],
        "rows": rows or (FIRST_ROWS if typed else min(max(network.memory_units, FEWEST_ROWS), MOST_ROWS)),
        "fewest_rows": FEWEST_ROWS,
        "most_rows": MOST_ROWS,
        "needed": None if typed else task.rows_needed(size),
        "shifts": list(addressing.SHIFTS),
        "width": network.memory_unit_size,
        "cells": network.controller_size,
        "heads": network.num_heads,
        "initial_value": memory.INITIAL_VALUE,
        "norm_epsilon": addressing.NORM_EPSILON,
        "log_epsilon": addressing.LOG_EPSILON,
        "weights": [[name, tensor.numel()] for name, tensor in weights.items()],
        "data": base64.b64encode(b"".join(t.numpy().astype("<f4").tobytes() for t in weights.values())).decode(),
    }
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, json.dumps(spec))


def write_page(model: NTM, configuration: Configuration, path: Path, rows: int | None = None) -> None:
    """Write the page, a single file that needs no network, and say where it is.

    Raises:
        InputError: as `page`; or its equations were not compared with those of ntm/, as a run on the fused path does.
    """
    if reason := model.why_not_fused():
        raise InputError(f"-page: cannot compare its equations with those of ntm/: {reason}")
    if (mark := machine_mark()) != MACHINE_MARK:
        raise InputError(
            "-page: experiment/page.html has the equations as they were before ntm/ was edited; once it has the edit, "
            f"MACHINE_MARK in experiment/page.py is {mark}"
        )
    write_atomically(path, page(model, configuration, rows).encode())
    configured = configuration.network.memory_units
    most = f" (it shows up to {MOST_ROWS} rows of memory, and {configured} are configured)"
    print(f"{path}{most if configured > MOST_ROWS else ''}")
