"""A conversation is rendered with one part changed: where the text stays the same, the chat
template leaves that part out.

What a row says and the template does not write would be lost silently. Rendering it shows this for
any template, however it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zephyr.chat.messages import THINKING, Message, Messages, Tool, calls_of, words_of
from zephyr.chat.template import HANDBOOK_TEMPLATE, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[Tool] | None
SHORT = 20  # characters that a template's own words may hold by chance
THOUGHT = re.compile(r"\s*<think>.*?\S.*?</think>.*", re.DOTALL)
MARK = re.compile("(</?think>)")


class Change(NamedTuple):
    """A conversation with one part changed.

    where: index of the turn, None for the tools. key: the part. needed: whether the template must
    write it. thought: whether the part is a thought within the words.
    """

    where: int | None
    key: str
    needed: bool
    turns: Messages
    tools: Tools
    thought: bool = False


def require_rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Messages,
    template: str,
    *,
    text: str,
    names: Sequence[str],
    trained: Sequence[int],
    tools: Tools = None,
    first: int = 0,
) -> list[str]:
    """Check that the template writes every part with meaning: words of turns, tools and their
    results, calls, thoughts that are trained.

    Args:
        text: the rendered conversation.
        names: what the row calls the turns, for errors.
        trained: the turns whose thoughts must be written; templates leave out those of others, as
            generation does.
        first: the first turn to check; the tools are checked where it is 0.
    Returns:
        What the template leaves out that only links or describes, as `prompt[].name`.
    Raises:
        ValueError: naming a part with meaning that is not in the text.
    """
    left_out: dict[str, None] = {}
    plain = template.endswith(HANDBOOK_TEMPLATE)  # so does ZEPHYR_TEMPLATE
    last = max(trained, default=None)
    for change in _changes(turns, tools, text, set(trained), first):
        name, refused = change.key, False
        if change.where is not None:
            name = f"{names[change.where]}.{change.key}"
            thought = THOUGHT.fullmatch(words_of(turns[change.where]))
            refused = plain and change.thought and thought is not None
        if not refused and _changes_text(tokenizer, change, template, text):
            continue
        if change.needed:
            raise ValueError(_not_written(change, name, earlier=not plain and change.where != last))
        left_out[re.sub(r"\[\d+\]", "[]", name)] = None
    return list(left_out)


def _not_written(change: Change, name: str, *, earlier: bool) -> str:
    """The error for a part with meaning that the template leaves out.

    Args:
        earlier: whether it is in a turn before the last answer, under a template of the model's.
    """
    block = " holds a <think> block, which" if change.thought else ""
    hint = ""
    if earlier and (change.thought or change.key in THINKING):
        hint = (
            ", or `train: false` at that turn (the template writes thoughts in the last answer "
            "only)"
        )
    return (
        f"`{name}`{block} is not written by the chat template, expected one that writes it "
        f"(chat_template: model, where the model's own does), or a row without it{hint}"
    )


def _changes_text(
    tokenizer: PreTrainedTokenizerBase, change: Change, template: str, text: str
) -> bool:
    try:
        return render(tokenizer, change.turns, template, answer=False, tools=change.tools) != text
    except ValueError:  # the template refuses the changed value, so it reads it
        return True


def _changes(
    turns: Messages, tools: Tools, text: str, trained: set[int], first: int
) -> Iterator[Change]:
    """The conversation with each part changed that is not plainly in the text.

    The parts of a call or a tool are changed one by one.
    """
    plain = _in_order(turns, text)
    for i, turn in enumerate(turns[first:], start=first):
        for key, part, value, needed, thought in _changes_of_turn(turn, plain, i in trained):
            changed = [*turns[:i], {**turn, key: value}, *turns[i + 1 :]]
            yield Change(i, key + part, needed, changed, tools, thought)
    if tools is None or first > 0:
        return
    for n, tool in enumerate(tools):
        for part, needed, value in _of_function(
            tool, each=(), needed=("name", "description", "parameters")
        ):
            yield Change(
                None, f"tools[{n}]{part}", needed, turns, [*tools[:n], value, *tools[n + 1 :]]
            )


class TurnChange(NamedTuple):
    """Another value of a key of a turn. part: which part of the key's value is changed."""

    key: str
    part: str
    value: object
    needed: bool
    thought: bool = False


