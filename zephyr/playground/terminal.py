"""A person talks to a model in the terminal, which shows an answer while it is being written."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from zephyr.chat.messages import Messages, check_messages
from zephyr.playground.examples import example_prompts
from zephyr.playground.models import Answer, Sampling, Stream, append_row, open_model

HELP = '''A line that ends with \\ continues in the next.
Lines between two lines of """ are one turn.
/system TEXT  set the system text, from the next answer on
/regenerate   another answer to the last turn
/reset        forget all turns, but not the system text
/save FILE    add the conversation to a .jsonl file that train_sft.py reads
/help  /quit  (or ctrl-D); ctrl-C stops an answer'''


def talk(
    spec: str, sampling: Sampling, *, seed: int, key_variable: str, prompts: str | None = None
) -> None:
    """Talk to the model of a spec until /quit or ctrl-D.

    Args: prompts: a source of examples (see `example_prompts`).
    Raises: BadInput for a bad spec or source.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input lines can be edited)
    stream = open_model(spec, sampling, key_variable)
    examples = example_prompts([spec], prompts)
    print(f"{spec}: /help lists the commands")
    for prompt in examples:
        print(f"for example: {printable(prompt)}")
    chat_loop(stream, seed)


def chat_loop(stream: Stream, seed: int) -> None:
    """Turn after turn, until /quit or ctrl-D. A turn that gets no answer is taken back."""
    chat = Conversation(stream, seed)
    going = True
    while going:
        try:
            turn, is_block = read_turn()
            if turn.startswith("/") and not is_block:
                name, _, rest = turn.partition(" ")
                going = run_command(chat, name, rest)
            elif turn.strip():
                chat.ask(turn)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except (ValueError, OSError) as error:
            print(f"error: {printable(str(error))}")


def run_command(chat: "Conversation", name: str, rest: str) -> bool:
    """Run a command with what follows its name. Returns: False to end."""
    if name == "/help":
        print(HELP)
    elif name == "/system":
        chat.system = [{"role": "system", "content": rest}] if rest.strip() else []
    elif name == "/reset":
        chat.turns = []
    elif name == "/save":
        messages = check_messages([*chat.system, *chat.turns], last="assistant")
        append_row(Path(rest.strip()), {"messages": messages})
    elif name == "/regenerate" and chat.turns:
        chat.regenerate()
    elif name == "/regenerate":
        print("/regenerate: there is no turn yet")
    elif name != "/quit":
        print(f"{name}: no such command; /help lists the commands")
    return name != "/quit"


class Conversation:
    """The turns so far, and the system text before them."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        self.system: Messages = []
        self.turns: Messages = []
        self.tries = 0  # answers to the last turn that were thrown away

    def ask(self, text: str) -> None:
        self.tries = 0
        self.answer([*self.turns, {"role": "user", "content": text}])

    def regenerate(self) -> None:
        """Another answer to the last turn, of the next seed."""
        self.tries += 1
        self.answer(self.turns[:-1])

    def answer(self, turns: Messages) -> None:
        text = print_stream(self.stream([*self.system, *turns], self.seed + self.tries))
        if text:
            self.turns = [*turns, {"role": "assistant", "content": text}]


def read_turn() -> tuple[str, bool]:
    """What was typed, and whether it is a block between two lines of three quotes.

    Raises: EOFError, KeyboardInterrupt."""
    lines = [input("> ")]
    if lines == ['"""']:
        return "\n".join(iter(lambda: input(". "), '"""')), True
    while lines[-1].endswith("\\"):
        lines[-1:] = [lines[-1][:-1], input(". ")]
    return "\n".join(lines), False


def print_stream(parts: Answer) -> str:
    """Print an answer as it grows. Returns: its text at the end or at ctrl-C; "" if it has no
    words."""
    shown, text, end, why = "", "", "", "stopped"
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.closing(parts),
        record_interrupts() as interrupts,
    ):
        for text, end in parts:  # noqa: B007  (`end` is read after the loop)
            if interrupts:
                raise KeyboardInterrupt
            if text.startswith(shown):
                print(printable(text[len(shown) :]), end="", flush=True)
                shown = text
        why = end or "it broke off"
    print("" if shown == text else f"\n{printable(text)}")
    if not text.strip():
        print("[no answer: the turn is taken back]")
        return ""
    if why != "stop":
        print(f"[the answer was cut: {why}]")
    return text


@contextlib.contextmanager
def record_interrupts() -> Iterator[list[int]]:
    """A list that gets an entry at each ctrl-C, which also raises KeyboardInterrupt. The list is
    needed because Python drops an exception that is raised within a `__del__`."""
    interrupts: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """Escape control characters, so that a model's text moves no cursor and sets no title."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
