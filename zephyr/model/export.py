"""A stream of full parameters becomes a Hugging Face folder that others can load.

The folder holds safetensors shards, config, tokenizer and model card. Config and tokenizer are
written for transformers 4 and 5, and read again. Where a file would be read differently from what
was trained, the export says so in a note.
"""

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
# Texts that a tokenizer must turn into the same ids after the export: spaces, scripts, digits.
PROBES = (
    "The sky isn't 12345 blue,  is it?\n\n\tNaïve 日本 🦊",
    "  def f(x):\n    return x - 10 ** 2",
    " a",
)
ROPE_NOTE = (
    "config.json holds the rotary embedding in a form that only transformers 5 reads: version 4 "
    "would use another one without a warning."
)


def shard_names(sizes: Sequence[tuple[str, int]], shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Assign tensors to shard files, in their order.

    Args:
        sizes: name and bytes of each tensor.
        shard_bytes: most bytes of a shard; only a single larger tensor exceeds it.

    Returns:
        Tensor name -> file name, as Hugging Face names them.
    """
    shard_of: dict[str, int] = {}
    shard, filled = 0, 0
    for name, size in sizes:
        if filled and filled + size > shard_bytes:
            shard, filled = shard + 1, 0
        shard_of[name] = shard
        filled += size
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
    """Write a model's folder shard by shard under a temporary name, then rename it.

    At most one shard is in memory. An export that is killed leaves the folder as it was.

    Args:
        folder: the folder to write; an earlier export there is replaced.
        parameters: name and whole tensor of each parameter, on the rank that writes. Every rank
            must run through it, as ZeRO-3 gathers each parameter from all ranks.
        sizes: name and bytes of each parameter, in the same order.
        config: of the model.
        tokenizer: of the run.
        card: text of the model card (README.md).
        writes: whether this rank writes; exactly one does.
        source: folder of the model that was trained; its generation settings are kept.
        notes: what users of the model must know, from the caller.

    Returns:
        The notes for users of the model, one line each, also written into the card; empty on ranks
        that don't write.
    """
    part = folder.with_name(folder.name + ".part")
    files = shard_names(sizes)
    if writes:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    for file, named in groupby(parameters, key=lambda parameter: files[parameter[0]]):
        shard = {name: tensor.contiguous() for name, tensor in named}
        if writes:
            save_shard(shard, part / file)
        shard.clear()  # frees its memory before the next shard is gathered
    if not writes:
        return []
    if len(set(files.values())) > 1:
        index = {"metadata": {"total_size": sum(size for _, size in sizes)}, "weight_map": files}
        (part / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    ends = save_generation_config(part, tokenizer, source)
    notes = [*notes, *save_config(part, config, tokenizer, ends)]
    notes += save_tokenizer(tokenizer, part)
    quoted = "".join(f"\n> {note}\n" for note in notes)
    (part / "README.md").write_text(card + quoted, encoding="utf-8")
    # An earlier export of this run; its checkpoints can make it again.
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return notes


def save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, with the permissions of any new file of this process.

    safetensors writes through a temporary file of mode 0600 and renames it, which ignores the
    umask. So the mode is taken from an empty file created first, in the same place.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def save_generation_config(
    folder: Path, tokenizer: PreTrainedTokenizerBase, source: Path | None
) -> list[int]:
    """Write generation_config.json: the settings of the source model, with our special tokens.

    Args:
        folder: of the export.
        tokenizer: whose EOS, BOS and padding tokens are written.
        source: folder of the model that was trained, for its temperature, top_p, ...

    Returns:
        The ids that end an answer: our EOS, then those of the source's generation_config.json or,
        without one, of its config.json.
    """
    settings: dict[str, object] = {}
    theirs: object = None
    for name in ("generation_config.json", "config.json"):
        if source is not None and (source / name).is_file():
            found = json.loads((source / name).read_text(encoding="utf-8"))
            theirs = found.get("eos_token_id")
            settings = found if name == "generation_config.json" else {}
            break
    ends = [tokenizer.eos_token_id]
    if isinstance(theirs, list):
        ends += theirs
    elif isinstance(theirs, int):
        ends.append(theirs)
    ends = list(dict.fromkeys(ends))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # With this key, transformers 4 would derive the settings from config.json again.
    settings.pop("_from_model_config", None)
    settings["bos_token_id"] = tokenizer.bos_token_id
    settings["eos_token_id"] = unwrap_single(ends)
    settings["pad_token_id"] = pad
    settings["transformers_version"] = transformers.__version__
    given = {key: value for key, value in settings.items() if value is not None}
    write_json(folder / "generation_config.json", given)
    return ends


def save_config(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, ends: list[int]
) -> list[str]:
    """Write config.json, readable by transformers 4 and 5.

    Returns:
        A note where version 4 would read another rotary embedding; else nothing.
    """
    # A copy, without the name of our attention.
    plain = type(config).from_dict({**config.to_dict(), "use_cache": True})
    plain.bos_token_id, plain.eos_token_id = tokenizer.bos_token_id, unwrap_single(ends)
    plain.save_pretrained(folder)
    path = folder / "config.json"
    saved: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    older = rope_for_transformers_4(saved)
    if older is not None:
        write_json(path, saved | older)
        if same_rope(type(config).from_pretrained(folder), plain):
            return []
        write_json(path, saved)
    return [ROPE_NOTE]


def rope_for_transformers_4(saved: Mapping[str, object]) -> dict[str, object] | None:
    """The keys from which transformers 4 reads what version 5 writes as `rope_parameters`.

    Version 5 reads both forms, and its own takes precedence.

    Returns:
        The keys to add to config.json; None where version 4 has no form for these settings.
    """
    model_type = str(saved["model_type"])
    rope = as_mapping(saved.get("rope_parameters"))
    if not any(isinstance(value, dict) for value in rope.values()):
        return flat_rope(rope, model_type)
    whole = as_mapping(rope.get("full_attention"))
    local = as_mapping(rope.get("sliding_attention"))
    older = flat_rope(whole, model_type)
    if model_type.startswith("gemma3"):
        return older | {"rope_local_base_freq": local.get("rope_theta")}
    same_base = local.get("rope_theta") == whole.get("rope_theta")
    alike = same_base and local.get("rope_type", "default") == "default"
    return older if alike else None


def flat_rope(rope: Mapping[str, object], model_type: str) -> dict[str, object]:
    """Base, partial factor and scaling of one rotary embedding, as keys of their own."""
    older: dict[str, object] = {}
    for key in ("rope_theta", "partial_rotary_factor"):
        if rope.get(key) is not None:
            older[key] = rope[key]
    if rope.get("rope_type", "default") == "default":
        return older
    if model_type == "phi3":  # version 4 accepts exactly these three keys
        scaling = {
            "type": rope["rope_type"],
            "short_factor": rope["short_factor"],
            "long_factor": rope["long_factor"],
        }
    else:
        scaling = {key: value for key, value in rope.items() if key not in older}
    return older | {"rope_scaling": scaling}


def as_mapping(value: object) -> dict[str, object]:
    """A value of config.json that should be a mapping; empty where it is not there."""
    return value if isinstance(value, dict) else {}


def same_rope(read: PreTrainedConfig, expected: PreTrainedConfig) -> bool:
    """Whether two configs have the same rotary embedding."""
    ropes = [getattr(config, "rope_parameters", None) for config in (read, expected)]
    return without_type(ropes[0]) == without_type(ropes[1])


def without_type(rope: object) -> object:
    """Rotary settings without the key `type`, the old name of `rope_type`, at any depth."""
    if not isinstance(rope, dict):
        return rope
    return {key: without_type(value) for key, value in rope.items() if key != "type"}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    """Write the tokenizer's files, readable by transformers 4 and 5.

    Its chat template writes BOS where training put one first (`chat.template_with_bos`), and shows
    today's date again, which was frozen in the run (`chat.freeze_date`).

    Returns:
        A note where AutoTokenizer reads it back with other ids; else nothing.
    """
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = unfreeze_date(template_with_bos(tokenizer, own))
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own
    if tokenizer.is_fast:
        rewrite_for_transformers_4(folder / "tokenizer_config.json", tokenizer)
    again = AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer(text)["input_ids"] for text in PROBES]
    if [again(text)["input_ids"] for text in PROBES] == expected:
        return []
    return [
        f"AutoTokenizer makes other ids than training did: for this model type it uses "
        f"{type(again).__name__}, whatever tokenizer.json holds. "
        "PreTrainedTokenizerFast.from_pretrained reads the file as it is."
    ]


def rewrite_for_transformers_4(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rewrite tokenizer_config.json of a fast tokenizer so that version 4 reads the same."""
    saved: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    # Version 5's name of the class that reads tokenizer.json as it is.
    if saved["tokenizer_class"] == "TokenizersBackend":
        saved["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Version 4 expects a mapping under this name.
    extra = saved.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        saved["additional_special_tokens"] = extra
    # Without it, version 4 would add token types.
    saved.setdefault("model_input_names", list(tokenizer.model_input_names))
    write_json(path, saved)


def unwrap_single(ids: list[int]) -> int | list[int]:
    """A list of one id as that id, as Hugging Face writes it."""
    return ids[0] if len(ids) == 1 else ids


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
