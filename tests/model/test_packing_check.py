"""The proof that packing is right for a decoder sees faults, costs little, and leaves nothing
behind."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import (
    Gemma3Config,
    GemmaConfig,
    GPTJConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from zephyr.model import packing_check, policy
from zephyr.model.logprobs import LogProbHead
from zephyr.model.packing_check import require_packable

RECIPE = MistralConfig()  # 7 B parameters, 32 layers, a window of 4096
VALUES = RECIPE.to_json_string(use_diff=False)
Patch = Callable[[pytest.MonkeyPatch], None]


def no_window(patch: pytest.MonkeyPatch) -> None:
    attend = packing_check.kernels.attend
    patch.setattr(
        packing_check.kernels,
        "attend",
        lambda *given, sliding_window=None, **more: attend(*given, **more),
    )


def wrong_window(patch: pytest.MonkeyPatch) -> None:
    attend = packing_check.kernels.attend
    patch.setattr(
        packing_check.kernels,
        "attend",
        lambda *given, sliding_window, **more: attend(
            *given, sliding_window=sliding_window + 1, **more
        ),
    )


def one_long_sequence(patch: pytest.MonkeyPatch) -> None:
    def joined(
        kernel: object, module: nn.Module, *given: object, layout: object, **more: object
    ) -> object:
        tokens = sum(layout.query_lengths)
        return attend(
            kernel,
            module,
            *given,
            layout=replace(layout, query_lengths=(tokens,), key_lengths=(tokens,), appended_A=None),
            **more,
        )

    attend = packing_check.kernels.attend
    patch.setattr(packing_check.kernels, "attend", joined)


def positions_of_the_row(patch: pytest.MonkeyPatch) -> None:
    collate = packing_check.collate_pairs
    patch.setattr(
        packing_check,
        "collate_pairs",
        lambda *given: (
            batch := collate(*given),
            replace(batch, positions_N=torch.arange(len(batch.tokens_N))),
        )[1],
    )


def last_layer_skips(patch: pytest.MonkeyPatch) -> None:
    def skipped(
        kernel: object, module: nn.Module, query: torch.Tensor, *given: object, **more: object
    ) -> object:
        return (
            (query.transpose(1, 2), None)
            if module.layer_idx == 31
            else attend(kernel, module, query, *given, **more)
        )

    attend = packing_check.kernels.attend
    patch.setattr(packing_check.kernels, "attend", skipped)


def scaled_logits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        policy.LogProbHead,
        "from_linear",
        lambda linear, factor: LogProbHead.__dict__["from_linear"].__func__(
            LogProbHead, linear, 1.01
        ),
    )


def faint_leak(patch: pytest.MonkeyPatch) -> None:
    """1e-6 of the row's mean in every layer: log-probs can't show it, a gradient can."""
    attend = packing_check.kernels.attend

    def leaking(*given: object, **more: object) -> object:
        output = attend(*given, **more)[0]
        return output + 1e-6 * output.mean(1, keepdim=True), None

    patch.setattr(packing_check.kernels, "attend", leaking)


@pytest.mark.parametrize(
    "fault",
    [
        no_window,
        wrong_window,
        one_long_sequence,
        positions_of_the_row,
        last_layer_skips,
        scaled_logits,
        faint_leak,
    ],
)
def test_faults_are_seen(fault: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault in what computes the twin makes it unproven; without one it is proven. Fails where
    the proof compares too little."""
    unproven = partial(packing_check.unpackable_reason.__wrapped__, MistralConfig, VALUES)
    assert unproven() is None
    fault(monkeypatch)
    assert unproven()


@pytest.mark.parametrize(
    "config,reason",
    [
        (MistralConfig(attention_dropout=0.1), "dropout"),
        (
            Qwen3Config(layer_types=["full_attention"] * 30 + ["linear_attention"] * 2),
            "2 of its 32 layers are linear_attention",
        ),
        (GptOssConfig(), "mixture of experts .GptOssExperts. needs an auxiliary loss"),
        (Gemma3Config(), "more than a text decoder .text_config, vision_config."),
        (
            GPTJConfig(n_layer=2, rotary_dim=8, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0),
            "does not go through transformers' attention interface"
            if Version(transformers.__version__) < Version("5.24")
            else "the output layer has a bias",
        ),
    ],
    ids=["dropout", "layers", "experts", "images", "interface"],
)
def test_reasons_are_told(config: PreTrainedConfig, reason: str) -> None:
    """Fails where a decoder is refused, or taken, for another reason than the one that holds."""
    with pytest.raises(ValueError, match=reason):
        require_packable(config)


