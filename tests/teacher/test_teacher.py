"""Teachers: a real server behind a faulty proxy, a local model on one and two ranks, the ledger,
the budget."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from processes import ROOT, free_port
from proxy import HOSTILE, Proxy, Server, serving

from zephyr.config import BadInput
from zephyr.teacher import (
    Budget,
    BudgetSpent,
    Ledger,
    Reply,
    Request,
    Teacher,
    ask,
    embedded,
    endpoint,
    local,
)
from zephyr.teacher.endpoint import parse_retry_after

KEY = "sk-planted-7f3a91c2e4d05b68"


def question(text: str, **settings: object) -> Request:
    return Request(({"role": "user", "content": text},), **{"max_tokens": 6, **settings})


def questions(count: int) -> list[Request]:
    return [question(f"Question {i}?") for i in range(count)]


def asked_of(
    teacher: Teacher, questions: Sequence[Request], path: Path, **limits: object
) -> list[Reply]:
    with Ledger(path) as ledger:
        return ask(teacher, questions, ledger, Budget(**limits))


def said(replies: Sequence[Reply]) -> list[tuple[object, ...]]:
    """What must not depend on faults, ranks or restarts."""
    return [
        (r.text, r.model, r.prompt_tokens, r.completion_tokens, r.finish_reason, r.error)
        for r in replies
    ]


def in_a_process(
    folder: Path, code: str, *, ranks: int = 0, **environment: str
) -> subprocess.Popen[str]:
    """Start a program that may use this file's helpers, under torchrun where `ranks` are given."""
    script = folder / "program.py"
    folders = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    script.write_text(f"import sys\nsys.path[:0] = {folders}\nfrom test_teacher import *\n{code}\n")
    launcher = (
        ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
        if ranks
        else []
    )
    return subprocess.Popen(
        [sys.executable, *launcher, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-4000:]
    return out


@pytest.fixture
def teacher(proxy: Proxy) -> Callable[..., Teacher]:
    """A teacher behind the proxy, patient for 2 seconds only."""
    return lambda **settings: endpoint(
        proxy.model, proxy.url, **{"timeout_seconds": 2.0, "concurrency": 4, **settings}
    )


def test_faults_change_no_reply(
    proxy: Proxy, server: Server, teacher: Callable[..., Teacher], tmp_path: Path
) -> None:
    """Every passing fault once: the replies are those of the server alone, and no more was asked
    than replies and faults. Fails where a fault is taken for a reply, a cut or dripping one hangs,
    or a good reply is asked for again."""
    requests = questions(12)
    plain = asked_of(endpoint(server.model, server.url), requests, tmp_path / "plain.jsonl")
    assert all(
        reply.text and reply.completion_tokens == 6 and reply.finish_reason == "length"
        for reply in plain
    )
    faults = [
        "429",
        "500",
        "hang",
        "cut",
        "drop",
        "garbage",
        "empty",
        "null",
        "503",
        "409",
        "408",
        "drip",
    ]
    proxy.faults.extend(faults)
    replies = asked_of(teacher(concurrency=12), requests, tmp_path / "ledger.jsonl")
    assert {r.digest for r in replies}.isdisjoint(
        r.digest for r in plain
    )  # a model of this name elsewhere is another teacher
    assert said(replies) == said(plain) and [reply.raw["choices"] for reply in replies] == [
        r.raw["choices"] for r in plain
    ]
    assert len(proxy.calls) == len(requests) + len(faults) and proxy.passed == len(requests)
    assert asked_of(
        teacher(), requests, tmp_path / "ledger.jsonl"
    ) == replies and proxy.passed == len(requests)


def test_concurrency_is_bounded_and_reached(
    proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path
) -> None:
    """Counted at the proxy. Fails where requests go one by one, or all at once. Each distinct one
    is asked once."""
    proxy.delay = 0.2
    replies = asked_of(
        teacher(concurrency=5), questions(13) + questions(4), tmp_path / "ledger.jsonl"
    )
    assert proxy.most_in_flight == 5 and len(proxy.calls) == 13 and replies[:4] == replies[13:]
    assert [reply.digest for reply in replies[:13]] == [
        request.digest(f"{proxy.model} at {proxy.url}") for request in questions(13)
    ]


def test_settings_are_sent(proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path) -> None:
    """Fails where the seed or a setting stays here; two seeds are two requests, `about` makes
    none."""
    request = question("Hello", temperature=0.7, top_p=0.5, seed=3, about={"task": "secret"})
    asked_of(
        teacher(),
        [request, request._replace(seed=4), request._replace(about={})],
        tmp_path / "ledger.jsonl",
    )
    first, second = sorted((call.asked for call in proxy.calls), key=lambda asked: asked["seed"])
    assert first == {
        "model": proxy.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 6,
        "temperature": 0.7,
        "top_p": 0.5,
        "seed": 3,
    }
    assert second == {**first, "seed": 4}


@pytest.mark.parametrize(("fault", "least"), [("429", 1.0), ("429-date", 0.9)])
def test_retry_after_is_waited_for(
    proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path, fault: str, least: float
) -> None:
    """In seconds and as a date (of whole seconds, two ahead). Fails where the next try comes
    sooner."""
    proxy.faults.append(fault)
    asked_of(teacher(), questions(1), tmp_path / "ledger.jsonl")
    assert proxy.calls[1].time - proxy.calls[0].time >= least


def test_retry_after_forms() -> None:
    """Fails where a header that is neither seconds nor a date stops the run, or a date in the past
    waits."""
    assert [
        parse_retry_after(text)
        for text in ("2.5", "-3", "", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")
    ] == [2.5, 0, 0, 0, 0]
    assert parse_retry_after("Wed, 21 Oct 2099 07:28:00 GMT") > 1e9


def test_what_ends_a_run_names_the_teacher(
    proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path
) -> None:
    """A wrong key, no credit, tries used up, a day's wait: one line with model, URL and cause, and
    what was answered is kept. Fails where these are taken for replies, or are tried over and
    over."""
    for n, (fault, words) in enumerate(
        {"401": "status 401", "402": "status 402", "429-day": "86400 s", "500": "2 tries"}.items()
    ):
        before, path = len(proxy.calls), tmp_path / f"{n}.jsonl"
        proxy.faults.extend(["", fault])
        proxy.always = fault
        with pytest.raises(BadInput, match=words) as caught:
            asked_of(teacher(concurrency=1, retries=1), questions(5), path)
        assert proxy.model in str(caught.value) and proxy.url in str(caught.value)
        assert len(proxy.calls) - before == (3 if fault == "500" else 2)
        proxy.always, before = "", len(proxy.calls)
        assert (
            all(reply.text for reply in asked_of(teacher(), questions(5), path))
            and len(proxy.calls) == before + 4
        )
    with pytest.raises(BadInput, match="ConnectError"):
        asked_of(
            endpoint("m", f"http://127.0.0.1:{free_port()}/v1", retries=0),
            questions(2),
            tmp_path / "none.jsonl",
        )


def test_a_refusal_is_a_reply(
    proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path
) -> None:
    """A 400, a refusal of the model's, and text that no server can be sent: about one request each,
    kept, never asked again. Fails where one bad prompt stops a run of a million, or is paid for at
    each restart."""
    proxy.faults.extend(["400", "refusal", ""])
    requests = [*questions(3), question("half a \ud83d pair")]
    replies = asked_of(teacher(concurrency=1), requests, tmp_path / "ledger.jsonl")
    assert [reply.text is None for reply in replies] == [True, True, False, True]
    assert [reply.error[:12] for reply in replies] == [
        "status 400: ",
        "I will not.",
        "",
        "the request ",
    ]
    assert (
        asked_of(teacher(), requests, tmp_path / "ledger.jsonl") == replies
        and len(proxy.calls) == 3
    )


def test_a_wrong_url_is_told(server: Server, tmp_path: Path) -> None:
    """The server's own 404. Fails where its status or words are lost, or it is tried again."""
    with pytest.raises(BadInput, match=r"v1/v1: status 404.*Not Found"):
        asked_of(
            endpoint(server.model, f"{server.url}/v1"), questions(1), tmp_path / "ledger.jsonl"
        )


@pytest.mark.parametrize("limits", [{"requests": 7}, {"tokens": 1200}, {"cost": 0.9}], ids=str)
def test_a_budget_is_hard_and_goes_on(
    proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path, limits: dict[str, float]
) -> None:
    """Reached with four in flight: stopped before it is exceeded, the answered kept; the same
    budget again asks nothing; a higher one asks the rest alone. Fails where a restart resets it,
    in-flight requests are forgotten, or room is left unused."""
    proxy.delay, path, prices = 0.05, tmp_path / "ledger.jsonl", {proxy.model: (1000.0, 10_000.0)}
    name, limit = next(iter(limits.items()))
    counts = []
    for _ in range(2):
        with Ledger(path) as ledger, pytest.raises(BudgetSpent, match=name):
            ask(teacher(), questions(40), ledger, Budget(**limits, prices=prices))
        spent = getattr(Ledger(path, read_only=True).held, name)
        assert limit / 2 < spent <= limit
        counts += [len(proxy.calls), len(path.read_text().splitlines())]
    assert len(set(counts)) == 1
    replies = asked_of(teacher(), questions(40), path, **{name: 100 * limit}, prices=prices)
    assert len(proxy.calls) == 40 and all(reply.text for reply in replies)
    assert replies[0].price == pytest.approx(
        (replies[0].prompt_tokens * 1000 + replies[0].completion_tokens * 10_000) / 1e6
    )


def test_failed_tries_count(proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path) -> None:
    """Fails where a failing server could be asked without end, or money is limited and a price is
    unknown."""
    proxy.always = "500"
    with pytest.raises(BudgetSpent, match="requests"):
        asked_of(teacher(retries=4, concurrency=2), questions(9), tmp_path / "a.jsonl", requests=3)
    assert len(proxy.calls) == 3
    with pytest.raises(BudgetSpent, match="requests"):  # the tries of an earlier run count
        asked_of(teacher(retries=4, concurrency=2), questions(9), tmp_path / "a.jsonl", requests=4)
    assert len(proxy.calls) == 4
    for fault in ("garbage", "cut"):
        proxy.always, before = fault, len(proxy.calls)
        with pytest.raises(BudgetSpent, match="tokens"):
            asked_of(
                teacher(retries=4, concurrency=1),
                questions(9),
                tmp_path / f"{fault}.jsonl",
                tokens=300,
            )
        assert len(proxy.calls) - before == 2  # twice the worst case of about 115
    with pytest.raises(BadInput, match="price"):
        asked_of(
            teacher(), questions(1), tmp_path / "c.jsonl", cost=1.0, prices={"other": (1.0, 1.0)}
        )


def test_a_killed_run_pays_nothing_twice(proxy: Proxy, tmp_path: Path) -> None:
    """A real process, killed with -9 amid 40 requests: the second asks only what the ledger lacks,
    in all at most those in flight more than once. Fails where replies wait in memory."""
    proxy.delay = 0.1
    path = tmp_path / "ledger.jsonl"
    code = (
        f"teacher = endpoint({proxy.model!r}, {proxy.url!r}, concurrency=4)\n"
        f"print(len(asked_of(teacher, questions(40), Path({str(path)!r}))))"
    )
    killed = in_a_process(tmp_path, code)
    while proxy.passed < 12:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    with pytest.raises(BadInput, match="in use"):
        Ledger(path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    first = len(proxy.calls)
    kept = {
        json.loads(line)["request"]["messages"][-1]["content"]
        for line in path.read_bytes().split(b"\n")[:-1]
    }
    assert 8 <= len(kept) <= first < 40
    assert finished(in_a_process(tmp_path, code)).strip() == "40"
    again = proxy.asked()[first:]
    assert not kept & set(again) and len(again) == 40 - len(kept) and first - len(kept) <= 4


def test_an_interrupt_loses_nothing(proxy: Proxy, tmp_path: Path) -> None:
    """Ctrl-C while requests wait: the process ends at once, with what was answered in the
    ledger."""
    path = tmp_path / "ledger.jsonl"
    proxy.faults.extend([*[""] * 6, *["hang"] * 30])
    code = (
        f"teacher = endpoint({proxy.model!r}, {proxy.url!r}, concurrency=3)\n"
        f"asked_of(teacher, questions(20), Path({str(path)!r}))"
    )
    process = in_a_process(tmp_path, code)
    while len(proxy.calls) < 9:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert (
        "KeyboardInterrupt" in process.communicate(timeout=30)[1]
        and Ledger(path).held.requests == 6
    )


def test_the_key_is_nowhere(proxy: Proxy, tmp_path: Path) -> None:
    """A server that repeats the key in its errors, with openai's own logs on: neither files nor
    output nor errors hold it."""
    proxy.faults.extend(["400", "", "500", "401"])
    code = (
        f"with Ledger(Path({str(tmp_path / 'ledger.jsonl')!r})) as ledger:\n"
        f"    teacher = endpoint({proxy.model!r}, {proxy.url!r}, concurrency=1)\n"
        "    ask(teacher, questions(4), ledger, Budget())"
    )
    out, errors = in_a_process(tmp_path, code, OPENAI_API_KEY=KEY, OPENAI_LOG="debug").communicate(
        timeout=60
    )
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert (
        "[key]" in lines[0] and "[key]" in errors and "401" in errors and len(lines) == 3
    )  # two replies, a failed try
    assert KEY not in "".join([out, errors, *lines])


def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a key in a URL, or one that no header can hold, would go on to be logged by
    whoever chokes on it."""
    for url in (
        "localhost:8000",
        f"http://me:{KEY}@localhost/v1",
        f"http://localhost/v1?key={KEY}",
        "ftp://localhost",
    ):
        with pytest.raises(BadInput, match="URL") as caught:
            endpoint("m", url)
        assert KEY not in str(caught.value)
    monkeypatch.setenv("OTHER_KEY", KEY + "\n")
    with pytest.raises(BadInput, match="OTHER_KEY") as caught:
        endpoint("m", "http://localhost/v1", key_variable="OTHER_KEY")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", ["302", "307"])
def test_a_redirect_is_not_followed(
    proxy: Proxy, server: Server, teacher: Callable[..., Teacher], tmp_path: Path, status: str
) -> None:
    """To another real server, by another port or scheme, and to the same one: one line with both
    origins, and nothing reaches the other. Fails where prompts and key go to a host that nobody
    named, and its words enter the ledger as the teacher's."""
    other, path = Proxy(server), tmp_path / "ledger.jsonl"
    try:
        for where, words in (
            (
                f"{other.url}/chat/completions?k={KEY}",
                f"redirects to http://127.0.0.1:{other.port}, another origin",
            ),
            (
                f"https://127.0.0.1:{proxy.port}/v1",
                f"redirects to https://127.0.0.1:{proxy.port}, another origin",
            ),
            ("/v2/chat/completions", "its own '/v2/chat/completions'"),
            ("http://[", "to what is no URL"),
        ):
            proxy.faults.extend(["", f"{status} {where}"])
            before = len(proxy.calls)
            with pytest.raises(BadInput) as caught:
                asked_of(
                    teacher(concurrency=1),
                    [question(words), question("Hello"), *questions(3)],
                    path,
                )
            assert (
                f"http://127.0.0.1:{proxy.port}" in str(caught.value)
                and words in str(caught.value)
                and KEY not in str(caught.value)
            )
            assert len(proxy.calls) - before == 2
            proxy.faults.clear()
        assert not other.calls and KEY not in path.read_text()
    finally:
        other.close()


def test_a_hostile_body_is_a_failed_try(
    proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path
) -> None:
    """32 MB of one answer, 256 MB of blanks in 256 kB of gzip, nesting, a number of a million
    digits, counts that would refund a budget or can't be added: each is a try that failed, in
    bounded memory, and the next one gives the reply. Fails where one stops or fills the process, is
    kept as a reply, or where what the ledger holds can't be read again."""
    import resource

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    requests = [question(fault) for fault in HOSTILE]
    asked_of(teacher(), questions(1), tmp_path / "ledger.jsonl")  # all is imported
    before = peak()
    for fault in HOSTILE:
        proxy.faults.extend([fault, ""])
    replies = asked_of(
        teacher(concurrency=1, timeout_seconds=20.0),
        requests,
        tmp_path / "ledger.jsonl",
        tokens=10**6,
    )
    assert peak() - before < 2**28 + 2**27  # the proxy's own 256 MB are in this process, too
    assert all(reply.text and reply.completion_tokens == 6 for reply in replies) and len(
        proxy.calls
    ) == 1 + 2 * len(HOSTILE)
    failures = [
        json.loads(line)["error"]
        for line in (tmp_path / "ledger.jsonl").read_text().splitlines()
        if '"digest": ""' in line
    ]
    wanted = (
        "over 16777216 bytes",
        "over 16777216 bytes",
        "packed as br",
        "nested more than 100",
        "no JSON",
        "counts [-1000000",
        "infinity",
        "counts [6, 999",
    )
    assert len(failures) == len(wanted) and all(
        word in failure for word, failure in zip(wanted, failures)
    ), failures


def test_inside_a_running_loop(
    proxy: Proxy, teacher: Callable[..., Teacher], tmp_path: Path
) -> None:
    """A notebook cell runs inside an event loop. Fails where another can't be started there."""
    import asyncio

    async def cell() -> list[Reply]:
        return asked_of(teacher(), questions(3), tmp_path / "ledger.jsonl")

    assert len(asyncio.run(cell())) == 3


def test_the_ledger_mends_only_a_torn_last_line(tmp_path: Path) -> None:
    """Cut at every byte of the last line: that reply alone is asked again, and the file is whole
    after. A broken line elsewhere is named. Fails where a torn line joins the next, is silently
    skipped, or another file's end is taken for one and lost."""
    path, count = tmp_path / "ledger.jsonl", []
    teacher = embedded(
        "echo",
        lambda request: count.append(1) or request.messages[-1]["content"] + " \u2028\0é\ud800",
        "1",
    )
    whole = asked_of(teacher, questions(3), path)
    content = path.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    for cut in range(last, len(content), 7):
        path.write_bytes(content[:cut])
        count.clear()
        replies = asked_of(teacher, questions(3), path)
        assert (
            said(replies) == said(whole)
            and len(count) == 1
            and len(path.read_bytes()) == len(content)
        )
    path.write_bytes(content[:last] + b"{}\n" + content[last:])
    with pytest.raises(BadInput, match=r"ledger.jsonl:3"):
        Ledger(path)
    path.write_text("a file that is no ledger, and ends without a newline")
    with pytest.raises(BadInput, match="no reply of this program"):
        Ledger(path)
    assert path.stat().st_size > 40


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_tokens": -(10**6)},
        {"price": float("nan")},
        {"price": -1.0},
        {"completion_tokens": "6"},
        {"completion_tokens": float("inf")},
        {"text": ["x"]},
        {"digest": 7},
        {"digest": "xy"},
        {"error": None, "raw": "deep"},
        {},
        "cut field",
        "a list",
        "long",
    ],
    ids=str,
)
def test_a_ledger_of_another_hand_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    """A line that JSON reads and no run wrote: file and line are told, the file stays as it is.
    Fails where it would refund a budget or turn its limits off (no sum with NaN passes one), or end
    a run days later, when that reply is asked for."""
    path, teacher = tmp_path / "led[g]er.jsonl", embedded("echo", lambda request: "x", "1")
    asked_of(teacher, questions(2), path)
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[1])
    if isinstance(change, dict) and change:
        row |= change
        lines[1] = json.dumps(row).replace('"deep"', "[" * 100_000 + "]" * 100_000) + "\n"
    elif change == "cut field":
        del row["finish_reason"]
        lines[1] = json.dumps(row) + "\n"
    elif change == "a list":
        lines[1] = "[1]\n"
    elif change == "long":
        monkeypatch.setattr("zephyr.teacher.ledger.MAX_LINE_BYTES", len(lines[1]) + 100)
        lines[1] = json.dumps(row | {"raw": "y" * 10_000}) + "\n"
    path.write_text("".join(lines))
    before = path.read_bytes()
    if change == {}:
        Ledger(path).close()
        return
    with pytest.raises(BadInput, match=r"ledger .*led\[g\]er.jsonl:2"):
        Ledger(path)
    assert path.read_bytes() == before


