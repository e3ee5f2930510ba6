"""An export read by transformers 4.57, which most servers still run: the same tokens, the same
numbers.

The other version lies in a folder of its own, put before everything else on the path; `make
test-long` fills it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizer_kinds import KINDS, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from zephyr.chat import encode_prompt
from zephyr.data.tokenizer import load_tokenizer, prepare_tokenizer
from zephyr.model.export import export
from zephyr.model.load import load_policy

sys.path[:0] = [str(Path(__file__).parents[1] / "real")]

import smollm2  # noqa: E402

pytestmark = pytest.mark.long
SHAPE = {
    "vocab_size": 448,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
LAYERS = ["sliding_attention", "full_attention"] * 2
# family -> its config's class, what makes it differ from every default, its tokenizer
FAMILIES = {
    "mistral": ("MistralConfig", {"rope_theta": 1e6, "sliding_window": 8}, "mistral"),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}, "llama3"),
    "llama dynamic": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e4}},
        "yi-base",
    ),
    "smollm2": ("LlamaConfig", {"rope_theta": 1e5, "tie_word_embeddings": True}, "smollm2"),
    "qwen2": ("Qwen2Config", {"rope_theta": 1e6, "tie_word_embeddings": True}, "qwen25"),
    "qwen3": ("Qwen3Config", {"rope_theta": 1e6, "head_dim": 16}, "qwen25-base"),
    "gemma": ("GemmaConfig", {"rope_theta": 3e4, "head_dim": 16}, "gemma"),
    "gemma3": (
        "Gemma3TextConfig",
        {"rope_parameters": TWO_ROPES, "head_dim": 16, "sliding_window": 8, "layer_types": LAYERS},
        "gemma",
    ),
    "phi3": (
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
        "phi3",
    ),
    "olmo2": ("Olmo2Config", {"rope_theta": 5e5}, "smollm2-base"),
    "olmo3": (
        "Olmo3Config",
        {"rope_theta": 5e5, "sliding_window": 8, "layer_types": LAYERS},
        "smollm2-base",
    ),
    "smollm3": ("SmolLM3Config", {"rope_theta": 3e6}, "smollm2"),
    "granite": ("GraniteConfig", {"rope_theta": 3e4}, "qwen25"),
    "glm4": (
        "Glm4Config",
        {"rope_theta": 3e4, "head_dim": 16, "partial_rotary_factor": 0.25},
        "qwen25",
    ),
    "starcoder2": ("Starcoder2Config", {"rope_theta": 3e4, "sliding_window": 8}, "smollm2-base"),
}
TURNS = [{"role": "user", "content": "What colour is the sky? 12345 isn't one, naïve 日本 🦊"}]
READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
found = {"version": transformers.__version__}
for folder in sys.argv[1:]:
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = json.loads(open(folder + "/turns.json").read())
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    inputs = tokenizer("The sky isn't 12345 blue", return_tensors="pt")
    lm.generate(**inputs, max_new_tokens=2)
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    said = lm.generate(**prompt, max_new_tokens=12, do_sample=False)[0, len(ids):]
    with torch.no_grad():
        logits = lm(torch.tensor([ids])).logits[0, -1].tolist()
    found[folder] = {
        "ids": ids,
        "logits": logits,
        "plain": inputs["input_ids"][0].tolist(),
        "eos": tokenizer.eos_token,
        "ends": lm.generation_config.eos_token_id,
        "top_p": lm.generation_config.top_p,
        "said": tokenizer.decode(said),
    }
print(json.dumps(found))
"""


