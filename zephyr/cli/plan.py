"""`zephyr plan`: a config becomes a prediction of its run, memory and time by part, and of what its `hardware` had better be."""
import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from zephyr import config as configs
from zephyr.cli import costs
from zephyr.cli.command import Commands, command
from zephyr.cli.costs import DEVICES, PROFILES, Config, Device, Lengths, Model, Settings, Work
from zephyr.cli.verify import read_config
from zephyr.config import BadInput, SFTConfig
from zephyr.data import Pairs, Texts, encoding_resources, load_pairs, load_texts, load_tokenizer
from zephyr.data.jsonl import read_rows
from zephyr.packing import Plan, plan_epochs
from zephyr.training.engine import read_deepspeed
from zephyr.training.planner import POLICIES, describe, layer_bytes, policy_of, require_budget

Report = dict[str, object]
ROOM = 0.9                                          # of a device's memory: the rest is for fragments, driver and NCCL
SAMPLED = 64, 2**15                                 # of the data, for other layouts than the config's: steps, examples at most
UNCHECKED = "Held against measurements: memory, and ratios of times, on 1 and 2 CPU ranks. Never checked: more ranks, any GPU, whatever else stands here."


def add_plan(commands: Commands) -> None:
    parser = command(commands, run_plan, "predict steps, packing, memory and time of a run, and what to write into its config",
                     "zephyr plan configs/zephyr-7b-beta/dpo.yaml --shape mistral --lengths ultrafeedback --gpus 16 --device a100-80")
    parser.add_argument("target", type=Path, metavar="CONFIG", help="the YAML file of a run to be")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes of its keys, right behind it")
    parser.add_argument("--stage", choices=("sft", "dpo"), help="where the config's keys do not tell")
    parser.add_argument("--gpus", type=int, default=1, help="ranks (default 1)")
    parser.add_argument("--device", choices=(*DEVICES, "cpu"), default="a100-80", help="default a100-80; cpu: this machine, measured for a second")
    parser.add_argument("--lengths", metavar="PROFILE|FILE", help=f"instead of the config's data: {', '.join(PROFILES)} (pairs), ultrachat (texts), or "
                        "a .jsonl of token counts, prompt, chosen and rejected, or tokens and targets")
    parser.add_argument("--shape", metavar="TYPE", help="instead of the model's config.json: a model type's default; mistral: Mistral-7B")
    parser.add_argument("--table", action="store_true", help="strong and weak scaling to 1,024 ranks, and sweeps")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run_plan(options: argparse.Namespace) -> None:
    _, config = read_config(options.target, options.stage)
    config = configs.load(type(config), str(options.target), options.overrides)
    if options.gpus < 1:
        raise BadInput(f"--gpus: at least 1 is wanted, got {options.gpus}")
    model = costs.read_model(config.model, options.shape)
    report = predict(config, model, read_lengths(options.lengths, config), options.gpus, options.device, options.table)
    print(json.dumps(report, indent=1) if options.json else "\n".join(text(report)))


def read_lengths(named: str | None, config: Config) -> Lengths:
    """Token counts of a profile, of a file's rows, or (None) of the config's own data, encoded as the scripts do. Raises: BadInput."""
    data, texts = config.data, isinstance(config, SFTConfig)
    if named in (("ultrachat",) if texts else PROFILES):
        return costs.profile_lengths(named, config)
    if named is not None:
        names = ("tokens", "targets") if texts else ("prompt", "chosen", "rejected")
        found = {place: tuple(row.get(name) for name in names) for place, row in read_rows([named])}
        for place, counts in found.items():
            if not all(type(count) is int and count > 0 for count in counts):
                raise BadInput(f"{place}: integers > 0 are wanted of {', '.join(names)}, got {counts}")
        return list(found.values())
    options = {"tokenizer": load_tokenizer(config.tokenizer or config.model, config.chat_template), "max_tokens": data.max_tokens,
               "limit": data.limit, "on_bad_row": data.on_bad_row, **encoding_resources()}
    options |= {"targets": data.targets} if texts else {"max_prompt_tokens": data.max_prompt_tokens, "truncation": data.truncation}
    return counted((load_texts if texts else load_pairs)(data.train, **options)[0])


def counted(examples: Pairs | Texts) -> Lengths:
    columns = (examples.prompt_tokens, examples.chosen_tokens, examples.rejected_tokens) if isinstance(examples, Pairs) else (
        examples.tokens, examples.target_tokens)
    return list(zip(*(column.tolist() for column in columns)))


