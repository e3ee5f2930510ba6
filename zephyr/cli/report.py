"""`zephyr report`: run folders become one HTML page, to be opened in a browser."""
import argparse
from pathlib import Path

from zephyr.cli.command import Commands, command
from zephyr.config import BadInput


def add_report(commands: Commands) -> None:
    parser = command(commands, run_report, "write a page of what runs did: curves over each other, alarms, pairs, samples, data",
                     "zephyr report runs/beta-0.01 runs/beta-0.1 --out runs/sweep.html")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, be the run finished or not")
    parser.add_argument("--out", type=Path, metavar="FILE", help="ends in .html (default RUN/report.html; wanted for several runs)")


def run_report(options: argparse.Namespace) -> None:
    from zephyr.report import write_page
    out = options.out or (options.runs[0] / "report.html" if len(options.runs) == 1 else Path())
    if out.suffix != ".html":
        raise BadInput(f"--out with a name that ends in .html is wanted for {len(options.runs)} runs, got {options.out}")
    write_page(options.runs, out)
    print(out)
