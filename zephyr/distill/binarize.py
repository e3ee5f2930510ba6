"""A feedback row becomes a preference pair: a rule picks the chosen and the rejected completion; a
pairwise row brings its own verdict.

A rule's draw depends on seed and prompt id alone (`handbook` apart), so any order or split of the
rows gives the same pairs."""

import hashlib
import json
import random
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, count, groupby, islice
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from zephyr.chat import check_messages, check_pair, without_space
from zephyr.config import BadInput
from zephyr.data.jsonl import require_output, save_report, write_rows
from zephyr.data.keys import SYSTEMS
from zephyr.data.pairwise import PAIRWISE
from zephyr.data.ratings import Tie, rating_keys
from zephyr.data.rows import check_row, has_lone_surrogate, row_id, text
from zephyr.data.shapes import pair_row
from zephyr.data.sources import Source, open_sources
from zephyr.distill.pairwise import Row, parse_pairwise, read_keys
from zephyr.distill.rules import rule_named

Report = dict[str, object]
Found = tuple[str, str, object, list[tuple[str, str | None, float]], str, set[str]]
#       id, prompt_id, prompt, (text, model, score) twice, rule, the row's keys that were read
CARRIED_KEYS = (
    "system",
    "history",
    "tools",
    "weight",
)  # of the row, which training reads in a pair's
ANSWER = (
    {"model", "text", "scores", "overall"},
    {"model", "response", "annotations", "overall_score"},
)  # keys of a completion
SINGLE = {
    "idx",
    "response_source",
    "gpt4_score",
    "prompt",
    "response",
}  # fields of a row that is one scored completion
JUDGE_PROMPT_KEY = (
    "instruction"  # of such a row: what its judge was asked, prompt and response in it
)
DISAGREE, ENOUGH, FIRST = (
    0.3,
    20,
    5,
)  # share of pairs, of at least so many, that is a warning; ids that the report shows


class Answer(NamedTuple):
    """A completion; mean: of its aspect scores, overall: the score of the whole, None: not scored
    so."""

    model: str
    text: str
    mean: float | None
    overall: float | None


@dataclass
class Run:
    """What was asked for, what has been counted, and an SQLite file without a name that holds what
    would else fill the memory."""

    rule: str
    seed: int
    drop_sources: tuple[str, ...]
    fix_overall: bool
    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: dict[str, list[str]] = field(
        default_factory=lambda: {"10 for 1": [], "10 doubtful": [], "inverted": []}
    )
    database: sqlite3.Connection = field(default_factory=lambda: sqlite3.connect(""))

    def __post_init__(self) -> None:
        self.score, self.pick = rule_named(self.rule)
        self.rng = random.Random(self.seed)
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
    """Write pair rows to `out` (.jsonl) and the report to `out` with .report.json, in memory that
    does not grow with the rows.

    A pair: `id`, `prompt_id`, `prompt`, `chosen`, `rejected`, `chosen_model`, `rejected_model`, `score_chosen`, `score_rejected`, `rule`
    (`verdict` for pairwise rows, whose scores are shares of the verdict), `source`; of the row `system`, `history`, `tools`, `weight`
    and its own ratings of the two sides (`inverted` counts those that call the chosen one worse). What else may mean something to training
    is refused by name, as training refuses it (`shapes.pair_row`); all other keys are in the report's `keys_not_read`. Rows: feedback, UltraFeedback's nesting, one scored
    completion each (`SINGLE`; grouped by idx, a group counts as a row), or pairwise (`PAIRWISE`).
    Args: drop_sources: rows whose `source` or `dataset` is named are left out.
        fix_overall: an overall 10 counts as 1 where the aspects' mean is <= 2, and not at all where it is <= 4 (UltraFeedback's fault).
    Returns: the report: rows = pairs + all dropped. `win_rate`: mean share of the verdict, ties a half. `disagreement`: pairs of which
        mean and overall prefer different sides, a warning from `DISAGREE` on. `longer_chosen`: share of the pairs.
    Raises: BadInput naming file and line, an unknown rule, a prompt id that comes twice, or no pair left."""
    run, opened = (
        Run(rule, seed, drop_sources, fix_overall),
        open_sources([str(source) for source in sources]),
    )
    require_output(out, sources)
    with closing(run.database):
        pairs = _pairs(opened, run)
        if first := list(islice(pairs, 1)):  # where there is none, an earlier file stays
            write_rows(out, chain(first, pairs))
    report = {
        "sources": [str(source) for source in sources],
        "digests": {of.name: of.digest for of in opened},
        **_report(run),
    }
    if not first:
        raise BadInput(
            f"{', '.join(report['digests'])}: no pair could be made; left out: {json.dumps(report['dropped'])}"
        )
    return save_report(out, report)


