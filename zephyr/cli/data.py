"""The commands of the recipe's first half: a teacher's rows, clean rows, feedback, pairs, and the story of each pair."""
import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr.cli.command import Commands, command

if TYPE_CHECKING:
    from zephyr.teacher import Reply, Request, Teacher

SPEC = "openai:MODEL@BASE_URL, hf:PATH, or world:NAME[@FOLDER]"
Ask = Callable[["Teacher", Sequence["Request"]], list["Reply"]]


def add_teacher_options(parser: argparse.ArgumentParser) -> None:
    """What every command takes that asks a teacher."""
    parser.add_argument("--seed", type=int, default=0, help="of every draw and of sampling (default 0)")
    parser.add_argument("--templates", type=Path, metavar="FOLDER", help="NAME.txt files in the place of our own prompts and rubrics")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="where replies are kept (default: OUT with .ledger.jsonl)")
    parser.add_argument("--concurrency", type=count, default=16, metavar="N", help="requests at a time to an endpoint (default 16)")
    parser.add_argument("--timeout-seconds", type=count, default=120, metavar="S", help="of one request (default 120)")
    parser.add_argument("--tries", type=count, default=7, metavar="N", help="of a request that fails (default 7)")
    parser.add_argument("--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable that holds the key")
    parser.add_argument("--budget-requests", type=int, metavar="N", help="stop before more requests than these, all runs together")
    parser.add_argument("--budget-tokens", type=int, metavar="N", help="stop before more tokens")
    parser.add_argument("--budget-cost", type=float, metavar="X", help="stop before more money; wants --price")
    parser.add_argument("--price", action="append", default=[], type=price, metavar="MODEL=PROMPT,COMPLETION",
                        help="money per million tokens; repeat it")


def count(text: str) -> int:
    """A whole number from 1."""
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def price(text: str) -> tuple[str, tuple[float, float]]:
    """`MODEL=PROMPT,COMPLETION` as its parts."""
    model, _, both = text.rpartition("=")
    prompt, completion = (float(part) for part in both.split(","))
    if not model or min(prompt, completion) < 0:
        raise ValueError(text)
    return model, (prompt, completion)


@contextlib.contextmanager
def asking(options: argparse.Namespace) -> Iterator[tuple[Ask, Callable[[], dict[str, object]]]]:
    """`ask(teacher, requests)` with the ledger and the budget of the options, and what the report says of both.

    Raises: SystemExit with code 75 where the budget is spent."""
    from zephyr.teacher import Budget, BudgetSpent, Ledger, ask
    budget = Budget(options.budget_requests, options.budget_tokens, options.budget_cost, dict(options.price))
    path = options.ledger or options.out.with_suffix(".ledger.jsonl")
    with Ledger(path) as ledger:
        try:
            yield (lambda teacher, requests: ask(teacher, requests, ledger, budget),
                   lambda: {"ledger": os.path.relpath(path, options.out.parent), "spent": ledger.held._asdict()})
        except BudgetSpent as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            raise SystemExit(75) from None     # as a training run that was saved and stopped


def teachers(options: argparse.Namespace, specs: Sequence[str]) -> list["Teacher"]:
    """The teachers of the specs."""
    from zephyr.data.teachers import open_teacher
    return [open_teacher(spec, concurrency=options.concurrency, timeout_seconds=options.timeout_seconds, retries=options.tries - 1,
                         key_variable=options.key_variable) for spec in specs]


def finish(out: Path, report: Mapping[str, object], summary: str) -> None:
    """Write the report beside the output and say a line."""
    from zephyr.data.jsonl import write_report
    from zephyr.teacher.ranks import rank
    if rank() == 0:
        write_report(out, report)
        print(f"{out}: {summary}")


