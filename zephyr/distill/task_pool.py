"""Replies of a teacher become a pool of tasks: each reply, instruction and instance is filtered and
counted under one name of the report."""

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zephyr.distill.clean import import_extra
from zephyr.teacher import Reply, Request


class Sampling(NamedTuple):
    """How the requests of one kind are sampled."""

    max_tokens: int
    temperature: float
    top_p: float


SAMPLING = {
    "instructions": Sampling(1024, 0.7, 0.5),
    "classify": Sampling(16, 0.0, 1.0),
    "instances": Sampling(1024, 0.0, 1.0),
    "alpaca": Sampling(3072, 1.0, 1.0),
    "opening": Sampling(256, 1.0, 1.0),
    "user_turn": Sampling(512, 1.0, 1.0),
    "answer": Sampling(1024, 0.7, 1.0),
}
TEMPERATURE_OF_REPEATS = 0.7
BLACKLIST = re.compile(
    r"\b((image|graph|picture|file|map|video|flowchart|diagram)s?|draw|plot|go to|audio|music)\b",
    re.IGNORECASE,
)
# name -> (run, instruction, ROUGE-L to the nearest kept one) -> whether it is removed.
# An instruction counts under the first filter that removes it.
FILTERS: dict[str, Callable[["GenerationRun", str, float], bool]] = {
    "short": lambda run, text, rouge_l: len(text.split()) <= 3,
    "long": lambda run, text, rouge_l: len(text.split()) > 150,
    "blacklist": lambda run, text, rouge_l: BLACKLIST.search(text) is not None,
    "write_a_program": lambda run, text, rouge_l: text.lower().startswith("write a program"),
    "punctuation_start": lambda run, text, rouge_l: text[:1] in string.punctuation,
    "non_ascii_start": lambda run, text, rouge_l: not text[:1].isascii(),
    "duplicate": lambda run, text, rouge_l: collapse_whitespace(text.lower()) in run.seen,
    "similar": lambda run, text, rouge_l: rouge_l > run.largest_rouge_l,
}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a surrogate pair: not valid UTF-8
# The pieces of a reply, e.g. (instruction,) or (input, output); None for a malformed piece.
Pieces = list[tuple[str, ...] | None]


def rouge_tokens(text: str) -> list[str]:
    """Return the tokens of rouge-score's default tokenizer without stemming: runs of a-z and 0-9 in
    lower case. A text in another script has none."""
    return re.findall("[a-z0-9]+", text.lower())


class SimilarityIndex:
    """Kept texts, stored as strings with one character per token."""

    def __init__(self) -> None:
        """Raises: BadInput if rapidfuzz is not installed."""
        import_extra("rapidfuzz")
        self.names: list[str] = []
        self.texts: list[str] = []
        self.letters: dict[str, str] = {}  # token -> its character

    def add(self, name: str, text: str) -> None:
        """Keep a text under a name."""
        letters = [
            self.letters.setdefault(token, chr(len(self.letters) + 1))
            for token in rouge_tokens(text)
        ]
        self.names.append(name)
        self.texts.append("".join(letters))

    def nearest(self, text: str) -> tuple[str, float]:
        """Return name and ROUGE-L F1 of the nearest kept text, the first of equal ones.

        F1 = 2 LCS / (m + n), rounded once: 7/10 is 0.7, where rouge-score may return
        0.7000000000000001.

        Returns:
            ("", 0.0) if no kept text shares a token.
        """
        from rapidfuzz.distance import Indel, LCSseq
        from rapidfuzz.process import extractOne

        letters = "".join(self.letters.get(token, "\0") for token in rouge_tokens(text))
        # Indel's normalized similarity is F1 up to rounding
        found = extractOne(
            letters, self.texts, scorer=Indel.normalized_similarity, score_cutoff=1e-9
        )
        if not letters or found is None:
            return "", 0.0
        kept, _, i = found
        return self.names[i], 2 * LCSseq.similarity(letters, kept) / (len(letters) + len(kept))


@dataclass(frozen=True)
class Task:
    """A seed, or a generated instruction that was kept. In dialogues: a topic, or an opening.

    `instances`: pairs of input and output.
    `is_classification`: None if it is not known.
    `lineage`: goes into the rows that are made from the task.
    `calls`: digests of the requests that the rows depend on, by kind.
    """

    id: str
    instruction: str
    instances: tuple[tuple[str, ...], ...] = ()
    is_classification: bool | None = None
    lineage: Mapping[str, object] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)

    def add_call(self, kind: str, digest: str) -> None:
        self.calls.setdefault(kind, []).append(digest)


class Question(NamedTuple):
    """A request for instructions, and the lineage of the tasks that its reply gives."""

    request: Request
    lineage: dict[str, object]


@dataclass
class GenerationRun:
    """The inputs of a run, and what it has kept and counted so far."""

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
        """Add to a count of the report. A name that was counted with 0 is in the report too."""
        self.counts.setdefault(stage, Counter())[name] += number

    def mark_seen(self, task: Task) -> None:
        """Remove later instructions that repeat this one."""
        self.seen.add(collapse_whitespace(task.instruction.lower()))
        self.similar.add(task.id, task.instruction)


