"""What every task shares: the batch it makes, how large it may be, and how an answer is scored."""

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

USUAL_LIMITS = (1, 1_000_000)


class Batch(NamedTuple):
    """Sequences of one size: T steps, B sequences."""

    inputs: Tensor  # (T, B, input_size)
    targets: Tensor  # (T, B, output_size), bits as 0 and 1
    mask: Tensor  # (T, B), 1 at the steps that count

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the batch to a device."""
        return Batch(*(part.to(device) for part in self))


class Task(ABC):
    """A task over binary sequences: makes batches, and scores logits (T, B, output_size) against their targets.

    A task is a frozen dataclass whose fields are its parameters, whole numbers of at least 1: a configuration gives
    each by its name. What may grow from one batch to another is a size, a named tuple of whole numbers; a configuration
    gives the range of each as min_<name> and max_<name>, and that of the longer test as longer_min_<name> and
    longer_max_<name>, all inclusive.
    """

    Size: ClassVar[type]  # a NamedTuple
    first: ClassVar[tuple]  # the size from which a curriculum grows
    tested: ClassVar[tuple[tuple, ...]]  # sizes that evaluate.py tests beside the trained ones
    limits: ClassVar[dict[str, tuple[int, int]]] = {}  # of parameters and parts of a size, where not `USUAL_LIMITS`
    can_be_uneven: ClassVar[bool] = False  # whether `sample` takes `uneven`

    @classmethod
    def missing(cls) -> str | None:
        """Say in one phrase what a class of one's own lacks or has of another kind; None where it is whole."""
        size = getattr(cls, "Size", None)
        if not dataclasses.is_dataclass(cls):
            return "is no dataclass: put @dataclass(frozen=True) above it"
        if not cls.__dataclass_params__.frozen:
            return "is a dataclass that is not frozen: put @dataclass(frozen=True) above it"
        if cls.__abstractmethods__:
            return f"has no {', '.join(sorted(cls.__abstractmethods__))}"
        methods = [name for name in ("input_size", "output_size") if callable(getattr(cls, name))]
        if methods:
            return f"has a method {methods[0]}: put @property above it"
        if not (isinstance(size, type) and issubclass(size, tuple) and hasattr(size, "_fields")):
            return "has no Size, a NamedTuple of whole numbers"
        if not isinstance(getattr(cls, "first", None), size):
            return f"has no first that is a {size.__name__}, from which a curriculum grows"
        if not all(isinstance(each, size) for each in getattr(cls, "tested", ("none",))):
            return f"has no tested, a tuple of {size.__name__}, which evaluate.py tests beside the trained ones"
        for field in dataclasses.fields(cls):
            if field.type not in (int, "int"):
                return (
                    f"has a field {field.name} that is no int: a field, which has an annotation, is a parameter, and a "
                    "whole number; a constant has none, or ClassVar"
                )
        unknown = set(cls.limits) - {field.name for field in dataclasses.fields(cls)} - set(size._fields)
        return f"has limits of {min(unknown)}, which is no parameter and no part of a size" if unknown else None

    @classmethod
    def limits_of(cls, name: str) -> tuple[int, int]:
        """The least and the greatest value of a parameter, or of a part of a size."""
        return cls.limits.get(name, USUAL_LIMITS)

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Width of the input."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Width of the output."""

    @abstractmethod
    def sample(self, batch_size: int, size: tuple, generator: torch.Generator) -> Batch:
        """Draw a batch of sequences of one size; all randomness comes from `generator`."""

    @abstractmethod
    def rows_needed(self, size: tuple) -> int:
        """Rows of memory that a tape of this size asks for, one for each vector to keep."""

    def wrong_bits(self, logits: Tensor, batch: Batch) -> Tensor:
        """Count the wrong bits of each sequence at the steps that count: (B,), whole numbers as floats.

        A sequence is exact where this is 0. A logit that is not a number is wrong whatever the target.
        """
        target = batch.targets > 0.5
        right = torch.where(target, logits > 0, logits <= 0)
        return (~right * batch.mask.unsqueeze(-1)).sum((0, 2))

    def optimal_cost(self, batch: Batch) -> Tensor | None:
        """The cross-entropy of each sequence in bits, (B,), of the optimal predictor; None where that is 0."""
        return None


def describe(size: tuple) -> str:
    """A size in words, as in "seq_len 10, repeats 3"."""
    return ", ".join(f"{name} {value}" for name, value in size._asdict().items())


def label(size: tuple) -> str:
    """A size as one writes it on the command line: 10x3."""
    return "x".join(map(str, size))
