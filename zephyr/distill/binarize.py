"""A feedback row becomes a preference pair: a rule picks the chosen and the rejected completion. A
pairwise row has its own verdict.

A rule's draw depends only on the seed and the prompt id (except for `handbook`), so that any order
or split of the rows gives the same pairs."""

import hashlib
import json
import random
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, count, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from zephyr.chat import Messages, check_messages, check_pair, without_space
from zephyr.config import BadInput
from zephyr.data.jsonl import require_output, save_report, write_rows
from zephyr.data.keys import SYSTEMS
from zephyr.data.pairwise import PAIRWISE
from zephyr.data.ratings import Tie, rating_keys
from zephyr.data.rows import check_row, has_lone_surrogate, row_id, text
from zephyr.data.shapes import pair_row
from zephyr.data.sources import RawRow, Source, count_rows, open_sources
from zephyr.distill.binarize_report import Report, Tally, make_report
from zephyr.distill.completions import (
    ULTRAFEEDBACK,
    Answer,
    read_answers,
    read_score,
    row_format,
)
from zephyr.distill.pairwise import Row, parse_pairwise, read_keys
from zephyr.distill.rules import Rule, rule_named
from zephyr.progress import track

# keys of the row that training reads from a pair
CARRIED_KEYS = ("system", "history", "tools", "weight")
# fields of a row that is one scored completion
SINGLE = {"idx", "response_source", "gpt4_score", "prompt", "response"}
# of such a row: the judge's prompt, which holds the prompt and the response again
JUDGE_PROMPT_KEY = "instruction"


class Side(NamedTuple):
    """One of the two texts of a pair. `score`: of the rule, or a share of the verdict."""

    text: str
    model: str | None
    score: float


class Candidate(NamedTuple):
    """Two sides of a row before the checks that make them a pair. `read`: the row's keys that were
    read."""

    id: str
    prompt_id: str
    prompt: str | Messages
    sides: tuple[Side, Side]
    rule: str
    read: set[str]


@dataclass
class BinarizeRun:
    """The options, the counts, and an SQLite file without a name.

    The file holds the ids and the single completions, which would otherwise fill the memory.
    """

    rule: str
    seed: int
    drop_sources: tuple[str, ...]
    fix_overall: bool
    tally: Tally = field(default_factory=Tally)
    score_name: str = field(init=False)
    pick: Rule = field(init=False)
    rng: random.Random = field(init=False)
    database: sqlite3.Connection = field(init=False)

    def __post_init__(self) -> None:
        self.score_name, self.pick = rule_named(self.rule)
        self.rng = random.Random(self.seed)
        self.database = sqlite3.connect("")
        self.database.execute("create table ids (id text primary key, place text) without rowid")
        self.database.execute(
            "create table singles (idx text, model text, place text, answer text)"
        )


def binarize(
    sources: Sequence[str] | Sequence[Path],
    out: Path,
    *,
    rule: str,
    seed: int = 42,
    drop_sources: tuple[str, ...] = (),
    fix_overall: bool = False,
) -> Report:
    """Write pair rows to `out`, and the report beside it as .report.json. The memory does not grow
    with the number of rows.

    Rows are feedback rows, UltraFeedback's, one scored completion each (`SINGLE`; the completions
    of one `idx` count as one row), or pairwise rows (`data.pairwise.PAIRWISE`).

    A pair row has `id`, `prompt_id`, `prompt`, `chosen`, `rejected`, `chosen_model`,
    `rejected_model`, `score_chosen`, `score_rejected`, `rule` (`verdict` for pairwise rows, whose
    scores are shares of the verdict) and `source`. It also has the row's `system`, `history`,
    `tools`, `weight`, and its own ratings of the two sides. Other keys that could mean something in
    training are errors, as in training (`data.shapes.pair_row`); all others are listed in the
    report's `keys_not_read`.

    Args:
        sources: of the rows, `path-or-hub-id[:split]`.
        out: a .jsonl file.
        rule: a name in `rules.RULES`, or `margin>=K`.
        seed: of the rule's draws.
        drop_sources: rows whose `source` or `dataset` is one of these are left out.
        fix_overall: correct UltraFeedback's overall scores of 10 that should be 1
            (`completions.read_answers`).
    Returns:
        The report. `rows` is the sum of `pairs` and of all `dropped`. `win_rate`: by model, the
        mean share of the verdict, a half for ties. `disagreement`: the share of pairs whose mean
        and overall scores prefer different sides. `longer_chosen`: the share of pairs whose chosen
        text is the longer one. `inverted`: pairs whose own ratings call the chosen side worse.
    Raises:
        BadInput: with file and line of a bad row, for an unknown rule, for a prompt id that comes
            twice, or if there is no pair.
    """
    run = BinarizeRun(rule, seed, drop_sources, fix_overall)
    opened = open_sources([str(source) for source in sources])
    require_output(out, sources)
    with closing(run.database):
        pairs = make_pairs(opened, run)
        first = list(islice(pairs, 1))
        if first:  # without a pair, an earlier file is not replaced
            write_rows(out, chain(first, pairs))
    names = [str(source) for source in sources]
    digests = {source.name: source.digest for source in opened}
    counts = make_report(
        run.tally, rule=rule, seed=seed, fix_overall=fix_overall, drop_sources=drop_sources
    )
    if not first:
        raise BadInput(
            f"{', '.join(digests)}: no pair could be made; left out: "
            f"{json.dumps(counts['dropped'])}"
        )
    return save_report(out, {"sources": names, "digests": digests, **counts})


