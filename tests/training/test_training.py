"""Runs of the real scripts on tiny models: records, ledger, resume, reference store, export,
refusals."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from processes import ROOT, Launch
from runs import ledger, records, rows, write_config, write_lines
from safetensors.numpy import load_file, save_file

import train_dpo
from zephyr.chat import encode_prompt
from zephyr.config import DPOConfig
from zephyr.data.encode import load_pairs
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.load import load_policy
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import collate_pairs
from zephyr.training.engine import Engine
from zephyr.training.files import read_forced_resumes
from zephyr.training.launch import launch as start
from zephyr.training.launchers import RENDEZVOUS
from zephyr.training.metrics import truncate_records
from zephyr.training.schedule import learning_rate


def test_first_record_is_ln_2_and_names_are_the_documented_ones(finished: Path) -> None:
    """Fails where policy and reference differ before training, or a metric is missing or
    misnamed."""
    train = records(finished / "run")
    assert abs(train[0]["loss"] - math.log(2)) < 1e-6 and train[0]["rewards/accuracies"] == 0
    assert abs(train[0]["rewards/chosen"]) < 1e-6 and abs(train[0]["rewards/rejected"]) < 1e-6
    assert set(train[0]) == {
        "step",
        "split",
        "epoch",
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "grad_norm",
        "learning_rate",
        "pairs",
        "tokens",
        "tokens_per_second",
        "packing_efficiency",
        "step_seconds",
        "peak_memory_bytes",
        "update_ratio",
    }
    assert [r["step"] for r in train] == list(range(6)) and [r["pairs"] for r in train] == [
        8,
        8,
        4,
    ] * 2
    assert [r["epoch"] for r in train] == [0, 0.4, 0.8, 1, 1.4, 1.8]
    assert train[-1]["loss"] < 0.6 and train[-1]["rewards/accuracies"] > 0.5
    assert [(r["step"], r["pairs"], r["epoch"]) for r in records(finished / "run", "eval")] == [
        (0, 20, 0.0),
        (3, 20, 1.0),
        (6, 20, 2.0),
    ]


def test_evaluation_is_of_the_trained_model(finished: Path, tiny: Path) -> None:
    """The last eval record against the exported model, pair by pair in this process. Fails where
    evaluation sums twice, leaves pairs out, or is of other weights."""
    pairs, _ = load_pairs([str(finished / "pairs.jsonl")], load_tokenizer(tiny))
    batch = collate_pairs(pairs, range(20), prefix_sharing=False)
    with torch.no_grad():
        (chosen_P, rejected_P), (ref_chosen_P, ref_rejected_P) = (
            response_logprobs(load_policy(folder), batch)
            for folder in (finished / "run" / "model", tiny)
        )
    margin_P = 0.1 * ((chosen_P - ref_chosen_P) - (rejected_P - ref_rejected_P))
    record = records(finished / "run", "eval")[-1]
    assert record["loss"] == pytest.approx(
        float(-torch.nn.functional.logsigmoid(margin_P).mean()), rel=1e-4
    )
    assert record["rewards/margins"] == pytest.approx(float(margin_P.mean()), rel=1e-4)
    assert record["rewards/accuracies"] == float((margin_P > 0).float().mean())
    assert (
        record["logps/chosen"] == pytest.approx(float(chosen_P.mean()), rel=1e-5)
        and record["pairs"] == 20
    )


def test_ledger_has_one_row_a_visit_and_sums_to_the_metrics(finished: Path) -> None:
    """Fails where a pair is lost or doubled, filed under another's id, or a mean is not over all
    pairs of all ranks."""
    visits = ledger(finished / "run")
    assert len(visits) == 40 and len({(v["id"], v["step"]) for v in visits}) == 40
    for record in records(finished / "run"):
        of_step = [v for v in visits if v["step"] == record["step"]]
        for name in (
            "loss",
            "rewards/chosen",
            "rewards/rejected",
            "logps/chosen",
            "logps/rejected",
        ):
            assert np.mean([v[name] for v in of_step]) == pytest.approx(
                record[name], rel=1e-6, abs=1e-9
            )
        assert (
            sum(v["prompt_tokens"] + v["chosen_tokens"] + v["rejected_tokens"] for v in of_step)
            == record["tokens"]
        )
    rejected = {v["id"]: v["rejected_tokens"] for v in visits}
    assert all(rejected[r["id"]] >= 10 for r in rows(20))  # ten words at least, as the rows say


def test_the_ledger_of_an_evaluation_has_every_pair_in_its_place(finished: Path) -> None:
    """Of each evaluation, two ranks' pairs once, with the place of their rows, and the means of its
    record. Fails where pairs of one rank are missing, a place is of another pair, or the values are
    of another evaluation."""
    for record in records(finished / "run", "eval"):
        path = finished / "run" / "eval_pairs" / f"step-{record['step']}.parquet"
        pairs = sorted(pq.read_table(path).to_pylist(), key=lambda pair: pair["row"])
        assert [(p["row"], p["id"]) for p in pairs] == [(n, f"p{n}") for n in range(20)]
        assert {(p["step"], p["epoch"]) for p in pairs} == {(record["step"], record["epoch"])}
        for name in ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen"):
            mean = np.mean([pair[name] for pair in pairs])
            assert mean == pytest.approx(record[name], rel=1e-6, abs=1e-9)


def test_run_folder_is_as_documented(finished: Path) -> None:
    """Fails where a part of the run folder is missing, or more checkpoints stay than run.keep."""
    run = finished / "run"
    assert {p.name for p in run.iterdir()} == {
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "pairs",
        "eval_pairs",
        "checkpoints",
        "model",
        "data.json",
        "lock",
        "preflight.json",
        "report.html",
        "chat_template.jinja",
        "identity.json",
    }
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"latest", "step-4", "step-6"}
    assert json.loads((run / "status.json").read_text()) == {"code": 0, "message": "finished"}
    assert json.loads((run / "data.json").read_text())["train"]["rows_read"] == 20


def test_export_loads_and_generates_like_the_policy(finished: Path, tiny: Path) -> None:
    """Fails where the export holds the starting weights, lacks a tensor, names our attention, or
    lost the template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    folder = finished / "run" / "model"
    trained, start = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(tiny),
    )
    assert trained.config._attn_implementation == "sdpa" and trained.config.use_cache
    changed = [
        n
        for (n, a), b in zip(trained.named_parameters(), start.parameters())
        if not torch.equal(a, b)
    ]
    assert len(changed) == len(list(start.parameters()))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s><|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n"
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(tokenizer, turns)  # what a pipeline feeds is what was trained on
    text = pipeline("text-generation", model=trained, tokenizer=tokenizer)(
        turns, max_new_tokens=5, do_sample=False
    )
    assert text[0]["generated_text"][-1]["role"] == "assistant"
    assert "arXiv:2310.16944" in (folder / "README.md").read_text()


