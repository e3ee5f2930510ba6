"""The last evaluation of a run becomes a comparison with the published run of its config."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from zephyr.config import Published


class Comparison(NamedTuple):
    """A run's last held-out loss and the published one. `difference`: the run's less the other."""

    eval_loss: float
    target: float
    within: float
    source: str

    @property
    def difference(self) -> float:
        return self.eval_loss - self.target

    @property
    def is_reached(self) -> bool:
        """Whether the losses differ by `within` at most; a loss that is not finite never does. The
        tolerance of 1e-9 is for decimals, such as 0.7596 - 0.7496 and 0.01."""
        return abs(self.difference) <= self.within + 1e-9

    def metrics(self) -> dict[str, float]:
        """Of the record of the last evaluation."""
        return {
            "published/eval_loss": self.target,
            "published/difference": self.difference,
            "published/reached": float(self.is_reached),
        }

    def status(self) -> dict[str, object]:
        """Of status.json. A loss that is not finite is null, as JSON has no such number."""
        loss = self.eval_loss if math.isfinite(self.eval_loss) else None
        difference = None if loss is None else round(self.difference, 6)
        return {
            "reached": self.is_reached,
            "eval_loss": loss,
            "published": self.target,
            "difference": difference,
            "within": self.within,
            "source": self.source,
        }

    def line(self) -> str:
        """The verdict in a sentence."""
        verdict = "reached" if self.is_reached else "NOT reached"
        return (
            f"published eval loss {verdict}: {self.eval_loss:.4f} against {self.target:.4f} "
            f"({self.difference:+.4f}, within {self.within:g}); {self.source}"
        )


def compare(published: Published, eval_loss: float) -> Comparison:
    """The comparison of an evaluation's loss with the config's `published`."""
    return Comparison(eval_loss, published.eval_loss, published.within, published.source)


def last_comparison(published: Published | None, run_dir: str) -> Comparison | None:
    """The comparison of a finished run, from its records.

    Returns: None without `published`, or where metrics.jsonl has no evaluation after a step.
    """
    record = last_evaluation(Path(run_dir) / "metrics.jsonl") if published else None
    loss = record.get("loss") if record else None
    if published is None or not isinstance(loss, (int, float)):
        return None
    return compare(published, float(loss))


def last_evaluation(path: Path) -> Mapping[str, object] | None:
    """The last record of split `eval` after an update; None without one, or where a line is no
    record."""
    found = None
    try:
        for line in path.read_bytes().splitlines():
            record = json.loads(line)
            if record["split"] == "eval" and record["step"] > 0:
                found = record
    except (OSError, ValueError, LookupError, TypeError):  # the run has ended: nothing may fail
        return None
    return found
