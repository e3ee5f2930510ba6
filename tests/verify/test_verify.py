"""Preflight finds what it is for, and the certificate a run that is another: each fault planted,
one at a time."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forkserver import ForkServer
from processes import ROOT, Launch, free_port
from runs import rows, write_config, write_lines
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import MistralConfig

from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import BadInput, ConfigError, Data, DPOConfig, Hardware, Run
from zephyr.packing import collate_pairs, collate_texts, plan_pass
from zephyr.training.loop import Split
from zephyr.training.tolerance import TOKEN_TOLERANCE
from zephyr.verify.certificate import certify, compare_runs, read_config
from zephyr.verify.preflight import (
    LogprobDifference,
    require_below,
    require_counts,
    require_disk,
    require_ids,
    require_memory,
    require_packed,
    require_polarity,
    rows_to_pack,
    sample_indices,
)

BOS, EOS = 1, 2
DATA = Data((), max_tokens=20)
GOOD = EncodedPair("p", [BOS, 5, EOS, 6], [7, EOS], [8, EOS])
FAULTS = [
    (GOOD._replace(prompt_ids=[5, 6]), "starts with id .5., not BOS 1"),
    (GOOD._replace(prompt_ids=[BOS, BOS, 6]), "starts with BOS more than once"),
    (GOOD._replace(rejected_ids=[8, 9]), "has an answer without EOS that was not cut"),
    (GOOD._replace(rejected_ids=[7, EOS]), "has two equal answers"),
    (GOOD._replace(rejected_ids=[]), "is empty"),
    (EncodedText("t", [BOS, 5, EOS], [False, True, False]), "trains no EOS"),
    (EncodedText("t", [5, EOS], [False, True]), "starts with id .5."),
]


@pytest.mark.parametrize("example,complaint", FAULTS, ids=[complaint for _, complaint in FAULTS])
def test_a_fault_is_named(example: EncodedPair | EncodedText, complaint: str) -> None:
    """Fails where the fault passes, or is told without the example's id."""
    with pytest.raises(BadInput, match=rf"example 1 \({example.id}\) {complaint}"):
        require_ids([1], [GOOD, example], (BOS, EOS), DATA)


def test_good_examples_pass() -> None:
    """A cut answer has no EOS, some tokenizers no BOS, and BOS may be the mark of every turn. Fails
    where preflight cries wolf."""
    good = [
        GOOD,
        GOOD._replace(chosen_ids=[7] * 16),
        EncodedText("t", [BOS, 5, EOS], [False, True, True]),
    ]
    assert require_ids([0, 1, 2], good, (BOS, EOS), DATA) == {"examples": 3}
    require_ids([0], [GOOD._replace(prompt_ids=[5, 6])], (None, EOS), DATA)
    require_ids([0], [GOOD._replace(prompt_ids=[BOS, 5, BOS, 6])], (BOS, EOS), DATA)
    require_ids(
        [0],
        [EncodedText("t", [BOS, 5, 6], [False, True, True])],
        (BOS, EOS),
        Data((), max_tokens=3),
    )


def test_labels_the_wrong_way_round(tiny: Path, tmp_path: Path) -> None:
    """Through the loader, as a run reads them: equal scores pass, an inverted pair is named by file
    and line, and rows without scores are not counted. Fails where the two are swapped, or a score
    is dropped on the way."""
    from zephyr.data.encode import load_pairs
    from zephyr.data.tokenizer import load_tokenizer

    scored = rows(4)
    for row, scores in zip(scored, [(4, 2.5), (3, 3), (2.0, 4.5)]):
        row["score_chosen"], row["score_rejected"] = scores
    reports = {}
    for name, kept in (("two", scored[:2] + scored[3:]), ("three", scored)):
        data = write_lines(tmp_path / f"{name}.jsonl", kept)
        _, reports[name] = load_pairs([str(data)], load_tokenizer(tiny))
    assert require_polarity({"train": reports["two"], "eval": reports["two"]}) == {"scored": 4}
    wrong = r"in 1 of 3 pairs with scores, the first at .*three.jsonl:3; chosen >= rejected"
    with pytest.raises(BadInput, match=f"data.train: .*{wrong}"):
        require_polarity({"train": reports["three"]})
    with pytest.raises(BadInput, match=f"data.eval: .*{wrong}"):
        require_polarity({"train": reports["two"], "eval": reports["three"]})


