"""What `zephyr plan` predicts of memory and time against what the real engine takes on 1 and 2 CPU
ranks.

    python tests/benchmarks/bench_plan.py

Memory is the bytes of all tensors: a resident set would hold the libraries too. Times are process
CPU time, and what is compared is their ratio to the first case's: the rate of a busy machine is no
constant."""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from lengths import pair_lengths, random_pairs  # noqa: E402
from measure import save  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import AutoModelForCausalLM, MistralConfig  # noqa: E402

from zephyr import losses  # noqa: E402
from zephyr.config import Data, DPOConfig, Hardware, Optim  # noqa: E402
from zephyr.costs import work as costs  # noqa: E402
from zephyr.costs.memory import predict_memory  # noqa: E402
from zephyr.costs.times import DEVICE_PARTS, measure_cpu, step_seconds  # noqa: E402
from zephyr.model.load import DTYPES, load_policy  # noqa: E402
from zephyr.model.logprobs import response_logprobs  # noqa: E402
from zephyr.packing import Plan, collate_pairs, plan_epochs  # noqa: E402
from zephyr.training.engine import Engine  # noqa: E402

ROOT = Path(__file__).parents[2]

CASE = {
    "pairs": 8,
    "longest": 512,
    "hidden": 256,
    "layers": 4,
    "inner": 688,
    "vocabulary": 4096,
    "dtype": "float32",
    "budget": 2048,
    "prefix_sharing": True,
    "activation_checkpointing": False,
}
CASES = {
    "base": {},
    "twice the pairs": {"pairs": 16, "budget": 4096},
    "prompts not shared": {"prefix_sharing": False},
    "recomputed": {"activation_checkpointing": True},
    "bfloat16": {"dtype": "bfloat16"},
    "large vocabulary": {"vocabulary": 16000},
    "twice the layers": {"layers": 8},
}


