"""Attention of a packed row equals dense attention under an explicit mask, and each call fits its
library's signature."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from oracle import dense_attention
from tiny import tiny_model
from torch import Tensor

from zephyr.chat import EncodedPair
from zephyr.model import attention
from zephyr.packing import Layout, collate_pairs

# flash_attn_varlen_func of flash-attn 2.8.3, for machines on which the package can't be imported
FLASH_ATTN_PARAMETERS = [
    "q",
    "k",
    "v",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "max_seqlen_q",
    "max_seqlen_k",
    "dropout_p",
    "softmax_scale",
    "causal",
    "window_size",
    "softcap",
    "alibi_slopes",
    "deterministic",
    "return_attn_probs",
    "block_table",
]


def layout_of(
    prompts_chosen_rejected: list[tuple[int, int, int]], prefix_sharing: bool = True
) -> Layout:
    pairs = [
        EncodedPair(str(i), [1] * p, [1] * c, [1] * r)
        for i, (p, c, r) in enumerate(prompts_chosen_rejected)
    ]
    return collate_pairs(pairs, range(len(pairs)), prefix_sharing=prefix_sharing).layout


def random_qkv(layout: Layout, heads: int, key_heads: int, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(layout.query_lengths)
    return [
        torch.randn(tokens, h, size, generator=generator, dtype=torch.float64, requires_grad=True)
        for h in (heads, key_heads, key_heads)
    ]


@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("heads,key_heads", [(4, 2), (2, 2)])
@pytest.mark.parametrize("prefix_sharing", [True, False])
def test_segments_equal_dense_attention(
    prefix_sharing: bool, heads: int, key_heads: int, window: int | None
) -> None:
    """Output and all gradients in float64 to 1e-12, shared prompts and sliding window included.
    Fails for a mask aligned top left, a prompt's gradient counted once, or a window measured over
    the row instead of the segment."""
    layout = layout_of([(5, 3, 7), (1, 1, 1), (9, 2, 4)], prefix_sharing)
    qkv = random_qkv(layout, heads, key_heads)
    grad = torch.randn(
        qkv[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    results = []
    for kernel in (attention.sdpa, dense_attention):
        query, key, value = qkv
        output = kernel(
            query,
            attention.append_shared_keys(key, layout),
            attention.append_shared_keys(value, layout),
            layout,
            0.3,
            window,
        )
        results.append([output, *torch.autograd.grad(output, qkv, grad)])
    for ours, dense in zip(*results):
        torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
        assert ours.abs().max() > 0.1


def test_bottom_right_mask_is_the_documented_one() -> None:
    """The two matrices of the docstring, by hand."""
    assert attention.bottom_right_mask(3, 5, None).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    assert attention.bottom_right_mask(3, 5, 2).int().tolist() == [
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("window", [None, 5])
def test_call_of_flash_attn_fits_its_signature(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one call that can't run without a GPU binds to the package's real parameters (recorded,
    or the installed package's), and means: causal, no dropout, window w as (w - 1, 0). Fails for a
    misspelt or misplaced argument."""
    calls = []

    def record(*arguments: object, **options: object) -> object:
        calls.append(
            inspect.Signature(
                [
                    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
                    for name in parameters
                ]
            )
            .bind(*arguments, **options)
            .arguments
        )
        return arguments[0]

    try:
        from flash_attn import flash_attn_varlen_func

        parameters = list(inspect.signature(flash_attn_varlen_func).parameters)
        assert parameters[: len(FLASH_ATTN_PARAMETERS)] == FLASH_ATTN_PARAMETERS
    except ImportError:
        parameters = FLASH_ATTN_PARAMETERS
    monkeypatch.setitem(
        __import__("sys").modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=record)
    )
    layout = layout_of([(5, 3, 7)])
    query, key, value = random_qkv(layout, 2, 2)
    attention.flash_attn(
        query,
        attention.append_shared_keys(key, layout),
        attention.append_shared_keys(value, layout),
        layout,
        0.3,
        window,
    )
    (call,) = calls
    assert call["causal"] is True and call["dropout_p"] == 0.0 and call["softmax_scale"] == 0.3
    assert call["cu_seqlens_q"].tolist() == [0, 8, 15] and call["cu_seqlens_k"].tolist() == [
        0,
        8,
        20,
    ]
    assert (call["max_seqlen_q"], call["max_seqlen_k"]) == (8, 12)
    assert call["window_size"] == ((-1, -1) if window is None else (4, 0))


def test_call_of_torch_varlen_fits_the_installed_signature() -> None:
    """This torch's varlen_attn takes the call as far as the kernel that a CPU lacks. Fails, as a
    TypeError, where the shim does not know this release's parameters."""
    varlen = pytest.importorskip(
        "torch.nn.attention.varlen", reason="this torch has no varlen attention"
    )
    layout = layout_of([(5, 3, 7)])
    query, key, value = (t.detach().bfloat16() for t in random_qkv(layout, 4, 2, size=16))
    assert "query" in inspect.signature(varlen.varlen_attn).parameters
    with pytest.raises((NotImplementedError, RuntimeError), match="CPU|cuda|backend|dispatch"):
        attention.torch_varlen(
            query,
            attention.append_shared_keys(key, layout),
            attention.append_shared_keys(value, layout),
            layout,
            0.25,
            None,
        )


