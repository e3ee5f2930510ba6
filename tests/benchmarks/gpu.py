"""Every row of the bench that wants a GPU, in one command of ten minutes: each a process of its own with a limit of its own, its result
written before the next begins, so that a cut leaves what was measured.

    make gpu-bench GPU_PYTHON=python3 [WHEELS=folder]      or  python3 tests/benchmarks/gpu.py --wheels FOLDER --out DIR

Nothing is fetched: what the Python lacks (deepspeed and what it needs) lies in WHEELS. --device cpu runs the same rows at toy sizes."""
import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
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
    toy: str                                        # options that make it small, for --device cpu
    limit: int                                      # seconds


SMALL = "--model tiny --longest 64 --pairs 4 --documents 4 --budget 300 --rounds 1"
ROWS = [
    Row("head", "bench_head.py", "", "--shapes 32x96 --tokens 64 --repeats 1", 60),
    Row("attention", "bench_attention.py", "", "--row 2048 --heads 2x1x16 --repeats 1 --profiles tldr", 60),
    Row("step_dpo_8k", "bench_step.py", "--cells ultrafeedback,ultrafeedback:unshared,tldr,tldr:unshared --rounds 3",
        f"{SMALL} --cells ultrafeedback,ultrafeedback:unshared", 180),
    Row("step_16k", "bench_step.py", "--cells ultrafeedback,sft --budget 16384 --rounds 3", f"{SMALL} --cells ultrafeedback,sft", 130),
    Row("growth", "bench_step.py",
        "--layers 2 --checkpointing false --rounds 3 --cells row:1024,row:2048,row:4096,row:8192,row:16384,row:32768",
        f"{SMALL} --budget 600 --cells row:512,row:1024", 90),
    Row("peer", "bench_peer.py", "--gpu", "", 150)]


def installed(wheels: Path, target: Path) -> None:
    """What lies in the folder of wheels, in a folder of its own: the Python stays as it was."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"error: no wheels in {wheels}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", str(wheels),
                    "--target", str(target), *files], check=True)


def run(row: Row, options: Sequence[str], seconds: float, log: Path, environment: dict[str, str]) -> str:
    """One row; what became of it. It is ended with all that it started when its time is over."""
    named = ["--name", row.name] if row.script == "bench_step.py" else []
    out = [] if row.script == "bench_peer.py" else ["--out", str(log.parent)]
    command = [sys.executable, str(HERE / row.script), *options, *named, *out]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"cut after {seconds:.0f} s"
    return "measured" if code == 0 else f"failed with code {code}: {log.read_text(errors='replace').strip().splitlines()[-1:]}"


def main(argv: Sequence[str] | None = None) -> dict[str, str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that this Python lacks")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--seconds", type=float, default=570, help="for everything")
    args = parser.parse_args(argv)
    end, said = time.monotonic() + args.seconds, dict[str, str]()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = args.rows.split(",")
    with tempfile.TemporaryDirectory() as site:
        if args.wheels:
            installed(args.wheels, Path(site))
            sys.path.append(site)
        path = os.pathsep.join([str(HERE.parents[1]), site, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "DS_ACCELERATOR": args.device, "HF_HUB_OFFLINE": "1",
                       "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        for row in (row for row in ROWS if row.name in wanted):
            options, left = (row.toy if args.device == "cpu" else row.options).split(), end - time.monotonic()
            if row.name == "peer" and (importlib.util.find_spec("trl") is None or not (HERE / row.script).exists()):
                said[row.name] = "not measured: trl is not importable here"
            elif left < 10:
                said[row.name] = "not measured: no time was left"
            else:
                said[row.name] = run(row, options, min(row.limit, left), args.out / f"{row.name}.log", environment)
            print(f"{row.name}: {said[row.name]} ({end - time.monotonic():.0f} s left)", flush=True)
            (args.out / "gpu_rows.json").write_text(json.dumps(said, indent=1) + "\n")
    return said


if __name__ == "__main__":
    sys.exit(not any(text == "measured" for text in main().values()))
