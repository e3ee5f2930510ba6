"""Export in shards, and generation through the template."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    pipeline,
)
from transformers.utils.chat_template_utils import Chat

from zephyr.chat import encode_prompt
from zephyr.config import BadInput, Data, DPOConfig, SFTConfig, SFTData, SFTRun
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model import export as exporting
from zephyr.model.export import (
    export,
    save_config,
    save_generation_config,
    save_tokenizer,
    shard_names,
)
from zephyr.model.generate import generate
from zephyr.model.load import digest, load_policy
from zephyr.report import card
from zephyr.report.finish import rope_warnings


def test_shards_keep_order_and_size() -> None:
    """Fails where a shard exceeds its size, a tensor is lost, or one too large alone breaks the
    naming."""
    assert shard_names([("a", 3), ("b", 4)], 10) == {
        "a": "model.safetensors",
        "b": "model.safetensors",
    }
    names = shard_names([("a", 6), ("b", 4), ("c", 1), ("d", 20), ("e", 1)], 10)
    assert [n.split("-")[1] for n in names.values()] == [
        "00001",
        "00001",
        "00002",
        "00003",
        "00004",
    ]
    assert {n.split("-")[3] for n in names.values()} == {"00004.safetensors"}
    names = shard_names([("a", 20), ("b", 9), ("c", 2), ("d", 2)], 10)
    assert [n.removeprefix("model-") for n in names.values()] == [
        f"0000{n}-of-00003.safetensors" for n in (1, 2, 3, 3)
    ]


def test_export_in_many_shards_holds_one_at_a_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model comes back the same to the bit, through our loader and transformers'; while a
    tensor is read, no more is alive beside it than those before it in its shard, or, before its
    first, the shard to be written. Fails where shards pile up, or an index misses a tensor."""
    monkeypatch.setattr(exporting, "shard_names", lambda sizes: shard_names(sizes, 60_000))
    policy = load_policy(tiny)
    alive: list[torch.Tensor] = []
    held: list[int] = []

    def stream() -> object:
        import sys

        for name, parameter in policy.lm.named_parameters():
            tensor = parameter.detach().clone()
            alive.append(tensor)
            held.append(sum(t.nbytes for t in alive if sys.getrefcount(t) > 3))
            yield name, tensor
            del tensor

    sizes = [(name, p.nbytes) for name, p in policy.lm.named_parameters()]
    config = DPOConfig(model=str(tiny), data=Data(train=("pairs.jsonl",)))
    folder = tmp_path / "model"
    export(
        folder,
        stream(),
        sizes,
        policy.lm.config,
        load_tokenizer(tiny),
        card(config, {}),
        writes=True,
    )
    assert len(list(folder.glob("*.safetensors"))) > 3
    files, filled, allowed = shard_names(sizes, 60_000), 0, []
    for i, (name, size) in enumerate(sizes):
        allowed.append(filled + size)
        filled = size if i and files[name] != files[sizes[i - 1][0]] else filled + size
    assert all(a <= b for a, b in zip(held, allowed)) and max(held) > 0, list(zip(held, allowed))
    assert digest(folder) == digest(export_once(tiny, tmp_path, config))
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.lm.parameters()))
    assert not list(tmp_path.glob("model.*"))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("shard_bytes", [60_000, 2**30])
