"""Real preference data, as their makers published them, become rows of prompt, chosen and
rejected."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

Row = dict[str, object]
LONGEST = (
    480  # characters of prompt and both answers: stories260K spells most words letter by letter
)


def read(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)


def gpt4_pairs(path: Path) -> Iterator[Row]:
    """AlpacaEval 1: GPT-4's verdict 1 is for completion_a, 2 for completion_b; 1.5 and 0: a tie,
    null: none."""
    for row in read(path):
        if row["annotator"] != "alpaca_eval_gpt4" or row["preference"] not in (1, 2):
            continue
        answers = [row["completion_a"], row["completion_b"]]
        chosen, rejected = answers if row["preference"] == 1 else answers[::-1]
        if usable(row["prompt"], chosen, rejected):
            id = f"{row['prompt_id']}/{row['model_b']}"
            yield {"id": id, "prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def harmless_pairs(path: Path) -> Iterator[Row]:
    """Anthropic HH: two dialogues that part at the last answer, as lists of messages; others are
    left out."""
    for row in read(path):
        chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
        roles = [turn["role"] for turn in chosen]
        if chosen[:-1] != rejected[:-1] or roles != ["user", "assistant"] * (len(roles) // 2):
            continue
        said = "".join(turn["content"] for turn in chosen[:-1])
        answers = chosen[-1]["content"], rejected[-1]["content"]
        if all(turn["content"].strip() for turn in chosen) and usable(said, *answers):
            yield {"prompt": chosen[0]["content"], "chosen": chosen, "rejected": rejected}


def turns(dialogue: str) -> list[dict[str, str]]:
    _, *parts = re.split(r"\n\n(Human|Assistant):", dialogue)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2])
    ]


def usable(prompt: str, chosen: str, rejected: str) -> bool:
    told = chosen.strip() and rejected.strip() and chosen != rejected
    return bool(told) and len(prompt) + len(chosen) + len(rejected) <= LONGEST
