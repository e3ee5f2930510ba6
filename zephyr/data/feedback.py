"""Prompts become feedback rows: several answerers answer each, and a judge scores every answer in four aspects and as a whole.

As UltraFeedback (arXiv:2310.01377) does: answerers drawn from a pool, each told a principle; one question per aspect about all
answers, in shuffled order; one critique per answer. Replies that can't be read are asked for again, then kept as they are."""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, require_output, write_rows
from zephyr.data.shapes import asked_row
from zephyr.data.sources import open_sources
from zephyr.data.templates import digests, fill, load_templates
from zephyr.judge.rubric import ASPECTS, Critique, Rating, parse_critique, parse_ratings
from zephyr.teacher import Reply, Request, Teacher

Row = dict[str, object]
Ask = Callable[[Teacher, Sequence[Request]], list[Reply]]
TEMPLATES = (
    "principles",
    "judge_system",
    *(f"judge_{aspect}" for aspect in ASPECTS),
    "judge_again",
    "critique",
)
PROMPTS_AT_ONCE = 256
RE_ASKS = 2


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


class Judged(NamedTuple):
    """A judge's last reply to a question: `found` is None where it could not be read. `calls`: digests of all replies."""

    found: list[Rating] | Critique | None
    text: str
    calls: list[str]


def collect_feedback(
    sources: Sequence[str],
    out: Path,
    answerers: Sequence[Teacher],
    judge: Teacher,
    ask: Ask,
    *,
    per_prompt: int = 4,
    seed: int = 0,
    principles: bool = True,
    max_tokens: int = 1024,
    templates: Path | None = None,
) -> Row:
    """Write a feedback row per prompt to `out`; returns the report. The same replies give the same file, to the byte.

    Prompts: rows with `prompt` (a text, or turns that end with the user's), `messages` (up to the last user turn) or `instruction`;
    `system` and `history` are asked with it, `tools` and other keys that mean something are refused by name, all others counted;
    `prompt_id` is the row's own or the SHA-256 of the prompt; `source` and `reference` (facts for the judge of truthfulness) are kept.
    Rows: `prompt_id`, `prompt`, `completions` [{`model`, `text`, `scores` {aspect: 1-5 or null}, `overall`: 1-10 or null, `rationales`,
    `critique`, `principle`, `call`, `critique_calls`}], `judge`, `order` and `calls` by aspect, and `unparsed` replies where there are any.
    Raises: BadInput for a bad prompt row (file and line), too few answerers, a prompt id that comes twice; what `ask` raises."""
    if not 2 <= per_prompt <= len(answerers) or len({a.name for a in answerers}) < len(answerers):
        raise BadInput(
            f"feedback compares answers: at least {max(2, per_prompt)} answerers of different names are wanted, got "
            f"{', '.join(a.name for a in answerers)}"
        )
    texts = load_templates(TEMPLATES, templates)
    if (
        not all(": " in line for line in texts["principles"].splitlines())
        or not texts["principles"]
    ):
        raise BadInput(f"templates {templates}: principles.txt: lines `name: text` are wanted")
    require_output(out, sources)
    panel = Panel(answerers, judge, ask, texts, per_prompt, seed, principles, max_tokens)
    counts: Counter[str] = Counter()
    left_out: list[str] = []
    unread: Counter[str] = Counter()

    def judged_prompts() -> Iterator[Row]:
        prompts = read_prompts(sources, unread)
        while chunk := list(islice(prompts, PROMPTS_AT_ONCE)):
            yield from judged_rows(panel, answered(panel, chunk, counts, left_out), counts)
        if counts["prompts"] == counts["too_few_answers"]:
            raise BadInput(
                f"{', '.join(map(str, sources))}: no prompt got two answers: {json.dumps(counts)}"
            )

    counts["rows"] = write_rows(out, judged_prompts())
    return {
        "command": "feedback",
        "sources": list(map(str, sources)),
        "digests": {s.name: s.digest for s in open_sources(sources)},
        "answerers": [a.identity or a.name for a in answerers],
        "judge": judge.identity or judge.name,
        "per_prompt": per_prompt,
        "seed": seed,
        "principles": principles,
        "max_tokens": max_tokens,
        "templates": digests(texts),
        **counts,
        "left_out": left_out[:100],
        "keys_not_read": dict(sorted(unread.items())),
    }


def read_prompts(sources: Sequence[str], unread: Counter[str] | None = None) -> Iterator[Row]:
    """Prompt rows with `prompt_id` and `prompt`; `unread`: counts the keys that nothing reads. Raises: BadInput naming file and line."""
    seen: dict[str, str] = {}

    def read(row: Mapping[str, object]) -> Row:
        prompt, keys = prompt_of(row)
        if unread is not None:
            unread.update(dict.fromkeys(keys, 1))
        return {**row, "prompt": prompt}

    for place, row in read_rows(sources, read):
        name = str(
            row.get(
                "prompt_id",
                row.get("id", hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()),
            )
        )
        if name in seen:
            raise BadInput(f"{place}: prompt_id {name!r} comes twice, first at {seen[name]}")
        seen[name] = place
        yield {**row, "prompt_id": name}


def prompt_of(row: Mapping[str, object]) -> tuple[str | list[dict[str, str]], list[str]]:
    """The prompt of a row, its text, or its turns where there are several; and the keys that nothing reads.

    Raises: ValueError naming the field: also one that training would honour or refuse, and that nobody who is asked could be given."""
    try:
        turns, unread = asked_row(row)
    except ValueError as error:
        raise ValueError(
            re.sub(
                r"; data\..*", "; take it out of the rows, or put it into the prompt", str(error)
            )
        ) from None
    return turns[0]["content"] if len(turns) == 1 else [dict(turn) for turn in turns], unread


