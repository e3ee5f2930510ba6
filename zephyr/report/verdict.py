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
from zephyr.report.samples import Answers, count_changes, last_rating, rating_words
from zephyr.report.text import percent, plural, signed

Graded = Literal["good", "watch", "bad"]
Status = Graded | Literal["none"]
CLEARLY = 3.0  # standard errors of a difference that is no accident

FEW_CHANGED = 0.1  # of the sample answers
WEAK_ACCURACY = 0.6  # the lower end of the interval has to be above it
GAP_WATCH, GAP_BAD = 0.05, 0.15  # train accuracy above held-out accuracy
REGRESS_WATCH, REGRESS_BAD = 0.1, 0.5  # of the fall of the held-out loss that was lost again
FALL_WATCH, FALL_BAD = 0.05, 0.25  # of the chosen response's log-prob at the start
R_WATCH, R_BAD = 0.5, 0.7  # correlation of margin and length difference
LONGER_WATCH, LONGER_BAD = 0.8, 0.9  # share of labels that length alone predicts
FLIPS_WATCH, FLIPS_BAD = 0.02, 0.08  # share of labels that look flipped
MOVED_WATCH, MOVED_BAD = 0.1, 0.2  # of the weights' norm, by all updates of a DPO run together
LENGTH_RULE = (
    f"To watch: |r| from {R_WATCH}, {LONGER_WATCH:.0%} of the labels, or clearly fewer pairs right "
    f"where it is rejected; bad: {R_BAD}, {LONGER_BAD:.0%}, or fewer than half of them."
).replace("%", " %")
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
    todo: str = ""  # what to do next, a clause; "" where nothing is to be done


def verdict(
    run: Run, visits: Visits, texts: Mapping[str, PairText], answers: Sequence[Answers] = ()
) -> list[Finding]:
    """What a run's files say of it.

    Args: texts: of its pairs, by id; may be empty. answers: to its sample prompts; may be empty.
    """
    if not run.records["train"]:
        return [Finding("learned", "Did it learn?", "none", "No record yet", "", "", "")]
    better = answers_changed(run, answers)
    if not run.is_dpo:
        found = [*better, learned_text(run), overfit_text(run), rate(run), raised(run)]
        return [*found, *reached_published(run)]
    return [
        *better,
        learned(run, visits),
        overfit(run, visits),
        chosen_moved(run, visits),
        length(visits),
        flips(run, visits, texts),
        rate(run),
        raised(run),
        *reached_published(run),
    ]


# ---- did the answers change ----


def answers_changed(run: Run, answers: Sequence[Answers]) -> list[Finding]:
    """How many sample answers changed, and the last win rate over those at the start; [] without
    either."""
    rating, tally = last_rating(run.records["eval"]), count_changes(answers)
    if tally is None and rating is None:
        return []
    words, found = [], list[Graded]()
    answer, number = "", ""
    if tally is not None:
        same = tally.answers - tally.changed
        few = tally.changed < FEW_CHANGED * tally.answers
        found.append("watch" if few else "good")
        answer = "Hardly" if few else "Some did" if 2 * tally.changed < tally.answers else "Yes"
        number = f"{tally.changed:,} of {tally.answers:,} changed"
        words.append(
            f"{tally.changed:,} of {plural(tally.answers, 'sample answer')} changed, and {same:,} "
            f"{'is' if same == 1 else 'are'} word for word the same."
        )
    question, figure = "Did the answers change?", "samples"
    if rating is not None:
        question, figure = "Are the answers better than before?", "win-rate"
        found.append("good" if rating.low > 0.5 else "bad" if rating.high < 0.5 else "watch")
        answer = {"good": "Yes", "watch": "Not shown", "bad": "No: worse"}[found[-1]]
        if tally is not None and 0 < tally.changed <= tally.answers // 2:
            answer += f", in the {tally.changed:,} that changed" if found[-1] == "good" else ""
        number = number or percent(rating.rate, 1)
        words.append(rating_words(rating, answers))
    status = max(found, key=("good", "watch", "bad").index)
    todo = {
        "good": "",
        "watch": "train longer or raise optim.lr_peak if more answers should change, and add "
        "sample prompts",
        "bad": "read the answers that changed, and the pairs that teach them",
    }[status]
    return [Finding("answers", question, status, answer, number, " ".join(words), figure, todo)]


