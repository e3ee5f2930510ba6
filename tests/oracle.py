"""What training must compute, in the plainest PyTorch: padded batches, Hugging Face's own forward,
torch's own AdamW or RMSprop.

No packing, no prefix sharing, no DeepSpeed, one process. Of the package it takes token ids
(`zephyr.chat`, which has golden tests of its own) and, for SFT, which rows share a window
(`best_fit`, likewise). All arithmetic is written here, that of the losses in `closed_forms.py`.

Legend: `B` conversations, `L` padded length, `V` vocabulary, `P` pairs.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from closed_forms import CLOSED_FORMS
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from zephyr.chat import EncodedPair, EncodedText, encode_messages, encode_pair
from zephyr.model.adapter import starting_values
from zephyr.packing import Layout, best_fit

Config = dict[str, "str | int | float | bool | list[str] | Config"]  # a YAML file as it is read
Record = dict[str, float]


class Conversation(NamedTuple):
    ids: list[int]
    is_target: list[bool]


class PairTerms(NamedTuple):
    """Of each pair [P]; both rewards without gradient."""

    loss_P: Tensor
    reward_chosen_P: Tensor
    reward_rejected_P: Tensor


def pair_terms(
    config: Config,
    logps: tuple[Tensor, Tensor],
    reference_logps: tuple[Tensor, Tensor],
    pairs: Sequence[EncodedPair],
) -> PairTerms:
    """The loss of the config, with its SFT term, and the rewards. Args: logps: of the chosen
    responses [P], of the rejected ones."""
    settings = config.get("loss", "sigmoid")
    settings = {"name": settings} if isinstance(settings, str) else dict(settings)
    form = CLOSED_FORMS[settings.pop("name")]
    counts_P = (
        torch.tensor([len(pair.chosen_ids) for pair in pairs]),
        torch.tensor([len(pair.rejected_ids) for pair in pairs]),
    )
    ratios = tuple(
        logp_P if form.reference_free else logp_P - ref_P
        for logp_P, ref_P in zip(logps, reference_logps)
    )
    means = tuple(ratio_P / count_P for ratio_P, count_P in zip(ratios, counts_P))
    taken = means if form.length_averaged else ratios
    loss_P = form.loss(*taken, config["beta"], config.get("label_smoothing", 0.0), **settings)
    sft_weight = config.get("sft_weight")
    sft_weight = form.sft_weight if sft_weight is None else sft_weight
    rewards = taken if form.reference_free else ratios
    return PairTerms(
        loss_P - sft_weight * logps[0] / counts_P[0],
        *(config["beta"] * reward_P.detach() for reward_P in rewards),
    )


def dpo_trace(config: Config) -> Iterator[Record]:
    """A record per optimiser step of DPO, in the order of the data; keys as in metrics.jsonl."""
    lm = load(config)
    of_reference = config.get("reference", {}).get("model")
    reference = load({**config, "model": of_reference}) if of_reference else copy.deepcopy(lm)
    reference = reference.eval()
    pairs, optim = read_pairs(config), config["optim"]
    starts = range(0, len(pairs), optim["pairs_per_step"])
    trainer = Trainer(lm, optim, total_steps=len(starts) * optim["epochs"])
    for epoch in range(optim["epochs"]):
        for start in starts:
            step_pairs = pairs[start : start + optim["pairs_per_step"]]
            both = [
                conversation(pair, side) for side in ("chosen", "rejected") for pair in step_pairs
            ]
            logps = response_logps(lm, both).chunk(2)
            with torch.no_grad():
                reference_logps = response_logps(reference, both).chunk(2)
            loss_P, reward_chosen_P, reward_rejected_P = pair_terms(
                config, logps, reference_logps, step_pairs
            )
            weight_P = torch.tensor([pair.weight for pair in step_pairs])
            values = {
                "rewards/chosen": reward_chosen_P,
                "rewards/rejected": reward_rejected_P,
                "rewards/margins": reward_chosen_P - reward_rejected_P,
                "rewards/accuracies": (reward_chosen_P > reward_rejected_P).float(),
                "logps/chosen": logps[0].detach(),
                "logps/rejected": logps[1].detach(),
            }
            if config.get("weighting") == "wpo":
                values["wpo_weight"] = wpo_weights(lm, both)
                loss_P = values["wpo_weight"] * loss_P
            loss = (weight_P * loss_P).sum() / weight_P.sum()
            record = {
                name: ((weight_P * value_P).sum() / weight_P.sum()).item()
                for name, value_P in values.items()
            }
            if weight_P.sum() != len(step_pairs):
                record["weight"] = weight_P.sum().item()
            yield {
                **record,
                "epoch": epoch + start / len(pairs),
                "pairs": len(step_pairs),
                "tokens": sum(
                    len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in step_pairs
                ),
                **trainer.update(loss),
            }


def sft_trace(config: Config) -> Iterator[Record]:
    """One record per optimiser step of SFT: the mean negative log-prob over the target tokens of
    the step's windows."""
    lm = load(config)
    texts, optim = read_texts(config), config["optim"]
    windows = sorted(
        sorted(w) for w in best_fit([len(text.ids) for text in texts], config["data"]["max_tokens"])
    )
    steps = [
        windows[i : i + optim["windows_per_step"]]
        for i in range(0, len(windows), optim["windows_per_step"])
    ]
    trainer = Trainer(lm, optim, total_steps=len(steps) * optim["epochs"])
    for epoch in range(optim["epochs"]):
        done = 0
        for step in steps:
            conversations = [
                Conversation(texts[i].ids, texts[i].is_target) for window in step for i in window
            ]
            target_tokens = sum(sum(is_target) for _, is_target in conversations)
            loss = -response_logps(lm, conversations).sum() / target_tokens
            yield {
                "epoch": epoch + done / len(texts),
                "target_tokens": target_tokens,
                "tokens": sum(len(ids) for ids, _ in conversations),
                **trainer.update(loss),
            }
            done += len(conversations)


