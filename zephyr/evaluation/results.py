"""Results of an evaluation go to a file, and to the terminal as lines or JSON."""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from zephyr.training.ranks import rank


def show_scores(
    options: argparse.Namespace,
    results: Mapping[str, dict[str, object]],
    judge: Mapping[str, object],
) -> None:
    """A benchmark's results, each with the judge that they have in common: a line per model, or
    pair of models."""
    results = {name: {**of, "judge": judge} if judge else of for name, of in results.items()}
    lines = []
    for name, of in results.items():
        key = "score" if "score" in of else "win_rate"
        lines.append(
            f"{name:40} {key.replace('_', ' ')} {interval(of, key)}, n {of['n']}, {of['unparsed']} without a verdict"
        )
    print_results(results, lines, options.out and options.out / "results.json", options.json)


def print_results(
    results: Mapping[str, object], lines: Iterable[str], path: Path | None, as_json: bool
) -> None:
    """Keep the results in a file where there is a path, and print them, as JSON or in lines."""
    from zephyr.data.jsonl import write_json

    if path:
        write_json(path, results)
    if rank() == 0:
        print(json.dumps(results, indent=1) if as_json else "\n".join(lines))


def table(results: Mapping[str, Mapping[str, Mapping[str, object]]]) -> Iterator[str]:
    """Lines for a terminal: a row per group, a column per model's score, or per win rate without
    scores; then a line per pair."""
    columns, key = (
        (results["models"], "score") if results["models"] else (results["pairs"], "win_rate")
    )
    width = max(24, *(len(name) + 3 for name in columns))
    yield f"{key.replace('_', ' '):20}{'prompts':>8}" + "".join(
        name.rjust(width) for name in columns
    )
    yield "-" * (28 + width * len(columns))
    for group in (*next(iter(columns.values())).get("by", ()), "all"):
        cells = [of if group == "all" else of["by"][group] for of in columns.values()]
        yield f"{group:20}{max(cell['n'] for cell in cells):>8}" + "".join(
            interval(cell, key).rjust(width) for cell in cells
        )
    for name, of in results["pairs"].items():
        yield (
            f"\n{name}: win rate {interval(of, 'win_rate')}, n {of['n']}; {of['wins']} won, {of['ties']} tied, {of['losses']} lost, "
            f"{of['unparsed']} unparsed, {of['unanswered']} unanswered\n    at equal lengths "
            f"{interval(of['length_controlled'], 'win_rate')}; shown first wins {interval(of['position_bias'], 'first_won')}"
            + (
                f"; as people {interval(of['agreement'], 'share')}, kappa {interval(of['kappa'], 'kappa')}"
                if "kappa" in of
                else ""
            )
        )


def interval(of: Mapping[str, object], key: str) -> str:
    """`mean [low, high]`, or - where there is none."""
    return "-" if of[key] is None else "{:.2f} [{:.2f}, {:.2f}]".format(of[key], *of["ci95"])
