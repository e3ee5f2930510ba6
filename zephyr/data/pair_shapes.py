"""The known shapes of a preference row, and how each becomes the fields of `chat.check_pair`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from zephyr.chat.messages import Messages, shown
from zephyr.data.pairwise import ROLES
from zephyr.data.ratings import Tie, margins
from zephyr.data.rows import Row, text
from zephyr.data.sft_shapes import Shape, answer_text, joined_text, shape, sharegpt_turns

SIDES = ("chosen", "rejected")


class PairFields(NamedTuple):
    """What a shape makes of a row.

    fields: keys of `chat.check_pair`, `chosen` and `rejected` among them. margins: by how much the
    chosen answer is better, by ratings that only this shape knows. unread: what it does not read
    inside of its keys."""

    fields: dict[str, object]
    margins: tuple[float, ...] = ()
    unread: tuple[str, ...] = ()


def _pair(row: Row) -> PairFields:
    keys = ("prompt", "chosen", "rejected", "history")
    return PairFields({key: row[key] for key in keys if key in row})


def _asked(first: str, *others: str) -> Callable[[Row], PairFields]:
    """The prompt is the text of the first field, then those of the others."""

    def read(row: Row) -> PairFields:
        return PairFields({**_pair(row).fields, "prompt": joined_text(row, first, *others)})

    return read


def _openai(row: Row) -> PairFields:
    given = row["input"]
    if not isinstance(given, Mapping):
        raise ValueError(f"`input` is {shown(given)}, expected an object with `messages`")
    fields: dict[str, object] = {
        "prompt": given.get("messages"),
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    }
    if given.get("tools"):
        fields["tools"] = given["tools"]
    unread = tuple(f"input.{key}" for key in given if key not in ("messages", "tools"))
    return PairFields(fields, unread=unread)


def _sharegpt_pair(field: str) -> Callable[[Row], PairFields]:
    def read(row: Row) -> PairFields:
        answers: dict[str, object] = {}
        for side in SIDES:
            answer = row[side]
            is_turn = isinstance(answer, Mapping)
            answers[side] = sharegpt_turns([answer], side) if is_turn else answer
        return PairFields({"prompt": sharegpt_turns(row[field], field), **answers})

    return read


def _swift(row: Row) -> PairFields:
    """ms-swift: the conversation with the chosen answer, and the other answer."""
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError(
            f"`messages` is {shown(messages)}, expected a list of turns that ends with the chosen "
            "answer"
        )
    rejected = {"role": "assistant", "content": answer_text(row, "rejected_response")}
    return PairFields({"chosen": messages, "rejected": [*messages[:-1], rejected]})


def _llama_factory(row: Row) -> PairFields:
    """LLaMA-Factory: turns up to the user's last, and two answers. `messages` may also be the whole
    chosen conversation."""
    messages = row["messages"]
    if isinstance(messages, list) and messages == row["chosen"]:
        messages = messages[:-1]
    return _sharegpt_pair("messages")({**row, "messages": messages})


def _pku(row: Row) -> PairFields:
    better = row["better_response_id"]
    safer = row.get("safer_response_id", better)
    for name, value in (("better_response_id", better), ("safer_response_id", safer)):
        if type(value) is not int or value not in (0, 1):
            raise ValueError(f"`{name}` is {shown(value)}, expected 0 or 1")
    if better != safer:
        raise ValueError(
            "`better_response_id` and `safer_response_id` differ, expected one to follow: "
            "data.columns.safer_response_id=null follows the better, "
            "data.columns.better_response_id=safer_response_id the safer"
        )
    chosen, rejected = ("response_0", "response_1") if better == 0 else ("response_1", "response_0")
    return _two_answers(row, "prompt", chosen, rejected)


def _helpsteer(row: Row) -> PairFields:
    strength = row["preference_strength"]
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise ValueError(
            f"`preference_strength` is {shown(strength)}, expected a number, negative if "
            "`response_1` is better"
        )
    if strength == 0:
        raise Tie("preference_strength is 0")
    chosen, rejected = (
        ("response_1", "response_2") if strength < 0 else ("response_2", "response_1")
    )
    pair = _two_answers(row, "prompt", chosen, rejected)
    return pair._replace(margins=(float(abs(strength)),))


def _shp(row: Row) -> PairFields:
    label = row["labels"]
    if type(label) is not int or label not in (0, 1):
        raise ValueError(f"`labels` is {shown(label)}, expected 1 (`human_ref_A` is better) or 0")
    chosen, rejected = ("A", "B") if label == 1 else ("B", "A")
    scores = {
        "score_chosen": row.get(f"score_{chosen}", 0),
        "score_rejected": row.get(f"score_{rejected}", 0),
    }
    pair = _two_answers(row, "history", f"human_ref_{chosen}", f"human_ref_{rejected}")
    return pair._replace(margins=margins(scores))


def _two_answers(row: Row, prompt: str, chosen: str, rejected: str) -> PairFields:
    return PairFields({"prompt": row[prompt], "chosen": row[chosen], "rejected": row[rejected]})


def _nectar(row: Row) -> PairFields:
    """The answer of the best rank against that of the worst."""
    answers = row["answers"]
    if not isinstance(answers, list) or len(answers) < 2 or not all(map(_is_ranked, answers)):
        raise ValueError(
            f"`answers` is {shown(answers)}, expected two or more objects with `answer` and `rank`"
        )
    ranked = sorted(answers, key=lambda answer: answer["rank"])
    best, worst = ranked[0], ranked[-1]
    if best["rank"] == worst["rank"]:
        raise Tie("all answers have one rank")
    unread = [
        f"answers[].{key}" for answer in answers for key in answer if key not in ("answer", "rank")
    ]
    if len(answers) > 2:
        unread.append("answers[] between the first and the last in rank")
    fields: dict[str, object] = {
        "prompt": parse_transcript(text(row, "prompt"), "prompt"),
        "chosen": text(best, "answer"),
        "rejected": text(worst, "answer"),
    }
    return PairFields(fields, (float(worst["rank"] - best["rank"]),), tuple(unread))


def _is_ranked(answer: object) -> bool:
    return isinstance(answer, Mapping) and type(answer.get("rank")) in (int, float)


def parse_transcript(transcript: str, field: str) -> Messages:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...` up to where the assistant's next turn
    begins.

    Raises: ValueError for another text, naming the field."""
    head, *parts = re.split(r"(?:\A|\n\n)\s*(Human|Assistant):", transcript)
    turns: Messages = [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2])
    ]
    if head.strip() or len(turns) < 2 or turns[-1] != {"role": "assistant", "content": ""}:
        raise ValueError(
            f"`{field}` is {shown(transcript)}, expected a transcript of `Human:` and `Assistant:` "
            "that ends with the latter"
        )
    return turns[:-1]


