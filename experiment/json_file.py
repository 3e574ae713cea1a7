"""JSON files that people write: read, and checked key by key."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from experiment.errors import InputError, did_you_mean

MAX_CHARACTERS = 100_000
NOUNS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "an object"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one object, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1).removeprefix("\ufeff")
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"{path}: larger than {MAX_CHARACTERS} characters, which no configuration is")
        fields = json.loads(text, object_pairs_hook=_each_key_once)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: holds no JSON object {{...}}")
    return fields


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return fields


def checked_keys(fields: dict[str, Any], types: dict[str, type], source: str, partial: bool = False) -> dict[str, Any]:
    """Check that exactly the keys of `types` are there, or, if `partial`, some of them; each of its type."""
    for key in fields:
        if key not in types:
            raise InputError(f"{source}: unknown key {key!r}; allowed are {', '.join(types)}{did_you_mean(key, types)}")
    for key, kind in types.items():
        if partial and key not in fields:
            continue
        if key not in fields:
            raise InputError(f"{source}: key {key!r} is missing")
        value = fields[key]
        if kind is float and type(value) is int:
            fields = {**fields, key: float(value) if abs(value) < sys.float_info.max else math.inf}
        elif type(value) is not kind:  # and not isinstance, for which True is an int
            shown = json.dumps(value, default=str)[:40]
            raise InputError(f"{source}: {key!r} must be {NOUNS[kind]}, not {shown}")
    return fields
