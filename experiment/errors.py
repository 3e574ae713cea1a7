"""Bad input ends a script with one line on standard error and exit code 2, never a traceback."""

import argparse
import difflib
import errno
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

SMALLEST = 1e-30  # what a number of a recipe or a flag is at least, or 0: in float32, less does nothing
MAX_RANGE = 10_000  # numbers in a range as 10-20
SYNONYMS = {  # what other programs call a flag, and what it is called here
    "learning_rate": "lr",
    "iterations": "num_iters",
    "epochs": "num_iters",
    "lengths": "sizes",
    "model": "saved_model",
}


class InputError(Exception):
    """Something that the user gave cannot be used. The message names it, what is wrong, and what is allowed."""


def did_you_mean(word: str, known: Iterable[str], dash: str = "") -> str:
    """What to add to an error about an unknown word: the known one that is near it, or near to a synonym, if any is."""
    answers = {name: name for name in known}
    answers |= {synonym: name for synonym, name in SYNONYMS.items() if name in answers and synonym not in answers}
    near = difflib.get_close_matches(word.lower(), answers, 1)
    return f"; did you mean {dash}{answers[near[0]]}?" if near else ""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows each flag once, with its default where that says something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return action.option_strings[0]
        return f"{action.option_strings[0]} {self._format_args(action, action.dest)}"

    def _get_help_string(self, action: argparse.Action) -> str:
        plain = action.default is None or action.default is False or isinstance(action.default, Path)
        return action.help if plain else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, that shows defaults, and that guesses no abbreviations."""

    def __init__(self, description: str) -> None:
        self._group = self
        super().__init__(description=description, usage="%(prog)s [flags]", allow_abbrev=False, formatter_class=_Help)

    def add(self, flag: str, **options) -> None:
        """Add `-flag`, which `--flag` spells as well."""
        if "type" in options:
            options.setdefault("metavar", "X")
        self._group.add_argument(f"-{flag}", f"--{flag}", **options)

    def section(self, title: str) -> None:
        """Show the flags that are added from here on under a title of their own."""
        self._group = self.add_argument_group(title)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple:
        """Parse as argparse does, but refuse an empty word (an unset variable leaves one), and a flag twice."""
        words = sys.argv[1:] if args is None else list(args)
        names = (word.partition("=")[0] for word in words)
        flags = Counter("-" + name.lstrip("-") for name in names if name in self._option_string_actions)
        for flag, times in flags.items():
            if times > 1:
                raise InputError(f"{flag}: is given {times} times; give it once")
        for before, word in zip(["", *words], words, strict=False):
            if not word and before.lstrip("-") != "flags":
                raise InputError(f"{before or 'the first flag'}: is empty; leave it away for its default")
        return super().parse_known_args(words, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse itself passes over a disk that is full."""
        (file or sys.stderr).write(message or "")

    def _get_option_tuples(self, option_string: str) -> list:
        return []  # `allow_abbrev` does not reach flags of one dash

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, with the flag that may have been meant, and leave with code 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        known = (flag.strip("-") for flag in self._option_string_actions)
        near = did_you_mean(unknown.lstrip("-"), known, "-") if unknown != message and unknown.startswith("-") else ""
        raise InputError(message + near)


class Bounds(NamedTuple):
    """What a number may be: of a kind (int or float), finite, from `low` (excluded where `above`) to `high`.

    Other than 0, it is at least `SMALLEST`.
    """

    kind: type
    low: float = 0
    high: float = math.inf
    above: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number is within them."""
        inside = (self.low < value if self.above else self.low <= value) and value <= min(self.high, sys.float_info.max)
        return inside and (value == 0 or abs(value) >= SMALLEST)

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        high = f"{self.high:,}" if self.kind is int else f"{self.high:g}"
        upper = f" and at most {high}" if self.high < math.inf else ""
        least = f"{self.low:g}"
        if self.kind is float and self.low == 0:
            least = f"{SMALLEST:g}" if self.above else f"0 ({SMALLEST:g} where it is not 0)"
        return f"{noun} {'above' if self.above and self.low else 'of at least'} {least}{upper}"


def number(kind: type, low: float = 0, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """Make an argparse type: a number within `Bounds`."""
    bounds = Bounds(kind, low, high, above)

    def parse(text: str) -> float:
        try:
            value = math.nan if "_" in text else kind(text)  # which Python passes over in a number
        except ValueError:
            value = math.nan
        if not bounds.hold(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {bounds}")
        return value

    return parse


def numbers(low: int, high: int) -> Callable[[str], list[int]]:
    """Make an argparse type: whole numbers and ranges, as 1,5,10-20, each within bounds; sorted, each once."""
    whole = number(int, low, high)

    def parse(text: str) -> list[int]:
        found = set()
        for part in text.split(","):
            first, dash, last = part.partition("-")
            if first and dash and last:
                ends = whole(first), whole(last)
                if ends[0] > ends[1] or ends[1] - ends[0] >= MAX_RANGE:
                    raise argparse.ArgumentTypeError(f"{part!r} is not a range of 1 to {MAX_RANGE} numbers, as 10-20")
                found.update(range(ends[0], ends[1] + 1))
            else:
                found.add(whole(part))
        return sorted(found)

    return parse


def sizes(low: int, high: int) -> Callable[[str], list[tuple[int, ...]]]:
    """Make an argparse type: sizes of a task, as 1,5,10-20 or, where a size has two numbers, 5x5,10x1-3; each once."""
    several = numbers(low, high)

    def parse(text: str) -> list[tuple[int, ...]]:
        return sorted({size for part in text.split(",") for size in product(*map(several, part.split("x")))})

    return parse


def run_script(main: Callable[[], None]) -> NoReturn:
    """Call a script's `main`; turn an `InputError` or `OSError` into one line and exit code 2.

    Ctrl-C becomes 130, and a reader that has closed the pipe 141.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start, as by 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a path may be no text
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: interrupted", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read has enough, as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as a program that SIGPIPE ends: not all was done
    except OSError as error:  # a full disk, a folder that cannot be written
        name = error.filename or "a file or standard output"
        elsewhere = "; -output names another folder" if error.errno in (errno.EROFS, errno.EACCES) else ""
        print(f"{sys.argv[0]}: error: {name}: {error.strerror or error}{elsewhere}", file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer has nowhere to go
        sys.exit(2)
    sys.exit(0)
