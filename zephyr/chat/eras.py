"""A preference row becomes ids as alignment-handbook and TRL made them at two commits.

These are quirks of published runs, reproduced to compare with them; `encode.tokenize_pair` is what
new work wants. Sources: huggingface/alignment-handbook, `apply_chat_template` in
`src/alignment/data.py`, and TRL's `dpo_trainer.py` of the version that each commit pins.

`handbook_a` (commit e316174, 2024-01-04; TRL 0.7.4, `tokenize_batch_element`): the prompt is the
system turn and the first user turn, and ends in the generation prompt. The response is all turns
behind the row's first one, without the header of an answer that begins it. Both are tokenized
apart, no BOS is added, and an EOS follows what the template writes:

    <|system|>\\n</s>\\n<|user|>\\nU1</s>\\n<|assistant|>\\n  +  A1</s>\\n  +  </s>

`handbook_b` (commit f0ffa0d, 2024-01-10; TRL 0.7.7 to 0.7.10, `tokenize_row`): the prompt is all
turns but the last and has no generation prompt. The response is the last turn with its header. Both
are tokenized together, with BOS before and an EOS behind:

    <s>  +  <|system|>\\n</s>\\n<|user|>\\nU1</s>\\n  +  <|assistant|>\\nA1</s>\\n  +  </s>

In both, names of special tokens in a row's own text become special tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zephyr.chat.messages import Message, Messages
from zephyr.chat.template import HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE

ERAS = ("handbook_a", "handbook_b")
HEADER = "<|assistant|>\n"
EMPTY_SYSTEM: Message = {"role": "system", "content": ""}


class Tools(NamedTuple):
    """What turns turns into ids.

    write: the text of turns by `HANDBOOK_TEMPLATE`, with or without the generation prompt.
    tokenize: ids of a text, special tokens in it recognized, none added.
    """

    write: Callable[[Messages, bool], str]
    tokenize: Callable[[str], list[int]]
    bos_id: int | None
    eos_id: int


class Sides(NamedTuple):
    """Ids of the prompt and of both responses."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def encode_as(encoding: str, tools: Tools, turns: Messages, answers: tuple[Message, ...]) -> Sides:
    """Ids of a pair as one of `ERAS` made them.

    Args:
        turns: the prompt's, up to the last of the user.
        answers: chosen, then rejected.
    Raises:
        ValueError: for another encoding, or a tokenizer without BOS where it is needed.
    """
    if encoding == "handbook_a":
        return _handbook_a(tools, turns, answers)
    if encoding == "handbook_b":
        return _handbook_b(tools, turns, answers)
    raise ValueError(f"encoding is {encoding!r}, expected 'zephyr', 'handbook_a' or 'handbook_b'")


def require_handbook_template(encoding: str, template: str) -> None:
    """Raises: ValueError where the template is not Zephyr's, whose marks the eras' code strips."""
    if template not in (HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE):
        raise ValueError(
            f"data.encoding: {encoding} needs Zephyr's chat template, and this model has another; "
            "set chat_template: zephyr, or data.encoding: zephyr"
        )


def _handbook_a(tools: Tools, turns: Messages, answers: tuple[Message, ...]) -> Sides:
    asked = next(turn for turn in turns if turn["role"] == "user")
    system = turns[0] if turns[0]["role"] == "system" else EMPTY_SYSTEM
    prompt_ids = tools.tokenize(tools.write([system, asked], True))
    sides = []
    for answer in answers:
        # All behind the first turn: with a system turn, the user's is in the response too.
        text = tools.write([*turns, answer][1:], False).removeprefix(HEADER)
        sides.append([*tools.tokenize(text), tools.eos_id])
    return Sides(prompt_ids, *sides)


def _handbook_b(tools: Tools, turns: Messages, answers: tuple[Message, ...]) -> Sides:
    if tools.bos_id is None:
        raise ValueError("data.encoding: handbook_b puts BOS first, and the tokenizer has none")
    if turns[0]["role"] != "system":
        turns = [EMPTY_SYSTEM, *turns]
    prompt = tools.write(turns, False)
    alone_ids = tools.tokenize(prompt)
    prompts, sides = [], []
    for answer in answers:
        ids = tools.tokenize(prompt + tools.write([answer], False))
        # Where a token merges across the boundary, it belongs to the response.
        start = len(alone_ids) - (ids[: len(alone_ids)] != alone_ids)
        prompts.append(ids[:start])
        sides.append([*ids[start:], tools.eos_id])
    assert prompts[0] == prompts[1], "both responses begin with the same header"
    return Sides([tools.bos_id, *prompts[0]], *sides)
