"""The same weights and pairs go through Zephyr, TRL and the padded method of DPO's authors, round
about; pairs per second come out.

    python tests/benchmarks/bench_peer.py --model A --profile ultrafeedback [--rounds 5] [--gpu]
    ... --profile real --rows FILE --tokenizer FOLDER      pairs of a file, not random tokens
    ... --fix 'trl={"micro": 1, "rebalance": false}'     only this cell of a contender (repeatable)

`make bench-peer` runs it with the Python of .venv-bench, which has TRL.

Each contender is a process of its own. Its cells (settings) are swept first: a warm-up step, a
round, and another where the first was within DROP of the best; the best cells then take turns, a
round each. A contender whose losses or gradient norms are not the first one's makes the comparison
void: the command says so and ends with 1. The result is written after every round. On a CPU seconds
are those of the processor, all threads; on a GPU they are between device events, and contenders run
one after the other, since two may not fit."""

import argparse
import contextlib
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import device as devices
import lengths
import measure
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase

from zephyr.chat import EncodedPair

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
DROP = 1.25  # a cell slower than this x the best so far is not measured again
# Greatest difference of a loss and of a gradient norm (relative), and how far losses must move for
# their agreement to say something; the GPU's are of bfloat16
TOLERANCE = {"cpu": (2e-5, 5e-4, 1e-3), "gpu": (2e-2, 1e-1, 5e-2)}
Answer = dict[str, "float | list[float]"]
Cell = dict[str, "int | bool | str"]

MODELS = {
    "tiny": (64, 2, 4, 2, 128, 512),
    "A": (256, 4, 4, 2, 688, 32000),
    "B": (512, 8, 8, 4, 1376, 4096),
    "1B": (2048, 16, 16, 8, 7168, 32000),
    "3B": (3072, 24, 24, 8, 8192, 32000),
    "7B": (4096, 32, 32, 8, 14336, 32000),
    "7B-8L": (4096, 8, 32, 8, 14336, 32000),
}
ZEPHYR_CPU = {
    "dtype": "float32",
    "attention": "sdpa",
    "activation_checkpointing": False,
    "deepspeed": "configs/deepspeed/cpu.json",
}
FAST = "flash_attn" if find_spec("flash_attn") else "torch_varlen"
# Of one pair, rebalancing changes nothing, nor where a micro-batch is the whole step.
TRL = [(1, False), (2, False), (2, True), (4, False), (4, True), (8, False)]
CELLS: dict[str, dict[str, list[Cell]]] = {
    "cpu": {
        "zephyr": [{**ZEPHYR_CPU, "tokens_per_micro_batch": n} for n in (1200, 2400, 4800)],
        "plain": [
            {**ZEPHYR_CPU, "tokens_per_micro_batch": n, "plain": True} for n in (1200, 2400, 4800)
        ],
        "trl": [{"precision": "float32", "micro": m, "rebalance": r} for m, r in TRL],
        "padded": [{"dtype": "float32", "micro": m} for m in (1, 2, 4, 8)],
    },
    "gpu": {
        "zephyr": [
            {"attention": FAST, "activation_checkpointing": a, "tokens_per_micro_batch": n}
            for a in (False, True)
            for n in (8192, 16384)
        ],
        **{
            name: [
                {"precision": p, "micro": m, "rebalance": r, "gradient_checkpointing": g}
                for g in (False, True)
                for m, r in TRL
            ]
            for name, p in (("trl", "autocast"), ("trl_bfloat16", "bfloat16"))
        },
        "padded": [
            {"dtype": "float32", "micro": m, "gradient_checkpointing": g}
            for g in (False, True)
            for m in (1, 2, 4)
        ],
    },
}
SCRIPTS = {
    "zephyr": "with_zephyr",
    "plain": "with_zephyr",
    "trl": "with_trl",
    "trl_bfloat16": "with_trl",
    "padded": "padded",
}


