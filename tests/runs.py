"""Runs of the real scripts on tiny models: their input, their output, and processes to disturb."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml
from processes import ROOT, free_port
from safetensors.numpy import load_file
from torch.distributed.run import get_args_parser

LONG = ("optim.epochs=10", "run.save_every=1000")  # 30 steps of the config that `finished` wrote

WORDS = (
    "the river sky blue red short letter friend sea seven days week answer four two good true"
).split()


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Preference pairs of random words."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    return [
        {"id": f"p{i}", "prompt": words(3, 12), "chosen": words(2, 9), "rejected": words(10, 12)}
        for i in range(count)
    ]


def write_lines(path: Path, items: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def write_config(folder: Path, model: Path, data: Path, **changes: object) -> Path:
    """A DPO config on CPU. Args: changes: group__key=value."""
    tree = {
        "model": str(model),
        "data": {"train": [str(data)], "shuffle": True},
        "optim": {"lr_peak": 1e-3, "epochs": 2, "pairs_per_step": 8},
        "reference": {"dir": str(folder / "reference")},
        "hardware": {
            "tokens_per_micro_batch": 600,
            "dtype": "float32",
            "attention": "sdpa",
            "deepspeed": "configs/deepspeed/cpu.json",
        },
        "run": {"dir": str(folder / "run"), "wandb": {"mode": "disabled"}},
    }
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (tree[group] if group else tree)[leaf] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def records(run: Path, split: str = "train") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in lines if r["split"] == split]


def ledger(run: Path) -> list[dict[str, float]]:
    return [
        row
        for path in sorted((run / "pairs").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def require_same_end(run: Path, undisturbed: Path) -> None:
    """Records, ledger and weights to the bit, no line lost or doubled."""
    for split in ("train", "eval"):
        assert [(r["step"], r["loss"]) for r in records(run, split)] == [
            (r["step"], r["loss"]) for r in records(undisturbed, split)
        ]
    rows_of = [
        sorted(ledger(folder), key=lambda v: (v["step"], v["id"])) for folder in (run, undisturbed)
    ]
    assert rows_of[0] == rows_of[1] and len(rows_of[0]) == 10 * 20
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (run, undisturbed))
    assert all(np.array_equal(a[name], b[name]) for name in b)


def running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ranks_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of a launcher's ranks, in their order."""
    return sorted(
        (child.pid for child in psutil.Process(process.pid).children()),
        key=lambda pid: int(psutil.Process(pid).environ()["RANK"]),
    )


def wait_for(
    ready: Callable[[], bool],
    process: subprocess.Popen[bytes] | None,
    seconds: float = 120,
    pause: float = 0.1,
) -> None:
    """Wait until `ready()`, as long as the process runs and the time is not over."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"it did not happen within {seconds} seconds"
        assert process is None or process.poll() is None, "the process ended before it happened"
        time.sleep(pause)


@contextlib.contextmanager
def background(
    script: str, *arguments: str | Path, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The script on two ranks, with the launch flags of the README, as far as this torchrun knows
    them. What is left of it at the end of the block is killed."""
    flags = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    if "--shutdown-timeout" in get_args_parser().format_usage():
        flags += ["--shutdown-timeout", "600"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={free_port()}",
        *flags,
        str(ROOT / script),
        *map(str, arguments),
    ]
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            start_new_session=True,
            stdout=output,
            stderr=output,
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
