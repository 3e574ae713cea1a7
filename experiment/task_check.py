"""A look at what a task makes, before a run trains on it: a mistake in one of one's own is one line, not a riddle."""

from copy import deepcopy

import torch

from experiment.configuration import Configuration
from experiment.errors import InputError
from tasks import Batch, Task, label


def check_task(configuration: Configuration) -> None:
    """Draw batches of both ends of a configuration's ranges, and of the sizes that are tested beside.

    Raises:
        InputError: they are not what training needs, or the task has a loss of its own.
    """
    task, data = configuration.task, configuration.data
    if hasattr(task, "loss"):
        raise InputError(f"task {data.name}: has a loss of its own, and train.py trains on that of ntm/loss.py")
    for size in task.tested:
        for name, value in size._asdict().items():
            low, high = task.limits_of(name)
            if not low <= value <= high:
                raise InputError(f"task {data.name}: tested has {name} {value}, and its limits are {low} to {high}")
    looked_at = dict.fromkeys((data.low, data.high, data.longer_low, data.longer_high, *task.tested))
    for size in looked_at:
        require_sound(configuration, size)
    for size in looked_at:
        if not is_same(task, size, 0, 0):
            raise InputError(
                f"task {data.name}, size {label(size)}: sample draws something from elsewhere than its generator: a "
                "run could not be repeated"
            )
    where = f"task {data.name}, size {label(data.high)}: sample gives the same"
    if is_same(task, data.high, 0, 1):
        raise InputError(f"{where} whatever its generator: a run would see nothing else")
    uneven = configuration.recipe.uneven
    if uneven and task.can_be_uneven:
        first, other = (task.sample(32, data.high, torch.Generator().manual_seed(0), share) for share in (0.0, uneven))
        if all(map(torch.equal, first, other)):
            raise InputError(f"{where} whatever the share of uneven sequences: -uneven 0 says so")
    source = torch.Generator().manual_seed(0)
    batch, following = (draw(task, data.high, source) for _ in range(2))
    if all(map(torch.equal, batch, following)):
        raise InputError(
            f"{where} each time that it draws from one generator, and a test draws several times: take the numbers "
            "from the generator itself, not from what it was seeded with"
        )
    if all(torch.equal(part, part[:, :1].expand_as(part)) for part in batch):
        raise InputError(f"{where} for all sequences of a batch")


def require_sound(configuration: Configuration, size: tuple) -> None:
    """Draw a batch of a size, and raise an InputError where it is not what a model is trained or scored on."""
    trouble = trouble_at(configuration.task, size)
    if trouble:
        raise InputError(f"task {configuration.data.name}, size {label(size)}: {trouble}")


def shown_size(configuration: Configuration, most: int) -> tuple:
    """Choose the size of a sequence that is shown: of those in training, the one nearest to `most` in each part.

    Raises:
        InputError: as in `require_sound`.
    """
    data = configuration.data
    ends = zip(data.low, data.high, strict=True)
    size = configuration.task.Size(*(max(low, min(high, most)) for low, high in ends))
    require_sound(configuration, size)
    return size


