"""experiment/configuration.py, recipe.py, json_file.py: the nine, and what can be wrong with a file."""

import dataclasses
import json
import re

import pytest
from conftest import GOOD

from experiment.configuration import (
    CONFIGS,
    MACHINES,
    NAMES,
    NINE,
    PAPER,
    PAPER_TASKS,
    Configuration,
    Recipe,
    load_configuration,
    load_task_json,
    read_recipe,
    with_settings,
)
from experiment.errors import InputError
from experiment.options import parse_options
from experiment.recipe import settings_in_use
from tasks import TASKS
from tasks.copy import Copy
from tasks.repeat_copy import LengthAndRepeats


def test_the_nine():
    sizes = {"m1": (100, 128, 20, 1), "m2": (200, 128, 20, 1), "m3": (100, 128, 40, 1)}
    ranges = {"d1": (1, 20, 20, 100), "d2": (1, 10, 10, 100), "d3": (1, 30, 30, 100)}
    assert len(NINE) == 9
    for name in NINE:
        configuration = load_configuration(name)
        network, data = configuration.network, configuration.data
        assert tuple(vars(network).values()) == (*sizes[name[:2]], "lstm")
        assert tuple(data.as_dict().values()) == ("reverse", 8, *ranges[name[2:]])
        assert Configuration.from_dict(configuration.as_dict(), "here") == configuration


