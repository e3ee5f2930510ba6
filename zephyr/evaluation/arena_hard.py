"""Arena-Hard (Li et al. 2024, arXiv:2406.11939): answers become questions to a judge, and its
labels become win rates over a baseline. All records are in arena-hard-auto's formats."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zephyr.config import BadInput
from zephyr.evaluation.results import interval
from zephyr.evaluation.statistics import clustered_mean, mean_with_interval
from zephyr.evaluation.style import Style, controlled_win_rates
from zephyr.teacher.templates import fill

Row = Mapping[str, Any]
V0 = "arena-hard-v0.1"  # the category of the first version, whose records don't name it
BASELINES = {
    "hard_prompt": "o3-mini-2025-01-31",
    "coding": "o3-mini-2025-01-31",
    "math": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
    V0: "gpt-4-0314",
}
TEMPLATES = ("arena_hard_system", "arena_hard_creative_system", "arena_hard_pair")
LABELS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))
CLEAR = 3  # battles that a clear win counts for
# What the answer that is shown as A gets of a label, and for how many battles it counts.
POINTS = {
    "A>>B": (1.0, CLEAR),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "A<B": (0.0, 1),
    "A<<B": (0.0, CLEAR),
    "B>>A": (0.0, CLEAR),
    "B>A": (0.0, 1),
    "B=A": (0.5, 1),
    "B<A": (1.0, 1),
    "B<<A": (1.0, CLEAR),
}
BATTLE_RESAMPLES = 1000


class Judgment(NamedTuple):
    """A judge's two games of a question: game 1 shows the baseline's answer as A, game 2 the
    model's. A label of None: no verdict. Texts are those that the record shows: of game 1, the
    baseline's and the model's; None where it does not hold them."""

    uid: str
    category: str
    judge: str
    model: str
    baseline: str
    labels: tuple[str | None, str | None]
    texts: tuple[str, str] | None

    def battles(self) -> list[float] | None:
        """What the model gets, 1, 0.5 or 0, of every battle of both games; None without both
        verdicts."""
        first, second = self.labels
        if first is None or second is None:
            return None
        (theirs, count), (ours, of_second) = POINTS[first], POINTS[second]
        return [1 - theirs] * count + [ours] * of_second

    def first_won(self) -> float:
        """The share of both games that was won by what is shown as A. Both verdicts must be
        there."""
        first, second = self.labels
        assert first is not None and second is not None
        return (POINTS[first][0] + POINTS[second][0]) / 2


def parse_label(text: str) -> str | None:
    """The last label of a reply, as arena-hard-auto reads it: of those in two brackets, else of
    those in one. None where it is none of `POINTS`."""
    for pattern in LABELS:
        found = pattern.findall(text.upper())
        if found:
            return found[-1] if found[-1] in POINTS else None
    return None


def judge_messages(
    templates: Mapping[str, str], category: str, prompt: str, first: str, second: str
) -> tuple[dict[str, str], ...]:
    """What the judge is asked about two answers: a system turn and a user turn."""
    creative = "_creative" if category == "creative_writing" else ""
    user = fill(templates["arena_hard_pair"], question=prompt, answer_a=first, answer_b=second)
    return (
        {"role": "system", "content": templates[f"arena_hard{creative}_system"]},
        {"role": "user", "content": user},
    )


def read_judgment(place: str, row: Row) -> Judgment:
    """A row of arena-hard-auto's model_judgment, of version 2 or of the first.

    Raises: BadInput naming the place."""
    try:
        games = [game or {} for game in row["games"]]
        first, second = (read_label(game) for game in games)
        category = str(row.get("category", V0))
        return Judgment(
            str(row["uid"] if "uid" in row else row["question_id"]),
            category,
            str(row["judge"]),
            str(row["model"]),
            str(row["baseline"] if "baseline" in row else BASELINES[category]),
            (first, second),
            shown_texts(games[0]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{place}: expected a judgment of arena-hard-auto's (uid, category, judge, model, "
            f"baseline and two games with a score each): {error!r}"
        ) from None


def read_label(game: Row) -> str | None:
    """The label of a game; None without one. Raises: ValueError for an unknown one."""
    label = game.get("score")
    if label is not None and label not in POINTS:
        raise ValueError(f"score {label!r} is none of {', '.join(POINTS)}")
    return label


def shown_texts(game: Row) -> tuple[str, str] | None:
    """The answers that a game's prompt shows as A and B; None where the record does not tell."""
    prompt = game.get("prompt")
    user = prompt[-1]["content"] if prompt else game.get("user_prompt")
    marks = ["<|The {} of Assistant {}'s Answer|>".format(*of) for of in SPANS]
    if not isinstance(user, str) or any(user.count(mark) != 1 for mark in marks):
        return None
    at = [user.index(mark) for mark in marks]
    first = user[at[0] + len(marks[0]) + 1 : at[1] - 1]
    second = user[at[2] + len(marks[2]) + 1 : at[3] - 1]
    return first, second


SPANS = (("Start", "A"), ("End", "A"), ("Start", "B"), ("End", "B"))