# name -> shape; a row has the first shape that `find_shape` finds. The README lists these names.
PLAIN_PAIR = "prompt, chosen, rejected"
PAIRS: dict[str, Shape[PairFields]] = {
    "input, preferred_output, non_preferred_output (OpenAI)": shape(
        "input preferred_output non_preferred_output", "", _openai
    ),
    "conversations, chosen, rejected (ShareGPT)": shape(
        "conversations chosen rejected", "", _sharegpt_pair("conversations")
    ),
    "trajectory, chosen, rejected (UltraInteract)": shape(
        "trajectory chosen rejected", "", _sharegpt_pair("trajectory")
    ),
    "prompt, response_0, response_1, better_response_id (PKU-SafeRLHF)": shape(
        "prompt response_0 response_1 better_response_id", "safer_response_id", _pku
    ),
    "prompt, response_1, response_2, preference_strength (HelpSteer2)": shape(
        "prompt response_1 response_2 preference_strength", "", _helpsteer
    ),
    "history, human_ref_A, human_ref_B, labels (SHP)": shape(
        "history human_ref_A human_ref_B labels", "score_A score_B", _shp
    ),
    "prompt, answers of answer and rank (Nectar)": shape("prompt answers", "", _nectar),
    "instruction, input, chosen, rejected (Alpaca)": shape(
        "instruction chosen rejected", "input history", _asked("instruction", "input")
    ),
    "question, chosen, rejected (Orca)": shape(
        "question chosen rejected", "history", _asked("question")
    ),
    "input, chosen, rejected (Orca)": shape("input chosen rejected", "history", _asked("input")),
    "messages, rejected_response (ms-swift)": shape("messages rejected_response", "", _swift),
    "messages, chosen, rejected (LLaMA-Factory)": shape(
        "messages chosen rejected", "", _llama_factory
    ),
    PLAIN_PAIR: shape("chosen rejected", "prompt history", _pair),
}
