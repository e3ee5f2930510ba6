"""`zephyr eval mt-bench` and `zephyr eval alpaca-eval`: models answer, a judge grades or compares; stored records are scored again."""
import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from zephyr.cli.command import Commands, declared
from zephyr.cli.data import asking, teachers
from zephyr.config import BadInput


def add_mt_bench(commands: Commands) -> None:
    declared(commands, run_mt_bench)


def add_alpaca_eval(commands: Commands) -> None:
    declared(commands, run_alpaca_eval)


def run_mt_bench(options: argparse.Namespace) -> None:
    from zephyr.data.benchmarks import answer_questions, judge_answers, load_bench, read_answers
    from zephyr.data.jsonl import read_rows, write_rows
    from zephyr.data.win_rate import NAMED, open_contender
    from zephyr.judge.mt_bench import score_judgments
    require(options, bench=True)
    bench, answers, kind = options.bench_dir and load_bench(options.bench_dir, options.templates), {}, options.mode.removesuffix("wise")
    categories = {row["question_id"]: str(row["category"]) for row in bench.questions} if bench else {}
    if options.stored:
        return show(options, score_judgments(read_rows([options.stored]), categories), {})
    (judge,) = teachers(options, [options.judge])
    with asking(options) as (ask, _):
        for argument in (*options.models, *options.answers):
            name, file = (found[1], Path(found[2])) if (found := NAMED.fullmatch(argument)) else ("", Path(argument))
            if file.is_file():
                made = read_answers(file)
            else:
                name, teacher, _ = open_contender(argument, lambda spec: teachers(options, [spec])[0])
                rows = answer_questions(name, teacher, bench.questions, ask, max_tokens=options.max_new_tokens, seed=options.seed)
                write_rows(options.out / "model_answer" / f"{name}.jsonl", rows)
                made = {name: {row["question_id"]: row["choices"][0]["turns"] for row in rows}}
            for model, turns in made.items():
                if answers.setdefault(name or model, turns) is not turns:
                    raise BadInput(f"{argument}: {name or model} has other answers already; another NAME=... is wanted")
        rows, by = judge_answers(kind, bench, answers, judge, ask, max_tokens=options.judge_tokens, seed=options.seed)
    write_rows(options.out / "model_judgment" / f"{judge.name.strip('/').replace('/', '_')}_{kind}.jsonl", rows)
    show(options, score_judgments((("", row) for row in rows), categories), by)


def run_alpaca_eval(options: argparse.Namespace) -> None:
    from zephyr.data.benchmarks import annotate, bench_file
    from zephyr.data.feedback import read_prompts
    from zephyr.data.jsonl import read_rows
    from zephyr.data.templates import digests
    from zephyr.data.win_rate import answers_of, judge_panel, open_contender
    from zephyr.judge.alpaca import score_annotations
    require(options, bench=not (options.prompts and options.baseline))
    rows, by = read_rows([options.stored] if options.stored else []), {}
    if not options.stored:
        theirs = options.bench_dir and bench_file(options.bench_dir, "alpaca_eval_gpt4_baseline.json", "alpaca_eval.json",
                                                  origin="huggingface.co/datasets/tatsu-lab/alpaca_eval")
        prompts, (judge,), made, rows = list(read_prompts([options.prompts or theirs])), teachers(options, [options.judge]), [], []
        with asking(options) as (ask, _):
            panel = judge_panel(judge, ask, templates=options.templates, seed=options.seed, max_tokens=options.judge_tokens)
            for argument in (options.baseline or f"baseline={theirs}", *options.models, *options.answers):
                model = open_contender(argument, lambda spec: teachers(options, [spec])[0])
                made.append((model.name, answers_of(model, prompts, ask, max_tokens=options.max_new_tokens,
                                                    temperature=options.temperature, seed=options.seed)))
            for name, outputs in made[1:]:
                of_model = annotate(panel, prompts, (made[0][0], name), made[0][1], outputs)
                write_json(options.out / name / "model_outputs.json", [{"dataset": row["dataset"], "instruction": row["instruction"],
                                                                        "output": row["output_2"], "generator": name} for row in of_model])
                write_json(options.out / name / judge.name.strip("/").replace("/", "_") / "annotations.json", of_model)
                rows += [("", row) for row in of_model]
        by = {"name": judge.name, "templates": digests({name: panel.templates[name] for name in ("judge_system", "compare")})}
    show(options, score_annotations(rows, length_controlled=options.length_controlled), by)


def require(options: argparse.Namespace, bench: bool) -> None:
    """Raises: BadInput naming what an evaluation lacks that doesn't score stored records."""
    there = {"a MODEL or --answers": options.models or options.answers, "--judge": options.judge, "--out": options.out,
             "--bench-dir": options.bench_dir or not bench}
    if not options.stored and not all(there.values()):
        raise BadInput(f"{', '.join(name for name, value in there.items() if not value)}: wanted, where no stored records are scored")


def write_json(path: Path, value: object) -> None:
    from zephyr.teacher.ranks import rank
    from zephyr.training.checkpoint import write_whole
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(value, indent=1).encode() + b"\n")


def show(options: argparse.Namespace, results: Mapping[str, dict[str, object]], judge: Mapping[str, object]) -> None:
    """Print the results, each with the judge that they have in common, and keep them where there is a folder for it."""
    from zephyr.teacher.ranks import rank
    results = {name: {**of, "judge": judge} if judge else of for name, of in results.items()}
    if options.out:
        write_json(options.out / "results.json", results)
    for name, of in results.items() if rank() == 0 and not options.json else ():
        key = "score" if "score" in of else "win_rate"
        value = "-" if of[key] is None else "{:.2f} [{:.2f}, {:.2f}]".format(of[key], *of["ci95"])
        print(f"{name:40} {key.replace('_', ' ')} {value}, n {of['n']}, {of['unparsed']} without a verdict")
    if rank() == 0 and options.json:
        print(json.dumps(results, indent=1))
