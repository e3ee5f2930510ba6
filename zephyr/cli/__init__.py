"""`zephyr <command>`: every step of the recipe that is not a training script.

A command is a function of one of the modules here. Its parameters are the command's options and its
docstring is the help text. To add a command, write the function and list it in `COMMANDS`."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import zephyr
from zephyr.cli import analysis, benchmarks, chat, data, evaluation, rounds, runs
from zephyr.cli.command import add_command
from zephyr.config import BadInput

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
COMMANDS: list[Callable[..., int | None]] = [
    data.self_instruct,
    data.prepare,
    data.feedback,
    data.merge,
    data.binarize,
    rounds.rounds,
    runs.plan,
    runs.verify,
    runs.report,
    runs.push,
    analysis.pairs,
    analysis.cards,
    evaluation.score,
    data.lineage,
    chat.chat,
    data.world,
]
EVAL_COMMANDS: list[Callable[..., int | None]] = [
    evaluation.win_rate,
    evaluation.mt_bench,
    evaluation.alpaca_eval,
    benchmarks.arena_hard,
    benchmarks.ifeval,
    benchmarks.best_of_n,
    evaluation.academic,
]
EVAL = "Measure models: MT-Bench, AlpacaEval, Arena-Hard, IFEval, best of n, academic tasks."


def make_app() -> typer.Typer:
    """All commands, in the order of `zephyr --help`."""
    app = typer.Typer(context_settings=SETTINGS, rich_markup_mode=None)
    app.callback()(options_of_all)
    for function in COMMANDS:
        add_command(app, function)
    tasks = typer.Typer(context_settings=SETTINGS, rich_markup_mode=None)
    for function in EVAL_COMMANDS:
        add_command(tasks, function)
    app.add_typer(tasks, name="eval", help=EVAL)
    return app


def show_version(asked: bool) -> None:
    if asked:
        print(f"zephyr {zephyr.__version__}")
        raise typer.Exit


def options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """The Zephyr recipe: distilled SFT, AI feedback, distilled DPO (arXiv:2310.16944).

    \b
    The recipe, in order:
      zephyr self-instruct, prepare    dialogues for dSFT
      train_sft.py CONFIG.yaml         dSFT
      zephyr feedback, binarize        preference pairs for dDPO
      train_dpo.py CONFIG.yaml         dDPO
      zephyr rounds CONFIG.yaml        dDPO on the policy's own answers, in rounds
      zephyr eval                      benchmarks
      zephyr push RUN REPO_ID          the model on the Hub
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns: the exit code: 0; 1 if `verify` found a difference; 2 for bad input, which is printed
    in one line.

    Raises: SystemExit after --help and --version, and with 75 if a budget ended a command that
    continues when it is run again with a larger one."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except BadInput as error:
        message = str(error)
    except typer.TyperException as error:
        message = str(BadInput(usage_error(error)))  # one line, without secrets
    print(f"error: {message}", file=sys.stderr)
    return 2


def run(arguments: Sequence[str]) -> int:
    """As `main`, but raises BadInput, and typer.TyperException for a line that is no command."""
    command = typer.main.get_command(make_app())
    if "_ZEPHYR_COMPLETE" in os.environ:  # the shell asks for completions
        command.main(list(arguments), prog_name="zephyr")
    try:
        with command.make_context("zephyr", list(arguments)) as context:
            code = command.invoke(context)
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from None
    return code if isinstance(code, int) else 0


def usage_error(error: typer.TyperException) -> str:
    """What is wrong with a command line, and the command whose --help shows what is right."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "zephyr"
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    if message.endswith("?"):
        return f"{message} See {path} --help"
    return f"{message}; see {path} --help"
