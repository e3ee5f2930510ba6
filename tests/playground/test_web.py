"""`zephyr chat --web` in a real browser: answers appear as text, sides stay hidden until the vote,
and a vote is a pair."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from browsing import skip_without_browser
from processes import ROOT, free_port
from test_chat_command import SAMPLING
from tiny import tiny_model

from zephyr.chat import check_pair
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.generate import generate
from zephyr.model.load import load_policy
from zephyr.playground import web

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

TOKEN = "planted-in-the-environment"
QUESTION = "What colour is the sky?"
SAMPLED = ["How many days has a week?", "<b class='injected'>What</b> is &lt;b&gt;?"]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


def hostile(port: int) -> str:
    """What a model may write that would act in a page that renders it."""
    return (
        '<script>document.title = "owned"</script>'
        f'<img src="http://127.0.0.1:{port}/pixel" onerror="alert(1)"> <b id="injected">b</b> '
        f"[link](javascript:alert(2)) ![image](http://127.0.0.1:{port}/pixel) **stars** "
        "&lt;i&gt; ${7*7} {{7*7}} "
        '<iframe srcdoc="<script>alert(3)</script>"></iframe><svg onload="alert(4)"></svg> $x^2$\n'
        "    indented\n    and one more"
    )


class Hostile(BaseHTTPRequestHandler):
    """Chat completions, streamed, that say the same to everything; the server's `asked` and
    `fetched` tell what came."""

    def do_POST(self) -> None:
        self.server.asked.append(
            json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        text = hostile(self.server.server_port)
        for part, end in ((text[:40], None), (text[40:], "stop")):
            chunk = {
                "id": "1",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": "m",
                "choices": [{"index": 0, "delta": {"content": part}, "finish_reason": end}],
            }
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def do_GET(self) -> None:
        self.server.fetched.append(self.path)
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Pages(NamedTuple):
    """Both pages while they are served: of one hostile model, to the network; of two tiny models in
    `folder`, to loopback."""

    one: str
    two: str
    folder: Path
    server: ThreadingHTTPServer


def serve(
    model: str, *, host: str = "127.0.0.1", port: int = 1, share_on_network: bool = False
) -> None:
    web.serve(
        [model],
        SAMPLING,
        seed=0,
        key_variable="OPENAI_API_KEY",
        votes=Path("v.jsonl"),
        prompts=None,
        host=host,
        port=port,
        share_on_network=share_on_network,
    )


@contextlib.contextmanager
def chatting(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "ZEPHYR_WEB_TOKEN": TOKEN,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "zephyr", "chat", "--web", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def pages(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    for library in ("gradio", "openai"):
        pytest.importorskip(library, reason=f"{library} is absent, without which there is no page")
    folder = tmp_path_factory.mktemp("web")
    models = [
        shutil.copytree(tiny, folder / "first-secret"),
        tiny_model(folder / "second-secret", seed=1),
    ]
    rows = [{"step": step, "prompt": text, "text": "x"} for step in (0, 5) for text in SAMPLED]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.asked, server.fetched = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    ports = str(free_port()), str(free_port())
    network = (
        f"openai:m@http://127.0.0.1:{server.server_port}/v1",
        "--host",
        "0.0.0.0",
        "--share-on-network",
        "--port",
        ports[0],
    )
    blind = (
        *map(str, models),
        "--greedy",
        "--max-new-tokens",
        "12",
        "--votes",
        str(folder / "votes.jsonl"),
        "--port",
        ports[1],
    )
    with chatting(*network) as one, chatting(*blind) as two:
        assert [one.stdout.readline(), two.stdout.readline()] == [
            f"http://{host}:{port}/\n" for host, port in zip(("localhost", "127.0.0.1"), ports)
        ]
        yield Pages(*(f"http://127.0.0.1:{port}/" for port in ports), folder, server)
    server.shutdown()
    server.server_close()
    thread.join(10)


class Browser:
    """Headless Chromium on one of the pages."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        settings = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            settings.add_argument(flag)
        settings.binary_location = shutil.which("chromium")
        settings.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver: Chrome = webdriver.Chrome(
            options=settings, service=Service(shutil.which("chromedriver"))
        )

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def wait(self, what: str, *arguments: object) -> object:
        """The value of a JavaScript expression once it is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.1).until(
            lambda driver: driver.execute_script(f"return {what}", *arguments)
        )

    def note(self) -> str:
        return self.find("#note textarea")[0].get_property("value")

    def say(self, text: str) -> None:
        """Type a turn and send it."""
        self.wait("document.querySelector('#words textarea')")
        self.driver.execute_script(
            "const e = document.querySelector('#words textarea'); e.value = arguments[0]; "
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            text,
        )
        self.find("#words textarea")[0].send_keys("\ue007")

    def texts(self, role: str) -> list[str]:
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)",
            f".{role} .message",
        )

    def elsewhere(self, url: str) -> set[str]:
        """What the pages of this browser fetched over the network so far, but from `url`."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        asked = [
            event["params"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        fetched = {one["request"]["url"] for one in asked if one["documentURL"].startswith("http")}
        assert url in fetched
        return {one for one in fetched if not one.startswith((url, "data:", "blob:"))}

    def button(self, text: str) -> WebElement:
        (found,) = [button for button in self.find("button") if button.text == text]
        return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    skip_without_browser()
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.driver.quit()


def test_what_a_model_writes_is_text(pages: Pages, browser: Browser) -> None:
    """Behind the password a page whose model writes scripts, images and links, and so does the
    person. Fails where one of them runs, becomes an element or is fetched, where a letter of the
    text is lost, or where the page itself gets anything from elsewhere."""
    text = hostile(pages.server.server_port)
    browser.driver.get(pages.one)
    browser.wait("document.querySelectorAll('input').length > 1")
    for field, value in zip(browser.find("input"), ("zephyr", TOKEN)):
        field.send_keys(value)
    browser.find("button")[-1].click()
    browser.wait("document.querySelector('#system textarea')")
    browser.find("#system textarea")[0].send_keys("Be kind.")
    browser.say(text)
    browser.wait("document.querySelector('.bot .message')?.innerText.includes('and one more')")
    browser.say(QUESTION)
    browser.wait(
        "document.querySelectorAll('.bot .message').length == 2 "
        "&& !document.querySelector('#words textarea').value"
    )
    assert (
        browser.texts("user") == [text, QUESTION]
        and browser.texts("bot") == [text, text]
        and browser.driver.title == "zephyr chat"
    )
    assert not browser.find(
        "#injected, "
        + ", ".join(f".message {tag}" for tag in "img a script iframe svg i b strong code".split())
    )
    assert pages.server.asked == [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}],
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": text},
            {"role": "user", "content": QUESTION},
        ],
    ]
    assert browser.elsewhere(pages.one) == set()
    reached = (
        "const done = arguments[1]; fetch(arguments[0]).then(() => done(true), () => done(false))"
    )
    assert browser.driver.execute_async_script(reached, pages.one) is True
    assert (
        browser.driver.execute_async_script(
            reached, f"http://127.0.0.1:{pages.server.server_port}/pixel"
        )
        is False
    )
    assert pages.server.fetched == []
    browser.button("New conversation").click()
    browser.wait("!document.querySelector('.message')")
    browser.say("Again?")
    browser.wait("document.querySelector('.bot .message')?.innerText.includes('and one more')")
    assert [turn["content"] for turn in pages.server.asked[-1]] == ["Be kind.", "Again?"]


