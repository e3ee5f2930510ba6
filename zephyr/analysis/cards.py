"""The pairs of an evaluation become the figures that a published card would have shown of them.

TRL before 0.14 logged rewards, accuracies and log-probs of rank 0 only (trl#2468, fixed by
trl#2474), each as the mean of the means of rank 0's batches. So those figures of a card are of a
few pairs, 64 for zephyr-7b-beta, and which pairs these were follows from the number of GPUs and the
batch of the evaluation. The loss alone is of all pairs.

Shape letters: P pairs of an evaluation, in the order of the data.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import yaml

from zephyr.analysis.runs import Leaves, read_leaves
from zephyr.config import BadInput, nearest_name
from zephyr.training.files import step_number, step_paths
from zephyr.training.metrics import EVAL_PAIRS

Floats = npt.NDArray[np.float64]

# In the order of the cards' columns.
METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/rejected",
    "logps/chosen",
)
# Of these, what a run stores; the others follow from it.
STORED = ("loss", "rewards/chosen", "rewards/rejected", "logps/rejected", "logps/chosen")
# Log-probs of the reference: log p less reward / beta. They do not depend on the training: where
# they differ from a card's, so do the pairs, their encoding, or the dSFT model.
REFERENCE = ("ref_logps/rejected", "ref_logps/chosen")


class Point(NamedTuple):
    """One evaluation of a card. `values`: by name, of METRICS and REFERENCE; those it has."""

    epoch: float
    step: int | None
    values: Mapping[str, float]


class Card(NamedTuple):
    """What a card prints, and which pairs its rank 0 saw."""

    name: str
    source: str
    gpus: int
    batch: int
    rows: int
    points: Sequence[Point]


class Evaluated(NamedTuple):
    """One evaluation of a run, or a table of `zephyr score`. `columns`: [P], of METRICS and
    REFERENCE."""

    name: str
    epoch: float | None
    columns: Mapping[str, Floats]
    notes: Sequence[str]  # why places of pairs may be others than the card's

    @property
    def pairs(self) -> int:
        return len(self.columns["rewards/margins"])


class Figure(TypedDict):
    """A mean and its standard error, which is None for one pair."""

    mean: float
    stderr: float | None


class Compared(TypedDict):
    """A card's evaluation beside that of a run, by metric: the card's value, the run's on the pairs
    of rank 0, and on all pairs."""

    card: str
    source: str
    slice: str
    pairs: int
    epoch: float
    step: int | None
    metrics: dict[str, dict[str, object]]


# ---- which pairs rank 0 saw ----


def rank0_batches(rows: int, gpus: int, batch: int) -> list[list[int]]:
    """The batches of rank 0 in an evaluation of transformers' Trainer.

    The loader takes the rows in their order, `batch` at a time, and accelerate deals the batches to
    the GPUs in turn (`BatchSamplerShard`, `even_batches`): where the last batch is rank 0's and not
    full, it is filled up with the first rows. One GPU alone takes every row once.
    """
    found = []
    for start in range(0, rows, batch * gpus):
        indices = list(range(start, min(start + batch, rows)))
        if gpus > 1:
            indices += [i % rows for i in range(batch - len(indices))]
        found.append(indices)
    return found


def rank0_figure(values_P: Floats, batches: Sequence[Sequence[int]]) -> Figure:
    """What TRL printed: the mean of the batches' means. The standard error is that of a mean of so
    many pairs."""
    mean = float(np.mean([values_P[list(batch)].mean() for batch in batches]))
    pairs_P = values_P[[i for batch in batches for i in batch]]
    return {"mean": mean, "stderr": standard_error(pairs_P)}


def standard_error(values_P: Floats) -> float | None:
    """Sample standard deviation / sqrt(pairs)."""
    if len(values_P) < 2:
        return None
    return float(values_P.std(ddof=1) / math.sqrt(len(values_P)))


# ---- the cards ----


def read_cards() -> dict[str, Card]:
    """The cards of cards.yaml, by name."""
    text = files("zephyr.analysis").joinpath("cards.yaml").read_text(encoding="utf-8")
    found = {}
    for name, of in yaml.safe_load(text).items():
        points = [read_point(row, of["beta"]) for row in of["points"]]
        found[name] = Card(
            name, of["source"], of["gpus"], of["eval_batch"], of["eval_rows"], points
        )
    return found


def read_point(row: Sequence[float | None], beta: float) -> Point:
    """A row of cards.yaml, with the reference's log-probs that its values imply."""
    epoch, step, *rest = row
    values = {name: value for name, value in zip(METRICS, rest) if value is not None}
    for name in REFERENCE:
        side = name.rpartition("/")[2]
        if f"logps/{side}" in values:
            values[name] = values[f"logps/{side}"] - values[f"rewards/{side}"] / beta
    assert epoch is not None
    return Point(epoch, None if step is None else int(step), values)


