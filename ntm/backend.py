"""Whether the fused path may run a model; `Machine.use_fused` chooses by it between that and the reference path.

The fused path computes the stock machine alone: the model as the files of this package define it. `ntm.stock.edited`
sees whether these files were edited, `Contents` what was replaced at run time, the rest what a model has of its own.
"""

import builtins
import importlib
import os
from enum import Enum
from functools import cache, partial
from operator import itemgetter
from types import CodeType, FunctionType, ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ntm.heads import control_sizes

TORCH = os.path.dirname(torch.__file__)


class Backend(Enum):
    """AUTO takes the fused path where it applies, and the reference elsewhere."""

    AUTO = "auto"
    FUSED = "fused"
    REFERENCE = "reference"


class BackendError(RuntimeError):
    """The fused path was asked for and cannot be had; the message says why."""


@cache
def import_trouble() -> str | None:
    """Say in one phrase why the fused path cannot be imported; None where it can."""
    try:
        importlib.import_module("ntm.fused")
    except Exception as error:  # Numba, for one, raises where it does not know the NumPy that is there
        return f"the fused path cannot be imported ({error})"
    return None


def mode_trouble() -> str | None:
    """Say in one phrase what PyTorch does just now that the fused path does not; None where that is nothing."""
    try:
        if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return "the fused path is not one for the transforms of torch.func, nor for forward-mode differentiation"
        if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
            return "the fused path cannot be traced, nor seen by a dispatch mode"
        if torch.is_autocast_enabled("cpu"):
            return "the fused path computes in the type of the weights, and autocast is on"
        modes = torch.overrides._get_current_function_mode_stack() if torch._C._len_torch_function_stack() else ()
        for mode in modes:
            if type(mode).__name__ != "DeviceContext":  # that only says where new tensors are made
                return f"the fused path calls nothing that a mode could change, and there is a {type(mode).__name__}"
        if nn.modules.module._has_any_global_hook():
            return "the fused path calls no module, and there are hooks on the calls of all modules"
    except AttributeError as error:  # these names are not public
        return f"the fused path must know what PyTorch does just now, and this version does not say ({error})"
    return None


def names_in(code: CodeType) -> set[str]:
    """The names of the globals and attributes that a function uses, and the functions within it."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(names_in, inner))


def is_special(tensor: Tensor | None) -> bool:
    """Whether a tensor is of a class that changes what operations do with it."""
    kind = type(tensor)
    if kind is Tensor or kind is nn.Parameter or tensor is None:
        return False
    return kind.__torch_function__ is not nn.Parameter.__torch_function__


def is_other(now: object, before: object) -> bool:
    """Whether `now` is neither `before` itself nor equal to it."""
    try:
        return now is not before and bool(now != before)
    except Exception:  # what two arrays that are compared raise, for one
        return True


# Methods of Tensor that the package's functions use without naming them.
OPERATORS = [
    f"__{name}__"
    for name in ["add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "neg", "pow", "getitem"]
]


def is_torchs(value: object) -> bool:
    """Whether a value is PyTorch's own: compiled, or a Python function that is defined in its folder."""
    if isinstance(value, FunctionType):
        return value.__code__.co_filename.startswith(TORCH + os.sep)
    return type(value).__module__.partition(".")[0] in ("builtins", "torch")


class Contents:
    """What modules and their classes hold, and what their functions use of PyTorch and of Python.

    It is there to see later whether something was replaced: an attribute, or the code of a function.
    """

    def __init__(self, *modules: ModuleType) -> None:
        # The names to look at, by the module or class that holds them. First what the package itself holds.
        classes = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
        package = *modules, *(kind for kind in dict.fromkeys(classes) if issubclass(kind, nn.Module))
        names = {owner: [name for name in vars(owner) if not name.startswith("__")] for owner in package}
        functions = [vars(owner)[name] for owner in package for name in names[owner]]
        self.functions = [function for function in functions if isinstance(function, FunctionType)]
        # Then what its functions use of PyTorch and of Python.
        used = {name for function in (*self.functions, nn.Linear.forward) for name in names_in(function.__code__)}
        for owner in (torch, nn.functional, Tensor, builtins):
            names[owner] = [name for name in sorted(used) if hasattr(owner, name) and not name.startswith("__")]
        names[Tensor] += OPERATORS
        names[nn.Linear] = ["forward", "__call__"]
        names[nn.Module] = ["__call__", "_wrapped_call_impl", "_call_impl", "__getattr__", "__getattribute__"]
        torchs = [(each, name) for each in (torch, nn.functional, Tensor, nn.Linear, nn.Module) for name in names[each]]
        self.replaced_before = [
            f"{each.__name__}.{name}" for each, name in torchs if not is_torchs(getattr(each, name))
        ]
        names |= {kind: ["__new__"] for kind in classes if issubclass(kind, tuple)}  # its functions make such tuples
        self.modules = modules
        self.before = {owner: {name: getattr(owner, name) for name in held} for owner, held in names.items()}
        self.codes = [function.__code__ for function in self.functions]
        # What `changed` compares first: all of the small dictionaries, and of the large ones the names looked at.
        large = torch, nn.functional, builtins
        self.contents = [vars(owner) for owner in names if owner not in large]
        self.picked = [partial(itemgetter(*names[owner]), vars(owner)) for owner in large if names[owner]]
        self.last_unchanged = None

    def _now(self) -> tuple[list, list[tuple], list[CodeType]]:
        return self.contents, [pick() for pick in self.picked], [function.__code__ for function in self.functions]

    def changed(self) -> str | None:
        """Return a phrase that names what was replaced since, or None where nothing was."""
        try:
            if self._now() == self.last_unchanged:  # quick, since each step asks; what is identical is not compared
                return None
        except Exception:  # of what a name that is missing, or a value that cannot be compared, raises
            pass
        change = self._replaced()
        if change is None:
            contents, *others = self._now()
            self.last_unchanged = [dict(each) for each in contents], *others
        return change

    def _replaced(self) -> str | None:
        """Look at each name."""
        if self.replaced_before:
            return f"{self.replaced_before[0]} was replaced before ntm was imported"
        for owner, attributes in self.before.items():
            for name, value in attributes.items():
                if is_other(getattr(owner, name, None), value):
                    return f"{owner.__name__}.{name} was replaced{self._still_used_in(owner, name, value)}"
        for module in self.modules:
            for name in self.before[builtins]:
                if name in vars(module):
                    return f"{module.__name__}.{name} was put in the place of Python's own"
        pairs = zip(self.functions, self.codes, strict=True)
        other = [f"{f.__module__}.{f.__qualname__}" for f, code in pairs if f.__code__ is not code]
        return f"the code of {other[0]} was replaced" if other else None

    def _still_used_in(self, owner: ModuleType | type, name: str, value: object) -> str:
        """Name the modules that had imported a replaced object by its name, and therefore still use the old one."""
        importers = [other.__name__ for other in self.before if getattr(other, name, None) is value]
        if not importers or getattr(value, "__module__", None) != owner.__name__:
            return ""
        return f", but not in {', '.join(importers)}, which imported it, and calls it as it was"


