"""An export becomes a repository of the Hub: its files are checked, then uploaded as one commit."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: httpx's, httpx2's
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there
from safetensors import SafetensorError, safe_open

import zephyr
from zephyr.config import BadInput
from zephyr.report.card import LICENCE_NOTE

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CARD = "README.md"
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", CARD)
# Files of an earlier model in the repository. Left there, transformers would load them with, or in
# place of, the weights of this one.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", ADAPTER)


class Upload(NamedTuple):
    """A file of the repository."""

    name: str
    content: Path | bytes  # bytes where it is not as in the folder
    size: int  # bytes


class Tags(NamedTuple):
    """What the header of the card says besides what the run knew; None and () change nothing."""

    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()


def find_export(run: Path, *, adapter: bool = False) -> Path:
    """The folder to publish: `model/` or `adapter/` of a run folder, or the folder itself.

    Raises: BadInput where there is none, or an export was interrupted."""
    wanted = "adapter" if adapter else "model"
    if (run / (ADAPTER if adapter else "config.json")).is_file():
        return run
    folder = run / wanted
    if folder.with_name(f"{wanted}.part").is_dir():
        raise BadInput(
            f"{folder}.part is an export that was interrupted: start the run again, which resumes "
            f"from its last checkpoint and writes {wanted}/"
        )
    if folder.is_dir():
        return folder
    raise BadInput(f"{run}: expected a run folder with {wanted}/, or the folder of an export")


def require_complete(folder: Path) -> None:
    """Check that a folder is a whole export of a model or an adapter.

    Raises: BadInput naming the file that is missing, cut off, or not of the index."""
    if (folder / ADAPTER).is_file():
        required = [ADAPTER, ADAPTER_WEIGHTS]
    else:
        required = [*MODEL_FILES, *(sorted(set(weight_map(folder).values())) or [SINGLE])]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        required.append("tokenizer.json")
    for name in required:
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: {name} is missing, so the export is not complete")
    expected = weight_map(folder)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = tensor_names(path)
        named = {name for name, file in expected.items() if file == path.name}
        if expected and named != tensors:
            name = min(named ^ tensors)
            raise BadInput(f"{path}: its tensors are not those of {INDEX}, as for {name}")
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{path}: not whole JSON, the export is not complete: {error}") from None


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file, of the index; empty without one."""
    if not (folder / INDEX).is_file():
        return {}
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        found: dict[str, str] = dict(index["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / INDEX}: expected a weight_map, got {error!r}") from None
    return found


def tensor_names(path: Path) -> set[str]:
    """The tensors of a safetensors file. Raises: BadInput where the file was cut off."""
    try:
        with safe_open(path, framework="np") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a whole safetensors file: {error}") from None


def files_of(folder: Path, tags: Tags, warn: Callable[[str], None]) -> list[Upload]:
    """The files of a complete export as they are published, by name.

    Hidden files and folders stay behind. The card's header gets the tags, and the configuration of
    an adapter the hub id of its base.

    Raises: BadInput for an export that is not complete, and a header that the Hub would refuse."""
    require_complete(folder)
    changed = {CARD: tagged_card(folder, tags, warn).encode()}
    if (folder / ADAPTER).is_file():
        changed[ADAPTER] = named_base(folder / ADAPTER, tags.base_model, warn)
    paths = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    uploads = [
        Upload(path.name, path, path.stat().st_size) for path in paths if path.name not in changed
    ]
    uploads += [Upload(name, content, len(content)) for name, content in changed.items()]
    return sorted(uploads)


def tagged_card(folder: Path, tags: Tags, warn: Callable[[str], None]) -> str:
    """The card with the tags in its header.

    Raises: BadInput for a header that is no YAML, or an id that is none of the Hub's."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
        card = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{folder / CARD}: its header is no YAML mapping: {error}") from None
    data = card.data
    given = {"license": tags.license, "base_model": tags.base_model, "datasets": [*tags.datasets]}
    for key, value in given.items():
        if value:
            data[key] = value
    for key in ("base_model", "datasets"):
        value = data.get(key) or []
        for name in [value] if isinstance(value, str) else value:
            require_hub_id(name, f"{key} of {folder / CARD}")
    if not data.get("license"):
        warn("the card has no license: name it with --license, as the Hub writes it (apache-2.0)")
    if not data.get("base_model"):
        warn("the card names no base model: name its hub id with --base-model")
    if not any(given.values()):
        return text
    return str(card).replace(LICENCE_NOTE, "") if tags.license else str(card)


def named_base(path: Path, base: str | None, warn: Callable[[str], None]) -> bytes:
    """adapter_config.json with the hub id of its base, where one is given."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if base is not None:
        settings["base_model_name_or_path"] = base
        return (json.dumps(settings, indent=2) + "\n").encode()
    if Path(str(settings.get("base_model_name_or_path"))).is_absolute():
        warn(
            f"{ADAPTER} names its base as {settings['base_model_name_or_path']}, a folder of this "
            "machine: name its hub id with --base-model"
        )
    return path.read_bytes()


def require_hub_id(name: object, what: str) -> None:
    """Raises: BadInput where a name is no id of the Hub."""
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        raise BadInput(f"{what}: expected NAMESPACE/NAME, an id of the Hub: {error}") from None


def stale_files(present: Collection[str], files: Collection[Upload]) -> list[str]:
    """Weights in the repository that are not of this export, in its top folder."""
    new = {file.name for file in files}
    return sorted(
        name
        for name in present
        if name not in new
        and "/" not in name
        and any(fnmatchcase(name, pattern) for pattern in WEIGHTS)
    )


def upload(
    files: Sequence[Upload],
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    info: Callable[[str], None],
) -> str:
    """Put the files into a repository of the Hub as one commit, and return the commit's URL.

    The repository and the branch are made where they are missing. Until the commit, the repository
    is as it was. Large files that arrived before an interruption are not sent again.

    Args:
        repo_id: NAMESPACE/NAME, or NAME in the namespace of the token.
        private: whether the repository must be private.
        revision: the branch; None for main.
        info: is told what is removed.

    Raises:
        BadInput: without a token, for a repository that is not private but should be, for what the
            Hub refuses, and where the connection is lost.
    """
    if get_token() is None:
        raise BadInput(
            "no token of the Hub is found: run `hf auth login`, or set HF_TOKEN to a token with "
            "write access, from the Hub's page of settings"
        )
    api = HfApi(library_name="zephyr", library_version=zephyr.__version__)
    with errors_of_the_hub(repo_id):
        name = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(name).private:
            raise BadInput(
                f"--private: {name} is there already and is public; make it private in its "
                "settings on the Hub, or name another repository"
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        stale = stale_files(api.list_repo_files(name, revision=revision), files)
        if stale:
            info(f"removes what belongs to an earlier model: {', '.join(stale)}")
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file.name, file.content) for file in files
        ]
        operations += [CommitOperationDelete(path) for path in stale]
        commit = api.create_commit(
            name,
            operations,
            commit_message=f"Upload of zephyr {zephyr.__version__}",
            revision=revision,
        )
    return str(commit.commit_url)


@contextmanager
def errors_of_the_hub(repo_id: str) -> Iterator[None]:
    """Turn what the Hub and the connection to it refuse into BadInput."""
    try:
        yield
    except BadInput:
        raise
    except OfflineModeIsEnabled:
        raise BadInput("HF_HUB_OFFLINE is set, so nothing is sent: unset it to push") from None
    except HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        hint = "; the token needs write access there: `hf auth whoami`" if refused else ""
        raise BadInput(f"the Hub refuses {repo_id}: {error}{hint}") from None
    except ValueError as error:  # the header of the card, by the Hub's own check
        raise BadInput(f"the Hub refuses {repo_id}: {error}") from None
    except (HTTPError, OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise BadInput(
            f"the upload to {repo_id} broke off: {error} {cause}; the repository is as it was; run "
            "the command again: large files that have arrived are not sent again"
        ) from None
