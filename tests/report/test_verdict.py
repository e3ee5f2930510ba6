"""Each finding of the verdict on runs made by hand: clean, and with one fault planted."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from zephyr.analysis.pairs import PairText
from zephyr.analysis.runs import Record, Run
from zephyr.analysis.visits import LOG_PROBS, Floats, Visits
from zephyr.report.samples import Answers
from zephyr.report.verdict import Finding, alarms, answers_changed, verdict

PAIRS = 400
RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Each test draws the same numbers, whichever ran before it."""
    RNG.bit_generator.state = START


def a_run(
    train: list[Mapping[str, float | None]] | None = None,
    held_out: list[Mapping[str, float | None]] | None = None,
    **config: object,
) -> Run:
    """A run of records by hand; by default one that learned, every tenth step of 40."""
    if train is None:
        losses = (0.6931, 0.68, 0.62, 0.56, 0.52)
        train = [of_train(10 * n, loss) for n, loss in enumerate(losses)]
    if held_out is None:
        held_out = [of_eval(20, 0.61), of_eval(40, 0.55)]
    records = {
        split: [Record(int(values["step"] or 0), values) for values in of_split]
        for split, of_split in (("train", train), ("eval", held_out))
    }
    return Run(Path("run"), "run", {"beta": 0.1, **config}, {}, {}, {}, {}, records)


def of_train(step: int, loss: float | None, **more: float | None) -> dict[str, float | None]:
    return {"step": step, "loss": loss, "grad_norm": 0.5, "update_ratio": 1e-4, **more}


def of_eval(step: int, loss: float, accuracy: float = 0.8, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": loss,
        "pairs": 300,
        "rewards/accuracies": accuracy,
        "rewards/margins": 0.4,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.3,
        "logps/chosen": -50.0,
        **more,
    }


def ledger(margin: Floats, chosen_tokens: Floats | None = None, visits: int = 2) -> Visits:
    """A ledger of pairs with these last margins, half as large at the visit before."""
    pairs = len(margin)
    growth = np.linspace(0.5, 1, visits) if visits > 1 else np.ones(1)
    margin_V = (margin[:, None] * growth).ravel()
    tokens = RNG.integers(5, 50, pairs) if chosen_tokens is None else chosen_tokens
    zero_V = np.zeros_like(margin_V)
    values = dict.fromkeys(("loss", "rewards/rejected", *LOG_PROBS), zero_V)
    return Visits(
        ids=[f"p{n}" for n in range(pairs)],
        pair_V=np.repeat(np.arange(pairs), visits),
        visit_V=np.tile(np.arange(visits), pairs),
        step_V=np.tile(np.arange(visits) * 20, pairs) + np.repeat(np.arange(pairs) % 20, visits),
        epoch_V=np.tile(np.arange(visits, dtype=float), pairs),
        values={**values, "rewards/chosen": margin_V},
        tokens={
            "prompt_tokens": np.full(pairs, 9),
            "chosen_tokens": tokens,
            "rejected_tokens": np.full(pairs, 25),
        },
    )


def margins(right: float = 0.8) -> Floats:
    """Margins of which a share is above 0, as those of pairs that are hard, not flipped."""
    return np.sort(RNG.normal(size=PAIRS)) * 0.2 + np.quantile(RNG.normal(size=9999), right) * 0.2


def found(run: Run, visits: Visits | None = None, texts: object = None) -> dict[str, Finding]:
    visits = ledger(margins()) if visits is None else visits
    return {finding.name: finding for finding in verdict(run, visits, texts or {})}


NO_VISITS = ledger(np.zeros(0))


