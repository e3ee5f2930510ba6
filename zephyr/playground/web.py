"""A page in the browser: a person talks to one model, or compares two without their names; each
vote between two answers becomes a pair."""

import html
import os
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zephyr.chat.messages import Messages
from zephyr.config import BadInput
from zephyr.playground.models import Sampling, Stream, append_row, open_model
from zephyr.teacher.request import utc_now

if TYPE_CHECKING:
    from gradio import Blocks, Chatbot

LOOPBACK = ["127.0.0.1", "localhost"]
VOTES = ["A is better", "B is better", "tie", "both bad"]
# The page fetches nothing from elsewhere. It hides buttons that would empty a box but not the
# conversation. Lines keep their indentation.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
HEAD = f"""<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>.icon-button-wrapper {{display: none !important}}
.message span {{white-space: pre-wrap !important}}</style>"""


class ChatState(NamedTuple):
    """A conversation: which model is A and which B, its turns, and the answers that wait for a
    vote."""

    order: Sequence[int]
    turns: Messages
    answers: Sequence[str] = ()


def serve(
    models: Sequence[str],
    sampling: Sampling,
    *,
    seed: int,
    key_variable: str,
    votes: Path,
    host: str,
    port: int,
    share_on_network: bool,
) -> None:
    """Serve the page until ctrl-C.

    Raises: BadInput for a host that others can reach, unless `share_on_network` is set and
    ZEPHYR_WEB_TOKEN holds a token; for a port in use; for a bad spec."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise BadInput("chat --web: gradio is missing: pip install 'zephyr[web]'") from None
    token = os.environ.get("ZEPHYR_WEB_TOKEN", "")
    is_local = host in LOOPBACK
    if not is_local and not (share_on_network and len(token) >= 12):
        raise BadInput(
            f"--host {host}: others can reach it, which requires --share-on-network and a token of "
            "12 characters or more in ZEPHYR_WEB_TOKEN; only this machine reaches "
            f"{' and '.join(LOOPBACK)}"
        )
    streams = [open_model(spec, sampling, key_variable) for spec in models]
    page = build(models, streams, votes, seed)
    # No other site's name may lead here.
    own_names = Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK if is_local else ["*"])
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=1,
            auth=None if is_local else ("zephyr", token),
            theme=gradio.themes.Base(font=["sans-serif"], font_mono=["monospace"]),
            head=HEAD,
            app_kwargs={"middleware": [own_names]},
        )
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error}") from None
    print(url, flush=True)
    page.block_thread()


def build(names: Sequence[str], streams: Sequence[Stream], votes: Path, seed: int) -> "Blocks":
    """The page. With two models every question is a conversation of its own, because both must
    answer the same turns."""
    import gradio as gr

    page: Blocks
    with gr.Blocks(title="zephyr chat", analytics_enabled=False, fill_width=True) as page:
        state = gr.State(new_state(len(names)))
        labels = "AB" if len(names) > 1 else names
        with gr.Row():
            boxes = [answer_box(label) for label in labels]
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
        outputs = [*boxes, state, note, words, *buttons]
        silent: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asking = words.submit(
            partial(ask, streams, seed), [words, system, state], outputs, **silent
        )
        for button in buttons:
            button.click(partial(vote, names, votes), [button, state], outputs, **silent)
        new.click(lambda: render(new_state(len(names))), None, outputs, cancels=[asking], **silent)
    return page


def answer_box(label: str) -> "Chatbot":
    """Where the turns of one side are shown, as plain text."""
    import gradio as gr

    return gr.Chatbot(
        label=label,
        height="45vh",
        render_markdown=False,
        latex_delimiters=[],
        buttons=[],
        feedback_options=None,
    )


def new_state(sides: int, system: str = "") -> ChatState:
    """A conversation before its first turn, with its sides drawn."""
    order = random.SystemRandom().sample(range(sides), sides)
    return ChatState(order, [{"role": "system", "content": system}] if system.strip() else [])


def render(
    talk: ChatState, answers: Sequence[str] = (), note: str = "", words: str = ""
) -> list[object]:
    """The values of the page's outputs: one box per side, state, note, words, and the buttons."""
    import gradio as gr

    sides: list[Messages] = [talk.turns for _ in talk.order]
    if answers:
        sides = [[*talk.turns, {"role": "assistant", "content": text}] for text in answers]
    boxes = [[box_turn(turn) for turn in side if turn["role"] != "system"] for side in sides]
    buttons = [gr.update(interactive=bool(talk.answers))] * len(VOTES)
    return [*boxes, talk, note, words, *buttons]


def box_turn(turn: Mapping[str, object]) -> dict[str, object]:
    """A turn as a Chatbot takes it: escaped, because it renders HTML even without markdown, and in
    a list, because a str loses its indents."""
    text = html.escape(str(turn["content"]))
    return {"role": turn["role"], "content": [{"type": "text", "text": text}]}


def ask(
    streams: Sequence[Stream], seed: int, words: str, system: str, talk: ChatState
) -> Iterator[list[object]]:
    """The page while the answers are written, and after."""
    if not talk.turns or len(streams) > 1:
        talk = new_state(len(streams), system)
    turns: Messages = [*talk.turns, {"role": "user", "content": words}]
    parts = [("", "")] * len(streams)
    answers = [""] * len(streams)
    try:
        for new in zip_longest(*(streams[i](turns, seed) for i in talk.order)):
            parts = [part or last for part, last in zip(new, parts)]
            answers = [text for text, _ in parts]
            yield render(talk._replace(turns=turns), answers)
        if not "".join(answers).strip():
            raise ValueError("there was no answer")
    except ValueError as error:
        yield render(talk, (), f"error: {error}", words)
        return
    note = " ".join(
        f"{side} was cut: {end or 'it broke off'}."
        for side, (_, end) in zip("AB", parts)
        if end != "stop"
    )
    if len(streams) > 1:
        asked = talk._replace(turns=turns, answers=answers)
        yield render(asked, answers, f"{note} Which answer is better?")
    else:
        turns = [*turns, {"role": "assistant", "content": answers[0]}]
        yield render(talk._replace(turns=turns), (), note)


def vote(names: Sequence[str], votes: Path, which: str, talk: ChatState) -> list[object]:
    """Append a vote to `votes` as a pair. A vote for neither, or between answers that make no pair,
    goes to the file of the undecided."""
    if not talk.answers:  # a second click
        return render(talk)
    models = [names[i] for i in talk.order]
    texts = talk.answers
    better = VOTES.index(which)
    row: dict[str, object] = {
        "id": uuid.uuid4().hex,
        "prompt": talk.turns,
        "vote": which,
        "time": utc_now(),
    }
    path = votes
    if better < 2 and texts[0] != texts[1] and all(text.strip() for text in texts):
        worse = 1 - better
        row["chosen"], row["rejected"] = texts[better], texts[worse]
        row["chosen_model"], row["rejected_model"] = models[better], models[worse]
    else:
        row["models"], row["answers"] = models, texts
        path = votes.with_suffix(".undecided.jsonl")
    append_row(path, row)
    note = f"A was {models[0]}. B was {models[1]}. Your vote is in {path}"
    return render(talk._replace(answers=()), texts, note)