def add_self_instruct(commands: Commands) -> None:
    parser = command(commands, run_self_instruct, "let a teacher write instructions with answers, or dialogues, from seed tasks",
                     "zephyr self-instruct --seeds seeds.jsonl --n 1000 --teacher openai:gpt-4o@https://api.openai.com/v1 --out rows.jsonl")
    parser.add_argument("--seeds", type=Path, required=True, metavar="FILE", help="seed tasks; for dialogues rows with a topic")
    parser.add_argument("--n", type=count, required=True, help="rows wanted")
    parser.add_argument("--teacher", required=True, metavar="SPEC", help=SPEC)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="rows of `messages` with their lineage (.jsonl)")
    parser.add_argument("--variant", default="self-instruct", choices=("self-instruct", "alpaca", "dialogue"),
                        help="instructions, then instances; both at once; or UltraChat's dialogues (default self-instruct)")
    parser.add_argument("--turns", type=count, default=3, help="user turns of a dialogue (default 3)")
    parser.add_argument("--instances", type=count, default=1, help="rows of one instruction, at most (default 1)")
    parser.add_argument("--largest-rouge-l", type=float, default=0.7, metavar="X",
                        help="an instruction nearer than this to a kept one is left out (default 0.7; 1: only equal ones)")
    add_teacher_options(parser)


def run_self_instruct(options: argparse.Namespace) -> None:
    from zephyr.data.self_instruct import self_instruct
    (teacher,) = teachers(options, [options.teacher])
    with asking(options) as (ask, spent):
        report = self_instruct(options.seeds, options.out, partial(ask, teacher), n=options.n, seed=options.seed, variant=options.variant,
                               turns=options.turns, templates=options.templates, instances=options.instances,
                               largest_rouge_l=options.largest_rouge_l)
        finish(options.out, {"command": "self-instruct", "teacher": teacher.name, **report, **spent()},
               f"{report['rows']} rows in {report['rounds']} rounds")


def add_prepare(commands: Commands) -> None:
    parser = command(commands, run_prepare, "clean dialogues: case, refusals, duplicates, benchmark prompts, language, length",
                     "zephyr prepare HuggingFaceH4/ultrachat_200k:train_sft --decontaminate mt_bench.jsonl --out clean.jsonl")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="path-or-hub-id[:split] of SFT rows")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="rows of the training split; others beside it, by split")
    parser.add_argument("--no-truecase", action="store_true", help="leave the case of letters alone")
    parser.add_argument("--keep-refusals", action="store_true", help="keep refusals to things that are not personal")
    parser.add_argument("--near-duplicates", type=float, default=0.8, metavar="X",
                        help="Jaccard similarity of word 5-grams that makes a near duplicate (default 0.8; 0: none is looked for)")
    parser.add_argument("--decontaminate", action="append", default=[], metavar="FILE", help="benchmark prompts to keep out; repeat it")
    parser.add_argument("--ngram", type=count, default=13, help="words in common with a benchmark prompt (default 13)")
    parser.add_argument("--language", metavar="CODE", help="keep dialogues in this language alone, as en")
    for limit in ("min-words", "max-words", "min-turns", "max-turns"):
        parser.add_argument(f"--{limit}", type=int, metavar="N", help="of a dialogue")
    parser.add_argument("--held-out", action="append", default=[], metavar="FILE", help="rows that must never be trained on; repeat it")
    parser.add_argument("--on-bad-row", default="error", choices=("error", "skip"), help="skip: count it and go on (default error)")
    parser.add_argument("--workers", type=count, default=1, help="processes (default 1); the result does not depend on it")


def run_prepare(options: argparse.Namespace) -> None:
    from zephyr.data.prepare import PrepareSettings, prepare
    settings = PrepareSettings(
        truecase=not options.no_truecase, drop_refusals=not options.keep_refusals, near_duplicates=options.near_duplicates or None,
        decontaminate=tuple(options.decontaminate), ngram=options.ngram, language=options.language, min_words=options.min_words,
        max_words=options.max_words, min_turns=options.min_turns, max_turns=options.max_turns, held_out=tuple(options.held_out),
        on_bad_row=options.on_bad_row, workers=options.workers)
    report = prepare(options.sources, options.out, settings)
    removed = {name: of["rows"] for name, of in report["removed"].items() if of["rows"]}
    print(f"{options.out}: {report['rows_kept']} of {report['rows_read']} rows; left out: {removed or 'none'}")


