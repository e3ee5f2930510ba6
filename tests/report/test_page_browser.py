"""The page of a run in headless Chromium: what a person does with it, and what it must not do."""

import json
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from browsing import skip_without_browser

from zephyr.report.page import write_html

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
EVIL = '<img src=x onerror="window.hurt=1"></script><script>window.hurt=1</script>'
READY = "return document.documentElement.dataset.ready === 'yes'"


def write_run(folder: Path, scale: float) -> Path:
    """A run folder by hand, with a script in every text."""
    (folder / "pairs").mkdir(parents=True)
    config = {"model": EVIL, "data": {"train": [EVIL]}, "beta": 0.1, "run": {"dir": EVIL}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    records: list[dict[str, object]] = []
    for step in range(0, 40, 2):
        loss = 0.7 - 0.01 * step * scale + (0.05 if step % 4 else 0)
        values = {"loss": loss, "grad_norm": 10.0 ** (step % 3), "rewards/accuracies": 0.7}
        rewards = {"rewards/chosen": 0.01 * step, "rewards/rejected": -0.02 * step}
        records.append({"step": step, "split": "train", "epoch": step / 20, **values, **rewards})
    for step in (20, 40):
        values = {"loss": 0.6, "rewards/accuracies": 0.7, "pairs": 50}
        records.append({"step": step, "split": "eval", "epoch": step / 20, **values})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    samples = [
        {"step": step, "prompt_id": "p", "prompt": EVIL, "text": f"{EVIL} {'word ' * 40}{step}"}
        for step in (0, 40)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    visits = [
        {
            "id": f"{EVIL}{n}",
            "step": 20 * epoch + n,
            "epoch": float(epoch),
            "loss": 0.6,
            "rewards/chosen": 0.01 * n * (epoch + 1),
            "rewards/rejected": -0.01 * (n % 5),
            "logps/chosen": -9.0,
            "logps/rejected": -9.0,
            "prompt_tokens": 3,
            "chosen_tokens": 9 + n,
            "rejected_tokens": 12,
        }
        for epoch in range(2)
        for n in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(visits), folder / "pairs" / "step-40.parquet")
    return folder


class Page:
    """A page of two runs in a browser."""

    def __init__(self, driver: "Chrome", path: Path) -> None:
        self.driver, self.path = driver, path

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> object:
        """The value of a script once it is true."""
        for _ in range(600):
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def wait_for(self, figure: str, condition: str) -> None:
        """Wait for a condition of `plot`, the element of a figure."""
        self.wait(
            f"const plot = document.querySelector(`[data-figure='{figure}']`); return {condition}"
        )

    def set(self, id: str, value: object, event: str = "change") -> None:
        """Give a control a value, as a person does."""
        self.run(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1]; "
            "field.dispatchEvent(new Event(arguments[2]))",
            id,
            value,
            event,
        )

    def open(self, width: int = 1400, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.emulate(scheme)
        self.driver.get(self.path.as_uri())
        self.wait(READY)

    def emulate(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def traces(self, figure: str) -> list[dict[str, Any]]:
        """The visible traces of a figure as they are drawn."""
        return self.run(
            "return document.querySelector(`[data-figure='${arguments[0]}']`).data"
            ".filter((trace) => trace.visible !== false)"
            ".map(({name, x, y, line}) => ({name, x, y, color: line?.color}))",
            figure,
        )

    def range_of(self, figure: str) -> list[float]:
        return self.run(
            "return document.querySelector(`[data-figure='${arguments[0]}']`).layout.xaxis.range",
            figure,
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    skip_without_browser()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("page")
    runs = [write_run(folder / name, scale) for name, scale in (("one", 1.0), ("two", 0.5))]
    write_html(runs, folder / "page.html")
    settings = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        settings.add_argument(flag)
    settings.binary_location = shutil.which("chromium") or ""
    settings.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=settings, service=Service(shutil.which("chromedriver")))
    opened = Page(driver, folder / "page.html")
    opened.open()
    yield opened
    driver.quit()


def test_nothing_is_fetched_run_or_logged(page: Page) -> None:
    """A script in every text stays text; the browser asks for no address but the page's own, and
    logs no error. Fails for a text that is taken for HTML by Python, by page.js or by Plotly."""
    events = [
        json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")
    ]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert page.path.as_uri() in asked
    elsewhere = [url for url in asked if not url.startswith(("data:", "blob:", "chrome", "about:"))]
    assert set(elsewhere) == {page.path.as_uri()}
    errors = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == [] and page.run("return window.hurt") is None
    assert page.run("return document.querySelector('#samples h4').innerText").endswith(EVIL)
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page.run("return document.querySelectorAll('.main-svg').length") > 10


def test_zoom_is_shared(page: Page) -> None:
    """Zooming one curve zooms all curves, and tells the range; a typed range does so without a
    mouse; reset gives all steps back; distributions stay. Fails where one panel is forgotten."""
    page.run(
        "return window.Plotly.relayout(document.querySelector(`[data-figure='loss']`), "
        "{'xaxis.range[0]': 10, 'xaxis.range[1]': 20})"
    )
    page.wait("return document.querySelector('#from').value === '10'")
    page.wait_for("rewards", "plot.layout.xaxis.range?.[1] === 20")
    assert page.range_of("grad-norm") == [10, 20] and page.range_of("length") != [10, 20]
    page.set("from", 8)
    page.set("to", 4)  # turned round
    page.wait_for("rewards", "plot.layout.xaxis.range[1] === 8")
    assert page.range_of("loss") == [4, 8]
    low, high = page.run(
        "return document.querySelector(`[data-figure='rewards']`).layout.yaxis.range"
    )
    assert -0.2 < low < -0.16 and 0.08 < high < 0.12  # rewards of steps 4 to 8
    page.run("document.querySelector('#reset').click()")
    page.wait_for("rewards", "plot.layout.xaxis.range[1] > 30")
    assert page.range_of("loss")[1] > 30


def roughness(values: list[float]) -> float:
    """The largest step from a value to the next."""
    return max(abs(after - before) for before, after in pairwise(values))


def test_smoothing_and_the_axis(page: Page) -> None:
    """A smoothed curve beside each raw train curve, with less spread; held-out ones stay as they
    are. The axis can be epochs. Fails where raw values are overwritten."""
    before = page.traces("loss")
    page.set("smoothing", 0.9, "input")
    page.wait_for("loss", "plot.data.length === 6")
    after = {trace["name"]: trace for trace in page.traces("loss")}
    assert [after.pop(trace["name"]) for trace in before] == before
    assert after.keys() == {"train one, smoothed", "train two, smoothed"}
    smoothed, raw = after["train one, smoothed"]["y"], before[0]["y"]
    assert smoothed[0] == pytest.approx(raw[0]) and roughness(smoothed) < roughness(raw)
    page.set("smoothing", 0, "input")
    page.set("axis", "epoch")
    page.wait_for("rewards", "plot.layout.xaxis.title.text === 'epoch'")
    assert page.traces("loss")[0]["x"][-1] == pytest.approx(1.9)
    page.set("axis", "step")
    page.wait_for("rewards", "plot.layout.xaxis.title.text === 'step'")


def test_the_legend_hides_a_run_everywhere(page: Page) -> None:
    """A click on a run's button takes it out of curves and distributions, one on a split out of
    curves; a second click brings it back. Fails where a figure has a legend of its own."""

    def named(figure: str) -> set[str]:
        return {trace["name"] for trace in page.traces(figure)}

    chip = "document.querySelector(`[data-run='1']`)"
    split = "document.querySelector(`[data-split='train']`)"
    page.run(f"{chip}.click()")
    page.wait_for("rewards", "plot.data.some((trace) => trace.visible === false)")
    assert page.run(f"return {chip}.getAttribute('aria-pressed')") == "false"
    assert named("loss") == {"train one", "held-out one"}
    assert named("margin-epoch") == {"one"} and named("length") == {"one", "one regression"}
    page.run(f"{split}.click()")
    page.wait_for("rewards", "plot.data.every((trace) => trace.visible === false)")
    assert named("loss") == {"held-out one"} and named("margin-epoch") == {"one"}
    before = page.run(
        "const all = document.querySelector(`[data-figure='grad-norm']`)._fullLayout;"
        "return [all.yaxis.range, all.annotations.map((note) => note.text)]"
    )
    assert before[0][0] > -1 and before[0][1] < 3 and "legend" in before[1][0]
    page.run(f"{chip}.click(); {split}.click()")
    page.wait_for("rewards", "plot.data.every((trace) => trace.visible !== false)")
    assert named("loss") == {"train one", "held-out one", "train two", "held-out two"}


def test_reset_gives_the_first_page_back(page: Page) -> None:
    """Smoothing, axis, range and legend, in the controls and in the figures. Fails where one of
    them stays."""
    first = page.traces("loss")
    page.set("smoothing", 0.9, "input")
    page.set("axis", "epoch")
    page.set("from", 0.5)
    page.set("to", 1)
    page.run("document.querySelector(`[data-split='eval']`).click()")
    page.wait_for("loss", "plot.data.some((trace) => trace.visible === false)")
    page.run("document.querySelector('#reset').click()")
    page.wait_for("loss", "plot.data.every((trace) => trace.visible !== false)")
    page.wait_for("loss", "plot.layout.xaxis.title.text === 'step'")
    assert page.traces("loss") == first
    values = "['smoothing', 'axis', 'from', 'to'].map((id) => document.getElementById(id).value)"
    assert page.run(f"return {values}") == ["0", "step", "", ""]
    assert page.run("return document.querySelectorAll('.chip[aria-pressed=false]').length") == 0


def test_figures_fit_the_paper(page: Page) -> None:
    """In the same task as the event, since a print waits for nothing, every figure is as narrow as
    a column of A4, and after the print as wide as its column of the page again. Fails where the
    widest figure makes the browser shrink all pages, and where only the first figure is drawn."""
    widths = "[...document.querySelectorAll('.plot .main-svg')].map((svg) => svg.clientWidth)"
    before = page.run(f"return {widths}")
    printed = page.run(f"window.dispatchEvent(new Event('beforeprint')); return {widths}")
    assert max(before) > 1000 and set(printed) == {330, 690}
    page.run("window.dispatchEvent(new Event('afterprint'))")
    page.wait(f"return JSON.stringify({widths}) === '{json.dumps(before, separators=(',', ':'))}'")


def test_dark_and_narrow(page: Page) -> None:
    """In the dark scheme, ground and curves have other colours, also when it changes while the page
    is open. At 420 px nothing makes the page scroll sideways, and columns stand below each other.
    Fails for a word, a table or a figure that is too wide."""
    text = "return getComputedStyle(document.body).color"
    light = (page.traces("loss")[0]["color"], page.run(text))
    page.emulate("dark")
    page.wait_for("rewards", "plot.data[0].line.color !== '#2456d6'")
    dark = (page.traces("loss")[0]["color"], page.run(text))
    assert light[0] == "#2456d6" and dark[0] == "#82a7ff" and light[1] != dark[1]
    page.open(width=420)
    assert page.run("return document.documentElement.scrollWidth") <= 420
    lefts = page.run(
        "return [...document.querySelectorAll('figure')].map((f) => f.getBoundingClientRect().left)"
    )
    assert len(lefts) > 5 and len(set(lefts)) == 1