class Worker:
    """Owns the process of a contender with one cell of settings."""

    def __init__(self, contender: str, task: dict[str, object], cell: Cell) -> None:
        file = Path(tempfile.mkstemp(".json", f"{contender}-", task["folder"])[1])
        file.write_text(json.dumps({**task, "settings": cell}))
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(task["threads"]),
            "OMP_WAIT_POLICY": "passive",
            "DS_ACCELERATOR": "cuda" if task["gpu"] else "cpu",
            "HF_DATASETS_CACHE": f"{task['folder']}/datasets",
        }
        self.log = file.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, PEERS / f"{SCRIPTS[contender]}.py", file],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.ready = False

    def round(self, steps: int) -> Answer:
        return self.ask(f"step {steps}")

    def ask(self, line: str) -> Answer:
        """The answer to `step K` or `evaluate`. Raises: RuntimeError with the end of its log where
        the process ended (of a GPU's memory, perhaps)."""
        lines = [] if self.ready else [self.process.stdout.readline()]
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        lines.append(self.process.stdout.readline())
        if not all(lines):
            raise RuntimeError(self.log.read_text()[-600:])
        self.ready = True
        return json.loads(lines[-1])

    def close(self) -> None:
        """The process ends by itself where its input does."""
        self.process.stdin.close()
        self.process.wait()


def make_model(shape: str, vocabulary: int | None, folder: Path, gpu: bool) -> int:
    """Save a Mistral of random weights; returns its vocabulary."""
    hidden, layers, heads, kv_heads, inner, own_vocabulary = MODELS[shape]
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        config = MistralConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=inner,
            vocab_size=vocabulary or own_vocabulary,
            sliding_window=None,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
        model = MistralForCausalLM(config).to(torch.bfloat16 if gpu else torch.float32)
    model.save_pretrained(folder)
    del model
    devices.release("cuda" if gpu else "cpu")  # for the contenders
    return config.vocab_size


def write_pairs(pairs: Sequence[EncodedPair], path: Path) -> dict[str, float]:
    """Write the pairs for the workers; returns mean lengths, and mean tokens of a pair with its
    prompt once and twice."""
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prompt, chosen, rejected = (statistics.mean(len(pair[i]) for pair in pairs) for i in (1, 2, 3))
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "shared": prompt + chosen + rejected,
        "unshared": 2 * prompt + chosen + rejected,
        "pairs": len(pairs),
    }


def common_task(folder: Path, **more: "int | float") -> dict[str, object]:
    """What all contenders are told, of a folder with the model and the rows."""
    return {
        "folder": str(folder),
        "model": f"{folder}/model",
        "rows": f"{folder}/rows.jsonl",
        "beta": 0.1,
        "grad_clip": 1.0,
        **more,
    }


def seconds(answer: Answer) -> float:
    return answer.get("device_seconds", answer["cpu_seconds"])


def sweep(
    contender: str, task: dict[str, object], cells: Sequence[Cell], steps: int
) -> list[tuple[float, Cell, str]]:
    """Seconds of a round, the cell, and why it failed, the fastest first. Raises: RuntimeError
    where no cell runs."""
    tried: list[tuple[float, Cell, str]] = []
    for cell in cells:
        worker = Worker(contender, task, cell)
        try:
            worker.round(1)
            taken = seconds(worker.round(steps))
            if all(taken <= DROP * other for other, *_ in tried):
                taken = (taken + seconds(worker.round(steps))) / 2
            tried.append((taken, cell, ""))
        except RuntimeError as error:
            tried.append((float("inf"), cell, str(error)))
        worker.close()
        print(
            f"{contender} {json.dumps(cell)}: {tried[-1][0]:.2f} s a round {tried[-1][2]}",
            file=sys.stderr,
            flush=True,
        )
    tried.sort(key=lambda t: t[0])
    if tried[0][0] == float("inf"):
        raise RuntimeError(f"{contender}: no cell runs: {tried[0][2]}")
    return tried


def disagreement(first: Sequence[Answer], other: Sequence[Answer]) -> tuple[float, float]:
    """The greatest difference of a step's losses, and of its gradient norms, relative; infinite
    where one is no number."""

    def greatest(name: str, relative: bool) -> float:
        pairs = [
            pair
            for a, b in zip(first, other, strict=True)
            for pair in zip(a[name], b[name], strict=True)
        ]
        differences = [abs(a - b) / (a if relative else 1) for a, b in pairs]
        return max(d if d == d else float("inf") for d in differences)

    return greatest("losses", False), greatest("grad_norms", True)