def test_every_file_of_an_export_has_the_permissions_of_a_new_file(
    umask: int, shard_bytes: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard and many. Fails where safetensors' own mode, 0600, is left: others in the group
    could read config.json, but not the weights."""
    monkeypatch.setattr(exporting, "shard_names", lambda sizes: shard_names(sizes, shard_bytes))
    config = DPOConfig(model=str(tiny), data=Data(train=("pairs.jsonl",)))
    before = os.umask(umask)
    try:
        folder = export_once(tiny, tmp_path, config)
    finally:
        os.umask(before)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard_bytes == 60_000)
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~umask)}


def export_once(tiny: Path, tmp_path: Path, config: DPOConfig) -> Path:
    policy = load_policy(tiny)
    named = [(name, p.detach()) for name, p in policy.lm.named_parameters()]
    export(
        tmp_path / "one",
        iter(named),
        [(n, p.nbytes) for n, p in named],
        policy.lm.config,
        load_tokenizer(tiny),
        card(config, {}),
        writes=True,
    )
    return tmp_path / "one"


def test_the_article_s_snippet_works_on_an_exported_folder(finished: Path) -> None:
    """Word for word, but for the folder; messages themselves give the ids of training. Fails where
    the folder lacks template, generation config or anything that `pipeline` takes, or a chat is
    rendered without the BOS of training, as servers render it."""
    pipe = pipeline(
        "text-generation",
        model=str(finished / "run" / "model"),
        torch_dtype=torch.bfloat16,
        device_map="auto",
    )
    messages = [
        {
            "role": "system",
            "content": "You are a friendly chatbot who always responds in the style of a pirate",
        },
        {"role": "user", "content": "How many helicopters can a human eat in one sitting?"},
    ]
    prompt = pipe.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    outputs = pipe(
        prompt, max_new_tokens=256, do_sample=True, temperature=0.7, top_k=50, top_p=0.95
    )
    assert prompt == (
        "<s><|system|>\nYou are a friendly chatbot who always responds in the style "
        "of a pirate</s>\n"
        "<|user|>\nHow many helicopters can a human eat in one sitting?</s>\n<|assistant|>\n"
    )
    trained = encode_prompt(
        load_tokenizer(yaml.safe_load((finished / "config.yaml").read_text())["model"]), messages
    )
    assert (
        pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        == trained
    )
    assert pipe.preprocess(Chat(messages))["input_ids"][0].tolist() == trained
    assert outputs[0]["generated_text"].startswith(prompt) and len(
        outputs[0]["generated_text"]
    ) > len(prompt)
    assert (
        pipe.model.dtype == torch.bfloat16
        and pipe.model.generation_config.eos_token_id == pipe.tokenizer.eos_token_id
    )


def test_the_card_of_a_run_is_in_the_hub_s_format(finished: Path) -> None:
    """The Hub's own reader takes the header, where no local path stands; below are digests, config
    and the last evaluation. Fails where the numbers are of another step, or a path that the Hub
    refuses gets in."""
    text = (finished / "run" / "model" / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["zephyr", "dpo"],
    }
    last = [
        record
        for line in (finished / "run" / "metrics.jsonl").read_text().splitlines()
        if (record := json.loads(line))["split"] == "eval"
    ][-1]
    assert last["step"] == 6 and all(
        f"| {name} | {last[name]:.6g} |" in text
        for name in ("step", "loss", "rewards/accuracies", "pairs")
    )
    weights = digest(yaml.safe_load((finished / "config.yaml").read_text())["model"])
    assert (
        f"- model: `{weights}`" in text
        and "- data: `" in text
        and "- reference: `" in text
        and (finished / "run" / "config.yaml").read_text() in text
    )


def test_the_card_names_hub_ids_and_no_paths(tmp_path: Path) -> None:
    """Fails where a split stays in a dataset's name, a folder passes for a hub id, or a run without
    evaluation has no card."""
    config = SFTConfig(
        model="mistralai/Mistral-7B-v0.1",
        run=SFTRun(dir=str(tmp_path)),
        data=SFTData(
            train=(
                "HuggingFaceH4/ultrachat_200k:train_sft",
                "runs/tiny/dialogues.jsonl",
                "tests/real",
            )
        ),
    )
    text = card(config, {"data": "0" * 64})
    data = ModelCard(text).data.to_dict()
    assert (
        data["base_model"] == "mistralai/Mistral-7B-v0.1"
        and data["datasets"] == ["HuggingFaceH4/ultrachat_200k"]
        and data["tags"][1] == "sft"
    )
    assert "license" not in data and "Evaluation" not in text and f"- data: `{'0' * 64}`" in text


def test_generation_continues_training_ids_and_keeps_the_order(tiny: Path) -> None:
    """Batched with padding, each answer is the one of its prompt alone. Fails where padding is
    attended, answers come back in the order of length, or the prompt's ids are not those of
    training."""
    lm, tokenizer = load_policy(tiny).lm, load_tokenizer(tiny)
    prompts = [
        [{"role": "user", "content": text}]
        for text in ("What colour is the sky in the morning and at night?", "Hi", "How are you?")
    ]
    together = generate(lm, tokenizer, prompts, max_new_tokens=8)
    assert together == [
        generate(lm, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts
    ]
    ids = encode_prompt(tokenizer, prompts[0])
    output = AutoModelForCausalLM.from_pretrained(tiny).generate(
        torch.tensor([ids]),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=2,
        attention_mask=torch.ones(1, len(ids)),
    )
    assert (
        together[0] == tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        and together[0]
    )
    sampled = [
        generate(lm, tokenizer, prompts, max_new_tokens=8, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(ValueError, match="positions"):
        generate(lm, tokenizer, prompts, max_new_tokens=10**6)


def test_an_export_says_whose_rotary_frequencies_it_was_trained_with() -> None:
    """Frequencies fixed beyond those of pretraining are not what transformers takes for a short
    sequence. Fails where the card of such a model is silent, or one of another model is not."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

    def engine(longest: int | None, settings: dict[str, object]) -> SimpleNamespace:
        config = MistralConfig(max_position_embeddings=32, rope_parameters=settings)
        return SimpleNamespace(
            policy=SimpleNamespace(max_sequence_tokens=longest, lm=SimpleNamespace(config=config))
        )

    (note,) = rope_warnings(engine(64, rope))
    assert "of one of 64 tokens" in note and "up to 32 tokens" in note
    assert not rope_warnings(engine(32, rope)) and not rope_warnings(
        engine(None, {"rope_type": "default", "rope_theta": 10000.0})
    )


def generation(
    folder: Path, tokenizer: PreTrainedTokenizerBase, **files: dict[str, object]
) -> tuple[dict[str, object], list[int]]:
    """What is written for a source folder of these files, without the version; and the ids that end
    an answer."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    for name, content in files.items():
        (source / f"{name}.json").write_text(json.dumps(content))
    ends = save_generation_config(folder, tokenizer, source if files else None)
    written = json.loads((folder / "generation_config.json").read_text())
    assert written.pop("transformers_version") == transformers.__version__
    return written, ends


def test_generation_goes_on_as_the_source_did(tiny: Path, tmp_path: Path) -> None:
    """Its temperature and top_p stay, its ends join ours, the special tokens are the tokenizer's.
    Fails where an answer of the export does not end where it was trained to, a setting is lost, or
    one of config.json, which is none of generation, gets in."""
    tokenizer = load_tokenizer(tiny)  # BOS 1, EOS 2, no padding
    ours = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert generation(tmp_path, tokenizer) == (ours, [2])
    theirs = {
        "temperature": 0.6,
        "top_p": 0.9,
        "eos_token_id": [7, 2],
        "pad_token_id": 9,
        "_from_model_config": True,
    }
    (of_config := tmp_path / "c").mkdir()
    assert generation(
        of_config, tokenizer, config={"eos_token_id": 5, "hidden_size": 64, "temperature": 0.1}
    ) == ({**ours, "eos_token_id": [2, 5]}, [2, 5])
    assert generation(
        tmp_path, tokenizer, generation_config=theirs, config={"eos_token_id": 5}
    ) == ({**ours, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7]}, [2, 7])
    (silent := tmp_path / "s").mkdir()
    assert generation(silent, tokenizer, generation_config={}) == (ours, [2])
    tokenizer.pad_token = None  # as of a tokenizer that no run has prepared
    assert generation(silent, tokenizer) == (ours, [2])
    tokenizer.pad_token, tokenizer.bos_token = "<unk>", None
    assert generation(silent, tokenizer) == ({"eos_token_id": 2, "pad_token_id": 0}, [2])


def version_4(
    config: PreTrainedConfig, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, object], list[str]]:
    """config.json as it is written, and the notes; version 5 reads back what it was."""
    folder.mkdir(exist_ok=True)
    notes = save_config(folder, config, tokenizer, [2])
    again = AutoConfig.from_pretrained(folder).rope_parameters
    assert {key: value for key, value in again.items() if key != "type"} == config.rope_parameters
    return json.loads((folder / "config.json").read_text()), notes


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
FULL, LOCAL = (
    {"rope_type": "linear", "rope_theta": 7e5, "factor": 4.0},
    {"rope_type": "default", "rope_theta": 2e4},
)
SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 384,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}


def test_version_4_finds_its_rotary_keys(tiny: Path, tmp_path: Path) -> None:
    """Of each form that it has a key for. Fails where a server that runs version 4 would take
    another base (10000), scaling or partial factor than was trained, without a word. What it makes
    of them: tests/model/test_transformers4.py."""
    from transformers import Gemma3TextConfig, GlmConfig, LlamaConfig, MistralConfig, Phi3Config

    tokenizer = load_tokenizer(tiny)

    def written(config: PreTrainedConfig) -> dict[str, object]:
        found, notes = version_4(config, tmp_path / config.model_type, tokenizer)
        assert notes == []
        return found

    plain = written(
        MistralConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    )
    assert plain["rope_theta"] == 1e6 and "rope_scaling" not in plain
    scaled = written(LlamaConfig(**SHAPE, rope_parameters=LLAMA3))
    assert scaled["rope_theta"] == 5e5 and scaled["rope_scaling"] == {
        k: v for k, v in LLAMA3.items() if k != "rope_theta"
    }
    phi3 = written(Phi3Config(**SHAPE, rope_parameters=LONG))
    assert phi3["rope_scaling"] == {
        "type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    }
    assert (
        written(
            GlmConfig(
                **SHAPE,
                head_dim=16,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 3e4,
                    "partial_rotary_factor": 0.25,
                },
            )
        )["partial_rotary_factor"]
        == 0.25
    )
    two = written(
        Gemma3TextConfig(
            **SHAPE,
            head_dim=16,
            rope_parameters={"full_attention": FULL, "sliding_attention": LOCAL},
        )
    )
    assert (
        two["rope_theta"] == 7e5
        and two["rope_local_base_freq"] == 2e4
        and two["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    )


def test_a_rotary_embedding_that_version_4_has_no_key_for_is_noted(
    tiny: Path, tmp_path: Path
) -> None:
    """Two kinds of layers with an embedding each, which are one only where base and type are. Fails
    where the note is not given, or keys that say something else are left in the file."""
    from transformers import GPTNeoXConfig, Olmo3Config

    tokenizer, layers = load_tokenizer(tiny), ["sliding_attention", "full_attention"]

    def config(full: dict[str, object], local: dict[str, object]) -> PreTrainedConfig:
        return Olmo3Config(
            **SHAPE,
            layer_types=layers,
            rope_parameters={"full_attention": full, "sliding_attention": local},
        )

    one, notes = version_4(config(FULL, {**LOCAL, "rope_theta": 7e5}), tmp_path / "one", tokenizer)
    assert notes == [] and one["rope_theta"] == 7e5 and one["rope_scaling"]["factor"] == 4.0
    for name, local in (("base", LOCAL), ("type", {**FULL, "factor": 2.0})):
        found, notes = version_4(config(FULL, local), tmp_path / name, tokenizer)
        assert len(notes) == 1 and "only transformers 5 reads" in notes[0]
        assert "rope_theta" not in found and "rope_scaling" not in found
    scaled = GPTNeoXConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "linear",
            "rope_theta": 5e4,
            "factor": 2.0,
            "partial_rotary_factor": 0.25,
        },
    )
    found, notes = version_4(
        scaled, tmp_path / "gpt_neox", tokenizer
    )  # version 5 itself would read the older keys first
    assert len(notes) == 1 and "rope_scaling" not in found


def test_the_config_of_an_export_is_the_model_s_own(tiny: Path, tmp_path: Path) -> None:
    """Fails where our attention's name, a cache that is off for training, or the source's EOS gets
    into it; where its architecture is lost, for which servers look; or where the policy that goes
    on training is changed."""
    policy, tokenizer = load_policy(tiny), load_tokenizer(tiny)
    policy.lm.config.use_cache = False
    before = policy.lm.config.to_dict()
    (tmp_path / "m").mkdir()
    save_config(tmp_path / "m", policy.lm.config, tokenizer, [2, 7])
    found = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (
        found["use_cache"] is True
        and found["eos_token_id"] == [2, 7]
        and found["bos_token_id"] == 1
    )
    assert found["architectures"] == ["MistralForCausalLM"] and "zephyr" not in json.dumps(found)
    assert policy.lm.config.to_dict() == before
    save_config(tmp_path / "m", policy.lm.config, tokenizer, [2])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["eos_token_id"] == 2


def test_a_tokenizer_is_written_for_both_versions(tiny: Path, tmp_path: Path) -> None:
    """Fails where version 4 finds a class that it has not, no extra tokens, or inputs that the
    model does not take; where the run's own tokenizer is left with the export's template; or where
    ids that come back others are not told."""
    tokenizer = load_tokenizer(tiny)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    own = tokenizer.chat_template
    assert save_tokenizer(tokenizer, tmp_path) == [] and tokenizer.chat_template == own
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast" and saved[
        "additional_special_tokens"
    ] == ["<|turn|>"]
    assert (
        "extra_special_tokens" not in saved
        and saved["model_input_names"] == tokenizer.model_input_names
    )
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        again.chat_template != own
        and again("a <|turn|>")["input_ids"] == tokenizer("a <|turn|>")["input_ids"]
    )
    note = save_tokenizer(Wrong(tokenizer), tmp_path)
    assert len(note) == 1 and "AutoTokenizer makes other ids than training did" in note[0]


class Wrong:
    """A tokenizer whose files give other ids than it does: as where AutoTokenizer takes another
    class for a type of model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.__dict__["of"] = tokenizer

    def __getattr__(self, name: str) -> object:
        return getattr(self.of, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.of, name, value)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*self.of(text)["input_ids"], 3]}


