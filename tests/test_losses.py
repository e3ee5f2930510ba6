"""The preference losses against the closed forms of their papers, which are written apart from the
code in `closed_forms.py`, and against properties that every loss must have.

Tests over `LOSSES` hold for every loss, also one that was just added. Those that need a closed form
take it from `closed_forms.closed_form`, which skips a loss without one and says what to declare.
"""

import math
import random
import re
from collections.abc import Mapping

import pytest
import torch
from closed_forms import CLOSED_FORMS, FAR, FAR_TOKENS, NEAR, SMOOTHING, closed_form
from torch import Tensor

from zephyr import losses
from zephyr.losses import LOSSES, DPOTerms, Loss, dpo

PAIRS, BETA = 6, 0.3
SMOOTHED = [name for name, entry in LOSSES.items() if entry.smoothing != "refused"]
WITHOUT_REFERENCE = [name for name, entry in LOSSES.items() if entry.reference_free]


def smoothing_for(name: str) -> float:
    return SMOOTHING if name in SMOOTHED else 0.0


def with_settings(name: str) -> dict[str, object]:
    """The loss with the settings of its closed form, none of which is a default."""
    form = CLOSED_FORMS.get(name)
    return {"name": name, **(form.settings if form else {})}


def vectors(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Chosen, rejected and the two references: sums as responses of tens of tokens have, margins of
    both signs."""
    generator = torch.Generator().manual_seed(seed)
    ref_2P = -60 + 20 * torch.rand(2, PAIRS, generator=generator, dtype=torch.float64)
    policy_2P = ref_2P + 4 * torch.randn(2, PAIRS, generator=generator, dtype=torch.float64)
    return [vector_P.to(dtype) for vector_P in (*policy_2P, *ref_2P)]


def token_counts() -> tuple[Tensor, Tensor]:
    """Of the chosen and of the rejected responses; the first two pairs have `FAR_TOKENS`."""
    first = torch.tensor(FAR_TOKENS)
    rest = torch.tensor([(12, 40), (1, 3), (20, 2), (9, 16)])
    chosen_tokens_P, rejected_tokens_P = torch.cat([first, rest]).unbind(-1)
    return chosen_tokens_P, rejected_tokens_P


def run(
    name: str,
    tensors: list[Tensor],
    *,
    beta: float = BETA,
    label_smoothing: float | None = None,
    loss: Mapping[str, object] | None = None,
    sft_weight: float | None = None,
) -> DPOTerms:
    chosen_tokens_P, rejected_tokens_P = token_counts()
    return dpo(
        *tensors,
        beta=beta,
        loss=with_settings(name) if loss is None else loss,
        label_smoothing=smoothing_for(name) if label_smoothing is None else label_smoothing,
        sft_weight=sft_weight,
        chosen_tokens_P=chosen_tokens_P[: len(tensors[0])],
        rejected_tokens_P=rejected_tokens_P[: len(tensors[0])],
    )


def ratios(name: str, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the loss takes of every pair, in float64: log-ratios, or log-probs where it has no
    reference, averaged over tokens where `name` averages."""
    chosen_P, rejected_P, ref_chosen_P, ref_rejected_P = (t.detach().double() for t in tensors)
    chosen_tokens_P, rejected_tokens_P = token_counts()
    if LOSSES[name].reference_free:
        ref_chosen_P, ref_rejected_P = torch.zeros(2, len(chosen_P), dtype=torch.float64)
    if not LOSSES[name].length_averaged:
        return chosen_P - ref_chosen_P, rejected_P - ref_rejected_P
    return (
        (chosen_P - ref_chosen_P) / chosen_tokens_P,
        (rejected_P - ref_rejected_P) / rejected_tokens_P,
    )


def test_every_closed_form_is_of_a_loss() -> None:
    """Fails where a loss leaves the table, which then no test would miss, or where the tests'
    declarations are gone, so that every comparison below is skipped."""
    assert len(CLOSED_FORMS) >= 10 and set(CLOSED_FORMS) <= set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_says_what_the_closed_form_says(name: str) -> None:
    """Fails where a loss takes label smoothing, or averages over tokens, and its paper does not, or
    the other way round."""
    expected, entry = closed_form(name), LOSSES[name]
    assert entry.smoothing == expected.smoothing
    assert entry.length_averaged == expected.length_averaged
    assert entry.reference_free == expected.reference_free
    assert entry.sft_weight == expected.sft_weight
    assert set(entry.settings) == set(expected.settings)
    for key, setting in entry.settings.items():
        assert setting.default != expected.settings[key], "a default could be used in its place"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_values_are_those_of_the_closed_form(name: str, dtype: torch.dtype) -> None:
    """A sign, a factor, beta or the token counts in the wrong place moves every value by far more
    than rounding."""
    expected = closed_form(name)
    tensors = vectors(dtype)
    terms = run(name, tensors)
    loss_P = expected.loss(*ratios(name, tensors), BETA, smoothing_for(name), **expected.settings)
    loss_P -= expected.sft_weight * tensors[0].double() / token_counts()[0]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(terms.loss_P, loss_P.to(dtype), rtol=tolerance, atol=tolerance)
    assert terms.loss_P.std() > 0.01  # the pairs differ, so a constant could not pass


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "robust"])
def test_without_smoothing_it_is_the_plain_loss(name: str) -> None:
    """Conservative and robust DPO are -log sigmoid(margin) at smoothing 0. Fails where smoothing
    stays on."""
    tensors = vectors()
    chosen_P, rejected_P = ratios(name, tensors)
    expected_P = (1 + (-BETA * (chosen_P - rejected_P)).exp()).log()
    terms = run(name, tensors, label_smoothing=0.0)
    torch.testing.assert_close(terms.loss_P, expected_P)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_closed_form(name: str) -> None:
    """Autograd through the code equals the closed form on both sides. Fails where a term is
    detached."""
    expected = closed_form(name)
    tensors = vectors()
    leaves = [tensors[0].requires_grad_(), tensors[1].requires_grad_()]
    grads_P = torch.autograd.grad(run(name, tensors).loss_P.sum(), leaves)
    given = (*ratios(name, tensors), BETA, smoothing_for(name))
    expected_P = expected.gradient(*given, **expected.settings)
    for side, tokens_P in enumerate(token_counts()):
        divisor_P = tokens_P if expected.length_averaged else torch.ones(PAIRS)
        wanted_P = expected_P[side] / divisor_P
        if side == 0:
            wanted_P = wanted_P - expected.sft_weight / tokens_P.double()
        torch.testing.assert_close(grads_P[side], wanted_P, rtol=1e-10, atol=1e-12)
        assert grads_P[side].abs().max() > 1e-3


