"""What the JSON and the YAML together give to DeepSpeed, and what of the JSON is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import ROOT

from zephyr.config import ConfigError, Hardware, Optim
from zephyr.training.deepspeed_settings import (
    deepspeed_settings,
    gradient_dtype,
    read_deepspeed,
    slow_settings,
)
from zephyr.training.engine import use_expandable_segments

ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    "content,message",
    [
        (
            '{"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}}',
            "hardware.dtype decides",
        ),
        ('{"zero_optimization": {"stage": 3}, "optimizer": {}}', "optim decides"),
        ('{"zero_optimization": {"stage": 2}}', "stage 3"),
        (
            '{"zero_optimization": {"stage": 3}, "data_types": "bf16"}',
            "data_types: a mapping with grad_accum_dtype is wanted, got 'bf16'",
        ),
        ("{}", "stage 3"),
        ("{", "not JSON"),
        ("[]", "stage 3"),
    ],
)
def test_deepspeed_json_holds_only_its_own(content: str, message: str, tmp_path: Path) -> None:
    """Fails where the JSON could quietly override the YAML's precision, clipping or batch."""
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_deepspeed(str(tmp_path / "d.json"))
    with pytest.raises(ConfigError, match="no such file"):
        read_deepspeed(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    "key",
    [
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "optimizer",
        "scheduler",
        "gradient_clipping",
        "bf16",
        "fp16",
        "amp",
        "activation_checkpointing",
    ],
)
def test_each_key_that_the_yaml_decides_is_refused(key: str, tmp_path: Path) -> None:
    """Fails where one of DeepSpeed's own keys would be taken from the JSON, or dropped, in
    silence."""
    (tmp_path / "d.json").write_text(json.dumps({**ZERO3, key: 1}))
    with pytest.raises(ConfigError, match=f"sets {key}; the YAML's"):
        read_deepspeed(str(tmp_path / "d.json"))


def completed(settings: dict[str, object], ranks: int = 2, **changes: object) -> dict[str, object]:
    return deepspeed_settings(
        settings,
        hardware=Hardware(**changes),
        optim=Optim(grad_clip=0.0),
        gradients_in="float32",
        ranks=ranks,
    )


@pytest.mark.parametrize("key", ["leaf_module", "stage3_module_granularity_threshold"])
def test_json_and_yaml_agree_on_what_is_gathered(key: str) -> None:
    """DeepSpeed's own keys for larger gathers pass beside `gather: layer` and are an error beside
    `gather: module`. Fails where one of the two is ignored in silence."""
    settings = {"zero_optimization": {"stage": 3, key: 1}}
    assert completed(settings)["zero_optimization"] == {"stage": 3, key: 1}
    with pytest.raises(ConfigError, match=f"gather: module, but .* sets zero_optimization.{key}"):
        completed(settings, gather="module")


def test_what_the_json_leaves_out_is_not_deepspeeds_default() -> None:
    """A JSON of ZeRO-3 alone. Fails where gradients are then added up in bfloat16, or clipped at
    1.0, as DeepSpeed would, or its timer waits for the device."""
    settings = completed(ZERO3)
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["gradient_clipping"] == 0.0 and settings["gradient_accumulation_steps"] == 1
    assert settings["bf16"] == {"enabled": True} and settings["zero_optimization"] == {"stage": 3}
    assert completed(ZERO3, dtype="float32")["bf16"] == {"enabled": False}
    assert settings["timers"] == {"throughput": {"enabled": False}}
    own = {**ZERO3, "timers": {"throughput": {"enabled": True}}}
    assert completed(own)["timers"] == own["timers"]


def test_one_rank_scatters_nothing() -> None:
    """Fails where the JSON's `reduce_scatter` reaches DeepSpeed with one rank, which then copies
    each bucket, or not with two, and where another setting or the JSON itself is changed."""
    zero = {"stage": 3, "reduce_scatter": True, "overlap_comm": True}
    settings = {"zero_optimization": zero}
    assert completed(settings, ranks=1)["zero_optimization"] == {**zero, "reduce_scatter": False}
    assert (
        completed(settings, ranks=2)["zero_optimization"] == zero == settings["zero_optimization"]
    )


@pytest.mark.parametrize(
    "ranks,device,overlap,warned",
    [
        (1, "cuda", False, True),
        (1, "cuda", True, False),
        (1, "cuda", None, False),
        (2, "cuda", False, False),
        (1, "cpu", False, False),
    ],
)
def test_a_setting_that_drains_one_gpu_is_warned_of(
    ranks: int, device: str, overlap: bool | None, warned: bool
) -> None:
    """Fails where it is not, or where CPU ranks are told to change configs/deepspeed/cpu.json.
    Where the JSON leaves it out, DeepSpeed's default for ZeRO-3 is true."""
    zero = {"stage": 3} if overlap is None else {"stage": 3, "overlap_comm": overlap}
    found = slow_settings({"zero_optimization": zero}, ranks=ranks, device=device)
    assert [("overlap_comm" in text, len(found)) for text in found] == [(True, 1)] * warned


