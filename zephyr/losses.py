"""Response log-probabilities become one unreduced loss per preference pair, and its two rewards.

Legend: `P` preference pairs. Every loss is a function of beta and of the two log-ratios of a pair,
`log pi(y|x) - log pi_ref(y|x)` of its chosen and of its rejected response. A reference-free loss
gets the two log-probs `log pi(y|x)` in their place. A loss sees one pair at a time. Losses that
need more do not fit here: `aot` sorts the log-ratios of a batch, so the loss of a pair would depend
on its micro-batch and rank; `bco_pair` subtracts a running mean of past rewards, a state that would
have to be reduced over ranks and saved with checkpoints.

To add a loss, write its function and add a line for it to the table: `LOSSES["square"] =
Loss(square)`. A setting of its own is a keyword of the function and a line of the entry:
`Loss(square, settings={"target": Setting(1.0)})`; then `loss: {name: square, target: 2}` sets it.
Its closed form, if it has one, belongs in `tests/closed_forms.py`.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DPOTerms(NamedTuple):
    """What `dpo` returns; all [P], in the dtype of its inputs."""

    loss_P: Tensor  # not reduced
    reward_chosen_P: Tensor  # beta * (log pi - log pi_ref) of the chosen response, detached
    reward_rejected_P: Tensor  # the same of the rejected response


class Setting(NamedTuple):
    """A setting of one loss, given as `loss: {name: LOSS, SETTING: value}`.

    default: its value where the config does not name it. least: the smallest value accepted.
    usual: the smallest and the largest value that a run does not warn of.
    """

    default: float
    least: float = -math.inf
    usual: tuple[float, float] = (-math.inf, math.inf)


NO_SETTINGS: Mapping[str, Setting] = MappingProxyType({})


class Loss(NamedTuple):
    """An entry of `LOSSES`: the function and the settings that it takes.

    function: `(chosen_P, rejected_P, *, beta) -> loss_P` of the two log-ratios; with a keyword
        `label_smoothing` unless `smoothing` is "refused", and one for each of `settings`.
    smoothing: whether `label_smoothing` > 0 is refused, accepted, or required.
    length_averaged: whether each log-ratio (or log-prob) is divided by the tokens of its response
        first.
    reference_free: whether the function gets log-probs of the policy instead of log-ratios.
    sft_weight: of the SFT term, where the config does not name one.
    usual_beta: the smallest and the largest beta that a run does not warn of: others are of a size
        that is meant for means where the loss takes sums, or the other way round.
    settings: the loss's own settings by name.
    """

    function: Callable[..., Tensor]
    smoothing: Literal["refused", "accepted", "required"] = "refused"
    length_averaged: bool = False
    reference_free: bool = False
    sft_weight: float = 0.0
    usual_beta: tuple[float, float] = (0.0, 1.0)
    settings: Mapping[str, Setting] = NO_SETTINGS


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


def dpop(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, penalty: float) -> Tensor:
    """DPO-Positive: a penalty where the chosen response is less likely than under the reference.

    Pal et al. 2024 (Smaug, arXiv:2402.13228), Eq. 3, where penalty is called lambda. It has no
    gradient where policy and reference are equal, as at the start of a run.
    """
    lost_P = F.relu(-chosen_P)
    return -F.logsigmoid(beta * (chosen_P - rejected_P - penalty * lost_P))


def simpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, gamma: float) -> Tensor:
    """SimPO: the mean log-prob a token as reward, and a target margin.

    Meng et al. 2024 (arXiv:2405.14734), Eq. 6. Reference-free; the log-probs are averaged over
    tokens. gamma is the target margin of the rewards, not its ratio to beta.
    """
    return -F.logsigmoid(beta * (chosen_P - rejected_P) - gamma)


def orpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """ORPO's odds ratio term, to which `dpo` adds the SFT term with weight 1.

    Hong et al. 2024 (arXiv:2403.07691), Eq. 6 and 7, where beta is called lambda. Reference-free;
    the probability of a response is exp of its mean log-prob a token.
    """
    return -beta * F.logsigmoid(log_odds(chosen_P) - log_odds(rejected_P))


def log_odds(logp_P: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p [P], exact also for p near 0 and near 1.

    A probability that rounds to 1 counts as the largest number below 1, whose odds are finite.
    """
    below_1_P = logp_P.clamp(max=-torch.finfo(logp_P.dtype).eps / 2)
    return below_1_P - (-torch.expm1(below_1_P)).log()


def cpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """CPO: DPO with a uniform reference, to which `dpo` adds the SFT term with weight 1.

    Xu et al. 2024 (arXiv:2401.08417), Eq. 3 and 5. Reference-free, on summed log-probs.
    """
    return sigmoid(chosen_P, rejected_P, beta=beta, label_smoothing=label_smoothing)


# The values of the config key `loss`.
LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(sigmoid, smoothing="accepted"),
    "robust": Loss(robust, smoothing="accepted"),
    "ipo": Loss(ipo, length_averaged=True),
    "sigmoid_norm": Loss(
        sigmoid, smoothing="accepted", length_averaged=True, usual_beta=(1.0, 50.0)
    ),
    "hinge": Loss(hinge),
    "exo_pair": Loss(exo_pair, smoothing="required"),
    "nca_pair": Loss(nca_pair),
    "sppo_hard": Loss(sppo_hard),
    "apo_zero": Loss(apo_zero),
    "apo_down": Loss(apo_down),
    "dpop": Loss(dpop, settings={"penalty": Setting(50.0, least=0.0, usual=(1.0, 500.0))}),
    "simpo": Loss(
        simpo,
        length_averaged=True,
        reference_free=True,
        usual_beta=(1.0, 50.0),
        settings={"gamma": Setting(1.0, least=0.0, usual=(0.0, 10.0))},
    ),
    "orpo": Loss(orpo, length_averaged=True, reference_free=True, sft_weight=1.0),
    "cpo": Loss(cpo, smoothing="accepted", reference_free=True, sft_weight=1.0),
}


