"""A judge's reply becomes ratings or a critique, or None: a reply that does not have the requested
form is never guessed at."""

import re
from typing import NamedTuple

# The aspects of UltraFeedback (arXiv:2310.01377); each has a template judge_ASPECT.txt.
ASPECTS = (
    "instruction_following",
    "truthfulness",
    "honesty",
    "helpfulness",
)
HEADING = re.compile(r"^#{1,4} *Text +(\d+) *:?[ \t]*$", re.MULTILINE)
RATING = re.compile(r"\ARating: *([1-5]) *\nRationale: *(\S(?:(?!\nRating:).)*)\Z", re.DOTALL)
CRITIQUE = re.compile(
    r"\A(?:Feedback:|#+ *Feedback:? *\n)((?:(?!\nOverall score:).)*\S)"
    r"\s*\nOverall score: *(10|[1-9]) *(?:/ *10)?\Z",
    re.DOTALL | re.IGNORECASE,
)


class Rating(NamedTuple):
    """The points of one text in one aspect, 1 to 5, and the judge's reason."""

    points: int
    rationale: str


class Critique(NamedTuple):
    """The overall points of one answer, 1 to 10, and the judge's feedback."""

    points: int
    feedback: str


def parse_ratings(reply: str, count: int) -> list[Rating] | None:
    """Return the ratings of texts 1 to `count`, in their order.

    Returns:
        None unless each text has its heading once, with one rating of 1 to 5 and a rationale, and
        nothing stands before the first heading.
    """
    before, *parts = HEADING.split(reply.strip())
    numbers, blocks = parts[::2], parts[1::2]
    if before.strip() or numbers != [str(n) for n in range(1, count + 1)]:
        return None
    ratings = []
    for block in blocks:
        match = RATING.match(block.strip())
        if match is None:
            return None
        ratings.append(Rating(int(match[1]), match[2].strip()))
    return ratings


def format_ratings(ratings: list[Rating]) -> str:
    """Return the text that `parse_ratings` reads back."""
    return "\n\n".join(
        f"## Text {n}\nRating: {rating.points}\nRationale: {rating.rationale}"
        for n, rating in enumerate(ratings, 1)
    )


def parse_critique(reply: str) -> Critique | None:
    """Return the critique, or None unless the reply is a feedback followed by one whole score of 1
    to 10 on the last line."""
    match = CRITIQUE.match(reply.strip())
    return Critique(int(match[2]), match[1].strip()) if match else None


def format_critique(critique: Critique) -> str:
    """Return the text that `parse_critique` reads back."""
    return f"Feedback: {critique.feedback}\nOverall score: {critique.points}"
