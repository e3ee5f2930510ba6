"""Conversations become answers: batched, left-padded, cached, through transformers' own `generate`.

B conversations of a batch, L tokens of the longest prompt."""
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zephyr.chat import Messages, encode_prompt


@torch.no_grad()
def generate(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], *,
             max_new_tokens: int, temperature: float = 0.0, seed: int = 0, batch: int = 64) -> list[str]:
    """The assistant's answer to each conversation, without special tokens; it ends at EOS or after `max_new_tokens`.

    The prompt's ids are those that training puts in front of a response (`chat.encode_prompt`, the tokenizer's own
    template). Args: temperature: 0 is greedy. seed: of sampling; the global random state is left as it was. Raises:
    ValueError where a conversation does not end with a user turn, or prompt and answer exceed the model's positions."""
    encoded = [encode_prompt(tokenizer, messages, template=tokenizer.chat_template) for messages in prompts]
    longest, positions = max(map(len, encoded), default=0), lm.config.max_position_embeddings
    if longest + max_new_tokens > positions:
        raise ValueError(f"the longest prompt has {longest} tokens; with {max_new_tokens} new ones that is over the "
                         f"model's {positions} positions")
    by_length = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers: list[str] = []
    was_training = lm.training
    lm.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(by_length), batch):
            prompt_ids = [encoded[i] for i in by_length[start:start + batch]]
            answers += generate_batch(lm, tokenizer, prompt_ids, max_new_tokens, temperature)
    lm.train(was_training)
    return [answer for _, answer in sorted(zip(by_length, answers))]


def generate_batch(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Sequence[int]],
                   max_new_tokens: int, temperature: float) -> list[str]:
    """The decoded continuations of prompts of different length, padded on the left."""
    length = max(map(len, encoded))
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompt_BL = torch.tensor([[padding] * (length - len(ids)) + [*ids] for ids in encoded], device=lm.device)
    mask_BL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in encoded], device=lm.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    output = lm.generate(prompt_BL, attention_mask=mask_BL, max_new_tokens=max_new_tokens, pad_token_id=padding,
                         eos_token_id=tokenizer.eos_token_id, **sampling)
    return tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
