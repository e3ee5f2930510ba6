"""The policy answers fixed prompts while it trains: rows of samples.jsonl, log lines, and a win
rate over its start."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from zephyr.config import BadInput, DPOConfig, SFTConfig
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.answers import prompt_id
from zephyr.evaluation.compare import summarise
from zephyr.evaluation.win_rate import judge_pairs, judge_panel
from zephyr.model.generate import encode_within_limit, generate_from_ids
from zephyr.model.load import local_folder, read_config
from zephyr.teacher import Budget, Ledger, Teacher, ask
from zephyr.teacher.prompts import Row, format_prompt, read_prompts, turns_of
from zephyr.teacher.spec import open_teacher
from zephyr.training.curves import Table, log_table
from zephyr.training.engine import Engine
from zephyr.training.loop import Sample


def make_sampler(
    engine: Engine, config: DPOConfig | SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> Sample | None:
    """A function that lets the policy answer `samples.prompts` greedily after a step, on all ranks
    together, and changes nothing else; None without prompts.

    Raises: BadInput for prompts that can't be read or are too long for the model, or a judge that
    is no SPEC."""
    if not config.samples.prompts:
        return None
    prompts = read_sample_prompts(engine, config.samples.prompts)
    spec = config.samples.judge
    judge = engine.on_all_ranks(lambda: open_teacher(spec)) if spec else None
    limit = config.samples.max_new_tokens
    path = Path(config.run.dir) / "samples.jsonl"
    folder = partial(local_folder, config.model, weights=False)
    encoded = engine.on_all_ranks(lambda: encode(read_config(folder()), tokenizer, prompts, limit))

    def sample(step: int) -> dict[str, float | int | str]:
        texts = generate_answers(engine, tokenizer, encoded, limit)
        rows = [
            {"step": step, "prompt_id": row["prompt_id"], "prompt": row["prompt"], "text": text}
            for row, text in zip(prompts, texts)
        ]
        with_table = config.run.wandb.mode != "disabled"
        start = engine.on_rank0(lambda: write_samples(path, rows, table=with_table))
        for row, text in list(zip(prompts, texts))[:4]:
            engine.log(f"step {step} sample: {format_prompt(row)!r:.300} -> {text!r:.300}")
        if judge is None or step == 0:
            return {}
        before = [start.get(prompt_id(row)) for row in prompts]
        return win_rate_over_start(engine, judge, path, prompts, texts, before)

    return sample


def read_sample_prompts(engine: Engine, sources: Sequence[str]) -> list[Row]:
    """The prompt rows of the sources; keys that nothing reads are logged. Raises: BadInput."""
    unread: Counter[str] = Counter()
    prompts: list[Row] = engine.local_rank0_first(lambda: list(read_prompts(sources, unread)))
    if unread:
        keys = ", ".join(f"{key!s:.80} ({rows:,} rows)" for key, rows in sorted(unread.items()))
        engine.warn(f"samples.prompts: keys not read: {keys}")
    return prompts


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
        turns = turns_of(row["prompt"])
        try:
            ids.append(encode_within_limit(model, tokenizer, turns, max_new_tokens))
        except ValueError as error:
            raise BadInput(f"samples.prompts: {row['prompt_id']}: {error}") from None
    return ids


def generate_answers(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[str]:
    """The policy's answers. The share of every rank has the same size, because ZeRO-3 gathers
    weights on all ranks together."""
    count = -(-len(encoded) // engine.world_size)
    numbers = range(engine.rank, count * engine.world_size, engine.world_size)
    share = [i % len(encoded) for i in numbers]
    answers = generate_from_ids(
        engine.policy.lm,  # type: ignore[arg-type]  # the engine's view of a PreTrainedModel
        tokenizer,
        [encoded[i] for i in share],
        [max_new_tokens] * count,
        [0] * count,
        synced_gpus=engine.world_size > 1,
    )
    texts: dict[int, str] = {}
    for of_rank in engine.all_gather([(i, answer.text) for i, answer in zip(share, answers)]):
        texts.update(of_rank)
    return [texts[i] for i in range(len(encoded))]


def write_samples(path: Path, rows: Sequence[Row], table: bool) -> dict[str, str]:
    """Write a step's rows to the file, in place of rows of this step and later ones, and to wandb
    (`table`). Returns: the answers of step 0 by prompt id."""
    step = step_of(rows[0])
    kept: list[Row] = []
    if step and path.exists():
        before: Iterator[tuple[str, Row]] = read_rows([path])
        kept = [row for _, row in before if step_of(row) < step]
    write_rows(path, [*kept, *rows])
    if table:
        import wandb

        columns = ("step", "prompt_id", "prompt", "text")
        data = [[step, row["prompt_id"], format_prompt(row), row["text"]] for row in rows]
        assert wandb.run is not None, "the recorder starts wandb before the first step"
        log_table(wandb.run, "eval/samples", Table(columns, data), step)
    return {prompt_id(row): str(row["text"]) for row in (*kept, *rows) if step_of(row) == 0}


def step_of(row: Row) -> int:
    step = row["step"]
    assert isinstance(step, int), "samples.jsonl is written by `write_samples`"
    return step


def win_rate_over_start(
    engine: Engine,
    judge: Teacher,
    path: Path,
    prompts: Sequence[Row],
    texts: Sequence[str],
    start: Sequence[str | None],
) -> dict[str, float | int | str]:
    """How often the answers beat those of step 0, judged in both orders. What goes wrong here is
    logged and does not end the training."""
    reason = f"no prompt has an answer of step 0 in {path} and a verdict"
    found: dict[str, Any] = {"n": 0}
    budget = Budget()
    try:
        with Ledger(path.with_suffix(".ledger.jsonl")) as ledger:
            panel = judge_panel(judge, partial(ask, ledger=ledger, budget=budget))
            compared, _ = judge_pairs(panel, prompts, texts, start)
            found = summarise(compared, [None] * len(prompts))
    except BadInput as error:
        reason = str(error)
    if not found["n"]:
        engine.warn(f"samples.judge: there is no win rate: {reason}")
        return {}
    return {
        "win_rate": found["win_rate"],
        "win_rate/n": found["n"],
        "win_rate/low": found["ci95"][0],
        "win_rate/high": found["ci95"][1],
        "win_rate/unparsed": found["unparsed"],
    }
