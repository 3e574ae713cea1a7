"""train.py, with experiment/run.py, runlog.py and options.py, run for real in a copy of the repository."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import GOOD, curves
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment import plots
from experiment.checkpoint import load, load_model, save

BACKEND = ("-backend", "reference")  # which starts sooner
TAGS = {"loss", "cost", "bits", "exact"}


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


CHANGED = """
import sys, train
make = train.make_optimizer
def hooked(recipe, weights, fused):
    model.output_proj.weight.register_hook(lambda gradient: 0.1 * gradient)
    return make(recipe, weights, fused)
def started(made, *rest):
    global model
    model = made
    return start(made, *rest)
start, train.start_backend, train.make_optimizer = train.start_backend, started, hooked
sys.argv = ["train.py", "-task_json", "tiny.json", "-num_iters", "5", "-output", "changed_late"]
train.run_script(train.main)
"""


@pytest.mark.slow
def test_a_machine_that_is_changed_after_its_path_was_said_is_refused(repository, tiny):
    refused = repository.run("-c", CHANGED, code=2).stderr
    assert (
        "the machine was changed after it was looked at (the fused path computes the stock machine, and this" in refused
    )


SEEDING = """
import sys, torch, train
from tasks.reverse import Reverse
sample, cross_entropy, seeds = Reverse.sample, train.cross_entropy, []
def seeding(self, *rest):
    torch.manual_seed(0)
    return sample(self, *rest)
def after(*given):
    seeds.append(torch.initial_seed())
    return cross_entropy(*given)
