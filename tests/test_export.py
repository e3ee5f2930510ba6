"""Export in shards, generation through the template, and records for wandb without a login."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, MistralConfig, pipeline
from transformers.utils.chat_template_utils import Chat

from zephyr.chat import encode_prompt
from zephyr.config import Data, DPOConfig, SFTConfig, SFTData, SFTRun, Wandb
from zephyr.data import load_tokenizer
from zephyr.model import export as exporting
from zephyr.model.export import export, shard_names
from zephyr.model.generate import generate
from zephyr.model.load import digest, load_policy
from zephyr.report import card
from zephyr.report.finish import rotary_notes
from zephyr.training.metrics import Recorder


def test_shards_keep_order_and_size() -> None:
    """Fails where a shard exceeds its size, a tensor is lost, or one too large alone breaks the naming."""
    assert shard_names([("a", 3), ("b", 4)], 10) == {"a": "model.safetensors", "b": "model.safetensors"}
    names = shard_names([("a", 6), ("b", 4), ("c", 1), ("d", 20), ("e", 1)], 10)
    assert [n.split("-")[1] for n in names.values()] == ["00001", "00001", "00002", "00003", "00004"]
    assert {n.split("-")[3] for n in names.values()} == {"00004.safetensors"}


def test_export_in_many_shards_holds_one_at_a_time(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model comes back the same to the bit, through our loader and transformers'; while it is written, no more than a
    shard is alive. Fails where shards pile up, or an index misses a tensor."""
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
    export(folder, stream(), sizes, policy.lm.config, load_tokenizer(tiny), card(config, {}), writes=True)
    assert len(list(folder.glob("*.safetensors"))) > 3 and max(held) <= 60_000 + 2 * max(size for _, size in sizes)
    assert digest(folder) == digest(export_once(tiny, tmp_path, config))
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.lm.parameters()))
    assert not list(tmp_path.glob("model.*"))


def export_once(tiny: Path, tmp_path: Path, config: DPOConfig) -> Path:
    policy = load_policy(tiny)
    named = [(name, p.detach()) for name, p in policy.lm.named_parameters()]
    export(tmp_path / "one", iter(named), [(n, p.nbytes) for n, p in named], policy.lm.config, load_tokenizer(tiny),
           card(config, {}), writes=True)
    return tmp_path / "one"


def test_the_article_s_snippet_works_on_an_exported_folder(finished: Path) -> None:
    """Word for word, but for the folder; messages themselves give the ids of training. Fails where the folder lacks template, generation
    config or anything that `pipeline` takes, or a chat is rendered without the BOS of training, as servers render it."""
    pipe = pipeline("text-generation", model=str(finished / "run" / "model"), torch_dtype=torch.bfloat16, device_map="auto")
    messages = [
        {
            "role": "system",
            "content": "You are a friendly chatbot who always responds in the style of a pirate",
        },
        {"role": "user", "content": "How many helicopters can a human eat in one sitting?"},
    ]
    prompt = pipe.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    outputs = pipe(prompt, max_new_tokens=256, do_sample=True, temperature=0.7, top_k=50, top_p=0.95)
    assert prompt == ("<s><|system|>\nYou are a friendly chatbot who always responds in the style of a pirate</s>\n"
                      "<|user|>\nHow many helicopters can a human eat in one sitting?</s>\n<|assistant|>\n")
    trained = encode_prompt(load_tokenizer(yaml.safe_load((finished / "config.yaml").read_text())["model"]), messages)
    assert pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == trained
    assert pipe.preprocess(Chat(messages))["input_ids"][0].tolist() == trained
    assert outputs[0]["generated_text"].startswith(prompt) and len(outputs[0]["generated_text"]) > len(prompt)
    assert pipe.model.dtype == torch.bfloat16 and pipe.model.generation_config.eos_token_id == pipe.tokenizer.eos_token_id


