"""A page in the browser: a person talks to one model, or asks two blindly, and each vote between
their answers becomes a pair."""

import argparse
import html
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zephyr.config import BadInput
from zephyr.playground.models import Stream, append_row, open_model
from zephyr.teacher.request import utc_now

if TYPE_CHECKING:
    from gradio import Blocks

LOOPBACK = ["127.0.0.1", "localhost"]
VOTES = ["A is better", "B is better", "tie", "both bad"]
# The page fetches nothing from elsewhere; no buttons that would empty a box, but not the
# conversation; lines keep their indentation
HEAD = """<meta http-equiv="Content-Security-Policy" content="default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:">
<style>.icon-button-wrapper {display: none !important} .message span {white-space: pre-wrap !important}</style>"""


class ChatState(NamedTuple):
    """A conversation: which model is A and which B, its turns, and the answers that wait for a
    vote."""

    order: Sequence[int]
    turns: Sequence[dict[str, str]]
    answers: Sequence[str] = ()


def serve(options: argparse.Namespace) -> None:
    """Serve the page until ctrl-C. Raises: BadInput for a host that others reach, without the flag
    and a token; a port in use."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise BadInput("chat --web: gradio is wanted: pip install 'zephyr[web]'") from None
    token, alone = os.environ.get("ZEPHYR_WEB_TOKEN", ""), options.host in LOOPBACK
    if not alone and not (options.share_on_network and len(token) >= 12):
        raise BadInput(
            f"--host {options.host}: others reach it, so --share-on-network is wanted, and a token of 12 characters or more in "
            f"ZEPHYR_WEB_TOKEN; {' and '.join(LOOPBACK)} are this machine's alone"
        )
    page = build(
        options.models,
        [open_model(spec, options) for spec in options.models],
        options.votes,
        options.seed,
    )
    own_names = Middleware(
        TrustedHostMiddleware, allowed_hosts=LOOPBACK if alone else ["*"]
    )  # no other site's name may lead here
    try:
        _, url, _ = page.launch(
            server_name=options.host,
            server_port=options.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=1,
            auth=None if alone else ("zephyr", token),
            theme=gradio.themes.Base(font=["sans-serif"], font_mono=["monospace"]),
            head=HEAD,
            app_kwargs={"middleware": [own_names]},
        )
    except OSError as error:
        raise BadInput(f"--host {options.host} --port {options.port}: {error}") from None
    print(url, flush=True)
    page.block_thread()


def build(names: Sequence[str], streams: Sequence[Stream], votes: Path, seed: int) -> "Blocks":
    """The page. With two models every question is a conversation of its own, as both must answer
    the same turns."""
    import gradio as gr

    with gr.Blocks(title="zephyr chat", analytics_enabled=False, fill_width=True) as page:
        state = gr.State(new_state(len(names)))
        with gr.Row():
            boxes = [
                gr.Chatbot(
                    label=label,
                    height="45vh",
                    render_markdown=False,
                    latex_delimiters=[],
                    buttons=[],
                    feedback_options=None,
                )
                for label in ("AB" if len(names) > 1 else names)
            ]
        with gr.Row(visible=len(names) > 1):
            buttons = [gr.Button(text, interactive=False) for text in VOTES]
        note = gr.Textbox(show_label=False, interactive=False, container=False, elem_id="note")
        words = gr.Textbox(
            label="Your turn (shift-enter: a new line)",
            max_lines=20,
            submit_btn=True,
            elem_id="words",
        )
        with gr.Row(equal_height=True):
            system = gr.Textbox(
                label="System text of the next conversation (may be empty)",
                scale=4,
                elem_id="system",
            )
            new = gr.Button("New conversation")
        outputs, silent = (
            [*boxes, state, note, words, *buttons],
            {"show_progress": "hidden", "api_visibility": "private"},
        )
        asking = words.submit(
            partial(ask, streams, seed), [words, system, state], outputs, **silent
        )
        for button in buttons:
            button.click(partial(vote, names, votes), [button, state], outputs, **silent)
        new.click(lambda: render(new_state(len(names))), None, outputs, cancels=[asking], **silent)
    return page


def new_state(sides: int, system: str = "") -> ChatState:
    """A conversation before its first turn, its sides drawn."""
    return ChatState(
        random.SystemRandom().sample(range(sides), sides),
        [{"role": "system", "content": system}] if system.strip() else [],
    )


def render(
    talk: ChatState, answers: Sequence[str] = (), note: str = "", words: str = ""
) -> list[object]:
    """What the page shows. Texts are escaped, as a Chatbot renders HTML even where it renders no
    markdown."""
    import gradio as gr

    sides = [[*talk.turns, {"role": "assistant", "content": text}] for text in answers] or [
        talk.turns
    ] * len(talk.order)
    boxes = [
        [
            {
                "role": turn["role"],
                "content": [{"type": "text", "text": html.escape(turn["content"])}],
            }  # a str loses its indents
            for turn in side
            if turn["role"] != "system"
        ]
        for side in sides
    ]
    return [*boxes, talk, note, words, *[gr.update(interactive=bool(talk.answers))] * len(VOTES)]


def ask(
    streams: Sequence[Stream], seed: int, words: str, system: str, talk: ChatState
) -> Iterator[list[object]]:
    """The page while the answers are written, and after."""
    talk = talk if talk.turns and len(streams) == 1 else new_state(len(streams), system)
    asked, parts = (
        talk._replace(turns=[*talk.turns, {"role": "user", "content": words}]),
        [("", "")] * len(streams),
    )
    try:
        for new in zip_longest(*(streams[i](asked.turns, seed) for i in talk.order)):
            parts = [part or last for part, last in zip(new, parts)]
            yield render(asked, answers := [text for text, _ in parts])
        if not "".join(answers).strip():
            raise ValueError("there was no answer")
    except ValueError as error:
        return (yield render(talk, (), f"error: {error}", words))
    note = " ".join(
        f"{side} was cut: {end or 'it broke off'}."
        for side, (_, end) in zip("AB", parts)
        if end != "stop"
    )
    if len(streams) > 1:
        yield render(asked._replace(answers=answers), answers, f"{note} Which answer is better?")
    else:
        yield render(
            asked._replace(turns=[*asked.turns, {"role": "assistant", "content": answers[0]}]),
            (),
            note,
        )


def vote(names: Sequence[str], votes: Path, which: str, talk: ChatState) -> list[object]:
    """Append a vote to `votes` as a pair; one for neither, or between answers that make no pair, to
    the file of the undecided."""
    if not talk.answers:  # a second click
        return render(talk)
    models, texts, better = [names[i] for i in talk.order], talk.answers, VOTES.index(which)
    row, path = (
        {"id": uuid.uuid4().hex, "prompt": talk.turns, "vote": which, "time": utc_now()},
        votes,
    )
    if better < 2 and texts[0] != texts[1] and all(text.strip() for text in texts):
        worse = 1 - better
        row |= {
            "chosen": texts[better],
            "rejected": texts[worse],
            "chosen_model": models[better],
            "rejected_model": models[worse],
        }
    else:
        row, path = (
            row | {"models": models, "answers": texts},
            votes.with_suffix(".undecided.jsonl"),
        )
    append_row(path, row)
    return render(
        talk._replace(answers=()),
        texts,
        f"A was {models[0]}. B was {models[1]}. Your vote is in {path}",
    )
