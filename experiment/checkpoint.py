"""Files that hold models: written atomically, checked by a checksum, read without running any code from them."""

import hashlib
import io
import os
import platform
import re
import sys
import time
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiment.code_record import edits_since, is_record, other_answers, record_for, say_what_is_other, sequences_mark
from experiment.configuration import Configuration
from experiment.errors import InputError
from experiment.machine_check import answers_alike
from experiment.runlog import commit
from ntm import Backend
from ntm.addressing import SHIFTS
from ntm.machine import Machine

FORMAT = 6
OLDER_FORMATS = (4, 5)  # finished models of these are read too: blur cost was of w (4), dropout did not fall (5)
ABANDONED = 3600  # seconds after which a part of a file is of a process that was killed, on whatever computer


def partial_file(path: Path, process: int | str) -> Path:
    """Where a process of this computer writes what is to be `path`."""
    return path.with_name(f".{path.name}.{platform.node()}.{process}")


def is_dead(process: str) -> bool:
    """Whether there is no process of this number, where the system can be asked without touching it."""
    if os.name != "posix" or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def write_atomically(path: Path, contents: bytes) -> None:
    """Write a file so that `path` holds the old contents or the new, never a part, whenever the process dies.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_file(path, os.getpid())
    try:
        with open(temporary, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({error.strerror}); what was there stays", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    for left in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):
            process = left.suffix[1:]
            dead = left == partial_file(path, process) and is_dead(process)
            if dead or time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


def checksum(contents: Any, budget: int = sys.maxsize) -> str:
    """Compute the SHA-256 of tensors and plain containers: their structure, types, shapes and values.

    Args:
        contents: dicts, lists, tuples, tensors and plain values.
        budget: bytes that all tensors together may have; one that is there under two names counts once.

    Raises:
        ValueError: the tensors are larger than that, as when a small file asks for a large view.
    """
    digest, seen = hashlib.sha256(), set()
    pending = [contents]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            digest.update(f"dict {len(part)} ".encode())
            pending += [item for pair in part.items() for item in pair]
        elif isinstance(part, list | tuple):
            digest.update(f"{type(part).__name__} {len(part)} ".encode())
            pending += part
        elif isinstance(part, Tensor) and (where := (part.data_ptr(), part.dtype, part.shape, part.stride())) in seen:
            digest.update(b"again ")
        elif isinstance(part, Tensor):
            seen.add(where)
            budget -= part.numel() * part.element_size()
            if budget < 0:
                raise ValueError("tensors larger than their file")
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        else:
            digest.update(f"{type(part).__name__} {part!r} ".encode())
    return digest.hexdigest()


def weights_mark(weights: dict[str, Tensor]) -> str:
    """What the log of a run calls the weights, a `state_dict`, that it ended with: the beginning of their checksum."""
    return checksum(weights)[:12]


def made_by(model: Machine, log: Path) -> bool:
    """Whether the run of a log ended with a model's weights; false where it has not ended, or there is no log.

    True where it has, and the log does not say with which, as older ones.
    """
    ends = re.findall(r"^finished after .*$", log.read_text(encoding="utf-8"), re.M) if log.exists() else []
    return bool(ends) and (", weights " not in ends[-1] or ends[-1].endswith(weights_mark(model.state_dict())))


def save(path: Path, contents: dict[str, Any]) -> None:
    """Write tensors and plain containers atomically, with the number of this format, the shifts, and a checksum.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    contents = {"format": FORMAT, "shifts": list(SHIFTS), **contents}
    buffer = io.BytesIO()
    torch.save({**contents, "checksum": checksum(contents)}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU.

    Raises:
        InputError: there is no such file, it is not one of ours, or it is damaged.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: is no file")
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size for entry in archive.infolist()):
                raise InputError(f"{path}: not a model file of this program: its parts are compressed")
        with warnings.catch_warnings(action="ignore"):  # torch's own, about files that are refused anyway
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch.load has no common type for what a damaged or foreign file makes it raise
        raise InputError(f"{path}: not a model file of this program, or damaged") from error
    if not (isinstance(contents, dict) and isinstance(contents.get("configuration"), dict) and "model" in contents):
        raise InputError(f"{path}: not a model file of this program")
    if contents.get("format") not in (FORMAT, *OLDER_FORMATS):
        allowed = ", ".join(map(str, (*OLDER_FORMATS, FORMAT)))
        raise InputError(f"{path}: has format {contents.get('format')!r}; this program reads {allowed}")
    stored = contents.pop("checksum", None)
    try:
        good = stored == checksum(contents, budget=size)
    except (ValueError, RuntimeError, NotImplementedError):  # a view too large, or a tensor of an exotic kind
        good = False
    if not good:
        raise InputError(f"{path}: damaged: its contents do not fit its checksum")
    shifts = contents.pop("shifts", [-1, 0, 1])  # of files from before shifts could be others
    if shifts != list(SHIFTS):
        raise InputError(
            f"{path}: is of a machine with the shifts {shifts}; those of ntm/addressing.py are {list(SHIFTS)}"
        )
    return contents


