"""What a run is: a network, a data set, and a recipe to train one on the other."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from experiment.errors import InputError
from experiment.recipe import Recipe, make_recipe, refuse_other_optimizers
from ntm import NTM, Backend, LSTMBaseline
from ntm.controller import CONTROLLERS
from tasks import TASKS, Task

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
NETWORKS = ("m1", "m2", "m3", "f1", "l1")  # f: with a feed-forward controller; l: LSTM alone
DATA_SETS = ("d1", "d2", "d3")
NAMES = tuple(network + data for network in NETWORKS for data in DATA_SETS)
NINE = tuple(name for name in NAMES if name.startswith("m"))

MAX_SIZE = 1_000_000  # of any number in a configuration file
MAX_MEMORY_CELLS = 100_000_000  # of one sequence's memory, rows times width
MAX_WEIGHTS = 100_000_000
MAX_FILE_BYTES = 100_000


@dataclass(frozen=True)
class Network:
    """The network configurations m1, m2, m3 and f1: sizes of an `NTM`."""

    controller_size: int  # cells of an LSTM, units of a feed-forward controller
    memory_units: int  # rows of memory, N
    memory_unit_size: int  # width of a row, M
    num_heads: int  # read heads, and as many write heads
    controller: str = "lstm"  # one of `ntm.controller.CONTROLLERS`


@dataclass(frozen=True)
class BaselineNetwork:
    """The network configuration l1: sizes of an `LSTMBaseline`."""

    hidden_size: int  # cells of a layer
    num_layers: int

    memory_units: ClassVar[None] = None  # it has no memory

    @property
    def controller_size(self) -> int:
        """Cells of a layer: what sets the learning rate."""
        return self.hidden_size


@dataclass(frozen=True)
class Data:
    """The data configurations d1, d2, d3: a task and its lengths, each range inclusive at both ends."""

    task: str
    seq_width: int  # bits in a vector
    min_seq_len: int
    max_seq_len: int
    longer_min_seq_len: int  # the range of the longer test; above `max_seq_len`, never trained on
    longer_max_seq_len: int


@dataclass(frozen=True)
class Configuration:
    """All that determines a run but the machine it runs on."""

    name: str
    network: Network | BaselineNetwork
    data: Data
    recipe: Recipe

    @property
    def title(self) -> str:
        """Task and name, as in `reverse_m1d1`: what the run's files are called."""
        return f"{self.data.task}_{self.name}"

    def make_task(self) -> Task:
        """Build the task."""
        return TASKS[self.data.task](self.data.seq_width)

    def make_model(self, backend: Backend = Backend.AUTO) -> NTM | LSTMBaseline:
        """Build the network for the task, its weights drawn from torch's default generator."""
        task = self.make_task()
        machine = NTM if isinstance(self.network, Network) else LSTMBaseline
        return machine(task.input_size, task.output_size, **dataclasses.asdict(self.network), backend=backend)

    def as_dict(self) -> dict[str, Any]:
        """Turn into plain containers, for a checkpoint; `from_dict` is the way back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any], source: str, finished: bool = False) -> "Configuration":
        """Rebuild from `as_dict`, checking every value as a file's.

        Args:
            finished: training is over, so a recipe with other parts than those of today will do; they are left out, and
                those that it lacks have today's defaults.

        Raises:
            InputError: something is missing, unknown or impossible; the message begins with `source`.
        """
        fields = _checked_keys(fields, {"name": str, "network": dict, "data": dict, "recipe": dict}, source)
        recipe, types = fields["recipe"], _types(Recipe)
        if finished:
            recipe = dataclasses.asdict(Recipe()) | {key: recipe[key] for key in recipe.keys() & types.keys()}
        recipe = _checked_keys(recipe, types, f"{source}: recipe")
        network, data = network_and_data({**fields["network"], **fields["data"]}, source)
        return cls(fields["name"], network, data, make_recipe(recipe, f"{source}: "))


def load_recipe(name: str, given: dict[str, Any]) -> Recipe:
    """Read a recipe by its name or its file's path, such as paper; what is `given` overrides its settings.

    Raises:
        InputError: there is no such recipe, or a setting is wrong.
    """
    names = sorted(path.stem for path in (CONFIGS / "recipes").glob("*.json"))
    path = CONFIGS / "recipes" / f"{name}.json" if name in names else Path(name)
    if path.suffix != ".json":
        raise InputError(f"-recipe {name}: no such recipe; choose one of {', '.join(names)}, or give a JSON file")
    settings = _checked_keys(_read_json(path), _types(Recipe), str(path), partial=True)
    recipe = make_recipe({**settings, **given}, f"{path}: ")
    refuse_other_optimizers({**settings, **given}, recipe)
    return recipe


def load_configuration(name: str, recipe: Recipe) -> Configuration:
    """Read a network and a data set of reverse by their names, such as m1d1.

    Raises:
        InputError: there is no such configuration, or its files are wrong.
    """
    if name not in NAMES:
        raise InputError(f"-config {name}: no such configuration; choose one of {', '.join(NAMES)}")
    paths = CONFIGS / f"{name[:2]}.json", CONFIGS / f"{name[2:]}.json"
    fields = _read_json(paths[0])
    kind = _network_kind(fields)
    network = kind(**_checked(fields, kind, str(paths[0])))
    data = Data(**_checked(_read_json(paths[1]), Data, str(paths[1])))
    _check_together(network, data, f"{paths[0]}, {paths[1]}")
    return Configuration(name, network, data, recipe)


def load_task_json(path: Path, recipe: Recipe) -> Configuration:
    """Read a file that holds the keys of `Network` and `Data` together; the run is named after the file.

    Raises:
        InputError: the file cannot be read or is wrong.
    """
    network, data = network_and_data(_read_json(path), str(path))
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", path.stem):
        raise InputError(f"{path}: a run is named after its file; use letters, digits, '_', '-' and '.', 64 at most")
    return Configuration(path.stem, network, data, recipe)


def _network_kind(fields: dict[str, Any]) -> type[Network] | type[BaselineNetwork]:
    return BaselineNetwork if fields.keys() & _types(BaselineNetwork).keys() else Network


def network_and_data(fields: dict[str, Any], source: str) -> tuple[Network | BaselineNetwork, Data]:
    """Check the keys of a network and of `Data` together and build both.

    Raises:
        InputError: a key is missing, unknown, of a wrong type, or impossible.
    """
    kinds = _network_kind(fields), Data
    fields = _checked_keys({**_defaults(kinds[0]), **fields}, {**_types(kinds[0]), **_types(Data)}, source)
    parts = [kind(**_checked({key: fields[key] for key in _types(kind)}, kind, source)) for kind in kinds]
    _check_together(*parts, source)
    return tuple(parts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES} characters, which no configuration is")
        fields = json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: holds no JSON object {{...}}")
    return fields


def _types(kind: type) -> dict[str, type]:
    return {field.name: field.type for field in dataclasses.fields(kind)}


def _defaults(kind: type) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}


def _checked_keys(fields: dict[str, Any], types: dict[str, type], source: str, partial: bool = False) -> dict[str, Any]:
    """Check that exactly the keys of `types` are there, or, if `partial`, some of them; each of its type."""
    for key in fields:
        if key not in types:
            raise InputError(f"{source}: unknown key {key!r}; allowed are {', '.join(types)}")
    for key, kind in types.items():
        if partial and key not in fields:
            continue
        if key not in fields:
            raise InputError(f"{source}: key {key!r} is missing")
        value = fields[key]
        if kind is float and type(value) is int:
            fields = {**fields, key: float(value)}
        elif type(value) is not kind:  # and not isinstance, for which True is an int
            nouns = {
                int: "a whole number",
                float: "a number",
                str: "a string",
                bool: "true or false",
                dict: "an object",
            }
            shown = json.dumps(value, default=str)[:40]
            raise InputError(f"{source}: {key!r} must be {nouns[kind]}, not {shown}")
    return fields


def _checked(fields: dict[str, Any], kind: type, source: str) -> dict[str, Any]:
    fields = _checked_keys({**_defaults(kind), **fields}, _types(kind), source)
    choices = {"task": TASKS, "controller": CONTROLLERS}
    for key, value in fields.items():
        if isinstance(value, int) and not 1 <= value <= MAX_SIZE:
            raise InputError(f"{source}: {key!r} is {value}; allowed is 1 to {MAX_SIZE}")
        if key in choices and value not in choices[key]:
            raise InputError(f"{source}: {key!r} is {value!r}; allowed are {', '.join(choices[key])}")
    for low, high in (("min_seq_len", "max_seq_len"), ("longer_min_seq_len", "longer_max_seq_len")):
        if low in fields and fields[low] > fields[high]:
            raise InputError(f"{source}: {low!r} ({fields[low]}) must be at most {high!r} ({fields[high]})")
    return fields


def _check_together(network: Network | BaselineNetwork, data: Data, source: str) -> None:
    too_large = f"{source}: a network of this size has more than {MAX_WEIGHTS} weights, the most allowed"
    if isinstance(network, BaselineNetwork):
        if 8 * network.num_layers * network.hidden_size * max(network.hidden_size, data.seq_width + 2) > MAX_WEIGHTS:
            raise InputError(too_large)
        return
    if network.memory_units * network.memory_unit_size > MAX_MEMORY_CELLS:
        raise InputError(f"{source}: memory_units * memory_unit_size must be at most {MAX_MEMORY_CELLS}")
    reads = network.num_heads * network.memory_unit_size
    seen = data.seq_width + 2 + reads + network.controller_size
    controls = network.num_heads * (4 * network.memory_unit_size + 12)
    if network.controller_size * (4 * seen + controls) > MAX_WEIGHTS:
        raise InputError(too_large)
