"""What a teacher wrote is asked for, counted and filtered here: each reply, instruction and
instance ends under one name of the report."""

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zephyr.distill.clean import import_extra
from zephyr.teacher import Reply, Request

SAMPLING = {  # task -> max_tokens, temperature, top_p; what is asked again is at temperature 0.7
    "instructions": (1024, 0.7, 0.5),
    "classify": (16, 0.0, 1.0),
    "instances": (1024, 0.0, 1.0),
    "alpaca": (3072, 1.0, 1.0),
    "opening": (256, 1.0, 1.0),
    "user_turn": (512, 1.0, 1.0),
    "answer": (1024, 0.7, 1.0),
}
BLACKLIST = re.compile(
    r"\b((image|graph|picture|file|map|video|flowchart|diagram)s?|draw|plot|go to|audio|music)\b",
    re.IGNORECASE,
)
FILTERS: dict[
    str, Callable[["GenerationRun", str, float], bool]
] = {  # (job, instruction, ROUGE-L to the nearest) -> taken; the first counts
    "short": lambda job, text, near: len(text.split()) <= 3,
    "long": lambda job, text, near: len(text.split()) > 150,
    "blacklist": lambda job, text, near: BLACKLIST.search(text) is not None,
    "write_a_program": lambda job, text, near: text.lower().startswith("write a program"),
    "punctuation_start": lambda job, text, near: text[:1] in string.punctuation,
    "non_ascii_start": lambda job, text, near: not text[:1].isascii(),
    "duplicate": lambda job, text, near: collapse_whitespace(text.lower()) in job.seen,
    "similar": lambda job, text, near: near > job.largest_rouge_l,
}
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # of a surrogate pair: can be in no file
Found = list[
    tuple[str, ...] | None
]  # the pieces of a reply; None: one that is not in the wanted form


def rouge_tokens(text: str) -> list[str]:
    """As rouge-score's own tokenizer without stemming: runs of a-z and 0-9 in lower case. A text of
    other letters has none."""
    return re.findall("[a-z0-9]+", text.lower())


class SimilarityIndex:
    """Kept texts, as strings of one character per token."""

    def __init__(self) -> None:
        """Raises: BadInput where rapidfuzz is missing."""
        import_extra("rapidfuzz")
        self.names: list[str] = []
        self.texts: list[str] = []
        self.letters: dict[str, str] = {}

    def add(self, name: str, text: str) -> None:
        """Keep a text under its name."""
        self.names.append(name)
        self.texts.append(
            "".join(
                self.letters.setdefault(token, chr(len(self.letters) + 1))
                for token in rouge_tokens(text)
            )
        )

    def nearest(self, text: str) -> tuple[str, float]:
        """Name and ROUGE-L F1 of the nearest kept text, of equals the first; ("", 0.0) where none
        shares a token.

        F1 = 2 LCS / (m + n), rounded once: 7/10 is 0.7, of which rouge-score may make
        0.7000000000000001."""
        from rapidfuzz.distance import Indel, LCSseq
        from rapidfuzz.process import extractOne

        letters = "".join(self.letters.get(token, "\0") for token in rouge_tokens(text))
        found = extractOne(
            letters, self.texts, scorer=Indel.normalized_similarity, score_cutoff=1e-9
        )  # F1, but for its rounding
        if not letters or found is None:
            return "", 0.0
        kept, _, i = found
        return self.names[i], 2 * LCSseq.similarity(letters, kept) / (len(letters) + len(kept))


class Task(NamedTuple):
    """An instruction: a seed's, or one that was kept. For dialogues a topic, or an opening.
    `instances`: (input, output)."""

    id: str
    instruction: str
    instances: tuple[tuple[str, ...], ...] = ()
    is_classification: bool | None = None  # None: nobody said so
    lineage: Mapping[str, object] = {}
    calls: dict[str, list[str]] = {}  # the digests of its requests, by their task


@dataclass
class GenerationRun:
    """A run: what it was given, and what it has kept and counted so far."""

    ask: Callable[[Sequence[Request]], list[Reply]]
    seeds: Sequence[Task]
    templates: Mapping[str, str]
    variant: str
    seed: int
    turns: int
    instances: int
    largest_rouge_l: float
    kept: list[Task] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    similar: SimilarityIndex = field(default_factory=SimilarityIndex)
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def count(self, stage: str, name: str, number: int = 1) -> None:
        """Into the report, also a 0."""
        self.counts.setdefault(stage, Counter())[name] += number

    def mark_seen(self, task: Task) -> None:
        """No later instruction may repeat this one."""
        self.seen.add(collapse_whitespace(task.instruction.lower()))
        self.similar.add(task.id, task.instruction)


def collapse_whitespace(text: str) -> str:
    """White space as single spaces."""
    return " ".join(text.split())


