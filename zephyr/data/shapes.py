"""Here a raw row of any known shape becomes a conversation, plain text, or a pair: one table of
shapes, and one rule for keys.

A key that a shape reads is honoured. One that is known to carry meaning where it stands (`UNSUPPORTED_KEYS`,
a label, a weight) and that nothing honours is refused by name. All others are told to the report:
`keys_not_read`."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import NamedTuple

from zephyr.chat.messages import (
    BINARIZE,
    Messages,
    check_messages,
    check_tools,
    history_turns,
    is_stringified_turns,
    join_text_parts,
    require_no_stringified_turns,
    shown,
    unread_keys,
    with_system,
)
from zephyr.chat.names import (
    LABELS,
    MASKS,
    SPEAKERS,
    is_mark,
    parse_label,
    plain,
    restore_spelling,
    role_of,
    unify_keys,
)
from zephyr.data.pairwise import PAIRWISE, ROLES
from zephyr.data.ratings import (
    NOT_PREFERRED,
    SIDES,
    Tie,
    check_verdicts_agree,
    margins,
    may_be_verdict,
    rating_keys,
)
from zephyr.data.rows import text

Row = Mapping[str, object]
QUESTIONS, ANSWERS = ("prompt", "question", "query"), ("completion", "response", "answer")
SFT_SHAPES = (
    "`messages`, `prompt` and `completion`, `instruction` (`input`) and `output`, or `text`"
)
SYSTEMS = (
    "system",
    "system_prompt",
    "system_message",
    "system_instruction",
    "system_instructions",
    "sys_prompt",
)
COMMON = {"id", "tools", *SYSTEMS}  # of every shape
UNSUPPORTED_KEYS = {  # key of a row -> what is wanted in its place
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "text alone"),
    "functions": "`tools`",
    "function_call": "`tool_calls` in a turn",
    "documents": "them in a turn",
    "context": "it in a turn",
    "persona": "`system`",
    "chat_template_kwargs": "a template that needs none",
}
ROW_LEVEL_MASKS = {  # a mark of a whole row -> what is wanted in its place, for any value but the usual
    **{mask: "`train` at a turn" for mask in MASKS if mask != "weight"},
    "mask": "`train` at a turn",
    **dict.fromkeys(
        ("sample_weight", "weights", "importance", "loss_weight", "loss_multiplier"), "`weight`"
    ),
}
PROMPT_KEYS = (
    "prompt",
    "question",
    "query",
    "instruction",
    "input",
    "conversations",
    "trajectory",
    "messages",
    "conversation",
    "dialogue",
    "dialog",
    "passage",
    "article",
    "document",
    "paragraph",
    "choices",
    "options",
)  # of which one is the prompt, or holds all
MIN_OVERLAP_CHARS = 20  # characters that another text may hold by chance
HELPSTEER = {"helpfulness", "correctness", "coherence"}
TEMPLATE_MARKERS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|(?:user|assistant|prompter|system)\|>|\[/?INST\]|<extra_id_1>|"
    r"<start_of_turn>|^### (?:Instruction|Human|Assistant|Response):",
    re.MULTILINE,
)
SIDE_KEYS = ("chosen", "rejected")
MORE = {
    "winner",
    "preference",
    "preferred",
    "better",
    "tie",
    "margin",
}  # read in `ratings` by their words
HUMAN_MARKER, ASSISTANT_MARKER = (
    re.compile(r"(?:^|\s)(?:Human|User)\s*:"),
    re.compile(r"(?:^|\s)Assistant\s*:"),
)


class Conversation(NamedTuple):
    """Turns, what the row calls each (for errors), and the tools that the assistant may call."""

    turns: Messages
    names: list[str]
    tools: list[Mapping[str, object]] | None = None


class Shape(NamedTuple):
    """needs: the keys that tell it; may: others that `read` reads; read: the keys of `check_pair`,
    or the turns, that it makes."""

    needs: frozenset[str]
    may: frozenset[str]
    read: Callable[[Row], object]


def _shape(needs: str, may: str, read: Callable[[Row], object]) -> Shape:
    return Shape(frozenset(needs.split()), frozenset(may.split()), read)


def select(row: Row, columns: Mapping[str, str | None]) -> tuple[Row, list[str], list[str]]:
    """The row with its keys named as `data.columns` says, the names that it found, and the keys
    that it set aside.

    columns: name -> path: `answers.0` is the first of `answers`; a path of None leaves the key
    out."""
    if not columns:
        return row, [], []
    tops = {
        path: path if path in row else path.split(".")[0]
        for path in columns.values()
        if path is not None
    }
    values = {name: _at(row, path) for name, path in columns.items() if path is not None}
    found = {name: value for name, value in values.items() if value is not None}
    named = {plain(name) for name in columns}
    kept = {
        key: value
        for key, value in row.items()
        if plain(str(key)) not in named and key not in tops.values()
    }
    aside = [key for key in row if plain(str(key)) in named and key not in tops.values()]
    aside += [f"{top}, but for {path}" for path, top in tops.items() if top != path and top in row]
    return {**kept, **found}, [*found], aside


def _at(value: object, path: str) -> object:
    if isinstance(value, Mapping) and path in value:
        return value[path]
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def nearest_column(name: str) -> str | None:
    """None where `data.columns` may name it: a key of some shape, or a pair's rating; else what was
    wanted."""
    if plain(name) in map(plain, known_keys() | {"id"}) or rating_keys(
        {name: 1.0, **{_twin(name, side): 1.0 for side in SIDE_KEYS}}
    ):
        return None
    if is_mark(name, True) or may_be_verdict(name):
        return None
    known = sorted(
        (COMMON | {"weight"}).union(
            *(of.needs | of.may for of in (*PAIRS.values(), *TEXTS.values()))
        )
    )
    close = difflib.get_close_matches(name, known, n=1)
    return f"the nearest is {close[0]}" if close else f"wanted one of {', '.join(known)}"


def _twin(name: str, side: str) -> str:
    words = NOT_PREFERRED.sub("rejected", plain(name)).split("_")
    return "_".join(side if word in SIDES else word for word in words)


@cache
def known_keys() -> frozenset[str]:
    """The keys that carry meaning in some row; each may be spelled otherwise (`names.plain`). An
    `id` is one as it stands."""
    shapes = (of.needs | of.may for of in (*PAIRS.values(), *TEXTS.values()))
    return frozenset(
        {
            "weight",
            "history",
            *LABELS,
            *UNSUPPORTED_KEYS,
            *ROW_LEVEL_MASKS,
            *PROMPT_KEYS,
            *MORE,
        }.union(COMMON - {"id"}, *shapes)
    )


def _as_spelled(
    read: Callable[[Row], tuple[object, list[str]]], row: Row
) -> tuple[object, list[str]]:
    """What `read` makes of the row with every key under its one name; errors and unread keys have
    the row's own spelling."""
    named, written = unify_keys(row, known_keys())
    try:
        made, unread = read(named)
    except (Tie, ValueError) as error:
        raise type(error)(restore_spelling(str(error), written.items())) from None
    return made, [written.get(key, key) for key in unread]


