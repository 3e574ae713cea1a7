"""experiment/page.py and page.html in a real browser: typed into, and compared with PyTorch."""

import dataclasses
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import lively_model

from experiment.configuration import ROOT, Configuration, Data, Network, Recipe
from experiment.errors import InputError
from experiment.page import asks, page, write_page
from experiment.scoring import EVALUATION, generator, trace
from ntm import NTM, stock
from ntm.backend import Contents
from tasks.associative_recall import AssociativeRecall
from tasks.ngram import NGram
from tasks.priority_sort import PrioritySort
from tasks.repeat_copy import RepeatCopy
from tasks.reverse import Reverse
from tasks.vectors import Length

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian packages)"),
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--force-prefers-reduced-motion"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def shipped():
    from experiment.checkpoint import load_model

    return load_model(ROOT / "saved_model" / "reverse_m1d2.pt")


def two_heads_of_each_kind():
    data = Data("reverse", Reverse(3), Length(1), Length(6), Length(7), Length(9))
    model = lively_model(2, torch.float32, memory_units=9, width=5, controller_size=11, scale=0.4)
    return model.eval(), Configuration("two", Network(11, 9, 5, 2), data, Recipe())


def feedforward():
    data = Data("reverse", Reverse(3), Length(1), Length(6), Length(7), Length(9))
    model = lively_model(
        1, torch.float32, memory_units=9, width=5, controller_size=11, scale=0.4, controller="feedforward"
    )
    return model.eval(), Configuration("ff", Network(11, 9, 5, 1, "feedforward"), data, Recipe())


