"""`zephyr plan`: a config becomes a prediction of its run and advice for its `hardware` keys."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from tqdm import tqdm

from zephyr import config as configs
from zephyr.config import BadInput, DPOConfig, SFTConfig
from zephyr.costs import work as costs
from zephyr.costs.work import (
    DEVICES,
    PROFILES,
    Checkpointing,
    Config,
    Device,
    Lengths,
    Model,
    Settings,
    Work,
)
from zephyr.data.encode import encoding_resources, load_pairs, load_texts
from zephyr.data.jsonl import read_rows
from zephyr.data.store import Pairs, Texts
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.memory import layer_bytes
from zephyr.packing import Plan, plan_epochs
from zephyr.training.deepspeed_settings import read_deepspeed
from zephyr.training.engine import Engine
from zephyr.training.planner import describe_plan, require_budget
from zephyr.verify.certificate import read_config

USABLE_MEMORY_FRACTION = 0.94  # of a device's memory: the rest is for fragments, driver and NCCL
SAMPLED_STEPS, SAMPLED_EXAMPLES = 64, 2**15  # at most, for other layouts than the config's own
POLICIES: tuple[Checkpointing, ...] = (False, "mlp", True)  # in the order of the repeated work
ENDS_TO_PAY = 0.8  # of a step's time: twice the ranks save less than a fifth of it
VALIDATION_NOTE = (
    "Checked against measurements: memory and ratios of times on 1 and 2 CPU ranks; one step at 7B "
    "on one H200, whose\nmemory was right within 1 % and whose time was predicted 29 % too short. "
    "Never checked: more GPUs than one."
)
# What a run takes under one layout. tokens: of a micro-batch; micro: micro-batches a step;
# critical: the most loaded rank's work against the mean.
Layout = TypedDict(
    "Layout",
    {
        "ranks": int,
        "checkpointing": str,
        "MB/token": float,
        "tokens": int,
        "micro": float,
        "critical": float,
        "peak GB": float,
        "fits": str,
        "compute": float,
        "comm": float,
        "optimiser": float,
        "step s": float,
        "of ideal": float,
        "hours": float,
        "memory": dict[str, int],
    },
)
# All that the command prints, with the fields of the `Device`.
Report = TypedDict(
    "Report",
    {
        "model": str,
        "parameters": int,
        "ranks": int,
        "device": str,
        "memory": float,
        "peak": float,
        "efficiency": float,
        "memory_rate": float,
        "node": float,
        "across": float,
        "examples": int,
        "mean_tokens": float,
        "longest": int,
        "steps": int,
        "plan": str,
        "reference hours": float,
        "config": Layout,
        "policies": list[Layout],
        "advice": Layout | None,
        "tables": dict[str, list[Layout]],
    },
)
MakeLayout = Callable[[Config, int], Layout]  # of a config on so many ranks


def page(
    path: Path,
    overrides: Sequence[str],
    *,
    stage: str | None = None,
    gpus: int = 1,
    device: str = "a100-80",
    lengths: str | None = None,
    shape: str | None = None,
    table: bool = False,
    as_json: bool = False,
) -> str:
    """Make the text that the command prints. Raises: BadInput."""
    config: Config
    if isinstance(read_config(path, stage)[1], SFTConfig):
        config = configs.load(SFTConfig, str(path), overrides)
    else:
        config = configs.load(DPOConfig, str(path), overrides)
    if gpus < 1:
        raise BadInput(f"--gpus: at least 1 is wanted, got {gpus}")
    model = costs.read_model(config.model, shape)
    report = predict(config, model, read_lengths(lengths, config), gpus, device, table)
    return json.dumps(report, indent=1) if as_json else "\n".join(format_prediction(report))


def read_lengths(named: str | None, config: Config) -> Lengths:
    """Read the token counts of all examples.

    Args: named: a profile, or a file of rows with counts; None: the config's own data, encoded as
    the scripts encode them.
    Raises: BadInput where there is no such file, or a row without counts.
    """
    texts = isinstance(config, SFTConfig)
    if named is None:
        return token_counts(load_examples(config))
    if named in (["ultrachat"] if texts else PROFILES):
        return costs.profile_lengths(named, config)
    names = ("tokens", "targets") if texts else ("prompt", "chosen", "rejected")
    found = []
    for place, row in read_rows([named]):
        counts = [row.get(name) for name in names]
        whole = [count for count in counts if type(count) is int and count > 0]
        if len(whole) < len(counts):
            raise BadInput(
                f"{place}: integers > 0 are wanted of {', '.join(names)}, got {tuple(counts)}"
            )
        found.append(tuple(whole))
    if not found:
        raise BadInput(f"{named}: a row at least is wanted")
    return found


def load_examples(config: Config) -> Pairs | Texts:
    """Encode the config's training data as the scripts do. Raises: BadInput."""
    data = config.data
    costs.require_model_folder(config.tokenizer or config.model)
    tokenizer = load_tokenizer(
        config.tokenizer or config.model, config.chat_template, config.eos_token
    )
    if isinstance(config, SFTConfig):
        return load_texts(
            data.train,
            tokenizer,
            max_tokens=data.max_tokens,
            targets=config.data.targets,
            limit=data.limit,
            on_bad_row=data.on_bad_row,
            columns=data.columns,
            **encoding_resources(),
        )[0]
    return load_pairs(
        data.train,
        tokenizer,
        max_tokens=data.max_tokens,
        max_prompt_tokens=config.data.max_prompt_tokens,
        truncation=config.data.truncation,
        limit=data.limit,
        on_bad_row=data.on_bad_row,
        columns=data.columns,
        **encoding_resources(),
    )[0]


