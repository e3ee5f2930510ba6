"""Answers get log-probs under a model and, against a reference, implicit rewards.

The implicit reward of an answer is beta * (log pi(y|x) - log pi_ref(y|x)) (Rafailov et al. 2023,
arXiv:2305.18290, Section 4). Both models read the same ids: those of the policy's tokenizer and
chat template, as in training. Only one model is in memory at a time.

Shape letters:
    P  pairs
    A  answers, those of all questions one after the other
"""

import gc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zephyr.config import BadInput
from zephyr.data.store import Pairs
from zephyr.data.tokenizer import load_tokenizer, read_tokenizer, require_vocabulary
from zephyr.evaluation.questions import Limits, Questions, load_questions
from zephyr.evaluation.score_settings import BUDGET_TOKENS, Settings, default_settings
from zephyr.model.load import DTYPES, digest, load_policy
from zephyr.model.logprobs import response_logprobs, token_logprobs
from zephyr.model.policy import Policy
from zephyr.packing import PackedBatch, collate_pairs, plan_pass
from zephyr.progress import Bar
from zephyr.training.planner import require_budget

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TokenLogProbs = Sequence[Tensor]  # of each answer, float32 [its tokens]


class TokenScores(NamedTuple):
    """The tokens of one response under a model and its reference, EOS included."""

    tokens: list[str]  # text of each token; joined, they are the response
    logp: list[float]  # log p of each token, in nats
    ref_logp: list[float]  # the same under the reference; empty where there is none


class PairLogProbs(NamedTuple):
    """Log-probs of both responses of each pair under one model, in nats."""

    logp_P2: Floats  # of the chosen response, of the rejected one
    tokens: list[tuple[Tensor, Tensor]]  # the same by token; empty where not asked for


class Scored(NamedTuple):
    """All answers of `questions`, in their order, under a model and its reference."""

    questions: Questions
    beta: float
    tokens_A: Ints  # EOS included
    logp_A: Floats
    ref_logp_A: Floats | None  # None: there is no reference
    token_logps: TokenLogProbs  # empty where not asked for
    ref_token_logps: TokenLogProbs
    same_weights: bool  # the reference has the weights of the model

    @property
    def reward_A(self) -> Floats:
        """Implicit rewards; without a reference, the log-probs themselves."""
        if self.ref_logp_A is None:
            return self.logp_A
        return self.beta * (self.logp_A - self.ref_logp_A)


def score(
    sources: Sequence[str],
    settings: Settings,
    *,
    reference: str | None = None,
    limit: int | None = None,
    on_bad_row: str = "error",
    per_token: bool = False,
) -> tuple[Scored, PreTrainedTokenizerBase]:
    """Score the answers of all rows under one model, then under the other.

    Args:
        sources: `path-or-hub-id[:split]`, one or more, as in `load_questions`.
        settings: of the model.
        reference: a model folder, hub id or run folder; None: log-probs only.
        limit, on_bad_row: the config keys of these names in `data`.
        per_token: keep the log-prob of every token.

    Returns: the scores, and the tokenizer that made the ids.
    Raises:
        BadInput: for rows, a model or a setting that can't be used, two models with different
            tokenizers, and log-probs that are not finite.
    """
    tokenizer = load_tokenizer(settings.tokenizer, settings.chat_template, settings.eos_token)
    require_vocabulary(tokenizer, settings.model)
    same_weights = False
    if reference is not None:
        reference = default_settings(reference).model
        require_same_tokenizer(tokenizer, reference)
        same_weights = digest(reference) == digest(settings.model)
    limits = Limits(
        settings.max_tokens, settings.max_prompt_tokens, limit, on_bad_row, settings.columns
    )
    questions = load_questions(sources, tokenizer, limits)
    found = score_model(settings.model, questions.pairs, settings, per_token=per_token)
    ref = found if same_weights else None
    if reference is not None and not same_weights:
        ref = score_model(reference, questions.pairs, settings, per_token=per_token)
    places = [place for question in questions.rows for place in question.places]
    pair_A, side_A = np.array(places, np.int64).T
    lengths_P2 = np.stack([questions.pairs.chosen_tokens, questions.pairs.rejected_tokens], axis=1)
    scored = Scored(
        questions,
        settings.beta,
        lengths_P2[pair_A, side_A],
        found.logp_P2[pair_A, side_A],
        None if ref is None else ref.logp_P2[pair_A, side_A],
        [found.tokens[pair][side] for pair, side in places] if per_token else [],
        [ref.tokens[pair][side] for pair, side in places] if per_token and ref else [],
        same_weights,
    )
    return scored, tokenizer


