"""The engine of one rank, in this process: precision, clipping of nothing, and an update that is not made."""
import math
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from processes import ROOT
from zephyr.chat import EncodedPair
from zephyr.config import BadInput, ConfigError, Hardware, Optim
from zephyr.model.load import load_policy
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import PackedBatch, collate_pairs, plan_pass
from zephyr.training.engine import Engine, read_deepspeed
from zephyr.training.loop import Split, Stats, reduced, run_step
from zephyr.verify.preflight import packed_difference, require_packed

OURS = str(ROOT / "zephyr") + "/"
PAIRS = [EncodedPair(str(i), [1, 5 + i, 9], [7, 2], [8 + i, 3, 2]) for i in range(4)]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    """A bfloat16 policy under ZeRO-3 with every parameter partitioned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = Engine(Hardware(attention="sdpa", deepspeed="configs/deepspeed/cpu.json"), 0)
    made.adopt(partial(load_policy, tiny, dtype=torch.bfloat16), Optim(grad_clip=0.5))
    yield made
    made.close()


def test_rotary_frequencies_stay_float32(engine: Engine, tiny: Path) -> None:
    """They equal those of a plain model. Fails where DeepSpeed rounds them to bfloat16, which shifts every position's angle."""
    plain = load_policy(tiny, dtype=torch.bfloat16)
    pairs = list(zip(engine.policy.named_buffers(), plain.named_buffers()))
    assert pairs and all(a.dtype == torch.float32 and torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_master_weights_and_gradients_are_float32(engine: Engine) -> None:
    """At a rate of 5e-7 a bfloat16 weight never changes. Fails where the optimiser, or the accumulation, runs in the model's
    dtype, DeepSpeed's default."""
    assert all(p.dtype == torch.bfloat16 for p in engine.policy.parameters())
    assert all(p.dtype == torch.float32 for p in engine.engine.optimizer.fp32_partitioned_groups_flat)
    assert engine.engine.optimizer.gradient_accumulation_dtype == torch.float32
    assert engine.engine.gradient_clipping() == 0.5


def test_parameters_come_back_as_they_were_read(engine: Engine, tiny: Path) -> None:
    """Fails where a gather returns a shard, another order, or a tied copy."""
    plain = dict(load_policy(tiny, dtype=torch.bfloat16).lm.named_parameters())
    gathered = dict(engine.full_parameters())
    assert list(gathered) == list(plain) == [name for name, _ in engine.parameter_bytes()]
    assert all(torch.equal(gathered[name], plain[name]) for name in plain)
    assert [size for _, size in engine.parameter_bytes()] == [p.nbytes for p in plain.values()]


def test_a_gradient_that_is_not_finite_changes_nothing(engine: Engine) -> None:
    """The loss is finite, its gradient overflows. Fails where the update is made and the model is lost; and, as a control,
    where a finite step does not change it."""
    before = {name: p.clone() for name, p in engine.full_parameters()}
    batch = collate_pairs(PAIRS, range(4))
    chosen_P, rejected_P = response_logprobs(engine, batch)
    difference = chosen_P.sum() - rejected_P.sum()
    engine.backward((difference - difference.detach()) * 1e38, last=True)
    assert engine.step(1e-3) == float("inf")
    assert all(torch.equal(p, before[name]) for name, p in engine.full_parameters())
    chosen_P, _ = response_logprobs(engine, batch)
    engine.backward(chosen_P.mean(), last=True)
    assert 0 < engine.step(1e-2) < 1e3
    assert not all(torch.equal(p, before[name]) for name, p in engine.full_parameters())


def test_a_discarded_gradient_changes_nothing(engine: Engine) -> None:
    """Its norm is that of the step that would have been made; weights stay, Adam starts anew. Fails where preflight's gradients
    leave a trace in the run."""
    batch = collate_pairs(PAIRS, range(4))
    before = [flat.clone() for flat in engine.engine.optimizer.fp32_partitioned_groups_flat]
    engine.backward(engine(batch).sum(), last=True)
    norm = engine.discard_gradient()
    assert all(torch.equal(a, b) for a, b in zip(before, engine.engine.optimizer.fp32_partitioned_groups_flat))
    assert not engine.engine.optimizer.optimizer.state
    engine.backward(engine(batch).sum(), last=True)
    assert engine.step(0.0) == norm > 0


def test_update_and_weight_are_those_of_the_weights(engine: Engine) -> None:
    """Against weights before and after, at the first step and a later one. Fails where a moment is not unbiased, or padding or
    a group is left out."""
    batch = collate_pairs(PAIRS, range(4))
    engine.engine.optimizer.optimizer.state.clear()
    for lr in (1e-4, 3e-4):
        before = torch.cat([flat.detach().clone() for flat in engine.engine.optimizer.fp32_partitioned_groups_flat])
        engine.backward(engine(batch).mean(), last=True)
        engine.step(lr)
        after = torch.cat([flat.detach() for flat in engine.engine.optimizer.fp32_partitioned_groups_flat])
        update, weight = engine.update_and_weight(lr).sqrt().tolist()
        assert update == pytest.approx(float((after - before).norm()), rel=1e-3) and weight == pytest.approx(float(after.norm()), rel=1e-6)


@pytest.mark.parametrize("content,message", [
    ('{"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}}', "hardware.dtype decides"),
    ('{"zero_optimization": {"stage": 3}, "optimizer": {}}', "optim decides"), ('{"zero_optimization": {"stage": 2}}', "stage 3"),
    ("{}", "stage 3"), ("{", "not JSON"), ("[]", "stage 3")])
def test_deepspeed_json_holds_only_its_own(content: str, message: str, tmp_path: Path) -> None:
    """Fails where the JSON could quietly override the YAML's precision, clipping or batch."""
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_deepspeed(str(tmp_path / "d.json"))
    with pytest.raises(ConfigError, match="no such file"):
        read_deepspeed(str(tmp_path / "nowhere.json"))


def test_packed_difference_sees_a_leak(engine: Engine) -> None:
    """Nothing but rounding for a right row; nats where the row's positions are wrong. Fails where preflight compares a row
    with itself."""
    from dataclasses import replace
    pairs = [EncodedPair(str(i), [1, 5 + i, *range(20, 40), 9], [*range(40, 90), 7, 2], [8 + i, *range(90, 120), 2]) for i in range(4)]
    row, alone = collate_pairs(pairs, range(4)), [collate_pairs(pairs, [i], prefix_sharing=False) for i in range(4)]
    right = packed_difference(engine, row, alone)
    assert 0 < right.noise < 0.02 and require_packed("bfloat16", [right])["difference"] == right.token
    wrong = packed_difference(engine, replace(row, positions_N=torch.arange(len(row.tokens_N))), alone)
    assert wrong.noise == right.noise
    with pytest.raises(BadInput, match="packing changes the log-prob of a token of example"):
        require_packed("bfloat16", [right, wrong])
    with pytest.raises(BadInput, match="packing changes the log-probs of a response's tokens"):
        require_packed("bfloat16", [wrong._replace(token=0.0)])


class Leaking:
    """An engine whose packed rows, not its single examples, have the token `at` of all scored ones
    `nats` too likely."""

    def __init__(self, engine: Engine, at: int, nats: float) -> None:
        self.engine, self.device, self.at, self.nats = engine, engine.device, at, nats

    def train(self, mode: bool = True) -> None:
        self.engine.train(mode)

    def __call__(self, batch: PackedBatch) -> Tensor:
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
    row, alone = collate_pairs(pairs, range(3)), [collate_pairs(pairs, [i], prefix_sharing=False) for i in range(3)]
    with torch.no_grad():
        size = -float(engine(row).split(row.response_tokens_R.tolist())[2].sum())
    right = packed_difference(engine, row, alone)
    require_packed("bfloat16", [right])
    found = packed_difference(Leaking(engine, 4 + 150, 0.004 * size), row, alone)   # two chosen responses of two tokens before it
    with pytest.raises(BadInput, match="packing changes the log-prob of a token of example 2 by"):
        require_packed("bfloat16", [right, found])
    with pytest.raises(BadInput, match="example 2 by inf"):
        require_packed("bfloat16", [packed_difference(Leaking(engine, 4 + 150, math.nan), row, alone)])
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
    """Names the files of this package and of DeepSpeed from which a tensor's value was brought to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[str] = []

    def note(self) -> None:
        names = [frame.filename for frame in traceback.extract_stack()]
        frames = [name for name in names if name.startswith(OURS) or "/deepspeed/" in name]
        self.of.append(frames[-1])

    def __torch_dispatch__(self, function: object, types: object, args: tuple[object, ...] = (), kwargs: object = None) -> object:
        if "_local_scalar_dense" in str(function):
            self.note()
        return function(*args, **(kwargs or {}))


def test_a_step_reads_its_values_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read makes the host wait for a GPU: two micro-batches, the update and all sums need one of ours, and one of DeepSpeed's for
    the norm. Fails where a loss, a norm or a counter is read for itself."""
    def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        chosen_P, rejected_P = response_logprobs(policy, batch)
        return (rejected_P - chosen_P).sum(), {"logps/chosen": chosen_P.detach(), "logps/rejected": rejected_P.detach()}
    plan = plan_pass([8] * 4, ranks=1, budget_tokens=16)
    split = Split(plan, partial(collate_pairs, PAIRS), objective, list("abcd"), [8] * 4, [1] * 4, "pairs", [1.0] * 4, {})
    reads, tolist = Reads(), Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: [reads.note(), tolist(self)][1])
    with reads:
        totals = run_step(engine, split, 0, None)
        grad_norm = engine.step(1e-4)
        totals.of |= dict(zip(("update", "weight"), engine.update_and_weight(1e-4)))
        of_step = reduced(engine, split, 0, totals, grad_norm)
    assert of_step["grad_norm"] > 0 and of_step["update"] > 0 and len(plan.steps[0].ranks[0]) == 2
    assert sorted(Path(name).name for name in reads.of if name.startswith(OURS)) == ["loop.py"], reads.of
    assert len(reads.of) <= 3, reads.of
