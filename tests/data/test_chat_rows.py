"""What a conversation and a preference row may look like, how a long one is cut, and what is said
of a bad one."""

from __future__ import annotations

import pytest
from tiny import tiny_tokenizer

from zephyr.chat import EncodedPair, check_pair, encode_messages, encode_pair, truncate_pair
from zephyr.chat.messages import check_messages, check_tools, is_stringified_turns, unread_keys
from zephyr.data.tokenizer import prepare_tokenizer


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def test_shapes_of_one_pair_agree() -> None:
    """Strings, whole conversations, answers alone and prompt lists are one pair; read otherwise it
    is other data."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    asked, good, bad = (
        turns("q"),
        [{"role": "assistant", "content": "g"}],
        [{"role": "assistant", "content": "b"}],
    )
    rows = [
        {"prompt": "q", "chosen": "g", "rejected": "b"},
        {"prompt": "q", "chosen": asked + good, "rejected": asked + bad},
        {"chosen": asked + good, "rejected": asked + bad},
        {"prompt": asked, "chosen": good, "rejected": bad},
        {"prompt": asked, "chosen": "g", "rejected": bad},
        {"prompt": [{"role": "system", "content": ""}, *asked], "chosen": "g", "rejected": "b"},
    ]
    assert len({str(encode_pair(tokenizer, row)) for row in rows}) == 1
    sides = {"chosen": turns("q", "r", "s", "g"), "rejected": turns("q", "r", "s", "b")}
    longer = encode_pair(tokenizer, {"prompt": "q", **sides})
    assert "<|user|>\ns</s>" in tokenizer.decode(longer.prompt_ids)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "g"}, "`rejected` is missing"),
        ({"prompt": "q", "chosen": "g", "rejected": None}, "`rejected` is null"),
        ({"prompt": "q", "chosen": "g", "rejected": 3}, "`rejected` is int 3"),
        ({"chosen": "g", "rejected": "b"}, "`prompt` is missing"),
        ({"prompt": 7, "chosen": "g", "rejected": "b"}, "`prompt` is int 7"),
        ({"prompt": " ", "chosen": "g", "rejected": "b"}, r"`prompt\[0\].content` is empty"),
        ({"prompt": "q", "chosen": "g", "rejected": " \n"}, "`rejected` is empty"),
        ({"prompt": "q", "chosen": "g", "rejected": "g"}, "are equal"),
        (
            {"prompt": "q", "chosen": turns("q", "g"), "rejected": turns("other", "b")},
            "is no user turn of `rejected`",
        ),
        ({"chosen": turns("q", "g"), "rejected": turns("other", "b")}, "differ"),
        (
            {"prompt": "q", "chosen": turns("q"), "rejected": turns("q", "b")},
            "`chosen` ends with a user turn",
        ),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "`chosen` is an empty list"),
        ({"prompt": "q", "chosen": ["q", "g"], "rejected": "b"}, r"`chosen\[0\]` is str 'q'"),
        (
            {"prompt": turns("q", "a"), "chosen": "g", "rejected": "b"},
            "`prompt` ends with an assistant turn",
        ),
        (
            {"prompt": "q", "chosen": [{"role": "user"}, {}], "rejected": "b"},
            r"`chosen\[0\].content` is missing",
        ),
    ],
)
def test_bad_pair_names_the_field(row: dict[str, object], message: str) -> None:
    """Each of these, passed over, would train on something that is no preference."""
    with pytest.raises(ValueError, match=message):
        encode_pair(prepare_tokenizer(tiny_tokenizer()), row)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (turns("a", "b")[1:], r"`messages\[0\].role` is 'assistant', .*'user'"),
        (
            turns("a", "b") + turns("a", "b")[1:],
            r"`messages\[2\].role` is 'assistant', .*'user'",
        ),
        (turns("a", "b") + turns(system=""), r"`messages\[2\].role` is 'system', .*'user'"),
        (turns(system="a"), "a system turn only"),
        (turns("a"), "ends with a user turn"),
        (turns("a", ""), r"`messages\[1\].content` is empty"),
        ([{"role": "bot", "content": "a"}], "'bot', .*one of system, user, assistant"),
        ([{"role": "user", "content": ["a"]}], "content` is list"),
        ("a", "a list of messages"),
    ],
)
def test_bad_conversation_names_the_turn(messages: object, message: str) -> None:
    """A conversation that the template renders without complaint, and that is none."""
    with pytest.raises(ValueError, match=message):
        encode_messages(prepare_tokenizer(tiny_tokenizer()), messages)


@pytest.mark.parametrize(
    "key",
    "function_call function_calls functions prefix mask train_detail image images audio audios "
    "video videos".split(),
)
def test_a_key_of_a_turn_that_cant_be_trained_is_refused(key: str) -> None:
    """Fails where one of these is passed over, or one that says nothing is refused."""
    with pytest.raises(
        ValueError, match=rf"`messages\[0\].{key}` is str 'x', which can't be trained"
    ):
        check_messages([{**turns("a")[0], key: "x"}])
    for nothing in ("", [], {}, False, None):
        assert check_messages([{**turns("a")[0], key: nothing}]) == turns("a")


@pytest.mark.parametrize("key", ["reasoning", "thinking", "reasoning_content", "tool_calls"])
def test_what_the_assistant_alone_has_is_refused_elsewhere(key: str) -> None:
    """Fails where a user's thoughts or calls are given to a template, which may write them as
    words."""
    value = [CALL] if key == "tool_calls" else "hm"
    with pytest.raises(
        ValueError, match=rf"`messages\[0\].{key}` stands in a turn of the role 'user'"
    ):
        check_messages([{**turns("a")[0], key: value}])
    asked, said = turns("a", "b")
    assert key in check_messages([asked, {**said, key: value}])[1]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
CALLED = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "rain"}


def test_the_order_of_calls_and_results() -> None:
    """Two results, and an empty one, are fine; a call that nobody answers, or a result of none, is
    not."""
    asked, said = turns("Rain?", "Yes.")
    checked = check_messages([asked, CALLED, RESULT, {**RESULT, "content": ""}, said, asked])
    assert checked[2] == RESULT and len(checked) == 6
    for wrong, found in (
        ([asked, CALLED, asked], "'user', .*'tool'"),
        ([asked, said, RESULT], "'tool', .*'user'"),
        ([asked, CALLED, RESULT, asked], "'user', .*'tool' or 'assistant'"),
    ):
        with pytest.raises(ValueError, match=f"is {found}"):
            check_messages(wrong)
    assert check_messages([asked, CALLED, RESULT], last="user")[-1] == RESULT
    for tools in ([{"type": "function"}], [{"function": {"name": 3}}], ["weather"]):
        with pytest.raises(ValueError, match="`tools"):
            check_tools(tools)


def test_each_turn_of_a_pair_is_called_as_the_row_calls_it() -> None:
    """What errors and reports name. Fails where a name is that of another turn."""
    sides = {"chosen": "g", "rejected": "b"}
    pair = check_pair({"system": "S", "history": [["q", "a"]], "prompt": "r", **sides})
    assert pair.names == (
        "system",
        "history[0][0]",
        "history[0][1]",
        "prompt[0]",
        "chosen",
        "rejected",
    )
    assert pair.prompt == turns("q", "a", "r", system="S")
    sides = {"chosen": turns("q", "r", "s", "g"), "rejected": turns("q", "r", "s", "b")}
    whole = check_pair({"prompt": "q", "system": "", **sides})
    assert whole.names == ("chosen[0]", "chosen[1]", "chosen[2]", "chosen[3]", "rejected[3]")
    assert whole.prompt == turns("q", "r", "s"), "an empty system is none"
    alone = check_pair({"prompt": turns("q"), "chosen": turns("q", "g")[1:], "rejected": "b"})
    assert alone.names == ("prompt[0]", "chosen[0]", "rejected")


SIDES = {"chosen": "g", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"history": [["q", "a"]], "chosen": turns("q", "g"), "rejected": turns("q", "b")},
            "`history` stands",
        ),
        ({"history": [["q", "a", "r"]], "prompt": "s", **SIDES}, "`history` is list"),
        (
            {"chosen": turns("q", "g")[1:], "rejected": turns("q", "b")[1:]},
            r"`chosen\[0\].role` is 'assistant'",
        ),
        (
            {"prompt": turns("q"), "chosen": turns("q", "r", "s", "g"), "rejected": "b"},
            "is no user turn of `chosen`",
        ),
        (
            {
                "history": [["q", "a"]],
                "prompt": "r",
                "chosen": turns("q", "a", "other", "g"),
                "rejected": "b",
            },
            "is no user turn of `chosen`",
        ),
        (
            {"prompt": "q", "chosen": "Human: a\nb\n\nAssistant: c", "rejected": "b"},
            "`chosen` is a transcript",
        ),
        (
            {
                "prompt": "q",
                "chosen": "[{'id': 1, 'role': 'user', 'content': 'A'}]",
                "rejected": "b",
            },
            "the text of a list",
        ),
        (
            {
                "prompt": "q",
                "chosen": '[{"id": 1, "from": "human", "value": "A"}]',
                "rejected": "b",
            },
            "the text of a list",
        ),
    ],
)
def test_a_pair_whose_parts_do_not_fit_is_refused(row: dict[str, object], message: str) -> None:
    """Fails where one part is read and the other is lost."""
    with pytest.raises(ValueError, match=message):
        check_pair(row)


def test_a_pair_whose_parts_fit_is_read() -> None:
    """A mark of the prompt's turn is no other prompt, an empty list in words no conversation."""
    assert not is_stringified_turns("[]") and check_pair(
        {"prompt": "A list?", "chosen": "[]", "rejected": "b"}
    )
    marked = [{**turns("q")[0], "train": False}]
    pair = check_pair({"prompt": marked, "chosen": turns("q", "g"), "rejected": turns("q", "b")})
    assert pair.prompt == turns("q")
    asked, said = turns("q", "g")
    marked = [{**asked, "weight": 0}, {**said, "train": True}]
    assert list(unread_keys(marked, "chosen", masks=True)) == ["chosen[].weight"]
    assert list(unread_keys(marked[:1], "prompt", masks=True)) == ["prompt[].weight"]


