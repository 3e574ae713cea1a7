"""experiment/task_check.py: a mistake in a task of one's own is named before a run."""

import dataclasses
import json
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from experiment.configuration import CONFIGS, PAPER, load_configuration, network_and_data
from experiment.errors import InputError
from experiment.json_file import read_json
from experiment.options import parse_options
from experiment.scoring import generator, sample_sizes
from experiment.task_check import check_task, shown_size
from experiment.training import draw_iteration
from tasks import TASKS, Batch, Task
from tasks.copy import Copy

KEPT = {}


class Broken(Copy):
    """Copy with one mistake."""

    def change(self, batch):
        return batch

    def sample(self, *arguments):
        return self.change(super().sample(*arguments))


MISTAKES = {
    "batch first": (
        lambda b: Batch(*(part.transpose(0, 1) for part in b)),
        r"inputs must be \(T, B, 10\), of T steps of",
    ),
    "too narrow": (lambda b: b._replace(inputs=b.inputs[..., :9]), r"inputs must be \(T, B, 10\)"),
    "float64": (lambda b: b._replace(inputs=b.inputs.double()), "inputs must be float32, not torch.float64"),
    "minus ones": (lambda b: b._replace(targets=2 * b.targets - 1), "targets must be 0 or 1"),
    "no mask": (lambda b: b._replace(mask=0 * b.mask), r"the mask, \(T, B\), is 0 at all steps"),
    "a tuple": (tuple, "sample must give a Batch, and gives a tuple"),
    "nothing": (lambda b: None, "sample must give a Batch, and gives a NoneType"),
    "always the same": (
        lambda b: Batch(torch.zeros_like(b.inputs), torch.zeros_like(b.targets), b.mask),
        "the same whatever its generator",
    ),
    "a gradient": (lambda b: b._replace(inputs=b.inputs.requires_grad_()), "inputs want a gradient"),
    "targets that are filled anew": (
        lambda b: b._replace(targets=KEPT.setdefault(b.targets.shape, torch.zeros_like(b.targets)).copy_(b.targets)),
        "a batch changes when the next one is drawn",
    ),
    "infinite": (lambda b: b._replace(inputs=b.inputs / 0), "inputs are not all finite"),
    "a single sequence": (
        lambda b: Batch(*(part[:, :1].expand_as(part) for part in b)),
        "size 20: sample gives the same for all sequences of a batch",
    ),
    "one sequence in another shape": (
        lambda b: b._replace(mask=b.mask.squeeze(1)),
        r"mask must be \(T, B\), of T steps of B = 1 sequences",
    ),
    "global randomness at one length": (
        lambda b: b._replace(targets=torch.randint(0, 2, b.targets.shape).float()) if len(b.mask) == 4 else b,
        "size 1: sample draws something from elsewhere",
    ),
    "global randomness": (lambda b: b._replace(targets=torch.randint(0, 2, b.targets.shape).float()), "from elsewhere"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_task_of_ones_own_is_named(monkeypatch, mistake):
    change, said = MISTAKES[mistake]
    configuration = load_configuration("copy")
    data = dataclasses.replace(configuration.data, task=Broken(8))
    configuration = dataclasses.replace(configuration, data=data)
    check_task(configuration)
    monkeypatch.setattr(Broken, "change", lambda self, batch: change(batch))
    with pytest.raises(InputError, match=said):
        check_task(configuration)


@pytest.mark.parametrize("marks", ["start", ("start", 1), ["start"], tuple("abcdefghijk")])
def test_marks_are_names_of_channels_of_the_input(marks, monkeypatch):
    monkeypatch.setattr(Copy, "marks", marks)
    monkeypatch.setattr(Copy, "input_size", 10)
    with pytest.raises(InputError, match=r"task copy, size 1: marks is .* a tuple"):
        check_task(load_configuration("copy"))


@pytest.mark.parametrize("length", [4, 20])
def test_a_curriculum_that_begins_where_training_ends_is_refused(length, tmp_path, monkeypatch):
    fields = read_json(CONFIGS / "copy.json") | dict.fromkeys(("min_seq_len", "max_seq_len"), length)
    (tmp_path / "one.json").write_text(json.dumps(fields))
    monkeypatch.setattr("sys.argv", ["train.py", "-task_json", str(tmp_path / "one.json"), "-curriculum", "0.5"])
    with pytest.raises(InputError, match=f"would do nothing, .*, and training is from {length} to {length}"):
        parse_options("")


def test_a_loss_of_a_tasks_own_and_no_rows_are_refused(monkeypatch):
    for name in (*PAPER, "m1d1"):
        check_task(load_configuration(name))
    monkeypatch.setattr(Copy, "rows_needed", lambda self, size: 0)
    with pytest.raises(InputError, match="task copy, size 1: rows_needed is 0"):
        check_task(load_configuration("copy"))
    monkeypatch.setattr(Copy, "loss", lambda self, logits, batch: logits.sum(), raising=False)
    with pytest.raises(InputError, match="task copy: has a loss of its own"):
        check_task(load_configuration("copy"))


def test_a_parameter_named_like_an_end_has_limits_of_its_own(monkeypatch):
    limits = {"min_gap": (0, 10), "gap": (5, 6)}
    kind = dataclasses.make_dataclass(
        "Mine", [("min_gap", int)], bases=(Copy,), frozen=True, namespace={"limits": limits}
    )
    monkeypatch.setattr(kind, "Size", NamedTuple("Size", [("gap", int)]))
    for name, value in {"first": kind.Size(5), "tested": ()}.items():
        monkeypatch.setattr(kind, name, value)
    monkeypatch.setitem(TASKS, "copy", kind)
    with pytest.raises(InputError, match="its parameter min_gap has the name of another key"):
        load_configuration("copy")
    monkeypatch.setattr(kind, "Size", NamedTuple("Size", [("size", int)]))
    monkeypatch.setattr(kind, "first", kind.Size(5))
    monkeypatch.setattr(kind, "limits", {"min_gap": (0, 10)})
    fields = read_json(CONFIGS / "copy.json") | {"min_gap": 0}
    for end in ("min", "max", "longer_min", "longer_max"):
        fields[f"{end}_size"] = fields.pop(f"{end}_seq_len")
    fields.pop("recipe", None)
    assert network_and_data(fields, "a file")[1].task.min_gap == 0
    with pytest.raises(InputError, match="'min_gap' is 11; allowed is 0 to 10"):
        network_and_data(fields | {"min_gap": 11}, "a file")


@pytest.mark.parametrize("part", ["seq_len", "repeats"])
def test_a_sample_that_does_not_look_at_a_part_of_its_size_is_refused(part, monkeypatch):
    configuration = load_configuration("repeat_copy")
    kind, sample = type(configuration.task), type(configuration.task).sample
    check_task(configuration)
    monkeypatch.setattr(kind, "sample", lambda self, n, size, *rest: sample(self, n, size._replace(**{part: 2}), *rest))
    with pytest.raises(InputError, match=f"size 10x10: sample gives the same at .*: it does not look at its {part}"):
        check_task(configuration)


def test_sizes_that_are_tested_are_looked_at_too(monkeypatch):
    monkeypatch.setattr(Copy, "tested", (Copy.Size(77),))
    sample = Copy.sample

    def without_answer(self, batch_size, size, *rest):
        batch = sample(self, batch_size, size, *rest)
        return batch._replace(mask=batch.mask * (size.seq_len != 77))

    monkeypatch.setattr(Copy, "sample", without_answer)
    with pytest.raises(InputError, match="task copy, size 77: the mask"):
        check_task(load_configuration("copy"))
    monkeypatch.setattr(Copy, "sample", lambda self, *rest: sample(self, *rest) if rest[1].seq_len < 99 else 1 / 0)
    with pytest.raises(InputError, match=r"task copy, size 100: sample raises ZeroDivisionError \(division by zero\)"):
        check_task(load_configuration("copy"))  # the longer test ends at 100


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("mask", lambda mask: 0 * mask, "the mask, .* is 0 at all steps"),
        ("mask", lambda mask: mask / 2, "mask must be 0 or 1"),
        ("targets", lambda targets: 0.3 + 0 * targets, "targets must be 0 or 1"),
        ("targets", lambda targets: targets / 0, "targets must be 0 or 1"),
        ("targets", lambda targets: targets.double(), r"targets must be float32, not torch\.float64"),
        ("mask", lambda mask: mask.bool(), r"mask must be float32, not torch\.bool"),
        ("inputs", lambda inputs: inputs[:, 1:], r"inputs must be \(T, B, 10\), of T steps of B = "),
    ],
)
def test_a_batch_that_goes_wrong_at_some_sizes_alone_stops_the_run(part, change, said, monkeypatch):
    sample = Copy.sample

    def at_seven(self, batch_size, size, *rest):
        batch = sample(self, batch_size, size, *rest)
        return batch._replace(**{part: change(getattr(batch, part))}) if size.seq_len == 7 else batch

    monkeypatch.setattr(Copy, "sample", at_seven)
    configuration = load_configuration("copy")
    check_task(configuration)  # at neither end
    data = dataclasses.replace(configuration.data, low=Copy.Size(7), high=Copy.Size(7))
    configuration = dataclasses.replace(configuration, data=data)
    with pytest.raises(InputError, match=f"size 7: {said}"):
        draw_iteration(configuration, 1, generator(0, 0))
    with pytest.raises(InputError, match=f"size 7: {said}"):
        sample_sizes(configuration.task, [Copy.Size(7)], 2, torch.Generator())


