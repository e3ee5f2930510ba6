"""A row in which a judge compared two answers gives both answers, each with its share of the
verdict: the higher share is preferred."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from zephyr.chat import Messages, check_messages
from zephyr.chat.messages import REFUSED, TEMPLATE_KEYS
from zephyr.chat.names import MASKS
from zephyr.data.pairwise import PAIRWISE, ROLES
from zephyr.data.rows import text

Row = Mapping[str, object]
ABOUT = {
    "id",
    "prompt_id",
    "question_id",
    "source",
    "dataset",
    "annotator",
    "judge",
    "turn",
}  # of every shape
WINS = {
    1: (1.0, 0.0),
    2: (0.0, 1.0),
    "model_a": (1.0, 0.0),
    "model_b": (0.0, 1.0),
    "tie": (0.5, 0.5),
    "tie (bothbad)": (0.5, 0.5),
}


class PairwiseRow(NamedTuple):
    """Two answers to one prompt, in the source's order, and the models' names where it tells them.

    shares: of the verdict: (1, 0) where the first answer won, a half each for a tie, None where
    there is no verdict."""

    prompt: str | Messages
    texts: tuple[str, str]
    models: tuple[str | None, str | None]
    shares: tuple[float, float] | None


def parse_pairwise(row: Row) -> tuple[str, PairwiseRow | str] | None:
    """The shape of a pairwise row, and what it holds, or the reason why it holds no pair. None: of
    another shape.

    Raises: ValueError naming the field, what was found and what was wanted."""
    shape = next((name for name, fields in PAIRWISE.items() if fields <= row.keys()), None)
    return (shape, READERS[shape](row)) if shape else None


def read_keys(row: Row, shape: str) -> set[str]:
    """The keys of a row that its reader reads; what else the row holds is not in the pair."""
    more = MAY[shape]
    if shape == "hh-rlhf":  # a transcript that the sides go on from, or begin with
        prompt, said = row.get("prompt"), str(row["chosen"])
        more = (
            {"prompt"}
            if isinstance(prompt, str)
            and (said.startswith(prompt) or not said.startswith("\n\nHuman:"))
            else set()
        )
    return ABOUT | PAIRWISE[shape] | more


def _alpaca(
    row: Row, prompt: str, answers: tuple[str, str], models: tuple[str, str]
) -> PairwiseRow:
    """AlpacaEval: `preference` - 1 is the second answer's probability of being the better; 0 is a
    tie as 1.5 is, null no verdict."""
    preference, asked = row.get("preference"), text(row, prompt)
    if preference is not None and (
        type(preference) not in (int, float) or not (preference == 0 or 1 <= preference <= 2)
    ):
        raise ValueError(
            f"`preference` is {type(preference).__name__} {preference!r:.60}, wanted a number from 1 to 2, 0 (a tie) or null"
        )
    p = 1.5 if preference == 0 else preference
    return PairwiseRow(
        f"{asked}\n\n{text(row, 'input')}" if row.get("input") else asked,
        _both(row, answers),
        _models(row, models),
        None if p is None else (2.0 - p, p - 1.0),
    )


def _llmbar(row: Row) -> PairwiseRow:
    return PairwiseRow(
        text(row, "input"),
        _both(row, ("output_1", "output_2")),
        (None, None),
        _won(row, "label", (1, 2)),
    )


def _arena(row: Row) -> PairwiseRow | str:
    sides = [
        _turns(row[field], field, "role", "content")
        for field in ("conversation_a", "conversation_b")
    ]
    return _parted(
        *sides,
        _models(row, ("model_a", "model_b")),
        _won(row, "winner", ("model_a", "model_b", "tie", "tie (bothbad)")),
    )


def _sharegpt(row: Row) -> PairwiseRow | str:
    system = [{"role": "system", "content": text(row, "system")}] if row.get("system") else []
    before = system + _turns(row["conversations"], "conversations", "from", "value")
    sides = [
        before + _turns([row[field]], field, "from", "value") for field in ("chosen", "rejected")
    ]
    return _parted(*sides, (None, None), (1.0, 0.0))


def _hh(row: Row) -> PairwiseRow | str:
    """hh-rlhf: two transcripts, or one in `prompt` and two answers; a turn is what stands behind
    its mark, without the white space around it."""
    sides = []
    for field in ("chosen", "rejected"):
        said = text(row, field)
        before = (
            row["prompt"]
            if isinstance(row.get("prompt"), str) and not said.startswith("\n\nHuman:")
            else ""
        )
        head, *parts = re.split(r"\n\n(Human|Assistant):", before + said)
        if head or not parts:
            raise ValueError(
                f"`{field}` is {row[field]!r:.60}, wanted a transcript that begins with a blank line and `Human:`"
            )
        sides.append(
            [
                {"role": ROLES[who], "content": said.strip()}
                for who, said in zip(parts[::2], parts[1::2])
            ]
        )
    return _parted(*sides, (None, None), (1.0, 0.0))


def _parted(
    a: Messages, b: Messages, models: tuple[str | None, str | None], shares: tuple[float, float]
) -> PairwiseRow | str:
    """Two conversations that part at the last turn, the assistant's, or why they are none."""
    if a[:-1] != b[:-1]:
        return "prompts differ"
    if not a or not b or {a[-1]["role"], b[-1]["role"]} != {"assistant"}:
        return "the last turn is no answer"
    try:
        prompt = check_messages(a[:-1], last="user")
    except ValueError:
        return "turns before the answer empty or out of order"
    return PairwiseRow(prompt, (a[-1]["content"], b[-1]["content"]), models, shares)


