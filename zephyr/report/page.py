"""Run folders become one HTML page that loads no other file: facts, curves, numbers, pairs, config.

A page of several runs shows them side by side. A section for which no run has anything is left out.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import distributions
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from zephyr.config import NOT_YAML, BadInput, read_yaml
from zephyr.report.chart import Curve, chart, format_number
from zephyr.training.files import step_paths, write_atomic

Row = Mapping[str, object]
CHARTS = [
    ["loss"],
    ["rewards/chosen", "rewards/rejected"],
    ["rewards/margins"],
    ["rewards/accuracies"],
    ["logps/chosen", "logps/rejected"],
    ["win_rate"],
    ["grad_norm"],
    ["learning_rate"],
    ["update_ratio"],
    ["tokens_per_second"],
    ["peak_memory_bytes"],
    ["mfu"],
]
LOGARITHMIC = ("grad_norm", "update_ratio")
COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#ca8a04", "#06b6d4", "#ec4899")
SHOWN = 20  # pairs of each kind, items of a list
VISIT_COLUMNS = (
    "id",
    "step",
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "prompt_tokens",
    "chosen_tokens",
    "rejected_tokens",
)
STYLE = """:root{color-scheme:light dark}
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1400px;padding:0 1.5rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:1rem}
figure{margin:0;background:#8881;padding:.6rem}
svg{width:100%;font-size:11px}svg text{fill:#888}.x{text-anchor:middle}.y{text-anchor:end}
path{fill:none;stroke-width:1.6;stroke-linecap:round}.grid{stroke:#8884}
.dots path{stroke-dasharray:5 4}.curve circle:not(:hover){opacity:0}.wide{overflow-x:auto}
table{border-collapse:collapse}
td,th{border-bottom:1px solid #8884;text-align:left;padding:.25rem .7rem;vertical-align:top;
white-space:pre-wrap;overflow-wrap:anywhere;min-width:4rem;max-width:38rem}h2{margin-top:2.2rem}
i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin:0 .4em 0 .8em}"""


class Record(NamedTuple):
    """A line of metrics.jsonl; values that are not finite are None."""

    step: int
    values: Mapping[str, float | None]  # with the step, without the split


Records = Mapping[str, Sequence[Record]]  # of each split ("train", "eval"), in the file's order


class Visits(NamedTuple):
    """All steps that trained on one pair, in their order."""

    steps: list[int]
    losses: list[float]
    margins: list[float]
    tokens: list[int]  # of prompt, chosen, rejected


def write_html(folders: Sequence[Path], out: Path, status: Row | None = None) -> None:
    """Write one page of all runs.

    Args: status: used instead of the runs' status.json.
    Raises: BadInput for a folder that is no run, for a broken file in one (with the line), and
    where `out` can't be written.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = dict(zip(names, folders))
    try:
        write_atomic(out, render_page(runs, status).encode(errors="backslashreplace"))
    except OSError as error:
        raise BadInput(
            f"{error.filename or out}: {error.strerror}; expected run folders, and a path for the "
            "page in a folder that can be written"
        ) from None


def write_report(run: Path, log: Callable[[str], None]) -> None:
    """Write the page of a run at its end, or log why there is none: the run succeeds without it."""
    try:
        write_html([run], run / "report.html", {"code": 0, "message": "finished"})
    except BadInput as error:
        log(f"no report.html: {error}")


def render_page(runs: Mapping[str, Path], status: Row | None) -> str:
    """Render the HTML of run folders by name."""
    configs, data, preflight = (
        {name: read_leaves(run / file) for name, run in runs.items()}
        for file in ("config.yaml", "data.json", "preflight.json")
    )
    records = {name: read_records(run / "metrics.jsonl") for name, run in runs.items()}
    summaries = {
        name: run_summary(
            run,
            configs[name],
            records[name],
            status or read_leaves(run / "status.json"),
            differing_keys(configs),
        )
        for name, run in runs.items()
    }
    last = {
        f"{name} {split}": of_split[-1].values
        for name, of_run in records.items()
        for split, of_split in of_run.items()
        if of_split
    }
    raised = {name: alarms(of_run) for name, of_run in records.items()}
    sections = {
        "Run": side_by_side(summaries),
        "Alarms": side_by_side(raised) or "None was raised.",
        "Curves": curves(records),
        "Last numbers": side_by_side(last),
        "Pairs": "".join(pairs(name, run) for name, run in runs.items()),
        "Samples": "".join(
            samples(name, run / "samples.jsonl", records[name]["eval"])
            for name, run in runs.items()
        ),
        "Data: read, cut and left out": side_by_side(data),
        "Preflight: passed, and found": side_by_side(preflight),
        "Config": f"<details><summary>all keys</summary>{side_by_side(configs)}</details>",
    }
    body = "".join(f"<h2>{title}</h2>{text}" for title, text in sections.items() if text)
    title = escape(", ".join(runs))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><h1>{title}</h1>{body}"
        f"<p>This page was made by {', '.join(installed_versions())}.</p></html>\n"
    )


def differing_keys(configs: Mapping[str, Row]) -> list[str]:
    """The config keys in which the runs differ, apart from their folders."""
    every_key = dict.fromkeys(key for config in configs.values() for key in config)
    return [
        key
        for key in every_key
        if key != "run.dir" and len({str(config.get(key)) for config in configs.values()}) > 1
    ]


def installed_versions() -> Iterator[str]:
    """Name and version of each of our libraries that is installed."""
    for name in ("zephyr", "torch", "transformers", "deepspeed"):
        for found in [*distributions(name=name)][:1]:
            yield f"{name} {found.version}"


def flatten(tree: object, name: str = "") -> dict[str, object]:
    """The leaves of nested mappings by their dotted names."""
    if not isinstance(tree, Mapping) or not tree:
        return {name: tree} if name else {}
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{name}.{key}" if name else str(key))
    return leaves


def read_leaves(path: Path) -> dict[str, object]:
    """Read the leaves of a YAML or JSON file; {} for a JSON file that is not there.

    Raises: BadInput where the file holds no mapping; OSError where there is no YAML file.
    """
    try:
        if path.suffix != ".json":
            tree = read_yaml(path)
        elif path.exists():
            tree = dict(json.loads(path.read_text(encoding="utf-8")))
        else:
            return {}
        if not isinstance(tree, dict):
            raise TypeError(f"found {type(tree).__name__}")
        return flatten(tree)
    except NOT_YAML as error:
        raise BadInput(f"{path}: a mapping is wanted: {error}") from None


def read_records(path: Path) -> Records:
    """Read metrics.jsonl; a last line without its end is still being written and is left out.

    Raises: BadInput naming the line that is no record.
    """
    records: dict[str, list[Record]] = {"train": [], "eval": []}
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
            of_split = records[found.pop("split")]
            values = {
                name: None if value is None or not math.isfinite(value) else value
                for name, value in found.items()
            }
            of_split.append(Record(int(found["step"]), values))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadInput(
                f"{path}:{number}: no record: {line[:60]!r}; mend or remove the line"
            ) from None
    return records


def run_summary(
    run: Path, config: Row, records: Records, status: Row, differing: Iterable[str]
) -> Row:
    """What was trained on what, and how far the run came. Args: differing: config keys to show."""
    states = [
        folder / "state.json"
        for folder in step_paths(run / "checkpoints")
        if (folder / "state.json").exists()
    ]
    state = read_leaves(states[-1]) if states else {}
    updates = [
        record.step + 1 for record in records["train"] if record.values.get("loss") is not None
    ]
    summary: dict[str, object] = {
        "folder": str(run),
        "method": "dDPO" if "beta" in config else "dSFT",
        "status": f"{status.get('message')} (code {status.get('code')})",
        "updates": max(updates, default=0),
    }
    log = run / "metrics.jsonl"
    if log.exists() and log.read_bytes()[-1:] not in (b"", b"\n"):
        summary[log.name] = "its last line is half written, and left out"
    for key in ("model", "data.train", "data.eval", *differing):
        summary[key] = config.get(key)
    for name in ("model", "data", "reference"):
        if f"identity.{name}" in state:
            summary[f"SHA-256 of {name}"] = state[f"identity.{name}"]
    return summary


def alarms(records: Records) -> Row:
    """For each alarm, the first and last step of every stretch of records that raised it."""
    every_name = dict.fromkeys(
        name
        for of_split in records.values()
        for record in of_split
        for name in record.values
        if name.startswith("alarms/")
    )
    return {name: list(stretches(records, name)) for name in every_name}


def stretches(records: Records, alarm: str) -> Iterator[str]:
    """`train 3 to 7` for each stretch of records that raised the alarm."""
    for split, of_split in records.items():
        for raised, stretch in groupby(of_split, lambda record: bool(record.values.get(alarm))):
            steps = [record.step for record in stretch]
            if raised and len(steps) > 1:
                yield f"{split} {steps[0]} to {steps[-1]}"
            elif raised:
                yield f"{split} {steps[0]}"


def curves(runs: Mapping[str, Records]) -> str:
    """A figure for each metric that any run has.

    Colours tell the metrics of a figure apart, or the runs where there are several.
    """
    if len(runs) > 1:
        figures = [figure([metric], runs, by_run=True) for metrics in CHARTS for metric in metrics]
        legend = "".join(colour_key(n, name) for n, name in enumerate(runs))
    else:
        figures = [figure(metrics, runs, by_run=False) for metrics in CHARTS]
        legend = ""
    if not any(figures):
        return ""
    return (
        f"<p>Over steps. Lines: train; dots: eval.{legend}</p>"
        f'<div class="charts">{"".join(figures)}</div>'
    )


def figure(metrics: Sequence[str], runs: Mapping[str, Records], by_run: bool) -> str:
    """Metrics on one pair of axes; "" where no run has one of them. Args: by_run: what the colours
    tell apart: runs, or else metrics."""
    drawn = chart(
        [
            Curve(
                f"{name} {split} {metric}",
                COLORS[(r if by_run else m) % len(COLORS)],
                split == "eval",
                [(record.step, record.values.get(metric)) for record in of_split],
            )
            for r, (name, records) in enumerate(runs.items())
            for m, metric in enumerate(metrics)
            for split, of_split in records.items()
        ],
        log=metrics[0] in LOGARITHMIC,
    )
    if not drawn:
        return ""
    keys = "".join(colour_key(m, metric) for m, metric in enumerate(metrics))
    caption = metrics[0] if by_run else keys
    return f"<figure><figcaption>{caption}</figcaption>{drawn}</figure>"


def colour_key(number: int, text: str) -> str:
    """A dot of a colour and what it stands for."""
    return f'<i style="background:{COLORS[number % len(COLORS)]}"></i>{escape(text)}'


def pairs(name: str, run: Path) -> str:
    """Tables of the pairs with the highest loss at their last visit, and with the largest fall of
    the margin from its highest."""
    visits = read_visits(run)
    fall = {pair: max(of.margins) - of.margins[-1] for pair, of in visits.items()}
    hardest = sorted(visits, key=lambda pair: -visits[pair].losses[-1])
    fallen = sorted((pair for pair in fall if fall[pair]), key=lambda pair: -fall[pair])
    head = ("pair", "step", "loss", "margin", "tokens of prompt / chosen / rejected")
    page = ""
    for title, order in (
        ("highest loss at the last visit", hardest),
        ("margin fell most from its highest", fallen),
    ):
        if order:
            rows = [visits_row(pair, visits[pair]) for pair in order[:SHOWN]]
            page += f"<h3>{escape(name)}: {title}</h3>{table(head, rows)}"
    return page


def read_visits(run: Path) -> dict[str, Visits]:
    """Read the ledger of visits, by pair. Raises: BadInput naming the file that can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    visits: dict[str, Visits] = {}
    for path in step_paths(run / "pairs", ".parquet"):
        try:
            columns = pq.read_table(path).select(VISIT_COLUMNS).columns
        except (pa.ArrowException, KeyError) as error:
            raise BadInput(f"{path}: visits of pairs can't be read: {error}") from None
        values = [column.to_pylist() for column in columns]
        for pair, step, loss, chosen, rejected, *tokens in zip(*values):
            of_pair = visits.setdefault(pair, Visits([], [], [], tokens))
            of_pair.steps.append(step)
            of_pair.losses.append(loss)
            of_pair.margins.append(chosen - rejected)
    return visits


def visits_row(pair: str, visits: Visits) -> list[str]:
    """The cells of a pair: its visits in their order."""
    columns: tuple[Sequence[float], ...] = (visits.steps, visits.losses, visits.margins)
    over_visits = [" → ".join(map(format_number, column)) for column in columns]
    return [pair, *over_visits, " / ".join(map(str, visits.tokens))]


def samples(name: str, path: Path, evaluations: Sequence[Record]) -> str:
    """A table of the answers to each prompt, a column for each evaluation, with its win rate
    against the start. Raises: BadInput naming the line that is no sample."""
    from zephyr.data.jsonl import read_rows
    from zephyr.teacher.prompts import format_prompt

    answers: dict[str, dict[int, str]] = {}  # by prompt and step
    for place, row in read_rows([path]) if path.exists() else ():
        try:
            step = row["step"]
            if not isinstance(step, (int, float, str)):
                raise TypeError("step")
            prompt = f"{row['prompt_id']}\n{format_prompt(row)}"
            answers.setdefault(prompt, {})[int(step)] = str(row["text"])
        except (KeyError, TypeError, ValueError):
            raise BadInput(
                f"{place}: no sample: step, prompt_id, prompt and text are wanted"
            ) from None
    if not answers:
        return ""
    win_rates = {record.step: format_win_rate(record) for record in evaluations}
    steps = dict.fromkeys(step for of_prompt in answers.values() for step in of_prompt)
    head = ["prompt", *(f"step {step}{win_rates.get(step, '')}" for step in steps)]
    rows = ([prompt, *map(of_prompt.get, steps)] for prompt, of_prompt in answers.items())
    return f"<h3>{escape(name)}</h3>{table(head, rows)}"


def format_win_rate(record: Record) -> str:
    """The win rate of an evaluation with its interval, on a line of its own; "" without one."""
    names = ("win_rate", "win_rate/low", "win_rate/high", "win_rate/n")
    if record.values.get("win_rate") is None:
        return ""
    rate, low, high, n = (cell_text(record.values[name]) for name in names)
    return f"\nwin rate {rate} [{low}, {high}] of {n}"


def side_by_side(columns: Mapping[str, Row]) -> str:
    """A table with a column for each mapping and a row for each key of any; "" without a key."""
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    if not keys:
        return ""
    rows = ([key, *(column.get(key) for column in columns.values())] for key in keys)
    return table(["", *columns], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; everything in it is escaped."""
    header = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = ""
    for row in rows:
        cells = "".join(f"<td>{escape(cell_text(value))}</td>" for value in row)
        lines += f"<tr>{cells}</tr>"
    return f'<div class="wide"><table><tr>{header}</tr>{lines}</table></div>'


def cell_text(value: object) -> str:
    """The text of a cell: numbers by `format_number`, the first items of a list a line each."""
    if value is None:
        return "-"
    if isinstance(value, list):
        items = [item_text(item) for item in value[:SHOWN]]
        if len(value) > SHOWN:
            items.append(f"... {len(value)} in all")
        return "\n".join(items) or "none"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return format_number(value)
    return str(value)


def item_text(item: object) -> str:
    return ": ".join(map(str, item.values())) if isinstance(item, Mapping) else str(item)
