"""`zephyr plan`: a config becomes a prediction of its run, memory and time by part, and of what its
`hardware` had better be."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from zephyr import config as configs
from zephyr.config import BadInput, SFTConfig
from zephyr.costs import work as costs
from zephyr.costs.work import DEVICES, PROFILES, Config, Device, Lengths, Model, Settings, Work
from zephyr.data.encode import encoding_resources, load_pairs, load_texts
from zephyr.data.jsonl import read_rows
from zephyr.data.store import Pairs, Texts
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.memory import layer_bytes
from zephyr.packing import Plan, plan_epochs
from zephyr.training.engine import Engine, read_deepspeed
from zephyr.training.planner import describe_plan, require_budget
from zephyr.verify.certificate import read_config

Report = dict[str, object]
USABLE_MEMORY_FRACTION = 0.94  # of a device's memory: the rest is for fragments, driver and NCCL
SAMPLED_STEPS, SAMPLED_EXAMPLES = 64, 2**15  # at most, for other layouts than the config's own
POLICIES = (False, "mlp", True)  # hardware.activation_checkpointing, by the work that is repeated
VALIDATION_NOTE = (
    "Held against measurements: memory and ratios of times on 1 and 2 CPU ranks; one step at 7B on one H200, whose\n"
    "memory was right within 1 % and whose time was predicted 29 % too short. Never checked: more GPUs than one."
)


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
    """What the command prints. Raises: BadInput."""
    _, config = read_config(path, stage)
    config = configs.load(type(config), str(path), overrides)
    if gpus < 1:
        raise BadInput(f"--gpus: at least 1 is wanted, got {gpus}")
    model = costs.read_model(config.model, shape)
    report = predict(config, model, read_lengths(lengths, config), gpus, device, table)
    return json.dumps(report, indent=1) if as_json else "\n".join(format_prediction(report))


def read_lengths(named: str | None, config: Config) -> Lengths:
    """Token counts of a profile, of a file's rows, or (None) of the config's own data, encoded as
    the scripts do. Raises: BadInput."""
    data, texts = config.data, isinstance(config, SFTConfig)
    if named in (["ultrachat"] if texts else PROFILES):
        return costs.profile_lengths(named, config)
    if named is not None:
        names = ("tokens", "targets") if texts else ("prompt", "chosen", "rejected")
        found = {place: tuple(row.get(name) for name in names) for place, row in read_rows([named])}
        for place, counts in found.items():
            if not all(type(count) is int and count > 0 for count in counts):
                raise BadInput(
                    f"{place}: integers > 0 are wanted of {', '.join(names)}, got {counts}"
                )
        if not found:
            raise BadInput(f"{named}: a row at least is wanted")
        return list(found.values())
    load = (
        partial(load_texts, targets=data.targets)
        if texts
        else partial(
            load_pairs, max_prompt_tokens=data.max_prompt_tokens, truncation=data.truncation
        )
    )
    tokenizer = load_tokenizer(
        config.tokenizer or config.model, config.chat_template, config.eos_token
    )
    return token_counts(
        load(
            data.train,
            tokenizer,
            max_tokens=data.max_tokens,
            limit=data.limit,
            on_bad_row=data.on_bad_row,
            columns=data.columns,
            **encoding_resources(),
        )[0]
    )


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
    """All that the command prints. Args: name: of the device. Raises: BadInput where an example is
    over the config's budget."""
    settings, of = (
        read_deepspeed(config.hardware.deepspeed),
        costs.example_work(lengths, model, config),
    )
    require_budget(
        of.tokens,
        [f"number {i}" for i in range(1, len(lengths) + 1)],
        config.hardware.tokens_per_micro_batch,
    )
    device = costs.measure_cpu(config.hardware.dtype, ranks) if name == "cpu" else DEVICES[name]
    plan = make_plan(of, config, ranks, config.optim.epochs)
    of_layout = partial(
        layout,
        all_work=of,
        model=model,
        device=device,
        kind="cpu" if name == "cpu" else "cuda",
        settings=settings,
    )
    a_pass = costs.predict_times(
        costs.most_loaded_rank_flops(plan, of.forward),
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
        if (best := largest_budget(of_layout, config, ranks, max(of.tokens), policy))
    ]
    return {
        "model": model.config.model_type,
        "parameters": model.parameters,
        "ranks": ranks,
        "device": name,
        **device._asdict(),
        "examples": len(lengths),
        "mean_tokens": sum(of.tokens) / len(lengths),
        "longest": max(of.tokens),
        "steps": len(plan.steps),
        "plan": describe_plan(plan, ranks),
        "reference hours": 0.0 if isinstance(config, SFTConfig) else a_pass["step s"] / 3600,
        "config": of_layout(config, ranks, plan),
        "policies": tried,
        "advice": min(tried, key=lambda one: one["step s"], default=None),
        "tables": scaling_tables(of_layout, config) if table else {},
    }


