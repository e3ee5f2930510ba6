"""All benchmarks that need a GPU, in one command of ten minutes.

    make gpu-bench GPU_PYTHON=python3 [WHEELS=folder]
    python3 tests/benchmarks/gpu.py --wheels FOLDER --out DIR

Each row runs in its own process with its own time limit. Its result is written before the next row
starts, so that a run which is cut off keeps the results so far. Nothing is downloaded: packages
that the Python lacks (deepspeed and its dependencies) are installed from WHEELS. --device cpu runs
the same rows at toy sizes."""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Row(NamedTuple):
    name: str
    script: str
    options: str
    toy: str  # options that make it small, for --device cpu
    limit: int  # seconds


SMALL = "--model tiny --longest 64 --pairs 4 --documents 4 --budget 300 --rounds 1"
STEP = "--model 7B --rounds 3 --cells"
TRL = '--fix trl={"precision":"autocast","gradient_checkpointing":false,'
ROWS = [
    Row(
        "step_7B_leaf",
        "bench_step.py",
        f"{STEP} ultrafeedback:budget=16384:recompute=all,ultrafeedback:budget=8192:recompute=all "
        "--leaf layer",
        f"{SMALL} --leaf layer "
        "--cells ultrafeedback:recompute=all,ultrafeedback:budget=200:recompute=mlp",
        120,
    ),
    Row(
        "step_7B_leaf_bf16",
        "bench_step.py",
        f"{STEP} ultrafeedback:budget=11264:recompute=mlp,sft:budget=11264:recompute=mlp "
        "--documents 22 --leaf layer --accumulate bf16",
        f"{SMALL} --leaf layer --cells ultrafeedback:recompute=mlp,sft",
        120,
    ),
    Row(
        "step_7B",
        "bench_step.py",
        f"{STEP} ultrafeedback:budget=16384:recompute=all --trace no",
        f"{SMALL} --cells ultrafeedback:recompute=all --trace no",
        75,
    ),
    Row(
        "peer",
        "bench_peer.py",
        "--gpu --model 7B-8L --contenders zephyr,trl --pairs 32 --longest 1024 --steps 2 "
        "--rounds 3 --lr 1e-5 "
        '--fix zephyr={"activation_checkpointing":false,"tokens_per_micro_batch":16384} '
        f'{TRL}"micro":4,"rebalance":true}}',
        "",
        160,
    ),
    Row("head", "bench_head.py", "--tokens 24000", "--shapes 32x96 --tokens 64 --repeats 1", 40),
    Row(
        "tests",
        "-m",
        "pytest tests/gpu -p no:cacheprovider -rs -q",
        "pytest tests/gpu -p no:cacheprovider -q",
        100,
    ),
    Row(
        "attention",
        "bench_attention.py",
        "--profiles ultrafeedback,tldr",
        "--row 2048 --heads 2x1x16 --repeats 1 --profiles tldr",
        60,
    ),
    Row(
        "sharing",
        "bench_step.py",
        "--model 7B --layers 8 --rounds 3 --budget 16384 --checkpointing false "
        "--cells ultrafeedback,ultrafeedback:unshared,tldr,tldr:unshared",
        f"{SMALL} --cells ultrafeedback,ultrafeedback:unshared",
        90,
    ),
    Row(
        "growth",
        "bench_step.py",
        "--layers 2 --checkpointing false --rounds 3 "
        "--cells row:1024,row:2048,row:4096,row:8192,row:16384,row:32768",
        f"{SMALL} --budget 600 --cells row:512,row:1024",
        90,
    ),
]


def install_wheels(wheels: Path, target: Path) -> None:
    """Install all wheels of a folder into `target`; the Python's own packages stay unchanged."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"error: no wheels in {wheels}")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--find-links",
            str(wheels),
            "--target",
            str(target),
            *files,
        ],
        check=True,
    )


def run(
    row: Row, options: Sequence[str], seconds: float, log: Path, environment: dict[str, str]
) -> str:
    """Run one row and return its outcome. After `seconds` its whole process group is killed."""
    script = row.script if row.script == "-m" else str(HERE / row.script)
    command = [sys.executable, script, *options]
    if row.script == "bench_step.py":
        command += ["--name", row.name]
    if row.script not in ("bench_peer.py", "-m"):
        command += ["--out", str(log.parent)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment | {"ZEPHYR_RESULTS": str(log.parent)},
            cwd=HERE.parents[1],
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"cut after {seconds:.0f} s"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return "measured" if code == 0 else f"failed with code {code}: {last}"


def bundle(folder: Path, file: Path | None) -> None:
    """Write the folder as one tar, whole or not at all."""
    if file is None:
        return
    part = file.with_suffix(".part")
    with tarfile.open(part, "w:gz") as tar:
        tar.add(folder, "results")
    part.replace(file)


def run_rows(args: argparse.Namespace, environment: dict[str, str]) -> dict[str, str]:
    """Run the rows in their order, each in the time that is left; returns each one's outcome."""
    end, outcomes = time.monotonic() + args.seconds, dict[str, str]()
    rows = [row for row in ROWS if row.name in args.rows.split(",")]
    rows.sort(key=lambda row: row.name not in args.first.split(","))
    for row in rows:
        options = (row.toy if args.device == "cpu" else row.options).split()
        left = end - time.monotonic()
        trl_is_there = importlib.util.find_spec("trl") is not None
        if row.name == "peer" and not (trl_is_there and (HERE / row.script).exists()):
            outcomes[row.name] = "not measured: trl is not importable here"
        elif left < 10:
            outcomes[row.name] = "not measured: no time was left"
        else:
            log = args.out / f"{row.name}.log"
            outcomes[row.name] = run(row, options, min(row.limit, left), log, environment)
        print(f"{row.name}: {outcomes[row.name]} ({end - time.monotonic():.0f} s left)", flush=True)
        (args.out / "gpu_rows.json").write_text(json.dumps(outcomes, indent=1) + "\n")
        bundle(args.out, args.bundle)
    return outcomes


def main(argv: Sequence[str] | None = None) -> dict[str, str]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that this Python lacks")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument(
        "--bundle", type=Path, help="a .tar.gz of all results, written anew after each row"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--first", default="", metavar="ROWS", help="run these before the others")
    parser.add_argument("--seconds", type=float, default=570, help="for all rows together")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        if args.wheels:
            install_wheels(args.wheels, Path(site))
            sys.path.append(site)
        path = [str(HERE.parents[1]), site, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "DS_ACCELERATOR": args.device,
            "HF_HUB_OFFLINE": "1",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        }
        return run_rows(args, environment)


if __name__ == "__main__":
    sys.exit(not any(text == "measured" for text in main().values()))
