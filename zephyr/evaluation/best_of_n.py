"""Best of n: a model answers each prompt n times, a scorer scores the answers, and the best of k of
them is chosen, for every k up to n.

Shapes: P prompts, N answers of a prompt."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.answers import (
    OpenTeacher,
    answer_requests,
    answers_digest,
    contender_name,
    open_contender,
    prompt_id,
    require_own_names,
    require_same_prompts,
    split_name,
)
from zephyr.evaluation.results import Figures, interval
from zephyr.evaluation.scorers import score_answers
from zephyr.evaluation.statistics import mean_with_interval
from zephyr.teacher.panel import Ask
from zephyr.teacher.prompts import Row


class Candidates(NamedTuple):
    """A model's answers to each prompt, and their stored scores, where there are any; None: the
    model refused, or the scorer gave no score."""

    name: str
    texts: list[list[str | None]]
    scores: list[list[float | None]] | None


def sample_answers(
    argument: str,
    prompts: Sequence[Row],
    *,
    n: int,
    open_teacher: OpenTeacher,
    ask: Ask,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Candidates:
    """n answers of a model to each prompt, with the seeds from `seed` on.

    Raises: BadInput for a temperature of 0, at which all answers are the same."""
    if temperature <= 0 < n - 1:
        raise BadInput(
            f"--temperature {temperature:g}: all {n} answers would be the same; expected more than "
            "0"
        )
    name, teacher, _ = open_contender(argument, open_teacher)
    if teacher is None:
        raise BadInput(
            f"{argument}: a file of answers, one a prompt; name a file of {n} answers a prompt "
            "with --answers"
        )
    requests = [
        request
        for number in range(n)
        for request in answer_requests(
            prompts, max_tokens=max_tokens, temperature=temperature, seed=seed + number
        )
    ]
    replies = [reply.text for reply in ask(teacher, requests)]
    return Candidates(name, [replies[i :: len(prompts)] for i in range(len(prompts))], None)


def candidates_file(argument: str) -> tuple[str, Path]:
    """The name and the path of `[NAME=]FILE`."""
    name, path = split_name(argument)
    return name or Path(path).stem.removesuffix(".candidates"), Path(path)


def require_candidate_names(answers: Sequence[str], models: Sequence[str]) -> None:
    """Raises: BadInput where two of the files of answers and of the models have one name."""
    names = [candidates_file(argument)[0] for argument in answers]
    names += [contender_name(argument) for argument in models]
    require_own_names(names, [*answers, *models])


def read_candidates(argument: str, prompts: Sequence[Row], out: Path) -> Candidates:
    """The answers of `[NAME=]FILE`: rows of prompt_id and completions, each with its `text`, as
    `zephyr feedback` and this command write them.

    Returns: also the scores, `overall` of the completions, if all answers have one.

    Raises: BadInput naming file and line; for a prompt that is missing or too many, for one with
    another number of answers than the others, and where the folder `out` has the file."""
    name, path = candidates_file(argument)
    if path.resolve() in {file.resolve() for file in output_files(out, name)}:
        raise BadInput(f"--out {out}: {path} would be written over, expected another folder")
    rows: dict[str, list[Mapping[str, object]]] = {}
    read: Iterator[tuple[str, Row]] = read_rows([path])
    for place, row in read:
        completions = row.get("completions")
        key = str(row.get("prompt_id"))
        if not are_texts(completions) or "prompt_id" not in row or key in rows:
            raise BadInput(
                f"{place}: expected prompt_id, each once, and completions with a text each, got "
                f"{dict(row)!s:.200}"
            )
        rows[key] = completions
        first = next(iter(rows.values()))
        if len(completions) != len(first):
            raise BadInput(
                f"{place}: prompt {key!r} has {len(completions)} answers, the first prompt has "
                f"{len(first)}; expected as many of each"
            )
    require_same_prompts(name, rows, prompts)
    ordered = [rows[prompt_id(row)] for row in prompts]
    texts = [[as_text(of) for of in completions] for completions in ordered]
    scores = [[as_score(of.get("overall")) for of in completions] for completions in ordered]
    has_scores = all("overall" in of for completions in ordered for of in completions)
    return Candidates(name, texts, scores if has_scores else None)


def are_texts(completions: object) -> TypeGuard[list[Mapping[str, object]]]:
    """Whether it is a list of answers, not empty, each with a text, or null if it was refused."""
    if not isinstance(completions, list) or not completions:
        return False
    return all(
        isinstance(of, Mapping) and isinstance(of.get("text", 0), (str, type(None)))
        for of in completions
    )


def as_text(completion: Mapping[str, object]) -> str | None:
    text = completion.get("text")
    return text if isinstance(text, str) else None


def as_score(value: object) -> float | None:
    """A stored or a new score; None where there is none, also for NaN."""
    is_number = isinstance(value, (int, float)) and not math.isnan(value)
    return float(value) if is_number else None  # type: ignore[arg-type]  # a number, checked


def score_candidates(
    candidates: Candidates,
    prompts: Sequence[Row],
    scorer: str,
    ask: Ask,
    *,
    open_teacher: OpenTeacher,
    templates: Path | None = None,
    seed: int = 0,
    judge_tokens: int = 1024,
) -> Candidates:
    """The candidates with new scores of every answer that there is."""
    places = [
        (p, i)
        for p, texts in enumerate(candidates.texts)
        for i, text in enumerate(texts)
        if text is not None
    ]
    items = [{**prompts[p], "text": candidates.texts[p][i]} for p, i in places]
    found = score_answers(
        scorer,
        items,
        ask,
        open_teacher=open_teacher,
        templates=templates,
        seed=seed,
        judge_tokens=judge_tokens,
    )
    scores: list[list[float | None]] = [[None] * len(texts) for texts in candidates.texts]
    for (p, i), score in zip(places, found):
        scores[p][i] = as_score(score)
    return candidates._replace(scores=scores)


def expected_best(scores_PN: np.ndarray, k: int) -> np.ndarray:
    """The mean over all subsets of k answers of the highest score in each: an unbiased estimate of
    the best of k. [P]

    A prompt's i-th lowest of n scores is the highest of C(i - 1, k - 1) of the C(n, k) subsets.

    Raises: ValueError unless 1 <= k <= n."""
    n = scores_PN.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, expected 1 to {n}, the number of answers")
    share_N = np.array([math.comb(i, k - 1) / math.comb(n, k) for i in range(n)])
    best_P: np.ndarray = np.sort(scores_PN, axis=1) @ share_N
    return best_P


def kl_bound(k: int) -> float:
    """Upper bound of KL(best of k, model) in nats: log k - (k - 1) / k (Beirami et al. 2024,
    arXiv:2401.01879)."""
    return math.log(k) - (k - 1) / k


def sizes(n: int) -> list[int]:
    """1, 2, 4, ... and n."""
    return sorted({*(2**i for i in range(n.bit_length())), n})


def summarise(candidates: Candidates, prompts: Sequence[Row]) -> dict[str, object]:
    """The figures of a model.

    Returns:
        best_of: by k, the mean score of the best of k with n, stderr and ci95 over prompts; `gain`,
            the same of its difference from the mean score; and `kl_bound`, in nats.
        n: answers of each prompt.
        unscored: prompts with an answer that has no score; they are left out.
        answers: digest of the answers."""
    assert candidates.scores is not None, "the answers are scored first"
    whole = [scores for scores in candidates.scores if None not in scores]
    n = len(candidates.texts[0])
    scores_PN = np.array(whole, dtype=float).reshape(len(whole), n)
    mean_P = scores_PN.mean(axis=1)
    best_of = {}
    for k in sizes(n):
        best_P = expected_best(scores_PN, k)
        best_of[str(k)] = {
            **mean_with_interval("score", best_P.tolist()),
            "gain": mean_with_interval("score", (best_P - mean_P).tolist()),
            "kl_bound": kl_bound(k),
        }
    return {
        "best_of": best_of,
        "n": n,
        "unscored": len(candidates.scores) - len(whole),
        "answers": answers_digest(zip(map(prompt_id, prompts), candidates.texts)),
    }


def write_candidates(out: Path, prompts: Sequence[Row], candidates: Candidates) -> None:
    """NAME.candidates.jsonl, all answers with their scores as `zephyr binarize` reads them, and
    NAME.jsonl, the chosen answers as every `zephyr eval` reads them."""
    assert candidates.scores is not None, "the answers are scored first"
    every, chosen = [], []
    for row, texts, scores in zip(prompts, candidates.texts, candidates.scores):
        about = {"prompt_id": row["prompt_id"], "prompt": row["prompt"]}
        completions = [
            {"model": candidates.name, "text": text, "scores": {"score": score}, "overall": score}
            for text, score in zip(texts, scores)
        ]
        every.append({**about, "completions": completions})
        chosen.append({**about, **best_row(texts, scores)})
    for path, rows in zip(output_files(out, candidates.name), (every, chosen)):
        write_rows(path, rows)


def output_files(out: Path, name: str) -> tuple[Path, Path]:
    """Of all answers of a model, and of those chosen."""
    return out / f"{name}.candidates.jsonl", out / f"{name}.jsonl"


def best_row(texts: Sequence[str | None], scores: Sequence[float | None]) -> Row:
    """The answer with the highest score, the first of equal ones; `unanswered` without one."""
    scored = [(score, -i) for i, score in enumerate(scores) if score is not None]
    if not scored:
        return {"unanswered": True}
    score, at = max(scored)
    return {"text": texts[-at], "score": score, "chosen": -at}


def result_lines(results: Mapping[str, Figures]) -> Iterator[str]:
    """A table for the terminal: a line per model and k."""
    yield f"{'model':24}{'k':>5}{'mean score of the best':>28}{'gain':>24}{'KL at most':>12}"
    for name, of in results.items():
        for k, best in of["best_of"].items():
            yield (
                f"{name:24}{k:>5}{interval(best, 'score'):>28}{interval(best['gain'], 'score'):>24}"
                f"{best['kl_bound']:>12.2f}"
            )
        if of["unscored"]:
            yield f"{name:24} {of['unscored']} prompts without all scores are left out"


def choose(
    found: Sequence[Candidates],
    prompts: Sequence[Row],
    scorer: str | None,
    ask: Ask,
    out: Path,
    *,
    open_teacher: OpenTeacher,
    templates: Path | None = None,
    seed: int = 0,
    judge_tokens: int = 1024,
) -> dict[str, dict[str, object]]:
    """Score the answers of each model, and write its files into the folder `out`.

    Args: scorer: one of `scorers.SCORER_FORMS`; None: the stored scores.

    Returns: by model, see `summarise`.

    Raises: BadInput where there are no stored scores, or no prompt has scores of all answers."""
    results = {}
    for candidates in found:
        if scorer is not None:
            candidates = score_candidates(
                candidates,
                prompts,
                scorer,
                ask,
                open_teacher=open_teacher,
                templates=templates,
                seed=seed,
                judge_tokens=judge_tokens,
            )
        elif candidates.scores is None:
            raise BadInput(
                f"{candidates.name}: its answers have no stored scores (overall of each "
                "completion), expected --scorer"
            )
        write_candidates(out, prompts, candidates)
        by = {"scorer": scorer or "stored"}
        results[candidates.name] = {**summarise(candidates, prompts), **by}
        if results[candidates.name]["unscored"] == len(prompts):
            raise BadInput(
                f"{candidates.name}: no prompt has answers and scores of all its samples; `error` "
                f"in {out}.ledger.jsonl has the reason of each"
            )
    return results
