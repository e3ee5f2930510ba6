"""Distilled supervised fine-tuning (dSFT), the first step of Zephyr.

    torchrun --nproc_per_node=8 train_sft.py CONFIG.yaml [key.sub=value ...] [--dry-run] [--quiet]
    python train_sft.py CONFIG.yaml [key.sub=value ...] [--dry-run] [--quiet]    (one process)

CONFIG.yaml is for example configs/zephyr-7b-beta/sft.yaml. --dry-run prints the plan, memory and
time, and exits; with --gpus 16 --device a100-80 those of other GPUs than are here.

Dialogues are packed into windows, and none attends to another. The loss is the mean of
-log pi(token | the tokens before it in its dialogue) over the target tokens of a step: the
assistant's words, and the EOS that ends each of its turns (arXiv:2310.16944, Section 3). In plain
`text` rows every token is a target: the same script trains a base model.
"""

import sys
from collections.abc import Mapping
from functools import partial

from zephyr.config import DryRun, SFTConfig, check_arguments

if __name__ == "__main__":
    check_arguments(SFTConfig, __doc__, sys.argv[1:])  # before the imports that take seconds

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zephyr.chat import leading_bos
from zephyr.costs.predict import estimate, missing_tokenizer, require_model
from zephyr.data.encode import encoding_resources, load_splits, load_texts
from zephyr.data.fetch import fetch_models
from zephyr.data.report import Report
from zephyr.data.store import Texts, content_digest
from zephyr.data.template import describe_first_prompt, load_run_tokenizer, save_chat_template
from zephyr.data.windows import packer
from zephyr.evaluation.samples import make_sampler
from zephyr.model.fused import describe as describe_fused
from zephyr.model.load import DTYPES, digest, load_policy, require_runnable
from zephyr.packing import PackedBatch, Plan, collate_texts, plan_epochs, plan_pass
from zephyr.report.finish import finish_run
from zephyr.training import checkpoint
from zephyr.training.engine import Engine
from zephyr.training.flops import text_flops
from zephyr.training.folder import RunFolder, json_bytes
from zephyr.training.launch import exit_process, launch
from zephyr.training.loop import Split, Stats, fit
from zephyr.training.planner import describe_plan, most_micro_batches, require_budget
from zephyr.verify import preflight


def train(engine: Engine, config: SFTConfig, folder: RunFolder) -> None:
    """The whole run, on every rank. Args: folder: the run folder."""
    # Dialogues as token ids, and the plan that assigns them to steps, ranks and micro-batches.
    fetch_models(engine, config)
    config, tokenizer = load_run_tokenizer(engine, config)
    encoded, reports = load_data(engine, config, tokenizer)
    texts = encoded["train"]
    plan = make_plan(engine, config, texts)
    sample = make_sampler(engine, config, tokenizer)
    engine.log(describe_plan(plan, engine.world_size))

    # Compare with the run in the folder, if any, before the expensive parts start.
    save_chat_template(folder, config, tokenizer)
    folder.write_file("data.json", json_bytes(reports))
    model_digest = engine.on_rank0(lambda: digest(config.model))
    identity = {"model": model_digest, "data": content_digest(texts)}
    template = tokenizer.chat_template
    if checkpoint.is_finished(engine, config, plan, identity, template=template):
        engine.log(f"{config.run.dir} holds this run, finished: nothing is left to do")
        return

    # The base model, from which the policy starts.
    initialize_policy(engine, config, plan)
    training = split(engine, config, texts, plan, identity)
    evaluation = None
    if "eval" in encoded:
        evaluation = split(engine, config, encoded["eval"], None, identity)
    bos_id = leading_bos(tokenizer) if config.data.packing == "best_fit" else None
    special_ids = (bos_id, tokenizer.eos_token_id)
    found = preflight.check_inputs(engine, config, texts, training, reports, special_ids)
    unpacked = partial(collate_one, texts)
    preflight.check_model(engine, config, texts, training, found, unpacked, folder.write_file)

    fit(engine, config, training, evaluation, sample, folder.claim)
    finish_run(engine, config, tokenizer, training.identity)


