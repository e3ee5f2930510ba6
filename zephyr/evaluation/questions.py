"""Sources become questions: a prompt and its answers as ids, the better answers first.

A row is a pair as train_dpo.py reads it, encoded in the same way, or a contest of a benchmark
(`reward_rows`). The answers of a question are packed two by two: whichever two stand in one pair,
each gets its own log-prob.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from zephyr import chat
from zephyr.chat import EncodedPair, Messages
from zephyr.chat.names import plain
from zephyr.config import BadInput
from zephyr.data.keys import select
from zephyr.data.ratings import Tie
from zephyr.data.rows import Row, check_row, row_id
from zephyr.data.shapes import pair_row
from zephyr.data.sources import RawRow, open_sources
from zephyr.data.store import PAIR_SCHEMA, Pairs, example_batch
from zephyr.evaluation.reward_rows import SUBSETS, Contest, read_contest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE_FIELDS = ("source", "subset", "dataset")  # that say where a row comes from; the first counts
PART_PAIRS = 256  # pairs that are kept as Python lists, before they go into a table


class Limits(NamedTuple):
    """The config keys of these names in `data`."""

    max_tokens: int = 1024
    max_prompt_tokens: int = 512
    limit: int | None = None
    on_bad_row: str = "error"
    columns: Mapping[str, str | None] = MappingProxyType({})


class Question(NamedTuple):
    """A row. Its answers are numbered through, those of all questions together."""

    id: str
    source: str  # its own `source`, `subset` or `dataset`, else the name of its file
    better: int  # so many of its answers, the first, are the better ones
    places: list[tuple[int, int]]  # of each answer: the pair, and its side (0: chosen)
    benchmark: str  # whose row it is; "" for a pair of no benchmark


class Questions(NamedTuple):
    """What the sources hold. left_out: reason -> rows without a preference. skipped: bad rows, as
    place and reason. cut_rows: questions whose prompt or answers are cut."""

    rows: list[Question]
    pairs: Pairs
    left_out: dict[str, int]
    skipped: list[tuple[str, str]]
    cut_rows: int


class Encoded(NamedTuple):
    """A prompt and its answers as ids; the first `better` answers are the better ones."""

    prompt_ids: list[int]
    answers_ids: list[list[int]]
    better: int


class NoPreference(ValueError):
    """A row that prefers no answer to another: it is counted, and not scored."""


def load_questions(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
) -> Questions:
    """Encode the rows of all sources, in their order.

    Args:
        sources: `path-or-hub-id[:split]`, one or more.
        tokenizer: with its `chat_template` set (`tokenizer.load_tokenizer`).

    Raises:
        BadInput: naming file, line and field of a bad row (unless `on_bad_row` is skip, which lists
            them), for two rows of one source with one id, and where no question is left.
    """
    check_limits(limits)
    rows: list[Question] = []
    parts: list[pa.RecordBatch] = []
    waiting: list[EncodedPair] = []
    left_out: Counter[str] = Counter()
    skipped: list[tuple[str, str]] = []
    taken: dict[tuple[str, str], str] = {}
    pairs, cut_rows = 0, 0
    for name, raw in islice(raw_rows(sources), limits.limit):
        try:
            question, whole = read_question(tokenizer, raw, name, limits.columns)
            require_new_id(question, raw.place, taken)
            encoded = cut_alike(whole, limits, chat.template_bos(tokenizer, template(tokenizer)))
        except NoPreference as none:
            left_out[str(none)] += 1
            continue
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            if limits.on_bad_row == "error":
                raise BadInput(f"{raw.place}: {reason}") from error
            skipped.append((raw.place, reason))
            continue
        made, places = in_pairs(question.id, encoded, pairs)
        rows.append(question._replace(places=places))
        cut_rows += encoded != whole
        pairs += len(made)
        waiting += made
        if len(waiting) >= PART_PAIRS:
            parts.append(example_batch(waiting))
            waiting = []
    if not rows:
        raise BadInput(
            f"{', '.join(map(str, sources))}: no row with a preference is left: "
            f"{left_out.total()} have none, {len(skipped)} are bad"
        )
    parts += [example_batch(waiting)] if waiting else []
    table = pa.Table.from_batches(parts, PAIR_SCHEMA)
    return Questions(rows, Pairs(table), dict(left_out), skipped, cut_rows)


def require_new_id(question: Question, place: str, taken: dict[tuple[str, str], str]) -> None:
    """Raises: ValueError for a second row of one source with one id.

    Args: taken: the place of each id of each source so far; this one is added.
    """
    before = taken.setdefault((question.source, question.id), place)
    if before != place:
        raise ValueError(
            f"`id` {question.id!r:.60} is also the id of {before}, expected an id that no other "
            "row has"
        )


def check_limits(limits: Limits) -> None:
    """Raises: BadInput for limits that no row can be encoded with."""
    if limits.on_bad_row not in ("error", "skip"):
        raise BadInput(f"on_bad_row is {limits.on_bad_row!r}, expected 'error' or 'skip'")
    try:
        cut_alike(Encoded([0], [[0], [1]], 1), limits, None)
    except ValueError as error:
        raise BadInput(str(error)) from None


def raw_rows(sources: Sequence[str]) -> Iterator[tuple[str, RawRow]]:
    """All rows, each with the name of its file or dataset."""
    for source in open_sources(sources):
        for raw in source.rows():
            yield source.name, raw


def template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that the tokenizer was given."""
    assert isinstance(tokenizer.chat_template, str), "prepare_tokenizer sets it"
    return tokenizer.chat_template


