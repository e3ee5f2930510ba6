"""`zephyr verify`: the start of a run is trained under other layouts, which must not change it.

Every variant is a real run of the training script on the first rows of the config's own data. All
metrics of all steps are compared, and the float32 weights at the end, by their distance as a share
of the whole update. The result is written to `certificate.json`.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from safetensors import safe_open
from torch import Tensor

import zephyr
from zephyr import config as configs
from zephyr.config import BadInput, ConfigError, DPOConfig, SFTConfig
from zephyr.model import attention as kernels
from zephyr.model import fused as fused_kernels
from zephyr.model.load import DTYPES, local_folder, read_tensor, weight_files
from zephyr.model.load import read_config as read_model_config
from zephyr.progress import print_result, track

# How much two runs may differ. metrics: of max(1, |value|), any metric of any step. weights: the
# norm of their distance at the end, as a share of the whole update's norm.
TOLERANCE = {
    "float32": {"metrics": 1e-4, "weights": 1e-3},
    "bfloat16": {"metrics": 5e-2, "weights": 5e-2},
}
# Metrics that are not of the trajectory; and accuracy, which counts a pair with a margin of almost
# 0 as right or wrong.
NOT_COMPARED = (
    "rewards/accuracies",
    "tokens_per_second",
    "packing_efficiency",
    "step_seconds",
    "peak_memory_bytes",
    "mfu",
)
Report = dict[str, object]


class Variant(NamedTuple):
    """A layout that must not matter."""

    description: str
    ranks: int
    changes: Mapping[str, object]  # of the config, by key
    unavailable_reason: str = ""  # why it can't be varied on this machine; "": it can


class Comparison(TypedDict):
    """How two runs differ."""

    largest_difference: float  # of any metric
    where: str  # the metric and step
    weights_distance: float
    same: bool  # both within TOLERANCE


def read_config(path: Path, stage: str | None) -> tuple[str, DPOConfig | SFTConfig]:
    """The stage (`dpo` or `sft`) and config of a run folder or a YAML file. Raises: ConfigError."""
    kinds = {"dpo": DPOConfig, "sft": SFTConfig}
    found, errors = {}, []
    for name in [stage] if stage else kinds:
        try:
            found[name] = configs.load(kinds[name], str(path))
        except ConfigError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    if len(found) > 1:
        raise ConfigError(
            f"config {path}: it could be of either stage; --stage dpo or --stage sft is wanted"
        )
    return next(iter(found.items()))


def certify(path: Path, out: Path, *, stage: str | None, rows: int, ranks: int | None) -> Report:
    """Train the start of a run as it is and under each variant, and compare.

    Args: path: a run folder or YAML file. out: the folder for `certificate.json`. stage: dpo, sft,
    or None: found from the config. rows: of the config's data. ranks: None: all GPUs, or 2 on CPU.
    Returns: what `certificate.json` holds.
    Raises: BadInput where the config can't be read, or a run fails.
    """
    stage, config = read_config(path, stage)
    ranks = ranks or (torch.cuda.device_count() if runs_on_gpu() else 2)
    scratch = out / "verify"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    run = partial(run_training, stage, path, scratch, rows)
    print_result(f"{rows} rows of {path} on {ranks} ranks, as it is")
    base = run("base", ranks, {})
    steps = len(records(base))
    preflight = json.loads((base / "preflight.json").read_text(encoding="utf-8"))
    found: dict[str, Report] = {}
    same = True
    tried = variants(config, ranks, preflight["plan"]["longest_tokens"])
    for name, variant in track(tried.items(), "verify", "variants"):
        found[name] = {"what": variant.description}
        if variant.unavailable_reason:
            found[name]["not_varied"] = variant.unavailable_reason
        else:
            compared = compare_runs(base, run(name, variant.ranks, variant.changes), config)
            found[name].update(compared)
            same = same and compared["same"]
            shutil.rmtree(scratch / name, ignore_errors=True)
        print_result(format_finding(name, found[name]))
    resumed = compare_resumed(base, scratch, steps, ranks, run, config)
    found["resume"] = {
        "what": f"cut off after step {(steps + 1) // 2} of {steps} and started again"
    }
    found["resume"].update(resumed)
    print_result(format_finding("resume", found["resume"]))
    report: Report = {
        "config": str(path),
        "stage": stage,
        "ranks": ranks,
        "rows": rows,
        "steps": steps,
        "dtype": config.hardware.dtype,
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "packed_difference": preflight["packed"]["difference"],
        "tolerance": TOLERANCE[config.hardware.dtype],
        "variants": found,
        "same": same and resumed["same"],
    }
    (out / "certificate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(scratch)
    return report


def compare_resumed(
    base: Path,
    scratch: Path,
    steps: int,
    ranks: int,
    run: Callable[[str, int, Mapping[str, object]], Path],
    config: DPOConfig | SFTConfig,
) -> Comparison:
    """Compare with a run that was cut off half way and started again.

    `same` is false where it did not resume, but ran from the start.
    """
    half = {"run.save_every": (steps + 1) // 2}
    resumed = run("resume", ranks, half)
    shutil.rmtree(resumed / "checkpoints" / f"step-{steps}")  # as if it had been cut off before
    compared = compare_runs(base, run("resume", ranks, half), config)
    log = (scratch / "resume.log").read_text(encoding="utf-8", errors="replace")
    compared["same"] = compared["same"] and "resumed from" in log
    return compared


def runs_on_gpu() -> bool:
    """Whether training here takes GPUs."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"


