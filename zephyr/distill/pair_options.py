"""The options of `binarize` that say which answers and pairs are wanted, checked before any row is
read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from zephyr.config import BadInput
from zephyr.distill.rules import DELTA, HANDBOOK

Side = Literal["any", "chosen", "rejected"]
NO_COUNTS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class PairOptions:
    """Which answers and pairs are wanted.

    Attributes:
        strong, weak: rule `delta` only: models whose answers are chosen, and rejected.
        max_length_difference: pairs whose answers differ by more words are left out; with a
            tokenizer, by more tokens.
        tokenizer: path or hub id.
        take: source -> number of its pairs. A source is one of the command's, as it was given, or
            the `source` or `dataset` of rows.
        on_policy: models whose answers are the policy's own. Every pair has one of their answers,
            if `mix` does not say otherwise.
        on_policy_side: where that answer stands.
        mix: number of pairs with an answer of `on_policy` (`on`) and without (`off`).
        drop_prompts: files of prompts; rows with one of them are left out before any draw.
        test_rows: rule `handbook` only: how many rows go to a test file of their own.
    """

    strong: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    max_length_difference: int | None = None
    tokenizer: str | None = None
    take: Mapping[str, int] = field(default_factory=lambda: NO_COUNTS)
    on_policy: tuple[str, ...] = ()
    on_policy_side: Side = "any"
    mix: Mapping[str, int] = field(default_factory=lambda: NO_COUNTS)
    drop_prompts: tuple[str, ...] = ()
    test_rows: int | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of pairs that are made of each row: `on`, `off`, or only one, `pair`."""
        if not self.on_policy:
            return ("pair",)
        return tuple(kind for kind in ("on", "off") if self.mix.get(kind)) if self.mix else ("on",)

    @property
    def length_unit(self) -> str:
        return "words" if self.tokenizer is None else "tokens"


ALL_PAIRS = PairOptions()


def check_options(rule: str, options: PairOptions) -> None:
    """Raises: BadInput for options that contradict each other or the rule."""
    if rule == DELTA and not (options.strong and options.weak):
        raise BadInput(
            "binarize: rule delta: expected --strong MODEL and --weak MODEL, got "
            f"strong {list(options.strong)}, weak {list(options.weak)}"
        )
    if rule != DELTA and (options.strong or options.weak):
        raise BadInput(f"binarize: --strong and --weak belong to rule delta, the rule is {rule}")
    both = set(options.strong) & set(options.weak)
    if both:
        raise BadInput(
            f"binarize: {', '.join(sorted(both))} is both --strong and --weak, expected two models"
        )
    if options.max_length_difference is not None and options.max_length_difference < 0:
        raise BadInput(
            "binarize: --max-length-difference: expected an integer >= 0, got "
            f"{options.max_length_difference}"
        )
    if options.tokenizer and options.max_length_difference is None:
        raise BadInput("binarize: --tokenizer counts for --max-length-difference, which is missing")
    if not options.on_policy and (options.mix or options.on_policy_side != "any"):
        raise BadInput(
            "binarize: --mix and --on-policy-side: expected --on-policy MODEL, the policy's name "
            "in the rows"
        )
    if options.test_rows is not None:
        check_test_rows(rule, options)
    if options.mix and options.take:
        raise BadInput(
            "binarize: --take and --mix both fix how many pairs are written, expected one of them; "
            "run binarize once for each source, and name the files in data.train"
        )


def check_test_rows(rule: str, options: PairOptions) -> None:
    """Raises: BadInput for test rows where the split of the handbook's script can't be made."""
    if rule != HANDBOOK:
        raise BadInput(
            f"binarize: --test-rows splits as the script of rule {HANDBOOK} does, the rule is "
            f"{rule}; for other rules split with --take, or hold rows out beforehand"
        )
    if options.test_rows is not None and options.test_rows < 1:
        raise BadInput(f"binarize: --test-rows: expected an integer >= 1, got {options.test_rows}")
    if options.take or options.on_policy:
        raise BadInput(
            "binarize: --test-rows repeats a script that has no --take and no --on-policy; give "
            "one or the other"
        )


def read_take(texts: Sequence[str]) -> dict[str, int]:
    """`SOURCE=N` of each text. Raises: BadInput."""
    counts: dict[str, int] = {}
    for text in texts:
        source, _, number = text.rpartition("=")
        if not source or not re.fullmatch("[0-9]{1,15}", number) or int(number) < 1:
            raise BadInput(f"binarize: --take {text!r}: expected SOURCE=N with N >= 1")
        if source in counts:
            raise BadInput(f"binarize: --take {source!r} is given twice, expected one number")
        counts[source] = int(number)
    return counts


def read_mix(text: str | None) -> dict[str, int]:
    """`on=N,off=M` by kind; one of them may be missing. Raises: BadInput."""
    if text is None:
        return {}
    found = [re.fullmatch("(on|off)=([0-9]{1,15})", part.strip()) for part in text.split(",")]
    counts = {match[1]: int(match[2]) for match in found if match}
    if len(counts) < len(found) or not any(counts.values()):
        raise BadInput(
            f"binarize: --mix {text!r}: expected on=N,off=M, numbers of pairs with and without an "
            "answer of the policy, at least one of them > 0"
        )
    return counts
