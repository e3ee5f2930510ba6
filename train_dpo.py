"""Distilled direct preference optimization (dDPO), the last step of Zephyr.

    torchrun --nproc_per_node=8 train_dpo.py CONFIG.yaml [key.sub=value ...] [--dry-run] [--quiet]
    python train_dpo.py CONFIG.yaml [key.sub=value ...] [--dry-run] [--quiet]    (one process)

CONFIG.yaml is for example configs/zephyr-7b-beta/dpo.yaml. --dry-run prints the plan, memory and
time, and exits; with --gpus 16 --device a100-80 those of other GPUs than are here.

The policy starts from the dSFT model. For each prompt x with a chosen response y_w and a rejected
response y_l (arXiv:2310.16944, Section 3):
  1. Compute the probability of y_w and y_l under the dSFT model: forward only, once, before step 0.
  2. Compute the probability of y_w and y_l under the dDPO model.
  3. Compute Eq. 1 and its gradient, and update the model. Repeat from 2.
A loss without a reference (simpo, orpo, cpo) skips 1.
"""

# Tensor names end in their shape. P: pairs of a micro-batch. R: their responses, all chosen ones
# first, R = 2P.

import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zephyr.config import ConfigError, DPOConfig, DryRun, check_arguments, nearest_name

if __name__ == "__main__":
    check_arguments(DPOConfig, __doc__, sys.argv[1:])  # before the imports that take seconds

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zephyr import losses
from zephyr.chat import leading_bos
from zephyr.costs.predict import estimate, missing_tokenizer, require_model
from zephyr.data.encode import encoding_resources, load_pairs, load_splits
from zephyr.data.fetch import fetch_models
from zephyr.data.report import Report
from zephyr.data.store import Pairs, content_digest
from zephyr.data.template import describe_first_prompt, load_run_tokenizer, save_chat_template
from zephyr.evaluation.samples import make_sampler
from zephyr.evaluation.score import require_same_tokenizer
from zephyr.model.fused import describe as describe_fused
from zephyr.model.load import DTYPES, digest, load_policy, require_runnable
from zephyr.model.logprobs import aligned_logprobs, response_logprobs
from zephyr.packing import PackedBatch, Plan, collate_pairs, plan_epochs, plan_pass
from zephyr.reference import Reference, reference_logprobs, reference_weights
from zephyr.report.finish import finish_run, worst_pairs
from zephyr.training import checkpoint
from zephyr.training.engine import Engine
from zephyr.training.flops import pair_flops
from zephyr.training.folder import RunFolder, json_bytes
from zephyr.training.launch import exit_process, launch
from zephyr.training.loop import Objective, Split, Stats, fit
from zephyr.training.planner import describe_plan, most_micro_batches, require_budget
from zephyr.verify import preflight


def train(engine: Engine, config: DPOConfig, folder: RunFolder) -> None:
    """The whole run, on every rank. Args: folder: the run folder."""
    # Preference pairs as token ids, and the plan that assigns them to steps, ranks, micro-batches.
    fetch_models(engine, config)
    config, tokenizer = load_run_tokenizer(engine, config)
    encoded, reports = load_data(engine, config, tokenizer)
    pairs = encoded["train"]
    plan = make_plan(engine, config, pairs)
    sample = make_sampler(engine, config, tokenizer)
    for warning in losses.unusual_settings(config.loss, config.beta):
        engine.warn(warning)
    engine.log(describe_plan(plan, engine.world_size))

    # Compare with the run in the folder, if any, before the expensive parts start.
    save_chat_template(folder, config, tokenizer)
    folder.write_file("data.json", json_bytes(reports))
    model_digest = engine.on_rank0(lambda: digest(config.model))
    identity = {"model": model_digest, "data": content_digest(pairs)}
    other = other_reference(engine, config, tokenizer, model_digest)
    if other:
        identity["reference_model"] = other.digest
    template = tokenizer.chat_template
    if checkpoint.is_finished(engine, config, plan, identity, ["reference"], template):
        engine.log(f"{config.run.dir} holds this run, finished: nothing is left to do")
        return

    # The dSFT model, from which the policy starts.
    initialize_policy(engine, config, plan)
    training = split(engine, config, pairs, plan)
    bos_id = None if config.data.encoding == "handbook_a" else leading_bos(tokenizer)
    special_ids = (bos_id, tokenizer.eos_token_id)
    found = preflight.check_inputs(engine, config, pairs, training, reports, special_ids)

    # The reference log-probs, before any checkpoint is restored: of the same weights, or of others
    # that take their place meanwhile.
    evaluation = None
    with reference_weights(engine, other.model if other else None, config.model):
        training = with_objective(engine, config, training, pairs, identity)
        if "eval" in encoded:
            evaluation = split(engine, config, encoded["eval"], None)
            evaluation = with_objective(engine, config, evaluation, encoded["eval"], identity)

    unpacked = partial(collate_one, pairs)
    preflight.check_model(engine, config, pairs, training, found, unpacked, folder.write_file)
    worst = partial(worst_pairs, Path(config.run.dir), engine.warn)
    fit(engine, config, training, evaluation, sample, folder.claim, worst)
    finish_run(engine, config, tokenizer, training.identity)


