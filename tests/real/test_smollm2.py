"""A real pretrained model of today's kind, with its own chat template, on real preferences: `make
real` at a small size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

sys.path[:0] = [str(Path(__file__).parent)]

import oracle  # noqa: E402
import preferences  # noqa: E402
import smollm2  # noqa: E402
from processes import ROOT  # noqa: E402

from zephyr.chat import encode_pair, encode_prompt  # noqa: E402
from zephyr.data.encode import load_pairs  # noqa: E402
from zephyr.data.tokenizer import load_tokenizer  # noqa: E402
from zephyr.model.load import load_policy  # noqa: E402
from zephyr.model.logprobs import response_logprobs  # noqa: E402
from zephyr.packing import collate_pairs  # noqa: E402

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
TRAINED, HELD_OUT, PER_STEP = 6, 4, 2
SYSTEM = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


@pytest.fixture(scope="module")
def model() -> Path:
    if why := smollm2.missing():
        pytest.skip(f"{why} (make .venv/.installed-real)")
    return smollm2.model_folder()


@pytest.fixture(scope="module")
def rows(real_data: Path) -> list[dict[str, object]]:
    """GPT-4's preferences, short ones, four of each prompt at most."""
    found = list(
        islice(preferences.gpt4_pairs(real_data / "alpaca_eval/preferences.jsonl.gz"), 200)
    )
    assert len({row["prompt"] for row in found}) > TRAINED + HELD_OUT
    return found


