"""A reply becomes one line of an append-only JSONL file as soon as it arrives, and is found again
by the digest of its request."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from glob import escape
from io import FileIO
from pathlib import Path

from zephyr.config import BadInput
from zephyr.teacher.request import Reply, Request, Spending
from zephyr.training import ranks

LINE_START = b'{"digest": "'  # of every line
# bytes: a request of `sources.MAX_LINE_BYTES`, and a reply of `endpoint.MAX_REPLY_BYTES` both as
# text and as the JSON that arrived
MAX_LINE_BYTES = 2**28
# A killed process loses nothing; a power failure loses at most the replies of this time.
SYNC_SECONDS = 1.0


class Ledger:
    """Every reply that was ever paid for. Memory holds only the position of each one.

    Rank 0 writes `path`; under torchrun, rank r writes `STEM.rankr.jsonl` beside it. Every rank
    reads all of these files. A last line that a kill cut off is removed.

    Attributes:
        held: the spending of all replies and failed attempts in the files.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the ledger; it is made if it does not exist.

        Args:
            read_only: neither lock, repair nor make the file. This allows lookups during a run.
        Raises:
            BadInput: if another process writes the ledger, it cannot be read or written, or a line
                other than the last is broken.
        """
        self.path = Path(path)
        self.held = Spending()
        rank = ranks.rank()
        rank_name = f"{self.path.stem}.rank{rank}{self.path.suffix}"
        self._own = self.path.with_name(rank_name) if rank else self.path
        self._read_to: dict[Path, int] = {}  # file -> bytes that were read
        self._places: dict[bytes, tuple[Path, int]] = {}  # digest -> file, offset of its line
        self._file: FileIO | None = None
        self._synced = time.monotonic()
        try:
            if not read_only:
                self._file = self._open_own()
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.refresh()
            if self._file is not None:
                self._remove_torn_line(self._file)
        except BlockingIOError:
            raise BadInput(f"ledger {self._own} is in use by another process") from None
        except OSError as error:
            raise BadInput(f"ledger {error.filename or self._own}: {error.strerror}") from None

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self._places

    def _open_own(self) -> FileIO:
        self._own.parent.mkdir(parents=True, exist_ok=True)
        if self._own.is_symlink():
            raise BadInput(
                f"ledger {self._own} is a link, expected a file: give the path that it links to"
            )
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self._own, flags, 0o666), "a+b", buffering=0)

    def _remove_torn_line(self, file: FileIO) -> None:
        end = file.seek(self._read_to.get(self._own, 0))
        torn = file.read(len(LINE_START))
        if not LINE_START.startswith(torn):
            raise BadInput(
                f"ledger {self._own}: its last line is no reply of this program: {torn!r}"
            )
        file.truncate(end)

    def refresh(self) -> None:
        """Read the whole lines that were added to any of the files since the last call.

        Raises:
            BadInput: with file and line of a broken one.
        """
        for path in ledger_files(self.path):
            if path.stat().st_size > self._read_to.get(path, 0):
                self._read_new_lines(path)

    def _read_new_lines(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read_to.get(path, 0))
            line = file.readline(MAX_LINE_BYTES)
            while line.endswith(b"\n"):  # otherwise it is still being written, or torn
                self._add_line(path, line)
                line = file.readline(MAX_LINE_BYTES)
        if len(line) == MAX_LINE_BYTES:
            raise BadInput(
                f"ledger {path}:{self._next_line_number(path)}: the line has {MAX_LINE_BYTES} "
                "bytes or more, expected less"
            )

    def _add_line(self, path: Path, line: bytes) -> None:
        offset = self._read_to.get(path, 0)
        try:
            reply = parse_reply(line)
            digest = bytes.fromhex(reply.digest)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise BadInput(
                f"ledger {path}:{self._next_line_number(path)}: expected a reply of this program: "
                f"{error!r}"
            ) from None
        self._places.setdefault(digest, (path, offset))
        tokens = reply.prompt_tokens + reply.completion_tokens
        self.held = self.held.plus(Spending(1, tokens, reply.price))
        self._read_to[path] = offset + len(line)

    def _next_line_number(self, path: Path) -> int:
        """Return the number, from 1, of the first line that was not read yet."""
        end = self._read_to.get(path, 0)
        number = 1
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                if line.endswith(b"\n") and file.tell() <= end:
                    number += 1
        return number

    def get(self, digest: str) -> Reply | None:
        """Return the reply to a request, or None if the ledger does not hold it."""
        if digest not in self:
            return None
        path, offset = self._places[bytes.fromhex(digest)]
        with path.open("rb") as file:
            file.seek(offset)
            row = json.loads(file.readline())
        return Reply(**{field: row[field] for field in Reply._fields})

    def append(self, reply: Reply, teacher: str, request: Request | None) -> None:
        """Write a reply at the end of this rank's file.

        Args:
            request: None for a failed attempt, which has the digest "" and counts in the budget.
        Raises:
            BadInput: if the file cannot be written.
        """
        payload = None if request is None else request.payload()
        row = {**reply._asdict(), "teacher": teacher, "request": payload}
        self.append_line(
            json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        )

    def append_line(self, line: bytes) -> None:
        """Write a line of a ledger at the end of this rank's file. Raises: BadInput if it cannot be
        written."""
        assert self._file is not None, "the ledger is open for reading only"
        try:
            if self._file.write(line) < len(line):
                raise OSError(0, "the disk is full")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise BadInput(
                f"ledger {self._own} cannot be written: {error.strerror}; it holds all replies "
                "before this one"
            ) from None
        self._add_line(self._own, line)

    def close(self) -> None:
        """Sync the file and close it."""
        if self._file and not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ledger_files(path: Path) -> list[Path]:
    """The file of a ledger and those of its other ranks, as far as they exist."""
    of_ranks = escape(path.stem) + f".rank*{path.suffix}"
    return [file for file in (path, *sorted(path.parent.glob(of_ranks))) if file.is_file()]


def ledger_lines(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a ledger and of its other ranks."""
    for file in ledger_files(path):
        with file.open("rb") as lines:
            for line in iter(lambda: lines.readline(MAX_LINE_BYTES), b""):
                if line.endswith(b"\n"):
                    yield line


def parse_reply(line: bytes) -> Reply:
    """Return the reply in a line of a ledger.

    Raises:
        ValueError, TypeError, LookupError, RecursionError: if it is not a reply, e.g. if its counts
            are negative or not finite, which would switch off the limits of a budget.
    """
    row = json.loads(line)
    reply = Reply(**{field: row[field] for field in Reply._fields})
    counts = (reply.prompt_tokens, reply.completion_tokens, reply.price)
    is_text = reply.text is None or isinstance(reply.text, str)
    if not is_text or not all(type(n) in (int, float) and 0 <= n < 1e300 for n in counts):
        raise ValueError(f"text {type(reply.text).__name__}, tokens and price {counts!s:.100}")
    return reply
