"""A run's records and pairs become findings: what a person wants to know first, in words.

Each finding answers one question, says how sure it is, and names the figure that shows it. The
limits below were set on runs of the tiny world, with and without planted faults: flipped labels, a
length shortcut, a learning rate that is too high.

Shape letters: V visits, P pairs (see `zephyr.analysis.visits`).
"""

import math
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from zephyr.analysis.flips import flip_suspicion
from zephyr.analysis.pairs import PairText
from zephyr.analysis.runs import Record, Records, Run
from zephyr.analysis.visits import Visits
from zephyr.evaluation.statistics import wilson
from zephyr.report.text import percent, plural, signed

Graded = Literal["good", "watch", "bad"]
Status = Graded | Literal["none"]
CLEARLY = 3.0  # standard errors of a difference that is no accident

WEAK_ACCURACY = 0.6  # the lower end of the interval has to be above it
GAP_WATCH, GAP_BAD = 0.05, 0.15  # train accuracy above held-out accuracy
REGRESS_WATCH, REGRESS_BAD = 0.1, 0.5  # of the fall of the held-out loss that was lost again
FALL_WATCH, FALL_BAD = 0.05, 0.25  # of the chosen response's log-prob at the start
R_WATCH, R_BAD = 0.5, 0.7  # correlation of margin and length difference
LONGER_WATCH, LONGER_BAD = 0.8, 0.9  # share of labels that length alone predicts
FLIPS_WATCH, FLIPS_BAD = 0.02, 0.08  # share of labels that look flipped
MOVED_WATCH, MOVED_BAD = 0.1, 0.2  # of the weights' norm, by all updates of a DPO run together
STRETCHES = 20  # of a run, over which train losses are averaged
SPIKE = 10.0  # gradient norm over the median of those before it

ALARMS = {
    "non_finite": (
        "a loss or gradient was not finite; the run stopped before the update. Look at the pairs "
        "that the log names; lower optim.lr_peak",
        "loss",
    ),
    "frozen_weights": (
        "all updates together stay below the rounding of the dtype that is computed in: nothing is "
        "learned. Raise optim.lr_peak",
        "update-ratio",
    ),
    "chosen_falls": (
        "chosen responses lost a quarter of their log-prob at the start. Lower optim.lr_peak or "
        "optim.epochs, or raise beta",
        "displacement",
    ),
    "overfit": (
        "held-out accuracy fell by more than two standard errors since its best while margins "
        "grew: pairs are learnt by heart. Stop earlier",
        "accuracy",
    ),
}


class Finding(NamedTuple):
    """The answer to one question about a run."""

    name: str
    question: str
    status: Status  # "none": it can't be told
    answer: str  # a few words
    number: str  # the number that says most; "" without one
    text: str  # sentences with the numbers behind it
    figure: str  # id of the figure that shows it; "" without one


def verdict(run: Run, visits: Visits, texts: Mapping[str, PairText]) -> list[Finding]:
    """What a run's files say of it. Args: texts: of its pairs, by id; may be empty."""
    if not run.records["train"]:
        return [Finding("learned", "Did it learn?", "none", "No record yet", "", "", "")]
    better = answers_better(run)
    if not run.is_dpo:
        return [*better, learned_text(run), overfit_text(run), rate(run), raised(run)]
    return [
        *better,
        learned(run, visits),
        overfit(run, visits),
        chosen_moved(run, visits),
        length(visits),
        flips(run, visits, texts),
        rate(run),
        raised(run),
    ]


# ---- are the answers better ----


def answers_better(run: Run) -> list[Finding]:
    """The last win rate of sample answers over those at the start; none without a judge."""
    rated = [r for r in run.records["eval"] if r.values.get("win_rate") is not None]
    if not rated:
        return []
    values = rated[-1].values
    rate, low, high = (values.get(f"win_rate{end}") for end in ("", "/low", "/high"))
    if rate is None or low is None or high is None:
        return []
    status: Graded = "good" if low > 0.5 else "bad" if high < 0.5 else "watch"
    answer = {"good": "Yes", "watch": "Not shown", "bad": "No: worse"}[status]
    text = (
        f"The judge prefers the answer at step {rated[-1].step:,} to the one before training in "
        f"{percent(rate, 1)} of {values.get('win_rate/n') or 0:,.0f} prompts (95 % interval "
        f"{interval(low, high)}; 50 % would be no change). The answers stand below."
    )
    question, figure = "Are the answers better than before?", "win-rate"
    return [Finding("answers", question, status, answer, percent(rate, 1), text, figure)]


