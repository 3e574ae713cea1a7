"""experiment/processes.py and sweep.py by real torchrun: several make what one makes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from real_runs import Folder, each_once

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("torchrun")]

FLAGS = "-batch_size", "64", "-num_iters", "60", "-checkpoint_every", "10"


def torchrun(repository, count, *words):
    """Start `torchrun --nproc_per_node=count words...`, in a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", *map(str, words)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=repository.folder, start_new_session=True, **streams)


def children(pid):
    """The processes that a process has started, in order."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_tree(pid):
    """Kill a process and all that it has started."""
    for child in children(pid):
        kill_tree(child)
    os.kill(pid, signal.SIGKILL)


def wait_until(happened, *processes):
    """Wait until something has happened while the processes run."""
    while not happened():
        for process in processes:
            assert process.poll() is None, process.communicate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(0.02)


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same_run(ours, theirs):
    """Compare models to the bit, and logs but for times: loss, bits and norm of each iteration went into them."""
    ours_weights, theirs_weights = weights(ours.saved_model), weights(theirs.saved_model)
    assert all(torch.equal(ours_weights[name], theirs_weights[name]) for name in theirs_weights)
    assert ours.log_lines() == theirs.log_lines()


ENDS = """
import contextlib, sys
from pathlib import Path
import torch
from experiment.processes import Processes
with contextlib.suppress(SystemExit), Processes.join() as processes:
    torch.optim.Adam([torch.zeros(1)])
    processes.share(lambda: 0)
    if len(sys.argv) > 1:
        sys.exit(130)
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
sys.stdout.write(f"{[name for name in names if 'gloo' in name]}\\n")
"""


@pytest.mark.parametrize("words", [[], ["stop"]])
def test_no_thread_of_the_connections_is_left_to_abort_a_process_that_ends(repository, words):
    (repository.folder / "ends.py").write_text(ENDS)
    process = torchrun(repository, 2, "ends.py", *words)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said == "[]\n[]\n"


@pytest.fixture(scope="module")
def alone(repository, tmp_path_factory):
    """What one process makes."""
    folder = Folder(tmp_path_factory.mktemp("alone"))
    repository.run("train.py", *each_once(*folder.flags, *FLAGS))
    return folder


def test_two_processes_make_what_one_makes(alone, repository, tmp_path):
    folder = Folder(tmp_path / "two")
    process = torchrun(repository, 2, "train.py", *each_once(*folder.flags, *FLAGS))
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.count("\n") == 6  # of one process alone
    assert "2 processes" in said
    same_run(folder, alone)
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len([path for path in files if "tfevents" in path.name]) == 3


def test_of_four_processes_one_is_killed_and_two_go_on(alone, repository, tmp_path):
    folder = Folder(tmp_path / "four")
    process = torchrun(repository, 4, "train.py", *each_once(*folder.flags, *FLAGS))
    wait_until(lambda: folder.log.exists() and re.search("iteration +20 ", folder.log.read_text()), process)
    os.kill(children(process.pid)[2], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count("error:") == errors.count("train.py: error: another process has ended") == 1
    assert folder.checkpoint.exists()
    assert not folder.saved_model.exists()
    process = torchrun(repository, 2, "train.py", *each_once(*folder.flags, *FLAGS), "-resume")
    assert process.wait() == 0, process.communicate()
    process.communicate()
    same_run(folder, alone)


def test_what_cannot_be_is_said_once(repository, tmp_path):
    folder = Folder(tmp_path / "wrong")
    process = torchrun(repository, 4, "train.py", *each_once(*folder.flags, "-batch_size", "64"), "-init", "nothing.pt")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count("error:") == errors.count("nothing.pt: cannot be read") == 1, errors
    assert not list(folder.path.rglob("*"))


FAILS_EARLY = """
from experiment.errors import InputError, run_script
from experiment.processes import Processes, dist
connect = dist.init_process_group
def connect_late(store, rank, world_size):
    connect(store=store, rank=rank, world_size=world_size)
    if rank == 2:
        store.wait(["failed"])
        raise RuntimeError("Connection closed by peer")
dist.init_process_group = connect_late
def main():
    with Processes.join() as processes:
        if processes.first:
            raise InputError("nothing.pt: cannot be read")
        processes.share(lambda: 0)
run_script(main)
"""


def test_a_process_that_fails_before_another_is_connected_says_why_and_the_other_does_not(repository):
    (repository.folder / "fails_early.py").write_text(FAILS_EARLY)
    process = torchrun(repository, 3, "fails_early.py")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count("error:") == errors.count("nothing.pt: cannot be read") == 1, errors


def listens(port):
    """Whether a process listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def table(folder):
    """A sweep's table without its times."""
    rows = json.loads((folder / "seeds.json").read_text())
    return [{key: row[key] for key in row if "seconds" not in key} for row in rows]


def meeting():
    """How two nodes find each other on this machine: flags of torchrun, and the port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return ("--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}", "--rdzv_id=sweep"), port


def test_machines_that_share_no_folder_are_told(repository, tmp_path):
    meet, _ = meeting()
    nodes = [torchrun(repository, 1, *meet, "reproduce.py", "-output", tmp_path / str(i)) for i in range(2)]
    errors = "".join(each.communicate()[1] for each in nodes)
    assert [each.returncode for each in nodes] == [1, 1]
    assert errors.count("error:") == errors.count("is not the same folder on all computers") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_sweep_over_two_nodes_of_which_one_is_killed(repository, tmp_path):
    """Six runs; the table is complete, and the one that a single machine makes, of which one is made here."""
    meet, port = meeting()
    sweep = "reproduce.py", "-configs", "m1d1", "-seeds", "0-5", "-num_sequences", "1"
    sweep += "-flags", "-num_iters 20 -report_every 20"
    one, two = tmp_path / "one", tmp_path / "two"
    nodes = [torchrun(repository, 1, *meet, *sweep, "-jobs", "1", "-output", two)]
    wait_until(lambda: listens(port), *nodes)  # torchrun on the machine where they meet must not end
    nodes.append(torchrun(repository, 1, *meet, *sweep, "-jobs", "1", "-output", two))

    def done():
        return len(list(two.glob("*/log/*.json")))

    wait_until(lambda: done() >= 3, *nodes)
    kill_tree(nodes[1].pid)
    nodes[1].communicate()
    assert done() < 5
    wait_until((two / "seeds.json").exists, nodes[0])
    os.killpg(nodes[0].pid, signal.SIGTERM)  # its torchrun waits minutes for the other to say goodbye
    said, _ = nodes[0].communicate()
    assert "0 of 6 runs without any wrong sequence" in said
    repository.run(*["2" if word == "0-5" else word for word in sweep], "-output", one)
    assert table(one) == [row for row in table(two) if row["seed"] == 2]
    for path in one.glob("*/saved_model/*.pt"):
        ours, theirs = weights(path), weights(two / path.relative_to(one))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(list(two.glob("*/saved_model/*.pt"))) == 6
