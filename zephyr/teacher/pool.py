"""Requests are spread over several servers of one model. One that fails is taken out, and comes
back once it answers again."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from zephyr.config import BadInput
from zephyr.progress import info
from zephyr.teacher.endpoint import (
    MAX_RETRY_AFTER_SECONDS,
    Server,
    Session,
    open_client,
    pause_seconds,
    read_key,
    require_openai,
    require_url,
    run_to_end,
    share_out,
    try_once,
)
from zephyr.teacher.request import Budget, Reply, Request, Teacher

if TYPE_CHECKING:
    import httpx

PROBE_SECONDS = 5.0  # between two health probes of a server that was taken out
PROBE_LIMIT_SECONDS = 5.0  # of one probe
WAIT_SECONDS = 0.05  # between two looks for a server with room
MAX_OUT_SECONDS = 60.0  # that all servers may be out at once: one that is restarted comes back
MOST_OUTS = 3  # times the number of servers: a request that fails so often ends the run
MAX_REASON_CHARS = 480  # of all servers together in an error


@dataclass
class Member:
    """A server of the pool.

    Attributes:
        in_flight: requests that it has, those in a pause before another attempt included.
        failures: failed attempts since its last reply.
        reason: the last failure.
        out: set while it gets no requests.
        out_since: when it was taken out last.
    """

    session: Session
    in_flight: int = 0
    failures: int = 0
    reason: str = ""
    out: asyncio.Event = field(default_factory=asyncio.Event)
    out_since: float = 0.0

    def take_out(self) -> None:
        """Send it no requests until `probe_forever` finds it healthy."""
        if not self.out.is_set():
            self.out.set()
            self.out_since = time.monotonic()
            info(f"{self.session.server.base_url} gets no more requests: {self.reason:.200}")

    def bring_back(self) -> None:
        self.failures = 0
        self.out.clear()
        info(f"{self.session.server.base_url} answers again")


def pool(
    model: str,
    base_urls: Sequence[str],
    *,
    concurrency: int = 16,
    timeout_seconds: float = 120.0,
    retries: int = 6,
    key_variable: str = "OPENAI_API_KEY",
) -> Teacher:
    """Return a teacher behind several servers that serve the same model with the same settings.

    Its identity in the ledger is the model's name, whatever the URLs are and however many: a
    restart on other hosts or ports asks for nothing again. Two different models of one name must
    not share a ledger.

    A request goes to the server with the fewest requests. After `retries` + 1 failed attempts in a
    row a server is taken out, and its requests go to the others; it comes back when it is
    healthy again (`is_healthy`). While all are out, requests wait for `MAX_OUT_SECONDS`.

    Args:
        model: the name that the servers know.
        base_urls: of the servers, like https://host/v1.
        concurrency: number of requests in flight at once, of each server.
        timeout_seconds, retries, key_variable: as `endpoint.endpoint`.
    Raises:
        BadInput: for a bad URL or key, a URL that comes twice, or if the openai package is not
            installed.
    """
    require_openai(model)
    key = read_key(key_variable)
    for url in base_urls:
        require_url(model, url, key)
    repeated = [url for url, number in Counter(base_urls).items() if number > 1]
    if repeated:
        raise BadInput(f"teacher {model}: the URL {repeated[0]} comes twice, expected each once")
    identity = f"{model} of a pool"
    servers = [
        Server(model, url, key, concurrency, timeout_seconds, retries, identity)
        for url in base_urls
    ]

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        budget.price(model)  # raises before any request is sent
        run_to_end(answer_all(servers, requests, keep, budget))

    return Teacher(model, answer, identity=identity)


async def answer_all(
    servers: Sequence[Server],
    requests: Sequence[Request],
    keep: Callable[[Reply], None],
    budget: Budget,
) -> None:
    """Answer the requests, up to `concurrency` of each server at a time.

    Raises:
        BadInput, BudgetSpent: the first error of any worker, after all workers have ended.
    """
    stopped = asyncio.Event()
    async with AsyncExitStack() as stack:
        members = []
        for server in servers:
            client = await stack.enter_async_context(open_client(server))
            members.append(Member(Session(server, client, keep, budget, stopped)))
        probes = asyncio.create_task(probe_forever(members))
        try:
            workers = sum(server.concurrency for server in servers)
            await share_out(requests, partial(answer_request, members), stopped, workers)
        finally:
            probes.cancel()
            with suppress(asyncio.CancelledError):
                await probes


async def answer_request(members: Sequence[Member], request: Request) -> None:
    """Ask one server after the other until there is a reply.

    Raises:
        BadInput: if every server stays out, or this request failed `MOST_OUTS` times at each.
        BudgetSpent: if another attempt could exceed the budget.
    """
    outs: Counter[str] = Counter()  # by URL, how often the server was taken out under this request
    stopped = members[0].session.stopped
    while sum(outs.values()) < MOST_OUTS * len(members):
        member = await member_with_room(members, outs)
        if member is None:
            return
        member.in_flight += 1
        try:
            if await is_answered(member, request) or stopped.is_set():
                return
        finally:
            member.in_flight -= 1
        outs[member.session.server.base_url] += 1
    raise BadInput(failure_of_all(members, "one request failed at each server"))


async def member_with_room(members: Sequence[Member], outs: Counter[str]) -> Member | None:
    """Wait for a server with room. Those at which this request failed come last, then the one with
    the fewest requests comes first.

    Returns: None if the run was stopped.
    Raises: BadInput if all servers have been out for `MAX_OUT_SECONDS`."""
    while not members[0].session.stopped.is_set():
        in_use = [member for member in members if not member.out.is_set()]
        out_seconds = time.monotonic() - max(member.out_since for member in members)
        if not in_use and out_seconds > MAX_OUT_SECONDS:
            raise BadInput(failure_of_all(members, "no server of the pool answers"))
        free = [m for m in in_use if m.in_flight < m.session.server.concurrency]
        if free:
            return min(free, key=lambda m: (outs[m.session.server.base_url], m.in_flight))
        await asyncio.sleep(WAIT_SECONDS)
    return None


async def is_answered(member: Member, request: Request) -> bool:
    """Make attempts at one server until there is a reply, the server is taken out, or the run is
    stopped; whether there is a reply."""
    session = member.session
    attempts = 0
    while not member.out.is_set() and not session.stopped.is_set():
        outcome = await try_once(session, request)
        if isinstance(outcome, Reply):
            member.failures = 0
            return True
        attempts += 1
        member.failures += 1
        member.reason = outcome.reason
        too_long = outcome.retry_after > MAX_RETRY_AFTER_SECONDS
        if max(attempts, member.failures) > session.server.retries or too_long:
            member.take_out()
            return False
        waits = [asyncio.create_task(event.wait()) for event in (member.out, session.stopped)]
        await asyncio.wait(
            waits, timeout=pause_seconds(outcome, attempts), return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waits:
            wait.cancel()
    return False


async def probe_forever(members: Sequence[Member]) -> None:
    """Bring back each server that was taken out, once it answers."""
    import httpx

    async with httpx.AsyncClient(timeout=PROBE_LIMIT_SECONDS) as client:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            out = [member for member in members if member.out.is_set()]
            probes = [is_healthy(member.session.server.base_url, client) for member in out]
            for member, healthy in zip(out, await asyncio.gather(*probes)):
                if healthy:
                    member.bring_back()


async def is_healthy(base_url: str, client: "httpx.AsyncClient") -> bool:
    """Whether a server says that it is healthy, or else lists its models or refuses to (4xx).

    vLLM, SGLang, llama.cpp and `transformers serve` have /health beside /v1, others have not. No
    key is sent, and no body is read.
    """
    import httpx

    for url, best in ((urljoin(base_url, "/health"), 300), (f"{base_url.rstrip('/')}/models", 500)):
        try:
            async with client.stream("GET", url) as response:
                status = response.status_code
        except httpx.HTTPError:
            continue
        if status < best and not 300 <= status < 400:
            return True
    return False


def failure_of_all(members: Sequence[Member], what: str) -> str:
    """The error that names each server and its last failure."""
    room = max(40, MAX_REASON_CHARS // len(members))
    reasons = []
    for member in members:
        text = f"{member.session.server.base_url}: {member.reason}"
        reasons.append(text if len(text) <= room else f"{text[: room - 3]}...")
    return (
        f"teacher {members[0].session.server.model}: {what}: {'; '.join(reasons)}; the ledger "
        "holds all replies so far"
    )
