"""What every benchmark shares: a result file that says on what, with what and how it was measured,
and medians with their spread."""

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import device as devices
import torch

RESULTS = Path(os.environ.get("ZEPHYR_RESULTS") or Path(__file__).parent / "results")
PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "flash-attn",
    "liger-kernel",
    "triton",
    "trl",
    "accelerate",
    "numpy",
)


@lru_cache
def machine() -> dict[str, object]:
    """The processor, what computes on it, and the versions of what was measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    gpu = (
        {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        if torch.cuda.is_available()
        else {}
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **gpu,
        "python": platform.python_version(),
        "packages": versions,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def commit() -> str:
    """The commit of the code; ZEPHYR_COMMIT says it for a copy of the files that git knows nothing
    of."""
    if "ZEPHYR_COMMIT" in os.environ or not shutil.which("git"):
        return os.environ.get("ZEPHYR_COMMIT", "unknown")
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, least and greatest of repeated measurements, and how many there were."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def seconds(
    call: Callable[[], object], repeats: int = 5, warm_ups: int = 1, device: str | None = None
) -> dict[str, float | int]:
    """Time of a call: by device events on a GPU, else as CPU time of this process, all threads."""
    where, times = device or devices.default(), []
    for _ in range(warm_ups + repeats):
        start = devices.mark(where)
        call()
        end = devices.mark(where)
        devices.synchronize(where)
        times.append(devices.elapsed(start, end))
    return spread(times[warm_ups:])


@contextlib.contextmanager
def failure_recorded(where: dict[str, object], name: str) -> Iterator[None]:
    """An error becomes `where[name]`, with its reason, and what comes after is still measured."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        where[name] = {"skipped": reason}
        print(f"{name}: {reason}", flush=True)


def save(name: str, command: str, result: object) -> None:
    """Write results/NAME.json (NAME.gpu.json on a GPU) and print it."""
    print(write(name, command, result).read_text(encoding="utf-8"), end="")


def write(name: str, command: str, result: object) -> Path:
    """Write results/NAME.json (NAME.gpu.json on a GPU), whole or not at all; returns the file."""
    RESULTS.mkdir(exist_ok=True, parents=True)
    text = json.dumps({"command": command, "machine": machine(), "result": result}, indent=1)
    file = RESULTS / f"{name}{'.gpu' if torch.cuda.is_available() else ''}.json"
    part = file.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)
    return file