def token_counts(examples: Pairs | Texts) -> Lengths:
    """Token counts of encoded examples."""
    columns = (
        (examples.prompt_tokens, examples.chosen_tokens, examples.rejected_tokens)
        if isinstance(examples, Pairs)
        else (examples.tokens, examples.target_tokens)
    )
    return list(zip(*(column.tolist() for column in columns)))


def predict(
    config: Config, model: Model, lengths: Lengths, ranks: int, name: str, table: bool = False
) -> Report:
    """Predict memory and time of a run.

    Args: name: of the device, one of DEVICES or cpu. table: also the tables of scaling.
    Raises: BadInput where an example is over the config's budget.
    """
    settings = read_deepspeed(config.hardware.deepspeed)
    work = costs.example_work(lengths, model, config)
    ids = [f"number {i}" for i in range(1, len(lengths) + 1)]
    require_budget(work.tokens, ids, config.hardware.tokens_per_micro_batch)
    device = costs.measure_cpu(config.hardware.dtype, ranks) if name == "cpu" else DEVICES[name]
    plan = make_plan(work, config, ranks, config.optim.epochs)
    of_layout = partial(
        layout,
        all_work=work,
        model=model,
        device=device,
        kind="cpu" if name == "cpu" else "cuda",
        settings=settings,
    )
    reference_pass = costs.predict_times(
        costs.most_loaded_rank_flops(plan, work.forward),
        config.optim.epochs,
        model,
        ranks,
        device,
        config,
        settings,
        training=False,
    )
    tried = [
        best
        for policy in POLICIES
        if (best := largest_budget(of_layout, config, ranks, max(work.tokens), policy))
    ]
    return {
        "model": model.config.model_type,
        "parameters": model.parameters,
        "ranks": ranks,
        "device": name,
        "memory": device.memory,
        "peak": device.peak,
        "efficiency": device.efficiency,
        "memory_rate": device.memory_rate,
        "node": device.node,
        "across": device.across,
        "examples": len(lengths),
        "mean_tokens": sum(work.tokens) / len(lengths),
        "longest": max(work.tokens),
        "steps": len(plan.steps),
        "plan": describe_plan(plan, ranks),
        "reference hours": (
            0.0 if isinstance(config, SFTConfig) else reference_pass["step s"] / 3600
        ),
        "config": of_layout(config, ranks, plan),
        "policies": tried,
        "advice": min(tried, key=lambda one: one["step s"], default=None),
        "tables": scaling_tables(of_layout, config) if table else {},
    }


