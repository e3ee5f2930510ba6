"""Answers become scores: a judge's points, the logit of a sequence classifier, or implicit rewards.

A SCORER is one of
    a judge's SPEC          openai:MODEL@BASE_URL, hf:PATH, world:judge@FOLDER: its points
    rm:PATH                 a Hugging Face sequence classifier with one label: its logit
    implicit:POLICY@REFERENCE    log pi(y|x) - log pi_ref(y|x) in nats, without beta (Rafailov et
                            al. 2023, arXiv:2305.18290, Section 4)

All of them are teachers, so that every score is paid for once: it is kept in the ledger, is found
again by the digests of weights, prompt and answer, and torchrun's ranks divide the work.

Shape letters:
    B  answers of a batch
    L  tokens of its longest one
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from zephyr.config import BadInput
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.local import over_ranks
from zephyr.teacher.panel import (
    Ask,
    Judgement,
    Panel,
    ask_judge,
    critique_request,
    ratings_request,
)
from zephyr.teacher.prompts import turns_of
from zephyr.teacher.request import utc_now
from zephyr.teacher.rubric import ASPECTS, Rating, parse_critique, parse_ratings
from zephyr.teacher.spec import SPEC_FORMS, open_teacher
from zephyr.teacher.templates import load_templates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zephyr.chat import EncodedPair
    from zephyr.evaluation.questions import Encoded

SCORER_FORMS = f"a judge ({SPEC_FORMS}), rm:PATH, or implicit:POLICY@REFERENCE"
TEMPLATES = ("judge_system", *(f"judge_{aspect}" for aspect in ASPECTS), "judge_again", "critique")
RM_BATCH = 16  # answers of one rank at once
# Answers of one rank between two loads of both models: a killed run loses at most these.
IMPLICIT_BATCH = 4096
Item = Mapping[str, object]  # a prompt row (`prompt`: a text or turns) with the answer as `text`


class Score(NamedTuple):
    """An answer's score.

    `value`: NaN if there is none, because a reply could not be read or was refused.
    `calls`: the request digests of all replies that it is made of.
    `text`: the last reply, or why it was refused.
    """

    value: float
    calls: list[str]
    text: str


def score_answers(
    scorer: str,
    items: Sequence[Item],
    ask: Ask,
    *,
    open_teacher: Callable[[str], Teacher] = open_teacher,
    judged_by: str = "overall",
    templates: Path | None = None,
    seed: int = 0,
    judge_tokens: int = 1024,
) -> list[float]:
    """The scores of answers, NaN for an answer without one; see `scored`."""
    return [
        score.value
        for score in scored(
            scorer,
            items,
            ask,
            open_teacher=open_teacher,
            judged_by=judged_by,
            templates=templates,
            seed=seed,
            judge_tokens=judge_tokens,
        )
    ]


def scored(
    scorer: str,
    items: Sequence[Item],
    ask: Ask,
    *,
    open_teacher: Callable[[str], Teacher] = open_teacher,
    judged_by: str = "overall",
    templates: Path | None = None,
    seed: int = 0,
    judge_tokens: int = 1024,
) -> list[Score]:
    """The scores of answers, each by itself: the others of its prompt do not change it.

    Args:
        scorer: one of `SCORER_FORMS`.
        items: prompt rows as `read_prompts` yields them, each with an answer as `text`.
        ask: returns the replies of a teacher in the order of the requests, each paid for once.
        open_teacher: opens a judge's SPEC.
        judged_by: of a judge: `overall`, its score of 1 to 10 in one request an answer; `aspects`,
            the mean of its ratings of 1 to 5 in four aspects, one request each.
        templates: a folder of the user's own judge templates.
        seed, judge_tokens: of the judge's replies.
    Returns:
        Scores in the order of the items; higher is better.
    Raises:
        BadInput: for a scorer of another form, or what it names can't be used. What `ask` raises.
    """
    if not items:
        return []
    if not is_judge(scorer):
        requests = [answer_request(item) for item in items]
        return [read_score(reply) for reply in ask(open_scorer(scorer), requests)]
    texts = load_templates(TEMPLATES, templates)
    panel = Panel(open_teacher(scorer), ask, texts, seed, judge_tokens)
    if judged_by == "aspects":
        return judge_aspects(panel, items)
    if judged_by != "overall":
        raise BadInput(f"judged_by: expected overall or aspects, got {judged_by!r}")
    requests = [critique_request(panel, item, str(item["text"])) for item in items]
    judgements = ask_judge(panel, requests, lambda text, _: parse_critique(text))
    return [
        Score(float(of.parsed.points) if of.parsed else math.nan, of.calls, of.text)
        for of in judgements
    ]


def is_judge(scorer: str) -> bool:
    """Whether a scorer is a judge's SPEC."""
    return scorer.partition(":")[0] not in ("rm", "implicit")


def calls_per_answer(scorer: str, judged_by: str) -> int:
    """Requests to the scorer for an answer, where every reply can be read."""
    return len(ASPECTS) if is_judge(scorer) and judged_by == "aspects" else 1


