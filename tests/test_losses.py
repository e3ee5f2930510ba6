"""The preference losses against arithmetic done apart from them: in Python floats, and in the
papers' closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zephyr import losses
from zephyr.losses import LOSSES, DPOTerms, Loss, dpo

SMOOTHED = {"sigmoid", "sigmoid_norm", "robust", "exo_pair"}
AVERAGED = {"ipo", "sigmoid_norm"}
PAIRS, BETA, EPSILON = 6, 0.3, 0.1


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def a(x: float, epsilon: float) -> float:
    """Cross-entropy of the label (1 - epsilon, epsilon) with a margin of x."""
    return (1 - epsilon) * math.log(1 + math.exp(-x)) + epsilon * math.log(1 + math.exp(x))


def exo(x: float, epsilon: float) -> float:
    return s(x) * math.log(s(x) / (1 - epsilon)) + s(-x) * math.log(s(-x) / epsilon)


# name -> loss of log-ratios c (chosen), r (rejected), averaged already where the loss averages; b:
# beta, e: smoothing
BY_HAND: dict[str, Callable[[float, float, float, float], float]] = {
    "sigmoid": lambda c, r, b, e: a(b * (c - r), e),
    "sigmoid_norm": lambda c, r, b, e: a(b * (c - r), e),
    "robust": lambda c, r, b, e: (
        ((1 - e) * a(b * (c - r), 0) - e * a(b * (r - c), 0)) / (1 - 2 * e)
    ),
    "ipo": lambda c, r, b, e: (c - r) ** 2 - (c - r) / b + 1 / (4 * b * b),
    "hinge": lambda c, r, b, e: max(0.0, 1 - b * c + b * r),
    "exo_pair": lambda c, r, b, e: exo(b * (c - r), e),
    "nca_pair": lambda c, r, b, e: (
        -math.log(s(b * c)) - math.log(s(-b * c)) / 2 - math.log(s(-b * r)) / 2
    ),
    "sppo_hard": lambda c, r, b, e: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
    "apo_zero": lambda c, r, b, e: (1 - s(b * c)) + s(b * r),
    "apo_down": lambda c, r, b, e: s(b * c) + (1 - s(b * (c - r))),
}
# name -> d loss / d c and d loss / d r in closed form
GRADIENTS: dict[str, Callable[[float, float, float, float], tuple[float, float]]] = {
    "sigmoid": lambda c, r, b, e: opposite(b * (s(b * (c - r)) - (1 - e))),
    "sigmoid_norm": lambda c, r, b, e: opposite(b * (s(b * (c - r)) - (1 - e))),
    "robust": lambda c, r, b, e: opposite(-b * (s(b * (r - c)) + e / (1 - 2 * e))),
    "ipo": lambda c, r, b, e: opposite(2 * (c - r) - 1 / b),
    "hinge": lambda c, r, b, e: opposite(-b if b * (c - r) < 1 else 0.0),
    "exo_pair": lambda c, r, b, e: opposite(
        b * s(b * (c - r)) * s(b * (r - c)) * (b * (c - r) - math.log((1 - e) / e))
    ),
    "nca_pair": lambda c, r, b, e: (b * (1.5 * s(b * c) - 1), 0.5 * b * s(b * r)),
    "sppo_hard": lambda c, r, b, e: (2 * c - 1 / b, 2 * r + 1 / b),
    "apo_zero": lambda c, r, b, e: (-b * s(b * c) * s(-b * c), b * s(b * r) * s(-b * r)),
    "apo_down": lambda c, r, b, e: (
        b * slope(b * c) - b * slope(b * (c - r)),
        b * slope(b * (c - r)),
    ),
}


E, FAR = EPSILON, 1e4
# name -> losses at beta 1 of the log-ratios (1e4, -1e4) and (-1e4, 1e4), where the exponentials are
# 0
FAR_OFF: dict[str, tuple[float, float]] = {
    "sigmoid": (E * 2 * FAR, (1 - E) * 2 * FAR),
    "sigmoid_norm": (E * (FAR / 7 + FAR / 11), (1 - E) * (FAR / 31 + FAR / 5)),
    "robust": (-E * 2 * FAR / (1 - 2 * E), (1 - E) * 2 * FAR / (1 - 2 * E)),
    "ipo": ((FAR / 7 + FAR / 11 - 0.5) ** 2, (FAR / 31 + FAR / 5 + 0.5) ** 2),
    "hinge": (0.0, 1 + 2 * FAR),
    "exo_pair": (-math.log(1 - E), -math.log(E)),
    "nca_pair": (0.5 * FAR, 1.5 * FAR),
    "sppo_hard": (2 * (FAR - 0.5) ** 2, 2 * (FAR + 0.5) ** 2),
    "apo_zero": (0.0, 2.0),
    "apo_down": (1.0, 1.0),
}


def opposite(gradient: float) -> tuple[float, float]:
    return gradient, -gradient


def slope(x: float) -> float:
    return s(x) * s(-x)


def smoothing_for(name: str) -> float:
    return EPSILON if name in SMOOTHED else 0.0


def vectors(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Chosen, rejected and the two references: sums as responses of tens of tokens have, margins of
    both signs."""
    generator = torch.Generator().manual_seed(seed)
    ref_2P = -60 + 20 * torch.rand(2, PAIRS, generator=generator, dtype=torch.float64)
    policy_2P = ref_2P + 4 * torch.randn(2, PAIRS, generator=generator, dtype=torch.float64)
    return [vector_P.to(dtype) for vector_P in (*policy_2P, *ref_2P)]


