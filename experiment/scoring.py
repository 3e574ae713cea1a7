"""Scores over test batches, and one sequence traced step by step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiment.configuration import Configuration
from experiment.errors import InputError
from experiment.task_check import sound
from ntm import NTM, NTMState
from ntm.controller import LSTMState
from ntm.loss import cross_entropy
from ntm.machine import Machine
from tasks import Batch, Task

SCORING_BATCH = 64  # sequences at a time
SCORING_SEED = 1  # of the sequences that reproduce.py scores on
LONG_LENGTH, LONG_ROWS = 1000, 1024  # of vectors, and the rows of memory that go with them
# Independent random streams of one seed. A model's first weights are of none: torch's own generator, with that seed.
TRAINING, HELD_OUT, EVALUATION = range(3)


def stream_seed(seed: int, stream: int, step: int = 0) -> int:
    """Make the seed of one of a seed's independent streams, or of one step of it."""
    state = np.random.SeedSequence((seed, stream, step)).generate_state(2, np.uint32)
    return int(state[0]) << 32 | int(state[1])


def generator(seed: int, stream: int, step: int = 0) -> torch.Generator:
    """Make the generator of one of a seed's independent streams, or of one step of it."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, step))


def seed_torch(seed: int) -> None:
    """Seed torch's own generators, from which an edited machine may draw, as by a dropout. Nothing here does.

    A hundredth of the time of `torch.manual_seed`, which also looks for devices that are not there.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Score(NamedTuple):
    """How a model did on a number of sequences. Intervals are 95%."""

    sequences: int
    loss: float  # binary cross-entropy a bit, nats
    cost: float  # binary cross-entropy a sequence, bits: the unit of the paper's figures
    bits: float  # wrong bits a sequence
    bits_interval: float  # half width of the interval of `bits` (normal approximation)
    exact: float  # share of sequences without a wrong bit
    exact_low: float  # lower end of the interval of `exact` (Wilson)
    exact_high: float  # its upper end


def sequence_bits(loss: float, batch: Batch) -> float:
    """Turn a batch's loss, in nats a bit, into bits a sequence."""
    counted = batch.mask.sum().item() * batch.targets.shape[2] / batch.mask.shape[1]
    return loss * counted / math.log(2)


def summarise(losses: list[float], costs: list[float], by_batch: list[Tensor]) -> Score:
    """Turn each batch's loss and cost, and the wrong bits of each of its sequences, (B,), into a score."""
    wrong = torch.cat(by_batch)
    n, exact, z = len(wrong), (wrong == 0).double().mean().item(), 1.96
    spread = wrong.double().std(correction=1).item() if n > 1 else math.nan
    sizes = [len(batch) for batch in by_batch]
    middle, margin = exact + z * z / (2 * n), z * math.sqrt(exact * (1 - exact) / n + z * z / (4 * n * n))
    low, high = ((middle + side * margin) / (1 + z * z / n) for side in (-1, 1))
    return Score(
        sequences=n,
        loss=sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / n,
        cost=sum(cost * size for cost, size in zip(costs, sizes, strict=True)) / n,
        bits=wrong.double().mean().item(),
        bits_interval=z * spread / math.sqrt(n),
        exact=exact,
        exact_low=max(0.0, min(exact, low)),  # an end is `exact` itself where that is 0 or 1, but for rounding
        exact_high=min(1.0, max(exact, high)),
    )


def dirty_memory(deviation: Tensor, memory_units: int, memory_unit_size: int, source: torch.Generator) -> Tensor:
    """Draw a memory full of normal numbers for each sequence, (B, N, M), each with its standard deviation, (B,)."""
    size = len(deviation), memory_unit_size, memory_units  # rows last, as they lie on the fused path
    return torch.randn(size, generator=source).mul_(deviation.view(-1, 1, 1)).transpose(1, 2)


def initial_state(
    model: Machine, batch_size: int, memory_units: int | None, dirt: float, source: torch.Generator | None
) -> NTMState | LSTMState:
    """Make the state that a test begins on: the model's own, or the same with a memory of normal numbers.

    Args:
        memory_units: rows of memory; None for the configured number.
        dirt: the standard deviation of the numbers; 0 for a blank memory.
        source: draws them.
    """
    state = model.initial_state(batch_size, memory_units)
    if dirt:
        _, rows, width = state.memory.shape
        memory = dirty_memory(torch.full((batch_size,), dirt), rows, width, source)
        state = state._replace(memory=memory.to(state.memory))
    return state