def test_the_ledger_holds_places_not_texts(tmp_path: Path) -> None:
    """20,000 replies of 2 kB: reading the ledger takes a small part of the file. Fails where
    replies stay in memory."""
    import tracemalloc

    path, request = tmp_path / "ledger.jsonl", question("x" * 2000)
    with Ledger(path) as ledger:
        for n in range(20_000):
            ledger.append(Reply(f"{n:064x}", "x", "m", "", 1, 1, 0.0, ""), "m", request)
    tracemalloc.start()
    ledger = Ledger(path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        ledger.held.requests == 20_000
        and held < path.stat().st_size / 5
        and ledger.get(f"{777:064x}").digest == f"{777:064x}"
    )


def local_of(path: Path, max_batch: int = 4) -> Teacher:
    from zephyr.data.tokenizer import load_tokenizer
    from zephyr.model.load import load_policy

    return local(
        str(path), lambda: (load_policy(path).lm, load_tokenizer(path)), max_batch=max_batch
    )


def local_questions() -> list[Request]:
    mixed = [
        question(
            f"{'Long ' * (i % 5)}question {i}?",
            temperature=(0.0, 1.0)[i % 2],
            seed=i,
            max_tokens=3 + i % 4,
        )
        for i in range(22)
    ]
    return [
        *mixed,
        question("too long", max_tokens=10**6),
        Request(({"role": "assistant", "content": "no question"},)),
    ]


