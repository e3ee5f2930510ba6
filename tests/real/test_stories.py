"""The recipe on real input: a real pretrained model, real instructions, real judgements, two ZeRO-3
ranks."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent)]
pytest.importorskip("sentencepiece")

import preferences  # noqa: E402
import stories  # noqa: E402
from transformers import AutoModelForCausalLM, pipeline  # noqa: E402

from zephyr.chat import ZEPHYR_TEMPLATE, encode_prompt  # noqa: E402
from zephyr.data.tokenizer import load_tokenizer  # noqa: E402

HERE = Path(__file__).parent
PAIRS_EACH = 24
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do"
)
Records = list[dict[str, float]]


@pytest.fixture(scope="module")
def run_folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the YAML files call $WORK: the converted model and the converted preferences."""
    folder = tmp_path_factory.mktemp("real")
    weights = real_data / "weights"
    stories.convert(
        weights / "stories260K.bin", weights / "stories260K_tok512.bin", folder / "stories260K"
    )
    sources = {
        "gpt4_preferences": preferences.gpt4_pairs(real_data / "alpaca_eval/preferences.jsonl.gz"),
        "hh_harmless": preferences.harmless_pairs(
            real_data / "preferences/hh_harmless_base_test.jsonl.gz"
        ),
    }
    for name, rows in sources.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in islice(rows, PAIRS_EACH)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def train(
    run_folder: Path, real_data: Path, launch: Callable[..., object]
) -> Callable[..., Records]:
    """Runs a script on two ranks as users do, and returns its train records."""

    def run(script: str, config: str, *overrides: str, run_dir: str) -> Records:
        environment = {"DATA": str(real_data), "WORK": str(run_folder)}
        launch(
            script,
            HERE / config,
            *overrides,
            f"run.dir={run_folder / run_dir}",
            ranks=2,
            **environment,
        )
        lines = (run_folder / run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if record["split"] == "train"]

    return run


@pytest.fixture(scope="module")
def sft_records(train: Callable[..., Records]) -> Records:
    return train("train_sft.py", "sft.yaml", run_dir="sft")


def texts(real_data: Path) -> Iterator[str]:
    with gzip.open(
        real_data / "text/tinystories_sample.jsonl.gz", "rt", encoding="utf-8", newline="\n"
    ) as lines:
        yield from (json.loads(line)["text"] for line in lines)


def test_tokenizer_merges_as_llama2_c(run_folder: Path, real_data: Path) -> None:
    """A merge out of order changes the ids of some words only: every id of forty stories, against
    the rule itself."""
    tokenizer = load_tokenizer(run_folder / "stories260K")
    vocabulary = stories.read_vocabulary(real_data / "weights/stories260K_tok512.bin")
    assert tokenizer("Once upon a time")["input_ids"] == [1, 403, 407, 261, 378]
    for text in [*islice(texts(real_data), 40), "日本 🦊\n\n  x", " two  spaces", "\tQ: 1+1=2?"]:
        assert tokenizer(text)["input_ids"] == stories.greedy_merge(text, vocabulary)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_converted_model_is_the_real_one(run_folder: Path, real_data: Path) -> None:
    """A wrong permutation still writes something like English; the known story and loss it can't
    give."""
    tokenizer = load_tokenizer(run_folder / "stories260K")
    model = AutoModelForCausalLM.from_pretrained(run_folder / "stories260K")
    start = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    story = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=100, do_sample=False
    )
    assert tokenizer.decode(story[0], skip_special_tokens=True) == STORY
    total, count = 0.0, 0
    ids = sorted(
        (tokenizer(text)["input_ids"][:512] for text in islice(texts(real_data), 100)), key=len
    )
    for batch in (ids[i : i + 20] for i in range(0, 100, 20)):
        longest = max(map(len, batch))  # causal: padding behind a text has no say
        ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        real_BT = torch.tensor([[i < len(row) for i in range(1, longest)] for row in batch])
        with torch.no_grad():
            logits = model(ids_BT).logits[:, :-1]
        nll_BT = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids_BT[:, 1:], reduction="none"
        )
        total, count = total + nll_BT[real_BT].double().sum().item(), count + int(real_BT.sum())
    assert count == 36_891
    assert total / count == pytest.approx(1.4511, abs=5e-5)


def test_dsft_on_alpaca(sft_records: Records) -> None:
    """The loss of real answers must fall from what a teller of stories gives them."""
    losses = [record["loss"] for record in sft_records]
    assert len(losses) >= 10 and all(map(math.isfinite, losses))
    assert sum(losses[-3:]) / 3 < losses[0] - 0.3


@pytest.fixture(scope="module")
def dpo_records(train: Callable[..., Records], sft_records: Records) -> Records:
    """Records of a run that its preflight, on real weights and pairs, lets pass."""
    return train("train_dpo.py", "dpo.yaml", "run.preflight=true", run_dir="dpo")


def test_ddpo_starts_at_ln_2_and_learns(dpo_records: Records) -> None:
    """Another loss at the start means that policy and reference are not one model, or not one
    computation."""
    first = dpo_records[0]
    assert abs(first["loss"] - math.log(2)) < 1e-6
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["rewards/margins"] == 0
    last_epoch = dpo_records[-len(dpo_records) // 4 :]
    assert sum(record["loss"] for record in last_epoch) / len(last_epoch) < 0.4
    assert all(record["rewards/margins"] > 0 for record in last_epoch)


@pytest.mark.parametrize("source", ["gpt4_preferences", "hh_harmless"])
def test_ddpo_tells_real_pairs_apart(source: str, dpo_records: Records, run_folder: Path) -> None:
    """From the pairs ledger, for each source by itself: every pair once an epoch, learned by the
    last."""
    columns = ["id", "epoch", "rewards/chosen", "rewards/rejected"]
    ledger = pyarrow.parquet.read_table(run_folder / "dpo/pairs", columns=columns).to_pylist()
    of_source = [
        row for row in ledger if row["id"].startswith("hh_harmless") == (source == "hh_harmless")
    ]
    assert len({row["id"] for row in of_source}) == PAIRS_EACH and len(of_source) == 4 * PAIRS_EACH
    right: dict[int, int] = {}
    for row in of_source:
        epoch = int(row["epoch"])
        right[epoch] = right.get(epoch, 0) + (row["rewards/chosen"] > row["rewards/rejected"])
    first, last = right[min(right)], right[max(right)]
    assert len(right) == 4 and last >= 0.75 * PAIRS_EACH and last > first


def test_export_chats_in_a_pipeline(dpo_records: Records, run_folder: Path) -> None:
    """People run transformers on the folder alone: its prompt must be the ids that training saw."""
    pipe = pipeline("text-generation", model=str(run_folder / "dpo/model"))
    assert pipe.tokenizer.chat_template.endswith(ZEPHYR_TEMPLATE)
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "What is the colour of the sky?"},
    ]
    prompt = pipe.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert pipe.tokenizer(prompt, add_special_tokens=False)["input_ids"] == encode_prompt(
        pipe.tokenizer, messages[1:]
    )
    answer = pipe(prompt, max_new_tokens=24, do_sample=False)[0]["generated_text"]
    assert answer.startswith(prompt) and answer[len(prompt) :].strip()
    turn = pipe(messages, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]
    assert turn["role"] == "assistant" and turn["content"]
