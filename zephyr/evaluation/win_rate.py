"""Prompts become answers of several models, and two answers a verdict of a judge who sees them in
both orders."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.compare import Comparison, parse_verdict, summarise
from zephyr.evaluation.statistics import mean_with_interval
from zephyr.teacher import Request, Teacher
from zephyr.teacher.panel import Ask, Panel, ask_judge, critique_request, judge_request
from zephyr.teacher.prompts import Row, format_prompt, turns_of
from zephyr.teacher.rubric import parse_critique
from zephyr.teacher.spec import SPEC_FORMS
from zephyr.teacher.templates import fill, load_templates

TEMPLATES = ("judge_system", "judge_again", "compare", "critique")
NAMED = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)
RESERVED = ("results", "verdicts", "tie")  # files beside those of the models, and a label


class Contender(NamedTuple):
    """Who answers, and what results call it. Without a teacher the answers are there: by prompt id,
    or by the prompt's text."""

    name: str
    teacher: Teacher | None
    stored: Mapping[str, str | None]


def open_contender(argument: str, open_spec: Callable[[str], Teacher]) -> Contender:
    """A model argument, `[NAME=]` before a teacher's spec, a model folder or a file of answers.
    Raises: BadInput where it is none."""
    found = None if Path(argument).exists() else NAMED.fullmatch(argument)
    name, what = (
        found.groups() if found else (re.sub(r"[^\w.-]+", "_", argument).strip("_."), argument)
    )
    if not name or name.lower() in RESERVED:
        raise BadInput(
            f"model {argument!r}: a NAME=... other than {', '.join(RESERVED)} is wanted before it"
        )
    if Path(what).is_file():
        return Contender(name, None, read_stored(Path(what), "text", "output"))
    if not Path(what).is_dir() and not re.match("(openai|hf|world):", what):
        raise BadInput(
            f"model {argument!r}: no such folder or file; a model folder, a file of answers, {SPEC_FORMS} is wanted"
        )
    return Contender(name, open_spec(f"hf:{what}" if Path(what).is_dir() else what), {})


def read_stored(path: Path, *fields: str) -> dict[str, str | None]:
    """What rows say in one of the fields, by prompt id or AlpacaEval's `instruction`. Raises:
    BadInput naming file and line."""
    found: dict[str, str | None] = {}
    for place, row in read_rows([path]):
        key = row.get("prompt_id", row.get("instruction"))
        text = next(
            (row[field] for field in fields if field in row),
            None if row.get("unanswered") is True else 0,
        )
        if (
            not isinstance(key, (str, int))
            or not isinstance(text, (str, type(None)))
            or str(key) in found
        ):
            raise BadInput(
                f"{place}: prompt_id (or instruction), each once, and {' or '.join(fields)} are wanted, got {dict(row)!s:.200}"
            )
        found[str(key)] = text
    return found


def collect_answers(
    contender: Contender,
    prompts: Sequence[Row],
    ask: Ask,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str | None]:
    """Its answer to each prompt row; None where it refused. Raises: BadInput where stored answers
    lack a prompt; what `ask` raises."""
    if contender.teacher:
        return [
            reply.text
            for reply in ask(
                contender.teacher,
                [
                    Request(
                        tuple(turns_of(row["prompt"])),
                        max_tokens,
                        temperature,
                        seed=seed,
                        about={"task": "answer", "row": row},
                    )
                    for row in prompts
                ],
            )
        ]
    keys = [
        row["prompt_id"] if row["prompt_id"] in contender.stored else str(row["prompt"])
        for row in prompts
    ]
    if lacking := [
        row["prompt_id"] for row, key in zip(prompts, keys) if key not in contender.stored
    ]:
        raise BadInput(
            f"{contender.name}: no answer to {len(lacking)} of {len(prompts)} prompts in its file, the first is {lacking[0]!r}"
        )
    return [contender.stored[key] for key in keys]


def read_human_labels(
    path: Path, names: Sequence[str], prompts: Sequence[Row]
) -> list[float | None]:
    """Points of the second of two models at each prompt, from rows of prompt_id and preferred.
    Raises: BadInput for another name."""
    points, labels = {names[1]: 1.0, names[0]: 0.0, "tie": 0.5}, read_stored(path, "preferred")
    if others := set(labels.values()) - (points.keys() if len(names) == 2 else set()):
        raise BadInput(
            f"{path}: preferred {others.pop()!r}: tie or one of exactly two models is wanted; they are {', '.join(names)}"
        )
    return [points.get(labels.get(row["prompt_id"])) for row in prompts]


