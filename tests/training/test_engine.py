"""The engine of one rank, in this process: precision, its updates, its state on disk, and what the
reference store keeps of it."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import ROOT
from runs import ledger, records
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import train_dpo
from zephyr import reference
from zephyr.chat import EncodedPair
from zephyr.config import BadInput, Data, DPOConfig, Hardware, Optim, Run, Wandb
from zephyr.model.adapter import exported
from zephyr.model.load import load_policy
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import PackedBatch, Plan, collate_pairs, plan_epochs, plan_pass
from zephyr.packing.plan import Step
from zephyr.training import checkpoint
from zephyr.training import engine as engine_module
from zephyr.training.engine import Engine, move_buffers
from zephyr.training.loop import (
    NonFiniteError,
    Objective,
    Split,
    Stats,
    Stopped,
    fit,
    forward_backward,
    reduce_totals,
)
from zephyr.training.tolerance import response_tolerance_nats
from zephyr.verify import preflight
from zephyr.verify.preflight import packed_difference, require_packed

OURS = str(ROOT / "zephyr") + "/"
PAIRS = [EncodedPair(str(i), [1, 5 + i, 9], [7, 2], [8 + i, 3, 2]) for i in range(4)]
DECAY, BETAS, CLIP = 0.1, (0.8, 0.95), 0.5  # none is the default of torch, of DeepSpeed, or ours


@pytest.fixture(scope="module")
def moved() -> list[object]:
    """What `move_buffers` was called with."""
    return []


@pytest.fixture(scope="module")
def engine(tiny: Path, moved: list[object]) -> Iterator[Engine]:
    """A bfloat16 policy under ZeRO-3 with every parameter partitioned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(engine_module, "move_buffers", lambda *given: moved.append(given))
        made = Engine(Hardware(attention="sdpa", deepspeed="configs/deepspeed/cpu.json"), 0)
        made.initialize(
            partial(load_policy, tiny, dtype=torch.bfloat16),
            Optim(grad_clip=CLIP, weight_decay=DECAY, adam_betas=BETAS),
        )
    yield made
    made.close()


@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_buffers_move_to_the_device_as_they_are(rope: str, tiny: Path, tmp_path: Path) -> None:
    """To the device that has no values. Fails where the frequencies that transformers makes, or
    those that take their place for long sequences, stay on the CPU, from which each forward would
    copy them; where their dtype changes; or where a save would hold them."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0}
    config["max_position_embeddings"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    policy = load_policy(folder, dtype=torch.bfloat16, max_tokens=128)
    saved, before = set(policy.state_dict()), dict(policy.named_buffers())
    move_buffers(policy, torch.device("meta"))
    after = dict(policy.named_buffers())
    assert after.keys() == before.keys() and "lm.model.rotary_emb.inv_freq" in after
    assert {(b.device.type, b.dtype) for b in after.values()} == {("meta", torch.float32)}
    assert set(policy.state_dict()) == saved
    assert {p.device.type for p in policy.parameters()} == {"cpu"}


def test_a_buffer_of_two_names_moves_under_both() -> None:
    """As frequencies that a rotary module keeps a second time. Fails where the second name still
    leads to the CPU."""
    module, frequencies = torch.nn.Module(), torch.ones(2)
    for name in ("inv_freq", "original_inv_freq"):
        module.register_buffer(name, frequencies)
    move_buffers(module, torch.device("meta"))
    assert module.inv_freq.is_meta and module.original_inv_freq.is_meta


def test_the_engine_moves_its_policys_buffers(engine: Engine, moved: list[object]) -> None:
    """Fails where nobody calls what the test above is about."""
    assert moved == [(engine.policy, engine.device)]


def test_rotary_frequencies_stay_float32(engine: Engine, tiny: Path) -> None:
    """They equal those of a plain model. Fails where DeepSpeed rounds them to bfloat16, which
    shifts every position's angle."""
    plain = load_policy(tiny, dtype=torch.bfloat16)
    pairs = list(zip(engine.policy.named_buffers(), plain.named_buffers()))
    assert pairs and all(a.dtype == torch.float32 and torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_master_weights_and_gradients_are_float32(engine: Engine) -> None:
    """At a rate of 5e-7 a bfloat16 weight never changes. Fails where the optimiser, or the
    accumulation, runs in the model's dtype, DeepSpeed's default."""
    assert all(p.dtype == torch.bfloat16 for p in engine.policy.parameters())
    assert all(
        p.dtype == torch.float32 for p in engine.engine.optimizer.fp32_partitioned_groups_flat
    )
    assert engine.engine.optimizer.gradient_accumulation_dtype == torch.float32
    assert engine.engine.gradient_clipping() == CLIP


def test_parameters_come_back_as_they_were_read(engine: Engine, tiny: Path) -> None:
    """Fails where a gather returns a shard, another order, or a tied copy."""
    plain = dict(load_policy(tiny, dtype=torch.bfloat16).lm.named_parameters())
    gathered = dict(engine.full_tensors(exported(engine.policy.lm)))
    assert list(gathered) == list(plain) == [of.name for of in exported(engine.policy.lm)]
    assert all(torch.equal(gathered[name], plain[name]) for name in plain)
    assert [of.bytes for of in exported(engine.policy.lm)] == [p.nbytes for p in plain.values()]


def test_a_gradient_that_is_not_finite_changes_nothing(engine: Engine) -> None:
    """The loss is finite, its gradient overflows. Fails where the update is made and the model is
    lost; and, as a control, where a finite step does not change it."""
    before = {name: p.clone() for name, p in engine.full_tensors(exported(engine.policy.lm))}
    batch = collate_pairs(PAIRS, range(4))
    chosen_P, rejected_P = response_logprobs(engine, batch)
    difference = chosen_P.sum() - rejected_P.sum()
    engine.backward((difference - difference.detach()) * 1e38, last=True)
    assert engine.step(1e-3) == float("inf")
    assert all(
        torch.equal(p, before[name]) for name, p in engine.full_tensors(exported(engine.policy.lm))
    )
    chosen_P, _ = response_logprobs(engine, batch)
    engine.backward(chosen_P.mean(), last=True)
    assert 0 < engine.step(1e-2) < 1e3
    assert not all(
        torch.equal(p, before[name]) for name, p in engine.full_tensors(exported(engine.policy.lm))
    )


def test_a_discarded_gradient_changes_nothing(engine: Engine) -> None:
    """Its norm is that of the step that would have been made; weights stay, Adam starts anew. Fails
    where preflight's gradients leave a trace in the run."""
    batch = collate_pairs(PAIRS, range(4))
    before = [flat.clone() for flat in engine.engine.optimizer.fp32_partitioned_groups_flat]
    engine.backward(engine(batch).sum(), last=True)
    norm = engine.discard_gradient()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, engine.engine.optimizer.fp32_partitioned_groups_flat)
    )
    assert not engine.engine.optimizer.optimizer.state
    engine.backward(engine(batch).sum(), last=True)
    assert engine.step(0.0) == norm > 0


