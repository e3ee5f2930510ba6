"""`zephyr plan`: a config becomes a prediction of its run and advice for its `hardware` keys."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from zephyr import config as configs
from zephyr.config import BadInput, ConfigError, DPOConfig, DryRun, SFTConfig, config_quirks
from zephyr.costs import work as costs
from zephyr.costs.advice import each_policy, fastest, options, overrides, remedies
from zephyr.costs.collectives import collective_table
from zephyr.costs.layouts import Case, layout, make_plan, sampler, scaling_tables
from zephyr.costs.text import Report, format_prediction
from zephyr.costs.times import measure_cpu, step_seconds
from zephyr.costs.work import PROFILES, Config, Lengths, Model
from zephyr.data.encode import encoding_resources, load_pairs, load_texts
from zephyr.data.jsonl import read_rows
from zephyr.data.store import Pairs, Texts
from zephyr.data.tokenizer import load_tokenizer, read_tokenizer
from zephyr.data.windows import packer
from zephyr.losses import find_loss
from zephyr.model.load import find_lacks
from zephyr.packing import Plan
from zephyr.training.deepspeed_settings import read_deepspeed
from zephyr.training.devices import (
    DEVICES,
    WITHOUT_BFLOAT16,
    Device,
    described_device,
    find_device,
)
from zephyr.training.engine import Engine
from zephyr.training.planner import describe_plan, require_budget
from zephyr.verify.certificate import read_config


class Card(NamedTuple):
    """How a GPU is described on the command line: GB, GB/s of its memory, bfloat16 TFLOP/s."""

    memory: float | None = None
    bandwidth: float | None = None
    rate: float | None = None


def page(
    path: Path,
    overrides: Sequence[str],
    *,
    stage: str | None = None,
    gpus: int = 1,
    device: str | None = None,
    card: Card | None = None,
    host_memory: float | None = None,
    lengths: str | None = None,
    shape: str | None = None,
    table: bool = False,
    as_json: bool = False,
) -> str:
    """Make the text that the command prints.

    Args: device, card: one of them at most; neither: a100-80. host_memory: GB of a machine.
    Raises: BadInput.
    """
    config: Config
    if isinstance(read_config(path, stage)[1], SFTConfig):
        config = configs.load(SFTConfig, str(path), overrides)
    else:
        config = configs.load(DPOConfig, str(path), overrides)
    if gpus < 1:
        raise BadInput(f"--gpus: at least 1 is wanted, got {gpus}")
    if host_memory is not None and host_memory <= 0:
        raise BadInput(f"--host-memory: GB > 0 are wanted, got {host_memory:g}")
    name, figures = choose_device(device, card or Card(), config.hardware.dtype, gpus)
    model = costs.read_model(config.model, shape, config.adapter)
    report = predict(
        config,
        model,
        read_lengths(lengths, config),
        gpus,
        name,
        table,
        device=figures,
        host_memory=None if host_memory is None else host_memory * 1e9,
    )
    return json.dumps(report, indent=1) if as_json else "\n".join(format_prediction(report))


def choose_device(name: str | None, card: Card, dtype: str, ranks: int) -> tuple[str, Device]:
    """The name and the figures of the device that the command line names or describes.

    Args: dtype, ranks: for `cpu`, which is measured.
    Raises: BadInput: the name is not known, or the description is not complete.
    """
    how = "or describe it: --memory GB --bandwidth GB/s --rate TFLOP/s, from its data sheet"
    if any(value is not None for value in card):
        values = [value for value in card if value is not None and value > 0]
        if name is not None or len(values) < len(card):
            given = {"device": name} | card._asdict()
            got = " ".join(f"--{key} {value}" for key, value in given.items() if value is not None)
            raise BadInput(
                "--memory, --bandwidth and --rate describe a GPU together, in place of --device: "
                f"expected three numbers > 0 and no --device, got {got}"
            )
        return "described GPU", described_device(*values)
    name = {None: "a100-80", "a100": "a100-80"}.get(name, name)
    if name == "cpu":
        return name, measure_cpu(dtype, ranks)
    if name in WITHOUT_BFLOAT16:
        raise BadInput(f"--device {name}: it has no bfloat16, in which the policy is trained")
    if name not in DEVICES:
        raise BadInput(f"--device {name}: expected one of {', '.join(DEVICES)}, cpu; {how}")
    return name, DEVICES[name]


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
    if "/" not in named and not Path(named).exists():
        known = "ultrachat" if texts else ", ".join(PROFILES)
        raise BadInput(f"--lengths {named}: expected {known}, or a .jsonl of token counts")
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
    if isinstance(config, SFTConfig) and config.data.packing == "constant_length":
        return costs.window_lengths([tokens for tokens, _ in found], config.data.max_tokens)
    return found


def load_examples(config: Config) -> Pairs | Texts:
    """Encode the config's training data as the scripts do. Raises: BadInput."""
    data = config.data
    costs.require_model_folder(config.tokenizer or config.model)
    tokenizer = load_tokenizer(
        config.tokenizer or config.model, config.chat_template, config.eos_token
    )
    if isinstance(config, SFTConfig):
        texts, report = load_texts(
            data.train,
            tokenizer,
            max_tokens=data.max_tokens,
            targets=config.data.targets,
            limit=data.limit,
            on_bad_row=data.on_bad_row,
            columns=data.columns,
            joined=config.data.packing == "constant_length",
            **encoding_resources(),
        )
        pack = packer(config)
        return pack(texts, report, "train")[0] if pack else texts
    return load_pairs(
        data.train,
        tokenizer,
        max_tokens=data.max_tokens,
        max_prompt_tokens=config.data.max_prompt_tokens,
        truncation=config.data.truncation,
        encoding=config.data.encoding,
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
    config: Config,
    model: Model,
    lengths: Lengths,
    ranks: int,
    name: str,
    table: bool = False,
    *,
    device: Device | None = None,
    host_memory: float | None = None,
) -> Report:
    """Predict memory and time of a run.

    Args: name: of the device. table: also the tables of scaling. device: its figures, where the
    name is not in DEVICES. host_memory: bytes of a machine; None: not known.
    Raises: BadInput where an example is over the config's budget.
    """
    require_whole_groups(config, model, ranks)
    work = costs.example_work(lengths, model, config)
    ids = [f"number {i}" for i in range(1, len(lengths) + 1)]
    require_budget(work.tokens, ids, config.hardware.tokens_per_micro_batch)
    case = Case(
        work=work,
        sample=sampler(work, config),
        model=model,
        device=device or DEVICES[name],
        kind="cpu" if name == "cpu" else "cuda",
        settings=read_deepspeed(config.hardware.deepspeed),
        host_memory=host_memory,
    )
    of_case = partial(layout, case=case)
    longest = max(work.tokens)
    tried = [each_policy(of_case, changed, ranks, longest) for changed in options(config, case)]
    policies = tried[0]  # of the config's own options
    advice, best = fastest(policies), fastest([one for made in tried for one in made])
    plan = make_plan(work, config, ranks, config.optim.epochs)
    return {
        "model": model.config.model_type,
        "parameters": model.parameters,
        "ranks": ranks,
        "device": name,
        "memory": case.device.memory,
        "peak": case.device.peak,
        "efficiency": case.device.efficiency,
        "memory_rate": case.device.memory_rate,
        "node": case.device.node,
        "across": case.device.across,
        "host": case.device.host,
        "host_memory": host_memory,
        "examples": len(lengths),
        "mean_tokens": sum(work.tokens) / len(lengths),
        "longest": longest,
        "steps": len(plan.steps),
        "plan": describe_plan(plan, ranks),
        "quirks": config_quirks(config),
        "reference hours": reference_seconds(plan, config, case) / 3600,
        "config": of_case(config, ranks, plan),
        "policies": policies,
        "advice": advice,
        "advice keys": overrides(advice, config) if advice else None,
        "fastest": best,
        "fastest keys": overrides(best, config) if best else None,
        "remedies": [] if advice else list(remedies(config, ranks, longest, case)),
        "tables": scaling_tables(of_case, config) if table else {},
        "collectives": collective_table(model, case.device, config, case.settings) if table else [],
    }