def add_feedback(commands: Commands) -> None:
    parser = command(commands, run_feedback, "let answerers answer prompts, and a judge score every answer",
                     "zephyr feedback prompts.jsonl --answerers hf:runs/a,hf:runs/b,hf:runs/c,hf:runs/d "
                     "--judge openai:gpt-4o@https://api.openai.com/v1 --out feedback.jsonl")
    parser.add_argument("prompts", nargs="+", metavar="PROMPTS", help="path-or-hub-id[:split] of rows with a prompt")
    parser.add_argument("--answerers", required=True, metavar="SPEC,SPEC,...", type=lambda text: text.split(","), help=SPEC)
    parser.add_argument("--judge", required=True, metavar="SPEC", help=SPEC)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="feedback rows (.jsonl)")
    parser.add_argument("--per-prompt", type=int, default=4, help="answerers of a prompt, drawn from all (default 4)")
    parser.add_argument("--no-principles", action="store_true", help="ask without a principle in the system turn")
    parser.add_argument("--max-new-tokens", type=count, default=1024, help="of an answer or a judgement (default 1024)")
    add_teacher_options(parser)


def run_feedback(options: argparse.Namespace) -> None:
    from zephyr.data.feedback import collect_feedback
    answerers, (judge,) = teachers(options, options.answerers), teachers(options, [options.judge])
    with asking(options) as (ask, spent):
        report = collect_feedback(options.prompts, options.out, answerers, judge, ask, per_prompt=options.per_prompt, seed=options.seed,
                                  principles=not options.no_principles, max_tokens=options.max_new_tokens, templates=options.templates)
        finish(options.out, report | spent(), f"{report['rows']} prompts, each answered by {options.per_prompt} and judged by {judge.name}; "
               f"{report.get('unparsed', 0)} judgements could not be read")


def add_binarize(commands: Commands) -> None:
    parser = command(commands, run_binarize, "turn feedback, or pairwise preferences, into pairs",
                     "zephyr binarize feedback.jsonl --rule paper --seed 42 --out pairs.jsonl")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="path-or-hub-id[:split] of feedback or pairwise rows")
    parser.add_argument("--rule", default="paper", help="paper, handbook, argilla, best-vs-worst or margin>=K (default paper)")
    parser.add_argument("--seed", type=int, default=42, help="of the random other answer (default 42)")
    parser.add_argument("--drop-source", action="append", default=[], metavar="NAME", help="as truthful_qa: leave its rows out; repeat it")
    parser.add_argument("--fix-overall", action="store_true", help="mend UltraFeedback's overall scores of 10 that should be 1")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="pair rows (.jsonl)")


def run_binarize(options: argparse.Namespace) -> None:
    from zephyr.data.binarize import binarize
    report = binarize(options.sources, options.out, rule=options.rule, seed=options.seed,
                      drop_sources=tuple(options.drop_source), fix_overall=options.fix_overall)
    for line in report["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{options.out}: {report['pairs']} pairs of {report['rows']} rows; left out: {report['dropped'] or 'none'}")


def add_lineage(commands: Commands) -> None:
    parser = command(commands, run_lineage, "tell where a pair comes from, and which steps were trained on it",
                     "zephyr lineage 6f1c0b --run runs/dpo")
    parser.add_argument("id", help="of the pair, or of its prompt")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="the pairs (default: what --run was trained on)")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a run folder: its steps are told too")
    parser.add_argument("--whole", action="store_true", help="do not cut long texts")


def run_lineage(options: argparse.Namespace) -> None:
    from zephyr.data.lineage import story
    for line in story(options.id, options.pairs, options.run, whole=options.whole):
        print(line)
