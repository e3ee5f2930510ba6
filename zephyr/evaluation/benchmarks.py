"""MT-Bench and AlpacaEval with a judge: models answer the benchmark's questions, and the judge's
replies become records in the files of FastChat and AlpacaEval."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_json, write_rows
from zephyr.evaluation.answers import (
    OpenTeacher,
    answer_digests,
    collect_answers,
    contender_name,
    open_contender,
    open_contenders,
    require_own_names,
    split_name,
)
from zephyr.evaluation.compare import FIRST_WON, parse_verdict
from zephyr.evaluation.mt_bench import WITH_REFERENCE, judge_messages, parse_rating, temperature
from zephyr.evaluation.win_rate import judge_pairs, judge_panel
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.panel import Ask, Panel
from zephyr.teacher.prompts import format_prompt, read_prompts
from zephyr.teacher.templates import digests, load_templates

Row = dict[str, Any]  # of a file in FastChat's or AlpacaEval's format
FASTCHAT_ERROR = "$ERROR$"  # FastChat's word for an answer, or a judgement, that was refused
FASTCHAT = "fastchat/llm_judge/data/mt_bench in github.com/lm-sys/FastChat"
ALPACA_EVAL = "huggingface.co/datasets/tatsu-lab/alpaca_eval"
Turns = Mapping[object, Sequence[str]]  # both answers of a model, by question id


class Bench(NamedTuple):
    """MT-Bench's questions, reference answers, and judge templates by name, as FastChat's rows have
    them."""

    questions: Sequence[Row]
    references: Turns
    templates: Mapping[str, Mapping[str, object]]


def bench_file(folder: Path, *names: str, origin: str = FASTCHAT) -> Path:
    """The first of the named files that is in the folder. Raises: BadInput that says where to get
    them."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"--bench-dir {folder}: no {' or '.join(names)}; it comes from {origin}")


def evaluate_mt_bench(
    bench: Bench,
    models: Sequence[str],
    *,
    judge: Teacher,
    open_teacher: OpenTeacher,
    ask: Ask,
    out: Path,
    pairwise: bool = False,
    seed: int = 0,
    max_new_tokens: int = 1024,
    judge_tokens: int = 2048,
) -> tuple[list[Row], Row]:
    """Let models answer MT-Bench's questions, and the judge grade the answers, or compare those of
    each two models (`pairwise`).

    Args:
        models: each `[NAME=]` and a model folder, a SPEC or a file of answers.
        out: folder for model_answer/NAME.jsonl and model_judgment/JUDGE_KIND.jsonl, as FastChat's.
        max_new_tokens, judge_tokens: limits of an answer and of a judgement.

    Returns: the judgements as `mt_bench.score_judgments` reads them, and what they are about: who
    judged with what, and digests of the answers.

    Raises: BadInput where two models have one name, or an answer is missing."""
    entrants = read_entrants(models)
    for _, origin, stored in entrants:
        require_questions(origin, bench, stored or {})
    answers: dict[str, Turns] = {}
    for name, origin, stored in entrants:
        if stored is None:
            teacher = open_contender(origin, open_teacher).teacher
            assert teacher is not None, "only a file has stored answers"
            rows = answer_questions(
                name, teacher, bench.questions, ask, max_tokens=max_new_tokens, seed=seed
            )
            write_rows(out / "model_answer" / f"{name}.jsonl", rows)
            stored = {row["question_id"]: row["choices"][0]["turns"] for row in rows}
        answers[name] = stored
    kind = "pair" if pairwise else "single"
    rows, by = judge_answers(kind, bench, answers, judge, ask, max_tokens=judge_tokens, seed=seed)
    write_rows(out / "model_judgment" / f"{file_name(judge)}_{kind}.jsonl", rows)
    digested = {name: turns.items() for name, turns in answers.items()}
    return rows, {"judge": by, "answers": answer_digests(digested)}


class Entrant(NamedTuple):
    """A model, where it comes from, as error messages show it, and its stored answers; None: it is
    asked."""

    name: str
    origin: str
    stored: Turns | None


def read_entrants(arguments: Sequence[str]) -> list[Entrant]:
    """The models of `[NAME=]` and a model folder, a SPEC or a file in FastChat's format, which may
    have the answers of several. Raises: BadInput where two have one name."""
    found: list[Entrant] = []
    for argument in arguments:
        name, what = split_name(argument)
        if Path(what).is_file():
            found += [
                Entrant(name or model, f"{what}: {model}", turns)
                for model, turns in read_answers(Path(what)).items()
            ]
        else:
            found.append(Entrant(contender_name(argument), argument, None))
    require_own_names([of.name for of in found], [of.origin for of in found])
    return found


