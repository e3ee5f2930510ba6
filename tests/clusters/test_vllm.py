"""vllm.sbatch with a real OpenAI-compatible server in vLLM's place: a shard a task, warned of the
time limit, and merged by a job that depends on all tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm as daemons
from processes import ROOT, free_port
from proxy import serving
from tiny import tiny_model

from zephyr.data.jsonl import write_rows

pytestmark = pytest.mark.long
BIN = Path(sys.executable).parent
SERVER = f"{sys.executable} -m transformers.cli.transformers serve"
SETTINGS = {
    "SERVER": SERVER,
    "SERVER_OPTIONS": "--device cpu",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}


class Case:
    """A tiny model, prompts, and the file of one run without shards, whose answers come from one
    server."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("fastapi", reason="fastapi is absent, without which there is no server")
        from zephyr.data.tokenizer import load_tokenizer

        self.folder = folder
        self.model = tiny_model(folder / "tiny")
        load_tokenizer(self.model).save_pretrained(self.model)
        prompts = [{"prompt_id": f"q{n}", "prompt": f"why {n}?"} for n in range(20)]
        write_rows(folder / "prompts.jsonl", prompts)
        with serving(self.model) as server:
            self.run("zephyr", *self.command(folder / "one.jsonl", server.url))

    def command(self, out: Path, url: str) -> list[str]:
        answerers = f"pool:{self.model}@{url},world:expert"
        words = ["feedback", str(self.folder / "prompts.jsonl"), "--answerers", answerers]
        return [*words, "--per-prompt", "2", "--max-new-tokens", "8", "--out", str(out)]

    def run(self, *command: str) -> None:
        environment = {**os.environ, **SETTINGS}
        subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=300)

    def script(self, out: Path) -> list[str]:
        """The script and its arguments."""
        return ["configs/cluster/vllm.sbatch", str(self.model), *self.command(out, "{URL0}")]

    def started(self, out: Path, task: int, **settings: str) -> subprocess.Popen[bytes]:
        """Task `task` of two, without Slurm."""
        of_slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        paths = {"PORT": str(free_port()), "LOGS": str(out.parent / f"server{task}")}
        environment = {**os.environ, **SETTINGS, **of_slurm, **paths, **settings}
        return subprocess.Popen(["bash", *self.script(out)], env=environment, cwd=ROOT)

    def require_one_run(self, out: Path) -> None:
        """The file, and as many replies that were paid for, as of the run without shards."""
        assert out.read_bytes() == (self.folder / "one.jsonl").read_bytes()
        lines = out.with_suffix(".ledger.jsonl").read_text().splitlines()
        digests = [json.loads(line)["digest"] for line in lines]
        assert len(digests) == len(set(digests)) == 40


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("vllm"))


def replies(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_a_shard_is_stopped_before_its_time_is_over(case: Case, tmp_path: Path) -> None:
    """SIGUSR1 in the middle of a shard, which is started again; then the other, and the merge.
    Fails where the job is not queued again, a server outlives its task, or anything is paid for
    twice."""
    out, queued = tmp_path / "f.jsonl", tmp_path / "queued"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {queued}\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{SETTINGS['PATH']}"
    task = case.started(out, 0, SLURM_JOB_ID="17", PATH=path)
    while not replies(tmp_path / "f.shard-0-of-2.ledger.jsonl"):
        assert task.poll() is None, "it ended before it was stopped"
        time.sleep(0.02)
    task.send_signal(signal.SIGUSR1)
    assert task.wait(60) == 128 + signal.SIGTERM
    assert queued.read_text() == "requeue 17\n" and not (tmp_path / "f.shard-0-of-2.jsonl").exists()
    assert case.started(out, 0, PATH=path).wait(300) == 0
    assert case.started(out, 1, PATH=path).wait(300) == 0
    assert queued.read_text() == "requeue 17\n"
    case.run("zephyr", "merge", str(out))
    case.require_one_run(out)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert f"serve {case.model}" not in running.stdout


def test_a_server_that_does_not_start(case: Case, tmp_path: Path) -> None:
    """Fails where the task waits for ever, or does not say where the server's own words are."""
    out = tmp_path / "f.jsonl"
    environment = {**os.environ, **SETTINGS, "SERVER": "false", "LOGS": str(tmp_path / "server")}
    command = ["bash", *case.script(out)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 1 and not list(tmp_path.glob("f.*"))
    assert f"see {tmp_path}/server-0.log".encode() in done.stderr


def test_an_array_and_the_job_that_merges_it(case: Case, tmp_path: Path) -> None:
    """On a real Slurm: an array of two tasks, and `zephyr merge` by --dependency=afterok. Fails
    where the tasks do not know their shards, or the merge starts before both are done."""
    reason = daemons.missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path / "slurm"
    folder.mkdir()
    out = tmp_path / "f.jsonl"
    with daemons.started(folder) as slurm:
        slurm.environment.update(SETTINGS)
        options = ["--gpus-per-node=0", "--cpus-per-task=1", f"--output={folder}/job-%A-%a.log"]
        job = slurm.ask("sbatch", "--parsable", "--array=0-1", *options, *case.script(out))
        merge = slurm.ask(
            *("sbatch", "--parsable", f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes"),
            *(f"--output={folder}/merge.log", f"--wrap=zephyr merge {out}"),
        )
        assert slurm.state(merge) == "PENDING"
        slurm.wait(lambda: slurm.state(merge) not in ("PENDING", "RUNNING", "COMPLETING"), 400)
        assert slurm.state(merge) == "COMPLETED", slurm.logs()
    case.require_one_run(out)
    for log in ROOT.glob("vllm-*-*-0.log"):
        log.unlink()
