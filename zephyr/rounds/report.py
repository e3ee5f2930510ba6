"""The files of all rounds become `rounds.jsonl`, a record a round, and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr.analysis.runs import Run, read_runs
from zephyr.data.jsonl import report_path, write_rows
from zephyr.report.figures import Panel, learning_panels
from zephyr.report.page import document, place
from zephyr.report.text import cell_text, percent, table
from zephyr.training.files import READ_ERRORS, read_json, write_atomic

if TYPE_CHECKING:
    from zephyr.rounds.stages import Rounds

Record = dict[str, object]
TRAINED = {  # metric of the last train record -> its name here
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "target_tokens": "target_tokens",
}
# column of the table -> key of a record
COLUMNS = {
    "answers": "answers",
    "cut off": "cut",
    "sampled tokens": "tokens",
    "mean score": "mean_score",
    "of chosen": "mean_chosen",
    "of rejected": "mean_rejected",
    "pairs": "pairs",
    "left out": "dropped",
    "steps": "steps",
    "last loss": "loss",
    "last margin": "margin",
    "win rate over the start": "win_rate",
}


def round_records(rounds: Rounds) -> list[Record]:
    """A record of each round that has begun, from its files alone."""
    from zephyr.rounds.stages import PAIRS, SAMPLES, SCORED, WIN_RATE

    records = []
    for number in range(1, rounds.config.rounds + 1):
        path = rounds.folder.round(number)
        if not (path / SAMPLES).exists():
            break
        sampled, scored, chosen = (read_report(path / name) for name in (SAMPLES, SCORED, PAIRS))
        record: Record = {
            "round": number,
            "start": sampled.get("model"),
            "weights": sampled.get("weights"),
            "answers": sampled.get("answers"),
            "refused": sampled.get("refused"),
            "cut": sampled.get("cut"),
            "tokens": sampled.get("tokens"),
            "scorer": scored.get("scorer"),
            "scores": scored.get("scores"),
            "requests": scored.get("requests"),
            "mean_score": scored.get("mean"),
            "mean_chosen": chosen.get("mean_chosen"),
            "mean_rejected": chosen.get("mean_rejected"),
            "pairs": chosen.get("pairs"),
            "dropped": chosen.get("dropped"),
            **last_metrics(rounds.folder.run(rounds.config, number)),
            **win_rate(path / WIN_RATE),
        }
        records.append(record)
    return records


def read_report(path: Path) -> Mapping[str, object]:
    """The report beside a file; empty where there is none yet."""
    try:
        return read_json(report_path(path))
    except READ_ERRORS:
        return {}


def last_metrics(folder: Path) -> Record:
    """Steps of a training, and metrics of its last train record."""
    if not (folder / "metrics.jsonl").exists():
        return {}
    records = read_runs([folder])[0].records["train"]
    if not records:
        return {}
    last = records[-1]
    found = {ours: last.values[name] for name, ours in TRAINED.items() if name in last.values}
    return {"steps": last.step + 1, **found}


def win_rate(path: Path) -> Record:
    """The win rate of the policy after a round over the first, with its interval."""
    try:
        found = read_json(path)
    except READ_ERRORS:
        return {}
    return {"win_rate": found["win_rate"], "win_rate_n": found["n"], "win_rate_ci95": found["ci95"]}


def write_records(rounds: Rounds, records: Sequence[Record]) -> None:
    write_rows(rounds.folder.path / "rounds.jsonl", records)


def write_page(rounds: Rounds, records: Sequence[Record]) -> None:
    """Write `report.html`: a table of the rounds, and the curves of their trainings over each
    other."""
    runs = read_runs([path for path in run_folders(rounds) if (path / "metrics.jsonl").exists()])
    panels: dict[str, Panel] = {}
    sections = [("summary", "", summary(rounds, records))]
    if runs:
        named = [run._replace(name=run.folder.parent.name) for run in runs]
        sections.append(("curves", "Training", place(panels, learning_panels(named))))
        page = document(named, sections, "", links(named), panels)
    else:
        page = document([], sections, "", "", panels)
    write_atomic(rounds.folder.path / "report.html", page.encode(errors="backslashreplace"))


def run_folders(rounds: Rounds) -> list[Path]:
    return [rounds.folder.run(rounds.config, n) for n in range(1, rounds.config.rounds + 1)]


def summary(rounds: Rounds, records: Sequence[Record]) -> str:
    """What was done, and a row a round."""
    config = rounds.config
    rule = config.pairs.choose if config.method == "dpo" else "the best answer"
    said = (
        f"{len(records)} of {config.rounds} rounds from {config.model}: "
        f"{config.sampling.samples} answers a prompt, scored by {config.scoring.scorer}; "
        f"{rule}; {config.method}, reference: {config.reference}."
    )
    head = ["round", *COLUMNS]
    rows = [
        [record["round"], *(cell(record, key) for key in COLUMNS.values())] for record in records
    ]
    return f"<h1>Rounds</h1><p>{escape(said)}</p>{table(head, rows)}"


def cell(record: Mapping[str, object], key: str) -> object:
    """A cell of the table."""
    value = record.get(key)
    interval = record.get("win_rate_ci95")
    if key == "win_rate" and isinstance(value, float) and isinstance(interval, list):
        low, high = (percent(float(bound)) for bound in interval)
        return f"{percent(value)} ({low} to {high})"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "0"
    return round(value, 4) if isinstance(value, float) else value


def links(runs: Sequence[Run]) -> str:
    """Links to the page of each training."""
    items = "".join(
        f'<li><a href="{escape(run.folder.parent.name)}/{escape(run.folder.name)}/report.html">'
        f"{escape(cell_text(run.name))}</a></li>"
        for run in runs
    )
    return f"<p>The page of each round's training, with its pairs:</p><ul>{items}</ul>"
