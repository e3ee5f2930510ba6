"""`--dry-run` of the shipped configs on a machine without their GPUs, kernels, weights or rows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from processes import ROOT
from stand_ins import MODELS, SHAPES
from tiny import SENTENCES
from tokenizer_kinds import make_tokenizer

import train_dpo
import train_sft
from zephyr import config as configs
from zephyr.config import ConfigError, DPOConfig, DryRun, SFTConfig
from zephyr.costs.predict import Card, choose_device
from zephyr.model.load import find_lacks, require_runnable
from zephyr.training.devices import DEVICES
from zephyr.training.launch import launch

CONFIGS = [path for name in MODELS for path in sorted((ROOT / "configs" / name).glob("*.yaml"))]
NAMES = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]
CLUSTERS = (("16", "a100-80"), ("8", "h100"))
# Examples of the published sets that `--lengths` draws.
EXAMPLES = {"ultrafeedback": 61135, "ultrachat": 207865}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each folder of configs/: the published config.json and a tokenizer, no more."""
    folders = {}
    for name, (shape, kind) in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        make_tokenizer(kind, SENTENCES).save_pretrained(folders[name])
        shutil.copy(SHAPES / shape / "config.json", folders[name])
    return folders


def dry_run(path: Path, model: Path, gpus: str, device: str, *changes: str) -> tuple[int, str]:
    """The script's own dry run in this process. Returns: its exit code, and the profile."""
    is_dpo = "beta" in yaml.safe_load(path.read_text())
    lengths = "ultrafeedback" if is_dpo else "ultrachat"
    if path.parent.name == "tulu3-8b":  # the template that its SFT model has
        changes += ("chat_template=configs/tulu3-8b/tulu.jinja",)
    argv = [str(path), f"model={model}", f"tokenizer={model}", *changes]
    argv += ["--dry-run", "--gpus", gpus, f"--device={device}", "--lengths", lengths]
    if is_dpo:
        code = launch(DPOConfig, train_dpo.check, train_dpo.train, train_dpo.predict, "", argv)
    else:
        code = launch(SFTConfig, require_runnable, train_sft.train, train_sft.predict, "", argv)
    return code, lengths


