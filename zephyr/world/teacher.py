"""A question as fields becomes what an answerer of the embedded world would write, or its teacher,
which varies its manner."""

import random
from collections.abc import Mapping

from zephyr.world.answerers import ANSWERERS, answer
from zephyr.world.facts import World
from zephyr.world.prompts import Prompt, all_prompts, prompt_from_row
from zephyr.world.recipe import MIXTURE


def prompts_by_text(world: World) -> dict[str, Prompt]:
    """Return every prompt of the world by its text."""
    return {
        prompt.prompt: prompt
        for split in ("train", "validation", "test")
        for prompts in all_prompts(world, split).values()
        for prompt in prompts
    }


def find_prompt(
    row: Mapping[str, object], text: str, world: World, known: Mapping[str, Prompt]
) -> Prompt:
    """Return the prompt of a row with a prompt's fields, or of a text. For an unknown text, it is a
    prompt whose answer nobody in the world can know."""
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
    """Return the reply of an answerer, or of `teacher`, which draws an answerer for each reply,
    most often the expert.

    Args:
        name: one of `ANSWERERS`, or `teacher`.
        about: the question as fields: `task`, and those listed in `zephyr.distill.self_instruct`
            and `zephyr.distill.feedback`. Without `task`, an answer is requested.
        text: the user's last turn.
        known: every prompt by its text.
    """
    rng = random.Random(f"{name}/{about.get('task')}/{text}/{seed}")
    row = about.get("row", {})
    assert isinstance(row, Mapping), "`about.row` is the prompt's row"

    def answer_to(words: str) -> str:
        prompt = find_prompt(row, words, world, known)
        answerer = name
        if name not in ANSWERERS:
            answerer = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
        return answer(answerer, prompt, world, seed)

    task, instruction = about.get("task", "answer"), str(about.get("instruction", ""))
    if task in ("instructions", "alpaca"):
        first, count = list_range(about)
        prompts = draw_train_prompts(known, count, rng)
        if task == "instructions":
            return "\n".join(f"{n}. {prompt.prompt}" for n, prompt in enumerate(prompts, first))
        return "\n".join(
            f"###\n{n}. Instruction: {prompt.prompt}\n{n}. Input:\n<noinput>\n"
            f"{n}. Output:\n{answer_to(prompt.prompt)}"
            for n, prompt in enumerate(prompts, first)
        )
    if task == "classify":
        return "Yes" if find_prompt({}, instruction, world, known).form == "one_word" else "No"
    if task == "instances":
        if about["is_classification"]:
            return f"Class label: {answer_to(instruction)}\nInput: <noinput>"
        return f"Input: <noinput>\nOutput: {answer_to(instruction)}"
    if task in ("opening", "user_turn"):
        return draw_train_prompts(known, 1, rng)[0].prompt
    return answer_to(text)


def list_range(about: Mapping[str, object]) -> tuple[int, int]:
    """Return the first number of the list that a request asks to continue, and how many items."""
    demonstrations, count = about["demonstrations"], about["count"]
    assert isinstance(demonstrations, list) and isinstance(count, int)
    return len(demonstrations) + 1, count


def draw_train_prompts(known: Mapping[str, Prompt], count: int, rng: random.Random) -> list[Prompt]:
    """Return different random prompts of the train split."""
    prompts = [prompt for prompt in known.values() if prompt.prompt_id.startswith("train-")]
    return rng.sample(prompts, count)