def variants(config: DPOConfig | SFTConfig, ranks: int, longest: int) -> dict[str, Variant]:
    """The layouts to try, each with one change.

    Args: longest: tokens of the longest example.
    """
    hardware = config.hardware
    fewer = max(1, ranks // 2) if ranks > 1 else 2
    budget = longest if longest < hardware.tokens_per_micro_batch else 2 * longest
    recompute = not hardware.activation_checkpointing
    device = "cuda" if runs_on_gpu() else "cpu"
    others = {
        name: kernels.unavailable_reason(name, DTYPES[hardware.dtype], device)
        for name in ("sdpa", "torch_varlen", "flash_attn")
        if name != hardware.attention
    }
    backend = next((name for name, reason in others.items() if reason is None), "")
    many = "" if ranks > 1 or device == "cpu" else "this machine has one GPU"
    if fewer % hardware.sequence_parallel:
        many = f"{hardware.sequence_parallel} ranks compute a row together"
    found = {
        "world_size": Variant(f"{fewer} ranks for {ranks}", fewer, {}, many),
        **whole_rows(config, ranks, longest),
        "micro_batch": Variant(
            f"micro-batches of {budget} tokens for {hardware.tokens_per_micro_batch}",
            ranks,
            {"hardware.tokens_per_micro_batch": budget},
        ),
        "checkpointing": Variant(
            f"activation checkpointing {'on' if recompute else 'off'}",
            ranks,
            {"hardware.activation_checkpointing": recompute},
        ),
        "attention": Variant(
            f"attention by {backend or 'another kernel'} for {hardware.attention}",
            ranks,
            {"hardware.attention": backend},
            "" if backend else "; ".join(filter(None, others.values())),
        ),
        "fused": fused_variant(config, ranks, device),
    }
    if isinstance(config, DPOConfig):
        # Enough for the longest pair with its prompt twice.
        budget_unshared = max(hardware.tokens_per_micro_batch, 2 * config.data.max_tokens)
        found["packing"] = Variant(
            f"prompts {'not shared' if hardware.prefix_sharing else 'shared'}",
            ranks,
            {
                "hardware.prefix_sharing": not hardware.prefix_sharing,
                "hardware.tokens_per_micro_batch": budget_unshared,
            },
        )
    return found


def whole_rows(config: DPOConfig | SFTConfig, ranks: int, longest: int) -> dict[str, Variant]:
    """Each rank its own rows, where the config's ranks compute rows together; else nothing.

    A rank's rows are as long as its shares were, or as the longest example.
    """
    together, budget = config.hardware.sequence_parallel, config.hardware.tokens_per_micro_batch
    if together == 1:
        return {}
    changes: dict[str, object] = {
        "hardware.sequence_parallel": 1,
        "hardware.tokens_per_micro_batch": max(longest, budget // together),
    }
    return {"sequence": Variant(f"whole rows for {together} ranks to a row", ranks, changes)}


def fused_variant(config: DPOConfig | SFTConfig, ranks: int, device: str) -> Variant:
    """Norms, SwiGLU and rotary positions by other kernels: transformers' where the run's are fused,
    else the first fused ones that run here."""
    fused = config.hardware.fused
    choices = ("none",) if fused != "none" else tuple(fused_kernels.PACKAGES)
    reasons = {name: why_not_fused(config.model, name, device) for name in choices}
    other = next((name for name, reason in reasons.items() if reason is None), "")
    return Variant(
        f"norms, SwiGLU and rotary positions by {other or 'other kernels'} for {fused}",
        ranks,
        {"hardware.fused": other},
        "" if other else "; ".join(filter(None, reasons.values())),
    )


def why_not_fused(model: str, fused: str, device: str) -> str | None:
    """The reason why a model can't have these kernels here, or None."""
    reason = fused_kernels.unavailable_reason(fused, device)
    if reason is None:
        try:
            fused_kernels.require_served(read_model_config(local_folder(model)), fused)
        except ConfigError as error:
            reason = str(error)
    return reason


def run_training(
    stage: str,
    path: Path,
    scratch: Path,
    rows: int,
    name: str,
    ranks: int,
    changes: Mapping[str, object],
) -> Path:
    """Run the training script on the first rows: two epochs, in steps of a quarter of the rows.

    Args: name: of the variant. changes: of the config, by key.
    Returns: the run folder.
    Raises: BadInput with the message of its `status.json` where it failed.
    """
    folder, log = scratch / name, scratch / f"{name}.log"
    keys: dict[str, object] = {
        "data.limit": rows,
        "data.eval": [],
        "optim.epochs": 2,
        "run.dir": str(folder),
        "run.save_every": 2**30,
        "run.keep": 2,
        "run.log_every": 1,
        "run.resume": "auto",
        "run.preflight": True,
        "run.wandb.mode": "disabled",
        "samples.prompts": [],
    }
    if stage == "dpo":
        keys["optim.pairs_per_step"] = max(1, rows // 4)
        keys["reference.dir"] = f"{folder}-reference"
    else:
        keys["optim.windows_per_step"] = 4
    keys.update(changes)
    overrides = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    if torchrun(stage, ranks, [str(path), *overrides], log):
        status = folder / "status.json"
        why = "it never started"
        if status.exists():
            why = json.loads(status.read_text(encoding="utf-8"))["message"]
        raise BadInput(f"the run {name} failed: {why}; its log is {log}")
    return folder


def torchrun(stage: str, ranks: int, arguments: Sequence[str], log: Path) -> int:
    """Run the stage's training script under torchrun; its output is appended to the log.

    Returns: the exit code.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={ranks}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        str(Path(zephyr.__file__).parents[1] / f"train_{stage}.py"),
        *arguments,
    ]
    with log.open("ab") as output:
        return subprocess.run(command, stdout=output, stderr=output, check=False).returncode


def records(run: Path) -> list[dict[str, float]]:
    """All records of a run."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def compare_runs(base: Path, other: Path, config: DPOConfig | SFTConfig) -> Comparison:
    """Compare all metrics and the weights of two runs."""
    largest, where = 0.0, "nowhere"
    ours, theirs = records(base), records(other)
    for a, b in zip(ours, theirs):
        for name in a.keys() - set(NOT_COMPARED):
            if isinstance(a[name], float):
                difference = abs(a[name] - b[name]) / max(1.0, abs(a[name]))
                if not difference <= largest:  # also for a NaN
                    largest, where = difference, f"{name} of step {a['step']}"
    distance = weights_distance(base, other, config.model)
    tolerance = TOLERANCE[config.hardware.dtype]
    near = largest <= tolerance["metrics"] and distance <= tolerance["weights"]
    return {
        "largest_difference": largest,
        "where": where,
        "weights_distance": distance,
        "same": near and len(ours) == len(theirs),
    }


def weights_distance(base: Path, other: Path, model: str) -> float:
    """|w_other - w_base| / |w_base - w_start| of the float32 weights in both last checkpoints.

    One tensor is in memory at a time. Raises: BadInput where no weight was updated.
    """
    start = weight_files(local_folder(model))
    distance, update = 0.0, 0.0
    both = zip(read_master_weights(base), read_master_weights(other), strict=True)
    for (name, base_weight), (_, other_weight) in both:
        start_weight = read_tensor(start[name], name).float().flatten()
        distance += float((other_weight - base_weight).double().square().sum())
        update += float((base_weight - start_weight).double().square().sum())
    if not update:
        raise BadInput("no weight was updated: optim.lr_peak is too small, or --rows too few")
    return math.sqrt(distance / update)


def read_master_weights(run: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and flattened float32 values of each parameter in a run's last checkpoint.

    The parts of all ranks are joined.
    """
    latest = (run / "checkpoints" / "latest").read_text(encoding="utf-8")
    shards: dict[str, list[tuple[int, Path]]] = {}
    for path in (run / "checkpoints" / latest).glob("rank-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key, (start, _) in json.loads(file.metadata()["ranges"]).items():
                shards.setdefault(key, []).append((start, path))
    for key in sorted(key for key in shards if key.endswith(".master")):
        name = key.removeprefix("lm.").removesuffix(".master")
        yield name, torch.cat([read_tensor(path, key) for _, path in sorted(shards[key])])


def format_finding(name: str, finding: Report) -> str:
    """A variant's finding as a line to print."""
    if "not_varied" in finding:
        return f"{name}: not varied: {finding['not_varied']}"
    verdict = "the same" if finding["same"] else "NOT THE SAME"
    return (
        f"{name} ({finding['what']}): {verdict}; metrics differ by at most "
        f"{finding['largest_difference']:.1e} ({finding['where']}), weights by "
        f"{finding['weights_distance']:.1e} of the update"
    )