def test_the_card_of_a_run_is_in_the_hub_s_format(finished: Path) -> None:
    """The Hub's own reader takes the header, where no local path stands; below are digests, config and the last evaluation. Fails where
    the numbers are of another step, or a path that the Hub refuses gets in."""
    text = (finished / "run" / "model" / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["zephyr", "dpo"]}
    last = [record for line in (finished / "run" / "metrics.jsonl").read_text().splitlines() if (record := json.loads(line))["split"] == "eval"][-1]
    assert last["step"] == 6 and all(f"| {name} | {last[name]:.6g} |" in text for name in ("step", "loss", "rewards/accuracies", "pairs"))
    weights = digest(yaml.safe_load((finished / "config.yaml").read_text())["model"])
    assert f"- model: `{weights}`" in text and "- data: `" in text and "- reference: `" in text and (finished / "run" / "config.yaml").read_text() in text


def test_the_card_names_hub_ids_and_no_paths(tmp_path: Path) -> None:
    """Fails where a split stays in a dataset's name, a folder passes for a hub id, or a run without evaluation has no card."""
    config = SFTConfig(model="mistralai/Mistral-7B-v0.1", run=SFTRun(dir=str(tmp_path)),
                       data=SFTData(train=("HuggingFaceH4/ultrachat_200k:train_sft", "runs/tiny/dialogues.jsonl", "tests/real")))
    text = card(config, {"data": "0" * 64})
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "mistralai/Mistral-7B-v0.1" and data["datasets"] == ["HuggingFaceH4/ultrachat_200k"] and data["tags"][1] == "sft"
    assert "license" not in data and "Evaluation" not in text and f"- data: `{'0' * 64}`" in text


def test_generation_continues_training_ids_and_keeps_the_order(tiny: Path) -> None:
    """Batched with padding, each answer is the one of its prompt alone. Fails where padding is attended, answers come back
    in the order of length, or the prompt's ids are not those of training."""
    lm, tokenizer = load_policy(tiny).lm, load_tokenizer(tiny)
    prompts = [[{"role": "user", "content": text}] for text in ("What colour is the sky in the morning and at night?", "Hi", "How are you?")]
    together = generate(lm, tokenizer, prompts, max_new_tokens=8)
    assert together == [generate(lm, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    ids = encode_prompt(tokenizer, prompts[0])
    output = AutoModelForCausalLM.from_pretrained(tiny).generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False,
                                                                 pad_token_id=2, attention_mask=torch.ones(1, len(ids)))
    assert together[0] == tokenizer.decode(output[0, len(ids):], skip_special_tokens=True) and together[0]
    sampled = [generate(lm, tokenizer, prompts, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(ValueError, match="positions"):
        generate(lm, tokenizer, prompts, max_new_tokens=10**6)


def test_wandb_offline_needs_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default mode writes a run folder of wandb's without a key or a question. Fails where it would ask or upload."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    recorder = Recorder(tmp_path, Wandb(), "model: m", first_step=0, steps=1, active=True)
    recorder.write({"step": 0, "split": "train", "loss": 0.5}, {})
    recorder.advance()
    recorder.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "split": "train", "loss": 0.5}


def test_an_export_says_whose_rotary_frequencies_it_was_trained_with() -> None:
    """Frequencies fixed beyond those of pretraining are not what transformers takes for a short sequence. Fails where the card
    of such a model is silent, or one of another model is not."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

    def engine(longest: int | None, settings: dict[str, object]) -> SimpleNamespace:
        config = MistralConfig(max_position_embeddings=32, rope_parameters=settings)
        return SimpleNamespace(policy=SimpleNamespace(longest=longest, lm=SimpleNamespace(config=config)))
    (note,) = rotary_notes(engine(64, rope))
    assert "of one of 64 tokens" in note and "up to 32 tokens" in note
    assert not rotary_notes(engine(32, rope)) and not rotary_notes(engine(None, {"rope_type": "default", "rope_theta": 10000.0}))
