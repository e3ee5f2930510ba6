"""`zephyr chat` as a process on a terminal: a random model answers, and nothing that is typed or
said is lost or doubled."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import ROOT, free_port
from proxy import Proxy, Server
from safetensors.torch import load_file, save_file

from zephyr.cli import run
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.data.shapes import sft_row
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.generate import generate
from zephyr.model.load import load_policy
from zephyr.playground import terminal as chat
from zephyr.playground.models import Sampling, append_row, open_model
from zephyr.teacher import Budget, Reply, Request, endpoint

SAMPLING = Sampling(max_new_tokens=12, temperature=0.7, top_p=0.95, top_k=50)
PROMPT, CONTINUED = r"(?<=\n)> ", r"(?<=\n)\. "
QUESTION = "What colour is the sky?"


class Terminal:
    """The command with a pseudo-terminal as its standard input and output."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        environment = {
            **os.environ,
            "TERM": "dumb",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zephyr", "chat", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.shown = ""

    def until(self, ending: str, seconds: float = 60) -> str:
        """What is shown from here to `ending`, which is the last there is."""
        end = time.monotonic() + seconds
        while not re.search(ending + r"\Z", self.shown):
            assert (
                time.monotonic() < end
                and select.select([self.master], [], [], end - time.monotonic())[0]
            ), self.shown
            try:
                self.shown += os.read(self.master, 65536).decode(errors="replace").replace("\r", "")
            except OSError:  # Linux's way to say that the process has closed its end
                break
        shown, self.shown = self.shown, ""
        return shown

    def say(self, line: str, ending: str = PROMPT) -> str:
        """Type a line; returns what the program shows until its next prompt, the echo left out."""
        os.write(self.master, line.encode() + b"\n")
        return re.sub(r"^.*\n", "", self.until(ending), count=1).removesuffix("> ")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(tiny: Path) -> Iterator[Terminal]:
    running = Terminal(str(tiny), "--max-new-tokens", "12", "--seed", "3")
    assert running.until("> ") == f"{tiny}: /help lists the commands\n> "
    yield running
    running.close()


@pytest.fixture(scope="module")
def expected(tiny: Path) -> Callable[..., str]:
    """What `generate` answers by the settings above, with other ones as keywords."""
    lm, tokenizer = load_policy(tiny).lm, load_tokenizer(tiny)

    def answer(*turns: str, system: str = "", **changed: float) -> str:
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
        ]
        settings = {
            "max_new_tokens": 12,
            "temperature": 0.7,
            "top_k": 50,
            "top_p": 0.95,
            "seed": 3,
            **changed,
        }
        return generate(
            lm,
            tokenizer,
            [[{"role": "system", "content": system}] * bool(system) + messages],
            **settings,
        )[0]

    return answer


def test_a_conversation(terminal: Terminal, expected: Callable[..., str], tmp_path: Path) -> None:
    """Every answer is the one that `generate` gives to these turns and this seed. Fails where a
    turn is lost, doubled or changed, where another answer has the first one's seed, or where what
    is saved is not what was said, or no row for train_sft.py."""
    file = tmp_path / "saved" / "rows.jsonl"
    first, second = expected(QUESTION), expected(QUESTION, seed=4)
    assert (
        first != second
        and said(terminal.say(QUESTION), first)
        and said(terminal.say("/regenerate"), second)
    )
    assert terminal.say("/reset") == "" and terminal.say("/regenerate").startswith(
        "/regenerate: there is no turn yet"
    )
    assert said(terminal.say(QUESTION), first) and terminal.say("   ") == ""
    assert terminal.say("/system Be \u00e4 pirate.") == ""
    assert terminal.say("two\\", CONTINUED) == ". "
    third = expected(QUESTION, first, "two\nlines", system="Be \u00e4 pirate.")
    assert said(terminal.say("lines"), third)
    for line in ('"""', "/reset", "  is text\\"):
        assert terminal.say(line, CONTINUED) == ". "
    block = expected(
        QUESTION, first, "two\nlines", third, "/reset\n  is text\\", system="Be \u00e4 pirate."
    )
    assert said(terminal.say('"""'), block)
    assert terminal.say(f"/save {file}") == "" and terminal.say("/nope").startswith(
        "/nope: no such command"
    )
    assert "/save FILE" in terminal.say("/help")
    assert terminal.say(f"/save {tmp_path}").startswith("error: ") and terminal.say("/reset") == ""
    assert terminal.say(f"/save {file}").startswith("error: `messages` holds a system turn only")
    os.write(terminal.master, b"\x04")
    terminal.until("never")
    assert terminal.process.wait(30) == 0
    ((_, row),) = read_rows([file])
    contents = [
        "Be \u00e4 pirate.",
        QUESTION,
        first,
        "two\nlines",
        third,
        "/reset\n  is text\\",
        block,
    ]
    assert [turn["content"] for turn in sft_row(row)] == contents


