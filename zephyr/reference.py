"""Log-probs of the frozen reference, computed once and stored under what their values depend on.

DPO compares the policy with a reference model: the weights that training starts from (Rafailov et
al. 2023, arXiv:2305.18290). So no second model is held in memory: before step 0 the policy itself
computes log p(chosen) and log p(rejected) of every pair, and the values are stored. For another
reference (`reference.model`) it holds that model's weights meanwhile (`reference_weights`).
`reference_logprobs` must run before a checkpoint is restored; a missing value is never computed
from trained weights.

The store is a folder of safetensors files. The address of an entry is

    digest of the weights  x  numerics  x  token ids of the pair

Numerics are what decides the last digits of a value: dtype, attention, fused layers, kind of
device, versions of torch, transformers and the kernels, and the code here that computes. The
address does not depend on the number of ranks, the packing, the data file or beta, so runs of a
sweep share entries.

Security: whoever can write to the store decides what a run is trained against. The digests in file
names detect accidents: a flipped bit, a truncated file, a store of other weights. They are not
signatures: whoever can write there can rename a file to its new digest. Two more checks make
tampering harder, and neither is a proof. Every read computes a few pairs again, drawn at random
over all lengths; and every pair of a run's first step must have rewards of 0
(`training.initial_rewards`). One changed value of a pair in a later step can pass both.
So give write access only to those who may also write to the model's folder.

Shape letters:
    P  preference pairs of a micro-batch
    E  entries of the store
"""

import contextlib
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from zephyr import model, packing, progress
from zephyr.chat import EncodedPair
from zephyr.config import BadInput
from zephyr.model.load import replace_weights
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import PackedBatch, Plan, plan_pass
from zephyr.packing.collate import copy_tensor
from zephyr.training.engine import Engine
from zephyr.training.files import write_atomic
from zephyr.training.tolerance import response_tolerance_nats

LogProbs = tuple[float, float]  # log p(chosen), log p(rejected), in nats
Entries = dict[bytes, LogProbs]  # by the digest of a pair's token ids
Collate = Callable[[Sequence[int]], PackedBatch]
PROBE_PAIRS = 8  # stored pairs that every read computes again
# Micro-batches of every rank between two parts of the store: a killed pass loses at most these.
PART_MICRO_BATCHES = 64
# Modules of zephyr.model whose code decides a log-prob.
CODE_MODULES = ("attention", "logprobs", "policy", "sequence")
# Packages whose version decides a log-prob, by hardware.attention; others are part of torch.
KERNELS = {"flash_attn": ["flash-attn"]}
# The same by hardware.fused. With "none" nothing is added, so its entries keep their address.
FUSED_CODE = {"liger": ["fused"], "triton": ["fused", "triton_kernels"]}
QUANTIZED_CODE = ["nf4"]  # the same of frozen matrices in 4 bits
FUSED_PACKAGES = {"liger": ["liger-kernel", "triton"], "triton": ["triton"]}


