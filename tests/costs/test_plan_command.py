"""`zephyr plan` against what is published and counted by hand, against the scripts' own plan, and
against the bytes the engine takes."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from processes import ROOT
from runs import rows, write_config, write_lines

from zephyr.cli import main
from zephyr.config import ConfigError, Data, DPOConfig
from zephyr.costs import text as predicting
from zephyr.costs import work as costs
from zephyr.costs.advice import each_policy, remedies
from zephyr.costs.layouts import Case, layout, sampler, with_hardware
from zephyr.costs.memory import predict_memory
from zephyr.costs.predict import predict, read_lengths
from zephyr.costs.text import format_prediction, format_table
from zephyr.packing import plan_epochs
from zephyr.training.deepspeed_settings import read_deepspeed
from zephyr.training.devices import DEVICES

sys.path.append(str(ROOT / "tests" / "benchmarks"))
import bench_plan

CONFIG = DPOConfig("none", Data(("none",)))
SETTINGS = read_deepspeed(str(ROOT / "configs/deepspeed/zero3.json"))
DESCRIBED = "--memory 48 --bandwidth 864 --rate 181"  # an L40
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


def test_states_of_a_rank(mistral: costs.Model, feedback: costs.Work) -> None:
    """16 bytes a parameter with bfloat16 gradients, 18 with float32 ones, over the ranks: the
    published table in GB. Fails where something is not spread over the ranks, or the gradients'
    dtype is not read."""
    for dtype, by_ranks in {
        "bfloat16": {1: 115.9, 2: 57.9, 4: 29.0, 8: 14.5, 16: 7.2, 32: 3.6},
        "float32": {1: 130.4, 2: 65.2, 4: 32.6, 8: 16.3, 16: 8.1, 32: 4.1},
    }.items():
        for ranks, published in by_ranks.items():
            plan = plan_epochs(
                feedback.tokens, per_step=32, epochs=1, ranks=ranks, budget_tokens=16384
            )
            parts = predict_memory(
                mistral, ranks, "cuda", plan, feedback, CONFIG, SETTINGS, gradient_dtype=dtype
            )
            assert parts["states"] / 1e9 == pytest.approx(published, abs=0.06)
            assert parts["peak"] >= parts["states"] + parts["buckets"] + parts["update"]


def a_case(mistral: costs.Model, lengths: costs.Lengths, device: str) -> Case:
    """A case of these lengths on a device of the table."""
    work = costs.example_work(lengths, mistral, CONFIG)
    return Case(work, sampler(work, CONFIG), mistral, DEVICES[device], "cuda", SETTINGS)


@pytest.fixture(scope="module")
def lengths() -> costs.Lengths:
    """1,024 pairs of UltraFeedback's profile."""
    return costs.profile_lengths("ultrafeedback", replace(CONFIG, data=Data(("none",), limit=1024)))


def test_the_advice_fits_and_is_the_fastest(mistral: costs.Model, lengths: costs.Lengths) -> None:
    """On 16 A100 everything is kept; on one H200 only what is computed again fits, in micro-batches
    as large as it allows: one doubling more is over the memory. Options make it faster and are
    said. Fails where the advice does not fit, or gives away what would."""
    many = predict(CONFIG, mistral, lengths, 16, "a100-80")
    assert many["advice"]["checkpointing"] == "false" and many["advice"]["micro"] == 1
    one = predict(CONFIG, mistral, lengths, 1, "h200")
    assert all(of["fits"] == "yes" for of in one["policies"]) and one["advice"]["step s"] == min(
        of["step s"] for of in one["policies"]
    )
    kept = {of["checkpointing"]: of["tokens"] for of in one["policies"]}
    assert kept["true"] >= kept["mlp"] >= kept.get("elementwise", 0) >= kept.get("false", 0)
    too_large = layout(
        with_hardware(
            CONFIG, activation_checkpointing="mlp", tokens_per_micro_batch=2 * kept["mlp"]
        ),
        1,
        case=a_case(mistral, lengths, "h200"),
    )
    assert too_large["fits"] == "no"
    assert one["fastest"]["step s"] < 0.9 * one["advice"]["step s"]
    assert one["fastest"]["fits"] == "yes" and "hardware.fused=triton" in one["fastest keys"]
    assert "fused" not in one["advice keys"] and one["remedies"] == []


