"""Full disks, folders that cannot be written or vanish, two runs in one place, and numbers that are not finite."""

import os
import resource
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import flat
from real_runs import Folder

from ntm import NTM, Backend

pytestmark = pytest.mark.slow


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        folder = Folder(disk)
        assert folder.train() == 2
        assert "No space left" in folder.said
        assert "Traceback" not in folder.said
        kept = torch.load(folder.checkpoint, weights_only=True)
        assert kept["step"] < 300
        assert not folder.saved_model.exists()
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        assert folder.train("-resume") == 0
        assert folder.saved_model.exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def _small_files(most):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_file_that_cannot_grow_costs_nothing_that_was_saved(tmp_path):
    folder = Folder(tmp_path / "run")
    folder.train_to_a_checkpoint()
    before = folder.checkpoint.read_bytes()
    assert folder.train("-resume", prepare=partial(_small_files, len(before) * 9 // 10)) == 2
    assert "File too large" in folder.said
    assert folder.said.count("error:") == 1
    assert "Traceback" not in folder.said
    assert folder.checkpoint.read_bytes() == before
    assert not [path for path in folder.runs.iterdir() if path.name.startswith(".checkpoint")]
    assert folder.train("-resume") == 0


def _nobody():
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_a_folder_that_cannot_be_written_is_one_line():
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Folder(Path(name) / "run")
        folder.path.chmod(0o555)
        folder.task_json.parent.chmod(0o777)
        assert folder.train(prepare=_nobody) == 2
        assert folder.said.count("\n") == 1
        assert "Permission denied" in folder.said
        assert list(folder.path.iterdir()) == []


def test_a_folder_that_vanishes_ends_the_run_in_one_line(tmp_path):
    folder = Folder(tmp_path / "run")
    process = folder.start()
    while not folder.checkpoint.exists():
        assert process.is_alive()
    shutil.rmtree(folder.path, ignore_errors=True)
    process.join()
    folder.read_said()
    assert process.exitcode == 2, folder.said
    assert folder.said.splitlines()[-1].count("error:") == 1
    assert "Traceback" not in folder.said


def test_a_log_that_is_gone_is_named(tmp_path):
    folder = Folder(tmp_path / "run")
    folder.train_to_a_checkpoint()
    folder.log.unlink()
    before = folder.checkpoint.read_bytes()
    assert folder.train("-resume") == 2
    assert "tiny.log: is gone" in folder.said
    assert folder.checkpoint.read_bytes() == before


def test_a_second_run_in_the_same_place_is_refused_and_the_first_goes_on(tmp_path):
    folder, second = Folder(tmp_path / "run"), Folder(tmp_path / "run")
    process = folder.start("-num_iters", "1000")
    while not folder.checkpoint.exists():
        assert process.is_alive()
    for more in (("-overwrite",), ("-resume", "-num_iters", "1000")):
        second.said_path = tmp_path / "second.txt"
        assert second.train(*more) == 2
        assert second.said.count("\n") == 1
        assert "another run is writing here" in second.said
    process.join()
    assert process.exitcode == 0
    assert folder.saved_model.exists()


def test_an_interrupted_run_is_not_started_over_by_mistake(tmp_path):
    folder = Folder(tmp_path / "run")
    folder.train_to_a_checkpoint()
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert folder.train() == 0
    assert "there is a run tiny already: this one is tiny-2" in folder.said
    assert before == {path: path.read_bytes() for path in before}
    assert folder.train("-resume") == 0
    assert folder.saved_model.exists()


def test_a_run_that_blows_up_stops_at_that_step_and_saves_no_poison(tmp_path):
    folder = Folder(tmp_path / "run")
    blow_up = ("-optimizer", "rmsprop", "-lr", "1e37", "-clip_typical", "0", "-lr_schedule", "constant")
    assert folder.train(*blow_up) == 2
    assert folder.said.count("error:") == 1
    line = folder.log.read_text().splitlines()[-1]
    for part in ("iteration ", "tiny", "seed 0", "batch seed ", "stopped"):
        assert part in line
    assert not folder.saved_model.exists()
    kept = torch.load(folder.checkpoint, weights_only=True)
    assert all(part.isfinite().all() for part in kept["model"].values())
    assert folder.train(*blow_up, "-resume") == 2  # comes by the same batch again
    assert folder.log.read_text().splitlines()[-1] == line


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.FUSED])
@pytest.mark.parametrize("extreme", ["key strength 1e4", "sharpening 1e3", "both", "zero keys", "huge inputs"])
def test_extremes_give_finite_numbers_and_gradients(backend, extreme):
    torch.manual_seed(0)
    model = NTM(5, 3, 8, 16, 6, backend=backend)
    heads, width = 2, 6
    with torch.no_grad():
        weight, bias = model.heads.control_proj.weight, model.heads.control_proj.bias
        if extreme in ("key strength 1e4", "both"):
            bias[heads * width : heads * width + heads] = 1e4
        if extreme in ("sharpening 1e3", "both"):
            bias[heads * width + 5 * heads : heads * width + 6 * heads] = 1e3
        if extreme == "zero keys":
            weight[: heads * width] = bias[: heads * width] = 0
    inputs = torch.rand(12, 3, 5) * (1e18 if extreme == "huge inputs" else 1)
    logits, state = model(inputs)
    outputs = (logits, *flat(state))
    gradients = torch.autograd.grad(sum(part.sum() for part in outputs), [*model.parameters()])
    for part in (*outputs, *gradients):
        assert part.isfinite().all()


def test_ten_thousand_vectors_give_finite_numbers():
    torch.manual_seed(0)
    model = NTM(10, 8, 20, 10_240, 20).eval()
    inputs = torch.zeros(20_002, 1, 10)
    inputs[1:10_001, 0, :8] = torch.randint(0, 2, (10_000, 8)).float()
    with torch.no_grad():
        logits, state = model(inputs)
    for part in (logits, *flat(state)):
        assert part.isfinite().all()