def stored_turns(arguments: Sequence[str]) -> dict[str, Turns]:
    """The answers of `[NAME=]FILE` in FastChat's format, by model. Raises: BadInput for what is no
    file, and where two models have one name."""
    found: dict[str, Turns] = {}
    for name, origin, stored in read_entrants(arguments):
        if stored is None:
            raise BadInput(f"{origin}: expected a file of the answers that were judged")
        found[name] = stored
    return found


def require_questions(origin: str, bench: Bench, stored: Turns) -> None:
    """Raises: BadInput for an answer to a question that the bench does not have."""
    known = {row["question_id"] for row in bench.questions}
    if extra := [number for number in stored if number not in known]:
        raise BadInput(
            f"{origin} answers question {extra[0]!r}, which is none of the {len(known)} of "
            "--bench-dir"
        )


def file_name(judge: Teacher) -> str:
    return judge.name.strip("/").replace("/", "_")


def load_bench(folder: Path, templates: Path | None = None) -> Bench:
    """MT-Bench from a folder.

    Args: templates: folder of the user's own. Default: judge_prompts.jsonl in `folder` or above it,
    else ours. Raises: BadInput naming file and line."""
    rows: list[tuple[str, Row]] = list(read_rows([bench_file(folder, "question.jsonl")]))
    for place, row in rows:
        turns = [type(text) for text in row.get("turns") or ()]
        if not {"question_id", "category"} <= row.keys() or turns != [str, str]:
            raise BadInput(
                f"{place}: expected question_id, category and turns of two texts, "
                f"got {dict(row)!s:.200}"
            )
    questions = [row for _, row in rows]
    references: Turns = {}
    if any(row["category"] in WITH_REFERENCE for row in questions):
        names = ("reference_answer/gpt-4.jsonl", "reference_answer_gpt-4.jsonl")
        references = next(iter(read_answers(bench_file(folder, *names)).values()), {})
    return Bench(questions, references, load_judge_templates(folder, templates))


def load_judge_templates(
    folder: Path, templates: Path | None
) -> Mapping[str, Mapping[str, object]]:
    """Judge templates by name, with a system_prompt and a prompt_template each."""
    ours = load_templates(("judge_system", "mt_bench_single", "mt_bench_pair"), templates)
    system = ours.pop("judge_system")
    for path in (folder / "judge_prompts.jsonl", folder.parent / "judge_prompts.jsonl"):
        if path.is_file() and not templates:
            theirs: Iterator[tuple[str, Row]] = read_rows([path])
            return {str(row.get("name")): row for _, row in theirs}
    return {name: {"system_prompt": system, "prompt_template": text} for name, text in ours.items()}


def read_answers(path: Path) -> dict[str, dict[object, Sequence[str]]]:
    """Both turns by model and question, from a file in FastChat's model_answer format.

    Raises: BadInput naming the place."""
    answers: dict[str, dict[object, Sequence[str]]] = {}
    rows: Iterator[tuple[str, Row]] = read_rows([path])
    for place, row in rows:
        try:
            first, second = row["choices"][0]["turns"]
            turns = (first + "", second + "")  # a TypeError if one is no text
            of_model = answers.setdefault(str(row["model_id"]), {})
            is_second = row["question_id"] in of_model
        except (LookupError, TypeError, ValueError):
            raise BadInput(
                f"{place}: expected question_id, model_id and choices[0].turns of two texts, "
                f"got {dict(row)!s:.200}"
            ) from None
        if is_second:
            raise BadInput(
                f"{place}: {row['model_id']} answers question {row['question_id']} a second time"
            )
        of_model[row["question_id"]] = turns
    return answers


def answer_questions(
    name: str, teacher: Teacher, questions: Sequence[Row], ask: Ask, *, max_tokens: int, seed: int
) -> list[Row]:
    """A model's answers in FastChat's format. The second turn is asked with the answer to the first
    before it."""
    firsts = ask_turn(teacher, questions, [], ask, max_tokens=max_tokens, seed=seed)
    seconds = ask_turn(teacher, questions, firsts, ask, max_tokens=max_tokens, seed=seed)
    return [
        {
            "question_id": row["question_id"],
            "answer_id": second.digest[:22],
            "model_id": name,
            "choices": [{"index": 0, "turns": [text_of(first), text_of(second)]}],
            "tstamp": timestamp(second),
        }
        for row, first, second in zip(questions, firsts, seconds)
    ]


