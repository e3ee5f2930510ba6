"""The page of run folders: its numbers are those of the files, nothing in them is taken for HTML,
what is broken is named."""

import base64
import gzip
import importlib
import json
import math
import re
import shutil
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from runs import ledger, records

import zephyr
from zephyr.analysis.pairs import PairText
from zephyr.cli import main
from zephyr.report import page as page_module
from zephyr.report.figures import downsample
from zephyr.report.finish import write_report
from zephyr.report.page import write_html
from zephyr.report.samples import marked

# The panels of curves and the metrics that they draw, with the factor of their unit.
METRICS = {
    "loss": {"": ("loss", 1)},
    "accuracy": {"": ("rewards/accuracies", 100)},
    "margin": {"": ("rewards/margins", 1)},
    "rewards": {side: (f"rewards/{side}", 1) for side in ("chosen", "rejected")},
    "displacement": {side: (f"rewards/{side}", 10) for side in ("chosen", "rejected")},
    "grad-norm": {"": ("grad_norm", 1)},
    "update-ratio": {"": ("update_ratio", 1)},
    "learning-rate": {"": ("learning_rate", 1)},
    "throughput": {"": ("tokens_per_second", 1)},
    "packing": {"": ("packing_efficiency", 100)},
    "memory": {"": ("peak_memory_bytes", 2**-30)},
}


