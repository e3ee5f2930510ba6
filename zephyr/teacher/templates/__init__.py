"""The texts that prompts are made from: NAME.txt in this folder, or a user's file of the same name
in another one."""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from zephyr.config import BadInput

DEFAULT_FOLDER = Path(__file__).parent
FIELD = re.compile(r"\{([a-z_]+)\}")  # {name}; other braces are text, double ones too


def load_templates(names: Sequence[str], folder: Path | None = None) -> dict[str, str]:
    """Load templates, each from `folder` if it has the file, otherwise the default.

    Args:
        names: without .txt.
        folder: the user's. It may hold files for any of the default templates, also those that are
            not in `names`.
    Returns:
        The text by name, without white space at its end.
    Raises:
        BadInput: if the folder does not exist, or one of its files has an unknown name, is not
            UTF-8, or has a {field} that the default does not have.
    """
    if folder is not None and not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise BadInput(f"templates {folder}: expected a folder of NAME.txt, it {found}")
    defaults = {
        path.name: path.read_text(encoding="utf-8") for path in sorted(DEFAULT_FOLDER.glob("*.txt"))
    }
    texts = dict(defaults)
    for path in sorted(folder.iterdir()) if folder else ():
        if path.name not in defaults:
            raise BadInput(f"{path}: no template has this name; known: {', '.join(defaults)}")
        try:
            texts[path.name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: expected a UTF-8 text: {error}") from None
        known = set(FIELD.findall(defaults[path.name]))
        unknown = sorted(set(FIELD.findall(texts[path.name])) - known)
        if unknown:
            raise BadInput(
                f"{path}: unknown field {{{unknown[0]}}}; known: {', '.join(sorted(known))}"
            )
    return {name: texts[f"{name}.txt"].rstrip() for name in names}


def digests(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of each template, for reports."""
    return {name: sha256(text.encode()).hexdigest() for name, text in texts.items()}


def fill(template: str, **fields: str) -> str:
    """Return the template with each {field} replaced. Braces in the values are not replaced again.

    Raises:
        KeyError: for a field without a value.
    """
    return FIELD.sub(lambda found: fields[found[1]], template)