def predict(config: Config, model: Model, lengths: Lengths, ranks: int, name: str, table: bool = False) -> Report:
    """All that the command prints. Args: name: of the device. Raises: BadInput where an example is over the config's budget."""
    settings, of = read_deepspeed(config.hardware.deepspeed), costs.work(lengths, model, config)
    require_budget(of.tokens, [f"number {i}" for i in range(1, len(lengths) + 1)], config.hardware.tokens_per_micro_batch)
    device = costs.this_machine(config.hardware.dtype, ranks) if name == "cpu" else DEVICES[name]
    plan = planned(of, config, ranks, config.optim.epochs)
    of_layout = partial(layout, all_work=of, model=model, device=device, settings=settings)
    own = of_layout(config, ranks, plan)
    reference = costs.times(dearest(plan, of.forward), config.optim.epochs, model, ranks, device, config, settings, training=False)
    tried = [best for policy in POLICIES if (best := largest(of_layout, config, ranks, max(of.tokens), policy))]
    return {"model": model.config.model_type, "parameters": model.parameters, "ranks": ranks, "device": name, **device._asdict(),
            "examples": len(lengths), "mean_tokens": sum(of.tokens) / len(lengths), "longest": max(of.tokens), "plan": describe(plan, ranks),
            "steps": len(plan.steps), "config": own, "reference_hours": 0.0 if isinstance(config, SFTConfig) else reference["seconds"] / 3600, "policies": tried,
            "advice": min(tried, key=lambda one: one["seconds"], default=None), "tables": tables(of_layout, config) if table else {}}


def planned(of: Work, config: Config, ranks: int, epochs: int) -> Plan:
    """The plan that the scripts make of these examples."""
    return plan_epochs(of.tokens, per_step=per_step(config), epochs=epochs, ranks=ranks, budget_tokens=config.hardware.tokens_per_micro_batch,
                       seed=config.run.seed, shuffle=config.data.shuffle, window_tokens=config.data.max_tokens if isinstance(config, SFTConfig) else None)


def per_step(config: Config) -> int:
    return config.optim.windows_per_step if isinstance(config, SFTConfig) else config.optim.pairs_per_step


def dearest(plan: Plan, flops: Sequence[float]) -> list[float]:
    """Operations of each micro-batch on the rank that the others wait for, step by step."""
    return [max(sum(flops[i] for i in micro) for micro in of_ranks) for step in plan.steps for of_ranks in zip(*step.ranks)]


