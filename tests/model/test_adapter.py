"""Adapters beside frozen layers: what they compute, how they start, and what a folder of them is to
others and to us."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import padded_logprobs, random_pairs
from tiny import tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from zephyr.config import Adapter, BadInput, ConfigError
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model import adapter as adapters
from zephyr.model.adapter_files import read_adapter, write_adapter
from zephyr.model.export import export
from zephyr.model.fused import fusible
from zephyr.model.load import digest, load_policy, read_config
from zephyr.model.logprobs import response_logprobs
from zephyr.model.nf4 import WEIGHT_BYTES, Nf4Linear
from zephyr.model.policy import Policy
from zephyr.packing import collate_pairs

LORA = Adapter(r=4, alpha=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("adapter") / "base")


def trained(base: Path, adapter: Adapter = LORA, dtype: torch.dtype = torch.float32) -> Policy:
    """A policy whose B are no longer zero."""
    policy = load_policy(base, adapter=adapter, dtype=dtype, seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.lm.named_parameters():
        if ".lora_B." in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data.copy_(values)
    return policy


def write_both(policy: Policy, base: Path, folder: Path, adapter: Adapter = LORA) -> None:
    """`adapter/` and `model/` of a policy, as the end of a run writes them."""

    def whole(tensors: object) -> dict[str, Tensor]:
        return {t.name: t.combine([p.detach() for p in t.parameters]) for t in tensors}

    (folder / "adapter").mkdir(parents=True)
    named = whole(adapters.adapter_parameters(policy.lm))
    ends = adapters.target_ends(policy.lm)
    write_adapter(folder / "adapter", named, adapter, ends, str(base))
    tensors = list(adapters.exported(policy.lm))
    merged = whole(tensors)
    sizes = [(tensor.name, tensor.bytes) for tensor in tensors]
    assert sizes == [(name, tensor.nbytes) for name, tensor in merged.items()]
    tokenizer = load_tokenizer(base)
    config = policy.lm.config
    export(folder / "model", iter(merged.items()), sizes, config, tokenizer, "card", writes=True)


def scores(policy: Policy) -> Tensor:
    """log p of the responses of a few pairs, [2, P]."""
    pairs = random_pairs(policy.lm.config.vocab_size)
    with torch.no_grad():
        return torch.stack(response_logprobs(policy, collate_pairs(pairs, range(len(pairs)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unmerged_merged_and_reloaded_agree(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Fails where the scale, the names or the order of A and B differ from peft's, or a merge loses
    a layer: each of five ways to read a trained adapter gives its log-probs."""
    from peft import PeftModel

    policy = trained(base, dtype=dtype)
    write_both(policy, base, tmp_path)
    ours = scores(policy)
    pairs = random_pairs(policy.lm.config.vocab_size)

    def plain(dtype: torch.dtype) -> nn.Module:
        lm = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        return PeftModel.from_pretrained(lm, tmp_path / "adapter", autocast_adapter_dtype=False)

    with torch.no_grad():
        peft, wide = (
            torch.stack(padded_logprobs(plain(of), pairs)) for of in (dtype, torch.float32)
        )
        merged = plain(dtype).merge_and_unload()
        theirs = torch.stack(padded_logprobs(merged, pairs))
    found = {
        "unmerged": ours,
        "merged": scores(load_policy(tmp_path / "model", dtype=dtype)),
        "adapter": scores(load_policy(tmp_path / "adapter", dtype=dtype)),
    }
    if dtype == torch.float32:
        for name, values in found.items():
            torch.testing.assert_close(values, peft, rtol=2e-5, atol=1e-4, msg=name)
        assert torch.equal(found["merged"], found["adapter"])
    else:  # at most twice what rounding makes of peft's own ways
        allowed = 2 * max((peft - wide).abs().max(), (theirs - wide).abs().max())
        for name, values in found.items():
            assert (values - wide).abs().max() <= allowed, name
    assert (ours - scores(load_policy(base, dtype=dtype))).abs().mean() > 0.5


def test_a_new_adapter_changes_nothing(base: Path, tmp_path: Path) -> None:
    """Fails where a policy with new adapters is not its reference to the bit, also one that starts
    from a trained adapter, whose start is the merged model and never the bare base."""
    assert torch.equal(scores(load_policy(base, adapter=LORA)), scores(load_policy(base)))
    write_both(trained(base), base, tmp_path)
    again = load_policy(tmp_path / "adapter", adapter=LORA)
    assert torch.equal(scores(again), scores(load_policy(tmp_path / "model")))
    assert not torch.allclose(scores(again), scores(load_policy(base)))


