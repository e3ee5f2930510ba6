"""Visits, texts and scores of a run's pairs become one table: a row a visit, or a row a pair.

Shape letters:
    V  visits, sorted by pair, then step
    P  pairs
    K  rows of the table: V or P
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from zephyr.analysis.flips import flip_suspicion
from zephyr.analysis.pairs import PairText
from zephyr.analysis.runs import Run
from zephyr.analysis.similarity import text_similarities
from zephyr.analysis.visits import LOG_PROBS, Floats, Ints, Visits
from zephyr.config import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Literal["visit", "pair"]
SUFFIXES = (".parquet", ".csv")
Scores = Mapping[str, Floats]  # column -> its values [P], NaN where a pair has none


def pair_table(
    run: Run,
    visits: Visits,
    texts: Mapping[str, PairText],
    *,
    rows: Rows = "visit",
    similarity: bool = True,
    scores: Scores | None = None,
) -> "pa.Table":
    """One table of all that is known of a run's pairs.

    `rows="visit"`: a row for each pair and visit, by pair, then step. The columns that end in
    `_change` are those of the visit less those of the visit before: null at the first visit.
    `rows="pair"`: a row for each pair, in the order of the first visits, with the values of the
    last visit; `_change` is the last visit less the first. Values of a visit are those just before
    its update. README.md of this folder defines every column.

    Args:
        texts: `read_texts`; a pair without an entry has null texts.
        similarity: whether to compute that column, which needs rapidfuzz.
        scores: further columns of pairs.
    Raises: BadInput for a run without visits of pairs, and without rapidfuzz.
    """
    import pyarrow as pa

    require_visits(run, visits)
    chosen_K = visits.last_P if rows == "pair" else np.arange(len(visits.pair_V))
    before_K = visits.first_P if rows == "pair" else chosen_K - 1
    has_before_K = visits.visit_V[chosen_K] > 0
    pair_K = visits.pair_V[chosen_K]
    columns: dict[str, pa.Array] = {"id": pa.array(visits.ids).take(pa.array(pair_K))}
    of_texts = text_columns(visits, texts, similarity=similarity)
    columns |= {name: column.take(pa.array(pair_K)) for name, column in of_texts.items()}
    for name, tokens_P in visits.tokens.items():
        columns[name] = pa.array(tokens_P[pair_K])
    difference_P = visits.tokens["chosen_tokens"] - visits.tokens["rejected_tokens"]
    columns["length_difference"] = pa.array(difference_P[pair_K])
    for name, values_V in visit_values(run, visits).items():
        missing_K = np.isnan(values_V[chosen_K]) if name in OF_REFERENCE else None
        columns[name] = pa.array(values_V[chosen_K], mask=missing_K)
        if name in CHANGES:
            change_K = values_V[chosen_K] - values_V[before_K]
            columns[CHANGES[name]] = pa.array(change_K, mask=~has_before_K)
    of_pairs = {**(scores or {}), "flip_suspicion": flip_suspicion(visits)}
    for name, values_P in of_pairs.items():
        columns[name] = pa.array(values_P[pair_K], mask=np.isnan(values_P[pair_K]))
    return pa.table({name: columns[name] for name in ordered(list(columns))})


# Column of a visit -> the column with its change.
CHANGES = {
    "rewards/margins": "margin_change",
    "logps/chosen": "logps/chosen_change",
    "logps/rejected": "logps/rejected_change",
}
OF_REFERENCE = ("ref_logps/chosen", "ref_logps/rejected", "ref_margin")
ORDER = (
    *("id", "source", "prompt", "chosen", "rejected", "chosen_model", "rejected_model"),
    *("score_chosen", "score_rejected"),
    *("prompt_tokens", "chosen_tokens", "rejected_tokens", "length_difference"),
    *("visit", "step", "epoch", "weight", "loss"),
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"),
    *OF_REFERENCE,
    *CHANGES.values(),
    *("similarity", "ches", "ches_normalized", "flip_suspicion", "flip_suspicion_folds"),
)


def ordered(names: list[str]) -> list[str]:
    """The names in the order of ORDER; those that are not in it come last."""
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: places.get(name, len(places)))


def require_visits(run: Run, visits: Visits) -> None:
    """Raises: BadInput where a run has no visits of pairs."""
    if not run.is_dpo:
        raise BadInput(f"{run.folder} is no run of train_dpo.py: it has no pairs")
    if not visits.ids:
        raise BadInput(
            f"{run.folder}/pairs holds no visits of pairs yet: train_dpo.py writes them with each "
            "checkpoint"
        )


def text_columns(
    visits: Visits, texts: Mapping[str, PairText], *, similarity: bool
) -> dict[str, "pa.Array"]:
    """The fields of the pairs' texts [P], null where there is none, and their similarity."""
    import pyarrow as pa

    numbers = ("score_chosen", "score_rejected")
    found = [texts.get(id) for id in visits.ids]
    columns = {
        name: pa.array(
            [None if text is None else storable(getattr(text, name)) for text in found],
            pa.float64() if name in numbers else pa.string(),
        )
        for name in PairText._fields
    }
    if similarity:
        values = iter(text_similarities((text.chosen, text.rejected) for text in found if text))
        columns["similarity"] = pa.array(
            [None if text is None else next(values) for text in found], pa.float64()
        )
    return columns


def storable(value: str | float | None) -> str | float | None:
    """The value; a lone surrogate, which JSON may hold and UTF-8 can't, as its escape."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def visit_values(run: Run, visits: Visits) -> dict[str, Floats | Ints]:
    """The columns of visits [V]: those of the ledger, and what follows from them.

    The reference's log-probs are log p - reward / beta: a reward is beta times the log-ratio of the
    whole response, whatever the loss (`losses.dpo`). They are taken from a pair's first visit,
    where the reward is the smallest and its rounding too. Of a loss without a reference they are
    NaN.
    """
    beta = run.config["beta"]
    assert isinstance(beta, (int, float)), "the run's config was checked before it trained"
    values: dict[str, Floats | Ints] = {
        "visit": visits.visit_V,
        "step": visits.step_V,
        "epoch": visits.epoch_V,
        **visits.values,
        "rewards/margins": visits.margin_V,
    }
    for logp, reward in zip(LOG_PROBS, ("rewards/chosen", "rewards/rejected")):
        reference_V = visits.values[logp] - visits.values[reward] / beta
        if not run.has_reference:
            reference_V = np.full(len(visits.pair_V), np.nan)
        values[f"ref_{logp}"] = reference_V[visits.first_P][visits.pair_V]
    values["ref_margin"] = values["ref_logps/chosen"] - values["ref_logps/rejected"]
    return values


def require_table_name(out: Path) -> None:
    """Raises: BadInput for a name that says no format, or that is a folder."""
    if out.suffix not in SUFFIXES:
        raise BadInput(
            f"--out: {out} ends in {out.suffix or 'no suffix'!r}, expected {' or '.join(SUFFIXES)}"
        )
    if out.is_dir():
        raise BadInput(f"--out: {out} is a folder, expected a file")
