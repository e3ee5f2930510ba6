"""Small tokenizers of the kinds that real families have: who adds BOS, what ends a turn, what the
template writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tiny import SENTENCES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


class Kind(NamedTuple):
    """`eos_token`: what the config key must say where a turn does not end with the tokenizer's
    EOS."""

    specials: tuple[str, ...]
    bos: str | None
    eos: str
    adds_bos: bool
    template: str | None
    eos_token: str | None = None


CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ "
    "'<|im_start|>system\nBe kind.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3's: tools in the system turn, thoughts behind the last question alone, results as a user's
# turn.
QWEN3 = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{%- if tools %}{{ '<|im_start|>system\n' + system + '\n\n# Tools\n' }}"
    "{%- for tool in tools %}{{ (tool | tojson) + '\n' }}{%- endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + system + '<|im_end|>\n' "
    "}}{%- endif %}"
    "{%- set ns = namespace(asked=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.asked = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set said = m.content or '' %}"
    "{%- if m.role == 'user' %}{{ '<|im_start|>user\n' + said + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{%- set thought = m.reasoning_content or '' %}"
    "{%- if not thought and '</think>' in said %}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set said = said.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{ '<|im_start|>assistant\n' }}{%- if loop.index0 > ns.asked and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}{{ said.lstrip('\n') }}"
    "{%- for call in m.tool_calls %}{%- set call = call.function or call %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' + (call.arguments | '
    "tojson) + '}\n</tool_call>' }}"
    "{%- endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}{%- if messages[loop.index0 - 1].role != 'tool' %}{{ "
    "'<|im_start|>user' }}{%- endif %}"
    "{{ '\n<tool_response>\n' + said + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{%- "
    "endif %}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% "
    "endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set r = 'model' if m['role'] == 'assistant' else "
    "m['role'] %}"
    "{{ '<start_of_turn>' + r + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL_TOOLS = (
    "{{- bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + "
    "'[/AVAILABLE_TOOLS]' }}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% elif m['role'] == "
    "'tool' %}"
    "{{ '[TOOL_RESULTS] ' + m['content'] + '[/TOOL_RESULTS]' }}{% elif m['tool_calls'] %}{{ "
    "'[TOOL_CALLS] [' }}"
    "{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}{{ ']' + eos_token }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
OF_MISTRAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OF_LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
KINDS = {
    "smollm2": Kind(IM, "<|im_start|>", "<|im_end|>", False, CHATML),
    "smollm2-base": Kind(IM, "<|endoftext|>", "<|endoftext|>", False, None),  # as Pythia and GPT-2
    "yi-base": Kind(("<unk>", "<s>", "</s>"), "<s>", "</s>", False, None),
    "mistral": Kind(("<unk>", "<s>", "</s>"), "<s>", "</s>", True, None),
    "mistral-tools": Kind(OF_MISTRAL, "<s>", "</s>", True, MISTRAL_TOOLS),
    "qwen25": Kind(IM, None, "<|im_end|>", False, CHATML),
    "qwen3": Kind(IM, None, "<|im_end|>", False, QWEN3),
    "qwen25-base": Kind(IM, None, "<|endoftext|>", False, CHATML, "<|im_end|>"),
    "llama3": Kind(OF_LLAMA3, "<|begin_of_text|>", "<|eot_id|>", True, LLAMA3),
    "llama3-base": Kind(
        OF_LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", True, LLAMA3, "<|eot_id|>"
    ),
    "gemma": Kind(
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        True,
        GEMMA,
        "<end_of_turn>",
    ),
    "phi3": Kind(
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        None,
        "<|endoftext|>",
        False,
        PHI3,
        "<|end|>",
    ),
}


def make_tokenizer(kind: Kind, texts: Sequence[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the texts, with the special tokens, BOS and template of the kind."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=[
                AddedToken(name, normalized=False, special=True) for name in kind.specials
            ],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if kind.adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[(kind.bos, core.token_to_id(kind.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=kind.bos,
        eos_token=kind.eos,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = kind.template
    return tokenizer
