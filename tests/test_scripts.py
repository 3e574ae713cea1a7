"""train.py and evaluate.py, run for real in a copy of the repository."""

import csv
import json
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_configuration import GOOD

from experiment import plots
from experiment.checkpoint import load, load_model, save
from experiment.configuration import ROOT, Recipe
from experiment.errors import InputError
from experiment.page import page
from ntm import Backend

TAGS = {"loss", "cost", "bits", "exact"}


def curves(folder, name):
    """All points of a run's curves: by curve and tag, (step, value) in order."""
    points = {}
    for curve in ("train", "test", "test_longer"):
        events = EventAccumulator(str(folder / "runs" / name / curve)).Reload()
        for tag in events.Tags()["scalars"]:
            points[curve, tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return points


SOME = ("m1d1", "m2d2", "m3d3", "f1d1")  # each network and each data set


@pytest.fixture(scope="session")
def tiny(repository):
    """A small task file in the copy, and one finished run of it."""
    (repository.folder / "tiny.json").write_text(json.dumps(GOOD))
    flags = ("-task_json", "tiny.json", "-num_iters", 60, "-report_every", 20, "-batch_size", 4)
    done = repository.run("train.py", *flags)
    model = torch.load(repository.folder / "saved_model" / "reverse_tiny.pt", weights_only=True)["model"]
    return flags, done, model, curves(repository.folder, "tiny")


@pytest.fixture(scope="session")
def evaluated(repository):
    """Each configuration, trained and evaluated shortly, two at a time."""

    def train_and_evaluate(name):
        repository.run("train.py", "-config", name, "-num_iters", 50)
        return repository.run("evaluate.py", "-config", name, "-num_sequences", 5, "-sizes", "1,3").stdout

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SOME, pool.map(train_and_evaluate, SOME), strict=True))


@pytest.mark.xdist_group("evaluated")
@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_each_configuration_trains_saves_and_evaluates(repository, evaluated, name):
    saved = repository.folder / "saved_model" / f"reverse_{name}.pt"
    model, configuration = load_model(saved)
    assert not model.training
    assert configuration.name == name
    assert configuration.recipe.num_iters == 50
    assert re.search(r"^ +3 +128 +5 ", evaluated[name], re.MULTILINE)


@pytest.mark.slow
def test_a_baseline_trains_evaluates_and_has_no_memory_to_show(repository):
    fields = {key: value for key, value in GOOD.items() if not re.search("memory|controller|heads", key)}
    (repository.folder / "base.json").write_text(json.dumps({**fields, "hidden_size": 8, "num_layers": 2}))
    done = repository.run("train.py", "-task_json", "base.json", "-num_iters", 5, "-batch_size", 2)
    assert "the fused path knows the NTM, and no LSTMBaseline" in done.stdout
    saved = ("evaluate.py", "-saved_model", "saved_model/reverse_base.pt")
    table = repository.run(*saved, "-num_sequences", 5, "-sizes", "1,3").stdout
    assert re.search(r"^ +3 +- +5 ", table, re.MULTILINE)
    (repository.folder / "some_bits.txt").write_text("110\n")
    assert "no memory" in repository.run(*saved, "-input", "some_bits.txt").stdout
    for flags in (("-memory_units", 9), ("-dirt", 1), ("-page",), ("-animate",)):
        assert f"{flags[0]}: base is an LSTM alone" in repository.run(*saved, *flags, code=2).stderr


