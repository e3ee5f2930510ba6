"""How a run ends, told four ways that must agree: the exit code, standard error, status.json, and
what is raised. One rank in this process, its process group real."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed
import yaml
from processes import ROOT
from runs import write_config

from zephyr.config import BadInput, DPOConfig, DryRun, help_text, load
from zephyr.training import launch as launching
from zephyr.training.engine import Engine
from zephyr.training.folder import RunFolder
from zephyr.training.launch import handle_stop_signals, is_lost_rank_error, launch, watch_rank0
from zephyr.training.loop import Stopped


class Started:
    """A config, and what was called with what when it was launched."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.config = write_config(folder, folder / "model", folder / "rows.jsonl")
        self.checked: list[DPOConfig] = []
        self.trained: list[tuple[Engine, DPOConfig, RunFolder]] = []
        self.predicted: list[tuple[Engine, DPOConfig, DryRun]] = []
        self.signals: object = None

    def __call__(self, *arguments: str, ends: BaseException | None = None) -> int:
        def train(engine: Engine, config: DPOConfig, folder: RunFolder) -> None:
            self.trained.append((engine, config, folder))
            self.signals = signal.getsignal(signal.SIGUSR1)
            assert self.status() == {"code": None, "message": "running"}
            if ends is not None:
                raise ends

        def predict(engine: Engine, config: DPOConfig, asked: DryRun) -> None:
            self.predicted.append((engine, config, asked))
            if ends is not None:
                raise ends

        argv = [str(self.config), *arguments]
        return launch(DPOConfig, self.checked.append, train, predict, "the usage", argv)

    def status(self) -> dict[str, object]:
        return json.loads((self.run / "status.json").read_text())


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return Started(tmp_path)


def test_a_run_that_returns_is_finished(started: Started) -> None:
    """Fails where the config that is trained, or kept, is not the file's with its overrides; where
    signals are not heard while it trains, or heard ever after; or where the folder stays locked, or
    the process group open, so that a second run in this process can't start."""
    before = signal.getsignal(signal.SIGUSR1)
    for beta in (0.2, 0.3):
        assert started(f"beta={beta}", "run.seed=3") == 0
        engine, config, folder = started.trained.pop()
        assert config == started.checked.pop() and (config.beta, config.run.seed) == (beta, 3)
        assert yaml.safe_load((started.run / "config.yaml").read_text())["beta"] == beta
        assert (
            engine.rank == 0
            and folder.claimed
            and started.status() == {"code": 0, "message": "finished"}
        )
        shutil.rmtree(started.run)  # else the second start meets another run
    assert started.signals is not before and signal.getsignal(signal.SIGUSR1) is before
    assert "RANK" not in os.environ


LOST = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
ENDS: list[tuple[BaseException, int, str, str]] = [
    (BadInput("data.train: no rows"), 2, "error: data.train: no rows\n", "data.train: no rows"),
    (Stopped("after step 3"), 75, "stopped: after step 3\n", "after step 3"),
    (
        OSError(errno.ENOSPC, "No space left"),
        2,
        "error: [Errno 28] No space",
        "[Errno 28] No space",
    ),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "error: [Errno 122]", "[Errno 122] Disk"),
]