def has_hooks(module: nn.Module) -> bool:
    """Whether there are hooks on a module's calls, forward or backward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def parameters_by_name(module: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    """What `dict(module.named_parameters())` is, in a third of the time; but one under two names is there twice."""
    found = {prefix + name: each for name, each in module._parameters.items() if each is not None}
    for name, child in module._modules.items():
        if child is not None:
            found |= parameters_by_name(child, f"{prefix}{name}.")
    return found


@cache
def methods_of(stock: type[nn.Module]) -> list[str]:
    """The methods that a class itself defines, in its order, but for `__init__`."""
    return [name for name, method in vars(stock).items() if callable(method) and name != "__init__"]


def changed_part(module: nn.Module, stock: type[nn.Module], map_name: str) -> str | None:
    """Return a phrase that says how a module differs from a class of this package, or None where it does not.

    Args:
        module: the module; a subclass will do that overrides no method of the class.
        stock: the class that the fused path computes.
        map_name: the attribute that is its linear map.
    """
    kind, own = type(module), vars(module)
    if not isinstance(module, stock):
        return f"is a {kind.__name__}"
    methods = methods_of(stock)
    for name in methods if kind is not stock or not own.keys().isdisjoint(methods) else ():
        if name in own or getattr(kind, name) is not vars(stock)[name]:
            return f"has its own {name}"
    for name in ("__call__", "__getattr__", "__getattribute__"):
        if getattr(kind, name) is not getattr(nn.Module, name):
            return f"has its own {name}"
    linear = getattr(module, map_name)
    if type(linear) is not nn.Linear or "forward" in vars(linear) or linear is not module._modules.get(map_name):
        return f"has its own {map_name}, a {type(linear).__name__}"
    for name, part in (("itself", module), (map_name, linear)):
        if has_hooks(part):
            return f"has hooks on {name} (pruning puts some there, too)"
    return None


@cache
def stock_shapes(inputs: int, outputs: int, cells: int, read_heads: int, width: int, lstm: bool) -> dict[str, tuple]:
    """All parameters of a stock machine by name, in the shapes that the fused path knows.

    Args:
        inputs, outputs, cells, width: widths of input and output, C and M.
        read_heads: as many as write heads.
        lstm: whether the controller is an LSTM, else feed-forward.
    """
    reads = read_heads * width
    controls = sum(control_sizes(read_heads, read_heads, width, shifts=3))
    maps = {"heads.control_proj": (controls, cells), "output_proj": (outputs, reads + cells)}
    others = {"initial_reads": (read_heads, width)}
    if lstm:
        maps["controller.gate_proj"] = 4 * cells, inputs + reads + cells
        others |= {"controller.initial_hidden": (cells,), "controller.initial_cell": (cells,)}
    else:
        maps["controller.hidden_proj"] = cells, inputs + reads
    biases = {f"{name}.bias": shape[:1] for name, shape in maps.items()}
    return {f"{name}.weight": shape for name, shape in maps.items()} | biases | others


def changed_parameter(parameters: dict[str, nn.Parameter], shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Return a phrase that says how a model's parameters differ from these, or None where they do not.

    Args:
        parameters: the model's, by name.
        shapes: by name, all parameters that the fused path knows.
    """
    for name, shape in shapes.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != shape:
            return f"has no parameter {name} of shape {shape}"
        if is_special(parameter):
            return f"has a {type(parameter).__name__} for {name}"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"has hooks on the gradient of {name}"
    if len(parameters) > len(shapes):
        return f"has a parameter of its own, {next(name for name in parameters if name not in shapes)}"
    return None
