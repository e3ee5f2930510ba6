"""What a run folder lets be written, when, and by whom: of a new run, of one that lies there, of
one that another process holds."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from zephyr.config import BadInput, ConfigError
from zephyr.training import folder as folders
from zephyr.training.checkpoint import find_run_output
from zephyr.training.files import IDENTITY
from zephyr.training.folder import RANK0_LOST, RunFolder, json_bytes


def opened(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open()
    return folder


def status(path: Path) -> object:
    return json.loads((path / "status.json").read_text())


def leave(run: Path, mark: str) -> None:
    """A run's mark in a folder: a file that holds something, or a folder."""
    (run / mark).parent.mkdir(parents=True)
    (run / mark).write_text("{}\n") if "." in mark else (run / mark).mkdir()


@pytest.mark.parametrize(
    "mark",
    [
        "metrics.jsonl",
        "report.html",
        IDENTITY,
        "checkpoints/step-1",
        "pairs/x.parquet",
        "model/x.json",
    ],
)
def test_where_a_run_lies_files_wait_until_it_is_accepted(mark: str, tmp_path: Path) -> None:
    """Fails where a start that may yet be refused writes into another run's record, status
    included; where what waited is lost, or an old version of it wins; or where one of the marks of
    a run is not looked for."""
    new = opened(tmp_path / "new")
    new.write_file("data.json", b"1")
    assert (tmp_path / "new" / "data.json").read_bytes() == b"1" and new.claimed
    run = tmp_path / "run"
    leave(run, mark)
    folder = opened(run)
    folder.write_file("data.json", b"1")
    folder.write_file("data.json", b"2")
    folder.write_status(None, "running")
    assert not folder.claimed and {path.name for path in run.iterdir()} == {
        mark.partition("/")[0],
        "lock",
    }
    folder.claim()
    assert (run / "data.json").read_bytes() == b"2" and folder.pending == {}
    assert status(run) == {"code": None, "message": "running"}
    folder.write_file("data.json", b"3")
    assert (run / "data.json").read_bytes() == b"3"


@pytest.mark.parametrize("mark", ["metrics.jsonl", "report.html", IDENTITY, "checkpoints/step-1"])
def test_what_a_run_left_is_found(mark: str, tmp_path: Path) -> None:
    """By itself each of them says that a run was here. Fails where one is overlooked: another run
    would be trained over it."""
    assert find_run_output(tmp_path / "run") == ""
    leave(tmp_path / "run", mark)
    assert find_run_output(tmp_path / "run") in (mark, "checkpoints/")


def test_resume_never_takes_no_folder_of_a_run(tmp_path: Path) -> None:
    """Fails where a run is gone on with that was to be a new one, or a new folder is refused."""
    RunFolder(tmp_path / "new").open("never")
    leave(tmp_path / "run", "checkpoints/step-1")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(BadInput, match="run.resume is never, and .*run holds a run already"):
        folder.open("never")
    assert folder.lock is None and not (tmp_path / "run" / "lock").exists()


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    """Two of a folder at once, then one behind the other. Fails where the second gets in, the
    holder's name is lost to it, a name of before stays, or a folder that was given back is held."""
    first = opened(tmp_path)
    holder = f"pid {os.getpid()} on host {os.uname().nodename}"
    assert (tmp_path / "lock").read_text() == f"{holder}\n"
    with pytest.raises(BadInput, match=f"{tmp_path} is in use by {holder}$"):
        RunFolder(tmp_path).open()
    first.close()
    (tmp_path / "lock").write_text("pid 1234567890 on host another, long ago, far away" * 9)
    opened(tmp_path).close()
    assert (tmp_path / "lock").read_text() == f"{holder}\n"


