"""A folder of results becomes rows of Markdown, and says how far `zephyr plan` was off.

    python tests/benchmarks/gpu.py --report FOLDER     (or its results.tar.gz)

Where there are results of a GPU, only those are read. What a result does not hold is left out.
"plan" is the prediction over the measurement."""

import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bench_step
import lengths

from zephyr.config import (
    BadInput,
    Data,
    DPOConfig,
    Hardware,
    Optim,
    Run,
    SFTConfig,
    SFTData,
    SFTOptim,
    SFTRun,
)
from zephyr.costs import predict, work
from zephyr.training.devices import find_device

Json = dict[str, object]
HEAD = (
    "| step | gather | gradients | fused | tokens a micro-batch | recomputed | s | pairs/s "
    "| strict MFU | plan: s, memory | reference pass |"
)
RECOMPUTED = {"all": "all", "true": "all", "false": "none"}


def page(path: Path) -> str:
    """All rows of a folder of results, or of one that holds results.tar.gz."""
    packed = path if path.is_file() else path / "results.tar.gz"
    if not packed.is_file():
        return "\n".join(rows(path))
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(packed) as tar:
            tar.extractall(folder, filter="data")
        return "\n".join(rows(Path(folder, "results")))


def rows(folder: Path) -> Iterator[str]:
    """The lines of the page: machine, steps, and what each other result says in a sentence."""
    files = sorted(folder.glob("*.gpu.json")) or sorted(folder.glob("*.json"))
    results = {file.name.removesuffix(".json").removesuffix(".gpu"): read(file) for file in files}
    results = {name: of for name, of in results.items() if "result" in of}
    if not results:
        raise BadInput(f"--report {folder}: no results there, expected NAME.json of gpu.py")
    yield machine_line(next(iter(results.values()))["machine"])
    yield ""
    yield HEAD
    yield "|" + "---|" * (HEAD.count("|") - 1)
    for name, of in results.items():
        if name.startswith("step_"):
            yield from step_rows(of)
    yield ""
    for name, say in SENTENCES.items():
        for found, of in results.items():
            if found == name or (name == "peer" and found.startswith("peer_")):
                yield from say(of["result"])


def read(file: Path) -> Json:
    found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def machine_line(machine: Json) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = machine.get("gpu") or machine["cpu"]
    return f"{where}, {packages}; commit {machine['commit']}, {machine['date']}"


def step_rows(of: Json) -> Iterator[str]:
    """One row a cell of bench_step.py."""
    settings, result = (
        of["settings"] if "settings" in of else of["result"]["settings"],
        of["result"],
    )
    for cell, found in result["cells"].items():
        hardware = hardware_of(settings, cell)
        recompute = bench_step.option(cell, "recompute", settings["checkpointing"])
        head = [
            kind_of(cell),
            hardware.gather,
            hardware.gradient_dtype,
            hardware.fused,
            f"{hardware.tokens_per_micro_batch:,}",
            RECOMPUTED.get(recompute, recompute),
        ]
        if "seconds" not in found:
            told = found.get("out_of_memory", "not measured")
            yield "| " + " | ".join([*head, told, "", "", "", ""]) + " |"
            continue
        mfu, pairs = found.get("mfu"), found.get("pairs_per_second")
        reference = found.get("reference_pass", {}).get("seconds", {}).get("median")
        figures = [
            f"{found['seconds']['median']:.2f}",
            f"{pairs:.2f}" if pairs else "",
            f"{mfu:.1%}".replace("%", " %") if mfu else "",
            plan_ratio(result, settings, cell, found, of["machine"].get("gpu", "")),
            f"{reference:.3f} s" if reference else "",
        ]
        yield "| " + " | ".join([*head, *figures]) + " |"


def kind_of(cell: str) -> str:
    name, *options = cell.split(":")
    plain = [word for word in options if "=" not in word]
    return {"sft": "SFT", "ultrafeedback": "DPO"}.get(name, name) + "".join(f" {w}" for w in plain)


def hardware_of(settings: dict[str, str], cell: str) -> Hardware:
    """Of a result's settings, also those of before `gather` and `gradient_dtype` were keys."""
    gather = settings.get("gather") or {"layer": "layer"}.get(settings.get("leaf"), "module")
    dtypes = {"fp32": "float32", "bf16": "bfloat16"}
    recompute = bench_step.option(cell, "recompute", settings["checkpointing"])
    named = {**bench_step.RECOMPUTE, "true": True, "false": False}
    return Hardware(
        tokens_per_micro_batch=int(bench_step.option(cell, "budget", settings["budget"])),
        dtype=settings.get("dtype", "bfloat16"),
        attention=settings["attention"],
        prefix_sharing="unshared" not in cell.split(":"),
        activation_checkpointing=named[recompute],
        gather=gather,
        gradient_dtype=settings.get("gradient") or dtypes[settings.get("accumulate", "fp32")],
        fused=settings.get("fused", "none"),
    )


