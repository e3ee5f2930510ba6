"""A conversation becomes token ids and flags of targets: the only place that knows role tags, BOS and EOS."""

from zephyr.chat.encode import (EncodedPair, EncodedText, encode_messages, encode_pair, encode_prompt, encode_text,
                                tokenize_pair, truncate_pair)
from zephyr.chat.template import ZEPHYR_TEMPLATE, Messages, check_messages, check_pair

__all__ = ["ZEPHYR_TEMPLATE", "EncodedPair", "EncodedText", "Messages", "check_messages", "check_pair",
           "encode_messages", "encode_pair", "encode_prompt", "encode_text", "tokenize_pair", "truncate_pair"]
