"""experiment/code_record.py: what was edited since a model was trained is named where it is loaded."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from experiment import code_record
from experiment.checkpoint import load, load_model, load_to_resume, save, weights_mark
from experiment.code_record import (
    SHIPPED,
    code_files,
    edits_since,
    record_for,
    record_of,
    sequences_mark,
)
from experiment.configuration import load_configuration
from experiment.errors import InputError
from experiment.machine_check import answers
from experiment.runlog import commit
from ntm.controller import CONTROLLERS, LSTMController

M1D1 = load_configuration("m1d1")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A folder with the files of m1d1's record, to edit, and a module of one's own there, which its task imports."""
    for name in code_record.code_record(M1D1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(code_record, "ROOT", tmp_path)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith(("ntm.", "tasks.")) and (tmp_path / Path(file).relative_to(ROOT)).exists():
            monkeypatch.setattr(module, "__file__", str(tmp_path / Path(file).relative_to(ROOT)))
    helper = ModuleType("tasks.helper")
    helper.__file__, helper.__package__ = str(tmp_path / "tasks" / "helper.py"), "tasks"
    (tmp_path / "tasks" / "helper.py").write_text("SCALE = 1\n")
    monkeypatch.setitem(sys.modules, "tasks.helper", helper)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def record():
    return code_record.code_record.__wrapped__(M1D1)


def test_a_record_is_of_the_machine_and_the_task_and_of_what_they_import():
    machine = {f"ntm/{name}.py" for name in ("addressing", "controller", "heads", "loss", "memory", "ntm", "state")}
    task = {"tasks/task.py", "tasks/vectors.py"}
    assert code_files(M1D1).keys() == machine | task | {"tasks/reverse.py"}
    alone = {"ntm/baseline.py", "ntm/controller.py", "ntm/loss.py"}
    assert code_files(load_configuration("copy_lstm")).keys() == alone | task | {"tasks/copy.py"}


def test_edits_are_named_and_what_changes_nothing_is_not(copy):
    before = record()
    assert edits_since(before) is None
    edit(copy / "ntm" / "heads.py", "class Heads", "# a comment\nclass Heads")
    (copy / "ntm" / "controller.py").open("a").write("\n\nclass Mine(nn.Module):\n    pass\n")
    assert edits_since(before) is None
    edit(copy / "ntm" / "heads.py", "F.softplus(key_strength)", "F.relu(key_strength)")
    edit(copy / "tasks" / "reverse.py", "flip", "clone")
    said = "ntm/heads.py was edited (Heads.controls); tasks/reverse.py was edited (Reverse.answer)"
    assert edits_since(before) == said
    (copy / "tasks" / "reverse.py").write_text("def half(\n")
    assert edits_since(before) == said.replace("Reverse.answer", "it cannot be read")
    (copy / "tasks" / "reverse.py").unlink()
    assert edits_since(before) == said.replace("was edited (Reverse.answer)", "is not there")


@pytest.mark.parametrize("imports", ["from tasks.helper import SCALE", "import tasks.helper", "from . import helper"])
def test_an_edit_of_what_a_task_imports_is_named(copy, imports):
    edit(copy / "tasks" / "vectors.py", "import torch\n", f"import torch\n{imports}\n")
    before = record()
    (copy / "tasks" / "helper.py").write_text("SCALE = 2\n")
    assert edits_since(before) == "tasks/helper.py was edited (SCALE)"


def test_a_shipped_model_is_known_by_its_weights_wherever_its_file_is(copy, tmp_path, capsys):
    model, path = M1D1.make_model().eval(), tmp_path / "a_copy.pt"
    without = {"configuration": M1D1.as_dict(), "model": model.state_dict()}
    save(path, without)
    load_model(path)
    assert capsys.readouterr().err.startswith(f"{path}: has no record of the code that trained it")
    kept = {"file": "it.pt", "sequences": sequences_mark(M1D1), "answers": answers(model).tolist()}
    models, shipped = {weights_mark(model.state_dict()): kept}, copy / SHIPPED
    shipped.parent.mkdir()
    code = record() | {"tasks/copy.py": {"Copy": "of another task"}}
    shipped.write_text(json.dumps({"code": code, "models": models}))
    load_model(path)
    assert not capsys.readouterr().err
    edit(copy / "ntm" / "memory.py", "INITIAL_VALUE = 1e-6", "INITIAL_VALUE = 0.1")
    load_model(path)
    said = "ntm/memory.py was edited (INITIAL_VALUE)"
    assert capsys.readouterr().err == f"{path}: was trained by other code than this: {said}\n"
    for own in {"code": record()}, {"code": record(), "answers": torch.zeros(6, 2, 8)}:  # it counts, if there is one
        save(path, without | own)
        load_model(path)
    assert not capsys.readouterr().err
    save(path, without)
    for text in ("[", "[]", "{}"):
        shipped.write_text(text)
        with pytest.raises(InputError, match=r"code\.json: cannot be read"):
            load_model(path)


def test_where_weights_do_not_fit_an_edit_is_named(copy, tmp_path):
    path, weights = tmp_path / "model.pt", M1D1.make_model().state_dict()
    before = {"configuration": M1D1.as_dict(), "code": record()}
    save(path, before | {"model": {name: value for name, value in weights.items() if "gate" not in name}})
    with pytest.raises(InputError, match=r"do not fit its configuration$"):
        load_model(path)
    edit(copy / "ntm" / "controller.py", "gate_proj", "gates_proj")
    with pytest.raises(InputError, match=r"do not fit its configuration; since it was trained, ntm/controller\.py was"):
        load_model(path)


def test_where_a_task_has_other_parameters_an_edit_is_named(copy, tmp_path):
    fields, path = M1D1.as_dict(), tmp_path / "model.pt"
    fields["data"]["width"] = fields["data"].pop("seq_width")
    save(path, {"configuration": fields, "code": record(), "model": M1D1.make_model().state_dict()})
    with pytest.raises(InputError, match=r"unknown key 'width'; .*did you mean seq_width.$"):
        load_model(path)
    edit(copy / "tasks" / "reverse.py", "flip(0)", "flip(dims=(0,))")
    with pytest.raises(
        InputError, match=r"unknown key 'width'; .*; since it was trained, tasks/reverse\.py was edited"
    ):
        load_model(path)


class Louder(LSTMController):
    def forward(self, x, state, cell_mask=None):
        output, state = super().forward(x, state, cell_mask)
        return 1.5 * output, state


def backwards(task, vectors):
    return vectors.clone()


BY_NO_FILE = {  # what changes a machine or a task, and stands in no file that a record is of
    "another class for a controller's name": ("ntm.controller.CONTROLLERS", {"lstm": Louder}, "its answers are others"),
    "a function that was replaced": (
        "ntm.heads.address",
        lambda memory, *rest: (rest[0], rest[0]),
        "answers are others",
    ),
    "another memory at first": ("ntm.memory.INITIAL_VALUE", 1.0, "its answers are others"),
    "a task that was replaced": ("tasks.reverse.Reverse.answer", backwards, "the task reverse makes other sequences"),
    "another count": ("tasks.task.Task.wrong_bits", lambda *a: torch.zeros(3), "or counts their wrong bits otherwise"),
}


@pytest.mark.parametrize("what", BY_NO_FILE)
def test_what_a_process_does_otherwise_is_said(what, tmp_path, monkeypatch, capsys):
    path, model = tmp_path / "model.pt", M1D1.make_model()
    kept = {"configuration": M1D1.as_dict(), "model": model.state_dict(), **record_of(model, M1D1)}
    save(path, kept)
    load_model(path)
    assert not capsys.readouterr().err
    name, other, said = BY_NO_FILE[what]
    sequences_mark.cache_clear()
    if isinstance(other, dict):
        for key, value in other.items():
            monkeypatch.setitem(CONTROLLERS, key, value)
    else:
        monkeypatch.setattr(name, other)
    load_model(path)
    monkeypatch.undo()
    sequences_mark.cache_clear()
    error = capsys.readouterr().err
    assert error.startswith(f"{path}: was trained by other code than this: ")
    assert said in error


def test_a_resumed_run_whose_machine_answers_otherwise_says_so(tmp_path, monkeypatch, capsys):
    path, model = tmp_path / "checkpoint.pt", M1D1.make_model()
    save(path, {"configuration": M1D1.as_dict(), "model": model.state_dict(), **record_of(model, M1D1)})
    load_to_resume(path)
    assert not capsys.readouterr().err
    monkeypatch.setitem(CONTROLLERS, "lstm", Louder)
    load_to_resume(path)
    assert f"-resume: since {path} was written, its answers are others" in capsys.readouterr().err


def test_a_run_on_other_sequences_is_not_resumed(tmp_path, capsys):
    kept = {"configuration": M1D1.as_dict(), "model": {}, "commit": commit(), "sequences": sequences_mark(M1D1)}
    save(tmp_path / "checkpoint.pt", kept | {"code": code_record.code_record(M1D1)})
    load_to_resume(tmp_path / "checkpoint.pt")
    assert not capsys.readouterr().err
    save(tmp_path / "checkpoint.pt", kept | {"code": {"tasks/reverse.py": {"Reverse.answer": "other"}}})
    load_to_resume(tmp_path / "checkpoint.pt")
    assert "tasks/reverse.py was edited (Reverse.answer" in capsys.readouterr().err
    save(tmp_path / "checkpoint.pt", kept | {"sequences": "of another task"})
    with pytest.raises(InputError, match="of a run on other sequences: the task reverse was edited since"):
        load_to_resume(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    "found",
    [
        *({"code": code} for code in (3, [], {"ntm/heads.py": 3}, {3: {}}, {"ntm/heads.py": {3: "a"}})),
        *({"code": {}, **other} for other in ({"answers": 3}, {"sequences": 3})),
    ],
)
def test_what_is_no_record_is_refused(found, tmp_path):
    with pytest.raises(InputError, match="not a model file of this program"):
        record_for(found, "of its weights", M1D1, tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["../other.py", "/etc/passwd", "/dev/zero", "ntm/fused/stock.json"])
def test_a_record_of_other_files_reads_none(name):
    assert edits_since({name: {"a": "b"}}) == f"{name} is not there"


@pytest.mark.parametrize("path", sorted((ROOT / "saved_model").glob("*.pt")), ids=lambda path: path.stem)
def test_the_record_of_the_shipped_models_is_of_the_code_as_it_is(path, capsys):
    """After an edit that leaves their answers as they are: python -m experiment.code_record."""
    _, configuration = load_model(path)
    assert not capsys.readouterr().err
    shipped, now = json.loads((ROOT / SHIPPED).read_text()), code_record.code_record(configuration)
    assert {file: shipped["code"][file] for file in now} == now
    kept = shipped["models"][weights_mark(load(path)["model"])]
    assert kept.keys() == {"answers", "file", "sequences"}
    assert kept["file"] == path.name


def test_a_trained_model_has_a_record(repository, tiny, capsys):
    path = repository.folder / "saved_model" / "reverse_tiny.pt"
    assert {"code", "sequences", "answers"} < load(path).keys()
    load_model(path)
    assert not capsys.readouterr().err
