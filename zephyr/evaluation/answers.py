"""A model becomes its answers to prompts: it is asked for them, or they are read from a file."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.data.sources import open_sources
from zephyr.teacher import Request, Teacher
from zephyr.teacher.panel import Ask
from zephyr.teacher.prompts import Row, turns_of
from zephyr.teacher.spec import SPEC_FORMS, SPEC_START

OpenTeacher = Callable[[str], Teacher]  # opens the teacher of a SPEC

NAMED = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)
RESERVED = ("results", "verdicts", "tie")  # files beside those of the models, and a label
# What names the prompt of a stored answer, the first that is there: our rows, Arena-Hard's,
# AlpacaEval's, IFEval's. Then what holds its text; Arena-Hard's is in `messages`.
PROMPT_FIELDS = ("prompt_id", "uid", "key", "instruction", "prompt")
TEXT_FIELDS = ("text", "output", "response")


class Contender(NamedTuple):
    """A model that answers, and its name in the results. Without a teacher its answers are stored:
    by prompt id, or by the prompt's text."""

    name: str
    teacher: Teacher | None
    stored: Mapping[str, str | None]


def split_name(argument: str) -> tuple[str, str]:
    """NAME, "" without one, and WHAT of `[NAME=]WHAT`. The path of a file or folder that is there
    is a WHAT, whatever `=` it has."""
    found = None if Path(argument).exists() else NAMED.fullmatch(argument)
    return (found[1], found[2]) if found else ("", argument)


def contender_name(argument: str) -> str:
    """The name of `[NAME=]WHAT` in results and files: NAME, or one made from WHAT.

    Raises: BadInput where there is none, or it is reserved."""
    given, what = split_name(argument)
    name = given or re.sub(r"[^\w.-]+", "_", what).strip("_.")
    if not name or name.lower() in RESERVED:
        raise BadInput(
            f"model {argument!r}: expected NAME=... before it, other than {', '.join(RESERVED)}"
        )
    return name


def require_own_names(names: Sequence[str], origins: Sequence[str]) -> None:
    """Raises: BadInput where two models have one name, or names that differ in case only: some file
    systems keep one file for both.

    Args: origins: what each name stands for, as the message shows it."""
    taken: dict[str, str] = {}
    for name, origin in zip(names, origins, strict=True):
        key, shown = name.casefold(), f"{name} ({origin})"
        if key in taken:
            raise BadInput(
                f"two models have one name: {taken[key]} and {shown}; give one another NAME=..., "
                "which differs in more than case"
            )
        taken[key] = shown


def open_contenders(arguments: Sequence[str], open_teacher: OpenTeacher) -> list[Contender]:
    """`open_contender` of each. Raises: BadInput, also where two have one name."""
    require_own_names([contender_name(argument) for argument in arguments], arguments)
    return [open_contender(argument, open_teacher) for argument in arguments]


def open_contender(argument: str, open_teacher: OpenTeacher) -> Contender:
    """The contender of `[NAME=]` and a teacher's spec, a model folder or a file of answers.

    Raises: BadInput where it is none of these."""
    name, (_, what) = contender_name(argument), split_name(argument)
    if Path(what).is_file():
        return Contender(name, None, read_stored(Path(what), *TEXT_FIELDS))
    if Path(what).is_dir():
        return Contender(name, open_teacher(f"hf:{what}"), {})
    if not SPEC_START.match(what):
        raise BadInput(
            f"model {argument!r}: no such folder or file; expected a model folder, a file of "
            f"answers, {SPEC_FORMS}"
        )
    return Contender(name, open_teacher(what), {})


def read_stored(path: Path, *fields: str) -> dict[str, str | None]:
    """The text that each row has in one of the fields, or as the last of its `messages` (None:
    `unanswered`), by the first of `PROMPT_FIELDS`. Raises: BadInput naming file and line."""
    found: dict[str, str | None] = {}
    rows: Iterator[tuple[str, Row]] = read_rows([path])
    for place, row in rows:
        key = next((row[field] for field in PROMPT_FIELDS if field in row), None)
        given = [row[field] for field in fields if field in row] or last_message(row)
        unanswered = row.get("unanswered") is True and given in ([], [""])
        text = None if unanswered or not given else given[0]
        is_text = isinstance(text, str) or (text is None and (bool(given) or unanswered))
        if not isinstance(key, (str, int)) or not is_text or str(key) in found:
            raise BadInput(
                f"{place}: expected prompt_id (or {', '.join(PROMPT_FIELDS[1:])}), each once, and "
                f"{' or '.join(fields)}; got {dict(row)!s:.200}"
            )
        found[str(key)] = text if isinstance(text, str) else None
    return found


