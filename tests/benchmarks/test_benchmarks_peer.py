"""The side-by-side counts only where all sides do the same: two contenders, as processes, on a
model that takes seconds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bench_peer
import lengths

Rounds = dict[str, list[bench_peer.Answer]]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """A step and a round of two steps each, of the packed and of the padded side."""
    folder = tmp_path_factory.mktemp("peer")
    vocabulary = bench_peer.make_model("tiny", None, folder / "model", gpu=False)
    bench_peer.write_pairs(
        lengths.random_pairs(lengths.pair_lengths("ultrafeedback", 12, longest=64), vocabulary),
        folder / "rows.jsonl",
    )
    task = bench_peer.common_task(folder, pairs_per_step=4, lr=1e-2, threads=1, gpu=False)
    cells = {
        "zephyr": {**bench_peer.ZEPHYR_CPU, "tokens_per_micro_batch": 200},
        "padded": {"dtype": "float32", "micro": 2},
    }
    workers = {name: bench_peer.Worker(name, task, cell) for name, cell in cells.items()}
    answers = {name: [worker.round(1), worker.round(2)] for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return answers


def test_sides_agree(rounds: Rounds) -> None:
    """Another loss, another order of pairs, another update: each would be faster or slower than
    what it is compared with."""
    assert bench_peer.void(rounds, bench_peer.TOLERANCE["cpu"]) == []
    assert all(answer["cpu_seconds"] > 0 for answers in rounds.values() for answer in answers)


@pytest.mark.parametrize(
    "name, factor", [("losses", 1.0001), ("grad_norms", 1.001), ("losses", float("nan"))]
)
def test_a_side_that_is_off_counts_for_nothing(rounds: Rounds, name: str, factor: float) -> None:
    """A comparison that only warned, or let a loss that is no number through, would publish the
    speed of a broken method."""
    *before, last = rounds["padded"]
    off = [*before, {**last, name: [value * factor for value in last[name]]}]
    assert len(bench_peer.void({**rounds, "padded": off}, bench_peer.TOLERANCE["cpu"])) == 1


def test_a_policy_that_stands_still_counts_for_nothing(rounds: Rounds) -> None:
    """At a rate of 0 all losses are log 2, whatever was computed: agreement would say nothing."""
    still = [{**answer, "losses": [0.6931] * len(answer["losses"])} for answer in rounds["zephyr"]]
    assert (
        len(bench_peer.void({"zephyr": still, "padded": still}, bench_peer.TOLERANCE["cpu"])) == 1
    )
