"""What `make real` counts, without a real model: the split by prompt, and the figures of its table
by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parent)]

import before_after  # noqa: E402

from zephyr.config import BadInput, Data, DPOConfig  # noqa: E402

PROMPTS, EACH = 6, 4


@pytest.fixture
def config(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DPOConfig:
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    return DPOConfig(model=str(tiny), data=Data(train=("unread",)))


def pairs(tmp_path: Path, prompts: int) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {p}?", "chosen": f"Yes {p} {n}.", "rejected": "No."}
        for p in range(prompts)
        for n in range(EACH)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def split(
    file: Path, config: DPOConfig, out: Path, **options: int | None
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    counts = before_after.split(
        file, config, out, **{"pairs": None, "held_out": 3, "seed": 0, **options}
    )
    train, held_out = read(out / "train.jsonl"), read(out / "held_out.jsonl")
    assert counts == {"train": len(train), "held_out": len(held_out)}
    return train, held_out


def test_no_prompt_is_on_both_sides(config: DPOConfig, tmp_path: Path) -> None:
    """Pairs of one prompt share it and often an answer: parted by rows, what was learned by heart
    would count as a gain."""
    file = pairs(tmp_path, PROMPTS)
    train, held_out = split(file, config, tmp_path)
    asked = {row["prompt"] for row in held_out}
    assert len(held_out) == len(asked) == 3 and len(train) == 3 * EACH
    assert not asked & {row["prompt"] for row in train}
    assert {(row["prompt"], row["chosen"]) for row in train + held_out} <= {
        (row["prompt"], row["chosen"]) for row in read(file)
    }
    assert {row["id"] for row in train} <= {
        f"pairs.jsonl:{n}" for n in range(1, PROMPTS * EACH + 1)
    }
    assert (
        split(file, config, tmp_path) == (train, held_out) != split(file, config, tmp_path, seed=1)
    )
    few, _ = split(
        file, config, tmp_path, pairs=5, held_out=100
    )  # held out: half of the prompts at most
    assert len(few) == 5


def test_one_prompt_can_not_be_parted(config: DPOConfig, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pairs of one prompt, wanted at least two"):
        split(pairs(tmp_path, 1), config, tmp_path)


def test_figures_by_hand(tmp_path: Path) -> None:
    """Three pairs: one is right and learned, one is wrong and unlearned, one has not moved, which
    is half a win."""
    before = np.array([[-10.0, -20.0], [-30.0, -20.0], [-5.0, -6.0]])
    after = before + np.array([[2.0, -2.0], [-1.0, 1.0], [0.0, 0.0]])
    tokens = np.array([[10, 10], [10, 5], [1, 2]])
    figures = before_after.table(before_after.Scores(before, after, tokens, beta=0.5))
    margins = [2.0, -1.0, 0.0]
    assert figures["reward margin"]["after"]["mean"] == pytest.approx(sum(margins) / 3)
    assert figures["loss"]["before"]["mean"] == math.log(2)
    assert figures["loss"]["after"]["mean"] == pytest.approx(
        sum(math.log(1 + math.exp(-m)) for m in margins) / 3
    )
    assert figures["implicit reward accuracy"]["after"]["share"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert figures["implicit reward accuracy"]["before"] is None
    assert figures["chosen is the likelier"]["before"]["share"] == pytest.approx(2 / 3)
    assert figures["chosen is the likelier a token"]["before"]["share"] == pytest.approx(
        2 / 3
    )  # -1 > -2; -3 > -4; -5 < -3
    assert figures["chosen is the longer"]["before"]["share"] == pytest.approx((0.5 + 1 + 0) / 3)
    records = tmp_path / "metrics.jsonl"
    records.write_text(
        json.dumps({"split": "eval", "loss": figures["loss"]["after"]["mean"]}) + "\n",
        encoding="utf-8",
    )
    before_after.require_agreement(figures, records)
    records.write_text(json.dumps({"split": "eval", "loss": 0.9}) + "\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="held-out loss"):
        before_after.require_agreement(figures, records)
