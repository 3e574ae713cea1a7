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

import torch
from tqdm import tqdm

from experiment import checkpoint, plots
from experiment.backend import choose_device, start_backend
from experiment.configuration import NAMES, ROOT, Configuration, Recipe, load_configuration, load_task_json
from experiment.errors import InputError, Parser, number, run_script
from experiment.runlog import RunLog, commit
from experiment.scoring import BATCHES, HELD_OUT, generator, sample_lengths, score, spread_lengths, trace
from experiment.training import Clipper, draw_batch, longest_length, make_optimizer, set_schedule
from ntm import Backend

OPTIMIZER_FLAGS = {"adam": ("beta1", "beta2", "eps", "weight_decay"), "rmsprop": ("momentum", "alpha")}
REPORTS_AN_IMAGE = 8


def parse_options() -> tuple[argparse.Namespace, Configuration]:
    """Read the command line; each flag of the recipe that is not given keeps its default."""
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

    def recipe_flag(name: str, help: str, **options) -> None:
        default = getattr(Recipe, name)
        shown = "" if default is False else f" (default: {default})"
        parser.add(name, default=argparse.SUPPRESS, help=help + shown, **options)

    whole, share, positive = number(int, 1, 10**9), number(float, 0, 1), number(float, 0, 1e18, low_open=True)
    below_one, not_negative = number(float, 0, 0.999999), number(float, 0, 1e18)
    recipe_flag("batch_size", "sequences an iteration", type=number(int, 1, 100_000))
    recipe_flag("num_iters", "iterations", type=whole)
    recipe_flag("optimizer", "which one", choices=list(OPTIMIZER_FLAGS))
    recipe_flag("lr", "learning rate", type=positive)
    recipe_flag("lr_schedule", "how the rate goes on, and cell dropout with it", choices=["cosine", "constant"])
    recipe_flag("beta1", "adam: decay of the gradient's mean", type=below_one)
    recipe_flag("beta2", "adam: decay of its square's mean", type=below_one)
    recipe_flag("eps", "adam: gradients well below this hardly move a weight", type=positive)
    recipe_flag("weight_decay", "adam: decoupled weight decay", type=not_negative)
    recipe_flag("momentum", "rmsprop: momentum", type=below_one)
    recipe_flag("alpha", "rmsprop: decay of the square's mean", type=below_one)
    recipe_flag("clip_norm", "clip the gradient's norm; 0: off", type=not_negative)
    recipe_flag("clip_spike", "clip the norm to this many times its running mean; 0: off", type=not_negative)
    recipe_flag("clip_value", "clip each of its elements; 0: off", type=not_negative)
    recipe_flag("cell_dropout", "chance that a controller cell forgets", type=below_one)
    recipe_flag("content_dropout", "chance that a sequence goes without content addressing", type=share)
    recipe_flag("content_cost", "what gates open to content add to the loss", type=not_negative)
    recipe_flag("curriculum", "share of iterations in which lengths grow", type=share)
    recipe_flag("uneven", "share of batches with any share of ones and repeated vectors", type=share)
    recipe_flag("full_tape", "always train on all rows of memory", action="store_true")
    recipe_flag("seed", "everything random follows from it", type=number(int, 0, 2**63 - 1))
    options = parser.parse_args()
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe) if field.name in options}
    recipe = Recipe(**given)
    for optimizer, flags in OPTIMIZER_FLAGS.items():
        for flag in flags:
            if flag in given and optimizer != recipe.optimizer:
                raise InputError(f"-{flag} is a flag of -optimizer {optimizer}; this run uses {recipe.optimizer}")
    if options.task_json is None:
        return options, load_configuration(options.config, recipe)
    return options, load_task_json(options.task_json, recipe)


