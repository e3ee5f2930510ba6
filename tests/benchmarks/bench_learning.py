"""The same pretrained model learns real preferences by Zephyr and by TRL: held-out loss and
accuracy of both, over steps and over seconds.

    python tests/benchmarks/bench_learning.py --model MODEL --pairs FILE... --seconds 300 --out DIR
    ... --toy                          a tiny random model, pairs of the embedded world; seconds
    ... --plot DIR/learning.json       draws DIR/learning.svg and ends; needs matplotlib

MODEL is a Hugging Face folder, a .gguf file of SmolLM2-135M-Instruct, or such a file in parts
(model_parts.py). FILE holds pairs as train_dpo.py reads them; `zephyr binarize FILE --rule paper
--out PAIRS` makes them of other shapes. A prompt's pairs are held out or trained on by a seeded
hash of its first user turn, so that no prompt is on both sides.

Both sides start from the same weights and see the same ids in the same order, with the same
optimizer and schedule, one epoch. Each evaluates held-out pairs by its own means. Zephyr goes
first and takes at most SHARE of the seconds. The result is written anew after each evaluation: a
side that is cut off keeps its curve so far, and says so. On a CPU both compute in float32 and must
agree; on a GPU Zephyr takes bfloat16 with float32 master weights, TRL autocasts float32 weights."""

import argparse
import hashlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import measure
import model_parts
import torch
from bench_peer import (
    FAST,
    ROOT,
    ZEPHYR_CPU,
    Cell,
    Worker,
    common_task,
    seconds,
    write_pairs,
)

from zephyr.chat import EncodedPair

SHARE = 0.45  # of the seconds, for the first side: the other is the slower one
CELLS: dict[str, dict[str, Cell]] = {
    "cpu": {
        "zephyr": {**ZEPHYR_CPU, "tokens_per_micro_batch": 2400},
        "trl": {"precision": "float32", "micro": 2, "rebalance": False, "reference_micro": 2},
    },
    "cuda": {
        "zephyr": {
            "attention": FAST,
            "activation_checkpointing": False,
            "tokens_per_micro_batch": 16384,
        },
        "trl": {"precision": "autocast", "micro": 8, "rebalance": False, "reference_micro": 8},
    },
}
HELD_OUT_MULTIPLE = 8  # TRL's evaluation averages micro-batches: all are full
Curve = dict[str, object]


class Cut(Exception):
    """The time of a side is over."""


