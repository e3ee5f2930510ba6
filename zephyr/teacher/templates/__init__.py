"""Texts that a prompt is made from: our words in NAME.txt here, or a user's in a folder of the same
names."""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from zephyr.config import BadInput

DEFAULT_FOLDER = Path(__file__).parent
FIELD = re.compile(r"\{([a-z_]+)\}")  # {name}; other braces are text, doubled ones too


def load_templates(names: Sequence[str], folder: Path | None = None) -> dict[str, str]:
    """The templates `names`, each from NAME.txt in `folder` where it is there, else ours.

    Args: names: without .txt. folder: the user's; it may hold files of any of our templates,
    whether in `names` or not. Returns: text by name, without white space at its end. Raises:
    BadInput for a folder that isn't one, a file that is none of ours by name or not UTF-8, a
    {field} that ours doesn't have."""
    if folder is not None and not folder.is_dir():
        raise BadInput(
            f"templates {folder}: a folder of NAME.txt is wanted, it {'is a file' if folder.exists() else 'does not exist'}"
        )
    texts = ours = {
        path.name: path.read_text(encoding="utf-8") for path in sorted(DEFAULT_FOLDER.glob("*.txt"))
    }
    for path in sorted(folder.iterdir()) if folder else ():
        if path.name not in ours:
            raise BadInput(f"{path}: no template has this name; known: {', '.join(ours)}")
        try:
            texts = texts | {path.name: path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: a UTF-8 text is wanted: {error}") from None
        known = set(FIELD.findall(ours[path.name]))
        if unknown := sorted(set(FIELD.findall(texts[path.name])) - known):
            raise BadInput(
                f"{path}: unknown field {{{unknown[0]}}}; known: {', '.join(sorted(known))}"
            )
    return {name: texts[f"{name}.txt"].rstrip() for name in names}


def digests(texts: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each template, for reports."""
    return {name: sha256(text.encode()).hexdigest() for name, text in texts.items()}


def fill(template: str, **fields: str) -> str:
    """The template with every {field} replaced, at once: braces in the texts stay. Raises: KeyError
    for a field that isn't given."""
    return FIELD.sub(lambda found: fields[found[1]], template)
