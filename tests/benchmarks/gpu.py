"""All that is to be checked and measured on a GPU, in one command of ten minutes.

    make gpu-session OUT=folder [WHEELS=folder] [REHEARSE=1]
    python3 tests/benchmarks/gpu.py --out FOLDER [--wheels FOLDER] [--rehearse]

Steps run in order of worth, each in a process of its own with a time limit of its own. A step
writes its result after every measurement; after every step all results go to OUT/results.tar.gz, so
that a machine which is taken away leaves what it measured. Nothing is downloaded: WHEELS holds what
the Python lacks. --rehearse runs every step on a CPU at toy sizes.

    python3 tests/benchmarks/gpu.py --report OUT      rows of Markdown from results"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REHEARSAL = {"ZEPHYR_REHEARSE": "1", "OMP_NUM_THREADS": "1"}
INTERPRETED = ("kernels", "fused")  # steps that rehearse Triton's kernels, one program at a time
NO_GPU = 3  # exit code of the first step


class Step(NamedTuple):
    name: str
    script: str  # beside this file, or -m
    options: str
    toy: str  # options that make it small, for --rehearse
    limit: int  # seconds
    needs: str = ""  # a package without which it cannot run


TOY = "--dtype bfloat16 --model tiny --longest 64 --pairs 4 --documents 4 --budget 300 --rounds 1"
CELLS = "--order cells --cells"
UF = "ultrafeedback"
WITH_TRL = '--fix trl={"precision":"autocast","gradient_checkpointing":false,"rebalance":true,'
WITH_ZEPHYR = '--fix zephyr={"activation_checkpointing":false,"tokens_per_micro_batch":'
STEPS = [
    Step("card", "bench_card.py", "", "--gigabytes 0.001 --rows 64 --shrink 64", 30),
    Step(
        "kernels",
        "-m",
        "pytest tests/gpu -p no:cacheprovider -rs -q",
        "pytest tests/gpu -p no:cacheprovider -rs -q",
        75,
    ),
    Step(
        "head",
        "bench_head.py",
        "--tokens 24000 --chunks 25,26,27",
        "--shapes 32x96 --tokens 64 --repeats 1 --dtype bfloat16 --chunks 10,11",
        45,
    ),
    Step(
        "options",
        "bench_options.py",
        "--model 7B --layers 2 --budget 16384 --lr 1e-5",
        f"{TOY} --budget 100",
        110,
    ),
    Step(
        "step_7B",
        "bench_step.py",
        f"--model 7B --rounds 3 --trace no {CELLS} "
        f"{UF}:budget=8192:recompute=all,{UF}:budget=16384:recompute=all,"
        f"{UF}:budget=4096:recompute=mlp",
        f"{TOY} --trace no {CELLS} {UF}:budget=200:recompute=all,{UF}:recompute=mlp",
        100,
    ),
    Step(
        "step_7B_fused",
        "bench_step.py",
        f"--model 7B --rounds 3 --fused triton,liger,none --gradient bfloat16 {CELLS} "
        f"{UF}:budget=6144:recompute=elementwise,{UF}:budget=12288:recompute=mlp,"
        f"sft:budget=16384:recompute=all,{UF}:budget=4096:recompute=none,"
        "sft:budget=12288:recompute=mlp,"
        # Not expected to fit in 141 GB: after the others.
        f"{UF}:budget=8192:recompute=elementwise,{UF}:budget=16384:recompute=mlp,"
        f"{UF}:budget=8192:recompute=none --documents 28",
        f"{TOY} --gradient bfloat16 {CELLS} "
        f"{UF}:budget=300:recompute=mlp,{UF}:recompute=elementwise,{UF}:recompute=none,"
        "sft:recompute=mlp",
        150,
    ),
    Step(
        "peer",
        "bench_peer.py",
        "--gpu --model 7B-8L --pairs 32 --longest 1024 --steps 2 --rounds 3 --lr 5e-7 --same "
        f'{WITH_ZEPHYR}16384,"fused":"liger"}} {WITH_ZEPHYR}16384}} {WITH_TRL}"micro":4}}',
        "--model tiny --pairs 4 --longest 64 --steps 1 --rounds 1 --lr 1e-2 --same --threads 1 "
        f'{WITH_ZEPHYR}300,"dtype":"bfloat16"}} {WITH_TRL}"micro":2}} '
        "--tolerance 0.02,0.1",
        170,
        "trl",
    ),
    Step("fused", "bench_fused.py", "--tokens 8192", "--tokens 32", 60),
    Step(
        "learning",
        "bench_learning.py",
        "--seconds {seconds} --model {data} --pairs {pairs}",
        "--toy --seconds 60",
        300,
    ),
    Step(
        "attention",
        "bench_attention.py",
        "--profiles ultrafeedback,tldr",
        "--row 1024 --heads 2x1x16 --repeats 1 --profiles tldr --dtype bfloat16",
        60,
    ),
    Step(
        "shapes",
        "bench_step.py",
        "--model 7B --layers 4 --rounds 3 --budget 16384 --checkpointing false --trace no "
        f"--cells {UF},{UF}:unshared,tldr,tldr:unshared,"
        "row:1024,row:2048,row:4096,row:8192,row:16384,row:32768",
        f"{TOY} --budget 600 --trace no --cells {UF},{UF}:unshared,row:512,row:1024",
        120,
    ),
]


def unpack_wheels(wheels: Path, site: Path) -> None:
    """Unpack a folder of wheels into `site`; one may come in parts, NAME.whl.0, NAME.whl.1, ..."""
    for part in sorted(wheels.glob("*.whl.0")):
        whole = site / part.stem
        with whole.open("wb") as file:
            for piece in sorted(wheels.glob(f"{part.stem}.*"), key=lambda p: int(p.suffix[1:])):
                file.write(piece.read_bytes())
    files = [*sorted(wheels.glob("*.whl")), *sorted(site.glob("*.whl"))]
    if not files:
        sys.exit(f"error: no wheels in {wheels}; `make gpu-wheels WHEELS=folder` makes them")
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for wheel in files:
        built_for = re.search(r"-(cp3\d+)-cp3", wheel.name)
        if built_for and built_for[1] != own:
            sys.exit(
                f"error: --wheels {wheels}: expected wheels for this Python, {own}, got "
                f"{wheel.name}; `gpu_wheels.py FOLDER --python 3.N` makes them for another"
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


class Worker:
    """Owns the process of a step: it imports at once, and starts when it is told to."""

    def __init__(self, step: Step, results: Path, environment: dict[str, str]) -> None:
        self.log = results / f"{step.name}.log"
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "warm.py")],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=of_step(step, environment),
                cwd=ROOT,
                text=True,
            )

    def run(self, script: str, options: Sequence[str], seconds: float) -> str:
        """Returns the outcome. After `seconds` the whole process group is killed."""
        try:
            self.process.communicate(json.dumps([script, *options]) + "\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"cut after {seconds:.0f} s"
        finally:
            self.end()
        code = self.process.returncode
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return "measured" if code == 0 else f"failed with code {code}: {last}"

    def end(self) -> None:
        """End the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def of_step(step: Step, environment: dict[str, str]) -> dict[str, str]:
    """The environment of a step. In a rehearsal, Triton's interpreter is on where it is quick."""
    own = {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"}
    if "ZEPHYR_REHEARSE" in environment and step.name in INTERPRETED:
        own["TRITON_INTERPRET"] = "1"
    return own


def arguments(step: Step, args: argparse.Namespace, results: Path, seconds: float) -> list[str]:
    """The options of a step, as its process takes them."""
    text = step.toy if args.rehearse else step.options
    options = text.replace("{seconds}", f"{seconds:.0f}").split()
    if "{data}" in options:
        options[options.index("{data}")] = str(args.data)
        options[options.index("{pairs}") :] = map(str, pair_files(args.data))
    if step.script == "-m":
        return options
    if step.script == "bench_step.py":
        options += ["--name", step.name]
    if step.script == "bench_peer.py":
        there = importlib.util.find_spec("trl") is not None
        return [*options, "--contenders", "zephyr,trl" if there else "zephyr"]
    return [*options, "--device", "cpu" if args.rehearse else "cuda", "--out", str(results)]


def pair_files(data: Path) -> list[Path]:
    """The files of preference pairs in --data."""
    return sorted(
        file for kind in ("jsonl", "jsonl.gz", "parquet") for file in data.glob(f"*.{kind}")
    )


def bundle(results: Path, out: Path) -> None:
    """Write all results as one file, whole or not at all."""
    part = out / "results.part"
    with tarfile.open(part, "w:gz") as tar:
        tar.add(results, "results")
    part.replace(out / "results.tar.gz")


def absent(step: Step, args: argparse.Namespace) -> str:
    """Why a step cannot run here, or not all of it; "" where it can."""
    if "{data}" in step.options and not args.rehearse and not (args.data and pair_files(args.data)):
        return "--data names no folder with a model in parts and files of pairs"
    if step.script != "-m" and not (HERE / step.script).exists():
        return f"{step.script} is not there"
    if step.needs and importlib.util.find_spec(step.needs) is None:
        return f"{step.needs} is not importable here"
    return ""


def run_steps(
    args: argparse.Namespace, results: Path, environment: dict[str, str]
) -> dict[str, str]:
    """Run the steps in their order, each in the time that is left; returns each one's outcome."""
    end, outcomes, seconds = time.monotonic() + args.seconds, dict[str, str](), dict[str, float]()
    steps = [step for step in STEPS if step.name in args.steps.split(",")]
    steps.sort(key=lambda step: step.name not in args.first.split(","))
    for step, worker in with_next_one_ready(steps, results, environment):
        left, reason, started = end - time.monotonic(), absent(step, args), time.monotonic()
        if left < args.least:
            worker.end()
            outcomes[step.name] = "not measured: no time was left"
        elif reason and step.name != "peer":
            worker.end()
            outcomes[step.name] = f"not measured: {reason}"
        else:
            limit = min(step.limit * args.patience, left)
            script = step.script if step.script == "-m" else str(HERE / step.script)
            options = arguments(step, args, results, limit - args.least)
            outcomes[step.name] = worker.run(script, options, limit) + (
                f", without what it is compared with: {reason}" if reason else ""
            )
        seconds[step.name] = round(time.monotonic() - started, 1)
        print(f"{step.name}: {outcomes[step.name]} ({seconds[step.name]} s)", flush=True)
        told = {"outcomes": outcomes, "seconds": seconds, "left": end - time.monotonic()}
        for folder in (results, args.out):
            (folder / "session.json").write_text(json.dumps(told, indent=1) + "\n")
        bundle(results, args.out)
        if f"failed with code {NO_GPU}:" in outcomes[step.name] and step.name == "card":
            sys.exit("error: torch sees no GPU; --rehearse runs every step on a CPU")
    return outcomes


def with_next_one_ready(
    steps: Sequence[Step], results: Path, environment: dict[str, str]
) -> Iterator[tuple[Step, Worker]]:
    """Each step with its process, while the process of the step after it does its imports."""
    workers: list[Worker] = []
    try:
        for i, step in enumerate(steps):
            following = steps[len(workers) : i + 2]
            workers += [Worker(one, results, environment) for one in following]
            yield step, workers[i]
    finally:
        for worker in workers:
            worker.end()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(step.name for step in STEPS)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="for results.tar.gz")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that this Python lacks")
    parser.add_argument("--data", type=Path, help="a model in parts and pairs, to learn from")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at toy sizes")
    parser.add_argument("--steps", default=names, help=f"which ones run, of {names}")
    parser.add_argument("--first", default="", metavar="STEPS", help="run these before the others")
    parser.add_argument("--seconds", type=float, default=570, help="for all steps together")
    parser.add_argument("--least", type=float, default=8, help="seconds left to start a step")
    parser.add_argument("--patience", type=float, default=1, help="times the limit of each step")
    parser.add_argument("--report", type=Path, help="no run: the rows of a folder of results")
    args = parser.parse_args(argv)
    unknown = {*args.steps.split(","), *filter(None, args.first.split(","))} - {*names.split(",")}
    if unknown:
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {names}")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, str]:
    args = parse(argv)
    if args.report:
        sys.path.append(str(ROOT))
        import gpu_report

        from zephyr.config import BadInput

        try:
            print(gpu_report.page(args.report))
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        return {"report": "measured"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the steps' processes go
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-session-") as folder:
        site, results = Path(folder, "site"), Path(folder, "results")
        site.mkdir()
        results.mkdir()
        if args.wheels:
            unpack_wheels(args.wheels, site)
            sys.path.append(str(site))
        path = [str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "DS_ACCELERATOR": "cpu" if args.rehearse else "cuda",
            "HF_HUB_OFFLINE": "1",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # for TRL too
            "ZEPHYR_RESULTS": str(results),
            **(REHEARSAL if args.rehearse else {}),
        }
        return run_steps(args, results, environment)


if __name__ == "__main__":
    sys.exit(not any(text.startswith("measured") for text in main().values()))
