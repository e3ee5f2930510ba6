"""What dDPO of 70B parameters takes on 8 to 64 GPUs of 80 GB, as `zephyr plan` predicts it.

    python experiments/seventy_b.py [--device a100-80]

It prints the table of configs/cluster/README.md. Nothing of it was measured. A row is the layout
that `zephyr plan` advises: the fastest of those that fit, without fused kernels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

PLAN = (
    "plan configs/tulu3-8b/dpo.yaml model=configs/shapes/llama-3.1-70b --lengths ultrafeedback "
    "--json --quiet"
).split()
WAYS = {
    "full": [],
    "full, offload": ["hardware.deepspeed=configs/deepspeed/zero3-offload.json"],
    "LoRA": ["adapter.r=64", "adapter.alpha=64"],
    "QLoRA": ["adapter.r=64", "adapter.alpha=64", "adapter.quantize=nf4"],
}
GPUS = (1, 8, 16, 32, 64)
HEAD = "| training | GPUs | checkpointing, tokens | GB a GPU | GB of a host | s a step | hours |"


def plan(way: str, gpus: int, device: str) -> dict[str, object]:
    """What `zephyr plan --json` prints."""
    options = ["--gpus", str(gpus), "--device", device, *WAYS[way]]
    done = subprocess.run(
        [sys.executable, "-m", "zephyr", *PLAN, *options], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    report: dict[str, object] = json.loads(done.stdout)
    return report


def row(way: str, gpus: int, device: str) -> str:
    """A line of the table."""
    report = plan(way, gpus, device)
    layout = report["advice"]
    if layout is None:
        least = report["config"]
        cells = ["does not fit", f"{least['peak GB']:.0f}", f"{least['host GB']:.0f}", "", ""]
    else:
        cells = [
            f"{layout['checkpointing']}, {layout['tokens']}",
            f"{layout['peak GB']:.0f}",
            f"{layout['host GB']:.0f}",
            f"{layout['step s']:.1f}",
            f"{layout['hours']:.1f}",
        ]
    return "| " + " | ".join([way, str(gpus), *cells]) + " |"


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="h100")
    device = parser.parse_args().device
    print(HEAD, "|---" * 7 + "|", sep="\n")
    for way in WAYS:
        for gpus in GPUS:
            print(row(way, gpus, device), flush=True)


if __name__ == "__main__":
    main()