def test_the_page_says_what_it_is(pages: Pages, browser: Browser) -> None:
    """Its heading, where votes for neither go, and the prompts of the run beside the model, each of
    which a click writes into the box. Fails where an example acts as HTML, comes twice or is not
    the text that is sent, or where the page is wider than a phone."""
    browser.driver.get(pages.two)
    browser.wait("document.querySelectorAll('.example').length")
    said = browser.find("#about")[0].text
    assert said.startswith("zephyr chat\nTwo models answer each question, side by side.")
    for words in ("hidden until you vote", f"{pages.folder}/votes.undecided.jsonl", "make no pair"):
        assert words in said
    assert "secret" not in said and not browser.find(".injected")
    assert [button.text for button in browser.find(".example")] == SAMPLED
    for button, text in zip(browser.find(".example"), SAMPLED):
        button.click()
        browser.wait("document.querySelector('#words textarea').value === arguments[0]", text)
    phone = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert browser.wait("document.documentElement.scrollWidth") <= 420
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_blind_vote_is_a_pair(pages: Pages, browser: Browser) -> None:
    """Two models answer one question; nothing on the page names them before the vote, and the
    vote's row is what was seen. Fails where a name shows early, where sides are mixed up, or where
    a tie becomes a pair."""
    votes, undecided = pages.folder / "votes.jsonl", pages.folder / "votes.undecided.jsonl"
    turns = [{"role": "user", "content": QUESTION}]
    answers = {}
    for name in ("first-secret", "second-secret"):
        lm = load_policy(pages.folder / name).lm
        (answers[str(pages.folder / name)],) = generate(
            lm, load_tokenizer(pages.folder / name), [turns], max_new_tokens=12
        )
    browser.driver.get(pages.two)
    browser.wait("document.querySelector('#words textarea')")
    assert not browser.button("A is better").is_enabled()
    browser.say(QUESTION)
    browser.wait(
        "document.querySelector('#note textarea').value.includes('Which answer is better?')"
    )
    page = browser.driver.page_source + urllib.request.urlopen(pages.two + "config").read().decode()
    assert "secret" not in page + browser.note() and "A is better" in page
    assert browser.texts("user") == [QUESTION] * 2 and not votes.exists()
    a, b = browser.texts("bot")
    browser.button("B is better").click()
    browser.wait("document.querySelector('#note textarea').value.includes('secret')")
    assert not browser.button("B is better").is_enabled() and browser.texts("bot") == [a, b]
    ((_, row),) = read_rows([votes])
    pair = check_pair(row)
    assert pair.prompt == turns and row["vote"] == "B is better"
    chosen, rejected = pair.chosen["content"], pair.rejected["content"]
    assert (chosen, rejected) == (b, a)
    assert {row["chosen_model"]: chosen, row["rejected_model"]: rejected} == answers
    assert (
        browser.note()
        == f"A was {row['rejected_model']}. B was {row['chosen_model']}. Your vote is in {votes}"
    )
    for vote in ("tie", "both bad"):
        browser.say(QUESTION)
        browser.wait(
            "document.querySelector('#note textarea').value.includes('Which answer is better?')"
        )
        browser.button(vote).click()
        browser.wait("document.querySelector('#note textarea').value.includes('undecided')")
    rows = [row for _, row in read_rows([undecided])]
    assert [row["vote"] for row in rows] == ["tie", "both bad"] and len(
        list(read_rows([votes]))
    ) == 1
    assert all(
        dict(zip(row["models"], row["answers"])) == answers and row["prompt"] == turns
        for row in rows
    )
    assert len({row["id"] for row in [*rows, row]}) == 3


