"""Four ranks on two nodes encode rows: who encodes, who maps a file, who is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forkserver import ForkServer
from processes import ROOT
from runs import rows, write_lines

from zephyr.training.heartbeat import missing_ranks


def ranks(server: ForkServer, folder: Path, *arguments: str) -> list[dict[str, object]]:
    for node in (0, 1):
        (folder / f"node-{node}").mkdir(exist_ok=True)
        if not (folder / f"node-{node}" / "rows.jsonl").exists():
            write_lines(folder / f"node-{node}" / "rows.jsonl", rows(300))
    done = server.run(
        [str(folder), *arguments],
        {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        folder,
        script="tests/hosts/encode_ranks.py",
        ranks=4,
        cwd=ROOT,
    )
    assert done.code == 0, done.err[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.parametrize("cache", ["own", pytest.param("shared", marks=pytest.mark.long)])
def test_rows_are_encoded_once_a_cache(cache: str, fork_server: ForkServer, tmp_path: Path) -> None:
    """Encoding takes longer than the time-out of collectives. Fails where each rank encodes, a
    waiting rank runs into the time-out, a node of a shared cache encodes again, or a rank copies
    the table that its node has mapped."""
    said = ranks(fork_server, tmp_path, cache, "3")
    assert [rank["encoded"] for rank in said] == ([1, 0, 1, 0] if cache == "own" else [1, 0, 0, 0])
    assert len({rank["digest"] for rank in said}) == 1 and said[0]["pairs"] == 300
    assert len({rank["entry"] for rank in said}) == (2 if cache == "own" else 1)
    assert not any(rank["copied"] for rank in said)
    assert not list(tmp_path.glob("cache*/.rank-0-*"))


def test_a_node_with_other_rows_is_refused(fork_server: ForkServer, tmp_path: Path) -> None:
    """Fails where each node trains on its own rows, or the message names no host."""
    (tmp_path / "node-1").mkdir()
    write_lines(tmp_path / "node-1" / "rows.jsonl", rows(300, seed=1))
    said = ranks(fork_server, tmp_path, "own", "0")
    expected = "data.train: the digest of the token ids on host node-1 is not that on host node-0"
    assert [str(rank["error"])[: len(expected)] for rank in said] == [expected] * 4


def test_which_ranks_did_not_come() -> None:
    """As torch says it. Fails where a lost host has no name."""
    assert missing_ranks("[Rank 0]: Ranks 1, 12 failed to pass monitoredBarrier in 5 ms") == [1, 12]
    assert missing_ranks("Rank 1 ... while waiting for send/recv from rank 0. Please") == [0]
    assert missing_ranks("Connection closed by peer") == []
