"""The pairs of a run become what the page stores of them, from which `pairs.js` draws a table.

The numbers of all pairs are stored as columns, and texts of as many pairs as fit: those of the
ready views first.

Shape letters:
    V  visits, sorted by pair, then step
    P  pairs
"""

import base64
import json
import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zephyr.analysis.flips import flip_suspicion
from zephyr.analysis.pairs import PairText
from zephyr.analysis.runs import Run
from zephyr.analysis.visits import TOKENS, VALUES, Floats, Ints, Visits
from zephyr.config import source_paths
from zephyr.report.assets import compressed, compressed_json
from zephyr.report.pair_figures import PairsOf

BUDGET_BYTES = 2_150_000  # of all payloads of this part, as they stand in the page
LEAST_TEXT_BYTES = 100_000  # for texts of a run, whatever its numbers take
MOST_PAIRS = 60_000  # of all runs
MOST_VISITS = 200_000  # of all runs
ID_BYTES = 400_000  # compressed; beyond it, long ids of pairs without texts are cut in their middle
MOST_CHARS = 12_000  # of one text
GRID = 4096  # rewards are rounded to multiples of its inverse
HELD_BACK = 65_536  # bytes that a compressor may hold
UNKNOWN = "not known"
LEAST_LOST = 0.25  # fall of a forgotten pair, in median absolute margins of the last visits

Json = Mapping[str, object]
Mask = npt.NDArray[np.bool_]


class Limit(NamedTuple):
    """Keep pairs whose value of a column is in [low, high], or (low, high] where `above`."""

    column: str
    low: float | None = None
    high: float | None = None
    above: bool = False


class View(NamedTuple):
    """A ready choice and order of the pairs, with its rule in words."""

    key: str
    label: str
    rule: str
    limits: tuple[Limit, ...]
    sort: str
    descending: bool


VIEWS = (
    View(
        "wrong",
        "Most confidently wrong",
        "Flip suspicion over 0.5: by its margins over the visits, the model prefers the rejected "
        "response as clearly as it prefers the chosen one in most pairs. Highest suspicion first.",
        (Limit("suspicion", low=0.5, above=True),),
        "suspicion",
        True,
    ),
    View(
        "never",
        "Never learned",
        "The margin was above 0 at none of two or more visits; lowest last margin first.",
        (Limit("visits", low=2), Limit("best", high=0)),
        "last",
        False,
    ),
    View(
        "moved",
        "Moved most",
        "Largest movement of the margin, up and down, over all visits first.",
        (),
        "moved",
        True,
    ),
    View(
        "forgotten",
        "Forgotten",
        "The margin was above 0 once, and fell since its highest by at least a quarter of the "
        "run's median absolute margin; largest fall first.",
        (Limit("best", low=0, above=True), Limit("lost", low=LEAST_LOST)),
        "fell",
        True,
    ),
    View("all", "All", "Every pair, lowest margin at its last visit first.", (), "last", False),
)


class Kept(NamedTuple):
    """What the page has room for of one run."""

    visits: Visits
    suspicion_P: Floats
    notes: list[str]  # on what is left out


