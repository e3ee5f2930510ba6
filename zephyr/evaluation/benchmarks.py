"""A benchmark's questions become answers, and answers a judge's verdicts, in the files of FastChat
and AlpacaEval."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.evaluation.compare import FIRST_WON, parse_verdict
from zephyr.evaluation.mt_bench import WITH_REFERENCE, judge_messages, parse_rating, temperature
from zephyr.evaluation.win_rate import judge_pairs
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.panel import Ask, Panel
from zephyr.teacher.prompts import Row, format_prompt
from zephyr.teacher.templates import load_templates

FASTCHAT_ERROR = "$ERROR$"  # FastChat's word for an answer, or a judgement, that was refused
FASTCHAT = "fastchat/llm_judge/data/mt_bench in github.com/lm-sys/FastChat"
Turns = Mapping[object, Sequence[str]]  # both answers of a model, by question id


class Bench(NamedTuple):
    """Questions, right answers, and judge templates by name, all as FastChat's rows have them."""

    questions: Sequence[Row]
    references: Turns
    templates: Mapping[str, Row]


def bench_file(folder: Path, *names: str, origin: str = FASTCHAT) -> Path:
    """The first of the files that the folder holds. Raises: BadInput that says where they come
    from."""
    if not (there := [folder / name for name in names if (folder / name).is_file()]):
        raise BadInput(f"--bench-dir {folder}: no {' or '.join(names)}; it comes from {origin}")
    return there[0]


def load_bench(folder: Path, templates: Path | None = None) -> Bench:
    """The bench in a folder; templates: the user's, else of judge_prompts.jsonl in the folder or
    above, else ours. Raises: BadInput."""
    questions, references = list(read_rows([bench_file(folder, "question.jsonl")])), {}
    for place, row in questions:
        if not {"question_id", "category"} <= row.keys() or [
            type(text) for text in row.get("turns") or ()
        ] != [str, str]:
            raise BadInput(
                f"{place}: question_id, category and turns of two texts are wanted, got {dict(row)!s:.200}"
            )
    if any(row["category"] in WITH_REFERENCE for _, row in questions):
        (references, *_) = read_answers(
            bench_file(folder, "reference_answer/gpt-4.jsonl", "reference_answer_gpt-4.jsonl")
        ).values()
    (_, system), *ours = load_templates(
        ("judge_system", "mt_bench_single", "mt_bench_pair"), templates
    ).items()
    used = {name: {"system_prompt": system, "prompt_template": text} for name, text in ours}
    if theirs := [
        path
        for path in (folder / "judge_prompts.jsonl", folder.parent / "judge_prompts.jsonl")
        if path.is_file()
    ]:
        used = (
            used if templates else {str(row.get("name")): row for _, row in read_rows(theirs[:1])}
        )
    return Bench([row for _, row in questions], references, used)


def read_answers(path: Path) -> dict[str, dict[object, Sequence[str]]]:
    """Both turns by model and question, of a file in FastChat's model_answer format. Raises:
    BadInput naming the place."""
    answers: dict[str, dict[object, Sequence[str]]] = {}
    for place, row in read_rows([path]):
        try:
            first, second = row["choices"][0]["turns"]
            before = answers.setdefault(str(row["model_id"]), {}).setdefault(
                row["question_id"], turns := (first + "", second + "")
            )
        except (LookupError, TypeError, ValueError):
            raise BadInput(
                f"{place}: question_id, model_id and choices[0].turns of two texts are wanted, got {dict(row)!s:.200}"
            ) from None
        if before is not turns:
            raise BadInput(
                f"{place}: {row['model_id']} answers question {row['question_id']} a second time"
            )
    return answers


def answer_questions(
    name: str, teacher: Teacher, questions: Sequence[Row], ask: Ask, *, max_tokens: int, seed: int
) -> list[Row]:
    """A model's answers in FastChat's format; the second turn is asked with the answer to the
    first."""
    replies: list[list[Reply]] = [[] for _ in questions]
    for turn in (0, 1):
        said = [
            [row["turns"][0], *map(text_of, before), row["turns"][1]][: 2 * turn + 1]
            for row, before in zip(questions, replies)
        ]
        turns = [
            tuple(
                {"role": role, "content": text}
                for role, text in zip(("user", "assistant", "user"), texts)
            )
            for texts in said
        ]
        requests = [
            Request(
                messages,
                max_tokens,
                temperature(row),
                seed=seed,
                about={"row": {"prompt": row["turns"][turn]}},
            )
            for row, messages in zip(questions, turns)
        ]
        for of, reply in zip(replies, ask(teacher, requests)):
            of.append(reply)
    return [
        {
            "question_id": row["question_id"],
            "answer_id": of[1].digest[:22],
            "model_id": name,
            "choices": [{"index": 0, "turns": [*map(text_of, of)]}],
            "tstamp": seconds(of[1]),
        }
        for row, of in zip(questions, replies)
    ]


