"""Access to the Hugging Face hub: one rank a node asks it, the others read its cache."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Ask no server inside, as with HF_HUB_OFFLINE=1: what is not in the cache is an error.

    huggingface_hub and transformers look at the first flag in every call, datasets at the second.
    """
    import huggingface_hub.constants as constants

    before = constants.HF_HUB_OFFLINE
    datasets = sys.modules.get("datasets.config")
    datasets_before = before if datasets is None else datasets.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    if datasets is not None:
        datasets.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # a module found by its name
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        datasets = sys.modules.get("datasets.config")  # imported inside, it copied the first flag
        if datasets is not None:
            datasets.HF_HUB_OFFLINE = datasets_before  # type: ignore[attr-defined]  # as above