# ---- did it learn ----


def learned(run: Run, visits: Visits) -> Finding:
    """Held-out accuracy and margin after training; before it every margin is 0 where the reference
    is the model that training starts from."""
    last, start = last_of(run, "eval"), held_out_start(run.records)
    question = "Did it learn?"
    if last is None or "rewards/accuracies" not in last:
        return learned_unseen(run, visits)
    accuracy, n = last["rewards/accuracies"], last.get("pairs", 0.0)
    low, high = wilson(accuracy, n)
    loss = last.get("loss")
    words = (
        f"The model prefers the chosen response in {percent(accuracy, 1)} of {n:,.0f} held-out "
        f"pairs (95 % interval {interval(low, high)}; chance is 50 %). "
        f"{margin_words(run, last.get('rewards/margins'), visits, n)}"
    )
    if loss is not None and start is not None:
        words += f" Loss {loss:.3f}, from {start:.3f}."
    status, answer = rank_accuracy(low, high)
    todo = "" if status == "good" else "train longer or raise optim.lr_peak, and check the labels"
    gap = accuracy_gap(visits, accuracy, n)
    if status == "good" and gap is not None and gap.grade == "bad":
        status, answer = "watch", "Partly"
        words += f" It does so in {percent(gap.train, 1)} of the pairs it was trained on."
        todo = (
            "look for a rule, such as length, that training pairs follow and held-out ones do not"
        )
    if loss is not None and start is not None and loss > start:
        status, answer = "bad", "No: worse than before"
        words += " A loss above its start means that the run harmed the model."
        todo = "lower optim.lr_peak"
    number = percent(accuracy, 1)
    return Finding("learned", question, status, answer, number, words, "accuracy", todo)


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
    number, todo = percent(share, 1), "name held-out pairs in data.eval"
    return Finding("learned", question, status, answer, number, text, "margin-epoch", todo)


def margin_words(run: Run, margin: float | None, visits: Visits, n: float) -> str:
    """The held-out margin, with an interval from the spread of the trained pairs' margins."""
    if margin is None:
        return ""
    start = 0.0 if run.starts_at_reference else at_start(run, "rewards/margins")
    origin = "" if start is None else f", from {start:.3g}"
    last_P = visits.margin_V[visits.last_P]
    last_P = last_P[np.isfinite(last_P)]
    if len(last_P) < 2 or not n:
        return f"Mean margin {signed(margin, 3)}{origin}."
    half = 1.96 * float(last_P.std()) / math.sqrt(n)
    between = f"{signed(margin - half, 3)} to {signed(margin + half, 3)}"
    return f"Mean margin {signed(margin, 3)}{origin} (95 % interval {between})."


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
    todo = {"good": "", "watch": "name held-out texts in data.eval"}.get(
        status, "look at optim.lr_peak and the data"
    )
    return Finding("learned", question, status, answer, f"{loss:.3f}", text, "loss", todo)


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
    gap = accuracy_gap(visits, last["rewards/accuracies"], last.get("pairs", 1.0))
    assert gap is not None
    text = (
        f"Accuracy on the pairs it was trained on {percent(gap.train, 1)} (at the last visit of "
        f"each), on held-out ones {percent(gap.held, 1)}: a difference of "
        f"{signed(100 * gap.gap, 1)} ± {100 * 1.96 * gap.error:.1f} points."
    )
    answers = {"good": "No", "watch": "It begins to", "bad": "Yes"}
    later, words = loss_since_best(run.records)
    if gap.grade != "good":
        text += " What it learnt from these pairs does not all hold for new ones."
        if later == "good":
            answers = {"watch": "A gap, no decline", "bad": "A large gap, no decline"}
            words = "The held-out loss did not rise again: stopping earlier would not help."
    status = worst(gap.grade, later)
    if any(record.values.get("alarms/overfit") for record in run.records["eval"]):
        status, words = "bad", f"{words} The alarm of overfitting was raised."
        answers = {"bad": "Yes"}
    todo = ""
    if status != "good":
        stop = "stop at the lowest held-out loss, or lower optim.epochs"
        look = "compare held-out with training pairs (length, source), or add pairs"
        todo = look if later == "good" and "alarm" not in words else stop
    number = f"{signed(100 * gap.gap, 1)} points"
    text = f"{text} {words}".strip()
    return Finding("overfit", question, status, answers[status], number, text, "accuracy", todo)


