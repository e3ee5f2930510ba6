"""Packed token ids become log-probabilities of the tokens that are scored."""
import importlib
from types import ModuleType

MODULES = ("attention", "export", "generate", "load", "logprobs")


def __getattr__(name: str) -> ModuleType:
    if name in MODULES:
        return importlib.import_module(f"zephyr.model.{name}")
    raise AttributeError(f"module 'zephyr.model' has no attribute {name!r}")
