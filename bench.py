#!/usr/bin/env python
"""Measure how fast the machine runs: the reference path and the fused one, in turn, in one process.

    python bench.py

prints, for one training step (forward, backward, clipping, optimizer) and for a forward without gradients, the median
milliseconds, sequences a second, the ratio to the reference path in the same run, and the share of this computer's own
measured peak that the matrix products alone account for. Then, what long sequences take, and what starting takes.
torchrun --nproc_per_node=2 bench.py prints what a training step takes where two processes share the batch.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch

from experiment.backend import choose_device, start_backend
from experiment.configuration import NINE, ROOT, Configuration, load_configuration
from experiment.errors import InputError, Parser, number, numbers, run_script
from experiment.processes import Processes
from experiment.runlog import processor
from experiment.training import Clipper, draw_mask, draw_memory, make_optimizer
from ntm import NTM, Backend
from ntm.loss import cross_entropy

PEAK_SIZE = 1024


def milliseconds(seconds: float, device: torch.device, *works: Callable[[], None]) -> list[float]:
    """Run each work for about so many seconds, in turn, after a warm-up; the median times of a call in milliseconds."""

    def once(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times: list[list[float]] = [[] for _ in works]
    for work in works:
        once(work)
    end = time.perf_counter() + seconds * len(works)
    while len(times[0]) < 3 or time.perf_counter() < end:
        for work, taken in zip(works, times, strict=True):
            taken.append(once(work))
    return [1e3 * statistics.median(taken) for taken in times]


def peak_flops(device: torch.device) -> float:
    """Measure the computer's float32 matrix product rate, in operations a second."""
    a = torch.rand(PEAK_SIZE, PEAK_SIZE, device=device)
    return 2 * PEAK_SIZE**3 / (1e-3 * milliseconds(0.5, device, lambda: torch.mm(a, a))[0])


def products(model: NTM, steps: int) -> int:
    """Count the operations of the matrix products in one sequence's forward pass."""
    maps = model.controller.gate_proj, model.heads.control_proj, model.output_proj
    return 2 * steps * sum(linear.weight.numel() for linear in maps)


def training_step(
    configuration: Configuration,
    model: NTM,
    batch_size: int,
    length: int,
    autograd: bool = False,
    processes: Processes | None = None,
) -> Callable[[], None]:
    """Make the work of one training iteration: one fixed batch, and each time another memory and other cells forget.

    With `autograd`, by `loss.backward()` of a loss of one's own, without the cost of blur; with `processes`, shared out
    over them.
    """
    processes = processes or Processes()
    part = processes.part(batch_size)
    task, network = configuration.task, configuration.network
    recipe = dataclasses.replace(configuration.recipe, batch_size=batch_size)
    source, device = torch.Generator().manual_seed(0), model.device
    batch = task.sample(batch_size, (length,), source).to(device)
    weights = model.flatten_parameters()
    optimizer, clipper = make_optimizer(recipe, weights, model.use_fused()), Clipper(recipe)
    cells = *batch.inputs.shape[:2], network.controller_size

    def work() -> None:
        memory = draw_memory(recipe, network.memory_units, network.memory_unit_size, source)
        cell_mask = draw_mask(1 - recipe.cell_dropout, cells, source)
        weights.grad.zero_()
        if autograd:
            start = model.initial_state(batch_size)._replace(memory=memory.to(device))
            logits, _ = model(batch.inputs, start, cell_mask=cell_mask.to(device))
            cross_entropy(logits, batch.targets, batch.mask).backward()
        else:
            loss, logits = model.forward_backward(
                *batch, memory.to(device), cell_mask.to(device), recipe.blur_cost, part
            )
            processes.combine(weights, loss, logits, batch_size, False)
        clipper.clip(weights.grad)
        optimizer.step()

    return work


def forward_only(
    configuration: Configuration, model: NTM, batch_size: int, length: int, rows: int | None = None
) -> Callable[[], None]:
    """Make the work of one forward pass without gradients, with the configured rows of memory or others."""
    task = configuration.task
    batch = task.sample(batch_size, (length,), torch.Generator().manual_seed(0)).to(model.device)
    model.eval()

    @torch.no_grad()
    def work() -> None:
        model(batch.inputs, memory_units=rows)

    return work


STARTED = """
import time, tracemalloc, torch, bench
from experiment.configuration import load_configuration
from experiment.backend import start_backend
configuration = load_configuration("m1d1")
model, began = configuration.make_model(), time.perf_counter()
start_backend(model, training=TRAINING)
seconds = time.perf_counter() - began
from ntm.fused import runtime
"""
TRAINED = """
work = bench.training_step(configuration, model, 64, 100)
work()
"""
EVALUATED = """
work = bench.forward_only(configuration, model, 32, 1000, rows=1024)
"""
MEASURED = """
began = time.perf_counter()
work()
print(f"{time.perf_counter() - began:.2f} s")
runtime._spare_buffers.clear()
tracemalloc.start()
work()
print(f"{tracemalloc.get_traced_memory()[1] / 2**20:.0f} MB")
"""


def in_a_process(code: str, training: bool, **environment: str) -> str:
    """Run Python code in a process of its own; returns what it printed."""
    command = [sys.executable, "-c", f"TRAINING = {training}\n" + STARTED + code]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def long_sequences() -> None:
    """Print time and memory that long sequences take on the fused path, for m1."""
    for name, code in (
        ("training step, 64 sequences of length 100", TRAINED),
        ("answers to 32 sequences of length 1,000, 1,024 rows", EVALUATED),
    ):
        print(f"{name}: {', '.join(in_a_process(code + MEASURED, code is TRAINED).splitlines())}")


