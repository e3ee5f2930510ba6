"""A config becomes a proof that packing changes nothing in its decoder, or the reason why it does.

The check makes a twin of the decoder: as many layers of the same kinds, but small, with random
weights. The twin scores two pairs in one packed row. Each of their sequences must get the log-probs
that transformers' own eager forward gives it unpacked, and no gradient from its neighbours. The
model's weights are not needed, so the check works under ZeRO-3 too.

Shape letters:
    N  tokens of the packed row
    T  scored tokens
    D  hidden size
    V  vocabulary
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import lru_cache, partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.masking_utils import sdpa_mask

from zephyr.chat import EncodedPair
from zephyr.model import attention as kernels
from zephyr.model.policy import MODEL_CONFIG_ERRORS, Policy, build, fix_rope
from zephyr.packing import PackedBatch, collate_pairs

# What a forward raises if it can't take a packed row, or needs a package that is not installed.
FAILURES = (*MODEL_CONFIG_ERRORS, ImportError, NameError, RuntimeError)
PROOF = "zephyr_proof"  # the name of the twin's attention
# Sizes of a twin; WINDOW and SHORT (the length of pretraining) are shorter than its sequences.
HEADS, HEAD_SIZE, VOCABULARY, WINDOW, SHORT = 4, 16, 96, 5, 8
TOKEN_KEYS = ("token_id", "token_index")
MAX_PARAMETERS = 2**25  # of a twin: 128 MiB
LONGEST = 28  # tokens of the longest sequence of PAIRS
PAIRS = [
    EncodedPair("long", [*range(10, 19)], [*range(20, 32)], [*range(40, 59)]),
    EncodedPair("short", [60, 10, 61], [62, 63], [64, 60, 65, 20]),
]
# Keys of a twin's config that may be LONGEST or more without being a length that PAIRS don't reach:
# sizes, counts of layers, and a factor of the attention's scale.
KNOWN = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "max_position_embeddings",
    "num_hidden_layers",
    "max_window_layers",
    "query_pre_attn_scalar",
}
TOLERANCE = 2e-3  # nats; one key too many or too few changes a log-prob by tenths of a nat


def require_packable(config: PreTrainedConfig) -> None:
    """Check that packed log-probs of this decoder are right.

    Takes less than a second, once for each config in a process. The global random state is not
    changed.

    Raises:
        ValueError: they are not, or can't be shown to be; gives the reason.
    """
    values = json.dumps(config.to_dict(), sort_keys=True, default=str)
    # mypy takes the __hash__ of instances, which is None, for that of the class.
    reason = unpackable_reason(type(config), values)  # type: ignore[arg-type]
    if reason:
        raise ValueError(reason)


@lru_cache(maxsize=64)
def unpackable_reason(kind: type[PreTrainedConfig], values: str) -> str | None:
    """The reason why a decoder can't be packed; None: it can.

    Args:
        kind: class of its config.
        values: of the config, as JSON.
    """
    given = json.loads(values)
    try:
        whole = kind.from_dict(given)
        if whole.get_text_config() is not whole:
            return f"it is more than a text decoder ({', '.join(sorted(kind.sub_configs))})"
        config = kind.from_dict(shrink_config(kind, json.loads(values)))
        with torch.device("meta"), no_init_weights():
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except FAILURES as error:
        return (
            f"no small twin of it can be made to try packing on: {type(error).__name__}: "
            f"{first_line(error)}"
        )
    reason = unsupported_reason(empty, config)
    if reason:
        return reason
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
            torch.manual_seed(0)
            return compare_twins(config)
    except FAILURES as error:
        if error.args == (PROOF,):
            return (
                "its attention does not go through transformers' attention interface, which packed "
                "rows need"
            )
        return (
            f"a packed row fails on a small twin of it: {type(error).__name__}: {first_line(error)}"
        )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 300 characters."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def shrink_config(kind: type[PreTrainedConfig], values: dict[str, object]) -> dict[str, object]:
    """The values of a twin's config: small sizes, and lengths shorter than the sequences of PAIRS.

    The number and kinds of layers stay, and so do keys that are no known size or length (these are
    found by `unscaled_key`).

    Args:
        kind: class of the config, which may have other names for a key (`attribute_map`).
        values: of the decoder's config.
    """
    native = kind.attribute_map

    def size_of(name: str) -> int | None:
        return whole_number(values.get(native.get(name, name)))

    heads, hidden, head_size = map(size_of, ("num_attention_heads", "hidden_size", "head_dim"))
    # In Gemma and others, heads x size of a head is not the hidden size. The twin keeps that.
    differs = bool(heads and hidden and head_size and heads * head_size != hidden)
    if not head_size:
        head_size = hidden // heads if hidden and heads else HEAD_SIZE
    small_size = min(head_size, HEAD_SIZE)
    longest, start = size_of("max_position_embeddings") or 0, original_rope_length(values)
    known = {
        "vocab_size": VOCABULARY,
        "hidden_size": HEADS * small_size + (16 if differs else 0),
        "intermediate_size": 96,
        "head_dim": small_size,
        "num_attention_heads": HEADS,
        "num_key_value_heads": twin_key_heads(heads, size_of("num_key_value_heads")),
        "sliding_window": WINDOW,
        "original_max_position_embeddings": SHORT,
        "max_position_embeddings": round(SHORT * longest / start) if start else 64,
    }
    by_key = {native.get(name, name): value for name, value in known.items()}
    return {key: small(key, value, by_key, small_size / head_size) for key, value in values.items()}


def whole_number(value: object) -> int | None:
    """A size of a config, if given. Raises: TypeError: it is not a whole number."""
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def twin_key_heads(heads: int | None, key_heads: int | None) -> int:
    """Key heads of a twin: one for each query head, one for all, or two, as in the decoder."""
    if key_heads == 1:
        return 1
    return HEADS if key_heads == heads else 2


def small(key: str, value: object, sizes: Mapping[str, int], fraction: float) -> object:
    """One value of a twin's config.

    Args:
        key, value: of the decoder's config.
        sizes: of the twin, by key.
        fraction: size of the twin's heads / size of the decoder's.
    """
    if isinstance(value, dict):
        return {k: small(k, v, sizes, fraction) for k, v in value.items()}
    if key in ("short_factor", "long_factor") and isinstance(value, list):
        # One number for each rotary frequency.
        return value[:: round(1 / fraction)][: round(len(value) * fraction)]
    if key.endswith(TOKEN_KEYS):
        return value if not isinstance(value, (int, list)) or value == -1 else 1
    return sizes[key] if key in sizes and is_count(value) else value


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value of a config is a positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def unscaled_key(config: PreTrainedConfig) -> str | None:
    """A key of a twin's config that may be a length which PAIRS don't reach; None: there is none.

    A window or chunk under a name that is not known here would be in effect in training, and not in
    the check.
    """
    declared = inspect.signature(type(config).__init__).parameters
    known = KNOWN | {config.attribute_map.get(name, name) for name in KNOWN}
    for key, value in config.to_dict().items():
        if (
            is_count(value)
            and value >= LONGEST
            and key in declared
            and key not in known
            and not key.endswith(TOKEN_KEYS)
        ):
            return f"{key}={value}"
    return None


def original_rope_length(values: dict[str, object]) -> int | None:
    """Up to how many tokens rotary embeddings that are scaled are those of pretraining."""
    rope = values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise TypeError(f"rope_parameters={rope!r} is not a mapping")
    by_layers = [settings for settings in rope.values() if isinstance(settings, dict)]
    for settings in (rope, *by_layers):
        if settings.get("original_max_position_embeddings"):
            return whole_number(settings["original_max_position_embeddings"])
        if settings.get("rope_type") == "dynamic":
            return whole_number(values.get("max_position_embeddings"))
    return None


def unsupported_reason(empty: PreTrainedModel, config: PreTrainedConfig) -> str | None:
    """The reason why packing can't be right for a decoder, by what it is made of; or None.

    Args:
        empty: the twin on the meta device.
        config: of the twin.
    """
    kinds = {type(module).__name__ for module in empty.modules()}
    experts = sorted(kind for kind in kinds if "expert" in kind.lower())
    if experts:
        return (
            f"a mixture of experts ({experts[0]}) needs an auxiliary loss that balances the "
            "experts, which is not implemented"
        )
    layers = (
        getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    )
    others = sorted(
        {kind for kind in layers if kind == "linear_attention" or "attention" not in kind}
    )
    if others:
        return (
            f"{sum(kind in others for kind in layers)} of its {len(layers)} layers are "
            f"{', '.join(others)}, not softmax attention: their state would pass from one example "
            "of a packed row to the next"
        )
    if any(buffer in empty.state_dict() for buffer, _ in empty.named_buffers()):
        names = [buffer for buffer, _ in empty.named_buffers() if buffer in empty.state_dict()]
        return f"its weights hold buffers ({names[0]}), which are neither loaded nor trained here"
    if unscaled_key(config):
        return (
            f"its config has a size or length that is not known here ({unscaled_key(config)}), so "
            "packing can't be tried"
        )
    if sum(parameter.numel() for parameter in empty.parameters()) > MAX_PARAMETERS:
        return "no twin of it is small enough to try packing on"
    return None


def compare_twins(config: PreTrainedConfig) -> str | None:
    """Compare the twin's packed row with transformers' eager forward of each of its sequences.

    Returns:
        The reason if they differ, or None.
    """
    calls: list[nn.Module] = []  # the attention modules that call, in order
    kernel: Callable[..., tuple[Tensor, None]] = partial(kernels.attend, kernels.sdpa)

    def attend(module: nn.Module, *arguments: object, **options: object) -> tuple[Tensor, None]:
        calls.append(module)
        return kernel(module, *arguments, **options)

    AttentionInterface.register(PROOF, attend)
    AttentionMaskInterface.register(PROOF, sdpa_mask)
    plain, policy = make_twins(config)
    batch = collate_pairs(PAIRS, [0, 1])
    embedded: list[Tensor] = []

    def keep_output(_module: nn.Module, _inputs: object, output_1ND: Tensor) -> None:
        embedded.append(output_1ND)

    policy.lm.get_input_embeddings().register_forward_hook(keep_output)
    logp_T = policy(batch)
    if len(calls) != config.num_hidden_layers or len(set(calls)) != len(calls):
        return (
            f"a forward calls the attention of a packed row {len(calls)} times in "
            f"{config.num_hidden_layers} layers, expected once in each"
        )
    expected_T = torch.cat([unpacked_logprobs(plain, *sequence) for sequence in sequences()])
    error = (logp_T - expected_T).abs().max().item()
    if not error <= TOLERANCE:  # NaN is refused too
        return (
            f"log-probs of a packed row differ from those of its unpacked sequences, by "
            f"{error:.2g} nats on a small twin"
        )
    for response_T, own_N in responses(batch):
        (gradient_1ND,) = torch.autograd.grad(
            logp_T[response_T].sum(), embedded[0], retain_graph=True
        )
        if gradient_1ND[0, ~own_N].any():
            return "log-probs of a packed row depend on neighbours in it"
    return None


def make_twins(config: PreTrainedConfig) -> tuple[PreTrainedModel, Policy]:
    """Two decoders with the same random weights: transformers' own, eager, and a policy.

    The policy is made as `load_policy` makes it, and is in training mode, so dropout would show.
    The weights have standard deviation 0.1: with less, the logits of so small a decoder are almost
    flat, and faults would hide in rounding.
    """
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(
        deepcopy(config), dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    with no_init_weights():
        lm = build(deepcopy(config), PROOF, torch.float32)
    with torch.no_grad():
        weights = dict(plain.named_parameters())
        for parameter in weights.values():
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            nn.init.normal_(parameter, centre, 0.1)
        for name, parameter in lm.named_parameters():
            parameter.copy_(weights[name])
    for decoder in (plain, lm):
        fix_rope(decoder, LONGEST)
    return plain.eval(), Policy(lm).train()


def sequences() -> list[tuple[list[int], list[int]]]:
    """Prompt and response ids of PAIRS, in the order of a batch's responses."""
    chosen = [(pair.prompt_ids, pair.chosen_ids) for pair in PAIRS]
    rejected = [(pair.prompt_ids, pair.rejected_ids) for pair in PAIRS]
    return chosen + rejected