def judge_aspects(panel: Panel, items: Sequence[Item]) -> list[Score]:
    """The mean rating of each answer over the four aspects; NaN if any could not be read."""
    requests = [
        ratings_request(panel, item, aspect, [str(item["text"])])
        for item in items
        for aspect in ASPECTS
    ]
    found = ask_judge(panel, requests, lambda text, _: parse_ratings(text, 1))
    size = len(ASPECTS)
    return [mean_rating(found[start : start + size]) for start in range(0, len(found), size)]


def mean_rating(judgements: Sequence[Judgement[list[Rating]]]) -> Score:
    points = [of.parsed[0].points for of in judgements if of.parsed]
    value = fmean(points) if len(points) == len(judgements) else math.nan
    return Score(value, [call for of in judgements for call in of.calls], judgements[-1].text)


# -- scorers that are models on this machine


def answer_request(item: Item) -> Request:
    """The question what an answer is worth: the conversation that ends with it."""
    turns = turns_of(item["prompt"])
    answer = {"role": "assistant", "content": str(item["text"])}
    return Request((*turns, answer), max_tokens=1)


def read_score(reply: Reply) -> Score:
    """The score in a scorer's reply, which is the text of a number."""
    if reply.text is None:
        return Score(math.nan, [reply.digest], reply.error)
    return Score(float(reply.text), [reply.digest], reply.text)


def open_scorer(scorer: str) -> Teacher:
    """Return `rm:PATH` or `implicit:POLICY@REFERENCE` as a teacher: its reply to `answer_request`
    is the score as text.

    Raises: BadInput: for another form, or if what it names does not exist.
    """
    kind, _, rest = scorer.partition(":")
    if kind == "rm" and rest:
        return reward_model(rest)
    policy, at, reference = rest.partition("@")
    if kind == "implicit" and policy and at and reference and "@" not in reference:
        return implicit_reward(policy, reference)
    hint = " (one @: paths have none)" if rest.count("@") > 1 else ""
    raise BadInput(f"scorer {scorer!r}: expected {SCORER_FORMS}{hint}")


def number_reply(
    request: Request, identity: str, name: str, value: float | str, tokens: int
) -> Reply:
    """A score as a reply. Args: value: the reason, as a text, where the scorer refused."""
    is_refused = isinstance(value, str)
    return Reply(
        digest=request.digest(identity),
        text=None if is_refused else repr(value),
        model=name,
        version=identity,
        prompt_tokens=tokens,
        completion_tokens=0,
        price=0.0,
        time=utc_now(),
        finish_reason="" if is_refused else "stop",
        error=str(value) if is_refused else "",
    )


def reward_model(path: str) -> Teacher:
    """Return a sequence classifier with one label as a teacher.

    The conversation is written by the chat template of its own tokenizer. An answer that is too
    long for the model is refused. Raises: BadInput if `path` holds no model; at the first request,
    if it is no classifier with one label, or its tokenizer has no chat template.
    """
    from zephyr.model.load import digest

    identity = f"rm:{path} {digest(path)}"
    load_once = cache(partial(load_reward_model, path))

    def make_replies(share: Sequence[Request]) -> Iterator[Reply]:
        lm, tokenizer = load_once()
        encoded = [conversation_ids(tokenizer, request) for request in share]
        longest = getattr(lm.config, "max_position_embeddings", None) or math.inf
        fitting = [i for i, ids in enumerate(encoded) if len(ids) <= longest]
        logits = dict(zip(fitting, classify(lm, [encoded[i] for i in fitting])))
        for i, (request, ids) in enumerate(zip(share, encoded)):
            refusal = f"{len(ids)} tokens are over the model's {longest} positions"
            yield number_reply(request, identity, path, logits.get(i, refusal), len(ids))

    return over_ranks(f"rm:{path}", identity, make_replies, max_batch=RM_BATCH)


def load_reward_model(path: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a sequence classifier and its tokenizer: in bfloat16 on this rank's GPU if there is
    one, otherwise in float32 on the CPU. Raises: BadInput."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from zephyr.model.load import local_folder
    from zephyr.teacher.spec import model_device

    folder = local_folder(path)
    device = model_device()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        lm, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"rm:{path}: it can't be loaded as a sequence classifier: {error}") from None
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise BadInput(f"rm:{path}: it has no weights for {missing}: it is no sequence classifier")
    if lm.config.num_labels != 1:
        raise BadInput(f"rm:{path}: it has {lm.config.num_labels} labels, expected one: the score")
    if not tokenizer.chat_template:
        raise BadInput(
            f"rm:{path}: its tokenizer has no chat template, expected the one that the model was "
            "trained with: put it into chat_template.jinja beside the tokenizer"
        )
    return lm.to(device).eval(), tokenizer


