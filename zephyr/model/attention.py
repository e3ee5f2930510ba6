"""Where a micro-batch meets the GPU kernel: causal attention over the segments of a packed row.

A decoder of transformers computes its queries, keys and values as always and calls `attend` in the
place of its own attention. `attend` appends the keys of shared prompts and calls one of three
kernels, which compute the same: `flash_attn` (the flash-attn package), `torch_varlen` (torch's own
flash kernel) and `sdpa` (anywhere, CPU too).

How the call gets here: `register_kernel` enters `attend` into transformers' attention interface,
under a name that `load_policy` gives to the model, and `Policy.forward` passes `layout=` to the
model's forward, which hands it down to the attention of each layer. Without `layout` (generation,
left-padded batches) `attend` is transformers' own sdpa.

Shape letters:
    N  queries: the packed tokens of the row
    M  keys: N, or more where prompts are shared (`zephyr.packing.collate` draws it)
    S  segments of the row
    H  query heads
    K  key heads; H / K query heads share one
    E  size of a head
"""

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

from zephyr.model.sequence import attention_inputs, own_tokens
from zephyr.packing import Layout, SequenceGroup

# query_NHE, key_MKE, value_MKE, layout, scale, window -> output_NHE. `scale`: factor of the scores
# before the softmax. `window`: each query sees its last `window` keys, its own included; None: all.
Kernel = Callable[[Tensor, Tensor, Tensor, Layout, float, int | None], Tensor]

# Arguments of transformers' attention call that a layout makes redundant.
IGNORED = {"position_ids", "use_cache", "is_causal", "cache_position"}


