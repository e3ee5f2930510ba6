"""Every option that must not change what is learnt, on and off: what came out, and seconds a step.

python tests/benchmarks/bench_options.py [--model 7B --layers 2 --device cuda --out DIR]

Two layers of 7B width under ZeRO-3 on one rank. The base trains eight steps on the same pairs: its
first loss is ln 2, then losses fall. Its state after four steps is loaded into a new engine, which
must hold the same bits and compute the same next loss. Every other engine starts from the same
weights, trains the same steps, and differs from the base in one key of `hardware`. Activation
policies, and rows that share nothing, are tried on the base's last weights at a rate of 0. The
result is written after each of them; one that cannot run is told with its reason."""

import argparse
import contextlib
import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import bench_step
import device as devices
import measure
import torch
from bench_step import Json, Phases, dpo_split, one_step, recompute_as
from live_bytes import peak_bytes
from torch import Tensor

from zephyr.config import Hardware
from zephyr.model import fused
from zephyr.training.engine import Engine
from zephyr.training.loop import Split

VARIANTS: dict[str, dict[str, str]] = {
    "gather=module": {"gather": "module"},
    "fused=liger": {"fused": "liger"},
    "fused=triton": {"fused": "triton"},
    "gradient=bfloat16": {"gradient": "bfloat16"},
}
CELLS = (
    "ultrafeedback:recompute=all",
    "ultrafeedback:recompute=mlp",
    "ultrafeedback:recompute=elementwise",
    "ultrafeedback:recompute=none",
    "ultrafeedback:unshared",
    "ultrafeedback:unpacked",
)
STEPS, SAVED_AFTER = 8, 4
# Greatest difference of a loss, absolute, and of a gradient norm, relative, that counts as equal
EQUAL = {"float32": (1e-4, 1e-3), "bfloat16": (1e-2, 3e-2)}


def bytes_held(engine: Engine) -> Iterator[Tensor]:
    """What ZeRO-3 holds of an engine: master weights, their gradients, Adam's state, weights."""
    zero = engine.engine.optimizer
    yield from zero.fp32_partitioned_groups_flat
    yield from (p.grad for p in zero.fp32_partitioned_groups_flat if p.grad is not None)
    for state in zero.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    yield zero.lp_param_buffer


def digest(engine: Engine) -> str:
    """Of the bits of master weights, both moments and the weights of the forward."""
    zero, all_bits = engine.engine.optimizer, hashlib.sha256()
    states = zero.optimizer.state
    for master in zero.fp32_partitioned_groups_flat:
        of = [master, states[master]["exp_avg"], states[master]["exp_avg_sq"]]
        for tensor in of:
            all_bits.update(checksum(tensor))
    all_bits.update(checksum(zero.lp_param_buffer))
    return all_bits.hexdigest()


def checksum(tensor: Tensor) -> bytes:
    """Of a tensor's bits, computed on its device: weighted sums that any changed bit changes."""
    bits = (
        tensor.detach().reshape(-1).view(torch.int32 if tensor.element_size() == 4 else torch.int16)
    )
    sums = []
    for part in bits.split(2**24):
        weights = torch.arange(1, 1 + len(part), device=part.device, dtype=torch.int64)
        sums.append((part.long() * weights).sum())
    return bytes(str([int(s) for s in torch.stack(sums).tolist()]), "ascii")


class Bench:
    """Owns the result, and how to make an engine and its step of pairs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.config = bench_step.fitted(bench_step.SHAPES[args.model], args.layers)
        self.result: Json = {
            "shape": self.config.to_diff_dict(),
            "settings": {name: str(v) for name, v in vars(args).items() if name != "out"},
            "log 2": math.log(2),
        }

    def keep(self) -> Path:
        return measure.write("options", "python tests/benchmarks/bench_options.py", self.result)

    def hardware(self, **changed: str) -> Hardware:
        now = argparse.Namespace(**vars(self.args) | changed)
        return bench_step.hardware_of(now, False)

    @contextlib.contextmanager
    def engine(
        self, cells: Sequence[str] = CELLS[:1], **changed: str
    ) -> Iterator[tuple[Engine, dict[str, Split], Json]]:
        """A new engine of the first weights, a step of pairs for each cell, and seconds of its
        start. The process group stays for the next engine."""
        hardware, starts = self.hardware(**changed), {}
        made = bench_step.make_engine(self.args, self.config, hardware, starts)
        try:
            recompute_as(made, self.args, CELLS[0])
            with (
                tempfile.TemporaryDirectory() as folder,
                bench_step.part_of(starts, "data and reference"),
            ):
                splits = {cell: dpo_split(made, self.args, cell, folder) for cell in cells}
            yield made, splits, starts
        finally:
            self.close(made)

    def close(self, engine: Engine) -> None:
        """DeepSpeed keeps what an engine held; its memory goes back all the same."""
        held = list(bytes_held(engine))
        engine.engine.destroy()
        for tensor in held:
            tensor.untyped_storage().resize_(0)
        del held
        devices.release(self.args.device)


def train(
    engine: Engine, split: Split, phases: Phases, steps: int, lr: float, each: Callable[[], object]
) -> Json:
    """Losses, gradient norms and seconds of so many steps."""
    found: Json = {"losses": [], "grad_norms": [], "seconds": []}
    for _ in range(steps):
        start = phases.mark("whole")
        of = one_step(engine, split, phases, lr)
        phases.spans["total"] = [[start, phases.mark("whole")]]
        found["seconds"].append(phases.seconds()["total"])
        found["losses"].append(of["loss"])
        found["grad_norms"].append(of["grad_norm"])
        each()
    return found


def differences(base: Json, other: Json, dtype: str, first: int = 0) -> Json:
    """Of the steps that both made, from the base's step `first`; `equal`: within EQUAL."""
    losses = list(zip(base["losses"][first:], other["losses"]))
    norms = list(zip(base["grad_norms"][first:], other["grad_norms"]))
    loss = max(abs(a - b) for a, b in losses)
    norm = max(abs(a - b) / a for a, b in norms)
    limits = EQUAL[dtype]
    return {
        "loss": loss,
        "grad_norm_relative": norm,
        "to the bit": loss == norm == 0,
        "equal": loss <= limits[0] and norm <= limits[1],
    }