def estimate(engine: Engine, config: Config, examples: Pairs | Texts) -> str:
    """The command's page for a script's dry run: of its own rows, its ranks, and this device."""
    on_gpu = engine.device.type == "cuda"
    name = torch.cuda.get_device_name(engine.device).lower() if on_gpu else "cpu"
    known = [
        device for device in (*DEVICES, "cpu") if all(part in name for part in device.split("-"))
    ]
    if not known:
        return (
            f"no prediction: the figures of {name} are not known, those of {', '.join(DEVICES)} are"
        )
    model = costs.read_model(config.model, None)
    report = predict(config, model, token_counts(examples), engine.world_size, known[0])
    return "\n".join(line for line in format_prediction(report) if line != report["plan"])


def make_plan(work: Work, config: Config, ranks: int, epochs: int) -> Plan:
    """The plan that the scripts make of these examples."""
    return plan_epochs(
        work.tokens,
        per_step=step_size(config),
        epochs=epochs,
        ranks=ranks,
        seed=config.run.seed,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        shuffle=config.data.shuffle,
        window_tokens=config.data.max_tokens if isinstance(config, SFTConfig) else None,
    )


def step_size_key(config: Config) -> str:
    """The key below `optim` that decides how large a step is."""
    return "windows_per_step" if isinstance(config, SFTConfig) else "pairs_per_step"


def step_size(config: Config) -> int:
    """Pairs or windows of a step."""
    if isinstance(config, SFTConfig):
        return config.optim.windows_per_step
    return config.optim.pairs_per_step


def with_step_size(config: Config, size: int) -> Config:
    """The config with another number of pairs or windows a step."""
    if isinstance(config, SFTConfig):
        return replace(config, optim=replace(config.optim, windows_per_step=size))
    return replace(config, optim=replace(config.optim, pairs_per_step=size))