def trouble_at(task: Task, size: tuple) -> str | None:
    """Say in one phrase what is wrong with what a task makes of a size; None where nothing is."""
    try:
        # As many sequences as steps would look right with the two exchanged, and one alone may lose a dimension.
        one, four, batch = (draw(task, size, torch.Generator().manual_seed(0), count) for count in (1, 4, 3))
        kept = deepcopy(batch)
        draw(task, size, torch.Generator().manual_seed(1), 3)
    except TypeError as error:
        return f"sample cannot be called as training does ({error})"
    except Exception as error:  # of whatever kind a mistake in it makes
        return f"sample raises {type(error).__name__} ({error})"
    trouble = trouble_of(batch, 3, task) or trouble_of(four, 4, task) or trouble_of(one, 1, task)
    if trouble:
        return trouble
    if not batch.inputs.isfinite().all():
        return "inputs are not all finite"
    if not all(map(torch.equal, batch, kept)):
        return "a batch changes when the next one is drawn: sample gives the same tensors, filled anew"
    for name, value in size._asdict().items():
        smaller = max(task.limits_of(name)[0], value - max(3, value // 4))  # 2 at least, should it round odd ones
        other = size._replace(**{name: smaller})
        if value - smaller > 1 and gives(task, other, batch):
            return f"sample gives the same at {label(other)}: it does not look at its {name}, or not that far"
    marks = getattr(task, "marks", ())
    if not (isinstance(marks, tuple) and all(isinstance(mark, str) for mark in marks)) or len(marks) > task.input_size:
        return f"marks is {marks!r}; it names channels of the input, of which there are {task.input_size}: a tuple"
    rows = task.rows_needed(size)
    if type(rows) is not int or rows < 1:
        return f"rows_needed is {rows}; a tape has a whole number of rows, and at least one"
    wrong = task.wrong_bits(torch.zeros_like(batch.targets), batch)
    if not (isinstance(wrong, torch.Tensor) and wrong.shape == (3,)):
        return "wrong_bits must be a tensor with the wrong bits of each sequence, (B,)"
    best = task.optimal_cost(batch)
    whole = isinstance(best, torch.Tensor) and best.shape == (3,) and ((best >= 0) & best.isfinite()).all()
    if best is not None and not whole:
        return "optimal_cost must be None, or a tensor with the bits of each sequence, (B,), finite and at least 0"
    return None


def sound(batch: Batch, batch_size: int, task: Task, size: tuple) -> Batch:
    """Give back a batch, after a look at what a task may do wrong in some batches alone.

    Raises:
        InputError: as `trouble_of` says.
    """
    if trouble := trouble_of(batch, batch_size, task):
        raise InputError(f"the task, size {label(size)}: {trouble}")
    return batch


def draw(task: Task, size: tuple, source: torch.Generator, batch_size: int = 32) -> Batch:
    """Draw a batch as training does."""
    return task.sample(batch_size, size, source, *((0.5,) if task.can_be_uneven else ()))


def is_same(task: Task, size: tuple, *seeds: int) -> bool:
    """Whether a task draws the same batch of a size with two seeds."""
    batch, again = (draw(task, size, torch.Generator().manual_seed(seed)) for seed in seeds)
    return all(map(torch.equal, batch, again))


def gives(task: Task, size: tuple, batch: Batch) -> bool:
    """Whether a task draws this batch, of seed 0, at a size, too; not where there is none of that size."""
    try:
        other = draw(task, size, torch.Generator().manual_seed(0), batch.mask.shape[1])
    except Exception:  # of whatever kind: sizes whose parts do not fit each other
        return False
    return all(map(torch.equal, batch, other))


def trouble_of(batch: Batch, batch_size: int, task: Task) -> str | None:
    """Say in one phrase what is wrong with a batch of so many sequences; None where nothing is."""
    if not isinstance(batch, Batch):
        return f"sample must give a Batch, and gives a {type(batch).__name__}"
    steps = len(batch.inputs)
    by_step = steps, batch_size
    wanted = {"inputs": (*by_step, task.input_size), "targets": (*by_step, task.output_size), "mask": by_step}
    for name, part in batch._asdict().items():
        if part.shape != wanted[name]:
            shape = "(T, B)" if name == "mask" else f"(T, B, {wanted[name][2]})"
            return (
                f"{name} must be {shape}, of T steps of B = {batch_size} sequences, and have shape {tuple(part.shape)}"
            )
        if part.dtype != torch.float32:
            return f"{name} must be float32, not {part.dtype}"
        if part.requires_grad:
            return f"{name} want a gradient; a batch is data"
    return trouble_of_bits(batch)


def trouble_of_bits(batch: Batch) -> str | None:
    """Say in one phrase what is wrong with a batch's targets and mask, in NumPy, which takes a quarter of the time."""
    targets, mask = batch.targets.numpy(), batch.mask.numpy()
    for name, bits in (("targets", targets), ("mask", mask)):
        if not (bits * bits == bits).all():  # of finite numbers, 0 and 1 alone are their own squares
            return f"{name} must be 0 or 1, and are not all"
    if not mask.any(0).all():
        return "the mask, (T, B), is 0 at all steps of a sequence, so that no answer counts"
    return None