def load_to_resume(path: Path) -> dict[str, Any]:
    """Read a checkpoint to go on from; says so where it is of other code: settings alone do not tell.

    Raises:
        InputError: as in `load`; or its task made other sequences.
    """
    stored = load(path)
    before, now = stored.get("commit"), commit()
    if before not in (None, now):
        print(f"-resume: {path} is of commit {before}, and this is {now}", file=sys.stderr)
    configuration = Configuration.from_dict(stored["configuration"], str(path))
    if stored.get("sequences") not in (None, sequences_mark(configuration)):
        task = configuration.data.name
        raise InputError(f"-resume: {path} is of a run on other sequences: the task {task} was edited since")
    code, model = stored.get("code", {}), None
    with suppress(InputError):  # where its weights do not fit: `TrainState.load` says so
        model = model_of(stored, configuration, path, Backend.REFERENCE)
    others = [edits_since(code) if is_record(code) else None, model and other_answers(stored.get("answers"), model)]
    if any(others):
        print(f"-resume: since {path} was written, {'; '.join(filter(None, others))}", file=sys.stderr)
    return stored


def maker(path: Path) -> str | None:
    """The name of the run that left a model's file; None where there is no such file, or none that can be read."""
    try:
        return load(path)["configuration"]["name"] if path.exists() else None
    except (InputError, KeyError, TypeError):
        return None


def load_model(path: Path | str, backend: Backend = Backend.AUTO) -> tuple[Machine, Configuration]:
    """Load a trained model, on the CPU and in eval mode, with the configuration that it was trained by.

    Says so where the code that makes answers of its weights was edited since, or where there is no record of it.

    Raises:
        InputError: the file cannot be used.
    """
    record = contents = load(path := Path(path))
    try:
        configuration = Configuration.from_dict(contents["configuration"], str(path), finished=True)
        record = record_for(contents, weights_mark(contents["model"]), configuration, path)
        model = model_of(contents, configuration, path, backend)
    except InputError as error:
        code = record.get("code", {})
        edits = edits_since(code) if is_record(code) else None
        raise InputError(f"{error}; since it was trained, {edits}" if edits else str(error)) from error
    say_what_is_other(record, configuration, path, model)
    return model, configuration


def model_of(contents: dict[str, Any], configuration: Configuration, path: Path, backend: Backend) -> Machine:
    """The model of what `load` gives of a file, in eval mode; an InputError where its weights do not fit."""
    model = configuration.make_model(backend)
    try:
        model.load_state_dict(contents["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its weights do not fit its configuration") from error
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise InputError(f"{path}: has weights that are not finite numbers")
    return model.eval()


def holds(path: Path, configuration: Configuration, model: Machine) -> bool:
    """Whether a file is a model's own already: of this configuration, with these weights."""
    try:
        contents = load(path)
    except InputError:
        return False
    same_weights = checksum(contents["model"]) == checksum(model.state_dict())
    return same_weights and contents["configuration"] == configuration.as_dict()


def makes_again(path: Path, configuration: Configuration, model: Machine) -> bool:
    """Whether a model's file makes a machine that answers as the one that it was saved from."""
    try:
        made = model_of(load(path), configuration, path, Backend.REFERENCE)
        return answers_alike(model, made.to(model.device))
    except (InputError, RuntimeError):  # RuntimeError: what was done to it cannot be copied, as pruning
        return False


def weights_for(model: Machine, configuration: Configuration, path: Path) -> dict[str, Tensor]:
    """The weights of a trained model, for another of the same sizes; says so where its task or controller is another.

    Args:
        model: the other.
        configuration: what it is to be trained by.
        path: of the trained one.

    Raises:
        InputError: the file cannot be used, or its weights are of other sizes.
    """
    trained, its_configuration = load_model(path)
    weights = trained.state_dict()
    for name, own in model.state_dict().items():
        there = weights.get(name)
        if there is None or there.shape != own.shape:
            what, here = (
                "missing" if part is None else "x".join(map(str, part.shape)) or "one number" for part in (there, own)
            )
            raise InputError(f"{path}: is of another machine: {name} is {what} there, and {here} here")
    if len(weights) > len(model.state_dict()):
        raise InputError(f"{path}: is of another machine: it has more weights than this one")
    for what, before, now in (
        ("task", its_configuration.data.name, configuration.data.name),
        ("controller", *(getattr(each.network, "controller", None) for each in (its_configuration, configuration))),
    ):
        if before != now:
            print(f"-init: {path} was trained with the {what} {before}; this run goes on with the {what} {now}")
    return weights
