"""Here a row's turns become a checked conversation: a key of a turn that carries meaning is kept,
or refused by name."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from zephyr.chat.names import MASKS, is_mark, plain, role_of, unify_keys

Message = dict[str, object]
Messages = list[Message]

THINKING = (
    "reasoning_content",
    "reasoning",
    "thinking",
)  # what a model thought before the words of its turn
TEMPLATE_KEYS = (
    "tool_calls",
    "tool_call_id",
    "name",
    *THINKING,
)  # given to the chat template beside role and content
READ = ("role", "content", *TEMPLATE_KEYS, *MASKS)
REFUSED = {  # key of a turn -> what is wanted in its place
    "function_call": "`tool_calls`",
    "functions": "the row's `tools`",
    "prefix": "a whole turn",
    "mask": "`train`: true or false",
    "train_detail": "`train` of the whole turn",
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "text alone"),
}
NAMES = frozenset((*READ, *REFUSED))  # of a turn's keys, in any spelling
TURN_AS_TEXT = re.compile(
    r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:.*["'](role|from|content|value)["']\s*:.*\}\s*\]\s*""",
    re.DOTALL,
)  # a list of turns, in JSON or as python shows it
TRANSCRIPT = re.compile(r"\s*Human:.*\n\s*Assistant:", re.DOTALL)
BINARIZE = "`zephyr binarize SOURCE --rule paper --out pairs.jsonl`"


class IdenticalAnswers(ValueError):
    """Two answers that differ by white space alone: no fault of the row, and no preference of
    anybody's."""


class PairTexts(NamedTuple):
    """A preference row as it was read: the turns up to the user's (or a tool's) last, and two
    answers to them.

    names: what the row calls each turn, of the prompt, then `chosen` and `rejected`; tools: what
    the assistant may call."""

    prompt: Messages
    chosen: Message
    rejected: Message
    names: tuple[str, ...]
    tools: list[Mapping[str, object]] | None = None