def test_a_folder_that_cant_be_made_is_named(tmp_path: Path) -> None:
    """Fails for a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run.dir: .*file/run can't be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run").open()
    folder = opened(tmp_path / "run")
    (tmp_path / "run" / "data.json").mkdir()
    with pytest.raises(ConfigError, match="run.dir: .*run/data.json can't be written: Is a dir"):
        folder.write_file("data.json", b"1")


def test_rank_0_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where all ranks write one file, or one that waits is written by each."""
    monkeypatch.setenv("RANK", "1")
    folder = RunFolder(tmp_path / "run")
    folder.write_file("config.yaml", b"")
    folder.claim()
    folder.write_file("config.yaml", b"")
    folder.write_status(2, "refused")
    assert not folder.writes and not (tmp_path / "run").exists()


def test_a_start_that_fails_early_leaves_its_status(tmp_path: Path) -> None:
    """Before the lock was taken: in a new folder the code is there for whoever looks, as torchrun
    hides it; in a run's folder nothing changes. Fails where a wrong key in a command line takes a
    finished run for failed."""
    folder = RunFolder(tmp_path / "new")
    folder.write_status(2, "beta: expected a number > 0, got -1")
    assert status(tmp_path / "new") == {"code": 2, "message": "beta: expected a number > 0, got -1"}
    folder.close()
    opened(tmp_path / "new").close()
    leave(tmp_path / "run", "checkpoints/step-1")
    RunFolder(tmp_path / "run").write_status(2, "refused")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]
    held = opened(tmp_path / "held")
    held.write_status(None, "running")
    RunFolder(tmp_path / "held").write_status(2, "in use")  # says nothing, and leaves the holder's
    assert status(tmp_path / "held") == {"code": None, "message": "running"}


def test_a_full_disk_still_has_room_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a run that ended for want of room says for ever that it runs; or where any other
    file's loss is passed over."""
    folder = opened(tmp_path)
    folder.write_status(None, "running")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "write_atomic", full)
    folder.write_status(2, "no room")
    assert status(tmp_path) == {"code": 2, "message": "no room"}
    with pytest.raises(ConfigError, match="data.json can't be written: No space left on device"):
        folder.write_file("data.json", b"1")


def test_another_rank_writes_the_end_of_a_rank_0_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rank 0 holds the lock there is nothing to do; once it is free and the status says
    "running", the end is written, once. Fails where a rank writes over an end that rank 0 wrote,
    into a run that was not accepted, or where the status stays "running" for ever."""
    held = opened(tmp_path)
    held.write_status(None, "running")
    monkeypatch.setenv("RANK", "1")
    other = RunFolder(tmp_path)
    other.claimed = True
    assert not other.write_status_for_rank0(0) and not other.write_status_for_rank0(0.2)
    assert status(tmp_path) == {"code": None, "message": "running"}
    other.claimed = False
    threading.Timer(0.3, held.close).start()
    assert other.write_status_for_rank0(30), "it waits so long for the lock"
    assert status(tmp_path)["code"] is None
    other.claimed = True
    assert other.write_status_for_rank0(0) and status(tmp_path) == {
        "code": 1,
        "message": RANK0_LOST,
    }
    (tmp_path / "status.json").write_bytes(json_bytes({"code": 75, "message": "stopped"}))
    assert other.write_status_for_rank0(0) and status(tmp_path) == {
        "code": 75,
        "message": "stopped",
    }
    (tmp_path / "status.json").unlink()
    assert not other.write_status_for_rank0(0)  # no status, no end of a run


def test_any_text_can_be_kept() -> None:
    """Half of a surrogate pair, as a model's own JSON can hold, next to letters that UTF-8 has.
    Fails for an error at the end of a run, or a file full of escapes that nobody can read."""
    assert json_bytes({"a": "naïve 日本"}) == '{\n "a": "naïve 日本"\n}\n'.encode()
    assert json.loads(json_bytes({"a": "é \ud83e"})) == {"a": "é \ud83e"}


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "data.json",
        "preflight.json",
        "chat_template.jinja",
        "samples.jsonl",
        "samples.ledger.jsonl",
        "report.html",
    ],
)
def test_each_file_that_a_run_writes_may_be_no_link(name: str, tmp_path: Path) -> None:
    """By the names that the run folder's tree in its guide shows, not by the list that is checked.
    Fails where one was left out of it, and would be written through."""
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=f"{name} is a link, and the run would write"):
        RunFolder(tmp_path).open()
