"""Training as it runs (packed, shared prefixes, ZeRO-3, ranks) equals plain padded PyTorch, metric
by metric."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import oracle
import pytest
import yaml
from closed_forms import CLOSED_FORMS, closed_form
from forkserver import ForkServer
from tiny import SENTENCES, tiny_model

from zephyr.chat import encode_messages, encode_pair
from zephyr.data.tokenizer import load_tokenizer
from zephyr.losses import LOSSES

Launch = Callable[..., object]  # the fixture of conftest.py
ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
LONGEST = 96  # data.max_tokens: some rows are cut
SMALL = 256  # tokens: two to four micro-batches a step
ABOUT_SPEED = {
    "tokens_per_second",
    "packing_efficiency",
    "step_seconds",
    "peak_memory_bytes",
    "mfu",
}
LR_PEAK, CLIPS, OFF = 5e-4, 1.0, 0.0  # 0: no clipping


class Case(NamedTuple):
    """A way to spread one and the same mathematics over the machine, and settings of it that are
    nobody's default.

    0 ranks: a fork of one process that has all imports done, which costs a third of a process of
    its own."""

    ranks: int
    tokens_per_micro_batch: int
    activation_checkpointing: bool | str
    family: str = "mistral"
    tied: bool = False
    sliding_window: int | None = None
    schedule: str = "linear"
    grad_clip: float = CLIPS
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    beta: float = 0.5
    weight_decay: float = 0.1
    adam_betas: tuple[float, float] = (0.8, 0.95)
    dtype: str = "float32"
    epochs: int = 2
    adapter: dict[str, object] | None = None
    sft_weight: float | None = None  # the loss's own
    weighting: str = "none"
    weights: bool = False  # whether the rows have weights
    optimizer: str = "adamw"
    encoding: str = "zephyr"
    truncation: str = "keep_end"
    packing: str = "best_fit"
    sequence_parallel: int = 1


SMOOTHED = {name: 0.1 for name, form in CLOSED_FORMS.items() if form.smoothing != "refused"}
DPO_CASES = [
    Case(0, 8192, False, sliding_window=24, label_smoothing=0.1),
    Case(0, SMALL, "mlp", sliding_window=24, grad_clip=OFF, loss="ipo", dtype="bfloat16"),
    Case(
        2,
        SMALL,
        "mlp",
        family="llama",
        schedule="cosine",
        loss="sigmoid_norm",
        label_smoothing=0.2,
        encoding="handbook_a",
        truncation="trl_0.7",
    ),
    Case(
        2,
        8192,
        "elementwise",
        family="qwen3",
        tied=True,
        dtype="bfloat16",
        weight_decay=0.0,
        adam_betas=(0.9, 0.999),
    ),
]
RMSPROP = {"optimizer": "rmsprop", "weight_decay": 0.0}
OF_B = {"encoding": "handbook_b", "truncation": "trl_0.7"}
DPO_CASES += [Case(0, SMALL, False, epochs=1, **RMSPROP, **OF_B)]
# The other losses by forks of half as many steps, one dtype each, but for those of LATER; the long
# run has what is left, and all on two ranks. dpop in float32 alone: rounding of bfloat16 turns its
# penalty on and off while responses are near their reference.
LATER = ("dpop", "orpo", "cpo", "hinge", "apo_down", "nca_pair")
OF_A_LOSS = {
    (loss, dtype): Case(
        0,
        SMALL,
        False,
        loss=loss,
        label_smoothing=SMOOTHED.get(loss, 0.0),
        beta=0.3,
        dtype=dtype,
        epochs=1,
    )
    for loss in CLOSED_FORMS
    for dtype in ("float32", "bfloat16")
    if (loss, dtype) != ("dpop", "bfloat16")
}
EVERYTHING = {"sft_weight": 0.4, "weighting": "wpo", "weights": True}
traced = {case.loss for case in DPO_CASES} | {"simpo", *LATER}
REST = [loss for loss in CLOSED_FORMS if loss not in traced]
DPO_CASES += [OF_A_LOSS[loss, ("float32", "bfloat16")[i % 2]] for i, loss in enumerate(REST)]
DPO_CASES += [OF_A_LOSS["simpo", "float32"]._replace(**EVERYTHING)]
LONG_CASES = [case for case in OF_A_LOSS.values() if case not in DPO_CASES]
LONG_CASES += [
    OF_A_LOSS[loss, ("bfloat16", "float32")[(i + (loss == "dpop")) % 2]]._replace(ranks=2, epochs=2)
    for i, loss in enumerate(CLOSED_FORMS)
]
LONG_CASES += [
    OF_A_LOSS[loss, ("float32", "bfloat16")[i % 2 * (loss != "dpop")]]._replace(
        ranks=2, **EVERYTHING
    )
    for i, loss in enumerate(CLOSED_FORMS)
]
SFT_CASES = [
    Case(1, LONGEST, False, schedule="cosine"),
    Case(2, SMALL, True, tied=True, sliding_window=24, dtype="bfloat16"),
]
# Ranks that compute a row together: 4 query heads are divided, 2 key heads on 4 ranks are copied.
TOGETHER = [
    Case(
        ranks,
        budget,
        checkpointing,
        sequence_parallel=size,
        sliding_window=window,
        label_smoothing=0.1,
        epochs=1,
    )
    for ranks, size, budget, checkpointing, window in (
        (2, 2, SMALL, True, 24),
        (4, 2, SMALL, "elementwise", None),
        (4, 4, 8192, "mlp", 24),
        (4, 4, SMALL, False, None),
    )
]
# Adapters beside frozen weights, against peft's own model around Hugging Face's.
LORA, NF4 = {"r": 4, "alpha": 32}, {"r": 4, "alpha": 8, "quantize": "nf4"}
DPO_CASES += [Case(2, SMALL, "elementwise", "qwen3", adapter=LORA, epochs=1, sequence_parallel=2)]
LONG_CASES += [
    Case(
        ranks,
        SMALL,
        checkpointing,
        family=family,
        adapter=adapter,
        sliding_window=window,
        label_smoothing=0.1,
    )
    for ranks, checkpointing, family, adapter, window in (
        (1, False, "mistral", LORA, 24),
        (2, True, "mistral", NF4, 24),
        (2, "mlp", "mistral", {"r": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}, None),
        (1, "elementwise", "qwen3", NF4, None),
    )
]
SMOOTH = {"label_smoothing": 0.1}
LONG_CASES += [
    *TOGETHER,
    TOGETHER[0]._replace(**EVERYTHING),
    TOGETHER[1]._replace(family="qwen3", adapter=LORA),
    Case(2, SMALL, True, dtype="bfloat16", **SMOOTH, **RMSPROP, **OF_B),
    Case(2, 8192, False, sliding_window=24, encoding="handbook_a", **SMOOTH, **RMSPROP),
    Case(
        1,
        SMALL,
        False,
        adapter=LORA,
        encoding="handbook_a",
        truncation="trl_0.7",
        **SMOOTH,
        **RMSPROP,
    ),
]
LONG_SFT_CASES = [
    Case(ranks, SMALL, checkpointing, family=family, adapter=adapter, tied=family == "qwen3")
    for ranks, checkpointing, family, adapter in (
        (1, True, "mistral", LORA),
        (2, False, "mistral", LORA),
        (1, "mlp", "qwen3", NF4),
        (2, "elementwise", "qwen3", LORA),
    )
]
JOINED = {"packing": "constant_length"}
LONG_SFT_CASES += [Case(1, LONGEST, False, **JOINED), Case(2, SMALL, True, **JOINED, **RMSPROP)]
LONG_SFT_CASES += [case._replace(epochs=2) for case in TOGETHER[:3]]
# What rounding may do, beside 2e-4 of each number's size: measured, times three.
TOLERANCE = {
    "float32": {},
    "bfloat16": {
        "rewards/chosen": 0.15,
        "rewards/rejected": 0.15,
        "rewards/margins": 0.15,
        "rewards/accuracies": 0.26,
        "logps/chosen": 3e-3,
        "logps/rejected": 3e-3,
        "loss": 0.06,
        "grad_norm": 0.15,
        "update_ratio": 0.06,
        "wpo_weight": 3e-3,
    },
}


def words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(
        rng.choice(" ".join(SENTENCES[:6]).split()) for _ in range(rng.randint(least, most))
    )


def pair_rows(count: int) -> list[dict[str, object]]:
    """Pairs of uneven lengths: short and cut ones, several turns, a system turn, bytes that are no
    ASCII."""
    rng, rows = random.Random(1), []
    for i in range(count):
        turns = [{"role": "user", "content": words(rng, 1, 30 if i % 9 == 4 else 12)}]
        if i % 5 == 1:
            turns += [
                {"role": "assistant", "content": words(rng, 1, 5)},
                {"role": "user", "content": "and 漢字?"},
            ]
        if i % 7 == 2:
            turns = [{"role": "system", "content": words(rng, 1, 4)}, *turns]
        prompt = turns if len(turns) > 1 else turns[0]["content"]
        answers = [
            words(rng, 1, 20),
            "Ça va 🎉 " * (i % 3) + words(rng, 1, 60 if i % 11 == 3 else 8),
        ]
        rng.shuffle(
            answers
        )  # nothing to learn but the pairs themselves: the loss stays away from 0
        sides = [
            [*turns, {"role": "assistant", "content": answer}] if i % 2 else answer
            for answer in answers
        ]
        rows.append({"id": f"pair-{i}", "prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return rows


def text_rows(count: int) -> list[dict[str, object]]:
    """Conversations of one to three rounds; the longest are cut."""
    rng, rows = random.Random(2), []
    for i in range(count):
        messages = []
        for _ in range(1 + i % 3):
            messages.append({"role": "user", "content": words(rng, 1, 6)})
            messages.append({"role": "assistant", "content": words(rng, 1, 10)})
        rows.append({"messages": messages})
    return rows


def base_config(
    folder: Path, case: Case, rows: list[dict[str, object]], optim: dict[str, int]
) -> oracle.Config:
    """A complete config for rows written to `folder`, with a random model beside them."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    model = tiny_model(
        folder / "start", family=case.family, tied=case.tied, sliding_window=case.sliding_window
    )
    return {
        "model": str(model),
        "data": {
            "train": [str(data)],
            "max_tokens": LONGEST,
            "truncation": case.truncation,
            "shuffle": False,
        },
        "optim": {
            "optimizer": case.optimizer,
            # The first updates of RMSprop are ten times the rate long.
            "lr_peak": LR_PEAK / 10 if case.optimizer == "rmsprop" else LR_PEAK,
            "schedule": case.schedule,
            "warmup_fraction": 0.12,  # of 20 steps: 2.4, rounded up
            "epochs": case.epochs,
            "weight_decay": case.weight_decay,
            "adam_betas": list(case.adam_betas),
            "grad_clip": case.grad_clip,
            **optim,
        },
        "adapter": case.adapter,
        "hardware": {
            "tokens_per_micro_batch": case.tokens_per_micro_batch,
            "dtype": case.dtype,
            "attention": "sdpa",
            "activation_checkpointing": case.activation_checkpointing,
            "sequence_parallel": case.sequence_parallel,
            "deepspeed": str(ROOT / "configs/deepspeed/cpu.json"),
        },
        "run": {
            "dir": str(folder / "run"),
            "save_every": 1000,
            "eval_every": 1000,
            "wandb": {"mode": "disabled"},
        },
    }


