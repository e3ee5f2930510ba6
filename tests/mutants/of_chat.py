"""The faults of `zephyr/chat/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/chat/eras.py",
        ("tests/chat/test_eras.py",),
        ("[*turns, answer][1:]", "[answer]"),
        ("start = len(alone_ids) - (ids[: len(alone_ids)] != alone_ids)", "start = len(ids)"),
        ("if template not in (HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE):", "if not template:"),
    ),
    *of(
        "zephyr/chat/encode.py",
        ("tests/chat/test_eras.py",),
        ("left = max_tokens - max_prompt_tokens\n", "left = max_tokens - len(prompt)\n"),
    ),
    *of(
        "zephyr/chat/encode.py",
        (
            "tests/data/test_chat_rows.py",
            "tests/data/test_encode.py",
            (
                "tests/data/test_data_fields.py::test_marks_of_a_template_inside_an_answe"
                "r_are_the_answers"
            ),
        ),
        (
            "if len(prompt) + longest_answer <= max_tokens:",
            "if len(prompt) + longest_answer < max_tokens:",
        ),
        (
            "if len(prompt) + longest_answer <= max_tokens:",
            "if len(prompt) + len(pair.chosen_ids) <= max_tokens:",
        ),
        ("kept_bos = prompt[:1] if keeps_bos else []", "kept_bos = []"),
        ("kept_bos = prompt[:1] if keeps_bos else []", "kept_bos = prompt[:1]"),
        (
            ("prompt = kept_bos + prompt[len(prompt) - max_prompt_tokens + len(kept_bos) :]"),
            "prompt = kept_bos + prompt[len(kept_bos) : max_prompt_tokens]",
        ),
        (
            (
                "prompt_ids=prompt, chosen_ids=pair.chosen_ids[:left], rejected_ids=pair.reject"
                "ed_ids[:left]"
            ),
            (
                "prompt_ids=prompt,\n"
                "        chosen_ids=pair.chosen_ids[-left:],\n"
                "        rejected_ids=pair.rejected_ids[-left:],"
            ),
        ),
        (
            "if not 2 <= max_prompt_tokens < max_tokens:",
            "if not 2 <= max_prompt_tokens <= max_tokens:",
        ),
        (
            (
                "for answer, name in ((texts.chosen, texts.names[-2]), (texts.rejected, "
                "texts.names[-1])):"
            ),
            (
                "for answer, name in ((texts.rejected, texts.names[-1]), (texts.chosen, "
                "texts.names[-2])):"
            ),
        ),
        ("return [*ids, _eos_id(tokenizer)], end + len(eos)", "return ids, end + len(eos)"),
        (
            "parts.append((answer_ids, turn in trained))",
            "parts += [(answer_ids[:-1], turn in trained), (answer_ids[-1:], False)]",
        ),
        ('parts.append((between_ids, targets == "all"))', "parts.append((between_ids, True))"),
        (
            ("        if not done:\n            between_ids = _with_bos("),
            ("        if True:\n            between_ids = _with_bos("),
        ),
        ('parts.append((rest_ids, targets == "all"))', "parts.append((rest_ids, True))"),
        (
            ("is_target = [flag for part, flag in parts for _ in part]\n    is_target[0] = False"),
            "is_target = [flag for part, flag in parts for _ in part]",
        ),
        (
            "return EncodedText(id, ids[:max_tokens], is_target[:max_tokens])",
            "return EncodedText(id, ids[-max_tokens:], is_target[-max_tokens:])",
        ),
        ("ids = [*ids, _eos_id(tokenizer)][:max_tokens]", "ids = ids[:max_tokens]"),
        (
            "return EncodedText(id, ids, [False] + [True] * (len(ids) - 1))",
            "return EncodedText(id, ids, [True] * len(ids))",
        ),
        (
            "return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]",
            "return ids if bos_id is None else [bos_id, *ids]",
        ),
        ("return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]", "return ids"),
        ("while specials.search(text):", "while False:"),
        (
            'NO_CHARACTER = re.compile("[\\ufdd0\\ud800-\\udfff]")',
            'NO_CHARACTER = re.compile("[\\ufdd0]")',
        ),
        ("if first and first[0] != eos:", "if False:"),
        ("within = end > 0 and _ends_with_eos(tokenizer, template, eos)", "within = end > 0"),
        ("if within and until is not None:", "if False:"),
        ("return end_of_turn_token(tokenizer, template) == eos", "return True"),
        ("if first is None or end < 0:", "if False:"),
        (
            (
                "apart = ids[: len(context_ids)] == context_ids and "
                'specials.split(context)[-1] != ""'
            ),
            'apart = specials.split(context)[-1] != ""',
        ),
        (
            'turns = _spell_out(tokenizer, check_messages(messages, last="user"))',
            "turns = _spell_out(tokenizer, check_messages(messages))",
        ),
        (
            ("text = render(tokenizer, turns, template, answer=True, tools=tools)\n    return"),
            ("text = render(tokenizer, turns, template, answer=False, tools=tools)\n    return"),
        ),
    ),
    *of(
        "zephyr/chat/names.py",
        ("tests/chat/test_names.py",),
        (
            'return re.sub(r"[-_\\s./\\[\\]]+", "_", parted).lower().strip("_") or key',
            'return re.sub(r"[-_\\s/\\[\\]]+", "_", parted).lower().strip("_") or key',
        ),
        (
            (
                'parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", '
                '"_", key.strip())'
            ),
            ('parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=[0-9])", "_", key.strip())'),
        ),
        (
            'return re.sub(r"[-_\\s./\\[\\]]+", "_", parted).lower().strip("_") or key',
            'return re.sub(r"[-_\\s./\\[\\]]+", "_", parted).strip("_") or key',
        ),
        ("if name in other and other[name] != value:", "if False:"),
        (
            "return None if None in parsed or not parsed else all(parsed)",
            "return None if None in parsed or not parsed else any(parsed)",
        ),
        ("return None if good is None else good == LABELS[name]", "return good"),
        (
            ("return SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None"),
            "return SPEAKERS.get(speaker.strip()) if isinstance(speaker, str) else None",
        ),
        (
            'message = message.replace(f"`{name}`", f"`{spelling}`")',
            'message.replace(f"`{name}`", f"`{spelling}`")',
        ),
        ("**dict.fromkeys(LABELS_OF_BAD, False)", "**dict.fromkeys(LABELS_OF_BAD, True)"),
        ("**dict.fromkeys(NOT_TRAINED, False)", "**dict.fromkeys(NOT_TRAINED, True)"),
    ),
    *of(
        "zephyr/chat/template.py",
        (
            "tests/chat/test_chat.py::test_template_renders_as_zephyrs",
            "tests/chat/test_chat.py::test_template_by_name_file_and_error",
            ("tests/chat/test_templates.py::test_the_export_renders_the_ids_of_training"),
            "tests/chat/test_templates.py::test_auto_is_the_models_own_else_zephyrs",
            ("tests/chat/test_templates.py::test_a_stopped_clock_writes_the_day_and_nothing_else"),
            (
                "tests/chat/test_templates.py::test_what_a_template_may_write_grows_with_"
                "what_it_is_given"
            ),
            ("tests/chat/test_templates.py::test_whatever_a_template_raises_is_a_refusal"),
            "tests/data/test_hostile_rows.py::test_a_template_that_multiplies_text",
            (
                "tests/data/test_data_fields.py::test_tools_reach_the_ids_where_the_templ"
                "ate_writes_them"
            ),
            ("tests/data/test_data_lost.py::test_the_tokenizers_own_template_is_the_default"),
        ),
        (
            (
                "\"{% if messages[0]['role'] != 'system' %}\\n{{ '<|system|>\\n' + "
                'eos_token }}\\n{% endif %}\\n"'
            ),
            (
                "\"{% if messages[0]['role'] == 'system' %}\\n{{ '<|system|>\\n' + "
                'eos_token }}\\n{% endif %}\\n"'
            ),
        ),
        (
            "\"{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\\n{% endif %}\\n\"",
            "\"{{ '<|assistant|>\\n'  + message['content'] }}\\n{% endif %}\\n\"",
        ),
        (
            "\"{{ '<|system|>\\n' + message['content'] + eos_token }}\\n\"",
            "\"{{ '<|user|>\\n' + message['content'] + eos_token }}\\n\"",
        ),
        (
            (
                "\"{% if loop.last and add_generation_prompt %}\\n{{ '<|assistant|>' "
                '}}\\n{% endif %}\\n"'
            ),
            (
                "\"{% if loop.last and add_generation_prompt %}\\n{{ '<|user|>' }}\\n{% "
                'endif %}\\n"'
            ),
        ),
        (
            (
                "\"{% if loop.last and add_generation_prompt %}\\n{{ '<|assistant|>' "
                '}}\\n{% endif %}\\n"'
            ),
            "\"{% if add_generation_prompt %}\\n{{ '<|assistant|>' }}\\n{% endif %}\\n\"",
        ),
        ('own = own.get("default")', "own = next(iter(own.values()))"),
        (
            "return template or own_template(tokenizer) or ZEPHYR_TEMPLATE",
            "return template or ZEPHYR_TEMPLATE",
        ),
        (
            "return template or own_template(tokenizer) or ZEPHYR_TEMPLATE",
            "return own_template(tokenizer) or template or ZEPHYR_TEMPLATE",
        ),
        ("tools=tools,", "tools=None,"),
        ("add_generation_prompt=answer,", "add_generation_prompt=True,"),
        (
            ('limit = MAX_RENDERED_CHARS + MAX_RENDERED_RATIO * len(f"{messages}{tools}")'),
            "limit = MAX_RENDERED_CHARS",
        ),
        (
            ('limit = MAX_RENDERED_CHARS + MAX_RENDERED_RATIO * len(f"{messages}{tools}")'),
            'limit = MAX_RENDERED_RATIO * len(f"{messages}{tools}")',
        ),
        (
            ('limit = MAX_RENDERED_CHARS + MAX_RENDERED_RATIO * len(f"{messages}{tools}")'),
            'limit = MAX_RENDERED_CHARS + MAX_RENDERED_RATIO * len(f"{messages}")',
        ),
        ("MAX_RENDERED_RATIO = 8\n", "MAX_RENDERED_RATIO = 800\n"),
        (
            "except refusals as error:",
            "except (TemplateError, MemoryError, ValueError, RecursionError) as error:",
        ),
        ("if CLOCK not in template or FROZEN_DATE.search(template):", "if CLOCK not in template:"),
        (
            'f".replace({json.dumps(name)}, {json.dumps(day.strftime(name))})"',
            ('f".replace({json.dumps(name)}, {json.dumps(date.today().strftime(name))})"'),
        ),
        ('for dash in ("", "-") for letter', 'for dash in ("",) for letter'),
        (' for letter in LETTERS] + ["%%"]', " for letter in LETTERS]"),
        (
            "return date.fromisoformat(found[1]) if found else None",
            "return date.today() if found else None",
        ),
        ('return FROZEN_DATE.sub("", template, count=1)', "return template"),
    ),
    *of(
        "zephyr/chat/messages.py",
        (
            "tests/chat/test_names.py",
            "tests/data/test_chat_rows.py",
            (
                "tests/data/test_data_fields.py::test_tools_reach_the_ids_where_the_templ"
                "ate_writes_them"
            ),
            "tests/data/test_data_fields.py::test_masked_turns_are_no_targets",
            (
                "tests/data/test_data_fields.py::test_what_zephyrs_template_has_no_place_"
                "for_is_named"
            ),
            "tests/data/test_data_fields.py::test_a_turn_unread_is_told",
            "tests/data/test_hostile_rows.py::test_white_space_is_no_preference",
        ),
        (
            'TEMPLATE_KEYS = ("tool_calls", "tool_call_id", "name", *THINKING)',
            'TEMPLATE_KEYS = ("tool_calls", "tool_call_id", *THINKING)',
        ),
        (
            'THINKING = ("reasoning_content", "reasoning", "thinking")',
            'THINKING = ("reasoning_content", "thinking")',
        ),
        (
            ('"function_calls": "`tool_calls`",\n    "functions": "the row\'s `tools`",'),
            '"functions": "the row\'s `tools`",',
        ),
        (
            ('"functions": "the row\'s `tools`",\n    "prefix": "a whole turn",'),
            '"functions": "the row\'s `tools`",',
        ),
        (
            'TRANSCRIPT = re.compile(r"\\s*Human:.*\\n\\s*Assistant:", re.DOTALL)',
            'TRANSCRIPT = re.compile(r"\\s*Human:.*\\n\\s*Assistant:")',
        ),
        ("if first == len(turns):", "if not turns:"),
        ("    _check_order(turns, first, field)\n", ""),
        (
            'found = "user" if turns[-1]["role"] == "tool" else turns[-1]["role"]',
            'found = turns[-1]["role"]',
        ),
        ("turns = before + turns\n", "turns = turns + before\n"),
        (
            'return _without_masks(check_messages(turns, "prompt", last="user"))',
            'return check_messages(turns, "prompt", last="user")',
        ),
        (
            ("        if before:\n            raise ValueError("),
            ("        if False:\n            raise ValueError("),
        ),
        ("if chosen_prompt != rejected_prompt:", "if len(chosen_prompt) != len(rejected_prompt):"),
        ("if both[0] == both[1]:", 'if both[0]["content"] == both[1]["content"]:'),
        ('return "".join(text.split())', 'return " ".join(text.split())'),
        (
            (
                'field = "prompt" if prompt is not None and len(prompt) == '
                'len(chosen_prompt) else "chosen"'
            ),
            'field = "prompt"',
        ),
        ('f"history[{i // 2}][{i % 2}]"', 'f"history[{i % 2}][{i // 2}]"'),
        ('if system is None or system == "":', "if system is None:"),
        (
            ('return [{"role": "system", "content": system}, *turns], ["system", *names]'),
            'return [{"role": "system", "content": system}, *turns], names',
        ),
        ('if turns[0]["content"] != system:', "if not system:"),
        (
            (
                "isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for "
                "text in value)"
            ),
            "isinstance(value, list) and all(isinstance(text, str) for text in value)",
        ),
        (
            (
                'turns.append({"role": "user", "content": question})\n'
                '        turns.append({"role": "assistant", "content": answer})'
            ),
            (
                'turns.append({"role": "user", "content": answer})\n'
                '        turns.append({"role": "assistant", "content": question})'
            ),
        ),
        ("if isinstance(tools, str) and tools.strip():", "if False:"),
        (
            (
                'function = tool.get("function", tool)\n'
                "        if not isinstance(function, Mapping) or not "
                'isinstance(function.get("name"), str):'
            ),
            (
                'function = tool.get("function", tool)\n'
                "        if not isinstance(function, Mapping):"
            ),
        ),
        ("for read in (json.loads, ast.literal_eval):", "for read in (json.loads,):"),
        (
            "return bool(value) and all(map(_are_turns, value))",
            "return all(map(_are_turns, value))",
        ),
        (
            'for speaker, words in (("role", "content"), ("from", "value")):',
            'for speaker, words in (("role", "content"),):',
        ),
        ('last = i == len(turns) - 1 and field != "prompt"', "last = i == len(turns) - 1"),
        (
            'if role != "tool" and not words_of(turn).strip() and not calls:',
            "if not words_of(turn).strip() and not calls:",
        ),
        (
            'expected = {"tool"} if role == "assistant" and calls else AFTER[role]',
            'expected = {"tool", "user"} if role == "assistant" and calls else AFTER[role]',
        ),
        ('"tool": {"tool", "assistant"},', '"tool": {"assistant"},'),
        (
            'return value is None or (optional and value in ([], "", {}, False))',
            "return value is None",
        ),
        ('for key in ("tool_calls", *THINKING):', 'for key in ("tool_calls",):'),
        (
            ('if key in given and (checked["role"] in ("assistant", "tool") or key in THINKING):'),
            'if key in given and (checked["role"] == "assistant" or key in THINKING):',
        ),
        ("arguments = json.loads(arguments)", "pass"),
        (
            (
                'checked.append({**call, "function": with_object} if "function" in call else wi'
                "th_object)"
            ),
            "checked.append(with_object)",
        ),
        (
            "if type(value) not in (bool, int, float) or value not in (0, 1):",
            "if type(value) not in (bool, int, float) or False:",
        ),
        ('if turns[-1].get("train", True) is False:', "if False:"),
        (
            ("same = prompt[0] in turns if loose and len(prompt) == 1 else prompt == turns[:-1]"),
            "same = prompt[0] in turns",
        ),
        (
            ("same = prompt[0] in turns if loose and len(prompt) == 1 else prompt == turns[:-1]"),
            "same = prompt == turns[:-1]",
        ),
        (
            ("same = prompt[0] in turns if loose and len(prompt) == 1 else prompt == turns[:-1]"),
            "same = prompt[0] in turns if loose else prompt == turns[:-1]",
        ),
        ('    name = f"{field}[0]"\n', '    name = f"{field}[1]"\n'),
        (
            'if name in ("name", "tool_call_id") and speaker not in ("assistant", "tool"):',
            "if False:",
        ),
        ("if masks and name in MASKS and not last:", "if False:"),
        ("if len(answers) > 1:", "if False:"),
        ("if prompt and _is_one_answer(side):", "if _is_one_answer(side):"),
    ),
    *of(
        "zephyr/chat/template_check.py",
        (
            ("tests/data/test_data_fields.py::test_a_tools_result_is_in_the_prompt_and_no_target"),
            (
                "tests/data/test_data_fields.py::test_what_zephyrs_template_has_no_place_"
                "for_is_named"
            ),
            ("tests/data/test_data_fields.py::test_a_template_that_leaves_anything_out_is_seen"),
            "tests/data/test_data_fields.py::test_a_call_may_hold_any_json",
            ("tests/data/test_data_fields.py::test_a_template_that_refuses_another_value_reads_it"),
            (
                "tests/data/test_data_fields.py::test_a_result_that_the_text_holds_by_cha"
                "nce_is_not_written"
            ),
            ("tests/data/test_data_fields.py::test_words_on_either_side_of_a_thought_are_not_lost"),
            (
                "tests/data/test_data_fields.py::test_thoughts_are_trained_where_the_temp"
                "late_writes_them"
            ),
            ("tests/data/test_data_fields.py::test_a_call_without_words_has_none_to_write"),
            ("tests/data/test_data_lost.py::test_words_beside_a_call_are_not_those_of_the_call"),
            "tests/chat/test_thoughts.py",
        ),
        (
            "SHORT = 20  # characters that a template's own words may hold by chance",
            "SHORT = 0  # characters that a template's own words may hold by chance",
        ),
        (
            'THOUGHT = re.compile(r"\\s*<think>.*?\\S.*?</think>.*", re.DOTALL)',
            'THOUGHT = re.compile(r"\\s*<think>.*?\\S.*?</think>.*")',
        ),
        ("for n in range(0, len(parts), 2):", "for n in range(2, len(parts), 2):"),
        ("for n in range(0, len(parts), 2):", "for n in range(0, len(parts) - 1, 2):"),
        (
            "plain = template.endswith(HANDBOOK_TEMPLATE)  # so does ZEPHYR_TEMPLATE",
            "plain = template == HANDBOOK_TEMPLATE  # so does ZEPHYR_TEMPLATE",
        ),
        ("if change.needed:", "if change.needed and change.where is not None:"),
        ("        return True", "        return False"),
        (
            'yield TurnChange("content", "", other, not thought or trained, thought)',
            'yield TurnChange("content", "", other, True, thought)',
        ),
        (
            'yield TurnChange("content", "", other, not thought or trained, thought)',
            'yield TurnChange("content", "", other, not thought, thought)',
        ),
        ('for key in ("name", "tool_call_id"):', 'for key in ("name",):'),
        (
            'call, each=("arguments",), needed=("name", "arguments")',
            'call, each=("arguments",), needed=("name",)',
        ),
        (
            'call, each=("arguments",), needed=("name", "arguments")',
            'call, each=(), needed=("name", "arguments")',
        ),
        ("    if tools is None or first > 0:\n", "    if True:\n"),
        (
            (
                "for part, needed, value in _of_function(\n"
                '            tool, each=(), needed=("name", "description", "parameters")\n'
                "        ):"
            ),
            (
                'for part, needed, value in _of_function(tool, each=(), needed=("name", '
                '"parameters")):'
            ),
        ),
        ('return "tool_calls" in turn and turn["content"] != ""', "return False"),
        ("found = text.find(words, at)", "found = text.find(words)"),
        ("at = found + len(words)", "at = found"),
        (("    if not inside:\n        return\n"), "    return\n"),
        ("if isinstance(value, bool) or value is None:", "if isinstance(value, bool):"),
        (
            'if turn["role"] == "assistant" and (MARK.search(words) or not plain):',
            'if turn["role"] == "assistant" and MARK.search(words):',
        ),
        (
            'if turn["role"] == "assistant" and (MARK.search(words) or not plain):',
            'if turn["role"] == "assistant" and not plain:',
        ),
        (
            'thought = parts[n + 1 : n + 2] == ["</think>"]',
            'thought = parts[n - 1 : n] == ["<think>"]',
        ),
        ("for at in dict.fromkeys((end, begin, (begin + end) // 2)):", "for at in (end,):"),
        (
            "for at in dict.fromkeys((end, begin, (begin + end) // 2)):",
            "for at in (begin, (begin + end) // 2):",
        ),
        ("for at in dict.fromkeys((end, begin, (begin + end) // 2)):", "for at in (begin, end):"),
        (
            'if turn["role"] == "system" or (trained and "tool_calls" not in turn):',
            'if turn["role"] == "system" or False:',
        ),
        (
            "if not refused and _changes_text(tokenizer, change, template, text):",
            "if _changes_text(tokenizer, change, template, text):",
        ),
        ('left_out[re.sub(r"\\[\\d+\\]", "[]", name)] = None', "pass"),
        (
            'elif turn["role"] == "tool" or _may_be_chance(turn, trained):',
            "elif _may_be_chance(turn, trained):",
        ),
        ("elif not plain:", "elif False:"),
        (
            'elif turn["role"] == "tool" or _may_be_chance(turn, trained):',
            'elif turn["role"] == "tool":',
        ),
        ('yield TurnChange(key, "", other, trained)', 'yield TurnChange(key, "", other, False)'),
    ),
    *of(
        "zephyr/chat/template_limits.py",
        (
            "tests/chat/test_template_limits.py",
            "tests/data/test_hostile_rows.py::test_a_template_that_never_ends",
        ),
        (
            "for turns, answer in ((TURNS, False), (TURNS[:1], True)):",
            "for turns, answer in ((TURNS, False),):",
        ),
        (
            "for turns, answer in ((TURNS, False), (TURNS[:1], True)):",
            "for turns, answer in ((TURNS[:1], True),):",
        ),
        ("if isinstance(error.__cause__, MemoryError):", "if isinstance(error, MemoryError):"),
        (
            "elif error.__cause__ is None:  # the length of what was rendered",
            "elif False:  # the length of what was rendered",
        ),
        (
            "elif error.__cause__ is None:  # the length of what was rendered",
            "else:  # the length of what was rendered",
        ),
        ("    if fault:\n", "    if False:\n"),
        (
            ("    if code == 0:\n        fault = reader.recv()"),
            ("    if reader.poll():\n        fault = reader.recv()"),
        ),
        ("raise ValueError(\n", "str(\n"),
        ("MEMORY_BYTES = 2**30", "MEMORY_BYTES = 2**26"),
        ("if process.is_alive():", "if not process.is_alive():"),
        (
            ("soft = size + more if hard == resource.RLIM_INFINITY else min(size + more, hard)"),
            ("soft = more if hard == resource.RLIM_INFINITY else min(size + more, hard)"),
        ),
        (
            "size = int(statm.read_text().split()[0]) * resource.getpagesize()",
            "size = int(statm.read_text().split()[0])",
        ),
        (
            ("soft = size + more if hard == resource.RLIM_INFINITY else min(size + more, hard)"),
            "soft = size + more if hard == resource.RLIM_INFINITY else size + more",
        ),
        (
            ("soft = size + more if hard == resource.RLIM_INFINITY else min(size + more, hard)"),
            "soft = size + more if hard == resource.RLIM_INFINITY else hard",
        ),
        (
            "resource.setrlimit(resource.RLIMIT_AS, (soft, hard))",
            "resource.setrlimit(resource.RLIMIT_AS, (soft, soft))",
        ),
    ),
]