def void(rounds: dict[str, list[Answer]], tolerance: tuple[float, float, float]) -> list[str]:
    """Why the comparison does not count: who differs from the first contender, or that nothing was
    learnt, which anyone agrees on."""
    first, *others = rounds
    losses = [loss for answer in rounds[first] for loss in answer["losses"]]
    moved = max(losses) - min(losses)
    why = [] if moved >= tolerance[2] else [f"{first}: the losses move by {moved:.1e} only"]
    for other in others:
        loss, norm = disagreement(rounds[first], rounds[other])
        if not (loss <= tolerance[0] and norm <= tolerance[1]):
            why.append(
                f"{other} differs from {first}: losses by {loss:.1e}, gradient norms by "
                f"{norm:.1e}; at most {tolerance[:2]} counts"
            )
    return why


def real_pairs(
    path: str, tokenizer: PreTrainedTokenizerBase, longest: int, folder: Path
) -> Sequence[EncodedPair]:
    """Rows of `conversations`, `chosen` and `rejected`, turns `from` human and gpt, as token
    ids."""
    from zephyr.data.encode import load_pairs

    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    with gzip.open(path, "rt", encoding="utf-8") as lines, (folder / "real.jsonl").open("w") as out:
        for row in map(json.loads, lines):
            sides = {
                side: [
                    {"role": roles[turn["from"]], "content": turn["value"]}
                    for turn in [*row["conversations"], row[side]]
                ]
                for side in ("chosen", "rejected")
            }
            print(json.dumps(sides | {"prompt": row["conversations"][0]["value"]}), file=out)
    return load_pairs(
        [str(folder / "real.jsonl")],
        tokenizer,
        max_tokens=longest,
        max_prompt_tokens=longest // 2,
        on_bad_row="skip",
    )[0]


def prepare(args: argparse.Namespace, folder: Path) -> tuple[dict[str, object], dict[str, float]]:
    """The model and the pairs of all rounds, saved; returns what contenders are told, and mean
    lengths."""
    count = args.pairs * max(args.steps * (1 + args.rounds), 1 + 2 * args.steps)
    if args.profile == "real":
        from zephyr.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(args.tokenizer)
        make_model(args.model, len(tokenizer), folder / "model", args.gpu)
        real = real_pairs(args.rows, tokenizer, args.longest, folder)
        pairs = [real[i % len(real)] for i in range(count)]
    else:
        vocabulary = make_model(args.model, None, folder / "model", args.gpu)
        drawn = lengths.pair_lengths(
            args.profile, args.pairs if args.same else count, longest=args.longest
        )
        pairs = lengths.random_pairs(drawn, vocabulary)
        pairs = [
            pairs[i % len(pairs)]._replace(id=str(i))  # an id of its own for each visit
            for i in range(count)
        ]
    task = common_task(
        folder, pairs_per_step=args.pairs, lr=args.lr, threads=args.threads, gpu=args.gpu
    )
    return task, write_pairs(pairs, folder / "rows.jsonl")


def race(
    cells: dict[str, Cell],
    task: dict[str, object],
    steps: int,
    count: int,
    keep: Callable[[dict[str, list[Answer]]], object],
) -> dict[str, list[Answer]]:
    """`count` rounds of each contender, in turns; on a GPU one after the other.

    Args: keep: is called with all answers after each."""
    rounds: dict[str, list[Answer]] = {name: [] for name in cells}
    for names in [[name] for name in cells] if task["gpu"] else [list(cells)]:
        workers = {name: Worker(name, task, cells[name]) for name in names}
        for name, worker in [*workers.items()] * count:
            rounds[name].append(answer := worker.round(steps))
            print(
                f"{name}: {answer['pairs'] / seconds(answer):.3f} pairs/s, "
                f"loss {answer['losses'][-1]:.6f}",
                file=sys.stderr,
                flush=True,
            )
            keep(rounds)
        for worker in workers.values():
            worker.close()
    return rounds


def contender(cell: Cell, answers: Sequence[Answer]) -> dict[str, object]:
    """The figures of one contender's rounds; the first round is its warm-up."""
    timed = answers[1:] or answers
    return {
        "cell": cell,
        "pairs_per_second": measure.spread([a["pairs"] / seconds(a) for a in timed]),
        "wall_pairs_per_second": measure.spread([a["pairs"] / a["wall_seconds"] for a in timed]),
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
        "losses": [loss for answer in answers for loss in answer["losses"]],
    }


