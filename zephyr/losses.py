"""Response log-probabilities become one unreduced loss per preference pair, and its two rewards.

Legend: `P` preference pairs. Every loss is a function of beta and of the two log-ratios of a pair,
`log pi(y|x) - log pi_ref(y|x)` of its chosen and of its rejected response. It sees one pair at a
time. Losses that need more do not fit here: `aot` sorts the log-ratios of a batch, so the loss of a
pair would depend on its micro-batch and rank; `bco_pair` subtracts a running mean of past rewards,
a state that would have to be reduced over ranks and saved with checkpoints.

To add a loss, write its function and add a line for it to the table: `LOSSES["square"] =
Loss(square)`. Its closed form, if it has one, belongs in `tests/closed_forms.py`.
"""

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
    reward_rejected_P: Tensor  # the same of the rejected response


class Loss(NamedTuple):
    """An entry of `LOSSES`: the function and the settings that it takes.

    function: `(chosen_P, rejected_P, *, beta) -> loss_P` of the two log-ratios; with a keyword
        `label_smoothing` unless `smoothing` is "refused".
    smoothing: whether `label_smoothing` > 0 is refused, accepted, or required.
    length_averaged: whether each log-ratio is divided by the tokens of its response first.
    """

    function: Callable[..., Tensor]
    smoothing: Literal["refused", "accepted", "required"] = "refused"
    length_averaged: bool = False


