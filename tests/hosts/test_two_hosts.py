"""Two hosts with addresses, names and caches of their own train one model; one of them is cut off.

They are two network namespaces of this machine: see `network.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from network import Host, kill, set_cable, torchrun, two_hosts
from processes import Launch
from runs import LONG, ledger, records, require_same_end, wait_for
from safetensors.numpy import load_file

TIMEOUT = 30  # hardware.collective_timeout_seconds


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path / "hosts") as both:
        yield both


def encoded_rows(host: Host) -> list[Path]:
    return list(host.folder.glob("zephyr/*/examples.arrow"))


def require_same_training(run: Path, expected: Path) -> None:
    """Records, ledger and weights to the bit."""
    for split in ("train", "eval"):
        assert [r["loss"] for r in records(run, split)] == [
            r["loss"] for r in records(expected, split)
        ]
    assert ledger(run) == ledger(expected)
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (run, expected))
    assert all(np.array_equal(a[name], b[name]) for name in b)


@pytest.mark.long
def test_two_hosts_train_as_two_ranks_of_one(
    hosts: tuple[Host, Host], finished: Path, tmp_path: Path
) -> None:
    """torchrun's rendezvous over their own addresses; each encodes the rows into its own cache.
    Fails where a rank binds to the loopback, a host reads the other's cache, or the trajectory
    depends on where a rank lives."""
    run = tmp_path / "run"
    arguments = ("train_dpo.py", finished / "config.yaml", f"run.dir={run}")
    processes = [host.start(torchrun(*arguments)) for host in hosts]
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        kill(*processes)
    assert codes == [0, 0], [host.log.read_text()[-3000:] for host in hosts]
    require_same_training(run, finished / "run")
    assert [len(encoded_rows(host)) for host in hosts] == [1, 1]
    assert json.loads((run / "status.json").read_text())["code"] == 0


@pytest.mark.long
@pytest.mark.parametrize("lost", ["beta", "alpha"])
@pytest.mark.parametrize("resumed_by", [1, 2])
def test_a_host_that_is_cut_off_ends_the_run_which_goes_on(
    lost: str,
    resumed_by: int,
    hosts: tuple[Host, Host],
    finished: Path,
    undisturbed: Path,
    launch: Launch,
    tmp_path: Path,
) -> None:
    """The cable is pulled after the first checkpoint, then the host's processes are killed. The
    other host's rank ends within the time-out with a message that names the lost host, and its
    torchrun ends too, also where alpha was lost, on which the ranks met; the run
    then goes on, with one rank or two. Fails where collectives wait for 30 minutes for a host from
    which no packet comes, status.json says that it runs, or a pair is lost or counted twice."""
    run = tmp_path / "run"
    slow = (*LONG, "run.save_every=2", f"hardware.collective_timeout_seconds={TIMEOUT}")
    arguments = (finished / "config.yaml", f"run.dir={run}", *slow, "run.preflight=off")
    alpha, beta = (
        host.start(torchrun("train_dpo.py", *arguments, node=node))
        for node, host in enumerate(hosts)
    )
    try:
        wait_for(lambda: (run / "checkpoints" / "latest").exists(), alpha, seconds=240, pause=0.02)
        number = int(lost == "beta")
        set_cable(hosts[number], "down")
        began = time.monotonic()
        time.sleep(1)
        kill((alpha, beta)[number])
        left = hosts[1 - number]
        named = f"on host {lost} ended or cannot be reached"
        wait_for(lambda: named in left.log.read_text(), None, seconds=TIMEOUT + 10)
        assert time.monotonic() - began < TIMEOUT
        assert (alpha, beta)[1 - number].wait(timeout=60) == 1
    finally:
        kill(alpha, beta)
    assert len(records(run)) < 30 and not (run / "model").exists()
    status = json.loads((run / "status.json").read_text())
    assert status["code"] == 1
    expected = "rank 1 on host beta" if lost == "beta" else "rank 0 ended without a message"
    assert status["message"].startswith(expected)
    result = launch("train_dpo.py", *arguments, ranks=resumed_by)
    assert "resumed from" in result.stderr
    if resumed_by == 2:
        require_same_end(run, undisturbed)
        return
    assert [r["step"] for r in records(run)] == list(range(30))
    for again, whole in zip(records(run), records(undisturbed)):
        assert again["loss"] == pytest.approx(whole["loss"], rel=1e-4, abs=1e-5)


@pytest.mark.long
def test_hosts_with_other_rows_are_refused(
    hosts: tuple[Host, Host], finished: Path, tmp_path: Path
) -> None:
    """The file of rows lies on each host's own disk, and one of them is another. Fails where each
    host trains on its own rows, which no record would show."""
    rows = (finished / "pairs.jsonl").read_text()
    processes = []
    for host in hosts:
        text = rows if host.name == "alpha" else rows.replace('"chosen": "', '"chosen": "no ', 1)
        (host.folder / "pairs.jsonl").write_text(text)
        data = (f"data.train=[{host.disk}/pairs.jsonl]", "data.eval=[]")
        arguments = (finished / "config.yaml", f"run.dir={tmp_path / 'run'}", *data)
        processes.append(host.start(torchrun("train_dpo.py", *arguments)))
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        kill(*processes)
    assert codes == [1, 1]
    expected = "data.train: the digest of the token ids on host beta is not that on host alpha"
    assert expected in hosts[0].log.read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["code"] == 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not records(tmp_path / "run")