# ---- did it learn ----


def learned(run: Run, visits: Visits) -> Finding:
    """Held-out accuracy and margin after training; before it every margin is 0."""
    last, start = last_of(run, "eval"), initial_loss(run.records)
    question = "Did it learn?"
    if last is None or "rewards/accuracies" not in last:
        return learned_unseen(run, visits)
    accuracy, n = last["rewards/accuracies"], last.get("pairs", 0.0)
    low, high = wilson(accuracy, n)
    loss = last.get("loss")
    words = (
        f"Held-out accuracy {percent(accuracy, 1)} of {n:,.0f} pairs (95 % interval "
        f"{interval(low, high)}); before training no side is preferred: 50 %. "
        f"{margin_words(last.get('rewards/margins'), visits, n)}"
    )
    if loss is not None and start is not None:
        words += f" Loss {loss:.3f}, from {start:.3f}."
    status, answer = rank_accuracy(low, high)
    if loss is not None and start is not None and loss > start:
        status, answer = "bad", "No: worse than before"
        words += " A loss above its start means that the run harmed the model."
    return Finding("learned", question, status, answer, percent(accuracy, 1), words, "accuracy")


def rank_accuracy(low: float, high: float) -> tuple[Graded, str]:
    """Status and answer for the interval of an accuracy."""
    if high < 0.5:
        return "bad", "No: the opposite"
    if low <= 0.5:
        return "bad", "Not shown"
    return ("good", "Yes") if low > WEAK_ACCURACY else ("watch", "A little")


def learned_unseen(run: Run, visits: Visits) -> Finding:
    """Without an evaluation: pairs at their first visit, before they were trained on."""
    question = "Did it learn?"
    first = np.flatnonzero(visits.visit_V == 0)
    if not len(first):
        text = f"{not_evaluated(run, 'pairs')} There is no ledger of pairs yet either."
        return Finding("learned", question, "none", "Can't be told", "", text, "loss")
    latest = first[visits.step_V[first] >= np.quantile(visits.step_V[first], 0.75)]
    share, n = float((visits.margin_V[latest] > 0).mean()), len(latest)
    low, high = wilson(share, n)
    status, answer = rank_accuracy(low, high)
    text = (
        f"{not_evaluated(run, 'pairs')} Of the last quarter of pairs of the first epoch, each just "
        f"before its first update, {percent(share, 1)} of {n:,} are ranked right, 95 % interval "
        f"{interval(low, high)}."
    )
    status = "watch" if status == "good" else status
    return Finding("learned", question, status, answer, percent(share, 1), text, "margin-epoch")


def margin_words(margin: float | None, visits: Visits, n: float) -> str:
    """The held-out margin, with an interval from the spread of the trained pairs' margins."""
    if margin is None:
        return ""
    last_P = visits.margin_V[visits.last_P]
    last_P = last_P[np.isfinite(last_P)]
    if len(last_P) < 2 or not n:
        return f"Mean margin {signed(margin, 3)}, from 0."
    half = 1.96 * float(last_P.std()) / math.sqrt(n)
    between = f"{signed(margin - half, 3)} to {signed(margin + half, 3)}"
    return f"Mean margin {signed(margin, 3)}, from 0 (95 % interval {between})."


def learned_text(run: Run) -> Finding:
    """SFT: the loss of held-out targets, or of train ones."""
    question, last = "Did it learn?", last_of(run, "eval")
    whose = "held-out" if last and "loss" in last else "train"
    of = (last if whose == "held-out" else last_of(run, "train")) or {}
    start = held_out_start(run.records) if whose == "held-out" else initial_loss(run.records)
    loss = of.get("loss")
    if loss is None or start is None:
        return Finding("learned", question, "none", "Can't be told", "", "No loss yet.", "loss")
    text = (
        f"{whose.capitalize()} loss {loss:.3f} nats a token, from {start:.3f} at the first step: "
        f"perplexity {perplexity(loss)}, from {perplexity(start)}."
    )
    down = loss < start
    status: Status = ("good" if whose == "held-out" else "watch") if down else "bad"
    answer = "Yes" if down else "No: the loss did not fall"
    return Finding("learned", question, status, answer, f"{loss:.3f}", text, "loss")


def perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700)):.4g}"


# ---- does it overfit ----


def overfit(run: Run, visits: Visits) -> Finding:
    """Train against held-out accuracy, the held-out loss against its best, and the alarm."""
    question, last = "Does it overfit?", last_of(run, "eval")
    if last is None or "rewards/accuracies" not in last or not visits.ids:
        missing = last is None or "rewards/accuracies" not in last
        text = not_evaluated(run, "pairs") if missing else "There is no ledger of pairs yet."
        return Finding("overfit", question, "none", "Can't be told", "", text, "")
    train = float((visits.margin_V[visits.last_P] > 0).mean())
    held, n = last["rewards/accuracies"], last.get("pairs", 1.0)
    gap, error = train - held, difference_error(train, len(visits.ids), held, n)
    text = (
        f"Train accuracy {percent(train, 1)} (each pair at its last visit), held-out "
        f"{percent(held, 1)}: a gap of {signed(100 * gap, 1)} points, give or take "
        f"{100 * 1.96 * error:.1f}."
    )
    status: Graded = "good"
    if gap > GAP_WATCH and gap > 2 * error:
        status = "bad" if gap > GAP_BAD and gap > CLEARLY * error else "watch"
        text += " The model learnt these pairs by heart, or the held-out ones are of another kind."
    later, words = loss_since_best(run.records)
    status = worst(status, later)
    if any(record.values.get("alarms/overfit") for record in run.records["eval"]):
        status, words = "bad", f"{words} The alarm of overfitting was raised."
    answer = {"good": "No", "watch": "It begins to", "bad": "Yes"}[status]
    number = f"{signed(100 * gap, 1)} points"
    return Finding("overfit", question, status, answer, number, f"{text} {words}".strip(), "loss")


def overfit_text(run: Run) -> Finding:
    """SFT: the held-out loss against its best, and against the train loss."""
    question, last = "Does it overfit?", last_of(run, "eval")
    if last is None or last.get("loss") is None:
        text = not_evaluated(run, "texts")
        return Finding("overfit", question, "none", "Can't be told", "", text, "")
    status, words = loss_since_best(run.records)
    train = (last_of(run, "train") or {}).get("loss")
    number = ""
    text = f"Held-out loss {last['loss']:.3f}"
    if train is not None:
        text += f", train loss {train:.3f} in the last record"
        number = signed(last["loss"] - train, 3)
    answer = {"good": "No", "watch": "It begins to", "bad": "Yes"}[status]
    return Finding("overfit", question, status, answer, number, f"{text}. {words}".strip(), "loss")


def loss_since_best(records: Records) -> tuple[Graded, str]:
    """How much of its fall the held-out loss lost again since its best."""
    known = [(loss, r.step) for r in records["eval"] if (loss := r.values.get("loss")) is not None]
    start = held_out_start(records)
    if not known or start is None:
        return "good", ""
    (best, step), (last, _) = min(known), known[-1]
    lost = (last - best) / max(start - best, 1e-9)
    if lost <= REGRESS_WATCH and sum(step > 0 for _, step in known) == 1:
        text = "There is one evaluation after the start; a smaller run.eval_every shows a turn."
        return "good", text
    if lost <= REGRESS_WATCH:
        return "good", "The held-out loss was lowest at the end." if last == best else ""
    words = f"The held-out loss was lowest at step {step:,} ({best:.3f}) and is {last:.3f} now."
    return "bad" if lost > REGRESS_BAD else "watch", words


# ---- is the chosen response falling ----