def test_update_and_weight_are_those_of_the_weights(engine: Engine) -> None:
    """Against weights before and after, at the first step and a later one. Fails where a moment is
    not unbiased, or padding or a group is left out."""
    batch = collate_pairs(PAIRS, range(4))
    engine.engine.optimizer.optimizer.state.clear()
    for lr in (1e-4, 3e-4):
        before = torch.cat(
            [flat.detach().clone() for flat in engine.engine.optimizer.fp32_partitioned_groups_flat]
        )
        engine.backward(engine(batch).mean(), last=True)
        engine.step(lr)
        after = torch.cat(
            [flat.detach() for flat in engine.engine.optimizer.fp32_partitioned_groups_flat]
        )
        update, weight = engine.update_and_weight_sq_norms(lr).sqrt().tolist()
        assert update == pytest.approx(
            float((after - before).norm()), rel=1e-3
        ) and weight == pytest.approx(float(after.norm()), rel=1e-6)


def masters(engine: Engine) -> dict[str, Tensor]:
    """A copy of the float32 weights by parameter name, flat."""
    return {
        shard.name.removeprefix("lm.").removesuffix(".master"): shard.values.clone()
        for shard in engine.live_shards(0)
        if shard.name.endswith(".master")
    }


def start_anew(engine: Engine) -> None:
    """Adam as a new process has it: no moments, no steps."""
    engine.engine.optimizer.optimizer.state.clear()


