"""Several models answer prompts, and a judge compares each two answers in both orders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.answers import (
    Contender,
    OpenTeacher,
    answer_digests,
    collect_answers,
    open_contenders,
    prompt_id,
    read_stored,
)
from zephyr.evaluation.compare import Comparison, parse_verdict, summarise
from zephyr.evaluation.statistics import mean_with_interval
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.panel import (
    Ask,
    Judgement,
    Panel,
    ask_judge,
    critique_request,
    judge_request,
)
from zephyr.teacher.prompts import Row, format_prompt, read_prompts
from zephyr.teacher.rubric import Critique, parse_critique
from zephyr.teacher.templates import digests, fill, load_templates

TEMPLATES = ("judge_system", "judge_again", "compare", "critique")


class StoredVerdict(NamedTuple):
    """A row of verdicts.jsonl: the verdict, and `text_digest` of the answers shown as A and B."""

    place: str
    verdict: str | None
    digests: list[object]


class Verdicts(NamedTuple):
    """Comparisons of two models, one per prompt (None: an answer is missing), and the rows of
    verdicts.jsonl, one per question to the judge."""

    comparisons: list[Comparison | None]
    calls: list[Row]


def evaluate_win_rate(
    models: Sequence[str],
    *,
    prompts: Sequence[str],
    judge: Teacher,
    open_teacher: OpenTeacher,
    ask: Ask,
    out: Path,
    by: str | None = None,
    scores: bool = False,
    labels: Path | None = None,
    templates: Path | None = None,
    seed: int = 0,
    max_new_tokens: int = 1024,
    judge_tokens: int = 1024,
    temperature: float = 0.0,
) -> tuple[dict[str, Row], Row]:
    """Let all models answer the prompts, and the judge compare each model with every one before it.

    Args:
        models: each `[NAME=]` and a model folder, a SPEC or a file of answers.
        prompts: sources of prompt rows.
        ask: asks a teacher; the same request always gets the same reply.
        out: folder for NAME.jsonl of answers and verdicts.jsonl.
        by: a field of the prompt rows; all results are also given for each of its values.
        scores: also ask for a score from 1 to 10 of each answer.
        labels: file of people's preferences between two models.
        templates: folder of the user's own judge templates.
        max_new_tokens, judge_tokens: limits of an answer and of a judgement.

    Returns: the results of `compare_models`, and who judged: name, versions, templates.

    Raises: BadInput as `read_matter`."""
    contenders, rows, by_people = read_matter(models, prompts, open_teacher, by, labels)
    versions: set[str] = set()

    def ask_and_note_version(teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
        replies = ask(teacher, requests)
        versions.update(f"{reply.model} {reply.version}".strip() for reply in replies)
        return replies

    answers = {
        contender.name: collect_answers(
            contender, rows, ask, max_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        for contender in contenders
    }
    panel = judge_panel(
        judge, ask_and_note_version, templates=templates, seed=seed, max_tokens=judge_tokens
    )
    results = compare_models(panel, rows, answers, by_people, out, by, scores)
    results["answers"] = digest_answers(rows, answers)
    return results, {
        "name": judge.name,
        "versions": sorted(versions),
        "templates": digests(panel.templates),
    }


def score_verdicts(
    models: Sequence[str],
    *,
    prompts: Sequence[str],
    verdicts: Path,
    open_teacher: OpenTeacher,
    by: str | None = None,
    labels: Path | None = None,
) -> dict[str, Row]:
    """The results of `evaluate_win_rate` from its verdicts.jsonl, without asking anybody.

    Args: models: files of the answers that were compared.

    Raises: BadInput as `evaluate_win_rate`; for a model that would have to be asked, and for a
    verdict that is missing or is about other answers."""
    contenders, rows, by_people = read_matter(models, prompts, open_teacher, by, labels)
    names = [contender.name for contender in contenders]
    answers = {contender.name: stored_only(contender, rows) for contender in contenders}
    judged = read_verdicts(verdicts)
    groups = group_prompts(rows, by)
    pairs: Row = {}
    for n, name in enumerate(names):
        for other in names[:n]:
            of_pair = {
                (i, side): judged.get((name, other, prompt_id(row), side))
                for i, row in enumerate(rows)
                for side in "AB"
            }
            require_verdicts(verdicts, rows, answers[name], answers[other], of_pair)
            compared = make_comparisons(
                answers[name],
                answers[other],
                {at: row.verdict for at, row in of_pair.items() if row},
            )
            pairs[f"{name} over {other}"] = for_groups(
                groups, partial(summarise_group, compared, by_people)
            )
    return {"pairs": pairs, "models": {}, "answers": digest_answers(rows, answers)}


def read_matter(
    models: Sequence[str],
    prompts: Sequence[str],
    open_teacher: OpenTeacher,
    by: str | None,
    labels: Path | None,
) -> tuple[list[Contender], list[Row], list[float | None]]:
    """What is compared: models, prompt rows, and what people prefer at each, see
    `read_human_labels`. Raises: BadInput as `open_contenders` and `require_comparable`."""
    contenders = open_contenders(models, open_teacher)
    names = [contender.name for contender in contenders]
    rows = list(read_prompts(prompts))
    require_comparable(names, rows, by)
    by_people: list[float | None] = [None] * len(rows)
    if labels is not None:
        by_people = read_human_labels(labels, names, rows)
    return contenders, rows, by_people


def digest_answers(prompts: Sequence[Row], answers: Mapping[str, Sequence[str | None]]) -> Row:
    """`answer_digests` of the answers of each model to the prompts."""
    ids = [prompt_id(row) for row in prompts]
    return answer_digests({name: zip(ids, texts) for name, texts in answers.items()})


def stored_only(contender: Contender, prompts: Sequence[Row]) -> list[str | None]:
    """The contender's stored answers. Raises: BadInput where it is no file of answers."""
    if contender.teacher is not None:
        raise BadInput(
            f"{contender.name}: it would be asked, expected a file of the answers that the "
            "verdicts are about"
        )
    return collect_answers(contender, prompts, lambda *_: [], max_tokens=0)


