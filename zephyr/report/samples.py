"""The answers to a run's sample prompts become a comparison: before and after, differences marked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import NamedTuple

from zephyr.analysis.runs import Record, Run
from zephyr.config import BadInput
from zephyr.report.text import percent, plural

OPEN = 6  # prompts that are shown at once; the others unfold
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MOST_COMPARED = 4000  # words and marks of an answer; longer ones are shown without marks


class Answers(NamedTuple):
    """What a policy answered to one prompt."""

    prompt: str
    texts: dict[int, str]  # by step


def read_samples(path: Path) -> list[Answers]:
    """Read samples.jsonl, in the order of its prompts; [] without the file.

    Raises: BadInput naming the line that is no sample.
    """
    from zephyr.data.jsonl import read_rows
    from zephyr.teacher.prompts import format_prompt

    answers: dict[str, Answers] = {}
    for place, row in read_rows([path]) if path.exists() else ():
        try:
            step = row["step"]
            if not isinstance(step, (int, float, str)):
                raise TypeError("step")
            of_prompt = answers.setdefault(str(row["prompt_id"]), Answers(format_prompt(row), {}))
            of_prompt.texts[int(step)] = str(row["text"])
        except (KeyError, TypeError, ValueError):
            raise BadInput(
                f"{place}: no sample: step, prompt_id, prompt and text are wanted"
            ) from None
    return list(answers.values())


def samples_section(run: Run, name: str) -> str:
    """The first and the last answer to each prompt beside each other; "" without samples.

    Args: name: shown as the heading, "" for none. Raises: as `read_samples`.
    """
    answers = read_samples(run.folder / "samples.jsonl")
    if not answers:
        return ""
    steps = sorted({step for of_prompt in answers for step in of_prompt.texts})
    rows = [comparison(of_prompt, steps) for of_prompt in answers]
    changed = sum(len({*of_prompt.texts.values()}) > 1 for of_prompt in answers)
    heading = f"<h3>{escape(name)}</h3>" if name else ""
    more = "".join(rows[OPEN:])
    folded = (
        f"<details><summary>{plural(len(rows) - OPEN, 'more prompt')}</summary>{more}</details>"
        if more
        else ""
    )
    summary = f"{changed} of {plural(len(answers), 'answer')} changed during training."
    return (
        f"{heading}<p>{summary} {win_rate_words(run.records['eval'])}</p>"
        '<p class="muted small">Marked: <del>only before</del> <ins>only after</ins>.</p>'
        f"{''.join(rows[:OPEN])}{folded}"
    )


def comparison(answers: Answers, steps: Sequence[int]) -> str:
    """One prompt with its first and last answer; the answers between them unfold."""
    known = [step for step in steps if step in answers.texts]
    first, last = known[0], known[-1]
    before, after = marked(answers.texts[first], answers.texts[last])
    between = "".join(
        f"<dt>step {step:,}</dt><dd>{escape(answers.texts[step])}</dd>" for step in known[1:-1]
    )
    unfold = (
        f"<details><summary>between them</summary><dl>{between}</dl></details>" if between else ""
    )
    same = '<span class="badge">unchanged</span>' if before == after and last != first else ""
    columns = f'<div><h5>{step_words(first)}</h5><p class="answer">{before}</p></div>'
    if last != first:
        columns += f'<div><h5>{step_words(last)} {same}</h5><p class="answer">{after}</p></div>'
    prompt = f'<h4><span class="muted">Prompt</span> {escape(answers.prompt)}</h4>'
    return f'<article class="sample">{prompt}<div class="two">{columns}</div>{unfold}</article>'


def step_words(step: int) -> str:
    return "Before training" if step == 0 else f"After {plural(step, 'step')}"


def marked(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, with the words that only one of them has in <del> or <ins>."""
    old, new = WORDS.findall(before), WORDS.findall(after)
    if before == after or max(len(old), len(new)) > MOST_COMPARED:
        return escape(before), escape(after)
    left, right = "", ""
    for kind, i, j, k, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = escape("".join(old[i:j])), escape("".join(new[k:end]))
        if kind == "equal":
            left, right = left + gone, right + come
            continue
        left += f"<del>{gone}</del>" if gone.strip() else gone
        right += f"<ins>{come}</ins>" if come.strip() else come
    return left, right


def win_rate_words(evaluations: Sequence[Record]) -> str:
    """The last win rate with its interval and a bar of it; "" without one."""
    rated = [record for record in evaluations if record.values.get("win_rate") is not None]
    if not rated:
        return ""
    values = rated[-1].values
    rate, low, high = (bounded(values, f"win_rate{end}") for end in ("", "/low", "/high"))
    bar = (
        '<span class="band" role="img" aria-label="win rate with its interval">'
        f'<i style="left:{100 * low:.1f}%;right:{100 * (1 - high):.1f}%"></i>'
        f'<b style="left:{100 * rate:.1f}%"></b></span>'
    )
    return (
        f"At step {rated[-1].step:,} the judge prefers the trained answer to the first one in "
        f"{percent(rate, 1)}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %, of "
        f"{plural(int(values.get('win_rate/n') or 0), 'prompt')}. {bar}"
    )


def bounded(values: Mapping[str, float | None], name: str) -> float:
    """A share of the record, 0 to 1."""
    return min(1.0, max(0.0, values.get(name) or 0.0))


def every_sample(runs: Sequence[Run]) -> Iterator[str]:
    """The sections of all runs that have samples."""
    for run in runs:
        if section := samples_section(run, run.name if len(runs) > 1 else ""):
            yield section