def require_same_tokenizer(tokenizer: PreTrainedTokenizerBase, reference: str) -> None:
    """Raises: BadInput if an id stands for another token in the reference's tokenizer."""
    own, other = tokenizer.get_vocab(), read_tokenizer(reference).get_vocab()
    if own == other:
        return
    token = min(set(own.items()) ^ set(other.items()), key=lambda item: (item[1], item[0]))[0]
    raise BadInput(
        f"reference {reference}: its tokenizer is another one: {token!r} is {own.get(token)} for "
        f"the model and {other.get(token)} for the reference, expected one vocabulary, since both "
        "must read the same ids"
    )


def score_model(
    path: str, pairs: Pairs, settings: Settings, *, per_token: bool = False
) -> PairLogProbs:
    """Load a model, score the pairs, and free it. Raises: BadInput as `load_policy`, and for
    log-probs that are not finite; names the pairs."""
    longest = max((pairs.prompt_tokens + pairs.chosen_tokens + pairs.rejected_tokens).tolist())
    budget = settings.tokens_per_micro_batch or max(longest, BUDGET_TOKENS[settings.device])
    policy = load_policy(
        path,
        attention=settings.attention,
        dtype=DTYPES[settings.dtype],
        max_tokens=settings.max_tokens,
    )
    policy = policy.to(settings.device).eval()
    found = pair_logprobs(policy, pairs, budget_tokens=budget, per_token=per_token)
    del policy
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    bad = [pairs.ids[i] for i in np.flatnonzero(~np.isfinite(found.logp_P2).all(axis=1))]
    if bad:
        raise BadInput(
            f"model {path}: the log-probs of {len(bad)} pairs are not finite "
            f"({', '.join(bad[:5])}) in {settings.dtype}"
        )
    return found


@torch.no_grad()
def pair_logprobs(
    policy: Policy, pairs: Pairs, *, budget_tokens: int, per_token: bool = False
) -> PairLogProbs:
    """log p of both responses of each pair, in one process, packed as in an evaluation pass.

    Args:
        policy: on the device where it is to run.
        budget_tokens: of a micro-batch.
        per_token: keep the log-prob of every token too.

    Raises: ConfigError: a pair is longer than the budget.
    """
    tokens_P = (pairs.prompt_tokens + pairs.chosen_tokens + pairs.rejected_tokens).tolist()
    require_budget(tokens_P, pairs.ids, budget_tokens)
    device = next(policy.parameters()).device
    logp_P2 = np.empty((len(pairs), 2))
    tokens: dict[int, tuple[Tensor, Tensor]] = {}
    micro_batches = plan_pass(tokens_P, ranks=1, budget_tokens=budget_tokens).steps[0].ranks[0]
    with Bar("score", len(pairs), "pairs") as bar:
        for indices in micro_batches:
            batch = collate_pairs(pairs, indices).to(device)
            both, of_responses = batch_logprobs(policy, batch, per_token=per_token)
            logp_P2[list(batch.indices)] = both.cpu().numpy()
            chosen, rejected = of_responses[: batch.units], of_responses[batch.units :]
            tokens.update(zip(batch.indices, zip(chosen, rejected)))
            bar.update(batch.units)
    return PairLogProbs(logp_P2, [tokens[i] for i in range(len(tokens))])


def batch_logprobs(
    policy: Policy, batch: PackedBatch, *, per_token: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """One forward pass: log-probs [P, 2] of both responses, and those of each response's tokens, on
    the CPU (none unless asked for)."""
    logp_T: Tensor = policy(batch)

    def forward(_: PackedBatch) -> Tensor:
        return logp_T

    both_P2 = torch.stack(response_logprobs(forward, batch), dim=-1)
    return both_P2, [one.cpu() for one in token_logprobs(forward, batch)] if per_token else []
