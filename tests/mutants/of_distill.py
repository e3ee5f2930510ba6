"""The faults of which pairs are written and of a pool of servers: see table.py."""

from table import Mutant, of

PAIRS = "tests/distill/test_pair_choice.py::"
POOL = "tests/teacher/test_pool.py::"
MUTANTS: list[Mutant] = [
    *of(
        "zephyr/distill/selection.py",
        (
            PAIRS + "test_on_and_off_policy_pairs",
            PAIRS + "test_a_sample_of_a_source",
        ),
        (
            "shared = min(round(on * either / max(1, only_on + either)), spare)",
            "shared = round(on * either / max(1, only_on + either))",
        ),
        ("spare = either - max(0, off - only_off)", "spare = either"),
        ("shared = round(off * left / max(1, only_off + left))", "shared = left"),
        ('f"{seed}/sample/{id}"', 'f"sample/{id}"'),
        ("on_pair if kept == ", "on_pair if kept != "),
        ("order by rank limit ?", "order by number limit ?"),
    ),
    *of(
        "zephyr/distill/picking.py",
        (
            PAIRS + "test_on_and_off_policy_pairs",
            PAIRS + "test_delta_needs_two_models_and_no_judge",
        ),
        (
            "answer for answer in answers if answer.model not in policy]",
            "answer for answer in answers]",
        ),
        ("again = apply_rule([chosen, *own], picker, rng)", "again = apply_rule(own, picker, rng)"),
        ("agreement = chosen.mean - rejected.mean", "agreement = rejected.mean - chosen.mean"),
    ),
    *of(
        "zephyr/distill/rules.py",
        (PAIRS + "test_several_stronger_models_are_drawn_evenly",),
        ("others = [i for i in of_weak if texts[i] != texts[chosen]]", "others = of_weak"),
    ),
    *of(
        "zephyr/distill/binarize.py",
        (
            PAIRS + "test_lengths_may_not_differ_by_more",
            PAIRS + "test_delta_needs_two_models_and_no_judge",
        ),
        ("if most is not None and abs(made.longer) > most:", "if most and made.longer > most:"),
        ("**({} if candidate.rule == DELTA else scores),", "**scores,"),
    ),
    *of(
        "zephyr/teacher/pool.py",
        (
            POOL + "test_a_pool_answers_as_one_server_does",
            POOL + "test_a_server_comes_back_and_all_failing_names_each",
            POOL + "test_specs_of_pools",
        ),
        ('identity = f"{model} of a pool"', 'identity = f"{model} at {base_urls}"'),
        ("in_use = [member for member in members if not member.out.is_set()]", "in_use = members"),
        ("                    member.out.clear()\n", "                    pass\n"),
        (
            "                return\n        finally:",
            "                return\n            return\n        finally:",
        ),
    ),
]