@pytest.mark.parametrize("kind", ["pairs", "texts"])
def test_counts_that_are_not_the_plans(kind: str) -> None:
    """A length, a count of targets or a unit is one off. Fails where preflight compares a batch
    with itself."""
    pairs = [GOOD, GOOD._replace(chosen_ids=[7, 9, EOS])]
    texts = [
        EncodedText("a", [BOS, 5, EOS], [False, True, True]),
        EncodedText("b", [BOS, 6, 7, EOS], [False, False, True, True]),
    ]
    tokens, units = ([8, 9], [1, 1]) if kind == "pairs" else ([3, 4], [2, 2])
    ledger = (
        {"prompt_tokens": [4, 4], "chosen_tokens": [2, 3], "rejected_tokens": [2, 2]}
        if kind == "pairs"
        else None
    )

    def collate(indices: list[int]) -> object:
        return collate_pairs(pairs, indices) if kind == "pairs" else collate_texts(texts, indices)

    plan = plan_pass(tokens, ranks=1, budget_tokens=100)
    good = Split(
        plan, collate, lambda *_: None, ["a", "b"], tokens, units, units, "pairs", [], {}, ledger
    )
    assert require_counts(good, 0) == {"micro_batches": 1, "longest_tokens": max(tokens)}
    wrong = [
        good._replace(tokens=[8, 8]),
        good._replace(units=[1, 2] if kind == "pairs" else [2, 1]),
    ]
    if ledger:
        wrong.append(good._replace(ledger={**ledger, "rejected_tokens": [2, 3]}))
    for split in wrong:
        with pytest.raises(BadInput, match=r"a micro-batch of examples \[0, 1\] holds"):
            require_counts(split, 0)
    apart = good._replace(plan=plan_pass(tokens, ranks=2, budget_tokens=100))
    assert (
        require_counts(apart, 0)["micro_batches"] == require_counts(apart, 1)["micro_batches"] == 1
    )
    (own,) = (rank for rank in (0, 1) if [1] in apart.plan.steps[0].ranks[rank])
    off = apart._replace(tokens=[tokens[0], tokens[1] + 1])
    require_counts(off, 1 - own)  # each rank its own
    with pytest.raises(BadInput, match=r"a micro-batch of examples \[1\] holds"):
        require_counts(off, own)


