"""The prompts that `zephyr chat` offers: few, short, each once, of the model's own run."""

import json
from pathlib import Path

import pytest

from zephyr.config import BadInput
from zephyr.playground.examples import MOST_CHARACTERS, MOST_PROMPTS, example_prompts


def write(path: Path, prompts: list[object]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


def test_examples_are_those_that_the_run_answered(tmp_path: Path) -> None:
    """Fails where later steps repeat a prompt, a dialogue or a page of text becomes a button, the
    prompts of a file do not come first, or a model without a run has some."""
    asked = [f"question {n}?" for n in range(9)]
    turns = [{"role": "user", "content": "in turns"}]
    run = tmp_path / "run"
    run.mkdir()
    write(run / "samples.jsonl", [turns, "x" * (MOST_CHARACTERS + 1), asked[0], *asked, *asked])
    models = [str(tmp_path / "other" / "model"), f"hf:{run / 'model'}"]
    assert example_prompts(models, None) == asked[:MOST_PROMPTS]
    assert example_prompts(models, write(tmp_path / "p.jsonl", ["mine?"])) == ["mine?"]
    assert example_prompts(models[:1], None) == []
    assert example_prompts(["openai:m@http://127.0.0.1:1/v1"], None) == []
    with pytest.raises(BadInput, match="absent"):
        example_prompts(models, str(tmp_path / "absent.jsonl"))