def test_the_proof_leaves_no_trace_and_is_cheap() -> None:
    """The recipe's 7 B model: neither random state, default device, nor config changes, the twin is
    small, and a second call costs nothing. Fails where a run's seeds depend on the proof, or
    loading a model on it."""
    packing_check.unpackable_reason.cache_clear()
    torch.manual_seed(1234)  # not the state in which an earlier proof would have left it
    before, states = (
        RECIPE.to_dict(),
        (torch.get_rng_state(), random.getstate(), str(np.random.get_state())),
    )
    start = time.process_time()
    require_packable(RECIPE)
    assert time.process_time() - start < 10  # 0.4 s where nothing else runs
    start = time.process_time()
    require_packable(RECIPE)
    assert time.process_time() - start < 0.1
    assert RECIPE.to_dict() == before and torch.empty(0).device.type == "cpu"
    assert (
        torch.equal(torch.get_rng_state(), states[0])
        and (random.getstate(), str(np.random.get_state())) == states[1:]
    )
    twin = MistralConfig.from_dict(packing_check.shrink_config(MistralConfig, json.loads(VALUES)))
    assert twin.num_hidden_layers == 32 and twin.sliding_window < packing_check.LONGEST
    with torch.device("meta"):
        assert sum(p.numel() for p in policy.build(twin, "eager", torch.float32).parameters()) < 2e6


def test_a_length_under_an_unknown_name_is_refused() -> None:
    """A window of a class of its own would not bind in a twin of 28 tokens. Fails where such a key
    is passed over."""

    class Windowed(MistralConfig):
        def __init__(self, own_window: int = 512, **given: object) -> None:
            super().__init__(**given)
            self.own_window = own_window

    config = MistralConfig.from_dict(packing_check.shrink_config(MistralConfig, json.loads(VALUES)))
    assert packing_check.unscaled_key(config) is None
    assert (
        packing_check.unscaled_key(Windowed(**{**config.to_dict(), "own_window": 512}))
        == "own_window=512"
    )
    assert packing_check.unscaled_key(Windowed(**{**config.to_dict(), "own_window": 8})) is None


def twin(config: PreTrainedConfig) -> dict[str, object]:
    """The values of a config's twin."""
    return packing_check.shrink_config(type(config), json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize("keys,small", [(32, 4), (8, 2), (1, 1)], ids=["all", "grouped", "one"])
def test_a_twin_shares_keys_as_its_model_does(keys: int, small: int) -> None:
    """Fails where a model with a key for each query head, or one for all, is tried as if its heads
    were grouped: a kernel that repeats keys wrongly would pass for it."""
    found = twin(MistralConfig(num_key_value_heads=keys))
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (4, small)


def test_a_twins_heads_fill_its_hidden_size_only_where_its_models_do() -> None:
    """Gemma 7B: 16 heads of 256 beside a hidden size of 3072. Fails where a projection that is
    square by chance hides a wrong one."""
    assert twin(RECIPE)["hidden_size"] == 4 * 16
    gemma = twin(GemmaConfig(hidden_size=3072, num_attention_heads=16, head_dim=256))
    assert gemma["head_dim"] == 16 and gemma["hidden_size"] == 4 * 16 + 16
    assert twin(GemmaConfig(hidden_size=64, num_attention_heads=8, head_dim=8))["head_dim"] == 8


def test_a_twin_goes_beyond_what_its_model_was_pretrained_on() -> None:
    """Rotary embeddings that grow start at 8 tokens, and reach as many times further as the
    model's: the longest pair has 28. Fails where the frequencies of a longer sequence are never
    tried, or a model without such is made one."""
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = twin(LlamaConfig(max_position_embeddings=131072, rope_parameters=llama3))
    assert found["rope_parameters"]["original_max_position_embeddings"] == 8 < packing_check.LONGEST
    assert found["max_position_embeddings"] == 8 * 16
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert (
        twin(LlamaConfig(max_position_embeddings=4096, rope_parameters=dynamic))[
            "max_position_embeddings"
        ]
        == 8
    )
    assert twin(LlamaConfig(max_position_embeddings=4096))["max_position_embeddings"] == 64


def test_a_twin_has_a_factor_for_each_of_its_frequencies() -> None:
    """Longrope: 48 factors for heads of 96, 8 for the twin's 16, from the whole range. Fails where
    the first few, which are all about 1, stand for all; or where a list that is no such is cut."""
    longrope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 48,
        "long_factor": [float(i) for i in range(48)],
    }
    found = twin(Phi3Config(rope_parameters=longrope, original_max_position_embeddings=4096))
    assert found["rope_parameters"]["long_factor"] == [0, 6, 12, 18, 24, 30, 36, 42]
    assert found["rope_parameters"]["short_factor"] == [1.0] * 8
    assert len(twin(Qwen3Config())["layer_types"]) == Qwen3Config().num_hidden_layers