def _pairs(sources: Sequence[Source], run: Run) -> Iterator[Row]:
    """The pairs; a row that gives none is counted with its reason, a single completion put by until
    all rows are read."""
    raws = (raw for source in sources for raw in source.rows())
    for place, name, value in chain(raws, _groups(run)):
        try:
            row = check_row(value)
            if has_lone_surrogate(row):
                made = "a lone surrogate"
            else:
                made = (
                    _store_completion(row, place, run)
                    if row.keys() >= SINGLE
                    else _pair(row, name, place, run)
                )
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{place}: {error}") from None
        run.counts["total"].update({"rows": made is not None, "pairs": isinstance(made, dict)})
        if isinstance(made, dict):
            yield made
        elif made:
            run.counts["dropped"][made] += 1


def _store_completion(row: Row, place: str, run: Run) -> None:
    idx, model = row_id(row, field="idx"), text(row, "response_source")
    given = row["gpt4_score"] if isinstance(row["gpt4_score"], list) else [row["gpt4_score"]]
    scores = {n: _score(score, "gpt4_score") for n, score in enumerate(given)}
    rest = {
        key: value
        for key, value in row.items()
        if key not in SINGLE | {"source", "dataset", JUDGE_PROMPT_KEY}
    }
    run.counts["unread"].update({JUDGE_PROMPT_KEY} & row.keys())
    single = {
        "rest": rest,
        "model": model,
        "text": text(row, "response"),
        "scores": scores,
        "prompt": text(row, "prompt"),
        "source": _source(row),
    }
    _unique_id(json.dumps([idx, model]), place, run)
    run.database.execute(
        "insert into singles values (?, ?, ?, ?)", (idx, model, place, json.dumps(single))
    )
    run.counts["shapes"]["single completions"] += 1


def _groups(run: Run) -> Iterator[tuple[str, str, Row]]:
    """The completions that were put by, as feedback rows; each in the order of the models'
    names."""
    for idx, group in groupby(
        run.database.execute("select * from singles order by idx, model"), key=itemgetter(0)
    ):
        places, answers = zip(*((place, json.loads(answer)) for _, _, place, answer in group))
        if all(answer["prompt"] == answers[0]["prompt"] for answer in answers):
            yield (
                places[0],
                "",
                {
                    **_shared([answer.pop("rest") for answer in answers], places),
                    "prompt_id": idx,
                    **{key: answers[0][key] for key in ("prompt", "source")},
                    "completions": list(answers),
                },
            )
        else:  # as where a model's own earlier answer stands in its prompt
            run.counts["total"]["rows"] += 1
            run.counts["dropped"]["prompts differ"] += 1


def _shared(rows: list[Row], places: Sequence[str]) -> Row:
    """What else the rows of one group say: the first value of each key. Raises: BadInput for a
    `system` and the like that differ."""
    keys = dict.fromkeys(key for row in rows for key in row)
    for key in keys:
        other = next(
            (place for row, place in zip(rows, places) if row.get(key) != rows[0].get(key)), None
        )
        if key in (*CARRIED_KEYS, *SYSTEMS) and other is not None:
            raise BadInput(
                f"{other}: `{key}` is not that of {places[0]}, which has the same idx, wanted one for all of its completions"
            )
    return {key: next(row[key] for row in rows if key in row) for key in keys}