class Reference(NamedTuple):
    """Log-probs of all examples under the reference.

    logp: float32 [examples, 2] on the device: log p(chosen), log p(rejected), in nats.
    """

    logp: Tensor

    def digest(self) -> str:
        """SHA-256 of the values: a checkpoint records what it was trained against."""
        return hashlib.sha256(self.logp.cpu().numpy().tobytes()).hexdigest()

    def __call__(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """(ref_chosen_P, ref_rejected_P) of a micro-batch's pairs."""
        indices_P = torch.tensor(batch.indices, dtype=torch.int64)
        indices_P = copy_tensor(indices_P, self.logp.device)
        ref_chosen_P, ref_rejected_P = self.logp[indices_P].unbind(-1)
        return ref_chosen_P, ref_rejected_P


def reference_logprobs(
    engine: Engine,
    examples: Sequence[EncodedPair],
    lengths: Sequence[int],
    *,
    first_epoch: Plan,
    collate: Collate,
    weights: str,
    directory: str,
) -> Reference:
    """Reference log-probs of every example: from the store, or by one forward pass.

    A collective: every rank calls it.

    Args:
        engine: holds the weights that training starts from.
        examples: all encoded pairs of the data set.
        lengths: packed tokens of each.
        first_epoch: the training plan. The forward pass takes the micro-batches of its first epoch,
            so policy and reference agree to the bit at step 0.
        collate: example indices -> packed batch, as in training.
        weights: digest of the weights that the engine holds (`zephyr.model.load.digest`).
        directory: of all stores; those of other weights or numerics lie beside this one.

    Raises:
        BadInput: a part of the store is damaged, the store holds values that these weights don't
            give, it can't be written, or log-probs are not finite.
    """
    profile = store_profile(engine, weights)
    address = hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(directory) / address
    engine.on_rank0(lambda: make_store_folder(folder))  # fails before the forward pass, not after
    keys = [pair_digest(pair) for pair in examples]
    known = engine.on_rank0(lambda: read_entries(folder, keys))
    missing = {i for i, key in enumerate(keys) if key not in known}
    if len(missing) < len(keys):
        verify_sample(engine, examples, keys, known, collate, lengths, folder)
        engine.log(
            f"reference: {len(keys) - len(missing)} of {len(keys)} pairs are in {folder}; "
            "a sample of them was computed again and agrees"
        )
    if missing:
        engine.log(f"reference: one forward pass over {len(missing)} pairs")
        parts = missing_parts(engine, first_epoch, missing)
        with progress.Bar("reference", sum(map(len, parts)), "micro-batches") as bar:
            for part in parts:
                logp = forward_pass(engine, bar.track(part), collate)
                require_finite_logprobs(engine, examples, logp)
                new = {keys[i]: both for i, both in logp.items() if i in missing}
                engine.on_rank0(partial(append_to_store, folder, new, profile))
        known = engine.on_rank0(lambda: read_entries(folder, keys))
    return Reference(
        torch.tensor([known[key] for key in keys], dtype=torch.float32, device=engine.device)
    )


@contextlib.contextmanager
def reference_weights(engine: Engine, reference: str | None, policy: str) -> Iterator[None]:
    """The engine's policy holds the weights of another reference inside, and its own again after.

    One model is in memory at a time, and log-probs are computed as those of the policy are. It must
    end before a checkpoint is restored. A collective.

    Args:
        reference: path or hub id; None: the policy is its own reference, and nothing is loaded.
        policy: that the engine was initialized with.
    Raises:
        BadInput: the reference can't be loaded, or is of another architecture.
    """
    if reference is None:
        yield
        return
    engine.log(f"reference: the weights of {reference} are loaded")
    engine.fill_policy(partial(replace_weights, path=reference))
    yield
    engine.fill_policy(partial(replace_weights, path=policy))


def missing_parts(
    engine: Engine, first_epoch: Plan, missing: set[int]
) -> list[list[tuple[int, ...]]]:
    """This rank's micro-batches that hold missing pairs, PART_MICRO_BATCHES at a time.

    Micro-batches are those of the plan, whole: a pair that a killed pass left out gets to the bit
    the value that it would have got.
    """
    todo = [
        micro_batches  # of all ranks
        for step in first_epoch.steps
        if step.epoch < 1
        for micro_batches in zip(*step.ranks)
        if not missing.isdisjoint(chain(*micro_batches))
    ]
    parts = []
    for start in range(0, len(todo), PART_MICRO_BATCHES):
        part = todo[start : start + PART_MICRO_BATCHES]
        parts.append([micro_batches[engine.data_rank] for micro_batches in part])
    return parts


# -- the store


def store_profile(engine: Engine, weights: str) -> dict[str, str]:
    """What the values of a store depend on, for all its pairs alike: its address is their digest.

    Args:
        weights: digest of the weights.
    """
    profile = numerics(engine, weights)
    quantize = engine.policy.quantize
    if quantize != "none":  # the reference is the quantised base
        profile["quantize"] = quantize
        profile["bitsandbytes"] = version("bitsandbytes")
    longest = engine.policy.max_sequence_tokens
    if longest is not None:  # rotary frequencies are those of this length
        profile["rotary_tokens"] = str(longest)
    return profile


def numerics(engine: Engine, weights: str) -> dict[str, str]:
    """Weights, numerics and code that decide an entry's value, beside its token ids."""
    hardware = engine.hardware
    names = [*CODE_MODULES, *FUSED_CODE.get(hardware.fused, [])]
    if engine.policy.quantize != "none":
        names += QUANTIZED_CODE
    modules = [Path(model.__file__).with_name(f"{name}.py") for name in names]
    modules += [Path(packing.__file__).with_name(f"{name}.py") for name in ("collate", "share")]
    code = hashlib.sha256()
    for path in modules:
        code.update(hashlib.sha256(path.read_bytes()).digest())
    packages = ["transformers", *KERNELS.get(hardware.attention, [])]
    packages += FUSED_PACKAGES.get(hardware.fused, [])
    fused = {} if hardware.fused == "none" else {"fused": hardware.fused}
    return {
        "weights": weights,
        "dtype": hardware.dtype,
        "attention": hardware.attention,
        **fused,
        "device": engine.device.type,
        "torch": torch.__version__,
        **{name: version(name) for name in packages},
        "code": code.hexdigest(),
        "logp": "float32 sums over response tokens, EOS included",
    }


def pair_digest(pair: EncodedPair) -> bytes:
    """SHA-256 of a pair's token ids: prompt, chosen and rejected, each with its length."""
    digest = hashlib.sha256()
    for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
        content = np.asarray(ids, np.int32).tobytes()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


def make_store_folder(folder: Path) -> None:
    """Make the folder of a store. Raises: BadInput: it can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "profile.json").touch()
    except OSError as error:
        raise BadInput(f"reference.dir: {folder} can't be written: {error.strerror}") from None


def read_entries(folder: Path, keys: Sequence[bytes]) -> Entries:
    """The entries of a store that have one of these keys. Raises: as `read_store`."""
    wanted = set(keys)
    return {key: logp for key, logp in read_store(folder).items() if key in wanted}


def read_store(folder: Path) -> Entries:
    """All entries of a store's `part-<sha256>.safetensors` files.

    Where two runs wrote an entry, the older file's value is returned, so a reference never changes.

    Raises:
        BadInput: the bytes of a part don't have the digest in its name, or are no entries; names
            the file.
    """
    entries: Entries = {}
    parts = folder.glob("part-*.safetensors")
    for path in sorted(parts, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        entries.update(read_part(path))
    return entries


def read_part(path: Path) -> Entries:
    """The entries of one file of a store. Raises: as `read_store`."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem.removeprefix("part-"):
        raise BadInput(
            f"reference store: {path} is damaged: its bytes don't have the digest in its name; "
            "delete the file, it will be computed again"
        )
    try:
        tensors = load(content)
        keys_E32, logp_E2 = tensors["pair"], tensors["logp"]
    except (SafetensorError, KeyError) as error:
        raise BadInput(
            f"reference store: {path} is not a part of a store ({error!r}); delete the file, it "
            "will be computed again"
        ) from None
    shapes = keys_E32.shape[1:] == (32,) and logp_E2.shape == (len(keys_E32), 2)
    if not shapes or not np.isfinite(logp_E2).all():
        raise BadInput(
            f"reference store: {path} holds keys of shape {keys_E32.shape} and log-probs of shape "
            f"{logp_E2.shape}, or some are not finite; expected [E, 32] and finite [E, 2]; delete "
            "the file, it will be computed again"
        )
    return {
        row.tobytes(): (chosen, rejected)
        for row, (chosen, rejected) in zip(keys_E32, logp_E2.tolist())
    }


def append_to_store(folder: Path, entries: Entries, profile: dict[str, str]) -> None:
    """Add a part to a store, whole or not at all. No part is ever rewritten."""
    keys_E32 = np.stack([np.frombuffer(key, np.uint8) for key in entries])
    logp_E2 = np.array(list(entries.values()), np.float32)
    content = save({"pair": keys_E32, "logp": logp_E2})
    write_atomic(folder / f"part-{hashlib.sha256(content).hexdigest()}.safetensors", content)
    write_atomic(folder / "profile.json", json.dumps(profile, indent=1).encode())


# -- computing


@torch.no_grad()
def forward_pass(
    engine: Engine, micro_batches: Iterable[Sequence[int]], collate: Collate
) -> dict[int, LogProbs]:
    """Log-probs of every pair in the micro-batches of all ranks, by example index. A collective.

    Args:
        micro_batches: this rank's; every rank has as many.
    """
    engine.train(False)
    indices: list[int] = []
    logp = [torch.zeros(0, 2, device=engine.device)]
    for micro_batch in micro_batches:
        batch = engine.place(collate(micro_batch))
        logp.append(torch.stack(response_logprobs(engine, batch), dim=-1))
        indices += batch.indices
    engine.train()
    mine = [
        (i, (chosen, rejected)) for i, (chosen, rejected) in zip(indices, torch.cat(logp).tolist())
    ]
    return dict(chain.from_iterable(engine.all_gather(mine)))


def require_finite_logprobs(
    engine: Engine, examples: Sequence[EncodedPair], logp: dict[int, LogProbs]
) -> None:
    """Check log-probs that the model has just computed. A collective.

    Raises:
        BadInput: some are not finite; names the pairs, and the weights where those are the cause.
    """
    bad = [examples[i].id for i, both in sorted(logp.items()) if not all(map(math.isfinite, both))]
    if not bad:
        return
    names = engine.non_finite_parameters()
    reason = f"the weights are finite, {engine.hardware.dtype} overflows"
    if names:
        reason = f"the weights are not finite: {', '.join(names[:5])}"
    raise BadInput(
        f"the model's log-probs of {len(bad)} pairs are not finite ({', '.join(bad[:5])}): {reason}"
    )


def verify_sample(
    engine: Engine,
    examples: Sequence[EncodedPair],
    keys: Sequence[bytes],
    known: Entries,
    collate: Collate,
    lengths: Sequence[int],
    folder: Path,
) -> None:
    """Compute some stored entries again: other pairs at every call, over all lengths.

    A collective.

    Args:
        keys: digest of each example.
        known: stored entries.
        folder: of the store, for the message.

    Raises:
        BadInput: the store holds another value than these weights give; names the pair.
    """
    stored = [i for i, key in enumerate(keys) if key in known]
    rng = random.Random(engine.broadcast(random.SystemRandom().getrandbits(64)))
    plan = plan_pass(
        lengths,
        ranks=engine.data_world_size,
        budget_tokens=engine.hardware.tokens_per_micro_batch,
        indices=sample_over_lengths(stored, lengths, rng),
    )
    logp = forward_pass(engine, plan.steps[0].ranks[engine.data_rank], collate)
    require_finite_logprobs(engine, examples, logp)
    for i, fresh in sorted(logp.items()):
        pair = examples[i]
        responses = (pair.chosen_ids, pair.rejected_ids)
        sides = zip(("chosen", "rejected"), responses, fresh, known[keys[i]])
        for side, ids, new, old in sides:
            tolerance = response_tolerance_nats(engine.hardware.dtype, len(ids))
            if not abs(new - old) <= tolerance:  # NaN is refused too
                raise BadInput(
                    f"reference store {folder}: pair {i} ({pair.id}) has log p({side}) "
                    f"{old:.4f}, these weights give {new:.4f}: the store is not of this model; "
                    "delete the folder, it will be computed again"
                )


def sample_over_lengths(
    indices: Sequence[int], lengths: Sequence[int], rng: random.Random
) -> list[int]:
    """PROBE_PAIRS of the indices, or all if there are fewer, spread over lengths.

    The indices are sorted by length and divided into equal shares; one is drawn from each.
    """
    ordered = sorted(indices, key=lambda i: (lengths[i], i))
    count = min(PROBE_PAIRS, len(ordered))
    bounds = [math.floor(share * len(ordered) / count) for share in range(count + 1)]
    return [rng.choice(ordered[low:high]) for low, high in pairwise(bounds)]
