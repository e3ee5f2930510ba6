"""Here a conversation becomes token ids and flags of which ids are targets; truncation is decided
here too.

An answer's ids follow its prompt's as a model would have written them. Special tokens in a row's
own text (`</s>`, or `<s>` in HTML) are spelled out as characters: nobody's words end a turn. Role
tags are text; only the EOS before one makes it a tag."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from zephyr.chat.messages import Messages, check_messages, check_pair
from zephyr.chat.template import render, template_of
from zephyr.chat.template_check import require_rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = (
    "\ufdd0"  # a Unicode noncharacter: stands inside a special token's name that is only text
)
ANCHORS = (
    "\n",
    "x",
    ".",
)  # text in front of which nothing merges, one of them for any continuation


class EncodedPair(NamedTuple):
    """Token ids of a pair: `prompt_ids + chosen_ids` is one conversation, `prompt_ids +
    rejected_ids` the other.

    weight: the row's own, >= 0, which no loss reads yet (`data.load_splits` refuses others than
    1)."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    weight: float = 1.0


class EncodedText(NamedTuple):
    """Token ids of a text; `is_target[i]`: the loss counts token i, predicted from those before it
    (never token 0)."""

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
) -> EncodedPair:
    """Ids of a preference row (shapes: `check_pair`), cut to `max_tokens` (how: `truncate_pair`).

    `prompt_ids`: BOS where the tokenizer adds one (`leading_bos`), then the template's text up to
    where the answer begins; a template that writes BOS itself gets no second one. `template`:
    jinja, None: the tokenizer's own, else Zephyr's (`template_of`). `chosen_ids` and
    `rejected_ids`: the answer as generation would continue the prompt, then EOS. `id`: the row's
    own, or "". Raises: ValueError naming what is wrong with the row, the template or the limits."""
    template = template_of(tokenizer, template)
    return truncate_pair(
        tokenize_pair(tokenizer, pair, template=template),
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
) -> EncodedPair:
    """`encode_pair` before anything is cut; to `left_out` goes what the template does not write
    (`require_rendered`)."""
    template = template_of(tokenizer, template)
    texts, weight = check_pair(pair), check_weight(pair.get("weight", 1.0))
    turns, tools = _spell_out(tokenizer, texts.prompt), _spelled_tools(tokenizer, texts.tools)
    prompt = render(tokenizer, turns, template, answer=True, tools=tools)
    sides, lost = [], []
    for answer, name in ((texts.chosen, texts.names[-2]), (texts.rejected, texts.names[-1])):
        whole = [*turns, *_spell_out(tokenizer, [answer])]
        text = render(tokenizer, whole, template, answer=False, tools=tools)
        lost += require_rendered(
            tokenizer,
            whole,
            template,
            text=text,
            names=(*texts.names[:-2], name),
            trained=[len(turns)],
            tools=tools,
            first=len(turns) if sides else 0,
        )
        sides.append(_answer(tokenizer, text, prompt, template, lambda text=text: text)[0])
    if left_out is not None:
        left_out += lost
    return EncodedPair(
        str(pair.get("id", "")), _with_bos(tokenizer, _ids(tokenizer, prompt)), *sides, weight
    )


