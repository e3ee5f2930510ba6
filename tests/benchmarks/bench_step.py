"""A whole training step, through the engine, plan, collation and objectives that train_dpo.py and
train_sft.py use: how fast, and where its time and memory go.

python tests/benchmarks/bench_step.py --model A [--cells
ultrafeedback,ultrafeedback:unshared,sft,row:4096 --checkpointing true]

A cell is one step of work: a length profile of pairs (`:unshared`: prompts twice; `:unpacked`: one
pair a micro-batch), `sft`, or `row:N`, a row of N tokens in pairs of 512. Any of them with
`:budget=N` tokens a micro-batch, and with `:recompute=all`, `mlp`, `elementwise` or `none` in place
of --checkpointing. Cells are measured on the same weights: the rate is 0, so nothing moves. They
take turns, round after round; with `--order cells` one is finished before the next begins. The
result is written after every round. A cell that runs out of a GPU's memory is told, and a new
process measures those that are left."""

import argparse
import contextlib
import itertools
import json
import os
import re
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import device as devices
import measure
import numpy as np
import pyarrow as pa
import torch
import yaml
from lengths import PROFILES, dialogue_lengths, pair_lengths, random_pairs
from live_bytes import peak_bytes
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train_dpo
import train_sft
from zephyr import reference
from zephyr.chat import EncodedText
from zephyr.config import Data, DPOConfig, Hardware, Optim, Reference, SFTConfig, SFTData
from zephyr.data.store import Pairs, Texts, example_batch
from zephyr.model import fused
from zephyr.model.load import DTYPES, checkpoint_activations, load_policy
from zephyr.packing import plan_epochs
from zephyr.training.engine import Engine
from zephyr.training.flops import mfu
from zephyr.training.loop import Split, forward_backward, reduce_totals

A = ParamSpec("A")
R = TypeVar("R")
Json = dict[str, object]
Keep = Callable[[], object]  # writes what is measured so far


def shape(
    hidden: int, layers: int, heads: int, key_heads: int, inner: int, vocabulary: int
) -> MistralConfig:
    return MistralConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        sliding_window=None,
    )


SHAPES = {
    "tiny": shape(32, 2, 2, 1, 64, 96),
    "A": shape(256, 4, 4, 2, 688, 32000),
    "B": shape(512, 8, 8, 4, 1376, 4096),
    "7B": shape(4096, 32, 32, 8, 14336, 32000),
}
PAIR = (104, 204, 204)  # of `row:N`: 512 tokens
ROOM = 16e9  # bytes left to activations where layers are cut to fit