def test_a_run_leaves_its_log_curves_and_model_behind(repository, tiny):
    _, done, _, points = tiny
    assert "fused path on cpu" in done.stdout
    for curve in ("train", "test", "test_longer"):
        for tag in TAGS:
            assert [step for step, _ in points[curve, tag]] == [20, 40, 60]
    assert {"learning_rate", "gradient_norm", "sequences_per_second"} <= {t for c, t in points if c == "train"}
    events = EventAccumulator(str(repository.folder / "runs" / "tiny" / "test")).Reload()
    for tag in ("read_weighting", "write_weighting", "memory", "answer_above_target"):
        assert len(events.Images(tag)) == 3
        assert events.SummaryMetadata(tag).summary_description == plots.CAPTIONS[tag]
    log = (repository.folder / "log" / "tiny.log").read_text()
    for key in ("command: python train.py -task_json", "network", "recipe", "commit", "versions", "hardware"):
        assert f"# {key}" in log
    assert len(re.findall(r"^iteration ", log, re.MULTILINE)) == 3
    said = (
        r"(\d+) of \d+ held-out sequences of trained sizes are right \(.* wrong bits a sequence\): it has not learned"
    )
    assert re.search(said, log)
    assert re.search(said, done.stdout)
    for line in ("log: log/tiny.log", "curves: tensorboard --logdir runs", "-saved_model saved_model/reverse_tiny.pt"):
        assert line in done.stdout
    assert not list((repository.folder / "runs").rglob("checkpoint*"))
    assert not list((repository.folder / "saved_model").glob(".*"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_however_often_it_reports(repository, tiny):
    flags, _, model, _ = tiny
    other, saved = ("-output", "again", "-overwrite"), repository.folder / "again" / "saved_model" / "reverse_tiny.pt"
    repository.run("train.py", *flags, "-report_every", 7, *other)
    again = torch.load(saved, weights_only=True)["model"]
    assert all(torch.equal(model[name], again[name]) for name in model)
    repository.run("train.py", *flags, "-seed", 1, *other)
    different = torch.load(saved, weights_only=True)["model"]
    assert not torch.equal(model["output_proj.weight"], different["output_proj.weight"])


@pytest.mark.slow
def test_interrupted_and_resumed_ends_as_if_never_stopped(repository, tiny):
    flags, _, _, _ = tiny
    flags = (*flags[:2], "-num_iters", 3000, "-report_every", 250, "-batch_size", 4, "-output", "stopped", "-overwrite")
    folder = repository.folder / "stopped"
    one, other = folder / "saved_model" / "one.pt", folder / "saved_model" / "other.pt"
    repository.run("train.py", *flags, "-saved_model", one)
    whole = curves(folder, "tiny")
    log = folder / "log" / "tiny.log"
    whole_log = [re.sub(r" +\S+ s  ", " ", line) for line in log.read_text().splitlines() if line.startswith("iter")]

    log.unlink()
    command = [sys.executable, "train.py", *map(str, flags), "-saved_model", str(other)]
    process = subprocess.Popen(
        command, cwd=repository.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and (not log.exists() or "iteration    500" not in log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = int(re.search(r"stopped at iteration (\d+); to go on: python train.py .* -resume", out)[1])
    assert 500 <= stopped < 3000
    assert not other.exists()
    assert (folder / "runs" / "tiny" / "checkpoint.pt").exists()

    wrong = repository.run("train.py", *flags, "-lr", 0.5, "-resume", code=2).stderr
    assert "other flags" in wrong
    path = folder / "runs" / "tiny" / "checkpoint.pt"
    good, older = path.read_bytes(), load(path)
    older["optimizer"]["param_groups"][0]["params"] = [0, 1]  # which had a tensor for each weight
    save(path, older)
    assert "older train.py" in repository.run("train.py", *flags, "-resume", code=2).stderr
    path.write_bytes(good)
    repository.run("train.py", *flags, "-saved_model", other, "-resume")
    a, b = (torch.load(path, weights_only=True)["model"] for path in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    resumed = curves(folder, "tiny")
    for key in whole:
        if key[1] != "sequences_per_second":
            assert resumed[key] == whole[key]
    log_lines = [re.sub(r" +\S+ s  ", " ", line) for line in log.read_text().splitlines() if line.startswith("iter")]
    assert log_lines == whole_log
    assert "no " in repository.run("train.py", *flags, "-resume", code=2).stderr


@pytest.mark.slow
def test_both_paths_train_alike(repository, tiny):
    flags, _, model, _ = tiny
    done = repository.run("train.py", *flags, "-backend", "reference", "-output", "slow")
    assert "reference path on cpu" in done.stdout
    slow = torch.load(repository.folder / "slow" / "saved_model" / "reverse_tiny.pt", weights_only=True)["model"]
    for name in model:
        torch.testing.assert_close(model[name], slow[name], rtol=0.05, atol=2e-3)


@pytest.mark.slow
def test_the_papers_own_setting_learns(repository):
    flags = ("-recipe", "paper", "-num_iters", 600, "-report_every", 100)
    repository.run("train.py", "-config", "m1d2", *flags, "-saved_model", "elsewhere/paper.pt", "-overwrite")
    losses = [value for _, value in curves(repository.folder, "m1d2")["train", "loss"]]
    assert losses[-1] < losses[0] - 0.005
    _, configuration = load_model(repository.folder / "elsewhere" / "paper.pt")
    assert configuration.recipe.optimizer == "rmsprop"
    assert configuration.recipe.clip_value == 10
    assert configuration.recipe.num_iters == 600  # a flag overrides the file


def test_the_page_in_docs_holds_the_shipped_model():
    shipped = load_model(ROOT / "saved_model" / "reverse_m1d2.pt")
    assert (ROOT / "docs" / "index.html").read_text(encoding="utf-8") == page(*shipped)


@pytest.mark.slow
def test_evaluate_writes_moving_pictures_and_the_page(repository, tiny):
    saved, log = repository.folder / "saved_model" / "reverse_tiny.pt", repository.folder / "log"
    out = repository.run("evaluate.py", "-saved_model", saved, "-animate", "-page").stdout.split()
    assert out == [str(log / name) for name in ("tiny_steps.gif", "tiny_training.gif", "tiny.html")]
    for name, frames in (("tiny_steps.gif", 2 * 4 + 2), ("tiny_training.gif", 3)):
        with Image.open(log / name) as image:
            assert image.n_frames == frames
            assert (log / name).stat().st_size < 2_000_000
            shown = set()
            for frame in range(frames):
                image.seek(frame)
                shown.add(image.convert("RGB").tobytes())
            assert len(shown) == frames  # no frame like another
    html = (log / "tiny.html").read_text()
    assert "/*SPEC*/" not in html
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://", html)  # it needs no network
    elsewhere = repository.run("evaluate.py", "-saved_model", saved, "-animate", "-output", "elsewhere").stdout.split()
    assert len(elsewhere) == 2  # of the run that made the model, wherever its pictures go
    for name in ("tiny_steps.gif", "tiny_training.gif"):
        assert (repository.folder / "elsewhere" / "log" / name).read_bytes() == (log / name).read_bytes()
    alone = repository.folder / "sent" / "saved_model" / "tiny.pt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(saved.read_bytes())
    said = repository.run("evaluate.py", "-saved_model", alone, "-animate", "-output", "elsewhere").stdout
    assert "no film of the training: its curves are not in " in said


def test_evaluate_writes_its_table_and_pictures(repository, tiny):
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    out = repository.run("evaluate.py", "-saved_model", saved, "-num_sequences", 70, "-memory_units", 40).stdout
    document = json.loads((repository.folder / "log" / "tiny_scores.json").read_text())
    lengths = [row["seq_len"] for row in document["scores"]]
    assert lengths == [1, 2, 4, 20, 30, 50, 75, 100, 120]
    assert all(row["sequences"] == 70 and row["memory_units"] == 40 for row in document["scores"])
    with open(repository.folder / "log" / "tiny_scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["bits"]) for row in rows] == [row["bits"] for row in document["scores"]]
    for picture in ("accuracy", "machine"):
        with Image.open(repository.folder / "log" / f"tiny_{picture}.png") as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    # a mistake is drawn with a mark below each wrong bit
    target, answer, marks = re.search(r"target ([01]+)  answer ([01]+)\n +([ ^]*)\n", out).groups()
    assert len(target) == 3
    assert target != answer
    assert marks.count("^") == sum(a != b for a, b in zip(target, answer, strict=True))


def test_evaluate_answers_ones_own_sequences(repository, tiny):
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    (repository.folder / "bits.txt").write_text("110\n0 0 1\n\n\n111")
    out = repository.run("evaluate.py", "-saved_model", saved, "-input", "bits.txt").stdout
    model, configuration = load_model(saved)
    for number, bits in ((1, [[1, 1, 0], [0, 0, 1]]), (2, [[1, 1, 1]])):
        batch = configuration.task.batch(torch.tensor(bits, dtype=torch.float32).unsqueeze(1))
        logits, _ = model(batch.inputs)
        said = re.search(rf"sequence {number}: .*\n((?:  .*\n?)+)", out)[1].splitlines()
        assert len(said) == len(bits)
        for line, answer, meant in zip(said, logits[-len(bits) :, 0] > 0, bits[::-1], strict=True):
            answer = "".join(str(int(bit)) for bit in answer)
            meant = "".join(map(str, meant))
            assert line == f"  {answer}" + (f"  wrong: {meant} was meant" if answer != meant else "")


@pytest.mark.slow
def test_evaluate_gives_the_same_table_on_either_path_and_again(repository, tiny):
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    flags = ("evaluate.py", "-saved_model", saved, "-num_sequences", 30, "-sizes", "1,4")
    table = repository.run(*flags).stdout
    assert repository.run(*flags).stdout == table
    assert repository.run(*flags, "-seed", 1).stdout != table
    slow = repository.run(*flags, "-backend", "reference").stdout
    assert [line.split()[:7] for line in slow.splitlines()] == [line.split()[:7] for line in table.splitlines()]


WRONG = {
    "unknown network": ("train.py -config m4d1", "m1d1, m1d2"),
    "half a name": ("train.py -config m1", "m1d1, m1d2"),
    "missing file": ("train.py -task_json missing.json", "missing.json"),
    "unknown key": ("train.py -task_json unknown.json", "'depth'"),
    "batch of none": ("train.py -batch_size 0", "-batch_size"),
    "no iterations": ("train.py -num_iters 0", "-num_iters"),
    "text for a number": ("train.py -lr fast", "'fast' is not a number above 0"),
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
    "length of none": ("evaluate.py -sizes 0,5", "-sizes"),
    "lengths not numbers": ("evaluate.py -sizes 1,x", "-sizes"),
    "a near miss": ("train.py -dirtt 1", "did you mean -dirt?"),
    "a range upside down": ("evaluate.py -sizes 10-5", "'10-5' is not a range"),
    "a range without end": ("evaluate.py -sizes 1-999999", "is not a range of 1 to 10000 numbers"),
    "a size of two numbers": ("evaluate.py -saved_model saved_model/reverse_tiny.pt -sizes 5x5", "reverse is seq_len"),
    "uneven where nothing is": ("train.py -config ngram -uneven 0.5", "-uneven: the task ngram has no uneven"),
    "dirt without a memory": ("train.py -config l1d1 -dirty 0.5", "-dirty: would do nothing, since l1d1 has no memory"),
    "cells without an LSTM": ("train.py -config f1d1 -cell_dropout 0.2", "-cell_dropout: would do nothing, since f1d1"),
    "a beginning that is not there": ("train.py -config m2d2 -init missing.pt", "missing.pt"),
    "a beginning of other sizes": ("train.py -config m2d2 -init saved_model/reverse_tiny.pt", "is of another machine"),
    "a name and a file": ("train.py -config m1d1 -task_json tiny.json", "give one of them"),
    "a task of the paper without -paper": ("reproduce.py -configs copy", "-configs copy: choose from m1d1"),
    "a name of reverse with -paper": ("reproduce.py -paper -configs m1d1", "-configs m1d1: choose from copy"),
    "sizes of a page": ("evaluate.py -page -sizes 5", "-sizes goes with the table"),
    "a number of moving pictures": ("evaluate.py -animate -num_sequences 9", "-num_sequences goes with the table"),
    "variants of no ablation": ("reproduce.py -variants clipping", "-variants goes with -ablations"),
    "neither yes nor no": ("train.py -full_tape maybe", "'maybe' is neither yes nor no"),
    "a seed of a page": ("evaluate.py -page -seed 5", "-seed is of the sequences that are drawn"),
    "dirt where none is": ("train.py -dirty 0 -dirt 3", "-dirt: would do nothing, since dirty is 0"),
    "a key twice": ("train.py -task_json twice.json", "key 'num_heads' is there twice"),
    "a name in capitals": ("train.py -config M1D1", "did you mean m1d1?"),
    "a word too many": ("train.py -config m1d1 extra", "unrecognized arguments: extra\n"),
    "a task of one's own as a name": ("evaluate.py -config lookup", "goes by its file: -saved_model, -task_json"),
    "a model that is not trained": ("evaluate.py -config l1d3", "train it with train.py"),
    "a place that cannot be": (
        "train.py -saved_model short.txt/x.pt",
        "short.txt/x.pt: cannot be written",
    ),
    "to ship one of nine": ("reproduce.py -ship -configs m1d1", "-ship goes with all nine"),
    "to ship with flags": ("reproduce.py -ship -flags '-lr 1'", "-ship goes with runs of the whole recipe"),
    "a seed among the flags": ("reproduce.py -flags '-seed 3'", "-flags: -seed is set by reproduce.py"),
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


FORKED = """
import json, os, sys
sys.path.insert(0, os.getcwd())
import bench, evaluate, reproduce, train
from experiment.errors import run_script
scripts = {"bench.py": bench, "evaluate.py": evaluate, "reproduce.py": reproduce, "train.py": train}
results = []
for i, words in enumerate(json.load(sys.stdin)):
    said = [open(f"{sys.argv[1]}/{i}.{name}", "wb+") for name in ("out", "err")]
    child = os.fork()
    if not child:
        sys.argv = words
        for stream, file in zip((1, 2), said):
            os.dup2(file.fileno(), stream)
        run_script(scripts[words[0]].main)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    results.append((code, *(open(file.name).read() for file in said)))
print(json.dumps(results))
"""


@pytest.fixture(scope="session")
def refused(repository, bad_files, tmp_path_factory):
    """What became of each wrong command, each in a fork of a process that has loaded the scripts; none changes a file.

    Returns:
        By case, its exit code, standard output and standard error.
    """
    before, said = repository.files(), tmp_path_factory.mktemp("said")
    words = json.dumps([shlex.split(command) for command, _ in WRONG.values()])
    command = [sys.executable, "-c", FORKED, said]
    done = subprocess.run(command, cwd=repository.folder, input=words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert repository.files() == before
    assert not (repository.folder / "attacked").exists()
    return dict(zip(WRONG, json.loads(done.stdout), strict=True))


@pytest.mark.xdist_group("wrong commands")
@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_line_and_code_2_and_changes_nothing(refused, case):
    code, out, err = refused[case]
    assert code == 2, err
    assert WRONG[case][1] in err
    assert err.count("\n") == 1
    assert out == ""


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


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model.pt"
    save(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save(path, {"a": lambda: 0})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_do_not_fit_are_refused(repository, tiny, tmp_path):
    contents = torch.load(repository.folder / "saved_model" / "reverse_tiny.pt", weights_only=True)
    contents["configuration"]["network"]["controller_size"] = 9
    torch.save(contents, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="do not fit"):
        load_model(tmp_path / "odd.pt")
    torch.save({**contents, "format": 99}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="format"):
        load_model(tmp_path / "odd.pt")
    assert load_model(repository.folder / "saved_model" / "reverse_tiny.pt", backend=Backend.REFERENCE)


@pytest.mark.slow
def test_reproduce_trains_scores_and_says_the_same_again(repository):
    flags = ("reproduce.py", "-configs", "m1d2", "-seeds", 3, "-flags", "-num_iters 20", "-table", "log/table.json")
    repository.run(*flags, "-num_sequences", 3)
    flags += "-num_sequences", 20  # other than the first ones: the model is scored again
    first = repository.run(*flags).stdout
    assert re.search(r"^\| m1d2 \| 0/1 \|", first, re.MULTILINE)
    assert "0 of 1 runs without any wrong sequence on a blank memory" in first
    (result,) = json.loads((repository.folder / "log" / "table.json").read_text())
    assert result["seed"] == 3
    assert result["wrong_sequences"]["120"] == 20 == result["wrong_sequences"]["120 dirty"]
    assert repository.run(*flags).stdout == first


@pytest.mark.slow
def test_a_second_run_gets_a_name_of_its_own_and_nothing_is_replaced_unasked(repository, tiny):
    flags, out = (*tiny[0][:2], "-num_iters", 3, "-batch_size", 2), repository.folder / "own"

    def train(*more, code=0):
        return repository.run("train.py", *flags, "-output", "own", *more, code=code)

    def files():
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}

    assert "already" not in train().stdout
    first = files()
    second = train("-seed", 1)
    assert "there is a run tiny already: this one is tiny-2" in second.stdout
    assert "saved_model/reverse_tiny-2.pt" in second.stdout
    assert first.items() <= files().items()
    assert {path.name for path in (out / "runs").iterdir()} == {"tiny", "tiny-2"}
    assert load_model(out / "saved_model" / "reverse_tiny-2.pt")[1].recipe.seed == 1
    train("-seed", 2)
    assert load_model(out / "saved_model" / "reverse_tiny-3.pt")[1].name == "tiny-3"
    before = files()
    train("-seed", 3, "-overwrite")
    after = files()
    assert load_model(out / "saved_model" / "reverse_tiny.pt")[1].recipe.seed == 3
    assert {path for path in before if before[path] != after.get(path)} <= set(first)
    error = train("-saved_model", out / "saved_model" / "reverse_tiny-2.pt", code=2).stderr
    assert "reverse_tiny-2.pt: is there already; -overwrite replaces it" in error
    assert "is a folder" in train("-saved_model", out, code=2).stderr
    assert files() == after


@pytest.mark.slow
def test_a_run_may_begin_with_the_weights_of_another(repository, tiny, tmp_path):
    flags, _, _, _ = tiny
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    where = ("-output", tmp_path, "-num_iters", 1, "-lr", 1e-12, "-threads", 1)
    repository.run("train.py", *flags, *where, "-init", saved)
    before, after = (load_model(path)[0].state_dict() for path in (saved, tmp_path / "saved_model" / "reverse_tiny.pt"))
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert "-init" in (tmp_path / "log" / "tiny.log").read_text()


@pytest.mark.slow
def test_the_last_interrupted_run_is_the_one_that_goes_on(repository, tiny):
    flags, out = (*tiny[0][:2], "-num_iters", 50, "-batch_size", 2, "-output", "halves"), repository.folder / "halves"
    repository.run("train.py", *flags)
    (out / "runs" / "tiny-2").mkdir()
    command = [sys.executable, "train.py", *map(str, flags), "-checkpoint_every", "1"]
    command[command.index("50")] = "100000"
    process = subprocess.Popen(command, cwd=repository.folder, stdout=subprocess.PIPE, text=True)
    checkpoint = out / "runs" / "tiny-2" / "checkpoint.pt"
    while process.poll() is None and not (checkpoint.exists() and load(checkpoint)["step"] > 0):
        time.sleep(0.01)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    done = repository.run("train.py", *command[2:], "-resume", "-num_iters", 99_999, code=2)
    assert (
        "runs/tiny-2/checkpoint.pt is of a run with other flags: num_iters was 100000 and is 99999 now" in done.stderr
    )
    assert "tiny-2" in said
    assert not (out / "runs" / "tiny" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_the_commands_of_the_readme_leave_a_clone_as_it_was(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    readable = ["-backend", "reference"]
    for command in (
        ["train.py", "-config", "m1d2", "-num_iters", "1", *readable],
        ["evaluate.py", "-config", "m1d2", "-num_sequences", "1", "-sizes", "1,2", *readable],
        ["evaluate.py", "-config", "m1d2-2", "-num_sequences", "2", "-sizes", "1", *readable],
        ["evaluate.py", "-config", "m1d2", "-page"],
        ["evaluate.py", "-config", "m1d2", "-animate", *readable],
        ["evaluate.py", "-config", "m1d2", "-input", "docs/bits.txt", *readable],
    ):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path / "clone", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path / "clone", capture_output=True, text=True)
    assert status.stdout == status.stderr == ""
    scores = (tmp_path / "clone" / "log" / "m1d2_scores.json").read_text()
    assert "NaN" not in scores
    assert '"bits_interval": null' in scores  # of a single sequence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (">/dev/full", 2, "standard output: No space left on device"),
        ("2>&-", 0, ""),
        ("| head -n 1", 0, ""),
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
