"""Whatever a person gets wrong, train_dpo.py says in one line what and where, ends with 2, and
leaves nothing half-written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cases import BAD_ROWS, CASES, GOOD, ROWS, Case
from forkserver import ENVIRONMENT, LATE, ROOT, Done, ForkServer
from tiny import tiny_tokenizer

from zephyr.chat import encode_pair
from zephyr.data.encode import load_pairs
from zephyr.data.tokenizer import prepare_tokenizer

LONGEST = 600  # characters of a message
EVERY_CASE = pytest.mark.parametrize("name", CASES)
KEPT = {
    "status.json",
    "config.yaml",
    "data.json",
    "lock",
    "chat_template.jinja",
}  # what a refused run may leave in its folder


@pytest.fixture
def at(tiny: Path, tmp_path: Path) -> Path:
    """The folder of a case's input: a copy of the model and a good config."""
    at = tmp_path / "input"
    shutil.copytree(tiny, at / "model")
    tree = {
        "model": str(at / "model"),
        "data": {"train": [str(ROWS / "good.jsonl")]},
        "optim": {"lr_peak": 1e-3, "epochs": 1, "pairs_per_step": 8},
        "reference": {"dir": str(tmp_path / "reference")},
        "hardware": {
            "tokens_per_micro_batch": 600,
            "dtype": "float32",
            "attention": "sdpa",
            "deepspeed": "configs/deepspeed/cpu.json",
        },
        "run": {"dir": str(tmp_path / "run"), "wandb": {"mode": "disabled"}},
    }
    (at / "config.yaml").write_text(yaml.safe_dump(tree))
    return at


def digests(*folders: Path) -> dict[Path, str]:
    """Every file and folder below, with the bytes of each file in short."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in paths
    }


def complaints(done: Done, case: Case, folder: Path, changed: bool) -> list[str]:
    """What is not as it should be after a bad input; none: all is well."""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    message = errors[0].removeprefix("error: ") if errors else ""
    names = [path.name for path in folder.rglob("*")]
    store = [name for name in names if name.startswith("part-")]
    unsaid = [part for part in case.says if part not in message]
    found = {
        f"exit code {done.code}, expected 2": done.code != 2,
        f"{len(errors)} lines begin with error:, expected one": len(errors) != 1,
        "a traceback": "Traceback" in done.err + done.out,
        f"a message of {len(message)} characters": len(message) > LONGEST,
        f"the message says nothing of {unsaid}": bool(unsaid),
        "the message is more than a line": done.err.count("\n") > 20
        or any(not char.isprintable() for char in message),
        "standard output is not empty": bool(done.out.strip()),
        "an input was changed": changed,
        f"left half-written: {names}": any(
            name.endswith(".part") or name.startswith(".writing-") for name in names
        ),
        f"a part of the reference store was left: {store}": bool(store) and not case.paid,
        f"unknown files beside the input: {sorted(os.listdir(folder))}": not {
            "input",
            "run",
            "reference",
            "cache",
            "stdout",
            "stderr",
        }.issuperset(os.listdir(folder)),
    }
    return [what for what, holds in found.items() if holds] + run_folder(folder / "run", message)


def run_folder(run: Path, message: str) -> list[str]:
    """What is wrong in the run folder: it may be absent; else its files are whole and tell the
    same."""
    if not run.exists():
        return []
    extra = {path.name for path in run.iterdir()} - KEPT
    status = json.loads((run / "status.json").read_text())
    told = {
        "code": status["code"],
        "message": status["message"].encode("utf-8", "backslashreplace").decode(),
    }
    wrong = [f"the run folder holds {extra}"] if extra else []
    wrong += [] if told == {"code": 2, "message": message} else [f"status.json holds {status}"]
    for name, read in (("config.yaml", yaml.safe_load), ("data.json", json.loads)):
        if (run / name).exists() and not isinstance(read((run / name).read_text()), dict):
            wrong.append(f"{name} is not whole")
    return wrong


def writing_to(path: Path) -> list[str]:
    """Processes whose standard output is this file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [process.name] if os.readlink(process / "fd" / "1") == str(path) else []
    return found


def environment(folder: Path) -> dict[str, str]:
    return {**ENVIRONMENT, "ZEPHYR_CACHE": str(folder / "cache")}


@EVERY_CASE
def test_bad_input(name: str, fork_server: ForkServer, at: Path, tmp_path: Path) -> None:
    """Every case in a process of its own, forked. Fails for an exception, another code, a message
    that does not say what or where, or of more than a line, and for anything half-written or
    changed."""
    arguments = CASES[name].make(at)
    before = digests(at, ROWS)
    done = fork_server.run(arguments, environment(tmp_path), tmp_path)
    assert complaints(done, CASES[name], tmp_path, digests(at, ROWS) != before) == [], done.err[
        -3000:
    ]
    assert writing_to(tmp_path / "stdout") == [], "processes that it started are still there"