def payloads(every: Sequence[PairsOf]) -> str:
    """The stored data of all runs: `pairs-N` and `pairs-texts-N` for the Nth."""
    rooms = zip(
        shares([len(of.visits.ids) for of in every], MOST_PAIRS),
        shares([len(of.visits.pair_V) for of in every], MOST_VISITS),
    )
    kept = [keep(of.visits, *room) for of, room in zip(every, rooms)]
    numbers = [
        compressed_json(f"pairs-{number}", run_numbers(of, of_run))
        for number, (of, of_run) in enumerate(zip(every, kept))
    ]
    room_bytes = max((BUDGET_BYTES - sum(map(len, numbers))) // len(every), LEAST_TEXT_BYTES)
    texts = [
        compressed(f"pairs-texts-{number}", text_lines(of_run, of.texts, room_bytes * 3 // 4))
        for number, (of, of_run) in enumerate(zip(every, kept))
    ]
    return "".join(numbers + texts)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """What each gets of a room: all that it wants, or an equal part of what is left of it."""
    given = [0] * len(wanted)
    for done, which in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        given[which] = min(wanted[which], room // (len(wanted) - done))
        room -= given[which]
    return given


def run_numbers(of: PairsOf, kept: Kept) -> Json:
    """What `pairs.js` needs of a run, but texts."""
    return {
        "folder": shlex.quote(str(of.run.folder)),
        "files": train_files(of.run),
        "notes": kept.notes,
        "readable": sum(pair in of.texts for pair in kept.visits.ids),
        "ids": short_ids(kept.visits.ids),
        **pair_columns(kept.visits, kept.suspicion_P, of.texts),
    }


def derived(visits: Visits, suspicion_P: Floats) -> dict[str, Floats]:
    """The columns that views limit and sort by, as pairs.js computes them from the margins."""
    margin_V, first_P, last_P = visits.margin_V, visits.first_P, visits.last_P
    before_V = np.append(0.0, margin_V[:-1])
    before_V[first_P] = 0.0
    best_P = np.maximum.reduceat(margin_V, first_P)
    fell_P = best_P - margin_V[last_P]
    finite_P = np.abs(margin_V[last_P][np.isfinite(margin_V[last_P])])
    return {
        "visits": (last_P - first_P + 1).astype(np.float64),
        "first": margin_V[first_P],
        "last": margin_V[last_P],
        "mean": np.add.reduceat(margin_V, first_P) / (last_P - first_P + 1),
        "best": best_P,
        "fell": fell_P,
        "lost": fell_P / max(float(np.median(finite_P)) if len(finite_P) else 0.0, 1e-9),
        "moved": np.add.reduceat(np.abs(margin_V - before_V), first_P),
        "suspicion": suspicion_P,
    }


def view_order(view: View, columns: Mapping[str, Floats]) -> Ints:
    """The pairs of a view in its order; values that are not finite come last."""
    chosen_P = np.ones(len(columns[view.sort]), bool)
    for limit in view.limits:
        values_P = columns[limit.column]
        if limit.low is not None:
            chosen_P &= values_P > limit.low if limit.above else values_P >= limit.low
        if limit.high is not None:
            chosen_P &= values_P <= limit.high
    key_P = -columns[view.sort] if view.descending else columns[view.sort]
    order_P = np.argsort(np.where(np.isnan(key_P), np.inf, key_P), kind="stable")
    return order_P[chosen_P[order_P]]


def reading_order(visits: Visits, suspicion_P: Floats) -> Ints:
    """All pairs, those first that the ready views show first: one of each view in turn."""
    columns = derived(visits, suspicion_P)
    orders = [view_order(view, columns).tolist() for view in VIEWS]
    turns = chain.from_iterable(zip_longest(*orders))
    return np.array(list(dict.fromkeys(pair for pair in turns if pair is not None)), np.int64)


def keep(visits: Visits, most_pairs: int, most_visits: int) -> Kept:
    """Keep the pairs that ready views show first, and of each its first, best and last visit where
    all visits would be too many."""
    suspicion_P = flip_suspicion(visits)
    kept_P = np.zeros(len(visits.ids), bool)
    kept_P[reading_order(visits, suspicion_P)[:most_pairs]] = True
    kept_V = kept_P[visits.pair_V]
    notes = []
    if not kept_P.all():
        notes.append(f"This table has {kept_P.sum():,} of {len(kept_P):,} pairs.")
    if kept_V.sum() > most_visits:
        notes.append("Of each pair only the first, the best and the last visit are here.")
        best_P = np.maximum.reduceat(visits.margin_V, visits.first_P)
        is_end_V = np.zeros(len(kept_V), bool)
        is_end_V[visits.first_P] = is_end_V[visits.last_P] = True
        kept_V &= is_end_V | (visits.margin_V == best_P[visits.pair_V])
    if kept_V.all():
        return Kept(visits, suspicion_P, notes)
    return Kept(subset(visits, kept_P, kept_V), suspicion_P[kept_P], notes)


def subset(visits: Visits, kept_P: Mask, kept_V: Mask) -> Visits:
    """Some of the visits, numbered anew; each kept pair has one of them or more."""
    new_P = np.cumsum(kept_P) - 1
    pair_V = new_P[visits.pair_V[kept_V]]
    starts_P = np.flatnonzero(np.diff(pair_V, prepend=-1))
    return Visits(
        ids=[visits.ids[pair] for pair in np.flatnonzero(kept_P)],
        pair_V=pair_V,
        visit_V=np.arange(len(pair_V)) - starts_P[pair_V],
        step_V=visits.step_V[kept_V],
        epoch_V=visits.epoch_V[kept_V],
        values={name: values_V[kept_V] for name, values_V in visits.values.items()},
        tokens={name: tokens_P[kept_P] for name, tokens_P in visits.tokens.items()},
    )


def pair_columns(
    visits: Visits, suspicion_P: Floats, texts: Mapping[str, PairText]
) -> dict[str, Json]:
    """The numbers of all pairs, and of what their rows say a code for each pair."""
    rows = [texts.get(pair) for pair in visits.ids]
    scores = {
        side: np.array(
            [np.nan if row is None or (s := getattr(row, side)) is None else s for row in rows]
        )
        for side in ("score_chosen", "score_rejected")
    }
    names = {
        key: [None if row is None else getattr(row, key) for row in rows]
        for key in ("source", "chosen_model", "rejected_model")
    }
    last_P = visits.last_P
    return {
        "numbers": {
            "visits": packed_ints(last_P - visits.first_P + 1),
            "margin": packed_rewards(visits.margin_V),
            "reward": packed_rewards(visits.values["rewards/chosen"][last_P]),
            "suspicion": packed_floats(suspicion_P, bits=7),
            **{name: packed_ints(visits.tokens[name]) for name in TOKENS},
            **{name: packed_floats(values) for name, values in scores.items()},
        },
        "names": {key: coded(values) for key, values in names.items()},
    }


def coded(values: Sequence[str | None]) -> Json:
    """Texts that repeat: each once, and a number for each value, the most frequent first."""
    counts: dict[str, int] = {}
    for value in values:
        name = UNKNOWN if value is None else value
        counts[name] = counts.get(name, 0) + 1
    names = sorted(counts, key=lambda name: (-counts[name], name))
    code = {name: number for number, name in enumerate(names)}
    codes = [code[UNKNOWN if value is None else value] for value in values]
    return {"names": names, "codes": packed_ints(np.array(codes, np.int64))}


def packed_rewards(values: Floats) -> Json:
    """As `packed_floats`, on a grid of 2^-12: three decimals are shown."""
    return packed_floats(np.round(values * GRID) / GRID)


def packed_floats(values: Floats, bits: int = 10) -> Json:
    """Float32 with some bits after the leading one: 10 give a relative error of 2^-11. Infinity
    and not-a-number keep what they are: their fractions are 0 and one high bit."""
    words = values.astype("<f4").view("<u4")
    unit = np.uint32(1 << (23 - bits))
    rounded = (words + unit // np.uint32(2)) & ~(unit - np.uint32(1))
    return {"float": byte_planes(rounded)}


def packed_ints(values: Ints) -> Json:
    return {"int": byte_planes(values.astype("<i4").view("<u4"))}


def byte_planes(words: npt.NDArray[np.uint32]) -> str:
    """First bytes of all words, then their second ones, and so on, which compresses better."""
    planes = words.astype("<u4").view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(planes.tobytes()).decode("ascii")


def short_ids(ids: Sequence[str]) -> list[str]:
    """The ids, cut in their middle where they are long and all together take too much room."""
    if len(zlib.compress(json.dumps(ids).encode(), 1)) <= ID_BYTES:
        return list(ids)
    return [pair if len(pair) <= 12 else f"{pair[:4]}…{pair[-4:]}" for pair in ids]


def text_lines(kept: Kept, texts: Mapping[str, PairText], budget_bytes: int) -> str:
    """A line of JSON for each pair with texts, as many as fit into `budget_bytes` compressed."""
    order_P = reading_order(kept.visits, kept.suspicion_P)
    packer = zlib.compressobj(6)
    written, lines = 0, []
    for line in lines_in_order(kept.visits, texts, order_P):
        written += len(packer.compress(line.encode("ascii")))
        near = written + HELD_BACK > budget_bytes
        if near and written + len(packer.copy().flush()) > budget_bytes:
            break
        lines.append(line)
    return "".join(lines)


def lines_in_order(visits: Visits, texts: Mapping[str, PairText], order_P: Ints) -> Iterator[str]:
    """[pair, whole id, prompt, chosen, rejected, visits]; a visit is step, epoch, then VALUES."""
    first_P, last_P = visits.first_P, visits.last_P
    for pair in order_P.tolist():
        row = texts.get(visits.ids[pair])
        if row is not None:
            span = slice(int(first_P[pair]), int(last_P[pair]) + 1)
            columns = [visits.step_V[span], visits.epoch_V[span]]
            columns += [visits.values[name][span] for name in VALUES]
            numbers = [[short_number(value) for value in visit] for visit in zip(*columns)]
            sides = [cut_text(text) for text in (row.prompt, row.chosen, row.rejected)]
            yield json.dumps([pair, visits.ids[pair], *sides, numbers]) + "\n"


def short_number(value: float) -> float | None:
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.4g}")


def cut_text(text: str) -> str:
    if len(text) <= MOST_CHARS:
        return text
    return f"{text[:MOST_CHARS]}… [cut here: {len(text):,} characters in all]"


def train_files(run: Run) -> list[str]:
    return source_paths(run.config.get("data.train"))
