"""Requests are sent to an OpenAI-compatible server, many at a time, with retries, and each reply is
kept as it arrives."""

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
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
    from openai import APIStatusError, AsyncOpenAI

# Status codes of one bad request, which is stored as a refused reply.
REFUSAL_STATUSES = (400, 413, 414, 422)
# Status codes that allow another attempt, as 5xx does. Any other status ends the run.
RETRYABLE_STATUSES = (408, 409, 425, 429)
# httpx's exceptions after which the server did no work
CONNECTION_ERRORS = ("ConnectError", "ConnectTimeout", "PoolTimeout")
MAX_BACKOFF_SECONDS = 60.0
MAX_RETRY_AFTER_SECONDS = 900.0
MIN_SECRET_LENGTH = 12  # a shorter key ("none", "EMPTY") may be a word of a reply
MAX_REPLY_BYTES = 2**24  # of an unpacked body; the longest real replies have a hundredth of it
MAX_JSON_DEPTH = 100  # what the ledger stores must be readable again on any machine
MAX_ERROR_CHARS = 2000
MAX_TOKEN_COUNT = 2**40  # of one request, as the server counts


class Server(NamedTuple):
    """An endpoint and how to call it.

    known_as: its identity where that is not model and URL: of a pool of servers, or of a server
        whose URL changes."""

    model: str
    base_url: str
    key: str
    concurrency: int
    timeout_seconds: float
    retries: int
    known_as: str = ""

    @property
    def place(self) -> str:
        return f"{self.model} at {self.base_url}"

    @property
    def identity(self) -> str:
        """Model and URL: a model of the same name on another server is another teacher, unless
        `known_as` says otherwise."""
        return self.known_as or self.place


class Session(NamedTuple):
    """What the workers of one run share."""

    server: Server
    client: "AsyncOpenAI"
    keep: Callable[[Reply], None]
    budget: Budget
    stopped: asyncio.Event  # set by the first error: no worker starts another request


class Failure(NamedTuple):
    """An attempt that failed and may be repeated.

    `prompt_tokens`, `completion_tokens`: upper bounds of what the server may have used.
    `retry_after`: the pause in seconds that the server asked for.
    """

    reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retry_after: float = 0.0


def endpoint(
    model: str,
    base_url: str,
    *,
    concurrency: int = 16,
    timeout_seconds: float = 120.0,
    retries: int = 6,
    key_variable: str = "OPENAI_API_KEY",
    identity: str = "",
) -> Teacher:
    """Return a teacher behind any server with OpenAI's chat completions API: OpenAI, vLLM, SGLang,
    llama.cpp, `transformers serve`.

    Args:
        model: the name that the server knows.
        base_url: like https://host/v1.
        concurrency: number of requests in flight at once.
        timeout_seconds: of one attempt as a whole.
        retries: of one request, after its first attempt.
        key_variable: the environment variable that holds the key. If it is not set, "none" is sent.
        identity: of the teacher, in digests and messages; "": model and URL. For a server that is
            started again on another port with the same weights.
    Raises:
        BadInput: for a bad URL or key, or if the openai package is not installed.
    """
    require_openai(model)
    key = read_key(key_variable)
    require_url(model, base_url, key)
    server = Server(model, base_url, key, concurrency, timeout_seconds, retries, identity)

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        budget.price(model)  # raises before any request is sent
        run_to_end(answer_all(server, requests, keep, budget))

    return Teacher(model, answer, identity=server.identity)


def require_openai(model: str) -> None:
    """Raises: BadInput if the openai package is not installed."""
    try:
        import openai  # noqa: F401 - only whether it is there
    except ImportError:
        raise BadInput(
            f"teacher {model}: the openai package is not installed: pip install 'zephyr[teacher]'"
        ) from None


def read_key(variable: str) -> str:
    """The key in an environment variable, "" if it is not set. Raises: BadInput for no key."""
    key = os.environ.get(variable, "")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise BadInput(
            f"{variable}: expected a key of printable ASCII characters without spaces, its "
            "value has others"
        )
    return key


def run_to_end(coroutine: Coroutine[object, object, None]) -> None:
    """Run a coroutine from synchronous code, also inside a notebook's event loop."""
    try:
        asyncio.get_running_loop()
        in_loop = True
    except RuntimeError:
        in_loop = False
    if in_loop:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, coroutine).result()
    else:
        asyncio.run(coroutine)


