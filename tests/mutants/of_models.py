"""Faults of the model's modules, of what is checked before step 0, and of what a run is started,
watched and recorded by."""

from __future__ import annotations

from table import of


def tests(file: str, *names: str) -> str:
    """Some tests of a file, where all of them would take seconds more."""
    return " ".join(f"tests/test_{file}.py::test_{name}" for name in names)


ALARMS = of(
    "zephyr/training/alarms.py",
    "tests/test_alarms.py",
    ('record["update_ratio"] / record["learning_rate"]', 'record["update_ratio"]'),
    ("* sum(rates) if", "* max(rates) * 100 if"),
    ("* sum(rates) if", "if"),
    (' if record["learning_rate"] else math.inf', ' if record["learning_rate"] else 0.0'),
    ("if path < ulp:", "if path > ulp:"),
    ("if path < ulp:", "if path < 1e-3:"),
    ('-record["rewards/chosen"] / beta', '-record["rewards/chosen"]'),
    ('-record["rewards/chosen"] / beta', 'record["rewards/chosen"] / beta'),
    ("CHOSEN_FALL = 0.25", "CHOSEN_FALL = 0.15"),
    (
        '> -CHOSEN_FALL * (record["logps/chosen"] + fall)',
        '> -CHOSEN_FALL * record["logps/chosen"]',
    ),
    ('max(earlier, key=lambda r: r["rewards/accuracies"])', "earlier[-1]"),
    (
        'max(earlier, key=lambda r: r["rewards/accuracies"])',
        'max(earlier, key=lambda r: r["rewards/margins"])',
    ),
    ("fell <= 2 * math.sqrt", "fell <= math.sqrt"),
    ('/ best["pairs"]) or', ") or"),
    (' or record["rewards/margins"] <= best["rewards/margins"]', ""),
    ('if "rewards/accuracies" not in record or not earlier:', "if not earlier:"),
    (
        'if "rewards/accuracies" not in record or not earlier:',
        'if "rewards/accuracies" not in record:',
    ),
)

PLANNER = of(
    "zephyr/training/planner.py",
    "tests/test_planner.py",
    ('"H200": 989.4e12', '"H200": 1979e12'),
    ("    attention = 4 *", "    attention = 2 *"),
    (
        "config.num_attention_heads * head_size * attended",
        "config.num_key_value_heads * head_size * attended",
    ),
    ('getattr(config, "head_dim", None) or config.hidden_size', "config.hidden_size"),
    ("return 2.0 * layer_parameters * tokens", "return layer_parameters * tokens"),
    ("config.vocab_size * scored", "config.vocab_size * tokens"),
    ("(prompt**2 if prefix_sharing else 0)", "0"),
    ("(prompt**2 if prefix_sharing else 0)", "prompt**2"),
    ("(prompt**2 if prefix_sharing else 0)) / 2", "(prompt**2 if prefix_sharing else 0))"),
    ("first + (rejected if prefix_sharing else both)", "first + both"),
    ("tokens, chosen + rejected, attended)", "tokens, tokens, attended)"),
    ("tokens, targets, tokens**2 / 2)", "tokens, tokens, tokens**2 / 2)"),
    ("targets, tokens**2 / 2)", "targets, targets**2 / 2)"),
    ("return 3 * forward /", "return forward /"),
    ("(seconds * ranks * peak)", "(seconds * peak)"),
    ("if peak else None", "if peak else 0.0"),
    ("max(range(len(tokens)), key=lambda i: tokens[i])", "len(tokens) - 2"),
    ("if tokens[longest] > budget_tokens:", "if tokens[longest] >= budget_tokens:"),
    ("({ids[longest]})", "({longest})"),
    ("len(step.ranks[0]) for step", "len(step.ranks) for step"),
    ("examples = len(plan.steps[0].examples())", "examples = len(plan.steps[0].ranks[0])"),
    ("{plan.filled:.1%} full", "{plan.imbalance:.1%} full"),
)