@pytest.mark.parametrize(
    "signature,options",
    [
        (
            "query key value cu_seq_q cu_seq_k max_q max_k is_causal return_aux",
            {"is_causal": True},
        ),  # 2.10
        (
            "query key value cu_seq_q cu_seq_k max_q max_k return_aux scale window_size",
            {"scale": 0.25, "window_size": (-1, 0)},
        ),
        (
            "query key value cu_seq_q cu_seq_k max_q max_k return_aux scale window_size enable_gqa",
            {"scale": 0.25, "window_size": (-1, 0), "enable_gqa": True},
        ),
    ],
)  # 2.12 on
def test_torch_varlen_shim_speaks_every_release(
    signature: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options that make attention causal differ by release; fails where one would run without a
    causal mask."""
    seen = {}

    def varlen_attn(*arguments: object, **given: object) -> object:
        seen.update(given)
        return arguments[0]

    varlen_attn.__signature__ = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in signature.split()]
    )
    monkeypatch.setitem(
        __import__("sys").modules,
        "torch.nn.attention.varlen",
        SimpleNamespace(varlen_attn=varlen_attn),
    )
    layout = layout_of([(5, 3, 7)])
    query, key, value = random_qkv(layout, 4, 2, size=16)
    attention.torch_varlen(
        query,
        attention.append_shared_keys(key, layout),
        attention.append_shared_keys(value, layout),
        layout,
        0.25,
        None,
    )
    assert seen == options
    if "is_causal" in options:
        for scale, window in ((0.25, 4), (0.3, None)):
            with pytest.raises(ValueError, match="no window .* and no scale"):
                attention.torch_varlen(query, key, value, layout, scale, window)


@pytest.mark.parametrize("scaling", [None, 0.5])
@pytest.mark.parametrize("window", [None, 9, 12, 40])
def test_a_models_call_means_what_it_says(window: int | None, scaling: float | None) -> None:
    """What transformers hands over, against dense attention: scale and window as given, keys and
    values each their own. Fails where a model's own scale is not heard, or a window is left out
    that binds keys but no query's segment: here 8 and 7 queries, 12 keys."""
    layout = layout_of([(5, 3, 7)])
    qkv = random_qkv(layout, 4, 2)
    query, key, value = (t.transpose(0, 1)[None] for t in qkv)
    ours, weights = attention.attend(
        attention.sdpa,
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        scaling=scaling,
        layout=layout,
        sliding_window=window,
    )
    keys_M = [*range(8), *range(5), *range(8, 15)]  # prompt and chosen; prompt again, and rejected
    shared = [t[keys_M] for t in qkv[1:]]
    dense = dense_attention(
        qkv[0], *shared, layout, 8**-0.5 if scaling is None else scaling, window
    )
    torch.testing.assert_close(ours[0], dense, rtol=1e-12, atol=1e-12)
    assert weights is None


def test_what_is_not_implemented_is_refused() -> None:
    """Fails where softcap, attention sinks or dropout would be dropped in silence and change the
    result."""
    layout = layout_of([(2, 1, 1)])
    query, key, value = (t.transpose(0, 1)[None] for t in random_qkv(layout, 2, 2))
    for options in ({"softcap": 30.0}, {"s_aux": torch.ones(2)}, {"dropout": 0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            attention.attend(
                attention.sdpa, torch.nn.Module(), query, key, value, None, layout=layout, **options
            )


def test_a_kernel_that_cant_run_says_what_would() -> None:
    """Fails where a config that names flash_attn on a CPU would be answered by another kernel, or
    by a traceback."""
    assert "sdpa" in str(attention.unavailable_reason("flash_attn", torch.bfloat16, "cpu"))
    assert "bfloat16" in str(attention.unavailable_reason("torch_varlen", torch.float32, "cuda"))
    assert attention.unavailable_reason("sdpa", torch.float32, "cpu") is None
    for kernel in ("flash_attn", "torch_varlen"):
        assert "sdpa runs here" in str(attention.unavailable_reason(kernel, torch.bfloat16, "cpu"))
        assert "not torch.float32" in str(
            attention.unavailable_reason(kernel, torch.float32, "cuda")
        )


@pytest.mark.parametrize("family", ["mistral", "llama", "qwen2", "qwen3"])
def test_generation_with_left_padding_equals_plain_sdpa(family: str, tmp_path: object) -> None:
    """Without a layout our attention is transformers' sdpa, mask included; fails where padding on
    the left is attended."""
    from transformers import AutoModelForCausalLM

    from zephyr.model.load import load_policy

    folder = tiny_model(
        tmp_path / "m", family=family, sliding_window=16 if family == "mistral" else None
    )
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    ours = load_policy(folder).lm.eval()
    prompts = [list(range(5, 45)), list(range(60, 70))]
    padded = torch.tensor([[2] * (40 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (40 - len(p)) + [1] * len(p) for p in prompts])
    options = {
        "attention_mask": mask,
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": 2,
        "eos_token_id": None,
    }
    outputs = [lm.generate(padded, **options) for lm in (plain, ours)]
    assert outputs[0].tolist() == outputs[1].tolist()
    alone = ours.generate(
        torch.tensor([prompts[1]]),
        **{**options, "attention_mask": torch.ones(1, 10, dtype=torch.int64)},
    )
    assert alone[0, 10:].tolist() == outputs[1][1, 40:].tolist()
