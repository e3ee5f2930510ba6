"""What a round starts ends with it, however it ends; a killed run goes on to the same weights."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import WriteRounds
from processes import ROOT
from runs import records as records_of
from runs import running, wait_for
from safetensors.numpy import load_file

from zephyr.config import BadInput
from zephyr.model.load import digest
from zephyr.rounds.config import Server, load_rounds
from zephyr.rounds.folder import read_rows_of
from zephyr.rounds.loop import run_rounds
from zephyr.rounds.processes import Launch
from zephyr.rounds.server import serving

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


Victims = Callable[[subprocess.Popen[bytes]], list[int]]


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


def process_of(process: subprocess.Popen[bytes]) -> list[int]:
    return [process.pid]


def start_and_kill(path: Path, log: Path, seconds: float, victims: Victims) -> bool:
    """Start the rounds, and send SIGKILL after so many seconds. Returns: False where they were
    finished before."""
    process = start(path, log)
    with contextlib.suppress(subprocess.TimeoutExpired):
        assert process.wait(seconds) == 0, log.read_text()[-3000:]
        return False
    for pid in victims(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return True


def kill_ten_times(path: Path, log: Path, folder: Path, longest: float) -> list[int]:
    """Kill the rounds ten times at random moments: in turn the process that the user started, whose
    guards end the rest, and all processes at once. Rounds that are finished before the tenth kill
    begin again from nothing, with shorter waits.

    Args: longest: the most seconds from a start to its kill.
    Returns: how many files `folder` held at each kill.
    """
    rng, files = random.Random(0), list[int]()
    while len(files) < 10:
        victims = (process_of, tree_of)[len(files) % 2]
        if start_and_kill(path, log, rng.uniform(0, longest), victims):
            files.append(sum(1 for _ in folder.rglob("*.*")))
            continue
        shutil.rmtree(folder)
        files, longest = [], 0.7 * longest
    return files


@pytest.mark.long
def test_ten_kills_end_with_the_same_weights(write_rounds: WriteRounds, tmp_path: Path) -> None:
    """SIGKILL at ten random times, five times of one process and five of all. Answers, scores and
    pairs are to the byte, and the weights to the bit, those of a run that nothing disturbed."""
    path, log = write_rounds(), tmp_path / "log"
    before = time.monotonic()
    assert start(path, log).wait(600) == 0, log.read_text()[-3000:]
    seconds = time.monotonic() - before
    folder = tmp_path / "rounds"
    undisturbed = folder.rename(tmp_path / "undisturbed")
    files = kill_ten_times(path, log, folder, 0.6 * seconds)
    assert len(files) == 10 and len(set(files)) > 2, f"kills at few moments: {files}"
    assert start(path, log).wait(600) == 0, log.read_text()[-3000:]
    for number in (1, 2):
        ours, theirs = (of / f"round-{number}" for of in (folder, undisturbed))
        for name in ("samples.jsonl", "scored.jsonl", "pairs.jsonl"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
        weights = [load_file(of / "dpo/model/model.safetensors") for of in (ours, theirs)]
        assert weights[0].keys() == weights[1].keys()
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])


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


@pytest.mark.long
def test_rounds_of_adapters(
    write_rounds: WriteRounds, forked: Launch, talker: Path, tmp_path: Path
) -> None:
    """Two rounds of LoRA on two ranks. Fails where round 2 starts from the bare base or has the
    adapter of round 1 for its reference, or a round changes other weights than its adapter's."""
    adapter = "adapter={r: 4, alpha: 8, targets: [q_proj, v_proj], dropout: 0.0, quantize: none}"
    records = run_rounds(load_rounds(str(write_rounds(train__overrides=[adapter]))), forked)
    runs = [tmp_path / f"rounds/round-{number}/dpo" for number in (1, 2)]
    starts = [talker, runs[0] / "model"]
    assert [record["weights"] for record in records] == list(map(digest, starts))
    for run, start in zip(runs, starts):
        assert yaml.safe_load((run / "config.yaml").read_text())["model"] == str(start)
        first = records_of(run)[0]
        assert first["rewards/chosen"] == 0 and abs(first["loss"] - math.log(2)) < 1e-6
        before, after = (load_file(of / "model.safetensors") for of in (start, run / "model"))
        low_rank = load_file(run / "adapter" / "adapter_model.safetensors")
        assert before.keys() == after.keys()
        for name in before:
            halves = [
                f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight"
                for half in "BA"
            ]
            if "q_proj" not in name and "v_proj" not in name:
                assert (after[name] == before[name]).all()
                continue
            change = 8 / 4 * low_rank[halves[0]] @ low_rank[halves[1]]
            assert abs(change).max() > 1e-5
            np.testing.assert_allclose(after[name] - before[name], change, rtol=0, atol=1e-6)


def prompts_of(path: Path) -> str:
    return load_rounds(str(path)).prompts.sources[0]


def test_a_server_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """Fails where a user reads a traceback of the process that should start it."""
    server = Server(command="no-such-server {model}")
    wanted = pytest.raises(BadInput, match="server.command: no program 'no-such-server'")
    with wanted, serving(server, "m", "w", tmp_path / "log", None):
        pass


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
