#!/usr/bin/env python
"""Train every configuration with several seeds, score each model, and print the table of the README.

    python reproduce.py

goes through nine configurations and five seeds, two runs at a time. A second call skips what is finished and goes on
with what is not. `-ship` copies the runs of seed 0 to saved_model/, runs/ and log/. `-ablations` leaves out one part of
the recipe at a time instead.
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
from experiment.checkpoint import load, load_model, write_atomically
from experiment.configuration import NAMES, ROOT
from experiment.errors import InputError, Parser, number, run_script
from experiment.scoring import EVALUATION, generator, sample_lengths, score
from train import parse_options

LENGTHS = (1, 2, 5, 10, 20, 30, 50, 64, 65, 75, 100, 120)  # with as many rows as configured
SEQUENCES = 1000
LONG_LENGTH, LONG_ROWS, LONG_SEQUENCES = 1000, 1024, 100
SCORING_SEED = 1
SEEDS = "0,1,2,3,4"

ABLATION_CONFIGS, ABLATION_SEEDS = "m1d1,m1d2,m1d3", "0,1,2"
ABLATION_SEQUENCES, ABLATION_LONG_SEQUENCES = 200, 20  # of each length, and of length 1,000
PAPER = (  # Graves et al. 2014, section 4.6
    "-optimizer rmsprop -momentum 0.9 -lr 1e-4 -lr_schedule constant -clip_norm 0 -clip_spike 0 -clip_value 10 "
    "-batch_size 1 -num_iters 100000 -full_tape -uneven 0 -content_cost 0 -blur_cost 0 -content_dropout 0 -rollback 0 "
    "-restart_after 0 -curriculum 0 -cell_dropout 0"
)
ABLATIONS = {  # what is left out, and the flags of train.py that do so
    "nothing: the recipe": "",
    "content cost": "-content_cost 0",
    "content dropout and weaning": "-content_dropout 0",
    "weaning": "-weaning 0",
    "blur cost": "-blur_cost 0",
    "all four": "-content_cost 0 -content_dropout 0 -blur_cost 0",
    "their wait for the tape": "-content_at_once",
    "uneven sequences": "-uneven 0",
    "short tapes": "-full_tape",
    "the curriculum": "-curriculum 0",
    "cell dropout": "-cell_dropout 0",
    "weight decay": "-weight_decay 0",
    "clipping of spikes": "-clip_spike 0",
    "the way back": "-rollback 0",
    "starting over": "-restart_after 0",
    "all of it: the paper's setting": PAPER,
}


def train_and_score(
    name: str, seed: int, folder: Path, more_flags: list[str], sequences: int, long_sequences: int
) -> dict:
    """Train one configuration with one seed, unless that is done, and score it, unless that is done."""
    result = folder / "log" / f"{name}_reproduce.json"
    saved = folder / "saved_model" / f"reverse_{name}.pt"
    _, wanted = parse_options(["-config", name, "-seed", str(seed), *more_flags])
    if saved.exists() and load(saved)["configuration"] != wanted.as_dict():
        raise InputError(f"{saved}: made by another recipe; delete {folder}, or choose another -output")
    if result.exists():
        return json.loads(result.read_text())
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
        s, _ = score(model, task, sample_lengths(task, [length], sequences, source))
        wrong[length] = round((1 - s.exact) * s.sequences)
    s, _ = score(model, task, sample_lengths(task, [LONG_LENGTH], long_sequences, source), LONG_ROWS)
    wrong[LONG_LENGTH] = round((1 - s.exact) * s.sequences)
    scored = {"name": name, "seed": seed, "wrong_sequences": wrong, **landmarks(folder / "log" / f"{name}.log")}
    write_atomically(result, (json.dumps(scored) + "\n").encode())
    return json.loads(json.dumps(scored))


def landmarks(log: Path) -> dict[str, float | None]:
    """Find in a log when its last attempt found the tape and first answered the held-out set without a mistake."""
    *failed, text = re.split(r"^iteration +\d+: not learned.*\n", log.read_text(), flags=re.MULTILINE)
    found = re.search(r"^iteration +(\d+): the tape is found", text, re.MULTILINE)
    solved = re.search(r"^iteration +(\d+) +([\d.]+) s .*  test: \S+ \S+ bits +\S+ exact 1\.0000", text, re.MULTILINE)
    end = re.search(r"^finished after ([\d.]+) s", text, re.MULTILINE)
    return {
        "found_iteration": int(found[1]) if found else None,
        "restarts": len(failed),
        "solved_iteration": int(solved[1]) if solved else None,
        "solved_seconds": float(solved[2]) if solved else None,
        "seconds": float(end[1]) if end else None,
    }


def run_all(jobs: dict[tuple, tuple], processes: int) -> dict[tuple, dict]:
    """Call `train_and_score` on each job's arguments and say how each ended; results by the jobs' keys."""
    results = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(train_and_score, *job): key for key, job in jobs.items()}
        for future in tqdm(as_completed(futures), total=len(jobs), unit="run"):
            key, result = futures[future], future.result()
            results[key] = result
            bad = {n: wrong for n, wrong in result["wrong_sequences"].items() if wrong}
            tqdm.write(f"{', '.join(map(str, key))}: {bad or 'perfect'}")
    return {key: results[key] for key in jobs}


def print_ablations(results: dict[tuple, dict]) -> None:
    """Print, by what was left out, how many runs found the tape and had no wrong sequence, and shares of exact ones."""
    longest = str(LENGTHS[-1])
    print("\n| left out | tape found | at iteration | no wrong sequence | "
          f"exact at {longest} | exact at {LONG_LENGTH} |\n|---|---|---|---|---|---|")  # fmt: skip
    for variant in dict.fromkeys(key[0] for key in results):
        runs = [result for key, result in results.items() if key[0] == variant]
        found = sorted(r["found_iteration"] for r in runs if r["found_iteration"])
        when = f"{found[len(found) // 2]}" if found else "-"
        perfect = sum(not any(r["wrong_sequences"].values()) for r in runs)
        exact, exact_long = (
            1 - sum(r["wrong_sequences"][n] for r in runs) / (len(runs) * sequences)
            for n, sequences in ((longest, ABLATION_SEQUENCES), (str(LONG_LENGTH), ABLATION_LONG_SEQUENCES))
        )
        counts = f"{len(found)}/{len(runs)} | {when} | {perfect}/{len(runs)}"
        print(f"| {variant} | {counts} | {exact:.3f} | {exact_long:.3f} |")


def print_table(results: list[dict]) -> None:
    """Print, by configuration and length, how many seeds had no wrong sequence, and below that each failure."""
    names = sorted({r["name"] for r in results})
    lengths = [str(n) for n in (*LENGTHS, LONG_LENGTH)]
    print(f"\nRuns without a wrong sequence, of those made: {SEQUENCES} sequences a length, {LONG_SEQUENCES} of length")
    print(f"{LONG_LENGTH} with {LONG_ROWS} rows. Then how often a run started over; and, as medians, when the held-out")
    print("set was first answered without a mistake, in iterations and seconds, and the seconds of a whole run.\n")
    print("| | " + " | ".join(lengths) + " | restarts | iterations | seconds | in all |")
    print("|---" * (len(lengths) + 5) + "|")
    for name in names:
        runs = [r for r in results if r["name"] == name]
        cells = [f"{sum(r['wrong_sequences'][n] == 0 for r in runs)}/{len(runs)}" for n in lengths]
        cells.append(str(sum(r["restarts"] for r in runs)))
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
    """Copy the models, curves and logs of one seed to where the repository keeps its own, in place of those there."""
    for run in (folder / "runs").iterdir():  # its events have names of their own, and would come beside the old ones
        shutil.rmtree(ROOT / "runs" / run.name, ignore_errors=True)
    for top in ("saved_model", "runs", "log"):
        for path in (folder / top).rglob("*"):
            if path.is_file() and not path.name.endswith("_reproduce.json"):
                target = ROOT / top / path.relative_to(folder / top)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def main() -> None:
    """Run what is missing, then print the table of all that is there."""
    parser = Parser(__doc__)
    parser.add("configs", metavar="NAME,...", help=f"which of the nine (default: all; ablations: {ABLATION_CONFIGS})")
    parser.add("seeds", metavar="N,...", help=f"which seeds (default: {SEEDS}; ablations: {ABLATION_SEEDS})")
    parser.add("ablations", action="store_true", help="leave out one part of the recipe at a time")
    parser.add("output", type=Path, default=ROOT / "reproduced", help="folder for the runs (default: reproduced)")
    parser.add("jobs", type=number(int, 1, 256), default=2, help="runs at a time, each on one thread")
    parser.add("table", metavar="FILE", help="where the results go (default: log/seeds.json or log/ablations.json)")
    parser.add("ship", action="store_true", help="copy the runs of the first seed to saved_model/, runs/ and log/")
    parser.add("flags", default="", help="more flags for train.py, in one word: '-full_tape -lr 1e-4'")
    options = parser.parse_args()
    names = (options.configs or (ABLATION_CONFIGS if options.ablations else ",".join(NAMES))).split(",")
    if not set(names) <= set(NAMES):
        raise InputError(f"-configs {options.configs}: choose from {', '.join(NAMES)}")
    if options.ablations and options.ship:
        raise InputError("-ship goes with runs of the whole recipe, not with -ablations")
    whole, wanted = number(int, 0, 2**31), options.seeds or (ABLATION_SEEDS if options.ablations else SEEDS)
    try:
        seeds = [whole(text) for text in wanted.split(",")]
    except Exception as error:
        raise InputError(f"-seeds: {error}") from error
    more = options.flags.split()
    if options.ablations:
        folders = {variant: options.output / "ablations" / re.sub(r"\W+", "_", variant) for variant in ABLATIONS}
        jobs = {
            (variant, name, seed): (
                *(name, seed, folders[variant] / str(seed), flags.split() + more),
                *(ABLATION_SEQUENCES, ABLATION_LONG_SEQUENCES),
            )
            for variant, flags in ABLATIONS.items()
            for name in names
            for seed in seeds
        }
    else:
        jobs = {
            (name, seed): (name, seed, options.output / str(seed), more, SEQUENCES, LONG_SEQUENCES)
            for seed in seeds
            for name in names
        }
    results = run_all(jobs, options.jobs)
    table = options.table or ("log/ablations.json" if options.ablations else "log/seeds.json")
    if options.ablations:
        print_ablations(results)
        lines = [{"left_out": key[0], **result} for key, result in results.items()]
    else:
        lines = sorted(results.values(), key=lambda r: (r["name"], r["seed"]))
        print_table(lines)
    write_atomically(ROOT / table, ("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n").encode())
    if options.ship:
        ship(options.output / str(seeds[0]))


if __name__ == "__main__":
    run_script(main)
