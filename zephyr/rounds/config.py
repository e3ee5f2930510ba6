"""The YAML file of `zephyr rounds` becomes one frozen, checked dataclass.

As in `zephyr.config`, the text below each field is its meaning; `python -m zephyr.rounds.config
zephyr/rounds/README.md` writes them into that file. This module imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zephyr.config import (
    ConfigError,
    DPOConfig,
    SFTConfig,
    build,
    check_limits,
    describe_keys,
    load,
    read_tree,
    table_row,
    write_tables,
)

# Keys of a training config that the rounds set themselves.
SET_KEYS = ("model", "data.train", "run.dir", "run.resume", "reference.model")


@dataclass(frozen=True)
class Prompts:
    sources: tuple[str, ...]
    """Sources of the prompts, each as `path-or-hub-id[[:subset]:split]`."""
    per_round: int | None = None
    """How many prompts a round takes; each round takes the next ones, and no prompt comes twice.
    null: every round takes all prompts."""


@dataclass(frozen=True)
class Sampling:
    samples: int = 4
    """Answers to each prompt."""
    temperature: float = 1.0
    """The temperature of sampling."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability; 1: from all."""
    max_new_tokens: int = 512
    """The most tokens of an answer."""
    batch: int = 64
    """Answers that one process samples at once; it decides the last digits of logits, so that it
    cannot change during a run."""


@dataclass(frozen=True)
class Server:
    command: str | None = None
    """The command that serves the policy over OpenAI's API, with `{model}` and `{port}` filled in;
    null: the policy answers in processes of this package."""
    name: str = "{model}"
    """The name by which the server knows the model; `{model}` stands for its path."""
    health: str = "/health"
    """The path that answers once the server is ready."""
    start_seconds: int = 1800
    """How long the server may take until it is ready."""
    request_seconds: int = 600
    """Time limit of one request."""
    concurrency: int = 64
    """Requests at a time."""


@dataclass(frozen=True)
class Scoring:
    scorer: str
    """Who scores the answers: a judge (`openai:MODEL@BASE_URL`, `hf:PATH`, `world:judge@FOLDER`),
    `rm:PATH` (a sequence classifier), `implicit:POLICY@REFERENCE`, or `policy`: the policy of the
    round is the judge."""
    judged_by: Literal["overall", "aspects"] = "overall"
    """What a judge is asked: one score of 1 to 10 an answer, or ratings of 1 to 5 in four aspects,
    whose mean is the score."""
    templates: str | None = None
    """A folder of templates that replace the judge's own; null: none."""
    max_tokens: int = 1024
    """The most tokens of a judge's reply."""
    concurrency: int = 16
    """Requests to an endpoint at a time, of the scorer or of `eval.judge`."""
    timeout_seconds: int = 120
    """Time limit in seconds of one request, to the scorer or to `eval.judge`."""
    tries: int = 7
    """Tries of a request that fails, to the scorer or to `eval.judge`."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key of the scorer's endpoint and of `eval.judge`'s; where
    it is not set, no key is sent."""
    budget_requests: int | None = None
    """Stop before more requests, of all rounds together, those of `eval.judge` included; null: no
    limit."""
    budget_tokens: int | None = None
    """Stop before more tokens of requests and replies, of all rounds together, those of
    `eval.judge` included; null: no limit."""


@dataclass(frozen=True)
class PairRule:
    choose: Literal["best_worst", "best_random", "margin", "random"] = "best_worst"
    """Which two answers of a prompt become a pair: the best and the worst, the best and a random
    other, the best and the best of those that score lower by `pairs.margin`, or, as a control, two
    at random, whatever they score."""
    margin: float = 0.0
    """The least difference of the scores of a pair; smaller ones are left out and counted."""
    use: Literal["round", "all"] = "round"
    """Train on the pairs of the round, or on those of all rounds so far."""


@dataclass(frozen=True)
class Train:
    config: str
    """The YAML file of train_dpo.py, or of train_sft.py where `method` is sft."""
    overrides: tuple[str, ...] = ()
    """Overrides of its keys, as `optim.epochs=1`; the rounds set `model`, `data.train`, `run.dir`,
    `run.resume` and `reference.model` themselves."""
    processes: int = 1
    """Processes that train, and that sample and score with models on this machine: one a GPU."""


@dataclass(frozen=True)
class Eval:
    prompts: tuple[str, ...] = ()
    """Sources of held-out prompts that the policy of every round answers greedily; an empty list:
    none."""
    judge: str | None = None
    """SPEC of a judge that compares these answers with those of the first policy, in both orders;
    null: no comparison."""
    max_new_tokens: int = 512
    """The most tokens of an answer."""


