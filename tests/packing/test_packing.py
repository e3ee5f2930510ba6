"""The plan keeps its promises for any lengths, and packing is exact: properties, not examples."""

import random
from collections import Counter
from itertools import accumulate, chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyr.chat import EncodedPair, EncodedText
from zephyr.packing import best_fit, collate_pairs, collate_texts, plan_epochs, plan_pass
from zephyr.packing.plan import StepExamples, best_change

lengths_lists = st.lists(st.integers(1, 64), min_size=1, max_size=60)


@given(lengths_lists, st.integers(64, 200))
def test_best_fit_puts_every_example_in_one_bin_with_room(lengths: list[int], budget: int) -> None:
    """Fails where an example is lost, doubled, or a bin overflows."""
    bins = best_fit(lengths, budget)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= budget for b in bins)


@given(lengths_lists, st.integers(64, 200))
def test_best_fit_leaves_no_two_bins_that_fit_together(lengths: list[int], budget: int) -> None:
    """First- and best-fit decreasing open a bin only when nothing has room; a broken room index
    would open more."""
    loads = sorted(sum(lengths[i] for i in b) for b in best_fit(lengths, budget))
    assert len(loads) < 2 or loads[0] + loads[1] > budget


def naive_best_fit(lengths: list[int], budget: int) -> list[int]:
    loads: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [b for b, load in enumerate(loads) if load + length <= budget]
        if fitting:
            loads[max(fitting, key=lambda b: loads[b])] += length
        else:
            loads.append(length)
    return sorted(loads)


@given(lengths_lists, st.integers(64, 200))
def test_best_fit_fills_as_the_quadratic_definition_does(lengths: list[int], budget: int) -> None:
    """Fails where the bit set finds another room than the smallest that fits."""
    assert sorted(sum(lengths[i] for i in b) for b in best_fit(lengths, budget)) == naive_best_fit(
        lengths, budget
    )


def test_best_fit_names_the_example_over_the_budget() -> None:
    """Fails where a too long example is cut or silently given a bin of its own."""
    with pytest.raises(ValueError, match="example 1 has 9 tokens"):
        best_fit([3, 9], 8)
    with pytest.raises(ValueError, match="example 0 has 0 tokens"):
        best_fit([0, 3], 8)


def test_200k_lengths_fill_their_windows() -> None:
    """A large set in the sizes of UltraChat: bins 98 % full, and a quadratic packing would not end
    here."""
    rng = random.Random(0)
    lengths = [min(2048, int(rng.lognormvariate(6.8, 0.7)) + 1) for _ in range(200_000)]
    bins = best_fit(lengths, 2048)
    assert sum(lengths) / (len(bins) * 2048) > 0.98


plans = {
    "lengths": lengths_lists,
    "per_step": st.integers(1, 20),
    "epochs": st.integers(1, 3),
    "seed": st.integers(0, 9),
    "shuffle": st.booleans(),
    "window_tokens": st.none() | st.integers(64, 100),
}


