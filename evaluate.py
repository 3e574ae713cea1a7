#!/usr/bin/env python
"""Score and draw a trained Neural Turing Machine.

    python evaluate.py -config m2d3

prints wrong bits and exact sequences by size, and writes the table and pictures into log/.
"""

import argparse
import json
import os
import re
from pathlib import Path

import torch
from tqdm import tqdm

from experiment import animation, checkpoint, plots
from experiment.backend import choose_device, start_backend
from experiment.bits import lays_out_as_it_draws, read_sequences
from experiment.configuration import NAMES, NINE, ROOT, Configuration, model_title, task_of, unknown_name
from experiment.errors import InputError, Parser, number, run_script, sizes
from experiment.options import THREADS_HELP
from experiment.page import write_page
from experiment.run import shown_path
from experiment.runlog import commit
from experiment.scoring import (
    EVALUATION,
    Score,
    counts_each_bit,
    generator,
    optimal_cost,
    sample_sizes,
    score,
    seed_torch,
    trace,
)
from experiment.table import print_table, show_mistake, write_table
from experiment.task_check import require_sound, shown_size
from experiment.training import SPARE_ROWS
from ntm import NTM, Backend
from ntm.machine import Machine
from tasks import Batch, VectorTask, describe, label

MISTAKES_SHOWN = 3
ORIGINAL = ROOT / "docs" / "original.json"  # wrong bits a sequence of the nine that these replace, by length
SHOWN_SIZE = 30  # of the sequence in the picture, each part of its size, or the nearest in training
ANIMATED_SIZE = 10  # likewise


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add(
        "config",
        metavar="NAME",
        help=f"one of {', '.join(NAMES)}; all: the nine of m1, m2, m3; m1d1-2: the second run of m1d1 (default: m1d1)",
    )
    parser.add("saved_model", type=Path, metavar="PATH", help="a model's file, instead of -config")
    parser.add("output", type=Path, default=ROOT, metavar="FOLDER", help="holds saved_model/ and log/ (default: here)")
    parser.add(
        "sizes",
        type=sizes(0, 10**6),
        metavar="S,S,...",
        help="sizes to score: 5,10-20; of repeat copy, length x repeats: 10x3,20x1-4 (default: trained, and beyond)",
    )
    parser.add("input", type=Path, metavar="FILE", help="answer these sequences instead: a vector a line, as 01101001")
    parser.add("page", action="store_true", help="write log/<config>.html instead: the model, running in a browser")
    parser.add("animate", action="store_true", help="write log/<config>_steps.gif and _training.gif instead")
    parser.add("num_sequences", type=number(int, 1, 10**7), help="sequences a size (default: 256)")
    parser.add("memory_units", type=number(int, 1, 10**6), help="rows of memory (default: as configured)")
    parser.add(
        "dirt",
        type=number(float, 0, 1e6),
        default=0.0,
        help="begin on a memory of normal numbers of this standard deviation; 0: on a blank one",
    )
    parser.add(
        "seed",
        type=number(int, 0, 2**63 - 1),
        help="of the test sequences, drawn size after size: so other -sizes make other ones (default: 0)",
    )
    parser.add(
        "device",
        default="auto",
        metavar="NAME",
        help="cpu or cuda; auto: the CPU where the fused path runs, else a GPU if there is one",
    )
    parser.add("backend", default="auto", choices=[b.value for b in Backend], help="which code runs the machine")
    parser.add("threads", type=number(int, 1, 1024), help=THREADS_HELP)
    options = parser.parse_args()
    if options.saved_model and options.config:
        raise InputError("-saved_model PATH goes instead of -config: give one of them")
    options.config = options.config or "m1d1"
    if options.config != "all" and re.sub(r"-\d+$", "", options.config) not in NAMES:
        raise unknown_name(options.config)
    if options.config == "all" and options.input:
        raise InputError("-input goes with one model, not with -config all")
    if options.page and options.backend == Backend.REFERENCE.value:
        raise InputError("-page: has the equations once more, and compares them with ntm/ on the fused path only")
    if options.input and (options.animate or options.page):
        raise InputError("-input answers sequences; give -animate and -page in a call of their own")
    for flag in ("dirt", "sizes", "num_sequences"):
        if getattr(options, flag) and (options.input or options.animate or options.page):
            raise InputError(f"-{flag} goes with the table and its pictures, not with -input, -animate or -page")
    if options.seed is not None and (options.input or options.page):
        raise InputError("-seed is of the sequences that are drawn, and -input and -page draw none by it")
    options.num_sequences, options.seed = options.num_sequences or 256, options.seed or 0
    return options


