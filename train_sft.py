"""Distilled supervised fine-tuning (dSFT), the first step of Zephyr (arXiv:2310.16944, Section 3).

    torchrun --nproc_per_node=8 train_sft.py configs/zephyr-7b-beta/sft.yaml [key.sub=value ...] [--dry-run]
    python train_sft.py CONFIG.yaml                                      one process

Dialogues are packed into windows, none seeing another; the loss is the mean of -log pi(token | what
is before it in its dialogue) over the target tokens of a step: the assistant's words and the EOS
that ends each of its turns. Plain `text` rows are all target: the same script trains a base model.
"""

import sys
from collections.abc import Mapping
from functools import partial

from zephyr.config import SFTConfig, exit_on_help

if __name__ == "__main__":
    exit_on_help(SFTConfig, __doc__, sys.argv[1:])  # before the imports that take seconds

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zephyr.chat import leading_bos
from zephyr.costs.predict import estimate
from zephyr.data import (
    Report,
    Texts,
    content_digest,
    describe_first_prompt,
    encoding_resources,
    load_run_tokenizer,
    load_splits,
    load_texts,
    save_chat_template,
)
from zephyr.evaluation.samples import make_sampler
from zephyr.model.load import DTYPES, digest, load_policy, require_runnable
from zephyr.packing import PackedBatch, Plan, collate_texts, plan_epochs, plan_pass
from zephyr.report.finish import finish_run
from zephyr.training import checkpoint
from zephyr.training.engine import Engine
from zephyr.training.flops import text_flops
from zephyr.training.folder import RunFolder, json_bytes
from zephyr.training.launch import exit_process, launch
from zephyr.training.loop import Split, Stats, fit
from zephyr.training.planner import describe_plan, require_budget
from zephyr.verify import preflight


def train(engine: Engine, config: SFTConfig, folder: RunFolder | None) -> None:
    # Dialogues as token ids with targets, and the plan: which make which step, on which rank, in
    # which micro-batch.
    config, tokenizer = load_run_tokenizer(engine, config)
    encoded, reports = load(engine, config, tokenizer)
    plan = plan_epochs(
        encoded["train"].tokens.tolist(),
        per_step=config.optim.windows_per_step,
        epochs=config.optim.epochs,
        ranks=engine.world_size,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
        window_tokens=config.data.max_tokens,
    )
    sample = make_sampler(engine, config, tokenizer)
    engine.log(describe_plan(plan, engine.world_size))
    if folder is None:  # a dry run
        engine.log(engine.on_rank0(lambda: estimate(engine, config, encoded["train"])))
        return

    # A folder that holds another run is refused before anything is paid for; one that holds this
    # run, finished, is left alone.
    save_chat_template(folder, config, tokenizer)
    folder.write_file("data.json", json_bytes(reports))
    identity = {
        "model": engine.on_rank0(lambda: digest(config.model)),
        "data": content_digest(encoded["train"]),
    }
    if checkpoint.is_finished(engine, config, plan, identity, template=tokenizer.chat_template):
        engine.log(f"{config.run.dir} holds this run, finished: nothing is left to do")
        return

    hardware = config.hardware
    engine.initialize(
        partial(
            load_policy,
            config.model,
            attention=hardware.attention,
            dtype=DTYPES[hardware.dtype],
            activation_checkpointing=hardware.activation_checkpointing,
            max_tokens=config.data.max_tokens,
        ),
        config.optim,
    )
    training = split(engine, config, encoded["train"], plan, identity)
    evaluation = (
        split(engine, config, encoded["eval"], None, identity) if "eval" in encoded else None
    )
    found = preflight.check_inputs(
        engine,
        config,
        encoded["train"],
        training,
        reports,
        special=(leading_bos(tokenizer), tokenizer.eos_token_id),
    )
    preflight.check_model(
        engine,
        config,
        encoded["train"],
        training,
        found,
        write_file=folder.write_file,
        unpacked=lambda i: collate_texts(encoded["train"], [i]),
    )

    fit(engine, config, training, evaluation, sample, folder.claim)
    finish_run(engine, config, tokenizer, training.identity)


def load(
    engine: Engine, config: SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Texts], dict[str, Report]]:
    """`train` and `eval` as token ids, and the reports of what was cut or left out."""
    encode = partial(
        load_texts,
        tokenizer=tokenizer,
        max_tokens=config.data.max_tokens,
        targets=config.data.targets,
        limit=config.data.limit,
        on_bad_row=config.data.on_bad_row,
        columns=config.data.columns,
        **encoding_resources(),
    )
    encoded, reports = load_splits(engine, config.data, encode)
    engine.log(describe_first_prompt(tokenizer, encoded["train"][0]))
    for texts in encoded.values():
        require_budget(texts.tokens.tolist(), texts.ids, config.hardware.tokens_per_micro_batch)
    return encoded, reports


def split(
    engine: Engine, config: SFTConfig, texts: Texts, plan: Plan | None, identity: Mapping[str, str]
) -> Split:
    """Texts with their plan (None: one pass over all) and the objective."""
    tokens, targets = texts.tokens.tolist(), texts.target_tokens.tolist()
    plan = plan or plan_pass(
        tokens, ranks=engine.world_size, budget_tokens=config.hardware.tokens_per_micro_batch
    )
    flops = [
        text_flops(engine.policy.lm.config, engine.num_layer_parameters, *of_text)
        for of_text in zip(tokens, targets)
    ]
    return Split(
        plan,
        partial(collate_texts, texts),
        objective,
        texts.ids,
        tokens,
        targets,
        "target_tokens",
        flops,
        identity,
    )


def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
    """A micro-batch's negative log-likelihood, summed over its target tokens (the loop divides by
    those of all ranks)."""
    return -policy(batch).sum(), {}


if __name__ == "__main__":
    exit_process(launch(SFTConfig, require_runnable, train, __doc__, sys.argv[1:]))
