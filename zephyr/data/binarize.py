"""A feedback row becomes a preference pair: a rule picks the chosen and the rejected completion.

The draw depends on seed and prompt id alone, so any split of the rows over workers gives the same pairs. A new rule is a
function of (completions, rng) and one line in `RULES`."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from zephyr.config import BadInput

Completion = Mapping[str, object]


class Pick(NamedTuple):
    """The two completions of a pair, as indices, and the scores that the rule compared."""

    chosen: int
    rejected: int
    score_chosen: float
    score_rejected: float


def paper(completions: Sequence[Completion], rng: random.Random) -> Pick | None:
    """Zephyr (arXiv:2310.16944, section 3.3): the highest mean aspect score against a uniform random other completion.

    Ties for the highest mean are broken uniformly at random. Completions with the chosen text are no "other"; None when
    none is left. An other of the same mean may be drawn, as in the paper."""
    means = [fmean(c["scores"].values()) for c in completions]  # type: ignore[attr-defined]
    chosen = rng.choice([i for i, mean in enumerate(means) if mean == max(means)])
    others = [i for i, c in enumerate(completions) if c["text"] != completions[chosen]["text"]]
    if not others:
        return None
    rejected = rng.choice(others)
    return Pick(chosen, rejected, means[chosen], means[rejected])


RULES: dict[str, Callable[[Sequence[Completion], random.Random], Pick | None]] = {
    "paper": paper,
}


def binarize(rows: Iterable[Mapping[str, object]], *, rule: str, seed: int) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Pair rows (`id`, `prompt`, `chosen`, `rejected`, `score_chosen`, `score_rejected`) and a report.

    Report: `rows`, `pairs`, `identical` (rows whose completions are all one text), `equal_scores` (pairs without a
    difference in score) and `chosen` (how often each model's answer was the chosen one).
    Raises: BadInput naming the rule, or the row that lacks a field, has fewer than two completions or no scores."""
    if rule not in RULES:
        raise BadInput(f"binarisation rule {rule!r} is unknown; there are {', '.join(sorted(RULES))}")
    pairs: list[dict[str, object]] = []
    count, equal, models = 0, 0, {}
    for count, row in enumerate(rows, start=1):
        completions = _completions(row, count)
        pick = RULES[rule](completions, random.Random(f"{seed}/{row['prompt_id']}"))
        if pick is None:
            continue
        chosen, rejected = completions[pick.chosen], completions[pick.rejected]
        pairs.append({"id": row["prompt_id"], "prompt": row["prompt"], "chosen": chosen["text"], "rejected": rejected["text"],
                      "score_chosen": pick.score_chosen, "score_rejected": pick.score_rejected})
        equal += pick.score_chosen == pick.score_rejected
        models[chosen["model"]] = models.get(chosen["model"], 0) + 1
    report = {"rows": count, "pairs": len(pairs), "identical": count - len(pairs), "equal_scores": equal, "chosen": models}
    return pairs, report


def _completions(row: Mapping[str, object], number: int) -> Sequence[Completion]:
    for field in ("prompt_id", "prompt", "completions"):
        if field not in row:
            raise BadInput(f"feedback row {number}: no field {field!r}")
    completions = row["completions"]
    if not isinstance(completions, list) or len(completions) < 2:
        raise BadInput(f"feedback row {number} ({row['prompt_id']}): at least 2 completions are wanted")
    for n, completion in enumerate(completions):
        missing = [field for field in ("model", "text", "scores") if not isinstance(completion, dict) or field not in completion]
        if missing or not completion["scores"]:
            raise BadInput(f"feedback row {number} ({row['prompt_id']}): completion {n} has no {(missing or ['scores'])[0]!r}")
    return completions