def pair_row(row: Row, is_plain: bool = False) -> tuple[Row, list[str]]:
    """The row as `chat.tokenize_pair` reads it, and the keys that nothing reads. is_plain: it is a
    row of `prompt`, `chosen` and `rejected`, whatever else it holds.

    Raises: ValueError naming the key, what was found and what was wanted; Tie for a row that
    prefers neither answer."""
    return _as_spelled(partial(_pair_row, is_plain=is_plain), row)


def _pair_row(row: Row, is_plain: bool) -> tuple[Row, list[str]]:
    plain_pair = PAIRS["prompt, chosen, rejected"]
    shape = (
        plain_pair
        if is_plain or row.keys() >= {"prompt", "messages", "chosen", "rejected"}
        else _find(row, PAIRS)
    )
    if shape is None or (
        shape is plain_pair and "prompt" not in row and isinstance(row["chosen"], str)
    ):
        missing = next((key for key in ("chosen", "rejected") if key not in row), "prompt")
        if missing == "prompt":
            require_no_stringified_turns(row["chosen"], "chosen")
        raise ValueError(
            f"`{missing}` is missing; the row has the fields {sorted(row)!s:.200}, {_hint(row, pairs=True)}"
        )
    made = shape.read(row)
    sides = {side: made[side] for side in ("chosen", "rejected")}
    rated = rating_keys({**row, **sides})
    reads = COMMON | {"weight", *rated} | shape.needs | shape.may
    _refuse(row, reads)
    reads |= check_verdicts_agree(row, reads)
    _refuse_labelled_turns(sides)
    made = {
        **{key: row[key] for key in ("id", "tools", "weight") if key in row},
        "system": _system(row),
        **made,
    }
    made["margins"] = (*margins({**row, **sides}), *made.get("margins", ())) or None
    _require_one_prompt(row, reads, made)
    unread = [
        key for key in row if key not in reads and not _inside(row[key], key, rated, [])
    ] + made.pop("unread", [])
    for key in row:
        _inside(row[key], key, rated, unread)
    for field in ("prompt", "chosen", "rejected"):
        unread += [
            key for key in unread_keys(made.get(field), field, masks=True) if key not in rated
        ]
    return {key: value for key, value in made.items() if value is not None}, unread