def test_a_digest_covers_base_and_adapter(base: Path, tmp_path: Path) -> None:
    """Fails where a run could go on from another base, adapter or scale under the same digest."""
    policy = trained(base)
    write_both(policy, base, tmp_path / "a")
    write_both(policy, base, tmp_path / "scale", Adapter(r=4, alpha=16))
    other = tiny_model(tmp_path / "other", seed=1)
    write_both(policy, other, tmp_path / "b")
    folders = [tmp_path / name / "adapter" for name in ("a", "scale", "b")]
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    folders.append(tmp_path / "edited" / "adapter")
    write_both(policy, base, tmp_path / "edited")
    name = next(name for name in tensors if ".lora_A." in name)
    tensors[name][0, 0] += 1
    save_file(tensors, folders[-1] / "adapter_model.safetensors")
    found = [digest(folder) for folder in (*folders, base, tmp_path / "a" / "model")]
    assert len(set(found)) == len(found)
    write_both(policy, base, tmp_path / "same")
    assert digest(tmp_path / "same" / "adapter") == found[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not read here"),
        ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save=\['embed_tokens'\] is not read"),
        ({"bias": "all"}, "bias='all' is not read"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected LORA"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow=1 is not read"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({"base_model_name_or_path": "/nowhere"}, "model /nowhere: no such folder"),
        ({"r": 0}, "can be read: ZeroDivisionError"),
    ],
)
def test_adapters_of_other_kinds_are_named(
    base: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """Fails where a part of an adapter is left out in silence, so that another model is trained."""
    write_both(trained(base), base, tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BadInput, match=message):
        read_config(tmp_path / "adapter")


def test_tensors_that_do_not_fit_are_named(base: Path, tmp_path: Path) -> None:
    """Fails where a tensor of an adapter is ignored, or one of another base is merged."""
    write_both(trained(base), base, tmp_path)
    folder = tmp_path / "adapter"
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    first = next(name for name in whole if ".lora_A." in name)
    broken = {
        "is not lora_A or lora_B": whole | {"base_model.model.lm_head.weight": torch.ones(2, 2)},
        f"{first.replace('_A.', '_B.')} of": {n: t for n, t in whole.items() if n != first},
        "no weight of the base": {n.replace("layers.1", "layers.7"): t for n, t in whole.items()},
        "do not make an update of": whole | {first: whole[first][:, 1:].contiguous()},
    }
    for message, tensors in broken.items():
        save_file(tensors, path)
        with pytest.raises(BadInput, match=message):
            load_policy(folder)
    path.unlink()
    with pytest.raises(BadInput, match="adapter_model.safetensors is missing"):
        load_policy(folder)


def test_rslora_is_scaled_by_the_root(base: Path, tmp_path: Path) -> None:
    """Fails where an adapter of rslora is read with the scale of plain LoRA."""
    write_both(trained(base), base, tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    assert read_adapter(tmp_path / "adapter").scale == 8 / 4**0.5


def test_targets_are_linear_layers(base: Path) -> None:
    """Fails where a target that names nothing is ignored, or the output layer gets an adapter."""

    def layers(*targets: str) -> set[str]:
        policy = load_policy(base, adapter=Adapter(r=2, targets=targets))
        names = [n for n, p in policy.lm.named_parameters() if p.requires_grad]
        return {name.partition(".lora_")[0].partition("layers.")[2] for name in names}

    assert layers("q_proj") == {"0.self_attn.q_proj", "1.self_attn.q_proj"}
    assert layers("1.mlp.up_proj", "q_proj") == {*layers("q_proj"), "1.mlp.up_proj"}
    assert len(layers("all-linear")) == 2 * 7
    for target, nearest in (("qproj", "q_proj"), ("lm_head", ""), ("embed_tokens", "")):
        with pytest.raises(ConfigError, match=f"adapter.targets: .*got '{target}'.*{nearest}"):
            layers(target)


def test_adapters_start_as_those_of_peft() -> None:
    """Fails where A is drawn from another distribution than peft's, depends on anything but seed
    and name, or B is not 0."""
    from peft.tuners.lora import Linear as LoraLinear

    ours = adapters.starting_values("layers.0.q.lora_A.weight", (64, 256), seed=1)
    assert torch.equal(ours, adapters.starting_values("layers.0.q.lora_A.weight", (64, 256), 1))
    assert not torch.equal(ours, adapters.starting_values("layers.1.q.lora_A.weight", (64, 256), 1))
    assert not torch.equal(ours, adapters.starting_values("layers.0.q.lora_A.weight", (64, 256), 2))
    from peft import LoraConfig

    settings = LoraConfig(r=64, lora_alpha=1)
    layer = LoraLinear(nn.Linear(256, 8), "default", config=settings, r=64, lora_alpha=1)
    theirs = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(ours.abs().max(), theirs.abs().max(), rtol=1e-3, atol=0)
    torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.02, atol=0)
    assert abs(ours.mean()) < 1e-3
    assert not adapters.starting_values("layers.0.q.lora_B.weight", (8, 64), seed=1).any()


def test_fused_kernels_see_the_same_layers(base: Path) -> None:
    """Fails where an MLP with adapters or quantised matrices is no longer known as SwiGLU, so that
    its fused kernel is left out."""
    plain = fusible(load_policy(base).lm)
    for quantize in ("none", "nf4"):
        adapter = Adapter(r=2, quantize=quantize)
        assert fusible(load_policy(base, adapter=adapter).lm) == plain
    assert len(plain.mlps) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nf4_is_a_linear_layer_of_the_dequantised_matrix(dtype: torch.dtype) -> None:
    """Fails where the double quantisation loses its mean, a block or the dtype, or the backward
    takes another matrix than the forward."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(192, 320, dtype=dtype)
    weight_OI = torch.randn(320, 192, generator=generator).to(dtype)
    layer = Nf4Linear(linear, dtype)
    layer.quantize(weight_OI)
    packed, state = quantize_4bit(weight_OI, quant_type="nf4", compress_statistics=True)
    assert torch.equal(layer.dequantized(), dequantize_4bit(packed, state))
    assert 0 < (layer.dequantized() - weight_OI).abs().mean() < 0.1 * weight_OI.abs().mean()
    x_NI = torch.randn(5, 192, generator=generator).to(dtype).requires_grad_()
    y_NO = layer(x_NI)
    wanted = nn.functional.linear(x_NI, layer.dequantized()) + linear.bias
    assert torch.equal(y_NO, wanted)
    pull_NO = torch.randn(5, 320, generator=generator).to(dtype)
    both = [torch.autograd.grad(of, x_NI, pull_NO, retain_graph=True)[0] for of in (y_NO, wanted)]
    torch.testing.assert_close(*both)
    with pytest.raises(ValueError, match="not finite"):
        layer.quantize(weight_OI.fill_(torch.nan))


def test_nf4_takes_the_bytes_that_the_plan_counts() -> None:
    """Fails where `zephyr plan` counts another size of a quantised matrix than it has."""
    layer = Nf4Linear(nn.Linear(1024, 1024, bias=False), torch.bfloat16)
    layer.quantize(torch.randn(1024, 1024))
    big = [buffer for buffer in layer.buffers() if buffer.numel() > 256]
    tables = sum(buffer.nbytes for buffer in layer.buffers()) - sum(b.nbytes for b in big)
    small = layer.scale_of_scales.nbytes
    held = sum(b.nbytes for b in big) + (small if layer.scale_of_scales.numel() <= 256 else 0)
    assert held == WEIGHT_BYTES * 1024 * 1024 and tables < 4096


def test_a_quantised_policy_is_exported_as_it_was_trained(base: Path, tmp_path: Path) -> None:
    """Fails where the export merges into the weights from before quantisation, which is another
    model than the one that was trained."""
    quantised = Adapter(r=4, alpha=8, quantize="nf4")
    policy = trained(base, quantised)
    write_both(policy, base, tmp_path, quantised)
    merged = scores(load_policy(tmp_path / "model"))
    torch.testing.assert_close(scores(policy), merged, rtol=2e-5, atol=1e-4)
    elsewhere = scores(load_policy(tmp_path / "adapter"))
    assert (elsewhere - merged).abs().max() > 0.1
    start = load_policy(base, adapter=quantised)
    assert not torch.allclose(scores(start), scores(load_policy(base)))


@pytest.mark.parametrize(
    "adapter", [LORA, Adapter(r=4, alpha=8, quantize="nf4")], ids=lambda a: a.quantize
)
def test_activation_policies_change_no_gradient(base: Path, adapter: Adapter) -> None:
    """Fails where an activation policy takes a product of an adapter for one of its layer, or
    answers with the wrong one in the backward."""
    pairs = random_pairs(384)

    def gradients(what: bool | str) -> list[Tensor]:
        policy = trained(base, adapter)
        if what:
            from zephyr.model.recompute import checkpoint_activations

            checkpoint_activations(policy.lm, what)
        policy.train()
        parameters = [p for p in policy.parameters() if p.requires_grad]
        loss = torch.cat(response_logprobs(policy, collate_pairs(pairs, range(len(pairs))))).sum()
        return list(torch.autograd.grad(loss, parameters))

    plain = gradients(False)
    assert all(gradient.abs().max() > 0 for gradient in plain)
    for what in (True, "mlp", "elementwise"):
        for found, wanted in zip(gradients(what), plain):
            assert torch.equal(found, wanted), what