def read_verdicts(path: Path) -> dict[tuple[str, str, str, str], StoredVerdict]:
    """The rows of verdicts.jsonl by model, the model that it is compared with, prompt id, and the
    side, A or B, that the first model's answer is shown as. Raises: BadInput naming the line."""
    found: dict[tuple[str, str, str, str], StoredVerdict] = {}
    rows: Iterator[tuple[str, Row]] = read_rows([path])
    for place, row in rows:
        keys = ("model", "over", "prompt_id", "shown_as")
        verdict, texts = row.get("verdict", ""), row.get("digests")
        is_read = verdict in ("A", "B", "tie", None)
        if not isinstance(texts, list) or not is_read or not all(key in row for key in keys):
            raise BadInput(
                f"{place}: expected {', '.join(keys)}, verdict (A, B, tie or null) and digests of "
                f"both answers, got {dict(row)!s:.200}"
            )
        model, over, of_prompt, shown_as = (str(row[key]) for key in keys)
        found[model, over, of_prompt, shown_as] = StoredVerdict(
            place, None if verdict is None else str(verdict), texts
        )
    return found


def require_verdicts(
    path: Path,
    prompts: Sequence[Row],
    ours: Sequence[str | None],
    theirs: Sequence[str | None],
    verdicts: Mapping[tuple[int, str], StoredVerdict | None],
) -> None:
    """Raises: BadInput for a question to the judge without a verdict, or with one that is about
    other answers."""
    for (i, side), shown in questions(ours, theirs).items():
        verdict = verdicts.get((i, side))
        if verdict is None:
            raise BadInput(f"{path}: no verdict at prompt {prompt_id(prompts[i])!r}")
        if verdict.digests != [text_digest(text) for text in shown]:
            raise BadInput(
                f"{verdict.place}: the verdict at prompt {prompt_id(prompts[i])!r} is about "
                "other answers than those of the files: judge these again"
            )


