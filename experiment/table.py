"""What evaluate.py says of a model: its table, printed and as JSON, and its first mistakes."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from experiment.checkpoint import write_atomically
from experiment.scoring import Score
from ntm.machine import Machine
from tasks import Batch, label


def print_table(scores: dict[tuple, Score], optima: dict[tuple, float], rows: int | None) -> None:
    """Print one model's scores, a line a size.

    Args:
        scores: by size.
        optima: by size, the cost of the optimal predictor, where that is not 0.
        rows: of memory; None of an LSTM alone.
    """
    columns = {
        " x ".join(next(iter(scores))._fields): 20,
        "rows": 7,
        "sequences": 11,
        "wrong bits a sequence": 25,
        "exact": 10,
        "at least": 11,
        "cost (bits)": 14,
    } | ({"optimal": 10, "above": 9} if optima else {})
    print("".join(f"{name:>{width}}" for name, width in columns.items()))
    for size, s in scores.items():
        bits = f"{s.bits:.3f} +- {'-' if math.isnan(s.bits_interval) else f'{s.bits_interval:.3f}'}"
        line = f"{label(size):>20}{rows or '-':>7}{s.sequences:11d}{bits:>25}{s.exact:10.2%}"
        above = f"{optima[size]:10.3f}{s.cost / optima[size] - 1:9.2%}" if size in optima else ""
        print(f"{line}{s.exact_low:11.2%}{s.cost:14.4f}{above}")


def write_table(
    path: Path, about: dict[str, Any], scores: dict[tuple, Score], optima: dict[tuple, float], rows: int | None
) -> bool:
    """Write a model's table as JSON, with what it is `about`.

    Returns:
        Whether it replaces another table: of another model, or of other settings.
    """
    table = [
        size._asdict()
        | {"memory_units": rows}
        | {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in s._asdict().items()}
        | ({"optimal_cost": optima[size]} if size in optima else {})
        for size, s in scores.items()
    ]
    text = json.dumps(about | {"scores": table}, indent=1) + "\n"
    replaces = path.exists() and path.read_text() != text
    write_atomically(path, text.encode())
    return replaces


@torch.no_grad()
def show_mistake(model: Machine, one: Batch, memory_units: int | None) -> str:
    """Draw the first wrong vectors of the answer to a sequence as bits, a wrong bit marked below."""
    one = one.to(model.device)
    logits, _ = model(one.inputs, memory_units=memory_units)
    answer = (logits[:, 0] > 0).int()[one.mask[:, 0] > 0].tolist()
    target = one.targets[:, 0].int()[one.mask[:, 0] > 0].tolist()
    bad = [i for i, (said, meant) in enumerate(zip(answer, target, strict=True)) if said != meant]
    vectors = "1 wrong vector" if len(bad) == 1 else f"{len(bad)} wrong vectors, the first of them"
    lines = [f"a sequence of {len(target)} answers with {vectors}:"]
    for i in bad[:4]:
        said, meant = ("".join(map(str, bits[i])) for bits in (answer, target))
        start = f"  answer step {i + 1:4d}  target {meant}  answer "
        marks = "".join(" " if x == y else "^" for x, y in zip(said, meant, strict=True))
        lines += [start + said, " " * len(start) + marks]
    return "\n".join(lines)
