"""Prompts become feedback rows: several answerers answer each prompt and a judge scores every answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from zephyr.config import BadInput

Row = Mapping[str, object]
Answerer = Callable[[Row], str]
Judge = Callable[[Row, str], tuple[dict[str, int], float]]


def collect_feedback(prompts: Iterable[Row], answerers: Mapping[str, Answerer], judge: Judge) -> Iterator[dict[str, object]]:
    """Yields a feedback row per prompt: `prompt_id`, `prompt`, and `completions` with `model`, `text`, `scores`, `overall`.

    Args: prompts: rows with `prompt_id` and `prompt`; whatever else they hold is for answerers and judge.
        answerers: name -> answer to a prompt row. judge: (prompt row, answer) -> scores by aspect, overall; it is not told who answered.
    Raises: BadInput if a prompt id comes twice, or fewer than two answerers are given."""
    if len(answerers) < 2:
        raise BadInput(f"feedback compares answers: at least 2 answerers are wanted, got {sorted(answerers)}")
    seen: set[str] = set()
    for prompt in prompts:
        prompt_id = str(prompt["prompt_id"])
        if prompt_id in seen:
            raise BadInput(f"prompt_id {prompt_id!r} comes twice")
        seen.add(prompt_id)
        completions = []
        for name, answer in answerers.items():
            text = answer(prompt)
            scores, overall = judge(prompt, text)
            completions.append({"model": name, "text": text, "scores": scores, "overall": overall})
        yield {"prompt_id": prompt_id, "prompt": prompt["prompt"], "completions": completions}
