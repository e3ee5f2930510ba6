"""The real pretrained model stories260K (a grouped-query Llama of llama2.c) as a Hugging Face
Mistral folder."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from zephyr.data.tokenizer import load_tokenizer

UNKNOWN, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3


class Shape(NamedTuple):
    """The header of the file."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int


def convert(weights: Path, vocabulary: Path, folder: Path) -> Path:
    """Writes config, safetensors and tokenizer of a Mistral to `folder`, and returns it."""
    data = weights.read_bytes()
    shape = Shape(*struct.unpack("<7i", data[:28]))
    config = MistralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = MistralForCausalLM(config).float()
    missing, unexpected = model.load_state_dict(
        tensors(np.frombuffer(data, "<f4", offset=28), shape), strict=False
    )
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocabulary))
    load_tokenizer(folder).save_pretrained(folder)
    return folder


def tensors(floats: np.ndarray, shape: Shape) -> dict[str, Tensor]:
    """The file's arrays under Hugging Face's names; queries and keys from RoPE on neighbours to
    halves."""
    kv_width = shape.hidden * shape.kv_heads // shape.heads
    at = 0

    def take(*dims: int) -> Tensor:
        nonlocal at
        array = floats[at : at + int(np.prod(dims))].reshape(dims)
        at += array.size
        return torch.from_numpy(array.copy())

    state = {"model.embed_tokens.weight": take(shape.vocabulary, shape.hidden)}
    blocks = {
        "input_layernorm": take(shape.layers, shape.hidden),
        "self_attn.q_proj": take(shape.layers, shape.hidden, shape.hidden),
        "self_attn.k_proj": take(shape.layers, kv_width, shape.hidden),
        "self_attn.v_proj": take(shape.layers, kv_width, shape.hidden),
        "self_attn.o_proj": take(shape.layers, shape.hidden, shape.hidden),
        "post_attention_layernorm": take(shape.layers, shape.hidden),
        "mlp.gate_proj": take(shape.layers, shape.intermediate, shape.hidden),
        "mlp.down_proj": take(shape.layers, shape.hidden, shape.intermediate),
        "mlp.up_proj": take(shape.layers, shape.intermediate, shape.hidden),
    }
    state["model.norm.weight"] = take(shape.hidden)
    for name, stacked in blocks.items():
        for layer in range(shape.layers):
            weight = stacked[layer]
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = halves(weight, shape.heads if "q_proj" in name else shape.kv_heads)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    return state


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from (0, 1), (2, 3), ... to all first elements, then all second ones."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def read_vocabulary(path: Path) -> list[tuple[float, bytes]]:
    """Score and bytes of each token: int32 longest, then float32 score, int32 length, bytes."""
    data, at, tokens = path.read_bytes(), 4, []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        tokens.append((score, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return tokens


def sentencepiece_model(path: Path) -> bytes:
    """The vocabulary as a bare SentencePiece `tokenizer.model`, as Mistral's comes."""
    proto = sentencepiece_model_pb2.ModelProto()
    piece = sentencepiece_model_pb2.ModelProto.SentencePiece
    for i, (score, name) in enumerate(read_vocabulary(path)):
        if i < FIRST_BYTE:
            text, kind = (
                ("<unk>", "<s>", "</s>")[i],
                piece.UNKNOWN if i == UNKNOWN else piece.CONTROL,
            )
        elif i < FIRST_BYTE + 256:
            text, kind = f"<0x{i - FIRST_BYTE:02X}>", piece.BYTE
        else:
            text, kind = name.decode("utf-8").replace(" ", "\u2581"), piece.NORMAL
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def greedy_merge(text: str, vocabulary: list[tuple[float, bytes]]) -> list[int]:
    """llama2.c's encoding, step by step: characters (or bytes), then the pair of best score until
    none is left."""
    ids_of = {name: i for i, (_, name) in enumerate(vocabulary)}
    ids = [BOS, ids_of[b" "]] if text else [BOS]
    for character in text:
        raw = character.encode("utf-8")
        ids += [ids_of[raw]] if raw in ids_of else [byte + FIRST_BYTE for byte in raw]
    while True:
        best, where = -1e10, None
        for i in range(len(ids) - 1):
            merged = ids_of.get(vocabulary[ids[i]][1] + vocabulary[ids[i + 1]][1])
            if merged is not None and vocabulary[merged][0] > best:
                best, where = vocabulary[merged][0], (i, merged)
        if where is None:
            return ids
        ids[where[0] : where[0] + 2] = [where[1]]
