#!/usr/bin/env python
"""Train every configuration with several seeds, score each model, and print the tables of docs/.

    python reproduce.py

goes through nine configurations and five seeds, two runs at a time. A second call skips what is finished and goes on
with what is not. `-ship` copies the runs of the first seed to saved_model/, runs/ and log/, and draws the pictures of
docs/. `-ablations` leaves out one part of the recipe at a time; `-beyond` trains the configurations in configs/beyond/,
which were not used in tuning. `-paper` trains the paper's five tasks with its three machines, and draws its figures.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import zlib
from pathlib import Path

import torch

from experiment import paper
from experiment.backend import start_backend
from experiment.checkpoint import load_model, weights_mark, write_atomically
from experiment.configuration import (
    CONFIGS,
    NAMES,
    NINE,
    PAPER,
    REVERSE,
    ROOT,
    Configuration,
    load_task_json,
    model_title,
    task_of,
)
from experiment.errors import InputError, Parser, number, numbers, run_script
from experiment.processes import Processes
from experiment.runlog import commit
from experiment.scoring import EVALUATION, LONG_LENGTH, LONG_ROWS, SCORING_SEED, generator, sample_sizes, score, trace
from experiment.sweep import Job, run_all, train
from ntm import NTM
from ntm.machine import Machine
from tasks import label

LONGER_LENGTHS = 65, 75, 100, 120
LENGTHS = (1, 2, 5, 10, 20, 30, 50, 64, *LONGER_LENGTHS)  # with as many rows as configured
DIRTY_LENGTHS, DIRT = (20, 120), 1.0  # the standard deviation of the numbers in memory that a test begins on
SEEDS, SOME_SEEDS = "0-4", "0-2"

DRAWN = "m1d1_machine.png", "m1d1_controls.png", "m1d1_memory.png", "all_accuracy.png"  # by evaluate.py, for docs/

HEADS = "gate", "top_gate", "peak", "rows", "erase"  # of `heads_at_work`

ABLATIONS = {  # what is left out, and the flags of train.py that do so
    "nothing: the recipe": "",
    "dirty memory": "-dirty 0",
    "blur cost": "-blur_cost 0",
    "cell dropout": "-cell_dropout 0",
    "the gate's bias": "-gate_bias 0",
    "uneven sequences": "-uneven 0",
    "short sequences and tapes": "-full_tape -curriculum 0",
    "short tapes": "-full_tape",
    "the curriculum": "-curriculum 0",
    "clipping": "-clip_typical 0",
    "the rate by cells": "-lr_cells 0",
    "Adam's beta1": "-beta1 0.9",
    "all of it: the paper's setting": "-recipe paper",
}


def tests_of(configuration: Configuration, sequences: int) -> dict[str, tuple[int, int, int | None, float]]:
    """The tests of a model of reverse by name: a length, how many sequences, rows of memory, dirt in it."""
    data, lengths = configuration.data, LENGTHS
    if configuration.name not in NAMES:
        low, high = data.low.seq_len, data.high.seq_len
        lengths = sorted({low, (low + high) // 2, high, *LONGER_LENGTHS})
    tests = {str(length): (length, sequences, None, 0.0) for length in lengths}
    tests[str(LONG_LENGTH)] = LONG_LENGTH, max(1, sequences // 10), LONG_ROWS, 0.0
    dirty = DIRTY_LENGTHS if "memory" in configuration.network.has else ()
    return tests | {f"{length} dirty": (length, sequences, None, DIRT) for length in dirty}


def count_wrong(model: Machine, configuration: Configuration, sequences: int) -> dict[str, int]:
    """Count the sequences with a wrong bit, by test: on a blank memory, and on a dirty one."""
    task, source, wrong = configuration.task, generator(SCORING_SEED, EVALUATION), {}
    for name, (length, count, rows, dirt) in tests_of(configuration, sequences).items():
        s, _ = score(model, task, sample_sizes(task, [task.Size(length)], count, source), rows, dirt, source)
        wrong[name] = round((1 - s.exact) * s.sequences)
    return wrong


def train_and_score(job: Job) -> dict:
    """Train a job's model, unless that is done, and score it, unless that is done."""
    result = job.folder / "log" / f"{Path(job.name).stem}_reproduce.json"
    model, configuration = load_model(train(job))
    which = {"variant": job.variant, "name": configuration.name, "seed": job.seed, "sequences": job.sequences}
    reverse = configuration.data.name == "reverse"
    tests = tests_of(configuration, job.sequences) if reverse else paper.SIZES[configuration.data.name]
    which |= {
        "weights": weights_mark(model.state_dict()),
        "tests": f"{zlib.crc32(repr((SCORING_SEED, tests)).encode()):08x}",
    }
    if result.exists():
        scored = json.loads(result.read_text())
        if which.items() <= scored.items():
            if scored["commit"] != commit():
                before = f"scored before, at commit {scored['commit']}"
                print(f"{job.title}: {before}; this is {commit()}", file=sys.stderr)
            return scored
    torch.set_num_threads(1)
    start_backend(model)
    scored = which | {"commit": commit()}
    if reverse:
        scored["wrong_sequences"] = count_wrong(model, configuration, job.sequences)
        scored |= heads_at_work(model, configuration)
    else:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        scored |= {"parameters": parameters, "scores": paper.score_sizes(model, configuration, job.sequences)}
    scored |= landmarks(job.folder / "log" / f"{configuration.name}.log")
    write_atomically(result, (json.dumps(scored) + "\n").encode())
    return scored