def _unique_id(id: str, place: str, run: Run, again: bool = False) -> str:
    """The id as one pair's own; one that comes again gets a number, or is an error where it must
    not."""
    for name in chain([id], (f"{id}-{n}" for n in count(2)) if again else ()):
        found = run.database.execute("select place from ids where id = ?", (name,)).fetchone()
        if not found:
            run.database.execute("insert into ids values (?, ?)", (name, place))
            run.counts["total"]["repeated_ids"] += name != id
            return name
    raise ValueError(f"{id!r:.80} comes twice, the first time at {found[0]}")


def _pair(row: Row, name: str, place: str, run: Run) -> dict[str, object] | str:
    """The pair of a row, or why there is none. Whatever the shape, the side of the higher score is
    the chosen one."""
    source, total = _source(row), run.counts["total"]
    if source in run.drop_sources:
        return f"source {source}"
    found = _rated(row, place, run) if "completions" in row else _verdict(row, name, place, run)
    if isinstance(found, str):
        return found
    id, prompt_id, prompt, sides, rule, reads = found
    for (_, model, score), share in zip(sides, (1.0, 0.0)):
        run.counts["judged"][model or ""] += 1
        run.counts["won"][model or ""] += score if rule == "verdict" else share
    (chosen, model, score), (rejected, other_model, other_score) = sorted(
        sides, key=itemgetter(2), reverse=True
    )
    if score == other_score and rule == "verdict":
        return "tie"
    if not all(words.strip() for words in (chosen, rejected, prompt) if isinstance(words, str)):
        return "texts equal" if chosen == rejected else "a text is empty"
    if without_space(chosen) == without_space(rejected):
        return "texts equal" if chosen == rejected else "texts equal but for white space"
    beside = _carried_keys(
        row, reads, {"prompt": prompt, "chosen": chosen, "rejected": rejected}, place, run
    )
    if isinstance(beside, str):
        return beside
    total.update({"equal_scores": score == other_score, "longer": len(chosen) > len(rejected)})
    run.counts["chosen"][model or ""] += 1
    return {
        "id": id,
        "prompt_id": prompt_id,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_model": model,
        "rejected_model": other_model,
        "score_chosen": score,
        "score_rejected": other_score,
        "rule": rule,
        **({"source": source} if source is not None else {}),
        **beside,
    }


def _carried_keys(row: Row, reads: set[str], made: Row, place: str, run: Run) -> Row | str:
    """What goes with a pair of what else stands in its row, by training's own rule of keys; or why
    there is no pair.

    Raises: ValueError naming a key that means something and that a pair has no place for."""
    rest = {key: value for key, value in row.items() if key not in reads}
    if not rest:
        return {}
    try:
        read, unread = pair_row({**rest, **made}, is_plain=True)
        check_pair(read)
    except Tie as tie:
        return f"a tie: {tie}"
    except ValueError as error:
        raise ValueError(
            re.sub(
                r"; data\..*", "; take it out of the rows, or put it where it is read", str(error)
            )
        ) from None
    run.counts["unread"].update(dict.fromkeys(unread, 1))
    rated = {
        key
        for key in rest
        for path in rating_keys(rest)
        if path == key or path.startswith(f"{key}.")
    }
    if min(read.get("margins", ()), default=0) < 0:
        run.counts["total"]["inverted"] += 1
        run.faults["inverted"] = [*run.faults["inverted"], place][:FIRST]
    return {
        **{key: read[key] for key in CARRIED_KEYS if key in read},
        **{key: rest[key] for key in rest if key in rated},
    }


