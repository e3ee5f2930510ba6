"""Seeds become requests for instructions, and instructions become rows: by the stages of
Self-Instruct, in the single stage of Alpaca, or as the dialogues of UltraChat.

Each variant has three functions: one makes the request number i for instructions (`ask_...`), one
parses the reply (`parse_...`), and one makes rows of the kept instructions."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from zephyr.distill.task_pool import (
    GenerationRun,
    Pieces,
    Question,
    Task,
    collapse_whitespace,
    collect_replies,
    make_request,
    make_row,
    make_rows,
    parse_reply,
    to_messages,
)
from zephyr.teacher.templates import fill

NO_INPUT = "<noinput>"
NUM_SHOWN = 8  # instructions that a request shows, and tasks that `classify` shows of each side
NUM_NEW = 8  # instructions that a request asks for
NUM_KEPT_SHOWN = 2  # of the shown ones, generated instructions; the others are seeds
ALPACA_SHOWN = 3
ALPACA_LENGTH = 20  # of the list that a request asks to complete
NUM_EXAMPLES = 5  # tasks with instances that `write_instances` shows
MAX_INSTANCES_SHOWN = 3  # of each of them
BLOCK = ("Instruction", "Input", "Output")
SPEAKER = re.compile(r"^(user|assistant|human|ai)\s*:", re.IGNORECASE | re.MULTILINE)


class InstanceForm(NamedTuple):
    """The form of instances: its template, and the headings of a block in their order."""

    template: str
    first: str
    second: str


# Self-Instruct asks for the label first in classification tasks, for the input first in others.
OUTPUT_FIRST = InstanceForm("output_first", "Class label", "Input")
INPUT_FIRST = InstanceForm("input_first", "Input", "Output")


def ask_instructions(run: GenerationRun, number: int) -> Question:
    """Ask to continue a list, in random order, of 2 kept instructions and 6 seeds. While none is
    kept, all are seeds."""
    rng = random.Random(f"{run.seed}/demonstrations/{number}")
    shown = rng.sample(run.kept, min(NUM_KEPT_SHOWN, len(run.kept)))
    shown += rng.sample(run.seeds, min(NUM_SHOWN - len(shown), len(run.seeds)))
    rng.shuffle(shown)
    texts = [collapse_whitespace(task.instruction).rstrip(":") for task in shown]
    prompt = fill(
        run.templates["instructions"],
        demonstrations="\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1)),
        first=str(len(texts) + 1),
        last=str(len(texts) + NUM_NEW),
        count=str(NUM_NEW),
    )
    request = make_request(
        run, "instructions", number, [prompt], demonstrations=texts, count=NUM_NEW
    )
    return Question(request, {"demonstrations": [task.id for task in shown]})


def ask_tasks(run: GenerationRun, number: int) -> Question:
    """Ask to continue a list of blocks with 3 seeds: instruction, input and output at once."""
    rng = random.Random(f"{run.seed}/demonstrations/{number}")
    shown = rng.sample(run.seeds, min(ALPACA_SHOWN, len(run.seeds)))
    blocks = []
    for n, task in enumerate(shown, 1):
        given, output = task.instances[0]
        blocks.append(
            f"###\n{n}. Instruction: {collapse_whitespace(task.instruction)}\n"
            f"{n}. Input:\n{given or NO_INPUT}\n{n}. Output:\n{output}"
        )
    prompt = fill(
        run.templates["alpaca"],
        demonstrations="\n".join(blocks),
        first=str(len(shown) + 1),
        last=str(ALPACA_LENGTH),
    )
    count = ALPACA_LENGTH - len(shown)
    request = make_request(run, "alpaca", number, [prompt], demonstrations=blocks, count=count)
    return Question(request, {"demonstrations": [task.id for task in shown]})


def finish_tasks(run: GenerationRun, tasks: Sequence[Task]) -> list[dict[str, object]]:
    """Return the rows of tasks that already have their instances."""
    return [row for task in tasks for row in make_rows(run, task, task.instances)]


def write_instances(run: GenerationRun, tasks: Sequence[Task]) -> list[dict[str, object]]:
    """Return the rows of bare instructions.

    The teacher classifies each instruction, then writes its instances: labels first, then inputs,
    for classification tasks; inputs first for the others.
    """
    tasks = classify(run, tasks)
    shown = {form: show_examples(run, form) for form in (OUTPUT_FIRST, INPUT_FIRST)}
    requests = []
    for task in tasks:
        form = instance_form(task)
        prompt = fill(
            run.templates[form.template],
            instruction=task.instruction,
            demonstrations=shown[form],
        )
        requests.append(
            make_request(
                run,
                "instances",
                task.id,
                [prompt],
                instruction=task.instruction,
                is_classification=task.is_classification,
            )
        )
    replies = collect_replies(run, "instances", requests)
    rows: list[dict[str, object]] = []
    for task, reply in zip(tasks, replies):
        task.add_call("instances", reply.digest)
        form = instance_form(task)
        parse = partial(parse_blocks, heads=(form.first, form.second))
        pairs = parse_reply(run, "instances", reply, parse)
        if form is OUTPUT_FIRST:
            pairs = [(given, output) for output, given in pairs]
        rows += make_rows(run, task, pairs)
    return rows


def instance_form(task: Task) -> InstanceForm:
    return OUTPUT_FIRST if task.is_classification else INPUT_FIRST


def classify(run: GenerationRun, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks with `is_classification` set, without those that the teacher did not
    classify. A reply other than Yes or No is asked for once more."""
    shown = show_classified(run)
    known: dict[str, Task] = {}
    unknown = tasks
    for again in (False, True):
        requests = []
        for task in unknown:
            prompt = fill(
                run.templates["classify"], demonstrations=shown, instruction=task.instruction
            )
            requests.append(
                make_request(
                    run,
                    "classify",
                    task.id,
                    [prompt],
                    again=again,
                    instruction=task.instruction,
                )
            )
        replies = collect_replies(run, "classification", requests)
        unparsed = []
        for task, reply in zip(unknown, replies):
            task.add_call("classify", reply.digest)
            word = re.fullmatch(r"\s*(yes|no)\.?\s*", reply.text or "", re.IGNORECASE)
            if word:
                known[task.id] = replace(task, is_classification=word[1].lower() == "yes")
            elif reply.text is not None:
                unparsed.append(task)
        unknown = unparsed
    run.count("classification", "unparsed", len(unknown))
    return [known[task.id] for task in tasks if task.id in known]