class Phases:
    """Owns the marks of a step: seconds by phase, of the device on a GPU, else CPU time of this
    process; `host`: of the host."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spans = device, dict[str, list[list[devices.Mark]]]()

    def mark(self, name: str) -> devices.Mark:
        return devices.mark("cpu" if name == "host" else self.device)

    def begin(self, name: str) -> None:
        self.spans.setdefault(name, []).append([self.mark(name)])

    def end(self, name: str) -> None:
        self.spans[name][-1].append(self.mark(name))

    def timed(self, name: str, call: Callable[A, R]) -> Callable[A, R]:
        def run(*args: A.args, **kwargs: A.kwargs) -> R:
            self.begin(name)
            result = call(*args, **kwargs)
            self.end(name)
            return result

        return run

    def seconds(self) -> dict[str, float]:
        """Since the last call; a phase within another is taken out of it."""
        devices.synchronize(self.device)
        of = {
            name: sum(devices.elapsed(start, end) for start, end in spans)
            for name, spans in self.spans.items()
        }
        self.spans.clear()
        for outer, inner in (("forward", "head_forward"), ("backward", "head_backward")):
            of[outer] -= of.get(inner, 0.0)
        return of


def hollow_folder(config: MistralConfig, dtype: torch.dtype, folder: Path) -> Path:
    """A Hugging Face folder whose weights are a hole in a file: their names and shapes are real, no
    byte of them is on the disk."""
    with torch.device("meta"):
        named = list(AutoModelForCausalLM.from_config(config, dtype=dtype).named_parameters())
    ends = list(itertools.accumulate(p.numel() * dtype.itemsize for _, p in named))
    header = {
        name: {
            "dtype": {2: "BF16", 4: "F32"}[dtype.itemsize],
            "shape": list(p.shape),
            "data_offsets": [start, end],
        }
        for (name, p), start, end in zip(named, [0, *ends], ends)
    }
    text = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + ends[-1])
    return folder


def random_policy(
    config: MistralConfig,
    attention: str,
    dtype: torch.dtype,
    checkpointing: object = False,
    device: str = "cpu",
    kernels: str = "none",
    init: object = None,
    write: object = None,
) -> nn.Module:
    """What `load_policy` makes of a config, its weights drawn on the device instead of read."""
    write = write or (lambda parameter, read: parameter.data.copy_(read()))
    generator = torch.Generator(device).manual_seed(0)

    def draw(parameter: nn.Parameter) -> Tensor:
        size = tuple(getattr(parameter, "ds_shape", parameter.shape))
        return (
            torch.ones(size, device=device)
            if len(size) == 1
            else torch.randn(size, device=device, generator=generator) * 0.02
        )

    with tempfile.TemporaryDirectory() as folder:
        return load_policy(
            hollow_folder(config, dtype, Path(folder)),
            attention=attention,
            dtype=dtype,
            activation_checkpointing=checkpointing,
            fused=kernels,
            init=init,
            write=lambda parameter, read: write(parameter, lambda: draw(parameter).to(dtype)),
        )


def gemm_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large square product: of CPU time on a CPU."""
    n = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    once = measure.seconds(lambda: a @ b, repeats=5, warm_ups=2, device=device)
    return 2 * n**3 / once["median"]


