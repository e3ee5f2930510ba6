"""A seed becomes the rows that the recipe starts from: prompts, prose and demonstrations, no prompt in two of them."""

from zephyr.world.answerers import answer
from zephyr.world.facts import World
from zephyr.world.prompts import Prompt, draw_prompts
from zephyr.world.prose import write_prose

PROSE_DOCUMENTS = 5500
DEMONSTRATED = 1300      # prompts of the train split that every answerer answers, for dSFT
JUDGED = 1500            # other prompts of the train split, for feedback and dDPO
SEEDS = 24                # of those, the tasks that a teacher is shown to write more
HELD_OUT = {"validation": 360, "test": 480}
# how often an answerer's answer to a demonstrated prompt is in the mixture: a distilled set leans on its best teacher
MIXTURE = {"expert": 2, "terse": 1, "careless": 1, "evasive": 1}


def world_rows(world: World, seed: int) -> dict[str, list[dict[str, object]]]:
    """Name of a file -> its rows.

    `prose`: plain text for the base model; `seeds`: tasks with one answer, for Self-Instruct; `demonstrations` and
    `demonstrations_validation`: conversations of all answerers; `prompts/demonstrations`, `prompts/feedback`, `prompts/validation`,
    `prompts/test`: prompt rows (fields of `Prompt`)."""
    prompts = {"demonstrations": draw_prompts(world, "train", DEMONSTRATED, seed),
               "feedback": draw_prompts(world, "train", JUDGED, seed, skip=DEMONSTRATED),
               **{split: draw_prompts(world, split, count, seed) for split, count in HELD_OUT.items()}}
    rows: dict[str, list[dict[str, object]]] = {
        "prose": [{"text": text} for text in write_prose(world, PROSE_DOCUMENTS, seed)],
        "seeds": [{"id": p.prompt_id, "instruction": p.prompt, "is_classification": p.form == "one_word",
                   "instances": [{"input": "", "output": answer("expert", p, world, seed)}]} for p in prompts["demonstrations"][:SEEDS]],
        "demonstrations": _demonstrations(prompts["demonstrations"], world, seed),
        "demonstrations_validation": _demonstrations(prompts["validation"][:60], world, seed)}
    return rows | {f"prompts/{name}": [prompt._asdict() for prompt in drawn] for name, drawn in prompts.items()}


def tokenizer_texts(rows: dict[str, list[dict[str, object]]]) -> list[str]:
    """What the world's tokenizer is trained on: prose, and demonstrations with the role tags of the chat template."""
    texts = [str(row["text"]) for row in rows["prose"][:2000]]
    for row in rows["demonstrations"][:2000]:
        user, assistant = (turn["content"] for turn in row["messages"])  # type: ignore[attr-defined]
        texts.append(f"<|system|>\n\n<|user|>\n{user}\n<|assistant|>\n{assistant}")
    return texts


def _demonstrations(prompts: list[Prompt], world: World, seed: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for prompt in prompts:
        for name, copies in MIXTURE.items():
            turns = [{"role": "user", "content": prompt.prompt}, {"role": "assistant", "content": answer(name, prompt, world, seed)}]
            rows += [{"messages": turns}] * copies
    return rows
