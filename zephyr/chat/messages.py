"""The turns of a row become a checked conversation: a key of a turn that carries meaning is kept,
or refused by name."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from zephyr.chat.names import MASKS, is_mark, plain, role_of, unify_keys

# A turn: `role` and `content`, both strings, and what else the chat template is given.
Message = dict[str, object]
Messages = list[Message]
Tool = Mapping[str, object]  # its function: name, description, parameters

# What a model thought before the words of its turn.
THINKING = ("reasoning_content", "reasoning", "thinking")
# What the chat template is given of a turn beside role and content.
TEMPLATE_KEYS = ("tool_calls", "tool_call_id", "name", *THINKING)
READ = ("role", "content", *TEMPLATE_KEYS, *MASKS)
# Key of a turn that is refused -> what is expected in its place.
REFUSED = {
    "function_call": "`tool_calls`",
    "function_calls": "`tool_calls`",
    "functions": "the row's `tools`",
    "prefix": "a whole turn",
    "mask": "`train`: true or false",
    "train_detail": "`train` of the whole turn",
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "text only"),
}
NAMES = frozenset((*READ, *REFUSED))  # of a turn's keys, in any spelling
# A list of turns as text, in JSON or as Python prints it.
TURN_AS_TEXT = re.compile(
    r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:"""
    r""".*["'](role|from|content|value)["']\s*:.*\}\s*\]\s*""",
    re.DOTALL,
)
TRANSCRIPT = re.compile(r"\s*Human:.*\n\s*Assistant:", re.DOTALL)
BINARIZE = "`zephyr binarize SOURCE --rule paper --out pairs.jsonl`"
# The roles that may follow a turn of this role.
AFTER = {"user": {"assistant"}, "tool": {"tool", "assistant"}, "assistant": {"user"}}


class IdenticalAnswers(ValueError):
    """Two answers that differ in white space only: no preference, and no fault of the row."""


class PairTexts(NamedTuple):
    """A preference row as it was read.

    prompt: the turns up to the last of the user (or of a tool). chosen, rejected: two answers to
    them. names: what the row calls each turn: those of the prompt, then chosen and rejected. tools:
    what the assistant may call.
    """

    prompt: Messages
    chosen: Message
    rejected: Message
    names: tuple[str, ...]
    tools: list[Tool] | None = None


def words_of(turn: Mapping[str, object]) -> str:
    """The `content` of a checked turn."""
    content = turn["content"]
    assert isinstance(content, str)
    return content


def calls_of(turn: Mapping[str, object]) -> list[Message]:
    """The `tool_calls` of a checked turn."""
    calls = turn.get("tool_calls", [])
    assert isinstance(calls, list)
    return calls