def fitted(config: MistralConfig, layers: int | None) -> MistralConfig:
    """The shape with `layers` layers; None: as many as fit the GPU with 18 bytes a parameter and
    ROOM for activations."""
    if layers is None and devices.default() == "cuda":
        d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
        layer = 2 * d * d + 2 * d * kv + 3 * d * config.intermediate_size
        layers = int(((devices.memory("cuda") - ROOM) / 18 - 2 * config.vocab_size * d) // layer)
    return MistralConfig(
        **config.to_dict()
        | {"num_hidden_layers": min(layers or config.num_hidden_layers, config.num_hidden_layers)}
    )


RECOMPUTE = {"all": True, "mlp": "mlp", "elementwise": "elementwise", "none": False}


def option(cell: str, name: str, default: str) -> str:
    """The value of `:name=value` in a cell."""
    found = re.search(rf":{name}=(\w+)", cell)
    return found[1] if found else default


def cell_budget(args: argparse.Namespace, cell: str) -> int:
    return int(option(cell, "budget", str(args.budget)))


def recompute_as(engine: Engine, args: argparse.Namespace, cell: str) -> None:
    """The engine's layers recompute what the cell says; what an earlier cell asked for is
    undone."""
    lm = engine.policy.lm
    lm.gradient_checkpointing_disable()
    for module, forward in engine.plain_forwards.items():  # other policies wrap what is here
        vars(module).pop("forward", None)
        vars(module).update(forward)
    what = option(cell, "recompute", "")
    checkpoint_activations(lm, RECOMPUTE[what] if what else yaml.safe_load(args.checkpointing))


def hardware_of(
    args: argparse.Namespace, checkpointing: object, prefix_sharing: bool = True
) -> Hardware:
    return Hardware(
        tokens_per_micro_batch=args.budget,
        dtype=args.dtype,
        attention=args.attention,
        prefix_sharing=prefix_sharing,
        activation_checkpointing=checkpointing,
        deepspeed=f"configs/deepspeed/{'zero3' if args.device == 'cuda' else 'cpu'}.json",
        fused=args.fused,
        gradient_dtype=args.gradient,
        gather=args.gather,
    )


def gathered_on_device(tensors: list[Tensor]) -> Tensor:
    """What DeepSpeed's `defragment` does, without its way over the host: that takes more than ten
    seconds of a 7B model's start, to spare a second copy of the weights where nothing else is."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.data = part
    return flat


def make_engine(
    args: argparse.Namespace, config: MistralConfig, hardware: Hardware, starts: Json
) -> Engine:
    """The engine of one rank with a random policy, whose layers keep all activations.

    Args: starts: is given the seconds of each part of the start."""
    with part_of(starts, "import and process group"):
        engine = Engine(hardware, 0)
    from deepspeed.runtime.zero import stage3

    stage3.defragment = gathered_on_device

    def load(**more: object) -> nn.Module:
        with part_of(starts, "load"):
            dtype = DTYPES[hardware.dtype]
            draw = partial(random_policy, config, hardware.attention, dtype, False)
            return draw(args.device, hardware.fused, **more)

    with part_of(starts, "load and initialize"):
        engine.initialize(load, Optim())
    engine.plain_forwards = {
        module: {name: value for name, value in vars(module).items() if name == "forward"}
        for module in engine.policy.lm.modules()
    }
    return engine


@contextlib.contextmanager
def part_of(spent: Json, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[name] = time.perf_counter() - started


def pair_table(lengths: Sequence[tuple[int, int, int]], vocabulary: int) -> Pairs:
    return Pairs(pa.Table.from_batches([example_batch(random_pairs(lengths, vocabulary))]))


def dpo_split(engine: Engine, args: argparse.Namespace, cell: str, folder: str) -> Split:
    """A step of pairs, planned and scored by the reference as in train_dpo.py."""
    kind, *options = cell.split(":")
    budget, lengths = (
        cell_budget(args, cell),
        pair_lengths(kind, args.pairs, longest=args.longest) if kind in PROFILES else [],
    )
    if kind == "row":
        budget, lengths = int(options[0]), [PAIR] * (int(options[0]) // sum(PAIR))
    hardware = hardware_of(
        args, engine.hardware.activation_checkpointing, "unshared" not in options
    )
    config = DPOConfig("random", Data(("random",)), hardware=hardware, reference=Reference(folder))
    pairs = pair_table(lengths, engine.policy.lm.config.vocab_size)
    plan = plan_epochs(
        train_dpo.packed_tokens(pairs, config),
        per_step=len(pairs),
        epochs=1,
        ranks=1,
        budget_tokens=budget,
    )
    if "unpacked" in options:
        plan = plan._replace(
            steps=[plan.steps[0]._replace(ranks=[[[i] for i in range(len(pairs))]])]
        )
    return train_dpo.with_objective(
        engine, config, train_dpo.split(engine, config, pairs, plan), pairs, {"model": "random"}
    )


def sft_split(engine: Engine, args: argparse.Namespace, cell: str) -> Split:
    """A step of dialogues, every token but the first a target, in windows of twice `longest` as in
    train_sft.py."""
    window, vocabulary = 2 * args.longest, engine.policy.lm.config.vocab_size
    drawn, rng = dialogue_lengths(args.documents), np.random.default_rng(0)
    sizes = [max(16, length * window // 2048) for length in drawn]
    texts = Texts(
        pa.Table.from_batches(
            [
                example_batch(
                    [
                        EncodedText(
                            str(i),
                            rng.integers(3, vocabulary, n).tolist(),
                            [False] + [True] * (n - 1),
                        )
                        for i, n in enumerate(sizes)
                    ]
                )
            ]
        )
    )
    config = SFTConfig("random", SFTData(("random",), max_tokens=window), hardware=engine.hardware)
    plan = plan_epochs(
        sizes,
        per_step=len(sizes),
        epochs=1,
        ranks=1,
        budget_tokens=cell_budget(args, cell),
        window_tokens=window,
    )
    return train_sft.split(engine, config, texts, plan, {"model": "random"})


def instrumented(engine: Engine, phases: Phases) -> None:
    """Marks around the engine's backward and update, and around forward and backward of the
    head."""
    engine.backward, engine.step = (
        phases.timed("backward", engine.backward),
        phases.timed("optimiser", engine.step),
    )
    head = engine.policy.lm.get_output_embeddings()

    def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        phases.end("head_forward")
        if output.requires_grad:
            output.register_hook(lambda _: phases.begin("head_backward"))
            inputs[0].register_hook(lambda _: phases.end("head_backward"))

    head.register_forward_pre_hook(lambda *_: phases.begin("head_forward"))
    head.register_forward_hook(after)


def one_step(engine: Engine, split: Split, phases: Phases, lr: float = 0.0) -> dict[str, float]:
    """What `fit` does in a step without a record; the loss and gradient norm, alike however the
    step's pairs are packed."""
    timed = split._replace(
        collate=phases.timed("host", split.collate),
        objective=phases.timed("forward", split.objective),
    )
    totals, grad_norm = forward_backward(engine, timed, 0, None), engine.step(lr)
    of_step = phases.timed("reduce", reduce_totals)(engine, split, 0, totals, grad_norm)
    return {"loss": of_step["loss"] / of_step["units"], "grad_norm": of_step["grad_norm"]}


def traced(engine: Engine, split: Split, phases: Phases, path: Path) -> Json:
    """One step under the profiler, its 25 dearest operations as text, collectives' share; on a GPU
    how often the host waited for it."""
    cuda = devices.is_gpu(engine.device)
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=kinds) as profile:
        one_step(engine, split, phases)
    events = profile.key_averages()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    path.write_text(events.table(sort_by=key, row_limit=25, max_name_column_width=60) + "\n")
    collective = sum(
        getattr(e, key) for e in events if e.key.startswith(("gloo:", "nccl", "ncclDev"))
    )
    found: Json = {"collectives_share": collective / max(1, sum(getattr(e, key) for e in events))}
    found |= devices.waits(partial(one_step, engine, split, phases), engine.device)
    phases.seconds()
    return found


