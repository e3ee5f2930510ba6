"""A tiny random decoder with its own small tokenizer, saved as a Hugging Face folder: what every
test without real weights runs on."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

SENTENCES = (
    "The river runs past the old mill and under the stone bridge.",
    "What colour is the sky? The sky is blue in the morning and red at night.",
    "Please write a short letter to a friend who lives near the sea.",
    "There are seven days in a week and twelve months in a year.",
    "I think the answer is four, because two and two make four.",
    "A good answer is short, true and polite; a bad answer is none of these.",
    "<|user|>\nHow are you?\n<|assistant|>\nThank you, I am well.\n<|system|>\nYou are kind.",
)
VOCAB_SIZE = 384  # 3 special tokens, 256 bytes, 125 merges: every text can be encoded
HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 16, 2  # 16: the flash kernels want a multiple of 8


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `SENTENCES`: <unk> 0, <s> 1, </s> 2; `tokenizer(text)`
    puts <s> first, as Mistral's does."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def tiny_config(family: str, *, tied: bool, sliding_window: int | None) -> PretrainedConfig:
    """Two layers, hidden 64, 4 query heads on 2 key/value heads. Raises: ValueError for an unknown
    family, or a window on Llama."""
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "llama":
        if sliding_window is not None:
            raise ValueError("Llama has no sliding window")
        return LlamaConfig(**shape)
    if family == "mistral":
        return MistralConfig(**shape, sliding_window=sliding_window)
    if family in ("qwen2", "qwen3"):
        shape |= {
            "use_sliding_window": sliding_window is not None,
            "sliding_window": sliding_window,
        }
        shape |= {"max_window_layers": 0}  # the window, where there is one, holds in every layer
        return (
            Qwen2Config(**shape) if family == "qwen2" else Qwen3Config(**shape, head_dim=HEAD_DIM)
        )
    raise ValueError(f"family must be mistral, llama, qwen2 or qwen3, got {family!r}")


def tiny_model(
    folder: Path | str,
    *,
    family: str = "mistral",
    tied: bool = False,
    sliding_window: int | None = None,
    seed: int = 0,
) -> Path:
    """Save a random fp32 model and its tokenizer into `folder`, which is returned.

    All weights are drawn with standard deviation 0.1 around their usual centre (norm gains around
    1, biases around 0): with the default 0.02 the logits of so small a model are almost flat, and a
    wrong attention mask would hide in rounding. The global random state is left as it was.
    """
    config = tiny_config(family, tied=tied, sliding_window=sliding_window)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in lm.parameters():
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.1)
    folder = Path(folder)
    lm.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
