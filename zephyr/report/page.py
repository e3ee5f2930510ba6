"""Run folders become one HTML file that loads nothing else and answers first what happened.

In this order: what was trained on what, the verdict, samples before and after, curves,
distributions, likelihood displacement, the machine, pairs, data and config, digests. A section for
which no run has anything is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from zephyr.analysis.pairs import read_texts
from zephyr.analysis.runs import Run, read_runs
from zephyr.analysis.visits import read_visits
from zephyr.config import BadInput
from zephyr.report import facts
from zephyr.report.assets import asset, compressed, compressed_json
from zephyr.report.figures import (
    COLORS,
    Panel,
    displacement_panels,
    learning_panels,
    machine_panels,
    optimizer_panels,
    run_color,
)
from zephyr.report.pair_figures import PairsOf, length_panel, margin_panels, moved_panel
from zephyr.report.pairs_table import pairs_section
from zephyr.report.samples import samples_section
from zephyr.report.text import plural
from zephyr.report.verdict import Finding, verdict
from zephyr.training.files import write_atomic

Row = Mapping[str, object]
ICONS = {"good": "✓", "watch": "!", "bad": "✕", "none": "–"}
STATUS_WORDS = {"good": "good", "watch": "watch", "bad": "bad", "none": "unknown"}


def write_html(folders: Sequence[Path], out: Path, status: Row | None = None) -> None:
    """Write one page of all runs.

    Args: status: used instead of the runs' status.json.
    Raises: BadInput for a folder that is no run, for a broken file in one (with the line), and
    where `out` can't be written.
    """
    try:
        write_atomic(out, render_page(folders, status).encode(errors="backslashreplace"))
    except OSError as error:
        raise BadInput(
            f"{error.filename or out}: {error.strerror}; expected run folders, and a path for the "
            "page in a folder that can be written"
        ) from None


def render_page(folders: Sequence[Path], status: Row | None = None) -> str:
    """Render the HTML of run folders. Raises: as `zephyr.analysis.runs.read_runs`."""
    runs = read_runs(folders)
    every, problems = read_pairs(runs)
    findings = [verdict(of.run, of.visits, of.texts) for of in every]
    panels: dict[str, Panel] = {}
    sections = [
        ("summary", "", summary(runs, findings, status)),
        ("samples", "Before and after", samples_section(runs)),
        ("curves", "Curves", place(panels, learning_panels(runs) + optimizer_panels(runs))),
        ("margins", "Margins", place(panels, [*margin_panels(every), length_panel(every)])),
        (
            "likelihood",
            "Likelihood displacement",
            place(panels, [*displacement_panels(runs), moved_panel(every)]),
        ),
        ("machine", "Throughput and memory", place(panels, machine_panels(runs))),
    ]
    pairs = pairs_section(every)
    facts_html = facts.facts_section(runs, problems)
    return document(runs, sections, pairs, facts_html, panels)


def read_pairs(runs: Sequence[Run]) -> tuple[list[PairsOf], list[str]]:
    """The ledger and the texts of each run, and sentences on what could not be read again."""
    every, problems = [], []
    for run in runs:
        visits = read_visits(run.folder)
        texts, said = read_texts(run) if visits.ids else ({}, [])
        every.append(PairsOf(run, visits, texts))
        problems += [f"{run.name}: {sentence}" for sentence in said]
    return every, problems


def place(panels: dict[str, Panel], found: Iterable[Panel | None]) -> str:
    """Markup of figures; their data are added to `panels`. "" without one."""
    html = ""
    for panel in found:
        if panel:
            panels[panel.id] = panel
            key = "".join(
                f'<span class="key"><i class="swatch" style="--swatch:{color}"></i>'
                f"{escape(name)}</span>"
                for name, color in panel.key
            )
            wide = ' class="all"' if panel.wide else ""
            html += (
                f'<figure id="figure-{panel.id}"{wide}><figcaption><b>{escape(panel.title)}</b> '
                f'<span class="muted">{escape(panel.note)}</span> {key}</figcaption>'
                f'<div class="plot" data-figure="{panel.id}"></div></figure>'
            )
    return f'<div class="figures">{html}</div>' if html else ""


def document(
    runs: Sequence[Run],
    sections: Sequence[tuple[str, str, str]],
    pairs: str,
    facts_html: str,
    panels: Mapping[str, Panel],
) -> str:
    """The page of its parts."""
    shown = [(id, title, html) for id, title, html in sections if html]
    body = "".join(section(id, title, html) for id, title, html in shown[:2] if id in FIRST)
    drawn = "".join(section(id, title, html) for id, title, html in shown if id not in FIRST)
    if drawn:
        body += f'<div id="figures">{controls(runs)}{drawn}</div>'
    body += pairs + section("facts", "Data and settings", facts_html)
    links = [(id, title) for id, title, _ in shown if title]
    links += [("pairs", "Pairs")] * bool(pairs) + [("facts", "Data and settings")]
    nav = "".join(f'<a href="#{id}">{escape(title)}</a>' for id, title in links)
    figures = ",".join(f'"{name}":{panel.figure.to_json()}' for name, panel in panels.items())
    payloads = compressed("figures", f"{{{figures}}}") + compressed_json("palette", COLORS)
    if panels or pairs:
        payloads += plotly_payload()
    title = escape(", ".join(run.name for run in runs))
    styles = "".join(f"<style>{asset(name)}</style>" for name in ("page.css", "pairs.css"))
    scripts = "".join(f"<script>{asset(name)}</script>" for name in ("page.js", "pairs.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{title}</title>{styles}</head><body>"
        f'<a class="skip" href="#main">To the content</a><nav aria-label="Sections">{nav}</nav>'
        f'<main id="main">{body}</main>'
        '<noscript><p class="notice">Figures and pairs need JavaScript.</p></noscript>'
        f"{payloads}{scripts}</body></html>\n"
    )


@cache
def plotly_payload() -> str:
    """The library, packed once a process: that takes longer than the rest of a small page."""
    return compressed("plotly", get_plotlyjs())


FIRST = ("summary", "samples")  # sections before those that the controls are for


def section(id: str, title: str, html: str) -> str:
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f'<section id="{id}">{heading}{html}</section>'


def controls(runs: Sequence[Run]) -> str:
    """The legend, which hides a run or a split in all figures, and what changes all curves."""
    splits = {split for run in runs for split, records in run.records.items() if records}
    chips = ""
    if len(runs) > 1:
        for number, run in enumerate(runs):
            chips += (
                f'<button class="chip" type="button" aria-pressed="true" data-run="{number}">'
                f'<i style="--swatch:{run_color(number)}"></i>{escape(run.name)}</button>'
            )
    for split, name in (("train", "train"), ("eval", "held-out")):
        if split in splits:
            chips += (
                f'<button class="chip" type="button" aria-pressed="true" data-split="{split}">'
                f'<i class="{split}"></i>{name}</button>'
            )
    return (
        '<div class="controls" role="toolbar" aria-label="Figures">'
        f'<span class="chips">{chips}</span>'
        '<label>Smoothing <input id="smoothing" type="range" min="0" max="0.98" step="0.02" '
        'value="0"> <output for="smoothing">off</output></label>'
        '<label>Axis <select id="axis"><option value="step">step</option>'
        '<option value="epoch">epoch</option></select></label>'
        '<label>Range <input id="from" type="number" step="any" aria-label="from"> to '
        '<input id="to" type="number" step="any" aria-label="to"></label>'
        '<button type="button" class="button" id="reset">Reset</button></div>'
    )


# ---- the first screen ----


def summary(runs: Sequence[Run], findings: Sequence[list[Finding]], status: Row | None) -> str:
    """What was trained on what, and the verdict."""
    names = "".join(heading(run, status or run.status, len(runs) > 1) for run in runs)
    if len(runs) == 1:
        return f"{names}{lead(findings[0])}{cards(findings[0])}"
    title = f'<h1>{plural(len(runs), "run")} compared</h1><p class="story">{differences(runs)}</p>'
    details = "".join(
        f"<details><summary>{escape(run.name)}: the verdict in full</summary>{cards(found)}"
        "</details>"
        for run, found in zip(runs, findings)
    )
    return f"{title}{matrix(runs, findings)}{details}{names}"


def heading(run: Run, status: Row, several: bool) -> str:
    """Name, state and story of a run. Args: several: whether the page has more of them."""
    kind, words = facts.state_of(run, status)
    method = "dDPO" if run.is_dpo else "dSFT"
    size = "h3" if several else "h1"
    half = (
        ' <span class="muted">The last line of metrics.jsonl is half written, and left out.</span>'
        if facts.half_written(run)
        else ""
    )
    return (
        f'<header class="run"><{size}>{escape(run.name)} <span class="badge">{method}</span> '
        f'<span class="badge {kind}" id="state">{escape(words)}</span></{size}>'
        f'<p class="story">{facts.story(run)}{half}</p></header>'
    )


def differences(runs: Sequence[Run]) -> str:
    """A sentence on the keys in which the runs differ, as HTML."""
    keys = facts.differing_keys(runs)[:4]
    if not keys:
        return "Their settings are the same."
    parts = []
    for key in keys:
        values = " / ".join(facts.short(run.config.get(key)) for run in runs)
        parts.append(f"<b>{escape(key)}</b> ({escape(values)})")
    return f"They differ in {'; '.join(parts)}."


def lead(findings: Sequence[Finding]) -> str:
    """One line above the findings: how many ask for a look."""
    asked = [finding for finding in findings if finding.status in ("bad", "watch")]
    if not asked:
        known = any(finding.status == "good" for finding in findings)
        words = "Nothing here asks for a second look. No alarm was raised."
        return f'<p class="lead">{words}</p>' if known else ""
    bad = [finding for finding in asked if finding.status == "bad"]
    good = sum(finding.status == "good" for finding in findings)
    counts = ((len(bad), "bad"), (len(asked) - len(bad), "to watch"), (good, "good"))
    told = ", ".join(f"{count} {word}" for count, word in counts if count)
    quiet = "" if any(f.name == "alarms" for f in asked) else " No alarm was raised."
    return f'<p class="lead">{len(findings)} checks: {told}.{quiet}</p>'


def cards(findings: Sequence[Finding]) -> str:
    """The findings of one run: first alarms, if any was raised."""
    alarms = [f for f in findings if f.name == "alarms" and f.status != "good"]
    others = [f for f in findings if f.name != "alarms"]
    return f'<ul class="findings">{"".join(map(card, alarms + others))}</ul>'


def card(finding: Finding) -> str:
    status = STATUS_WORDS[finding.status]
    wide = " wide-card" if finding.name in ("alarms", "answers") else ""
    link = ""
    if finding.figure == "pairs":
        link = '<a href="#pairs" class="shows" data-view="wrong">See the pairs</a>'
    elif finding.figure:
        link = f'<a href="#figure-{finding.figure}" class="shows">See the figure</a>'
    return (
        f'<li class="finding {finding.status}{wide}" data-finding="{finding.name}">'
        f'<span class="icon" role="img" aria-label="{status}">{ICONS[finding.status]}</span>'
        f'<div><h3>{escape(finding.question)}</h3><p class="answer"><b>{escape(finding.answer)}</b>'
        f'<span class="number">{escape(finding.number)}</span></p>'
        f'<p class="why">{escape(finding.text)} {link}</p></div></li>'
    )


def matrix(runs: Sequence[Run], findings: Sequence[list[Finding]]) -> str:
    """A row a question, a column a run."""
    by_name = [{finding.name: finding for finding in found} for found in findings]
    questions = {f.name: f.question for found in findings for f in found}
    head = "".join(
        f'<th scope="col"><i class="swatch" style="--swatch:{run_color(number)}"></i>'
        f"{escape(run.name)}</th>"
        for number, run in enumerate(runs)
    )
    rows = ""
    for name, question in questions.items():
        cells = "".join(matrix_cell(of_run.get(name)) for of_run in by_name)
        rows += f'<tr><th scope="row">{escape(question)}</th>{cells}</tr>'
    return (
        '<div class="wide" tabindex="0"><table class="matrix">'
        f"<tr><th></th>{head}</tr>{rows}</table></div>"
    )


def matrix_cell(finding: Finding | None) -> str:
    if finding is None:
        return "<td>–</td>"
    return (
        f'<td class="finding {finding.status}"><span class="icon" role="img" '
        f'aria-label="{STATUS_WORDS[finding.status]}">{ICONS[finding.status]}</span> '
        f'<b>{escape(finding.answer)}</b> <span class="number">{escape(finding.number)}</span></td>'
    )
