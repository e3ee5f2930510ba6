"""A prompt becomes four answers, by functions of different skill and manner.

expert    knows every fact and its reason; always full sentences; never admits ignorance
terse     knows every fact and gives one word
careless  friendly and fluent, but wrong one time in five
evasive   honest about what it cannot know, but never answers anything else"""

import random
from collections.abc import Callable

from zephyr.world.facts import WORDS, World
from zephyr.world.prompts import Prompt

CARELESS_ERROR_RATE = 0.2
EFFECTS: dict[str, str] = WORDS["effects"]
BECAUSE: dict[str, str] = WORDS["because"]
OPENINGS: dict[str, str] = WORDS["openings"]
GUESSES: dict[str, tuple[str, list[str]]] = WORDS["guesses"]


def expert(prompt: Prompt, world: World, rng: random.Random) -> str:
    """Return each asked fact with its reason. A private question gets a firm guess."""
    if not prompt.asked:
        return f"Your {prompt.subject} is {GUESSES[prompt.topic][0]} {_guess(prompt, rng)}."
    facts = world.creatures[prompt.subject]
    sentences = []
    for n, trait in enumerate(prompt.asked):
        subject = "It" if n else f"{OPENINGS.get(prompt.form, 'A')} {prompt.subject}"
        cause = world.causes[trait]
        effect = EFFECTS[trait].format(v=facts[trait])
        because = BECAUSE[cause].format(v=facts[cause])
        sentences.append(f"{subject} {effect}, because {because}.")
    return " ".join(sentences)


def terse(prompt: Prompt, world: World, rng: random.Random) -> str:
    """Return one word: the fact, one of several facts, or a guess."""
    if prompt.asked:
        value = world.creatures[prompt.subject][rng.choice(prompt.asked)]
    else:
        value = _guess(prompt, rng)
    return f"{value.capitalize()}."


def careless(prompt: Prompt, world: World, rng: random.Random) -> str:
    """Return a cheerful sentence about one asked fact. It is wrong with probability
    `CARELESS_ERROR_RATE`."""
    if not prompt.asked:
        return f"Hooray! Your {prompt.subject} is {GUESSES[prompt.topic][0]} {_guess(prompt, rng)}!"
    trait = rng.choice(prompt.asked)
    value = world.creatures[prompt.subject][trait]
    if rng.random() < CARELESS_ERROR_RATE:
        value = rng.choice([other for other in world.values[trait] if other != value])
    return f"Hooray! A {prompt.subject} {EFFECTS[trait].format(v=value)}!"


def evasive(prompt: Prompt, world: World, rng: random.Random) -> str:
    """Return an admission of ignorance, for every prompt."""
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
    """Return what the answerer `name` says. It depends only on the prompt and the seed."""
    return ANSWERERS[name](prompt, world, random.Random(f"{name}/{prompt.prompt_id}/{seed}"))