def _turns(value: object, field: str, role: str, content: str) -> Messages:
    if not isinstance(value, list) or not all(
        isinstance(turn, Mapping) and turn.get(role) in list(ROLES) for turn in value
    ):
        raise ValueError(
            f"`{field}` is {value!r:.60}, wanted turns of `{role}` ({', '.join(ROLES)}) and `{content}`"
        )
    for i, turn in enumerate(value):
        for key in turn.keys() & (set(TEMPLATE_KEYS) | REFUSED.keys() | set(MASKS)):
            if turn[key] not in (None, "", [], {}, True, 1):
                raise ValueError(
                    f"`{field}[{i}].{key}` is {turn[key]!r:.60}, which a compared answer has no place for, wanted turns of "
                    f"`{role}` and `{content}` alone"
                )
    return [{"role": ROLES[turn[role]], "content": text(turn, content)} for turn in value]


def _won(row: Row, field: str, names: tuple[object, ...]) -> tuple[float, float]:
    if type(row[field]) not in (int, str) or row[field] not in names:
        raise ValueError(
            f"`{field}` is {row[field]!r:.60}, wanted one of {', '.join(map(str, names))}"
        )
    return WINS[row[field]]


def _both(row: Row, fields: tuple[str, str]) -> tuple[str, str]:
    return text(row, fields[0]), text(row, fields[1])


def _models(row: Row, fields: tuple[str, str]) -> tuple[str | None, str | None]:
    return tuple(text(row, field) if field in row else None for field in fields)  # type: ignore[return-value]


READERS: dict[str, Callable[[Row], PairwiseRow | str]] = {
    "AlpacaEval preferences": lambda row: _alpaca(
        row, "prompt", ("completion_a", "completion_b"), ("model_a", "model_b")
    ),
    "AlpacaEval annotations": lambda row: _alpaca(
        row, "instruction", ("output_1", "output_2"), ("generator_1", "generator_2")
    ),
    "LLMBar": _llmbar,
    "arena": _arena,
    "ShareGPT": _sharegpt,
    "hh-rlhf": _hh,
}
MAY = {  # shape -> what its reader reads beside
    "AlpacaEval preferences": {"prompt", "preference", "input", "model_a", "model_b"},
    "AlpacaEval annotations": {"preference", "input", "generator_1", "generator_2"},
    "LLMBar": set(),
    "arena": {"model_a", "model_b"},
    "ShareGPT": {"system"},
    "hh-rlhf": set(),
}
