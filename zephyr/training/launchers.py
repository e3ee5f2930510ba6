"""The variables of srun, mpirun or a cluster's operator become those of torchrun.

`srun python train_dpo.py` starts one process a task. Slurm tells each its number in variables of
its own; torch.distributed reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without
a translation every task would train a world of its own. What can't be translated is refused.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from zephyr import progress
from zephyr.config import BadInput

Environment = Mapping[str, str]
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Slurm numbers the steps of srun from 0. The batch script, the shell of salloc and containers
# outside any step have numbers from here on, or none.
FIRST_SPECIAL_STEP = 0xFFFFFF00
# Ports that Linux gives to outgoing connections begin at 32768.
FIRST_PORT, PORTS = 10_000, 20_000


class Task(NamedTuple):
    """A process among those that a launcher started together."""

    launcher: str  # its name in messages
    rank: int
    ranks: int
    local_rank: int  # among the tasks of its node
    local_ranks: int
    first_host: str | None  # the host of rank 0; None where the launcher does not tell
    job: int  # a number that is the same in all tasks, and other in other jobs


def join_world(environment: Environment, *, gpus: int, interactive: bool) -> dict[str, str]:
    """The variables to set in this process, so that the tasks of one launch are one world.

    torchrun's own variables win: below `srun torchrun` nothing is set.

    Args:
        environment: the process's.
        gpus: GPUs that this process sees; 0 to train on CPUs.
        interactive: whether a person types: the shell of `srun --pty` is no task among others.
    Returns: {} for torchrun, and for a single process.
    Raises: BadInput where variables contradict each other, and where the tasks of a node don't
        match its GPUs.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return {}
    task = find_task(environment, interactive)
    if "RANK" in environment:
        if task is not None:
            require_own_rank(environment, task)
        return complete_variables(environment, gpus)
    if task is None:
        return {}
    if environment.get("WORLD_SIZE", str(task.ranks)) != str(task.ranks):
        raise BadInput(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, and {task.launcher} started {task.ranks} "
            "tasks: unset WORLD_SIZE, or start as many tasks"
        )
    require_a_gpu_a_task(task, gpus)
    if task.ranks == 1:
        return {}
    device = 0 if gpus == 1 else task.local_rank
    return {
        "RANK": str(task.rank),
        "WORLD_SIZE": str(task.ranks),
        "LOCAL_RANK": str(device),
        "LOCAL_WORLD_SIZE": str(task.local_ranks),
        "ZEPHYR_RANK_ON_NODE": str(task.local_rank),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or master_address(task),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(FIRST_PORT + task.job % PORTS),
    }


def find_task(environment: Environment, interactive: bool) -> Task | None:
    """This process's task; None where no launcher that we know started it.

    mpirun below srun inherits srun's variables, so mpirun's count first.
    """
    if "OMPI_COMM_WORLD_RANK" in environment:
        return mpi_task(environment, OPEN_MPI_NAME, *OPEN_MPI)
    if "PMI_RANK" in environment and "MPI_LOCALRANKID" in environment:
        return mpi_task(environment, "mpirun (Hydra)", *HYDRA)
    if is_slurm_task(environment) and not (interactive and "SLURM_PTY_PORT" in environment):
        return slurm_task(environment)
    if "PMI_RANK" in environment and environment.get("PMI_SIZE", "1") != "1":
        raise BadInput(
            f"an MPI launcher started {environment['PMI_SIZE']} processes, and does not tell them "
            "which of them share a node: start them by torchrun, srun or Open MPI's mpirun"
        )
    return None


def is_slurm_task(environment: Environment) -> bool:
    """Whether srun started this process.

    Where a container hides the step's number, the number of the task tells it. The batch script has
    one too, 0, beside ENVIRONMENT, which sbatch sets.
    """
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID", "")
    if step:
        return step.isdecimal() and int(step) < FIRST_SPECIAL_STEP
    if environment.get("SLURM_NTASKS", "1") == "1" or "SLURM_PROCID" not in environment:
        return False
    if environment.get("RANK") == environment["SLURM_PROCID"]:
        return False  # whoever hid the step has set torchrun's variables for each task
    return environment["SLURM_PROCID"] != "0" or environment.get("ENVIRONMENT") != "BATCH"


OPEN_MPI_NAME = "mpirun (Open MPI)"
OPEN_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def mpi_task(
    environment: Environment, launcher: str, rank: str, size: str, local: str, local_size: str
) -> Task:
    """The task of mpirun. Args: the names of its variables. Raises: BadInput: one is missing."""
    local_ranks, ranks = number(environment, local_size), number(environment, size)
    return Task(
        launcher=launcher,
        rank=number(environment, rank),
        ranks=ranks,
        local_rank=number(environment, local),
        local_ranks=local_ranks,
        first_host="127.0.0.1" if local_ranks == ranks else None,
        job=zlib.crc32(environment.get("PMIX_NAMESPACE", "").encode()),  # Open MPI's id of a launch
    )


