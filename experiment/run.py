"""One run: its lock, its state, its interrupt flag, and what it says at its end."""

import argparse
import dataclasses
import glob
import itertools
import math
import re
import shlex
import signal
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from experiment import checkpoint
from experiment.code_record import record_of
from experiment.configuration import Configuration
from experiment.errors import InputError
from experiment.runlog import commit
from experiment.scoring import (
    HELD_OUT,
    TRAINING,
    Score,
    generator,
    optimal_cost,
    sample_sizes,
    score,
    spread_sizes,
    stream_seed,
)
from experiment.training import Clipper, resume_optimizer
from ntm.machine import Machine

# A run says that it has not learned if fewer of held-out sequences are right; or, where even the optimal predictor
# is wrong at times, if its predictions cost more than this much above that one's.
LEARNED_EXACT, LEARNED_ABOVE = 0.95, 0.05


class InterruptFlag:
    """`asked` becomes true at the first Ctrl-C or SIGTERM, which ends the run after its current iteration.

    A second one ends it at once.
    """

    def __init__(self) -> None:
        self.asked = False
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._ask)

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def acquire_lock(path: Path, timeout: float = -1) -> FileLock:
    """Take a lock that one process at a time can hold, and that ends with it at the latest.

    Args:
        path: of a file, which need not be there.
        timeout: seconds to wait for it; -1: as long as it takes.

    Raises:
        Timeout: another process holds it.
        InputError: there are no locks in this place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except NotImplementedError as error:
        raise InputError(f"{path}: this file system has no locks; choose an -output on another one") from error
    return lock


def model_there(path: Path) -> int | None:
    """What tells a model's file from another in its place: when it was written, in nanoseconds; None if none is."""
    return path.stat().st_mtime_ns if path.exists() else None


class Claim(NamedTuple):
    """A run's name, which its configuration carries, and the places that are its own until the process ends."""

    configuration: Configuration
    folder: Path  # runs/<name>
    saved_model: Path
    replaces: int | None  # the model that is there now, as `model_there` says
    lock: FileLock


def claim_run(configuration: Configuration, options: argparse.Namespace) -> Claim:
    """Give a run a name of its own: its configuration's, or where that is taken, the same with -2, -3 and so on.

    With -overwrite it takes the plain name, whatever is there; with -resume that of the last
    interrupted run with these flags, or if there is none, of the last.

    Raises:
        InputError: there is nothing to resume; a model's path is a folder, or is there already; or another process
            works on the run.
    """
    runs, wanted, base = options.output / "runs", options.saved_model, configuration.name
    if wanted and wanted.is_dir():
        raise InputError(f"-saved_model {wanted}: is a folder; name a file in it")
    if wanted and wanted.exists() and not (options.overwrite or options.resume):  # -resume: see `free_path`
        also = f", and log and curves of the run {base}"
        raise InputError(f"-saved_model {wanted}: is there already; name another file (-overwrite replaces it{also})")
    if wanted:
        try:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=wanted.parent).close()
        except OSError as error:
            raise InputError(f"-saved_model {wanted}: cannot be written ({error.strerror})") from error
    if options.resume:
        names = [path.parent.name for path in runs.glob(f"{glob.escape(base)}*/checkpoint.pt")]
        names = [name for name in names if re.fullmatch(rf"{re.escape(base)}(-\d+)?", name)]
        if not names:
            none = f"there is no interrupted run of {base} in {runs}"
            raise InputError(f"-resume: {none}; leave it away to begin one, -init goes on from a model")
        names = [_run_to_resume(configuration, runs, names, options.init)]
    else:
        names = [base] if options.overwrite else (f"{base}-{n}" if n > 1 else base for n in itertools.count(1))
    for name in names:
        named = dataclasses.replace(configuration, name=name)
        folder, saved_model = runs / name, options.output / "saved_model" / f"{named.title}.pt"
        left = saved_model, options.output / "log" / f"{name}.log", *folder.rglob("*")
        if not (options.resume or options.overwrite) and any(path.name != ".lock" and path.exists() for path in left):
            continue
        if not wanted and saved_model.is_dir():
            raise InputError(f"{saved_model}: is a folder; choose another -output, or name a file by -saved_model")
        path = wanted or saved_model
        if options.overwrite and (maker := checkpoint.maker(path)) not in (None, name):
            raise InputError(f"{path}: is the model of the run {maker}; name another file by -saved_model")
        models = saved_model.parent.glob(f"*{name}.pt") if options.overwrite else ()
        others = (each for each in models if each.resolve() != path.resolve())
        if other := next((each for each in others if each == saved_model or checkpoint.maker(each) == name), None):
            raise InputError(
                f"-overwrite would replace log and curves of the run {name}, and leave its model, {other}; leave "
                "-saved_model away, name the run otherwise, or choose another -output"
            )
        try:
            lock = acquire_lock(folder / ".lock", timeout=0)
        except Timeout as error:
            if options.resume or options.overwrite:
                raise InputError(f"{folder}: another run is writing here; wait, or choose another -output") from error
            continue
        return Claim(named, folder, path, model_there(path), lock)
    raise AssertionError("names never end")


