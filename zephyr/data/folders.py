"""A spec `folder[:subset][:split]` becomes the files that it means: those that the folder's dataset
card names, else those whose names fit.

Two splits are never read as one: if a folder has several, one of them must be named."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from zephyr.config import NOT_YAML, BadInput, parse_yaml

SUFFIXES = (".jsonl", ".json", ".parquet")
SPLIT = re.compile(
    r"(?:^|[^a-z])((train|test|val|dev|eval|h[eo]ld[_-]?out)"
    r"(?:ing|set|id|idation|elopment|uation)?(?:_[a-z]+)?)(?![a-z])"
)
SPLIT_ALIASES = {
    "val": "validation",
    "dev": "validation",
    "eval": "test",
}  # as `datasets` reads them
SHARD = re.compile(r"-\d+-of-\d+.*$")
PART = re.compile(r"([-_. ]*(part|shard|chunk)?[-_. ]*\d+)+$")
CARD_FILES = ("README.md", ".huggingface.yaml")  # as `datasets` names them
SHOWN = 20  # names that an error lists


class Config(NamedTuple):
    """A subset as a card gives it.

    splits: split -> patterns of its files; None if the card leaves it to the names of the files.
    root: the folder of the files. default: the subset to read if none is named."""

    splits: dict[str, list[str]] | None
    root: Path
    default: bool


def data_suffix(path: Path) -> str | None:
    """The suffix that tells how a file is read, without `.gz`; None if it is of no known kind."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in SUFFIXES else None


def folder_files(folder: Path, named: str | None) -> list[tuple[Path, str]]:
    """The files that `folder:named` means, and the split of each.

    named: `subset`, `split` or `subset:split`.
    Raises: BadInput if there is none, if there are several subsets or splits and none is named, and
        for a card that cannot be read."""
    configs = _configs(folder)
    if not any(config.splits is not None or config.root != folder for config in configs.values()):
        return _by_names(folder, folder, named)
    subset, split = _subset(folder, configs, named)
    config = configs[subset]
    spec = f"{folder}:{subset}" if len(configs) > 1 else str(folder)
    if config.splits is None:
        return _by_names(config.root, spec, split)
    split = _one_split(spec, list(config.splits), split)
    files = _matching(folder, config.root, split, config.splits[split])
    return [(path, split) for path in files]


def split_in_name(name: str) -> str:
    """`train`, `validation`, `test` or `heldout` if the name of a file holds such a word, else
    ""."""
    found = SPLIT.search(re.sub("([a-z0-9])([A-Z])", r"\1_\2", name).lower())
    if found is None:
        return ""
    word = re.sub("h[eo]ld[_-]?out", "heldout", found[2])
    return SPLIT_ALIASES.get(word, word)


