#!/usr/bin/env python
"""Train a Neural Turing Machine on one configuration.

    python train.py -config m1d1

leaves the model in saved_model/, its curves in runs/ (tensorboard --logdir runs) and its log in log/.
torchrun --nproc_per_node=2 train.py ... shares each batch out over two processes.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from experiment import checkpoint, plots
from experiment.backend import choose_device, start_backend
from experiment.code_record import record_of
from experiment.configuration import ROOT
from experiment.errors import InputError, run_script
from experiment.machine_check import check_forgets, check_remade
from experiment.options import parse_options
from experiment.processes import Processes
from experiment.run import InterruptFlag, TrainState, claim_run, final_test, shown_path
from experiment.runlog import RunLog, commit, results_of
from experiment.scoring import TRAINING, HeldOut, draw_held_out, generator, score, seed_torch, sequence_bits, trace
from experiment.state_check import check_shareable
from experiment.task_check import check_task
from experiment.training import Clipper, blur_cost, draw_iteration, largest_size, make_optimizer, set_learning_rate
from ntm import NTM, Backend
from ntm.loss import cross_entropy


def report(state: TrainState, log: RunLog, held_out: HeldOut, lr: float) -> None:
    """Log and draw where the run stands, and begin new means."""
    configuration, means, step = state.configuration, state.means(), state.step
    log.scalars("train", step, loss=means["loss"], cost=means["cost"], bits=means["bits"], exact=means["exact"])
    log.scalars("train", step, learning_rate=lr, gradient_norm=means["norm"])
    log.scalars("train", step, sequences_per_second=state.sequences_per_second())
    largest = largest_size(configuration.recipe, configuration.data, step - 1)._asdict()
    log.scalars("train", step, **{f"largest_{name}": value for name, value in largest.items()})
    line = f"iteration {step:6d}  {state.seconds():7.1f} s  train: "
    line += "loss {loss:.5f} bits {bits:7.3f} exact {exact:.4f}".format(**means)
    for curve, batches in held_out.tests.items():
        result, _ = score(state.model, configuration.task, batches)
        log.scalars(curve, step, loss=result.loss, cost=result.cost, bits=result.bits, exact=result.exact)
        line += f"  {curve}: loss {result.loss:.5f} bits {result.bits:7.3f} exact {result.exact:.4f}"
    log.line(line)
    if isinstance(state.model, NTM) and not state.model.overrides("step"):
        log.images(
            "test", step, plots.trace_images(trace(state.model, configuration.task, held_out.shown)), plots.CAPTIONS
        )
    state.sums = dict.fromkeys(state.sums, 0)


def train(
    state: TrainState, log: RunLog | None, held_out: HeldOut, options: argparse.Namespace, processes: Processes
) -> None:
    """Iterate until the end, or until someone stops the run.

    There is a log in the first process alone, which reports, and saves checkpoints.
    """
    configuration, model, optimizer, clipper = state.configuration, state.model, state.optimizer, state.clipper
    recipe, task, weights = configuration.recipe, configuration.task, model.flat_parameters
    part, interrupt, stop = processes.part(recipe.batch_size), InterruptFlag(), False
    no_bar = None if log else True  # None: tqdm hides it where there is no terminal
    bar = tqdm(total=recipe.num_iters, initial=state.step, unit="it", dynamic_ncols=True, disable=no_bar)
    while state.step < recipe.num_iters and not stop:
        lr = set_learning_rate(recipe, configuration.network.controller_size, state.step, optimizer)
        source = generator(recipe.seed, TRAINING, state.step)  # all that is random follows from seed and iteration
        seed_torch(source.initial_seed() ^ 2)  # what an edited task or recipe draws of torch's own numbers
        batch, memory, cell_mask = draw_iteration(configuration, state.step, source).to(model.device)
        seed_torch(source.initial_seed() ^ 1)  # what an edited model draws, as dropout: from another stream
        weights.grad.zero_()
        loss, logits = model.forward_backward(*batch, memory, cell_mask, blur_cost(recipe, state.step), part)
        loss, logits, stop = processes.combine(weights, loss, logits, recipe.batch_size, interrupt.asked)
        norm = clipper.clip(weights.grad)
        state.require_finite(loss, norm)
        optimizer.step()

        wrong = task.wrong_bits(logits, batch).double()
        entropy = cross_entropy(logits, batch.targets, batch.mask).item()  # without what blur costs
        cost = sequence_bits(entropy, batch)
        state.add(loss=loss, cost=cost, bits=wrong.mean().item(), exact=(wrong == 0).double().mean().item(), norm=norm)
        bar.update()
        if state.step % 50 == 0:
            means, speed = state.means(), state.sequences_per_second()
            bar.set_postfix(loss=f"{means['loss']:.4f}", bits=f"{means['bits']:.2f}", seq_s=f"{speed:.0f}")
        last = state.step == recipe.num_iters
        if log and (state.step % options.report_every == 0 or last):
            report(state, log, held_out, lr)
        if log and not last and (state.step % options.checkpoint_every == 0 or stop):
            state.save(log.file_sizes())
    bar.close()


def finish(state: TrainState, log: RunLog, saved_model: Path, options: argparse.Namespace) -> None:
    """Write the model, delete the checkpoint, and say how good the model is and what to do next."""
    trained = {"iterations": state.step, "seconds": state.seconds(), "commit": commit()}
    configuration = state.configuration
    contents = {"configuration": configuration.as_dict(), "model": state.model.state_dict(), "trained": trained}
    contents |= record_of(state.model, configuration)
    saved_model = state.free_path(saved_model)
    checkpoint.save(saved_model, contents)
    made_again = checkpoint.makes_again(saved_model, configuration, state.model)
    outcome, took = final_test(state), f"finished after {trained['seconds']:.1f} s"
    if not made_again:
        outcome += "\nthe file makes another machine than was trained: what was done to it is in no file"
    log.line(f"{took}: {saved_model.name}, weights {checkpoint.weights_mark(state.model.state_dict())}\n{outcome}")
    log.close()
    state.path.unlink()
    print(f"{took}: {shown_path(saved_model)}\n{outcome}")
    log_path = options.output / "log" / f"{configuration.name}.log"
    print(f"log: {shown_path(log_path)}")
    if before := results_of(log_path):
        print(f"beside it, from before, until evaluate.py makes them anew: {', '.join(path.name for path in before)}")
    print(f"curves: tensorboard --logdir {shown_path(options.output / 'runs')}")
    flags = "" if options.backend == "auto" else f" -backend {options.backend}"
    flags += "" if options.output.resolve() == ROOT else f" -output {shown_path(options.output)}"
    print(f"test it: python {shown_path(ROOT / 'evaluate.py')} -saved_model {shown_path(saved_model)}{flags}")


def run(processes: Processes) -> None:
    """One run, from top to bottom, in one process or in several, of which the first prints and writes files."""
    # Options, model, and the places of the run's files.
    options, configuration = parse_options(__doc__)
    check_task(configuration)
    torch.manual_seed(configuration.recipe.seed)
    model = configuration.make_model(Backend(options.backend))
    processes.part(configuration.recipe.batch_size)  # or an error, if there is none
    device = choose_device(options.device, model, processes.local_rank)
    model = model.to(device)
    check_remade(model, configuration)
    check_forgets(model, configuration)
    if options.init and not options.resume:
        model.load_state_dict(processes.share(lambda: checkpoint.weights_for(model, configuration, options.init)))
    wanted_name = configuration.name
    claim = claim_run(configuration, options) if processes.first else None
    configuration, folder, saved_model, replaces, _ = processes.share(lambda: claim._replace(lock=None))
    recipe, name = configuration.recipe, configuration.name

    # Optimizer, and sequences that training never looks at.
    runs_on = processes.in_turn(lambda: start_backend(model, True, options.threads, recipe.blur_cost))
    if processes.count > 1:
        check_shareable(model)
        runs_on += f", {processes.count} processes"
    weights = model.flatten_parameters()
    optimizer = make_optimizer(recipe, weights, model.use_fused())
    path, init = folder / "checkpoint.pt", options.init
    state = TrainState(configuration, model, optimizer, Clipper(recipe), path, replaces=replaces, init=init)
    held_out = draw_held_out(configuration)
    if model.use_fused() != runs_on.startswith("fused"):
        raise InputError(f"the machine was changed after it was looked at ({model.why_not_fused()}): do it before that")

    # From the beginning, or from the last checkpoint on.
    if options.resume:
        state.load(processes.share(lambda: checkpoint.load_to_resume(state.path)))
    if not claim:
        train(state, None, held_out, options, processes)
        return
    log = RunLog(configuration, options.output / "log", options.output / "runs", state.step, state.file_sizes)
    log.write_header("python " + shlex.join(sys.argv), runs_on, state.step if options.resume else None)
    state.save(log.file_sizes())
    if name != wanted_name and not options.resume:
        print(f"there is a run {wanted_name} already: this one is {name} (-overwrite replaces {wanted_name})")
    print(f"{name}: {weights.numel():,} parameters, {runs_on}, seed {recipe.seed}")
    try:
        train(state, log, held_out, options, processes)
        state.require_finite_weights()
    except InputError as error:
        log.line(str(error))
        raise

    if state.step < recipe.num_iters:
        log.close()
        once = "-resume", "--resume", "-overwrite", "--overwrite"
        again = shlex.join([*(word for word in sys.argv if word not in once), "-resume"])
        print(f"stopped at iteration {state.step}; to go on: python {again}")
        sys.exit(130)
    finish(state, log, saved_model, options)
    claim.lock.release()


def main() -> None:
    """Meet the other processes, if there are any, and run."""
    with Processes.join() as processes:
        run(processes)


if __name__ == "__main__":
    run_script(main)
