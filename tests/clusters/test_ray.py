"""ray_feedback.py: a Ray Data job makes the file of `zephyr feedback`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

from zephyr.data.jsonl import write_rows
from zephyr.world.facts import build_world
from zephyr.world.prompts import draw_prompts

pytestmark = pytest.mark.long


def test_a_ray_job_is_the_command(tmp_path: Path) -> None:
    """Three batches on two actors of each kind; then once more, after one actor's ledger and the
    output were lost. Fails where rows, their order or the report are other ones than the command's,
    or a reply that a ledger still holds is asked for again."""
    pytest.importorskip("ray", reason="ray is absent (pip install 'ray[data]')")
    drawn = {prompt.prompt: prompt for prompt in draw_prompts(build_world(0), "train", 40, 0)}
    rows = [prompt._asdict() for prompt in drawn.values()][:20]
    write_rows(tmp_path / "prompts.jsonl", rows)
    options = [str(tmp_path / "prompts.jsonl"), "--per-prompt", "2", "--judge", "world:judge"]
    options += ["--answerers", "world:expert,world:terse,world:careless", "--out"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }

    def run(*command: str) -> None:
        subprocess.run(
            [sys.executable, *command], check=True, cwd=tmp_path, env=environment, timeout=300
        )

    out = tmp_path / "ray" / "f.jsonl"
    job = [str(ROOT / "configs" / "cluster" / "ray_feedback.py"), *options, str(out)]
    job += ["--actors", "2", "--batch", "7"]
    run("-m", "zephyr", "feedback", *options, str(tmp_path / "one" / "f.jsonl"))
    run(*job)
    one = tmp_path / "one" / "f.jsonl"
    files = [(path, path.with_suffix(".report.json")) for path in (out, one)]
    for made, wanted in zip(*files, strict=True):
        assert made.read_bytes() == wanted.read_bytes()

    def paid() -> dict[str, str]:
        """When each reply came, by its digest; a second time would be another."""
        found: dict[str, str] = {}
        for path in out.parent.glob("f.*ledger.jsonl"):
            for reply in map(json.loads, path.read_text().splitlines()):
                assert found.setdefault(reply["digest"], reply["time"]) == reply["time"]
        return found

    before = paid()
    assert len(before) == 20 * 8
    lost, *others = sorted(
        out.parent.glob("f.ray-*.ledger.jsonl"), key=lambda path: -path.stat().st_size
    )
    kept = [line for path in others for line in path.read_text().splitlines()]
    for path in (lost, out, out.with_suffix(".ledger.jsonl")):
        path.unlink()
    run(*job)
    again = paid()
    assert all(again[reply["digest"]] == reply["time"] for reply in map(json.loads, kept))
    assert again != before and again.keys() == before.keys()
    for made, wanted in zip(*files, strict=True):
        assert made.read_bytes() == wanted.read_bytes()