def _by_names(folder: Path, spec: Path | str, named: str | None) -> list[tuple[Path, str]]:
    """The files of a folder without a card. The name of a file or of a folder around it tells the
    split; the other folders around it, except `data`, tell the subset."""
    if not folder.is_dir():
        raise BadInput(f"{spec}: the card names {folder}, which is no folder here")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and data_suffix(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise BadInput(
            f"the folder {folder} holds no data, expected files of {', '.join(SUFFIXES)} "
            "(also with .gz)"
        )
    files, spec, named = _of_subset(folder, spec, files, named)
    splits = {path: _split_of(path, folder) for path in files}
    names = list(dict.fromkeys(splits.values()))
    parted = any(map(split_in_name, names)) or any(SHARD.search(path.name) for path in files)
    if named is None and not parted:
        return list(splits.items())
    split = _one_split(spec, names, named)
    return [(path, split) for path in files if splits[path] == split]


def _one_split(spec: Path | str, names: list[str], named: str | None) -> str:
    """The split that is named, or the only one. A word (`test`) also names the only split with that
    word (`my_test`).

    Raises: BadInput that lists the splits."""
    if named in names or (named is None and len(names) == 1):
        return named or names[0]
    alike = [
        name for name in names if named and split_in_name(name) == SPLIT_ALIASES.get(named, named)
    ]
    if len(alike) == 1:
        return alike[0]
    found = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    example = next((name for name in found if split_in_name(name) == "train"), found[0])
    has = "has the splits" if named is None else f"has no split {named!r}, it has"
    raise BadInput(
        f"the folder {spec} {has} {', '.join(found[:SHOWN])}{more}, expected one to be named, "
        f"as in {spec}:{example}"
    )


def _of_subset(
    folder: Path, spec: Path | str, files: list[Path], named: str | None
) -> tuple[list[Path], Path | str, str | None]:
    """The files of the subset in `named` (`subset[:split]`), the subset's spec, and the split.

    Raises: BadInput if there are several subsets and none is named."""
    subsets: dict[str, list[Path]] = {}
    for path in files:
        parts = path.relative_to(folder).parent.parts
        name = "/".join(part for part in parts if part != "data" and not split_in_name(part)) or "."
        subsets.setdefault(name, []).append(path)
    found = sorted(subsets)
    subset, _, split = (named or "").partition(":")
    if subset in subsets and (len(found) > 1 or subset != "."):
        return subsets[subset], f"{spec}:{subset}", split or None
    if len(found) == 1:
        return files, spec, named
    if "." in found:
        own = ", ".join(path.name for path in subsets["."][:SHOWN])
        raise BadInput(
            f"the folder {spec} holds {own}, and more in {', '.join(found[1:])}: expected one of "
            f"these to be named, as in {spec}/{found[1]}, or {spec}:. for the former"
        )
    raise BadInput(
        f"the folder {spec} has the subsets {', '.join(found)}, expected one to be named, as in "
        f"{spec}:{found[0]}:{split or subset or 'train'}"
    )


def _split_of(path: Path, folder: Path) -> str:
    """`train` for train.jsonl, train-00000-of-00002.parquet, train_part2.json, train/x.json.gz."""
    around = [part for part in path.relative_to(folder).parent.parts if split_in_name(part)]
    if around:
        return around[-1]
    stem = path.name.removesuffix(".gz")
    stem = SHARD.sub("", stem[: -len(data_suffix(path) or "")])
    return PART.sub("", stem) or stem


def _configs(folder: Path) -> dict[str, Config]:
    """The subsets of the folder's dataset card, read as `datasets` reads it.

    Raises: BadInput for a card that is no YAML, or gives `data_files` in another form."""
    header: dict[str, object] = {}
    for card in (folder / name for name in CARD_FILES):
        if not card.is_file():
            continue
        written = card.read_text(encoding="utf-8-sig", errors="replace")
        if card.suffix == ".md":
            head = re.match(r"---\s*\n(.*?)\n---", written, re.DOTALL)
            written = head[1] if head else ""
        try:
            found = parse_yaml(written)
        except NOT_YAML as error:
            raise BadInput(f"{card}: its header is no YAML: {error}") from None
        header |= found if isinstance(found, dict) else {}
    listed = header.get("configs")
    configs = [of for of in listed if isinstance(of, Mapping)] if isinstance(listed, list) else []
    made = {}
    for config in configs:
        name, files = str(config.get("config_name", "default")), config.get("data_files")
        where = f"{folder / CARD_FILES[0]}: configs: {name}"
        root = folder / _inside(str(config.get("data_dir") or "."), where)
        splits = None if files is None else _patterns(files, where)
        made[name] = Config(splits, root, config.get("default") is True or name == "default")
    return made


def _patterns(files: object, where: str) -> dict[str, list[str]]:
    """Split -> patterns of `data_files`: a path or a list of them (of the split `train`), or a list
    of objects with `split` and `path`.

    Raises: BadInput for anything else."""
    given = files if isinstance(files, list) else [files]
    patterns = [pattern for pattern in given if isinstance(pattern, str)]
    if given and len(patterns) == len(given):
        return {"train": [_inside(pattern, where) for pattern in patterns]}
    splits: dict[str, list[str]] = {}
    for item in given:
        split, paths = _split_and_paths(item, where)
        if split in splits:
            raise BadInput(f"{where}: `data_files` has the split {split} twice")
        splits[split] = [_inside(path, where) for path in paths]
    if not splits:
        raise BadInput(f"{where}: `data_files` is empty, expected the paths of files")
    return splits


def _split_and_paths(item: object, where: str) -> tuple[str, list[str]]:
    if isinstance(item, Mapping) and item.keys() == {"split", "path"}:
        paths = item["path"] if isinstance(item["path"], list) else [item["path"]]
        if all(isinstance(path, str) for path in paths):
            return str(item["split"]), paths
    raise BadInput(
        f"{where}: `data_files` holds {item!r:.80}, expected a path, a list of them, "
        "or a list of objects with `split` and `path`"
    )


def _inside(path: str, where: str) -> str:
    if "://" in path or os.path.isabs(path) or ".." in Path(path).parts:
        raise BadInput(
            f"{where}: {path!r:.80} is not in the folder, expected files in it; name such "
            "files in data.train themselves"
        )
    return path


def _subset(
    folder: Path, configs: Mapping[str, Config], named: str | None
) -> tuple[str, str | None]:
    """The subset of a card that `named` means, and the split. Raises: BadInput that lists the
    subsets if there is no such subset, or if one must be named."""
    subset, _, split = (named or "").partition(":")
    if subset in configs:
        return subset, split or None
    if len(configs) == 1:
        return next(iter(configs)), named
    defaults = [name for name, config in configs.items() if config.default]
    if len(defaults) == 1:
        splits_of_default = configs[defaults[0]].splits
        if named is None or not splits_of_default or named in splits_of_default:
            return defaults[0], named
    example = next(iter(configs))
    splits = list(configs[example].splits or [])
    if not split:
        split = subset if subset in splits else [*splits, "train"][0]
    unknown = subset and subset not in splits
    has = f"has no subset {subset!r}, it has" if unknown else "has the subsets"
    raise BadInput(
        f"the folder {folder} {has} {_listed(configs)}, expected one to be named, as in "
        f"{folder}:{example}:{split}"
    )


def _listed(configs: Iterable[str]) -> str:
    return ", ".join(list(configs)[:SHOWN])


def _matching(folder: Path, root: Path, split: str, patterns: list[str]) -> list[Path]:
    """The files of a split, those of each pattern sorted by name.

    Raises: BadInput if a pattern without wildcards names no file, or if no pattern finds a file
        that can be read."""
    found: dict[Path, None] = {}  # an ordered set
    for pattern in patterns:
        names = sorted(glob.glob(pattern, root_dir=root, recursive=True))
        paths = [path for path in (root / name for name in names) if path.is_file()]
        if not glob.has_magic(pattern):
            if not paths:
                raise BadInput(
                    f"{folder / CARD_FILES[0]}: the split {split} has the file {pattern}, which is "
                    f"not in {root}"
                )
            found.update(dict.fromkeys(paths))
        else:
            found.update(dict.fromkeys(path for path in paths if data_suffix(path)))
    if not found:
        raise BadInput(
            f"{folder / CARD_FILES[0]}: the split {split} has {', '.join(patterns)}, "
            f"where no file of {', '.join(SUFFIXES)} (also with .gz) is found"
        )
    return list(found)