def chosen_moved(run: Run, visits: Visits) -> Finding:
    """The change of both responses' log-probs since the start, in nats and percent."""
    question, beta = "Is the chosen response falling?", run.config.get("beta")
    values, whose = last_of(run, "eval"), "held-out"
    if values is None or "rewards/chosen" not in values:
        values, whose = last_of(run, "train"), "train"
    names = ("rewards/chosen", "rewards/rejected", "logps/chosen")
    found = [None if values is None else values.get(name) for name in names]
    chosen, rejected, logp = found
    if chosen is None or rejected is None or logp is None or not isinstance(beta, (int, float)):
        return Finding("chosen", question, "none", "Can't be told", "", "No log-probs yet.", "")
    chosen, rejected = chosen / beta, rejected / beta
    start = logp - chosen
    share = chosen / abs(start) if start else 0.0
    status: Status = "good"
    if share < -FALL_WATCH:
        status = "bad" if share < -FALL_BAD else "watch"
    direction = "lost" if chosen < 0 else "gained"
    text = (
        f"{whose.capitalize()} chosen responses {direction} {abs(chosen):.2f} nats of "
        f"{signed(start, 1)} at the start ({signed(100 * share, 0)} %); rejected ones "
        f"{'lost' if rejected < 0 else 'gained'} {abs(rejected):.2f}."
    )
    if status != "good":
        grows = (
            " The margin grows because the rejected response falls faster (likelihood "
            "displacement)."
        )
        text += (grows if rejected < chosen else "") + (
            " The probability goes to responses that are in no pair. Zephyr-7B-beta itself ended "
            "at −18 %."
        )
    answer = {"good": "No", "watch": "Yes, a little", "bad": "Yes"}[status]
    number = f"{signed(100 * share, 0)} %"
    return Finding("chosen", question, status, answer, number, text, "displacement")


# ---- does length explain the margins ----


def length(visits: Visits) -> Finding:
    """Correlation of margin and length difference, and accuracy where the longer one loses."""
    question = "Does length explain the margins?"
    if len(visits.ids) < 3:
        text = "That takes the ledger of pairs, which is written with each checkpoint."
        return Finding("length", question, "none", "Can't be told", "", text, "")
    difference_P = visits.tokens["chosen_tokens"] - visits.tokens["rejected_tokens"]
    margin_P = visits.margin_V[visits.last_P]
    longer_P, shorter_P = difference_P > 0, difference_P < 0
    unequal = int(longer_P.sum() + shorter_P.sum())
    share = float(longer_P.sum() / unequal) if unequal else 0.5
    predicted = max(share, 1 - share)
    r = correlation(difference_P, margin_P)
    by_side = [side_accuracy(margin_P, of_P) for of_P in (longer_P, shorter_P)]
    status = worst(level(abs(r), R_WATCH, R_BAD), level(predicted, LONGER_WATCH, LONGER_BAD))
    # The model would follow length and not the label where both disagree.
    (right, n), (against, m) = by_side if share >= 0.5 else by_side[::-1]
    if m >= 20 and right - against > 0.1:
        error = difference_error(right, n, against, m)
        if right - against > CLEARLY * error:
            status = worst(status, "bad" if against < 0.5 else "watch")
    preferred = "longer" if share >= 0.5 else "shorter"
    where_rejected = (
        f"{percent(against, 1)} ({plural(m, 'pair')})" if m else "unknown: there is no such pair"
    )
    text = (
        f"Correlation of margin and length difference r = {signed(r)} "
        f"({percent(r * r)} of the variance). The {preferred} response is the chosen one in "
        f"{percent(predicted)} of {unequal:,} pairs of unequal length. Accuracy where it is "
        f"chosen {percent(right, 1)}, where it is rejected {where_rejected}."
    )
    if status != "good":
        text += " The model can win by length alone: balance the lengths of the pairs."
    answer = {"good": "Little", "watch": "In part", "bad": "Yes"}[status]
    return Finding("length", question, status, answer, f"r = {signed(r)}", text, "length")


def side_accuracy(margin_P: np.ndarray, of_P: np.ndarray) -> tuple[float, int]:
    """Share of the pairs `of_P` with a positive margin, and their number."""
    n = int(of_P.sum())
    return (float((margin_P[of_P] > 0).mean()) if n else 0.0), n


def correlation(x_P: np.ndarray, y_P: np.ndarray) -> float:
    """Pearson's correlation of the finite values; 0 where either does not vary."""
    finite_P = np.isfinite(y_P)
    x_P, y_P = x_P[finite_P], y_P[finite_P]
    if len(x_P) < 3 or not np.ptp(x_P) or not np.ptp(y_P):
        return 0.0
    return float(np.corrcoef(x_P, y_P)[0, 1])


