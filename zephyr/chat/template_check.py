"""Here a conversation is rendered with one part changed: where the text stays the same, the chat
template leaves that part out.

What a row says and the template does not write would be lost without a word. Trying it can't be
fooled by how a template is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zephyr.chat.messages import THINKING, Messages
from zephyr.chat.template import HANDBOOK_TEMPLATE, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[Mapping[str, object]] | None
SHORT = 20  # characters that a template's own words may hold by chance
THOUGHT = re.compile(r"\s*<think>.*?\S.*?</think>.*", re.DOTALL)
MARK = re.compile("(</?think>)")


class Change(NamedTuple):
    """A conversation with one part changed. where: of a turn, or None for the tools; key: the part;
    needed: it must be written; thought: the part is a thought within the words."""

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
    """What the template leaves out of the turns from `first` on (and of the tools, if that is 0)
    that only links or describes, as `prompt[].name`.

    Args: text: the rendered conversation; names: of the turns, for errors; trained: turns whose thoughts must be written (those of others
        are left out by templates as generation leaves them out).
    Raises: ValueError naming a part with meaning that is not in the text: a turn's words, a tool or its result, a call, a trained thought."""
    left_out: dict[str, None] = {}
    plain = template.endswith(HANDBOOK_TEMPLATE)  # and so does ZEPHYR_TEMPLATE
    last = max(trained, default=None)
    for change in _changes(turns, tools, text, set(trained), first):
        name = change.key if change.where is None else f"{names[change.where]}.{change.key}"
        refused = plain and change.thought and THOUGHT.fullmatch(turns[change.where]["content"])
        if not refused and _changes_text(tokenizer, change, template, text):
            continue
        if change.needed:
            earlier = ", `train: false` at that turn (the template writes thoughts in the last answer alone)"
            thought = change.thought or change.key in THINKING
            raise ValueError(
                f"`{name}`{' holds a <think> block, which' if change.thought else ''} is not written by the chat template, wanted one "
                "that writes it (chat_template: model, where the model's own does), or a row without it"
                + (earlier if thought and not plain and change.where != last else "")
            )
        left_out[re.sub(r"\[\d+\]", "[]", name)] = None
    return [*left_out]


def _changes_text(
    tokenizer: PreTrainedTokenizerBase, change: Change, template: str, text: str
) -> bool:
    try:
        return render(tokenizer, change.turns, template, answer=False, tools=change.tools) != text
    except ValueError:  # the template refuses the changed value: it reads it
        return True


def _changes(
    turns: Messages, tools: Tools, text: str, trained: set[int], first: int
) -> Iterator[Change]:
    """The conversation with each part changed that is not plainly in the text; those of a call or a
    tool one by one."""
    plain = _in_order(turns, text)
    for i, turn in enumerate(turns[first:], start=first):

        def changed(
            key: str, value: object, needed: bool, part: str = "", thought: bool = False
        ) -> Change:
            return Change(
                i,
                key + part,
                needed,
                [*turns[:i], {**turn, key: value}, *turns[i + 1 :]],
                tools,
                thought,
            )

        if turn["role"] == "assistant" and (MARK.search(turn["content"]) or not plain):
            for thought, words in _parts(turn["content"]):
                yield changed("content", words, not thought or i in trained, thought=thought)
        elif not plain:
            yield from (changed("content", words, True) for words in _longer(turn["content"]))
        elif turn["role"] == "tool" or _may_be_chance(turn, i in trained):
            yield changed("content", turn["content"] + "x", True)
        yield from (
            changed(key, said, i in trained)
            for key in THINKING
            if key in turn
            for said in _longer(turn[key])
        )
        yield from (
            changed(key, turn[key] + "x", False) for key in ("name", "tool_call_id") if key in turn
        )
        calls = turn.get("tool_calls", ())
        for n, call in enumerate(calls):
            for part, needed, value in _of_function(
                call, each=("arguments",), needed=("name", "arguments")
            ):
                yield changed(
                    "tool_calls", [*calls[:n], value, *calls[n + 1 :]], needed, f"[{n}]{part}"
                )
    for n, tool in enumerate(tools or () if first == 0 else ()):
        for part, needed, value in _of_function(
            tool, each=(), needed=("name", "description", "parameters")
        ):
            yield Change(
                None, f"tools[{n}]{part}", needed, turns, [*tools[:n], value, *tools[n + 1 :]]
            )


def _parts(words: str) -> Iterator[tuple[bool, str]]:
    """The words with each part changed that the marks of a thought divide, and whether the part is
    a thought: it ends with `</think>` (generation may have begun it)."""
    parts = MARK.split(words)
    for n in range(0, len(parts), 2):
        thought = parts[n + 1 : n + 2] == ["</think>"]
        for other in _longer(parts[n]) if parts[n].strip() else ():
            yield thought, "".join([*parts[:n], other, *parts[n + 1 :]])


def _longer(words: str) -> Iterator[str]:
    """The words with a letter more: at their end, their beginning, and in their middle, as a
    template may drop any piece of them."""
    begin, end = len(words) - len(words.lstrip()), len(words.rstrip())
    for at in dict.fromkeys((end, begin, (begin + end) // 2)):
        yield words[:at] + "x" + words[at:]


def _may_be_chance(turn: Mapping[str, object], trained: bool) -> bool:
    """Whether the text may hold a turn's words without having been given them: those of a short
    system turn or target among the template's own, those beside a call among the call's."""
    if turn["role"] == "system" or (trained and "tool_calls" not in turn):
        return len(turn["content"]) < SHORT
    return "tool_calls" in turn and turn["content"] != ""


def _in_order(turns: Messages, text: str) -> bool:
    """Whether the text holds the words of all turns, one behind the other."""
    at = 0
    for turn in turns:
        words = turn["content"].strip()
        if (found := text.find(words, at)) < 0:
            return False
        at = found + len(words)
    return True


def _of_function(
    holder: Mapping[str, object], each: Sequence[str], needed: Sequence[str]
) -> Iterator[tuple[str, bool, object]]:
    """A tool or a call with each key of its function changed, and its own; of those in `each` every
    entry by itself."""
    function = holder.get("function", holder)
    inside = ".function" if "function" in holder else ""
    for key, value in function.items():
        entries = (
            [(f".{key}.{name}", {**value, name: _other(entry)}) for name, entry in value.items()]
            if key in each
            else []
        )
        for part, other in entries or [(f".{key}", _other(value))]:
            new = {**function, key: other}
            yield inside + part, key in needed, {**holder, "function": new} if inside else new
    for key, value in holder.items() if inside else ():
        if key != "function":
            yield f".{key}", False, {**holder, key: _other(value)}


def _other(value: object) -> object:
    """Another value of the same type."""
    if isinstance(value, Mapping):
        return {**value, "x": "x"}
    if isinstance(value, bool) or value is None:
        return not value
    return value + ([1] if isinstance(value, list) else "x" if isinstance(value, str) else 1)
