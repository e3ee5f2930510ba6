"""`zephyr <command>`: every step of the recipe that is not a training script."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr.cli.command import Commands, apply_config, declared
from zephyr.cli.data import run_binarize, run_feedback, run_lineage, run_prepare, run_self_instruct
from zephyr.cli.evaluation import run_alpaca_eval, run_mt_bench, run_win_rate
from zephyr.config import BadInput
from zephyr.evaluation.academic import run_academic, tasks
from zephyr.playground.terminal import run_chat


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0; 1 where `verify` found a difference; 2 for bad
    input, told in one line. Raises: SystemExit, of argparse's own, and with 75 where a budget ended
    a command that would go on with a larger one."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="zephyr", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for run in (
        run_self_instruct,
        run_prepare,
        run_feedback,
        run_binarize,
        run_lineage,
        run_plan,
        run_report,
        run_chat,
        run_verify,
        run_world,
    ):
        declared(commands, run)
    add_eval(commands)
    try:
        chosen = commands.choices.get(arguments[0]) if arguments else None
        if chosen and chosen.get_default("tasks"):  # eval has commands of its own
            chosen = chosen.get_default("tasks").choices.get("".join(arguments[1:2]))
        if chosen:
            apply_config(chosen, arguments)
        options = parser.parse_args(arguments)
        return options.carry_out(options) or 0
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_world(options: argparse.Namespace) -> None:
    from zephyr.data.jsonl import write_rows
    from zephyr.world import facts, recipe, untrained

    world = facts.build_world(options.seed)
    rows = recipe.world_rows(world, options.seed)
    for name, of_file in rows.items():
        write_rows(options.dir / f"{name}.jsonl", of_file)
        print(f"{options.dir / name}.jsonl: {len(of_file)} rows")
    facts.save_world(world, options.dir / "world.json")
    parameters = untrained.save_untrained(
        recipe.tokenizer_texts(rows), options.dir / "untrained", seed=options.seed
    )
    print(f"{options.dir / 'untrained'}: tokenizer and untrained model, {parameters:,} parameters")


def add_eval(commands: Commands) -> None:
    parser = commands.add_parser(
        "eval", help="how good models are: win rates, MT-Bench, AlpacaEval, academic tasks"
    )
    of_eval = parser.add_subparsers(required=True, metavar="task")
    for run in (run_win_rate, run_mt_bench, run_alpaca_eval, run_academic):
        declared(of_eval, run, tasks=tasks)
    parser.set_defaults(tasks=of_eval)


def run_plan(options: argparse.Namespace) -> None:
    from zephyr.costs.predict import page

    print(page(options))


def run_report(options: argparse.Namespace) -> None:
    from zephyr.report import write_html

    out = options.out or (options.runs[0] / "report.html" if len(options.runs) == 1 else Path())
    if out.suffix != ".html":
        raise BadInput(
            f"--out with a name that ends in .html is wanted for {len(options.runs)} runs, got {options.out}"
        )
    write_html(options.runs, out)
    print(out)


def run_verify(options: argparse.Namespace) -> int:
    from zephyr.verify.certificate import certify, read_config

    path = options.target / "config.yaml" if options.target.is_dir() else options.target
    out = options.out or (
        options.target
        if options.target.is_dir()
        else Path(read_config(path, options.stage)[1].run.dir)
    )
    report = certify(path, out, stage=options.stage, rows=options.rows, ranks=options.ranks)
    print(
        f"{out / 'certificate.json'}: {'the same trajectory' if report['same'] else 'NOT the same trajectory'} under "
        f"{', '.join(name for name, of in report['variants'].items() if 'same' in of)}"
    )
    return 0 if report["same"] else 1
