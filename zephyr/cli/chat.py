"""A person's turns go to a model, and its answer is shown while it is being written: in the terminal here, in the browser in `web`."""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from zephyr.chat import Messages, check_messages
from zephyr.config import BadInput, masked

HELP = '''A line that ends with \\ goes on in the next; lines between two lines of """ are one turn, whatever they hold.
/system TEXT  what the model is told first, from its next answer on    /regenerate  another answer to the last turn
/save FILE    add the conversation to a .jsonl that train_sft.py takes  /reset       forget all turns, not the system text
/help  /quit  (or ctrl-D); ctrl-C stops an answer'''
# Of a conversation and a seed: the answer as far as it is written, and "" or why it ends. Raises ValueError where there can be none.
Stream = Callable[[Messages, int], Iterator[tuple[str, str]]]


def run_chat(options: argparse.Namespace) -> None:
    if (
        options.max_new_tokens < 1
        or options.top_k < 0
        or not options.temperature >= 0
        or not 0 < options.top_p <= 1
    ):
        raise BadInput(
            f"--max-new-tokens {options.max_new_tokens} --top-k {options.top_k} --temperature {options.temperature} --top-p "
            f"{options.top_p}: at least 1, 0 and 0, and 0 < P <= 1 are wanted"
        )
    if len(options.models) > 1 + options.web:
        raise BadInput(f"chat: {len(options.models)} models; one is wanted, or with --web two")
    options.temperature *= not options.greedy
    if options.web:
        from zephyr.cli.web import serve

        return serve(options)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input lines can be edited)
    stream = open_model(options.models[0], options)
    print(f"{options.models[0]}: /help tells the commands")
    converse(stream, options.seed)


def open_model(spec: str, options: argparse.Namespace) -> Stream:
    """What answers in the name of a spec. Raises: BadInput for a spec of another form, or what is not there."""
    found = re.fullmatch(r"openai:(.+)@(https?://.+)|(?:hf:)?((?!\w+:).+)", spec)
    if not found:
        raise BadInput(
            f"model {spec!r}: a model folder, hf:PATH or openai:MODEL@BASE_URL is wanted"
        )
    return of_folder(found[3], options) if found[3] else of_endpoint(found[1], found[2], options)


def of_folder(path: str, options: argparse.Namespace) -> Stream:
    """A model on this machine; what it says is what `model.generate` makes of the same conversation, settings and seed."""
    import torch

    from zephyr.data.teachers import load_chat
    from zephyr.model.generate import prompt_ids, sampler

    lm, tokenizer = load_chat(path)
    lm.eval()

    def stream(turns: Messages, seed: int) -> Iterator[tuple[str, str]]:
        new, said, cache, end = prompt_ids(lm, tokenizer, turns, 1), [], None, ""
        limit = min(options.max_new_tokens, lm.config.max_position_embeddings - len(new))
        warps = sampler([new], [seed], options.temperature, options.top_p, options.top_k, lm.device)
        while not end:
            new_1L = torch.tensor([new], device=lm.device)
            with torch.no_grad():
                output = lm(new_1L, past_key_values=cache, use_cache=True, logits_to_keep=1)
            scores_1V, cache = output.logits[:, -1].float(), output.past_key_values
            for warp in warps:
                scores_1V = warp(new_1L, scores_1V)
            new = [int(scores_1V.argmax())]
            said += new
            end = (
                "stop"
                if new == [tokenizer.eos_token_id]
                else "length"
                if len(said) == limit
                else ""
            )
            text = tokenizer.decode(said, skip_special_tokens=True)
            yield (
                text if end else text.rstrip("\ufffd"),
                end,
            )  # a character's last byte may be yet to come

    return stream