def _inside(value: object, path: str, rated: set[str], unread: list[str]) -> bool:
    """Whether an object holds a rating that is read; the rest of what it holds goes to `unread`."""
    if not isinstance(value, Mapping) or not any(key.startswith(f"{path}.") for key in rated):
        return path in rated
    for key, inner in value.items():
        if not _inside(inner, f"{path}.{key}", rated, unread):
            unread.append(f"{path}.{key}")
    return True


def _refuse_labelled_turns(sides: Row) -> None:
    """Raises: ValueError for the last turn of an answer that is called what it is not."""
    for side, turns in sides.items():
        turn = turns[-1] if isinstance(turns, list) and turns else turns
        for key, value in turn.items() if isinstance(turn, Mapping) else ():
            if isinstance(key, str) and parse_label(key, value) is (side == "rejected"):
                wanted = "bad ones" if side == "rejected" else "good ones"
                raise ValueError(
                    f"`{key}` in a turn of `{side}` is {shown(value)}: an answer called {'good' if side == 'rejected' else 'bad'}, "
                    f"wanted {wanted} there; data.on_bad_row=skip leaves such rows out"
                )


def sft_conversation(row: Row) -> tuple[Conversation | str, list[str]]:
    """The conversation of an SFT row, or its plain text, and the keys that nothing reads.

    Raises: ValueError naming the key, what was found and what was wanted."""
    return _as_spelled(_sft_conversation, row)


def _sft_conversation(row: Row) -> tuple[Conversation | str, list[str]]:
    shape = _find(row, TEXTS)
    if shape is None:
        raise ValueError(f"the row has the fields {sorted(row)!s:.200}, {_hint(row, pairs=False)}")
    reads = COMMON | {"history", "weight", *LABELS} | shape.needs | shape.may
    _refuse(row, reads)
    _refuse_bad_answer(row, labelled=shape is not TEXTS["text"])
    unread = [
        key
        for key in row
        if key not in reads
        or (
            key in LABELS
            and key not in shape.needs
            and (shape is TEXTS["text"] or parse_label(key, row[key]) is None)
        )
    ]
    made = shape.read(row)
    if isinstance(made, str):
        for key in ("history", "tools", *SYSTEMS):
            if row.get(key):
                raise ValueError(
                    f"`{key}` is {shown(row[key])}, which plain text has no place for; data.columns.{key}=null leaves it out"
                )
        return made, unread
    field, said = made
    turns, before = check_messages(said, field), history_turns(row.get("history"))
    _refuse_labelled_turns(
        {f"{field}[{i}]": turn for i, turn in enumerate(said) if turns[i]["role"] == "assistant"}
    )
    _require_one_prompt(row, reads, turns)
    system = turns[:1] if turns[0]["role"] == "system" else []
    rest = [f"{field}[{i}]" for i in range(len(turns))]
    names = (
        rest[: len(system)]
        + [f"history[{i // 2}][{i % 2}]" for i in range(len(before))]
        + rest[len(system) :]
    )
    turns = check_messages([*system, *before, *turns[len(system) :]], field) if before else turns
    if turns[-1]["role"] != "assistant":
        raise ValueError("the conversation ends with a user turn, wanted the assistant's last")
    turns, names = with_system(_system(row), turns, names)
    return Conversation(turns, names, check_tools(row.get("tools"))), [
        *unread,
        *unread_keys(said, field),
    ]


