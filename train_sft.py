"""Distilled supervised fine-tuning (dSFT), the first step of Zephyr (arXiv:2310.16944, Section 3).

    torchrun --nproc_per_node=8 train_sft.py configs/zephyr-7b-beta/sft.yaml [key.sub=value ...] [--dry-run]
    python train_sft.py CONFIG.yaml                                      one process

Dialogues are packed into windows, none seeing another; the loss is the mean of -log pi(token | what is before it in its
dialogue) over the target tokens of a step: the assistant's words and the EOS that ends each of its turns. Plain `text`
rows are all target: the same script trains a base model.
"""
import sys
from functools import partial

from torch import Tensor

from zephyr.chat import load_tokenizer
from zephyr.config import SFTConfig
from zephyr.data.encode import Texts, format_report, load_texts
from zephyr.packing import PackedBatch, Plan, collate_texts, plan_epochs, plan_pass
from zephyr.training.engine import Engine
from zephyr.training.launch import encoding_resources, launch
from zephyr.training.loop import Split, Stats, fit
from zephyr.training.planner import describe, require_budget, text_flops
from zephyr.training.publish import publish, require_vocabulary, save_report


def train(engine: Engine, config: SFTConfig, dry_run: bool) -> None:
    # Dialogues as token ids with targets, and the plan: which make which step, on which rank, in which micro-batch.
    tokenizer = engine.rank0_first(lambda: load_tokenizer(config.tokenizer or config.model, config.chat_template))
    require_vocabulary(tokenizer, config)
    encode = partial(load_texts, tokenizer=tokenizer, max_tokens=config.data.max_tokens, targets=config.data.targets,
                     limit=config.data.limit, on_bad_row=config.data.on_bad_row, **encoding_resources())
    encoded: dict[str, Texts] = {}
    for name, sources in {"train": config.data.train, "eval": config.data.eval}.items():
        if sources:
            encoded[name], report = engine.rank0_first(partial(encode, sources))
            engine.say(format_report(report))
            require_budget(encoded[name].tokens.tolist(), encoded[name].ids, config.hardware.tokens_per_micro_batch)
            if not dry_run:
                save_report(engine, config, name, report)
    plan = plan_epochs(encoded["train"].tokens.tolist(), per_step=config.optim.windows_per_step,
                       epochs=config.optim.epochs, ranks=engine.world,
                       budget_tokens=config.hardware.tokens_per_micro_batch, seed=config.run.seed,
                       shuffle=config.data.shuffle, window_tokens=config.data.max_tokens)
    engine.say(describe(plan, engine.world))
    if dry_run:
        return

    engine.load(config.model, config.optim)
    training = split(engine, config, encoded["train"], plan)
    evaluation = split(engine, config, encoded["eval"], None) if "eval" in encoded else None
    fit(engine, config, training, evaluation)
    publish(engine, config, tokenizer)


def split(engine: Engine, config: SFTConfig, texts: Texts, plan: Plan | None) -> Split:
    """Texts with their plan (None: one pass over all) and the objective."""
    tokens, targets = texts.tokens.tolist(), texts.target_tokens.tolist()
    plan = plan or plan_pass(tokens, ranks=engine.world, budget_tokens=config.hardware.tokens_per_micro_batch)
    flops = [text_flops(engine.policy.lm.config, engine.layer_parameters, *of_text) for of_text in zip(tokens, targets)]
    return Split(plan, partial(collate_texts, texts), objective, texts.ids, tokens, targets, "target_tokens", flops)


def objective(policy: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
    """A micro-batch's negative log-likelihood, summed over its target tokens (the loop divides by those of all ranks)."""
    return -policy(batch).sum(), {}


if __name__ == "__main__":
    sys.exit(launch(SFTConfig, train, __doc__, sys.argv[1:]))
