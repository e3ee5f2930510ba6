"""A question in fields becomes what an answerer of the embedded world, or its teacher of all
manners, would write."""

import random
from collections.abc import Mapping

from zephyr.world.answerers import ANSWERERS, answer
from zephyr.world.facts import World
from zephyr.world.prompts import Prompt, all_prompts, prompt_from_row
from zephyr.world.recipe import MIXTURE


def prompts_by_text(world: World) -> dict[str, Prompt]:
    """Every prompt of the world by what it says."""
    return {
        p.prompt: p
        for split in ("train", "validation", "test")
        for rows in all_prompts(world, split).values()
        for p in rows
    }


def find_prompt(
    row: Mapping[str, object], text: str, world: World, known: Mapping[str, Prompt]
) -> Prompt:
    """The prompt of a row with a prompt's fields, or of a text. Whatever else is asked is something
    nobody in the world can know."""
    if set(Prompt._fields) <= row.keys():
        return prompt_from_row(row)
    unknown = Prompt(text[:80], text, "private", next(iter(world.creatures)), (), "private", "name")
    return known.get(text.strip(), unknown)


def teacher_reply(
    name: str,
    about: Mapping[str, object],
    text: str,
    seed: int,
    world: World,
    known: Mapping[str, Prompt],
) -> str:
    """What `name` writes: an answerer, or `teacher`, which answers in a manner drawn anew each
    time, expert most often.

    Args: about: the question in fields (`task`, and those that `zephyr.distill.self_instruct` and
    `zephyr.distill.feedback` list; none: an answer is wanted). text: the user's last words."""
    rng = random.Random(f"{name}/{about.get('task')}/{text}/{seed}")

    def answered(words: str) -> str:
        prompt = find_prompt(about.get("row", {}), words, world, known)
        who = name if name in ANSWERERS else rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
        return answer(who, prompt, world, seed)

    def drawn(count: int) -> list[Prompt]:
        return rng.sample([p for p in known.values() if p.prompt_id.startswith("train-")], count)

    task, instruction = about.get("task", "answer"), str(about.get("instruction", ""))
    if task == "instructions":
        return "\n".join(
            f"{n}. {p.prompt}"
            for n, p in enumerate(drawn(int(about["count"])), len(about["demonstrations"]) + 1)
        )
    if task == "alpaca":
        return "\n".join(
            f"###\n{n}. Instruction: {p.prompt}\n{n}. Input:\n<noinput>\n{n}. Output:\n{answered(p.prompt)}"
            for n, p in enumerate(drawn(int(about["count"])), len(about["demonstrations"]) + 1)
        )
    if task == "classify":
        return "Yes" if find_prompt({}, instruction, world, known).form == "one_word" else "No"
    if task == "instances":
        shape = (
            "Class label: {}\nInput: <noinput>"
            if about["is_classification"]
            else "Input: <noinput>\nOutput: {}"
        )
        return shape.format(answered(instruction))
    if task in ("opening", "user_turn"):
        return drawn(1)[0].prompt
    return answered(text)
