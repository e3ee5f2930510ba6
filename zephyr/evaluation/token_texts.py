"""Ids of a response become the texts of its tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what bytes that are no whole character decode to


def token_texts(
    tokenizer: PreTrainedTokenizerBase, before_id: int, ids: Sequence[int]
) -> list[str]:
    """The text of each id, special tokens included; joined, they are the text of all.

    A token that holds the first bytes of a character has no text: the one that completes the
    character has it.

    Args: before_id: the id before the first. Some tokenizers leave out the space of a text's first
        token.
    """
    whole = [before_id, *ids]
    texts: list[str] = []
    start, done = 0, 1  # the ids before `done` have their texts; those from `start` are the context
    for end in range(2, len(whole) + 1):
        before, text = decoded(tokenizer, whole[start:done]), decoded(tokenizer, whole[start:end])
        if text.endswith(REPLACEMENT) and end < len(whole):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, done = done, end
    return texts


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
