"""experiment/code_record.py: what was edited since a model was trained is named where it is loaded."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from experiment import code_record
from experiment.checkpoint import load_model
from experiment.code_record import BESIDE, code_files, edits_since, say_what_was_edited
from experiment.configuration import NAMES, load_configuration
from experiment.errors import InputError

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
    assert edits_since(before) == said.replace("Reverse.answer", "it cannot be read")


@pytest.mark.parametrize("imports", ["from tasks.helper import SCALE", "import tasks.helper", "from . import helper"])
def test_an_edit_of_what_a_task_imports_is_named(copy, imports):
    edit(copy / "tasks" / "vectors.py", "import torch\n", f"import torch\n{imports}\n")
    before = record()
    (copy / "tasks" / "helper.py").write_text("SCALE = 2\n")
    assert edits_since(before) == "tasks/helper.py was edited (SCALE)"


def test_a_model_without_a_record_has_that_beside_it(copy, capsys):
    model = copy / "saved_model" / "model.pt"
    say_what_was_edited(None, M1D1, model)
    model.parent.mkdir()
    (model.parent / BESIDE).write_text(json.dumps(record() | {"tasks/copy.py": {"Copy": "of another task"}}))
    say_what_was_edited(None, M1D1, model)
    assert not capsys.readouterr().err
    edit(copy / "ntm" / "memory.py", "INITIAL_VALUE = 1e-6", "INITIAL_VALUE = 0.1")
    say_what_was_edited(None, M1D1, model)
    said = f"{model}: was trained by other code than this: ntm/memory.py was edited (INITIAL_VALUE)\n"
    assert capsys.readouterr().err == said
    say_what_was_edited(record(), M1D1, model)  # its own counts, where it has one
    assert not capsys.readouterr().err
    (model.parent / BESIDE).write_text("[")
    with pytest.raises(InputError, match=r"code\.json: cannot be read"):
        say_what_was_edited(None, M1D1, model)


@pytest.mark.parametrize("found", [3, [], {"ntm/heads.py": 3}, {3: {}}, {"ntm/heads.py": {3: "a"}}])
def test_what_is_no_record_is_refused(found, tmp_path):
    with pytest.raises(InputError, match="not a model file of this program"):
        say_what_was_edited(found, M1D1, tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["../other.py", "/etc/passwd", "/dev/zero", "ntm/fused/stock.json"])
def test_a_record_of_other_files_reads_none(name):
    assert edits_since({name: {"a": "b"}}) == f"{name} was edited (it is not there)"


@pytest.mark.parametrize("name", NAMES)
def test_the_record_of_the_shipped_models_is_of_the_code_as_it_is(name):
    """After an edit that leaves their answers as they are: python -m experiment.code_record."""
    shipped = json.loads((ROOT / "saved_model" / BESIDE).read_text())
    now = code_record.code_record(load_configuration(name))
    assert {file: shipped[file] for file in now} == now


def test_a_trained_model_has_a_record(repository, tiny, capsys):
    load_model(repository.folder / "saved_model" / "reverse_tiny.pt")
    assert not capsys.readouterr().err