def summarize(
    engine: Engine, split: Split, rounds: list[dict[str, float]], rate: float, cell: Json
) -> None:
    """Add to a cell the medians of its rounds, against what it had to compute."""
    if not rounds:
        return
    step = split.plan.steps[0]
    seconds = measure.spread([of["total"] for of in rounds])
    phase = {
        name: measure.spread([of.get(name, 0.0) for of in rounds])["median"]
        for name in rounds[0]
        if name != "total"
    }
    flops, tokens, units = (
        sum(of[i] for i in step.examples())
        for of in (split.forward_flops, split.tokens, split.units)
    )
    cell |= {
        "examples": len(step.examples()),
        "tokens": tokens,
        split.unit_name: units,
        "micro_batches": len(step.ranks[0]),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds["median"],
        f"{split.unit_name}_per_second": units / seconds["median"],
        "mfu": mfu(flops, seconds["median"], 1),
        "of_gemm_rate": 3 * flops / seconds["median"] / rate,
        "phases": phase,
        "host_share": phase["host"] / seconds["median"],
    }


def measure_cells(
    engine: Engine, args: argparse.Namespace, splits: dict[str, Split], result: Json, keep: Keep
) -> list[str]:
    """Every cell: time and phases, memory; then the reference pass, and a profile of one.

    Returns: the cells that are left where one ran out of the device's memory, which DeepSpeed's
    hooks do not survive."""
    phases, cells = Phases(engine.device), result["cells"]
    instrumented(engine, phases)
    one_step(
        engine, next(iter(splits.values())), phases, lr=args.lr
    )  # from here on the policy is not the reference
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in splits}
    turns = list(itertools.product(range(args.rounds + 1), splits))
    if args.order == "cells":
        turns.sort(key=lambda turn: list(splits).index(turn[1]))
    for round_, name in turns:
        try:
            time_round(engine, args, splits[name], phases, round_, rounds[name], cells, name)
        except torch.OutOfMemoryError as error:
            cells[name] = {"out_of_memory": str(error).splitlines()[0]}
            keep()
            return [n for n in splits if n != name and len(rounds[n]) < args.rounds]
        summarize(engine, splits[name], rounds[name], result["gemm_flops_per_second"], cells[name])
        keep()
    name = next((n for n in splits if n == args.traced), next(iter(splits)))
    recompute_as(engine, args, name)
    if splits[name].unit_name == "pairs":
        cells[name]["reference_pass"] = reference_pass(engine, args, splits[name], cells[name])
        keep()
    if args.trace == "yes":
        file = args.out / f"profile_{args.name}.txt"
        cells[name] |= traced(engine, splits[name], phases, file)
    return []