def test_dpo_gradient_is_the_papers_weighting() -> None:
    """Rafailov et al., Section 4: the weight of a pair is beta * sigmoid(reward_rejected -
    reward_chosen). Fails where the returned rewards and the loss use different betas."""
    tensors = vectors()
    terms = run("sigmoid", [tensors[0].requires_grad_(), *tensors[1:]], label_smoothing=0.0)
    (grad_P,) = torch.autograd.grad(terms.loss_P.sum(), tensors[0])
    torch.testing.assert_close(
        grad_P, -BETA * torch.sigmoid(terms.reward_rejected_P - terms.reward_chosen_P)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    """Autograd equals numeric differentiation in float64, for the policy and the reference. Fails
    where a term of the loss is detached."""
    tensors = [tensor_P.requires_grad_() for tensor_P in vectors(seed=3)]
    assert torch.autograd.gradcheck(lambda *inputs: run(name, list(inputs)).loss_P, tensors)


def far_off(name: str, dtype: torch.dtype) -> tuple[DPOTerms, list[Tensor]]:
    """Terms and gradients of pairs with log-ratios of +-FAR on one side or both, at beta 1; for a
    loss without a reference, with log-probs of -FAR, -NEAR and exactly 0."""
    far_P = torch.tensor([FAR, -FAR, FAR, -FAR, 0.0, 0.0], dtype=dtype)
    other_P = torch.tensor([-FAR, FAR, 0.0, 0.0, FAR, -FAR], dtype=dtype)
    if LOSSES[name].reference_free:
        far_P = torch.tensor([-NEAR, -FAR, 0.0, -FAR, 0.0, -FAR], dtype=dtype)
        other_P = torch.tensor([-FAR, -NEAR, -FAR, 0.0, 0.0, -FAR], dtype=dtype)
    reference = [torch.zeros(PAIRS, dtype=dtype), torch.zeros(PAIRS, dtype=dtype)]
    tensors = [far_P.requires_grad_(), other_P.requires_grad_(), *reference]
    terms = run(name, tensors, beta=1.0)
    return terms, list(torch.autograd.grad(terms.loss_P.sum(), tensors[:2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_margins_stay_finite(name: str, dtype: torch.dtype) -> None:
    """Fails where a pair that is far off overflows: one NaN stops or spoils a run."""
    terms, grads_P = far_off(name, dtype)
    for tensor_P in (*terms, *grads_P):
        assert torch.isfinite(tensor_P).all(), tensor_P


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_margins_keep_their_value(name: str, dtype: torch.dtype) -> None:
    """Fails where an overflow is hidden by a clamp, so that far pairs have no gradient."""
    expected_P = torch.tensor(closed_form(name).far_off, dtype=dtype)
    terms, _ = far_off(name, dtype)
    torch.testing.assert_close(terms.loss_P[:2], expected_P, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WITHOUT_REFERENCE])
def test_the_first_step(name: str) -> None:
    """Policy and reference are equal, as in the first record of a run: rewards are exactly 0, and
    the loss is a constant that is known before the run."""
    at_reference = closed_form(name).at_reference
    assert at_reference is not None
    expected = at_reference(BETA, smoothing_for(name))
    policy_P = vectors(torch.float32)[:2]
    terms = run(name, [*policy_P, *policy_P])
    torch.testing.assert_close(terms.loss_P, torch.full((PAIRS,), expected), rtol=1e-6, atol=0)
    assert terms.reward_chosen_P.tolist() == terms.reward_rejected_P.tolist() == [0.0] * PAIRS


@pytest.mark.parametrize("name", LOSSES)
def test_rewards(name: str) -> None:
    """Rewards are beta times the summed log-ratio for every loss with a reference, detached. Fails
    where they are averaged over tokens, so that losses could not be compared. Without a reference
    they are beta times what the loss takes: SimPO's Eq. 4 averages over tokens."""
    tensors = vectors()
    terms = run(name, [tensors[0].requires_grad_(), tensors[1].requires_grad_(), *tensors[2:]])
    wanted = (tensors[0] - tensors[2], tensors[1] - tensors[3])
    if name in WITHOUT_REFERENCE:
        wanted = ratios(name, tensors)
    for reward_P, wanted_P in zip(terms[1:], wanted):
        torch.testing.assert_close(reward_P, BETA * wanted_P.detach())
        assert not reward_P.requires_grad
    assert terms.loss_P.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_do_not_touch_each_other(name: str) -> None:
    """Fails where the loss of a pair depends on the micro-batch around it: by itself, it must be
    the same to the bit."""
    tensors = vectors(torch.float32)
    together_P = run(name, tensors).loss_P
    counts_P = token_counts()
    for i in range(PAIRS):
        alone = dpo(
            *(tensor_P[i : i + 1] for tensor_P in tensors),
            beta=BETA,
            loss=with_settings(name),
            label_smoothing=smoothing_for(name),
            chosen_tokens_P=counts_P[0][i : i + 1],
            rejected_tokens_P=counts_P[1][i : i + 1],
        )
        assert alone.loss_P.tolist() == together_P[i : i + 1].tolist()


@pytest.mark.parametrize("name", LOSSES)
def test_no_pairs(name: str) -> None:
    """A rank without pairs in a micro-batch runs backward with the others. Fails where a loss does
    not take empty vectors."""
    tensors = [torch.empty(0, requires_grad=True) for _ in range(4)]
    terms = run(name, tensors)
    terms.loss_P.sum().backward()
    assert terms.loss_P.shape == terms.reward_chosen_P.shape == (0,)
    assert tensors[0].grad is not None and tensors[0].grad.shape == (0,)


def test_unbiased_under_flips() -> None:
    """The claim of robust DPO: its mean over labels flipped with probability e is the DPO loss of
    the true label. Fails where robust and conservative DPO are exchanged."""
    chosen_P, rejected_P, ref_chosen_P, ref_rejected_P = vectors()
    clean_P = run(
        "sigmoid", [chosen_P, rejected_P, ref_chosen_P, ref_rejected_P], label_smoothing=0.0
    ).loss_P
    kept_P = run("robust", [chosen_P, rejected_P, ref_chosen_P, ref_rejected_P]).loss_P
    flipped_P = run("robust", [rejected_P, chosen_P, ref_rejected_P, ref_chosen_P]).loss_P
    torch.testing.assert_close((1 - SMOOTHING) * kept_P + SMOOTHING * flipped_P, clean_P)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.01}, "label_smoothing"),
        ({"label_smoothing": math.nan}, "label_smoothing"),
        ({"loss": "dpo"}, "sigmoid, robust, ipo"),
        ({"loss": "exo_pair"}, "label_smoothing.*exo_pair.*> 0"),
        ({"loss": "ipo"}, "ipo.*chosen_tokens_P"),
        (
            {"loss": "sigmoid_norm", "chosen_tokens_P": torch.ones(PAIRS)},
            "sigmoid_norm.*rejected_tokens_P",
        ),
        (
            {"loss": "ipo", "chosen_tokens_P": torch.ones(1), "rejected_tokens_P": torch.ones(6)},
            "^chosen_tokens_P",
        ),
        (
            {"loss": "ipo", "chosen_tokens_P": torch.ones(6), "rejected_tokens_P": torch.ones(1)},
            "^rejected_tokens_P",
        ),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(change: dict[str, float | str | Tensor], message: str) -> None:
    """Fails where a wrong setting is not refused by name: the run would train something else."""
    settings: dict[str, float | str | Tensor] = {"beta": BETA, **change}
    with pytest.raises(ValueError, match=message):
        dpo(*vectors(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in SMOOTHED])
def test_label_smoothing_is_never_silently_dropped(name: str) -> None:
    """Fails where a loss without smoothing ignores it, or does not say which losses take it."""
    with pytest.raises(
        ValueError, match=rf"label_smoothing.*{name}.*sigmoid, robust, sigmoid_norm, exo_pair"
    ):
        run(name, vectors(), label_smoothing=0.1)


@pytest.mark.parametrize("position", range(4))
def test_vectors_that_do_not_fit(position: int) -> None:
    """Fails where half precision, which loses the margin, or mixed dtypes and shapes, which
    broadcast silently, are accepted."""
    names = ["chosen_P", "rejected_P", "ref_chosen_P", "ref_rejected_P"]
    fits_P = vectors()[0]
    for wrong_P in (fits_P.bfloat16(), fits_P.float(), fits_P[:1], fits_P[:, None]):
        tensors = vectors()
        tensors[position] = wrong_P
        with pytest.raises(ValueError, match=names[position]):
            run("sigmoid", tensors)


def test_all_half_precision() -> None:
    """Fails where vectors of one dtype are accepted though it is bfloat16 or an integer."""
    for dtype in (torch.bfloat16, torch.float16, torch.int64):
        with pytest.raises(ValueError, match="float32 or float64"):
            run("sigmoid", vectors(dtype))
    with pytest.raises(ValueError, match=r"vector \[P\]"):
        run("sigmoid", [torch.zeros(2, 2)] * 4)


def test_token_counts_are_accepted_where_unused() -> None:
    """The training script passes token counts to every loss. Fails where a loss that does not
    average refuses them or uses them."""
    tensors = vectors()
    assert (
        run("hinge", tensors).loss_P.tolist()
        == dpo(*tensors, beta=BETA, loss="hinge").loss_P.tolist()
    )


def test_a_loss_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of the table adds a loss. Fails where checks, averaging or rewards do not come with
    it."""

    def square(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
        return (beta * (chosen_P - rejected_P) - 1).square()

    monkeypatch.setitem(losses.LOSSES, "square", Loss(square, length_averaged=True))
    tensors, counts_P = vectors(), token_counts()
    margin_P = (tensors[0] - tensors[2]) / counts_P[0] - (tensors[1] - tensors[3]) / counts_P[1]
    terms = dpo(
        *tensors,
        beta=BETA,
        loss="square",
        chosen_tokens_P=counts_P[0],
        rejected_tokens_P=counts_P[1],
    )
    torch.testing.assert_close(terms.loss_P, (BETA * margin_P - 1) ** 2)


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_no_reference_is_read(name: str) -> None:
    """Fails where a loss without a reference reads one: no reference pass is made for it."""
    tensors = vectors()
    without = run(name, tensors[:2])
    assert all(a.tolist() == b.tolist() for a, b in zip(without, run(name, tensors)))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WITHOUT_REFERENCE])
def test_a_reference_that_is_missing(name: str) -> None:
    """Fails where a loss with a reference takes log-probs for log-ratios."""
    for tensors in (vectors()[:2], vectors()[:3]):
        with pytest.raises(ValueError, match=f"{name}.*ref_chosen_P and ref_rejected_P"):
            run(name, tensors)


def own_settings(name: str) -> dict[str, tuple[float, float]]:
    """Two accepted values of each of a loss's own settings."""
    return {key: (of.default, 1.5 * of.default + 0.1) for key, of in LOSSES[name].settings.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_every_accepted_setting_changes_the_loss(name: str) -> None:
    """Over random settings, a change of each one that the loss accepts changes the loss. Fails
    where a setting is accepted and not used."""
    rng = random.Random(name)
    for seed in range(20):
        tensors = vectors(seed=seed)
        tensors[0][0] = tensors[2][0] - 1  # one chosen response has become less likely, at least
        own = own_settings(name)
        before: dict[str, object] = {
            "beta": rng.uniform(0.02, 0.5),
            "loss": {"name": name, **{key: rng.choice(values) for key, values in own.items()}},
            "label_smoothing": rng.uniform(0.01, 0.2) if name in SMOOTHED else 0.0,
            "sft_weight": rng.choice([0.0, 0.3]),
        }
        changes: list[dict[str, object]] = [
            {"beta": before["beta"] * 1.7},
            {"sft_weight": before["sft_weight"] + 0.5},
        ]
        if name in SMOOTHED:
            changes.append({"label_smoothing": before["label_smoothing"] + 0.1})
        for key, values in own.items():
            other = values[0] if before["loss"][key] == values[1] else values[1]
            changes.append({"loss": {**before["loss"], key: other}})
        loss_P = run(name, tensors, **before).loss_P
        for change in changes:
            changed_P = run(name, tensors, **{**before, **change}).loss_P
            assert (changed_P - loss_P).abs().max() > 1e-6, change


@pytest.mark.parametrize("name", LOSSES)
def test_every_setting_of_another_loss_is_refused(name: str) -> None:
    """Fails where a setting that the loss does not read is dropped without a word."""
    others = {key for entry in LOSSES.values() for key in entry.settings} | {"alpha", "beta"}
    for key in sorted(others - set(LOSSES[name].settings)):
        with pytest.raises(ValueError, match=rf"^loss\.{key}: loss '{name}' has no such setting"):
            run(name, vectors(), loss={"name": name, key: 1.0})


def test_a_setting_not_given_has_its_default() -> None:
    """Fails where the default of a setting is another than the entry says."""
    tensors = vectors()
    default = LOSSES["simpo"].settings["gamma"].default
    plain, named = run("simpo", tensors, loss={"name": "simpo"}), {"name": "simpo"}
    given = run("simpo", tensors, loss={**named, "gamma": default})
    assert plain.loss_P.tolist() == given.loss_P.tolist()
    assert (
        run("simpo", tensors, loss={**named, "gamma": 9}).loss_P.tolist() != plain.loss_P.tolist()
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"gamma": 1.0}, r"loss\.name: missing; expected one of sigmoid"),
        ({"name": "simpoo"}, "loss must be one of sigmoid.*'simpoo'"),
        ({"name": 1.0}, "loss must be one of sigmoid"),
        ({"name": "simpo", "gama": 1.0}, r"loss\.gama: .*'simpo'.*its settings are gamma"),
        ({"name": "sigmoid", "gamma": 1.0}, r"loss\.gamma: .*'sigmoid'.*it has no settings"),
        ({"name": "simpo", "gamma": "1"}, r"loss\.gamma: expected a number, got '1'"),
        ({"name": "simpo", "gamma": True}, r"loss\.gamma: expected a number, got True"),
        ({"name": "simpo", "gamma": None}, r"loss\.gamma: expected a number, got None"),
        ({"name": "simpo", "gamma": math.nan}, r"loss\.gamma: expected a finite number >= 0.*nan"),
        ({"name": "simpo", "gamma": math.inf}, r"loss\.gamma: expected a finite number >= 0.*inf"),
        ({"name": "simpo", "gamma": -0.1}, r"loss\.gamma: expected a finite number >= 0.*-0\.1"),
        ({"name": "dpop", "penalty": -1}, r"loss\.penalty: expected a finite number >= 0, got -1"),
    ],
    ids=str,
)
def test_own_settings_that_make_no_sense(loss: dict[str, object], message: str) -> None:
    """Fails where a wrong value trains something, or the message does not name it."""
    with pytest.raises(ValueError, match=message):
        run("simpo", vectors(), loss=loss)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_sft_weights_that_make_no_sense(weight: float) -> None:
    """Fails where such a weight is taken: a negative one would make chosen responses less
    likely."""
    with pytest.raises(ValueError, match="sft_weight must be >= 0 and finite, or null"):
        run("sigmoid", vectors(), sft_weight=weight)


