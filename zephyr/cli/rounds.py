"""`zephyr rounds`: a policy trains on its own answers, in rounds."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Argument, Option

from zephyr.cli.asking import SAVED_AND_STOPPED


def rounds(
    target: Annotated[
        str,
        Argument(metavar="CONFIG", help="The YAML file of the rounds (zephyr/rounds/README.md)."),
    ],
    overrides: Annotated[
        list[str] | None,
        Argument(metavar="KEY.SUB=VALUE", help="Overrides of its keys, anywhere on the line."),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what the rounds will cost, and exit.")
    ] = False,
) -> None:
    """Train a policy on its own answers, in rounds.

    In each round the policy answers prompts, its answers are scored, pairs of them are chosen, and
    DPO trains on the pairs. What a killed run has finished is not done again.

    \b
    example: zephyr rounds configs/tiny/rounds.yaml rounds=3 pairs.choose=best_worst --dry-run
    """
    from zephyr.cli.runs import config_and_overrides
    from zephyr.rounds.config import load_rounds
    from zephyr.rounds.loop import describe, run_rounds
    from zephyr.rounds.processes import Stopped
    from zephyr.teacher import BudgetSpent

    path, changes = config_and_overrides([target, *(overrides or ())])
    config = load_rounds(str(path), changes)
    if dry_run:
        print("\n".join(describe(config)))
        return
    try:
        records = run_rounds(config)
    except (Stopped, BudgetSpent) as stop:
        why = str(stop) or "by a signal; the same command continues"
        print(f"stopped: {why}", file=sys.stderr)
        raise SystemExit(SAVED_AND_STOPPED) from None
    model = f"{config.dir}/round-{config.rounds}/{config.method}/model"
    print(f"{config.dir}/report.html: {len(records)} rounds; the last model is {model}")