def run_base(bench: Bench, state: Path) -> Json:
    """The base's steps, its state after some of them, and what must not matter, on its weights."""
    args, base = bench.args, bench.result.setdefault("base", {})
    with bench.engine(CELLS) as (engine, splits, starts):
        phases, split = Phases(engine.device), splits[CELLS[0]]
        bench_step.instrumented(engine, phases)
        base["start_seconds"] = starts
        step = partial(train, engine, split, phases)
        base |= step(SAVED_AFTER, args.lr, bench.keep)
        with bench_step.part_of(base, "save_seconds"):
            engine.save_state(state)
        base["digest"] = digest(engine)
        more = step(STEPS - SAVED_AFTER, args.lr, bench.keep)
        for name, values in more.items():
            base[name] += values
        bench.result["base"] = base | {
            "first loss off ln 2": abs(base["losses"][0] - math.log(2)),
            "falls": all(a > b for a, b in zip(base["losses"], base["losses"][1:])),
            **devices.waits(partial(one_step, engine, split, phases), args.device),
        }
        phases.seconds()
        bench.keep()
        run_cells(bench, engine, splits, phases)
    return bench.result["base"]


def run_cells(bench: Bench, engine: Engine, splits: dict[str, Split], phases: Phases) -> None:
    """Policies and layouts on the weights as they are: loss, gradient norm, memory, seconds."""
    cells, first = bench.result.setdefault("cells", {}), None
    for name, split in splits.items():
        with measure.failure_recorded(cells, name):
            recompute_as(engine, bench.args, name)
            peak, found = peak_bytes(partial(one_step, engine, split, phases), bench.args.device)
            phases.seconds()
            timed = train(engine, split, phases, 2, 0.0, bench.keep)
            first = first or timed
            cells[name] = {
                "step_peak_bytes": peak,
                **found,
                **timed,
                "off the first": differences(first, timed, bench.args.dtype),
            }
        bench.keep()
    recompute_as(engine, bench.args, CELLS[0])


def run_resumed(bench: Bench, state: Path, base: Json) -> None:
    """A new engine that loads the base's state."""
    with bench.engine() as (engine, splits, _):
        phases, split = Phases(engine.device), splits[CELLS[0]]
        bench_step.instrumented(engine, phases)
        found: Json = {}
        with bench_step.part_of(found, "load_seconds"):
            engine.load_state(state, SAVED_AFTER)
        found["state to the bit"] = digest(engine) == base["digest"]
        found |= train(engine, split, phases, STEPS - SAVED_AFTER, bench.args.lr, bench.keep)
        found["next loss to the bit"] = found["losses"][0] == base["losses"][SAVED_AFTER]
        found["off the base"] = differences(base, found, bench.args.dtype, SAVED_AFTER)
        bench.result["resumed"] = found
    bench.keep()


def run_variant(bench: Bench, name: str, base: Json) -> None:
    """Steps of an engine that differs in one key of `hardware`."""
    kernels = VARIANTS[name].get("fused", "none")
    reason = fused.unavailable_reason(kernels, bench.args.device)
    if reason:
        bench.result["variants"][name] = {"skipped": reason}
        return
    with bench.engine(**VARIANTS[name]) as (engine, splits, starts):
        phases, split = Phases(engine.device), splits[CELLS[0]]
        bench_step.instrumented(engine, phases)
        found = train(engine, split, phases, SAVED_AFTER, bench.args.lr, bench.keep)
        found["start_seconds"] = starts
        found["off the base"] = differences(base, found, bench.args.dtype)
        found |= devices.waits(partial(one_step, engine, split, phases), bench.args.device)
        bench.result["variants"][name] = found


def main(argv: Sequence[str] | None = None) -> Json:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    own, rest = parser.parse_known_args(argv)
    args = bench_step.parse(rest)
    bench, started = Bench(args), time.perf_counter()
    bench.result["variants"] = {}
    memory = Path("/dev/shm")  # where there is room, a state is written to memory
    room = memory if memory.is_dir() and shutil.disk_usage(memory).free > 32e9 else args.out
    with tempfile.TemporaryDirectory(dir=room) as state:
        base = run_base(bench, Path(state))
        with measure.failure_recorded(bench.result, "resumed"):
            run_resumed(bench, Path(state), base)
    for name in own.variants.split(","):
        with measure.failure_recorded(bench.result["variants"], name):
            run_variant(bench, name, base)
        bench.keep()
    torch.distributed.destroy_process_group()
    bench.result["seconds"] = time.perf_counter() - started
    print(bench.keep().read_text(encoding="utf-8"), end="")
    return bench.result


if __name__ == "__main__":
    main()