def landmarks(log: Path) -> dict[str, float | None]:
    """Find in a log when the held-out set of trained sizes was first answered right, and when the run ended."""
    text = log.read_text()
    solved = re.search(r"^iteration +(\d+) +([\d.]+) s .*  test: \S+ \S+ bits +\S+ exact 1\.0000", text, re.MULTILINE)
    end = re.search(r"^finished after ([\d.]+) s", text, re.MULTILINE)
    return {
        "solved_iteration": int(solved[1]) if solved else None,
        "solved_seconds": float(solved[2]) if solved else None,
        "seconds": float(end[1]) if end else None,
    }


def heads_at_work(model: Machine, configuration: Configuration) -> dict[str, float]:
    """Look at the heads at one sequence of the longest trained length, on a blank memory.

    Returns:
        `gate`, the mean of the read heads' while the sequence is read; `top_gate`, their largest at any step; and while
            the sequence is read: `peak`, the mean of the read heads' largest weight; `rows`, on how many rows the first
            read head stands, a step; `erase`, the mean of the erase vectors.
    """
    if not isinstance(model, NTM):
        return {}
    task = configuration.task
    shown = trace(model, task, task.sample(1, configuration.data.high, generator(SCORING_SEED, EVALUATION)))
    reading, heads = shown.mask == 0, shown.read_weighting.shape[1]
    gate, weighting = shown.interpolation_gate[:, :heads], shown.read_weighting[reading]
    rows = len(set(weighting[:, 0].argmax(-1).tolist())) / reading.sum()
    found = gate[reading].mean(), gate.max(), weighting.max(-1).mean(), rows, shown.erases[reading].mean()
    return {name: round(float(value), 3) for name, value in zip(HEADS, found, strict=True)}


def in_short(result: dict) -> str:
    """How a run did, in a line."""
    if "scores" in result:
        return ", ".join(f"{label(row['size'])}: {row['bits']:.3f} wrong bits" for row in result["scores"])
    return str(mistakes(result) | mistakes(result, True) or "perfect")


def mistakes(result: dict, dirty: bool = False) -> dict[str, int]:
    """The sequences with a wrong bit of a run, by length, where there are any: on a blank memory, or on a dirty one."""
    return {n: wrong for n, wrong in result["wrong_sequences"].items() if wrong and n.endswith("dirty") == dirty}


def median(values: list[float | None], digits: int = 0) -> str:
    """The median of the values that are there."""
    values = [value for value in values if value is not None]
    return f"{statistics.median(values):.{digits}f}" if values else "-"