@pytest.mark.parametrize("name", LOSSES)
def test_the_sft_term(name: str) -> None:
    """It is Pang et al.'s (Eq. 1): weight * -log pi(y_w|x) / |y_w|, beside every loss, with a
    gradient of -weight / |y_w| on the chosen response alone. Fails where it takes sums over tokens,
    the rejected response, or log-ratios."""
    tensors, tokens_P = vectors(), token_counts()[0]
    leaves = [tensors[0].requires_grad_(), tensors[1].requires_grad_()]
    with_P = run(name, tensors, sft_weight=0.7).loss_P
    term_P = with_P - run(name, tensors, sft_weight=0.0).loss_P
    torch.testing.assert_close(term_P.detach(), -0.7 * tensors[0].detach() / tokens_P)
    chosen_P, rejected_P = torch.autograd.grad(term_P.sum(), leaves)
    torch.testing.assert_close(chosen_P, -0.7 / tokens_P.double())
    assert rejected_P.abs().max() < 1e-12
    own = run(name, tensors, sft_weight=LOSSES[name].sft_weight)
    assert run(name, tensors).loss_P.tolist() == own.loss_P.tolist()


def test_the_sft_term_needs_token_counts() -> None:
    """Fails where the term is left out because the counts are."""
    with pytest.raises(ValueError, match="sft_weight averages over tokens and needs chosen_tokens"):
        dpo(*vectors(), beta=BETA, sft_weight=1.0)
    with pytest.raises(ValueError, match="sft_weight averages over tokens and needs chosen_tokens"):
        dpo(*vectors()[:2], beta=BETA, loss="cpo")


