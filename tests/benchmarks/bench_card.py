"""What this machine is: versions, tools, memory, and the rates that its steps are bound by.

python tests/benchmarks/bench_card.py [--device cuda --out DIR]"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import distributions

import device as devices
import measure
import torch
from gpu import NO_GPU

# The products of one layer of Mistral-7B: rows of weight matrices by columns
SHAPES = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (32000, 4096))
TOOLS = ("git", "gcc", "g++", "nvcc", "nvidia-smi", "ninja")


def tools() -> dict[str, str]:
    """The last line of what each tool says of its version; "" where it is not there."""
    found = {}
    for tool in TOOLS:
        command = [tool] if tool == "nvidia-smi" else [tool, "--version"]
        if shutil.which(tool) is None:
            found[tool] = ""
            continue
        said = subprocess.run(command, capture_output=True, text=True, timeout=10)
        found[tool] = (said.stdout.strip().splitlines() or ["?"])[0 if tool != "nvcc" else -1]
    return found


def copies(device: str, gigabytes: float) -> dict[str, float]:
    """Bytes a second: read and written within the device, and from and to the host's memory."""
    n = int(gigabytes * 1e9)
    here, there = (torch.empty(n, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.empty(n // 8, dtype=torch.uint8)
    pinned = host.pin_memory() if devices.is_gpu(device) else host
    part = here[: len(host)]
    calls = {
        "within": (partial(there.copy_, here), 2 * n),
        "to host": (partial(host.copy_, part), len(host)),
        "from host": (partial(part.copy_, host), len(host)),
        "to pinned": (partial(pinned.copy_, part), len(host)),
        "from pinned": (partial(part.copy_, pinned), len(host)),
    }
    return {
        name: moved / measure.seconds(call, repeats=3, device=device)["median"]
        for name, (call, moved) in calls.items()
    }


def products(device: str, rows: int, shrink: int) -> dict[str, float]:
    """Operations a second of bfloat16 products: a large square one, and those of a 7B layer."""
    rates = {}
    for out, inner in ((8192, 8192), *SHAPES):
        n, o, i = (8192 if out == inner == 8192 else rows) // shrink, out // shrink, inner // shrink
        a, b = (torch.randn(*size, device=device).bfloat16() for size in ((n, i), (o, i)))
        taken = measure.seconds(lambda a=a, b=b: a @ b.t(), repeats=5, warm_ups=2, device=device)
        rates[f"{n}x{i}x{o}"] = 2 * n * i * o / taken["median"]
    return rates


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default=devices.default())
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--out", type=type(measure.RESULTS), default=measure.RESULTS)
    args = parser.parse_args(argv)
    if devices.is_gpu(args.device) and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    measure.RESULTS = args.out
    result: dict[str, object] = {
        "tools": tools(),
        "system": platform.platform(),
        "python": sys.executable,
        "device_bytes": devices.memory(args.device),
        "host_bytes": devices.memory("cpu"),
        "disk_free_bytes": {
            str(path): shutil.disk_usage(path).free
            for path in (args.out, "/tmp", "/dev/shm")
            if os.path.isdir(path)
        },
        "packages": {d.metadata["Name"]: d.version for d in distributions()},
    }
    keep = partial(measure.write, "card", "python tests/benchmarks/bench_card.py", result)
    keep()
    result["bytes_per_second"] = copies(args.device, args.gigabytes)
    keep()
    result["flops_per_second"] = products(args.device, args.rows, args.shrink)
    print(keep().read_text(encoding="utf-8"), end="")
    return result


if __name__ == "__main__":
    main()