async def answer_all(
    server: Server, requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget
) -> None:
    """Answer the requests with up to `server.concurrency` workers.

    Raises:
        BadInput, BudgetSpent: the first error of any worker, after all workers have ended.
    """
    async with open_client(server) as client:
        session = Session(server, client, keep, budget, asyncio.Event())
        await share_out(
            requests, partial(answer_request, session), session.stopped, server.concurrency
        )


def open_client(server: Server) -> "AsyncOpenAI":
    """The client of one server. It follows no redirect, and limits the size of a reply."""
    import openai

    http_client = openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        event_hooks={"response": [read_body]},
        timeout=server.timeout_seconds,
        headers={"Accept-Encoding": "gzip, deflate"},
    )
    return openai.AsyncOpenAI(
        api_key=server.key or "none",
        base_url=server.base_url,
        max_retries=0,
        timeout=server.timeout_seconds,
        http_client=http_client,
    )


async def share_out(
    requests: Sequence[Request],
    answer: Callable[[Request], Awaitable[None]],
    stopped: asyncio.Event,
    workers: int,
) -> None:
    """Answer the requests, so many at a time, until one raises an error.

    Raises:
        BadInput, BudgetSpent: the first error of any worker, after all workers have ended.
    """
    queue = takewhile(lambda _: not stopped.is_set(), requests)
    count = min(workers, len(requests))
    running = [run_worker(answer, stopped, queue) for _ in range(count)]
    for error in await asyncio.gather(*running, return_exceptions=True):
        if error is not None:
            raise error


def require_url(model: str, base_url: str, key: str) -> None:
    """Check that `base_url` is the URL of a server and holds no secret: it is written to ledgers,
    reports and logs.

    Raises:
        BadInput: otherwise.
    """
    try:
        url = urlsplit(base_url)
        is_http = url.scheme in ("http", "https") and bool(url.hostname)
        is_valid = is_http and (url.port is None or url.port > 0)
    except ValueError:
        is_valid = False
    if not is_valid or base_url.isspace() or not base_url.isprintable():
        raise BadInput(
            f"teacher {redact(model)}: expected a URL like https://host/v1, got {len(base_url)} "
            "characters that are none"
        )
    found = find_secret(f"{model} {base_url}")
    if not found and len(key) >= MIN_SECRET_LENGTH and key in base_url:
        found = "the key itself"
    if found:
        raise BadInput(
            f"teacher {redact(model)}: the URL holds {found}, expected a URL without a secret: "
            "give the key in the environment"
        )


def refuse_redirect(response: "Response") -> None:
    """Stop at a redirect: prompts and key go only to the server that the user named.

    Raises:
        BadInput: for any redirect, with both origins.
    """
    if not 300 <= response.status_code < 400:
        return
    origin = urlsplit(str(response.url))
    try:
        location = urljoin(str(response.url), response.headers.get("location", ""))
        target = urlsplit(redact(location))
        if target[:2] != origin[:2]:
            where = f"to {target.scheme}://{target.netloc}, another origin"
        else:
            where = f"to its own {target.path!r}"
    except ValueError:
        where = "to what is no URL"
    raise BadInput(
        f"{origin.scheme}://{origin.netloc}: status {response.status_code}: it redirects {where}; "
        "redirects are not followed: give the URL that answers, if you trust it"
    )


async def read_body(response: "Response") -> None:
    """Read the body of a response, as `Response.aread` does, but with a limit on its size.

    Raises:
        BadInput: for a redirect.
        ValueError: for a body over `MAX_REPLY_BYTES` unpacked bytes, or an unknown encoding.
    """
    refuse_redirect(response)
    encoding = response.headers.get("content-encoding", "identity")
    if encoding not in ("identity", "gzip", "deflate"):
        raise ValueError(f"its reply is packed as {encoding:.20}, expected gzip or none")
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise ValueError(f"its reply is over {MAX_REPLY_BYTES} bytes")
    response._content = bytes(body)  # where `aread` leaves it


async def run_worker(
    answer: Callable[[Request], Awaitable[None]], stopped: asyncio.Event, queue: Iterator[Request]
) -> None:
    """Answer requests from the queue until it is empty or any worker has met an error.

    Raises:
        BadInput, BudgetSpent: that error.
    """
    try:
        for request in queue:
            await answer(request)
    except (BadInput, BudgetSpent):
        stopped.set()
        raise


