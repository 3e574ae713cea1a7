"""Real runs of train.py in processes of their own, started quickly: a server that has loaded torch forks each."""

import contextlib
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboardX.proto.event_pb2 import Event

TINY = {
    "controller_size": 8, "memory_units": 12, "memory_unit_size": 6, "num_heads": 1, "task": "reverse", "seq_width": 3,
    "min_seq_len": 1, "max_seq_len": 3, "longer_min_seq_len": 4, "longer_max_seq_len": 8,
}  # fmt: skip
_HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (_HERE.parents[1], _HERE)))  # for the server
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])


def _child(argv: list[str], said: str, prepare) -> None:
    import torch

    import train
    from experiment.errors import run_script

    if prepare is not None:
        prepare()
    torch.set_num_threads(1)
    sys.argv = ["train.py", *argv]
    with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        run_script(train.main)


def each_once(*words: str) -> list[str]:
    """Flags and their values, each flag as it is given last."""
    given = {}
    for word in words:
        if word.startswith("-"):
            given[flag := word] = []
        else:
            given[flag].append(word)
    return [word for flag, values in given.items() for word in (flag, *values)]


class Folder:
    """The outputs of one run of a tiny configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.task_json = path.parent / f"{path.name}_tiny" / "tiny.json"
        self.task_json.parent.mkdir(exist_ok=True)
        self.task_json.write_text(json.dumps(TINY))
        self.runs = path / "runs" / "tiny"
        self.checkpoint = self.runs / "checkpoint.pt"
        self.log = path / "log" / "tiny.log"
        self.saved_model = path / "saved_model" / "reverse_tiny.pt"
        self.flags = [
            *("-task_json", str(self.task_json), "-output", str(path), "-num_iters", "300", "-batch_size", "4"),
            *("-report_every", "10", "-checkpoint_every", "4"),
        ]
        self.said, self.said_path = "", self.task_json.parent / "said.txt"

    def start(self, *more: str, prepare=None) -> multiprocessing.Process:
        """Start a run in a process of its own; `prepare` is called in it first."""
        process = _context.Process(target=_child, args=(each_once(*self.flags, *more), str(self.said_path), prepare))
        process.start()
        return process

    def train(self, *more: str, kill_after: float | None = None, checkpoints: int = 0, prepare=None) -> int:
        """Run to the end, or to a SIGKILL so many seconds after so many new checkpoints; gives the exit code or -9."""
        before = self._last_checkpoint()
        process = self.start(*more, prepare=prepare)
        while checkpoints and process.is_alive():
            last = self._last_checkpoint()
            checkpoints -= last != before
            before = last
            process.join(0.001)
        process.join(kill_after)
        if process.exitcode is None:
            process.kill()
            process.join()
        self.read_said()
        return process.exitcode

    def train_to_a_checkpoint(self) -> None:
        """Run until there is a checkpoint, and kill the run with SIGKILL."""
        assert self.train(checkpoints=1, kill_after=0) == -9, self.said

    def _last_checkpoint(self) -> int | None:
        """A number that changes with each checkpoint written."""
        return self.checkpoint.stat().st_mtime_ns if self.checkpoint.exists() else None

    def read_said(self) -> None:
        """Read what the last run said on either stream."""
        self.said = self.said_path.read_text() if self.said_path.exists() else ""

    def log_lines(self) -> list[str]:
        """The log's lines, without times and header."""
        lines = [line for line in self.log.read_text().splitlines() if not line.startswith("#")]
        return [re.sub(r"[\d.]+ s\b", "", line) for line in lines]


def points(runs: Path) -> dict[tuple[str, str], list[tuple[int, object]]]:
    """All that a run's event files hold, as it stands there: by curve and tag, (step, value) in order."""
    found = {}
    for path in sorted(runs.glob("*/*tfevents*")):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.tag.startswith("run"):
                    continue
                content = value.image.encoded_image_string if value.HasField("image") else value.simple_value
                found.setdefault((path.parent.name, value.tag), []).append((event.step, content))
    return found