def print_table(results: list[dict], by: str) -> None:
    """Print, by configuration or variant, how many runs had no wrong sequence of each length; then each failure.

    A run is perfect that has none on a blank memory. What the heads do (`heads_at_work`) is given as a median, as are
    the iteration at which the held-out set of trained sizes was first answered right, and the seconds of a run.
    """
    lengths = list(dict.fromkeys(n for r in results for n in r["wrong_sequences"]))
    columns = [by, "perfect", *lengths, *HEADS, "solved at", "seconds", "longest"]
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name in dict.fromkeys(r[by] for r in results):
        runs = [r for r in results if r[by] == name]
        cells = [f"{sum(not mistakes(r) for r in runs)}/{len(runs)}"]
        for n in lengths:
            right = [r["wrong_sequences"][n] == 0 for r in runs if n in r["wrong_sequences"]]
            cells.append(f"{sum(right)}/{len(right)}" if right else "")
        cells += [median([r.get(key) for r in runs], 2) for key in HEADS]
        cells += [median([r[key] for r in runs]) for key in ("solved_iteration", "seconds")]
        print(f"| {name} | " + " | ".join(cells) + f" | {max(r['seconds'] for r in runs):.0f} |")
    print()
    with_memory = [r for r in results if any(n.endswith("dirty") for n in r["wrong_sequences"])]
    for memory, runs in {"blank": results, "dirty": with_memory}.items():
        if runs:
            perfect = sum(not mistakes(r, memory == "dirty") for r in runs)
            print(f"{perfect} of {len(runs)} runs without any wrong sequence on a {memory} memory")
    for r in results:
        bad = mistakes(r) | mistakes(r, True)
        if bad:
            variant = f"{r['variant']}, " if r["variant"] else ""
            print(f"{variant}{r['name']} seed {r['seed']}: {bad}")


def copy_runs(folder: Path, names: list[str]) -> None:
    """Copy one seed's runs of some names to where the repository keeps its models, curves and logs."""
    for name in names:
        saved_model = Path("saved_model") / f"{model_title(task_of(name), name)}.pt"
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)  # events have names of their own: they would be added
        for path in (folder / saved_model, folder / "log" / f"{name}.log", *(folder / "runs" / name).rglob("*")):
            if path.is_file() and path.name != ".lock":
                target = ROOT / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def draw_docs(folder: Path) -> None:
    """Draw the pictures and the page of docs/ from one seed of the nine."""
    for flags in (["-config", "all"], ["-config", "m1d2", "-page"]):
        subprocess.run([sys.executable, "evaluate.py", *flags, "-output", str(folder)], cwd=ROOT, check=True)
    for drawn, target in *zip(DRAWN, DRAWN, strict=True), ("m1d2.html", "index.html"):
        shutil.copyfile(folder / "log" / drawn, ROOT / "docs" / target)


def unique(text: str) -> list[str]:
    """The names in a list with commas, each once."""
    return list(dict.fromkeys(text.split(",")))


