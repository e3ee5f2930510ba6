"""Train the paper's ablations in the embedded world, and collect what a judge says of each model.

    python experiments/findings.py [--seeds 0 1 2] [--plan full|short] [--out runs/findings]

For each seed, in `OUT/seed-N`: the quickstart up to dSFT and the preference pairs, then
  Table 3 (arXiv:2310.16944)  dDPO without dSFT, dSFT, dSFT on the chosen answers too, dDPO
  Figure 3                    dDPO on and on, on all pairs and on a few of them
  beta, losses                dDPO under other settings, from the same dSFT model (`full` only)
The commands and configs are those of `make quickstart`, on one rank: as many of them run at a time
as `--workers` says. A stage that has finished is skipped, so the command can be interrupted and run
again. `OUT/results.json` holds the figures, and experiments/findings_figure.py draws them.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
# Before torch is imported: two one-rank processes share two cores.
os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

TINY = Path("runs/tiny")  # as in configs/tiny, relative to the folder of a seed
WORLD = TINY / "world"
JUDGE = f"world:judge@{WORLD}"
TEST_PROMPTS = WORLD / "prompts" / "test.jsonl"
# Every run answers the test prompts before its first step and at each evaluation: after its last
# step, where nothing else is said. They are judged later.
ANSWERS = (
    f"samples.prompts=[{TEST_PROMPTS}]",
    "samples.max_new_tokens=64",
    "samples.judge=null",
    "run.eval_every=100000",
)
FEW = 128  # pairs, of 1,500
SWEEP_RATE = "optim.lr_peak=1.5e-4"  # at the quickstart's, ten times lower, no margin saturates
# beta of each loss: where a loss has a target, the margin's is some 10 nats a pair, 1 nat a token.
SWEEPS = {
    "beta-0.01": ("beta=0.01",),
    "beta-0.1": ("beta=0.1",),
    "beta-0.5": ("beta=0.5",),
    "beta-2": ("beta=2.0",),
    "ipo": ("loss=ipo", "beta=0.5"),
    "hinge": ("loss=hinge", "beta=0.1"),
    "robust": ("loss=robust", "beta=0.1", "label_smoothing=0.1"),
    "cdpo": ("loss=sigmoid", "beta=0.1", "label_smoothing=0.1"),
    "sigmoid_norm": ("loss=sigmoid_norm", "beta=1.0"),
    "nca_pair": ("loss=nca_pair", "beta=0.1"),
    "apo_zero": ("loss=apo_zero", "beta=0.1"),
    "sppo_hard": ("loss=sppo_hard", "beta=0.1"),
}
# The answers of which run, at its start or its end, are those of a model of Table 3.
TABLE_3 = {
    "base": ("dpo_only", 0),
    "dDPO-without-dSFT": ("dpo_only", -1),
    "dSFT-1": ("dpo", 0),
    "dSFT-2": ("sft2", -1),
    "dDPO": ("dpo", -1),
}
PAIRS = ("pairs", "pairs_validation")
CURVES = ("long", "fast", "few")


class Stage(NamedTuple):
    """A command in the folder of a seed: finished once `made` is there, and skipped then."""

    name: str
    made: Path
    needs: tuple[str, ...]
    run: Callable[[], object]


def script(name: str, *arguments: object) -> Callable[[], object]:
    """`python NAME.py ARGUMENTS`, which ends the process."""

    def run() -> None:
        sys.argv = [name, *map(str, arguments)]
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return run


def zephyr(*arguments: object) -> Callable[[], object]:
    """`zephyr ARGUMENTS`. Its result replaces an unfinished one."""

    def run() -> None:
        from zephyr.cli import main

        if code := main([str(argument) for argument in arguments]):
            sys.exit(code)

    return run


def stages(seed: int, plan: str) -> list[Stage]:
    """The stages of a seed, each after those that it needs."""
    found = quickstart_stages(seed)
    found += [
        Stage("chosen", TINY / "few.jsonl", PAIRS, write_rows_of_pairs),
        trained("dpo", "dpo", seed, ("sft", *PAIRS), "run.eval_every=47"),
        trained("dpo_only", "dpo_only", seed, ("base", *PAIRS)),
        trained("sft2", "sft", seed, ("sft", "chosen"), *chosen_overrides()),
        Stage("table3", TINY / "judged/table3/results.json", ("dpo", "dpo_only", "sft2"), table_3),
    ]
    found += [
        trained(name, "dpo", seed, ("sft", "chosen", *PAIRS), *overrides)
        for name, overrides in curve_overrides(plan).items()
    ]
    if plan == "full":
        found += [
            trained(name, "dpo", seed, ("sft", *PAIRS), SWEEP_RATE, *overrides)
            for name, overrides in SWEEPS.items()
        ]
    for name in (*CURVES, *(SWEEPS if plan == "full" else ())):
        made = TINY / "judged" / name / "finished"
        found.append(Stage(f"judge {name}", made, ("table3", name), judge_each_evaluation(name)))
    return found


def quickstart_stages(seed: int) -> list[Stage]:
    """The Makefile's `quickstart`, up to dSFT and the pairs."""
    data = Path("configs/tiny/data")

    def feedback(prompts: str, out: str) -> Stage:
        source, made = WORLD / f"prompts/{prompts}.jsonl", TINY / f"{out}.jsonl"
        line = ("feedback", source, "--config", data / "feedback.yaml", "--out", made)
        return Stage(out, made, ("world",), zephyr(*line))

    def pairs(source: str, out: str) -> Stage:
        made = TINY / f"{out}.jsonl"
        line = ("binarize", TINY / f"{source}.jsonl", "--rule", "paper", "--out", made)
        return Stage(out, made, (source,), zephyr(*line))

    instruct = ("self-instruct", "--config", data / "self_instruct.yaml", "--seed", seed)
    prepare = ("prepare", "--config", data / "prepare.yaml")
    return [
        Stage("world", TEST_PROMPTS, (), zephyr("world", WORLD, "--seed", seed)),
        trained("base", "base", seed, ("world",), answers=False),
        Stage("self_instruct", TINY / "self_instruct.jsonl", ("world",), zephyr(*instruct)),
        Stage("prepare", TINY / "dialogues.jsonl", ("self_instruct",), zephyr(*prepare)),
        feedback("feedback", "feedback"),
        feedback("validation", "feedback_validation"),
        pairs("feedback", "pairs"),
        pairs("feedback_validation", "pairs_validation"),
        trained("sft", "sft", seed, ("base", "prepare"), answers=False),
    ]