def dpo(
    chosen_P: Tensor,
    rejected_P: Tensor,
    ref_chosen_P: Tensor | None = None,
    ref_rejected_P: Tensor | None = None,
    *,
    beta: float,
    loss: str | Mapping[str, object] = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float | None = None,
    chosen_tokens_P: Tensor | None = None,
    rejected_tokens_P: Tensor | None = None,
) -> DPOTerms:
    """The loss and both rewards of each pair under one of `LOSSES`.

    The default, `sigmoid`, is DPO (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7):
    -log sigmoid(beta * [(chosen - ref_chosen) - (rejected - ref_rejected)]).

    With an SFT term, `sft_weight` times the mean negative log-likelihood a token of the chosen
    response is added: -log pi(y_w|x) / |y_w| (Pang et al. 2024, arXiv:2404.19733, Eq. 1, where the
    weight is called alpha; Liu et al. 2024, RPO, arXiv:2405.16436, motivates it).

    Args:
        chosen_P, rejected_P: log p(response | prompt) under the policy, in nats, summed over the
            tokens of the response; float32 or float64 [P]. P may be 0.
        ref_chosen_P, ref_rejected_P: the same under the frozen reference. May be None for a
            reference-free loss, which does not read them.
        beta: KL weight, > 0.
        loss: a key of `LOSSES`, or a mapping of `name` and the loss's own settings, such as
            `{"name": "simpo", "gamma": 0.5}`.
        label_smoothing: the probability that a preference is the wrong way round, at least 0 and
            below 0.5. `sigmoid`, `sigmoid_norm`, `robust` and `cpo` take it, `exo_pair` requires it
            > 0.
        sft_weight: of the SFT term, >= 0; None: the loss's own, 1 for `orpo` and `cpo`, else 0.
        chosen_tokens_P, rejected_tokens_P: tokens of each response, >= 1; any integer or float
            dtype [P]. Only length-averaged losses (`ipo`, `sigmoid_norm`, `simpo`, `orpo`) read
            both, and the SFT term the first. The values are not checked, because that would wait
            for the GPU: a count of 0 gives a non-finite loss.
    Returns:
        The loss [P], not reduced (divide the sum by the pairs of all ranks), and both rewards [P],
        detached: beta times the summed log-ratio, whatever the loss; of a reference-free loss, beta
        times the log-prob as the loss takes it, summed or averaged over tokens.
    Raises:
        ValueError: naming the argument, for an unknown loss or setting, a value out of range,
            label_smoothing > 0 for a loss that does not take it, token counts or reference
            log-probs missing where they are needed, or vectors that are not all float32, or all
            float64, of one shape [P].
    """
    name, settings = read_loss(loss)
    entry = require_settings(loss, beta, label_smoothing, sft_weight)
    sft_weight = entry.sft_weight if sft_weight is None else sft_weight
    require_vectors(chosen_P=chosen_P, rejected_P=rejected_P)
    chosen_ratio_P, rejected_ratio_P = chosen_P, rejected_P
    if not entry.reference_free:
        if ref_chosen_P is None or ref_rejected_P is None:
            raise ValueError(f"loss {name!r} needs ref_chosen_P and ref_rejected_P, got None")
        require_vectors(chosen_P=chosen_P, ref_chosen_P=ref_chosen_P, ref_rejected_P=ref_rejected_P)
        chosen_ratio_P = chosen_P - ref_chosen_P
        rejected_ratio_P = rejected_P - ref_rejected_P
    reward_chosen_P, reward_rejected_P = beta * chosen_ratio_P, beta * rejected_ratio_P
    if entry.length_averaged:
        what = f"loss {name!r}"
        chosen_tokens_P = require_tokens(what, "chosen_tokens_P", chosen_tokens_P, chosen_P)
        rejected_tokens_P = require_tokens(what, "rejected_tokens_P", rejected_tokens_P, chosen_P)
        chosen_ratio_P = chosen_ratio_P / chosen_tokens_P
        rejected_ratio_P = rejected_ratio_P / rejected_tokens_P
        if entry.reference_free:
            reward_chosen_P, reward_rejected_P = beta * chosen_ratio_P, beta * rejected_ratio_P
    if entry.smoothing != "refused":
        settings["label_smoothing"] = label_smoothing
    loss_P = entry.function(chosen_ratio_P, rejected_ratio_P, beta=beta, **settings)
    if sft_weight > 0:
        tokens_P = require_tokens("sft_weight", "chosen_tokens_P", chosen_tokens_P, chosen_P)
        loss_P = loss_P - sft_weight * (chosen_P / tokens_P)
    return DPOTerms(loss_P, reward_chosen_P.detach(), reward_rejected_P.detach())


def reward_accuracy(
    chosen_P: Tensor,
    rejected_P: Tensor,
    ref_chosen_P: Tensor | None = None,
    ref_rejected_P: Tensor | None = None,
) -> Tensor:
    """1.0 where the chosen response has the higher reward, else 0.0; float32 [P].

    A margin below the rounding error of the log-probabilities does not count as higher. Otherwise
    the accuracy of a policy that equals its reference would be near 0.5 by rounding errors, instead
    of 0.

    Args: the log-probabilities that `dpo` takes. Without those of a reference, the first two are
        the rewards themselves, as a reference-free loss has them.
    """
    references = (ref_chosen_P, ref_rejected_P)
    given = [value_P for value_P in (chosen_P, rejected_P, *references) if value_P is not None]
    logps = torch.stack(given).detach()
    margin_P = logps[0] - logps[1]
    if ref_chosen_P is not None:
        margin_P = (logps[0] - logps[2]) - (logps[1] - logps[3])
    return (margin_P > 4 * torch.finfo(logps.dtype).eps * logps.abs().sum(0)).float()


