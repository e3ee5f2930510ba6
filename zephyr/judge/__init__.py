"""A judge's replies become scores and verdicts, and these the statistics of a judged run."""