def test_a_disk_or_a_memory_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand float32 parameters, two checkpoints kept: 3 x 12 bytes and 4 of the export each,
    less what lies there already; gradients and moments take 12 over the ranks. Fails where what is
    there counts twice, or ranks do not share."""
    said = []
    lm = MistralConfig(
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=10,
    )
    decoder = torch.nn.Linear(1000, 1, bias=False)
    decoder.config = lm
    engine = SimpleNamespace(
        num_parameters=1000,
        num_trained_parameters=1000,
        num_adapter_parameters=0,
        world_size=2,
        rank=1,
        free_memory_bytes=lambda: 6000,
        policy=SimpleNamespace(lm=decoder),
        settings={"zero_optimization": {}},
        gradient_dtype="float32",
        warn=said.append,
        device=torch.device("cpu"),
    )
    hardware = Hardware(dtype="float32", activation_checkpointing=True)
    config = DPOConfig("m", DATA, hardware=hardware, run=Run(dir=str(tmp_path)))
    Usage = namedtuple("Usage", "free")
    for free, held, enough in (
        (40_000, 0, True),
        (39_999, 0, False),
        (28_000, 12_000, True),
        (27_999, 12_000, False),
    ):
        (tmp_path / "checkpoints" / "step-1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoints" / "step-1" / "rank").write_bytes(b"x" * held)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free))
        if enough:
            assert require_disk(engine, config)["wanted_bytes"] == 40_000 - held
        else:
            with pytest.raises(
                BadInput, match=rf"has {free / 1024:.2f} KiB free; {(40_000 - held) / 1024:.2f} KiB"
            ):
                require_disk(engine, config)
    split = SimpleNamespace(plan=plan_pass([30, 50], ranks=2, budget_tokens=100), tokens=[30, 50])
    found = require_memory(engine, config, split)
    head = (
        4 * 500 + 4 * (500 + 40) + 50 * 4 * 16
    )  # exponentials; a chunk and the weight's gradient; norm and scored rows
    layer = 50 * (
        2 * 12 * 4 + (32 + 16 + 8) + 16 * 8 - 16 + 8 * (8 + 4)
    )  # what a whole one keeps but its input, four gradients
    layer += 4 * 4 * 8  # and that of a matrix
    moments, update, gathered = 4000, 2000, 4000
    assert (
        found["predicted_bytes"] == moments + gathered + 50 * 2 * 16 + layer
        and layer > max(head, update)
        and "may not suffice" in said[0]
    )
    engine.gradient_dtype = "bfloat16"  # joined, then widened: 3000 in the update
    with pytest.raises(BadInput, match="rank 1 has 5.86 KiB of memory free; 6.84 KiB are wanted"):
        require_memory(engine, config, split)
    engine.gradient_dtype = "float32"
    engine.free_memory_bytes = lambda: 5999
    with pytest.raises(BadInput, match="rank 1 has 5.86 KiB of memory free; 5.86 KiB are wanted"):
        require_memory(engine, config, split)


def test_what_is_not_finite_is_not_below() -> None:
    """Fails where a NaN passes, since it is not above the tolerance either."""
    assert require_below(1e-3, "x", 1e-3) == {"difference": 1e-3}
    for difference in (2e-3, math.nan, math.inf):
        with pytest.raises(BadInput, match="^x by"):
            require_below(1e-3, "x", difference)


PLANTED = """
import runpy, sys
import deepspeed.runtime.zero.stage3 as stage3
import zephyr.reference as reference
fault = sys.argv.pop(1)
# Every rank keeps its own gradient, as where an all-reduce is forgotten.
if fault == "gradient":
    real = stage3.dist.all_reduce
    def all_reduce(tensor, *a, **k):
        return None if tensor.numel() > 100 else real(tensor, *a, **k)
    stage3.dist.all_reduce = all_reduce
# References of other weights, as a rebuilt cache may hold.
if fault == "start":
    real = reference.forward_pass
    reference.forward_pass = lambda *a: {i: (c, r - 0.1) for i, (c, r) in real(*a).items()}
runpy.run_path("train_dpo.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "fault,preflight,message",
    [
        pytest.param(
            "gradient",
            "on",
            "preflight: gradients are not added up over ranks",
            marks=pytest.mark.long,  # tests/training/test_engine.py does the same without ranks
        ),
        ("start", "on", "preflight: policy and reference differ at step 0"),
        pytest.param(
            "start",
            "off",
            "policy and reference differ before the first update: the rewards of 8 of 8 pairs are "
            "not 0: p",
            marks=pytest.mark.long,  # tests/test_reference.py tests the same check without ranks
        ),
    ],
)
def test_faults_of_a_run_stop_it(
    fault: str, preflight: str, message: str, finished: Path, tmp_path: Path
) -> None:
    """Two real ranks with a fault in their libraries, as such there were: code 2, one line, no
    step. Fails where preflight compares numbers that the fault moves alike, or, without it, the
    first update is made from another reference's rewards."""
    (tmp_path / "planted.py").write_text(PLANTED)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={free_port()}",
        str(tmp_path / "planted.py"),
        fault,
        str(finished / "config.yaml"),
        f"run.dir={tmp_path / 'run'}",
        f"reference.dir={tmp_path / 'reference'}",
        f"run.preflight={preflight}",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["code"] == 2 and status["message"].startswith(message), done.stderr[-3000:]
    assert ("run.preflight=false" in status["message"]) == (preflight == "on")
    assert (
        not (tmp_path / "run" / "metrics.jsonl").exists()
        and not (tmp_path / "run" / "checkpoints").exists()
    )