MEMORY = of(
    "zephyr/verify/memory.py",
    tests(
        "planner",
        "activations_of_mistral_7b_by_hand",
        "a_layer_keeps_what_is_predicted",
        "memory_of_a_rank_by_hand",
    )
    + " "
    + tests("verify", "a_disk_or_a_memory_that_is_too_small"),
    ('item, heads = 2 if hardware.dtype == "bfloat16" else 4', "item, heads = 4"),
    ('(getattr(lm, "num_key_value_heads", None) or heads)', "heads"),
    ('(2 + (hardware.attention == "sdpa"))', "2"),
    ('(2 + (hardware.attention == "sdpa"))', "3"),
    ("+ 2 * keys * key + 4 * heads", "+ 2 * key + 4 * heads"),
    ("+ 2 * keys * key + 4 * heads", "+ 2 * keys * key"),
    ('"mlp": 4 * item * lm.hidden_size + attention', '"mlp": 4 * item * lm.hidden_size'),
    ("{True: item * lm.hidden_size,", "{True: 2 * item * lm.hidden_size,"),
    ("+ attention + 4 * item * inner_size(lm)}", "+ attention + 3 * item * inner_size(lm)}"),
    ('getattr(lm, "intermediate_size", None) or 4 * lm.hidden_size', "4 * lm.hidden_size"),
    ("parameters // ranks", "parameters"),
    ('if "offload_optimizer" in zero else', 'if "offload_param" in zero else'),
    ('8 * share + 4 * min(share, int(zero.get("sub_group_size", 1e9)))', "12 * share"),
    ("* (ranks > 1 or", "* (ranks > 0 or"),
    ('(ranks > 1 or "offload_param" in zero)', "(ranks > 1)"),
    ('min(parameters, int(zero.get("stage3_max_live_parameters", 1e9)))', "parameters"),
    (
        "int(tokens * lm.num_hidden_layers * keeps + max(0, layer - head))",
        "int(tokens * keeps + max(0, layer - head))",
    ),
    ("+ max(0, layer - head))", "+ layer)"),
    ("kept = 4 * logits if logits <= KEPT_ELEMENTS else 4 * chunk", "kept = 4 * logits"),
    ("(tokens if scored is None else scored) * lm.vocab_size", "tokens * lm.vocab_size"),
    ('if item == 2 and device == "cpu" else 0', 'if device == "cpu" else 0'),
    ("(4 + item % 4) * (chunk + weight)", "4 * (chunk + weight)"),
)

ROTARY = (
    "tests/test_families.py::test_an_untrained_second_epoch_stays_at_ln_2[Phi-3 1]",
    "tests/test_families.py::test_an_untrained_second_epoch_stays_at_ln_2[Llama 2]",
    "tests/test_families.py::test_packed_equals_eager[Granite-untied]",
    "tests/test_families.py::test_packed_equals_eager[Phi-3 1-untied]",
    "tests/test_families.py::test_packed_equals_eager[Gemma 3-tied]",
)
POLICY = of(
    "zephyr/model/policy.py",
    tests("model", "learned_positions_are_an_end", "neighbours_in_a_row_get_exactly_no_gradient"),
    ("batch.layout.max_key > self.longest", "batch.layout.max_key > self.longest + 1"),
    ("batch.layout.max_key > self.longest", "len(batch.tokens_N) > self.longest"),
    ("position_ids=batch.positions_N[None],\n", ""),
    ("            layout=batch.layout,\n", ""),
    ("scored_hidden(hidden_ND, batch), batch.targets_T)", "scored_hidden(hidden_ND, batch))"),
    ("    lm.tie_weights()\n", ""),
    ("LogProbHead.replacing(head, logit_factor(config))", "LogProbHead.replacing(head)"),
    (
        "(1.0 if factor is None else factor) / (1.0 if divisor is None else divisor)",
        "(1.0 if factor is None else factor) * (1.0 if divisor is None else divisor)",
    ),
    ('getattr(config, "logit_scale", None)', "None"),
    ('if name == "longrope":', "if False:"),
    (
        'found.append((module, layers, name, settings["original_max_position_embeddings"]))',
        "found.append((module, layers, name, module.config.max_position_embeddings))",
    ),
    ('elif name is not None and "dynamic" in name:', "elif False:"),
    ("return most if most in sizes else None", "return most"),
    ("and module is not words}", "}"),
    ("if max_tokens is None or not growing:", "if not growing:"),
    ("return min((start for *_, start in growing), default=None)", "return None"),
    ("return min((start for *_, start in growing), default=None)", "return max_tokens"),
    ("seq_len=max_tokens, **which", "seq_len=None, **which"),
    ('        module.register_buffer(f"{prefix}inv_freq", inv_freq, persistent=False)\n', ""),
    (
        'module.rope_type = "default" if layers is None else',
        "module.rope_type = module.rope_type if layers is None else",
    ),
    ("    return max_tokens\n", "    return None\n"),
)
POLICY = [mutant._replace(tests=mutant.tests + ROTARY) for mutant in POLICY]

