"""The store of reference log-probs: its address, its parts, and what is computed again when it is
read."""

import hashlib
import math
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from tiny import tiny_model

import train_dpo
from zephyr import reference
from zephyr.chat import EncodedPair
from zephyr.config import BadInput, Data, DPOConfig, Hardware, Reference
from zephyr.model.load import fill_parameter, load_policy, replace_weights
from zephyr.training.initial_rewards import require_zero_rewards
from zephyr.training.metrics import Ledger
from zephyr.training.tolerance import response_tolerance_nats


def engine(**hardware: object) -> SimpleNamespace:
    return SimpleNamespace(
        hardware=Hardware(**{"dtype": "float32", "attention": "sdpa", **hardware}),
        policy=SimpleNamespace(quantize="none"),
        device=torch.device("cpu"),
        data_world_size=1,
        data_rank=0,
        place=lambda batch: batch,
        broadcast=lambda value: value,
        all_gather=lambda value: [value],
    )


def test_an_address_holds_all_that_decides_a_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights, dtype, attention, device, versions and our own code. Fails where one is left out,
    alone or with another, and a store of other numerics would be trained against; and where the
    number of tokens of a micro-batch is in it."""
    base = reference.numerics(engine(), "w")
    others = [
        reference.numerics(engine(dtype="bfloat16"), "w"),
        reference.numerics(engine(attention="torch_varlen"), "w"),
        reference.numerics(engine(dtype="bfloat16", attention="torch_varlen"), "w"),
        reference.numerics(engine(), "other"),
    ]
    gpu = engine()
    gpu.device = torch.device("cuda")
    others.append(reference.numerics(gpu, "w"))
    with monkeypatch.context() as patch:
        patch.setattr(reference, "version", lambda name: f"another {name}")
        others += [
            reference.numerics(engine(), "w"),
            reference.numerics(engine(attention="flash_attn"), "w"),
        ]
        assert others[-1]["flash-attn"] == "another flash-attn"
        others += [reference.numerics(engine(fused=fused), "w") for fused in ("triton", "liger")]
        assert others[-2]["triton"] == others[-1]["triton"] == "another triton"
        assert others[-1]["liger-kernel"] == "another liger-kernel"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "3.0")
        others.append(reference.numerics(engine(), "w"))
    modules = Path(reference.model.__file__).parent
    for changed in ("attention", "logprobs", "policy", "fused", "triton_kernels", "nf4", "export"):
        copy = Path(shutil.copytree(modules, tmp_path / changed))
        (copy / f"{changed}.py").write_text("# other code")
        with monkeypatch.context() as patch:
            patch.setattr(reference.model, "__file__", str(copy / "__init__.py"))
            patch.setattr(reference, "version", lambda name: "1")
            fused = {"fused": "triton"} if changed in ("fused", "triton_kernels") else {}
            chosen = engine(**fused)
            chosen.policy.quantize = "nf4" if changed == "nf4" else "none"
            others.append(reference.numerics(chosen, "w"))
            unfused = reference.numerics(engine(), "w")
            # What writes the export computes no log-prob, nor do kernels that are not chosen.
            if fused or changed in ("nf4", "export"):
                assert unfused == {**base, "transformers": "1"}
    others.pop()
    assert len({tuple(sorted(of.items())) for of in [base, *others]}) == 1 + len(others) == 17
    assert "fused" not in base
    assert reference.numerics(engine(tokens_per_micro_batch=7, prefix_sharing=False), "w") == base


def part(folder: Path, content: bytes) -> None:
    (folder / f"part-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "content,complaint",
    [
        (b"no tensors", "is not a part of a store"),
        (save({"pair": np.zeros((1, 32), np.uint8)}), "is not a part of a store"),
        (
            save({"pair": np.zeros((2, 32), np.uint8), "logp": np.zeros((1, 2), np.float32)}),
            r"expected \[E, 32\] and finite \[E, 2\]",
        ),
        (
            save({"pair": np.zeros((1, 31), np.uint8), "logp": np.zeros((1, 2), np.float32)}),
            r"expected \[E, 32\] and finite \[E, 2\]",
        ),
        (
            save(
                {"pair": np.zeros((1, 32), np.uint8), "logp": np.full((1, 2), np.nan, np.float32)}
            ),
            "are not finite",
        ),
    ],
)
def test_a_part_of_the_right_name_and_other_contents(
    content: bytes, complaint: str, tmp_path: Path
) -> None:
    """Fails for a traceback, for entries that are left out in silence, or a NaN that is trained
    against."""
    part(tmp_path, save({"pair": np.ones((1, 32), np.uint8), "logp": np.ones((1, 2), np.float32)}))
    assert reference.read_store(tmp_path) == {b"\1" * 32: (1.0, 1.0)}
    part(tmp_path, content)
    with pytest.raises(BadInput, match=complaint):
        reference.read_store(tmp_path)


def test_a_part_with_a_flipped_bit(finished: Path, tmp_path: Path) -> None:
    """Of a real run's store. Fails where damage is read."""
    (whole,) = (finished / "reference").glob("*/part-*.safetensors")
    assert len(reference.read_store(whole.parent)) == 20
    content = bytearray(whole.read_bytes())
    content[-1] ^= 1
    (tmp_path / whole.name).write_bytes(content)
    with pytest.raises(BadInput, match="is damaged"):
        reference.read_store(tmp_path)