def drawn(task, name, size):
    """A machine for a task of which no sequence can be typed."""
    data = Data(name, task, size, size, size, size)
    model = NTM(task.input_size, task.output_size, 11, 9, 5, 2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval(), Configuration(name, Network(11, 9, 5, 2), data, Recipe())


DRAWN = {
    "associative_recall": (AssociativeRecall(6, 3), AssociativeRecall.Size(4)),
    "repeat_copy": (RepeatCopy(4, 10), RepeatCopy.Size(3, 2)),
    "ngram": (NGram(3), Length(20)),
    "priority_sort": (PrioritySort(4, 3), Length(5)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_task_of_which_no_sequence_can_be_typed_brings_some(browser, tmp_path, name):
    task, size = DRAWN[name]
    model, configuration = drawn(task, name, size)
    write_page(model, configuration, tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    assert text(browser, "title") == f"A Neural Turing Machine: {name.replace('_', ' ')}"
    assert "`" not in text(browser, "asks")
    assert not browser.find_element(By.ID, "bits").is_displayed()
    source = generator(0, EVALUATION)
    for _ in range(2):
        batch = task.sample(1, size, source)
        expected = trace(model, configuration.task, batch)
        steps = browser.execute_script("return page.trace.map((s) => ({ ...s, memory: s.memory.map((r) => [...r]) }))")
        assert len(steps) == len(batch.inputs)
        for t, step in enumerate(steps):
            np.testing.assert_allclose(step["input"], expected.inputs[t], rtol=1e-6)
            np.testing.assert_allclose(1 / (1 + np.exp(-np.array(step["logits"]))), expected.outputs[t], atol=1e-4)
            np.testing.assert_allclose(step["memory"], expected.memories[t], rtol=1e-4, atol=1e-4)
            assert step["target"] == (expected.targets[t].tolist() if expected.mask[t] else None)
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.END)
        count, wrong = (
            int(batch.mask.sum()),
            int(task.wrong_bits(torch.logit(torch.from_numpy(expected.outputs))[:, None], batch)[0]),
        )
        kind = "bits" if name == "ngram" else "vectors"
        assert f"{count} of {count} {kind} answered, {wrong or 'no'} wrong bit" in text(browser, "score")
        assert f"answer {count} of {count}" in text(browser, "phase")
        browser.find_element(By.ID, "random").click()
    browser.execute_script(
        "const r = document.getElementById('rows'); r.value = 4; r.dispatchEvent(new Event('input'))"
    )
    assert browser.execute_script("return page.trace[0].memory.length") == 4


def test_memory_and_heads_are_seen_while_it_plays(browser, tmp_path):
    """On a usual screen, 1280 x 900, with nothing scrolled."""
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    write_page(*shipped(), tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    for part in ("play", "now", "memory", "paths"):
        assert browser.execute_script(f"return document.getElementById('{part}').getBoundingClientRect().bottom") <= 900
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def text(browser, name):
    return browser.find_element(By.ID, name).text


def type_in(browser, words):
    box = browser.find_element(By.ID, "bits")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(words)
    browser.execute_script("document.activeElement.blur()")


@pytest.mark.parametrize("make", [shipped, two_heads_of_each_kind, feedforward])
def test_every_number_is_pytorchs(browser, tmp_path, make):
    model, configuration = make()
    write_page(model, configuration, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    browser.get((tmp_path / "page.html").as_uri())
    assert text(browser, "name") == configuration.name

    task, length = configuration.task, 6
    bits = torch.randint(0, 2, (length, 1, task.output_size), generator=torch.Generator().manual_seed(5)).float()
    type_in(browser, " ".join("".join(str(int(bit)) for bit in vector[0]) for vector in bits))
    rows = browser.execute_script("return page.rows")
    expected = trace(model, task, task.batch(bits), rows)
    body = browser.find_element(By.TAG_NAME, "body")
    heads = expected.read_weighting.shape[1]
    for t in range(2 * length + 2):
        assert text(browser, "phase").startswith(f"Step {t + 1} of {2 * length + 2}: ")
        step = browser.execute_script("return JSON.parse(JSON.stringify(page.trace[page.t], "
            "(key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value))")  # fmt: skip
        weighting = np.concatenate((expected.read_weighting[t], expected.write_weighting[t]))
        for ours, theirs in (
            (1 / (1 + np.exp(-np.array(step["logits"]))), expected.outputs[t]),
            (step["input"], expected.inputs[t]),
            (step["weighting"], weighting),
            (step["memory"], expected.memories[t]),
            (step["controls"]["gate"], expected.interpolation_gate[t]),
            (step["controls"]["strength"], expected.key_strength[t]),
            (step["controls"]["shift"], expected.shift_weighting[t]),
            (step["controls"]["sharpening"], expected.sharpening[t]),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        shown = [line.text.split() for line in browser.find_elements(By.CSS_SELECTOR, "#controls tr")]
        assert len(shown) == 2 * heads
        for h, cells in enumerate(shown):
            gate, *shift, sharpening, strength, row, weight = map(float, cells[1 if heads == 1 else 2 :])
            assert gate == pytest.approx(expected.interpolation_gate[t, h], abs=2e-4)
            assert shift == pytest.approx(expected.shift_weighting[t, h].tolist(), abs=2e-4)
            assert sharpening == pytest.approx(expected.sharpening[t, h], abs=2e-3)
            assert strength == pytest.approx(expected.key_strength[t, h], abs=2e-3)
            assert weight == pytest.approx(weighting[h].max(), abs=2e-4)
            assert weighting[h, int(row)] == pytest.approx(weighting[h].max(), abs=2e-4)
        body.send_keys(Keys.ARROW_RIGHT)
    wrong = int(task.wrong_bits(torch.logit(torch.from_numpy(expected.outputs))[:, None], task.batch(bits))[0])
    assert f"{length} of {length} vectors answered, {wrong or 'no'} wrong bit" in text(browser, "score")


def test_words_mistakes_and_keyboard(browser, tmp_path):
    write_page(*shipped(), tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    body = browser.find_element(By.TAG_NAME, "body")
    type_in(browser, "01101001 11110000 00111100 10101010")
    body.send_keys(Keys.END)
    assert "answers with vector 1" in text(browser, "phase")
    assert "4 of 4 vectors answered, no wrong bits" in text(browser, "score")
    body.send_keys(Keys.HOME)
    assert "the start mark" in text(browser, "phase")
    for _ in range(3):
        body.send_keys(Keys.ARROW_RIGHT)
    assert "reads vector 3 of 4" in text(browser, "phase")
    assert "moved one row" in text(browser, "write-words")

    for words, complaint in (("0110", 'Vector 1, "0110"'), ("01101001 01101012", "Vector 2"), (" ", "Type vectors")):
        type_in(browser, words)
        assert complaint in text(browser, "error")
    assert "of 4" in text(browser, "phase")  # the last good one, of one vector, stays
    browser.execute_script("document.getElementById('random').click()")
    assert text(browser, "error") == ""

    # Twenty vectors do not fit on four rows; the page says so, and shows what is wrong.
    type_in(browser, " ".join(["01101001", "11110000"] * 10))
    browser.execute_script(
        "const r = document.getElementById('rows'); r.value = 4; r.dispatchEvent(new Event('input'))"
    )
    body.send_keys(Keys.END)
    assert "20 vectors on 4 rows" in text(browser, "error")
    assert browser.find_element(By.ID, "score").get_attribute("class") == "wrong"

    cell = browser.find_element(By.CSS_SELECTOR, "[data-at='0 7']")
    before = browser.execute_script("return page.vectors[0][7]")
    cell.send_keys(Keys.SPACE)
    assert browser.execute_script("return page.vectors[0][7]") == 1 - before
    cell.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("data-at") == "1 7"


@pytest.mark.parametrize("dark", [False, True])
def test_fits_a_phone_in_light_and_dark(browser, tmp_path, dark):
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    write_page(*shipped(), tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(22, 24, 27)") == dark
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_whose_equations_nothing_compares_is_refused(tmp_path, monkeypatch):
    model, configuration = shipped()
    monkeypatch.setattr("ntm.ntm.STOCK", Contents())  # as if what follows had stood so in its file
    monkeypatch.setattr("ntm.ntm.SHIFTS", (-2, -1, 0, 1, 2))
    with pytest.raises(InputError, match=r"-page: cannot compare its equations .* the three shifts"):
        write_page(model, configuration, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("ntm.ntm.SHIFTS", (-1, 0, 1))
    monkeypatch.setattr("ntm.ntm.initial_weighting", lambda *sizes, like: like.new_tensor([[[0.0, 1, 0]]]))
    with pytest.raises(InputError, match="-page: knows heads that begin on row 0"):
        write_page(model, configuration, tmp_path / "page.html")
    monkeypatch.undo()
    monkeypatch.setattr("ntm.ntm.STOCK", Contents())
    monkeypatch.setattr("ntm.ntm.initial_memory", lambda *sizes, like: like.new_full(sizes, 0.5))
    with pytest.raises(InputError, match="-page: knows a memory that is INITIAL_VALUE everywhere at first"):
        write_page(model, configuration, tmp_path / "page.html")


def test_a_page_that_does_not_know_an_edit_says_so_or_brings_its_own_sequences(tmp_path, monkeypatch):
    model, configuration = shipped()
    record = json.loads(stock.RECORD.read_text())
    record["heads"]["Heads.controls"] = "edited in ntm/heads.py and in ntm/fused/controls.py"
    monkeypatch.setattr(stock, "RECORD", tmp_path / "stock.json")
    stock.RECORD.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"-page: experiment/page.html has the equations as they were before ntm/ was"):
        write_page(model, configuration, tmp_path / "page.html")
    monkeypatch.undo()
    assert '"samples": null' in page(model, configuration)
    monkeypatch.setattr("experiment.page.TASK_MARK", "of tasks/reverse.py before an edit")
    assert '"samples": [{"inputs"' in page(model, configuration)


def test_a_task_that_counts_wrong_bits_in_its_own_way_has_no_page(tmp_path, monkeypatch):
    model, configuration = shipped()
    monkeypatch.setattr(Reverse, "wrong_bits", lambda self, logits, batch: logits.sum((0, 2)), raising=False)
    with pytest.raises(InputError, match=r"-page: counts wrong bits, and reverse does so in a way of its own"):
        write_page(model, configuration, tmp_path / "page.html")


def test_a_machine_that_the_page_does_not_know_is_refused(tmp_path):
    model, configuration = feedforward()
    model.controller = torch.nn.RNNCell(2, 3)
    with pytest.raises(InputError, match=r"-page: cannot compare its equations .* controller is a RNNCell"):
        write_page(model, configuration, tmp_path / "page.html")


def test_a_page_of_fewer_rows_than_configured_says_so(tmp_path, capsys):
    model, configuration = feedforward()
    for rows, said in (256, False), (257, True):
        network = dataclasses.replace(configuration.network, memory_units=rows)
        write_page(model, dataclasses.replace(configuration, network=network), tmp_path / "page.html")
        assert ("it shows up to 256 rows of memory, and 257 are configured" in capsys.readouterr().out) == said


def test_a_task_without_a_docstring_is_said_by_its_name():
    @dataclass(frozen=True)
    class Lookup(Reverse):
        pass

    assert asks(Lookup(8)) == "Lookup"
    assert asks(Reverse(8)).startswith("Read L vectors of 8 random bits")
