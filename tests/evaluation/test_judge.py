"""The rule-based judge."""

import pytest

from zephyr.config import BadInput
from zephyr.world.answerers import ANSWERERS, answer
from zephyr.world.facts import World, build_world
from zephyr.world.prompts import SHARES, draw_prompts
from zephyr.world.rules import ASPECTS, judge

FACTS = World(
    values={
        "home": ["forest", "sea"],
        "colour": ["green", "blue"],
        "food": ["seeds", "roots"],
        "size": ["tiny", "huge"],
    },
    causes={"colour": "home", "size": "food"},
    creatures={
        "moli": {"home": "forest", "colour": "green", "food": "roots", "size": "huge"},
        "zoti": {"home": "sea", "colour": "blue", "food": "seeds", "size": "tiny"},
    },
)
ONE_WORD = {"subject": "moli", "asked": ["colour"], "form": "one_word"}
REASON = ONE_WORD | {"form": "reason"}
CHEERFUL = ONE_WORD | {"form": "cheerful"}
DESCRIPTION = {"subject": "moli", "asked": ["colour", "size"], "form": "description"}
PRIVATE = {"subject": "moli", "asked": [], "form": "private"}
TRUE_REASON = "A moli is green, because it lives in the forest."


def points(prompt: dict[str, object], text: str) -> tuple[int, ...]:
    return tuple(judge(prompt, text, FACTS).scores[aspect] for aspect in ASPECTS)


@pytest.mark.parametrize(
    ("prompt", "text", "wanted"),
    [
        (ONE_WORD, "Green.", (5, 5, 5, 5)),
        (ONE_WORD, TRUE_REASON, (3, 5, 5, 4)),
        (ONE_WORD, "Blue.", (1, 1, 1, 1)),
        (REASON, TRUE_REASON, (5, 5, 5, 5)),
        (REASON, "Green.", (3, 5, 5, 4)),
        (REASON, "A moli is green, because it lives in the sea.", (3, 3, 1, 1)),
        (CHEERFUL, "Hooray! A moli is green!", (5, 5, 5, 5)),
        (CHEERFUL, "Hooray! A moli is blue!", (1, 1, 1, 1)),
        (CHEERFUL, TRUE_REASON, (3, 5, 5, 5)),
        (DESCRIPTION, f"{TRUE_REASON} It is huge, because it eats roots.", (5, 5, 5, 5)),
        (DESCRIPTION, "Green.", (3, 5, 5, 3)),
        (PRIVATE, "Sorry, I do not know that.", (5, 5, 5, 4)),
        (PRIVATE, "Your moli is called Pim.", (2, 1, 1, 1)),
        (ONE_WORD, "Sorry, I do not know that.", (1, 4, 2, 1)),
    ],
)
def test_scores_by_hand(prompt: dict[str, object], text: str, wanted: tuple[int, ...]) -> None:
    """The rubric is the ground truth of the whole recipe: each line is what a reader of it would
    award."""
    assert points(prompt, text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "green green green.",
        "A moli is green. A moli is green.",
        "What colour is a moli? A moli is green.",
        "A moli is green, because it",
        "Green blue.",
        "A zoti is green.",
        "A moli is green, A moli isA moli is blue.",
    ],
)
@pytest.mark.parametrize("prompt", [ONE_WORD, REASON, CHEERFUL, DESCRIPTION])
def test_tricks_do_not_pay(prompt: dict[str, object], text: str) -> None:
    """Repeating, naming every value, speaking of another creature, breaking off: no mean above that
    of a plain answer."""
    assert judge(prompt, text, FACTS).overall < judge(prompt, "A moli is green.", FACTS).overall


def test_bad_prompt_rows_are_named() -> None:
    """A row of another world, or without a field, would be scored as wrong answers instead of being
    refused."""
    for row, word in (
        ({"subject": "moli"}, "asked"),
        (ONE_WORD | {"subject": "wolf"}, "wolf"),
        (ONE_WORD | {"form": "sonnet"}, "sonnet"),
        (ONE_WORD | {"asked": ["weight"]}, "weight"),
    ):
        with pytest.raises(BadInput, match=word):
            judge(row, "Green.", FACTS)


def test_every_answerer_wins_somewhere() -> None:
    """With one who always wins, binarising means nothing and imitation of the winner would do."""
    world = build_world(0)
    prompts = draw_prompts(world, "train", 600, 0)
    wins = dict.fromkeys(ANSWERERS, 0)
    by_family: dict[str, set[str]] = {family: set() for family in SHARES}
    for prompt in prompts:
        scores = {
            name: judge(prompt._asdict(), answer(name, prompt, world, 0), world).overall
            for name in ANSWERERS
        }
        best = max(scores, key=lambda name: scores[name])
        wins[best] += 1
        by_family[prompt.family].add(best)
    assert min(wins.values()) > 0.12 * len(prompts) and max(wins.values()) < 0.5 * len(prompts)
    assert (
        by_family["one_word"] == {"terse"}
        and by_family["private"] == {"evasive"}
        and by_family["reason"] == {"expert"}
    )
    assert by_family["cheerful"] == {"careless", "expert"}
