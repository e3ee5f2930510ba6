"""No key of a row can change without changing the ids, the targets, a line of the report, or an
error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_samples import PAIRS, SAID, TEXTS, TOOL, TOOLS_TEMPLATE
from tiny import tiny_tokenizer
from tokenizer_kinds import KINDS, make_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat import ZEPHYR_TEMPLATE
from zephyr.chat.messages import REFUSED as REFUSED_TURN
from zephyr.chat.messages import TEMPLATE_KEYS
from zephyr.chat.names import LABELS, MASKS
from zephyr.data.keys import UNSUPPORTED_KEYS
from zephyr.data.sources import RawRow
from zephyr.data.tokenizer import prepare_tokenizer
from zephyr.data.workers import Options, encoded_chunks

Row = dict[str, object]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Bern", "days": 2}},
}
PATH = list[str | int]
ROWS = {
    f"{name} {n}": (table is PAIRS, row)
    for table in (PAIRS, TEXTS)
    for name, of in table.items()
    for n, (row, *_) in enumerate(of)
}
ASKED, AHOY = SAID
RAIN = {"role": "user", "content": "Rain?"}
CALLED = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
THOUGHT = {**AHOY, "reasoning_content": "hm"}
THOUGHT_ALOUD = {"role": "assistant", "content": "<think>\nso\n</think>\n\nNo"}
RESULTS = [
    {"role": "tool", "tool_call_id": f"c{n}", "content": said}
    for n, said in enumerate(("rain", "sun"))
]
OF = {"type": "object", "properties": {"of": {"type": "array"}}}
RICH: dict[str, tuple[bool, Row]] = {  # with what a template may leave out
    "a call": (
        True,
        {
            "prompt": [RAIN],
            "tools": [TOOL],
            "weight": 2.0,
            "id": "a",
            "margin": 1.5,
            "chosen": [CALLED],
            "rejected": "No.",
            "source": "made",
        },
    ),
    "ratings": (
        True,
        {
            "prompt": "Hi",
            "chosen": "a",
            "rejected": "b",
            "chosen-rating": 4.5,
            "rejected-rating": 2,
            "system_prompt": "S",
        },
    ),
    "a result": (
        False,
        {
            "messages": [
                *SAID,
                RAIN,
                CALLED,
                {"name": "weather", **RESULTS[0]},
                {"role": "assistant", "content": "Rain.", "train": False},
            ],
            "tools": [TOOL],
            "label": True,
        },
    ),
    "two results": (
        False,
        {
            "messages": [
                RAIN,
                {**CALLED, "content": "", "tool_calls": [CALL, CALL]},
                *RESULTS,
                AHOY,
            ],
            "tools": [TOOL, {"type": "function", "function": {"name": "sum", "parameters": OF}}],
        },
    ),
    "thoughts": (
        True,
        {"prompt": [ASKED], "chosen": [THOUGHT], "rejected": THOUGHT_ALOUD["content"]},
    ),
    "an earlier thought": (
        False,
        {"messages": [ASKED, {**THOUGHT, "train": False}, ASKED, THOUGHT_ALOUD]},
    ),
    "words before a thought": (
        False,
        {
            "messages": [
                *SAID,
                ASKED,
                {"role": "assistant", "content": "Well.\n<think>\nso\n</think>\n\nNo"},
            ]
        },
    ),
    "turns": (
        False,
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                ASKED,
                {**AHOY, "train": False},
                *SAID,
            ],
            "source": "made",
        },
    ),
}
ROWS |= RICH
CALLS = {"a call", "a result", "two results"}
REFUSED_ROWS = {  # template -> rows that it has no place for
    "tools": {"thoughts"},
    "zephyr": {*CALLS, "thoughts", "an earlier thought"},
    "qwen3": {"words before a thought"},
    **{name: {*CALLS, "thoughts"} for name in ("qwen25", "llama3", "smollm2", "gemma", "phi3")},
}
FAST = (
    "zephyr",
    "qwen3",
    "qwen25",
    "llama3",
    "smollm2",
)  # and `tools`; the others when there is time
MORE_OF_ROW = {
    "source": "made",
    "weight": 3.0,
    "tools": [TOOL],
    "system": "Be slow.",
    "history": [["Yes?", "No."]],
    "id": "mine",
    "score_chosen": 4,
    "score_rejected": 1,
    "margin": 2.0,
    **{key: not yes for key, yes in LABELS.items()},
    **dict.fromkeys(UNSUPPORTED_KEYS, "x"),
}
MORE_OF_TURN = {
    **dict.fromkeys((*TEMPLATE_KEYS[1:], *REFUSED_TURN, "unheard_of"), "x"),
    "tool_calls": [CALL],
    **dict.fromkeys(MASKS, False),
}


class Outcome(NamedTuple):
    """What became of a row: an error, or ids, targets and weight, and what a report tells."""

    error: tuple[str, ...]
    examples: tuple[object, ...]
    told: tuple[object, ...]
    unread: frozenset[str]


@cache
def tokenizer_of(template: str) -> PreTrainedTokenizerBase:
    """Zephyr's template, one that knows tools, or a model's own with the tokenizer that it belongs
    to."""
    if template in KINDS:
        return prepare_tokenizer(
            make_tokenizer(KINDS[template]), "model", KINDS[template].eos_token
        )
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    tokenizer.chat_template = ZEPHYR_TEMPLATE if template == "zephyr" else TOOLS_TEMPLATE
    return tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenizer_of("tools")


def outcome(tokenizer: PreTrainedTokenizerBase, pair: bool, row: Row) -> Outcome:
    options = Options(
        4096, 2048 if pair else None, "keep_end", "assistant", tokenizer.chat_template, "skip"
    )
    raw = RawRow("f:1", "f:1", json.dumps(row).encode())
    (chunk,) = encoded_chunks(iter([raw]), tokenizer, options, 1)
    examples = tuple(repr(of.example) for of in chunk.encoded)
    told = (*((of.margins, of.suspicions) for of in chunk.encoded), *chunk.dropped.items())
    return Outcome(
        tuple(why for _, why in chunk.skipped),
        examples,
        told,
        frozenset(key for of in chunk.encoded for key in of.unread),
    )


def paths(value: object, path: PATH) -> Iterator[PATH]:
    """Every key of the row, of its turns and of what they hold."""
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        if isinstance(value, dict):
            yield [*path, key]
        yield from paths(inner, [*path, key])


def with_value(value: object, path: PATH, new: object) -> object:
    """A copy in which the value at the path is another; None removes the key."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, list):
        return [
            with_value(inner, rest, new) if i == head else inner for i, inner in enumerate(value)
        ]
    changed = with_value(value.get(head), rest, new)
    return {
        key: inner
        for key, inner in {**value, head: changed}.items()
        if inner is not None or key != head
    }