def test_resume_repeats_the_run_to_the_bit(finished: Path, launch: Launch, tmp_path: Path) -> None:
    """A run cut back to its checkpoint at step 4, with records and a ledger part beyond it, and
    with an empty reference store, ends as the whole run did, without a step run again: the first
    records keep their very times.

    Fails where moments, the data order or the schedule restart, a line is doubled, or the reference
    is taken from the restored weights instead of the starting ones."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-6")
    shutil.rmtree(run / "model")
    (run / "checkpoints" / "latest").write_text("step-4")
    before = (run / "metrics.jsonl").read_text().splitlines()
    result = launch(
        "train_dpo.py",
        finished / "config.yaml",
        f"run.dir={run}",
        f"reference.dir={tmp_path / 'empty'}",
        ranks=2,
    )
    assert "resumed from" in result.stderr and "forward pass over 20 pairs" in result.stderr
    assert (run / "metrics.jsonl").read_text().splitlines()[:6] == before[:6]
    assert '"step": 3, "split": "eval"' in before[4]
    same = [
        k
        for k in records(run)[0]
        if k not in ("tokens_per_second", "step_seconds", "peak_memory_bytes")
    ]
    for split in ("train", "eval"):
        again, whole = records(run, split), records(finished / "run", split)
        assert [[r[k] for k in same if k in r] for r in again] == [
            [r[k] for k in same if k in r] for r in whole
        ]
    assert ledger(run) == ledger(finished / "run")
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (run, finished / "run"))
    assert all(np.array_equal(a[name], b[name]) for name in b)


def in_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str]:
    """Exit code and standard error of train_dpo.py on one rank in this process, which DeepSpeed
    can't do with a model twice."""
    monkeypatch.setattr(
        Engine,
        "initialize",
        lambda *_, **__: pytest.fail("a model was loaded before the input was refused"),
    )
    monkeypatch.chdir(ROOT)
    parts = (train_dpo.check, train_dpo.train, train_dpo.predict)
    try:
        code = start(DPOConfig, *parts, "usage", list(arguments))
    finally:  # where `initialize` failed, the engine is not closed: later processes would meet it
        for name in RENDEZVOUS:
            os.environ.pop(name, None)
    return code, capsys.readouterr().err