def predict(engine: Engine, config: DPOConfig, asked: DryRun) -> None:
    """What `--dry-run` does, on every rank: print plan, memory and time of the run."""
    engine.on_all_ranks(lambda: check_loss(config))
    lacks = require_model(engine, config)
    if missing := missing_tokenizer(engine, config, asked):
        estimate(engine, config, asked, [*lacks, *missing], None)
        return
    config, tokenizer = load_run_tokenizer(engine, config)
    make_sampler(engine, config, tokenizer)
    for warning in losses.unusual_settings(config.loss, config.beta):
        engine.warn(warning)
    load = partial(load_data, engine, config, tokenizer)
    estimate(engine, config, asked, lacks, lambda: load()[0]["train"])


class OtherReference(NamedTuple):
    """A reference that the policy does not start from, and the digest of its weights."""

    model: str
    digest: str


def other_reference(
    engine: Engine, config: DPOConfig, tokenizer: PreTrainedTokenizerBase, model_digest: str
) -> OtherReference | None:
    """The model of `reference.model`; None for the weights that the policy starts from.

    Raises: BadInput: its tokenizer gives other ids to tokens.
    """
    model = config.reference.model
    if model is None:
        return None
    engine.local_rank0_first(lambda: require_same_tokenizer(tokenizer, model))
    found = engine.on_rank0(lambda: digest(model))
    return None if found == model_digest else OtherReference(model, found)


def dpo_objective(config: DPOConfig, reference: Reference | None) -> Objective:
    """The objective that `fit` minimizes.

    It returns the loss summed over a micro-batch's pairs, each times its weight (the loop divides
    by the weight of the pairs of all ranks), and each pair's statistics.
    Args: reference: None for a loss that has none.
    """

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        # 1. log pi_dSFT(y|x) of both responses, looked up.
        ref_chosen_P, ref_rejected_P = reference(batch) if reference else (None, None)

        # 2. log pi_dDPO(y|x) of both responses, each summed over its tokens.
        chosen_P, rejected_P, wpo_weight_P = policy_logprobs(policy, batch, config.weighting)

        # 3. Eq. 1 (Eq. 7 of the DPO paper, arXiv:2305.18290). With `loss: sigmoid` it is
        #    -logsigmoid(beta * ((chosen_P - ref_chosen_P) - (rejected_P - ref_rejected_P))).
        terms = losses.dpo(
            chosen_P,
            rejected_P,
            ref_chosen_P,
            ref_rejected_P,
            beta=config.beta,
            loss=config.loss,
            label_smoothing=config.label_smoothing,
            sft_weight=config.sft_weight,
            chosen_tokens_P=batch.response_tokens_R[: batch.units],
            rejected_tokens_P=batch.response_tokens_R[batch.units :],
        )
        if ref_chosen_P is None:
            accuracy_P = losses.reward_accuracy(terms.reward_chosen_P, terms.reward_rejected_P)
        else:
            accuracy_P = losses.reward_accuracy(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P)
        loss_P = wpo_weight_P * terms.loss_P  # 1 * loss, unless `weighting: wpo`
        stats = {
            "weight": batch.weight_P,
            "loss": loss_P.detach(),
            "rewards/chosen": terms.reward_chosen_P,
            "rewards/rejected": terms.reward_rejected_P,
            "rewards/margins": terms.reward_chosen_P - terms.reward_rejected_P,
            "rewards/accuracies": accuracy_P,
            "logps/chosen": chosen_P.detach(),
            "logps/rejected": rejected_P.detach(),
        }
        if config.weighting == "wpo":
            stats["wpo_weight"] = wpo_weight_P
        return (batch.weight_P * loss_P).sum(), stats

    return objective


def policy_logprobs(
    policy: Engine, batch: PackedBatch, weighting: str
) -> tuple[Tensor, Tensor, Tensor]:
    """log pi(y|x) of the chosen and of the rejected responses, and the weights of WPO, [P] each.

    The weights are 1 with `weighting: none`.
    """
    if weighting == "none":
        return (*response_logprobs(policy, batch), torch.ones_like(batch.weight_P))
    logp_R, alignment_R = aligned_logprobs(policy, batch)
    pairs = batch.units
    wpo_weight_P = losses.wpo_weight(alignment_R[:pairs], alignment_R[pairs:])
    return logp_R[:pairs], logp_R[pairs:], wpo_weight_P


def load_data(
    engine: Engine, config: DPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Pairs], dict[str, Report]]:
    """`train` and `eval` as token ids, with reports of what was truncated or left out."""
    encode = partial(
        load_pairs,
        tokenizer=tokenizer,
        max_tokens=config.data.max_tokens,
        max_prompt_tokens=config.data.max_prompt_tokens,
        truncation=config.data.truncation,
        encoding=config.data.encoding,
        limit=config.data.limit,
        on_bad_row=config.data.on_bad_row,
        columns=config.data.columns,
        **encoding_resources(),
    )
    encoded, reports = load_splits(engine, config.data, encode)
    engine.log(describe_first_prompt(tokenizer, encoded["train"][0]))
    for pairs in encoded.values():
        budget_tokens = config.hardware.tokens_per_micro_batch
        require_budget(packed_tokens(pairs, config), pairs.ids, budget_tokens)
    return encoded, reports