@contextmanager
def evaluating(model: Machine) -> Iterator[None]:
    """Put a model into eval mode, without gradients, for a while; what it draws from torch is the same each time."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            seed_torch(0)
            yield
    finally:
        model.train(was_training)


def score(
    model: Machine,
    task: Task,
    batches: list[Batch],
    memory_units: int | None = None,
    dirt: float = 0.0,
    source: torch.Generator | None = None,
) -> tuple[Score, list[Tensor]]:
    """Score a model on given batches, in eval mode, each from `initial_state`.

    Returns:
        The score, and for each batch its wrong bits by sequence, (B,).
    """
    losses, wrong = [], []
    with evaluating(model):
        for batch in (batch.to(model.device) for batch in batches):
            logits, _ = model(batch.inputs, initial_state(model, batch.inputs.shape[1], memory_units, dirt, source))
            losses.append(cross_entropy(logits, batch.targets, batch.mask).item())
            wrong.append(task.wrong_bits(logits, batch).cpu())
    costs = [sequence_bits(loss, batch) for loss, batch in zip(losses, batches, strict=True)]
    return summarise(losses, costs, wrong), wrong


def sample_sizes(task: Task, sizes: list[tuple], sequences: int, source: torch.Generator) -> list[Batch]:
    """Draw `sequences` sequences of each size, in batches of at most `SCORING_BATCH`; raises as `sound`."""
    counts = [min(SCORING_BATCH, sequences - done) for done in range(0, sequences, SCORING_BATCH)]
    return [sound(task.sample(count, size, source), count, task, size) for size in sizes for count in counts]


def spread_sizes(low: tuple, high: tuple, count: int) -> list[tuple]:
    """Spread sizes from `low` to `high`, both included: up to `count` values of each part.

    Where a size has several parts, they grow together, and once more one against the others: a machine may be right
    where both are small or both are large, and wrong elsewhere.
    """
    steps = [i / (count - 1) for i in range(count)]
    falling = steps[::-1]
    ends = list(zip(low, high, strict=True))
    parts = [[round(a + (b - a) * x) for x in steps] for a, b in ends]
    against = [[round(a + (b - a) * x) for x in (falling if i else steps)] for i, (a, b) in enumerate(ends)]
    return sorted({type(low)(*size) for each in (parts, against) for size in zip(*each, strict=True)})


class HeldOut(NamedTuple):
    """Sequences that training never looks at, in two sets, of trained and of larger sizes."""

    tests: dict[str, list[Batch]]  # by curve
    shown: Batch  # one, for the pictures


def draw_held_out(configuration: Configuration) -> HeldOut:
    """Draw them, from a stream of their own."""
    task, data = configuration.task, configuration.data
    source = generator(configuration.recipe.seed, HELD_OUT)
    sizes = {
        "test": spread_sizes(data.low, data.high, 8),
        "test_longer": spread_sizes(data.longer_low, data.longer_high, 4),
    }
    tests = {curve: sample_sizes(task, of, 16 if len(of) > 1 else 128, source) for curve, of in sizes.items()}
    return HeldOut(tests, task.sample(1, data.high, source))


def optimal_cost(task: Task, batches: list[Batch]) -> float | None:
    """The mean cost of the optimal predictor, in bits a sequence; None where that is 0.

    Raises:
        InputError: the task knows it of some batches alone.
    """
    costs = [cost for batch in batches if (cost := task.optimal_cost(batch)) is not None]
    if len(costs) not in (0, len(batches)):
        raise InputError("the task has an optimal_cost at some sizes, and None at others: give zeros there")
    return (torch.cat(costs).mean().item() or None) if costs else None


def counts_each_bit(task: Task, batch: Batch) -> bool:
    """Whether a task counts wrong bits as pictures and page do: all of them, at the steps that count."""
    logits = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(0))
    wrong = ((logits > 0) != (batch.targets > 0.5)) * batch.mask.unsqueeze(-1)
    return torch.equal(task.wrong_bits(logits, batch), wrong.sum((0, 2)))


class Trace(NamedTuple):
    """One sequence's way through the machine: arrays over T steps."""

    inputs: np.ndarray  # (T, input_size)
    targets: np.ndarray  # (T, output_size)
    mask: np.ndarray  # (T)
    wrong_bits: int  # as the task counts them
    outputs: np.ndarray  # (T, output_size), probabilities
    erases: np.ndarray  # (T, W, M)
    adds: np.ndarray  # (T, W, M)
    reads: np.ndarray  # (T, R, M)
    read_weighting: np.ndarray  # (T, R, N)
    write_weighting: np.ndarray  # (T, W, N)
    key_strength: np.ndarray  # (T, H), read heads first
    interpolation_gate: np.ndarray  # (T, H)
    shift_weighting: np.ndarray  # (T, H, S), of `ntm.addressing.SHIFTS`
    sharpening: np.ndarray  # (T, H)
    memories: np.ndarray  # (T, N, M), after each step
    first_memory: np.ndarray  # (N, M), before the first step

    @property
    def wrong(self) -> np.ndarray:
        """Whether a bit is wrong that counts, (T, output_size)."""
        return ((self.outputs > 0.5) != (self.targets > 0.5)) & (self.mask[:, None] > 0)


def trace(
    model: NTM,
    task: Task,
    batch: Batch,
    memory_units: int | None = None,
    dirt: float = 0.0,
    source: torch.Generator | None = None,
) -> Trace:
    """Take the first sequence of a task's batch through the reference model, from `initial_state`; keep what heads did.

    Raises:
        InputError: the model has a `step` or `forward` of its own, or hooks: its heads may do something else.
    """
    if model.overrides("step") or model.own_forward():
        raise InputError(
            "no picture: it shows `step_with_focus` alone, and the model has its own `step` or `forward`, or hooks"
        )
    device, readers = model.device, model.heads.num_read
    with evaluating(model):
        state = initial_state(model, 1, memory_units, dirt, source)
        first_memory, answers, steps = state.memory[0].cpu().numpy(), [], []
        one = Batch(*(part[:, :1] for part in batch))
        for x in one.inputs.to(device):
            logits, state, focus = model.step_with_focus(x, state)
            reading, writing = state.weighting[:, :readers], state.weighting[:, readers:]
            c = focus.controls
            addressing = c.key_strength[..., 0], c.interpolation_gate[..., 0], c.shift_weighting, c.sharpening[..., 0]
            answers.append(logits)
            steps.append(
                (logits.sigmoid(), c.erase, c.add, state.reads, reading, writing, *addressing, state.memory.clone())
            )
    by_step = (torch.cat(part).cpu().numpy() for part in zip(*steps, strict=True))
    given = (part[:, 0].numpy() for part in one)
    return Trace(*given, int(task.wrong_bits(torch.stack(answers).cpu(), one)), *by_step, first_memory)
