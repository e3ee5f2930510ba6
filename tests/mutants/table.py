"""What a fault is: where it stands, what stands there, what is put in its place, and the fast tests
one of which must fail. The faults of a room are in `of_<room>.py`.

A snippet stands in its file exactly once. A mutant that changes nothing that can be seen (a test
against it would test the implementation) is left out, as are those that make a loop endless.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault: `old` of `file` is replaced by `new`, and one of `tests` must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        """The id of its test."""
        changed = next(
            (new for old, new in zip(self.old.splitlines(), self.new.splitlines()) if old != new),
            self.new,
        ).strip()
        changed = changed or f"without {self.old.strip()}"
        return f"{self.file.removeprefix('zephyr/').removesuffix('.py')}: {changed[:70]}"


def of(file: str, tests: tuple[str, ...], *changes: tuple[str, str]) -> list[Mutant]:
    """The faults of a file that the same tests must notice. Args: changes: (old, new)."""
    return [Mutant(file, old, new, tests) for old, new in changes]