def check_messages(
    messages: object, field: str = "messages", *, last: str | None = None
) -> Messages:
    """The turns as dicts of role, content, the `TEMPLATE_KEYS` that a turn has, and `train` where
    it has one of `MASKS`. Other keys are left out (`unread_keys` lists them).

    A conversation has at most one system turn, first; then user and assistant in turn, the user
    first; results of the role `tool` after an assistant's turn with `tool_calls`, then the
    assistant again; and no empty user or assistant turn.

    Args:
        field: what the row calls the list, for errors.
        last: the role of the last turn, `user` (also a tool's) or `assistant`; None: any.
    Raises:
        ValueError: naming field, turn, what was found and what was expected.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        hint = ""
        if is_stringified_turns(messages):
            hint = ": it is the JSON text of one, to be decoded first"
        raise ValueError(f"`{field}` is {shown(messages)}, expected a list of messages{hint}")
    if not messages:
        raise ValueError(f"`{field}` is an empty list, expected at least one message")
    turns = [_check_turn(turn, f"{field}[{i}]") for i, turn in enumerate(messages)]
    first = 1 if turns[0]["role"] == "system" else 0
    if first == len(turns):
        raise ValueError(f"`{field}` holds a system turn only, expected a user turn after it")
    _check_order(turns, first, field)
    found = "user" if turns[-1]["role"] == "tool" else turns[-1]["role"]
    if last not in (None, found):
        kind = "a user" if last == "assistant" else "an assistant"
        raise ValueError(f"`{field}` ends with {kind} turn, expected the {last}'s last")
    return turns


def check_pair(pair: Mapping[str, object]) -> PairTexts:
    """The prompt turns and both answers of a preference row of any shape.

    `chosen` and `rejected` are strings, or lists of messages that end with the assistant's. Such a
    list holds the whole conversation (then the prompt turns of both must be equal, and agree with
    `prompt`), or only the answer. `prompt` is a string, or a list of messages that ends with the
    user's; it may be missing where the lists hold it. `system` is put in front, `history`
    ([[user, assistant], ...]) in front of the prompt. `tools` is what the assistant may call.

    Raises:
        ValueError: naming the field, what was found and what was expected; also for equal answers.
        IdenticalAnswers: for answers that differ in white space only.
    """
    given = join_text_parts(pair.get("prompt"), "prompt")
    before = history_turns(pair.get("history"))
    prompt = _prompt_turns(given, before)
    chosen_prompt, chosen, name = _side(pair, "chosen", prompt)
    rejected_prompt, rejected, other_name = _side(pair, "rejected", prompt)
    if chosen_prompt != rejected_prompt:
        raise ValueError(
            "the turns before the last of `chosen` and `rejected` differ, expected answers to one "
            "prompt"
        )
    _require_different(chosen, rejected)
    field = "prompt" if prompt is not None and len(prompt) == len(chosen_prompt) else "chosen"
    names = [f"{field}[{i}]" for i in range(len(chosen_prompt))]
    if before:
        names = [f"history[{i // 2}][{i % 2}]" for i in range(len(before))]
        names += [f"prompt[{i}]" for i in range(len(chosen_prompt) - len(before))]
    turns, names = with_system(pair.get("system"), chosen_prompt, names)
    tools = check_tools(pair.get("tools"))
    return PairTexts(turns, chosen, rejected, (*names, name, other_name), tools)


def _prompt_turns(prompt: object, before: Messages) -> Messages | None:
    """The turns of the row's `prompt`, those of `history` in front; None where it has none."""
    if prompt is None:
        if before:
            raise ValueError(
                "`history` stands in a row without `prompt`, expected one that it comes before"
            )
        return None
    require_no_stringified_turns(prompt, "prompt")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if before and isinstance(turns, list):
        turns = before + turns
    return _without_masks(check_messages(turns, "prompt", last="user"))


def _require_different(chosen: Message, rejected: Message) -> None:
    if chosen == rejected:
        raise ValueError(
            f"`chosen` and `rejected` are equal ({shown(chosen['content'])}), expected two "
            "different answers"
        )
    both = [{**turn, "content": without_space(words_of(turn))} for turn in (chosen, rejected)]
    if both[0] == both[1]:
        raise IdenticalAnswers("both sides equal but for white space")


def without_space(text: str) -> str:
    """The text without any white space, to compare texts by."""
    return "".join(text.split())


def with_system(system: object, turns: Messages, names: list[str]) -> tuple[Messages, list[str]]:
    """The conversation with the row's `system` in front, and the names of its turns.

    None and an empty string are no system turn.

    Raises:
        ValueError: where it is not a string, or the conversation has another system turn.
    """
    if system is None or system == "":
        return turns, names
    if not isinstance(system, str):
        raise ValueError(f"`system` is {shown(system)}, expected a string")
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns], ["system", *names]
    if turns[0]["content"] != system:
        raise ValueError(
            f"`system` ({shown(system)}) and `{names[0]}` ({shown(turns[0]['content'])}) are two "
            "system turns, expected one"
        )
    return turns, names