def write_run(folder: Path, lines: list[dict[str, object]], **config: object) -> Path:
    """A run folder by hand: config.yaml and metrics.jsonl."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": "m", "data": {"train": ["pairs.jsonl"]}, **config})
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def train(step: int, loss: float | None, **more: float | None) -> dict[str, object]:
    return {"step": step, "split": "train", "loss": loss, **more}


def page_of(*runs: Path, out: Path | None = None) -> str:
    out = out or runs[0] / "report.html"
    write_html(runs, out)
    return out.read_text()


def payload(page: str, name: str) -> str:
    """What `zephyr.unpack(name)` gives in the browser."""
    (packed,) = re.findall(f'data-payload="{name}">([^<]*)<', page)
    return gzip.decompress(base64.b64decode(packed)).decode()


def figures(page: str) -> dict[str, list[dict[str, object]]]:
    """The traces of each figure."""
    return {name: of["data"] for name, of in json.loads(payload(page, "figures")).items()}


def told(page: str) -> dict[tuple[str, str, int], float | None]:
    """The points of all curves: panel, name of the curve, step -> value."""
    found = {}
    for name, traces in figures(page).items():
        for trace in traces:
            if "epochs" in trace.get("meta", {}):
                assert len(trace["x"]) == len(trace["y"]) == len(trace["meta"]["epochs"])
                for step, value in zip(trace["x"], trace["y"]):
                    assert (name, trace["name"], step) not in found, "a point is drawn twice"
                    found[name, trace["name"], step] = value
    return found


def findings(page: str) -> dict[str, str]:
    """The status of each finding."""
    found = re.findall(r'class="finding (\w+)[^"]*" data-finding="(\w+)"', page)
    return {name: status for status, name in found}


def rows(page: str, title: str) -> dict[str, list[str]]:
    """The cells of the tables under a heading, by the first of their row."""
    section = re.split(r"<h[23]>", page.partition(f"{title}</h")[2], maxsplit=1)[0]
    return {
        unescape(name): [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", cells, re.DOTALL)]
        for name, cells in re.findall(
            r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', section, re.DOTALL
        )
    }


@pytest.fixture(scope="module")
def run(finished: Path) -> Path:
    return finished / "run"


@pytest.fixture(scope="module")
def written(run: Path) -> str:
    """The page that the run left."""
    return (run / "report.html").read_text()


def test_a_run_leaves_its_page(run: Path, written: str) -> None:
    """Both ranks of a real run have ended well, and the page says so. Fails where a script does not
    write it, or before the end; where digests come before what a person wants to know."""
    assert '<span class="badge good" id="state">finished</span>' in written
    assert "6 updates made" in written and "20 preference pairs" in written
    identity = json.loads((run / "checkpoints" / "step-6" / "state.json").read_text())["identity"]
    origin = rows(written, "Origin")
    for name in ("model", "data", "reference"):
        assert origin[f"SHA-256 of {name}"] == [identity[name]]
    places = [written.index(f'id="{name}"') for name in ("summary", "curves", "margins", "facts")]
    assert places == sorted(places) and written.index("SHA-256") > places[-1]
    assert "Before and after" not in written and "Alarms during training: none" in written
    assert findings(written).keys() == {"learned", "overfit", "chosen", "length", "flips", "rate"}


def test_every_point_is_a_value_of_the_file(run: Path, written: str) -> None:
    """All metrics that are drawn, of both splits, and no others. Fails for a lost or moved point, a
    wrong step, splits or sides mixed up, a wrong unit."""
    words = {"train": "train", "eval": "held-out"}
    wanted = {
        (panel, f"{words[split]} {side}".strip(), record["step"]): record[name] * scale
        for split in words
        for record in records(run, split)
        for panel, sides in METRICS.items()
        for side, (name, scale) in sides.items()
        if record.get(name) is not None
    }
    # Where all margins are 0, as at step 0, no response is preferred: there is no accuracy.
    ties = {key for key, value in wanted.items() if key[0] == "margin" and value == 0}
    assert ties
    for _, name, step_of in ties:
        assert wanted.pop(("accuracy", name, step_of)) == 0
    shown = {key: value for key, value in told(written).items() if value is not None}
    assert len(wanted) > 6 * 11 and shown.keys() == wanted.keys()
    assert shown == pytest.approx(wanted, rel=1e-5)


def test_distributions_are_those_of_the_ledger(run: Path, written: str) -> None:
    """The violins hold every margin of each pass, every pair is in the scatter plot, and its line
    is the regression. Fails where visits of two pairs or passes are mixed up."""
    visits: dict[str, list[dict[str, float]]] = {}
    for visit in sorted(ledger(run), key=lambda visit: visit["step"]):
        visits.setdefault(visit["id"], []).append(visit)

    def margin(visit: dict[str, float]) -> float:
        return visit["rewards/chosen"] - visit["rewards/rejected"]

    drawn = figures(written)
    (violin,) = drawn["margin-epoch"]
    for n in range(2):
        of_pass = [y for x, y in zip(violin["x"], violin["y"]) if x == str(n + 1)]
        assert sorted(of_pass) == pytest.approx(
            sorted(margin(of[n]) for of in visits.values()), 1e-4
        )
    points, line = drawn["length"]
    for name, x, y in zip(points["text"], points["x"], points["y"]):
        last = visits.pop(name)[-1]
        assert x == last["chosen_tokens"] - last["rejected_tokens"]
        assert y == pytest.approx(margin(last), rel=1e-3)
    assert not visits
    slope, intercept = np.polyfit(points["x"], points["y"], 1)
    assert line["y"] == pytest.approx(
        [slope * x + intercept for x in line["x"]], rel=1e-2, abs=1e-5
    )


def test_the_page_needs_nothing_else_and_is_well_formed(written: str) -> None:
    """Every tag is closed, no element loads anything, nothing names an address."""
    open_tags: list[str] = []
    void = {"meta", "link", "input", "br"}

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            for name, value in attributes:
                assert name != "src" and not name.startswith("on")
                assert name != "href" or str(value).startswith(("#", "data:,"))
            open_tags.extend([] if tag in void else [tag])

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Tags().feed(written)
    assert not open_tags and "http" not in written and "url(" not in written
    targets = set(re.findall(r'href="#([^"]+)"', written))
    assert targets <= set(re.findall(r' id="([^"]+)"', written)), "a link leads nowhere"


def test_what_is_missing_is_a_gap(tmp_path: Path) -> None:
    """A value that is null, and one that is not finite; a metric of two records alone. Fails where
    a gap is bridged, drawn as 0, or shifts what comes after it."""
    losses = [3.0, 2.0, None, 1.5, 1.0, math.nan, 0.5]
    page = page_of(
        write_run(
            tmp_path / "a",
            [
                train(step, loss, **({"grad_norm": 0.25} if step in (1, 4) else {}))
                for step, loss in enumerate(losses)
            ],
        )
    )
    of_loss, of_norm = figures(page)["loss"], figures(page)["grad-norm"]
    # 0 has no place on a logarithmic axis, which values have that span a factor of ten
    ratios = [train(n, 1.0, update_ratio=ratio) for n, ratio in enumerate((0.0, 0.1, 0.001))]
    page = page_of(write_run(tmp_path / "b", ratios))
    assert figures(page)["update-ratio"][0]["y"] == [None, 0.1, 0.001]
    assert of_loss[0]["y"] == [3.0, 2.0, None, 1.5, 1.0, None, 0.5]
    assert of_loss[0]["connectgaps"] is False and of_loss[0]["x"] == list(range(7))
    assert of_norm[0]["y"] == [None, 0.25, None, None, 0.25, None, None]


def test_thinning_keeps_extremes_gaps_and_ends() -> None:
    """Of 20,000 points, one peak, one pit and one gap among them. Fails where a stretch is
    averaged, or only every n-th point kept."""
    points = [(n, n / 10, math.sin(n / 900)) for n in range(20_000)]
    points[7_777], points[12_345], points[15_000] = (
        (7_777, 0.0, 50.0),
        (12_345, 0.0, -50.0),
        (15_000, 0.0, None),
    )
    kept = downsample(points, 300)
    assert len(kept) <= 300 and set(kept) <= set(points)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert {points[0], points[7_777], points[12_345], points[15_000], points[-1]} <= set(kept)
    assert downsample(points[:300], 300) == points[:300]


def test_runs_are_drawn_over_each_other(tmp_path: Path) -> None:
    """A sweep of two runs of one name: each curve in its colour in one figure, a button for each
    run, the key that differs told. Fails where runs of one name are taken for one, or only the last
    is drawn."""
    runs = [
        write_run(
            tmp_path / beta / "run",
            [train(0, 0.7, **{"rewards/chosen": 0.0}), train(10, loss)],
            beta=float(beta),
            run={"dir": beta},
        )
        for beta, loss in (("0.1", 0.5), ("0.01", 0.6))
    ]
    page = page_of(*runs, out=tmp_path / "sweep.html")
    names = [str(run) for run in runs]
    of_loss = figures(page)["loss"]
    assert [(t["name"], t["y"], t["meta"]["run"]) for t in of_loss] == [
        (f"train {names[0]}", [0.7, 0.5], 0),
        (f"train {names[1]}", [0.7, 0.6], 1),
    ]
    assert len({trace["line"]["color"] for trace in of_loss}) == 2
    assert [int(n) for n in re.findall(r'aria-pressed="true" data-run="(\d)"', page)] == [0, 1]
    assert rows(page, "Config")["beta"] == ["0.1", "0.01"]
    assert "<b>beta</b> (0.1 / 0.01)" in page and "run.dir" not in page.partition("Config</h3>")[0]


def test_nothing_is_taken_for_html(tmp_path: Path) -> None:
    """A script in every text that comes from outside: name of the run, config, status, data, pair,
    prompt, answer. Fails for one that is not escaped, or is lost."""
    evil = "</script><script>alert(1)</script>&'\""
    run = write_run(
        tmp_path / "<b>run",
        [train(0, 0.7)],
        evil=evil,
        beta=0.1,
        data={"train": [evil]},
        model=evil,
    )
    (run / "status.json").write_text(json.dumps({"code": 2, "message": evil}))
    (run / "data.json").write_text(
        json.dumps({"train": {"skipped": [{"place": "a:1", "reason": evil}], evil: 1}})
    )
    prompt = [{"role": "user", "content": evil}]
    lines = [
        {"step": step, "prompt_id": evil, "prompt": prompt, "text": f"{evil} {step}"}
        for step in (0, 3, 5)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist([visit(f"{evil}{n}", n) for n in range(8)]), step(run, 1))
    page = page_of(run)
    own = re.sub(r"(<script[^>]*>)[^<]*</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    markup = page[: page.index('<script type="text/plain" data-payload="figures"')]
    assert "alert" in markup and "<script>alert" not in page and "<b>run" not in page
    plain = unescape(re.sub(r"</?(?:ins|del)>", "", own))
    # config twice and in the story, status, reason, key of data, prompt, three answers
    assert plain.count(evil) >= 10
    assert [p["text"] for p in figures(page)["length"][:1]] == [[f"{evil}{n}" for n in range(8)]]


def step(run: Path, number: int) -> Path:
    return run / "pairs" / f"step-{number}.parquet"


def visit(name: str, n: int, **more: object) -> dict[str, object]:
    """A row of the ledger."""
    return {
        "id": name,
        "step": n,
        "epoch": 0.0,
        "loss": 0.7,
        "rewards/chosen": 0.01 * n,
        "rewards/rejected": 0.0,
        "logps/chosen": -5.0,
        "logps/rejected": -5.0,
        "prompt_tokens": 3,
        "chosen_tokens": 4 + n,
        "rejected_tokens": 5,
        **more,
    }


def test_samples_alarms_and_what_was_left_out(tmp_path: Path) -> None:
    """Answers before and after with their differences marked, the win rate's interval, stretches of
    alarms, the first of many bad rows. Fails where an answer is another step's, an alarm that
    stopped goes on, or a long list makes the page long."""
    raised = {"alarms/chosen_falls": 1}
    win_rate = {"win_rate": 0.625, "win_rate/low": 0.5, "win_rate/high": 0.75, "win_rate/n": 8}
    run = write_run(
        tmp_path / "a",
        [
            train(0, 0.7),
            train(1, 0.6, **raised),
            train(2, 0.5, **raised),
            train(3, 0.5),
            train(4, 0.5, **raised),
            {"step": 5, "split": "eval", **win_rate},
        ],
        beta=0.1,
    )
    answers = [
        {"step": n, "prompt_id": prompt, "prompt": f"Why {prompt}?", "text": text}
        for prompt, texts in {
            "p": ["It is so.", "never shown?", "It is <not> so."],
            "q": ["Same."] * 3,
        }.items()
        for n, text in zip((0, 3, 5), texts)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    skipped = [{"place": f"pairs.jsonl:{n}", "reason": "no chosen"} for n in range(99)]
    (run / "data.json").write_text(json.dumps({"train": {"skipped": skipped}}))
    page = page_of(run)
    assert "chosen_falls (train 1 to 2, train 4): chosen responses lost" in page
    assert findings(page)["alarms"] == "bad" and "Alarms during training" not in page
    first, second = re.findall(r'<article class="sample">(.*?)</article>', page, re.DOTALL)
    cells = re.findall(r'<p class="answer">(.*?)</p>', first)
    assert cells == ["It is so.", "It is <ins>&lt;not&gt; </ins>so."]
    assert "<dt> step 3</dt><dd>never shown?</dd>" in first and "unchanged" in second
    assert "1 of 2 answers changed" in page and "62.5 % of 8 (95 % interval 50.0 to 75.0 %" in page
    assert [t["y"] for t in figures(page)["win-rate"]] == [[50], [75], [62.5]]
    assert rows(page, "Data")["train.skipped"] == [
        "".join(f"pairs.jsonl:{n}: no chosen\n" for n in range(20)) + "... 99 in all"
    ]
    assert 'id="pairs"' not in page and "Preflight" not in page


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    """A last line that is being written is left out, and that is said; a run without a step, and
    one that stopped at a loss that is not finite, have their pages too."""
    run = write_run(tmp_path / "a", [train(0, 0.7)])
    (run / "status.json").write_text(json.dumps({"code": None, "message": "step 1 of 9"}))
    page = page_of(run)
    assert "half written" not in page and "running: step 1 of 9" in page
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "split": "train", "lo')
    page = page_of(run)
    assert told(page) == {("loss", "train", 0): 0.7} and "half written, and left out" in page
    (run / "metrics.jsonl").unlink()
    assert "0 updates made" in page_of(run) and "<figure" not in page_of(run)
    stopped = write_run(tmp_path / "b", [train(0, 0.7), train(1, None, **{"alarms/non_finite": 1})])
    page = page_of(stopped)
    assert "1 update made" in page and "non_finite (train 1)" in page


@pytest.mark.long
def test_a_large_run_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 pairs, three visits each, with texts of some hundred characters: under 5 MB, and the
    page says that points were sampled. Fails where every pair is drawn, or every text kept."""
    rng, count = np.random.default_rng(0), 60_000
    run = write_run(tmp_path / "a", [train(n, 0.7) for n in range(0, 5600, 10)], beta=0.1)
    (run / "pairs").mkdir()
    words = np.array(
        [f"{word}{n}" for word in ("sky", "river", "letter", "week") for n in range(99)]
    )
    written = words[rng.integers(len(words), size=(count, 3, 40))].tolist()
    texts = {
        f"{n:064x}": PairText(*map(" ".join, of_pair), f"source {n % 5}")
        for n, of_pair in enumerate(written)
    }
    for epoch in range(3):
        drawn = {
            name: rng.normal(size=count)
            for name in ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen")
        }
        table = {
            "id": list(texts),
            "step": np.arange(count) // 32 + epoch * 1875,
            "epoch": np.full(count, float(epoch)),
            **drawn,
            "logps/rejected": drawn["logps/chosen"] - 1,
            **{
                f"{side}_tokens": rng.integers(5, 900, count)
                for side in ("prompt", "chosen", "rejected")
            },
        }
        pq.write_table(pa.table(table), step(run, (epoch + 1) * 1875))
    monkeypatch.setattr(page_module, "read_texts", lambda run: (texts, []))
    page = page_of(run)
    assert len(page.encode()) < 5_000_000
    assert (
        "2,500 pairs of each run, sampled" in page and len(figures(page)["length"][0]["x"]) == 2500
    )


