"""The paper's experiments: what each machine is tested on, and the paper's figures, drawn from runs of one's own."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator

from experiment import plots
from experiment.backend import use_widest_vectors
from experiment.checkpoint import load_model
from experiment.configuration import MACHINES, PAPER_TASKS, Configuration, task_of
from experiment.plots import COLOURS, STYLE, save_figure
from experiment.runlog import logged_values
from experiment.scoring import (
    EVALUATION,
    LONG_LENGTH,
    LONG_ROWS,
    SCORING_SEED,
    draw_held_out,
    generator,
    optimal_cost,
    sample_sizes,
    score,
    trace,
)
from ntm import NTM
from ntm.machine import Machine
from tasks import describe, label

# Sizes that each machine is tested on: those of the paper's figures, and beyond.
SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "copy": ((10,), (20,), (30,), (50,), (120,), (1000,)),
    "repeat_copy": ((5, 5), (10, 10), (20, 10), (10, 12), (10, 20)),
    "associative_recall": tuple((items,) for items in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20)),
    "ngram": ((200,), (1000,)),
    "priority_sort": ((20,),),
}


def score_sizes(model: Machine, configuration: Configuration, sequences: int) -> list[dict[str, Any]]:
    """Score a machine on fresh sequences of each size of its task, fewer where they are long; a row a size."""
    task, source, rows = configuration.task, generator(SCORING_SEED, EVALUATION), []
    for numbers in SIZES[configuration.data.name]:
        size = task.Size(*numbers)
        long, memory_units = size[0] == LONG_LENGTH, configuration.network.memory_units
        if long and memory_units and configuration.data.name == "copy":
            memory_units = LONG_ROWS
        batches = sample_sizes(task, [size], max(1, sequences // 10) if long else sequences, source)
        result, _ = score(model, task, batches, memory_units)
        rows.append({"size": list(size), "memory_units": memory_units, **result._asdict()})
        optimum = optimal_cost(task, batches)
        if optimum is not None:
            rows[-1]["optimal_cost"] = optimum
    return rows


def learning_curve(events: Path) -> tuple[list[int], list[float]]:
    """Read the curve of a run's held-out set of trained sizes from its folder of events: iterations, and values."""
    values = logged_values(events / "test", "cost")
    points = {step: value.simple_value or float(value.tensor.float_val[0]) for step, value in values}
    return sorted(points), [points[step] for step in sorted(points)]


def draw_curves(
    runs: dict[str, list[Path]], batch_sizes: dict[str, int], optimum: float | None, title: str, path: Path
) -> None:
    """Draw learning curves as the paper's Figures 3, 7, 10, 13 and 18: bits a sequence over sequences seen.

    Args:
        runs: by configuration, each seed's folder of events.
        batch_sizes: by configuration.
        optimum: the cost of the optimal predictor; None where that is 0.
        title: of the picture.
        path: the PNG file to write.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for colour, (name, folders) in zip(COLOURS, runs.items(), strict=False):
            for i, folder in enumerate(folders):
                steps, cost = learning_curve(folder)
                thousands = np.array(steps) * batch_sizes[name] / 1000
                axes.plot(thousands, cost, color=colour, linewidth=1.4, label=None if i else machine_of(name))
        axes.set(xlabel="sequences (thousands)", ylabel="cost (bits a sequence)", title=title)
        if optimum is None:
            axes.set_yscale("symlog", linthresh=1)
            axes.set_ylim(bottom=0)
        else:
            axes.axhline(optimum, color=COLOURS[6], linewidth=1, linestyle="--", label="the optimal estimator")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.legend()
        save_figure(figure, path)


def print_table(results: list[dict[str, Any]]) -> None:
    """Print a line a run: wrong bits a sequence by size, or, where even the best is wrong at times, its cost above."""
    for name in dict.fromkeys(r["name"] for r in results):
        runs = [r for r in results if r["name"] == name]
        seconds = " / ".join(f"{r['seconds']:.0f}" for r in runs)
        print(f"\n{name}: {runs[0]['parameters']:,} parameters, {seconds} s")
        print("| seed | " + " | ".join(label(row["size"]) for row in runs[0]["scores"]) + " |")
        print("|---" * (1 + len(runs[0]["scores"])) + "|")
        for r in runs:
            cells = (
                f"{row['cost'] / row['optimal_cost'] - 1:.2%} above" if "optimal_cost" in row else f"{row['bits']:.3f}"
                for row in r["scores"]
            )
            print(f"| {r['seed']} | " + " | ".join(cells) + " |")


def machine_of(name: str) -> str:
    """What a configuration's machine is, in words."""
    return MACHINES[name.removeprefix(task_of(name))]


