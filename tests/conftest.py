import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment.backend import use_widest_vectors
from ntm import NTM, NTMState
from ntm.controller import LSTMState

ROOT = Path(__file__).resolve().parent.parent
use_widest_vectors()  # as the scripts do

GOOD = {  # a task file
    "controller_size": 8, "memory_units": 16, "memory_unit_size": 4, "num_heads": 1,
    "task": "reverse", "seq_width": 3, "min_seq_len": 1, "max_seq_len": 4,
    "longer_min_seq_len": 4, "longer_max_seq_len": 8,
}  # fmt: skip


def lively_model(heads=1, dtype=torch.float64, memory_units=7, width=5, controller_size=6, scale=0.7, **options):
    """A small model whose weights are large enough for sharp, moving weightings."""
    model = NTM(5, 3, controller_size, memory_units, width, heads, **options).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return model


def lively_state(model, batch_size, memory_units=None):
    """A state with nothing at its default: random memory, sharp weightings."""
    default = model.initial_state(batch_size, memory_units)
    memory, weighting, *rest = (torch.randn(part.shape, dtype=part.dtype) for part in flat(default))
    return nested([memory, torch.softmax(4 * weighting, -1), *rest])


def flat(state):
    """A state's tensors, the controller's last: three, and an LSTM's two."""
    return [*state[:3], *state.controller]


def nested(parts):
    """A state of such tensors."""
    return NTMState(*parts[:3], LSTMState(*parts[3:]) if parts[3:] else ())


def shown(batch, part):
    """The first sequence of a batch, channel by channel."""
    return getattr(batch, part)[:, 0].transpose(0, -1).tolist()


class Repository:
    """A copy of the scripts in a folder of its own, to run them for real.

    Compiled code is kept in one place for all copies: a compilation takes longer than a test. With `forks`, a run is a
    fork of one process, which loads the scripts before the first of them: so nobody may edit them after that.
    """

    def __init__(self, folder: Path, forks: bool = False) -> None:
        self.folder, self.forks, self.server = folder, forks, None
        for name in ("ntm", "tasks", "configs", "experiment"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        kept = ROOT / "ntm" / "fused" / "__pycache__"
        with suppress(OSError):  # of a checkout that cannot be written
            kept.mkdir(exist_ok=True)
            (folder / "ntm" / "fused" / "__pycache__").symlink_to(kept)
        for name in ("train.py", "evaluate.py", "reproduce.py", "bench.py"):
            shutil.copy2(ROOT / name, folder / name)

    def start(self, *words):
        """Run `python words...`."""
        words = list(map(str, words))
        if not self.forks or words[0] == "-c":
            return subprocess.run([sys.executable, *words], cwd=self.folder, capture_output=True, text=True)
        if self.server is None:
            self.server = subprocess.Popen(
                [sys.executable, ROOT / "tests" / "forks.py"], cwd=self.folder, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": f"{self.folder}:{ROOT / 'tests' / 'faults'}"},
            )  # fmt: skip
        files = [self.folder.parent / f"{self.folder.name}.{stream}" for stream in ("out", "err")]
        print(json.dumps([words, *map(str, files)]), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))

    def run(self, *words, code=0):
        """Run `python words...`; the exit code must be as expected."""
        done = self.start(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def files(self):
        """All files that a run could have made or changed, with their contents."""
        made = (path for top in ("saved_model", "runs", "log") for path in (self.folder / top).rglob("*"))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in made if path.is_file()}


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("repository") / "copy", forks=True)
    yield repository
    if repository.server:
        repository.server.communicate()


def curves(folder, name):
    """All points of a run's curves: by curve and tag, (step, value) in order."""
    points = {}
    for curve in ("train", "test", "test_longer"):
        events = EventAccumulator(str(folder / "runs" / name / curve)).Reload()
        for tag in events.Tags()["scalars"]:
            points[curve, tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return points


@pytest.fixture(scope="session")
def tiny(repository):
    """A small task file in the copy, and one finished run of it."""
    (repository.folder / "tiny.json").write_text(json.dumps(GOOD))
    flags = ("-task_json", "tiny.json", "-num_iters", 60, "-report_every", 20, "-batch_size", 4)
    done = repository.run("train.py", *flags)
    model = torch.load(repository.folder / "saved_model" / "reverse_tiny.pt", weights_only=True)["model"]
    return flags, done, model, curves(repository.folder, "tiny")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
