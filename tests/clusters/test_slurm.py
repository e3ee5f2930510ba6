"""The sbatch files on a real Slurm: requeued, warned of the time limit, cancelled; the end is that
of a run that nothing disturbed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm as daemons
from processes import Launch
from runs import ledger, records
from slurm import Slurm

pytestmark = pytest.mark.long
LONG = ("optim.epochs=40", "run.save_every=1000", "run.preflight=false")  # 120 steps
ONE_NODE = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    reason = daemons.missing()
    if reason:
        pytest.skip(reason)
    with daemons.started(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(finished: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 steps on two ranks."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch("train_dpo.py", finished / "config.yaml", f"run.dir={run}", *LONG, ranks=2)
    return run


def submit(slurm: Slurm, script: str, tasks: int, config: Path, run: Path) -> str:
    """Returns: the job's number."""
    return slurm.ask(
        *("sbatch", "--parsable", *ONE_NODE, f"--ntasks-per-node={tasks}"),
        *(f"--output={slurm.folder}/job-%j.log", f"configs/cluster/{script}"),
        *(str(config), str(run), *LONG),
    )


def status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def require_same_end(run: Path, undisturbed: Path) -> None:
    """Records, ledger and weights to the bit, no line lost or doubled."""
    assert [(r["step"], r["loss"]) for r in records(run)] == [
        (r["step"], r["loss"]) for r in records(undisturbed)
    ]
    rows_of = [
        sorted(ledger(folder), key=lambda v: (v["step"], v["id"])) for folder in (run, undisturbed)
    ]
    assert rows_of[0] == rows_of[1] and len(rows_of[0]) == 40 * 20
    weights = [
        (folder / "model" / "model.safetensors").read_bytes() for folder in (run, undisturbed)
    ]
    assert weights[0] == weights[1]


def test_a_requeued_job_ends_as_if_it_had_not_been(
    slurm: Slurm, finished: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """`scontrol requeue` in the middle of dpo.sbatch. Fails where a signal of Slurm does not reach
    the ranks, the second start does not resume, or a record is lost or doubled."""
    run = tmp_path / "run"
    job = submit(slurm, "dpo.sbatch", 1, finished / "config.yaml", run)
    slurm.wait(lambda: steps(run) > 2)
    slurm.ask("scontrol", "requeue", job)
    slurm.wait(lambda: slurm.state(job) == "PENDING")
    assert status(run)["code"] == 75 and steps(run) < 120
    slurm.wait(lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.state(job) == "COMPLETED", slurm.logs()
    assert status(run)["code"] == 0
    assert "resumed from" in (slurm.folder / f"job-{job}.log").read_text()
    require_same_end(run, undisturbed)


def test_a_job_queues_itself_again_and_stays_cancelled(
    slurm: Slurm, finished: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The tasks of srun are the ranks of one world. SIGUSR1 comes to the script as from --signal
    near the time limit. Fails where each task trains alone, the job does not come back, a cancelled
    one does, or what it leaves can't be resumed."""
    run, config = tmp_path / "run", finished / "config.yaml"
    job = submit(slurm, "dpo-srun.sbatch", 2, config, run)
    slurm.wait(lambda: steps(run) > 2)
    slurm.ask("scancel", "--signal=USR1", "--batch", job)
    slurm.wait(lambda: slurm.state(job) == "PENDING")
    stopped_at = steps(run)
    assert status(run)["code"] == 75 and stopped_at < 120
    slurm.wait(lambda: steps(run) > stopped_at)
    slurm.ask("scancel", job)
    slurm.wait(lambda: slurm.state(job) == "CANCELLED")
    assert status(run)["code"] == 75 and steps(run) < 120, slurm.logs()
    again = submit(slurm, "dpo-srun.sbatch", 2, config, run)
    slurm.wait(lambda: slurm.state(again) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.state(again) == "COMPLETED", slurm.logs()
    assert slurm.state(job) == "CANCELLED"
    assert "2 ranks" in (slurm.folder / f"job-{again}.log").read_text()
    require_same_end(run, undisturbed)


def test_what_is_no_world(slurm: Slurm, finished: Path, tmp_path: Path) -> None:
    """A sweep by one srun, and python without srun in a job of two tasks. Fails where the settings
    of one rank are taken for all, or a lone process waits for others."""
    config = finished / "config.yaml"
    sweep = f"python train_dpo.py {config} run.dir={tmp_path}/run-$SLURM_PROCID"
    done = slurm.run("srun", "--ntasks=2", "bash", "-c", sweep)
    assert done.returncode == 2
    assert "rank 1 has another config than rank 0" in done.stderr
    assert done.stderr.count("error: rank") == 1
    alone = slurm.run("salloc", "--ntasks=2", "python", "train_dpo.py", str(config), "--dry-run")
    assert alone.returncode == 0, alone.stderr
    assert "2 tasks, and this process is none of them" in alone.stderr and "1 rank" in alone.stdout
