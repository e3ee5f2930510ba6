"""The ledger of a run, `pairs/step-N.parquet`, becomes columns: a row for each pair and visit.

Shape letters:
    V  visits, sorted by pair, then step
    P  pairs, in the order of their first visit
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zephyr.config import BadInput
from zephyr.training.files import step_paths

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LOG_PROBS = ("logps/chosen", "logps/rejected")
VALUES = ("loss", "rewards/chosen", "rewards/rejected", *LOG_PROBS)
WEIGHT = "weight"  # 1 in ledgers that were written before pairs had weights
TOKENS = ("prompt_tokens", "chosen_tokens", "rejected_tokens")


class Visits(NamedTuple):
    """Every step that trained on a pair."""

    ids: list[str]  # of the P pairs
    pair_V: Ints  # index into `ids`
    visit_V: Ints  # 0 for a pair's first visit
    step_V: Ints
    epoch_V: Floats
    values: dict[str, Floats]  # each of VALUES, and WEIGHT, [V]
    tokens: dict[str, Ints]  # each of TOKENS, [P]

    @property
    def margin_V(self) -> Floats:
        """Reward of the chosen response minus that of the rejected one, just before the update."""
        return self.values["rewards/chosen"] - self.values["rewards/rejected"]

    @property
    def first_P(self) -> Ints:
        """Index of each pair's first visit."""
        return np.flatnonzero(self.visit_V == 0)

    @property
    def last_P(self) -> Ints:
        """Index of each pair's last visit."""
        return np.append(self.first_P, len(self.pair_V))[1:] - 1


def read_visits(run: Path) -> Visits:
    """Read the ledger of a run folder; no visits where there is none.

    Raises: BadInput naming the file that can't be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("id", "step", "epoch", *VALUES, WEIGHT, *TOKENS)
    parts = []
    for path in step_paths(run / "pairs", ".parquet"):
        try:
            table = pq.read_table(path)
            if WEIGHT not in table.column_names:
                table = table.append_column(WEIGHT, pa.array(np.ones(len(table))))
            parts.append(table.select(names))
        except (pa.ArrowException, KeyError) as error:
            raise BadInput(f"{path}: visits of pairs can't be read: {error}") from None
    if not parts:
        empty_V = np.zeros(0, np.int64)
        floats_V = np.zeros(0)
        no_values = dict.fromkeys((*VALUES, WEIGHT), floats_V)
        return Visits(
            [], empty_V, empty_V, empty_V, floats_V, no_values, dict.fromkeys(TOKENS, empty_V)
        )
    table = pa.concat_tables(parts).sort_by("step")
    encoded = table["id"].combine_chunks().dictionary_encode()
    pair_V = encoded.indices.to_numpy().astype(np.int64)
    order_V = np.argsort(pair_V, kind="stable")  # by pair, then by step
    pair_V = pair_V[order_V]
    columns = {name: table[name].to_numpy()[order_V] for name in names[1:]}
    starts_P = np.flatnonzero(np.diff(pair_V, prepend=-1))
    return Visits(
        ids=encoded.dictionary.to_pylist(),
        pair_V=pair_V,
        visit_V=np.arange(len(pair_V)) - starts_P[pair_V],
        step_V=columns["step"],
        epoch_V=columns["epoch"],
        values={name: columns[name] for name in (*VALUES, WEIGHT)},
        tokens={name: columns[name][starts_P] for name in TOKENS},
    )
