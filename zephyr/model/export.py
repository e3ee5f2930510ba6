"""A stream of full parameters becomes a Hugging Face folder: safetensors shards, config, tokenizer, model card."""
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from zephyr.chat import template_with_bos

SHARD_BYTES = 4 * 2**30


def shard_names(sizes: Sequence[tuple[str, int]], shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Tensor name -> shard file, from names and bytes in their order; no shard is over `shard_bytes` unless by a single tensor."""
    shard_of: dict[str, int] = {}
    shard, filled = 0, 0
    for name, size in sizes:
        if filled and filled + size > shard_bytes:
            shard, filled = shard + 1, 0
        shard_of[name], filled = shard, filled + size
    if shard == 0:
        return dict.fromkeys(shard_of, "model.safetensors")
    return {name: f"model-{s + 1:05d}-of-{shard + 1:05d}.safetensors" for name, s in shard_of.items()}


def export(folder: Path, parameters: Iterator[tuple[str, Tensor]], sizes: Sequence[tuple[str, int]],
           config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, card: str, *, writes: bool) -> None:
    """Write the folder shard by shard under a temporary name, then rename it.

    Args: parameters: each parameter whole on the rank that `writes`; every rank must run through it (ZeRO-3 gathers).
    sizes: name and bytes of each, in the same order."""
    part = folder.with_name(folder.name + ".part")
    files = shard_names(sizes)
    if writes:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    for file, named in groupby(parameters, key=lambda parameter: files[parameter[0]]):
        shard = {name: tensor.contiguous() for name, tensor in named}
        if writes:
            save_file(shard, part / file, metadata={"format": "pt"})
        shard.clear()                               # its memory goes before the next is gathered
    if not writes:
        return
    if len(set(files.values())) > 1:
        index = {"metadata": {"total_size": sum(size for _, size in sizes)}, "weight_map": files}
        (part / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    plain = type(config).from_dict({**config.to_dict(), "use_cache": True})      # without our attention's name in it
    plain.architectures = config.architectures
    plain.save_pretrained(part)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad).save_pretrained(part)
    save_tokenizer(tokenizer, part)
    (part / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)       # of an earlier end of this run: its checkpoints still stand for it
    os.replace(part, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files; its chat template writes BOS where training put one in front (`chat.template_with_bos`)."""
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = template_with_bos(tokenizer, own)
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own
