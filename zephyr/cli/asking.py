"""The options of every command that asks a teacher, and the ledger and budget that they open."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

if TYPE_CHECKING:  # the commands import what they need when they run, so that --help is fast
    from zephyr.teacher import Reply, Request, Teacher

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
def open_ask(asking: Asking, out: Path) -> Iterator[tuple[Ask, Spent]]:
    """`ask(teacher, requests)` with the ledger and the budget of the options, and `spent()`, the
    report's entries about both. The ledger is OUT.ledger.jsonl by default.

    Raises: SystemExit with code 75 when the budget is spent: the same command goes on with a larger
    one."""
    from zephyr.teacher import Budget, BudgetSpent, Ledger, ask

    budget = Budget(
        asking.budget_requests,
        asking.budget_tokens,
        asking.budget_cost,
        dict(read_price(text) for text in asking.price or ()),
    )
    path = asking.ledger or out.with_suffix(".ledger.jsonl")
    with Ledger(path) as ledger:

        def spent() -> dict[str, object]:
            return {"ledger": os.path.relpath(path, out.parent), "spent": ledger.held._asdict()}

        try:
            yield partial(ask, ledger=ledger, budget=budget), spent
        except BudgetSpent as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            raise SystemExit(SAVED_AND_STOPPED) from None
