"""ntm/stock.py: an edit of a file that ntm/fused/ has once more is seen, whatever it changes."""

import ast
import json
import re

import pytest
from conftest import ROOT, lively_model

from ntm import Backend, BackendError, stock
from ntm.stock import FILES, SHARED, definitions, digests, edited_names

SOURCES = {file: (ROOT / "ntm" / f"{file}.py").read_text() for file in (*FILES, *SHARED)}
RECORDS = json.loads(stock.RECORD.read_text())


def test_the_record_is_of_the_files_as_they_are():
    assert {file: digests(definitions(source)) for file, source in SOURCES.items()} == RECORDS


def changed(file, *pairs):
    source = SOURCES[file]
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    return edited_names(source, RECORDS[file])


EDITS = {
    "a constant": ("addressing", ("2.0**-20", "2.0**-30"), "NORM_EPSILON"),
    "an operation": ("addressing", ("torch.softmax(", "torch.softmax(0.5 * "), "content_weighting"),
    "an argument": ("memory", ("like.new_full", "torch.full"), "initial_memory"),
    "a method": ("controller", ("cell = cell * cell_mask", "cell = cell * 1"), "LSTMController.forward"),
    "a base": ("heads", ("class Heads(nn.Module)", "class Heads(nn.ModuleDict)"), "Heads"),
    "a default": ("ntm", ("blur_cost: float = 0.0", "blur_cost: float = 1.0"), "NTM.forward_backward"),
    "an import": ("ntm", ("from ntm.loss import", "from ntm.other import"), "cross_entropy"),
    "a decorator": ("loss", ("def cross_entropy", "@torch.no_grad()\ndef cross_entropy"), "cross_entropy"),
    "a definition that is gone": ("addressing", ("def shift(", "def shift_rows("), "shift"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_named(edit):
    file, pair, name = EDITS[edit]
    assert name in changed(file, pair)


@pytest.mark.parametrize("file", FILES)
def test_each_number_and_each_operator_counts(file):
    tree = ast.parse(SOURCES[file])
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    free = [node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id in stock.LOOKED_AT]
    inside |= {id(part) for node in free for part in ast.walk(node)}
    places = [node for node in ast.walk(tree) if id(node) not in inside]
    tried = 0
    for node in places:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            kept, node.value = node.value, node.value + 1
            assert edited_names(ast.unparse(tree), RECORDS[file])
            node.value = kept
        elif isinstance(node, ast.BinOp):
            kept, node.op = node.op, ast.FloorDiv()
            assert edited_names(ast.unparse(tree), RECORDS[file])
            node.op = kept
        else:
            continue
        tried += 1
    assert tried >= 2
    assert not edited_names(ast.unparse(tree), RECORDS[file])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("def sharpen(weighting, sharpening):\n    return weighting", "sharpen"),
        ("sharpen = torch.relu", "sharpen"),
        ("own, [*_, (sharpen)] = 1, (2, 3)", "sharpen"),
        ("own = sharpen = 1", "sharpen"),
        ("content_weighting.__code__ = blur.__code__", "content_weighting"),
        ("own = torch\nown.softmax = own.sigmoid", "own"),
        ("torch.softmax = torch.sigmoid", "torch"),
        ("class Tensor:\n    pass", "Tensor"),
        ("from mine import *", "*"),
        ("from torch import *", "*"),
        ("import patches", "patches"),
        ("from . import patches", "patches"),
        ("del blur", ""),
        ("if True:\n    LOG_EPSILON = 1", ""),
        ("setattr(torch, 'softmax', torch.sigmoid)", ""),
        ("own = setattr(torch, 'softmax', torch.sigmoid)", "own"),
        ("CONTROLLERS = setattr(torch, 'softmax', torch.sigmoid)", "CONTROLLERS"),
        ("@torch.own\ndef own():\n    return 0", "own"),
        ("def own(x=setattr(torch, 'softmax', torch.sigmoid)):\n    return x", "own"),
        ("class Own:\n    own = setattr(torch, 'softmax', torch.sigmoid)", "Own"),
        ("class Own:\n    @torch.own\n    def own(self):\n        return 0", "Own.own"),
        ("class Own:\n    own = (LOG_EPSILON := 1)", "Own"),
        ("class Own:\n    torch.softmax = torch.sigmoid", "Own"),
        ("CONTROLLERS['lstm'].forward = sharpen", "CONTROLLERS"),
        ("CONTROLLERS[sharpen] = 0", "CONTROLLERS"),
        ("LOG_EPSILON *= 2", "LOG_EPSILON"),
        ("sum = max", "sum"),
    ],
)
def test_what_is_written_below_and_changes_what_stands_above_is_named(text, name):
    names = edited_names(f"{SOURCES['addressing']}\n\n{text}\n", RECORDS["addressing"])
    assert name in names


@pytest.mark.parametrize("method", ["def __call__(self, *a):\n        return 0", "def step_twice(self):\n        pass"])
def test_a_new_method_of_a_class_is_named(method):
    names = changed("heads", ("    def forward(", f"    {method}\n\n    def forward("))
    assert names == [f"Heads.{re.search('def (.*?)[(]', method)[1]}"]


MINE = "class Mine(nn.Module):\n    def forward(self, x):\n        return x\n\n\n"


