"""A judge's reply becomes numbers and reasons, or nothing: what is not in the form that was asked
for is never guessed at."""

import re
from typing import NamedTuple

ASPECTS = (
    "instruction_following",
    "truthfulness",
    "honesty",
    "helpfulness",
)  # of UltraFeedback; each has a template
HEADING = re.compile(r"^#{1,4} *Text +(\d+) *:?[ \t]*$", re.MULTILINE)
RATING = re.compile(r"\ARating: *([1-5]) *\nRationale: *(\S(?:(?!\nRating:).)*)\Z", re.DOTALL)
CRITIQUE = re.compile(
    r"\A(?:Feedback:|#+ *Feedback:? *\n)((?:(?!\nOverall score:).)*\S)\s*\nOverall score: *(10|[1-9]) *(?:/ *10)?\Z",
    re.DOTALL | re.IGNORECASE,
)


class Rating(NamedTuple):
    """An aspect's points for one text, 1 to 5, and the judge's reason."""

    points: int
    rationale: str


class Critique(NamedTuple):
    """The overall points of one answer, 1 to 10, and the judge's feedback."""

    points: int
    feedback: str


def parse_ratings(reply: str, count: int) -> list[Rating] | None:
    """The ratings of texts 1 to `count`, in their order; None unless each text has its heading
    once, one rating of 1 to 5 and a rationale, and nothing stands before the first heading."""
    before, *parts = HEADING.split(reply.strip())
    found = [RATING.match(block.strip()) for block in parts[1::2]]
    if before.strip() or parts[::2] != [str(n) for n in range(1, count + 1)] or not all(found):
        return None
    return [Rating(int(match[1]), match[2].strip()) for match in found]


def format_ratings(ratings: list[Rating]) -> str:
    """The text that `parse_ratings` reads back."""
    return "\n\n".join(
        f"## Text {n}\nRating: {rating.points}\nRationale: {rating.rationale}"
        for n, rating in enumerate(ratings, 1)
    )


def parse_critique(reply: str) -> Critique | None:
    """Feedback and overall score; None unless the reply is a feedback followed by one whole score
    of 1 to 10 on the last line."""
    match = CRITIQUE.match(reply.strip())
    return Critique(int(match[2]), match[1].strip()) if match else None


def format_critique(critique: Critique) -> str:
    """The text that `parse_critique` reads back."""
    return f"Feedback: {critique.feedback}\nOverall score: {critique.points}"
