"""Which code makes answers of a model's weights: a record is kept with the model, and compared when that is loaded.

It has digests of the definitions in files, which name an edit, and what the process that trained did on small examples,
which tells of any other way to change it.

    python -m experiment.code_record

writes saved_model/code.json, the record of the models that are shipped, once they are right with the code as it is.
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

from experiment.configuration import NAMES, ROOT, Configuration, Network
from experiment.errors import InputError
from experiment.machine_check import alike, answers
from ntm import Backend
from ntm.machine import Machine
from ntm.stock import definitions, digests, edited_names

Record = dict[str, dict[str, str]]  # by file, the digest of each definition
BESIDE = "code.json"  # of the models in its folder that have no record in themselves
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
    pending, files = [sys.modules[machine], sys.modules[type(configuration.task).__module__]], {}
    while pending:
        module = pending.pop()
        file = source_of(module)
        name = file and file.relative_to(ROOT).as_posix()
        if name and name not in files and name not in PASSED_OVER and not name.startswith("ntm/fused/"):
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
        try:
            path = (ROOT / name).resolve()
            source = path.read_text(encoding="utf-8") if path.is_relative_to(ROOT) and path.suffix == ".py" else None
            names = ["it is not there"] if source is None else edited_names(source, before)
        except (OSError, SyntaxError, ValueError):  # ValueError: as of bytes that are no text
            names = ["it cannot be read"]
        if names:
            edits.append(f"{name} was edited ({', '.join(each or 'a statement' for each in names)})")
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


def answers_to_keep(model: Machine) -> Tensor | None:
    """Its `answers`; None where it does not give the same again, as one that draws from a generator of its own."""
    given = answers(model)
    return given.cpu() if alike(given, answers(model)) else None


def record_of(model: Machine, configuration: Configuration) -> dict[str, Any]:
    """All that is kept with a trained model to tell later whether the code is as it was."""
    kept = {"code": code_record(configuration), "sequences": sequences_mark(configuration)}
    given = answers_to_keep(model)
    return kept if given is None else {**kept, "answers": given}


def record_beside(path: Path, configuration: Configuration) -> dict[str, Any]:
    """The record in the folder of a model that has none in itself; empty where there is none.

    Raises:
        InputError: it cannot be read, or is none.
    """
    if not (beside := path.parent / BESIDE).exists():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
        code = {name: found["code"][name] for name in code_files(configuration) if name in found["code"]}
        kept = found["models"].get(path.name, {})
        return {**kept, "code": code} | ({"answers": torch.tensor(kept["answers"])} if "answers" in kept else {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{beside}: cannot be read ({error}); python -m experiment.code_record writes it") from error


def say_what_is_other(contents: dict[str, Any], configuration: Configuration, path: Path, model: Machine) -> None:
    """Say so where a trained model's answers are made, or scored, by other code than its own.

    Args:
        contents: of its file; that may have `record_of` the model among the rest.
        path: of the file.
        model: as the code that is loaded makes it.

    Raises:
        InputError: what is there is no record, or cannot be read.
    """
    record = contents if "code" in contents else record_beside(path, configuration)
    before, code = record.get("answers"), record.get("code", {})
    if not (is_record(code) and isinstance(before, Tensor | None) and isinstance(record.get("sequences", ""), str)):
        raise InputError(f"{path}: not a model file of this program, or damaged")
    found = [edits_since(code)]
    given = None if before is None else answers(model)
    if given is not None and given.shape == before.shape and not alike(before, given):  # else kept by an older program
        found.append("its answers are others")
    if record.get("sequences") not in (None, sequences_mark(configuration)):
        found.append(f"the task {configuration.data.name} makes other sequences, or counts their wrong bits otherwise")
    if any(found):
        print(f"{path}: was trained by other code than this: {'; '.join(filter(None, found))}", file=sys.stderr)


def main() -> None:
    """Write the record of the models that are shipped."""
    from experiment.checkpoint import load_model  # here: it imports this

    (beside := ROOT / "saved_model" / BESIDE).unlink(missing_ok=True)
    code, models = {}, {}
    for path in sorted(beside.parent.glob("*.pt")):
        model, configuration = load_model(path, Backend.REFERENCE)
        if configuration.name in NAMES:
            code |= code_record(configuration)
            given = [[[round(x, 5) for x in row] for row in step] for step in answers(model).tolist()]
            models[path.name] = {"sequences": sequences_mark(configuration), "answers": given}
    text = json.dumps({"code": code, "models": models}, sort_keys=True)  # then a line for each file and model
    beside.write_text(re.sub(r'("[\w./]+": [{\[]+)', r"\n\1", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
