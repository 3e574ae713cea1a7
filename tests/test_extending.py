"""docs/extending.md: each of its changes is made in a copy of the repository, and run."""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT, Repository

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"^```(python|json)\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)
TASK, ENTRY, PARITY_JSON, CONTROLLER, SHIFTS = (text for _, text in BLOCKS)


@pytest.fixture
def copy(tmp_path):
    return Repository(tmp_path / "copy")


def append(path, text):
    path.write_text(path.read_text() + "\n" + text)


def test_a_task_takes_one_file_one_entry_and_one_json(copy):
    (copy.folder / "tasks" / "parity.py").write_text(TASK)
    append(copy.folder / "tasks" / "__init__.py", ENTRY)
    (copy.folder / "parity.json").write_text(PARITY_JSON)
    said = copy.run("train.py", "-task_json", "parity.json").stdout
    assert "fused path" in said
    assert "held-out sequences of trained sizes are right" in said
    out = copy.run("evaluate.py", "-saved_model", "saved_model/parity.pt", "-num_sequences", 20).stdout
    assert [int(line.split()[0]) for line in out.splitlines()[2:6]] == [1, 4, 8, 40]
    assert (copy.folder / "log" / "parity_machine.png").exists()
    refused = copy.run("train.py", "-task_json", "parity.json", "-uneven", 0.5, code=2).stderr
    assert "the task parity has no uneven sequences" in refused


def test_the_task_that_looks_by_content(copy):
    shutil.copytree(ROOT / "docs" / "lookup", copy.folder / "docs" / "lookup")
    said = (ROOT / "docs" / "extending.md").read_text()
    make = re.search(r"((?:^    .*\n)+)^    python train\.py -task_json docs/lookup/lookup\.json\n", said, re.M)[1]
    subprocess.run(["bash", "-euc", make], cwd=copy.folder, check=True)
    program = "import torch; from tasks import TASKS; task = TASKS['lookup'](6); "
    program += "inputs, targets, mask = task.sample(500, (5,), torch.Generator().manual_seed(0)); "
    program += "same = (inputs[:5, :, :6] == inputs[5, :, :6]).all(-1); "  # the pair of the key that is asked for
    program += "print(same.sum(0).unique(), (inputs[:5, :, 6:12].transpose(0, 1)[same.t()] == targets[6]).all(), "
    program += "mask.sum(1), len(set(same.float().argmax(0).tolist())), inputs[:5, :, 12].sum(), inputs[6].sum())"
    values = "tensor([1]) tensor(True) tensor([  0.,   0.,   0.,   0.,   0.,   0., 500.]) 5 tensor(0.) tensor(0.)\n"
    assert copy.run("-c", program).stdout == values
    said = copy.run("train.py", "-task_json", "docs/lookup/lookup.json", "-num_iters", 5).stdout
    assert "fused path" in said


TINY = """{
 "controller_size": 8, "memory_units": 12, "memory_unit_size": 6, "num_heads": 1, %s
 "task": "copy", "seq_width": 3, "min_seq_len": 1, "max_seq_len": 3, "longer_min_seq_len": 4, "longer_max_seq_len": 8
}"""


def test_a_controller_takes_one_class_and_one_entry(copy):
    append(copy.folder / "ntm" / "controller.py", CONTROLLER)
    (copy.folder / "tiny.json").write_text(TINY % '"controller": "recurrent",')
    said = copy.run("train.py", "-task_json", "tiny.json", "-num_iters", 5).stdout
    assert "reference path on cpu" in said
    assert "RecurrentController" in said
    assert "fused path on cpu" in copy.run("train.py", "-config", "m1d2", "-num_iters", 1).stdout  # of others, nothing


def test_a_range_of_five_shifts_is_one_constant(copy):
    (copy.folder / "tiny.json").write_text(TINY % "")
    copy.run("train.py", "-task_json", "tiny.json", "-num_iters", 5)
    addressing = copy.folder / "ntm" / "addressing.py"
    text, changed = re.subn(r"^SHIFTS = .*\n", SHIFTS, addressing.read_text(), flags=re.M)
    assert changed == 1
    addressing.write_text(text)
    refused = copy.run("evaluate.py", "-saved_model", "saved_model/copy_tiny.pt", code=2).stderr
    assert "copy_tiny.pt" in refused
    said = copy.run("train.py", "-task_json", "tiny.json", "-num_iters", 5, "-overwrite").stdout
    assert "three shifts" in said
    copy.run("evaluate.py", "-saved_model", "saved_model/copy_tiny.pt", "-num_sequences", 2, "-sizes", "2")
    program = "import torch; from ntm.addressing import shift; "
    program += "print(shift(torch.eye(5)[:1].unsqueeze(0), torch.eye(5)[:, None, None]).argmax(-1).flatten().tolist())"
    assert copy.run("-c", program).stdout == "[3, 4, 0, 1, 2]\n"