def to_messages(said: Sequence[str]) -> list[dict[str, str]]:
    """What the user and the assistant said in turn, as messages."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def make_request(
    job: GenerationRun,
    task: str,
    key: object,
    said: Sequence[str],
    /,
    *,
    again: bool = False,
    **about: object,
) -> Request:
    """A question of the kind `task`, sampled by a seed of its own; `about` are its fields for
    embedded teachers."""
    max_tokens, temperature, top_p = SAMPLING[task]
    draw = random.Random(f"{job.seed}/{task}/{key}/{again}").randrange(2**31)
    return Request(
        tuple(to_messages(said)),
        max_tokens,
        0.7 if again else temperature,
        top_p,
        draw,
        {"task": task, "seed": draw, **about},
    )


def collect_replies(job: GenerationRun, stage: str, requests: Sequence[Request]) -> list[Reply]:
    """The replies in order, those without a text counted; one that holds half a character becomes
    one of these."""
    replies = job.ask(requests) if requests else []
    broken = [HALF_CHARACTER.search(reply.text or "") is not None for reply in replies]
    job.count(stage, "requests", len(requests))
    job.count(stage, "refused", sum(reply.text is None for reply in replies))
    job.count(stage, "not_text", sum(broken))
    return [reply._replace(text=None) if bad else reply for reply, bad in zip(replies, broken)]


def parse_reply(
    job: GenerationRun, stage: str, reply: Reply, parse: Callable[[str], Found]
) -> list[tuple[str, ...]]:
    """What is whole and in the wanted form; the rest is counted: as `cut` the last piece of a reply
    that was cut, as `unparsed` others."""
    if reply.text is None:
        return []
    found, cut = parse(reply.text) or [None], reply.finish_reason == "length"
    found = found[: len(found) - cut]
    job.count(stage, "cut", cut)
    job.count(stage, "unparsed", found.count(None))
    return [piece for piece in found if piece is not None]


def passes_filters(job: GenerationRun, stage: str, checks: Mapping[str, bool]) -> bool:
    """Whether no check hits; counted under the first that does, or as kept."""
    taken = next((name for name, hit in checks.items() if hit), "kept")
    for name in ("parsed", *checks, "kept"):
        job.count(stage, name, name in ("parsed", taken))
    return taken == "kept"


def generate_tasks(
    job: GenerationRun,
    questions: Sequence[tuple[Request, dict[str, object]]],
    parse: Callable[[str], Found],
) -> list[Task]:
    """What no filter takes of the instructions in the replies, as tasks; a piece may hold an input
    and an output too.

    Args: questions: each with what the rows that come of it shall tell."""
    before = len(job.kept)
    for (asked, lineage), reply in zip(
        questions, collect_replies(job, "instructions", [asked for asked, _ in questions])
    ):
        for text, *instance in parse_reply(job, "instructions", reply, parse):
            nearest, rouge_l = job.similar.nearest(text)
            if passes_filters(
                job,
                "instructions",
                {name: takes(job, text, rouge_l) for name, takes in FILTERS.items()},
            ):
                job.kept.append(
                    Task(
                        f"{job.variant}-{job.seed}-{len(job.kept)}",
                        text,
                        (tuple(instance),) if instance else (),
                        lineage=lineage | {"nearest": {"id": nearest, "rouge_l": rouge_l}},
                        calls={str(asked.about["task"]): [reply.digest]},
                    )
                )
                job.mark_seen(job.kept[-1])
    return job.kept[before:]


def make_rows(
    job: GenerationRun, task: Task, pairs: Sequence[tuple[str, ...]]
) -> list[dict[str, object]]:
    """A row for each (input, output) that no filter takes, up to `job.instances`; of one input with
    two outputs none is right."""
    sound: list[tuple[str, ...]] = []
    for given, output in pairs:
        if passes_filters(
            job,
            "instances",
            {
                "empty_output": not output,
                "repeated_input": (given, output) in sound,
                "input_equals_output": given == output,
                "conflicting_output": any(
                    other not in ("", output) for same, other in pairs if same == given
                ),
            },
        ):
            sound.append((given, output))
    job.count("instances", "surplus", len(sound[job.instances :]))
    return [
        make_row(
            job, task, i, [f"{task.instruction}\n\n{given}" if given else task.instruction, output]
        )
        for i, (given, output) in enumerate(sound[: job.instances])
    ]


def make_row(job: GenerationRun, task: Task, number: int, said: Sequence[str]) -> dict[str, object]:
    """An SFT row: the conversation, and where it comes from."""
    return {
        "id": f"{task.id}.{number}",
        "messages": to_messages(said),
        "lineage": {
            "variant": job.variant,
            "seed": job.seed,
            "calls": task.calls,
            "is_classification": task.is_classification,
            **task.lineage,
        },
    }