@pytest.mark.long
@EVERY_CASE
def test_bad_input_from_the_command_line(name: str, at: Path, tmp_path: Path) -> None:
    """The same by `python train_dpo.py`. Fails, beside the above, where what the forks share hides
    a fault of a fresh start."""
    arguments = CASES[name].make(at)
    before = digests(at, ROWS)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_dpo.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        env={**os.environ, **environment(tmp_path)},
        encoding="utf-8",
        errors="surrogateescape",
    )
    outcome = Done(done.returncode, done.stdout, done.stderr)
    assert complaints(outcome, CASES[name], tmp_path, digests(at, ROWS) != before) == [], (
        done.stderr[-3000:]
    )


def test_good_input_is_not_refused(fork_server: ForkServer, at: Path, tmp_path: Path) -> None:
    """The config that every case spoils, unspoilt: fails where the cases are refused for what all
    of them share."""
    done = fork_server.run([str(at / "config.yaml"), "--dry-run"], environment(tmp_path), tmp_path)
    assert done.code == 0 and "plan: 1 steps" in done.out and not (tmp_path / "run").exists(), (
        done.err
    )
    assert (
        len(complaints(done, Case(lambda at: [], ("what",)), tmp_path, False)) == 4
    )  # code, no message, nothing said, a page


def test_a_beta_meant_for_sums_is_warned_of(
    fork_server: ForkServer, at: Path, tmp_path: Path
) -> None:
    """SimPO's own beta is silent, DPO's is not, before anything is trained. Fails where the warning
    is not printed, or stops the run."""
    for beta, warned in (("2.0", False), ("0.1", True)):
        arguments = [str(at / "config.yaml"), "loss={name: simpo}", f"beta={beta}", "--dry-run"]
        done = fork_server.run(arguments, environment(tmp_path), tmp_path)
        assert done.code == 0 and "plan: 1 steps" in done.out, done.err
        assert ("warning: beta is 0.1: loss 'simpo' takes means" in done.err) is warned


SAID = Done(2, "", "error: a.jsonl:2: wrong\n")


@pytest.mark.parametrize(
    "done,left,complaint",
    [
        (SAID._replace(code=1), "", "exit code 1"),
        (SAID._replace(code=LATE), "", f"exit code {LATE}"),
        (SAID._replace(err=""), "", "0 lines"),
        (SAID._replace(err=SAID.err * 2), "", "2 lines"),
        (SAID._replace(err=SAID.err + "Traceback (most recent call last):"), "", "a traceback"),
        (SAID._replace(err=f"error: a.jsonl:2: wrong {'x' * 600}"), "", "617 characters"),
        (SAID._replace(err="error: wrong"), "", "['a.jsonl:2']"),
        (SAID._replace(err="error: a.jsonl:2: wrong \0"), "", "more than a line"),
        (SAID._replace(out="error"), "", "standard output"),
        (SAID, "cache/.writing-x/examples.arrow", "half-written"),
        (SAID, "run/data.json.part", "half-written"),
        (SAID, "reference/0/part-0.safetensors", "reference store"),
        (SAID, "core", "unknown files"),
        (SAID, "run/metrics.jsonl", "the run folder holds"),
    ],
)
def test_every_fault_is_seen(done: Done, left: str, complaint: str, tmp_path: Path) -> None:
    """The check of all cases, against what must not pass it. Fails where a fault of train_dpo.py
    would go unseen."""
    case = Case(lambda at: [], ("a.jsonl:2", "wrong"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(
        json.dumps({"code": 2, "message": "a.jsonl:2: wrong"})
    )
    assert complaints(SAID, case, tmp_path, False) == [] and complaints(
        SAID, case, tmp_path, True
    ) == ["an input was changed"]
    if left:
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).write_text("{}")
    assert complaint in "; ".join(complaints(done, case, tmp_path, False))


def test_corpus_is_whole() -> None:
    """Fails where a file of rows/ is no case, a case has no file, or the corpus shrinks."""
    assert {path.stem for path in ROWS.iterdir()} == {
        *BAD_ROWS,
        "good",
        "pretty_printed",
        "id_twice",
        "all_bad",
    }
    assert len(CASES) >= 200 and all(case.says for case in CASES.values())


def test_what_only_looks_bad_is_read(tmp_path: Path) -> None:
    """A megabyte in one line, a byte order mark, NULs and pairs of surrogates as JSON escapes are
    rows like any other. Fails where one is refused, or read as something else."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    long = {**GOOD, "prompt": "why is the sky blue " * 50_000}
    escaped = '{"prompt": "a\\u0000b \\ud83d\\ude00", "chosen": "so", "rejected": "no"}'
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\ufeff{json.dumps(GOOD)}\n{json.dumps(long)}\n{escaped}\n", encoding="utf-8")
    pairs, report = load_pairs([str(path)], tokenizer, max_tokens=64, max_prompt_tokens=32)
    assert (
        report["examples"] == 3
        and len(pairs[1].prompt_ids) == 32
        and report["cut"]["prompt"]["rows"] == 1
    )
    assert (
        pairs[2][1:]
        == encode_pair(tokenizer, {"prompt": "a\0b \U0001f600", "chosen": "so", "rejected": "no"})[
            1:
        ]
    )
