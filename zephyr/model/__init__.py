"""Packed token ids become log-probabilities of the tokens that are scored."""
