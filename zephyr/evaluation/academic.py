"""Models become scores on ARC, HellaSwag, MMLU, TruthfulQA and GSM8K, through
lm-evaluation-harness: prompts and scoring are its own."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zephyr.config import BadInput
from zephyr.evaluation.answers import require_own_names, split_name
from zephyr.evaluation.results import Figures
from zephyr.progress import library_bars

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

Row = Mapping[str, Any]
Task = tuple[str, int]  # name and shots


class Benchmark(NamedTuple):
    """What the score of a benchmark is."""

    task: str  # its name in the harness
    metric: str
    filter: str  # of the metric
    file: str  # how the name of a local file of its rows begins


BENCHMARKS = {
    "arc": Benchmark("arc_challenge", "acc_norm", "none", "arc_challenge"),
    "arc-easy": Benchmark("arc_easy", "acc_norm", "none", "arc_easy"),
    "hellaswag": Benchmark("hellaswag", "acc_norm", "none", "hellaswag"),
    "mmlu": Benchmark("mmlu", "acc", "none", "mmlu"),
    "truthfulqa": Benchmark("truthfulqa_mc2", "acc", "none", "TruthfulQA"),
    "gsm8k": Benchmark("gsm8k", "exact_match", "strict-match", "gsm8k"),
}


def parse_tasks(text: str) -> list[Task]:
    """`NAME-SHOTS,...` as pairs of name and shots. Raises: BadInput."""
    tasks = []
    for item in text.split(","):
        name, _, shots = item.strip().rpartition("-")
        if name not in BENCHMARKS or not shots.isdecimal() or (name == "truthfulqa" and int(shots)):
            raise BadInput(
                f"--tasks {text!r}: expected NAME-SHOTS,... with a name of "
                f"{', '.join(BENCHMARKS)}; truthfulqa has 0 shots"
            )
        tasks.append((name, int(shots)))
    return tasks


def evaluate_academic(
    models: Sequence[str],
    tasks: Sequence[Task],
    *,
    local: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, Figures]]:
    """Scores of models on tasks, by model and `NAME-SHOTS`: see `evaluate_task`.

    Args:
        models: each `[NAME=]` and a model folder, hf:FOLDER or a hub id.
        local: a folder of files with the rows; None: the hub is asked.
        limit: the first questions of each task, and of each subject of MMLU.

    Raises: BadInput without lm-evaluation-harness, and for two models of one name."""
    try:
        import lm_eval.tasks
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise BadInput(
            "lm-evaluation-harness is not installed; pip install 'zephyr[eval]'"
        ) from None
    import torch

    folders = model_folders(models)
    harness = Path(lm_eval.tasks.__file__).parent  # to read all of its tasks takes a minute
    ours = {harness / name.partition("-")[0] for name in BENCHMARKS}
    manager = TaskManager(include_defaults=False, include_path=sorted(ours))
    specs = {
        task: local_spec(*task, local, manager) if local else BENCHMARKS[task[0]].task
        for task in tasks
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, dict[str, Figures]] = {}
    for model, folder in folders.items():
        with library_bars():
            lm = HFLM(folder, device=device, batch_size=batch_size)
            results[model] = {
                f"{name}-{shots}": evaluate_task(lm, manager, name, shots, spec, limit)
                for (name, shots), spec in specs.items()
            }
    return results


def model_folders(models: Sequence[str]) -> dict[str, str]:
    """The local folder of each model by its name. Raises: BadInput where two have one name."""
    from zephyr.model.load import local_folder

    named = [(name or model, model) for name, model in map(split_name, models)]
    require_own_names([name for name, _ in named], models)
    return {name: str(local_folder(model.removeprefix("hf:"))) for name, model in named}


def result_lines(results: Mapping[str, Mapping[str, Figures]]) -> Iterator[str]:
    """A line for the terminal per model and task."""
    for model, by_task in results.items():
        for name, of in by_task.items():
            low, high = of["ci95"]
            yield (
                f"{model}  {name:13} {of['metric']:11} {of['score']:.3f} [{low:.3f}, {high:.3f}]  "
                f"n={of['n']}"
            )


def evaluate_task(
    lm: "HFLM", manager: "TaskManager", name: str, shots: int, spec: str | Row, limit: int | None
) -> dict[str, object]:
    """A model's score on a task with the harness's standard error, and Wilson's interval (1927),
    wide enough for values between 0 and 1 too.

    Args: spec: a task as the harness takes it: its own, whose rows come from the hub, or what
    `local_spec` makes."""
    from lm_eval import simple_evaluate

    task, metric, of_filter, _ = BENCHMARKS[name]
    found = simple_evaluate(
        lm,
        tasks=[spec],
        num_fewshot=shots,
        limit=limit,
        log_samples=False,
        task_manager=manager,
        bootstrap_iters=1000,
    )
    row = next(
        row
        for at, row in {**found["results"], **found.get("groups", {})}.items()
        if at in (task, f"local::all_{task}")
    )
    score, stderr = row[f"{metric},{of_filter}"], row[f"{metric}_stderr,{of_filter}"]
    n = sum(count["effective"] for count in found["n-samples"].values())
    middle = score + 1.96**2 / (2 * n)
    half = 1.96 * math.sqrt(score * (1 - score) / n + (1.96 / (2 * n)) ** 2)
    return {
        "score": score,
        "n": n,
        "stderr": stderr if isinstance(stderr, float) else None,  # of one question there is none
        "ci95": [(middle + end) / (1 + 1.96**2 / n) for end in (-half, half)],
        "metric": metric,
        "shots": shots,
        "rows": "hub" if spec == task else "local",
        "dtype": str(lm.model.dtype),
        "add_bos_token": lm.tok_encode("a")[0] == lm.prefix_token_id,
    }


def local_spec(name: str, shots: int, folder: Path, manager: "TaskManager") -> Row:
    """The harness's own task on the rows of a file; of MMLU one for each subject, their accuracies
    weighted by size.

    A file has one split: the examples before a question are other questions of it.

    Raises: BadInput where there is no such file, or a row is of another kind."""
    import datasets

    task, _, _, file = BENCHMARKS[name]
    paths = [
        path
        for path in sorted(folder.glob(f"{file}*"))
        if path.name.endswith((".csv", ".jsonl", ".jsonl.gz"))
    ]
    if not paths:
        raise BadInput(
            f"--local {folder}: {file}*.jsonl, .jsonl.gz or .csv is not there; the hub's "
            "allenai/ai2_arc, Rowan/hellaswag, cais/mmlu and openai/gsm8k, and "
            "github.com/sylinrl/TruthfulQA have the rows"
        )
    of_task = read_local_rows(name, paths[0])
    wrong = [
        at for at, rows in of_task.items() if len(rows) <= shots or at not in manager.task_index
    ]
    if wrong or not of_task:
        raise BadInput(
            f"{paths[0]}: expected known tasks, each with more than {shots} rows; these are not: "
            f"{wrong}"
        )
    settings: dict[str, object] = {
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "test",
    }
    if name == "hellaswag":
        settings["process_docs"] = None
    members = [
        {
            "task": at,
            "custom_dataset": lambda rows=rows, **_: {"test": datasets.Dataset.from_list(rows)},
            **settings,
        }
        for at, rows in of_task.items()
    ]
    subjects = {
        "group": f"all_{task}",
        "task": members,
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    return {"group": "local", "task": [subjects] if name == "mmlu" else members}


def read_local_rows(name: str, path: Path) -> dict[str, list[Row]]:
    """The rows of a file by the harness's task. Raises: BadInput naming the row."""
    of_task: defaultdict[str, list[Row]] = defaultdict(list)
    try:
        for at, row in hub_rows(name, path):
            of_task[at].append(row)
    except BadInput:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        number = sum(map(len, of_task.values())) + 1
        raise BadInput(f"{path}: row {number} is not of {name}: {error!r}") from None
    return of_task


