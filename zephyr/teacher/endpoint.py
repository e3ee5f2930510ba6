"""Requests go to an OpenAI-compatible server, many at a time, again where it fails, and each reply
is kept as it arrives."""

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
from urllib.parse import urljoin, urlsplit

from zephyr.config import BadInput, find_secret, redact
from zephyr.teacher.request import (
    Budget,
    BudgetSpent,
    Reply,
    Request,
    Reservation,
    Teacher,
    utc_now,
)

if TYPE_CHECKING:
    from httpx import Response
    from openai import AsyncOpenAI

REFUSAL_STATUSES = (400, 413, 414, 422)  # the server's word on this one request: kept as its reply
RETRYABLE_STATUSES = (
    408,
    409,
    425,
    429,
)  # worth another try, as 5xx is; any other status is the whole run's fault
CONNECTION_ERRORS = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
)  # httpx's names: the server did no work
MAX_BACKOFF_SECONDS, MAX_RETRY_AFTER_SECONDS = 60.0, 900.0  # seconds
SECRET_LENGTH = 12  # a shorter key ("none", "EMPTY") may be a word of an answer
MAX_REPLY_BYTES = 2**24  # bytes of a body, unpacked: of the longest answers a hundredth
MAX_JSON_DEPTH = 100  # levels of its JSON: what is kept must be read again wherever
MAX_ERROR_CHARS = 2000  # characters of an error that are kept
MAX_TOKEN_COUNT = 2**40  # that a server may say it counted in one request


class Failure(NamedTuple):
    """A try that may succeed later; the tokens that it may have taken, and the pause in seconds
    that the server asked for."""

    what: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retry_after: float = 0.0


class Session(NamedTuple):
    """What the workers of one run share."""

    identity: str  # model and URL: another server's model of this name is another teacher
    client: "AsyncOpenAI"
    model: str
    key: str
    timeout_seconds: float
    retries: int
    keep: Callable[[Reply], None]
    budget: Budget
    stopped: asyncio.Event


def endpoint(
    model: str,
    base_url: str,
    *,
    concurrency: int = 16,
    timeout_seconds: float = 120.0,
    retries: int = 6,
    key_variable: str = "OPENAI_API_KEY",
) -> Teacher:
    """Any server that speaks OpenAI's chat completions: OpenAI, vLLM, SGLang, llama.cpp,
    `transformers serve`.

    Args: concurrency: requests in flight at once. timeout_seconds: of a whole request. retries: of
    one request, after its first try. key_variable: the environment variable that holds the key;
    "none" is sent where it is not set. Raises: BadInput for a bad URL or key, or without the openai
    package."""
    try:
        import openai
    except ImportError:
        raise BadInput(
            f"teacher {model}: the openai package is wanted: pip install 'zephyr[teacher]'"
        ) from None
    identity, key = f"{model} at {base_url}", os.environ.get(key_variable, "")
    require_url(model, base_url, key)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise BadInput(
            f"{key_variable}: a key of printable ASCII without blanks is wanted, what it holds is none"
        )

    async def answer_all(
        requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget
    ) -> None:
        guarded = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            event_hooks={"response": [read_body]},
            timeout=timeout_seconds,
            headers={"Accept-Encoding": "gzip, deflate"},
        )
        async with openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=timeout_seconds,
            http_client=guarded,
        ) as client:
            calls = Session(
                identity,
                client,
                model,
                key,
                timeout_seconds,
                retries,
                keep,
                budget,
                asyncio.Event(),
            )
            queue = takewhile(lambda _: not calls.stopped.is_set(), requests)
            workers = [run_worker(calls, queue) for _ in range(min(concurrency, len(requests)))]
            for error in filter(None, await asyncio.gather(*workers, return_exceptions=True)):
                raise error

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        budget.price(model)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(answer_all(requests, keep, budget))
        with ThreadPoolExecutor(1) as thread:  # in a notebook
            thread.submit(asyncio.run, answer_all(requests, keep, budget)).result()

    return Teacher(model, answer, identity=identity)


