"""The script of a GPU session runs here on a CPU, every step of it. What could lose results on a
GPU loses none: a step cut off, a cell that does not fit, kernels that fail, a machine without
git."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_step
import device
import gpu
import gpu_report
import gpu_wheels
import lengths
import live_bytes
import measure

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parents[1]
# Of each step's result, a path of keys that only a step which went to its end has written
WRITTEN = {
    "card": ("flops_per_second",),
    "head": ("64 tokens, 32x96, chunks of 2048", "cross_entropy"),
    "options": ("variants", "gradient=bfloat16", "off the base"),
    "step_7B": ("cells", "ultrafeedback:recompute=mlp", "seconds"),
    "step_7B_fused": ("cells", "ultrafeedback:budget=300:recompute=mlp", "reference_pass"),
    "peer_tiny_ultrafeedback": ("contenders", "zephyr", "pairs_per_second"),
    "fused": ("none", "layer", "seconds"),
    "learning": ("curves", "zephyr", "evaluations"),
    "attention": ("tldr", "dense mask", "seconds"),
    "shapes": ("growth", "microseconds_per_token", "512"),
}
TOY = "--model tiny --pairs 4 --longest 64 --budget 300 --rounds 1 --trace no --order cells"


# The steps that `make test` rehearses; `make test-long` rehearses all.
PART = ("card", "head", "step_7B")


@pytest.fixture(scope="module")
def rehearsed_in_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rehearse(tmp_path_factory.mktemp("part"), "--steps", ",".join(PART))


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rehearse(tmp_path_factory.mktemp("rehearsal"))


def rehearse(out: Path, *options: str) -> Path:
    """Steps of the session on a CPU, where no git is found: the folder of results."""
    # Slow machines get all the time they need.
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--out", str(out)]
    done = subprocess.run(
        [*command, "--seconds", "3000", "--patience", "20", *options],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"PATH": str(out)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(out / "results.tar.gz") as tar:
        tar.extractall(out, filter="data")
    return out / "results"


def test_some_steps_are_rehearsed(rehearsed_in_part: Path) -> None:
    """As the two tests below, for fewer steps. Fails where a step ends with an error, its result is
    empty, or lies in another folder."""
    outcomes = json.loads((rehearsed_in_part / "session.json").read_text())["outcomes"]
    logs = {name: (rehearsed_in_part / f"{name}.log").read_text()[-1500:] for name in PART}
    assert {name: outcomes[name] for name in PART} == dict.fromkeys(PART, "measured"), logs
    require_written(rehearsed_in_part, PART)


@pytest.mark.long
def test_every_step_is_rehearsed(rehearsed: Path) -> None:
    """Fails where a step ends with an error, is cut off, or leaves something out in silence."""
    outcomes = json.loads((rehearsed / "session.json").read_text())["outcomes"]
    logs = {name: (rehearsed / f"{name}.log").read_text()[-1500:] for name in outcomes}
    assert list(outcomes) == [step.name for step in gpu.STEPS]
    for step in gpu.STEPS:
        if step.name == "peer" and find_spec("trl") is None:
            wanted = "measured, without what it is compared with: trl is not importable here"
        elif (BENCHMARKS / step.script).exists() or step.script == "-m":
            wanted = "measured"
        else:
            wanted = f"not measured: {step.script} is not there"
        assert outcomes[step.name] == wanted, logs[step.name]


def require_written(results: Path, names: Iterable[str]) -> None:
    """Check that the result of each step has the keys of `WRITTEN`."""
    for name in names:
        found = json.loads(
            (results / f"{name}{'.gpu' * torch.cuda.is_available()}.json").read_text()
        )
        assert found["machine"]["commit"] == "unknown"  # there was no git
        value = found["result"]
        for key in WRITTEN[name]:
            assert key in value, f"{name}: {key} is not in {list(value)}"
            value = value[key]
        assert value, name


@pytest.mark.long
def test_every_result_is_written(rehearsed: Path) -> None:
    """Fails where a step passes and its result is empty, or lies in another folder."""
    require_written(rehearsed, WRITTEN)
    assert list(rehearsed.glob("CPU-torch-*.json"))  # of the tests in tests/gpu
    assert "..." in (rehearsed / "kernels.log").read_text()


@pytest.mark.long
def test_options_of_a_step_change_nothing(rehearsed: Path) -> None:
    """The first loss is ln 2, losses fall, a resumed run holds the same bits, and every option that
    ran gives the same losses. Fails where an option is compared with itself, or with other data."""
    of = json.loads((rehearsed / "options.json").read_text())["result"]
    assert of["base"]["first loss off ln 2"] < 1e-6 and of["base"]["falls"]
    assert of["resumed"]["state to the bit"] and of["resumed"]["next loss to the bit"]
    assert all(found["off the first"]["equal"] for found in of["cells"].values())
    ran = {name: found for name, found in of["variants"].items() if "skipped" not in found}
    assert {"gather=module", "gradient=bfloat16"} <= set(ran)
    assert all(found["off the base"]["equal"] for found in ran.values())
    skipped = [found["skipped"] for found in of["variants"].values() if "skipped" in found]
    assert all("not installed" in why or "GPUs only" in why for why in skipped), skipped
    base, other = of["base"]["losses"], ran["gather=module"]["losses"]
    assert base[0] != base[3] and len(other) == 4
    assert of["cells"]["ultrafeedback:unshared"]["off the first"]["loss"] > 0


class Parsed(Exception):
    """The command line is understood."""


@pytest.mark.parametrize("name", [s.name for s in gpu.STEPS if s.script != "-m"])
def test_options_for_a_gpu_are_understood(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the toy options run here: those of a GPU must at least be the script's own. Fails where
    an option is renamed in one place."""
    step = next(step for step in gpu.STEPS if step.name == name)
    (tmp_path / "pairs.jsonl").touch()
    args = gpu.parse(["--data", str(tmp_path)])
    options = gpu.arguments(step, args, tmp_path, 100)

    def parse_only(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> None:
        found, unknown = parser.parse_known_args(argv)
        assert not unknown
        raise Parsed(found)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [step.script, *options])
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(Path(step.script).stem).main()
    found = parsed.value.args[0]
    if step.script == "bench_step.py":
        for cell in found.cells.split(","):
            assert bench_step.option(cell, "recompute", "none") in bench_step.RECOMPUTE
            assert cell.split(":")[0] in (*lengths.PROFILES, "sft", "row")
    if name == "learning":
        assert found.pairs == [str(tmp_path / "pairs.jsonl")] and found.seconds == 100