def _verdict(row: Row, name: str, place: str, run: Run) -> Found | str:
    """A pairwise row. Its id: its own; else of prompt, judge and models, where the prompt has one;
    else file and line."""
    if (found := parse_pairwise(row)) is None:
        raise ValueError(
            f"the row has the fields {sorted(row)!s:.200}, wanted those of feedback (with `completions`), of single "
            f"completions ({', '.join(sorted(SINGLE))}), or of {', '.join(PAIRWISE)}"
        )
    run.counts["shapes"][found[0]] += 1
    if isinstance(item := found[1], str) or item.shares is None:
        return item if isinstance(item, str) else "no verdict"
    asked = row.get("prompt_id", row.get("question_id"))
    about = [asked, *(row.get(key) for key in ("annotator", "judge", "turn")), *item.models]
    if asked is not None:
        name = "/".join(str(part) for part in about if isinstance(part, (str, int)))
    id = _unique_id(row_id(row) if "id" in row else name, place, run, again=True)
    prompt_id, sides = (
        _digest(item.prompt) if asked is None else str(asked),
        list(zip(item.texts, item.models, item.shares)),
    )
    return id, prompt_id, item.prompt, sides, "verdict", read_keys(row, found[0])


def _rated(row: Row, place: str, run: Run) -> Found | str:
    """A feedback row. Its id is its `prompt_id`; UltraFeedback has none: the prompt's digest,
    numbered where it comes again."""
    ultra = "instruction" in row and "prompt" not in row
    prompt = row.get("instruction" if ultra else "prompt")
    if not isinstance(prompt, str):
        prompt = check_messages(prompt, "instruction" if ultra else "prompt", last="user")
    run.counts["shapes"]["UltraFeedback" if ultra else "feedback"] += 1
    digest = ultra and "prompt_id" not in row
    prompt_id = _digest(prompt) if digest else row_id(row, field="prompt_id")
    id = _unique_id(prompt_id, place, run, again=digest)
    answers = list(_answers(row, ultra, id, run))
    scored = [
        (answer, getattr(answer, run.score))
        for answer in answers
        if getattr(answer, run.score) is not None
    ]
    run.counts["left out"][f"no {run.score} score"] += len(answers) - len(scored)
    if len(scored) < 2:
        return "fewer than 2 scored completions"
    rng = run.rng if run.rule == "handbook" else random.Random(f"{run.seed}/{id}")
    texts = [
        answer.text if run.rule == "handbook" else without_space(answer.text)
        for answer, _ in scored
    ]  # handbook: as its script
    picked = run.pick([score for _, score in scored], texts, rng)
    if isinstance(picked, str):
        return picked
    (chosen, _), (rejected, _) = both = [scored[i] for i in picked]
    if None not in (*chosen, *rejected):
        agreement = (chosen.mean - rejected.mean) * (chosen.overall - rejected.overall)
        run.counts["total"].update({"comparable": agreement != 0, "disagree": agreement < 0})
    reads = {
        "completions",
        "prompt_id",
        "id",
        "source",
        "dataset",
        "instruction" if ultra else "prompt",
    }
    return (
        id,
        prompt_id,
        prompt,
        [(answer.text, answer.model, score) for answer, score in both],
        run.rule,
        reads,
    )


