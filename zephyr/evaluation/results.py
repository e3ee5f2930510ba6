"""Results of an evaluation go to a file, and to the terminal as lines or as JSON."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zephyr.training.ranks import rank

Figures = Mapping[str, Any]  # names and numbers of one model or pair, as `results.json` holds them


def print_scores(
    results: Mapping[str, Figures], about: Figures, path: Path | None, as_json: bool
) -> None:
    """Keep and print a benchmark's results: a line per model, or per pair of models.

    Args: about: added to the results of each: who judged which answers, or which records were
    scored again. path: as in `print_results`."""
    results = {name: {**of, **about} for name, of in results.items()}
    lines = []
    for name, of in results.items():
        key = "score" if "score" in of else "win_rate"
        lines.append(
            f"{name:40} {key.replace('_', ' ')} {interval(of, key)}, n {of['n']}, "
            f"{of['unparsed']} without a verdict"
        )
    print_results(results, lines, path, as_json)


def print_results(
    results: Mapping[str, object], lines: Iterable[str], path: Path | None, as_json: bool
) -> None:
    """Write the results to the file if there is a path, and print them, as JSON or as lines."""
    from zephyr.data.jsonl import write_json

    if path:
        write_json(path, results)
    if rank() == 0:
        print(json.dumps(results, indent=1) if as_json else "\n".join(lines))


def win_rate_lines(results: Mapping[str, Figures]) -> Iterator[str]:
    """Lines for a terminal: a row per group and a column per model's score, or per win rate without
    scores; then a line per pair."""
    key = "score" if results["models"] else "win_rate"
    columns = results["models"] or results["pairs"]
    width = max([24, *(len(name) + 3 for name in columns)])
    names = "".join(name.rjust(width) for name in columns)
    yield f"{key.replace('_', ' '):20}{'prompts':>8}{names}"
    yield "-" * (28 + width * len(columns))
    values = list(next(iter(columns.values())).get("by", ()))
    for group in [*values, "all"]:
        cells = [of if group == "all" else of["by"][group] for of in columns.values()]
        prompts = max(cell["n"] for cell in cells)
        texts = "".join(interval(cell, key).rjust(width) for cell in cells)
        yield f"{group:20}{prompts:>8}{texts}"
    for name, of in results["pairs"].items():
        yield from pair_lines(name, of)


def pair_lines(name: str, of: Figures) -> Iterator[str]:
    yield (
        f"\n{name}: win rate {interval(of, 'win_rate')}, n {of['n']}; {of['wins']} won, "
        f"{of['ties']} tied, {of['losses']} lost, {of['unparsed']} unparsed, "
        f"{of['unanswered']} unanswered"
    )
    line = (
        f"    at equal lengths {interval(of['length_controlled'], 'win_rate')}; "
        f"shown first wins {interval(of['position_bias'], 'first_won')}"
    )
    if "kappa" in of:
        line += (
            f"; as people {interval(of['agreement'], 'share')}, "
            f"kappa {interval(of['kappa'], 'kappa')}"
        )
    yield line


def interval(of: Figures, key: str) -> str:
    """`mean [low, high]`, or - where there is none."""
    if of[key] is None:
        return "-"
    low, high = of["ci95"]
    return f"{of[key]:.2f} [{low:.2f}, {high:.2f}]"