def test_ctrl_c_stops_the_answer(tiny: Path, tmp_path: Path) -> None:
    """The words so far stay in the conversation and the program goes on; at the prompt ctrl-C drops
    the line. Fails where either ends the program, or where the answer runs to its end. A question
    that leaves no room is told and taken back."""
    shutil.copytree(tiny, tmp_path / "endless")
    weights = load_file(tmp_path / "endless" / "model.safetensors")
    weights["lm_head.weight"][2] = 0  # of the EOS: never the greatest logit
    save_file(weights, tmp_path / "endless" / "model.safetensors", metadata={"format": "pt"})
    terminal = Terminal(str(tmp_path / "endless"), "--max-new-tokens", "1900", "--greedy")
    try:
        terminal.until("> ")
        os.write(terminal.master, f"{QUESTION}\n".encode())
        terminal.until(r"\n.+")
        os.write(terminal.master, b"\x03")
        assert terminal.until(PROMPT).endswith("\n[the answer was cut: stopped]\n> ")
        os.write(terminal.master, b"dropped")
        terminal.until("dropped")
        time.sleep(1)  # Python hears no ctrl-C between its prompt and its read until the next key
        os.write(terminal.master, b"\x03")
        terminal.until(PROMPT)
        assert "over the model's 2048 positions" in terminal.say("x! " * 1000)
        assert terminal.say(f"/save {tmp_path / 'row.jsonl'}") == ""
        assert terminal.say("/quit", "never") == "" and terminal.process.wait(30) == 0
    finally:
        terminal.close()
    question, answer = json.loads((tmp_path / "row.jsonl").read_text(encoding="utf-8"))["messages"]
    lm, tokenizer = load_policy(tmp_path / "endless").lm, load_tokenizer(tmp_path / "endless")
    (whole,) = generate(lm, tokenizer, [[question]], max_new_tokens=500)
    assert (
        question["content"] == QUESTION
        and whole.startswith(answer["content"])
        and 0 < len(answer["content"]) < len(whole)
    )


def said(shown: str, answer: str) -> bool:
    """Whether this answer was shown, by its own end or cut off."""
    return shown.removesuffix("[the answer was cut: length]\n") == f"{chat.printable(answer)}\n"


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.0}, {"temperature": 1.5, "top_k": 0, "top_p": 1.0}, {"max_new_tokens": 300}],
)
def test_a_stream_is_what_generate_says(
    changed: dict[str, float], tiny: Path, expected: Callable[..., str]
) -> None:
    """To the last character, and what is shown before is its beginning. Fails for another cache,
    order of warps, seed or decoding."""
    settings = SAMPLING._replace(**changed)
    texts, ends = zip(*open_model(str(tiny), settings)([{"role": "user", "content": QUESTION}], 3))
    wanted = {"temperature": SAMPLING.temperature, **changed}
    assert texts[-1] == expected(QUESTION, **wanted) and len(texts) > 5
    assert (
        set(ends[:-1]) == {""}
        and ends[-1] in ("stop", "length")
        and all(texts[-1].startswith(text) for text in texts)
    )


def test_an_answer_ends_with_the_positions(tiny: Path, expected: Callable[..., str]) -> None:
    """Where the conversation leaves room for 5 tokens there are 5. Fails where a model is asked
    beyond its positions, or not at all."""
    stream, question = (
        open_model(f"hf:{tiny}", SAMPLING._replace(max_new_tokens=500)),
        "x! " * 645,
    )
    from zephyr.chat import encode_prompt

    tokenizer = load_tokenizer(tiny)
    while len(encode_prompt(tokenizer, [{"role": "user", "content": question}])) < 2043:
        question += "!"
    assert list(stream([{"role": "user", "content": question}], 3))[-1] == (
        expected(question, max_new_tokens=5),
        "length",
    )
    with pytest.raises(ValueError, match="over the model's 2048 positions"):
        next(stream([{"role": "user", "content": question + "!!!!!!"}], 3))


