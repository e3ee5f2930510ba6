"""The faults of `zephyr score`: see table.py."""

from table import Mutant, of

TESTS = "tests/evaluation/test_score.py::"
ROWS = (f"{TESTS}test_rows_of_benchmarks_become_questions",)
COUNTED = (f"{TESTS}test_rows_without_a_preference_are_counted",)
ENCODED = (
    f"{TESTS}test_answers_are_encoded_as_those_of_pairs",
    f"{TESTS}test_answers_of_a_long_contest_follow_one_prompt",
)
BAD = (f"{TESTS}test_a_bad_row_is_an_error_or_listed",)
LOGPROBS = (f"{TESTS}test_each_answer_has_its_own_log_prob",)
TABLES = (f"{TESTS}test_tables_and_tokens",)
TWICE = (f"{TESTS}test_one_model_twice_is_said",)
TEXTS = (f"{TESTS}test_texts_of_tokens_join_to_the_answer[bytes]",)
DECISIONS = (f"{TESTS}test_decisions_against_their_definition",)
SECTIONS = (f"{TESTS}test_reward_bench_weights_math_as_all_code",)
TIES = (f"{TESTS}test_ties_by_hand",)
WILSON = (f"{TESTS}test_interval_of_a_share_is_wilsons",)

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/evaluation/reward_rows.py",
        ROWS,
        (
            "[outputs[label - 1]], [outputs[2 - label]]",
            "[outputs[2 - label]], [outputs[label - 1]]",
        ),
        ("[responses[label - 1]],", "[responses[0]],"),
    ),
    *of(
        "zephyr/evaluation/reward_rows.py",
        COUNTED,
        ("if label == 0 or 2 * votes <= len(verdicts):", "if label == 0:"),
        ("if label == 0 or 2 * votes <= len(verdicts):", "if 2 * votes <= len(verdicts):"),
    ),
    *of(
        "zephyr/evaluation/questions.py",
        ENCODED,
        ("room = limits.max_tokens - len(prompt_ids)", "room = limits.max_tokens"),
        ("longest = max(encoded.answers_ids, key=len)", "longest = encoded.answers_ids[0]"),
    ),
    *of(
        "zephyr/evaluation/questions.py",
        ROWS,
        ("(first + i // 2, i % 2)", "(first + i // 2, 0)"),
        ("        pairs += len(made)\n", ""),
    ),
    *of("zephyr/evaluation/questions.py", BAD, ("    if before != place:", "    if False:")),
    *of(
        "zephyr/evaluation/score.py",
        TABLES,
        (
            "return self.beta * (self.logp_A - self.ref_logp_A)",
            "return self.beta * (self.ref_logp_A - self.logp_A)",
        ),
    ),
    *of(
        "zephyr/evaluation/score.py",
        TWICE,
        ("same_weights = digest(reference) == digest(settings.model)", "same_weights = False"),
    ),
    *of(
        "zephyr/evaluation/score.py",
        LOGPROBS,
        (
            "chosen, rejected = of_responses[: batch.units], of_responses[batch.units :]",
            "rejected, chosen = of_responses[: batch.units], of_responses[batch.units :]",
        ),
    ),
    *of(
        "zephyr/model/logprobs.py",
        LOGPROBS,
        (
            ".split(batch.response_tokens_R.tolist())",
            ".split(batch.response_tokens_R.flip(0).tolist())",
        ),
    ),
    *of(
        "zephyr/evaluation/score_table.py",
        TABLES,
        (
            "ids = pair.rejected_ids if side else pair.chosen_ids",
            "ids = pair.chosen_ids if side else pair.rejected_ids",
        ),
    ),
    *of(
        "zephyr/evaluation/token_texts.py",
        TEXTS,
        ("if text.endswith(REPLACEMENT) and end < len(whole):", "if False:"),
    ),
    *of(
        "zephyr/evaluation/reward_figures.py",
        DECISIONS,
        ("is_tie_Q = np.abs(margin_Q) <= rounding_Q", "is_tie_Q = margin_Q == 0"),
        ("(top_Q - rounding_Q)[question_A]", "top_Q[question_A]"),
        (
            "order_A = np.lexsort((score_A, 2 * question_A + better_A))",
            "order_A = np.lexsort((-score_A, 2 * question_A + better_A))",
        ),
    ),
    *of(
        "zephyr/evaluation/reward_benchmarks.py",
        SECTIONS,
        ("weights[MATH] = sum(rows.values()) - rows[MATH]", "weights[MATH] = rows[MATH]"),
    ),
    *of(
        "zephyr/evaluation/reward_benchmarks.py",
        TIES,
        ("smaller = min(tied, ref)", "smaller = max(tied, ref)"),
        ('"preferred": tied > spread,', '"preferred": tied > 0,'),
        ("float(better.min() - worse.max())", "float(better.max() - worse.max())"),
    ),
    *of(
        "zephyr/evaluation/statistics.py",
        WILSON,
        ("(share + z**2 / (2 * n))", "(share + z**2 / n)"),
    ),
]