def text_of(reply: Reply) -> str:
    return FASTCHAT_ERROR if reply.text is None else reply.text


def seconds(reply: Reply) -> float:
    return datetime.fromisoformat(reply.time).timestamp()


def judge_answers(
    kind: str,
    bench: Bench,
    answers: Mapping[str, Turns],
    judge: Teacher,
    ask: Ask,
    *,
    max_tokens: int,
    seed: int,
) -> tuple[list[Row], Row]:
    """FastChat's judgements of each answer (`single`), or of each two models' answers in both
    orders (`pair`); and who judged with what.

    Raises: BadInput where a model lacks an answer, or a question that wants one its reference
    answer."""
    each, rows, requests = 1 if kind == "single" else 2, [], []
    for names, question, turn in (
        (n, q, t) for n in combinations(answers, each) for q in bench.questions for t in (1, 2)
    ):
        number, category = question["question_id"], question["category"]
        reference = bench.references.get(number) if category in WITH_REFERENCE else ()
        if reference is None or (
            lacking := [name for name in names if number not in answers[name]]
        ):
            raise BadInput(
                f"question {number} ({category}): no "
                + (
                    f"reference answer, of {FASTCHAT}"
                    if reference is None
                    else f"answer of {lacking[0]}"
                )
            )
        for order in (names, names[::-1])[:each]:
            shown = [answers[name][number] for name in order]
            template, messages = judge_messages(
                kind, bench.templates, question, reference, shown, turn
            )
            texts = [turns[turn - 1] for turns in shown]
            about = {
                "task": "grade" if each == 1 else "compare",
                "row": {"prompt": question["turns"][turn - 1]},
            }
            requests.append(
                Request(
                    messages,
                    max_tokens,
                    seed=seed,
                    about={**about, "text": texts[0], "texts": texts},
                )
            )
        rows.append(
            {
                "question_id": number,
                **dict(zip(("model",) if each == 1 else ("model_1", "model_2"), names)),
                "judge": [judge.name, template],
                "turn": turn,
            }
        )
    replies = ask(judge, requests)
    for i, (request, reply) in enumerate(zip(requests, replies)):
        text, n = text_of(reply), i % each + 1
        winner = {"A": f"model_{n}", "B": f"model_{3 - n}", "tie": "tie"}.get(
            str(parse_verdict(text)), "error"
        )
        prefix, verdict = (
            ("", {"score": parse_rating(text)})
            if each == 1
            else (f"g{n}_", {f"g{n}_winner": winner})
        )
        rows[i // each] |= {
            **verdict,
            f"{prefix}user_prompt": request.messages[1]["content"],
            f"{prefix}judgment": text,
            "tstamp": seconds(reply),
        }
    digests = {
        name: sha256(f"{of['system_prompt']}\n{of['prompt_template']}".encode()).hexdigest()
        for name, of in bench.templates.items()
        if name in {row["judge"][1] for row in rows}
    }
    return rows, {
        "name": judge.name,
        "versions": sorted({reply.version for reply in replies}),
        "templates": digests,
    }


def annotate(
    panel: Panel,
    prompts: Sequence[Row],
    names: Sequence[str],
    baseline: Sequence[str | None],
    outputs: Sequence[str | None],
) -> list[Row]:
    """AlpacaEval's annotations of outputs against a baseline's (names: of both): the mean of both
    orders, in which a tie counts half."""
    pairs, calls = judge_pairs(panel, prompts, outputs, baseline)
    raw = {(call["prompt_id"], call["shown_as"]): call["reply"] for call in calls}
    points = [
        None if pair is None or None in pair[:2] else 1.5 + FIRST_WON[pair[0]] - FIRST_WON[pair[1]]
        for pair in pairs
    ]
    return [
        {
            "prompt_id": prompt["prompt_id"],
            "dataset": prompt.get("dataset", ""),
            "instruction": format_prompt(prompt),
            "generator_1": names[0],
            "output_1": theirs or "",
            "generator_2": names[1],
            "output_2": ours or "",
            "annotator": panel.judge.name,
            "preference": preference,
            "orders": [pair[1], pair[0]] if pair and pair.was_judged else [],
            "raw_completion": [raw.get((prompt["prompt_id"], shown_as)) for shown_as in "BA"],
        }
        for prompt, theirs, ours, pair, preference in zip(prompts, baseline, outputs, pairs, points)
    ]
