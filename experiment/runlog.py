"""What a run tells while it goes: a text log and tensorboard curves."""

import json
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter

from experiment.configuration import ROOT, Configuration

CURVES = ("train", "test", "test_longer")


def commit() -> str:
    """Name the commit that this code is at, with a mark where files were changed since; 'unknown' outside git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """Name the machine's processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class RunLog:
    """The files of one run: `log/<name>.log`, and `runs/<name>/{train,test,test_longer}` with the same tags in each.

    Args:
        configuration: the run's.
        log_folder, runs_folder: where the files go.
        resume: go on in the files of an interrupted run, from `step` and the length `log_size` of its log; without it,
            what an earlier run of that name left there is replaced.
    """

    def __init__(
        self,
        configuration: Configuration,
        log_folder: Path,
        runs_folder: Path,
        resume: bool = False,
        step: int = 0,
        log_size: int = 0,
    ) -> None:
        folder = runs_folder / configuration.name
        if not resume:
            for curve in CURVES:
                shutil.rmtree(folder / curve, ignore_errors=True)
        log_folder.mkdir(parents=True, exist_ok=True)
        self._log = open(log_folder / f"{configuration.name}.log", "r+" if resume else "w", encoding="utf-8")  # noqa: SIM115
        if resume:
            self._log.truncate(log_size)
            self._log.seek(log_size)
        purge = {"purge_step": step + 1} if resume else {}
        self.curves = {curve: SummaryWriter(str(folder / curve), **purge) for curve in CURVES}

    def write_header(self, command: str, configuration: Configuration, path: str) -> None:
        """Say what made this log."""
        fields = configuration.as_dict()
        lines = {
            "command": command,
            **{key: fields[key] if key == "name" else json.dumps(fields[key]) for key in fields},
            "commit": commit(),
            "versions": f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
            "hardware": f"{processor()}, {torch.get_num_threads()} threads",
            "path": path,
        }
        for key, value in lines.items():
            self.line(f"# {key}: {value}")
        text = "\n".join(f"    {key}: {value}" for key, value in lines.items())
        self.curves["train"].add_text("run", text, 0)

    def line(self, text: str) -> None:
        """Add a line to the log."""
        self._log.write(text + "\n")
        self._log.flush()

    def scalars(self, curve: str, step: int, **values: float) -> None:
        """Add a point to curves, one tag a value."""
        for tag, value in values.items():
            self.curves[curve].add_scalar(tag, value, step)

    @property
    def log_size(self) -> int:
        """Length of the log, for `resume`."""
        return self._log.tell()

    def flush(self) -> None:
        """Bring all points to disk."""
        for writer in self.curves.values():
            writer.flush()

    def close(self) -> None:
        """Close all files."""
        for writer in self.curves.values():
            writer.close()
        self._log.close()
