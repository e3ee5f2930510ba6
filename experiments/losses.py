"""Train the dSFT model of the quickstart with each loss, and judge what the models answer.

    python experiments/losses.py [--tune] [NAME ...]

`configs/tiny/losses/NAME.yaml` has the settings of each loss; without a NAME, all are trained. It
runs in a folder that `make quickstart` has finished, and writes `runs/tiny/losses/`. With --tune,
each loss is trained with the further settings of `POINTS` too, and the models are judged on the
validation prompts; without, on the test prompts. A model that is there is not trained again.

Every answer is judged by itself, 1 to 10, and against that of the dSFT model to the same prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

import findings  # noqa: E402
import yaml  # noqa: E402

CONFIGS = ROOT / "configs" / "tiny" / "losses"
OUT = findings.TINY / "losses"
# What --tune compares with the config of each loss: the other rate, and settings of some.
RATES = ("1.5e-5", "3.0e-5")
POINTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ipo": (("beta=0.1",),),
    "sigmoid_norm": (("beta=1.0",),),
    "sppo_hard": (("beta=0.001",),),
    "dpop": (("loss={name: dpop, penalty: 50}",),),
    "simpo": (("beta=10", "loss={name: simpo, gamma: 3}"),),
    "orpo": (("beta=1.0",),),
    "dpo_sft": (("sft_weight=1.0",),),
    "cpo": (("sft_weight=1.0",),),
}


class Point(NamedTuple):
    """A run: the settings of a loss with overrides."""

    name: str
    loss: str
    overrides: tuple[str, ...]


def points(losses: list[str], tune: bool) -> list[Point]:
    """The runs to make: that of each config, then those with other settings."""
    found = [Point(loss, loss, ()) for loss in losses]
    if tune:
        for loss in losses:
            own = yaml.safe_load((CONFIGS / f"{loss}.yaml").read_text())["optim"]["lr_peak"]
            (rate,) = [rate for rate in RATES if float(rate) != float(own)]
            found.append(Point(f"{loss}-{rate}", loss, (f"optim.lr_peak={rate}",)))
        for loss in losses:
            others = enumerate(POINTS.get(loss, ()))
            found += [Point(f"{loss}-other-{i}", loss, overrides) for i, overrides in others]
    return found


def train(point: Point) -> findings.Stage:
    settings = (f"run.dir={OUT / point.name}", "run.resume=auto", "run.eval_every=100000")
    line = findings.script(
        "train_dpo.py", CONFIGS / f"{point.loss}.yaml", *settings, *point.overrides, "--quiet"
    )
    made = OUT / point.name / "model" / "model.safetensors"
    return findings.Stage(f"train-{point.name}", made, (), line)


def judge(point: Point, split: str) -> findings.Stage:
    """Its answers to the prompts of a split, against those of the dSFT model."""
    models = (f"dSFT={findings.TINY}/sft/model", f"{point.name}={OUT / point.name}/model")
    out = OUT / "judged" / split / point.name
    prompts = findings.WORLD / "prompts" / f"{split}.jsonl"
    asked = ("--prompts", prompts, "--judge", findings.JUDGE, "--scores", "--by", "family")
    more = ("--max-new-tokens", 64, "--out", out, "--quiet")
    line = findings.zephyr("eval", "win-rate", *models, *asked, *more)
    name = f"judge-{split}-{point.name}"
    return findings.Stage(name, out / "results.json", (f"train-{point.name}",), line)


def row(point: Point, split: str) -> dict[str, object]:
    """What is known of a run: its settings, its last evaluation, and what the judge says."""
    results = json.loads((OUT / "judged" / split / point.name / "results.json").read_text())
    lines = findings.read_lines(OUT / point.name / "metrics.jsonl")
    start, last = (record for record in lines if record["split"] == "eval")
    return {
        "name": point.name,
        "overrides": list(point.overrides),
        "results": results,
        "eval": {"start": start, "last": last},
    }


HEAD = (
    "| config | score | one word | what nobody can know | win rate over dSFT | accuracy | "
    "log-prob of chosen | of rejected |"
)


def table_row(of: dict) -> str:
    """A line of the table. Log-probs are changes since the start, in nats, of held-out pairs."""
    models, (pair,) = of["results"]["models"], of["results"]["pairs"].values()
    model, start, last = models[of["name"]], of["eval"]["start"], of["eval"]["last"]
    by_family = [model["by"][family]["score"] for family in ("one_word", "private")]
    changes = [last[f"logps/{side}"] - start[f"logps/{side}"] for side in ("chosen", "rejected")]
    cells = [
        " ".join([f"`{of['name']}`", *(f"`{text}`" for text in of["overrides"])]),
        "{:.2f} [{:.2f}, {:.2f}]".format(model["score"], *model["ci95"]),
        *(f"{score:.2f}" for score in by_family),
        "{:.3f} [{:.3f}, {:.3f}]".format(pair["win_rate"], *pair["ci95"]),
        f"{last['rewards/accuracies']:.3f}",
        *(f"{change:+.2f}" for change in changes),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    known = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if wrong := set(arguments.names) - set(known):
        parser.error(f"no losses: {', '.join(sorted(wrong))}; there are {', '.join(known)}")
    if not (findings.TINY / "sft" / "model").is_dir():
        parser.error("there is no runs/tiny/sft/model here: run make quickstart first")
    split = "validation" if arguments.tune else "test"
    runs = points(arguments.names or known, arguments.tune)
    findings.import_once()
    for point in runs:
        stages = [(Path.cwd(), stage) for stage in (train(point), judge(point, split))]
        findings.run_all(stages, workers=1)
    table = [row(point, split) for point in runs]
    (OUT / f"{split}.json").write_text(json.dumps(table, indent=1) + "\n")
    print(HEAD, "|---" * 8 + "|", *map(table_row, table), sep="\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