PROOF = of(
    "zephyr/model/proof.py",
    "tests/test_proof.py "
    + tests(
        "every_decoder",
        "numbers_and_calls_alone_refuse_a_state[lfm2]",
        "numbers_and_calls_alone_refuse_a_state[qwen3_5_text]",
    ),
    (
        "HEAD_SIZE, VOCABULARY, WINDOW, SHORT = 4, 16, 96, 5, 8",
        "HEAD_SIZE, VOCABULARY, WINDOW, SHORT = 4, 16, 96, 50, 8",
    ),
    ("TOLERANCE = 2e-3", "TOLERANCE = 1e3"),
    ("    if why_not:\n        raise ValueError(why_not)\n", ""),
    (
        '        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():',
        '        with torch.device("cpu"), torch.enable_grad():',
    ),
    ("        if whole.get_text_config() is not whole:", "        if False:"),
    ("    reason = unlike(empty, config)\n    if reason:\n        return reason\n", ""),
    ('        "sliding_window": WINDOW,\n', ""),
    ('"num_attention_heads": HEADS,\n        "num_key_value', '"num_key_value'),
    ("{heads: HEADS, 1: 1}.get(keys, 2)", "{}.get(keys, 2)"),
    ("round(SHORT * longest / start) if start else 64", "64"),
    ("HEADS * small_size + 16 * apart", "HEADS * small_size"),
    ("return value[:: round(1 / fraction)][: round(len(value) * fraction)]", "return value"),
    ("return value if not isinstance(value, (int, list)) or value == -1 else 1", "return value"),
    ("and value >= LONGEST\n", "and value > 512\n"),
    ("            and key not in known\n", ""),
    ("            and key in declared\n", ""),
    ('if kind == "linear_attention" or "attention" not in kind}', 'if "attention" not in kind}'),
    ("    if experts:\n", "    if False:\n"),
    (
        "    if any(buffer in empty.state_dict() for buffer, _ in empty.named_buffers()):",
        "    if False:",
    ),
    (
        "    if sum(parameter.numel() for parameter in empty.parameters()) > MOST_PARAMETERS:",
        "    if False:",
    ),
    (
        "if len(calls) != config.num_hidden_layers or len(set(calls)) != len(calls):",
        "if len(calls) < config.num_hidden_layers:",
    ),
    ("if len(calls) != config.num_hidden_layers or len(set(calls)) != len(calls):", "if False:"),
    ("if not error <= TOLERANCE:", "if error > TOLERANCE:"),
    ("if gradient_1ND[0, ~own_N].any():", "if False:"),
    ("nn.init.normal_(parameter, centre, 0.1)", "nn.init.normal_(parameter, centre, 0.001)"),
    ("return plain.eval(), Policy(lm).train()", "return plain.eval(), Policy(lm).eval()"),
    ("        fix_rope(decoder, LONGEST)\n", "        pass\n"),
    (
        "    return [(p.prompt_ids, p.chosen_ids) for p in PAIRS] + [",
        "    return [(p.prompt_ids, p.rejected_ids) for p in PAIRS] + [",
    ),
    ("if error.args == (PROOF,):", "if False:"),
)

