"""Seeds become a teacher's instructions, and these rows: by Self-Instruct's stages, in Alpaca's
single one, or as UltraChat's dialogues."""

import random
import re
from collections.abc import Sequence
from functools import partial

from zephyr.distill.task_pool import (
    Found,
    GenerationRun,
    Task,
    collapse_whitespace,
    collect_replies,
    make_request,
    make_row,
    make_rows,
    parse_reply,
    to_messages,
)
from zephyr.teacher import Request
from zephyr.teacher.templates import fill

NO_INPUT = "<noinput>"
SHOWN, NEW, UP_TO = (
    8,
    8,
    20,
)  # instructions shown, and wanted, in a request; where Alpaca's list ends
FORMS = {True: ("output_first", "Class label", "Input"), False: ("input_first", "Input", "Output")}
BLOCK = ("Instruction", "Input", "Output")
SPEAKER = re.compile(r"^(user|assistant|human|ai)\s*:", re.IGNORECASE | re.MULTILINE)


def ask_instructions(job: GenerationRun, number: int) -> tuple[Request, dict[str, object]]:
    """To go on with a list, in random order, of 2 instructions that were kept and 6 seeds (of seeds
    alone while none was kept)."""
    rng = random.Random(f"{job.seed}/demonstrations/{number}")
    demos = rng.sample(job.kept, min(2, len(job.kept)))
    demos += rng.sample(job.seeds, min(SHOWN - len(demos), len(job.seeds)))
    rng.shuffle(demos)
    texts = [collapse_whitespace(task.instruction).rstrip(":") for task in demos]
    prompt = fill(
        job.templates["instructions"],
        demonstrations="\n".join(f"{k}. {text}" for k, text in enumerate(texts, 1)),
        first=f"{len(texts) + 1}",
        last=f"{len(texts) + NEW}",
        count=f"{NEW}",
    )
    return make_request(job, "instructions", number, [prompt], demonstrations=texts, count=NEW), {
        "demonstrations": [task.id for task in demos]
    }


def ask_tasks(job: GenerationRun, number: int) -> tuple[Request, dict[str, object]]:
    """To go on with a list of blocks, of 3 seeds."""
    demos = random.Random(f"{job.seed}/demonstrations/{number}").sample(
        job.seeds, min(3, len(job.seeds))
    )
    blocks = [
        f"###\n{k}. Instruction: {collapse_whitespace(task.instruction)}\n{k}. Input:\n{task.instances[0][0] or NO_INPUT}\n"
        f"{k}. Output:\n{task.instances[0][1]}"
        for k, task in enumerate(demos, 1)
    ]
    prompt = fill(
        job.templates["alpaca"],
        demonstrations="\n".join(blocks),
        first=f"{len(demos) + 1}",
        last=f"{UP_TO}",
    )
    return (
        make_request(
            job, "alpaca", number, [prompt], demonstrations=blocks, count=UP_TO - len(demos)
        ),
        {"demonstrations": [task.id for task in demos]},
    )


def finish_tasks(job: GenerationRun, tasks: Sequence[Task]) -> list[dict[str, object]]:
    """Rows of tasks that came with their instances."""
    return [row for task in tasks for row in make_rows(job, task, task.instances)]


def write_instances(job: GenerationRun, tasks: Sequence[Task]) -> list[dict[str, object]]:
    """Rows of bare instructions: the teacher writes labels first, then inputs, for classification;
    inputs first for the rest."""
    tasks, shown = classify(job, tasks), {side: examples(job, side) for side in FORMS}
    replies = collect_replies(
        job,
        "instances",
        [
            make_request(
                job,
                "instances",
                task.id,
                [
                    fill(
                        job.templates[FORMS[side][0]],
                        instruction=task.instruction,
                        demonstrations=shown[side],
                    )
                ],
                instruction=task.instruction,
                is_classification=side,
            )
            for task in tasks
            for side in [task.is_classification]
        ],
    )
    rows: list[dict[str, object]] = []
    for task, reply in zip(tasks, replies):
        task.calls["instances"] = [reply.digest]
        found = parse_reply(
            job, "instances", reply, partial(parse_blocks, heads=FORMS[task.is_classification][1:])
        )
        rows += make_rows(
            job, task, [pair[::-1] for pair in found] if task.is_classification else found
        )
    return rows


