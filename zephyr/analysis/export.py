"""What `zephyr pairs` does: a run's pairs become a table, or the rows of a new training set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zephyr.analysis.folds import fold_suspicion
from zephyr.analysis.pairs import read_texts
from zephyr.analysis.runs import Run, read_runs
from zephyr.analysis.select import parse_rule, select_pairs, selected_rows
from zephyr.analysis.table import (
    Rows,
    Scores,
    pair_table,
    require_table_name,
    require_visits,
    visit_values,
)
from zephyr.analysis.visits import LOG_PROBS, Floats, Visits, read_visits
from zephyr.config import BadInput, source_paths
from zephyr.data.jsonl import require_output, save_report, write_rows
from zephyr.data.tables import write_table


class Wanted(NamedTuple):
    """Which columns a table of pairs gets beside those that cost nothing."""

    similarity: bool = True
    ches: bool = False
    folds: int | None = None
    model: str | None = None  # folder or hub id of the hidden states; None: the run's own


def export_table(folder: Path, out: Path | None, rows: Rows, wanted: Wanted) -> list[str]:
    """Write the table of a run's pairs. Returns: what to tell: the file, and texts that are gone.

    Raises: BadInput for a run, rows, a model or an output that can't be used.
    """
    out = out or folder / "pairs.parquet"
    require_table_name(out)
    run, visits = read_ledger(folder)
    texts, problems = read_texts(run)
    table = pair_table(
        run,
        visits,
        texts,
        rows=rows,
        similarity=wanted.similarity,
        scores=model_scores(run, visits, wanted),
    )
    write_table(out, table)
    unread = sum(id not in texts for id in visits.ids)
    if unread:
        problems.append(f"the texts of {unread:,} of {len(visits.ids):,} pairs are null")
    per = "visit" if rows == "visit" else "pair"
    said = f"{out}: {table.num_rows:,} rows, one a {per}, of {len(visits.ids):,} pairs"
    return [f"{said}, {table.num_columns} columns", *(f"warning: {line}" for line in problems)]


def export_selection(
    folder: Path, out: Path | None, rule: str, weight: float | None, wanted: Wanted
) -> list[str]:
    """Write the rows of a new training set, with a report beside it.

    Args: weight: as `selected_rows`.
    Returns: what to tell. Raises: BadInput as `export_table`, for a rule or a weight that makes no
        sense, and where no row is selected.
    """
    parse_rule(rule)
    require_weight(weight)
    run, visits = read_ledger(folder)
    out = require_rows_name(run, out)
    texts, problems = read_texts(run)
    scores = model_scores(run, visits, wanted)
    similarity = wanted.similarity and "similarity" in rule
    table = pair_table(run, visits, texts, rows="pair", similarity=similarity, scores=scores)
    is_selected = dict(zip(visits.ids, select_pairs(table, rule).tolist()))
    if not any(is_selected.values()):
        raise BadInput(f"--select {rule!r}: no pair of {folder} is selected, nothing is written")
    count = write_rows(out, selected_rows(run, is_selected, weight))
    report = {
        "run": str(folder),
        "rule": rule,
        "weight": weight,
        "pairs": len(visits.ids),
        "selected": sum(is_selected.values()),
        "rows": count,
    }
    save_report(out, report)
    return said_of_selection(out, report, problems)


def said_of_selection(
    out: Path, report: Mapping[str, object], problems: Sequence[str]
) -> list[str]:
    """The lines that a selection prints."""
    head = f"{out}: {report['rows']:,} rows"
    lines = [f"{head}; the rule selects {report['selected']:,} of {report['pairs']:,} pairs"]
    if report["weight"] is not None:
        lines[0] += f", the others have weight {report['weight']:g}"
    return [*lines, *(f"warning: {line}" for line in problems)]


def read_ledger(folder: Path) -> tuple[Run, Visits]:
    """A run and its visits. Raises: BadInput where there are none."""
    try:
        (run,) = read_runs([folder])
    except OSError as error:
        raise BadInput(f"{folder} is no run folder: {error.strerror}: {error.filename}") from None
    visits = read_visits(folder)
    require_visits(run, visits)
    return run, visits


def require_rows_name(run: Run, out: Path | None) -> Path:
    """The output of a selection. Raises: BadInput: it is not named, no .jsonl, or among the
    sources."""
    if out is None or out.suffix != ".jsonl":
        raise BadInput(
            f"--out: --select writes rows, expected a name that ends in .jsonl, got {out}"
        )
    require_output(out, source_paths(run.config.get("data.train")))
    return out


def require_weight(weight: float | None) -> None:
    """Raises: BadInput for a weight that no row may have."""
    if weight is not None and not 0 <= weight < float("inf"):
        raise BadInput(f"--weight: expected a finite number >= 0, got {weight}")


def model_scores(run: Run, visits: Visits, wanted: Wanted) -> Scores:
    """The columns that need a forward pass; none where none is wanted."""
    if not wanted.ches and wanted.folds is None:
        return {}
    from zephyr.analysis.hidden import hidden_states

    states = hidden_states(run, visits, wanted.model)
    scores: dict[str, Floats] = {}
    if wanted.ches:
        scores |= {"ches": states.ches_P, "ches_normalized": states.ches_normalized_P}
    if wanted.folds is not None:
        features = [states.difference_PD, *reference_margins(run, visits)]
        scores["flip_suspicion_folds"] = fold_suspicion(features, wanted.folds)
    return scores


def reference_margins(run: Run, visits: Visits) -> tuple[Floats, Floats]:
    """By how much the reference prefers the chosen response [P]: log-prob less log-prob, of the
    whole responses and of each per token. Without a reference, the policy at the first visit."""
    values = visit_values(run, visits)
    names = [f"ref_{logp}" if run.has_reference else logp for logp in LOG_PROBS]
    of_sides = [np.asarray(values[name][visits.first_P], np.float64) for name in names]
    chosen_P, rejected_P = of_sides
    tokens = visits.tokens
    per_token_P = chosen_P / tokens["chosen_tokens"] - rejected_P / tokens["rejected_tokens"]
    return chosen_P - rejected_P, per_token_P