def prompt_turns(row: Row) -> tuple[Messages, list[str]]:
    """The turns up to the user's last of a row that is asked, not trained: of `prompt`, `messages`,
    or `instruction` (`input`, `context`); and the keys that nothing reads. Raises: ValueError as
    `sft_conversation`; also for `tools`."""
    return _as_spelled(_prompt_turns, row)


def _prompt_turns(row: Row) -> tuple[Messages, list[str]]:
    field = next(
        (
            key
            for key in ("messages", "prompt", "instruction")
            if row.get(key) not in (None, "", [])
        ),
        None,
    )
    if field is None:
        raise ValueError(
            f"the row has the fields {sorted(row)!s:.200}, wanted `prompt`, `messages` or `instruction` (`input`)"
        )
    reads = {"id", "prompt_id", "source", "reference", "history", field, *SYSTEMS} | (
        {"input", "context"} if field == "instruction" else set()
    )
    _refuse(row, reads)
    if check_tools(row.get("tools")):
        raise ValueError(
            f"`tools` is {shown(row['tools'])}, which nobody who answers is given; data.columns.tools=null leaves it out"
        )
    require_no_stringified_turns(row[field], field)
    turns = row[field]
    if not isinstance(turns, list):
        content = (
            _instructed({**row, "output": "-"})[1][0]["content"]
            if field == "instruction"
            else row[field]
        )
        turns = [{"role": "user", "content": content}]
    turns, before = check_messages(turns, field), history_turns(row.get("history"))
    last = max(i for i, turn in enumerate(turns) if turn["role"] in ("user", "tool"))
    if field != "messages" and last < len(turns) - 1:
        raise ValueError(f"`{field}` ends with an assistant turn, wanted the user's last")
    _require_one_prompt(row, reads, [turns, before])
    turns = turns[: last + 1]
    first = 1 if turns[0]["role"] == "system" else 0
    turns, _ = with_system(_system(row), [*turns[:first], *before, *turns[first:]], [f"{field}[0]"])
    unread = [key for key in row if key not in reads and key != "tools"]
    return turns, [*unread, *unread_keys(row[field], field)]


def sft_row(row: Row) -> Messages | str:
    """The turns of an SFT row, or its plain text. Raises: ValueError as `sft_conversation`."""
    made, _ = sft_conversation(row)
    return made if isinstance(made, str) else made.turns


def suspicious_texts(texts: Iterable[object]) -> set[str]:
    """What looks as if turns stood as text inside of one, though it may be meant."""
    found = set()
    for said in (words for value in texts for words in _texts(value)):
        if said:
            if _is_spoken(said):
                found.add(
                    "`Human:` (or `User:`) and `Assistant:` inside a turn: if it is a transcript, `zephyr binarize` parts it"
                )
            if TEMPLATE_MARKERS.search(said):
                found.add("marks of a chat template inside a turn, which are trained as text")
            if is_stringified_turns(said):
                found.add("a turn that is the JSON text of messages, which is trained as text")
    return found


def _is_spoken(said: str) -> bool:
    """Whether somebody asks and the assistant answers within the text, or it begins with the
    assistant's name."""
    asked = HUMAN_MARKER.search(said)
    begins = ASSISTANT_MARKER.match(said)
    return begins is not None or (
        asked is not None and ASSISTANT_MARKER.search(said, asked.end()) is not None
    )


def _find(row: Row, table: Mapping[str, Shape]) -> Shape | None:
    """The first shape whose keys hold something; where there is none, the first whose keys are
    there."""
    filled = {key for key, value in row.items() if value not in ("", [], {})}
    return next(
        (shape for keys in (filled, row.keys()) for shape in table.values() if shape.needs <= keys),
        None,
    )


def _require_one_prompt(row: Row, reads: set[str], made: object) -> None:
    """Raises: ValueError for another field that asks something, and whose words are nowhere in what
    is made of the row."""
    said = [text.strip() for text in _texts(made)]

    def kept(words: str, one_of: bool) -> bool:
        inside = (
            len(words) >= MIN_OVERLAP_CHARS or one_of
        )  # one of some choices: a word of the prompt
        return words in said or (
            inside
            and any(
                re.search(rf"(?<!\w){re.escape(words)}(?!\w)" if one_of else re.escape(words), text)
                for text in said
            )
        )

    for key in PROMPT_KEYS:
        one_of = isinstance(row.get(key), list) and all(
            isinstance(words, str) for words in row[key]
        )
        if (
            key in row
            and key not in reads
            and not all(
                kept(words.strip(), one_of)
                for words in _texts(_asked_of(row[key]))
                if words.strip()
            )
        ):
            raise ValueError(
                f"`{key}` is {shown(row[key])}, and the prompt is read from {', '.join(sorted(reads & set(PROMPT_KEYS)))}: wanted one "
                f"field that holds it all; data.columns.{key}=null leaves it out"
            )