def _run_to_resume(configuration: Configuration, runs: Path, names: list[str], init: Path | None) -> str:
    """Choose among interrupted runs: the last with the flags of this one, else the last; unreadable ones are named."""
    paths = {name: runs / name / "checkpoint.pt" for name in names}
    names = sorted(names, key=lambda name: paths[name].stat().st_mtime, reverse=True)
    readable = []
    for name in names if len(names) > 1 else ():
        try:
            stored = checkpoint.load(paths[name])
            before = Configuration.from_dict(stored["configuration"], str(paths[name]))
        except InputError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        readable.append(name)
        if before == dataclasses.replace(configuration, name=name) and is_same_init(stored.get("init"), init):
            return name
    return (readable or names)[0]


def is_same_init(stored: str | None, init: Path | None) -> bool:
    """Whether a run that began with a model's file is meant: with this one, or one of its name that has moved since."""
    if stored is None or init is None:
        return stored is init
    before = Path(stored).absolute()
    return before == init.absolute() or (before.name == init.name and not before.exists())


class TrainState:
    """Where a run stands: all that its checkpoint holds. No random state: an iteration's follows from seed and step.

    Attributes:
        step: iterations done.
        sums: of what each iteration since the last report measured.
        file_sizes: of the run's files at the checkpoint that was loaded; None at the beginning.
        replaces: the model that was in the place of this run's when it began; None where there was none.
        init: the model file that it began with; None where it began from nothing.
        made: the optimizer's groups of options as they were when it began.
    """

    def __init__(
        self,
        configuration: Configuration,
        model: Machine,
        optimizer: torch.optim.Optimizer,
        clipper: Clipper,
        path: Path,
        replaces: int | None = None,
        init: Path | None = None,
    ) -> None:
        self.configuration, self.model, self.optimizer, self.clipper = configuration, model, optimizer, clipper
        self.path, self.init = path, init and init.absolute()
        self.made = optimizer and deepcopy(optimizer.state_dict()["param_groups"])
        self.step, self.sums, self.file_sizes, self.replaces = 0, {"iters": 0}, None, replaces
        self._seconds_before, self._step_before, self._started = 0.0, 0, time.perf_counter()

    def seconds(self) -> float:
        """How long the run has taken, without interruptions."""
        return self._seconds_before + time.perf_counter() - self._started

    def sequences_per_second(self) -> float:
        """How fast it has been since it began or was resumed."""
        steps = self.step - self._step_before
        return steps * self.configuration.recipe.batch_size / (time.perf_counter() - self._started)

    def add(self, **measured: float) -> None:
        """Count an iteration with what it measured."""
        self.step += 1
        self.sums["iters"] += 1
        for key, value in measured.items():
            self.sums[key] = self.sums.get(key, 0) + value

    def means(self) -> dict[str, float]:
        """What an iteration since the last report measured, on average."""
        return {key: value / self.sums["iters"] for key, value in self.sums.items()}

    def require_finite_weights(self) -> None:
        """Stop before a model is written that is spoiled.

        Raises:
            InputError: a weight is not finite; the checkpoint from before stays.
        """
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            said = f"iteration {self.step}: a weight is not finite ({self.where(self.step - 1)})"
            raise InputError(f"{said}; {self.path} is from before")

    def save(self, file_sizes: dict[str, int]) -> None:
        """Write the checkpoint, with the sizes of the run's files; raises as `require_finite_weights`."""
        self.require_finite_weights()
        contents = {
            "configuration": self.configuration.as_dict(),
            "commit": commit(),
            **record_of(self.model, self.configuration),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "made": self.made,
            "log_typical_norm": self.clipper.log_typical,
            "step": self.step,
            "seconds": self.seconds(),
            "sums": self.sums,
            "init": self.init and str(self.init),
            "replaces": self.replaces,
            "sizes": file_sizes,
        }
        checkpoint.save(self.path, contents)

    def load(self, stored: dict[str, Any]) -> None:
        """Go on from a checkpoint's contents.

        Raises:
            InputError: it is of other flags, or of an older train.py.
        """
        before = Configuration.from_dict(stored["configuration"], str(self.path))
        if before != self.configuration:
            parts = before.as_dict(), self.configuration.as_dict()
            old, new = ({"name": each["name"], **each["network"], **each["data"], **each["recipe"]} for each in parts)
            differ = "; ".join(f"{k} was {v} and is {new.get(k)} now" for k, v in old.items() if v != new.get(k))
            raise InputError(f"-resume: {self.path} is of a run with other flags: {differ}")
        if not is_same_init(stored.get("init"), self.init):
            was = f"-init was {stored.get('init')}, is {self.init}"
            raise InputError(f"-resume: {self.path} is of a run with other flags: {was}")
        if "optimizer" not in stored:
            raise InputError(f"-resume: {self.path} is a finished model, and no checkpoint; -init begins with one")
        try:
            if stored["format"] != checkpoint.FORMAT or "replaces" not in stored:
                raise ValueError("settings of the same name may mean something else")
            self.model.load_state_dict(stored["model"])
            resume_optimizer(self.optimizer, stored["optimizer"], stored.get("made"))
            self.made = stored.get("made", self.made)
        except (ValueError, RuntimeError) as error:
            why = "of an older train.py, or machine or optimizer were edited since; without -resume, a new run begins"
            raise InputError(f"-resume: {self.path} is {why}") from error
        self.clipper.log_typical, self.sums = stored["log_typical_norm"], stored["sums"]
        self.file_sizes, self.replaces = stored["sizes"], stored["replaces"]
        self.step = self._step_before = stored["step"]
        self._seconds_before = stored["seconds"]

    def free_path(self, path: Path) -> Path:
        """The model's path; or one beside it, and a line, where another model has come there since the run began."""
        if model_there(path) in (None, self.replaces) or checkpoint.holds(path, self.configuration, self.model):
            return path  # its own, where it was killed after it had been written
        beside = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
        free = next(other for other in beside if not other.exists())
        print(f"{path}: another model has come there since this run began; this one is {free.name}")
        return free

    def where(self, step: int) -> str:
        """The run, its seed and that of an iteration's batch, so that the batch can be drawn again."""
        seed = self.configuration.recipe.seed
        return f"{self.configuration.name}, seed {seed}; batch seed {stream_seed(seed, TRAINING, step)}"

    def require_finite(self, loss: float, norm: float) -> None:
        """Stop before a step that would spoil the model.

        Raises:
            InputError: loss or gradient norm is not finite.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"iteration {self.step + 1}: loss {loss} or gradient norm {norm} is not finite"
            stopped = f"stopped before a model was spoiled; {self.path} is from before"
            raise InputError(f"{what} ({self.where(self.step)}); {stopped}")


def final_test(state: TrainState) -> str:
    """Say how good the model is on a thousand more held-out sequences of trained sizes."""
    task, data = state.configuration.task, state.configuration.data
    sizes = spread_sizes(data.low, data.high, 8)
    batches = sample_sizes(task, sizes, 1024 // len(sizes), generator(state.configuration.recipe.seed, HELD_OUT, 1))
    return verdict(score(state.model, task, batches)[0], optimal_cost(task, batches))


def verdict(held_out: Score, optimum: float | None = None) -> str:
    """Say how good a model is on held-out sequences of trained sizes, and that it has not learned, where it has not.

    Args:
        optimum: the cost of the optimal predictor, where that is not 0.
    """
    if optimum is None:
        right = round(held_out.exact * held_out.sequences)
        said = f"{right} of {held_out.sequences} held-out sequences of trained sizes are right"
        learned, all_right = held_out.exact >= LEARNED_EXACT, right == held_out.sequences
        detail = f" ({held_out.bits:.3g} wrong bits a sequence)"
    else:
        above = held_out.cost / optimum - 1
        said = f"{held_out.cost:.2f} bits for a held-out sequence, {above:.2%} above the optimal predictor"
        learned = all_right = above <= LEARNED_ABOVE
        detail = ""
    if not learned:
        return f"{said}{detail}: it has not learned; try another -seed, or more -num_iters"
    return said if all_right else f"{said}{detail}: it has nearly learned; more -num_iters may do"


def shown_path(path: Path) -> str:
    """A path as one would type it here."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
