"""`zephyr plan` against what is published and counted by hand, against the scripts' own plan, and
against the bytes the engine takes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from processes import ROOT
from runs import rows, write_config, write_lines

from zephyr.cli import main
from zephyr.config import Data, DPOConfig
from zephyr.costs import predict as predicting
from zephyr.costs import work as costs
from zephyr.costs.predict import format_table, layout, predict, read_lengths
from zephyr.packing import plan_epochs
from zephyr.training.deepspeed_settings import read_deepspeed

sys.path.append(str(ROOT / "tests" / "benchmarks"))
import bench_plan

STEPS = 5732  # three epochs of UltraFeedback in steps of 32 pairs
CONFIG = DPOConfig("none", Data(("none",)))
SETTINGS = read_deepspeed(str(ROOT / "configs/deepspeed/zero3.json"))
SEVEN_B = ROOT / "configs/zephyr-7b-beta/dpo.yaml"


@pytest.fixture(scope="module")
def mistral() -> costs.Model:
    return costs.read_model("none", "mistral")


@pytest.fixture(scope="module")
def feedback(mistral: costs.Model) -> costs.Work:
    """2,048 pairs of UltraFeedback's profile."""
    return costs.example_work(
        costs.profile_lengths("ultrafeedback", replace(CONFIG, data=Data(("none",), limit=2048))),
        mistral,
        CONFIG,
    )


def hours_of(
    mistral: costs.Model,
    feedback: costs.Work,
    device: str,
    policy: bool | str,
    ranks: int,
    critical_path: float | None,
) -> float:
    """Of the whole run. Args: critical_path: against the mean rank; None: as the package plans."""
    flops = costs.executed_flops(feedback, mistral, policy)
    plan = plan_epochs(feedback.tokens, per_step=32, epochs=1, ranks=ranks, budget_tokens=16384)
    steps = len(plan.steps)
    slowest = (
        costs.most_loaded_rank_flops(plan, flops)
        if critical_path is None
        else [critical_path * sum(flops) / steps / ranks] * steps
    )
    return (
        STEPS
        * costs.predict_times(
            slowest, steps, mistral, ranks, costs.DEVICES[device], CONFIG, SETTINGS
        )["step s"]
        / 3600
    )


@pytest.mark.parametrize(
    "device,policy,minutes",
    [
        ("a100-80", True, {8: 95, 16: 56, 32: 35, 64: 34}),
        ("a100-80", False, {8: 72, 16: 43, 32: 29}),
        ("h100", False, {8: 27, 16: 16, 32: 15, 64: 15}),
    ],
)
def test_times_of_the_recipe(
    mistral: costs.Model,
    feedback: costs.Work,
    device: str,
    policy: bool | str,
    minutes: dict[int, int],
) -> None:
    """The minutes that the cost model gives Zephyr's DPO, worked out apart from this code, within
    10 %. At 8 and 16 ranks the critical path is the package's own; at 32 and 64 that of single
    responses, 1.38 and 2.69, for which it has no layout. Fails where a factor, a gather or the
    overlap is forgotten."""
    for ranks, published in minutes.items():
        found = 60 * hours_of(
            mistral, feedback, device, policy, ranks, {32: 1.38, 64: 2.69}.get(ranks)
        )
        assert found == pytest.approx(published, rel=0.1), ranks


def test_a_padded_trainer_takes_what_the_paper_says(
    mistral: costs.Model, feedback: costs.Work
) -> None:
    """2.69 x the tokens on the most loaded rank and every activation recomputed: 123 minutes on 16
    A100, in the paper "2-4 hours". Fails where recomputation or the imbalance is not counted."""
    assert 60 * hours_of(mistral, feedback, "a100-80", True, 16, 2.69) == pytest.approx(
        123, rel=0.1
    )


def test_weak_scaling_by_hand(mistral: costs.Model) -> None:
    """Of the compute-bound speed, at 2 pairs a rank on H100 84 % on 16 ranks, 70 % on 256, 58 % on
    1,024; at 4 pairs 90 to 92 %. Fails where bandwidth does not fall with the machine, or what
    hides behind what is turned round."""
    for pairs, ranks, share in (
        (2, 16, 0.84),
        (2, 256, 0.70),
        (2, 1024, 0.58),
        (4, 16, 0.92),
        (4, 1024, 0.90),
        (16, 1024, 0.97),
    ):
        compute = pairs * 757 * 42.6e9
        times = costs.predict_times(
            [compute], 1, mistral, ranks, costs.DEVICES["h100"], CONFIG, SETTINGS
        )
        assert times["compute"] / (times["step s"] - times["optimiser"]) == pytest.approx(
            share, abs=0.03
        ), (pairs, ranks)