def answered(url: str, **headers: str) -> int:
    """The status of a request for the page's configuration."""
    try:
        return urllib.request.urlopen(
            urllib.request.Request(f"{url}config", headers=headers)
        ).status
    except urllib.error.HTTPError as error:
        return error.code


def test_who_may_come_in(pages: Pages) -> None:
    """Without the password there is nothing to the network's page; the one on loopback answers to
    its own name only. Fails where anyone in the network can ask, or another site by a name of its
    own that leads to 127.0.0.1."""
    assert (
        answered(pages.one),
        answered(pages.two),
        answered(pages.two, Host="rebound.example"),
    ) == (401, 200, 400)
    port = int(pages.two.split(":")[2].strip("/"))
    with pytest.raises(BadInput, match=f"--port {port}: "):
        serve(str(pages.folder / "first-secret"), port=port)


@pytest.mark.parametrize(
    ("host", "flag", "token"),
    [
        ("0.0.0.0", False, TOKEN),
        ("0.0.0.0", True, ""),
        ("0.0.0.0", True, "short"),
        ("::", False, ""),
        ("127.0.0.1.example", False, TOKEN),
        ("", False, ""),
        ("192.168.1.2", True, ""),
    ],
)
def test_the_network_wants_a_flag_and_a_token(
    host: str, flag: bool, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone opens nothing. Fails where a host that others reach is served to them by
    mistake."""
    pytest.importorskip("gradio", reason="gradio is absent, without which there is no page")
    monkeypatch.setenv("ZEPHYR_WEB_TOKEN", token)
    with pytest.raises(BadInput, match="requires --share-on-network and a token"):
        serve("no-such-model", host=host, share_on_network=flag)


def test_gradio_is_named_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is a line that tells how to get it. Fails where it is a traceback."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(BadInput, match=r"pip install 'zephyr\[web\]'"):
        serve("no-such-model")


def test_votes_that_make_no_pair(tmp_path: Path) -> None:
    """Equal or empty answers teach nothing, whatever the vote, and train_dpo.py would refuse them.
    Fails where one is written as a pair, or lost; both orders of the sides come up."""
    pytest.importorskip("gradio", reason="gradio is absent, without which there is no page")
    assert {tuple(web.new_state(2).order) for _ in range(100)} == {(0, 1), (1, 0)}
    votes, turns = tmp_path / "v.jsonl", [{"role": "user", "content": QUESTION}]
    for answers, order in (
        (("same", "same"), (0, 1)),
        (("", "words"), (0, 1)),
        (("x", "y"), (1, 0)),
    ):
        web.vote(["m", "n"], votes, "A is better", web.ChatState(order, turns, answers))
    web.vote(["m", "n"], votes, "A is better", web.ChatState((0, 1), turns))
    ((_, row),) = read_rows([votes])
    assert check_pair(row) and (
        row["chosen"],
        row["chosen_model"],
        row["rejected"],
        row["rejected_model"],
    ) == ("x", "n", "y", "m")
    assert [row["answers"] for _, row in read_rows([tmp_path / "v.undecided.jsonl"])] == [
        ["same", "same"],
        ["", "words"],
    ]
