"""Which files of a folder `folder[:subset][:split]` means: those that its dataset card names, else
those whose names say it.

No two splits are read as one: where a folder has several, one of them has to be named."""

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
    """A subset as a card gives it. splits: split -> patterns of its files, None where the names of
    the files say it; root: the folder that they are in; default: read where none is named."""

    splits: dict[str, list[str]] | None
    root: Path
    default: bool


def data_suffix(path: Path) -> str | None:
    """The suffix that tells how a file is read, without `.gz`; None where it is of no known
    kind."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in SUFFIXES else None


def folder_files(folder: Path, named: str | None) -> list[tuple[Path, str]]:
    """The files that `folder:named` means, and the split of each; `named`: `subset`, `split` or
    `subset:split`.

    Raises: BadInput where there is none, where there are several subsets or splits and none is
    named, and for a card that can't be read."""
    configs = _configs(folder)
    if not any(config.splits is not None or config.root != folder for config in configs.values()):
        return _by_names(folder, folder, named)
    subset, split = _subset(folder, configs, named)
    config = configs[subset]
    spec = f"{folder}:{subset}" if len(configs) > 1 else str(folder)
    if config.splits is None:
        return _by_names(config.root, spec, split)
    split = _one_split(spec, list(config.splits), split)
    return [(path, split) for path in _matching(folder, config, split)]


def split_in_name(name: str) -> str:
    """`train`, `validation`, `test` or `heldout`, where a name says that a file is of it; else
    ""."""
    found = SPLIT.search(re.sub("([a-z0-9])([A-Z])", r"\1_\2", name).lower())
    if found is None:
        return ""
    word = re.sub("h[eo]ld[_-]?out", "heldout", found[2])
    return SPLIT_ALIASES.get(word, word)


def _by_names(folder: Path, spec: Path | str, named: str | None) -> list[tuple[Path, str]]:
    """Where no card says it: a split is what a file, or a folder around it, is called; a subset the
    folders around it that are called neither as splits are, nor `data`."""
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
            f"the folder {folder} holds no data, wanted files of {', '.join(SUFFIXES)} "
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
    """The split that is named, or the only one. A word (`test`) also names the only split of that
    word (`my_test`). Raises: BadInput that lists them."""
    if named in names or (named is None and len(names) == 1):
        return named or names[0]
    alike = [
        name for name in names if named and split_in_name(name) == SPLIT_ALIASES.get(named, named)
    ]
    if len(alike) == 1:
        return alike[0]
    found, more = sorted(names), f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    example = next((name for name in found if split_in_name(name) == "train"), found[0])
    has = "has the splits" if named is None else f"has no split {named!r}, it has"
    raise BadInput(
        f"the folder {spec} {has} {', '.join(found[:SHOWN])}{more}, wanted one named, "
        f"as in {spec}:{example}"
    )


def _of_subset(
    folder: Path, spec: Path | str, files: list[Path], named: str | None
) -> tuple[list[Path], Path | str, str | None]:
    """The files of the subset in `subset[:split]`, what it is called, and the split. Raises:
    BadInput where there are several subsets and none is named."""
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
            f"the folder {spec} holds {own}, and more in {', '.join(found[1:])}: wanted "
            f"one of these named, as in {spec}/{found[1]}, or {spec}:. for the former"
        )
    raise BadInput(
        f"the folder {spec} has the subsets {', '.join(found)}, wanted one named, as in "
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
    """The subsets of the folder's dataset card, as `datasets` reads it. Raises: BadInput for a card
    that is no YAML, or gives `data_files` in another form."""
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
    """Split -> patterns of `data_files`: a text or a list of them (of the split `train`), or a list
    of objects with `split` and `path`. Raises: BadInput for anything else."""
    given = files if isinstance(files, list) else [files]
    if given and all(isinstance(pattern, str) for pattern in given):
        return {"train": [_inside(pattern, where) for pattern in given]}
    splits: dict[str, list[str]] = {}
    for of in given:
        path = (
            of.get("path") if isinstance(of, Mapping) and of.keys() == {"split", "path"} else None
        )
        paths = [path] if isinstance(path, str) else path
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise BadInput(
                f"{where}: `data_files` holds {of!r:.80}, wanted a path, a list of them, "
                "or a list of objects with `split` and `path`"
            )
        if str(of["split"]) in splits:
            raise BadInput(f"{where}: `data_files` has the split {of['split']} twice")
        splits[str(of["split"])] = [_inside(path, where) for path in paths]
    if not splits:
        raise BadInput(f"{where}: `data_files` is empty, wanted the paths of files")
    return splits


def _inside(path: str, where: str) -> str:
    if "://" in path or os.path.isabs(path) or ".." in Path(path).parts:
        raise BadInput(
            f"{where}: {path!r:.80} is not in the folder, wanted files in it; name such "
            "files in data.train themselves"
        )
    return path


def _subset(
    folder: Path, configs: Mapping[str, Config], named: str | None
) -> tuple[str, str | None]:
    """Which subset of a card is meant, and the split. Raises: BadInput where it is none, listing
    them."""
    subset, _, split = (named or "").partition(":")
    if subset in configs:
        return subset, split or None
    default = list(configs) if len(configs) == 1 else [n for n, of in configs.items() if of.default]
    if len(default) == 1 and (
        named is None or named in (configs[default[0]].splits or [named]) or len(configs) == 1
    ):
        return default[0], named
    example = next(iter(configs))
    splits = list(configs[example].splits or [])
    wanted = split or (subset if subset in splits else splits[0] if splits else "train")
    has = (
        f"has no subset {subset!r}, it has"
        if subset and subset not in splits
        else "has the subsets"
    )
    raise BadInput(
        f"the folder {folder} {has} {_listed(configs)}, wanted one named, as in "
        f"{folder}:{example}:{wanted}"
    )


def _listed(configs: Iterable[str]) -> str:
    return ", ".join(list(configs)[:SHOWN])


def _matching(folder: Path, config: Config, split: str) -> list[Path]:
    """The files of a split, those of each pattern by name. Raises: BadInput where a pattern without
    wildcards names no file, or all together find none that can be read."""
    found: dict[Path, None] = {}
    for pattern in config.splits[split]:
        names = sorted(glob.glob(pattern, root_dir=config.root, recursive=True))
        paths = [path for path in (config.root / name for name in names) if path.is_file()]
        if not glob.has_magic(pattern) and not paths:
            raise BadInput(
                f"{folder / CARD_FILES[0]}: the split {split} has the file {pattern}, which is "
                f"not in {config.root}"
            )
        found |= dict.fromkeys(p for p in paths if data_suffix(p) or not glob.has_magic(pattern))
    if not found:
        raise BadInput(
            f"{folder / CARD_FILES[0]}: the split {split} has {', '.join(config.splits[split])}, "
            f"where no file of {', '.join(SUFFIXES)} (also with .gz) is found"
        )
    return list(found)
