"""Each benchmark at toy size: what it says beside times holds. Times are never asserted."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_attention
import bench_head
import bench_packing
import measure

from zephyr.model import logprobs


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to a folder of the test's, never over measured ones."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    return tmp_path


def test_bound_on_bins_is_the_least() -> None:
    """By hand: three of 6 share no row of 10 whatever the sum says; 6 and 4 do. Fails where the
    bound is over what is possible, or no better than the sum."""
    assert (
        bench_packing.fewest_bins([6, 6, 6], 10) == 3
        and bench_packing.fewest_bins([6, 4, 6, 4, 3], 10) == 3
    )
    assert (
        bench_packing.fewest_bins([5, 5, 5, 5], 10) == 2
        and bench_packing.fewest_bins([7, 7, 4, 4], 10) == 3
    )


def test_packing(results: Path) -> None:
    """Rows are at most full and close to the bound; no plan beats what whole pairs allow, nor do
    padded ranks beat it. Fails where a bound or the ideal is computed of other lengths than the
    plan's."""
    result = bench_packing.main(
        [
            "--documents",
            "4000",
            "--pairs",
            "640",
            "--steps",
            "5",
            "--model",
            "tiny",
            "--out",
            str(results),
        ]
    )
    assert all(
        0.97 * of["most_possible"] <= of["fill"] <= of["most_possible"] <= 1
        for of in result["fill"].values()
    )
    for of in result["balance"].values():
        assert (
            1
            <= of["least_possible_tokens"]
            <= of["tokens"] + 1e-9
            <= of["random_tokens"] + 2e-9
            < of["padded_tokens"]
        )
    assert (
        result["collation"]["tokens"] > 0
        and (results / f"packing{'.gpu' * torch.cuda.is_available()}.json").exists()
    )


def test_head_memory_is_bound_by_its_chunk(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight chunks of rows: what is held beside inputs and gradients is a few of them, where a full
    log_softmax holds them all; and all contenders agree. Fails where [T, V] exists, or a contender
    computes something else."""
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 64 * 1000)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", 0)
    options = [
        "--shapes",
        "8x1000",
        "--tokens",
        "512",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--out",
        str(results),
    ]
    result = bench_head.main(options)["512 tokens, 8x1000"]
    chunk = 64 * 1000 * 4
    assert (
        chunk
        <= result["ours"]["extra_bytes"]
        < 4 * chunk
        < 8 * chunk
        <= result["log_softmax"]["extra_bytes"]
    )
    assert (
        max(result[name]["difference_from_ours"] for name in ("log_softmax", "cross_entropy"))
        < 1e-5
    )


def test_attention_contenders_agree(results: Path) -> None:
    """Padded, dense and packed compute the same output. Fails where a contender is timed on other
    work than ours."""
    options = [
        "--profiles",
        "tldr",
        "--row",
        "2048",
        "--heads",
        "2x1x16",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    result = bench_attention.main([*options, "--out", str(results)])["tldr"]
    assert result["tokens"]["shared"] < result["tokens"]["unshared"] <= 2048 and result["pairs"] > 1
    assert all(
        result[name]["difference"] < 1e-5
        for name in ("sdpa shared", "sdpa unshared", "padded batch", "dense mask")
    )


def test_step_is_the_same_however_it_is_packed(results: Path) -> None:
    """Loss, away from ln 2, and gradient norm of shared, unshared and unpacked cells agree, and the
    phases add up to less than the step. Fails where a cell leaves work out, or a phase is counted
    twice."""
    cells = ["ultrafeedback", "ultrafeedback:unshared", "ultrafeedback:unpacked", "sft", "row:512"]
    sizes = [
        "--model",
        "tiny",
        "--pairs",
        "4",
        "--documents",
        "4",
        "--longest",
        "64",
        "--budget",
        "200",
        "--rounds",
        "1",
    ]
    done = subprocess.run(
        [
            sys.executable,
            Path(measure.__file__).with_name("bench_step.py"),
            *sizes,
            "--cells",
            ",".join(cells),
            "--device",
            "cpu",
            "--attention",
            "sdpa",
            "--checkpointing",
            "false",
            "--out",
            results,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[
        -3000:
    ]  # a process of its own: DeepSpeed starts one engine in each
    of = json.loads((results / "step_tiny.json").read_text())["result"]["cells"]
    assert abs(of[cells[0]]["loss"] - math.log(2)) > 1e-4
    for cell in cells[1:3]:
        assert of[cell]["loss"] == pytest.approx(of[cells[0]]["loss"], rel=1e-5)
        assert of[cell]["grad_norm"] == pytest.approx(of[cells[0]]["grad_norm"], rel=1e-4)
    assert (
        of["ultrafeedback:unpacked"]["micro_batches"] == 4
        and of["ultrafeedback:unshared"]["tokens"] > of["ultrafeedback"]["tokens"]
    )
    for cell in of.values():
        phases = cell["phases"]
        assert {
            "host",
            "forward",
            "head_forward",
            "backward",
            "head_backward",
            "reduce",
            "optimiser",
        } == set(phases)
        assert (
            all(seconds > 0 for seconds in phases.values())
            and sum(phases.values()) <= cell["seconds"]["median"]
        )
        assert cell["step_peak_bytes"] > 0 and cell["tokens_per_second"] > 0
    assert (results / "profile_step_tiny.txt").read_text().strip()


def test_a_dense_mask_that_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 heads of 16k tokens are 69 GB of scores: on a card of 80 GB they would end the process,
    and lose the contenders after it."""
    monkeypatch.setattr(bench_attention.devices, "memory", lambda device: 80 * 10**9)
    assert bench_attention.too_large(16384, 32, "cuda") == "69 GB of scores, of 80 GB"
    assert bench_attention.too_large(4096, 32, "cuda") == ""