def make_pairs(sources: Sequence[Source], run: BinarizeRun) -> Iterator[Row]:
    """Yield the pairs. A row without a pair is counted with its reason. Single completions are
    stored until all rows are read."""
    raws = (raw for source in sources for raw in source.rows())
    rows = track(raws, "binarize", "rows", total=count_rows(sources))
    for place, default_id, value, _ in chain(rows, grouped_completions(run)):
        try:
            made = read_row(value, default_id, place, run)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{place}: {error}") from None
        if made is None:
            continue
        run.tally.add("total", "rows")
        if isinstance(made, str):
            run.tally.add("dropped", made)
        else:
            run.tally.add("total", "pairs")
            yield made


def read_row(value: object, default_id: str, place: str, run: BinarizeRun) -> Row | str | None:
    """Return the pair of a row, the reason why it has none, or None for a single completion, which
    is stored."""
    row = check_row(value)
    if has_lone_surrogate(row):
        return "a lone surrogate"
    if row.keys() >= SINGLE:
        store_completion(row, place, run)
        return None
    return make_pair(row, default_id, place, run)


def store_completion(row: Row, place: str, run: BinarizeRun) -> None:
    """Store a row that is one scored completion."""
    idx, model = row_id(row, field="idx"), text(row, "response_source")
    given = row["gpt4_score"] if isinstance(row["gpt4_score"], list) else [row["gpt4_score"]]
    known = SINGLE | {"source", "dataset", JUDGE_PROMPT_KEY}
    if JUDGE_PROMPT_KEY in row:
        run.tally.add("unread", JUDGE_PROMPT_KEY)
    completion = {
        "scores": {n: read_score(score, "gpt4_score") for n, score in enumerate(given)},
        "rest": {key: value for key, value in row.items() if key not in known},
        "model": model,
        "text": text(row, "response"),
        "prompt": text(row, "prompt"),
        "source": source_of(row),
    }
    unique_id(json.dumps([idx, model]), place, run)
    run.database.execute(
        "insert into singles values (?, ?, ?, ?)", (idx, model, place, json.dumps(completion))
    )
    run.tally.add("shapes", "single completions")


def grouped_completions(run: BinarizeRun) -> Iterator[RawRow]:
    """Yield the stored completions as feedback rows, each with its place and no default id. The
    completions are in the order of the models' names."""
    stored = run.database.execute("select * from singles order by idx, model")
    for idx, group in groupby(stored, key=itemgetter(0)):
        places, completions = [], []
        for _, _, place, completion in group:
            places.append(place)
            completions.append(json.loads(completion))
        first = completions[0]
        if any(completion["prompt"] != first["prompt"] for completion in completions):
            # e.g. the prompt holds the model's own earlier answer
            run.tally.add("total", "rows")
            run.tally.add("dropped", "prompts differ")
            continue
        shared = shared_keys([completion.pop("rest") for completion in completions], places)
        row = {**shared, "prompt_id": idx, "prompt": first["prompt"], "source": first["source"]}
        yield RawRow(places[0], "", {**row, "completions": completions})