@settings(max_examples=60, deadline=None)
@given(**plans)
def test_plan_promises(
    lengths: list[int],
    per_step: int,
    epochs: int,
    seed: int,
    shuffle: bool,
    window_tokens: int | None,
) -> None:
    """Each example once an epoch; no micro-batch over budget; as many micro-batches on every rank;
    the same steps for any number of ranks. Fails where any of these depends on how the lengths
    fall."""
    steps_of = {}
    for ranks in (1, 2, 8, 64):
        plan = plan_epochs(
            lengths,
            per_step=per_step,
            epochs=epochs,
            ranks=ranks,
            budget_tokens=128,
            seed=seed,
            shuffle=shuffle,
            window_tokens=window_tokens,
        )
        for step in plan.steps:
            assert len(step.ranks) == ranks and len({len(rank) for rank in step.ranks}) == 1
            assert all(
                sum(lengths[i] for i in micro) <= 128 for rank in step.ranks for micro in rank
            )
            assert any(micro for rank in step.ranks for micro in rank)
        steps_of[ranks] = [step.examples() for step in plan.steps]
        assert plan.imbalance >= 1 - 1e-9
    assert steps_of[1] == steps_of[2] == steps_of[8] == steps_of[64]
    assert Counter(i for step in steps_of[1] for i in step) == Counter(
        dict.fromkeys(range(len(lengths)), epochs)
    )
    if window_tokens is None:
        assert {len(step) for step in steps_of[1][:-1]} <= {
            per_step,
            len(lengths) % per_step or per_step,
        }
        assert len(steps_of[1]) == epochs * -(-len(lengths) // per_step)


@given(lengths_lists, st.integers(1, 9))
def test_plan_pass_visits_each_once(lengths: list[int], ranks: int) -> None:
    """Fails where evaluation or the reference pass loses an example or visits one twice."""
    (step,) = plan_pass(lengths, ranks=ranks, budget_tokens=64).steps
    assert step.examples() == list(range(len(lengths)))


def test_unshuffled_steps_follow_the_data() -> None:
    """Fails where `shuffle=false` still reorders pairs, or windows are not in the order of their
    first example."""
    plan = plan_epochs([5] * 7, per_step=3, epochs=1, ranks=2, budget_tokens=64, shuffle=False)
    assert [step.examples() for step in plan.steps] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [step.epoch for step in plan.steps] == [0, 3 / 7, 6 / 7]
    windows = plan_epochs(
        [8, 3, 9, 1],
        per_step=1,
        epochs=1,
        ranks=1,
        budget_tokens=64,
        shuffle=False,
        window_tokens=10,
    )
    assert [step.examples() for step in windows.steps] == [[0], [1], [2, 3]]


def test_windows_are_shuffled_and_packed_anew() -> None:
    """Epochs of windows: neither their order, nor which examples share one, is that of the data or
    of the epoch before. Fails where windows come in the order of their first example, or the same
    examples meet again in every epoch."""
    lengths = [5 + i % 4 for i in range(60)]
    steps = plan_epochs(
        lengths, per_step=1, epochs=2, ranks=1, budget_tokens=64, window_tokens=20, seed=3
    ).steps
    epochs = [
        [tuple(s.examples()) for s in steps if int(s.epoch + 1e-9) == epoch] for epoch in (0, 1)
    ]
    assert all(sorted(i for window in epoch for i in window) == list(range(60)) for epoch in epochs)
    assert all(epoch != sorted(epoch) for epoch in epochs)
    assert len(set(epochs[0]) & set(epochs[1])) < len(epochs[0]) / 4


def test_the_epoch_of_a_step_counts_examples() -> None:
    """Windows of one and of three examples. Fails where it counts windows, or only the step
    before."""
    steps = plan_epochs(
        [9, 3, 3, 3, 9],
        per_step=1,
        epochs=2,
        ranks=1,
        budget_tokens=64,
        shuffle=False,
        window_tokens=9,
    ).steps
    assert [step.examples() for step in steps] == [[0], [1, 2, 3], [4]] * 2
    assert [step.epoch for step in steps] == pytest.approx([0, 0.2, 0.8, 1, 1.2, 1.8])


def test_a_plans_totals_by_hand() -> None:
    """Tokens, filling (micro-batches that are empty do not count) and imbalance by the costs given.
    Fails where a figure of the log is of something else."""
    plan = plan_epochs(
        [6, 4, 2], per_step=3, epochs=1, ranks=2, budget_tokens=8, shuffle=False, costs=[1, 1, 4]
    )
    (step,) = plan.steps
    assert sorted(sorted(chain.from_iterable(rank)) for rank in step.ranks) == [[0, 1], [2]]
    assert (
        plan.tokens == 12
        and plan.fill_ratio == pytest.approx(12 / (3 * 8))
        and plan.imbalance == pytest.approx(4 / 3)
    )
    (some,) = plan_pass([6, 4, 2, 5], ranks=1, budget_tokens=8, indices=[3, 1]).steps
    assert some.examples() == [1, 3]


def test_balancing_ends_with_fractional_costs() -> None:
    """Every example once, whatever the last digits of its cost. Fails (never ends) where rounding
    alone makes two exchanges seem better than each other."""
    for seed in range(40):
        rng = random.Random(seed)
        costs = [rng.randint(1, 50) * rng.random() for _ in range(12)]
        (step,) = plan_epochs(
            [1] * 12, per_step=12, epochs=1, ranks=4, budget_tokens=64, seed=seed, costs=costs
        ).steps
        assert step.examples() == list(range(12))


@pytest.mark.parametrize("name", ["per_step", "epochs", "ranks"])
def test_counts_below_one_are_named(name: str) -> None:
    """Fails where a run of no epochs would end as a success."""
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        plan_epochs([3], **{"per_step": 1, "epochs": 1, "ranks": 1, "budget_tokens": 8, name: 0})
    with pytest.raises(ValueError, match="len"):
        plan_epochs([], per_step=1, epochs=1, ranks=1, budget_tokens=8)


def test_epochs_are_shuffled_apart_and_the_seed_decides() -> None:
    """Fails where epochs repeat one order, or the order depends on more than the seed."""

    def orders(seed: int) -> list[list[int]]:
        return [
            s.examples()
            for s in plan_epochs(
                [1] * 50, per_step=5, epochs=2, ranks=1, budget_tokens=8, seed=seed
            ).steps
        ]

    assert orders(1) == orders(1) != orders(2)
    assert orders(1)[:10] != orders(1)[10:]


def test_ranks_are_balanced_as_well_as_pairs_allow() -> None:
    """32 pairs of UltraFeedback-like lengths a step: the dearest of 8 ranks within 2 % of the mean
    (random: 1.39), of 16 ranks within 1 % of what the longest pair leaves possible. Fails for
    dearest-first alone (3 %)."""
    rng = random.Random(0)
    lengths = [min(2000, int(rng.lognormvariate(6.4, 0.6)) + 1) for _ in range(32 * 50)]
    plans = {
        ranks: plan_epochs(lengths, per_step=32, epochs=1, ranks=ranks, budget_tokens=10**6)
        for ranks in (8, 16)
    }
    assert plans[8].imbalance < 1.02
    least = [
        max(max(lengths[i] for i in step.examples()), sum(lengths[i] for i in step.examples()) / 16)
        for step in plans[16].steps
    ]
    assert plans[16].imbalance < 1.01 * sum(least) * 16 / plans[16].tokens


def test_the_same_steps_for_8_to_1024_ranks() -> None:
    """32 pairs a step: from 32 ranks on, each pair has a rank of its own and the longest pair
    decides; the ranks without one share a list. Fails where a step holds other examples, ranks
    leave the lock-step, or a plan of 1,024 ranks holds lists for each of its 992 idle ranks."""
    rng = random.Random(0)
    lengths = [min(2000, int(rng.lognormvariate(6.4, 0.6)) + 1) for _ in range(32 * 4)]
    one, *many = (
        plan_epochs(lengths, per_step=32, epochs=2, ranks=ranks, budget_tokens=4096)
        for ranks in (1, 8, 64, 1024)
    )
    for plan in many:
        assert [s.examples() for s in plan.steps] == [s.examples() for s in one.steps]
        assert all(len({len(rank) for rank in step.ranks}) == 1 for step in plan.steps)
    for step, plain in zip(many[-1].steps, one.steps):
        assert len(step.ranks) == 1024 and len({id(rank) for rank in step.ranks}) == 33
        assert sum(rank == [[]] for rank in step.ranks) == 1024 - 32
        assert sorted(rank[0] for rank in step.ranks[:32]) == [[i] for i in plain.examples()]
    longest = sum(max(lengths[i] for i in step.examples()) for step in one.steps)
    assert many[-1].imbalance == pytest.approx(longest * 1024 / one.tokens)


@given(st.integers(0, 10**6))
def test_the_best_change_is_that_of_all(seed: int) -> None:
    """Against every gift and exchange, tried one by one. Fails where arrays choose another change
    than the smallest of all, and ranks would disagree with an older plan."""
    rng = random.Random(seed)
    ranks = rng.randint(2, 5)
    costs = [rng.choice((1, 2, 3, 5, 8)) for _ in range(rng.randint(ranks, 9))]
    of_rank = [[i for i in range(len(costs)) if i % ranks == rank] for rank in range(ranks)]
    loads = [sum(costs[i] for i in assigned) for assigned in of_rank]
    loaded = loads.index(max(loads))
    changes = []
    for rank in set(range(ranks)) - {loaded}:
        for given_one in of_rank[loaded]:
            for taken in (-1, *of_rank[rank]):
                moved = costs[given_one] - (costs[taken] if taken >= 0 else 0)
                after = max(loads[loaded] - moved, loads[rank] + moved)
                changes.append((after, given_one, taken, rank))
    rank_of = [i % ranks for i in range(len(costs))]
    step = StepExamples(np.arange(len(costs)), np.array(rank_of), np.array(costs, dtype=float))
    assert best_change(step, np.array(loads, dtype=float), loaded) == min(changes)


def pairs(seed: int, count: int = 4) -> list[EncodedPair]:
    rng = random.Random(seed)
    draw = lambda low, high: [rng.randrange(3, 99) for _ in range(rng.randint(low, high))]  # noqa: E731
    return [EncodedPair(str(i), draw(1, 9), draw(1, 6), draw(1, 6)) for i in range(count)]


@pytest.mark.parametrize("prefix_sharing", [True, False])
@given(st.integers(0, 1000))
def test_row_of_pairs_scores_each_response_token_after_its_context(
    prefix_sharing: bool, seed: int
) -> None:
    """Rebuilds each conversation from the layout: what a scored position sees must be prompt and
    response so far, at positions 0, 1, 2...; fails where a prompt token is doubled, a position does
    not restart, or a target is off by one."""
    examples = pairs(seed)
    batch = collate_pairs(examples, [2, 0, 3], prefix_sharing=prefix_sharing)
    layout, tokens = batch.layout, batch.tokens_N.tolist()
    appended = layout.appended_A.tolist() if layout.appended_A is not None else []
    keys = [*range(layout.num_own_keys), *appended]
    seen: dict[int, list[list[int]]] = {}
    query = key = 0
    for queries, width in zip(layout.query_lengths, layout.key_lengths):
        segment = keys[key : key + width]
        for q in range(queries):
            seen.setdefault(query + q, []).append(segment[: width - queries + q + 1])
        query, key = query + queries, key + width
    assert query == len(tokens) and key == len(keys)
    wanted = [e.prompt_ids for e in (examples[i] for i in (2, 0, 3))] * 2
    responses = [examples[i].chosen_ids for i in (2, 0, 3)] + [
        examples[i].rejected_ids for i in (2, 0, 3)
    ]
    scored, targets = batch.scored_T.tolist(), batch.targets_T.tolist()
    assert batch.response_tokens_R.tolist() == [len(r) for r in responses] and targets == [
        t for r in responses for t in r
    ]
    for prompt, response in zip(wanted, responses):
        for j in range(len(response)):
            (context,) = seen[scored.pop(0)]
            assert [tokens[p] for p in context] == prompt + response[:j]
            assert batch.positions_N[context].tolist() == list(range(len(prompt) + j))
    shared = sum(len(e.prompt_ids) for e in (examples[i] for i in (2, 0, 3)))
    unpacked = sum(
        2 * len(examples[i].prompt_ids) + len(examples[i].chosen_ids + examples[i].rejected_ids)
        for i in (2, 0, 3)
    )
    assert len(tokens) == unpacked - (shared if prefix_sharing else 0)
    first, rest = (
        batch.scored_T[: batch.num_unique_scored],
        batch.scored_T[batch.num_unique_scored :],
    )
    assert len(set(first.tolist())) == len(first) and len(set(rest.tolist())) == len(rest)
    assert len(set(appended)) == len(appended)
    assert (
        batch.units == 3
        and batch.indices == (2, 0, 3)
        and batch.num_unique_scored == sum(map(len, responses[:3]))
    )
    assert layout.cu_query.tolist() == [0, *accumulate(layout.query_lengths)]
    assert layout.cu_key.tolist() == [0, *accumulate(layout.key_lengths)]


def test_texts_score_only_their_targets() -> None:
    """Fails where a target is predicted from another text, or counted that is none."""
    texts = [
        EncodedText("a", [1, 5, 6, 2], [False, False, True, True]),
        EncodedText("b", [1, 7, 2], [False, True, True]),
    ]
    batch = collate_texts(texts, [1, 0])
    assert batch.tokens_N.tolist() == [1, 7, 2, 1, 5, 6, 2] and batch.positions_N.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
        3,
    ]
    assert (
        batch.scored_T.tolist() == [0, 1, 4, 5]
        and batch.targets_T.tolist() == [7, 2, 6, 2]
        and batch.units == 4
    )
    assert (
        batch.indices == (1, 0)
        and batch.response_tokens_R.tolist() == [2, 2]
        and batch.num_unique_scored == 4
    )


