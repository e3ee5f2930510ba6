"""Rows become conversations and pairs, and these become encoded examples: what the training scripts
read."""

from zephyr.data.encode import (
    encoding_resources,
    format_report,
    load_pairs,
    load_splits,
    load_texts,
)
from zephyr.data.store import Pairs, Report, Texts, content_digest
from zephyr.data.template import describe_first_prompt, load_run_tokenizer, save_chat_template
from zephyr.data.tokenizer import load_tokenizer, prepare_tokenizer, require_vocabulary

__all__ = [
    "Pairs",
    "Report",
    "Texts",
    "content_digest",
    "encoding_resources",
    "describe_first_prompt",
    "format_report",
    "save_chat_template",
    "load_pairs",
    "load_splits",
    "load_texts",
    "load_tokenizer",
    "prepare_tokenizer",
    "require_vocabulary",
    "load_run_tokenizer",
]