def comparison(
    rounds: dict[str, list[Answer]], tolerance: tuple[float, float, float]
) -> dict[str, object]:
    """Whether finished rounds count, how far all are off the first, and how much faster it is."""
    first = next(iter(rounds))
    why, answers = void(rounds, tolerance), rounds[first]
    return {
        "counts": not why,
        "void": why,
        "differs": {
            name: dict(zip(("loss", "grad_norm_relative"), disagreement(answers, rounds[name])))
            for name in rounds
        },
        "ratios": {
            f"{first}/{name}": measure.spread(
                [
                    a["pairs"] / seconds(a) / (b["pairs"] / seconds(b))
                    for a, b in zip(answers[1:], rounds[name][1:])
                ]
            )
            for name in rounds
            if name != first
        },
    }


def compare(args: argparse.Namespace, folder: Path) -> int:
    """Sweep, race, save the result; returns the exit code."""
    kind, fixed = "gpu" if args.gpu else "cpu", dict[str, list[Cell]]()
    for name, _, settings in (fix.partition("=") for fix in args.fix):
        fixed.setdefault(name, []).append({**CELLS[kind][name][0], **json.loads(settings)})
    tolerance = TOLERANCE[kind]
    if args.tolerance:
        tolerance = (*map(float, args.tolerance.split(",")), tolerance[2])
    task, drawn = prepare(args, folder)
    cells = {name: fixed.get(name, CELLS[kind][name]) for name in args.contenders.split(",")}
    swept = {
        name: sweep(name, task, some, args.steps) if len(some) > 1 else [(0.0, some[0], "")]
        for name, some in cells.items()
    }
    best = {name: tried[0][1] for name, tried in swept.items()}
    words = [
        Path(word).name if word in (args.rows, args.tokenizer) else word for word in sys.argv[1:]
    ]
    result: dict[str, object] = {
        "counts": False,
        "void": ["it was not finished"],
        "ratios": {},
        "tokens_of_a_pair": drawn,
        "swept_seconds": {
            name: {json.dumps(cell): failed or taken for taken, cell, failed in tried}
            for name, tried in swept.items()
        },
        "options": {k: v for k, v in vars(args).items() if k not in ("rows", "tokenizer")},
    }

    def keep(rounds: dict[str, list[Answer]]) -> Path:
        result["contenders"] = {
            name: contender(best[name], answers) for name, answers in rounds.items() if answers
        }
        if all(len(answers) == 1 + args.rounds for answers in rounds.values()):
            result.update(comparison(rounds, tolerance))
        name = f"peer_{args.model}_{args.profile}"
        return measure.write(name, " ".join(["bench_peer.py", *words]), result)

    rounds = race(best, task, args.steps, 1 + args.rounds, keep)
    print(keep(rounds).read_text(encoding="utf-8"), end="")
    print(
        "".join(f"this comparison does not count: {line}\n" for line in result["void"]),
        file=sys.stderr,
        end="",
    )
    return not result["counts"]


def operators(args: argparse.Namespace, folder: Path) -> int:
    """The hottest operators of one step, to results/profile_cpu_MODEL.txt."""
    task, _ = prepare(args, folder)
    file = measure.RESULTS / f"profile_{'gpu' if args.gpu else 'cpu'}_{args.model}.txt"
    worker = Worker(
        "zephyr", task, {**CELLS["gpu" if args.gpu else "cpu"]["zephyr"][0], "profile": str(file)}
    )
    worker.round(2)
    worker.close()
    print(file.read_text())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="A")
    parser.add_argument("--profile", choices=[*lengths.PROFILES, "real"], default="ultrafeedback")
    parser.add_argument(
        "--contenders",
        default="zephyr,trl,padded",
        help="the first is compared with the others; plain may be one",
    )
    for name, default in (
        ("rounds", 5),
        ("steps", 4),
        ("pairs", 8),
        ("longest", 512),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--fix", action="append", default=[], metavar="CONTENDER=JSON")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--same", action="store_true", help="every step sees the same pairs")
    parser.add_argument("--tolerance", help="LOSS,GRAD_NORM in place of those of the device")
    for name in ("rows", "tokenizer"):
        parser.add_argument(f"--{name}")
    parser.add_argument(
        "--operators", action="store_true", help="no comparison: a profile of a step of Zephyr's"
    )
    args = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # so that the folder goes, and the workers with their input
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as folder:
        return (operators if args.operators else compare)(args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