def plain_steps(
    tiny: Path,
    start: dict[str, Tensor],
    micro_batches: Sequence[PackedBatch],
    rates: Sequence[float],
    factor: float,
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights after the steps, and the norm of each gradient: torch's AdamW on float32 copies,
    gradients of a bfloat16 model."""
    plain = load_policy(tiny, dtype=torch.bfloat16)
    named = dict(plain.lm.named_parameters())
    copies = {name: start[name].view(p.shape).clone().requires_grad_() for name, p in named.items()}
    groups = [
        {"params": [copies[n] for n, p in named.items() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [copies[n] for n, p in named.items() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw, norms = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=1e-8), []
    for rate in rates:
        for name, parameter in named.items():
            parameter.data.copy_(copies[name].data)
        of_micro = [
            torch.autograd.grad(plain(batch).sum() * factor, list(named.values()))
            for batch in micro_batches
        ]
        gradients = [sum(g.float() for g in of_one) for of_one in zip(*of_micro)]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        for copy, gradient in zip(copies.values(), gradients):
            copy.grad = gradient * min(1.0, CLIP / norms[-1])
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
    return {name: copy.detach().flatten() for name, copy in copies.items()}, norms


@pytest.mark.parametrize("factor", [1.0, 1e-5], ids=["clipped", "not clipped"])
def test_steps_are_those_of_torchs_adamw(factor: float, engine: Engine, tiny: Path) -> None:
    """Three updates from two micro-batches each, rates that change, betas, decay and clipping that
    are nobody's default. Fails where betas or decay are not heard, a norm's gain decays, the
    world's factor is wrong, a micro-batch is lost, clipping is left to DeepSpeed, or a rate is not
    the one asked for."""
    start_anew(engine)
    before, rates = masters(engine), (1e-3, 3e-3, 2e-3)
    micro_batches = [collate_pairs(PAIRS, [0, 1, 2]), collate_pairs(PAIRS, [3])]
    norms = []
    for rate in rates:
        for batch in micro_batches:
            engine.backward(engine(batch).sum() * factor, last=batch is micro_batches[-1])
        norms.append(float(engine.step(rate)))
    wanted, wanted_norms = plain_steps(tiny, before, micro_batches, rates, factor)
    assert norms == pytest.approx(wanted_norms, rel=2e-3) and (
        min(norms) > CLIP if factor == 1 else max(norms) < CLIP
    )
    for name, values in masters(engine).items():
        moved, apart = (wanted[name] - before[name]).norm(), (values - wanted[name]).norm()
        assert apart < 0.05 * moved, f"{name}: {apart} of {moved}"


def test_decay_pulls_matrices_alone(engine: Engine) -> None:
    """A gradient of zero leaves decay alone to act: matrices shrink by rate * decay, gains of norms
    stay to the bit. Fails where vectors decay too, as with AdamW's one group, or nothing does."""
    start_anew(engine)
    before, shapes = (
        masters(engine),
        {n: p.ds_shape for n, p in engine.policy.lm.named_parameters()},
    )
    engine.backward(engine(collate_pairs(PAIRS, [0])).sum() * 0.0, last=True)
    assert engine.step(1e-2) == 0.0
    for name, values in masters(engine).items():
        kept = 1 - 1e-2 * DECAY if len(shapes[name]) > 1 else 1.0
        torch.testing.assert_close(values, before[name] * kept, rtol=1e-6, atol=0)
    assert {len(shape) for shape in shapes.values()} == {1, 2}


def test_state_on_disk_goes_on_as_if_nothing_had_been(engine: Engine, tmp_path: Path) -> None:
    """Saved after two updates, read by an optimiser without state, the third update is the same to
    the bit. Fails where a moment, a weight or Adam's count of steps is lost: the third update would
    be corrected as if it were the first."""
    batch = collate_pairs(PAIRS, range(4))

    def update() -> dict[str, Tensor]:
        engine.backward(engine(batch).mean(), last=True)
        engine.step(1e-3)
        return masters(engine)

    start_anew(engine)
    update()
    update()
    engine.save_state(tmp_path)
    in_use = {name: p.clone() for name, p in engine.full_tensors(exported(engine.policy.lm))}
    third = update()
    start_anew(engine)
    engine.load_state(tmp_path, 2)
    assert all(
        torch.equal(p, in_use[name]) for name, p in engine.full_tensors(exported(engine.policy.lm))
    )
    assert all(torch.equal(values, third[name]) for name, values in update().items())
    start_anew(engine)
    engine.load_state(tmp_path, 0)
    assert not all(torch.equal(values, third[name]) for name, values in update().items()), (
        "the count of steps has no say"
    )


def test_parameters_are_counted_whole(engine: Engine, tiny: Path) -> None:
    """Fails where a shard, or the embedding among the layers, is counted: FLOPs and memory are
    predicted from these."""
    sizes = {name: p.numel() for name, p in load_policy(tiny).lm.named_parameters()}
    assert engine.num_parameters == sum(sizes.values())
    assert engine.num_layer_parameters == sum(
        size
        for name, size in sizes.items()
        if name not in ("model.embed_tokens.weight", "lm_head.weight")
    )


def test_packed_difference_sees_a_leak(engine: Engine) -> None:
    """Nothing but rounding for a right row; nats where the row's positions are wrong. Fails where
    preflight compares a row with itself."""
    from dataclasses import replace

    pairs = [
        EncodedPair(
            str(i),
            [1, 5 + i, *range(20, 40), 9],
            [*range(40, 90), 7, 2],
            [8 + i, *range(90, 120), 2],
        )
        for i in range(4)
    ]
    row, alone = (
        collate_pairs(pairs, range(4)),
        [collate_pairs(pairs, [i], prefix_sharing=False) for i in range(4)],
    )
    right = packed_difference(engine, row, alone)
    assert (
        0 < right.noise < 0.02 and require_packed("bfloat16", [right])["difference"] == right.token
    )
    wrong = packed_difference(
        engine, replace(row, positions_N=torch.arange(len(row.tokens_N))), alone
    )
    assert wrong.noise == right.noise
    with pytest.raises(BadInput, match="packing changes the log-prob of a token of example"):
        require_packed("bfloat16", [right, wrong])
    with pytest.raises(BadInput, match="packing changes the log-probs of a response's tokens"):
        require_packed("bfloat16", [wrong._replace(token=0.0)])


class Leaking:
    """An engine whose packed rows, not its single examples, have the token `at` of all scored ones
    `nats` too likely."""

    def __init__(self, engine: Engine, at: int, nats: float) -> None:
        self.engine, self.at, self.nats = engine, at, nats
        self.place = engine.place

    def train(self, mode: bool = True) -> None:
        self.engine.train(mode)

    def __call__(self, batch: PackedBatch) -> Tensor:
        assert not self.engine.policy.training, "compared without dropout"
        logp_T = self.engine(batch)
        if len(batch.indices) > 1:
            logp_T[self.at] += self.nats
        return logp_T


def test_a_leak_does_not_hide_in_a_long_response(engine: Engine) -> None:
    """One token of a response of 300 is wrong by four thousandths of their sum, and the example is
    named. Fails where only sums are compared, or tokens of different examples; where a NaN is below
    every limit; or where a noisy model allows anything."""
    long = EncodedPair("long", [1, 5, 9], [3 + i * 7 % 300 for i in range(300)], [8, 3, 2])
    pairs = [*PAIRS[:2], long]
    row, alone = (
        collate_pairs(pairs, range(3)),
        [collate_pairs(pairs, [i], prefix_sharing=False) for i in range(3)],
    )
    with torch.no_grad():
        size = -float(engine(row).split(row.response_tokens_R.tolist())[2].sum())
    right = packed_difference(engine, row, alone)
    require_packed("bfloat16", [right])
    found = packed_difference(
        Leaking(engine, 4 + 150, 0.004 * size), row, alone
    )  # two chosen responses of two tokens before it
    with pytest.raises(BadInput, match="packing changes the log-prob of a token of example 2 by"):
        require_packed("bfloat16", [right, found])
    with pytest.raises(BadInput, match="example 2 by inf"):
        require_packed(
            "bfloat16", [packed_difference(Leaking(engine, 4 + 150, math.nan), row, alone)]
        )
    with pytest.raises(BadInput, match="at most 0.25 is wanted"):
        require_packed("bfloat16", [right._replace(token=0.3, noise=10.0)])


def test_a_pair_that_differs_in_its_first_token_is_learnt(engine: Engine) -> None:
    """The prompt's last hidden state predicts the first token of both responses. Fails where that
    prediction is left out, as where prompts are masked to their last token: such pairs would have
    no gradient, nor the first token of any."""

    def norm(pair: EncodedPair) -> float:
        chosen_P, rejected_P = response_logprobs(engine, collate_pairs([pair], [0]))
        engine.backward((rejected_P - chosen_P).sum(), last=True)
        return engine.discard_gradient()

    first = EncodedPair("first", [1, 5, 9], [7, 11, 2], [8, 11, 2])
    assert norm(first) > 0.1 and norm(first._replace(rejected_ids=first.chosen_ids)) < 1e-6
    assert norm(first._replace(chosen_ids=[7], rejected_ids=[8])) > 0.1


class Reads(TorchDispatchMode):
    """Names the files of this package and of DeepSpeed from which a tensor's value was brought to
    the host."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[str] = []

    def note(self) -> None:
        names = [frame.filename for frame in traceback.extract_stack()]
        frames = [name for name in names if name.startswith(OURS) or "/deepspeed/" in name]
        self.of.append(frames[-1])

    def __torch_dispatch__(
        self, function: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        if "_local_scalar_dense" in str(function):
            self.note()
        return function(*args, **(kwargs or {}))


def test_a_step_reads_its_values_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read makes the host wait for a GPU: two micro-batches, the update and all sums need one of
    ours, and one of DeepSpeed's for the norm. Fails where a loss, a norm or a counter is read for
    itself."""

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        chosen_P, rejected_P = response_logprobs(policy, batch)
        return (rejected_P - chosen_P).sum(), {
            "logps/chosen": chosen_P.detach(),
            "logps/rejected": rejected_P.detach(),
        }

    plan = plan_pass([8] * 4, ranks=1, budget_tokens=16)
    split = Split(
        plan,
        partial(collate_pairs, PAIRS),
        objective,
        list("abcd"),
        [8] * 4,
        [1] * 4,
        [1.0] * 4,
        "pairs",
        [1.0] * 4,
        {},
    )
    reads, tolist = Reads(), Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: [reads.note(), tolist(self)][1])
    with reads:
        totals = forward_backward(engine, split, 0, None)
        grad_norm = engine.step(1e-4)
        totals.sums |= dict(zip(("update", "weight"), engine.update_and_weight_sq_norms(1e-4)))
        of_step = reduce_totals(engine, split, 0, totals, grad_norm)
    assert of_step["grad_norm"] > 0 and of_step["update"] > 0 and len(plan.steps[0].ranks[0]) == 2
    assert sorted(Path(name).name for name in reads.of if name.startswith(OURS)) == ["loop.py"], (
        reads.of
    )
    assert len(reads.of) <= 3, reads.of