def of_endpoint(model: str, url: str, options: argparse.Namespace) -> Stream:
    """A model behind an OpenAI-compatible server, which renders the conversation by its own template."""
    from zephyr.teacher.endpoint import LARGEST_REPLY, endpoint, hidden, refuse_redirect

    endpoint(
        model, url, key_variable=options.key_variable
    )  # refuses a bad URL or key, and a missing package
    import openai

    key = os.environ.get(options.key_variable, "")
    guarded = openai.DefaultHttpxClient(
        follow_redirects=False, event_hooks={"response": [refuse_redirect]}
    )
    library = sys.modules[
        type(guarded).__mro__[1].__module__
    ]  # httpx, or httpx2 for a newer openai
    client = openai.OpenAI(api_key=key or "none", base_url=url, http_client=guarded)

    def stream(turns: Messages, seed: int) -> Iterator[tuple[str, str]]:
        asked, text = check_messages(turns, last="user"), ""
        try:
            with client.chat.completions.create(
                model=model,
                messages=asked,
                max_tokens=options.max_new_tokens,
                stream=True,
                seed=seed,
                temperature=options.temperature,
                top_p=options.top_p,
            ) as chunks:
                for choice in (choice for chunk in chunks for choice in chunk.choices[:1]):
                    text += choice.delta.content or ""
                    if len(text) > LARGEST_REPLY:
                        raise BadInput(f"its answer is over {LARGEST_REPLY} characters")
                    yield text, choice.finish_reason or ""
        except (openai.OpenAIError, library.HTTPError, BadInput) as error:
            cause = error.__cause__ if isinstance(error.__cause__, BadInput) else error
            raise ValueError(hidden(masked(f"{model} at {url}: {cause}"), key)) from None

    return stream


def converse(stream: Stream, seed: int) -> None:
    """Turn after turn, until /quit or ctrl-D. A turn that gets no answer is taken back."""
    system, turns, tries = [], [], 0
    while True:
        try:
            turn, is_block = read_turn()
            name, _, rest = (
                turn.partition(" ") if turn.startswith("/") and not is_block else ("", "", "")
            )
            if name == "/quit":
                return
            elif name == "/help":
                print(HELP)
            elif name == "/system":
                system = [{"role": "system", "content": rest}] if rest.strip() else []
            elif name == "/reset":
                turns = []
            elif name == "/save":
                append_row(
                    Path(rest.strip()),
                    {"messages": check_messages([*system, *turns], last="assistant")},
                )
            elif name and not (name == "/regenerate" and turns):
                print(f"{name}: no command for now; /help tells them")
            elif turn.strip():
                asked, tries = (
                    (turns[:-1], tries + 1)
                    if name
                    else ([*turns, {"role": "user", "content": turn}], 0)
                )
                if answer := say(stream([*system, *asked], seed + tries)):
                    turns = [*asked, {"role": "assistant", "content": answer}]
        except EOFError:
            return print()
        except KeyboardInterrupt:
            print()
        except (ValueError, OSError) as error:
            print(f"error: {printable(str(error))}")


def read_turn() -> tuple[str, bool]:
    """What was typed, and whether it stood between two lines of three quotes. Raises: EOFError, KeyboardInterrupt."""
    lines = [input("> ")]
    if lines == ['"""']:
        return "\n".join(iter(lambda: input(". "), '"""')), True
    while lines[-1].endswith("\\"):
        lines[-1:] = [lines[-1][:-1], input(". ")]
    return "\n".join(lines), False


def say(parts: Iterator[tuple[str, str]]) -> str:
    """Print an answer as it grows. Returns: what there is of it at its end or at ctrl-C; "" where that is no words."""
    shown, text, end, why = "", "", "", "stopped"
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.closing(parts),
        noticing_ctrl_c() as asked,
    ):
        for text, end in parts:
            if asked:
                raise KeyboardInterrupt
            if text.startswith(shown):
                print(printable(text[len(shown) :]), end="", flush=True)
                shown = text
        why = end or "it broke off"
    print("" if shown == text else f"\n{printable(text)}")
    if why != "stop" or not text.strip():
        print(
            f"[not the answer's own end: {why}]"
            if text.strip()
            else "[no answer: it is as if nothing was asked]"
        )
    return text if text.strip() else ""


@contextlib.contextmanager
def noticing_ctrl_c() -> Iterator[list[int]]:
    """ctrl-C raises KeyboardInterrupt, as ever, and stands in the list: Python drops an exception that is raised within a `__del__`."""
    asked: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """Control characters spelled out: what a model writes moves no cursor and sets no title."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """One line more of a .jsonl file, which is made where it is missing. Raises: OSError."""
    from zephyr.data.jsonl import json_line

    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("ab") as file:
        file.write(b"\n" * cut_off + json_line(row))