def split(
    pairs: Sequence[EncodedPair], prompts: Sequence[bytes], *, held_out: int, seed: int
) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Pairs to train on, in a seeded order, and one pair each of the held-out prompts.

    Prompts are held out in the order of a seeded hash: at most `held_out`, at most half of them,
    and a multiple of HELD_OUT_MULTIPLE.
    Args: prompts: of each pair, a digest of its prompt.
    Returns: train, held out; no prompt is in both. Raises: ValueError for too few prompts."""

    def rank(key: bytes) -> bytes:
        return hashlib.sha256(f"{seed} ".encode() + key).digest()

    of_prompt: dict[bytes, list[EncodedPair]] = {}
    for pair, prompt in zip(pairs, prompts, strict=True):
        of_prompt.setdefault(prompt, []).append(pair)
    count = min(held_out, len(of_prompt) // 2) // HELD_OUT_MULTIPLE * HELD_OUT_MULTIPLE
    if count == 0:
        raise ValueError(
            f"the pairs have {len(of_prompt)} prompts and --held-out is {held_out}, expected at "
            f"least {2 * HELD_OUT_MULTIPLE} prompts and {HELD_OUT_MULTIPLE} held out"
        )
    order = sorted(of_prompt, key=rank)

    def of_id(pair: EncodedPair) -> bytes:
        return rank(pair.id.encode())

    held = [min(of_prompt[prompt], key=of_id) for prompt in order[:count]]
    train = [pair for prompt in order[count:] for pair in of_prompt[prompt]]
    return sorted(train, key=of_id), held


def real_pairs(
    files: Sequence[str], model: Path, max_tokens: int
) -> tuple[list[EncodedPair], list[bytes]]:
    """Pairs of all files, as token ids of the model's tokenizer and chat template, and the digest
    of each one's first user turn."""
    from zephyr.data.encode import load_pairs
    from zephyr.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    pairs: list[EncodedPair] = []
    prompts: list[bytes] = []
    for file in files:
        found, _ = load_pairs(
            [file],
            tokenizer,
            max_tokens=max_tokens,
            max_prompt_tokens=max_tokens // 2,
            on_bad_row="skip",
        )
        pairs += [pair._replace(id=f"{Path(file).name}/{pair.id}") for pair in found]
        asked = found.table["asked"].to_pylist()
        prompts += [digest[: len(digest) // 2] for digest in asked]
    return pairs, prompts


def write_toy(folder: Path) -> tuple[Path, list[str]]:
    """Save an untrained model, and 64 pairs of the embedded world in a file: of each prompt two,
    the expert's answer over others'. Returns: the model's folder, and the file."""
    from zephyr.world.answerers import answer
    from zephyr.world.facts import build_world
    from zephyr.world.prompts import draw_prompts
    from zephyr.world.untrained import save_untrained

    world = build_world(0)
    rows = [
        {"prompt": prompt.prompt, "chosen": answer("expert", prompt, world, 0), "rejected": other}
        for prompt in draw_prompts(world, "train", 32, 0)
        for other in (answer(name, prompt, world, 0) for name in ("evasive", "terse"))
    ]
    save_untrained((text for row in rows for text in row.values()), folder / "toy", seed=0)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "toy", [str(folder / "pairs.jsonl")]


def prepare_model(path: Path, folder: Path) -> Path:
    """A Hugging Face folder of the model, its weights rounded to bfloat16: both sides start from
    the same ones in any precision."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.is_dir() or model_parts.find(path):
        sys.path.insert(0, str(ROOT / "tests/real"))
        import smollm2

        file = path if path.is_file() else model_parts.join(path, folder)
        if file.name != smollm2.GGUF:
            raise ValueError(f"--model {path}: {file.name} is no {smollm2.GGUF}")
        path = folder / "float32"
        smollm2.convert(file.parent, path)
    rounded = folder / "model"
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(rounded)
    AutoTokenizer.from_pretrained(path).save_pretrained(rounded)
    return rounded


def prepare(args: argparse.Namespace, folder: Path) -> tuple[dict[str, object], dict[str, object]]:
    """Save model and pairs. Returns: what both sides are told, and figures of the data."""
    path, files = write_toy(folder) if args.toy else (args.model, args.pairs)
    pairs, prompts = real_pairs(files, prepare_model(path, folder), args.max_tokens)
    train, held = split(pairs, prompts, held_out=args.held_out, seed=args.seed)
    steps = min(args.steps or len(train), len(train) // args.pairs_per_step)
    if steps == 0:
        raise ValueError(
            f"{len(train)} pairs are left to train on, expected at least --pairs-per-step "
            f"{args.pairs_per_step}: give more pairs"
        )
    figures = {
        "files": [Path(file).name for file in files],
        "steps": steps,
        "train": write_pairs(train[: steps * args.pairs_per_step], folder / "rows.jsonl"),
        "held_out": write_pairs(held, folder / "held_out.jsonl"),
    }
    told = common_task(
        folder,
        pairs_per_step=args.pairs_per_step,
        lr=args.lr,
        threads=args.threads,
        gpu=args.device == "cuda",
    )
    more = {"schedule": "linear", "warmup_fraction": 0.1, "held_out": f"{folder}/held_out.jsonl"}
    return {**told, **more}, figures


def learn(
    worker: Worker, curve: Curve, *, steps: int, every: int, until: float, keep: Callable[[], None]
) -> None:
    """Train, with an evaluation before the first step and after each `every` steps and the last;
    `keep` is called after each one.

    Fills in `curve`: status, train_loss and grad_norm of each step, evaluations (step, loss,
    accuracy, margin, training_seconds so far, wall_seconds of its own), start_seconds (imports,
    loading and the reference's log-probs). Args: until: of time.monotonic()."""
    losses: list[float] = []
    norms: list[float] = []
    evaluations: list[Curve] = []
    trained, started = 0.0, time.monotonic()
    curve.update(train_loss=losses, grad_norm=norms, evaluations=evaluations)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, until - started))
    try:
        while True:
            figures = worker.ask("evaluate")
            if not evaluations:
                curve["start_seconds"] = time.monotonic() - started - figures["wall_seconds"]
            evaluations.append({"step": len(losses), **figures, "training_seconds": trained})
            curve["status"] = f"after {len(losses)} of {steps} steps"
            keep()
            if len(losses) == steps:
                break
            answer = worker.round(min(every, steps - len(losses)))
            losses += answer["losses"]
            norms += answer["grad_norms"]
            trained += seconds(answer)
            curve["peak_bytes"] = answer["peak_bytes"]
        curve["status"] = "finished"
    except Cut:
        curve["status"] = f"cut after {len(losses)} of {steps} steps: its time was over"
    except RuntimeError as error:
        curve["status"] = f"failed after {len(losses)} of {steps} steps: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        worker.process.kill()
        worker.process.wait()
    keep()


def stop(*_: object) -> None:
    raise Cut


def agreement(first: Curve, other: Curve) -> Curve:
    """The greatest difference of two curves over the steps that both have; accuracy in pairs'
    shares."""
    losses = list(zip(first["train_loss"], other["train_loss"]))
    evaluations = [
        (a, b) for a, b in zip(first["evaluations"], other["evaluations"]) if a["step"] == b["step"]
    ]

    def greatest(name: str) -> float:
        return max((abs(a[name] - b[name]) for a, b in evaluations), default=0.0)

    return {
        "steps": len(losses),
        "evaluations": len(evaluations),
        "train_loss": max((abs(a - b) for a, b in losses), default=0.0),
        "held_out_loss": greatest("loss"),
        "held_out_margin": greatest("margin"),
        # before the first step there is nothing to rank by
        "held_out_accuracy": max(
            (abs(a["accuracy"] - b["accuracy"]) for a, b in evaluations if a["step"]), default=0.0
        ),
    }


def compare(args: argparse.Namespace, folder: Path) -> Curve:
    """Both sides, one after the other; the result is saved after each evaluation."""
    began = time.monotonic()
    task, figures = prepare(args, folder)
    cells, curves = CELLS[args.device], dict[str, Curve]()
    shown = {"toy", "device", "seconds", "steps", "every", "held_out", "pairs_per_step", "lr"}
    options = {name: value for name, value in vars(args).items() if name in shown}
    result: Curve = {"data": figures, "options": options, "curves": curves}
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = " ".join(["bench_learning.py", *words])

    def keep() -> None:
        if {"zephyr", "trl"} <= {name for name, curve in curves.items() if "train_loss" in curve}:
            result["agreement"] = agreement(curves["zephyr"], curves["trl"])
        measure.write("learning", command, result)

    for name, share in (("zephyr", SHARE), ("trl", 1.0)):
        curve = curves[name] = {"cell": cells[name], "status": "not started"}
        until = began + share * args.seconds
        if name == "trl" and not find_spec("trl"):
            curve["status"] = "trl is not importable here"
        elif until - time.monotonic() < 1:
            curve["status"] = "not started: no time was left"
        else:
            worker = Worker(name, task, cells[name])
            steps = figures["steps"]
            learn(worker, curve, steps=steps, every=args.every, until=until, keep=keep)
        keep()
        print(f"{name}: {curve['status']}", flush=True)
    return result


def plot(result: Path) -> Path:
    """Draw the curves of a result file beside it, as .svg; returns that file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "learning"}
    import matplotlib.pyplot as plt

    saved = json.loads(result.read_text(encoding="utf-8"))
    names = {"zephyr": "Zephyr", "trl": f"TRL {saved['machine']['packages'].get('trl', '')}"}
    figure, (loss, accuracy, time_) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    styles = {
        "zephyr": {"color": "#1b6ca8", "linewidth": 2.5, "marker": "o", "markersize": 5},
        "trl": {"color": "#d9822b", "linewidth": 1.2, "linestyle": "--", "marker": "x"},
    }
    for name, curve in saved["result"]["curves"].items():
        if not curve.get("evaluations"):
            continue
        style, label = styles[name], names[name]
        of = curve["evaluations"]
        steps, losses = [e["step"] for e in of], [e["loss"] for e in of]
        thin = {**style, "marker": "", "alpha": 0.4}
        loss.plot(range(len(curve["train_loss"])), curve["train_loss"], **thin)
        loss.plot(steps, losses, **style, label=label)
        accuracy.plot(steps[1:], [100 * e["accuracy"] for e in of[1:]], **style, label=label)
        time_.plot([e["training_seconds"] for e in of], losses, **style, label=label)
    loss.set(xlabel="updates", ylabel="loss: held out (marks), training (pale)")
    accuracy.set(xlabel="updates", ylabel="held-out reward accuracy, %")
    unit = "seconds" if "gpu" in saved["machine"] else "CPU seconds"
    time_.set(xlabel=f"{unit} of training", ylabel="held-out loss")
    for axis in (loss, accuracy, time_):
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=axis is not time_)
        axis.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    drawn = result.with_suffix(".svg")
    figure.savefig(drawn, metadata={"Date": None})
    return drawn


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=CELLS, default="cpu")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", nargs="+", default=[], metavar="FILE")
    parser.add_argument("--seconds", type=float, default=600, help="of everything, at most")
    parser.add_argument("--out", type=Path, help="the folder of the result")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="RESULT", help="draw a saved result, and end")
    parser.add_argument("--steps", type=int, help="at most; default: one epoch")
    parser.add_argument("--every", type=int, help="steps between evaluations; default 2, GPU 10")
    parser.add_argument("--pairs-per-step", type=int, help="default 8, GPU 32")
    parser.add_argument("--held-out", type=int, help="pairs at most; default 32, GPU 256")
    parser.add_argument("--max-tokens", type=int, help="of a conversation; default 512, GPU 1024")
    parser.add_argument("--lr", type=float, default=5e-6)
    parser.add_argument("--threads", type=int, help="of the processor; default 2, GPU 8")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    usual = {"every": (2, 10), "pairs_per_step": (8, 32), "held_out": (32, 256)}
    if args.toy:
        usual = {"every": (1, 1), "pairs_per_step": (4, 4), "held_out": (8, 8)}
        args.lr, args.steps = 1e-3, args.steps or 3
    usual |= {"max_tokens": (512, 1024), "threads": (2, 8)}
    for name, values in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, values[args.device == "cuda"])
    if not (args.toy or args.plot or (args.model and args.pairs)):
        parser.error("--model and --pairs are wanted, or --toy")
    if absent := [file for file in args.pairs if not Path(file).is_file()]:
        parser.error(f"--pairs: {', '.join(absent)} does not exist; the data are not in this repo")
    return args


def main(argv: Sequence[str] | None = None) -> Curve | None:
    """Returns the result; None where one was only drawn."""
    args = parse(argv)
    if args.plot:
        print(plot(args.plot))
        return None
    if args.out:
        measure.RESULTS = args.out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the temporary folder goes
    with tempfile.TemporaryDirectory(prefix="bench-learning-") as folder:
        try:
            return compare(args, Path(folder))
        except (FileNotFoundError, ValueError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
