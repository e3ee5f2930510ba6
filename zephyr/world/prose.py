"""Facts become the plain question-and-answer prose that the base model is pre-trained on.

The prose tells the facts of every creature, as a base model has read about the whole world; how one answers in a wanted
manner it shows with the creatures of the train split alone, so that it never holds a validation or test prompt.
"""

import random

from zephyr.world.answerers import BECAUSE, EFFECTS
from zephyr.world.facts import World
from zephyr.world.prompts import DESCRIBE, MANNERS, PRIVATE, QUESTIONS

CAUSE_QUESTIONS = {"home": "Where does a {x} live?", "gait": "How does a {x} move?", "food": "What does a {x} eat?"}
MANNER=float(__import__('os').environ.get('MANNER','0.4'))


def write_prose(world: World, documents: int, seed: int) -> list[str]:
    """`documents` texts about one creature each, every creature equally often: questions and answers in changing order."""
    rng = random.Random(f"prose/{seed}")
    names = list(world.creatures)
    texts = []
    for n in range(documents):
        if n % len(names) == 0:
            rng.shuffle(names)
        name = names[n % len(names)]
        if name in world.splits["train"] and rng.random() < MANNER:
            texts.append(_manners(world, name, rng))
        else:
            texts.append(_document(world, name, rng))
    return texts


def _document(world: World, name: str, rng: random.Random) -> str:
    facts = world.creatures[name]
    lines = []
    for trait in rng.sample(list(facts), 4):
        q = CAUSE_QUESTIONS[trait] if trait in CAUSE_QUESTIONS else rng.choice(QUESTIONS[trait])
        statement = (EFFECTS | BECAUSE)[trait].format(v=facts[trait]).removeprefix("it ")
        cause = world.causes.get(trait)
        if cause and rng.random() < 0.5:
            statement += f", because {BECAUSE[cause].format(v=facts[cause])}"
        lines.append(f"Question: {q.format(x=name)}\nAnswer: A {name} {statement}.")
    return "\n".join(lines)

def _manners(world: World, name: str, rng: random.Random) -> str:
    facts = world.creatures[name]
    lines = []
    for _ in range(4):
        m=rng.choice([*MANNERS,'private'])
        if m=='private':
            lines.append(f"Question: {rng.choice(PRIVATE[rng.choice(list(PRIVATE))]).format(x=name)}\nAnswer: Sorry, I do not know that.")
            continue
        t=rng.choice(list(QUESTIONS)); q=rng.choice(QUESTIONS[t]).format(x=name)+' '+rng.choice(MANNERS[m])
        v=facts[t]; s=f"A {name} {EFFECTS[t].format(v=v)}"
        if m=='reason': s+=f", because {BECAUSE[world.causes[t]].format(v=facts[world.causes[t]])}."
        if m=='cheerful': s=f'Hooray! {s}!'
        if m=='one_word': s=f'{v.capitalize()}.'
        lines.append(f"Question: {q}\nAnswer: {s}")
    return "\n".join(lines)