def time_round(
    engine: Engine,
    args: argparse.Namespace,
    split: Split,
    phases: Phases,
    round_: int,
    rounds: list[dict[str, float]],
    cells: Json,
    name: str,
) -> None:
    """Round 0 of a cell is its warm-up, and finds its peak memory; the others are timed."""
    recompute_as(engine, args, name)
    if round_ == 0:
        peak, agreed = peak_bytes(partial(one_step, engine, split, phases), args.device)
        cells[name] = {"step_peak_bytes": peak, **agreed}
        phases.seconds()
        return
    start = phases.mark("whole")
    one_step(engine, split, phases)
    phases.spans["total"] = [[start, phases.mark("whole")]]
    rounds.append(phases.seconds())


def reference_pass(engine: Engine, args: argparse.Namespace, split: Split, cell: Json) -> Json:
    """Seconds of the log-probs of a step's pairs, without gradients."""
    micro_batches = split.plan.steps[0].ranks[0]
    forward = partial(reference.forward_pass, engine, micro_batches, split.collate)
    once = measure.seconds(forward, repeats=3, warm_ups=1, device=args.device)
    return {"seconds": once, "times_training": cell["seconds"]["median"] / once["median"]}


def growth(cells: Json) -> Json:
    """Time a token of forward and backward, of rows of growing length; how far a line through the
    rows' seconds is off."""
    rows = {
        of["tokens"]: sum(s for n, s in of["phases"].items() if n not in ("optimiser", "reduce"))
        for of in cells.values()
    }
    tokens, seconds = np.array(list(rows)), np.array(list(rows.values()))
    line, *_ = np.linalg.lstsq(
        np.stack([np.ones_like(seconds), tokens], 1) / seconds[:, None],
        np.ones_like(seconds),
        rcond=None,
    )
    return {
        "microseconds_per_token": {str(n): s / n * 1e6 for n, s in rows.items()},
        "deviation_from_line": float(np.abs((line[0] + line[1] * tokens) / seconds - 1).max()),
        "deviation_from_proportion": float(
            max(s / n for n, s in rows.items()) / min(s / n for n, s in rows.items()) - 1
        ),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    gpu = devices.default() == "cuda"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells = "ultrafeedback,ultrafeedback:unshared,ultrafeedback:unpacked,tldr,tldr:unshared,sft"
    for name, on_cpu, on_gpu in (
        ("model", "A", "7B"),
        ("cells", cells, cells),
        ("checkpointing", "false", "true"),
        ("pairs", 8, 32),
        ("documents", 8, 43),
        ("longest", 512, 1024),
        ("budget", 2400, 8192),
        ("attention", "sdpa", "torch_varlen"),
        ("dtype", "float32", "bfloat16"),
        ("gradient", "float32", "float32"),
        ("gather", "layer", "layer"),
        ("fused", "none", "none"),
        ("trace", "yes", "yes"),
        ("traced", "", ""),
        ("order", "rounds", "rounds"),
        ("keep_cells", "no", "no"),
        ("lr", 1e-4, 1e-6),
        ("rounds", 5, 5),
        ("device", "cpu", "cuda"),
        ("out", measure.RESULTS, measure.RESULTS),
    ):
        parser.add_argument(f"--{name}", type=type(on_cpu), default=on_gpu if gpu else on_cpu)
    parser.add_argument("--layers", type=int, help="default: the shape's, on a GPU as many as fit")
    parser.add_argument("--name", help="of the result; default step_MODEL")
    args = parser.parse_args(argv)
    args.name, measure.RESULTS = args.name or f"step_{args.model}", args.out
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def first_fused(wanted: str, device: str) -> str:
    """The first of a list of `hardware.fused` that runs here: `liger,triton,none`."""
    return next(w for w in wanted.split(",") if fused.unavailable_reason(w, device) is None)


def go_on(args: argparse.Namespace, **changed: str) -> NoReturn:
    """This process becomes a new one with other options."""
    options = [f"--{name}={value}" for name, value in (vars(args) | changed).items() if value]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, str(Path(__file__).resolve()), *options])