def plan_ratio(result: Json, settings: dict[str, str], cell: str, found: Json, gpu: str) -> str:
    """Predicted over measured seconds, and memory where the cell is the process's largest."""
    device = find_device(gpu)
    name = cell.split(":")[0]
    if device is None or (name not in lengths.PROFILES and name != "sft") or "unpacked" in cell:
        return ""
    hardware, longest = hardware_of(settings, cell), int(settings["longest"])
    # Since `gather` is a key, a measured step is one that writes no record.
    log_every = 10**9 if "gather" in settings else 1
    if name == "sft":
        drawn = lengths.dialogue_lengths(int(settings["documents"]))
        sizes = [max(16, length * 2 * longest // 2048) for length in drawn]
        counts = [(size, size - 1) for size in sizes]
        windows = len(sizes)
        config = SFTConfig(
            "random",
            SFTData(("random",), max_tokens=2 * longest),
            hardware=hardware,
            optim=SFTOptim(windows_per_step=windows),
            run=SFTRun(log_every=log_every),
        )
    else:
        counts = lengths.pair_lengths(name, int(settings["pairs"]), longest=longest)
        config = DPOConfig(
            "random",
            Data(("random",), max_tokens=longest, max_prompt_tokens=longest // 2),
            hardware=hardware,
            optim=Optim(epochs=1, pairs_per_step=len(counts)),
            run=Run(log_every=log_every),
        )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(result["shape"]))
        model = work.read_model(folder, None)
    own = predict.predict(config, model, counts, 1, device)["config"]
    times = own["step s"] / found["seconds"]["median"]
    peak = result.get("peak_memory_bytes")
    cells = [one for one in result["cells"].values() if "step_peak_bytes" in one]
    if peak and found["step_peak_bytes"] == max(one["step_peak_bytes"] for one in cells):
        return f"{times:.2f}, {own['peak GB'] * 1e9 / peak:.2f}"
    return f"{times:.2f}"


def say_card(result: Json) -> Iterator[str]:
    rates, products = result.get("bytes_per_second", {}), result.get("flops_per_second", {})
    if rates:
        told = ", ".join(f"{name} {rate / 1e9:,.0f} GB/s" for name, rate in rates.items())
        yield f"- Copies: {told}."
    if products:
        told = ", ".join(f"{shape} {rate / 1e12:,.0f}" for shape, rate in products.items())
        yield f"- Products in bfloat16, TFLOP/s: {told}."


def say_head(result: Json) -> Iterator[str]:
    for name, of in result.items():
        ours = of["ours"]
        errors = of.get("error_over_pytorch", {})
        told = ", ".join(f"{key} {value:.2f}" for key, value in errors.items() if value)
        yield (
            f"- Head, {name}: {ours['seconds']['median'] * 1e3:.1f} ms, "
            f"{ours['over_products']['4']:.2f} times four bare products, "
            f"{ours['extra_bytes'] / 1e9:.2f} GB beside inputs and gradients"
            + (f"; errors over PyTorch's: {told}." if told else ".")
        )


def say_options(result: Json) -> Iterator[str]:
    base = result.get("base", {})
    if "falls" in base:
        yield (
            f"- Two layers under ZeRO-3: first loss off ln 2 by {base['first loss off ln 2']:.1e}, "
            f"losses fall: {base['falls']}, host waits {base.get('host_waits', 'not counted')}."
        )
    resumed = result.get("resumed", {})
    if "state to the bit" in resumed:
        yield (
            f"- Resumed: state to the bit {resumed['state to the bit']}, next loss to the bit "
            f"{resumed['next loss to the bit']}."
        )
    for part, key in (("cells", "off the first"), ("variants", "off the base")):
        for name, of in result.get(part, {}).items():
            yield f"- {name}: {of['skipped'] if 'skipped' in of else say_difference(of, key)}."


def say_difference(of: Json, key: str) -> str:
    seconds = sorted(of["seconds"][1:] or of["seconds"])
    return (
        f"loss off by {of[key]['loss']:.1e}, gradient norm by {of[key]['grad_norm_relative']:.1e}, "
        f"within the limits: {of[key]['equal']}, {seconds[len(seconds) // 2]:.3f} s a step"
    )


def say_peer(result: Json) -> Iterator[str]:
    for name, ratio in result["ratios"].items():
        why = "".join(f" ({line})" for line in result["void"])
        yield (
            f"- {name}: {ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] times the "
            f"pairs a second; counts: {result['counts']}{why}."
        )


def say_fused(result: Json) -> Iterator[str]:
    for kind, of in result.items():
        if isinstance(of, str):
            yield f"- Fused, {kind}: {of}."
        elif isinstance(of, dict) and "skipped" in of.get("layer", {}):
            yield f"- Fused, {kind}: not measured: {of['layer']['skipped']}."
        elif isinstance(of, dict) and "layer" in of:
            yield f"- Fused, {kind}: a layer in {of['layer']['seconds']['median'] * 1e3:.2f} ms."


def say_learning(result: Json) -> Iterator[str]:
    for side, of in result.get("curves", {}).items():
        if of.get("evaluations"):
            last = of["evaluations"][-1]
            yield (
                f"- Learning, {side}: held-out accuracy {last['accuracy']:.3f}, loss "
                f"{last['loss']:.3f} after {last['step']} steps, {of.get('status', '')}."
            )


SENTENCES = {
    "card": say_card,
    "head": say_head,
    "options": say_options,
    "peer": say_peer,
    "fused": say_fused,
    "learning": say_learning,
}
