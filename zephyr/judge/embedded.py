"""The embedded judge: a question about answers becomes the reply that a judge model would give, by rules."""
from collections.abc import Mapping

from zephyr.judge.rubric import Critique, Rating, format_critique, format_ratings
from zephyr.judge.rules import Facts, judge


def judge_reply(about: Mapping[str, object], prompt: Mapping[str, object], facts: Facts) -> str:
    """The reply to a `rate` question (`aspect`, `texts`), or to a `critique` (`text`). Args: about: the question in fields."""
    if about.get("task") == "rate":
        verdicts = [judge(prompt, str(text), facts) for text in about["texts"]]
        aspect = str(about["aspect"])
        return format_ratings([Rating(v.scores[aspect], f"by the facts, {v.scores[aspect]} of 5 in {aspect}") for v in verdicts])
    verdict = judge(prompt, str(about["text"]), facts)
    said = ", ".join(f"{aspect} {points} of 5" for aspect, points in verdict.scores.items())
    return format_critique(Critique(round(2 * verdict.overall), f"By the facts: {said}."))
