"""What a checkpoint is compared by: everything that decides the rest of a run, and nothing of the
machine it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import pytest

from zephyr.config import Adapter, Data, DPOConfig, SFTConfig, SFTData, keys
from zephyr.packing import Plan, plan_epochs
from zephyr.training.checkpoint import identity

# Keys whose effect is in the digests of rows, weights, reference or plan instead, or that have
# none.
ELSEWHERE = (
    "model",
    "tokenizer",
    "chat_template",
    "eos_token",
    "data.",
    "reference.",
    "hardware.",
    "samples.",
    "run.",
    "published",
)
DECIDES = {"run.seed", "data.shuffle", "hardware.dtype"}  # of these groups, they alone
DPO = DPOConfig("m", Data(("rows",)), adapter=Adapter())
SFT = SFTConfig("m", SFTData(("rows",)), adapter=Adapter())
KEYS = [(kind, key) for kind in (DPO, SFT) for key in keys(type(kind), "") if key != "adapter"]
MORE = {"model": "of the weights", "data": "of the ids", "reference": "of the log-probs"}
OTHERS: dict[type, object] = {
    str: "another",
    int: 7,
    float: 0.25,
    bool: False,
    tuple: (0.5, 0.25),
    type(None): "some",
}


def plan(
    lengths: tuple[int, ...] = (5, 3, 4, 6), ranks: int = 1, budget_tokens: int = 8, seed: int = 0
) -> Plan:
    return plan_epochs(
        lengths, per_step=2, epochs=2, ranks=ranks, budget_tokens=budget_tokens, seed=seed
    )


def changed(config: object, key: str) -> object:
    """The config with another value of one key."""
    first, _, rest = key.partition(".")
    value = getattr(config, first)
    if is_dataclass(value):
        return replace(config, **{first: changed(value, rest)})
    other = "hinge" if key == "loss" else OTHERS[type(value)]
    return replace(config, **{first: other if other != value else not value})


@pytest.mark.parametrize(
    "config,key", KEYS, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_each_key_is_in_it_or_decided_elsewhere(config: DPOConfig | SFTConfig, key: str) -> None:
    """Every key of the config, changed: the identity changes with those that decide losses and
    updates. Fails where a run would go on under another loss, beta, rate or decay in silence, where
    another machine is refused, or for a new key of neither kind."""
    before, after = (identity(of, plan(), MORE) for of in (config, changed(config, key)))
    decides = key in DECIDES or not key.startswith(ELSEWHERE)
    assert (before != after) == decides
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert differing == ({key} if decides else set()), "the error names the key"


@pytest.mark.parametrize("config", [DPO, SFT], ids=lambda value: type(value).__name__)
def test_a_run_with_adapters_is_another(config: DPOConfig | SFTConfig) -> None:
    """Fails where a run of all weights would go on as one of adapters, or the other way round."""
    before, after = (identity(of, plan(), MORE) for of in (config, replace(config, adapter=None)))
    assert {*before} - {*after} == {f"adapter.{of.name}" for of in fields(Adapter)}


def test_a_setting_of_a_loss_is_in_it_written_or_not() -> None:
    """Fails where a run goes on under another gamma, or not under the default that it writes."""
    written = {"name": "simpo", "gamma": 1.0}
    of = [
        identity(replace(DPO, loss=loss), plan(), MORE)
        for loss in ("simpo", {"name": "simpo"}, written, {**written, "gamma": 0.5})
    ]
    assert of[0] == of[1] == of[2] != of[3] and of[0]["loss"] == written


def test_it_holds_digests_and_the_plans_steps_whatever_the_machine() -> None:
    """Fails where other rows, weights, references, or another order of pairs are gone on with; or
    where a run may not go on on other ranks or with another budget, which change no step."""

    def of(more: Mapping[str, str] = MORE, **options: object) -> Mapping[str, object]:
        return identity(DPO, plan(**options), more)

    assert of() == of(ranks=2) == of(budget_tokens=20)
    assert of() != of(seed=1) and of()["plan"] != of(seed=1)["plan"]
    assert all(of({**MORE, name: "other"}) != of() for name in MORE)


def test_every_field_of_the_config_can_be_changed() -> None:
    """A group that `changed` passed over would never be compared."""
    assert {key.split(".")[0] for config, key in KEYS if config is DPO} == {
        field.name for field in fields(DPO)
    }
    assert all(changed(config, key) != config for config, key in KEYS)