class Gap(NamedTuple):
    """Train accuracy at the last visits against held-out accuracy."""

    train: float
    held: float
    gap: float
    error: float  # standard error
    grade: Graded


def accuracy_gap(visits: Visits, held: float, n: float) -> Gap | None:
    """The gap, and whether it is large and no accident; None without a ledger."""
    if not visits.ids:
        return None
    train = float((visits.margin_V[visits.last_P] > 0).mean())
    gap, error = train - held, difference_error(train, len(visits.ids), held, n)
    grade: Graded = "good"
    if gap > GAP_WATCH and gap > 2 * error:
        grade = "bad" if gap > GAP_BAD and gap > CLEARLY * error else "watch"
    return Gap(train, held, gap, error, grade)


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
    todo = "" if status == "good" else "stop at the lowest held-out loss, or lower optim.epochs"
    text = f"{text}. {words}".strip()
    return Finding("overfit", question, status, answer, number, text, "loss", todo)


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
    if not run.starts_at_reference:
        chosen, rejected = held_out_change(run)
        beta = 1.0
    if chosen is None or rejected is None or logp is None or not isinstance(beta, (int, float)):
        return Finding("chosen", question, "none", "Can't be told", "", "No log-probs yet.", "")
    chosen, rejected = chosen / beta, rejected / beta
    start = logp - chosen
    share = chosen / abs(start) if start else 0.0
    status: Status = "good"
    if share < -FALL_WATCH:
        status = "bad" if share < -FALL_BAD else "watch"
    text = (
        f"The mean log-prob of the {whose} chosen responses {'fell' if chosen < 0 else 'rose'} by "
        f"{abs(chosen):.2f} nats, from {signed(start)} to {signed(logp)}; that of the rejected "
        f"ones {'fell' if rejected < 0 else 'rose'} by {abs(rejected):.2f}."
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
    number = f"{signed(chosen)} nats" if status == "good" else f"{signed(100 * share, 0)} %"
    todo = "" if status == "good" else "lower optim.lr_peak or optim.epochs, or raise beta"
    return Finding("chosen", question, status, answer, number, text, "displacement", todo)


def held_out_change(run: Run) -> tuple[float | None, float | None]:
    """Nats by which the held-out log-probs of both responses changed; None where they were not
    evaluated before the first update and after it."""
    last = last_of(run, "eval") or {}
    changes = []
    for side in ("chosen", "rejected"):
        start, now = at_start(run, f"logps/{side}"), last.get(f"logps/{side}")
        changes.append(None if start is None or now is None else now - start)
    return changes[0], changes[1]


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
    by_r = level(abs(r), R_WATCH, R_BAD)
    by_labels = level(predicted, LONGER_WATCH, LONGER_BAD)
    against_labels: Graded = "good"
    # The model would follow length and not the label where both disagree.
    (right, n), (against, m) = by_side if share >= 0.5 else by_side[::-1]
    if m >= 20 and right - against > 0.1:
        error = difference_error(right, n, against, m)
        if right - against > CLEARLY * error:
            against_labels = "bad" if against < 0.5 else "watch"
    status = worst(worst(by_r, by_labels), against_labels)
    preferred = "longer" if share >= 0.5 else "shorter"
    where_rejected = (
        f"{percent(against, 1)} of the {plural(m, 'pair')} where it is rejected"
        if m
        else "there is no pair where it is rejected"
    )
    text = (
        f"The {preferred} response is the chosen one in {percent(predicted)} of {unequal:,} pairs "
        f"of unequal length. The model ranks {percent(right, 1)} of the pairs right whose "
        f"{preferred} response is chosen; {where_rejected}. Margin and "
        f"length difference: r = {signed(r)}, which explains {percent(r * r)} of the variance. "
        f"{LENGTH_RULE}"
    )
    # The same words for the same r; what else tells is added.
    answer = {"good": "Little", "watch": "In part", "bad": "Mostly"}[by_r]
    if by_labels != "good":
        answer += f", but the labels prefer the {preferred} one"
    elif against_labels != "good":
        answer += ", but it wins against labels"
    todo = "" if status == "good" else "balance the lengths of chosen and rejected responses"
    return Finding("length", question, status, answer, f"r = {signed(r)}", text, "length", todo)


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
        f"{'looks' if count == 1 else 'look'} as if chosen and rejected were swapped: flip "
        "suspicion over 0.5, from their margins over the visits."
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
    number, shown = percent(count / pairs, 1), "pairs" if count else ""
    todo = "" if status == "good" else "read the pairs with the highest flip suspicion, and drop "
    todo += "or judge again those that are wrong" if todo else ""
    return Finding("flips", question, status, answer, number, text, shown, todo)


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
    # Other losses differ from pair to pair at the start: that of the first step is no measure.
    start = initial_loss(run.records) if run.starts_even or not run.is_dpo else None
    moved = moved_weights(train)
    worse = losses_above(train, 1.05 * start) if start is not None else []
    spike = largest_spike(train)
    # Pretraining and SFT may move the weights far.
    status = level(moved, MOVED_WATCH, MOVED_BAD) if run.is_dpo else "good"
    text = f"The norms of all updates add up to {percent(moved, 1)} of the norm of the weights" + (
        f" (to watch from {percent(MOVED_WATCH)} on)." if run.is_dpo else "."
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
    todo = f"{'raise' if answer == 'Too low' else 'lower'} optim.lr_peak"
    todo = "" if status == "good" else todo
    return Finding("rate", question, status, answer, number, text, "update-ratio", todo)


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


# ---- is it the published run ----


def reached_published(run: Run) -> list[Finding]:
    """How the last evaluation compares with the published run of the config; [] before the end,
    and where the config names none."""
    last = last_of(run, "eval") or {}
    target, difference = last.get("published/eval_loss"), last.get("published/difference")
    if target is None:
        return []
    question, source = "Is it the published loss?", run.config.get("published.source", "")
    within = run.config.get("published.within", "")
    if difference is None:
        text = f"The last held-out loss is not finite; published: {target:.4f} ({source})."
        return [Finding("published", question, "bad", "No", "", text, "loss")]
    reached = bool(last.get("published/reached"))
    answer = "Yes" if reached else "No: higher" if difference > 0 else "No: lower"
    text = (
        f"The last held-out loss is {target + difference:.4f}; published: {target:.4f} ({source}); "
        f"a difference of up to {within} counts as reached. Compare losses, not rewards: cards "
        "from before 2025 show the rewards of one rank's pairs only."
    )
    todo = "compare config, data and number of steps with those of the published run"
    status: Graded = "good" if reached else "watch"
    number, todo = signed(difference, 4), "" if reached else todo
    return [Finding("published", question, status, answer, number, text, "loss", todo)]


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

    Both are the same where every pair starts with the same loss (`Run.starts_even`).
    """
    first = next(iter(records["eval"]), None)
    loss = first.values.get("loss") if first and first.step == 0 else None
    return initial_loss(records) if loss is None else loss


def at_start(run: Run, name: str) -> float | None:
    """A held-out metric before the first update."""
    first = next(iter(run.records["eval"]), None)
    return first.values.get(name) if first and first.step == 0 else None


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
