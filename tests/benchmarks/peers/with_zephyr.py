"""Pairs become updates by the path of train_dpo.py: plan, collate, reference store, its objective,
the loop, the engine.

Settings: those of `zephyr.config.Hardware`. plain: the same packed forward by plain PyTorch in the
engine's place, to see what ZeRO-3 costs on one rank. profile: a file that the hottest operators of
the second step are written to."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from rounds import Rounds
from torch import Tensor, nn

import train_dpo
from zephyr.config import Data, DPOConfig, Hardware, Optim, Reference, Run, Wandb
from zephyr.data.store import Pairs, example_batch
from zephyr.model.load import digest
from zephyr.packing import PackedBatch, plan_epochs
from zephyr.training import loop
from zephyr.training.engine import Engine
from zephyr.training.loop import Split


class Plain:
    """One process and torch's AdamW, behind what a step asks of the engine."""

    rank, world_size, stop_requested = 0, 1, False

    def __init__(self, hardware: Hardware, _seed: int) -> None:
        self.hardware, self.device = (
            hardware,
            torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )
        self.all_gather, self.on_rank0 = lambda value: [value], lambda make: make()
        self.all_reduce, self.log = lambda totals: totals, lambda text: None
        self.update_and_weight_sq_norms, self.peak_memory_bytes = (
            lambda lr: torch.ones(2),
            lambda: 0,
        )

    def initialize(
        self, load: Callable[[], nn.Module], optim: Optim, *, micro_batches: int
    ) -> None:
        self.policy, self.grad_clip = load().to(self.device), optim.grad_clip
        self.train, self.num_layer_parameters = (
            self.policy.train,
            sum(p.numel() for p in self.policy.parameters()),
        )
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), betas=optim.adam_betas, eps=1e-8, weight_decay=0.0, fused=True
        )

    def __call__(self, batch: PackedBatch) -> Tensor:
        return self.policy(batch)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def tell(rounds: Rounds, profile: str | None) -> None:
    """Have the loop tell of each step where it looks at what came out of it."""
    look, profiler, steps = loop.require_finite, torch.profiler.profile(), 0

    def require_finite(
        engine: Engine, split: Split, step: int, sums: Mapping[str, float], *more: object
    ) -> None:
        nonlocal steps
        look(engine, split, step, sums, *more)
        steps += 1
        if profile and steps == 1:
            profiler.start()
        if profile and steps == 2:
            profiler.stop()
            table = profiler.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60
            )
            Path(profile).write_text("\n".join(line.rstrip() for line in table.splitlines()) + "\n")
        rounds.done(sums["loss"] / sums["units"], sums["grad_norm"])

    loop.require_finite = require_finite


def evaluate(engine: Engine, held_out: Split) -> dict[str, float]:
    """Means over the held-out pairs, by the loop's own evaluation."""
    record = loop.evaluate(engine, held_out, None, 0, 0.0)
    names = {
        "loss": "loss",
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
    }
    return {short: record[name] for short, name in names.items()}


def main() -> None:
    rounds = Rounds()
    task, settings = rounds.task, dict(rounds.task.settings)
    kind, profile = Plain if settings.pop("plain", False) else Engine, settings.pop("profile", None)
    never = 10**9
    config = DPOConfig(
        task.model,
        Data(train=()),
        beta=task.beta,
        hardware=Hardware(**settings),
        reference=Reference(f"{task.folder}/{kind.__name__}"),
        optim=Optim(
            lr_peak=task.lr,
            schedule=task.schedule,
            warmup_fraction=task.warmup_fraction,
            epochs=1,
            pairs_per_step=task.pairs_per_step,
            grad_clip=task.grad_clip,
        ),
        run=Run(
            f"{task.folder}/run-{os.getpid()}",
            log_every=never,
            eval_every=never,
            save_every=never,
            wandb=Wandb("disabled"),
        ),
    )
    pairs = Pairs(pa.Table.from_batches([example_batch(task.pairs())]))
    plan = plan_epochs(
        train_dpo.packed_tokens(pairs, config),
        per_step=task.pairs_per_step,
        epochs=1,
        ranks=1,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        shuffle=False,
    )
    Path(config.run.dir).mkdir()
    engine = kind(config.hardware, 0)
    train_dpo.initialize_policy(engine, config, plan)
    identity = {"model": digest(task.model)}
    training = train_dpo.with_objective(
        engine, config, train_dpo.split(engine, config, pairs, plan), pairs, identity
    )
    if task.held_out:
        held_out = Pairs(pa.Table.from_batches([example_batch(task.held_out_pairs())]))
        planned = train_dpo.split(engine, config, held_out, None)
        evaluation = train_dpo.with_objective(engine, config, planned, held_out, identity)
        rounds.evaluate = partial(evaluate, engine, evaluation)
    tell(rounds, profile)
    rounds.begin()
    loop.fit(engine, config, training, None)


if __name__ == "__main__":
    main()
