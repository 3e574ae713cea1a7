"""experiment/errors.py and options.py: bad input to each script gets one line; help names each flag."""

import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import GOOD

from experiment.configuration import Recipe
from experiment.errors import sizes

WRONG = {
    "unknown network": ("train.py -config m4d1", "m1d1, m1d2"),
    "half a name": ("train.py -config m1", "m1d1, m1d2"),
    "missing file": ("train.py -task_json missing.json", "missing.json"),
    "a size that is missing": (
        "evaluate.py -config m1d1 -sizes 1,,2",
        "'' is not a whole number",
    ),
    "half a size": ("evaluate.py -config repeat_copy -sizes 5x", "'' is not a whole number"),
    "half a range of one number of a size": (
        "evaluate.py -config repeat_copy -sizes 5x2-",
        "'2-' is not a whole number",
    ),
    "half a range": ("reproduce.py -seeds 4-", "'4-' is not a whole number"),
    "an empty name": ("train.py -config ''", "-config: is empty; leave it away for its default"),
    "an empty recipe": ("train.py -recipe '' -num_iters 3", "-recipe: is empty"),
    "an empty path": ("evaluate.py -config m1d1 --output ''", "--output: is empty"),
    "unknown key": ("train.py -task_json unknown.json", "'depth'"),
    "batch of none": ("train.py -batch_size 0", "-batch_size"),
    "to go on, and anew": ("train.py -resume -overwrite", "-overwrite begins a run anew, and -resume goes on with one"),
    "a curriculum that grows nothing": (
        "train.py -config m1d2 -curriculum 0.5",
        "-curriculum: would do nothing, since it begins at 10, and training is from 1 to 10; 0",
    ),
    "more rows than a page shows": (
        "evaluate.py -saved_model saved_model/reverse_tiny.pt -page -memory_units 257",
        "-memory_units 257: the page shows 4 to 256 rows",
    ),
    "fewer rows than a page shows": (
        "evaluate.py -saved_model saved_model/reverse_tiny.pt -page -memory_units 3",
        "the page shows 4 to 256 rows",
    ),
    "no iterations": ("train.py -num_iters 0", "-num_iters"),
    "a number with a line in it": ("train.py -seed 1_0", "'1_0' is not a whole number"),
    "text for a number": ("train.py -lr fast", "'fast' is not a number of at least 1e-30"),
    "a rate beyond floats": ("train.py -task_json huge.json", "huge.json: lr is"),
    "cells beyond counting": (
        f"train.py -lr_cells 1{'0' * 400}",
        "at most 1,000,000,000",
    ),
    "a seed beyond 64 bits": ("train.py -seed 99999999999999999999", "at most 9,223,372,036,854,775,807"),
    "a rate that float32 takes for 0": ("train.py -lr 1e-320", "'1e-320' is not a number of at least 1e-30"),
    "a limit that float32 takes for 0": ("train.py -clip_value 1e-50", "of at least 0 (1e-30 where it is not 0)"),
    "a name that is near one": ("train.py -config m1d4", "no such configuration; did you mean m1d3? There are m1d1, "),
    "a flag twice": ("train.py -config m1d1 --config m1d2", "-config: is given 2 times; give it once"),
    "a flag twice, once in one word": ("train.py -lr 1 -lr=2", "-lr: is given 2 times"),
    "a seed below 0": ("reproduce.py -seeds -1", "'-1' is not a whole number of at least 0"),
    "infinite rate": ("train.py -lr inf", "-lr"),
    "rate not a number": ("train.py -lr nan", "-lr"),
    "momentum with adam": ("train.py -momentum 0.9", "-momentum: is a setting of rmsprop"),
    "more than all dirty": ("train.py -dirty 1.5", "-dirty"),
    "a flag of an older recipe": ("train.py -weaning 0.5", "-weaning"),
    "beta with rmsprop": (
        "train.py -optimizer rmsprop -beta1 0.5",
        "-beta1: is a setting of adam; this run uses rmsprop",
    ),
    "unknown recipe": ("train.py -recipe papers", "paper"),
    "a run as a configuration": ("train.py -config m1d1-3 -resume", "m1d1-3: is a run; -config m1d1 begins another"),
    "a recipe with an unknown key": ("train.py -recipe unknown.json", "'controller_size'"),
    "an impossible recipe": ("train.py -recipe impossible.json", "impossible.json: batch_size is 0"),
    "a recipe of both optimizers": ("train.py -recipe paper -beta1 0.5", "-beta1: is a setting of adam"),
    "unknown optimizer": ("train.py -optimizer sgd", "adam"),
    "unknown flag": ("train.py -learning_rate 1", "-learning_rate"),
    "abbreviated flag": ("train.py -conf m1d1", "-conf"),
    "no such device": ("train.py -device tpu", "-device tpu"),
    "nothing to resume": ("train.py -config m2d2 -resume", "-resume"),
    "a text file as model": ("evaluate.py -saved_model text.pt", "text.pt"),
    "a pickle as model": ("evaluate.py -saved_model pickle.pt", "pickle.pt"),
    "an empty model": ("evaluate.py -saved_model empty.pt", "empty.pt"),
    "half a model": ("evaluate.py -saved_model half.pt", "half.pt"),
    "a foreign model": ("evaluate.py -saved_model foreign.pt", "foreign.pt"),
    "a missing model": ("evaluate.py -saved_model missing.pt", "missing.pt"),
    "a folder as model": ("evaluate.py -saved_model ntm", "ntm"),
    "evaluate an unknown name": ("evaluate.py -config m9d9", "m1d1, m1d2"),
    "a name, and a model": ("evaluate.py -config all -saved_model x.pt", "-saved_model PATH goes instead of -config"),
    "all, on one's own data": ("evaluate.py -config all -input good.txt", "-config all"),
    "own data: none": ("evaluate.py -saved_model saved_model/reverse_tiny.pt -input missing.txt", "missing.txt"),
    "own data: empty": ("evaluate.py -saved_model saved_model/reverse_tiny.pt -input empty.txt", "no sequence"),
    "own data: a 2": ("evaluate.py -saved_model saved_model/reverse_tiny.pt -input two.txt", "line 2, '012'"),
    "own data: a short line": ("evaluate.py -saved_model saved_model/reverse_tiny.pt -input short.txt", "line 4, '01'"),
    "own data: not text": ("evaluate.py -saved_model saved_model/reverse_tiny.pt -input pickle.pt", "pickle.pt"),
    "length of none": (
        "evaluate.py -saved_model saved_model/reverse_tiny.pt -sizes 0,5",
        "-sizes 0: seq_len of reverse",
    ),
    "lengths not numbers": ("evaluate.py -sizes 1,x", "-sizes"),
    "a near miss": ("train.py -dirtt 1", "did you mean -dirt?"),
    "another program's word": ("train.py -iterations 5", "did you mean -num_iters?"),
    "another program's word, misspelt": ("train.py -lerning_rate 1", "did you mean -lr?"),
    "a range upside down": ("evaluate.py -sizes 10-5", "'10-5' is not a range"),
    "a range without end": ("evaluate.py -sizes 1-999999", "is not a range of 1 to 10000 numbers"),
    "a size of two numbers": ("evaluate.py -saved_model saved_model/reverse_tiny.pt -sizes 5x5", "reverse is seq_len"),
    "uneven where nothing is": ("train.py -config ngram -uneven 0.5", "-uneven: the task ngram has no uneven"),
    "dirt without a memory": ("train.py -config l1d1 -dirty 0.5", "-dirty: would do nothing, since l1d1 has no memory"),
    "cells without an LSTM": ("train.py -config f1d1 -cell_dropout 0.2", "-cell_dropout: would do nothing, since f1d1"),
    "a beginning that is not there": ("train.py -config m2d2 -init missing.pt", "missing.pt"),
    "a beginning of other sizes": ("train.py -config m2d2 -init saved_model/reverse_tiny.pt", "is of another machine"),
    "a bias of weights that are there": (
        "train.py -init saved_model/reverse_tiny.pt -gate_bias -1",
        "-gate_bias: would do",
    ),
    "a name and a file": ("train.py -config m1d1 -task_json tiny.json", "give one of them"),
    "a task of the paper without -paper": ("reproduce.py -configs copy", "-configs copy: choose from m1d1"),
    "a name of reverse with -paper": ("reproduce.py -paper -configs m1d1", "-configs m1d1: choose from copy"),
    "sizes of a page": ("evaluate.py -page -sizes 5", "-sizes goes with the table"),
    "a number of moving pictures": ("evaluate.py -animate -num_sequences 9", "-num_sequences goes with the table"),
    "variants of no ablation": ("reproduce.py -variants clipping", "-variants goes with -ablations"),
    "neither yes nor no": ("train.py -full_tape maybe", "'maybe' is neither yes nor no"),
    "a page of whatever ntm/ computes": ("evaluate.py -page -backend reference", "-page: has the equations once more"),
    "a seed of a page": ("evaluate.py -page -seed 5", "-seed is of the sequences that are drawn"),
    "dirt where none is": ("train.py -dirty 0 -dirt 3", "-dirt: would do nothing, since dirty is 0"),
    "a key twice": ("train.py -task_json twice.json", "key 'num_heads' is there twice"),
    "a name in capitals": ("train.py -config M1D1", "did you mean m1d1?"),
    "a word too many": ("train.py -config m1d1 extra", "unrecognized arguments: extra\n"),
    "a task of one's own as a name": (
        "evaluate.py -config lookup",
        "a model goes by its file to evaluate.py -saved_model",
    ),
    "a model that is not trained": ("evaluate.py -config l1d3", "train it with train.py"),
    "a place that cannot be": (
        "train.py -saved_model short.txt/x.pt",
        "short.txt/x.pt: cannot be written",
    ),
    "to ship one of nine": ("reproduce.py -ship -configs m1d1", "-ship goes with all nine"),
    "to ship with flags": ("reproduce.py -ship -flags '-lr 1'", "-ship goes with runs of the whole recipe"),
    "a beginning among the flags": ("reproduce.py -flags '-init x.pt'", "-flags: -init is not for a run of a table"),
    "a flag that an ablation sets": (
        "reproduce.py -ablations -variants 'blur cost' -flags '--blur_cost 0.2'",
        "-flags: -blur_cost is what -ablations leaves out",
    ),
    "a seed among the flags": ("reproduce.py -flags '-seed 3'", "-flags: -seed is not for a run of a table"),
    "two kinds of runs": ("reproduce.py -paper -beyond", "each in a call of its own"),
    "a configuration of the paper, misspelt": ("train.py -config repeatcopy", "did you mean repeat_copy?"),
    "seeds not numbers": ("reproduce.py -seeds 0-x", "'x' is not a whole number"),
    "bench of a baseline": ("bench.py -configs l1d1", "m1d1, m1d2"),
    "no rows": ("evaluate.py -memory_units 0", "-memory_units"),
}