def wpo_weight(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """The weight of each pair under the policy of today, detached; at most 1.

    It makes pairs of another model's responses count as if they had been sampled from the policy.
    Zhou et al. 2024 (WPO, arXiv:2406.11827), Eq. 2, with sampled alignment: the probability of a
    token is divided by the one that a sample of the policy has on average.

    Args:
        chosen_P, rejected_P: log p(token) - log sum_v p(v)^2 of a response, averaged over its
            tokens; float32 or float64 [P] (`zephyr.model.logprobs.aligned_logprobs`).
    """
    return (chosen_P + rejected_P).detach().exp().clamp(max=1.0)


def find_loss(loss: str | Mapping[str, object]) -> Loss:
    """The entry of `LOSSES` for a value of the config key `loss`. Raises: as `read_loss`."""
    return LOSSES[read_loss(loss)[0]]


def read_loss(loss: str | Mapping[str, object]) -> tuple[str, dict[str, float]]:
    """Name and settings of a loss, as the config key `loss` has them; defaults filled in.

    Raises:
        ValueError: naming the key, for an unknown loss or setting, or a value out of range.
    """
    given = {"name": loss} if isinstance(loss, str) else dict(loss)
    if "name" not in given:
        raise ValueError(f"loss.name: missing; expected one of {', '.join(LOSSES)}")
    name = given.pop("name")
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    known = LOSSES[name].settings
    values = {key: setting.default for key, setting in known.items()}
    for key, value in given.items():
        if key not in known:
            settings = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise ValueError(f"loss.{key}: loss {name!r} has no such setting; {settings}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"loss.{key}: expected a number, got {value!r}")
        if not known[key].least <= value < math.inf:
            least = known[key].least
            raise ValueError(f"loss.{key}: expected a finite number >= {least:g}, got {value!r}")
        values[key] = float(value)
    return name, values


def require_settings(
    loss: str | Mapping[str, object],
    beta: float,
    label_smoothing: float,
    sft_weight: float | None = None,
) -> Loss:
    """The entry of `LOSSES` for `loss`.

    Raises:
        ValueError: naming the setting that `dpo` refuses.
    """
    name, _ = read_loss(loss)
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be > 0 and finite, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    if sft_weight is not None and not 0 <= sft_weight < math.inf:
        raise ValueError(f"sft_weight must be >= 0 and finite, or null, got {sft_weight}")
    entry = LOSSES[name]
    if entry.smoothing == "refused" and label_smoothing > 0:
        takers = [name for name, other in LOSSES.items() if other.smoothing != "refused"]
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but loss {name!r} does not take it: set it to "
            f"0, or use one of {', '.join(takers)}"
        )
    if entry.smoothing == "required" and label_smoothing == 0:
        raise ValueError(
            f"label_smoothing is 0, where loss {name!r} is infinite: it must be > 0, such as 1e-3"
        )
    return entry


def unusual_settings(loss: str | Mapping[str, object], beta: float) -> list[str]:
    """A sentence for each setting of a size that no published run of such a loss has.

    Losses of sums and losses of means over tokens need a beta, or a margin, of another size: a
    value that was meant for the other kind is found here.
    """
    name, settings = read_loss(loss)
    entry = LOSSES[name]
    kind = "means" if entry.length_averaged else "sums"
    usual = {"beta": entry.usual_beta}
    usual.update((f"loss.{key}", setting.usual) for key, setting in entry.settings.items())
    values = {"beta": beta, **{f"loss.{key}": value for key, value in settings.items()}}
    return [
        f"{key} is {values[key]:g}: loss {name!r} takes {kind} over the tokens of a response, for "
        f"which {low:g} to {high:g} is usual"
        for key, (low, high) in usual.items()
        if not low <= values[key] <= high
    ]


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


def require_tokens(what: str, name: str, tokens_P: Tensor | None, like_P: Tensor) -> Tensor:
    """`tokens_P` in the dtype of `like_P`.

    Raises:
        ValueError: naming the argument, if it is missing or its shape is not that of `like_P`.
    """
    if tokens_P is None:
        raise ValueError(f"{what} averages over tokens and needs {name}")
    if tokens_P.shape != like_P.shape:
        raise ValueError(
            f"{name} has shape {tuple(tokens_P.shape)}, expected {tuple(like_P.shape)}: one count "
            "per pair"
        )
    return tokens_P.to(like_P.dtype)