def start_up() -> None:
    """Print what the fused path adds to the start of train.py and of evaluate.py, cold and cached."""
    for script, training in (("train.py", True), ("evaluate.py", False)):
        with tempfile.TemporaryDirectory() as folder:
            seconds = [in_a_process("print(seconds)", training, NUMBA_CACHE_DIR=folder) for _ in range(2)]
        cold, cached = map(float, seconds)
        print(f"start of the fused path in {script}: {cold:.1f} s, from the cache {cached:.1f} s")


def in_step(work: Callable[[], None], seconds: float, device: torch.device, processes: Processes) -> float:
    """The median time of a call in milliseconds, where all processes must make the same number of calls."""
    rounds = 1 + int(seconds / (5e-3 * milliseconds(0, device, work)[0]))  # each a warm-up and three calls
    rounds = processes.share(lambda: rounds)
    return statistics.median(milliseconds(0, device, work)[0] for _ in range(rounds))


def shared_batches(
    configurations: list[Configuration], options: argparse.Namespace, device: torch.device, processes: Processes
) -> None:
    """Print what a training step takes where all processes share the batch, and what their exchange alone takes."""
    if processes.first:
        print(f"{processes.count} processes\n            batch   step ms    seq/s  exchange ms")
    for configuration in configurations:
        for batch_size in options.batch_sizes:
            torch.manual_seed(0)  # the same model in all of them
            model = configuration.make_model().to(device)
            processes.in_turn(partial(start_backend, model, training=True))
            step = training_step(configuration, model, batch_size, options.length, processes=processes)
            step()
            weights, part = model.flat_parameters, processes.part(batch_size).sequences(batch_size)
            logits = torch.zeros(2 * options.length + 2, part.stop - part.start, model.output_proj.out_features)
            exchange = partial(processes.combine, weights, 0.0, logits.to(device), batch_size, False)
            step_ms, exchange_ms = (in_step(work, options.seconds, device, processes) for work in (step, exchange))
            if processes.first:
                line = f"{configuration.name[:2]:6}{batch_size:11d}{step_ms:10.2f}{1e3 * batch_size / step_ms:9.0f}"
                print(f"{line}{exchange_ms:13.2f}", flush=True)


def main() -> None:
    """Measure and print."""
    with Processes.join() as processes:
        measure(processes)


def measure(processes: Processes) -> None:
    """Measure and print, in one process; or, in several, what they make of a batch together."""
    parser = Parser(__doc__)
    parser.add("configs", default="m1d1,m2d1,m3d1", help="configurations to measure")
    parser.add("batch_sizes", type=numbers(1, 10**6), default="1,16,64", help="sequences a batch")
    parser.add("length", type=number(int, 1, 100_000), default=10, help="of a sequence")
    parser.add("threads", type=numbers(1, 1024), default="1,2", help="numbers of threads")
    parser.add("seconds", type=number(float, 0, 1000), default=2.0, help="time for each measurement")
    parser.add("compile", action="store_true", help="measure the reference path with torch.compile as well (slow)")
    parser.add("device", default="cpu", metavar="NAME", help="cpu or cuda")
    options = parser.parse_args()
    device = choose_device(options.device, index=processes.local_rank)
    names = options.configs.split(",")
    if not set(names) <= set(NINE):
        raise InputError(f"-configs {options.configs}: choose from {', '.join(NINE)}")
    configurations = [load_configuration(name) for name in names]
    paths = ["reference"] + ["compiled"] * options.compile + ["fused"] * (device.type == "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    if processes.first:
        print(f"{name}, torch {torch.__version__}, length {options.length}, medians of {options.seconds:g} s each")
    if processes.count > 1:
        shared_batches(configurations, options, device, processes)
        return

    for n in options.threads:
        torch.set_num_threads(n)
        peak = peak_flops(device)
        print(f"\n{n} thread{'s' * (n > 1)}; float32 matrix products at {peak / 1e9:.0f} GFLOP/s")
        columns = {"": 6, "batch": 6, " path": -11, "step ms": 9, "seq/s": 9, "ratio": 7, "products": 10}
        columns |= {"forward ms": 12, "forward ratio": 15, "backward() / step": 19}
        print("".join(f"{name:{'<' if width < 0 else '>'}{abs(width)}}" for name, width in columns.items()))
        for configuration in configurations:
            for batch_size in options.batch_sizes:
                slow: tuple[float, float] | None = None
                for path in paths:
                    model = configuration.make_model(Backend("reference" if path == "compiled" else path)).to(device)
                    torch.set_num_threads(n)
                    start_backend(model, training=True, threads=n)
                    if path == "compiled":
                        torch.compiler.reset()  # else, after eight models it would give up compiling
                        model.step_with_focus = torch.compile(model.step_with_focus)
                    works = [
                        training_step(configuration, model, batch_size, options.length, autograd)
                        for autograd in (False, True)
                    ]
                    (step,) = milliseconds(options.seconds, device, works[0])
                    beside, by_autograd = milliseconds(options.seconds / 2, device, *works)
                    answer = forward_only(configuration, model, batch_size, options.length)
                    (forward,) = milliseconds(options.seconds / 2, device, answer)
                    slow = slow or (step, forward)
                    share = 3 * products(model, 2 * options.length + 2) * batch_size / peak / (1e-3 * step)
                    line = f"{configuration.name[:2]:6}{batch_size:6d} {path:10}{step:9.2f}"
                    line += f"{1e3 * batch_size / step:9.0f}{slow[0] / step:7.1f}{share:10.0%}"
                    line += f"{forward:12.2f}{slow[1] / forward:15.1f}{by_autograd / beside:19.2f}"
                    print(line, flush=True)
    if device.type == "cpu":
        print()
        long_sequences()
        start_up()


if __name__ == "__main__":
    run_script(main)
