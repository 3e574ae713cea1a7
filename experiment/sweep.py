"""Many runs of train.py: several at a time, on one machine or, by torchrun, on several that share a folder."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiment.checkpoint import load
from experiment.configuration import NAMES, ROOT
from experiment.errors import InputError
from experiment.options import parse_options
from experiment.processes import Processes
from experiment.run import acquire_lock
from experiment.runlog import commit

_running: list[subprocess.Popen] = []  # the train.py that this worker has started


class Job(NamedTuple):
    """One run, and how many sequences of each size it is scored on."""

    variant: str
    name: str  # one of NAMES, or a file's
    seed: int
    folder: Path
    flags: list[str]
    sequences: int

    @property
    def title(self) -> str:
        """What is said of it begins with this."""
        return f"{self.variant} {Path(self.name).stem} seed {self.seed}".strip()


def train(job: Job) -> Path:
    """Train a job's model, unless that is done; returns its file."""
    which = ["-config", job.name] if job.name in NAMES else ["-task_json", os.path.relpath(job.name, ROOT)]
    flags = [*which, "-seed", str(job.seed), *job.flags]
    _, wanted = parse_options("", flags)
    saved = job.folder / "saved_model" / f"{wanted.title}.pt"
    checkpoint = job.folder / "runs" / wanted.name / "checkpoint.pt"
    if saved.exists() and not checkpoint.exists():
        contents = load(saved)
        if contents["configuration"] != wanted.as_dict():
            raise InputError(f"{saved}: made by another recipe; delete {job.folder}, or choose another -output")
        before = contents["trained"]["commit"]
        now = "" if before == commit() else f"; this is {commit()}"
        print(f"{job.title}: trained before, at commit {before}{now}", file=sys.stderr)
        return saved
    output = os.path.relpath(job.folder, ROOT)  # what the run's log repeats should not name this computer's folders
    begin = "-resume" if checkpoint.exists() else "-overwrite"  # of a run killed before its first checkpoint
    command = [sys.executable, "train.py", *flags, "-output", output, begin]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _running.append(process)
    error = process.communicate()[1]
    _running.remove(process)
    if process.returncode and saved.exists() and not checkpoint.exists():  # by the train.py of a worker that was killed
        return train(job)
    if process.returncode:
        raise InputError(f"{job.name}, seed {job.seed}: {error.strip()}")
    for line in error.splitlines():
        if line.startswith("-resume: "):  # as that the code was edited since the run began
            print(f"{job.title}: {line}", file=sys.stderr)
    return saved


def die_with_the_parent() -> None:
    """End a worker, and the train.py that it has started, when its parent ends in whatever way."""

    def watch() -> None:
        wait([parent_process().sentinel])
        for process in _running:
            process.terminate()  # which saves a checkpoint
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def do_once(work: Callable[[Job], dict], job: Job) -> dict:
    """Do a job while no other process does: one that is at it already is waited for."""
    lock = acquire_lock(job.folder / f".{Path(job.name).stem}.lock")
    try:
        return work(job)
    finally:
        lock.release()


def drawn(count: int, processes: Processes) -> Iterator[int]:
    """The numbers of the jobs, in the order in which this process takes them.

    First those that no other has drawn. Then all others, from a place of its own on: most are done by then, some are
    being done, and some were begun by a process that has ended.
    """
    own = []
    try:
        while (number := processes.next()) < count:
            own.append(number)
            yield number
    except InputError:  # the process that counts has ended
        pass
    first = processes.rank * count // processes.count
    yield from (number % count for number in range(first, first + count) if number % count not in own)


def run_all(
    jobs: list[Job],
    work: Callable[[Job], dict],
    in_short: Callable[[dict], str],
    at_once: int,
    processes: Processes,
) -> tuple[list[dict], list[str]]:
    """Do all jobs, shared out over the processes, and say how each ended.

    Args:
        jobs: what is to be done, the same in each process.
        work: does one, unless it is done, and returns its result, which it leaves in the job's folder.
        in_short: says a result in a line.
        at_once: how many a process does at a time.
        processes: all of them.

    Returns:
        The results, in the jobs' order, and what those said that failed.
    """
    left, running, results, failures = drawn(len(jobs), processes), {}, {}, {}
    with (
        ProcessPoolExecutor(at_once, get_context("spawn"), initializer=die_with_the_parent) as pool,
        tqdm(total=len(jobs), unit="run", disable=None) as bar,
    ):
        while True:
            running |= {pool.submit(do_once, work, jobs[i]): i for i in islice(left, at_once - len(running))}
            if not running:
                return [results[i] for i in sorted(results)], [failures[i] for i in sorted(failures)]
            for future in wait_for(running, return_when=FIRST_COMPLETED).done:
                i = running.pop(future)
                bar.update()
                try:
                    results[i] = future.result()
                except BrokenExecutor as error:
                    killed = "a process of the sweep was killed, as for want of memory"
                    raise InputError(f"{killed}; its train.py may still run: wait for it") from error
                except InputError as error:  # of one run; the others go on
                    failures[i] = f"{jobs[i].variant} {error}".strip()
                    tqdm.write(f"failed: {failures[i]}")
                    continue
                tqdm.write(f"{jobs[i].title}: {in_short(results[i])}")
