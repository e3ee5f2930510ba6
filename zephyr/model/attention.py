"""Our attention over a packed row, inside any transformers decoder, with three interchangeable
kernels.

N packed tokens, M keys (N, or more where prompts are shared), H query heads, K key heads, E head
size. `flash_attn` is the package, `torch_varlen` torch's own flash kernel, `sdpa` runs anywhere.
They enter through transformers' attention interface: the model's forward gets `layout=`, which
reaches `attend`; without it (generation, left-padded batches) all is transformers' sdpa."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from zephyr.packing import Layout

Kernel = Callable[[Tensor, Tensor, Tensor, Layout, float, int | None], Tensor]
IGNORED = {
    "position_ids",
    "use_cache",
    "is_causal",
    "cache_position",
}  # arguments that a packed row makes redundant


def flash_attn(
    query_NHE: Tensor,
    key_MKE: Tensor,
    value_MKE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention of each segment by the flash-attn package (Dao 2023, arXiv:2307.08691), >=
    2.1: bottom-right aligned."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query_NHE,
        key_MKE,
        value_MKE,
        layout.cu_query,
        layout.cu_key,
        layout.max_query,
        layout.max_key,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )


def torch_varlen(
    query_NHE: Tensor,
    key_MKE: Tensor,
    value_MKE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:
    """The same by torch.nn.attention.varlen, whose arguments differ by release. A right edge of 0
    is causal, bottom-right.

    Raises: ValueError where torch 2.10, which has neither, would need a window, or a scale other
    than 1 / sqrt(E)."""
    from torch.nn.attention.varlen import varlen_attn

    takes, size = inspect.signature(varlen_attn).parameters, query_NHE.shape[-1]
    options: dict[str, object] = {
        "scale": scale,
        "window_size": (-1 if window is None else window - 1, 0),
    }
    if "is_causal" in takes:
        if window is not None or abs(scale * size**0.5 - 1) > 1e-6:
            raise ValueError(
                f"torch {torch.__version__}'s varlen attention has no window ({window}) and no scale ({scale}); 2.11 has"
            )
        options = {"is_causal": True}
    if "enable_gqa" in takes:  # from torch 2.12 on
        options["enable_gqa"] = query_NHE.shape[1] != key_MKE.shape[1]
    return varlen_attn(
        query_NHE,
        key_MKE,
        value_MKE,
        layout.cu_query,
        layout.cu_key,
        layout.max_query,
        layout.max_key,
        **options,
    )


def sdpa(
    query_NHE: Tensor,
    key_MKE: Tensor,
    value_MKE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:
    """The same, one scaled_dot_product_attention a segment: no padding is computed, and no [N, M]
    mask exists."""
    outputs, queries = [], query_NHE.split(layout.query_lengths)
    keys, values = key_MKE.split(layout.key_lengths), value_MKE.split(layout.key_lengths)
    grouped = query_NHE.shape[1] != key_MKE.shape[1]
    for query, key, value in zip(queries, keys, values):
        plain = query.shape[0] == key.shape[0] and (window is None or window >= key.shape[0])
        mask = (
            None if plain else bottom_right_mask(query.shape[0], key.shape[0], window, query.device)
        )
        heads_first = (rearrange(t, "n h e -> 1 h n e") for t in (query, key, value))
        output_HNE = F.scaled_dot_product_attention(
            *heads_first, attn_mask=mask, is_causal=plain, scale=scale, enable_gqa=grouped
        )
        outputs.append(rearrange(output_HNE, "1 h n e -> n h e"))
    return torch.cat(outputs)


KERNELS: dict[str, Kernel] = {"flash_attn": flash_attn, "torch_varlen": torch_varlen, "sdpa": sdpa}


def bottom_right_mask(
    queries: int, keys: int, window: int | None, device: torch.device | str = "cpu"
) -> Tensor:
    """What "causal" means here: bool [queries, keys], True where a query sees a key; the last query
    sees the last key.

    3 queries, 5 keys: 1 1 1 0 0        window 2: 0 1 1 0 0
                       1 1 1 1 0                  0 0 1 1 0
                       1 1 1 1 1                  0 0 0 1 1"""
    sees = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return sees if window is None else sees.triu(keys - queries - window + 1)


def attend(
    kernel: Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **unknown: object,
) -> tuple[Tensor, None]:
    """transformers' attention call: query [1, H, N, E], key and value [1, K, N, E] -> output [1, N,
    H, E].

    Raises: ValueError for dropout or an argument that would change the result and that no kernel
    here implements."""
    if layout is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **unknown,
        )
    unmet = sorted(k for k, v in unknown.items() if v is not None and k not in IGNORED) + [
        "dropout"
    ] * (dropout > 0)
    if unmet:
        raise ValueError(
            f"attention of a packed row does not implement {', '.join(unmet)}, which this model asks for"
        )
    query_NHE, key_NKE, value_NKE = (rearrange(t, "1 h n e -> n h e") for t in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if sliding_window is not None and sliding_window >= layout.max_key:
        sliding_window = None  # it binds nowhere, and kernels are faster without one
    output_NHE = kernel(
        query_NHE,
        append_shared_keys(key_NKE, layout),
        append_shared_keys(value_NKE, layout),
        layout,
        scale,
        sliding_window,
    )
    return output_NHE.unsqueeze(0), None


def append_shared_keys(key_NKE: Tensor, layout: Layout) -> Tensor:
    """The keys (or values) of the row with those appended that rejected responses share: [N, K, E]
    -> [M, K, E].

    Each index occurs once in `appended_A`, so the gradient of a shared prompt is the sum of exactly
    two terms, whatever order a device adds them in: deterministic without a kernel of our own."""
    if layout.appended_A is None:
        return key_NKE
    return torch.cat([key_NKE[: layout.num_own_keys], key_NKE.index_select(0, layout.appended_A)])


def register_kernel(attention: str) -> str:
    """Make the kernel `attention` known to transformers; returns the name for
    `attn_implementation`.

    The word "flash" in that name would switch on code paths of transformers' own."""
    name = "zephyr_" + attention.replace("flash_attn", "fa2")
    AttentionInterface.register(name, partial(attend, KERNELS[attention]))
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def unavailable_reason(attention: str, dtype: torch.dtype, device: str) -> str | None:
    """Why a kernel can't run on this machine, or None. Loads no model."""
    if attention == "sdpa":
        return None
    if device != "cuda":
        return f"{attention} runs on a GPU, and this run is on the {device.upper()}; sdpa runs here"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{attention} computes in bfloat16, not {dtype}; sdpa does"
    try:
        if attention == "flash_attn":
            import flash_attn as package

            if int(package.__version__.split(".")[0]) < 2 or package.__version__.startswith("2.0."):
                return f"flash_attn {package.__version__} aligns causality top left, at least 2.1 is wanted; torch_varlen runs"
        else:
            from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError as error:
        other = "torch_varlen" if attention == "flash_attn" else "sdpa"
        return (
            f"{attention} can't be imported ({error}); {other} needs nothing installed beside torch"
        )
    return None