def read_question(
    tokenizer: PreTrainedTokenizerBase,
    raw: RawRow,
    source_name: str,
    columns: Mapping[str, str | None],
) -> tuple[Question, Encoded]:
    """A row as a question, without its places, and its ids, not cut.

    Raises:
        NoPreference: for a tie, and for answers that are all the same.
        ValueError: saying what is wrong with the row.
    """
    row, _, _ = select(check_row(raw.value), columns)
    default = row["idx"] if "idx" in row and "id" not in row else raw.default_id
    try:
        contest = read_contest(row)
        if contest is None:
            id = row_id(row, raw.default_id)
            encoded = encode_pair_row(tokenizer, row)
        else:
            id = row_id({"id": default, **row})
            encoded = encode_contest(tokenizer, contest)
    except Tie as tie:
        raise NoPreference(f"a tie: {tie}") from None
    except chat.IdenticalAnswers as same:
        raise NoPreference(str(same)) from None
    named = {plain(str(key)): value for key, value in row.items()}
    fields = [key for key in SOURCE_FIELDS if isinstance(named.get(key), str) and named[key]]
    own = str(named[fields[0]]) if fields else contest and contest.source
    question = Question(
        id=id,
        source=own or source_name,
        better=encoded.better,
        places=[],
        benchmark=contest.benchmark if contest else "RewardBench" if own in SUBSETS else "",
    )
    return question, encoded


def encode_pair_row(tokenizer: PreTrainedTokenizerBase, row: Row) -> Encoded:
    """A pair as training encodes it, not cut. Raises: ValueError, Tie, chat.IdenticalAnswers."""
    fields, _ = pair_row(row)
    whole = chat.tokenize_pair(tokenizer, fields, template=template(tokenizer))
    return Encoded(whole.prompt_ids, [whole.chosen_ids, whole.rejected_ids], 1)


def encode_contest(tokenizer: PreTrainedTokenizerBase, contest: Contest) -> Encoded:
    """A contest with each answer encoded as that of a pair, not cut; an empty answer is its EOS.

    Raises:
        ValueError: for an empty prompt, or text that the template or the tokenizer refuses.
        chat.IdenticalAnswers: all answers are the same but for white space.
    """
    texts = [*contest.better, *contest.worse]
    if len({answer.strip() for answer in texts}) < 2:
        raise chat.IdenticalAnswers("both sides equal but for white space")
    turns: Messages = [{"role": "user", "content": contest.prompt}]
    prompt_ids: list[int] = []
    answers_ids: list[list[int]] = []
    for answer in texts:
        ids, answer_ids = encode_answer(tokenizer, turns, answer)
        prompt_ids = ids or prompt_ids
        answers_ids.append(answer_ids)
    return Encoded(prompt_ids, answers_ids, len(contest.better))


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, turns: Messages, answer: str
) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of one answer to it, as those of a pair, not cut. An empty answer is
    its EOS, and its prompt is not encoded: [].

    Args: turns: of the prompt, the last the user's.
    Raises: ValueError: for an empty prompt, or text that the template or the tokenizer refuses.
    """
    if not answer.strip():
        assert isinstance(tokenizer.eos_token_id, int), "prepare_tokenizer requires it"
        return [], [tokenizer.eos_token_id]
    whole = chat.encode_messages(
        tokenizer,
        [*turns, {"role": "assistant", "content": answer}],
        max_tokens=sys.maxsize,
        template=template(tokenizer),
        names=[*["prompt"] * len(turns), "the answer"],
    )
    # of several assistant turns only the last is the answer: the last run of targets
    end = start = len(whole.ids) - whole.is_target[::-1].index(True)
    while start and whole.is_target[start - 1]:
        start -= 1
    return whole.ids[:start], whole.ids[start:end]


def cut_alike(encoded: Encoded, limits: Limits, bos_id: int | None) -> Encoded:
    """The prompt and the answers within the limits, as `chat.truncate_pair` cuts a pair; all
    answers follow the same prompt.

    Raises:
        NoPreference: all answers are the same once cut.
        ValueError: for limits that leave an answer no tokens.
    """
    longest = max(encoded.answers_ids, key=len)
    prompt_ids = chat.truncate_pair(
        EncodedPair("", encoded.prompt_ids, longest, longest),
        max_tokens=limits.max_tokens,
        max_prompt_tokens=limits.max_prompt_tokens,
        bos_id=bos_id,
    ).prompt_ids
    room = limits.max_tokens - len(prompt_ids)
    answers_ids = [ids[:room] for ids in encoded.answers_ids]
    if all(ids == answers_ids[0] for ids in answers_ids):
        raise NoPreference("both sides equal once encoded and cut")
    return encoded._replace(prompt_ids=prompt_ids, answers_ids=answers_ids)


def in_pairs(
    id: str, encoded: Encoded, first: int
) -> tuple[list[EncodedPair], list[tuple[int, int]]]:
    """The answers two by two, and the place of each. The last of an odd number stands beside the
    first one, which then is computed twice.

    Args: first: the number of the first pair.
    """
    answers = encoded.answers_ids
    places = [(first + i // 2, i % 2) for i in range(len(answers))]
    filled = [*answers, answers[0]] if len(answers) % 2 else answers
    pairs = [
        EncodedPair(id, encoded.prompt_ids, filled[i], filled[i + 1])
        for i in range(0, len(filled), 2)
    ]
    return pairs, places
