"""Run folders become one HTML page that needs nothing else: facts, alarms, curves, numbers, pairs,
samples, data, checks, config."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import distributions
from itertools import groupby
from pathlib import Path

from zephyr.config import NOT_YAML, BadInput, read_yaml
from zephyr.report.chart import chart, format_number
from zephyr.training.files import step_paths, write_atomic

Row = Mapping[str, object]
Records = Mapping[str, Sequence[Mapping[str, float | None]]]  # of each split, in their order
CHARTS = [
    names.split()
    for names in (
        "loss",
        "rewards/chosen rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen logps/rejected",
        "win_rate",
        "grad_norm",
        "learning_rate",
        "update_ratio",
        "tokens_per_second",
        "peak_memory_bytes",
        "mfu",
    )
]
COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#ca8a04", "#06b6d4", "#ec4899")
SHOWN = 20  # pairs of each kind, items of a list
STYLE = """:root{color-scheme:light dark}body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1400px;padding:0 1.5rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:1rem}figure{margin:0;background:#8881;padding:.6rem}
svg{width:100%;font-size:11px}svg text{fill:#888}.x{text-anchor:middle}.y{text-anchor:end}path{fill:none;stroke-width:1.6;
stroke-linecap:round}.grid{stroke:#8884}.dots path{stroke-dasharray:5 4}.curve circle:not(:hover){opacity:0}.wide{overflow-x:auto}
table{border-collapse:collapse}td,th{border-bottom:1px solid #8884;text-align:left;padding:.25rem .7rem;vertical-align:top;
white-space:pre-wrap;overflow-wrap:anywhere;min-width:4rem;max-width:38rem}h2{margin-top:2.2rem}
i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin:0 .4em 0 .8em}"""


def write_html(folders: Sequence[Path], out: Path, status: Row | None = None) -> None:
    """One page of all runs. Args: status: in place of what status.json says.

    Raises: BadInput for a folder that is no run, a file of it that is broken, by its line, or where
    `out` can't be written."""
    names = [folder.resolve().name for folder in folders]
    runs = dict(zip(names if len(set(names)) == len(names) else map(str, folders), folders))
    try:
        write_atomic(out, render_page(runs, status).encode(errors="backslashreplace"))
    except OSError as error:
        raise BadInput(
            f"{error.filename or out}: {error.strerror}; wanted are run folders, and a place for the page"
        ) from None


def write_report(run: Path, log: Callable[[str], None]) -> None:
    """At a run's end: its page, or a line that says why there is none. The run is finished all the
    same."""
    try:
        write_html([run], run / "report.html", {"code": 0, "message": "finished"})
    except BadInput as error:
        log(f"no report.html: {error}")


def render_page(runs: Mapping[str, Path], status: Row | None) -> str:
    """The HTML of run folders by name. A section that none of them has anything for is left out."""
    configs, data, preflight = (
        {name: read_leaves(run / file) for name, run in runs.items()}
        for file in ("config.yaml", "data.json", "preflight.json")
    )
    records = {name: read_records(run / "metrics.jsonl") for name, run in runs.items()}
    differing = [
        key
        for key in dict.fromkeys(key for of in configs.values() for key in of)
        if key != "run.dir" and len({str(of.get(key)) for of in configs.values()}) > 1
    ]
    sections = {
        "Run": side_by_side(
            {
                name: run_summary(
                    run,
                    configs[name],
                    records[name],
                    status or read_leaves(run / "status.json"),
                    differing,
                )
                for name, run in runs.items()
            }
        ),
        "Alarms": side_by_side({name: alarms(of) for name, of in records.items()})
        or "None was raised.",
        "Curves": curves(records),
        "Last numbers": side_by_side(
            {
                f"{name} {split}": of[split][-1]
                for name, of in records.items()
                for split in of
                if of[split]
            }
        ),
        "Pairs": "".join(pairs(name, run) for name, run in runs.items()),
        "Samples": "".join(
            samples(name, run / "samples.jsonl", records[name]["eval"])
            for name, run in runs.items()
        ),
        "Data: read, cut and left out": side_by_side(data),
        "Preflight: passed, and found": side_by_side(preflight),
        "Config": f"<details><summary>all keys</summary>{side_by_side(configs)}</details>",
    }
    made = [
        f"{name} {of.version}"
        for name in ("zephyr", "torch", "transformers", "deepspeed")
        for of in [*distributions(name=name)][:1]
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(", ".join(runs))}</title><style>{STYLE}</style>'
        f"<h1>{escape(', '.join(runs))}</h1>"
        + "".join(f"<h2>{title}</h2>{body}" for title, body in sections.items() if body)
        + f"<p>This page was made by {', '.join(made)}.</p></html>\n"
    )


