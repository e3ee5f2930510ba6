"""Facts become the plain question-and-answer prose that the base model is pre-trained on.

It tells the facts of every creature, as a base model has read about the whole world, but holds no prompt of any split and
no answerer's manner: how to answer an instruction is left to dSFT and dDPO."""

import random

from zephyr.world.answerers import BECAUSE, EFFECTS
from zephyr.world.facts import WORDS, World
from zephyr.world.prompts import QUESTIONS

EXCHANGES = 4  # questions and answers in a document


def write_prose(world: World, documents: int, seed: int) -> list[str]:
    """`documents` texts of a few questions and answers about one creature, each creature equally often."""
    rng = random.Random(f"prose/{seed}")
    names = list(world.creatures)
    texts = []
    for n in range(documents):
        if n % len(names) == 0:
            rng.shuffle(names)
        texts.append(_document(world, names[n % len(names)], rng))
    return texts


def _document(world: World, name: str, rng: random.Random) -> str:
    facts = world.creatures[name]
    exchanges = []
    for trait in rng.sample(list(facts), EXCHANGES):
        question = rng.choice((QUESTIONS | WORDS["cause_questions"])[trait]).format(x=name)
        statement = (EFFECTS | BECAUSE)[trait].format(v=facts[trait]).removeprefix("it ")
        cause = world.causes.get(trait)
        if cause and rng.random() < 0.5:
            statement += f", because {BECAUSE[cause].format(v=facts[cause])}"
        exchanges.append(f"Question: {question}\nAnswer: A {name} {statement}.")
    return "\n".join(exchanges)
