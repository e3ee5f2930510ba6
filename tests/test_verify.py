"""Preflight finds what it is for: each fault planted, one at a time."""
import pytest

from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import BadInput
from zephyr.verify import require_ids

BOS, EOS = 1, 2
GOOD = EncodedPair("p", [BOS, 5, EOS, 6], [7, EOS], [8, EOS])
FAULTS = [
    (GOOD._replace(prompt_ids=[5, 6]), "starts with id 5, not BOS 1"),
    (GOOD._replace(prompt_ids=[BOS, BOS, 6]), "has BOS more than once"),
    (GOOD._replace(chosen_ids=[BOS, 7, EOS]), "has BOS more than once"),
    (GOOD._replace(rejected_ids=[8, 9]), "has an answer without EOS that was not cut"),
    (GOOD._replace(rejected_ids=[7, EOS]), "has two equal answers"),
    (EncodedText("t", [BOS, 5, EOS], [False, True, False]), "trains no EOS"),
    (EncodedText("t", [5, EOS], [False, True]), "starts with id 5"),
]


@pytest.mark.parametrize("example,complaint", FAULTS, ids=[complaint for _, complaint in FAULTS])
def test_a_fault_is_named(example: EncodedPair | EncodedText, complaint: str) -> None:
    """Fails where the fault passes, or is told without the example's id."""
    with pytest.raises(BadInput, match=rf"example 3 \({example.id}\) {complaint}"):
        require_ids(3, example, (BOS, EOS), max_tokens=20)


def test_good_examples_pass() -> None:
    """A cut answer has no EOS, and some tokenizers no BOS. Fails where preflight cries wolf."""
    require_ids(0, GOOD, (BOS, EOS), 20)
    require_ids(0, GOOD._replace(chosen_ids=[7] * 16), (BOS, EOS), 20)
    require_ids(0, GOOD._replace(prompt_ids=[5, 6]), (None, EOS), 20)
    require_ids(0, EncodedText("t", [BOS, 5, EOS], [False, True, True]), (BOS, EOS), 20)
    require_ids(0, EncodedText("t", [BOS, 5, 6], [False, True, True]), (BOS, EOS), 3)