def show_classified(run: GenerationRun) -> str:
    """Return classification seeds and other seeds in random order, each with Yes or No."""
    rng = random.Random(f"{run.seed}/classify")
    shown: list[Task] = []
    for is_classification in (True, False):
        side = [task for task in run.seeds if task.is_classification is is_classification]
        shown += rng.sample(side, min(NUM_SHOWN, len(side)))
    return "\n\n".join(
        f"Task: {task.instruction}\n{'Yes' if task.is_classification else 'No'}"
        for task in rng.sample(shown, len(shown))
    )


def show_examples(run: GenerationRun, form: InstanceForm) -> str:
    """Return seeds with their instances in one of the two forms. A seed that does not say whether
    it is a classification task is shown with the input first."""
    seeds = [task for task in run.seeds if instance_form(task) is form]
    rng = random.Random(f"{run.seed}/examples")
    examples = []
    for task in rng.sample(seeds, min(NUM_EXAMPLES, len(seeds))):
        lines = [f"Task: {collapse_whitespace(task.instruction)}"]
        for given, output in task.instances[:MAX_INSTANCES_SHOWN]:
            first, second = (output, given) if form is OUTPUT_FIRST else (given, output)
            lines.append(f"{form.first}: {first or NO_INPUT}")
            lines.append(f"{form.second}: {second or NO_INPUT}")
        examples.append("\n".join(lines))
    return "\n\n".join(examples)