def last_message(row: Row) -> list[object]:
    """The text of the assistant's turn that ends a row's `messages`, as Arena-Hard stores answers;
    nothing where there is none."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], Mapping):
        return []
    content = messages[-1].get("content")
    is_answer = messages[-1].get("role") == "assistant"
    return [content.get("answer") if isinstance(content, Mapping) else content] * is_answer


def answer_requests(
    prompts: Sequence[Row], *, max_tokens: int, temperature: float, seed: int
) -> list[Request]:
    """The request to answer each prompt row."""
    return [
        Request(
            tuple(turns_of(row["prompt"])),
            max_tokens,
            temperature,
            seed=seed,
            about={"task": "answer", "row": row},
        )
        for row in prompts
    ]


def collect_answers(
    contender: Contender,
    prompts: Sequence[Row],
    ask: Ask,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str | None]:
    """The contender's answer to each prompt row; None where it refused.

    Raises: BadInput as `find_stored`; whatever `ask` raises."""
    if contender.teacher:
        requests = answer_requests(
            prompts, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        return [reply.text for reply in ask(contender.teacher, requests)]
    return find_stored(contender.name, contender.stored, prompts)


def find_stored(
    name: str,
    stored: Mapping[str, str | None],
    prompts: Sequence[Row],
    others: Sequence[Row] = (),
) -> list[str | None]:
    """The stored answer to each prompt row, by prompt id or by the prompt's text.

    Args: others: prompts that the file may answer too.

    Raises: BadInput naming a prompt without an answer, or an answer to another prompt."""
    require_same_prompts(name, stored, prompts, others)
    return [stored[stored_key(stored, row)] for row in prompts]


def require_same_prompts(
    name: str, stored: Mapping[str, object], prompts: Sequence[Row], others: Sequence[Row] = ()
) -> None:
    """Raises: BadInput naming a prompt without a stored answer, or an answer to none of the prompts
    and of the others."""
    keys = [stored_key(stored, row) for row in prompts]
    lacking = [prompt_id(row) for row, key in zip(prompts, keys) if key not in stored]
    if lacking:
        raise BadInput(
            f"{name}: no answer to {len(lacking)} of {len(prompts)} prompts in its file, "
            f"the first is {lacking[0]!r}"
        )
    known = {*keys, *(stored_key(stored, row) for row in others)}
    extra = [key for key in stored if key not in known]
    if extra:
        raise BadInput(
            f"{name}: {len(extra)} answers in its file are to none of the {len(prompts)} prompts, "
            f"the first is to {extra[0]!r:.200}; expected the same prompts in both"
        )


def stored_key(stored: Mapping[str, object], prompt: Row) -> str:
    return prompt_id(prompt) if prompt_id(prompt) in stored else str(prompt["prompt"])


def prompt_id(row: Row) -> str:
    return str(row["prompt_id"])


def answers_digest(answers: Iterable[tuple[object, object]]) -> str:
    """SHA-256 (hex) of a model's answers, whatever file or order they came from: it tells which
    answers a result is about.

    Args: answers: pairs of a prompt's id and the answer to it: a text, several, or None."""
    pairs = sorted([str(id), text or ""] for id, text in answers)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def answer_digests(answers: Mapping[str, Iterable[tuple[object, object]]]) -> dict[str, object]:
    """`answers_digest` of each model, by its name."""
    return {name: answers_digest(of_model) for name, of_model in answers.items()}


def require_answers_of(
    records: str,
    judged: Mapping[str, Sequence[tuple[Row, str]]],
    contenders: Sequence[Contender],
) -> None:
    """Check that records are about the answers that the contenders' files hold.

    Args: judged: prompt rows and the answers to them that the records are about, by model.

    Raises: BadInput for a model that has no file, or that the records are not about; for a prompt
    that is missing in the file or in the records, and for another answer."""
    for name, teacher, stored in contenders:
        if teacher is not None or name not in judged:
            raise BadInput(
                f"{name}: expected the file of a model's answers that {records} is about; it is "
                f"about {', '.join(sorted(judged))}"
            )
        texts = find_stored(name, stored, [row for row, _ in judged[name]])
        for (row, shown), text in zip(judged[name], texts):
            if (text or "") != shown:
                raise BadInput(
                    f"{records}: its record at {prompt_id(row)!r:.200} is about another answer "
                    f"than that in the file of {name}: judge these answers again"
                )


def record_digests(sources: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file of stored records, by its name."""
    return {source.name: source.digest for source in open_sources(sources)}