def test_the_next_micro_batch_is_made_while_the_forward_runs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of events in a step of three micro-batches, one of them empty, as a rank with
    fewer pairs has it; and its gradient, against the same without the loop. Fails where the host
    collates behind a backward, at whose end DeepSpeed has waited for the device; or where a
    micro-batch is left out, or the update is made before the last."""
    events: list[str] = []
    backward = engine.backward

    def collate(indices: Sequence[int]) -> PackedBatch:
        events.append(f"collate {list(indices)}")
        return collate_pairs(PAIRS, indices)

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        events.append(f"forward {list(batch.indices)}")
        return policy(batch).sum(), {}

    def noted(loss: Tensor, *, last: bool) -> None:
        events.append(f"backward {last}")
        backward(loss, last=last)

    plan = Plan([Step(0.0, [[[0, 1], [2, 3], []]])], tokens=32, fill_ratio=1.0, imbalance=1.0)
    split = Split(plan, collate, objective, [], [8] * 4, [1] * 4, [1.0] * 4, "pairs", [1.0] * 4, {})
    monkeypatch.setattr(engine, "backward", noted)
    totals = forward_backward(engine, split, 0, None)
    norm = engine.discard_gradient()
    assert events == [
        "collate [0, 1]",
        "forward [0, 1]",
        "collate [2, 3]",
        "backward False",
        "forward [2, 3]",
        "collate []",
        "backward False",
        "forward []",
        "backward True",
    ]
    losses = []
    for indices in ([0, 1], [2, 3], []):
        loss = engine(collate_pairs(PAIRS, indices)).sum()
        backward(loss / 4, last=not indices)
        losses.append(loss.detach().double())
    assert engine.discard_gradient() == norm > 0
    assert totals.sums["loss"] == sum(losses)


def log_probabilities(
    engine: Engine, folder: Path, *, pairs: Sequence[EncodedPair] = PAIRS, weights: str = "w"
) -> Tensor:
    """The reference store's answer for pairs, two to a micro-batch."""
    lengths = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
    plan = plan_epochs(lengths, per_step=2, epochs=1, ranks=1, budget_tokens=20)
    return reference.reference_logprobs(
        engine,
        pairs,
        lengths,
        first_epoch=plan,
        collate=partial(collate_pairs, pairs),
        weights=weights,
        directory=str(folder),
    ).logp


def alone(engine: Engine, pairs: Sequence[EncodedPair]) -> Tensor:
    """log p of both sides of each pair by itself, [pairs, 2]."""
    with torch.no_grad():
        return torch.stack(
            [
                torch.cat(response_logprobs(engine, collate_pairs(pairs, [i])))
                for i in range(len(pairs))
            ]
        )


def test_reference_is_each_pairs_own(engine: Engine, tmp_path: Path) -> None:
    """Computed, then read, then read in another order with one pair more. Fails where a value is
    filed under another pair, or a side under the other, or what is stored is not what was
    computed."""
    other = EncodedPair("new", [1, 30], [31, 2], [32, 33, 2])
    expected = alone(engine, [*PAIRS, other])
    computed, read = log_probabilities(engine, tmp_path), log_probabilities(engine, tmp_path)
    torch.testing.assert_close(computed, expected[:4], rtol=1e-2, atol=1e-2)
    assert torch.equal(computed, read) and len(set(computed.flatten().tolist())) == 8
    mixed = log_probabilities(engine, tmp_path, pairs=[PAIRS[2], other, PAIRS[0]])
    assert torch.equal(mixed[[0, 2]], computed[[2, 0]])
    torch.testing.assert_close(mixed[1], expected[4], rtol=1e-2, atol=1e-2)
    assert len(list(tmp_path.iterdir())) == 1 and len(list(tmp_path.glob("*/part-*"))) == 2


OTHERWISE: dict[str, Callable[[Hardware], Hardware]] = {
    "weights": lambda hardware: hardware,
    "dtype": lambda hardware: replace(hardware, dtype="float32"),
    "attention": lambda hardware: replace(hardware, attention="torch_varlen"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_decides_a_log_prob_is_in_the_stores_address(
    what: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with other weights, dtype or attention finds nothing in the store. Fails where one of
    them is left out of the address, and the values of another run would be its reference."""
    log_probabilities(engine, tmp_path)
    monkeypatch.setattr(engine, "hardware", OTHERWISE[what](engine.hardware))
    log_probabilities(engine, tmp_path, weights="others" if what == "weights" else "w")
    assert len(list(tmp_path.iterdir())) == 2 and len(list(tmp_path.glob("*/part-*"))) == 2


@pytest.mark.parametrize(
    "ids",
    [
        EncodedPair("0", [1, 5, 9, 7], [2], [8, 3, 2]),
        EncodedPair("0", [1, 5, 9], [8, 3, 2], [7, 2]),
        EncodedPair("0", [1, 5, 10], [7, 2], [8, 3, 2]),
        EncodedPair("0", [1, 5, 9], [6, 2], [8, 3, 2]),
        EncodedPair("0", [1, 5, 9], [7, 2], [8, 4, 2]),
    ],
    ids=["border", "sides", "prompt", "chosen", "rejected"],
)
def test_other_ids_are_another_pair_whatever_their_id(ids: EncodedPair) -> None:
    """The same tokens with the border elsewhere, the sides exchanged, one prompt token changed; and
    another id alone. Fails where one pair's log-probs would be taken for another's, or a renamed
    row paid for again."""
    assert (
        reference.pair_digest(ids)
        != reference.pair_digest(PAIRS[0])
        == reference.pair_digest(PAIRS[0]._replace(id="x"))
    )


def test_only_what_is_missing_is_computed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward passes are counted: each pair once, however many epochs the plan has; then the probe
    alone; then the micro-batch of the one new pair. Fails where a sweep pays for pairs that are
    there, or an epoch for those of another."""
    counted: list[int] = []
    forward = Engine.__call__
    monkeypatch.setattr(
        Engine,
        "__call__",
        lambda self, batch: [counted.append(batch.units), forward(self, batch)][1],
    )

    def plan(count: int) -> Plan:
        return plan_epochs(TOKENS[:count], per_step=7, epochs=3, ranks=1, budget_tokens=60)

    def asked(count: int) -> int:
        counted.clear()
        reference.reference_logprobs(
            engine,
            MORE[:count],
            TOKENS[:count],
            first_epoch=plan(count),
            collate=partial(collate_pairs, MORE),
            weights="w",
            directory=str(tmp_path),
        )
        return sum(counted)

    (beside,) = (
        len(micro)
        for step in plan(7).steps
        for micro in step.ranks[0]
        if step.epoch < 1 and 6 in micro
    )
    assert asked(6) == 6 and asked(6) == 6 < reference.PROBE_PAIRS, "all, then the probe of all"
    assert beside > 1 and asked(7) == 6 + beside
    assert {len(load_file(part)["pair"]) for part in tmp_path.glob("*/part-*")} == {6, 1}


def test_a_reference_gives_each_pair_its_own(tmp_path: Path) -> None:
    """By the indices of a micro-batch, in its order; and a digest of every value. Fails where a
    pair is weighed against another's, the sides are exchanged, or other references pass for the
    ones that a checkpoint was trained against."""
    frozen = reference.Reference(torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]))
    chosen_P, rejected_P = frozen(collate_pairs(PAIRS, [2, 0]))
    assert (chosen_P.tolist(), rejected_P.tolist()) == ([-5.0, -1.0], [-6.0, -2.0])
    other = frozen.logp.clone()
    other[1, 1] += 1e-6
    assert (
        frozen.digest()
        == reference.Reference(frozen.logp.clone()).digest()
        != reference.Reference(other).digest()
    )


def test_parts_are_read_whole_and_the_first_value_stays(tmp_path: Path) -> None:
    """Two runs wrote the same pair: the earlier value is the one that stands, whatever the files'
    names. A flipped bit is refused. Fails where a reference changes once a second run has written,
    or damage is trained against."""
    key, written = bytes(range(32)), []
    for i, logp in enumerate((-1.0, -2.0, -3.0, -4.0)):
        reference.append_to_store(tmp_path, {key: (logp, logp)}, {})
        (new,) = set(tmp_path.glob("part-*")) - set(written)
        os.utime(new, ns=(10**18 + i, 10**18 + i))
        written.append(new)
    assert reference.read_store(tmp_path) == {key: (-1.0, -1.0)}
    content = bytearray(written[0].read_bytes())
    content[-1] ^= 1
    written[0].write_bytes(content)
    with pytest.raises(BadInput, match="is damaged"):
        reference.read_store(tmp_path)


def test_a_store_of_other_values_is_found_out(engine: Engine, tmp_path: Path) -> None:
    """One side of every pair moved by a nat, the part named by its digest. Fails where the probe is
    off, looks at one side, or compares the store with itself."""
    for side in (0, 1):
        folder = tmp_path / str(side)
        log_probabilities(engine, folder)
        (part,) = folder.glob("*/part-*")
        tensors = load_file(part)
        tensors["logp"][:, side] += 1
        save_file(tensors, part)
        part.rename(
            part.with_name(f"part-{hashlib.sha256(part.read_bytes()).hexdigest()}.safetensors")
        )
        with pytest.raises(BadInput, match="not of this model"):
            log_probabilities(engine, folder)


# -- the loop, on this engine ---------------------------------------------------------------------

MORE = [
    EncodedPair(f"p{i}", [1, 5 + i, 9] * (1 + i % 3), [7, 10 + i, 2], [8 + i] * (1 + i % 4) + [2])
    for i in range(7)
]
TOKENS = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in MORE]
PLAN = plan_epochs(
    TOKENS, per_step=3, epochs=2, ranks=1, budget_tokens=30
)  # steps of 3, 3 and 1 pairs, twice


