"""A sharded training state becomes a folder that is whole or not there, and back."""
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.packing import Plan
from zephyr.training.engine import Engine


class Identity(NamedTuple):
    """What a checkpoint's steps mean: resuming under another identity would train something else."""
    plan: str                                       # digest of which examples make which step, for any number of ranks

    @classmethod
    def of(cls, plan: Plan, ids: Sequence[str], tokens: Sequence[int]) -> "Identity":
        content = json.dumps([[step.examples() for step in plan.steps], list(ids), [int(n) for n in tokens]])
        return cls(hashlib.sha256(content.encode()).hexdigest())


def save(engine: Engine, run_dir: Path, step: int, identity: Identity, keep: int) -> None:
    """Write `checkpoints/step-N` under a temporary name, rename it when every rank is done, move `latest` last.

    Keeps the newest `keep`. A collective."""
    folder = run_dir / "checkpoints"
    part, whole = folder / f"part-{step}", folder / f"step-{step}"
    if engine.rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    engine.barrier()
    engine.save_state(part)
    engine.barrier()
    if engine.rank == 0:
        (part / "state.json").write_text(json.dumps({"step": step, **identity._asdict()}))
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(part, whole)
        (folder / "latest.part").write_text(whole.name)
        os.replace(folder / "latest.part", folder / "latest")
        for old in sorted(folder.glob("step-*"), key=step_of)[:-keep]:
            shutil.rmtree(old)
    engine.barrier()


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def restore(engine: Engine, run_dir: Path, resume: str, identity: Identity) -> int:
    """Load the latest checkpoint, if there is one; returns the step to run next. A collective.

    Args: resume: auto, never or force (config key run.resume).
    Raises: BadInput where `never` meets a used folder, or the checkpoint belongs to another plan."""
    step = engine.on_rank0(lambda: latest_step(run_dir, resume, identity))
    if step:
        engine.load_state(run_dir / "checkpoints" / f"step-{step}", step)
    return step


def latest_step(run_dir: Path, resume: str, identity: Identity) -> int:
    """The step of the checkpoint to resume from, 0 for none. Raises: BadInput as `restore` says."""
    latest = run_dir / "checkpoints" / "latest"
    if resume == "never" and ((run_dir / "metrics.jsonl").exists() or latest.exists()):
        raise BadInput(f"run.resume is never, and {run_dir} holds a run already; name another run.dir")
    if not latest.exists():
        return 0
    folder = latest.parent / latest.read_text().strip()
    state = json.loads((folder / "state.json").read_text())
    if state["plan"] != identity.plan and resume != "force":
        raise BadInput(f"checkpoint {folder} belongs to other data, lengths, seed or steps; run.resume=force takes it anyway")
    return int(state["step"])