def dpo_config(folder: Path, case: Case) -> oracle.Config:
    """76 pairs in steps of 8: ten steps an epoch, the last of 4 pairs."""
    rows = pair_rows(76)
    if case.weights:
        rows = [{**row, "weight": (1, 0.25, 3, 1.7)[i % 4]} for i, row in enumerate(rows)]
    config = base_config(folder, case, rows, {"pairs_per_step": 8})
    config["data"]["max_prompt_tokens"] = 48
    config["data"]["encoding"] = case.encoding
    config["hardware"]["prefix_sharing"] = True
    own = CLOSED_FORMS[case.loss].settings
    return config | {
        "loss": {"name": case.loss, **own} if own else case.loss,
        "label_smoothing": case.label_smoothing,
        "beta": case.beta,
        "sft_weight": case.sft_weight,
        "weighting": case.weighting,
        "reference": {"dir": str(folder / "reference")},
    }


def sft_config(folder: Path, case: Case) -> oracle.Config:
    """Ten steps an epoch as well; how many windows the last one has is the packing's affair
    (checked in the test)."""
    config = base_config(folder, case, text_rows(72), {"windows_per_step": 6})
    joined = case.packing == "constant_length"
    config["data"] |= {"targets": "all" if joined else "assistant", "packing": case.packing}
    return config


