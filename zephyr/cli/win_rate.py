"""`zephyr eval win-rate`: answers of two or more models become win rates with intervals, files of verdicts, and a table."""
import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from zephyr.cli.command import Commands, declared
from zephyr.cli.data import asking, teachers
from zephyr.config import BadInput


def add_win_rate(commands: Commands) -> None:
    declared(commands, run_win_rate)


def run_win_rate(options: argparse.Namespace) -> None:
    from zephyr.data.feedback import read_prompts
    from zephyr.data.templates import digests
    from zephyr.data.win_rate import answers_of, contest, judge_panel, open_contender, people_prefer
    from zephyr.teacher import Reply, Request, Teacher
    from zephyr.teacher.ranks import rank
    from zephyr.training.checkpoint import write_whole
    contenders = [open_contender(argument, lambda spec: teachers(options, [spec])[0]) for argument in options.models]
    (judge,), names, prompts = teachers(options, [options.judge]), [c.name for c in contenders], list(read_prompts(options.prompts))
    if len({name.lower() for name in names}) < max(2, len(names)) or not prompts:
        raise BadInput(f"two or more models of different names, and prompts, are wanted; got {', '.join(names)}; {len(prompts)} prompts")
    if lacking := [row["prompt_id"] for row in prompts if options.by and options.by not in row]:
        raise BadInput(f"--by {options.by}: prompt {lacking[0]!r} has no such field")
    labels, versions = people_prefer(options.labels, names, prompts) if options.labels else [None] * len(prompts), set()
    with asking(options) as (ask, spent):
        def noted(teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
            replies = ask(teacher, requests)
            versions.update(f"{reply.model} {reply.version}".strip() for reply in replies)
            return replies
        answers = {c.name: answers_of(c, prompts, ask, max_tokens=options.max_new_tokens, temperature=options.temperature,
                                      seed=options.seed) for c in contenders}
        panel = judge_panel(judge, noted, templates=options.templates, seed=options.seed, max_tokens=options.judge_tokens)
        results = {**contest(panel, prompts, answers, labels, options.out, options.by, options.scores), **spent(), "judge": {
            "name": judge.name, "versions": sorted(versions),
            "templates": digests(panel.templates)}}
    if rank() == 0:
        write_whole(options.out / "results.json", json.dumps(results, indent=1).encode() + b"\n")
        print(json.dumps(results, indent=1) if options.json else "\n".join(table(results)))


def table(results: Mapping[str, Mapping[str, Mapping[str, object]]]) -> Iterator[str]:
    """Lines for a terminal: a row per group, a column per model's score, or per win rate without scores; then a line per pair."""
    columns, key = (results["models"], "score") if results["models"] else (results["pairs"], "win_rate")
    width = max(24, *(len(name) + 3 for name in columns))
    yield f"{key.replace('_', ' '):20}{'prompts':>8}" + "".join(name.rjust(width) for name in columns)
    yield "-" * (28 + width * len(columns))
    for group in (*next(iter(columns.values())).get("by", ()), "all"):
        cells = [of if group == "all" else of["by"][group] for of in columns.values()]
        yield f"{group:20}{max(cell['n'] for cell in cells):>8}" + "".join(interval(cell, key).rjust(width) for cell in cells)
    for name, of in results["pairs"].items():
        yield (f"\n{name}: win rate {interval(of, 'win_rate')}, n {of['n']}; {of['wins']} won, {of['ties']} tied, {of['losses']} lost, "
               f"{of['unparsed']} unparsed, {of['unanswered']} unanswered\n    at equal lengths "
               f"{interval(of['length_controlled'], 'win_rate')}; shown first wins {interval(of['position_bias'], 'first_won')}"
               + (f"; as people {interval(of['agreement'], 'share')}, kappa {interval(of['kappa'], 'kappa')}" if "kappa" in of else ""))


def interval(of: Mapping[str, object], key: str) -> str:
    """`mean [low, high]`, or - where there is none."""
    return "-" if of[key] is None else "{:.2f} [{:.2f}, {:.2f}]".format(of[key], *of["ci95"])
