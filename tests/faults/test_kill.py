"""Runs killed with SIGKILL at random moments, each gone on with, must end as if they had never been stopped."""

import random
import re
import subprocess
import sys

import pytest
import torch
from real_runs import Folder, points

from ntm import NTM

pytestmark = pytest.mark.slow

KILLS = 24  # over all chains
CHAINS = 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = Folder(tmp_path_factory.mktemp("undisturbed"))
    assert folder.train() == 0
    return folder


def same_as(undisturbed, folder):
    """Compare models to the bit, logs but for their times, and curves point by point, nothing doubled or missing."""
    ours, theirs = (torch.load(f.saved_model, weights_only=True)["model"] for f in (folder, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert folder.log_lines() == undisturbed.log_lines()
    ours, theirs = points(folder.runs), points(undisturbed.runs)
    assert ours.keys() == theirs.keys()
    for curve_and_tag in ours:
        if not curve_and_tag[1].endswith("sequences_per_second"):
            assert ours[curve_and_tag] == theirs[curve_and_tag]
    left = [path.name for path in folder.path.rglob("*") if path.is_file()]
    assert "checkpoint.pt" not in left
    assert not [name for name in left if name.startswith(".") and name != ".lock"]


def make_noisy():
    """Have the machine draw numbers of its own in training, from torch's generator."""
    step = NTM.step_with_focus
    NTM.step_with_focus = lambda self, x, *rest: step(self, x + 0.1 * self.training * torch.randn_like(x), *rest)


def test_what_an_edited_machine_draws_is_the_same_in_a_resumed_run(tmp_path):
    flags, (whole, killed) = ("-num_iters", "50"), (Folder(tmp_path / name) for name in ("whole", "killed"))
    assert whole.train(*flags, prepare=make_noisy) == 0, whole.said
    assert "NTM.step_with_focus was replaced" in whole.said
    assert killed.train(*flags, checkpoints=3, kill_after=0, prepare=make_noisy) == -9
    assert killed.train(*flags, "-resume", prepare=make_noisy) == 0, killed.said
    same_as(whole, killed)


@pytest.mark.parametrize("chain", range(CHAINS))
def test_killed_at_random_moments_and_resumed_is_as_never_stopped(undisturbed, tmp_path, chain, record_property):
    source, folder, kills, resumed = random.Random(chain), Folder(tmp_path), 0, 0
    while not folder.saved_model.exists() or folder.checkpoint.exists():
        resume = folder.checkpoint.exists()
        resumed += resume
        # Every other kill waits for checkpoints: on a slow machine a time alone would always come before the first.
        kill = {"kill_after": source.uniform(0, 0.35)}
        if kills % 2:
            kill = {"kill_after": source.uniform(0, 0.02), "checkpoints": source.randint(1, 5)}
        if kills == KILLS // CHAINS:
            kill = {}
        # A run that is killed before its first checkpoint leaves a log, and so its name is taken.
        code = folder.train("-resume" if resume else "-overwrite", **kill)
        assert code in (0, -9), folder.said
        kills += code == -9
    assert resumed
    record_property("kills", kills)
    same_as(undisturbed, folder)


def test_the_command_line_killed_and_resumed(undisturbed, repository, tmp_path):
    """The same once more, with the script started as a user starts it."""
    folder = Folder(tmp_path)
    command = [sys.executable, "train.py", *folder.flags]
    process = subprocess.Popen(command, cwd=repository.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not (folder.log.exists() and re.search("iteration +50 ", folder.log.read_text())):
        pass
    process.kill()
    process.communicate()
    assert folder.checkpoint.exists()
    repository.run("train.py", *folder.flags, "-resume")
    same_as(undisturbed, folder)
