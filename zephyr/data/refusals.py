"""What is refused in a row, since it would be lost silently; the hints of errors; and texts that
only earn a warning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from zephyr.chat.messages import BINARIZE, is_stringified_turns, shown
from zephyr.chat.names import MASKS, is_mark, parse_label, plain
from zephyr.data.keys import PROMPT_KEYS, ROW_LEVEL_MASKS, UNSUPPORTED_KEYS
from zephyr.data.pair_shapes import SIDES
from zephyr.data.pairwise import PAIRWISE
from zephyr.data.rows import Row
from zephyr.data.sft_shapes import TEXTS, find_shape

SFT_SHAPES = (
    "`messages`, `prompt` and `completion`, `instruction` (`input`) and `output`, or `text`"
)
HELPSTEER = {"helpfulness", "correctness", "coherence"}  # scores of one answer
MIN_OVERLAP_CHARS = 20  # a shorter text may be inside of another by chance
TURN_LABELS = ("role", "from", "type", "name", "id", "tool_call_id")  # keys whose texts name a turn
TEMPLATE_MARKERS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|(?:user|assistant|prompter|system)\|>|\[/?INST\]|"
    r"<extra_id_1>|<start_of_turn>|^### (?:Instruction|Human|Assistant|Response):",
    re.MULTILINE,
)
HUMAN_MARKER = re.compile(r"(?:^|\s)(?:Human|User)\s*:")
ASSISTANT_MARKER = re.compile(r"(?:^|\s)Assistant\s*:")


def refuse_unread(row: Row, reads: set[str]) -> None:
    """Refuse keys that mean something to training and that the row's shape does not read.

    reads: the keys that its shape reads. Raises: ValueError naming the key and its value."""
    for key, expected in UNSUPPORTED_KEYS.items():
        if key in row and key not in reads and row[key] not in ("", [], {}, False):
            raise ValueError(
                f"`{key}` is {shown(row[key])}, which this shape of row has no place for, expected "
                f"{expected}; data.columns.{key}=null leaves it out"
            )
    for key, expected in ROW_LEVEL_MASKS.items():
        trained = (True, 1) if MASKS.get(key, True) else (False, 0)  # values that mask nothing
        if key in row and key not in reads and row[key] not in trained:
            raise ValueError(
                f"`{key}` is {shown(row[key])}, which a row as a whole has no place for, expected "
                f"{expected}; data.columns.{key}=null leaves it out"
            )
    for key, value in row.items():
        if key in reads or key in ROW_LEVEL_MASKS or not isinstance(key, str):
            continue
        if is_mark(key, value):
            raise ValueError(
                f"`{key}` is {shown(value)}, which may say whether the row is trained, expected "
                f"`train` at a turn; data.columns.{key}=null leaves it out"
            )
    if row.get("history") and "history" not in reads:
        raise ValueError(
            f"`history` is {shown(row['history'])}, which this shape of row has no place for; "
            "data.columns.history=null leaves it out"
        )


def refuse_bad_answer(row: Row, labelled: bool) -> None:
    """Refuse an SFT row whose answer is no model to imitate, or that has a weight.

    labelled: whether a label may be about the answer (in a row of plain text it is not).
    Raises: ValueError naming the key and its value."""
    for key, value in row.items() if labelled else ():
        if isinstance(key, str) and parse_label(key, value) is False:
            raise ValueError(
                f"`{key}` is {shown(value)}: an answer called bad (KTO), expected only good ones; "
                "data.on_bad_row=skip leaves such rows out, "
                f"data.columns.{key}=null trains them all the same"
            )
    if row.keys() >= HELPSTEER:
        raise ValueError(
            "the row holds an answer and its scores (`helpfulness`, ...), expected answers to "
            "imitate; choose those that are, or data.columns.helpfulness=null trains them all"
        )
    if row.get("weight", 1) != 1:
        raise ValueError(
            f"`weight` is {shown(row['weight'])}: rows of train_sft.py are not weighted, expected "
            "1; data.columns.weight=null leaves it out"
        )


def refuse_labelled_turn(turn: object, field: str, is_rejected: bool = False) -> None:
    """Refuse an answer's turn that is labelled as the opposite of what it is used as.

    Raises: ValueError naming the key and its value."""
    for key, value in turn.items() if isinstance(turn, Mapping) else ():
        if isinstance(key, str) and parse_label(key, value) is is_rejected:
            found, expected = ("good", "bad") if is_rejected else ("bad", "good")
            raise ValueError(
                f"`{key}` in a turn of `{field}` is {shown(value)}: an answer called {found}, "
                f"expected {expected} ones there; data.on_bad_row=skip leaves such rows out"
            )


def require_one_prompt(row: Row, reads: set[str], made: object) -> None:
    """Refuse a row with another field that asks something, unless its texts are part of what was
    made of the row.

    Raises: ValueError naming the field."""
    texts = [text.strip() for text in texts_in(made)]
    for key in PROMPT_KEYS:
        if key not in row or key in reads:
            continue
        value = row[key]
        is_choices = isinstance(value, list) and all(isinstance(text, str) for text in value)
        asked = [text.strip() for text in texts_in(_without_outputs(value))]
        if not all(_is_part(text, texts, as_word=is_choices) for text in asked if text):
            prompt_keys = ", ".join(sorted(reads & set(PROMPT_KEYS)))
            raise ValueError(
                f"`{key}` is {shown(value)}, and the prompt is read from {prompt_keys}: expected "
                f"one field that holds it all; data.columns.{key}=null leaves it out"
            )


def _is_part(text: str, texts: list[str], as_word: bool) -> bool:
    """Whether a text is one of the texts, or is inside of one: at least `MIN_OVERLAP_CHARS` long,
    or (one of some choices) as a word."""
    if text in texts:
        return True
    if as_word:
        word = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
        return any(word.search(other) for other in texts)
    return len(text) >= MIN_OVERLAP_CHARS and any(text in other for other in texts)


def _without_outputs(value: object) -> object:
    """The value; of turns of `input` and `output` only the inputs: argilla's capybara keeps there
    the answer that its pair replaced."""
    if not isinstance(value, list) or not value:
        return value
    return [
        turn["input"] if isinstance(turn, Mapping) and turn.keys() == {"input", "output"} else turn
        for turn in value
    ]


def texts_in(value: object) -> Iterator[str]:
    """All texts within a value, except those that only name a turn."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in TURN_LABELS:
                yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def shape_hint(row: Row, pairs: bool) -> str:
    """The end of the error about a row of no known shape: what may be done with it."""
    judged = any(fields <= row.keys() for name, fields in PAIRWISE.items() if name != "hh-rlhf")
    if judged or "completions" in row or row.keys() >= {"response_source", "gpt4_score"}:
        return f"which {BINARIZE} makes pairs of"
    if row.keys() >= HELPSTEER:
        return "an answer by itself and its scores; a pair needs two"
    words = {word for key in row if isinstance(key, str) for word in plain(key).split("_")}
    if pairs and words.isdisjoint(SIDES) and find_shape(row, TEXTS) is not None:
        return "which are those of a row for train_sft.py"
    if not pairs and row.keys() >= {"chosen", "rejected"}:
        return (
            "which are those of a pair for train_dpo.py; data.columns.messages=chosen trains only "
            "the chosen side"
        )
    expected, example = SFT_SHAPES, "prompt=FIELD"
    if pairs:
        expected, example = "`prompt`, `chosen` and `rejected`", "chosen=answers.0"
    return (
        f"expected {expected}, or a shape of the README; data.columns names other fields, as "
        f"data.columns.{example}"
    )


def suspicious_texts(values: Iterable[object]) -> set[str]:
    """Warnings about texts that seem to hold turns written as text, which may be intended."""
    found = set()
    for text in (text for value in values for text in texts_in(value)):
        if not text:
            continue
        if _is_transcript(text):
            found.add(
                "`Human:` (or `User:`) and `Assistant:` inside a turn: if it is a transcript, "
                "`zephyr binarize` parts it"
            )
        if TEMPLATE_MARKERS.search(text):
            found.add("marks of a chat template inside a turn, which are trained as text")
        if is_stringified_turns(text):
            found.add("a turn that is the JSON text of messages, which is trained as text")
    return found


def _is_transcript(text: str) -> bool:
    """Whether a person asks and the assistant answers within the text, or the text begins with the
    assistant's name."""
    if ASSISTANT_MARKER.match(text):
        return True
    asked = HUMAN_MARKER.search(text)
    return asked is not None and ASSISTANT_MARKER.search(text, asked.end()) is not None
