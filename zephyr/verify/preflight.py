"""Before step 0, a sample of the user's own rows, model and machine shows that what is about to be trained is what was meant.

P examples."""
import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import BadInput, DPOConfig, Run, SFTConfig
from zephyr.model.logprobs import sum_by_response
from zephyr.packing import PackedBatch
from zephyr.training.checkpoint import write_whole
from zephyr.training.engine import Engine
from zephyr.training.loop import Split, total
from zephyr.verify.memory import step_memory

# Between a packed row and an example by itself, of 1 + |log-prob|; between reference and policy; of a gradient's norm.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}
ROWS_READ, ROWS_PACKED = 1000, 6
Finding = dict[str, float | int]


def preflight(engine: Engine, config: DPOConfig | SFTConfig, examples: Sequence[EncodedPair] | Sequence[EncodedText], split: Split,
              *, special: tuple[int | None, int], alone: Callable[[int], PackedBatch]) -> None:
    """Check a run that is ready to start; what was found goes to the log and to `preflight.json`.

    Args: special: ids of the BOS that the tokenizer adds (None: it adds none) and of EOS. alone: one example without neighbours or a shared prompt.
    Raises: BadInput naming what is wrong and where, what was found and wanted. A collective; nothing is updated."""
    run_dir, tolerance = Path(config.run.dir), TOLERANCE[config.hardware.dtype]
    sample = random.Random(0).sample(range(len(examples)), min(ROWS_READ, len(examples)))
    few = sorted(sample, key=lambda i: split.tokens[i])[:ROWS_PACKED]      # the shortest: they fit one micro-batch if any do
    while sum(split.tokens[i] for i in few) > config.hardware.tokens_per_micro_batch:
        few.pop()
    row = split.collate(few).to(engine.device)
    checks: dict[str, Callable[[], Finding]] = {
        "labels": lambda: engine.on_rank0(lambda: require_polarity(run_dir / "data.json")),
        "ids": lambda: engine.on_rank0(lambda: require_ids(sample, examples, special, config.data.max_tokens)),
        "plan": lambda: engine.agreed(lambda: require_counts(split, engine.rank)),
        "disk": lambda: engine.on_rank0(lambda: require_disk(engine, config.run)),
        "memory": lambda: engine.agreed(lambda: require_memory(engine, config, split)),
        "packed": lambda: below(tolerance, "packing changes log-probs", packed_difference(engine, row, list(map(alone, few)))),
        "start": lambda: below(tolerance, "policy and reference differ at step 0", **start_difference(engine, config, split, row)),
        "gradient": lambda: below(tolerance, "gradients are not added up over ranks: their norm changes", gradient_difference(engine, row)),
    }
    try:
        findings = {name: check() for name, check in checks.items()}
    except BadInput as error:
        raise BadInput(f"preflight: {error}; run.preflight=false trains all the same") from None
    engine.say("preflight: " + "; ".join(f"{name} " + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in of.items())
                                         for name, of in findings.items() if of))
    engine.on_rank0(lambda: write_whole(run_dir / "preflight.json", json.dumps(findings, indent=1).encode()))


def require_polarity(report: Path) -> Finding:
    """Where rows carry scores, the chosen answer has not the lower one. Args: report: what `load_splits` left in data.json."""
    train = json.loads(report.read_text(encoding="utf-8"))["train"]
    if train["inverted"]:
        raise BadInput(f"score_chosen is below score_rejected in {len(train['inverted'])} of {train['scored']} pairs with scores, the "
                       f"first at {train['inverted'][0]}; chosen >= rejected is wanted")
    return {"scored": train["scored"]}


def require_ids(sample: Sequence[int], examples: Sequence[EncodedPair] | Sequence[EncodedText], special: tuple[int | None, int],
                max_tokens: int) -> Finding:
    """BOS in front where the tokenizer adds it, never twice; a trained EOS behind each answer that was not cut, two different answers."""
    bos, eos = special
    for index in sample:
        example = examples[index]
        pair = isinstance(example, EncodedPair)
        first = example.prompt_ids if pair else example.ids
        answers = [example.chosen_ids, example.rejected_ids] if pair else []
        complaints = {
            "is empty": not first or not all(answers),
            f"starts with id {first[:1]}, not BOS {bos}": bos is not None and first[:1] != [bos],
            "starts with BOS more than once": bos is not None and first[:2] == [bos, bos],
            "has an answer without EOS that was not cut": any(a[-1:] != [eos] and len(first) + len(a) < max_tokens for a in answers),
            "trains no EOS": not pair and len(first) < max_tokens and (eos, True) not in zip(example.ids, example.is_target),
            "has two equal answers": pair and example.chosen_ids == example.rejected_ids,
        }
        for complaint, holds in complaints.items():
            if holds:
                raise BadInput(f"example {index} ({example.id}) {complaint}")
    return {"examples": len(sample)}