def before_after(
    folder: Path, model: Path, rows: list[dict[str, object]], *overrides: str
) -> tuple[Path, str]:
    """Run `make real` at a small size: two ranks of ZeRO-3 in bfloat16, three steps.

    Returns: the folder of its results, and what it printed.
    """
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [
        sys.executable,
        "tests/real/before_after.py",
        str(file),
        "--model",
        str(model),
        "--out",
        str(folder / "real"),
        "--pairs",
        str(TRAINED),
        "--held-out",
        str(HELD_OUT),
        f"optim.pairs_per_step={PER_STEP}",
        "data.max_tokens=192",
        "data.max_prompt_tokens=96",
        "optim.lr_peak=1.0e-6",
        *overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ZEPHYR_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return folder / "real", done.stdout


@pytest.fixture(scope="module")
def run(
    model: Path, rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The results of a run without its preflight, which takes half of the time here.

    test_stories.py has a preflight on a smaller real model, and `test_preflight_passes` on this one
    in the long run.
    """
    return before_after(tmp_path_factory.mktemp("smollm2"), model, rows, "run.preflight=off")


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_conversion_is_the_real_model(model: Path) -> None:
    """A transposed or re-scaled tensor, or another tokenizer, still writes something; this answer
    it can't give."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config and config["tie_word_embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = AutoModelForCausalLM.from_pretrained(model).generate(
        **prompt, max_new_tokens=12, do_sample=False
    )[0]
    user = f"<|im_start|>user\n{QUESTION[0]['content']}<|im_end|>\n"
    assert tokenizer.decode(ids) == f"{SYSTEM}{user}<|im_start|>assistant\n{ANSWER}<|im_end|>"


def test_the_tokenizer_parts_digits_as_the_model_was_trained(model: Path) -> None:
    """The GGUF names its rule, which transformers does not read. Fails where the line breaks of a
    list's "\\n\\n1." are two tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.tokenize("task:\n\n1. In 2023") == [
        "task",
        ":",
        "ĊĊ",
        "1",
        ".",
        "ĠIn",
        "Ġ",
        "2",
        "0",
        "2",
        "3",
    ]


def test_packed_and_shared_equals_transformers_forward(
    model: Path, rows: list[dict[str, object]]
) -> None:
    """Thirty real layers, grouped queries, tied embeddings: log-probs and every gradient of two
    pairs in one packed row."""
    tokenizer = load_tokenizer(model, "model")
    pairs = [
        encode_pair(
            tokenizer, row, max_tokens=192, max_prompt_tokens=96, template=tokenizer.chat_template
        )
        for row in rows[:2]
    ]
    assert all(tokenizer.decode(pair.prompt_ids).startswith(SYSTEM) for pair in pairs)
    policy = load_policy(model)
    found_P = torch.cat(response_logprobs(policy, collate_pairs(pairs, range(len(pairs)))))
    lm = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    wanted_P = torch.cat(
        [
            oracle.response_logps(lm, [oracle.conversation(pair, side)])
            for side in ("chosen", "rejected")
            for pair in pairs
        ]
    )
    torch.testing.assert_close(found_P, wanted_P, rtol=0, atol=2e-3)
    weights_P = torch.tensor([1.0] * len(pairs) + [-1.0] * len(pairs))
    (found_P * weights_P).sum().backward()
    (wanted_P * weights_P).sum().backward()
    gradients = {name: parameter.grad for name, parameter in policy.lm.named_parameters()}
    for name, parameter in lm.named_parameters():
        apart = (gradients.pop(name) - parameter.grad).norm() / parameter.grad.norm()
        assert apart < 1e-3, f"{name}: {apart}"
    assert not gradients


def test_dpo_starts_at_ln_2_in_the_models_own_format(run: tuple[Path, str], model: Path) -> None:
    """BOS of this model is also what starts each turn: rows were refused, or got a second one."""
    folder, _ = run
    records = [
        record for record in read(folder / "dpo/metrics.jsonl") if record["split"] == "train"
    ]
    assert len(records) == TRAINED // PER_STEP and all(
        math.isfinite(record["loss"]) for record in records
    )
    first = records[0]
    assert (
        abs(first["loss"] - math.log(2)) < 1e-6
        and first["rewards/chosen"] == first["rewards/rejected"] == 0
    )
    tokenizer = load_tokenizer(model, "model")
    pairs, _ = load_pairs(
        [str(folder / "train.jsonl")], tokenizer, max_tokens=192, max_prompt_tokens=96
    )
    text = tokenizer.decode(pairs[0].prompt_ids + pairs[0].chosen_ids)
    assert (
        text.startswith(SYSTEM + "<|im_start|>user\n")
        and text.endswith("<|im_end|>")
        and text.count("<|im_start|>") == 3
    )


@pytest.mark.long
def test_preflight_passes(model: Path, rows: list[dict[str, object]], tmp_path: Path) -> None:
    """Labels, memory, the packed row and the gradients of both ranks are checked before the first
    step. Fails where a check that holds for tiny models refuses a real one."""
    folder, _ = before_after(tmp_path, model, rows)
    report = json.loads((folder / "dpo/preflight.json").read_text())
    assert report["ids"]["examples"] == TRAINED


def test_the_export_gives_the_same_answer_in_a_pipeline(run: tuple[Path, str], model: Path) -> None:
    """People run transformers on the folder alone: its prompt must be the ids of training, its EOS
    the end of a turn."""
    export = run[0] / "dpo/model"
    tokenizer = load_tokenizer(model, "model")
    pipe = pipeline("text-generation", model=str(export), dtype=torch.float32)
    ids = pipe.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert ids == encode_prompt(tokenizer, QUESTION, template=tokenizer.chat_template)
    assert pipe(QUESTION, max_new_tokens=20, do_sample=False)[0]["generated_text"][-1] == {
        "role": "assistant",
        "content": ANSWER,
    }


ASK = """
import sys, torch, transformers
pipe = transformers.pipeline("text-generation", model=sys.argv[1], torch_dtype=torch.float32)
turns = [{"role": "user", "content": sys.argv[2]}]
answer = pipe(turns, max_new_tokens=20, do_sample=False)[0]["generated_text"][-1]
print(transformers.__version__, answer["content"], sep="\\n")
"""


@pytest.mark.long
def test_transformers_4_reads_the_export(run: tuple[Path, str], version_4: Path) -> None:
    """Most servers still run it; it reads other keys of the config and knows other tokenizer
    classes."""
    command = [sys.executable, "-c", ASK, str(run[0] / "dpo/model"), QUESTION[0]["content"]]
    done = subprocess.run(
        command,
        cwd=run[0],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(version_4)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    version, answer = done.stdout.splitlines()
    assert version.startswith("4.") and answer == ANSWER


def test_the_table_compares_held_out_prompts(
    run: tuple[Path, str], rows: list[dict[str, object]]
) -> None:
    """A prompt on both sides of the split would count what was learned by heart as a gain."""
    folder, printed = run
    train, held_out = read(folder / "train.jsonl"), read(folder / "held_out.jsonl")
    assert (len(train), len(held_out)) == (TRAINED, HELD_OUT)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert all(row in rows for row in train + held_out)
    result = json.loads((folder / "result.json").read_text())
    figures = result["figures"]
    last = [record for record in read(folder / "dpo/metrics.jsonl") if record["split"] == "eval"][
        -1
    ]
    assert figures["implicit reward accuracy"]["after"]["share"] == last["rewards/accuracies"]
    assert figures["reward margin"]["after"]["mean"] == pytest.approx(
        last["rewards/margins"], abs=0.01
    )
    low, high = figures["loss"]["after"]["ci95"]
    assert low <= figures["loss"]["after"]["mean"] <= high and f"[{low:.3f}, {high:.3f}]" in printed
    assert (folder / "dpo/report.html").is_file()