def slurm_task(environment: Environment) -> Task:
    """The task of a step that srun started. Raises: BadInput: a variable of Slurm is missing."""
    environment = of_step(environment)
    ranks = number(environment, "SLURM_STEP_NUM_TASKS")
    tasks_of_nodes = read_tasks_per_node(text(environment, "SLURM_STEP_TASKS_PER_NODE"))
    node = number(environment, "SLURM_NODEID")
    if node >= len(tasks_of_nodes) or sum(tasks_of_nodes) != ranks:
        raise BadInput(
            f"SLURM_STEP_TASKS_PER_NODE is {environment['SLURM_STEP_TASKS_PER_NODE']!r}, which has "
            f"no node {node} or not {ranks} tasks, which SLURM_STEP_NUM_TASKS says"
        )
    return Task(
        launcher="srun",
        rank=number(environment, "SLURM_PROCID"),
        ranks=ranks,
        local_rank=number(environment, "SLURM_LOCALID"),
        local_ranks=tasks_of_nodes[node],
        first_host=slurm_first_host(environment, len(tasks_of_nodes)),
        job=number(environment, "SLURM_JOB_ID") + 7919 * number(environment, "SLURM_STEP_ID"),
    )


def of_step(environment: Environment) -> Environment:
    """The variables with those of the step, by the older names where Slurm's newer ones are hidden;
    the names of the job say the same in a task of srun."""
    found = dict(environment)
    for name, older in (
        ("SLURM_STEP_ID", "SLURM_STEPID"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
        ("SLURM_STEP_NODELIST", "SLURM_NODELIST"),
        ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"),
        ("SLURM_JOB_ID", "SLURM_JOBID"),
    ):
        if name not in found and older in found:
            found[name] = found[older]
    found.setdefault("SLURM_STEP_ID", "0")
    return found


def slurm_first_host(environment: Environment, nodes: int) -> str | None:
    """The host of task 0; None where the tasks were distributed by a list of the user."""
    if nodes == 1:
        return "127.0.0.1"
    if environment.get("SLURM_DISTRIBUTION") == "arbitrary":
        return None
    return first_host(text(environment, "SLURM_STEP_NODELIST"))


def first_host(nodelist: str) -> str:
    """The first host of Slurm's short form: `node03` of `node[03-05,9],login1`.

    Raises: BadInput: it has no such form.
    """
    match = re.match(r"(?:[\w.-]|\[\d[\d,-]*\])+(?=,|$)", nodelist)
    if match is None:
        raise BadInput(
            f"SLURM_STEP_NODELIST is {nodelist!r}, of which the first host can't be read: export "
            "MASTER_ADDR with the host of task 0"
        )
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", match.group())


def read_tasks_per_node(short: str) -> list[int]:
    """The tasks of each node of Slurm's short form: [2, 2, 1] of `2(x2),1`. Raises: BadInput."""
    counts: list[int] = []
    for part in short.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise BadInput(
                f"SLURM_STEP_TASKS_PER_NODE is {short!r}, expected counts like 8(x2),4: start the "
                "run by torchrun"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def require_own_rank(environment: Environment, task: Task) -> None:
    """Raise BadInput where RANK was exported once for all tasks: they would wait for the others."""
    same_size = environment.get("WORLD_SIZE") == str(task.ranks)
    if same_size and environment["RANK"] != str(task.rank):
        raise BadInput(
            f"RANK is {environment['RANK']} in task {task.rank} of {task.ranks} that "
            f"{task.launcher} started: unset RANK, LOCAL_RANK and WORLD_SIZE, which are read from "
            f"{task.launcher}"
        )


def complete_variables(environment: Environment, gpus: int) -> dict[str, str]:
    """LOCAL_RANK where whatever set RANK left it out, as operators of Kubernetes do.

    Raises: BadInput where another variable is missing, or one process would leave GPUs unused.
    """
    missing = [name for name in RENDEZVOUS if name not in environment]
    if not missing:
        return {}
    if missing != ["LOCAL_RANK"]:
        raise BadInput(
            f"RANK is set and {', '.join(missing)} not: start the run by torchrun, which sets them "
            "all, or unset RANK for a single process"
        )
    if gpus > 1:
        nodes, node = environment["WORLD_SIZE"], environment["RANK"]
        raise BadInput(
            f"LOCAL_RANK is not set, and this process sees {gpus} GPUs: start torchrun "
            f"--nnodes={nodes} --node-rank={node} --nproc_per_node={gpus} "
            "--master-addr=$MASTER_ADDR --master-port=$MASTER_PORT on each node"
        )
    return {"LOCAL_RANK": "0"}


def require_a_gpu_a_task(task: Task, gpus: int) -> None:
    """Raise BadInput unless each task sees one GPU, or all tasks of the node one each."""
    if gpus == 1 < task.local_ranks and task.launcher == OPEN_MPI_NAME:
        raise BadInput(  # DeepSpeed wants Open MPI's local rank to be the number of the GPU
            f"each of {task.local_ranks} processes of mpirun sees one GPU: let each see all of its "
            "node (unset CUDA_VISIBLE_DEVICES), or start the run by srun or torchrun"
        )
    if gpus in (0, 1, task.local_ranks):
        return
    if gpus > task.local_ranks:
        fix = (
            f"start {gpus} tasks a node (--ntasks-per-node={gpus}), or one torchrun a node (srun "
            f"torchrun --nnodes=N --nproc_per_node={gpus}), or show each task one GPU "
            "(--gpus-per-task=1)"
        )
    else:
        fix = f"start {gpus} tasks a node, one a GPU (--ntasks-per-node={gpus})"
    raise BadInput(
        f"{task.launcher} started {task.local_ranks} {'task' if task.local_ranks == 1 else 'tasks'}"
        f" on a node where each sees {gpus} GPUs, and a task trains on one: {fix}"
    )


def master_address(task: Task) -> str:
    """The host of rank 0. Raises: BadInput where the launcher does not tell it."""
    if task.first_host is None:
        raise BadInput(
            f"{task.launcher} started tasks on several nodes and does not tell the host of task 0: "
            "export MASTER_ADDR with that host, to all tasks (mpirun -x MASTER_ADDR=HOST)"
        )
    return task.first_host


def require_free_port(variables: Mapping[str, str]) -> None:
    """Raise BadInput on rank 0 where another program listens on the port that was chosen."""
    if variables.get("RANK") != "0":
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(variables["MASTER_PORT"])))
        except OSError as error:
            raise BadInput(
                f"port {variables['MASTER_PORT']} on {variables['MASTER_ADDR']}, where the ranks "
                f"meet, can't be used ({error.strerror}): export MASTER_PORT with another one"
            ) from None


