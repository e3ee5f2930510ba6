"""The faults of `zephyr/verify/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/verify/preflight.py",
        (
            "tests/training/test_engine.py::test_packed_difference_sees_a_leak",
            ("tests/training/test_engine.py::test_a_leak_does_not_hide_in_a_long_response"),
            ("tests/training/test_engine.py::test_preflight_checks_all_and_keeps_what_it_finds"),
            "tests/training/test_engine.py::test_preflight_names_the_way_round_it",
            ("tests/training/test_engine.py::test_a_reference_that_is_not_the_starts_is_seen"),
            ("tests/training/test_engine.py::test_texts_have_no_reference_to_differ_from"),
            ("tests/training/test_engine.py::test_gradients_that_are_not_added_up_are_seen"),
        ),
        (
            "sample_indices(examples), examples, special, config.data.max_tokens",
            ("sample_indices(examples), examples, special, config.data.max_prompt_tokens"),
        ),
        (
            (
                "),\n"
                '            "plan": lambda: engine.on_all_ranks(lambda: '
                "require_counts(split, engine.rank)),"
            ),
            "),",
        ),
        (
            (
                'Raises: as `check_inputs`. A collective; nothing is updated."""\n'
                "    if not config.run.preflight:\n"
                "        return"
            ),
            'Raises: as `check_inputs`. A collective; nothing is updated."""',
        ),
        (
            (
                "def run_checks(config: DPOConfig | SFTConfig, checks: Checks) -> "
                "dict[str, Finding]:\n"
                "    if not config.run.preflight:\n"
                "        return {}"
            ),
            (
                "def run_checks(config: DPOConfig | SFTConfig, checks: Checks) -> "
                "dict[str, Finding]:"
            ),
        ),
        (
            (
                "**found,\n"
                "        **run_checks(\n"
                "            config,\n"
                "            {\n"
                '                "packed": lambda: require_packed(\n'
                "                    dtype,\n"
                "                    [\n"
                "                        packed_difference(engine, row, "
                "list(map(unpacked, row.indices)))\n"
                "                        for row in rows\n"
                "                    ],\n"
                "                ),\n"
                '                "start": lambda: initial_difference(engine, config, '
                "split, rows),\n"
                '                "gradient": lambda: require_below(\n'
                "                    GRADIENT_TOLERANCE[dtype],\n"
                '                    "gradients are not added up over ranks: their norm '
                'changes",\n'
                "                    gradient_difference(engine, rows[0]),\n"
                "                ),\n"
                "            },\n"
                "        ),"
            ),
            (
                "**run_checks(\n"
                "            config,\n"
                "            {\n"
                '                "packed": lambda: require_packed(\n'
                "                    dtype,\n"
                "                    [\n"
                "                        packed_difference(engine, row, "
                "list(map(unpacked, row.indices)))\n"
                "                        for row in rows\n"
                "                    ],\n"
                "                ),\n"
                '                "start": lambda: initial_difference(engine, config, '
                "split, rows),\n"
                '                "gradient": lambda: require_below(\n'
                "                    GRADIENT_TOLERANCE[dtype],\n"
                '                    "gradients are not added up over ranks: their norm '
                'changes",\n'
                "                    gradient_difference(engine, rows[0]),\n"
                "                ),\n"
                "            },\n"
                "        )"
            ),
        ),
        ((')\n    write_file("preflight.json", json_bytes(found))'), ")"),
        (
            (
                'raise BadInput(f"preflight: {error}; run.preflight=false trains all the '
                'same") from None'
            ),
            "raise",
        ),
        (('how they are rounded."""\n    engine.train(False)'), 'how they are rounded."""'),
        (
            (
                "found += [(example, of) for of in map(apart_T, of_row[place :: "
                "len(unpacked)], logp)]\n"
                "    engine.train()"
            ),
            (
                "found += [(example, of) for of in map(apart_T, of_row[place :: "
                "len(unpacked)], logp)]"
            ),
        ),
        (
            "return (other_T - alone_T).abs() / (1 + alone_T.abs())",
            "return (other_T - alone_T).abs() / (1 + alone_T.abs().sum())",
        ),
        (
            (
                "logp, shifted = logp_RT(batch), logp_RT(replace(batch, "
                "positions_N=batch.positions_N + 1))"
            ),
            (
                "logp, shifted = logp_RT(batch), logp_RT(replace(batch, "
                "positions_N=batch.positions_N))"
            ),
        ),
        (
            (
                "found += [(example, of) for of in map(apart_T, of_row[place :: "
                "len(unpacked)], logp)]"
            ),
            ("found += [(example, of) for of in map(apart_T, of_row[place : place + 1], logp)]"),
        ),
        (
            (
                "found += [(example, of) for of in map(apart_T, of_row[place :: "
                "len(unpacked)], logp)]"
            ),
            (
                "found += [(example, of) for of in map(apart_T, of_row[2 * place : 2 * "
                "place + 2], logp)]"
            ),
        ),
        ("noise += map(apart_T, shifted, logp)", "noise += map(apart_T, of_row, logp)"),
        (
            (
                "token, example = max(\n"
                "        (float(of.max()) if of.isfinite().all() else math.inf, example) "
                "for example, of in found\n"
                "    )"
            ),
            ("token, example = max((float(of.max()), example) for example, of in found)"),
        ),
        (
            (
                "return LogprobDifference(token, max(rms(of) for _, of in found), "
                "example, rms(torch.cat(noise)))"
            ),
            (
                "return LogprobDifference(token, min(rms(of) for _, of in found), "
                "example, rms(torch.cat(noise)))"
            ),
        ),
        (
            ("apart, losses = [0.0], []\n    for row in rows:"),
            ("apart, losses = [0.0], []\n    for row in rows[:1]:"),
        ),
        ("losses.append(float(loss) / row.units)", "losses.append(float(loss))"),
        (
            'for side in ("chosen", "rejected") if stats else ():',
            'for side in ("chosen",) if stats else ():',
        ),
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
            "worst = max(apart, key=lambda of: of if math.isfinite(of) else math.inf)",
            "worst = max(apart, key=lambda of: of if math.isfinite(of) else 0.0)",
        ),
        ("if not worst <= 1:", "if worst > 1:"),
        (
            'return {"difference": worst, "loss": losses[0]}',
            'return {"difference": worst, "loss": losses[-1]}',
        ),
        (
            ("engine.backward(engine(row).sum() * share / len(row.targets_T), last=True)"),
            "engine.backward(engine(row).sum() / len(row.targets_T), last=True)",
        ),
        ("equal = norm(1 / engine.world_size)", "equal = norm(1.0)"),
        (
            (
                "return abs(norm(float(engine.rank == 0)) - equal) / equal if "
                "math.isfinite(equal) else equal"
            ),
            "return abs(norm(1.0) - equal) / equal if math.isfinite(equal) else equal",
        ),
        (
            (
                "return abs(norm(float(engine.rank == 0)) - equal) / equal if "
                "math.isfinite(equal) else equal"
            ),
            (
                "return abs(norm(float(engine.rank == 0)) - equal) if "
                "math.isfinite(equal) else equal"
            ),
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
        ("room = budget_tokens - sum(tokens[i] for i in first)", "room = budget_tokens"),
        (
            "return fitting([]), [*beside[:1], longest, *beside[1:]]",
            "return fitting([]), [longest, *beside]",
        ),
        (
            "for split, report in reports.items():",
            "for split, report in list(reports.items())[:1]:",
        ),
        (
            (
                'f"starts with id {first[:1]}, not BOS {bos}": bos is not None and '
                "first[:1] != [bos],"
            ),
            'f"starts with id {first[:1]}, not BOS {bos}": first[:1] != [bos],',
        ),
        (
            ('"starts with BOS more than once": bos is not None and first[:2] == [bos, bos],'),
            '"starts with BOS more than once": first.count(bos) > 1,',
        ),
        ('"is empty": not first or not all(answers),', '"is empty": not first,'),
        (
            (
                '"has an answer without EOS that was not cut": any(\n'
                "                a[-1:] != [eos] and len(first) + len(a) < max_tokens "
                "for a in answers\n"
                "            ),"
            ),
            (
                '"has an answer without EOS that was not cut": any(a[-1:] != [eos] for a '
                "in answers),"
            ),
        ),
        (
            "a[-1:] != [eos] and len(first) + len(a) < max_tokens for a in answers",
            "a[-1:] != [eos] and len(a) < max_tokens for a in answers",
        ),
        (
            "and len(first) < max_tokens",
            ("and len(first) < max_tokens\n            and eos not in example.ids"),
        ),
        (
            ('"has two equal answers": pair and example.chosen_ids == example.rejected_ids,'),
            ('"has two equal answers": pair and example.chosen_ids is example.rejected_ids,'),
        ),
        (
            (
                '[sum(of) for of in zip(split.ledger["chosen_tokens"], '
                'split.ledger["rejected_tokens"])]'
            ),
            (
                '[sum(of) for of in zip(split.ledger["chosen_tokens"], '
                'split.ledger["chosen_tokens"])]'
            ),
        ),
        (
            ("micro_batches = [indices for indices in split.plan.steps[0].ranks[rank] if indices]"),
            ("micro_batches = [indices for indices in split.plan.steps[0].ranks[0] if indices]"),
        ),
        ("len(batch.tokens_N),", "total(split.tokens, indices),"),
        ("batch.units,", "total(split.units, indices),"),
        ("if found != wanted:", "if found < wanted:"),
        (
            (
                "wanted = (run.keep + 1) * 12 * engine.num_parameters + sum(size for _, "
                "size in sizes) - held"
            ),
            (
                "wanted = run.keep * 12 * engine.num_parameters + sum(size for _, size "
                "in sizes) - held"
            ),
        ),
        (
            (
                "wanted = (run.keep + 1) * 12 * engine.num_parameters + sum(size for _, "
                "size in sizes) - held"
            ),
            (
                "wanted = (run.keep + 1) * 8 * engine.num_parameters + sum(size for _, "
                "size in sizes) - held"
            ),
        ),
        (
            (
                "wanted = (run.keep + 1) * 12 * engine.num_parameters + sum(size for _, "
                "size in sizes) - held"
            ),
            (
                "wanted = (run.keep + 1) * 12 * engine.num_parameters + sum(size for _, "
                "size in sizes)"
            ),
        ),
        ("if free < wanted:", "if free <= wanted:"),
        ('if parts["states"] > free:', "if wanted > free:"),
        ('if parts["states"] > free:', "if False:"),
        ("if wanted > free:", "if False:"),
        ("fullest = max(", "fullest = min("),
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
