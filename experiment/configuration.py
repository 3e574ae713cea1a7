"""What a run is: a network, a data set, and a recipe to train one on the other."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch.nn.parameter import is_lazy

from experiment.errors import InputError, did_you_mean
from experiment.json_file import checked_keys, read_json
from experiment.recipe import OPTIMIZER_SETTINGS, Recipe, make_recipe, useless
from ntm import NTM, Backend, LSTMBaseline
from ntm.controller import CONTROLLERS
from ntm.heads import control_sizes
from tasks import TASKS, Task
from tasks.task import USUAL_LIMITS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
NETWORKS = ("m1", "m2", "m3", "f1", "l1")  # f: with a feed-forward controller; l: LSTM alone
DATA_SETS = ("d1", "d2", "d3")
REVERSE = tuple(network + data for network in NETWORKS for data in DATA_SETS)
NINE = tuple(name for name in REVERSE if name.startswith("m"))
PAPER_TASKS = ("copy", "repeat_copy", "associative_recall", "ngram", "priority_sort")
MACHINES = {"": "NTM, LSTM controller", "_ff": "NTM, feed-forward controller", "_lstm": "LSTM"}  # Tables 2, 1 and 3
PAPER = tuple(task + machine for task in PAPER_TASKS for machine in MACHINES)
NAMES = REVERSE + PAPER

RUN_NAME = r"[A-Za-z0-9_.-]{1,64}"
ENDS = ("min", "max", "longer_min", "longer_max")  # of a range of sizes in a file
END = re.compile(r"^(longer_)?(min|max)_")

MAX_NUMBERS = 100_000_000  # in a network's weights, and in one sequence's memory


@dataclass(frozen=True)
class Network:
    """The sizes of an `NTM`: the network configurations m1, m2, m3, f1, and those of the paper."""

    controller_size: int  # cells of an LSTM, units of a feed-forward controller
    memory_units: int  # rows of memory, N
    memory_unit_size: int  # width of a row, M
    num_heads: int  # read heads, and as many write heads
    controller: str = "lstm"  # one of `ntm.controller.CONTROLLERS`

    @property
    def has(self) -> set[str]:
        """What settings of a recipe may need."""
        return {"memory", "cells"} if self.controller == "lstm" else {"memory"}


@dataclass(frozen=True)
class BaselineNetwork:
    """The sizes of an `LSTMBaseline`: the network configuration l1, and those of the paper."""

    hidden_size: int  # cells of a layer
    num_layers: int

    memory_units: ClassVar[None] = None  # it has no memory
    has: ClassVar[set[str]] = set()

    @property
    def controller_size(self) -> int:
        """Cells of a layer: what sets the learning rate."""
        return self.hidden_size


@dataclass(frozen=True)
class Data:
    """A task and its ranges of sizes, each inclusive at both ends."""

    name: str  # the task's, one of `TASKS`
    task: Task
    low: tuple  # the smallest and the largest size in training, each a `task.Size`
    high: tuple
    longer_low: tuple  # and in the longer test; of those above `high`, training sees none
    longer_high: tuple

    @staticmethod
    def types(name: str) -> dict[str, type]:
        """The keys of a task's data set in a file, each with its type.

        Raises:
            InputError: the task's class is not whole, or a parameter has the name of another key of the file.
        """
        missing = TASKS[name].missing()
        if missing:
            raise InputError(f"task {name}: the class {TASKS[name].__name__} {missing}")
        parameters = [field.name for field in dataclasses.fields(TASKS[name])]
        ranges = [f"{end}_{of}" for end in ENDS for of in TASKS[name].Size._fields]
        for key in parameters:
            if key in {"task", "recipe", *ranges, *_types(Network), *_types(BaselineNetwork)}:
                raise InputError(f"task {name}: its parameter {key} has the name of another key of the file")
        return {"task": str} | dict.fromkeys(parameters + ranges, int)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Data":
        """Build from the keys of `types`, checked."""
        kind = TASKS[fields["task"]]
        task = kind(**{field.name: fields[field.name] for field in dataclasses.fields(kind)})
        sizes = (kind.Size(*(fields[f"{end}_{of}"] for of in kind.Size._fields)) for end in ENDS)
        return cls(fields["task"], task, *sizes)

    def as_dict(self) -> dict[str, Any]:
        """The keys of `types`; `from_fields` is the way back."""
        ends = zip(ENDS, (self.low, self.high, self.longer_low, self.longer_high), strict=True)
        sizes = {f"{end}_{of}": value for end, size in ends for of, value in size._asdict().items()}
        return {"task": self.name} | dataclasses.asdict(self.task) | sizes


@dataclass(frozen=True)
class Configuration:
    """All that determines a run but `-init` and the computer that it runs on."""

    name: str
    network: Network | BaselineNetwork
    data: Data
    recipe: Recipe

    @property
    def title(self) -> str:
        """Task and name, as in `reverse_m1d1` or `copy_ff`: what the run's model is called."""
        return model_title(self.data.name, self.name)

    @property
    def task(self) -> Task:
        """The task."""
        return self.data.task

    def make_model(self, backend: Backend = Backend.AUTO) -> NTM | LSTMBaseline:
        """Build the network for the task, its weights drawn from torch's default generator.

        Raises:
            InputError: a controller of one's own is not whole.
        """
        machine = NTM if isinstance(self.network, Network) else LSTMBaseline
        widths = self.task.input_size, self.task.output_size
        try:
            model = machine(*widths, **dataclasses.asdict(self.network), backend=backend)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error
        if lazy := next((name for name, weight in model.named_parameters() if is_lazy(weight)), None):
            raise InputError(
                f"{self.name}: {lazy} has no size before a call: give its layer its sizes, as Linear has them"
            )
        if "memory" in self.network.has:
            model.heads.bias_gates(self.recipe.gate_bias)
        return model

    def as_dict(self) -> dict[str, Any]:
        """Turn into plain containers, for a checkpoint; `from_dict` is the way back."""
        parts = {"network": dataclasses.asdict(self.network), "data": self.data.as_dict()}
        return {"name": self.name, **parts, "recipe": dataclasses.asdict(self.recipe)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any], source: str, finished: bool = False) -> "Configuration":
        """Rebuild from `as_dict`, checking every value as a file's.

        Args:
            finished: training is over, so a recipe with other parts than those of today will do; they are left out, and
                those that it lacks have today's defaults.

        Raises:
            InputError: something is missing, unknown or impossible; the message begins with `source`.
        """
        fields = checked_keys(fields, {"name": str, "network": dict, "data": dict, "recipe": dict}, source)
        if not re.fullmatch(RUN_NAME + r"(-\d+)?", fields["name"]):  # it becomes a part of paths
            raise InputError(f"{source}: 'name' must be letters, digits, '_', '-' and '.', not {fields['name'][:40]!r}")
        recipe, types = fields["recipe"], _types(Recipe)
        if finished:
            recipe = dataclasses.asdict(Recipe()) | {key: recipe[key] for key in recipe.keys() & types.keys()}
        recipe = checked_keys(recipe, types, f"{source}: recipe")
        network, data = network_and_data({**fields["network"], **fields["data"]}, source)
        return cls(fields["name"], network, data, make_recipe(recipe, f"{source}: "))