def require_counts(split: Split, rank: int) -> Finding:
    """The micro-batches of this rank's first step hold the tokens, targets and units that the plan counts."""
    targets = [sum(of) for of in zip(split.ledger["chosen_tokens"], split.ledger["rejected_tokens"])] if split.ledger else split.units
    micro_batches = [indices for indices in split.plan.steps[0].ranks[rank] if indices]
    for indices in micro_batches:
        batch = split.collate(indices)
        found = (len(batch.tokens_N), len(batch.targets_T), int(batch.response_tokens_R.sum()), batch.units)
        wanted = (total(split.tokens, indices), *[total(targets, indices)] * 2, total(split.units, indices))
        if found != wanted:
            raise BadInput(f"a micro-batch of examples {indices} holds {found} tokens, targets, targets of responses and units; {wanted} "
                           "is what the plan counts")
    return {"micro_batches": len(micro_batches), "longest_tokens": max(split.tokens)}


def require_disk(engine: Engine, run: Run) -> Finding:
    """Room for `run.keep` checkpoints, the one being written, and the export, beside what lies there already."""
    folder, sizes = Path(run.dir) / "checkpoints", engine.parameter_bytes()
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    wanted = (run.keep + 1) * 12 * engine.parameters + sum(size for _, size in sizes) - held
    free = shutil.disk_usage(run.dir).free
    if free < wanted:
        raise BadInput(f"run.dir: {run.dir} has {free:,} bytes free; {wanted:,} are wanted for run.keep + 1 = {run.keep + 1} "
                       "checkpoints of 12 bytes a parameter, and the exported model")
    return {"wanted_bytes": wanted, "free_bytes": free}


def require_memory(engine: Engine, config: DPOConfig | SFTConfig, split: Split) -> Finding:
    """Room for gradients and Adam's moments, which the first step makes; where the whole prediction has none, a line says so."""
    fullest = max(total(split.tokens, indices) for step in split.plan.steps for rank in step.ranks for indices in rank)
    parts = step_memory(engine.policy.lm.config, engine.parameters, ranks=engine.world, tokens=fullest, hardware=config.hardware,
                        zero=engine.settings["zero_optimization"], device=engine.device.type)
    free, wanted = engine.free_memory_bytes(), sum(parts.values())
    if parts["states"] > free:
        raise BadInput(f"rank {engine.rank} has {free:,} bytes of memory free; {parts['states']:,} are wanted for gradients and moments: more "
                       f"ranks than {engine.world}, or offload_optimizer in {config.hardware.deepspeed}")
    if wanted > free:
        engine.say(f"preflight: {free:,} bytes of memory are free, {wanted:,} predicted ({parts}): it may not suffice")
    return {"predicted_bytes": wanted, "free_bytes": free}


def below(tolerance: float, complaint: str, difference: float, **more: float) -> Finding:
    """Raises: BadInput with the complaint where the difference is larger than the tolerance, or not finite."""
    if not difference <= tolerance:
        raise BadInput(f"{complaint} by {difference:.1e} of their size; at most {tolerance} is wanted")
    return {"difference": difference, **more}


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


@torch.no_grad()
def start_difference(engine: Engine, config: DPOConfig | SFTConfig, split: Split, row: PackedBatch) -> Finding:
    """How far the policy's log-probs are from the reference's, relative to 1 + their size (SFT: 0), and the mean loss."""
    loss, stats = split.objective(engine, row)
    apart = [float((stats[f"rewards/{side}"].abs() / config.beta / (1 + stats[f"logps/{side}"].abs())).max())
             for side in ("chosen", "rejected") if stats]
    return {"difference": max(apart, default=0.0), "loss": float(loss) / row.units}


def gradient_difference(engine: Engine, row: PackedBatch) -> float:
    """Relative change of the gradient's norm when rank 0 alone brings the whole loss that all ranks brought in equal parts.

    It is 0 where gradients are really added up over ranks, wherever they are kept. A collective."""
    def norm(share: float) -> float:
        engine.backward(engine(row).sum() * share / len(row.targets_T), last=True)
        return engine.discard_gradient()
    equal = norm(1 / engine.world)
    return abs(norm(float(engine.rank == 0)) - equal) / equal if math.isfinite(equal) else equal
