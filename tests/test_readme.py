"""README.md's commands, and the page in docs/."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.checkpoint import load_model
from experiment.configuration import ROOT
from experiment.page import page


def test_the_page_in_docs_holds_the_shipped_model():
    shipped = load_model(ROOT / "saved_model" / "reverse_m1d2.pt")
    assert (ROOT / "docs" / "index.html").read_text(encoding="utf-8") == page(*shipped)


@pytest.mark.slow
def test_the_commands_of_the_readme_leave_a_clone_as_it_was(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    kept = Path("ntm/fused/__pycache__")
    if (ROOT / kept).exists():  # to compile is not what is tested
        unfinished = shutil.ignore_patterns("*.tmp.*", "*.pyc*")
        shutil.copytree(ROOT / kept, tmp_path / "clone" / kept, ignore=unfinished)
    reference = ["-backend", "reference"]
    for command in (
        ["train.py", "-config", "m1d2", "-num_iters", "1", *reference],
        ["evaluate.py", "-config", "m1d2", "-num_sequences", "1", "-sizes", "1,2", *reference],
        ["evaluate.py", "-config", "m1d2-2", "-num_sequences", "2", "-sizes", "1", *reference],
        ["evaluate.py", "-config", "m1d2", "-page"],
        ["evaluate.py", "-config", "m1d2", "-animate", *reference],
        ["evaluate.py", "-config", "m1d2", "-input", "docs/bits.txt", *reference],
    ):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path / "clone", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path / "clone", capture_output=True, text=True)
    assert status.stdout == status.stderr == ""
    scores = (tmp_path / "clone" / "log" / "m1d2_scores.json").read_text()
    assert "NaN" not in scores
    assert '"bits_interval": null' in scores  # of a single sequence