def test_a_twins_special_tokens_are_in_its_vocabulary() -> None:
    """A padding token beyond the 96 words of a twin would end it with an error; none, and -1, which
    some classes have for none, stay. Fails where a decoder is refused for its padding."""
    found = twin(LlamaConfig(bos_token_id=128000, eos_token_id=[128001, 128009], pad_token_id=-1))
    assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (1, 1, -1)
    assert twin(LlamaConfig(pad_token_id=None))["pad_token_id"] is None
    require_packable(LlamaConfig(num_hidden_layers=2, pad_token_id=128000, vocab_size=128256))


def test_what_a_decoder_is_made_of_can_refuse_it() -> None:
    """Fails where what is neither loaded nor trained would be left as it was made, or a twin too
    large for the start of a run is computed."""
    config = MistralConfig.from_dict(twin(RECIPE))
    module = nn.Module()
    module.register_buffer("cache", torch.ones(2), persistent=False)
    assert packing_check.unsupported_reason(module, config) is None
    module.register_buffer("table", torch.ones(2))
    assert "its weights hold buffers (table)" in packing_check.unsupported_reason(module, config)
    half, whole = (nn.Linear(2**12, size, bias=False, device="meta") for size in (2**13, 2**13 + 1))
    assert packing_check.unsupported_reason(half, config) is None
    assert "no twin of it is small enough" in packing_check.unsupported_reason(whole, config)


def test_a_number_that_the_class_does_not_know_is_no_length() -> None:
    """Hub configs hold notes of their makers. Fails where one of them refuses a model."""
    assert (
        packing_check.unscaled_key(MistralConfig.from_dict({**twin(RECIPE), "tokens_seen": 10**6}))
        is None
    )


def unproven_with(patch: pytest.MonkeyPatch, change: Callable[[nn.Module], None]) -> str | None:
    """The reason for a twin of two layers whose packed side was changed after it was built."""
    build = packing_check.build

    def built(*given: object) -> nn.Module:
        lm = build(*given)
        change(lm)
        return lm

    patch.setattr(packing_check, "build", built)
    return packing_check.unpackable_reason.__wrapped__(
        MistralConfig, MistralConfig(num_hidden_layers=2).to_json_string(use_diff=False)
    )


def test_attention_is_called_once_in_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that attends twice gives the same numbers here. Fails where calls that are too many
    are no reason: what is kept of the first one, in training, nothing has tried."""

    def twice(lm: nn.Module) -> None:
        attention = lm.model.layers[0].self_attn
        once = attention.forward
        attention.forward = lambda *given, **more: (once(*given, **more), once(*given, **more))[1]

    assert "the attention of a packed row 3 times in 2 layers" in unproven_with(monkeypatch, twice)


def test_what_is_no_number_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a NaN, which is not above the tolerance, passes for a difference of nothing."""

    def nan(lm: nn.Module) -> None:
        lm.model.norm.register_forward_hook(lambda *hooked: hooked[-1] * torch.nan)

    assert "differ from those of its unpacked sequences, by nan nats" in unproven_with(
        monkeypatch, nan
    )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 512,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_frequencies_that_grow_are_tried_as_a_run_has_them(rope: dict[str, object]) -> None:
    """Those of the longest sequence, in packed rows and alone. Fails where such a decoder is
    refused, since the short pair alone gets others."""
    require_packable(
        LlamaConfig(
            hidden_size=64,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=1024,
            rope_parameters=rope,
        )
    )
