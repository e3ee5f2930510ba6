"""The faults of `zephyr score` and of the benchmarks: see table.py."""

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

ARENA = "tests/evaluation/test_arena_hard.py::"
BATTLES = (f"{ARENA}test_battles_are_arena_hard_autos",)
CONTROLLED = (f"{ARENA}test_style_control_is_the_plain_fit",)
IFEVAL = ("tests/evaluation/test_instruction_following.py::test_checks_are_those_of_the_harness",)
BEST = ("tests/evaluation/test_best_of_n.py::",)
SUBSETS = (f"{BEST[0]}test_the_estimate_is_the_mean_over_all_subsets",)
CHOSEN = (f"{BEST[0]}test_the_best_answer",)
NAMES = (
    "tests/evaluation/test_answers.py::test_a_path_that_is_there_is_never_split",
    "tests/evaluation/test_answers.py::test_stored_answers_have_names_of_their_own",
)
VERDICTS = ("tests/evaluation/test_win_rate.py::test_stored_verdicts_score_the_same",)

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/evaluation/arena_hard.py",
        BATTLES,
        ("CLEAR = 3 ", "CLEAR = 2 "),
        (
            "return [1 - theirs] * count + [ours] * of_second",
            "return [theirs] * count + [ours] * of_second",
        ),
    ),
    *of(
        "zephyr/evaluation/style.py",
        CONTROLLED,
        ("of[:, 1:] / (of[:, :1] + 1)", "of[:, 1:] / of[:, :1]"),
        ("max(1.0, count_J.sum() - 1)", "len(count_J)"),
        (
            "won_J = np.array([sum(points) for points in battles_J])",
            "won_J = np.array([points[0] * len(points) for points in battles_J])",
        ),
    ),
    *of(
        "zephyr/evaluation/instruction_following.py",
        IFEVAL,
        ("(lines[1:], lines[:-1], lines[1:-1])", "(lines[1:], lines[:-1])"),
        (
            "bool(text.strip() and checker.check_following(text))",
            "bool(checker.check_following(text))",
        ),
    ),
    *of(
        "zephyr/evaluation/best_of_n.py",
        SUBSETS,
        ("math.comb(i, k - 1) / math.comb(n, k)", "math.comb(i + 1, k - 1) / math.comb(n, k)"),
        ("np.sort(scores_PN, axis=1) @ share_N", "scores_PN @ share_N"),
    ),
    *of(
        "zephyr/evaluation/best_of_n.py",
        CHOSEN,
        ("scored = [(score, -i) for", "scored = [(score, i) for"),
        ("if None not in scores]", "]"),
    ),
    *of(
        "zephyr/evaluation/answers.py",
        NAMES,
        (
            "None if Path(argument).exists() else NAMED.fullmatch(argument)",
            "NAMED.fullmatch(argument)",
        ),
        ("name.casefold(), f", "name, f"),
    ),
    *of(
        "zephyr/evaluation/win_rate.py",
        VERDICTS,
        ("if verdict.digests != [text_digest(text) for text in shown]:", "if False:"),
    ),
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
