"""Runs with adapters: resumed, on other ranks, from a trained adapter, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Launch
from runs import background, ledger, ranks_of, records, rows, wait_for, write_config, write_lines
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from zephyr.config import BadInput
from zephyr.training.checkpoint import require_same_run

pytestmark = pytest.mark.long
LORA = {"r": 4, "alpha": 32}
NOT_COMPARED = ("tokens_per_second", "step_seconds", "peak_memory_bytes")


def config_of(folder: Path, model: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    data = write_lines(folder / "pairs.jsonl", rows(20))
    every = {"run__save_every": 2, "optim__epochs": 4, "run__preflight": False}
    return write_config(folder, model, data, **{"adapter": LORA, **every, **changes})


@pytest.fixture(scope="module")
def whole(tiny: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ranks with adapters: 12 steps."""
    folder = tmp_path_factory.mktemp("lora")
    launch("train_dpo.py", config_of(folder, tiny), ranks=2)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same_records(run: Path, other: Path) -> bool:
    cut = [
        [{k: v for k, v in record.items() if k not in NOT_COMPARED} for record in records(of)]
        for of in (run, other)
    ]
    return cut[0] == cut[1] and len(cut[0]) == 12


def test_a_killed_run_ends_as_an_undisturbed_one(whole: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, then an empty reference store: records, ledger, adapter
    and merged model are those of the whole run to the bit. Fails where A is drawn anew, a frozen
    weight or a moment of an adapter is not restored, or the reference is that of trained
    adapters."""
    run, config = tmp_path / "run", whole / "config.yaml"
    arguments = (config, f"run.dir={run}", f"reference.dir={tmp_path / 'reference'}")
    with background("train_dpo.py", *arguments) as process:
        wait_for(lambda: (run / "checkpoints" / "step-2").is_dir(), process, pause=0.01)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        process.wait()
    assert not (run / "model").exists()
    arguments = (*arguments[:2], f"reference.dir={tmp_path / 'empty'}")
    with background("train_dpo.py", *arguments, log=tmp_path / "log") as process:
        process.wait()
    assert "resumed from" in (tmp_path / "log").read_text()
    assert same_records(run, whole / "run") and ledger(run) == ledger(whole / "run")
    ours, theirs = weights(run), weights(whole / "run")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    merged = [load_file(of / "model" / "model.safetensors") for of in (run, whole / "run")]
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[1])


def test_two_ranks_go_on_as_one(whole: Path, launch: Launch, tmp_path: Path) -> None:
    """A checkpoint of two ranks, loaded by one. Fails where a range of an adapter is lost."""
    run = shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-12")
    launch("train_dpo.py", whole / "config.yaml", f"run.dir={run}", ranks=1)
    assert min(record["step"] for record in records(run)) == 0
    for name, wanted in weights(whole / "run").items():
        torch.testing.assert_close(weights(run)[name], wanted, rtol=0, atol=1e-4)
    losses = [[record["loss"] for record in records(of)] for of in (run, whole / "run")]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)


def test_only_adapters_are_trained_and_saved(whole: Path, tiny: Path) -> None:
    """Fails where a frozen weight moves, is in a checkpoint, or the merged model is not the base
    with its adapter."""
    run, start = whole / "run", load_file(tiny / "model.safetensors")
    merged, adapter = load_file(run / "model" / "model.safetensors"), weights(run)
    changed = {name for name in start if not torch.equal(merged[name], start[name])}
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    assert changed == {
        name.removeprefix(prefix).replace(suffix, ".weight")
        for name in adapter
        if name.endswith(suffix)
    }
    for name in changed:
        a, b = (adapter[prefix + name.replace(".weight", f".lora_{half}.weight")] for half in "AB")
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(merged[name], start[name] + 8 * b @ a)
    (part, *_) = (run / "checkpoints" / "step-12").glob("rank-0-*.safetensors")
    assert all(".lora_" in name for name in load_file(part))
    first = records(run)[0]
    assert abs(first["loss"] - np.log(2)) < 1e-7
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_a_trained_adapter_is_a_start(
    whole: Path, tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """Its reference is base and adapter together: the loss begins at ln 2 and the log-probs are
    those of the merged model. Fails where the reference is the bare base."""
    for name, model in (("adapter", whole / "run/adapter"), ("model", whole / "run/model")):
        config = config_of(tmp_path / name, model, optim__epochs=1)
        told = launch("train_dpo.py", config, ranks=2)
        assert ("peft does not merge a chain of adapters" in told.stderr) == (name == "adapter")
    ours, theirs = (records(tmp_path / name / "run") for name in ("adapter", "model"))
    assert abs(ours[0]["loss"] - np.log(2)) < 1e-7
    assert [r["logps/chosen"] for r in ours] == [r["logps/chosen"] for r in theirs]
    assert ours[0]["logps/chosen"] != records(whole / "run")[0]["logps/chosen"]
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter/run/model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model/run/model")
    for one, other in zip(lm.parameters(), again.parameters()):
        assert torch.equal(one, other)


def test_another_adapter_is_another_run(whole: Path, launch: Launch) -> None:
    """Fails where a checkpoint of other settings, or of all weights, is gone on from."""
    said = launch("train_dpo.py", whole / "config.yaml", "adapter.r=8", check=False)
    assert "adapter.r (4 then, 8 now)" in said.stderr
    said = launch("train_dpo.py", whole / "config.yaml", "adapter=null", check=False)
    assert "adapter.r (4 then, None now)" in said.stderr
    with pytest.raises(BadInput, match=r"adapter.alpha \(None then, 16 now\)"):
        require_same_run("it", {}, "auto", {"adapter.alpha": 16})
