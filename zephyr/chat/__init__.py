"""A conversation becomes token ids and flags of which are targets.

This is the only place that knows role tags, BOS and EOS. It needs a tokenizer of transformers, but
imports neither transformers nor torch.
"""

from zephyr.chat.encode import (
    EncodedPair,
    EncodedText,
    encode_messages,
    encode_pair,
    encode_prompt,
    encode_text,
    end_of_turn_token,
    leading_bos,
    template_bos,
    template_with_bos,
    tokenize_pair,
    truncate_pair,
)
from zephyr.chat.messages import (
    IdenticalAnswers,
    Messages,
    check_messages,
    check_pair,
    without_space,
)
from zephyr.chat.template import (
    HANDBOOK_TEMPLATE,
    ZEPHYR_TEMPLATE,
    freeze_date,
    frozen_date,
    own_template,
    unfreeze_date,
)
from zephyr.chat.template_limits import check_template_limits, limit_memory

__all__ = [
    "HANDBOOK_TEMPLATE",
    "ZEPHYR_TEMPLATE",
    "EncodedPair",
    "EncodedText",
    "IdenticalAnswers",
    "Messages",
    "check_messages",
    "check_pair",
    "check_template_limits",
    "encode_messages",
    "encode_pair",
    "encode_prompt",
    "encode_text",
    "end_of_turn_token",
    "freeze_date",
    "frozen_date",
    "leading_bos",
    "limit_memory",
    "own_template",
    "template_bos",
    "template_with_bos",
    "tokenize_pair",
    "truncate_pair",
    "unfreeze_date",
    "without_space",
]