def test_a_sample_that_does_not_look_at_its_size_and_tests_beyond_the_limits_are_refused(monkeypatch):
    sample, configuration = Copy.sample, load_configuration("copy")
    with monkeypatch.context() as patch:
        patch.setattr(Copy, "sample", lambda self, count, size, *rest: sample(self, count, Copy.Size(4), *rest))
        with pytest.raises(
            InputError, match="task copy, size 20: sample gives the same at 15: it does not look at its"
        ):
            check_task(configuration)
    with monkeypatch.context() as patch:
        patch.setattr(Copy, "sample", lambda self, n, size, *rest: sample(self, n, Copy.Size(min(26, size[0])), *rest))
        with pytest.raises(InputError, match=r"task copy, size 100: sample gives the same at 75: .* or not that far"):
            check_task(configuration)
    for length, refused in (30, False), (31, True):
        monkeypatch.setattr(Copy, "tested", (Copy.Size(length),))
        monkeypatch.setattr(Copy, "limits", {"seq_len": (1, 30)})
        if refused:
            with pytest.raises(InputError, match="task copy: tested has seq_len 31, and its limits are 1 to 30"):
                check_task(configuration)
        else:
            check_task(configuration)


def test_what_is_shown_is_of_a_size_in_training():
    configuration = load_configuration("copy")
    low, high = Copy.Size(40), Copy.Size(48)
    long = dataclasses.replace(configuration, data=dataclasses.replace(configuration.data, low=low, high=high))
    sizes = [shown_size(each, most) for each in (configuration, long) for most in (10, 30, 45, 100)]
    assert [size.seq_len for size in sizes] == [10, 20, 20, 20, 40, 40, 45, 48]


