"""More ranks than pairs, hierarchical partitioning, and the collectives of a micro-batch: what is
predicted for 1,024 ranks, on the real ranks that fit on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import ROOT
from runs import ledger, records, rows, write_config, write_lines
from safetensors.torch import load_file

from zephyr.config import ConfigError, Data, DPOConfig, Hardware, Optim, load
from zephyr.costs.collectives import collective_seconds, micro_batch_collectives
from zephyr.costs.work import read_model
from zephyr.training.deepspeed_settings import deepspeed_settings, read_deepspeed
from zephyr.training.devices import DEVICES

CPU = read_deepspeed(str(ROOT / "configs/deepspeed/cpu.json"))
TIMES = {"step_seconds", "tokens_per_second", "peak_memory_bytes"}


def with_zero(**changes: object) -> dict[str, object]:
    """The DeepSpeed settings of a CPU with other keys of `zero_optimization`."""
    return {**CPU, "zero_optimization": {**CPU["zero_optimization"], **changes}}


def train(folder: Path, tiny: Path, ranks: int, settings: dict[str, object]) -> None:
    """Two epochs of 5 pairs in steps of 2, on so many ranks."""
    folder.mkdir()
    (folder / "deepspeed.json").write_text(json.dumps(settings))
    config = write_config(
        folder,
        tiny,
        write_lines(folder / "pairs.jsonl", rows(5)),
        optim__pairs_per_step=2,
        hardware__deepspeed=str(folder / "deepspeed.json"),
    )
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command += [str(ROOT / "tests/training/count_collectives.py"), str(folder / "calls.json")]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([*command, str(config), "--quiet"], cwd=ROOT, env=environment, check=True)


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of one training on 1, 2 and 4 ranks, and on 4 in groups of 2 (hpZ)."""
    folder = tmp_path_factory.mktemp("many")
    layouts = {"1": (1, CPU), "2": (2, CPU), "4": (4, CPU)}
    layouts["4 in groups"] = (4, with_zero(zero_hpz_partition_size=2))
    for name, (ranks, settings) in layouts.items():
        train(folder / name, tiny, ranks, settings)
    return {name: folder / name for name in layouts}


@pytest.mark.long
def test_more_ranks_than_pairs_train_as_one(runs: dict[str, Path]) -> None:
    """Two of four ranks have an empty micro-batch in every step, three in the last of an epoch.
    Fails where an idle rank leaves the lock-step (the run hangs), brings something of its own, or
    the mean is taken over ranks."""
    one, four = (records(runs[name] / "run") for name in ("1", "4"))
    assert [r["pairs"] for r in four] == [2, 2, 1] * 2 == [r["pairs"] for r in one]
    for a, b in zip(one, four):
        assert set(a) == set(b)
        for key in set(a) - TIMES - {"packing_efficiency"}:
            if isinstance(a[key], float):
                assert b[key] == pytest.approx(a[key], rel=2e-4, abs=2e-6), key
    by_pair = [
        sorted(
            (v["step"], v["id"], round(v["logps/chosen"], 3)) for v in ledger(runs[name] / "run")
        )
        for name in ("1", "4")
    ]
    assert by_pair[0] == by_pair[1] and len(by_pair[0]) == 10


@pytest.mark.long
def test_hierarchical_partitioning_is_exact(runs: dict[str, Path]) -> None:
    """Four ranks in two groups against four: all records and weights to the bit. Fails where the
    second copy of the weights is of another value or an older update."""
    plain, grouped = (records(runs[name] / "run") for name in ("4", "4 in groups"))
    assert [{k: v for k, v in r.items() if k not in TIMES} for r in plain] == [
        {k: v for k, v in r.items() if k not in TIMES} for r in grouped
    ]
    a, b = (load_file(runs[name] / "run/model/model.safetensors") for name in ("4", "4 in groups"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.long
def test_the_collectives_are_those_of_the_formula(runs: dict[str, Path], tiny: Path) -> None:
    """Bytes and ranks of a micro-batch, and the most calls, as torch.distributed is called. Fails
    where DeepSpeed gathers more often, or another dtype, than times are predicted for; or hpZ
    gathers across groups in the backward."""
    model = read_model(str(tiny), None)
    for name, ranks in (("2", 2), ("4", 4), ("4 in groups", 4)):
        config = load(DPOConfig, str(runs[name] / "config.yaml"))
        settings = read_deepspeed(config.hardware.deepspeed)
        forward, backward, reduce = micro_batch_collectives(model, ranks, config, settings, True)
        last = json.loads((runs[name] / "calls.json").read_text())[-1]
        gathers = [call for call in last if call[0] == "all_gather_into_tensor"]
        wanted = {one.ranks: 0.0 for one in (forward, backward)}
        for one in (forward, backward):
            wanted[one.ranks] += one.size
        found = {group: sum(size for _, size, n in gathers if n == group) for group in wanted}
        assert found == pytest.approx(wanted, rel=0.01), name  # parts are padded to equal sizes
        assert 2 <= len(gathers) <= forward.most_calls + backward.most_calls
        sums = [(size, n) for kind, size, n in last if kind == "all_reduce"]
        assert sums == [(pytest.approx(reduce.size, rel=0.01), ranks)]


def test_hpz_gathers_inside_a_node() -> None:
    """A backward's gather of 7B on 64 ranks: by NVLink with groups of 8, as long as on 8 ranks.
    Fails where the setting has no price, or makes the first gather cheaper too."""
    model = read_model("none", "mistral")
    config = DPOConfig("none", Data(("none",)))
    flat, grouped = (
        micro_batch_collectives(model, 64, config, settings, True)
        for settings in (CPU, with_zero(zero_hpz_partition_size=8))
    )
    assert [one.ranks for one in flat] == [64, 64, 64]
    assert [one.ranks for one in grouped] == [64, 8, 64] and grouped[0] == flat[0]
    h100 = DEVICES["h100"]
    in_a_node = micro_batch_collectives(model, 8, config, CPU, True)[1]
    assert collective_seconds(grouped[1], h100) == collective_seconds(in_a_node, h100)


@pytest.mark.parametrize(
    ("zero", "ranks", "message"),
    [
        ({"zero_hpz_partition_size": 8}, 12, "a divisor of the 12 ranks, got 8"),
        ({"zero_hpz_partition_size": 0}, 4, "expected the GPUs of a node"),
        ({"zero_quantized_weights": True}, 4, "zero_quantized_weights: it rounds"),
        ({"zero_quantized_gradients": True}, 4, "zero_quantized_gradients: it rounds"),
        ({"mics_shard_size": 2}, 4, "MiCS makes parameters and checkpoints of another kind"),
    ],
)
def test_what_is_not_exact_is_refused(zero: dict[str, object], ranks: int, message: str) -> None:
    """Fails where a setting changes the figures without a word, or hangs on ranks that its groups
    do not divide."""
    options = {"hardware": Hardware(), "optim": Optim(), "gradients_in": "float32"}
    with pytest.raises(ConfigError, match=message):
        deepspeed_settings(with_zero(**zero), **options, ranks=ranks)
    deepspeed_settings(with_zero(zero_hpz_partition_size=2), **options, ranks=4)
