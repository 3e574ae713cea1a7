"""One's own sequences, from a text file of bits."""

from pathlib import Path

import torch
from torch import Tensor

from experiment.errors import InputError
from tasks.vectors import VectorTask

MAX_CHARACTERS = 10_000_000


def lays_out_as_it_draws(task: VectorTask, size: tuple[int]) -> bool:
    """Whether `batch` makes of the vectors of a drawn batch the same: a class of one's own may override `sample`."""
    if type(task).sample is VectorTask.sample:
        return True
    drawn = task.sample(2, size, torch.Generator().manual_seed(0))
    vectors = drawn.inputs[1 : size[0] + 1, :, : task.seq_width]
    return all(map(torch.equal, drawn, task.batch(vectors)))


def read_sequences(path: Path, width: int) -> list[Tensor]:
    """Read sequences of bit vectors: one vector a line, sequences separated by empty lines.

    Args:
        path: a text file; spaces within a line do not count.
        width: bits in a vector.

    Returns:
        For each sequence its vectors, (L, 1, width).

    Raises:
        InputError: the file cannot be read, holds no sequence, or has a line that is no such vector.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file") from error
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{path}: larger than {MAX_CHARACTERS} characters, the most allowed")
    sequences, vectors = [], []
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        bits = "".join(line.split())
        if not bits and vectors:
            sequences.append(torch.tensor(vectors).unsqueeze(1))
            vectors = []
        elif bits:
            if len(bits) != width or set(bits) - {"0", "1"}:
                raise InputError(f"{path}: line {number}, {line[:40]!r}: a vector is {width} characters, each 0 or 1")
            vectors.append([float(bit) for bit in bits])
    if not sequences:
        raise InputError(f"{path}: holds no sequence; give one vector of {width} bits a line")
    return sequences
