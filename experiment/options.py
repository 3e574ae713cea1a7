"""train.py's command line."""

import argparse
import dataclasses
import sys
from pathlib import Path

from experiment.configuration import (
    NAMES,
    ROOT,
    Configuration,
    load_configuration,
    load_task_json,
    read_recipe,
    with_settings,
)
from experiment.errors import InputError, Parser, number
from experiment.recipe import Recipe, bounds, useless
from ntm import Backend
from tasks import label

THREADS_HELP = "threads of the CPU (default: one a core; for an NTM on the reference path, one)"


def yes_or_no(text: str) -> bool:
    """An argparse type."""
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


def add_recipe_flag(parser: Parser, field: dataclasses.Field) -> None:
    """Add the flag of one setting of the recipe; where it is not given, the recipe's own value counts."""
    options = {"default": argparse.SUPPRESS, "help": field.metadata["help"]}
    if "optimizer" in field.metadata:
        options["help"] = f"{field.metadata['optimizer']}: {options['help']}"
    if field.type is bool:
        options |= {"nargs": "?", "const": True, "type": yes_or_no, "metavar": "yes|no"}
    else:
        options["help"] += f" (default: {field.default})"
        limits = field.metadata.get("choices")
        options |= {"choices": limits} if limits else {"type": number(*bounds(field))}
    parser.add(field.name, **options)


def parse_options(description: str, arguments: list[str] | None = None) -> tuple[argparse.Namespace, Configuration]:
    """Read the command line, or given arguments; each setting of the recipe that is not given keeps its default.

    Raises:
        InputError: a flag is unknown, or what it says is impossible.
    """
    parser = Parser(description)
    parser.section("what to train")
    parser.add(
        "config",
        metavar="NAME",
        help=f"one of {', '.join(NAMES)} (default: m1d1); some set other defaults than those below",
    )
    parser.add("task_json", type=Path, metavar="FILE", help="a JSON file with network and data, instead of -config")
    parser.section("the run")
    parser.add(
        "saved_model", type=Path, metavar="PATH", help="the finished model (default: in saved_model/, by task and name)"
    )
    parser.add(
        "output", type=Path, default=ROOT, metavar="FOLDER", help="holds saved_model/, runs/ and log/ (default: here)"
    )
    parser.add("resume", action="store_true", help="go on from the last checkpoint of an interrupted run")
    parser.add(
        "overwrite", action="store_true", help="replace the run of this name, instead of calling this one <config>-2"
    )
    init = "begin with the weights of this model, as they are: gate_bias changes none"
    parser.add("init", type=Path, metavar="PATH", help=init)
    parser.add(
        "device",
        default="auto",
        metavar="NAME",
        help="cpu or cuda; auto: the CPU where the fused path runs, else a GPU if there is one",
    )
    parser.add("backend", default="auto", choices=[b.value for b in Backend], help="which code runs the machine")
    parser.add("threads", type=number(int, 1, 1024), help=THREADS_HELP)
    parser.add("report_every", type=number(int, 1, 10**9), default=500, help="iterations between test points")
    parser.add("checkpoint_every", type=number(int, 1, 10**9), default=500, help="iterations between checkpoints")
    parser.add("recipe", metavar="NAME", help="a file in configs/recipes/, as paper: Graves et al.'s own setting")
    for field in dataclasses.fields(Recipe):
        if "section" in field.metadata:
            parser.section(field.metadata["section"])
        add_recipe_flag(parser, field)
    options = parser.parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe) if field.name in options}
    if options.init and given.get("gate_bias"):
        raise InputError("-gate_bias: would do nothing, since -init brings the weights")
    if options.resume and options.overwrite:
        raise InputError("-overwrite begins a run anew, and -resume goes on with one: give one of them")
    if options.task_json and options.config:
        raise InputError("-task_json FILE goes instead of -config: give one of them")
    if options.task_json is None:
        configuration = load_configuration(options.config or "m1d1")
    else:
        configuration = load_task_json(options.task_json)
    if options.recipe:
        settings, source = read_recipe(options.recipe), f"-recipe {options.recipe}: "
        configuration = with_settings(configuration, settings, source, for_any_machine=True)
        for idle in useless(settings, configuration.recipe, configuration.network.has, configuration.name, source):
            print(idle, file=sys.stderr)
    data = configuration.data
    parts = zip(configuration.task.first, data.low, data.high, strict=True)
    if given.get("curriculum") and all(max(first, low) >= high for first, low, high in parts):
        begins = label(configuration.task.first)
        raise InputError(
            f"-curriculum: would do nothing, since it begins at {begins}, and training is from {label(data.low)} to "
            f"{label(data.high)}; 0 is allowed"
        )
    return options, with_settings(configuration, given)