def token_counts() -> tuple[Tensor, Tensor]:
    return torch.tensor([7, 31, 12, 1, 20, 9]), torch.tensor([11, 5, 40, 3, 2, 16])


def run(
    name: str, tensors: list[Tensor], *, beta: float = BETA, label_smoothing: float | None = None
) -> DPOTerms:
    chosen_tokens_P, rejected_tokens_P = token_counts()
    return dpo(
        *tensors,
        beta=beta,
        loss=name,
        label_smoothing=smoothing_for(name) if label_smoothing is None else label_smoothing,
        chosen_tokens_P=chosen_tokens_P[: len(tensors[0])],
        rejected_tokens_P=rejected_tokens_P[: len(tensors[0])],
    )


def ratios(name: str, tensors: list[Tensor]) -> list[tuple[float, float]]:
    """(chosen, rejected) log-ratios of every pair as Python floats, averaged over tokens where
    `name` averages."""
    chosen, rejected, ref_chosen, ref_rejected = (tensor_P.tolist() for tensor_P in tensors)
    counts = [tokens_P.tolist() if name in AVERAGED else [1] * PAIRS for tokens_P in token_counts()]
    return [
        ((chosen[i] - ref_chosen[i]) / counts[0][i], (rejected[i] - ref_rejected[i]) / counts[1][i])
        for i in range(PAIRS)
    ]


def test_every_loss_is_tested() -> None:
    """A loss added to the table without values and gradients of its own would otherwise pass
    unseen."""
    assert set(LOSSES) == set(BY_HAND) == set(GRADIENTS)
    assert {name for name, entry in LOSSES.items() if entry.smoothing != "refused"} == SMOOTHED
    assert {name for name, entry in LOSSES.items() if entry.length_averaged} == AVERAGED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_values_by_hand(name: str, dtype: torch.dtype) -> None:
    """A sign, a factor, beta or the token counts in the wrong place moves every value by far more
    than rounding."""
    tensors = vectors(dtype)
    terms = run(name, tensors)
    wanted = [BY_HAND[name](c, r, BETA, smoothing_for(name)) for c, r in ratios(name, tensors)]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(
        terms.loss_P, torch.tensor(wanted, dtype=dtype), rtol=tolerance, atol=tolerance
    )
    assert terms.loss_P.std() > 0.01  # the pairs differ, so a constant could not pass