def load(asked: str, path: Path, options: argparse.Namespace) -> tuple[Machine, Configuration]:
    """Load a model onto the device asked for.

    Args:
        asked: the name that -config gave.

    Raises:
        InputError: the file cannot be used, is another model's, or a flag asks for a memory that the model has not.
    """
    model, configuration = checkpoint.load_model(path, backend=Backend(options.backend))
    if not options.saved_model and configuration.name != asked:
        raise InputError(f"{path}: is the model of {configuration.name}, not of {asked}; -saved_model takes any file")
    name, unfinished = configuration.name, path.absolute().parent.parent / "runs" / configuration.name / "checkpoint.pt"
    if path.absolute().parent.name == "saved_model" and unfinished.exists():
        print(f"{path} may be from before the last run of {name}; {not_finished(unfinished)}")
    model = model.to(choose_device(options.device, model))
    if not isinstance(model, NTM):
        for flag in ("memory_units", "dirt", "page", "animate"):
            if getattr(options, flag):
                raise InputError(f"-{flag}: {configuration.name} is an LSTM alone, which has no memory")
    start_backend(model, threads=options.threads)
    return model, configuration


def tested_sizes(configuration: Configuration, asked: list[tuple] | None) -> list[tuple]:
    """The sizes asked for; else the bottom, middle and top of the trained range, and longer ones.

    Raises:
        InputError: one of those asked for is no size of the task.
    """
    data, kind = configuration.data, configuration.task.Size
    if asked:
        for size in asked:
            if len(size) != len(kind._fields):
                raise InputError(
                    f"-sizes {label(size)}: a size of {data.name} is {' x '.join(kind._fields)}, as {label(data.high)}"
                )
            for part, name in zip(size, kind._fields, strict=True):
                low, high = configuration.task.limits_of(name)
                if not low <= part <= high:
                    raise InputError(f"-sizes {label(size)}: {name} of {data.name} is {low} to {high}")
        return [kind(*size) for size in asked]
    middle = kind(*((low + high) // 2 for low, high in zip(data.low, data.high, strict=True)))
    return sorted({data.low, middle, data.high, *configuration.task.tested})


def evaluate(
    model: Machine, configuration: Configuration, options: argparse.Namespace
) -> tuple[dict[tuple, Score], dict[tuple, float], list[Batch]]:
    """Score a model at each size, with a bar.

    Returns:
        The scores; the cost of the best possible answer, where that is not 0; and a few sequences answered wrong. None
        on a dirty memory: on another one drawn for a picture, the answer might be right. Nor of a task that counts
        wrong bits in a way of its own, which no picture knows.
    """
    task, source = configuration.task, generator(options.seed, EVALUATION)
    scores, optima, mistakes = {}, {}, []
    for size in tqdm(tested_sizes(configuration, options.sizes), desc=configuration.name, leave=False, disable=None):
        require_sound(configuration, size)
        batches = sample_sizes(task, [size], options.num_sequences, source)
        scores[size], wrong = score(model, task, batches, options.memory_units, options.dirt, source)
        optimum = optimal_cost(task, batches)
        if optimum is not None:
            optima[size] = optimum
        if options.dirt or optima or not counts_each_bit(task, batches[0]):
            continue  # where even the best is wrong at times, there are no mistakes to show, either
        for batch, batch_wrong in zip(batches, wrong, strict=True):
            for b in torch.nonzero(batch_wrong)[: MISTAKES_SHOWN - len(mistakes), 0].tolist():
                mistakes.append(Batch(*(part[:, b : b + 1] for part in batch)))
    return scores, optima, mistakes


@torch.no_grad()
def answer_file(name: str, path: Path, options: argparse.Namespace) -> None:
    """Let a model answer the sequences of a file, and print what it says, vector by vector."""
    model, configuration = load(name, path, options)
    seed_torch(0)  # as `score` does
    task, rows = configuration.task, options.memory_units or configuration.network.memory_units
    if not isinstance(task, VectorTask):
        raise InputError(f"-input: is for reverse, copy and what else is a VectorTask, not {configuration.data.name}")
    if not lays_out_as_it_draws(task, configuration.data.low):
        raise InputError(
            f"-input: the task {configuration.data.name} has its own `sample`, and its `batch`, which -input takes, "
            "lays out other sequences: override `batch`, and leave `sample` as it is"
        )
    sequences = read_sequences(options.input, task.output_size)
    for i, bits in enumerate(sequences, start=1):
        batch = task.batch(bits).to(model.device)
        logits, _ = model(batch.inputs, memory_units=rows)
        wrong = int(task.wrong_bits(logits, batch))
        bits_wrong = plots.counted(wrong or "no", "wrong bit")
        memory = f"{plots.counted(rows, 'row')} of memory" if rows else "no memory"
        print(f"sequence {i}: {len(bits)} vector(s), {memory}, {bits_wrong}; its answer ({configuration.data.name}):")
        if rows and len(bits) > rows:
            print(f"  (longer than the memory: -memory_units {len(bits) + SPARE_ROWS} would hold it)")
        answering = batch.mask[:, 0] > 0
        for said, meant in zip((logits[answering, 0] > 0).int(), batch.targets[answering, 0].int(), strict=True):
            said, meant = ("".join(map(str, vector.tolist())) for vector in (said, meant))
            print(f"  {said}" + (f"  wrong: {meant} was meant" if said != meant else ""))


def evaluate_one(asked: str, path: Path, options: argparse.Namespace) -> tuple[Configuration, dict[tuple, Score]]:
    """Load, score, print and draw one model, that of the name asked for."""
    model, configuration = load(asked, path, options)
    name, rows = configuration.name, options.memory_units or configuration.network.memory_units
    scores, optima, mistakes = evaluate(model, configuration, options)
    dirty = f", on a dirty memory ({options.dirt:g})" if options.dirt else ""
    print(f"{name} ({shown_path(path)}), seed {options.seed} of the test sequences{dirty}")
    print_table(scores, optima, rows)
    needed = max(configuration.task.rows_needed(size) for size in scores)
    if rows and needed > rows:
        print(f"the largest size needs {needed} rows of memory: -memory_units {needed + SPARE_ROWS} would hold it")
    for mistake in mistakes:
        print(show_mistake(model, mistake, options.memory_units))
    table = options.output / "log" / f"{name}_scores.json"
    about = {
        "name": name,
        "weights": checkpoint.weights_mark(model.state_dict()),
        "seed": options.seed,
        "dirt": options.dirt,
        "commit": commit(),  # of the code that scored it
    }
    other = ", in place of another" if write_table(table, about, scores, optima, rows) else ""
    picture = options.output / "log" / f"{name}_accuracy.png"
    plots.accuracy_by_size({name: scores}, {name: configuration.data}, picture, memory=tested_memory(options))
    if isinstance(model, NTM):
        draw_memory_pictures(model, configuration, mistakes, options)
    else:  # those of a machine of this name that was here before
        for what in ("machine", "controls", "memory", "mistake"):
            (options.output / "log" / f"{name}_{what}.png").unlink(missing_ok=True)
    print(f"table: {table}{other}; pictures beside it")
    return configuration, scores


def tested_memory(options: argparse.Namespace) -> str:
    """The memory of a test in words, where it is not a blank one as configured."""
    rows = f"{plots.counted(options.memory_units, 'row')} of memory" if options.memory_units else ""
    dirt = f"a dirty memory ({options.dirt:g})" if options.dirt else ""
    return ", ".join(filter(None, (rows, dirt)))


def draw_memory_pictures(
    model: NTM, configuration: Configuration, mistakes: list[Batch], options: argparse.Namespace
) -> None:
    """Draw what the heads and the memory do on one sequence, and on the first mistake, into log/."""
    name, rows = configuration.name, options.memory_units or configuration.network.memory_units
    task, size, source = configuration.task, shown_size(configuration, SHOWN_SIZE), generator(options.seed, EVALUATION)
    sequence, dirt = task.sample(1, size, source), options.dirt or 1.0
    on_blank = trace(model, task, sequence, options.memory_units)
    on_dirt = trace(model, task, sequence, options.memory_units, dirt, source)
    both = {"a blank memory at first": on_blank, f"a dirty memory at first ({dirt:g})": on_dirt}
    title = f"{configuration.title}: {describe(size)}, with {plots.counted(rows, 'row')} of memory"
    dirty = f", dirty at first ({options.dirt:g})" if options.dirt else ""
    shown = on_dirt if options.dirt else on_blank
    plots.machine(shown, title + dirty, options.output / "log" / f"{name}_machine.png")
    plots.controls(shown, title + dirty, options.output / "log" / f"{name}_controls.png")
    plots.memory_over_time(both, title, options.output / "log" / f"{name}_memory.png")
    picture = options.output / "log" / f"{name}_mistake.png"
    picture.unlink(missing_ok=True)
    if mistakes:
        shown = trace(model, task, mistakes[0], options.memory_units)
        answers = plots.counted(int(shown.mask.sum()), "answer")
        title = f"{name}: a mistake among {answers}, with {plots.counted(rows, 'row')} of memory"
        plots.machine(shown, title, picture)


def animate(model: NTM, configuration: Configuration, path: Path, options: argparse.Namespace) -> None:
    """Write the moving pictures of a model, and of the run that made it."""
    name, log = configuration.name, options.output / "log"
    task, size = configuration.task, shown_size(configuration, ANIMATED_SIZE)
    shown = trace(model, task, task.sample(1, size, generator(options.seed, EVALUATION)), options.memory_units)
    animation.steps(shown, f"{configuration.title}: {describe(size)}", log / f"{name}_steps.gif")
    print(f"{log / f'{name}_steps.gif'}")
    folder = path.absolute().parent.parent  # of the run that made this very file
    curves, run_log = folder / "runs" / name, folder / "log" / f"{name}.log"
    if not curves.exists():
        print(f"no film of the training: its curves are not in {curves}")
    elif not checkpoint.made_by(model, run_log):
        print(f"no film of the training: the run in {run_log} and {curves} made another model, or has not ended")
    else:
        animation.training(curves, name, log / f"{name}_training.gif")
        print(f"{log / f'{name}_training.gif'}")


def model_path(name: str, output: Path) -> Path:
    """Where the model of a configuration is: in the folder of outputs, or else in this one.

    Raises:
        InputError: it is in neither.
    """
    file = f"{model_title(task_of(name), name)}.pt"
    own, other = (folder / "saved_model" / file for folder in (output, ROOT))
    if not (own.exists() or other.exists()):
        raise InputError(f"{own}: is not there; train it with train.py, or name a model's file by -saved_model")
    unfinished = output / "runs" / name / "checkpoint.pt"
    if own.exists():
        return own
    print(f"{own} is not there: this is {other}" + (f"; {not_finished(unfinished)}" if unfinished.exists() else ""))
    return other


def not_finished(run: Path) -> str:
    """Say which run a checkpoint is of."""
    return f"-saved_model {shown_path(run)} is the run that is not finished"


def main() -> None:
    """Evaluate one model, or all nine."""
    options = parse_options()
    names = NINE if options.config == "all" else (options.config,)
    paths = {name: options.saved_model or model_path(name, options.output) for name in names}
    if options.input:
        answer_file(options.config, paths[options.config], options)
        return
    folder = options.output / "log"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # an error now, not after all is scored
        raise InputError(f"{folder}: cannot be written; -output names another folder")
    if options.animate or options.page:
        for name, path in paths.items():
            model, configuration = load(name, path, options)
            if options.animate:
                animate(model, configuration, path, options)
            if options.page:
                page = options.output / "log" / f"{configuration.name}.html"
                write_page(model, configuration, page, options.memory_units)
        return
    results = {name: evaluate_one(name, path, options) for name, path in paths.items()}
    if len(results) == 1:
        return
    scores = {name: by_size for name, (_, by_size) in results.items()}
    sizes_of_all = sorted({size for by_size in scores.values() for size in by_size})
    print("wrong bits a sequence, by size\n" + f"{'':8}" + "".join(f"{label(size):>9}" for size in sizes_of_all))
    for name, by_size in scores.items():
        cells = (f"{by_size[size].bits:9.3f}" if size in by_size else f"{'-':>9}" for size in sizes_of_all)
        print(f"{name:8}" + "".join(cells))
    data = {name: configuration.data for name, (configuration, _) in results.items()}
    memory = tested_memory(options)  # those replaced were tested on a blank one
    beside = json.loads(ORIGINAL.read_text()) if ORIGINAL.exists() and not memory else {}
    plots.accuracy_by_size(scores, data, options.output / "log" / "all_accuracy.png", beside, memory)


if __name__ == "__main__":
    run_script(main)