def test_a_finished_run_never_fails_for_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours becomes one line that names it. Fails where it ends a run after days."""
    run, said = write_run(tmp_path / "a", [train(0, 0.7)]), []

    def broken(*_: object) -> str:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(page_module, "render_page", broken)
    write_report(run, said.append)
    assert len(said) == 1 and "ZeroDivisionError: division by zero" in said[0]
    with pytest.raises(ZeroDivisionError):  # the command shows where it happened
        write_html([run], tmp_path / "x.html")


def test_a_run_finishes_without_plotly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training scripts import no Plotly; where there is none, the page is one line of the log.
    Fails where a machine without Plotly can't train, or ends without its export."""
    run, said = write_run(tmp_path / "a", [train(0, 0.7)]), []
    monkeypatch.setattr(zephyr, "report", zephyr.report)
    for name in [name for name in sys.modules if name.startswith(("zephyr.report", "plotly"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)  # every import of it fails
    importlib.import_module("zephyr.report.finish").write_report(run, said.append)
    assert len(said) == 1 and "plotly" in said[0] and not (run / "report.html").exists()


@pytest.mark.parametrize(
    "file,content,says",
    [
        (
            "metrics.jsonl",
            b'{"step": 0, "split": "train"}\n{"step": 1, "spl\n{"step": 2, "split": "train"}\n',
            "metrics.jsonl:2: no record",
        ),
        ("metrics.jsonl", b'{"split": "train"}\n', "metrics.jsonl:1: no record"),
        ("metrics.jsonl", b'{"step": 0, "split": "test"}\n', "metrics.jsonl:1: no record"),
        (
            "metrics.jsonl",
            b'{"step": 0, "split": "train", "loss": "0.7"}\n',
            "metrics.jsonl:1: no record",
        ),
        ("metrics.jsonl", b"[]\n", "metrics.jsonl:1: no record"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl:1: no record"),
        ("samples.jsonl", b'{"step": 0}\n', "samples.jsonl:1: no sample"),
        ("samples.jsonl", b'{"step"\n', "samples.jsonl:1"),
        ("data.json", b"[1]", "data.json: a mapping is wanted"),
        ("status.json", b"{", "status.json: a mapping is wanted"),
        ("config.yaml", b"a: [", "config.yaml: a mapping is wanted"),
        ("pairs/step-1.parquet", b"PAR1", "step-1.parquet: visits of pairs"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes, says: str
) -> None:
    """One line with the file, and the line in it; code 2; no page. At a run's end it is said, and
    the run is finished all the same."""
    run, said = write_run(tmp_path / "a", []), []
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_bytes(content)
    assert main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (run / "report.html").exists()
    write_report(run, said.append)
    assert file == "status.json" or (len(said) == 1 and says in said[0])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page's path is printed. Folders that are no runs, several runs without a place, a place
    that is no page or can't be written: code 2 and one line. Fails where a page is written over a
    run's own file."""
    runs = [str(write_run(tmp_path / name, [train(0, 0.7)])) for name in "ab"]
    assert main(["report", runs[0]]) == 0 and capsys.readouterr().out == f"{runs[0]}/report.html\n"
    assert (
        main(["report", *runs, "--out", str(tmp_path / "both.html")]) == 0
        and (tmp_path / "both.html").exists()
    )
    (tmp_path / "folder.html").mkdir()
    capsys.readouterr()
    for arguments, says in (
        ([str(tmp_path)], f"{tmp_path}/config.yaml: No such file"),
        (runs, "--out"),
        ([runs[0], "--out", f"{runs[0]}/metrics.jsonl"], ".html"),
        ([runs[0], "--out", f"{tmp_path}/folder.html"], "folder.html"),
        ([runs[0], "--out", f"{tmp_path}/none/x.html"], f"{tmp_path}/none"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    assert json.loads((Path(runs[0]) / "metrics.jsonl").read_text())["loss"] == 0.7
    assert sorted(path.name for path in Path(runs[0]).iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
    ]
    said: list[str] = []
    shutil.rmtree(runs[0])
    write_report(Path(runs[0]), said.append)
    assert len(said) == 1 and "no report.html" in said[0]


def test_an_answer_that_repeats_itself_is_not_compared() -> None:
    """Its difference to another one takes minutes. Fails where only long answers are left out."""
    before, after = "the cat " * 400, "the dog the cat " * 200
    assert marked(before, after) == (before, after)
    assert "<del>" in marked("the cat " * 20, "the dog " * 20)[0]


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report", "--help"])
    assert end.value.code == 0 and "example: zephyr report" in " ".join(
        capsys.readouterr().out.split()
    )
