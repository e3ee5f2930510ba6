"""Before step 0, a sample of the user's own rows and model shows that what is about to be trained is what was meant.

R responses of a row (or texts), P examples.
"""
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import BadInput
from zephyr.model.logprobs import sum_by_response
from zephyr.packing import PackedBatch
from zephyr.training.engine import Engine

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}     # of 1 + |log-prob|, between a packed row and an example by itself
ROWS_READ, ROWS_PACKED = 1000, 6


def preflight(engine: Engine, examples: Sequence[EncodedPair] | Sequence[EncodedText], *, special: tuple[int | None, int],
              max_tokens: int, tokens: Sequence[int], collate: Callable[[Sequence[int]], PackedBatch],
              alone: Callable[[int], PackedBatch], run_dir: str) -> None:
    """Check ids of a sample of examples, and that packing changes no log-prob; the findings go to `preflight.json`.

    Args: special: ids of BOS (None: the tokenizer has none) and EOS. tokens: packed tokens of each example. alone: one example
    without neighbours or a shared prompt. Raises: BadInput naming the example and what is wrong. A collective."""
    sample = random.Random(0).sample(range(len(examples)), min(ROWS_READ, len(examples)))
    engine.on_rank0(lambda: [require_ids(i, examples[i], special, max_tokens) for i in sample] and None)
    few = sorted(sample, key=lambda i: tokens[i])[:ROWS_PACKED]        # the shortest: they fit one micro-batch if any do
    while sum(tokens[i] for i in few) > engine.hardware.tokens_per_micro_batch:
        few.pop()
    difference = packed_difference(engine, collate(few), [alone(i) for i in few])
    if difference > TOLERANCE[engine.hardware.dtype]:
        raise BadInput(f"preflight: packing changes the log-probs of examples {few} by {difference:.1e} of 1 + their size, at most "
                       f"{TOLERANCE[engine.hardware.dtype]} is wanted; run.preflight=false trains all the same")
    engine.say(f"preflight: ids of {len(sample)} examples are in order; packed and alone differ by {difference:.1e}")
    if engine.rank == 0:
        findings = {"examples_read": len(sample), "examples_packed": len(few), "packed_difference": difference}
        (Path(run_dir) / "preflight.json").write_text(json.dumps(findings) + "\n", encoding="utf-8")


def require_ids(index: int, example: EncodedPair | EncodedText, special: tuple[int | None, int], max_tokens: int) -> None:
    """One BOS in front, a trained EOS behind each answer that was not cut, two different answers. Raises: BadInput."""
    bos, eos = special
    pair = isinstance(example, EncodedPair)
    first = example.prompt_ids if pair else example.ids
    answers = [example.chosen_ids, example.rejected_ids] if pair else []
    complaints = {
        f"starts with id {first[0]}, not BOS {bos}": bos is not None and first[0] != bos,
        "has BOS more than once": bos is not None and bos != eos and sum(ids.count(bos) for ids in (first, *answers)) > 1,
        "has an answer without EOS that was not cut": any(a[-1] != eos and len(first) + len(a) < max_tokens for a in answers),
        "trains no EOS": not pair and len(first) < max_tokens and not any(
            flag and i == eos for i, flag in zip(example.ids, example.is_target)),
        "has two equal answers": pair and example.chosen_ids == example.rejected_ids,
    }
    for complaint, holds in complaints.items():
        if holds:
            raise BadInput(f"preflight: example {index} ({example.id}) {complaint}; run.preflight=false trains all the same")


@torch.no_grad()
def packed_difference(engine: Engine, row: PackedBatch, alone: Sequence[PackedBatch]) -> float:
    """The largest difference of a response's log-prob in the row and by itself, relative to 1 + its size. A collective."""
    engine.train(False)

    def logp_R(batch: PackedBatch) -> Tensor:
        batch = batch.to(engine.device)
        return sum_by_response(engine(batch), batch)
    packed_PR = logp_R(row).view(-1, len(alone)).t()
    alone_PR = torch.stack([logp_R(batch) for batch in alone])
    engine.train()
    return float(((packed_PR - alone_PR).abs() / (1 + alone_PR.abs())).max())