def history_turns(value: object) -> Messages:
    """The turns of Alpaca's `history`, pairs of a user's and an assistant's text.

    Raises:
        ValueError: for anything else.
    """
    if value is None or value == []:
        return []
    if not isinstance(value, list) or not all(map(_are_two_texts, value)):
        raise ValueError(
            f"`history` is {shown(value)}, expected a list of [user's text, assistant's text]"
        )
    turns: Messages = []
    for question, answer in value:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    return turns


def _are_two_texts(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)
    )


def check_tools(tools: object) -> list[Tool] | None:
    """The row's `tools`, a list of objects or its JSON text; None where there are none.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise ValueError(
                f"`tools` is {shown(tools)}, expected a list of tools, or the JSON text of one"
            ) from None
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"`tools` is {shown(tools)}, expected a list of objects")
    for i, tool in enumerate(tools):
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"`tools[{i}]` is {shown(tool)}, expected an object with the `name` of a function"
            )
    return tools


def join_text_parts(value: object, field: str) -> object:
    """The text of a list of parts `{"type": "text", "text": ...}`, joined; any other value as it
    is.

    Raises:
        ValueError: naming a part of another type.
    """
    if not isinstance(value, list) or not value or not all(map(_is_part, value)):
        return value
    for i, part in enumerate(value):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"`{field}[{i}]` is {shown(part)}, expected only parts of the type 'text' with a "
                "`text`"
            )
    return "".join(part["text"] for part in value)


def _is_part(value: object) -> bool:
    return isinstance(value, Mapping) and "type" in value and "role" not in value


def is_stringified_turns(value: object) -> bool:
    """Whether a string is a turn, a list of turns or an object with one, in JSON or as Python
    prints it."""
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
    for key in ("messages", "conversations"):
        if isinstance(value.get(key), list) and _are_turns(value[key]):
            return True
    for speaker, words in (("role", "content"), ("from", "value")):
        if role_of(value.get(speaker)) and isinstance(value.get(words), str):
            return True
    return False


def require_no_stringified_turns(value: object, field: str) -> None:
    """Refuse a string that is a conversation written as text.

    Its marks would be trained as somebody's words.

    Raises:
        ValueError: naming the field.
    """
    if is_stringified_turns(value):
        raise ValueError(
            f"`{field}` is the text of a list of messages ({shown(value)}), expected the list "
            "itself: decode it (json.loads)"
        )
    if isinstance(value, str) and TRANSCRIPT.match(value):
        raise ValueError(
            f"`{field}` is a transcript ({shown(value)}), whose marks would be words of one turn, "
            f"expected turns: {BINARIZE} makes pairs of transcripts"
        )


def unread_keys(messages: object, field: str, masks: bool = False) -> Iterator[str]:
    """The keys of turns that nothing reads, as `field[].key`.

    Args:
        masks: nothing reads the `MASKS` of the turns before the last one either.
    """
    if not isinstance(messages, list):
        return
    turns = [turn for turn in messages if isinstance(turn, Mapping)]
    for i, turn in enumerate(turns):
        last = i == len(turns) - 1 and field != "prompt"
        speaker = role_of(turn.get("role"))
        for key, value in turn.items():
            name = plain(key)
            unread = name not in READ
            if name in ("name", "tool_call_id") and speaker not in ("assistant", "tool"):
                unread = True
            if masks and name in MASKS and not last:
                unread = True
            if value is not None and unread:
                yield f"{field}[].{key}"
        parts = turn.get("content")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, Mapping):
                unread_parts = [key for key in part if key not in ("type", "text")]
                yield from (f"{field}[].content[].{key}" for key in unread_parts)


def shown(value: object) -> str:
    """The type of a value, and the value cut to what fits into one line of an error."""
    text = repr(value).replace("\n", " ")
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _check_order(turns: Messages, first: int, field: str) -> None:
    """Check that roles follow each other as `check_messages` says, from the turn `first` on."""
    expected = {"user"}
    for i, turn in enumerate(turns[first:], start=first):
        role, calls = str(turn["role"]), "tool_calls" in turn
        if role not in expected:
            names = " or ".join(map(repr, sorted(expected, reverse=True)))
            raise ValueError(
                f"`{field}[{i}].role` is {role!r}, expected {names}: at most one system turn, then "
                "user and assistant in turn, the user first; the results of a tool after the "
                "assistant's `tool_calls`"
            )
        if role != "tool" and not words_of(turn).strip() and not calls:
            raise ValueError(
                f"`{field}[{i}].content` is empty ({turn['content']!r:.60}), expected the {role}'s "
                "words"
            )
        expected = {"tool"} if role == "assistant" and calls else AFTER[role]


def _check_turn(turn: object, field: str) -> Message:
    """A turn with the keys that are read, under their own names."""
    if not isinstance(turn, Mapping):
        hint = ""
        if isinstance(turn, str) and turn.lstrip().startswith("{"):
            hint = ": it is text, to be decoded first"
        raise ValueError(
            f"`{field}` is {shown(turn)}, expected a message with `role` and `content`{hint}"
        )
    turn, written = unify_keys(turn, NAMES)
    given = {key: value for key, value in turn.items() if not _is_absent(key, value)}
    if "content" in given:
        given["content"] = join_text_parts(given["content"], f"{field}.content")
    checked = _role_and_content(turn, given, field)
    if given.keys() == {"role", "content"}:
        return checked
    _require_known(given, str(checked["role"]), written, field)
    if "tool_calls" in given:
        checked["tool_calls"] = _tool_calls(given["tool_calls"], f"{field}.tool_calls")
    for key in TEMPLATE_KEYS[1:]:
        if key in given and (checked["role"] in ("assistant", "tool") or key in THINKING):
            if not isinstance(given[key], str):
                raise ValueError(f"`{field}.{key}` is {shown(given[key])}, expected a string")
            checked[key] = given[key]
    trained = _trained({written.get(key, key): value for key, value in given.items()}, field)
    if trained is not None:
        checked["train"] = trained
    return checked


def _is_absent(key: str, value: object) -> bool:
    """Whether a key of a turn says nothing: null; of a key that is optional, also an empty
    value."""
    optional = key in TEMPLATE_KEYS or key in REFUSED
    return value is None or (optional and value in ([], "", {}, False))


def _role_and_content(
    turn: Mapping[str, object], given: Mapping[str, object], field: str
) -> Message:
    """The two keys that every turn has; `content` may be missing beside `tool_calls`.

    Args:
        turn: as it was read, for errors; given: without the keys that say nothing.
    """
    content = given.get("content", "" if "tool_calls" in given else None)
    for key, value in (("role", given.get("role")), ("content", content)):
        if not isinstance(value, str):
            found = f"is {shown(turn[key])}" if key in turn else "is missing"
            raise ValueError(f"`{field}.{key}` {found}, expected a string")
    role = role_of(given["role"])
    if role is None:
        hint = ""
        if given["role"] == "developer":
            hint = ": OpenAI's later name for `system`; write `system`"
        raise ValueError(
            f"`{field}.role` is {given['role']!r:.60}, expected one of system, user, assistant, "
            f"tool{hint}"
        )
    return {"role": role, "content": content}


def _require_known(
    given: Mapping[str, object], role: str, written: Mapping[str, str], field: str
) -> None:
    """Refuse the keys of a turn that cannot be trained, may be marks of training, or belong to
    another role."""
    for key, value in given.items():
        if key in REFUSED:
            raise ValueError(
                f"`{field}.{written.get(key, key)}` is {shown(value)}, which can't be trained, "
                f"expected {REFUSED[key]}"
            )
        if key not in NAMES and is_mark(key, value):
            raise ValueError(
                f"`{field}.{key}` is {shown(value)}, which may say whether the turn is trained, "
                "expected `train`: true or false"
            )
    for key in ("tool_calls", *THINKING):
        if key in given and role != "assistant":
            raise ValueError(
                f"`{field}.{key}` stands in a turn of the role {role!r}, expected it in the "
                "assistant's"
            )


def _tool_calls(calls: object, field: str) -> list[Message]:
    """Calls with their arguments as an object.

    OpenAI's JSON text of one is decoded, as servers do before they fill in a template.
    """
    if not isinstance(calls, list):
        raise ValueError(f"`{field}` is {shown(calls)}, expected a list of calls")
    checked = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"`{field}[{i}]` is {shown(call)}, expected a call with the `name` of its function"
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, Mapping):
            raise ValueError(
                f"`{field}[{i}]` has the arguments {shown(function['arguments'])}, expected an "
                "object, or the JSON text of one"
            )
        with_object = {**function, "arguments": arguments}
        checked.append({**call, "function": with_object} if "function" in call else with_object)
    return checked


def _trained(turn: Mapping[str, object], field: str) -> bool | None:
    """Whether the row asks for a loss on the turn; None where it does not say."""
    given = {key: value for key, value in turn.items() if plain(key) in MASKS}
    for key, value in given.items():
        if type(value) not in (bool, int, float) or value not in (0, 1):
            yes, no = ("trained", "not") if MASKS[plain(key)] else ("not trained", "trained")
            raise ValueError(
                f"`{field}.{key}` is {shown(value)}, expected 1 or true ({yes}), 0 or false ({no})"
            )
    answers = {bool(value) == MASKS[plain(key)] for key, value in given.items()}
    if len(answers) > 1:
        raise ValueError(
            f"`{field}` has {given}, which say both that it is trained and that it is not"
        )
    return answers.pop() if answers else None


def _side(
    pair: Mapping[str, object], field: str, prompt: Messages | None
) -> tuple[Messages, Message, str]:
    """Prompt turns, answer and the name of the answer of one side of a pair.

    Args:
        prompt: the turns of the row's own `prompt` and `history`.
    """
    side = join_text_parts(pair.get(field), field)
    if side is None:
        found = "null" if field in pair else "missing"
        raise ValueError(f"`{field}` is {found}, expected a string or a list of messages")
    if isinstance(side, str):
        require_no_stringified_turns(side, field)
        if prompt is None:
            raise ValueError(
                f"`prompt` is missing, expected one beside `{field}`, which is a string"
            )
        if not side.strip():
            raise ValueError(f"`{field}` is empty ({side!r:.60}), expected an answer")
        return prompt, {"role": "assistant", "content": side}, field
    if isinstance(side, Mapping) and "role" in side:
        side = [side]
    name = f"{field}[0]"
    if prompt and _is_one_answer(side):
        turns = check_messages([*prompt, _check_turn(side[0], name)], field, last="assistant")
    else:
        turns = check_messages(side, field, last="assistant")
        name = f"{field}[{len(turns) - 1}]"
    if turns[-1].get("train", True) is False:
        raise ValueError(
            f"the last turn of `{field}` is not to be trained, expected a pair of answers that are"
        )
    turns = _without_masks(turns)
    if prompt:
        _require_same_prompt(prompt, turns, field, loose=isinstance(pair["prompt"], str))
    return turns[:-1], turns[-1], name


def _is_one_answer(side: object) -> TypeGuard[Sequence[Mapping[str, object]]]:
    """Whether a side is a list of one turn, the assistant's."""
    if not isinstance(side, Sequence) or len(side) != 1 or not isinstance(side[0], Mapping):
        return False
    return role_of(side[0].get("role")) == "assistant"


def _require_same_prompt(prompt: Messages, turns: Messages, field: str, loose: bool) -> None:
    """Check that the row's `prompt` is that of a side's whole conversation.

    A string agrees with any of its user turns (UltraFeedback's `prompt` is the first), a list only
    with all turns before the answer.
    """
    same = prompt[0] in turns if loose and len(prompt) == 1 else prompt == turns[:-1]
    if not same:
        raise ValueError(
            f"`prompt` ({shown(prompt[-1]['content'])}) is no user turn of `{field}`, expected the "
            "same prompt in both"
        )


def _without_masks(turns: Messages) -> Messages:
    return [{key: value for key, value in turn.items() if key != "train"} for turn in turns]
