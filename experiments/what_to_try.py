"""What to open and try after `make quickstart`, which ends with it.

    python experiments/what_to_try.py [runs/tiny]

The prompts are those of `samples.prompts` that the dDPO model answered best in the run itself, by
the world's judge, one of each of three families: so they fit any seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.data.jsonl import read_rows
from zephyr.world.facts import World, load_world
from zephyr.world.rules import judge

NUM_TRIES = 3
GOOD = 4.0  # of the judge's 1 to 5


class Try(NamedTuple):
    """A prompt, its answers at the start and at the end of the run, and the score of the last."""

    family: str
    prompt: str
    before: str
    after: str
    score: float


def tries(runs: Path) -> list[Try]:
    """The best answers of the dDPO run, those that it changed first, one a family."""
    world = load_world(runs / "world" / "world.json")
    asked = {row["prompt_id"]: row for _, row in read_rows([runs / "world/prompts/samples.jsonl"])}
    samples = [row for _, row in read_rows([runs / "dpo" / "samples.jsonl"])]
    last = max(row["step"] for row in samples)
    start = {row["prompt_id"]: str(row["text"]) for row in samples if row["step"] == 0}
    found = [
        answered(asked[row["prompt_id"]], start[row["prompt_id"]], str(row["text"]), world)
        for row in samples
        if row["step"] == last
    ]
    found = sorted((one for one in found if one.score >= GOOD), key=lambda one: -one.score)
    best = {one.family: one for one in reversed(found)}
    return sorted(best.values(), key=lambda one: (one.before == one.after, -one.score))[:NUM_TRIES]


def answered(row: dict[str, object], before: str, after: str, world: World) -> Try:
    score = judge(row, after, world).overall
    return Try(str(row["family"]), str(row["prompt"]), before, after, score)


def lines(runs: Path, tools: str) -> list[str]:
    """What is printed. Args: tools: the folder of the commands, such as `.venv/bin`."""
    dsft, ddpo = runs / "sft" / "model", runs / "dpo" / "model"
    said = [
        "What to look at and to try now:",
        "",
        f"  {runs / 'dpo' / 'report.html'}",
        "      open it in a browser: what dDPO changed, answers before and after, every pair",
        "",
        f"  {tools}/zephyr chat {ddpo} --greedy",
        "      talk to the model of this world. It answers, for example:",
    ]
    for one in tries(runs):
        said.append(f"        {one.prompt}  ->  {one.after}")
        if one.before != one.after:
            said.append(f"            dSFT said: {one.before}")
    return [
        *said,
        "",
        f"  {tools}/pip install -e '.[web]'",
        f"  {tools}/zephyr chat --web {dsft} {ddpo}",
        "      dSFT and dDPO side by side in the browser, names hidden until you vote",
        "",
        "  make sweep",
        f"      dDPO under three values of beta, and a page that compares them: {runs}/sweep.html",
    ]


def main(arguments: Sequence[str]) -> None:
    runs = Path(arguments[0] if arguments else "runs/tiny")
    folder = Path(sys.executable).parent
    tools = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print("\n".join(lines(runs, str(tools))))


if __name__ == "__main__":
    main(sys.argv[1:])
