"""Seed tasks become SFT rows that a teacher wrote: tasks with their answers, or dialogues; each row
knows the calls it came from.

`self-instruct` is Wang et al. 2022 (arXiv:2212.10560), `alpaca` Taori et al. 2023, `dialogue` the
way of UltraChat (arXiv:2305.14233). All is a function of seeds, `seed` and replies: a killed run is
resumed by the same call, which asks the same, and a run with a larger `n` begins with the rows of
the smaller one. An embedded teacher reads `Request.about`: always `task` and `seed` (the
request's), and by `task`

    instructions  `demonstrations` (texts), `count`    ->  lines "9. ..."
    classify      `instruction`                        ->  Yes or No
    instances     `instruction`, `is_classification`   ->  "Input: ...", "Output: ..."; of a classification "Class label: ...", "Input: ..."
    alpaca        `demonstrations` (texts), `count`    ->  "###", "4. Instruction: ...", "4. Input: ..." (or <noinput>), "4. Output: ..."
    opening       `topic`                              ->  the user's first words
    user_turn     `topic`, `said` (the turns so far)   ->  the user's next words
    answer        `topic`, `said` (the turns so far)   ->  the assistant's words"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, require_output, write_rows
from zephyr.data.rows import row_id
from zephyr.data.sources import open_sources
from zephyr.distill.task_pool import HALF_CHARACTER, GenerationRun, Task, generate_tasks
from zephyr.distill.tasks import (
    ask_instructions,
    ask_opening,
    ask_tasks,
    finish_tasks,
    parse_blocks,
    parse_numbered,
    parse_turn,
    write_dialogues,
    write_instances,
)
from zephyr.teacher import Reply, Request
from zephyr.teacher.templates import digests, load_templates

TOPIC = ("topic", "text", "prompt", "instruction")  # of a seed for dialogues: the first that it has
VARIANTS = {  # a request for instructions, what reads the reply, tasks -> rows, all templates
    "self-instruct": (
        ask_instructions,
        parse_numbered,
        write_instances,
        ("instructions", "classify", "input_first", "output_first"),
    ),
    "alpaca": (ask_tasks, parse_blocks, finish_tasks, ("alpaca",)),
    "dialogue": (ask_opening, parse_turn, write_dialogues, ("opening", "user_turn")),
}


def self_instruct(
    seeds: Path,
    out: Path,
    ask: Callable[[Sequence[Request]], list[Reply]],
    *,
    n: int,
    seed: int,
    variant: str,
    turns: int = 3,
    templates: Path | None = None,
    instances: int = 1,
    batch: int = 8,
    patience: int = 20,
    largest_rouge_l: float = 0.7,
) -> dict[str, object]:
    """Writes `n` rows to `out`; returns the report, whose `counts` go by stage and name: of
    instructions, and of instances, `parsed` is the sum of the filters and `kept`.

    Args: seeds: tasks in the shape of Self-Instruct or Alpaca; for `dialogue` rows with a topic. ask: requests -> replies in their order;
        the same reply to the same request. turns: the user's in a dialogue. templates: a folder of the user's. instances: of one
        instruction, at most. batch: requests of a round. patience: rounds in a row without a new row that end it before `n` is reached.
        largest_rouge_l: of an instruction to one that was kept.
    Raises: BadInput for a bad seed, template or number, and if not one row could be made; what `ask` raises."""
    if variant not in VARIANTS:
        raise BadInput(f"variant {variant!r}: one of {', '.join(VARIANTS)} is wanted")
    for name, value in {
        "n": n,
        "turns": turns,
        "instances": instances,
        "batch": batch,
        "patience": patience,
    }.items():
        if value < 1:
            raise BadInput(f"{name}: a whole number from 1 is wanted, got {value}")
    question, parse, finish, names = VARIANTS[variant]
    require_output(out, [seeds])
    tasks, seed_digests = read_seeds(seeds, variant == "dialogue")
    texts = load_templates(names, templates)
    job = GenerationRun(ask, tasks, texts, variant, seed, turns, instances, largest_rouge_l)
    for task in tasks:
        job.mark_seen(task)
    rows: list[dict[str, object]] = []
    rounds = idle = 0
    while len(rows) < n and idle < patience:
        before, pending = (
            len(rows),
            generate_tasks(
                job, [question(job, i) for i in range(rounds * batch, (rounds + 1) * batch)], parse
            ),
        )
        while pending and len(rows) < n:  # no more are finished than are missing
            now, pending = pending[: n - len(rows)], pending[n - len(rows) :]
            rows += finish(job, now)
        job.count("instructions", "unused", len(pending))
        rounds, idle = rounds + 1, idle + 1 if len(rows) == before else 0
    if not rows:
        raise BadInput(
            f"no row could be made of {seeds} in {rounds} rounds: {json.dumps(job.counts)}"
        )
    return {
        "rows": write_rows(out, rows[:n]),
        "wanted": n,
        "variant": variant,
        "seed": seed,
        "rounds": rounds,
        "turns": turns,
        "instances": instances,
        "sources": [str(seeds)],
        "digests": seed_digests,
        "templates": digests(texts),
        "largest_rouge_l": largest_rouge_l,
        "counts": job.counts,
    }


def read_seeds(path: Path, dialogue: bool) -> tuple[list[Task], dict[str, str]]:
    """The seeds of a file, and its digest. Raises: BadInput with file and line."""
    tasks: dict[str, Task] = {}
    for number, (place, seed) in enumerate(read_rows([path]), start=1):
        try:
            task = read_seed(seed, f"seed-{number}", dialogue)
            if task.id in tasks:
                raise ValueError(f"`id` {task.id!r} comes twice")
        except ValueError as error:
            raise BadInput(f"{place}: {error}") from None
        tasks[task.id] = task
    return list(tasks.values()), {
        source.name: source.digest for source in open_sources([str(path)])
    }


def read_seed(seed: Mapping[str, object], name: str, dialogue: bool) -> Task:
    """A seed from its row. Raises: ValueError naming the field."""
    if dialogue:
        return Task(
            row_id(seed, name),
            text_field(seed, next((field for field in TOPIC if field in seed), "topic")),
        )
    given, label = seed.get("instances", [seed]), seed.get("is_classification")
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(one, Mapping) for one in given)
    ):
        raise ValueError(
            f"`instances` is {given!r:.60}, wanted a list of objects with input and output"
        )
    if not isinstance(label, (bool, type(None))):
        raise ValueError(f"`is_classification` is {label!r:.60}, wanted true or false")
    pairs = tuple(
        (text_field({"input": "", **one}, "input", empty=True), text_field(one, "output"))
        for one in given
    )
    return Task(row_id(seed, name), text_field(seed, "instruction"), pairs, label)


def text_field(row: Mapping[str, object], field: str, empty: bool = False) -> str:
    """A text field, white space around it cut. Raises: ValueError for none, or half a character."""
    text = row.get(field)
    if not isinstance(text, str) or not (empty or text.strip()) or HALF_CHARACTER.search(text):
        raise ValueError(
            f"`{field}` is {text!r:.60}, wanted a text{'' if empty else ' that is not empty'}"
        )
    return text.strip()