def classify(job: GenerationRun, tasks: Sequence[Task]) -> list[Task]:
    """The tasks of which the teacher said, in one word, whether the answer is a label; what is no
    such word is asked once more."""
    rng = random.Random(f"{job.seed}/classify")
    sides = [[task for task in job.seeds if task.is_classification is side] for side in FORMS]
    demos = [task for side in sides for task in rng.sample(side, min(SHOWN, len(side)))]
    shown = "\n\n".join(
        f"Task: {task.instruction}\n{'Yes' if task.is_classification else 'No'}"
        for task in rng.sample(demos, len(demos))
    )
    known: dict[str, Task] = {}
    asked = tasks
    for again in (False, True):
        replies = collect_replies(
            job,
            "classification",
            [
                make_request(
                    job,
                    "classify",
                    task.id,
                    [
                        fill(
                            job.templates["classify"],
                            demonstrations=shown,
                            instruction=task.instruction,
                        )
                    ],
                    again=again,
                    instruction=task.instruction,
                )
                for task in asked
            ],
        )
        for task, reply in zip(asked, replies):
            task.calls.setdefault("classify", []).append(reply.digest)
            if word := re.fullmatch(r"\s*(yes|no)\.?\s*", reply.text or "", re.IGNORECASE):
                known[task.id] = task._replace(is_classification=word[1].lower() == "yes")
        asked = [
            task
            for task, reply in zip(asked, replies)
            if task.id not in known and reply.text is not None
        ]
    job.count("classification", "unparsed", len(asked))
    return [known[task.id] for task in tasks if task.id in known]


def examples(job: GenerationRun, side: bool) -> str:
    """Seeds with their instances in the form that the teacher shall write; a seed of which nobody
    said what it is goes with the rest."""
    _, first, second = FORMS[side]
    some = [task for task in job.seeds if (task.is_classification is True) == side]
    return "\n\n".join(
        "\n".join(
            [
                f"Task: {collapse_whitespace(task.instruction)}",
                *(
                    f"{first}: {(output if side else given) or NO_INPUT}\n{second}: {(given if side else output) or NO_INPUT}"
                    for given, output in task.instances[:3]
                ),
            ]
        )
        for task in random.Random(f"{job.seed}/examples").sample(some, min(5, len(some)))
    )


def parse_numbered(text: str) -> Found:
    """The items of a numbered list, each in one line; None for what stands before the list, or
    after an empty line."""
    before, *items = re.split(r"^[ \t]*\d+ ?\.(?:[ \t]+|$)", text, flags=re.MULTILINE)
    found: Found = [None] if before.strip() else []
    for item in items:
        first, *rest = re.split(r"\n\s*\n", item.strip(), maxsplit=1)
        found += [(collapse_whitespace(first),), *([None] if rest else [])]
    return found


def parse_blocks(text: str, heads: Sequence[str] = BLOCK) -> Found:
    """The texts under `heads` of each block ("Input: ...", maybe numbered or after "Example 1"),
    <noinput> as "".

    None for a part of the reply (lines "###" part it) that lacks a head, has one out of order, or
    begins with none."""
    head = re.compile(
        rf"^(?:Example \d+[.:]?[ \t]*\n)?(?:\d+\. ?)?({'|'.join(heads)}|Task):", re.MULTILINE
    )
    found: Found = []
    for part in re.split(r"^###[ \t]*$", text, flags=re.MULTILINE):
        before, *rest = head.split(part)
        texts = ["" if body.strip().lower() == NO_INPUT else body.strip() for body in rest[1::2]]
        blocks = list(zip(*[iter(texts)] * len(heads)))
        whole = not before.strip() and rest[::2] == list(heads) * len(blocks)
        found += blocks if whole else [None]
    return found


def ask_opening(job: GenerationRun, number: int) -> tuple[Request, dict[str, object]]:
    """For the user's first words; topics come in the order of the seeds, over and over."""
    topic = job.seeds[number % len(job.seeds)]
    prompt = fill(job.templates["opening"], topic=topic.instruction)
    lineage = {"demonstrations": [topic.id], "topic": topic.instruction}
    return make_request(job, "opening", number, [prompt], topic=topic.instruction), lineage


def parse_turn(text: str) -> Found:
    """The whole reply; None where nothing is said, or said by somebody named."""
    return [(text.strip(),) if text.strip() and not SPEAKER.search(text) else None]


def write_dialogues(job: GenerationRun, openings: Sequence[Task]) -> list[dict[str, object]]:
    """A row for each dialogue of `job.turns` user turns: all go on turn by turn, and one with a bad
    turn is left out and counted."""
    talks = [(task, [task.instruction]) for task in openings]
    for turn in range(1, 2 * job.turns):
        kind = "answer" if turn % 2 else "user_turn"
        replies = collect_replies(
            job,
            "dialogues",
            [
                make_request(
                    job,
                    kind,
                    f"{task.id}/{turn}",
                    said if turn % 2 else [user_simulator_prompt(job, task, said)],
                    topic=task.lineage["topic"],
                    said=said,
                )
                for task, said in talks
            ],
        )
        before, talks = talks, []
        for (task, said), reply in zip(before, replies):
            for (text,) in parse_reply(job, "dialogues", reply, parse_turn):
                task.calls.setdefault(kind, []).append(reply.digest)
                talks.append((task, [*said, text]))
    job.count("dialogues", "kept", len(talks))
    return [make_row(job, task, 0, said) for task, said in talks]


def user_simulator_prompt(job: GenerationRun, task: Task, said: Sequence[str]) -> str:
    """What the teacher is told to play the user."""
    dialogue = "\n\n".join(
        f"{turn['role'].capitalize()}: {turn['content']}" for turn in to_messages(said)
    )
    return fill(job.templates["user_turn"], topic=str(task.lineage["topic"]), dialogue=dialogue)