def test_more_micro_batches_cost_more(mistral: costs.Model) -> None:
    """The same work on one H200 in two micro-batches: gradients are copied and added once more, 14
    bytes a parameter. Fails where the advice would cut a step into ever smaller pieces for
    nothing."""
    whole, halves = (
        costs.predict_times(of, 1, mistral, 1, costs.DEVICES["h200"], CONFIG, SETTINGS)
        for of in ([1e15], [5e14] * 2)
    )
    assert halves["compute"] == whole["compute"] and halves["comm"] == 0
    assert halves["step s"] - whole["step s"] == pytest.approx(
        14 * 7.2417e9 / (0.6 * 4.8e12), rel=1e-3
    )


def test_states_of_a_rank(mistral: costs.Model, feedback: costs.Work) -> None:
    """16 bytes a parameter with bfloat16 gradients, 18 with float32 ones, over the ranks: the
    published table in GB. Fails where something is not spread over the ranks, or the gradients'
    dtype is not read."""
    for dtype, by_ranks in {
        "bf16": {1: 115.9, 2: 57.9, 4: 29.0, 8: 14.5, 16: 7.2, 32: 3.6},
        "fp32": {1: 130.4, 2: 65.2, 4: 32.6, 8: 16.3, 16: 8.1, 32: 4.1},
    }.items():
        for ranks, published in by_ranks.items():
            plan = plan_epochs(
                feedback.tokens, per_step=32, epochs=1, ranks=ranks, budget_tokens=16384
            )
            parts = costs.predict_memory(
                mistral,
                ranks,
                "cuda",
                plan,
                feedback,
                CONFIG,
                SETTINGS | {"data_types": {"grad_accum_dtype": dtype}},
            )
            assert parts["states"] / 1e9 == pytest.approx(published, abs=0.06)
            assert parts["peak"] >= parts["states"] + parts["buckets"] + parts["update"]


def test_the_advice_fits_and_is_the_fastest(mistral: costs.Model, feedback: costs.Work) -> None:
    """On 16 A100 everything is kept; on one H200 only what is computed again fits, in micro-batches
    as large as it allows: one doubling more is over the memory. Fails where the advice does not
    fit, or gives away what would."""
    lengths = costs.profile_lengths(
        "ultrafeedback", replace(CONFIG, data=Data(("none",), limit=1024))
    )
    many = predict(CONFIG, mistral, lengths, 16, "a100-80")
    assert many["advice"]["checkpointing"] == "false" and many["advice"]["micro"] == 1
    one = predict(CONFIG, mistral, lengths, 1, "h200")
    assert all(of["fits"] == "yes" for of in one["policies"]) and one["advice"]["step s"] == min(
        of["step s"] for of in one["policies"]
    )
    kept = {of["checkpointing"]: of["tokens"] for of in one["policies"]}
    assert kept["true"] >= kept["mlp"] >= kept.get("false", 0)
    more = replace(
        CONFIG,
        hardware=replace(
            CONFIG.hardware, activation_checkpointing="mlp", tokens_per_micro_batch=2 * kept["mlp"]
        ),
    )
    work = costs.example_work(lengths, mistral, CONFIG)
    too_large = layout(
        more,
        1,
        all_work=work,
        model=mistral,
        device=costs.DEVICES["h200"],
        kind="cuda",
        settings=SETTINGS,
    )
    assert too_large["fits"] == "no"
    assert predict(CONFIG, mistral, lengths, 1, "a100-40")["advice"] is None


