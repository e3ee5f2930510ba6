"""Pairs become updates by TRL's DPOTrainer, with the reference's log-probs precomputed and nothing
logged while it is timed.

It is handed token ids, so that both sides see the same ones. Settings: micro, pairs of a
micro-batch; rebalance, the sampling strategy `batch_rebalance`; precision: float32, autocast
(bfloat16 over float32 weights) or bfloat16; gradient_checkpointing; reference_micro, pairs of a
micro-batch of the reference, and of held-out pairs.

With `batch_rebalance` the micro-batches of a step hold different numbers of pairs, and Trainer
averages their means: another loss. Here each mean is weighed by its pairs, in favour of that
setting, which would not count otherwise; and the rows lie so that its shuffle, which has no switch,
puts them in order."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from datasets import Dataset
from rounds import Rounds
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from zephyr.chat import EncodedPair


class Meter(TrainerCallback):
    """Tells of each step of the trainer's loop."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds, self.losses, self.norm = rounds, [], 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.rounds.begin()

    def on_step_end(self, *_: object, **__: object) -> None:
        losses, self.losses = self.losses, []
        self.rounds.done(torch.stack(losses).sum(), self.norm)

    def watch(self, trainer: DPOTrainer) -> None:
        """Keep what a step's parts return, still on the device, and weigh each micro-batch by its
        pairs."""
        task, step, clip, loss_of = (
            self.rounds.task,
            trainer.training_step,
            trainer._clip_grad_norm,
            trainer.compute_loss,
        )

        def training_step(*args: object) -> Tensor:
            self.losses.append(step(*args))
            return self.losses[-1]

        def clip_grad_norm(model: torch.nn.Module) -> Tensor:
            self.norm = clip(model)
            return self.norm

        def compute_loss(
            model: torch.nn.Module, inputs: dict[str, Tensor], **kwargs: object
        ) -> Tensor:
            return (
                loss_of(model, inputs, **kwargs)
                * len(inputs["input_ids"])
                / (2 * trainer.args.train_batch_size)
            )

        trainer.training_step, trainer._clip_grad_norm = training_step, clip_grad_norm
        if task.settings["rebalance"]:
            trainer.compute_loss = compute_loss


def dataset(pairs: Sequence[EncodedPair]) -> Dataset:
    """Rows of token ids, with the length that the rebalancing looks at."""
    lengths = [
        len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs
    ]
    return Dataset.from_list(
        [{**pair._asdict(), "length": length} for pair, length in zip(pairs, lengths)]
    )


def evaluate(trainer: DPOTrainer) -> dict[str, float]:
    """Means over the held-out pairs, by the trainer's own evaluation, which averages micro-batches:
    exact where all are of one size."""
    found = trainer.evaluate()
    names = {
        "loss": "eval_loss",
        "accuracy": "eval_rewards/accuracies",
        "margin": "eval_rewards/margins",
    }
    return {short: found[name] for short, name in names.items()}


def main() -> None:
    rounds = Rounds()
    task, settings = rounds.task, rounds.task.settings
    pairs = task.pairs()
    rows = dataset(pairs)
    DPOTrainer._prepare_dataset = lambda self, dataset, *_: dataset  # the rows are tokenised
    if settings["rebalance"]:
        rows = rows.select(
            torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).argsort()
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"pad": 0}, "pad")),
        pad_token="pad",
        eos_token="pad",
    )
    args = DPOConfig(
        output_dir=f"{task.folder}/trl",
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=settings.get("reference_micro", 1),
        per_device_eval_batch_size=settings.get("reference_micro", 1),
        max_length=None,
        beta=task.beta,
        per_device_train_batch_size=settings["micro"],
        gradient_accumulation_steps=task.pairs_per_step // settings["micro"],
        num_train_epochs=1,
        learning_rate=task.lr,
        lr_scheduler_type="constant_with_warmup" if task.schedule == "constant" else task.schedule,
        warmup_steps=math.ceil(task.warmup_fraction * task.steps()),
        max_grad_norm=task.grad_clip,
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        train_sampling_strategy="batch_rebalance" if settings["rebalance"] else "sequential",
        remove_unused_columns=False,
        gradient_checkpointing=settings.get("gradient_checkpointing", False),
        bf16=settings["precision"] == "autocast",
        model_init_kwargs={
            "dtype": "bfloat16" if settings["precision"] == "bfloat16" else "float32",
            "attn_implementation": "sdpa",
        },
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not task.gpu,
        dataloader_pin_memory=task.gpu,
    )
    meter = Meter(rounds)
    trainer = DPOTrainer(
        model=task.model,
        args=args,
        train_dataset=rows,
        eval_dataset=dataset(task.held_out_pairs()) if task.held_out else None,
        processing_class=tokenizer,
        callbacks=[meter],
    )
    meter.watch(trainer)
    rounds.evaluate = partial(evaluate, trainer)
    trainer.train()


if __name__ == "__main__":
    main()