@pytest.mark.parametrize(
    "asked,of_json,dtype,micro_batches,expected,reason",
    [
        ("auto", None, "bfloat16", 1, "bfloat16", "one micro-batch on each rank"),
        ("auto", None, "bfloat16", 2, "float32", "up to 2 micro-batches"),
        ("auto", None, "bfloat16", None, "float32", "not known"),
        ("auto", None, "float32", 1, "float32", "hardware.dtype is float32"),
        ("auto", "fp32", "bfloat16", 1, "float32", "d.json sets data_types.grad_accum_dtype"),
        ("auto", "bf16", "bfloat16", 4, "bfloat16", "d.json sets data_types.grad_accum_dtype"),
        ("bfloat16", None, "bfloat16", 4, "bfloat16", "hardware.gradient_dtype"),
        ("float32", None, "bfloat16", 1, "float32", "hardware.gradient_dtype"),
        ("float32", "torch.float32", "bfloat16", 1, "float32", "hardware.gradient_dtype"),
    ],
)
def test_gradients_are_summed_in(
    asked: str,
    of_json: str | None,
    dtype: str,
    micro_batches: int | None,
    expected: str,
    reason: str,
) -> None:
    """Every way to a dtype, and the reason that is logged. Fails where `auto` takes bfloat16 while
    something is summed, or is not heard where nothing is; where an old JSON is ignored; or where
    the YAML does not come first."""
    hardware = Hardware(gradient_dtype=asked, dtype=dtype, deepspeed="d.json")
    settings = ZERO3 if of_json is None else {**ZERO3, "data_types": {"grad_accum_dtype": of_json}}
    found = gradient_dtype(hardware, settings, ranks=2, micro_batches=micro_batches)
    assert found.dtype == expected and reason in found.reason


def test_auto_keeps_what_ranks_average_in_float32() -> None:
    """Gradients that the JSON has ranks average in float32 would be rounded. Fails where `auto`
    rounds them; one rank averages nothing."""
    settings = {**ZERO3, "communication_data_type": "fp32"}
    for ranks, expected in ((2, "float32"), (1, "bfloat16")):
        found = gradient_dtype(Hardware(), settings, ranks=ranks, micro_batches=1)
        assert found.dtype == expected
    settings["communication_data_type"] = "bf16"
    assert gradient_dtype(Hardware(), settings, ranks=2, micro_batches=1).dtype == "bfloat16"


@pytest.mark.parametrize(
    "asked,of_json,dtype,message",
    [
        ("float32", "bf16", "bfloat16", "gradient_dtype: float32, but d.json sets .*: bf16"),
        ("bfloat16", "fp32", "bfloat16", "gradient_dtype: bfloat16, but d.json sets .*: fp32"),
        ("bfloat16", None, "float32", "gradient_dtype: bfloat16 needs hardware.dtype bfloat16"),
        ("auto", "bf16", "float32", "d.json.*: bfloat16 needs hardware.dtype bfloat16"),
        ("auto", "fp16", "bfloat16", "grad_accum_dtype: fp32 or bf16 is wanted, got 'fp16'"),
    ],
)
def test_a_gradient_dtype_that_cannot_be_is_refused(
    asked: str, of_json: str | None, dtype: str, message: str
) -> None:
    """Fails where one of two contradicting settings is dropped, or DeepSpeed is asked for a sum
    that is narrower than the gradients."""
    hardware = Hardware(gradient_dtype=asked, dtype=dtype, deepspeed="d.json")
    settings = ZERO3 if of_json is None else {**ZERO3, "data_types": {"grad_accum_dtype": of_json}}
    with pytest.raises(ConfigError, match=message):
        gradient_dtype(hardware, settings, ranks=1, micro_batches=None)


@pytest.mark.parametrize("name", ["cpu", "zero3", "zero3-offload"])
def test_the_shipped_json_leaves_the_gradients_dtype_to_the_yaml(name: str) -> None:
    """Fails where a shipped file names a dtype, which `gradient_dtype: auto` would obey."""
    settings = read_deepspeed(f"configs/deepspeed/{name}.json")
    assert gradient_dtype(Hardware(), settings, ranks=8, micro_batches=1).dtype == "bfloat16"


@pytest.mark.skipif(
    not hasattr(torch._C, "_accelerator_getAllocatorSettings"),
    reason="this torch does not say what it has read (2.13 does)",
)
def test_a_run_asks_torch_for_expandable_segments(tmp_path: Path) -> None:
    """By what torch itself has read when a launched run checks its config, which may start CUDA.
    Fails where that is too late, or torch knows another name."""
    code = (
        "import torch\n"
        "from zephyr.config import ConfigError, DPOConfig\n"
        "from zephyr.training.launch import launch\n"
        "def check(config):\n"
        "    print(torch._C._accelerator_getAllocatorSettings())\n"
        "    raise ConfigError('enough')\n"
        f"argv = ['configs/tiny/dpo.yaml', 'run.dir={tmp_path}']\n"
        "launch(DPOConfig, check, None, None, '', argv)\n"
    )
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["expandable_segments:True"]


@pytest.mark.parametrize("own", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_users_own_allocator_settings_stay(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where one of torch's names for them is not looked at, and theirs is hidden by ours."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv(own, "max_split_size_mb:512")
    use_expandable_segments()
    found = {name: value for name, value in os.environ.items() if "ALLOC_CONF" in name}
    ours = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert found == (ours if own is None else {own: "max_split_size_mb:512"})
