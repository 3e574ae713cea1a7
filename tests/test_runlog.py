"""experiment/runlog.py: which commit a log names."""

import subprocess

from experiment import runlog


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_a_log_names_its_own_commit_and_whether_files_were_changed(tmp_path, monkeypatch):
    copy = tmp_path / "outer" / "copy"
    copy.mkdir(parents=True)
    monkeypatch.setattr(runlog, "ROOT", copy)
    commit, mark = runlog.commit.__wrapped__, runlog.code_mark  # as other processes see it
    (copy / "train.py").write_text("1\n")
    assert commit() == f"unknown-{mark()}"  # no repository
    git(tmp_path / "outer", "init", "-q")
    git(tmp_path / "outer", "add", ".")
    git(tmp_path / "outer", "commit", "-q", "-m", "theirs")
    assert commit() == f"unknown-{mark()}"  # an unpacked archive in somebody's repository
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-q", "-m", "ours")
    head = git(copy, "rev-parse", "HEAD")[:12]
    assert commit() == head
    (copy / "a run's log").write_text("new\n")
    assert commit() == head
    before = mark()
    (copy / "train.py").write_text("2\n")
    assert mark() != before
    assert commit() == f"{head}-dirty-{mark()}"
    git(copy, "checkout", "-q", ".")
    assert commit() == head
    (copy / "tasks").mkdir(exist_ok=True)
    (copy / "tasks" / "helper.py").write_text("1\n")  # of no commit, and not asked for by `git describe`
    assert commit() == f"{head}-dirty-{mark()}"