class StopAsked:
    """Becomes true at the first Ctrl-C, which ends the run after its current iteration; a second ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __bool__(self) -> bool:
        return self.asked


def main() -> None:
    """One run, from top to bottom."""
    options, configuration = parse_options()
    recipe, data, memory_units = configuration.recipe, configuration.data, configuration.network.memory_units
    device = choose_device(options.device)
    saved_model = options.saved_model or options.output / "saved_model" / f"{configuration.title}.pt"
    checkpoint_path = options.output / "runs" / configuration.name / "checkpoint.pt"

    # Everything random: weights and cell masks from torch's own generator, batches and held-out sets from theirs.
    torch.manual_seed(recipe.seed)
    batches = generator(recipe.seed, BATCHES)
    task = configuration.make_task()
    model = configuration.make_model(Backend(options.backend)).to(device)
    path = start_backend(model)
    parameters = list(model.parameters())
    optimizer, clipper = make_optimizer(recipe, parameters), Clipper(recipe)
    progress = {
        "step": 0,
        "seconds": 0.0,
        "log_size": 0,
        "losses": 0.0,
        "bits": 0.0,
        "exact": 0.0,
        "norms": 0.0,
        "iters": 0,
    }

    if options.resume:
        if not checkpoint_path.exists():
            raise InputError(f"-resume: there is no {checkpoint_path}; leave -resume away to start from the beginning")
        stored = checkpoint.load(checkpoint_path)
        if Configuration.from_dict(stored["configuration"], str(checkpoint_path)) != configuration:
            raise InputError(f"-resume: {checkpoint_path} is of a run with other flags; give the same flags as then")
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        torch.set_rng_state(stored["default_generator"])
        if device.type == "cuda" and stored["cuda_generator"] is not None:
            torch.cuda.set_rng_state(stored["cuda_generator"])
        batches.set_state(stored["batches_generator"])
        clipper.log_typical, progress = stored["log_typical_norm"], stored["progress"]

    held_out = generator(recipe.seed, HELD_OUT)
    tests = {
        "test": sample_lengths(task, spread_lengths(data.min_seq_len, data.max_seq_len, 8), 16, held_out),
        "test_longer": sample_lengths(
            task, spread_lengths(data.longer_min_seq_len, data.longer_max_seq_len, 4), 16, held_out
        ),
    }
    shown = task.sample(1, data.max_seq_len, held_out)

    log = RunLog(
        configuration,
        options.output / "log",
        options.output / "runs",
        options.resume,
        progress["step"],
        progress["log_size"],
    )
    if not options.resume:
        log.write_header("python " + shlex.join(sys.argv), configuration, path)
    print(f"{configuration.name}: {sum(p.numel() for p in parameters):,} parameters, {path}, seed {recipe.seed}")

    def save_checkpoint() -> None:
        log.flush()
        progress.update(step=step, seconds=seconds_before + time.perf_counter() - started, log_size=log.log_size)
        contents = {
            "configuration": configuration.as_dict(),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "default_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state() if device.type == "cuda" else None,
            "batches_generator": batches.get_state(),
            "log_typical_norm": clipper.log_typical,
            "progress": progress,
        }
        checkpoint.save(checkpoint_path, contents)

    def report() -> None:
        iters, seconds = progress["iters"], seconds_before + time.perf_counter() - started
        loss, bits, exact, norm = (progress[key] / iters for key in ("losses", "bits", "exact", "norms"))
        log.scalars("train", step, loss=loss, bits=bits, exact=exact)
        rate = (step - step_before) * recipe.batch_size / (time.perf_counter() - started)
        longest = longest_length(recipe, data, step)
        log.scalars(
            "train", step, learning_rate=lr, gradient_norm=norm, sequences_per_second=rate, longest_length=longest
        )
        line = f"iteration {step:6d}  {seconds:7.1f} s  train: loss {loss:.5f} bits {bits:7.3f} exact {exact:.4f}"
        for curve, test_batches in tests.items():
            result, _ = score(model, task, test_batches)
            log.scalars(curve, step, loss=result.loss, bits=result.bits, exact=result.exact)
            line += f"  {curve}: loss {result.loss:.5f} bits {result.bits:7.3f} exact {result.exact:.4f}"
        if step % (REPORTS_AN_IMAGE * options.report_every) == 0 or step == recipe.num_iters:
            for tag, image in plots.trace_images(trace(model, shown)).items():
                log.curves["test"].add_image(tag, image, step)
        log.line(line)
        progress.update(losses=0.0, bits=0.0, exact=0.0, norms=0.0, iters=0)

    stop = StopAsked()
    step = step_before = progress["step"]
    seconds_before, started = progress["seconds"], time.perf_counter()
    bar = tqdm(total=recipe.num_iters, initial=step, unit="it", dynamic_ncols=True, disable=None)
    while step < recipe.num_iters and not stop:
        lr = set_schedule(recipe, step, optimizer, model)
        batch, rows = draw_batch(recipe, data, task, memory_units, step, batches)
        batch = batch.to(device)
        logits, _ = model(batch.inputs, memory_units=rows)
        loss = task.loss(logits, batch)
        optimizer.zero_grad()
        loss.backward()
        norm = clipper.clip(parameters)
        if not math.isfinite(norm):
            log.line(f"iteration {step + 1}: the loss is {loss.item()} and the gradient's norm {norm}; stopped")
            raise InputError(
                f"iteration {step + 1}: the gradient is not finite; stopped before it could spoil the model"
            )
        optimizer.step()

        step += 1
        wrong = task.wrong_bits(logits.detach(), batch)
        progress["iters"] += 1
        progress["losses"] += loss.item()
        progress["bits"] += wrong.mean(dtype=torch.float64).item()
        progress["exact"] += (wrong == 0).double().mean().item()
        progress["norms"] += norm
        bar.update()
        if step % 50 == 0:
            rate = (step - step_before) * recipe.batch_size / (time.perf_counter() - started)
            n = progress["iters"]
            bar.set_postfix(
                loss=f"{progress['losses'] / n:.4f}", bits=f"{progress['bits'] / n:.2f}", seq_s=f"{rate:.0f}"
            )
        if step % options.report_every == 0 or step == recipe.num_iters:
            report()
            save_checkpoint()
    bar.close()

    if step < recipe.num_iters:
        save_checkpoint()
        log.close()
        again = shlex.join([*(word for word in sys.argv if word.lstrip("-") != "resume"), "-resume"])
        print(f"stopped at iteration {step}; to go on: python {again}")
        sys.exit(130)
    trained = {"iterations": step, "seconds": progress["seconds"], "commit": commit()}
    contents = {"configuration": configuration.as_dict(), "model": model.state_dict(), "trained": trained}
    checkpoint.save(saved_model, contents)
    checkpoint_path.unlink()
    log.line(f"finished after {progress['seconds']:.1f} s: {saved_model.name}")
    log.close()
    print(f"finished after {progress['seconds']:.1f} s: {saved_model}")


if __name__ == "__main__":
    run_script(main)
