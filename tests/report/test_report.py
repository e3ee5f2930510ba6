"""The page of run folders: its numbers are those of the files, nothing in them is taken for HTML,
what is broken is named."""

import json
import math
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from runs import ledger, records

from zephyr.cli import main
from zephyr.report import write_html, write_report
from zephyr.report.chart import (
    HEIGHT,
    WIDTH,
    Curve,
    axis_ticks,
    chart,
    downsample,
    format_number,
)
from zephyr.report.page import CHARTS


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


def told(page: str) -> dict[tuple[str, int], str]:
    """What the points tell: name of the curve and step -> value."""
    found = re.findall(r"<title>([^<]*), step (\d+): ([^<]*)</title>", page)
    assert len({(name, step) for name, step, _ in found}) == len(found), "a point is drawn twice"
    return {(unescape(name), int(step)): value for name, step, value in found}


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the tables under a heading, without their heads."""
    section = re.split(r"<h[23]>", page.partition(f"{title}</h")[2], maxsplit=1)[0]
    return [
        [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(<td>.*?)</tr>", section, re.DOTALL)
    ]


@pytest.fixture(scope="module")
def run(finished: Path) -> Path:
    return finished / "run"


def test_a_run_leaves_its_page(run: Path) -> None:
    """Both ranks of a real run have ended well, and the page says so. Fails where a script does not
    write it, or before the end."""
    page = (run / "report.html").read_text()
    facts = dict(rows(page, "Run"))
    assert (facts["status"], facts["updates"], facts["method"]) == (
        "finished (code 0)",
        "6",
        "dDPO",
    )
    identity = json.loads((run / "checkpoints" / "step-6" / "state.json").read_text())["identity"]
    assert [facts[f"SHA-256 of {name}"] for name in ("model", "data", "reference")] == [
        identity[n] for n in ("model", "data", "reference")
    ]
    assert "Samples</h2>" not in page and "None was raised" not in page.partition("Curves</h2>")[2]


def test_every_point_is_a_value_of_the_file(run: Path) -> None:
    """All metrics that are drawn, of both splits, and no others. Fails for a lost or moved point, a
    wrong step, splits mixed up."""
    wanted = {
        (f"run {split} {metric}", record["step"]): format_number(record[metric])
        for split in ("train", "eval")
        for record in records(run, split)
        for group in CHARTS
        for metric in group
        if record.get(metric) is not None
    }
    shown, start = told((run / "report.html").read_text()), ("run train update_ratio", 0)
    assert (
        len(wanted) > 6 * 10 and wanted.pop(start) == "0" and shown.pop(start, "0") == "0"
    )  # no place on a logarithmic axis
    assert shown == wanted


def test_the_last_numbers_are_those_of_the_last_records(run: Path) -> None:
    """Fails where train and eval are mixed up, or an earlier record is shown."""
    shown = {name: of for name, *of in rows((run / "report.html").read_text(), "Last numbers")}
    for column, split in enumerate(("train", "eval")):
        last = {
            name: format_number(value)
            for name, value in records(run, split)[-1].items()
            if name != "split"
        }
        assert {name: of[column] for name, of in shown.items() if of[column] != "-"} == last


def test_pairs_are_ranked_by_the_ledger(run: Path) -> None:
    """Every pair with its visits in order, ranked by the last one's loss, and by the fall of the
    margin. Fails where visits of two pairs, or of two parts of the ledger, are mixed up, or the
    first visit decides."""
    visits: dict[str, list[dict[str, float]]] = {}
    for visit in sorted(ledger(run), key=lambda visit: visit["step"]):
        visits.setdefault(visit["id"], []).append(visit)
    margins = {
        name: [v["rewards/chosen"] - v["rewards/rejected"] for v in of]
        for name, of in visits.items()
    }
    page = (run / "report.html").read_text()
    hardest, fallen = (
        rows(page, "highest loss at the last visit"),
        rows(page, "margin fell most from its highest"),
    )
    assert len(visits) == 20 and [row[0] for row in hardest] == sorted(
        visits, key=lambda name: -visits[name][-1]["loss"]
    )
    for name, steps, losses, of_margins, tokens in (*hardest, *fallen):
        assert steps == " → ".join(str(v["step"]) for v in visits[name]) and "→" in steps
        assert losses == " → ".join(format_number(v["loss"]) for v in visits[name])
        assert of_margins == " → ".join(map(format_number, margins[name]))
        assert tokens == " / ".join(
            str(visits[name][0][f"{side}_tokens"]) for side in ("prompt", "chosen", "rejected")
        )
    falls = {name: max(of) - of[-1] for name, of in margins.items()}
    assert [row[0] for row in fallen] == [
        name for name in sorted(falls, key=lambda name: -falls[name]) if falls[name] > 0
    ]


def test_the_page_needs_nothing_else_and_is_well_formed(run: Path) -> None:
    """Every tag is closed, every SVG is XML with all it draws inside its frame, nothing is loaded
    from elsewhere."""
    page, open_tags = (run / "report.html").read_text(), []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag != "script" and not {"src", "href"} & dict(attributes).keys()
            open_tags.extend([] if tag in ("meta", "path", "circle") else [tag])

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("path", "circle"):
                assert open_tags.pop() == tag

    Tags().feed(page)
    assert not open_tags and "http" not in page and "url(" not in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 10
    for drawing in drawings:
        for circle in ElementTree.fromstring(drawing).iter("circle"):
            assert 0 <= float(circle.get("cx")) <= WIDTH and 0 <= float(circle.get("cy")) <= HEIGHT


def test_what_is_missing_is_a_gap(tmp_path: Path) -> None:
    """Two lines around a value that is null, and around one that is not finite; a metric of two
    records alone. Fails where a gap is bridged, drawn as 0, or shifts what comes after it."""
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
    assert told(page) == {
        ("a train loss", n): format_number(loss)
        for n, loss in enumerate(losses)
        if loss is not None and loss == loss
    } | {("a train grad_norm", n): "0.25" for n in (1, 4)}
    of_loss, of_norm = re.findall(r'<g class="curve"[^>]*><path d="([^"]*)"', page)
    assert [part.count("L") for part in of_loss.split("M")[1:]] == [2, 2, 1] and of_norm.count(
        "M"
    ) == 2


def test_thinning_keeps_extremes_gaps_and_ends() -> None:
    """Of 20,000 points, one peak, one pit and one gap among them. Fails where a stretch is
    averaged, or only every n-th point kept."""
    points = [(n, math.sin(n / 900)) for n in range(20_000)]
    points[7_777], points[12_345], points[15_000] = (7_777, 50.0), (12_345, -50.0), (15_000, None)
    kept = downsample(points)
    assert (
        len(kept) <= 300
        and set(kept) <= set(points)
        and kept == sorted(kept, key=lambda point: point[0])
    )
    assert {points[0], points[7_777], points[12_345], points[15_000], points[-1]} <= set(kept)
    assert downsample(points[:300]) == points[:300]


def test_axes() -> None:
    """Round numbers from end to end, a few of them, on either scale; higher is further up. Fails
    where rounding loses an end, or y is not turned."""
    assert axis_ticks(0.26, 0.73) == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7]) and axis_ticks(
        -3, 3
    ) == [
        -3,
        -2,
        -1,
        0,
        1,
        2,
        3,
    ]
    for low, high in ((-0.1, 1.1), (-3.2, 1.3), (-8.0, 4.0)):
        logs = axis_ticks(low, high, log=True)
        assert 3 <= len(logs) <= 10 and all(
            low <= t <= high and f"{10**t:e}"[:8] in ("1.000000", "2.000000", "5.000000")
            for t in logs
        )
    for low, high in ((0.0, 1e-9), (123456.0, 123457.0), (-1e12, 1e12), (5.0, 5.0001)):
        assert 3 <= len(axis_ticks(low, high)) <= 8 and all(
            low <= t <= high for t in axis_ticks(low, high)
        )
    for log in (False, True):
        heights = [
            float(y)
            for y in re.findall(
                r'cy="([^"]*)"',
                chart([Curve("c", "red", False, [(0, 0.01), (1, 1.0), (2, 0.1)])], log),
            )
        ]
        assert heights[0] > heights[2] > heights[1]
        assert (heights[0] - heights[2] == pytest.approx(heights[2] - heights[1], abs=0.2)) is log
    assert chart([Curve("c", "red", False, [(0, None)])]) == "" and 'cx="' in chart(
        [Curve("c", "red", True, [(7, 2.0)])]
    )


def test_runs_are_drawn_over_each_other(tmp_path: Path) -> None:
    """A sweep of two runs of one name: each curve in its colour in one figure, the key that differs
    told. Fails where runs of one name are taken for one, or only the last is drawn."""
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
    assert told(page) == {
        (f"{names[0]} train loss", 0): "0.7",
        (f"{names[0]} train loss", 10): "0.5",
        (f"{names[1]} train loss", 0): "0.7",
        (f"{names[1]} train loss", 10): "0.6",
        **{(f"{name} train rewards/chosen", 0): "0" for name in names},
    }
    figures = page.split("<figure>")[1:]
    colours = re.findall(r'<g class="curve" stroke="(#\w+)"', figures[0])
    assert (
        len(figures) == 2
        and len(set(colours)) == 2
        and all(f"background:{colour}" in page for colour in colours)
    )
    facts = {name: of for name, *of in rows(page, "Run")}
    assert (
        facts["beta"] == ["0.1", "0.01"] and "run.dir" not in facts and "optim.lr_peak" not in facts
    )


def test_nothing_is_taken_for_html(tmp_path: Path) -> None:
    """A script in every text that comes from outside: name of the run, config, status, data, pair,
    prompt, answer. Fails for one that is not escaped, or is lost."""
    evil = "<script>alert(1)</script>&'\""
    run = write_run(tmp_path / "<b>run", [train(0, 0.7)], evil=evil)
    (run / "status.json").write_text(json.dumps({"code": 2, "message": evil}))
    (run / "data.json").write_text(
        json.dumps({"train": {"skipped": [{"place": "a:1", "reason": evil}], evil: 1}})
    )
    prompt = [{"role": "user", "content": evil}]
    (run / "samples.jsonl").write_text(
        json.dumps({"step": 0, "prompt_id": evil, "prompt": prompt, "text": evil})
    )
    (run / "pairs").mkdir()
    visit = {
        "id": evil,
        "step": 0,
        "loss": 0.7,
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "prompt_tokens": 1,
        "chosen_tokens": 1,
        "rejected_tokens": 1,
    }
    pq.write_table(pa.Table.from_pylist([visit]), run / "pairs" / "step-1.parquet")
    page = page_of(run)
    assert "<script" not in page and "<b>" not in page and unescape(page).count(evil) == 8


def test_samples_alarms_and_what_was_left_out(tmp_path: Path) -> None:
    """Answers side by side by evaluation with the win rate's interval, stretches of alarms, the
    first of many bad rows. Fails where an answer is in another step's column, an alarm that stopped
    goes on, or a long list makes the page long."""
    raised = {"alarms/chosen_falls": 1}
    run = write_run(
        tmp_path / "a",
        [
            train(0, 0.7),
            train(1, 0.6, **raised),
            train(2, 0.5, **raised),
            train(3, 0.5),
            train(4, 0.5, **raised),
            {
                "step": 5,
                "split": "eval",
                "win_rate": 0.625,
                "win_rate/low": 0.5,
                "win_rate/high": 0.75,
                "win_rate/n": 8,
            },
        ],
        beta=0.1,
    )
    answers = [
        {"step": step, "prompt_id": prompt, "prompt": "Why?", "text": f"{prompt}{step}"}
        for step in (0, 5)
        for prompt in "pq"
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    skipped = [{"place": f"pairs.jsonl:{n}", "reason": "no chosen"} for n in range(99)]
    (run / "data.json").write_text(json.dumps({"train": {"skipped": skipped}}))
    page = page_of(run)
    assert rows(page, "Alarms") == [["alarms/chosen_falls", "train 1 to 2\ntrain 4"]]
    assert [row[1:] for row in rows(page.replace("<h3>a</h3>", ""), "Samples")] == [
        ["p0", "p5"],
        ["q0", "q5"],
    ]
    assert "<th>step 0</th><th>step 5\nwin rate 0.625 [0.5, 0.75] of 8</th>" in page
    ((name, told_of),) = rows(page, "Data: read, cut and left out")
    assert (
        name == "train.skipped"
        and told_of == "".join(f"pairs.jsonl:{n}: no chosen\n" for n in range(20)) + "... 99 in all"
    )
    assert "Pairs</h2>" not in page and "Preflight" not in page


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    """A last line that is being written is left out, and that is said; a run without a step, and
    one that stopped at a loss that is not finite, have their pages too."""
    run = write_run(tmp_path / "a", [train(0, 0.7)])
    assert "half written" not in page_of(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "split": "train", "lo')
    page = page_of(run)
    assert told(page) == {("a train loss", 0): "0.7"} and "its last line is half written" in page
    (run / "metrics.jsonl").unlink()
    assert dict(rows(page_of(run), "Run"))["updates"] == "0" and "<figure>" not in page_of(run)
    stopped = write_run(tmp_path / "b", [train(0, 0.7), train(1, None, **{"alarms/non_finite": 1})])
    page = page_of(stopped)
    assert dict(rows(page, "Run"))["updates"] == "1" and rows(page, "Alarms") == [
        ["alarms/non_finite", "train 1"]
    ]


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


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report", "--help"])
    assert end.value.code == 0 and "example: zephyr report" in " ".join(
        capsys.readouterr().out.split()
    )
