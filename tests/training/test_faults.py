"""What really happens to long runs, done to real ones: each ends as an undisturbed run does, or
says in a line why not."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from processes import Launch
from runs import LONG, background, ledger, ranks_of, records, require_same_end, running, wait_for
from safetensors.numpy import load_file, save_file

from zephyr.training.checkpoint import damaged_files
from zephyr.training.launch import handle_stop_signals


@pytest.mark.parametrize(
    "number",
    ["SIGUSR1", *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGTERM", "SIGINT"))],
)
def test_a_signal_saves_and_stops_and_the_run_goes_on(
    number: str, finished: Path, undisturbed: Path, launch: Launch, tmp_path: Path
) -> None:
    """As Slurm pre-empts: the signal reaches the launcher, the step is finished and saved,
    status.json says 75; started again, the run ends as an undisturbed one, to the bit. Fails where
    the signal kills, saves half, or the run can't go on."""
    run = tmp_path / "run"
    arguments = (finished / "config.yaml", f"run.dir={run}", *LONG)
    with background("train_dpo.py", *arguments) as process:
        wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 3, process)
        process.send_signal(getattr(signal, number))
        process.wait(timeout=120)
    assert json.loads((run / "status.json").read_text())["code"] == 75
    saved = int((run / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert (
        3 <= saved < 30
        and len(records(run)) == saved
        and {v["step"] for v in ledger(run)} == set(range(saved))
    )
    if number == "SIGUSR1":
        launch("train_dpo.py", *arguments, ranks=2)
        require_same_end(run, undisturbed)


def test_a_second_sigint_stops_at_once() -> None:
    """The handlers of a run, given real signals: the first asks, the second raises; a second
    SIGTERM, as impatient schedulers send, still only asks; afterwards the process's own are back.
    Fails where ctrl-C twice waits for the step, or once ends it."""
    engine, before = SimpleNamespace(stop_requested=False), signal.getsignal(signal.SIGINT)
    with handle_stop_signals(engine):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert engine.stop_requested
        engine.stop_requested = False
        signal.raise_signal(signal.SIGINT)
        assert engine.stop_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_rank_ends_the_run_which_goes_on(
    rank: int, finished: Path, undisturbed: Path, launch: Launch, tmp_path: Path
) -> None:
    """SIGKILL of one rank somewhere after the first checkpoint, in the middle of an epoch: all end
    within a minute, and the status says so, whoever is left to write it; started again, the run
    ends as the undisturbed one, to the bit: each pair once an epoch, as many updates as the
    schedule has. Fails for a hang, a half-written part that is read, a lost line, or a run that is
    said to go on for ever."""
    run = tmp_path / "run"
    arguments = (finished / "config.yaml", f"run.dir={run}", *LONG, "run.save_every=4")
    with background("train_dpo.py", *arguments) as process:
        wait_for(lambda: (run / "checkpoints" / "latest").exists(), process)
        time.sleep(random.random())
        os.kill(ranks_of(process)[rank], signal.SIGKILL)
        process.wait(timeout=60)
    status = json.loads((run / "status.json").read_text())
    assert not (run / "model").exists() and status["code"] == 1
    assert ("rank 0 ended without a message" if rank == 0 else "another rank ended") in status[
        "message"
    ]
    if rank == 0:  # what follows is the same
        return
    result = launch("train_dpo.py", *arguments, ranks=2)
    assert "resumed from" in result.stderr
    require_same_end(run, undisturbed)
    visits = Counter((int(visit["epoch"]), visit["id"]) for visit in ledger(run))
    assert set(visits) == {(epoch, f"p{i}") for epoch in range(10) for i in range(20)} and set(
        visits.values()
    ) == {1}
    assert [record["step"] for record in records(run)] == list(range(10 * 3))


@pytest.mark.long
def test_ranks_end_with_their_launcher(finished: Path, tmp_path: Path) -> None:
    """torchrun is killed: its ranks end within 30 seconds. Fails where orphans train on and hold
    the run folder."""
    run = tmp_path / "run"
    with background(
        "train_dpo.py", finished / "config.yaml", f"run.dir={run}", "optim.epochs=1000"
    ) as process:
        wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 1, process)
        ranks = ranks_of(process)
        assert len(ranks) == 2
        process.kill()
        process.wait()
        wait_for(lambda: not any(running(pid) for pid in ranks), None, seconds=30)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    finished: Path, launch: Launch, tmp_path: Path
) -> None:
    """Step 6 is damaged, step 4 whole: the run goes on from there to the same end, past files and
    folders that are no checkpoint. Fails where damage is loaded, or ends it; where another name
    ends it, or is removed."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    folder = run / "checkpoints" / "step-6"
    victim = sorted(folder.glob("rank-1-*"))[0]
    content, state = bytearray(victim.read_bytes()), folder / "state.json"
    assert [damaged_files(folder, rank, 2) for rank in (0, 1)] == [[], []]
    for path, broken, named in (
        (state, b"{", "state.json"),
        (victim, content[:-100], victim.name),
        (victim, b"", victim.name),
    ):
        whole = path.read_bytes()
        path.write_bytes(broken)
        assert damaged_files(folder, 0, 2) + damaged_files(folder, 1, 2) == [named]
        path.write_bytes(whole)
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    shutil.rmtree(run / "model")  # as of a run that is not finished
    strangers = [
        run / "checkpoints" / name
        for name in ("step-8.bak", "step-08", "step-9", ".DS_Store", "part-of-mine")
    ]
    for path in strangers:
        path.mkdir() if path.name.startswith(("step-8", "part")) else path.write_text("x")
    copy = shutil.copy(run / "pairs" / "step-6.parquet", run / "pairs" / "step-6 copy.parquet")
    result = launch("train_dpo.py", finished / "config.yaml", f"run.dir={run}", ranks=2)
    why = "is ignored: it is not a checkpoint (a folder named step-N)"
    for path in strangers:
        assert path.exists() and f"{path} {why}" in result.stderr
    assert result.stderr.count(why) == len(strangers)
    Path(copy).unlink()
    assert f"step-6 is damaged ({victim.name}); the one before it is used" in result.stderr
    assert [r["loss"] for r in records(run)] == [r["loss"] for r in records(finished / "run")]
    assert ledger(run) == ledger(finished / "run")


def cut_back(run: Path, to: Path, step: int) -> Path:
    """A copy of a run as it stood after the checkpoint at `step`, with records beyond it."""
    shutil.copytree(run, to)
    for folder in (to / "checkpoints").glob("step-*"):
        if folder.name != f"step-{step}":
            shutil.rmtree(folder)
    (to / "checkpoints" / "latest").write_text(f"step-{step}")
    return to


def test_resume_on_other_numbers_of_ranks(finished: Path, launch: Launch, tmp_path: Path) -> None:
    """One rank to step 2, two to step 4, one to the end: the trajectory, and the weights, of the
    run that two ranks did alone. Fails where a shard is put in the wrong place, padding is read as
    a weight, or Adam's step count is lost."""
    arguments = (finished / "config.yaml", "run.keep=5")
    launch("train_dpo.py", *arguments, f"run.dir={tmp_path / 'one'}")
    two = cut_back(tmp_path / "one", tmp_path / "two", 2)
    launch("train_dpo.py", *arguments, f"run.dir={two}", ranks=2)
    last = cut_back(two, tmp_path / "last", 4)
    result = launch("train_dpo.py", *arguments, f"run.dir={last}")
    assert "resumed from" in result.stderr and len(records(last)) == 6
    written = [
        {path.name.split("-")[1] for path in (folder / "checkpoints" / "step-4").glob("rank-*")}
        for folder in (tmp_path / "one", last)
    ]
    assert written == [{"0"}, {"0", "1"}]
    for again, whole in zip(records(last), records(finished / "run")):
        for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm", "learning_rate"):
            assert again[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-5), name
    a, b = (
        load_file(folder / "model" / "model.safetensors") for folder in (last, finished / "run")
    )
    assert all(np.abs(a[name] - b[name]).max() < 1e-4 for name in b)


