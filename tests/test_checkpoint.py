"""experiment/checkpoint.py: what is saved, and what is refused."""

import pytest
import torch

from experiment.checkpoint import load_model, save
from experiment.errors import InputError
from ntm import Backend


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model.pt"
    save(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save(path, {"a": lambda: 0})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_do_not_fit_are_refused(repository, tiny, tmp_path):
    contents = torch.load(repository.folder / "saved_model" / "reverse_tiny.pt", weights_only=True)
    contents["configuration"]["network"]["controller_size"] = 9
    torch.save(contents, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="do not fit"):
        load_model(tmp_path / "odd.pt")
    torch.save({**contents, "format": 99}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="format"):
        load_model(tmp_path / "odd.pt")
    assert load_model(repository.folder / "saved_model" / "reverse_tiny.pt", backend=Backend.REFERENCE)
