"""Rows become conversations and pairs, and these become encoded examples: what the training scripts read."""

from zephyr.data.encode import format_report, load_pairs, load_texts, load_tokenizer
from zephyr.data.store import Pairs, Texts

__all__ = ["Pairs", "Texts", "format_report", "load_pairs", "load_texts", "load_tokenizer"]