def predict(engine: Engine, config: SFTConfig, asked: DryRun) -> None:
    """What `--dry-run` does, on every rank: print plan, memory and time of the run."""
    lacks = require_model(engine, config)
    if missing := missing_tokenizer(engine, config, asked):
        estimate(engine, config, asked, [*lacks, *missing], None)
        return
    config, tokenizer = load_run_tokenizer(engine, config)
    make_sampler(engine, config, tokenizer)
    load = partial(load_data, engine, config, tokenizer)
    estimate(engine, config, asked, lacks, lambda: load()[0]["train"])


def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
    """The objective that `fit` minimizes: the negative log-likelihood of a micro-batch's targets.

    It is summed over the target tokens; the loop divides by the target tokens of all ranks.
    """
    return -policy(batch).sum(), {}


def load_data(
    engine: Engine, config: SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Texts], dict[str, Report]]:
    """`train` and `eval` as token ids, with reports of what was truncated or left out."""
    encode = partial(
        load_texts,
        tokenizer=tokenizer,
        max_tokens=config.data.max_tokens,
        targets=config.data.targets,
        limit=config.data.limit,
        on_bad_row=config.data.on_bad_row,
        columns=config.data.columns,
        joined=config.data.packing == "constant_length",
        **encoding_resources(),
    )
    encoded, reports = load_splits(engine, config.data, encode, packer(config))
    engine.log(describe_first_prompt(tokenizer, encoded["train"][0]))
    for texts in encoded.values():
        require_budget(texts.tokens.tolist(), texts.ids, config.hardware.tokens_per_micro_batch)
    return encoded, reports


def make_plan(engine: Engine, config: SFTConfig, texts: Texts) -> Plan:
    """The dialogues of each step, on each rank, in each micro-batch."""
    return plan_epochs(
        texts.tokens.tolist(),
        per_step=config.optim.windows_per_step,
        epochs=config.optim.epochs,
        ranks=engine.data_world_size,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
        window_tokens=config.data.max_tokens,
    )


def initialize_policy(engine: Engine, config: SFTConfig, plan: Plan) -> None:
    """Load the base model, sharded over all ranks, with its optimizer."""
    hardware = config.hardware
    load = partial(
        load_policy,
        config.model,
        attention=hardware.attention,
        dtype=DTYPES[hardware.dtype],
        activation_checkpointing=hardware.activation_checkpointing,
        fused=hardware.fused,
        max_tokens=config.data.max_tokens,
        adapter=config.adapter,
        seed=config.run.seed,
    )
    engine.initialize(load, config.optim, micro_batches=most_micro_batches(plan))
    if hardware.fused != "none":
        engine.log(describe_fused(engine.policy.lm, hardware.fused))


def collate_one(texts: Texts, index: int) -> PackedBatch:
    """A dialogue by itself: what preflight compares packed rows with."""
    return collate_texts(texts, [index])


def split(
    engine: Engine, config: SFTConfig, texts: Texts, plan: Plan | None, identity: Mapping[str, str]
) -> Split:
    """The dialogues with their plan and objective.

    Args: plan: None: one pass over all dialogues, for evaluation. identity: digests of the model
    and the data, by name.
    """
    tokens, targets = texts.tokens.tolist(), texts.target_tokens.tolist()
    if plan is None:
        budget_tokens = config.hardware.tokens_per_micro_batch
        plan = plan_pass(tokens, ranks=engine.data_world_size, budget_tokens=budget_tokens)
    lm, parameters = engine.policy.lm.config, engine.num_layer_parameters
    adapters = engine.num_adapter_parameters
    flops = [text_flops(lm, parameters, *lengths, adapters) for lengths in zip(tokens, targets)]
    return Split(
        plan=plan,
        collate=partial(collate_texts, texts),
        objective=objective,
        ids=texts.ids,
        tokens=tokens,
        units=targets,
        weights=targets,
        unit_name="target_tokens",
        forward_flops=flops,
        identity=identity,
    )


if __name__ == "__main__":
    exit_process(launch(SFTConfig, require_runnable, train, predict, __doc__, sys.argv[1:]))