@pytest.mark.parametrize(
    "pairs",
    [
        [("    Args:\n", "    Arguments:\n")],  # in docstrings
        [("\n    def ", "\n    # A comment.\n\n    def ")],
        [("raise ValueError(f", 'raise ValueError("" f')],
        [("CONTROLLERS = {", 'CONTROLLERS = {"mine": FeedForwardController, ')],
        [("import torch\n", "import math\nimport torch\n\n\ndef sigmoid(x):\n    return x\n")],
        [("class LSTMController(", MINE + "class LSTMController(")],
        [("class LSTMController(", "def mine(x: int = 3):\n    return torch.relu(x)\n\n\nclass LSTMController(")],
        [("CONTROLLERS = {", "OTHERS: dict = {}\n\nCONTROLLERS = {"), ("r}\n", 'r}\nCONTROLLERS["x"] = nn.Identity\n')],
    ],
)
def test_what_changes_no_number_is_no_edit(pairs):
    assert changed("controller", *pairs) == []


def test_a_file_of_ones_own_beside_them_may_be_imported_if_it_only_defines(tmp_path, monkeypatch):
    monkeypatch.setattr(stock, "FOLDER", tmp_path / "ntm")
    (tmp_path / "ntm").mkdir()
    gru, base = (tmp_path / "ntm" / f"{name}.py" for name in ("gru", "base"))
    gru.write_text(
        f"import math\n\nfrom torch import nn\n\nfrom ntm.base import Base\nfrom ntm.heads import Heads\n\n{MINE}"
    )
    for text, acts in {
        "class Base:\n    pass\n": False,
        "import torch\n\ntorch.softmax = torch.sigmoid\n": True,
        "from patches import Base\n": True,
        "from ntm.gru import Mine\n": True,  # and that this
        "def (": True,
    }.items():
        base.write_text(text)
        for line in "from ntm.gru import Mine", "from .gru import Mine", "from ntm import gru", "from . import gru":
            stock.only_defines.cache_clear()
            pairs = (
                ("from typing import", f"{line}\nfrom typing import"),
                ("CONTROLLERS = {", 'CONTROLLERS = {"gru": Mine, '),
            )
            assert changed("controller", *pairs) == ([line.split()[-1]] if acts else [])
    stock.only_defines.cache_clear()


def test_what_stands_above_an_import_of_the_same_name_counts():
    assert "torch" in changed(
        "addressing", ("import torch\n", "import torch\ntorch.softmax = torch.sigmoid\nimport torch\n")
    )


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("import patches", True),
        ("from ntm import patches", True),
        ("setattr(torch, 'softmax', torch.sigmoid)", True),
        ("own = setattr(torch, 'softmax', torch.sigmoid)", True),
        ("torch.softmax = torch.sigmoid", True),
        ("OWN = 3\n\n\ndef own(x):\n    return torch.relu(x)", False),
    ],
)
@pytest.mark.parametrize("file", SHARED)
def test_a_file_that_both_paths_use_may_be_edited_but_not_change_another(file, text, edit):
    """What it does when it is imported is done before `NTM.why_not_fused` knows what was there."""
    assert bool(edited_names(f"{text}\n{SOURCES[file]}", RECORDS[file], shared=True)) == edit
    assert not edited_names(SOURCES[file].replace(" + ", " - "), RECORDS[file], shared=True)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A record of its own, that is read at the next look."""
    monkeypatch.setattr(stock, "RECORD", tmp_path / "stock.json")
    stock.edited.cache_clear()
    yield stock.RECORD
    stock.edited.cache_clear()


@pytest.mark.parametrize("text", [None, "", "{", "{}", '{"addressing": {}}', "[1]"])
def test_a_record_that_cannot_be_read_means_the_reference_path_and_a_reason(record, text):
    if text is not None:
        record.write_text(text)
    model = lively_model()
    assert "what it is cannot be read" in model.why_not_fused()
    assert not model.use_fused()
    model.backend = Backend.FUSED
    with pytest.raises(BackendError, match="what it is cannot be read"):
        model.use_fused()


def test_the_command_says_what_was_edited_and_the_fused_path_takes_it(record, capsys):
    record.write_text(
        json.dumps(RECORDS | {"heads": RECORDS["heads"] | {"Heads.controls": "0" * 16, "gone": "0" * 16}})
    )
    assert "ntm/heads.py was edited (Heads.controls, gone)" in lively_model().why_not_fused()
    stock.main()
    assert "ntm/heads.py was edited (Heads.controls, gone)" in capsys.readouterr().out
    assert json.loads(record.read_text()) == RECORDS
    stock.edited.cache_clear()
    assert lively_model().why_not_fused() is None
    stock.main()
    assert "nothing was edited" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_with_an_edited_equation_takes_the_reference_path_until_the_fused_path_is_said_to_have_it(
    repository, monkeypatch
):
    monkeypatch.setattr(repository, "forks", False)  # a process that has loaded the file would not see the change
    path, record = repository.folder / "ntm" / "addressing.py", repository.folder / "ntm" / "fused" / "stock.json"
    kept, recorded = path.read_text(), record.read_text()
    command = "train.py", "-num_iters", 1, "-threads", 1, "-output", "changed"

    def weights(name, *more):
        repository.run(*command, "-config", "m1d1", *more)
        log = (repository.folder / "changed" / "log" / f"{name}.log").read_text()
        return re.search("path: (.*)", log)[1], re.search("weights (.*)", log)[1]

    stock_weights = weights("m1d1", "-backend", "reference")[1]
    try:
        path.write_text(kept.replace("torch.softmax(key", "torch.softmax(0.5 * key"))
        said, own_weights = weights("m1d1-2")
        assert "reference path" in said
        assert "ntm/addressing.py was edited (content_weighting)" in said
        assert own_weights == weights("m1d1-3", "-backend", "reference")[1] != stock_weights
        refused = repository.run(*command, "-backend", "fused", code=2).stderr
        assert "ntm/addressing.py was edited (content_weighting)" in refused
        repository.run("ntm/stock.py")
        refused = repository.run(*command, code=2).stderr
        assert "the fused path has other" in refused
        assert "Traceback" not in refused
    finally:
        path.write_text(kept)
        record.write_text(recorded)