def parse_options() -> argparse.Namespace:
    """Read the command line; `names`, `seeds` and `variants` are lists, as asked for or by default.

    Raises:
        InputError: flags do not go together, or name what there is not.
    """
    parser = Parser(__doc__)
    nine = "which, as f1d1 (default: the nine of m1, m2 and m3; with -paper: all fifteen)"
    parser.add("configs", metavar="NAME,...", help=nine)
    which = f"which seeds (default: {SEEDS}; with -beyond or -paper: {SOME_SEEDS})"
    parser.add("seeds", type=numbers(0, 2**31), metavar="N,...", help=which)
    parser.add("ablations", action="store_true", help="leave out one part of the recipe at a time")
    parser.add("variants", metavar="NAME,...", help="of -ablations, which (default: all)")
    parser.add("beyond", action="store_true", help="train the configurations in configs/beyond/ instead of the nine")
    parser.add("paper", action="store_true", help="train the paper's tasks with its machines instead of the nine")
    parser.add("output", type=Path, default=ROOT / "reproduced", help="folder for runs and table (default: reproduced)")
    parser.add("jobs", type=number(int, 1, 256), default=2, help="runs at a time, each on one thread")
    parser.add(
        "num_sequences",
        type=number(int, 1, 10**6),
        help="test sequences a size; of length 1,000 a tenth (default: 1000; with -ablations: 200)",
    )
    parser.add("ship", action="store_true", help="copy the first seed to saved_model/, runs/, log/ and docs/")
    parser.add("flags", default="", help="more flags for train.py, in one word: '-dirt 1 -lr 1e-3'")
    options = parser.parse_args()
    options.output = options.output.absolute()  # train.py and evaluate.py are started in the repository's folder
    options.names = unique(options.configs) if options.configs else list(PAPER if options.paper else NINE)
    if options.variants and not options.ablations:
        raise InputError("-variants goes with -ablations, of which it names some")
    options.variants = unique(options.variants) if options.variants else list(ABLATIONS)
    options.seeds = options.seeds or numbers(0, 2**31)(SOME_SEEDS if options.beyond or options.paper else SEEDS)
    if options.ablations + options.beyond + options.paper > 1:
        raise InputError("-ablations, -beyond and -paper go each in a call of its own")
    if options.configs and options.beyond:
        raise InputError("-configs does not go with -beyond, which trains the files in configs/beyond/")
    if options.beyond:
        options.names = sorted(map(str, (CONFIGS / "beyond").glob("*.json")))
        for name in options.names:
            if (task := load_task_json(Path(name)).data.name) != "reverse":
                raise InputError(f"{name}: is of the task {task}; -beyond trains and scores reverse alone")
    elif not set(options.names) <= set(allowed := PAPER if options.paper else REVERSE):
        raise InputError(f"-configs {options.configs}: choose from {', '.join(allowed)}")
    if options.ship and (options.ablations or options.beyond or options.flags):
        raise InputError("-ship goes with runs of the whole recipe, not with -ablations, -beyond or -flags")
    if options.ship and not options.paper and set(options.names) != set(NINE):
        raise InputError("-ship goes with all nine, since docs/ shows all, or with -paper")
    if not set(options.variants) <= set(ABLATIONS):
        raise InputError(f"-variants {','.join(options.variants)}: choose from {', '.join(ABLATIONS)}")
    set_here = {"-seed", "-config", "-task_json", "-output", "-saved_model", "-resume", "-overwrite", "-init"}
    left_out = " ".join(ABLATIONS[v] for v in options.variants) if options.ablations else ""
    for word in re.findall(r"(?:^|(?<=\s))-(-?[a-z]\w*)", options.flags):
        flag = "-" + word.lstrip("-")
        if flag in set_here:
            raise InputError(f"-flags: {flag} is not for a run of a table, which begins from nothing; leave it away")
        if flag in left_out.split():
            raise InputError(f"-flags: {flag} is what -ablations leaves out; leave it away, or name other -variants")
    return options


def reproduce(processes: Processes) -> None:
    """Run what is missing, shared out over all processes; the first then prints and writes the table of this call."""
    options = parse_options()
    names, seeds, folder = options.names, options.seeds, options.output
    more, sequences = options.flags.split(), options.num_sequences or (200 if options.ablations else 1000)
    processes.require_shared(folder)
    if options.ablations:
        jobs = [
            Job(v, name, seed, folder / "ablations" / re.sub(r"\W+", "_", v) / str(seed), flags, sequences)
            for v, flags in ((v, ABLATIONS[v].split() + more) for v in options.variants)
            for seed in seeds
            for name in names
        ]
        kind = "ablations"
    else:
        jobs = [Job("", name, seed, folder / str(seed), more, sequences) for seed in seeds for name in names]
        kind = "paper" if options.paper else "beyond" if options.beyond else "seeds"
    results, failures = run_all(jobs, train_and_score, in_short, options.jobs, processes)
    failed = f"{len(failures)} of {len(jobs)} runs failed, the first: {failures[0]}" if failures else ""
    if not processes.first:
        return
    if failures and (options.ship or not results):
        raise InputError(failed + "; no table is written" + ", and nothing shipped" * options.ship)
    if not options.ablations:
        results = sorted(results, key=lambda r: (r["name"], r["seed"]))
    if options.paper:
        paper.print_table(results)
        paper.draw(folder, seeds, names, ROOT / "docs" / "paper" if options.ship else folder / "figures")
    else:
        print_table(results, "variant" if options.ablations else "name")
    write_atomically(folder / f"{kind}.json", ("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n").encode())
    if options.ship:
        copy_runs(folder / str(seeds[0]), names)
        if not options.paper:
            draw_docs(folder / str(seeds[0]))
    if failures:
        raise InputError(f"{failed}; they are in no table")


def main() -> None:
    """Meet the other processes, if there are any, and reproduce."""
    with Processes.join() as processes:
        reproduce(processes)


if __name__ == "__main__":
    run_script(main)