def plan(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["plan", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_a_shipped_config_as_a_user_meets_it(capsys: pytest.CaptureFixture[str]) -> None:
    """No weights, no data, no network. Fails where a part is missing from the page, or columns do
    not line up."""
    code, out, _ = plan(
        capsys,
        SEVEN_B,
        "data.limit=4096",
        "--shape",
        "mistral",
        "--lengths",
        "ultrafeedback",
        "--gpus",
        "16",
    )
    assert (
        code == 0
        and "7.24e9 parameters" in out
        and "hardware.tokens_per_micro_batch=" in out
        and "Never checked" in out
    )
    for part in (
        "states",
        "gathered",
        "activations",
        "head",
        "buckets",
        "update",
        "save",
        "compute",
        "comm",
        "optimiser",
    ):
        assert part in out
    table = [
        line for line in out.splitlines() if any(name in line for name in (" false ", " mlp "))
    ]
    assert len(table) == 2 and len({len(line) for line in table}) == 1
    assert format_table([{"a": 1000, "bcd": 0.5, "memory": {}}]).splitlines() == [
        "   a   bcd",
        "1000 0.500",
    ]


def test_units_show_something() -> None:
    """Fails where a small model has 0.00e9 parameters or steps of 0.000 s, or where a value does
    not fit the unit in the name of its column."""
    assert [predicting.format_parameters(n) for n in (7_240_000_000, 134_500_000, 4_096, 12)] == [
        "7.24e9 parameters",
        "134.50e6 parameters",
        "4.10e3 parameters",
        "12 parameters",
    ]
    assert [predicting.format_hours(h) for h in (2.0, 0.05, 0.001)] == [
        "2.00 h",
        "3.00 min",
        "3.60 s",
    ]
    small = {"ranks": 1, "peak GB": 0.05, "compute": 0.002, "step s": 0.004, "hours": 0.001}
    large = {"ranks": 1, "peak GB": 5.0, "compute": 2.0, "step s": 4.0, "hours": 10.0}
    [shown] = predicting.with_units([small], predicting.choose_units(small))
    assert shown == pytest.approx(
        {"ranks": 1, "peak MB": 50, "compute": 2, "step ms": 4, "seconds": 3.6}
    )
    [shown] = predicting.with_units([large], predicting.choose_units(large))
    assert shown == large


def test_tables_of_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    """On H100 with 32 pairs a step doubling ends to pay at 16 or 32 ranks; with steps that grow the
    ranks stay busy. Fails where the last, broken step of a sample is counted, or a run with larger
    steps is as long as one with small ones."""
    code, out, _ = plan(
        capsys,
        SEVEN_B,
        "data.limit=2048",
        "--shape",
        "mistral",
        "--lengths",
        "ultrafeedback",
        "--device",
        "h100",
        "--table",
        "--json",
    )
    tables = json.loads(out)["tables"]
    strong = {of["ranks"]: of for of in tables["strong"]}
    assert (
        code == 0
        and set(strong) == {2**k for k in range(11)}
        and strong[8]["critical"] < 1.06 < strong[64]["critical"]
    )
    assert (
        strong[64]["step s"] > 0.8 * strong[32]["step s"]
        and strong[1]["hours"] > 6 * strong[8]["hours"]
    )
    weak = {of["ranks"]: of for of in tables["weak, pairs_per_step 4 x ranks"]}
    assert weak[1024]["critical"] < 1.1 and weak[16]["hours"] / weak[64]["hours"] == pytest.approx(
        4, rel=0.1
    )


def test_the_configs_own_rows(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are encoded as the scripts do: 6 steps of 20 pairs, as their dry run says; the same from
    a file of counts. Fails where the plan is of other lengths than the run's."""
    config = write_config(tmp_path, tiny, write_lines(tmp_path / "pairs.jsonl", rows(20)))
    code, out, _ = plan(capsys, config, "--gpus", "2", "--device", "cpu", "--json")
    report = json.loads(out)
    assert (
        code == 0
        and report["steps"] == 6
        and report["plan"].startswith("plan: 6 steps, 8 examples")
        and report["parameters"] < 200_000
    )
    from zephyr.verify.certificate import read_config

    lengths = read_lengths(None, read_config(config, None)[1])
    write_lines(
        tmp_path / "counts.jsonl",
        [dict(zip(("prompt", "chosen", "rejected"), of)) for of in lengths],
    )
    again = json.loads(
        plan(capsys, config, "--gpus", "2", "--lengths", tmp_path / "counts.jsonl", "--json")[1]
    )
    assert (
        again["plan"] == report["plan"] and again["config"]["memory"] == report["config"]["memory"]
    )


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--lengths", "nowhere"), "nowhere"),
        (
            ("--lengths", "{bad}"),
            "counts.jsonl:2: integers > 0 are wanted of prompt, chosen, rejected",
        ),
        ((), "model runs/zephyr-7b-beta/sft/model: no such folder\n"),
        (("--shape", "mistral"), "model runs/zephyr-7b-beta/sft/model: no such folder\n"),
        (("--shape", "mistrall", "--lengths", "hh"), "mistrall"),
        (
            ("--shape", "mistral", "--lengths", "hh", "--gpus", "0"),
            "--gpus: at least 1 is wanted, got 0",
        ),
        (
            ("--shape", "mistral", "--lengths", "ultrafeedback"),
            "hardware.tokens_per_micro_batch: at least",
        ),
    ],
)
def test_bad_input_is_named(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and code 2. Fails where a traceback, or a prediction of something else, comes
    instead."""
    bad = write_lines(
        tmp_path / "counts.jsonl",
        [{"prompt": 3, "chosen": 4, "rejected": 5}, {"prompt": 3, "chosen": 0, "rejected": 5}],
    )
    small = (
        ["hardware.tokens_per_micro_batch=700"]
        if "at least" in message and "batch" in message
        else []
    )
    shape = [] if "--shape" in arguments or not arguments else ["--shape", "mistral"]
    code, _, err = plan(capsys, SEVEN_B, *small, *(a.format(bad=bad) for a in arguments), *shape)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "ranks,changes",
    [
        (1, {"activation_checkpointing": True, "dtype": "bfloat16"}),
        pytest.param(2, {"activation_checkpointing": "mlp"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_memory_is_that_of_the_engine(ranks: int, changes: dict[str, object]) -> None:
    """Bytes of all tensors of a real step under ZeRO-3, of the model and beside it, of the fuller
    rank, within 15 %. Fails where the engine, the head or transformers' modules hold what the
    prediction does not know of, or ranks each other's share."""
    found = bench_plan.run(
        {"hidden": 128, "inner": 352, "vocabulary": 2048, **changes}, ranks, repeats=1
    )
    for part in ("held", "beside"):
        assert found["predicted"][part] == pytest.approx(found["measured"][part], rel=0.15), (
            part,
            found,
        )
