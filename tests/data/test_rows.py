"""One line becomes a row, and its id, ratings and texts are read: what each may be, and what is
said of another."""

from __future__ import annotations

import json
from datetime import date

import pytest

from zephyr.data.ratings import margins, rating_keys
from zephyr.data.rows import check_row, has_lone_surrogate, parse_line, row_id, text

DEEP = b'{"a": ' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "\xff"}', r"the line is not UTF-8: byte 8 is b'\\xff'"),
        (
            b'{"a": }',
            r"the line is no valid JSON: Expecting value at column 7, expected one object a line",
        ),
        (b'{"a": 1} {"b": 2}', "no valid JSON: Extra data at column 10"),
        (DEEP, "the line's JSON is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "or holds a number of thousands of digits"),
    ],
    ids=("bytes", "a value short", "two objects", "deep", "digits"),
)
def test_what_is_wrong_with_a_line_is_told_by_its_place(line: bytes, message: str) -> None:
    """Counted from 1, as editors do. Fails where it is one off, or another exception ends a
    command."""
    with pytest.raises(ValueError, match=message):
        parse_line(line)
    assert parse_line(b'\xef\xbb\xbf{"a": 1}\r\n') == {"a": 1}


def test_nulls_are_left_out_where_arrow_may_have_put_them() -> None:
    """In a line nobody put them into an object within. Fails where they become keys, or a call
    loses an argument."""
    row = {"a": None, "b": {"c": None, "d": [{"e": None, "f": 1}, None]}}
    assert check_row(json.dumps(row).encode()) == {"b": row["b"]}
    assert check_row(row) == {"b": {"d": [{"f": 1}, None]}}
    for value, found in (
        (b"[1, 2]", "list"),
        (b"3", "int"),
        ("text", "str"),
        (None, "NoneType"),
        ([{}], "list"),
    ):
        with pytest.raises(ValueError, match=f"the row is of type {found}, expected an object"):
            check_row(value)


def test_half_a_character_is_found_wherever_it_is() -> None:
    """In keys and below, in rows of Arrow too, whose values JSON has no form for."""
    assert not has_lone_surrogate({"a": ["whole \U0001f600", date(2024, 2, 3)]})
    for row in (
        {"a": "\ud83d"},
        {"\udc00": 1},
        {"a": [{"b": "x\ud83dx"}]},
        {"on": date(2024, 2, 3), "a": "\ud83d"},
    ):
        assert has_lone_surrogate(row)
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="the row is nested too deeply"):
        has_lone_surrogate(deep)


def test_an_id_is_a_text_or_a_whole_number() -> None:
    """Fails where two rows could get one id without having it: true, nothing, 1.5 and 1.50."""
    assert (
        row_id({"id": "a", "idx": 7}) == "a" and row_id({"id": "a", "idx": 7}, field="idx") == "7"
    )
    assert row_id({"id": 0}) == "0" and row_id({}, "f:3") == "f:3"
    for value in (True, "", 1.5, ["a"], None):
        with pytest.raises(
            ValueError,
            match=f"`id` is {type(value).__name__} .*, expected a string or a whole number",
        ):
            row_id({"id": value})
    with pytest.raises(ValueError, match="`idx` is NoneType"):
        row_id({"id": "a"}, field="idx")
    with pytest.raises(ValueError, match="`id` is .*which holds half of a surrogate pair"):
        row_id({"id": "a\ud83d"})


def test_ratings_are_known_in_any_case() -> None:
    """Both sides, or none; a text about a rating is none. Fails where one of them is read as a
    preference, or is not."""
    rated = {
        "Chosen",
        "chosen_Score",
        "rejected_Score",
        "score_chosen",
        "chosen_rating_rationale",
        "rejected_rating_rationale",
        "margin",
    }
    assert rating_keys(dict.fromkeys(rated)) == {"chosen_Score", "rejected_Score", "margin"}
    assert margins({"chosen_Rank": 1, "rejected_Rank": 3}) == (2,) and margins(
        {"chosen_Rank": 3, "rejected_Rank": 1}
    ) == (-2,)
    assert margins({"margin": -1, "Reward_chosen": 4, "Reward_rejected": 1}) == (-1, 3)
    for value in (True, "5", float("nan"), float("inf"), -(10**400), [1]):
        with pytest.raises(
            ValueError,
            match=f"`score_rejected` is {type(value).__name__} .*data.columns.score_rejected=null",
        ):
            margins({"score_chosen": 1, "score_rejected": value})


def test_a_field_of_text_is_a_string() -> None:
    """Fails where a number becomes words, or the error does not say what was found."""
    assert text({"a": "3"}, "a") == "3"
    for row, found in (
        ({"a": 3}, "is int 3"),
        ({"a": None}, "is NoneType None"),
        ({}, "is missing"),
    ):
        with pytest.raises(ValueError, match=f"`a` {found}, expected a string"):
            text(row, "a")
