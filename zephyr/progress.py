"""How far a long command is: a bar on a terminal, at most one line a minute without one.

Everything here goes to standard error, from rank 0 only. With `--quiet` there are no bars and no
lines of `info`; warnings stay.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar, cast

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
LINE_SECONDS = 60.0  # between two lines of a bar where there is no terminal
clock = time.monotonic  # replaced by tests
_settings = {"quiet": False}


@contextlib.contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Show no bars and no lines of `info` inside; nothing changes where `on` is false."""
    before = _settings["quiet"]
    _settings["quiet"] = before or on
    try:
        yield
    finally:
        _settings["quiet"] = before


def is_shown() -> bool:
    """Whether this process shows progress: rank 0, and not quiet."""
    return not _settings["quiet"] and os.environ.get("RANK", "0") == "0"


def bars_are_shown() -> bool:
    """Whether progress is shown as bars: on a terminal. Else it is lines."""
    return is_shown() and sys.stderr.isatty()


def info(text: str) -> None:
    """Write a line above the bars; nothing with `--quiet`, or on another rank than 0."""
    if is_shown():
        write(text)


def warn(text: str) -> None:
    """Write `warning: ` and the text above the bars on rank 0, also with `--quiet`."""
    if os.environ.get("RANK", "0") == "0":
        write(f"warning: {text}")


def write(text: str) -> None:
    """Write a line to standard error, above the bars of this process."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def print_result(text: str) -> None:
    """Write a line to standard output, above the bars of this process, also with `--quiet`."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


@contextlib.contextmanager
def library_bars(*, hide: bool = False) -> Iterator[None]:
    """Show the bars of libraries inside as ours: as they are on a terminal, else as at most a line
    a minute; none with `--quiet` or on another rank than 0.

    They write to `sys.stderr`, which is replaced meanwhile where they are not shown as they are.
    Args: hide: show none of them.
    """
    if bars_are_shown() and not hide:
        yield
        return
    stderr = sys.stderr
    sys.stderr = cast(TextIO, LibraryBars(stderr, hide=hide or not is_shown()))
    try:
        yield
    finally:
        sys.stderr = stderr


class LibraryBars:
    """A stream that passes on lines, and of the states of a bar, which begin with a carriage
    return, at most one a minute."""

    def __init__(self, stream: TextIO, *, hide: bool) -> None:
        self.stream, self.hide = stream, hide
        self.last_line = clock()
        self.in_line = False  # whether what was passed on last was no whole line

    def write(self, text: str) -> int:
        state = text.replace("\x1b[A", "").strip("\r\n ")
        if not text.startswith("\r") and (state or self.in_line):
            self.stream.write(text)
            self.in_line = not text.endswith("\n")
        elif state and not self.hide and clock() - self.last_line >= LINE_SECONDS:
            self.last_line = clock()
            self.stream.write(f"{state}\n")
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


class Bar:
    """Progress of one task, as a context manager: owns its bar, or the times of its lines.

    Its end is shown where the task took longer than a minute.
    """

    def __init__(
        self, name: str, total: int | None, unit: str, *, initial: int = 0, keep: bool = False
    ) -> None:
        """Show the bar; without a terminal, the first line comes after a minute.

        Args:
            total: None where it is not known: then there is no percentage and no time left.
            unit: what is counted, in the plural: `pairs`.
            initial: how many were done before, as in a resumed run; they don't count as speed.
            keep: show the end also of a task that took less than a minute. Else nothing is shown of
                a total below 2, which has no progress.
        """
        self.name, self.total, self.unit, self.keep = name, total, unit, keep
        self.done = self.initial = initial
        self.text = ""  # behind the counts
        self.started = self.last_line = clock()
        has_progress = keep or total is None or total > 1
        self.shows_lines = has_progress and is_shown() and not bars_are_shown()
        self.bar = self.open_bar() if has_progress and bars_are_shown() else None

    def open_bar(self) -> tqdm[object]:
        from tqdm import tqdm

        counts = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_noinv_fmt}{postfix}]"
        if self.total is not None:
            counts = "{l_bar}{bar}| {n_fmt}/{total_fmt} "
            counts += "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
        return tqdm(
            desc=self.name,
            total=self.total,
            initial=self.initial,
            unit=f" {self.unit}",
            file=sys.stderr,
            dynamic_ncols=True,
            miniters=1,
            bar_format=counts,
        )

    def update(self, count: int = 1) -> None:
        """Move on by `count`."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif self.shows_lines and clock() - self.last_line >= LINE_SECONDS:
            self.last_line = clock()
            write(self.line())

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and move on by one after each."""
        for item in items:
            yield item
            self.update()

    def show(self, text: str) -> None:
        """Show a text, as the metrics of the last step, behind the counts from now on."""
        self.text = text
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)

    def line(self) -> str:
        """Done and total, rate, time so far and time left, and the text."""
        from tqdm import tqdm

        seconds, new = clock() - self.started, self.done - self.initial
        rate = new / seconds if seconds > 0 else 0.0
        total = "" if self.total is None else f"/{self.total:,}"
        parts = [f"{self.done:,}{total} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:{',.0f' if rate >= 100 else '.3g'}} {self.unit}/s")
        parts.append(f"{tqdm.format_interval(seconds)} elapsed")
        if self.total is not None and self.done < self.total and rate > 0:
            parts.append(f"{tqdm.format_interval((self.total - self.done) / rate)} left")
        return f"{self.name}: {', '.join(parts + [self.text] * bool(self.text))}"

    def close(self) -> None:
        """End the bar: it stays on the screen, or a last line is written, where it took longer than
        a minute. A second call does nothing."""
        stays = self.keep or clock() - self.started >= LINE_SECONDS
        if self.bar is not None:
            self.bar.leave = stays
            self.bar.close()
        elif self.shows_lines and stays:
            write(self.line())
        self.shows_lines = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def track(items: Iterable[T], name: str, unit: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items under a `Bar` of their own.

    Args: total: default: the length of the items, where they have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(name, total, unit) as bar:
        yield from bar.track(items)
