"""A policy becomes a better one in rounds: it answers prompts, its answers are scored, the best and
the worst become pairs, and DPO trains on them; the next round starts from there."""