class Trainer:
    """The optimizer on float32 weights, of which the model holds copies in its own dtype, with the
    schedule of the config; counts the steps. Decay pulls matrices alone."""

    def __init__(self, lm: nn.Module, optim: Config, total_steps: int) -> None:
        self.optim, self.total_steps, self.step = optim, total_steps, 0
        self.parameters = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        self.weights = [parameter.detach().float().clone() for parameter in self.parameters]
        groups = [
            {
                "params": [weight for weight in self.weights if weight.ndim > 1],
                "weight_decay": optim["weight_decay"],
            },
            {
                "params": [weight for weight in self.weights if weight.ndim == 1],
                "weight_decay": 0.0,
            },
        ]
        if optim.get("optimizer", "adamw") == "rmsprop":  # torch's defaults, as transformers took
            self.optimizer: torch.optim.Optimizer = torch.optim.RMSprop(groups, lr=1e-2)
        else:
            betas = tuple(optim["adam_betas"])
            self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8)

    def update(self, loss: Tensor) -> Record:
        """Backward, clip, step. Returns the metrics that belong to the update."""
        gradients = [gradient.float() for gradient in torch.autograd.grad(loss, self.parameters)]
        grad_norm = torch.cat([gradient.flatten() for gradient in gradients]).double().norm().item()
        clip = self.optim["grad_clip"]
        factor = clip / grad_norm if clip > 0 and grad_norm > clip else 1.0
        for weight, gradient in zip(self.weights, gradients):
            weight.grad = gradient * factor
        lr = learning_rate(self.optim, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        before = [weight.double() for weight in self.weights]
        self.optimizer.step()
        self.step += 1
        for parameter, weight in zip(self.parameters, self.weights):
            parameter.data.copy_(weight)
        moved = torch.cat([(now - old).flatten() for now, old in zip(self.weights, before)]).norm()
        update_ratio = (
            moved / torch.cat([weight.flatten() for weight in self.weights]).double().norm()
        ).item()
        return {
            "step": self.step - 1,
            "loss": loss.item(),
            "grad_norm": grad_norm,
            "learning_rate": lr,
            "update_ratio": update_ratio,
        }


def learning_rate(optim: Config, step: int, total_steps: int) -> float:
    """lr_peak * s / warm-up steps, then down to 0 at the end (or constant), at 0-based step s."""
    warmup_steps = math.ceil(optim["warmup_fraction"] * total_steps)
    if step < warmup_steps:
        return optim["lr_peak"] * step / warmup_steps
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return optim["lr_peak"] * factor[optim["schedule"]]


def round_to_nf4(lm: nn.Module) -> None:
    """Each matrix of a linear layer but the output layer becomes what NF4 keeps of it."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for module in lm.modules():
        if isinstance(module, nn.Linear) and module is not lm.get_output_embeddings():
            packed, state = quantize_4bit(
                module.weight.data, quant_type="nf4", blocksize=64, compress_statistics=True
            )
            module.weight.data.copy_(dequantize_4bit(packed, state))


def response_logps(lm: nn.Module, conversations: Sequence[Conversation]) -> Tensor:
    """Sum of log p of each conversation's target tokens, fp32 [B]."""
    logps_BLV, ids_BL, target_BL = next_token_logps(lm, conversations)
    return (logps_BLV.gather(-1, ids_BL[..., None]).squeeze(-1) * target_BL).sum(-1)


@torch.no_grad()
def wpo_weights(lm: nn.Module, both: Sequence[Conversation]) -> Tensor:
    """WPO's weight of each pair, fp32 [P]: of both responses the geometric mean over tokens of
    p(token) / sum_v p(v)^2, multiplied; at most 1. Args: both: chosen ones, then rejected ones."""
    logps_BLV, ids_BL, target_BL = next_token_logps(lm, both)
    p_BLV = logps_BLV.double().exp()
    p_BL = p_BLV.gather(-1, ids_BL[..., None]).squeeze(-1)
    ratio_BL = torch.where(target_BL, p_BL / (p_BLV * p_BLV).sum(-1), 1.0)
    chosen_P, rejected_P = (ratio_BL.log().sum(-1) / target_BL.sum(-1)).exp().chunk(2)
    return (chosen_P * rejected_P).clamp(max=1.0).float()


def next_token_logps(
    lm: nn.Module, conversations: Sequence[Conversation]
) -> tuple[Tensor, Tensor, Tensor]:
    """All log-probs of the tokens after the first [B, L - 1, V], those tokens, and whether each is
    a target: right-padded."""
    ids_BL = pad_sequence([torch.tensor(ids) for ids, _ in conversations], batch_first=True)
    real_BL = pad_sequence(
        [torch.ones(len(ids), dtype=torch.int64) for ids, _ in conversations], batch_first=True
    )
    target_BL = pad_sequence(
        [torch.tensor(is_target) for _, is_target in conversations], batch_first=True
    )
    logps_BLV = (
        lm(input_ids=ids_BL, attention_mask=real_BL, use_cache=False)
        .logits[:, :-1]
        .float()
        .log_softmax(-1)
    )
    return logps_BLV, ids_BL[:, 1:], target_BL[:, 1:]


def conversation(pair: EncodedPair, side: str) -> Conversation:
    response_ids = pair.chosen_ids if side == "chosen" else pair.rejected_ids
    return Conversation(
        pair.prompt_ids + response_ids, [False] * len(pair.prompt_ids) + [True] * len(response_ids)
    )


def load(config: Config) -> nn.Module:
    """The starting model in the config's dtype with Hugging Face's eager attention, which writes
    mask and softmax out."""
    dtype = getattr(torch, config["hardware"]["dtype"])
    lm = AutoModelForCausalLM.from_pretrained(
        config["model"], dtype=dtype, attn_implementation="eager"
    )
    if config.get("adapter"):
        lm = with_adapter(lm, config["adapter"], config["run"].get("seed", 42))
    return lm.train()


def with_adapter(lm: nn.Module, adapter: Config, seed: int) -> nn.Module:
    """peft's own model around the decoder, with B of zeros as peft makes it; A is given the values
    that a run draws, which differ from those of peft's global random state."""
    from peft import LoraConfig, get_peft_model

    targets = adapter.get("targets", ["all-linear"])
    settings = LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["alpha"],
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    if adapter.get("quantize") == "nf4":
        round_to_nf4(lm)
    model = get_peft_model(lm, settings)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            plain = name.removeprefix("base_model.model.").replace(".default", "")
            parameter.data.copy_(starting_values(plain, tuple(parameter.shape), seed))
        parameter.data = parameter.data.to(lm.dtype)  # peft keeps adapters of bfloat16 in float32
    return model


def read_rows(config: Config) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for path in config["data"]["train"]
        for line in Path(path).read_text().splitlines()
    ]