def sampled(of: Work, config: Config) -> Work:
    """Some of the examples, evenly, for a few steps; each again and again where they do not fill one."""
    wanted = min(SAMPLED[0] * per_step(config), max(SAMPLED[1], per_step(config)))
    stride = max(1, len(of.tokens) // wanted)
    return Work(*([*column[::stride]] * -(-per_step(config) // len(column)) for column in of))


def layout(config: Config, ranks: int, plan: Plan | None = None, *, all_work: Work, model: Model, device: Device, settings: Settings) -> Report:
    """Memory and times under a config on so many ranks: of a plan of all examples, or of whole steps of some of them."""
    of, policy = all_work if plan else sampled(all_work, config), policy_of(config.hardware)
    plan = plan or (lambda made: made._replace(steps=made.steps[:max(1, len(made.steps) - 1)]))(planned(of, config, ranks, 1))
    flops, parts = costs.executed(of, model, policy), costs.memory(model, ranks, plan, of, config, settings)
    visits = [i for step in plan.steps for i in step.examples()]
    slowest, steps, ideal = dearest(plan, flops), len(plan.steps), sum(flops[i] for i in visits) / ranks
    found = costs.times(slowest, steps, model, ranks, device, config, settings)
    hours = found["seconds"] * steps * config.optim.epochs * len(all_work.tokens) / len(visits) / 3600
    return {"ranks": ranks, "activations": policy, "bytes_per_token": layer_bytes(model.config, policy, config.hardware) * model.config.num_hidden_layers,
            "budget_tokens": config.hardware.tokens_per_micro_batch, "micro_batches": len(slowest) / steps, "critical_path": sum(slowest) / ideal,
            "memory": parts, "fits": parts["peak"] <= ROOM * device.memory, **found,
            "of_ideal": ideal / steps / device.peak / device.efficiency / found["seconds"], "hours": hours}


def largest(of_layout: Callable[..., Report], config: Config, ranks: int, longest: int, policy: str) -> Report | None:
    """A policy with the largest budget that fits, no larger than a rank's whole step needs; None where not even the longest example fits."""
    found = None
    for budget in (2**k for k in range((longest - 1).bit_length(), 20)):
        hardware = replace(config.hardware, tokens_per_micro_batch=budget, activation_checkpointing=written(policy))
        one = of_layout(replace(config, hardware=hardware), ranks)
        if not one["fits"] or found and found["micro_batches"] == 1:
            break
        found = one
    return found


def written(policy: str) -> bool | str:
    """The value of `hardware.activation_checkpointing`."""
    return {"none": False, "full": True}.get(policy, policy)


def tables(of_layout: Callable[..., Report], config: Config) -> dict[str, list[Report]]:
    """Layouts of up to 1,024 ranks: at the config's step (strong scaling), and with a step that grows with them (weak)."""
    key = "windows_per_step" if isinstance(config, SFTConfig) else "pairs_per_step"
    found = {"strong": [of_layout(config, 2**k) for k in range(11)]}
    for each in (2, 4, 16):
        found[f"weak, {key} {each} a rank"] = [
            of_layout(replace(config, optim=replace(config.optim, **{key: each * ranks})), ranks) for ranks in (16, 64, 256, 1024)]
    return found


def text(report: Report) -> Iterator[str]:
    """The report for a terminal."""
    own = report["config"]
    yield f"{report['model']} of {report['parameters'] / 1e6:,.1f} M parameters on {report['ranks']} x {report['device']} of {report['memory'] / 1e9:.1f} GB"
    yield f"{report['examples']:,} examples of {report['mean_tokens']:,.0f} tokens in the mean, {report['longest']:,} the longest"
    yield report["plan"]
    yield "\nthe config as it is, GB of a rank, and (save) while the model is saved, save_host in the machine's memory:"
    yield from aligned([{name: f"{size / 1e9:.2f}" for name, size in own["memory"].items()}])
    yield "\nseconds of a mean step, and hours without evaluation and saving" + ":"
    yield from aligned([{name: f"{own[name]:.3f}" for name in ("compute", "communication", "optimiser", "seconds")} | {
        "reference h": f"{report['reference_hours']:.2f}", "training h": f"{own['hours']:.2f}"}])
    yield f"\nby what a layer keeps for its backward, the largest micro-batch that fits {ROOM:.0%} of the memory (or holds a rank's whole step):"
    yield from aligned(map(cells, report["policies"]))
    if best := report["advice"]:
        yield (f"the fastest of these: hardware.tokens_per_micro_batch={best['budget_tokens']} hardware.activation_checkpointing="
               f"{json.dumps(written(best['activations']))}")
    else:
        yield "none fits: more ranks, or offload_optimizer in the DeepSpeed JSON"
    for title, layouts in report["tables"].items():
        yield f"\n{title}:"
        yield from aligned(map(cells, layouts))
    if strong := report["tables"].get("strong"):
        end = next((a for a, b in zip(strong, strong[1:]) if b["seconds"] > 0.8 * a["seconds"]), strong[-1])
        yield (f"\nstrong scaling ends at {end['ranks']} ranks, beyond which twice as many save less than a fifth of a step; 1,024 ranks are better used for "
               f"{1024 // end['ranks']} runs of {end['ranks']}, all in {end['hours']:.2f} h")
    yield f"\n{UNCHECKED}"


def cells(of: Report) -> dict[str, str]:
    """A layout's line of a table; ! where it does not fit."""
    return {"ranks": str(of["ranks"]), "activations": of["activations"], "MB a token": f"{of['bytes_per_token'] / 1e6:.2f}", "tokens": f"{of['budget_tokens']:,}",
            "micro-batches": f"{of['micro_batches']:.1f}", "critical path": f"{of['critical_path']:.2f}", "peak GB": f"{of['memory']['peak'] / 1e9:.1f}{' ' if of['fits'] else '!'}",
            "step s": f"{of['seconds']:.3f}", "of ideal": f"{of['of_ideal']:.0%}", "training h": f"{of['hours']:.2f}"}


def aligned(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """A line of names and one for each row, columns aligned to the right."""
    rows = list(rows)
    table = [[*rows[0]], *([*row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in table]
