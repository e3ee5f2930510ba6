"""Train on the policy's own answers in rounds, and on other models' answers, at equal budgets.

    python experiments/rounds.py [--seeds 0 1 2] [--out runs/findings] [--workers 1]

For each seed, in `OUT/seed-N`: the quickstart up to dSFT and its feedback (those of
experiments/findings.py are used where they are), then from the dSFT model
  rounds    three rounds of `zephyr rounds`: each samples answers of the latest policy
  static    one round: all answers are the dSFT model's own
  random    the rounds again, with random pairs of the same prompts
  offline   DPO on the answers of the four answerers, best against worst
Every arm has 4 judged answers to each of 1,200 prompts, and trains for three epochs on its pairs.
All models answer the test prompts greedily, and the world's judge compares them with dSFT's and
scores them. Finished stages are skipped, so the command can be interrupted and run again.
`OUT/rounds.json` holds the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from findings import (  # noqa: E402
    JUDGE,
    TEST_PROMPTS,
    TINY,
    Stage,
    import_once,
    prepare_folder,
    quickstart_stages,
    read_lines,
    run_all,
    script,
    write_lines,
    zephyr,
)

ROUNDS, PROMPTS, SAMPLES, EPOCHS = 3, 400, 4, 3
DIR = TINY / "on_policy"
NEEDED = ("world", "base", "self_instruct", "prepare", "feedback", "sft")  # of the quickstart
TRAINING = (f"optim.epochs={EPOCHS}", "data.eval=[]", "samples.prompts=[]")
ARMS = {  # name -> overrides of configs/tiny/rounds.yaml
    "rounds": (),
    "random": ("pairs.choose=random",),
    "static": ("rounds=1", f"prompts.per_round={ROUNDS * PROMPTS}"),
}
# Of which run is each model that is judged, and after how many rounds.
MODELS = {
    "offline": DIR / "offline",
    "static": DIR / "static/round-1/dpo",
    **{f"round-{k}": DIR / f"rounds/round-{k}/dpo" for k in range(1, ROUNDS + 1)},
    "random": DIR / f"random/round-{ROUNDS}/dpo",
}


def stages(seed: int) -> list[Stage]:
    """The stages of a seed, each after those that it needs."""
    found = [stage for stage in quickstart_stages(seed) if stage.name in NEEDED]
    for name, overrides in ARMS.items():
        rounds = 1 if name == "static" else ROUNDS
        made = DIR / name / f"round-{rounds}/dpo/model/model.safetensors"
        found.append(Stage(name, made, ("sft",), zephyr(*rounds_line(name, seed, overrides))))
    pairs = DIR / "offline.jsonl"
    offline = (f"data.train=[{pairs}]", f"run.dir={DIR / 'offline'}", f"run.seed={seed}")
    store = (f"reference.dir={DIR / 'reference'}", "run.resume=auto")
    line = script("train_dpo.py", "configs/tiny/dpo.yaml", *offline, *store, *TRAINING)
    made = DIR / "offline/model/model.safetensors"
    found.append(Stage("offline pairs", pairs, ("feedback",), write_offline_pairs))
    found.append(Stage("offline", made, ("offline pairs", "sft"), line))
    found.append(Stage("judge", DIR / "eval/results.json", ("offline", *ARMS), judge_all))
    return found


def rounds_line(name: str, seed: int, overrides: Sequence[str]) -> tuple[str, ...]:
    """The command of an arm."""
    training = ", ".join(json.dumps(of) for of in (*TRAINING, f"run.seed={seed}"))
    settings = (
        f"dir={DIR / name}",
        f"seed={seed}",
        f"rounds={ROUNDS}",
        f"prompts.per_round={PROMPTS}",
        f"sampling.samples={SAMPLES}",
        f"train.overrides=[{training}, reference.dir={DIR / 'reference'}]",
        "train.processes=1",
        "eval.prompts=[]",
        "eval.judge=null",
    )
    return ("rounds", "configs/tiny/rounds.yaml", *settings, *overrides)


def write_offline_pairs() -> None:
    """The best against the worst answer of other models, for as many prompts."""
    rows = read_lines(TINY / "feedback.jsonl")[: ROUNDS * PROMPTS]
    write_lines(DIR / "feedback.jsonl", rows)
    out = DIR / "offline.jsonl"
    zephyr("binarize", DIR / "feedback.jsonl", "--rule", "best-vs-worst", "--out", out)()


def judge_all() -> None:
    """Let all models answer the test prompts; score the answers, and compare them."""
    models = {"dSFT": TINY / "sft", **MODELS}
    named = [f"{name}={run / 'model'}" for name, run in models.items()]
    asked = ("--prompts", TEST_PROMPTS, "--judge", JUDGE, "--scores", "--max-new-tokens", 64)
    zephyr("eval", "win-rate", *named, *asked, "--out", DIR / "eval")()


def results(folder: Path) -> dict[str, object]:
    """The figures of a seed."""
    found = json.loads((folder / DIR / "eval/results.json").read_text())
    over_start = {
        name: {key: found["pairs"][f"{name} over dSFT"][key] for key in ("win_rate", "ci95")}
        for name in MODELS
    }
    scores = {
        name: {key: found["models"][name][key] for key in ("score", "ci95")}
        for name in ("dSFT", *MODELS)
    }
    pairs = {name: read_lines(folder / DIR / name / "rounds.jsonl") for name in ARMS}
    against = ("round-3 over offline", "round-3 over static", "random over round-3")
    return {
        "over dSFT": over_start,
        "scores": scores,
        "compared": {name: found["pairs"].get(name, {}).get("win_rate") for name in against},
        "pairs": {
            **{name: [row["pairs"] for row in rows] for name, rows in pairs.items()},
            "offline": len(read_lines(folder / DIR / "offline.jsonl")),
        },
        "mean score of samples": {
            name: [row["mean_score"] for row in rows] for name, rows in pairs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/findings"))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    folders = {seed: (options.out / f"seed-{seed}").resolve() for seed in options.seeds}
    for folder in folders.values():
        prepare_folder(folder)
    import_once()
    tasks = [(folder, stage) for seed, folder in folders.items() for stage in stages(seed)]
    run_all(tasks, options.workers)
    found = {f"seed-{seed}": results(folder) for seed, folder in folders.items()}
    (options.out / "rounds.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