def turns_of(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def answered(
    panel: Panel, prompts: Iterable[Row], counts: Counter[str], left_out: list[str]
) -> list[Row]:
    """Rows with their completions; prompts of which fewer than two texts came are left out and named."""
    rows = [
        {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "completions": [], "about": row}
        for row in prompts
    ]
    wanted: dict[int, list[tuple[Row, Row, Request]]] = {}
    for row in rows:
        rng = random.Random(f"{panel.seed}/{row['prompt_id']}/answerers")
        drawn = sorted(rng.sample(range(len(panel.answerers)), panel.per_prompt))
        for n in drawn:
            name, principle = rng.choice(panel.templates["principles"].splitlines()).split(": ", 1)
            system = (
                [{"role": "system", "content": principle}]
                if panel.principles and turns_of(row["prompt"])[0]["role"] == "user"
                else []
            )
            request = Request(
                (*system, *turns_of(row["prompt"])),
                max_tokens=panel.max_tokens,
                temperature=1.0,
                seed=panel.seed,
                about={"task": "answer", "row": row["about"]},
            )
            completion = {"model": panel.answerers[n].name, "principle": name if system else None}
            row["completions"].append(completion)
            wanted.setdefault(n, []).append((row, completion, request))
    for n, asked in wanted.items():
        for (_, completion, _), reply in zip(
            asked, panel.ask(panel.answerers[n], [request for *_, request in asked])
        ):
            cut = {"finish_reason": reply.finish_reason} if reply.finish_reason == "length" else {}
            completion |= {"text": (reply.text or "").strip(), "call": reply.digest, **cut}
            counts["cut"] += len(cut)
            counts["refused"] += reply.text is None
            counts["empty"] += reply.text is not None and not reply.text.strip()
    for row in rows:
        row["completions"] = [c for c in row["completions"] if c["text"]]
    counts["prompts"] += len(rows)
    left_out += [str(row["prompt_id"]) for row in rows if len(row["completions"]) < 2]
    counts["too_few_answers"] += sum(len(row["completions"]) < 2 for row in rows)
    return [row for row in rows if len(row["completions"]) > 1]


def judged_rows(panel: Panel, rows: Sequence[Row], counts: Counter[str]) -> Iterator[Row]:
    """The rows with scores, reasons and the digests of the calls that gave them."""
    orders = {
        (i, aspect): random.Random(f"{panel.seed}/{row['prompt_id']}/{aspect}").sample(
            range(n := len(row["completions"])), n
        )
        for i, row in enumerate(rows)
        for aspect in ASPECTS
    }
    of_aspects = judged(
        panel,
        [ratings_request(panel, rows[i], aspect, order) for (i, aspect), order in orders.items()],
        lambda text, about: parse_ratings(text, len(about["texts"])),
    )
    of_answers = judged(
        panel,
        [
            critique_request(panel, row, completion)
            for row in rows
            for completion in row["completions"]
        ],
        lambda text, _: parse_critique(text),
    )
    ratings, critiques = dict(zip(orders, of_aspects)), iter(of_answers)
    for i, row in enumerate(rows):
        unparsed = {
            aspect: ratings[i, aspect].text
            for aspect in ASPECTS
            if ratings[i, aspect].found is None
        }
        for n, completion in enumerate(row["completions"]):
            found = {
                aspect: (r := ratings[i, aspect].found) and r[orders[i, aspect].index(n)]
                for aspect in ASPECTS
            }
            whole = next(critiques)
            unparsed |= (
                {f"critique {completion['model']}": whole.text} if whole.found is None else {}
            )
            completion |= {
                "scores": {aspect: rating and rating.points for aspect, rating in found.items()},
                "overall": whole.found and whole.found.points,
                "critique": whole.found and whole.found.feedback,
                "rationales": {
                    aspect: rating and rating.rationale for aspect, rating in found.items()
                },
                "critique_calls": whole.calls,
            }
        counts["unparsed"] += len(unparsed)
        kept = {key: row["about"][key] for key in ("source", "reference") if key in row["about"]}
        yield {
            "prompt_id": row["prompt_id"],
            "prompt": row["prompt"],
            **kept,
            "completions": row["completions"],
            "judge": panel.judge.name,
            "order": {aspect: orders[i, aspect] for aspect in ASPECTS},
            "calls": {aspect: ratings[i, aspect].calls for aspect in ASPECTS},
            **({"unparsed": unparsed} if unparsed else {}),
        }


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
        instruction=shown_prompt(row),
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
        panel.templates["critique"], instruction=shown_prompt(row), answer=str(completion["text"])
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


def shown_prompt(row: Row) -> str:
    """A prompt as the judge reads it: turns of a dialogue are marked."""
    return (
        "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in p)
        if isinstance(p := row["prompt"], list)
        else p
    )


def judged(
    panel: Panel,
    requests: Sequence[Request],
    parse: Callable[[str, Mapping[str, object]], list[Rating] | Critique | None],
) -> list[Judged]:
    """What the judge said to each question; those whose reply can't be read are asked again, RE_ASKS times at most, told so."""
    results = [Judged(None, "", []) for _ in requests]
    current = dict(enumerate(requests))
    for attempt in range(1 + RE_ASKS):
        for i, reply in zip(current, panel.ask(panel.judge, list(current.values()))):
            found = None if reply.text is None else parse(reply.text, requests[i].about)
            results[i] = Judged(
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
            if results[i].found is None
        }
        if not current:
            break
    return results
