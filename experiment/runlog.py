"""What a run tells while it goes: a text log and tensorboard curves."""

import hashlib
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from experiment.configuration import ROOT, Configuration
from experiment.errors import InputError
from experiment.recipe import settings_in_use

CURVES = ("train", "test", "test_longer")


def code_mark() -> str:
    """The beginning of a checksum of the code that trains."""
    folders = (ROOT / name for name in ("ntm", "tasks", "experiment"))
    files = sorted([ROOT / "train.py", *itertools.chain(*(folder.rglob("*.py") for folder in folders))])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


@cache
def commit() -> str:
    """Name the commit that this code is at; where files were changed since, and outside git, with `code_mark`.

    A copy of this code within another repository is at no commit of that. It is looked up once a process, which goes on
    with the code that it began with.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return f"unknown-{code_mark()}"
        dirty = f"-dirty-{code_mark()}"
        found = git("describe", "--always", f"--dirty={dirty}", "--abbrev=12", "--exclude=*")
        code = "ntm/*.py", "tasks/*.py", "experiment/*.py"
        new = git("ls-files", "--others", "--exclude-standard", "--", *code)  # files that are not counted there
        return found + dirty if new and not found.endswith(dirty) else found
    except (OSError, subprocess.CalledProcessError):
        return f"unknown-{code_mark()}"


def processor() -> str:
    """Name the machine's processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class EventFile(RecordWriter):
    """A tensorboard event file, written in the calling thread, so that its errors and its size are known there.

    Args:
        folder: the curve's.
        step: the file holds points after this step; its name says so, and tensorboard reads files in order of name.
            Where a run goes on from a step twice, the second file has a number besides: the first is kept.
    """

    def __init__(self, folder: Path, step: int) -> None:
        name, again = f"events.out.tfevents.{step:010d}", 0
        path = folder / name
        while path.exists():
            again += 1
            path = folder / f"{name}.{again:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(str(path))
        self.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, value: summary.Summary, step: int) -> None:
        """Add what `tensorboardX.summary` made."""
        self.write(Event(wall_time=time.time(), step=step, summary=value).SerializeToString())


def logged_values(folder: Path, tag: str) -> Iterator[tuple[int, Any]]:
    """Read what the event files of a curve's folder have under a tag: iterations, each with tensorboard's value."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # here: it is slow to import

    for file in sorted(folder.glob("*tfevents*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == tag:
                    yield event.step, value


def results_of(log: Path) -> list[Path]:
    """What evaluate.py has left of a run beside its log: table, pictures and page."""
    own = re.compile(rf"{re.escape(log.stem)}(\.html|_[a-z]+\.(json|png|gif))")
    return sorted(path for path in log.parent.iterdir() if own.fullmatch(path.name))


class RunLog:
    """The files of one run: `log/<name>.log`, and `runs/<name>/{train,test,test_longer}` with the same tags in each.

    Args:
        configuration: the run's.
        log_folder, runs_folder: where the files go.
        step: where the run begins, or goes on.
        file_sizes: from `RunLog.file_sizes` at a checkpoint, to go on in its files: whatever came after it is cut off.
            Without it, what an earlier run of that name left there is replaced.

    Raises:
        InputError: a file of the checkpoint is gone or shorter than it was.
    """

    def __init__(
        self,
        configuration: Configuration,
        log_folder: Path,
        runs_folder: Path,
        step: int = 0,
        file_sizes: dict[str, int] | None = None,
    ) -> None:
        self._configuration, folder = configuration, runs_folder / configuration.name
        log_path = log_folder / f"{configuration.name}.log"
        files = {"log": log_path}
        for curve in CURVES:
            for path in sorted((folder / curve).glob("*tfevents*")):
                files[f"{curve}/{path.name}"] = path
        for name, size in (file_sizes or {}).items():
            if name not in files or not files[name].exists() or files[name].stat().st_size < size:
                path = log_path if name == "log" else folder / name
                raise InputError(
                    f"{path}: is gone, or shorter than at the checkpoint; put it back, or delete the checkpoint "
                    "and start anew"
                )
        for name, path in files.items():
            if file_sizes is None or name not in file_sizes:
                path.unlink(missing_ok=True)
            else:
                os.truncate(path, file_sizes[name])
        log_folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: path for name, path in files.items() if name in (file_sizes or {})} | {"log": log_path}
        self._log = open(log_path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._curves = {curve: EventFile(folder / curve, step) for curve in CURVES}
        self._files |= {f"{curve}/{Path(file.path).name}": Path(file.path) for curve, file in self._curves.items()}

    def write_header(self, command: str, runs_on: str, resumed: int | None = None) -> None:
        """Say what made this log; or, where a run goes on, after which iteration, and by what."""
        command = command.encode("utf-8", "backslashreplace").decode()  # a path may be no text
        versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
        if resumed is not None:
            where = f"{runs_on}; {versions}; {processor()}"
            self.line(f"# goes on after iteration {resumed}: {command}; commit {commit()}; {where}")
            return
        fields = self._configuration.as_dict()
        fields["recipe"] = settings_in_use(self._configuration.recipe, self._configuration.network.has)
        lines = {
            "command": command,
            **{key: fields[key] if key == "name" else json.dumps(fields[key]) for key in fields},
            "commit": commit(),
            "versions": versions,
            "hardware": processor(),
            "path": runs_on,
        }
        for key, value in lines.items():
            self.line(f"# {key}: {value}")
        rows = {}
        for key, value in lines.items():  # one row a value: tensorboard shows a long line only in part
            parts = fields[key] if isinstance(fields.get(key), dict) else {"": value}
            rows |= {f"{key} {part}".strip(): shown for part, shown in parts.items()}
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        self._curves["train"].add(summary.text("run", f"| | |\n|---|---|\n{table}"), 0)

    def line(self, text: str) -> None:
        """Add a line to the log."""
        self._log.write(text + "\n")
        self._log.flush()

    def scalars(self, curve: str, step: int, **values: float) -> None:
        """Add a point to curves, one tag a value; a ValueError where the curve is none of `CURVES`."""
        if curve not in self._curves:
            raise ValueError(f"curve {curve!r}: a run has {', '.join(CURVES)}, and any tag in each")
        for tag, value in values.items():
            self._curves[curve].add(summary.scalar(tag, value), step)

    def images(self, curve: str, step: int, images: dict[str, np.ndarray], captions: dict[str, str]) -> None:
        """Add images (3, height, width) of bytes, each with its caption, by tag."""
        for tag, image in images.items():
            shown = summary.image(tag, image)
            shown.value[0].metadata.summary_description = captions[tag]
            self._curves[curve].add(shown, step)

    def file_sizes(self) -> dict[str, int]:
        """Bring all files to disk; their sizes by name, for a checkpoint.

        Raises:
            InputError: a file has vanished from its folder.
        """
        for events in self._curves.values():
            events.flush()
        self._log.flush()
        sizes = {}
        for name, path in self._files.items():
            try:
                with open(path, "r+b") as file:  # Windows syncs no file that was opened for reading
                    os.fsync(file.fileno())
                    sizes[name] = os.fstat(file.fileno()).st_size
            except FileNotFoundError as error:
                raise InputError(f"{path}: vanished while the run was writing it") from error
        return sizes

    def close(self) -> None:
        """Close all files."""
        for events in self._curves.values():
            events.close()
        self._log.close()
