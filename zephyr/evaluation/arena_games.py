"""Arena-Hard with a judge: models answer the questions, and the judge's replies become records in
arena-hard-auto's files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.answers import (
    Contender,
    OpenTeacher,
    answer_digests,
    answer_requests,
    answers_digest,
    contender_name,
    find_stored,
    open_contender,
    require_own_names,
    split_name,
)
from zephyr.evaluation.arena_hard import (
    BASELINES,
    TEMPLATES,
    Judgment,
    judge_messages,
    parse_label,
    read_judgment,
    read_judgments,
    require_answers,
)
from zephyr.evaluation.benchmarks import bench_file, file_name, timestamp
from zephyr.evaluation.style import Style, read_style, style_metadata
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.panel import Ask
from zephyr.teacher.templates import digests, load_templates

Row = dict[str, Any]  # of a file in arena-hard-auto's format
ARENA_HARD = "data/arena-hard-v2.0 of github.com/lmarena/arena-hard-auto"
Texts = Mapping[str, str | None]  # a model's answers by uid; None: it refused
Styles = Mapping[str, Mapping[str, Style]]  # of answers by model and uid


class Arena(NamedTuple):
    """The questions to be asked, those that an answer file may have too, and who sets the baseline
    of each category."""

    questions: Sequence[Row]
    others: Sequence[Row]
    baselines: Mapping[str, Contender]


class AnswerLimits(NamedTuple):
    """How a model is asked for its answers."""

    max_tokens: int = 4096
    temperature: float = 0.0
    seed: int = 0


def open_arena(
    folder: Path,
    open_teacher: OpenTeacher,
    *,
    categories: Sequence[str] | None = None,
    baseline: str | None = None,
) -> Arena:
    """Arena-Hard from a folder like arena-hard-auto's: question.jsonl and, for each baseline,
    model_answer/NAME.jsonl.

    Args:
        categories: None: all.
        baseline: `[NAME=]` and a model folder, a SPEC or a file of answers, for all categories;
            None: those of arena-hard-auto.

    Raises: BadInput naming file and line; for a category that no question has, and for one without
    a known baseline."""
    rows: list[Row] = []
    seen: set[str] = set()
    path = bench_file(folder, "question.jsonl", origin=ARENA_HARD)
    read: Iterator[tuple[str, Row]] = read_rows([path])
    for place, row in read:
        texts = [row.get(field) for field in ("uid", "category", "prompt")]
        if not all(isinstance(text, str) for text in texts) or row["uid"] in seen:
            raise BadInput(
                f"{place}: expected uid, each once, category and prompt, got {dict(row)!s:.200}"
            )
        seen.add(row["uid"])
        rows.append({**row, "prompt_id": row["uid"]})
    there = sorted({row["category"] for row in rows})
    wanted = there if categories is None else list(categories)
    if absent := [category for category in wanted if category not in there]:
        raise BadInput(f"--category {absent[0]}: no question has it; there are {', '.join(there)}")
    baselines = {}
    for category in wanted:
        if baseline is None and category not in BASELINES:
            raise BadInput(
                f"category {category!r} has no known baseline: name one with --baseline; those of "
                f"{', '.join(BASELINES)} are known"
            )
        argument = baseline or baseline_file(folder, BASELINES[category])
        baselines[category] = open_contender(argument, open_teacher)
    questions = [row for row in rows if row["category"] in wanted]
    return Arena(questions, [row for row in rows if row["category"] not in wanted], baselines)


def baseline_file(folder: Path, name: str) -> str:
    """`NAME=FILE` of a baseline's answers. Raises: BadInput that says where to get them."""
    path = bench_file(folder, f"model_answer/{name}.jsonl", origin=ARENA_HARD)
    return f"{name}={path}"


