"""A judge is asked about answers: their scores in one aspect, or a critique of each; a reply that
can't be read is asked again."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.prompts import Row, format_prompt
from zephyr.teacher.rubric import Critique, Rating
from zephyr.teacher.templates import fill

Ask = Callable[[Teacher, Sequence[Request]], list[Reply]]


MAX_REASKS = 2


class Panel(NamedTuple):
    """Who answers and judges, how they are asked, and what decides every draw."""

    answerers: Sequence[Teacher]
    judge: Teacher
    ask: Ask
    templates: Mapping[str, str]
    per_prompt: int
    seed: int
    principles: bool
    max_tokens: int


class Judgement(NamedTuple):
    """A judge's last reply to a question: `parsed` is None where it could not be read. `calls`:
    digests of all replies."""

    parsed: list[Rating] | Critique | None
    text: str
    calls: list[str]


def ratings_request(panel: Panel, row: Row, aspect: str, order: Sequence[int]) -> Request:
    """The question of one aspect about all answers of a prompt, in the given order."""
    texts = [str(row["completions"][n]["text"]) for n in order]
    shown = "\n\n".join(f"## Text {number}\n{text}" for number, text in enumerate(texts, 1))
    reference = row["about"].get("reference")
    known = (
        f"\nWhat is known about it:\n{reference if isinstance(reference, str) else json.dumps(reference)}\n"
        if reference
        else ""
    )
    content = fill(
        panel.templates[f"judge_{aspect}"],
        instruction=format_prompt(row),
        texts=shown,
        count=str(len(texts)),
        reference=known,
    )
    return judge_request(
        panel, content, {"task": "rate", "aspect": aspect, "row": row["about"], "texts": texts}
    )


def critique_request(panel: Panel, row: Row, completion: Row) -> Request:
    """The question about one answer as a whole."""
    content = fill(
        panel.templates["critique"], instruction=format_prompt(row), answer=str(completion["text"])
    )
    return judge_request(
        panel, content, {"task": "critique", "row": row["about"], "text": completion["text"]}
    )


def judge_request(panel: Panel, content: str, about: Row) -> Request:
    return Request(
        (
            {"role": "system", "content": panel.templates["judge_system"]},
            {"role": "user", "content": content},
        ),
        max_tokens=panel.max_tokens,
        seed=panel.seed,
        about=about,
    )


def ask_judge(
    panel: Panel,
    requests: Sequence[Request],
    parse: Callable[[str, Mapping[str, object]], list[Rating] | Critique | None],
) -> list[Judgement]:
    """What the judge said to each question; those whose reply can't be read are asked again,
    MAX_REASKS times at most, told so."""
    results = [Judgement(None, "", []) for _ in requests]
    current = dict(enumerate(requests))
    for attempt in range(1 + MAX_REASKS):
        for i, reply in zip(current, panel.ask(panel.judge, list(current.values()))):
            found = None if reply.text is None else parse(reply.text, requests[i].about)
            results[i] = Judgement(
                found,
                reply.text if reply.text is not None else reply.error,
                [*results[i].calls, reply.digest],
            )
        again = {"role": "user", "content": panel.templates["judge_again"]}
        current = {
            i: requests[i]._replace(
                messages=(
                    *requests[i].messages,
                    {"role": "assistant", "content": results[i].text},
                    again,
                ),
                seed=requests[i].seed + 1 + attempt,
            )
            for i in current
            if results[i].parsed is None
        }
        if not current:
            break
    return results
