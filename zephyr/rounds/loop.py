"""The rounds, one after the other, from wherever an earlier process was stopped or killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from zephyr.config import DPOConfig, SFTConfig
from zephyr.evaluation.scorers import is_judge, open_scorer
from zephyr.progress import info
from zephyr.rounds import stages
from zephyr.rounds.answers import read_all_prompts
from zephyr.rounds.checks import require_files, require_trainable
from zephyr.rounds.config import RoundsConfig, load_rounds, load_training
from zephyr.rounds.costs import cost_lines
from zephyr.rounds.folder import RoundsFolder
from zephyr.rounds.processes import Launch, launcher, stop_on_signals
from zephyr.rounds.report import round_records, write_page, write_records
from zephyr.rounds.stages import Rounds
from zephyr.teacher.prompts import Row


def run_rounds(config: RoundsConfig, launch: Launch | None = None) -> list[dict[str, object]]:
    """Run all rounds that are not done.

    Args: launch: runs the processes of a round; default: under a guard.
    Returns: a record a round, as in `rounds.jsonl`.
    Raises:
        BadInput: for settings, prompts or models that can't be used, or a folder of other settings.
        Stopped: by a signal; the same call continues.
        BudgetSpent: the same call with a larger budget continues.
    """
    from zephyr.model.load import digest

    training = load_training(config)
    prompts, held_out = read_all(config)
    folder = RoundsFolder(Path(config.dir))
    if not stages.is_finished(folder.run(config, config.rounds)):
        require_files(config, training)
        require_trainable(config, training)
    folder.open()
    try:
        identity = {
            "model": digest(config.model),
            "prompts": content_digest([prompts, held_out]),
            **teacher_identities(config),
        }
        folder.claim(config, training, identity)
        rounds = Rounds(config, folder, prompts, held_out, launch or launcher(folder.lock_number))
        for line in cost_lines(config, training, prompts, held_out):
            info(line)
        with stop_on_signals():
            for number in range(1, config.rounds + 1):
                run_round(rounds, number)
            stages.answer(rounds, config.rounds + 1)
            return write_results(rounds)
    finally:
        folder.close()


def teacher_identities(config: RoundsConfig) -> dict[str, str]:
    """Who scores and who compares, with the digests of weights on this machine.

    Raises: BadInput, before anything is sampled, for a scorer or a judge that can't be used.
    """
    found = {}
    if config.scoring.scorer != "policy":
        found["scorer"] = config.scoring.scorer
    if config.eval.judge is not None:
        found["judge"] = config.eval.judge
    for name, spec in found.items():
        is_asked = is_judge(spec)
        opened = stages.open_judge(spec, config.scoring) if is_asked else open_scorer(spec)
        found[name] = opened.identity or opened.name
    return found


def run_round(rounds: Rounds, number: int) -> None:
    """Answers, scores, pairs and training of one round; what is done is not done again."""
    stages.answer(rounds, number)
    stages.score(rounds, number)
    stages.choose(rounds, number)
    write_results(rounds)
    stages.train(rounds, number)
    write_results(rounds)


def write_results(rounds: Rounds) -> list[dict[str, object]]:
    """Compare the policies whose held-out answers are there; write `rounds.jsonl` and the page."""
    for number in range(1, rounds.config.rounds + 1):
        if (rounds.folder.round(number) / stages.HELD_OUT).exists():
            stages.compare_with_start(rounds, number)
    records = round_records(rounds)
    write_records(rounds, records)
    write_page(rounds, records)
    return records


def open_rounds(path: Path) -> Rounds:
    """The rounds of a folder, to work on a part of them in another process."""
    config = load_rounds(str(path / "config.yaml"))
    prompts, held_out = read_all(config)
    return Rounds(config, RoundsFolder(path), prompts, held_out, launcher(None))


def read_all(config: RoundsConfig) -> tuple[list[Row], list[Row]]:
    """All prompts, and the held-out ones. Raises: BadInput."""
    held_out = read_all_prompts(config.eval.prompts) if config.eval.prompts else []
    return read_all_prompts(config.prompts.sources), held_out


def content_digest(rows: Sequence[Sequence[Row]]) -> str:
    """SHA-256 of prompt rows."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def describe(config: RoundsConfig) -> list[str]:
    """What a run would cost, as lines; nothing is started or written. Raises: BadInput."""
    prompts, held_out = read_all(config)
    training: DPOConfig | SFTConfig = load_training(config)
    require_files(config, training)
    return cost_lines(config, training, prompts, held_out)