@pytest.mark.long
def test_ranks_share_a_local_model(tiny: Path, tmp_path: Path) -> None:
    """Greedy and sampled, on two ranks of torchrun and on one in batches of another size: every
    rank has the same replies; a budget stops both ranks, and the next run goes on. Fails where a
    sample depends on its batch, or ranks disagree on what is asked."""
    alone = asked_of(local_of(tiny, 7), local_questions(), tmp_path / "alone.jsonl")
    assert [reply.text is None for reply in alone] == [False] * 22 + [True] * 2
    assert {reply.finish_reason for reply in alone[:22]} <= {
        "length",
        "stop",
    } and "positions" in alone[22].error
    path = tmp_path / "shared.jsonl"
    code = f"""
import os
with Ledger(Path({str(path)!r})) as ledger:
    try:
        ask(local_of(Path({str(tiny)!r})), local_questions(), ledger, Budget(requests=10))
    except BudgetSpent as error:
        print(ledger.held.requests, "then", error)
    budget, function = Budget(), embedded("echo", lambda request: os.environ["RANK"], "1")
    replies = ask(local_of(Path({str(tiny)!r})), local_questions(), ledger, budget)
    echoes = ask(function, questions(3), ledger, budget)
rank = os.environ["RANK"]
result = [said(replies), [e.text for e in echoes], budget.spent]
Path({str(tmp_path)!r}, f"said{{rank}}.json").write_text(json.dumps(result))
"""
    assert "budget: requests" in finished(in_a_process(tmp_path, code, ranks=2))
    first, second = (json.loads((tmp_path / f"said{rank}.json").read_text()) for rank in (0, 1))
    assert first == second == [[list(reply) for reply in said(alone)], ["0"] * 3, second[2]]
    files = [path, path.with_name("shared.rank1.jsonl")]
    lines = [len(file.read_text().splitlines()) for file in files]
    assert sum(lines) == 24 + 3 == second[2][0] and min(lines) >= 11
    assert said(asked_of(local_of(tiny), local_questions(), path, requests=27)) == said(alone)


