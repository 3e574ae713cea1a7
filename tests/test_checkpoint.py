"""experiment/checkpoint.py: what is saved, and what is refused."""

import json
import os
import platform
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from conftest import GOOD, ROOT

from experiment import checkpoint
from experiment.checkpoint import (
    load,
    load_model,
    load_to_resume,
    save,
    weights_for,
    write_atomically,
)
from experiment.configuration import load_configuration, load_task_json
from experiment.errors import InputError
from experiment.runlog import commit
from ntm import Backend
from ntm.controller import CONTROLLERS, LSTMController


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model.pt"
    save(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save(path, {"a": lambda: 0})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def write_often(path, text):
    for _ in range(100):
        write_atomically(path, text)


def test_two_that_write_one_file_do_not_disturb_each_other_and_what_a_killed_one_left_goes(tmp_path):
    path = tmp_path / "table.json"
    gone = get_context("fork").Process(target=int)
    gone.start()
    gone.join()
    old, killed, elsewhere = (tmp_path / f".table.json.{name}.{gone.pid}" for name in ("old", platform.node(), "other"))
    for left in (old, killed, elsewhere):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    writers = [get_context("fork").Process(target=write_often, args=(path, text * 100_000)) for text in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(tmp_path.iterdir()) == [elsewhere, path]  # a process of another computer may be at it
    assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)


def test_weights_that_do_not_fit_are_refused(repository, tiny, tmp_path):
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    contents = {key: value for key, value in load(saved).items() if key != "format"}
    contents["configuration"]["network"]["controller_size"] = 9
    save(tmp_path / "odd.pt", contents)
    with pytest.raises(InputError, match="its weights do not fit its configuration"):
        load_model(tmp_path / "odd.pt")
    torch.save({**contents, "format": 99}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="has format 99; this program reads 4, 5, 6"):
        load_model(tmp_path / "odd.pt")
    assert load_model(saved, backend=Backend.REFERENCE)


@pytest.mark.parametrize("task", ["reverse", "copy"])
def test_weights_of_another_task_are_taken_and_it_is_said(repository, tiny, tmp_path, capsys, task):
    (tmp_path / "of.json").write_text(json.dumps({**GOOD, "task": task}))
    configuration = load_task_json(tmp_path / "of.json")
    model = configuration.make_model(Backend.REFERENCE)
    weights = weights_for(model, configuration, repository.folder / "saved_model" / "reverse_tiny.pt")
    assert weights.keys() == model.state_dict().keys()
    told = "was trained with the task reverse; this run goes on with the task copy" in capsys.readouterr().out
    assert told == (task == "copy")


class Other(LSTMController):
    """With the same weights, another machine."""


def test_weights_of_another_controller_are_taken_and_it_is_said(repository, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CONTROLLERS, "other", Other)
    (tmp_path / "of.json").write_text(json.dumps({**GOOD, "controller": "other"}))
    configuration = load_task_json(tmp_path / "of.json")
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    weights_for(configuration.make_model(Backend.REFERENCE), configuration, saved)
    assert "with the controller lstm; this run goes on with the controller other" in capsys.readouterr().out


def test_a_tensor_under_two_names_is_saved_and_read(tmp_path):
    tensor = torch.randn(100, 100)
    contents = {"configuration": {}, "model": {"a": tensor, "again": tensor, "none": tensor[:0]}}
    save(tmp_path / "twice.pt", contents)
    again = load(tmp_path / "twice.pt")["model"]
    assert all(torch.equal(again[name], contents["model"][name]) for name in contents["model"])


@pytest.mark.parametrize("path", sorted((ROOT / "saved_model").glob("*.pt")), ids=lambda path: path.stem)
def test_each_shipped_model_is_read_and_answers(path):
    model, configuration = load_model(path, backend=Backend.REFERENCE)  # which starts sooner
    batch = configuration.task.sample(2, configuration.data.low, torch.Generator().manual_seed(0))
    logits, _ = model(batch.inputs)
    assert logits.shape == batch.targets.shape
    assert logits.isfinite().all()


def test_a_model_of_other_shifts_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "model.pt", {"configuration": {}, "model": {}})
    assert set(load(tmp_path / "model.pt")) == {"configuration", "model", "format"}
    monkeypatch.setattr(checkpoint, "SHIFTS", (0, 1, 2))
    with pytest.raises(InputError, match=r"pt: is of a machine with the shifts \[-1, 0, 1\]; .* are \[0, 1, 2\]"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", str(ROOT)])
def test_what_is_no_file_is_not_read(path):
    with pytest.raises(InputError, match=f"{path}: is no file"):
        load(Path(path))


def test_a_checkpoint_of_other_code_says_so(tmp_path, capsys):
    contents = {"configuration": load_configuration("m1d1").as_dict(), "model": {}}
    for stored, said in ((None, ""), (commit(), ""), ("0123456789ab", "is of commit 0123456789ab, and this is")):
        save(tmp_path / "checkpoint.pt", contents | ({} if stored is None else {"commit": stored}))
        load_to_resume(tmp_path / "checkpoint.pt")
        error = capsys.readouterr().err
        assert (said in error) if said else not error