GENERATE = of(
    "zephyr/model/generate.py",
    "tests/test_generate.py "
    + tests("export", "generation_continues_training_ids_and_keeps_the_order"),
    ("if len(ids) + max_new_tokens > positions:", "if max_new_tokens > positions:"),
    ("if len(ids) + max_new_tokens > positions:", "if len(ids) + max_new_tokens >= positions:"),
    (
        "messages, template=tokenizer.chat_template)",
        "messages[-1:], template=tokenizer.chat_template)",
    ),
    ("    lm.eval()\n", ""),
    ("        lm.train(was_training)\n", "        lm.train()\n"),
    (
        "[max_new_tokens[i] for i in chosen], sample",
        "sorted(max_new_tokens[i] for i in chosen)[::-1], sample",
    ),
    ("sampler(rows, [seeds[i] for i in chosen]", "sampler(rows, seeds"),
    ("return [answers[i] for i in range(len(encoded))]", "return list(answers.values())"),
    ('f"{seed} {list(row)}".encode()', 'f"{seed}".encode()'),
    ('f"{seed} {list(row)}".encode()', 'f"{list(row)}".encode()'),
    ("dtype=torch.float64, device=device)", "dtype=torch.float16, device=device)"),
    ("scores_BV - torch.stack(", "scores_BV + torch.stack("),
    ("for g in generators]).log()", "for g in generators])"),
    ("[TemperatureLogitsWarper(float(temperature))]", "[]"),
    (
        "[TopKLogitsWarper(top_k)] if top_k else []",
        "[TopKLogitsWarper(top_k)] if top_k > 5 else []",
    ),
    ("if top_p < 1 else []", "if top_p > 1 else []"),
    ("return [*warps, add_gumbel_noise]", "return [add_gumbel_noise, *warps]"),
    (
        "[[padding] * (length - len(ids)) + [*ids] for ids in rows]",
        "[[*ids] + [padding] * (length - len(ids)) for ids in rows]",
    ),
    (
        "[[0] * (length - len(ids)) + [1] * len(ids) for ids in rows]",
        "[[1] * length for ids in rows]",
    ),
    ("max_new_tokens=max(limits)", "max_new_tokens=min(limits)"),
    ("ids_BL.shape[1] - length >= limits_B]", "ids_BL.shape[1] >= limits_B]"),
    (
        "end = ids.index(eos) + 1 if eos in ids[:limit] else limit",
        "end = ids.index(eos) if eos in ids[:limit] else limit",
    ),
    (
        "end = ids.index(eos) + 1 if eos in ids[:limit] else limit",
        "end = ids.index(eos) + 1 if eos in ids else limit",
    ),
    ('end, "stop" if eos in ids[:limit] else', 'end, "stop" if eos in ids else'),
    ("Answer(text, len(prompt), end", "Answer(text, length, end"),
)

