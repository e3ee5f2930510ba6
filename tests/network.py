"""Two hosts on this machine: network namespaces, each with its own address, name and folder of
caches, and one cable between them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import ROOT
from torch.distributed.run import get_args_parser

PORT = 29500  # of the rendezvous: a namespace has all ports to itself


class Host(NamedTuple):
    """One end of the cable. folder: what lies on its own disk: caches and a log."""

    name: str
    address: str
    namespace: str
    folder: Path

    def environment(self) -> dict[str, str]:
        """Variables of its processes: its own caches, and the interface that gloo talks over."""
        return {
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "cable",
            "ZEPHYR_CACHE": str(self.folder / "zephyr"),
            "HF_HOME": str(self.folder / "huggingface"),
        }

    def start(self, command: Sequence[str | Path], **environment: str) -> subprocess.Popen[bytes]:
        """Run a command on this host, in a session of its own; what it says goes to `log`."""
        script = 'hostname "$0"; mount --bind "$1" /etc/hosts; mount --bind "$2" "$3"; shift 3; '
        arguments = [self.name, self.folder.parent / "hosts", self.folder, self.disk]
        inside = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "-u", "-m"]
        with open(self.log, "ab") as output:
            return subprocess.Popen(
                [*inside, "sh", "-ec", f'{script}exec "$@"', *arguments, *map(str, command)],
                cwd=ROOT,
                start_new_session=True,
                stdout=output,
                stderr=output,
                env={**self.environment(), **environment},
            )

    @property
    def disk(self) -> Path:
        """Where its processes find `folder`: every host has its own under the same path."""
        return self.folder.parent / "disk"

    @property
    def log(self) -> Path:
        return self.folder / "log"


def torchrun(*arguments: str | Path, node: int | None = None) -> list[str | Path]:
    """The launch line of the README for one rank on each of two nodes, with the rendezvous on
    alpha. Args: node: its number; None: torchrun numbers the nodes."""
    flags = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    if "--shutdown-timeout" in get_args_parser().format_usage():
        flags += ["--shutdown-timeout", "600"]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=alpha:{PORT}", "--rdzv-id=job"]
    if node is not None:
        rendezvous = [f"--node-rank={node}", "--master-addr=alpha", f"--master-port={PORT}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
    return [*launcher, "--nproc_per_node=1", *rendezvous, *flags, *arguments]


def set_cable(host: Host, state: str) -> None:
    """Args: state: up or down."""
    ip("-n", host.namespace, "link", "set", "cable", state)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def kill(*processes: subprocess.Popen[bytes]) -> None:
    """End the sessions that were started, their children included."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """The hosts alpha and beta, until the end of the block. Skips where the system refuses."""
    hosts = []
    (folder / "disk").mkdir(parents=True)
    for number, name in enumerate(("alpha", "beta"), start=1):
        (folder / name).mkdir()
        hosts.append(Host(name, f"10.77.0.{number}", f"zephyr-{os.getpid()}-{name}", folder / name))
    names = [f"{host.address} {host.name}\n" for host in hosts]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
    first, second = hosts
    try:
        for host in hosts:
            ip("netns", "add", host.namespace)
        pair = ("cable", "netns", first.namespace, "type", "veth")
        ip("link", "add", *pair, "peer", "name", "cable", "netns", second.namespace)
        for host in hosts:
            ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "cable")
            ip("-n", host.namespace, "link", "set", "lo", "up")
            set_cable(host, "up")
        probe = first.start(["true"])
        if probe.wait() != 0:
            pytest.skip(f"a host can't be made here: {first.log.read_text().strip()}")
        yield first, second
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"two hosts can't be made here: {getattr(error, 'stderr', error)}")
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True)