def test_a_probe_is_of_all_lengths() -> None:
    """One of each eighth by length, every one as likely as another. Fails where only short ones are
    drawn, or the last never."""
    lengths = random.Random(0).sample(range(1000), 83)
    eighths, drawn = [math.floor(k * 83 / 8) for k in range(9)], Counter()
    for seed in range(400):
        chosen = reference.sample_over_lengths(range(83), lengths, random.Random(seed))
        ranks = [sorted(lengths).index(lengths[i]) for i in chosen]
        assert all(low <= rank < high for low, rank, high in zip(eighths, ranks, eighths[1:]))
        drawn.update(chosen)
    assert set(drawn) == set(range(83))
    assert sorted(reference.sample_over_lengths([4, 9, 2], lengths, random.Random(0))) == [2, 4, 9]


PAIRS = [EncodedPair(f"p{i}", [1], [5] * (1 + i % 7), [6] * 3) for i in range(60)]


def test_a_probe_is_another_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three changed pairs of 60 are missed by some draws and found by others; unchanged ones always
    pass. Fails where the same pairs are drawn for a store of one size, so that whoever changed the
    others is never found."""
    true = {i: (-10.0 - i, -20.0 - i) for i in range(60)}
    monkeypatch.setattr(
        reference,
        "forward_pass",
        lambda _, micro, __: {i: true[i] for indices in micro for i in indices},
    )
    keys, lengths = [bytes([i]) for i in range(60)], [sum(map(len, pair[1:4])) for pair in PAIRS]

    def found(known: dict[bytes, tuple[float, float]]) -> bool:
        try:
            reference.verify_sample(engine(), PAIRS, keys, known, None, lengths, Path("store"))
        except BadInput as error:
            assert "the store is not of this model" in str(error) and any(
                f"({id})" in str(error) for id in ("p3", "p7", "p31")
            )
            return True
        return False

    whole = {key: true[i] for i, key in enumerate(keys)}
    within = response_tolerance_nats("float32", 3) * 0.9
    assert not any(found({**whole, keys[3]: (true[3][0], true[3][1] + within)}) for _ in range(30))
    changed = {**whole, **{keys[i]: (true[i][0], true[i][1] + 1.0) for i in (3, 7, 31)}}
    assert not any(found(whole) for _ in range(5)) and {found(changed) for _ in range(60)} == {
        True,
        False,
    }


def started(
    *of_pairs: tuple[float, float, float], initial_loss: float | None = math.log(2)
) -> None:
    """`require_zero_rewards` of a step whose pairs have these rewards and losses.

    Each response has 100 tokens."""
    counts = {name: [100] * len(of_pairs) for name in ("chosen_tokens", "rejected_tokens")}
    ledger = Ledger(Path("nowhere"), list("abcdefgh"), counts, 0, writes=False)
    chosen_P, rejected_P, loss_P = torch.tensor(of_pairs).unbind(-1)
    indices = tuple(range(len(of_pairs)))
    ledger.add(
        0,
        0.0,
        indices,
        {"rewards/chosen": chosen_P, "rewards/rejected": rejected_P, "loss": loss_P},
    )
    config = SimpleNamespace(
        beta=0.1, hardware=Hardware(dtype="float32"), reference=SimpleNamespace(dir="store")
    )
    require_zero_rewards(engine(), ledger, config, indices, initial_loss)


LN2 = math.log(2)


@pytest.mark.parametrize(
    "wrong",
    [
        (0.0012, 0.0, LN2),
        (0.0, -0.0012, LN2),
        (math.nan, 0.0, math.nan),
        (0.0, 0.0, 0.6),
        (1.0, 1.0, LN2),
    ],
)
def test_every_pair_of_the_first_step_is_at_its_reference(
    wrong: tuple[float, float, float],
) -> None:
    """Two pairs within rounding, one not, and it alone is named. Fails where a mean hides it, where
    a side is not looked at, where a NaN passes, where equal rewards of both sides pass, or where a
    loss that is not ln 2 does."""
    right = [(0.0009, -0.0009, LN2 - 0.0009), (0.0, 0.0, LN2)]
    started(*right)
    started((0.0, 0.0, 1.0), initial_loss=None)  # another loss than sigmoid
    with pytest.raises(
        BadInput,
        match=r"the rewards of 1 of 3 pairs are not 0: c \(rewards .*; the reference store",
    ) as error:
        started(*right, wrong)
    assert "a (" not in str(error.value) and "b (" not in str(error.value)


def test_a_nan_reward_is_found_without_an_initial_loss() -> None:
    """Fails where a NaN reward passes because no comparison with it is true."""
    with pytest.raises(BadInput, match=r"the rewards of 1 of 1 pairs are not 0: a \(rewards"):
        started((math.nan, 0.0, 1.0), initial_loss=None)


@pytest.mark.parametrize("side", [0, 1])
def test_a_shift_of_all_pairs_is_no_rounding(side: int) -> None:
    """Three rewards each within rounding, all the same way, are refused; with one the other way
    they pass; many that are all as far as one may be are refused whatever their signs. Fails where
    each pair is looked at by itself alone: a store shifted by less than a response's rounding would
    be trained against."""

    def rewards(value: float) -> tuple[float, float, float]:
        return (value, 0.0, LN2) if side == 0 else (0.0, value, LN2)

    started(rewards(0.0006), rewards(0.0006), rewards(-0.0006))
    with pytest.raises(
        BadInput,
        match=rf"the rewards of 3 of 3 pairs are not 0: rewards/{('chosen', 'rejected')[side]} a",
    ):
        started(*[rewards(0.0006)] * 3)
    with pytest.raises(BadInput, match="the rewards of 8 of 8 pairs are not 0"):
        started(*[rewards(0.0009), rewards(-0.0009)] * 4)


def test_another_reference_takes_the_policys_place_whole(tiny: Path, tmp_path: Path) -> None:
    """A loaded decoder with the weights of another folder is that other model, to the bit. Fails
    where a tensor, as of a tied or a fused layer, keeps its old values."""
    other = tiny_model(tmp_path / "other", seed=5)
    policy, expected = load_policy(tiny), load_policy(other)
    assert not torch.equal(policy.lm.lm_head.weight, expected.lm.lm_head.weight)
    replace_weights(policy.lm, other, fill_parameter)
    ours, theirs = dict(policy.lm.named_parameters()), dict(expected.lm.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_reference_that_cannot_serve_is_named(tiny: Path, tmp_path: Path) -> None:
    """Another architecture, a config key that changes log-probs and no tensor, and a loss without
    a reference: each with the key or the folder."""
    policy = load_policy(tiny)
    with pytest.raises(BadInput, match="its config.json has .* expected one architecture"):
        replace_weights(policy.lm, tiny_model(tmp_path / "qwen", family="qwen3"), fill_parameter)
    bent = tiny_model(tmp_path / "bent")
    text = (bent / "config.json").read_text()
    assert '"rms_norm_eps": 1e-06' in text
    (bent / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.1'))
    with pytest.raises(BadInput, match="has rms_norm_eps 0.1, the policy's has 1e-06"):
        replace_weights(policy.lm, bent, fill_parameter)
    config = DPOConfig(
        str(tiny), Data(("rows.jsonl",)), loss="simpo", reference=Reference(model=str(tiny))
    )
    with pytest.raises(BadInput, match="reference.model: expected null, got .* simpo has no"):
        train_dpo.check(config)
