"""The commands of the recipe's first half: a teacher's rows, clean rows, feedback, pairs, and the
story of each pair."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from zephyr.teacher import Budget, BudgetSpent, Ledger, Reply, Request, Teacher, ask
from zephyr.training.ranks import rank

Ask = Callable[[Teacher, Sequence[Request]], list[Reply]]


@contextlib.contextmanager
def open_ask(options: argparse.Namespace) -> Iterator[tuple[Ask, Callable[[], dict[str, object]]]]:
    """`ask(teacher, requests)` with the ledger and the budget of the options, and what the report
    says of both.

    Raises: SystemExit with code 75 where the budget is spent."""
    budget = Budget(
        options.budget_requests, options.budget_tokens, options.budget_cost, dict(options.price)
    )
    path = options.ledger or options.out.with_suffix(".ledger.jsonl")
    with Ledger(path) as ledger:
        try:
            yield (
                lambda teacher, requests: ask(teacher, requests, ledger, budget),
                lambda: {
                    "ledger": os.path.relpath(path, options.out.parent),
                    "spent": ledger.held._asdict(),
                },
            )
        except BudgetSpent as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            raise SystemExit(75) from None  # as a training run that was saved and stopped


def teacher_opener(options: argparse.Namespace) -> Callable[[str], Teacher]:
    """What opens the teacher of a spec, as the options ask for."""
    from zephyr.teacher.spec import open_teacher

    return partial(
        open_teacher,
        concurrency=options.concurrency,
        timeout_seconds=options.timeout_seconds,
        retries=options.tries - 1,
        key_variable=options.key_variable,
    )


def write_summary(out: Path, report: Mapping[str, object], summary: str) -> None:
    """Write the report beside the output and say a line."""
    from zephyr.data.jsonl import save_report

    if rank() == 0:
        save_report(out, report)
        print(f"{out}: {summary}")


def run_self_instruct(options: argparse.Namespace) -> None:
    from zephyr.distill.self_instruct import self_instruct

    teacher = teacher_opener(options)(options.teacher)
    with open_ask(options) as (ask, spent):
        report = self_instruct(
            options.seeds,
            options.out,
            partial(ask, teacher),
            n=options.n,
            seed=options.seed,
            variant=options.variant,
            turns=options.turns,
            templates=options.templates,
            instances=options.instances,
            largest_rouge_l=options.largest_rouge_l,
        )
        write_summary(
            options.out,
            {"command": "self-instruct", "teacher": teacher.name, **report, **spent()},
            f"{report['rows']} rows in {report['rounds']} rounds",
        )


def run_prepare(options: argparse.Namespace) -> None:
    from zephyr.distill.prepare import PrepareSettings, prepare

    settings = PrepareSettings(
        truecase=not options.no_truecase,
        drop_refusals=not options.keep_refusals,
        near_duplicates=options.near_duplicates or None,
        decontaminate=tuple(options.decontaminate),
        ngram=options.ngram,
        language=options.language,
        min_words=options.min_words,
        max_words=options.max_words,
        min_turns=options.min_turns,
        max_turns=options.max_turns,
        held_out=tuple(options.held_out),
        on_bad_row=options.on_bad_row,
        workers=options.workers,
    )
    report = prepare(options.sources, options.out, settings)
    removed = {name: of["rows"] for name, of in report["removed"].items() if of["rows"]}
    print(
        f"{options.out}: {report['rows_kept']} of {report['rows_read']} rows; left out: {removed or 'none'}"
    )


def run_feedback(options: argparse.Namespace) -> None:
    from zephyr.distill.feedback import collect_feedback

    *answerers, judge = map(teacher_opener(options), (*options.answerers, options.judge))
    with open_ask(options) as (ask, spent):
        report = collect_feedback(
            options.prompts,
            options.out,
            answerers,
            judge,
            ask,
            per_prompt=options.per_prompt,
            seed=options.seed,
            principles=not options.no_principles,
            max_tokens=options.max_new_tokens,
            templates=options.templates,
        )
        print_unread_keys(report)
        write_summary(
            options.out,
            report | spent(),
            f"{report['rows']} prompts, each answered by {options.per_prompt} and judged by {judge.name}; "
            f"{report.get('unparsed', 0)} judgements could not be read",
        )


def print_unread_keys(report: Mapping[str, object]) -> None:
    if unread := report["keys_not_read"]:
        told = ", ".join(f"{key} ({rows:,} rows)" for key, rows in unread.items())
        print(
            f"keys not read: {told}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr
        )


def run_binarize(options: argparse.Namespace) -> None:
    from zephyr.distill.binarize import binarize

    report = binarize(
        options.sources,
        options.out,
        rule=options.rule,
        seed=options.seed,
        drop_sources=tuple(options.drop_source),
        fix_overall=options.fix_overall,
    )
    for line in report["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print_unread_keys(report)
    print(
        f"{options.out}: {report['pairs']} pairs of {report['rows']} rows; left out: {report['dropped'] or 'none'}"
    )


def run_lineage(options: argparse.Namespace) -> None:
    from zephyr.distill.lineage import trace_pair

    for line in trace_pair(options.id, options.pairs, options.run, whole=options.whole):
        print(line)