def trained(
    name: str, config: str, seed: int, needs: tuple[str, ...], *overrides: str, answers: bool = True
) -> Stage:
    """A run of configs/tiny/CONFIG.yaml in its own folder, resumed where it was interrupted."""
    settings = [f"run.dir={TINY / name}", f"run.seed={seed}", "run.resume=auto"]
    if config.startswith("dpo"):
        settings.append(f"reference.dir={TINY / 'reference' / name}")
    if answers:
        settings += ANSWERS
    settings += overrides
    kind = "train_dpo.py" if config.startswith("dpo") else "train_sft.py"
    line = script(kind, f"configs/tiny/{config}.yaml", *settings)
    return Stage(name, TINY / name / "model" / "model.safetensors", needs, line)


def chosen_overrides() -> tuple[str, ...]:
    """dSFT-2: dSFT goes on with the chosen answers, for as many epochs as dDPO."""
    train, evaluation = TINY / "chosen.jsonl", TINY / "chosen_validation.jsonl"
    model = TINY / "sft" / "model"
    data = (f"data.train=[{train}]", f"data.eval=[{evaluation}]")
    return (f"model={model}", *data, "optim.epochs=2")


def curve_overrides(plan: str) -> dict[str, tuple[str, ...]]:
    """Figure 3: an evaluation after each of 8 epochs of 47 steps at the quickstart's rate, the same
    at ten times that rate, and that rate on few pairs, which have four steps an epoch."""
    epochs = f"optim.epochs={8 if plan == 'full' else 4}"
    few = (f"data.train=[{TINY / 'few.jsonl'}]", "optim.epochs=64", "run.eval_every=32")
    return {
        "long": (epochs, "run.eval_every=47"),
        "fast": (epochs, "run.eval_every=47", SWEEP_RATE),
        "few": (*few, SWEEP_RATE),
    }


