"""A tiny stand-in of a published model: random weights in its config's own kind of layers, and a
tokenizer with its special tokens and chat template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from processes import ROOT
from tiny import SENTENCES
from tokenizer_kinds import IM, KINDS, QWEN3, Kind, make_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

SHAPES = ROOT / "configs" / "shapes"
# What is small in a stand-in; every other value of the published config.json stays. The window and
# the length of pretraining are shorter than the rows.
SMALL = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "max_window_layers": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# As OLMo 3's: <|im_end|> after all turns but the last answer, which ends with the EOS.
OLMO3 = (
    "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\nYou help.<|im_end|>\n' -}}"
    "{%- endif -%}{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content -}}"
    "{%- if m.role == 'assistant' and loop.last -%}{{- eos_token -}}"
    "{%- else -%}{{- '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
OLMO3_KIND = Kind(IM, "<|endoftext|>", "<|endoftext|>", False, OLMO3)
QWEN3_BASE = Kind(IM, None, "<|endoftext|>", False, QWEN3)
# Of each folder of configs/: the shape of its model, and its tokenizer.
MODELS = {
    "zephyr-7b-beta": ("mistral-7b", KINDS["mistral"]),
    "handbook-a": ("mistral-7b", KINDS["mistral"]),
    "handbook-b": ("mistral-7b", KINDS["mistral"]),
    "mistral-orpo": ("mistral-7b", KINDS["mistral"]),
    "tulu3-8b": ("llama-3.1-8b", KINDS["llama3-base"]._replace(template=None)),
    "olmo3-7b": ("olmo-3-7b", OLMO3_KIND),
    "llama3-8b": ("llama-3-8b", KINDS["llama3-base"]._replace(template=None)),
    "qwen3-0.6b": ("qwen3-0.6b", QWEN3_BASE),
    "qwen3-4b": ("qwen3-4b", QWEN3_BASE),
}


def small_config(shape: str) -> PreTrainedConfig:
    """The config of `configs/shapes/SHAPE` with the sizes of `SMALL` for those that it has."""
    values = json.loads((SHAPES / shape / "config.json").read_text())
    small = {key: SMALL[key] for key in SMALL if values.get(key) is not None}
    if values["num_key_value_heads"] == values["num_attention_heads"]:
        small["num_key_value_heads"] = small["num_attention_heads"]
    if values.get("rope_scaling"):
        small["rope_scaling"] = {**values["rope_scaling"], "original_max_position_embeddings": 32}
        small["max_position_embeddings"] = 256
    return AutoConfig.for_model(**{**values, **small})


def stand_in(folder: Path, name: str) -> Path:
    """Save the model of `MODELS[name]` into `folder/model`, its tokenizer into `folder/tokenizer`.

    Weights have the standard deviation 0.1 around 1 for gains and 0 for all else: with the usual
    0.02 a wrong mask would hide in rounding. Returns: the folder.
    """
    shape, kind = MODELS[name]
    make_tokenizer(kind, SENTENCES).save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(small_config(shape), dtype=torch.float32)
        for parameter in lm.parameters():
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            nn.init.normal_(parameter, centre, 0.1)
    lm.save_pretrained(folder / "model")
    return folder
