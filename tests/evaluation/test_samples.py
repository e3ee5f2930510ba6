"""Prompts that are answered while a policy trains: real runs of two ranks under ZeRO-3 with every
parameter spread over them."""

import json
import shutil
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import Launch
from runs import ledger, records, rows, write_config, write_lines
from safetensors.torch import load_file, save_file

from zephyr.config import BadInput, Wandb
from zephyr.data.tokenizer import load_tokenizer
from zephyr.evaluation.compare import summarise
from zephyr.evaluation.samples import win_rate_over_start, write_samples
from zephyr.evaluation.win_rate import judge_pairs, judge_panel
from zephyr.model.generate import generate, prompt_ids
from zephyr.model.load import load_policy
from zephyr.teacher import Budget, Ledger, Teacher, ask
from zephyr.teacher.prompts import turns_of
from zephyr.teacher.spec import open_teacher
from zephyr.training.metrics import Recorder
from zephyr.world.answerers import answer
from zephyr.world.facts import build_world
from zephyr.world.prompts import prompt_from_row
from zephyr.world.recipe import world_rows

WORLD = build_world(0)
PROMPTS = [row for row in world_rows(WORLD, 0)["prompts/test"] if row["form"] == "reason"][
    :3
]  # on two ranks: one share is padded
SPEED = ("tokens_per_second", "step_seconds", "peak_memory_bytes", "mfu")


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, but it says EOS where it would have said a token that comes early in one
    answer and late, or never, in another: ranks that do not wait for each other would hang."""
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("model") / "tiny"))
    lm, tokenizer, said = load_policy(tiny).lm, load_tokenizer(str(tiny), "zephyr"), []
    for row in PROMPTS:
        ids = torch.tensor([prompt_ids(lm, tokenizer, turns_of(row["prompt"]), 12)])
        said.append(
            lm.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)[
                0, ids.shape[1] :
            ].tolist()
        )
    ends = {
        token: [row.index(token) if token in row else 12 for row in said] for token in chain(*said)
    }
    token, (first, second, third) = max(
        ends.items(),
        key=lambda item: abs(max(item[1][0], item[1][2]) - max(item[1][0], item[1][1])),
    )
    assert max(first, third) != max(second, first), (
        "both ranks would be done at once: nobody had to wait"
    )
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][tokenizer.eos_token_id] = 1.01 * tensors["lm_head.weight"][token]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def plain(model: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of two ranks, a checkpoint every two, an evaluation every three; no prompts."""
    folder = tmp_path_factory.mktemp("plain")
    data = write_lines(folder / "pairs.jsonl", rows(20))
    launch(
        "train_dpo.py",
        write_config(
            folder, model, data, data__eval=[str(data)], run__save_every=2, run__eval_every=3
        ),
        ranks=2,
    )
    return folder


