"""Requests go to an OpenAI-compatible server, many at a time, again where it fails, and each reply is kept as it arrives."""
import asyncio
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from zephyr.config import BadInput
from zephyr.teacher.request import Budget, BudgetSpent, Hold, Reply, Request, Teacher, now

if TYPE_CHECKING:
    from openai import AsyncOpenAI

REFUSALS = (400, 413, 414, 422)                     # the server's word on this one request: kept as its reply
PASSING = (408, 409, 425, 429)                      # worth another try, as 5xx is; any other status is the whole run's fault
UNREACHED = ("ConnectError", "ConnectTimeout", "PoolTimeout")       # httpx's names: the server did no work
LONGEST_PAUSE, LONGEST_ASKED = 60.0, 900.0          # seconds
SECRET_LENGTH = 12                                  # a shorter key ("none", "EMPTY") may be a word of an answer


class Failure(NamedTuple):
    """A try that may succeed later; the tokens that it may have taken, and the pause in seconds that the server asked for."""
    what: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retry_after: float = 0.0


class Calls(NamedTuple):
    """What the workers of one run share."""
    identity: str                                   # model and URL: another server's model of this name is another teacher
    client: "AsyncOpenAI"
    model: str
    key: str
    timeout_seconds: float
    retries: int
    keep: Callable[[Reply], None]
    budget: Budget
    stopped: asyncio.Event


