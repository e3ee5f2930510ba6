"""What a round starts ends with it, however it ends; a killed run goes on to the same weights."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import WriteRounds
from processes import ROOT
from runs import running, wait_for
from safetensors.numpy import load_file

from zephyr.config import BadInput
from zephyr.model.load import digest
from zephyr.rounds.config import load_rounds
from zephyr.rounds.folder import read_rows_of
from zephyr.rounds.loop import run_rounds
from zephyr.rounds.processes import Launch

PARENT = """
import sys, time
from zephyr.rounds.processes import guarded
with open(sys.argv[1], "ab") as log, guarded(sys.argv[3:], log.fileno(), grace=float(sys.argv[2])):
    print("started", flush=True)
    time.sleep(600)
"""
# A command of two processes, the second in a session of its own, as torchrun's ranks are; both
# write their ids. The first ignores SIGTERM.
CHILD = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
other = subprocess.Popen(sleep, start_new_session=True)
print(os.getpid(), other.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_guarded_command_ends_with_whoever_started_it(number: int, tmp_path: Path) -> None:
    """Also where it was killed, and where the command ignores SIGTERM or has processes in other
    sessions: a server would otherwise keep its memory and port."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", PARENT, str(log), "0.3", sys.executable, "-c", CHILD]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as it:
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"), it)
        pids = [int(word) for word in log.read_text().split()]
        assert len(pids) == 2 and all(map(running, pids))
        os.killpg(it.pid, number)
    wait_for(lambda: not any(map(running, pids)), None, seconds=20)