def play(
    models: Sequence[str],
    arena: Arena,
    *,
    judge: Teacher,
    open_teacher: OpenTeacher,
    ask: Ask,
    out: Path,
    limits: AnswerLimits,
    judge_tokens: int = 16000,
    count_tokens: Callable[[str], int] | None = None,
    with_metadata: bool = True,
    templates: Path | None = None,
) -> tuple[list[Judgment], Row, Styles]:
    """Let models answer the questions, and the judge compare the answers with those of each
    category's baseline, in both orders.

    Args:
        models: each `[NAME=]` and a model folder, a SPEC or a file of answers.
        out: folder for model_answer/NAME.jsonl and model_judgment/JUDGE/NAME.jsonl, as theirs.
        judge_tokens: limit of a judgement.
        count_tokens: tells the length of an answer, for the styles of answers; None: no styles.
        with_metadata: write styles as the `metadata` of answers, as arena-hard-auto does.

    Returns: the judgments; what they are about: who judged with what, and digests of the answers;
    and the styles.

    Raises: BadInput where two models, or a model and a baseline, have one name, and where an answer
    is missing."""
    baselines = sorted({of.name for of in arena.baselines.values()})
    names = [*baselines, *(contender_name(argument) for argument in models)]
    require_own_names(names, [*("a baseline" for _ in baselines), *models])
    contenders = [open_contender(argument, open_teacher) for argument in models]
    everyone = {of.name: of for of in (*arena.baselines.values(), *contenders)}
    texts = load_templates(TEMPLATES, templates)
    answers: dict[str, Texts] = {}
    styles: dict[str, dict[str, Style]] = {}
    for name, contender in everyone.items():
        rows = answer_rows(contender, arena, ask, limits, is_baseline=name in baselines)
        if count_tokens is not None:
            rows, styles[name] = add_styles(rows, count_tokens, with_metadata)
        write_rows(out / "model_answer" / f"{name}.jsonl", rows)
        answers[name] = {row["uid"]: row_text(row) for row in rows}
    judgments: list[Row] = []
    for contender in contenders:
        of_model = judge_model(
            contender.name, arena, answers, judge, ask, texts, judge_tokens, limits.seed
        )
        write_rows(out / "model_judgment" / file_name(judge) / f"{contender.name}.jsonl", of_model)
        judgments += of_model
    about = {
        "judge": {"name": judge.name, "templates": digests(texts)},
        "answers": answer_digests({name: of.items() for name, of in answers.items()}),
    }
    return [read_judgment("", row) for row in judgments], about, styles


def answer_rows(
    contender: Contender, arena: Arena, ask: Ask, limits: AnswerLimits, *, is_baseline: bool
) -> list[Row]:
    """The contender's answers in arena-hard-auto's format: a model's to all questions, a
    baseline's to those of its categories. Raises: BadInput as `find_stored`."""
    asked = [
        row
        for row in arena.questions
        if not is_baseline or arena.baselines[row["category"]].name == contender.name
    ]
    if contender.teacher is None:
        spare = [*arena.others, *arena.questions]
        stored = find_stored(contender.name, contender.stored, asked, spare)
        return [answer_row(contender.name, row, text) for row, text in zip(asked, stored)]
    requests = answer_requests(
        asked, max_tokens=limits.max_tokens, temperature=limits.temperature, seed=limits.seed
    )
    replies = ask(contender.teacher, requests)
    return [
        {**answer_row(contender.name, row, reply.text), "tstamp": timestamp(reply)}
        for row, reply in zip(asked, replies)
    ]


def answer_row(name: str, question: Row, text: str | None) -> Row:
    """A row of model_answer. A refused answer is an empty one there, and marked."""
    row: Row = {
        "uid": question["uid"],
        "ans_id": answers_digest([(question["uid"], text)])[:22],
        "model": name,
        "messages": [
            {"role": "user", "content": question["prompt"]},
            {"role": "assistant", "content": {"answer": text or ""}},
        ],
    }
    return row if text is not None else {**row, "unanswered": True}


def row_text(row: Row) -> str | None:
    """The answer of a row of model_answer; None: the model refused."""
    if row.get("unanswered"):
        return None
    return str(row["messages"][-1]["content"]["answer"])


def add_styles(
    rows: Sequence[Row], count_tokens: Callable[[str], int], with_metadata: bool
) -> tuple[list[Row], dict[str, Style]]:
    """The rows, each with its style as `metadata` if wanted, and the styles by uid."""
    styles: dict[str, Style] = {}
    written = []
    for row in rows:
        metadata = style_metadata(row_text(row) or "", count_tokens)
        styles[row["uid"]] = read_style(metadata)
        written.append({**row, "metadata": metadata} if with_metadata else row)
    return written, styles


class Stored(NamedTuple):
    """Stored judgments, and the texts and styles of the answers that they are about, as far as
    there are files of them, by model and uid."""

    judgments: list[Judgment]
    texts: Mapping[str, Texts]
    styles: Styles


