"""The faults of `zephyr/chat/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
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
            ("if len(prompt) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= max_tokens:"),
            ("if len(prompt) + max(len(pair.chosen_ids), len(pair.rejected_ids)) < max_tokens:"),
        ),
        (
            ("if len(prompt) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= max_tokens:"),
            "if len(prompt) + len(pair.chosen_ids) <= max_tokens:",
        ),
        ("kept_bos = prompt[:1] if prompt[0] == bos_id else []", "kept_bos = []"),
        ("kept_bos = prompt[:1] if prompt[0] == bos_id else []", "kept_bos = prompt[:1]"),
        (
            ("prompt = kept_bos + prompt[len(prompt) - max_prompt_tokens + len(kept_bos) :]"),
            "prompt = kept_bos + prompt[len(kept_bos) : max_prompt_tokens]",
        ),
        (
            (
                "prompt_ids=prompt, chosen_ids=pair.chosen_ids[:room], "
                "rejected_ids=pair.rejected_ids[:room]"
            ),
            (
                "prompt_ids=prompt,\n"
                "        chosen_ids=pair.chosen_ids[-room:],\n"
                "        rejected_ids=pair.rejected_ids[-room:],"
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
        ("return [*ids, tokenizer.eos_token_id], end + len(eos)", "return ids, end + len(eos)"),
        (
            "(answer_ids, turn in trained),",
            ("(answer_ids[:-1], turn in trained),\n            (answer_ids[-1:], False),"),
        ),
        (
            ('(between_ids if done else _with_bos(tokenizer, between_ids), targets == "all"),'),
            "(between_ids if done else _with_bos(tokenizer, between_ids), True),",
        ),
        (
            ('(between_ids if done else _with_bos(tokenizer, between_ids), targets == "all"),'),
            '(_with_bos(tokenizer, between_ids), targets == "all"),',
        ),
        (
            (
                "parts.append((_ids(tokenizer, whole[len(done) :], after_eos=True), "
                'targets == "all"))'
            ),
            ("parts.append((_ids(tokenizer, whole[len(done) :], after_eos=True), True))"),
        ),
        (
            ("is_target = [flag for part, flag in parts for _ in part]\n    is_target[0] = False"),
            "is_target = [flag for part, flag in parts for _ in part]",
        ),
        (
            "return EncodedText(id, ids[:max_tokens], is_target[:max_tokens])",
            "return EncodedText(id, ids[-max_tokens:], is_target[-max_tokens:])",
        ),
        (
            (
                'ids = [*_with_bos(tokenizer, _ids(tokenizer, turn["content"])), '
                "tokenizer.eos_token_id][\n"
                "        :max_tokens\n"
                "    ]"
            ),
            (
                "ids = [\n"
                '        *_with_bos(tokenizer, _ids(tokenizer, turn["content"])),\n'
                "    ][:max_tokens]"
            ),
        ),
        (
            "return EncodedText(id, ids, [False] + [True] * (len(ids) - 1))",
            "return EncodedText(id, ids, [True] * len(ids))",
        ),
        (
            "return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]",
            "return ids if bos_id is None else [bos_id, *ids]",
        ),
        ("return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]", "return ids"),
        ("while specials.search(value):", "while False:"),
        (
            (
                "if odd := re.search(\n"
                '        "[\\ufdd0\\ud800-\\udfff]", value\n'
                "    ):  # the sentinel, or half of a surrogate pair"
            ),
            (
                'if odd := re.search("[\\ufdd0]", value):  # the sentinel, or half of a '
                "surrogate pair"
            ),
        ),
        (
            (
                "if (\n"
                "        first\n"
                "        and first[0] != eos\n"
                "        and not (\n"
                "            end > 0\n"
                "            and _ends_with_eos(tokenizer, template, eos)\n"
                "            and upto().startswith(whole[: end + len(eos)])\n"
                "        )"
            ),
            (
                "if False and not (\n"
                "        end > 0\n"
                "        and _ends_with_eos(tokenizer, template, eos)\n"
                "        and upto().startswith(whole[: end + len(eos)])"
            ),
        ),
        (
            (
                "if (\n"
                "        first\n"
                "        and first[0] != eos\n"
                "        and not (\n"
                "            end > 0\n"
                "            and _ends_with_eos(tokenizer, template, eos)\n"
                "            and upto().startswith(whole[: end + len(eos)])\n"
                "        )\n"
                "    ):"
            ),
            (
                "if first and first[0] != eos and not (end > 0 and "
                "upto().startswith(whole[: end + len(eos)])):"
            ),
        ),
        (
            (
                "if (\n"
                "        first\n"
                "        and first[0] != eos\n"
                "        and not (\n"
                "            end > 0\n"
                "            and _ends_with_eos(tokenizer, template, eos)\n"
                "            and upto().startswith(whole[: end + len(eos)])\n"
                "        )\n"
                "    ):"
            ),
            (
                "if first and first[0] != eos and not (end > 0 and "
                "_ends_with_eos(tokenizer, template, eos)):"
            ),
        ),
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
            (
                "turns, tools = (\n"
                '        _spell_out(tokenizer, check_messages(messages, last="user")),\n'
                "        _spelled_tools(tokenizer, tools),\n"
                "    )"
            ),
            (
                "turns, tools = _spell_out(tokenizer, check_messages(messages)), "
                "_spelled_tools(tokenizer, tools)"
            ),
        ),
        (
            (
                "tokenizer, _ids(tokenizer, render(tokenizer, turns, template, "
                "answer=True, tools=tools))"
            ),
            (
                "tokenizer, _ids(tokenizer, render(tokenizer, turns, template, "
                "answer=False, tools=tools))"
            ),
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
            "return None if None in said or not said else all(said)",
            "return None if None in said or not said else any(said)",
        ),
        ("return None if good is None else good == LABELS[name]", "return good"),
        (
            ("return SPEAKERS.get(who.strip().lower()) if isinstance(who, str) else None"),
            "return SPEAKERS.get(who.strip()) if isinstance(who, str) else None",
        ),
        (
            'message = message.replace(f"`{name}`", f"`{spelling}`")',
            'message.replace(f"`{name}`", f"`{spelling}`")',
        ),
        (
            ('"is_invalid",\n        ),\n        False,'),
            ('"is_invalid",\n        ),\n        True,'),
        ),
        (('"excluded",\n        ),\n        False,'), ('"excluded",\n        ),\n        True,')),
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
            (
                "\"{% elif message['role'] == 'assistant' %}\\n{{ '<|assistant|>\\n'  + "
                "message['content'] + eos_token }}\\n{% endif %}\\n\""
            ),
            (
                "\"{% elif message['role'] == 'assistant' %}\\n{{ '<|assistant|>\\n'  + "
                "message['content'] }}\\n{% endif %}\\n\""
            ),
        ),
        (
            (
                "\"{% elif message['role'] == 'system' %}\\n{{ '<|system|>\\n' + "
                "message['content'] + eos_token }}\\n\""
            ),
            (
                "\"{% elif message['role'] == 'system' %}\\n{{ '<|user|>\\n' + "
                "message['content'] + eos_token }}\\n\""
            ),
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
        (
            'return own.get("default") if isinstance(own, Mapping) else own',
            "return next(iter(own.values())) if isinstance(own, Mapping) else own",
        ),
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
        ("8,", "800,"),
        (
            (
                "except (\n"
                "        TemplateError,\n"
                "        ArithmeticError,\n"
                "        AttributeError,\n"
                "        LookupError,\n"
                "        MemoryError,\n"
                "        SyntaxError,\n"
                "        TypeError,\n"
                "        ValueError,\n"
                "        RecursionError,\n"
                "    ) as error:"
            ),
            ("except (TemplateError, MemoryError, ValueError, RecursionError) as error:"),
        ),
        ("if CLOCK not in template or FROZEN_DATE.search(template):", "if CLOCK not in template:"),
        (
            'f".replace({json.dumps(name)}, {json.dumps(day.strftime(name))})"',
            ('f".replace({json.dumps(name)}, {json.dumps(date.today().strftime(name))})"'),
        ),
        (
            (
                "DIRECTIVES = [\n"
                '    f"%{dash}{letter}" for dash in ("", "-") for letter in '
                '"aAbBcdDeFHIjmMpSTuUwWxXyYZ"\n'
                '] + ["%%"]'
            ),
            (
                'DIRECTIVES = [f"%{dash}{letter}" for dash in ("",) for letter in '
                '"aAbBcdDeFHIjmMpSTuUwWxXyYZ"] + [\n'
                '    "%%"\n'
                "]"
            ),
        ),
        (
            (
                "DIRECTIVES = [\n"
                '    f"%{dash}{letter}" for dash in ("", "-") for letter in '
                '"aAbBcdDeFHIjmMpSTuUwWxXyYZ"\n'
                '] + ["%%"]'
            ),
            (
                'DIRECTIVES = [f"%{dash}{letter}" for dash in ("", "-") for letter in '
                '"aAbBcdDeFHIjmMpSTuUwWxXyYZ"]'
            ),
        ),
        ("return found and date.fromisoformat(found[1])", "return found and date.today()"),
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
        (('"tool_call_id",\n    "name",'), '"tool_call_id",'),
        (
            (
                "THINKING = (\n"
                '    "reasoning_content",\n'
                '    "reasoning",\n'
                '    "thinking",\n'
                ")  # what a model thought before the words of its turn"
            ),
            (
                'THINKING = ("reasoning_content", "thinking")  # what a model thought '
                "before the words of its turn"
            ),
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
        (
            (
                'raise ValueError(f"`{field}` holds a system turn only, wanted a user '
                'turn after it")\n'
                "    _check_order(turns, first, field)"
            ),
            (
                'raise ValueError(f"`{field}` holds a system turn only, wanted a user '
                'turn after it")'
            ),
        ),
        (
            (
                'if last not in (None, "user" if turns[-1]["role"] == "tool" else '
                'turns[-1]["role"]):'
            ),
            'if last not in (None, turns[-1]["role"]):',
        ),
        (
            "turns = before + turns if before and isinstance(turns, list) else turns",
            "turns = turns + before if before and isinstance(turns, list) else turns",
        ),
        (
            'prompt = _without_masks(check_messages(turns, "prompt", last="user"))',
            'prompt = check_messages(turns, "prompt", last="user")',
        ),
        ("elif before:", "elif False:"),
        ("if chosen_prompt != rejected_prompt:", "if len(chosen_prompt) != len(rejected_prompt):"),
        (
            (
                'if {**chosen, "content": without_space(chosen["content"])} == {\n'
                "        **rejected,\n"
                '        "content": without_space(rejected["content"]),\n'
                "    }:"
            ),
            ('if without_space(chosen["content"]) == without_space(rejected["content"]):'),
        ),
        ('return "".join(text.split())', 'return " ".join(text.split())'),
        (
            (
                'field = "prompt" if prompt is not None and len(prompt) == '
                'len(chosen_prompt) else "chosen"'
            ),
            'field = "prompt"',
        ),
        (
            '*(f"history[{i // 2}][{i % 2}]" for i in range(len(before))),',
            '*(f"history[{i % 2}][{i // 2}]" for i in range(len(before))),',
        ),
        ('if system is None or system == "":', "if system is None:"),
        (
            ('return [{"role": "system", "content": system}, *turns], ["system", *names]'),
            'return [{"role": "system", "content": system}, *turns], names',
        ),
        ('if turns[0]["content"] != system:', "if not system:"),
        (
            (
                "isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) "
                "for said in turn)\n"
                "        for turn in value"
            ),
            (
                "isinstance(turn, list) and all(isinstance(said, str) for said in turn) "
                "for turn in value"
            ),
        ),
        (
            'for role, said in zip(("user", "assistant"), turn)',
            'for role, said in zip(("assistant", "user"), turn)',
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
            'for who, said in (("role", "content"), ("from", "value"))',
            'for who, said in (("role", "content"),)',
        ),
        ('last = i == len(turns) - 1 and field != "prompt"', "last = i == len(turns) - 1"),
        (
            ('if role != "tool" and not turn["content"].strip() and "tool_calls" not in turn:'),
            'if not turn["content"].strip() and "tool_calls" not in turn:',
        ),
        (
            '"assistant": {"tool"} if "tool_calls" in turn else {"user"},',
            '"assistant": {"tool", "user"} if "tool_calls" in turn else {"user"},',
        ),
        ('"tool": {"tool", "assistant"},', '"tool": {"assistant"},'),
        (
            (
                "if value is not None\n"
                "        and not ((key in TEMPLATE_KEYS or key in REFUSED) and value in "
                '([], "", {}, False))'
            ),
            ("if value is not None and not ((key in TEMPLATE_KEYS or key in REFUSED) and False)"),
        ),
        ('for key in ("tool_calls", *THINKING):', 'for key in ("tool_calls",):'),
        (
            'if key in given and (role in ("assistant", "tool") or key in THINKING):',
            'if key in given and (role == "assistant" or key in THINKING):',
        ),
        ("arguments = json.loads(arguments)", "pass"),
        (
            ('checked.append({**call, "function": function} if "function" in call else function)'),
            "checked.append(function)",
        ),
        (
            "if type(value) not in (bool, int, float) or value not in (0, 1):",
            "if type(value) not in (bool, int, float) or False:",
        ),
        ('if turns[-1].get("train", True) is False:', "if False:"),
        (
            ("if prompt and not (prompt[0] in turns if loose else prompt == turns[:-1]):"),
            "if prompt and not (prompt[0] in turns):",
        ),
        (
            ("if prompt and not (prompt[0] in turns if loose else prompt == turns[:-1]):"),
            "if prompt and not (prompt == turns[:-1]):",
        ),
        (
            'loose = prompt and isinstance(pair["prompt"], str) and len(prompt) == 1',
            'loose = prompt and isinstance(pair["prompt"], str)',
        ),
        (
            ('return turns[:-1], turns[-1], f"{field}[{0 if alone else len(turns) - 1}]"'),
            'return turns[:-1], turns[-1], f"{field}[{len(turns) - 1}]"',
        ),
        (
            (
                'unnamed = name in ("name", "tool_call_id") and '
                'role_of(turn.get("role")) not in (\n'
                '                "assistant",\n'
                '                "tool",\n'
                "            )"
            ),
            "unnamed = False",
        ),
        (
            (
                "if value is not None and (\n"
                "                name not in READ or unnamed or (masks and name in MASKS "
                "and not last)\n"
                "            ):"
            ),
            "if value is not None and (name not in READ or unnamed or False):",
        ),
        ("if len(said) > 1:", "if False:"),
        (
            ('case [{"role": who}] if prompt and role_of(who) == "assistant":  # the answer alone'),
            'case [{"role": who}] if role_of(who) == "assistant":  # the answer alone',
        ),
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
            ("plain = template.endswith(HANDBOOK_TEMPLATE)  # and so does ZEPHYR_TEMPLATE"),
            "plain = template == HANDBOOK_TEMPLATE  # and so does ZEPHYR_TEMPLATE",
        ),
        ("if change.needed:", "if change.needed and change.where is not None:"),
        ("        return True", "        return False"),
        (
            ('yield changed("content", words, not thought or i in trained, thought=thought)'),
            'yield changed("content", words, True, thought=thought)',
        ),
        (
            ('yield changed("content", words, not thought or i in trained, thought=thought)'),
            'yield changed("content", words, not thought, thought=thought)',
        ),
        (
            (
                "yield from (\n"
                '            changed(key, turn[key] + "x", False) for key in ("name", '
                '"tool_call_id") if key in turn\n'
                "        )"
            ),
            (
                'yield from (changed(key, turn[key] + "x", False) for key in ("name",) '
                "if key in turn)"
            ),
        ),
        (
            (
                "for part, needed, value in _of_function(\n"
                '                call, each=("arguments",), needed=("name", "arguments")\n'
                "            ):"
            ),
            (
                'for part, needed, value in _of_function(call, each=("arguments",), '
                'needed=("name",)):'
            ),
        ),
        (
            (
                "for part, needed, value in _of_function(\n"
                '                call, each=("arguments",), needed=("name", "arguments")\n'
                "            ):"
            ),
            (
                'for part, needed, value in _of_function(call, each=(), needed=("name", '
                '"arguments")):'
            ),
        ),
        (
            "for n, tool in enumerate(tools or () if first == 0 else ()):",
            "for n, tool in enumerate(()):",
        ),
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
        ("if (found := text.find(words, at)) < 0:", "if (found := text.find(words)) < 0:"),
        ("at = found + len(words)", "at = found"),
        ("for key, value in holder.items() if inside else ():", "for key, value in ():"),
        ("if isinstance(value, bool) or value is None:", "if isinstance(value, bool):"),
        (
            ('if turn["role"] == "assistant" and (MARK.search(turn["content"]) or not plain):'),
            'if turn["role"] == "assistant" and MARK.search(turn["content"]):',
        ),
        (
            ('if turn["role"] == "assistant" and (MARK.search(turn["content"]) or not plain):'),
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
            'elif turn["role"] == "tool" or _may_be_chance(turn, i in trained):',
            "elif _may_be_chance(turn, i in trained):",
        ),
        ("elif not plain:", "elif False:"),
        (
            'elif turn["role"] == "tool" or _may_be_chance(turn, i in trained):',
            'elif turn["role"] == "tool":',
        ),
        ("changed(key, said, i in trained)", "changed(key, said, False)"),
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
        ("if said:", "if False:"),
        (
            (
                'said = reader.recv() if code == 0 else f"the chat template ended its '
                'process (exit code {code})"'
            ),
            (
                "said = (\n"
                "        reader.recv()\n"
                "        if reader.poll()\n"
                '        else f"the chat template ended its process (exit code {code})"\n'
                "    )"
            ),
        ),
        ("raise ValueError(\n", "str(\n"),
        ("2**30,", "2**26,"),
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
