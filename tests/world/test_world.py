"""The embedded world: disjoint prompts, answerers of their manner, prose without prompts, an
untrained model."""

import random
from pathlib import Path

import pytest

from zephyr.config import BadInput
from zephyr.world.answerers import ANSWERERS, answer
from zephyr.world.facts import VALUES, build_world, load_world, save_world
from zephyr.world.prompts import SHARES, Prompt, all_prompts, draw_prompts, prompt_from_row
from zephyr.world.recipe import tokenizer_texts, world_rows
from zephyr.world.untrained import save_untrained

WORLD = build_world(0)
ROWS = world_rows(WORLD, 0)
SPLITS = ("train", "validation", "test")


def test_facts_follow_their_causes() -> None:
    """The judge reads reasons by these pairs: a colour without its home would make every true
    reason false."""
    for facts in WORLD.creatures.values():
        for trait, cause in WORLD.causes.items():
            assert VALUES[trait].index(facts[trait]) == VALUES[cause].index(facts[cause])
    assert build_world(1).creatures != WORLD.creatures


def test_no_word_means_two_things() -> None:
    """A word of two traits, or a creature named like one, would be read as a claim that nobody
    made."""
    words = [word for values in VALUES.values() for word in values] + list(WORLD.creatures)
    assert len(words) == len(set(words))


def test_files_share_no_prompt() -> None:
    """A prompt in two files would let training see what it is measured on."""
    files = {
        name: {str(row["prompt"]) for row in rows}
        for name, rows in ROWS.items()
        if name.startswith("prompts/")
    }
    sampled = files.pop("prompts/samples")
    assert set(files) == {
        f"prompts/{name}" for name in ("demonstrations", "feedback", "validation", "test")
    }
    assert sampled < files["prompts/validation"]
    for name, prompts in files.items():
        assert len(prompts) == len(ROWS[name])
        for other in files.keys() - {name}:
            assert not prompts & files[other]


def test_each_family_is_sampled() -> None:
    """The samples of a run are what a reader looks at first: fails where a family is missing."""
    families = [row["family"] for row in ROWS["prompts/samples"]]
    assert {family: families.count(family) for family in families} == dict.fromkeys(SHARES, 4)


def test_what_is_asked_of_whom_belongs_to_one_split() -> None:
    """The same question in other words would be a held-out prompt in name only."""
    asked = {
        split: {
            (p.subject, p.asked, p.topic)
            for rows in all_prompts(WORLD, split).values()
            for p in rows
        }
        for split in SPLITS
    }
    assert all(len(cells) > 100 for cells in asked.values())
    assert not asked["train"] & asked["validation"] and not asked["train"] & asked["test"]
    assert not asked["validation"] & asked["test"]


def test_demonstrations_come_from_the_train_split() -> None:
    """Draws by split could be right while the rendered conversations come from elsewhere."""
    train = {p.prompt for rows in all_prompts(WORLD, "train").values() for p in rows}
    assert {row["messages"][0]["content"] for row in ROWS["demonstrations"]} <= train
    assert {str(row["prompt"]) for row in ROWS["prompts/feedback"]} <= train


def test_prose_tells_every_creature_and_holds_no_prompt() -> None:
    """The base model must know the facts of test creatures, without having read how a test prompt
    is put."""
    prose = "\n".join(str(row["text"]) for row in ROWS["prose"])
    assert all(f"A {name} " in prose for name in WORLD.creatures)
    prompts = [
        p.prompt for split in SPLITS for found in all_prompts(WORLD, split).values() for p in found
    ]
    assert len(prompts) > 5000
    assert not [prompt for prompt in prompts if prompt in prose]


def test_drawn_families_have_their_shares() -> None:
    """A family that runs out of prompts would shift what the mean score means, without a word."""
    for name in ("demonstrations", "feedback", "validation", "test"):
        rows = ROWS[f"prompts/{name}"]
        for family, share in SHARES.items():
            assert sum(row["family"] == family for row in rows) / len(rows) == pytest.approx(
                share, abs=0.01
            )


def test_answers_depend_on_prompt_and_seed_alone() -> None:
    """With a shared generator the answers would change with the order, or the number, of
    prompts."""
    prompts = draw_prompts(WORLD, "train", 200, 3)
    forward = {(n, p.prompt_id): answer(n, p, WORLD, 7) for p in prompts for n in ANSWERERS}
    assert forward == {
        (n, p.prompt_id): answer(n, p, WORLD, 7)
        for p in reversed(prompts)
        for n in reversed(ANSWERERS)
    }
    assert forward != {(n, p.prompt_id): answer(n, p, WORLD, 8) for p in prompts for n in ANSWERERS}


def test_answerers_keep_their_manner() -> None:
    """The recipe rests on four manners that differ: two alike would make pairs without a lesson."""
    colour = Prompt("1", "Say why.", "reason", next(iter(WORLD.creatures)), ("colour",), "reason")
    facts = WORLD.creatures[colour.subject]
    said = {name: answer(name, colour, WORLD, 0) for name in ANSWERERS}
    assert (
        said["expert"]
        == f"A {colour.subject} is {facts['colour']}, because it lives in the {facts['home']}."
    )
    assert said["terse"] == f"{facts['colour'].capitalize()}."
    assert (
        said["careless"].startswith("Hooray!") and said["evasive"] == "Sorry, I do not know that."
    )
    told = [ANSWERERS["careless"](colour, WORLD, random.Random(i)) for i in range(400)]
    assert sum(facts["colour"] not in text for text in told) / 400 == pytest.approx(0.2, abs=0.06)


def test_facts_and_prompts_survive_their_files(tmp_path: Path) -> None:
    """Feedback is collected from the files: what they lose, the answerers get wrong."""
    save_world(WORLD, tmp_path / "world.json")
    read = load_world(tmp_path / "world.json")
    assert read.creatures == WORLD.creatures and read.causes == WORLD.causes
    prompt = draw_prompts(WORLD, "test", 10, 0)[0]
    assert prompt_from_row(prompt._asdict() | {"asked": list(prompt.asked)}) == prompt
    with pytest.raises(BadInput, match="subject"):
        prompt_from_row({"prompt_id": "x", "prompt": "y", "family": "z"})
    with pytest.raises(BadInput, match="absent.json"):
        load_world(tmp_path / "absent.json")


def test_untrained_model_loads_and_its_tokenizer_is_lossless(tmp_path: Path) -> None:
    """Byte-level pieces must give every text back, EOS must be one id, and the same seed the same
    weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = tokenizer_texts(ROWS)
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        count = save_untrained(texts, tmp_path / folder, seed=seed)
        assert 0.7e6 < count < 1.1e6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    for text in (texts[0], texts[-1], "naïve \U0001f600 日本\n\n  two  spaces"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer("a</s>", add_special_tokens=False).input_ids[-1] == 2
    a, b, c = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).lm_head.weight for name in "abc"
    )
    assert (a == b).all() and not (a == c).all() and a.shape[0] == len(tokenizer)