def at(value: object, path: PATH) -> object:
    for key in path:
        value = value[key]
    return value


def another(value: object) -> object:
    """Another value of the same kind, which a person could have meant."""
    match value:
        case bool():
            return not value
        case int() | float():
            return 1 - value if value in (0, 1) else value + 1
        case str():
            return "assistant" if value == "user" else value + "y"
        case list():
            return value[:-1] or ["y"]
    return {**value, "y": "y"}


def others(value: object) -> list[object]:
    """Other values of the same kind: texts with another end, and another beginning."""
    return [another(value), *([f"y {value}"] if isinstance(value, str) and value != "user" else [])]


def told(path: PATH, unread: frozenset[str]) -> bool:
    """Whether the report lists the key at the path, or one that it is in."""
    names = {
        "".join(f".{key}" if isinstance(key, str) else "[]" for key in path[:n]).lstrip(".")
        for n in range(1, len(path) + 1)
    }
    return any(
        name in unread or any(key.startswith((f"{name} ", f"{name}, but")) for key in unread)
        for name in names
    )


def require_seen(
    tokenizer: PreTrainedTokenizerBase,
    pair: bool,
    row: Row,
    path: PATH,
    new: object,
    before: Outcome | None = None,
) -> None:
    """Fails where the row with another value at the path gives the same, and no report lists the
    key. before: the row's own outcome, where it is known."""
    before = before or outcome(tokenizer, pair, row)
    after = outcome(tokenizer, pair, with_value(row, path, new))
    listed = told(path, before.unread) or told(path, after.unread)
    left_out = not before.examples  # refused, or dropped and counted
    assert before != after or left_out or listed, f"{path} of {row} may be {new!r}: {after}"


