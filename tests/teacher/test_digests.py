"""Request digests as literals: a ledger of an earlier version must answer the same requests."""

from __future__ import annotations

from zephyr.config import BadInput
from zephyr.teacher import Request, Teacher
from zephyr.teacher.panel import Panel, critique_request, ratings_request
from zephyr.teacher.rubric import ASPECTS
from zephyr.teacher.templates import load_templates

PROMPT = {"prompt_id": "p1", "prompt": "What is 2 + 2?", "reference": "4"}


def nobody(*_: object) -> list[object]:
    raise BadInput("nobody is asked in these tests")


def panel() -> Panel:
    names = ("judge_system", "judge_again", "critique", *(f"judge_{aspect}" for aspect in ASPECTS))
    return Panel(Teacher("judge", nobody), nobody, load_templates(names), seed=7, max_tokens=512)


def test_the_digest_of_a_request() -> None:
    """Fails if a field, its JSON form or the order of keys changes: every reply that users paid for
    would be requested again."""
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "Grüße \u2028 {x}?"}
    request = Request((system, user), 6, 0.7, 0.5, 3, about={"task": "x"})
    assert (
        request.digest("m at http://localhost/v1")
        == "1ba84e8419787002f052cf23b4a019682def73eb3d21c759add05f88a757330e"
    )


def test_the_digests_of_the_judges_requests() -> None:
    """Fails if a template changes by one character, or the text around the answers does."""
    assert (
        ratings_request(panel(), PROMPT, "truthfulness", ["Four.", "4"]).digest("judge")
        == "a842e48915a54f5793e0d06853d41a80fa81cfc01ac66c2b5187494f79386e7d"
    )
    assert (
        critique_request(panel(), PROMPT, "4").digest("judge")
        == "dc33a2359f4a24c7008a1385604428b361399cce9438dd49ec668cc3ad459d89"
    )
