"""Vectors of response log-probabilities become one unreduced loss per preference pair, and its two
rewards.

Legend: `P` preference pairs. Every loss is a function of a pair's two log-ratios, `log pi(y|x) -
log pi_ref(y|x)` of its chosen and of its rejected response, and of beta, one pair at a time. Losses
that are not stay out: `aot` sorts the log-ratios of a batch, so a pair's loss would depend on the
micro-batch and rank it fell into, and `bco_pair` subtracts a running mean of past rewards, a state
to be reduced over ranks and saved with checkpoints."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DPOTerms(NamedTuple):
    """What `dpo` returns; all [P], in the dtype of its inputs."""

    loss_P: Tensor  # not reduced
    reward_chosen_P: Tensor  # beta * (log pi - log pi_ref) of the chosen response, detached
    reward_rejected_P: Tensor


class Loss(NamedTuple):
    """An entry of `LOSSES`: the function, and what it wants beside the two log-ratios and beta."""

    function: Callable[
        ..., Tensor
    ]  # (chosen_P, rejected_P, *, beta[, label_smoothing]) -> loss_P, of log-ratios
    smoothing: Literal["refused", "accepted", "required"] = (
        "refused"  # whether the function takes `label_smoothing`
    )
    length_averaged: bool = (
        False  # whether the log-ratios are divided by the responses' token counts first
    )


def sigmoid(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO, Rafailov et al. 2023 (arXiv:2305.18290), Eq. 7: -log p(the preference) under
    Bradley-Terry.

    With label_smoothing > 0 it is conservative DPO, Mitchell 2023 (ericmitchell.ai/cdpo.pdf): the
    cross-entropy for labels that are wrong with that probability. On log-ratios averaged over
    tokens it is length-normalised DPO, `sigmoid_norm`, Lambert et al. 2024 (Tulu 3,
    arXiv:2411.15124), Eq. 6."""
    margin_P = beta * (chosen_P - rejected_P)
    return -(1 - label_smoothing) * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(
        -margin_P
    )