def _asked_of(value: object) -> object:
    """The value; of turns of `input` and `output` the inputs: argilla's capybara keeps there the
    answer that its pair replaced."""
    turns = value if isinstance(value, list) else []
    return [
        turn["input"] if isinstance(turn, Mapping) and turn.keys() == {"input", "output"} else turn
        for turn in turns
    ] or value


def _texts(value: object) -> Iterable[str]:
    """All texts within a value, but for what only names a turn."""
    if isinstance(value, str):
        yield value
    if isinstance(value, Mapping):
        value = [
            inner
            for key, inner in value.items()
            if key not in ("role", "from", "type", "name", "id", "tool_call_id")
        ]
    for inner in value if isinstance(value, list) else ():
        yield from _texts(inner)


def _hint(row: Row, pairs: bool) -> str:
    """What may be done with a row of no known shape."""
    judged = any(fields <= row.keys() for name, fields in PAIRWISE.items() if name != "hh-rlhf")
    if judged or "completions" in row or {"response_source", "gpt4_score"} <= row.keys():
        return f"which {BINARIZE} makes pairs of"
    if row.keys() >= HELPSTEER:
        return "an answer by itself and its scores; a pair needs two"
    has_sides = any(
        side in plain(key).split("_")
        for key in row
        if isinstance(key, str)
        for side in ("chosen", "rejected")
    )
    if pairs and not has_sides and _find(row, TEXTS) is not None:
        return "which are those of a row for train_sft.py"
    if not pairs and {"chosen", "rejected"} <= row.keys():
        return "which are those of a pair for train_dpo.py; data.columns.messages=chosen trains the chosen side alone"
    wanted, example = (
        ("`prompt`, `chosen` and `rejected`", "chosen=answers.0")
        if pairs
        else (SFT_SHAPES, "prompt=FIELD")
    )
    return f"wanted {wanted}, or a shape of the README; data.columns names other fields, as data.columns.{example}"


def _system(row: Row) -> object:
    given = [(key, row[key]) for key in SYSTEMS if row.get(key, "") != ""]
    for key, value in given[1:]:
        if value != given[0][1]:
            raise ValueError(f"`{given[0][0]}` and `{key}` differ, wanted one of them")
    return given[0][1] if given else None


def _refuse(row: Row, reads: set[str]) -> None:
    for key, wanted in UNSUPPORTED_KEYS.items():
        if key in row and key not in reads and row[key] not in ("", [], {}, False):
            raise ValueError(
                f"`{key}` is {shown(row[key])}, which this shape of row has no place for, wanted {wanted}; "
                f"data.columns.{key}=null leaves it out"
            )
    for key, wanted in ROW_LEVEL_MASKS.items():
        if (
            key in row
            and key not in reads
            and row[key] not in ((True, 1) if MASKS.get(key, True) else (False, 0))
        ):
            raise ValueError(
                f"`{key}` is {shown(row[key])}, which a row as a whole has no place for, wanted {wanted}; "
                f"data.columns.{key}=null leaves it out"
            )
    for key, value in row.items():
        if (
            key not in reads
            and key not in ROW_LEVEL_MASKS
            and isinstance(key, str)
            and is_mark(key, value)
        ):
            raise ValueError(
                f"`{key}` is {shown(value)}, which may say whether the row is trained, wanted `train` at a turn; data.columns.{key}=null "
                "leaves it out"
            )
    if row.get("history") and "history" not in reads:
        raise ValueError(
            f"`history` is {shown(row['history'])}, which this shape of row has no place for; data.columns.history=null "
            "leaves it out"
        )