def packed_tokens(pairs: Pairs, config: DPOConfig) -> list[int]:
    """Tokens that each pair takes in a packed row: its prompt once if shared, else twice."""
    prompts = 1 if config.hardware.prefix_sharing else 2
    tokens = prompts * pairs.prompt_tokens + pairs.chosen_tokens + pairs.rejected_tokens
    return tokens.tolist()


def make_plan(engine: Engine, config: DPOConfig, pairs: Pairs) -> Plan:
    """The pairs of each step, on each rank, in each micro-batch."""
    return plan_epochs(
        packed_tokens(pairs, config),
        per_step=config.optim.pairs_per_step,
        epochs=config.optim.epochs,
        ranks=engine.data_world_size,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )


def initialize_policy(engine: Engine, config: DPOConfig, plan: Plan) -> None:
    """Load the dSFT model, sharded over all ranks, with its optimizer."""
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


def collate_one(pairs: Pairs, index: int) -> PackedBatch:
    """A pair by itself, its prompt computed twice: what preflight compares packed rows with."""
    return collate_pairs(pairs, [index], prefix_sharing=False)


def split(engine: Engine, config: DPOConfig, pairs: Pairs, plan: Plan | None) -> Split:
    """The pairs with their plan; the objective follows with the reference.

    Args: plan: None: one pass over all pairs, for evaluation.
    """
    hardware, tokens = config.hardware, packed_tokens(pairs, config)
    if plan is None:
        budget_tokens = hardware.tokens_per_micro_batch
        plan = plan_pass(tokens, ranks=engine.data_world_size, budget_tokens=budget_tokens)
    counts = {
        "prompt_tokens": pairs.prompt_tokens,
        "chosen_tokens": pairs.chosen_tokens,
        "rejected_tokens": pairs.rejected_tokens,
    }
    lm, parameters = engine.policy.lm.config, engine.num_layer_parameters
    adapters = engine.num_adapter_parameters
    flops = [
        pair_flops(lm, parameters, *lengths, hardware.prefix_sharing, adapters)
        for lengths in zip(*counts.values())
    ]
    return Split(
        plan=plan,
        collate=partial(collate_pairs, pairs, prefix_sharing=hardware.prefix_sharing),
        objective=None,
        ids=pairs.ids,
        tokens=tokens,
        units=[1] * len(pairs),
        weights=pairs.weights.tolist(),
        unit_name="pairs",
        forward_flops=flops,
        identity={},
        ledger=counts,
    )


def with_objective(
    engine: Engine, config: DPOConfig, planned: Split, pairs: Pairs, identity: Mapping[str, str]
) -> Split:
    """The split with its objective (steps 2 and 3), and its reference log-probs (step 1).

    Args: identity: digests of the model and the data, by name.
    """
    if losses.find_loss(config.loss).reference_free:
        return planned._replace(objective=dpo_objective(config, None), identity=identity)
    reference = reference_logprobs(
        engine,
        pairs,
        planned.tokens,
        first_epoch=planned.plan,
        collate=planned.collate,
        weights=identity.get("reference_model", identity["model"]),
        directory=config.reference.dir,
    )
    return planned._replace(
        objective=dpo_objective(config, reference),
        identity={**identity, "reference": reference.digest()},
        starts_at_reference="reference_model" not in identity,
        initial_loss=math.log(2) if is_plain_dpo(config) else None,
    )


def is_plain_dpo(config: DPOConfig) -> bool:
    """Whether the loss of a pair is ln 2 while the policy is its reference."""
    name, _ = losses.read_loss(config.loss)
    return name == "sigmoid" and not config.sft_weight and config.weighting == "none"


def check(config: DPOConfig) -> None:
    """Check what needs no process group.

    Raises: BadInput as `check_loss`, and for a setting that this machine can't run.
    """
    check_loss(config)
    require_runnable(config)


def check_loss(config: DPOConfig) -> None:
    """Raises: ConfigError for an unknown loss, or a setting that the loss does not take."""
    name = config.loss if isinstance(config.loss, str) else config.loss.get("name")
    if name is not None and name not in losses.LOSSES:
        nearest = nearest_name(str(name), losses.LOSSES)
        raise ConfigError(
            f"loss: expected one of {', '.join(losses.LOSSES)}, got {name!r}; the nearest is "
            f"{nearest}"
        )
    try:
        losses.require_settings(config.loss, config.beta, config.label_smoothing, config.sft_weight)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.reference.model is not None and losses.find_loss(config.loss).reference_free:
        raise ConfigError(
            f"reference.model: expected null, got {config.reference.model!r}: the loss {name} has "
            "no reference"
        )


if __name__ == "__main__":
    exit_process(launch(DPOConfig, check, train, predict, __doc__, sys.argv[1:]))