def sigmoid(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO: the negative log-likelihood of the preference under Bradley-Terry.

    Rafailov et al. 2023 (arXiv:2305.18290), Eq. 7. With label_smoothing > 0 it is conservative DPO,
    Mitchell 2023 (ericmitchell.ai/cdpo.pdf): the cross-entropy for labels that are wrong with that
    probability. On log-ratios averaged over tokens it is length-normalised DPO, `sigmoid_norm`,
    Lambert et al. 2024 (Tulu 3, arXiv:2411.15124), Eq. 6.
    """
    margin_P = beta * (chosen_P - rejected_P)
    kept_P = -F.logsigmoid(margin_P)
    flipped_P = -F.logsigmoid(-margin_P)
    return (1 - label_smoothing) * kept_P + label_smoothing * flipped_P


def robust(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO, an unbiased estimate of the DPO loss of the true labels.

    Chowdhury et al. 2024 (arXiv:2403.00409), Section 3: where labels are flipped with probability
    label_smoothing, its mean is the DPO loss of the labels before the flips. Not bounded below.
    """
    margin_P = beta * (chosen_P - rejected_P)
    kept_P = -F.logsigmoid(margin_P)
    flipped_P = -F.logsigmoid(-margin_P)
    weighted_P = (1 - label_smoothing) * kept_P - label_smoothing * flipped_P
    return weighted_P / (1 - 2 * label_smoothing)


def ipo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """IPO: a squared loss that pulls the margin to 1 / (2 beta).

    Azar et al. 2023 (arXiv:2310.12036), Eq. 17, where beta is called tau. It takes log-ratios
    averaged over tokens, as in its authors' experiments: with sums, long responses would reach the
    target at once.
    """
    return (chosen_P - rejected_P - 1 / (2 * beta)).square()


def hinge(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """The hinge of SLiC (Zhao et al. 2023, arXiv:2305.10425) on log-ratios.

    Liu et al. 2023 (arXiv:2309.06657), Eq. 12.
    """
    return F.relu(1 - beta * (chosen_P - rejected_P))


def exo_pair(
    chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """EXO for two responses: KL(softmax(beta * log-ratios) || (1 - e, e)), e the label_smoothing.

    Ji et al. 2024 (arXiv:2402.00856), Eq. 16. At e = 0 the loss is infinite.
    """
    margin_P = beta * (chosen_P - rejected_P)
    p_chosen_P = torch.sigmoid(margin_P)
    kl_chosen_P = p_chosen_P * (F.logsigmoid(margin_P) - math.log1p(-label_smoothing))
    p_rejected_P = torch.sigmoid(-margin_P)
    kl_rejected_P = p_rejected_P * (F.logsigmoid(-margin_P) - math.log(label_smoothing))
    return kl_chosen_P + kl_rejected_P


def nca_pair(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """NCA for a preference pair: noise-contrastive estimation against samples of the reference.

    Chen et al. 2024 (arXiv:2402.05369), Section 4. The chosen response is the positive; both
    responses are negatives, with weight 1/2 each.
    """
    reward_chosen_P = beta * chosen_P
    reward_rejected_P = beta * rejected_P
    negatives_P = F.logsigmoid(-reward_chosen_P) + F.logsigmoid(-reward_rejected_P)
    return -F.logsigmoid(reward_chosen_P) - 0.5 * negatives_P


def sppo_hard(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """SPPO: squared losses that pull the log-ratios to +1 / (2 beta) and -1 / (2 beta).

    Wu et al. 2024 (arXiv:2405.00675), Eq. 4.7 with win probabilities 1 and 0 and eta = 1 / beta.
    """
    return (chosen_P - 0.5 / beta).square() + (rejected_P + 0.5 / beta).square()


def apo_zero(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """APO-zero: raises the chosen response and lowers the rejected one.

    D'Oosterlinck et al. 2024 (arXiv:2408.06266), Eq. 7, for chosen responses that are better than
    the model's own.
    """
    return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(beta * rejected_P)


def apo_down(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """APO-down: lowers both responses, the rejected one more.

    D'Oosterlinck et al. 2024 (arXiv:2408.06266), Eq. 8, for chosen responses that are worse than
    the model's own.
    """
    return torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P - rejected_P))


# The values of the config key `loss`.
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
    """The loss and both rewards of each pair under one of `LOSSES`.

    The default, `sigmoid`, is DPO (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7):
    -log sigmoid(beta * [(chosen - ref_chosen) - (rejected - ref_rejected)]).

    Args:
        chosen_P, rejected_P: log p(response | prompt) under the policy, in nats, summed over the
            tokens of the response; float32 or float64 [P]. P may be 0.
        ref_chosen_P, ref_rejected_P: the same under the frozen reference.
        beta: KL weight, > 0.
        loss: a key of `LOSSES`.
        label_smoothing: the probability that a preference is the wrong way round, at least 0 and
            below 0.5. `sigmoid`, `sigmoid_norm` and `robust` take it, `exo_pair` requires it > 0.
        chosen_tokens_P, rejected_tokens_P: tokens of each response, >= 1; any integer or float
            dtype [P]. Only length-averaged losses (`ipo`, `sigmoid_norm`) read them. The values are
            not checked, because that would wait for the GPU: a count of 0 gives a non-finite loss.
    Returns:
        The loss [P], not reduced (divide the sum by the pairs of all ranks), and both rewards [P],
        detached: beta times the summed log-ratio, whatever the loss.
    Raises:
        ValueError: naming the argument, for an unknown loss, a beta or label_smoothing out of
            range, label_smoothing > 0 for a loss that does not take it, token counts missing where
            they are needed, or vectors that are not all float32, or all float64, of one shape [P].
    """
    entry = require_settings(loss, beta, label_smoothing)
    require_vectors(
        chosen_P=chosen_P,
        rejected_P=rejected_P,
        ref_chosen_P=ref_chosen_P,
        ref_rejected_P=ref_rejected_P,
    )
    chosen_ratio_P = chosen_P - ref_chosen_P
    rejected_ratio_P = rejected_P - ref_rejected_P
    reward_chosen_P = (beta * chosen_ratio_P).detach()
    reward_rejected_P = (beta * rejected_ratio_P).detach()
    if entry.length_averaged:
        chosen_tokens_P = require_tokens(loss, "chosen_tokens_P", chosen_tokens_P, chosen_P)
        rejected_tokens_P = require_tokens(loss, "rejected_tokens_P", rejected_tokens_P, chosen_P)
        chosen_ratio_P = chosen_ratio_P / chosen_tokens_P
        rejected_ratio_P = rejected_ratio_P / rejected_tokens_P
    settings = {"beta": beta}
    if entry.smoothing != "refused":
        settings["label_smoothing"] = label_smoothing
    loss_P = entry.function(chosen_ratio_P, rejected_ratio_P, **settings)
    return DPOTerms(loss_P, reward_chosen_P, reward_rejected_P)


def reward_accuracy(
    chosen_P: Tensor, rejected_P: Tensor, ref_chosen_P: Tensor, ref_rejected_P: Tensor
) -> Tensor:
    """1.0 where the chosen response has the higher reward, else 0.0; float32 [P].

    A margin below the rounding error of the four log-probabilities does not count as higher.
    Otherwise the accuracy of a policy that equals its reference would be near 0.5 by rounding
    errors, instead of 0.
    """
    logps = torch.stack([chosen_P, rejected_P, ref_chosen_P, ref_rejected_P]).detach()
    margin_P = (logps[0] - logps[2]) - (logps[1] - logps[3])
    return (margin_P > 4 * torch.finfo(logps.dtype).eps * logps.abs().sum(0)).float()


def require_settings(loss: str, beta: float, label_smoothing: float) -> Loss:
    """The entry of `LOSSES` for `loss`.

    Raises:
        ValueError: naming the setting that `dpo` refuses.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be > 0 and finite, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    entry = LOSSES[loss]
    if entry.smoothing == "refused" and label_smoothing > 0:
        takers = [name for name, other in LOSSES.items() if other.smoothing != "refused"]
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but loss {loss!r} does not take it: set it to "
            f"0, or use one of {', '.join(takers)}"
        )
    if entry.smoothing == "required" and label_smoothing == 0:
        raise ValueError(
            f"label_smoothing is 0, where loss {loss!r} is infinite: it must be > 0, such as 1e-3"
        )
    return entry


def require_vectors(**vectors_P: Tensor) -> None:
    """Check that all vectors are float32, or all float64, of one shape [P].

    Raises:
        ValueError: naming the first vector that is not.
    """
    first_name, first_P = next(iter(vectors_P.items()))
    for name, vector_P in vectors_P.items():
        found = f"{name} is {vector_P.dtype} of shape {tuple(vector_P.shape)}"
        if vector_P.dtype not in (torch.float32, torch.float64) or vector_P.ndim != 1:
            raise ValueError(f"{found}, expected float32 or float64, a vector [P]")
        if (vector_P.dtype, vector_P.shape) != (first_P.dtype, first_P.shape):
            raise ValueError(
                f"{found}, expected the same as {first_name}: {first_P.dtype}, "
                f"{tuple(first_P.shape)}"
            )


def require_tokens(loss: str, name: str, tokens_P: Tensor | None, like_P: Tensor) -> Tensor:
    """`tokens_P` in the dtype of `like_P`.

    Raises:
        ValueError: naming the argument, if it is missing or its shape is not that of `like_P`.
    """
    if tokens_P is None:
        raise ValueError(f"loss {loss!r} averages over tokens and needs {name}")
    if tokens_P.shape != like_P.shape:
        raise ValueError(
            f"{name} has shape {tuple(tokens_P.shape)}, expected {tuple(like_P.shape)}: one count "
            "per pair"
        )
    return tokens_P.to(like_P.dtype)
