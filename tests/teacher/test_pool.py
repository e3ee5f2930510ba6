"""Several servers of one model: nothing is lost or paid for twice, whichever of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from proxy import Proxy, Server, serving
from tiny import tiny_model

from zephyr.config import BadInput
from zephyr.data.jsonl import write_rows
from zephyr.teacher import Budget, Ledger, Reply, Request, Teacher, ask, pool
from zephyr.teacher.spec import open_teacher, split_specs


def questions(count: int, first: int = 0) -> list[Request]:
    messages = [{"role": "user", "content": f"Question {first + i}?"} for i in range(count)]
    return [Request((message,), max_tokens=6) for message in messages]


def asked_of(teacher: Teacher, requests: Sequence[Request], path: Path) -> list[Reply]:
    with Ledger(path) as ledger:
        return ask(teacher, requests, ledger, Budget())


def said(replies: Sequence[Reply]) -> list[tuple[object, ...]]:
    """What must not depend on which server answers."""
    return [(r.digest, r.text, r.model, r.prompt_tokens, r.completion_tokens) for r in replies]


@pytest.fixture
def proxies(server: Server) -> Iterator[list[Proxy]]:
    """Three proxies in front of the server: to a pool, three servers of one model."""
    made = [Proxy(server) for _ in range(3)]
    yield made
    for proxy in made:
        proxy.close()


def pool_of(proxies: Sequence[Proxy], **settings: object) -> Teacher:
    defaults = {"timeout_seconds": 5.0, "concurrency": 2, "retries": 1}
    return pool(proxies[0].model, [proxy.url for proxy in proxies], **{**defaults, **settings})


def test_a_pool_answers_as_one_server_does(
    proxies: list[Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server fails from the start, one after a few replies, and comes back. Fails where the
    replies or their digests depend on the servers, a request is lost or answered twice, the load is
    not shared, a server that was taken out is asked on, or never comes back."""
    monkeypatch.setattr(sys.modules["zephyr.teacher.pool"], "PROBE_SECONDS", 0.2)
    requests = questions(12)
    one = asked_of(pool_of(proxies[:1]), requests, tmp_path / "one.jsonl")
    assert proxies[0].passed == 12
    all_three = asked_of(pool_of(proxies), requests, tmp_path / "all.jsonl")
    assert said(all_three) == said(one) and all(reply.text for reply in one)
    shares = [proxies[0].passed - 12, proxies[1].passed, proxies[2].passed]
    assert sum(shares) == 12 and min(shares) >= 2 and max(p.most_in_flight for p in proxies) <= 2
    for proxy in proxies:
        proxy.calls.clear()
        proxy.passed = 0
    proxies[0].always = "drop"
    proxies[1].faults.extend(["", "", "500", "500", "drop", "drop"])
    replies = asked_of(pool_of(proxies), requests, tmp_path / "failing.jsonl")
    assert said(replies) == said(one) and sum(proxy.passed for proxy in proxies) == 12
    assert proxies[0].passed == 0 and 2 <= len(proxies[0].calls) <= 4
    proxies[0].always, proxies[0].delay = "", 0.0
    asked_of(pool_of(list(reversed(proxies))), requests, tmp_path / "failing.jsonl")
    assert sum(proxy.passed for proxy in proxies) == 12, "other URLs, another order: all is paid"