def flash_attn(
    query_NHE: Tensor,
    key_MKE: Tensor,
    value_MKE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention of each segment by the flash-attn package (Dao 2023, arXiv:2307.08691).

    Needs flash-attn >= 2.1, whose causal mask is aligned at the bottom right (`bottom_right_mask`).
    bfloat16 or float16.
    """
    from flash_attn import flash_attn_varlen_func

    output_NHE: Tensor = flash_attn_varlen_func(
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
    return output_NHE


def torch_varlen(
    query_NHE: Tensor,
    key_MKE: Tensor,
    value_MKE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention of each segment by `torch.nn.attention.varlen`. bfloat16 or float16.

    Its arguments differ by release. From torch 2.11 on, a right window edge of 0 makes it causal,
    aligned at the bottom right.

    Raises:
        ValueError: under torch 2.10 a window, or a scale other than 1 / sqrt(E), is asked for.
    """
    from torch.nn.attention.varlen import varlen_attn

    kernel: Callable[..., object] = varlen_attn
    parameters = inspect.signature(varlen_attn).parameters
    options: dict[str, object] = {
        "scale": scale,
        "window_size": (-1 if window is None else window - 1, 0),
    }
    if "is_causal" in parameters:  # torch 2.10
        default_scale = abs(scale * query_NHE.shape[-1] ** 0.5 - 1) <= 1e-6
        if window is not None or not default_scale:
            raise ValueError(
                f"the varlen attention of torch {torch.__version__} has no window ({window}) and "
                f"no scale ({scale}); use torch 2.11 or later, or another hardware.attention"
            )
        options = {"is_causal": True}
    if "enable_gqa" in parameters:  # torch 2.12 and later
        options["enable_gqa"] = query_NHE.shape[1] != key_MKE.shape[1]
    output_NHE = kernel(
        query_NHE,
        key_MKE,
        value_MKE,
        layout.cu_query,
        layout.cu_key,
        layout.max_query,
        layout.max_key,
        **options,
    )
    assert isinstance(output_NHE, Tensor)  # more is returned only on demand (return_aux)
    return output_NHE


def sdpa(
    query_NHE: Tensor,
    key_MKE: Tensor,
    value_MKE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention of each segment by one call of scaled_dot_product_attention a segment.

    Runs on any device, in any float dtype. It computes no padding and makes no [N, M] mask.
    """
    queries = torch.split(query_NHE, list(layout.query_lengths))
    keys = torch.split(key_MKE, list(layout.key_lengths))
    values = torch.split(value_MKE, list(layout.key_lengths))
    grouped = query_NHE.shape[1] != key_MKE.shape[1]
    outputs = []
    for query, key, value in zip(queries, keys, values):
        num_queries, num_keys = query.shape[0], key.shape[0]
        plain = num_queries == num_keys and (window is None or window >= num_keys)
        mask = None if plain else bottom_right_mask(num_queries, num_keys, window, query.device)
        output_1HNE = F.scaled_dot_product_attention(
            rearrange(query, "n h e -> 1 h n e"),
            rearrange(key, "n k e -> 1 k n e"),
            rearrange(value, "n k e -> 1 k n e"),
            attn_mask=mask,
            is_causal=plain,
            scale=scale,
            enable_gqa=grouped,
        )
        outputs.append(rearrange(output_1HNE, "1 h n e -> n h e"))
    return torch.cat(outputs)


KERNELS: dict[str, Kernel] = {"flash_attn": flash_attn, "torch_varlen": torch_varlen, "sdpa": sdpa}


def bottom_right_mask(
    queries: int, keys: int, window: int | None, device: torch.device | str = "cpu"
) -> Tensor:
    """What "causal" means here: the last query of a segment sees its last key.

    Returns: bool [queries, keys], True where a query sees a key.

    3 queries, 5 keys: 1 1 1 0 0        window 2: 0 1 1 0 0
                       1 1 1 1 0                  0 0 1 1 0
                       1 1 1 1 1                  0 0 0 1 1
    """
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
    sequence: SequenceGroup | None = None,
    sliding_window: int | None = None,
    **unknown: object,
) -> tuple[Tensor, None]:
    """The attention of one layer, called by transformers through its attention interface.

    Args:
        kernel: one of KERNELS.
        module: the attention module that calls.
        query: [1, H, N, E], rotary positions applied.
        key, value: [1, K, N, E].
        attention_mask: used only without a layout.
        scaling: factor of the scores; None: 1 / sqrt(E).
        dropout: of the attention weights; with a layout it must be 0.
        layout: segments of the packed row; None: an ordinary batch, by transformers' sdpa.
        sequence: the ranks that compute the row together: queries, keys and values are those of
            this rank's tokens; None: they are those of the whole row.
        sliding_window: each query sees so many keys at most, its own included; None: all.
        unknown: other arguments of the model; with a layout, only None or those IGNORED.

    Returns:
        The output [1, N, H, E], and None for the attention weights.

    Raises:
        ValueError: a packed row has dropout, or an argument that no kernel here implements and that
            would change the result.
    """
    if layout is None:
        plain_attention: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
        return plain_attention(
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
    refused = sorted(k for k, v in unknown.items() if v is not None and k not in IGNORED)
    if dropout > 0:
        refused.append("dropout")
    if refused:
        raise ValueError(
            f"attention of a packed row does not implement {', '.join(refused)}, which this model "
            "uses"
        )
    query_NHE = rearrange(query, "1 h n e -> n h e")
    key_NKE = rearrange(key, "1 k n e -> n k e")
    value_NKE = rearrange(value, "1 k n e -> n k e")
    if sequence is not None:
        query_NHE, key_NKE, value_NKE = attention_inputs(
            query_NHE, key_NKE, value_NKE, layout, sequence
        )
    if sliding_window is not None and sliding_window >= layout.max_key:
        sliding_window = None  # longer than every segment; kernels are faster without a window
    output_NHE = kernel(
        query_NHE,
        append_shared_keys(key_NKE, layout),
        append_shared_keys(value_NKE, layout),
        layout,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window,
    )
    if sequence is not None:
        output_NHE = own_tokens(output_NHE, sequence)
    return output_NHE.unsqueeze(0), None


def append_shared_keys(key_NKE: Tensor, layout: Layout) -> Tensor:
    """The keys (or values) that a row's queries see: [N, K, E] -> [M, K, E].

    The keys of `prompt chosen` of every pair, then, for each rejected response, its prompt's keys
    and its own. A row without shared prompts: as they are.

    `layout.appended_A` names no position twice. So the gradient of a shared prompt's key is the sum
    of two terms, and a sum of two is the same in either order: deterministic on any device, without
    a kernel of our own.
    """
    if layout.appended_A is None:
        return key_NKE
    return torch.cat([key_NKE[: layout.num_own_keys], key_NKE.index_select(0, layout.appended_A)])


def register_kernel(attention: str) -> str:
    """Enter `attend` with the kernel `attention` into transformers' attention interface.

    Args:
        attention: a key of KERNELS.

    Returns:
        The name for `attn_implementation`. It does not contain "flash", which would switch on code
        paths of transformers' own.
    """
    name = "zephyr_" + attention.replace("flash_attn", "fa2")
    AttentionInterface.register(name, partial(attend, KERNELS[attention]))
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def unavailable_reason(attention: str, dtype: torch.dtype, device: str) -> str | None:
    """The reason why a kernel can't run on this machine, with one that can; None: it can run.

    Loads no model.

    Args:
        attention: a key of KERNELS.
        dtype: of the model.
        device: "cuda" or "cpu".
    """
    if attention == "sdpa":
        return None
    if device != "cuda":
        return f"{attention} runs on a GPU, and this run is on the {device.upper()}; sdpa runs here"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{attention} computes in bfloat16, not {dtype}; sdpa does"
    try:
        if attention == "flash_attn":
            import flash_attn as package

            version = package.__version__
            if int(version.split(".")[0]) < 2 or version.startswith("2.0."):
                return (
                    f"flash_attn {version} aligns the causal mask at the top left; at least 2.1 is "
                    "needed; torch_varlen runs here"
                )
        else:
            from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError as error:
        other = "torch_varlen" if attention == "flash_attn" else "sdpa"
        return f"{attention} can't be imported ({error}); {other} needs only torch"
    return None