def _changes_of_turn(turn: Message, plain: bool, trained: bool) -> Iterator[TurnChange]:
    """Every part of a turn changed.

    Args:
        plain: whether the text holds the words of all turns, in order.
        trained: whether the turn's thoughts must be written.
    """
    words = words_of(turn)
    if turn["role"] == "assistant" and (MARK.search(words) or not plain):
        for thought, other in _parts(words):
            yield TurnChange("content", "", other, not thought or trained, thought)
    elif not plain:
        for other in _longer(words):
            yield TurnChange("content", "", other, True)
    elif turn["role"] == "tool" or _may_be_chance(turn, trained):
        yield TurnChange("content", "", f"{words}x", True)
    for key in THINKING:
        for other in _longer(str(turn[key])) if key in turn else ():
            yield TurnChange(key, "", other, trained)
    for key in ("name", "tool_call_id"):
        if key in turn:
            yield TurnChange(key, "", f"{turn[key]}x", False)
    calls = calls_of(turn)
    for n, call in enumerate(calls):
        for part, needed, value in _of_function(
            call, each=("arguments",), needed=("name", "arguments")
        ):
            others = [*calls[:n], value, *calls[n + 1 :]]
            yield TurnChange("tool_calls", f"[{n}]{part}", others, needed)


def _parts(words: str) -> Iterator[tuple[bool, str]]:
    """The words with each part changed that the marks of a thought divide, and whether the part is
    a thought: it ends with `</think>` (generation may have begun it)."""
    parts = MARK.split(words)
    for n in range(0, len(parts), 2):
        thought = parts[n + 1 : n + 2] == ["</think>"]
        for other in _longer(parts[n]) if parts[n].strip() else ():
            yield thought, "".join([*parts[:n], other, *parts[n + 1 :]])


def _longer(words: str) -> Iterator[str]:
    """The words with a letter added at their end, at their beginning, and in their middle: a
    template may drop any piece of them."""
    begin, end = len(words) - len(words.lstrip()), len(words.rstrip())
    for at in dict.fromkeys((end, begin, (begin + end) // 2)):
        yield words[:at] + "x" + words[at:]


def _may_be_chance(turn: Message, trained: bool) -> bool:
    """Whether the text may hold a turn's words by chance.

    Those of a short system turn or target may be among the template's own, those beside a call
    among the call's.
    """
    if turn["role"] == "system" or (trained and "tool_calls" not in turn):
        return len(words_of(turn)) < SHORT
    return "tool_calls" in turn and turn["content"] != ""


def _in_order(turns: Messages, text: str) -> bool:
    """Whether the text holds the words of all turns, one after the other."""
    at = 0
    for turn in turns:
        words = words_of(turn).strip()
        found = text.find(words, at)
        if found < 0:
            return False
        at = found + len(words)
    return True


def _of_function(
    holder: Mapping[str, object], each: Sequence[str], needed: Sequence[str]
) -> Iterator[tuple[str, bool, Message]]:
    """A tool or a call with each key of its function changed, and each key of its own.

    Args:
        each: the keys of the function whose entries are changed one by one.
        needed: the keys of the function that the template must write.
    Yields:
        The changed part, whether it is needed, and the tool or call.
    """
    function = holder.get("function", holder)
    assert isinstance(function, Mapping)
    inside = ".function" if "function" in holder else ""
    for key, value in function.items():
        for part, other in _other_values(key, value, key in each):
            new = {**function, key: other}
            yield inside + part, key in needed, {**holder, "function": new} if inside else new
    if not inside:
        return
    for key, value in holder.items():
        if key != "function":
            yield f".{key}", False, {**holder, key: _other(value)}


def _other_values(key: str, value: object, each: bool) -> list[tuple[str, object]]:
    """The part of a function that is changed, and the key's other value."""
    if each and isinstance(value, Mapping) and value:
        return [(f".{key}.{name}", {**value, name: _other(part)}) for name, part in value.items()]
    return [(f".{key}", _other(value))]


def _other(value: object) -> object:
    """Another value of the same type."""
    if isinstance(value, Mapping):
        return {**value, "x": "x"}
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, list):
        return [*value, 1]
    if isinstance(value, str):
        return f"{value}x"
    assert isinstance(value, (int, float)), value
    return value + 1