def rows_of(test: Callable[..., None]) -> Callable[..., None]:
    """Runs the test with every row and one template, with the rich rows and each other; all with
    all when there is time."""
    fast = [("tools", name) for name in ROWS] + [
        (template, name) for template in FAST for name in RICH
    ]
    slow = [
        (template, name)
        for template in REFUSED_ROWS
        for name in ROWS
        if (template, name) not in fast
    ]
    taken = [
        (template, name) for template, name in fast + slow if name not in REFUSED_ROWS[template]
    ]
    cases = [
        pytest.param(*case, marks=pytest.mark.long if case in slow else (), id="-".join(case))
        for case in taken
    ]
    return pytest.mark.parametrize(("template", "name"), cases)(test)


@rows_of
def test_no_key_can_change_in_silence(template: str, name: str) -> None:
    """Every key of a row of every shape, down to the parts of tools and calls: removed, or with
    another value."""
    (pair, row), tokenizer = ROWS[name], tokenizer_of(template)
    before = outcome(tokenizer, pair, row)
    assert not before.error
    for path in paths(row, []):
        for new in (None, *others(at(row, path))):
            if not default(path, row, new):
                require_seen(tokenizer, pair, row, path, new, before)


@pytest.mark.parametrize("template", REFUSED_ROWS)
def test_what_a_template_has_no_place_for_is_refused(template: str) -> None:
    """Fails where a row that is left out above is one that trains."""
    for name in REFUSED_ROWS[template]:
        assert (
            "is not written by the chat template"
            in outcome(tokenizer_of(template), *ROWS[name]).error[0]
        )


def default(path: PATH, row: Row, new: object) -> bool:
    """Whether the removed key says what is so without it: a second verdict or a prompt that agrees,
    nothing, "a good answer"."""
    value = at(row, path)
    confirmed = (
        path == ["prompt"] and isinstance(row.get("chosen"), list) and len(row["chosen"]) > 1
    )
    return new is None and (
        path[-1] in ("safer_response_id", *LABELS) or value in ("", []) or confirmed
    )


@rows_of
def test_no_key_can_come_in_silence(template: str, name: str) -> None:
    """Every key that is known to carry meaning, in a row of every shape and in every turn, and one
    that nobody knows."""
    (pair, row), tokenizer = ROWS[name], tokenizer_of(template)
    before = outcome(tokenizer, pair, row)
    for key, value in MORE_OF_ROW.items():
        if key not in row:
            require_come(tokenizer, pair, row, [key], value, before)
    for path in paths(row, []):
        if path[-1] in ("content", "value") and isinstance(at(row, path), str):
            for key, value in MORE_OF_TURN.items():
                turn = at(row, path[:-1])
                if key in MASKS:
                    trained = turn.get(
                        "train", turn.get("role", turn.get("from")) in ("assistant", "gpt")
                    )
                    value = trained != MASKS[key]  # the mark that says other than is so
                if key not in turn:
                    require_come(tokenizer, pair, row, [*path[:-1], key], value, before)


def require_come(
    tokenizer: PreTrainedTokenizerBase,
    pair: bool,
    row: Row,
    path: PATH,
    value: object,
    before: Outcome | None = None,
) -> None:
    """Fails where a key that the row has not got may come, and nothing says so."""
    before = before or outcome(tokenizer, pair, row)
    after = outcome(tokenizer, pair, with_value(row, path, value))
    assert before != after or told(path, after.unread), f"{path} of {row} may come as {value!r}"


keys = st.sampled_from(
    [
        *MORE_OF_ROW,
        "messages",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "question",
        "answer",
        "output",
        "text",
    ]
)
values = st.sampled_from(
    [
        "why",
        "so",
        "",
        0,
        1,
        2.5,
        True,
        False,
        None,
        [],
        SAID,
        SAID[:1],
        SAID[1:],
        [TOOL],
        [["a", "b"]],
        {},
    ]
)


def change_any_key(template: str, base: tuple[bool, Row], more: Row, data: st.DataObject) -> None:
    pair, row = base[0], {**base[1], **more}
    path = data.draw(st.sampled_from([*paths(row, [])]))
    value = at(row, path)
    if value not in (None, "", [], {}):
        require_seen(
            tokenizer_of(template), pair, row, path, data.draw(st.sampled_from(others(value)))
        )


