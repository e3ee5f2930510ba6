"""Academic tasks through lm-evaluation-harness: a real pretrained model, real questions, local
files."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("lm_eval", reason="lm_eval, which does the scoring, is absent")

from real.stories import convert

from zephyr.cli import run
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.evaluation.academic import hub_rows, parse_tasks

SPLITS = {"test_split": "test", "fewshot_split": "test", "output_type": "multiple_choice"}
# The harness's prompts and scores written anew, on the fields that the files have
OWN = {
    "arc-2": {
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    },
    "hellaswag-0": {
        "doc_to_text": "{{ctx}}",
        "doc_to_choice": "{{endings}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    },
}
FILES = {"arc-2": "arc_challenge.jsonl.gz", "hellaswag-0": "hellaswag_val_1k.jsonl.gz"}


@pytest.fixture(scope="module")
def stories(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretrained stories260K as a Mistral folder with BOS in front of every text, in Mistral's
    way."""
    weights = real_data / "weights"
    return convert(
        weights / "stories260K.bin",
        weights / "stories260K_tok512.bin",
        tmp_path_factory.mktemp("stories") / "model",
    )


def academic(*arguments: str | Path) -> None:
    run(["eval", "academic", *map(str, arguments)])


@pytest.fixture(scope="module")
def results(
    stories: Path, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, object]]:
    """All kinds of tasks on the first questions of the files; of MMLU those of two subjects."""
    folder, out = (
        tmp_path_factory.mktemp("local"),
        tmp_path_factory.mktemp("academic") / "results.json",
    )
    for path in (real_data / "eval").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "mmlu_test_18_per_subject.jsonl.gz").unlink()
    rows = [
        row
        for _, row in read_rows([real_data / "eval" / "mmlu_test_18_per_subject.jsonl.gz"])
        if row["subject"] in ("anatomy", "virology")
    ]
    (folder / "mmlu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    academic(
        f"stories={stories}",
        "--tasks",
        "arc-2,hellaswag-0,mmlu-1,truthfulqa-0",
        "--local",
        folder,
        "--limit",
        6,
        "--out",
        out,
    )
    return json.loads(out.read_text())["stories"]


@pytest.mark.parametrize("task", OWN)
def test_numbers_are_those_of_the_harness_on_the_plain_model(
    task: str, results: dict[str, dict[str, object]], stories: Path, real_data: Path
) -> None:
    """`simple_evaluate` with its own model class and a task written here. Fails where rows are
    turned into other questions, answers or examples than the files hold, or the number is of
    another metric."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    rows = [row for _, row in read_rows([real_data / "eval" / FILES[task]])]
    own = ConfigurableTask(
        config={
            "task": "own",
            **SPLITS,
            **OWN[task],
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        }
    )
    found = simple_evaluate(
        "hf",
        {"pretrained": str(stories)},
        tasks=[own],
        num_fewshot=int(task[-1]),
        limit=6,
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )["results"]["own"]
    of = results[task]
    assert (of["score"], of["n"], of["shots"], of["metric"]) == (
        found["acc_norm,none"],
        6,
        int(task[-1]),
        "acc_norm",
    )
    assert of["add_bos_token"] is True and of["dtype"] == "torch.float32" and of["rows"] == "local"


def log_likelihood(
    model: torch.nn.Module, tokenizer: AutoTokenizer, context: str, text: str
) -> float:
    before, ids = tokenizer(context).input_ids, torch.tensor([tokenizer(context + text).input_ids])
    with torch.no_grad():
        logp = model(ids).logits[0].log_softmax(-1)
    return sum(float(logp[i - 1, ids[0, i]]) for i in range(len(before), ids.shape[1]))


def solve(score: float, n: int, outside: float, inside: float) -> float:
    """Wilson's end: the rate between `outside` and `inside` that lies 1.96 of its own standard
    errors from the score, by bisection."""
    for _ in range(60):
        rate = (outside + inside) / 2
        if abs(score - rate) > 1.96 * (rate * (1 - rate) / n) ** 0.5:
            outside = rate
        else:
            inside = rate
    return rate


def test_scores_by_hand(
    results: dict[str, dict[str, object]], stories: Path, real_data: Path
) -> None:
    """HellaSwag's choice by log-likelihood per character and TruthfulQA's share of the true
    answers, from plain logits: score, standard error and interval. Fails where BOS is missing or
    doubled, or the statistics are those of other questions."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(stories),
        AutoTokenizer.from_pretrained(stories),
    )
    hits, shares = [], []
    for _, (_, row) in zip(
        range(6), hub_rows("hellaswag", real_data / "eval" / FILES["hellaswag-0"])
    ):
        per_character = [
            log_likelihood(model, tokenizer, row["query"], f" {text}") / len(text)
            for text in row["choices"]
        ]
        hits.append(float(max(range(4), key=per_character.__getitem__) == row["label"]))
    import lm_eval.tasks
    from lm_eval.utils import apply_template

    text = (Path(lm_eval.tasks.__file__).parent / "truthfulqa" / "truthfulqa_mc1.yaml").read_text()
    prompt = yaml.safe_load(text)["doc_to_text"]
    for _, (_, row) in zip(range(6), hub_rows("truthfulqa", real_data / "eval" / "TruthfulQA.csv")):
        context, targets = apply_template(prompt, row), row["mc2_targets"]
        p = torch.tensor(
            [log_likelihood(model, tokenizer, context, f" {text}") for text in targets["choices"]],
            dtype=torch.float64,
        ).exp()
        shares.append(float(p[torch.tensor(targets["labels"]) == 1].sum() / p.sum()))
    for task, values in (("hellaswag-0", hits), ("truthfulqa-0", shares)):
        of, sd = results[task], torch.tensor(values, dtype=torch.float64).std().item()
        assert of["score"] == pytest.approx(sum(values) / 6, abs=2e-4) and of["n"] == 6
        assert of["stderr"] == pytest.approx(sd / 6**0.5, abs=2e-4)
        assert of["ci95"] == pytest.approx(
            [solve(of["score"], 6, 0.0, of["score"]), solve(of["score"], 6, 1.0, of["score"])],
            abs=1e-4,
        )
    assert 0 < sum(hits) < 6, "all of one kind: a wrong choice of the best would not be seen"