REFUSED = {
    ("run.resume=never", "beta=0.7"): "holds a run already",
    ("run.seed=7", "beta=0.2"): "is of another run: beta (0.1 then, 0.2 now); plan (",
    ("loss=hinge",): "loss (sigmoid then, hinge now)",
    ("hardware.dtype=bfloat16",): "hardware.dtype (float32 then, bfloat16 now)",
    ("data.limit=19",): "data (",
    ("model={other}", "tokenizer={tiny}"): "model (",
    ("loss=nonsense",): "loss: expected one of",
    ("data.train=[/no/such/gone.jsonl]",): "gone.jsonl",
    ("hardware.tokens_per_micro_batch=20",): "the longest example",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=str)
def test_a_refused_start_leaves_the_run_as_it_was(
    overrides: tuple[str, ...],
    finished: Path,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the folder of a finished run: one line, code 2, before a model is loaded or a reference
    paid for, and not a file of it changed. Fails where another seed or beta would be trained over,
    or written into a record that they are not of."""
    run, other = (
        shutil.copytree(finished / "run", tmp_path / "run"),
        shutil.copytree(tiny, tmp_path / "other"),
    )
    save_file(
        {name: value * 1.01 for name, value in load_file(tiny / "model.safetensors").items()},
        other / "model.safetensors",
    )
    before = contents(run)
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    arguments = [override.format(other=other, tiny=tiny) for override in overrides]
    code, said = in_process(
        capsys, monkeypatch, str(finished / "config.yaml"), f"run.dir={run}", *arguments
    )
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and REFUSED[overrides] in error
    assert contents(run) == before and len(before) > 15


def contents(run: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file of a run folder but its lock, with its time."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_a_finished_run_started_again_changes_nothing(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its steps, export and end are there: no model is loaded, nothing written, code 0, though what
    decides no trajectory has changed. Fails where it trains, exports or writes again, and where a
    run without its export is taken for finished."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    before, config = contents(run), (str(finished / "config.yaml"), f"run.dir={run}")
    code, said = in_process(
        capsys, monkeypatch, *config, f"reference.dir={tmp_path / 'reference'}", "run.keep=1"
    )
    assert code == 0 and "holds this run, finished: nothing is left to do" in said
    assert contents(run) == before and not (tmp_path / "reference").exists()
    shutil.rmtree(run / "model")
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        in_process(capsys, monkeypatch, *config)


def no_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def damaged_checkpoints(run: Path, content: str = "") -> None:
    for path in run.glob("checkpoints/step-*/state.json"):
        path.write_text(content)


def only_the_export(run: Path) -> None:
    for path in run.iterdir():
        if path.name not in ("model", "config.yaml", "status.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def no_identity(run: Path) -> None:
    no_checkpoints(run)
    (run / "identity.json").unlink()


def deep_identity(run: Path) -> None:
    damaged_checkpoints(run, "[" * 100_000)
    (run / "identity.json").write_text('{"identity": ' + "9" * 5000 + "}")


LOST = {
    no_checkpoints: "beta (0.1 then, 0.5 now)",
    damaged_checkpoints: "beta (0.1 then, 0.5 now)",
    no_identity: "holds metrics.jsonl of a run",
    only_the_export: "holds model/ of a run",
    deep_identity: "neither a checkpoint nor identity.json can be read",
}


@pytest.mark.parametrize("lose", LOST, ids=lambda lose: lose.__name__)
def test_a_run_without_checkpoints_is_still_a_run(
    lose: Callable[[Path], None],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checkpoints deleted to save disk, damaged, or all gone but the export: another beta is one
    line, and no byte is changed. Fails where, with nothing to compare, a finished run is trained
    over."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    lose(run)
    before = contents(run)
    code, said = in_process(
        capsys, monkeypatch, str(finished / "config.yaml"), f"run.dir={run}", "beta=0.5"
    )
    assert (
        code == 2
        and LOST[lose] in said
        and "another run.dir" in said
        and "run.resume=force" in said
        and contents(run) == before
    )


@pytest.mark.parametrize("lose", [no_checkpoints, damaged_checkpoints])
def test_a_finished_run_needs_no_checkpoint(
    lose: Callable[[Path], None],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same run, started again without checkpoints: nothing is left to do. Fails where it is
    trained a second time; with a status.json that can't be read it is not known to be finished,
    which is no traceback."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    lose(run)
    before, config = contents(run), (str(finished / "config.yaml"), f"run.dir={run}")
    code, said = in_process(capsys, monkeypatch, *config)
    assert (
        code == 0
        and "holds this run, finished: nothing is left to do" in said
        and contents(run) == before
    )
    for content in ("[" * 100_000, '{"code": ' + "9" * 5000 + "}", "[]"):
        (run / "status.json").write_text(content)
        with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
            in_process(capsys, monkeypatch, *config)


@pytest.mark.parametrize("overrides", [("beta=0.5",), ("optim.epochs=1",)], ids=str)
def test_force_trains_or_is_refused(
    overrides: tuple[str, ...],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """run.resume=force in the folder of a finished run with settings under which no step is left:
    one line, no byte changed. Fails where config, card and report then tell of a beta that the
    weights never saw."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    before = contents(run)
    code, said = in_process(
        capsys,
        monkeypatch,
        str(finished / "config.yaml"),
        f"run.dir={run}",
        "run.resume=force",
        *overrides,
    )
    assert (
        code == 2
        and "none would be trained" in said
        and "another run.dir" in said
        and contents(run) == before
    )


def test_a_forced_resume_is_in_the_card(finished: Path, launch: Launch, tmp_path: Path) -> None:
    """More epochs and another beta, forced: steps are trained, and the card says how many were
    trained under which beta before. Fails where the card tells of one beta for weights of two, or
    forgets it at the next start."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    for _ in range(2):
        launch(
            "train_dpo.py",
            finished / "config.yaml",
            f"run.dir={run}",
            "beta=0.5",
            "optim.epochs=3",
            "run.resume=force",
            "run.preflight=false",
        )
        card = (run / "model" / "README.md").read_text()
        assert (
            "The first 6 steps were trained under other settings" in card
            and "beta `0.1`" in card
            and "beta: 0.5" in card
        )
        assert [of["step"] for of in read_forced_resumes(run)] == [6] and read_forced_resumes(run)[
            0
        ]["was"]["beta"] == 0.1
        shutil.rmtree(run / "model")


def test_another_template_is_told(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails where a changed chat template is told as other data alone, and the user looks for a
    changed file."""
    run, template = shutil.copytree(finished / "run", tmp_path / "run"), tmp_path / "other.jinja"
    template.write_text((run / "chat_template.jinja").read_text().replace("<|user|>", "<|asker|>"))
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    for changed, told in ((f"chat_template={template}", True), ("data.limit=19", False)):
        code, said = in_process(
            capsys, monkeypatch, str(finished / "config.yaml"), f"run.dir={run}", changed
        )
        assert code == 2 and "data (" in said and ("the chat template is another" in said) == told


def test_input_is_not_written_over(
    finished: Path,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model, its tokenizer, rows or the reference store where the run writes, by a link or a
    way round too: refused, nothing made. Fails where the export takes the place of the model that
    it was trained from."""
    run, data = tmp_path / "self", tmp_path / "self" / "samples.jsonl"
    shutil.copytree(tiny, run / "model")
    shutil.copy(finished / "pairs.jsonl", data)
    (tmp_path / "link").symlink_to(run / "model")
    (tmp_path / "way").symlink_to(run)
    before = contents(run)
    for overrides in (
        [f"model={run}/model"],
        [f"model={tmp_path}/link"],
        [f"model={tmp_path}/other/../self/model"],
        [f"tokenizer={run}/model"],
        [f"model={run}/model", f"run.dir={tmp_path}/way"],
        [f"model={run}/model", f"run.dir={run}/model"],
        [f"data.train={data}"],
        [f"data.eval={tmp_path}:train"],
        [f"reference.dir={run}/checkpoints/r"],
    ):
        code, said = in_process(
            capsys, monkeypatch, str(finished / "config.yaml"), f"run.dir={run}", *overrides
        )
        key = overrides[0].split("=")[0]
        assert code == 2 and f"error: {key}: " in said and "name another run.dir" in said, (
            overrides,
            said,
        )
        assert (
            contents(run) == before
            and not (run / "lock").exists()
            and not (run / "model" / "lock").exists()
        )


def test_nan_weights_are_the_models(
    finished: Path, tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """A NaN in one tensor, with preflight and without: the tensor is named, the store is not blamed
    and keeps nothing. Fails where the user is told to delete the reference store, which can't
    help."""
    model, store = shutil.copytree(tiny, tmp_path / "nan"), tmp_path / "store"
    weights = load_file(tiny / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name].flat[3] = np.nan
    save_file(weights, model / "model.safetensors")
    for preflight, why in (
        ("true", "1 of its parameters hold values that are not finite: "),
        ("false", "log-probs of 20 pairs are not finite"),
    ):
        said = launch(
            "train_dpo.py",
            finished / "config.yaml",
            f"model={model}",
            f"run.dir={tmp_path / 'run'}",
            f"reference.dir={store}",
            f"run.preflight={preflight}",
            check=False,
        )
        error = said.stderr.partition("error: ")[2]  # behind what is left of a bar
        assert (
            said.returncode == 2
            and why in error
            and name in error
            and "store" not in error
            and not list(store.glob("*/part-*"))
        )


def test_a_sample_prompt_too_long_is_told_before_a_model_is_loaded(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails where it is told after the reference pass, hours later, or without the prompt's id."""
    prompts = write_lines(
        tmp_path / "prompts.jsonl", [{"prompt_id": "long", "prompt": "why? " * 20}]
    )
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    code, said = in_process(
        capsys,
        monkeypatch,
        str(finished / "config.yaml"),
        f"run.dir={tmp_path / 'run'}",
        f"samples.prompts={prompts}",
        "samples.max_new_tokens=100000",
    )
    assert code == 2 and "error: samples.prompts: long: the prompt has" in said


@pytest.mark.parametrize(
    "state,complaint",
    [
        ({"format": None}, "state.json is of format None, wanted 1"),
        ({"format": 99}, "state.json is of format 99, wanted 1"),
        ([1], "state.json is of format None, wanted 1"),
    ],
)
def test_a_checkpoint_of_another_format_is_one_line(
    state: object,
    complaint: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails where an older or foreign checkpoint ends in a traceback, or is taken for one that is
    damaged and passed over."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    path = run / "checkpoints" / "step-6" / "state.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), **state} if isinstance(state, dict) else state)
    )
    before = contents(run)
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    code, said = in_process(capsys, monkeypatch, str(finished / "config.yaml"), f"run.dir={run}")
    assert (
        code == 2
        and complaint in said
        and "name another run.dir" in said
        and contents(run) == before
    )