def start(path: Path, log: Path) -> subprocess.Popen[bytes]:
    """`zephyr rounds` as its users start it, in a process group of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "zephyr", "rounds", str(path)],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def tree_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Ids of the process and of all that it started, in any session."""
    try:
        of = psutil.Process(process.pid)
        return [process.pid, *(child.pid for child in of.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def group_of(process: subprocess.Popen[bytes]) -> list[int]:
    return [process.pid]


@pytest.mark.long
def test_ten_kills_end_with_the_same_weights(write_rounds: WriteRounds, tmp_path: Path) -> None:
    """SIGKILL at ten random times: five of the process group, so that guards end the rest, and
    five of every process at once. The weights are to the bit those of a run that nothing disturbed,
    and every file of answers, scores and pairs is the same."""
    path = write_rounds()
    log = tmp_path / "log"
    assert start(path, log).wait(600) == 0, log.read_text()[-3000:]
    folder = tmp_path / "rounds"
    undisturbed = folder.rename(tmp_path / "undisturbed")
    rng, kills = random.Random(0), 0
    victims: list[Callable[[subprocess.Popen[bytes]], list[int]]] = [group_of, tree_of]
    while kills < 10:
        process = start(path, log)
        # later kills wait longer, so that the rounds get on
        until = time.monotonic() + rng.uniform(1, 12 + 3 * kills)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            assert process.returncode == 0, log.read_text()[-3000:]
            break
        for pid in victims[kills % 2](process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert start(path, log).wait(600) == 0, log.read_text()[-3000:]
    assert kills >= 5, "the rounds were over before they were disturbed"
    for number in (1, 2):
        ours, theirs = (of / f"round-{number}" for of in (folder, undisturbed))
        for name in ("samples.jsonl", "pairs.jsonl"):
            assert without_paths(ours / name) == without_paths(theirs / name)
        weights = [load_file(of / "dpo/model/model.safetensors") for of in (ours, theirs)]
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])


def without_paths(path: Path) -> list[dict[str, object]]:
    """The rows of a file without what holds the path of the policy."""
    named = ("chosen_model", "rejected_model", "call", "calls")
    return [{k: v for k, v in row.items() if k not in named} for row in read_rows_of(path)]


@pytest.mark.long
def test_a_signal_saves_and_the_next_start_goes_on(
    write_rounds: WriteRounds, tmp_path: Path
) -> None:
    """SIGTERM during the first training: exit code 75, a checkpoint, nothing left running."""
    path, log = write_rounds(train__overrides=["optim.epochs=40"]), tmp_path / "log"
    process = start(path, log)
    metrics = tmp_path / "rounds/round-1/dpo/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, process)
    pids = tree_of(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, log.read_text()[-3000:]
    assert not any(map(running, pids)) and "the same command continues" in log.read_text()
    status = json.loads((tmp_path / "rounds/round-1/dpo/status.json").read_text())
    assert status["code"] == 75 and "the run is saved" in status["message"]
    assert list((tmp_path / "rounds/round-1/dpo/checkpoints").glob("step-*"))


def prompts_of(path: Path) -> str:
    return load_rounds(str(path)).prompts.sources[0]


SERVE = (
    f"{sys.executable} -m transformers.cli.transformers serve {{model}} --device cpu "
    "--host 127.0.0.1 --port {port}"
)


@pytest.mark.long
def test_a_server_answers_as_the_policy(
    write_rounds: WriteRounds, forked: Launch, talker: Path, tmp_path: Path
) -> None:
    """A real OpenAI-compatible server, started anew with the weights of each round, and a reward
    model that scores. Fails where a round is answered by older weights, or a server is left."""
    pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    lm = AutoModelForSequenceClassification.from_pretrained(talker, num_labels=1)
    lm.score.weight.data.normal_(std=0.1)
    lm.save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(talker).save_pretrained(tmp_path / "rm")
    path = write_rounds(
        server__command=SERVE,
        scoring__scorer=f"rm:{tmp_path / 'rm'}",
        eval__prompts=[prompts_of(write_rounds())],
        eval__max_new_tokens=24,
    )
    records = run_rounds(load_rounds(str(path)), forked)
    folder = tmp_path / "rounds"
    policies = [talker, folder / "round-1/dpo/model"]
    assert [record["weights"] for record in records] == list(map(digest, policies))
    assert all(record["scores"] == 32 and record["mean_chosen"] for record in records)
    logs = [(folder / f"round-{number}/server.log").read_text() for number in (1, 2)]
    assert all("POST /v1/chat/completions" in log for log in logs)
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(p.info["cmdline"] or [])
    ]


@pytest.mark.long
def test_a_server_that_fails_is_named(write_rounds: WriteRounds, forked: Launch) -> None:
    """With the end of its log; and one that never answers is given up and ended."""
    path = write_rounds(server__command="python -c exit('no_memory:{model}{port}')")
    with pytest.raises(BadInput, match=r"it ended with code 1; the end of its log .*no_memory"):
        run_rounds(load_rounds(str(path)), forked)
    changes = ["server.command=sleep 600 {model} {port}", "server.start_seconds=2"]
    path = write_rounds(dir=str(path.parent / "other"))
    with pytest.raises(BadInput, match="server.command: it"):
        run_rounds(load_rounds(str(path), changes), forked)


@pytest.mark.long
def test_the_policy_as_its_own_judge(
    write_rounds: WriteRounds, forked: Launch, tmp_path: Path, talker: Path
) -> None:
    """Self-rewarding asks the policy of the round. This one cannot judge: no reply can be read, no
    pair is made up, and the error says how many prompts have no scores."""
    path = write_rounds(
        scoring__scorer="policy", scoring__max_tokens=8, scoring__judged_by="overall"
    )
    with pytest.raises(BadInput, match=r'no prompt gives a pair: {"fewer than two scores": 8}'):
        run_rounds(load_rounds(str(path)), forked)
    asked = read_rows_of(tmp_path / "rounds/ledger.jsonl")
    assert asked and {row["teacher"] for row in asked} == {str(talker)}


@pytest.mark.long
def test_implicit_rewards_score_on_all_ranks(
    write_rounds: WriteRounds,
    forked: Launch,
    tmp_path: Path,
    tiny: Path,
    talker: Path,
    prompts: Path,
) -> None:
    """One round; both ranks keep the scores that they made. A model as judge compares the
    held-out answers on them too."""
    judged = {"prompts": [str(prompts)], "judge": f"hf:{tiny}", "max_new_tokens": 8}
    scorer = f"implicit:{talker}@{tiny}"
    path = write_rounds(scoring__scorer=scorer, scoring__max_tokens=4, rounds=1, eval=judged)
    (record,) = run_rounds(load_rounds(str(path)), forked)
    assert record["scores"] == 32 and record["mean_chosen"] > record["mean_rejected"]
    assert "win_rate" in record
    for name in ("ledger.jsonl", "ledger.rank1.jsonl"):
        asked = Counter(str(row["teacher"]) for row in read_rows_of(tmp_path / "rounds" / name))
        assert asked[scorer] > 2
