"""The faults of `zephyr/data/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/data/ratings.py",
        (
            "tests/chat/test_names.py",
            "tests/data/test_rows.py",
            "tests/data/test_data_fields.py::test_polarity_under_every_name",
        ),
        (
            'NOT_PREFERRED = re.compile(r"(non|not|un)_?(preferred|chosen)")',
            'NOT_PREFERRED = re.compile(r"(nix)_?(preferred|chosen)")',
        ),
        (
            (
                'found.append(-above if "rank" in plain(chosen) or not '
                "LOWER.isdisjoint(words) else above)"
            ),
            'found.append(-above if "rank" in plain(chosen) else above)',
        ),
        (
            (
                'found.append(-above if "rank" in plain(chosen) or not '
                "LOWER.isdisjoint(words) else above)"
            ),
            (
                'found.append(above if "rank" in plain(chosen) or not '
                "LOWER.isdisjoint(words) else above)"
            ),
        ),
        ("if not followed:", "if False:"),
        ("if good:", "if False:"),
        ('return good == ("chosen" in words)', "return good"),
        ("if len(sides) != 1:", "if False:"),
        ('return sides == {"chosen"}', "return True"),
        (
            (
                "sides = (\n"
                "        sides\n"
                "        if None not in sides and sides\n"
                "        else {side for of, side in _sided_texts(row, key) if of == "
                "value}\n"
                "    )"
            ),
            "sides = sides if None not in sides and sides else set()",
        ),
        (
            (
                "if len(sides) == 2 and NOT_RATINGS.keys().isdisjoint(rest) and not "
                "OF_WORDS.search(name):"
            ),
            "if len(sides) == 2 and not OF_WORDS.search(name):",
        ),
        (
            (
                "if len(sides) == 2 and NOT_RATINGS.keys().isdisjoint(rest) and not "
                "OF_WORDS.search(name):"
            ),
            "if len(sides) == 2 and NOT_RATINGS.keys().isdisjoint(rest):",
        ),
        ("if RATING.search(name) or all(", "if RATING.search(name) and all("),
        (
            (
                "return (\n"
                "        last in MARGINS\n"
                '        and (path == "margin" or bool(OPINION.search(name)))\n'
                "        and NOT_RATINGS.keys().isdisjoint(rest)\n"
                "    )"
            ),
            (
                'return last in MARGINS and (path == "margin" or False) and '
                "NOT_RATINGS.keys().isdisjoint(rest)"
            ),
        ),
        (
            'yield from _paths(value, f"{before}{key}.", depth - 1) if depth else ()',
            ('yield from () and _paths(value, f"{before}{key}.", depth - 1) if depth else ()'),
        ),
        (
            (
                "if isinstance(value, bool) or not isinstance(value, (int, float)) or "
                "not abs(value) < 1e300:"
            ),
            "if not isinstance(value, (int, float)) or not abs(value) < 1e300:",
        ),
        (
            (
                "if isinstance(value, bool) or not isinstance(value, (int, float)) or "
                "not abs(value) < 1e300:"
            ),
            (
                "if isinstance(value, bool) or not isinstance(value, (int, float)) or "
                "abs(value) > 1e300:"
            ),
        ),
    ),
    *of(
        "zephyr/data/rows.py",
        (
            "tests/data/test_rows.py",
            "tests/data/test_data_fields.py::test_polarity_under_every_name",
            "tests/data/test_data_fields.py::test_nulls_of_arrow_are_no_keys",
        ),
        (
            (
                'return json.loads(line.decode("utf-8-sig"), '
                "object_pairs_hook=reject_duplicate_keys)"
            ),
            ('return json.loads(line.decode("utf-8"), object_pairs_hook=reject_duplicate_keys)'),
        ),
        (
            (
                'f"the line is not UTF-8: byte {error.start + 1} is {line[error.start : '
                'error.start + 1]!r}"'
            ),
            (
                'f"the line is not UTF-8: byte {error.start} is {line[error.start : '
                'error.start + 1]!r}"'
            ),
        ),
        (
            (
                'f"the line is no valid JSON: {error.msg} at column {error.pos + 1}, '
                'wanted one object a line"'
            ),
            (
                'f"the line is no valid JSON: {error.msg} at column {error.pos}, wanted '
                'one object a line"'
            ),
        ),
        ("except (ValueError, RecursionError) as error:", "except ValueError as error:"),
        (
            "row = parse_line(row) if isinstance(row, bytes) else _without_nulls(row)",
            "row = parse_line(row) if isinstance(row, bytes) else row",
        ),
        (
            "return {key: value for key, value in row.items() if value is not None}",
            "return dict(row)",
        ),
        ("if not isinstance(row, Mapping):", "if isinstance(row, str):"),
        (
            (
                "return [_without_nulls(inner) for inner in value] if isinstance(value, "
                "list) else value"
            ),
            "return value",
        ),
        (
            (
                "return (\n"
                '            re.search("[\\ud800-\\udfff]", json.dumps(value, '
                "ensure_ascii=False, default=str))\n"
                "            is not None\n"
                "        )"
            ),
            ('return re.search("[\\ud800-\\udfff]", json.dumps(value, default=str)) is not None'),
        ),
        (
            (
                "return (\n"
                '            re.search("[\\ud800-\\udfff]", json.dumps(value, '
                "ensure_ascii=False, default=str))\n"
                "            is not None\n"
                "        )"
            ),
            (
                'return re.search("[\\ud800-\\udfff]", json.dumps(value, '
                "ensure_ascii=False)) is not None"
            ),
        ),
        ("value = row.get(field, default)", 'value = row.get("id", default)'),
        (
            ('if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":'),
            'if not isinstance(value, (str, int)) or value == "":',
        ),
        (
            ('if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":'),
            "if isinstance(value, bool) or not isinstance(value, (str, int)):",
        ),
        ('if re.search("[\\ud800-\\udfff]", str(value)):', "if not value and value != 0:"),
        (
            (
                "found = (\n"
                '            f"is {type(row[field]).__name__} {row[field]!r:.60}" if '
                'field in row else "is missing"\n'
                "        )"
            ),
            'found = f"is None" if False else "is missing"',
        ),
    ),
    *of(
        "zephyr/data/shapes.py",
        (
            "tests/chat/test_names.py",
            "tests/data/test_data_shapes.py",
            "tests/data/test_data_lost.py::test_a_pair_with_two_prompts_is_refused",
            "tests/data/test_data_lost.py::test_a_text_with_two_prompts_is_refused",
            ("tests/data/test_data_lost.py::test_a_prompt_that_the_turns_hold_is_not_lost"),
            "tests/data/test_data_lost.py::test_words_without_marks_are_not_counted",
            "tests/data/test_data_lost.py::test_marks_of_a_whole_row_are_refused",
            ("tests/data/test_data_lost.py::test_a_key_that_no_shape_has_a_place_for_is_refused"),
            "tests/data/test_data_lost.py::test_turns_before_are_kept_or_refused",
            ("tests/data/test_data_lost.py::test_what_lies_inside_a_field_is_read_or_told"),
            "tests/data/test_data_lost.py::test_half_of_a_prompt_is_no_prompt",
            ("tests/data/test_data_lost.py::test_other_names_for_bad_answers_and_the_system"),
            (
                "tests/data/test_data_fields.py::test_what_zephyrs_template_has_no_place_"
                "for_is_named"
            ),
            "tests/data/test_data_fields.py::test_weights_are_kept_and_not_ignored",
            "tests/data/test_data_fields.py::test_masked_turns_are_no_targets",
            "tests/data/test_data_fields.py::test_answers_called_bad_are_no_model",
            ("tests/data/test_data_fields.py::test_a_tools_result_is_in_the_prompt_and_no_target"),
            "tests/data/test_data.py::test_sft_shapes",
        ),
        (
            'COMMON = {"id", "tools", *SYSTEMS}  # of every shape',
            'COMMON = {"id", *SYSTEMS}  # of every shape',
        ),
        (
            ('"function_call": "`tool_calls` in a turn",\n    "documents": "them in a turn",'),
            '"function_call": "`tool_calls` in a turn",',
        ),
        (
            ("MIN_OVERLAP_CHARS = 20  # characters that another text may hold by chance"),
            "MIN_OVERLAP_CHARS = 0  # characters that another text may hold by chance",
        ),
        (
            ("MIN_OVERLAP_CHARS = 20  # characters that another text may hold by chance"),
            ("MIN_OVERLAP_CHARS = 20000  # characters that another text may hold by chance"),
        ),
        (
            (
                "tops = {\n"
                '        path: path if path in row else path.split(".")[0]\n'
                "        for path in columns.values()\n"
                "        if path is not None\n"
                "    }"
            ),
            ('tops = {path: path.split(".")[0] for path in columns.values() if path is not None}'),
        ),
        (
            (
                "def _at(value: object, path: str) -> object:\n"
                "    if isinstance(value, Mapping) and path in value:\n"
                "        return value[path]"
            ),
            "def _at(value: object, path: str) -> object:",
        ),
        (
            ("elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):"),
            ("elif isinstance(value, list) and part.isdecimal() and int(part) <= len(value):"),
        ),
        (
            '**{key: row[key] for key in ("id", "tools", "weight") if key in row},',
            '**{key: row[key] for key in ("id", "tools") if key in row},',
        ),
        (
            (
                "unread = [\n"
                "        key for key in row if key not in reads and not "
                "_inside(row[key], key, rated, [])\n"
                '    ] + made.pop("unread", [])'
            ),
            (
                "unread = [key for key in row if key not in reads and not "
                "_inside(row[key], key, rated, [])]"
            ),
        ),
        (
            (
                "unread += [\n"
                "            key for key in unread_keys(made.get(field), field, "
                "masks=True) if key not in rated\n"
                "        ]"
            ),
            ("unread += [key for key in unread_keys(made.get(field), field) if key not in rated]"),
        ),
        (
            (
                'made["margins"] = (*margins({**row, **sides}), *made.get("margins", '
                "())) or None\n"
                "    _require_one_prompt(row, reads, made)"
            ),
            ('made["margins"] = (*margins({**row, **sides}), *made.get("margins", ())) or None'),
        ),
        ((")\n    _require_one_prompt(row, reads, turns)"), ")"),
        (
            '_refuse_bad_answer(row, labelled=shape is not TEXTS["text"])',
            "_refuse_bad_answer(row, labelled=True)",
        ),
        ('for key in ("history", "tools", *SYSTEMS):', 'for key in ("history", *SYSTEMS):'),
        ('if turns[-1]["role"] != "assistant":', "if False:"),
        ('system = turns[:1] if turns[0]["role"] == "system" else []', "system = []"),
        (
            (
                "names = (\n"
                "        rest[: len(system)]\n"
                '        + [f"history[{i // 2}][{i % 2}]" for i in range(len(before))]\n'
                "        + rest[len(system) :]\n"
                "    )"
            ),
            "names = rest",
        ),
        (
            (
                "return begins is not None or (\n"
                "        asked is not None and ASSISTANT_MARKER.search(said, "
                "asked.end()) is not None\n"
                "    )"
            ),
            (
                "return begins is not None or (asked is not None and "
                "ASSISTANT_MARKER.search(said) is not None)"
            ),
        ),
        (
            (
                "(shape for keys in (filled, row.keys()) for shape in table.values() if "
                "shape.needs <= keys),\n"
                "        None,"
            ),
            (
                "(shape for keys in (row.keys(),) for shape in table.values() if "
                "shape.needs <= keys), None"
            ),
        ),
        ("if value != given[0][1]:", "if False:"),
        ('if row.get("history") and "history" not in reads:', "if False:"),
        (
            ('return f"which {BINARIZE} makes pairs of"\n    if row.keys() >= HELPSTEER:'),
            ('return f"which {BINARIZE} makes pairs of"\n    if False:'),
        ),
        ('if row.get("weight", 1) != 1:', "if False:"),
        (
            ('return "\\n\\n".join(part for i, part in enumerate(said) if i == 0 or part.strip())'),
            ('return "\\n".join(part for i, part in enumerate(said) if i == 0 or part.strip())'),
        ),
        (
            ('return "\\n\\n".join(part for i, part in enumerate(said) if i == 0 or part.strip())'),
            'return "\\n\\n".join(part for i, part in enumerate(said) if True)',
        ),
        ('tools = {"tools": given["tools"]} if given.get("tools") else {}', "tools = {}"),
        (
            (
                'tools["unread"] = [f"input.{key}" for key in given if key not in '
                '("messages", "tools")]'
            ),
            'tools["unread"] = [f"input.{key}" for key in given if False]',
        ),
        (
            (
                '"chosen": row["preferred_output"],\n'
                '        "rejected": row["non_preferred_output"],'
            ),
            (
                '"chosen": row["non_preferred_output"],\n'
                '        "rejected": row["preferred_output"],'
            ),
        ),
        (
            (
                'return {"prompt": row["prompt"], **_chosen_of(row, "response_0", '
                '"response_1", better == 0)}'
            ),
            (
                'return {"prompt": row["prompt"], **_chosen_of(row, "response_0", '
                '"response_1", better == 1)}'
            ),
        ),
        ("if better != safer:", "if False:"),
        (
            '**_chosen_of(row, "response_1", "response_2", strength < 0),',
            '**_chosen_of(row, "response_1", "response_2", strength > 0),',
        ),
        ('"margins": [float(abs(strength))],', '"margins": [float(strength)],'),
        (
            (
                '{"A": "chosen", "B": "rejected"} if row["labels"] == 1 else {"A": '
                '"rejected", "B": "chosen"}'
            ),
            (
                '{"A": "chosen", "B": "rejected"} if row["labels"] == 0 else {"A": '
                '"rejected", "B": "chosen"}'
            ),
        ),
        (
            (
                'scores = {f"score_{side}": row.get(f"score_{name}", 0) for name, side '
                "in sides.items()}"
            ),
            'scores = {f"score_{side}": 0 for name, side in sides.items()}',
        ),
        (
            'ranked = sorted(answers, key=lambda of: of["rank"])',
            'ranked = sorted(answers, key=lambda of: -of["rank"])',
        ),
        (
            '"margins": [float(ranked[-1]["rank"] - ranked[0]["rank"])],',
            '"margins": [float(ranked[0]["rank"] - ranked[-1]["rank"])],',
        ),
        (
            (
                'unread += ["answers[] between the first and the last in rank"] if '
                "len(answers) > 2 else []"
            ),
            ('unread += ["answers[] between the first and the last in rank"] if False else []'),
        ),
        (
            (
                'if head.strip() or len(turns) < 2 or turns[-1] != {"role": "assistant", '
                '"content": ""}:'
            ),
            "if head.strip() or len(turns) < 2:",
        ),
        ('if row.get("input") and row.get("context"):', "if False:"),
        (
            (
                '{"role": ("user", "assistant")[i % 2], "content": words} for i, words '
                "in enumerate(said)"
            ),
            (
                '{"role": ("assistant", "user")[i % 2], "content": words} for i, words '
                "in enumerate(said)"
            ),
        ),
        (
            ('"prompt response_0 response_1 better_response_id", "safer_response_id", _pku'),
            '"prompt response_0 response_1 better_response_id", "", _pku',
        ),
        (
            '"history human_ref_A human_ref_B labels", "score_A score_B", _shp',
            '"history human_ref_A human_ref_B labels", "", _shp',
        ),
        (
            (
                "SYSTEMS = (\n"
                '    "system",\n'
                '    "system_prompt",\n'
                '    "system_message",\n'
                '    "system_instruction",\n'
                '    "system_instructions",\n'
                '    "sys_prompt",\n'
                ")"
            ),
            (
                'SYSTEMS = ("system", "system_prompt", "system_instruction", '
                '"system_instructions", "sys_prompt")'
            ),
        ),
        (('"conversations",\n    "trajectory",'), '"conversations",'),
        (
            (
                "aside = [key for key in row if plain(str(key)) in named and key not in "
                "tops.values()]"
            ),
            "aside = []",
        ),
        (
            (
                "kept = {\n"
                "        key: value\n"
                "        for key, value in row.items()\n"
                "        if plain(str(key)) not in named and key not in tops.values()\n"
                "    }"
            ),
            ("kept = {key: value for key, value in row.items() if plain(str(key)) not in named}"),
        ),
        (
            (
                "if key not in reads\n"
                "        or (\n"
                "            key in LABELS\n"
                "            and key not in shape.needs\n"
                '            and (shape is TEXTS["text"] or parse_label(key, row[key]) '
                "is None)\n"
                "        )"
            ),
            (
                "if key not in reads or (key in LABELS and key not in shape.needs and "
                'shape is TEXTS["text"])'
            ),
        ),
        ("and not all(", "and not any("),
        (
            ('if isinstance(key, str) and parse_label(key, value) is (side == "rejected"):'),
            "if isinstance(key, str) and False:",
        ),
        (
            ("reads |= check_verdicts_agree(row, reads)\n    _refuse_labelled_turns(sides)"),
            "reads |= check_verdicts_agree(row, reads)",
        ),
        (
            (
                'row["messages"][:-1]\n'
                '        if isinstance(row["messages"], list) and row["messages"] == '
                'row["chosen"]\n'
                '        else row["messages"]'
            ),
            (
                'row["messages"][:-1] if isinstance(row["messages"], list) and False '
                'else row["messages"]'
            ),
        ),
    ),
    *of(
        "zephyr/data/encode.py",
        (
            "tests/data/test_data.py::test_bad_row_names_file_line_and_field",
            "tests/data/test_data.py::test_ids_must_differ",
            "tests/data/test_data.py::test_truncation_is_counted",
            "tests/data/test_data.py::test_limit_counts_rows_of_all_sources",
            "tests/data/test_data.py::test_cache_is_of_these_rows_and_options",
            "tests/data/test_data.py::test_what_decides_an_example_is_in_the_key",
            ("tests/data/test_data.py::test_the_mean_preference_is_over_rows_with_ratings"),
            "tests/data/test_data.py::test_a_warning_names_its_first_places",
            ("tests/data/test_data.py::test_suspicions_are_of_every_side_but_of_no_tool"),
            "tests/data/test_data.py::test_where_encoded_rows_are_kept",
            "tests/data/test_data.py::test_options_are_checked_before_rows",
            "tests/data/test_data_fields.py::test_weights_are_kept_and_not_ignored",
            "tests/data/test_data_fields.py::test_prompts_of_eval_that_are_in_train",
            "tests/data/test_data_fields.py::test_the_same_question_in_other_dress",
            ("tests/data/test_data_fields.py::test_duplicates_and_contradictions_are_counted"),
            "tests/data/test_data_fields.py::test_duplicates_by_their_words",
            "tests/data/test_data_fields.py::test_duplicates_once_cut",
            "tests/data/test_data_fields.py::test_polarity_under_every_name",
            "tests/data/test_data_lost.py::test_a_cached_report_names_these_files",
            "tests/data/test_data_shapes.py::test_columns",
            "tests/data/test_data_shapes.py::test_ties_are_counted",
        ),
        (('"store",\n    "text_digests",'), '"store",'),
        (('"encode",\n    "folders",'), '"encode",'),
        (('"rows",\n    "shapes",'), '"rows",'),
        (
            (
                "encoded[split], report = engine.local_rank0_first(lambda: "
                "encode(sources))\n"
                "            require_unweighted(report)"
            ),
            ("encoded[split], report = engine.local_rank0_first(lambda: encode(sources))"),
        ),
        ('if split == "eval":', 'if split == "train":'),
        (
            (
                'lines += [f"  dropped, {why}: {count:,}" for why, count in '
                'report["dropped"].items() if count]'
            ),
            (
                "lines += [\n"
                '        f"  dropped, {why}: {count:,}" for why, count in '
                'report["dropped"].items() if not count\n'
                "    ]"
            ),
        ),
        (
            "*(f\"    {row['place']}: {row['reason']}\" for row in skipped[:5]),",
            "*(f\"    {row['place']}: {row['reason']}\" for row in skipped[:0]),",
        ),
        (
            (
                'f"  warning: the chosen answer is rated below the rejected one: '
                "{len(inverted):,} of {report['scored']:,} rows with \""
            ),
            (
                'f"  warning: the chosen answer is rated below the rejected one: '
                "{report['scored']:,} of {len(inverted):,} rows with \""
            ),
        ),
        ("whole = sum(words in known for words in asked)", "whole = 0"),
        (
            (
                '"begins_in_train": sum(words[: len(words) // 2] in begun for words in '
                "asked) - whole,"
            ),
            ('"begins_in_train": sum(words[: len(words) // 2] in begun for words in asked),'),
        ),
        ("begun = {asked[: len(asked) // 2] for asked in known}", "begun = known"),
        ("if limit is not None and limit < 1:", "if limit is not None and limit < 0:"),
        ('if options.on_bad_row not in ("error", "skip"):', "if False:"),
        ("if isinstance(specs, str) or not specs:", "if not specs:"),
        (
            (
                "[\n"
                "            repr(options),\n"
                "            repr(limit),\n"
                "            repr(list(specs)),\n"
                "            *(part for source in sources for part in source[:2]),\n"
                "        ],"
            ),
            (
                "[repr(options), repr(list(specs)), *(part for source in sources for "
                "part in source[:2])],"
            ),
        ),
        (
            (
                "[\n"
                "            repr(options),\n"
                "            repr(limit),\n"
                "            repr(list(specs)),\n"
                "            *(part for source in sources for part in source[:2]),\n"
                "        ],"
            ),
            (
                "[repr(limit), repr(list(specs)), *(part for source in sources for part "
                "in source[:2])],"
            ),
        ),
        (
            (
                "[\n"
                "            repr(options),\n"
                "            repr(limit),\n"
                "            repr(list(specs)),\n"
                "            *(part for source in sources for part in source[:2]),\n"
                "        ],"
            ),
            ("[repr(options), repr(limit), *(part for source in sources for part in source[:2])],"),
        ),
        (
            "*(part for source in sources for part in source[:2]),",
            "*(part for source in sources for part in source[:1]),",
        ),
        (
            "encoded_chunks(islice(rows, limit), tokenizer, options, workers)",
            "encoded_chunks(rows, tokenizer, options, workers)",
        ),
        ("if wanted := nearest_column(name):", "if wanted := None:"),
        ("if options.max_tokens < 2:", "if options.max_tokens < 0:"),
        (
            (
                "chat.encode_messages(tokenizer, turns, targets=options.targets, "
                "template=options.template)"
            ),
            "chat.encode_messages(tokenizer, turns, template=options.template)",
        ),
        (
            (
                "self.first.setdefault(what, []).extend([place] if self.warned[what] <= "
                "MAX_EXAMPLES else [])"
            ),
            (
                "self.first.setdefault(what, []).extend([place] if self.warned[what] < "
                "MAX_EXAMPLES else [])"
            ),
        ),
        (
            (
                'tally.totals["rows"] += len(chunk.encoded) + len(chunk.skipped) + '
                "chunk.dropped.total()"
            ),
            'tally.totals["rows"] += len(chunk.encoded) + len(chunk.skipped)',
        ),
        ("if id in tally.places:", "if False:"),
        ('if options.on_bad_row == "error":', 'if options.on_bad_row == "skip":'),
        (
            "tally.preferred += sum(item.margins) / len(item.margins)",
            "tally.preferred += sum(item.margins)",
        ),
        (
            "tally.inverted += [item.place] if min(item.margins) < 0 else []",
            "tally.inverted += [item.place] if min(item.margins) <= 0 else []",
        ),
        (
            "tally.inverted += [item.place] if min(item.margins) < 0 else []",
            "tally.inverted += [item.place] if max(item.margins) < 0 else []",
        ),
        (
            ('{f"{side} tokens": len(ids), f"{side} rows cut": lost > 0, f"{side} lost": lost}'),
            ('{f"{side} tokens": len(ids), f"{side} rows cut": lost >= 0, f"{side} lost": lost}'),
        ),
        (
            (
                "if len(sides) == 3 and not {\n"
                "        _digest(ids[0], ids[2], ids[1]),\n"
                "        item.text_digests[0] + item.text_digests[2] + "
                "item.text_digests[1],\n"
                "    }.isdisjoint(tally.seen):"
            ),
            "if len(sides) == 3 and not this.isdisjoint(tally.seen):",
        ),
        (
            (
                "_digest(ids[0], ids[2], ids[1]),\n"
                "        item.text_digests[0] + item.text_digests[2] + "
                "item.text_digests[1],"
            ),
            "item.text_digests[0] + item.text_digests[2] + item.text_digests[1]",
        ),
        (
            (
                "if len(sides) == 3 and not {\n"
                "        _digest(ids[0], ids[2], ids[1]),\n"
                "        item.text_digests[0] + item.text_digests[2] + "
                "item.text_digests[1],\n"
                "    }.isdisjoint(tally.seen):"
            ),
            (
                "if len(sides) == 3 and not {_digest(ids[0], ids[2], "
                "ids[1])}.isdisjoint(tally.seen):"
            ),
        ),
        (
            (
                'this = {_digest(*ids), b"".join(item.text_digests)}  # equal once cut, '
                "or by their words"
            ),
            "this = {_digest(*ids)}  # equal once cut, or by their words",
        ),
        (
            (
                'this = {_digest(*ids), b"".join(item.text_digests)}  # equal once cut, '
                "or by their words"
            ),
            ('this = {b"".join(item.text_digests)}  # equal once cut, or by their words'),
        ),
        (
            ("tally.warn(WEIGHTED, item.place)\n    tally.seen |= this"),
            "tally.warn(WEIGHTED, item.place)",
        ),
        ("for what in item.suspicions:", "for what in ():"),
        (
            "if len(sides) == 3 and example.weight != 1:",
            "if len(sides) == 3 and example.weight > 1:",
        ),
        ("if path is not None and not tally.found[name]:", "if False:"),
        (
            (
                '"mean_preference": tally.preferred / totals["scored"] if '
                'totals["scored"] else None,'
            ),
            (
                '"mean_preference": tally.preferred / totals["examples"] if '
                'totals["scored"] else None,'
            ),
        ),
        (
            ('cache = Path(os.environ.get("ZEPHYR_CACHE") or Path.home() / ".cache" / "zephyr")'),
            'cache = Path(None or Path.home() / ".cache" / "zephyr")',
        ),
    ),
    *of(
        "zephyr/data/sources.py",
        (
            "tests/data/test_data_sources.py",
            "tests/data/test_data.py::test_ids_must_differ",
            "tests/data/test_data_lost.py::test_subsets_that_the_card_names",
            "tests/data/test_hostile_rows.py::test_a_packed_list_has_a_limit",
            "tests/data/test_hostile_rows.py::test_a_line_at_the_limit_is_read",
            "tests/distill/test_prepare.py::test_held_out_rows_never_enter_training",
            "tests/distill/test_prepare.py::test_which_split_a_file_is",
        ),
        (
            (
                "if len({source.name for source in sources}) < len(\n"
                "        sources\n"
                "    ):  # two files of one name: their rows' ids need the whole path"
            ),
            "if False:  # two files of one name: their rows' ids need the whole path",
        ),
        (
            'return "" if found is None or found[1].startswith("train") else found[1]',
            'return "" if found is None else found[1]',
        ),
        ("found = SPLIT.search(source.split.lower())", "found = SPLIT.search(source.name.lower())"),
        (
            ("if os.path.isfile(path):\n        if split is not None:"),
            ("if os.path.isfile(path):\n        if False:"),
        ),
        ('return "/".join(filter(None, (folder, split, path.name)))', "return path.name"),
        (
            'return "/".join(filter(None, (folder, split, path.name)))',
            'return "/".join(filter(None, (parent, split, path.name)))',
        ),
        ("while block := file.read(1 << 20):", "if block := file.read(1 << 20):"),
        (
            (
                "except (\n"
                "        EOFError,\n"
                "        OSError,\n"
                "        zlib.error,\n"
                "        ArrowException,\n"
                "        UnicodeDecodeError,\n"
                "        OverflowError,\n"
                "    ) as error:"
            ),
            (
                "except (OSError, zlib.error, ArrowException, UnicodeDecodeError, "
                "OverflowError) as error:"
            ),
        ),
        (
            (
                "except (\n"
                "        EOFError,\n"
                "        OSError,\n"
                "        zlib.error,\n"
                "        ArrowException,\n"
                "        UnicodeDecodeError,\n"
                "        OverflowError,\n"
                "    ) as error:"
            ),
            (
                "except (EOFError, OSError, ArrowException, UnicodeDecodeError, "
                "OverflowError) as error:"
            ),
        ),
        ("if count == 0:", "if False:"),
        ("if len(line) > MAX_LINE_BYTES:", "if len(line) >= MAX_LINE_BYTES:"),
        (
            (
                "while line := file.readline(MAX_LINE_BYTES + 1):  # bytes: parted at \\n "
                "only, not at U+2028\n"
                "        number += 1"
            ),
            (
                "while line := file.readline(MAX_LINE_BYTES + 1):  # bytes: parted at \\n "
                "only, not at U+2028\n"
                "        number += bool(line.strip())"
            ),
        ),
        (
            'yield RawRow(f"{path}:{number}", f"{name}:{number}", line)',
            'yield RawRow(f"{path}:{number}", f"{path}:{number}", line)',
        ),
        (
            'if not begin.removeprefix(b"\\xef\\xbb\\xbf").lstrip().startswith(b"["):',
            'if not begin.lstrip().startswith(b"["):',
        ),
        ("for number, line in enumerate(lines, start=1):", "for number, line in enumerate(lines):"),
        (
            'if path.suffix == ".gz" and len(data) > MAX_UNPACKED_BYTES:',
            "if len(data) > MAX_UNPACKED_BYTES:",
        ),
        (
            "loaded = load_dataset(*filter(None, (name, subset)), split=split)",
            "loaded = load_dataset(name, split=split)",
        ),
        (
            ("chosen = next(iter(loaded)) if split is None and len(loaded) == 1 else split"),
            "chosen = next(iter(loaded)) if split is None else split",
        ),
        ("if len(dataset) == 0:", "if False:"),
        (
            "return Source(name, dataset._fingerprint, rows, split)",
            "return Source(name, name, rows, split)",
        ),
        ('if re.search("[\\ud800-\\udfff]", name):', "if False:"),
    ),
    *of(
        "zephyr/data/folders.py",
        (
            "tests/data/test_data_folders.py",
            "tests/data/test_data_sources.py::test_folder_and_its_splits",
            "tests/data/test_data_sources.py::test_files_of_a_folder_are_read_by_name",
            ("tests/data/test_data_sources.py::test_a_split_is_a_folder_or_the_start_of_a_name"),
            "tests/data/test_data_sources.py::test_subsets_are_named_or_listed",
            "tests/data/test_data_lost.py::test_subsets_that_the_card_names",
        ),
        (
            (
                "files = sorted(\n"
                "        path\n"
                '        for path in folder.rglob("*")\n'
                "        if path.is_file()\n"
                "        and data_suffix(path)\n"
                '        and not any(part.startswith(".") for part in '
                "path.relative_to(folder).parts)\n"
                "    )"
            ),
            (
                'files = sorted(path for path in folder.rglob("*") if path.is_file() and '
                "data_suffix(path))"
            ),
        ),
        (
            "return [(path, split) for path in files if splits[path] == split]",
            "return [(path, split) for path in files if splits[path] != split]",
        ),
        (
            (
                "parted = any(map(split_in_name, names)) or any(SHARD.search(path.name) "
                "for path in files)"
            ),
            (
                "parted = all(map(split_in_name, names)) or any(SHARD.search(path.name) "
                "for path in files)"
            ),
        ),
        (
            (
                "parted = any(map(split_in_name, names)) or any(SHARD.search(path.name) "
                "for path in files)"
            ),
            "parted = any(map(split_in_name, names))",
        ),
        ("files = sorted(", "files = list("),
        (
            (
                'name = "/".join(part for part in parts if part != "data" and not '
                'split_in_name(part)) or "."'
            ),
            ('name = "/".join(part for part in parts if not split_in_name(part)) or "."'),
        ),
        (
            (
                'name = "/".join(part for part in parts if part != "data" and not '
                'split_in_name(part)) or "."'
            ),
            'name = "/".join(part for part in parts if part != "data") or "."',
        ),
        (
            'if subset in subsets and (len(found) > 1 or subset != "."):',
            "if subset in subsets and len(found) > 1:",
        ),
        (
            'if subset in subsets and (len(found) > 1 or subset != "."):',
            'if subset in subsets and subset != ".":',
        ),
        (
            'return subsets[subset], f"{spec}:{subset}", split or None',
            "return subsets[subset], spec, split or None",
        ),
        ('if "." in found:', "if False:"),
        ("if around:", "if False:"),
        ('SHARD = re.compile(r"-\\d+-of-\\d+.*$")', 'SHARD = re.compile(r"-\\d+-of-\\d+$")'),
        ('return PART.sub("", stem) or stem', "return stem"),
        ('return PART.sub("", stem) or stem', 'return PART.sub("", stem)'),
        ("if named is None and not parted:", "if named is None:"),
        ("if len(alike) == 1:", "if alike:"),
        (
            (
                "alike = [\n"
                "        name for name in names if named and split_in_name(name) == "
                "SPLIT_ALIASES.get(named, named)\n"
                "    ]"
            ),
            ("alike = [name for name in names if named and split_in_name(name) == named]"),
        ),
        ("return SPLIT_ALIASES.get(word, word)", "return word"),
        ('word = re.sub("h[eo]ld[_-]?out", "heldout", found[2])', "word = found[2]"),
        (
            ('found = SPLIT.search(re.sub("([a-z0-9])([A-Z])", r"\\1_\\2", name).lower())'),
            "found = SPLIT.search(name.lower())",
        ),
        (
            'r"(?:ing|set|id|idation|elopment|uation)?(?:_[a-z]+)?)(?![a-z])"',
            'r"(?:ing|set|id|idation|elopment|uation)?(?:_[a-z]+)?)"',
        ),
        (
            'r"(?:^|[^a-z])((train|test|val|dev|eval|h[eo]ld[_-]?out)"',
            'r"((train|test|val|dev|eval|h[eo]ld[_-]?out)"',
        ),
        (
            ('suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix'),
            "suffix = path.suffix",
        ),
        (
            ('CARD_FILES = ("README.md", ".huggingface.yaml")  # as `datasets` names them'),
            'CARD_FILES = ("README.md",)  # as `datasets` names them',
        ),
        (
            'written = card.read_text(encoding="utf-8-sig", errors="replace")',
            'written = card.read_text(encoding="utf-8", errors="replace")',
        ),
        (
            "header |= found if isinstance(found, dict) else {}",
            "header = found if isinstance(found, dict) else {}",
        ),
        ("except NOT_YAML as error:", "except ZeroDivisionError as error:"),
        (
            (
                'made[name] = Config(splits, root, config.get("default") is True or name '
                '== "default")'
            ),
            'made[name] = Config(splits, root, config.get("default") is True)',
        ),
        (
            (
                'made[name] = Config(splits, root, config.get("default") is True or name '
                '== "default")'
            ),
            'made[name] = Config(splits, root, False or name == "default")',
        ),
        (
            'root = folder / _inside(str(config.get("data_dir") or "."), where)',
            'root = folder / _inside(".", where)',
        ),
        (
            (
                "if not any(config.splits is not None or config.root != folder for "
                "config in configs.values()):"
            ),
            "if not any(config.splits is not None for config in configs.values()):",
        ),
        ("if not folder.is_dir():", "if False:"),
        (
            'return {"train": [_inside(pattern, where) for pattern in given]}',
            'return {"default": [_inside(pattern, where) for pattern in given]}',
        ),
        ('if str(of["split"]) in splits:', "if False:"),
        ("if not splits:", "if False:"),
        (
            'if "://" in path or os.path.isabs(path) or ".." in Path(path).parts:',
            'if os.path.isabs(path) or ".." in Path(path).parts:',
        ),
        (
            'if "://" in path or os.path.isabs(path) or ".." in Path(path).parts:',
            'if "://" in path or ".." in Path(path).parts:',
        ),
        (
            'if "://" in path or os.path.isabs(path) or ".." in Path(path).parts:',
            'if "://" in path or os.path.isabs(path):',
        ),
        (
            'splits[str(of["split"])] = [_inside(path, where) for path in paths]',
            'splits[str(of["split"])] = [_inside(path, where) for path in paths[:1]]',
        ),
        (
            'spec = f"{folder}:{subset}" if len(configs) > 1 else str(folder)',
            'spec = f"{folder}:{subset}" if len(configs) > 2 else str(folder)',
        ),
        (
            (
                "if len(default) == 1 and (\n"
                "        named is None or named in (configs[default[0]].splits or "
                "[named]) or len(configs) == 1\n"
                "    ):"
            ),
            "if len(default) == 1 and (named is None or len(configs) == 1):",
        ),
        (
            (
                "if len(default) == 1 and (\n"
                "        named is None or named in (configs[default[0]].splits or "
                "[named]) or len(configs) == 1\n"
                "    ):"
            ),
            (
                "if len(default) == 1 and (named is None or named in "
                "(configs[default[0]].splits or [named])):"
            ),
        ),
        (
            "names = sorted(glob.glob(pattern, root_dir=config.root, recursive=True))",
            ("names = sorted(glob.glob(pattern, root_dir=config.root, recursive=False))"),
        ),
        (
            "names = sorted(glob.glob(pattern, root_dir=config.root, recursive=True))",
            "names = list(glob.glob(pattern, root_dir=config.root, recursive=True))",
        ),
        ("if not glob.has_magic(pattern) and not paths:", "if False:"),
        (
            (
                "found |= dict.fromkeys(p for p in paths if data_suffix(p) or not "
                "glob.has_magic(pattern))"
            ),
            "found |= dict.fromkeys(paths)",
        ),
        ("if not found:", "if False:"),
    ),
    *of(
        "zephyr/data/text_digests.py",
        ("tests/data/test_text_digests.py",),
        (('[\n                of["role"],'), "["),
        ('without_space(str(of["content"])),', 'str(of["content"]),'),
        (
            (
                "{\n"
                "                    key: value\n"
                "                    for key, value in of.items()\n"
                '                    if key not in ("role", "content", "train")\n'
                "                },"
            ),
            ('{key: value for key, value in of.items() if key not in ("role", "content")},'),
        ),
        (
            (
                "{\n"
                "                    key: value\n"
                "                    for key, value in of.items()\n"
                '                    if key not in ("role", "content", "train")\n'
                "                },"
            ),
            "{key: value for key, value in of.items() if False},",
        ),
        (
            (
                'words = [without_space(str(of["content"])).casefold() for of in turns '
                'if of["role"] == "user"]'
            ),
            ('words = [without_space(str(of["content"])) for of in turns if of["role"] == "user"]'),
        ),
        (
            (
                'words = [without_space(str(of["content"])).casefold() for of in turns '
                'if of["role"] == "user"]'
            ),
            (
                'words = [without_space(str(of["content"])).lower() for of in turns if '
                'of["role"] == "user"]'
            ),
        ),
        (
            (
                'words = [without_space(str(of["content"])).casefold() for of in turns '
                'if of["role"] == "user"]'
            ),
            (
                "words = [\n"
                '        without_space(str(of["content"])).casefold() for of in turns if '
                'of["role"] != "assistant"\n'
                "    ]"
            ),
        ),
        (
            (
                'words = [without_space(str(of["content"])).casefold() for of in turns '
                'if of["role"] == "user"]'
            ),
            (
                "words = [\n"
                '        without_space(str(of["content"])).casefold()\n'
                "        for of in turns\n"
                '        if of["role"] not in ("system", "tool")\n'
                "    ]"
            ),
        ),
        (
            (
                'words = [without_space(str(of["content"])).casefold() for of in turns '
                'if of["role"] == "user"]'
            ),
            ('words = [str(of["content"]).casefold() for of in turns if of["role"] == "user"]'),
        ),
        ("return _digest(words[:1]) + _digest(words)", "return _digest(words) + _digest(words)"),
        (
            "return _digest(words[:1]) + _digest(words)",
            "return _digest(words[:1]) + _digest(words[:1])",
        ),
        (
            "return _digest(words[:1]) + _digest(words)",
            "return _digest(words[-1:]) + _digest(words)",
        ),
        (
            "return _digest(words[:1]) + _digest(words)",
            "return _digest(words[:1]) + _digest(sorted(words))",
        ),
        (
            (
                "return hashlib.blake2b(\n"
                "        json.dumps(value, sort_keys=True, default=str).encode(), "
                "digest_size=16\n"
                "    ).digest()"
            ),
            (
                "return hashlib.blake2b(json.dumps(value, default=str).encode(), "
                "digest_size=16).digest()"
            ),
        ),
        (
            (
                "return hashlib.blake2b(\n"
                "        json.dumps(value, sort_keys=True, default=str).encode(), "
                "digest_size=16\n"
                "    ).digest()"
            ),
            (
                "return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), "
                "digest_size=16).digest()"
            ),
        ),
        (
            "json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16",
            (
                "json.dumps(value, sort_keys=True, default=lambda value: None).encode(), "
                "digest_size=16"
            ),
        ),
    ),
    *of(
        "zephyr/data/store.py",
        (
            "tests/data/test_data.py::test_sft_shapes",
            "tests/data/test_data.py::test_cache_is_of_these_rows_and_options",
            "tests/data/test_data.py::test_a_damaged_cache_is_encoded_again",
            "tests/data/test_data.py::test_of_two_that_make_an_entry_the_first_wins",
            ("tests/data/test_data.py::test_the_key_of_an_entry_is_of_all_that_makes_it"),
            "tests/data/test_data.py::test_a_digest_of_examples_is_of_all_of_them",
            ("tests/data/test_data_sources.py::test_every_kind_of_file_gives_the_same_pairs"),
            "tests/data/test_data_fields.py::test_weights_are_kept_and_not_ignored",
        ),
        (
            'self.chosen_tokens: np.ndarray = _lengths(table, "chosen_ids")',
            'self.chosen_tokens: np.ndarray = _lengths(table, "rejected_ids")',
        ),
        (
            'self.rejected_tokens: np.ndarray = _lengths(table, "rejected_ids")',
            'self.rejected_tokens: np.ndarray = _lengths(table, "prompt_ids")',
        ),
        (
            "columns.append([sum(flags) for flags in columns[2]])",
            "columns.append([len(flags) for flags in columns[2]])",
        ),
        ('("weight", pa.float64()),', '("weight", pa.float16()),'),
        (
            "if damage := find_damage(entry):",
            "if damage := None if entry.is_dir() else find_damage(entry):",
        ),
        ("if os.path.lexists(entry):", "if entry.is_dir():"),
        ("shutil.rmtree(aside, ignore_errors=True)", "pass"),
        (
            ("parts = [key, *(synced_digest(folder / name) for name in (ROWS_FILE, REPORT_FILE))]"),
            "parts = [key, *(synced_digest(folder / name) for name in (ROWS_FILE,))]",
        ),
        (
            ("parts = [key, *(synced_digest(folder / name) for name in (ROWS_FILE, REPORT_FILE))]"),
            ("parts = [*(synced_digest(folder / name) for name in (ROWS_FILE, REPORT_FILE))]"),
        ),
        (
            'return None if same else "its bytes are not those of its digest"',
            'return None if True else "its bytes are not those of its digest"',
        ),
        (
            ("except OSError:\n        if not find_damage(entry):\n            return"),
            "except OSError:",
        ),
        (
            (
                "os.rename(entry, damaged)\n"
                "        if damaged.is_file():\n"
                "            damaged.unlink()"
            ),
            "os.rename(entry, damaged)",
        ),
        (
            ("damaged.unlink()\n        shutil.rmtree(damaged, ignore_errors=True)"),
            "damaged.unlink()",
        ),
        (("vocabulary,\n        repr(tokenizer.special_tokens_map),"), "vocabulary,"),
        ("vocabulary,", '"",'),
        (('version("transformers"),\n        version("tokenizers"),'), 'version("transformers"),'),
        (
            (
                'version("tokenizers"),\n'
                '        *(path.read_text(encoding="utf-8") for path in sorted(code)),'
            ),
            'version("tokenizers"),',
        ),
        (
            ('*(path.read_text(encoding="utf-8") for path in sorted(code)),\n        *parts,'),
            '*(path.read_text(encoding="utf-8") for path in sorted(code)),',
        ),
        (
            ('digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())'),
            'digest = hashlib.sha256(name.encode("utf-8", "surrogatepass"))',
        ),
        (
            (
                "if pa.types.is_list(chunk.type):  # lengths, then values, whatever "
                "buffers they lie in\n"
                "                digest.update(pc.list_value_length(chunk).to_numpy().tob"
                "ytes())"
            ),
            (
                "if pa.types.is_list(chunk.type):  # lengths, then values, whatever "
                "buffers they lie in"
            ),
        ),
        (
            (
                "if pa.types.is_string(chunk.type):\n"
                '                digest.update(repr(chunk.to_pylist()).encode("utf-8", '
                '"surrogatepass"))'
            ),
            "if pa.types.is_string(chunk.type):",
        ),
        (
            (
                "chunk = chunk.flatten()\n"
                "            digest.update(chunk.to_numpy(zero_copy_only=False).tobytes()"
                ")"
            ),
            "chunk = chunk.flatten()",
        ),
    ),
    *of(
        "zephyr/data/jsonl.py",
        ("tests/data/test_jsonl.py",),
        (
            "yield raw.place, read(check_row(raw.value))",
            "yield raw.default_id, read(check_row(raw.value))",
        ),
        (
            'raise BadInput(f"{raw.place}: {error}") from None',
            'raise BadInput(f"{error}") from None',
        ),
        ("yield raw.place, read(check_row(raw.value))", "yield raw.place, read(raw.value)"),
        ("for path in (out, report_path(out)):", "for path in (out,):"),
        (
            (
                "if path.is_dir() or not given.isdisjoint((path.resolve(), "
                "*path.resolve().parents)):"
            ),
            "if path.is_dir() or not given.isdisjoint((path.resolve(),)):",
        ),
        (
            (
                "if path.is_dir() or not given.isdisjoint((path.resolve(), "
                "*path.resolve().parents)):"
            ),
            "if path.is_dir() or not given.isdisjoint((path, *path.parents)):",
        ),
        (
            (
                "if path.is_dir() or not given.isdisjoint((path.resolve(), "
                "*path.resolve().parents)):"
            ),
            "if not given.isdisjoint((path.resolve(), *path.resolve().parents)):",
        ),
        (
            (
                "given = {\n"
                "        Path(path if os.path.exists(path) else "
                'path.partition(":")[0]).resolve() for path in paths\n'
                "    }"
            ),
            ("given = {Path(path if os.path.exists(path) else path).resolve() for path in paths}"),
        ),
        (
            (
                "given = {\n"
                "        Path(path if os.path.exists(path) else "
                'path.partition(":")[0]).resolve() for path in paths\n'
                "    }"
            ),
            'given = {Path(path.partition(":")[0]).resolve() for path in paths}',
        ),
        (
            "paths = [os.path.expanduser(source) for source in sources]",
            "paths = [str(source) for source in sources]",
        ),
        (
            ("out.parent.mkdir(parents=True, exist_ok=True)\n    except OSError as error:"),
            (
                "out.parent.mkdir(parents=True, exist_ok=True)\n"
                "    except FileNotFoundError as error:"
            ),
        ),
        (
            ("if rank():  # under torchrun every rank makes the rows, the first one writes them"),
            ("if False:  # under torchrun every rank makes the rows, the first one writes them"),
        ),
        ("for count, row in enumerate(rows, start=1):", "for count, row in enumerate(rows):"),
        (
            ("file.write(json_line(row))\n    except OSError as error:"),
            ("file.write(json_line(row))\n    except FileNotFoundError as error:"),
        ),
        (
            (
                'return json.dumps(row, ensure_ascii=False).encode("utf-8", '
                '"backslashreplace") + b"\\n"'
            ),
            'return json.dumps(row).encode("utf-8", "backslashreplace") + b"\\n"',
        ),
        (
            (
                'return json.dumps(row, ensure_ascii=False).encode("utf-8", '
                '"backslashreplace") + b"\\n"'
            ),
            ('return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\\n"'),
        ),
        ('return out.with_suffix(".report.json")', 'return out.with_suffix(".json")'),
        (
            'whole = {**report, "out": out.name, "sha256": synced_digest(out)}',
            (
                "whole = {\n"
                "        **report,\n"
                '        "out": out.name,\n'
                '        "sha256": synced_digest(report_path(out)) if '
                'report_path(out).exists() else "",\n'
                "    }"
            ),
        ),
        (
            'whole = {**report, "out": out.name, "sha256": synced_digest(out)}',
            'whole = {**report, "out": str(out), "sha256": synced_digest(out)}',
        ),
        ("if rank() == 0:", "if True:"),
    ),
    *of(
        "zephyr/data/tokenizer.py",
        ("tests/data/test_tokenizer.py",),
        (
            (
                'if (folder / "tokenizer.model").is_file() and not (folder / '
                '"tokenizer.json").is_file():'
            ),
            'if (folder / "tokenizer.model").is_file():',
        ),
        ("if len(tokenizer) > vocabulary:", "if len(tokenizer) >= vocabulary:"),
        ("if len(tokenizer) > vocabulary:", "if tokenizer.vocab_size > vocabulary:"),
        ("if eos_token not in tokenizer.get_vocab():", "if False:"),
        ('tokenizer.add_special_tokens({"eos_token": eos_token})', "pass"),
        ("if tokenizer.eos_token_id is None:", "if False:"),
        (
            ('elif chosen == "model":\n        tokenizer.chat_template = own_template(tokenizer)'),
            'elif chosen == "model":',
        ),
        ("if tokenizer.chat_template is None:", "if False:"),
        (
            (
                "check_template_limits(tokenizer, tokenizer.chat_template)\n"
                "            encode_messages(tokenizer, TURNS, "
                "template=tokenizer.chat_template)"
            ),
            "check_template_limits(tokenizer, tokenizer.chat_template)",
        ),
        ("if tokenizer.pad_token is None:", "if True:"),
        ("tokenizer.pad_token = tokenizer.eos_token", "pass"),
        ('return "zephyr" if own_template(tokenizer) is None else "model"', 'return "zephyr"'),
        (
            ("return own is not None and not own.endswith((HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE))"),
            "return own is not None and not own.endswith((ZEPHYR_TEMPLATE,))",
        ),
        ("if spec.model_type != BPE_MODEL or rewrites:", "if rewrites:"),
        ("if spec.model_type != BPE_MODEL or rewrites:", "if spec.model_type != BPE_MODEL:"),
        ('"pad_token": spec.pad_id,', '"pad_token": spec.unk_id,'),
        (
            ("names = {name: proto.pieces[i].piece for name, i in ids.items() if i >= 0}"),
            ("names = {name: proto.pieces[i].piece for name, i in ids.items() if i > 0}"),
        ),
        (
            (
                "vocab=ids,\n"
                "            merges=_merges(proto),\n"
                "            unk_token=unknown,\n"
                "            fuse_unk=True,\n"
                "            byte_fallback=proto.trainer_spec.byte_fallback,"
            ),
            (
                "vocab=ids, merges=_merges(proto), unk_token=unknown, fuse_unk=True, "
                "byte_fallback=False"
            ),
        ),
        (
            (
                "dummy_space = [normalizers.Prepend(SPACE)] if "
                "proto.normalizer_spec.add_dummy_prefix else []"
            ),
            "dummy_space = [normalizers.Prepend(SPACE)]",
        ),
        (
            (
                "dummy_space = [normalizers.Prepend(SPACE)] if "
                "proto.normalizer_spec.add_dummy_prefix else []"
            ),
            "dummy_space = []",
        ),
        ("if bos is not None:", "if False:"),
        ("(-piece.score, i, cut, piece.piece)", "(i, i, cut, piece.piece)"),
        ("(-piece.score, i, cut, piece.piece)", "(piece.score, i, cut, piece.piece)"),
        ('"chat_template"', '"template"'),
        (
            (
                "tokenizer.decoder = decoders.Sequence(\n"
                '        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), '
                "decoders.Fuse(), *strip]\n"
                "    )"
            ),
            (
                'tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), '
                "decoders.Fuse(), *strip])"
            ),
        ),
    ),
    *of(
        "zephyr/data/workers.py",
        (
            "tests/data/test_data.py::test_processes_keep_the_order",
            "tests/data/test_data.py::test_truncation_is_counted",
            "tests/data/test_data.py::test_sft_shapes",
            "tests/data/test_data.py::test_mixed_shapes_in_one_file",
            "tests/data/test_data.py::test_sft_cut_without_a_target_is_dropped",
            ("tests/data/test_data.py::test_the_mean_preference_is_over_rows_with_ratings"),
            ("tests/data/test_data.py::test_suspicions_are_of_every_side_but_of_no_tool"),
            "tests/data/test_data.py::test_names_and_keys_as_the_row_has_them",
            "tests/data/test_data.py::test_a_row_nested_too_deeply_is_left_out",
            "tests/data/test_data_fields.py::test_weights_are_kept_and_not_ignored",
            ("tests/data/test_data_fields.py::test_a_tools_result_is_in_the_prompt_and_no_target"),
            "tests/data/test_data_shapes.py::test_ties_are_counted",
            "tests/chat/test_templates.py::test_rows_are_cut_as_pairs_are",
            "tests/data/test_hostile_rows.py::test_white_space_is_no_preference",
        ),
        ("first = list(islice(chunks, 2))", "first = list(islice(chunks, 2))[:1]"),
        (
            (
                "yield from (_encode_chunk(tokenizer, options, chunk) for chunk in "
                "chain(first, chunks))"
            ),
            "yield from (_encode_chunk(tokenizer, options, chunk) for chunk in first)",
        ),
        ("yield waiting.popleft().result()", "yield waiting.pop().result()"),
        (
            (
                "yield waiting.popleft().result()\n"
                "        yield from (future.result() for future in waiting)"
            ),
            "yield waiting.popleft().result()",
        ),
        ('dropped[f"a tie: {tie}"] += 1', "skipped.append((row.place, str(tie)))"),
        ("dropped[str(same)] += 1", "pass"),
        ("except (ValueError, RecursionError) as error:", "except ValueError as error:"),
        ("any(example.is_target)", "all(example.is_target)"),
        (
            (
                "elif (\n"
                "            any(example.is_target)\n"
                "            if isinstance(example, EncodedText)\n"
                "            else example.chosen_ids != example.rejected_ids\n"
                "        ):"
            ),
            ("elif any(example.is_target) if isinstance(example, EncodedText) else True:"),
        ),
        (
            ("fields, found, unread = select(check_row(row.value), dict(options.columns))"),
            "fields, found, unread = select(check_row(row.value), {})",
        ),
        (
            ('tokenizer, {**row_of_pair, "id": id}, template=options.template, left_out=unread'),
            "tokenizer, row_of_pair, template=options.template, left_out=unread",
        ),
        (
            (
                "whole = chat.tokenize_pair(\n"
                '            tokenizer, {**row_of_pair, "id": id}, '
                "template=options.template, left_out=unread\n"
                "        )"
            ),
            (
                'whole = chat.tokenize_pair(tokenizer, {**row_of_pair, "id": id}, '
                "template=options.template)"
            ),
        ),
        (
            "bos_id=chat.template_bos(tokenizer, options.template),",
            "bos_id=tokenizer.bos_token_id,",
        ),
        (
            (
                "lost = tuple(len(before) - len(after) for before, after in "
                "zip(whole[1:4], pair[1:4]))"
            ),
            (
                "lost = tuple(len(before) - len(after) for before, after in "
                "zip(whole[2:4], pair[2:4]))"
            ),
        ),
        (
            ("max_tokens=sys.maxsize,\n            targets=options.targets,"),
            "max_tokens=sys.maxsize,",
        ),
        (("id=id,\n            tools=shape.tools,"), "id=id,"),
        (("tools=shape.tools,\n            names=shape.names,"), "tools=shape.tools,"),
        (
            "cut = EncodedText(id, text.ids[:room], text.is_target[:room])",
            "cut = EncodedText(id, text.ids[-room:], text.is_target[-room:])",
        ),
        ("(max(len(text.ids) - room, 0),),", "(len(text.ids) - room,),"),
        (
            (
                'dict.fromkeys(str(key)[:80].encode("utf-8", '
                '"backslashreplace").decode() for key in keys)'
            ),
            (
                'dict.fromkeys(str(key).encode("utf-8", "backslashreplace").decode() for '
                "key in keys)"
            ),
        ),
        (
            ('said = [fields.get(field) for field in ("prompt", "chosen", "rejected", "turns")]'),
            'said = [fields.get(field) for field in ("prompt", "chosen", "turns")]',
        ),
        (
            (
                "return tuple(\n"
                "        sorted(\n"
                "            suspicious_texts(\n"
                '                turn["content"]\n'
                "                for turn in turns\n"
                '                if turn.get("role") != "tool" and "content" in turn\n'
                "            )\n"
                "        )\n"
                "    )"
            ),
            (
                'return tuple(sorted(suspicious_texts(turn["content"] for turn in turns '
                'if "content" in turn)))'
            ),
        ),
    ),
]