async def answer_request(session: Session, request: Request) -> None:
    """Make attempts until there is a reply, and keep it. Failed attempts are kept too.

    Raises:
        BadInput: if the last attempt fails.
        BudgetSpent: if another attempt could exceed the budget.
    """
    server = session.server
    for attempts in range(1, server.retries + 2):
        outcome = await try_once(session, request)
        if isinstance(outcome, Reply):
            return
        if attempts > server.retries or outcome.retry_after > MAX_RETRY_AFTER_SECONDS:
            raise BadInput(
                f"teacher {server.place}: {attempts} tries of one request failed, the last: "
                f"{outcome.reason}; the ledger holds all replies so far, and the run continues "
                "from there"
            )
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(session.stopped.wait(), pause_seconds(outcome, attempts))
            return


async def try_once(session: Session, request: Request) -> Reply | Failure:
    """Make one attempt, and keep its reply or failure.

    Raises:
        BadInput, BudgetSpent: as `answer_request`.
    """
    reservation = await reserve(session, request)
    outcome = await attempt(session, request, reservation)
    tokens = outcome.prompt_tokens, outcome.completion_tokens
    price = session.budget.settle(reservation, *tokens)
    if isinstance(outcome, Reply):
        outcome = outcome._replace(price=price)
        session.keep(outcome)
        return outcome
    session.keep(
        Reply(
            digest="",
            text=None,
            model=session.server.model,
            version="",
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            price=price,
            time=utc_now(),
            finish_reason="",
            error=outcome.reason,
        )
    )
    return outcome


def pause_seconds(failure: Failure, attempts: int) -> float:
    """The pause after so many failed attempts: back-off with jitter, after what the server asked
    for."""
    backoff = min(MAX_BACKOFF_SECONDS, 2.0 ** (attempts - 1))
    return failure.retry_after + random.Random().uniform(0, backoff)


async def reserve(session: Session, request: Request) -> Reservation:
    """Reserve one attempt's share of the budget. Wait for requests in flight, which may use less
    than they reserved.

    Raises:
        BudgetSpent: if the share is too large and no request is in flight.
    """
    budget = session.budget
    price = budget.price(session.server.model)
    while True:
        try:
            return budget.reserve(request.messages, request.max_tokens, price)
        except BudgetSpent:
            if not budget.in_flight or session.stopped.is_set():
                raise
        await asyncio.sleep(0.02)


async def attempt(session: Session, request: Request, reserved: Reservation) -> Reply | Failure:
    """Send one HTTP request.

    Returns:
        The reply, a refusal of this one request (a `Reply` without text), or a failure that allows
        another attempt.
    Raises:
        BadInput: if the server would answer no request at all.
    """
    import openai

    server = session.server
    upper_bounds = reserved.prompt_tokens, reserved.completion_tokens
    try:
        sent = session.client.chat.completions.with_raw_response.create(
            model=server.model,
            **request.payload(),  # type: ignore[call-overload]  # keys and values of that API
        )
        response = await asyncio.wait_for(sent, server.timeout_seconds)
        return read_completion(parse_body(response.content), server, request, reserved)
    except openai.APIStatusError as error:
        return read_error_status(error, server, request)
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        if isinstance(cause, BadInput):
            raise BadInput(f"teacher {server.place}: {cause}") from None
        name = type(cause).__name__
        used = (0, 0) if name in CONNECTION_ERRORS else upper_bounds
        return Failure(redact_text(f"{name}: {cause}", server.key), *used)
    except BadInput as error:  # of `read_body`: newer clients do not wrap it
        raise BadInput(f"teacher {server.place}: {error}") from None
    except asyncio.TimeoutError:
        return Failure(f"no whole reply within {server.timeout_seconds:g} s", *upper_bounds)
    except UnicodeEncodeError as error:
        return refusal(f"the request is no valid Unicode: {error.reason}", None, server, request)
    except (ValueError, RecursionError) as error:
        return Failure(redact_text(str(error), server.key), *upper_bounds)


def read_error_status(error: "APIStatusError", server: Server, request: Request) -> Reply | Failure:
    """Return the refusal or the failure that an error status means.

    Raises:
        BadInput: for a status that any other request would get too, like 401.
    """
    text = f"status {error.status_code}: {error.response.text}"
    reason = redact_text(text, server.key)[:MAX_ERROR_CHARS]
    if error.status_code in RETRYABLE_STATUSES or error.status_code >= 500:
        pause = parse_retry_after(error.response.headers.get("retry-after", ""))
        return Failure(f"{reason} (Retry-After: {pause:.0f} s)", retry_after=pause)
    if error.status_code not in REFUSAL_STATUSES:
        raise BadInput(
            f"teacher {server.place}: {reason}; the ledger holds all replies so far"
        ) from None
    return refusal(reason, error.body, server, request)


