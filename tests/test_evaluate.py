"""evaluate.py, with experiment/plots.py, animation.py and bits.py, run in a copy of the repository."""

import contextlib
import dataclasses
import json
import re
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import evaluate
from experiment import plots
from experiment.bits import lays_out_as_it_draws
from experiment.checkpoint import load_model, weights_mark
from experiment.configuration import load_configuration
from experiment.errors import InputError
from experiment.scoring import draw_held_out, score, trace
from ntm import NTM
from tasks import TASKS, Batch
from tasks.reverse import Reverse
from tasks.vectors import VectorTask

FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); runpy.run_path(sys.argv[0], None, '__main__')"
SOME = ("m2d2", "m3d3", "f1d1")  # with m1d1, which sweeps train: each network and data set


@pytest.fixture(scope="session")
def evaluated(repository):
    """What each of them prints, trained and evaluated shortly."""

    def train_and_evaluate(name):
        repository.run("train.py", "-config", name, "-num_iters", 50)
        return repository.run("evaluate.py", "-config", name, "-num_sequences", 5, "-sizes", "1,3").stdout

    return {name: train_and_evaluate(name) for name in SOME}


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
    path, other = repository.folder / "log" / "tiny_scores.json", "in place of another"
    path.write_text("{}\n")
    out = repository.run("evaluate.py", "-saved_model", saved, "-num_sequences", 70, "-memory_units", 40).stdout
    assert f"table: {path}, {other}; pictures beside it\n" in out
    document = json.loads(path.read_text())
    assert document["weights"] == weights_mark(load_model(saved)[0].state_dict())
    lengths = [row["seq_len"] for row in document["scores"]]
    assert lengths == [1, 2, 4, 20, 30, 50, 75, 100, 120]
    assert all(row["sequences"] == 70 and row["memory_units"] == 40 for row in document["scores"])
    for picture in ("accuracy", "machine"):
        with Image.open(repository.folder / "log" / f"tiny_{picture}.png") as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    # a mistake is drawn with a mark below each wrong bit
    target, answer, marks = re.search(r"target ([01]+)  answer ([01]+)\n +([ ^]*)\n", out).groups()
    assert len(target) == 3
    assert target != answer
    assert marks.count("^") == sum(a != b for a, b in zip(target, answer, strict=True))


def test_pictures_say_on_what_memory_they_were_made(repository, tiny, tmp_path, monkeypatch):
    titles, save = {}, plots.save_figure

    def remember(figure, path):
        texts = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
        titles[path.stem.partition("_")[2]] = "\n".join(texts) + str([len(axes.lines) for axes in figure.axes])
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", remember)
    words = ["evaluate.py", "-saved_model", str(repository.folder / "saved_model" / "reverse_tiny.pt"), "-sizes", "1"]
    words += ["-num_sequences", "2", "-output", str(tmp_path), "-backend", "reference"]
    for more, accuracy, machine, memory in (
        ([], None, "with 16 rows of memory\n", "a dirty memory at first (1)"),
        (["-dirt", "3"], "a dirty memory (3)", "16 rows of memory, dirty at first (3)", "a dirty memory at first (3)"),
        (["-memory_units", "9"], "9 rows of memory", "with 9 rows of memory\n", "a dirty memory at first (1)"),
    ):
        monkeypatch.setattr("sys.argv", [*words, *more])
        evaluate.main()
        assert ("of memory" in titles["accuracy"] or "dirty" in titles["accuracy"]) == (accuracy is not None)
        assert accuracy is None or accuracy in titles["accuracy"]
        assert machine in titles["machine"]
        assert machine in titles["controls"]
        assert memory in titles["memory"]


def test_the_picture_of_a_machine_says_where_answers_are_and_draws_all_rows_in_order(monkeypatch, tmp_path):
    drawn, configuration = [], load_configuration("m1d2")
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    batch = configuration.task.sample(1, (3,), torch.Generator().manual_seed(0))
    for mask, said in (
        (batch.mask, "right of the orange line, the machine answers"),
        (1 - batch.mask, "before the first"),
    ):
        mask[-1] = 1
        shown = trace(configuration.make_model(), configuration.task, batch._replace(mask=mask))
        everywhere = np.full_like(shown.read_weighting, 0.1)
        plots.machine(shown._replace(read_weighting=everywhere), "title", tmp_path / "picture.png")
        assert said in drawn[-1].get_suptitle()
        rows = next(axes for axes in drawn[-1].axes if axes.get_title(loc="left").startswith("read weighting"))
        assert rows.get_ylabel() == "row (128 of 128)"
        assert [label.get_text() for label in rows.get_yticklabels()][::7] == ["0", "127"]


def test_machines_that_were_replaced_are_drawn_beside_the_test_that_they_took(repository, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        plots, "accuracy_by_size", lambda scores, data, path, beside={}, memory="": drawn.append(beside)
    )
    monkeypatch.setattr(evaluate, "draw_memory_pictures", lambda *given: None)
    for more, there in ([], True), (["-dirt", "3"], False), (["-memory_units", "24"], False):
        words = ["-config", "all", "-sizes", "1", "-num_sequences", "1", "-output", str(tmp_path), *more]
        monkeypatch.setattr("sys.argv", ["evaluate.py", *words])
        evaluate.main()
        assert bool(drawn[-1]) == there