def read_pairs(config: Config) -> list[EncodedPair]:
    tokenizer, data = AutoTokenizer.from_pretrained(config["model"]), config["data"]
    limits = {key: data[key] for key in ("max_tokens", "max_prompt_tokens", "truncation")}
    limits["encoding"] = data.get("encoding", "zephyr")
    pairs = [encode_pair(tokenizer, row, **limits) for row in read_rows(config)]
    return [pair for pair in pairs if pair.chosen_ids != pair.rejected_ids]  # cut, both may be one


def read_texts(config: Config) -> list[EncodedText]:
    tokenizer, data = AutoTokenizer.from_pretrained(config["model"]), config["data"]
    joined = data.get("packing") == "constant_length"
    most = 10**6 if joined else data["max_tokens"]
    texts = [
        encode_messages(tokenizer, row["messages"], max_tokens=most, targets=data["targets"])
        for row in read_rows(config)
    ]
    if not joined:
        return texts
    size, stream = data["max_tokens"], []
    for text in texts:
        stream += [*text.ids, tokenizer.eos_token_id]
    return [
        EncodedText("", stream[i : i + size], [False] + [True] * (size - 1))
        for i in range(0, len(stream) - size + 1, size)
    ]


def dense_attention(
    query_NHE: Tensor,
    key_MKE: Tensor,
    value_MKE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:
    """Softmax over all keys of the row under one [N, M] mask, written from the definition."""
    mask_NM = torch.zeros(len(query_NHE), len(key_MKE), dtype=torch.bool)
    q = k = 0
    for queries, keys in zip(layout.query_lengths, layout.key_lengths):
        for i in range(queries):
            last = keys - queries + i  # the last query of a segment sees its last key
            first = 0 if window is None else max(0, last - window + 1)
            mask_NM[q + i, k + first : k + last + 1] = True
        q, k = q + queries, k + keys
    group = query_NHE.shape[1] // key_MKE.shape[1]
    key_MHE, value_MHE = key_MKE.repeat_interleave(group, 1), value_MKE.repeat_interleave(group, 1)
    score_HNM = torch.einsum("nhe,mhe->hnm", query_NHE, key_MHE) * scale
    return torch.einsum(
        "hnm,mhe->nhe",
        score_HNM.masked_fill(~mask_NM.to(score_HNM.device), -torch.inf).softmax(-1),
        value_MHE,
    )