def text_digest(text: str) -> str:
    """The first half of an answer's SHA-256, as hex."""
    return sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def require_comparable(names: Sequence[str], prompts: Sequence[Row], by: str | None) -> None:
    """Raises: BadInput for fewer than two models, for no prompts, and for a prompt without the
    field `by`."""
    if len(names) < 2 or not prompts:
        raise BadInput(
            f"expected two or more models, and prompts; got {', '.join(names)}; "
            f"{len(prompts)} prompts"
        )
    lacking = [prompt_id(row) for row in prompts if by and by not in row]
    if lacking:
        raise BadInput(f"--by {by}: prompt {lacking[0]!r} has no such field")


def read_human_labels(
    path: Path, names: Sequence[str], prompts: Sequence[Row]
) -> list[float | None]:
    """Points of the second of two models at each prompt, from rows of prompt_id and preferred: 1,
    0, or 0.5 for a tie; None without a label. Raises: BadInput for another name."""
    points = {names[1]: 1.0, names[0]: 0.0, "tie": 0.5}
    labels = read_stored(path, "preferred")
    others = set(labels.values()) - (points.keys() if len(names) == 2 else set())
    if others:
        raise BadInput(
            f"{path}: preferred {others.pop()!r}: expected tie or one of exactly two models; "
            f"the models are {', '.join(names)}"
        )
    preferred = [labels.get(prompt_id(row)) for row in prompts]
    return [None if name is None else points[name] for name in preferred]


def judge_panel(
    judge: Teacher,
    ask: Ask,
    *,
    templates: Path | None = None,
    seed: int = 0,
    max_tokens: int = 1024,
) -> Panel:
    """The judge with its templates, as `judge_pairs` takes it.

    Args: templates: folder of the user's own. max_tokens: limit of a judgement."""
    return Panel(judge, ask, load_templates(TEMPLATES, templates), seed, max_tokens)


def judge_pairs(
    panel: Panel,
    prompts: Sequence[Row],
    answers: Sequence[str | None],
    others: Sequence[str | None],
) -> Verdicts:
    """Let the judge compare each prompt's two answers in both orders.

    Equal texts are a tie without a call. A reply that can't be read is asked for again, as feedback
    does, and then left out."""
    asked = questions(answers, others)
    requests = [
        compare_request(panel, prompts[i], first, second)
        for (i, _), (first, second) in asked.items()
    ]
    judged = dict(zip(asked, ask_judge(panel, requests, lambda text, _: parse_verdict(text))))
    comparisons = make_comparisons(
        answers, others, {at: judgement.parsed for at, judgement in judged.items()}
    )
    calls: list[Row] = [
        {
            "prompt_id": prompts[i]["prompt_id"],
            "shown_as": shown_as,
            "verdict": judgement.parsed,
            "digests": [text_digest(text) for text in asked[i, shown_as]],
            "reply": judgement.text,
            "calls": judgement.calls,
        }
        for (i, shown_as), judgement in judged.items()
    ]
    return Verdicts(comparisons, calls)


def questions(
    ours: Sequence[str | None], theirs: Sequence[str | None]
) -> dict[tuple[int, str], tuple[str, str]]:
    """The texts to be shown as A and B for each prompt's index and the side of our answer; equal
    texts and missing ones ask nothing."""
    asked: dict[tuple[int, str], tuple[str, str]] = {}
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our is not None and their is not None and our != their:
            asked[i, "A"] = (our, their)
            asked[i, "B"] = (their, our)
    return asked


def make_comparisons(
    ours: Sequence[str | None],
    theirs: Sequence[str | None],
    verdicts: Mapping[tuple[int, str], str | None],
) -> list[Comparison | None]:
    """Verdicts by the prompt's index and the side of our answer become one comparison a prompt."""
    found: list[Comparison | None] = []
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our is None or their is None:
            found.append(None)
            continue
        lengths = (len(our), len(their))
        if our == their:
            found.append(Comparison("tie", "tie", lengths, False))
        else:
            found.append(Comparison(verdicts[i, "A"], verdicts[i, "B"], lengths))
    return found


def compare_request(panel: Panel, prompt: Row, first: str, second: str) -> Request:
    """The question which of two answers is better."""
    content = fill(
        panel.templates["compare"], instruction=format_prompt(prompt), first=first, second=second
    )
    return judge_request(
        panel, content, {"task": "compare", "row": prompt, "texts": [first, second]}
    )