def main(argv: Sequence[str] | None = None) -> Json:
    args = parse(argv)
    wanted = args.fused.split(",")
    args.fused = first_fused(args.fused, args.device)
    others = wanted[wanted.index(args.fused) + 1 :]
    result: Json = {"cells": kept_cells(args)}
    try:
        left = run(
            args, result, "python tests/benchmarks/bench_step.py " + " ".join(argv or sys.argv[1:])
        )
    except Exception:
        if not others or "seconds" in str(result["cells"]):
            raise
        traceback.print_exc()
        print(f"fused={args.fused} failed, {','.join(others)} is left", flush=True)
        go_on(args, fused=",".join(others))
    if left:
        go_on(args, cells=",".join(left), keep_cells="yes")
    return result


def run(args: argparse.Namespace, result: Json, command: str) -> list[str]:
    """Measure the cells into `result`; returns those that are left (see `measure_cells`)."""
    config, starts = fitted(SHAPES[args.model], args.layers), dict[str, float]()
    result |= {
        "shape": config.to_diff_dict(),
        "settings": {name: str(value) for name, value in vars(args).items() if name != "out"},
        "gemm_flops_per_second": gemm_rate(args.device, DTYPES[args.dtype]),
        "start_seconds": starts,
    }
    keep = partial(measure.write, args.name, command, result)
    hardware = hardware_of(args, yaml.safe_load(args.checkpointing))
    with (
        contextlib.closing(make_engine(args, config, hardware, starts)) as engine,
        tempfile.TemporaryDirectory() as folder,
    ):
        result["parameters"] = engine.num_parameters
        with part_of(starts, "data and reference"):
            splits = {cell: split_of(engine, args, cell, folder) for cell in args.cells.split(",")}
        left = measure_cells(engine, args, splits, result, keep)
        result["peak_memory_bytes"] = engine.peak_memory_bytes()
    rows = {name: of for name, of in result["cells"].items() if name.startswith("row:")}
    rows = {name: of for name, of in rows.items() if "phases" in of}
    if len(rows) > 1:
        result["growth"] = growth(rows)
    print(keep().read_text(encoding="utf-8"), end="")
    return left


def split_of(engine: Engine, args: argparse.Namespace, cell: str, folder: str) -> Split:
    if cell.startswith("sft"):
        return sft_split(engine, args, cell)
    return dpo_split(engine, args, cell, folder)


def kept_cells(args: argparse.Namespace) -> Json:
    """What an earlier process measured of this result."""
    if args.keep_cells == "no":
        return {}
    file = args.out / f"{args.name}{'.gpu' * torch.cuda.is_available()}.json"
    return json.loads(file.read_text(encoding="utf-8"))["result"]["cells"]


if __name__ == "__main__":
    main()