def test_settings_that_are_a_group_are_planned(
    mistral: costs.Model, lengths: costs.Lengths
) -> None:
    """A loss with settings of its own, and renamed columns, are mappings: no set or dict holds such
    a config. Fails where a layout is looked up by the config."""
    config = replace(
        CONFIG,
        loss={"name": "simpo", "gamma": 1.0},
        data=replace(CONFIG.data, columns={"prompt": "question"}),
    )
    assert predict(config, mistral, lengths[:64], 8, "a100-80")["reference hours"] == 0.0


def test_auto_sums_in_bfloat16_only_if_every_step_has_one_micro_batch(
    mistral: costs.Model, lengths: costs.Lengths
) -> None:
    """A step of a sample fits in one micro-batch of 32k tokens, the largest of three epochs over
    200,000 pairs does not. Fails where the advice relies on bfloat16 sums that the run then does
    not have."""
    config = with_hardware(
        replace(CONFIG, optim=replace(CONFIG.optim, epochs=3)), tokens_per_micro_batch=32768
    )
    few = a_case(mistral, lengths, "h200")
    assert layout(config, 1, case=few)["micro"] == 1
    assert layout(config, 1, case=few)["gradients"] == "float32"
    roomy = with_hardware(config, tokens_per_micro_batch=2**16)
    assert layout(roomy, 1, case=few)["gradients"] == "bfloat16"


def test_what_would_fit(mistral: costs.Model, lengths: costs.Lengths) -> None:
    """7B on one A100 of 40 GB: 5 of them, offload with the machine's memory, or the least card that
    holds the states; on 80 GB nothing smaller than an H200. Fails where the page only says that
    nothing fits, or a remedy does not fit either."""
    report = predict(CONFIG, mistral, lengths, 1, "a100-40")
    assert report["advice"] is None
    found = {remedy["change"]: remedy for remedy in report["remedies"]}
    assert list(found) == [
        "--gpus 5",
        "hardware.deepspeed=configs/deepspeed/zero3-offload.json",
        "--device h200-nvl",
    ]
    assert all(remedy["layout"]["fits"] == "yes" for remedy in found.values())
    of_case = partial(layout, case=a_case(mistral, lengths, "a100-40"))
    assert each_policy(of_case, CONFIG, 4, report["longest"]) == []
    offloaded = found["hardware.deepspeed=configs/deepspeed/zero3-offload.json"]
    assert "GB of the machine's memory" in offloaded["note"]
    assert offloaded["layout"]["step s"] > 3
    without_room = predict(CONFIG, mistral, lengths, 1, "a100-40", host_memory=64e9)
    assert len(without_room["remedies"]) == 2  # the host has no room
    lines = "\n".join(format_prediction(report))
    assert "None fits. What would, from cheap to dear:\n  --gpus 5 (" in lines


def test_a_tight_fit(mistral: costs.Model, lengths: costs.Lengths) -> None:
    """A card on which only the budget of the longest pair fits, no power of two. Fails where the
    smallest budget is not tried, or is smaller than a pair."""
    longest = max(costs.example_work(lengths, mistral, CONFIG).tokens)
    of_longest = layout(
        with_hardware(CONFIG, tokens_per_micro_batch=longest),
        8,
        case=a_case(mistral, lengths, "h100"),
    )
    memory = of_longest["peak GB"] * 1e9 / predicting.USABLE_MEMORY_FRACTION + 1
    case = a_case(mistral, lengths, "h100")._replace(device=DEVICES["h100"]._replace(memory=memory))
    first = next(remedies(CONFIG, 8, longest, case))
    assert first["change"] == f"hardware.tokens_per_micro_batch={longest}"
    assert first["layout"]["fits"] == "yes"


