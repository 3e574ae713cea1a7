"""Which code makes answers of a model's weights: a record is kept with the model, and compared when that is loaded.

It has digests of the definitions in files, which name an edit, and what the process that trained did on small examples,
which tells of any other way to change it.

    python -m experiment.code_record

writes saved_model/code.json, the record of the models that are shipped, once they are right with the code as it is. It
has them by their weights: a copy elsewhere, or of another name, is found, too.
"""

import ast
import hashlib
import json
import re
import sys
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from experiment.configuration import ROOT, Configuration, Network
from experiment.errors import InputError
from experiment.machine_check import answers
from experiment.state_check import alike
from ntm import Backend
from ntm.machine import Machine
from ntm.stock import definitions, digests, edited_names

Record = dict[str, dict[str, str]]  # by file, the digest of each definition
SHIPPED = "saved_model/code.json"  # of the shipped models, which have no record in themselves
# They choose and check, and compute nothing. ntm/fused/ is passed over, too: it is compared with what is here.
PASSED_OVER = {
    "tasks/__init__.py",
    *(f"ntm/{each}.py" for each in ("__init__", "backend", "machine", "shards", "stock")),
}


def source_of(module: ModuleType) -> Path | None:
    """The file of a module of this repository; None of another one, also in an environment that lies in its folder."""
    path, environment = Path(getattr(module, "__file__", None) or ROOT).resolve(), Path(sys.prefix).resolve()
    installed = environment.is_relative_to(ROOT) and path.is_relative_to(environment)
    return path if path.is_relative_to(ROOT) and path.suffix == ".py" and not installed else None


def imported(module: ModuleType, source: str) -> list[ModuleType]:
    """The modules that a module's code imports, or imports from, of those that are loaded."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), module.__package__)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [sys.modules[name] for name in names if name in sys.modules]


def code_files(configuration: Configuration) -> dict[str, Path]:
    """The files of this repository that define a configuration's machine and its task, and what these import."""
    machine = "ntm.ntm" if isinstance(configuration.network, Network) else "ntm.baseline"
    task = sys.modules[type(configuration.task).__module__]
    pending, files, own = [sys.modules[machine], task], {}, source_of(task)
    while pending:
        module = pending.pop()
        file = source_of(module)
        name = file and file.relative_to(ROOT).as_posix()
        passed_over = name in PASSED_OVER and file != own  # where the task stands, it counts
        if name and name not in files and not passed_over and not name.startswith("ntm/fused/"):
            files[name] = file
            with suppress(OSError, SyntaxError, ValueError):  # of one that cannot be read: it stands for itself
                pending += imported(module, file.read_text(encoding="utf-8"))
    return files


@cache
def code_record(configuration: Configuration) -> Record:
    """The record of `code_files` as they are when a process asks first: it goes on with the code that it began with.

    Raises:
        OSError, SyntaxError, ValueError: one of them cannot be read.
    """
    files = sorted(code_files(configuration).items())
    return {name: digests(definitions(file.read_text(encoding="utf-8"))) for name, file in files}


def edits_since(record: Record) -> str | None:
    """Name what was edited since a record, in one phrase; None where nothing was."""
    edits = []
    for name, before in record.items():
        path, what = (ROOT / name).resolve(), "it cannot be read"
        if not (path.is_relative_to(ROOT) and path.suffix == ".py" and path.exists()):
            edits.append(f"{name} is not there")
            continue
        with suppress(OSError, SyntaxError, ValueError):  # ValueError: of bytes that are no text
            names = edited_names(path.read_text(encoding="utf-8"), before)
            what = ", ".join(each or "a statement" for each in names)
        edits += [f"{name} was edited ({what})"] if what else []
    return "; ".join(edits) or None


def is_record(found: object) -> bool:
    """Whether what a file holds is a `Record`."""
    parts = [found, *found.values()] if isinstance(found, dict) else [found]
    return all(isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in parts)