def truncate_pair(
    pair: EncodedPair,
    *,
    max_tokens: int,
    max_prompt_tokens: int,
    truncation: str = "keep_end",
    bos_id: int | None,
) -> EncodedPair:
    """The pair in at most `max_tokens` ids for prompt and longer answer; as it is where it fits.

    Else the prompt keeps its BOS (`bos_id`: `template_bos`) and its last ids, `max_prompt_tokens`
    together, and each answer what then fits from its beginning, at least one id; a cut answer has
    no EOS. The two sides may become equal: that teaches nothing. Raises: ValueError for a policy
    other than `keep_end`, or limits that leave no room for an answer."""
    if truncation != "keep_end":
        raise ValueError(f"truncation is {truncation!r}, wanted 'keep_end'")
    if not 2 <= max_prompt_tokens < max_tokens:
        raise ValueError(
            f"max_prompt_tokens is {max_prompt_tokens} and max_tokens {max_tokens}, wanted "
            "2 <= max_prompt_tokens < max_tokens: an answer needs room"
        )
    prompt = pair.prompt_ids
    if len(prompt) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= max_tokens:
        return pair
    if len(prompt) > max_prompt_tokens:
        kept_bos = prompt[:1] if prompt[0] == bos_id else []
        prompt = kept_bos + prompt[len(prompt) - max_prompt_tokens + len(kept_bos) :]
    room = max_tokens - len(prompt)
    return pair._replace(
        prompt_ids=prompt, chosen_ids=pair.chosen_ids[:room], rejected_ids=pair.rejected_ids[:room]
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

    The ids are BOS (where the tokenizer adds one) and the template's text; each answer's ids are
    what generation would have continued with. Targets: `assistant`: the words of every assistant
    turn and the EOS that ends it; `all`: every token but the first, as the alignment handbook
    trained; neither those of a turn with `train: false` (or another of `messages.MASKS`). A cut
    conversation may have no target left. Args: tools: what the assistant may call; names: of the
    turns, for errors; left_out: as of `tokenize_pair`. Raises: ValueError for other `targets`, a
    bad conversation, or a template that ends no answer with EOS."""
    if targets not in ("assistant", "all"):
        raise ValueError(f"targets is {targets!r}, wanted 'assistant' or 'all'")
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
    parts: list[tuple[list[int], bool]] = []  # ids, and whether they are targets
    done = ""  # the text whose ids are in `parts`; it ends with an EOS, or is empty
    for turn in (i for i, message in enumerate(turns) if message["role"] == "assistant"):
        prompt = render(tokenizer, turns[:turn], template, answer=True, tools=tools)
        if not whole.startswith(prompt):
            if turn not in trained and targets == "assistant":
                continue  # it is part of a later prompt, as the template writes it there
            _require_continued(tokenizer, turns, names[turn], template, whole, targets, tools)
        answer_ids, end = _answer(
            tokenizer,
            whole,
            prompt,
            template,
            lambda upto=turns[: turn + 1]: render(
                tokenizer, upto, template, answer=False, tools=tools
            ),
        )
        between_ids = _ids(tokenizer, prompt[len(done) :], after_eos=bool(done))
        parts += [
            (between_ids if done else _with_bos(tokenizer, between_ids), targets == "all"),
            (answer_ids, turn in trained),
        ]
        done = whole[:end]
    parts.append((_ids(tokenizer, whole[len(done) :], after_eos=True), targets == "all"))
    return _joined(id, parts, max_tokens)


def _joined(id: str, parts: list[tuple[list[int], bool]], max_tokens: int) -> EncodedText:
    """The text of parts that are targets or not, of which token 0 is none, cut at the end."""
    ids = [*chain.from_iterable(part for part, _ in parts)]
    is_target = [flag for part, flag in parts for _ in part]
    is_target[0] = False
    return EncodedText(id, ids[:max_tokens], is_target[:max_tokens])


def _require_continued(
    tokenizer: PreTrainedTokenizerBase,
    turns: Messages,
    name: str,
    template: str,
    whole: str,
    targets: str,
    tools: Sequence[Mapping[str, object]] | None,
) -> None:
    """Of an answer that does not follow its generation prompt in `whole`. Raises: ValueError where
    only the last one does."""
    last = max(i for i, message in enumerate(turns) if message["role"] == "assistant")
    if whole.startswith(render(tokenizer, turns[:last], template, answer=True, tools=tools)):
        masks = (
            "`train: false` at the answers before the last, or " if targets == "assistant" else ""
        )
        raise ValueError(
            f"the chat template writes the earlier answer `{name}` differently from how generation continues its prompt (it strips "
            f"the thoughts of earlier answers, or opens `<think>` for a new one alone), wanted {masks}one row an answer: what is "
            "trained there would not follow what a model is given"
        )


def _trained_turns(turns: Messages, names: Sequence[str], targets: str) -> list[int]:
    """The assistant's turns whose words are targets. Raises: ValueError where another turn's
    `train` says what `targets` does not."""
    for turn, name in zip(turns, names):
        if turn["role"] != "assistant" and turn.get("train", targets == "all") != (
            targets == "all"
        ):
            raise ValueError(
                f"`{name}` is marked as {'' if turn['train'] else 'not '}trained, and is the {turn['role']}'s, wanted the mark "
                f"at the assistant's turns alone: data.targets is {targets}"
            )
    return [
        i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("train", True)
    ]


def check_weight(value: object) -> float:
    """The weight of a pair. Raises: ValueError for what is no finite number >= 0."""
    if type(value) not in (int, float) or not 0 <= value < 1e300:
        raise ValueError(
            f"`weight` is {type(value).__name__} {value!r:.60}, wanted a finite number >= 0"
        )
    return float(value)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, *, max_tokens: int = 2048, id: str = ""
) -> EncodedText:
    """Ids of plain text: BOS (where the tokenizer adds one), the text, EOS, cut at the end; all but
    the first targets.

    Raises: ValueError where the text is empty."""
    if not text.strip():
        raise ValueError(f"`text` is empty ({text!r:.60}), wanted words")
    (turn,) = _spell_out(tokenizer, [{"role": "user", "content": text}])
    ids = [*_with_bos(tokenizer, _ids(tokenizer, turn["content"])), tokenizer.eos_token_id][
        :max_tokens
    ]
    return EncodedText(id, ids, [False] + [True] * (len(ids) - 1))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, object]] | None = None,
) -> list[int]:
    """Ids that a model is given to answer `messages`: the same that training put in front of an
    answer.

    Raises: ValueError where the conversation is bad or does not end with the user's (or a tool's)
    turn."""
    template = template_of(tokenizer, template)
    turns, tools = (
        _spell_out(tokenizer, check_messages(messages, last="user")),
        _spelled_tools(tokenizer, tools),
    )
    return _with_bos(
        tokenizer, _ids(tokenizer, render(tokenizer, turns, template, answer=True, tools=tools))
    )


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the BOS that the tokenizer itself puts before a text; None where it puts none, even if
    it has one."""
    bos_id = tokenizer.bos_token_id
    return bos_id if bos_id is not None and tokenizer("a")["input_ids"][:1] == [bos_id] else None