@torch.no_grad()
def unpacked_logprobs(
    plain: PreTrainedModel, prompt_ids: list[int], response_ids: list[int]
) -> Tensor:
    """Log-probs [T] of a response's tokens, by the ordinary forward of one sequence."""
    tokens_N = torch.tensor(prompt_ids + response_ids)
    logits_NV: Tensor = plain(input_ids=tokens_N[None], use_cache=False).logits[0]
    logp_TV = logits_NV[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    targets_T = tokens_N[len(prompt_ids) :]
    return logp_TV.gather(-1, targets_T[:, None]).squeeze(-1)


def responses(batch: PackedBatch) -> Iterator[tuple[slice, Tensor]]:
    """Of each response: the slice of its log-probs [T], and the tokens that they depend on.

    The latter is bool [N], True for the tokens of the response and of its prompt.
    """
    pairs, start = len(PAIRS), 0
    segment_N = torch.repeat_interleave(
        torch.arange(2 * pairs), torch.tensor(batch.layout.query_lengths)
    )
    for i, (prompt_ids, response_ids) in enumerate(sequences()):
        prompt_N = (segment_N == i % pairs) & (batch.positions_N < len(prompt_ids))
        yield slice(start, start + len(response_ids)), prompt_N | (segment_N == i)
        start += len(response_ids)
