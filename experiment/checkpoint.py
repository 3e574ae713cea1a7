"""Files that hold models: written atomically, read without running any code from them."""

import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from experiment.configuration import Configuration
from experiment.errors import InputError
from ntm import NTM, Backend

FORMAT = 1


def write_atomically(path: Path, contents: bytes) -> None:
    """Write a file so that `path` holds the old contents or the new, never a part.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives the owner alone access
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save(path: Path, contents: dict[str, Any]) -> None:
    """Write tensors and plain containers atomically, with the number of this format.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **contents}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote, tensors onto `device`.

    Raises:
        InputError: there is no such file, or it is not one of ours.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's own, about files that are refused anyway
            contents = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch.load has no common type for what a damaged or foreign file makes it raise
        raise InputError(f"{path}: not a model file of this program, or damaged") from error
    if not isinstance(contents, dict) or "configuration" not in contents or "model" not in contents:
        raise InputError(f"{path}: not a model file of this program")
    if contents.get("format") != FORMAT:
        raise InputError(f"{path}: has format {contents.get('format')!r}; this program reads format {FORMAT}")
    return contents


def restore(contents: dict[str, Any], path: Path, backend: Backend = Backend.AUTO) -> tuple[NTM, Configuration]:
    """Rebuild model (on the CPU) and configuration from what `load` read.

    Raises:
        InputError: the parts do not fit together.
    """
    configuration = Configuration.from_dict(contents["configuration"], str(path))
    model = configuration.make_model(backend)
    try:
        model.load_state_dict(contents["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its weights do not fit its configuration") from error
    return model, configuration


def load_model(
    path: Path | str, device: torch.device | str = "cpu", backend: Backend = Backend.AUTO
) -> tuple[NTM, Configuration]:
    """Load a trained model, in eval mode, with the configuration that it was trained by.

    Raises:
        InputError: the file cannot be used.
    """
    path = Path(path)
    model, configuration = restore(load(path), path, backend)
    return model.to(device).eval(), configuration
