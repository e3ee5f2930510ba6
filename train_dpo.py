"""Distilled direct preference optimisation (dDPO), the last step of Zephyr (arXiv:2310.16944,
Section 3).

    torchrun --nproc_per_node=8 train_dpo.py configs/zephyr-7b-beta/dpo.yaml [key.sub=value ...] [--dry-run]
    python train_dpo.py CONFIG.yaml                                      one process

Starting from the dSFT model, for pairs of a prompt x, a chosen response y_w and a rejected one y_l:
  1. the probability of y_w and y_l under the dSFT model, forward only: frozen, taken once before step 0;
  2. the probability of y_w and y_l under the dDPO model;
  3. Eq. 1 and its gradient, an update; repeat from 2.

P pairs of a micro-batch.
"""

import math
import sys
from collections.abc import Mapping
from functools import partial

from zephyr.config import ConfigError, DPOConfig, exit_on_help

if __name__ == "__main__":
    exit_on_help(DPOConfig, __doc__, sys.argv[1:])  # before the imports that take seconds

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zephyr import losses, reference
from zephyr.chat import leading_bos
from zephyr.costs.predict import estimate
from zephyr.data import (
    Pairs,
    Report,
    content_digest,
    describe_first_prompt,
    encoding_resources,
    load_pairs,
    load_run_tokenizer,
    load_splits,
    save_chat_template,
)
from zephyr.evaluation.samples import make_sampler
from zephyr.model.load import DTYPES, digest, load_policy, require_runnable
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import PackedBatch, Plan, collate_pairs, plan_epochs, plan_pass
from zephyr.report.finish import finish_run
from zephyr.training import checkpoint
from zephyr.training.engine import Engine
from zephyr.training.flops import pair_flops
from zephyr.training.folder import RunFolder, json_bytes
from zephyr.training.launch import exit_process, launch
from zephyr.training.loop import Objective, Split, Stats, fit
from zephyr.training.planner import describe_plan, require_budget
from zephyr.verify import preflight


def train(engine: Engine, config: DPOConfig, folder: RunFolder | None) -> None:
    # Preference pairs as token ids, and the plan: which pairs make which step, on which rank, in
    # which micro-batch.
    config, tokenizer = load_run_tokenizer(engine, config)
    encoded, reports = load(engine, config, tokenizer)
    plan = plan_epochs(
        packed_tokens(encoded["train"], config),
        per_step=config.optim.pairs_per_step,
        epochs=config.optim.epochs,
        ranks=engine.world_size,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
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
    if checkpoint.is_finished(
        engine, config, plan, identity, ignore=["reference"], template=tokenizer.chat_template
    ):
        engine.log(f"{config.run.dir} holds this run, finished: nothing is left to do")
        return

    # The dSFT model: the policy's start, and the frozen reference, whose log-probs are taken before
    # any checkpoint is restored.
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
    training = split(engine, config, encoded["train"], plan)
    found = preflight.check_inputs(
        engine,
        config,
        encoded["train"],
        training,
        reports,
        special=(leading_bos(tokenizer), tokenizer.eos_token_id),
    )
    training = with_reference(engine, config, training, encoded["train"], identity)
    evaluation = (
        with_reference(
            engine, config, split(engine, config, encoded["eval"], None), encoded["eval"], identity
        )
        if "eval" in encoded
        else None
    )
    preflight.check_model(
        engine,
        config,
        encoded["train"],
        training,
        found,
        write_file=folder.write_file,
        unpacked=lambda i: collate_pairs(encoded["train"], [i], prefix_sharing=False),
    )

    fit(engine, config, training, evaluation, sample, folder.claim)
    finish_run(engine, config, tokenizer, training.identity)


def load(
    engine: Engine, config: DPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Pairs], dict[str, Report]]:
    """`train` and `eval` as token ids, and the reports of what was cut or left out."""
    encode = partial(
        load_pairs,
        tokenizer=tokenizer,
        max_tokens=config.data.max_tokens,
        max_prompt_tokens=config.data.max_prompt_tokens,
        truncation=config.data.truncation,
        limit=config.data.limit,
        on_bad_row=config.data.on_bad_row,
        columns=config.data.columns,
        **encoding_resources(),
    )
    encoded, reports = load_splits(engine, config.data, encode)
    engine.log(describe_first_prompt(tokenizer, encoded["train"][0]))
    for pairs in encoded.values():
        require_budget(
            packed_tokens(pairs, config), pairs.ids, config.hardware.tokens_per_micro_batch
        )
    return encoded, reports


