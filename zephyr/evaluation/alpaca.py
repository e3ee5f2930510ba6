"""A judge's verdicts on a model's and a baseline's answers become win rates, as AlpacaEval counts
them, from records in its format."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zephyr.config import BadInput
from zephyr.evaluation.compare import FIRST_WON
from zephyr.evaluation.statistics import mean_with_interval

Row = Mapping[str, Any]
PROMPTS = 805  # of AlpacaEval; its package computes the length-controlled win rate only for these
ALPACA_KEYS = ("generator_1", "output_1", "generator_2", "output_2")
PAIR_KEYS = ("model_a", "completion_a", "model_b", "completion_b")  # of preference files


class Annotation(NamedTuple):
    """A judgement of the model's output (2) against the baseline's (1)."""

    generator_1: str
    output_1: str
    generator_2: str
    output_2: str
    annotator: str
    share: float | None  # the model's, 0 to 1; None: no verdict
    first_won: list[float]  # of each call whose order is known: 1, 0.5 or 0
    number: int | None  # of AlpacaEval's prompt, if its id tells it


def read_annotation(place: str, row: Row) -> Annotation:
    """A row of AlpacaEval's annotations.json, or of a preference file.

    A preference goes from 1, the baseline's, to 2, the model's; 0 is a tie as 1.5 is; null and NaN
    are no verdict. The order of the calls is known from our `orders`, the verdicts with the
    baseline first and last, or from `referenced_models`: m is what AlpacaEval shows first.

    Raises: BadInput naming the place."""
    keys = PAIR_KEYS if "model_b" in row else ALPACA_KEYS
    texts = [row.get(key, "") for key in keys]
    value = math.nan if row.get("preference") is None else row["preference"]
    is_preference = isinstance(value, (int, float)) and (
        math.isnan(value) or value == 0 or 1 <= value <= 2
    )
    if not (is_preference and texts[0] and texts[2]):
        raise BadInput(
            f"{place}: expected {', '.join(ALPACA_KEYS)} (or {', '.join(PAIR_KEYS)}) and a "
            f"preference from 1 to 2, 0 or null; got {dict(row)!s:.200}"
        )
    share = None
    if not math.isnan(value):
        share = value - 1 if value else 0.5
    first_won = [2 * FIRST_WON[verdict] for verdict in row.get("orders") or () if verdict]
    shown = row.get("referenced_models")
    if share is not None and isinstance(shown, Mapping) and "m" in shown:
        first_won = [share if shown["m"] == "output_2" else 1 - share]
    number = re.fullmatch(r"alpacaeval-(\d+)", str(row.get("prompt_id")))
    generator_1, output_1, generator_2, output_2 = texts
    return Annotation(
        generator_1,
        output_1,
        generator_2,
        output_2,
        row.get("annotator", ""),
        share,
        first_won,
        int(number[1]) if number else None,
    )


def annotated_answers(
    records: Iterable[tuple[str, Row]],
) -> dict[str, list[tuple[dict[str, object], str]]]:
    """The models' outputs that the records are about, each with its prompt row, by model. The
    instruction is the prompt's id where there is none. Raises: BadInput for a bad row."""
    found: defaultdict[str, list[tuple[dict[str, object], str]]] = defaultdict(list)
    for place, row in records:
        annotation = read_annotation(place, row)
        instruction = row.get("instruction", row.get("prompt"))
        prompt = {"prompt_id": row.get("prompt_id", instruction), "prompt": instruction}
        found[annotation.generator_2].append((prompt, annotation.output_2))
    return found


def score_annotations(
    records: Iterable[tuple[str, Row]], *, length_controlled: bool = False
) -> dict[str, dict[str, object]]:
    """Win rates in percent by model; by "MODEL (ANNOTATOR)" where the records have several
    annotators.

    Each with n, stderr (sample standard deviation / sqrt(n)), ci95 (bootstrap), unparsed,
    AlpacaEval's discrete counts, avg_length, and position_bias where orders are known.

    Raises: BadInput for a bad row, two baselines, or what the length-controlled rate lacks."""
    groups: defaultdict[tuple[str, str], list[Annotation]] = defaultdict(list)
    for place, row in records:
        found = read_annotation(place, row)
        group = groups[found.generator_2, found.annotator]
        group.append(found)
        if found.generator_1 != group[0].generator_1:
            raise BadInput(
                f"{place}: {found.generator_2} is compared with {found.generator_1} here, with "
                f"{group[0].generator_1} before"
            )
    several = len({annotator for _, annotator in groups}) > 1
    results = {}
    for (model, annotator), group in groups.items():
        rates = win_rates(group)
        if length_controlled:
            rates |= package_length_controlled(group)
        results[f"{model} ({annotator})" if several else model] = rates
    return results


def win_rates(group: Sequence[Annotation]) -> dict[str, object]:
    """The figures of `score_annotations` for one model by one annotator."""
    shares = [row.share for row in group if row.share is not None]
    bias = [sum(row.first_won) / len(row.first_won) for row in group if row.first_won]
    wins, draws = sum(share > 0.5 for share in shares), shares.count(0.5)
    discrete = [100.0 * (share > 0.5) + 50.0 * (share == 0.5) for share in shares]
    return {
        **mean_with_interval("win_rate", [100 * share for share in shares]),
        "unparsed": len(group) - len(shares),
        "n_wins": wins,
        "n_wins_base": len(shares) - wins - draws,
        "n_draws": draws,
        "discrete": mean_with_interval("win_rate", discrete),
        "avg_length": sum(len(row.output_2) for row in group) / len(group),
        "baseline": group[0].generator_1,
        "annotator": group[0].annotator,
        **({"position_bias": mean_with_interval("first_won", bias)} if bias else {}),
    }


def package_length_controlled(group: Sequence[Annotation]) -> dict[str, object]:
    """The length-controlled win rate in percent, by the package `alpaca_eval` (Dubois et al. 2024,
    arXiv:2404.04475).

    stderr and ci95 are of its predictions over prompts, without the fit's own uncertainty.

    Raises: BadInput where the package or its file is missing, or the rows don't tell which of
    AlpacaEval's prompts they belong to."""
    rows: dict[int, dict[str, object]] = {}
    for n, row in enumerate(group):
        number = n if row.number is None and len(group) == PROMPTS else row.number
        if row.share is None:
            continue
        if number is None or number >= PROMPTS:
            raise BadInput(
                f"length-controlled win rate of {row.generator_2}: expected all {PROMPTS} prompts "
                "of AlpacaEval in its order, or prompt_id as alpacaeval-0007; got "
                f"{len(group)} rows"
            )
        rows[number] = {**row._asdict(), "preference": 1 + row.share}
    try:
        from alpaca_eval.metrics.glm_winrate import get_length_controlled_winrate
        from pandas import DataFrame

        found = get_length_controlled_winrate(
            DataFrame(list(rows.values()), index=list(rows)), save_weights_dir=None
        )
    except ImportError as error:
        raise BadInput(
            f"the length-controlled win rate needs alpaca_eval ({error}): "
            "pip install 'zephyr[eval]'"
        ) from None
    except OSError as error:
        raise BadInput(
            "the length-controlled win rate needs AlpacaEval's file of instruction difficulties: "
            "hf download --repo-type dataset tatsu-lab/alpaca_eval df_gamed.csv "
            f"({type(error).__name__})"
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
