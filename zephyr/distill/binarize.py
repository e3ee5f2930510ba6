"""A feedback row becomes a preference pair: a rule picks the chosen and the rejected completion. A
pairwise row has its own verdict.

A rule's draw depends only on the seed and the prompt id (except for `handbook`), so that any order
or split of the rows gives the same pairs."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from zephyr.chat import Messages, check_messages, check_pair, without_space
from zephyr.config import BadInput
from zephyr.data.jsonl import require_output, save_report, write_rows
from zephyr.data.pairwise import PAIRWISE
from zephyr.data.ratings import Tie, rating_keys
from zephyr.data.rows import check_row, has_lone_surrogate, row_id
from zephyr.data.shapes import pair_row
from zephyr.data.sources import RawRow, Source, count_rows, open_each
from zephyr.distill.binarize_report import MAX_SOURCES, Report, Tally, make_report
from zephyr.distill.completions import (
    ULTRAFEEDBACK,
    Answer,
    read_answers,
    row_format,
)
from zephyr.distill.handbook import (
    KEPT_BY_SCRIPT,
    read_prompts,
    split_rows,
    store_row,
    test_file,
)
from zephyr.distill.pair_options import ALL_PAIRS, PairOptions, check_options
from zephyr.distill.pairwise import PairwiseRow, Row, parse_pairwise, read_keys
from zephyr.distill.picking import (
    Picker,
    is_on_policy,
    pick_answers,
    scored,
    usable_answers,
)
from zephyr.distill.rules import DELTA, NO_STRONG, NO_WEAK
from zephyr.distill.selection import Made, chosen_pairs, create_pool, store_pairs
from zephyr.distill.singles import (
    ANSWER_WORDS,
    CARRIED_KEYS,
    SINGLE,
    create_singles,
    grouped_completions,
    read_completion,
    source_of,
    store_completion,
)
from zephyr.distill.unique_ids import create_ids, unique_id
from zephyr.progress import track

MAX_LISTED_MODELS = 30  # names that an error lists


class Side(NamedTuple):
    """One of the two texts of a pair. `score`: of the rule, or a share of the verdict; None under
    `delta`, which compares no scores."""

    text: str
    model: str | None
    score: float | None


class Candidate(NamedTuple):
    """The chosen and the rejected side of a row before the checks that make them a pair.

    `read`: the row's keys that were read.
    `preference`: `Made.preference`.
    `is_tie`: the verdict prefers neither side.
    """

    id: str
    prompt_id: str
    prompt: str | Messages
    sides: tuple[Side, Side]
    rule: str
    read: set[str]
    preference: int = 0
    is_tie: bool = False


# kind of a pair (`PairOptions.kinds`) -> the candidate, or the reason why there is none
Candidates = dict[str, Candidate | str]


@dataclass
class BinarizeRun:
    """The options, the counts, and an SQLite file without a name.

    The file holds the ids and the single completions, which would otherwise fill the memory.
    """

    rule: str
    seed: int
    drop_sources: tuple[str, ...]
    fix_overall: bool
    options: PairOptions
    sources: Sequence[str]  # as the command names them, by `RawRow.entry`
    tally: Tally = field(default_factory=Tally)
    picker: Picker = field(init=False)
    length: Callable[[str], int] = field(init=False)
    left_out: frozenset[str] = field(init=False)  # prompts
    database: sqlite3.Connection = field(init=False)

    def __post_init__(self) -> None:
        self.picker = Picker(self.rule, self.seed, self.options)
        self.length = length_in(self.options.tokenizer)
        self.left_out = read_prompts(self.options.drop_prompts)
        self.database = sqlite3.connect("")
        create_ids(self.database)
        create_singles(self.database)
        create_pool(self.database)


def length_in(tokenizer: str | None) -> Callable[[str], int]:
    """Return the function that counts the words of a text, or the tokens of a tokenizer."""
    if tokenizer is None:
        return lambda text: len(text.split())
    from zephyr.data.tokenizer import read_tokenizer

    # verbose: no warning of texts that are longer than the model's context
    encode = partial(read_tokenizer(tokenizer).encode, add_special_tokens=False, verbose=False)
    return lambda text: len(encode(text))


def binarize(
    sources: Sequence[str] | Sequence[Path],
    out: Path,
    *,
    rule: str,
    seed: int = 42,
    drop_sources: tuple[str, ...] = (),
    fix_overall: bool = False,
    options: PairOptions = ALL_PAIRS,
) -> Report:
    """Write pair rows to `out`, and the report beside it as .report.json. The memory does not grow
    with the number of rows.

    Rows are feedback rows, UltraFeedback's, one completion each (`singles.SINGLE`, or without a
    score `singles.ANSWER`; the completions of one prompt id count as one row), or pairwise rows
    (`data.pairwise.PAIRWISE`).

    A pair row has `id`, `prompt_id`, `prompt`, `chosen`, `rejected`, `chosen_model`,
    `rejected_model`, `score_chosen`, `score_rejected`, `rule` (`verdict` for pairwise rows, whose
    scores are shares of the verdict) and `source`. Rule `delta` writes no scores, and picks by the
    models of pairwise rows too. A pair row also has the row's `system`, `history`, `tools`,
    `weight`, and its own ratings of the two sides. Other keys that could mean something in training
    are errors, as in training (`data.shapes.pair_row`); all others are listed in the report's
    `keys_not_read`.

    Args:
        sources: of the rows, `path-or-hub-id[:split]`.
        out: a .jsonl file.
        rule: a name in `rules.RULES`, `margin>=K`, or `delta`.
        seed: of the rule's draws, of samples and of the test rows.
        drop_sources: rows whose `source` or `dataset` is one of these are left out.
        fix_overall: correct UltraFeedback's overall scores of 10 that should be 1
            (`completions.read_answers`).
        options: which answers and pairs are wanted.
    Returns:
        The report (`binarize_report.make_report`).
    Raises:
        BadInput: with file and line of a bad row, for an unknown rule, for options that contradict
            each other, for a prompt id that comes twice, for fewer pairs than were to be taken, or
            if there is no pair.
    """
    check_options(rule, options)
    names = [str(source) for source in sources]
    run = BinarizeRun(rule, seed, drop_sources, fix_overall, options, names)
    opened = open_each(names)
    require_output(out, sources)
    if options.test_rows:
        require_output(test_file(out), sources)
    with closing(run.database):
        pairs = written_pairs(opened, run)
        first = list(islice(pairs, 1))
        if first:  # without a pair, an earlier file is not replaced
            write_rows(out, chain(first, pairs))
            test = write_test_rows(out, run) if options.test_rows else {}
    digests = {source.name: source.digest for group in opened for source in group}
    counts = make_report(
        run.tally,
        rule=rule,
        seed=seed,
        fix_overall=fix_overall,
        drop_sources=drop_sources,
        options=options,
    )
    if not first:
        raise BadInput(
            f"{', '.join(digests)}: no pair could be made; left out: "
            f"{json.dumps(counts['dropped'])}"
        )
    return save_report(out, {"sources": names, "digests": digests, **counts, **test})


def write_test_rows(out: Path, run: BinarizeRun) -> Report:
    """Write the pairs of the test rows beside the others; returns what the report says of them."""
    assert run.options.test_rows
    file = test_file(out)
    _, test = split_rows(run.database, run.options.test_rows, run.seed)
    number = write_rows(file, counted(test, run))
    return {"test": {"out": str(file), "rows": run.options.test_rows, "pairs": number}}


def written_pairs(opened: Sequence[Sequence[Source]], run: BinarizeRun) -> Iterator[Row]:
    """Yield the pairs that are written. A row without one is counted with its reason."""
    made = made_pairs(opened, run)
    outcomes: Iterable[Made | str]
    if run.options.test_rows:
        for pairs, _ in made:
            store_row(run.database, next(iter(pairs.values())))
        outcomes, _ = split_rows(run.database, run.options.test_rows, run.seed)
    elif run.options.take or run.options.mix:
        seen: set[str] = set()
        for pairs, sample in made:
            seen.add(sample or "")
            store_pairs(run.database, pairs, sample, run.seed)
        require_models(run)
        require_seen(seen, run)
        outcomes = chosen_pairs(run.database, run.options)
    else:
        outcomes = (next(iter(pairs.values())) for pairs, _ in made)
    yield from counted(outcomes, run)
    require_models(run)  # here too, for rows that are not all read before the first pair


def counted(outcomes: Iterable[Made | str], run: BinarizeRun) -> Iterator[Row]:
    """Yield the pairs among the outcomes, and count them and the reasons of the others."""
    for outcome in outcomes:
        if isinstance(outcome, str):
            run.tally.add("dropped", outcome)
        else:
            count_written(outcome, run)
            yield outcome.pair


def require_models(run: BinarizeRun) -> None:
    """Raises: BadInput for a model of the options that no answer is of, with those that are
    there."""
    options, found = run.options, run.tally.counts["models"]
    for option, models in (
        ("--strong", options.strong),
        ("--weak", options.weak),
        ("--on-policy", options.on_policy),
    ):
        for model in models:
            if model not in found and len(found) < MAX_SOURCES:
                names = [name for name, _ in found.most_common(MAX_LISTED_MODELS) if name]
                raise BadInput(
                    f"binarize: {option} {model}: no row has an answer of this model, expected one "
                    f"of {', '.join(names) or 'those that the rows name, which is none'}"
                )


def require_seen(seen: set[str], run: BinarizeRun) -> None:
    """Raises: BadInput for a source of `take` that no pair is of, with those that are there."""
    for source, number in run.options.take.items():
        if source not in seen:
            there = sorted({*run.tally.counts["made source"], *run.sources})
            raise BadInput(
                f"binarize: --take {source}={number}: no pair is of this source, expected one of "
                f"{', '.join(there)}"
            )


def made_pairs(
    opened: Sequence[Sequence[Source]], run: BinarizeRun
) -> Iterator[tuple[dict[str, Made], str | None]]:
    """Yield the pairs of each row by kind, and the key of `take` that the row belongs to. A row
    without a pair is counted with its reason. Single completions are stored until all rows are
    read."""
    sources = [source for group in opened for source in group]
    raws = (
        raw._replace(entry=entry)
        for entry, group in enumerate(opened)
        for source in group
        for raw in source.rows()
    )
    rows = track(raws, "binarize", "rows", total=count_rows(sources))
    for raw in chain(rows, grouped_completions(run.database, run.tally)):
        try:
            made = read_row(raw, run)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{raw.place}: {error}") from None
        if made is None:
            continue
        run.tally.add("total", "rows")
        if isinstance(made, str):
            run.tally.add("dropped", made)
            if run.options.test_rows and made in KEPT_BY_SCRIPT:
                store_row(run.database, None)
        else:
            source = next(iter(made.values())).source
            named = [run.sources[raw.entry], source]
            yield made, next((name for name in named if name in run.options.take), None)


def read_row(raw: RawRow, run: BinarizeRun) -> dict[str, Made] | str | None:
    """Return the pairs of a row by kind, the reason why it has none, or None for a single
    completion, which is stored."""
    row = check_row(raw.value)
    if has_lone_surrogate(row):
        return "a lone surrogate"
    completion = read_completion(row, run.tally)
    if completion:
        store_completion(completion, raw, run.database, run.tally)
        return None
    return pairs_of_row(row, raw, run)


def pairs_of_row(row: Row, raw: RawRow, run: BinarizeRun) -> dict[str, Made] | str:
    """Return the pairs that a row gives by kind, or the reason why it gives none."""
    source = source_of(row)
    name = run.sources[raw.entry] if source is None else source
    if name not in run.options.take:
        name = run.tally.source_name(name)
    run.tally.add("rows source", name)
    if source in run.drop_sources:
        return f"source {source}"
    prompt = row.get(row_format(row).prompt)
    if isinstance(prompt, str) and prompt in run.left_out:
        return "a prompt of --drop-prompts"
    if "completions" in row:
        candidates = read_feedback(row, raw.place, run)
    else:
        candidates = read_verdict(row, raw, run)
    made: dict[str, Made] = {}
    reason = ""
    unread: dict[str, None] = {}  # a set in the order of the row
    for kind, candidate in candidates.items():
        if isinstance(candidate, str):
            reason = candidate
            continue
        pair = make_pair(candidate, row, source, name, raw.place, run, unread)
        if isinstance(pair, str):
            reason = pair
        else:
            made[kind] = pair
    for key in unread:
        run.tally.add("unread", key)
    if not made and reason in (NO_STRONG, NO_WEAK):
        run.tally.add_fault(reason, raw.place)
    return made or reason


def make_pair(
    candidate: Candidate,
    row: Row,
    source: str | None,
    name: str,
    place: str,
    run: BinarizeRun,
    unread: dict[str, None],
) -> Made | str:
    """Return a pair, or the reason why the candidate is none.

    Args:
        source, name: the row's own source, and what its pairs are counted under.
        unread: keys that nothing reads are added.
    """
    count_judged(candidate, run)
    chosen, rejected = candidate.sides
    reason = unusable_reason(candidate, chosen, rejected)
    if reason:
        return reason
    texts = {"prompt": candidate.prompt, "chosen": chosen.text, "rejected": rejected.text}
    carried = carried_keys(row, candidate.read, texts, unread)
    if isinstance(carried, str):
        return carried
    scores: dict[str, object] = {"score_chosen": chosen.score, "score_rejected": rejected.score}
    pair: dict[str, object] = {
        "id": candidate.id,
        "prompt_id": candidate.prompt_id,
        **texts,
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
        **({} if candidate.rule == DELTA else scores),
        "rule": candidate.rule,
    }
    if source is not None:
        pair["source"] = source
    keys, inverted = carried
    longer = run.length(chosen.text) - run.length(rejected.text)
    made = Made({**pair, **keys}, place, name, candidate.preference, longer, inverted)
    return within_length(made, run)


def within_length(made: Made, run: BinarizeRun) -> Made | str:
    """Return the pair, counted before and after the limit on the difference of lengths, or the
    reason why it is over the limit."""
    run.tally.count_stage("made", made)
    most, unit = run.options.max_length_difference, run.options.length_unit
    if most is not None and abs(made.longer) > most:
        return f"lengths differ by more than {most} {unit}"
    run.tally.count_stage("within length", made)
    return made


def count_written(made: Made, run: BinarizeRun) -> None:
    """Count a pair that is written."""
    tally, pair = run.tally, made.pair
    tally.count_stage("pairs", made)
    scores = pair.get("score_chosen"), pair.get("score_rejected")
    tally.add("total", "pairs")
    tally.add("total", "equal_scores", int(scores[0] is not None and scores[0] == scores[1]))
    tally.add("total", "longer", int(len(str(pair["chosen"])) > len(str(pair["rejected"]))))
    tally.add("total", "comparable", int(made.preference != 0))
    tally.add("total", "disagree", int(made.preference < 0))
    is_on = is_on_policy(pair["chosen_model"], pair["rejected_model"], run.options)
    tally.add("kinds", "on" if is_on else "off")
    if made.inverted:
        tally.add("total", "inverted")
        tally.add_fault("inverted", made.place)


def count_judged(candidate: Candidate, run: BinarizeRun) -> None:
    """Count the comparison for both models: a rule's choice is a win, a verdict has its shares."""
    if candidate.rule == DELTA:
        return
    for side, share in zip(candidate.sides, (1.0, 0.0)):
        model = side.model or ""
        won = side.score if candidate.rule == "verdict" else share
        run.tally.add("judged", model)
        run.tally.shares_won[model] += won or 0.0


