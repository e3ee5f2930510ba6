"""Frozen reference log-probs: taken once from the policy's own starting weights, kept under what
they depend on.

An entry's address is (digest of the weights) x (numerics) x (token ids of the pair). Numerics are
what decides a value's last digits: dtype, attention, kind of device, the versions of torch,
transformers and the attention kernel, and the code here that computes. The address does not depend
on the number of ranks, the packing, the data file or beta, so a sweep pays once; a missing entry is
computed from the starting weights only: `reference_logprobs` must run before a checkpoint is
restored.

Who may write to the store decides what a run is trained against. Digests in its files' names tell
of accidents: a flipped bit, a file cut off, a store of other weights. They are no signature:
whoever can write there can rename a file to its new digest. Two more checks stand against that, and
neither is a proof. On every read a few pairs, drawn anew and over all lengths, are computed again;
and every pair of a run's first step must have rewards 0 (`training.loop.require_zero_rewards`). A changed
value of a single pair that is met in a later step can pass both. So give write access to those
alone who may also write to the model's folder.

P pairs; K entries of the store."""

import hashlib
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor
from tqdm import tqdm

from zephyr import model, packing
from zephyr.chat import EncodedPair
from zephyr.config import BadInput
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import PackedBatch, Plan, plan_pass
from zephyr.training.files import write_atomic
from zephyr.training.engine import Engine
from zephyr.training.tolerance import response_tolerance_nats

Entries = dict[
    bytes, tuple[float, float]
]  # digest of a pair's token ids -> log p(chosen), log p(rejected)
PROBE_PAIRS = 8
PART_MICRO_BATCHES = (
    64  # of every rank, between two parts of the store: what a killed pass loses at most
)
CODE_MODULES = (
    "attention",
    "logprobs",
    "policy",
)  # modules of zephyr.model that a log-prob goes through
KERNELS = {
    "flash_attn": ["flash-attn"]
}  # packages whose version decides, by attention; torch's own kernels are torch's


