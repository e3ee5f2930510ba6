"""The faults of `zephyr/model/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/model/sequence.py",
        ("tests/model/test_sequence.py::test_attention_of_several_ranks_is_that_of_one",),
        ("        return received, None", "        return grad, None"),
        ("        return grad, None", "        return 2 * grad, None"),
        ('"g n h e -> (n g) h e")[:tokens]', '"g n h e -> (g n) h e")[:tokens]'),
        ('"g n h e -> n (g h) e")', '"g n h e -> n (h g) e")'),
        ('h e")[:tokens]', 'h e")'),
        ("row_T.index_copy(-1, batch.share.places_T, logp_T)", "row_T + logp_T.sum()"),
    ),
    *of(
        "zephyr/model/adapter.py",
        ("tests/model/test_adapter.py",),
        ("bound = shape[1] ** -0.5", "bound = shape[0] ** -0.5"),
        ("b_OR, layer.scaling[NAME])", "b_OR, 1.0)"),
        ("weight_OI = module.dequantized().cpu()", "weight_OI = 2 * module.dequantized().cpu()"),
        ("isinstance(module, nn.Linear) and module is not head", "isinstance(module, nn.Linear)"),
        ('f"{seed} {name}"', 'f"{seed}"'),
    ),
    *of(
        "zephyr/model/adapter_files.py",
        ("tests/model/test_adapter.py",),
        ('(math.sqrt(rank) if settings.get("use_rslora") else rank)', "rank"),
        ("alpha=scale)", "alpha=1)"),
        ("if key in READ | WITHOUT_EFFECT or not value", "if key != 'use_dora' or not value"),
        ('hashlib.sha256(f"{adapter.scale!r}".encode())', "hashlib.sha256()"),
    ),
    *of(
        "zephyr/model/nf4.py",
        ("tests/model/test_adapter.py",),
        ("offset=self.mean_scale", "offset=0 * self.mean_scale"),
        ("y_NO if self.bias is None else y_NO + self.bias", "y_NO"),
    ),
    *of(
        "zephyr/model/logprobs.py",
        ("tests/model/test_model.py",),
        (
            "logp_T[rows] = target_C - max_T[rows] - sum_T[rows].log()",
            "logp_T[rows] = target_C - sum_T[rows].log()",
        ),
        (
            "max_T[rows] = logits_CV.amax(-1)",
            "max_T[rows] = logits_CV.mean(-1)",
        ),
        (
            (
                "logp_T = hidden_TD.new_empty(\n"
                "            len(targets_T), dtype=torch.promote_types(hidden_TD.dtype, "
                "torch.float32)\n"
                "        )"
            ),
            "logp_T = hidden_TD.new_empty(len(targets_T), dtype=hidden_TD.dtype)",
        ),
        (
            "grad_weight_VD = torch.zeros_like(weight_VD, dtype=sum_T.dtype)",
            "grad_weight_VD = torch.zeros_like(weight_VD)",
        ),
        (
            ("grad_CV = torch.mul(exp_CV, (-grad_T[rows] / sum_T[rows])[:, None], out=out_CV)"),
            "grad_CV = torch.mul(exp_CV, (-grad_T[rows])[:, None], out=out_CV)",
        ),
        (
            "(-grad_T[rows] / sum_T[rows])[:, None]",
            "(-1 / sum_T[rows])[:, None]",
        ),
        (
            "grad_CV.scatter_add_(-1, targets_T[rows, None], grad_T[rows, None])",
            (
                "grad_CV.scatter_add_(-1, targets_T[rows, None], "
                "torch.ones_like(grad_T[rows, None]))"
            ),
        ),
        (
            "exp_CV = out_CV = logits_CV.sub_(max_T[rows, None]).exp_()",
            "exp_CV = out_CV = logits_CV.exp_()",
        ),
        (
            ("grad_CV = torch.mul(exp_CV, (-grad_T[rows] / sum_T[rows])[:, None], out=out_CV)"),
            ("grad_CV = torch.mul(exp_CV, (-grad_T[rows] / sum_T[rows])[:, None], out=exp_CV)"),
        ),
        (
            "keep = len(targets_T) * len(weight_VD) <= KEPT_ELEMENTS",
            "keep = True",
        ),
        (
            (
                "return [slice(start, min(start + rows, tokens)) for start in range(0, "
                "tokens, rows)]"
            ),
            (
                "return [slice(start, min(start + rows, tokens)) for start in range(0, "
                "max(1, tokens - 1), rows)]"
            ),
        ),
        (
            "rows = max(1, CHUNK_ELEMENTS[weight_VD.device.type] // len(weight_VD))",
            "rows = tokens",
        ),
        (
            "total_VD.addmm_(left_VC.to(total_VD.dtype), right_CD.to(total_VD.dtype))",
            "total_VD.copy_(left_VC.to(total_VD.dtype) @ right_CD.to(total_VD.dtype))",
        ),
        (
            (
                "return torch.cat([hidden_ND.index_select(0, first_T), "
                "hidden_ND.index_select(0, rest_T)])"
            ),
            (
                "return torch.cat([hidden_ND.index_select(0, rest_T), "
                "hidden_ND.index_select(0, first_T)])"
            ),
        ),
        (
            "return logp_R[: batch.units], logp_R[batch.units :]",
            "return logp_R[batch.units :], logp_R[: batch.units]",
        ),
        (
            (
                "return torch.segment_reduce(\n"
                '        logp_T.double(), "sum", lengths=batch.response_tokens_R, '
                "unsafe=True\n"
                "    ).to(logp_T.dtype)"
            ),
            (
                'return torch.segment_reduce(logp_T, "sum", lengths=batch.response_tokens_R, '
                "unsafe=True).to(\n"
                "        logp_T.dtype\n"
                "    )"
            ),
        ),
        (
            'logp_T.double(), "sum", lengths=batch.response_tokens_R, unsafe=True',
            'logp_T.double(), "mean", lengths=batch.response_tokens_R, unsafe=True',
        ),
        (
            "head.weight, head.factor = linear.weight, factor",
            ("head.weight, head.factor = nn.Parameter(linear.weight.detach().clone()), factor"),
        ),
        (
            "if linear.bias is not None:",
            "if linear.bias is None and False:",
        ),
        (
            "return super().forward(hidden_TD)",
            "return super().forward(hidden_TD).log_softmax(-1)",
        ),
    ),
    *of(
        "zephyr/model/attention.py",
        ("tests/model/test_attention.py",),
        (
            (
                "sees = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys "
                "- queries)"
            ),
            "sees = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()",
        ),
        (
            "return sees if window is None else sees.triu(keys - queries - window + 1)",
            "return sees if window is None else sees.triu(keys - queries - window)",
        ),
        (
            "return sees if window is None else sees.triu(keys - queries - window + 1)",
            "return sees if window is None else sees.triu(1 - window)",
        ),
        (
            "plain = num_queries == num_keys and (window is None or window >= num_keys)",
            "plain = window is None or window >= num_keys",
        ),
        (
            "plain = num_queries == num_keys and (window is None or window >= num_keys)",
            "plain = num_queries == num_keys and (window is None or window >= 3)",
        ),
        (
            ("            scale=scale,\n            enable_gqa=grouped,"),
            "            enable_gqa=grouped,",
        ),
        (
            "query.shape[-1] ** -0.5 if scaling is None else scaling,",
            "query.shape[-1] ** -0.5,",
        ),
        (
            "if sliding_window is not None and sliding_window >= layout.max_key:",
            "if sliding_window is not None and sliding_window >= layout.max_query:",
        ),
        (
            (
                "return torch.cat([key_NKE[: layout.num_own_keys], key_NKE.index_select(0, "
                "layout.appended_A)])"
            ),
            (
                "return torch.cat([key_NKE[: layout.num_own_keys], -key_NKE.index_select(0, "
                "layout.appended_A)])"
            ),
        ),
        (
            "append_shared_keys(value_NKE, layout),",
            "append_shared_keys(key_NKE, layout),",
        ),
        (
            ('    if dropout > 0:\n        refused.append("dropout")\n'),
            "",
        ),
        (
            (
                "refused = sorted(k for k, v in unknown.items() if v is not None and k not "
                "in IGNORED)"
            ),
            (
                "refused = sorted(k for k, v in unknown.items() if v is not None and k not "
                'in {*IGNORED, "softcap"})'
            ),
        ),
        (
            "causal=True,",
            "causal=False,",
        ),
        (
            "window_size=(-1, -1) if window is None else (window - 1, 0),",
            "window_size=(-1, -1) if window is None else (window, 0),",
        ),
        (
            (
                "flash_attn_varlen_func(\n"
                "        query_NHE,\n"
                "        key_MKE,\n"
                "        value_MKE,\n"
                "        layout.cu_query,\n"
                "        layout.cu_key,"
            ),
            (
                "flash_attn_varlen_func(\n"
                "        query_NHE,\n"
                "        key_MKE,\n"
                "        value_MKE,\n"
                "        layout.cu_query,\n"
                "        layout.cu_query,"
            ),
        ),
        (
            '"window_size": (-1 if window is None else window - 1, 0),',
            '"window_size": (-1 if window is None else window - 1, -1),',
        ),
        (
            'options = {"is_causal": True}',
            'options = {"is_causal": False}',
        ),
        (
            '"scale": scale,',
            '"scale": None,',
        ),
        (
            "if window is not None or not default_scale:",
            "if window is not None:",
        ),
        (
            (
                "AttentionInterface.register(name, partial(attend, KERNELS[attention]))\n"
                "    AttentionMaskInterface.register(name, sdpa_mask)"
            ),
            "AttentionInterface.register(name, partial(attend, KERNELS[attention]))",
        ),
        (
            'if device != "cuda":',
            'if device == "nothing":',
        ),
        (
            "if dtype not in (torch.bfloat16, torch.float16):",
            "if dtype == torch.float64:",
        ),
    ),
    *of(
        "zephyr/model/recompute.py",
        (
            "tests/model/test_memory.py::test_a_layer_of_7b_keeps_what_is_predicted",
            "tests/model/test_recompute.py",
            "tests/model/test_model.py::test_activation_policies_keep_less_and_change_nothing",
            "tests/model/test_model.py::test_layers_without_an_mlp_are_named",
        ),
        (
            "if what is True:",
            "if what:",
        ),
        (
            'if name.endswith(".mlp") or (name.endswith("norm") and "forward" not in vars(module))',
            'if name.endswith(".mlp")',
        ),
        (
            'if not any(name.endswith(".mlp") for name in parts):',
            "if not parts:",
        ),
        (
            "if not lm.supports_gradient_checkpointing:",
            "if False:",
        ),
        (
            "if kept and ends_with_product(output):",
            "if kept:",
        ),
        (
            "            output = self.kept.popleft()\n",
            "            output = self.kept.pop()\n",
        ),
        (
            "and writes_first(op) and self.last == memory(args[0]):",
            "and False:",
        ),
        (
            "return StorageWeakRef(cast(Tensor, tensor).untyped_storage())",
            "return cast(Tensor, tensor).untyped_storage()._cdata",
        ),
        (
            "node = max(below, key=lambda function: function._sequence_nr())",
            "node = below[-1]",
        ),
        (
            "            if not self.kept:\n",
            "            if False:\n",
        ),
        (
            'return name in MATRIX_PRODUCTS or "attention" in name or "attn" in name',
            "return name in MATRIX_PRODUCTS",
        ),
        (
            "return node.name() in PRODUCT_NODES",
            "return True",
        ),
    ),
    *of(
        "zephyr/model/memory.py",
        (
            "tests/training/test_planner.py::test_activations_of_mistral_7b_by_hand",
            "tests/training/test_planner.py::test_a_layer_keeps_what_is_predicted",
            "tests/training/test_planner.py::test_memory_of_a_rank_by_hand",
            "tests/training/test_planner.py::test_memory_of_a_head_by_hand",
            "tests/training/test_planner.py::test_the_peak_is_of_the_update_or_of_a_micro_batch",
            "tests/model/test_memory.py::test_a_layer_of_7b_keeps_what_is_predicted",
            "tests/model/test_memory.py::test_a_step_of_7b_takes_what_an_h200_measured",
            "tests/model/test_memory.py::test_two_layers_take_what_an_h200_measured",
            "tests/verify/test_verify.py::test_a_disk_or_a_memory_that_is_too_small",
        ),
        (
            'return 2 if hardware.dtype == "bfloat16" else 4',
            "return 4",
        ),
        (
            "return heads * head_size, key_heads * head_size",
            "return heads * head_size, heads * head_size",
        ),
        (
            'outputs = 2 if hardware.attention == "sdpa" else 1',
            "outputs = 1",
        ),
        (
            'outputs = 2 if hardware.attention == "sdpa" else 1',
            "outputs = 2",
        ),
        (
            "attention: float = (1 + outputs) * query + 2 * keys * key + log_sum_exp",
            "attention: float = (1 + outputs) * query + 2 * key + log_sum_exp",
        ),
        (
            "attention: float = (1 + outputs) * query + 2 * keys * key + log_sum_exp",
            "attention: float = (1 + outputs) * query + 2 * keys * key",
        ),
        (
            "        return norms + attention\n",
            "        return norms\n",
        ),
        (
            "return 2 * item * hidden + 2 * query + 2 * key + log_sum_exp",
            "return item * hidden + 2 * query + 2 * key + log_sum_exp",
        ),
        (
            "return 2 * item * hidden + 2 * query + 2 * key + log_sum_exp",
            "return 2 * item * hidden + 2 * query + 2 * keys * key + log_sum_exp",
        ),
        (
            "norms += 2 * 4 if fused else 0",
            "norms += 0",
        ),
        (
            "        norms += 2 * 4 * hidden\n",
            "        pass\n",
        ),
        (
            "mlp_bytes(lm, hardware, 3 if fused else 4)",
            "mlp_bytes(lm, hardware, 4)",
        ),
        (
            "    return again + inner + 2 * item_bytes(hardware) * int(lm.hidden_size)\n",
            "    return again\n",
        ),
        (
            "again = whole - keeps",
            "again = 0.0",
        ),
        (
            ("        return item * hidden\n"),
            ("        return 2 * item * hidden\n"),
        ),
        (
            "mlp_bytes(lm, hardware, 3 if fused else 4)",
            "mlp_bytes(lm, hardware, 3)",
        ),
        (
            "return size or 4 * int(lm.hidden_size)",
            "return 4 * int(lm.hidden_size)",
        ),
        (
            "share = (adapters or parameters) // ranks",
            "share = adapters or parameters",
        ),
        (
            'if "offload_optimizer" not in zero:',
            'if "offload_param" not in zero:',
        ),
        (
            '(4 + joined + denominator) * min(share, zero_size(zero, "sub_group_size"))',
            "(4 + joined + denominator) * share",
        ),
        (
            'joined = 2 if gradient_dtype == "bfloat16" else 0',
            "joined = 0",
        ),
        (
            'return parts["moments"] + max(parts["update"], micro_batch)',
            'return parts["moments"] + parts["update"] + micro_batch',
        ),
        (
            'if ranks > 1 or "offload_param" in zero:',
            'if ranks > 0 or "offload_param" in zero:',
        ),
        (
            'if ranks > 1 or "offload_param" in zero:',
            "if ranks > 1:",
        ),
        (
            'live = min(parameters, zero_size(zero, "stage3_max_live_parameters"))',
            "live = parameters",
        ),
        (
            "keeps = tokens * lm.num_hidden_layers * layer_bytes(lm, hardware, keys)",
            "keeps = tokens * layer_bytes(lm, hardware, keys)",
        ),
        (
            '"activations": int(keeps + max(0, layer - head)),',
            '"activations": int(keeps + layer),',
        ),
        (
            "kept = 4 * logits if logits <= KEPT_ELEMENTS else 4 * chunk",
            "kept = 4 * logits",
        ),
        (
            "scored = tokens if scored is None else scored\n",
            "scored = tokens\n",
        ),
        (
            '4 * chunk if item == 2 and device == "cpu" else 0',
            '4 * chunk if device == "cpu" else 0',
        ),
        (
            "(4 + item % 4) * (chunk + weight)",
            "4 * (chunk + weight)",
        ),
    ),
    *of(
        "zephyr/model/policy.py",
        (
            "tests/model/test_model.py::test_learned_positions_are_an_end",
            "tests/model/test_model.py::test_neighbours_in_a_row_get_exactly_no_gradient",
            "tests/model/test_model.py::test_the_factor_of_the_logits",
            (
                "tests/model/test_model.py::test_fixed_frequencies_are_for_so_many_tokens_and"
                "_no_more"
            ),
            "tests/model/test_model.py::test_positions_that_are_no_embedding_have_no_end",
            ("tests/model/test_families.py::test_an_untrained_second_epoch_stays_at_ln_2[Phi-3 1]"),
            ("tests/model/test_families.py::test_an_untrained_second_epoch_stays_at_ln_2[Llama 2]"),
            "tests/model/test_families.py::test_packed_equals_eager[Granite-untied]",
            "tests/model/test_families.py::test_packed_equals_eager[Phi-3 1-untied]",
            "tests/model/test_families.py::test_packed_equals_eager[Gemma 3-tied]",
        ),
        (
            (
                "if self.max_sequence_tokens is not None and batch.layout.max_key > "
                "self.max_sequence_tokens:"
            ),
            (
                "if (\n"
                "            self.max_sequence_tokens is not None\n"
                "            and batch.layout.max_key > self.max_sequence_tokens + 1\n"
                "        ):"
            ),
        ),
        (
            (
                "if self.max_sequence_tokens is not None and batch.layout.max_key > "
                "self.max_sequence_tokens:"
            ),
            (
                "if self.max_sequence_tokens is not None and len(batch.tokens_N) > "
                "self.max_sequence_tokens:"
            ),
        ),
        (
            ("input_ids=batch.tokens_N[None],\n            position_ids=batch.positions_N[None],"),
            "input_ids=batch.tokens_N[None],",
        ),
        (
            ("use_cache=False,\n            layout=batch.layout,"),
            "use_cache=False,",
        ),
        (
            "head(scored_hidden(hidden_ND, batch), batch.targets_T, collision)",
            "head(scored_hidden(hidden_ND, batch))",
        ),
        (
            (")\n    lm.tie_weights()"),
            ")",
        ),
        (
            ("lm.set_output_embeddings(LogProbHead.from_linear(head, logit_factor(config)))"),
            "lm.set_output_embeddings(LogProbHead.from_linear(head))",
        ),
        (
            ("return (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor)"),
            ("return (1.0 if factor is None else factor) * (1.0 if divisor is None else divisor)"),
        ),
        (
            'factor: float | None = getattr(config, "logit_scale", None)',
            "factor: float | None = None",
        ),
        (
            'if rope_type == "longrope":',
            "if False:",
        ),
        (
            'length = settings["original_max_position_embeddings"]',
            "length = rotary.config.max_position_embeddings",
        ),
        (
            'elif "dynamic" in rope_type:',
            "elif False:",
        ),
        (
            "return positions if positions in sizes else None",
            "return positions",
        ),
        (
            (
                "sizes = {\n"
                "        module.num_embeddings\n"
                "        for module in lm.modules()\n"
                "        if isinstance(module, nn.Embedding) and module is not words\n"
                "    }"
            ),
            (
                "sizes = {module.num_embeddings for module in lm.modules() if "
                "isinstance(module, nn.Embedding)}"
            ),
        ),
        (
            "if max_tokens is None or not ropes:",
            "if not ropes:",
        ),
        (
            "return min((rope.original_tokens for rope in ropes), default=None)",
            "return None",
        ),
        (
            "return min((rope.original_tokens for rope in ropes), default=None)",
            "return max_tokens",
        ),
        (
            "module.get_buffer(buffer).device, seq_len=max_tokens, **options",
            "module.get_buffer(buffer).device, seq_len=None, **options",
        ),
        (
            ("    module.register_buffer(buffer, inv_freq, persistent=False)\n"),
            "",
        ),
        (
            ('    else:\n        module.rope_type = "default"'),
            ("    else:\n        pass"),
        ),
        (
            "return max_tokens",
            "return None",
        ),
    ),
    *of(
        "zephyr/model/packing_check.py",
        (
            "tests/model/test_packing_check.py",
            (
                "tests/model/test_every_decoder.py::test_numbers_and_calls_alone_refuse_a_sta"
                "te[lfm2]"
            ),
            (
                "tests/model/test_every_decoder.py::test_numbers_and_calls_alone_refuse_a_sta"
                "te[qwen3_5_text]"
            ),
        ),
        (
            "HEADS, HEAD_SIZE, VOCABULARY, WINDOW, SHORT = 4, 16, 96, 5, 8",
            "HEADS, HEAD_SIZE, VOCABULARY, WINDOW, SHORT = 4, 16, 96, 50, 8",
        ),
        (
            "TOLERANCE = 2e-3",
            "TOLERANCE = 1e3",
        ),
        (
            ("    if reason:\n        raise ValueError(reason)\n"),
            "",
        ),
        (
            ('with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():'),
            'with torch.device("cpu"), torch.enable_grad():',
        ),
        (
            "if whole.get_text_config() is not whole:",
            "if False:",
        ),
        (
            (
                ")\n"
                "    reason = unsupported_reason(empty, config)\n"
                "    if reason:\n"
                "        return reason"
            ),
            ")",
        ),
        (
            ('        "sliding_window": WINDOW,\n'),
            "",
        ),
        (
            ('"head_dim": small_size,\n        "num_attention_heads": HEADS,'),
            '"head_dim": small_size,',
        ),
        (
            (
                "    if key_heads == 1:\n"
                "        return 1\n"
                "    return HEADS if key_heads == heads else 2"
            ),
            "    return 2",
        ),
        (
            '"max_position_embeddings": round(SHORT * longest / start) if start else 64,',
            '"max_position_embeddings": 64,',
        ),
        (
            "(16 if differs else 0)",
            "0",
        ),
        (
            "return value[:: round(1 / fraction)][: round(len(value) * fraction)]",
            "return value",
        ),
        (
            "return value if not isinstance(value, (int, list)) or value == -1 else 1",
            "return value",
        ),
        (
            "and value >= LONGEST",
            "and value > 512",
        ),
        (
            ("and key in declared\n            and key not in known"),
            "and key in declared",
        ),
        (
            ("and value >= LONGEST\n            and key in declared"),
            "and value >= LONGEST",
        ),
        (
            (
                "others = sorted(\n"
                '        {kind for kind in layers if kind == "linear_attention" or '
                '"attention" not in kind}\n'
                "    )"
            ),
            'others = sorted({kind for kind in layers if "attention" not in kind})',
        ),
        (
            "if experts:",
            "if False:",
        ),
        (
            "if any(buffer in empty.state_dict() for buffer, _ in empty.named_buffers()):",
            "if False:",
        ),
        (
            ("if sum(parameter.numel() for parameter in empty.parameters()) > MAX_PARAMETERS:"),
            "if False:",
        ),
        (
            "if len(calls) != config.num_hidden_layers or len(set(calls)) != len(calls):",
            "if len(calls) < config.num_hidden_layers:",
        ),
        (
            "if len(calls) != config.num_hidden_layers or len(set(calls)) != len(calls):",
            "if False:",
        ),
        (
            "if not error <= TOLERANCE:",
            "if error > TOLERANCE:",
        ),
        (
            "if gradient_1ND[0, ~own_N].any():",
            "if False:",
        ),
        (
            "nn.init.normal_(parameter, centre, 0.1)",
            "nn.init.normal_(parameter, centre, 0.001)",
        ),
        (
            "return plain.eval(), Policy(lm).train()",
            "return plain.eval(), Policy(lm).eval()",
        ),
        (
            "fix_rope(decoder, LONGEST)",
            "pass",
        ),
        (
            "chosen = [(pair.prompt_ids, pair.chosen_ids) for pair in PAIRS]",
            "chosen = [(pair.prompt_ids, pair.rejected_ids) for pair in PAIRS]",
        ),
        (
            "if error.args == (PROOF,):",
            "if False:",
        ),
    ),
    *of(
        "zephyr/model/generate.py",
        (
            "tests/model/test_generate.py",
            (
                "tests/model/test_export.py::test_generation_continues_training_ids_and_keeps"
                "_the_order"
            ),
        ),
        (
            "if len(ids) + max_new_tokens > positions:",
            "if max_new_tokens > positions:",
        ),
        (
            "if len(ids) + max_new_tokens > positions:",
            "if len(ids) + max_new_tokens >= positions:",
        ),
        (
            "encode_prompt(tokenizer, messages, template",
            "encode_prompt(tokenizer, messages[-1:], template",
        ),
        (
            ("was_training = lm.training\n    lm.eval()"),
            "was_training = lm.training",
        ),
        (
            "lm.train(was_training)",
            "lm.train()",
        ),
        (
            "limits = [max_new_tokens[i] for i in chosen]",
            "limits = sorted(max_new_tokens[i] for i in chosen)[::-1]",
        ),
        (
            (
                "sample = sampler(rows, [seeds[i] for i in chosen], temperature, top_p, "
                "top_k, lm.device)"
            ),
            "sample = sampler(rows, seeds, temperature, top_p, top_k, lm.device)",
        ),
        (
            "return [answers[i] for i in range(len(encoded))]",
            "return list(answers.values())",
        ),
        (
            'f"{seed} {list(row)}"',
            'f"{seed}"',
        ),
        (
            'hashlib.sha256(f"{seed} {list(row)}".encode()).digest()',
            'hashlib.sha256(f"{list(row)}".encode()).digest()',
        ),
        (
            ("empty_V = torch.empty(scores_BV.shape[1], dtype=torch.float64, device=device)"),
            ("empty_V = torch.empty(scores_BV.shape[1], dtype=torch.float16, device=device)"),
        ),
        (
            "return scores_BV - torch.stack(noise).log()",
            "return scores_BV + torch.stack(noise).log()",
        ),
        (
            "return scores_BV - torch.stack(noise).log()",
            "return scores_BV - torch.stack(noise)",
        ),
        (
            "[TemperatureLogitsWarper(float(temperature))]",
            "[]",
        ),
        (
            "    if top_k:",
            "    if top_k > 5:",
        ),
        (
            "    if top_p < 1:",
            "    if top_p > 1:",
        ),
        (
            "warpers.append(add_gumbel_noise)",
            "warpers.insert(0, add_gumbel_noise)",
        ),
        (
            "[padding] * (length - len(ids)) + [*ids] for",
            "[*ids] + [padding] * (length - len(ids)) for",
        ),
        (
            "[[0] * (length - len(ids)) + [1] * len(ids) for ids in rows]",
            "[[1] * length for ids in rows]",
        ),
        (
            "max_new_tokens=max(limits),",
            "max_new_tokens=min(limits),",
        ),
        (
            "return limits_B <= ids_BL.shape[1] - length",
            "return limits_B <= ids_BL.shape[1]",
        ),
        (
            "ids.index(eos) + 1 if stopped else limit",
            "ids.index(eos) if stopped else limit",
        ),
        (
            "end = ids.index(eos) + 1 if stopped else limit",
            "end = ids.index(eos) + 1 if eos in ids else limit",
        ),
        (
            '"stop" if stopped else "length"',
            '"stop" if eos in ids else "length"',
        ),
        (
            "Answer(text, len(prompt), end,",
            "Answer(text, length, end,",
        ),
    ),
    *of(
        "zephyr/model/load.py",
        (
            "tests/model/test_model.py::test_weights_have_one_digest_however_sharded",
            "tests/model/test_model.py::test_broken_models_are_named",
            "tests/model/test_model.py::test_weights_are_those_that_hugging_face_reads",
            "tests/model/test_model.py::test_learned_positions_are_an_end",
            ("tests/model/test_model.py::test_activation_policies_keep_less_and_change_nothing"),
            "tests/model/test_model.py::test_a_digest_is_of_all_that_decides_a_log_prob",
            "tests/model/test_model.py::test_what_a_file_holds_beside_the_weights",
            ("tests/model/test_model.py::test_no_tensor_is_written_before_all_are_known_to_fit"),
            "tests/model/test_model.py::test_models_that_are_no_decoder_are_refused",
            "tests/model/test_model.py::test_a_path_is_a_folder_or_a_hub_id",
            "tests/model/test_model.py::test_an_index_names_files_beside_it",
            "tests/model/test_model.py::test_what_cant_run_is_known_before_anything_loads",
            "tests/model/test_model.py::test_layers_without_an_mlp_are_named",
            (
                "tests/model/test_model.py::test_fixed_frequencies_are_for_so_many_tokens_and"
                "_no_more"
            ),
            "tests/training/test_planner.py::test_a_layer_keeps_what_is_predicted",
        ),
        (
            ("config = read_config(folder)\n    require_supported(folder, config)"),
            "config = read_config(folder)",
        ),
        (
            "except MODEL_CONFIG_ERRORS as error:",
            "except OSError as error:",
        ),
        (
            "if positions is not None and (max_tokens or 0) > positions:",
            "if positions is not None and (max_tokens or 0) > positions + 1:",
        ),
        (
            "if positions is not None and (max_tokens or 0) > positions:",
            "if positions is not None and (max_tokens or 0) >= positions:",
        ),
        (
            "return Policy(lm, positions if longest is None else longest, quantize)",
            "return Policy(lm, longest, quantize)",
        ),
        (
            "return Policy(lm, positions if longest is None else longest, quantize)",
            "return Policy(lm, positions, quantize)",
        ),
        (
            ("    checkpoint_activations(lm, activation_checkpointing)\n"),
            "",
        ),
        (
            'if reason:\n        yield ConfigError(f"hardware.attention: {reason}")',
            'if False:\n        raise ConfigError(f"hardware.attention: {reason}")',
        ),
        (
            "if is_first_of_node() and (alone or not asks_hub(config)):",
            "if alone or not asks_hub(config):",
        ),
        (
            "            yield from missing_weights(folder)",
            "            pass",
        ),
        (
            ("lm_config = read_config(folder)\n    require_supported(folder, lm_config)"),
            "lm_config = read_config(folder)",
        ),
        (
            'not text.startswith((".", "/", "~")) and text.count("/") == 1',
            'text.count("/") == 1',
        ),
        (
            'not text.startswith((".", "/", "~")) and text.count("/") == 1',
            'not text.startswith((".", "/", "~"))',
        ),
        (
            "except Exception as error:  # of the hub, or of httpx:",
            "except OSError as error:  # of the hub, or of httpx:",
        ),
        (
            "except (*MODEL_CONFIG_ERRORS, OSError, RecursionError) as error:",
            "except (OSError, RecursionError) as error:",
        ),
        (
            ("if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:"),
            "if config.is_encoder_decoder:",
        ),
        (
            ("if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:"),
            "if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:",
        ),
        (
            ('INACTIVE_VALUES = {\n    "final_logit_softcapping": None,'),
            "INACTIVE_VALUES = {",
        ),
        (
            ('"attn_pdrop": 0.0,\n    "resid_pdrop": 0.0,'),
            '"attn_pdrop": 0.0,',
        ),
        (
            "if found not in (inactive, None):",
            "if found not in (inactive,):",
        ),
        (
            "source = whole if whole.is_file() else index",
            "source = index if index.is_file() else whole",
        ),
        (
            "if unread:",
            "if False:",
        ),
        (
            "if any(path.parent != folder for path in files.values()):",
            "if False:",
        ),
        (
            "if expected != found:",
            "if expected - found:",
        ),
        (
            "if expected != found:",
            "if found - expected:",
        ),
        (
            "- expected - tied - frequencies",
            "- expected - frequencies",
        ),
        (
            "- expected - tied - frequencies",
            "- expected - tied",
        ),
        (
            "if not missing and not left_over:",
            "if not missing:",
        ),
        (
            "if not missing and not left_over:",
            "if not left_over:",
        ),
        (
            "if found != list(shape):",
            "if len(found) != len(shape):",
        ),
        (
            'head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()',
            'head = f"{name} {list(tensor.shape)}".encode()',
        ),
        (
            'head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()',
            'head = f"{name} {tensor.dtype}".encode()',
        ),
        (
            '"torch_dtype", "use_cache"):',
            '"torch_dtype"):',
        ),
        (
            (
                "parts = [json.dumps(config, sort_keys=True), *threads.map(tensor_digest, "
                "sorted(files))]"
            ),
            "parts = [*threads.map(tensor_digest, sorted(files))]",
        ),
        (
            (
                "parts = [json.dumps(config, sort_keys=True), *threads.map(tensor_digest, "
                "sorted(files))]"
            ),
            (
                "parts = [json.dumps(config, sort_keys=True), *threads.map(tensor_digest, "
                "sorted(files)[1:])]"
            ),
        ),
    ),
    *of(
        "zephyr/model/export.py",
        (
            "tests/model/test_export.py::test_shards_keep_order_and_size",
            "tests/model/test_export.py::test_export_in_many_shards_holds_one_at_a_time",
            "tests/model/test_export.py::test_generation_goes_on_as_the_source_did",
            "tests/model/test_export.py::test_version_4_finds_its_rotary_keys",
            (
                "tests/model/test_export.py::test_a_rotary_embedding_that_version_4_has_no_ke"
                "y_for_is_noted"
            ),
            "tests/model/test_export.py::test_the_config_of_an_export_is_the_model_s_own",
            "tests/model/test_export.py::test_a_tokenizer_is_written_for_both_versions",
            "tests/model/test_export.py::test_an_export_is_whole_or_as_it_was",
            "tests/model/test_export.py::test_the_index_of_shards_counts_their_bytes",
        ),
        (
            "if filled and filled + size > shard_bytes:",
            "if filled + size > shard_bytes:",
        ),
        (
            "if filled and filled + size > shard_bytes:",
            "if filled and filled + size >= shard_bytes:",
        ),
        (
            "shard, filled = shard + 1, 0",
            "shard = shard + 1",
        ),
        (
            (
                "return {\n"
                '        name: f"model-{s + 1:05d}-of-{shard + 1:05d}.safetensors" for name, '
                "s in shard_of.items()\n"
                "    }"
            ),
            (
                'return {name: f"model-{s + 1:05d}-of-{shard:05d}.safetensors" for name, s '
                "in shard_of.items()}"
            ),
        ),
        (
            ("if writes:\n        shutil.rmtree(part, ignore_errors=True)"),
            "if writes:",
        ),
        (
            "shard.clear()  # frees its memory before the next shard is gathered",
            "pass",
        ),
        (
            "if len(set(files.values())) > 1:",
            "if False:",
        ),
        (
            (
                'index = {"metadata": {"total_size": sum(size for _, size in sizes)}, '
                '"weight_map": files}'
            ),
            'index = {"metadata": {"total_size": len(sizes)}, "weight_map": files}',
        ),
        (
            ("    shutil.rmtree(folder, ignore_errors=True)\n    os.replace(part, folder)"),
            "    os.replace(part, folder)",
        ),
        (
            "notes = [*notes, *save_config(part, config, tokenizer, ends)]",
            "notes = save_config(part, config, tokenizer, ends)",
        ),
        (
            (
                "shard.clear()  # frees its memory before the next shard is gathered\n"
                "    if not writes:\n"
                "        return []"
            ),
            "shard.clear()  # frees its memory before the next shard is gathered",
        ),
        (
            'for name in ("generation_config.json", "config.json"):',
            'for name in ("generation_config.json",):',
        ),
        (
            'for name in ("generation_config.json", "config.json"):',
            'for name in ("config.json", "generation_config.json"):',
        ),
        (
            'settings = found if name == "generation_config.json" else {}',
            "settings = found",
        ),
        (
            ("    elif isinstance(theirs, int):\n        ends.append(theirs)"),
            ("    else:\n        ends.append(theirs)"),
        ),
        (
            ("    ends = [tokenizer.eos_token_id]\n    if isinstance"),
            ("    ends = [] if theirs else [tokenizer.eos_token_id]\n    if isinstance"),
        ),
        (
            "ends = list(dict.fromkeys(ends))",
            "ends = [tokenizer.eos_token_id]",
        ),
        (
            (
                "pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else "
                "tokenizer.pad_token_id"
            ),
            "pad = tokenizer.pad_token_id",
        ),
        ("    path.chmod(mode)\n", ""),
        (
            'settings.pop("_from_model_config", None)',
            "pass",
        ),
        (
            '{**config.to_dict(), "use_cache": True}',
            ("{\n            **config.to_dict(),\n        }"),
        ),
        (
            (
                "plain.bos_token_id, plain.eos_token_id = tokenizer.bos_token_id, "
                "unwrap_single(ends)"
            ),
            (
                "plain.bos_token_id, plain.eos_token_id = tokenizer.bos_token_id, "
                "tokenizer.eos_token_id"
            ),
        ),
        (
            ("return []\n        write_json(path, saved)"),
            "return []",
        ),
        (
            ("if older is not None:\n        write_json(path, saved | older)"),
            "if older is not None:",
        ),
        (
            "if rope.get(key) is not None",
            'if rope.get(key) is not None and key == "rope_theta"',
        ),
        (
            'return older | {"rope_local_base_freq": local.get("rope_theta")}',
            "return older",
        ),
        (
            'alike = same_base and local.get("rope_type", "default") == "default"',
            'alike = local.get("rope_type", "default") == "default"',
        ),
        (
            'alike = same_base and local.get("rope_type", "default") == "default"',
            "alike = same_base",
        ),
        (
            "return older if alike else None",
            "return older",
        ),
        (
            'if model_type == "phi3":',
            "if False:",
        ),
        (
            ('            "long_factor": rope["long_factor"],\n'),
            "",
        ),
        (
            "scaling = {key: value for key, value in rope.items() if key not in older}",
            "scaling = dict(rope)",
        ),
        (
            "tokenizer.chat_template = unfreeze_date(template_with_bos(tokenizer, own))",
            "tokenizer.chat_template = unfreeze_date(own)",
        ),
        (
            "tokenizer.chat_template = own",
            "pass",
        ),
        (
            'saved["tokenizer_class"] = "PreTrainedTokenizerFast"',
            "pass",
        ),
        (
            'saved["additional_special_tokens"] = extra',
            "pass",
        ),
        (
            'saved.setdefault("model_input_names", list(tokenizer.model_input_names))',
            "pass",
        ),
        (
            'if [again(text)["input_ids"] for text in PROBES] == expected:',
            "if True:",
        ),
        (
            "return ids[0] if len(ids) == 1 else ids",
            "return ids[0]",
        ),
    ),
    *of(
        "zephyr/model/triton_kernels.py",
        ("tests/model/test_fused_layers.py",),
        (
            "return x_RD if x_RD.stride(1) == 1 else x_RD.contiguous()",
            "return x_RD",
        ),
        (
            "        with torch.cuda.device_of(x):\n            rms_norm_backward",
            "        if True:\n            rms_norm_backward",
        ),
        (
            "dx = scale * (g - normal * mean[:, None])",
            "dx = scale * g",
        ),
        (
            "dweight += tl.sum(dy * normal, axis=0)",
            "dweight = tl.sum(dy * normal, axis=0)",
        ),
        (
            "range(program * TILE_R, rows, programs * TILE_R)",
            "range(program * TILE_R, rows - TILE_R + 1, programs * TILE_R)",
        ),
        (
            "scale = tl.rsqrt(tl.sum(x * x, axis=1) / size + eps)",
            "scale = tl.rsqrt(tl.sum(x * x, axis=1) / TILE_D + eps)",
        ),
        (
            "silu = (gate * tl.sigmoid(gate)).to(y_ptr.dtype.element_ty).to(tl.float32)",
            "silu = gate * tl.sigmoid(gate)",
        ),
        (
            "dgate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))",
            "dgate = dy * up * sigmoid * (1.0 + gate * sigmoid)",
        ),
        (
            "gate_RD.stride(0), up_RD.stride(0), **swiglu_tile(size)",
            "size, size, **swiglu_tile(size)",
        ),
        (
            "y2 = x2 * cos2 - x1 * sin1",
            "y2 = x2 * cos2 + x1 * sin1",
        ),
        (
            "y_BTHE = torch.empty_like(x_BTHE) if size == head_size else x_BTHE.clone()",
            "y_BTHE = torch.zeros_like(x_BTHE)",
        ),
    ),
    *of(
        "zephyr/model/fused.py",
        ("tests/model/test_fused_layers.py",),
        (
            "Version(version(package)) < Version(LIGER_AT_LEAST)",
            "version(package) < LIGER_AT_LEAST",
        ),
        (
            "for offset, rounds_first in ((0.0, True), (0.0, False), (1.0, False)):",
            "for offset, rounds_first in ((0.0, True), (1.0, False)):",
        ),
        (
            "turned = LigerRopeFunction.apply(query.clone(), key.clone(), cos, sin)",
            "turned = LigerRopeFunction.apply(query, key, cos, sin)",
        ),
        (
            'casting, in_place = "llama" if rounds_first else "gemma", False',
            'casting, in_place = "llama" if rounds_first else "gemma", True',
        ),
        (
            "names = {**forward.__globals__, ROTATE: rotate}",
            "names = forward.__globals__\n    names[ROTATE] = rotate",
        ),
        (
            "if not any(compilers) or not headers.is_file():",
            "if not any(compilers):",
        ),
        (
            "    require_some(lm, found, fused)\n    modules",
            "    modules",
        ),
        (
            'return rms_norm(x, module.get_parameter("weight"), *norm)',
            'return rms_norm(x, module.get_parameter("weight"), 1e-6, *norm[1:])',
        ),
    ),
]