def unusable_reason(candidate: Candidate, chosen: Side, rejected: Side) -> str:
    """Return why two sides are no pair, "" if they are one."""
    if candidate.is_tie:
        return "tie"
    texts = [chosen.text, rejected.text]
    if isinstance(candidate.prompt, str):
        texts.append(candidate.prompt)
    if not all(text.strip() for text in texts):
        return "texts equal" if chosen.text == rejected.text else "a text is empty"
    if without_space(chosen.text) == without_space(rejected.text):
        equal = chosen.text == rejected.text
        return "texts equal" if equal else "texts equal but for white space"
    return ""


def carried_keys(
    row: Row, read: set[str], texts: Row, unread: dict[str, None]
) -> tuple[dict[str, object], bool] | str:
    """Return the other keys of the row that go into its pair and whether they call the chosen
    answer worse, or the reason why there is no pair. Training's own rules for keys decide.

    Args:
        read: keys of the row that are in the pair already.
        texts: `prompt`, `chosen` and `rejected` of the pair.
        unread: keys that nothing reads are added.
    Raises:
        ValueError: naming a key that means something and has no place in a pair.
    """
    rest = {key: value for key, value in row.items() if key not in read}
    if not rest:
        return {}, False
    try:
        as_trained, not_read = pair_row({**rest, **texts}, is_plain=True)
        check_pair(as_trained)
    except Tie as tie:
        return f"a tie: {tie}"
    except ValueError as error:
        advice = "; take it out of the rows, or put it where it is read"
        raise ValueError(re.sub(r"; data\..*", advice, str(error))) from None
    unread.update(dict.fromkeys(not_read))
    margins = as_trained.get("margins")
    inverted = isinstance(margins, (list, tuple)) and min(margins, default=0) < 0
    paths = rating_keys(rest)
    rated = {
        key: value
        for key, value in rest.items()
        if any(path == key or path.startswith(f"{key}.") for path in paths)
    }
    carried = {key: as_trained[key] for key in CARRIED_KEYS if key in as_trained}
    return {**carried, **rated}, inverted


