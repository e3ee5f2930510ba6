"""No key of a row can change without changing the ids, the targets, a line of the report, or an error."""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_samples import PAIRS, SAID, TEXTS, TOOL, TOOLS_TEMPLATE
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat.turns import FOR_TEMPLATE, MASKS
from zephyr.chat.turns import REFUSED as REFUSED_TURN
from zephyr.data import prepare_tokenizer
from zephyr.data.shapes import LABELS, REFUSED
from zephyr.data.sources import RawRow
from zephyr.data.workers import Options, encoded_chunks

Row = dict[str, object]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "days": 2}}}
RESULTS = [{"role": "tool", "tool_call_id": f"c{n}", "content": said} for n, said in enumerate(("rain", "sun"))]
OTHER = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object", "properties": {"of": {"type": "array"}}}}}
PATH = list[str | int]
ROWS = [(True, row) for of in PAIRS.values() for row, *_ in of] + [(False, row) for of in TEXTS.values() for row, *_ in of]
ROWS += [(True, {"prompt": [{"role": "user", "content": "Rain?"}], "tools": [TOOL], "weight": 2.0, "id": "a", "margin": 1.5,
                 "chosen": [{"role": "assistant", "content": "I look.", "tool_calls": [CALL]}], "rejected": "No.", "source": "made"}),
         (True, {"prompt": "Hi", "chosen": "a", "rejected": "b", "chosen-rating": 4.5, "rejected-rating": 2, "system_prompt": "S"}),
         (False, {"messages": [*SAID, SAID[0], {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
                               {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "rain"},
                               {"role": "assistant", "content": "Rain.", "train": False}], "tools": [TOOL], "label": True}),
         (True, {"prompt": SAID[:1], "chosen": [{**SAID[1], "reasoning_content": "hm"}], "rejected": "<think>\nso\n</think>\n\nNo"}),
         (False, {"messages": [{"role": "system", "content": "Be brief."}, SAID[0], {**SAID[1], "train": False}, *SAID], "source": "made"}),
         (False, {"messages": [SAID[0], {**SAID[1], "reasoning_content": "hm", "train": False}, SAID[0],
                               {"role": "assistant", "content": "<think>\nso\n</think>\n\nNo"}]}),
         (False, {"messages": [SAID[0], {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}, *RESULTS,
                               {"role": "assistant", "content": "Rain and sun."}], "tools": [TOOL, OTHER]}),
         (False, {"messages": [*SAID, SAID[0], {"role": "assistant", "content": "Well.\n<think>\nso\n</think>\n\nNo"}]})]
MORE_OF_ROW = {"source": "made", "weight": 3.0, "tools": [TOOL], "system": "Be slow.", "history": [["Yes?", "No."]], "id": "mine",
               "score_chosen": 4, "score_rejected": 1, "margin": 2.0, **dict.fromkeys(LABELS, False), **dict.fromkeys(REFUSED, "x")}
MORE_OF_TURN = {**dict.fromkeys((*FOR_TEMPLATE[1:], *REFUSED_TURN, "unheard_of"), "x"), "tool_calls": [CALL], **dict.fromkeys(MASKS, False)}


class Outcome(NamedTuple):
    """What became of a row: an error, or ids, targets and weight, and what a report tells."""
    error: tuple[str, ...]
    examples: tuple[object, ...]
    told: tuple[object, ...]
    unread: frozenset[str]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    tokenizer.chat_template = TOOLS_TEMPLATE
    return tokenizer


def outcome(tokenizer: PreTrainedTokenizerBase, pair: bool, row: Row) -> Outcome:
    options = Options(4096, 2048 if pair else None, "keep_end", "assistant", tokenizer.chat_template, "skip")
    raw = RawRow("f:1", "f:1", json.dumps(row).encode())
    (chunk,) = encoded_chunks(iter([raw]), tokenizer, options, 1)
    examples = tuple(repr(of.example) for of in chunk.encoded)
    told = (*((of.margins, of.suspicions) for of in chunk.encoded), *chunk.dropped.items())
    return Outcome(tuple(why for _, why in chunk.skipped), examples, told, frozenset(key for of in chunk.encoded for key in of.unread))


def paths(value: object, path: PATH) -> Iterator[PATH]:
    """Every key of the row, of its turns and of what they hold."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(value, dict):
            yield [*path, key]
        yield from paths(inner, [*path, key])


def with_value(value: object, path: PATH, new: object) -> object:
    """A copy in which the value at the path is another; None removes the key."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, list):
        return [with_value(inner, rest, new) if i == head else inner for i, inner in enumerate(value)]
    changed = with_value(value.get(head), rest, new)
    return {key: inner for key, inner in {**value, head: changed}.items() if inner is not None or key != head}


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


def told(path: PATH, unread: frozenset[str]) -> bool:
    """Whether the report lists the key at the path, or one that it is in."""
    names = {"".join(f".{key}" if isinstance(key, str) else "[]" for key in path[:n]).lstrip(".") for n in range(1, len(path) + 1)}
    return any(name in unread or any(key.startswith(f"{name} ") or key.startswith(f"{name}, but") for key in unread) for name in names)


def require_seen(tokenizer: PreTrainedTokenizerBase, pair: bool, row: Row, path: PATH, new: object) -> None:
    """Fails where the row with another value at the path gives the same, and no report lists the key."""
    before, after = outcome(tokenizer, pair, row), outcome(tokenizer, pair, with_value(row, path, new))
    listed = told(path, before.unread) or told(path, after.unread)
    assert before != after or before.error or listed, f"{path} of {row} may be {new!r}: {after}"


@pytest.mark.parametrize("n", range(len(ROWS)))
def test_no_key_can_change_in_silence(n: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every key of a row of every shape, down to the parts of tools and calls: removed, or with another value."""
    pair, row = ROWS[n]
    assert not outcome(tokenizer, pair, row).error
    for path in paths(row, []):
        value = at(row, path)
        for new in (None, another(value), *([f"y {value}"] if path[-1] in ("content", "value") else [])):
            if not default(path, row, new):
                require_seen(tokenizer, pair, row, path, new)


def default(path: PATH, row: Row, new: object) -> bool:
    """Whether the removed key says what is so without it: a second verdict or a prompt that agrees, nothing, "a good answer"."""
    value = at(row, path)
    confirmed = path == ["prompt"] and isinstance(row.get("chosen"), list) and len(row["chosen"]) > 1
    return new is None and (path[-1] in ("safer_response_id", *LABELS) or value in ("", []) or confirmed)


@pytest.mark.parametrize("n", range(len(ROWS)))
def test_no_key_can_come_in_silence(n: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every key that is known to carry meaning, in a row of every shape and in every turn, and one that nobody knows."""
    pair, row = ROWS[n]
    for key, value in MORE_OF_ROW.items():
        if key not in row:
            require_come(tokenizer, pair, row, [key], value)
    for path in paths(row, []):
        if path[-1] in ("content", "value") and isinstance(at(row, path), str):
            for key, value in MORE_OF_TURN.items():
                turn = at(row, path[:-1])
                if key in MASKS:
                    trained = turn.get("train", turn.get("role", turn.get("from")) in ("assistant", "gpt"))
                    value = not trained                                             # the mark that says other than is so
                if key not in turn:
                    require_come(tokenizer, pair, row, [*path[:-1], key], value)


def require_come(tokenizer: PreTrainedTokenizerBase, pair: bool, row: Row, path: PATH, value: object) -> None:
    before, after = outcome(tokenizer, pair, row), outcome(tokenizer, pair, with_value(row, path, value))
    assert before != after or told(path, after.unread), f"{path} of {row} may come as {value!r}"


keys = st.sampled_from([*MORE_OF_ROW, "messages", "prompt", "completion", "chosen", "rejected", "question", "answer", "output", "text"])
values = st.sampled_from(["why", "so", "", 0, 1, 2.5, True, False, None, [], SAID, SAID[:1], SAID[1:], [TOOL], [["a", "b"]], {}])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(base=st.sampled_from(ROWS), more=st.dictionaries(keys, values, max_size=3), data=st.data())
def test_no_key_of_any_row_can_change_in_silence(base: tuple[bool, Row], more: Row, data: st.DataObject,
                                                 tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows with any fields beside and instead of a shape's own. Fails as the first test."""
    pair, row = base[0], {**base[1], **more}
    path = data.draw(st.sampled_from([*paths(row, [])]))
    if at(row, path) not in (None, "", [], {}):
        require_seen(tokenizer, pair, row, path, another(at(row, path)))


def test_the_check_sees_a_dropped_key(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a reader that drops what it is given. Fails where the tests above could not fail."""
    monkeypatch.setattr("zephyr.data.shapes._system", lambda row: None)
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "system": "S"}
    with pytest.raises(AssertionError, match="'system'"):
        require_seen(tokenizer, True, row, ["system"], "T")
    with pytest.raises(AssertionError, match="'system'"):
        require_come(tokenizer, True, {"prompt": "Hi", "chosen": "a", "rejected": "b"}, ["system"], "T")
