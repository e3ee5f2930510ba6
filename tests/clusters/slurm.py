"""A Slurm of one node on this machine, with daemons of its own and all files in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import ROOT, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
# A requeued job waits for the life of a credential, 120 s by default.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why Slurm can't run here; None where it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} is not installed (apt-get install slurm-wlm)"
    return None if os.geteuid() == 0 else "slurmd starts jobs as root"


class Slurm:
    """Its commands. Jobs run in this repository, with two CPU ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "PYTHONPATH": str(ROOT),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "RANKS": "2",
            "ZEPHYR_CACHE": str(folder / "cache"),
        }

    def run(self, *command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """A command of Slurm, which may fail."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )

    def ask(self, *command: str) -> str:
        """What a command of Slurm that does not fail prints."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job: PENDING, RUNNING, COMPLETED, ..."""
        shown = self.ask("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def wait(self, ready: Callable[[], bool], seconds: float = 180) -> None:
        """Wait until `ready()`."""
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, f"not within {seconds} s: {self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of all files that daemons and jobs wrote."""
        return "\n".join(
            f"{path}:\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """The daemons, until the end of the block. Its jobs are cancelled then."""
    slurm = Slurm(folder)
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            controller_port=free_port(),
            node_port=free_port(),
            cpus=os.cpu_count(),
        )
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "seed-file", "log-file")]
    munge = ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    commands = [
        ["munged", *munge, *files],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-c"],
    ]
    daemons = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out.log").open("wb") as log:
                daemons.append(
                    subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log)
                )
            time.sleep(1)
        slurm.wait(lambda: slurm.run("sinfo", "-h", "-o", "%T").stdout.strip() == "idle", 60)
        yield slurm
    finally:
        slurm.run("scancel", "--user=root")
        with contextlib.suppress(AssertionError):
            slurm.wait(lambda: not slurm.run("squeue", "-h").stdout.strip(), 60)
        for daemon in daemons[::-1]:
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()
