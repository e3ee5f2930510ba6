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
    """Write `checkpoints/step-N` under a temporary name, rename it when every rank is done and synced, move `latest` last.

    Keeps the newest `keep`. A collective."""
    folder = run_dir / "checkpoints"
    part, whole = folder / f"part-{step}", folder / f"step-{step}"
    if engine.rank == 0:
        for left_over in folder.glob("part-*"):
            shutil.rmtree(left_over)
        part.mkdir(parents=True)
    engine.barrier()
    engine.save_state(part)
    files = {path.name: synced_digest(path) for path in part.glob(f"rank-{engine.rank}-*")}
    files = {name: digest for rank in engine.gather(files) for name, digest in rank.items()}
    if engine.rank == 0:
        write_synced(part / "state.json", json.dumps({"step": step, **identity._asdict(), "files": files}))
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(part, whole)
        write_synced(folder / "latest.part", whole.name)
        os.replace(folder / "latest.part", folder / "latest")
        for old in sorted(folder.glob("step-*"), key=step_of)[:-keep]:
            shutil.rmtree(old)
    engine.barrier()


def restore(engine: Engine, run_dir: Path, resume: str, identity: Identity) -> int:
    """Load the newest checkpoint that is whole, if there is one; returns the step to run next. A collective.

    A damaged one is named, and the one before it taken. Args: resume: auto, never or force (config key run.resume).
    Raises: BadInput where the checkpoint belongs to another plan, unless forced."""
    for folder in engine.on_rank0(lambda: sorted((run_dir / "checkpoints").glob("step-*"), key=step_of, reverse=True)):
        damage = [what for rank in engine.gather(damaged(folder, engine.rank, engine.world)) for what in rank]
        if damage:
            engine.say(f"checkpoint {folder} is damaged ({', '.join(damage)}); the one before it is used")
            continue
        if read_state(folder)["plan"] != identity.plan and resume != "force":
            raise BadInput(f"checkpoint {folder} belongs to other data, lengths, seed or steps; run.resume=force takes it anyway")
        engine.load_state(folder, step_of(folder))
        return step_of(folder)
    return 0


def damaged(folder: Path, rank: int, world: int) -> list[str]:
    """What is missing or not as it was written, among this rank's share of a checkpoint's files."""
    try:
        files = sorted(read_state(folder)["files"].items())
    except (OSError, ValueError, KeyError):
        return ["state.json"] if rank == 0 else []
    return [name for name, digest in files[rank::world]
            if not (folder / name).is_file() or synced_digest(folder / name) != digest]


def read_state(folder: Path) -> dict[str, object]:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def synced_digest(path: Path) -> str:
    """SHA-256 of a file that is on the disk, not only in its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.sha256()
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()


def write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
