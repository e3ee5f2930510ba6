"""Requests are answered by a Hugging Face model on this machine, in batches, by all ranks of
torchrun together."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from zephyr.config import BadInput
from zephyr.teacher.request import Budget, BudgetSpent, Reply, Request, Teacher, utc_now
from zephyr.training import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def local(
    path: str,
    load: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]",
    *,
    max_batch: int = 64,
) -> Teacher:
    """The model in a folder or of a hub id; each rank has the whole of it and answers its share.

    Replies belong to the weights: other weights under the same path are asked anew. A request that
    the model can't take is refused, as a server would. Args: load: the model on its device, and its
    tokenizer with a chat template; called at the first request that is to be asked. Raises:
    BadInput where the folder holds no model, and at the first request whatever BadInput `load`
    raises."""
    from zephyr.model.load import digest

    version, loaded = digest(path), cache(load)

    def answer_share(share: Sequence[Request], keep: Callable[[Reply], None]) -> list[Reply]:
        replies = list(generate_replies(*loaded(), share, path, version)) if share else []
        for reply in replies:
            keep(reply)
        return [reply._replace(text=None) for reply in replies]

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        alike = sorted(
            requests,
            key=lambda r: (
                r.temperature,
                r.top_p,
                r.max_tokens,
                sum(len(m["content"]) for m in r.messages),
            ),
        )
        for start in range(0, len(alike), max_batch * ranks.world_size()):
            held, spent = {}, None  # the same on every rank, as the budgets are
            try:
                for request in alike[start : start + max_batch * ranks.world_size()]:
                    held[request.digest(f"{path} {version}")] = (
                        request,
                        budget.reserve(request.messages, request.max_tokens),
                    )
            except BudgetSpent as error:
                spent = error
            share = [request for request, _ in held.values()][ranks.rank() :: ranks.world_size()]
            for reply in sum(
                ranks.gather_from_ranks(lambda: answer_share(share, keep), BadInput), []
            ):
                budget.settle(held[reply.digest][1], reply.prompt_tokens, reply.completion_tokens)
            if spent:
                raise spent

    return Teacher(path, answer, shared=True, identity=f"{path} {version}")


def generate_replies(
    lm: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    requests: Sequence[Request],
    path: str,
    version: str,
) -> Iterator[Reply]:
    """A reply to each request, in any order. A batch has temperature and top_p in common."""
    from zephyr.model.generate import generate_from_ids, prompt_ids

    batches: defaultdict[tuple[float, float], list[tuple[Request, list[int]]]] = defaultdict(list)
    for request in requests:
        try:
            ids = prompt_ids(lm, tokenizer, request.messages, request.max_tokens)
            batches[request.temperature, request.top_p].append((request, ids))
        except ValueError as error:
            yield Reply(
                request.digest(f"{path} {version}"),
                None,
                path,
                version,
                0,
                0,
                0.0,
                utc_now(),
                "",
                str(error),
            )
    for (temperature, top_p), batch in batches.items():
        asked, encoded = zip(*batch)
        answers = generate_from_ids(
            lm,
            tokenizer,
            encoded,
            [request.max_tokens for request in asked],
            [request.seed for request in asked],
            temperature=temperature,
            top_p=top_p,
            batch=len(batch),
        )
        for request, answer in zip(asked, answers):
            yield Reply(
                request.digest(f"{path} {version}"),
                answer.text,
                path,
                version,
                answer.prompt_tokens,
                answer.completion_tokens,
                0.0,
                utc_now(),
                answer.finish_reason,
            )