def test_bad_examples_are_named() -> None:
    """Fails where an empty side would be packed and score nothing."""
    for empty in (
        EncodedPair("x", [1], [], [2]),
        EncodedPair("x", [], [1], [2]),
        EncodedPair("x", [1], [2], []),
    ):
        with pytest.raises(ValueError, match="example 1"):
            collate_pairs([*pairs(0, 1), empty], [0, 1])
    with pytest.raises(ValueError, match="example 0"):
        collate_texts([EncodedText("x", [1, 2], [True, True])], [0])


def test_an_empty_micro_batch_scores_nothing() -> None:
    """A rank with nothing to do still runs a forward and backward; fails where it would count a
    unit or a token."""
    for batch in (collate_pairs([], []), collate_texts([], [])):
        assert (
            batch.units == 0
            and len(batch.targets_T) == 0
            and len(batch.tokens_N) == 1
            and batch.indices == ()
        )


def test_moving_a_batch_keeps_one_tensor_for_equal_offsets() -> None:
    """Kernels take a shortcut where query and key offsets are the same object; fails where a copy
    breaks that."""
    batch = collate_pairs(pairs(1), [0, 1], prefix_sharing=False).to("cpu")
    assert batch.layout.cu_query is batch.layout.cu_key
    layout = collate_pairs(pairs(1), [0]).to("cpu").layout
    assert layout.cu_query.dtype == layout.cu_key.dtype == torch.int32
    assert (layout.max_query, layout.max_key) == (
        max(layout.query_lengths),
        max(layout.key_lengths),
    )
