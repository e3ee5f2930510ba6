"""What a conversation and a preference row may look like, and what is said of one that is neither."""

from __future__ import annotations

import pytest
from tiny import tiny_tokenizer

from zephyr import chat
from zephyr.chat import encode_messages, encode_pair


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def test_shapes_of_one_pair_agree() -> None:
    """Strings, whole conversations, answers alone and prompt lists are one pair; read otherwise it is other data."""
    tokenizer = chat.prepare_tokenizer(tiny_tokenizer())
    asked, good, bad = turns("q"), [{"role": "assistant", "content": "g"}], [{"role": "assistant", "content": "b"}]
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
        ({"prompt": "q", "chosen": turns("q", "g"), "rejected": turns("other", "b")}, "is no user turn of `rejected`"),
        ({"chosen": turns("q", "g"), "rejected": turns("other", "b")}, "differ"),
        ({"prompt": "q", "chosen": turns("q"), "rejected": turns("q", "b")}, "`chosen` ends with a user turn"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "`chosen` is an empty list"),
        ({"prompt": "q", "chosen": ["q", "g"], "rejected": "b"}, r"`chosen\[0\]` is str 'q'"),
        ({"prompt": turns("q", "a"), "chosen": "g", "rejected": "b"}, "`prompt` ends with an assistant turn"),
        ({"prompt": "q", "chosen": [{"role": "user"}, {}], "rejected": "b"}, r"`chosen\[0\].content` is missing"),
    ],
)
def test_bad_pair_names_the_field(row: dict[str, object], message: str) -> None:
    """Each of these, passed over, would train on something that is no preference."""
    with pytest.raises(ValueError, match=message):
        encode_pair(chat.prepare_tokenizer(tiny_tokenizer()), row)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (turns("a", "b")[1:], r"`messages\[0\].role` is 'assistant', wanted 'user'"),
        (turns("a", "b") + turns("a", "b")[1:], r"`messages\[2\].role` is 'assistant', wanted 'user'"),
        (turns("a", "b") + turns(system=""), r"`messages\[2\].role` is 'system', wanted 'user'"),
        (turns(system="a"), "a system turn only"),
        (turns("a"), "ends with a user turn"),
        (turns("a", ""), r"`messages\[1\].content` is empty"),
        ([{"role": "bot", "content": "a"}], "'bot', wanted one of system, user, assistant"),
        ([{"role": "user", "content": ["a"]}], "content` is list"),
        ("a", "wanted a list of messages"),
    ],
)
def test_bad_conversation_names_the_turn(messages: object, message: str) -> None:
    """A conversation that the template renders without complaint, and that is none."""
    with pytest.raises(ValueError, match=message):
        encode_messages(chat.prepare_tokenizer(tiny_tokenizer()), messages)