def exported(folder: Path, family: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random model of the family as a run would leave it, and what made it."""
    kind, more, name = FAMILIES[family]
    tokenizer = prepare_tokenizer(make_tokenizer(KINDS[name]), "auto", KINDS[name].eos_token)
    if name == "qwen25":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SHAPE | more, bos_token_id=1, eos_token_id=2)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in lm.parameters():
        torch.nn.init.normal_(
            parameter,
            mean=1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0,
            std=0.1,
        )
    source = folder.parent / f"{folder.name}-source"
    source.mkdir()
    (source / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [0, 1], "do_sample": True, "top_p": 0.9, "_from_model_config": True}
        )
    )
    named = [(name, parameter.detach()) for name, parameter in lm.named_parameters()]
    assert (
        export(
            folder,
            iter(named),
            [(n, p.nbytes) for n, p in named],
            lm.config,
            tokenizer,
            "",
            writes=True,
            source=source,
        )
        == []
    )
    (folder / "turns.json").write_text(json.dumps(TURNS))
    return lm, tokenizer


def read_by(version_4: Path, folders: Iterable[str], cwd: Path) -> dict[str, dict[str, object]]:
    """What version 4 makes of folders that hold `turns.json`."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *folders],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(version_4)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("version").startswith("4.57")
    return found


def test_version_4_reads_what_was_trained(version_4: Path, tmp_path: Path) -> None:
    """Every family's export gives, in version 4, this version's logits, prompt and ends of an
    answer. Fails where a rotary base or scaling is read as its default (10000), the tokenizer's
    class or tokens are unknown, or BOS is another."""
    made = {
        str(tmp_path / family.replace(" ", "-")): exported(
            tmp_path / family.replace(" ", "-"), family
        )
        for family in FAMILIES
    }
    found = read_by(version_4, made, tmp_path)
    for folder, (lm, tokenizer) in made.items():
        ids = encode_prompt(tokenizer, TURNS, template=tokenizer.chat_template)
        assert (
            found[folder]["ids"] == ids
            and found[folder]["plain"] == tokenizer("The sky isn't 12345 blue")["input_ids"]
        ), folder
        with torch.no_grad():
            logits = lm(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(
            torch.tensor(found[folder]["logits"]),
            logits,
            atol=2e-4,
            rtol=1e-4,
            msg=lambda m, folder=folder: f"{folder}: {m}",
        )
        assert found[folder]["eos"] == tokenizer.eos_token and found[folder]["top_p"] == 0.9
        assert found[folder]["ends"] == list(dict.fromkeys([tokenizer.eos_token_id, 0, 1]))
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(again(torch.tensor([ids])).logits[0, -1], logits)
        assert (
            AutoTokenizer.from_pretrained(folder)(TURNS[0]["content"])["input_ids"]
            == tokenizer(TURNS[0]["content"])["input_ids"]
        )


def test_version_4_answers_with_a_real_model_s_export(version_4: Path, tmp_path: Path) -> None:
    """SmolLM2's export says in version 4 what it says here, behind the ids of training. Fails where
    its tokenizer, its base of 100000 or its tied head come back otherwise: random weights would not
    show what an answer does."""
    if why := smollm2.missing():
        pytest.skip(f"{why} (make .venv/.installed-real)")
    source, folder = smollm2.model_folder(), tmp_path / "model"
    policy, tokenizer = load_policy(source), load_tokenizer(source)
    named = [(name, parameter.detach()) for name, parameter in policy.lm.named_parameters()]
    assert (
        export(
            folder,
            iter(named),
            [(n, p.nbytes) for n, p in named],
            policy.lm.config,
            tokenizer,
            "",
            writes=True,
            source=source,
        )
        == []
    )
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (folder / "turns.json").write_text(json.dumps(question))
    found = read_by(version_4, [str(folder)], tmp_path)[str(folder)]
    assert found["ids"] == encode_prompt(tokenizer, question, template=tokenizer.chat_template)
    assert (
        found["said"] == "The capital of France is Paris.<|im_end|>"
        and found["plain"] == tokenizer("The sky isn't 12345 blue")["input_ids"]
    )
    theirs = json.loads((source / "generation_config.json").read_text())["eos_token_id"]
    assert found["ends"] == theirs == tokenizer.eos_token_id