def test_one_process_a_run_folder(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second run in the same folder is told who holds it. Fails where two would write one
    folder."""
    import fcntl

    run = shutil.copytree(finished / "run", tmp_path / "run")
    with (run / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("pid 123 on host far-away\n")
        lock.flush()
        code, said = in_process(
            capsys, monkeypatch, str(finished / "config.yaml"), f"run.dir={run}"
        )
    assert code == 2 and "in use by pid 123 on host far-away" in said
    assert json.loads((run / "status.json").read_text())["code"] == 0


def test_reference_is_paid_for_once(finished: Path, launch: Launch, tmp_path: Path) -> None:
    """A sweep over beta, on another number of ranks, finds every pair in the store. Fails where the
    address depends on beta, packing or ranks, and the whole pass is done again."""
    result = launch(
        "train_dpo.py", finished / "config.yaml", "beta=0.5", f"run.dir={tmp_path / 'run'}"
    )
    assert "forward pass" not in result.stderr and "20 of 20 pairs are in" in result.stderr
    first = records(tmp_path / "run")[0]
    assert abs(first["loss"] - math.log(2)) < 1e-6 and first["rewards/accuracies"] == 0


def test_a_reference_store_of_other_values_is_refused(
    finished: Path, launch: Launch, tmp_path: Path
) -> None:
    """Fails where a store that is not of these weights would be trained against."""
    import hashlib

    store = shutil.copytree(finished / "reference", tmp_path / "other")
    (part,) = store.glob("*/part-*.safetensors")
    tensors = load_file(part)
    save_file({**tensors, "logp": tensors["logp"] + 1}, part)
    part.rename(part.with_name(f"part-{hashlib.sha256(part.read_bytes()).hexdigest()}.safetensors"))
    result = launch(
        "train_dpo.py",
        finished / "config.yaml",
        f"reference.dir={store}",
        f"run.dir={tmp_path / 'run'}",
        check=False,
    )
    assert (
        result.returncode == 2
        and "the store is not of this model" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.long
def test_bfloat16_starts_at_ln_2(tiny: Path, launch: Launch, tmp_path: Path) -> None:
    """In bfloat16 on two ranks, one micro-batch or several, with more ranks than pairs in the last
    step, and on a machine with no compiler to be found. Fails where reference and policy take
    different paths, an empty micro-batch hangs or counts, or DeepSpeed builds an op."""
    data = write_lines(tmp_path / "pairs.jsonl", rows(9))
    config = write_config(
        tmp_path, tiny, data, hardware__dtype="bfloat16", hardware__tokens_per_micro_batch=150
    )
    launch("train_dpo.py", config, ranks=2, torchrun=True, PATH="/nonexistent")
    train = records(tmp_path / "run")
    assert abs(train[0]["loss"] - math.log(2)) < 1e-3 and [r["pairs"] for r in train] == [
        8,
        1,
        8,
        1,
    ]
    assert all(math.isfinite(r["loss"]) and r["grad_norm"] > 0 for r in train)


def test_untrained_epochs_stay_at_ln_2(tiny: Path, launch: Launch, tmp_path: Path) -> None:
    """A rate at which nothing moves, two epochs of 7 pairs in steps of 3 on two ranks, which divide
    neither: every step of both epochs has loss ln 2 and rewards 0, in other company and another
    order each. Fails where a log-prob depends on a pair's neighbours, a pair's reference is
    another's or of another packing, or a rank with nothing to do brings something."""
    data = write_lines(tmp_path / "pairs.jsonl", rows(7))
    config = write_config(
        tmp_path,
        tiny,
        data,
        optim__lr_peak=1e-12,
        optim__pairs_per_step=3,
        hardware__tokens_per_micro_batch=200,
    )
    launch("train_dpo.py", config, ranks=2)
    train, visits = records(tmp_path / "run"), ledger(tmp_path / "run")
    assert [r["pairs"] for r in train] == [3, 3, 1] * 2 and len(visits) == 14
    assert all(
        abs(v["loss"] - math.log(2)) < 1e-6
        and abs(v["rewards/chosen"]) + abs(v["rewards/rejected"]) < 1e-5
        for v in visits
    )
    steps = [frozenset(v["id"] for v in visits if v["step"] == step) for step in range(6)]
    assert steps[:3] != steps[3:] and all(
        frozenset().union(*half) == {f"p{i}" for i in range(7)} for half in (steps[:3], steps[3:])
    )


def test_non_finite_stops_before_the_update(tiny: Path, launch: Launch, tmp_path: Path) -> None:
    """A learning rate that blows the model up: the run stops, names the pairs, a last record flags
    it, and no checkpoint follows. Fails where a NaN would be trained on or saved."""
    data = write_lines(tmp_path / "pairs.jsonl", rows(16))
    config = write_config(
        tmp_path,
        tiny,
        data,
        optim__lr_peak=1e30,
        optim__warmup_fraction=0.0,
        optim__epochs=5,
        run__save_every=1,
    )
    result = launch("train_dpo.py", config, ranks=2, check=False)
    assert (
        result.returncode != 0
        and "no parameter was changed" in result.stderr
        and "p1" in result.stderr
    )
    train = records(tmp_path / "run")
    assert train.pop() == {
        "step": len(train),
        "split": "train",
        "loss": None,
        "alarms/non_finite": 1,
    }
    assert 1 <= len(train) < 10 and all(math.isfinite(r["loss"]) for r in train)
    latest = int((tmp_path / "run" / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert latest == len(train) and not (tmp_path / "run" / "model").exists()
    assert (
        "no parameter was changed"
        in json.loads((tmp_path / "run" / "status.json").read_text())["message"]
    )


BAD_INPUT = {
    "optim.lr_peak=fast": "a finite number",
    "beta=-1": "beta: expected a number > 0",
    "optim.lr=1": "nearest valid key is optim.lr_peak",
    "model=/no/such/folder": "no such folder",
    "hardware.tokens_per_micro_batch=20": "the longest example",
    "hardware.attention=flash_attn": "sdpa",
    "loss=nonsense": "loss: expected one of",
    "loss=exo_pair": "label_smoothing",
    "data.train=[/no/such/gone.jsonl]": "gone.jsonl",
    "data.train=[{same}]": "same.jsonl",
    "hardware.deepspeed={clip}": "optim.grad_clip decides that",
}


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "clip.json").write_text(
        '{"zero_optimization": {"stage": 3}, "gradient_clipping": 1.0}'
    )
    same = write_lines(tmp_path / "same.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    return {"same": same, "clip": tmp_path / "clip.json"}


@pytest.mark.parametrize("override", BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(
    override: str,
    tiny: Path,
    tmp_path: Path,
    bad_files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process, with no way to load a model. Fails for an exception, another code, or a
    model that was loaded first."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        Engine,
        "initialize",
        lambda *_, **__: pytest.fail("a model was loaded before the input was refused"),
    )
    config = write_config(tmp_path, tiny, write_lines(tmp_path / "pairs.jsonl", rows(4)))
    code = start(
        DPOConfig,
        train_dpo.check,
        train_dpo.train,
        train_dpo.predict,
        "usage",
        [str(config), override.format(**bad_files)],
    )
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and BAD_INPUT[override] in errors[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_bad_input_as_a_user_meets_it(tiny: Path, launch: Launch, tmp_path: Path) -> None:
    """The same from the command line, before and after the processes are up. Fails for a traceback
    or an exit code other than 2."""
    config = write_config(tmp_path, tiny, write_lines(tmp_path / "pairs.jsonl", rows(4)))
    for override in ("beta=-1", "hardware.tokens_per_micro_batch=20"):
        result = launch("train_dpo.py", config, override, check=False)
        assert (
            result.returncode == 2
            and BAD_INPUT[override] in result.stderr
            and "Traceback" not in result.stderr
        )


def test_dry_run_prints_the_plan_and_writes_nothing(
    tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """Fails where --dry-run trains, or leaves a folder behind; or where --quiet silences the plan,
    which is the result, or leaves more than warnings on standard error."""
    data = write_lines(tmp_path / "pairs.jsonl", [*rows(20), {**rows(1)[0], "id": "again"}])
    config = write_config(tmp_path, tiny, data)
    result = launch("train_dpo.py", config, "--dry-run", "--quiet", ranks=2)
    assert "plan: 6 steps" in result.stdout and not (tmp_path / "run").exists()
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["warning"]


def test_schedules_by_hand() -> None:
    """Fails where warm-up does not start at 0, the peak is missed, or the end is not reached."""

    def all_steps(**options: object) -> list[float]:
        return [learning_rate(s, 10, lr_peak=1.0, **options) for s in range(10)]

    assert all_steps(schedule="linear", warmup_fraction=0.2) == pytest.approx(
        [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert all_steps(schedule="constant", warmup_fraction=0.0) == [1.0] * 10
    cosine = all_steps(schedule="cosine", warmup_fraction=0.0)
    assert (
        cosine[0] == 1.0
        and cosine[5] == pytest.approx(0.5)
        and cosine == sorted(cosine, reverse=True)
    )


def test_warm_up_is_rounded_up() -> None:
    """0.12 of 20 steps are 2.4: three steps of warm-up. Fails for two, for none where some is asked
    for, or some where none is."""

    def first(
        steps: int, fraction: float, schedule: str = "linear", peak: float = 1.0
    ) -> list[float]:
        return [
            learning_rate(s, steps, lr_peak=peak, schedule=schedule, warmup_fraction=fraction)
            for s in range(5)
        ]

    assert first(20, 0.12) == pytest.approx([0, 1 / 3, 2 / 3, 1, 16 / 17])
    assert (
        first(20, 0.01, "constant", 3.0) == [0, 3, 3, 3, 3]
        and first(20, 0.0, "constant") == [1] * 5
    )
    assert first(8, 0.25, "cosine", 2.0) == pytest.approx(
        [0, 1, 2, 1 + math.cos(math.pi / 6), 1 + math.cos(math.pi / 3)]
    )


def test_records_of_steps_to_come_are_dropped(tmp_path: Path) -> None:
    """Fails where a resumed run would write a step twice, or drop the evaluation at its
    checkpoint."""
    path = write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": 3, "split": "train"},
            {"step": 4, "split": "eval"},
            {"step": 4, "split": "train"},
            {"step": 5, "split": "eval"},
        ],
    )
    truncate_records(path, 4)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 3, "split": "train"},
        {"step": 4, "split": "eval"},
    ]
