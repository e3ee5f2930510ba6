"""The files of configs/cluster: they parse, name what exists, and start what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import ROOT, free_port
from runs import records, wait_for

FOLDER = ROOT / "configs" / "cluster"
SCRIPTS = [
    path
    for path in sorted([*FOLDER.glob("*.sbatch"), *FOLDER.glob("*.sh")])
    if "RUN_FOLDER" in path.read_text(encoding="utf-8")  # those that train
]
README = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_and_is_explained(script: Path) -> None:
    """Fails for a syntax error, a file that the guide does not name, or one that names a file that
    is not there."""
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"({script.name})" in README
    named = re.findall(r"configs/[\w./-]+\.(?:yaml|json|sh|sbatch)", script.read_text())
    assert named and all((ROOT / name).is_file() for name in named)


def test_sft_and_dpo_differ_in_names_only() -> None:
    """Fails where a mend of one is forgotten in the other."""
    sft, dpo = ((FOLDER / name).read_text() for name in ("sft.sbatch", "dpo.sbatch"))
    assert sft == re.sub(r"\bdpo\b", "sft", dpo).replace("# dDPO", "# dSFT").replace(
        "train_dpo.py", "train_sft.py"
    )
    assert "train_sft.py" in sft and "train_dpo" not in sft


def test_a_job_without_arguments_says_what_it_expects() -> None:
    """Fails where it starts training in a folder without a name."""
    for script in SCRIPTS:
        done = subprocess.run(["bash", script], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode and "expected" in done.stderr and "CONFIG.yaml" in done.stderr


def test_the_manifests_are_yaml() -> None:
    """Fails where a task or a manifest can't be read, its shell is no bash, or the job is not of
    the runtime that stands beside it."""
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    runtime, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert 75 in task["resources"]["job_recovery"]["recover_on_exit_codes"]
    for shell in (task["setup"], task["run"], *job["spec"]["trainer"]["args"]):
        done = subprocess.run(["bash", "-n"], input=shell, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (ROOT / task["envs"]["CONFIG"]).is_file()


@pytest.mark.long
@pytest.mark.parametrize("numbered", [True, False])
def test_two_nodes_by_torchrun(numbered: bool, finished: Path, tmp_path: Path) -> None:
    """torchrun.sh twice on this machine, as two nodes of one rank. Fails where they do not meet, or
    the end is not that of one node with two ranks."""
    run, port = tmp_path / "run", str(free_port())
    agents = []
    for node in ("0", "1"):
        environment = {
            **os.environ,
            "NNODES": "2",
            "RANKS": "1",
            "HOST": "localhost",
            "PORT": port,
            "JOB": "test",
            **({"NODE_RANK": node} if numbered else {}),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = ["bash", str(FOLDER / "torchrun.sh"), "train_dpo.py"]
        arguments = [str(finished / "config.yaml"), str(run)]
        with (tmp_path / f"{node}.log").open("wb") as log:
            agents.append(
                subprocess.Popen(
                    [*command, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
                )
            )
    try:
        wait_for(lambda: all(agent.poll() is not None for agent in agents), None, 240)
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    logs = [(tmp_path / f"{node}.log").read_text() for node in (0, 1)]
    assert [agent.returncode for agent in agents] == [0, 0], logs
    assert records(run)[-1]["loss"] == records(finished / "run")[-1]["loss"]
