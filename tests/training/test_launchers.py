"""What srun, mpirun and operators of Kubernetes set becomes one world, or a refusal that says what
to do. The variables of srun are those that Slurm 22.05 gave real tasks."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from zephyr.config import BadInput, is_first_of_node
from zephyr.training import launchers
from zephyr.training.launch import require_one_config
from zephyr.training.launchers import first_host, join_world, read_tasks_per_node, separate_runs

# The shell of a batch job of 16 tasks, and of a shell that `salloc` starts.
SALLOC = {"SLURM_JOB_ID": "123", "SLURM_NTASKS": "16", "SLURM_JOB_NODELIST": "gpu[07-08]"}
BATCH = {
    **SALLOC,
    "ENVIRONMENT": "BATCH",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_DISTRIBUTION": "block",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
}
ALONE = STEP | {
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
OWN = "ZEPHYR_RANK_ON_NODE"
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "123",
    "RANK": "11",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "16",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "29500",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "2710437889",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPERATOR = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456"}


def join(environment: dict[str, str], gpus: int = 0, interactive: bool = False) -> dict[str, str]:
    return join_world(environment, gpus=gpus, interactive=interactive)


def refused(environment: dict[str, str], gpus: int = 0) -> str:
    with pytest.raises(BadInput) as error:
        join(environment, gpus)
    return str(error.value)


def test_the_tasks_of_a_step_are_one_world() -> None:
    """Fails where tasks train worlds of their own, disagree on the host or port where they meet, or
    two take one GPU."""
    joined = join(STEP, gpus=8)
    assert joined == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "8",
        "ZEPHYR_RANK_ON_NODE": "3",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(10_000 + (123 + 7919 * 2) % 20_000),
    }
    first = join(STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, gpus=8)
    assert {k for k in first if first[k] != joined[k]} == {"RANK", "LOCAL_RANK", OWN}
    own = {"MASTER_ADDR": "ib07", "MASTER_PORT": "4000"}
    assert own.items() <= join(STEP | own).items()
    assert join(STEP | {"SLURM_STEP_ID": "3"})["MASTER_PORT"] != joined["MASTER_PORT"]
    one_node = {"SLURM_STEP_TASKS_PER_NODE": "16", "SLURM_NODEID": "0"}
    assert join(STEP | one_node)["MASTER_ADDR"] == "127.0.0.1"


def test_a_task_whose_step_is_hidden_is_a_task() -> None:
    """Containers may hide SLURM_STEP_*. Fails where each such task trains a world of its own, or
    one waits for tasks whose number it does not know, or torchrun's variables don't count."""
    hidden = {name: STEP[name] for name in STEP if not name.startswith("SLURM_STEP_")}
    hidden |= {"SLURM_TASKS_PER_NODE": "8(x2)"}
    joined = join(hidden)
    assert (joined["RANK"], joined["WORLD_SIZE"], joined["MASTER_ADDR"]) == ("11", "16", "gpu07")
    hidden.pop("SLURM_TASKS_PER_NODE")
    given = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "MASTER_PORT": "1"}
    assert join(hidden | given | {"MASTER_ADDR": "a"}) == {}
    assert "SLURM_STEP_TASKS_PER_NODE is missing" in refused(hidden)


def test_a_task_that_sees_one_gpu_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """--gpus-per-task=1: each task's GPU has number 0. Fails where a task asks for a GPU that it
    does not see, or where every task of a node takes itself for the first one."""
    joined = join(STEP, gpus=1)
    assert joined["LOCAL_RANK"] == "0" and joined["LOCAL_WORLD_SIZE"] == "8"
    for name in ("ZEPHYR_RANK_ON_NODE", "LOCAL_RANK"):
        monkeypatch.setenv(name, joined[name])
    assert not is_first_of_node()
    monkeypatch.delenv("ZEPHYR_RANK_ON_NODE")
    assert is_first_of_node()


@pytest.mark.parametrize(
    "environment,interactive",
    [
        ({}, False),
        (SALLOC, True),
        (BATCH, False),
        (BATCH | {"SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "16"}, False),
        (STEP | {"SLURM_PTY_PORT": "46425"}, True),
        (STEP | TORCHRUN, False),
        (MPIRUN | TORCHRUN, False),
        (ALONE, False),
    ],
)
def test_a_lone_process_waits_for_nobody(environment: dict[str, str], interactive: bool) -> None:
    """Python typed in the shell of salloc, of `srun --pty`, or in the batch script; torchrun below
    srun. Fails where variables of a job are taken for those of a step: it would wait for ever."""
    assert join(environment, gpus=0, interactive=interactive) == {}


def test_a_step_of_a_pty_is_a_step() -> None:
    """srun in the shell of `srun --pty` inherits the shell's variables. Fails where its tasks are
    taken for that shell."""
    assert join(STEP | {"SLURM_PTY_PORT": "46425"})["WORLD_SIZE"] == "16"


def test_tasks_and_gpus_that_do_not_match_are_refused() -> None:
    """Fails where GPUs stay idle in silence, or two tasks share one."""
    a_node = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    message = refused(STEP | a_node, gpus=8)
    assert "srun started 1 task on a node where each sees 8 GPUs" in message
    assert "--ntasks-per-node=8" in message and "torchrun" in message
    assert "--ntasks-per-node=4" in refused(ALONE, gpus=4)
    assert "started 8 tasks on a node where each sees 4 GPUs" in refused(STEP, gpus=4)


def test_variables_that_contradict_each_other_are_refused() -> None:
    """Fails where a RANK or WORLD_SIZE that the batch script exports once makes each task wait for
    the others for ever."""
    assert "unset WORLD_SIZE" in refused(STEP | {"WORLD_SIZE": "8"})
    once = {"RANK": "0", "WORLD_SIZE": "16", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}
    assert "RANK is 0 in task 11 of 16" in refused(STEP | once | {"MASTER_PORT": "1"})
    assert join(STEP | once | {"RANK": "11", "MASTER_PORT": "1"}) == {}
    assert "MASTER_ADDR, MASTER_PORT not" in refused({k: once[k] for k in list(once)[:3]})
    assert "no node 1" in refused(STEP | {"SLURM_STEP_TASKS_PER_NODE": "16"})
    assert "SLURM_NODEID is missing" in refused({k: STEP[k] for k in STEP if k != "SLURM_NODEID"})
    assert "whole number" in refused(STEP | {"SLURM_PROCID": "x"})


@pytest.mark.parametrize("environment", [MPIRUN, HYDRA, STEP | MPIRUN], ids=["ompi", "hydra", "in"])
def test_mpirun_is_one_world(environment: dict[str, str]) -> None:
    """Alone, and below Slurm, whose srun starts one daemon a node. Fails where srun's numbers are
    taken for those of the ranks."""
    joined = join(environment, gpus=2)
    assert (joined["RANK"], joined["LOCAL_RANK"], joined["WORLD_SIZE"]) == ("1", "1", "2")
    assert joined["MASTER_ADDR"] == "127.0.0.1"


def test_mpirun_on_several_nodes_needs_an_address() -> None:
    """Fails where it trains a world a node, or where DeepSpeed meets variables it stops at."""
    several = MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert "-x MASTER_ADDR=HOST" in refused(several)
    assert join(several | {"MASTER_ADDR": "a"})["MASTER_ADDR"] == "a"
    assert "unset CUDA_VISIBLE_DEVICES" in refused(MPIRUN, gpus=1)
    assert "does not tell them which" in refused({"PMI_RANK": "1", "PMI_SIZE": "2"})


def test_a_process_of_an_operator() -> None:
    """Kubeflow's operator sets all but LOCAL_RANK. Fails where a pod with one GPU does not train,
    or where 7 of 8 GPUs stay idle in silence."""
    assert join(OPERATOR, gpus=1) == join(OPERATOR, gpus=0) == {"LOCAL_RANK": "0"}
    assert "--nnodes=2 --node-rank=1 --nproc_per_node=8" in refused(OPERATOR, gpus=8)


@pytest.mark.parametrize(
    "nodelist,host",
    [
        ("node1", "node1"),
        ("node[01-03,7],login", "node01"),
        ("a-1,b[1-2]", "a-1"),
        ("rack[1-2]n[007,009]-ib.cluster", "rack1n007-ib.cluster"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    """Fails where a range loses its zeros, or what follows it."""
    assert first_host(nodelist) == host


def test_short_forms_that_can_not_be_read_are_refused() -> None:
    """Fails where a host or a count is made up."""
    assert read_tasks_per_node("8(x2),4") == [8, 8, 4]
    for bad in ("", "(null)", "node[", "node[a-b]"):
        with pytest.raises(BadInput, match="export MASTER_ADDR"):
            first_host(bad)
    with pytest.raises(BadInput, match="expected counts"):
        read_tasks_per_node("8 x 2")
    with pytest.raises(BadInput, match="host of task 0"):
        join(STEP | {"SLURM_DISTRIBUTION": "arbitrary"})


def test_what_looks_like_separate_runs_is_told() -> None:
    """Fails where tasks of a job train alone without a word, or a world is warned of."""
    nested = STEP | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}
    assert "16 separate runs" in str(separate_runs(nested, False))
    assert "trains alone" in str(separate_runs(BATCH, False))
    assert "trains alone" in str(separate_runs(STEP | {"SLURM_PTY_PORT": "1"}, True))
    for whole in (STEP, STEP | TORCHRUN, BATCH | OPERATOR, {}, SALLOC | {"SLURM_NTASKS": "1"}):
        assert separate_runs(whole, False) is None


def test_a_port_in_use_is_told() -> None:
    """Fails where the ranks wait half an hour for a rank 0 that can't listen, or where another rank
    than 0 is told."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        launchers.require_free_port(where | {"RANK": "1"})
        launchers.require_free_port({})
        with pytest.raises(BadInput, match="export MASTER_PORT"):
            launchers.require_free_port(where | {"RANK": "0"})
    launchers.require_free_port(where | {"RANK": "0"})


def test_ranks_have_one_config() -> None:
    """Fails where ranks train under settings of their own: a sweep by one srun, or a node with an
    older file."""
    same, other = "beta: 0.1\nrun:\n  dir: a\n", "beta: 0.1\nrun:\n  dir: b\n"

    def gathered(*configs: str) -> Callable[[str], list[str]]:
        return lambda _: list(configs)

    require_one_config(SimpleNamespace(all_gather=gathered(same, same)), same)
    for others in ((same, other), (same, same, other)):
        with pytest.raises(BadInput, match=r"'dir: b' there, 'dir: a' on rank 0"):
            require_one_config(SimpleNamespace(all_gather=gathered(*others)), same)
