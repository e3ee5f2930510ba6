"""What the benchmarks ask of a device: its clock, its memory, how often the host waits for it.

No other file of the GPU script asks whether there is a GPU while it measures, so that all the rest
runs on a CPU too."""

import gc
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

Mark = "torch.cuda.Event | float"


def is_gpu(device: object) -> bool:
    return torch.device(device).type == "cuda"


def default() -> str:
    """cuda where torch sees a GPU and DS_ACCELERATOR does not say otherwise."""
    wanted = os.environ.get("DS_ACCELERATOR", "cuda")
    return "cuda" if wanted == "cuda" and torch.cuda.is_available() else "cpu"


def mark(device: object) -> Mark:
    """A moment: an event of the GPU, or CPU seconds of this process, all threads."""
    if not is_gpu(device):
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed(start: Mark, end: Mark) -> float:
    """Seconds between two marks. Events of a GPU must be over: `synchronize` first."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


def synchronize(device: object) -> None:
    """Wait until the device has done its work."""
    if is_gpu(device):
        torch.cuda.synchronize()


def release(device: object) -> None:
    """Return the memory of what is gone to the device."""
    gc.collect()
    if is_gpu(device):
        torch.cuda.empty_cache()


def memory(device: object) -> int:
    """Bytes of the device."""
    if is_gpu(device):
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def waits(call: Callable[[], object], device: object) -> dict[str, object]:
    """How often the host waits for the GPU in a call, and from which lines; {} on a CPU."""
    if not is_gpu(device):
        call()
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message)]
    lines = Counter(
        f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}" for w in found
    )
    return {"host_waits": len(found), "host_waits_by_line": dict(lines.most_common(12))}
