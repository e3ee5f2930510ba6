"""The faults of the rounds, of scorers, and of a reference that is not the policy: see table.py."""

from table import Mutant, of

CHOOSE = "tests/rounds/test_choose.py::"
CONFIG = "tests/rounds/test_rounds_config.py::"
SCORERS = "tests/evaluation/test_scorers.py::"
MUTANTS: list[Mutant] = [
    *of(
        "zephyr/rounds/choose.py",
        (
            CHOOSE + "test_best_against_worst",
            CHOOSE + "test_best_against_a_random_other",
            CHOOSE + "test_margin_takes_the_nearest_that_is_far_enough",
            CHOOSE + "test_the_control_looks_at_no_score",
            CHOOSE + "test_prompts_without_a_pair",
            CHOOSE + "test_rows_name_where_they_come_from",
        ),
        ("if isinstance(lower(scores, texts, rng, against=min), str):", "if False:"),
        (
            '"best_worst": partial(lower, against=min),',
            '"best_worst": partial(lower, against=max),',
        ),
        ("by=rule.margin, against=max)", "by=rule.margin, against=min)"),
        ("if math.isfinite(answer.score) and", "if"),
        ("return usable[chosen], usable[rejected]", "return chosen, rejected"),
        ('if rule.choose == "random":\n            scores', "if False:\n            scores"),
        ('json.dumps(["choose", seed, number, prompt_id])', 'json.dumps(["choose", seed])'),
    ),
    *of(
        "zephyr/rounds/folder.py",
        (CONFIG + "test_who_samples_stays",),
        ("return was is not None and now is not None", "return True"),
    ),
    *of(
        "zephyr/rounds/stages.py",
        (CONFIG + "test_a_judge_behind_another_key",),
        ("key_variable=scoring.key_variable", 'key_variable="OPENAI_API_KEY"'),
        ("retries=scoring.tries - 1", "retries=scoring.tries"),
    ),
    *of(
        "zephyr/evaluation/scorers.py",
        (
            SCORERS + "test_a_classifier_scores_alone_as_in_a_batch",
            SCORERS + "test_padding_with_the_eos_changes_no_score",
            SCORERS + "test_implicit_rewards_are_log_ratios",
            SCORERS + "test_a_judge_scores_each_answer_by_itself",
            SCORERS + "test_a_reply_without_a_score_is_nan",
        ),
        ("lm.config.pad_token_id = padding", "lm.config.pad_token_id = own"),
        ("add_special_tokens=False", "add_special_tokens=True"),
        ("of_policy[pair, side] - of_reference", "of_reference[pair, side] - of_policy"),
        ("zip(ordered, places)", "zip(share, places)"),
    ),
]