def sample_steps(work: Work, config: Config, ranks: int) -> tuple[Work, Plan]:
    """A sample of the examples at equal distances, and its plan of a few whole steps.

    Examples are repeated where they do not fill one step.
    """
    per_step = step_size(config)
    most = min(SAMPLED_STEPS * per_step, max(SAMPLED_EXAMPLES, per_step))
    stride = max(1, len(work.tokens) // most)
    sampled = len(work.tokens[::stride])
    repeats = -(-per_step // sampled)
    some = Work(
        work.tokens[::stride] * repeats,
        work.scored[::stride] * repeats,
        work.keys[::stride] * repeats,
        work.forward[::stride] * repeats,
    )
    plan = make_plan(some, config, ranks, epochs=1)
    return some, plan._replace(steps=plan.steps[: max(1, len(plan.steps) - 1)])


def layout(
    config: Config,
    ranks: int,
    plan: Plan | None = None,
    *,
    all_work: Work,
    model: Model,
    device: Device,
    kind: str,
    settings: Settings,
) -> Layout:
    """Memory and times under a config on so many ranks.

    Args: plan: of all examples; None: a few whole steps of a sample are planned here. kind: cuda or
    cpu.
    """
    work = all_work
    if plan is None:
        work, plan = sample_steps(all_work, config, ranks)
    policy, steps = config.hardware.activation_checkpointing, len(plan.steps)
    flops = costs.executed_flops(work, model, policy)
    parts = costs.predict_memory(model, ranks, kind, plan, work, config, settings)
    visits = [i for step in plan.steps for i in step.examples()]
    slowest = costs.most_loaded_rank_flops(plan, flops)
    ideal = sum(flops[i] for i in visits) / ranks
    times = costs.predict_times(slowest, steps, model, ranks, device, config, settings)
    token_bytes = layer_bytes(model.config, config.hardware) * model.config.num_hidden_layers
    seconds = times["step s"] * steps * config.optim.epochs * len(all_work.tokens) / len(visits)
    return {
        "ranks": ranks,
        "checkpointing": json.dumps(policy).strip('"'),
        "MB/token": token_bytes / 1e6,
        "tokens": config.hardware.tokens_per_micro_batch,
        "micro": len(slowest) / steps,
        "critical": sum(slowest) / ideal,
        "peak GB": parts["peak"] / 1e9,
        "fits": "yes" if parts["peak"] <= USABLE_MEMORY_FRACTION * device.memory else "no",
        "compute": times["compute"],
        "comm": times["comm"],
        "optimiser": times["optimiser"],
        "step s": times["step s"],
        "of ideal": ideal / steps / device.peak / device.efficiency / times["step s"],
        "hours": seconds / 3600,
        "memory": parts,
    }


def largest_budget(
    of_layout: MakeLayout, config: Config, ranks: int, longest: int, policy: Checkpointing
) -> Layout | None:
    """The layout of a policy with the largest budget that fits in memory.

    The budget is a power of two, and no larger than a rank's whole step needs.
    Returns: None where not even the longest example fits.
    """
    found: Layout | None = None
    for budget in (2**k for k in range((longest - 1).bit_length(), 20)):
        hardware = replace(
            config.hardware, tokens_per_micro_batch=budget, activation_checkpointing=policy
        )
        one = of_layout(replace(config, hardware=hardware), ranks)
        if one["fits"] == "no" or (found and found["micro"] == 1):
            break
        found = one
    return found


def scaling_tables(of_layout: MakeLayout, config: Config) -> dict[str, list[Layout]]:
    """Layouts of up to 1,024 ranks: with the config's step (strong), and with a step that grows
    with the ranks (weak). Shows its progress on a terminal."""
    strong = [2**k for k in range(11)]
    weak = [(each, ranks) for each in (2, 4, 16) for ranks in (16, 64, 256, 1024)]
    with tqdm(total=len(strong) + len(weak), desc="layouts", leave=False, disable=None) as bar:

        def made(of_config: Config, ranks: int) -> Layout:
            result = of_layout(of_config, ranks)
            bar.update()
            return result

        tables = {"strong": [made(config, ranks) for ranks in strong]}
        for each, ranks in weak:
            rows = tables.setdefault(f"weak, {step_size_key(config)} {each} x ranks", [])
            rows.append(made(with_step_size(config, each * ranks), ranks))
    return tables


def format_prediction(report: Report) -> Iterator[str]:
    """The report as lines for a terminal."""
    own, best, gb = report["config"], report["advice"], 1e9
    units = choose_units(own)
    reference = report["reference hours"] * units["hours"].factor
    yield (
        f"{report['model']} of {format_parameters(report['parameters'])} on {report['ranks']} x "
        f"{report['device']} with {report['memory'] / gb:.1f} GB"
    )
    yield (
        f"{report['examples']:,} examples of {report['mean_tokens']:,.0f} tokens in the mean, "
        f"{report['longest']:,} in the longest"
    )
    yield report["plan"]
    yield (
        "\nThe config as it is. tokens: of a micro-batch; micro: micro-batches a step; critical: "
        f"the most loaded rank's work against\nthe mean; step {units['step s'].name}: time of a "
        "step, without the parts of compute, comm and optimiser that overlap (same unit); of "
        "ideal: the\nshare of the step that compute alone would take with the work divided evenly "
        f"over the ranks; {units['hours'].name}: training,\nwithout evaluation and saving; the "
        f"reference pass takes {reference:.2f} more"
    )
    yield format_table(with_units([own], units))
    memory = units["peak GB"]
    yield (
        f"{memory.name} of a rank. save, save_host: gathered on the device, and in the machine's "
        "memory, while the model is saved"
    )
    yield format_table([{name: size / gb * memory.factor for name, size in own["memory"].items()}])
    yield (
        "\nEach activation checkpointing with its largest micro-batch (at most a rank's step) that "
        f"fits in {USABLE_MEMORY_FRACTION:.0%} of the memory"
    )
    if best is None:
        yield "None fits: more ranks, or offload_optimizer in the DeepSpeed JSON"
    else:
        yield format_table(with_units(report["policies"], units))
        yield (
            "Advice, the fastest of these (of equals, the one that recomputes least): "
            f"hardware.tokens_per_micro_batch={best['tokens']} "
            f"hardware.activation_checkpointing={best['checkpointing']}"
        )
    for title, layouts in report["tables"].items():
        yield f"\nScaling, {title}"
        yield format_table(with_units(layouts, units))
    if strong := report["tables"].get("strong"):
        yield "\n" + scaling_limit(strong)
    yield f"\n{VALIDATION_NOTE}"


def format_parameters(count: int) -> str:
    """A number of parameters with a power of 1000 that leaves digits before the point."""
    for power in (9, 6, 3):
        if count >= 10**power:
            return f"{count / 10**power:.2f}e{power} parameters"
    return f"{count} parameters"


def format_hours(hours: float) -> str:
    """A duration in hours, minutes or seconds."""
    if hours >= 0.1:
        return f"{hours:.2f} h"
    return f"{hours * 60:.2f} min" if hours * 60 >= 0.1 else f"{hours * 3600:.2f} s"


class Unit(NamedTuple):
    """A unit of the page, and by what values in seconds, hours or GB are multiplied for it."""

    name: str
    factor: float


def choose_units(own: Layout) -> dict[str, Unit]:
    """Column of a `Layout` -> a unit in which the config's own value has digits to show."""
    step, memory = Unit("s", 1.0), Unit("GB", 1.0)
    if own["step s"] < 0.1:
        step = Unit("ms", 1e3)
    if own["peak GB"] < 0.1:
        memory = Unit("MB", 1e3)
    total = Unit("hours", 1.0)
    if own["hours"] < 0.1:
        total = Unit("minutes", 60.0)
    if own["hours"] * 60 < 0.1:
        total = Unit("seconds", 3600.0)
    return {
        "compute": step,
        "comm": step,
        "optimiser": step,
        "step s": step,
        "peak GB": memory,
        "hours": total,
    }


def with_units(rows: Sequence[Layout], units: Mapping[str, Unit]) -> list[dict[str, object]]:
    """The layouts for the page: values in these units, and their columns named after them."""
    names = {
        "step s": f"step {units['step s'].name}",
        "peak GB": f"peak {units['peak GB'].name}",
        "hours": units["hours"].name,
    }
    converted = []
    for row in rows:
        cells: dict[str, object] = {}
        for name, value in row.items():
            if name in units and isinstance(value, float):
                value = value * units[name].factor
            cells[names.get(name, name)] = value
        converted.append(cells)
    return converted


def scaling_limit(strong: Sequence[Layout]) -> str:
    """Where strong scaling ends: from there twice the ranks save less than a fifth of a step."""
    doublings = pairwise(strong)
    end = next((a for a, b in doublings if b["step s"] > ENDS_TO_PAY * a["step s"]), strong[-1])
    return (
        f"Strong scaling ends at {end['ranks']} ranks: twice as many save less than a fifth of a "
        f"step. 1,024 ranks are better used for {1024 // end['ranks']} runs of {end['ranks']}, "
        f"all in {format_hours(end['hours'])}"
    )


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """A header and a line for each row, columns aligned to the right; `memory` is left out."""
    from pandas import DataFrame

    frame = DataFrame(rows).drop(columns="memory", errors="ignore")
    text: str = frame.to_string(index=False, float_format="{:.3f}".format)
    return text
