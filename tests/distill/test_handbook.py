"""The replay of ultrafeedback_binarized's script, against its steps by `datasets` itself, on made
rows and on real prompts, answers and GPT-4 scores."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
from itertools import groupby
from pathlib import Path

import datasets
import pytest

from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.distill.binarize import binarize
from zephyr.distill.handbook import split_order
from zephyr.distill.pair_options import PairOptions

Row = dict[str, object]
FILES = ("mt_bench_4models_gpt4_scores", "vicuna80_4models_gpt4_scores")


def made_rows() -> list[list[Row]]:
    """Four answers to each of 140 prompts, with few scores, so that ties are frequent."""
    rng = random.Random(3)
    return [
        [
            {"idx": n, "response_source": f"m{m}", "prompt": f"Question {n}?"}
            | {"response": f"Answer {n} {m}.", "gpt4_score": [rng.randint(1, 4)] * 3}
            for m in range(4)
        ]
        for n in range(140)
    ]


def real_rows(real_data: Path) -> list[list[Row]]:
    """The answers of feedback4 to each of its prompts."""
    found = []
    for name in FILES:
        with gzip.open(real_data / "feedback4" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        lines.sort(key=lambda line: line["idx"])
        found += [list(group) for _, group in groupby(lines, key=lambda line: line["idx"])]
    return found


def ultrafeedback_rows(answered: list[list[Row]]) -> list[Row]:
    """Prompts with their answers in UltraFeedback's shape, with the mean of the three scores as the
    overall one; every seventh of another source, and some that the script leaves out."""
    rows: list[Row] = []
    for answers in answered:
        completions = [
            {
                "model": answer["response_source"],
                "response": answer["response"],
                "overall_score": sum(answer["gpt4_score"]) / 3,
                "annotations": {},
            }
            for answer in answers
        ]
        source = "truthful_qa" if len(rows) % 7 == 3 else "flan"
        completions = completions[:1] if len(rows) % 20 == 9 else completions
        prompt = answers[0]["prompt"]
        rows.append({"source": source, "instruction": prompt, "completions": completions})
    return rows


def script(rows: list[Row], questions: set[str], test_rows: int) -> dict[str, datasets.Dataset]:
    """The steps of the script in one process."""
    kept = [r for r in rows if r["source"] != "truthful_qa" and r["instruction"] not in questions]
    random.seed(42)
    made = []
    for row in kept:
        known = [(c["overall_score"], c["response"], c["model"]) for c in row["completions"]]
        if len(known) < 2:
            continue
        chosen = max(known, key=lambda one: one[0])
        rejected = random.choice(known)
        while rejected == chosen:
            rejected = random.choice(known)
        prompt = str(row["instruction"])
        made.append(
            {
                "prompt": prompt,
                "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
                "chosen": chosen[1],
                "rejected": rejected[1],
                "score_chosen": chosen[0],
                "score_rejected": rejected[0],
            }
        )
    split = datasets.Dataset.from_list(made).train_test_split(test_rows, seed=42, shuffle=True)
    halves = split["test"].train_test_split(0.5, seed=42, shuffle=True)
    test = datasets.concatenate_datasets([halves["train"], halves["test"]])
    return {"train": split["train"], "test": test}


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["made", "real"])
def test_the_script_is_replayed(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command against the script: the same rows in the same order in both splits. Fails where
    a row that is left out takes a draw, a row with two equal sides does not count for the split,
    the order of a split is another, or a prompt id is."""
    answered, questions = made_rows(), ["Why?", "Who?", "Where?"]
    if kind == "real":
        real_data = request.getfixturevalue("real_data")
        answered = real_rows(real_data)
        with (real_data / "eval" / "TruthfulQA.csv").open(encoding="utf-8") as file:
            questions = [row["Question"] for row in csv.DictReader(file)]
    rows = ultrafeedback_rows(answered)
    for position, question in zip((2, 40, 90), questions):
        rows[position]["instruction"] = question
    same = rows[55]["completions"]
    assert isinstance(same, list)
    for answer in same:
        answer["response"] = "the same"
    source, asked = tmp_path / "raw.jsonl", tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked.write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    out = tmp_path / "pairs.jsonl"
    options = ["--rule", "handbook", "--drop-source", "truthful_qa", "--test-rows", "25"]
    options += ["--drop-prompts", str(asked)]
    assert main(["binarize", str(source), *options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    wanted = script(rows, set(questions), 25)
    found = {"train": read(out), "test": read(tmp_path / "pairs.test.jsonl")}
    for split, of_script in wanted.items():
        usable = [row for row in of_script if row["chosen"] != row["rejected"]]
        assert [{k: row[k] for k in usable[0]} for row in found[split]] == usable
    pairs = sum(map(len, found.values()))
    assert pairs == sum(map(len, wanted.values())) - 1 > 100
    report = json.loads((tmp_path / "pairs.report.json").read_text())
    assert report["dropped"]["a prompt of --drop-prompts"] == 3
    assert report["dropped"]["texts equal"] == 1 and report["dropped"]["source truthful_qa"] > 10
    assert report["dropped"]["fewer than 2 scored completions"] > 3
    assert report["pairs"] == pairs and report["test"]["rows"] == 25
    assert f"{report['test']['pairs']} of these pairs, of 25 rows" in printed


@pytest.mark.parametrize("rows,test_rows", [(10, 3), (63_135, 2000), (7, 1)])
def test_the_split_is_the_one_of_datasets(rows: int, test_rows: int) -> None:
    """Also at the size of the published set. Fails where numpy's permutation is not the one that
    `datasets` takes, or halves of an odd number are rounded the other way."""
    train, test = split_order(rows, test_rows, 42)
    split = datasets.Dataset.from_dict({"n": range(rows)}).train_test_split(test_rows, seed=42)
    assert split["train"]["n"][:] == train.tolist()
    assert sorted(split["test"]["n"]) == sorted(test.tolist())
    if test_rows > 1:
        halves = split["test"].train_test_split(0.5, seed=42)
        assert [*halves["train"]["n"], *halves["test"]["n"]] == test.tolist()


def draw(_: Row) -> Row:
    return {"drawn": random.choice(range(10**9))}


def test_several_processes_draw_what_nobody_can_repeat() -> None:
    """What the docs say of the published set: `datasets.map` with num_proc forks, and Python seeds
    the generator of a forked process from the system. Fails once it does not: then the order of
    the published draws could be replayed."""
    rows = datasets.Dataset.from_dict({"n": range(4)})
    drawn = []
    for processes in (None, None, 2, 2):
        random.seed(42)
        drawn.append(rows.map(draw, num_proc=processes, load_from_cache_file=False)["drawn"][:])
    assert drawn[0] == drawn[1] and drawn[2] != drawn[3] and drawn[2] != drawn[0]


@pytest.mark.parametrize(
    "rule,options,message",
    [
        ("paper", PairOptions(test_rows=5), "the rule is paper"),
        ("handbook", PairOptions(test_rows=0), "expected an integer >= 1, got 0"),
        ("handbook", PairOptions(test_rows=5, take={"a": 1}), "no --take"),
        ("handbook", PairOptions(test_rows=5), "the rows give 1 pairs, expected more than 5"),
    ],
)
def test_a_split_that_cannot_be_is_told(
    rule: str, options: PairOptions, message: str, tmp_path: Path
) -> None:
    """Fails for a traceback, or where the option is ignored."""
    source = tmp_path / "raw.jsonl"
    completions = [
        {"model": m, "response": m, "overall_score": n, "annotations": {}}
        for n, m in enumerate("ab")
    ]
    source.write_text(json.dumps({"instruction": "Go.", "completions": completions}) + "\n")
    with pytest.raises(BadInput, match=message):
        binarize([source], tmp_path / "out.jsonl", rule=rule, options=options)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_without_prompts_is_told(tmp_path: Path) -> None:
    """Fails where a wrong file leaves nothing out, and nobody is told."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"label": "no prompt"}\n')
    with pytest.raises(BadInput, match="no prompt found"):
        binarize(
            [asked],
            tmp_path / "out.jsonl",
            rule="paper",
            options=PairOptions(drop_prompts=(str(asked),)),
        )
