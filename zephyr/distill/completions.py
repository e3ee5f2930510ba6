"""A feedback row becomes its answers, each with the scores it has: no missing score is guessed."""

import re
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import NamedTuple

from zephyr.data.rows import text
from zephyr.distill.binarize_report import Tally

Row = Mapping[str, object]


class RowFormat(NamedTuple):
    """The names of the fields of a feedback row and of its completions."""

    name: str
    prompt: str
    text: str
    scores: str
    overall: str


FEEDBACK = RowFormat("feedback", "prompt", "text", "scores", "overall")
ULTRAFEEDBACK = RowFormat(
    "UltraFeedback", "instruction", "response", "annotations", "overall_score"
)


class Answer(NamedTuple):
    """A completion with its scores; None for a score that it does not have.

    `mean`: of the scores of its aspects.
    `overall`: the score of the answer as a whole.
    """

    model: str
    text: str
    mean: float | None
    overall: float | None

    def score(self, name: str) -> float | None:
        """Return the score that a rule compares: `mean` or `overall`."""
        return self.mean if name == "mean" else self.overall


def row_format(row: Row) -> RowFormat:
    return ULTRAFEEDBACK if "instruction" in row and "prompt" not in row else FEEDBACK


def read_answers(
    row: Row, row_format: RowFormat, id: str, tally: Tally, *, fix_overall: bool
) -> Iterator[Answer]:
    """Yield the completions that have a text.

    UltraFeedback has overall scores of 10 that should be 1. They are counted, and corrected if
    `fix_overall` is set: to 1 if the mean is at most 2, to None if it is at most 4.

    Raises:
        ValueError: naming the field.
    """
    completions = row["completions"]
    if not isinstance(completions, list):
        raise ValueError(f"`completions` is {type(completions).__name__}, expected a list")
    known = {"model", row_format.text, row_format.scores, row_format.overall, "prompt", "source"}
    for n, completion in enumerate(completions):
        place = f"completions[{n}]"
        if not isinstance(completion, Mapping) or not isinstance(
            completion.get(row_format.scores) or {}, Mapping
        ):
            raise ValueError(
                f"`{place}` is {completion!r:.60}, expected an object with `model` and "
                f"`{row_format.text}`, whose `{row_format.scores}` is an object too"
            )
        if completion.get(row_format.text, "") is None:
            tally.add("left out", "no text")
            continue
        for key in completion.keys() - known:
            tally.add("unread", f"completions[].{key}")
        mean = mean_score(completion.get(row_format.scores), f"{place}.{row_format.scores}")
        overall = read_score(completion.get(row_format.overall), f"{place}.{row_format.overall}")
        # under their full names, so that errors name the completion
        fields = {f"{place}.{key}": value for key, value in completion.items()}
        model = text(fields, f"{place}.model")
        if overall == 10 and mean is not None and mean <= 4:
            kind = "10 for 1" if mean <= 2 else "10 doubtful"
            tally.add("faults", kind)
            tally.add_fault(kind, f"{id}/{model}")
            if fix_overall:
                overall = 1.0 if mean <= 2 else None
        yield Answer(model, text(fields, f"{place}.{row_format.text}"), mean, overall)


def mean_score(aspects: object, name: str) -> float | None:
    """Return the mean of the scores by aspect, each a number or an object with `Rating`; None if
    there are none."""
    scores = []
    for aspect in aspects.values() if isinstance(aspects, Mapping) else ():
        value = aspect.get("Rating") if isinstance(aspect, Mapping) else aspect
        score = read_score(value, name)
        if score is not None:
            scores.append(score)
    return fmean(scores) if scores else None


def read_score(value: object, name: str) -> float | None:
    """Return a score that is a number, or a number as text.

    Returns:
        None for null and for UltraFeedback's "N/A".
    Raises:
        ValueError: for anything else.
    """
    if value in (None, "N/A"):
        return None
    number = value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", value):
        number = float(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) < 1e300:
        raise ValueError(
            f"`{name}` holds {type(value).__name__} {value!r:.60}, expected a finite number, null "
            "or N/A"
        )
    return float(number)