def require_url(model: str, base_url: str, key: str) -> None:
    """Raises: BadInput for what is no URL of a server, or holds a secret: it is written to ledgers,
    reports and logs."""
    try:
        url = urlsplit(base_url)
        whole = (
            url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
        )
    except ValueError:
        whole = False
    if not whole or base_url.isspace() or not base_url.isprintable():
        raise BadInput(
            f"teacher {redact(model)}: a URL like https://host/v1 is wanted, got {len(base_url)} characters of no such form"
        )
    if found := find_secret(f"{model} {base_url}") or (
        len(key) >= SECRET_LENGTH and key in base_url and "the key itself"
    ):
        raise BadInput(
            f"teacher {redact(model)}: a URL without a secret is wanted, it holds {found}; the key stays in the environment"
        )


def refuse_redirect(response: "Response") -> None:
    """Raises: BadInput for any redirect, naming both origins: prompts and key go to the server that
    was named, and only its words count."""
    if not 300 <= response.status_code < 400:
        return
    asked = urlsplit(str(response.url))
    try:
        where = urlsplit(redact(urljoin(str(response.url), response.headers.get("location", ""))))
        another = where[:2] != asked[:2]
        what = (
            f"to {where.scheme}://{where.netloc}, another origin"
            if another
            else f"to its own {where.path!r}"
        )
    except ValueError:
        what = "to what is no URL"
    raise BadInput(
        f"{asked.scheme}://{asked.netloc}: status {response.status_code}: it redirects {what}; redirects are not followed: name the "
        "URL that answers, if you trust it"
    )


async def read_body(response: "Response") -> None:
    """Read the body, which is of `MAX_REPLY_BYTES` bytes at most. Raises: BadInput for a redirect,
    ValueError for a longer body."""
    refuse_redirect(response)
    if (packed := response.headers.get("content-encoding", "identity")) not in (
        "identity",
        "gzip",
        "deflate",
    ):
        raise ValueError(f"its reply is packed as {packed:.20}, wanted gzip or none")
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise ValueError(f"its reply is over {MAX_REPLY_BYTES} bytes")
    response._content = bytes(body)  # as `aread` leaves it, which has no limit


async def run_worker(calls: Session, queue: Iterator[Request]) -> None:
    """Request after request, until there is none, or any worker meets an error: then no new one
    begins. Raises: that error."""
    try:
        for request in queue:
            await answer_request(calls, request)
    except (BadInput, BudgetSpent):
        calls.stopped.set()
        raise


async def answer_request(calls: Session, request: Request) -> None:
    """Try until there is a reply, and keep it. Raises: BadInput where tries are used up,
    BudgetSpent."""
    for tries in range(1, calls.retries + 2):
        reservation = await reserve(calls, request)
        outcome = await attempt(calls, request, reservation)
        price = calls.budget.settle(reservation, outcome.prompt_tokens, outcome.completion_tokens)
        if isinstance(outcome, Reply):
            return calls.keep(outcome._replace(price=price))
        calls.keep(
            Reply(
                "",
                None,
                calls.model,
                "",
                outcome.prompt_tokens,
                outcome.completion_tokens,
                price,
                utc_now(),
                "",
                outcome.what,
            )
        )
        if tries > calls.retries or outcome.retry_after > MAX_RETRY_AFTER_SECONDS:
            raise BadInput(
                f"teacher {calls.identity}: {tries} tries of one request failed, the last: {outcome.what}; what was answered is in "
                "the ledger, and the run goes on from there"
            )
        pause = outcome.retry_after + random.Random().uniform(
            0, min(MAX_BACKOFF_SECONDS, 2.0 ** (tries - 1))
        )
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(calls.stopped.wait(), pause)
            return None


async def reserve(calls: Session, request: Request) -> Reservation:
    """A try's share of the budget; what is in flight is waited for, as it may leave room. Raises:
    BudgetSpent."""
    while True:
        try:
            return calls.budget.reserve(
                request.messages, request.max_tokens, calls.budget.price(calls.model)
            )
        except BudgetSpent:
            if not calls.budget.in_flight or calls.stopped.is_set():
                raise
        await asyncio.sleep(0.02)