def peak_bytes(call: Callable[[], object]) -> int:
    """Bytes of the tensors that a call made, at most at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        call()
    sizes = sorted(
        (e.start_ns(), e.nbytes())
        for e in events.profiler.kineto_results.events()
        if e.name() == "[memory]"
    )
    return max(accumulate(size for _, size in sizes))


def live_bytes() -> int:
    """Bytes of all tensors there are: what threads of the collectives freed, the profiler does not
    see."""
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if issubclass(type(t), torch.Tensor)
    }
    return sum(storages.values())


def measured(case: Mapping[str, object], folder: Path, repeats: int) -> dict[str, object]:
    """On each rank: train the steps of a case with the real engine; bytes and CPU seconds measured,
    and predicted."""
    config = DPOConfig(
        str(folder / "model"),
        Data(("",)),
        optim=Optim(pairs_per_step=case["pairs"], epochs=1),
        hardware=Hardware(
            case["budget"],
            case["dtype"],
            "sdpa",
            case["prefix_sharing"],
            case["activation_checkpointing"],
            str(folder / "deepspeed.json"),
        ),
    )
    lengths = pair_lengths("ultrafeedback", case["pairs"], longest=case["longest"])
    model = costs.read_model(config.model, None)
    work = costs.example_work(lengths, model, config)
    pairs = random_pairs(lengths, case["vocabulary"])
    engine = Engine(config.hardware, 0)
    try:
        load = partial(
            load_policy,
            config.model,
            attention="sdpa",
            dtype=DTYPES[case["dtype"]],
            activation_checkpointing=case["activation_checkpointing"],
        )
        before = live_bytes()
        engine.initialize(load, config.optim)
        held = live_bytes() - before
        plan = plan_epochs(
            work.tokens,
            per_step=case["pairs"],
            epochs=1,
            ranks=engine.world_size,
            budget_tokens=case["budget"],
        )
        batches = [
            collate_pairs(pairs, micro, prefix_sharing=case["prefix_sharing"])
            for micro in plan.steps[0].ranks[engine.rank]
        ]

        def step() -> None:
            for batch in batches:
                chosen_P, rejected_P = response_logprobs(engine, batch)
                loss = losses.dpo(
                    chosen_P, rejected_P, chosen_P.detach(), rejected_P.detach(), beta=0.1
                ).loss_P.sum()
                engine.backward(loss / case["pairs"], last=batch is batches[-1])
            engine.step(1e-5)

        step()  # makes Adam's moments
        step_peak = peak_bytes(step)
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            step()
            seconds.append(time.process_time() - start)
        ranks, settings = engine.world_size, engine.settings
        found = engine.all_gather(
            {
                "held": held,
                "beside": step_peak + 8 * engine.num_parameters // ranks,
                "seconds": statistics.median(seconds),
            }
        )
    finally:
        engine.close()
    bytes_of = {name: max(of[name] for of in found) for name in ("held", "beside")}
    return {
        "measured": bytes_of | {"cpu_seconds": sum(of["seconds"] for of in found)},
        "predicted": predicted(model, work, plan, ranks, config, settings),
    }


def predicted(
    model: costs.Model,
    work: costs.Work,
    plan: Plan,
    ranks: int,
    config: DPOConfig,
    settings: costs.Settings,
) -> dict[str, object]:
    """Bytes of the fullest rank, and CPU seconds of all."""
    parts = predict_memory(model, ranks, "cpu", plan, work, config, settings)
    share, item = model.parameters // ranks, DTYPES[config.hardware.dtype].itemsize
    held = (
        share * (item + 8) + parts["buckets"]
    )  # weights, float32 weights and gradients, the bucket
    device = measure_cpu(config.hardware.dtype, ranks)
    seconds = step_seconds(plan, work, model, device, "cpu", config, settings)
    each = sum(time for part, time in seconds.parts.items() if part not in DEVICE_PARTS)
    return {
        "held": held,
        "beside": parts["peak"] - held,
        "cpu_seconds": ranks * (seconds.ideal + each),
        "gemm_flops": device.peak,
        "parts": parts,
    }


def prepare(changes: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Write the model and the DeepSpeed JSON of a case; returns CASE with the changes."""
    case = CASE | dict(changes)
    shape = MistralConfig(
        hidden_size=case["hidden"],
        num_hidden_layers=case["layers"],
        intermediate_size=case["inner"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=case["hidden"] // 4,
        vocab_size=case["vocabulary"],
        sliding_window=None,
    )
    AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(folder / "model")
    deepspeed = json.loads((ROOT / "configs/deepspeed/cpu.json").read_text())
    deepspeed["zero_optimization"]["reduce_bucket_size"] = 2_000_000
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed))
    return case


def run(changes: Mapping[str, object], ranks: int, repeats: int) -> dict[str, object]:
    """A case in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        case = prepare(changes, Path(folder))
        torchrun = [
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={ranks}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
        ]
        launch = torchrun if ranks > 1 else []
        done = subprocess.run(
            [sys.executable, *launch, __file__, "--rank", json.dumps(case), folder, str(repeats)],
            capture_output=True,
            text=True,
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )
    lines = [
        line.removeprefix("RESULT ")
        for line in done.stdout.splitlines()
        if line.startswith("RESULT ")
    ]
    if not lines:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(lines[0])


def main() -> None:
    found: dict[str, dict[str, object]] = {}
    for name, changes in CASES.items():
        for ranks in (1, 2):
            of = found[f"{name}, {ranks} ranks"] = run(changes, ranks, repeats=5)
            base, measured, predicted = (
                found[f"base, {ranks} ranks"],
                of["measured"],
                of["predicted"],
            )
            of["predicted / measured"] = ratios = {
                part: predicted[part] / measured[part] for part in measured
            }
            of["predicted / measured, against base"] = (
                ratios["cpu_seconds"] / base["predicted / measured"]["cpu_seconds"]
            )
            print(
                f"{name}, {ranks} ranks: {ratios}, {of['predicted / measured, against base']:.3f}",
                file=sys.stderr,
                flush=True,
            )
    save("plan", "python tests/benchmarks/bench_plan.py", found)


if __name__ == "__main__" and sys.argv[1:2] == ["--rank"]:
    torch.set_num_threads(1)
    report = measured(json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    if os.environ.get("RANK", "0") == "0":
        print("RESULT " + json.dumps(report))
elif __name__ == "__main__":
    main()
