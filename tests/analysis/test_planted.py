"""Labels that were flipped on purpose are found in the ledger of the run that trained on them."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from processes import ROOT, Launch

from zephyr.analysis.flips import flip_suspicion
from zephyr.analysis.visits import Visits, read_visits

sys.path.append(str(ROOT / "experiments" / "flips"))

from plant import plant

LEDGER = Path(__file__).parent / "flipped"
# In experiments/2026-11-27-flipped-labels.md, over three seeds: precision 0.93 to 0.96, recall 0.79
# to 0.93, precision at k 0.89 to 0.93.
PRECISION, RECALL, PRECISION_AT_K = 0.85, 0.7, 0.8


class Found(NamedTuple):
    """Of the pairs over 0.5 the share that is flipped, and the share of flips among them; of the k
    most suspected pairs, k the number of flips, the share that is flipped."""

    precision: float
    recall: float
    precision_at_k: float


def found_in(visits: Visits, flipped: set[str]) -> Found:
    suspicion_P = flip_suspicion(visits)
    is_flipped_P = np.array([id in flipped for id in visits.ids])
    hits = (is_flipped_P & (suspicion_P > 0.5)).sum()
    most = np.argsort(-suspicion_P, kind="stable")[: len(flipped)]
    return Found(
        hits / (suspicion_P > 0.5).sum(), hits / len(flipped), float(is_flipped_P[most].mean())
    )


def require_floor(found: Found) -> None:
    assert found.precision >= PRECISION, found
    assert found.recall >= RECALL, found
    assert found.precision_at_k >= PRECISION_AT_K, found


def test_flips_planted_in_the_world_are_found() -> None:
    """The ledger of configs/tiny/dpo.yaml on the quickstart's 1,500 pairs, 75 of them flipped; the
    column `planted` says which. It was made by the commands of the lab log. Fails where the
    suspicion loses what it has found there."""
    (path,) = (LEDGER / "pairs").iterdir()
    ledger = pq.read_table(path, columns=["id", "planted"]).to_pylist()
    flipped = {row["id"] for row in ledger if row["planted"]}
    assert len(flipped) == 75
    require_floor(found_in(read_visits(LEDGER), flipped))


def test_the_same_run_with_its_labels_put_right_is_clean() -> None:
    """The margins of that run, those of flipped pairs turned back: as good as a clean run. Fails
    where right labels are suspected: at most 1 % of them may be."""
    (path,) = (LEDGER / "pairs").iterdir()
    flipped = {row["id"] for row in pq.read_table(path).to_pylist() if row["planted"]}
    visits = read_visits(LEDGER)
    sign_V = np.where([visits.ids[i] in flipped for i in visits.pair_V], -1.0, 1.0)
    right = {name: values_V * sign_V for name, values_V in visits.values.items()}
    assert (flip_suspicion(visits._replace(values=right)) > 0.5).sum() <= 15


@pytest.mark.long
def test_a_run_on_flipped_pairs_shows_them(launch: Launch, tmp_path: Path) -> None:
    """Trains configs/tiny/dpo.yaml on the pairs of `make quickstart`, 5 % of them flipped with
    another seed than in the stored ledger."""
    tiny = ROOT / "runs" / "tiny"
    if not (tiny / "sft" / "model").is_dir():
        pytest.skip("runs/tiny is not there: make quickstart")
    rows = [json.loads(line) for line in (tiny / "pairs.jsonl").read_text().splitlines()]
    planted = plant(rows, 0.05, seed=3)
    data = tmp_path / "flipped.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in planted))
    changes = [f"data.train=[{data}]", f"run.dir={tmp_path / 'run'}", "run.preflight=off"]
    changes.append(f"reference.dir={tmp_path / 'reference'}")
    launch("train_dpo.py", ROOT / "configs/tiny/dpo.yaml", *changes, timeout=1200)
    flipped = {str(row["id"]) for row in planted if "planted" in row}
    require_floor(found_in(read_visits(tmp_path / "run"), flipped))
