"""A config becomes a proof that packing changes nothing in its decoder, or the reason why it does.

A small twin of the decoder, its layers as many and as they are, scores two pairs in one packed row;
each of their sequences must get the log-probs that transformers' own eager forward gives it alone,
and no gradient from its neighbours. Nothing of the model's weights is needed, so this holds under
ZeRO-3 too.

N packed tokens, D hidden size, T scored tokens."""

import inspect
import json
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache

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

# What a forward raises that can't take a packed row, or asks for a package that is not installed
FAILURES = (*MODEL_CONFIG_ERRORS, ImportError, NameError, RuntimeError)
PROOF = "zephyr_proof"  # the name of the twin's attention
HEADS, HEAD_SIZE, VOCABULARY, WINDOW, SHORT = 4, 16, 96, 5, 8
TOKEN_KEYS = ("token_id", "token_index")
MAX_PARAMETERS = 2**25  # of a twin: 128 MiB
LONGEST = 28  # tokens of the longest sequence of PAIRS: longer than WINDOW and SHORT
PAIRS = [
    EncodedPair("long", [*range(10, 19)], [*range(20, 32)], [*range(40, 59)]),
    EncodedPair("short", [60, 10, 61], [62, 63], [64, 60, 65, 20]),
]
# Keys of a twin that may be as large as LONGEST: sizes, counts of layers, and a factor of the
# attention's scale
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
TOLERANCE = 2e-3  # nats; a key too many or too few changes tenths


def require_packable(config: PreTrainedConfig) -> None:
    """Raises: ValueError with the reason why packed log-probs of this decoder can't be shown to be
    right.

    Costs parts of a second, once for each config of a process; the global random state is left as
    it was."""
    reason = unpackable_reason(
        type(config), json.dumps(config.to_dict(), sort_keys=True, default=str)
    )
    if reason:
        raise ValueError(reason)