def worker(script: str, folder: Path) -> gpu.Worker:
    step = gpu.Step(Path(script).stem, script, "", "", 60)
    return gpu.Worker(step, folder, {**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.long
def test_a_step_that_outlasts_its_limit_is_cut_and_its_result_kept(tmp_path: Path) -> None:
    """Its process group is ended, what it wrote stays, and the file of all results has it. Fails
    where one step takes the others' time, or a cut one passes for measured."""
    script, pid = tmp_path / "slow.py", tmp_path / "pid"
    script.write_text(
        "import os, subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path('{pid}').write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    slow = worker(str(script), tmp_path)
    slow.process.stdin.write(json.dumps([str(script)]) + "\n")
    slow.process.stdin.flush()
    while not pid.exists() or not pid.read_text():
        time.sleep(0.05)
    assert slow.process.poll() is None
    slow.end()
    time.sleep(0.2)
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert worker(str(script), tmp_path).run(str(script), [], 1).startswith("cut after")
    absent = str(tmp_path / "absent.py")
    assert worker(absent, tmp_path).run(absent, [], 600).startswith("failed with code 1")
    (tmp_path / "out").mkdir()
    gpu.bundle(tmp_path, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as tar:
        assert "results/pid" in tar.getnames()


def drive(tmp_path: Path, patch: str, *options: str) -> subprocess.CompletedProcess[str]:
    """bench_step.py with something in it replaced; the processes it becomes are as they are."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        f"import bench_step, torch\n{patch}\nbench_step.main()\n"
    )
    return subprocess.run(
        [sys.executable, str(driver), *TOY.split(), *options, "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_a_cell_that_runs_out_of_memory_loses_no_other(tmp_path: Path) -> None:
    """The cells before it keep their figures, those after it are measured by a new process."""
    cells = ["ultrafeedback", "ultrafeedback:recompute=mlp", "sft"]
    patch = (
        "real = bench_step.time_round\n"
        "def time_round(*args):\n"
        f"    if args[-1] == {cells[1]!r}: raise torch.OutOfMemoryError('CUDA out of memory.')\n"
        "    return real(*args)\n"
        "bench_step.time_round = time_round"
    )
    done = drive(tmp_path, patch, "--cells", ",".join(cells), "--name", "full")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "full.json").read_text())["result"]["cells"]
    assert list(found) == cells and found[cells[1]] == {"out_of_memory": "CUDA out of memory."}
    assert all(found[cell]["seconds"]["n"] == 1 for cell in (cells[0], cells[2]))


@pytest.mark.long
def test_fused_kernels_that_fail_leave_the_cells_to_the_next(tmp_path: Path) -> None:
    """Kernels that have never run on a card may fail there; the step is measured without them."""
    patch = (
        "bench_step.first_fused = lambda wanted, device: wanted.split(',')[0]\n"
        "def refuse(*args): raise RuntimeError(args[2].fused + ' does not compile')\n"
        "bench_step.make_engine = refuse"
    )
    done = drive(tmp_path, patch, "--cells", "sft", "--name", "next", "--fused", "triton,none")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "triton does not compile" in done.stderr
    result = json.loads((tmp_path / "next.json").read_text())["result"]
    assert result["settings"]["fused"] == "none" and "seconds" in result["cells"]["sft"]


class FakeEvent:
    """What a CUDA event is to the benchmarks."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.now += 1.0
        self.at = FakeEvent.now

    def elapsed_time(self, end: "FakeEvent") -> float:
        return (end.at - self.at) * 1e3


def test_lines_that_only_a_gpu_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """They call torch.cuda by the names and arguments that it has, and count what it says."""
    import warnings

    said: list[object] = []

    def replace(name: str, call: Callable[..., object]) -> None:
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, call)

    replace("Event", FakeEvent)
    replace("set_sync_debug_mode", said.append)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        replace(name, lambda name=name: said.append(name))
    replace("memory_allocated", lambda: 100)
    replace("max_memory_allocated", lambda: 175)
    assert measure.seconds(lambda: None, repeats=3, device="cuda")["median"] == 1.0
    phases = bench_step.Phases(torch.device("cuda"))
    for name in ("forward", "backward"):
        phases.timed(name, lambda: None)()
    assert phases.seconds() == {"forward": 1.0, "backward": 1.0}
    assert live_bytes.peak_bytes(lambda: "value", "cuda") == (75, "value")

    def step() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    found = device.waits(step, "cuda")
    assert found["host_waits"] == 2 and list(found["host_waits_by_line"].values()) == [2]
    assert [word for word in said if word in ("warn", "default")] == ["warn", "default"]
    device.release("cuda")
    assert said[-1] == "empty_cache"


def test_report_of_the_committed_results() -> None:
    """The rows of the README come out of the files that they are said to come from, with the plan's
    prediction beside them."""
    lines = list(gpu_report.rows(BENCHMARKS / "results"))
    assert "NVIDIA H200" in lines[0]
    row = next(line for line in lines if "bfloat16" in line and "| mlp |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4:9] == ["11,264", "mlp", "3.52", "9.09", "35.3 %"]
    seconds, memory = map(float, cells[9].split(","))
    assert 0.5 < seconds < 1.5 and 0.7 < memory < 1.3
    assert any(line.startswith("- Head, 24000 tokens") and "1.56 times" in line for line in lines)


def test_bad_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, before a step runs. Fails where wheels of another Python are unpacked, which would
    end every step in an ImportError, or a report of nothing is a traceback."""
    (tmp_path / "core-1.0-cp39-cp39-manylinux2014_x86_64.whl").touch()
    with pytest.raises(
        SystemExit, match="expected wheels for this Python, cp3.*, got core-1.0-cp39"
    ):
        gpu.unpack_wheels(tmp_path, tmp_path / "site")
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--report", str(tmp_path)])
    assert f"error: --report {tmp_path}: no results there" in capsys.readouterr().err


def test_wheels_are_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has one version, that of constraints.txt where it is named there. Fails where a package
    is added without one, or the two files differ."""
    versions = gpu_wheels.main(["unused", "--smollm2", "--dry"])
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    of = {
        line.split("==")[0].strip(): line.split("==")[1].split(";")[0].strip()
        for line in pinned
        if "==" in line
    }
    assert set(versions) == {*gpu_wheels.NEEDED, *gpu_wheels.SMOLLM2}
    assert all(versions[name] == of[name] for name in versions if name in of)
    assert {"deepspeed", "datasets", "einops"} <= set(
        of
    ) and "trl==1.16.0" in capsys.readouterr().out
    unknown = ("no version of nothing-like-it",)
    with pytest.raises(ValueError, match=unknown[0]):
        gpu_wheels.pinned(["nothing-like-it"])
