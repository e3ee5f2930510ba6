"""A sharded training state becomes a folder that is whole or not there, and back."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from zephyr.config import BadInput, DPOConfig, SFTConfig
from zephyr.packing import Plan
from zephyr.training.engine import Engine
from zephyr.training.files import (
    IDENTITY,
    READ_ERRORS,
    read_forced_resumes,
    read_json,
    step_number,
    step_paths,
    synced_digest,
    write_atomic,
)

Identity = Mapping[
    str, object
]  # by name: what, when changed, would make the rest of a run another run
FORMAT = 1  # of state.json and the files that it names; another one is not read
TEMPORARY_NAMES = re.compile(
    r"latest(\.\d+\.part)?|part-\d+"
)  # what a save makes beside checkpoints


def identity(config: DPOConfig | SFTConfig, plan: Plan, more: Mapping[str, str]) -> Identity:
    """The config keys that decide a trajectory, whatever the hardware, the digest of the plan's
    steps, and `more`."""
    of_optim = {f"optim.{key}": value for key, value in dataclasses.asdict(config.optim).items()}
    loss = {
        key: getattr(config, key)
        for key in ("beta", "loss", "label_smoothing")
        if hasattr(config, key)
    }
    other = {
        "run.seed": config.run.seed,
        "data.shuffle": config.data.shuffle,
        "hardware.dtype": config.hardware.dtype,
    }
    steps = hashlib.sha256(
        json.dumps([step.examples() for step in plan.steps]).encode()
    ).hexdigest()
    return json.loads(json.dumps({**of_optim, **loss, **other, **more, "plan": steps}))


def save(engine: Engine, run_dir: Path, step: int, identity: Identity, keep: int) -> None:
    """Write `checkpoints/step-N` under a temporary name, rename it when every rank is done and
    synced, move `latest` last.

    Keeps the newest `keep`. Raises: BadInput on every rank where the disk of any refuses; what was
    written of it is removed, those before it stay. A collective."""
    folder = run_dir / "checkpoints"
    part, whole = folder / f"part-{step}", folder / f"step-{step}"

    def publish() -> None:
        state = {"format": FORMAT, "step": step, "identity": identity, "files": files}
        write_atomic(part / "state.json", json.dumps(state).encode())
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(part, whole)
        write_atomic(folder / "latest", whole.name.encode())
        others = [f for f in step_paths(folder) if f != whole]
        before = [f for f in others if step_number(f) < step]
        for old in others:  # those after this step are of a future that was not resumed from
            if old not in before[len(before) - keep + 1 :]:
                shutil.rmtree(old)

    try:
        engine.on_rank0(lambda: make_part_folder(part))
        engine.on_all_ranks(lambda: engine.save_state(part))
        mine = engine.on_all_ranks(
            lambda: {path.name: synced_digest(path) for path in part.glob(f"rank-{engine.rank}-*")}
        )
        files = {name: digest for rank in engine.all_gather(mine) for name, digest in rank.items()}
        engine.on_rank0(publish)
    except BadInput as error:
        engine.on_rank0(lambda: shutil.rmtree(part, ignore_errors=True))
        raise type(error)(
            f"checkpoint {whole} can't be written: {error}; started again, the run goes on from the one before"
        ) from None


def make_part_folder(part: Path) -> None:
    """Make the folder, in place of what a save that was cut off left."""
    for left_over in part.parent.glob("part-*"):
        if TEMPORARY_NAMES.fullmatch(left_over.name):
            shutil.rmtree(left_over)
    part.mkdir(parents=True)


def is_finished(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    plan: Plan,
    known: Mapping[str, str],
    ignore: Collection[str] = (),
    template: str | None = None,
) -> bool:
    """Whether the run folder holds this very run, with all its steps and its export. A collective.

    Args: known: as `more` of `identity`. ignore: names of what it lacks yet, which `restore`
    compares. template: the chat template, to say where another one made other data.
    Raises: BadInput where the newest checkpoint, or without one `identity.json`, is of another run
    or of another format, and where a run lies there that neither tells about, unless forced; where
    a forced checkpoint leaves no step to train."""
    run_dir, resume, now = Path(config.run.dir), config.run.resume, identity(config, plan, known)
    hint = template_change_hint(run_dir, template)

    def look() -> bool:
        for folder in reversed(step_paths(run_dir / "checkpoints")):
            try:
                state = read_state(folder)
            except READ_ERRORS:
                continue
            same = require_same_run(f"checkpoint {folder}", state, resume, now, ignore, hint)
            if not same and state["step"] >= len(plan.steps):
                raise BadInput(
                    f"run.resume=force: checkpoint {folder} has {state['step']} updates under other settings, this run has "
                    f"{len(plan.steps)} steps: none would be trained, and the run's records would tell of settings that its "
                    "weights never saw; name another run.dir, or more optim.epochs"
                )
            return same and state["step"] == len(plan.steps) and has_succeeded(run_dir)
        if not (left := find_run_output(run_dir)) or resume == "force":
            return False
        try:
            kept = read_json(run_dir / IDENTITY)
            kept["identity"].items()
        except READ_ERRORS:
            raise BadInput(
                f"run.dir: {run_dir} holds {left} of a run, and neither a checkpoint nor {IDENTITY} can be read that would show "
                "that it is this one; name another run.dir, or run.resume=force trains over it"
            ) from None
        return require_same_run(
            f"run.dir: {run_dir}", kept, resume, now, ignore, hint
        ) and has_succeeded(run_dir)

    return engine.on_rank0(look)


def find_run_output(run_dir: Path) -> str:
    """The name of something in the folder that steps of a run left there; "" where there is
    none."""
    files = [
        name
        for name in (IDENTITY, "metrics.jsonl", "report.html")
        if os.path.isfile(run_dir / name) and os.path.getsize(run_dir / name)
    ]
    folders = [
        f"{name}/"
        for name in ("pairs", "model")
        if os.path.isdir(run_dir / name) and any((run_dir / name).iterdir())
    ]
    checkpoints = ["checkpoints/"] if step_paths(run_dir / "checkpoints") else []
    return next(
        iter(
            (
                *files,
                *folders,
                *checkpoints,
                *(["status.json"] if has_succeeded(run_dir, export=False) else []),
            )
        ),
        "",
    )


def template_change_hint(run_dir: Path, template: str | None) -> str:
    """What to say of other data where the template kept in the folder is another one, else ""."""
    try:
        kept = (run_dir / "chat_template.jinja").read_bytes()
    except OSError:
        return ""
    return (
        ""
        if template is None or kept == template.encode()
        else ": the chat template is another than its chat_template.jinja"
    )


def write_identity(engine: Engine, run_dir: Path, step: int, identity: Identity) -> None:
    """Write `identity.json`: whose steps are recorded in the folder from `step` on, and where steps
    before were of other settings, which a forced resume went on from, those. A collective."""

    def write() -> None:
        before = [of for of in read_forced_resumes(run_dir) if of["step"] < step]
        if step:
            was = read_state(run_dir / "checkpoints" / f"step-{step}")["identity"]
            changed = {name: value for name, value in was.items() if identity.get(name) != value}
            before += [{"step": step, "was": changed}] if changed else []
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(
            run_dir / IDENTITY,
            json.dumps({"identity": identity, "forced": before}, indent=1).encode() + b"\n",
        )

    engine.on_rank0(write)


def has_succeeded(run_dir: Path, export: bool = True) -> bool:
    """Whether the run in the folder wrote its export and said so, the last that it does. Args:
    export: which must still be there."""
    try:
        return (not export or (run_dir / "model").is_dir()) and read_json(run_dir / "status.json")[
            "code"
        ] == 0
    except READ_ERRORS:
        return False


def restore(engine: Engine, run_dir: Path, resume: str, identity: Identity) -> int:
    """Load the newest checkpoint that is whole, if there is one; returns the step to run next. A
    collective.

    A damaged one is named, and the one before it taken. Args: resume: auto, never or force (config
    key run.resume).
    Raises: BadInput where the checkpoint belongs to another plan, unless forced, or is of another
    format."""
    for name in engine.on_rank0(lambda: unknown_entries(run_dir / "checkpoints")):
        engine.log(
            f"{run_dir / 'checkpoints' / name} is no checkpoint (step-N, a folder): it is ignored"
        )
    for folder in engine.on_rank0(lambda: step_paths(run_dir / "checkpoints")[::-1]):
        mine = engine.on_all_ranks(lambda: damaged_files(folder, engine.rank, engine.world_size))
        damage = [what for rank in engine.all_gather(mine) for what in rank]
        if damage:
            engine.log(
                f"checkpoint {folder} is damaged ({', '.join(damage)}); the one before it is used"
            )
            continue
        require_same_run(f"checkpoint {folder}", read_state(folder), resume, identity)
        engine.load_state(folder, step_number(folder))
        engine.log(f"resumed from {folder}")
        return step_number(folder)
    return 0


def require_same_run(
    what: str,
    state: Mapping[str, object],
    resume: str,
    identity: Identity,
    ignore: Collection[str] = (),
    hint: str = "",
) -> bool:
    """Whether a checkpoint, or what `identity.json` holds, is of the run of this identity. Args:
    hint: what to add where the data differ. Raises: BadInput with each difference where not, unless
    forced."""
    was = {name: value for name, value in state["identity"].items() if name not in ignore}
    changes = [
        f"{name} ({was.get(name)!s:.16} then, {identity.get(name)!s:.16} now{hint if name == 'data' else ''})"
        for name in sorted({*was, *identity})
        if was.get(name) != identity.get(name)
    ]
    if changes and resume != "force":
        raise BadInput(
            f"{what} is of another run: {'; '.join(changes)}. Name another run.dir; run.resume=force takes it anyway"
        )
    return not changes


def damaged_files(folder: Path, rank: int, world: int) -> list[str]:
    """What is missing or not as it was written, among this rank's share of a checkpoint's files.

    Raises: BadInput where state.json is whole and of another format."""
    try:
        files = sorted(read_state(folder)["files"].items())
    except READ_ERRORS:
        return ["state.json"] if rank == 0 else []
    return [
        name
        for name, digest in files[rank::world]
        if not (folder / name).is_file() or synced_digest(folder / name) != digest
    ]


def read_state(folder: Path) -> dict[str, object]:
    """`state.json` of a checkpoint. Raises: one of READ_ERRORS where it is not what was written there;
    BadInput where it is of another format: a checkpoint of an older version, or of another
    program."""
    state = read_json(folder / "state.json")
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise BadInput(
            f"checkpoint {folder}: state.json is of format {found!r:.40}, wanted {FORMAT}: another version wrote it, "
            "which can go on from it; else name another run.dir"
        )
    if state["step"] != step_number(folder) or not all(
        isinstance(state[name], dict) for name in ("identity", "files")
    ):
        raise KeyError("step, identity, files")
    return state


def unknown_entries(folder: Path) -> list[str]:
    """Names in the folder of checkpoints of what no save makes."""
    ours = {path.name for path in step_paths(folder)}
    return sorted(
        path.name
        for path in folder.glob("*")
        if path.name not in ours and not TEMPORARY_NAMES.fullmatch(path.name)
    )