@pytest.mark.long
def test_ranks_of_unequal_speed(finished: Path, undisturbed: Path, tmp_path: Path) -> None:
    """One rank stands still for half a second, again and again: the other waits, and nothing else
    changes. Fails where a rank goes on with what it has."""
    run = tmp_path / "run"
    with background(
        "train_dpo.py", finished / "config.yaml", f"run.dir={run}", *LONG, log=tmp_path / "log"
    ) as process:
        wait_for(
            lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 3, process, pause=0.01
        )
        slow = ranks_of(process)[1]
        for _ in range(4):
            os.kill(slow, signal.SIGSTOP)
            time.sleep(0.2)  # a step that had begun ends
            before = len(records(run))
            time.sleep(0.5)
            assert len(records(run)) == before < 30
            os.kill(slow, signal.SIGCONT)
            time.sleep(0.3)
        assert process.wait(timeout=120) == 0, (tmp_path / "log").read_text()[-5000:]
    require_same_end(run, undisturbed)


def test_other_rows_or_references_are_refused(
    finished: Path, launch: Launch, tmp_path: Path
) -> None:
    """A row of the data file changed since the checkpoint; then a value of the reference store, by
    less than the probe can see. Fails where either would be trained on in silence."""
    import hashlib

    run, data = shutil.copytree(finished / "run", tmp_path / "run"), tmp_path / "pairs.jsonl"
    data.write_text(
        (finished / "pairs.jsonl").read_text().replace('"chosen": "', '"chosen": "no ', 1)
    )
    changed = launch(
        "train_dpo.py",
        finished / "config.yaml",
        f"run.dir={run}",
        f"data.train=[{data}]",
        f"reference.dir={tmp_path / 'of-these'}",
        check=False,
    )
    assert (
        changed.returncode == 2
        and "is of another run: data (" in changed.stderr
        and "forward pass" not in changed.stderr
    )
    for path in (
        "model",
        "status.json",
    ):  # as of a run that was cut off; a finished one takes no reference
        shutil.rmtree(run / path) if path == "model" else (run / path).write_text(
            '{"code": 75, "message": "stopped"}'
        )
    before = {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"
    }
    store = shutil.copytree(finished / "reference", tmp_path / "store")
    (part,) = store.glob("*/part-*.safetensors")
    tensors = load_file(part)
    tensors["logp"][3, 0] += 1e-4
    save_file(tensors, part)
    part.rename(part.with_name(f"part-{hashlib.sha256(part.read_bytes()).hexdigest()}.safetensors"))
    changed = launch(
        "train_dpo.py",
        finished / "config.yaml",
        f"run.dir={run}",
        f"reference.dir={store}",
        check=False,
    )
    assert (
        changed.returncode == 2
        and "is of another run: reference (" in changed.stderr
        and "data (" not in changed.stderr
    )
    assert {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"
    } == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes: two checkpoints fit, three do not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system to fill can't be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(small_disk: Path, finished: Path, launch: Launch) -> None:
    """Preflight says that it will not do; without preflight the third checkpoint finds no room: one
    line, code 2, nothing half written, the second one whole; with room, started again, the run ends
    as the undisturbed one. Fails for a torn checkpoint that is read, or a run that claims to go
    on."""
    run = small_disk / "run"
    arguments = (finished / "config.yaml", f"run.dir={run}", "run.keep=5")
    refused = launch("train_dpo.py", *arguments, check=False)
    assert (
        refused.returncode == 2
        and "run.keep + 1 = 6 checkpoints" in refused.stderr
        and "forward pass" not in refused.stderr
    )
    full = launch("train_dpo.py", *arguments, "run.preflight=off", ranks=2, check=False)
    (line,) = (line for line in full.stderr.splitlines() if line.startswith("error: "))
    assert (
        "step-6 can't be written" in line
        and "No space left" in line
        and "Error in" not in full.stderr
    )
    assert json.loads((run / "status.json").read_text()) == {
        "code": 2,
        "message": line.removeprefix("error: "),
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"latest", "step-2", "step-4"}
    assert (run / "checkpoints" / "latest").read_text() == "step-4" and not (run / "model").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    launch("train_dpo.py", *arguments, ranks=2)
    assert [r["loss"] for r in records(run)] == [r["loss"] for r in records(finished / "run")]
    assert ledger(run) == ledger(finished / "run")


