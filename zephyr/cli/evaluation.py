"""`zephyr eval` with a judge: models answer, and a judge compares or grades the answers; stored
records are scored again."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from zephyr.cli.data import open_ask, teacher_opener
from zephyr.config import BadInput
from zephyr.evaluation.results import print_results, show_scores, table
from zephyr.teacher import Reply, Request, Teacher


def run_win_rate(options: argparse.Namespace) -> None:
    from zephyr.evaluation import win_rate
    from zephyr.teacher import prompts as prompt_rows
    from zephyr.teacher import templates

    contenders = [
        win_rate.open_contender(argument, teacher_opener(options)) for argument in options.models
    ]
    judge, names, prompts = (
        teacher_opener(options)(options.judge),
        [c.name for c in contenders],
        list(prompt_rows.read_prompts(options.prompts)),
    )
    if len({name.lower() for name in names}) < max(2, len(names)) or not prompts:
        raise BadInput(
            f"two or more models of different names, and prompts, are wanted; got {', '.join(names)}; {len(prompts)} prompts"
        )
    if lacking := [row["prompt_id"] for row in prompts if options.by and options.by not in row]:
        raise BadInput(f"--by {options.by}: prompt {lacking[0]!r} has no such field")
    labels, versions = (
        win_rate.read_human_labels(options.labels, names, prompts)
        if options.labels
        else [None] * len(prompts),
        set(),
    )
    with open_ask(options) as (ask, spent):

        def noted(teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
            replies = ask(teacher, requests)
            versions.update(f"{reply.model} {reply.version}".strip() for reply in replies)
            return replies

        answers = {
            c.name: win_rate.collect_answers(
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
            **win_rate.compare_models(
                panel, prompts, answers, labels, options.out, options.by, options.scores
            ),
            **spent(),
            "judge": {
                "name": judge.name,
                "versions": sorted(versions),
                "templates": templates.digests(panel.templates),
            },
        }
    print_results(results, table(results), options.out / "results.json", options.json)


def run_mt_bench(options: argparse.Namespace) -> None:
    from zephyr.data import jsonl
    from zephyr.evaluation import benchmarks, win_rate
    from zephyr.evaluation.mt_bench import score_judgments

    check_options(options, bench=True)
    bench = options.bench_dir and benchmarks.load_bench(options.bench_dir, options.templates)
    categories = (
        {row["question_id"]: str(row["category"]) for row in bench.questions} if bench else {}
    )
    if options.stored:
        return show_scores(
            options, score_judgments(jsonl.read_rows([options.stored]), categories), {}
        )
    judge, answers, kind = (
        teacher_opener(options)(options.judge),
        {},
        options.mode.removesuffix("wise"),
    )
    with open_ask(options) as (ask, _):
        for argument in (*options.models, *options.answers):
            name, file = (
                (found[1], Path(found[2]))
                if (found := win_rate.NAMED.fullmatch(argument))
                else ("", Path(argument))
            )
            if file.is_file():
                made = benchmarks.read_answers(file)
            else:
                name, teacher, _ = win_rate.open_contender(argument, teacher_opener(options))
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
    from zephyr.data import jsonl
    from zephyr.evaluation import benchmarks, win_rate
    from zephyr.evaluation.alpaca import score_annotations
    from zephyr.teacher import prompts as prompt_rows
    from zephyr.teacher import templates

    check_options(options, bench=not (options.prompts and options.baseline))
    rows, by = jsonl.read_rows([options.stored] if options.stored else []), {}
    if not options.stored:
        theirs = options.bench_dir and benchmarks.bench_file(
            options.bench_dir,
            "alpaca_eval_gpt4_baseline.json",
            "alpaca_eval.json",
            origin="huggingface.co/datasets/tatsu-lab/alpaca_eval",
        )
        prompts, judge, made, rows = (
            list(prompt_rows.read_prompts([options.prompts or theirs])),
            teacher_opener(options)(options.judge),
            [],
            [],
        )
        with open_ask(options) as (ask, _):
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
                model = win_rate.open_contender(argument, teacher_opener(options))
                made.append(
                    (
                        model.name,
                        win_rate.collect_answers(
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


def check_options(options: argparse.Namespace, bench: bool) -> None:
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