def flatten(tree: object, name: str = "") -> dict[str, object]:
    """The leaves of nested mappings by their dotted names."""
    if not isinstance(tree, Mapping) or not tree:
        return {name: tree} if name else {}
    return {
        leaf: value
        for key, of in tree.items()
        for leaf, value in flatten(of, f"{name}.{key}" if name else str(key)).items()
    }


def read_leaves(path: Path) -> dict[str, object]:
    """The leaves of a YAML or JSON file. Raises: BadInput where it holds no mapping; OSError where
    there is no YAML file."""
    if path.suffix == ".json" and not path.exists():
        return {}
    try:
        return flatten(
            dict(
                json.loads(path.read_text(encoding="utf-8"))
                if path.suffix == ".json"
                else read_yaml(path)
            )
        )
    except NOT_YAML as error:
        raise BadInput(f"{path}: a mapping is wanted: {error}") from None


def read_records(path: Path) -> Records:
    """Those of metrics.jsonl; values that are not finite are None, and a line without its end,
    which is being written, is left out."""
    found: dict[str, list[dict[str, float | None]]] = {"train": [], "eval": []}
    for place, line in enumerate(
        path.read_bytes().split(b"\n")[:-1] if path.exists() else (), start=1
    ):
        try:
            record = json.loads(line)
            of_split = found[record.pop("split")]
            of_split.append(
                {
                    name: None if value is None or not math.isfinite(value) else value
                    for name, value in record.items()
                }
            )
            int(of_split[-1]["step"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadInput(
                f"{path}:{place}: no record: {line[:60]!r}; mend or remove the line"
            ) from None
    return found


def run_summary(
    run: Path, config: Row, records: Records, status: Row, differing: Iterable[str]
) -> Row:
    """What was trained from what, and how far it came. Args: differing: keys of the config to
    show."""
    states = [
        folder / "state.json"
        for folder in step_paths(run / "checkpoints")
        if (folder / "state.json").exists()
    ]
    log, state = run / "metrics.jsonl", read_leaves(states[-1]) if states else {}
    found = {
        "folder": str(run),
        "method": "dDPO" if "beta" in config else "dSFT",
        "status": f"{status.get('message')} (code {status.get('code')})",
        "updates": max(
            (record["step"] + 1 for record in records["train"] if record.get("loss") is not None),
            default=0,
        ),
    }
    if log.exists() and log.read_bytes()[-1:] not in (b"", b"\n"):
        found[log.name] = "its last line is half written, and left out"
    return (
        found
        | {key: config.get(key) for key in ("model", "data.train", "data.eval", *differing)}
        | {
            f"SHA-256 of {of}": state[f"identity.{of}"]
            for of in ("model", "data", "reference")
            if f"identity.{of}" in state
        }
    )


def alarms(records: Records) -> Row:
    """For each alarm, the first and last step of every stretch of records that have it."""

    def stretches(name: str) -> Iterator[str]:
        for split, of in records.items():
            for raised, stretch in groupby(of, lambda record: bool(record.get(name))):
                steps = [record["step"] for record in stretch]
                if raised:
                    yield f"{split} {steps[0]}" + f" to {steps[-1]}" * (len(steps) > 1)

    names = dict.fromkeys(
        name
        for of in records.values()
        for record in of
        for name in record
        if name.startswith("alarms/")
    )
    return {name: list(stretches(name)) for name in names}


def curves(runs: Mapping[str, Records]) -> str:
    """A figure for each metric that any run has; colours tell the metrics of one run, or else the
    runs."""

    def key(n: int, text: str) -> str:
        return f'<i style="background:{COLORS[n % len(COLORS)]}"></i>{escape(text)}'

    many, figures = len(runs) > 1, []
    for metrics in [[metric] for group in CHARTS for metric in group] if many else CHARTS:
        drawn = chart(
            [
                (
                    f"{name} {split} {metric}",
                    COLORS[(r if many else m) % len(COLORS)],
                    split == "eval",
                    [(record["step"], record.get(metric)) for record in records],
                )
                for r, (name, of) in enumerate(runs.items())
                for m, metric in enumerate(metrics)
                for split, records in of.items()
            ],
            log=metrics[0] in ("grad_norm", "update_ratio"),
        )
        caption = (
            metrics[0] if many else "".join(key(m, metric) for m, metric in enumerate(metrics))
        )
        figures += [f"<figure><figcaption>{caption}</figcaption>{drawn}</figure>"] if drawn else []
    legend = "".join(key(r, name) for r, name in enumerate(runs)) if many else ""
    return (
        f'<p>Over steps. Lines: train; dots: eval.{legend}</p><div class="charts">{"".join(figures)}</div>'
        if figures
        else ""
    )


def pairs(name: str, run: Path) -> str:
    """The pairs of highest loss at their last visit, and those whose margin fell most from its
    highest, from the ledger of visits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [
        "id",
        "step",
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "prompt_tokens",
        "chosen_tokens",
        "rejected_tokens",
    ]
    visits: dict[
        str, tuple[list[int], list[float], list[float], list[int]]
    ] = {}  # steps, losses, margins, tokens
    try:
        for path in step_paths(run / "pairs", ".parquet"):
            values = [of.to_pylist() for of in pq.read_table(path).select(columns).columns]
            for pair, step, loss, chosen, rejected, *tokens in zip(*values):
                for of, value in zip(
                    visits.setdefault(pair, ([], [], [], tokens)), (step, loss, chosen - rejected)
                ):
                    of.append(value)
    except (pa.ArrowException, KeyError) as error:
        raise BadInput(f"{path}: visits of pairs can't be read: {error}") from None
    fall = {pair: max(margins) - margins[-1] for pair, (_, _, margins, _) in visits.items()}
    orders = {
        "highest loss at the last visit": sorted(visits, key=lambda pair: -visits[pair][1][-1]),
        "margin fell most from its highest": sorted(
            filter(fall.get, fall), key=lambda pair: -fall[pair]
        ),
    }
    head = ("pair", "step", "loss", "margin", "tokens of prompt / chosen / rejected")
    return "".join(
        f"<h3>{escape(name)}: {title}</h3>"
        + table(
            head,
            (
                [
                    pair,
                    *(" → ".join(map(format_number, of)) for of in visits[pair][:3]),
                    " / ".join(map(str, visits[pair][3])),
                ]
                for pair in order[:SHOWN]
            ),
        )
        for title, order in orders.items()
        if order
    )


def samples(name: str, path: Path, evaluations: Sequence[Mapping[str, float | None]]) -> str:
    """The answers to each prompt, a column for each evaluation, with its win rate over the
    start."""
    from zephyr.data.jsonl import read_rows
    from zephyr.teacher.prompts import format_prompt

    said: dict[str, dict[int, str]] = {}
    for place, row in read_rows([path]) if path.exists() else ():
        try:
            said.setdefault(f"{row['prompt_id']}\n{format_prompt(row)}", {})[int(row["step"])] = (
                str(row["text"])
            )
        except (KeyError, TypeError, ValueError):
            raise BadInput(
                f"{place}: no sample: step, prompt_id, prompt and text are wanted"
            ) from None
    win = {
        of["step"]: "\nwin rate {} [{}, {}] of {}".format(
            *(format_number(of[f"win_rate{of_what}"]) for of_what in ("", "/low", "/high", "/n"))
        )
        for of in evaluations
        if of.get("win_rate") is not None
    }
    steps = dict.fromkeys(step for of in said.values() for step in of)
    return (
        f"<h3>{escape(name)}</h3>"
        + table(
            ["prompt", *(f"step {step}{win.get(step, '')}" for step in steps)],
            ([prompt, *map(of.get, steps)] for prompt, of in said.items()),
        )
        if said
        else ""
    )


def side_by_side(columns: Mapping[str, Row]) -> str:
    """A table of mappings, a column each, a row for each key of any; empty where they all are."""
    keys = dict.fromkeys(key for of in columns.values() for key in of)
    return (
        table(["", *columns], ([key, *(of.get(key) for of in columns.values())] for key in keys))
        if keys
        else ""
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers as `format_number` has them, an item of a list a line, all else as text."""

    def shown(value: object) -> str:
        if isinstance(value, list):
            items = [
                ": ".join(map(str, item.values())) if isinstance(item, Mapping) else str(item)
                for item in value[:SHOWN]
            ]
            return "\n".join(items + [f"... {len(value)} in all"] * (len(value) > SHOWN)) or "none"
        return (
            "-"
            if value is None
            else format_number(value)
            if type(value) in (int, float)
            else str(value)
        )

    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(shown(value))}</td>' for value in row)}</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{"".join(f"<th>{escape(text)}</th>" for text in head)}</tr>{lines}</table></div>'