FOLDER = of(
    "zephyr/training/folder.py",
    "tests/test_folder.py " + tests("security", "a_run_writes_through_no_link"),
    ('os.environ.get("RANK", "0") == "0"', "True"),
    ('if resume == "never" and self.holds_a_run():', 'if resume == "never":'),
    (
        'if resume == "never" and self.holds_a_run():',
        'if resume != "force" and self.holds_a_run():',
    ),
    ("            self.require_files()\n", ""),
    (
        '.open("a+", encoding="utf-8")\n            try:',
        '.open("w+", encoding="utf-8")\n            try:',
    ),
    (
        "                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n            except",
        "                pass\n            except",
    ),
    (
        "                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n            except",
        "                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)\n            except",
    ),
    ("                lock.seek(0)\n", ""),
    ("            lock.truncate(0)\n", ""),
    ("            lock.flush()\n", ""),
    (
        "self.lock, self.accepted = lock, not self.holds_a_run()",
        "self.lock, self.accepted = lock, True",
    ),
    (
        "self.lock, self.accepted = lock, not self.holds_a_run()",
        "self.accepted = not self.holds_a_run()",
    ),
    ('"chat_template.jinja",\n         "samples.jsonl"', '"chat_template.jinja"'),
    ('for name in ("metrics.jsonl", "checkpoints"))', 'for name in ("metrics.jsonl",))'),
    ('for name in ("metrics.jsonl", "checkpoints"))', 'for name in ("checkpoints",))'),
    ("        self.accepted = True\n        for name", "        for name"),
    ("        self.waiting = {}\n\n", "\n"),
    (
        "            self.waiting[name] = content\n",
        "            self.waiting.setdefault(name, content)\n",
    ),
    (
        "            self.waiting[name] = content\n            return\n",
        "            self.waiting[name] = content\n",
    ),
    ("        if not self.writes:\n            return\n", ""),
    (
        "if self.writes and self.lock is None and not self.holds_a_run():",
        "if self.writes and self.lock is None:",
    ),
    (
        "if self.writes and self.lock is None and not self.holds_a_run():",
        "if self.lock is None and not self.holds_a_run():",
    ),
    (
        "            with contextlib.suppress(BadInput):\n                self.open()",
        "            self.open()",
    ),
    (
        "        if self.lock is not None:\n            try:",
        "        if self.writes:\n            try:",
    ),
    (
        "                with contextlib.suppress(OSError):\n                    (self.path / STATUS).write_bytes(content)",
        "                pass",
    ),
    ("if self.accepted and json.loads", "if json.loads"),
    ('["code"] is None:', '["code"] != 0:'),
    ('json_bytes({"code": 1, "message": GONE})', 'json_bytes({"code": 0, "message": GONE})'),
    ("                    return True\n", "                        return True\n"),
    ("if time.monotonic() >= until:", "if time.monotonic() >= seconds:"),
    ('.encode("utf-8", "backslashreplace")', '.encode("utf-8", "replace")'),
    ("indent=1, ensure_ascii=False)", "indent=1)"),
    ("        if self.lock is not None:\n            self.lock.close()", "        pass"),
)

FEW_RUNS = "tests/test_launch.py " + tests("faults", "a_second_sigint_stops_at_once")
LAUNCH = of(
    "zephyr/training/launch.py",
    FEW_RUNS,
    ("BAD_INPUT, STOPPED = 2, 75", "BAD_INPUT, STOPPED = 2, 1"),
    ("return 0 if argv else BAD_INPUT", "return 0"),
    ('if a != "--dry-run"] or [""]', 'if a != "--dry-runs"] or [""]'),
    (
        'None if "--dry-run" in argv else RunFolder',
        'None if "--dry-run" in overrides else RunFolder',
    ),
    ("        check(config)\n", ""),
    ('if os.environ.get("LOCAL_RANK", "0") == "0":', "if True:"),
    ('if os.environ.get("RANK", "0") == "0":', "if True:"),
    (
        "return ended(folder, BAD_INPUT, str(error))\n    except Stopped",
        "return BAD_INPUT\n    except Stopped",
    ),
    ("return ended(folder, STOPPED, str(stop))", "return ended(folder, BAD_INPUT, str(stop))"),
    ("(errno.ENOSPC, errno.EDQUOT)", "(errno.ENOSPC,)"),
    (
        "isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)",
        "isinstance(error, OSError)",
    ),
    (
        "        if lost_a_rank(error):\n            why",
        "        if isinstance(error, RuntimeError):\n            why",
    ),
    ("        ended(folder, 1, why)\n", ""),
    ("        ended(folder, 1, why)\n        raise\n", "        return ended(folder, 1, why)\n"),
    ('return ended(folder, 0, "finished")', "return 0"),
    ("        folder.status(code, message)\n", "        folder.status(0, message)\n"),
    ("        folder.close()\n", ""),
    ('re.search("peer|NCCL", str(error))', 're.search("peer", str(error))'),
    ('re.search("peer|NCCL", str(error))', 're.match("peer|NCCL", str(error))'),
    ("isinstance(error, RuntimeError) and re.search", "re.search"),
    ("folder.open(config.run.resume)", "folder.open()"),
    ('            folder.keep("config.yaml", to_yaml(config).encode())\n', ""),
    ('            folder.status(None, "running")\n', ""),
    ('            folder.status(None, "running")\n', '            folder.status(0, "running")\n'),
    (
        "        with stop_signals(engine):\n            try:\n                train(engine, config, folder)",
        "        with contextlib.nullcontext():\n            try:\n                train(engine, config, folder)",
    ),
    ("        engine.close()\n        raise\n", "        raise\n"),
    ("        raise\n    engine.close()\n", "        raise\n"),
    ("        while not folder.end_for_rank0(0):", "        if not folder.end_for_rank0(0):"),
    (
        "        while not folder.end_for_rank0(0):",
        "        while not folder.end_for_rank0(PATIENCE):",
    ),
    ("    if engine.rank > 0:\n", "    if engine.rank >= 0:\n"),
    ("        if engine.stop_asked and number == signal.SIGINT:", "        if engine.stop_asked:"),
    (
        "        if engine.stop_asked and number == signal.SIGINT:",
        "        if number == signal.SIGINT:",
    ),
    ("        engine.stop_asked = True\n", "        pass\n"),
    ("(signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}", "(signal.SIGTERM, signal.SIGINT)}"),
    ("            signal.signal(number, handler)\n", "            pass\n"),
)

