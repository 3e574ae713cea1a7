"""ntm/fused/jit.py: a change of what a compiled function calls is noticed, a damaged cache mended."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
ONE_STEP = """
import numpy as np
from ntm.fused.probe import step
gates, cell, new_cell, tanh_cell, hidden = (np.full(n, 0.5, np.float32) for n in (8, 2, 2, 2, 2))
step(gates, cell, np.empty(0, bool), new_cell, tanh_cell, hidden)
print(hidden[0], sum(step.stats.cache_hits.values()))
"""
PROBE = """
from ntm.fused.controller import lstm
from ntm.fused.jit import jit_entry

@jit_entry
def step(gates, cell, cell_mask, new_cell, tanh_cell, hidden):
    lstm(gates, cell, cell_mask, new_cell, tanh_cell, hidden)
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package with a cache of its own; calling it takes a step in a fresh process."""
    shutil.copytree(ROOT / "ntm", tmp_path / "ntm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ntm" / "fused" / "probe.py").write_text(PROBE)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def one_step(first="", dtype="float32"):
        command = [sys.executable, "-c", f"{first}\n{ONE_STEP.replace('float32', dtype)}"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        hidden, hits = done.stdout.split()
        return float(hidden), int(hits)

    return one_step


@pytest.mark.parametrize(("kind", "left"), [("nbi", 0), ("nbc", 0.99)])
def test_a_damaged_cache_costs_a_compilation_and_is_mended(package, tmp_path, kind, left):
    before, _ = package()
    (path,) = (tmp_path / "cache").rglob(f"probe.step-*.{kind}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    assert package() == (before, 0)
    assert package() == (before, 1)


def test_a_full_disk_costs_what_would_have_been_kept(package):
    value, hits = package("import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))")
    assert (value, hits) == package("") == (value, 0)
    assert package() == (value, 1)


def test_a_callee_in_another_file_that_changes_is_compiled_anew(package, tmp_path):
    before, hits = package()
    assert hits == 0
    assert package() == (before, 1)
    mathlib = tmp_path / "ntm" / "fused" / "mathlib.py"
    source = mathlib.read_text()
    assert "return ONE / (ONE + exp(-x))" in source  # sigmoid, which lstm calls
    mathlib.write_text(source.replace("return ONE / (ONE + exp(-x))", "return HALF"))
    after, hits = package()
    assert hits == 0
    assert after == pytest.approx(0.5 * 0.2449, abs=1e-3)  # gate 0.5 times tanh(0.5 * 0.5 + 0.5 * (2 * 0.5 - 1))
    assert after != before
    assert package() == (after, 1)


def test_a_constant_outside_the_folder_that_changes_is_compiled_anew(package, tmp_path):
    """Compiled code holds GROUP of ntm/shards.py: the stamp of the cache has that file in it."""
    shards = tmp_path / "ntm" / "shards.py"

    def stamp():
        command = [sys.executable, "-c", "from ntm.fused.jit import folder_stamp; print(folder_stamp().hex())"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    before = stamp()
    assert stamp() == before
    shards.write_text(shards.read_text().replace("GROUP = 8", "GROUP = 4"))
    assert stamp() != before


def test_where_nothing_can_be_kept_no_later_run_is_promised(tmp_path):
    for name in ("ntm", "experiment", "tasks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ntm" / "fused" / "__pycache__").write_text("a file, where the cache would be a folder")
    code = (
        "import numba, ntm.fused\nfrom experiment.backend import telling_of_compilation\n"
        "with telling_of_compilation(training=False):\n    numba.njit(lambda x: x)(1)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def said(home):
        command, own = [sys.executable, "-c", f"{code}; import os; os._exit(0)"], {"HOME": home, "XDG_CACHE_HOME": home}
        done = subprocess.run(command, cwd=tmp_path, env=environment | own, capture_output=True, text=True)
        return done.stderr

    promise = "; later runs find it in "
    assert promise + str(tmp_path / "home") in said(str(tmp_path / "home"))
    nowhere = said("/dev/null")
    assert "NUMBA_CACHE_DIR names one" in nowhere
    assert "compiling" in nowhere
    assert promise not in nowhere


SLOWLY = """
import time
from numba.core.caching import IndexDataCacheFile as File
save_index = File._save_index
File._save_index = lambda *arguments: (time.sleep(3), save_index(*arguments))  # since it was read
"""


def test_two_processes_that_compile_at_once_leave_the_code_of_both(package):
    with ThreadPoolExecutor(2) as pool:
        singles, doubles = (pool.submit(package, SLOWLY, dtype) for dtype in ("float32", "float64"))
    for before, dtype in ((singles, "float32"), (doubles, "float64")):
        assert package(dtype=dtype) == (before.result()[0], 1)
