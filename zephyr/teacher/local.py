"""Requests are answered by a Hugging Face model on this machine, in batches that the ranks of
torchrun divide."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from zephyr.config import BadInput
from zephyr.teacher.request import (
    Budget,
    BudgetSpent,
    Reply,
    Request,
    Reservation,
    Teacher,
    utc_now,
)
from zephyr.training import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def local(
    path: str,
    load: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]",
    *,
    max_batch: int = 64,
) -> Teacher:
    """Return the model of a folder or a hub id as a teacher.

    Each rank of torchrun loads the whole model and answers its share of the requests. Replies
    belong to the weights: after training, a model under the same path is another teacher. A request
    that the model cannot take, e.g. one that is too long, is refused as by a server.

    Args:
        path: of the weights.
        load: returns the model on its device and its tokenizer with a chat template. It is called
            at the first request that is not in the ledger.
        max_batch: requests of one rank at once.
    Raises:
        BadInput: if `path` holds no model; at the first request, what `load` raises.
    """
    from zephyr.model.load import digest

    version = digest(path)
    load_once = cache(load)

    def make_replies(share: Sequence[Request]) -> Iterator[Reply]:
        return generate_replies(*load_once(), share, path, version)

    return over_ranks(path, f"{path} {version}", make_replies, max_batch=max_batch)


def over_ranks(
    name: str,
    identity: str,
    make_replies: Callable[[Sequence[Request]], Iterable[Reply]],
    *,
    max_batch: int,
) -> Teacher:
    """Return a teacher on this machine whose requests the ranks of torchrun divide.

    Args:
        name: in rows and in the ledger.
        identity: in the digests of requests; it changes with the weights.
        make_replies: replies to some requests, in any order, on the rank that calls it.
        max_batch: requests of one rank at once.
    """

    def answer_share(share: Sequence[Request], keep: Callable[[Reply], None]) -> list[Reply]:
        if not share:
            return []
        replies = list(make_replies(share))
        for reply in replies:
            keep(reply)
        return [reply._replace(text=None) for reply in replies]  # the counts are enough for ranks

    def answer_batch(
        batch: Sequence[Request], keep: Callable[[Reply], None], budget: Budget
    ) -> None:
        reserved, budget_spent = reserve_batch(batch, identity, budget)  # the same on every rank
        affordable = [request for request, _ in reserved.values()]
        share = affordable[ranks.rank() :: ranks.world_size()]
        gathered = ranks.gather_from_ranks(lambda: answer_share(share, keep), BadInput)
        for reply in chain.from_iterable(gathered):
            _, reservation = reserved[reply.digest]
            budget.settle(reservation, reply.prompt_tokens, reply.completion_tokens)
        if budget_spent is not None:
            raise budget_spent

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        ordered = sorted(requests, key=batching_key)
        step = max_batch * ranks.world_size()
        for start in range(0, len(ordered), step):
            answer_batch(ordered[start : start + step], keep, budget)

    return Teacher(name, answer, shared=True, identity=identity)


def reserve_batch(
    batch: Sequence[Request], identity: str, budget: Budget
) -> tuple[dict[str, tuple[Request, Reservation]], BudgetSpent | None]:
    """Reserve the requests of a batch in their order, as far as the budget goes.

    Returns:
        By digest, the requests and their reservations; and the error if the budget ended.
    """
    reserved: dict[str, tuple[Request, Reservation]] = {}
    try:
        for request in batch:
            reservation = budget.reserve(request.messages, request.max_tokens)
            reserved[request.digest(identity)] = request, reservation
    except BudgetSpent as error:
        return reserved, error
    return reserved, None


def batching_key(request: Request) -> tuple[float, float, int, int]:
    """Sort key that puts requests of the same sampling and of similar length into one batch."""
    characters = sum(len(str(message["content"])) for message in request.messages)
    return request.temperature, request.top_p, request.max_tokens, characters


def generate_replies(
    lm: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    requests: Sequence[Request],
    path: str,
    version: str,
) -> Iterator[Reply]:
    """Yield a reply to each request, in any order. Requests of equal temperature and top_p make one
    batch."""
    from zephyr.model.generate import generate_from_ids, prompt_ids

    identity = f"{path} {version}"
    batches: defaultdict[tuple[float, float], list[tuple[Request, list[int]]]] = defaultdict(list)
    for request in requests:
        messages = [dict(message) for message in request.messages]
        try:
            ids = prompt_ids(lm, tokenizer, messages, request.max_tokens)
        except ValueError as error:
            yield Reply(
                digest=request.digest(identity),
                text=None,
                model=path,
                version=version,
                prompt_tokens=0,
                completion_tokens=0,
                price=0.0,
                time=utc_now(),
                finish_reason="",
                error=str(error),
            )
        else:
            batches[request.temperature, request.top_p].append((request, ids))
    for (temperature, top_p), batch in batches.items():
        answers = generate_from_ids(
            lm,
            tokenizer,
            [ids for _, ids in batch],
            [request.max_tokens for request, _ in batch],
            [request.seed for request, _ in batch],
            temperature=temperature,
            top_p=top_p,
            batch=len(batch),
        )
        for (request, _), answer in zip(batch, answers):
            yield Reply(
                digest=request.digest(identity),
                text=answer.text,
                model=path,
                version=version,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                price=0.0,
                time=utc_now(),
                finish_reason=answer.finish_reason,
            )
