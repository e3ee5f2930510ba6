"""Seed tasks become SFT rows that a teacher wrote: tasks with their outputs, or dialogues. Each row
names the requests that it depends on.

Variants: `self-instruct` (Wang et al. 2022, arXiv:2212.10560), `alpaca` (Taori et al. 2023) and
`dialogue` (UltraChat, Ding et al. 2023, arXiv:2305.14233). The rows are a function of the seeds,
`seed` and the replies. A killed run is continued by the same call, which makes the same requests; a
run with a larger `n` begins with the rows of the smaller one.

An embedded teacher reads `Request.about`. It always has `task` and `seed` (of the request), and
by `task`

    instructions  `demonstrations` (texts), `count`   ->  lines "9. ..."
    classify      `instruction`                       ->  Yes or No
    instances     `instruction`, `is_classification`  ->  "Input: ...", "Output: ...";
                                     of a classification  "Class label: ...", "Input: ..."
    alpaca        `demonstrations` (texts), `count`   ->  "###", "4. Instruction: ...",
                             "4. Input: ..." (or <noinput>), "4. Output: ..."
    opening       `topic`                             ->  the user's first words
    user_turn     `topic`, `said` (the turns so far)  ->  the user's next words
    answer        `topic`, `said` (the turns so far)  ->  the assistant's words"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, require_output, write_rows
from zephyr.data.rows import row_id
from zephyr.data.sources import open_sources
from zephyr.distill.shards import Shard, describe_shard
from zephyr.distill.task_pool import (
    LONE_SURROGATE,
    GenerationRun,
    Pieces,
    Question,
    Task,
    generate_tasks,
)
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
from zephyr.progress import Bar
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.templates import digests, load_templates

Rows = list[dict[str, object]]
TOPIC_FIELDS = ("topic", "text", "prompt", "instruction")  # of a dialogue's seed: the first it has


class Variant(NamedTuple):
    """The steps of a variant.

    `ask`: makes the request number i for instructions.
    `parse`: returns the pieces of its reply.
    `finish`: makes rows of the tasks that were kept.
    `templates`: names of the templates that the variant uses.
    """

    ask: Callable[[GenerationRun, int], Question]
    parse: Callable[[str], Pieces]
    finish: Callable[[GenerationRun, Sequence[Task]], Rows]
    templates: tuple[str, ...]


VARIANTS = {
    "self-instruct": Variant(
        ask_instructions,
        parse_numbered,
        write_instances,
        ("instructions", "classify", "input_first", "output_first"),
    ),
    "alpaca": Variant(ask_tasks, parse_blocks, finish_tasks, ("alpaca",)),
    "dialogue": Variant(ask_opening, parse_turn, write_dialogues, ("opening", "user_turn")),
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
    shard: tuple[Shard, Teacher] | None = None,
) -> dict[str, object]:
    """Write up to `n` rows to `out`.

    Args:
        seeds: tasks in the format of Self-Instruct or Alpaca; for `dialogue`, rows with a topic.
        ask: returns replies in the order of the requests. It must return the same reply to the
            same request.
        n: number of rows.
        seed: of all draws and of sampling.
        variant: one of `VARIANTS`.
        turns: user turns of a dialogue.
        templates: a folder of the user's templates.
        instances: largest number of instances of one instruction.
        batch: requests for instructions per round.
        patience: rounds in a row without a new row after which the run ends.
        largest_rouge_l: largest similarity of an instruction to one that was kept before.
        shard: a shard and the teacher, for the report. All shards make all rows: `ask` divides the
            requests (`shares.Shares`).
    Returns:
        The report. Its `counts` are by stage and name. `parsed` is the sum of filters and `kept`.
    Raises:
        BadInput: for a bad seed, template or number, or if no row could be made. What `ask` raises.
    """
    steps = find_variant(variant)
    require_positive(n=n, turns=turns, instances=instances, batch=batch, patience=patience)
    require_output(out, [seeds])
    tasks, seed_digests = read_seeds(seeds, variant == "dialogue")
    texts = load_templates(steps.templates, templates)
    run = GenerationRun(ask, tasks, texts, variant, seed, turns, instances, largest_rouge_l)
    rows, rounds = generate_rows(run, steps, n=n, batch=batch, patience=patience)
    if not rows:
        raise BadInput(
            f"no row could be made of {seeds} in {rounds} rounds: {json.dumps(run.counts)}"
        )
    report = {
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
        "counts": run.counts,
    }
    if shard is not None:
        more = {"n": n, "batch": batch, "patience": patience}
        report["shard"] = shard_entry(*shard, run, seeds, templates, more)
    return report


def shard_entry(
    shard: Shard,
    teacher: Teacher,
    run: GenerationRun,
    seeds: Path,
    templates: Path | None,
    more: Mapping[str, int],
) -> dict[str, object]:
    """What a shard's report says of the call of `self_instruct`, for `merge.merge`."""
    call = {
        "command": "self-instruct",
        "seeds": str(seeds),
        "teacher": [teacher.name, teacher.identity],
        "variant": run.variant,
        "seed": run.seed,
        "turns": run.turns,
        "instances": run.instances,
        "largest_rouge_l": run.largest_rouge_l,
        "templates": None if templates is None else str(templates),
        **more,
    }
    return describe_shard(shard, call, self_instruct_inputs(seeds, run.variant, templates))


