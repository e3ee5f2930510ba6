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
from zephyr.playground.examples import GENERAL, example_prompts
from zephyr.playground.models import Sampling, Stream, append_row, open_model
from zephyr.teacher.request import utc_now

if TYPE_CHECKING:
    from gradio import Blocks, Chatbot, Textbox

LOOPBACK = ["127.0.0.1", "localhost"]
VOTES = ["A is better", "B is better", "tie", "both bad"]
TITLE = "zephyr chat"
# The page fetches nothing from elsewhere. It hides buttons that would empty a box but not the
# conversation. Lines keep their indentation. Examples share a line where there is room.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
HEAD = f"""<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>.icon-button-wrapper {{display: none !important}}
.message span {{white-space: pre-wrap !important}}
#about h1 {{margin: 0 0 .3em; font-size: 1.5em}}
#about p {{margin: 0 0 .3em; max-width: 75em; line-height: 1.45}}
#about code {{overflow-wrap: anywhere}}
.examples {{display: flex !important; flex-wrap: wrap !important; gap: .5em !important}}
.examples .example {{flex: 0 1 auto !important; width: auto !important; white-space: normal}}
</style>"""
FOCUS = "() => document.querySelector('#words textarea').focus()"


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
    prompts: str | None,
    host: str,
    port: int,
    share_on_network: bool,
) -> None:
    """Serve the page until ctrl-C.

    Args: prompts: a source of examples (see `example_prompts`).
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
    examples = example_prompts(models, prompts) or GENERAL
    page = build(models, streams, votes, seed, examples)
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


def build(
    names: Sequence[str],
    streams: Sequence[Stream],
    votes: Path,
    seed: int,
    examples: Sequence[str],
) -> "Blocks":
    """The page. With two models every question is a conversation of its own, because both must
    answer the same turns."""
    import gradio as gr

    page: Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(about(names, votes), elem_id="about")
        state = gr.State(new_state(len(names)))
        labels = "AB" if len(names) > 1 else names
        with gr.Row():
            boxes = [answer_box(label) for label in labels]
        with gr.Row(visible=len(names) > 1):
            buttons = [gr.Button(text, interactive=False) for text in VOTES]
        note = gr.Textbox(show_label=False, interactive=False, container=False, elem_id="note")
        words = gr.Textbox(
            label="Your turn (enter: send; shift-enter: a new line), or an example from below",
            max_lines=20,
            submit_btn=True,
            elem_id="words",
        )
        add_examples(examples, words)
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


def about(names: Sequence[str], votes: Path) -> str:
    """HTML that says what the page is. It does not name two models: their names are hidden."""
    if len(names) == 1:
        what = (
            f"You talk to <code>{html.escape(names[0])}</code>. It sees all turns of the "
            "conversation. Nothing is kept: a new conversation forgets them."
        )
        return f"<h1>{TITLE}</h1><p>{what}</p>"
    pairs, undecided = (html.escape(str(path)) for path in (votes, undecided_file(votes)))
    what = (
        "Two models answer each question, side by side. Their names stay hidden until you vote, "
        "and sides are drawn anew for each question. Each question is a conversation of its own."
    )
    vote_for_one = (
        f"<b>A is better</b> and <b>B is better</b> add a preference pair to <code>{pairs}</code>, "
        "which train_dpo.py reads."
    )
    vote_for_none = (
        "<b>tie</b> and <b>both bad</b> make no pair, and neither does a vote between equal or "
        f"empty answers: with both answers and names it goes to <code>{undecided}</code>, from "
        "which nothing is trained."
    )
    return f"<h1>{TITLE}</h1><p>{what}</p><p>{vote_for_one} {vote_for_none}</p>"


def add_examples(examples: Sequence[str], words: "Textbox") -> None:
    """A button for each example prompt, which writes it into the box `words`."""
    import gradio as gr

    silent: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Row(elem_classes="examples"):
        for prompt in examples:
            button = gr.Button(prompt, size="sm", min_width=0, elem_classes="example")
            filled = button.click(lambda text: text, button, words, queue=False, **silent)
            filled.then(None, None, None, js=FOCUS, **silent)


def answer_box(label: str) -> "Chatbot":
    """Where the turns of one side are shown, as plain text."""
    import gradio as gr

    return gr.Chatbot(
        label=label,
        height="40vh",
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
        path = undecided_file(votes)
    append_row(path, row)
    note = f"A was {models[0]}. B was {models[1]}. Your vote is in {path}"
    if path != votes:
        note += ": it makes no pair"
    return render(talk._replace(answers=()), texts, note)


def undecided_file(votes: Path) -> Path:
    """Where votes that make no pair go: beside those that do."""
    return votes.with_suffix(".undecided.jsonl")
