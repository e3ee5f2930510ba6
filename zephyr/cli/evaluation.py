"""`zephyr eval` with a judge: models answer, and a judge compares or grades the answers; stored records are scored again."""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from zephyr.cli.data import asking, opener
from zephyr.config import BadInput
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.ranks import rank


def run_win_rate(options: argparse.Namespace) -> None:
    from zephyr.data import feedback, templates, win_rate

    contenders = [win_rate.open_contender(argument, opener(options)) for argument in options.models]
    judge, names, prompts = (
        opener(options)(options.judge),
        [c.name for c in contenders],
        list(feedback.read_prompts(options.prompts)),
    )
    if len({name.lower() for name in names}) < max(2, len(names)) or not prompts:
        raise BadInput(
            f"two or more models of different names, and prompts, are wanted; got {', '.join(names)}; {len(prompts)} prompts"
        )
    if lacking := [row["prompt_id"] for row in prompts if options.by and options.by not in row]:
        raise BadInput(f"--by {options.by}: prompt {lacking[0]!r} has no such field")
    labels, versions = (
        win_rate.people_prefer(options.labels, names, prompts)
        if options.labels
        else [None] * len(prompts),
        set(),
    )
    with asking(options) as (ask, spent):

        def noted(teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
            replies = ask(teacher, requests)
            versions.update(f"{reply.model} {reply.version}".strip() for reply in replies)
            return replies

        answers = {
            c.name: win_rate.answers_of(
                c,
                prompts,
                ask,
                max_tokens=options.max_new_tokens,
                temperature=options.temperature,
                seed=options.seed,
            )
            for c in contenders
        }
        panel = win_rate.judge_panel(
            judge,
            noted,
            templates=options.templates,
            seed=options.seed,
            max_tokens=options.judge_tokens,
        )
        results = {
            **win_rate.contest(
                panel, prompts, answers, labels, options.out, options.by, options.scores
            ),
            **spent(),
            "judge": {
                "name": judge.name,
                "versions": sorted(versions),
                "templates": templates.digests(panel.templates),
            },
        }
    show(results, table(results), options.out / "results.json", options.json)


def run_mt_bench(options: argparse.Namespace) -> None:
    from zephyr.data import benchmarks, jsonl, win_rate
    from zephyr.judge.mt_bench import score_judgments

    require(options, bench=True)
    bench = options.bench_dir and benchmarks.load_bench(options.bench_dir, options.templates)
    categories = (
        {row["question_id"]: str(row["category"]) for row in bench.questions} if bench else {}
    )
    if options.stored:
        return show_scores(
            options, score_judgments(jsonl.read_rows([options.stored]), categories), {}
        )
    judge, answers, kind = opener(options)(options.judge), {}, options.mode.removesuffix("wise")
    with asking(options) as (ask, _):
        for argument in (*options.models, *options.answers):
            name, file = (
                (found[1], Path(found[2]))
                if (found := win_rate.NAMED.fullmatch(argument))
                else ("", Path(argument))
            )
            if file.is_file():
                made = benchmarks.read_answers(file)
            else:
                name, teacher, _ = win_rate.open_contender(argument, opener(options))
                rows = benchmarks.answer_questions(
                    name,
                    teacher,
                    bench.questions,
                    ask,
                    max_tokens=options.max_new_tokens,
                    seed=options.seed,
                )
                jsonl.write_rows(options.out / "model_answer" / f"{name}.jsonl", rows)
                made = {name: {row["question_id"]: row["choices"][0]["turns"] for row in rows}}
            for model, turns in made.items():
                if answers.setdefault(name or model, turns) is not turns:
                    raise BadInput(
                        f"{argument}: {name or model} has other answers already; another NAME=... is wanted"
                    )
        rows, by = benchmarks.judge_answers(
            kind, bench, answers, judge, ask, max_tokens=options.judge_tokens, seed=options.seed
        )
    jsonl.write_rows(
        options.out / "model_judgment" / f"{judge.name.strip('/').replace('/', '_')}_{kind}.jsonl",
        rows,
    )
    show_scores(options, score_judgments((("", row) for row in rows), categories), by)


def run_alpaca_eval(options: argparse.Namespace) -> None:
    from zephyr.data import benchmarks, feedback, jsonl, templates, win_rate
    from zephyr.judge.alpaca import score_annotations

    require(options, bench=not (options.prompts and options.baseline))
    rows, by = jsonl.read_rows([options.stored] if options.stored else []), {}
    if not options.stored:
        theirs = options.bench_dir and benchmarks.bench_file(
            options.bench_dir,
            "alpaca_eval_gpt4_baseline.json",
            "alpaca_eval.json",
            origin="huggingface.co/datasets/tatsu-lab/alpaca_eval",
        )
        prompts, judge, made, rows = (
            list(feedback.read_prompts([options.prompts or theirs])),
            opener(options)(options.judge),
            [],
            [],
        )
        with asking(options) as (ask, _):
            panel = win_rate.judge_panel(
                judge,
                ask,
                templates=options.templates,
                seed=options.seed,
                max_tokens=options.judge_tokens,
            )
            for argument in (
                options.baseline or f"baseline={theirs}",
                *options.models,
                *options.answers,
            ):
                model = win_rate.open_contender(argument, opener(options))
                made.append(
                    (
                        model.name,
                        win_rate.answers_of(
                            model,
                            prompts,
                            ask,
                            max_tokens=options.max_new_tokens,
                            temperature=options.temperature,
                            seed=options.seed,
                        ),
                    )
                )
            for name, outputs in made[1:]:
                of_model = benchmarks.annotate(
                    panel, prompts, (made[0][0], name), made[0][1], outputs
                )
                jsonl.write_json(
                    options.out / name / "model_outputs.json",
                    [
                        {
                            "dataset": row["dataset"],
                            "instruction": row["instruction"],
                            "output": row["output_2"],
                            "generator": name,
                        }
                        for row in of_model
                    ],
                )
                jsonl.write_json(
                    options.out
                    / name
                    / judge.name.strip("/").replace("/", "_")
                    / "annotations.json",
                    of_model,
                )
                rows += [("", row) for row in of_model]
        by = {
            "name": judge.name,
            "templates": templates.digests(
                {name: panel.templates[name] for name in ("judge_system", "compare")}
            ),
        }
    show_scores(options, score_annotations(rows, length_controlled=options.length_controlled), by)


def require(options: argparse.Namespace, bench: bool) -> None:
    """Raises: BadInput naming what an evaluation lacks that doesn't score stored records."""
    there = {
        "a MODEL or --answers": options.models or options.answers,
        "--judge": options.judge,
        "--out": options.out,
        "--bench-dir": options.bench_dir or not bench,
    }
    if not options.stored and not all(there.values()):
        raise BadInput(
            f"{', '.join(name for name, value in there.items() if not value)}: wanted, where no stored records are scored"
        )


def show_scores(
    options: argparse.Namespace,
    results: Mapping[str, dict[str, object]],
    judge: Mapping[str, object],
) -> None:
    """A benchmark's results, each with the judge that they have in common: a line per model, or pair of models."""
    results = {name: {**of, "judge": judge} if judge else of for name, of in results.items()}
    lines = []
    for name, of in results.items():
        key = "score" if "score" in of else "win_rate"
        lines.append(
            f"{name:40} {key.replace('_', ' ')} {interval(of, key)}, n {of['n']}, {of['unparsed']} without a verdict"
        )
    show(results, lines, options.out and options.out / "results.json", options.json)


def show(
    results: Mapping[str, object], lines: Iterable[str], path: Path | None, as_json: bool
) -> None:
    """Keep the results in a file where there is a path, and print them, as JSON or in lines."""
    from zephyr.data.jsonl import write_json

    if path:
        write_json(path, results)
    if rank() == 0:
        print(json.dumps(results, indent=1) if as_json else "\n".join(lines))


def table(results: Mapping[str, Mapping[str, Mapping[str, object]]]) -> Iterator[str]:
    """Lines for a terminal: a row per group, a column per model's score, or per win rate without scores; then a line per pair."""
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
