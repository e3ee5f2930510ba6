"""Answers become a judge's verdicts: the judge is asked for ratings, a critique or anything else
with a form, and asked again if its reply does not have the form.

The evaluation of models and the collection of feedback both judge answers this way."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from zephyr.teacher.prompts import format_prompt
from zephyr.teacher.request import Reply, Request, Teacher
from zephyr.teacher.templates import fill

Ask = Callable[[Teacher, Sequence[Request]], list[Reply]]
T = TypeVar("T")

MAX_REASKS = 2  # of one question


class Panel(NamedTuple):
    """A judge and how it is asked.

    `ask`: returns the replies of a teacher in the order of the requests.
    `templates`: by name. `judge_system` and `judge_again` are always used; `judge_ASPECT`,
    `critique` and others by the questions that need them.
    `max_tokens`: of each reply.
    """

    judge: Teacher
    ask: Ask
    templates: Mapping[str, str]
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Judgement(Generic[T]):
    """What the judge replied to one question.

    `parsed`: None if no reply had the form.
    `text`: the last reply, or the error if the request was refused.
    `calls`: the request digests of all replies.
    """

    parsed: T | None
    text: str
    calls: list[str]


def ratings_request(
    panel: Panel, prompt: Mapping[str, object], aspect: str, texts: Sequence[str]
) -> Request:
    """Return the request to rate texts in one aspect.

    Args:
        prompt: the prompt row that the texts answer. `reference`, if it has one, is shown to the
            judge as known facts by the templates with that field.
        aspect: one of `rubric.ASPECTS`.
        texts: in the order in which the judge reads them.
    """
    reference = prompt.get("reference")
    known = ""
    if reference:
        facts = reference if isinstance(reference, str) else json.dumps(reference)
        known = f"\nWhat is known about it:\n{facts}\n"
    content = fill(
        panel.templates[f"judge_{aspect}"],
        instruction=format_prompt(prompt),
        texts="\n\n".join(f"## Text {number}\n{text}" for number, text in enumerate(texts, 1)),
        count=str(len(texts)),
        reference=known,
    )
    about = {"task": "rate", "aspect": aspect, "row": prompt, "texts": list(texts)}
    return judge_request(panel, content, about)


def critique_request(panel: Panel, prompt: Mapping[str, object], answer: str) -> Request:
    """Return the request for feedback on one answer as a whole, and its overall score."""
    content = fill(panel.templates["critique"], instruction=format_prompt(prompt), answer=answer)
    return judge_request(panel, content, {"task": "critique", "row": prompt, "text": answer})


def judge_request(panel: Panel, content: str, about: Mapping[str, object]) -> Request:
    """Return a request to the judge.

    Args:
        content: the filled template of the question.
        about: the question as fields, for embedded judges (`Request.about`).
    """
    system = {"role": "system", "content": panel.templates["judge_system"]}
    user = {"role": "user", "content": content}
    return Request((system, user), max_tokens=panel.max_tokens, seed=panel.seed, about=about)


def ask_judge(
    panel: Panel,
    requests: Sequence[Request],
    parse: Callable[[str, Mapping[str, object]], T | None],
) -> list[Judgement[T]]:
    """Ask the judge, and ask again, up to `MAX_REASKS` times, where the reply cannot be parsed.

    A repeated question shows the judge its reply and the template `judge_again`, and has another
    seed.

    Args:
        parse: returns the parsed reply or None, from the reply's text and the request's `about`.
    Returns:
        The judgements in the order of the requests.
    """
    results: list[Judgement[T]] = [Judgement(None, "", []) for _ in requests]
    open_requests = dict(enumerate(requests))
    for attempt in range(1 + MAX_REASKS):
        replies = panel.ask(panel.judge, list(open_requests.values()))
        for i, reply in zip(open_requests, replies):
            calls = [*results[i].calls, reply.digest]
            if reply.text is None:
                results[i] = Judgement(None, reply.error, calls)
            else:
                results[i] = Judgement(parse(reply.text, requests[i].about), reply.text, calls)
        open_requests = {
            i: _ask_again(panel, requests[i], results[i].text, seed=requests[i].seed + 1 + attempt)
            for i in open_requests
            if results[i].parsed is None
        }
        if not open_requests:
            break
    return results


def _ask_again(panel: Panel, request: Request, reply: str, *, seed: int) -> Request:
    said = {"role": "assistant", "content": reply}
    again = {"role": "user", "content": panel.templates["judge_again"]}
    return request._replace(messages=(*request.messages, said, again), seed=seed)