@pytest.mark.parametrize("name", sorted(SMOOTHED - {"exo_pair"}))
def test_without_smoothing_it_is_the_plain_loss(name: str) -> None:
    """cDPO and robust DPO must fall back on -log sigmoid(margin) at 0; a smoothing left on would
    show."""
    tensors = vectors()
    wanted = [math.log(1 + math.exp(-BETA * (c - r))) for c, r in ratios(name, tensors)]
    terms = run(name, tensors, label_smoothing=0.0)
    torch.testing.assert_close(terms.loss_P, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_papers(name: str) -> None:
    """Autograd through the code equals the closed form on both sides; with a term detached it would
    not."""
    tensors = vectors()
    leaves = [tensors[0].requires_grad_(), tensors[1].requires_grad_()]
    grads_P = torch.autograd.grad(run(name, tensors).loss_P.sum(), leaves)
    counts_P = token_counts() if name in AVERAGED else (torch.ones(PAIRS), torch.ones(PAIRS))
    by_hand = [
        GRADIENTS[name](c, r, BETA, smoothing_for(name))
        for c, r in ratios(name, [t.detach() for t in tensors])
    ]
    for side in range(2):
        wanted_P = (
            torch.tensor([gradient[side] for gradient in by_hand], dtype=torch.float64)
            / counts_P[side]
        )
        torch.testing.assert_close(grads_P[side], wanted_P, rtol=1e-10, atol=1e-12)
        assert grads_P[side].abs().max() > 1e-3


def test_dpo_gradient_is_the_papers_weighting() -> None:
    """Rafailov et al., Section 4: a pair weighs beta * sigmoid(reward_rejected - reward_chosen), by
    the rewards returned: they and the loss must speak of the same beta."""
    tensors = vectors()
    terms = run("sigmoid", [tensors[0].requires_grad_(), *tensors[1:]], label_smoothing=0.0)
    (grad_P,) = torch.autograd.grad(terms.loss_P.sum(), tensors[0])
    torch.testing.assert_close(
        grad_P, -BETA * torch.sigmoid(terms.reward_rejected_P - terms.reward_chosen_P)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    """Numeric differentiation in float64, also in the reference, which enters with the other
    sign."""
    tensors = [tensor_P.requires_grad_() for tensor_P in vectors(seed=3)]
    assert torch.autograd.gradcheck(lambda *inputs: run(name, list(inputs)).loss_P, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_margins_stay_finite(name: str, dtype: torch.dtype) -> None:
    """A pair far off (log-ratios of +-1e4, beta 1) must not overflow: one NaN would stop or spoil
    the run."""
    far_P = torch.tensor([1e4, -1e4, 1e4, -1e4, 0.0, 0.0], dtype=dtype)
    other_P = torch.tensor([-1e4, 1e4, 0.0, 0.0, 1e4, -1e4], dtype=dtype)
    reference = [torch.zeros(PAIRS, dtype=dtype), torch.zeros(PAIRS, dtype=dtype)]
    tensors = [far_P.requires_grad_(), other_P.requires_grad_(), *reference]
    terms = run(name, tensors, beta=1.0)
    grads_P = torch.autograd.grad(terms.loss_P.sum(), tensors[:2])
    for tensor_P in (*terms, *grads_P):
        assert torch.isfinite(tensor_P).all(), tensor_P
    torch.testing.assert_close(
        terms.loss_P[:2], torch.tensor(FAR_OFF[name], dtype=dtype), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sigmoid", math.log(2)),
        ("sigmoid_norm", math.log(2)),
        ("robust", math.log(2)),
        ("nca_pair", 2 * math.log(2)),
        ("hinge", 1.0),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("ipo", 1 / (4 * BETA**2)),
        ("sppo_hard", 1 / (2 * BETA**2)),
        ("exo_pair", -math.log(2) - 0.5 * math.log(EPSILON * (1 - EPSILON))),
    ],
)
def test_the_first_step(name: str, wanted: float) -> None:
    """Policy == reference, as in the first record of a run: rewards exactly 0, the loss a constant
    known beforehand."""
    policy_P = vectors(torch.float32)[:2]
    terms = run(name, [*policy_P, *policy_P])
    torch.testing.assert_close(terms.loss_P, torch.full((PAIRS,), wanted), rtol=1e-6, atol=0)
    assert terms.reward_chosen_P.tolist() == terms.reward_rejected_P.tolist() == [0.0] * PAIRS


@pytest.mark.parametrize("name", LOSSES)
def test_rewards(name: str) -> None:
    """beta times the summed log-ratio for every loss, detached (averaged, they would not compare
    between losses)."""
    tensors = vectors()
    terms = run(name, [tensors[0].requires_grad_(), tensors[1].requires_grad_(), *tensors[2:]])
    chosen, rejected, ref_chosen, ref_rejected = (tensor_P.tolist() for tensor_P in tensors)
    for reward_P, policy, ref in (
        (terms[1], chosen, ref_chosen),
        (terms[2], rejected, ref_rejected),
    ):
        wanted = [BETA * (x - y) for x, y in zip(policy, ref)]
        torch.testing.assert_close(reward_P, torch.tensor(wanted, dtype=torch.float64))
        assert not reward_P.requires_grad
    assert terms.loss_P.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_do_not_touch_each_other(name: str) -> None:
    """A pair's loss may not depend on the micro-batch around it: alone, it must come out bit for
    bit the same."""
    tensors = vectors(torch.float32)
    together_P = run(name, tensors).loss_P
    counts_P = token_counts()
    for i in range(PAIRS):
        alone = dpo(
            *(tensor_P[i : i + 1] for tensor_P in tensors),
            beta=BETA,
            loss=name,
            label_smoothing=smoothing_for(name),
            chosen_tokens_P=counts_P[0][i : i + 1],
            rejected_tokens_P=counts_P[1][i : i + 1],
        )
        assert alone.loss_P.tolist() == together_P[i : i + 1].tolist()


@pytest.mark.parametrize("name", LOSSES)
def test_no_pairs(name: str) -> None:
    """A rank with nothing to do in a micro-batch still runs backward with the others, on empty
    vectors."""
    tensors = [torch.empty(0, requires_grad=True) for _ in range(4)]
    terms = run(name, tensors)
    terms.loss_P.sum().backward()
    assert terms.loss_P.shape == terms.reward_chosen_P.shape == (0,)
    assert tensors[0].grad is not None and tensors[0].grad.shape == (0,)


def test_unbiased_under_flips() -> None:
    """The claim of robust DPO: its mean over labels flipped with probability epsilon is DPO's loss
    of the true label. cDPO's is not, so an exchange of the two is caught."""
    chosen_P, rejected_P, ref_chosen_P, ref_rejected_P = vectors()
    clean_P = run(
        "sigmoid", [chosen_P, rejected_P, ref_chosen_P, ref_rejected_P], label_smoothing=0.0
    ).loss_P
    kept_P = run("robust", [chosen_P, rejected_P, ref_chosen_P, ref_rejected_P]).loss_P
    flipped_P = run("robust", [rejected_P, chosen_P, ref_rejected_P, ref_chosen_P]).loss_P
    torch.testing.assert_close((1 - EPSILON) * kept_P + EPSILON * flipped_P, clean_P)


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
        ({"loss": "exo_pair"}, "exo_pair.*label_smoothing"),
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
    """Each is refused by name; computing on would train something other than what was asked for."""
    settings: dict[str, float | str | Tensor] = {"beta": BETA, **change}
    with pytest.raises(ValueError, match=message):
        dpo(*vectors(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(set(LOSSES) - SMOOTHED))
def test_label_smoothing_is_never_silently_dropped(name: str) -> None:
    """A loss without smoothing that is given some must say so, and say who takes it."""
    with pytest.raises(
        ValueError, match=rf"label_smoothing.*{name}.*sigmoid, robust, sigmoid_norm, exo_pair"
    ):
        run(name, vectors(), label_smoothing=0.1)


@pytest.mark.parametrize("position", range(4))
def test_vectors_that_do_not_fit(position: int) -> None:
    """Half precision loses the margin, mixed dtypes and shapes broadcast in silence: all
    refused."""
    names = ["chosen_P", "rejected_P", "ref_chosen_P", "ref_rejected_P"]
    fits_P = vectors()[0]
    for wrong_P in (fits_P.bfloat16(), fits_P.float(), fits_P[:1], fits_P[:, None]):
        tensors = vectors()
        tensors[position] = wrong_P
        with pytest.raises(ValueError, match=names[position]):
            run("sigmoid", tensors)


def test_all_half_precision() -> None:
    """Alike is not enough: bfloat16 throughout, or integers, must be refused too."""
    for dtype in (torch.bfloat16, torch.float16, torch.int64):
        with pytest.raises(ValueError, match="float32 or float64"):
            run("sigmoid", vectors(dtype))
    with pytest.raises(ValueError, match=r"vector \[P\]"):
        run("sigmoid", [torch.zeros(2, 2)] * 4)


def test_token_counts_are_accepted_where_unused() -> None:
    """The caller hands counts over whatever the loss: they must neither be refused nor change
    anything."""
    tensors = vectors()
    assert (
        run("hinge", tensors).loss_P.tolist()
        == dpo(*tensors, beta=BETA, loss="hinge").loss_P.tolist()
    )


def test_a_loss_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise of the table: one line adds a loss, and checks, averaging and rewards come with
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
