"""A conversation becomes token ids and flags of which ids are targets; truncation is decided here.

The ids of an answer follow those of its prompt as a model would have generated them. Special tokens
in a row's own text (`</s>`, or `<s>` in HTML) are encoded as plain characters, so that no text of a
row can end a turn. Role tags are text; only the EOS before one makes it a tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from zephyr.chat import eras
from zephyr.chat.messages import (
    Message,
    Messages,
    PairTexts,
    Tool,
    check_messages,
    check_pair,
    words_of,
)
from zephyr.chat.template import HANDBOOK_TEMPLATE, render, template_of
from zephyr.chat.template_check import require_rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A Unicode noncharacter: it stands inside the name of a special token that is only text.
SENTINEL = "\ufdd0"
# In a text, neither the sentinel nor half of a surrogate pair is a character.
NO_CHARACTER = re.compile("[\ufdd0\ud800-\udfff]")
# Texts that text behind them does not merge with; one of them works for any continuation.
ANCHORS = ("\n", "x", ".")
QUESTION: Messages = [{"role": "user", "content": "a"}]
ANSWERED: Messages = [*QUESTION, {"role": "assistant", "content": "b"}]


class EncodedPair(NamedTuple):
    """Token ids of a pair: `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids` are its two
    conversations.

    weight: the row's own, >= 0: what the pair counts in sums and means of a step.
    """

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    weight: float = 1.0


class EncodedText(NamedTuple):
    """Token ids of a text.

    is_target: of each token, whether the loss counts it, predicted from those before it; never
    token 0.
    """

    id: str
    ids: list[int]
    is_target: list[bool]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    pair: Mapping[str, object],
    *,
    max_tokens: int = 1024,
    max_prompt_tokens: int = 512,
    truncation: str = "keep_end",
    template: str | None = None,
    encoding: str = "zephyr",
) -> EncodedPair:
    """Ids of a preference row, truncated to `max_tokens`.

    `prompt_ids` are BOS where the tokenizer adds one (`leading_bos`), then the template's text up
    to where the answer begins; a template that writes BOS itself gets no second one. `chosen_ids`
    and `rejected_ids` are the answer as generation would continue the prompt, then EOS. `id` is the
    row's own, or "".

    Args:
        pair: the row, of any shape that `check_pair` reads.
        max_tokens, max_prompt_tokens, truncation: as of `truncate_pair`.
        template: jinja; None: the tokenizer's own, else Zephyr's.
        encoding: `zephyr`; `handbook_a` and `handbook_b` reproduce published quirks (`eras`).
    Raises:
        ValueError: naming what is wrong with the row, the template or the limits.
    """
    template = template_of(tokenizer, template)
    return truncate_pair(
        tokenize_pair(tokenizer, pair, template=template, encoding=encoding),
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        truncation=truncation,
        bos_id=template_bos(tokenizer, template),
    )


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    pair: Mapping[str, object],
    *,
    template: str | None = None,
    left_out: list[str] | None = None,
    encoding: str = "zephyr",
) -> EncodedPair:
    """`encode_pair` without truncation. Rows are checked alike in every encoding.

    Args:
        left_out: extended by the parts that the template does not write (`require_rendered`).
    """
    template = template_of(tokenizer, template)
    texts = check_pair(pair)
    weight = check_weight(pair.get("weight", 1.0))
    turns = _spell_out(tokenizer, texts.prompt)
    tools = _spelled_tools(tokenizer, texts.tools)
    prompt = render(tokenizer, turns, template, answer=True, tools=tools)
    sides: list[list[int]] = []
    lost: list[str] = []
    for answer, name in ((texts.chosen, texts.names[-2]), (texts.rejected, texts.names[-1])):
        conversation = [*turns, *_spell_out(tokenizer, [answer])]
        text = render(tokenizer, conversation, template, answer=False, tools=tools)
        lost += require_rendered(
            tokenizer,
            conversation,
            template,
            text=text,
            names=(*texts.names[:-2], name),
            trained=[len(turns)],
            tools=tools,
            first=len(turns) if sides else 0,
        )
        answer_ids, _ = _answer(tokenizer, text, prompt, template)
        sides.append(answer_ids)
    if left_out is not None:
        left_out += lost
    prompt_ids = _with_bos(tokenizer, _ids(tokenizer, prompt))
    encoded = EncodedPair(str(pair.get("id", "")), prompt_ids, sides[0], sides[1], weight)
    if encoding == "zephyr":
        return encoded
    return encoded._replace(**_era_sides(tokenizer, texts, template, encoding)._asdict())


def _era_sides(
    tokenizer: PreTrainedTokenizerBase, texts: PairTexts, template: str, encoding: str
) -> eras.Sides:
    """The ids of prompt and responses in another encoding than `zephyr`."""
    eras.require_handbook_template(encoding, template)
    tools = eras.Tools(
        write=lambda messages, answer: render(
            tokenizer, messages, HANDBOOK_TEMPLATE, answer=answer
        ),
        tokenize=partial(_tokenize, tokenizer),
        bos_id=_bos_id(tokenizer),
        eos_id=_eos_id(tokenizer),
    )
    return eras.encode_as(encoding, tools, texts.prompt, (texts.chosen, texts.rejected))


def truncate_pair(
    pair: EncodedPair,
    *,
    max_tokens: int,
    max_prompt_tokens: int,
    truncation: str = "keep_end",
    bos_id: int | None,
) -> EncodedPair:
    """The pair in at most `max_tokens` ids for the prompt and the longer answer.

    A pair that fits stays as it is. Otherwise the prompt keeps its BOS and its last ids,
    `max_prompt_tokens` together, and each answer keeps its first ids up to `max_tokens`, at least
    one; an answer that is cut has no EOS. The two answers may become equal, which teaches nothing.

    Args:
        truncation: `trl_0.7` as TRL 0.7 cut: the prompt keeps its last `max_prompt_tokens` ids,
            without BOS; if the pair is still too long, each answer keeps `max_tokens -
            max_prompt_tokens`, however short the prompt is.
        bos_id: that of `template_bos`.
    Raises:
        ValueError: for another truncation, or limits that leave no tokens for an answer.
    """
    if truncation not in ("keep_end", "trl_0.7"):
        raise ValueError(f"truncation is {truncation!r}, expected 'keep_end' or 'trl_0.7'")
    if not 2 <= max_prompt_tokens < max_tokens:
        raise ValueError(
            f"max_prompt_tokens is {max_prompt_tokens} and max_tokens {max_tokens}, expected "
            "2 <= max_prompt_tokens < max_tokens: an answer needs tokens too"
        )
    prompt = pair.prompt_ids
    longest_answer = max(len(pair.chosen_ids), len(pair.rejected_ids))
    if len(prompt) + longest_answer <= max_tokens:
        return pair
    if len(prompt) > max_prompt_tokens:
        keeps_bos = truncation == "keep_end" and prompt[0] == bos_id
        kept_bos = prompt[:1] if keeps_bos else []
        prompt = kept_bos + prompt[len(prompt) - max_prompt_tokens + len(kept_bos) :]
    left = max_tokens - len(prompt)
    if truncation == "trl_0.7" and longest_answer > left:
        left = max_tokens - max_prompt_tokens
    return pair._replace(
        prompt_ids=prompt, chosen_ids=pair.chosen_ids[:left], rejected_ids=pair.rejected_ids[:left]
    )


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    max_tokens: int = 2048,
    targets: str = "assistant",
    template: str | None = None,
    id: str = "",
    tools: Sequence[Mapping[str, object]] | None = None,
    names: Sequence[str] | None = None,
    left_out: list[str] | None = None,
) -> EncodedText:
    """Ids of a conversation that ends with the assistant's turn, cut at the end to `max_tokens`.

    The ids are BOS (where the tokenizer adds one) and the template's text; the ids of each answer
    are what generation would have continued with. A conversation that is cut may have no target.

    Args:
        targets: `assistant`: the words of every assistant turn and the EOS that ends it; `all`:
            every token but the first, as the alignment handbook trained. Neither counts an
            assistant turn with `train: false` (or another of `messages.MASKS`).
        tools: what the assistant may call.
        names: what the row calls the turns, for errors.
        left_out: extended by the parts that the template does not write (`require_rendered`).
    Raises:
        ValueError: for other `targets`, a bad conversation, or a template that ends no answer with
            EOS.
    """
    if targets not in ("assistant", "all"):
        raise ValueError(f"targets is {targets!r}, expected 'assistant' or 'all'")
    template = template_of(tokenizer, template)
    checked = check_messages(messages, last="assistant")
    names = names or [f"messages[{i}]" for i in range(len(checked))]
    trained = _trained_turns(checked, names, targets)
    turns, tools = _spell_out(tokenizer, checked), _spelled_tools(tokenizer, tools)
    whole = render(tokenizer, turns, template, answer=False, tools=tools)
    lost = require_rendered(
        tokenizer, turns, template, text=whole, names=names, trained=trained, tools=tools
    )
    if left_out is not None:
        left_out += lost
    parts = _conversation_parts(
        tokenizer,
        turns,
        template,
        whole,
        names=names,
        trained=trained,
        targets=targets,
        tools=tools,
    )
    return _joined(id, parts, max_tokens)


def _conversation_parts(
    tokenizer: PreTrainedTokenizerBase,
    turns: Messages,
    template: str,
    whole: str,
    *,
    names: Sequence[str],
    trained: Sequence[int],
    targets: str,
    tools: Sequence[Tool] | None,
) -> list[tuple[list[int], bool]]:
    """The conversation in parts, prompts and answers by turns: ids, and whether they are targets.

    Args:
        whole: the rendered conversation.
        trained: the turns whose words are targets.
    """
    parts: list[tuple[list[int], bool]] = []  # ids, and whether they are targets
    done = ""  # the text whose ids are in `parts`; it ends with an EOS, or is empty
    for turn in _assistant_turns(turns):
        prompt = render(tokenizer, turns[:turn], template, answer=True, tools=tools)
        if not whole.startswith(prompt):
            if turn not in trained and targets == "assistant":
                continue  # it is part of a later prompt, as the template writes it there
            _require_continued(tokenizer, turns, names[turn], template, whole, targets, tools)
        until = partial(render, tokenizer, turns[: turn + 1], template, answer=False, tools=tools)
        answer_ids, end = _answer(tokenizer, whole, prompt, template, until)
        between_ids = _ids(tokenizer, prompt[len(done) :], after_eos=bool(done))
        if not done:
            between_ids = _with_bos(tokenizer, between_ids)
        parts.append((between_ids, targets == "all"))
        parts.append((answer_ids, turn in trained))
        done = whole[:end]
    rest_ids = _ids(tokenizer, whole[len(done) :], after_eos=True)
    parts.append((rest_ids, targets == "all"))
    return parts


def _joined(id: str, parts: list[tuple[list[int], bool]], max_tokens: int) -> EncodedText:
    """The text of parts that are targets or not, cut at the end; token 0 is never a target."""
    ids = list(chain.from_iterable(part for part, _ in parts))
    is_target = [flag for part, flag in parts for _ in part]
    is_target[0] = False
    return EncodedText(id, ids[:max_tokens], is_target[:max_tokens])


def _assistant_turns(turns: Messages) -> list[int]:
    return [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]


def _require_continued(
    tokenizer: PreTrainedTokenizerBase,
    turns: Messages,
    name: str,
    template: str,
    whole: str,
    targets: str,
    tools: Sequence[Tool] | None,
) -> None:
    """Of an answer that does not follow its generation prompt in `whole`.

    Raises:
        ValueError: where the last answer follows its own, so that one row an answer would work.
    """
    last = _assistant_turns(turns)[-1]
    if not whole.startswith(render(tokenizer, turns[:last], template, answer=True, tools=tools)):
        return
    masks = "`train: false` at the answers before the last, or " if targets == "assistant" else ""
    raise ValueError(
        f"the chat template writes the earlier answer `{name}` differently from how generation "
        "continues its prompt (it strips the thoughts of earlier answers, or opens `<think>` only "
        f"for a new one), expected {masks}one row an answer: otherwise the trained tokens would "
        "not follow what a model is given"
    )


def _trained_turns(turns: Messages, names: Sequence[str], targets: str) -> list[int]:
    """The assistant turns whose words are targets.

    Raises:
        ValueError: where the `train` of another turn contradicts `targets`.
    """
    all_trained = targets == "all"
    for turn, name in zip(turns, names):
        if turn["role"] != "assistant" and turn.get("train", all_trained) != all_trained:
            raise ValueError(
                f"`{name}` is marked as {'' if turn['train'] else 'not '}trained, and is the "
                f"{turn['role']}'s, expected marks only at the assistant's turns: data.targets is "
                f"{targets}"
            )
    return [i for i in _assistant_turns(turns) if turns[i].get("train", True)]


def check_weight(value: object) -> float:
    """The weight of a pair.

    Raises:
        ValueError: for anything but a finite number >= 0.
    """
    number = value if type(value) is int or type(value) is float else math.nan  # no bool
    if not 0 <= number < 1e300:
        raise ValueError(
            f"`weight` is {type(value).__name__} {value!r:.60}, expected a finite number >= 0"
        )
    return float(number)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, *, max_tokens: int = 2048, id: str = ""
) -> EncodedText:
    """Ids of plain text: BOS (where the tokenizer adds one), the text, EOS, cut at the end.

    Every token but the first is a target.

    Raises:
        ValueError: where the text is empty.
    """
    if not text.strip():
        raise ValueError(f"`text` is empty ({text!r:.60}), expected words")
    (turn,) = _spell_out(tokenizer, [{"role": "user", "content": text}])
    ids = _with_bos(tokenizer, _ids(tokenizer, words_of(turn)))
    ids = [*ids, _eos_id(tokenizer)][:max_tokens]
    return EncodedText(id, ids, [False] + [True] * (len(ids) - 1))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    template: str | None = None,
    tools: Sequence[Tool] | None = None,
) -> list[int]:
    """Ids that a model is given to answer `messages`: those that training puts before an answer.

    Raises:
        ValueError: where the conversation is bad or does not end with the user's (or a tool's)
            turn.
    """
    template = template_of(tokenizer, template)
    turns = _spell_out(tokenizer, check_messages(messages, last="user"))
    tools = _spelled_tools(tokenizer, tools)
    text = render(tokenizer, turns, template, answer=True, tools=tools)
    return _with_bos(tokenizer, _ids(tokenizer, text))


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the BOS that the tokenizer itself puts before a text; None where it puts none, even if
    it has one."""
    bos_id = _bos_id(tokenizer)
    if bos_id is None or tokenizer("a")["input_ids"][:1] != [bos_id]:
        return None
    return bos_id


