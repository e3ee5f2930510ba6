"""The faults of `zephyr/data/`: see table.py."""

from table import Mutant, of

SHAPE_TESTS = (
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
    ("tests/data/test_data_fields.py::test_what_zephyrs_template_has_no_place_for_is_named"),
    "tests/data/test_data_fields.py::test_weights_are_kept",
    "tests/data/test_data_fields.py::test_masked_turns_are_no_targets",
    "tests/data/test_data_fields.py::test_answers_called_bad_are_no_model",
    ("tests/data/test_data_fields.py::test_a_tools_result_is_in_the_prompt_and_no_target"),
    "tests/data/test_data.py::test_sft_shapes",
)
LOAD_TESTS = (
    "tests/data/test_data.py::test_bad_row_names_file_line_and_field",
    "tests/data/test_data.py::test_ids_must_differ",
    "tests/data/test_data.py::test_truncation_is_counted",
    "tests/data/test_data.py::test_limit_counts_rows_of_all_sources",
    "tests/data/test_data.py::test_sources_have_limits_and_weights_of_their_own",
    "tests/data/test_data.py::test_cache_is_of_these_rows_and_options",
    "tests/data/test_data.py::test_what_decides_an_example_is_in_the_key",
    ("tests/data/test_data.py::test_the_mean_preference_is_over_rows_with_ratings"),
    "tests/data/test_data.py::test_a_warning_names_its_first_places",
    "tests/data/test_data.py::test_suspicions_are_of_every_side_but_of_no_tool",
    "tests/data/test_data.py::test_where_encoded_rows_are_kept",
    "tests/data/test_data.py::test_options_are_checked_before_rows",
    "tests/data/test_data_fields.py::test_weights_are_kept",
    "tests/data/test_data_fields.py::test_prompts_of_eval_that_are_in_train",
    "tests/data/test_data_fields.py::test_the_same_question_in_other_dress",
    ("tests/data/test_data_fields.py::test_duplicates_and_contradictions_are_counted"),
    "tests/data/test_data_fields.py::test_duplicates_by_their_words",
    "tests/data/test_data_fields.py::test_duplicates_once_cut",
    "tests/data/test_data_fields.py::test_polarity_under_every_name",
    "tests/data/test_data_lost.py::test_a_cached_report_names_these_files",
    "tests/data/test_data_shapes.py::test_columns",
    "tests/data/test_data_shapes.py::test_ties_are_counted",
)
MUTANTS: list[Mutant] = [
    *of(
        "zephyr/data/encode.py",
        ("tests/hosts/test_node_caches.py",),
        ("waits = first and shared", "waits = False"),
        (
            """        engine.require_same(
            f"data.{split}: the digest of the token ids", content_digest(encoded[split])
        )
""",
            "",
        ),
    ),
    *of(
        "zephyr/data/fetch.py",
        ("tests/hosts/test_hub_ranks.py::test_one_rank_asks_the_hub",),
        ("engine.local_rank0_first(check)", "engine.on_all_ranks(check)"),
    ),
    *of(
        "zephyr/data/windows.py",
        ("tests/chat/test_eras.py",),
        ("ids, flags = ids[whole:], flags[whole:]", "ids, flags = ids[:0], flags[:0]"),
        ("targets[:, 0] = False", "targets[:, 0] = True"),
    ),
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
        ("if good:", "if False:"),
        ('return good == ("chosen" in words)', "return good"),
        ("if len(sides) != 1:", "if False:"),
        ('return sides == {"chosen"}', "return True"),
        ("margin -= _rating(rejected, values[rejected])", "margin -= 0"),
        (
            'lower_is_better = "rank" in name or not LOWER.isdisjoint(name.split("_"))',
            'lower_is_better = "rank" in name',
        ),
        ("found.append(-margin if lower_is_better else margin)", "found.append(margin)"),
        ("if not verdict:", "if False:"),
        (
            (
                "if None in sides or not sides:\n"
                "        sides = {side for text, side in _sided_texts(row, key) if "
                "text == value}"
            ),
            "if None in sides or not sides:\n        sides = set()",
        ),
        (
            (
                "is_other = not NOT_RATINGS.keys().isdisjoint(words_of_name) or "
                "ABOUT_RATING.search(name)"
            ),
            "is_other = ABOUT_RATING.search(name)",
        ),
        (
            (
                "is_other = not NOT_RATINGS.keys().isdisjoint(words_of_name) or "
                "ABOUT_RATING.search(name)"
            ),
            "is_other = not NOT_RATINGS.keys().isdisjoint(words_of_name)",
        ),
        ("if RATING.search(name) or all(", "if RATING.search(name) and all("),
        (
            'return path == "margin" or OPINION.search("_".join(others)) is not None',
            'return path == "margin"',
        ),
        (
            ('elif depth:\n            yield from _paths(value, f"{before}{key}.", depth - 1)'),
            "elif depth:\n            yield from ()",
        ),
        (
            (
                "if not isinstance(value, bool) and isinstance(value, (int, "
                "float)) and abs(value) < MAX_RATING:"
            ),
            "if isinstance(value, (int, float)) and abs(value) < MAX_RATING:",
        ),
        ("and abs(value) < MAX_RATING:", "and not abs(value) > MAX_RATING:"),
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
        ("value = row.get(field, default)", 'value = row.get("id", default)'),
        (
            ('if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":'),
            'if not isinstance(value, (str, int)) or value == "":',
        ),
        (
            ('if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":'),
            "if isinstance(value, bool) or not isinstance(value, (str, int)):",
        ),
        ("byte {error.start + 1} is {byte!r}", "byte {error.start} is {byte!r}"),
        ("at column {error.pos + 1}, expected one", "at column {error.pos}, expected one"),
        (
            (
                "if isinstance(value, list):\n"
                "        return [_without_nulls(inner) for inner in value]\n"
                "    return value"
            ),
            "return value",
        ),
        (
            "written = json.dumps(value, ensure_ascii=False, default=str)",
            "written = json.dumps(value, default=str)",
        ),
        (
            "written = json.dumps(value, ensure_ascii=False, default=str)",
            "written = json.dumps(value, ensure_ascii=False)",
        ),
        ("if LONE_SURROGATE.search(str(value)):", "if not value and value != 0:"),
        (
            "if isinstance(value, str):\n        return value",
            "if value is not None:\n        return str(value)",
        ),
    ),
    *of(
        "zephyr/data/keys.py",
        SHAPE_TESTS,
        (
            ('"function_call": "`tool_calls` in a turn",\n    "documents": "them in a turn",'),
            '"function_call": "`tool_calls` in a turn",',
        ),
        (
            ("elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):"),
            ("elif isinstance(value, list) and part.isdecimal() and int(part) <= len(value):"),
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
        ('"conversations",\n    "trajectory",', '"conversations",'),
        (
            'top_keys[path] = path if path in row else path.split(".")[0]',
            'top_keys[path] = path.split(".")[0]',
        ),
        (
            ("if isinstance(value, Mapping) and path in value:\n        return value[path]"),
            "if False:\n        return None",
        ),
        (
            "if plain(str(key)) in fields:\n            aside.append(key)",
            "if plain(str(key)) in fields:\n            pass",
        ),
        ("if key in used:\n            continue", "if False:\n            continue"),
        ("if top_key != path and top_key in row:", "if False:"),
        ('"system_prompt",\n    "system_message",', '"system_prompt",'),
    ),
    *of(
        "zephyr/data/sft_shapes.py",
        SHAPE_TESTS,
        ('if row.get("input") and row.get("context"):', "if False:"),
        ("    for keys in (filled, row.keys()):", "    for keys in (row.keys(),):"),
        ('roles = ("user", "assistant")', 'roles = ("assistant", "user")'),
        (
            ('answer = "response" if "response" in row and "output" not in row else "output"'),
            'answer = "output"',
        ),
        ('if "from" not in turn and any(plain(str(key)) == "role" for key in turn):', "if False:"),
        (
            "calls = calls if isinstance(calls, list) else [calls]",
            "calls = calls if isinstance(calls, list) else []",
        ),
        (
            '"instruction", "input output context response", _alpaca',
            '"instruction", "input output response", _alpaca',
        ),
        (
            'return {"role": role, "content": content, **others}',
            'return {"role": role, "content": content}',
        ),
        ('return "\\n\\n".join([question', 'return "\\n".join([question'),
        ("*(part for part in given if part.strip())", "*given"),
        ('shape("conversations", "", _sharegpt)', 'shape("conversations", "", _messages)'),
    ),
    *of(
        "zephyr/data/pair_shapes.py",
        SHAPE_TESTS,
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
        ("if better != safer:", "if False:"),
        (
            (
                'if head.strip() or len(turns) < 2 or turns[-1] != {"role": '
                '"assistant", "content": ""}:'
            ),
            "if head.strip() or len(turns) < 2:",
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
            'if given.get("tools"):\n        fields["tools"] = given["tools"]',
            'if False:\n        fields["tools"] = given["tools"]',
        ),
        ('for key in given if key not in ("messages", "tools"))', "for key in given if False)"),
        (
            '("response_0", "response_1") if better == 0 else',
            '("response_0", "response_1") if better == 1 else',
        ),
        ("if strength < 0 else", "if strength > 0 else"),
        ("margins=(float(abs(strength)),)", "margins=(float(strength),)"),
        (
            'chosen, rejected = ("A", "B") if label == 1 else ("B", "A")',
            'chosen, rejected = ("A", "B") if label == 0 else ("B", "A")',
        ),
        ('"score_chosen": row.get(f"score_{chosen}", 0),', '"score_chosen": 0,'),
        (
            'ranked = sorted(answers, key=lambda answer: answer["rank"])',
            'ranked = sorted(answers, key=lambda answer: -answer["rank"])',
        ),
        ('(float(worst["rank"] - best["rank"]),)', '(float(best["rank"] - worst["rank"]),)'),
        ("if len(answers) > 2:", "if False:"),
        ('if isinstance(messages, list) and messages == row["chosen"]:', "if False:"),
    ),
    *of(
        "zephyr/data/refusals.py",
        SHAPE_TESTS,
        ('if row.get("history") and "history" not in reads:', "if False:"),
        (
            'return f"which {BINARIZE} makes pairs of"\n    if row.keys() >= HELPSTEER:',
            'return f"which {BINARIZE} makes pairs of"\n    if False:',
        ),
        ('if row.get("weight", 1) != 1:', "if False:"),
        (
            ("return len(text) >= MIN_OVERLAP_CHARS and any(text in other for other in texts)"),
            "return False",
        ),
        (
            (
                "asked = HUMAN_MARKER.search(text)\n"
                "    return asked is not None and ASSISTANT_MARKER.search(text, "
                "asked.end()) is not None"
            ),
            (
                "asked = HUMAN_MARKER.search(text)\n"
                "    return asked is not None and ASSISTANT_MARKER.search(text) is not None"
            ),
        ),
        (
            ("if not all(_is_part(text, texts, as_word=is_choices) for text in asked if text):"),
            ("if not any(_is_part(text, texts, as_word=is_choices) for text in asked if text):"),
        ),
        (
            "if isinstance(key, str) and parse_label(key, value) is is_rejected:",
            "if isinstance(key, str) and False:",
        ),
        ("for key, value in row.items() if labelled else ():", "for key, value in row.items():"),
        ("trained = (True, 1) if MASKS.get(key, True) else (False, 0)", "trained = (True, 1)"),
        ("    if row.keys() >= HELPSTEER:\n        raise", "    if False:\n        raise"),
    ),
    *of(
        "zephyr/data/shapes.py",
        SHAPE_TESTS,
        ('for key in ("history", "tools", *SYSTEMS):', 'for key in ("history", *SYSTEMS):'),
        ('if turns[-1]["role"] != "assistant":', "if False:"),
        (
            'made = {key: row[key] for key in ("id", "tools", "weight") if key in row}',
            'made = {key: row[key] for key in ("id", "tools") if key in row}',
        ),
        ("unread += pair.unread\n", "unread += ()\n"),
        (
            "keys = unread_keys(made.get(field), field, masks=True)",
            "keys = unread_keys(made.get(field), field)",
        ),
        ("    require_one_prompt(row, reads, made)\n", ""),
        ("    require_one_prompt(row, reads, turns)\n", ""),
        ("refuse_bad_answer(row, labelled=not is_text)", "refuse_bad_answer(row, labelled=True)"),
        ("names = [*names[:first], *history_names, *names[first:]]", "names = names"),
        (
            (
                'names = [f"{field}[{i}]" for i in range(len(turns))]\n'
                "    if history:\n"
                '        first = 1 if turns[0]["role"] == "system" else 0'
            ),
            (
                'names = [f"{field}[{i}]" for i in range(len(turns))]\n'
                "    if history:\n"
                "        first = 0"
            ),
        ),
        ("if value != system:", "if False:"),
        ("(is_text or _says_nothing(row, key))", "is_text"),
        ('refuse_labelled_turn(last_turn, side, is_rejected=side == "rejected")', "pass"),
        ("unread += inside or []", "pass"),
    ),
    *of(
        "zephyr/data/encode.py",
        LOAD_TESTS,
        ('"store",\n    "text_digests",', '"store",'),
        ('"encode",\n    "folders",', '"encode",'),
        ('if split == "eval":', 'if split == "train":'),
        ("if limit is not None and limit < 1:", "if limit is not None and limit < 0:"),
        ('if options.on_bad_row not in ("error", "skip"):', "if False:"),
        ("if isinstance(specs, str) or not specs:", "if not specs:"),
        (
            "encoded_chunks(islice(rows, limit), tokenizer, options, workers)",
            "encoded_chunks(rows, tokenizer, options, workers)",
        ),
        ("if options.max_tokens < 2:", "if options.max_tokens < 0:"),
        (
            (
                "chat.encode_messages(tokenizer, turns, targets=options.targets, "
                "template=options.template)"
            ),
            "chat.encode_messages(tokenizer, turns, template=options.template)",
        ),
        ("if id in tally.places:", "if False:"),
        ('if options.on_bad_row == "error":', 'if options.on_bad_row == "skip":'),
        (
            ('cache = Path(os.environ.get("ZEPHYR_CACHE") or Path.home() / ".cache" / "zephyr")'),
            'cache = Path(None or Path.home() / ".cache" / "zephyr")',
        ),
        ('"rows",\n    "sft_shapes",', '"rows",'),
        ("same_prompt = sum(prompt in train_prompts for prompt in prompts)", "same_prompt = 0"),
        (
            "return same_prompt, same_first_turn - same_prompt",
            "return same_prompt, same_first_turn",
        ),
        (
            "train_first_turns = {_first_turn(prompt) for prompt in train_prompts}",
            "train_first_turns = train_prompts",
        ),
        (
            "parts = [repr(options), repr(limit), repr(list(entries))]",
            "parts = [repr(options), repr(list(entries))]",
        ),
        (
            "parts = [repr(options), repr(limit), repr(list(entries))]",
            "parts = [repr(limit), repr(list(entries))]",
        ),
        (
            "parts = [repr(options), repr(limit), repr(list(entries))]",
            "parts = [repr(options), repr(limit)]",
        ),
        ("parts += [source.name, source.digest]", "parts += [source.name]"),
        (
            "weight = item.example.weight * entries[item.entry].weight",
            "weight = item.example.weight",
        ),
        ("for row in islice(rows, entry.limit):", "for row in rows:"),
        ("yield row._replace(entry=number)", "yield row"),
        ("if hint is not None:", "if False:"),
        (
            "rows = len(chunk.encoded) + len(chunk.skipped) + chunk.dropped.total()",
            "rows = len(chunk.encoded) + len(chunk.skipped)",
        ),
    ),
    *of(
        "zephyr/data/report.py",
        LOAD_TESTS,
        ("if path is not None and not tally.found[name]:", "if False:"),
        (
            '        if rows:\n            yield f"  dropped, {reason}: {rows:,}"',
            '        if not rows:\n            yield f"  dropped, {reason}: {rows:,}"',
        ),
        ('for row in report["skipped"][:MAX_EXAMPLES]:', 'for row in report["skipped"][:0]:'),
        (
            "f\"{len(inverted):,} of {report['scored']:,} rows with scores, \"",
            "f\"{report['scored']:,} of {len(inverted):,} rows with scores, \"",
        ),
        ("if self.warned[warning] <= MAX_EXAMPLES:", "if self.warned[warning] < MAX_EXAMPLES:"),
        (
            "self.preference_sum += sum(item.margins) / len(item.margins)",
            "self.preference_sum += sum(item.margins)",
        ),
        ("if min(item.margins) < 0:", "if min(item.margins) <= 0:"),
        ("if min(item.margins) < 0:", "if max(item.margins) < 0:"),
        (
            'self.totals[f"{side} rows cut"] += lost > 0',
            'self.totals[f"{side} rows cut"] += lost >= 0',
        ),
        ("if not exchanged.isdisjoint(self.seen):", "if not same.isdisjoint(self.seen):"),
        (
            ("exchanged = {_ids_digest(prompt, rejected, chosen), words[0] + words[2] + words[1]}"),
            "exchanged = {words[0] + words[2] + words[1]}",
        ),
        (
            ("exchanged = {_ids_digest(prompt, rejected, chosen), words[0] + words[2] + words[1]}"),
            "exchanged = {_ids_digest(prompt, rejected, chosen)}",
        ),
        ('same = {_ids_digest(*ids), b"".join(words)}', "same = {_ids_digest(*ids)}"),
        ('same = {_ids_digest(*ids), b"".join(words)}', 'same = {b"".join(words)}'),
        ("        self.seen |= same\n", ""),
        ("for suspicion in item.suspicions:", "for suspicion in ():"),
        (
            "            if item.example.weight != 1:",
            "            if item.example.weight > 1:",
        ),
        (
            (
                'mean_preference = tally.preference_sum / totals["scored"] if '
                'totals["scored"] else None'
            ),
            (
                'mean_preference = tally.preference_sum / totals["examples"] if '
                'totals["scored"] else None'
            ),
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
            'return "" if found is None or found[1].startswith("train") else found[1]',
            'return "" if found is None else found[1]',
        ),
        ("found = SPLIT.search(source.split.lower())", "found = SPLIT.search(source.name.lower())"),
        (
            "if os.path.isfile(path):\n        if split is not None:",
            "if os.path.isfile(path):\n        if False:",
        ),
        ('return "/".join(filter(None, (folder, split, path.name)))', "return path.name"),
        (
            'return "/".join(filter(None, (folder, split, path.name)))',
            'return "/".join(filter(None, (parent, split, path.name)))',
        ),
        ("while block := file.read(1 << 20):", "if block := file.read(1 << 20):"),
        ("if count == 0:", "if False:"),
        ("if len(line) > MAX_LINE_BYTES:", "if len(line) >= MAX_LINE_BYTES:"),
        (
            'yield RawRow(f"{path}:{number}", f"{name}:{number}", line)',
            'yield RawRow(f"{path}:{number}", f"{path}:{number}", line)',
        ),
        (
            'if not begin.removeprefix(b"\\xef\\xbb\\xbf").lstrip().startswith(b"["):',
            'if not begin.lstrip().startswith(b"["):',
        ),
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
            "return Source(name, dataset._fingerprint, rows, split, len(dataset))",
            "return Source(name, name, rows, split, len(dataset))",
        ),
        ('if re.search("[\\ud800-\\udfff]", name):', "if False:"),
        ("if len(set(names)) < len(names):", "if False:"),
        ('folder = parent if SPLIT_FOLDER.fullmatch(parent) else ""', "folder = parent"),
        (
            ("except (EOFError, OSError, zlib.error, UnicodeDecodeError, OverflowError) as error:"),
            "except (OSError, zlib.error, UnicodeDecodeError, OverflowError) as error:",
        ),
        (
            ("except (EOFError, OSError, zlib.error, UnicodeDecodeError, OverflowError) as error:"),
            "except (EOFError, OSError, UnicodeDecodeError, OverflowError) as error:",
        ),
        (
            "while line := file.readline(MAX_LINE_BYTES + 1):\n        number += 1",
            (
                "while line := file.readline(MAX_LINE_BYTES + 1):\n"
                "        number += bool(line.strip())"
            ),
        ),
        (
            ("for number, line in enumerate(_json_lines(path, _read_all(path, file)), start=1):"),
            "for number, line in enumerate(_json_lines(path, _read_all(path, file))):",
        ),
    ),
    *of(
        "zephyr/data/parquet.py",
        (
            ("tests/data/test_hostile_rows.py::test_parquet_rows_are_those_that_were_written"),
            "tests/data/test_data_sources.py::test_damaged_or_missing_source",
        ),
        ("if bytes_R[start] > MAX_ROW_BYTES:", "if False:"),
        ("if most_values > MAX_VALUES:", "if False:"),
        ("row {rows_before + start + 1}: the row holds", "row {start + 1}: the row holds"),
        ("            rows_before += len(batch)\n", ""),
        ("except ArrowException as error:", "except ZeroDivisionError as error:"),
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
                'files = sorted(path for path in folder.rglob("*") if '
                "path.is_file() and data_suffix(path))"
            ),
        ),
        (
            "return [(path, split) for path in files if splits[path] == split]",
            "return [(path, split) for path in files if splits[path] != split]",
        ),
        (
            (
                "parted = any(map(split_in_name, names)) or "
                "any(SHARD.search(path.name) for path in files)"
            ),
            (
                "parted = all(map(split_in_name, names)) or "
                "any(SHARD.search(path.name) for path in files)"
            ),
        ),
        (
            (
                "parted = any(map(split_in_name, names)) or "
                "any(SHARD.search(path.name) for path in files)"
            ),
            "parted = any(map(split_in_name, names))",
        ),
        ("files = sorted(", "files = list("),
        (
            (
                'name = "/".join(part for part in parts if part != "data" and not '
                'split_in_name(part)) or "."'
            ),
            'name = "/".join(part for part in parts if not split_in_name(part)) or "."',
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
                "        name for name in names if named and split_in_name(name) "
                "== SPLIT_ALIASES.get(named, named)\n"
                "    ]"
            ),
            "alike = [name for name in names if named and split_in_name(name) == named]",
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
                'made[name] = Config(splits, root, config.get("default") is True '
                'or name == "default")'
            ),
            'made[name] = Config(splits, root, config.get("default") is True)',
        ),
        (
            (
                'made[name] = Config(splits, root, config.get("default") is True '
                'or name == "default")'
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
            'spec = f"{folder}:{subset}" if len(configs) > 1 else str(folder)',
            'spec = f"{folder}:{subset}" if len(configs) > 2 else str(folder)',
        ),
        ("if not found:", "if False:"),
        (
            'return {"train": [_inside(pattern, where) for pattern in patterns]}',
            'return {"default": [_inside(pattern, where) for pattern in patterns]}',
        ),
        ("if split in splits:\n            raise", "if False:\n            raise"),
        (
            "splits[split] = [_inside(path, where) for path in paths]",
            "splits[split] = [_inside(path, where) for path in paths[:1]]",
        ),
        (
            "if named is None or not splits_of_default or named in splits_of_default:",
            "if named is None:",
        ),
        ("if len(configs) == 1:\n        return", "if False:\n        return"),
        (
            "names = sorted(glob.glob(pattern, root_dir=root, recursive=True))",
            "names = sorted(glob.glob(pattern, root_dir=root, recursive=False))",
        ),
        (
            "names = sorted(glob.glob(pattern, root_dir=root, recursive=True))",
            "names = list(glob.glob(pattern, root_dir=root, recursive=True))",
        ),
        ("            if not paths:\n", "            if False:\n"),
        (
            "found.update(dict.fromkeys(path for path in paths if data_suffix(path)))",
            "found.update(dict.fromkeys(paths))",
        ),
    ),
    *of(
        "zephyr/data/text_digests.py",
        ("tests/data/test_text_digests.py",),
        (
            'parts.append([turn["role"], without_space(str(turn["content"])), rest])',
            'parts.append([without_space(str(turn["content"])), rest])',
        ),
        (
            'parts.append([turn["role"], without_space(str(turn["content"])), rest])',
            'parts.append([turn["role"], str(turn["content"]), rest])',
        ),
        (
            'parts.append([turn["role"], without_space(str(turn["content"])), rest])',
            'parts.append([turn["role"], without_space(str(turn["content"]))])',
        ),
        ('if k not in ("role", "content", "train")}', 'if k not in ("role", "content")}'),
        (
            'without_space(str(turn["content"])).casefold() for',
            'without_space(str(turn["content"])) for',
        ),
        (
            'without_space(str(turn["content"])).casefold() for',
            'without_space(str(turn["content"])).lower() for',
        ),
        (
            'for turn in turns if turn["role"] == "user"',
            'for turn in turns if turn["role"] != "assistant"',
        ),
        (
            'for turn in turns if turn["role"] == "user"',
            'for turn in turns if turn["role"] not in ("system", "tool")',
        ),
        (
            'without_space(str(turn["content"])).casefold() for',
            'str(turn["content"]).casefold() for',
        ),
        ("return _digest(texts[:1]) + _digest(texts)", "return _digest(texts) + _digest(texts)"),
        (
            "return _digest(texts[:1]) + _digest(texts)",
            "return _digest(texts[:1]) + _digest(texts[:1])",
        ),
        (
            "return _digest(texts[:1]) + _digest(texts)",
            "return _digest(texts[-1:]) + _digest(texts)",
        ),
        (
            "return _digest(texts[:1]) + _digest(texts)",
            "return _digest(texts[:1]) + _digest(sorted(texts))",
        ),
        (
            "written = json.dumps(value, sort_keys=True, default=str)",
            "written = json.dumps(value, default=str)",
        ),
        (
            "written = json.dumps(value, sort_keys=True, default=str)",
            "written = json.dumps(value, sort_keys=True)",
        ),
        (
            "written = json.dumps(value, sort_keys=True, default=str)",
            "written = json.dumps(value, sort_keys=True, default=lambda value: None)",
        ),
    ),
    *of(
        "zephyr/data/store.py",
        (
            "tests/data/test_data.py::test_sft_shapes",
            "tests/data/test_data.py::test_cache_is_of_these_rows_and_options",
            "tests/data/test_data.py::test_a_damaged_cache_is_encoded_again",
            "tests/data/test_data.py::test_of_two_that_make_an_entry_the_first_wins",
            "tests/data/test_data.py::test_the_key_of_an_entry_is_of_all_that_makes_it",
            "tests/data/test_data.py::test_a_digest_of_examples_is_of_all_of_them",
            ("tests/data/test_data_sources.py::test_every_kind_of_file_gives_the_same_pairs"),
            "tests/data/test_data_fields.py::test_weights_are_kept",
        ),
        ('("weight", pa.float64()),', '("weight", pa.float16()),'),
        ("if os.path.lexists(entry):", "if entry.is_dir():"),
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
            "except OSError:\n        if not find_damage(entry):\n            return",
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
            "damaged.unlink()\n        shutil.rmtree(damaged, ignore_errors=True)",
            "damaged.unlink()",
        ),
        ("vocabulary,\n        repr(tokenizer.special_tokens_map),", "vocabulary,"),
        ("vocabulary,", '"",'),
        ('version("transformers"),\n        version("tokenizers"),', 'version("transformers"),'),
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
                "if pa.types.is_list(chunk.type):  # lengths, then values, "
                "whatever buffers they lie in\n"
                "                digest.update(pc.list_value_length(chunk).to"
                "_numpy().tobytes())"
            ),
            (
                "if pa.types.is_list(chunk.type):  # lengths, then values, "
                "whatever buffers they lie in"
            ),
        ),
        (
            (
                "if pa.types.is_string(chunk.type):\n"
                "                digest.update(repr(chunk.to_pylist()).encode"
                '("utf-8", "surrogatepass"))'
            ),
            "if pa.types.is_string(chunk.type):",
        ),
        (
            (
                "chunk = chunk.flatten()\n"
                "            digest.update(chunk.to_numpy(zero_copy_only=False).tobytes())"
            ),
            "chunk = chunk.flatten()",
        ),
        (
            'self.chosen_tokens = _lengths(table, "chosen_ids")',
            'self.chosen_tokens = _lengths(table, "rejected_ids")',
        ),
        (
            'self.rejected_tokens = _lengths(table, "rejected_ids")',
            'self.rejected_tokens = _lengths(table, "prompt_ids")',
        ),
        (
            "columns.append([sum(text.is_target) for text",
            "columns.append([len(text.is_target) for text",
        ),
        (
            "    damage = find_damage(entry)\n",
            "    damage = None if entry.is_dir() else find_damage(entry)\n",
        ),
        ("shutil.rmtree(part, ignore_errors=True)", "pass"),
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
        (
            ("out.parent.mkdir(parents=True, exist_ok=True)\n    except OSError as error:"),
            (
                "out.parent.mkdir(parents=True, exist_ok=True)\n"
                "    except FileNotFoundError as error:"
            ),
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
        ("for file in (out, report_path(out)):", "for file in (out,):"),
        (
            "if not used.isdisjoint((file.resolve(), *file.resolve().parents)):",
            "if not used.isdisjoint((file.resolve(),)):",
        ),
        (
            "if not used.isdisjoint((file.resolve(), *file.resolve().parents)):",
            "if not used.isdisjoint((file, *file.parents)):",
        ),
        ("if file.is_dir():", "if False:"),
        (
            ('used.add(Path(path if os.path.exists(path) else path.partition(":")[0]).resolve())'),
            "used.add(Path(path).resolve())",
        ),
        (
            ('used.add(Path(path if os.path.exists(path) else path.partition(":")[0]).resolve())'),
            'used.add(Path(path.partition(":")[0]).resolve())',
        ),
        ("path = os.path.expanduser(source)", "path = str(source)"),
        (
            "if rank():\n        return sum(1 for _ in rows)",
            "if False:\n        return sum(1 for _ in rows)",
        ),
        (
            "                count += 1\n    except OSError as error:",
            "                count += 1\n    except FileNotFoundError as error:",
        ),
        ("                count += 1\n", "                count += 0\n"),
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
            "names = {name: proto.pieces[i].piece for name, i in ids.items() if i >= 0}",
            "names = {name: proto.pieces[i].piece for name, i in ids.items() if i > 0}",
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
                "vocab=ids, merges=_merges(proto), unk_token=unknown, "
                "fuse_unk=True, byte_fallback=False"
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
                'tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " '
                '"), decoders.Fuse(), *strip])'
            ),
        ),
        (
            ('elif chosen == "model":\n        tokenizer.chat_template = own_template(tokenizer)'),
            'elif chosen == "model":\n        pass',
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
            "tests/data/test_data.py::test_suspicions_are_of_every_side_but_of_no_tool",
            "tests/data/test_data.py::test_names_and_keys_as_the_row_has_them",
            "tests/data/test_data.py::test_a_row_nested_too_deeply_is_left_out",
            "tests/data/test_data_fields.py::test_weights_are_kept",
            ("tests/data/test_data_fields.py::test_a_tools_result_is_in_the_prompt_and_no_target"),
            "tests/data/test_data_shapes.py::test_ties_are_counted",
            "tests/chat/test_templates.py::test_rows_are_cut_as_pairs_are",
            "tests/data/test_hostile_rows.py::test_white_space_is_no_preference",
        ),
        ("first = list(islice(chunks, 2))", "first = list(islice(chunks, 2))[:1]"),
        ("yield waiting.popleft().result()", "yield waiting.pop().result()"),
        ('dropped[f"a tie: {tie}"] += 1', "skipped.append((row.place, str(tie)))"),
        ("dropped[str(same)] += 1", "pass"),
        ("except (ValueError, RecursionError) as error:", "except ValueError as error:"),
        ("any(example.is_target)", "all(example.is_target)"),
        (
            ("fields, found, unread = select(check_row(row.value), dict(options.columns))"),
            "fields, found, unread = select(check_row(row.value), {})",
        ),
        (
            "bos_id=chat.template_bos(tokenizer, options.template),",
            "bos_id=tokenizer.bos_token_id,",
        ),
        (
            "max_tokens=sys.maxsize,\n            targets=options.targets,",
            "max_tokens=sys.maxsize,",
        ),
        (
            (
                "for chunk in chain(first, chunks):\n"
                "            yield _encode_chunk(tokenizer, options, chunk)"
            ),
            ("for chunk in first:\n            yield _encode_chunk(tokenizer, options, chunk)"),
        ),
        (
            "        for future in waiting:\n            yield future.result()",
            "        for future in ():\n            yield future.result()",
        ),
        ("useful = any(example.is_target)", "useful = all(example.is_target)"),
        ("useful = example.chosen_ids != example.rejected_ids", "useful = True"),
        (
            '{**row, "id": id},\n        template=options.template',
            "row,\n        template=options.template",
        ),
        (
            "        left_out=unread,\n        encoding=options.encoding,",
            "        encoding=options.encoding,",
        ),
        ("len(whole.prompt_ids) - len(pair.prompt_ids),", "0,"),
        ("tools=made.tools,", "tools=None,"),
        ("            names=made.names,\n", ""),
        (
            "example=EncodedText(id, whole.ids[:limit], whole.is_target[:limit]),",
            "example=EncodedText(id, whole.ids[-limit:], whole.is_target[-limit:]),",
        ),
        (
            "truncated_tokens=(max(len(whole.ids) - limit, 0),),",
            "truncated_tokens=(len(whole.ids) - limit,),",
        ),
        ("str(key)[:MAX_KEY_CHARS].encode", "str(key).encode"),
        (
            '_suspicions(row.get(field) for field in ("prompt", "chosen", "rejected"))',
            '_suspicions(row.get(field) for field in ("prompt", "chosen"))',
        ),
        (
            (
                'turn["content"] for turn in turns if turn.get("role") != "tool" '
                'and "content" in turn'
            ),
            'turn["content"] for turn in turns if "content" in turn',
        ),
        ("            targets=options.targets,\n", ""),
    ),
]