def shared_keys(rows: Sequence[Row], places: Sequence[str]) -> Row:
    """Return the other keys of the rows of one group, each with its first value.

    Raises:
        BadInput: if a key that a pair carries, like `system`, differs.
    """
    shared: dict[str, object] = {}
    for row in rows:
        for key, value in row.items():
            shared.setdefault(key, value)
    for key in shared:
        if key not in (*CARRIED_KEYS, *SYSTEMS):
            continue
        for row, place in zip(rows, places):
            if row.get(key) != rows[0].get(key):
                raise BadInput(
                    f"{place}: `{key}` is not that of {places[0]}, which has the same idx, "
                    "expected one value for all of its completions"
                )
    return shared


def unique_id(id: str, place: str, run: BinarizeRun, *, numbered: bool = False) -> str:
    """Return an id that no other pair has.

    Args:
        numbered: an id that comes again gets a number.
    Raises:
        ValueError: if the id comes again and is not to be numbered.
    """
    more = (f"{id}-{n}" for n in count(2)) if numbered else ()
    for name in chain([id], more):
        found = run.database.execute("select place from ids where id = ?", (name,)).fetchone()
        if not found:
            run.database.execute("insert into ids values (?, ?)", (name, place))
            run.tally.add("total", "repeated_ids", int(name != id))
            return name
    raise ValueError(f"{id!r:.80} comes twice, the first time at {found[0]}")


def make_pair(row: Row, default_id: str, place: str, run: BinarizeRun) -> Row | str:
    """Return the pair of a row, or the reason why it has none. The side of the higher score is the
    chosen one."""
    source = source_of(row)
    if source in run.drop_sources:
        return f"source {source}"
    if "completions" in row:
        candidate = read_feedback(row, place, run)
    else:
        candidate = read_verdict(row, default_id, place, run)
    if isinstance(candidate, str):
        return candidate
    count_judged(candidate, run)
    chosen, rejected = sorted(candidate.sides, key=lambda side: side.score, reverse=True)
    reason = unusable_reason(candidate, chosen, rejected)
    if reason:
        return reason
    texts = {"prompt": candidate.prompt, "chosen": chosen.text, "rejected": rejected.text}
    carried = carried_keys(row, candidate.read, texts, place, run)
    if isinstance(carried, str):
        return carried
    run.tally.add("total", "equal_scores", int(chosen.score == rejected.score))
    run.tally.add("total", "longer", int(len(chosen.text) > len(rejected.text)))
    run.tally.add("chosen", chosen.model or "")
    pair: dict[str, object] = {
        "id": candidate.id,
        "prompt_id": candidate.prompt_id,
        **texts,
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
        "score_chosen": chosen.score,
        "score_rejected": rejected.score,
        "rule": candidate.rule,
    }
    if source is not None:
        pair["source"] = source
    return {**pair, **carried}


def count_judged(candidate: Candidate, run: BinarizeRun) -> None:
    """Count the comparison for both models: a rule's choice is a win, a verdict has its shares."""
    for side, share in zip(candidate.sides, (1.0, 0.0)):
        model = side.model or ""
        run.tally.add("judged", model)
        run.tally.shares_won[model] += side.score if candidate.rule == "verdict" else share


def unusable_reason(candidate: Candidate, chosen: Side, rejected: Side) -> str:
    """Return why two sides are no pair, "" if they are one."""
    if chosen.score == rejected.score and candidate.rule == "verdict":
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
    row: Row, read: set[str], texts: Row, place: str, run: BinarizeRun
) -> dict[str, object] | str:
    """Return the other keys of the row that go into its pair, or the reason why there is no pair.
    Training's own rules for keys decide.

    Args:
        read: keys of the row that are in the pair already.
        texts: `prompt`, `chosen` and `rejected` of the pair.
    Raises:
        ValueError: naming a key that means something and has no place in a pair.
    """
    rest = {key: value for key, value in row.items() if key not in read}
    if not rest:
        return {}
    try:
        as_trained, unread = pair_row({**rest, **texts}, is_plain=True)
        check_pair(as_trained)
    except Tie as tie:
        return f"a tie: {tie}"
    except ValueError as error:
        advice = "; take it out of the rows, or put it where it is read"
        raise ValueError(re.sub(r"; data\..*", advice, str(error))) from None
    for key in dict.fromkeys(unread):
        run.tally.add("unread", key)
    margins = as_trained.get("margins")
    if isinstance(margins, (list, tuple)) and min(margins, default=0) < 0:
        run.tally.add("total", "inverted")
        run.tally.add_fault("inverted", place)
    paths = rating_keys(rest)
    rated = {
        key: value
        for key, value in rest.items()
        if any(path == key or path.startswith(f"{key}.") for path in paths)
    }
    return {**{key: as_trained[key] for key in CARRIED_KEYS if key in as_trained}, **rated}


