"""A config becomes a policy without weights: the decoder with our attention and our output layer,
one rule for its rotary frequencies.

T scored tokens, N tokens of a packed row, D hidden size."""

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from zephyr.model.logprobs import LogProbHead, scored_hidden
from zephyr.packing import PackedBatch

# What transformers raises for a value of the wrong type or size in config.json
MODEL_CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


class Policy(nn.Module):
    """A causal language model that scores: `policy(batch)` -> log p of each target, float32 [T].

    Args: max_sequence_tokens: tokens of the longest sequence that its rotary frequencies, or its learned
    positions, are for; None: any.
    Raises: ValueError for a batch with a longer one."""

    def __init__(self, lm: PreTrainedModel, max_sequence_tokens: int | None = None) -> None:
        super().__init__()
        self.lm, self.max_sequence_tokens = lm, max_sequence_tokens

    def forward(self, batch: PackedBatch) -> Tensor:
        if self.max_sequence_tokens is not None and batch.layout.max_key > self.max_sequence_tokens:
            raise ValueError(
                f"a sequence of {batch.layout.max_key} tokens is packed, and the positions of this "
                f"{type(self.lm).__name__} are those of {self.max_sequence_tokens} tokens: where they are rotary, "
                "load_policy(..., max_tokens=LONGEST) sets them for sequences of up to so many, in "
                "every row alike"
            )
        # A mask of four dimensions is passed on untouched by transformers; none is computed,
        # `layout` replaces it.
        no_mask = torch.empty(1, 1, 0, 0, device=batch.tokens_N.device)
        hidden_ND = self.lm.base_model(
            input_ids=batch.tokens_N[None],
            position_ids=batch.positions_N[None],
            attention_mask=no_mask,
            use_cache=False,
            layout=batch.layout,
        ).last_hidden_state[0]
        return self.lm.get_output_embeddings()(scored_hidden(hidden_ND, batch), batch.targets_T)


def build(config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """The decoder of a config, its parameters to be filled, its output layer a LogProbHead.

    Args: attention: the name under which transformers knows it. Raises: ValueError for an output
    layer that the head can't replace; what transformers raises for a config that makes no model."""
    lm = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
    )
    lm.tie_weights()
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{type(lm).__name__} has no linear output layer, which is wanted")
    lm.set_output_embeddings(LogProbHead.from_linear(head, logit_factor(config)))
    return lm


def logit_factor(config: PreTrainedConfig) -> float:
    """What the logits are multiplied with behind the output layer: Granite's 1 / logits_scaling,
    Cohere's logit_scale."""
    divisor, factor = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
    return (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor)


def dynamic_rope(lm: PreTrainedModel) -> list[tuple[nn.Module, str | None, str, int]]:
    """Rotary embeddings whose frequencies change with the longest position of the row that they are
    computed for.

    Returns: of each its module, its kind of layers (None: one for all), its type, and up to how
    many tokens it is what it is at the start: dynamic NTK (by `max_position_embeddings`) and
    longrope (Ding et al. 2024, arXiv:2402.13753, by `original_max_position_embeddings`)."""
    found = []
    for module in lm.modules():
        types = getattr(module, "rope_type", None)
        for layers, name in types.items() if isinstance(types, dict) else [(None, types)]:
            settings = module.config.rope_parameters if name is not None else None
            if name == "longrope":
                settings = settings if layers is None else settings[layers]
                found.append((module, layers, name, settings["original_max_position_embeddings"]))
            elif name is not None and "dynamic" in name:
                found.append((module, layers, name, module.original_max_seq_len))
    return found


def learned_positions(lm: PreTrainedModel) -> int | None:
    """How many positions a decoder with a learned embedding of them has (GPT-2); None: it has none
    such."""
    most = getattr(lm.config, "max_position_embeddings", None)
    words = lm.get_input_embeddings()
    sizes = {
        module.num_embeddings
        for module in lm.modules()
        if isinstance(module, nn.Embedding) and module is not words
    }
    return most if most in sizes else None


def fix_rope(lm: PreTrainedModel, max_tokens: int | None) -> int | None:
    """One set of rotary frequencies for all rows, those of a sequence of `max_tokens`: otherwise a
    short example gets other log-probs beside a long one.

    None leaves them as transformers has them. Returns: the longest sequence whose log-probs don't
    depend on its neighbours; None: any."""
    growing = dynamic_rope(lm)
    if max_tokens is None or not growing:
        return min((start for *_, start in growing), default=None)
    for module, layers, name, _ in growing:
        prefix, which = ("", {}) if layers is None else (f"{layers}_", {"layer_type": layers})
        inv_freq, _ = ROPE_INIT_FUNCTIONS[name](
            module.config, getattr(module, f"{prefix}inv_freq").device, seq_len=max_tokens, **which
        )
        module.register_buffer(f"{prefix}inv_freq", inv_freq, persistent=False)
        module.rope_type = "default" if layers is None else {**module.rope_type, layers: "default"}
    return max_tokens