def _refuse_bad_answer(row: Row, labelled: bool) -> None:
    for key, value in row.items() if labelled else ():
        if isinstance(key, str) and parse_label(key, value) is False:
            raise ValueError(
                f"`{key}` is {shown(value)}: an answer called bad (KTO), wanted good ones alone; data.on_bad_row=skip leaves "
                f"such rows out, data.columns.{key}=null trains them all the same"
            )
    if row.keys() >= HELPSTEER:
        raise ValueError(
            "the row holds an answer and its scores (`helpfulness`, ...), wanted answers to imitate; choose those that are, or "
            "data.columns.helpfulness=null trains them all"
        )
    if row.get("weight", 1) != 1:
        raise ValueError(
            f"`weight` is {shown(row['weight'])}: rows of train_sft.py are not weighted, wanted 1; data.columns.weight=null "
            "leaves it out"
        )


# Readers of pairs: each gives the keys of `chat.check_pair`.


def _pair(row: Row) -> Row:
    return {key: row[key] for key in ("prompt", "chosen", "rejected", "history") if key in row}


def _asked(*fields: str) -> Callable[[Row], Row]:
    """The prompt is the text of the first field; of a second one what comes after an empty line."""
    return lambda row: {**_pair(row), "prompt": _joined(row, *fields)}


def _joined(row: Row, *fields: str) -> str:
    said = [text({"": "", **row}, field) for field in fields if field == fields[0] or field in row]
    return "\n\n".join(part for i, part in enumerate(said) if i == 0 or part.strip())


def _openai(row: Row) -> Row:
    given = row["input"]
    if not isinstance(given, Mapping):
        raise ValueError(f"`input` is {shown(given)}, wanted an object with `messages`")
    tools = {"tools": given["tools"]} if given.get("tools") else {}
    tools["unread"] = [f"input.{key}" for key in given if key not in ("messages", "tools")]
    return {
        "prompt": given.get("messages"),
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
        **tools,
    }


def _sharegpt_pair(field: str) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        answers = {
            side: sharegpt_turns([row[side]], side) if isinstance(row[side], Mapping) else row[side]
            for side in ("chosen", "rejected")
        }
        return {"prompt": sharegpt_turns(row[field], field), **answers}

    return read