def hub_rows(name: str, path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file in the fields that the rows of the hub have, each with its task."""
    from zephyr.data.jsonl import read_rows

    rows: Iterable[Row]
    if path.suffix == ".csv":
        rows = csv.DictReader(path.read_text("utf-8-sig").splitlines())
    else:
        read: Iterator[tuple[str, Row]] = read_rows([path])
        rows = (row for _, row in read)
    as_on_hub = {
        "truthfulqa": truthfulqa_row,
        "hellaswag": hellaswag_row,
        "mmlu": mmlu_row,
        "gsm8k": lambda row: {"question": row["question"], "answer": row["answer"]},
        "arc": arc_row,
        "arc-easy": arc_row,
    }[name]
    for row in rows:
        yield f"mmlu_{row['subject']}" if name == "mmlu" else BENCHMARKS[name].task, as_on_hub(row)


def truthfulqa_row(row: Row) -> Row:
    true, false = (
        [text.strip() for text in row[f"{kind} Answers"].split(";") if text.strip()]
        for kind in ("Correct", "Incorrect")
    )
    labels = [1] * len(true) + [0] * len(false)
    return {
        "question": row["Question"],
        "mc2_targets": {"choices": true + false, "labels": labels},
    }


def hellaswag_row(row: Row) -> Row:
    """The file has the text that the harness makes of three fields of the hub's rows."""
    from lm_eval.tasks.hellaswag.utils import preprocess

    return {
        "query": preprocess(row["ctx"]),
        "choices": [preprocess(text) for text in row["endings"]],
        "label": row["label"],
    }


def mmlu_row(row: Row) -> Row:
    choices = [row[f"choice{i}"] for i in range(4)]
    return {"question": row["question"], "choices": choices, "answer": int(row["answer"])}


def arc_row(row: Row) -> Row:
    letters = list("ABCDEFGH"[: len(row["choices"])])
    return {
        "question": row["query"].removeprefix("Question: "),
        "answerKey": letters[row["gold"]],
        "choices": {"text": row["choices"], "label": letters},
    }
