"""Pairs become updates by the method of the DPO paper's own code, in the plainest PyTorch.

Chosen and rejected sequences of a micro-batch, padded to the longest, go through the model in one
forward, prompts twice; all logits exist; the reference model runs beside. Settings: micro, pairs of
a micro-batch; dtype; gradient_checkpointing.

B sequences (first the chosen, then the rejected), L padded length, V vocabulary, P pairs."""

import torch
import torch.nn.functional as F
from rounds import Rounds
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from zephyr.chat import EncodedPair


def padded(pairs: list[EncodedPair], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask, and mask of the responses' tokens, each [B, L]."""
    both = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs] + [
        (pair.prompt_ids, pair.rejected_ids) for pair in pairs
    ]
    rows = (
        [p + r for p, r in both],
        [[1] * len(p + r) for p, r in both],
        [[0] * len(p) + [1] * len(r) for p, r in both],
    )
    return tuple(
        pad_sequence([torch.tensor(row) for row in kind], batch_first=True).to(device)
        for kind in rows
    )


def response_logprobs(
    model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, response_BL: Tensor
) -> tuple[Tensor, Tensor]:
    logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits[:, :-1]
    logp_BL = (
        logits_BLV.log_softmax(-1, torch.promote_types(logits_BLV.dtype, torch.float32))
        .gather(-1, ids_BL[:, 1:, None])
        .squeeze(-1)
    )
    return (logp_BL * response_BL[:, 1:]).sum(-1).chunk(2)


def main() -> None:
    rounds = Rounds()
    task, pairs, device = rounds.task, rounds.task.pairs(), "cuda" if rounds.task.gpu else "cpu"
    dtype = getattr(torch, task.settings["dtype"])
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(
            task.model, dtype=dtype, attn_implementation="sdpa"
        ).to(device)
        for _ in range(2)
    )
    if task.settings.get("gradient_checkpointing"):
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=task.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
    )
    rounds.begin()
    for start in range(0, len(pairs), task.pairs_per_step):
        step, total = pairs[start : start + task.pairs_per_step], torch.zeros((), device=device)
        for first in range(0, len(step), task.settings["micro"]):
            batch = padded(step[first : first + task.settings["micro"]], device)
            chosen_P, rejected_P = response_logprobs(policy, *batch)
            with torch.no_grad():
                ref_chosen_P, ref_rejected_P = response_logprobs(reference, *batch)
            loss = -F.logsigmoid(
                task.beta * ((chosen_P - ref_chosen_P) - (rejected_P - ref_rejected_P))
            ).sum() / len(step)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(policy.parameters(), task.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        rounds.done(total, norm)


if __name__ == "__main__":
    main()
