"""The answers to a run's sample prompts become a comparison of before and after."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import NamedTuple

from zephyr.analysis.runs import Record, Run
from zephyr.config import BadInput
from zephyr.report.text import percent, plural

OPEN = 6  # prompts that are shown at once; the others unfold
WORDS = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
MOST_COMPARED = 4000  # words of an answer; longer ones are shown without marks
MOST_MATCHES = 100_000  # equal words, one of each answer: many where an answer repeats itself


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


def samples_section(runs: Sequence[Run], of_runs: Sequence[Sequence[Answers]]) -> str:
    """The first answer to each prompt beside the last one of each run; "" without samples.

    Args: of_runs: the answers of each run.
    """
    known = [(run, answers) for run, answers in zip(runs, of_runs) if answers]
    if not known:
        return ""
    several = len(runs) > 1
    prompts: dict[str, list[tuple[str, Answers]]] = {}
    for run, answers in known:
        for of_prompt in answers:
            prompts.setdefault(of_prompt.prompt, []).append(
                (run.name if several else "", of_prompt)
            )
    # First those that changed: sorted() keeps the order of the prompts otherwise.
    order = sorted(prompts, key=lambda prompt: not has_changed(prompts[prompt]))
    rows = [comparison(prompt, prompts[prompt]) for prompt in order]
    more = "".join(rows[OPEN:])
    folded = (
        f"<details><summary>{plural(len(rows) - OPEN, 'more prompt')}</summary>{more}</details>"
        if more
        else ""
    )
    summaries = "".join(summary(run, answers, several) for run, answers in known)
    return (
        f'{summaries}<p class="muted small">Marked: <del>only before</del> '
        f"<ins>only after</ins>.</p>{''.join(rows[:OPEN])}{folded}"
    )


def summary(run: Run, answers: Sequence[Answers], several: bool) -> str:
    """A paragraph on how many answers changed, and the win rate."""
    changed = sum(has_changed([("", of_prompt)]) for of_prompt in answers)
    name = f"<b>{escape(run.name)}</b>: " if several else ""
    words = f"{changed} of {plural(len(answers), 'answer')} changed during training."
    return f"<p>{name}{words} {win_rate_words(run.records['eval'], answers)}</p>"


def has_changed(of_runs: Sequence[tuple[str, Answers]]) -> bool:
    return any(first != last for first, last in (ends(answers) for _, answers in of_runs))


def ends(answers: Answers) -> tuple[str, str]:
    """The first and the last answer."""
    steps = sorted(answers.texts)
    return answers.texts[steps[0]], answers.texts[steps[-1]]


def comparison(prompt: str, of_runs: Sequence[tuple[str, Answers]]) -> str:
    """One prompt: its first answer, and the last one of each run; those between them unfold.

    Args: of_runs: name ("" for a single run) and answers. Where runs start with another answer, the
    first run's is shown, and each last one is marked against its own start.
    """
    (name, answers), *_ = of_runs
    steps = sorted(answers.texts)
    before, after = marked(*ends(answers))
    if len(of_runs) > 1:
        before = escape(answers.texts[steps[0]])
    columns = answer_column(step_words(steps[0]), before)
    between = ""
    for name, answers in of_runs:
        steps = sorted(answers.texts)
        (first, last), (_, after) = ends(answers), marked(*ends(answers))
        if len(steps) < 2:
            continue
        title = " ".join(filter(None, (name, step_words(steps[-1]).lower() if name else "")))
        columns += answer_column(title or step_words(steps[-1]), after, same=first == last)
        between += "".join(
            f"<dt>{escape(name)} step {step:,}</dt><dd>{escape(answers.texts[step])}</dd>"
            for step in steps[1:-1]
        )
    unfold = (
        f"<details><summary>answers in between</summary><dl>{between}</dl></details>"
        if between
        else ""
    )
    heading = f'<h4><span class="muted">Prompt</span> {escape(prompt)}</h4>'
    return f'<article class="sample">{heading}<div class="two">{columns}</div>{unfold}</article>'


def answer_column(title: str, html: str, same: bool = False) -> str:
    badge = ' <span class="badge">unchanged</span>' if same else ""
    return f'<div><h5>{escape(title)}{badge}</h5><p class="answer">{html}</p></div>'


def step_words(step: int) -> str:
    return "Before training" if step == 0 else f"After {plural(step, 'step')}"


def marked(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, with the words that only one of them has in <del> or <ins>."""
    old, new = WORDS.findall(before), WORDS.findall(after)
    is_long = max(len(old), len(new)) > MOST_COMPARED or matches(old, new) > MOST_MATCHES
    if before == after or is_long:
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


