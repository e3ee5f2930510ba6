"""The answerers and the judge of the embedded world become teachers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zephyr.config import BadInput
from zephyr.teacher import rubric
from zephyr.teacher.embedded import embedded
from zephyr.teacher.request import Request, Teacher
from zephyr.world.answerers import ANSWERERS
from zephyr.world.facts import World, build_world, load_world
from zephyr.world.prompts import Prompt
from zephyr.world.rules import judge
from zephyr.world.teacher import find_prompt, prompts_by_text, teacher_reply

WORLD_TEACHERS = (*ANSWERERS, "teacher", "judge")


def open_world_teacher(spec: str, name: str, where: str) -> Teacher:
    """Return a teacher of the embedded world.

    Args:
        spec: the whole SPEC, for messages.
        name: one of `WORLD_TEACHERS`.
        where: a folder that `zephyr world` wrote, or the seed of a world; "" for seed 0.
    Raises:
        BadInput: for an unknown name, or a folder without a world.
    """
    if name not in WORLD_TEACHERS:
        raise BadInput(f"teacher {spec!r}: the world has {', '.join(WORLD_TEACHERS)}")
    is_seed = not where or where.isdigit()
    world = build_world(int(where or 0)) if is_seed else load_world(Path(where) / "world.json")
    prompts = prompts_by_text(world)
    facts = json.dumps(world, sort_keys=True)
    version = hashlib.sha256(facts.encode()).hexdigest()[:16]

    def answerer_reply(request: Request) -> str:
        text = str(request.messages[-1]["content"])
        return teacher_reply(name, request.about, text, request.seed, world, prompts)

    def judge_of_world(request: Request) -> str:
        row = request.about.get("row", {})
        assert isinstance(row, Mapping), "`about.row` is the prompt's row"
        prompt = find_prompt(row, str(row.get("prompt")), world, prompts)
        return judge_reply(request.about, prompt, world)

    return embedded(name, judge_of_world if name == "judge" else answerer_reply, version)


def judge_reply(about: Mapping[str, object], prompt: Prompt, world: World) -> str:
    """Return what a judge would write, by the rules of `world.rules`.

    Args:
        about: the question as fields. `task` is `rate` (with `aspect`, `texts`), `compare` (with
            two `texts`), `battle` (with two `texts`; the reply says by how much one is better),
            `grade` or `critique` (both with `text`).
        prompt: the prompt that the texts answer.
    """
    task = about.get("task")
    row = prompt._asdict()
    if task == "rate":
        aspect = str(about["aspect"])
        ratings = []
        for text in _texts(about):
            points = judge(row, text, world).scores[aspect]
            ratings.append(rubric.Rating(points, f"by the facts, {points} of 5 in {aspect}"))
        return rubric.format_ratings(ratings)
    if task in ("compare", "battle"):
        first, second = (judge(row, text, world).overall for text in _texts(about))
        label = _label(first, second) if task == "battle" else _better(first, second)
        return f"By the facts, {first} against {second}.\n[[{label}]]"
    verdict = judge(row, str(about["text"]), world)
    scores = ", ".join(f"{aspect} {points} of 5" for aspect, points in verdict.scores.items())
    reason = f"By the facts: {scores}."
    overall = round(2 * verdict.overall)
    if task == "grade":
        return f"{reason}\nRating: [[{overall}]]"
    return rubric.format_critique(rubric.Critique(overall, reason))


def _better(first: float, second: float) -> str:
    """The verdict of a comparison: A, B, or C for a tie."""
    if first == second:
        return "C"
    return "A" if first > second else "B"


def _label(first: float, second: float) -> str:
    """The verdict in Arena-Hard's form; a clear win is one by a point or more."""
    if first == second:
        return "A=B"
    sign = ">>" if abs(first - second) >= 1 else ">"
    return f"A{sign}B" if first > second else f"B{sign}A"


def _texts(about: Mapping[str, object]) -> Sequence[str]:
    texts = about["texts"]
    assert isinstance(texts, (list, tuple)), "`about.texts` is a list"
    return [str(text) for text in texts]