async def attempt(calls: Session, request: Request, reservation: Reservation) -> Reply | Failure:
    """One HTTP request, and what its end means. Raises: BadInput where the server would answer no
    request at all."""
    import openai

    try:
        sent = calls.client.chat.completions.with_raw_response.create(
            model=calls.model, **request.payload()
        )
        return read_completion(
            parse_body((await asyncio.wait_for(sent, calls.timeout_seconds)).content),
            calls,
            request,
            reservation,
        )
    except openai.APIStatusError as error:
        why = redact_key(redact(f"status {error.status_code}: {error.response.text}"), calls.key)[
            :MAX_ERROR_CHARS
        ]
        raw = error.body
        if error.status_code in RETRYABLE_STATUSES or error.status_code >= 500:
            pause = parse_retry_after(error.response.headers.get("retry-after", ""))
            return Failure(f"{why} (Retry-After: {pause:.0f} s)", retry_after=pause)
        if error.status_code not in REFUSAL_STATUSES:
            raise BadInput(f"teacher {calls.identity}: {why}; what was answered is in the ledger")
    except openai.APIConnectionError as error:
        cause, name = error.__cause__ or error, type(error.__cause__ or error).__name__
        if isinstance(cause, BadInput):
            raise BadInput(f"teacher {calls.identity}: {cause}") from None
        return Failure(
            redact_key(redact(f"{name}: {cause}"), calls.key),
            *((0, 0) if name in CONNECTION_ERRORS else reservation[:2]),
        )
    except BadInput as error:  # of `read_body`, as newer clients raise it
        raise BadInput(f"teacher {calls.identity}: {error}") from None
    except asyncio.TimeoutError:
        return Failure(f"no whole reply within {calls.timeout_seconds:g} s", *reservation[:2])
    except UnicodeEncodeError as error:
        why, raw = f"the request is no valid Unicode: {error.reason}", None
    except (ValueError, RecursionError) as error:
        return Failure(redact_key(redact(str(error)), calls.key), *reservation[:2])
    return Reply(
        request.digest(calls.identity),
        None,
        calls.model,
        "",
        0,
        0,
        0.0,
        utc_now(),
        "",
        why,
        redact_key(raw, calls.key),
    )


def parse_body(content: bytes) -> object:
    """A body's JSON. Raises: ValueError for one that is none, or is nested too deeply to be
    kept."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its reply is no JSON: {error}") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        inner = (
            item.values() if isinstance(item, dict) else item
            for item in level
            if isinstance(item, (dict, list))
        )
        level = [item for items in inner for item in items]
        if not level:
            return value
    raise ValueError(f"its reply is nested more than {MAX_JSON_DEPTH} deep")


def read_completion(
    body: object, calls: Session, request: Request, reservation: Reservation
) -> Reply | Failure:
    """A body that came with status 200. Where the server counts no tokens, their upper bounds stand
    for them."""
    if len(calls.key) >= SECRET_LENGTH:
        body = redact_key(body, calls.key)
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        text, refusal, finish = (
            choice["message"]["content"],
            choice["message"].get("refusal"),
            str(choice.get("finish_reason") or ""),
        )
        counts = [
            int(usage.get("prompt_tokens", reservation.prompt_tokens)),
            int(usage.get("completion_tokens", reservation.completion_tokens)),
        ]
        if not isinstance(text, str) and not (
            text is None and (refusal or finish in ("length", "content_filter"))
        ):
            raise TypeError("content is no text")
        if not all(0 <= count < MAX_TOKEN_COUNT for count in counts):
            raise ValueError(f"it counts {counts} tokens")
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        return Failure(f"its reply is none ({error}): {str(body)[:200]}", *reservation[:2])
    why = "" if text is not None else str(refusal or f"no content, finish_reason {finish}")
    return Reply(
        request.digest(calls.identity),
        text,
        str(body.get("model") or calls.model),
        str(body.get("system_fingerprint") or ""),
        *counts,
        0.0,
        utc_now(),
        finish,
        why,
        body,
    )


def parse_retry_after(retry_after: str) -> float:
    """A Retry-After header, in seconds or as an HTTP date, from now; 0 where it is neither."""
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError, TypeError):
        return max(
            0.0, (parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds()
        )
    return 0.0


def redact_key(value: object, key: str) -> object:
    """The JSON value with the key struck out, wherever a server put it."""
    return json.loads(json.dumps(value).replace(json.dumps(key)[1:-1], "[key]")) if key else value