def test_rows_that_are_packed() -> None:
    """The shortest, and the longest of all examples, of the sample or not, between short ones,
    within the budget. Fails where the longest is never packed, or alone in its row, so that a
    frequency or a mask that depends on it changes no neighbour."""
    tokens = [9, 3, 50, 4, 5, 6, 7, 8]
    short, long = rows_to_pack([0, 1, 3, 4, 5, 6, 7], tokens, 100)
    assert short == [1, 3, 4, 5, 6, 7] and long == [1, 2, 3, 4, 5, 6]
    assert rows_to_pack([0, 1, 2, 3], tokens, 60) == ([1, 3, 0], [1, 2, 3])
    assert rows_to_pack([0, 1, 2, 3], tokens, 50) == ([1, 3, 0], [2])
    assert rows_to_pack([0], [7], 7) == ([0], [0])


def test_a_sample_is_drawn_once_for_all() -> None:
    """A thousand of many, all of few, the same on every rank. Fails where a large set is read
    whole, an example twice, or ranks look at others."""
    many = range(100_000)
    assert (
        len(set(sample_indices(many))) == 1000
        and sample_indices(many) == sample_indices(many)
        and max(sample_indices(many)) > 90_000
    )
    assert sorted(sample_indices(range(7))) == list(range(7))


def test_rows_that_differ_by_more_than_rounding() -> None:
    """Eight times the noise of a token, three times that of a response, never less or more than the
    dtype's limits. Fails where one row's noise excuses another, or only the first row counts."""
    quiet = LogprobDifference(token=0.0, response=0.0, example=3, noise=0.01)
    assert require_packed("bfloat16", [quiet, quiet._replace(token=0.08, response=0.03)]) == {
        "difference": 0.08,
        "response": 0.03,
        "noise": 0.01,
    }
    loud = quiet._replace(noise=0.5)
    for differences, message in (
        (
            [loud, quiet._replace(token=0.081)],
            "of a token of example 3 by 8.1e-02 of their size; at most 0.08 is wanted",
        ),
        (
            [quiet, quiet._replace(response=0.031)],
            "of a response's tokens by 3.1e-02 of their size; at most 0.03 is",
        ),
        ([loud._replace(response=0.07)], "at most 0.06 is wanted"),
        ([loud._replace(token=0.3)], "at most 0.25 is wanted"),
    ):
        with pytest.raises(BadInput, match=message):
            require_packed("bfloat16", differences)
    with pytest.raises(BadInput, match="at most 0.0001 is wanted"):
        require_packed("float32", [quiet._replace(token=2e-4)])


def test_findings_are_kept(finished: Path) -> None:
    """Fails where a check is not run, or its finding lost."""
    findings = json.loads((finished / "run" / "preflight.json").read_text())
    assert set(findings) == {
        "weights",
        "labels",
        "ids",
        "plan",
        "disk",
        "memory",
        "packed",
        "start",
        "gradient",
    }
    assert (
        findings["ids"] == {"examples": 20} and abs(findings["start"]["loss"] - math.log(2)) < 1e-6
    )
    assert (
        findings["packed"]["difference"] <= TOKEN_TOLERANCE["float32"][0]
        and findings["gradient"]["difference"] < 1e-6
    )