def separate_runs(environment: Environment, interactive: bool) -> str | None:
    """A warning where the tasks of a job look meant as one run, and each trains by itself."""
    if "TORCHELASTIC_RUN_ID" in environment:
        task = find_task(environment, interactive)
        if task is None or task.ranks == 1 or environment.get("GROUP_WORLD_SIZE") != "1":
            return None
        return (
            f"{task.launcher} started {task.ranks} tasks, and each started a torchrun of one node: "
            f"these are {task.ranks} separate runs. For one run, give torchrun --nnodes and "
            "--rdzv-endpoint (configs/cluster/README.md)"
        )
    tasks = environment.get("SLURM_NTASKS", "1")
    is_lone = "RANK" not in environment and find_task(environment, interactive) is None
    if is_lone and "SLURM_JOB_ID" in environment and tasks != "1":
        return (
            f"this job has {tasks} tasks, and this process is none of them: it trains alone. For "
            "one run of all tasks, start it by srun or torchrun (configs/cluster/README.md)"
        )
    return None


def text(environment: Environment, name: str) -> str:
    """A variable of a launcher. Raises: BadInput: it is missing."""
    if name not in environment:
        raise BadInput(
            f"this looks like a task of a cluster's launcher, and {name} is missing: start the run "
            "by torchrun"
        )
    return environment[name]


def number(environment: Environment, name: str) -> int:
    """A variable that is a whole number. Raises: BadInput: it is missing, or no number."""
    value = text(environment, name)
    if not value.isdecimal():
        raise BadInput(f"{name} is {value!r}, expected a whole number: start the run by torchrun")
    return int(value)


def visible_gpus() -> int:
    """GPUs that this process sees; 0 where it trains on CPUs."""
    import torch

    if os.environ.get("DS_ACCELERATOR", "cuda") != "cuda":
        return 0
    return torch.cuda.device_count()


def use_launcher() -> None:
    """Set torchrun's variables in this process where another launcher started it.

    Raises: BadInput: see `join_world` and `require_free_port`.
    """
    interactive = sys.stdin is not None and sys.stdin.isatty()
    variables = join_world(os.environ, gpus=visible_gpus(), interactive=interactive)
    require_free_port(variables)
    warning = separate_runs(os.environ, interactive)
    if warning:
        progress.warn(warning)
    os.environ.update(variables)