@dataclass(frozen=True)
class RoundsConfig:
    model: str
    """Path or hub id of the model that the first round starts from."""
    dir: str
    """The folder of all rounds: a folder a round, the ledger of scores, `rounds.jsonl` and
    `report.html`."""
    prompts: Prompts
    scoring: Scoring
    train: Train
    rounds: int = 3
    """How many rounds; a larger number continues a finished run."""
    method: Literal["dpo", "sft"] = "dpo"
    """`dpo` trains on pairs; `sft` on the best answer to each prompt (rejection sampling)."""
    reference: Literal["round", "first"] = "round"
    """The reference of DPO: the policy that the round starts from, or that of the first round."""
    seed: int = 42
    """Seed of sampling and of the choices among answers."""
    sampling: Sampling = field(default_factory=Sampling)
    server: Server = field(default_factory=Server)
    pairs: PairRule = field(default_factory=PairRule)
    eval: Eval = field(default_factory=Eval)


def load_rounds(path: str, overrides: Sequence[str] = ()) -> RoundsConfig:
    """The config in a YAML file, with `key.sub=value` overrides and $VARIABLES filled in.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    config = build(RoundsConfig, read_tree(path, overrides), "")
    check_limits(config)
    check_combinations(config)
    return config


def check_combinations(config: RoundsConfig) -> None:
    """Raises: ConfigError for values that don't go together."""
    rule, server = config.pairs, config.server
    if rule.choose == "margin" and not rule.margin > 0:
        raise ConfigError(f"pairs.margin: choose: margin needs a number > 0, got {rule.margin}")
    if rule.choose == "random" and rule.margin > 0:
        raise ConfigError("pairs.margin: choose: random does not look at scores; set it to 0")
    if config.method == "sft" and config.reference == "first":
        raise ConfigError("reference: method: sft has no reference; set it to round")
    if config.method == "sft" and (rule.choose, rule.margin) != ("best_worst", 0.0):
        raise ConfigError("pairs.choose: method: sft keeps the best answer; set it to best_worst")
    if server.command is not None and not all(
        place in server.command for place in ("{model}", "{port}")
    ):
        raise ConfigError(
            f"server.command: expected {{model}} and {{port}} in it, got {server.command!r}"
        )
    if config.eval.judge is not None and not config.eval.prompts:
        raise ConfigError("eval.judge: expected eval.prompts, which the policies answer")
    for override in config.train.overrides:
        key, equals, _ = override.partition("=")
        if not equals or key in SET_KEYS or any(of.startswith(f"{key}.") for of in SET_KEYS):
            raise ConfigError(
                f"train.overrides: expected key.sub=value of a key that the rounds do not set "
                f"themselves ({', '.join(SET_KEYS)}), got {override!r}"
            )


def load_training(config: RoundsConfig) -> DPOConfig | SFTConfig:
    """The config of a round's training, without what the rounds set.

    Raises:
        ConfigError: as `zephyr.config.load`; the message begins with train.config.
    """
    overrides = [f"model={config.model!r}", "data.train=[pairs.jsonl]", *config.train.overrides]
    try:
        if config.method == "sft":
            return load(SFTConfig, config.train.config, overrides)
        training = load(DPOConfig, config.train.config, ["reference.model=null", *overrides])
        check_loss(config, training)
    except ConfigError as error:
        raise ConfigError(f"train.config {config.train.config}: {error}") from None
    return training


def check_loss(config: RoundsConfig, training: DPOConfig) -> None:
    """Check the loss before answers are sampled and paid for, as train_dpo.py does when it starts.

    Raises: ConfigError for settings that it does not take, and for a fixed reference that it does
    not read.
    """
    from zephyr.losses import read_loss, require_settings

    try:
        loss = require_settings(
            training.loss, training.beta, training.label_smoothing, training.sft_weight
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if loss.reference_free and config.reference == "first":
        name, _ = read_loss(training.loss)
        raise ConfigError(f"loss {name} has no reference: expected reference: round, got first")


README_MARK = "<!-- keys: written by `python -m zephyr.rounds.config`; do not edit -->\n"


def keys_as_markdown() -> str:
    """A table of all keys."""
    rows = [
        table_row([f"`{key.name}`", key.type, f"`{key.default}`", key.meaning])
        for key in describe_keys(RoundsConfig)
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]), README_MARK, keys_as_markdown())
