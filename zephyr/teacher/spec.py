"""A SPEC becomes a teacher: `openai:MODEL@BASE_URL`, `hf:PATH`, or one of the embedded world,
`world:NAME[@FOLDER or seed]`."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zephyr.chat import end_of_turn_token
from zephyr.config import BadInput
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.load import load_policy
from zephyr.teacher import Request, Teacher, embedded, endpoint, local, rubric
from zephyr.world.answerers import ANSWERERS
from zephyr.world.facts import World, build_world, load_world
from zephyr.world.rules import judge
from zephyr.world.teacher import find_prompt, prompts_by_text, teacher_reply

SPEC_FORMS = "openai:MODEL@BASE_URL, hf:PATH, or world:NAME, world:NAME@FOLDER, world:NAME@SEED"
WORLD_TEACHERS = (*ANSWERERS, "teacher", "judge")


def open_teacher(
    spec: str,
    *,
    concurrency: int = 16,
    timeout_seconds: float = 120.0,
    retries: int = 6,
    key_variable: str = "OPENAI_API_KEY",
) -> Teacher:
    """The teacher that `spec` names. Args: for endpoints alone. Raises: BadInput for a spec of
    another form, or what is not there."""
    kind, _, rest = spec.partition(":")
    if kind == "openai" and (found := re.fullmatch(r"(.+)@(https?://.+)", rest)):
        return endpoint(
            found[1],
            found[2],
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            retries=retries,
            key_variable=key_variable,
        )
    if kind == "hf" and rest:
        return local(rest, load=partial(load_chat_model, rest))
    if kind == "world" and rest:
        return open_world_teacher(spec, *rest.partition("@")[::2])
    raise BadInput(f"teacher {spec!r}: {SPEC_FORMS} is wanted")


def load_chat_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that answers, and its tokenizer with its own chat template, or Zephyr's where it has
    none; in bfloat16 on this rank's GPU if there is one. Where that template ends a turn with
    another token than the tokenizer's EOS, an answer ends there."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    policy = load_policy(path, attention="sdpa", dtype=torch.bfloat16 if on_gpu else torch.float32)
    tokenizer = load_tokenizer(path)
    end = end_of_turn_token(tokenizer, tokenizer.chat_template)
    if end not in (None, tokenizer.eos_token):
        tokenizer.add_special_tokens({"eos_token": end})
    return policy.lm.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else "cpu"), tokenizer


def open_world_teacher(spec: str, name: str, where: str) -> Teacher:
    """One of the embedded world, in the world of a folder that `zephyr world` wrote, or of a seed
    (0)."""
    if name not in WORLD_TEACHERS:
        raise BadInput(f"teacher {spec!r}: the world has {', '.join(WORLD_TEACHERS)}")
    folder = where and not where.isdigit()
    world = load_world(Path(where) / "world.json") if folder else build_world(int(where or 0))
    known, version = (
        prompts_by_text(world),
        hashlib.sha256(json.dumps(world, sort_keys=True).encode()).hexdigest()[:16],
    )

    def reply(request: Request) -> str:
        if name != "judge":
            return teacher_reply(
                name, request.about, request.messages[-1]["content"], request.seed, world, known
            )
        row = request.about.get("row", {})
        return judge_reply(
            request.about, find_prompt(row, str(row.get("prompt")), world, known)._asdict(), world
        )

    return embedded(name, reply, version)


def judge_reply(about: Mapping[str, object], prompt: Mapping[str, object], world: World) -> str:
    """What a judge would write, by rules, to `rate` (`aspect`, `texts`), `compare` (two `texts`),
    `grade` or `critique` (`text`)."""
    if about.get("task") == "rate":
        aspect = str(about["aspect"])
        points = [judge(prompt, str(text), world).scores[aspect] for text in about["texts"]]
        return rubric.format_ratings(
            [rubric.Rating(n, f"by the facts, {n} of 5 in {aspect}") for n in points]
        )
    if about.get("task") == "compare":
        first, second = (judge(prompt, str(text), world).overall for text in about["texts"])
        return f"By the facts, {first} against {second}.\n[[{'A' if first > second else 'B' if first < second else 'C'}]]"
    verdict = judge(prompt, str(about["text"]), world)
    said = ", ".join(f"{aspect} {points} of 5" for aspect, points in verdict.scores.items())
    if about.get("task") == "grade":
        return f"By the facts: {said}.\nRating: [[{round(2 * verdict.overall)}]]"
    return rubric.format_critique(
        rubric.Critique(round(2 * verdict.overall), f"By the facts: {said}.")
    )
