"""Answers, scores and verdicts become figures with intervals.

Where to add a benchmark:

- A task of lm-evaluation-harness: one line in `BENCHMARKS` of `academic.py`.
- Instructions that code checks: a package with IFEval's registry, in `instruction_following.py`.
- A benchmark with a judge: a function like `evaluate_alpaca` in `benchmarks.py`, which asks models
  and judge and returns records; a function like `score_annotations` in `alpaca.py`, which makes
  figures of records; and its command in `zephyr/cli/evaluation.py`.

What they share: `win_rate.judge_pairs` compares two answers in both orders,
`statistics.mean_with_interval` gives a mean its interval, `results.print_scores` writes and prints
results."""