def check_messages(
    messages: object, field: str = "messages", *, last: str | None = None
) -> Messages:
    """The turns as dicts of role, content, those of `TEMPLATE_KEYS` that it has, and `train` where
    it has one of `MASKS`; other keys are left out (`unread_keys` tells them).

    Wanted: at most one system turn, first; then user and assistant in turn, the user first; results
    of the role `tool` after an assistant's turn with `tool_calls`, then the assistant again; no
    empty user or assistant turn; the last of the role `last`, if given (`user`: the user's or a
    tool's). Raises: ValueError naming field, turn, what was found and what was wanted."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        hint = (
            ": it is the JSON text of one, to be decoded first"
            if is_stringified_turns(messages)
            else ""
        )
        raise ValueError(f"`{field}` is {shown(messages)}, wanted a list of messages{hint}")
    if not messages:
        raise ValueError(f"`{field}` is an empty list, wanted at least one message")
    turns = [_check_turn(turn, f"{field}[{i}]") for i, turn in enumerate(messages)]
    first = 1 if turns[0]["role"] == "system" else 0
    if first == len(turns):
        raise ValueError(f"`{field}` holds a system turn only, wanted a user turn after it")
    _check_order(turns, first, field)
    if last not in (None, "user" if turns[-1]["role"] == "tool" else turns[-1]["role"]):
        found = "a user" if last == "assistant" else "an assistant"
        raise ValueError(f"`{field}` ends with {found} turn, wanted the {last}'s last")
    return turns


def check_pair(pair: Mapping[str, object]) -> PairTexts:
    """The prompt turns and both answers of a preference row, whatever its shape.

    Shapes: `chosen` and `rejected` are strings, or lists of messages that end with the assistant's;
    such a list holds the whole conversation (then the prompt turns of both must be equal, and agree
    with `prompt`), or the answer alone. `prompt` is a string, or a list of messages that ends with
    the user's; it may be missing where the lists hold it. `system` is put in front, `history`
    ([[user, assistant], ...]) in front of the prompt; `tools`: what the assistant may call. Raises:
    ValueError naming the field, what was found and what was wanted; also for two equal answers;
    IdenticalAnswers."""
    prompt = join_text_parts(pair.get("prompt"), "prompt")
    before = history_turns(pair.get("history"))
    if prompt is not None:
        require_no_stringified_turns(prompt, "prompt")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = before + turns if before and isinstance(turns, list) else turns
        prompt = _without_masks(check_messages(turns, "prompt", last="user"))
    elif before:
        raise ValueError(
            "`history` stands in a row without `prompt`, wanted one that it comes before"
        )
    chosen_prompt, chosen, name = _side(pair, "chosen", prompt)
    rejected_prompt, rejected, other_name = _side(pair, "rejected", prompt)
    if chosen_prompt != rejected_prompt:
        raise ValueError(
            "the turns before the last of `chosen` and `rejected` differ, wanted answers to one prompt"
        )
    if chosen == rejected:
        raise ValueError(
            f"`chosen` and `rejected` are equal ({shown(chosen['content'])}), wanted two different answers"
        )
    if {**chosen, "content": without_space(chosen["content"])} == {
        **rejected,
        "content": without_space(rejected["content"]),
    }:
        raise IdenticalAnswers("both sides equal but for white space")
    field = "prompt" if prompt is not None and len(prompt) == len(chosen_prompt) else "chosen"
    named = [f"{field}[{i}]" for i in range(len(chosen_prompt))]
    if before:
        named = [
            *(f"history[{i // 2}][{i % 2}]" for i in range(len(before))),
            *(f"prompt[{i}]" for i in range(len(named) - len(before))),
        ]
    turns, named = with_system(pair.get("system"), chosen_prompt, named)
    return PairTexts(
        turns, chosen, rejected, (*named, name, other_name), check_tools(pair.get("tools"))
    )


def without_space(text: str) -> str:
    """The text without any white space: what two texts are compared by."""
    return "".join(text.split())


def with_system(system: object, turns: Messages, names: list[str]) -> tuple[Messages, list[str]]:
    """The conversation with the row's `system` in front, and what its turns are called; an empty
    one is none.

    Raises: ValueError where it is no text, or the conversation has another system turn."""
    if system is None or system == "":
        return turns, names
    if not isinstance(system, str):
        raise ValueError(f"`system` is {shown(system)}, wanted a string")
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns], ["system", *names]
    if turns[0]["content"] != system:
        raise ValueError(
            f"`system` ({shown(system)}) and `{names[0]}` ({shown(turns[0]['content'])}) are two system turns, wanted one"
        )
    return turns, names


def history_turns(value: object) -> Messages:
    """The turns of Alpaca's `history`, pairs of a user's and an assistant's text. Raises:
    ValueError for anything else."""
    if value is None or value == []:
        return []
    if not isinstance(value, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn)
        for turn in value
    ):
        raise ValueError(
            f"`history` is {shown(value)}, wanted a list of [user's text, assistant's text]"
        )
    return [
        {"role": role, "content": said}
        for turn in value
        for role, said in zip(("user", "assistant"), turn)
    ]


def check_tools(tools: object) -> list[Mapping[str, object]] | None:
    """The row's `tools` (a list of objects, or its JSON text), None where there are none. Raises:
    ValueError for anything else."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise ValueError(
                f"`tools` is {shown(tools)}, wanted a list of tools, or the JSON text of one"
            ) from None
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"`tools` is {shown(tools)}, wanted a list of objects")
    for i, tool in enumerate(tools):
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"`tools[{i}]` is {shown(tool)}, wanted an object with the `name` of a function"
            )
    return tools


def join_text_parts(value: object, field: str) -> object:
    """The text of a list of parts `{"type": "text", "text": ...}`, one behind the other; anything
    else as it is.

    Raises: ValueError for a part of another type, naming it."""
    if (
        not isinstance(value, list)
        or not value
        or not all(
            isinstance(part, Mapping) and "type" in part and "role" not in part for part in value
        )
    ):
        return value
    for i, part in enumerate(value):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"`{field}[{i}]` is {shown(part)}, wanted parts of the type 'text' with a `text` alone"
            )
    return "".join(part["text"] for part in value)