class Reference(NamedTuple):
    """log p(chosen) and log p(rejected) under the reference of each example, float32 [examples, 2],
    on the device."""

    logp: Tensor

    def digest(self) -> str:
        """SHA-256 of the values: what a checkpoint was trained against."""
        return hashlib.sha256(self.logp.cpu().numpy().tobytes()).hexdigest()

    def __call__(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """(ref_chosen_P, ref_rejected_P) of a micro-batch's pairs."""
        indices_P = torch.tensor(batch.indices, dtype=torch.int64).to(
            self.logp.device, non_blocking=True
        )
        return self.logp[indices_P].unbind(-1)


def read_store(folder: Path) -> Entries:
    """All entries of `part-<sha256>.safetensors` files, of one that two runs wrote the first.

    Raises: BadInput naming a part whose bytes are not those of its name, or no entries."""
    entries: Entries = {}
    for path in sorted(
        folder.glob("part-*.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True
    ):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem.removeprefix("part-"):
            raise BadInput(
                f"reference store: {path} is damaged (its bytes are not those of its name); delete it"
            )
        try:
            part = load(content)
            keys_K, logp_K2 = part["pair"], part["logp"]
        except (SafetensorError, KeyError) as error:
            raise BadInput(
                f"reference store: {path} is no part of a store ({error!r}); delete it"
            ) from None
        if (
            keys_K.shape[1:] != (32,)
            or logp_K2.shape != (len(keys_K), 2)
            or not np.isfinite(logp_K2).all()
        ):
            raise BadInput(
                f"reference store: {path} holds {keys_K.shape} pairs and {logp_K2.shape} log-probs, or some that are "
                "not finite; two of each pair are wanted; delete it"
            )
        entries.update(zip((row.tobytes() for row in keys_K), map(tuple, logp_K2.tolist())))
    return entries


def numerics(engine: Engine, weights: str) -> dict[str, str]:
    """What an entry's value depends on beside its token ids. Args: weights: their digest."""
    hardware, code = engine.hardware, hashlib.sha256()
    computes = [Path(model.__file__).with_name(f"{name}.py") for name in CODE_MODULES]
    for path in [*computes, Path(packing.__file__).with_name("collate.py")]:
        code.update(hashlib.sha256(path.read_bytes()).digest())
    packages = ["transformers", *KERNELS.get(hardware.attention, [])]
    return {
        "weights": weights,
        "dtype": hardware.dtype,
        "attention": hardware.attention,
        "device": engine.device.type,
        "torch": torch.__version__,
        **{name: version(name) for name in packages},
        "code": code.hexdigest(),
        "logp": "float32 sums over response tokens, EOS included",
    }


def make_store_folder(folder: Path) -> None:
    """Raises: BadInput where the store can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "profile.json").touch()
    except OSError as error:
        raise BadInput(f"reference.dir: {folder} can't be written: {error.strerror}") from None


def append_to_store(folder: Path, entries: Entries, profile: dict[str, str]) -> None:
    """Add a part, whole or not at all; no part is ever rewritten."""
    content = save(
        {
            "pair": np.stack([np.frombuffer(key, np.uint8) for key in entries]),
            "logp": np.array(list(entries.values()), np.float32),
        }
    )
    write_atomic(folder / f"part-{hashlib.sha256(content).hexdigest()}.safetensors", content)
    write_atomic(folder / "profile.json", json.dumps(profile, indent=1).encode())


def reference_logprobs(
    engine: Engine,
    examples: Sequence[EncodedPair],
    lengths: Sequence[int],
    *,
    first_epoch: Plan,
    collate: Callable[[Sequence[int]], PackedBatch],
    weights: str,
    directory: str,
) -> Reference:
    """Reference log-probs of every example, from the store or by one forward pass of the policy as
    it is now.

    Args: lengths: packed tokens of each. first_epoch: the training plan; a pass over all examples
    takes its micro-batches, so that policy and reference agree to the bit at step 0. weights:
    digest of the weights that the engine holds. Raises: BadInput where a part of the store is
    damaged, or its values are not those of these weights. A collective."""
    profile = numerics(engine, weights)
    if (
        engine.policy.max_sequence_tokens is not None
    ):  # rotary frequencies that are those of a length
        profile["rotary_tokens"] = str(engine.policy.max_sequence_tokens)
    address = hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(directory) / address
    keys = [pair_digest(pair) for pair in examples]
    wanted = set(keys)
    engine.on_rank0(lambda: make_store_folder(folder))  # before the pass is paid for

    def stored() -> Entries:
        return {key: logp for key, logp in read_store(folder).items() if key in wanted}

    known = engine.on_rank0(stored)
    missing = {i for i, key in enumerate(keys) if key not in known}
    if len(missing) < len(keys):
        verify_sample(engine, examples, keys, known, collate, lengths, folder)
        engine.log(
            f"reference: {len(keys) - len(missing)} of {len(keys)} pairs are in {folder}, verified on a probe"
        )
    if missing:
        engine.log(f"reference: one forward pass over {len(missing)} pairs")
    # Whole micro-batches of the plan: what a killed pass left out has, to the bit, the values that
    # it would have had.
    todo = [
        ranks
        for step in first_epoch.steps
        if step.epoch < 1
        for ranks in zip(*step.ranks)
        if not missing.isdisjoint(chain(*ranks))
    ]
    for start in tqdm(
        range(0, len(todo), PART_MICRO_BATCHES),
        desc="reference",
        unit="part",
        file=sys.stderr,
        dynamic_ncols=True,
        disable=engine.rank > 0 or not todo,
    ):
        part = [ranks[engine.rank] for ranks in todo[start : start + PART_MICRO_BATCHES]]
        new = {
            keys[i]: logp
            for i, logp in require_finite_logprobs(
                engine, examples, forward_pass(engine, part, collate)
            ).items()
            if i in missing
        }
        engine.on_rank0(lambda: append_to_store(folder, new, profile))
    known = engine.on_rank0(stored) if missing else known
    return Reference(
        torch.tensor([known[key] for key in keys], dtype=torch.float32, device=engine.device)
    )


def pair_digest(pair: EncodedPair) -> bytes:
    """SHA-256 of a pair's token ids, side by side."""
    parts = [
        np.asarray(ids, np.int32).tobytes()
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    ]
    return hashlib.sha256(
        b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    ).digest()


@torch.no_grad()
def forward_pass(
    engine: Engine,
    micro_batches: Sequence[Sequence[int]],
    collate: Callable[[Sequence[int]], PackedBatch],
) -> dict[int, tuple[float, float]]:
    """log p of both sides of every pair in all ranks' micro-batches, by example index. A
    collective."""
    engine.train(False)
    indices: list[int] = []
    logp: list[Tensor] = [torch.zeros(0, 2, device=engine.device)]
    for micro_batch in micro_batches:
        batch = collate(micro_batch).to(engine.device)
        logp.append(torch.stack(response_logprobs(engine, batch), dim=-1))
        indices += batch.indices
    engine.train()
    mine = list(zip(indices, map(tuple, torch.cat(logp).tolist())))
    return dict(entry for rank in engine.all_gather(mine) for entry in rank)


def require_finite_logprobs(
    engine: Engine, examples: Sequence[EncodedPair], logp: dict[int, tuple[float, float]]
) -> dict[int, tuple[float, float]]:
    """The log-probs as they are. Raises: BadInput where some are no finite numbers, which is the
    model's doing. A collective."""
    if bad := [
        examples[i].id for i, both in sorted(logp.items()) if not all(map(math.isfinite, both))
    ]:
        names = engine.non_finite_parameters()
        why = (
            f"its weights are not finite: {', '.join(names[:5])}"
            if names
            else f"its weights are, in {engine.hardware.dtype} it overflows"
        )
        raise BadInput(
            f"the model's log-probs of {len(bad)} pairs are not finite ({', '.join(bad[:5])}): {why}"
        )
    return logp


def verify_sample(
    engine: Engine,
    examples: Sequence[EncodedPair],
    keys: Sequence[bytes],
    known: Entries,
    collate: Callable[[Sequence[int]], PackedBatch],
    lengths: Sequence[int],
    folder: Path,
) -> None:
    """Compute a few stored entries again, others at every call, of all lengths.

    Raises: BadInput where the store does not hold what these weights give."""
    stored = [i for i, key in enumerate(keys) if key in known]
    chosen = sample_over_lengths(
        stored, lengths, random.Random(engine.broadcast(random.SystemRandom().getrandbits(64)))
    )
    plan = plan_pass(
        lengths,
        ranks=engine.world_size,
        budget_tokens=engine.hardware.tokens_per_micro_batch,
        indices=chosen,
    )
    for i, fresh in sorted(
        require_finite_logprobs(
            engine, examples, forward_pass(engine, plan.steps[0].ranks[engine.rank], collate)
        ).items()
    ):
        pair = examples[i]
        for side, ids, new, old in zip(("chosen", "rejected"), pair[2:], fresh, known[keys[i]]):
            if not abs(new - old) <= response_tolerance_nats(engine.hardware.dtype, len(ids)):
                raise BadInput(
                    f"reference store {folder}: pair {i} ({pair.id}) has log p({side}) {old:.4f}, these weights give "
                    f"{new:.4f}; the store is not of this model: delete the folder, it will be computed again"
                )


def sample_over_lengths(
    indices: Sequence[int], lengths: Sequence[int], rng: random.Random
) -> list[int]:
    """PROBE_PAIRS of the indices, or all of fewer: one drawn of each equal share of them by
    length."""
    ordered = sorted(indices, key=lambda i: (lengths[i], i))
    count = min(PROBE_PAIRS, len(ordered))
    bounds = [math.floor(share * len(ordered) / count) for share in range(count + 1)]
    return [rng.choice(ordered[low:high]) for low, high in zip(bounds, bounds[1:])]
