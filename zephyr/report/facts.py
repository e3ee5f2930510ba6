"""What a run was made of becomes tables: data, preflight, config, digests, versions."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import distributions

from zephyr.analysis.runs import Run
from zephyr.config import QUIRK, quirks, read_source
from zephyr.report.text import percent, plural, seconds_text, side_by_side


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The config keys in which the runs differ, apart from their folders."""
    every_key = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in every_key
        if key != "run.dir" and len({str(run.config.get(key)) for run in runs}) > 1
    ]


def installed_versions() -> Iterator[str]:
    """Name and version of each library that matters and is installed."""
    for name in ("zephyr", "torch", "transformers", "deepspeed", "plotly"):
        for found in [*distributions(name=name)][:1]:
            yield f"{name} {found.version}"


def updates(run: Run) -> int:
    """Updates that were made."""
    return max(
        (r.step + 1 for r in run.records["train"] if r.values.get("loss") is not None), default=0
    )


def story(run: Run) -> str:
    """A sentence on what was trained on what, as HTML."""
    config = run.config
    sources = ", ".join(map(source_as_html, listed(config, "data.train")))
    units = "preference pairs" if run.is_dpo else "texts"
    examples = run.data.get("train.examples")
    count = f"{examples:,} {units}" if isinstance(examples, int) else units
    method = "Direct preference optimization" if run.is_dpo else "Supervised fine-tuning"
    parts = [f"{method} of <b>{escape(str(config.get('model')))}</b> on {count} from {sources}"]
    held_out = run.data.get("eval.examples")
    if isinstance(held_out, int):
        parts.append(f"{held_out:,} held out")
    return f"{', '.join(parts)}. {settings(run)}"


def source_as_html(entry: object) -> str:
    """A source of `data.train`, with its limit and weight where it has them, as HTML."""
    source = read_source(entry)
    text = f"<b>{escape(source.path)}</b>"
    notes = [] if source.limit is None else [f"its first {source.limit:,} rows"]
    if source.weight != 1:
        notes.append(f"weight {source.weight:g}")
    return f"{text} ({', '.join(notes)})" if notes else text


def settings(run: Run) -> str:
    """A sentence on epochs, rate, beta and loss, as HTML; values that the config lacks are left
    out."""
    config, words = run.config, []
    per_step = config.get("optim.pairs_per_step" if run.is_dpo else "optim.windows_per_step")
    if "optim.epochs" in config:
        words.append(f"{config['optim.epochs']} epochs")
    if isinstance(per_step, int):
        words.append(f"{plural(per_step, 'pair' if run.is_dpo else 'window')} a step")
    if "optim.lr_peak" in config:
        schedule = config.get("optim.schedule", "")
        words.append(f"learning rate {config['optim.lr_peak']} ({schedule})")
    if run.is_dpo:
        words.append(f"beta {config['beta']}")
        words.append(f"{run.loss} loss{own_settings(config)}")
        if config.get("sft_weight") is not None:
            words.append(f"SFT weight {config['sft_weight']}")
        if config.get("weighting", "none") != "none":
            words.append(f"{config['weighting']} weighting")
    on = quirks(config)
    words += [f"{', '.join(on)} ({QUIRK})"] if on else []
    weighted, weight = run.data.get("train.weighted.rows"), run.data.get("train.weight")
    if isinstance(weighted, int) and isinstance(weight, (int, float)):
        words.append(f"{plural(weighted, 'pair')} with another weight than 1, {weight:,.6g} in all")
    done = f"{plural(updates(run), 'update')} made"
    time = duration(run)
    words.append(f"{done} in {seconds_text(time)}" if time else done)
    return escape(", ".join(words)[:1].upper() + ", ".join(words)[1:]) + "."


def own_settings(config: Mapping[str, object]) -> str:
    """` (gamma 0.5)`: the settings of the loss itself that the config names; "" for none."""
    names = [key for key in config if key.startswith("loss.") and key != "loss.name"]
    found = [f"{key.removeprefix('loss.')} {config[key]}" for key in names]
    return f" ({', '.join(found)})" if found else ""


def short(value: object) -> str:
    """A value of a config in a sentence: of paths in a list their last parts."""
    if isinstance(value, list):
        return ", ".join(map(short_source, value))
    return str(value)