def write_rows_of_pairs() -> None:
    """The chosen answers as dialogues for dSFT-2, and the first few pairs."""
    for name in ("_validation", ""):
        pairs = read_lines(TINY / f"pairs{name}.jsonl")
        roles = ("user", "assistant")
        dialogues = [
            {
                "messages": [
                    {"role": r, "content": p[k]} for r, k in zip(roles, ("prompt", "chosen"))
                ]
            }
            for p in pairs
        ]
        write_lines(TINY / f"chosen{name}.jsonl", dialogues)
    write_lines(TINY / "few.jsonl", pairs[:FEW])


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Sequence[object]) -> None:
    """Written under another name first, so that no half of a file is taken for the whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(path)


def answers_of(run: str, place: int) -> Path:
    """A file with the answers of a run at its first (0) or last (-1) evaluation."""
    rows = read_lines(TINY / run / "samples.jsonl")
    return write_answers(run, sorted({row["step"] for row in rows})[place])


def write_answers(run: str, step: int) -> Path:
    """A file with the answers of a run after so many steps, as `zephyr eval win-rate` takes it."""
    path = TINY / "answers" / f"{run}-{step}.jsonl"
    rows = read_lines(TINY / run / "samples.jsonl")
    kept = [{k: row[k] for k in ("prompt_id", "text")} for row in rows if row["step"] == step]
    write_lines(path, kept)
    return path


def judge(models: dict[str, Path], out: Path) -> None:
    """Score all answers, and compare each model with those before it."""
    named = [f"{name}={path}" for name, path in models.items()]
    asked = ("--prompts", TEST_PROMPTS, "--judge", JUDGE, "--scores", "--by", "family")
    zephyr("eval", "win-rate", *named, *asked, "--out", out)()


def table_3() -> None:
    judge({name: answers_of(*of) for name, of in TABLE_3.items()}, TINY / "judged" / "table3")


def judge_each_evaluation(run: str) -> Callable[[], None]:
    """Compare the answers after each evaluation of a run with those of the dSFT model."""

    def judge_all() -> None:
        start = answers_of("dpo", 0)
        steps = sorted({row["step"] for row in read_lines(TINY / run / "samples.jsonl")} - {0})
        for step in steps:
            out = TINY / "judged" / run / str(step)
            judge({"dSFT-1": start, run: write_answers(run, step)}, out)
        (TINY / "judged" / run / "finished").write_text("")

    return judge_all


def prepare_folder(folder: Path) -> None:
    """A seed's folder, in which the configs' relative paths hold."""
    (folder / TINY / "judged").mkdir(parents=True, exist_ok=True)
    if not (folder / "configs").is_symlink():
        (folder / "configs").symlink_to(ROOT / "configs", target_is_directory=True)


def run_all(tasks: Sequence[tuple[Path, Stage]], workers: int) -> None:
    """Run each stage in a process of its own, at most `workers` at a time, in the order given.

    Raises: SystemExit naming the log of a stage that failed.
    """
    started = time.monotonic()
    forks = multiprocessing.get_context("fork")  # a fork has all imports already
    waiting = [(folder, stage) for folder, stage in tasks if not (folder / stage.made).exists()]
    print(f"{len(tasks) - len(waiting)} of {len(tasks)} stages are finished", flush=True)
    running: dict[BaseProcess, tuple[Path, Stage, float]] = {}
    while waiting or running:
        unfinished = {(f, s.name) for f, s in [*waiting, *((f, s) for f, s, _ in running.values())]}
        ready = [
            task
            for task in waiting
            if not any((task[0], need) in unfinished for need in task[1].needs)
        ]
        for task in ready[: workers - len(running)]:
            waiting.remove(task)
            process = forks.Process(target=run_stage, args=task)
            process.start()
            running[process] = (*task, time.monotonic())
        wait([process.sentinel for process in running])
        for process in [process for process in running if process.exitcode is not None]:
            folder, stage, since = running.pop(process)
            now = time.monotonic()
            took = f"{now - since:.0f} s, {(now - started) / 60:.1f} min in all"
            print(f"{folder.name} {stage.name}: {took}", flush=True)
            if process.exitcode or not (folder / stage.made).exists():
                raise SystemExit(
                    f"error: {folder.name} {stage.name} failed: {log_of(folder, stage)}"
                )


def log_of(folder: Path, stage: Stage) -> Path:
    return folder / "logs" / f"{stage.name.replace(' ', '-')}.log"


def run_stage(folder: Path, stage: Stage) -> None:
    """In a fork: run the stage in its seed's folder; what it prints goes to its log."""
    path = log_of(folder, stage)
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder)
    stage.run()


