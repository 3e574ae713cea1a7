"""Which code makes answers of a model's weights: a record is kept with the model, and compared when that is loaded.

    python -m experiment.code_record

writes saved_model/code.json, the record of the models that are shipped, once they are right with the code as it is.
"""

import ast
import json
import sys
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from experiment.configuration import NAMES, ROOT, Configuration, Network, load_configuration
from experiment.errors import InputError
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


def say_what_was_edited(record: Record | None, configuration: Configuration, path: Path) -> None:
    """Say so where a model's answers are made by other code than its own.

    Args:
        record: that in the model's file; None where there is none: then that beside it counts, if there is one.
        path: of the model's file.

    Raises:
        InputError: what is there is no record, or cannot be read.
    """
    if record is None and (beside := path.parent / BESIDE).exists():
        try:
            shipped = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{beside}: cannot be read ({error})") from error
        if not is_record(shipped):
            raise InputError(f"{beside}: is no record of code; write it by python -m experiment.code_record")
        record = {name: shipped[name] for name in code_files(configuration) if name in shipped}
    record = {} if record is None else record
    if not is_record(record):
        raise InputError(f"{path}: not a model file of this program, or damaged")
    edits = edits_since(record)
    if edits:
        print(f"{path}: was trained by other code than this: {edits}", file=sys.stderr)


def main() -> None:
    """Write the record of the models that are shipped."""
    record = {}
    for name in NAMES:
        record |= code_record(load_configuration(name))
    (ROOT / "saved_model" / BESIDE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