def sharegpt_turns(value: object, field: str) -> Messages:
    """Turns of `from` and `value`, or of `role` and `content`, as the latter. Raises: ValueError
    naming the turn."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{field}` is {shown(value)}, wanted a list of turns")
    turns = []
    for i, turn in enumerate(value):
        if (
            isinstance(turn, Mapping)
            and "from" not in turn
            and any(plain(str(key)) == "role" for key in turn)
        ):
            turns.append(dict(turn))
            continue
        turn, _ = (
            unify_keys(turn, frozenset(("from", "value")))
            if isinstance(turn, Mapping)
            else ({}, {})
        )
        if turn.get("from") == "function_call" and isinstance(turn.get("value"), str):
            turns.append(
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": _calls(turn["value"], f"{field}[{i}].value"),
                    **_rest(turn),
                }
            )
            continue
        if (role := role_of(turn.get("from"))) is None or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"`{field}[{i}]` is {shown(value[i])}, wanted a turn of `from` ({', '.join(SPEAKERS)}, function_call) and `value`"
            )
        turns.append({"role": role, "content": turn["value"], **_rest(turn)})
    return turns


def _rest(turn: Mapping[str, object]) -> Row:
    return {key: value for key, value in turn.items() if key not in ("from", "value")}


def _calls(said: str, field: str) -> list[object]:
    """The calls of a ShareGPT turn `function_call`: the JSON text of one of `name` and `arguments`,
    or of a list of them."""
    try:
        calls = json.loads(said)
    except (ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(
        isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls
    ):
        raise ValueError(
            f"`{field}` is {shown(said)}, wanted the JSON text of a call with `name` and `arguments`, or of a list of calls"
        )
    return [{"type": "function", "function": dict(call)} for call in calls]


def _swift(row: Row) -> Row:
    """ms-swift: the conversation with the chosen answer, and the other answer."""
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError(
            f"`messages` is {shown(messages)}, wanted a list of turns that ends with the chosen answer"
        )
    return {
        "chosen": messages,
        "rejected": [
            *messages[:-1],
            {"role": "assistant", "content": _answer(row, "rejected_response")},
        ],
    }


def _after_messages(row: Row) -> Row:
    """LLaMA-Factory: turns up to the user's last, and two answers; `messages` may also be the whole
    chosen conversation."""
    messages = (
        row["messages"][:-1]
        if isinstance(row["messages"], list) and row["messages"] == row["chosen"]
        else row["messages"]
    )
    return _sharegpt_pair("messages")({**row, "messages": messages})


def _chosen_of(row: Row, first: str, second: str, first_wins: bool) -> Row:
    return (
        {"chosen": row[first], "rejected": row[second]}
        if first_wins
        else {"chosen": row[second], "rejected": row[first]}
    )


def _pku(row: Row) -> Row:
    better, safer = (
        row["better_response_id"],
        row.get("safer_response_id", row["better_response_id"]),
    )
    for name, value in (("better_response_id", better), ("safer_response_id", safer)):
        if type(value) is not int or value not in (0, 1):
            raise ValueError(f"`{name}` is {shown(value)}, wanted 0 or 1")
    if better != safer:
        raise ValueError(
            "`better_response_id` and `safer_response_id` differ, wanted one to follow: data.columns.safer_response_id=null "
            "follows the better, data.columns.better_response_id=safer_response_id the safer"
        )
    return {"prompt": row["prompt"], **_chosen_of(row, "response_0", "response_1", better == 0)}


def _helpsteer(row: Row) -> Row:
    strength = row["preference_strength"]
    if type(strength) not in (int, float):
        raise ValueError(
            f"`preference_strength` is {shown(strength)}, wanted a number, negative where `response_1` is better"
        )
    if strength == 0:
        raise Tie("preference_strength is 0")
    return {
        "prompt": row["prompt"],
        **_chosen_of(row, "response_1", "response_2", strength < 0),
        "margins": [float(abs(strength))],
    }


def _shp(row: Row) -> Row:
    if type(row["labels"]) is not int or row["labels"] not in (0, 1):
        raise ValueError(
            f"`labels` is {shown(row['labels'])}, wanted 1 (`human_ref_A` is better) or 0"
        )
    sides = (
        {"A": "chosen", "B": "rejected"} if row["labels"] == 1 else {"A": "rejected", "B": "chosen"}
    )
    scores = {f"score_{side}": row.get(f"score_{name}", 0) for name, side in sides.items()}
    return {
        "prompt": row["history"],
        **{side: row[f"human_ref_{name}"] for name, side in sides.items()},
        "margins": margins(scores),
    }


def _nectar(row: Row) -> Row:
    """The first in rank against the last."""
    answers = row["answers"]
    if (
        not isinstance(answers, list)
        or len(answers) < 2
        or not all(
            isinstance(of, Mapping) and type(of.get("rank")) in (int, float) for of in answers
        )
    ):
        raise ValueError(
            f"`answers` is {shown(answers)}, wanted two or more of `answer` and `rank`"
        )
    ranked = sorted(answers, key=lambda of: of["rank"])
    if ranked[0]["rank"] == ranked[-1]["rank"]:
        raise Tie("all answers have one rank")
    unread = [f"answers[].{key}" for of in answers for key in of if key not in ("answer", "rank")]
    unread += ["answers[] between the first and the last in rank"] if len(answers) > 2 else []
    return {
        "prompt": parse_transcript(text(row, "prompt"), "prompt"),
        "chosen": text(ranked[0], "answer"),
        "rejected": text(ranked[-1], "answer"),
        "margins": [float(ranked[-1]["rank"] - ranked[0]["rank"])],
        "unread": unread,
    }


def parse_transcript(said: str, field: str) -> Messages:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...`, which ends where the assistant's next turn begins."""
    head, *parts = re.split(r"(?:\A|\n\n)\s*(Human|Assistant):", said)
    turns = [
        {"role": ROLES[who], "content": words.strip()}
        for who, words in zip(parts[::2], parts[1::2])
    ]
    if head.strip() or len(turns) < 2 or turns[-1] != {"role": "assistant", "content": ""}:
        raise ValueError(
            f"`{field}` is {shown(said)}, wanted a transcript of `Human:` and `Assistant:` that ends with the latter"
        )
    return turns[:-1]


# Readers of rows for SFT: each gives the field that holds the turns, and these; or a plain text.