def compare_models(
    panel: Panel,
    prompts: Sequence[Row],
    answers: Mapping[str, Sequence[str | None]],
    labels: Sequence[float | None],
    out: Path,
    by: str | None,
    scores: bool,
) -> dict[str, Row]:
    """Compare each model's answers with those of every model before it; write NAME.jsonl and
    verdicts.jsonl into the folder `out`.

    Args:
        labels: points of the second model by people.
        by: a field of the prompts.
        scores: also ask for a critique and a score, 1 to 10, of every answer.

    Returns: `pairs`, "B over A": see `summarise`; `models`, name: `score`. Each has its results for
    each value of the field under `by`."""
    groups = group_prompts(prompts, by)
    results: dict[str, Row] = {"pairs": {}, "models": {}}
    verdicts: list[Row] = []
    for n, (name, texts) in enumerate(answers.items()):
        critiques = ask_critiques(panel, prompts, texts) if scores else {}
        write_rows(out / f"{name}.jsonl", answer_rows(prompts, texts, critiques))
        if scores:
            results["models"][name] = for_groups(groups, partial(score_of, critiques))
        for other in list(answers)[:n]:
            compared, calls = judge_pairs(panel, prompts, texts, answers[other])
            verdicts += [{"model": name, "over": other, **call} for call in calls]
            results["pairs"][f"{name} over {other}"] = for_groups(
                groups, partial(summarise_group, compared, labels)
            )
    write_rows(out / "verdicts.jsonl", verdicts)
    return results


def group_prompts(prompts: Sequence[Row], by: str | None) -> dict[str | None, list[int]]:
    """Indices of all prompts under None, and of those with each value of the field `by`."""
    groups: dict[str | None, list[int]] = {None: list(range(len(prompts)))}
    if by:
        values = [str(row[by]) for row in prompts]
        for value in sorted(set(values)):
            groups[value] = [i for i, of_prompt in enumerate(values) if of_prompt == value]
    return groups


def for_groups(
    groups: Mapping[str | None, Sequence[int]], summary: Callable[[Sequence[int]], Row]
) -> Row:
    """The summary of all prompts, and under `by` that of each value of the field."""
    found = {value: summary(indices) for value, indices in groups.items()}
    whole = found.pop(None)
    return {**whole, "by": found} if found else whole


def summarise_group(
    compared: Sequence[Comparison | None], labels: Sequence[float | None], indices: Sequence[int]
) -> Row:
    """`summarise` of the prompts of these indices."""
    return summarise([compared[i] for i in indices], [labels[i] for i in indices])


def ask_critiques(
    panel: Panel, prompts: Sequence[Row], texts: Sequence[str | None]
) -> dict[int, Judgement[Critique]]:
    """The judge's critique of every answer that there is, by the prompt's index."""
    given = {i: text for i, text in enumerate(texts) if text is not None}
    requests = [critique_request(panel, prompts[i], text) for i, text in given.items()]
    return dict(zip(given, ask_judge(panel, requests, lambda text, _: parse_critique(text))))


def points_of(critique: Judgement[Critique]) -> float | None:
    """The score, 1 to 10; None where the judge's reply could not be read."""
    return None if critique.parsed is None else float(critique.parsed.points)


def answer_rows(
    prompts: Sequence[Row],
    texts: Sequence[str | None],
    critiques: Mapping[int, Judgement[Critique]],
) -> Iterator[Row]:
    """The rows of NAME.jsonl."""
    for i, (prompt, text) in enumerate(zip(prompts, texts)):
        row: Row = {"prompt_id": prompt["prompt_id"], "prompt": prompt["prompt"]}
        if text is None:
            row["unanswered"] = True
        else:
            row["text"] = text
        if i in critiques:
            row["score"] = points_of(critiques[i])
            row["critique"] = critiques[i].text
            row["calls"] = critiques[i].calls
        yield row


def score_of(critiques: Mapping[int, Judgement[Critique]], indices: Sequence[int]) -> Row:
    """The mean score of the answers to the prompts of these indices."""
    points = [points_of(critiques[i]) for i in indices if i in critiques]
    return {
        **mean_with_interval("score", [value for value in points if value is not None]),
        "unparsed": points.count(None),
        "unanswered": len(indices) - len(points),
    }
