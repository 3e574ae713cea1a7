#!/usr/bin/env python
"""Train a Neural Turing Machine on one configuration.

    python train.py -config m1d1

leaves the model in saved_model/, its curves in runs/ (tensorboard --logdir runs) and its log in log/.
"""

import argparse
import dataclasses
import math
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from experiment import checkpoint, plots
from experiment.backend import choose_device, start_backend
from experiment.configuration import NAMES, ROOT, Configuration, load_configuration, load_recipe, load_task_json
from experiment.errors import InputError, Parser, number, run_script
from experiment.recipe import Recipe, bounds, make_recipe, refuse_other_optimizers
from experiment.runlog import RunLog, commit
from experiment.scoring import (
    BATCHES,
    HELD_OUT,
    Score,
    generator,
    sample_lengths,
    score,
    spread_lengths,
    stream_seed,
    trace,
)
from experiment.training import Clipper, blur_cost, draw_iteration, longest_length, make_optimizer, set_learning_rate
from ntm import Backend
from ntm.backend import use_fused

LEARNED = 0.95  # the share of right sequences in the held-out set below which a run says that it has not learned


def add_recipe_flag(parser: Parser, field: dataclasses.Field) -> None:
    """Add the flag of one setting of the recipe; where it is not given, the recipe's own value counts."""
    options = {"default": argparse.SUPPRESS, "help": field.metadata["help"]}
    if "optimizer" in field.metadata:
        options["help"] = f"{field.metadata['optimizer']}: {options['help']}"
    if field.type is bool:
        options["action"] = "store_true"
    else:
        options["help"] += f" (default: {field.default})"
        limits = field.metadata.get("choices")
        options |= {"choices": limits} if limits else {"type": number(*bounds(field))}
    parser.add(field.name, **options)


def parse_options(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Configuration]:
    """Read the command line, or given arguments; each flag of the recipe that is not given keeps its default."""
    parser = Parser(__doc__)
    parser.add("config", default="m1d1", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add("task_json", type=Path, metavar="FILE", help="a JSON file with network and data, instead of -config")
    parser.add(
        "saved_model", type=Path, metavar="PATH", help="the finished model (default: saved_model/reverse_<config>.pt)"
    )
    parser.add(
        "output", type=Path, default=ROOT, metavar="FOLDER", help="holds saved_model/, runs/ and log/ (default: here)"
    )
    parser.add("resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add("device", default="auto", metavar="NAME", help="cpu or cuda; auto: cuda if there is one")
    parser.add("backend", default="auto", choices=[b.value for b in Backend], help="which code runs the machine")
    parser.add("report_every", type=number(int, 1, 10**9), default=500, help="iterations between test points")
    parser.add("checkpoint_every", type=number(int, 1, 10**9), default=500, help="iterations between checkpoints")

    parser.add("recipe", metavar="NAME", help="a file in configs/recipes/, as paper: Graves et al.'s own setting")
    for field in dataclasses.fields(Recipe):
        add_recipe_flag(parser, field)
    options = parser.parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe) if field.name in options}
    if options.recipe:
        recipe = load_recipe(options.recipe, given)
    else:
        recipe = make_recipe(given, "-")
        refuse_other_optimizers(given, recipe)
    if options.task_json is None:
        return options, load_configuration(options.config, recipe)
    return options, load_task_json(options.task_json, recipe)


class StopAsked:
    """Becomes true at the first Ctrl-C or SIGTERM, which ends the run after its current iteration.

    A second one ends it at once.
    """

    def __init__(self) -> None:
        self.asked = False
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, self._ask)

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def __bool__(self) -> bool:
        return self.asked


def verdict(held_out: Score) -> str:
    """Say how good a model is on the held-out set of trained lengths, and that it has not learned, where it has not."""
    right = round(held_out.exact * held_out.sequences)
    said = f"{right} of {held_out.sequences} held-out sequences of trained lengths are right"
    if held_out.exact < LEARNED:
        said += (
            f" ({held_out.bits:.1f} wrong bits a sequence): it has not learned; try another -seed, or more -num_iters"
        )
    return said