def ask_turn(
    teacher: Teacher,
    questions: Sequence[Row],
    firsts: Sequence[Reply],
    ask: Ask,
    *,
    max_tokens: int,
    seed: int,
) -> list[Reply]:
    """Replies to the first turn of each question, or with `firsts`, the replies to the first turns,
    to the second."""
    requests = []
    for i, row in enumerate(questions):
        first, second = row["turns"]
        messages = [{"role": "user", "content": first}]
        if firsts:
            messages.append({"role": "assistant", "content": text_of(firsts[i])})
            messages.append({"role": "user", "content": second})
        about = {"row": {"prompt": second if firsts else first}}
        requests.append(
            Request(tuple(messages), max_tokens, temperature(row), seed=seed, about=about)
        )
    return ask(teacher, requests)


def text_of(reply: Reply) -> str:
    return FASTCHAT_ERROR if reply.text is None else reply.text


def timestamp(reply: Reply) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(reply.time).timestamp()


class Matter(NamedTuple):
    """What one judgement is about: one model, or two whose answers are shown in both orders."""

    names: tuple[str, ...]
    question: Row
    turn: int  # 1 or 2


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
    """FastChat's judgements of each answer (kind `single`), or of each two models' answers in both
    orders (`pair`).

    Returns: the rows, and who judged: name, versions, templates.

    Raises: BadInput where a model lacks an answer, or a question that needs a reference answer has
    none."""
    matters = [
        Matter(names, question, turn)
        for names in combinations(answers, 1 if kind == "single" else 2)
        for question in bench.questions
        for turn in (1, 2)
    ]
    rows: list[Row] = []
    requests: list[Request] = []
    for matter in matters:
        template, of_matter = judge_requests(
            kind, bench, answers, matter, max_tokens=max_tokens, seed=seed
        )
        requests += of_matter
        rows.append(judgement_row(matter, judge, template))
    replies = ask(judge, requests)
    for i, (request, reply) in enumerate(zip(requests, replies)):
        if kind == "single":
            rows[i] |= single_verdict(request, reply)
        else:
            rows[i // 2] |= pair_verdict(request, reply, game=i % 2 + 1)
    used = {row["judge"][1] for row in rows}
    texts = {
        name: f"{of['system_prompt']}\n{of['prompt_template']}"
        for name, of in bench.templates.items()
        if name in used
    }
    return rows, {
        "name": judge.name,
        "versions": sorted({reply.version for reply in replies}),
        "templates": digests(texts),
    }


def judge_requests(
    kind: str,
    bench: Bench,
    answers: Mapping[str, Turns],
    matter: Matter,
    *,
    max_tokens: int,
    seed: int,
) -> tuple[str, list[Request]]:
    """The template's name, and what the judge is asked: once, or in both orders of two models."""
    names, question, turn = matter
    number, category = question["question_id"], question["category"]
    reference = bench.references.get(number) if category in WITH_REFERENCE else ()
    if reference is None:
        raise BadInput(f"question {number} ({category}): no reference answer, of {FASTCHAT}")
    lacking = [name for name in names if number not in answers[name]]
    if lacking:
        raise BadInput(f"question {number} ({category}): no answer of {lacking[0]}")
    template = ""
    requests = []
    for order in [names] if kind == "single" else [names, names[::-1]]:
        shown = [answers[name][number] for name in order]
        template, messages = judge_messages(kind, bench.templates, question, reference, shown, turn)
        texts = [turns[turn - 1] for turns in shown]
        about = {
            "task": "grade" if kind == "single" else "compare",
            "row": {"prompt": question["turns"][turn - 1]},
            "text": texts[0],
            "texts": texts,
        }
        requests.append(Request(messages, max_tokens, seed=seed, about=about))
    return template, requests


def judgement_row(matter: Matter, judge: Teacher, template: str) -> Row:
    """A judgement before its verdict."""
    keys = ("model",) if len(matter.names) == 1 else ("model_1", "model_2")
    return {
        "question_id": matter.question["question_id"],
        **dict(zip(keys, matter.names)),
        "judge": [judge.name, template],
        "turn": matter.turn,
    }


def single_verdict(request: Request, reply: Reply) -> Row:
    return {
        "score": parse_rating(text_of(reply)),
        "user_prompt": request.messages[1]["content"],
        "judgment": text_of(reply),
        "tstamp": timestamp(reply),
    }


def pair_verdict(request: Request, reply: Reply, *, game: int) -> Row:
    """The verdict of game 1, which shows the first model's answer as A, or of game 2, which shows
    the second's as A."""
    winners = {"A": f"model_{game}", "B": f"model_{3 - game}", "tie": "tie"}
    verdict = parse_verdict(text_of(reply))
    return {
        f"g{game}_winner": winners[verdict] if verdict else "error",
        f"g{game}_user_prompt": request.messages[1]["content"],
        f"g{game}_judgment": text_of(reply),
        "tstamp": timestamp(reply),
    }


def alpaca_file(folder: Path) -> Path:
    """AlpacaEval's prompts with the outputs of its baseline. Raises: BadInput."""
    names = ("alpaca_eval_gpt4_baseline.json", "alpaca_eval.json")
    return bench_file(folder, *names, origin=ALPACA_EVAL)


def evaluate_alpaca(
    models: Sequence[str],
    *,
    prompts: str | Path,
    baseline: str,
    judge: Teacher,
    open_teacher: OpenTeacher,
    ask: Ask,
    out: Path,
    templates: Path | None = None,
    seed: int = 0,
    max_new_tokens: int = 2048,
    judge_tokens: int = 2048,
    temperature: float = 0.7,
) -> tuple[list[Row], Row]:
    """Let models answer AlpacaEval's prompts, and the judge compare the answers with a baseline's.

    Args:
        models: each `[NAME=]` and a model folder, a SPEC or a file of answers.
        prompts: a source of prompt rows.
        baseline: as one of `models`.
        out: folder for NAME/model_outputs.json and NAME/JUDGE/annotations.json, as AlpacaEval's.
        max_new_tokens, judge_tokens: limits of an answer and of a judgement.

    Raises: BadInput where two of the models and the baseline have one name.

    Returns: the annotations as `alpaca.score_annotations` reads them, and what they are about: who
    judged with what, and digests of the answers."""
    rows = list(read_prompts([str(prompts)]))
    panel = judge_panel(judge, ask, templates=templates, seed=seed, max_tokens=judge_tokens)
    outputs = []
    for model in open_contenders([baseline, *models], open_teacher):
        answers = collect_answers(
            model, rows, ask, max_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        outputs.append((model.name, answers))
    (baseline_name, theirs), *others = outputs
    annotations: list[Row] = []
    for name, ours in others:
        of_model = annotate(panel, rows, (baseline_name, name), theirs, ours)
        write_json(out / name / "model_outputs.json", [output_row(row) for row in of_model])
        write_json(out / name / file_name(judge) / "annotations.json", of_model)
        annotations += of_model
    used = {name: panel.templates[name] for name in ("judge_system", "compare")}
    ids = [row["prompt_id"] for row in rows]
    return annotations, {
        "judge": {"name": judge.name, "templates": digests(used)},
        "answers": answer_digests({name: zip(ids, texts) for name, texts in outputs}),
    }


def output_row(annotation: Row) -> Row:
    """A row of AlpacaEval's model_outputs.json."""
    return {
        "dataset": annotation["dataset"],
        "instruction": annotation["instruction"],
        "output": annotation["output_2"],
        "generator": annotation["generator_2"],
    }


def annotate(
    panel: Panel,
    prompts: Sequence[Row],
    names: Sequence[str],
    baseline: Sequence[str | None],
    outputs: Sequence[str | None],
) -> list[Row]:
    """AlpacaEval's annotations of a model's outputs against a baseline's. The preference is the
    mean of both orders; a tie counts half.

    Args: names: of the baseline and of the model."""
    compared, calls = judge_pairs(panel, prompts, outputs, baseline)
    raw = {(call["prompt_id"], call["shown_as"]): call["reply"] for call in calls}
    rows = []
    for prompt, theirs, ours, pair in zip(prompts, baseline, outputs, compared):
        preference = None
        if pair is not None and pair.shown_first and pair.shown_second:
            preference = 1.5 + FIRST_WON[pair.shown_first] - FIRST_WON[pair.shown_second]
        orders = [pair.shown_second, pair.shown_first] if pair and pair.was_judged else []
        rows.append(
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
                "orders": orders,
                "raw_completion": [raw.get((prompt["prompt_id"], shown_as)) for shown_as in "BA"],
            }
        )
    return rows