def _bos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    bos_id: int | None = tokenizer.bos_token_id
    return bos_id


def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    eos_id: int = tokenizer.eos_token_id
    return eos_id


def template_bos(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """Id of the BOS in front of a conversation, which a truncated prompt keeps: the tokenizer's, or
    the template's own.

    None where there is none, and where it is the mark of every turn (SmolLM2's `<|im_start|>`).
    """
    return _kept_bos(tokenizer, template, tokenizer.bos_token)


def end_of_turn_token(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """The special token that the template writes behind an answer; None where it writes none."""
    prompt = render(tokenizer, QUESTION, template, answer=True)
    whole = render(tokenizer, ANSWERED, template, answer=False)
    if not whole.startswith(prompt):
        return None
    found = _specials(tokenizer, len(tokenizer)).search(whole, len(prompt))
    return found[0] if found else None


def template_with_bos(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The template, made to write BOS itself where training put one in front of its text.

    `apply_chat_template` then gives the ids of training: it, and the servers built on it, tokenize
    without adding BOS.
    """
    if leading_bos(tokenizer) is None:
        return template
    if render(tokenizer, QUESTION, template, answer=True).startswith(tokenizer.bos_token):
        return template
    # The line break behind the comment makes the template begin at the start of a line again, where
    # jinja strips the spaces before a block.
    return "{{ bos_token }}{# as in training #}\n" + template


@lru_cache(maxsize=8)
def _kept_bos(tokenizer: PreTrainedTokenizerBase, template: str, bos: str | None) -> int | None:
    if bos is None or leading_bos(tokenizer) is not None:
        return _bos_id(tokenizer)
    text = render(tokenizer, QUESTION, template, answer=True)
    once = bos == tokenizer.eos_token or text.count(bos) == 1
    return _bos_id(tokenizer) if text.startswith(bos) and once else None


@lru_cache(maxsize=8)
def _ends_with_eos(tokenizer: PreTrainedTokenizerBase, template: str, eos: str) -> bool:
    try:
        return end_of_turn_token(tokenizer, template) == eos
    except ValueError:  # the template refuses these two turns
        return False


@lru_cache(maxsize=8)
def _specials(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    """The name of any special token, as one group.

    Args:
        size: the length of the tokenizer, so that the cache misses when tokens were added.
    """
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def _spell_out(tokenizer: PreTrainedTokenizerBase, turns: Messages) -> Messages:
    """The turns with the sentinel inside the name of every special token in their texts.

    The special tokens that the template writes are then the only ones.
    """
    spelled: Messages = []
    for turn in turns:
        place = f"the {turn['role']}'s turn"
        kept = {key: value for key, value in turn.items() if key != "train"}
        spelled.append({key: _spelled(tokenizer, value, place) for key, value in kept.items()})
    return spelled


def _spelled_tools(
    tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool] | None
) -> list[Tool] | None:
    return [_spelled_mapping(tokenizer, tool, "`tools`") for tool in tools] if tools else None


def _spelled_mapping(
    tokenizer: PreTrainedTokenizerBase, value: Mapping[str, object], place: str
) -> Message:
    return {
        _spelled_text(tokenizer, key, place): _spelled(tokenizer, inner, place)
        for key, inner in value.items()
    }


def _spelled(tokenizer: PreTrainedTokenizerBase, value: object, place: str) -> object:
    """The value with the sentinel in every text of it. Args: place: of the value, for errors."""
    if isinstance(value, str):
        return _spelled_text(tokenizer, value, place)
    if isinstance(value, Mapping):
        return _spelled_mapping(tokenizer, value, place)
    if isinstance(value, (list, tuple)):
        return [_spelled(tokenizer, inner, place) for inner in value]
    return value


def _spelled_text(tokenizer: PreTrainedTokenizerBase, text: str, place: str) -> str:
    """The text with the sentinel inside the name of every special token.

    Raises:
        ValueError: naming what is not a character.
    """
    odd = NO_CHARACTER.search(text)
    if odd:
        raise ValueError(f"{place} holds U+{ord(odd[0]):04X}, which is no character, expected text")
    specials = _specials(tokenizer, len(tokenizer))
    while specials.search(text):
        text = specials.sub(lambda name: name[0][0] + SENTINEL + name[0][1:], text)
    return text


def _with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The ids after the BOS that the tokenizer adds, unless the template has written it already."""
    bos_id = _bos_id(tokenizer)
    if bos_id is not None and ids[:2] == [bos_id, bos_id]:
        raise ValueError(
            f"the chat template writes BOS more than once at the start ({tokenizer.bos_token!r} "
            "twice), expected one"
        )
    bos_id = leading_bos(tokenizer)
    return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    whole: str,
    prompt: str,
    template: str,
    until: Callable[[], str] | None = None,
) -> tuple[list[int], int]:
    """Ids of the answer that follows `prompt` in `whole`, its EOS included, and where that EOS ends
    in `whole`.

    The ids are those that the tokenizer makes of prompt and answer together, where nothing merges
    across the boundary and no dummy space is added there (it would be, right after a special
    token). Otherwise they are those of a continuation. Special tokens that the template writes into
    an answer (a mark of tool calls, `<think>`) belong to the answer, if the template ends a plain
    one with EOS.

    Args:
        until: renders the conversation up to and including this answer; None: it is `whole`.
    """
    end = _end_of_answer(tokenizer, whole, prompt, template, until)
    specials, eos = _specials(tokenizer, len(tokenizer)), tokenizer.eos_token
    response = whole[len(prompt) : end]
    context = prompt[max(prompt.rfind(eos), 0) :]  # text before a special token changes nothing
    context_ids, ids = _ids(tokenizer, context), _ids(tokenizer, context + response)
    apart = ids[: len(context_ids)] == context_ids and specials.split(context)[-1] != ""
    ids = ids[len(context_ids) :] if apart else _continuation(partial(_ids, tokenizer), response)
    if not ids:
        raise ValueError(f"the answer {response[:60]!r} has no tokens, expected at least one")
    return [*ids, _eos_id(tokenizer)], end + len(eos)


def _end_of_answer(
    tokenizer: PreTrainedTokenizerBase,
    whole: str,
    prompt: str,
    template: str,
    until: Callable[[], str] | None,
) -> int:
    """Where the EOS begins that ends the answer after `prompt` in `whole`.

    Raises:
        ValueError: where the template does not write the answer right behind its generation prompt,
            or does not end it with the tokenizer's EOS.
    """
    eos = tokenizer.eos_token
    continued = whole.startswith(prompt)
    first = _specials(tokenizer, len(tokenizer)).search(whole, len(prompt)) if continued else None
    end = whole.find(eos, len(prompt))
    if first and first[0] != eos:
        # A special token within an answer that ends with EOS later is the answer's own.
        within = end > 0 and _ends_with_eos(tokenizer, template, eos)
        if within and until is not None:
            within = until().startswith(whole[: end + len(eos)])
        if not within:
            raise ValueError(
                f"the chat template ends an answer with {first[0]!r}, and the tokenizer's EOS is "
                f"{eos!r}: a trained model would not know where to stop; eos_token: {first[0]!r} "
                "makes it the EOS"
            )
    if not continued and prompt.rstrip().endswith("<think>"):
        raise ValueError(
            "the chat template's generation prompt opens `<think>`, and it writes answers without: "
            "they would not follow what a model is given, expected a template that writes them "
            "behind its generation prompt (chat_template: zephyr, or a FILE)"
        )
    if first is None or end < 0:
        raise ValueError(
            "the chat template does not write an answer right behind its generation prompt and end "
            f"it with the tokenizer's EOS {eos!r}, expected that: a trained model would not know "
            "where to stop"
        )
    return end


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, after_eos: bool = False) -> list[int]:
    """Ids of rendered text, no BOS; names with a sentinel in them stay text.

    Args:
        after_eos: whether the text follows an EOS, which may change how it begins.
    """
    if SENTINEL not in text:
        if not after_eos:
            return _tokenize(tokenizer, text)
        return _tokenize(tokenizer, tokenizer.eos_token + text)[1:]
    specials = _specials(tokenizer, len(tokenizer))
    ids: list[int] = []
    for part in filter(None, specials.split(text)):
        if specials.fullmatch(part):
            special_id = tokenizer.convert_tokens_to_ids(part)
            assert isinstance(special_id, int)
            ids.append(special_id)
        elif SENTINEL not in part:
            ids += _ids(tokenizer, part, after_eos or bool(ids))
        else:
            ids += _literal(tokenizer, part.replace(SENTINEL, ""), after_eos or bool(ids))
    return ids


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, **settings: bool) -> list[int]:
    """The tokenizer's ids, without special ones added.

    Raises:
        ValueError: where it has none for the text. Tokenizers in Rust raise a bare Exception.
    """
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=False, **settings)["input_ids"]
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(f"the tokenizer can't encode {text!r:.60}: {error}") from error
    return ids


def _literal(tokenizer: PreTrainedTokenizerBase, text: str, after_special: bool) -> list[int]:
    """Ids of text in which no special token is recognized.

    Args:
        after_special: whether the text follows a special token; else it begins a text.
    """
    spell = partial(_tokenize, tokenizer, split_special_tokens=True)
    # Some tokenizers add a dummy space at the beginning of a text, and none after a special token.
    if after_special and _ids(tokenizer, "x", after_eos=True) != _ids(tokenizer, "x"):
        return _continuation(spell, text)
    return spell(text)


def _continuation(spell: Callable[[str], list[int]], text: str) -> list[int]:
    """Ids of text in the middle of other text: after an anchor that does not merge with it."""
    for anchor in ANCHORS:
        anchor_ids, ids = spell(anchor), spell(anchor + text)
        if ids[: len(anchor_ids)] == anchor_ids:
            return ids[len(anchor_ids) :]
    return spell(text)