def test_a_model_from_before_the_last_run_is_said_to_be(repository, tiny, tmp_path, monkeypatch, capsys):
    for name in "saved_model", "runs/tiny":
        (tmp_path / name).mkdir(parents=True)
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    old, unfinished = tmp_path / "saved_model" / "reverse_tiny.pt", tmp_path / "runs" / "tiny" / "checkpoint.pt"
    for there in (), (unfinished,):
        for path in old, *there:
            shutil.copy(saved, path)
        for path in old, *there:
            words = ["-saved_model", str(path), "-input", str(ROOT / "docs" / "bits.txt"), "-backend", "reference"]
            monkeypatch.setattr("sys.argv", ["evaluate.py", *words])
            with contextlib.suppress(InputError):  # of vectors of another width
                evaluate.main()
            said = f"{old} may be from before the last run of tiny; -saved_model {unfinished} is the run that is not"
            assert (said in capsys.readouterr().out) == (there != () and path == old)


@pytest.mark.parametrize(
    "words", [["-sizes", "1"], ["-page"], ["-animate"], ["-input", str(ROOT / "docs" / "bits.txt")]]
)
def test_a_model_under_another_ones_name_is_refused_by_that_name(words, tmp_path, monkeypatch):
    file = tmp_path / "saved_model" / "reverse_m1d1-2.pt"
    file.parent.mkdir()
    shutil.copy(ROOT / "saved_model" / "reverse_m3d2.pt", file)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "-config", "m1d1-2", "-output", str(tmp_path), *words])
    with pytest.raises(
        InputError, match=r"reverse_m1d1-2\.pt: is the model of m3d2, not of m1d1-2; -saved_model takes"
    ):
        evaluate.main()


def test_what_a_machine_draws_in_eval_mode_is_the_same_in_each_score(monkeypatch):
    configuration = load_configuration("m1d2")
    model, batches = configuration.make_model(), draw_held_out(configuration).tests["test"][:1]
    step = NTM.step_with_focus
    monkeypatch.setattr(
        NTM, "step_with_focus", lambda self, x, *rest: step(self, x + torch.randn_like(x), *rest), raising=True
    )
    before = torch.get_rng_state()
    first, second = (score(model, configuration.task, batches)[0] for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


@dataclass(frozen=True)
class Delay(Reverse):
    """Reverse, with a pause before the answer that `sample` alone has."""

    def sample(self, batch_size, size, generator, uneven=0.0):
        batch, cut = super().sample(batch_size, size, generator, uneven), size[0] + 2
        return Batch(*(torch.cat((part[:cut], torch.zeros(3, *part.shape[1:]), part[cut:])) for part in batch))


def test_ones_own_sequences_are_answered_only_where_they_are_laid_out_as_in_training(
    repository, tiny, monkeypatch, capsys
):
    for task in TASKS.values():
        if issubclass(task, VectorTask):
            assert all(lays_out_as_it_draws(task(3), (length,)) for length in (1, 5))
    path = repository.folder / "saved_model" / "reverse_tiny.pt"
    model, configuration = load_model(path)
    configuration = dataclasses.replace(configuration, data=dataclasses.replace(configuration.data, task=Delay(3)))
    monkeypatch.setattr(evaluate, "load", lambda *_: (model, configuration))
    words = ["-saved_model", str(path), "-input", str(ROOT / "docs" / "bits.txt")]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *words])
    with pytest.raises(InputError, match="-input: the task reverse has its own `sample`"):
        evaluate.main()


def test_evaluate_answers_ones_own_sequences(repository, tiny):
    saved = repository.folder / "saved_model" / "reverse_tiny.pt"
    (repository.folder / "bits.txt").write_text("\ufeff110\n0 0 1\n\n\n111")
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
    table, again, another, slow = (
        repository.run(*flags, *more).stdout.partition("table: ")[0]
        for more in ((), (), ("-seed", 1), ("-backend", "reference"))
    )
    assert again == table
    assert another != table
    assert [line.split()[:7] for line in slow.splitlines()] == [line.split()[:7] for line in table.splitlines()]


@pytest.mark.slow
def test_a_full_disk_leaves_tables_and_pictures_as_they_were(repository, tiny, tmp_path):
    flags = ("evaluate.py", "-saved_model", "saved_model/reverse_tiny.pt", "-num_sequences", 2, "-output", tmp_path)
    repository.run(*flags)
    before = {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    assert len(before) >= 6
    limited = (
        f"import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.argv.pop(0); {FULL}"
    )
    done = repository.run("-c", limited.format(5_000), *flags, "-seed", 7, code=2)
    assert re.search(r"error: .*tiny\w+\.\w+: cannot be written \(File too large\); what was there stays", done.stderr)
    assert {path.name for path in (tmp_path / "log").iterdir()} == before.keys()
    kept = [name for name, content in before.items() if (tmp_path / "log" / name).read_bytes() == content]
    assert len(kept) >= len(before) - 2  # tables are small
    for path in (tmp_path / "log").glob("*.png"):
        Image.open(path).load()
    json.loads((tmp_path / "log" / "tiny_scores.json").read_text())