def read_verdict(row: Row, default_id: str, place: str, run: BinarizeRun) -> Candidate | str:
    """Return the two sides of a pairwise row with their shares of the verdict, or the reason why
    there are none.

    The id of the pair is the row's own; else it is made of prompt id, judge and models if the
    prompt has an id; else it is file and line.

    Raises:
        ValueError: for a row of an unknown format, or a bad field.
    """
    parsed = parse_pairwise(row)
    if parsed is None:
        raise ValueError(
            f"the row has the fields {sorted(row)!s:.200}, expected those of feedback (with "
            f"`completions`), of single completions ({', '.join(sorted(SINGLE))}), or of "
            f"{', '.join(PAIRWISE)}"
        )
    shape, pair = parsed
    run.tally.add("shapes", shape)
    if isinstance(pair, str):
        return pair
    if pair.shares is None:
        return "no verdict"
    asked = row.get("prompt_id", row.get("question_id"))
    name = default_id
    if asked is not None:
        judged_by = [row.get(key) for key in ("annotator", "judge", "turn")]
        parts = [asked, *judged_by, *pair.models]
        name = "/".join(str(part) for part in parts if isinstance(part, (str, int)))
    id = unique_id(row_id(row) if "id" in row else name, place, run, numbered=True)
    first, second = (Side(*side) for side in zip(pair.texts, pair.models, pair.shares))
    prompt_id = prompt_digest(pair.prompt) if asked is None else str(asked)
    read = read_keys(row, shape)
    return Candidate(id, prompt_id, pair.prompt, (first, second), "verdict", read)


def read_feedback(row: Row, place: str, run: BinarizeRun) -> Candidate | str:
    """Return the two completions that the rule picks, or the reason why there are none.

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
    id = unique_id(prompt_id, place, run, numbered=without_id)
    answers = list(read_answers(row, fields, id, run.tally, fix_overall=run.fix_overall))
    picked = pick_answers(answers, id, run)
    if isinstance(picked, str):
        return picked
    sides = (
        Side(picked[0].text, picked[0].model, scored(picked[0], run)),
        Side(picked[1].text, picked[1].model, scored(picked[1], run)),
    )
    read = {"completions", "prompt_id", "id", "source", "dataset", fields.prompt}
    return Candidate(id, prompt_id, prompt, sides, run.rule, read)


def pick_answers(
    answers: Sequence[Answer], id: str, run: BinarizeRun
) -> tuple[Answer, Answer] | str:
    """Return the chosen and the rejected answer by the rule, or the reason why there are none."""
    found = [answer for answer in answers if answer.score(run.score_name) is not None]
    run.tally.add("left out", f"no {run.score_name} score", len(answers) - len(found))
    if len(found) < 2:
        return "fewer than 2 scored completions"
    scores = [scored(answer, run) for answer in found]
    if run.rule == "handbook":  # as the handbook's script: exact texts, one generator for all rows
        texts, rng = [answer.text for answer in found], run.rng
    else:
        texts = [without_space(answer.text) for answer in found]
        rng = random.Random(f"{run.seed}/{id}")
    picked = run.pick(scores, texts, rng)
    if isinstance(picked, str):
        return picked
    chosen, rejected = (found[i] for i in picked)
    count_agreement(chosen, rejected, run)
    return chosen, rejected


def scored(answer: Answer, run: BinarizeRun) -> float:
    """Return the score that the rule compares."""
    score = answer.score(run.score_name)
    assert score is not None, "answers without a score were left out"
    return score


def count_agreement(chosen: Answer, rejected: Answer, run: BinarizeRun) -> None:
    """Count whether mean and overall scores prefer the same side, if both answers have both."""
    if chosen.mean is None or rejected.mean is None:
        return
    if chosen.overall is None or rejected.overall is None:
        return
    agreement = (chosen.mean - rejected.mean) * (chosen.overall - rejected.overall)
    run.tally.add("total", "comparable", int(agreement != 0))
    run.tally.add("total", "disagree", int(agreement < 0))


def source_of(row: Row) -> str | None:
    """Return the name of the data set that a row is from, if it has one."""
    source = row.get("source", row.get("dataset"))
    return source if isinstance(source, str) else None


def prompt_digest(prompt: str | Messages) -> str:
    """Return the SHA-256 of a prompt, which stands for an id."""
    content = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.sha256(content.encode()).hexdigest()
