"""A prompt becomes four answers: the programmatic teacher's expert, and three answerers of other
skill and manner.

expert    knows every fact and gives its reason, in full sentences whatever was wanted; never admits not to know
terse     knows every fact and gives one word
careless  friendly and fluent, but mistaken one time in five
evasive   honest about what it does not know, and says the same about what it could know"""

import random
from collections.abc import Callable

from zephyr.world.facts import WORDS, World
from zephyr.world.prompts import Prompt

CARELESS_ERROR_RATE = 0.2
EFFECTS, BECAUSE, OPENINGS, GUESSES = (
    WORDS[name] for name in ("effects", "because", "openings", "guesses")
)


def expert(prompt: Prompt, world: World, rng: random.Random) -> str:
    """Each asked fact with its reason; a private question gets a firm guess."""
    if not prompt.asked:
        return f"Your {prompt.subject} is {GUESSES[prompt.topic][0]} {_guess(prompt, rng)}."
    facts = world.creatures[prompt.subject]
    sentences = []
    for n, trait in enumerate(prompt.asked):
        subject = "It" if n else f"{OPENINGS.get(prompt.form, 'A')} {prompt.subject}"
        cause = world.causes[trait]
        effect, because = (
            EFFECTS[trait].format(v=facts[trait]),
            BECAUSE[cause].format(v=facts[cause]),
        )
        sentences.append(f"{subject} {effect}, because {because}.")
    return " ".join(sentences)


def terse(prompt: Prompt, world: World, rng: random.Random) -> str:
    """One word: the fact, one of several facts, or a guess."""
    value = (
        world.creatures[prompt.subject][rng.choice(prompt.asked)]
        if prompt.asked
        else _guess(prompt, rng)
    )
    return f"{value.capitalize()}."


def careless(prompt: Prompt, world: World, rng: random.Random) -> str:
    """A cheerful sentence about one asked fact, which is wrong with probability
    `CARELESS_ERROR_RATE`."""
    if not prompt.asked:
        return f"Hooray! Your {prompt.subject} is {GUESSES[prompt.topic][0]} {_guess(prompt, rng)}!"
    trait = rng.choice(prompt.asked)
    value = world.creatures[prompt.subject][trait]
    if rng.random() < CARELESS_ERROR_RATE:
        value = rng.choice([other for other in world.values[trait] if other != value])
    return f"Hooray! A {prompt.subject} {EFFECTS[trait].format(v=value)}!"


def evasive(prompt: Prompt, world: World, rng: random.Random) -> str:
    """Admits not to know, whatever was asked."""
    return "Sorry, I do not know that."


def _guess(prompt: Prompt, rng: random.Random) -> str:
    return rng.choice(GUESSES[prompt.topic][1])


Answerer = Callable[[Prompt, World, random.Random], str]
ANSWERERS: dict[str, Answerer] = {
    "expert": expert,
    "terse": terse,
    "careless": careless,
    "evasive": evasive,
}


def answer(name: str, prompt: Prompt, world: World, seed: int) -> str:
    """What answerer `name` says: a function of prompt and seed alone, whatever was answered
    before."""
    return ANSWERERS[name](prompt, world, random.Random(f"{name}/{prompt.prompt_id}/{seed}"))
