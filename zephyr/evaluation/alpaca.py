"""A judge's verdicts on a model's and a baseline's answers become win rates, as AlpacaEval counts
them, from records in its format."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from zephyr.config import BadInput
from zephyr.evaluation.compare import FIRST_WON
from zephyr.evaluation.statistics import mean_with_interval

Row = Mapping[str, object]
PROMPTS = 805  # of AlpacaEval; the package's length-controlled win rate knows these alone
ALPACA_KEYS, PAIRS = (
    ("generator_1", "output_1", "generator_2", "output_2"),
    ("model_a", "completion_a", "model_b", "completion_b"),
)


def read_annotation(place: str, row: Row) -> dict[str, object]:
    """A row of AlpacaEval's annotations.json, or of a preference file: generators and outputs,
    `annotator`, and what is told by others.

    `share`: the model's, 0 to 1: a preference goes from 1, the baseline's, to 2, and 0 is a tie as
    1.5 is; None: no verdict, null or NaN. `first_won`: of calls whose order is known, by `orders`,
    our verdicts with the baseline first and last, or by `referenced_models`: m is what AlpacaEval
    shows first. `number`: of the prompt, where its id tells it. Raises: BadInput naming the
    place."""
    number, shown = (
        re.fullmatch(r"alpacaeval-(\d+)", str(row.get("prompt_id"))),
        row.get("referenced_models"),
    )
    value = math.nan if row.get("preference") is None else row["preference"]
    texts = {
        name: row.get(theirs, "")
        for name, theirs in zip(ALPACA_KEYS, PAIRS if "model_b" in row else ALPACA_KEYS)
    }
    a_preference = isinstance(value, (int, float)) and (
        math.isnan(value) or value == 0 or 1 <= value <= 2
    )
    if not (a_preference and texts["generator_1"] and texts["generator_2"]):
        raise BadInput(
            f"{place}: {', '.join(ALPACA_KEYS)} (or {', '.join(PAIRS)}) and a preference from 1 to 2, 0 or null are wanted, got "
            f"{dict(row)!s:.200}"
        )
    share = None if math.isnan(value) else value - 1 if value else 0.5
    first_won = [2 * FIRST_WON[verdict] for verdict in row.get("orders") or () if verdict]
    if share is not None and isinstance(shown, Mapping) and "m" in shown:
        first_won = [share if shown["m"] == "output_2" else 1 - share]
    return {
        **texts,
        "annotator": row.get("annotator", ""),
        "share": share,
        "first_won": first_won,
        "number": number and int(number[1]),
    }


def score_annotations(
    records: Iterable[tuple[str, Row]], *, length_controlled: bool = False
) -> dict[str, dict[str, object]]:
    """Win rates in percent by model; by "MODEL (ANNOTATOR)" where the records have several
    annotators.

    Each with n, stderr (sample standard deviation / sqrt(n)), ci95 (bootstrap), unparsed,
    AlpacaEval's discrete counts, avg_length, and position_bias where orders are known. Raises:
    BadInput for a bad row, two baselines, or what the length-controlled rate lacks."""
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for place, row in records:
        found = read_annotation(place, row)
        groups[found["generator_2"], found["annotator"]].append(found)
        if found["generator_1"] != (
            before := groups[found["generator_2"], found["annotator"]][0]["generator_1"]
        ):
            raise BadInput(
                f"{place}: {found['generator_2']} is compared with {found['generator_1']} here, with {before} before"
            )
    several = len({annotator for _, annotator in groups}) > 1
    return {
        f"{model} ({annotator})" if several else model: win_rates(group)
        | (package_length_controlled(group) if length_controlled else {})
        for (model, annotator), group in groups.items()
    }


def win_rates(group: Sequence[Row]) -> dict[str, object]:
    """What `score_annotations` says of one model by one annotator."""
    shares = [row["share"] for row in group if row["share"] is not None]
    bias = [sum(row["first_won"]) / len(row["first_won"]) for row in group if row["first_won"]]
    wins, draws = sum(share > 0.5 for share in shares), shares.count(0.5)
    return {
        **mean_with_interval("win_rate", [100 * share for share in shares]),
        "unparsed": len(group) - len(shares),
        "n_wins": wins,
        "n_wins_base": len(shares) - wins - draws,
        "n_draws": draws,
        "discrete": mean_with_interval(
            "win_rate", [100.0 * (share > 0.5) + 50.0 * (share == 0.5) for share in shares]
        ),
        "avg_length": sum(len(row["output_2"]) for row in group) / len(group),
        "baseline": group[0]["generator_1"],
        "annotator": group[0]["annotator"],
        **({"position_bias": mean_with_interval("first_won", bias)} if bias else {}),
    }


def package_length_controlled(group: Sequence[Row]) -> dict[str, object]:
    """The length-controlled win rate in percent, by the package `alpaca_eval` (Dubois et al. 2024,
    arXiv:2404.04475).

    stderr and ci95 are of its predictions over prompts, without the fit's own uncertainty. Raises:
    BadInput where the package or its file is missing, or the rows don't tell which of AlpacaEval's
    prompts they are of."""
    rows = {
        n if row["number"] is None and len(group) == PROMPTS else row["number"]: {
            **row,
            "preference": 1 + row["share"],
        }
        for n, row in enumerate(group)
        if row["share"] is not None
    }
    if None in rows or max(rows, default=0) >= PROMPTS:
        raise BadInput(
            f"length-controlled win rate of {group[0]['generator_2']}: all {PROMPTS} prompts of AlpacaEval in its order, or "
            f"prompt_id as alpacaeval-0007, are wanted; got {len(group)} rows"
        )
    try:
        from alpaca_eval.metrics.glm_winrate import get_length_controlled_winrate
        from pandas import DataFrame

        found = get_length_controlled_winrate(
            DataFrame(list(rows.values()), index=list(rows)), save_weights_dir=None
        )
    except ImportError as error:
        raise BadInput(
            f"the length-controlled win rate wants alpaca_eval ({error}): pip install 'zephyr[eval]'"
        ) from None
    except OSError as error:
        raise BadInput(
            "the length-controlled win rate wants AlpacaEval's file of instruction difficulties, once: hf download --repo-type "
            f"dataset tatsu-lab/alpaca_eval df_gamed.csv ({type(error).__name__})"
        ) from None
    rate, stderr = float(found["length_controlled_winrate"]), float(found["lc_standard_error"])
    return {
        "length_controlled": {
            "win_rate": rate,
            "n": len(rows),
            "stderr": stderr,
            "ci95": [rate - 1.96 * stderr, rate + 1.96 * stderr],
        }
    }
