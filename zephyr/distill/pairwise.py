"""A row in which a judge compared two answers becomes both answers, each with its share of the
verdict. The higher share is preferred."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from zephyr.chat import Messages, check_messages
from zephyr.chat.messages import REFUSED, TEMPLATE_KEYS
from zephyr.chat.names import MASKS
from zephyr.data.pairwise import PAIRWISE, ROLES
from zephyr.data.rows import text

Row = Mapping[str, object]
Shares = tuple[float, float]
Models = tuple[str | None, str | None]

FIRST_WON: Shares = (1.0, 0.0)
SECOND_WON: Shares = (0.0, 1.0)
TIE: Shares = (0.5, 0.5)
ARENA_VERDICTS: dict[object, Shares] = {
    "model_a": FIRST_WON,
    "model_b": SECOND_WON,
    "tie": TIE,
    "tie (bothbad)": TIE,
}
LLMBAR_VERDICTS: dict[object, Shares] = {1: FIRST_WON, 2: SECOND_WON}
# keys that say where a row is from, in every format
ORIGIN_KEYS = {
    "id",
    "prompt_id",
    "question_id",
    "source",
    "dataset",
    "annotator",
    "judge",
    "turn",
}


class PairwiseRow(NamedTuple):
    """Two answers to one prompt, in the order of the row.

    `models`: the models' names; None if the row does not give them.
    `shares`: of the verdict: (1, 0) if the first answer won, a half each for a tie; None without a
    verdict.
    """

    prompt: str | Messages
    texts: tuple[str, str]
    models: Models
    shares: Shares | None


def parse_pairwise(row: Row) -> tuple[str, PairwiseRow | str] | None:
    """Return the format of a pairwise row and its pair, or the reason why it has none.

    Returns:
        None for a row of another format.
    Raises:
        ValueError: naming the field, what was found and what was expected.
    """
    for shape, fields in PAIRWISE.items():
        if fields <= row.keys():
            return shape, READERS[shape](row)
    return None


def read_keys(row: Row, shape: str) -> set[str]:
    """Return the keys of a row that the reader of its format reads."""
    optional = OPTIONAL_KEYS[shape]
    if shape == "hh-rlhf" and _has_transcript(row):
        optional = {"prompt"}
    return ORIGIN_KEYS | PAIRWISE[shape] | optional


def _has_transcript(row: Row) -> bool:
    """Whether `prompt` is a transcript that `chosen` continues or begins with."""
    prompt, chosen = row.get("prompt"), str(row["chosen"])
    if not isinstance(prompt, str):
        return False
    return chosen.startswith(prompt) or not chosen.startswith("\n\nHuman:")


def _read_alpaca(
    row: Row, prompt: str, answers: tuple[str, str], models: tuple[str, str]
) -> PairwiseRow:
    """AlpacaEval: `preference` - 1 is the probability that the second answer is the better one. 0
    is a tie, as 1.5 is; null is no verdict."""
    asked = text(row, prompt)
    if row.get("input"):
        asked = f"{asked}\n\n{text(row, 'input')}"
    return PairwiseRow(asked, _texts(row, answers), _models(row, models), _alpaca_shares(row))


def _alpaca_shares(row: Row) -> Shares | None:
    preference = row.get("preference")
    if preference is None:
        return None
    if (
        not isinstance(preference, (int, float))
        or isinstance(preference, bool)
        or not (preference == 0 or 1 <= preference <= 2)
    ):
        raise ValueError(
            f"`preference` is {type(preference).__name__} {preference!r:.60}, expected a number "
            "from 1 to 2, 0 (a tie) or null"
        )
    value = 1.5 if preference == 0 else preference
    return 2.0 - value, value - 1.0


def _read_alpaca_preferences(row: Row) -> PairwiseRow:
    return _read_alpaca(row, "prompt", ("completion_a", "completion_b"), ("model_a", "model_b"))


def _read_alpaca_annotations(row: Row) -> PairwiseRow:
    return _read_alpaca(
        row, "instruction", ("output_1", "output_2"), ("generator_1", "generator_2")
    )


def _read_llmbar(row: Row) -> PairwiseRow:
    shares = _verdict(row, "label", LLMBAR_VERDICTS)
    return PairwiseRow(
        text(row, "input"), _texts(row, ("output_1", "output_2")), (None, None), shares
    )


def _read_arena(row: Row) -> PairwiseRow | str:
    first = _turns(row["conversation_a"], "conversation_a", "role", "content")
    second = _turns(row["conversation_b"], "conversation_b", "role", "content")
    models = _models(row, ("model_a", "model_b"))
    return _last_turns(first, second, models, _verdict(row, "winner", ARENA_VERDICTS))


def _read_sharegpt(row: Row) -> PairwiseRow | str:
    before: Messages = []
    if row.get("system"):
        before.append({"role": "system", "content": text(row, "system")})
    before += _turns(row["conversations"], "conversations", "from", "value")
    chosen = before + _turns([row["chosen"]], "chosen", "from", "value")
    rejected = before + _turns([row["rejected"]], "rejected", "from", "value")
    return _last_turns(chosen, rejected, (None, None), FIRST_WON)


def _read_hh(row: Row) -> PairwiseRow | str:
    """hh-rlhf: two transcripts, or one in `prompt` and two answers."""
    chosen, rejected = _transcript(row, "chosen"), _transcript(row, "rejected")
    return _last_turns(chosen, rejected, (None, None), FIRST_WON)


def _transcript(row: Row, field: str) -> Messages:
    """The turns of a transcript. A turn is the text after its mark, without white space around
    it."""
    transcript = text(row, field)
    prompt = row.get("prompt")
    if isinstance(prompt, str) and not transcript.startswith("\n\nHuman:"):
        transcript = prompt + transcript
    head, *parts = re.split(r"\n\n(Human|Assistant):", transcript)
    if head or not parts:
        raise ValueError(
            f"`{field}` is {row[field]!r:.60}, expected a transcript that begins with a blank line "
            "and `Human:`"
        )
    return [
        {"role": ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2])
    ]


def _last_turns(
    first: Messages, second: Messages, models: Models, shares: Shares
) -> PairwiseRow | str:
    """The last turns of two conversations as answers to the turns before, or the reason why they
    are none."""
    if first[:-1] != second[:-1]:
        return "prompts differ"
    if not first or not second or {first[-1]["role"], second[-1]["role"]} != {"assistant"}:
        return "the last turn is no answer"
    try:
        prompt = check_messages(first[:-1], last="user")
    except ValueError:
        return "turns before the answer empty or out of order"
    texts = str(first[-1]["content"]), str(second[-1]["content"])
    return PairwiseRow(prompt, texts, models, shares)


def _turns(value: object, field: str, role: str, content: str) -> Messages:
    """Check a list of turns and return them as messages.

    Args:
        role, content: the names of these keys in the row.
    """
    if not isinstance(value, list) or not all(
        isinstance(turn, Mapping) and turn.get(role) in list(ROLES) for turn in value
    ):
        raise ValueError(
            f"`{field}` is {value!r:.60}, expected turns of `{role}` ({', '.join(ROLES)}) and "
            f"`{content}`"
        )
    refused = set(TEMPLATE_KEYS) | REFUSED.keys() | set(MASKS)
    for i, turn in enumerate(value):
        for key in turn.keys() & refused:
            if turn[key] not in (None, "", [], {}, True, 1):
                raise ValueError(
                    f"`{field}[{i}].{key}` is {turn[key]!r:.60}, which a compared answer has no "
                    f"place for, expected turns of `{role}` and `{content}` only"
                )
    return [{"role": ROLES[turn[role]], "content": text(turn, content)} for turn in value]


def _verdict(row: Row, field: str, shares: Mapping[object, Shares]) -> Shares:
    value = row[field]
    if type(value) not in (int, str) or value not in shares:
        raise ValueError(
            f"`{field}` is {value!r:.60}, expected one of {', '.join(map(str, shares))}"
        )
    return shares[value]


def _texts(row: Row, fields: Sequence[str]) -> tuple[str, str]:
    first, second = fields
    return text(row, first), text(row, second)


def _models(row: Row, fields: Sequence[str]) -> Models:
    first, second = (text(row, field) if field in row else None for field in fields)
    return first, second


READERS: dict[str, Callable[[Row], PairwiseRow | str]] = {
    "AlpacaEval preferences": _read_alpaca_preferences,
    "AlpacaEval annotations": _read_alpaca_annotations,
    "LLMBar": _read_llmbar,
    "arena": _read_arena,
    "ShareGPT": _read_sharegpt,
    "hh-rlhf": _read_hh,
}
# format -> keys that its reader reads if they are there
OPTIONAL_KEYS: dict[str, set[str]] = {
    "AlpacaEval preferences": {"prompt", "preference", "input", "model_a", "model_b"},
    "AlpacaEval annotations": {"preference", "input", "generator_1", "generator_2"},
    "LLMBar": set(),
    "arena": {"model_a", "model_b"},
    "ShareGPT": {"system"},
    "hh-rlhf": set(),
}