def conversation_ids(tokenizer: "PreTrainedTokenizerBase", request: Request) -> list[int]:
    """Ids of a conversation in the tokenizer's own template, which writes all special tokens."""
    messages = [{key: str(of) for key, of in one.items()} for one in request.messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def classify(lm: "PreTrainedModel", rows: Sequence[Sequence[int]]) -> list[float]:
    """The logit of each row of ids: in a batch the same as by itself, up to rounding.

    The score of a decoder is read at the last token that is not padding, which transformers finds
    by the id of `pad_token_id`. Without such an id it refuses a batch; then one that no row has is
    used meanwhile.
    """
    import torch

    if not rows:
        return []
    own = lm.config.pad_token_id
    used = {id for ids in rows for id in ids}
    padding = next(i for i in range(len(used) + 1) if i not in used) if own is None else own
    length = max(map(len, rows))
    ids_BL = torch.full((len(rows), length), padding)
    mask_BL = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, ids in enumerate(rows):
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        mask_BL[row, : len(ids)] = 1
    lm.config.pad_token_id = padding
    try:
        with torch.no_grad():
            logits_B1 = lm(
                input_ids=ids_BL.to(lm.device), attention_mask=mask_BL.to(lm.device)
            ).logits
    finally:
        lm.config.pad_token_id = own
    values: list[float] = logits_B1[:, 0].double().tolist()
    return values


def implicit_reward(policy: str, reference: str) -> Teacher:
    """Return log pi(y|x) - log pi_ref(y|x) as a teacher; both read the ids of the policy's
    tokenizer and chat template, as in `zephyr score`.

    Args: policy, reference: model folders, hub ids or run folders.
    Raises: BadInput if there is no such model; at the first request, as `score`.
    """
    from zephyr.evaluation.score_settings import read_settings
    from zephyr.model.load import digest

    settings = read_settings(policy, {})
    base = read_settings(reference, {}).model
    name = f"implicit:{policy}@{reference}"
    template = settings.chat_template
    identity = f"{name} {digest(settings.model)} {digest(base)} {template}"

    def make_replies(share: Sequence[Request]) -> Iterator[Reply]:
        return implicit_replies(share, policy, base, identity, name)

    return over_ranks(name, identity, make_replies, max_batch=IMPLICIT_BATCH)


def implicit_replies(
    share: Sequence[Request], policy: str, reference: str, identity: str, name: str
) -> Iterator[Reply]:
    """Load the policy, score the answers, and the same with the reference. Only one model is in
    memory at a time."""
    import numpy as np
    import pyarrow as pa

    from zephyr.data.store import PAIR_SCHEMA, Pairs, example_batch
    from zephyr.data.tokenizer import load_tokenizer, require_vocabulary
    from zephyr.evaluation.questions import in_pairs
    from zephyr.evaluation.score import require_same_tokenizer, score_model
    from zephyr.evaluation.score_settings import read_settings
    from zephyr.model.load import digest

    settings = read_settings(policy, {})
    tokenizer = load_tokenizer(settings.tokenizer, settings.chat_template, settings.eos_token)
    require_vocabulary(tokenizer, settings.model)
    require_same_tokenizer(tokenizer, reference)
    encoded: list[EncodedPair] = []
    places: list[tuple[int, int]] = []
    ordered = sorted(share, key=lambda request: repr(request.messages[:-1]))
    for number, (_, group) in enumerate(groupby(ordered, lambda request: request.messages[:-1])):
        answers = encode_group(tokenizer, list(group))
        made, at = in_pairs(str(number), answers, len(encoded))
        encoded += made
        places += at
    pairs = Pairs(pa.Table.from_batches([example_batch(encoded)], PAIR_SCHEMA))
    longest = int(max(pairs.prompt_tokens + np.maximum(pairs.chosen_tokens, pairs.rejected_tokens)))
    settings = settings._replace(max_tokens=max(longest, settings.max_tokens))
    of_policy = score_model(settings.model, pairs, settings).logp_P2
    same = digest(settings.model) == digest(reference)
    of_reference = of_policy if same else score_model(reference, pairs, settings).logp_P2
    lengths_P2 = np.stack([pairs.chosen_tokens, pairs.rejected_tokens], axis=1)
    for request, (pair, side) in zip(ordered, places):
        value = float(of_policy[pair, side] - of_reference[pair, side])
        tokens = int(pairs.prompt_tokens[pair] + lengths_P2[pair, side])
        yield number_reply(request, identity, name, value, tokens)


def encode_group(tokenizer: "PreTrainedTokenizerBase", requests: Sequence[Request]) -> "Encoded":
    """A prompt and its answers as ids, as those of pairs. Raises: BadInput naming the prompt."""
    from zephyr.chat import encode_prompt
    from zephyr.evaluation.questions import Encoded, encode_answer, template

    turns = [dict(message) for message in requests[0].messages[:-1]]
    try:
        prompt_ids = encode_prompt(tokenizer, turns, template=template(tokenizer))
        answers = [str(request.messages[-1]["content"]) for request in requests]
        answers_ids = [encode_answer(tokenizer, turns, answer)[1] for answer in answers]
    except ValueError as error:
        raise BadInput(f"implicit: the prompt {turns[-1]['content']!r:.80}: {error}") from None
    return Encoded(prompt_ids, answers_ids, 1)