def _answers(row: Row, ultra: bool, id: str, run: Run) -> Iterator[Answer]:
    """The completions of a feedback row that have a text; a missing score stays missing."""
    words, aspects, whole = (
        ("response", "annotations", "overall_score") if ultra else ("text", "scores", "overall")
    )
    if not isinstance(row["completions"], list):
        raise ValueError(f"`completions` is {type(row['completions']).__name__}, wanted a list")
    for n, item in enumerate(row["completions"]):
        if not isinstance(item, Mapping) or not isinstance(item.get(aspects) or {}, Mapping):
            raise ValueError(
                f"`completions[{n}]` is {item!r:.60}, wanted an object with `model` and `{words}`, its `{aspects}` one too"
            )
        if item.get(words, "") is None:
            run.counts["left out"]["no text"] += 1
            continue
        at = {f"completions[{n}].{key}": value for key, value in item.items()}
        run.counts["unread"].update(
            {
                f"completions[].{key}": 1
                for key in item
                if key not in ANSWER[ultra] and key != "prompt" and key != "source"
            }
        )
        given = [
            aspect.get("Rating") if isinstance(aspect, Mapping) else aspect
            for aspect in (item.get(aspects) or {}).values()
        ]
        scores = [
            score
            for aspect in given
            if (score := _score(aspect, f"completions[{n}].{aspects}")) is not None
        ]
        mean, overall = (
            fmean(scores) if scores else None,
            _score(item.get(whole), f"completions[{n}].{whole}"),
        )
        model = text(at, f"completions[{n}].model")
        if overall == 10 and mean is not None and mean <= 4:
            kind = "10 for 1" if mean <= 2 else "10 doubtful"
            run.counts["faults"][kind] += 1
            run.faults[kind] = [*run.faults[kind], f"{id}/{model}"][:FIRST]
            overall = overall if not run.fix_overall else 1.0 if mean <= 2 else None
        yield Answer(model, text(at, f"completions[{n}].{words}"), mean, overall)


def _score(value: object, name: str) -> float | None:
    """A number, also as text; None for null and UltraFeedback's "N/A". Raises: ValueError for
    anything else: no score is guessed."""
    if value in (None, "N/A"):
        return None
    number = (
        float(value)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", value)
        else value
    )
    if type(number) not in (int, float) or not abs(number) < 1e300:
        raise ValueError(
            f"`{name}` holds {type(value).__name__} {value!r:.60}, wanted a finite number, null or N/A"
        )
    return float(number)


def _source(row: Row) -> str | None:
    source = row.get("source", row.get("dataset"))
    return source if isinstance(source, str) else None


def _digest(prompt: object) -> str:
    return hashlib.sha256(
        (prompt if isinstance(prompt, str) else json.dumps(prompt)).encode()
    ).hexdigest()


def _report(run: Run) -> Report:
    counts, total = run.counts, run.counts["total"]
    share = total["disagree"] / max(total["comparable"], 1)
    unseen = [name for name in run.drop_sources if not counts["dropped"][f"source {name}"]]
    warnings = [f"no row is of the source {name!r}, which was to be dropped" for name in unseen]
    if total["inverted"]:
        warnings.append(
            f"the row itself rates the chosen answer below the rejected one: {total['inverted']} pairs, the first at "
            f"{run.faults['inverted'][0]}"
        )
    if share > DISAGREE and total["comparable"] >= ENOUGH:
        warnings.append(
            f"mean and overall score disagree in {share:.0%} of the pairs (over {DISAGREE:.0%}): is one of them inverted?"
        )
    return {
        "rule": run.rule,
        "seed": run.seed,
        "fix_overall": run.fix_overall,
        "shapes": counts["shapes"],
        **{name: total[name] for name in ("rows", "pairs", "equal_scores", "repeated_ids")},
        "dropped": +counts["dropped"],
        "completions_left_out": +counts["left out"],
        "chosen": {model: n for model, n in counts["chosen"].items() if model},
        "longer_chosen": total["longer"] / max(total["pairs"], 1),
        "win_rate": {
            model: {"judged": n, "rate": counts["won"][model] / n}
            for model, n in sorted(counts["judged"].items())
            if model
        },
        "faults": {
            kind: {"count": counts["faults"][kind], "first": first}
            for kind, first in run.faults.items()
            if kind != "inverted"
        },
        "inverted": {"count": total["inverted"], "first": run.faults["inverted"]},
        "keys_not_read": dict(sorted(counts["unread"].items())),
        "disagreement": {"comparable": total["comparable"], "share": share},
        "warnings": warnings,
    }
