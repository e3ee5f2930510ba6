"""Measurements of the GPU tests, written as JSON after each test that made one."""

import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

RESULTS = Path(os.environ.get("ZEPHYR_RESULTS") or Path(__file__).parent / "results")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@pytest.fixture(scope="session")
def figures() -> dict[str, object]:
    """What all tests of this process have measured so far."""
    return {}


@pytest.fixture
def measured(figures: dict[str, object]) -> Iterator[dict[str, object]]:
    """A dictionary that tests add figures to; `<GPU>-torch-<version>.json` is written whole after
    each test, so that a process which is ended early leaves what it measured."""
    yield figures
    rehearses = os.environ.get("ZEPHYR_REHEARSE") == "1"
    if figures and (rehearses or torch.cuda.is_available()):
        RESULTS.mkdir(exist_ok=True, parents=True)
        gpu = "CPU" if rehearses else torch.cuda.get_device_name().replace(" ", "-")
        names = ("torch", "transformers", "deepspeed", "flash-attn", "einops")
        packages = {name: version(name) for name in names}
        head = {
            "gpu": gpu,
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            **packages,
        }
        path = RESULTS / f"{gpu}-torch-{packages['torch'].split('+')[0]}.json"
        path.write_text(json.dumps({**head, **figures}, indent=1) + "\n")
