"""A stream of full parameters becomes a Hugging Face folder: safetensors shards, config, tokenizer,
model card.

Config and tokenizer are written for transformers 4 and 5, and read again: what would not come back
is said."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from zephyr.chat import template_with_bos, unfreeze_date

SHARD_BYTES = 4 * 2**30
PROBES = (
    "The sky isn't 12345 blue,  is it?\n\n\tNaïve 日本 🦊",
    "  def f(x):\n    return x - 10 ** 2",
    " a",
)


def shard_names(sizes: Sequence[tuple[str, int]], shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Tensor name -> shard file, from names and bytes in their order; no shard is over
    `shard_bytes` unless by a single tensor."""
    shard_of: dict[str, int] = {}
    shard, filled = 0, 0
    for name, size in sizes:
        if filled and filled + size > shard_bytes:
            shard, filled = shard + 1, 0
        shard_of[name], filled = shard, filled + size
    if shard == 0:
        return dict.fromkeys(shard_of, "model.safetensors")
    return {
        name: f"model-{s + 1:05d}-of-{shard + 1:05d}.safetensors" for name, s in shard_of.items()
    }


def export(
    folder: Path,
    parameters: Iterator[tuple[str, Tensor]],
    sizes: Sequence[tuple[str, int]],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    *,
    writes: bool,
    source: Path | None = None,
    notes: Sequence[str] = (),
) -> list[str]:
    """Write the folder shard by shard under a temporary name, then rename it.

    Args: parameters: each parameter whole on the rank that `writes`; every rank must run through it
    (ZeRO-3 gathers). sizes: name and bytes of each, in the same order. source: folder of the model
    that was trained, whose generation settings are kept. notes: what users of the model must know
    already. Returns: what its users must know, a line each, also written into the card."""
    part = folder.with_name(folder.name + ".part")
    files = shard_names(sizes)
    if writes:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    for file, named in groupby(parameters, key=lambda parameter: files[parameter[0]]):
        shard = {name: tensor.contiguous() for name, tensor in named}
        if writes:
            save_file(shard, part / file, metadata={"format": "pt"})
        shard.clear()  # its memory goes before the next is gathered
    if not writes:
        return []
    if len(set(files.values())) > 1:
        index = {"metadata": {"total_size": sum(size for _, size in sizes)}, "weight_map": files}
        (part / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    ends = save_generation_config(part, tokenizer, source)
    notes = [*notes, *save_config(part, config, tokenizer, ends)]
    notes += save_tokenizer(tokenizer, part)
    (part / "README.md").write_text(
        card + "".join(f"\n> {note}\n" for note in notes), encoding="utf-8"
    )
    shutil.rmtree(
        folder, ignore_errors=True
    )  # of an earlier end of this run: its checkpoints still stand for it
    os.replace(part, folder)
    return notes


def save_generation_config(
    folder: Path, tokenizer: PreTrainedTokenizerBase, source: Path | None
) -> list[int]:
    """Write generation_config.json: the source model's (temperature, top_p, ...), with the
    tokenizer's special tokens.

    Returns: the ids that end an answer: our EOS, then those of the source's generation_config.json
    or, without one, of its config.json."""
    settings, names = {}, ("generation_config.json", "config.json")
    found = [source / name for name in names if source and (source / name).is_file()]
    if found:
        settings = json.loads(found[0].read_text(encoding="utf-8"))
    theirs = settings.get("eos_token_id")
    if not found or found[0].name == "config.json":
        settings = {}
    theirs = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *theirs]))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings.pop("_from_model_config", None)  # would let version 4 make it anew of config.json
    settings |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": unwrap_single(ends),
        "pad_token_id": pad,
        "transformers_version": transformers.__version__,
    }
    write_json(
        folder / "generation_config.json",
        {key: value for key, value in settings.items() if value is not None},
    )
    return ends