def shown_path(path: Path) -> str:
    """A path as one would type it here."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def take(folder: Path) -> FileLock:
    """Make a run's folder this process's own, until it ends in whatever way.

    Raises:
        InputError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{folder}: another run is writing here; wait for it, or choose another -output") from error
    return lock


def main() -> None:
    """One run, from top to bottom."""
    options, configuration = parse_options()
    recipe, data = configuration.recipe, configuration.data
    device = choose_device(options.device)
    saved_model = options.saved_model or options.output / "saved_model" / f"{configuration.title}.pt"
    folder = options.output / "runs" / configuration.name
    checkpoint_path = folder / "checkpoint.pt"
    if options.resume and not checkpoint_path.exists():
        raise InputError(f"-resume: there is no {checkpoint_path}; leave -resume away to start from the beginning")
    if not options.resume and checkpoint_path.exists():
        raise InputError(f"{checkpoint_path}: an interrupted run; go on with -resume, or delete it to start anew")
    lock = take(folder)

    # Everything random follows from the seed, and at each iteration from seed and iteration alone.
    torch.manual_seed(recipe.seed)
    task = configuration.make_task()
    model = configuration.make_model(Backend(options.backend)).to(device)
    path = start_backend(model)
    weights, fused = model.flatten_parameters(), use_fused(model.backend, model.initial_hidden)
    optimizer, clipper = make_optimizer(recipe, weights, fused), Clipper(recipe)
    held_out = generator(recipe.seed, HELD_OUT)
    tests = {
        "test": sample_lengths(task, spread_lengths(data.min_seq_len, data.max_seq_len, 8), 16, held_out),
        "test_longer": sample_lengths(
            task, spread_lengths(data.longer_min_seq_len, data.longer_max_seq_len, 4), 16, held_out
        ),
    }
    shown = task.sample(1, data.max_seq_len, held_out)

    # Where the run stands: all that a checkpoint keeps beside the optimizer and the files' sizes.
    step, seconds_before = 0, 0.0
    sums = {"iters": 0, "loss": 0.0, "bits": 0.0, "exact": 0.0, "norm": 0.0}  # since the last report
    sizes = None
    if options.resume:
        stored = checkpoint.load(checkpoint_path, device)
        if Configuration.from_dict(stored["configuration"], str(checkpoint_path)) != configuration:
            raise InputError(f"-resume: {checkpoint_path} is of a run with other flags; give the same flags as then")
        model.load_state_dict(stored["model"])
        try:
            optimizer.load_state_dict(stored["optimizer"])
        except ValueError as error:
            raise InputError(f"-resume: {checkpoint_path} is of an older train.py; delete it to start anew") from error
        clipper.log_typical, step, seconds_before = stored["log_typical_norm"], stored["step"], stored["seconds"]
        sums, sizes = stored["sums"], stored["sizes"]
    log = RunLog(configuration, options.output / "log", options.output / "runs", step, sizes)
    if not options.resume:
        log.write_header("python " + shlex.join(sys.argv), configuration, path)
    print(f"{configuration.name}: {weights.numel():,} parameters, {path}, seed {recipe.seed}")
    step_before, started = step, time.perf_counter()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - started

    def save_checkpoint() -> None:
        if not weights.isfinite().all():
            stop_for(f"iteration {step}: a weight is not finite")
        contents = {
            "configuration": configuration.as_dict(),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "log_typical_norm": clipper.log_typical,
            "step": step,
            "seconds": seconds(),
            "sums": sums,
            "sizes": log.sizes(),
        }
        checkpoint.save(checkpoint_path, contents)

    def stop_for(reason: str) -> NoReturn:
        where = f"{configuration.name}, seed {recipe.seed}; batch seed {stream_seed(recipe.seed, BATCHES, step)}"
        log.line(f"{reason} ({where}); stopped")
        raise InputError(f"{reason} ({where}); stopped before a model was spoiled; {checkpoint_path} is from before")

    def report() -> Score:
        means = {key: sums[key] / sums["iters"] for key in sums}
        log.scalars("train", step, loss=means["loss"], bits=means["bits"], exact=means["exact"])
        rate = (step - step_before) * recipe.batch_size / (time.perf_counter() - started)
        log.scalars("train", step, learning_rate=lr, gradient_norm=means["norm"], sequences_per_second=rate)
        log.scalars("train", step, longest_length=longest_length(recipe, data, step))
        line = f"iteration {step:6d}  {seconds():7.1f} s  train: "
        line += "loss {loss:.5f} bits {bits:7.3f} exact {exact:.4f}".format(**means)
        results = {curve: score(model, task, batches)[0] for curve, batches in tests.items()}
        for curve, result in results.items():
            log.scalars(curve, step, loss=result.loss, bits=result.bits, exact=result.exact)
            line += f"  {curve}: loss {result.loss:.5f} bits {result.bits:7.3f} exact {result.exact:.4f}"
        log.line(line)
        log.images("test", step, plots.trace_images(trace(model, shown)))
        sums.update(dict.fromkeys(sums, 0))
        return results["test"]

    if not options.resume:
        save_checkpoint()
    stop = StopAsked()
    bar = tqdm(total=recipe.num_iters, initial=step, unit="it", dynamic_ncols=True, disable=None)
    while step < recipe.num_iters and not stop:
        lr = set_learning_rate(recipe, step, optimizer)
        batch, memory, cell_mask = draw_iteration(configuration, step, generator(recipe.seed, BATCHES, step)).to(device)
        weights.grad.zero_()
        loss, logits = model.forward_backward(*batch, memory, cell_mask, blur_cost(recipe, step))
        norm = clipper.clip(weights.grad)
        if not (math.isfinite(norm) and math.isfinite(loss)):
            stop_for(f"iteration {step + 1}: loss {loss} or gradient norm {norm} is not finite")
        optimizer.step()

        step += 1
        wrong = task.wrong_bits(logits, batch)
        sums["iters"] += 1
        sums["loss"] += loss
        sums["bits"] += wrong.mean(dtype=torch.float64).item()
        sums["exact"] += (wrong == 0).double().mean().item()
        sums["norm"] += norm
        bar.update()
        if step % 50 == 0:
            rate = (step - step_before) * recipe.batch_size / (time.perf_counter() - started)
            loss_now, bits_now = (sums[key] / sums["iters"] for key in ("loss", "bits"))
            bar.set_postfix(loss=f"{loss_now:.4f}", bits=f"{bits_now:.2f}", seq_s=f"{rate:.0f}")
        if step % options.report_every == 0 or step == recipe.num_iters:
            held_out_score = report()
        if step % options.checkpoint_every == 0 and step < recipe.num_iters:
            save_checkpoint()
    bar.close()

    if step < recipe.num_iters:
        save_checkpoint()
        log.close()
        again = shlex.join([*(word for word in sys.argv if word.lstrip("-") != "resume"), "-resume"])
        print(f"stopped at iteration {step}; to go on: python {again}")
        sys.exit(130)
    trained = {"iterations": step, "seconds": seconds(), "commit": commit()}
    contents = {"configuration": configuration.as_dict(), "model": model.state_dict(), "trained": trained}
    checkpoint.save(saved_model, contents)
    log.line(f"finished after {seconds():.1f} s: {saved_model.name}")
    log.line(verdict(held_out_score))
    log.close()
    checkpoint_path.unlink()
    lock.release()
    print(f"finished after {seconds():.1f} s: {shown_path(saved_model)}\n{verdict(held_out_score)}")
    print(f"log: {shown_path(options.output / 'log' / f'{configuration.name}.log')}")
    print(f"curves: tensorboard --logdir {shown_path(options.output / 'runs')}")
    print(f"test it: python evaluate.py -saved_model {shown_path(saved_model)}")


if __name__ == "__main__":
    run_script(main)
