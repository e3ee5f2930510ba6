"""The options of every command that asks a teacher, and the ledger and budget that they open."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from zephyr.config import BadInput

if TYPE_CHECKING:  # the commands import what they need when they run, so that --help is fast
    from zephyr.distill.shards import Shard
    from zephyr.teacher import Budget, Reply, Request, Teacher

SPEC = "openai:MODEL@BASE_URL, pool:MODEL@BASE_URL,BASE_URL,..., hf:PATH, or world:NAME[@FOLDER]"
SAVED_AND_STOPPED = 75  # exit code, the same as of a training run that was saved and stopped


def parse_price(text: str) -> str:
    """`MODEL=PROMPT,COMPLETION`, checked. Raises: ValueError."""
    read_price(text)
    return text


def read_price(text: str) -> tuple[str, tuple[float, float]]:
    """`MODEL=PROMPT,COMPLETION` as (model, (prompt, completion)). Raises: ValueError."""
    model, _, prices = text.rpartition("=")
    try:
        prompt, completion = (float(price) for price in prices.split(","))
    except ValueError:
        prompt = completion = -1.0
    if not model or min(prompt, completion) < 0:
        raise ValueError(f"{text!r} is not MODEL=PROMPT,COMPLETION with two prices >= 0")
    return model, (prompt, completion)


def checked_shard(text: str) -> str:
    """`I/N`, checked. Raises: ValueError."""
    from zephyr.distill.shards import parse_shard

    parse_shard(text)
    return text


ShardOption = Annotated[
    str | None,
    Option(
        "--shard",
        metavar="I/N",
        parser=checked_shard,
        help="Do part I of N, counted from 0; `zephyr merge OUT` joins all parts to OUT.",
    ),
]


DryRun = Annotated[
    bool,
    Option("--dry-run", help="Print requests, tokens, cost and time, and ask nobody."),
]


def read_shard(text: str | None) -> Shard | None:
    """The shard of `--shard`, None without it."""
    from zephyr.distill.shards import parse_shard

    return None if text is None else parse_shard(text)


@dataclass(frozen=True)
class Asking:
    """Options of every command that asks a teacher."""

    seed: Annotated[int, Option(help="Seed of every draw and of sampling.")] = 0
    templates: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="NAME.txt files that replace our own prompts and rubrics."),
    ] = None
    ledger: Annotated[
        Path | None,
        Option(metavar="FILE", help="Where replies are kept. Default: OUT with .ledger.jsonl."),
    ] = None
    concurrency: Annotated[
        int,
        Option(metavar="N", min=1, help="Requests to an endpoint, or each of a pool, at a time."),
    ] = 16
    timeout_seconds: Annotated[
        int, Option(metavar="S", min=1, help="Time limit of one request.")
    ] = 120
    tries: Annotated[int, Option(metavar="N", min=1, help="Tries of a request that fails.")] = 7
    key_variable: Annotated[
        str, Option(metavar="NAME", help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY"
    budget_requests: Annotated[
        int | None, Option(metavar="N", help="Stop before more requests, all runs together.")
    ] = None
    budget_tokens: Annotated[
        int | None, Option(metavar="N", help="Stop before more tokens, all runs together.")
    ] = None
    budget_cost: Annotated[
        float | None, Option(metavar="X", help="Stop before more money; requires --price.")
    ] = None
    price: Annotated[
        list[str] | None,
        Option(
            metavar="MODEL=PROMPT,COMPLETION",
            parser=parse_price,
            help="Money per million tokens. Can be repeated.",
        ),
    ] = None

    def open_budget(self, shards: int) -> Budget:
        """The limits of the options; each of several shards has its share of them."""
        from zephyr.teacher import Budget

        requests, tokens, cost = self.budget_requests, self.budget_tokens, self.budget_cost
        return Budget(
            None if requests is None else requests // shards,
            None if tokens is None else tokens // shards,
            None if cost is None else cost / shards,
            self.prices(),
        )

    def prices(self) -> dict[str, tuple[float, float]]:
        """Of `--price`, by model."""
        return dict(read_price(text) for text in self.price or ())

    def open_teacher(self, spec: str) -> Teacher:
        """The teacher of a spec. Raises: BadInput."""
        from zephyr.teacher.spec import open_teacher

        return open_teacher(
            spec,
            concurrency=self.concurrency,
            timeout_seconds=self.timeout_seconds,
            retries=self.tries - 1,
            key_variable=self.key_variable,
        )


Ask = Callable[["Teacher", Sequence["Request"]], "list[Reply]"]
Spent = Callable[[], dict[str, object]]


@contextlib.contextmanager
def open_ask(
    asking: Asking, out: Path, shard: Shard | None = None, *, together: bool = False
) -> Iterator[tuple[Ask, Spent]]:
    """`ask(teacher, requests)` with the ledger and the budget of the options, and `spent()`, the
    report's entries about both. The ledger is OUT.ledger.jsonl by default.

    Args:
        shard: of OUT. It has a ledger of its own and its share of the budget, and pays for no reply
            that the ledger of OUT holds, or one of another number of shards.
        together: all shards make the same requests at the same time, and divide them.
    Raises:
        SystemExit: with code 75 when the budget is spent, or another shard does not answer; the
            same command goes on from there.
    """
    from zephyr.teacher import BudgetSpent, Ledger, ask
    from zephyr.teacher.shares import ShardsAway, Shares, open_existing, reusing

    budget = asking.open_budget(1 if shard is None else shard.of)
    path, paid, shares = shard_files(asking, out, shard)
    known = open_existing(paid)
    ask_one = Shares(shard.number, shares).ask if shard and together else ask
    with Ledger(path) as ledger:

        def ask_known(teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
            return ask_one(reusing(teacher, known), requests, ledger, budget)

        def spent() -> dict[str, object]:
            return {"ledger": os.path.relpath(path, out.parent), "spent": ledger.held._asdict()}

        try:
            yield ask_known, spent
        except (BudgetSpent, ShardsAway) as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            raise SystemExit(SAVED_AND_STOPPED) from None


def shard_files(
    asking: Asking, out: Path, shard: Shard | None
) -> tuple[Path, list[Path], list[Path]]:
    """The ledger to write, ledgers of replies that are paid for, and those of all shards.

    Raises: BadInput for a ledger that all shards would write."""
    if shard is None:
        return asking.ledger or out.with_suffix(".ledger.jsonl"), [], []
    from zephyr.distill.shards import other_ledgers, shard_ledgers

    if asking.ledger is not None:
        raise BadInput(
            f"--ledger {asking.ledger}: with --shard each shard has a ledger beside OUT, expected "
            "no --ledger"
        )
    ledgers = shard_ledgers(out, shard.of)
    return ledgers[shard.number], other_ledgers(out, shard), ledgers