def require_whole_groups(config: Config, model: Model, ranks: int) -> None:
    """Check `hardware.sequence_parallel` as the engine does. Raises: ConfigError."""
    size, heads = config.hardware.sequence_parallel, model.config.num_attention_heads
    for count, what in ((ranks, "ranks"), (heads, "attention heads of the model")):
        if count % size:
            raise ConfigError(
                f"hardware.sequence_parallel: expected a divisor of the {count} {what}, got {size}"
            )


def reference_seconds(plan: Plan, config: Config, case: Case) -> float:
    """Seconds of the pass that scores all pairs under the reference; 0 where there is none.

    Raises: ConfigError: the config's loss is unknown.
    """
    if isinstance(config, SFTConfig):
        return 0.0
    try:
        if find_loss(config.loss).reference_free:
            return 0.0
    except ValueError as error:
        raise ConfigError(str(error)) from None
    scoring = step_seconds(
        plan,
        case.work,
        case.model,
        case.device,
        case.kind,
        config,
        case.settings,
        training=False,
    )
    return scoring.step * len(plan.steps) / config.optim.epochs


def require_model(engine: Engine, config: Config) -> list[str]:
    """What a dry run can do without: the kernels, libraries and weights that this machine lacks.

    A collective. Raises: BadInput for a model that no machine could train.
    """
    return engine.on_rank0(lambda: [str(lack) for lack in find_lacks(config, dry_run=True)])