def read_stored_judgments(
    records: Sequence[str],
    answers: Sequence[str],
    folders: Sequence[Path],
    *,
    categories: Sequence[str] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Stored:
    """Judgments of arena-hard-auto's files, checked against the answers that they are about.

    Args:
        records: files or folders of judgments.
        answers: `[NAME=]FILE` of a model's answers each.
        folders: model_answer/NAME.jsonl in them is read for each model and baseline too.
        categories: the judgments to keep; None: all.
        count_tokens: as `read_answers`.

    Raises: BadInput as `read_judgments`, `read_answers`; for two files of answers of one name, and
    for a judgment of another answer."""
    placed = [
        (place, judgment)
        for place, judgment in read_judgments(read_rows([*records]))
        if categories is None or judgment.category in categories
    ]
    judgments = [judgment for _, judgment in placed]
    names = sorted({name for of in judgments for name in (of.model, of.baseline)})
    named = [(name or Path(path).stem, Path(path)) for name, path in map(split_name, answers)]
    require_own_names([name for name, _ in named], answers)
    given = dict(named)
    for folder in folders:
        for name in names:
            path = folder / "model_answer" / f"{name.rpartition('/')[2]}.jsonl"
            if path.is_file():
                given.setdefault(name, path)
    if others := [name for name in given if name not in names]:
        raise BadInput(
            f"--answers: no judgment is about {others[0]}; they are about {', '.join(names)}"
        )
    texts, styles = {}, {}
    for name, path in given.items():
        texts[name], styles[name] = read_answers(path, count_tokens)
    require_answers(placed, texts)
    return Stored(judgments, texts, styles)


def read_answers(
    path: Path, count_tokens: Callable[[str], int] | None = None
) -> tuple[dict[str, str | None], dict[str, Style]]:
    """Texts and styles of a model's answers in arena-hard-auto's format, by uid.

    Args: count_tokens: counts the lengths; None: they are those of the rows' own `metadata`, and a
    row without it has no style.

    Raises: BadInput naming file and line."""
    texts: dict[str, str | None] = {}
    styles: dict[str, Style] = {}
    rows: Iterator[tuple[str, Row]] = read_rows([path])
    for place, row in rows:
        try:
            uid, text = str(row["uid"]), row_text(row)
            metadata = row.get("metadata")
            if count_tokens is not None:
                metadata = style_metadata(text or "", count_tokens)
            if metadata:
                styles[uid] = read_style(metadata)
            texts[uid] = text
        except (LookupError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{place}: expected an answer of arena-hard-auto's (uid, messages with an answer, "
                f"and metadata or none): {error!r}"
            ) from None
    return texts, styles


def judge_model(
    name: str,
    arena: Arena,
    answers: Mapping[str, Texts],
    judge: Teacher,
    ask: Ask,
    templates: Mapping[str, str],
    max_tokens: int,
    seed: int,
) -> list[Row]:
    """The judgments of one model's answers in arena-hard-auto's format: game 1 shows the baseline's
    answer first, game 2 the model's. A question that one of both refused is not judged."""
    rows: list[Row] = []
    requests: list[Request] = []
    for question in arena.questions:
        baseline = arena.baselines[question["category"]].name
        ours, theirs = answers[name][question["uid"]], answers[baseline][question["uid"]]
        if ours is None or theirs is None:
            continue
        for first, second in ((theirs, ours), (ours, theirs)):
            messages = judge_messages(
                templates, question["category"], question["prompt"], first, second
            )
            about = {"task": "battle", "row": question, "texts": [first, second]}
            requests.append(Request(messages, max_tokens, seed=seed, about=about))
        rows.append(
            {
                "uid": question["uid"],
                "category": question["category"],
                "judge": judge.name,
                "model": name,
                "baseline": baseline,
                "games": [],
            }
        )
    for i, (request, reply) in enumerate(zip(requests, ask(judge, requests))):
        rows[i // 2]["games"].append(game(request, reply))
    return rows


def game(request: Request, reply: Reply) -> Row | None:
    """A game as arena-hard-auto writes it; None where the judge refused."""
    if reply.text is None:
        return None
    return {
        "score": parse_label(reply.text),
        "judgment": {"answer": reply.text},
        "prompt": [dict(message) for message in request.messages],
    }