class Attack:
    def __reduce__(self):
        return open, ("attacked", "w")


@pytest.fixture(scope="session")
def bad_files(repository, tiny):
    folder = repository.folder
    (folder / "unknown.json").write_text(json.dumps({**GOOD, "depth": 3}))
    (folder / "twice.json").write_text(json.dumps(GOOD).replace("{", '{"num_heads": 2, ', 1))
    (folder / "huge.json").write_text(json.dumps({**GOOD, "recipe": {"lr": 10**400}}))
    (folder / "impossible.json").write_text('{"batch_size": 0}')
    (folder / "text.pt").write_text("not a model\n")
    (folder / "pickle.pt").write_bytes(pickle.dumps(Attack()))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "empty.txt").write_text("\n \n")
    (folder / "two.txt").write_text("011\n012\n")
    (folder / "short.txt").write_text("011\n\n010\n01\n")
    whole = (folder / "saved_model" / "reverse_tiny.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": torch.zeros(3)}, folder / "foreign.pt")


@pytest.fixture(scope="session")
def refused(repository, bad_files):
    """What became of each wrong command, by case; none changes a file."""
    before = repository.files()
    done = {case: repository.start(*shlex.split(command)) for case, (command, _) in WRONG.items()}
    assert repository.files() == before
    assert not (repository.folder / "attacked").exists()
    return done