TOLERANCE = of(
    "zephyr/training/tolerance.py",
    "tests/test_tolerance.py",
    ('"bfloat16": (0.02, 0.25)}', '"bfloat16": (0.25, 0.02)}'),
    ('"bfloat16": (0.02, 0.25)}', '"bfloat16": (0.02, 2.5)}'),
    ('"bfloat16": (0.02, 0.25)}', '"bfloat16": (0.02, 0.08)}'),
    ('TOKEN = {"float32": (1e-4, 1e-4)', 'TOKEN = {"float32": (1e-6, 1e-6)'),
    ('"bfloat16": (0.01, 0.06)}', '"bfloat16": (0.01, 0.6)}'),
    ('"bfloat16": (0.01, 0.06)}', '"bfloat16": (0.01, 0.02)}'),
    ('RESPONSE = {"float32": (5e-5, 5e-5)', 'RESPONSE = {"float32": (5e-3, 5e-3)'),
    ('SUM = {"float32": 1e-3, "bfloat16": 0.4}', 'SUM = {"float32": 0.4, "bfloat16": 1e-3}'),
    ('SUMS = {"float32": 4e-4, "bfloat16": 0.16}', 'SUMS = {"float32": 4e-4, "bfloat16": 0.8}'),
    (
        'GRADIENT = {"float32": 1e-4, "bfloat16": 5e-3}',
        'GRADIENT = {"float32": 1e-2, "bfloat16": 5e-3}',
    ),
    ("min(high, max(low, noise))", "min(low, max(high, noise))"),
    ("min(high, max(low, noise))", "max(low, noise)"),
    ("min(high, max(low, noise))", "min(high, noise)"),
    ("if math.isfinite(noise) else low", "if not math.isinf(noise) else low"),
    ("if math.isfinite(noise) else low", "if math.isfinite(noise) else high"),
    ("return SUM[dtype] * math.sqrt(tokens)", "return SUM[dtype] * tokens"),
    ("return SUM[dtype] * math.sqrt(tokens)", "return SUM[dtype]"),
    ("return SUM[dtype] * math.sqrt(tokens)", "return SUMS[dtype] * math.sqrt(tokens)"),
)

MUTANTS = [*ALARMS, *PLANNER, *MEMORY, *POLICY, *PROOF, *GENERATE, *FOLDER, *LAUNCH, *TOLERANCE]