@lru_cache(maxsize=64)
def unpackable_reason(kind: type[PreTrainedConfig], values: str) -> str | None:
    """The reason, or None. Args: the class of the config and its values as JSON."""
    given = json.loads(values)
    try:
        whole = kind.from_dict(given)
        if whole.get_text_config() is not whole:
            return f"more than a text decoder ({', '.join(sorted(kind.sub_configs))})"
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
                "its attention is not computed by transformers' attention interface, through "
                "which packed rows are"
            )
        return (
            f"a packed row fails on a small twin of it: {type(error).__name__}: {first_line(error)}"
        )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def shrink_config(kind: type[PreTrainedConfig], values: dict[str, object]) -> dict[str, object]:
    """The values of a config with sizes that a CPU computes in no time, and lengths so short that
    PAIRS go beyond them.

    Layers stay as many and as they are, and so do keys that are no known size or length (see
    `unscaled_key`)."""
    native = kind.attribute_map
    wanted = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    heads, keys, size, hidden = (values.get(native.get(name, name)) for name in wanted)
    # In Gemma and others, heads x size is not hidden.
    apart = None not in (heads, size, hidden) and heads * size != hidden
    size = size or (hidden // heads if hidden and heads else HEAD_SIZE)
    small_size, start = min(size, HEAD_SIZE), original_rope_length(values)
    longest = values.get(native.get("max_position_embeddings", "max_position_embeddings")) or 0
    known = {
        "vocab_size": VOCABULARY,
        "hidden_size": HEADS * small_size + 16 * apart,
        "intermediate_size": 96,
        "head_dim": small_size,
        "num_attention_heads": HEADS,
        "num_key_value_heads": {heads: HEADS, 1: 1}.get(keys, 2),
        "sliding_window": WINDOW,
        "original_max_position_embeddings": SHORT,
        "max_position_embeddings": round(SHORT * longest / start) if start else 64,
    }
    by_key = {native.get(name, name): value for name, value in known.items()}
    return {key: small(key, value, by_key, small_size / size) for key, value in values.items()}


def small(key: str, value: object, sizes: dict[str, int], fraction: float) -> object:
    """One value of a config as its twin has it. Args: fraction: of the size of a head."""
    if isinstance(value, dict):
        return {k: small(k, v, sizes, fraction) for k, v in value.items()}
    if key in ("short_factor", "long_factor") and isinstance(value, list):
        # one number for each rotary frequency
        return value[:: round(1 / fraction)][: round(len(value) * fraction)]
    if key.endswith(TOKEN_KEYS):
        return value if not isinstance(value, (int, list)) or value == -1 else 1
    return sizes[key] if key in sizes and is_count(value) else value


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def unscaled_key(config: PreTrainedConfig) -> str | None:
    """A key of a twin's config that `shrink_config` left so large that it may be a length which PAIRS do
    not reach, or None.

    A window or a chunk under a name of its own would bind in training and not in the proof."""
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
    """The length up to which rotary embeddings that grow, or are scaled, are those of
    pretraining."""
    rope = values.get("rope_parameters") or {}
    for settings in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if settings.get("original_max_position_embeddings"):
            return settings["original_max_position_embeddings"]
        if settings.get("rope_type") == "dynamic":
            return values.get("max_position_embeddings")
    return None


def unsupported_reason(empty: PreTrainedModel, config: PreTrainedConfig) -> str | None:
    """The reason why a decoder, on the meta device, is none that packing can be right for, by what
    it is made of."""
    kinds = {type(module).__name__ for module in empty.modules()}
    experts = sorted(kind for kind in kinds if "expert" in kind.lower())
    if experts:
        return (
            f"a mixture of experts ({experts[0]}), whose auxiliary loss, which keeps the experts "
            f"in use, is not implemented"
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
            f"{', '.join(others)}, no softmax attention: what they remember would pass from one "
            "example of a packed row to the next"
        )
    if any(buffer in empty.state_dict() for buffer, _ in empty.named_buffers()):
        names = [buffer for buffer, _ in empty.named_buffers() if buffer in empty.state_dict()]
        return f"its weights hold buffers ({names[0]}), which are neither loaded nor trained here"
    if unscaled_key(config):
        return (
            f"its config has a size or length that is not known here ({unscaled_key(config)}), with "
            f"which packing is not tried"
        )
    if sum(parameter.numel() for parameter in empty.parameters()) > MAX_PARAMETERS:
        return "no twin small enough to try packing on can be made of its config"
    return None


def compare_twins(config: PreTrainedConfig) -> str | None:
    """The twin's packed row against transformers' eager forward of each sequence: the reason where
    they differ, or None."""
    calls: list[nn.Module] = []

    def attend(module: nn.Module, *arguments: Tensor, **options: object) -> tuple[Tensor, None]:
        calls.append(module)
        return kernels.attend(kernels.sdpa, module, *arguments, **options)

    AttentionInterface.register(PROOF, attend)
    AttentionMaskInterface.register(PROOF, sdpa_mask)
    plain, policy, batch = *make_twins(config), collate_pairs(PAIRS, [0, 1])
    embedded: list[Tensor] = []
    policy.lm.get_input_embeddings().register_forward_hook(
        lambda *hooked: embedded.append(hooked[-1])
    )
    logp_T = policy(batch)
    if len(calls) != config.num_hidden_layers or len(set(calls)) != len(calls):
        return (
            f"a forward calls the attention of a packed row {len(calls)} times in "
            f"{config.num_hidden_layers} layers; once in each is wanted"
        )
    expected_T = torch.cat([unpacked_logprobs(plain, *sequence) for sequence in sequences()])
    error = (logp_T - expected_T).abs().max().item()
    if not error <= TOLERANCE:  # not a number is no proof
        return (
            f"log-probs of a packed row differ from those of its sequences alone, by {error:.2g} "
            f"nats on a small twin"
        )
    for response_T, own_N in responses(batch):
        (gradient_1ND,) = torch.autograd.grad(
            logp_T[response_T].sum(), embedded[0], retain_graph=True
        )
        if gradient_1ND[0, ~own_N].any():
            return "log-probs of a packed row depend on neighbours in it"
    return None


def make_twins(config: PreTrainedConfig) -> tuple[PreTrainedModel, Policy]:
    """The decoder by transformers' own eager forward, and the policy made as `load_policy` makes
    it, with one set of random weights.

    Standard deviation 0.1: with less, the logits of so small a decoder are almost flat, and faults
    would hide in rounding. The policy trains, so that dropout shows."""
    plain = AutoModelForCausalLM.from_config(
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
    """Prompt and response of each of a batch's responses, in their order."""
    return [(p.prompt_ids, p.chosen_ids) for p in PAIRS] + [
        (p.prompt_ids, p.rejected_ids) for p in PAIRS
    ]


@torch.no_grad()
def unpacked_logprobs(
    plain: PreTrainedModel, prompt_ids: list[int], response_ids: list[int]
) -> Tensor:
    """Log-probs [T] of a response's tokens, by the usual forward of one sequence."""
    tokens_N = torch.tensor(prompt_ids + response_ids)
    logp_NV = plain(input_ids=tokens_N[None], use_cache=False).logits[0].float().log_softmax(-1)
    return (
        logp_NV[len(prompt_ids) - 1 : -1].gather(-1, tokens_N[len(prompt_ids) :, None]).squeeze(-1)
    )


def responses(batch: PackedBatch) -> Iterator[tuple[slice, Tensor]]:
    """Of each response: where its log-probs lie, and bool [N], True for its own tokens and its
    prompt's."""
    pairs, start = len(PAIRS), 0
    segment_N = torch.repeat_interleave(
        torch.arange(2 * pairs), torch.tensor(batch.layout.query_lengths)
    )
    for i, (prompt_ids, response_ids) in enumerate(sequences()):
        prompt_N = (segment_N == i % pairs) & (batch.positions_N < len(prompt_ids))
        yield slice(start, start + len(response_ids)), prompt_N | (segment_N == i)
        start += len(response_ids)