@pytest.fixture(scope="module")
def start(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that every run of the loop starts at, and their reference log-probs."""
    start_anew(engine)
    folder = tmp_path_factory.mktemp("start")
    engine.save_state(folder)
    return folder


def begin(engine: Engine, start: Path) -> None:
    """The starting weights, and an optimiser that has no state yet, as in a new process."""
    start_anew(engine)
    engine.load_state(start, 0)
    start_anew(engine)


def config_of(run_dir: Path, **run: object) -> DPOConfig:
    options = {"save_every": 2, "eval_every": 2, "keep": 9, "wandb": Wandb(mode="disabled"), **run}
    return DPOConfig(
        "model",
        Data(("rows",)),
        beta=0.5,
        hardware=Hardware(attention="sdpa"),
        run=Run(dir=str(run_dir), **options),
        optim=Optim(
            lr_peak=1e-2,
            warmup_fraction=0.3,
            epochs=2,
            pairs_per_step=3,
            grad_clip=CLIP,
            weight_decay=DECAY,
        ),
    )


def fitted(
    engine: Engine,
    start: Path,
    config: DPOConfig,
    *,
    objective: Objective | None = None,
    sampled: list[int] | None = None,
) -> Split:
    """Run the loop from the starting weights on, as a new process would; returns what it trained
    on."""
    begin(engine, start)
    engine.stop_requested = False
    frozen = reference.Reference(alone(engine, MORE).float())
    counts = {
        f"{side}_tokens": [len(getattr(p, f"{side}_ids")) for p in MORE]
        for side in ("prompt", "chosen", "rejected")
    }
    split = Split(
        PLAN,
        partial(collate_pairs, MORE),
        objective or train_dpo.dpo_objective(config, frozen),
        [p.id for p in MORE],
        TOKENS,
        [1] * 7,
        [1.0] * 7,
        "pairs",
        [1.0] * 7,
        {"model": "w"},
        counts,
        starts_at_reference=True,
    )
    evaluation = split._replace(plan=plan_pass(TOKENS, ranks=1, budget_tokens=30), ledger=None)

    def sample(step: int) -> dict[str, float]:
        sampled.append(step)
        return {"win_rate": 0.5}

    Path(config.run.dir).mkdir(exist_ok=True)
    fit(engine, config, split, evaluation, None if sampled is None else sample)
    return split


def exact(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Records without what a clock or the process tells."""
    return [
        {
            k: v
            for k, v in row.items()
            if k not in ("tokens_per_second", "step_seconds", "peak_memory_bytes")
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def whole(
    engine: Engine, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Tensor]]:
    """Six steps with checkpoints after 2, 4 and 6 of them: the run's folder, and the weights it
    ended with."""
    run = tmp_path_factory.mktemp("whole")
    fitted(engine, start, config_of(run))
    return run, masters(engine)


def test_records_are_means_over_the_pairs_of_their_step(
    whole: tuple[Path, dict[str, Tensor]],
) -> None:
    """Against the ledger, which has each pair by itself. Fails for a mean of means over
    micro-batches, a micro-batch or pair counted twice, a count or epoch that is not the plan's, or
    a rate of another step."""
    run, _ = whole
    train, visits = records(run), ledger(run)
    assert not {"stop", "flops", "units", "micro_batches", "update", "weight"} & set(train[0])
    assert max(len(step.ranks[0]) for step in PLAN.steps) > 1 and len(visits) == 14
    assert [r["step"] for r in train] == list(range(6)) and [r["pairs"] for r in train] == [
        3,
        3,
        1,
    ] * 2
    for record, step in zip(train, PLAN.steps):
        of_step = [v for v in visits if v["step"] == record["step"]]
        assert {v["id"] for v in of_step} == {MORE[i].id for i in step.examples()} and {
            v["epoch"] for v in of_step
        } == {step.epoch}
        for name in (
            "loss",
            "rewards/chosen",
            "rewards/rejected",
            "logps/chosen",
            "logps/rejected",
        ):
            assert record[name] == pytest.approx(
                sum(v[name] for v in of_step) / len(of_step), rel=1e-6, abs=1e-9
            )
        assert (
            record["tokens"] == sum(TOKENS[i] for i in step.examples())
            and record["epoch"] == step.epoch
        )
        assert record["packing_efficiency"] == pytest.approx(
            record["tokens"] / (len(step.ranks[0]) * 16384)
        )
    assert [r["learning_rate"] for r in train] == pytest.approx(
        [0, 5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3]
    )
    assert (
        train[1]["update_ratio"] > 1e-3
        and train[0]["update_ratio"] == 0
        and all("win_rate" not in r for r in train)
    )
    by_id = {p.id: p for p in MORE}
    for v in visits:
        pair = by_id[v["id"]]
        assert (v["prompt_tokens"], v["chosen_tokens"], v["rejected_tokens"]) == (
            len(pair.prompt_ids),
            len(pair.chosen_ids),
            len(pair.rejected_ids),
        )


def test_the_first_gradient_is_that_of_the_mean(
    whole: tuple[Path, dict[str, Tensor]], engine: Engine, start: Path
) -> None:
    """All pairs of step 0 in one micro-batch: the gradient's norm is the one that the loop recorded
    over several. Fails where each micro-batch is divided by its own pairs."""
    begin(engine, start)
    examples = PLAN.steps[0].examples()
    split_into = len(PLAN.steps[0].ranks[0])
    frozen = reference.Reference(alone(engine, MORE).float())
    loss_sum, _ = train_dpo.dpo_objective(config_of(start), frozen)(
        engine, collate_pairs(MORE, examples)
    )
    engine.backward(loss_sum / len(examples), last=True)
    assert split_into > 1 and engine.discard_gradient() == pytest.approx(
        records(whole[0])[0]["grad_norm"], rel=0.02
    )


def test_evaluation_is_of_all_pairs_after_its_updates(
    whole: tuple[Path, dict[str, Tensor]], engine: Engine, start: Path
) -> None:
    """The last record against the final weights, pair by pair, the first against the reference.
    Fails where evaluation leaves pairs out, adds up over evaluations, is filed under another step
    or epoch, or where the start has none."""
    run, _ = whole
    evaluated = records(run, "eval")
    assert [(r["step"], r["pairs"]) for r in evaluated] == [(0, 7), (2, 7), (4, 7), (6, 7)]
    assert [r["epoch"] for r in evaluated] == [0, PLAN.steps[2].epoch, PLAN.steps[4].epoch, 2]
    engine.load_state(run / "checkpoints" / "step-6", 6)
    after = alone(engine, MORE)
    begin(engine, start)
    reference_P2 = alone(engine, MORE)
    margin_P = 0.5 * (after - reference_P2) @ torch.tensor([1.0, -1.0])
    assert (evaluated[0]["loss"], evaluated[0]["rewards/margins"]) == pytest.approx(
        (math.log(2), 0), abs=2e-6
    )
    assert evaluated[0]["logps/chosen"] == pytest.approx(float(reference_P2[:, 0].mean()), rel=1e-5)
    assert evaluated[-1]["loss"] == pytest.approx(
        float(-torch.nn.functional.logsigmoid(margin_P).mean()), rel=0.03
    )
    assert evaluated[-1]["logps/chosen"] == pytest.approx(float(after[:, 0].mean()), rel=1e-2)


def test_a_run_goes_on_where_its_checkpoint_was(
    whole: tuple[Path, dict[str, Tensor]], engine: Engine, start: Path, tmp_path: Path
) -> None:
    """Cut back to four updates, with records and ledger parts beyond them: it ends as the whole
    run, to the bit, and the step before is not run again. Fails where weights, moments, Adam's
    count, the rate or the order of pairs start anew."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-6")
    shutil.copy(run / "pairs" / "step-6.parquet", run / "pairs" / "step-5.parquet")
    before = (run / "metrics.jsonl").read_text().splitlines()
    fitted(engine, start, config_of(run))
    assert (run / "metrics.jsonl").read_text().splitlines()[:7] == before[:7]
    assert '"step": 4, "split": "eval"' in before[6]
    for split in ("train", "eval"):
        assert exact(records(run, split)) == exact(records(whole[0], split))
    assert ledger(run) == ledger(whole[0])
    assert all(torch.equal(values, whole[1][name]) for name, values in masters(engine).items())
    fitted(engine, start, config_of(run))  # a finished run: nothing is left to do
    assert exact(records(run)) == exact(records(whole[0])) and ledger(run) == ledger(whole[0])


def test_a_record_of_several_steps_is_over_all_their_pairs(
    whole: tuple[Path, dict[str, Tensor]], engine: Engine, start: Path, tmp_path: Path
) -> None:
    """Every fifth step, or where a checkpoint is saved: means over all pairs since the record
    before, norm and rate of the step itself. Fails where pairs of a step weigh by its size, sums
    are kept, or a record spans a checkpoint."""
    fitted(engine, start, config_of(tmp_path, log_every=5, save_every=4))
    several, visits, each = records(tmp_path), ledger(whole[0]), records(whole[0])
    assert [(r["step"], r["pairs"]) for r in several] == [(0, 3), (3, 7), (5, 4)]
    for record, steps in zip(several, ((0,), (1, 2, 3), (4, 5))):
        losses = [v["loss"] for v in visits if v["step"] in steps]
        assert record["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        for name in ("grad_norm", "learning_rate", "epoch"):
            assert record[name] == each[steps[-1]][name]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step-4",
        "step-6",
    ]
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == [
        "step-4.parquet",
        "step-6.parquet",
    ]


def test_the_update_is_measured_where_a_record_is_written(
    whole: tuple[Path, dict[str, Tensor]],
    engine: Engine,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reads the whole optimizer state. Calls are counted over six steps, with records of steps
    0, 3 and 5, and of step 2 where a signal asks for it; each ratio is that of the run that records
    every step. Fails where a step without a record pays for it, or a record has none, or one of
    another step."""
    calls: list[float] = []
    measure = Engine.update_and_weight_sq_norms
    monkeypatch.setattr(
        Engine,
        "update_and_weight_sq_norms",
        lambda self, lr: [calls.append(lr), measure(self, lr)][1],
    )
    ratio = {r["step"]: r["update_ratio"] for r in records(whole[0])}
    rates = {r["step"]: r["learning_rate"] for r in records(whole[0])}

    def recorded(run: Path) -> list[int]:
        steps = [r["step"] for r in records(run)]
        assert {r["step"]: r["update_ratio"] for r in records(run)} == {s: ratio[s] for s in steps}
        assert calls == [rates[step] for step in steps]
        return steps

    fitted(engine, start, config_of(tmp_path / "run", log_every=3, save_every=50))
    assert recorded(tmp_path / "run") == [0, 3, 5]

    calls.clear()
    config = config_of(tmp_path / "stopped", log_every=3, save_every=50)
    begin(engine, start)
    frozen = reference.Reference(alone(engine, MORE).float())
    seen: list[int] = []

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        if torch.is_grad_enabled():  # not in an evaluation
            seen.append(len(batch.indices))
        policy.stop_requested = sum(seen) >= 7  # in step 2
        return train_dpo.dpo_objective(config, frozen)(policy, batch)

    with pytest.raises(Stopped):
        fitted(engine, start, config, objective=objective)
    assert recorded(tmp_path / "stopped") == [0, 2]


def test_the_policy_is_sampled_at_the_start_and_at_each_evaluation(
    engine: Engine, start: Path, tmp_path: Path
) -> None:
    """Fails where the answers at step 0, which later ones are compared with, are not given, or are
    given again by a run that goes on."""
    sampled: list[int] = []
    fitted(engine, start, config_of(tmp_path, eval_every=4), sampled=sampled)
    assert sampled == [0, 4, 6]
    assert [(r["step"], r["win_rate"]) for r in records(tmp_path, "eval")] == [
        (step, 0.5) for step in sampled
    ]
    shutil.rmtree(tmp_path / "checkpoints" / "step-6")
    fitted(engine, start, config_of(tmp_path, eval_every=4), sampled=sampled)
    assert sampled == [0, 4, 6, 6]


def test_a_signal_ends_the_step_and_saves(
    whole: tuple[Path, dict[str, Tensor]], engine: Engine, start: Path, tmp_path: Path
) -> None:
    """Asked during step 2: that step is finished, recorded and saved, and no other is begun;
    started again, the run ends as the whole one. Fails where the step is lost, or training goes
    on."""
    seen: list[int] = []
    config = config_of(tmp_path, log_every=50, save_every=50)

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        if torch.is_grad_enabled():  # not in an evaluation
            seen.append(len(batch.indices))
        policy.stop_requested = sum(seen) >= 7
        return train_dpo.dpo_objective(config, reference.Reference(reference_of_start))(
            policy, batch
        )

    begin(engine, start)
    reference_of_start = alone(engine, MORE).float()
    with pytest.raises(Stopped, match="after step 2"):
        fitted(engine, start, config, objective=objective)
    assert [r["step"] for r in records(tmp_path)] == [0, 2] and len(ledger(tmp_path)) == 7
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-3"
    fitted(engine, start, config)
    assert ledger(tmp_path) == ledger(whole[0]) and records(tmp_path)[-1]["step"] == 5
    assert all(torch.equal(values, whole[1][name]) for name, values in masters(engine).items())


def test_a_loss_that_is_not_finite_ends_the_run_unchanged(
    engine: Engine, start: Path, tmp_path: Path
) -> None:
    """One pair's loss is infinite, which no gradient shows: no weight changes, the pair is named,
    nothing is saved. Fails where training goes on from it, or all pairs of the step are blamed."""
    first = MORE[PLAN.steps[0].examples()[1]].id

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        chosen_P, rejected_P = response_logprobs(policy, batch)
        bad_P = torch.tensor([float("inf") if MORE[i].id == first else 0.0 for i in batch.indices])
        zero_P, logp_P = torch.zeros_like(chosen_P), chosen_P.detach()  # rewards as at a start
        stats = {
            "rewards/chosen": zero_P,
            "rewards/rejected": zero_P,
            "logps/chosen": logp_P,
            "logps/rejected": logp_P,
        }
        return (rejected_P - chosen_P + bad_P).sum(), {
            **stats,
            "loss": (rejected_P - chosen_P).detach() + bad_P,
        }

    begin(engine, start)
    before, config = masters(engine), config_of(tmp_path)
    config = replace(config, optim=replace(config.optim, warmup_fraction=0.0))  # no first rate of 0
    with pytest.raises(NonFiniteError, match=f"step 0: the loss is inf.*Its examples: {first}$"):
        fitted(engine, start, config, objective=objective)
    assert all(torch.equal(values, before[name]) for name, values in masters(engine).items())
    assert not (tmp_path / "checkpoints").exists() and records(tmp_path) == [
        {"step": 0, "split": "train", "loss": None, "alarms/non_finite": 1}
    ]


def test_another_run_is_not_gone_on_with(
    whole: tuple[Path, dict[str, Tensor]], engine: Engine, start: Path, tmp_path: Path
) -> None:
    """Another loss in the same folder is refused by name, and taken where that is asked for. Fails
    where it is trained over in silence, or `force` is not heard."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(BadInput, match=r"loss \(sigmoid then, hinge now\)") as error:
        fitted(engine, start, replace(config_of(run), loss="hinge"))
    assert "beta" not in str(error.value) and exact(records(run)) == exact(records(whole[0]))
    fitted(engine, start, replace(config_of(run, resume="force"), loss="hinge"))


def test_checkpoints_are_kept_and_the_newest_whole_one_is_taken(
    whole: tuple[Path, dict[str, Tensor]], engine: Engine, start: Path, tmp_path: Path
) -> None:
    """`run.keep` of them stay; a flipped bit, a missing file or no state: the one before. What a
    save that was cut off left is removed. Fails where a damaged one is loaded, the oldest is, or a
    checkpoint of a future that was not taken stays."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    folder = run / "checkpoints"

    def names() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    (folder / "part-8").mkdir()
    victim = next((folder / "step-6").glob("rank-0-*"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert (
        checkpoint.damaged_files(folder / "step-6", 0, 1) == [victim.name]
        and checkpoint.damaged_files(folder / "step-4", 0, 1) == []
    )
    identity = checkpoint.identity(config_of(run), PLAN, {"model": "w"})
    assert checkpoint.restore(engine, run, "auto", identity) == 4
    checkpoint.save(engine, run, 5, identity, keep=2)
    assert names() == ["latest", "step-4", "step-5"] and (folder / "latest").read_text() == "step-5"
    next((folder / "step-5").glob("rank-0-*")).unlink()
    assert checkpoint.restore(engine, run, "auto", identity) == 4
    (folder / "step-4" / "state.json").unlink()
    assert checkpoint.restore(engine, run, "auto", identity) == 0


def test_what_the_disk_refuses_is_bad_input(engine: Engine, tmp_path: Path) -> None:
    """A folder that can't be made names the checkpoint. Fails where an OSError ends as a traceback,
    or another rank would wait."""
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(BadInput, match="step-1 can't be written.*continues from the one before"):
        checkpoint.save(engine, tmp_path, 1, {}, keep=2)

    def missing() -> None:
        (tmp_path / "absent").read_bytes()

    with pytest.raises(BadInput, match="absent: No such file"):
        engine.on_all_ranks(missing)


# -- preflight, on this engine --------------------------------------------------------------------


def to_check(
    engine: Engine, start: Path, off: Tensor | float = 0.0, objective: Objective | None = None
) -> Split:
    """What a run would train on from the starting weights, its reference `off` by so many nats."""
    begin(engine, start)
    frozen = reference.Reference(alone(engine, MORE).float() + off)
    counts = {
        f"{side}_tokens": [len(getattr(p, f"{side}_ids")) for p in MORE]
        for side in ("prompt", "chosen", "rejected")
    }
    return Split(
        PLAN,
        partial(collate_pairs, MORE),
        objective or train_dpo.dpo_objective(config_of(start), frozen),
        [p.id for p in MORE],
        TOKENS,
        [1] * 7,
        [1.0] * 7,
        "pairs",
        [1.0] * 7,
        {},
        counts,
        starts_at_reference=True,
    )


def checked(
    engine: Engine,
    config: DPOConfig,
    split: Split,
    kept: dict[str, bytes],
    examples: Sequence[EncodedPair] = MORE,
    inverted: Sequence[str] = (),
) -> None:
    """Both halves of preflight, as a training script calls them."""
    reports = {"train": {"inverted": list(inverted), "scored": 3}}
    found = preflight.check_inputs(engine, config, examples, split, reports, (1, 2))
    preflight.check_model(
        engine,
        config,
        examples,
        split,
        found,
        unpacked=lambda i: collate_pairs(MORE, [i], prefix_sharing=False),
        write_file=kept.__setitem__,
    )


def test_preflight_checks_all_and_keeps_what_it_finds(
    engine: Engine, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is as it should be. Fails where a check is not made, its finding is lost, the
    model is left in evaluation, or a weight or moment changed by what was only looked at."""
    config, split, kept, said = config_of(tmp_path), to_check(engine, start), {}, []
    before = masters(engine)
    monkeypatch.setattr(engine, "log", said.append)
    checked(engine, config, split, kept)
    found = json.loads(kept.pop("preflight.json"))
    names = "weights labels ids plan disk memory packed start gradient".split()
    assert not kept and list(found) == names
    assert found["labels"] == {"scored": 3} and found["ids"] == {"examples": 7}
    assert found["plan"]["longest_tokens"] == max(TOKENS) and found["packed"]["noise"] > 0
    assert 0 <= found["start"]["difference"] < 1 and found["gradient"]["difference"] == 0
    assert found["start"]["loss"] == pytest.approx(math.log(2), abs=0.01)
    lines = said[-1].splitlines()
    assert lines[0] == "preflight passed:" and "3 pairs have scores" in said[-1]
    assert {line.strip().partition(":")[0] for line in lines[1:]} == set(found)
    assert engine.policy.training and not engine.engine.optimizer.optimizer.state
    assert all(torch.equal(values, before[name]) for name, values in masters(engine).items())


def test_preflight_names_the_way_round_it(engine: Engine, start: Path, tmp_path: Path) -> None:
    """Each kind of fault, of rows, plan and machine; where it is off, nothing is looked at. Fails
    where a check is called with something else than the run's own values, or the message leaves the
    user without a way on."""
    config, split, kept = config_of(tmp_path), to_check(engine, start), {}
    cut = [MORE[0]._replace(rejected_ids=[8] * 20), *MORE[1:]]
    faults: list[tuple[str, dict[str, object]]] = [
        ("data.train: the chosen answer is rated below the rejected", {"inverted": ["rows:3"]}),
        ("example 0 .p0. has an answer without EOS that was not cut", {"examples": cut}),
        ("holds .* is what the plan counts", {"split": split._replace(units=[2] * 7)}),
    ]
    for message, changed in faults:
        given = {"config": config, "split": split, "kept": kept, **changed}
        with pytest.raises(
            BadInput, match=f"^preflight: .*{message}.*; run.preflight=false trains"
        ):
            checked(engine, **given)
        off = replace(config, run=replace(config.run, preflight=False))
        checked(engine, **{**given, "config": off})
    assert not kept
    for most in (24, 23):  # 3 + 20 tokens: it was cut where they are the most
        of = replace(config, data=replace(config.data, max_tokens=most, max_prompt_tokens=3))
        with pytest.raises(BadInput) if most == 24 else contextlib.nullcontext():
            checked(engine, of, split, kept, examples=cut)
    assert set(kept) == {"preflight.json"}


@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
def test_a_reference_that_is_not_the_starts_is_seen(
    side: int, engine: Engine, start: Path, tmp_path: Path
) -> None:
    """One side of one pair of the second row is off by half and by one and a half of what rounding
    may make of a response of so many tokens: 3 or 5. Fails where a side is left out, beta scales
    the nats away, another side's tokens count, a NaN passes, or a row is not looked at."""
    count = len((MORE[3].chosen_ids, MORE[3].rejected_ids)[side])
    off, config = torch.zeros(7, 2), config_of(tmp_path)
    off[3, side] = response_tolerance_nats("bfloat16", count)
    rows = [collate_pairs(MORE, indices) for indices in ([0, 1], [2, 3])]
    same = preflight.initial_difference(engine, config, to_check(engine, start), rows)
    assert same["difference"] < 0.1
    half = preflight.initial_difference(engine, config, to_check(engine, start, off / 2), rows)
    assert half["difference"] == pytest.approx(0.5, abs=0.1)
    for factor in (1.5, -1.5, math.nan):
        with pytest.raises(
            BadInput, match="policy and reference differ at step 0 by .*delete it from"
        ):
            preflight.initial_difference(
                engine, config, to_check(engine, start, off * factor), rows
            )


def test_texts_have_no_reference_to_differ_from(
    engine: Engine, start: Path, tmp_path: Path
) -> None:
    """An objective without rewards; its loss is that of the first row, of each unit. Fails where
    SFT can't be checked, or reports a sum."""

    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        return torch.tensor(6.0 * batch.units if batch.units == 3 else 1.0), {}

    split = to_check(engine, start, objective=objective)._replace(starts_at_reference=False)
    rows = [collate_pairs(MORE, indices) for indices in ([0, 1, 2], [3])]
    found = preflight.initial_difference(engine, config_of(tmp_path), split, rows)
    assert found == {"difference": 0.0, "loss": 6.0}


class OfTwo:
    """One rank of two that keep their gradients to themselves: what a forgotten all-reduce is."""

    world_size = data_world_size = 2

    def __init__(self, engine: Engine, rank: int) -> None:
        self.engine, self.data_rank = engine, rank
        self.hardware, self.device, self.place = engine.hardware, engine.device, engine.place
        self.brought: list[float] = []

    def __call__(self, batch: PackedBatch) -> Tensor:
        return self.engine(batch)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.brought.append(float(loss.detach()))
        self.engine.backward(loss, last=last)

    def discard_gradient(self) -> float:
        return self.engine.discard_gradient()


def test_gradients_that_are_not_added_up_are_seen(engine: Engine) -> None:
    """On each rank, with the gradients of a real model: half the loss and the whole one, or none.
    Fails where both are the same there, or where what the ranks bring together is not. That it is
    nothing where they are added up: tests/verify/test_verify.py, on two real ranks."""
    row, ranks = collate_pairs(PAIRS, range(4)), [OfTwo(engine, 0), OfTwo(engine, 1)]
    assert preflight.gradient_difference(engine, row) == 0
    for rank in ranks:
        assert preflight.gradient_difference(rank, row) == pytest.approx(1.0, rel=1e-3)
    equal, whole = (sum(rank.brought[at] for rank in ranks) for at in (0, 1))
    assert equal == pytest.approx(whole) and whole < 0 and ranks[0].brought != ranks[1].brought