def estimate(engine: Engine, config: Config, examples: Pairs | Texts) -> str:
    """The command's page for a dry run: of a script's own rows, on as many ranks, of this GPU or
    CPU."""
    name = (
        torch.cuda.get_device_name(engine.device).lower() if engine.device.type == "cuda" else "cpu"
    )
    known = [
        device for device in (*DEVICES, "cpu") if all(part in name for part in device.split("-"))
    ]
    if not known:
        return (
            f"no prediction: the figures of {name} are not known, those of {', '.join(DEVICES)} are"
        )
    report = predict(
        config,
        costs.read_model(config.model, None),
        token_counts(examples),
        engine.world_size,
        known[0],
    )
    return "\n".join(line for line in format_prediction(report) if line != report["plan"])


def make_plan(of: Work, config: Config, ranks: int, epochs: int) -> Plan:
    """The plan that the scripts make of these examples."""
    window = config.data.max_tokens if isinstance(config, SFTConfig) else None
    return plan_epochs(
        of.tokens,
        per_step=getattr(config.optim, step_size_key(config)),
        epochs=epochs,
        ranks=ranks,
        seed=config.run.seed,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        shuffle=config.data.shuffle,
        window_tokens=window,
    )


def step_size_key(config: Config) -> str:
    """The key that says how large a step is."""
    return "windows_per_step" if isinstance(config, SFTConfig) else "pairs_per_step"


