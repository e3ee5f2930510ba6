"""`zephyr feedback` as a Ray Data job: prompts are answered by one pool of actors and judged by
another, and the result is that of the command, to the byte.

    pip install 'ray[data]'
    python configs/cluster/ray_feedback.py prompts.jsonl --out /shared/feedback.jsonl --actors 8 \\
        --answerers pool:A@URL,URL,pool:B@URL,URL --per-prompt 2 --judge pool:J@URL,URL

Ray spreads the prompts, starts the actors, and starts an actor that died again. Every reply is at
once in a ledger of its actor beside OUT, a folder that all machines see. So a job that is started
again, or a batch that Ray tries again, asks only for what is missing. At the end the ledgers are
merged as those of shards are. `zephyr feedback --dry-run` tells the costs before; this job has no
budget."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import ray.data

from zephyr.data.jsonl import require_output, save_report
from zephyr.distill.feedback import (
    AnsweredPrompt,
    FeedbackRun,
    collect_answers,
    collect_feedback,
    load_feedback_templates,
    rows_of_answers,
)
from zephyr.distill.merge import merge_replies
from zephyr.teacher import Budget, Ledger, Reply, Request, Teacher, ask
from zephyr.teacher.panel import Panel
from zephyr.teacher.prompts import read_prompts
from zephyr.teacher.shares import open_existing, reusing
from zephyr.teacher.spec import open_teacher, split_specs

if TYPE_CHECKING:
    import numpy as np

    Batch = dict[str, np.ndarray | list[str]]


class Actor:
    """A process with a ledger and teachers of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        name = ray.get_runtime_context().get_actor_id()
        own = options.out.with_name(f"{options.out.stem}.ray-{name}.ledger.jsonl")
        self.known = open_existing([path for path in ledgers_of(options.out) if path != own])
        self.ledger = Ledger(own)
        answerers, judge = open_teachers(options)
        texts = load_feedback_templates(None)
        panel = None
        if judge is not None:
            panel = Panel(judge, self.ask, texts, options.seed, options.max_new_tokens)
        self.run = FeedbackRun(
            answerers,
            self.ask,
            panel,
            texts,
            options.seed,
            options.max_new_tokens,
            options.per_prompt,
            not options.no_principles,
        )

    def ask(self, teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
        """Ask what no ledger held when this actor started."""
        return ask(reusing(teacher, self.known), requests, self.ledger, Budget())


class Answer(Actor):
    """Prompts become prompts with their answers, as lines of JSON."""

    def __call__(self, batch: "Batch") -> "Batch":
        prompts = [json.loads(line) for line in batch["line"]]
        return {"line": [json.dumps(prompt) for prompt in collect_answers(self.run, prompts)]}


class Judge(Actor):
    """Prompts with their answers become feedback rows, as lines of JSON."""

    def __call__(self, batch: "Batch") -> "Batch":
        answered = [AnsweredPrompt(*json.loads(line)) for line in batch["line"]]
        return {"line": [json.dumps(row) for row in rows_of_answers(self.run, answered)]}


def open_teachers(options: argparse.Namespace) -> tuple[list[Teacher], Teacher | None]:
    """The answerers and the judge."""
    answerers = [
        open_teacher(spec, concurrency=options.concurrency)
        for spec in split_specs(options.answerers)
    ]
    if options.judge is None:
        return answerers, None
    return answerers, open_teacher(options.judge, concurrency=options.concurrency)


def ledgers_of(out: Path) -> list[Path]:
    """The ledgers of earlier and present actors of OUT, and its own."""
    found = sorted(out.parent.glob(f"{out.stem}.ray-*.ledger.jsonl"))
    return [path for path in (out.with_suffix(".ledger.jsonl"), *found) if path.is_file()]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", nargs="+", help="path-or-hub-id[:split] of rows with a prompt")
    parser.add_argument("--answerers", required=True, help="SPEC,SPEC,... as of zephyr feedback")
    parser.add_argument("--judge", help="SPEC; default: nobody")
    parser.add_argument("--out", required=True, type=Path, help="feedback rows (.jsonl)")
    parser.add_argument("--per-prompt", type=int, default=4, help="answerers of a prompt")
    parser.add_argument("--no-principles", action="store_true")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actors", type=int, default=2, help="that answer, and as many that judge")
    parser.add_argument("--gpus", type=float, default=0, help="of an actor, for hf: models")
    parser.add_argument("--batch", type=int, default=64, help="prompts at a time of an actor")
    parser.add_argument("--concurrency", type=int, default=16, help="requests of an actor")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    options.out = options.out.resolve()
    require_output(options.out, options.prompts)
    prompts = [{"line": json.dumps(row)} for row in read_prompts(options.prompts)]
    # A fraction of a CPU: an actor mostly waits for its servers.
    of_actor = {
        "fn_constructor_args": (options,),
        "batch_size": options.batch,
        "compute": ray.data.ActorPoolStrategy(size=options.actors),
        "num_cpus": 0.25,
        "num_gpus": options.gpus,
    }
    rows = ray.data.from_items(prompts, override_num_blocks=-(-len(prompts) // options.batch))
    count = rows.map_batches(Answer, **of_actor).map_batches(Judge, **of_actor).count()
    answerers, judge = open_teachers(options)
    report = merge_replies(
        options.out,
        ledgers_of(options.out),
        lambda ask: collect_feedback(
            options.prompts,
            options.out,
            answerers,
            judge,
            ask,
            per_prompt=options.per_prompt,
            seed=options.seed,
            principles=not options.no_principles,
            max_tokens=options.max_new_tokens,
        ),
    )
    assert report["rows"] == count, "the merge makes the rows that the actors made"
    save_report(options.out, report)
    print(f"{options.out}: {count} rows, {json.dumps(report['spent'])} spent")


if __name__ == "__main__":
    main()
