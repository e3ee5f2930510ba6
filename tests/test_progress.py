"""Progress is a bar on a terminal, at most a line a minute without one, nothing with --quiet."""

import contextlib
import fcntl
import json
import os
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from zephyr import progress
from zephyr.cli import main
from zephyr.config import Wandb
from zephyr.training.metrics import Recorder


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of no effect but on lines; standard error is no terminal under pytest."""
    made = Clock()
    monkeypatch.setattr(progress, "clock", made)
    return made


class Terminal:
    """A pseudo-terminal as standard error."""

    def __init__(self) -> None:
        self.ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.stderr = open(theirs, "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def text(self) -> str:
        """What was written since the last call; a terminal passes it on in pieces."""
        self.stderr.write("\0")
        self.stderr.flush()
        read = b""
        while not read.endswith(b"\0"):
            read += os.read(self.ours, 2**16)
        return read[:-1].decode()


@contextlib.contextmanager
def a_terminal() -> Iterator[Terminal]:
    """Not a fixture: pytest sets its own standard error after those."""
    made = Terminal()
    with made.stderr, contextlib.redirect_stderr(made.stderr):
        yield made
    os.close(made.ours)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    return err.splitlines()


def test_without_a_terminal_a_line_a_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """600 items of half a second each, from the 100th on: 250 seconds, so 4 lines and the end.
    Fails where a line comes more often, its rate counts items of an earlier start, or its time left
    is not (600 - done) / rate."""
    with progress.Bar("train", 600, "steps", initial=100) as bar:
        for _ in range(500):
            clock.now += 0.5
            bar.show("loss=0.5")
            bar.update()
    assert lines(capsys) == [
        "train: 220/600 steps, 2 steps/s, 01:00 elapsed, 03:10 left, loss=0.5",
        "train: 340/600 steps, 2 steps/s, 02:00 elapsed, 02:10 left, loss=0.5",
        "train: 460/600 steps, 2 steps/s, 03:00 elapsed, 01:10 left, loss=0.5",
        "train: 580/600 steps, 2 steps/s, 04:00 elapsed, 00:10 left, loss=0.5",
        "train: 600/600 steps, 2 steps/s, 04:10 elapsed, loss=0.5",
    ]


def test_a_short_task_is_silent_unless_its_end_is_kept(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a log is filled with the ends of tasks of seconds, or a training run of seconds
    has no line at all; or where a second `close` writes a second line."""
    for _ in progress.track(range(10), "score", "pairs"):
        clock.now += 5.9
    assert lines(capsys) == []
    bar = progress.Bar("train", 1, "steps", keep=True)
    bar.update()
    bar.close()
    bar.close()
    assert lines(capsys) == ["train: 1/1 steps, 00:00 elapsed"]