# ---- how many labels look flipped ----


def flips(run: Run, visits: Visits, texts: Mapping[str, PairText]) -> Finding:
    """Pairs whose margins say that the label is the wrong way round."""
    question = "Do labels look flipped?"
    if not visits.ids:
        text = "That takes the ledger of pairs, which is written with each checkpoint."
        return Finding("flips", question, "none", "Can't be told", "", text, "")
    suspected_P = flip_suspicion(visits) > 0.5
    count, pairs = int(suspected_P.sum()), len(visits.ids)
    status = level(count / pairs, FLIPS_WATCH, FLIPS_BAD)
    text = (
        f"{plural(count, 'pair')} of {pairs:,} ({percent(count / pairs, 1)}) "
        f"{'is' if count == 1 else 'are'} more likely flipped than not, by their margins."
    )
    last = last_of(run, "eval") or {}
    held, n = last.get("rewards/accuracies"), last.get("pairs", 0.0)
    if held is not None and n:
        train = float((visits.margin_V[visits.last_P] > 0).mean())
        error = difference_error(train, pairs, held, n)
        if held - train > max(0.05, CLEARLY * error):
            status = worst(status, "watch")
            text += (
                f" The model ranks held-out pairs better ({percent(held, 1)}) than those that it "
                f"was trained on ({percent(train, 1)}): the labels of the training set are noisier."
            )
    text += most_suspected(suspected_P, visits, texts)
    answer = {"good": "Few or none", "watch": "Some", "bad": "Many"}[status]
    return Finding("flips", question, status, answer, percent(count / pairs, 1), text, "pairs")


def most_suspected(suspected_P: np.ndarray, visits: Visits, texts: Mapping[str, PairText]) -> str:
    """A sentence on the source with the largest share of suspected pairs, if it stands out."""
    sources = [texts[id].source if id in texts else "" for id in visits.ids]
    every = Counter(sources)
    suspected = Counter(sources[pair] for pair in np.flatnonzero(suspected_P))
    large = {name: suspected[name] / of for name, of in every.items() if name and of >= 20}
    if len(large) < 2 or not suspected:
        return ""
    name = max(large, key=lambda name: large[name])
    if large[name] < 2 * suspected_P.mean():
        return ""
    return f" Most stand out in {name}: {percent(large[name], 1)} of its pairs."


# ---- was the step the right size ----


def rate(run: Run) -> Finding:
    """How far the weights moved, and whether losses or gradients jumped."""
    question, train = "Was the learning rate right?", run.records["train"]
    start = initial_loss(run.records)
    moved = moved_weights(train)
    worse = losses_above(train, 1.05 * start) if start is not None else []
    spike = largest_spike(train)
    # Pretraining and SFT may move the weights far.
    status = level(moved, MOVED_WATCH, MOVED_BAD) if run.is_dpo else "good"
    text = (
        f"All updates together could move the weights by at most {percent(moved, 1)} of their norm."
    )
    if worse:
        status = worst(status, "bad" if len(worse) > 1 else "watch")
        text += (
            f" The mean train loss was above its start in {len(worse)} parts of the "
            f"run, first from step {worse[0]:,} on."
        )
    if spike > SPIKE:
        status = worst(status, "watch")
        text += f" The gradient norm rose to {spike:.0f} times the median before it."
    answer = {"good": "Nothing against it", "watch": "Perhaps too high", "bad": "Too high"}[status]
    if any(record.values.get("alarms/frozen_weights") for record in train):
        status, answer = "bad", "Too low"
        text += " The alarm of frozen weights was raised: nothing is learned."
    number = f"{percent(moved, 1)} moved"
    return Finding("rate", question, status, answer, number, text, "update-ratio")


def losses_above(train: Sequence[Record], limit: float) -> list[int]:
    """First steps of the stretches of records whose mean loss is above `limit`: single batches
    scatter."""
    known = [(r.step, loss) for r in train if (loss := r.values.get("loss")) is not None]
    size = max(1, math.ceil(len(known) / STRETCHES))
    stretches_of = [known[n : n + size] for n in range(0, len(known), size)]
    return [of[0][0] for of in stretches_of if sum(loss for _, loss in of) / len(of) > limit]