# Loss, beta and settings of published runs: papers, their code, and model cards.
PUBLISHED: list[tuple[str | dict[str, object], float]] = [
    ("sigmoid", 0.1),  # Rafailov et al.; Zephyr
    ("sigmoid", 0.01),  # the alignment handbook's later Zephyr
    ("sigmoid", 0.5),  # Rafailov et al., summarization
    ("robust", 0.1),
    ("ipo", 0.1),
    ("ipo", 0.01),
    ("ipo", 0.5),
    ("sigmoid_norm", 5.0),  # Tulu 3, OLMo 3
    ("hinge", 0.1),
    ("hinge", 1.0),
    ("exo_pair", 0.1),
    ("nca_pair", 0.01),
    ("sppo_hard", 0.001),
    ("apo_zero", 0.1),
    ("apo_down", 0.1),
    ({"name": "dpop", "penalty": 50}, 0.3),  # Smaug
    ({"name": "dpop", "penalty": 5}, 0.1),
    ({"name": "simpo", "gamma": 1.6}, 2.0),  # SimPO's paper and repository
    ({"name": "simpo", "gamma": 0.3}, 2.5),
    ({"name": "simpo", "gamma": 1.4}, 2.5),
    ({"name": "simpo", "gamma": 3}, 10.0),
    ({"name": "simpo", "gamma": 5}, 10.0),
    ("orpo", 0.1),
    ("orpo", 0.25),
    ("cpo", 0.1),
]
# Values meant for the other kind of loss, sums in place of means and the other way round.
CROSSED: list[tuple[str | dict[str, object], float, str]] = [
    ("sigmoid", 5.0, "beta is 5: .*'sigmoid'.*sums over the tokens"),
    ("robust", 2.5, "beta is 2.5: .*sums"),
    ("cpo", 2.0, "beta is 2: .*sums"),
    ({"name": "dpop", "penalty": 50}, 5.0, "beta is 5: .*sums"),
    ("sigmoid_norm", 0.1, "beta is 0.1: .*'sigmoid_norm'.*means over the tokens"),
    ({"name": "simpo", "gamma": 1.0}, 0.1, "beta is 0.1: .*means"),
    ({"name": "simpo", "gamma": 50}, 2.0, r"loss\.gamma is 50: .*means"),
    ("ipo", 5.0, "beta is 5: .*means"),
]