def model_title(task: str, name: str) -> str:
    """What the model of a run is called: reverse_m1d1; where a name of the paper begins with its task, that alone."""
    return name if task != "reverse" and name.startswith(task) else f"{task}_{name}"


def task_of(name: str) -> str:
    """The task of a configuration in `NAMES`."""
    return next((task for task in PAPER_TASKS if name.startswith(task)), "reverse")


def read_recipe(name: str) -> dict[str, Any]:
    """Read the settings of a recipe by its name or its file's path, such as paper.

    Raises:
        InputError: there is no such recipe, or a setting is wrong.
    """
    names = sorted(path.stem for path in (CONFIGS / "recipes").glob("*.json"))
    path = CONFIGS / "recipes" / f"{name}.json" if name in names else Path(name)
    if path.suffix != ".json":
        raise InputError(f"-recipe {name}: no such recipe; choose one of {', '.join(names)}, or give a JSON file")
    settings = checked_keys(read_json(path), _types(Recipe), str(path), partial=True)
    make_recipe(settings, f"{path}: ")
    return settings


def with_settings(
    configuration: Configuration, settings: dict[str, Any], source: str = "-", for_any_machine: bool = False
) -> Configuration:
    """Put other settings in the place of those of a configuration's own recipe.

    Args:
        source: what a message begins with.
        for_any_machine: whether some may be for machines that have what this has not.

    Raises:
        InputError: one of them is impossible, or belongs to an optimizer, a machine or a task that this has not.
    """
    own = dataclasses.asdict(configuration.recipe)
    other = settings.get("optimizer", own["optimizer"]) != own["optimizer"]
    if other:  # what the own recipe says of its optimizer is no setting of the other
        own = {key: value for key, value in own.items() if key not in OPTIMIZER_SETTINGS}
    recipe = make_recipe({**own, **settings}, source)
    return _checked_recipe(dataclasses.replace(configuration, recipe=recipe), settings, source, for_any_machine)