def missing_tokenizer(engine: Engine, config: Config, asked: DryRun) -> list[str]:
    """What keeps the tokenizer from loading, where the lengths asked for make it unnecessary.

    A collective.
    """

    def missing() -> list[str]:
        try:
            read_tokenizer(config.tokenizer or config.model)
        except BadInput as error:
            return [str(error)]
        return []

    return engine.on_rank0(missing) if asked.lengths else []


def estimate(
    engine: Engine,
    config: Config,
    asked: DryRun,
    lacks: Sequence[str],
    load: Callable[[], Pairs | Texts] | None,
) -> None:
    """Print the command's page for a script's dry run. A collective.

    Args: lacks: of `require_model` and `missing_tokenizer`. load: reads and encodes the config's
    rows; called where `asked` names no lengths. None: there is no tokenizer to encode them with.
    Raises: BadInput.
    """
    lengths = None if asked.lengths or load is None else token_counts(load())
    engine.print(engine.on_rank0(lambda: dry_run_page(engine, config, asked, lengths)))
    if lacks:
        engine.print("\n".join(["\nNot checked, because this machine lacks it:", *lacks]))


def dry_run_page(engine: Engine, config: Config, asked: DryRun, lengths: Lengths | None) -> str:
    """The page of the ranks and the device that a dry run asks for, else of those that are here.

    Args: lengths: of the config's rows; None: those that are asked for.
    """
    import psutil  # type: ignore[import-untyped]  # its stubs are another package

    ranks = asked.gpus or engine.world_size
    if lengths is None:
        lengths = read_lengths(asked.lengths, config)
    model = costs.read_model(config.model, None, config.adapter)
    if asked.device is not None:
        name, device = choose_device(asked.device, Card(), config.hardware.dtype, ranks)
    elif engine.device.type == "cuda":
        gpu = torch.cuda.get_device_name(engine.device)
        known = find_device(gpu)
        if known is None:
            work = costs.example_work(lengths, model, config)
            plan = make_plan(work, config, ranks, config.optim.epochs)
            return (
                f"{describe_plan(plan, ranks)}\nno prediction: the figures of {gpu} are not known, "
                f"those of {', '.join(DEVICES)} are: name one with --device; zephyr plan takes "
                "--memory, --bandwidth and --rate"
            )
        name, device = known, DEVICES[known]
    else:
        name, device = "cpu", measure_cpu(config.hardware.dtype, ranks)
    here = asked.device is None
    report = predict(
        config,
        model,
        lengths,
        ranks,
        name,
        device=device,
        host_memory=psutil.virtual_memory().total if here else None,
    )
    return "\n".join(format_prediction(report))
