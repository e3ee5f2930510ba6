"""The embedded judge: a question about answers becomes the reply that a judge model would give, by rules."""
from collections.abc import Mapping

from zephyr.judge.rubric import Critique, Rating, format_critique, format_ratings
from zephyr.judge.rules import Facts, judge


def judge_reply(about: Mapping[str, object], prompt: Mapping[str, object], facts: Facts) -> str:
    """The reply to `rate` (`aspect`, `texts`), `compare` (two `texts`), `grade` or `critique` (`text`)."""
    if about.get("task") == "rate":
        verdicts = [judge(prompt, str(text), facts) for text in about["texts"]]
        aspect = str(about["aspect"])
        return format_ratings([Rating(v.scores[aspect], f"by the facts, {v.scores[aspect]} of 5 in {aspect}") for v in verdicts])
    if about.get("task") == "compare":
        first, second = (judge(prompt, str(text), facts).overall for text in about["texts"])
        return f"By the facts, {first} against {second}.\n[[{'A' if first > second else 'B' if first < second else 'C'}]]"
    verdict = judge(prompt, str(about["text"]), facts)
    said = ", ".join(f"{aspect} {points} of 5" for aspect, points in verdict.scores.items())
    if about.get("task") == "grade":
        return f"By the facts: {said}.\nRating: [[{round(2 * verdict.overall)}]]"
    return format_critique(Critique(round(2 * verdict.overall), f"By the facts: {said}."))
