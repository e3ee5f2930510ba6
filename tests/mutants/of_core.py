"""The faults of the modules beside the rooms: config, losses, reference."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/losses.py",
        ("tests/test_losses.py",),
        ("-margin_P\n", "margin_P\n"),
        (
            (
                "return -(1 - label_smoothing) * F.logsigmoid(margin_P) - "
                "label_smoothing * F.logsigmoid("
            ),
            (
                "return -(1 - label_smoothing) * F.logsigmoid(margin_P) + "
                "label_smoothing * F.logsigmoid("
            ),
        ),
        (
            (
                "return ((1 - label_smoothing) * kept_P - label_smoothing * flipped_P) / "
                "(\n"
                "        1 - 2 * label_smoothing\n"
                "    )"
            ),
            (
                "return ((1 - label_smoothing) * kept_P - label_smoothing * flipped_P) / "
                "(1 - label_smoothing)"
            ),
        ),
        (
            ("return ((1 - label_smoothing) * kept_P - label_smoothing * flipped_P) / ("),
            ("return ((1 - label_smoothing) * kept_P + label_smoothing * flipped_P) / ("),
        ),
        (
            "return (chosen_P - rejected_P - 1 / (2 * beta)).square()",
            "return (chosen_P - rejected_P - 1 / beta).square()",
        ),
        (
            "return (chosen_P - rejected_P - 1 / (2 * beta)).square()",
            "return (chosen_P - rejected_P - 1 / (2 * beta)).abs()",
        ),
        (
            "return F.relu(1 - beta * (chosen_P - rejected_P))",
            "return F.relu(1 - (chosen_P - rejected_P))",
        ),
        (
            "F.logsigmoid(margin_P) - math.log1p(-label_smoothing)",
            "F.logsigmoid(margin_P) - math.log(label_smoothing)",
        ),
        (
            "return -F.logsigmoid(reward_chosen_P) - 0.5 * negatives_P",
            "return -F.logsigmoid(reward_chosen_P) - negatives_P",
        ),
        (
            ("return (chosen_P - 0.5 / beta).square() + (rejected_P + 0.5 / beta).square()"),
            ("return (chosen_P - 0.5 / beta).square() + (rejected_P - 0.5 / beta).square()"),
        ),
        (
            ("return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(beta * rejected_P)"),
            ("return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(-beta * rejected_P)"),
        ),
        (
            (
                "return torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P "
                "- rejected_P))"
            ),
            (
                "return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(-beta * "
                "(chosen_P - rejected_P))"
            ),
        ),
        ('"ipo": Loss(ipo, length_averaged=True),', '"ipo": Loss(ipo),'),
        (
            ('"sigmoid_norm": Loss(sigmoid, smoothing="accepted", length_averaged=True),'),
            '"sigmoid_norm": Loss(sigmoid, smoothing="accepted"),',
        ),
        (
            '"exo_pair": Loss(exo_pair, smoothing="required"),',
            '"exo_pair": Loss(exo_pair, smoothing="accepted"),',
        ),
        (
            ("rewards = (beta * chosen_ratio_P).detach(), (beta * rejected_ratio_P).detach()"),
            "rewards = beta * chosen_ratio_P, (beta * rejected_ratio_P).detach()",
        ),
        (
            ("rewards = (beta * chosen_ratio_P).detach(), (beta * rejected_ratio_P).detach()"),
            "rewards = chosen_ratio_P.detach(), (beta * rejected_ratio_P).detach()",
        ),
        (
            ("rewards = (beta * chosen_ratio_P).detach(), (beta * rejected_ratio_P).detach()"),
            ("rewards = (beta * chosen_ratio_P).detach(), (beta * -rejected_ratio_P).detach()"),
        ),
        (
            (
                "chosen_ratio_P, rejected_ratio_P = chosen_P - ref_chosen_P, rejected_P "
                "- ref_rejected_P"
            ),
            (
                "chosen_ratio_P, rejected_ratio_P = chosen_P - ref_rejected_P, "
                "rejected_P - ref_chosen_P"
            ),
        ),
        (
            'loss, "rejected_tokens_P", rejected_tokens_P, chosen_P',
            'loss, "rejected_tokens_P", chosen_tokens_P, chosen_P',
        ),
        (
            (
                'smoothing = {} if entry.smoothing == "refused" else {"label_smoothing": '
                "label_smoothing}"
            ),
            (
                "smoothing = (\n"
                "        {}\n"
                '        if entry.smoothing == "refused"\n'
                '        else {"label_smoothing": 0.0 * label_smoothing + (1e-3 if loss '
                '== "exo_pair" else 0)}\n'
                "    )"
            ),
        ),
        (
            ("return (margin_P > 4 * torch.finfo(logps.dtype).eps * logps.abs().sum(0)).float()"),
            "return (margin_P > 0 * logps.abs().sum(0)).float()",
        ),
        (
            "margin_P = (logps[0] - logps[2]) - (logps[1] - logps[3])",
            "margin_P = (logps[0] - logps[3]) - (logps[1] - logps[2])",
        ),
        ("if not 0 < beta < math.inf:", "if not 0 <= beta < math.inf:"),
        ("if not 0 <= label_smoothing < 0.5:", "if not 0 <= label_smoothing <= 0.5:"),
        (
            'if entry.smoothing == "refused" and label_smoothing > 0:',
            'if entry.smoothing == "refused" and label_smoothing > 0.3:',
        ),
        (
            ("if vector_P.dtype not in (torch.float32, torch.float64) or vector_P.ndim != 1:"),
            ("if vector_P.dtype not in (torch.float32, torch.float64) or vector_P.ndim > 2:"),
        ),
        ("if tokens_P.shape != like_P.shape:", "if tokens_P.ndim != like_P.ndim:"),
    ),
    *of(
        "zephyr/reference.py",
        (
            "tests/training/test_engine.py::test_reference_is_each_pairs_own",
            (
                "tests/training/test_engine.py::test_what_decides_a_log_prob_is_in_the_st"
                "ores_address"
            ),
            ("tests/training/test_engine.py::test_other_ids_are_another_pair_whatever_their_id"),
            "tests/training/test_engine.py::test_only_what_is_missing_is_computed",
            "tests/training/test_engine.py::test_a_reference_gives_each_pair_its_own",
            ("tests/training/test_engine.py::test_parts_are_read_whole_and_the_first_value_stays"),
            "tests/training/test_engine.py::test_a_store_of_other_values_is_found_out",
        ),
        (('return {\n        "weights": weights,'), "return {"),
        (('"weights": weights,\n        "dtype": hardware.dtype,'), '"weights": weights,'),
        (
            ('"dtype": hardware.dtype,\n        "attention": hardware.attention,'),
            '"dtype": hardware.dtype,',
        ),
        (
            (
                '"weights": weights,\n'
                '        "dtype": hardware.dtype,\n'
                '        "attention": hardware.attention,'
            ),
            '"weights": weights,',
        ),
        (
            (
                "if len(missing) < len(keys):\n"
                "        probe(engine, examples, keys, known, collate, lengths, folder)"
            ),
            "if len(missing) < len(keys):",
        ),
        (
            "if not abs(new - old) <= response_nats(engine.hardware.dtype, len(ids)):",
            ("if not abs(new - old) <= 100 * response_nats(engine.hardware.dtype, len(ids)):"),
        ),
        (
            (
                'for side, ids, new, old in zip(("chosen", "rejected"), pair[2:], fresh, '
                "known[keys[i]]):"
            ),
            ('for side, ids, new, old in zip(("chosen",), pair[2:], fresh, known[keys[i]]):'),
        ),
        (
            (
                'for side, ids, new, old in zip(("chosen", "rejected"), pair[2:], fresh, '
                "known[keys[i]]):"
            ),
            ('for side, ids, new, old in zip(("chosen", "rejected"), pair[2:], fresh, fresh):'),
        ),
        (
            (
                "parts = [\n"
                "        np.asarray(ids, np.int32).tobytes()\n"
                "        for ids in (pair.prompt_ids, pair.chosen_ids, "
                "pair.rejected_ids)\n"
                "    ]"
            ),
            (
                "parts = [np.asarray(ids, np.int32).tobytes() for ids in "
                "(pair.prompt_ids, pair.chosen_ids)]"
            ),
        ),
        (
            (
                "parts = [\n"
                "        np.asarray(ids, np.int32).tobytes()\n"
                "        for ids in (pair.prompt_ids, pair.chosen_ids, "
                "pair.rejected_ids)\n"
                "    ]"
            ),
            (
                "parts = [np.asarray(ids, np.int32).tobytes() for ids in "
                "(pair.chosen_ids, pair.rejected_ids)]"
            ),
        ),
        (
            "for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)",
            ("for ids in (pair.prompt_ids, *sorted((pair.chosen_ids, pair.rejected_ids)))"),
        ),
        (
            (
                "return hashlib.sha256(\n"
                '        b"".join(len(part).to_bytes(8, "little") + part for part in '
                "parts)\n"
                "    ).digest()"
            ),
            'return hashlib.sha256(b"".join(part for part in parts)).digest()',
        ),
        (
            ('if hashlib.sha256(content).hexdigest() != path.stem.removeprefix("part-"):'),
            'if not path.stem.removeprefix("part-"):',
        ),
        (
            (
                "for path in sorted(\n"
                '        folder.glob("part-*.safetensors"), key=lambda path: '
                "path.stat().st_mtime_ns, reverse=True\n"
                "    ):"
            ),
            (
                'for path in sorted(folder.glob("part-*.safetensors"), key=lambda path: '
                "path.stat().st_mtime_ns):"
            ),
        ),
        (
            ("for step in first_epoch.steps\n        if step.epoch < 1"),
            "for step in first_epoch.steps",
        ),
        (
            (
                "ranks\n"
                "        for step in first_epoch.steps\n"
                "        if step.epoch < 1\n"
                "        for ranks in zip(*step.ranks)\n"
                "        if not missing.isdisjoint(chain(*ranks))"
            ),
            (
                "ranks for step in first_epoch.steps if step.epoch < 1 for ranks in "
                "zip(*step.ranks) if True"
            ),
        ),
        (
            (
                "for i, logp in finite(engine, examples, forward_pass(engine, part, "
                "collate)).items()\n"
                "            if i in missing"
            ),
            (
                "for i, logp in finite(engine, examples, forward_pass(engine, part, "
                "collate)).items()"
            ),
        ),
        (
            "return self.logp[indices_P].unbind(-1)",
            "return self.logp[indices_P].flip(-1).unbind(-1)",
        ),
        ("return self.logp[indices_P].unbind(-1)", "return self.logp[: len(indices_P)].unbind(-1)"),
        (
            "return hashlib.sha256(self.logp.cpu().numpy().tobytes()).hexdigest()",
            "return hashlib.sha256(bytes(self.logp.shape)).hexdigest()",
        ),
        (
            "logp.append(torch.stack(response_logprobs(engine, batch), dim=-1))",
            "logp.append(torch.stack(response_logprobs(engine, batch)[::-1], dim=-1))",
        ),
        ("indices += batch.indices", "indices += batch.indices[::-1]"),
    ),
    *of(
        "train_dpo.py",
        ("tests/training/test_objective.py",),
        (
            "loss=config.loss,  #      - (rejected_P - ref_rejected_P)))",
            'loss="sigmoid",  #      - (rejected_P - ref_rejected_P)))',
        ),
        ("beta=config.beta,", "beta=0.1,"),
        (
            "label_smoothing=config.label_smoothing,",
            'label_smoothing=1e-3 if config.loss == "exo_pair" else 0.0,',
        ),
        (
            (
                "chosen_tokens_P=batch.response_tokens_R[: batch.units],\n"
                "            rejected_tokens_P=batch.response_tokens_R[batch.units :],"
            ),
            (
                "chosen_tokens_P=batch.response_tokens_R[batch.units :],\n"
                "            rejected_tokens_P=batch.response_tokens_R[: batch.units],"
            ),
        ),
        (
            ("ref_chosen_P,\n            ref_rejected_P,  #      (chosen_P - ref_chosen_P)"),
            ("ref_rejected_P,\n            ref_chosen_P,  #      (chosen_P - ref_chosen_P)"),
        ),
        (
            "ref_chosen_P, ref_rejected_P = frozen(batch)  # 1. log pi_ref(y|x)",
            (
                "ref_chosen_P, ref_rejected_P = (\n"
                "            logp_P.detach() for logp_P in response_logprobs(policy, "
                "batch)\n"
                "        )  # 1. log pi_ref(y|x)"
            ),
        ),
        ("return terms.loss_P.sum(), {", "return terms.loss_P.mean(), {"),
        (
            (
                '"rewards/chosen": terms.reward_chosen_P,\n'
                '            "rewards/rejected": terms.reward_rejected_P,'
            ),
            (
                '"rewards/chosen": terms.reward_rejected_P,\n'
                '            "rewards/rejected": terms.reward_chosen_P,'
            ),
        ),
        (
            '"rewards/margins": terms.reward_chosen_P - terms.reward_rejected_P,',
            '"rewards/margins": terms.reward_rejected_P - terms.reward_chosen_P,',
        ),
        (
            (
                '"rewards/accuracies": losses.wins(chosen_P, rejected_P, ref_chosen_P, '
                "ref_rejected_P),"
            ),
            (
                '"rewards/accuracies": losses.wins(rejected_P, chosen_P, ref_rejected_P, '
                "ref_chosen_P),"
            ),
        ),
        (
            (
                '"logps/chosen": chosen_P.detach(),\n'
                '            "logps/rejected": rejected_P.detach(),'
            ),
            (
                '"logps/chosen": rejected_P.detach(),\n'
                '            "logps/rejected": chosen_P.detach(),'
            ),
        ),
    ),
    *of(
        "train_dpo.py",
        (
            (
                "tests/training/test_trace.py::test_dpo_equals_plain_pytorch[robust-float"
                "32-forked-ranks-256-tokens-checkpointing-False-mistral]"
            ),
        ),
        (
            'identity: of model and data."""',
            (
                'identity: of model and data."""\n'
                "    [p.ds_tensor.data.mul_(1.01) for p in engine.policy.parameters()]"
            ),
        ),
        (
            (
                "collate = partial(collate_pairs, pairs, "
                "prefix_sharing=config.hardware.prefix_sharing)"
            ),
            "collate = partial(collate_pairs, pairs, prefix_sharing=False)",
        ),
        ("per_step=config.optim.pairs_per_step,", "per_step=config.optim.pairs_per_step + 1,"),
        (
            ("tokenizer=tokenizer,\n        max_tokens=config.data.max_tokens,"),
            ("tokenizer=tokenizer,\n        max_tokens=config.data.max_tokens + 1,"),
        ),
    ),
    *of(
        "train_sft.py",
        (
            (
                "tests/training/test_trace.py::test_sft_equals_plain_pytorch[sigmoid-floa"
                "t32-1-ranks-96-tokens-checkpointing-False-mistral]"
            ),
        ),
        ("targets=config.data.targets,", 'targets="all",'),
        ("window_tokens=config.data.max_tokens,", "window_tokens=config.data.max_tokens + 9,"),
        ('"target_tokens",', '"pairs",'),
    ),
    *of(
        "train_sft.py",
        ("tests/training/test_objective.py",),
        ("return -policy(batch).sum(), {}", "return -policy(batch).mean(), {}"),
        ("return -policy(batch).sum(), {}", "return policy(batch).sum(), {}"),
    ),
    *of(
        "zephyr/config.py",
        (
            "tests/test_config.py::test_defaults_are_the_documented_ones",
            "tests/test_config.py::test_overrides_and_variables",
            "tests/test_config.py::test_what_people_type_is_taken",
            "tests/test_config.py::test_bad_values_are_named",
            "tests/test_config.py::test_bad_files_are_named",
            "tests/test_config.py::test_the_first_value_outside_a_range_is_refused",
            "tests/test_config.py::test_the_last_values_inside_their_ranges_are_taken",
            "tests/test_config.py::test_a_long_message_keeps_its_end",
            "tests/test_security.py::test_a_variable_is_a_path",
            "tests/test_security.py::test_a_url_with_a_secret_is_refused",
            "tests/test_security.py::test_errors_tell_no_secret",
            "tests/test_security.py::test_a_yaml_bomb_is_told",
        ),
        (
            'return line if len(line) <= 600 else f"{line[:400]} ... {line[-190:]}"',
            'return line if len(line) <= 600 else f"{line[:590]} ..."',
        ),
        (
            'line = masked(" ".join(super().__str__().split()))',
            'line = " ".join(super().__str__().split())',
        ),
        (
            'return KNOWN_KEY.sub("[key]", USER.sub("://[user]@", text))',
            'return KNOWN_KEY.sub("[key]", text)',
        ),
        (
            'path = unquote(url.partition("://")[2].partition("/")[2])',
            'path = url.partition("://")[2].partition("/")[2]',
        ),
        (
            (
                "for mark, what in {\n"
                '            "?": "a query",\n'
                '            "#": "a fragment",\n'
                '            "=": "a parameter",\n'
                '            "@": "a user or password",\n'
                "        }.items():"
            ),
            (
                'for mark, what in {"?": "a query", "=": "a parameter", "@": "a user or '
                'password"}.items():'
            ),
        ),
        (
            "if RANDOM.search(path) or NAMED.search(path) or KNOWN_KEY.search(path):",
            "if RANDOM.search(path) or KNOWN_KEY.search(path):",
        ),
        (
            (
                "if isinstance(config, DPOConfig) and config.data.max_prompt_tokens >= "
                "config.data.max_tokens:"
            ),
            (
                "if isinstance(config, DPOConfig) and config.data.max_prompt_tokens > "
                "config.data.max_tokens:"
            ),
        ),
        (
            (
                "if isinstance(config, DPOConfig) and config.data.max_prompt_tokens >= "
                "config.data.max_tokens:"
            ),
            "if config.data.max_prompt_tokens >= config.data.max_tokens:",
        ),
        (
            '"0 <= number < 0.5": (lambda v: 0 <= v < 0.5, "label_smoothing"),',
            '"0 <= number < 0.5": (lambda v: 0 <= v <= 0.5, "label_smoothing"),',
        ),
        (
            '"a number > 0": (lambda v: v > 0, "beta optim.lr_peak"),',
            '"a number > 0": (lambda v: v >= 0, "beta optim.lr_peak"),',
        ),
        (
            '"a number > 0": (lambda v: v > 0, "beta optim.lr_peak"),',
            '"a number > 0": (lambda v: v > 0, "beta"),',
        ),
        (
            ('"a number >= 0": (lambda v: v >= 0, "optim.weight_decay optim.grad_clip"),'),
            '"a number >= 0": (lambda v: v >= 0, "optim.weight_decay"),',
        ),
        (
            '"0 <= number < 1": (lambda v: 0 <= v < 1, "optim.warmup_fraction"),',
            '"0 <= number < 1": (lambda v: 0 <= v <= 1, "optim.warmup_fraction"),',
        ),
        (
            (
                '"two of 0 <= number < 1": (lambda v: all(0 <= beta < 1 for beta in v), '
                '"optim.adam_betas"),'
            ),
            (
                '"two of 0 <= number < 1": (lambda v: any(0 <= beta < 1 for beta in v), '
                '"optim.adam_betas"),'
            ),
        ),
        (
            (
                '"null or 1 <= integer < 2**63": (lambda v: v is None or 1 <= v < 2**63, '
                '"data.limit"),'
            ),
            (
                '"null or 1 <= integer < 2**63": (lambda v: v is None or 0 <= v < 2**63, '
                '"data.limit"),'
            ),
        ),
        (
            '"0 <= integer < 2**63": (lambda v: 0 <= v < 2**63, "run.seed"),',
            '"0 <= integer < 2**63": (lambda v: v < 2**63, "run.seed"),',
        ),
        (
            '"run.eval_every run.save_every run.keep samples.max_new_tokens",',
            '"run.eval_every run.save_every samples.max_new_tokens",',
        ),
        ("lambda v: 1 <= v < 2**31,", "lambda v: 0 <= v < 2**31,"),
        ("lambda v: 1 < v < 2**31,", "lambda v: 0 < v < 2**31,"),
        ("lr_peak: float = 2.0e-5", "lr_peak: float = 2.0e-4"),
        ("max_tokens: int = 2048  # the window", "max_tokens: int = 1024  # the window"),
        ("keep: int = 2", "keep: int = 1"),
        ("if value not in args or type(value) not in map(type, args):", "if value not in args:"),
        ("type(value) is not hint", "not isinstance(value, hint)"),
        (
            (
                "if (\n"
                "        type(value) is not hint\n"
                "        or (hint is float and not math.isfinite(value))\n"
                "        or (hint is str and NO_TEXT.search(value))\n"
                "    ):"
            ),
            ("if type(value) is not hint or (hint is float and not math.isfinite(value)):"),
        ),
        (
            "or (hint is float and not math.isfinite(value))",
            "or (hint is float and math.isnan(value))",
        ),
        (
            "(type(value) is int and abs(value) < 1e300)",
            "type(value) is int",
        ),
        (
            "node = tree[parent] = {} if tree.get(parent) is None else tree[parent]",
            "node = tree[parent] = {} if parent not in tree else tree[parent]",
        ),
        (
            ('if key.partition("[")[0] not in PATHS and (found := VARIABLE.search(text)):'),
            (
                'if key.partition("[")[0] not in PATHS and False and (found := '
                "VARIABLE.search(text)):"
            ),
        ),
        ("if name not in VARIABLES:", "if name in ():"),
        ("if found := secret_in(whole):", "if found := secret_in(text):"),
        ("if len(content) > LARGEST_YAML:", "if len(content) > 2 * LARGEST_YAML:"),
        (
            (
                "sizes[id(node)] = (\n"
                "                LARGEST_YAML + 1\n"
                "            )  # while it is looked at: one that is met again holds "
                "itself"
            ),
            ("sizes[id(node)] = 1  # while it is looked at: one that is met again holds itself"),
        ),
        (
            (
                "close = difflib.get_close_matches(key, names, n=1, cutoff=0.5) or [\n"
                "        name for name in names if name.startswith(key)\n"
                "    ]"
            ),
            "close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)",
        ),
        (
            (
                "meant += [\n"
                "        other\n"
                "        for root in (DPOConfig, SFTConfig)\n"
                '        for other in keys(root, "")\n'
                '        if other.split(".")[-1] == key\n'
                "    ]"
            ),
            (
                "meant += [other for root in (DPOConfig, SFTConfig) for other in "
                'keys(root, "") if other == key]'
            ),
        ),
        (
            (
                '"model tokenizer chat_template data.train data.eval reference.dir '
                'hardware.deepspeed samples.prompts samples.judge "'
            ),
            (
                '"model tokenizer chat_template data.train reference.dir '
                'hardware.deepspeed samples.prompts samples.judge "'
            ),
        ),
        (
            (
                '"HOME USER LOGNAME TMPDIR SCRATCH PSCRATCH WORK WORKDIR WRKDIR PROJECT '
                'STORE DATA DATA_DIR DATASETS MODELS MODEL_DIR "'
            ),
            (
                '"HOME USER LOGNAME TMPDIR PSCRATCH WORK WORKDIR WRKDIR PROJECT STORE '
                'DATA DATA_DIR DATASETS MODELS MODEL_DIR "'
            ),
        ),
        ("if args[-1] is Ellipsis and (value is None or isinstance(value, str)):", "if False:"),
        (
            "if not isinstance(value, list) or (length and len(value) != len(args)):",
            "if not isinstance(value, list):",
        ),
        (
            ("if spec.name not in tree and spec.default is spec.default_factory is MISSING:"),
            "if False and spec.default is spec.default_factory is MISSING:",
        ),
    ),
]
