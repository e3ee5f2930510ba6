"""The counts of a binarize run become its report, with warnings about suspicious scores."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from zephyr.distill.pair_options import PairOptions
from zephyr.distill.rules import DELTA, NO_STRONG, NO_WEAK
from zephyr.distill.selection import Made

Report = dict[str, object]

# The report warns if mean and overall score prefer different sides in more than this share of the
# pairs, of at least so many that can be compared.
MAX_DISAGREEMENT = 0.3
MIN_COMPARABLE = 20
MAX_LISTED = 5  # places or ids that the report lists of each fault
MAX_LISTED_PROMPTS = 100  # places that the report lists of rows without an answer
MAX_SOURCES = 1000  # names that pairs are counted under; rows of others count as OTHER_SOURCES;
# also of models that are counted
OTHER_SOURCES = "(other sources)"
# what is counted of pairs: all that could be made, those within the limit on the difference of
# lengths, those that are written
STAGES = ("made", "within length", "pairs")


@dataclass
class Tally:
    """What was counted so far.

    `counts`: by group and name. The groups:

        total       rows, pairs, equal_scores, repeated_ids, longer, inverted, comparable, disagree
        shapes      rows by their format
        dropped     rows without a pair, by reason
        left out    completions without a text or score
        unread      rows by key that nothing reads
        judged      comparisons by model; their shares of the verdict are in `shares_won`
        models      answers by model
        kinds       pairs that are written, with (`on`) or without an answer of the policy (`off`)
        STAGES      pairs, chosen, rejected, source, longer: see `count_stage`
        faults      overall scores that contradict the scores of the aspects

    `faults`: the first ids or places of each kind.
    """

    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    shares_won: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, group: str, name: str, number: int = 1) -> None:
        self.counts[group][name] += number

    def add_fault(self, kind: str, where: str) -> None:
        """List a fault, unless the list is full. Its count is added apart."""
        most = MAX_LISTED_PROMPTS if kind in (NO_STRONG, NO_WEAK) else MAX_LISTED
        if len(self.faults[kind]) < most:
            self.faults[kind].append(where)

    def source_name(self, name: str) -> str:
        """The name that rows of a source are counted under: its own, unless there are too many."""
        known = self.counts["rows source"]
        return name if name in known or len(known) < MAX_SOURCES else OTHER_SOURCES

    def count_models(self, models: Sequence[str | None]) -> None:
        """Count the models whose answers were found, up to `MAX_SOURCES` names."""
        known = self.counts["models"]
        for model in models:
            if model in known or len(known) < MAX_SOURCES:
                known[model or ""] += 1

    def count_stage(self, stage: str, made: Made) -> None:
        """Count a pair at one of `STAGES`: its source, both models, and by how much the chosen
        answer is longer."""
        self.add(stage, "pairs")
        self.add(stage, "longer", made.longer)
        self.add(f"{stage} source", made.source)
        for side in ("chosen", "rejected"):
            self.add(f"{stage} {side}", str(made.pair[f"{side}_model"] or ""))


def make_report(
    tally: Tally,
    *,
    rule: str,
    seed: int,
    fix_overall: bool,
    drop_sources: Sequence[str],
    options: PairOptions,
) -> Report:
    """Return the report of a run.

    `rows` is the sum of `pairs` and of all `dropped`. `win_rate`: by model, the mean share of the
    verdict, a half for ties; empty under `delta`. `disagreement`: the share of pairs whose mean and
    overall scores prefer different sides; under `delta`, of pairs whose weaker answer has the
    higher mean. `longer_chosen`: the share of pairs whose chosen text has more characters.
    `inverted`: pairs whose own ratings call the chosen side worse. `chosen`, `rejected`: pairs by
    model. `stages`, `by_source`: as `stages_of` and `sources_of`. `without_answer`: rule `delta`'s
    rows without an answer of a stronger or a weaker model, with the places of the first.
    """
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
        **options_of(tally, rule, options),
        "shapes": dict(counts["shapes"]),
        **{name: total[name] for name in names},
        "dropped": dict(+counts["dropped"]),
        "completions_left_out": dict(+counts["left out"]),
        "chosen": by_model(tally, "pairs chosen"),
        "rejected": by_model(tally, "pairs rejected"),
        "stages": stages_of(tally),
        "by_source": sources_of(tally),
        "longer_chosen": total["longer"] / max(total["pairs"], 1),
        "win_rate": win_rate,
        "faults": faults,
        "inverted": {"count": total["inverted"], "first": tally.faults["inverted"]},
        "keys_not_read": dict(sorted(counts["unread"].items())),
        "disagreement": {"comparable": total["comparable"], "share": disagreement(tally)},
        "warnings": warnings(tally, rule, drop_sources),
    }


def options_of(tally: Tally, rule: str, options: PairOptions) -> Report:
    """The options that were given, with what they did."""
    found: Report = {}
    if rule == DELTA:
        found["strong"], found["weak"] = list(options.strong), list(options.weak)
        found["without_answer"] = {
            side: {"count": tally.counts["dropped"][reason], "first": tally.faults[reason]}
            for side, reason in (("strong", NO_STRONG), ("weak", NO_WEAK))
        }
    if options.max_length_difference is not None:
        found["max_length_difference"] = {
            "most": options.max_length_difference,
            "unit": options.length_unit,
            "tokenizer": options.tokenizer,
        }
    if options.take:
        found["take"] = dict(options.take)
    if options.drop_prompts:
        found["drop_prompts"] = list(options.drop_prompts)
    if options.on_policy:
        kinds = tally.counts["kinds"]
        found["on_policy"] = {
            "models": list(options.on_policy),
            "side": options.on_policy_side,
            "mix": dict(options.mix),
            "pairs": {kind: kinds[kind] for kind in ("on", "off")},
        }
    return found


def by_model(tally: Tally, group: str) -> dict[str, int]:
    """The counts of a group by model; pairs of unknown models are left out."""
    return {model: number for model, number in sorted(tally.counts[group].items()) if model}


def stages_of(tally: Tally) -> Report:
    """Pairs before and after the limit on the difference of lengths, and those written: their
    number, by how much the chosen answer is longer in the mean (words, or tokens of
    `max_length_difference`), and the models on each side."""
    found: Report = {}
    for stage in STAGES:
        counts = tally.counts[stage]
        found[stage.replace(" ", "_")] = {
            "pairs": counts["pairs"],
            "mean_longer": counts["longer"] / max(counts["pairs"], 1),
            "chosen": by_model(tally, f"{stage} chosen"),
            "rejected": by_model(tally, f"{stage} rejected"),
        }
    return found


def sources_of(tally: Tally) -> Report:
    """Rows, and pairs at each of `STAGES`, by the source of the rows: their own `source` or
    `dataset`, else the command's."""
    return {
        name: {
            "rows": rows,
            **{stage.replace(" ", "_"): tally.counts[f"{stage} source"][name] for stage in STAGES},
        }
        for name, rows in sorted(tally.counts["rows source"].items())
    }


def disagreement(tally: Tally) -> float:
    """Return the share of comparable pairs whose mean and overall scores prefer different sides, or
    under `delta`, whose mean score prefers the weaker model's answer."""
    total = tally.counts["total"]
    return total["disagree"] / max(total["comparable"], 1)


def warnings(tally: Tally, rule: str, drop_sources: Sequence[str]) -> list[str]:
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
        where = f"{share:.0%} of the pairs (over {MAX_DISAGREEMENT:.0%})"
        found.append(
            f"the weaker model's answer has the higher mean score in {where}: is it the weaker one?"
            if rule == DELTA
            else f"mean and overall score disagree in {where}: is one of them inverted?"
        )
    return found
