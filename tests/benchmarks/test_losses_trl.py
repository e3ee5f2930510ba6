"""Each loss that TRL has, against TRL's own code on the same log-probs of tokens.

It runs where TRL is installed: in `.venv-bench` (README.md of this folder). TRL 1.16 differs by
definition, and the comparisons say so where they allow for it:
  - WPO: TRL does not limit a pair's weight to 1.
  - SFT term: TRL's `sft` averages over the chosen tokens of a micro-batch, ours over those of each
    pair, so that a pair's loss does not depend on its neighbours. Of one pair they are equal. The
    trainers of ORPO and CPO average over a micro-batch too, by labels of their own, so that only
    their other term is compared.
  - conservative DPO (label_smoothing with `sigmoid`) is no longer in TRL's DPO trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zephyr.losses import LOSSES, dpo, wpo_weight

trl = pytest.importorskip("trl", reason="TRL is not installed here: make .venv-bench/.installed")

TOLERANCE = 5e-7  # relative, of float32; the largest difference measured was 1e-7
BETA = 0.3
SMOOTHING = 0.1
LENGTHS = [(7, 3), (1, 12), (5, 5), (20, 9)]  # tokens of the responses
OF_DPO_TRAINER = [
    *("sigmoid", "robust", "ipo", "sigmoid_norm", "hinge", "exo_pair", "nca_pair", "sppo_hard"),
    *("apo_zero", "apo_down"),
]
SMOOTHED = ("robust", "exo_pair")


def token_logps(seed: int) -> list[tuple[Tensor, Tensor]]:
    """log p of the tokens of both responses of each pair."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(-3 * torch.rand(count, generator=generator) for count in counts) for counts in LENGTHS
    ]


POLICY, REFERENCE, COLLISION = token_logps(0), token_logps(1), token_logps(2)


def ours(name: str, **options: object) -> Tensor:
    """The losses of all pairs."""
    logps = [torch.stack([of_pair[side].sum() for of_pair in POLICY]) for side in (0, 1)]
    reference = [torch.stack([of_pair[side].sum() for of_pair in REFERENCE]) for side in (0, 1)]
    counts_P2 = torch.tensor(LENGTHS)
    settings = {"beta": BETA, "sft_weight": 0.0, "loss": name, **options}
    return dpo(
        *logps,
        *([] if LOSSES[name].reference_free else reference),
        chosen_tokens_P=counts_P2[:, 0],
        rejected_tokens_P=counts_P2[:, 1],
        **settings,
    ).loss_P


def padded(values: Sequence[Tensor]) -> Tensor:
    """A row for each of the vectors, with zeros behind the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def trl_dpo(loss_types: list[str], weights: list[float], smoothing: float, wpo: bool) -> Tensor:
    """What TRL's DPO trainer makes of each pair, alone in its batch: after one prompt token, the
    responses and padding."""
    losses = []
    for policy, reference, collision, counts in zip(POLICY, REFERENCE, COLLISION, LENGTHS):
        longest = max(counts)
        mask = padded([torch.ones(count) for count in counts]).long()
        zeros = torch.zeros_like(padded(policy))
        outputs = SimpleNamespace(
            log_probs=padded(policy),
            log_sum_sq_probs=padded(collision),
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )
        inputs = {
            "input_ids": torch.ones(2, longest + 1, dtype=torch.long),
            "attention_mask": torch.ones(2, longest + 1, dtype=torch.long),
            "completion_mask": torch.cat([torch.zeros(2, 1, dtype=torch.long), mask], dim=1),
            "ref_chosen_logps": reference[0].sum()[None],
            "ref_rejected_logps": reference[1].sum()[None],
        }
        accelerator = SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
        )
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=accelerator,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=loss_types,
            loss_weights=weights,
            label_smoothing=smoothing,
            use_weighting=wpo,
            beta=BETA,
            _metrics={"train": _Lists()},
            _total_train_tokens=0,
            _tp_size=1,
        )
        losses.append(
            trl.DPOTrainer._compute_loss(
                trainer, lambda outputs=outputs, **_: outputs, inputs, False
            )
        )
    return torch.stack(losses)


class _Lists(dict):
    """TRL's metrics: a list of each name."""

    def __missing__(self, name: str) -> list[float]:
        self[name] = []
        return self[name]


def require_equal(mine_P: Tensor, theirs_P: Tensor) -> None:
    difference = ((mine_P - theirs_P).abs() / theirs_P.abs().clamp(min=1)).max()
    print(f"largest relative difference: {difference:.1e}")
    assert difference <= TOLERANCE and mine_P.std() > 1e-3


@pytest.mark.parametrize("name", OF_DPO_TRAINER)
def test_losses_of_the_dpo_trainer(name: str) -> None:
    """Fails where a sign, beta, a mean in place of a sum, or label smoothing differs."""
    smoothing = SMOOTHING if name in SMOOTHED else 0.0
    require_equal(ours(name, label_smoothing=smoothing), trl_dpo([name], [1.0], smoothing, False))


def test_the_sft_term() -> None:
    """Fails where the term is a sum over tokens, or the weight is of the other loss."""
    require_equal(ours("sigmoid", sft_weight=0.7), trl_dpo(["sigmoid", "sft"], [1, 0.7], 0, False))


def test_wpo() -> None:
    """With the SFT term, which is weighted too; where TRL's weight is below 1, which is where it
    limits nothing."""
    aligned = [
        torch.stack([(p[side] - q[side]).mean() for p, q in zip(POLICY, COLLISION)])
        for side in (0, 1)
    ]
    plain_P, theirs_P = aligned[0] + aligned[1], trl_dpo(["sigmoid", "sft"], [1, 0.7], 0, True)
    mine_P = wpo_weight(*aligned) * ours("sigmoid", sft_weight=0.7)
    below_1_P = plain_P < 0
    assert 2 <= below_1_P.sum() < len(plain_P), "pairs on both sides of the limit"
    require_equal(mine_P[below_1_P], theirs_P[below_1_P])
    require_equal(mine_P[~below_1_P], theirs_P[~below_1_P] / plain_P[~below_1_P].exp())


@pytest.mark.parametrize("name", ["cpo", "simpo"])
def test_losses_of_the_cpo_trainer(name: str) -> None:
    """Fails where gamma is taken for its ratio to beta, or SimPO takes sums."""
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        alpha=0.0,
        beta=BETA,
        label_smoothing=SMOOTHING if name == "cpo" else 0.0,
        loss_type={"cpo": "sigmoid"}.get(name, name),
        simpo_gamma=0.6,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    logps = [
        torch.stack([of[side].mean() if name == "simpo" else of[side].sum() for of in POLICY])
        for side in (0, 1)
    ]
    theirs_P, *_ = CPOTrainer.cpo_loss(trainer, *logps)
    options = {"loss": {"name": "simpo", "gamma": 0.6}} if name == "simpo" else {}
    require_equal(ours(name, label_smoothing=trainer.label_smoothing, **options), theirs_P)


def test_the_odds_ratio_of_orpo() -> None:
    """Fails where the odds are of sums over tokens, or lose digits near 1."""
    from trl.experimental.orpo import ORPOTrainer

    trainer = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device=torch.device("cpu")))
    logps = [torch.stack([of[side].mean() for of in POLICY]) for side in (0, 1)]
    require_equal(ours("orpo"), -ORPOTrainer.odds_ratio_loss(trainer, *logps)[0])