def import_once() -> None:
    """Import what every stage needs, before the forks."""
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import transformers.models.mistral.modeling_mistral  # noqa: F401

    import train_dpo  # noqa: F401
    import train_sft  # noqa: F401
    import zephyr.cli.evaluation
    import zephyr.evaluation.win_rate  # noqa: F401

    gc.collect()
    gc.freeze()  # a fork's garbage collections then don't copy the memory that all share


def collect(folder: Path, plan: str) -> dict[str, object]:
    """The figures of a seed: Table 3, and of every other run its course and its judgements."""
    judged = folder / TINY / "judged"
    table = json.loads((judged / "table3" / "results.json").read_text(encoding="utf-8"))
    runs = {}
    for name in (*CURVES, *(SWEEPS if plan == "full" else ())):
        places = sorted(judged.glob(f"{name}/*/results.json"), key=lambda p: int(p.parent.name))
        runs[name] = course(folder / TINY / name) | {"judged": [of_run(name, p) for p in places]}
    return {
        "models": {name: scored(found) for name, found in table["models"].items()},
        "pairs": {name: compared(found) for name, found in table["pairs"].items()},
        "dpo": course(folder / TINY / "dpo"),
        "runs": runs,
    }


def of_run(name: str, path: Path) -> dict[str, object]:
    """The judge's score of a run's answers after a step, and their win rate over dSFT."""
    found = json.loads(path.read_text(encoding="utf-8"))
    win_rate = compared(found["pairs"][f"{name} over dSFT-1"])
    return {"step": int(path.parent.name), **scored(found["models"][name]), "over dSFT-1": win_rate}


def scored(found: dict) -> dict[str, object]:
    """Mean score with its 95 % interval over prompts, and the mean of each family of prompts."""
    families = {name: of["score"] for name, of in found["by"].items()}
    return {"score": found["score"], "ci95": found["ci95"], "families": families}


def compared(found: dict) -> dict[str, object]:
    return {key: found[key] for key in ("win_rate", "ci95", "n")}


def course(run: Path) -> dict[str, object]:
    """How often the chosen answer has the higher reward, and by how much: in training, over each
    pass between two evaluations, and on held-out pairs."""
    from zephyr.analysis.visits import read_visits

    records = read_lines(run / "metrics.jsonl")
    evaluations = [r for r in records if r["split"] == "eval" and r["step"] > 0]
    visits = read_visits(run)
    train, first = [], 0
    for record in evaluations:
        within_V = (visits.step_V >= first) & (visits.step_V < record["step"])
        first = record["step"]
        if within_V.any():
            margin_V = visits.margin_V[within_V]
            accuracy, margin = float((margin_V > 0).mean()), float(margin_V.mean())
            train.append({"step": first, "accuracy": accuracy, "margin": margin})
    names = ("accuracies", "margins", "chosen", "rejected")
    held_out = [
        {"step": record["step"], "loss": record["loss"]}
        | {name: record[f"rewards/{name}"] for name in names}
        for record in evaluations
    ]
    return {"train": train, "held_out": held_out, "epochs": evaluations[-1]["epoch"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plan", choices=("full", "short"), default="full")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "findings")
    parser.add_argument("--workers", type=int, default=2, help="stages at a time, one core each")
    options = parser.parse_args()
    out = options.out.resolve()
    folders = {seed: out / f"seed-{seed}" for seed in options.seeds}
    for folder in folders.values():
        prepare_folder(folder)
    of_seeds = [
        [(folders[seed], stage) for stage in stages(seed, options.plan)] for seed in folders
    ]
    tasks = [task for same_stage in zip(*of_seeds) for task in same_stage]
    import_once()
    run_all(tasks, options.workers)
    figures = {str(seed): collect(folder, options.plan) for seed, folder in folders.items()}
    results = json.dumps(rounded({"plan": options.plan, "seeds": figures}), indent=1)
    (out / "results.json").write_text(results + "\n", encoding="utf-8")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor time: {(used.ru_utime + used.ru_stime) / 60:.1f} min")
    print(f"figures: {out / 'results.json'}")


def rounded(found: object) -> object:
    """All numbers with four decimals: the judge's intervals know no more."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return round(found, 4) if isinstance(found, float) else found


if __name__ == "__main__":
    main()