def refusal(reason: str, raw: object, server: Server, request: Request) -> Reply:
    """Return the reply of a request that this server will never answer."""
    return Reply(
        digest=request.digest(server.identity),
        text=None,
        model=server.model,
        version="",
        prompt_tokens=0,
        completion_tokens=0,
        price=0.0,
        time=utc_now(),
        finish_reason="",
        error=reason,
        raw=redact_key(raw, server.key),
    )


def parse_body(content: bytes) -> object:
    """Return the JSON value of a body.

    Raises:
        ValueError: if it is not JSON, or is nested more than `MAX_JSON_DEPTH` deep.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its reply is no JSON: {error}") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return value
        level = inner
    raise ValueError(f"its reply is nested more than {MAX_JSON_DEPTH} deep")


class Completion(NamedTuple):
    """The fields of a chat completion that are used; `text` is None if the model refused."""

    text: str | None
    refusal: object
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def read_completion(
    body: object, server: Server, request: Request, reserved: Reservation
) -> Reply | Failure:
    """Return the reply in a body of status 200, or a failure if it is no chat completion."""
    if len(server.key) >= MIN_SECRET_LENGTH:
        body = redact_key(body, server.key)
    try:
        fields = require_object(body, "its reply")
        found = parse_completion(fields, reserved)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        reason = f"its reply is none ({error}): {str(body)[:200]}"
        return Failure(reason, reserved.prompt_tokens, reserved.completion_tokens)
    reason = ""
    if found.text is None:
        reason = str(found.refusal or f"no content, finish_reason {found.finish_reason}")
    return Reply(
        digest=request.digest(server.identity),
        text=found.text,
        model=str(fields.get("model") or server.model),
        version=str(fields.get("system_fingerprint") or ""),
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        price=0.0,
        time=utc_now(),
        finish_reason=found.finish_reason,
        error=reason,
        raw=body,
    )


def parse_completion(body: Mapping[str, object], reserved: Reservation) -> Completion:
    """Return the used fields of a body. Token counts that the server does not give are replaced by
    their upper bounds.

    Raises:
        LookupError, TypeError, ValueError, OverflowError: if the body is no chat completion.
    """
    choices = body["choices"]
    if not isinstance(choices, list):
        raise TypeError("`choices` is no list")
    choice = require_object(choices[0], "`choices[0]`")
    message = require_object(choice["message"], "`choices[0].message`")
    text = message["content"]
    refusal = message.get("refusal")
    finish_reason = str(choice.get("finish_reason") or "")
    usage = require_object(body.get("usage") or {}, "`usage`")
    counts = (
        token_count(usage.get("prompt_tokens", reserved.prompt_tokens)),
        token_count(usage.get("completion_tokens", reserved.completion_tokens)),
    )
    if text is not None and not isinstance(text, str):
        raise TypeError("content is no text")
    if text is None and not refusal and finish_reason not in ("length", "content_filter"):
        raise TypeError("content is no text")
    if not all(0 <= count < MAX_TOKEN_COUNT for count in counts):
        raise ValueError(f"it counts {list(counts)} tokens")
    return Completion(text, refusal, finish_reason, *counts)


def require_object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    return value


def token_count(value: object) -> int:
    if not isinstance(value, (int, float, str)):
        raise TypeError(f"a token count is {type(value).__name__}")
    return int(value)


def parse_retry_after(retry_after: str) -> float:
    """Return the pause of a Retry-After header in seconds, 0 if it is neither a number of seconds
    nor an HTTP date."""
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError, TypeError):
        pause = parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)
        return max(0.0, pause.total_seconds())
    return 0.0


def redact_text(text: str, key: str) -> str:
    """Return the text without secrets and without the key."""
    return str(redact_key(redact(text), key))


def redact_key(value: object, key: str) -> object:
    """Return the JSON value with every occurrence of the key replaced by "[key]"."""
    if not key:
        return value
    redacted: object = json.loads(json.dumps(value).replace(json.dumps(key)[1:-1], "[key]"))
    return redacted