@pytest.mark.parametrize("error,code,said,kept", ENDS, ids=lambda value: type(value).__name__)
def test_an_end_that_is_nobodys_bug_is_a_line_and_a_code(
    error: BaseException,
    code: int,
    said: str,
    kept: str,
    started: Started,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails where one ends in a traceback or another one's code, its status says something else, it
    is told by every rank of a machine, or the next start in the folder is refused."""
    assert started(ends=error) == code
    if isinstance(error, OSError):  # which of the other ranks still answer is unknown
        close()
    assert "RANK" not in os.environ and not torch.distributed.is_initialized()
    assert capsys.readouterr().err.startswith(said)
    assert started.status()["code"] == code and started.status()["message"].startswith(kept)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    if not isinstance(error, OSError):
        monkeypatch.setattr(launching, "run", lambda *_: (_ for _ in ()).throw(error))
        assert started() == code and capsys.readouterr().err == ""


def test_an_error_is_raised_and_kept(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug keeps its traceback; a rank that lost another one says how to go on. Fails where an
    exit code of 0 or 2 hides a crash, or a crash is taken for a lost rank, or the other way."""
    for error in (
        OSError(errno.EIO, "Input/output error"),
        KeyError("beta"),
        RuntimeError("shape"),
    ):
        with pytest.raises(type(error)):
            started(ends=error)
        assert started.status()["code"] == 1 and type(error).__name__ in started.status()["message"]
        assert "another rank" not in capsys.readouterr().err
        close()
    with pytest.raises(RuntimeError, match="by peer"):
        started(ends=RuntimeError(LOST))
    close()
    assert started.status()["code"] == 1
    assert (
        started.status()["message"].startswith("another rank ended")
        and LOST in started.status()["message"]
    )
    assert (
        "error: another rank ended or cannot be reached; start the run again"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "ends", [None, RuntimeError(LOST), Stopped("by a signal"), BadInput("x")], ids=repr
)
def test_no_signal_cuts_off_the_end(
    ends: BaseException | None, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one rank has ended, torchrun sends SIGTERM to the others, which write their end at that
    moment. Fails where the signal's default, the end of the process, is back before status.json is
    written: it would say for ever that the run goes on."""
    heard = {}
    write = RunFolder.write_status

    def write_status(folder: RunFolder, code: int | None, message: str, *more: object) -> None:
        heard[code] = signal.getsignal(signal.SIGTERM)
        write(folder, code, message, *more)

    monkeypatch.setattr(RunFolder, "write_status", write_status)
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(RuntimeError):
        started(ends=ends)
    (end,) = heard.keys() - {None}
    assert started.status()["code"] == end
    assert heard[end] is not before and signal.getsignal(signal.SIGTERM) is before
    if isinstance(ends, RuntimeError):
        close()


def close() -> None:
    """What a process that a bug ends leaves to the system."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def test_which_errors_are_of_a_lost_rank() -> None:
    """As gloo and NCCL say it. Fails where their errors are taken for a bug of ours, or a bug for
    theirs."""
    assert is_lost_rank_error(RuntimeError(LOST))
    assert is_lost_rank_error(RuntimeError("NCCL communicator was aborted on rank 1"))
    assert not is_lost_rank_error(RuntimeError("shape mismatch")) and not is_lost_rank_error(
        ValueError(LOST)
    )


def test_a_dry_run_has_no_folder(started: Started) -> None:
    """Fails where it trains, leaves a trace, is refused what only a run needs, or an option is
    taken for an override."""
    assert started("--dry-run", "beta=0.2", "--gpus", "16") == 0
    ((_, config, asked),) = started.predicted
    assert asked == DryRun(gpus=16) and config.beta == 0.2 and not started.run.exists()
    assert not started.trained and not started.checked
    assert started("--dry-run", ends=BadInput("x")) == 2 and not started.run.exists()


def test_what_is_known_before_a_process_group_ends_before_it(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong key and a refused check. Fails where training begins, or a check comes behind it."""
    assert started("betta=1") == 2 and "betta" in capsys.readouterr().err and not started.checked

    def refuse(_: DPOConfig) -> None:
        raise BadInput("no such model")

    assert (
        launch(DPOConfig, refuse, pytest.fail, pytest.fail, "the usage", [str(started.config)]) == 2
    )
    assert capsys.readouterr().err == "error: no such model\n"
    assert started.status() == {"code": 2, "message": "no such model"}
    assert started("run.resume=never") == 0, "a start that failed is no run"
    (started.run / "checkpoints").mkdir()
    assert started("run.resume=never") == 2


@pytest.mark.parametrize("arguments", [("--help",), ("x.yaml", "-h")])
def test_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where help trains, or does not list the keys."""
    assert (
        launch(DPOConfig, pytest.fail, pytest.fail, pytest.fail, "the usage", list(arguments)) == 0
    )
    assert capsys.readouterr().out == help_text(DPOConfig, "the usage") + "\n"


def test_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what is expected. Fails where a call without a config is a success, or prints
    pages of help."""
    assert launch(DPOConfig, pytest.fail, pytest.fail, pytest.fail, "the usage", []) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: expected CONFIG.yaml")
    assert shown.err.count("\n") == 1


def test_overrides_stand_anywhere(started: Started) -> None:
    """Fails where an override or `--dry-run` in front of the config is taken for the config."""
    arguments = ["beta=0.2", "--dry-run", str(started.config), "data.limit=4", "optim.epochs=1"]
    predicted: list[DPOConfig] = []

    def predict(_: Engine, config: DPOConfig, asked: DryRun) -> None:
        assert asked == DryRun()
        predicted.append(config)

    assert launch(DPOConfig, pytest.fail, pytest.fail, predict, "the usage", arguments) == 0
    (config,) = predicted
    assert (config.beta, config.data.limit, config.optim.epochs) == (0.2, 4, 1)


def asks(engine: SimpleNamespace, number: signal.Signals) -> None:
    """A real signal, which asks to stop and does no more."""
    engine.stop_requested = False
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        pytest.fail(f"{number.name} stopped at once")
    assert engine.stop_requested


def test_each_signal_asks_to_stop() -> None:
    """Again and again, as impatient schedulers send them. Fails where one of those ends the
    process, or the handlers of before are lost, where an error passes through too."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        engine, before = SimpleNamespace(stop_requested=False), signal.getsignal(number)
        with pytest.raises(ZeroDivisionError), handle_stop_signals(engine):
            asks(engine, number)
            if number != signal.SIGINT:
                try:
                    signal.raise_signal(number)
                except KeyboardInterrupt:
                    pytest.fail(f"a second {number.name} stopped at once")
            raise ZeroDivisionError
        assert signal.getsignal(number) is before


def test_the_other_ranks_watch_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is gone, without a wait of its own: each look is over at once. Fails where nobody
    looks again, rank 0 waits for itself, or the thread keeps a process alive."""
    looks: list[float] = []
    begun = threading.Event()

    def gone(seconds: float) -> bool:
        assert begun.wait(20)
        looks.append(seconds)
        return len(looks) == 3

    monkeypatch.setattr(launching.time, "sleep", lambda _: None)
    before = set(threading.enumerate())
    watch_rank0(SimpleNamespace(rank=0), SimpleNamespace(write_status_for_rank0=gone))
    assert set(threading.enumerate()) == before
    watch_rank0(SimpleNamespace(rank=1), SimpleNamespace(write_status_for_rank0=gone))
    (watch,) = set(threading.enumerate()) - before
    begun.set()
    watch.join(timeout=20)
    assert not watch.is_alive() and watch.daemon and looks == [0, 0, 0]


@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_ends_with_its_launcher(launched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun the process is another's child once the launcher is dead. Fails where an
    orphan trains on and holds the folder, a living launcher's rank ends, or a run without one is
    watched."""
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    parents, begun, codes = iter([7, 7, 7, 1]), threading.Event(), []
    monkeypatch.setattr(launching.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(launching.os, "_exit", codes.append)
    monkeypatch.setattr(launching.time, "sleep", lambda _: begun.wait(20))
    before = set(threading.enumerate())
    launching.exit_with_torchrun()
    watches = set(threading.enumerate()) - before
    begun.set()
    for watch in watches:
        watch.join(timeout=20)
        assert watch.daemon and not watch.is_alive()
    assert codes == ([1] if launched else []) and next(parents, None) == (None if launched else 7)


def test_the_end_of_a_process_is_its_code() -> None:
    """In a process of its own. Fails where what was said last is lost, or a library's thread or
    hook makes another code of it."""
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            sys.stdout = os.fdopen(writes, "w")
            print("said last", end="")
            launching.exit_process(75)
        finally:  # not to go on with the tests twice
            os._exit(99)
    os.close(writes)
    with os.fdopen(reads) as out:
        assert out.read() == "said last"
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 75


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [RuntimeError(LOST), RuntimeError("shape")], ids=["lost", "bug"])
def test_a_rank_that_lost_another_waits_for_rank_0_s_end(
    rank: int, error: RuntimeError, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rank 1 of two. Fails where rank 0 waits for itself, a bug of its own makes a rank wait, or
    the group is closed, which would wait for the dead; where the end of a rank 0 that was killed is
    left to nobody; or where the other rank takes the lock, or does not hear that the folder is
    accepted."""
    waits: list[float] = []
    engine = SimpleNamespace(
        heartbeat=None,
        rank=rank,
        stop_requested=False,
        on_all_ranks=lambda make: make(),
        all_gather=lambda value: [value],
        broadcast=lambda _: True,
        close=lambda: pytest.fail("closed"),
    )
    monkeypatch.setattr(launching, "Engine", lambda *_: engine)
    monkeypatch.setattr(launching, "watch_rank0", lambda *_: None)
    monkeypatch.setenv("RANK", str(rank))
    folder = RunFolder(started.run)
    monkeypatch.setattr(folder, "write_status_for_rank0", waits.append)

    def train(_: Engine, __: DPOConfig, of: RunFolder) -> None:
        assert of.claimed and (of.lock is None) == (rank > 0)
        raise error

    with pytest.raises(RuntimeError):
        config = load(DPOConfig, str(started.config), [])
        with contextlib.ExitStack() as signals:
            launching.run(config, folder, train, signals)
    assert waits == (
        [launching.RANK0_TIMEOUT_SECONDS] if rank == 1 and "peer" in str(error) else []
    )
    folder.close()