def read_verdict(row: Row, raw: RawRow, run: BinarizeRun) -> Candidates:
    """Return the two sides of a pairwise row, the one with the higher share of the verdict first
    (under `delta`, the stronger model's), or the reason why there are none.

    The id of the pair is the row's own; else it is made of prompt id, judge and models if the
    prompt has an id; else it is file and line.

    Raises:
        ValueError: for a row of an unknown format, or a bad field.
    """
    parsed = parse_pairwise(row)
    if parsed is None:
        raise ValueError(
            f"the row has the fields {sorted(row)!s:.200}, expected those of feedback (with "
            f"`completions`), of single completions ({', '.join(sorted(SINGLE))}; or "
            f"{ANSWER_WORDS}), or of {', '.join(PAIRWISE)}"
        )
    shape, pair = parsed
    run.tally.add("shapes", shape)
    if isinstance(pair, str):
        return {"pair": pair}
    run.tally.count_models(pair.models)
    if pair.shares is None and run.rule != DELTA:
        return {"pair": "no verdict"}
    asked = row.get("prompt_id", row.get("question_id"))
    name = raw.default_id
    if asked is not None:
        judged_by = [row.get(key) for key in ("annotator", "judge", "turn")]
        parts = [asked, *judged_by, *pair.models]
        name = "/".join(str(part) for part in parts if isinstance(part, (str, int)))
    id = unique_id(
        row_id(row) if "id" in row else name, raw.place, run.database, run.tally, numbered=True
    )
    prompt_id = prompt_digest(pair.prompt) if asked is None else str(asked)
    read = read_keys(row, shape)
    if run.rule == DELTA:
        answers = [
            Answer(model or "", text, None if pair.shares is None else share, None)
            for model, text, share in zip(pair.models, pair.texts, pair.shares or (0.0, 0.0))
        ]
        return picked_candidates(answers, id, prompt_id, pair.prompt, read, run)
    return judged_candidates(pair, id, prompt_id, read, run)