def test_sizes_are_numbers_ranges_and_products_of_them():
    assert sizes(0, 30)("20x1-3,5,4-5") == [(4,), (5,), (20, 1), (20, 2), (20, 3)]


@pytest.mark.xdist_group("wrong commands")
@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_line_and_code_2_and_changes_nothing(refused, case):
    done = refused[case]
    assert done.returncode == 2, done.stderr
    assert WRONG[case][1] in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_names_each_flag_with_its_default(repository, script):
    text = repository.run(script, "-h").stdout
    flags = set(re.findall(r"^  (-\w+)", text, re.MULTILINE))
    assert {"-config", "-saved_model", "-seed", "-device", "-backend", "-output"} <= flags
    assert repository.run(script, "--help").stdout == text
    if script == "train.py":
        assert {
            "-task_json",
            "-batch_size",
            "-num_iters",
            "-lr",
            "-optimizer",
            "-momentum",
            "-alpha",
            "-resume",
        } <= flags
        assert f"(default: {Recipe().lr})" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (">/dev/full", 2, "a file or standard output: No space left on device"),
        ("2>&-", 0, ""),
        ("| head -n 0", 141, ""),
        (">&-", 0, ""),
    ],
)
def test_an_output_that_is_full_or_closed(repository, tiny, end, code, said):
    flags = "-sizes 1,2-3 -num_sequences 2"
    command = f"set -o pipefail; {sys.executable} evaluate.py -saved_model saved_model/reverse_tiny.pt {flags} {end}"
    done = subprocess.run(["bash", "-c", command], cwd=repository.folder, capture_output=True, text=True)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "reproduce.py", "bench.py"])
def test_help_that_cannot_be_written_is_an_error(repository, script):
    command = f"{sys.executable} {script} -h > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=repository.folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "No space left on device" in done.stderr
