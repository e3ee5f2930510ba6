"""A model of the hub, for the ranks of one node and of two: who asks, and what a refusal does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from forkserver import Done, ForkServer
from hub_stand_in import Answer, Hub, Repository, hub
from processes import ROOT
from runs import records, rows, write_config, write_lines

MODEL = "zephyr/tiny"


@contextlib.contextmanager
def hubs(model: Path, ranks: int) -> Iterator[list[Hub]]:
    """A hub for each rank; all have the same model."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(hub()) for _ in range(ranks)]
        repository = Repository(private=False)
        repository.commit("main", {file.name: file.read_bytes() for file in model.iterdir()})
        for one in made:
            one.repositories[MODEL] = repository
        yield made


def train(server: ForkServer, folder: Path, asked: list[Hub], ranks_of_node: int) -> Done:
    """One step on a model of the hub."""
    data = write_lines(folder / "pairs.jsonl", rows(8))
    config = write_config(folder, Path(MODEL), data, optim__epochs=1, run__preflight=False)
    urls = ",".join(one.url for one in asked)
    return server.run(
        [str(folder), str(ranks_of_node), urls, str(config)],
        {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "NO_PROXY": "127.0.0.1"},
        folder,
        script="tests/hosts/hub_ranks.py",
        ranks=len(asked),
        cwd=ROOT,
    )


def test_one_rank_asks_the_hub(fork_server: ForkServer, tiny: Path, tmp_path: Path) -> None:
    """Two ranks of a node train; the second reads the cache. Fails where every rank asks the hub,
    which limits how often a cluster may, or the second rank runs into the time-out."""
    with hubs(tiny, 2) as both:
        done = train(fork_server, tmp_path, both, 2)
    assert done.code == 0, done.err[-4000:]
    assert [path for _, path in both[0].asked if path.endswith("model.safetensors")]
    assert both[1].asked == []
    assert len(records(tmp_path / "run")) == 1


@pytest.mark.long
def test_one_rank_a_node_asks_the_hub(fork_server: ForkServer, tiny: Path, tmp_path: Path) -> None:
    """Two nodes of two ranks, each with a cache. Fails where a node waits for the cache of another,
    or its second rank asks too."""
    with hubs(tiny, 4) as all_hubs:
        done = train(fork_server, tmp_path, all_hubs, 2)
    assert done.code == 0, done.err[-4000:]
    asked = [sorted(one.asked) for one in all_hubs]
    assert asked[0] and asked[1] == asked[3] == []
    assert {path for _, path in asked[0]} == {path for _, path in asked[2]}


@pytest.mark.long
def test_a_download_that_fails_on_one_node_ends_all(
    fork_server: ForkServer, tiny: Path, tmp_path: Path
) -> None:
    """The second node is refused the weights. Fails where the other ranks wait for it, or the
    message on rank 0 does not say where and what was refused."""
    with hubs(tiny, 4) as all_hubs:
        all_hubs[2].before = lambda method, path: (
            Answer({"error": "no"}, 403) if path.endswith("model.safetensors") else None
        )
        done = train(fork_server, tmp_path, all_hubs, 2)
    assert done.code == 2, done.err[-4000:]
    assert f"on host node-1: model {MODEL}: no such folder, and the hub did not give it" in done.err
    assert all_hubs[3].asked == []