def largest_spike(train: Sequence[Record]) -> float:
    """The largest gradient norm over the median of those before it."""
    largest, before = 1.0, list[float]()  # in their order, for the median
    for record in train:
        norm = record.values.get("grad_norm")
        if not norm:
            continue
        if len(before) >= 3:
            median = (before[len(before) // 2] + before[(len(before) - 1) // 2]) / 2
            largest = max(largest, norm / median)
        insort(before, norm)
    return largest


def moved_weights(train: Sequence[Record]) -> float:
    """The sum of the updates' norms over the weights' norm; each record stands for the steps since
    the record before."""
    total, before = 0.0, -1
    for record in train:
        total += (record.values.get("update_ratio") or 0.0) * (record.step - before)
        before = record.step
    return total


# ---- alarms ----


def raised(run: Run) -> Finding:
    """Each alarm that was raised: what it means, and where."""
    question, found = "Was an alarm raised?", alarms(run.records)
    if not found:
        return Finding("alarms", question, "good", "None", "", "", "")
    parts, figure = [], ""
    for name, places in found.items():
        meaning, shown = ALARMS.get(name, ("see the log", ""))
        figure = figure or shown
        parts.append(f"{name} ({', '.join(places)}): {meaning}.")
    first = ", ".join(found)
    return Finding("alarms", question, "bad", first, "", " ".join(parts), figure)


def alarms(records: Records) -> dict[str, list[str]]:
    """For each alarm, the first and last step of every stretch of records that raised it."""
    names = dict.fromkeys(
        name
        for of_split in records.values()
        for record in of_split
        for name in record.values
        if name.startswith("alarms/")
    )
    return {name.removeprefix("alarms/"): list(stretches(records, name)) for name in names}


def stretches(records: Records, alarm: str) -> Iterator[str]:
    """`train 3 to 7` for each stretch of records that raised the alarm."""
    for split, of_split in records.items():
        for is_raised, stretch in groupby(of_split, lambda r: bool(r.values.get(alarm))):
            steps = [record.step for record in stretch]
            if is_raised and len(steps) > 1:
                yield f"{split} {steps[0]} to {steps[-1]}"
            elif is_raised:
                yield f"{split} {steps[0]}"


# ---- shared ----


def last_of(run: Run, split: str) -> dict[str, float] | None:
    """The values of the last record of a split, those that are finite; None without a record.

    The evaluation before the first update says nothing of the training, and does not count.
    """
    records = [r for r in run.records[split] if split == "train" or r.step > 0]
    if not records:
        return None
    return {name: value for name, value in records[-1].values.items() if value is not None}


def not_evaluated(run: Run, units: str) -> str:
    """Why there is no evaluation after the start. Args: units: `pairs` or `texts`."""
    if any("loss" in record.values for record in run.records["eval"]):
        return f"The held-out {units} were not evaluated since the first update yet."
    return f"There are no held-out {units}: name them in data.eval."


def held_out_start(records: Records) -> float | None:
    """The held-out loss before the first update; where it was not evaluated, the first train loss.

    Both are the same for DPO, where every pair starts with the same loss.
    """
    first = next(iter(records["eval"]), None)
    loss = first.values.get("loss") if first and first.step == 0 else None
    return initial_loss(records) if loss is None else loss


def initial_loss(records: Records) -> float | None:
    """The loss of the first train record, if it is that of step 0."""
    first = next(iter(records["train"]), None)
    return first.values.get("loss") if first and first.step == 0 else None


def difference_error(share: float, n: float, other: float, m: float) -> float:
    """Standard error of a difference of two shares, which is never 0 (Laplace's estimates)."""
    errors = []
    for p, count in ((share, n), (other, m)):
        smooth = (p * count + 1) / (count + 2)
        errors.append(smooth * (1 - smooth) / max(count, 1))
    return math.sqrt(sum(errors))


def level(value: float, watch: float, bad: float) -> Graded:
    return "bad" if value >= bad else "watch" if value >= watch else "good"


def worst(one: Graded, other: Graded) -> Graded:
    order: tuple[Graded, ...] = ("good", "watch", "bad")
    return max(one, other, key=order.index)


def interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f} %"