@pytest.mark.parametrize(("loss", "beta"), PUBLISHED, ids=str)
def test_published_settings_are_not_warned_of(loss: str | dict[str, object], beta: float) -> None:
    """Fails where a paper's own setting is called unusual."""
    assert losses.unusual_settings(loss, beta) == []


def test_published_settings_of_every_loss() -> None:
    """Fails where a loss leaves the list above, so that its range is held by nothing."""
    names = {name if isinstance(name, str) else name["name"] for name, _ in PUBLISHED}
    assert len(names) >= 14 and names <= set(LOSSES)


@pytest.mark.parametrize(("loss", "beta", "message"), CROSSED, ids=str)
def test_a_beta_meant_for_the_other_kind_is_warned_of(
    loss: str | dict[str, object], beta: float, message: str
) -> None:
    """Fails where a beta of sums goes unnoticed in a loss of means, or the other way round."""
    (warning,) = losses.unusual_settings(loss, beta)
    assert re.search(message, warning), warning


def test_wpo_weights() -> None:
    """WPO's weight is the product of both responses' probabilities, each the geometric mean over
    its tokens; at most 1, without gradient. Fails where it is a sum, or carries a gradient."""
    aligned = torch.tensor([[-0.5, 0.2, 1.0], [-0.25, -0.7, 1.0]], requires_grad=True)
    weight_P = losses.wpo_weight(aligned[0], aligned[1])
    wanted_P = torch.tensor([math.exp(-0.75), math.exp(-0.5), 1.0])
    torch.testing.assert_close(weight_P, wanted_P)
    assert not weight_P.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wins_are_margins_above_rounding(dtype: torch.dtype) -> None:
    """Won, lost, equal, and apart by less than a rounding of hundreds of nats. Fails where an
    untrained policy has the accuracy of a coin, or a side is compared with the other's
    reference."""
    chosen_P, rejected_P = (
        torch.tensor([-300.0, -310.0, -300.0, -300.0], dtype=dtype),
        torch.full((4,), -200.0, dtype=dtype),
    )
    ref_chosen_P, ref_rejected_P = (
        torch.full((4,), -305.0, dtype=dtype),
        torch.full((4,), -200.0, dtype=dtype),
    )
    ref_chosen_P[2] = -300.0
    ref_chosen_P[3] = -300.0 - 400 * torch.finfo(dtype).eps
    assert chosen_P[3] > ref_chosen_P[3]
    assert losses.reward_accuracy(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P).tolist() == [
        1.0,
        0.0,
        0.0,
        0.0,
    ]
    assert losses.reward_accuracy(rejected_P, chosen_P, ref_rejected_P, ref_chosen_P).tolist() == [
        0.0,
        1.0,
        0.0,
        0.0,
    ]
