"""Numba's options, and every hack that the fused path asks of the compiler."""

import hashlib
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock
from numba import njit
from numba.core import caching
from numba.core.codegen import JITCPUCodegen
from numba.core.cpu import CPUTargetOptions
from numba.core.registry import cpu_target
from numba.core.targetconfig import ConfigStack

FOLDER = Path(__file__).resolve().parent

# The arrays that one of the small functions below takes never overlap. Numba has a flag that says so, but no option for
# it; without, each short loop would begin with comparing all its arrays' addresses, which takes longer than the loop.
CPUTargetOptions.noalias = CPUTargetOptions.Mapping("noalias")


class Codegen(JITCPUCodegen):
    """Machine code for all but the small functions: Python cannot call them, and compiled code has them inlined.

    It takes a tenth of the time that compiling takes.
    """

    def _add_module(self, module) -> None:
        flags = ConfigStack.top_or_none()  # of the function that is being compiled
        if not (flags and flags.noalias and flags.forceinline and flags.no_cpython_wrapper):
            super()._add_module(module)

    def set_env(self, env_name, env) -> None:
        """Set what a function's machine code finds its globals by, where it has machine code."""
        if self._engine.get_global_value_address(env_name):
            super().set_env(env_name, env)


cpu_target.target_context.codegen().__class__ = Codegen


# Sums may be reordered and products fused, which vectorises them; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


@cache
def folder_stamp() -> bytes:
    """A digest of the Python files in this folder and of ntm/shards.py: compiled code holds what it calls and reads."""
    digest = hashlib.sha256()
    for path in [FOLDER.parent / "shards.py", *sorted(FOLDER.glob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.digest()


class FolderStamp:
    """A locator of Numba's cache for this folder's files alone; its stamp is a digest of all of them.

    Numba itself stamps a compiled function with its own file, and would serve it after a change of what it calls.
    """

    def get_source_stamp(self) -> bytes:
        """What must be the same for cached code to be used."""
        return folder_stamp()

    @classmethod
    def from_function(cls, py_func, py_file):
        """A locator for the function, or None if it is of another folder, or nothing can be written there."""
        return super().from_function(py_func, py_file) if Path(py_file).resolve().parent == FOLDER else None


caching.CacheImpl._locator_classes[:0] = [
    type(locator.__name__, (FolderStamp, locator), {})
    for locator in (caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, caching.UserWideCacheLocator)
]


def jit(function, refcounted: bool = False, **more):
    """Compile a function with Numba, for compiled code to call, and without Python's global lock.

    Unless `refcounted`, arrays are not reference-counted, which costs more than the arithmetic where a loop makes many
    small views; such a function may take views of its arguments, and must not allocate. It is always inlined: one that
    was not was seen to round its sums differently in the process that compiles it than in those that load it from the
    cache (`test_freshly_compiled_code_rounds_as_code_from_the_cache`).
    """
    options = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
    options |= {"_nrt": refcounted, "noalias": not refcounted, "forceinline": not refcounted}
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **more}  # they take as long to compile as a loop
    return njit(function, **options)


def jit_refcounted(function, **more):
    """Compile a function that makes arrays, or returns views to one that does. It does no arithmetic: see `jit`."""
    return jit(function, refcounted=True, **more)


def jit_inline(function):
    """Compile a function that makes arrays and does arithmetic, within each that calls it: no copy of its own."""
    return jit_refcounted(function, inline="always")


_entries: list = []  # the functions that `jit_entry` made


def kept_in() -> str | None:
    """The folder in which later runs find what is compiled; None where it has no place on disk."""
    folders = [entry._cache.cache_path for entry in _entries]
    return None if None in folders else folders[0]


def jit_entry(function, **more):
    """Compile a function for Python to call, with all that it calls; cached on disk where that can be written.

    A damaged or full cache costs a compilation, never a run: Numba itself would raise.
    """
    compiled = jit(function, no_cpython_wrapper=False, **more)
    _entries.append(compiled)
    try:
        compiled.enable_caching()
    except RuntimeError:  # Numba found no folder for its cache
        warnings.warn("compiled code is not kept: no folder can be written; NUMBA_CACHE_DIR names one", stacklevel=1)
        return compiled
    kept = compiled._cache
    load, save = kept.load_overload, kept.save_overload

    def load_if_sound(*overload):
        try:
            return load(*overload)
        except Exception:  # whatever unpickling half a file raises
            with suppress(OSError):
                kept.flush()  # the index, which names the file
            return None

    def save_if_possible(*overload) -> None:
        try:
            with FileLock(f"{kept._cache_file._index_path}.lock"):  # of what is where: it is read, and written anew
                save(*overload)
        except Exception as error:
            warnings.warn(f"compiled code is not kept ({error}); NUMBA_CACHE_DIR names another folder", stacklevel=1)

    kept.load_overload, kept.save_overload = load_if_sound, save_if_possible
    return compiled