def named_cards(name: str | None) -> list[Card]:
    """All cards, or the one of this name. Raises: BadInput."""
    cards = read_cards()
    if name is None:
        return list(cards.values())
    if name not in cards:
        raise BadInput(
            f"--card {name}: expected one of {'; '.join(cards)}; the nearest is "
            f"{nearest_name(name, cards)}"
        )
    return [cards[name]]


# ---- the pairs of a run ----


def read_evaluated(path: Path, step: int | None = None) -> Evaluated:
    """The pairs of an evaluation of a run folder, by default the last; or a .parquet of `zephyr
    score`, which has no step.

    Raises: BadInput.
    """
    if path.is_file():
        if step is not None:
            raise BadInput(f"--step {step}: {path} is a table of scores, expected a run folder")
        return read_scores(path)
    config = read_leaves(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    parts = {step_number(part): part for part in step_paths(path / EVAL_PAIRS, ".parquet")}
    if not parts:
        raise BadInput(
            f"{path}: no {EVAL_PAIRS}/, expected the folder of a run of train_dpo.py with "
            "data.eval; of a run from before it was written, score the rows: zephyr score RUN ROWS "
            "--reference MODEL --out scores.parquet, then zephyr cards scores.parquet"
        )
    step = max(parts) if step is None else step
    if step not in parts:
        known = ", ".join(str(one) for one in sorted(parts))
        raise BadInput(f"--step {step}: {path} was evaluated after {known} updates")
    return read_part(parts[step], step, config, left_out(path))


def left_out(run: Path) -> list[str]:
    """A note where rows of the evaluation were no pairs: later pairs are at other places."""
    data = read_leaves(run / "data.json")
    read, kept = data.get("eval.rows_read"), data.get("eval.examples")
    if not isinstance(read, int) or not isinstance(kept, int) or read == kept:
        return []
    return [
        f"{read - kept} of {read} rows of data.eval are no pairs here: pairs after them are other "
        "ones than the card's"
    ]


def read_part(path: Path, step: int, config: Leaves, notes: Sequence[str]) -> Evaluated:
    """The pairs of one evaluation. Raises: BadInput."""
    table = read_table(path, ("row", "epoch", *STORED))
    order_P = np.argsort(table["row"])
    columns = {name: table[name][order_P] for name in table if name in METRICS}
    beta = config.get("beta")
    if isinstance(beta, (int, float)) and beta:
        for name in REFERENCE:
            side = name.rpartition("/")[2]
            columns[name] = columns[f"logps/{side}"] - columns[f"rewards/{side}"] / beta
    return Evaluated(f"step {step:,}", float(table["epoch"][0]), with_margins(columns), notes)


def read_scores(path: Path) -> Evaluated:
    """The pairs of a table of `zephyr score --reference`, with the sigmoid loss. Raises: BadInput.

    The epoch is not known.
    """
    if path.suffix != ".parquet":
        raise BadInput(f"{path}: expected a .parquet, as zephyr score --out scores.parquet writes")
    columns = with_margins(read_table(path, (*STORED[1:], *REFERENCE)))
    columns["loss"] = np.logaddexp(0.0, -columns["rewards/margins"])
    return Evaluated(path.name, None, columns, ())


def read_table(path: Path, names: Sequence[str]) -> dict[str, Floats]:
    """Columns of numbers of a Parquet file. Raises: BadInput."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        found = {name: table[name].to_numpy().astype(np.float64) for name in names}
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise BadInput(
            f"{path}: expected the columns {', '.join(names)}: {type(error).__name__}: {error}"
        ) from None
    if not len(table):
        raise BadInput(f"{path}: expected a pair at least, it has none")
    return found


def with_margins(columns: dict[str, Floats]) -> dict[str, Floats]:
    """The columns with margins, and whether the chosen reward is higher, as TRL compares them."""
    margin_P = columns["rewards/chosen"] - columns["rewards/rejected"]
    return {
        **columns,
        "rewards/margins": margin_P,
        "rewards/accuracies": (margin_P > 0).astype(np.float64),
    }


# ---- side by side ----


def compare_card(card: Card, evaluated: Evaluated) -> Compared:
    """The card's evaluation of the nearest epoch beside the run's pairs. Of a table of scores, the
    card's last one."""
    epoch = evaluated.epoch
    point = card.points[-1]
    if epoch is not None:
        point = min(card.points, key=lambda one: abs(one.epoch - epoch))
    rows = min(card.rows, evaluated.pairs)
    batches = rank0_batches(rows, card.gpus, card.batch)
    return {
        "card": card.name,
        "source": card.source,
        "slice": f"rank 0 of {card.gpus} GPUs x {card.batch} of {rows:,} rows",
        "pairs": sum(map(len, batches)),
        "epoch": point.epoch,
        "step": point.step,
        "metrics": compared_metrics(evaluated, batches, point.values),
    }


def compared_metrics(
    evaluated: Evaluated, batches: Sequence[Sequence[int]], of_card: Mapping[str, float]
) -> dict[str, dict[str, object]]:
    """By metric: `card`, `rank0` and `all` of the run; `rank0` is None for the loss."""
    found: dict[str, dict[str, object]] = {}
    for name in (*METRICS, *REFERENCE):
        values_P = evaluated.columns.get(name)
        if values_P is None:
            continue
        whole: Figure = {"mean": float(values_P.mean()), "stderr": standard_error(values_P)}
        found[name] = {
            "card": of_card.get(name),
            "rank0": None if name == "loss" else rank0_figure(values_P, batches),
            "all": whole,
        }
    return found


def page_lines(evaluated: Evaluated, compared: Sequence[Compared]) -> Iterator[str]:
    """What the command prints."""
    epoch = "" if evaluated.epoch is None else f", epoch {evaluated.epoch:.2f}"
    yield f"{evaluated.name}{epoch}: {evaluated.pairs:,} pairs; +- one standard error"
    yield from (f"note: {note}" for note in evaluated.notes)
    for one in compared:
        yield ""
        yield from card_lines(one)


def card_lines(compared: Compared) -> Iterator[str]:
    """A table for a terminal."""
    step = "" if compared["step"] is None else f", step {compared['step']:,}"
    yield (
        f"{compared['card']} at epoch {compared['epoch']:.2f}{step} ({compared['source']}; "
        f"{compared['slice']})"
    )
    pairs = f"on its {compared['pairs']} pairs"
    yield f"  {'':20} {'card':>10} {pairs:>24} {'on all your pairs':>24}"
    for name, of in compared["metrics"].items():
        card = of["card"]
        shown = f"{card:.4f}" if isinstance(card, float) else "-"
        yield f"  {name:20} {shown:>10} {cell(of['rank0']):>24} {cell(of['all']):>24}"


def cell(figure: object) -> str:
    """`mean +- standard error`, or - where there is none."""
    if not isinstance(figure, dict):
        return "of all pairs"
    error = "" if figure["stderr"] is None else f" +- {figure['stderr']:.4f}"
    return f"{figure['mean']:.4f}{error}"


def custom_card(gpus: int, batch: int, rows: int | None, evaluated: Evaluated) -> Card:
    """A layout without a known card. Raises: BadInput for numbers below 1."""
    for name, value in (("gpus", gpus), ("batch", batch), ("rows", 1 if rows is None else rows)):
        if value < 1:
            raise BadInput(f"--{name}: expected an integer >= 1, got {value}")
    point = Point(evaluated.epoch or 0.0, None, {})
    size = evaluated.pairs if rows is None else rows
    return Card("your layout", "no card", gpus, batch, size, [point])
