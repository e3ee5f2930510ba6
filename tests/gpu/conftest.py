"""Measurements of the GPU tests, written as JSON beside them when any was made."""
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parent / "results"


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@pytest.fixture(scope="session")
def measured() -> Iterator[dict[str, object]]:
    """A dictionary that tests add figures to; saved as `results/<GPU>-torch-<version>.json`."""
    figures: dict[str, object] = {}
    yield figures
    if figures and torch.cuda.is_available():
        RESULTS.mkdir(exist_ok=True)
        gpu = torch.cuda.get_device_name().replace(" ", "-")
        packages = {name: version(name) for name in ("torch", "transformers", "deepspeed", "flash-attn", "einops")}
        head = {"gpu": gpu, "python": platform.python_version(), "cuda": torch.version.cuda, **packages}
        path = RESULTS / f"{gpu}-torch-{packages['torch'].split('+')[0]}.json"
        path.write_text(json.dumps({**head, **figures}, indent=1) + "\n")
