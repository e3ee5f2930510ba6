"""The commands as processes: seeds to pairs on the embedded world, and Self-Instruct against a
server, killed and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from processes import ROOT

from zephyr.chat import check_pair
from zephyr.cli import main
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.data.shapes import sft_row
from zephyr.world.facts import build_world
from zephyr.world.teacher import prompts_by_text, teacher_reply

WORLD = build_world(0)
KNOWN = prompts_by_text(WORLD)


def written(message: str, seed: int) -> str:
    """What the embedded teacher writes where it reads its task in our prompts, as a model would."""
    task = re.findall(r"^Task: (.*)$", message, re.MULTILINE)
    if numbers := re.search(r"from (\d+) to (\d+)", message):
        first, last = map(int, numbers.groups())
        about: dict[str, object] = {
            "task": "instructions",
            "demonstrations": [""] * (first - 1),
            "count": last - first + 1,
        }
    elif "Yes or No" in message:
        about = {"task": "classify", "instruction": task[-1]}
    else:
        about = {
            "task": "instances",
            "instruction": task[-1],
            "is_classification": "Class label" in message,
        }
    return teacher_reply("teacher", about, message, seed, WORLD, KNOWN)


class Handler(BaseHTTPRequestHandler):
    """Chat completions of the embedded teacher, over HTTP; the server's `asked` counts every
    request."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked[json.dumps(body, sort_keys=True)] += 1
        time.sleep(0.01)
        text = written(body["messages"][-1]["content"], body["seed"])
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
        }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def teacher() -> Iterator[ThreadingHTTPServer]:
    pytest.importorskip("openai", reason="openai is absent, without which no server can be asked")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = Counter()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.long