def test_an_export_is_whole_or_as_it_was(tiny: Path, tmp_path: Path) -> None:
    """What a killed export left is not in the next one; a rank that does not write runs through all
    parameters, for it gathers them; the model of an earlier end stays until the new one is whole.
    Fails where old shards lie beside new ones, or a rank stops early and the others wait."""
    policy, tokenizer, folder = load_policy(tiny), load_tokenizer(tiny), tmp_path / "model"
    named = [(name, p.detach()) for name, p in policy.lm.named_parameters()]
    sizes = [(name, p.nbytes) for name, p in named]

    def run(stream: Iterator[tuple[str, torch.Tensor]], writes: bool = True) -> list[str]:
        return export(
            folder,
            stream,
            sizes,
            policy.lm.config,
            tokenizer,
            "the card\n",
            writes=writes,
            notes=["trained on sums"],
        )

    gathered = iter(named)
    assert (
        run(gathered, writes=False) == []
        and next(gathered, None) is None
        and not list(tmp_path.iterdir())
    )
    for left in (folder, tmp_path / "model.part"):
        left.mkdir()
        (left / "model-00009-of-00009.safetensors").write_bytes(b"old")

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield named[0]
        raise BadInput("a rank was lost")

    with pytest.raises(BadInput):
        run(broken())
    assert [path.name for path in folder.iterdir()] == ["model-00009-of-00009.safetensors"]
    assert run(iter(named)) == ["trained on sums"]
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "README.md",
    } and not any("0000" in name for name in names)
    assert (folder / "README.md").read_text() == "the card\n\n> trained on sums\n" and not (
        tmp_path / "model.part"
    ).exists()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_index_of_shards_counts_their_bytes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a reader that plans by it, or looks a tensor up in it, is misled."""
    monkeypatch.setattr(exporting, "shard_names", lambda sizes: shard_names(sizes, 60_000))
    policy = load_policy(tiny)
    named = [(name, p.detach()) for name, p in policy.lm.named_parameters()]
    export(
        tmp_path / "m",
        iter(named),
        [(n, p.nbytes) for n, p in named],
        policy.lm.config,
        load_tokenizer(tiny),
        "",
        writes=True,
    )
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for _, p in named)
    for name, _ in named:
        with safe_open(tmp_path / "m" / index["weight_map"][name], framework="pt") as file:
            assert name in set(file.keys())