@cache
def sequences_mark(configuration: Configuration) -> str:
    """A digest of sequences that a task makes, and of the wrong bits that it counts in some answers to them.

    It tells of what a process does, whatever files say.
    """
    data, source, digest = configuration.data, torch.Generator().manual_seed(0), hashlib.sha256()
    try:
        for size in (data.low, data.high):
            batch = configuration.task.sample(3, size, source)
            guesses = torch.randn(batch.targets.shape, generator=source)
            for part in (*batch, configuration.task.wrong_bits(guesses, batch)):
                digest.update(part.numpy().tobytes())
    except Exception as error:  # of whatever kind a mistake in it makes: `require_sound` says so
        return f"none, but {type(error).__name__}"
    return digest.hexdigest()[:16]


def record_of(model: Machine, configuration: Configuration) -> dict[str, Any]:
    """All that is kept with a trained model to tell later whether the code is as it was."""
    code, sequences = code_record(configuration), sequences_mark(configuration)
    return {"code": code, "sequences": sequences, "answers": answers(model).cpu()}


def record_for(contents: dict[str, Any], mark: str, configuration: Configuration, path: Path) -> dict[str, Any]:
    """The record of a trained model: that in its file, or a shipped model's; empty where there is none.

    Args:
        contents: of the file.
        mark: of its weights (`checkpoint.weights_mark`).
        path: of the file.

    Raises:
        InputError: what is there is no record, or cannot be read.
    """
    record = contents if "code" in contents else shipped_record(mark, configuration)
    before = record.get("answers")
    if not (is_record(record.get("code", {})) and isinstance(before, Tensor | None)) or not isinstance(
        record.get("sequences", ""), str
    ):
        raise InputError(f"{path}: not a model file of this program, or damaged")
    return {name: record[name] for name in ("code", "answers", "sequences") if name in record}


def shipped_record(mark: str, configuration: Configuration) -> dict[str, Any]:
    """The record of a shipped model by the mark of its weights; empty where they are none's.

    Raises:
        InputError: it cannot be read, or is none.
    """
    if not (shipped := ROOT / SHIPPED).exists():
        return {}
    try:
        found = json.loads(shipped.read_text(encoding="utf-8"))
        if not (kept := found["models"].get(mark)):
            return {}
        code = {name: found["code"][name] for name in code_files(configuration) if name in found["code"]}
        return {"code": code, "sequences": kept["sequences"], "answers": torch.tensor(kept["answers"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{shipped}: cannot be read ({error}); python -m experiment.code_record writes it") from error


def other_answers(before: object, model: Machine) -> str | None:
    """Say in one phrase that a model answers otherwise than was kept of it; None where it does not, or nothing was."""
    given = answers(model) if isinstance(before, Tensor) else None
    kept = given is not None and given.shape == before.shape  # else by an older program
    return "its answers are others" if kept and not alike(before, given) else None


def say_what_is_other(record: dict[str, Any], configuration: Configuration, path: Path, model: Machine) -> None:
    """Say so where a trained model's answers are made, or scored, by other code than its own, or where nobody can know.

    Args:
        record: `record_for` the model.
        path: of its file.
        model: as the code that is loaded makes it.
    """
    if not record:
        print(
            f"{path}: has no record of the code that trained it, so that an edit since would not show", file=sys.stderr
        )
        return
    found = [edits_since(record["code"]), other_answers(record.get("answers"), model)]
    if record.get("sequences") not in (None, sequences_mark(configuration)):
        found.append(f"the task {configuration.data.name} makes other sequences, or counts their wrong bits otherwise")
    if any(found):
        print(f"{path}: was trained by other code than this: {'; '.join(filter(None, found))}", file=sys.stderr)


def main() -> None:
    """Write the record of the models that are shipped."""
    from experiment.checkpoint import load, model_of, weights_mark  # here: it imports this

    code, models, shipped = {}, {}, ROOT / SHIPPED
    for path in sorted(shipped.parent.glob("*.pt")):
        contents = load(path)
        configuration = Configuration.from_dict(contents["configuration"], str(path), finished=True)
        if "code" not in contents:
            model = model_of(contents, configuration, path, Backend.REFERENCE)
            code |= code_record(configuration)
            given = [[[round(x, 5) for x in row] for row in step] for step in answers(model).tolist()]
            mark = weights_mark(contents["model"])
            models[mark] = {"file": path.name, "sequences": sequences_mark(configuration), "answers": given}
    text = json.dumps({"code": code, "models": models}, sort_keys=True)  # then a line for each file and model
    shipped.write_text(re.sub(r'("[\w./]+": [{\[]+)', r"\n\1", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
