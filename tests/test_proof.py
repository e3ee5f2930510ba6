"""The proof that packing is right for a decoder sees faults, costs little, and leaves nothing behind."""
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GptOssConfig, MistralConfig, PreTrainedConfig, Qwen3Config

from zephyr.model import policy, proof
from zephyr.model.logprobs import LogProbHead
from zephyr.model.proof import require_proven

RECIPE = MistralConfig()                            # 7 B parameters, 32 layers, a window of 4096
VALUES = RECIPE.to_json_string(use_diff=False)
Patch = Callable[[pytest.MonkeyPatch], None]


def no_window(patch: pytest.MonkeyPatch) -> None:
    attend = proof.kernels.attend
    patch.setattr(proof.kernels, "attend", lambda *given, sliding_window=None, **more: attend(*given, **more))


def wrong_window(patch: pytest.MonkeyPatch) -> None:
    attend = proof.kernels.attend
    patch.setattr(proof.kernels, "attend", lambda *given, sliding_window, **more: attend(*given, sliding_window=sliding_window + 1, **more))


def one_long_sequence(patch: pytest.MonkeyPatch) -> None:
    def joined(kernel: object, module: nn.Module, *given: object, layout: object, **more: object) -> object:
        tokens = sum(layout.query_lengths)
        return attend(kernel, module, *given, layout=replace(layout, query_lengths=(tokens,), key_lengths=(tokens,), appended_M=None), **more)
    attend = proof.kernels.attend
    patch.setattr(proof.kernels, "attend", joined)


def positions_of_the_row(patch: pytest.MonkeyPatch) -> None:
    collate = proof.collate_pairs
    patch.setattr(proof, "collate_pairs", lambda *given: (
        batch := collate(*given), replace(batch, positions_N=torch.arange(len(batch.tokens_N))))[1])


def last_layer_skips(patch: pytest.MonkeyPatch) -> None:
    def skipped(kernel: object, module: nn.Module, query: torch.Tensor, *given: object, **more: object) -> object:
        return (query.transpose(1, 2), None) if module.layer_idx == 31 else attend(kernel, module, query, *given, **more)
    attend = proof.kernels.attend
    patch.setattr(proof.kernels, "attend", skipped)


def scaled_logits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy.LogProbHead, "replacing", lambda linear, factor: LogProbHead.__dict__["replacing"].__func__(LogProbHead, linear, 1.01))


def faint_leak(patch: pytest.MonkeyPatch) -> None:
    """1e-6 of the row's mean in every layer: log-probs can't show it, a gradient can."""
    attend = proof.kernels.attend

    def leaking(*given: object, **more: object) -> object:
        output = attend(*given, **more)[0]
        return output + 1e-6 * output.mean(1, keepdim=True), None
    patch.setattr(proof.kernels, "attend", leaking)


@pytest.mark.parametrize("fault", [no_window, wrong_window, one_long_sequence, positions_of_the_row, last_layer_skips, scaled_logits, faint_leak])
def test_faults_are_seen(fault: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault in what computes the twin makes it unproven; without one it is proven. Fails where the proof compares too little."""
    unproven = partial(proof.unproven.__wrapped__, MistralConfig, VALUES)
    assert unproven() is None
    fault(monkeypatch)
    assert unproven()


@pytest.mark.parametrize("config,reason", [
    (MistralConfig(attention_dropout=0.1), "dropout"),
    (Qwen3Config(layer_types=["full_attention"] * 30 + ["linear_attention"] * 2), "2 of its 32 layers are linear_attention"),
    (GptOssConfig(), "mixture of experts .GptOssExperts., whose auxiliary loss")], ids=["dropout", "layers", "experts"])
def test_reasons_are_told(config: PreTrainedConfig, reason: str) -> None:
    """Fails where a decoder is refused, or taken, for another reason than the one that holds."""
    with pytest.raises(ValueError, match=reason):
        require_proven(config)


def test_the_proof_leaves_no_trace_and_is_cheap() -> None:
    """The recipe's 7 B model: neither random state, default device, nor config changes, the twin is small, and a second
    call costs nothing. Fails where a run's seeds depend on the proof, or loading a model on it."""
    proof.unproven.cache_clear()
    torch.manual_seed(1234)                         # not the state in which an earlier proof would have left it
    before, states = RECIPE.to_dict(), (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    start = time.process_time()
    require_proven(RECIPE)
    assert time.process_time() - start < 10         # 0.4 s where nothing else runs
    start = time.process_time()
    require_proven(RECIPE)
    assert time.process_time() - start < 0.1
    assert RECIPE.to_dict() == before and torch.empty(0).device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), states[0]) and (random.getstate(), str(np.random.get_state())) == states[1:]
    twin = MistralConfig.from_dict(proof.shrunk(MistralConfig, json.loads(VALUES)))
    assert twin.num_hidden_layers == 32 and twin.sliding_window < proof.LONGEST
    with torch.device("meta"):
        assert sum(p.numel() for p in policy.build(twin, "eager", torch.float32).parameters()) < 2e6


def test_a_length_under_an_unknown_name_is_refused() -> None:
    """A window of a class of its own would not bind in a twin of 28 tokens. Fails where such a key is passed over."""
    class Windowed(MistralConfig):
        def __init__(self, own_window: int = 512, **given: object) -> None:
            super().__init__(**given)
            self.own_window = own_window

    config = MistralConfig.from_dict(proof.shrunk(MistralConfig, json.loads(VALUES)))
    assert proof.unscaled(config) is None
    assert proof.unscaled(Windowed(**{**config.to_dict(), "own_window": 512})) == "own_window=512"
    assert proof.unscaled(Windowed(**{**config.to_dict(), "own_window": 8})) is None
