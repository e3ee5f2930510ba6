"""Files of a run folder: written whole or not at all, and read back. Imports no torch."""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypedDict

IDENTITY = "identity.json"  # in a run folder: the settings that decide its trajectory
# what reading state.json, identity.json or status.json can raise
READ_ERRORS = (OSError, LookupError, TypeError, AttributeError)
NUMBERED = re.compile(r"step-(0|[1-9]\d*)")


class ForcedResume(TypedDict):
    """A resume under other settings, which `run.resume=force` allowed."""

    step: int  # the first step under the new settings
    was: dict[str, object]  # the old value of each setting that changed


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is there whole or as it was before: temporary name, sync, rename.

    A link at `path` is replaced; the file that it points to stays.
    Raises: OSError where the disk refuses; `path` is then as it was.
    """
    with atomic_writer(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path`, synced, at the end of the block; an error removes it.

    Its temporary name can't be guessed and no existing file is opened, so that no link which
    somebody planted is followed.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    opened = os.open(
        part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
    )
    try:
        with os.fdopen(opened, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def synced_digest(path: Path) -> str:
    """Sync a file to the disk and return its SHA-256, in hex."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.sha256()
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, object]:
    """Read the object in a JSON file. Raises: one of READ_ERRORS."""
    return as_dict(parse_json(path))


def parse_json(path: Path) -> object:
    """The value in a JSON file. Raises: OSError or LookupError."""
    try:
        value: object = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise LookupError(f"{path} is no JSON: {error}") from None
    return value


def as_dict(value: object) -> dict[str, object]:
    """The value, which must be a JSON object. Raises: TypeError."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} is not a JSON object")
    return value


def read_forced_resumes(run_dir: Path) -> list[ForcedResume]:
    """Read the forced resumes of the run in a folder from its `identity.json`.

    Returns: [] where there are none, or the file can't be read.
    """
    resumes: list[ForcedResume] = []
    try:
        forced = read_json(run_dir / IDENTITY)["forced"]
        if not isinstance(forced, list):
            raise TypeError("forced is not a list")
        for entry in forced:
            resume: ForcedResume = {"step": int(entry["step"]), "was": as_dict(entry["was"])}
            resumes.append(resume)
    except (*READ_ERRORS, ValueError):
        return []
    return resumes


def step_paths(folder: Path, suffix: str = "") -> list[Path]:
    """List the paths named `step-N` in a folder, in ascending order of N.

    Args: suffix: of the files to list; "" lists folders. Other names are not ours and are left out.
    """
    if not os.path.isdir(folder):  # also False where the name is too long for a folder
        return []
    paths = [
        path
        for path in folder.glob(f"step-*{suffix}")
        if NUMBERED.fullmatch(path.name.removesuffix(suffix))
    ]
    return sorted((path for path in paths if suffix or path.is_dir()), key=step_number)


def step_number(path: Path) -> int:
    """Return N of a path that `step_paths` lists."""
    return int(path.name.split(".")[0].removeprefix("step-"))
