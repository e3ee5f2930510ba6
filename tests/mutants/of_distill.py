"""The faults of which pairs are written, of a pool of servers and of shards: see table.py."""

from table import Mutant, of

PAIRS = "tests/distill/test_pair_choice.py::"
POOL = "tests/teacher/test_pool.py::"
SHARDS = "tests/distill/test_sharded_sets.py::"
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
        "zephyr/distill/handbook.py",
        ("tests/distill/test_handbook.py",),
        (
            "test, train = order[:test_rows], order[test_rows:]",
            "train, test = order[:-test_rows], order[-test_rows:]",
        ),
        ("second = (test_rows + 1) // 2", "second = test_rows // 2"),
    ),
    *of(
        "zephyr/distill/binarize.py",
        ("tests/distill/test_handbook.py",),
        ("if run.options.test_rows and made in KEPT_BY_SCRIPT:", "if False:"),
        ("if isinstance(prompt, str) and prompt in run.left_out:", "if False:"),
    ),
    *of(
        "zephyr/distill/picking.py",
        ("tests/distill/test_binarize.py::test_handbook_replays_the_script",),
        (
            "texts = [(answer.text, answer.model) for answer in answers]",
            "texts = [answer.text for answer in answers]",
        ),
    ),
    *of(
        "zephyr/teacher/pool.py",
        (
            POOL + "test_a_pool_answers_as_one_server_does",
            POOL + "test_a_server_comes_back_and_all_failing_names_each",
            POOL + "test_all_servers_restart_at_once",
            POOL + "test_specs_of_pools",
        ),
        ('identity = f"{model} of a pool"', 'identity = f"{model} at {base_urls}"'),
        ("in_use = [member for member in members if not member.out.is_set()]", "in_use = members"),
        ("        self.out.clear()\n", "        pass\n"),
        ("if not in_use and out_seconds > MAX_OUT_SECONDS:", "if not in_use:"),
        (
            "                return\n        finally:",
            "                return\n            return\n        finally:",
        ),
    ),
    *of(
        "zephyr/teacher/shares.py",
        (
            SHARDS + "test_self_instruct_of_shards",
            SHARDS + "test_a_shard_whose_others_are_away_ends",
            SHARDS + "test_the_commands",
        ),
        ("number % len(self.paths)", "0"),
        ("if owners[digest] == self.index]", "]"),
        ("if waited > TOLD_SECONDS and not is_told:", "if False:"),
        (
            "            elif ranks.rank() == 0:\n",
            "            else:\n                missing.append(request)\n",
        ),
    ),
    *of(
        "zephyr/distill/shards.py",
        (SHARDS + "test_feedback_of_shards", SHARDS + "test_the_commands"),
        ("numbers.setdefault(key, len(numbers))", "numbers.setdefault(len(numbers), len(numbers))"),
        ("int(match[2]) != shard.of", "False"),
    ),
    *of(
        "zephyr/distill/merge.py",
        (
            SHARDS + "test_a_wrong_set_of_shards_is_refused",
            SHARDS + "test_what_was_paid_for_is_merged_once",
            SHARDS + "test_feedback_of_shards",
        ),
        ("            if mine.get(key) != its.get(key):", "            if False:"),
        ('or report.get("sha256") != synced_digest(path)', ""),
        ("            if not have[key]:\n", "            if True:\n"),
        ("have[key] += is_reply", "pass"),
        ("        if part.inputs.get(name) != found.get(name):", "        if False:"),
    ),
    *of(
        "zephyr/distill/prepare.py",
        (SHARDS + "test_prepare_of_shards",),
        (
            "turn, of_part = number // len(parts), number % len(parts)",
            "of_part, turn = divmod(number, len(parts[0].pieces))",
        ),
    ),
    *of(
        "zephyr/teacher/forecast.py",
        (SHARDS + "test_costs_are_told_before",),
        ("most_writes = (load.requests + load.repeats)", "most_writes = load.requests"),
        (
            "what.writes * of_completion) / 1e6\n        most",
            "what.writes * of_prompt) / 1e6\n        most",
        ),
        ('text = f"{amount / shards:,.2f}"', 'text = f"{amount:,.2f}"'),
    ),
    *of(
        "zephyr/distill/costs.py",
        (SHARDS + "test_costs_are_told_before", SHARDS + "test_costs_of_instructions"),
        ("if any(digest in ledger for ledger in opened):", "if False:"),
        ("    left = calls - paid\n", "    left = calls\n"),
        ('"user_turn": n * (turns - 1)', '"user_turn": n * turns'),
    ),
]