def is_stringified_turns(value: object) -> bool:
    """Whether a string is a turn, a list of turns or an object with one, written as text, in JSON
    or as python shows it."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return False
    for read in (json.loads, ast.literal_eval):
        try:
            return _are_turns(read(value.strip()))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return TURN_AS_TEXT.fullmatch(value) is not None


def _are_turns(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_are_turns, value))
    if not isinstance(value, Mapping):
        return False
    whole = any(
        _are_turns(value[key])
        for key in ("messages", "conversations")
        if isinstance(value.get(key), list)
    )
    return whole or any(
        role_of(value.get(who)) and isinstance(value.get(said), str)
        for who, said in (("role", "content"), ("from", "value"))
    )


def require_no_stringified_turns(value: object, field: str) -> None:
    """Raises: ValueError for a string that is a conversation written as text: its marks would be
    trained as somebody's words."""
    if is_stringified_turns(value):
        raise ValueError(
            f"`{field}` is the text of a list of messages ({shown(value)}), wanted the list itself: decode it (json.loads)"
        )
    if isinstance(value, str) and TRANSCRIPT.match(value):
        raise ValueError(
            f"`{field}` is a transcript ({shown(value)}), whose marks would be words of one turn, wanted turns: "
            f"{BINARIZE} makes pairs of transcripts"
        )


def unread_keys(messages: object, field: str, masks: bool = False) -> Iterator[str]:
    """The keys of turns that nothing reads, as `field[].key`. masks: nor are those of `MASKS`,
    before the last turn."""
    turns = (
        [turn for turn in messages if isinstance(turn, Mapping)]
        if isinstance(messages, list)
        else []
    )
    for i, turn in enumerate(turns):
        last = i == len(turns) - 1 and field != "prompt"
        for key, value in turn.items():
            name = plain(key)
            unnamed = name in ("name", "tool_call_id") and role_of(turn.get("role")) not in (
                "assistant",
                "tool",
            )
            if value is not None and (
                name not in READ or unnamed or (masks and name in MASKS and not last)
            ):
                yield f"{field}[].{key}"
        parts = turn.get("content")
        for part in parts if isinstance(parts, list) else ():
            yield from (
                f"{field}[].content[].{key}"
                for key in part
                if isinstance(part, Mapping) and key not in ("type", "text")
            )


def shown(value: object) -> str:
    """A value short enough for one line of an error."""
    text = repr(value).replace("\n", " ")
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _check_order(turns: Messages, first: int, field: str) -> None:
    wanted = {"user"}
    for i, turn in enumerate(turns[first:], start=first):
        role = turn["role"]
        if role not in wanted:
            names = " or ".join(map(repr, sorted(wanted, reverse=True)))
            raise ValueError(
                f"`{field}[{i}].role` is {role!r}, wanted {names}: at most one system turn, then user and assistant in turn, "
                "the user first; a tool's results behind the assistant's `tool_calls`"
            )
        if role != "tool" and not turn["content"].strip() and "tool_calls" not in turn:
            raise ValueError(
                f"`{field}[{i}].content` is empty ({turn['content']!r:.60}), wanted the {role}'s words"
            )
        wanted = {
            "user": {"assistant"},
            "tool": {"tool", "assistant"},
            "assistant": {"tool"} if "tool_calls" in turn else {"user"},
        }[role]


def _check_turn(turn: object, field: str) -> Message:
    if not isinstance(turn, Mapping):
        hint = (
            ": it is text, to be decoded first"
            if isinstance(turn, str) and turn.lstrip().startswith("{")
            else ""
        )
        raise ValueError(
            f"`{field}` is {shown(turn)}, wanted a message with `role` and `content`{hint}"
        )
    turn, written = unify_keys(turn, NAMES)
    given = {
        key: value
        for key, value in turn.items()
        if value is not None
        and not ((key in TEMPLATE_KEYS or key in REFUSED) and value in ([], "", {}, False))
    }
    if "content" in given:
        given["content"] = join_text_parts(given["content"], f"{field}.content")
    for key in ("role", "content"):
        if not isinstance(given.get(key), str) and not (
            key not in given and key == "content" and "tool_calls" in given
        ):
            found = f"is {shown(turn[key])}" if key in turn else "is missing"
            raise ValueError(f"`{field}.{key}` {found}, wanted a string")
    if (role := role_of(given["role"])) is None:
        hint = (
            ": OpenAI's later name for `system`, which is to be written"
            if given["role"] == "developer"
            else ""
        )
        raise ValueError(
            f"`{field}.role` is {given['role']!r:.60}, wanted one of system, user, assistant, tool{hint}"
        )
    checked = {"role": role, "content": given.get("content", "")}
    if given.keys() == {"role", "content"}:
        return checked
    for key, value in given.items():
        if key in REFUSED:
            raise ValueError(
                f"`{field}.{written.get(key, key)}` is {shown(value)}, which can't be trained, wanted {REFUSED[key]}"
            )
        if key not in NAMES and is_mark(key, value):
            raise ValueError(
                f"`{field}.{key}` is {shown(value)}, which may say whether the turn is trained, wanted `train`: true or false"
            )
    for key in ("tool_calls", *THINKING):
        if key in given and role != "assistant":
            raise ValueError(
                f"`{field}.{key}` stands in a turn of the role {role!r}, wanted it in the assistant's"
            )
    if "tool_calls" in given:
        checked["tool_calls"] = _tool_calls(given["tool_calls"], f"{field}.tool_calls")
    for key in TEMPLATE_KEYS[1:]:
        if key in given and (role in ("assistant", "tool") or key in THINKING):
            if not isinstance(given[key], str):
                raise ValueError(f"`{field}.{key}` is {shown(given[key])}, wanted a string")
            checked[key] = given[key]
    trained = _trained({written.get(key, key): value for key, value in given.items()}, field)
    return checked if trained is None else {**checked, "train": trained}