CLASSES = {  # of a task, each with something left away or of another kind
    "no dataclass": (lambda kind: type("Mine", (Task,), {}), "is no dataclass"),
    "no method": (
        lambda kind: dataclass(frozen=True)(type("Mine", (Task,), {})),
        "has no input_size, output_size, rows_needed",
    ),
    "not frozen": (lambda kind: dataclass(type("Mine", (Task,), {})), "is a dataclass that is not frozen"),
    "no property": (
        lambda kind: put(kind, output_size=lambda self: 8),
        "has a method output_size: put @property above",
    ),
    "no size": (lambda kind: put(kind, Size=(int,)), "has no Size, a NamedTuple of whole numbers"),
    "first a number": (lambda kind: put(kind, first=4), "has no first that is a Length"),
    "tested numbers": (lambda kind: put(kind, tested=(8, 12)), "has no tested, a tuple of Length"),
    "a parameter that is no int": (
        lambda kind: dataclasses.make_dataclass("Mine", [("share", float, 0.5)], bases=(kind,), frozen=True),
        "has a field share that is no int: a field, which has an annotation, is a parameter",
    ),
    "first with an annotation": (
        lambda kind: dataclasses.make_dataclass("Mine", [("first", kind.Size, kind.first)], bases=(kind,), frozen=True),
        "has a field first that is no int",
    ),
    "limits misspelt": (lambda kind: put(kind, limits={"seq_widht": (1, 4)}), "has limits of seq_widht, which is no"),
}


def put(kind, **attributes):
    return type("Mine", (kind,), attributes)


@pytest.mark.parametrize("mistake", CLASSES)
def test_a_class_that_is_not_whole_is_refused(mistake, monkeypatch):
    make, said = CLASSES[mistake]
    assert Copy.missing() is None
    monkeypatch.setitem(TASKS, "copy", make(Copy))
    with pytest.raises(InputError, match=f"task copy: the class Mine {said}"):
        load_configuration("copy")


def test_a_key_that_is_a_constant_of_the_class_is_named_so(monkeypatch):
    monkeypatch.setattr(Copy, "value_bits", 4, raising=False)
    with pytest.raises(InputError, match="'value_bits' is a constant of the class Copy; a parameter is a field, which"):
        network_and_data(read_json(CONFIGS / "copy.json") | {"value_bits": 3}, "a file")


