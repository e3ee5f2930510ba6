"""A conversation becomes token ids and flags of targets: the only place that knows role tags, BOS
and EOS."""

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
from zephyr.chat.messages import (  # noqa: F401
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
from zephyr.chat.template_limits import check_template_limits, limit_memory  # noqa: F401