def test_ranks_that_share_rows(mistral: costs.Model) -> None:
    """A pair of 67,000 tokens on 8 H100: with 8 ranks to a row each holds about an eighth of its
    activations, the step is shorter than where one rank computes it alone, and it is what is
    proposed where nothing else fits. Fails where the plan takes each rank for one of its own, or a
    number that does not divide ranks or heads is planned."""
    long = [(60000, 4000, 3000)]
    config = DPOConfig("m", Data(("d",), max_tokens=2**16, max_prompt_tokens=2**16 - 4000))
    config = with_hardware(config, tokens_per_micro_batch=67000)
    shared = with_hardware(config, sequence_parallel=8)
    alone, together = (predict(one, mistral, long, 8, "h100")["config"] for one in (config, shared))
    share = together["memory"]["activations"] / alone["memory"]["activations"]
    assert 1 / 11 < share < 1 / 7 and together["step s"] < alone["step s"] / 5
    proposed = predict(config, mistral, long, 8, "a100-40")["remedies"]
    changes = [one["change"].partition("=")[0] for one in proposed]
    assert "hardware.sequence_parallel" in changes, changes
    for size, what in ((3, "8 ranks"), (16, "8 ranks")):
        with pytest.raises(ConfigError, match=f"a divisor of the {what}, got {size}"):
            predict(with_hardware(config, sequence_parallel=size), mistral, long, 8, "h100")


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
    names = (" false ", " elementwise ", " mlp ")
    table = [line for line in out.splitlines() if any(name in line for name in names)]
    table = [line for line in table if line.split()[0] == "16"]
    assert len(table) == 3 and len({len(line) for line in table}) == 1
    assert "the fastest that fits" in out and "update ratio" in out
    assert format_table([{"a": 1000, "bcd": 0.5}]).splitlines() == [
        "   a   bcd",
        "1000 0.500",
    ]


def test_a_described_card(capsys: pytest.CaptureFixture[str]) -> None:
    """The data sheet's three figures instead of a name, and offload that the machine cannot hold.
    Fails where a unit is wrong, or the machine's memory is not compared."""
    arguments = (SEVEN_B, "data.limit=512", "--shape", "mistral", "--lengths", "ultrafeedback")
    code, out, _ = plan(capsys, *arguments, "--gpus", "8", *DESCRIBED.split(), "--json")
    report = json.loads(out)
    assert code == 0
    assert [report[name] for name in ("device", "memory", "memory_rate", "peak")] == [
        "described GPU",
        48e9,
        864e9,
        181e12,
    ]
    offload = "hardware.deepspeed=configs/deepspeed/zero3-offload.json"
    for given, verdict in (
        ((), "compare, or give --host-memory GB"),
        (("--host-memory", "64"), "does not fit in 90% of its 64.0 GB"),
        (("--host-memory", "512"), ": fits in 90% of its 512.0 GB"),
    ):
        assert verdict in plan(capsys, *arguments, offload, "--device", "a100-40", *given)[1]


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
    assert all(sum(of["parts"].values()) == pytest.approx(of["step s"]) for of in strong.values())
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
        ((), "model runs/zephyr-7b-beta/sft/model: no such folder; with --shape and --lengths"),
        (
            ("--shape", "mistral"),
            "model runs/zephyr-7b-beta/sft/model: no such folder; with --shape and --lengths",
        ),
        (("--shape", "mistrall", "--lengths", "hh"), "mistrall"),
        (
            ("--shape", "mistral", "--lengths", "hh", "--gpus", "0"),
            "--gpus: at least 1 is wanted, got 0",
        ),
        (
            ("--shape", "mistral", "--lengths", "ultrafeedback"),
            "hardware.tokens_per_micro_batch: at least",
        ),
        (("--lengths", "hh", "--device", "h1000"), "expected one of rtx-3090, "),
        (("--lengths", "hh", "--device", "h1000"), "--memory GB --bandwidth GB/s --rate TFLOP/s"),
        (("--lengths", "hh", "--device", "v100"), "it has no bfloat16"),
        (("--lengths", "hh", "--memory", "48"), "got --memory 48.0"),
        (
            ("--lengths", "hh", "--device", "l4", *DESCRIBED.split()),
            "got --device l4 --memory",
        ),
        (("--lengths", "hh", "--host-memory", "0"), "--host-memory: GB > 0 are wanted, got 0"),
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