def described(out: str, gpus: str, device: str) -> dict[str, float]:
    """What a page says in short, checked for what it names. Fails where a part is missing."""
    assert f" on {gpus} x {device} with {DEVICES[device].memory / 1e9:.1f} GB" in out
    short = re.search(
        r"^in short: ([\d,]+) steps of ([\d.]+) (m?s), [\d.]+ (?:h|min|s) in all; "
        r"([\d.]+) GB of the [\d.]+ GB of each, which (fits|does not fit)$",
        out,
        re.MULTILINE,
    )
    assert short, out
    steps, seconds, unit, memory, _ = short.groups()
    assert f"plan: {int(steps.replace(',', ''))} steps" in out
    return {
        "steps": int(steps.replace(",", "")),
        "seconds": float(seconds) / (1000 if unit == "ms" else 1),
        "GB": float(memory),
    }


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_dry_run_needs_neither_kernels_nor_weights(
    path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """64 examples of the profile, on one of the clusters. Fails where a shipped config has to be
    changed for this machine, weights or rows are looked for, a part of the page is missing, or what
    was not checked is not said."""
    folder = models[path.parent.name]
    assert not list(folder.glob("*.safetensors"))
    gpus, device = CLUSTERS[CONFIGS.index(path) % 2]
    code, _ = dry_run(path, folder, gpus, device, "data.limit=64")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    found = described(shown.out, gpus, device)
    assert found["steps"] >= 1 and found["seconds"] > 0 and found["GB"] > 3
    lacks = shown.out.partition("Not checked, because this machine lacks it:")[2]
    kernel = yaml.safe_load(path.read_text())["hardware"]["attention"]
    assert f"hardware.attention: {kernel} runs on a GPU" in lacks, shown.out
    assert f"model {folder}: neither model.safetensors nor" in lacks


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_lengths_need_no_tokenizer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds a config.json only. Fails where a tokenizer is wanted although the token
    counts are given, or where nothing says that it was not checked."""
    path = ROOT / f"configs/zephyr-7b-beta/{name}.yaml"
    code, _ = dry_run(path, SHAPES / "mistral-7b", "16", "a100-80", "data.limit=64")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    described(shown.out, "16", "a100-80")
    assert "no tokenizer loads from" in shown.out.partition("Not checked, because this")[2]


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_dry_run_of_the_published_sizes(
    path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """All examples of the profile: the steps follow from its size and the config. Fails where a dry
    run plans a part of the run."""
    config = yaml.safe_load(path.read_text())
    for gpus, device in CLUSTERS:
        code, lengths = dry_run(path, models[path.parent.name], gpus, device)
        out = capsys.readouterr().out
        assert code == 0 and f"{EXAMPLES[lengths]:,} examples of" in out
        steps = described(out, gpus, device)["steps"]
        if lengths == "ultrafeedback":
            per_epoch = -(-EXAMPLES[lengths] // config["optim"]["pairs_per_step"])
            assert steps == config["optim"]["epochs"] * per_epoch


def test_what_a_dry_run_still_refuses(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is not there, an unknown card, a loss that does not exist: no machine runs them.
    Fails where a dry run prints a page of what could never train."""
    path, model = ROOT / "configs/zephyr-7b-beta/dpo.yaml", models["zephyr-7b-beta"]
    for arguments, message in (
        ((model / "none", "8", "h100"), "no such folder"),
        ((model, "8", "h1000"), "--device h1000: expected one of"),
        ((model, "8", "v100"), "it has no bfloat16"),
        ((model, "8", "h100", "loss=sigmoidd"), "the nearest is sigmoid"),
        ((model, "8", "h100", "hardware.tokens_per_micro_batch=512"), "tokens_per_micro_batch"),
    ):
        assert dry_run(path, *arguments)[0] == 2
        assert message in capsys.readouterr().err


def test_lacks_are_those_that_refuse_a_run(models: dict[str, Path]) -> None:
    """The same list decides whether a run starts. Fails where a dry run promises what a run then
    refuses for another reason."""
    path = str(ROOT / "configs/zephyr-7b-beta/dpo.yaml")
    config = configs.load(DPOConfig, path, [f"model={models['zephyr-7b-beta']}"])
    first, *others = map(str, find_lacks(config))
    assert len(others) == 1 and "neither model.safetensors" in others[0]
    with pytest.raises(ConfigError, match="flash_attn") as refused:
        require_runnable(config)
    assert str(refused.value) == first


def test_a100_is_the_larger_one() -> None:
    """Fails where the name that everyone says is unknown, or is the card of 40 GB."""
    assert choose_device("a100", Card(), "bfloat16", 8) == ("a100-80", DEVICES["a100-80"])


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("c.yaml", None),
        ("c.yaml --dry-run", DryRun()),
        ("--gpus 16 c.yaml --dry-run --device=h100", DryRun(16, "h100")),
        ("--dry-run --lengths a=b.jsonl c.yaml", DryRun(lengths="a=b.jsonl")),
    ],
)
def test_options_of_a_dry_run(arguments: str, found: DryRun | None) -> None:
    """Fails where a value is taken for the config or an override, or an option is lost."""
    assert configs.read_dry_run(arguments.split()) == found
    rest, _ = configs.take_values(arguments.split())
    assert [word for word in rest if word not in configs.OPTIONS] == ["c.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("c.yaml --gpus 8", "--gpus: only a dry run takes it: add --dry-run"),
        ("c.yaml --dry-run --gpus", "--gpus: a value is wanted after it, got ''"),
        (
            "--dry-run --device --quiet c.yaml",
            "--device: a value is wanted after it, got '--quiet'",
        ),
        ("c.yaml --dry-run --gpus 0", "--gpus: expected an integer from 1 to 1,048,576, got '0'"),
        ("c.yaml --dry-run --gpus=x", "--gpus: expected an integer"),
        ("c.yaml --dry-run --gpus 8 --gpus=16", "--gpus: given twice, 8 and 16"),
    ],
)
def test_wrong_options_of_a_dry_run(arguments: str, message: str) -> None:
    """Fails where a run trains although it was asked to predict other GPUs, or a wrong value is a
    traceback."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        configs.load_arguments(DPOConfig, arguments.split())