def newer(paths: Iterator[Path], since: float) -> list[Path]:
    """Those written since; what an earlier kill left does not count. A file may be renamed while
    one looks."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found += [path] if path.stat().st_mtime >= since else []
    return found


def doing(run: Path, reference: Path, since: float) -> str:
    """What a run that started at `since` does, or did when it was killed, by what lies there half
    made."""
    left = {
        "export": newer(run.glob("model.part"), since),
        "save": newer(run.glob("checkpoints/part-*"), since),
        "step": newer(run.glob("metrics.jsonl"), since),
        "reference": newer(reference.glob("*/profile.json"), since),
    }
    return next((phase for phase, found in left.items() if found), "start")


@pytest.mark.long
def test_kill_9_at_random_moments(
    finished: Path, undisturbed: Path, launch: Launch, tmp_path: Path
) -> None:
    """24 times SIGKILL: of one rank, of all, of the launcher; in the reference pass, a step, a
    save, the export; the same four runs are killed again and again, then left alone. Each ends as
    the undisturbed one, to the bit. Fails for a hang, an orphan, a torn file that is read, a line
    lost or doubled."""
    seed = random.randrange(10**6)
    rng, hits = random.Random(seed), Counter()
    print(f"\nseed {seed}")
    for chain in range(4):
        run, reference = tmp_path / f"run-{chain}", tmp_path / f"reference-{chain}"
        arguments = (
            finished / "config.yaml",
            f"run.dir={run}",
            f"reference.dir={reference}",
            *LONG,
            "run.save_every=3",
        )
        for aim in ("reference", "save", "step", "save", "step", "export"):
            # Ranks outlive their launcher for seconds, in which so short a run ends: it is killed
            # last.
            victim = rng.choice(["rank 0", "rank 1", "all"] + ["launcher"] * (aim == "export"))
            with background("train_dpo.py", *arguments, log=tmp_path / "log") as process:
                landed = killed_while(aim, victim, process, run, reference, rng)
            print(f"run {chain}: {victim} killed, aimed at {aim}, landed in {landed}", flush=True)
            hits[landed] += 1
        launch("train_dpo.py", *arguments, ranks=2)
        require_same_end(run, undisturbed)
    print(dict(hits))
    assert sum(hits.values()) == 24
    assert all(hits[phase] for phase in ("reference", "step", "save", "export"))


def killed_while(
    aim: str,
    victim: str,
    process: subprocess.Popen[bytes],
    run: Path,
    reference: Path,
    rng: random.Random,
) -> str:
    """Kill a part of a run that was just started while it does what is aimed at; returns what it
    was doing then, once all of it has ended."""
    since = time.time()
    wait_for(lambda: doing(run, reference, since) == aim, process, pause=0.001)
    time.sleep(rng.uniform(0, {"reference": 0.1, "step": 0.5}.get(aim, 0.01)))
    ranks = ranks_of(process)
    victims = {
        "rank 0": ranks[:1],
        "rank 1": ranks[1:],
        "launcher": [process.pid],
        "all": [process.pid, *ranks],
    }
    for pid in victims[victim]:
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=90)
    wait_for(lambda: not any(running(pid) for pid in ranks), None, seconds=30)
    return doing(run, reference, since)
