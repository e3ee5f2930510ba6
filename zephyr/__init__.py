"""The Zephyr recipe from scratch: distilled SFT, AI feedback, distilled DPO (arXiv:2310.16944).

`import zephyr` is light: `zephyr.losses`, `zephyr.packing`, `zephyr.chat`, `zephyr.model.load` and
`zephyr.model.logprobs` are imported when they are first used.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
LIBRARY = ("chat", "config", "losses", "model", "packing")


def __getattr__(name: str) -> ModuleType:
    if name in LIBRARY:
        return importlib.import_module(f"zephyr.{name}")
    raise AttributeError(f"module 'zephyr' has no attribute {name!r}")