def test_mmlu_is_one_number_over_subjects(results: dict[str, dict[str, object]]) -> None:
    """Fails where one subject stands for all, or is counted twice."""
    assert results["mmlu-1"]["n"] == 12 and results["mmlu-1"]["metric"] == "acc"
    assert round(results["mmlu-1"]["score"] * 12, 6) in range(13)


def test_truthfulqa_rows_hold_all_answers(real_data: Path) -> None:
    """The hub's rows of the same questions: answers apart, without empty ones, true ones first.
    Fails where a list is cut wrongly."""
    rows = [row for _, row in hub_rows("truthfulqa", real_data / "eval" / "TruthfulQA.csv")]
    blue = next(row for row in rows if row["question"] == "Why do veins appear blue?")[
        "mc2_targets"
    ]
    assert (
        len(rows) > 780
        and sum(blue["labels"]) == 5
        and len(blue["choices"]) == 9 == len(blue["labels"])
    )
    assert blue["choices"][5] == "Veins appear blue due to the deoxygenated blood"
    assert all(
        text and text == text.strip() for row in rows for text in row["mc2_targets"]["choices"]
    )


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        (None, "", "is not there"),
        (
            "arc_challenge.jsonl",
            '{"query": "Question: x", "choices": ["a", "b"], "gold": 5}\n' * 9,
            "row 1 is not of arc",
        ),
        ("arc_challenge.jsonl", '{"query": "Question: x"}\n' * 9, "row 1 is not of arc"),
        (
            "arc_challenge.jsonl",
            '{"query": "Question: x", "choices": ["a", "b"], "gold": 1}\n',
            "more than 2 rows",
        ),
        ("arc_challenge.jsonl", "{\n", "arc_challenge.jsonl:1"),
    ],
)
def test_local_files_that_can_not_be_used(
    file: str | None, content: str, wanted: str, tiny: Path, tmp_path: Path
) -> None:
    """Each is one line that says what is wrong where. Fails where it is a traceback of the
    harness."""
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(BadInput, match=wanted):
        academic(tiny, "--tasks", "arc-2", "--local", tmp_path)


@pytest.mark.parametrize("text", ["arc", "arc-", "arc--1", "art-25", "truthfulqa-5", ""])
def test_tasks_that_are_none(text: str) -> None:
    """Fails where a task that does not exist, or shots that would be ignored, are taken."""
    with pytest.raises(BadInput, match="expected NAME-SHOTS"):
        parse_tasks(text)
    assert parse_tasks("arc-25, arc-easy-0") == [("arc", 25), ("arc-easy", 0)]


def test_two_models_of_one_name(tiny: Path) -> None:
    """Fails where the results of one take the place of the other's."""
    with pytest.raises(BadInput, match="two models have one name"):
        academic(f"a={tiny}", f"a={tiny}", "--tasks", "arc-0")
