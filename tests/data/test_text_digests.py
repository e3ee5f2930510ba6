"""Two rows are the same where their words are: white space tells none apart."""

from __future__ import annotations

from datetime import datetime

from zephyr.data.text_digests import conversation_digest, prompt_digest


def turn(role: str, content: str, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def test_what_is_said_is_of_words_speakers_and_calls() -> None:
    """Fails where two conversations that train differently count as one, or one laid out otherwise
    as two."""
    call = {"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    swapped = {"function": {"arguments": {"b": 2, "a": 1}, "name": "add"}}
    one = [turn("user", "Name a fruit."), turn("assistant", "", tool_calls=[call])]
    assert len(conversation_digest(one)) == 16
    spaced = [turn("user", " Name  a\nfruit."), turn("assistant", "\n", tool_calls=[swapped])]
    assert conversation_digest(one) == conversation_digest(spaced)
    assert conversation_digest(one) == conversation_digest(
        [one[0] | {"train": True}, one[1] | {"train": False}]
    )
    other = [
        [one[0] | {"role": "system"}, one[1]],
        one[:1],
        [one[0], turn("assistant", "")],
        [one[0] | {"content": "name a fruit."}, one[1]],
        one[::-1],
        [*one, one[0]],
        [one[0], one[1] | {"thinking": "An apple."}],
    ]
    assert len({conversation_digest(turns) for turns in [one, *other]}) == 1 + len(other)
    split = [[turn("user", "ab"), turn("user", "c")], [turn("user", "a"), turn("user", "bc")]]
    assert conversation_digest(split[0]) != conversation_digest(split[1])


def test_a_call_may_hold_what_json_does_not() -> None:
    """Parquet gives times. Fails where they end a load, or all of them are one."""
    days = [datetime(2024, 1, day) for day in (1, 2)]
    calls = [[{"function": {"arguments": {"at": day}}}] for day in days]
    assert (
        len({conversation_digest([turn("assistant", "", tool_calls=call)]) for call in calls}) == 2
    )


def test_what_is_asked_is_of_the_users_words_alone() -> None:
    """Fails where another system prompt, answer, case or layout hides that an evaluation asks what
    was trained, or where another question counts as the same."""
    ask, answer = turn("user", "Name a Fruit."), turn("assistant", "Fig.")
    more = turn("user", "Another?")
    alone = prompt_digest([ask])
    assert len(alone) == 32 and alone == prompt_digest([turn("user", "name a  fruit.\n")])
    assert alone == prompt_digest([turn("system", "Be kind."), ask, answer])
    assert alone == prompt_digest([ask, turn("tool", "3")])
    whole = prompt_digest([ask, answer, more])
    assert whole[:16] == alone[:16] and whole[16:] != alone[16:]
    assert whole != prompt_digest([more, answer, ask])
    assert whole == prompt_digest([ask, turn("assistant", "Date."), more])
    assert prompt_digest([turn("user", "STRASSE")]) == prompt_digest([turn("user", "straße")])
    assert prompt_digest([ask, answer, ask, answer, more]) != prompt_digest(
        [ask, answer, more, answer, ask]
    )
    assert alone != prompt_digest([turn("user", "Name a tree.")]) and alone != prompt_digest(
        [ask, ask]
    )