def matches(old: Sequence[str], new: Sequence[str]) -> int:
    """How many pairs of a word of one text and a word of the other are equal."""
    counts = Counter(new)
    return sum(count * counts[word] for word, count in Counter(old).items())


class Tally(NamedTuple):
    """How many answers to sample prompts differ from those before training."""

    answers: int
    changed: int


class Rating(NamedTuple):
    """A win rate over the answers before training, with its 95 % interval."""

    step: int
    prompts: int
    rate: float
    low: float
    high: float


def count_changes(answers: Sequence[Answers], step: int | None = None) -> Tally | None:
    """Compare each prompt's first answer with that of a step, by default its last one; None where
    no prompt has both."""
    pairs = [
        (of.texts[min(of.texts)], of.texts[max(of.texts) if step is None else step])
        for of in answers
        if len(of.texts) > 1 and (step is None or step in of.texts)
    ]
    return Tally(len(pairs), sum(first != last for first, last in pairs)) if pairs else None


def last_rating(evaluations: Sequence[Record]) -> Rating | None:
    """The last win rate of the records; None without a judge."""
    rated = [record for record in evaluations if record.values.get("win_rate") is not None]
    if not rated:
        return None
    values = rated[-1].values
    rate, low, high = (bounded(values, f"win_rate{end}") for end in ("", "/low", "/high"))
    return Rating(rated[-1].step, int(values.get("win_rate/n") or 0), rate, low, high)


def rating_words(rating: Rating, answers: Sequence[Answers]) -> str:
    """The win rate with what it counts: a judge calls equal answers a tie, and a tie is half."""
    told = f"At step {rating.step:,} "
    tally = count_changes(answers, rating.step)
    if tally is not None and tally.answers == rating.prompts and tally.answers:
        told += changed_words(tally, rating) + " "
    else:
        told += f"the judge compared {plural(rating.prompts, 'answer')} with those before. "
    return (
        f"{told}Win rate, where a tie counts half: {percent(rating.rate, 1)} of "
        f"{rating.prompts:,} (95 % interval {100 * rating.low:.1f} to {100 * rating.high:.1f} %; "
        "no change is 50 %)."
    )


def changed_words(tally: Tally, rating: Rating) -> str:
    """Wins, ties and losses as far as the win rate and the equal answers tell them."""
    same, changed = tally.answers - tally.changed, tally.changed
    points = rating.rate * rating.prompts - same / 2  # of the answers that changed
    if abs(points - changed) < 0.01:
        return (
            f"the judge prefers the new answer in {changed:,}, the old one in none; {same:,} tie."
        )
    if abs(points) < 0.01:
        return (
            f"the judge prefers the old answer in {changed:,}, the new one in none; {same:,} tie."
        )
    return (
        f"{same:,} of {tally.answers:,} answers are the same, a tie; the {changed:,} others won "
        f"{points:.3g} points of {changed:,} (1 for a win, a half for a tie)."
    )


def win_rate_words(evaluations: Sequence[Record], answers: Sequence[Answers]) -> str:
    """The last win rate with its interval and a bar of it; "" without one."""
    rating = last_rating(evaluations)
    if rating is None:
        return ""
    low, high = 100 * rating.low, 100 * (1 - rating.high)
    label = f"Win rate {percent(rating.rate, 1)} with its interval, on a scale of 0 to 100 %"
    bar = (
        f'<span class="band" role="img" title="{label}" aria-label="{label}">'
        f'<i style="left:{low:.1f}%;right:{high:.1f}%"></i>'
        f'<b style="left:{100 * rating.rate:.1f}%"></b></span>'
    )
    return f"{rating_words(rating, answers)} {bar}"


def bounded(values: Mapping[str, float | None], name: str) -> float:
    """A share of the record, 0 to 1."""
    return min(1.0, max(0.0, values.get(name) or 0.0))
