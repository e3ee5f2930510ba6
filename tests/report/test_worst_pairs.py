"""The table of the pairs that a finished run has most wrong."""

import json
from pathlib import Path

import torch

from zephyr.report.finish import worst_pairs
from zephyr.training.metrics import Ledger

REWARDS = {"a": (0.5, 0.1), "b": (-0.7, 0.9), "c": (0.2, 0.4)}  # chosen and rejected, last visit


def run_folder(folder: Path) -> Path:
    """Three pairs, each visited twice; the first visits have the opposite margins."""
    folder.mkdir()
    rows = [
        {"id": id, "prompt": f"ask {id}", "chosen": f"yes {id}", "rejected": f"no {id}"}
        | {"source": "half of \ud800"}
        for id in REWARDS
    ]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(f"beta: 0.1\ndata: {{train: [{data}]}}\n")
    counts = {name: [3, 3, 3] for name in ("prompt_tokens", "chosen_tokens", "rejected_tokens")}
    ledger = Ledger(folder, list(REWARDS), counts, 0, writes=True)
    chosen, rejected = torch.tensor(list(REWARDS.values())).t()
    for step, (better, worse) in enumerate([(rejected, chosen), (chosen, rejected)]):
        stats = {"loss": torch.ones(3), "rewards/chosen": better, "rewards/rejected": worse}
        stats |= {"logps/chosen": torch.full((3,), -9.0), "logps/rejected": torch.full((3,), -8.0)}
        ledger.add(step, float(step), (0, 1, 2), stats)
    ledger.commit(2, ledger.rows())
    return folder


def test_the_worst_pairs_with_their_texts(tmp_path: Path) -> None:
    """By the margin of the last visit. Fails where the first visit counts, the order is the other
    one, or texts are another pair's; and where rows that are gone, or a name that UTF-8 can't hold,
    end a run that is finished."""
    said: list[str] = []
    folder = run_folder(tmp_path / "run")
    table = worst_pairs(folder, said.append)
    rows = [dict(zip(table.columns, row)) for row in table.rows]
    assert [row["id"] for row in rows] == ["b", "c", "a"] and said == []
    assert [round(row["rewards/margins"], 5) for row in rows] == [-1.6, -0.2, 0.4]
    assert [row["chosen"] for row in rows] == ["yes b", "yes c", "yes a"]
    assert {row["source"] for row in rows} == {"half of \\ud800"}
    assert rows[0]["visit"] == 1 and round(rows[0]["margin_change"], 5) == -3.2
    (folder / "pairs.jsonl").unlink()
    table = worst_pairs(folder, said.append)
    assert [row[2] for row in table.rows] == [None] * 3 and "can't be read" in said.pop()
    for part in folder.glob("pairs/*"):
        part.unlink()
    assert worst_pairs(folder, said.append) is None and "no visits" in said.pop()
