"""Conversations become answers: batched, left-padded, cached, by transformers' own `generate`.

Shape letters:
    B  conversations of a batch
    L  tokens of its longest prompt
    V  vocabulary
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StoppingCriteriaList

from zephyr.chat import Messages, encode_prompt
from zephyr.progress import track

LogitsWarper = Callable[[Tensor, Tensor], Tensor]  # token ids, logits [B, V] -> logits [B, V]


class Answer(NamedTuple):
    """What a model answered to one conversation."""

    text: str  # without special tokens
    prompt_tokens: int
    completion_tokens: int  # the EOS included
    finish_reason: str  # "stop" (EOS) or "length"


def generate(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | Sequence[int] = 0,
    batch: int = 64,
) -> list[str]:
    """The assistant's answer to each conversation, without special tokens.

    A prompt is encoded as training does it (`chat.encode_prompt`, with the tokenizer's template).
    A sample depends only on its prompt, the settings and the seed, not on the other prompts of the
    batch (up to rounding of the logits). The global random state is neither used nor changed.

    Args:
        lm: the decoder.
        tokenizer: of the model.
        prompts: conversations that end with a user turn.
        max_new_tokens: longest answer, for all or for each prompt; an answer ends there or at EOS.
        temperature: 0 is greedy.
        top_p: 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        seed: for all or for each prompt.
        batch: prompts at a time.

    Raises:
        ValueError: a conversation does not end with a user turn, or prompt and answer exceed the
            model's positions.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    encoded = [
        prompt_ids(lm, tokenizer, messages, limit)
        for messages, limit in zip(prompts, limits, strict=True)
    ]
    answers = generate_from_ids(
        lm,
        tokenizer,
        encoded,
        limits,
        seeds,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        batch=batch,
    )
    return [answer.text for answer in answers]


def prompt_ids(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Messages, max_new_tokens: int
) -> list[int]:
    """Token ids of a conversation that the model is to answer. Raises: as `generate`."""
    return encode_within_limit(lm.config, tokenizer, messages, max_new_tokens)


def encode_within_limit(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    max_new_tokens: int,
) -> list[int]:
    """`prompt_ids` for a model that is not loaded: only its config is needed."""
    ids = encode_prompt(tokenizer, messages, template=tokenizer.chat_template)
    positions = config.max_position_embeddings
    if len(ids) + max_new_tokens > positions:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; with {max_new_tokens} new ones that is over the "
            f"model's {positions} positions"
        )
    return ids


@torch.no_grad()
def generate_from_ids(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    seeds: Sequence[int],
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch: int = 64,
    synced_gpus: bool = False,
) -> list[Answer]:
    """The answers to encoded prompts, each with its own limit and seed.

    Args:
        encoded: token ids of each prompt.
        max_new_tokens: longest answer to each.
        seeds: of each.
        synced_gpus: the weights are sharded over all ranks. Each rank generates until all have
            finished, and all must have the same number of prompts.
        The others are as in `generate`.
    """
    # Prompts of similar length and limit share a batch: less padding, fewer steps for nothing.
    order = sorted(range(len(encoded)), key=lambda i: (max_new_tokens[i], len(encoded[i])))
    answers: dict[int, Answer] = {}
    was_training = lm.training
    lm.eval()
    try:
        for start in track(range(0, len(order), batch), "generate", "batches"):
            chosen = order[start : start + batch]
            rows = [encoded[i] for i in chosen]
            limits = [max_new_tokens[i] for i in chosen]
            sample = sampler(rows, [seeds[i] for i in chosen], temperature, top_p, top_k, lm.device)
            found = answer_batch(lm, tokenizer, rows, limits, sample, synced_gpus)
            answers.update(zip(chosen, found))
    finally:
        lm.train(was_training)
    return [answers[i] for i in range(len(encoded))]


def sampler(
    rows: Sequence[Sequence[int]],
    seeds: Sequence[int],
    temperature: float,
    top_p: float,
    top_k: int,
    device: torch.device,
) -> list[LogitsWarper]:
    """Functions that change logits such that their argmax is a sample; none at temperature 0.

    After the usual warpers, each row gets Gumbel noise from a generator of its own: the argmax of
    log p + Gumbel noise is distributed as p (the Gumbel-max trick). The generator is seeded with
    the row's token ids and seed.
    """
    if temperature == 0:
        return []
    generators = []
    for row, seed in zip(rows, seeds, strict=True):
        digest = hashlib.sha256(f"{seed} {list(row)}".encode()).digest()
        generator = torch.Generator(device)
        generators.append(generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1))

    def add_gumbel_noise(_: Tensor, scores_BV: Tensor) -> Tensor:
        empty_V = torch.empty(scores_BV.shape[1], dtype=torch.float64, device=device)
        noise = [empty_V.clone().exponential_(generator=g) for g in generators]
        return scores_BV - torch.stack(noise).log()

    warpers: list[LogitsWarper] = [TemperatureLogitsWarper(float(temperature))]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    warpers.append(add_gumbel_noise)
    return warpers


def answer_batch(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    limits: Sequence[int],
    sample: Sequence[LogitsWarper],
    synced_gpus: bool,
) -> list[Answer]:
    """The answers to one batch of prompts, padded on the left to the longest."""
    length, eos = max(len(ids) for ids in rows), tokenizer.eos_token_id
    padding = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    padded = [[padding] * (length - len(ids)) + [*ids] for ids in rows]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in rows]
    limits_B = torch.tensor(limits, device=lm.device)

    def limit_reached(ids_BL: Tensor, _: object, **__: object) -> Tensor:
        return limits_B <= ids_BL.shape[1] - length

    # PreTrainedModel does not declare the method that its decoders inherit.
    generate_ids = cast(Callable[..., Tensor], lm.generate)
    output = generate_ids(
        torch.tensor(padded, device=lm.device),
        attention_mask=torch.tensor(mask, device=lm.device),
        max_new_tokens=max(limits),
        pad_token_id=padding,
        eos_token_id=eos,
        do_sample=False,
        synced_gpus=synced_gpus,
        logits_processor=LogitsProcessorList(sample),
        stopping_criteria=StoppingCriteriaList([limit_reached]),
    )
    answers = []
    for prompt, limit, ids in zip(rows, limits, output[:, length:].tolist()):
        stopped = eos in ids[:limit]
        end = ids.index(eos) + 1 if stopped else limit
        text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
        answers.append(Answer(text, len(prompt), end, "stop" if stopped else "length"))
    return answers