def _tool_calls(calls: object, field: str) -> list[Message]:
    """Calls with arguments as an object: OpenAI's JSON text of one is decoded, as servers do before
    they fill in a template."""
    if not isinstance(calls, list):
        raise ValueError(f"`{field}` is {shown(calls)}, wanted a list of calls")
    checked = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"`{field}[{i}]` is {shown(call)}, wanted a call with the `name` of its function"
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, Mapping):
            raise ValueError(
                f"`{field}[{i}]` has the arguments {shown(function['arguments'])}, wanted an object, or the JSON text of one"
            )
        function = {**function, "arguments": arguments}
        checked.append({**call, "function": function} if "function" in call else function)
    return checked


def _trained(turn: Mapping[str, object], field: str) -> bool | None:
    """Whether the row asks for a loss on the turn; None where it says nothing."""
    given = {key: value for key, value in turn.items() if plain(key) in MASKS}
    for key, value in given.items():
        if type(value) not in (bool, int, float) or value not in (0, 1):
            yes, no = ("trained", "not") if MASKS[plain(key)] else ("not trained", "trained")
            raise ValueError(
                f"`{field}.{key}` is {shown(value)}, wanted 1 or true ({yes}), 0 or false ({no})"
            )
    said = {bool(value) == MASKS[plain(key)] for key, value in given.items()}
    if len(said) > 1:
        raise ValueError(
            f"`{field}` has {given}, which say both that it is trained and that it is not"
        )
    return said.pop() if said else None


def _side(
    pair: Mapping[str, object], field: str, prompt: Messages | None
) -> tuple[Messages, Message, str]:
    """Prompt turns, answer and the answer's name of one side; `prompt`: what the row's own `prompt`
    (and `history`) hold."""
    side = join_text_parts(pair.get(field), field)
    side = [side] if isinstance(side, Mapping) and "role" in side else side
    if side is None:
        raise ValueError(
            f"`{field}` is {'null' if field in pair else 'missing'}, wanted a string or a list of messages"
        )
    if isinstance(side, str):
        require_no_stringified_turns(side, field)
        if prompt is None:
            raise ValueError(f"`prompt` is missing, wanted one beside `{field}`, which is a string")
        if not side.strip():
            raise ValueError(f"`{field}` is empty ({side!r:.60}), wanted an answer")
        return prompt, {"role": "assistant", "content": side}, field
    alone = False
    match side:
        case [{"role": who}] if prompt and role_of(who) == "assistant":  # the answer alone
            side, alone = [*prompt, _check_turn(side[0], f"{field}[0]")], True
    turns = check_messages(side, field, last="assistant")
    if turns[-1].get("train", True) is False:
        raise ValueError(
            f"the last turn of `{field}` is not to be trained, wanted a pair of answers that are"
        )
    turns = _without_masks(turns)
    # A string agrees with any user turn (UltraFeedback's `prompt` is the first), a list only with
    # all turns.
    loose = prompt and isinstance(pair["prompt"], str) and len(prompt) == 1
    if prompt and not (prompt[0] in turns if loose else prompt == turns[:-1]):
        raise ValueError(
            f"`prompt` ({shown(prompt[-1]['content'])}) is no user turn of `{field}`, wanted the same prompt in both"
        )
    return turns[:-1], turns[-1], f"{field}[{0 if alone else len(turns) - 1}]"


def _without_masks(turns: Messages) -> Messages:
    return [{key: value for key, value in turn.items() if key != "train"} for turn in turns]
