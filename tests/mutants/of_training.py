"""The faults of `zephyr/training/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
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
            "matrices = [p for p in policy.parameters() if len(p.ds_shape) > 1]",
            "matrices = [p for p in policy.parameters() if p.ndim > 1]",
        ),
        (
            (
                "optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.adam_betas, "
                "eps=1e-8, fused=True)"
            ),
            "optimizer = torch.optim.AdamW(groups, lr=0.0, eps=1e-8, fused=True)",
        ),
        (
            (
                "optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.adam_betas, "
                "eps=1e-8, fused=True)"
            ),
            (
                "optimizer = torch.optim.AdamW(\n"
                "            groups, lr=0.0, betas=optim.adam_betas[::-1], eps=1e-8, "
                "fused=True\n"
                "        )"
            ),
        ),
        (
            (
                "optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.adam_betas, "
                "eps=1e-8, fused=True)"
            ),
            (
                "optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.adam_betas, "
                "eps=1e-6, fused=True)"
            ),
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
        ('"gradient_clipping": optim.grad_clip,', '"gradient_clipping": 1.0,'),
        (
            (
                '"gradient_accumulation_steps": 1,\n'
                '            "gradient_clipping": optim.grad_clip,'
            ),
            '"gradient_accumulation_steps": 1,',
        ),
        (('return {\n            "data_types": {"grad_accum_dtype": "fp32"},'), "return {"),
        ('"bf16": {"enabled": self.hardware.dtype == "bfloat16"},', '"bf16": {"enabled": True},'),
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
            ("self.on_all_ranks(lambda: shards.load_shards(self.live_shards(0), folder))"),
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
        (
            ("yield name, parameter.detach().cpu().clone() if self.rank == 0 else torch.empty(0)"),
            (
                "yield (\n"
                "                    name,\n"
                "                    parameter.detach().cpu()[:1].clone() if self.rank "
                "== 0 else torch.empty(0),\n"
                "                )"
            ),
        ),
        (
            (
                "p.ds_numel\n"
                "            for name, p in self.policy.lm.named_parameters()\n"
                '            if "embed_tokens" not in name and "lm_head" not in name'
            ),
            (
                "p.ds_numel for name, p in self.policy.lm.named_parameters() if "
                '"lm_head" not in name'
            ),
        ),
        ("raise own or BadInput(complaints[0])", "return None"),
    ),
    *of(
        "zephyr/training/loop.py",
        (
            ("tests/training/test_engine.py::test_records_are_means_over_the_pairs_of_their_step"),
            ("tests/training/test_engine.py::test_the_first_gradient_is_that_of_the_mean"),
            ("tests/training/test_engine.py::test_evaluation_is_of_all_pairs_after_its_updates"),
            ("tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was"),
            (
                "tests/training/test_engine.py::test_a_record_of_several_steps_is_over_al"
                "l_their_pairs"
            ),
            (
                "tests/training/test_engine.py::test_the_policy_is_sampled_at_the_start_a"
                "nd_at_each_evaluation"
            ),
            "tests/training/test_engine.py::test_a_signal_ends_the_step_and_saves",
            (
                "tests/training/test_engine.py::test_a_loss_that_is_not_finite_ends_the_r"
                "un_unchanged"
            ),
        ),
        (
            (
                "loss_sum / units * (1 + 0 * loss_sum.detach()), last=m == "
                "len(ranks[engine.rank]) - 1"
            ),
            (
                "loss_sum / max(1, batch.units) * (1 + 0 * loss_sum.detach()),\n"
                "            last=m == len(ranks[engine.rank]) - 1,"
            ),
        ),
        (
            (
                "engine.backward(\n"
                "            loss_sum / units * (1 + 0 * loss_sum.detach()), last=m == "
                "len(ranks[engine.rank]) - 1\n"
                "        )"
            ),
            "engine.backward(loss_sum / units, last=m == len(ranks[engine.rank]) - 1)",
        ),
        (
            (
                "engine.backward(\n"
                "            loss_sum / units * (1 + 0 * loss_sum.detach()), last=m == "
                "len(ranks[engine.rank]) - 1\n"
                "        )"
            ),
            ("engine.backward(loss_sum / units * (1 + 0 * loss_sum.detach()), last=m == 0)"),
        ),
        ("                rates[step],", "                rates[step - first_step],"),
        (
            "for step in range(first_step, len(steps)):",
            "for step in range(max(0, first_step - 1), len(steps)):",
        ),
        (
            "for step in range(first_step, len(steps)):",
            "for step in range(first_step, len(steps) - 1):",
        ),
        ('"epoch": steps[step].epoch,', '"epoch": float(int(steps[step].epoch)),'),
        ("step % run.log_every == 0 or saves", "step % run.log_every == 0"),
        (
            "sums, logged, since = {}, step, time.perf_counter()",
            "logged, since = step, time.perf_counter()",
        ),
        ('"grad_norm": of_step["grad_norm"],', '"grad_norm": sums["grad_norm"],'),
        (
            '"update_ratio": math.sqrt(of_step["update"] / of_step["weight"]),',
            '"update_ratio": of_step["update"] / of_step["weight"],',
        ),
        (
            (
                "evaluate(\n"
                "                    engine,\n"
                "                    evaluation,\n"
                "                    sample,\n"
                "                    done,\n"
                "                    float(optim.epochs) if last else steps[done].epoch,\n"
                "                    recorder,\n"
                "                )"
            ),
            "evaluate(engine, evaluation, sample, done, steps[step].epoch, recorder)",
        ),
        (
            "if (evaluation or sample) and (done % run.eval_every == 0 or last):",
            "if (evaluation or sample) and (step % run.eval_every == 0 or last):",
        ),
        (
            "if (evaluation or sample) and (done % run.eval_every == 0 or last):",
            "if (evaluation or sample) and done % run.eval_every == 0:",
        ),
        (
            'saves = done % run.save_every == 0 or last or of_step["stop"]',
            "saves = done % run.save_every == 0 or last",
        ),
        (
            'saves = done % run.save_every == 0 or last or of_step["stop"]',
            'saves = done % run.save_every == 0 or of_step["stop"]',
        ),
        ('if of_step["stop"] and not last:', 'if of_step["stop"] and last:'),
        ("if sample and first_step == 0:", "if sample:"),
        (
            "ledger.add(step, epoch, batch.indices, stats)",
            "ledger.add(step, epoch, batch.indices[::-1], stats)",
        ),
        (
            (
                'return {name: value / sums["units"] for name, value in sums.items() if '
                "name not in no_means} | {\n"
                '        unit_name: int(sums["units"]),\n'
                '        "tokens": int(sums["tokens"]),\n'
                "    }"
            ),
            (
                "return {\n"
                '        name: value / sums["tokens"] for name, value in sums.items() if '
                "name not in no_means\n"
                '    } | {unit_name: int(sums["units"]), "tokens": int(sums["tokens"])}'
            ),
        ),
        (
            (
                "no_means = {\n"
                '        "units",\n'
                '        "tokens",\n'
                '        "flops",\n'
                '        "micro_batches",\n'
                '        "stop",\n'
                '        "grad_norm",\n'
                '        "update",\n'
                '        "weight",\n'
                "    }"
            ),
            (
                'no_means = {"units", "tokens", "flops", "micro_batches", "grad_norm", '
                '"update", "weight"}'
            ),
        ),
        ((")\n            require_finite(of_step, engine, train, step, ledger, recorder)"), ")"),
        (
            ("ids = guilty or [split.ids[i] for i in split.plan.steps[step].examples()]"),
            "ids = [split.ids[i] for i in split.plan.steps[step].examples()]",
        ),
        (
            ("sums, done, last = add_sums(sums, of_step), step + 1, step == len(steps) - 1"),
            "sums, done, last = of_step, step + 1, step == len(steps) - 1",
        ),
        (
            (
                "engine.on_rank0(lambda: [recorder.sync(), ledger and "
                "ledger.commit(done, rows)] and None)"
            ),
            "engine.on_rank0(lambda: [recorder.sync()] and None)",
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
            (
                '* {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}["
            ),
            (
                '* {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * left))}["
            ),
        ),
        (
            (
                '* {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}[\n"
                "            schedule\n"
                "        ]"
            ),
            (
                "* {\n"
                '            "constant": 1.0,\n'
                '            "linear": left,\n'
                '            "cosine": 0.5 * (1 + math.cos(math.pi / 2 * (1 - left))),\n'
                "        }[schedule]"
            ),
        ),
        (
            (
                '* {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}["
            ),
            (
                '* {"constant": 1.0, "linear": left, "cosine": (1 + math.cos(math.pi * '
                "(1 - left)))}["
            ),
        ),
        (
            (
                '* {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}["
            ),
            (
                '* {"constant": left, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}["
            ),
        ),
        (
            (
                '* {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}[\n"
                "            schedule\n"
                "        ]"
            ),
            (
                "* {\n"
                '            "constant": 1.0,\n'
                '            "linear": left**2,\n'
                '            "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),\n'
                "        }[schedule]"
            ),
        ),
        (
            (
                "return (\n"
                "        lr_peak\n"
                '        * {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}[\n"
                "            schedule\n"
                "        ]\n"
                "    )"
            ),
            (
                'return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + '
                "math.cos(math.pi * (1 - left)))}[\n"
                "        schedule\n"
                "    ]"
            ),
        ),
    ),
    *of(
        "zephyr/training/shards.py",
        (
            "tests/training/test_shards.py",
            ("tests/training/test_engine.py::test_state_on_disk_goes_on_as_if_nothing_had_been"),
            ("tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was"),
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
            "step=torch.tensor(float(adam_step), device=flat.device),",
            "step=torch.tensor(0.0, device=flat.device),",
        ),
        (
            'values = flat.detach() if vector == "master" else state[vector]',
            'values = flat.detach() if vector == "master" else state["exp_avg"]',
        ),
        ('VECTORS = ("master", "exp_avg", "exp_avg_sq")', 'VECTORS = ("master", "exp_avg")'),
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
        ("if whole != shard.numel:", "if whole < shard.numel:"),
        ("if filled != len(shard.values):", "if filled > len(shard.values):"),
        (
            "a, b = max(start, shard.start), min(start + values.get_shape()[0], end)",
            "a, b = max(start, shard.start), min(start + whole, end)",
        ),
        (
            (
                "shard.values[a - shard.start : b - shard.start].copy_(\n"
                "                        values[a - start : b - start]\n"
                "                    )"
            ),
            "shard.values[a - shard.start : b - shard.start].copy_(values[: b - a])",
        ),
        (
            (
                "shard.values[a - shard.start : b - shard.start].copy_(\n"
                "                        values[a - start : b - start]\n"
                "                    )"
            ),
            "shard.values[: b - a].copy_(values[a - start : b - start])",
        ),
        (
            (
                "part[shard.name], ranges[shard.name] = (\n"
                "            shard.values.cpu().clone(),\n"
                "            [shard.start, shard.numel],\n"
                "        )"
            ),
            ("part[shard.name], ranges[shard.name] = shard.values.cpu().clone(), [0, shard.numel]"),
        ),
        ("for group in range(len(zero.fp16_groups)):", "for group in range(1):"),
    ),
    *of(
        "zephyr/training/checkpoint.py",
        (
            "tests/training/test_identity.py",
            ("tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was"),
            "tests/training/test_engine.py::test_another_run_is_not_gone_on_with",
            (
                "tests/training/test_engine.py::test_checkpoints_are_kept_and_the_newest_"
                "whole_one_is_taken"
            ),
            "tests/training/test_engine.py::test_what_the_disk_refuses_is_bad_input",
        ),
        (
            (
                "key: getattr(config, key)\n"
                '        for key in ("beta", "loss", "label_smoothing")\n'
                "        if hasattr(config, key)"
            ),
            (
                'key: getattr(config, key) for key in ("beta", "label_smoothing") if '
                "hasattr(config, key)"
            ),
        ),
        (
            (
                "loss = {\n"
                "        key: getattr(config, key)\n"
                '        for key in ("beta", "loss", "label_smoothing")\n'
                "        if hasattr(config, key)\n"
                "    }"
            ),
            (
                'loss = {key: getattr(config, key) for key in ("beta", "loss") if '
                "hasattr(config, key)}"
            ),
        ),
        (
            (
                "other = {\n"
                '        "run.seed": config.run.seed,\n'
                '        "data.shuffle": config.data.shuffle,\n'
                '        "hardware.dtype": config.hardware.dtype,\n'
                "    }"
            ),
            (
                'other = {"data.shuffle": config.data.shuffle, "hardware.dtype": '
                "config.hardware.dtype}"
            ),
        ),
        (
            (
                "other = {\n"
                '        "run.seed": config.run.seed,\n'
                '        "data.shuffle": config.data.shuffle,\n'
                '        "hardware.dtype": config.hardware.dtype,\n'
                "    }"
            ),
            ('other = {"run.seed": config.run.seed, "hardware.dtype": config.hardware.dtype}'),
        ),
        (
            (
                "other = {\n"
                '        "run.seed": config.run.seed,\n'
                '        "data.shuffle": config.data.shuffle,\n'
                '        "hardware.dtype": config.hardware.dtype,\n'
                "    }"
            ),
            ('other = {"run.seed": config.run.seed, "data.shuffle": config.data.shuffle}'),
        ),
        (
            ('return json.loads(json.dumps({**of_optim, **loss, **other, **more, "plan": steps}))'),
            'return json.loads(json.dumps({**loss, **other, **more, "plan": steps}))',
        ),
        (
            ('return json.loads(json.dumps({**of_optim, **loss, **other, **more, "plan": steps}))'),
            ('return json.loads(json.dumps({**of_optim, **loss, **other, "plan": steps}))'),
        ),
        (
            "json.dumps([step.examples() for step in plan.steps]).encode()",
            "json.dumps([len(step.examples()) for step in plan.steps]).encode()",
        ),
        (
            (
                "steps = hashlib.sha256(\n"
                "        json.dumps([step.examples() for step in plan.steps]).encode()\n"
                "    ).hexdigest()"
            ),
            (
                "steps = hashlib.sha256(json.dumps([step.ranks for step in "
                "plan.steps]).encode()).hexdigest()"
            ),
        ),
        (
            "if old not in before[len(before) - keep + 1 :]:",
            "if old not in before[len(before) - keep :]:",
        ),
        ("if old not in before[len(before) - keep + 1 :]:", "if old not in before[keep - 1 :]:"),
        (
            'write_atomic(folder / "latest", whole.name.encode())',
            'write_atomic(folder / "latest", b"step-0")',
        ),
        (
            ('for folder in engine.on_rank0(lambda: step_paths(run_dir / "checkpoints")[::-1]):'),
            ('for folder in engine.on_rank0(lambda: step_paths(run_dir / "checkpoints")):'),
        ),
        ("engine.load_state(folder, step_number(folder))", "engine.load_state(folder, 0)"),
        ("return step_number(folder)", "return step_number(folder) + 1"),
        ('if changes and resume != "force":', 'if changes and resume == "force":'),
        ('if changes and resume != "force":', "if changes:"),
        (
            (
                "return [\n"
                "        name\n"
                "        for name, digest in files[rank::world]\n"
                "        if not (folder / name).is_file() or synced_digest(folder / "
                "name) != digest\n"
                "    ]"
            ),
            (
                "return [name for name, digest in files[rank::world] if not (folder / "
                "name).is_file()]"
            ),
        ),
        (
            ("if not (folder / name).is_file() or synced_digest(folder / name) != digest"),
            "if (folder / name).is_file() and synced_digest(folder / name) != digest",
        ),
        ("before = [f for f in others if step_number(f) < step]", "before = others"),
        ("shutil.rmtree(left_over)", "pass"),
        ('return ["state.json"] if rank == 0 else []', "return []"),
    ),
    *of(
        "zephyr/training/metrics.py",
        (
            ("tests/training/test_engine.py::test_records_are_means_over_the_pairs_of_their_step"),
            ("tests/training/test_engine.py::test_the_first_gradient_is_that_of_the_mean"),
            ("tests/training/test_engine.py::test_evaluation_is_of_all_pairs_after_its_updates"),
            ("tests/training/test_engine.py::test_a_run_goes_on_where_its_checkpoint_was"),
            (
                "tests/training/test_engine.py::test_a_record_of_several_steps_is_over_al"
                "l_their_pairs"
            ),
            (
                "tests/training/test_engine.py::test_the_policy_is_sampled_at_the_start_a"
                "nd_at_each_evaluation"
            ),
            "tests/training/test_engine.py::test_a_signal_ends_the_step_and_saves",
            (
                "tests/training/test_engine.py::test_a_loss_that_is_not_finite_ends_the_r"
                "un_unchanged"
            ),
        ),
        ("**dict(zip(stats, of_pair)),", "**dict(zip([*reversed(stats)], of_pair)),"),
        ("total = value.detach().double().sum()", "total = value.detach().double().mean()"),
        (
            ("self.sums[name] = self.sums[name] + total if name in self.sums else total"),
            "self.sums[name] = total",
        ),
        ("if step_number(path) > first_step:", "if step_number(path) >= first_step:"),
        ("if step_number(path) > first_step:", "if False:"),
        (
            (
                'if record["step"] < step or (record["split"] == "eval" and '
                'record["step"] == step > 0):'
            ),
            (
                'if record["step"] <= step or (record["split"] == "eval" and '
                'record["step"] == step > 0):'
            ),
        ),
        ((")\n        self.visits.clear()"), ")"),
    ),
    *of(
        "zephyr/training/alarms.py",
        ("tests/training/test_alarms.py",),
        (
            (
                "path = (\n"
                '        record["update_ratio"] / record["learning_rate"] * sum(rates)\n'
                '        if record["learning_rate"]\n'
                "        else math.inf\n"
                "    )"
            ),
            ('path = record["update_ratio"] * sum(rates) if record["learning_rate"] else math.inf'),
        ),
        (
            'record["update_ratio"] / record["learning_rate"] * sum(rates)',
            'record["update_ratio"] / record["learning_rate"] * max(rates)',
        ),
        (
            (
                "path = (\n"
                '        record["update_ratio"] / record["learning_rate"] * sum(rates)\n'
                '        if record["learning_rate"]\n'
                "        else math.inf\n"
                "    )"
            ),
            (
                'path = record["update_ratio"] / record["learning_rate"] if '
                'record["learning_rate"] else math.inf'
            ),
        ),
        ("else math.inf", "else 0.0"),
        ("if path < ulp:", "if path > ulp:"),
        ("if path < ulp:", "if path < 1e-3:"),
        (
            (
                'if beta is not None and (fall := -record["rewards/chosen"] / beta) > '
                "-MAX_CHOSEN_DROP * ("
            ),
            ('if beta is not None and (fall := -record["rewards/chosen"]) > -MAX_CHOSEN_DROP * ('),
        ),
        (
            (
                'if beta is not None and (fall := -record["rewards/chosen"] / beta) > '
                "-MAX_CHOSEN_DROP * ("
            ),
            (
                'if beta is not None and (fall := record["rewards/chosen"] / beta) > '
                "-MAX_CHOSEN_DROP * ("
            ),
        ),
        (
            (
                "MAX_CHOSEN_DROP = 0.25  # of the reference's log-prob; Zephyr-7B-beta's "
                "own run ended at 0.18"
            ),
            (
                "MAX_CHOSEN_DROP = 0.15  # of the reference's log-prob; Zephyr-7B-beta's "
                "own run ended at 0.18"
            ),
        ),
        (
            (
                'if beta is not None and (fall := -record["rewards/chosen"] / beta) > '
                "-MAX_CHOSEN_DROP * (\n"
                '        record["logps/chosen"] + fall'
            ),
            (
                "if (\n"
                "        beta is not None\n"
                '        and (fall := -record["rewards/chosen"] / beta) > '
                '-MAX_CHOSEN_DROP * record["logps/chosen"]'
            ),
        ),
        ('best = max(earlier, key=lambda r: r["rewards/accuracies"])', "best = earlier[-1]"),
        (
            'best = max(earlier, key=lambda r: r["rewards/accuracies"])',
            'best = max(earlier, key=lambda r: r["rewards/margins"])',
        ),
        (
            'fell <= 2 * math.sqrt(share * (1 - share) / best["pairs"])',
            'fell <= math.sqrt(share * (1 - share) / best["pairs"])',
        ),
        (
            'fell <= 2 * math.sqrt(share * (1 - share) / best["pairs"])',
            "fell <= 2 * math.sqrt(share * (1 - share))",
        ),
        (
            (
                "if (\n"
                '        fell <= 2 * math.sqrt(share * (1 - share) / best["pairs"])\n'
                '        or record["rewards/margins"] <= best["rewards/margins"]\n'
                "    ):"
            ),
            'if fell <= 2 * math.sqrt(share * (1 - share) / best["pairs"]):',
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
        ('"H200": 989.4e12,', '"H200": 1979e12,'),
        (
            (
                "attention = 4 * config.num_hidden_layers * config.num_attention_heads * "
                "head_size * attended"
            ),
            (
                "attention = 2 * config.num_hidden_layers * config.num_attention_heads * "
                "head_size * attended"
            ),
        ),
        (
            (
                "attention = 4 * config.num_hidden_layers * config.num_attention_heads * "
                "head_size * attended"
            ),
            (
                "attention = 4 * config.num_hidden_layers * config.num_key_value_heads * "
                "head_size * attended"
            ),
        ),
        (
            (
                "head_size = (\n"
                '        getattr(config, "head_dim", None) or config.hidden_size // '
                "config.num_attention_heads\n"
                "    )"
            ),
            "head_size = config.hidden_size // config.num_attention_heads",
        ),
        ("2.0 * num_layer_parameters * tokens", "num_layer_parameters * tokens"),
        (
            "+ 2.0 * config.hidden_size * config.vocab_size * scored",
            "+ 2.0 * config.hidden_size * config.vocab_size * tokens",
        ),
        (
            ("attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2"),
            "attended = (first**2 + both**2 - 0) / 2",
        ),
        (
            ("attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2"),
            "attended = (first**2 + both**2 - prompt**2) / 2",
        ),
        (
            ("attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2"),
            "attended = first**2 + both**2 - (prompt**2 if prefix_sharing else 0)",
        ),
        ("tokens = first + (rejected if prefix_sharing else both)", "tokens = first + both"),
        (
            (
                "return forward_flops(config, num_layer_parameters, tokens, chosen + "
                "rejected, attended)"
            ),
            ("return forward_flops(config, num_layer_parameters, tokens, tokens, attended)"),
        ),
        (
            ("return forward_flops(config, num_layer_parameters, tokens, targets, tokens**2 / 2)"),
            ("return forward_flops(config, num_layer_parameters, tokens, tokens, tokens**2 / 2)"),
        ),
        (
            ("return forward_flops(config, num_layer_parameters, tokens, targets, tokens**2 / 2)"),
            ("return forward_flops(config, num_layer_parameters, tokens, targets, targets**2 / 2)"),
        ),
        (
            "return 3 * forward / (seconds * ranks * peak) if peak else None",
            "return forward / (seconds * ranks * peak) if peak else None",
        ),
        (
            "return 3 * forward / (seconds * ranks * peak) if peak else None",
            "return 3 * forward / (seconds * peak) if peak else None",
        ),
        (
            "return 3 * forward / (seconds * ranks * peak) if peak else None",
            "return 3 * forward / (seconds * ranks * peak) if peak else 0.0",
        ),
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
            'f"({ids[longest]}) takes, got {budget_tokens}"',
            'f"({longest}) takes, got {budget_tokens}"',
        ),
        (
            "micro_batches = sum(len(step.ranks[0]) for step in plan.steps)",
            "micro_batches = sum(len(step.ranks) for step in plan.steps)",
        ),
        ("examples = len(plan.steps[0].examples())", "examples = len(plan.steps[0].ranks[0])"),
        (
            (
                'f"{micro_batches / len(plan.steps):.1f} micro-batches a step '
                '{plan.fill_ratio:.1%} full; "'
            ),
            (
                'f"{micro_batches / len(plan.steps):.1f} micro-batches a step '
                '{plan.imbalance:.1%} full; "'
            ),
        ),
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
        (("except BlockingIOError:\n                lock.seek(0)"), "except BlockingIOError:"),
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
        (('every rank."""\n        self.claimed = True'), 'every rank."""'),
        (
            ("self.write_file(name, content)\n        self.pending = {}"),
            "self.write_file(name, content)",
        ),
        ("self.pending[name] = content", "self.pending.setdefault(name, content)"),
        (("self.pending[name] = content\n            return"), "self.pending[name] = content"),
        (
            (
                '"""Write a file whole, on rank 0, now or when the folder is '
                'accepted."""\n'
                "        if not self.writes:\n"
                "            return"
            ),
            '"""Write a file whole, on rank 0, now or when the folder is accepted."""',
        ),
        (
            (
                "if (\n"
                "            self.writes and self.lock is None and not "
                "self.contains_run()\n"
                "        ):  # the start failed before the lock was taken"
            ),
            ("if self.writes and self.lock is None:  # the start failed before the lock was taken"),
        ),
        (
            "self.writes and self.lock is None and not self.contains_run()",
            "self.lock is None and not self.contains_run()",
        ),
        (("with contextlib.suppress(BadInput):\n                self.open()"), "self.open()"),
        (
            (
                "with contextlib.suppress(OSError):\n"
                "                    (self.path / STATUS).write_bytes(content)"
            ),
            "pass",
        ),
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
        (
            (
                "return (\n"
                '        json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", '
                '"backslashreplace") + b"\\n"\n'
                "    )"
            ),
            (
                'return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", '
                '"replace") + b"\\n"'
            ),
        ),
        (
            (
                "return (\n"
                '        json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", '
                '"backslashreplace") + b"\\n"\n'
                "    )"
            ),
            ('return json.dumps(value, indent=1).encode("utf-8", "backslashreplace") + b"\\n"'),
        ),
        (("if self.lock is not None:\n            self.lock.close()"), "pass"),
    ),
    *of(
        "zephyr/training/checkpoint.py",
        ("tests/training/test_folder.py",),
        (
            'for name in (IDENTITY, "metrics.jsonl", "report.html")',
            'for name in (IDENTITY, "report.html")',
        ),
        (
            ('checkpoints = ["checkpoints/"] if step_paths(run_dir / "checkpoints") else []'),
            "checkpoints = []",
        ),
        ('for name in ("pairs", "model")', 'for name in ("pairs",)'),
    ),
    *of(
        "zephyr/training/launch.py",
        (
            "tests/training/test_launch.py",
            "tests/training/test_faults.py::test_a_second_sigint_stops_at_once",
        ),
        ("BAD_INPUT, STOPPED = 2, 75", "BAD_INPUT, STOPPED = 2, 1"),
        ("return 0 if argv else BAD_INPUT", "return 0"),
        ('split_arguments([a for a in argv if a != "--dry-run"])', "split_arguments(argv)"),
        (
            ('folder = None if "--dry-run" in argv else RunFolder(Path(config.run.dir))'),
            ('folder = None if "--dry-run" in overrides else RunFolder(Path(config.run.dir))'),
        ),
        (
            (
                'folder = None if "--dry-run" in argv else '
                "RunFolder(Path(config.run.dir))\n"
                "        check(config)"
            ),
            ('folder = None if "--dry-run" in argv else RunFolder(Path(config.run.dir))'),
        ),
        ('if os.environ.get("LOCAL_RANK", "0") == "0":', "if True:"),
        ('if os.environ.get("RANK", "0") == "0":', "if True:"),
        (
            (
                'print(f"error: {error}", file=sys.stderr)\n'
                "        return finish_run(folder, BAD_INPUT, str(error))"
            ),
            ('print(f"error: {error}", file=sys.stderr)\n        return BAD_INPUT'),
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
            ('print(f"error: {why}", file=sys.stderr)\n        finish_run(folder, 1, why)'),
            'print(f"error: {why}", file=sys.stderr)',
        ),
        (("finish_run(folder, 1, why)\n        raise"), "return finish_run(folder, 1, why)"),
        ('return finish_run(folder, 0, "finished")', "return 0"),
        ("folder.write_status(code, message)", "folder.write_status(0, message)"),
        (
            ("folder.write_status(code, message)\n        folder.close()"),
            "folder.write_status(code, message)",
        ),
        (
            (
                'return isinstance(error, RuntimeError) and re.search("peer|NCCL", '
                "str(error)) is not None"
            ),
            (
                'return isinstance(error, RuntimeError) and re.search("peer", '
                "str(error)) is not None"
            ),
        ),
        (
            (
                'return isinstance(error, RuntimeError) and re.search("peer|NCCL", '
                "str(error)) is not None"
            ),
            (
                'return isinstance(error, RuntimeError) and re.match("peer|NCCL", '
                "str(error)) is not None"
            ),
        ),
        (
            (
                'return isinstance(error, RuntimeError) and re.search("peer|NCCL", '
                "str(error)) is not None"
            ),
            'return re.search("peer|NCCL", str(error)) is not None',
        ),
        ("partial(folder.open, config.run.resume)", "folder.open"),
        (
            (
                "folder.claimed = engine.broadcast(folder.claimed)\n"
                '            folder.write_file("config.yaml", to_yaml(config).encode())'
            ),
            "folder.claimed = engine.broadcast(folder.claimed)",
        ),
        (
            (
                'folder.write_file("config.yaml", to_yaml(config).encode())\n'
                '            folder.write_status(None, "running")'
            ),
            'folder.write_file("config.yaml", to_yaml(config).encode())',
        ),
        ('folder.write_status(None, "running")', 'folder.write_status(0, "running")'),
        ("with handle_stop_signals(engine):", "with contextlib.nullcontext():"),
        (
            (
                "except (BadInput, Stopped):  # raised on all ranks; after other errors, "
                "closing could hang\n"
                "        engine.close()"
            ),
            "except (BadInput, Stopped):",
        ),
        (("raise\n    engine.close()"), "raise"),
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
            "if folder is not None and engine.rank > 0 and is_lost_rank_error(error):",
            "if folder is not None and is_lost_rank_error(error):",
        ),
        (
            "if folder is not None and engine.rank > 0 and is_lost_rank_error(error):",
            "if folder is not None and engine.rank > 0:",
        ),
        (
            "folder.write_status_for_rank0(RANK0_TIMEOUT_SECONDS)",
            "folder.write_status_for_rank0(0)",
        ),
        (
            "            folder.claimed = engine.broadcast(folder.claimed)\n",
            "",
        ),
        (
            "            if engine.rank == 0:\n                engine.on_all_ranks(partial",
            "            if True:\n                engine.on_all_ranks(partial",
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
        ('"bfloat16": (0.01, 0.06),', '"bfloat16": (0.01, 0.6),'),
        ('"bfloat16": (0.01, 0.06),', '"bfloat16": (0.01, 0.02),'),
        ('"float32": (5e-5, 5e-5),', '"float32": (5e-3, 5e-3),'),
        (('"float32": 1e-3,\n    "bfloat16": 0.4,'), ('"float32": 0.4,\n    "bfloat16": 1e-3,')),
        ('"bfloat16": 0.16,', '"bfloat16": 0.8,'),
        (
            (
                'GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}  # a '
                "gradient's norm, of itself"
            ),
            (
                'GRADIENT_TOLERANCE = {"float32": 1e-2, "bfloat16": 5e-3}  # a '
                "gradient's norm, of itself"
            ),
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
        ("total = value.detach().double().sum()", "total = value.double().sum()"),
        ("total = value.detach().double().sum()", "total = value.detach().sum()"),
        (
            (
                "self.wandb, self.evaluations, self.raised = None, [], set()\n"
                "        if not active:\n"
                "            return"
            ),
            "self.wandb, self.evaluations, self.raised = None, [], set()",
        ),
        (
            (
                "self.evaluations += [\n"
                "            r for r in truncate_records(self.path, first_step) if "
                'r["split"] == "eval"\n'
                "        ]"
            ),
            "self.evaluations += [r for r in truncate_records(self.path, first_step)]",
        ),
        (
            (
                "self.evaluations += [\n"
                "            r for r in truncate_records(self.path, first_step) if "
                'r["split"] == "eval"\n'
                "        ]"
            ),
            ('[r for r in truncate_records(self.path, first_step) if r["split"] == "eval"]'),
        ),
        ("initial=first_step,", "initial=0,"),
        (
            'record = record | {f"alarms/{name}": 1 for name in alarms}',
            ('record = record | {f"alarms/{name}": 1 for name in alarms.keys() - self.raised}'),
        ),
        (
            (
                "self.bar.write(f\"alarm at step {record['step']}: {alarms[name]}\", "
                "file=sys.stderr)\n"
                "        self.raised = self.raised | alarms.keys()"
            ),
            (
                "self.bar.write(f\"alarm at step {record['step']}: {alarms[name]}\", "
                "file=sys.stderr)"
            ),
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
        (
            (
                'f"{short}={record[name]:.4g}"\n'
                "            for short, name in shown.items()\n"
                "            if record.get(name) is not None"
            ),
            ('f"{short}={record[name]:.4g}" for short, name in shown.items() if name in record'),
        ),
        (
            ('if record["split"] == "eval":\n            self.evaluations.append(record)'),
            'if record["split"] == "eval":',
        ),
        (
            (
                "named = {\n"
                "                f\"{record['split']}/{k}\": v for k, v in record.items() "
                'if k not in ("step", "split")\n'
                "            }"
            ),
            ('named = {f"{record[\'split\']}/{k}": v for k, v in record.items() if k != "split"}'),
        ),
        (
            (
                "named = {\n"
                "                f\"{record['split']}/{k}\": v for k, v in record.items() "
                'if k not in ("step", "split")\n'
                "            }"
            ),
            ('named = {f"{k}": v for k, v in record.items() if k not in ("step", "split")}'),
        ),
        ("self.wandb.finish()", "pass"),
        (
            (
                'if record["step"] < step or (record["split"] == "eval" and '
                'record["step"] == step > 0):'
            ),
            ('if record["step"] < step or (record["split"] == "eval" and record["step"] == step):'),
        ),
        (
            (
                'if record["step"] < step or (record["split"] == "eval" and '
                'record["step"] == step > 0):'
            ),
            'if record["step"] < step or (record["step"] == step > 0):',
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
            (
                "(\n"
                "                    step,\n"
                "                    epoch,\n"
                "                    indices,\n"
                "                    {name: stats[name].detach() for name in LEDGER if "
                "name in stats},\n"
                "                )"
            ),
            "(step, epoch, indices, {name: stats[name].detach() for name in stats})",
        ),
        ("if visit == step", "if visit <= step"),
        ("if not finite", 'if not stats["loss"].isfinite().all()'),
        (
            ("counts = {name: int(count[i]) for name, count in self.token_counts.items()}"),
            ("counts = {name: int(count[0]) for name, count in self.token_counts.items()}"),
        ),
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
            ('write_atomic(self.folder / f"step-{step + 1}.parquet", content.getvalue())'),
        ),
    ),
]
