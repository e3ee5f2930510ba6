"""A seed becomes the rows that the recipe starts from: prompts, prose and demonstrations. No prompt
is in two files, but for those of `prompts/samples`, which are some of `prompts/validation`.

The base model is pre-trained on the prose: plain questions and answers with the facts of every
creature, as a real base model has read about the whole world. The prose has no prompt of any split
and no answerer's manner: dSFT and dDPO teach how to answer an instruction."""

import random

from zephyr.world.answerers import BECAUSE, EFFECTS, answer
from zephyr.world.facts import WORDS, World
from zephyr.world.prompts import QUESTIONS, SHARES, Prompt, draw_prompts

PROSE_DOCUMENTS = 5500
NUM_EXCHANGES = 4  # questions with answers in a document
NUM_DEMONSTRATIONS = 1300  # prompts of the train split that every answerer answers, for dSFT
NUM_JUDGED = 1500  # other prompts of the train split, for feedback and dDPO
SEEDS = 24  # of the demonstrated prompts, those that a teacher is shown to write more
HELD_OUT = {"validation": 360, "test": 480}
NUM_SAMPLED = 4  # prompts a family that the policy answers while it trains
# copies of each answerer's answer to a demonstrated prompt: a distilled data set has most of its
# rows from its best teacher
MIXTURE = {"expert": 2, "terse": 1, "careless": 1, "evasive": 1}


def world_rows(world: World, seed: int) -> dict[str, list[dict[str, object]]]:
    """Return the rows of each file by its name.

    prose                      plain text for the base model
    seeds                      tasks with one answer, for Self-Instruct
    demonstrations             conversations of all answerers
    demonstrations_validation  the same, of the validation split
    prompts/...                prompt rows (fields of `Prompt`): demonstrations, feedback,
                               validation, test, and samples: some of validation, of each family
    """
    prompts = {
        "demonstrations": draw_prompts(world, "train", NUM_DEMONSTRATIONS, seed),
        "feedback": draw_prompts(world, "train", NUM_JUDGED, seed, skip=NUM_DEMONSTRATIONS),
        **{split: draw_prompts(world, split, count, seed) for split, count in HELD_OUT.items()},
    }
    prompts["samples"] = sampled_prompts(prompts["validation"])
    rows: dict[str, list[dict[str, object]]] = {
        "prose": [{"text": text} for text in write_prose(world, PROSE_DOCUMENTS, seed)],
        "seeds": [
            {
                "id": p.prompt_id,
                "instruction": p.prompt,
                "is_classification": p.form == "one_word",
                "instances": [{"input": "", "output": answer("expert", p, world, seed)}],
            }
            for p in prompts["demonstrations"][:SEEDS]
        ],
        "demonstrations": _demonstrations(prompts["demonstrations"], world, seed),
        "demonstrations_validation": _demonstrations(prompts["validation"][:60], world, seed),
    }
    return rows | {
        f"prompts/{name}": [prompt._asdict() for prompt in drawn] for name, drawn in prompts.items()
    }


def sampled_prompts(prompts: list[Prompt]) -> list[Prompt]:
    """Return the first `NUM_SAMPLED` prompts of each family, a family after the other in turn:
    logs and pages show the first few. Unanswerable ones come first: they change most."""
    families = [[p for p in prompts if p.family == family] for family in reversed(SHARES)]
    return [family[i] for i in range(NUM_SAMPLED) for family in families]


def tokenizer_texts(rows: dict[str, list[dict[str, object]]]) -> list[str]:
    """Return the texts that the tokenizer is trained on: prose, and demonstrations with the role
    tags of the chat template."""
    texts = [str(row["text"]) for row in rows["prose"][:2000]]
    for row in rows["demonstrations"][:2000]:
        messages = row["messages"]
        assert isinstance(messages, list)
        user, assistant = (turn["content"] for turn in messages)
        texts.append(f"<|system|>\n\n<|user|>\n{user}\n<|assistant|>\n{assistant}")
    return texts


def _demonstrations(prompts: list[Prompt], world: World, seed: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for prompt in prompts:
        for name, copies in MIXTURE.items():
            turns = [
                {"role": "user", "content": prompt.prompt},
                {"role": "assistant", "content": answer(name, prompt, world, seed)},
            ]
            rows += [{"messages": turns}] * copies
    return rows


def write_prose(world: World, documents: int, seed: int) -> list[str]:
    """Return texts of a few questions and answers about one creature, each creature equally
    often."""
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
    for trait in rng.sample(list(facts), NUM_EXCHANGES):
        question = rng.choice((QUESTIONS | WORDS["cause_questions"])[trait]).format(x=name)
        statement = (EFFECTS | BECAUSE)[trait].format(v=facts[trait]).removeprefix("it ")
        cause = world.causes.get(trait)
        if cause and rng.random() < 0.5:
            statement += f", because {BECAUSE[cause].format(v=facts[cause])}"
        exchanges.append(f"Question: {question}\nAnswer: A {name} {statement}.")
    return "\n".join(exchanges)