def test_a_name_is_given_to_a_template_that_writes_it() -> None:
    """Fails where a key that a template reads is left out on the way."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] + (m.name or '') + (m.tool_call_id or '') + "
        "m.content + eos_token }}"
        "{% for call in m.tool_calls %}{{ call | tojson }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    asked, _ = turns("Rain?", "Yes.")
    row = {"prompt": [asked, CALLED, RESULT], "chosen": "Yes.", "rejected": "No."}
    pair = encode_pair(tokenizer, row, template=tokenizer.chat_template)
    assert "tweatherc1rain</s>" in tokenizer.decode(pair.prompt_ids)


def test_truncation() -> None:
    """Each rule by itself: what fits stays whole; else BOS and the prompt's end, answers cut, no
    EOS on a cut one."""
    prompt, chosen, rejected = [1, *range(10, 29)], [*range(50, 59), 2], [*range(70, 74), 2]
    pair = EncodedPair("x", prompt, chosen, rejected)

    def cut(max_tokens: int, max_prompt_tokens: int, bos_id: int | None = 1) -> EncodedPair:
        return truncate_pair(
            pair, max_tokens=max_tokens, max_prompt_tokens=max_prompt_tokens, bos_id=bos_id
        )

    assert cut(30, 5) is pair, "a prompt over its limit is left alone while all fits"
    assert cut(29, 6)[:4] == ("x", [1, 24, 25, 26, 27, 28], chosen, rejected)
    assert cut(29, 6, bos_id=None)[:4] == ("x", [23, 24, 25, 26, 27, 28], chosen, rejected)
    assert cut(12, 6)[:4] == ("x", [1, 24, 25, 26, 27, 28], chosen[:6], rejected)
    assert cut(29, 25)[:4] == ("x", prompt, chosen[:9], rejected)
    assert cut(3, 2)[:4] == ("x", [1, 28], [50], [70])
    for limits in ((10, 10), (10, 11), (10, 1)):
        with pytest.raises(ValueError, match="max_prompt_tokens"):
            cut(*limits)
    with pytest.raises(ValueError, match="keep_end"):
        truncate_pair(pair, max_tokens=30, max_prompt_tokens=5, truncation="keep_start", bos_id=1)


def test_truncation_through_encode_pair() -> None:
    """The limits count EOS too: an answer that fits but for its EOS loses the EOS."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    row = {"prompt": "Hi " * 50, "chosen": "word " * 9 + "word", "rejected": "short"}
    whole = encode_pair(tokenizer, row)
    longest = len(whole.prompt_ids) + len(whole.chosen_ids)
    assert encode_pair(tokenizer, row, max_tokens=longest, max_prompt_tokens=8) == whole
    cut = encode_pair(tokenizer, row, max_tokens=longest - 1, max_prompt_tokens=longest - 2)
    assert cut == whole._replace(chosen_ids=whole.chosen_ids[:-1])