def sample_steps(of: Work, config: Config, ranks: int) -> tuple[Work, Plan]:
    """Some of the examples, evenly, planned for a few whole steps; each again and again where they
    do not fill one."""
    per_step = getattr(config.optim, step_size_key(config))
    stride = max(
        1, len(of.tokens) // min(SAMPLED_STEPS * per_step, max(SAMPLED_EXAMPLES, per_step))
    )
    some = Work(*([*column[::stride]] * -(-per_step // len(column[::stride])) for column in of))
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
) -> Report:
    """Memory and times under a config on so many ranks: of a plan of all examples, or (None) of
    whole steps of some of them."""
    of, plan = (all_work, plan) if plan else sample_steps(all_work, config, ranks)
    policy, steps = config.hardware.activation_checkpointing, len(plan.steps)
    flops, parts = (
        costs.executed_flops(of, model, policy),
        costs.predict_memory(model, ranks, kind, plan, of, config, settings),
    )
    visits = [i for step in plan.steps for i in step.examples()]
    slowest, ideal = (
        costs.most_loaded_rank_flops(plan, flops),
        sum(flops[i] for i in visits) / ranks,
    )
    times = costs.predict_times(slowest, steps, model, ranks, device, config, settings)
    a_token = layer_bytes(model.config, config.hardware) * model.config.num_hidden_layers
    return {
        "ranks": ranks,
        "checkpointing": json.dumps(policy).strip('"'),
        "MB/token": a_token / 1e6,
        "tokens": config.hardware.tokens_per_micro_batch,
        "micro": len(slowest) / steps,
        "critical": sum(slowest) / ideal,
        "peak GB": parts["peak"] / 1e9,
        "fits": "yes" if parts["peak"] <= USABLE_MEMORY_FRACTION * device.memory else "no",
        **times,
        "of ideal": ideal / steps / device.peak / device.efficiency / times["step s"],
        "hours": times["step s"]
        * steps
        * config.optim.epochs
        * len(all_work.tokens)
        / len(visits)
        / 3600,
        "memory": parts,
    }


def largest_budget(
    of_layout: Callable[..., Report], config: Config, ranks: int, longest: int, policy: bool | str
) -> Report | None:
    """A policy with the largest budget that fits, no larger than a rank's whole step needs; None
    where the longest example does not."""
    found = None
    for budget in (2**k for k in range((longest - 1).bit_length(), 20)):
        hardware = replace(
            config.hardware, tokens_per_micro_batch=budget, activation_checkpointing=policy
        )
        one = of_layout(replace(config, hardware=hardware), ranks)
        if one["fits"] == "no" or (found and found["micro"] == 1):
            break
        found = one
    return found


def scaling_tables(of_layout: Callable[..., Report], config: Config) -> dict[str, list[Report]]:
    """Layouts of up to 1,024 ranks: at the config's step (strong scaling), and with a step that
    grows with them (weak)."""

    def step_of(size: int) -> Config:
        return replace(config, optim=replace(config.optim, **{step_size_key(config): size}))

    weak = {
        f"weak, {step_size_key(config)} {each} x ranks": [
            of_layout(step_of(each * ranks), ranks) for ranks in (16, 64, 256, 1024)
        ]
        for each in (2, 4, 16)
    }
    return {"strong": [of_layout(config, 2**k) for k in range(11)], **weak}


def format_prediction(report: Report) -> Iterator[str]:
    """The report for a terminal."""
    own, best, gb = report["config"], report["advice"], 1e9
    yield (
        f"{report['model']} of {report['parameters'] / gb:.2f}e9 parameters on {report['ranks']} x {report['device']} with "
        f"{report['memory'] / gb:.1f} GB"
    )
    yield f"{report['examples']:,} examples of {report['mean_tokens']:,.0f} tokens in the mean, {report['longest']:,} in the longest"
    yield report["plan"]
    yield (
        "\nThe config as it is. tokens: of a micro-batch; micro: of them a step; critical: the most loaded rank's work against the mean;\n"
        "step s: of compute, comm and optimiser what does not hide behind another; hours: training, without evaluation and saving,\n"
        f"beside {report['reference hours']:.2f} of the reference pass"
    )
    yield format_table([own])
    yield "GB of a rank; save and save_host: gathered, and of the machine's memory, while the model is saved"
    yield format_table([{name: size / gb for name, size in own["memory"].items()}])
    yield f"\nWhat layers keep for the backward, and the largest micro-batch (at most a rank's step) that fits {USABLE_MEMORY_FRACTION:.0%} of the memory"
    if best is None:
        yield "None fits: more ranks, or offload_optimizer in the DeepSpeed JSON"
    else:
        yield format_table(report["policies"])
        yield (
            f"The fastest of these, and the first of equals, since it repeats least: hardware.tokens_per_micro_batch={best['tokens']} "
            f"hardware.activation_checkpointing={best['checkpointing']}"
        )
    for title, layouts in report["tables"].items():
        yield f"\nScaling, {title}"
        yield format_table(layouts)
    if strong := report["tables"].get("strong"):
        end = next(
            (a for a, b in zip(strong, strong[1:]) if b["step s"] > 0.8 * a["step s"]), strong[-1]
        )
        yield (
            f"\nStrong scaling ends at {end['ranks']} ranks: twice as many save less than a fifth of a step. 1,024 ranks are better "
            f"used for {1024 // end['ranks']} runs of {end['ranks']}, all in {end['hours']:.2f} h"
        )
    yield f"\n{VALIDATION_NOTE}"


def format_table(rows: Sequence[Report]) -> str:
    """A line of names and one for each row, without the tables in them, columns aligned to the
    right."""
    from pandas import DataFrame

    return (
        DataFrame(rows)
        .drop(columns="memory", errors="ignore")
        .to_string(index=False, float_format="{:.3f}".format)
    )
