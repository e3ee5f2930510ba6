"""What the scripts hand to the loss: every setting and every vector of a batch in its place,
without a process started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import oracle
import pytest
import torch
import yaml
from closed_forms import CLOSED_FORMS, closed_form
from torch import Tensor

import train_dpo
import train_sft
from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import ConfigError, Data, DPOConfig, load
from zephyr.losses import LOSSES, read_loss
from zephyr.model.load import Policy, load_policy
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import PackedBatch, collate_pairs, collate_texts
from zephyr.reference import Reference

# lengths of chosen and rejected apart in every pair, so that counts in each other's place show
PAIRS = [
    EncodedPair("a", [1, 5, 6], [7, 2], [8, 9, 10, 11, 2], weight=0.25),
    EncodedPair("b", [1, 12], [13, 14, 15, 2], [16, 2]),
    EncodedPair("c", [1, 17, 18, 19], [20, 21, 22], [23], weight=3.0),
]
BETA, SMOOTHING = 0.4, 0.2
SMOOTHED = {name for name, entry in LOSSES.items() if entry.smoothing != "refused"}


@pytest.fixture(scope="module")
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


def config_for(loss: str, **changed: object) -> DPOConfig:
    form = CLOSED_FORMS.get(loss)
    return DPOConfig(
        "model",
        Data(("rows",)),
        beta=BETA,
        loss={"name": loss, **form.settings} if form and form.settings else loss,
        label_smoothing=SMOOTHING if loss in SMOOTHED else 0.0,
        **changed,
    )


def objective_of(
    loss: str,
    reference_of_all: Tensor,
    policy: Policy,
    indices: Sequence[int],
    **changed: object,
) -> tuple[Tensor, dict[str, Tensor]]:
    batch = collate_pairs(PAIRS, indices)
    reference = None if LOSSES[loss].reference_free else Reference(reference_of_all)
    objective = train_dpo.dpo_objective(config_for(loss, **changed), reference)
    loss_sum, stats = objective(policy, batch)
    return loss_sum, dict(stats)


@pytest.mark.parametrize("changed", [{}, {"weighting": "wpo", "sft_weight": 0.5}], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_setting_reaches_the_loss(
    loss: str, changed: dict[str, object], policy: Policy
) -> None:
    """Loss, its gradient and every statistic of pairs 2 and 0, for a reference apart from the
    policy. Fails where the config's loss, beta, smoothing, SFT term or weighting is ignored, chosen
    and rejected change places (policy, reference or token counts), a pair is given another's
    reference or weight, or WPO's weights carry a gradient."""
    closed_form(loss)
    reference_of_all = torch.tensor([[-9.0, -20.0], [-31.0, -12.0], [-25.0, -7.0]])
    indices = [2, 0]
    chosen_P, rejected_P = response_logprobs(
        policy, collate_pairs(PAIRS, indices, prefix_sharing=False)
    )
    pairs = [PAIRS[i] for i in indices]
    config = config_for(loss, **changed)
    wanted_P, *rewards = oracle.pair_terms(
        asdict(config), (chosen_P, rejected_P), reference_of_all[indices].unbind(-1), pairs
    )
    weight_P = torch.tensor([3.0, 0.25])
    wanted = {"weight": weight_P}
    if changed:
        both = [
            oracle.conversation(pair, side) for side in ("chosen", "rejected") for pair in pairs
        ]
        wanted["wpo_weight"] = oracle.wpo_weights(policy.lm, both)
        wanted_P = wanted["wpo_weight"] * wanted_P
    loss_sum, stats = objective_of(loss, reference_of_all, policy, indices, **changed)
    wanted |= {
        "loss": wanted_P,
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": rewards[0] - rewards[1],
        "rewards/accuracies": (rewards[0] > rewards[1]).float(),
        "logps/chosen": chosen_P,
        "logps/rejected": rejected_P,
    }
    assert set(stats) == set(wanted) and not any(value.requires_grad for value in stats.values())
    for name, value_P in wanted.items():
        torch.testing.assert_close(stats[name], value_P.detach(), rtol=1e-4, atol=1e-4, msg=name)
    wanted_sum = (weight_P * wanted_P).sum()
    torch.testing.assert_close(loss_sum, wanted_sum, rtol=1e-4, atol=1e-4)
    ours, theirs = (
        torch.autograd.grad(total, list(policy.parameters()), retain_graph=True)
        for total in (loss_sum, wanted_sum)
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_own_settings_through_a_config(loss: str, tiny: Path, tmp_path: Path) -> None:
    """A config sets each of the loss's own settings, and refuses those of other losses. Fails where
    a setting is lost on the way, or where a loss's setting needs a key of the config."""
    path, hardware = tmp_path / "c.yaml", {"attention": "sdpa", "dtype": "float32"}
    tree = {"model": str(tiny), "data": {"train": ["d.jsonl"]}, "hardware": hardware}
    if LOSSES[loss].smoothing == "required":
        tree["label_smoothing"] = 0.1
    path.write_text(yaml.safe_dump(tree))
    own = {key: setting.default + 0.5 for key, setting in LOSSES[loss].settings.items()}
    written = ", ".join(f"{key}: {value}" for key, value in {"name": loss, **own}.items())
    config = load(DPOConfig, str(path), [f"loss={{{written}}}"])
    train_dpo.check(config)
    assert read_loss(config.loss) == (loss, own)
    with pytest.raises(ConfigError, match=rf"^loss\.wrong: loss '{loss}' has no such setting"):
        train_dpo.check(load(DPOConfig, str(path), [f"loss={{{written}, wrong: 1}}"]))


def test_the_losses_above_differ(policy: Policy) -> None:
    """Fails where two losses of the test above have the same value: `config.loss` could then be
    ignored and that test would pass."""
    reference_of_all = torch.tensor([[-9.0, -20.0], [-31.0, -12.0], [-25.0, -7.0]])
    values = [
        round(objective_of(loss, reference_of_all, policy, [2, 0])[0].item(), 2)
        for loss in CLOSED_FORMS
    ]
    assert len(set(values)) == len(CLOSED_FORMS), values


def test_a_micro_batch_without_pairs_adds_nothing(policy: Policy) -> None:
    """A rank with nothing to do runs forward and backward with the others. Fails where an empty
    micro-batch has a loss or gradient."""
    for loss in ("sigmoid", "simpo", "orpo"):
        for weighting in ("none", "wpo"):
            loss_sum, stats = objective_of(
                loss, torch.zeros(3, 2), policy, [], weighting=weighting, sft_weight=1.0
            )
            gradients = torch.autograd.grad(loss_sum, list(policy.parameters()), allow_unused=True)
            assert loss_sum == 0 and all(len(value) == 0 for value in stats.values())
            assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_pairs_that_differ_in_the_first_token_alone_get_a_gradient(policy: Policy) -> None:
    """Answers of one token, and answers equal but for their first: that token is predicted by the
    prompt's last hidden state. Fails where scoring starts at an answer's second token, as systems
    do that shift by one within the answer."""
    pairs = [EncodedPair("a", [1, 5], [7], [8]), EncodedPair("b", [1, 6], [7, 9, 2], [8, 9, 2])]
    for i in range(2):
        for prefix_sharing in (True, False):
            batch = collate_pairs(pairs, [i], prefix_sharing=prefix_sharing)
            chosen_P, rejected_P = response_logprobs(policy, batch)
            loss_sum, _ = train_dpo.dpo_objective(
                config_for("sigmoid"), Reference(torch.zeros(2, 2))
            )(policy, batch)
            (gradient,) = torch.autograd.grad(loss_sum, policy.lm.get_output_embeddings().weight)
            assert gradient[7].norm() > 1e-3 and gradient[8].norm() > 1e-3
            if i == 0:  # one context: all but the answers' own rows cancel
                assert (chosen_P - rejected_P).abs() > 1e-3
                torch.testing.assert_close(gradient[7], -gradient[8], rtol=1e-4, atol=1e-5)


def test_sft_objective_is_the_sum_over_targets(policy: Policy) -> None:
    """Fails where a mean is taken before the loop divides, or the sign is turned."""
    texts = [
        EncodedText("a", [1, 5, 6, 2], [False, False, True, True]),
        EncodedText("b", [1, 7, 2], [False, True, True]),
    ]
    logits = partial(policy.lm, use_cache=False)
    wanted = torch.zeros(())
    for text in texts:
        logp = logits(input_ids=torch.tensor([text.ids])).logits[0].log_softmax(-1)
        wanted = wanted - sum(
            logp[i - 1, text.ids[i]] for i, flag in enumerate(text.is_target) if flag
        )
    batch: PackedBatch = collate_texts(texts, [1, 0])
    loss_sum, stats = train_sft.objective(policy, batch)
    torch.testing.assert_close(loss_sum, wanted, rtol=1e-4, atol=1e-4)
    assert stats == {} and batch.units == 4
