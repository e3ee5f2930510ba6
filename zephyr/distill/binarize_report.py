"""The counts of a binarize run become its report, with warnings about suspicious scores."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

Report = dict[str, object]

# The report warns if mean and overall score prefer different sides in more than this share of the
# pairs, of at least so many that can be compared.
MAX_DISAGREEMENT = 0.3
MIN_COMPARABLE = 20
MAX_LISTED = 5  # places or ids that the report lists of each fault


@dataclass
class Tally:
    """What was counted so far.

    `counts`: by group and name. The groups:

        total       rows, pairs, equal_scores, repeated_ids, longer, inverted, comparable, disagree
        shapes      rows by their format
        dropped     rows without a pair, by reason
        left out    completions without a text or score
        unread      rows by key that nothing reads
        judged, won, chosen    by model: comparisons, shares of the verdict, pairs
        faults      overall scores that contradict the scores of the aspects

    `faults`: the first ids or places of each kind.
    """

    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    shares_won: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    faults: dict[str, list[str]] = field(
        default_factory=lambda: {"10 for 1": [], "10 doubtful": [], "inverted": []}
    )

    def add(self, group: str, name: str, number: int = 1) -> None:
        self.counts[group][name] += number

    def add_fault(self, kind: str, where: str) -> None:
        """List a fault, unless the list is full. Its count is added apart."""
        if len(self.faults[kind]) < MAX_LISTED:
            self.faults[kind].append(where)


def make_report(
    tally: Tally, *, rule: str, seed: int, fix_overall: bool, drop_sources: Sequence[str]
) -> Report:
    """Return the report of a run. Its keys are documented at `binarize`."""
    counts, total = tally.counts, tally.counts["total"]
    names = ("rows", "pairs", "equal_scores", "repeated_ids")
    win_rate = {}
    for model, judged in sorted(counts["judged"].items()):
        if model:
            win_rate[model] = {"judged": judged, "rate": tally.shares_won[model] / judged}
    faults = {}
    for kind in ("10 for 1", "10 doubtful"):
        faults[kind] = {"count": counts["faults"][kind], "first": tally.faults[kind]}
    return {
        "rule": rule,
        "seed": seed,
        "fix_overall": fix_overall,
        "shapes": dict(counts["shapes"]),
        **{name: total[name] for name in names},
        "dropped": dict(+counts["dropped"]),
        "completions_left_out": dict(+counts["left out"]),
        "chosen": {model: number for model, number in counts["chosen"].items() if model},
        "longer_chosen": total["longer"] / max(total["pairs"], 1),
        "win_rate": win_rate,
        "faults": faults,
        "inverted": {"count": total["inverted"], "first": tally.faults["inverted"]},
        "keys_not_read": dict(sorted(counts["unread"].items())),
        "disagreement": {"comparable": total["comparable"], "share": disagreement(tally)},
        "warnings": warnings(tally, drop_sources),
    }


def disagreement(tally: Tally) -> float:
    """Return the share of comparable pairs whose mean and overall scores prefer different sides."""
    total = tally.counts["total"]
    return total["disagree"] / max(total["comparable"], 1)


def warnings(tally: Tally, drop_sources: Sequence[str]) -> list[str]:
    """Return a sentence for each sign that the scores or the options are wrong."""
    total = tally.counts["total"]
    found = [
        f"no row is of the source {name!r}, which was to be dropped"
        for name in drop_sources
        if not tally.counts["dropped"][f"source {name}"]
    ]
    if total["inverted"]:
        found.append(
            "the row itself rates the chosen answer below the rejected one: "
            f"{total['inverted']} pairs, the first at {tally.faults['inverted'][0]}"
        )
    share = disagreement(tally)
    if share > MAX_DISAGREEMENT and total["comparable"] >= MIN_COMPARABLE:
        found.append(
            f"mean and overall score disagree in {share:.0%} of the pairs (over "
            f"{MAX_DISAGREEMENT:.0%}): is one of them inverted?"
        )
    return found