def robust(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO, Chowdhury et al. 2024 (arXiv:2403.00409), Section 3: its mean over labels flipped
    with probability label_smoothing is the DPO loss of the true labels. Not bounded below."""
    margin_P = beta * (chosen_P - rejected_P)
    kept_P, flipped_P = -F.logsigmoid(margin_P), -F.logsigmoid(-margin_P)
    return ((1 - label_smoothing) * kept_P - label_smoothing * flipped_P) / (
        1 - 2 * label_smoothing
    )


def ipo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """IPO, Azar et al. 2023 (arXiv:2310.12036), Eq. 17, with beta as its tau: the margin is drawn
    to 1 / (2 beta).

    Of log-ratios averaged over tokens, as its authors did; with sums long responses would reach the
    target at once."""
    return (chosen_P - rejected_P - 1 / (2 * beta)).square()


def hinge(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """SLiC's hinge (Zhao et al. 2023, arXiv:2305.10425) on log-ratios: Liu et al. 2023
    (arXiv:2309.06657), Eq. 12."""
    return F.relu(1 - beta * (chosen_P - rejected_P))


def exo_pair(
    chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """EXO for two responses, Ji et al. 2024 (arXiv:2402.00856), Eq. 16: KL(softmax(beta *
    log-ratios) || (1 - e, e)) with e the label_smoothing; at e = 0 it is infinite."""
    margin_P = beta * (chosen_P - rejected_P)
    chosen_is_better_P = torch.sigmoid(margin_P) * (
        F.logsigmoid(margin_P) - math.log1p(-label_smoothing)
    )
    return chosen_is_better_P + torch.sigmoid(-margin_P) * (
        F.logsigmoid(-margin_P) - math.log(label_smoothing)
    )


def nca_pair(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """NCA for a preference pair, Chen et al. 2024 (arXiv:2402.05369), Section 4: each response is
    told from a sample of the reference, the chosen one being the positive, both together (half
    each) the negatives."""
    reward_chosen_P, reward_rejected_P = beta * chosen_P, beta * rejected_P
    negatives_P = F.logsigmoid(-reward_chosen_P) + F.logsigmoid(-reward_rejected_P)
    return -F.logsigmoid(reward_chosen_P) - 0.5 * negatives_P


def sppo_hard(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """SPPO, Wu et al. 2024 (arXiv:2405.00675), Eq. 4.7 with win probabilities 1 and 0, and beta for
    its 1 / eta: the log-ratios are drawn to +1 / (2 beta) and -1 / (2 beta)."""
    return (chosen_P - 0.5 / beta).square() + (rejected_P + 0.5 / beta).square()


def apo_zero(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """APO-zero, D'Oosterlinck et al. 2024 (arXiv:2408.06266), Eq. 7, for chosen above the model:
    up; rejected: down."""
    return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(beta * rejected_P)


def apo_down(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """APO-down, D'Oosterlinck et al. 2024 (arXiv:2408.06266), Eq. 8, for chosen below the model:
    both fall, rejected more."""
    return torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P - rejected_P))


# To add a loss of your own, add a line: LOSSES["square"] = Loss(square)
LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(sigmoid, smoothing="accepted"),
    "robust": Loss(robust, smoothing="accepted"),
    "ipo": Loss(ipo, length_averaged=True),
    "sigmoid_norm": Loss(sigmoid, smoothing="accepted", length_averaged=True),
    "hinge": Loss(hinge),
    "exo_pair": Loss(exo_pair, smoothing="required"),
    "nca_pair": Loss(nca_pair),
    "sppo_hard": Loss(sppo_hard),
    "apo_zero": Loss(apo_zero),
    "apo_down": Loss(apo_down),
}


def dpo(
    chosen_P: Tensor,
    rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    *,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_tokens_P: Tensor | None = None,
    rejected_tokens_P: Tensor | None = None,
) -> DPOTerms:
    """Loss of each pair under one of `LOSSES`; the default, `sigmoid`, is DPO (Rafailov et al.
    2023, arXiv:2305.18290, Eq. 7): -log sigmoid(beta * [(chosen - ref_chosen) - (rejected -
    ref_rejected)]).

    Args: *_P: log p(response | prompt) in nats, summed over the response's tokens, float32 or float64 [P], P may be 0; ref_*: under
        the frozen reference. beta: KL weight, > 0. loss: a key of `LOSSES`. label_smoothing: the probability that a preference is
        the wrong way round, 0 <= label_smoothing < 0.5, taken by `sigmoid`, `sigmoid_norm`, `robust` (0 is allowed) and `exo_pair`
        (> 0 is required). *_tokens_P: tokens of each response, >= 1, any integer or float dtype [P]; used by `ipo` and
        `sigmoid_norm` only, and not read back to be checked: a count of 0 gives a loss that is not finite.
    Returns: loss [P], not reduced (divide the sum by the pairs of all ranks), and both rewards [P], detached: beta times the summed
        log-ratio, whatever the loss.
    Raises: ValueError naming the argument: an unknown loss, beta or label_smoothing out of range, label_smoothing > 0 for a
        loss that takes none, token counts missing where needed, or vectors not all float32, or all float64, of one shape [P]."""
    entry = require_settings(loss, beta, label_smoothing)
    require_vectors(
        chosen_P=chosen_P,
        rejected_P=rejected_P,
        ref_chosen_P=ref_chosen_P,
        ref_rejected_P=ref_rejected_P,
    )
    chosen_ratio_P, rejected_ratio_P = chosen_P - ref_chosen_P, rejected_P - ref_rejected_P
    rewards = (beta * chosen_ratio_P).detach(), (beta * rejected_ratio_P).detach()
    if entry.length_averaged:
        chosen_ratio_P = chosen_ratio_P / require_tokens(
            loss, "chosen_tokens_P", chosen_tokens_P, chosen_P
        )
        rejected_ratio_P = rejected_ratio_P / require_tokens(
            loss, "rejected_tokens_P", rejected_tokens_P, chosen_P
        )
    smoothing = {} if entry.smoothing == "refused" else {"label_smoothing": label_smoothing}
    return DPOTerms(
        entry.function(chosen_ratio_P, rejected_ratio_P, beta=beta, **smoothing), *rewards
    )


def reward_accuracy(
    chosen_P: Tensor, rejected_P: Tensor, ref_chosen_P: Tensor, ref_rejected_P: Tensor
) -> Tensor:
    """1.0 where the chosen response has the higher reward, else 0.0, [P] float32.

    A margin below the rounding error of the four log-probabilities, as between a policy and its own
    reference, is no win: else the accuracy of an untrained policy would be that of a coin instead
    of 0."""
    logps = torch.stack([chosen_P, rejected_P, ref_chosen_P, ref_rejected_P]).detach()
    margin_P = (logps[0] - logps[2]) - (logps[1] - logps[3])
    return (margin_P > 4 * torch.finfo(logps.dtype).eps * logps.abs().sum(0)).float()


def require_settings(loss: str, beta: float, label_smoothing: float) -> Loss:
    """The table's entry for `loss`. Raises: ValueError naming the setting that `dpo` refuses."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be > 0 and finite, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    entry = LOSSES[loss]
    if entry.smoothing == "refused" and label_smoothing > 0:
        takers = ", ".join(name for name, other in LOSSES.items() if other.smoothing != "refused")
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but loss {loss!r} takes none (these do: {takers})"
        )
    if entry.smoothing == "required" and label_smoothing == 0:
        raise ValueError(
            f"loss {loss!r} is infinite at label_smoothing 0: it must be > 0, such as 1e-3"
        )
    return entry


def require_vectors(**vectors_P: Tensor) -> None:
    """Raises: ValueError naming a vector that is not float32 or float64, not [P], or unlike the
    first."""
    first_name, first_P = next(iter(vectors_P.items()))
    for name, vector_P in vectors_P.items():
        found = f"{name} is {vector_P.dtype} of shape {tuple(vector_P.shape)}"
        if vector_P.dtype not in (torch.float32, torch.float64) or vector_P.ndim != 1:
            raise ValueError(f"{found}, wanted float32 or float64, a vector [P]")
        if (vector_P.dtype, vector_P.shape) != (first_P.dtype, first_P.shape):
            raise ValueError(
                f"{found}, wanted it like {first_name}: {first_P.dtype}, {tuple(first_P.shape)}"
            )


def require_tokens(loss: str, name: str, tokens_P: Tensor | None, like_P: Tensor) -> Tensor:
    """`tokens_P` in the dtype of `like_P`. Raises: ValueError if it is missing or of another shape
    than `like_P`."""
    if tokens_P is None:
        raise ValueError(f"loss {loss!r} averages over tokens and needs {name}")
    if tokens_P.shape != like_P.shape:
        raise ValueError(
            f"{name} has shape {tuple(tokens_P.shape)}, wanted {tuple(like_P.shape)}, one per pair"
        )
    return tokens_P.to(like_P.dtype)
