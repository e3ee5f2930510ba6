"""Fixed prompts are answered by the policy while it trains: rows of samples.jsonl, lines to look
at, and a win rate over its start."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from zephyr.config import BadInput, DPOConfig, SFTConfig
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.compare import summarise
from zephyr.evaluation.win_rate import judge_pairs, judge_panel
from zephyr.model.generate import encode_within_limit, generate_from_ids
from zephyr.model.load import local_folder, read_config
from zephyr.teacher import Budget, Ledger, Teacher, ask
from zephyr.teacher.prompts import Row, format_prompt, read_prompts, turns_of
from zephyr.teacher.spec import open_teacher
from zephyr.training.engine import Engine
from zephyr.training.loop import Sample


def make_sampler(
    engine: Engine, config: DPOConfig | SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> Sample | None:
    """What answers `samples.prompts` greedily after some updates, all ranks together, and changes
    nothing else; None without prompts.

    Raises: BadInput for prompts that can't be read or are too long for the model, or a judge that
    is no SPEC."""
    if not config.samples.prompts:
        return None
    unread: Counter[str] = Counter()
    prompts = engine.local_rank0_first(lambda: list(read_prompts(config.samples.prompts, unread)))
    if unread:
        engine.log(
            f"samples.prompts: keys not read: {', '.join(f'{key!s:.80} ({rows:,} rows)' for key, rows in sorted(unread.items()))}"
        )
    judge = (
        engine.on_all_ranks(lambda: open_teacher(config.samples.judge))
        if config.samples.judge
        else None
    )
    limit, path = config.samples.max_new_tokens, Path(config.run.dir) / "samples.jsonl"
    encoded = engine.on_all_ranks(
        lambda: encode(read_config(local_folder(config.model)), tokenizer, prompts, limit)
    )

    def sample(step: int) -> Row:
        texts = generate_answers(engine, tokenizer, encoded, limit)
        rows = [
            {"step": step, "prompt_id": row["prompt_id"], "prompt": row["prompt"], "text": text}
            for row, text in zip(prompts, texts)
        ]
        start = engine.on_rank0(
            lambda: write_samples(path, rows, table=config.run.wandb.mode != "disabled")
        )
        for row in rows[:4]:
            engine.log(f"step {step} sample: {format_prompt(row)!r:.300} -> {row['text']!r:.300}")
        return (
            win_rate_over_start(
                engine,
                judge,
                path,
                prompts,
                texts,
                [start.get(row["prompt_id"]) for row in prompts],
            )
            if judge and step
            else {}
        )

    return sample


def encode(
    model: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Row],
    max_new_tokens: int,
) -> list[list[int]]:
    """The prompts' ids. Raises: BadInput for one that is too long for the model, or that the
    template refuses."""
    ids = []
    for row in prompts:
        try:
            ids.append(
                encode_within_limit(model, tokenizer, turns_of(row["prompt"]), max_new_tokens)
            )
        except ValueError as error:
            raise BadInput(f"samples.prompts: {row['prompt_id']}: {error}") from None
    return ids


def generate_answers(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[str]:
    """The policy's answers. Every rank has a share of one size: none gathers weights without the
    others."""
    count = -(-len(encoded) // engine.world_size)
    share = [
        i % len(encoded) for i in range(engine.rank, count * engine.world_size, engine.world_size)
    ]
    said = generate_from_ids(
        engine.policy.lm,
        tokenizer,
        [encoded[i] for i in share],
        [max_new_tokens] * count,
        [0] * count,
        synced_gpus=engine.world_size > 1,
    )
    texts = {
        i: text
        for rank in engine.all_gather([(i, answer.text) for i, answer in zip(share, said)])
        for i, text in rank
    }
    return [texts[i] for i in range(len(encoded))]


def write_samples(path: Path, rows: Sequence[Row], table: bool) -> dict[str, str]:
    """Add a step's rows to the file in the place of those of it and after, and to wandb; returns
    the answers of step 0 by prompt id."""
    step = rows[0]["step"]
    kept = (
        [row for _, row in read_rows([path]) if row["step"] < step]
        if step and path.exists()
        else []
    )
    write_rows(path, [*kept, *rows])
    if table:
        import wandb

        data = [[step, row["prompt_id"], format_prompt(row), row["text"]] for row in rows]
        wandb.run.log(
            {
                "eval/samples": wandb.Table(
                    columns=["step", "prompt_id", "prompt", "text"], data=data
                )
            },
            step=step,
        )
    return {row["prompt_id"]: row["text"] for row in (*kept, *rows) if row["step"] == 0}


def win_rate_over_start(
    engine: Engine,
    judge: Teacher,
    path: Path,
    prompts: Sequence[Row],
    texts: Sequence[str],
    start: Sequence[str | None],
) -> Row:
    """How often the answers beat those of step 0, judged in both orders. What goes wrong here is
    said, and ends no training."""
    why, found, budget = (
        f"no prompt has an answer of step 0 in {path} and a verdict",
        {"n": 0},
        Budget(),
    )
    try:
        with Ledger(path.with_suffix(".ledger.jsonl")) as ledger:
            panel = judge_panel(
                judge, lambda teacher, requests: ask(teacher, requests, ledger, budget)
            )
            found = summarise(judge_pairs(panel, prompts, texts, start)[0], [None] * len(prompts))
    except BadInput as error:
        why = str(error)
    if not found["n"]:
        engine.log(f"samples.judge: there is no win rate: {why}")
        return {}
    return {
        "win_rate": found["win_rate"],
        "win_rate/n": found["n"],
        "win_rate/low": found["ci95"][0],
        "win_rate/high": found["ci95"][1],
        "win_rate/unparsed": found["unparsed"],
    }