@pytest.mark.parametrize("name", ["memory_units", "hidden_size", "task", "recipe", "max_seq_len", "longer_min_seq_len"])
def test_a_parameter_of_a_tasks_own_is_no_other_key_of_its_file(name, monkeypatch):
    kind = dataclasses.make_dataclass("Mine", [(name, int)], bases=(Copy,), frozen=True)
    monkeypatch.setitem(TASKS, "copy", kind)
    with pytest.raises(InputError, match=f"its parameter {name} has the name of another key of the file"):
        load_configuration("copy")


@pytest.mark.parametrize("best", [3.0, torch.zeros(2), torch.tensor([3.0, -1, 3]), torch.full((3,), torch.nan)])
def test_an_optimal_cost_of_another_kind_is_refused(best, monkeypatch):
    monkeypatch.setattr(Copy, "optimal_cost", lambda self, batch: best)
    with pytest.raises(InputError, match="optimal_cost must be None, or a tensor"):
        check_task(load_configuration("copy"))


def test_a_sample_that_takes_no_uneven_is_refused(monkeypatch):
    monkeypatch.setattr(Copy, "sample", lambda self, batch_size, size, generator: None)
    with pytest.raises(InputError, match="sample cannot be called as training does"):
        check_task(load_configuration("copy"))


@pytest.mark.parametrize("rows", [None, 1.5, 0])
def test_rows_that_are_no_whole_number_are_refused(rows, monkeypatch):
    monkeypatch.setattr(Copy, "rows_needed", lambda self, size: rows)
    with pytest.raises(InputError, match=f"rows_needed is {rows}; a tape has a whole number of rows"):
        check_task(load_configuration("copy"))


def test_wrong_bits_of_all_sequences_together_are_refused(monkeypatch):
    monkeypatch.setattr(Copy, "wrong_bits", lambda self, logits, batch: torch.zeros(()))
    with pytest.raises(InputError, match="wrong_bits must be a tensor with the wrong bits of each sequence"):
        check_task(load_configuration("copy"))


def test_a_task_that_takes_from_its_generator_only_the_seed_is_refused(monkeypatch):
    sample = Copy.sample

    def seeded(self, batch_size, size, generator, *uneven):
        return sample(self, batch_size, size, torch.Generator().manual_seed(generator.initial_seed() + 1), *uneven)

    monkeypatch.setattr(Copy, "sample", seeded)
    with pytest.raises(InputError, match="sample gives the same each time that it draws from one generator"):
        check_task(load_configuration("copy"))


def test_a_task_that_does_nothing_with_the_share_of_uneven_sequences_is_refused(monkeypatch):
    sample = Copy.sample
    monkeypatch.setattr(Copy, "sample", lambda self, b, n, g, uneven=0.0: sample(self, b, n, g))
    configuration = load_configuration("copy")
    even = dataclasses.replace(configuration.recipe, uneven=0.0)
    check_task(dataclasses.replace(configuration, recipe=even))
    with pytest.raises(InputError, match="the same whatever the share of uneven sequences"):
        check_task(dataclasses.replace(configuration, recipe=dataclasses.replace(even, uneven=0.5)))


@pytest.mark.parametrize("steps", [3, 4])
def test_a_batch_of_as_many_sequences_as_steps_is_not_taken_for_one_that_is_batch_first(steps, monkeypatch):
    class BatchFirst(Copy):
        marks = ()
        tested = (Copy.Size(steps),)

        def sample(self, batch_size, size, generator, uneven=0.0):
            bits = torch.randint(0, 2, (batch_size, size[0], 8), generator=generator).float()
            return Batch(bits, bits, torch.ones(batch_size, size[0]))

    configuration, size = load_configuration("copy"), Copy.Size(steps)
    data = dataclasses.replace(
        configuration.data, task=BatchFirst(8), low=size, high=size, longer_low=size, longer_high=size
    )
    with pytest.raises(InputError, match=r"inputs must be \(T, B, 8\), of T steps of B"):
        check_task(dataclasses.replace(configuration, data=data))


def test_a_small_task_that_ignores_its_generator_is_found(monkeypatch):
    configuration = load_configuration("copy")
    tiny = dataclasses.replace(configuration.data, task=Copy(1), low=Copy.Size(1), high=Copy.Size(2))
    configuration = dataclasses.replace(configuration, data=tiny)
    check_task(configuration)
    sample = Copy.sample
    monkeypatch.setattr(Copy, "sample", lambda self, b, n, g, *u: sample(self, b, n, torch.Generator(), *u))
    with pytest.raises(InputError, match="size 2: sample gives the same whatever its generator"):
        check_task(configuration)
