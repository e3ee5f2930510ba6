"""A reply becomes one line of an append-only JSONL file the moment it is there, found again by the
digest of its request."""

import fcntl
import json
import os
import time
from glob import escape
from pathlib import Path
from types import NoneType

from zephyr.config import BadInput
from zephyr.teacher.request import Reply, Request, Spending
from zephyr.training import ranks

START = b'{"digest": "'  # of every line
MAX_LINE_BYTES = (
    2**28
)  # bytes: a request of `sources.MAX_LINE_BYTES`, and `endpoint.MAX_REPLY_BYTES` as text and as it came
SYNC_SECONDS = (
    1.0  # a killed process loses nothing; a machine that loses power, what came in this time
)


class Ledger:
    """Every reply that was ever paid for; in memory there is only where each one stands. `held`:
    what all of them took together.

    Rank 0 writes PATH, under torchrun rank r `STEM.rankr.jsonl` beside it; every rank reads all of
    them. A last line that a kill cut off is dropped."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Args: read_only: neither lock nor mend nor make the file: for looking replies up while a
        run goes on.

        Raises: BadInput where another process writes it, it can't be read or written, or a line but
        the last is broken."""
        self.path, self.held, rank = Path(path), Spending(), ranks.rank()
        self._own = (
            self.path.with_name(f"{self.path.stem}.rank{rank}{self.path.suffix}")
            if rank
            else self.path
        )
        self._read_to: dict[Path, int] = {}  # of each file, bytes taken in
        self._places: dict[bytes, tuple[Path, int]] = {}  # digest -> file, offset of its line
        self._file, self._synced = None, time.monotonic()
        try:
            if not read_only:
                self._own.parent.mkdir(parents=True, exist_ok=True)
                if self._own.is_symlink():
                    raise BadInput(
                        f"ledger {self._own} is a link, which would be written through; wanted a file: name the one it leads to"
                    )
                self._file = os.fdopen(
                    os.open(
                        self._own,
                        os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                        0o666,
                    ),
                    "a+b",
                    buffering=0,
                )
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.refresh()
            if not read_only:
                end = self._file.seek(self._read_to.get(self._own, 0))
                if not START.startswith(torn := self._file.read(len(START))):
                    raise BadInput(
                        f"ledger {self._own}: its end is no reply of this program: {torn!r}"
                    )
                self._file.truncate(end)
        except BlockingIOError:
            raise BadInput(f"ledger {self._own} is in use by another process") from None
        except OSError as error:
            raise BadInput(f"ledger {error.filename or self._own}: {error.strerror}") from None

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self._places

    def refresh(self) -> None:
        """Take in whole lines that were added to any of the files. Raises: BadInput naming file and
        line of a broken one."""
        for path in [
            self.path,
            *sorted(self.path.parent.glob(escape(self.path.stem) + f".rank*{self.path.suffix}")),
        ]:
            if path.is_file() and path.stat().st_size > self._read_to.get(path, 0):
                with path.open("rb") as lines:
                    lines.seek(self._read_to.get(path, 0))
                    while (line := lines.readline(MAX_LINE_BYTES)).endswith(
                        b"\n"
                    ):  # else it is being written, or torn
                        self._take_in(path, line)
                    if len(line) == MAX_LINE_BYTES:
                        raise BadInput(
                            f"ledger {path}:{self._number(path)}: a line of less than {MAX_LINE_BYTES} bytes is wanted"
                        )

    def _take_in(self, path: Path, line: bytes) -> None:
        offset = self._read_to.get(path, 0)
        try:
            row = json.loads(line)
            reply = Reply(**{field: row[field] for field in Reply._fields})
            counts = (reply.prompt_tokens, reply.completion_tokens, reply.price)
            if not isinstance(reply.text, (str, NoneType)) or not all(
                type(n) in (int, float) and 0 <= n < 1e300 for n in counts
            ):
                raise ValueError(
                    f"text {type(reply.text).__name__}, tokens and price {counts!s:.100}"
                )
            digest = bytes.fromhex(reply.digest)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise BadInput(
                f"ledger {path}:{self._number(path)}: a reply of this program is wanted: {error!r}"
            ) from None
        self._places.setdefault(digest, (path, offset))
        self.held = self.held.plus(
            Spending(1, reply.prompt_tokens + reply.completion_tokens, reply.price)
        )
        self._read_to[path] = offset + len(line)

    def _number(self, path: Path) -> int:
        """Of the first line of a file that isn't taken in, from 1."""
        with path.open("rb") as lines:
            return 1 + sum(
                1
                for line in iter(lambda: lines.readline(MAX_LINE_BYTES), b"")
                if line.endswith(b"\n") and lines.tell() <= self._read_to.get(path, 0)
            )

    def get(self, digest: str) -> Reply | None:
        """The reply to a request, if it is there."""
        if digest not in self:
            return None
        path, offset = self._places[bytes.fromhex(digest)]
        with path.open("rb") as file:
            file.seek(offset)
            row = json.loads(file.readline())
        return Reply(**{field: row[field] for field in Reply._fields})

    def append(self, reply: Reply, teacher: str, request: Request | None) -> None:
        """Write a reply, or (request None, digest "") a failed try that the budget counts. Raises:
        BadInput where the disk refuses."""
        row = {**reply._asdict(), "teacher": teacher, "request": request and request.payload()}
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(0, "the disk is full")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise BadInput(
                f"ledger {self._own} can't be written: {error.strerror}; all replies before are in it"
            ) from None
        self._take_in(self._own, line)

    def close(self) -> None:
        """Sync and let go of the file."""
        if self._file and not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
