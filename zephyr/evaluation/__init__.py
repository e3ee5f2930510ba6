"""Answers, scores and verdicts become figures with intervals."""
