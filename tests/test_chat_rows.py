"""What a conversation and a preference row may look like, how a long one is cut, and what is said of a bad one."""

from __future__ import annotations

import pytest
from tiny import tiny_tokenizer

from zephyr.chat import EncodedPair, encode_messages, encode_pair, truncate_pair
from zephyr.data import prepare_tokenizer


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def test_shapes_of_one_pair_agree() -> None:
    """Strings, whole conversations, answers alone and prompt lists are one pair; read otherwise it is other data."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
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
        encode_pair(prepare_tokenizer(tiny_tokenizer()), row)


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
        encode_messages(prepare_tokenizer(tiny_tokenizer()), messages)


def test_truncation() -> None:
    """Each rule by itself: what fits stays whole; else BOS and the prompt's end, answers cut, no EOS on a cut one."""
    prompt, chosen, rejected = [1, *range(10, 29)], [*range(50, 59), 2], [*range(70, 74), 2]
    pair = EncodedPair("x", prompt, chosen, rejected)

    def cut(max_tokens: int, max_prompt_tokens: int, bos_id: int | None = 1) -> EncodedPair:
        return truncate_pair(pair, max_tokens=max_tokens, max_prompt_tokens=max_prompt_tokens, bos_id=bos_id)

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