@torch.no_grad()
def draw_outputs(model: Machine, configuration: Configuration, sizes: list[tuple], path: Path) -> None:
    """Draw answers above targets at several sizes, as the paper's Figures 4, 5 and 8."""
    source = generator(SCORING_SEED, EVALUATION)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(len(sizes), 1, figsize=(8, 1.7 * len(sizes)), squeeze=False, layout="constrained")
        for axes, size in zip(panels[:, 0], sizes, strict=True):
            batch = configuration.task.sample(1, configuration.task.Size(*size), source)
            logits, _ = model(batch.inputs, memory_units=configuration.network.memory_units)
            answering = batch.mask[:, 0] > 0
            answer, target = logits.sigmoid()[answering, 0].T.numpy(), batch.targets[answering, 0].T.numpy()
            wrong = int(configuration.task.wrong_bits(logits, batch))
            gap = np.full((1, answer.shape[1]), np.nan)
            axes.imshow(np.vstack((answer, gap, target)), aspect="auto", vmin=0, vmax=1)
            axes.set_title(f"{describe(configuration.task.Size(*size))}: {wrong} wrong bits", loc="left", fontsize=9)
            rows = len(answer)
            axes.set_yticks(((rows - 1) / 2, rows + 1 + (rows - 1) / 2), ("answer", "target"))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1, 0].set_xlabel("time (steps of the answer)")
        figure.suptitle(f"{configuration.name}: {machine_of(configuration.name)}")
        save_figure(figure, path)


def draw_costs(scores: dict[str, list[dict[str, Any]]], trained: tuple[int, int], title: str, path: Path) -> None:
    """Draw the cost over size, as the paper's Figure 11.

    Args:
        scores: by configuration, the rows of `score_sizes`, of sizes of one number.
        trained: the smallest and the largest size in training.
        title: of the picture.
        path: the PNG file to write.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for colour, (name, rows) in zip(COLOURS, scores.items(), strict=False):
            x, y = [row["size"][0] for row in rows], [row["cost"] for row in rows]
            axes.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.4, label=machine_of(name))
        axes.axvspan(*trained, color="#000000", alpha=0.07, linewidth=0)
        axes.set(xlabel="items (grey: trained)", ylabel="cost (bits a sequence)", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.legend()
        save_figure(figure, path)


@torch.no_grad()
def draw_predictions(models: dict[str, tuple[Machine, Configuration]], path: Path) -> None:
    """Draw the predictions of n-grams beside those of the optimal estimator, as the paper's Figure 14."""
    task = next(iter(models.values()))[1].task
    batch = task.sample(1, task.Size(200), generator(SCORING_SEED, EVALUATION))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(len(models), 1, figsize=(8, 1.9 * len(models)), squeeze=False, sharex=True,
                                      layout="constrained")  # fmt: skip
        optimal, bits = task.optimal_probability(batch)[:, 0].numpy(), batch.targets[:, 0, 0].numpy()
        for axes, (name, (model, _)) in zip(panels[:, 0], models.items(), strict=True):
            ours = model(batch.inputs)[0].sigmoid()[:, 0, 0].numpy()
            axes.plot(optimal, color=COLOURS[6], linewidth=1, label="the optimal estimator")
            axes.plot(ours, color=COLOURS[1], linewidth=1, label=machine_of(name))
            axes.plot(np.flatnonzero(bits), np.full(int(bits.sum()), 1.06), "|", color="#777777", markersize=4)
            axes.set(ylim=(-0.04, 1.12), ylabel="P(next bit is 1)")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=7)
        panels[-1, 0].set_xlabel("time (steps); ticks above: the next bit was 1")
        save_figure(figure, path)


# Sizes of the paper's figures of answers, and of memory in use.
OUTPUTS = {"copy": ((10,), (20,), (30,), (50,), (120,)), "repeat_copy": ((10, 10), (20, 10), (10, 20))}
MEMORY = {"copy": (20,), "repeat_copy": (5, 4), "associative_recall": (6,), "ngram": (60,), "priority_sort": (20,)}


def draw(folder: Path, seeds: list[int], names: list[str], pictures: Path) -> None:
    """Draw the paper's figures from the runs of `reproduce.py -paper`, of the first seed where it is one machine's."""
    pictures.mkdir(parents=True, exist_ok=True)
    use_widest_vectors()
    first = folder / str(seeds[0])
    models = {name: load_model(first / "saved_model" / f"{name}.pt") for name in names}
    for task in PAPER_TASKS:
        of = {name: models[name] for name in names if task_of(name) == task}
        runs = {name: [folder / str(seed) / "runs" / name for seed in seeds] for name in of}
        if not of:
            continue
        batch_sizes = {name: configuration.recipe.batch_size for name, (_, configuration) in of.items()}
        first_of_task = next(iter(of.values()))[1]  # its task and data are those of all
        optimum = optimal_cost(first_of_task.task, draw_held_out(first_of_task).tests["test"])
        title = f"{task}: learning curves, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        draw_curves(runs, batch_sizes, optimum, title, pictures / f"{task}_curves.png")
        for name, (model, configuration) in of.items():
            if task in OUTPUTS:
                draw_outputs(model, configuration, OUTPUTS[task], pictures / f"{name}_outputs.png")
            if isinstance(model, NTM):
                size, source = configuration.task.Size(*MEMORY[task]), generator(SCORING_SEED, EVALUATION)
                shown = trace(model, configuration.task, configuration.task.sample(1, size, source))
                plots.machine(shown, f"{name}: {describe(size)}", pictures / f"{name}_memory.png")
        if task == "associative_recall":
            scores = {name: json.loads((first / "log" / f"{name}_reproduce.json").read_text())["scores"] for name in of}
            data = first_of_task.data
            draw_costs(scores, (data.low[0], data.high[0]), "associative_recall: cost by number of items",
                       pictures / "associative_recall_items.png")  # fmt: skip
        if task == "ngram":
            draw_predictions(of, pictures / "ngram_predictions.png")
