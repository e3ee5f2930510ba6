"""A config becomes a policy without weights: a decoder with our attention and our output layer.

The decoder's own code stays as transformers has it. Three things are ours: the attention (by name,
`zephyr.model.attention`), the output layer (`LogProbHead`), and one set of rotary frequencies for
all rows (`fix_rope`).

Shape letters:
    N  tokens of the packed row
    T  scored tokens
    D  hidden size
"""

from typing import NamedTuple, Protocol, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from zephyr.model.logprobs import LogProbHead, scored_hidden
from zephyr.model.sequence import all_scored
from zephyr.packing import PackedBatch, SequenceGroup

# What transformers raises for a value of the wrong type or size in config.json.
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

    Args:
        lm: a decoder from `build`, its weights filled.
        max_sequence_tokens: tokens of the longest sequence that its rotary frequencies, or its
            learned positions, are made for; None: any.
        quantize: how its frozen matrices are kept, as `adapter.quantize`.

    Attributes:
        sequence: the ranks that compute a row together, if the batch is a share of it. Set by the
            training engine.
    """

    sequence: SequenceGroup | None = None

    def __init__(
        self, lm: PreTrainedModel, max_sequence_tokens: int | None = None, quantize: str = "none"
    ) -> None:
        super().__init__()
        self.lm, self.max_sequence_tokens, self.quantize = lm, max_sequence_tokens, quantize

    def forward(self, batch: PackedBatch, collision: bool = False) -> Tensor:
        """Log-probabilities of the batch's targets, in nats.

        Args:
            collision: return [2, T]; the second row is log sum_v p(v)^2 of each target's position,
                without gradient.

        Raises:
            ValueError: a sequence of the batch is longer than `max_sequence_tokens`.
        """
        if self.max_sequence_tokens is not None and batch.layout.max_key > self.max_sequence_tokens:
            raise ValueError(
                f"a packed sequence has {batch.layout.max_key} tokens, and the positions of this "
                f"{type(self.lm).__name__} are made for at most {self.max_sequence_tokens}; if "
                "they are rotary, load_policy(..., max_tokens=LONGEST) makes them for longer ones"
            )
        # transformers passes a mask of four dimensions on as it is, and computes none. `layout`
        # takes its place.
        no_mask = torch.empty(1, 1, 0, 0, device=batch.tokens_N.device)
        hidden_ND = self.lm.base_model(
            input_ids=batch.tokens_N[None],
            position_ids=batch.positions_N[None],
            attention_mask=no_mask,
            use_cache=False,
            layout=batch.layout,
            **({} if batch.share is None else {"sequence": self.sequence}),
        ).last_hidden_state[0]
        head: LogProbHead = self.lm.get_output_embeddings()
        logp_T: Tensor = head(scored_hidden(hidden_ND, batch), batch.targets_T, collision)
        if batch.share is None:
            return logp_T
        assert self.sequence is not None, "a share of a row needs the ranks that have the others"
        return all_scored(logp_T, batch, self.sequence)


def build(config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """The decoder of a config, its output layer a LogProbHead, its parameters not yet filled.

    Args:
        config: of a decoder that transformers knows.
        attention: the name that `register_kernel` returned.
        dtype: of the parameters.

    Raises:
        ValueError: the output layer is one that the head can't replace.
        Others of MODEL_CONFIG_ERRORS: transformers can't make a model of the config.
    """
    lm: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
    )
    lm.tie_weights()
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"the output layer of {type(lm).__name__} is {type(head).__name__}, expected nn.Linear"
        )
    lm.set_output_embeddings(LogProbHead.from_linear(head, logit_factor(config)))
    return lm


def logit_factor(config: PreTrainedConfig) -> float:
    """What a decoder multiplies its logits with behind the output layer.

    Granite: 1 / logits_scaling. Cohere: logit_scale. Others: 1.
    """
    factor: float | None = getattr(config, "logit_scale", None)
    divisor: float | None = getattr(config, "logits_scaling", None)
    return (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor)


class RotaryEmbedding(Protocol):
    """What the rotary modules of transformers have; the type of nn.Module does not show it."""

    config: PreTrainedConfig
    rope_type: str | dict[str, str | None]  # or one for each kind of layers
    original_max_seq_len: int

    def get_buffer(self, target: str) -> Tensor: ...
    def register_buffer(self, name: str, tensor: Tensor, persistent: bool) -> None: ...


class DynamicRope(NamedTuple):
    """A rotary embedding whose frequencies depend on the longest position of the row.

    `dynamic` is NTK-aware scaling, `longrope` is LongRoPE (Ding et al. 2024, arXiv:2402.13753).
    """

    module: RotaryEmbedding
    layers: str | None  # the kind of layers that use it; None: all
    rope_type: str  # as transformers calls it
    original_tokens: int  # up to so many tokens, the frequencies are those of pretraining


def dynamic_rope(lm: PreTrainedModel) -> list[DynamicRope]:
    """The rotary embeddings of a decoder whose frequencies depend on the row."""
    found: list[DynamicRope] = []
    for module in lm.modules():
        if getattr(module, "rope_type", None) is None:
            continue
        rotary = cast(RotaryEmbedding, module)
        types = rotary.rope_type
        by_layers = types.items() if isinstance(types, dict) else [(None, types)]
        for layers, rope_type in by_layers:
            if rope_type is None:
                continue
            if rope_type == "longrope":
                settings = rotary.config.rope_parameters
                if layers is not None:
                    settings = settings[layers]
                length = settings["original_max_position_embeddings"]
                found.append(DynamicRope(rotary, layers, rope_type, length))
            elif "dynamic" in rope_type:
                found.append(DynamicRope(rotary, layers, rope_type, rotary.original_max_seq_len))
    return found


def learned_positions(lm: PreTrainedModel) -> int | None:
    """Positions of a decoder that learns an embedding of each (GPT-2); None: it learns none."""
    positions: int | None = getattr(lm.config, "max_position_embeddings", None)
    words = lm.get_input_embeddings()
    sizes = {
        module.num_embeddings
        for module in lm.modules()
        if isinstance(module, nn.Embedding) and module is not words
    }
    return positions if positions in sizes else None


def fix_rope(lm: PreTrainedModel, max_tokens: int | None) -> int | None:
    """Give all rows one set of rotary frequencies: those of a sequence of `max_tokens`.

    Without this, a short example gets other log-probs beside a long one, where frequencies depend
    on the row (`dynamic_rope`).

    Args:
        lm: the decoder; its rotary modules are modified.
        max_tokens: None leaves the frequencies as transformers has them.

    Returns:
        Tokens of the longest sequence whose log-probs don't depend on its neighbours; None: any.
    """
    ropes = dynamic_rope(lm)
    if max_tokens is None or not ropes:
        return min((rope.original_tokens for rope in ropes), default=None)
    for rope in ropes:
        fix_frequencies(rope, max_tokens)
    return max_tokens


def fix_frequencies(rope: DynamicRope, max_tokens: int) -> None:
    """Give a rotary embedding the frequencies of `max_tokens`, and the type that keeps them."""
    module, layers = rope.module, rope.layers
    buffer = "inv_freq" if layers is None else f"{layers}_inv_freq"
    options = {} if layers is None else {"layer_type": layers}
    inv_freq, _ = ROPE_INIT_FUNCTIONS[rope.rope_type](
        module.config, module.get_buffer(buffer).device, seq_len=max_tokens, **options
    )
    module.register_buffer(buffer, inv_freq, persistent=False)
    if isinstance(module.rope_type, dict) and layers is not None:
        module.rope_type = {**module.rope_type, layers: "default"}
    else:
        module.rope_type = "default"
