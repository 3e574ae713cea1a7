"""reproduce.py, with experiment/sweep.py and experiment/paper.py, run for real in a copy of the repository."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import GOOD

from experiment.checkpoint import load, save
from experiment.configuration import ROOT
from experiment.errors import InputError
from experiment.sweep import Job, train
from reproduce import parse_options, print_table


@pytest.mark.slow
def test_reproduce_trains_scores_and_says_the_same_again(repository):
    flags = ("reproduce.py", "-configs", "m1d2,m1d2", "-seeds", 3, "-flags", "-num_iters 20")  # once, as the seeds
    repository.run(*flags, "-num_sequences", 3)
    flags += "-num_sequences", 6  # other than the first ones: the model is scored again
    first = repository.run(*flags).stdout
    assert re.search(r"^\| m1d2 \| 0/1 \|", first, re.MULTILINE)
    assert "0 of 1 runs without any wrong sequence on a blank memory" in first
    (result,) = json.loads((repository.folder / "reproduced" / "seeds.json").read_text())
    assert result["seed"] == 3
    assert result["wrong_sequences"]["120"] == 6 == result["wrong_sequences"]["120 dirty"]
    again = repository.run(*flags)
    assert again.stdout == first
    assert "m1d2 seed 3: trained before, at commit unknown-" in again.stderr

    # Other tests are made anew.
    script = repository.folder / "reproduce.py"
    kept = script.read_text()
    script.write_text(kept.replace("DIRTY_LENGTHS, DIRT = (20, 120), 1.0", "DIRTY_LENGTHS, DIRT = (20, 121), 1.0"))
    try:
        assert "121 dirty" in repository.run(*flags).stdout
    finally:
        script.write_text(kept)

    # A model that is not the one that was scored is scored anew.
    saved = repository.folder / "reproduced" / "3" / "saved_model" / "reverse_m1d2.pt"
    contents = load(saved)
    contents["model"]["output_proj.bias"] += 1
    save(saved, contents)
    repository.run(*flags)
    (other,) = json.loads((repository.folder / "reproduced" / "seeds.json").read_text())
    assert other["weights"] != result["weights"]

    # Where one run fails, the others go on and stand in the table.
    flags = ("reproduce.py", "-configs", "m1d2", "-seeds", "3,4", "-flags", "-num_iters 21", "-num_sequences", 3)
    done = repository.run(*flags, code=2)
    assert re.search(r"1 of 2 runs failed, the first: .*/3.*: made by another recipe", done.stderr)
    assert "no table" in done.stderr
    (result,) = json.loads((repository.folder / "reproduced" / "seeds.json").read_text())
    assert result["seed"] == 4


@pytest.mark.slow
def test_reproduce_trains_scores_and_draws_the_papers_tasks(repository):
    flags = ("-paper", "-configs", "copy,associative_recall_lstm", "-seeds", "0", "-output", "papers")
    command = ("reproduce.py", *flags, "-num_sequences", 30, "-flags", "-num_iters 10 -report_every 10")
    out = repository.run(*command).stdout
    folder = repository.folder / "papers"
    results = json.loads((folder / "paper.json").read_text())
    assert [r["name"] for r in results] == ["associative_recall_lstm", "copy"]
    assert results[0]["parameters"] == 1_328_134  # Table 3: 1,344,518
    assert [row["size"] for row in results[0]["scores"]] == [[n] for n in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20)]
    assert results[1]["scores"][-1]["memory_units"] == 1024
    assert results[0]["scores"][-1]["memory_units"] is None
    assert all(row["bits"] > 0 for r in results for row in r["scores"])
    assert "associative_recall_lstm: 1,328,134 parameters" in out
    drawn = {path.name for path in (folder / "figures").iterdir()}
    recall, copy = {"curves.png", "items.png"}, {"curves.png", "memory.png", "outputs.png"}
    assert drawn == {f"associative_recall_{name}" for name in recall} | {f"copy_{name}" for name in copy}
    assert repository.run(*command).stdout.endswith(out[out.index("\nassociative_recall_lstm:") :])


def is_running(pid):
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_run_that_was_killed_after_it_wrote_its_model_is_finished(repository, tiny, tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(json.dumps(GOOD))
    begun = ["-backend", "reference", "-num_iters", "4", "-batch_size", "2", "-checkpoint_every", "3"]
    job = Job("", str(tmp_path / "tiny.json"), 0, tmp_path, begun, 0)
    checkpoint = tmp_path / "runs" / "tiny" / "checkpoint.pt"
    program = "import os, sys; from experiment.runlog import RunLog; RunLog.close = lambda log: os._exit(9); "
    program += "import train; sys.argv[:1] = ['train.py']; train.run_script(train.main)"
    flags = "-task_json", job.name, "-seed", 0, *begun, "-output", tmp_path
    repository.run("-c", program, *flags, code=9)  # after the model, and before the checkpoint goes
    (saved,) = (tmp_path / "saved_model").glob("*.pt")
    assert checkpoint.exists()
    contents = load(checkpoint)
    save(checkpoint, {key: value for key, value in contents.items() if key != "format"} | {"commit": "another"})
    assert train(job) == saved
    assert re.search(r"tiny seed 0: -resume: .*/checkpoint.pt is of commit another", capsys.readouterr().err)
    assert not checkpoint.exists()
    assert [saved] == list((tmp_path / "saved_model").glob("*.pt"))  # and not one more beside it
    assert len(re.findall(r"^finished after", (tmp_path / "log" / "tiny.log").read_text(), re.MULTILINE)) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc tells of a process's children")
def test_a_killed_sweep_ends_the_runs_that_it_started(repository, tmp_path):
    flags = ["-configs", "m1d2", "-seeds", "0-1", "-output", str(tmp_path)]
    sweep = subprocess.Popen([sys.executable, "reproduce.py", *flags], cwd=repository.folder, stdout=subprocess.DEVNULL)
    runs = set()
    while len(runs) < 2:
        assert sweep.poll() is None
        started = (path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if tmp_path.name.encode() in read(path))
        runs = {path.name for path in started if b"train.py" in read(path / "cmdline")}
    assert all(map(is_running, runs))
    sweep.kill()
    sweep.wait()
    end = time.monotonic() + 30
    while any(map(is_running, runs)):
        assert time.monotonic() < end


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc tells of a process's children")
def test_a_worker_that_is_killed_is_one_line(repository, tmp_path):
    flags = ["-configs", "m1d2", "-seeds", "0", "-jobs", "1", "-output", str(tmp_path), "-flags", "-num_iters 9000"]
    command = [sys.executable, "reproduce.py", *flags]
    sweep = subprocess.Popen(
        command, cwd=repository.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    workers = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
    run = None
    while not run:
        assert sweep.poll() is None
        for worker in workers.read_text().split():
            children = Path(f"/proc/{worker}/task/{worker}/children")
            run = next(
                (child for child in read(children).split() if b"train.py" in read(Path(f"/proc/{int(child)}/cmdline"))),
                None,
            )
            if run:
                os.kill(int(worker), signal.SIGKILL)
                break
    said = sweep.communicate()[1]
    os.kill(int(run), signal.SIGKILL)
    assert (sweep.returncode, "a process of the sweep was killed, as for want of memory" in said) == (2, True), said
    assert "Traceback" not in said


def read(path):
    """A file of /proc, which may be gone by now."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.parametrize("dirty", [None, 0, 3])
def test_a_table_counts_runs_on_a_dirty_memory_where_there_is_a_memory(dirty, capsys):
    wrong = {"1": 0, "20": 1} | ({} if dirty is None else {"20 dirty": dirty})
    run = {"name": "l1d1", "variant": "", "seed": 0, "wrong_sequences": wrong, "solved_iteration": None, "seconds": 1.0}
    print_table([run], "name")
    out = capsys.readouterr().out
    assert "\n0 of 1 runs without any wrong sequence on a blank memory\n" in out
    assert ("dirty memory" in out) == (dirty is not None)
    assert (f"{int(dirty == 0)} of 1 runs without any wrong sequence on a dirty memory\n" in out) == (dirty is not None)


def test_a_task_that_beyond_does_not_score_is_refused(tmp_path, monkeypatch):
    (tmp_path / "beyond").mkdir()
    (tmp_path / "beyond" / "mine.json").write_text((ROOT / "configs" / "copy.json").read_text())
    monkeypatch.setattr("reproduce.CONFIGS", tmp_path)
    monkeypatch.setattr("sys.argv", ["reproduce.py", "-beyond"])
    with pytest.raises(InputError, match=r"mine\.json: is of the task copy; -beyond trains and scores reverse alone"):
        parse_options()