def parse_numbered(text: str) -> Pieces:
    """Return the items of a numbered list, each in one line.

    Returns:
        None for a text before the list, and for each text after an item and an empty line.
    """
    before, *items = re.split(r"^[ \t]*\d+ ?\.(?:[ \t]+|$)", text, flags=re.MULTILINE)
    pieces: Pieces = [None] if before.strip() else []
    for item in items:
        first, *rest = re.split(r"\n\s*\n", item.strip(), maxsplit=1)
        pieces.append((collapse_whitespace(first),))
        if rest:
            pieces.append(None)
    return pieces


def parse_blocks(text: str, heads: Sequence[str] = BLOCK) -> Pieces:
    """Return the texts under `heads` of each block; <noinput> becomes "".

    A heading is like "Input:", "2. Input:", or "Input:" in the line after "Example 1". Lines "###"
    separate parts of the reply.

    Returns:
        None for a part that does not begin with a heading, or whose headings are not `heads` in
        their order, once or repeated.
    """
    head = re.compile(
        rf"^(?:Example \d+[.:]?[ \t]*\n)?(?:\d+\. ?)?({'|'.join(heads)}|Task):", re.MULTILINE
    )
    pieces: Pieces = []
    for part in re.split(r"^###[ \t]*$", text, flags=re.MULTILINE):
        before, *rest = head.split(part)
        found_heads, bodies = rest[::2], [body.strip() for body in rest[1::2]]
        texts = ["" if body.lower() == NO_INPUT else body for body in bodies]
        size = len(heads)
        blocks = [
            tuple(texts[start : start + size]) for start in range(0, len(texts) - size + 1, size)
        ]
        if before.strip() or found_heads != list(heads) * len(blocks):
            pieces.append(None)
        else:
            pieces.extend(blocks)
    return pieces


def ask_opening(run: GenerationRun, number: int) -> Question:
    """Ask for the user's first words. The topics are used in the order of the seeds, again and
    again."""
    topic = run.seeds[number % len(run.seeds)]
    prompt = fill(run.templates["opening"], topic=topic.instruction)
    request = make_request(run, "opening", number, [prompt], topic=topic.instruction)
    return Question(request, {"demonstrations": [topic.id], "topic": topic.instruction})


def parse_turn(text: str) -> Pieces:
    """Return the whole reply, or None if it is empty or has a line like "User: ..."."""
    return [(text.strip(),) if text.strip() and not SPEAKER.search(text) else None]


def write_dialogues(run: GenerationRun, openings: Sequence[Task]) -> list[dict[str, object]]:
    """Return a row for each dialogue of `run.turns` user turns.

    All dialogues advance together, turn by turn. One with a malformed turn is left out and counted.
    """
    dialogues = [(task, [task.instruction]) for task in openings]
    for turn in range(1, 2 * run.turns):
        kind = "answer" if turn % 2 else "user_turn"
        requests = []
        for task, turns in dialogues:
            asked = turns if kind == "answer" else [user_simulator_prompt(run, task, turns)]
            key = f"{task.id}/{turn}"
            topic = task.lineage["topic"]
            requests.append(make_request(run, kind, key, asked, topic=topic, said=turns))
        replies = collect_replies(run, "dialogues", requests)
        continued = []
        for (task, turns), reply in zip(dialogues, replies):
            for (text,) in parse_reply(run, "dialogues", reply, parse_turn):
                task.add_call(kind, reply.digest)
                continued.append((task, [*turns, text]))
        dialogues = continued
    run.count("dialogues", "kept", len(dialogues))
    return [make_row(run, task, 0, turns) for task, turns in dialogues]


def user_simulator_prompt(run: GenerationRun, task: Task, turns: Sequence[str]) -> str:
    """Return the prompt that lets the teacher play the user."""
    dialogue = "\n\n".join(
        f"{turn['role'].capitalize()}: {turn['content']}" for turn in to_messages(turns)
    )
    return fill(run.templates["user_turn"], topic=str(task.lineage["topic"]), dialogue=dialogue)
