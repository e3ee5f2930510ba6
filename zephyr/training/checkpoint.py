"""A sharded training state becomes a folder that is complete or absent, and is loaded again."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput, DPOConfig, SFTConfig
from zephyr.losses import read_loss
from zephyr.packing import Plan
from zephyr.training.engine import Engine
from zephyr.training.files import (
    IDENTITY,
    READ_ERRORS,
    as_dict,
    parse_json,
    read_forced_resumes,
    read_json,
    step_number,
    step_paths,
    synced_digest,
    write_atomic,
)

Identity = dict[str, object]  # what would make it another run if it changed, by name
FORMAT = 1  # of state.json and the files that it names; no other is read
# What a save makes in the folder of checkpoints, beside checkpoints
TEMPORARY_NAMES = re.compile(r"latest(\.\d+\.part)?|part-\d+")


class State(NamedTuple):
    """`state.json` of a checkpoint."""

    step: int  # updates that were made
    identity: Identity
    files: dict[str, str]  # SHA-256 by file name


def identity(config: DPOConfig | SFTConfig, plan: Plan, more: Mapping[str, str]) -> Identity:
    """What decides a trajectory, on any hardware.

    It holds the config keys that do, the digest of the plan's steps, and `more`: digests by name.
    """
    found: Identity = {}
    for key, value in dataclasses.asdict(config.optim).items():
        # Not the usual optimizer: checkpoints from before the key stay those of their run.
        if key != "optimizer" or value != "adamw":
            found[f"optim.{key}"] = value
    if isinstance(config, DPOConfig):
        found["beta"] = config.beta
        name, settings = read_loss(config.loss)
        found["loss"] = {"name": name, **settings} if settings else name
        found["label_smoothing"] = config.label_smoothing
        # Only where they are set: checkpoints from before these keys stay those of their run.
        if config.sft_weight is not None:
            found["sft_weight"] = config.sft_weight
        if config.weighting != "none":
            found["weighting"] = config.weighting
    if config.adapter is not None:
        for key, value in dataclasses.asdict(config.adapter).items():
            found[f"adapter.{key}"] = value
    found["run.seed"] = config.run.seed
    found["data.shuffle"] = config.data.shuffle
    found["hardware.dtype"] = config.hardware.dtype
    found.update(more)
    steps = json.dumps([step.examples() for step in plan.steps])
    found["plan"] = hashlib.sha256(steps.encode()).hexdigest()
    as_read_back: Identity = json.loads(json.dumps(found))  # tuples as lists
    return as_read_back


def save(engine: Engine, run_dir: Path, step: int, identity: Identity, keep: int) -> None:
    """Write `checkpoints/step-N`, and remove all but the newest `keep`. A collective.

    It is written under a temporary name and renamed when every rank has synced its files; the file
    `latest` changes last.
    Raises: BadInput on every rank where the disk of any rank refuses. The unfinished checkpoint is
    removed, earlier ones stay.
    """
    folder = run_dir / "checkpoints"
    part, whole = folder / f"part-{step}", folder / f"step-{step}"
    try:
        engine.on_rank0(lambda: make_part_folder(part))
        engine.on_all_ranks(lambda: engine.save_state(part))
        pattern = f"rank-{engine.rank}-*"
        mine = engine.on_all_ranks(
            lambda: {path.name: synced_digest(path) for path in part.glob(pattern)}
        )
        files = {name: digest for rank in engine.all_gather(mine) for name, digest in rank.items()}
        engine.on_rank0(lambda: publish(part, whole, State(step, identity, files), keep))
    except BadInput as error:
        engine.on_rank0(lambda: shutil.rmtree(part, ignore_errors=True))
        raise type(error)(
            f"checkpoint {whole} can't be written: {error}; "
            "started again, the run continues from the one before"
        ) from None


def make_part_folder(part: Path) -> None:
    """Make the temporary folder, and remove those of saves that were cut off."""
    for left_over in part.parent.glob("part-*"):
        if TEMPORARY_NAMES.fullmatch(left_over.name):
            shutil.rmtree(left_over)
    part.mkdir(parents=True)


def publish(part: Path, whole: Path, state: State, keep: int) -> None:
    """Rename a finished checkpoint, and remove the ones that are not kept.

    Checkpoints of later steps go too: they are of a future that the run did not resume from.
    """
    write_atomic(part / "state.json", json.dumps({"format": FORMAT, **state._asdict()}).encode())
    shutil.rmtree(whole, ignore_errors=True)
    os.replace(part, whole)
    write_atomic(whole.parent / "latest", whole.name.encode())
    others = [path for path in step_paths(whole.parent) if path != whole]
    before = [path for path in others if step_number(path) < state.step]
    for old in others:
        if old not in before[len(before) - keep + 1 :]:
            shutil.rmtree(old)


def is_finished(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    plan: Plan,
    known: Mapping[str, str],
    ignore: Collection[str] = (),
    template: str | None = None,
) -> bool:
    """Whether the run folder holds this run, with all its steps and its export. A collective.

    Args: known: digests by name, as `more` of `identity`. ignore: names that `known` lacks yet,
    which `restore` compares. template: the chat template, for a hint where the data differ.
    Raises: BadInput unless forced, where the newest checkpoint, or without one `identity.json`, is
    of another run or format, or neither can be read in a folder that holds a run. Where a forced
    checkpoint leaves no step to train, in any case.
    """
    now = identity(config, plan, known)
    run_dir, resume = Path(config.run.dir), config.run.resume
    hint = template_change_hint(run_dir, template)

    def look() -> bool:
        for folder in reversed(step_paths(run_dir / "checkpoints")):
            try:
                state = read_state(folder)
            except READ_ERRORS:
                continue
            what = f"checkpoint {folder}"
            same = require_same_run(what, state.identity, resume, now, ignore, hint)
            if not same:
                require_steps_left(folder, state, len(plan.steps))
            return same and state.step == len(plan.steps) and has_succeeded(run_dir)
        left = find_run_output(run_dir)
        if not left or resume == "force":
            return False
        kept = read_identity(run_dir, left)
        same = require_same_run(f"run.dir: {run_dir}", kept, resume, now, ignore, hint)
        return same and has_succeeded(run_dir)

    return engine.on_rank0(look)


def require_steps_left(folder: Path, state: State, steps: int) -> None:
    """Raises: BadInput where a forced resume from this checkpoint leaves no step to train."""
    if state.step >= steps:
        raise BadInput(
            f"run.resume=force: checkpoint {folder} has {state.step} updates under other settings, "
            f"this run has {steps} steps: none would be trained, and the run's records would tell "
            "of settings that its weights never saw; name another run.dir, or more optim.epochs"
        )


def read_identity(run_dir: Path, left: str) -> Identity:
    """The identity in `identity.json`.

    Args: left: what the folder holds of a run, for the message.
    Raises: BadInput where it can't be read.
    """
    try:
        return as_dict(read_json(run_dir / IDENTITY)["identity"])
    except READ_ERRORS:
        raise BadInput(
            f"run.dir: {run_dir} holds {left} of a run, and neither a checkpoint nor {IDENTITY} "
            "can be read that would show that it is this one; name another run.dir, or "
            "run.resume=force trains over it"
        ) from None


def find_run_output(run_dir: Path) -> str:
    """The name of something that a run left in the folder; "" where there is nothing."""
    for name in (IDENTITY, "metrics.jsonl", "report.html"):
        if os.path.isfile(run_dir / name) and os.path.getsize(run_dir / name):
            return name
    for name in ("pairs", "model", "adapter"):
        if os.path.isdir(run_dir / name) and any((run_dir / name).iterdir()):
            return f"{name}/"
    if step_paths(run_dir / "checkpoints"):
        return "checkpoints/"
    return "status.json" if has_succeeded(run_dir, export=False) else ""


def template_change_hint(run_dir: Path, template: str | None) -> str:
    """What to add to a message on other data, where the folder has another chat template."""
    try:
        kept = (run_dir / "chat_template.jinja").read_bytes()
    except OSError:
        return ""
    if template is None or kept == template.encode():
        return ""
    return ": the chat template is another than its chat_template.jinja"


def write_identity(engine: Engine, run_dir: Path, step: int, identity: Identity) -> None:
    """Write `identity.json`: whose steps the folder records from `step` on. A collective.

    It also lists each forced resume, with the settings before it.
    """

    def write() -> None:
        forced = [resume for resume in read_forced_resumes(run_dir) if resume["step"] < step]
        if step:
            was = read_state(run_dir / "checkpoints" / f"step-{step}").identity
            changed = {name: value for name, value in was.items() if identity.get(name) != value}
            if changed:
                forced.append({"step": step, "was": changed})
        content = {"identity": identity, "forced": forced}
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(run_dir / IDENTITY, json.dumps(content, indent=1).encode() + b"\n")

    engine.on_rank0(write)


def has_succeeded(run_dir: Path, export: bool = True) -> bool:
    """Whether the run in the folder ended with code 0, which it writes last.

    Args: export: whether its export must be there too.
    """
    try:
        exported = not export or (run_dir / "model").is_dir()
        return exported and read_json(run_dir / "status.json")["code"] == 0
    except READ_ERRORS:
        return False


def restore(engine: Engine, run_dir: Path, resume: str, identity: Identity) -> int:
    """Load the newest checkpoint that is undamaged, if there is one. A collective.

    A damaged checkpoint is logged, and the one before it taken.
    Args: resume: the config key run.resume: auto, never or force.
    Returns: the step to run next.
    Raises: BadInput where the checkpoint is of another run, unless forced, or of another format.
    """
    folder = run_dir / "checkpoints"
    for name in engine.on_rank0(lambda: unknown_entries(folder)):
        engine.warn(f"{folder / name} is ignored: it is not a checkpoint (a folder named step-N)")
    for path in engine.on_rank0(lambda: step_paths(folder)[::-1]):
        mine = engine.on_all_ranks(partial(damaged_files, path, engine.rank, engine.world_size))
        damage = [name for rank in engine.all_gather(mine) for name in rank]
        if damage:
            engine.warn(
                f"checkpoint {path} is damaged ({', '.join(damage)}); the one before it is used"
            )
            continue
        require_same_run(f"checkpoint {path}", read_state(path).identity, resume, identity)
        engine.load_state(path, step_number(path))
        engine.log(f"resumed from {path}")
        return step_number(path)
    return 0


def require_same_run(
    what: str,
    was: Identity,
    resume: str,
    now: Identity,
    ignore: Collection[str] = (),
    hint: str = "",
) -> bool:
    """Compare the identity of `what` (a checkpoint, a folder) with that of this run.

    Args: ignore: names in `was` that are not compared. hint: added where the data differ.
    Returns: whether they are equal.
    Raises: BadInput with each difference where they are not, unless forced.
    """
    was = {name: value for name, value in was.items() if name not in ignore}
    changes = []
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            more = hint if name == "data" else ""
            changes.append(f"{name} ({was.get(name)!s:.16} then, {now.get(name)!s:.16} now{more})")
    if changes and resume != "force":
        raise BadInput(
            f"{what} is of another run: {'; '.join(changes)}. Name another run.dir; "
            "run.resume=force takes it anyway"
        )
    return not changes


def damaged_files(folder: Path, rank: int, world: int) -> list[str]:
    """The files of a checkpoint that are missing or changed, in this rank's share of them.

    Raises: BadInput where state.json can be read and is of another format.
    """
    try:
        files = sorted(read_state(folder).files.items())
    except READ_ERRORS:
        return ["state.json"] if rank == 0 else []
    damaged = []
    for name, digest in files[rank::world]:
        if not (folder / name).is_file() or synced_digest(folder / name) != digest:
            damaged.append(name)
    return damaged


def read_state(folder: Path) -> State:
    """`state.json` of a checkpoint.

    Raises: one of READ_ERRORS where it is not what was written; BadInput where it is of another
    format: a checkpoint of an older version, or of another program.
    """
    value = parse_json(folder / "state.json")
    state = value if isinstance(value, dict) else {}
    found = state.get("format")
    if found != FORMAT:
        raise BadInput(
            f"checkpoint {folder}: state.json is of format {found!r:.40}, wanted {FORMAT}: another "
            "version wrote it, which can continue from it; else name another run.dir"
        )
    if state["step"] != step_number(folder):
        raise KeyError("step")
    files = {name: str(digest) for name, digest in as_dict(state["files"]).items()}
    return State(step_number(folder), as_dict(state["identity"]), files)


def unknown_entries(folder: Path) -> list[str]:
    """Names in the folder of checkpoints that no save makes."""
    ours = {path.name for path in step_paths(folder)}
    names = sorted(path.name for path in folder.glob("*"))
    return [name for name in names if name not in ours and not TEMPORARY_NAMES.fullmatch(name)]
