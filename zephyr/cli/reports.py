"""A command's report is written beside its output, and its counts are printed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_summary(out: Path, report: Mapping[str, object], summary: str) -> None:
    """Write the report beside the output and print a line (rank 0 only)."""
    from zephyr.data.jsonl import save_report
    from zephyr.training.ranks import rank

    if rank() == 0:
        save_report(out, report)
        print(f"{out}: {summary}")


def part(report: Mapping[str, object], key: str) -> Mapping[str, Any]:
    """The entries of a report under a key."""
    entries = report[key]
    assert isinstance(entries, Mapping), f"{key} of a report is a mapping"
    return entries


def print_unread_keys(report: Mapping[str, object]) -> None:
    """Warn of keys of the rows that nothing reads."""
    counts = [f"{key} ({rows:,} rows)" for key, rows in part(report, "keys_not_read").items()]
    if counts:
        line = f"keys not read: {', '.join(counts)}"
        print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)


def print_warnings(report: Mapping[str, object]) -> None:
    warnings = report["warnings"]
    assert isinstance(warnings, list), "warnings of a report is a list"
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)


def format_counts(counts: Mapping[str, int]) -> str:
    """`reason 12, other 3` of the counts above 0, or `none`."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"