def test_a_clean_run_has_no_false_alarm() -> None:
    """Every question is answered, nothing asks for a look. Fails for limits that a run which learns
    oversteps."""
    margin = np.abs(RNG.normal(0.5, 0.1, PAIRS))
    margin[:: PAIRS // 20] *= -0.05
    findings = found(
        a_run(held_out=[of_eval(20, 0.6, 0.9), of_eval(40, 0.5, 0.93)]), ledger(margin)
    )
    assert [f.status for f in findings.values()] == ["good"] * 7
    assert all(f.answer and f.text for f in findings.values() if f.name != "alarms")
    learned = findings["learned"]
    assert learned.number == "93.0 %" and "89.5 to 95.4 %" in learned.text
    assert "from 0.693" in learned.text and "+0.400" in learned.text


@pytest.mark.parametrize(
    "loss,accuracy,status,answer",
    [
        (0.6, 0.8, "good", "Yes"),
        (0.6, 0.6, "watch", "A little"),
        (0.6, 0.52, "bad", "Not shown"),
        (0.6, 0.3, "bad", "No: the opposite"),
        (0.9, 0.8, "bad", "No: worse than before"),
    ],
)
def test_did_it_learn(loss: float, accuracy: float, status: str, answer: str) -> None:
    """The interval decides, and a loss above its start overrules it."""
    finding = found(a_run(held_out=[of_eval(40, loss, accuracy)]))["learned"]
    assert (finding.status, finding.answer) == (status, answer)


@pytest.mark.parametrize(
    "low,high,status", [(0.55, 0.75, "good"), (0.45, 0.75, "watch"), (0.2, 0.4, "bad")]
)
def test_answers_are_better(low: float, high: float, status: str) -> None:
    """The last win rate's interval decides; without a judge there is no such finding."""
    rate = {"win_rate": 0.65, "win_rate/low": low, "win_rate/high": high, "win_rate/n": 20}
    first = {**rate, "win_rate/low": 0.6, "win_rate/high": 0.7}
    findings = found(a_run(held_out=[of_eval(20, 0.6, **first), of_eval(40, 0.5, **rate)]))
    assert findings["answers"].status == status and "65.0 % of 20" in findings["answers"].text
    assert "a tie counts half" in findings["answers"].text
    assert "answers" not in found(a_run())


def sample_answers(changed: int, of: int = 20) -> list[Answers]:
    return [
        Answers(f"q{n}", {0: "old", 20: "old", 40: "new" if n < changed else "old"})
        for n in range(of)
    ]


@pytest.mark.parametrize(
    "rate,changed,says",
    [
        (0.65, 6, "prefers the new answer in 6, the old one in none; 14 tie"),
        (0.35, 6, "prefers the old answer in 6, the new one in none; 14 tie"),
        (0.65, 10, "10 of 20 answers are the same, a tie; the 10 others won 8 points of 10"),
    ],
)
def test_a_win_rate_is_told_with_its_ties(rate: float, changed: int, says: str) -> None:
    """65 % of 20 are not 13 wins where 14 answers are the same. Fails where equal answers are taken
    for wins, or the answers of another step are compared."""
    rated = {"win_rate": rate, "win_rate/low": 0.3, "win_rate/high": 0.7, "win_rate/n": 20}
    run = a_run(held_out=[of_eval(40, 0.5, **rated)])
    (finding,) = answers_changed(run, sample_answers(changed))
    assert says in finding.text and finding.number == f"{changed} of 20 changed"
    (other,) = answers_changed(run, sample_answers(changed, of=21))  # one was not judged
    assert "compared 20 answers with those before" in other.text


def test_answers_that_did_not_change_ask_for_a_look() -> None:
    """Also where there is no judge, or its interval is above a half. Fails where a model that
    answers as before is called good."""
    rated = {"win_rate": 0.525, "win_rate/low": 0.51, "win_rate/high": 0.6, "win_rate/n": 20}
    judged = a_run(held_out=[of_eval(40, 0.5, **rated)])
    for run in (a_run(), judged):
        assert answers_changed(run, sample_answers(1))[0].status == "watch"
        assert answers_changed(run, sample_answers(6))[0].status == "good"
    assert answers_changed(judged, sample_answers(6))[0].answer == "Yes, in the 6 that changed"
    assert answers_changed(a_run(), sample_answers(1))[0].todo


def test_what_does_not_carry_over_is_no_yes() -> None:
    """Train accuracy far above the held-out one, whose loss is lowest at the end. Fails where one
    card says that it learned, and another that pairs are learnt by heart and the loss fell on."""
    findings = found(
        a_run(held_out=[of_eval(20, 0.6, 0.7), of_eval(40, 0.5, 0.7)]),
        ledger(np.full(PAIRS, 0.5)),
    )
    assert (findings["learned"].status, findings["learned"].answer) == ("watch", "Partly")
    overfit = findings["overfit"]
    assert (overfit.status, overfit.answer) == ("bad", "A large gap, no decline")
    assert "by heart" not in overfit.text and "lowest at the end" not in overfit.text
    assert "did not rise again" in overfit.text and "compare held-out" in overfit.todo


def test_without_held_out_pairs_the_first_visits_tell() -> None:
    """A pair was not trained on before its first visit. Fails where later visits are counted, and
    where a run without pairs raises."""
    visits = ledger(margins(0.5))
    visits.values["rewards/chosen"][visits.visit_V == 0] = 1.0
    finding = found(a_run(held_out=[]), visits)["learned"]
    assert finding.status == "watch" and finding.number == "100.0 %"
    assert finding.figure == "margin-epoch"
    assert {f.status for f in found(a_run(held_out=[]), NO_VISITS).values()} == {"none", "good"}
    assert [f.status for f in found(a_run(train=[], held_out=[])).values()] == ["none"]


def test_overfitting_is_a_gap_a_rising_loss_or_the_alarm() -> None:
    """Each of the three alone, in both degrees."""
    sure = ledger(np.full(PAIRS, 0.5))

    def status(*held_out: Mapping[str, float | None], visits: Visits = sure) -> str:
        return found(a_run(held_out=list(held_out)), visits)["overfit"].status

    assert status(of_eval(40, 0.5, 0.98)) == "good"
    assert status(of_eval(40, 0.5, 0.9)) == "watch"
    assert status(of_eval(40, 0.5, 0.7)) == "bad"
    rising = [of_eval(20, 0.5, 0.98), of_eval(40, 0.55, 0.98)]
    assert status(*rising) == "watch"
    assert status(rising[0], of_eval(40, 0.65, 0.98)) == "bad"
    assert status(rising[0], of_eval(40, 0.5, 0.98, **{"alarms/overfit": 1})) == "bad"
    words = found(a_run(held_out=rising), sure)["overfit"].text
    assert "lowest at step 20 (0.500) and is 0.550 now" in words
    assert found(a_run(held_out=[]), sure)["overfit"].status == "none"


@pytest.mark.parametrize(
    "reward,status,says",
    [
        (0.5, "good", "rose by 5.00 nats, from −55.00 to −50.00"),
        (-0.1, "good", "fell by 1.00 nats"),
        (-0.5, "watch", "fell by 5.00 nats, from −45.00 to −50.00"),
        (-2.0, "bad", "fell by 20.00 nats, from −30.00 to −50.00"),
    ],
)
def test_the_chosen_response_falls(reward: float, status: str, says: str) -> None:
    """Nats are reward / beta, the start is the log-prob without them. Fails where beta is
    forgotten, or the share is one of today's log-prob."""
    finding = found(a_run(held_out=[of_eval(40, 0.5, **{"rewards/chosen": reward})]))["chosen"]
    assert finding.status == status and says in finding.text
    assert "rejected ones fell by 3.00" in finding.text
    assert finding.number == ("+5.00 nats" if reward == 0.5 else finding.number)
    assert {-0.5: "−11 %", -2.0: "−67 %"}.get(reward, finding.number) == finding.number
    of_run = a_run([of_train(0, 0.69, **{"rewards/chosen": reward, "logps/chosen": -50.0})], [])
    assert found(of_run)["chosen"].status == "none"  # without rejected rewards


def test_a_loss_without_a_reference_is_told_by_its_own_start() -> None:
    """SimPO, whose rewards are beta times mean log-probs: the chosen response has risen, whatever
    its reward; margins and losses start where the held-out pairs were before the first update.
    Fails where a reward is taken for a change, ln 2 or 0 for the start, or the first
    step's loss for that of all pairs."""
    start = of_eval(0, 0.9, 0.4, **{"rewards/margins": -0.25, "logps/rejected": -70.0})
    last = of_eval(40, 0.6, **{"logps/chosen": -45.0, "logps/rejected": -75.0})
    train = [of_train(10 * n, loss) for n, loss in enumerate((0.6, 0.9, 0.8, 0.7, 0.7))]
    config = {"beta": 2.0, "loss.name": "simpo", "loss.gamma": 0.5}
    run = a_run(train, [start, last], **config)
    assert run.loss == "simpo" and not run.has_reference and not run.starts_even
    by_name = found(run)
    assert "Mean margin +0.400, from -0.25" in by_name["learned"].text
    assert "Loss 0.600, from 0.900" in by_name["learned"].text
    assert (
        by_name["chosen"].status == "good" and "rose by 5.00 nats, from" in by_name["chosen"].text
    )
    assert "rejected ones fell by 5.00" in by_name["chosen"].text
    assert "above its start" not in by_name["rate"].text
    without_start = found(a_run(train, [last], **config))
    assert without_start["chosen"].answer == "Can't be told"
    plain = a_run(train, [start, last])
    assert plain.loss == "sigmoid" and plain.has_reference and plain.starts_even
    assert "above its start" in found(plain)["rate"].text
    for more in ({"sft_weight": 0.5}, {"weighting": "wpo"}, {"reference.model": "other"}):
        weighted = a_run(train, [start, last], **more)
        assert weighted.has_reference and not weighted.starts_even, more
        assert weighted.starts_at_reference == ("reference.model" not in more)


def test_length_that_explains_the_margins() -> None:
    """A correlation, labels that length alone predicts, and an accuracy that falls where length
    and label disagree. Fails where one of them is not looked at."""
    tokens = RNG.integers(5, 46, PAIRS)
    difference = tokens - 25.0
    right = np.full(PAIRS, 0.5) + RNG.normal(0, 0.01, PAIRS)

    def length(margin: Floats, chosen_tokens: Floats = tokens) -> Finding:
        return found(a_run(), ledger(margin, chosen_tokens))["length"]

    assert length(right).status == "good"
    correlated = right + difference * 0.012 + RNG.normal(0, 0.2, PAIRS)
    assert length(correlated).status == "watch"
    assert length(right + difference * 0.01).status == "bad"
    assert length(right, np.abs(difference).astype(int) + 26).status == "bad"
    shortcut = np.where(difference > 0, 0.5, -0.1)
    finding = length(shortcut + RNG.normal(0, 0.9, PAIRS) * (difference > 0))
    assert finding.status == "bad" and "balance the lengths" in finding.todo
    assert finding.answer == "Little, but it wins against labels"
    by_labels = length(right, np.abs(difference).astype(int) + 26)
    assert by_labels.answer == "Little, but the labels prefer the longer one"
    assert "|r| from 0.5, 80 % of the labels" in by_labels.text
    assert found(a_run(), NO_VISITS)["length"].status == "none"
    assert length(np.full(PAIRS, 0.5)).status == "good"  # no correlation of what doesn't vary


def test_flipped_labels() -> None:
    """Margins of all sizes, of which a tenth has the other sign, most of one source; and
    held-out pairs that are ranked better than the trained ones. Fails where clean margins are
    suspected."""
    margin = np.exp(RNG.normal(0, 0.8, PAIRS))
    texts = {
        f"p{n}": PairText("q", "a", "b", "clean" if n < 300 else "noisy") for n in range(PAIRS)
    }
    clean = found(a_run(held_out=[of_eval(40, 0.5, 0.99)]), ledger(margin), texts)["flips"]
    assert clean.status == "good" and clean.figure == ""
    margin[360:] *= -1
    finding = found(a_run(held_out=[of_eval(40, 0.5, 0.99)]), ledger(margin), texts)["flips"]
    assert finding.status == "bad" and finding.number == "10.0 %" and finding.figure == "pairs"
    assert "40 pairs of 400" in finding.text and "noisier" in finding.text
    assert "in noisy: 40.0 % of its pairs" in finding.text
    margin[372:] *= -1
    assert found(a_run(), ledger(margin))["flips"].status == "watch"
    assert found(a_run(), NO_VISITS)["flips"].status == "none"


def test_a_wrong_learning_rate() -> None:
    """Weights that move too far, each record standing for ten steps, a loss above its start, a
    gradient that jumps, weights that stay. SFT may move its weights far. Fails for the large
    gradients that every run starts with."""

    def rate(*changes: Mapping[str, float], **config: object) -> Finding:
        records = [of_train(10 * n, 0.69 if n else 0.6931) for n in range(10)]
        for record, change in zip(records[-len(changes) :], changes):
            record.update(change)
        return found(a_run(records, **config))["rate"]

    assert rate({}).status == "good"
    assert rate({"update_ratio": 0.015}).status == "watch"
    assert rate({"update_ratio": 0.03}).answer == "Too high"
    assert rate({"loss": 0.9}).status == "watch"
    assert rate({"loss": 0.9}, {"loss": 0.8}).status == "bad"
    assert rate({"grad_norm": 9.0}).status == "watch"
    assert rate({"grad_norm": 0.1}, *[{"grad_norm": 9.0}] * 9).status == "good"  # one step's norm
    assert rate({"alarms/frozen_weights": 1}).answer == "Too low"
    falling = [of_train(n, 1.0, grad_norm=20 / (n + 1), update_ratio=0.2) for n in range(30)]
    sft = a_run(falling, [])
    sft = sft._replace(config={})
    assert [f.status for f in verdict(sft, NO_VISITS, {}) if f.name == "rate"] == ["good"]


def test_sft_runs_are_told_by_their_loss() -> None:
    """Perplexity from its start, and a held-out loss that rises again."""

    def sft(train: list[float], held_out: list[float]) -> dict[str, Finding]:
        run = a_run(
            [of_train(10 * n, loss) for n, loss in enumerate(train)],
            [{"step": 20 * n, "loss": loss} for n, loss in enumerate(held_out, 1)],
        )
        return found(run._replace(config={}), NO_VISITS)

    good = sft([2.0, 1.0, 0.9], [1.1, 1.0])
    assert [f.status for f in good.values()] == ["good"] * 4
    assert "perplexity 2.718, from 7.389" in good["learned"].text
    assert sft([2.0, 1.0, 0.5], [1.0, 1.2])["overfit"].status == "watch"
    assert sft([2.0, 1.0, 0.5], [1.0, 1.6])["overfit"].status == "bad"
    assert sft([2.0, 2.0], [2.1])["learned"].status == "bad"
    assert sft([2.0, 1.0], [])["learned"].status == "watch"
    assert sft([2.0, 1.0], [])["overfit"].status == "none"


def test_alarms_are_explained_and_placed() -> None:
    """Stretches of records of each split. Fails where an alarm that stopped goes on."""
    raised = {"alarms/chosen_falls": 1.0}
    train = [of_train(n, 0.5, **(raised if n in (1, 2, 4) else {})) for n in range(6)]
    train[5]["alarms/new_one"] = 1.0
    run = a_run(train, [of_eval(6, 0.5, **{"alarms/overfit": 1.0})])
    assert alarms(run.records) == {
        "chosen_falls": ["train 1 to 2", "train 4"],
        "new_one": ["train 5"],
        "overfit": ["eval 6"],
    }
    finding = found(run)["alarms"]
    assert finding.status == "bad" and finding.figure == "displacement"
    for words in ("chosen_falls (train 1 to 2, train 4)", "raise beta", "new_one", "by heart"):
        assert words in finding.text


def test_the_evaluation_before_the_first_update_is_no_result() -> None:
    """It has accuracy 0, because every margin is 0. Fails where a run that has just started is told
    to have learned the opposite, or to overfit; and where a held-out loss is compared with the
    first train batch though it has a start of its own."""
    start = of_eval(0, 0.6931, 0.0) | {"rewards/margins": 0.0, "rewards/chosen": 0.0}
    findings = found(a_run(train=[of_train(0, 0.6931)], held_out=[start]), NO_VISITS)
    assert {findings[name].status for name in ("learned", "overfit")} == {"none"}
    assert "since the first update" in findings["overfit"].text
    findings = found(a_run(held_out=[start, of_eval(40, 0.55)]))
    assert "one evaluation after the start" in findings["overfit"].text
    text = [{"step": step, "loss": loss} for step, loss in ((0, 3.0), (40, 2.8))]
    run = a_run(train=[of_train(0, 2.7), of_train(40, 2.1)], held_out=text)
    del run.config["beta"]
    assert "2.800 nats a token, from 3.000" in found(run)["learned"].text
    assert found(run)["learned"].status == "good"
    run.records["eval"][:] = [Record(0, {"epoch": 0.0}), Record(40, {"epoch": 1.0})]  # samples only
    assert "Train loss 2.100 nats a token, from 2.700" in found(run)["learned"].text
