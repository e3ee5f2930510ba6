"""`zephyr <command>`: every step of the recipe that is not a training script."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr.cli.command import Commands, command, take_config
from zephyr.cli.data import add_binarize, add_feedback, add_lineage, add_prepare, add_self_instruct
from zephyr.config import BadInput


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0; 1 where `verify` found a difference; 2 for bad input, told in one line. Raises:
    SystemExit, of argparse's own, and with 75 where a budget ended a command that would go on with a larger one."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="zephyr", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (add_self_instruct, add_prepare, add_feedback, add_binarize, add_lineage, add_eval, add_verify, add_world):
        add(commands)
    try:
        if "--config" in arguments[1:-1] and arguments[0] in commands.choices:
            take_config(commands.choices[arguments[0]], arguments[arguments.index("--config") + 1])
        options = parser.parse_args(arguments)
        return options.carry_out(options) or 0
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def add_world(commands: Commands) -> None:
    parser = command(commands, run_world, "write the embedded world: facts, prompts, prose, demonstrations, an untrained model",
                     "zephyr world runs/tiny/world")
    parser.add_argument("dir", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of facts, prompts and initial weights (default 0)")


def run_world(options: argparse.Namespace) -> None:
    from zephyr.data.jsonl import write_rows
    from zephyr.world.facts import build_world, save_world
    from zephyr.world.recipe import tokenizer_texts, world_rows
    from zephyr.world.untrained import save_untrained

    world = build_world(options.seed)
    rows = world_rows(world, options.seed)
    for name, of_file in rows.items():
        write_rows(options.dir / f"{name}.jsonl", of_file)
        print(f"{options.dir / name}.jsonl: {len(of_file)} rows")
    save_world(world, options.dir / "world.json")
    parameters = save_untrained(tokenizer_texts(rows), options.dir / "untrained", seed=options.seed)
    print(f"{options.dir / 'untrained'}: tokenizer and untrained model, {parameters:,} parameters")


def add_eval(commands: Commands) -> None:
    parser = command(commands, run_eval, "judge the greedy answers of models to held-out prompts",
                     "zephyr eval runs/tiny/world --model dSFT=runs/tiny/sft/model --model dDPO=runs/tiny/dpo/model")
    parser.add_argument("world", type=Path, help="folder that `zephyr world` wrote")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=DIR", help="a model folder; repeat it")
    parser.add_argument("--prompts", default="test", help="file of the world's prompts/ folder (default test)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default 64)")
    parser.add_argument("--out", type=Path, help="folder for results.json and, per model, the judged answers")


def run_eval(options: argparse.Namespace) -> None:
    from zephyr.data.jsonl import read_rows, write_rows
    from zephyr.judge.rules import judge, load_facts
    from zephyr.judge.table import format_table, summarise

    facts = load_facts(options.world / "world.json")
    prompts = [row for _, row in read_rows([options.world / "prompts" / f"{options.prompts}.jsonl"])]
    verdicts = {}
    for name, folder in map(named_folder, options.model):
        print(f"{name}: answering {len(prompts)} prompts", flush=True)
        answers = greedy_answers(folder, [str(row["prompt"]) for row in prompts], options.max_new_tokens)
        verdicts[name] = [judge(row, text, facts) for row, text in zip(prompts, answers)]
        if options.out:
            write_rows(options.out / f"{name}.jsonl", (
                {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "text": text} | verdict._asdict()
                for row, text, verdict in zip(prompts, answers, verdicts[name])))
    summary = summarise([str(row["family"]) for row in prompts], verdicts)
    if options.out:
        (options.out / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(format_table(summary))


def named_folder(text: str) -> tuple[str, Path]:
    """`NAME=DIR` as its parts. Raises: BadInput for anything else, or a folder that is not there."""
    name, equals, folder = text.partition("=")
    if not (name and equals and Path(folder).is_dir()):
        raise BadInput(f"--model {text!r}: NAME=DIR is wanted, with DIR a model folder")
    return name, Path(folder)


def greedy_answers(folder: Path, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """What the model in `folder` answers to each prompt, greedily, by the folder's own chat template, in float32."""
    import torch

    from zephyr.data import load_tokenizer
    from zephyr.model.generate import generate
    from zephyr.model.load import load_policy

    policy = load_policy(str(folder), attention="sdpa", dtype=torch.float32)
    tokenizer = load_tokenizer(str(folder), "zephyr")
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return generate(policy.lm, tokenizer, turns, max_new_tokens=max_new_tokens)


def add_verify(commands: Commands) -> None:
    parser = command(commands, run_verify, "train a short prefix of a run under other layouts, and certify that nothing changes",
                     "zephyr verify configs/tiny/dpo.yaml")
    parser.add_argument("target", type=Path, metavar="RUN_OR_CONFIG", help="a run folder, or the YAML file of a run to be")
    parser.add_argument("--stage", choices=("sft", "dpo"), help="where the config's keys do not tell")
    parser.add_argument("--rows", type=int, default=32, help="first rows of the data (default 32)")
    parser.add_argument("--ranks", type=int, help="processes (default: the GPUs of this machine, or two on the CPU)")
    parser.add_argument("--out", type=Path, help="folder for certificate.json (default: the run folder, or the config's run.dir)")


def run_verify(options: argparse.Namespace) -> int:
    from zephyr.cli.verify import certify, read_config

    path = options.target / "config.yaml" if options.target.is_dir() else options.target
    out = options.out or (options.target if options.target.is_dir() else Path(read_config(path, options.stage)[1].run.dir))
    report = certify(path, out, stage=options.stage, rows=options.rows, ranks=options.ranks)
    print(f"{out / 'certificate.json'}: {'the same trajectory' if report['same'] else 'NOT the same trajectory'} under "
          f"{', '.join(name for name, of in report['variants'].items() if 'same' in of)}")
    return 0 if report["same"] else 1
