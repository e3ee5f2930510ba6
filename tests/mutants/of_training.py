"""The faults of `zephyr/training/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/training/heartbeat.py",
        ("tests/hosts/test_node_caches.py::test_which_ranks_did_not_come",),
        ("        return [0]\n", "        return []\n"),
        ("Ranks? ([\\d, ]+) failed", "Ranks? (\\d+) failed"),
    ),
    *of(
        "zephyr/training/engine.py",
        ("tests/hosts/test_hub_ranks.py::test_one_rank_asks_the_hub",),
        ("contextlib.nullcontext() if first else hub.offline()", "contextlib.nullcontext()"),
    ),
    *of(
        "zephyr/hub.py",
        ("tests/hosts/test_hub_ranks.py::test_one_rank_asks_the_hub",),
        ("constants.HF_HUB_OFFLINE = True", "constants.HF_HUB_OFFLINE = before"),
    ),
    *of(
        "zephyr/training/optimizers.py",
        ("tests/training/test_engine.py",),
        ("betas=optim.adam_betas, eps=1e-8, fused=True", "eps=1e-8, fused=True"),
        ("betas=optim.adam_betas,", "betas=optim.adam_betas[::-1],"),
        ("betas=optim.adam_betas, eps=1e-8,", "betas=optim.adam_betas, eps=1e-6,"),
    ),
    *of(
        "zephyr/training/optimizers.py",
        ("tests/training/test_trace.py",),
        ("lr=0.0, alpha=0.99, eps=1e-8)", "lr=0.0, alpha=0.9, eps=1e-8)"),
        ('sum_of_squares(norms) * group["lr"] ** 2', 'sum_of_squares(norms) * group["lr"]'),
    ),
    *of(
        "zephyr/training/metrics.py",
        (
            "tests/training/test_trace.py::test_dpo_equals_plain_pytorch"
            "[sigmoid-float32-2-ranks-256-tokens-checkpointing-elementwise-qwen3-lora-none"
            "-2-together]",
        ),
        ("value if self.counts else torch.zeros_like(value)", "value"),
    ),
    *of(
        "zephyr/training/published.py",
        (
            "tests/training/test_published_loss.py::test_a_loss_is_reached_from_both_sides",
            "tests/training/test_published_loss.py::test_a_loss_that_is_not_finite_is_not_reached",
            "tests/training/test_published_loss.py::test_records_that_cannot_be_read_are_no_failure",
        ),
        (
            "return abs(self.difference) <= self.within + 1e-9",
            "return self.difference <= self.within + 1e-9",
        ),
        ("self.within + 1e-9", "self.within"),
        ('if record["split"] == "eval" and record["step"] > 0:', 'if record["split"] == "eval":'),
        ("if math.isfinite(self.eval_loss) else None", "if True else None"),
    ),
    *of(
        "zephyr/progress.py",
        ("tests/test_progress.py",),
        (
            "elif self.shows_lines and clock() - self.last_line >= LINE_SECONDS:",
            "elif self.shows_lines:",
        ),
        (
            "new = clock() - self.started, self.done - self.initial",
            "new = clock() - self.started, self.done",
        ),
        ('os.environ.get("RANK", "0") == "0"\n\n\ndef bars', "True\n\n\ndef bars"),
        ("self.bar.leave = stays", "self.bar.leave = True"),
        ("sys.stderr = stderr", "pass"),
    ),
    *of(
        "zephyr/training/curves.py",
        ("tests/training/test_curves.py", "tests/training/test_metrics.py"),
        ('if metric not in ("step", "split")', 'if metric != "split"'),
        ('return f"{split}_{head}/{tail}"', 'return f"{split}/{metric}"'),
        ("SECTIONS.get(metric, split)", "split"),
        ("if not path.exists():", "if True:"),
        ('"digests": dict(digests)', '"digests": {}'),
    ),
    *of(
        "zephyr/training/engine.py",
        ("tests/training/test_engine.py",),
        (
            '{"params": vectors, "weight_decay": 0.0},',
            '{"params": vectors, "weight_decay": optim.weight_decay},',
        ),
        (
            '{"params": matrices, "weight_decay": optim.weight_decay},',
            '{"params": matrices, "weight_decay": 0.0},',
        ),
        (
            "matrices = [p for p in trained if len(p.ds_shape) > 1]",
            "matrices = [p for p in trained if p.ndim > 1]",
        ),
        (
            "self.engine.backward(loss * self.world_size)",
            "self.engine.backward(loss * self.world_size * 2)",
        ),
        (
            "self.engine.set_gradient_accumulation_boundary(last)",
            "self.engine.set_gradient_accumulation_boundary(not last)",
        ),
        ('group["lr"] = lr', 'group["lr"] = max(lr, group["lr"])'),
        (
            "for group in self.engine.optimizer.param_groups:",
            "for group in self.engine.optimizer.param_groups[:1]:",
        ),
        (
            ("norm = float(self.step(0.0))\n        self.engine.optimizer.optimizer.state.clear()"),
            "norm = float(self.step(0.0))",
        ),
        ("norm = float(self.step(0.0))", "norm = float(self.step(1e-3))"),
        (
            (
                "with deepspeed.zero.Init(config_dict_or_path=settings):\n"
                "            torch.arange = arange"
            ),
            "with deepspeed.zero.Init(config_dict_or_path=settings):",
        ),
        ("parameter.copy_(read())", "parameter.copy_(read().abs())"),
        (
            ("self.on_all_ranks(lambda: shards.load_shards(self.live_shards(step), folder))"),
            "self.on_all_ranks(lambda: shards.load_shards(self.live_shards(0), folder))",
        ),
        (
            (
                "self.on_all_ranks(lambda: shards.load_shards(self.live_shards(step), "
                "folder))\n"
                "        shards.refresh_parameters(self.engine.optimizer)"
            ),
            ("self.on_all_ranks(lambda: shards.load_shards(self.live_shards(step), folder))"),
        ),
        ("except OSError as error:", "except FileExistsError as error:"),
        (
            "values = [p.detach().cpu().clone() for p in tensor.parameters]",
            "values = [p.detach().cpu()[:1].clone() for p in tensor.parameters]",
        ),
        (
            ('for part in ("embed_tokens", "lm_head", ".lora_")'),
            ('for part in ("lm_head", ".lora_")'),
        ),
        ('raise own or BadInput(f"on host', 'return own or BadInput(f"on host'),
        ("        move_buffers(loaded, self.device)\n", ""),
        ("named_buffers(recurse=False, remove_duplicate=False)", "named_buffers(recurse=False)"),
        ("module.named_buffers(recurse=False,", "policy.named_buffers(recurse=False,"),
    ),
    *of(
        "zephyr/training/engine.py",
        ("tests/training/test_gradients.py",),
        ("self.choose_gradient_dtype(micro_batches)", "self.choose_gradient_dtype(None)"),
        (
            "ranks=self.world_size, micro_batches=micro_batches",
            "ranks=self.world_size, micro_batches=1",
        ),
        ('if self.hardware.gather == "layer":', 'if self.hardware.gather == "module":'),
    ),
    *of(
        "zephyr/training/engine.py",
        ("tests/training/test_deepspeed_settings.py",),
        ("if not any(name in os.environ for name in names):", "if names[0] not in os.environ:"),
    ),
    *of(
        "zephyr/training/launch.py",
        ("tests/training/test_deepspeed_settings.py",),
        ("    use_expandable_segments()  # `check` may start CUDA\n", ""),
    ),
    *of(
        "zephyr/training/deepspeed_settings.py",
        ("tests/training/test_deepspeed_settings.py", "tests/training/test_many_ranks.py"),
        ("if size < 1 or (ranks > size and ranks % size):", "if size < 1:"),
        ("        if zero.get(key):\n            raise", "        if False:\n            raise"),
        ('"gradient_clipping": optim.grad_clip,', '"gradient_clipping": 1.0,'),
        (
            '"gradient_accumulation_steps": 1,\n        "gradient_clipping": optim.grad_clip,',
            '"gradient_accumulation_steps": 1,',
        ),
        ('"grad_accum_dtype": short},', "},"),
        ('"bf16": {"enabled": hardware.dtype == "bfloat16"},', '"bf16": {"enabled": True},'),
        ("    if ranks == 1:\n", "    if ranks < 3:\n"),
        ("if micro_batches > 1:", "if micro_batches > 2:"),
        ("if ranks > 1 and reduced is not None", "if reduced is not None"),
        ("asked = of_yaml or of_json", "asked = of_yaml"),
        ('if device == "cuda" and ranks == 1 and', 'if device == "cuda" and'),
        (
            (
                '"train_micro_batch_size_per_gpu": "hardware.tokens_per_micro_batch",\n'
                '    "gradient_accumulation_steps": "hardware.tokens_per_micro_batch",'
            ),
            '"train_micro_batch_size_per_gpu": "hardware.tokens_per_micro_batch",',
        ),
        (
            'if not isinstance(zero, dict) or zero.get("stage") != 3:',
            'if not isinstance(zero, dict) or zero.get("stage") not in (2, 3):',
        ),
    ),
    *of(
        "zephyr/training/loop.py",
        (
            ("tests/training/test_engine.py::test_records_are_means_over_the_pairs_of_their_step"),
            "tests/training/test_engine.py::test_the_first_gradient_is_that_of_the_mean",
            ("tests/training/test_engine.py::test_evaluation_is_of_all_pairs_after_its_updates"),
            "tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was",
            (
                "tests/training/test_engine.py::test_a_record_of_several_steps_is_over_all_th"
                "eir_pairs"
            ),
            (
                "tests/training/test_engine.py::test_the_policy_is_sampled_at_the_start_and_a"
                "t_each_evaluation"
            ),
            "tests/training/test_engine.py::test_a_signal_ends_the_step_and_saves",
            (
                "tests/training/test_engine.py::test_the_update_is_measured_where_a_record_is"
                "_written"
            ),
            (
                "tests/training/test_engine.py::test_the_next_micro_batch_is_made_while_the_fo"
                "rward_runs"
            ),
            (
                "tests/training/test_engine.py::test_a_loss_that_is_not_finite_ends_the_run_u"
                "nchanged"
            ),
        ),
        (
            "loss = loss_sum / step_weight * (1 + 0 * loss_sum.detach())",
            "loss = loss_sum / max(1, batch.units) * (1 + 0 * loss_sum.detach())",
        ),
        (
            "loss = loss_sum / step_weight * (1 + 0 * loss_sum.detach())",
            "loss = loss_sum / step_weight",
        ),
        (
            "engine.backward(loss, last=following is None)",
            "engine.backward(loss, last=following is not None)",
        ),
        ("        batch = following\n", "        batch = next(batches, following)\n"),
        (
            "train_step(engine, config, train, step, rates[step], ledger, records)",
            "train_step(engine, config, train, step, rates[step - first_step], ledger, records)",
        ),
        (
            "for step in range(first_step, len(steps)):",
            "for step in range(max(0, first_step - 1), len(steps)):",
        ),
        (
            "for step in range(first_step, len(steps)):",
            "for step in range(first_step, len(steps) - 1):",
        ),
        (
            '"epoch": split.plan.steps[step].epoch,',
            '"epoch": float(int(split.plan.steps[step].epoch)),',
        ),
        ("step % run.log_every == 0 or saves", "step % run.log_every == 0"),
        (
            ("interval = Interval(time.perf_counter())\n            recorder.advance()"),
            (
                "interval.started, interval.steps = time.perf_counter(), 0\n"
                "            recorder.advance()"
            ),
        ),
        ('"grad_norm": sums["grad_norm"],', '"grad_norm": interval.sums["grad_norm"],'),
        (
            "return math.sqrt(update / weight)",
            "return update / weight",
        ),
        (
            "epoch = float(config.optim.epochs) if last else steps[updates].epoch",
            "epoch = steps[step].epoch",
        ),
        (
            "if (evaluation or sample) and (updates % run.eval_every == 0 or last):",
            "if (evaluation or sample) and (step % run.eval_every == 0 or last):",
        ),
        (
            "if (evaluation or sample) and (updates % run.eval_every == 0 or last):",
            "if (evaluation or sample) and updates % run.eval_every == 0:",
        ),
        (
            "if saves or stop:",
            "if saves:",
        ),
        (
            "saves = updates % run.save_every == 0 or last",
            "saves = updates % run.save_every == 0",
        ),
        ("if stop and not last:", "if stop and last:"),
        ("    if records:\n        # Squared norms", "    if True:\n        # Squared norms"),
        ("if records or stop:", "if records:"),
        ("if first_step == 0 and (evaluation or sample):", "if evaluation or sample:"),
        (
            "ledger.add(step, epoch, batch.indices, stats)\n        batch = following",
            "ledger.add(step, epoch, batch.indices[::-1], stats)\n        batch = following",
        ),
        ("means = {name: value / weight for name", "means = {name: value / units for name"),
        (('    "stop",\n    "grad_norm",'), '    "grad_norm",'),
        ("            require_finite(engine, train, step, sums, ledger, recorder)\n", ""),
        (("        if not ids:\n            ids = "), "        ids = "),
        ("self.sums[name] = self.sums.get(name, 0) + value", "self.sums[name] = value"),
        (
            ("        if ledger:\n            ledger.commit(updates, rows)"),
            ("        if ledger:\n            pass"),
        ),
        (
            ('"packing_efficiency": sums["tokens"] / (sums["micro_batches"] * budget_tokens),'),
            '"packing_efficiency": sums["tokens"] / budget_tokens,',
        ),
    ),
    *of(
        "zephyr/training/schedule.py",
        (
            "tests/training/test_training.py::test_schedules_by_hand",
            "tests/training/test_training.py::test_warm_up_is_rounded_up",
        ),
        (
            "warmup_steps = math.ceil(warmup_fraction * steps)",
            "warmup_steps = math.floor(warmup_fraction * steps)",
        ),
        (
            "warmup_steps = math.ceil(warmup_fraction * steps)",
            "warmup_steps = max(1, math.ceil(warmup_fraction * steps))",
        ),
        ("if step < warmup_steps:", "if step < warmup_steps - 1:"),
        ("return lr_peak * step / warmup_steps", "return lr_peak * (step + 1) / warmup_steps"),
        ("return lr_peak * step / warmup_steps", "return lr_peak * step / steps"),
        (
            "left = (steps - step) / max(1, steps - warmup_steps)",
            "left = (steps - 1 - step) / max(1, steps - warmup_steps)",
        ),
        ("left = (steps - step) / max(1, steps - warmup_steps)", "left = (steps - step) / steps"),
        (
            '"cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),',
            '"cosine": 0.5 * (1 + math.cos(math.pi * left)),',
        ),
        (
            '"cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),',
            '"cosine": 0.5 * (1 + math.cos(math.pi / 2 * (1 - left))),',
        ),
        (
            '"cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),',
            '"cosine": (1 + math.cos(math.pi * (1 - left))),',
        ),
        ('"constant": 1.0,', '"constant": left,'),
        ('"linear": left,', '"linear": left**2,'),
        ("return lr_peak * factors[schedule]", "return factors[schedule]"),
    ),
    *of(
        "zephyr/training/shards.py",
        (
            "tests/training/test_shards.py",
            ("tests/training/test_engine.py::test_state_on_disk_goes_on_as_if_nothing_had_been"),
            "tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was",
            ("tests/training/test_engine.py::test_update_and_weight_are_those_of_the_weights"),
        ),
        ("start = rank * size", "start = 0"),
        ("real = max(0, min(size, parameter.ds_numel - start))", "real = size"),
        (
            "real = max(0, min(size, parameter.ds_numel - start))",
            "real = min(size, parameter.ds_numel)",
        ),
        ("offset += size", "offset += real"),
        (
            "state.update(new_state(zero.optimizer, flat.detach(), steps))",
            "state.update(new_state(zero.optimizer, flat.detach(), 0))",
        ),
        (
            'values = flat.detach() if vector == "master" else state[vector]',
            'values = flat.detach() if vector == "master" else state["exp_avg"]',
        ),
        ('for vector in ("master", *moments):', 'for vector in ("master", moments[0]):'),
        (
            'update = square.sqrt().add_(group["eps"] * unbias_sq.sqrt())',
            'update = square.sqrt().add_(group["eps"])',
        ),
        (
            "torch.div(mean, update, out=update).mul_(lr * unbias_sq.sqrt() / unbias)",
            "torch.div(mean, update, out=update).mul_(lr / unbias)",
        ),
        (
            "torch.div(mean, update, out=update).mul_(lr * unbias_sq.sqrt() / unbias)",
            "torch.div(mean, update, out=update).mul_(lr * unbias_sq.sqrt())",
        ),
        (
            'update.add_(weight, alpha=lr * group["weight_decay"])',
            'update.add_(weight, alpha=-lr * group["weight_decay"])',
        ),
        ("norms += [update.norm(), weight.norm()]", "norms += [weight.norm(), update.norm()]"),
        (("ranges.clear()\n        number += 1"), "ranges.clear()"),
        ("if numel != shard.numel:", "if numel < shard.numel:"),
        ("if filled != len(shard.values):", "if filled > len(shard.values):"),
        (
            "a, b = max(start, shard.start), min(start + values.get_shape()[0], end)",
            "a, b = max(start, shard.start), min(start + whole, end)",
        ),
        ("source = values[a - start : b - start]", "source = values[: b - a]"),
        (
            "shard.values[a - shard.start : b - shard.start].copy_(source)",
            "shard.values[: b - a].copy_(source)",
        ),
        (
            "ranges[shard.name] = [shard.start, shard.numel]",
            "ranges[shard.name] = [0, shard.numel]",
        ),
        ("for group in range(len(zero.fp16_groups)):", "for group in range(1):"),
    ),
    *of(
        "zephyr/training/checkpoint.py",
        (
            "tests/training/test_identity.py",
            "tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was",
            "tests/training/test_engine.py::test_another_run_is_not_gone_on_with",
            (
                "tests/training/test_engine.py::test_checkpoints_are_kept_and_the_newest_whol"
                "e_one_is_taken"
            ),
            "tests/training/test_engine.py::test_what_the_disk_refuses_is_bad_input",
        ),
        ('        found["loss"] = {"name": name, **settings} if settings else name\n', ""),
        ('{"name": name, **settings} if settings else name', "name"),
        ('        found["label_smoothing"] = config.label_smoothing\n', ""),
        ('    found["run.seed"] = config.run.seed\n', ""),
        ('    found["data.shuffle"] = config.data.shuffle\n', ""),
        ('    found["hardware.dtype"] = config.hardware.dtype\n', ""),
        ('found[f"optim.{key}"] = value', "pass"),
        ("    found.update(more)\n", ""),
        (
            "json.dumps([step.examples() for step in plan.steps])",
            "json.dumps([len(step.examples()) for step in plan.steps])",
        ),
        (
            "json.dumps([step.examples() for step in plan.steps])",
            "json.dumps([step.ranks for step in plan.steps])",
        ),
        (
            "if old not in before[len(before) - keep + 1 :]:",
            "if old not in before[len(before) - keep :]:",
        ),
        ("if old not in before[len(before) - keep + 1 :]:", "if old not in before[keep - 1 :]:"),
        (
            'write_atomic(whole.parent / "latest", whole.name.encode())',
            'write_atomic(whole.parent / "latest", b"step-0")',
        ),
        (
            "engine.on_rank0(lambda: step_paths(folder)[::-1])",
            "engine.on_rank0(lambda: step_paths(folder))",
        ),
        ("engine.load_state(path, step_number(path))", "engine.load_state(path, 0)"),
        ("return step_number(path)", "return step_number(path) + 1"),
        ('if changes and resume != "force":', 'if changes and resume == "force":'),
        ('if changes and resume != "force":', "if changes:"),
        (
            "if not (folder / name).is_file() or synced_digest(folder / name) != digest:",
            "if not (folder / name).is_file():",
        ),
        (
            "if not (folder / name).is_file() or synced_digest(folder / name) != digest",
            "if (folder / name).is_file() and synced_digest(folder / name) != digest",
        ),
        ("before = [path for path in others if step_number(path) < state.step]", "before = others"),
        ("shutil.rmtree(left_over)", "pass"),
        ('return ["state.json"] if rank == 0 else []', "return []"),
    ),
    *of(
        "zephyr/training/metrics.py",
        (
            ("tests/training/test_engine.py::test_records_are_means_over_the_pairs_of_their_step"),
            "tests/training/test_engine.py::test_the_first_gradient_is_that_of_the_mean",
            ("tests/training/test_engine.py::test_evaluation_is_of_all_pairs_after_its_updates"),
            "tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was",
            (
                "tests/training/test_engine.py::test_a_record_of_several_steps_is_over_all_th"
                "eir_pairs"
            ),
            (
                "tests/training/test_engine.py::test_the_policy_is_sampled_at_the_start_and_a"
                "t_each_evaluation"
            ),
            "tests/training/test_engine.py::test_a_signal_ends_the_step_and_saves",
            (
                "tests/training/test_engine.py::test_a_loss_that_is_not_finite_ends_the_run_u"
                "nchanged"
            ),
        ),
        ("row.update(zip(stats, of_pair))", "row.update(zip([*reversed(stats)], of_pair))"),
        ("name: (value_P.detach().double() * weight_P).sum()", "name: value_P.double().mean()"),
        (
            "self.sums[name] = self.sums[name] + value if name in self.sums else value",
            "self.sums[name] = value",
        ),
        ("if step_number(path) > first_step:", "if step_number(path) >= first_step:"),
        ("if step_number(path) > first_step:", "if False:"),
        ('if record["step"] < step or evaluated:', 'if record["step"] <= step or evaluated:'),
        ((")\n        self.visits.clear()"), ")"),
    ),
    *of(
        "zephyr/training/alarms.py",
        ("tests/training/test_alarms.py",),
        (
            'reach = metrics["update_ratio"] / rate * sum(rates) if rate else math.inf',
            'reach = metrics["update_ratio"] * sum(rates) if rate else math.inf',
        ),
        (
            'metrics["update_ratio"] / rate * sum(rates)',
            'metrics["update_ratio"] / rate * max(rates)',
        ),
        ('metrics["update_ratio"] / rate * sum(rates)', 'metrics["update_ratio"] / rate'),
        ("else math.inf", "else 0.0"),
        ("if reach < precision:", "if reach > precision:"),
        ("if reach < precision:", "if reach < 1e-3:"),
        ('drop = -metrics["rewards/chosen"] / beta', 'drop = -metrics["rewards/chosen"]'),
        ('drop = -metrics["rewards/chosen"] / beta', 'drop = metrics["rewards/chosen"] / beta'),
        (
            (
                "MAX_CHOSEN_DROP = 0.25  # of the reference's log-prob; Zephyr-7B-beta's own "
                "run ended at 0.18"
            ),
            (
                "MAX_CHOSEN_DROP = 0.15  # of the reference's log-prob; Zephyr-7B-beta's own "
                "run ended at 0.18"
            ),
        ),
        ('reference = metrics["logps/chosen"] + drop', 'reference = metrics["logps/chosen"]'),
        (
            'best = max(earlier, key=lambda r: number(r, "rewards/accuracies"))',
            "best = earlier[-1]",
        ),
        (
            'best = max(earlier, key=lambda r: number(r, "rewards/accuracies"))',
            'best = max(earlier, key=lambda r: number(r, "rewards/margins"))',
        ),
        ("if drop <= 2 * standard_error", "if drop <= standard_error"),
        (
            "standard_error = math.sqrt(share * (1 - share) / pairs)",
            "standard_error = math.sqrt(share * (1 - share))",
        ),
        (
            "if drop <= 2 * standard_error or margin <= best_margin:",
            "if drop <= 2 * standard_error:",
        ),
        ('if "rewards/accuracies" not in record or not earlier:', "if not earlier:"),
        (
            'if "rewards/accuracies" not in record or not earlier:',
            'if "rewards/accuracies" not in record:',
        ),
    ),
    *of(
        "zephyr/training/flops.py",
        ("tests/training/test_planner.py",),
        ("attention = 4 * config.num_hidden_layers", "attention = 2 * config.num_hidden_layers"),
        ("heads = config.num_attention_heads\n", "heads = config.num_key_value_heads\n"),
        (
            'head_size = getattr(config, "head_dim", None) or config.hidden_size // heads',
            "head_size = config.hidden_size // heads",
        ),
        ("2.0 * num_layer_parameters * tokens", "num_layer_parameters * tokens"),
        ("config.vocab_size * scored", "config.vocab_size * tokens"),
        (
            "attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2",
            "attended = (first**2 + both**2 - 0) / 2",
        ),
        (
            "attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2",
            "attended = (first**2 + both**2 - prompt**2) / 2",
        ),
        (
            "attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2",
            "attended = first**2 + both**2 - (prompt**2 if prefix_sharing else 0)",
        ),
        ("tokens = first + (rejected if prefix_sharing else both)", "tokens = first + both"),
        (
            ("scored = chosen + rejected"),
            "scored = tokens",
        ),
        (
            "num_layer_parameters, tokens, targets, attended, adapters)",
            "num_layer_parameters, tokens, tokens, attended, adapters)",
        ),
        (
            "attended = tokens**2 / 2",
            "attended = targets**2 / 2",
        ),
        (
            "return 3 * forward / (seconds * ranks * DEVICES[name].peak)",
            "return forward / (seconds * ranks * DEVICES[name].peak)",
        ),
        (
            "return 3 * forward / (seconds * ranks * DEVICES[name].peak)",
            "return 3 * forward / (seconds * DEVICES[name].peak)",
        ),
        (("if name is None:\n        return None"), ("if name is None:\n        return 0.0")),
    ),
    *of(
        "zephyr/training/planner.py",
        ("tests/training/test_planner.py",),
        (
            "longest = max(range(len(tokens)), key=lambda i: tokens[i])",
            "longest = min(range(len(tokens)), key=lambda i: tokens[i])",
        ),
        ("if tokens[longest] > budget_tokens:", "if tokens[longest] >= budget_tokens:"),
        (
            'f"the longest example ({ids[longest]}), got {budget_tokens}"',
            'f"the longest example ({longest}), got {budget_tokens}"',
        ),
        (
            "micro_batches = sum(len(step.ranks[0]) for step in plan.steps)",
            "micro_batches = sum(len(step.ranks) for step in plan.steps)",
        ),
        ("examples = len(plan.steps[0].examples())", "examples = len(plan.steps[0].ranks[0])"),
        ('f"{plan.fill_ratio:.1%} of the budget', 'f"{plan.imbalance:.1%} of the budget'),
    ),
    *of(
        "zephyr/training/folder.py",
        (
            "tests/training/test_folder.py",
            "tests/test_security.py::test_a_run_writes_through_no_link",
        ),
        (
            'self.path, self.writes = path, os.environ.get("RANK", "0") == "0"',
            "self.path, self.writes = path, True",
        ),
        ('if resume == "never" and self.contains_run():', 'if resume == "never":'),
        (
            'if resume == "never" and self.contains_run():',
            'if resume != "force" and self.contains_run():',
        ),
        (
            ("self.path.mkdir(parents=True, exist_ok=True)\n            self.require_files()"),
            "self.path.mkdir(parents=True, exist_ok=True)",
        ),
        (
            'lock = (self.path / "lock").open("a+", encoding="utf-8")',
            'lock = (self.path / "lock").open("w+", encoding="utf-8")',
        ),
        (
            ("try:\n                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)"),
            ("try:\n                pass"),
        ),
        (
            ("try:\n                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)"),
            ("try:\n                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)"),
        ),
        ("                    lock.seek(0)\n", ""),
        ((") from None\n            lock.truncate(0)"), ") from None"),
        (
            (
                'lock.write(f"pid {os.getpid()} on host {socket.gethostname()}\\n")\n'
                "            lock.flush()"
            ),
            'lock.write(f"pid {os.getpid()} on host {socket.gethostname()}\\n")',
        ),
        (
            "self.lock, self.claimed = lock, not self.contains_run()",
            "self.lock, self.claimed = lock, True",
        ),
        (
            "self.lock, self.claimed = lock, not self.contains_run()",
            "self.claimed = not self.contains_run()",
        ),
        (('"chat_template.jinja",\n    "samples.jsonl",'), '"chat_template.jinja",'),
        (("        self.claimed = True\n        for name"), "        for name"),
        (
            ("self.write_file(name, content)\n        self.pending = {}"),
            "self.write_file(name, content)",
        ),
        ("self.pending[name] = content", "self.pending.setdefault(name, content)"),
        (("self.pending[name] = content\n            return"), "self.pending[name] = content"),
        (
            ('whole or as it was before."""\n        if not self.writes:\n            return'),
            'whole or as it was before."""',
        ),
        (
            "if self.writes and self.lock is None and not self.contains_run():",
            "if self.writes and self.lock is None:",
        ),
        (
            "self.writes and self.lock is None and not self.contains_run()",
            "self.lock is None and not self.contains_run()",
        ),
        (("with contextlib.suppress(BadInput):\n                self.open()"), "self.open()"),
        ("(self.path / STATUS).write_bytes(content)", "pass"),
        (
            'if self.claimed and read_json(status)["code"] is None:',
            'if read_json(status)["code"] is None:',
        ),
        (
            'if self.claimed and read_json(status)["code"] is None:',
            'if self.claimed and read_json(status)["code"] != 0:',
        ),
        (
            'write_atomic(status, json_bytes({"code": 1, "message": RANK0_LOST}))',
            'write_atomic(status, json_bytes({"code": 0, "message": RANK0_LOST}))',
        ),
        ("                    return True", "                        return True"),
        ("if time.monotonic() >= until:", "if time.monotonic() >= seconds:"),
        ('text.encode("utf-8", "backslashreplace")', 'text.encode("utf-8", "replace")'),
        ("json.dumps(value, indent=1, ensure_ascii=False)", "json.dumps(value, indent=1)"),
        (("if self.lock is not None:\n            self.lock.close()"), "pass"),
    ),
    *of(
        "zephyr/training/checkpoint.py",
        ("tests/training/test_folder.py",),
        (
            'for name in (IDENTITY, "metrics.jsonl", "report.html")',
            'for name in (IDENTITY, "report.html")',
        ),
        (('    if step_paths(run_dir / "checkpoints"):\n        return "checkpoints/"\n'), ""),
        ('for name in ("pairs", "model", "adapter")', 'for name in ("pairs",)'),
    ),
    *of(
        "zephyr/training/launch.py",
        (
            "tests/training/test_launch.py",
            "tests/training/test_faults.py::test_a_second_sigint_stops_at_once",
        ),
        ("STOPPED = 75", "STOPPED = 1"),
        ("if asked is not None:", "if asked is not None and asked.gpus is None:"),
        ("check(config)\n                run(", "run("),
        ('if os.environ.get("RANK", "0") == "0":', "if True:"),
        (
            "print_bad_input(error)\n            return finish_run(folder, BAD_INPUT, str(error))",
            "print_bad_input(error)\n            return BAD_INPUT",
        ),
        (
            "return finish_run(folder, STOPPED, str(stop))",
            "return finish_run(folder, BAD_INPUT, str(stop))",
        ),
        (
            ("if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):"),
            "if isinstance(error, OSError) and error.errno in (errno.ENOSPC,):",
        ),
        (
            ("if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):"),
            "if isinstance(error, OSError):",
        ),
        ("if is_lost_rank_error(error):", "if isinstance(error, RuntimeError):"),
        (
            ('print(f"error: {why}", file=sys.stderr)\n            finish_run(folder, 1, why)'),
            'print(f"error: {why}", file=sys.stderr)',
        ),
        (("finish_run(folder, 1, why)\n            raise"), "return finish_run(folder, 1, why)"),
        (
            (
                'return finish_run(folder, 0, "finished", '
                "last_comparison(config.published, config.run.dir))"
            ),
            "return 0",
        ),
        ("folder.write_status(code, message, more)", "folder.write_status(0, message, more)"),
        (
            ("folder.write_status(code, message, more)\n        folder.close()"),
            "folder.write_status(code, message, more)",
        ),
        (
            'found = re.search("peer|NCCL|timed out|No route to host|Broken pipe"',
            'found = re.search("peer"',
        ),
        (
            'found = re.search("peer|NCCL|timed out|No route to host|Broken pipe"',
            'found = re.match("peer|NCCL|timed out|No route to host|Broken pipe"',
        ),
        (
            "return isinstance(error, RuntimeError) and found is not None",
            "return found is not None",
        ),
        ("partial(folder.open, config.run.resume)", "folder.open"),
        (
            (
                "folder.claimed = engine.broadcast(folder.claimed)\n"
                '        folder.write_file("config.yaml", to_yaml(config).encode())'
            ),
            "folder.claimed = engine.broadcast(folder.claimed)",
        ),
        (
            (
                'folder.write_file("config.yaml", to_yaml(config).encode())\n'
                '        folder.write_status(None, "running")'
            ),
            'folder.write_file("config.yaml", to_yaml(config).encode())',
        ),
        ('folder.write_status(None, "running")', 'folder.write_status(0, "running")'),
        ("signals.enter_context(handle_stop_signals(engine))", "pass"),
        (
            "signals.enter_context(handle_stop_signals(engine))\n        try:\n            train(",
            "try:\n          with handle_stop_signals(engine):\n            train(",
        ),
        (
            (
                "except (BadInput, Stopped):  # raised on all ranks; after other errors, "
                "closing could hang\n"
                "        engine.close()"
            ),
            "except (BadInput, Stopped):",
        ),
        (
            "raise\n    engine.close()\n\n\ndef require_one_config",
            "raise\n\n\ndef require_one_config",
        ),
        ("while not folder.write_status_for_rank0(0):", "if not folder.write_status_for_rank0(0):"),
        (
            "while not folder.write_status_for_rank0(0):",
            "while not folder.write_status_for_rank0(RANK0_TIMEOUT_SECONDS):",
        ),
        ("if engine.rank > 0:", "if engine.rank >= 0:"),
        ("if engine.stop_requested and number == signal.SIGINT:", "if engine.stop_requested:"),
        ("if engine.stop_requested and number == signal.SIGINT:", "if number == signal.SIGINT:"),
        ("engine.stop_requested = True", "pass"),
        (
            "signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)",
            "signals = (signal.SIGTERM, signal.SIGINT)",
        ),
        ("signal.signal(number, handler)", "pass"),
        ("while os.getppid() == parent:", "while os.getppid() != parent:"),
        ("while os.getppid() == parent:", "if os.getppid() == parent:"),
        ('if "TORCHELASTIC_RUN_ID" in os.environ:', 'if "TORCHELASTIC_RUN_ID" not in os.environ:'),
        ("    sys.stdout.flush()\n", ""),
        ("os._exit(code)", "sys.exit(code)"),
        (
            "if engine.rank > 0 and is_lost_rank_error(error):",
            "if is_lost_rank_error(error):",
        ),
        (
            "if engine.rank > 0 and is_lost_rank_error(error):",
            "if engine.rank > 0:",
        ),
        (
            "folder.write_status_for_rank0(RANK0_TIMEOUT_SECONDS)\n            raise",
            "folder.write_status_for_rank0(0)\n            raise",
        ),
        (
            "        folder.claimed = engine.broadcast(folder.claimed)\n",
            "",
        ),
        (
            "        if engine.rank == 0:\n            engine.on_all_ranks(partial",
            "        if True:\n            engine.on_all_ranks(partial",
        ),
        ("except (BadInput, Stopped):  # raised", "except BaseException:  # raised"),
    ),
    *of(
        "zephyr/training/tolerance.py",
        ("tests/training/test_tolerance.py",),
        (
            'TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 0.25)}',
            'TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.25, 0.02)}',
        ),
        (
            'TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 0.25)}',
            'TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 2.5)}',
        ),
        (
            'TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 0.25)}',
            'TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 0.08)}',
        ),
        (
            'TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 0.25)}',
            'TOKEN_TOLERANCE = {"float32": (1e-6, 1e-6), "bfloat16": (0.02, 0.25)}',
        ),
        (
            'RESPONSE_TOLERANCE = {"float32": (5e-5, 5e-5), "bfloat16": (0.01, 0.06)}',
            'RESPONSE_TOLERANCE = {"float32": (5e-5, 5e-5), "bfloat16": (0.01, 0.6)}',
        ),
        (
            'RESPONSE_TOLERANCE = {"float32": (5e-5, 5e-5), "bfloat16": (0.01, 0.06)}',
            'RESPONSE_TOLERANCE = {"float32": (5e-5, 5e-5), "bfloat16": (0.01, 0.02)}',
        ),
        ('"float32": (5e-5, 5e-5),', '"float32": (5e-3, 5e-3),'),
        (
            'SUM_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.4}',
            'SUM_TOLERANCE = {"float32": 0.4, "bfloat16": 1e-3}',
        ),
        ('"bfloat16": 0.16}', '"bfloat16": 0.8}'),
        (
            'GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}',
            'GRADIENT_TOLERANCE = {"float32": 1e-2, "bfloat16": 5e-3}',
        ),
        (
            "return min(high, max(low, noise)) if math.isfinite(noise) else low",
            "return min(low, max(high, noise)) if math.isfinite(noise) else low",
        ),
        (
            "return min(high, max(low, noise)) if math.isfinite(noise) else low",
            "return max(low, noise) if math.isfinite(noise) else low",
        ),
        (
            "return min(high, max(low, noise)) if math.isfinite(noise) else low",
            "return min(high, noise) if math.isfinite(noise) else low",
        ),
        (
            "return min(high, max(low, noise)) if math.isfinite(noise) else low",
            "return min(high, max(low, noise)) if math.isfinite(noise) else high",
        ),
        ("return SUM_TOLERANCE[dtype] * math.sqrt(tokens)", "return SUM_TOLERANCE[dtype] * tokens"),
        ("return SUM_TOLERANCE[dtype] * math.sqrt(tokens)", "return SUM_TOLERANCE[dtype]"),
        (
            "return SUM_TOLERANCE[dtype] * math.sqrt(tokens)",
            "return SUMS_RMS_TOLERANCE[dtype] * math.sqrt(tokens)",
        ),
    ),
    *of(
        "zephyr/training/metrics.py",
        ("tests/training/test_metrics.py",),
        ('sums["loss"] = loss_sum.detach().double()', 'sums["loss"] = loss_sum.double()'),
        ('sums["loss"] = loss_sum.detach().double()', 'sums["loss"] = loss_sum.detach()'),
        (("        if not active:\n            return\n"), ""),
        (
            'self.evaluations += [record for record in kept if record["split"] == "eval"]',
            "self.evaluations += kept",
        ),
        ('self.evaluations += [record for record in kept if record["split"] == "eval"]', "pass"),
        ("initial=first_step,", "initial=0,"),
        (
            'flags = {f"alarms/{name}": 1 for name in alarms}',
            'flags = {f"alarms/{name}": 1 for name in alarms.keys() - self.raised}',
        ),
        (
            (
                "progress.write(f\"alarm at step {record['step']}: {alarms[name]}\")\n"
                "        self.raised = self.raised | alarms.keys()"
            ),
            "progress.write(f\"alarm at step {record['step']}: {alarms[name]}\")",
        ),
        ("self.raised = self.raised | alarms.keys()", "self.raised = alarms.keys()"),
        (
            "for name in alarms.keys() - self.raised:",
            "for name in alarms if not self.raised else ():",
        ),
        (
            'with self.path.open("a", encoding="utf-8") as file:',
            'with self.path.open("w", encoding="utf-8") as file:',
        ),
        ("if record.get(name) is not None:", "if name in record:"),
        (
            ('if record["split"] == "eval":\n            self.evaluations.append(record)'),
            'if record["split"] == "eval":',
        ),
        ("self.wandb.finish()", "pass"),
        ('record["step"] == step > 0', 'record["step"] == step'),
        (
            'evaluated = record["split"] == "eval" and record["step"] == step > 0',
            'evaluated = record["step"] == step > 0',
        ),
        (
            'for number, line in enumerate(content.split(b"\\n")[:-1], start=1):',
            'for number, line in enumerate(content.split(b"\\n")[:-1]):',
        ),
        (
            'for number, line in enumerate(content.split(b"\\n")[:-1], start=1):',
            "for number, line in enumerate(content.splitlines(), start=1):",
        ),
        (
            "except (ValueError, KeyError, TypeError, RecursionError):",
            "except (ValueError, KeyError, RecursionError):",
        ),
        ('if b"".join(kept) != content:', "if True:"),
        (
            'for path in step_paths(self.folder, ".parquet") if writes else ():',
            'for path in step_paths(self.folder, ".parquet"):',
        ),
        ("if indices:", "if True:"),
        (
            "{name: stats[name].detach() for name in LEDGER if name in stats}",
            "{name: stats[name].detach() for name in stats}",
        ),
        ("if visit.step == step:", "if visit.step <= step:"),
        ("if not finite", 'if not stats["loss"].isfinite().all()'),
        ("(name, int(count[i])) for name", "(name, int(count[0])) for name"),
        (
            "for i, of_pair in zip(indices, values):",
            "for i, of_pair in zip(sorted(indices), values):",
        ),
        ("if not self.writes or not rows:", "if not self.writes:"),
        ("if not self.writes or not rows:", "if not rows:"),
        (
            'rows.sort(key=lambda row: (row["step"], row["id"]))',
            'rows.sort(key=lambda row: row["id"])',
        ),
        (
            'write_atomic(self.folder / f"step-{step}.parquet", content.getvalue())',
            'write_atomic(self.folder / f"step-{step + 1}.parquet", content.getvalue())',
        ),
    ),
    *of(
        "zephyr/training/initial_rewards.py",
        ("tests/test_reference.py",),
        ("near = all(abs(of.reward)", "near = any(abs(of.reward)"),
        ("<= of.allowed for of in of_pair", "<= 1000 * of.allowed for of in of_pair"),
        ("abs(of.reward) <= of.allowed", "not abs(of.reward) > of.allowed"),
        ("InitialReward(reward, config.beta * nats)", "InitialReward(reward, nats / config.beta)"),
        ("near = near and abs(loss - initial_loss)", "near = near or abs(loss - initial_loss)"),
        ("if initial_loss is not None:", "if False:"),
        ("reward_sum**2 <= allowed_square and ", ""),
        (" and sum(squares) <= 1 + len(squares) * mean_square", ""),
        ("<= 1 + len(squares)", "<= len(squares)"),
        ("    if found:\n        raise", "    if False:\n        raise"),
    ),
    *of(
        "zephyr/training/launchers.py",
        ("tests/training/test_launchers.py",),
        ("if task.ranks == 1:", "if True:"),
        ("device = 0 if gpus == 1 else task.local_rank", "device = task.local_rank"),
        ("return step.isdecimal() and int(step) < FIRST_SPECIAL_STEP", "return True"),
        ('return environment["SLURM_PROCID"] != "0" or', "return False and"),
        ('and not (interactive and "SLURM_PTY_PORT" in environment)', ""),
        ("+ 7919 * number(environment", "+ 0 * number(environment"),
        ("if gpus in (0, 1, task.local_ranks):", "if gpus <= task.local_ranks:"),
        ('if same_size and environment["RANK"] != str(task.rank):', "if False:"),
        ("    if gpus > 1:\n        nodes", "    if False:\n        nodes"),
    ),
    *of(
        "zephyr/training/launch.py",
        ("tests/training/test_launchers.py",),
        ("if other != configs[0]:", "if rank == 1 and other != configs[0]:"),
    ),
]