def test_self_instruct_is_killed_and_asks_nothing_twice(
    teacher: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """kill -9 in the middle, twice, then a run to the end: the rows of an undisturbed run; every
    request was answered once, but those in flight at a kill. Fails for a lost reply, a repeated
    call, or rows that depend on when a run was killed."""
    write_rows(
        tmp_path / "seeds.jsonl",
        [
            {
                "id": f"s{n}",
                "instruction": p.prompt,
                "is_classification": p.form == "one_word",
                "instances": [{"input": "", "output": "Blue."}],
            }
            for n, p in enumerate(list(KNOWN.values())[::400])
        ],
    )

    def command(out: str) -> subprocess.Popen[bytes]:
        spec = f"openai:m@http://127.0.0.1:{teacher.server_address[1]}/v1"
        return subprocess.Popen(
            [
                str(Path(sys.executable).with_name("zephyr")),
                "self-instruct",
                "--seeds",
                str(tmp_path / "seeds.jsonl"),
                "--n",
                "60",
                "--teacher",
                spec,
                "--largest-rouge-l",
                "1",
                "--out",
                str(tmp_path / out),
                "--concurrency",
                "4",
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OPENAI_API_KEY": "sk-planted-key", "OMP_NUM_THREADS": "1"},
        )

    for wanted in (5, 60):
        process, deadline = command("killed.jsonl"), time.monotonic() + 120
        while teacher.asked.total() < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed.jsonl").exists()
    assert command("killed.jsonl").wait(timeout=120) == 0
    total, ledger = teacher.asked.total(), (tmp_path / "killed.ledger.jsonl").read_text()
    assert (
        len(teacher.asked) == len(ledger.splitlines())
        and total - len(teacher.asked) <= 2 * 4
        and "sk-planted-key" not in ledger
    )
    assert command("killed.jsonl").wait(timeout=120) == 0 and teacher.asked.total() == total
    assert command("undisturbed.jsonl").wait(timeout=120) == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    rows = [row for _, row in read_rows([tmp_path / "killed.jsonl"])]
    assert len(rows) == 60 and {sft_row(row)[0]["content"] for row in rows} <= set(KNOWN)
    assert {digest for row in rows for of in row["lineage"]["calls"].values() for digest in of} <= {
        json.loads(line)["digest"] for line in ledger.splitlines()
    }


def test_from_seeds_to_pairs_on_the_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickstart's commands with its own configs, on fewer rows. Fails where one does not read
    what the one before wrote, a held-out prompt gets into training, or a report is missing."""
    monkeypatch.chdir(tmp_path)
    world = Path("runs/tiny/world")
    assert main(["world", str(world)]) == 0
    configs = ROOT / "configs" / "tiny" / "data"
    assert (
        main(["self-instruct", "--config", str(configs / "self_instruct.yaml"), "--n", "200"]) == 0
    )
    test_prompt = next(row for _, row in read_rows([world / "prompts" / "test.jsonl"]))["prompt"]
    with Path("runs/tiny/self_instruct.jsonl").open("a") as rows:
        rows.write(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": test_prompt},
                        {"role": "assistant", "content": "Blue."},
                    ]
                }
            )
            + "\n"
        )
    assert main(["prepare", "--config", str(configs / "prepare.yaml")]) == 0
    dialogues = [row for _, row in read_rows(["runs/tiny/dialogues.jsonl"])]
    assert len(dialogues) == 200 and all(
        sft_row(row)[0]["content"] != test_prompt for row in dialogues
    )
    (tmp_path / "prompts.jsonl").write_text(
        "".join((world / "prompts" / "feedback.jsonl").read_text().splitlines(True)[:20])
    )
    assert (
        main(
            [
                "feedback",
                "prompts.jsonl",
                "--config",
                str(configs / "feedback.yaml"),
                "--out",
                "runs/tiny/feedback.jsonl",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "binarize",
                "runs/tiny/feedback.jsonl",
                "--rule",
                "margin>=0.5",
                "--out",
                "runs/tiny/pairs.jsonl",
            ]
        )
        == 0
    )
    pairs = [row for _, row in read_rows(["runs/tiny/pairs.jsonl"])]
    assert pairs and all(
        row["score_chosen"] - row["score_rejected"] >= 0.5 and check_pair(row) for row in pairs
    )
    assert {
        "id",
        "prompt_id",
        "chosen_model",
        "rejected_model",
        "score_chosen",
        "score_rejected",
    } <= pairs[0].keys()
    assert {path.name for path in Path("runs/tiny").glob("*.report.json")} == {
        f"{name}.report.json" for name in ("self_instruct", "dialogues", "feedback", "pairs")
    }


def test_no_command_writes_over_its_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where `--out` may be a source, a folder, or below a file, and is found out after all
    calls are paid for."""
    world = "world:expert,world:terse,world:careless,world:evasive"
    write_rows(tmp_path / "rows.jsonl", [{"prompt_id": "a", "prompt": "why?"}])
    before = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "plain").write_text("")
    for out, says in (
        ("rows.jsonl", "is among the sources"),
        ("", "is a folder"),
        ("plain/x.jsonl", "can't be made"),
    ):
        rows, out = str(tmp_path / "rows.jsonl"), str(tmp_path / out)
        for arguments in (
            [
                "feedback",
                rows,
                "--answerers",
                world,
                "--judge",
                "world:judge",
                "--ledger",
                str(tmp_path / "ledger.jsonl"),
            ],
            ["binarize", rows],
            [
                "self-instruct",
                "--seeds",
                rows,
                "--n",
                "1",
                "--teacher",
                "world:teacher",
                "--variant",
                "dialogue",
                "--ledger",
                str(tmp_path / "ledger.jsonl"),
            ],
        ):
            assert main([*arguments, "--out", out]) == 2
            assert says in (error := capsys.readouterr().err) and error.count("\n") == 1, error
    assert (tmp_path / "rows.jsonl").read_bytes() == before and not (
        tmp_path / "ledger.jsonl"
    ).read_text()


@pytest.mark.parametrize(
    "name",
    [
        "self-instruct",
        "prepare",
        "feedback",
        "binarize",
        "lineage",
        "verify",
        "world",
        "eval win-rate",
        "eval mt-bench",
        "eval alpaca-eval",
        "eval arena-hard",
        "eval ifeval",
        "eval best-of-n",
        "eval academic",
    ],
)
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where a command has no help, or its help no line to copy."""
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0 and f"example: zephyr {name}" in " ".join(
        capsys.readouterr().out.split()
    )