Run = Callable[[str, oracle.Config, int], list[oracle.Record]]


@pytest.fixture
def train_records(launch: Launch, fork_server: ForkServer, tmp_path: Path) -> Run:
    """The train records of metrics.jsonl after the script has run as its users run it, or in a
    fork."""

    def run(script: str, config: oracle.Config, ranks: int) -> list[oracle.Record]:
        path = Path(config["run"]["dir"]).with_suffix(".yaml")
        path.write_text(yaml.safe_dump(config))
        if ranks:
            launch(script, path, ranks=ranks)
        else:
            assert script == "train_dpo.py"
            done = fork_server.run([str(path)], {"ZEPHYR_CACHE": str(tmp_path / "cache")}, tmp_path)
            assert done.code == 0, done.err[-6000:]
        lines = (Path(config["run"]["dir"]) / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["split"] == "train"]

    return run


def compare(
    records: list[oracle.Record], wanted: list[oracle.Record], dtype: str = "float32"
) -> None:
    """Every metric of every step, and no metric beside those that the oracle knows or that speak of
    speed."""
    assert [record["step"] for record in records] == [record["step"] for record in wanted]
    assert len(wanted) in (STEPS, STEPS // 2)
    apart = []
    for record, plain in zip(records, wanted):
        told = {
            name for name in record if not name.startswith("alarms/")
        }  # of what the numbers say, tested by itself
        assert told - ABOUT_SPEED - {"split"} == set(plain)
        for name, value in plain.items():
            size = abs(value) if name in ("learning_rate", "update_ratio") else max(1.0, abs(value))
            allowed = TOLERANCE[dtype].get(name, 2e-4)
            if plain["step"] < 2 and name == "grad_norm":
                # The first rate is 0: both steps are at the first weights, and no error has grown.
                allowed = min(allowed, 0.015)
            if not abs(record[name] - value) <= allowed * size:
                apart.append(f"step {plain['step']} {name}: {record[name]} instead of {value}")
    assert not apart, "\n".join(apart)


def case_id(case: Case) -> str:
    return (
        f"{case.loss}-{case.dtype}-{case.ranks or 'forked'}-ranks-{case.tokens_per_micro_batch}-"
        f"tokens-checkpointing-{case.activation_checkpointing}-{case.family}"
        + (f"-lora-{case.adapter.get('quantize', 'none')}" if case.adapter else "")
        + ("-everything" if case.weights else "")
        + (f"-{case.encoding}" if case.encoding != "zephyr" else "")
        + (f"-{case.optimizer}" if case.optimizer != "adamw" else "")
        + (f"-{case.packing}" if case.packing != "best_fit" else "")
        + (f"-{case.sequence_parallel}-together" if case.sequence_parallel > 1 else "")
    )


@pytest.mark.parametrize(
    "case",
    [*DPO_CASES, *(pytest.param(case, marks=pytest.mark.long) for case in LONG_CASES)],
    ids=lambda case: case_id(case),
)
def test_dpo_equals_plain_pytorch(case: Case, tmp_path: Path, train_records: Run) -> None:
    """Any fault in masks, positions, shared prompts, normalisation, gradient accumulation,
    clipping, schedule, decay, betas, the loss, its settings, the reference, or the weights of pairs
    shifts these numbers: they are compared one by one over 20 steps, two of them partial. A loss
    without a reference makes no pass for one."""
    config = dpo_config(tmp_path, case)
    wanted = list(oracle.dpo_trace(config))
    records = train_records("train_dpo.py", config, case.ranks)
    compare(records, wanted, case.dtype)
    if CLOSED_FORMS[case.loss].reference_free:
        assert not (tmp_path / "reference").exists()
    else:
        assert records[0]["rewards/chosen"] == records[0]["rewards/rejected"] == 0.0
    if case.dtype == "float32" or not (case.weights or CLOSED_FORMS[case.loss].sft_weight):
        first = wanted[0]["loss"]  # in bfloat16, an SFT term and WPO's weights are off by rounding
        assert abs(records[0]["loss"] - first) < 1e-6 * max(1, first)


def against(config: oracle.Config, reference: Path | None, folder: Path) -> oracle.Config:
    """The config with another reference, in a run folder of its own."""
    model = None if reference is None else str(reference)
    run = {**config["run"], "dir": str(folder)}
    return {**config, "reference": {**config["reference"], "model": model}, "run": run}


@pytest.mark.parametrize("persistent", [0, pytest.param(10**6, marks=pytest.mark.long)])
def test_another_reference_equals_plain_pytorch(
    persistent: int, tmp_path: Path, train_records: Run
) -> None:
    """`reference.model` on two ranks. Fails where the policy keeps a weight of the reference (also
    one that every rank holds whole), or its log-probs are stored under the policy's address. A copy
    of the policy's folder is the policy itself: rewards of 0, and its log-probs are to the bit
    those of the policy after the other weights were in its place."""
    config = dpo_config(tmp_path, Case(2, SMALL, False, beta=0.1, epochs=1))
    settings = json.loads((ROOT / "configs/deepspeed/cpu.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = persistent
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    config["hardware"]["deepspeed"] = str(tmp_path / "zero3.json")
    copy = Path(shutil.copytree(config["model"], tmp_path / "copy"))
    itself = train_records("train_dpo.py", against(config, copy, tmp_path / "itself"), 2)
    other = against(config, tiny_model(tmp_path / "other", seed=9), tmp_path / "another")
    records, wanted = train_records("train_dpo.py", other, 2), list(oracle.dpo_trace(other))
    compare(records, wanted)
    assert abs(wanted[0]["rewards/margins"]) > 0.01, "the references must differ"
    assert itself[0]["rewards/chosen"] == 0.0
    assert itself[0]["logps/chosen"] == records[0]["logps/chosen"]
    if persistent:  # the long test: against a run that names no reference, step by step
        plain = train_records("train_dpo.py", against(config, None, tmp_path / "plain"), 2)
        for record, expected in zip(itself, plain, strict=True):
            assert {name for name in expected if record[name] != expected[name]} <= ABOUT_SPEED


@pytest.mark.parametrize(
    "case",
    [*SFT_CASES, *(pytest.param(case, marks=pytest.mark.long) for case in LONG_SFT_CASES)],
    ids=lambda case: case_id(case),
)
def test_sft_equals_plain_pytorch(case: Case, tmp_path: Path, train_records: Run) -> None:
    """As above for windows of packed conversations: neighbours that see each other, or a mean of
    means, would show."""
    config = sft_config(tmp_path, case)
    wanted = list(oracle.sft_trace(config))
    compare(train_records("train_sft.py", config, case.ranks), wanted, case.dtype)


def test_the_cases_cover_losses_and_settings() -> None:
    """Fails where no trace trains with a loss, or a setting has its default in all: either could be
    ignored and every trace would agree."""
    for cases, losses in ((DPO_CASES, {*CLOSED_FORMS} - {*LATER}), (LONG_CASES, {*CLOSED_FORMS})):
        assert {case.loss for case in cases} == losses
        assert any(case.weights and case.weighting == "wpo" and case.sft_weight for case in cases)
    for cases in (DPO_CASES, SFT_CASES):
        assert {case.dtype for case in cases} == {"float32", "bfloat16"}
    assert all(case.label_smoothing > 0 for case in LONG_CASES if case.loss in SMOOTHED)
    assert {(case.loss, case.dtype) for case in [*DPO_CASES, *LONG_CASES]} >= set(OF_A_LOSS)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_traced(loss: str) -> None:
    """Fails where a loss that has a closed form is in no trace; says which loss has none."""
    closed_form(loss)
    assert any(case.loss == loss for case in [*DPO_CASES, *LONG_CASES])


def test_the_comparison_means_something(tmp_path: Path) -> None:
    """The traces above could agree on nothing: the oracle must learn, clip, take partial steps and
    cut rows, and a step must be more than the small micro-batch holds."""
    config = dpo_config(tmp_path, DPO_CASES[0])
    trace = list(oracle.dpo_trace(config))
    assert [record["pairs"] for record in trace] == 2 * ([8] * 9 + [4])
    assert (
        trace[0]["learning_rate"] == 0
        and trace[3]["learning_rate"] == LR_PEAK
        and trace[-1]["learning_rate"] > 0
    )
    assert trace[0]["loss"] == pytest.approx(math.log(2)), (
        "cDPO's first loss, whatever the smoothing"
    )
    assert trace[-1]["loss"] < trace[0]["loss"] - 0.1 and trace[-1]["rewards/margins"] > 0.1
    assert max(record["grad_norm"] for record in trace) > 2 * CLIPS
    assert min(record["tokens"] for record in trace if record["pairs"] == 8) > SMALL
    tokenizer = load_tokenizer(config["model"])
    whole = [
        encode_pair(tokenizer, row, max_tokens=10**6, max_prompt_tokens=10**5)
        for row in oracle.read_rows(config)
    ]
    cut = oracle.read_pairs(config)
    assert (
        sum(len(pair.prompt_ids) < len(longer.prompt_ids) for pair, longer in zip(cut, whole)) >= 2
    )
    last_ids = [ids[-1] for pair in cut for ids in (pair.chosen_ids, pair.rejected_ids)]
    assert sum(last_id != tokenizer.eos_token_id for last_id in last_ids) >= 2
    assert all(pair.chosen_ids != pair.rejected_ids for pair in cut)


def test_the_sft_comparison_means_something(tmp_path: Path) -> None:
    """Windows must hold several rows, the last step fewer of them, and no row may be cut to
    nothing."""
    config = sft_config(tmp_path, SFT_CASES[0])
    trace = list(oracle.sft_trace(config))
    assert len(trace) == STEPS and trace[-1]["loss"] < trace[0]["loss"] - 0.1
    assert trace[9]["tokens"] < 0.8 * trace[8]["tokens"]
    tokenizer = load_tokenizer(config["model"])
    whole = [
        encode_messages(tokenizer, row["messages"], max_tokens=10**6)
        for row in oracle.read_rows(config)
    ]
    assert sum(len(text.ids) > LONGEST for text in whole) >= 2
    assert all(any(text.is_target) for text in oracle.read_texts(config))