def split(engine: Engine, config: DPOConfig, pairs: Pairs, plan: Plan | None) -> Split:
    """Pairs with their plan (None: one pass over all); the objective comes with the reference."""
    tokens = packed_tokens(pairs, config)
    plan = plan or plan_pass(
        tokens, ranks=engine.world_size, budget_tokens=config.hardware.tokens_per_micro_batch
    )
    collate = partial(collate_pairs, pairs, prefix_sharing=config.hardware.prefix_sharing)
    counts = {
        "prompt_tokens": pairs.prompt_tokens,
        "chosen_tokens": pairs.chosen_tokens,
        "rejected_tokens": pairs.rejected_tokens,
    }
    flops = [
        pair_flops(
            engine.policy.lm.config,
            engine.num_layer_parameters,
            *of_pair,
            config.hardware.prefix_sharing,
        )
        for of_pair in zip(*counts.values())
    ]
    return Split(
        plan,
        collate,
        None,
        pairs.ids,
        tokens,
        [1] * len(pairs),
        "pairs",
        flops,
        {},
        counts,
        initial_loss=math.log(2) if config.loss == "sigmoid" else None,
    )


def with_reference(
    engine: Engine, config: DPOConfig, planned: Split, pairs: Pairs, identity: Mapping[str, str]
) -> Split:
    """The split with its reference log-probs (step 1) and objective (steps 2 and 3). Args:
    identity: of model and data."""
    frozen = reference.reference_logprobs(
        engine,
        pairs,
        planned.tokens,
        first_epoch=planned.plan,
        collate=planned.collate,
        weights=identity["model"],
        directory=config.reference.dir,
    )
    return planned._replace(
        objective=dpo_objective(config, frozen), identity={**identity, "reference": frozen.digest()}
    )


def dpo_objective(config: DPOConfig, frozen: reference.Reference) -> Objective:
    """A micro-batch's loss, summed over its pairs (the loop divides by the pairs of all ranks), and
    each pair's statistics."""

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        ref_chosen_P, ref_rejected_P = frozen(batch)  # 1. log pi_ref(y|x)
        chosen_P, rejected_P = response_logprobs(policy, batch)  # 2. log pi(y|x)
        terms = losses.dpo(  # 3. sigmoid: -logsigmoid(beta * (
            chosen_P,
            rejected_P,
            ref_chosen_P,
            ref_rejected_P,  #      (chosen_P - ref_chosen_P)
            beta=config.beta,
            loss=config.loss,  #      - (rejected_P - ref_rejected_P)))
            label_smoothing=config.label_smoothing,
            chosen_tokens_P=batch.response_tokens_R[: batch.units],
            rejected_tokens_P=batch.response_tokens_R[batch.units :],
        )
        return terms.loss_P.sum(), {
            "loss": terms.loss_P.detach(),
            "rewards/chosen": terms.reward_chosen_P,
            "rewards/rejected": terms.reward_rejected_P,
            "rewards/margins": terms.reward_chosen_P - terms.reward_rejected_P,
            "rewards/accuracies": losses.reward_accuracy(
                chosen_P, rejected_P, ref_chosen_P, ref_rejected_P
            ),
            "logps/chosen": chosen_P.detach(),
            "logps/rejected": rejected_P.detach(),
        }

    return objective


def packed_tokens(pairs: Pairs, config: DPOConfig) -> list[int]:
    """Tokens that each pair takes in a packed row: its prompt once, or with either response."""
    prompts = 1 if config.hardware.prefix_sharing else 2
    return (prompts * pairs.prompt_tokens + pairs.chosen_tokens + pairs.rejected_tokens).tolist()


def check(config: DPOConfig) -> None:
    """Raises: BadInput for an unknown loss, a label_smoothing that it does not take, or what this
    machine can't run."""
    try:
        losses.require_settings(config.loss, config.beta, config.label_smoothing)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    require_runnable(config)


if __name__ == "__main__":
    exit_process(launch(DPOConfig, check, train, __doc__, sys.argv[1:]))
