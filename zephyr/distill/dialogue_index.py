"""A cleaned row is compared with the rows before it and with held-out rows, by digests and
signatures in an SQLite file."""

import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from zephyr.distill import clean
from zephyr.distill.row_checks import CheckedRow

MISSED_FRACTION = 0.02  # of the pairs of just the wanted similarity that the bands may miss


class DialogueIndex:
    """What rows are compared with. At most 16 MB of the file are in memory.

    `find_held_out`, `find_duplicate` and `find_near_duplicate` return why a row is to be removed,
    or "".
    """

    def __init__(self, path: Path, jaccard: float | None) -> None:
        """Args: path: of the SQLite file; an old one is replaced. jaccard: from which two rows are
        near duplicates; None if they are not looked for."""
        path.unlink(missing_ok=True)
        self.file = sqlite3.connect(path, isolation_level=None)
        self.jaccard = jaccard or 1.0
        self.band = band_length(self.jaccard)
        self.file.executescript(
            """
            PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-16384; BEGIN;
            CREATE TABLE held(digest BLOB PRIMARY KEY) WITHOUT ROWID;
            CREATE TABLE seen(digest BLOB PRIMARY KEY, place TEXT);
            CREATE TABLE kept(number INTEGER PRIMARY KEY, place TEXT, signature BLOB);
            CREATE TABLE bands(key INTEGER, number INTEGER, PRIMARY KEY(key, number)) WITHOUT ROWID
            """
        )

    def add_held_out(self, digests: Iterable[bytes]) -> None:
        """Add digests of held-out dialogues and of their first user turns. Empty ones are
        ignored."""
        self.file.executemany(
            "INSERT OR IGNORE INTO held VALUES(?)", ((digest,) for digest in digests if digest)
        )

    def find_held_out(self, row: CheckedRow) -> str:
        """Compare the row's dialogue and its first user turn with the held-out ones."""
        found = self.file.execute(
            "SELECT 1 FROM held WHERE digest IN (?, ?)", (row["dialogue"], row["opening"])
        ).fetchone()
        return "the dialogue, or its first turn, is held out" if found else ""

    def find_duplicate(self, row: CheckedRow) -> str:
        """Look for an earlier row of the same dialogue. If there is none, the row is added."""
        added = self.file.execute(
            "INSERT OR IGNORE INTO seen VALUES(?, ?)", (row["dialogue"], row["place"])
        ).rowcount
        if added:
            return ""
        (place,) = self.file.execute(
            "SELECT place FROM seen WHERE digest = ?", (row["dialogue"],)
        ).fetchone()
        return f"of {place}"

    def find_near_duplicate(self, row: CheckedRow) -> str:
        """Look for the first kept row of a similar signature. If there is none, the row is added.

        Only rows that share a whole band of the signature are compared (locality-sensitive
        hashing).
        """
        signature = row["signature"]
        if not signature:
            return ""
        keys = self._band_keys(signature)
        similar = self.file.execute(
            "SELECT place, signature FROM kept WHERE number IN (SELECT number FROM bands WHERE key "
            f"IN ({','.join('?' * len(keys))})) ORDER BY number",
            keys,
        )
        hashes = np.frombuffer(signature, "<u4")
        for place, other in similar:
            if np.mean(hashes == np.frombuffer(other, "<u4")) >= self.jaccard:
                return f"of {place}"
        number = self.file.execute(
            "INSERT INTO kept(place, signature) VALUES(?, ?)", (row["place"], signature)
        ).lastrowid
        self.file.executemany("INSERT INTO bands VALUES(?, ?)", [(key, number) for key in keys])
        return ""

    def _band_keys(self, signature: bytes) -> list[int]:
        """A 64-bit key of each band of a signature."""
        size = 4 * self.band
        keys = []
        for start in range(0, len(signature) - size + 1, size):
            band = b"%d:" % start + signature[start : start + size]
            digest = hashlib.blake2b(band, digest_size=8).digest()
            keys.append(int.from_bytes(digest, "little", signed=True))
        return keys

    def close(self) -> None:
        self.file.close()


def band_length(jaccard: float) -> int:
    """Return the largest number of hashes per band that still finds 98 of 100 pairs of exactly this
    similarity. Longer bands compare fewer rows in vain."""
    for length in range(16, 1, -1):
        missed = (1 - jaccard**length) ** (clean.PERMUTATIONS // length)
        if missed <= MISSED_FRACTION:
            return length
    return 1