def test_a_server_streams(proxy: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server, asked for a stream with all settings but top_k. Fails where parts are doubled
    or lost, and where an error shows the key or ends the program."""
    monkeypatch.setenv("CHAT_KEY", "planted-in-the-environment")
    settings = SAMPLING._replace(temperature=0.0)
    stream, turns = (
        open_model(f"openai:{server.model}@{proxy.url}", settings, "CHAT_KEY"),
        [{"role": "user", "content": QUESTION}],
    )
    parts = list(stream(turns, 3))
    (call,) = proxy.calls
    assert {**call.asked, "model": "", "messages": []} == {
        "model": "",
        "messages": [],
        "max_tokens": 12,
        "temperature": 0.0,
        "top_p": 0.95,
        "seed": 3,
        "stream": True,
    }
    replies: list[Reply] = []
    endpoint(server.model, server.url).answer(
        [Request((turns[0],), 12, 0.0, 0.95, 3)], replies.append, Budget()
    )
    assert parts[-1] == (replies[0].text, replies[0].finish_reason) and len(parts) > 3
    assert all(parts[-1][0].startswith(text) for text, _ in parts)
    proxy.always = "401"
    with pytest.raises(ValueError, match=r"401.*\[key\]") as error:
        next(stream(turns, 3))
    assert "planted" not in str(error.value)
    for fault, words in (
        ("cut", "at http"),
        (f"307 {server.url}/chat/completions", "redirects to .*, another origin"),
    ):
        proxy.always = fault
        with pytest.raises(ValueError, match=words):
            list(stream(turns, 3))
    with pytest.raises(ValueError, match="Connection error"):
        next(open_model(f"openai:m@http://127.0.0.1:{free_port()}/v1", settings)(turns, 3))


def test_a_broken_stream_keeps_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that ends without a reason has not ended the answer; a text that changes on its way
    is shown again; no text, no turn. Fails where any of these passes for an answer as others. An
    escape sequence must not reach the terminal."""
    assert chat.print_stream(part for part in [("a", ""), ("ab", "")]) == "ab"
    assert capsys.readouterr().out == "ab\n[the answer was cut: it broke off]\n"
    assert (
        chat.print_stream(part for part in [("a ", ""), ("a.", "stop")]) == "a."
        and capsys.readouterr().out == "a \na.\n"
    )
    assert (
        chat.print_stream(part for part in [(" ", "stop")]) == ""
        and "the turn is taken back" in capsys.readouterr().out
    )
    assert chat.print_stream(part for part in [("\x1b[2J\x9b5n\ta", "stop")]) == "\x1b[2J\x9b5n\ta"
    assert capsys.readouterr().out == "\\x1b[2J\\x9b5n\ta\n"


def test_a_row_is_appended_whole(tmp_path: Path) -> None:
    """Behind a last line without its end a row begins a line of its own. Fails where it would spoil
    that line."""
    file = tmp_path / "new" / "rows.jsonl"
    append_row(file, {"a": 1})
    file.write_text(file.read_text() + '{"b": 2}')
    append_row(file, {"c": "\u00e4"})
    assert file.read_text(encoding="utf-8") == '{"a": 1}\n{"b": 2}\n{"c": "\u00e4"}\n'


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("m --top-p 0.0", "--top-p 0.0"),
        ("m --temperature nan", "--temperature nan"),
        ("m --max-new-tokens 0", "--max-new-tokens 0"),
        ("a b", "2 models"),
        ("a b c --web", "3 models"),
        ("world:judge", "a model folder"),
        ("./no/such/folder", "no such folder"),
        ("openai:m", "BASE_URL"),
        ("openai:m@https://x/v1?key=1", "it holds a query"),
    ],
)
def test_bad_input_is_told(line: str, found: str) -> None:
    """Each is one line that names what was found. Fails where it would be a traceback, or be found
    out at the first answer."""
    with pytest.raises(BadInput, match=re.escape(found)):
        run(["chat", *line.split()])
