"""A conversation becomes token ids and flags of targets: the only place that knows role tags, BOS
and EOS."""

from zephyr.chat.encode import (
    EncodedPair,
    EncodedText,
    encode_messages,
    encode_pair,
    encode_prompt,
    encode_text,
    kept_bos,
    leading_bos,
    template_with_bos,
    tokenize_pair,
    truncate_pair,
    turn_end,
)
from zephyr.chat.template import (
    HANDBOOK_TEMPLATE,
    ZEPHYR_TEMPLATE,
    clock_of,
    own_template,
    start_clock,
    stop_clock,
)
from zephyr.chat.trial import bound_memory, try_template  # noqa: F401
from zephyr.chat.turns import Messages, SameWords, check_messages, check_pair, without_space  # noqa: F401