def _checked_recipe(
    configuration: Configuration, given: dict[str, Any], source: str, for_any_machine: bool = False
) -> Configuration:
    """Refuse what was given and cannot be, or would do nothing."""
    if configuration.recipe.uneven and not configuration.task.can_be_uneven:
        raise InputError(f"{source}uneven: the task {configuration.data.name} has no uneven sequences; 0 is allowed")
    has = {"memory", "cells"} if for_any_machine else configuration.network.has
    for trouble in useless(given, configuration.recipe, has, configuration.name, source):
        raise InputError(trouble)
    return configuration


def unknown_name(name: str) -> InputError:
    """The error of a -config that there is not."""
    near, base = did_you_mean(name, NAMES), re.sub(r"-\d+$", "", name)
    if base in NAMES:
        return InputError(f"-config {name}: is a run; -config {base} begins another, and with -resume goes on with one")
    file = "; of your own, a model goes by its file to evaluate.py -saved_model, a task to train.py -task_json."
    return InputError(f"-config {name}: no such configuration{near or file} There are {', '.join(NAMES)}")


def load_configuration(name: str) -> Configuration:
    """Read a configuration by its name: a network and a data set of reverse, such as m1d1, or a file, such as copy.

    Raises:
        InputError: there is no such configuration, or its files are wrong.
    """
    if name in PAPER:
        return load_task_json(CONFIGS / f"{name}.json")
    if name not in NAMES:
        raise unknown_name(name)
    network, data = CONFIGS / f"{name[:2]}.json", CONFIGS / f"{name[2:]}.json"
    return _of_fields(name, read_json(network) | read_json(data), f"{network}, {data}")


def load_task_json(path: Path) -> Configuration:
    """Read a file that holds the keys of a network and of `Data` together; the run is named after the file.

    Raises:
        InputError: the file cannot be read or is wrong.
    """
    if not re.fullmatch(RUN_NAME, path.stem):
        raise InputError(f"{path}: a run is named after its file; use letters, digits, '_', '-' and '.', 64 at most")
    return _of_fields(path.stem, read_json(path), str(path))