Reverse.sample, train.cross_entropy = seeding, after
sys.argv = ["train.py", "-task_json", "tiny.json", "-num_iters", "5", "-output", "seeding", "-backend", "reference"]
train.main()
print("seeds", len(set(seeds)))
"""


@pytest.mark.slow
def test_a_task_that_seeds_torch_leaves_what_a_controller_draws_alone(repository, tiny):
    assert repository.run("-c", SEEDING).stdout.endswith("seeds 5\n")


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
    assert "compiling" not in repository.run("train.py", *flags[:4], *flags[6:], "-report_every", 7, *other).stdout
    again = torch.load(saved, weights_only=True)["model"]
    assert all(torch.equal(model[name], again[name]) for name in model)
    repository.run("train.py", *flags, "-seed", 1, *other)
    different = torch.load(saved, weights_only=True)["model"]
    assert not torch.equal(model["output_proj.weight"], different["output_proj.weight"])


@pytest.mark.slow
def test_interrupted_and_resumed_ends_as_if_never_stopped(repository, tiny):
    flags, _, _, _ = tiny
    flags = (*flags[:2], "-num_iters", 2000, "-report_every", 250, "-batch_size", 4, "-output", "stopped")
    folder = repository.folder / "stopped"
    one, other = folder / "saved_model" / "one.pt", folder / "saved_model" / "other.pt"
    repository.run("train.py", *flags, "-saved_model", one)
    whole = curves(folder, "tiny")
    log = folder / "log" / "tiny.log"
    whole_log = [re.sub(r" +\S+ s  ", " ", line) for line in log.read_text().splitlines() if line.startswith("iter")]

    log.unlink()
    other.write_bytes(one.read_bytes())  # which this run replaces, once it has ended
    command = [sys.executable, "train.py", *map(str, flags), "-saved_model", str(other), "-overwrite"]
    process = subprocess.Popen(
        command, cwd=repository.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and (not log.exists() or "iteration    500" not in log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = int(re.search(r"stopped at iteration (\d+); to go on: python train.py .* -resume", out)[1])
    assert "-overwrite" not in out
    assert 500 <= stopped < 2000
    assert other.read_bytes() == one.read_bytes()
    assert (folder / "runs" / "tiny" / "checkpoint.pt").exists()

    wrong = repository.run("train.py", *flags, "-lr", 0.5, "-resume", code=2).stderr
    assert "other flags" in wrong
    path = folder / "runs" / "tiny" / "checkpoint.pt"
    before = path.read_bytes()
    repository.run("train.py", *flags, "-overwrite", "-device", "cuda", code=2)  # which cannot begin
    assert path.read_bytes() == before
    good, older = path.read_bytes(), load(path)
    older["optimizer"]["param_groups"][0]["params"] = [0, 1]  # which had a tensor for each weight
    save(path, older)
    assert "older train.py" in repository.run("train.py", *flags, "-resume", code=2).stderr
    path.write_bytes(good)
    done = repository.run("train.py", *flags, "-saved_model", other, "-resume").stdout
    assert "other.pt\n" in done  # and not other-2.pt
    test_it = shlex.split(re.search(r"^test it: python (.*)", done, re.M)[1])
    repository.run(*test_it, "-num_sequences", 2, "-sizes", 2)
    assert (folder / "log" / "tiny_scores.json").exists()
    assert re.search(rf"^# goes on after iteration {stopped}: python train.py .* -resume; ", log.read_text(), re.M)
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


@pytest.mark.slow
def test_a_second_run_gets_a_name_of_its_own_and_nothing_is_replaced_unasked(repository, tiny, tmp_path):
    flags, out = (*tiny[0][:2], "-num_iters", 3, "-batch_size", 2, *BACKEND), repository.folder / "own"

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
    there = out / "saved_model" / "reverse_tiny-2.pt"
    error = train("-saved_model", there, code=2).stderr
    assert "reverse_tiny-2.pt: is there already; name another file (-overwrite replaces it, and log" in error
    error = train("-saved_model", there, "-overwrite", code=2).stderr
    assert "reverse_tiny-2.pt: is the model of the run tiny-2; name another file" in error
    error = train("-saved_model", out / "other.pt", "-overwrite", code=2).stderr
    assert "would replace log and curves of the run tiny, and leave its model" in error
    (tmp_path / "tiny.json").write_text(json.dumps({**GOOD, "task": "copy"}))  # a run of the same name
    other = ("-task_json", tmp_path / "tiny.json", *flags[2:], "-output", "own", "-overwrite")
    error = repository.run("train.py", *other, code=2).stderr
    assert "leave its model, own/saved_model/reverse_tiny.pt" in error
    assert "is a folder" in train("-saved_model", out, code=2).stderr
    assert files() == after
    saved = out / "saved_model" / "reverse_tiny.pt"
    saved.rename(tmp_path / "aside.pt")
    (out / "log" / "tiny_machine.png").touch()
    (out / "log" / "tiny_a_machine.png").touch()  # of a run tiny_a
    replaced = train("-seed", 4, "-overwrite", "-saved_model", tmp_path / "other.pt").stdout
    assert "beside it, from before, until evaluate.py makes them anew: tiny_machine.png\n" in replaced
    (tmp_path / "aside.pt").rename(saved)
    said = repository.run("evaluate.py", "-saved_model", saved, "-animate", "-output", tmp_path, *BACKEND).stdout
    assert "runs/tiny made another model" in said
    log = out / "log" / "tiny.log"
    log.write_text(log.read_text()[: log.read_text().index("finished after")])  # as of a run that has not ended
    said = repository.run("evaluate.py", "-saved_model", saved, "-animate", "-output", tmp_path, *BACKEND).stdout
    assert "or has not ended" in said
    assert not (tmp_path / "log" / "tiny_training.gif").exists()
    saved.unlink()
    saved.mkdir()
    assert "reverse_tiny.pt: is a folder" in train("-overwrite", code=2).stderr
    for name in "a.json", "copy_a.json":  # whose models go by the same name
        (repository.folder / name).write_text(json.dumps(GOOD | {"task": "copy"}))
    repository.run("train.py", "-task_json", "a.json", *flags[2:], "-output", "own")
    flags = "-task_json", "copy_a.json", *flags[2:]
    error = train("-overwrite", code=2).stderr
    assert "copy_a.pt: is the model of the run a; name another file by -saved_model" in error


@pytest.mark.slow
def test_a_run_may_begin_with_the_weights_of_another(repository, tiny, tmp_path):
    flags, _, _, _ = tiny
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    where = ("-output", tmp_path, "-num_iters", 1, "-lr", 1e-12, "-threads", 1)
    repository.run("train.py", *flags[:2], *flags[4:], *where, "-init", saved)
    before, after = (load_model(path)[0].state_dict() for path in (saved, tmp_path / "saved_model" / "reverse_tiny.pt"))
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert "-init" in (tmp_path / "log" / "tiny.log").read_text()


@pytest.mark.slow
def test_the_last_interrupted_run_is_the_one_that_goes_on(repository, tiny):
    out = repository.folder / "resume"  # a folder of that name is no flag
    flags = *tiny[0][:2], "-num_iters", 50, "-batch_size", 2, "-output", "resume"
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
    assert re.search(r"to go on: python .* -output resume .*-resume$", said, re.MULTILINE)
    command[command.index("100000")] = "99999"
    done = repository.run("train.py", *command[2:], "-resume", code=2)
    assert (
        "runs/tiny-2/checkpoint.pt is of a run with other flags: num_iters was 100000 and is 99999 now" in done.stderr
    )
    assert "tiny-2" in said
    assert not (out / "runs" / "tiny" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_path_that_is_no_text_is_a_path(repository, tiny):
    out = os.fsencode(repository.folder) + b"/a b \xff\xfe"
    words = ["train.py", *map(str, tiny[0][:2]), "-num_iters", "2", *BACKEND, "-output", os.fsdecode(out)]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, *words], cwd=repository.folder, capture_output=True, env=strict)
    assert done.returncode == 0, done.stderr
    assert b"\\udcff" in done.stdout
    assert b"a b" in Path(os.fsdecode(out), "log", "tiny.log").read_bytes()
    saved, few = os.fsdecode(out + b"/saved_model/reverse_tiny.pt"), ("-num_sequences", "1", "-sizes", "1")
    words = ["evaluate.py", "-saved_model", saved, *few, *BACKEND]
    done = subprocess.run([sys.executable, *words], cwd=repository.folder, capture_output=True, env=strict)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_that_was_spoiled_is_not_written(repository, tiny):
    flags = (*tiny[0][:2], "-num_iters", 40, "-weight_decay", 1e30, *BACKEND, "-output", "spoiled")
    error = repository.run("train.py", *flags, code=2).stderr
    assert "not finite" in error
    assert not (repository.folder / "spoiled" / "saved_model").exists()
