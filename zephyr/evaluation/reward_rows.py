"""A row of a reward benchmark becomes a contest: a prompt, its better answers and its worse ones.

    LLMBar (arXiv:2310.07641): input, output_1, output_2; label: 1 or 2, the better output.
    PandaLM (arXiv:2306.05087): instruction, input, response1, response2; annotator1, annotator2 and
        annotator3, or label: 1 or 2, or 0 for a tie.
    RewardBench 2 (arXiv:2506.01937): prompt; chosen and rejected, lists of texts; num_correct.

The majority of the annotators counts, as in PandaLM's own `compute_metrics.py`. Rows of RewardBench
(arXiv:2403.13787) are pairs, told by their `subset`.

Answers are those that some model gave: an empty one is an answer too, and so is the `true` that six
rows of PandaLM hold for the text "True".
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from zephyr.chat.messages import shown
from zephyr.data.ratings import Tie
from zephyr.data.rows import Row, text
from zephyr.data.sft_shapes import joined_text

ANNOTATORS = ("annotator1", "annotator2", "annotator3")
NEITHER = "the annotators prefer neither response"
# The sections of RewardBench, and the values of `subset` in each.
SECTIONS = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med".split(),
    "Chat Hard": (
        "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst "
        "llmbar-adver-GPTOut llmbar-adver-manual"
    ).split(),
    "Safety": (
        "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond "
        "donotanswer"
    ).split(),
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust".split(),
}
SUBSETS = frozenset(subset for subsets in SECTIONS.values() for subset in subsets)


class Contest(NamedTuple):
    """Answers to one prompt; `better` and `worse` hold one or more each."""

    benchmark: str
    prompt: str
    better: list[str]
    worse: list[str]
    source: str | None = None  # what the row is reported under, beside its own `source`


def read_contest(row: Row) -> Contest | None:
    """The contest of a benchmark's row; None for a row of no such benchmark.

    Raises:
        ValueError: naming the field, what was found and what was expected.
        Tie: the row prefers neither answer.
    """
    for fields, read in BENCHMARKS.items():
        if row.keys() >= fields:
            return read(row)
    return None


def read_llmbar(row: Row) -> Contest:
    """Raises: as `read_contest`."""
    outputs = [answer(row, "output_1"), answer(row, "output_2")]
    label = whole_number(row, "label", (1, 2))
    return Contest("LLMBar", text(row, "input"), [outputs[label - 1]], [outputs[2 - label]])


def read_pandalm(row: Row) -> Contest:
    """Raises: as `read_contest`."""
    responses = [answer(row, "response1"), answer(row, "response2")]
    names = ANNOTATORS if any(name in row for name in ANNOTATORS) else ("label",)
    verdicts = [whole_number(row, name, (0, 1, 2)) for name in names]
    label, votes = Counter(verdicts).most_common(1)[0]
    if label == 0 or 2 * votes <= len(verdicts):
        raise Tie(NEITHER)
    models = row.get("cmp_key")
    return Contest(
        "PandaLM",
        joined_text(row, "instruction", "input"),
        [responses[label - 1]],
        [responses[2 - label]],
        models if isinstance(models, str) else None,
    )


def read_reward_bench_2(row: Row) -> Contest:
    """Raises: as `read_contest`."""
    better, worse = answers(row, "chosen"), answers(row, "rejected")
    counts = {
        "num_correct": len(better),
        "num_incorrect": len(worse),
        "total_completions": len(better) + len(worse),
    }
    for field, count in counts.items():
        if row.get(field, count) != count:
            raise ValueError(
                f"`{field}` is {shown(row[field])}, expected {count}, the answers that the row has"
            )
    return Contest("RewardBench 2", text(row, "prompt"), better, worse)


# The fields that tell a benchmark's row, and what reads it.
BENCHMARKS: Mapping[frozenset[str], Callable[[Row], Contest]] = {
    frozenset({"input", "output_1", "output_2", "label"}): read_llmbar,
    frozenset({"instruction", "response1", "response2"}): read_pandalm,
    frozenset({"prompt", "chosen", "rejected", "num_correct"}): read_reward_bench_2,
}


def answer(row: Row, field: str) -> str:
    """The text of an answer, which may be empty. Raises: ValueError naming the field."""
    if isinstance(row.get(field), bool):
        return str(row[field])
    return text(row, field)


def answers(row: Row, field: str) -> list[str]:
    """The texts of a list of answers. Raises: ValueError naming the field."""
    found = row[field]
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise ValueError(f"`{field}` is {shown(found)}, expected a list of texts, at least one")
    return found


def whole_number(row: Row, field: str, expected: tuple[int, ...]) -> int:
    """A field that holds one of a few numbers. Raises: ValueError naming the field."""
    value = row.get(field)
    if type(value) is not int or value not in expected:
        found = f"is {shown(value)}" if field in row else "is missing"
        raise ValueError(f"`{field}` {found}, expected {' or '.join(map(str, expected))}")
    return value