def judged_candidates(
    pair: PairwiseRow, id: str, prompt_id: str, read: set[str], run: BinarizeRun
) -> Candidates:
    """The candidate of a row with a verdict, under the kind of pair that it is."""
    assert pair.shares is not None
    sides = [Side(*side) for side in zip(pair.texts, pair.models, pair.shares)]
    is_tie = pair.shares[0] == pair.shares[1]
    if pair.shares[1] > pair.shares[0]:
        sides.reverse()
    first, second = sides
    candidate = Candidate(
        id, prompt_id, pair.prompt, (first, second), "verdict", read, is_tie=is_tie
    )
    if not run.options.on_policy:
        return {"pair": candidate}
    kind = "on" if is_on_policy(first.model, second.model, run.options) else "off"
    if kind in run.options.kinds:
        return {kind: candidate}
    policy = ", ".join(run.options.on_policy)
    return {kind: f"no answer of {policy}" if kind == "off" else f"an answer of {policy}"}


def read_feedback(row: Row, place: str, run: BinarizeRun) -> Candidates:
    """Return the two completions that the rule picks for each kind of pair, or the reason why there
    are none.

    The id of the pair is the row's `prompt_id`. UltraFeedback has none: the id is the digest of the
    prompt, with a number if it comes again.

    Raises:
        ValueError: naming a bad field, or for a `prompt_id` that comes twice.
    """
    fields = row_format(row)
    prompt: object = row.get(fields.prompt)
    if not isinstance(prompt, str):
        prompt = check_messages(prompt, fields.prompt, last="user")
    run.tally.add("shapes", fields.name)
    without_id = fields is ULTRAFEEDBACK and "prompt_id" not in row
    prompt_id = prompt_digest(prompt) if without_id else row_id(row, field="prompt_id")
    id = unique_id(prompt_id, place, run.database, run.tally, numbered=without_id)
    answers = list(read_answers(row, fields, id, run.tally, fix_overall=run.fix_overall))
    read = {"completions", "prompt_id", "id", "source", "dataset", fields.prompt}
    return picked_candidates(answers, id, prompt_id, prompt, read, run)


def picked_candidates(
    answers: Sequence[Answer],
    id: str,
    prompt_id: str,
    prompt: str | Messages,
    read: set[str],
    run: BinarizeRun,
) -> Candidates:
    """What the rule picks of the answers, for each kind of pair."""
    run.tally.count_models([answer.model for answer in answers])
    usable = usable_answers(answers, run.picker, run.tally)
    candidates: Candidates = {}
    for kind in run.options.kinds:
        picked = pick_answers(usable, id, kind, run.picker)
        if isinstance(picked, str):
            candidates[kind] = picked
            continue
        sides = side_of(picked.chosen, run), side_of(picked.rejected, run)
        candidates[kind] = Candidate(
            id, prompt_id, prompt, sides, run.rule, read, picked.preference
        )
    return candidates


def side_of(answer: Answer, run: BinarizeRun) -> Side:
    score = None if run.rule == DELTA else scored(answer, run.picker)
    return Side(answer.text, answer.model, score)


def prompt_digest(prompt: str | Messages) -> str:
    """Return the SHA-256 of a prompt, which stands for an id."""
    content = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.sha256(content.encode()).hexdigest()
