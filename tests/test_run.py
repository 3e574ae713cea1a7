"""experiment/run.py: where a run's model goes, and what is said of it at the end."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from experiment.checkpoint import load, load_model, save
from experiment.configuration import load_configuration
from experiment.run import TrainState, _run_to_resume, is_same_init, model_there, verdict
from experiment.scoring import summarise
from experiment.training import Clipper, make_optimizer

BACKEND = ("-backend", "reference")  # which starts sooner


def scored(wrong: int, of: int, cost: float = 0.0):
    return summarise([0.0], [cost], [torch.tensor([3.0] * wrong + [0.0] * (of - wrong))])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (0, "1000 of 1000 held-out sequences of trained sizes are right"),
        (
            1,
            "999 of 1000 .* are right \\(0.003 wrong bits a sequence\\): it has nearly learned; more -num_iters may do",
        ),
        (50, "950 of 1000 .* \\(0.15 wrong bits a sequence\\): it has nearly learned; more -num_iters may do"),
        (51, "949 of 1000 .* a sequence\\): it has not learned; try another -seed, or more -num_iters"),
        (1000, "0 of 1000 .* \\(3 wrong bits a sequence\\): it has not learned; try another -seed.*"),
    ],
)
def test_a_run_says_whether_it_has_learned(wrong, said):
    assert re.fullmatch(said, verdict(scored(wrong, 1000)))


@pytest.mark.parametrize(("cost", "learned"), [(100.0, True), (104.9, True), (105.1, False)])
def test_where_the_optimum_is_wrong_at_times_a_run_is_measured_by_it(cost, learned):
    said = verdict(scored(7, 10, cost), 100.0)
    assert said.startswith(f"{cost:.2f} bits for a held-out sequence, {cost / 100 - 1:.2%} above the optimal predictor")
    assert said.endswith("above the optimal predictor") == learned
    assert ("it has not learned" in said) != learned


def test_a_run_is_resumed_by_what_it_began_with(tmp_path, monkeypatch, capsys):
    """Of interrupted runs with the same flags, the one with the same -init, however it is written, or moved since."""
    configuration = load_configuration("m1d1")
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_text("there")
    a, b = (str(tmp_path / name) for name in ("a.pt", "b.pt"))
    for name, init in (("m1d1", None), ("m1d1-2", a), ("m1d1-3", b)):
        named = dataclasses.replace(configuration, name=name)
        save(tmp_path / name / "checkpoint.pt", {"configuration": named.as_dict(), "model": {}, "init": init})
    names = ["m1d1", "m1d1-2", "m1d1-3"]
    monkeypatch.chdir(tmp_path)
    for name, init in (("m1d1", None), ("m1d1-2", Path("a.pt")), ("m1d1-2", Path(a)), ("m1d1-3", Path("b.pt"))):
        assert _run_to_resume(configuration, tmp_path, names, init) == name
    (tmp_path / "m1d1-3" / "checkpoint.pt").write_bytes(b"damaged")  # the last; another is meant
    assert _run_to_resume(configuration, tmp_path, names, Path(a)) == "m1d1-2"
    assert "passed over: " in (said := capsys.readouterr().err)
    assert said.count("m1d1-3") == said.count("\n") == 1
    other = dataclasses.replace(configuration, recipe=dataclasses.replace(configuration.recipe, seed=5))
    assert _run_to_resume(other, tmp_path, names, None) == "m1d1-2"  # the last that can be read
    assert not is_same_init(a, tmp_path / "elsewhere" / "a.pt")
    Path(a).unlink()
    assert is_same_init(a, tmp_path / "elsewhere" / "a.pt")
    assert not is_same_init(a, Path(b))


def test_an_edit_of_the_optimizer_is_at_work_in_a_resumed_run(tmp_path):
    configuration = load_configuration("m1d2")

    def state(decay):
        model = configuration.make_model()
        optimizer = make_optimizer(configuration.recipe, model.flatten_parameters(), fused=False)
        optimizer.param_groups[0]["weight_decay"] = decay
        return TrainState(configuration, model, optimizer, Clipper(configuration.recipe), tmp_path / "checkpoint.pt")

    before = state(0.0)
    before.optimizer.step()
    before.save({})
    after = state(0.3)
    after.load(load(tmp_path / "checkpoint.pt"))
    assert after.optimizer.param_groups[0]["weight_decay"] == 0.3
    (moments,) = after.optimizer.state.values()
    assert moments["step"] == 1


@pytest.mark.parametrize("older", [False, True])
def test_what_a_run_sets_on_its_optimizer_goes_on_in_a_resumed_run(older, tmp_path):
    configuration, path = load_configuration("m1d2"), tmp_path / "checkpoint.pt"

    def state():
        model = configuration.make_model()
        optimizer = make_optimizer(configuration.recipe, model.flatten_parameters(), fused=False)
        return TrainState(configuration, model, optimizer, Clipper(configuration.recipe), path)

    run, group = state(), {"weight_decay": 0.25, "betas": (0.5, 0.6), "averaged": 7}
    made = run.optimizer.param_groups[0] | group
    run.optimizer.param_groups[0] |= {"lr": 0.5, **group}
    for _ in range(2):  # a resumed run may be resumed again
        run.optimizer.step()
        run.save({})
        if older:
            save(path, {key: value for key, value in load(path).items() if key != "made"})
        run = state()
        first = dict(run.optimizer.param_groups[0])
        run.load(load(path))
    now = run.optimizer.param_groups[0]
    assert now["averaged"] == 7
    assert now["lr"] == configuration.recipe.lr
    for name in "weight_decay", "betas":
        assert now[name] == (first if older else made)[name]


def test_a_model_that_came_there_since_the_run_began_is_left_alone(tmp_path, capsys):
    path, configuration = tmp_path / "model.pt", load_configuration("m1d1")

    def free_path(replaces):
        return TrainState(configuration, None, None, None, tmp_path, replaces).free_path(path)

    assert free_path(None) == path
    path.write_text("another's")
    before = model_there(path)
    assert free_path(before) == path  # as with -overwrite: it was there when the run began
    assert free_path(None) == tmp_path / "model-2.pt"
    assert free_path(before - 1) == tmp_path / "model-2.pt"
    assert (
        "model.pt: another model has come there since this run began; this one is model-2.pt" in capsys.readouterr().out
    )
    (tmp_path / "model-2.pt").write_text("a third's")
    assert free_path(None) == tmp_path / "model-3.pt"


@pytest.mark.slow
def test_a_resumed_run_replaces_no_model_that_came_there_meanwhile(repository, tiny):
    flags, out = (*tiny[0][:2], "-batch_size", 2, *BACKEND, "-output", "meanwhile"), repository.folder / "meanwhile"
    saved, checkpoint = out / "saved_model" / "reverse_tiny.pt", out / "runs" / "tiny" / "checkpoint.pt"
    repository.run("train.py", *flags, "-num_iters", 2)
    finished = saved.read_bytes()
    checkpoint.write_bytes(finished)
    error = repository.run("train.py", *flags, "-num_iters", 2, "-resume", code=2).stderr
    assert "checkpoint.pt is a finished model, and no checkpoint" in error
    state = load(saved)
    model, configuration = load_model(saved)
    optimizer = make_optimizer(configuration.recipe, model.flatten_parameters(), fused=False)
    stopped = TrainState(configuration, model, optimizer, Clipper(configuration.recipe), checkpoint)
    stopped.step = 1
    stopped.save(load_sizes(out))
    done = repository.run("train.py", *flags, "-num_iters", 2, "-resume")
    assert "this one is reverse_tiny-2.pt" in done.stdout
    assert saved.read_bytes() == finished
    assert load(saved.with_stem("reverse_tiny-2"))["configuration"] == state["configuration"]


def load_sizes(out):
    events = (out / "runs" / "tiny").rglob("events*")
    sizes = {f"{path.parent.name}/{path.name}": path.stat().st_size for path in events}
    return sizes | {"log": (out / "log" / "tiny.log").stat().st_size}