def test_a_server_comes_back_and_all_failing_names_each(
    proxies: list[Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a server that answers its health probe again gets no requests, the run goes on
    when no server is left, or the error hides one of them."""
    monkeypatch.setattr(sys.modules["zephyr.teacher.pool"], "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(sys.modules["zephyr.teacher.pool"], "MAX_OUT_SECONDS", 0.1)
    first, second = proxies[:2]
    first.faults.extend(["500"] * 2)  # healthy by its probe, once it was taken out
    second.delay = 0.5
    replies = asked_of(pool_of([first, second]), questions(12), tmp_path / "a.jsonl")
    assert first.passed > 2 and first.passed + second.passed == 12 == len(replies)
    first.always, second.always, second.delay = "500", "drop", 0.0
    with pytest.raises(BadInput) as error:
        asked_of(pool_of([first, second]), questions(3, first=50), tmp_path / "a.jsonl")
    for words in ("no server of the pool answers", f"{first.url}: status 500", second.url):
        assert words in str(error.value)
    first.always = "hang"
    with pytest.raises(BadInput, match="no server of the pool answers: .*no whole reply within"):
        pool_alone = pool_of([first], timeout_seconds=0.3)
        asked_of(pool_alone, questions(1, first=60), tmp_path / "b.jsonl")


def test_all_servers_restart_at_once(
    proxies: list[Proxy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both drop all requests in flight, which takes both out, and are back a second later. Fails
    where the run ends although its servers come back, a reply is lost or paid for twice, or nobody
    is told which server failed."""
    monkeypatch.setattr(sys.modules["zephyr.teacher.pool"], "PROBE_SECONDS", 0.1)
    down = proxies[:2]
    for proxy in down:
        proxy.always = "drop"

    def restart() -> None:
        for proxy in down:
            proxy.always = ""

    timer = threading.Timer(1.0, restart)
    timer.start()
    replies = asked_of(pool_of(down), questions(6), tmp_path / "a.jsonl")
    timer.join()
    assert all(reply.text for reply in replies) and sum(proxy.passed for proxy in down) == 6
    told = capsys.readouterr().err
    for proxy in down:
        assert f"{proxy.url} gets no more requests" in told
        assert f"{proxy.url} answers again" in told


def test_specs_of_pools() -> None:
    """Fails where the commas of a pool's URLs end its SPEC in a list of answerers, where its
    identity depends on hosts or ports, or a wrong URL is found only by the first request."""
    urls = "http://a:1/v1,http://b:2/v1"
    listed = split_specs(
        f"hf:runs/a,pool:m@{urls},openai:n@http://c/v1,world:guess,mine:x,pool:o@{urls}"
    )
    assert listed == [
        "hf:runs/a",
        f"pool:m@{urls}",
        "openai:n@http://c/v1",
        "world:guess",
        "mine:x",
        f"pool:o@{urls}",
    ]
    made, elsewhere = open_teacher(listed[1]), open_teacher("pool:m@https://elsewhere:9/v1")
    assert made.name == "m" and made.identity == elsewhere.identity == "m of a pool"
    for spec, words in (
        ("pool:m", "expected openai:MODEL@BASE_URL, pool:"),
        (f"pool:m@{urls},b:3", "expected a URL like"),
        ("pool:m@http://a/v1,http://a/v1", "http://a/v1 comes twice"),
        ("pool:m@http://a/v1,http://user:secret@b/v1", "holds a user or password"),
    ):
        with pytest.raises(BadInput, match=words):
            open_teacher(spec)


@pytest.mark.long
def test_a_server_is_killed_in_the_middle(tmp_path: Path) -> None:
    """`zephyr feedback` with three real servers, one of which gets SIGKILL after some replies: the
    file is that of one server to the byte, and a restart on other ports asks nothing."""
    pytest.importorskip("fastapi", reason="fastapi is absent, without which there is no server")
    from zephyr.data.tokenizer import load_tokenizer

    folder = tiny_model(tmp_path / "tiny")
    load_tokenizer(folder).save_pretrained(folder)
    prompts = [{"prompt_id": f"q{n}", "prompt": f"why {n}?"} for n in range(24)]
    write_rows(tmp_path / "prompts.jsonl", prompts)

    def command(name: str, servers: Sequence[Server]) -> subprocess.Popen[bytes]:
        urls = ",".join(server.url for server in servers)
        arguments = ["feedback", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / name)]
        arguments += ["--answerers", f"pool:{servers[0].model}@{urls},world:expert"]
        arguments += ["--per-prompt", "2", "--max-new-tokens", "8", "--tries", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "zephyr", *arguments], env=environment)

    def replies(name: str) -> list[dict[str, object]]:
        path = (tmp_path / name).with_suffix(".ledger.jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    with ExitStack() as stack:
        servers = [stack.enter_context(serving(folder)) for _ in range(3)]
        assert command("one.jsonl", servers[:1]).wait(timeout=120) == 0
        running = command("pool.jsonl", servers)
        while len(replies("pool.jsonl")) < 4:
            assert running.poll() is None, "it ended before a server was killed"
            time.sleep(0.02)
        kill_server(servers[1])
        assert running.wait(timeout=120) == 0
        assert (tmp_path / "pool.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
        kept = replies("pool.jsonl")
        answered = [reply["digest"] for reply in kept if reply["digest"]]
        assert len(answered) == len(set(answered)) == 48
        assert command("pool.jsonl", servers[2:]).wait(timeout=120) == 0
        assert replies("pool.jsonl") == kept


def kill_server(server: Server) -> None:
    """SIGKILL to the process that listens on the server's port."""
    port = server.url.split(":")[2].split("/")[0]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--port" in words and words[words.index(b"--port") + 1] == port.encode():
            os.kill(int(entry.name), signal.SIGKILL)
            return
    raise AssertionError(f"no process serves {server.url}")