def test_a_total_that_is_not_known(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where the length of a generator is guessed, or a rate of thousands is rounded away."""
    for number, _ in enumerate(progress.track(iter(range(300_000)), "encode", "rows")):
        clock.now += 60 * (number == 123_455)
    assert lines(capsys) == [
        "encode: 123,456 rows, 2,058 rows/s, 01:00 elapsed",
        "encode: 300,000 rows, 5,000 rows/s, 01:00 elapsed",
    ]


@pytest.mark.parametrize("silence", ["quiet", "rank 1"])
def test_quiet_and_other_ranks_show_nothing(
    silence: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bars, notes and bars of libraries stay away; a warning stays with --quiet, and is said by
    rank 0 only. Fails where --quiet outlives its command."""
    monkeypatch.setenv("RANK", "0" if silence == "quiet" else "1")
    with progress.quiet(silence == "quiet"):
        with progress.Bar("train", 2, "steps", keep=True) as bar, progress.library_bars():
            for _ in tqdm(range(3), mininterval=0):
                clock.now += 100
                bar.update()
        progress.info("a note")
        progress.warn("look")
    assert lines(capsys) == ["warning: look"] * (silence == "quiet")
    progress.info("a note")
    assert lines(capsys) == ["a note"] * (silence == "quiet")


def test_bars_of_libraries_become_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a bar that is drawn at every item, two nested ones here, a state a minute is left, whole
    lines pass. Fails where a log gets carriage returns, or a line between them is lost."""
    with progress.library_bars():
        outer = tqdm(range(2), desc="outer", mininterval=0)
        for _ in outer:
            for _ in tqdm(range(8), desc="inner", mininterval=0):
                clock.now += 10
            print("a line", file=sys.stderr)
        tqdm.write("the end", file=sys.stderr)
    got = lines(capsys)
    assert [line for line in got if "%" not in line] == ["a line", "a line", "the end"]
    states = [line for line in got if "%" in line]
    assert len(states) == 2 and all("/8 [" in state or "/2 [" in state for state in states)


def test_on_a_terminal_a_bar() -> None:
    """With rate, time left and metrics; lines stand above it. The bar of a task of seconds
    disappears, that of training stays. Fails where it is drawn without a terminal's carriage
    return, or leaves its remains behind a line."""
    with a_terminal() as terminal:
        with progress.Bar("train", 4, "steps", keep=True) as bar:
            for step in range(4):
                bar.show(f"loss=0.{step}")
                bar.update()
            progress.info("step 4 eval: loss=0.2")
        trained = terminal.text()
        list(progress.track(range(3), "score", "pairs"))
        scored = terminal.text()
    assert "\rstep 4 eval: loss=0.2\r\n" in trained  # the bar before it is wiped out
    last = trained.removesuffix("\r\n").split("\r")[-1]
    assert "train: 100%|" in last and "4/4 [" in last and "steps/s, loss=0.3]" in last
    assert "score:   0%|" in scored and scored.endswith("\r") and "\n" not in scored


def test_on_a_terminal_quiet_is_quiet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where --quiet is for log files only."""
    with a_terminal() as terminal, progress.quiet():
        for _ in progress.track(range(3), "score", "pairs"):
            clock.now += 100
        progress.warn("look")
        progress.print_result("0.71")
        assert terminal.text() == "warning: look\r\n"
    assert capsys.readouterr().out == "0.71\n"


def feedback_rows(path: Path) -> Path:
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": f"question {i}",
            "completions": [
                {"model": "a", "text": f"good {i}", "scores": {"honesty": 5}},
                {"model": "b", "text": f"bad {i}", "scores": {"honesty": 2}},
            ],
        }
        for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_command_on_a_terminal_in_a_pipe_and_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is the only thing on standard output each time. Fails where the bar goes there, a
    command has no --quiet, or a bar counts other rows than the file has."""
    feedback = feedback_rows(tmp_path / "feedback.jsonl")
    command = [
        "binarize",
        str(feedback),
        "--rule",
        "margin>=1",
        "--out",
        str(tmp_path / "pairs.jsonl"),
    ]
    with a_terminal() as terminal:
        code, shown = main(command), terminal.text()
        assert code == 0, shown
        assert main([*command, "--quiet"]) == 0
        assert terminal.text() == ""
    assert "binarize:   0%|" in shown and "0/5 [" in shown
    result, again = capsys.readouterr().out.splitlines()
    assert result == again and "pairs.jsonl" in result
    assert main(command) == 0
    assert capsys.readouterr() == (f"{result}\n", "")


def test_training_keeps_its_metrics_in_the_lines(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps of 40 seconds: two lines on the way, the metrics of the step in each, an evaluation
    and an alarm where they come; with --quiet the alarm stays. Fails where a log gets a line a
    step, or none with the loss."""
    told = []
    for is_quiet in (False, True):
        with progress.quiet(is_quiet):
            recorder = Recorder(
                tmp_path / str(is_quiet),
                Wandb(mode="disabled"),
                "{}",
                first_step=0,
                steps=6,
                active=True,
            )
            recorder.path.parent.mkdir()
            for step in range(6):
                clock.now += 40
                record = {"step": step, "split": "train", "loss": step / 10}
                recorder.write(record, {"overfit": "it overfits"} if step == 5 else {})
                recorder.advance()
            recorder.write({"step": 6, "split": "eval", "loss": 0.25}, {})
            recorder.close()
        told.append(lines(capsys))
    assert told == [
        [
            "train: 2/6 steps, 0.025 steps/s, 01:20 elapsed, 02:40 left, loss=0.1",
            "train: 4/6 steps, 0.025 steps/s, 02:40 elapsed, 01:20 left, loss=0.3",
            "alarm at step 5: it overfits",
            "train: 6/6 steps, 0.025 steps/s, 04:00 elapsed, loss=0.5",
            "step 6 eval: loss=0.25",
            "train: 6/6 steps, 0.025 steps/s, 04:00 elapsed, loss=0.5",
        ],
        ["alarm at step 5: it overfits"],
    ]


def test_standard_error_is_what_it_was_after_a_librarys_bars() -> None:
    """Also after an error. Fails where the stream stays replaced: what comes later is lost."""
    before = sys.stderr
    with pytest.raises(KeyError), progress.library_bars(hide=True):
        assert sys.stderr is not before
        raise KeyError
    assert sys.stderr is before