def template_bos(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """Id of the BOS in front of a conversation, which a cut prompt keeps: the tokenizer's, or the
    template's own.

    None where there is none, and where it is the mark of every turn (SmolLM2's `<|im_start|>`)."""
    return _kept_bos(tokenizer, template, tokenizer.bos_token)


def end_of_turn_token(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """The special token that the template writes behind an answer; None where it writes none
    there."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prompt, whole = (
        render(tokenizer, turns[:1], template, answer=True),
        render(tokenizer, turns, template, answer=False),
    )
    found = (
        _specials(tokenizer, len(tokenizer)).search(whole, len(prompt))
        if whole.startswith(prompt)
        else None
    )
    return found and found[0]


def template_with_bos(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The template that writes BOS by itself where training put one in front of its text.

    `apply_chat_template` then gives the ids of training: it, and the servers built on it, tokenize
    without adding BOS."""
    turns = [{"role": "user", "content": "a"}]
    if leading_bos(tokenizer) is None or render(tokenizer, turns, template, answer=True).startswith(
        tokenizer.bos_token
    ):
        return template
    # The comment's line break is the start of a line again, where jinja strips the spaces before a
    # block.
    return "{{ bos_token }}{# as in training #}\n" + template


@lru_cache(maxsize=8)
def _kept_bos(tokenizer: PreTrainedTokenizerBase, template: str, bos: str | None) -> int | None:
    if bos is None or leading_bos(tokenizer) is not None:
        return tokenizer.bos_token_id
    text = render(tokenizer, [{"role": "user", "content": "a"}], template, answer=True)
    alone = bos == tokenizer.eos_token or text.count(bos) == 1
    return tokenizer.bos_token_id if text.startswith(bos) and alone else None


@lru_cache(maxsize=8)
def _ends_with_eos(tokenizer: PreTrainedTokenizerBase, template: str, eos: str) -> bool:
    try:
        return end_of_turn_token(tokenizer, template) == eos
    except ValueError:  # the template wants other turns than the two that tell
        return False


@lru_cache(maxsize=8)
def _specials(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    """The name of any special token, as one group; `size`, the tokenizer's length, tells when
    tokens were added."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    return re.compile(
        "(" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + ")"
    )


def _spell_out(tokenizer: PreTrainedTokenizerBase, turns: Messages) -> Messages:
    """The turns with the sentinel inside every special token's name: the template's own are the
    only ones left."""
    return [
        {
            key: _spelled(tokenizer, value, f"the {turn['role']}'s turn")
            for key, value in turn.items()
            if key != "train"
        }
        for turn in turns
    ]


def _spelled_tools(
    tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, object]] | None
) -> list[Mapping[str, object]] | None:
    return [_spelled(tokenizer, tool, "`tools`") for tool in tools] if tools else None


def _spelled(tokenizer: PreTrainedTokenizerBase, value: object, whose: str) -> object:
    """The value with the sentinel in every text of it. Raises: ValueError naming a character that
    is none."""
    if not isinstance(value, str):
        if isinstance(value, Mapping):
            return {
                _spelled(tokenizer, key, whose): _spelled(tokenizer, inner, whose)
                for key, inner in value.items()
            }
        return (
            [_spelled(tokenizer, inner, whose) for inner in value]
            if isinstance(value, (list, tuple))
            else value
        )
    specials = _specials(tokenizer, len(tokenizer))
    if odd := re.search(
        "[\ufdd0\ud800-\udfff]", value
    ):  # the sentinel, or half of a surrogate pair
        raise ValueError(f"{whose} holds U+{ord(odd[0]):04X}, which is no character, wanted text")
    while specials.search(value):
        value = specials.sub(lambda name: name[0][0] + SENTINEL + name[0][1:], value)
    return value


def _with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The ids behind the BOS that the tokenizer adds, if it adds one and the template has not
    written it already."""
    bos_id = tokenizer.bos_token_id
    if bos_id is not None and ids[:2] == [bos_id, bos_id]:
        raise ValueError(
            f"the chat template writes BOS more than once at the start ({tokenizer.bos_token!r} twice), wanted one"
        )
    bos_id = leading_bos(tokenizer)
    return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    whole: str,
    prompt: str,
    template: str,
    upto: Callable[[], str],
) -> tuple[list[int], int]:
    """Ids of the answer that follows `prompt` in `whole`, its EOS included, and where that EOS ends
    in `whole`.

    upto: makes the text of the conversation that ends with this answer. Special tokens that the
    template writes into an answer (a mark of tool calls, `<think>`) are the answer's own, where the
    template ends a plain one with EOS. They are what the tokenizer makes of prompt and answer
    together, where nothing merges across the boundary and no dummy space comes in between (it
    would, right after a special token); else those of a continuation."""
    specials, eos = _specials(tokenizer, len(tokenizer)), tokenizer.eos_token
    end = whole.find(eos, len(prompt))
    first = specials.search(whole, len(prompt)) if whole.startswith(prompt) else None
    if (
        first
        and first[0] != eos
        and not (
            end > 0
            and _ends_with_eos(tokenizer, template, eos)
            and upto().startswith(whole[: end + len(eos)])
        )
    ):
        raise ValueError(
            f"the chat template ends an answer with {first[0]!r}, and the tokenizer's EOS is {eos!r}: a "
            f"trained model would not know where to stop; eos_token: {first[0]!r} makes it the EOS"
        )
    if first is None and not whole.startswith(prompt) and prompt.rstrip().endswith("<think>"):
        raise ValueError(
            "the chat template's generation prompt opens `<think>`, and it writes answers without: they would not follow what a "
            "model is given, wanted a template that writes them behind its generation prompt (chat_template: zephyr, or a FILE)"
        )
    if first is None or end < 0:
        raise ValueError(
            "the chat template does not write an answer right behind its generation prompt and end it "
            f"with the tokenizer's EOS {eos!r}, wanted that: a trained model would not know where to stop"
        )
    response = whole[len(prompt) : end]
    context = prompt[max(prompt.rfind(eos), 0) :]  # what is before a special token has no say
    context_ids, ids = _ids(tokenizer, context), _ids(tokenizer, context + response)
    apart = ids[: len(context_ids)] == context_ids and specials.split(context)[-1] != ""
    ids = (
        ids[len(context_ids) :]
        if apart
        else _continuation(lambda text: _ids(tokenizer, text), response)
    )
    if not ids:
        raise ValueError(f"the answer {response[:60]!r} has no tokens, wanted at least one")
    return [*ids, tokenizer.eos_token_id], end + len(eos)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, after_eos: bool = False) -> list[int]:
    """Ids of rendered text, no BOS; names with a sentinel in them stay text. `after_eos`: as it
    follows an EOS."""
    if SENTINEL not in text:
        before = tokenizer.eos_token if after_eos else ""
        return _tokenize(tokenizer, before + text)[1 if after_eos else 0 :]
    specials = _specials(tokenizer, len(tokenizer))
    ids: list[int] = []
    for part in filter(None, specials.split(text)):
        if specials.fullmatch(part):
            ids.append(tokenizer.convert_tokens_to_ids(part))
        elif SENTINEL not in part:
            ids += _ids(tokenizer, part, after_eos or bool(ids))
        else:
            ids += _literal(tokenizer, part.replace(SENTINEL, ""), after_eos or bool(ids))
    return ids


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, **how: bool) -> list[int]:
    """The tokenizer's ids, no special ones added. Raises: ValueError where it has none for the
    text: what is written in Rust raises Exception itself, no kind of it."""
    try:
        return tokenizer(text, add_special_tokens=False, **how)["input_ids"]
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(f"the tokenizer can't encode {text!r:.60}: {error}") from error


def _literal(tokenizer: PreTrainedTokenizerBase, text: str, after_special: bool) -> list[int]:
    """Ids of text in which no special token is recognised, at the beginning or after a special
    token."""

    def spell(part: str) -> list[int]:
        return _tokenize(tokenizer, part, split_special_tokens=True)

    if after_special and _ids(tokenizer, "x", after_eos=True) != _ids(tokenizer, "x"):
        return _continuation(
            spell, text
        )  # a tokenizer that writes a dummy space at the beginning only
    return spell(text)


def _continuation(spell: Callable[[str], list[int]], text: str) -> list[int]:
    """Ids of text in the middle of other text: behind an anchor that does not merge with it."""
    for anchor in ANCHORS:
        anchor_ids, ids = spell(anchor), spell(anchor + text)
        if ids[: len(anchor_ids)] == anchor_ids:
            return ids[len(anchor_ids) :]
    return spell(text)
