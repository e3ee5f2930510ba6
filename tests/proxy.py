"""A real OpenAI-compatible server for the tests, and a proxy in front of it that counts requests
and plants faults by script."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple

from processes import free_port

JSON = b"Content-Type: application/json\r\n"


class Server(NamedTuple):
    """A running `transformers serve`: the base URL, and the one model's name."""

    url: str
    model: str


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """`transformers serve FOLDER` on loopback, from when it is ready until the end of the block."""
    port = free_port()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(folder),
        "--device",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}/health")
            yield Server(f"http://127.0.0.1:{port}/v1", str(folder))
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                url, timeout=5
            ).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (
                f"the server is not ready, {process.poll()=}"
            )
            time.sleep(0.1)


class Call(NamedTuple):
    """A request that reached the proxy: when, what was asked, and the fault that it met (""
    none)."""

    time: float
    asked: dict[str, object]
    fault: str


class Proxy:
    """Each POST meets the next of `faults`, or all meet `always`; then, or without one, it goes to
    the server after `delay` seconds. `calls` are all that came, `passed` those that went on;
    `most_in_flight`: at once. A GET goes on while there is no `always`, and is not counted.

    Faults: 429 (Retry-After 1), 429-date, 429-day, 500, hang, drip (byte by byte), cut (in
    mid-body), drop (no answer), garbage (no JSON), empty (no choices), null (content null),
    refusal, 400, 401, 402 (both with the key that came), "307 URL" (any redirect), a key of
    `HOSTILE` (a body that no honest server sends)."""

    def __init__(self, server: Server) -> None:
        self.upstream = int(server.url.split(":")[2].split("/")[0])
        self.model, self.port = server.model, free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.faults: deque[str] = deque()
        self.always, self.delay = "", 0.0
        self.calls: list[Call] = []
        self.passed = self.in_flight = self.most_in_flight = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self._on_loop(asyncio.start_server(self._connection, "127.0.0.1", self.port))

    def _on_loop(self, coroutine: Coroutine[object, object, object]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def asked(self) -> list[str]:
        """The last user turn of every request, in the order in which they came."""
        return [call.asked["messages"][-1]["content"] for call in self.calls]

    def close(self) -> None:
        self._on_loop(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
            headers = {name.lower(): value for name, value in fields.items()}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if head.startswith(b"GET "):  # is it healthy?
                if not self.always:
                    await self._pass_on(head, body, writer, is_asked=False)
                return
            fault = self.faults.popleft() if self.faults else self.always
            self.calls.append(Call(time.monotonic(), json.loads(body), fault))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                await (
                    self._fail(fault, headers, writer)
                    if fault
                    else self._pass_on(head, body, writer)
                )
            finally:
                self.in_flight -= 1
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _pass_on(
        self, head: bytes, body: bytes, writer: asyncio.StreamWriter, *, is_asked: bool = True
    ) -> None:
        await asyncio.sleep(self.delay)
        self.passed += is_asked
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
        lines = [
            line
            for line in head.split(b"\r\n")
            if line and not line.lower().startswith(b"connection:")
        ]
        to_server.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
        answer = await from_server.read()
        to_server.close()
        await self._send(writer, answer)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    async def _fail(
        self, fault: str, headers: dict[str, str], writer: asyncio.StreamWriter
    ) -> None:
        waits = {
            "429": "1",
            "429-date": formatdate(time.time() + 2, usegmt=True),
            "429-day": "86400",
        }
        says = json.dumps({"error": {"message": f"no: {headers.get('authorization')}"}}).encode()
        message = {
            "null": {"content": None},
            "refusal": {"content": None, "refusal": "I will not."},
        }
        if fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "drip":
            await self._send(
                writer, b"HTTP/1.1 200 OK\r\n" + JSON + b"Content-Length: 100000\r\n\r\n"
            )
            while True:
                await self._send(writer, b" ")
                await asyncio.sleep(0.05)
        elif fault == "cut":
            await self._send(
                writer,
                b"HTTP/1.1 200 OK\r\n" + JSON + b'Content-Length: 1000\r\n\r\n{"choices": [{"mess',
            )
        elif fault == "garbage":
            await self._send(writer, response("200 OK", b"<html>bad gateway</html>"))
        elif fault == "empty":
            await self._send(writer, response("200 OK", b'{"choices": []}'))
        elif fault[:1] == "3":
            status, where = fault.split(" ")
            await self._send(
                writer, response(f"{status} Elsewhere", says, f"Location: {where}\r\n")
            )
        elif fault in HOSTILE:
            await self._send(writer, response("200 OK", *HOSTILE[fault]()))
        elif fault in message:
            await self._send(
                writer,
                response("200 OK", json.dumps({"choices": [{"message": message[fault]}]}).encode()),
            )
        elif fault in waits:
            await self._send(
                writer, response("429 Too Many", says, f"Retry-After: {waits[fault]}\r\n")
            )
        elif fault != "drop":
            await self._send(writer, response(f"{fault} No", says))


def counted(prompt: str, completion: str) -> tuple[bytes]:
    """A reply whose server says that it took so many tokens."""
    usage = f'{{"prompt_tokens": {prompt}, "completion_tokens": {completion}}}'
    body = f'{{"choices": [{{"message": {{"content": "x"}}}}], "usage": {usage}}}'
    return (body.encode(),)


# what a body of status 200 holds, and headers beside it
HOSTILE: dict[str, Callable[[], tuple[bytes] | tuple[bytes, str]]] = {
    "long": lambda: (b'{"choices": [{"message": {"content": "' + b"x" * 2**25 + b'"}}]}',),
    "packed": lambda: (gzip.compress(b" " * 2**28), "Content-Encoding: gzip\r\n"),
    "packed oddly": lambda: (b"x", "Content-Encoding: br\r\n"),
    "deep": lambda: (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",),
    "digits": lambda: (b'{"a": ' + b"9" * 10**6 + b"}",),
    "refund": lambda: counted("-1000000", "6"),
    "endless": lambda: counted("6", "1e999"),
    "huge": lambda: counted("6", "9" * 40),
}


def response(status: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}"
    return head.encode() + JSON + b"\r\n" + body
