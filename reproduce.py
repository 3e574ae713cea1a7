#!/usr/bin/env python
"""Train every configuration with several seeds, score each model, and print the table of the README.

    python reproduce.py

goes through nine configurations and five seeds, two runs at a time. A second call skips what is finished and goes on
with what is not. `-ship` copies the runs of seed 0 to saved_model/, runs/ and log/.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from experiment.backend import start_backend
from experiment.checkpoint import load_model, write_atomically
from experiment.configuration import NAMES, ROOT
from experiment.errors import InputError, Parser, number, run_script
from experiment.scoring import EVALUATION, generator, sample_lengths, score

LENGTHS = (1, 2, 5, 10, 20, 30, 50, 64, 65, 75, 100, 120)  # with as many rows as configured
SEQUENCES = 1000
LONG_LENGTH, LONG_ROWS, LONG_SEQUENCES = 1000, 1024, 100
SCORING_SEED = 1


def train_and_score(name: str, seed: int, folder: Path, more_flags: list[str]) -> dict:
    """Train one configuration with one seed, unless that is done, and score it, unless that is done."""
    result = folder / "log" / f"{name}_reproduce.json"
    if result.exists():
        return json.loads(result.read_text())
    saved = folder / "saved_model" / f"reverse_{name}.pt"
    if not saved.exists():
        output = os.path.relpath(folder, ROOT)  # what the run's log repeats should not name this machine's folders
        command = [sys.executable, "train.py", "-config", name, "-seed", str(seed), "-output", output, *more_flags]
        if (folder / "runs" / name / "checkpoint.pt").exists():
            command.append("-resume")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{name}, seed {seed}: {done.stderr.strip()}")
    torch.set_num_threads(1)
    model, configuration = load_model(saved)
    start_backend(model)
    task, source = configuration.make_task(), generator(SCORING_SEED, EVALUATION)
    wrong = {}
    for length in LENGTHS:
        s, _ = score(model, task, sample_lengths(task, [length], SEQUENCES, source))
        wrong[length] = round((1 - s.exact) * s.sequences)
    s, _ = score(model, task, sample_lengths(task, [LONG_LENGTH], LONG_SEQUENCES, source), LONG_ROWS)
    wrong[LONG_LENGTH] = round((1 - s.exact) * s.sequences)
    scored = {"name": name, "seed": seed, "wrong_sequences": wrong, **first_perfect(folder / "log" / f"{name}.log")}
    write_atomically(result, (json.dumps(scored) + "\n").encode())
    return json.loads(json.dumps(scored))


def first_perfect(log: Path) -> dict[str, float | None]:
    """Find in a log when the held-out set of trained lengths was first answered without a mistake, and the end."""
    text = log.read_text()
    solved = re.search(r"^iteration +(\d+) +([\d.]+) s .*  test: \S+ \S+ bits +\S+ exact 1\.0000", text, re.MULTILINE)
    end = re.search(r"^finished after ([\d.]+) s", text, re.MULTILINE)
    return {
        "solved_iteration": int(solved[1]) if solved else None,
        "solved_seconds": float(solved[2]) if solved else None,
        "seconds": float(end[1]) if end else None,
    }


def print_table(results: list[dict]) -> None:
    """Print, by configuration and length, how many seeds had no wrong sequence, and below that each failure."""
    names = sorted({r["name"] for r in results})
    lengths = [str(n) for n in (*LENGTHS, LONG_LENGTH)]
    print(f"\nRuns without a wrong sequence, of those made: {SEQUENCES} sequences a length, {LONG_SEQUENCES} of length")
    print(f"{LONG_LENGTH} with {LONG_ROWS} rows. Then, as medians, when the held-out set was first answered without")
    print("a mistake, in iterations and seconds, and the seconds of a whole run.\n")
    print("| | " + " | ".join(lengths) + " | iterations | seconds | in all |")
    print("|---" * (len(lengths) + 4) + "|")
    for name in names:
        runs = [r for r in results if r["name"] == name]
        cells = [f"{sum(r['wrong_sequences'][n] == 0 for r in runs)}/{len(runs)}" for n in lengths]
        for key in ("solved_iteration", "solved_seconds", "seconds"):
            values = sorted(r[key] for r in runs if r[key] is not None)
            cells.append(f"{values[len(values) // 2]:.0f}" if values else "-")
        print(f"| {name} | " + " | ".join(cells) + " |")
    perfect = [r for r in results if not any(r["wrong_sequences"].values())]
    print(f"\n{len(perfect)} of {len(results)} runs without any wrong sequence")
    for r in results:
        bad = {n: wrong for n, wrong in r["wrong_sequences"].items() if wrong}
        if bad:
            print(f"{r['name']} seed {r['seed']}: wrong sequences by length {bad}")


def ship(folder: Path) -> None:
    """Copy the models, curves and logs of one seed to where the repository keeps its own."""
    for top in ("saved_model", "runs", "log"):
        for path in (folder / top).rglob("*"):
            if path.is_file() and not path.name.endswith("_reproduce.json"):
                target = ROOT / top / path.relative_to(folder / top)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def main() -> None:
    """Run what is missing, then print the table of all that is there."""
    parser = Parser(__doc__)
    parser.add("configs", default=",".join(NAMES), help="which of the nine")
    parser.add("seeds", default="0,1,2,3,4", help="which seeds")
    parser.add("output", type=Path, default=ROOT / "reproduced", help="folder for the runs, one a seed")
    parser.add("jobs", type=number(int, 1, 256), default=2, help="runs at a time, each on one thread")
    parser.add("table", default="log/seeds.json", metavar="FILE", help="where the results go")
    parser.add("ship", action="store_true", help="copy the runs of the first seed to saved_model/, runs/ and log/")
    parser.add("flags", default="", help="more flags for train.py, in one word: '-full_tape -lr 1e-4'")
    options = parser.parse_args()
    names, whole = options.configs.split(","), number(int, 0, 2**31)
    if not set(names) <= set(NAMES):
        raise InputError(f"-configs {options.configs}: choose from {', '.join(NAMES)}")
    try:
        seeds = [whole(text) for text in options.seeds.split(",")]
    except Exception as error:
        raise InputError(f"-seeds: {error}") from error
    jobs = [(name, seed, options.output / str(seed), options.flags.split()) for seed in seeds for name in names]
    results = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train_and_score, *job) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(jobs), unit="run"):
            results.append(future.result())
            bad = {n: wrong for n, wrong in results[-1]["wrong_sequences"].items() if wrong}
            tqdm.write(f"{results[-1]['name']} seed {results[-1]['seed']}: {bad or 'perfect'}")
    results.sort(key=lambda r: (r["name"], r["seed"]))
    write_atomically(ROOT / options.table, ("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n").encode())
    print_table(results)
    if options.ship:
        ship(options.output / str(seeds[0]))


if __name__ == "__main__":
    run_script(main)