def test_other_weights_are_asked_anew(tmp_path: Path) -> None:
    """Fails where a retrained model under the same path is answered for by the old one's
    replies."""
    from tiny import tiny_model

    replies = [
        asked_of(
            local_of(tiny_model(tmp_path / "m", seed=seed)), questions(2), tmp_path / "l.jsonl"
        )
        for seed in (0, 1, 0)
    ]
    assert said(replies[0]) == said(replies[2]) and replies[0] == replies[2] != replies[1]


def test_a_real_model_is_served(real_data: Path, tmp_path: Path) -> None:
    """stories260K, through its own server and through the local teacher: the same greedy words,
    token for token."""
    pytest.importorskip(
        "fastapi", reason="fastapi is absent, without which there is no server to ask"
    )
    from real.stories import convert

    from zephyr.data.tokenizer import load_tokenizer

    weights = real_data / "weights"
    folder = convert(
        weights / "stories260K.bin", weights / "stories260K_tok512.bin", tmp_path / "stories"
    )
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = (
        "{{ bos_token }}" + tokenizer.chat_template
    )  # servers add no BOS that a template doesn't write
    tokenizer.save_pretrained(folder)
    stories = [
        question(text, max_tokens=40)
        for text in ("Tell me about Tom and his dog.", "Once upon a time", "Lily likes cake.")
    ]
    with serving(folder) as running:
        theirs = asked_of(endpoint(running.model, running.url), stories, tmp_path / "theirs.jsonl")
    ours = asked_of(local_of(folder), stories, tmp_path / "ours.jsonl")
    assert [reply[1:2] + reply[4:6] for reply in ours] == [
        reply[1:2] + reply[4:6] for reply in theirs
    ] and ours[0].text