def collapse_whitespace(text: str) -> str:
    """Return the text with single spaces as its only white space."""
    return " ".join(text.split())


def to_messages(turns: Sequence[str]) -> list[dict[str, str]]:
    """Return alternating texts of user and assistant, the user first, as messages."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def make_request(
    run: GenerationRun,
    task: str,
    key: object,
    turns: Sequence[str],
    /,
    *,
    again: bool = False,
    **about: object,
) -> Request:
    """Return a request of the kind `task`.

    Args:
        key: distinguishes the requests of one kind; the sampling seed depends on it.
        turns: alternating texts of user and assistant.
        again: the request repeats another one whose reply could not be parsed.
        about: the question as fields, for embedded teachers.
    """
    sampling = SAMPLING[task]
    seed = random.Random(f"{run.seed}/{task}/{key}/{again}").randrange(2**31)
    return Request(
        tuple(to_messages(turns)),
        max_tokens=sampling.max_tokens,
        temperature=TEMPERATURE_OF_REPEATS if again else sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        about={"task": task, "seed": seed, **about},
    )


def collect_replies(run: GenerationRun, stage: str, requests: Sequence[Request]) -> list[Reply]:
    """Return the replies in order. Refused ones are counted, and ones with half of a surrogate
    pair, whose text becomes None."""
    replies = run.ask(requests) if requests else []
    is_broken = [LONE_SURROGATE.search(reply.text or "") is not None for reply in replies]
    run.count(stage, "requests", len(requests))
    run.count(stage, "refused", sum(reply.text is None for reply in replies))
    run.count(stage, "not_text", sum(is_broken))
    return [
        reply._replace(text=None) if broken else reply for reply, broken in zip(replies, is_broken)
    ]


def parse_reply(
    run: GenerationRun, stage: str, reply: Reply, parse: Callable[[str], Pieces]
) -> list[tuple[str, ...]]:
    """Return the whole, well-formed pieces of a reply. The others are counted: as `cut` the last
    piece of a reply that reached its token limit, as `unparsed` malformed ones."""
    if reply.text is None:
        return []
    pieces = parse(reply.text) or [None]
    is_cut = reply.finish_reason == "length"
    if is_cut:
        pieces = pieces[:-1]
    run.count(stage, "cut", int(is_cut))
    run.count(stage, "unparsed", pieces.count(None))
    return [piece for piece in pieces if piece is not None]


def passes_filters(run: GenerationRun, stage: str, checks: Mapping[str, bool]) -> bool:
    """Return whether no check is true. The item counts under the first true check, or as kept."""
    outcome = next((name for name, hit in checks.items() if hit), "kept")
    for name in ("parsed", *checks, "kept"):
        run.count(stage, name, int(name in ("parsed", outcome)))
    return outcome == "kept"


def generate_tasks(
    run: GenerationRun, questions: Sequence[Question], parse: Callable[[str], Pieces]
) -> list[Task]:
    """Ask the questions and return the tasks that no filter removes.

    Args:
        parse: returns the pieces of a reply: an instruction, or an instruction, input and output.
    """
    before = len(run.kept)
    replies = collect_replies(run, "instructions", [question.request for question in questions])
    for question, reply in zip(questions, replies):
        kind = str(question.request.about["task"])
        for text, *instance in parse_reply(run, "instructions", reply, parse):
            nearest, rouge_l = run.similar.nearest(text)
            checks = {name: removes(run, text, rouge_l) for name, removes in FILTERS.items()}
            if not passes_filters(run, "instructions", checks):
                continue
            task = Task(
                f"{run.variant}-{run.seed}-{len(run.kept)}",
                text,
                (tuple(instance),) if instance else (),
                lineage={**question.lineage, "nearest": {"id": nearest, "rouge_l": rouge_l}},
                calls={kind: [reply.digest]},
            )
            run.kept.append(task)
            run.mark_seen(task)
    return run.kept[before:]


def make_rows(
    run: GenerationRun, task: Task, pairs: Sequence[tuple[str, ...]]
) -> list[dict[str, object]]:
    """Return a row for each (input, output) that no filter removes, up to `run.instances`. Two
    outputs of one input remove both."""
    sound: list[tuple[str, ...]] = []
    for given, output in pairs:
        others = [other for same_input, other in pairs if same_input == given]
        checks = {
            "empty_output": not output,
            "repeated_input": (given, output) in sound,
            "input_equals_output": given == output,
            "conflicting_output": any(other not in ("", output) for other in others),
        }
        if passes_filters(run, "instances", checks):
            sound.append((given, output))
    run.count("instances", "surplus", len(sound[run.instances :]))
    rows = []
    for i, (given, output) in enumerate(sound[: run.instances]):
        prompt = f"{task.instruction}\n\n{given}" if given else task.instruction
        rows.append(make_row(run, task, i, [prompt, output]))
    return rows


def make_row(
    run: GenerationRun, task: Task, number: int, turns: Sequence[str]
) -> dict[str, object]:
    """Return an SFT row: the conversation and its lineage."""
    return {
        "id": f"{task.id}.{number}",
        "messages": to_messages(turns),
        "lineage": {
            "variant": run.variant,
            "seed": run.seed,
            "calls": task.calls,
            "is_classification": task.is_classification,
            **task.lineage,
        },
    }
