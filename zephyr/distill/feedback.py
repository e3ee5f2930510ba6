"""Prompts become feedback rows: several answerers answer each, and a judge scores every answer in
four aspects and as a whole.

As UltraFeedback (arXiv:2310.01377) does: answerers drawn from a pool, each told a principle; one
question per aspect about all answers, in shuffled order; one critique per answer. Replies that
can't be read are asked for again, then kept as they are."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from zephyr.config import BadInput
from zephyr.data.jsonl import require_output, write_rows
from zephyr.data.sources import open_sources
from zephyr.teacher import Request, Teacher
from zephyr.teacher.panel import Ask, Panel, ask_judge, critique_request, ratings_request
from zephyr.teacher.prompts import Row, read_prompts, turns_of
from zephyr.teacher.rubric import ASPECTS, parse_critique, parse_ratings
from zephyr.teacher.templates import digests, load_templates

TEMPLATES = (
    "principles",
    "judge_system",
    *(f"judge_{aspect}" for aspect in ASPECTS),
    "judge_again",
    "critique",
)
PROMPT_BATCH_SIZE = 256


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
    """Write a feedback row per prompt to `out`; returns the report. The same replies give the same
    file, to the byte.

    Prompts: rows with `prompt` (a text, or turns that end with the user's), `messages` (up to the
    last user turn) or `instruction`; `system` and `history` are asked with it, `tools` and other
    keys that mean something are refused by name, all others counted; `prompt_id` is the row's own
    or the SHA-256 of the prompt; `source` and `reference` (facts for the judge of truthfulness) are
    kept. Rows: `prompt_id`, `prompt`, `completions` [{`model`, `text`, `scores` {aspect: 1-5 or
    null}, `overall`: 1-10 or null, `rationales`, `critique`, `principle`, `call`,
    `critique_calls`}], `judge`, `order` and `calls` by aspect, and `unparsed` replies where there
    are any. Raises: BadInput for a bad prompt row (file and line), too few answerers, a prompt id
    that comes twice; what `ask` raises."""
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
        while chunk := list(islice(prompts, PROMPT_BATCH_SIZE)):
            yield from judge_rows(
                panel, collect_completions(panel, chunk, counts, left_out), counts
            )
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


def collect_completions(
    panel: Panel, prompts: Iterable[Row], counts: Counter[str], left_out: list[str]
) -> list[Row]:
    """Rows with their completions; prompts of which fewer than two texts came are left out and
    named."""
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


def judge_rows(panel: Panel, rows: Sequence[Row], counts: Counter[str]) -> Iterator[Row]:
    """The rows with scores, reasons and the digests of the calls that gave them."""
    orders = {
        (i, aspect): random.Random(f"{panel.seed}/{row['prompt_id']}/{aspect}").sample(
            range(n := len(row["completions"])), n
        )
        for i, row in enumerate(rows)
        for aspect in ASPECTS
    }
    of_aspects = ask_judge(
        panel,
        [ratings_request(panel, rows[i], aspect, order) for (i, aspect), order in orders.items()],
        lambda text, about: parse_ratings(text, len(about["texts"])),
    )
    of_answers = ask_judge(
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
            if ratings[i, aspect].parsed is None
        }
        for n, completion in enumerate(row["completions"]):
            found = {
                aspect: (r := ratings[i, aspect].parsed) and r[orders[i, aspect].index(n)]
                for aspect in ASPECTS
            }
            whole = next(critiques)
            unparsed |= (
                {f"critique {completion['model']}": whole.text} if whole.parsed is None else {}
            )
            completion |= {
                "scores": {aspect: rating and rating.points for aspect, rating in found.items()},
                "overall": whole.parsed and whole.parsed.points,
                "critique": whole.parsed and whole.parsed.feedback,
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