def short_source(entry: object) -> str:
    """The last part of a path, with the limit and weight of a source that has them."""
    source = read_source(entry)
    notes = [] if source.limit is None else [f"limit {source.limit}"]
    notes += [] if source.weight == 1 else [f"weight {source.weight:g}"]
    last = source.path.rstrip("/").rpartition("/")[2]
    return f"{last} ({', '.join(notes)})" if notes else last


def listed(config: Mapping[str, object], key: str) -> list[object]:
    value = config.get(key)
    return value if isinstance(value, list) else [value]


def duration(run: Run) -> float:
    """Seconds of all steps: each record's time of a step stands for the steps since the last."""
    total, before = 0.0, -1
    for record in run.records["train"]:
        total += (record.values.get("step_seconds") or 0.0) * (record.step - before)
        before = record.step
    return total


def half_written(run: Run) -> bool:
    """Whether the last line of the records is still being written."""
    log = run.folder / "metrics.jsonl"
    if not log.exists() or not log.stat().st_size:
        return False
    with log.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def state_of(run: Run, status: Mapping[str, object]) -> tuple[str, str]:
    """A class and words on how the run stands. Args: status: code and message."""
    if not status:
        return "watch", "no status"
    code, message = status.get("code"), str(status.get("message"))
    if code is None:
        return "watch", f"running: {message}" if message != "None" else "running"
    if code == 0:
        return "good", message
    return "bad" if code != 75 else "watch", f"{message} (code {code})"


def data_words(run: Run) -> str:
    """Sentences on what was read, cut and left out, as HTML; "" where no file says."""
    lines = []
    for split, name in (("train", "Training data"), ("eval", "Held-out data")):
        read, kept = run.data.get(f"{split}.rows_read"), run.data.get(f"{split}.examples")
        if not isinstance(read, int) or not isinstance(kept, int):
            continue
        skipped = run.data.get(f"{split}.rows_skipped")
        text = f"{name}: {plural(read, 'row')} read, {kept:,} used"
        text += f", {skipped:,} skipped" if isinstance(skipped, int) and skipped else ""
        for side in ("prompt", "chosen", "rejected", "text"):
            cut = run.data.get(f"{split}.cut.{side}.rows")
            if isinstance(cut, int) and cut:
                text += f", {side} cut in {cut:,} ({percent(cut / max(kept, 1), 1)})"
        lines.append(f"<li>{escape(text)}.</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def facts_section(runs: Sequence[Run], problems: Sequence[str]) -> str:
    """Data, preflight, config, digests and versions. Args: problems: what could not be read."""
    several = len(runs) > 1
    data = ""
    for run in runs:
        words = data_words(run)
        data += (f"<h4>{escape(run.name)}</h4>" if several and words else "") + words
    data += "".join(f'<p class="muted">{escape(problem)}</p>' for problem in problems)
    differing = differing_keys(runs) if several else []
    parts = [
        ("Data", data, side_by_side({run.name: run.data for run in runs}), "all counts"),
        (
            "Preflight",
            "",
            side_by_side({run.name: run.preflight for run in runs}),
            "what was checked before step 0, and found",
        ),
        (
            "Config",
            side_by_side({r.name: {key: r.config.get(key) for key in differing} for r in runs}),
            side_by_side({run.name: run.config for run in runs}),
            "all keys",
        ),
    ]
    html = ""
    for title, shown, folded, summary in parts:
        if shown or folded:
            unfold = f"<details><summary>{summary}</summary>{folded}</details>" if folded else ""
            note = (
                '<p class="muted small">Keys in which the runs differ.</p>'
                if title == "Config" and shown
                else ""
            )
            html += f"<h3>{title}</h3>{note}{shown}{unfold}"
    return html + origin(runs)


def origin(runs: Sequence[Run]) -> str:
    """Folders, digests and versions: the last thing on a page."""
    columns = {
        run.name: {
            "folder": str(run.folder),
            **{f"SHA-256 of {name}": digest for name, digest in digests(run).items()},
        }
        for run in runs
    }
    versions = escape(", ".join(installed_versions()))
    return (
        f"<h3>Origin</h3>{side_by_side(columns)}"
        f'<p class="muted small">This page was made by {versions}.</p>'
    )


def digests(run: Run) -> dict[str, object]:
    """The digests of model, data and reference that the newest checkpoint names."""
    return {n: run.identity[n] for n in ("model", "data", "reference") if n in run.identity}