def endpoint(model: str, base_url: str, *, concurrency: int = 16, timeout_seconds: float = 120.0, retries: int = 6,
             key_variable: str = "OPENAI_API_KEY") -> Teacher:
    """Any server that speaks OpenAI's chat completions: OpenAI, vLLM, SGLang, llama.cpp, `transformers serve`.

    Args: concurrency: requests in flight at once. timeout_seconds: of a whole request. retries: of one request, after its first
    try. key_variable: the environment variable that holds the key; "none" is sent where it is not set.
    Raises: BadInput for a bad URL or key, or without the openai package."""
    try:
        import openai
    except ImportError:
        raise BadInput(f"teacher {model}: the openai package is wanted: pip install 'zephyr[teacher]'") from None
    identity = f"{model} at {base_url}"
    url, key = urlsplit(base_url), os.environ.get(key_variable, "")
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
        raise BadInput(f"teacher {model}: a URL like https://host/v1 is wanted, without key or query; it begins {base_url[:8]!r}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise BadInput(f"{key_variable}: a key of printable ASCII without blanks is wanted, what it holds is none")

    async def answer_all(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        async with openai.AsyncOpenAI(api_key=key or "none", base_url=base_url, max_retries=0, timeout=timeout_seconds) as client:
            calls = Calls(identity, client, model, key, timeout_seconds, retries, keep, budget, asyncio.Event())
            queue = takewhile(lambda _: not calls.stopped.is_set(), requests)
            workers = [work(calls, queue) for _ in range(min(concurrency, len(requests)))]
            for error in filter(None, await asyncio.gather(*workers, return_exceptions=True)):
                raise error

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        budget.price(model)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(answer_all(requests, keep, budget))
        with ThreadPoolExecutor(1) as thread:       # in a notebook
            thread.submit(asyncio.run, answer_all(requests, keep, budget)).result()
    return Teacher(model, answer, identity=identity)


async def work(calls: Calls, queue: Iterator[Request]) -> None:
    """Request after request, until there is none, or any worker meets an error: then no new one begins. Raises: that error."""
    try:
        for request in queue:
            await settle(calls, request)
    except (BadInput, BudgetSpent):
        calls.stopped.set()
        raise


async def settle(calls: Calls, request: Request) -> None:
    """Try until there is a reply, and keep it. Raises: BadInput where tries are used up, BudgetSpent."""
    for tries in range(1, calls.retries + 2):
        hold = await reserve(calls, request)
        outcome = await attempt(calls, request, hold)
        price = calls.budget.settle(hold, outcome.prompt_tokens, outcome.completion_tokens)
        if isinstance(outcome, Reply):
            return calls.keep(outcome._replace(price=price))
        calls.keep(Reply("", None, calls.model, "", outcome.prompt_tokens, outcome.completion_tokens, price, now(), "", outcome.what))
        if tries > calls.retries or outcome.retry_after > LONGEST_ASKED:
            raise BadInput(f"teacher {calls.identity}: {tries} tries of one request failed, the last: {outcome.what}; what was answered is in "
                           "the ledger, and the run goes on from there")
        pause = outcome.retry_after + random.Random().uniform(0, min(LONGEST_PAUSE, 2.0 ** (tries - 1)))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(calls.stopped.wait(), pause)
            return


async def reserve(calls: Calls, request: Request) -> Hold:
    """A try's share of the budget; what is in flight is waited for, as it may leave room. Raises: BudgetSpent."""
    while True:
        try:
            return calls.budget.reserve(request.messages, request.max_tokens, calls.budget.price(calls.model))
        except BudgetSpent:
            if not calls.budget.in_flight or calls.stopped.is_set():
                raise
        await asyncio.sleep(0.02)


async def attempt(calls: Calls, request: Request, hold: Hold) -> Reply | Failure:
    """One HTTP request, and what its end means. Raises: BadInput where the server would answer no request at all."""
    import openai
    try:
        sent = calls.client.chat.completions.with_raw_response.create(model=calls.model, **request.asked())
        return read(json.loads((await asyncio.wait_for(sent, calls.timeout_seconds)).content), calls, request, hold)
    except openai.APIStatusError as error:
        why, raw = hidden(f"status {error.status_code}: {error.response.text}", calls.key), error.body
        if error.status_code in PASSING or error.status_code >= 500:
            pause = seconds(error.response.headers.get("retry-after", ""))
            return Failure(f"{why} (Retry-After: {pause:.0f} s)", retry_after=pause)
        if error.status_code not in REFUSALS:
            raise BadInput(f"teacher {calls.identity}: {why}; what was answered is in the ledger")
    except openai.APIConnectionError as error:
        cause, name = error.__cause__ or error, type(error.__cause__ or error).__name__
        return Failure(hidden(f"{name}: {cause}", calls.key), *((0, 0) if name in UNREACHED else hold[:2]))
    except asyncio.TimeoutError:
        return Failure(f"no whole reply within {calls.timeout_seconds:g} s", *hold[:2])
    except UnicodeEncodeError as error:
        why, raw = f"the request is no valid Unicode: {error.reason}", None
    except (ValueError, RecursionError) as error:
        return Failure(f"its reply is no JSON: {error}", *hold[:2])
    return Reply(request.digest(calls.identity), None, calls.model, "", 0, 0, 0.0, now(), "", why, hidden(raw, calls.key))


def read(body: object, calls: Calls, request: Request, hold: Hold) -> Reply | Failure:
    """A body that came with status 200. Where the server counts no tokens, their upper bounds stand for them."""
    if len(calls.key) >= SECRET_LENGTH:
        body = hidden(body, calls.key)
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        text, refusal, finish = choice["message"]["content"], choice["message"].get("refusal"), str(choice.get("finish_reason") or "")
        counts = [int(usage.get("prompt_tokens", hold.prompt_tokens)), int(usage.get("completion_tokens", hold.completion_tokens))]
        if not isinstance(text, str) and not (text is None and (refusal or finish in ("length", "content_filter"))):
            raise TypeError("content is no text")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return Failure(f"its reply is none ({error}): {str(body)[:200]}", *hold[:2])
    why = "" if text is not None else str(refusal or f"no content, finish_reason {finish}")
    return Reply(request.digest(calls.identity), text, str(body.get("model") or calls.model), str(body.get("system_fingerprint") or ""),
                 *counts, 0.0, now(), finish, why, body)


def seconds(retry_after: str) -> float:
    """A Retry-After header, in seconds or as an HTTP date, from now; 0 where it is neither."""
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds())
    return 0.0


def hidden(value: object, key: str) -> object:
    """The JSON value with the key struck out, wherever a server put it."""
    return json.loads(json.dumps(value).replace(json.dumps(key)[1:-1], "[key]")) if key else value