def self_instruct_inputs(seeds: Path, variant: str, templates: Path | None) -> dict[str, str]:
    """The digests of what `self_instruct` reads, by name."""
    of_seeds = {source.name: source.digest for source in open_sources([str(seeds)])}
    texts = digests(load_templates(find_variant(variant).templates, templates))
    return {**of_seeds, **{f"template {name}": digest for name, digest in texts.items()}}


def find_variant(name: str) -> Variant:
    """Return the steps of a variant. Raises: BadInput for an unknown one."""
    if name not in VARIANTS:
        raise BadInput(f"variant {name!r}: expected one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def require_positive(**values: int) -> None:
    """Raises: BadInput naming a value below 1."""
    for name, value in values.items():
        if value < 1:
            raise BadInput(f"{name}: expected a whole number from 1, got {value}")


def generate_rows(
    run: GenerationRun, steps: Variant, *, n: int, batch: int, patience: int
) -> tuple[Rows, int]:
    """Generate instructions and their rows in rounds, until there are `n` rows or `patience` rounds
    in a row gave none.

    Returns:
        At least `n` rows if there were enough, and the number of rounds.
    """
    for task in run.seeds:
        run.mark_seen(task)
    rows: Rows = []
    rounds = idle_rounds = 0
    with Bar("self-instruct", n, "rows") as bar:
        while len(rows) < n and idle_rounds < patience:
            num_before = len(rows)
            first = rounds * batch
            questions = [steps.ask(run, number) for number in range(first, first + batch)]
            tasks = generate_tasks(run, questions, steps.parse)
            while tasks and len(rows) < n:  # a task may give no row: then later tasks are used
                missing = n - len(rows)
                rows += steps.finish(run, tasks[:missing])
                tasks = tasks[missing:]
            run.count("instructions", "unused", len(tasks))
            rounds += 1
            idle_rounds = idle_rounds + 1 if len(rows) == num_before else 0
            bar.update(min(len(rows), n) - num_before)
    return rows, rounds


def read_seeds(path: Path, dialogue: bool) -> tuple[list[Task], dict[str, str]]:
    """Return the seeds of a file and the digest of the file by its name.

    Args:
        dialogue: the seeds are topics of dialogues.
    Raises:
        BadInput: with file and line of a bad seed.
    """
    tasks: dict[str, Task] = {}
    rows: Iterator[tuple[str, Mapping[str, object]]] = read_rows([path])
    for number, (place, row) in enumerate(rows, start=1):
        try:
            task = read_seed(row, f"seed-{number}", dialogue)
            if task.id in tasks:
                raise ValueError(f"`id` {task.id!r} comes twice")
        except ValueError as error:
            raise BadInput(f"{place}: {error}") from None
        tasks[task.id] = task
    file_digests = {source.name: source.digest for source in open_sources([str(path)])}
    return list(tasks.values()), file_digests


def read_seed(row: Mapping[str, object], default_id: str, dialogue: bool) -> Task:
    """Return the seed of a row.

    Raises:
        ValueError: naming the field.
    """
    if dialogue:
        topic_field = next((field for field in TOPIC_FIELDS if field in row), "topic")
        return Task(row_id(row, default_id), text_field(row, topic_field))
    instances = row.get("instances", [row])
    if (
        not isinstance(instances, list)
        or not instances
        or not all(isinstance(instance, Mapping) for instance in instances)
    ):
        raise ValueError(
            f"`instances` is {instances!r:.60}, expected a list of objects with input and output"
        )
    is_classification = row.get("is_classification")
    if is_classification is not None and not isinstance(is_classification, bool):
        raise ValueError(
            f"`is_classification` is {is_classification!r:.60}, expected true or false"
        )
    pairs = []
    for instance in instances:
        given = text_field({"input": "", **instance}, "input", may_be_empty=True)
        pairs.append((given, text_field(instance, "output")))
    instruction = text_field(row, "instruction")
    return Task(row_id(row, default_id), instruction, tuple(pairs), is_classification)


def text_field(row: Mapping[str, object], field: str, *, may_be_empty: bool = False) -> str:
    """Return a text field without white space around it.

    Raises:
        ValueError: if it is missing, empty, no text, or holds half of a surrogate pair.
    """
    text = row.get(field)
    if (
        not isinstance(text, str)
        or (not may_be_empty and not text.strip())
        or LONE_SURROGATE.search(text)
    ):
        expected = "a text" if may_be_empty else "a text that is not empty"
        raise ValueError(f"`{field}` is {text!r:.60}, expected {expected}")
    return text.strip()
