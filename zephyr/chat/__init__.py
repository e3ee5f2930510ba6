"""A conversation becomes token ids and flags of targets: the only place that knows role tags, BOS and EOS."""
from zephyr.chat.encode import EncodedPair, EncodedText, encode_messages, encode_pair, encode_prompt, encode_text  # noqa: F401
from zephyr.chat.encode import tokenize_pair, truncate_pair  # noqa: F401
from zephyr.chat.template import ZEPHYR_TEMPLATE  # noqa: F401
from zephyr.chat.turns import Messages, SameWords, check_messages, check_pair, without_space  # noqa: F401
