"""Templates that rewrite thoughts: no word of a target is lost, and what can't be trained says why
and what to do."""

from __future__ import annotations

import pytest
from row_samples import SAID
from tiny import tiny_tokenizer
from tokenizer_kinds import KINDS, make_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat import encode_messages, encode_pair, encode_prompt
from zephyr.data.tokenizer import prepare_tokenizer

# As DeepSeek-R1's: what stands before the last `</think>` is left out of every answer.
STRIPS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{{ "
    "m.content.split('</think>')[-1] }}{% else %}"
    "{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt "
    "%}<|assistant|>{% endif %}"
)
STRIPS_AND_OPENS = STRIPS.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
# As Qwen3-Thinking's: the last answer alone has a thought, which generation opens.
OPENS = STRIPS_AND_OPENS.replace(
    "{{ m.content.split",
    "{% if loop.last %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1] "
    "}}\n</think>\n{% endif %}"
    "{{ m.content.split",
)
TWO = [
    *SAID,
    {"role": "user", "content": "More?"},
    {"role": "assistant", "content": "<think>so</think>No"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


def answered(words: str) -> list[dict[str, object]]:
    return [SAID[0], {"role": "assistant", "content": words}]


@pytest.mark.parametrize(
    "words",
    [
        "Well <think>hm</think>Yes",
        "<think>hm</think>Yes<think>more</think>No",
        "hm</think>so</think>Yes",
        "<think>hm</think>so</think>Yes",
    ],
)
def test_words_around_thoughts_are_not_lost(words: str) -> None:
    """Qwen3 keeps the first thought and the words behind the last: fails where the others go
    without a word."""
    tokenizer = prepare_tokenizer(make_tokenizer(KINDS["qwen3"]), "model")
    with pytest.raises(
        ValueError, match=r"`messages\[1\].content` .*is not written by the chat template"
    ):
        encode_messages(tokenizer, answered(words))
    with pytest.raises(ValueError, match=r"`chosen.content` .*is not written by the chat template"):
        encode_pair(tokenizer, {"prompt": "Hi", "chosen": words, "rejected": "No"})


@pytest.mark.parametrize("words", ["hm\n</think>\n\nYes", "<think>\nhm\n</think>\n\nYes"])
def test_a_stripped_thought_is_refused_in_a_target_and_told_before(
    words: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A thought that generation opened has no mark in front. Fails where the template takes it away
    and the rest is trained."""
    with pytest.raises(
        ValueError, match=r"`messages\[1\].content` holds a <think> block, which is not written"
    ):
        encode_messages(tokenizer, answered(words), template=STRIPS)
    with pytest.raises(ValueError, match="`train: false` at that turn"):
        encode_messages(tokenizer, [*answered(words), *SAID], template=STRIPS)
    left_out: list[str] = []
    prompt, answer = answered(words)
    text = encode_messages(
        tokenizer, [prompt, {**answer, "train": False}, *SAID], template=STRIPS, left_out=left_out
    )
    assert left_out == ["messages[].content"] and tokenizer.decode(text.ids).endswith(
        "Yes</s><|user|>Hi</s><|assistant|>Ahoy</s>"
    )


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (STRIPS.replace("split('</think>')[-1]", "split(': ')[-1]"), "Ahoy: aye"),
        (STRIPS.replace("split('</think>')[-1]", "split(': ')[0]"), "aye: Ahoy"),
        (
            STRIPS.replace(
                "m.content.split('</think>')[-1]",
                "m.content.split(', ')[0] + m.content.split(', ')[-1]",
            ),
            "One, or else two, or three",
        ),
        (STRIPS.replace("m.content.split('</think>')[-1]", "'user'"), "user"),
    ],
)
def test_any_piece_of_a_target_is_missed(
    template: str, lost: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The beginning, the middle, the end, and words that the template happens to write itself."""
    with pytest.raises(ValueError, match=r"`messages\[1\].content` is not written"):
        encode_messages(tokenizer, answered(lost), template=template)


def test_an_earlier_answer_that_generation_would_not_continue(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Fails where the error does not say what to do, or what it says does not train: masks, or a
    row an answer."""
    with pytest.raises(
        ValueError,
        match=r"earlier answer `messages\[1\]` differently .* "
        "expected `train: false` at the answers before the last, or one row",
    ):
        encode_messages(tokenizer, TWO, template=OPENS)
    with pytest.raises(ValueError, match="expected one row an answer"):
        encode_messages(tokenizer, TWO, template=OPENS, targets="all")
    masked = encode_messages(
        tokenizer, [TWO[0], {**TWO[1], "train": False}, *TWO[2:]], template=OPENS
    )
    prompt = encode_prompt(tokenizer, TWO[:3], template=OPENS)
    assert masked.ids[: len(prompt)] == prompt and masked.is_target == [
        i >= len(prompt) for i in range(len(masked.ids))
    ]
    assert tokenizer.decode(masked.ids[len(prompt) :]) == "so\n</think>\nNo</s>"
    alone = encode_messages(tokenizer, TWO[2:], template=OPENS)
    assert (
        tokenizer.decode([id for id, flag in zip(alone.ids, alone.is_target) if flag])
        == "so\n</think>\nNo</s>"
    )


def test_a_template_whose_answers_never_follow_its_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Masks would not help: fails where the error proposes them, or does not say what the fault
    is."""
    for turns in (SAID, [*SAID, *SAID]):
        with pytest.raises(
            ValueError,
            match="generation prompt opens `<think>`, and it writes answers "
            "without.*chat_template: zephyr",
        ) as error:
            encode_messages(tokenizer, turns, template=STRIPS_AND_OPENS)
        assert "train: false" not in str(error.value)
    with pytest.raises(ValueError, match="generation prompt opens `<think>`"):
        encode_pair(
            tokenizer, {"prompt": "Hi", "chosen": "a", "rejected": "b"}, template=STRIPS_AND_OPENS
        )