def _of_fields(name: str, fields: dict[str, Any], source: str) -> Configuration:
    """Check a file's fields; their key "recipe" may hold what is other than in the default recipe."""
    settings = fields.pop("recipe", {})
    if not isinstance(settings, dict):
        raise InputError(f"{source}: 'recipe' must be an object, not {json.dumps(settings)[:40]}")
    settings = checked_keys(settings, _types(Recipe), f"{source}: recipe", partial=True)
    network, data = network_and_data(fields, source)
    own = settings if data.task.can_be_uneven else {"uneven": 0.0, **settings}
    configuration = Configuration(name, network, data, make_recipe(own, f"{source}: "))
    return _checked_recipe(configuration, settings, f"{source}: recipe: ")


def network_and_data(fields: dict[str, Any], source: str) -> tuple[Network | BaselineNetwork, Data]:
    """Check the keys of a network and of `Data` together and build both.

    Raises:
        InputError: a key is missing, unknown, of a wrong type, or impossible.
    """
    if "task" not in fields:
        raise InputError(f"{source}: key 'task' is missing; allowed are {', '.join(TASKS)}")
    task = fields["task"]
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"{source}: 'task' is {json.dumps(task, default=str)[:40]}; allowed are {', '.join(TASKS)}")
    kind = BaselineNetwork if fields.keys() & _types(BaselineNetwork).keys() else Network
    data_types = Data.types(task)
    declared = *dataclasses.fields(kind), *dataclasses.fields(TASKS[task])
    defaults = {field.name: field.default for field in declared if field.default is not dataclasses.MISSING}
    types = _types(kind) | data_types
    if constant := next((key for key in fields.keys() - types if hasattr(TASKS[task], key)), None):
        raise InputError(
            f"{source}: {constant!r} is a constant of the class {TASKS[task].__name__}; a parameter is a field, which "
            f"has an annotation there, as in {constant}: int = 1"
        )
    fields = checked_keys(defaults | fields, types, source)
    if fields.get("controller", "lstm") not in CONTROLLERS:
        near = did_you_mean(fields["controller"], CONTROLLERS)
        raise InputError(
            f"{source}: 'controller' is {fields['controller']!r}; allowed are {', '.join(CONTROLLERS)}{near}"
        )
    parameters = _types(TASKS[task])
    for key, value in fields.items():
        of = key if key in parameters else END.sub("", key)
        low, high = TASKS[task].limits_of(of) if key in data_types else USUAL_LIMITS
        if isinstance(value, int) and not low <= value <= high:
            raise InputError(f"{source}: {key!r} is {value}; allowed is {low} to {high}")
    for of in TASKS[task].Size._fields:
        for low, high in ("min", "max"), ("longer_min", "longer_max"), ("max", "longer_max"):
            low, high = f"{low}_{of}", f"{high}_{of}"
            if fields[low] > fields[high]:
                raise InputError(f"{source}: {low!r} ({fields[low]}) must be at most {high!r} ({fields[high]})")
    network = kind(**{key: fields[key] for key in _types(kind)})
    data = Data.from_fields({key: fields[key] for key in data_types})
    _check_together(network, data, source)
    return network, data


def _types(kind: type) -> dict[str, type]:
    return {field.name: field.type for field in dataclasses.fields(kind)}


def _check_together(network: Network | BaselineNetwork, data: Data, source: str) -> None:
    too_large = f"{source}: a network of this size has more than {MAX_NUMBERS} weights, the most allowed"
    if isinstance(network, BaselineNetwork):
        if 8 * network.num_layers * network.hidden_size * max(network.hidden_size, data.task.input_size) > MAX_NUMBERS:
            raise InputError(too_large)
        return
    if network.memory_units * network.memory_unit_size > MAX_NUMBERS:
        raise InputError(f"{source}: memory_units * memory_unit_size must be at most {MAX_NUMBERS}")
    reads = network.num_heads * network.memory_unit_size
    seen = data.task.input_size + reads + network.controller_size
    controls = sum(control_sizes(network.num_heads, network.num_heads, network.memory_unit_size))
    if network.controller_size * (4 * seen + controls) > MAX_NUMBERS:
        raise InputError(too_large)
