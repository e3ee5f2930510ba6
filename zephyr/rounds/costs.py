"""What the rounds will cost, before anything starts: samples, requests, tokens, training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zephyr.config import DPOConfig, SFTConfig
from zephyr.evaluation.scorers import TEMPLATES, calls_per_answer, is_judge
from zephyr.rounds.answers import prompts_of_round
from zephyr.rounds.config import RoundsConfig
from zephyr.teacher.prompts import Row, format_prompt
from zephyr.teacher.rubric import ASPECTS
from zephyr.teacher.templates import load_templates

BYTES_PER_TOKEN = 4  # of English, about


def cost_lines(
    config: RoundsConfig,
    training: DPOConfig | SFTConfig,
    prompts: Sequence[Row],
    held_out: Sequence[Row],
) -> list[str]:
    """Upper bounds of what all rounds take, a line each. Raises: BadInput for too few prompts."""
    per_round = len(prompts_of_round(config, prompts, 1))
    samples = per_round * config.sampling.samples
    longest = config.sampling.max_new_tokens
    rounds = config.rounds
    lines = [
        f"{rounds} round{'s' * (rounds > 1)} of {per_round:,} prompts, "
        f"{config.sampling.samples} answers each: "
        f"{samples:,} answers a round, {samples * rounds:,} in all, at most "
        f"{samples * rounds * longest:,} tokens sampled",
        scoring_line(config, prompts, samples),
        f"training: at most {step_counts(config, training, per_round)} steps, by round",
    ]
    if held_out:
        answers = len(held_out) * (rounds + 1)
        judged = 2 * len(held_out) * rounds if config.eval.judge else 0
        lines.append(
            f"evaluation: {answers:,} greedy answers, at most "
            f"{answers * config.eval.max_new_tokens:,} tokens; {judged:,} requests to "
            f"{config.eval.judge or 'no judge'}"
        )
    return lines


def scoring_line(config: RoundsConfig, prompts: Sequence[Row], samples: int) -> str:
    """The scorer's requests and tokens in all rounds."""
    scoring, rounds = config.scoring, config.rounds
    scorer = "hf:" if scoring.scorer == "policy" else scoring.scorer
    calls = samples * rounds * calls_per_answer(scorer, scoring.judged_by)
    mean_prompt = sum(map(prompt_bytes, prompts)) / len(prompts)
    read = mean_prompt / BYTES_PER_TOKEN + config.sampling.max_new_tokens
    text = f"scores by {scoring.scorer}: {calls:,} requests"
    if not is_judge(scorer):
        return f"{text}, which read about {round(calls * read):,} tokens at most"
    read += template_bytes(config) / BYTES_PER_TOKEN
    return (
        f"{text} where every reply can be read, which read about {round(calls * read):,} tokens "
        f"and write {calls * scoring.max_tokens:,} tokens, at most"
    )


def prompt_bytes(row: Mapping[str, object]) -> int:
    return len(format_prompt(row).encode("utf-8", "backslashreplace"))


def template_bytes(config: RoundsConfig) -> float:
    """Bytes of the judge's templates around one answer, the mean of the aspects."""
    folder = config.scoring.templates
    texts = load_templates(TEMPLATES, Path(folder) if folder else None)
    names = ["critique"]
    if config.scoring.judged_by == "aspects":
        names = [f"judge_{aspect}" for aspect in ASPECTS]
    asked = sum(len(texts[name].encode()) for name in names) / len(names)
    return len(texts["judge_system"].encode()) + asked


def step_counts(config: RoundsConfig, training: DPOConfig | SFTConfig, per_round: int) -> str:
    """The most training steps of each round, if every prompt gives a pair: `8, 16, 24`.

    For SFT a window takes at least one conversation.
    """
    if isinstance(training, DPOConfig):
        step = training.optim.pairs_per_step
    else:
        step = training.optim.windows_per_step
    limit = training.data.limit
    counts = []
    for number in range(1, config.rounds + 1):
        rows = per_round * (number if config.pairs.use == "all" else 1)
        rows = rows if limit is None else min(rows, limit)
        counts.append(-(-rows // step) * training.optim.epochs)
    return ", ".join(f"{count:,}" for count in counts)