bases = st.sampled_from([*ROWS.values()])
some = st.dictionaries(keys, values, max_size=3)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(base=bases, more=some, data=st.data())
def test_no_key_of_any_row_can_change_in_silence(
    base: tuple[bool, Row], more: Row, data: st.DataObject
) -> None:
    """Rows with any fields beside and instead of a shape's own. Fails as the first test."""
    change_any_key("tools", base, more, data)


@pytest.mark.long
@pytest.mark.parametrize("template", REFUSED_ROWS)
@settings(max_examples=1000, deadline=None)
@given(base=bases, more=some, data=st.data())
def test_no_key_of_many_rows_can_change_in_silence(
    template: str, base: tuple[bool, Row], more: Row, data: st.DataObject
) -> None:
    """The same under each template."""
    change_any_key(template, base, more, data)


words = st.sampled_from(
    [
        "Hi",
        "Ahoy",
        "user",
        "S",
        "weather",
        "Bern",
        "rain",
        "c1",
        " a\n",
        "So </s> it is",
        "hm</think>No",
        "<think>\nhm\n</think>\n\nNo",
        "Well. <think>so</think>\nNo",
        "<think>no end",
    ]
)
called = st.sampled_from([{}, {"tool_calls": [CALL]}, {"tool_calls": [CALL, {**CALL, "id": "c2"}]}])
more_of_answer = st.fixed_dictionaries(
    {}, optional={"reasoning_content": words, "name": words, "train": st.booleans()}
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bool, Row]:
    """Turns with thoughts, calls, results, names and marks in any of them, as a text or as a
    pair."""
    turns: list[Row] = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(words)})
        calls = draw(called)
        if calls:
            turns.append(
                {
                    "role": "assistant",
                    "content": draw(words | st.just("")),
                    **draw(more_of_answer),
                    **calls,
                }
            )
            turns += [
                {**result, "content": draw(words)} for result in RESULTS[: len(calls["tool_calls"])]
            ]
        turns.append({"role": "assistant", "content": draw(words), **draw(more_of_answer)})
    tools = {"tools": [TOOL]} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        return False, {"messages": turns, **tools}
    answers = [
        {"role": "assistant", "content": f"{turns[-1]['content']}{end}", **draw(more_of_answer)}
        for end in " z"
    ]
    return True, {"prompt": turns[:-1], "chosen": answers[:1], "rejected": answers[1:], **tools}


def change_any_part(template: str, conversation: tuple[bool, Row], data: st.DataObject) -> None:
    pair, row = conversation
    path = data.draw(st.sampled_from([*paths(row, [])]))
    if (value := at(row, path)) not in ("", [], {}):
        require_seen(
            tokenizer_of(template), pair, row, path, data.draw(st.sampled_from(others(value)))
        )


@pytest.mark.parametrize("template", ("tools", *FAST))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(conversation=conversations(), data=st.data())
def test_no_part_of_a_conversation_can_change_in_silence(
    template: str, conversation: tuple[bool, Row], data: st.DataObject
) -> None:
    """Fails where a template drops a part, and nothing tells it."""
    change_any_part(template, conversation, data)


@pytest.mark.long
@pytest.mark.parametrize("template", REFUSED_ROWS)
@settings(max_examples=2000, deadline=None)
@given(conversation=conversations(), data=st.data())
def test_no_part_of_many_conversations_can_change_in_silence(
    template: str, conversation: tuple[bool, Row], data: st.DataObject
) -> None:
    """The same of many."""
    change_any_part(template, conversation, data)


def test_the_check_sees_a_dropped_key(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a reader that drops what it is given. Fails where the tests above could not fail."""
    monkeypatch.setattr("zephyr.data.shapes._system", lambda row: None)
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "system": "S"}
    with pytest.raises(AssertionError, match="'system'"):
        require_seen(tokenizer, True, row, ["system"], "T")
    with pytest.raises(AssertionError, match="'system'"):
        require_come(
            tokenizer, True, {"prompt": "Hi", "chosen": "a", "rejected": "b"}, ["system"], "T"
        )