def _said(question: str, answer: str) -> Callable[[Row], tuple[str, Messages]]:
    return lambda row: (
        f"{question} + {answer}",
        [*_turns(row, question, "user"), *_turns(row, answer, "assistant")],
    )


def _turns(row: Row, field: str, role: str) -> list[object]:
    row = {**row, field: join_text_parts(row[field], field)}
    if isinstance(row[field], list):
        return list(row[field])
    require_no_stringified_turns(row[field], field)
    return [
        {"role": role, "content": _answer(row, field) if role == "assistant" else text(row, field)}
    ]


def _answer(row: Row, field: str) -> str:
    if not text(row, field).strip():
        raise ValueError(f"`{field}` is empty ({row[field]!r:.60}), wanted an answer")
    return text(row, field)


def _instructed(row: Row) -> tuple[str, Messages]:
    """Alpaca, Dolly: the input (context) follows the instruction after an empty line."""
    given = next((key for key in ("input", "context") if row.get(key)), "input")
    if row.get("input") and row.get("context"):
        raise ValueError("`input` and `context` are both given, wanted one of them")
    answer = next((key for key in ("output", "response") if key in row), "output")
    question = {"role": "user", "content": _joined(row, "instruction", given)}
    return f"instruction + {answer}", [
        question,
        {"role": "assistant", "content": _answer(row, answer)},
    ]


def _ultrachat(row: Row) -> tuple[str, Messages]:
    said = row["data"]
    if not isinstance(said, list) or not said or not all(isinstance(turn, str) for turn in said):
        raise ValueError(
            f"`data` is {shown(said)}, wanted a list of texts, the user's and the assistant's in turn"
        )
    return "data", [
        {"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(said)
    ]


# name -> shape; the first whose `needs` the row has. The README's list is made of these names.
PAIRS: dict[str, Shape] = {
    "input, preferred_output, non_preferred_output (OpenAI)": _shape(
        "input preferred_output non_preferred_output", "", _openai
    ),
    "conversations, chosen, rejected (ShareGPT)": _shape(
        "conversations chosen rejected", "", _sharegpt_pair("conversations")
    ),
    "trajectory, chosen, rejected (UltraInteract)": _shape(
        "trajectory chosen rejected", "", _sharegpt_pair("trajectory")
    ),
    "prompt, response_0, response_1, better_response_id (PKU-SafeRLHF)": _shape(
        "prompt response_0 response_1 better_response_id", "safer_response_id", _pku
    ),
    "prompt, response_1, response_2, preference_strength (HelpSteer2)": _shape(
        "prompt response_1 response_2 preference_strength", "", _helpsteer
    ),
    "history, human_ref_A, human_ref_B, labels (SHP)": _shape(
        "history human_ref_A human_ref_B labels", "score_A score_B", _shp
    ),
    "prompt, answers of answer and rank (Nectar)": _shape("prompt answers", "", _nectar),
    "instruction, input, chosen, rejected (Alpaca)": _shape(
        "instruction chosen rejected", "input history", _asked("instruction", "input")
    ),
    "question, chosen, rejected (Orca)": _shape(
        "question chosen rejected", "history", _asked("question")
    ),
    "input, chosen, rejected (Orca)": _shape("input chosen rejected", "history", _asked("input")),
    "messages, rejected_response (ms-swift)": _shape("messages rejected_response", "", _swift),
    "messages, chosen, rejected (LLaMA-Factory)": _shape(
        "messages chosen rejected", "", _after_messages
    ),
    "prompt, chosen, rejected": _shape("chosen rejected", "prompt history", _pair),
}
TEXTS: dict[str, Shape] = {
    "messages": _shape("messages", "", lambda row: ("messages", row["messages"])),
    "conversations (ShareGPT)": _shape(
        "conversations",
        "",
        lambda row: ("conversations", sharegpt_turns(row["conversations"], "conversations")),
    ),
    "data (UltraChat)": _shape("data", "", _ultrachat),
    **{
        f"{question}, {answer}": _shape(f"{question} {answer}", "", _said(question, answer))
        for question in QUESTIONS
        for answer in ANSWERS
    },
    "instruction, input, output (Alpaca)": _shape(
        "instruction", "input output context response", _instructed
    ),
    "input, output": _shape("input output", "", _said("input", "output")),
    "text": _shape("text", "", lambda row: text(row, "text")),
}