@pytest.fixture(scope="module")
def sampled(plain: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with prompts and a judge."""
    folder = tmp_path_factory.mktemp("sampled")
    write_lines(folder / "prompts.jsonl", PROMPTS)
    (folder / "stderr").write_text(
        launch(
            "train_dpo.py", plain / "config.yaml", *options(folder, folder / "run"), ranks=2
        ).stderr
    )
    return folder


def options(folder: Path, run: Path) -> list[str]:
    return [
        f"run.dir={run}",
        f"samples.prompts=[{folder / 'prompts.jsonl'}]",
        "samples.max_new_tokens=12",
        "samples.judge=world:judge",
    ]


def samples(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def without(record: dict[str, float], *names: str) -> dict[str, float]:
    return {key: value for key, value in record.items() if not key.startswith((*SPEED, *names))}


def test_training_is_what_it_would_be_without(plain: Path, sampled: Path) -> None:
    """Every record, visit of a pair and weight to the bit. Fails where answering draws random
    numbers, leaves the policy in another mode, or DeepSpeed with parameters it did not release."""
    run, other = sampled / "run", plain / "run"
    assert [without(r) for r in records(run)] == [without(r) for r in records(other)] != []
    assert (
        [without(r, "win_rate") for r in records(run, "eval")]
        == [without(r) for r in records(other, "eval")]
        != []
    )
    assert ledger(run) == ledger(other)
    weights, of_other = (
        load_file(folder / "model" / "model.safetensors") for folder in (run, other)
    )
    assert all(torch.equal(weights[name], of_other[name]) for name in of_other)


def test_answers_are_those_of_the_weights_of_the_step(model: Path, sampled: Path) -> None:
    """At step 0 those of the starting model, at the last those of the export, in the prompts'
    order, and shown. Fails where ranks answer from parts of weights, a share's padding is kept, or
    the chat template is another than training's."""
    found, turns = (
        samples(sampled / "run"),
        [[{"role": "user", "content": row["prompt"]}] for row in PROMPTS],
    )
    assert [row["step"] for row in found] == [0] * 3 + [3] * 3 + [6] * 3
    assert [row["prompt_id"] for row in found] == [row["prompt_id"] for row in PROMPTS] * 3
    for folder, of_step in ((model, found[:3]), (sampled / "run" / "model", found[6:])):
        state = torch.get_rng_state()
        texts = generate(
            load_policy(folder).lm, load_tokenizer(str(folder), "zephyr"), turns, max_new_tokens=12
        )
        assert texts == [row["text"] for row in of_step] and torch.equal(
            state, torch.get_rng_state()
        )
    assert found[0]["text"] != found[6]["text"], (
        "training changed no answer: the comparison above would see no mistake"
    )
    assert (
        f"step 6 sample: {PROMPTS[0]['prompt']!r} -> {found[6]['text']!r:.300}"
        in (sampled / "stderr").read_text()
    )


def test_the_win_rate_is_that_of_the_answers_over_the_first(sampled: Path, tmp_path: Path) -> None:
    """The record's number with its n and interval, from the file's texts by another call. Fails
    where sides or steps are mixed up."""
    found, record = samples(sampled / "run"), records(sampled / "run", "eval")[-1]
    with Ledger(tmp_path / "ledger.jsonl") as replies:
        panel = judge_panel(
            open_teacher("world:judge"),
            lambda teacher, requests: ask(teacher, requests, replies, Budget()),
        )
        wanted = summarise(
            judge_pairs(
                panel,
                PROMPTS,
                [row["text"] for row in found[6:]],
                [row["text"] for row in found[:3]],
            )[0],
            [None] * 3,
        )
    assert (
        record["win_rate"],
        record["win_rate/n"],
        [record["win_rate/low"], record["win_rate/high"]],
    ) == (wanted["win_rate"], 3, wanted["ci95"])


def test_a_resumed_run_compares_with_the_answers_of_its_first_start(
    sampled: Path, plain: Path, launch: Launch, tmp_path: Path
) -> None:
    """The answers of step 0 are made perfect in the file: after the resume from step 4 the policy
    loses against every one. Fails where a resumed run answers step 0 anew, or keeps what is of
    steps that it runs again."""
    shutil.copytree(sampled / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-6")
    before = samples(sampled / "run")
    perfect = [
        row | {"text": answer("expert", prompt_from_row(prompt), WORLD, 0)}
        for row, prompt in zip(before, PROMPTS)
    ]
    write_lines(tmp_path / "run" / "samples.jsonl", [*perfect, *before[3:]])
    launch("train_dpo.py", plain / "config.yaml", *options(sampled, tmp_path / "run"), ranks=2)
    assert samples(tmp_path / "run") == [*perfect, *before[3:]]
    assert records(tmp_path / "run", "eval")[-1]["win_rate"] == 0.0


def test_a_judge_that_is_not_there_ends_no_training(tmp_path: Path) -> None:
    """It is said, and the record has no win rate; neither has one without answers of step 0. Fails
    where either raises after hours of work."""
    said: list[str] = []

    def refuse(*_: object) -> None:
        raise BadInput("no route to the judge")

    engine = SimpleNamespace(warn=said.append)
    prompts = [{"prompt_id": "a", "prompt": "Hi"}]
    assert (
        win_rate_over_start(
            engine, Teacher("judge", refuse), tmp_path / "samples.jsonl", prompts, ["x"], ["y"]
        )
        == {}
    )
    assert (
        win_rate_over_start(
            engine, open_teacher("world:judge"), tmp_path / "samples.jsonl", prompts, ["x"], [None]
        )
        == {}
    )
    assert "no route to the judge" in said[0] and "no prompt has an answer of step 0" in said[1]


def test_rows_of_steps_that_are_run_again_go(tmp_path: Path) -> None:
    """Fails where a step stands twice in the file, or a new start keeps the answers of the old
    one."""

    def row(step: int, text: str) -> dict[str, object]:
        return {"step": step, "prompt_id": "a", "prompt": "Hi", "text": text}

    path = tmp_path / "samples.jsonl"
    for step, text in ((0, "old"), (3, "b"), (6, "c"), (3, "d")):
        start = write_samples(path, [row(step, text)], table=False)
    assert samples(tmp_path) == [row(0, "old"), row(3, "d")] and start == {"a": "old"}
    assert write_samples(path, [row(0, "new")], table=False) == {"a": "new"} and samples(
        tmp_path
    ) == [row(0, "new")]


def test_answers_are_a_table_of_the_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is in the files of the run that the recorder opened. Fails where it goes to no run,
    or to one of its own."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recorder = Recorder(tmp_path, Wandb(), "model: m", first_step=0, steps=1, active=True)
    write_samples(
        tmp_path / "samples.jsonl",
        [{"step": 0, "prompt_id": "a", "prompt": "Hi", "text": "Ho"}],
        table=True,
    )
    recorder.close()
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/eval/samples*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["step", "prompt_id", "prompt", "text"],
        "data": [[0, "a", "Hi", "Ho"]],
    }