def score_judgments(
    judgments: Sequence[Judgment], styles: Mapping[str, Mapping[str, Style]] | None = None
) -> dict[str, dict[str, object]]:
    """Win rates in percent over the baseline, by "MODEL on CATEGORY".

    Judgments of several judges are taken together, as arena-hard-auto does it.

    Args: styles: of the answers of every model and baseline, by model and uid: also the win rate
    with control of style, from one fit for each category.

    Raises: BadInput for an answer whose style is not there."""
    groups: defaultdict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        groups[judgment.category].append(judgment)
    results = {}
    for category, group in groups.items():
        of_model: defaultdict[str, list[Judgment]] = defaultdict(list)
        for judgment in group:
            of_model[judgment.model].append(judgment)
        controlled = {} if styles is None else control_style(group, styles)
        for model, of in of_model.items():
            figures = summarise(of)
            if model in controlled:
                figures["style_controlled"] = controlled[model]
            results[f"{model} on {category}"] = figures
    return results


def read_judgments(records: Iterable[tuple[str, Row]]) -> list[tuple[str, Judgment]]:
    """Stored judgments with their places.

    Raises: BadInput for a bad row, a judgment that comes twice, or two baselines of a category."""
    read: list[tuple[str, Judgment]] = []
    seen: set[tuple[str, ...]] = set()
    baselines: dict[str, str] = {}
    for place, row in records:
        found = read_judgment(place, row)
        key = (found.judge, found.model, found.category, found.uid)
        if key in seen:
            raise BadInput(f"{place}: {found.judge} judges {found.model} on {found.uid} twice")
        seen.add(key)
        before = baselines.setdefault(found.category, found.baseline)
        if found.baseline != before:
            raise BadInput(
                f"{place}: {found.category} has the baseline {found.baseline} here, {before} before"
            )
        read.append((place, found))
    return read


def require_answers(
    judgments: Sequence[tuple[str, Judgment]], answers: Mapping[str, Mapping[str, str | None]]
) -> None:
    """Raises: BadInput where a judgment shows another answer than the given one of that model."""
    for place, judgment in judgments:
        shown = judgment.texts or ()
        for name, text in zip((judgment.baseline, judgment.model), shown):
            if name in answers and answers[name].get(judgment.uid) != text:
                raise BadInput(
                    f"{place}: the judgment at {judgment.uid} is about another answer than that in "
                    f"the file of {name}: judge these answers again"
                )


def summarise(judgments: Sequence[Judgment]) -> dict[str, object]:
    """The figures of `score_judgments` for one model: the share of battles that it wins, a clear
    win counting for three.

    stderr and ci95 are over questions; `battles` has the number of battles, and ci90 of the battles
    as if they were independent, which is arena-hard-auto's interval."""
    read = [(of, of.battles()) for of in judgments]
    values = [(of.uid, 100 * points) for of, all_points in read for points in all_points or ()]
    points = [value for _, value in values]
    won = [of.first_won() for of, all_points in read if all_points is not None]
    found = clustered_mean("win_rate", values)
    questions = found.pop("clusters")
    return {
        **found,
        "n": questions,
        "unparsed": sum(all_points is None for _, all_points in read),
        "battles": {"n": len(points), "ci90": battle_interval(points)},
        "position_bias": mean_with_interval("first_won", won),
        "baseline": judgments[0].baseline,
        "judges": sorted({of.judge for of in judgments}),
    }


def battle_interval(points: Sequence[float]) -> list[float] | None:
    """Percentiles 5 and 95 of the means of resampled battles."""
    if not points:
        return None
    values, counts = np.unique(np.array(points), return_counts=True)
    rng = np.random.default_rng(0)
    drawn_BV = rng.multinomial(len(points), counts / len(points), size=BATTLE_RESAMPLES)
    low, high = np.quantile(drawn_BV @ values / len(points), [0.05, 0.95])
    return [float(low), float(high)]


def control_style(
    judgments: Sequence[Judgment], styles: Mapping[str, Mapping[str, Style]]
) -> dict[str, dict[str, object]]:
    """`controlled_win_rates` of the judgments of one category that have both verdicts, by model."""
    read = [(of, points) for of in judgments if (points := of.battles()) is not None]
    if not read:
        return {}
    return controlled_win_rates(
        [of.model for of, _ in read],
        [of.uid for of, _ in read],
        [style_of(styles, of.model, of.uid) for of, _ in read],
        [style_of(styles, of.baseline, of.uid) for of, _ in read],
        [points for _, points in read],
    )


def style_of(styles: Mapping[str, Mapping[str, Style]], model: str, uid: str) -> Style:
    """Raises: BadInput where the answer's style is not there."""
    try:
        return styles[model][uid]
    except KeyError:
        raise BadInput(
            f"--style-control: no answer of {model} to {uid} with its style; expected "
            f"model_answer/{model}.jsonl in --bench-dir or --out, or --answers"
        ) from None


def result_lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for the terminal per model and category."""
    for name, of in results.items():
        line = (
            f"{name:40} win rate {interval(of, 'win_rate')}, n {of['n']}, "
            f"{of['unparsed']} without a verdict"
        )
        if controlled := of.get("style_controlled"):
            line += (
                f"; with style control {interval(controlled, 'win_rate')}, at equal style "
                f"{interval(controlled['equal_style'], 'win_rate')}"
            )
        yield line
