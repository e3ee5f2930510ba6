"""A person's turns go to a model, and its answer is shown while it is being written: in the
terminal here, in the browser in `web`."""

import argparse
import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from zephyr.chat import check_messages
from zephyr.config import BadInput
from zephyr.playground.models import Stream, append_row, open_model

HELP = '''A line that ends with \\ goes on in the next; lines between two lines of """ are one turn, whatever they hold.
/system TEXT  what the model is told first, from its next answer on    /regenerate  another answer to the last turn
/save FILE    add the conversation to a .jsonl that train_sft.py takes  /reset       forget all turns, not the system text
/help  /quit  (or ctrl-D); ctrl-C stops an answer'''


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
        from zephyr.playground.web import serve

        return serve(options)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input lines can be edited)
    stream = open_model(options.models[0], options)
    print(f"{options.models[0]}: /help tells the commands")
    chat_loop(stream, options.seed)


def chat_loop(stream: Stream, seed: int) -> None:
    """Turn after turn, until /quit or ctrl-D. A turn that gets no answer is taken back."""
    system, turns, tries = [], [], 0
    while True:
        try:
            turn, is_block = read_turn()
            name, _, rest = (
                turn.partition(" ") if turn.startswith("/") and not is_block else ("", "", "")
            )
            if name == "/quit":
                return None
            if name == "/help":
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
                if answer := print_stream(stream([*system, *asked], seed + tries)):
                    turns = [*asked, {"role": "assistant", "content": answer}]
        except EOFError:
            return print()
        except KeyboardInterrupt:
            print()
        except (ValueError, OSError) as error:
            print(f"error: {printable(str(error))}")


def read_turn() -> tuple[str, bool]:
    """What was typed, and whether it stood between two lines of three quotes. Raises: EOFError,
    KeyboardInterrupt."""
    lines = [input("> ")]
    if lines == ['"""']:
        return "\n".join(iter(lambda: input(". "), '"""')), True
    while lines[-1].endswith("\\"):
        lines[-1:] = [lines[-1][:-1], input(". ")]
    return "\n".join(lines), False


def print_stream(parts: Iterator[tuple[str, str]]) -> str:
    """Print an answer as it grows. Returns: what there is of it at its end or at ctrl-C; "" where
    that is no words."""
    shown, text, end, why = "", "", "", "stopped"
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.closing(parts),
        record_interrupts() as asked,
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
def record_interrupts() -> Iterator[list[int]]:
    """ctrl-C raises KeyboardInterrupt, as ever, and stands in the list: Python drops an exception
    that is raised within a `__del__`."""
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
