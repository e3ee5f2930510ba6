"""Conversations become answers: batched, left-padded, cached, through transformers' own `generate`.

B conversations of a batch, L tokens of the longest prompt, V vocabulary."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import (
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zephyr.chat import Messages, encode_prompt

LogitsWarper = Callable[[Tensor, Tensor], Tensor]


class Answer(NamedTuple):
    """What a model said, without special tokens. `completion_tokens` counts the EOS;
    `finish_reason`: stop (EOS) or length."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


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
    """The assistant's answer to each conversation, without special tokens; it ends at EOS or after
    `max_new_tokens`.

    The prompt's ids are those that training puts in front of a response (`chat.encode_prompt`, the
    tokenizer's own template). A sample is a function of its prompt, settings and seed, whatever
    else is asked with it (up to rounding of the logits); the global random state is neither used
    nor changed. Args: max_new_tokens, seed: of all, or one for each prompt. temperature: 0 is
    greedy. top_p 1, top_k 0: all tokens. Raises: ValueError where a conversation does not end with
    a user turn, or prompt and answer exceed the model's positions."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    encoded = [
        prompt_ids(lm, tokenizer, messages, limit)
        for messages, limit in zip(prompts, limits, strict=True)
    ]
    return [
        answer.text
        for answer in generate_from_ids(
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
    ]


def prompt_ids(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Messages, max_new_tokens: int
) -> list[int]:
    """The ids of a conversation to be answered. Raises: ValueError as `generate` does."""
    return encode_within_limit(lm.config, tokenizer, messages, max_new_tokens)


def encode_within_limit(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    max_new_tokens: int,
) -> list[int]:
    """`prompt_ids` for a model of which only the config is there yet."""
    ids, positions = (
        encode_prompt(tokenizer, messages, template=tokenizer.chat_template),
        config.max_position_embeddings,
    )
    if len(ids) + max_new_tokens > positions:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; with {max_new_tokens} new ones that is over the model's {positions} positions"
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
    """The answers to encoded prompts, each with a limit and a seed of its own; else as `generate`.
    Args: synced_gpus: the weights are spread over all ranks: each steps on until all have finished, and
    must have as many prompts as any other."""
    order = sorted(range(len(encoded)), key=lambda i: (max_new_tokens[i], len(encoded[i])))
    answers: dict[int, Answer] = {}
    was_training = lm.training
    lm.eval()
    try:
        for chosen in (order[start : start + batch] for start in range(0, len(order), batch)):
            rows = [encoded[i] for i in chosen]
            sample = sampler(rows, [seeds[i] for i in chosen], temperature, top_p, top_k, lm.device)
            answers.update(
                zip(
                    chosen,
                    answer_batch(
                        lm,
                        tokenizer,
                        rows,
                        [max_new_tokens[i] for i in chosen],
                        sample,
                        synced_gpus,
                    ),
                )
            )
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
    """What turns logits so that their argmax is a sample: the usual warps, then Gumbel noise of
    each row's own generator (Gumbel-max: argmax of log p + Gumbel noise has distribution p). None
    where the temperature is 0."""
    if temperature == 0:
        return []
    digests = [
        hashlib.sha256(f"{seed} {list(row)}".encode()).digest()
        for row, seed in zip(rows, seeds, strict=True)
    ]
    generators = [
        torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        for digest in digests
    ]

    def add_gumbel_noise(_: Tensor, scores_BV: Tensor) -> Tensor:
        empty_V = torch.empty(scores_BV.shape[1], dtype=torch.float64, device=device)
        return (
            scores_BV
            - torch.stack([empty_V.clone().exponential_(generator=g) for g in generators]).log()
        )

    warps: list[LogitsWarper] = [TemperatureLogitsWarper(float(temperature))]
    warps += [TopKLogitsWarper(top_k)] if top_k else []
    warps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return [*warps, add_gumbel_noise]


def answer_batch(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    limits: Sequence[int],
    sample: Sequence[LogitsWarper],
    synced_gpus: bool,
) -> list[Answer]:
    """The continuations of prompts of different length, padded on the left."""
    length, eos = max(map(len, rows)), tokenizer.eos_token_id
    padding = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompt_BL = torch.tensor(
        [[padding] * (length - len(ids)) + [*ids] for ids in rows], device=lm.device
    )
    mask_BL = torch.tensor(
        [[0] * (length - len(ids)) + [1] * len(ids) for ids in rows], device=lm.device
    )
    limits_B = torch.tensor(limits, device=lm.device)
    output = lm.generate(
        prompt_BL,
        attention_mask=mask_BL,
        max_new_tokens=max(limits),
        pad_token_id=padding,
        eos_token_id=eos,
        do_sample=False,
        synced_gpus=synced_gpus,
        logits_processor=LogitsProcessorList(sample),
        stopping_criteria=StoppingCriteriaList(
            [lambda ids_BL, _, **__: ids_BL.shape[1] - length >= limits_B]
        ),
    )
    answers = []
    for prompt, limit, ids in zip(rows, limits, output[:, length:].tolist()):
        end = ids.index(eos) + 1 if eos in ids[:limit] else limit
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        answers.append(Answer(text, len(prompt), end, "stop" if eos in ids[:limit] else "length"))
    return answers