def judge_panel(
    judge: Teacher,
    ask: Ask,
    *,
    templates: Path | None = None,
    seed: int = 0,
    max_tokens: int = 1024,
) -> Panel:
    """The judge with its templates, as `compare` takes it. Args: templates: the user's. max_tokens:
    of a judgement."""
    return Panel(judge, ask, load_templates(TEMPLATES, templates), seed, max_tokens)


def judge_pairs(
    panel: Panel,
    prompts: Sequence[Row],
    answers: Sequence[str | None],
    others: Sequence[str | None],
) -> tuple[list[Comparison | None], list[Row]]:
    """Each prompt's two answers as the judge sees them in both orders (None where one is missing),
    and every call with its reply.

    Equal texts are a tie without a call. A reply that can't be read is asked for again, as feedback
    does, and then left out."""
    pairs = list(zip(answers, others, strict=True))
    asked = {
        (i, shown_as): [a, b] if shown_as == "A" else [b, a]
        for i, (a, b) in enumerate(pairs)
        if None not in (a, b) and a != b
        for shown_as in "AB"
    }
    requests = [
        judge_request(
            panel,
            fill(
                panel.templates["compare"], instruction=format_prompt(prompts[i]), first=a, second=b
            ),
            {"task": "compare", "row": prompts[i], "texts": [a, b]},
        )
        for (i, _), (a, b) in asked.items()
    ]
    said = dict(zip(asked, ask_judge(panel, requests, lambda text, _: parse_verdict(text))))
    verdict = {key: one.parsed for key, one in said.items()}
    rows = [
        None
        if None in (a, b)
        else Comparison(
            verdict.get((i, "A"), "tie"), verdict.get((i, "B"), "tie"), (len(a), len(b)), a != b
        )
        for i, (a, b) in enumerate(pairs)
    ]
    return rows, [
        {
            "prompt_id": prompts[i]["prompt_id"],
            "shown_as": shown_as,
            "verdict": one.parsed,
            "reply": one.text,
            "calls": one.calls,
        }
        for (i, shown_as), one in said.items()
    ]


def compare_models(
    panel: Panel,
    prompts: Sequence[Row],
    answers: Mapping[str, Sequence[str | None]],
    labels: Sequence[float | None],
    out: Path,
    by: str | None,
    scores: bool,
) -> Row:
    """Compare each model's answers with those of every one before it; writes NAME.jsonl and
    verdicts.jsonl into the folder `out`.

    Args: labels: of the second model. by: a field of the prompts. scores: ask for a critique and
    score, 1 to 10, of every answer too. Returns: `pairs`, "B over A": see `summarise`; `models`,
    name: `score`; each also `by` value of the field."""
    values = [str(row[by]) for row in prompts] if by else []
    results, verdicts = {"pairs": {}, "models": {}}, []

    def grouped(summary: Callable[[Sequence[int]], Row]) -> Row:
        by_value = {
            v: summary([i for i, value in enumerate(values) if value == v])
            for v in sorted(set(values))
        }
        return {**summary(range(len(prompts))), **({"by": by_value} if by else {})}

    for n, (name, texts) in enumerate(answers.items()):
        given = [i for i, text in enumerate(texts) if text is not None] if scores else []
        requests = [critique_request(panel, prompts[i], str(texts[i])) for i in given]
        said = dict(zip(given, ask_judge(panel, requests, lambda text, _: parse_critique(text))))
        points = {i: float(one.parsed.points) for i, one in said.items() if one.parsed}
        write_rows(
            out / f"{name}.jsonl",
            (
                {
                    "prompt_id": row["prompt_id"],
                    "prompt": row["prompt"],
                    **({"unanswered": True} if text is None else {"text": text}),
                    **(
                        {"score": points.get(i), "critique": said[i].text, "calls": said[i].calls}
                        if i in said
                        else {}
                    ),
                }
                for i, (row, text) in enumerate(zip(prompts, texts))
            ),
        )
        if scores:
            results["models"][name] = grouped(
                lambda chosen: {
                    **mean_with_interval("score", [points[i] for i in chosen if i in points]),
                    "unparsed": sum(i in said and i not in points for i in chosen),
                    "unanswered": sum(i not in said for i in chosen),
                }
            )
        for other in list(answers)[:n]:
            rows, calls = judge_pairs(panel, prompts, texts, answers[other])
            verdicts += [{"model": name, "over": other, **call} for call in calls]
            results["pairs"][f"{name} over {other}"] = grouped(
                lambda of: summarise([rows[i] for i in of], [labels[i] for i in of])
            )
    write_rows(out / "verdicts.jsonl", verdicts)
    return results
