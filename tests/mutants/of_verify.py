"""The faults of `zephyr/verify/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/verify/preflight.py",
        (
            "tests/training/test_engine.py::test_packed_difference_sees_a_leak",
            "tests/training/test_engine.py::test_a_leak_does_not_hide_in_a_long_response",
            ("tests/training/test_engine.py::test_preflight_checks_all_and_keeps_what_it_finds"),
            "tests/training/test_engine.py::test_preflight_names_the_way_round_it",
            ("tests/training/test_engine.py::test_a_reference_that_is_not_the_starts_is_seen"),
            "tests/training/test_engine.py::test_texts_have_no_reference_to_differ_from",
            "tests/training/test_engine.py::test_gradients_that_are_not_added_up_are_seen",
        ),
        (
            "text_complaints(example, special_ids, data.max_tokens)",
            "text_complaints(example, special_ids, data.max_prompt_tokens)",
        ),
        (
            (
                "),\n"
                '            "plan": lambda: engine.on_all_ranks(lambda: '
                "require_counts(split, engine.data_rank)),"
            ),
            "),",
        ),
        (("    if not config.run.preflight:\n        return\n"), ""),
        (("    if not config.run.preflight:\n        return {}\n"), ""),
        ("found = {**found, **of_model}", 'found = {"labels": {"scored": 3}, **of_model}'),
        ((')\n    write_file("preflight.json", json_bytes(found))'), ")"),
        (
            (
                'raise BadInput(f"preflight: {error}; run.preflight=false trains without '
                'checks") from None'
            ),
            "raise",
        ),
        (("    engine.train(False)\n    of_row"), "    of_row"),
        (("    engine.train()\n    largest"), "    largest"),
        (
            "return (other_T - alone_T).abs() / (1 + alone_T.abs())",
            "return (other_T - alone_T).abs() / (1 + alone_T.abs().sum())",
        ),
        ("positions_N=batch.positions_N + 1", "positions_N=batch.positions_N"),
        ("packed = of_row[place :: len(unpacked)]", "packed = of_row[place : place + 1]"),
        ("packed = of_row[place :: len(unpacked)]", "packed = of_row[2 * place : 2 * place + 2]"),
        (
            "noise.append(relative_difference_T(shifted_T, alone_T))",
            "noise.append(relative_difference_T(packed_T, alone_T))",
        ),
        (
            "(float(of_T.max()) if of_T.isfinite().all() else math.inf, example)",
            "(float(of_T.max()), example)",
        ),
        (
            "response = max(rms(of_T) for _, of_T in found)",
            "response = min(rms(of_T) for _, of_T in found)",
        ),
        (
            ("shares, losses = [0.0], []\n    for row in rows:"),
            ("shares, losses = [0.0], []\n    for row in rows[:1]:"),
        ),
        (
            "losses.append(float(loss_sum) / total(split.weights, row.indices))",
            "losses.append(float(loss_sum))",
        ),
        ('    for side in ("chosen", "rejected"):', '    for side in ("chosen",):'),
        (
            'nats_P = (stats[f"rewards/{side}"].abs() / config.beta).tolist()',
            'nats_P = (stats[f"rewards/{side}"].abs()).tolist()',
        ),
        (
            'nats_P = (stats[f"rewards/{side}"].abs() / config.beta).tolist()',
            'nats_P = (stats[f"rewards/{side}"] / config.beta).tolist()',
        ),
        (
            'tokens = [split.ledger[f"{side}_tokens"][i] for i in row.indices]',
            'tokens = [split.ledger["chosen_tokens"][i] for i in row.indices]',
        ),
        (
            'tokens = [split.ledger[f"{side}_tokens"][i] for i in row.indices]',
            "tokens = [split.tokens[i] for i in row.indices]",
        ),
        (
            "key=lambda share: share if math.isfinite(share) else math.inf",
            "key=lambda share: share if math.isfinite(share) else 0.0",
        ),
        ("if not worst <= 1:", "if worst > 1:"),
        (
            'return {"difference": worst, "loss": losses[0]}',
            'return {"difference": worst, "loss": losses[-1]}',
        ),
        (
            "engine.backward(engine(batch).sum() * part / len(row.targets_T), last=True)",
            "engine.backward(engine(batch).sum() / len(row.targets_T), last=True)",
        ),
        (
            "equal = norm(row.to(engine.device), 1 / engine.world_size)",
            "equal = norm(row.to(engine.device), 1.0)",
        ),
        (
            "return abs(norm(engine.place(row), float(engine.data_rank == 0)) - equal) / equal",
            "return abs(norm(engine.place(row), 1.0) - equal) / equal",
        ),
        (
            "return abs(norm(engine.place(row), float(engine.data_rank == 0)) - equal) / equal",
            "return abs(norm(engine.place(row), float(engine.data_rank == 0)) - equal)",
        ),
    ),
    *of(
        "zephyr/verify/preflight.py",
        (
            "tests/verify/test_verify.py::test_a_fault_is_named",
            "tests/verify/test_verify.py::test_good_examples_pass",
            "tests/verify/test_verify.py::test_labels_the_wrong_way_round",
            "tests/verify/test_verify.py::test_counts_that_are_not_the_plans",
            "tests/verify/test_verify.py::test_a_disk_or_a_memory_that_is_too_small",
            "tests/verify/test_verify.py::test_what_is_not_finite_is_not_below",
            "tests/verify/test_verify.py::test_rows_that_are_packed",
            "tests/verify/test_verify.py::test_a_sample_is_drawn_once_for_all",
            "tests/verify/test_verify.py::test_rows_that_differ_by_more_than_rounding",
        ),
        ("ROWS_READ, ROWS_PACKED = 1000, 6", "ROWS_READ, ROWS_PACKED = 10, 6"),
        (
            ("return random.Random(0).sample(range(len(examples)), min(ROWS_READ, len(examples)))"),
            ("return random.Random().sample(range(len(examples)), min(ROWS_READ, len(examples)))"),
        ),
        ("ascending = sorted(sample, key=lambda i: tokens[i])", "ascending = sorted(sample)"),
        (
            "longest = max(range(len(tokens)), key=lambda i: tokens[i])",
            "longest = max(sample, key=lambda i: tokens[i])",
        ),
        (
            "free_tokens = budget_tokens - sum(tokens[i] for i in first)",
            "free_tokens = budget_tokens",
        ),
        (
            "return shortest_beside([]), [*beside[:1], longest, *beside[1:]]",
            "return shortest_beside([]), [longest, *beside]",
        ),
        (
            "for split, report in reports.items():",
            "for split, report in list(reports.items())[:1]:",
        ),
        ("bos is not None and ids[:1] != [bos],", "ids[:1] != [bos],"),
        ("bos is not None and ids[:2] == [bos, bos],", "ids.count(bos) > 1,"),
        (
            '"is empty": not pair.prompt_ids or not all(answers),',
            '"is empty": not pair.prompt_ids,',
        ),
        (
            "answer[-1:] != [eos] and len(answer) < least",
            "answer[-1:] != [eos]",
        ),
        (
            "answer[-1:] != [eos] and len(answer) < least",
            "answer[-1:] != [eos] and len(answer) < data.max_tokens",
        ),
        (
            '"trains no EOS": len(text.ids) < max_tokens and not trains_eos,',
            '"trains no EOS": len(text.ids) < max_tokens and eos not in text.ids,',
        ),
        (
            '"has two equal answers": pair.chosen_ids == pair.rejected_ids,',
            '"has two equal answers": pair.chosen_ids is pair.rejected_ids,',
        ),
        (
            'both = zip(split.ledger["chosen_tokens"], split.ledger["rejected_tokens"])',
            'both = zip(split.ledger["chosen_tokens"], split.ledger["chosen_tokens"])',
        ),
        (
            ("micro_batches = [indices for indices in split.plan.steps[0].ranks[rank] if indices]"),
            ("micro_batches = [indices for indices in split.plan.steps[0].ranks[0] if indices]"),
        ),
        ("len(batch.tokens_N),", "total(split.tokens, indices),"),
        ("batch.units,", "total(split.units, indices),"),
        ("if count != planned[name]:", "if count < planned[name]:"),
        ("wanted = (run.keep + 1) * state *", "wanted = run.keep * state *"),
        ("wanted = (run.keep + 1) * state *", "wanted = (run.keep + 1) * 8 *"),
        (
            "engine.num_trained_parameters + exported - held",
            "engine.num_trained_parameters + exported",
        ),
        ("if free < wanted:", "if free <= wanted:"),
        ("if states > free:", "if wanted > free:"),
        ("if states > free:", "if False:"),
        ("gradient_dtype=engine.gradient_dtype,", ""),
        ("if wanted > free:", "if False:"),
        ("fullest_tokens = max(", "fullest_tokens = min("),
        ("ranks=engine.world_size,", "ranks=1,"),
        ("if not difference <= tolerance:", "if difference > tolerance:"),
        (
            "clamp_tolerance(TOKEN_TOLERANCE[dtype], 8 * row.noise),",
            "clamp_tolerance(TOKEN_TOLERANCE[dtype], 8 * rows[0].noise),",
        ),
        (
            "clamp_tolerance(RESPONSE_TOLERANCE[dtype], 3 * row.noise),",
            "clamp_tolerance(RESPONSE_TOLERANCE[dtype], 8 * row.noise),",
        ),
        (
            "clamp_tolerance(RESPONSE_TOLERANCE[dtype], 3 * row.noise),",
            "clamp_tolerance(TOKEN_TOLERANCE[dtype], 3 * row.noise),",
        ),
        ('"response": max(row.response for row in rows),', '"response": rows[0].response,'),
    ),
]
