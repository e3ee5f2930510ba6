"""Facts become the plain question-and-answer prose that the base model is pre-trained on.

It tells the facts of every creature, as a base model has read about the whole world. How instructions are answered it
shows now and then, with creatures of the train split alone: no validation or test prompt is ever in the prose.
"""

import random

from zephyr.world.answerers import BECAUSE, CALLED_FOR, EFFECTS, answer
from zephyr.world.facts import World
from zephyr.world.prompts import QUESTIONS, all_prompts

CAUSE_QUESTIONS = {"home": ("Where does a {x} live?",), "gait": ("How does a {x} move?",), "food": ("What does a {x} eat?",)}

INSTRUCTION_SHARE = 0.2      # of the documents
EXCHANGES = 4                # questions and answers in a document


def write_prose(world: World, documents: int, seed: int) -> list[str]:
    """`documents` texts of a few questions and answers: most about one creature, each in turn, some about instructions."""
    rng = random.Random(f"prose/{seed}")
    names = list(world.creatures)
    instructions = list(all_prompts(world, "train").values())
    texts = []
    for n in range(documents):
        if n % len(names) == 0:
            rng.shuffle(names)
        if rng.random() < INSTRUCTION_SHARE:
            drawn = [rng.choice(rng.choice(instructions)) for _ in range(EXCHANGES)]
            texts.append("\n".join(_exchange(p.prompt, answer(CALLED_FOR[p.form], p, world, seed)) for p in drawn))
        else:
            texts.append(_facts(world, names[n % len(names)], rng))
    return texts


def _facts(world: World, name: str, rng: random.Random) -> str:
    facts = world.creatures[name]
    exchanges = []
    for trait in rng.sample(list(facts), EXCHANGES):
        question = rng.choice((QUESTIONS | CAUSE_QUESTIONS)[trait]).format(x=name)
        statement = (EFFECTS | BECAUSE)[trait].format(v=facts[trait]).removeprefix("it ")
        cause = world.causes.get(trait)
        if cause and rng.random() < 0.5:
            statement += f", because {BECAUSE[cause].format(v=facts[cause])}"
        exchanges.append(_exchange(question, f"A {name} {statement}."))
    return "\n".join(exchanges)


def _exchange(question: str, reply: str) -> str:
    return f"Question: {question}\nAnswer: {reply}"
