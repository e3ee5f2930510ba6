"""The faults of the pairs of a page and of its tokens: see table.py."""

from table import Mutant, of

PAIRS = "tests/report/test_pairs_table.py::"
TOKENS = "tests/report/test_tokens.py::"
MUTANTS: list[Mutant] = [
    *of(
        "zephyr/report/pairs_data.py",
        (
            PAIRS + "test_numbers_of_all_pairs_are_stored_to_what_is_shown",
            PAIRS + "test_rounding_keeps_what_is_not_finite",
            PAIRS + "test_views_keep_their_rules",
            PAIRS + "test_texts_that_views_show_first_are_stored_up_to_the_budget",
            PAIRS + "test_a_page_keeps_as_many_pairs_and_visits_as_it_has_room_for",
            PAIRS + "test_runs_share_the_room_of_a_page",
        ),
        ("words + unit // np.uint32(2)", "words"),
        ("reshape(-1, 4).T", "reshape(4, -1)"),
        ("before_V[first_P] = 0.0", "before_V[last_P] = 0.0"),
        ("np.maximum.reduceat(margin_V, first_P)", "np.maximum.reduceat(margin_V, last_P)"),
        ('Limit("lost", low=LEAST_LOST)', 'Limit("fell", low=LEAST_LOST)'),
        ("values_P > limit.low if limit.above", "values_P >= limit.low if limit.above"),
        ("room -= given[which]", "pass"),
        ("suspicion_P[kept_P], notes)", "suspicion_P[: kept_P.sum()], notes)"),
        ("kept_V &= is_end_V | (", "kept_V &= is_end_V & ("),
        ("if near and written", "if near and False and written"),
    ),
    *of(
        "zephyr/report/groups.py",
        (PAIRS + "test_groups_tell_what_was_learned",),
        ("margin_P - of.visits.margin_V[first_P]", "margin_P + of.visits.margin_V[first_P]"),
        ("if of.texts and len(set(names)) > 1", "if of.texts"),
    ),
    *of(
        "zephyr/report/pair_figures.py",
        (PAIRS + "test_violins_reach_both_extremes",),
        ("np.linspace(0, 1, QUANTILES)", "np.linspace(0.01, 0.99, QUANTILES)"),
    ),
    *of(
        "zephyr/report/tokens.py",
        (
            TOKENS + "test_every_token_has_its_text_its_number_and_its_colour",
            TOKENS + "test_the_scale_is_shared_symmetric_and_not_a_single_tokens",
            TOKENS + "test_numbers",
            TOKENS + "test_scores_without_a_reference_are_refused",
            TOKENS + "test_a_page_is_whole_and_can_be_written",
        ),
        ("policy - reference for policy", "reference - policy for policy"),
        ("sums = accumulate(ratios)", "sums = iter(ratios)"),
        ("abs(ratio) / scale", "ratio / scale"),
        ("if len(set(lengths)) != 1", "if len(set(lengths)) > 3"),
        ("math.ceil(largest / unit - 1e-9)", "math.floor(largest / unit + 1e-9)"),
        ("return text_html(c)", "return c"),
        (
            '"surrogatepass").decode("utf-16-le", "replace")',
            '"surrogatepass").decode("utf-16-le", "surrogatepass")',
        ),
        ('.replace("-0.00", "+0.00")', ""),
    ),
]
