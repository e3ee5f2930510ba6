"""`zephyr verify`: a short prefix of a run, trained under other layouts, must be the same
trajectory; the certificate says so.

Every variant is a real run of the training script on the first rows of the config's own data.
Compared are all metrics of all steps, and the float32 weights at the end, by their distance as a
share of the whole update."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

import zephyr
from zephyr import config as configs
from zephyr.config import BadInput, ConfigError, DPOConfig, SFTConfig
from zephyr.model import attention as kernels
from zephyr.model.load import DTYPES, local_folder, read_tensor, weight_files

# Of max(1, |value|) in any metric of any step; of the whole update, in the norm of the weights'
# distance at the end
TOLERANCE = {
    "float32": {"metrics": 1e-4, "weights": 1e-3},
    "bfloat16": {"metrics": 5e-2, "weights": 5e-2},
}
# Not of the trajectory; and accuracy, where a margin of almost nothing counts for a whole pair
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
    """A layout that must not matter. `changes`: of the config; `unavailable_reason`: why it can't be varied
    here, else empty."""

    description: str
    ranks: int
    changes: Mapping[str, object]
    unavailable_reason: str = ""


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
    """Run the prefix as it is and under each variant; write `certificate.json` to `out` and return
    what it holds.

    Raises: BadInput where the config can't be read, or a run fails."""
    stage, config = read_config(path, stage)
    ranks = ranks or (torch.cuda.device_count() if runs_on_gpu() else 2)
    scratch = out / "verify"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    run = partial(run_training, stage, path, scratch, rows)
    print(f"{rows} rows of {path} on {ranks} ranks, as it is", flush=True)
    base = run("base", ranks, {})
    steps = len(records(base))
    preflight = json.loads((base / "preflight.json").read_text(encoding="utf-8"))
    found: dict[str, Report] = {}
    for name, variant in variants(config, ranks, preflight["plan"]["longest_tokens"]).items():
        found[name] = {"what": variant.description} | (
            {"not_varied": variant.unavailable_reason}
            if variant.unavailable_reason
            else compare_runs(base, run(name, variant.ranks, variant.changes), config)
        )
        shutil.rmtree(scratch / name, ignore_errors=True)
        print(format_finding(name, found[name]), flush=True)
    half = {"run.save_every": (steps + 1) // 2}
    resumed = run("resume", ranks, half)
    shutil.rmtree(
        resumed / "checkpoints" / f"step-{steps}"
    )  # as if it had been cut off on its way from the one before
    found["resume"] = {
        "what": f"cut off after step {(steps + 1) // 2} of {steps} and started again"
    } | compare_runs(base, run("resume", ranks, half), config)
    found["resume"]["same"] &= "resumed from" in (scratch / "resume.log").read_text(
        encoding="utf-8", errors="replace"
    )
    print(format_finding("resume", found["resume"]), flush=True)
    report = {
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
        "same": all(of.get("same", True) for of in found.values()),
    }
    (out / "certificate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(scratch)
    return report


def runs_on_gpu() -> bool:
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"


def variants(config: DPOConfig | SFTConfig, ranks: int, longest: int) -> dict[str, Variant]:
    """What a trajectory must not depend on, one change each. Args: longest: tokens of the longest
    example."""
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
    found = {
        "world_size": Variant(f"{fewer} ranks for {ranks}", fewer, {}, many),
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
    }
    if isinstance(config, DPOConfig):
        room = max(
            hardware.tokens_per_micro_batch, 2 * config.data.max_tokens
        )  # for the longest pair, its prompt twice
        found["packing"] = Variant(
            f"prompts {'not ' * hardware.prefix_sharing}shared",
            ranks,
            {
                "hardware.prefix_sharing": not hardware.prefix_sharing,
                "hardware.tokens_per_micro_batch": room,
            },
        )
    return found


def run_training(
    stage: str,
    path: Path,
    scratch: Path,
    rows: int,
    name: str,
    ranks: int,
    changes: Mapping[str, object],
) -> Path:
    """One run of the training script on the first rows, two epochs in steps of a quarter of them;
    returns its folder.

    Raises: BadInput with the message of its `status.json` where it failed."""
    folder, log = scratch / name, scratch / f"{name}.log"
    own = (
        {"optim.pairs_per_step": max(1, rows // 4), "reference.dir": f"{folder}-reference"}
        if stage == "dpo"
        else {"optim.windows_per_step": 4}
    )
    keys = {
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
        **own,
        **changes,
    }
    if torchrun(
        stage,
        ranks,
        [str(path), *(f"{key}={json.dumps(value)}" for key, value in keys.items())],
        log,
    ):
        status = folder / "status.json"
        why = (
            json.loads(status.read_text(encoding="utf-8"))["message"]
            if status.exists()
            else "it never started"
        )
        raise BadInput(f"the run {name} failed: {why}; its log is {log}")
    return folder


def torchrun(stage: str, ranks: int, arguments: Sequence[str], log: Path) -> int:
    """The exit code of the stage's training script under torchrun; what it says is added to the
    log."""
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
    return [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def compare_runs(base: Path, other: Path, config: DPOConfig | SFTConfig) -> Report:
    """The largest difference of any metric of two runs, where it is, and the distance of their
    weights; `same` within both."""
    largest, where = 0.0, "nowhere"
    ours, theirs = records(base), records(other)
    for a, b in zip(ours, theirs):
        for name in a.keys() - set(NOT_COMPARED):
            if (
                isinstance(a[name], float)
                and not (apart := abs(a[name] - b[name]) / max(1.0, abs(a[name]))) <= largest
            ):
                largest, where = apart, f"{name} of step {a['step']}"
    distance = weights_distance(base, other, config.model)
    tolerance = TOLERANCE[config.hardware.dtype]
    same = (
        len(ours) == len(theirs)
        and largest <= tolerance["metrics"]
        and distance <= tolerance["weights"]
    )
    return {
        "largest_difference": largest,
        "where": where,
        "weights_distance": distance,
        "same": same,
    }


def weights_distance(base: Path, other: Path, model: str) -> float:
    """|w_other - w_base| / |w_base - w_start| of the float32 weights in both runs' last
    checkpoints, one tensor at a time."""
    start = weight_files(local_folder(model))
    apart, update = 0.0, 0.0
    for (name, a), (_, b) in zip(
        read_master_weights(base), read_master_weights(other), strict=True
    ):
        apart += float((b - a).double().square().sum())
        update += float(
            (a - read_tensor(start[name], name).float().flatten()).double().square().sum()
        )
    if not update:
        raise BadInput("no weight was updated: optim.lr_peak is too small, or --rows too few")
    return math.sqrt(apart / update)


def read_master_weights(run: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and flattened float32 values of each parameter in a run's last checkpoint, put together
    from all ranks."""
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text(encoding="utf-8")
    shards: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.glob("rank-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key, (start, _) in json.loads(file.metadata()["ranges"]).items():
                shards.setdefault(key, []).append((start, path))
    for key in sorted(key for key in shards if key.endswith(".master")):
        yield (
            key.removeprefix("lm.").removesuffix(".master"),
            torch.cat([read_tensor(path, key) for _, path in sorted(shards[key])]),
        )


def format_finding(name: str, of: Report) -> str:
    """A variant's finding for a person."""
    if "not_varied" in of:
        return f"{name}: not varied: {of['not_varied']}"
    verdict = "the same" if of["same"] else "NOT THE SAME"
    return (
        f"{name} ({of['what']}): {verdict}; metrics differ by {of['largest_difference']:.1e} at most ({of['where']}), "
        f"weights by {of['weights_distance']:.1e} of the update"
    )