def test_runs_that_are_not_the_same(finished: Path, launch: Launch, tmp_path: Path) -> None:
    """Against itself a run is the same; with one record off, a step missing, or one weight off by a
    hundredth of its update, it is not. Fails where the certificate reads one of the two twice, or
    leaves weights out."""
    config = read_config(finished / "config.yaml", None)[1]
    base = finished / "run"
    assert compare_runs(base, base, config) == {
        "largest_difference": 0.0,
        "where": "nowhere",
        "weights_distance": 0.0,
        "same": True,
    }
    lines = (base / "metrics.jsonl").read_text().splitlines(True)
    second = [n for n, line in enumerate(lines) if json.loads(line)["split"] == "train"][1]
    other = json.loads(lines[second])
    changed_line = json.dumps({**other, "grad_norm": other["grad_norm"] * 1.001}) + "\n"
    for name, changed in (
        ("record", [*lines[:second], changed_line, *lines[second + 1 :]]),
        ("step", lines[:-1]),
    ):
        run = shutil.copytree(base, tmp_path / name)
        (run / "metrics.jsonl").write_text("".join(changed))
        found = compare_runs(base, run, config)
        assert not found["same"] and (name == "step" or found["where"] == "grad_norm of step 1")
    run = shutil.copytree(base, tmp_path / "weights")
    path = run / "checkpoints" / "step-6" / "rank-1-0.safetensors"
    with safe_open(path, framework="pt") as file:
        names, metadata = file.keys(), file.metadata()
        tensors = {name: file.get_tensor(name) for name in names}
    tensors["lm.lm_head.weight.master"] += 1e-5
    save_file(tensors, path, metadata=metadata)
    found = compare_runs(base, run, config)
    assert (
        not found["same"]
        and found["largest_difference"] == 0
        and 1e-3 < found["weights_distance"] < 1
    )


def test_the_stage_of_a_config(finished: Path, tmp_path: Path) -> None:
    """Fails where a config of either stage is taken for one in silence."""
    assert isinstance(read_config(finished / "run" / "config.yaml", None)[1], DPOConfig)
    (tmp_path / "either.yaml").write_text("model: x\ndata: {train: [y]}\n")
    with pytest.raises(ConfigError, match="--stage"):
        read_config(tmp_path / "either.yaml", None)
    assert read_config(tmp_path / "either.yaml", "sft")[0] == "sft"
    (tmp_path / "neither.yaml").write_text("model: x\ndata: {train: [y]}\nbeta: -1\n")
    with pytest.raises(ConfigError, match="beta: expected a number > 0"):
        read_config(tmp_path / "neither.yaml", None)


@pytest.mark.parametrize(
    ("stage", "forks"),
    [
        ("dpo", True),
        *(pytest.param(stage, False, marks=pytest.mark.long) for stage in ("dpo", "sft")),
    ],
)
def test_certificate_of_a_run(
    stage: str,
    forks: bool,
    tiny: Path,
    fork_server: ForkServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every layout that this machine can vary gives the trajectory of the plain one, by the
    command's own runs (long), or by forks of the scripts. Fails where world size, micro-batches,
    packing, checkpointing or a resume leaves a trace, or a variant is not run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ZEPHYR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # fused kernels would run, slowly

    def fork(stage: str, ranks: int, arguments: Sequence[str], log: Path) -> int:
        done = fork_server.run(
            arguments, {}, tmp_path, 300, script=f"train_{stage}.py", ranks=ranks, cwd=ROOT
        )
        log.write_text(done.err)
        return done.code

    if forks:
        monkeypatch.setattr("zephyr.verify.certificate.torchrun", fork)
    pairs = rows(20)
    data = write_lines(
        tmp_path / "rows.jsonl",
        pairs
        if stage == "dpo"
        else [
            {
                "messages": [
                    {"role": "user", "content": p["prompt"]},
                    {"role": "assistant", "content": p["chosen"]},
                ]
            }
            for p in pairs
        ],
    )
    config = write_config(tmp_path, tiny, data)
    if stage == "sft":
        import yaml

        tree = yaml.safe_load(config.read_text())
        del tree["reference"], tree["optim"]["pairs_per_step"]
        config.write_text(yaml.safe_dump({**tree, "data": {**tree["data"], "max_tokens": 100}}))
    report = certify(config, tmp_path / "out", stage=stage, rows=20, ranks=None)
    assert report == json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert report["same"] and report["steps"] >= 4 and not (tmp_path / "out" / "verify").exists()
    varied = {name: of for name, of in report["variants"].items() if "same" in of}
    assert set(varied) == {"world_size", "micro_batch", "checkpointing", "resume"} | (
        {"packing"} if stage == "dpo" else set()
    )
    assert "GPU" in report["variants"]["attention"]["not_varied"]
    assert report["variants"]["fused"]["not_varied"]
    assert (
        varied["resume"]["weights_distance"] == 0 < varied["world_size"]["weights_distance"] < 1e-3
    )