def save_config(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, ends: list[int]
) -> list[str]:
    """Write config.json, readable by transformers 4 and 5; returns a note where version 4 would
    read other values."""
    plain = type(config).from_dict(
        {**config.to_dict(), "use_cache": True}
    )  # without our attention's name in it
    plain.bos_token_id, plain.eos_token_id = tokenizer.bos_token_id, unwrap_single(ends)
    plain.save_pretrained(folder)
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    older = rope_for_transformers_4(saved)
    if older is not None:
        write_json(path, saved | older)
        if same_rope(type(config).from_pretrained(folder), plain):
            return []
        write_json(path, saved)
    return [
        "config.json holds the rotary embedding in a form that transformers 5 alone reads: version 4 would take "
        "another one, without a word."
    ]


def rope_for_transformers_4(saved: Mapping[str, object]) -> dict[str, object] | None:
    """The keys in which transformers 4 looks for what version 5 writes as `rope_parameters`; None
    where it has none for it.

    Version 5 reads both, and lets its own come first."""
    rope = saved.get("rope_parameters") or {}
    if not any(isinstance(value, dict) for value in rope.values()):
        return flat_rope(rope, str(saved["model_type"]))
    whole, local = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    older = flat_rope(whole, str(saved["model_type"]))
    if str(saved["model_type"]).startswith("gemma3"):
        return older | {"rope_local_base_freq": local.get("rope_theta")}
    alike = (
        local.get("rope_theta") == whole.get("rope_theta")
        and local.get("rope_type", "default") == "default"
    )
    return older if alike else None


def flat_rope(rope: Mapping[str, object], model_type: str) -> dict[str, object]:
    """Base, partial factor and scaling of one rotary embedding as separate keys."""
    older = {
        key: rope[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if rope.get(key) is not None
    }
    if rope.get("rope_type", "default") == "default":
        return older
    if model_type == "phi3":  # version 4 wants these three keys and no other
        return older | {
            "rope_scaling": {
                "type": rope["rope_type"],
                **{f"{of}_factor": rope[f"{of}_factor"] for of in ("short", "long")},
            }
        }
    return older | {"rope_scaling": {key: value for key, value in rope.items() if key not in older}}


def same_rope(read: PreTrainedConfig, wanted: PreTrainedConfig) -> bool:
    """Whether two configs have one rotary embedding; `type` is the old name of `rope_type`."""

    def without_type(rope: object) -> object:
        return (
            {k: without_type(v) for k, v in rope.items() if k != "type"}
            if isinstance(rope, dict)
            else rope
        )

    return without_type(getattr(read, "rope_parameters", None)) == without_type(
        getattr(wanted, "rope_parameters", None)
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    """Write the tokenizer's files for transformers 4 and 5; returns a note where it does not come
    back the same.

    Its chat template writes BOS where training put one in front (`chat.template_with_bos`), and has
    its clock back, which stood still in the run (`chat.freeze_date`)."""
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = unfreeze_date(template_with_bos(tokenizer, own))
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    if tokenizer.is_fast:
        if (
            saved["tokenizer_class"] == "TokenizersBackend"
        ):  # version 5's name of the class that reads tokenizer.json as it is
            saved["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(
            extra := saved.pop("extra_special_tokens", None), list
        ):  # version 4 wants a mapping under that name
            saved["additional_special_tokens"] = extra
        saved.setdefault(
            "model_input_names", list(tokenizer.model_input_names)
        )  # version 4 would add token types
        write_json(path, saved)
    again = AutoTokenizer.from_pretrained(folder)
    if [again(text)["input_ids"] for text in PROBES] != [
        tokenizer(text)["input_ids"] for text in PROBES
    ]:
        return [
            f"AutoTokenizer makes other ids than those of training: for a model of this type it takes {type(again).__name__}, "
            "whatever tokenizer.json says. PreTrainedTokenizerFast.from_pretrained reads it as it is."
        ]
    return []


def unwrap_single(ids: list[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else ids


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
