"""Damaged and malicious files: each is refused in one line, none runs code, none is taken for what it is not."""

import io
import json
import pickle
import random
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_runs import TINY, Folder

from experiment import checkpoint
from experiment.configuration import load_task_json
from experiment.errors import InputError
from tasks.task import USUAL_LIMITS

pytestmark = pytest.mark.slow

CORRUPTIONS = 200
MUTATIONS = 500


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A real run, killed, with the bytes of its checkpoint."""
    folder = Folder(tmp_path_factory.mktemp("interrupted"))
    folder.train_to_a_checkpoint()
    assert not folder.saved_model.exists()
    return folder, folder.checkpoint.read_bytes()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def attempt(read, *arguments):
    """What `read` gives, or the line that it refuses with."""
    try:
        return read(*arguments), None
    except InputError as error:
        return None, str(error)


def test_corrupted_checkpoints_are_noticed(interrupted, tmp_path):
    _, good = interrupted
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(good)
    whole, source, refused = checkpoint.load(path), random.Random(0), 0
    for case in range(CORRUPTIONS):
        bad = bytearray(good)
        if case % 3 == 0:
            del bad[source.randrange(len(bad)) :]
        elif case % 3 == 1:
            for _ in range(source.choice((1, 1, 8))):
                bad[source.randrange(len(bad))] ^= 1 << source.randrange(8)
        else:
            start = source.randrange(len(bad))
            bad[start : start + 64] = source.randbytes(64)
        path.write_bytes(bad)
        loaded, said = attempt(checkpoint.load, path)
        if said is None:
            assert same(loaded, whole)  # the flipped bit means nothing
        else:
            refused += 1
            assert str(path) in said
            assert "\n" not in said
    assert refused > 0.8 * CORRUPTIONS


def test_a_corrupted_checkpoint_ends_the_run_in_one_line_and_stays(interrupted):
    folder, good = interrupted
    folder.checkpoint.write_bytes(good)
    weight = checkpoint.load(folder.checkpoint)["model"]["heads.control_proj.bias"]
    bad = bytearray(good)
    bad[good.index(weight.numpy().tobytes())] ^= 16
    folder.checkpoint.write_bytes(bad)
    log = folder.log.read_bytes()
    assert folder.train("-resume") == 2
    assert folder.said.count("\n") == 1
    assert "checkpoint.pt: " in folder.said
    assert folder.checkpoint.read_bytes() == bad
    assert folder.log.read_bytes() == log
    folder.checkpoint.write_bytes(good)


class Runs:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive_with(pickled: bytes, good: bytes, method=zipfile.ZIP_STORED) -> bytes:
    """A model file whose pickle is another one."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(out, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return out.getvalue()


def malicious(kind: str, good: bytes, trap: str) -> bytes:
    call = {
        "system": Runs(__import__("os").system, f"touch {trap}"),
        "open": Runs(open, trap, "w"),
        "exec": Runs(exec, f"open({trap!r}, 'w')"),
    }
    if kind == "bare pickle":
        return pickle.dumps(call["open"])
    if kind == "old format of torch":
        file = io.BytesIO()
        torch.save({"configuration": {}, "model": call["exec"]}, file, _use_new_zipfile_serialization=False)
        return file.getvalue()
    return archive_with(pickle.dumps({"configuration": {}, "model": call[kind]}, protocol=2), good)


@pytest.mark.parametrize("kind", ["system", "open", "exec", "bare pickle", "old format of torch"])
def test_no_file_runs_code(interrupted, tmp_path, kind):
    _, good = interrupted
    trap, path = tmp_path / "trapped", tmp_path / "model.pt"
    path.write_bytes(malicious(kind, good, str(trap)))
    if kind in ("system", "open", "exec"):  # the trap works where nobody takes care
        torch.load(path, weights_only=False)
        assert trap.exists()
        trap.unlink()
    with pytest.raises(InputError, match="not a model file"):
        checkpoint.load_model(path)
    assert not trap.exists()


def test_a_small_file_cannot_ask_for_much_memory(interrupted, tmp_path):
    _, good = interrupted
    path = tmp_path / "model.pt"
    path.write_bytes(archive_with(b"\0" * 1_000_000_000, good, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 2_000_000
    with pytest.raises(InputError, match="compressed"):
        checkpoint.load_model(path)
    torch.save({"format": checkpoint.FORMAT, "configuration": {}, "model": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_model(path)


numbers = st.one_of(st.integers(-2, 300), st.sampled_from([10**6, 10**12, 10**400, -1]), st.floats(), st.booleans())
junk = st.recursive(
    st.one_of(numbers, st.none(), st.text(max_size=5)),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s),
)


@settings(max_examples=MUTATIONS, deadline=None, derandomize=True)
@given(changes=st.dictionaries(st.sampled_from([*TINY, "depth", ""]), junk, max_size=3), cut=st.integers(0, 400))
def test_mutated_configurations_are_right_or_refused(tmp_path_factory, changes, cut):
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    text = json.dumps({**TINY, **changes})
    path.write_text(text[: len(text) - cut] if cut % 4 == 0 else text)
    configuration, said = attempt(load_task_json, path)
    if said is not None:
        assert said.startswith(str(path))
        assert "\n" not in said
    else:
        assert all(1 <= getattr(configuration.network, key) <= USUAL_LIMITS[1] for key in list(TINY)[:4])
        assert configuration.data.low.seq_len <= configuration.data.high.seq_len


@pytest.mark.parametrize("text", ["[" * 90_000, '{"a":' * 9_000, "9" * 90_000, "", "nul", '{"a": 1', "\x00"])
def test_deep_and_broken_json_is_refused(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        load_task_json(path)
