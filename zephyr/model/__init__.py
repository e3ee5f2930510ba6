"""Packed token ids become log-probabilities of the tokens that are scored."""

from zephyr.model import attention, export, generate, load, logprobs  # noqa: F401
