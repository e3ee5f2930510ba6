"""The faults: where, what stands there, what is put in its place, and the fast tests one of which
must fail.

A snippet stands in its file exactly once. A mutant that changes nothing that can be seen (a test
against it would be one of the implementation) is left out, as are those that make a loop
endless."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        """The id of its test."""
        changed = next(
            (new for old, new in zip(self.old.splitlines(), self.new.splitlines()) if old != new),
            self.new,
        ).strip()
        changed = changed or f"without {self.old.strip()}"
        return f"{self.file.removeprefix('zephyr/').removesuffix('.py')}: {changed[:70]}"


def of(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(file, old, new, tuple(tests.split())) for old, new in changes]


ENGINE = "tests/training/test_engine.py"


def engine(*names: str) -> str:
    """Some tests of tests/training/test_engine.py, where all of them would take seconds more."""
    return " ".join(f"{ENGINE}::test_{name}" for name in names)


OF_STATE = engine(
    "state_on_disk_goes_on_as_if_nothing_had_been", "a_run_goes_on_where_its_checkpoint_was"
)
OF_LOOP = engine(
    "records_are_means_over_the_pairs_of_their_step",
    "the_first_gradient_is_that_of_the_mean",
    "evaluation_is_of_all_pairs_after_its_updates",
    "a_run_goes_on_where_its_checkpoint_was",
    "a_record_of_several_steps_is_over_all_their_pairs",
    "the_policy_is_sampled_at_the_start_and_at_each_evaluation",
    "a_signal_ends_the_step_and_saves",
    "a_loss_that_is_not_finite_ends_the_run_unchanged",
)
OF_CHECKPOINT = engine(
    "a_run_goes_on_where_its_checkpoint_was",
    "another_run_is_not_gone_on_with",
    "checkpoints_are_kept_and_the_newest_whole_one_is_taken",
    "what_the_disk_refuses_is_bad_input",
)
OF_REFERENCE = engine(
    "reference_is_each_pairs_own",
    "what_decides_a_log_prob_is_in_the_stores_address",
    "other_ids_are_another_pair_whatever_their_id",
    "only_what_is_missing_is_computed",
    "a_reference_gives_each_pair_its_own",
    "parts_are_read_whole_and_the_first_value_stays",
    "a_store_of_other_values_is_found_out",
)
TRACE_DPO = "tests/training/test_trace.py::test_dpo_equals_plain_pytorch[robust-float32-forked-ranks-256-tokens-checkpointing-False-mistral]"
TRACE_SFT = "tests/training/test_trace.py::test_sft_equals_plain_pytorch[sigmoid-float32-1-ranks-96-tokens-checkpointing-False-mistral]"
LOSSES = of(
    "zephyr/losses.py",
    "tests/test_losses.py",
    (
        "return -(1 - label_smoothing) * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(-margin_P)",
        "return -(1 - label_smoothing) * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(margin_P)",
    ),
    ("- label_smoothing * F.logsigmoid(-margin_P)", "+ label_smoothing * F.logsigmoid(-margin_P)"),
    (
        "- label_smoothing * flipped_P) / (1 - 2 * label_smoothing)",
        "- label_smoothing * flipped_P) / (1 - label_smoothing)",
    ),
    ("- label_smoothing * flipped_P)", "+ label_smoothing * flipped_P)"),
    (
        "(chosen_P - rejected_P - 1 / (2 * beta)).square()",
        "(chosen_P - rejected_P - 1 / beta).square()",
    ),
    (
        "(chosen_P - rejected_P - 1 / (2 * beta)).square()",
        "(chosen_P - rejected_P - 1 / (2 * beta)).abs()",
    ),
    ("F.relu(1 - beta * (chosen_P - rejected_P))", "F.relu(1 - (chosen_P - rejected_P))"),
    (
        "(F.logsigmoid(margin_P) - math.log1p(-label_smoothing))",
        "(F.logsigmoid(margin_P) - math.log(label_smoothing))",
    ),
    (
        "return -F.logsigmoid(reward_chosen_P) - 0.5 * negatives_P",
        "return -F.logsigmoid(reward_chosen_P) - negatives_P",
    ),
    ("(rejected_P + 0.5 / beta).square()", "(rejected_P - 0.5 / beta).square()"),
    ("torch.sigmoid(beta * rejected_P)", "torch.sigmoid(-beta * rejected_P)"),
    (
        "torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P",
        "torch.sigmoid(-beta * chosen_P) + torch.sigmoid(-beta * (chosen_P",
    ),
    ('"ipo": Loss(ipo, length_averaged=True)', '"ipo": Loss(ipo)'),
    (
        '"sigmoid_norm": Loss(sigmoid, smoothing="accepted", length_averaged=True)',
        '"sigmoid_norm": Loss(sigmoid, smoothing="accepted")',
    ),
    (
        '"exo_pair": Loss(exo_pair, smoothing="required")',
        '"exo_pair": Loss(exo_pair, smoothing="accepted")',
    ),
    ("rewards = (beta * chosen_ratio_P).detach(), (beta", "rewards = beta * chosen_ratio_P, (beta"),
    ("rewards = (beta * chosen_ratio_P).detach()", "rewards = chosen_ratio_P.detach()"),
    ("(beta * rejected_ratio_P).detach()", "(beta * -rejected_ratio_P).detach()"),
    (
        "chosen_P - ref_chosen_P, rejected_P - ref_rejected_P\n",
        "chosen_P - ref_rejected_P, rejected_P - ref_chosen_P\n",
    ),
    (
        'require_tokens(loss, "rejected_tokens_P", rejected_tokens_P, chosen_P)',
        'require_tokens(loss, "rejected_tokens_P", chosen_tokens_P, chosen_P)',
    ),
    (
        'else {"label_smoothing": label_smoothing}',
        'else {"label_smoothing": 0.0 * label_smoothing + (1e-3 if loss == "exo_pair" else 0)}',
    ),
    ("4 * torch.finfo(logps.dtype).eps * logps.abs().sum(0)", "0 * logps.abs().sum(0)"),
    (
        "margin_P = (logps[0] - logps[2]) - (logps[1] - logps[3])",
        "margin_P = (logps[0] - logps[3]) - (logps[1] - logps[2])",
    ),
    ("if not 0 < beta < math.inf", "if not 0 <= beta < math.inf"),
    ("if not 0 <= label_smoothing < 0.5", "if not 0 <= label_smoothing <= 0.5"),
    (
        'if entry.smoothing == "refused" and label_smoothing > 0',
        'if entry.smoothing == "refused" and label_smoothing > 0.3',
    ),
    ("or vector_P.ndim != 1", "or vector_P.ndim > 2"),
    ("if tokens_P.shape != like_P.shape", "if tokens_P.ndim != like_P.ndim"),
)

COLLATE = of(
    "zephyr/packing/collate.py",
    "tests/packing/test_packing.py",
    ("flat(range(keys - queries, keys) for queries", "flat(range(queries) for queries"),
    ("scored = [[prompt_end - 1, *place[:-1]]", "scored = [[prompt_end, *place[:-1]]"),
    ("scored = [[prompt_end - 1, *place[:-1]]", "scored = [[place.start - 1, *place[:-1]]"),
    ("scored = [[prompt_end - 1, *place[:-1]]", "scored = [[prompt_end - 1, *place[1:]]"),
    (
        "appended += [*range(prompt_end - len(prompt), prompt_end), *place]",
        "appended += [*place, *range(prompt_end - len(prompt), prompt_end)]",
    ),
    (
        "appended += [*range(prompt_end - len(prompt), prompt_end), *place]",
        "appended += [*range(prompt_end - len(prompt) + 1, prompt_end + 1), *place]",
    ),
    ("segments[first:] = responses[first:]", "segments[first:] = segments[first:]"),
    (
        "responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]",
        "responses = [pair.rejected_ids for pair in pairs] + [pair.chosen_ids for pair in pairs]",
    ),
    ("unique_scored=sum(map(len, responses[:first]))", "unique_scored=sum(map(len, responses))"),
    ("indices=indices, units=len(pairs))", "indices=indices, units=len(responses))"),
    (
        "if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids)",
        "if not (pair.prompt_ids and pair.rejected_ids)",
    ),
    ("scored = [[start + j - 1 for j in of_text]", "scored = [[start + j for j in of_text]"),
    ("targets = [[text.ids[j] for j in of_text]", "targets = [[text.ids[j - 1] for j in of_text]"),
    ("zip([0, *accumulate(lengths)], places)", "zip(accumulate(lengths), places)"),
    ("if not text.ids or text.is_target[0]", "if not text.ids"),
    ("units = sum(map(len, targets))", "units = sum(lengths)"),
    ("dtype=torch.int32)\n\n    segments", "dtype=torch.int64)\n\n    segments"),
    ("cumulative(key_lengths) if appended else cu_query", "cumulative(key_lengths)"),
    ("sum(key_lengths) - len(appended)", "sum(query_lengths)"),
    (
        '"cu_key": fields["cu_query"]} if same else fields)',
        '"cu_key": fields["cu_query"].clone()} if same else fields)',
    ),
    ("return max(self.key_lengths)", "return max(self.query_lengths)"),
    ("[len(places) for places in scored]", "[len(places) - 1 for places in scored]"),
    ("tuple(indices), units)", "tuple(sorted(indices)), units)"),
)

PLAN = of(
    "zephyr/packing/plan.py",
    "tests/packing/test_packing.py",
    ("key=lengths.__getitem__, reverse=True", "key=lengths.__getitem__"),
    ("fitting = bisect_left(rooms, length)", "fitting = bisect_left(rooms, length + 1)"),
    ("if not 0 < length <= budget", "if not 0 <= length <= budget"),
    ("room = rooms[fitting]", "room = rooms[-1]"),
    ('random.Random(f"{seed}:{epoch}")', 'random.Random(f"{seed}")'),
    ('random.Random(f"{seed}:{epoch}")', 'random.Random(f"{epoch}")'),
    ("Step(epoch + done / len(lengths), spread", "Step(epoch + start / len(units), spread"),
    ("done += len(examples)", "done = len(examples)"),
    (
        "for start in range(0, len(units), per_step)",
        "for start in range(0, len(units) - len(units) % per_step, per_step)",
    ),
    ("[gained] * (gained >= 0)", "[gained] * (gained > 0)"),
    ("    exchange(of_rank, costs)\n", ""),
    (
        "return [micro_batches + [[]] * (most - len(micro_batches)) for micro_batches in packed]",
        "return packed",
    ),
    (
        "units = sorted(sorted(order[j] for j in window) for window in windows)",
        "units = [[order[j] for j in window] for window in windows]",
    ),
    ("        rng.shuffle(units)\n", "        rng.random()\n"),
    ("        rng.shuffle(order)\n", "        rng.random()\n"),
    (
        "indices = range(len(lengths)) if indices is None else indices",
        "indices = range(len(lengths))",
    ),
    ("for micro in rank if micro)\n    loads", "for micro in rank)\n    loads"),
    ("imbalance = sum(map(max, loads))", "imbalance = sum(map(min, loads))"),
    ('("epochs", epochs), ("ranks", ranks)', '("ranks", ranks)'),
    ("> 1.01 * sum(loads)", "> 1.5 * sum(loads)"),
    ("costs = lengths if costs is None else costs", "costs = lengths"),
)

LOGPROBS = of(
    "zephyr/model/logprobs.py",
    "tests/model/test_model.py",
    (
        "logp_T[rows] = logit_C - top_T[rows] - sum_T[rows].log()",
        "logp_T[rows] = logit_C - sum_T[rows].log()",
    ),
    ("top_T[rows] = exp_CV.amax(-1)", "top_T[rows] = exp_CV.mean(-1)"),
    ("dtype=torch.promote_types(hidden_TD.dtype, torch.float32)", "dtype=hidden_TD.dtype"),
    ("torch.zeros_like(weight_VD, dtype=sum_T.dtype)", "torch.zeros_like(weight_VD)"),
    ("(-grad_T[rows] / sum_T[rows])[:, None]", "(-grad_T[rows])[:, None]"),
    ("(-grad_T[rows] / sum_T[rows])[:, None]", "(-1 / sum_T[rows])[:, None]"),
    (
        ".scatter_add_(-1, targets_T[rows, None], grad_T[rows, None])",
        ".scatter_add_(-1, targets_T[rows, None], torch.ones_like(grad_T[rows, None]))",
    ),
    ("ctx.factor).sub_(top_T[rows, None]).exp_()", "ctx.factor).exp_()"),
    ("out=scratch_CV[:len(exp_CV)] if kept else exp_CV)", "out=exp_CV)"),
    ("if len(targets_T) * len(weight_VD) <= KEPT_ELEMENTS", "if True"),
    ("for start in range(0, tokens, rows)]", "for start in range(0, max(1, tokens - 1), rows)]"),
    ("rows = max(1, CHUNK_ELEMENTS[weight_VD.device.type] // len(weight_VD))", "rows = tokens"),
    (
        "total_VD.addmm_(left_VC.to(total_VD.dtype), right_CD.to(total_VD.dtype))",
        "total_VD.copy_(left_VC.to(total_VD.dtype) @ right_CD.to(total_VD.dtype))",
    ),
    (
        "hidden_ND.index_select(0, first_T), hidden_ND.index_select(0, rest_T)])",
        "hidden_ND.index_select(0, rest_T), hidden_ND.index_select(0, first_T)])",
    ),
    (
        "return logp_R[:batch.units], logp_R[batch.units:]",
        "return logp_R[batch.units:], logp_R[:batch.units]",
    ),
    ("torch.segment_reduce(logp_T.double(), ", "torch.segment_reduce(logp_T, "),
    ('"sum", lengths', '"mean", lengths'),
    (
        "head.weight, head.factor = linear.weight, factor",
        "head.weight, head.factor = nn.Parameter(linear.weight.detach().clone()), factor",
    ),
    ("if linear.bias is not None", "if linear.bias is None and False"),
    ("return super().forward(hidden_TD)", "return super().forward(hidden_TD).log_softmax(-1)"),
)

ATTENTION = of(
    "zephyr/model/attention.py",
    "tests/model/test_attention.py",
    ("device=device).tril(keys - queries)", "device=device).tril()"),
    ("sees.triu(keys - queries - window + 1)", "sees.triu(keys - queries - window)"),
    ("sees.triu(keys - queries - window + 1)", "sees.triu(1 - window)"),
    ("plain = query.shape[0] == key.shape[0] and (window is None", "plain = (window is None"),
    ("(window is None or window >= key.shape[0])", "(window is None or window >= 3)"),
    ("is_causal=plain, scale=scale,", "is_causal=plain,"),
    (
        "scale = query.shape[-1] ** -0.5 if scaling is None else scaling",
        "scale = query.shape[-1] ** -0.5",
    ),
    ("sliding_window >= layout.max_key", "sliding_window >= layout.max_query"),
    (
        "key_NKE[:layout.unshared], key_NKE.index_select",
        "key_NKE[:layout.unshared], -key_NKE.index_select",
    ),
    (
        "with_shared(key_NKE, layout), with_shared(value_NKE, layout)",
        "with_shared(key_NKE, layout), with_shared(key_NKE, layout)",
    ),
    ('+ ["dropout"] * (dropout > 0)', ""),
    (
        "if v is not None and k not in IGNORED)",
        "if v is not None and k not in {*IGNORED, 'softcap'})",
    ),
    (
        "dropout_p=0.0, softmax_scale=scale, causal=True",
        "dropout_p=0.0, softmax_scale=scale, causal=False",
    ),
    (
        "(-1, -1) if window is None else (window - 1, 0)",
        "(-1, -1) if window is None else (window, 0)",
    ),
    (
        "query_NHE, key_MKE, value_MKE, layout.cu_query, layout.cu_key, layout.max_query, layout.max_key,\n        dropout",
        "query_NHE, key_MKE, value_MKE, layout.cu_query, layout.cu_query, layout.max_query, layout.max_key,\n        dropout",
    ),
    (
        '"window_size": (-1 if window is None else window - 1, 0)',
        '"window_size": (-1 if window is None else window - 1, -1)',
    ),
    ('options = {"is_causal": True}', 'options = {"is_causal": False}'),
    ('{"scale": scale, "window_size"', '{"scale": None, "window_size"'),
    ("if window is not None or abs(scale * size**0.5 - 1) > 1e-6", "if window is not None"),
    ("    AttentionMaskInterface.register(name, sdpa_mask)\n", ""),
    ('    if device != "cuda":\n', '    if device == "nothing":\n'),
    ("if dtype not in (torch.bfloat16, torch.float16)", "if dtype == torch.float64"),
)

ENGINES = of(
    "zephyr/training/engine.py",
    ENGINE,
    (
        '{"params": vectors, "weight_decay": 0.0}',
        '{"params": vectors, "weight_decay": optim.weight_decay}',
    ),
    (
        '{"params": matrices, "weight_decay": optim.weight_decay}',
        '{"params": matrices, "weight_decay": 0.0}',
    ),
    ("if len(p.ds_shape) > 1]", "if p.ndim > 1]"),
    ("betas=optim.adam_betas, eps=1e-8", "eps=1e-8"),
    ("betas=optim.adam_betas, eps=1e-8", "betas=optim.adam_betas[::-1], eps=1e-8"),
    ("betas=optim.adam_betas, eps=1e-8", "betas=optim.adam_betas, eps=1e-6"),
    ("self.engine.backward(loss * self.world)", "self.engine.backward(loss * self.world * 2)"),
    ("set_gradient_accumulation_boundary(last)", "set_gradient_accumulation_boundary(not last)"),
    ('            group["lr"] = lr\n', '            group["lr"] = max(lr, group["lr"])\n'),
    ("in self.engine.optimizer.param_groups:\n", "in self.engine.optimizer.param_groups[:1]:\n"),
    ('"gradient_clipping": optim.grad_clip', '"gradient_clipping": 1.0'),
    ('"gradient_clipping": optim.grad_clip, ', ""),
    (
        'return {"data_types": {"grad_accum_dtype": "fp32"}, **self.settings',
        "return {**self.settings",
    ),
    ('"bf16": {"enabled": self.hardware.dtype == "bfloat16"}', '"bf16": {"enabled": True}'),
    (
        "        self.engine.optimizer.optimizer.state.clear()\n        return norm",
        "        return norm",
    ),
    ("norm = float(self.step(0.0))", "norm = float(self.step(1e-3))"),
    ("        torch.arange = arange\n", ""),
    ("parameter.copy_(read())", "parameter.copy_(read().abs())"),
    ("shards.read(self.live_shards(step), folder)", "shards.read(self.live_shards(0), folder)"),
    ("        shards.refresh_parameters(self.engine.optimizer)\n", ""),
    (
        "        except OSError as error:\n            own",
        "        except FileExistsError as error:\n            own",
    ),
    (
        '    "gradient_accumulation_steps": "hardware.tokens_per_micro_batch", "optimizer": "optim"',
        '    "optimizer": "optim"',
    ),
    ('or zero.get("stage") != 3', 'or zero.get("stage") not in (2, 3)'),
    (
        "yield name, parameter.detach().cpu().clone()",
        "yield name, parameter.detach().cpu()[:1].clone()",
    ),
    ('"embed_tokens" not in name and "lm_head" not in name', '"lm_head" not in name'),
    ("raise own or BadInput(complaints[0])", "return None"),
)

LOOP = of(
    "zephyr/training/loop.py",
    OF_LOOP,
    ("loss_sum / units * (1", "loss_sum / max(1, batch.units) * (1"),
    ("loss_sum / units * (1 + 0 * loss_sum.detach())", "loss_sum / units"),
    ("last=m == len(ranks[engine.rank]) - 1", "last=m == 0"),
    ("step, rates[step], ledger, config,", "step, rates[step - first_step], ledger, config,"),
    (
        "for step in range(first_step, len(steps)):",
        "for step in range(max(0, first_step - 1), len(steps)):",
    ),
    (
        "for step in range(first_step, len(steps)):",
        "for step in range(first_step, len(steps) - 1):",
    ),
    ('"epoch": steps[step].epoch, **means', '"epoch": float(int(steps[step].epoch)), **means'),
    ("if step % run.log_every == 0 or saves:", "if step % run.log_every == 0:"),
    (
        'recorder.write(record | use, alarms.of_training(record, getattr(config, "beta", None), rates, ulp))\n                sums, logged, since = {}, step,',
        'recorder.write(record | use, alarms.of_training(record, getattr(config, "beta", None), rates, ulp))\n                logged, since = step,',
    ),
    (
        '"grad_norm": of_step["grad_norm"], "update_ratio"',
        '"grad_norm": sums["grad_norm"], "update_ratio"',
    ),
    ('math.sqrt(of_step["update"] / of_step["weight"])', 'of_step["update"] / of_step["weight"]'),
    ("float(optim.epochs) if last else steps[done].epoch", "steps[step].epoch"),
    ("(done % run.eval_every == 0 or last)", "(step % run.eval_every == 0 or last)"),
    ("(done % run.eval_every == 0 or last)", "done % run.eval_every == 0"),
    (
        'saves = done % run.save_every == 0 or last or of_step["stop"]',
        "saves = done % run.save_every == 0 or last",
    ),
    ("saves = done % run.save_every == 0 or last or", "saves = done % run.save_every == 0 or"),
    (
        '            if of_step["stop"] and not last:\n',
        '            if of_step["stop"] and last:\n',
    ),
    ("        if sample and first_step == 0:\n", "        if sample:\n"),
    (
        "            ledger.add(step, epoch, batch.indices, stats)\n",
        "            ledger.add(step, epoch, batch.indices[::-1], stats)\n",
    ),
    (
        'return {name: value / sums["units"] for name',
        'return {name: value / sums["tokens"] for name',
    ),
    ('"flops", "micro_batches", "stop", "grad_norm"', '"flops", "micro_batches", "grad_norm"'),
    ("            require_finite(of_step, engine, train, step, ledger, recorder)\n", ""),
    ("ids = guilty or [split.ids", "ids = [split.ids"),
    (
        "            sums, done, last = added(sums, of_step), step + 1",
        "            sums, done, last = of_step, step + 1",
    ),
    ("recorder.sync(), ledger and ledger.commit(done, rows)", "recorder.sync()"),
    (
        '"packing_efficiency": sums["tokens"] / (sums["micro_batches"] * budget_tokens)',
        '"packing_efficiency": sums["tokens"] / budget_tokens',
    ),
)

SCHEDULE = of(
    "zephyr/training/schedule.py",
    "tests/training/test_training.py::test_schedules_by_hand tests/training/test_training.py::test_warm_up_is_rounded_up",
    ("math.ceil(warmup_fraction * steps)", "math.floor(warmup_fraction * steps)"),
    ("math.ceil(warmup_fraction * steps)", "max(1, math.ceil(warmup_fraction * steps))"),
    ("if step < warmup_steps", "if step < warmup_steps - 1"),
    ("return lr_peak * step / warmup_steps", "return lr_peak * (step + 1) / warmup_steps"),
    ("return lr_peak * step / warmup_steps", "return lr_peak * step / steps"),
    ("left = (steps - step) /", "left = (steps - 1 - step) /"),
    ("max(1, steps - warmup_steps)", "steps"),
    ("math.cos(math.pi * (1 - left))", "math.cos(math.pi * left)"),
    ("math.cos(math.pi * (1 - left))", "math.cos(math.pi / 2 * (1 - left))"),
    ("0.5 * (1 + math.cos", "(1 + math.cos"),
    ('{"constant": 1.0', '{"constant": left'),
    ('"linear": left', '"linear": left**2'),
    ("return lr_peak * {", "return {"),
)

SHARDS = of(
    "zephyr/training/shards.py",
    f"tests/training/test_shards.py {OF_STATE} {engine('update_and_weight_are_those_of_the_weights')}",
    ("start = rank * size", "start = 0"),
    ("real = max(0, min(size, parameter.ds_numel - start))", "real = size"),
    (
        "real = max(0, min(size, parameter.ds_numel - start))",
        "real = min(size, parameter.ds_numel)",
    ),
    ("            offset += size\n", "            offset += real\n"),
    (
        "step=torch.tensor(float(adam_step), device=flat.device)",
        "step=torch.tensor(0.0, device=flat.device)",
    ),
    (
        'values = flat.detach() if vector == "master" else state[vector]',
        'values = flat.detach() if vector == "master" else state["exp_avg"]',
    ),
    ('VECTORS = ("master", "exp_avg", "exp_avg_sq")', 'VECTORS = ("master", "exp_avg")'),
    ('group["eps"] * unbias_sq.sqrt()', 'group["eps"]'),
    ("mul_(lr * unbias_sq.sqrt() / unbias)", "mul_(lr / unbias)"),
    ("mul_(lr * unbias_sq.sqrt() / unbias)", "mul_(lr * unbias_sq.sqrt())"),
    (
        'update.add_(weight, alpha=lr * group["weight_decay"])',
        'update.add_(weight, alpha=-lr * group["weight_decay"])',
    ),
    ("norms += [update.norm(), weight.norm()]", "norms += [weight.norm(), update.norm()]"),
    ("        number += 1\n", ""),
    ("if whole != shard.whole", "if whole < shard.whole"),
    ("if filled != len(shard.values)", "if filled > len(shard.values)"),
    ("min(start + values.get_shape()[0], end)", "min(start + whole, end)"),
    (
        "shard.values[a - shard.start:b - shard.start].copy_(values[a - start:b - start])",
        "shard.values[a - shard.start:b - shard.start].copy_(values[:b - a])",
    ),
    ("shard.values[a - shard.start:b - shard.start].copy_", "shard.values[:b - a].copy_"),
    ("[shard.start, shard.whole]\n", "[0, shard.whole]\n"),
    ("for group in range(len(zero.fp16_groups)):", "for group in range(1):"),
)

CHECKPOINT = of(
    "zephyr/training/checkpoint.py",
    f"tests/training/test_identity.py {OF_CHECKPOINT}",
    ('("beta", "loss", "label_smoothing")', '("beta", "label_smoothing")'),
    ('("beta", "loss", "label_smoothing")', '("beta", "loss")'),
    ('"run.seed": config.run.seed, ', ""),
    ('"data.shuffle": config.data.shuffle, ', ""),
    (', "hardware.dtype": config.hardware.dtype}', "}"),
    ("{**of_optim, **loss, **other, **more, ", "{**loss, **other, **more, "),
    ("{**of_optim, **loss, **other, **more, ", "{**of_optim, **loss, **other, "),
    ("[step.examples() for step in plan.steps]", "[len(step.examples()) for step in plan.steps]"),
    ("[step.examples() for step in plan.steps]", "[step.ranks for step in plan.steps]"),
    ("before[len(before) - keep + 1:]", "before[len(before) - keep:]"),
    ("before[len(before) - keep + 1:]", "before[keep - 1:]"),
    (
        'write_whole(folder / "latest", whole.name.encode())',
        'write_whole(folder / "latest", b"step-0")',
    ),
    ('numbered(run_dir / "checkpoints")[::-1])', 'numbered(run_dir / "checkpoints"))'),
    ("engine.load_state(folder, step_of(folder))", "engine.load_state(folder, 0)"),
    ("        return step_of(folder)\n", "        return step_of(folder) + 1\n"),
    ('if changes and resume != "force"', 'if changes and resume == "force"'),
    ('if changes and resume != "force"', "if changes"),
    ("or synced_digest(folder / name) != digest]", "]"),
    (
        "if not (folder / name).is_file() or synced_digest",
        "if (folder / name).is_file() and synced_digest",
    ),
    ("before = [f for f in others if step_of(f) < step]", "before = others"),
    ("        shutil.rmtree(left_over)\n", "        pass\n"),
    ('        return ["state.json"] if rank == 0 else []\n', "        return []\n"),
)

REFERENCE = of(
    "zephyr/reference.py",
    OF_REFERENCE,
    ('return {"weights": weights, ', "return {"),
    ('"dtype": hardware.dtype, "attention"', '"attention"'),
    ('"attention": hardware.attention,', ""),
    ('"dtype": hardware.dtype, "attention": hardware.attention,', ""),
    ("        probe(engine, examples, keys, known, collate, lengths, folder)\n", ""),
    (
        "if not abs(new - old) <= response_nats(",
        "if not abs(new - old) <= 100 * response_nats(",
    ),
    (
        'zip(("chosen", "rejected"), pair[2:], fresh, known[keys[i]])',
        'zip(("chosen",), pair[2:], fresh, known[keys[i]])',
    ),
    (
        'zip(("chosen", "rejected"), pair[2:], fresh, known[keys[i]])',
        'zip(("chosen", "rejected"), pair[2:], fresh, fresh)',
    ),
    (
        "(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]",
        "(pair.prompt_ids, pair.chosen_ids)]",
    ),
    (
        "(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]",
        "(pair.chosen_ids, pair.rejected_ids)]",
    ),
    (
        "(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]",
        "(pair.prompt_ids, *sorted((pair.chosen_ids, pair.rejected_ids)))]",
    ),
    ('len(part).to_bytes(8, "little") + part', "part"),
    ("if hashlib.sha256(content).hexdigest() != path.stem", "if not path.stem"),
    ("path.stat().st_mtime_ns, reverse=True)", "path.stat().st_mtime_ns)"),
    ("for step in first_epoch.steps if step.epoch < 1 for", "for step in first_epoch.steps for"),
    ("if not missing.isdisjoint(chain(*ranks))]", "if True]"),
    (
        "forward_pass(engine, part, collate)).items() if i in missing}",
        "forward_pass(engine, part, collate)).items()}",
    ),
    ("return self.logp[indices_P].unbind(-1)", "return self.logp[indices_P].flip(-1).unbind(-1)"),
    ("return self.logp[indices_P].unbind(-1)", "return self.logp[:len(indices_P)].unbind(-1)"),
    ("self.logp.cpu().numpy().tobytes()", "bytes(self.logp.shape)"),
    (
        "torch.stack(response_logprobs(engine, batch), dim=-1)",
        "torch.stack(response_logprobs(engine, batch)[::-1], dim=-1)",
    ),
    ("indices += batch.indices", "indices += batch.indices[::-1]"),
)

ENCODE = of(
    "zephyr/chat/encode.py",
    "tests/data/test_chat_rows.py tests/data/test_encode.py "
    "tests/data/test_data_fields.py::test_marks_of_a_template_inside_an_answer_are_the_answers",
    (
        "max(len(pair.chosen_ids), len(pair.rejected_ids)) <= max_tokens",
        "max(len(pair.chosen_ids), len(pair.rejected_ids)) < max_tokens",
    ),
    (
        "max(len(pair.chosen_ids), len(pair.rejected_ids)) <= max_tokens",
        "len(pair.chosen_ids) <= max_tokens",
    ),
    ("kept_bos = prompt[:1] if prompt[0] == bos_id else []", "kept_bos = []"),
    ("kept_bos = prompt[:1] if prompt[0] == bos_id else []", "kept_bos = prompt[:1]"),
    (
        "prompt[len(prompt) - max_prompt_tokens + len(kept_bos):]",
        "prompt[len(kept_bos):max_prompt_tokens]",
    ),
    (
        "pair.chosen_ids[:room], rejected_ids=pair.rejected_ids[:room])",
        "pair.chosen_ids[-room:], rejected_ids=pair.rejected_ids[-room:])",
    ),
    ("if not 2 <= max_prompt_tokens < max_tokens", "if not 2 <= max_prompt_tokens <= max_tokens"),
    (
        "((texts.chosen, texts.names[-2]), (texts.rejected, texts.names[-1]))",
        "((texts.rejected, texts.names[-1]), (texts.chosen, texts.names[-2]))",
    ),
    ("return [*ids, tokenizer.eos_token_id], end + len(eos)", "return ids, end + len(eos)"),
    (
        "(answer_ids, turn in trained)]",
        "(answer_ids[:-1], turn in trained), (answer_ids[-1:], False)]",
    ),
    (
        '_with_bos(tokenizer, between_ids), targets == "all")',
        "_with_bos(tokenizer, between_ids), True)",
    ),
    (
        '(between_ids if done else _with_bos(tokenizer, between_ids), targets == "all")',
        '(_with_bos(tokenizer, between_ids), targets == "all")',
    ),
    (
        'parts.append((_ids(tokenizer, whole[len(done):], after_eos=True), targets == "all"))',
        "parts.append((_ids(tokenizer, whole[len(done):], after_eos=True), True))",
    ),
    ("    is_target[0] = False\n", ""),
    (
        "return EncodedText(id, ids[:max_tokens], is_target[:max_tokens])",
        "return EncodedText(id, ids[-max_tokens:], is_target[-max_tokens:])",
    ),
    ("tokenizer.eos_token_id][:max_tokens]\n", "][:max_tokens]\n"),
    (
        "return EncodedText(id, ids, [False] + [True] * (len(ids) - 1))",
        "return EncodedText(id, ids, [True] * len(ids))",
    ),
    (
        "return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]",
        "return ids if bos_id is None else [bos_id, *ids]",
    ),
    ("return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]", "return ids"),
    ("    while specials.search(value):\n", "    while False:\n"),
    (
        'if odd := re.search("[\\ufdd0\\ud800-\\udfff]", value)',
        'if odd := re.search("[\\ufdd0]", value)',
    ),
    ("if first and first[0] != eos and not (", "if False and not ("),
    ("and not (end > 0 and _ends_with_eos(tokenizer, template, eos)", "and not (end > 0"),
    ("and upto().startswith(whole[:end + len(eos)])):", "):"),
    ("return turn_end(tokenizer, template) == eos\n", "return True\n"),
    ("if first is None or end < 0:", "if False:"),
    ("apart = ids[:len(context_ids)] == context_ids and", "apart ="),
    ('check_messages(messages, last="user")', "check_messages(messages)"),
    (
        "_ids(tokenizer, render(tokenizer, turns, template, answer=True, tools=tools)))",
        "_ids(tokenizer, render(tokenizer, turns, template, answer=False, tools=tools)))",
    ),
)

SCRIPTS = (
    of(
        "train_dpo.py",
        "tests/training/test_objective.py",
        ("beta=config.beta, loss=config.loss,", 'beta=config.beta, loss="sigmoid",'),
        ("beta=config.beta, loss=config.loss,", "beta=0.1, loss=config.loss,"),
        (
            "label_smoothing=config.label_smoothing,",
            'label_smoothing=1e-3 if config.loss == "exo_pair" else 0.0,',
        ),
        (
            "chosen_tokens_P=batch.response_tokens_R[:batch.units],\n            rejected_tokens_P=batch.response_tokens_R[batch.units:])",
            "chosen_tokens_P=batch.response_tokens_R[batch.units:],\n            rejected_tokens_P=batch.response_tokens_R[:batch.units])",
        ),
        (
            "chosen_P, rejected_P, ref_chosen_P, ref_rejected_P,    ",
            "chosen_P, rejected_P, ref_rejected_P, ref_chosen_P,    ",
        ),
        (
            "ref_chosen_P, ref_rejected_P = frozen(batch)",
            "ref_chosen_P, ref_rejected_P = (logp_P.detach() for logp_P in response_logprobs(policy, batch))",
        ),
        ("return terms.loss_P.sum(), {", "return terms.loss_P.mean(), {"),
        (
            '"rewards/chosen": terms.reward_chosen_P, "rewards/rejected": terms.reward_rejected_P,',
            '"rewards/chosen": terms.reward_rejected_P, "rewards/rejected": terms.reward_chosen_P,',
        ),
        (
            "terms.reward_chosen_P - terms.reward_rejected_P",
            "terms.reward_rejected_P - terms.reward_chosen_P",
        ),
        (
            "losses.wins(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P)",
            "losses.wins(rejected_P, chosen_P, ref_rejected_P, ref_chosen_P)",
        ),
        (
            '"logps/chosen": chosen_P.detach(), "logps/rejected": rejected_P.detach()',
            '"logps/chosen": rejected_P.detach(), "logps/rejected": chosen_P.detach()',
        ),
    )
    + of(
        "train_dpo.py",
        TRACE_DPO,
        (
            "    frozen = reference.log_probabilities(engine, pairs,",
            "    [p.ds_tensor.data.mul_(1.01) for p in engine.policy.parameters()]\n"
            "    frozen = reference.log_probabilities(engine, pairs,",
        ),
        (
            "prefix_sharing=config.hardware.prefix_sharing)\n    counts",
            "prefix_sharing=False)\n    counts",
        ),
        ("per_step=config.optim.pairs_per_step", "per_step=config.optim.pairs_per_step + 1"),
        ("max_tokens=config.data.max_tokens,\n", "max_tokens=config.data.max_tokens + 1,\n"),
    )
    + of(
        "train_sft.py",
        TRACE_SFT,
        ("targets=config.data.targets,", 'targets="all",'),
        ("window_tokens=config.data.max_tokens)", "window_tokens=config.data.max_tokens + 9)"),
        ('"target_tokens", flops', '"pairs", flops'),
    )
    + of(
        "train_sft.py",
        "tests/training/test_objective.py",
        ("return -policy(batch).sum(), {}", "return -policy(batch).mean(), {}"),
        ("return -policy(batch).sum(), {}", "return policy(batch).sum(), {}"),
    )
)

METRICS = of(
    "zephyr/training/metrics.py",
    OF_LOOP,
    ("**dict(zip(stats, of_pair))", "**dict(zip([*reversed(stats)], of_pair))"),
    ("total = value.detach().double().sum()", "total = value.detach().double().mean()"),
    (
        "self.of[name] = self.of[name] + total if name in self.of else total",
        "self.of[name] = total",
    ),
    ("if step_of(path) > first_step", "if step_of(path) >= first_step"),
    ("if step_of(path) > first_step", "if False"),
    ('if record["step"] < step or (', 'if record["step"] <= step or ('),
    ("        self.visits.clear()\n", ""),
)

MUTANTS = [
    *LOSSES,
    *COLLATE,
    *PLAN,
    *LOGPROBS,
    *ATTENTION,
    *ENGINES,
    *LOOP,
    *SCHEDULE,
    *SHARDS,
    *CHECKPOINT,
    *REFERENCE,
    *ENCODE,
    *SCRIPTS,
    *METRICS,
]