def test_a_parameter_of_a_task_with_a_default_may_be_left_away(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Narrow(Copy):
        seq_width: int = 3

    monkeypatch.setitem(TASKS, "copy", Narrow)
    path = tmp_path / "tiny.json"
    for width in ({}, {"seq_width": 5}):
        path.write_text(json.dumps({k: v for k, v in GOOD.items() if k != "seq_width"} | {"task": "copy"} | width))
        configuration = load_task_json(path)
        assert configuration.task.seq_width == width.get("seq_width", 3)
        assert Configuration.from_dict(configuration.as_dict(), "here") == configuration
    path.write_text(json.dumps({k: v for k, v in GOOD.items() if k != "task"}))
    with pytest.raises(InputError, match=r"tiny\.json: key 'task' is missing; allowed are reverse, copy"):
        load_task_json(path)


@pytest.mark.parametrize("name", ["m4d1", "m1", "", "m1d1d1", "../m1d1", "M1D1"])
def test_unknown_names(name):
    with pytest.raises(InputError, match="m1d1, m1d2"):
        load_configuration(name)


def test_a_task_file(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(GOOD))
    configuration = load_task_json(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark, as editors on Windows put there
    assert load_task_json(path) == configuration
    assert (configuration.name, configuration.title) == ("tiny", "reverse_tiny")
    assert configuration.task.input_size == 5


BAD = {
    "unknown key": ({**GOOD, "depth": 3}, "unknown key 'depth'"),
    "a typing mistake": ({**GOOD, "mem_units": 5}, "; did you mean memory_units?"),
    "missing key": ({k: v for k, v in GOOD.items() if k != "num_heads"}, "'num_heads' is missing"),
    "text for a number": ({**GOOD, "seq_width": "8"}, "'seq_width' must be a whole number"),
    "a fraction": ({**GOOD, "seq_width": 1.5}, "'seq_width' must be a whole number"),
    "true for a number": ({**GOOD, "num_heads": True}, "'num_heads' must be a whole number"),
    "zero": ({**GOOD, "memory_units": 0}, "'memory_units' is 0; allowed is 1"),
    "negative": ({**GOOD, "min_seq_len": -1}, "'min_seq_len' is -1"),
    "too many rows": ({**GOOD, "memory_units": 10**12}, "'memory_units' is 1000000000000"),
    "too much memory": ({**GOOD, "memory_units": 10**6, "memory_unit_size": 10**6}, "memory_units \\* memory_unit"),
    "too many weights": ({**GOOD, "controller_size": 10**6}, "weights"),
    "range upside down": ({**GOOD, "min_seq_len": 5}, "'min_seq_len' \\(5\\) must be at most 'max_seq_len'"),
    "longer range upside down": ({**GOOD, "longer_max_seq_len": 1}, "must be at most 'longer_max_seq_len'"),
    "longer range within the trained one": (
        {**GOOD, "longer_min_seq_len": 1, "longer_max_seq_len": 2},
        r"'max_seq_len' \(4\) must be at most 'longer_max_seq_len' \(2\)",
    ),
    "no such task": ({**GOOD, "task": "sort"}, "allowed are reverse"),
    "a list": ([GOOD], "no JSON object"),
    "null": (None, "no JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_fields_are_named(tmp_path, case):
    fields, message = BAD[case]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message) as error:
        load_task_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


JUNK = {
    "nothing": b"",
    "half": b"{",
    "no UTF-8": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "NaN": b'{"seq_width": NaN}',
    "blanks": b" " * 200_000,
    "a long number": b"1" * 5000,
}


@pytest.mark.parametrize("contents", JUNK.values(), ids=JUNK)
def test_junk_is_refused_in_one_line(tmp_path, contents):
    path = tmp_path / "junk.json"
    path.write_bytes(contents)
    with pytest.raises(InputError, match=r"junk\.json") as error:
        load_task_json(path)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_not_files(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_task_json(path)


def test_a_recipe_is_a_file_and_what_is_given_overrides_it():
    plain = load_configuration("m1d1")
    paper = with_settings(with_settings(plain, read_recipe("paper")), {"seed": 3, "momentum": 0.5}).recipe
    assert (paper.optimizer, paper.lr, paper.batch_size, paper.clip_value) == ("rmsprop", 1e-4, 1, 10)
    assert (paper.dirty, paper.blur_cost, paper.cell_dropout, paper.uneven, paper.curriculum) == (0, 0, 0, 0, 0)
    assert (paper.seed, paper.momentum) == (3, 0.5)
    assert read_recipe("paper") == read_recipe(str(CONFIGS / "recipes" / "paper.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0}, "lr is 0.0; allowed is a number of at least 1e-30"),
        ({"lr": float("nan")}, "lr"),
        ({"eps": float("inf")}, "eps"),
        (
            {"dirty": 1.01},
            "dirty is 1.01; allowed is a number of at least 0 (1e-30 where it is not 0) and at most 1",
        ),
        ({"num_iters": 10**400}, "num_iters"),
        ({"full_tape": 1}, "'full_tape' must be true or false"),
        ({"lr_schedule": "unheard of"}, "allowed are cosine, constant"),
        ({"optimizer": "sgd"}, "adam, rmsprop"),
        ({"weaning": 0.75}, "unknown key 'weaning'"),
    ],
)
def test_an_impossible_setting_is_refused_in_a_recipe_and_in_a_model(tmp_path, change, said):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(change))
    with pytest.raises(InputError, match=r"odd\.json") as refused:
        read_recipe(str(path))
    assert said in str(refused.value)
    fields = load_configuration("m1d1").as_dict()
    fields["recipe"] |= change
    with pytest.raises(InputError, match="here"):
        Configuration.from_dict(fields, "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "ngram", "uneven": 0.5}, "uneven: the task ngram has no uneven sequences"),
        ({"optimizer": "rmsprop", "beta1": 0.5}, "beta1: is a setting of adam; this run uses rmsprop"),
        ({"momentum": 0.5}, "momentum: is a setting of rmsprop; this run uses adam"),
        ({"controller": "feedforward", "cell_dropout": 0.1}, "cell_dropout: would do nothing, since own has no cells"),
        ({"machine": "lstm", "blur_cost": 0.1}, "blur_cost: would do nothing, since own has no memory"),
        ({"machine": "lstm", "full_tape": True}, "full_tape: would do nothing, since own has no memory"),
    ],
)
def test_a_recipe_within_a_file_that_does_nothing_is_refused(tmp_path, change, said):
    recipe = {key: value for key, value in change.items() if key not in ("task", "controller", "machine")}
    name = "ngram" if "task" in change else "copy_lstm" if "machine" in change else "copy"
    fields = json.loads((CONFIGS / f"{name}.json").read_text()) | {"recipe": recipe}
    if "controller" in change:
        fields["controller"] = change["controller"]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=re.escape(f"own.json: recipe: {said}")):
        load_task_json(path)
    path.write_text(json.dumps({**fields, "recipe": {}}))
    assert load_task_json(path).recipe.uneven == (0.0 if name == "ngram" else 0.5)


def test_a_recipe_for_any_machine_leaves_out_what_one_has_not(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"full_tape": true, "cell_dropout": 0.1, "num_iters": 7}')
    for name in ("copy", "copy_ff", "copy_lstm"):
        assert parse_options("", ["-config", name, "-recipe", str(path)])[1].recipe.num_iters == 7
    for flags, full_tape in ((["-full_tape"], True), (["-full_tape", "no"], False), ([], True)):
        assert parse_options("", ["-config", "associative_recall", *flags])[1].recipe.full_tape is full_tape


@pytest.mark.parametrize("path", sorted((CONFIGS / "beyond").glob("*.json")))
def test_the_configurations_beyond_the_nine_are_right(path):
    assert load_task_json(path).name == path.stem


def test_there_is_a_configuration_for_each_task_and_machine():
    assert set(PAPER_TASKS) | {"reverse"} == set(TASKS)
    assert len(PAPER) == len(PAPER_TASKS) * len(MACHINES) == 15
    assert LengthAndRepeats(3, 2)._fields == ("seq_len", "repeats")


def test_a_log_names_the_settings_that_do_something():
    everything = {field.name for field in dataclasses.fields(Recipe)}
    of_rmsprop, of_adam = {"momentum", "alpha"}, {"beta1", "beta2", "eps", "weight_decay"}
    of_memory, of_cells = {"dirty", "dirt", "blur_cost", "gate_bias", "full_tape"}, {"cell_dropout"}
    used = {name: load_configuration(name) for name in ("m1d1", "f1d1", "l1d1")}
    used = {name: set(settings_in_use(c.recipe, c.network.has)) for name, c in used.items()}
    assert used["m1d1"] == everything - of_rmsprop
    assert used["f1d1"] == everything - of_rmsprop - of_cells
    assert used["l1d1"] == everything - of_rmsprop - of_cells - of_memory
    assert set(settings_in_use(Recipe(optimizer="rmsprop"), {"memory", "cells"})) == everything - of_adam


@pytest.mark.parametrize("name", ["../docs/index", "a/b", "a\\b", "", "a b", "a\0b", "a\n", "\x1b[2J", "a" * 65])
def test_a_name_that_is_a_path_is_refused(name):
    fields = load_configuration("m1d1").as_dict() | {"name": name}
    with pytest.raises(InputError, match="here: 'name' must be letters, digits"):
        Configuration.from_dict(fields, "here")
    assert Configuration.from_dict(fields | {"name": "m1d1-2"}, "here").name == "m1d1-2"


def test_what_does_nothing_in_a_recipe_for_any_machine_is_said(tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text('{"cell_dropout": 0.5, "gate_bias": 3, "dirty": 0}')
    for name, said in ("m1d1", []), ("copy_ff", ["cell_dropout"]), ("l1d1", ["cell_dropout", "gate_bias"]):
        parse_options("", ["-config", name, "-recipe", str(path)])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == len(said)
        for word in said:
            assert any(
                line.startswith(f"-recipe {path}: {word}: would do nothing, since {name} has no") for line in lines
            )
    for name in NAMES:
        parse_options("", ["-config", name, "-recipe", "paper"])
        lstm_alone = "memory" not in load_configuration(name).network.has
        assert capsys.readouterr().err.count("full_tape: would do nothing") == lstm_alone
