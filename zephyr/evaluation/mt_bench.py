"""MT-Bench: answers to two-turn questions become questions to a judge, and its judgements become
scores. All records are in FastChat's formats."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zephyr.config import BadInput
from zephyr.evaluation.compare import Comparison
from zephyr.evaluation.statistics import clustered_mean

Row = Mapping[str, Any]
TEMPERATURES = {
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}  # others: 0.7
WITH_REFERENCE = ("math", "reasoning", "coding")
FASTCHAT_TEMPLATES = {
    "single": ("single-v1", "single-math-v1"),
    "pair": ("pair-v2", "pair-math-v1"),
}
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


class Value(NamedTuple):
    """One judgement: its score or points, None without a verdict."""

    question: object  # its id
    turn: int
    points: float | None


def temperature(question: Row) -> float:
    """The sampling temperature of a question's answers: its own, or its category's, else 0.7."""
    default = TEMPERATURES.get(str(question["category"]), 0.7)
    return float(question.get("required_temperature", default))


def parse_rating(judgment: str) -> int | float:
    """The first [[n]] of a judgement, else its first [n], as FastChat reads it; -1 where there is
    neither, or n is above 10."""
    found = RATINGS[0].search(judgment) or RATINGS[1].search(judgment)
    number = float(found[1]) if found else -1.0
    if number > 10:
        return -1
    return int(number) if number == int(number) else number


def judge_messages(
    kind: str,
    templates: Mapping[str, Mapping[str, object]],
    question: Row,
    reference: Sequence[str],
    answers: Sequence[Sequence[str]],
    turn: int,
) -> tuple[str, tuple[dict[str, str], ...]]:
    """What the judge is asked about one answer (kind `single`), or two (`pair`).

    Args:
        templates: FastChat's by name, or ours.
        reference: right answers to both turns, or none.
        answers: both turns of each model.
        turn: 1 or 2, the turn that is judged.

    Returns: the template's name, and the system turn and the user turn.

    Raises: BadInput where there is no such template, or it has a field that is not filled."""
    name = FASTCHAT_TEMPLATES[kind][question["category"] in WITH_REFERENCE]
    if turn == 2:
        name += "-multi-turn"
    if name not in templates:
        name = f"mt_bench_{kind}"
    fields = template_fields(kind, question, reference, answers, turn)
    try:
        system = str(templates[name]["system_prompt"])
        user = str(templates[name]["prompt_template"]).format(**fields)
    except (LookupError, ValueError) as error:
        raise BadInput(
            f"judge template {name!r}: {error!r}; expected a prompt_template with "
            f"{', '.join(fields)}"
        ) from None
    return name, ({"role": "system", "content": system}, {"role": "user", "content": user})


def template_fields(
    kind: str,
    question: Row,
    reference: Sequence[str],
    answers: Sequence[Sequence[str]],
    turn: int,
) -> dict[str, str]:
    """The fields of FastChat's templates and of ours, by name."""
    questions = question["turns"]
    shown_reference = "".join(
        f'\nA right answer to turn {n}:\n"""\n{text}\n"""\n'
        for n, text in enumerate(reference[:turn], 1)
    )
    fields = {"question": questions[0], "reference": shown_reference}
    for key, texts in (("question", questions), ("ref_answer", reference)):
        fields |= {f"{key}_{n}": text for n, text in enumerate(texts, 1)}
    for side, turns in zip(("_a", "_b") if kind == "pair" else ("",), answers):
        conversation = [
            f"[user]\n{user}\n\n[assistant]\n{text}" for user, text in zip(questions, turns)
        ]
        fields |= {
            f"answer{side}": turns[0],
            f"answer{side}_1": turns[0],
            f"answer{side}_2": turns[1],
            f"conversation{side}": "\n\n".join(conversation[:turn]),
        }
    return fields


def score_breakdown(
    name: str, values: Sequence[Value], categories: Mapping[object, str]
) -> dict[str, object]:
    """The mean, called `name`, with n, stderr, ci95 and unparsed: of all values, by turn, and by
    category if categories are known."""
    turns = sorted({value.turn for value in values})
    found = mean_of_values(name, values)
    found["turns"] = {
        str(turn): mean_of_values(name, [value for value in values if value.turn == turn])
        for turn in turns
    }
    if categories:
        found["categories"] = {
            category: mean_of_values(
                name, [value for value in values if categories.get(value.question) == category]
            )
            for category in sorted(set(categories.values()))
        }
    return found


def mean_of_values(name: str, values: Sequence[Value]) -> dict[str, object]:
    """The mean of the values that have points, where the turns of one question belong together."""
    read = [(value.question, value.points) for value in values if value.points is not None]
    found = clustered_mean(name, read)
    questions = found.pop("clusters")
    return {**found, "questions": questions, "unparsed": len(values) - len(read)}


def score_judgments(
    records: Iterable[tuple[str, Row]], categories: Mapping[object, str]
) -> dict[str, dict[str, object]]:
    """Scores by model, of FastChat's single judgements; or win rates by "A over B", of its pairwise
    ones.

    A score of -1, none, or one outside 0 to 10 is no verdict: it is left out and counted. A win is
    a win in both orders; verdicts that differ are a tie, 0.5.

    Args: records: place and row. categories: by question id.

    Raises: BadInput naming the place of a row that is neither kind."""
    scores: defaultdict[str, list[Value]] = defaultdict(list)
    first_won: defaultdict[str, list[Value]] = defaultdict(list)
    for place, row in records:
        try:
            question, turn = row["question_id"], int(row["turn"])
            if "g1_winner" in row:
                name = f"{row['model_1']} over {row['model_2']}"
                pair = Comparison(game_verdict(row, 1), game_verdict(row, 2), (0, 0))
                scores[name].append(Value(question, turn, pair.points()))
                of_first = first_won[name]
                if pair.points() is not None:
                    of_first.append(Value(question, turn, pair.first_won()))
            else:
                name, score = str(row["model"]), float(row.get("score", -1))
                points = score if 0 <= score <= 10 else None
                scores[name].append(Value(question, turn, points))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{place}: expected a judgement of FastChat's (question_id, model, score, turn): "
                f"{error!r}"
            ) from None
    results = {}
    for name, values in scores.items():
        key = "win_rate" if name in first_won else "score"
        results[name] = score_breakdown(key, values, categories)
    for name, values in first_won.items():
        all_points = [value.points for value in scores[name]]
        results[name] |= {
            "wins": all_points.count(1.0),
            "ties": all_points.count(0.5),
            "losses": all_points.count(0.0),
            "position_bias": score_breakdown("first_won", values, {}),
        }
    return results


def require_turns(
    records: Iterable[tuple[str, Row]], answers: Mapping[str, Mapping[object, Sequence[str]]]
) -> None:
    """Check that judgements are about the answers that files hold: the prompts that the records
    keep must show them.

    Args: answers: both turns by model and question id.

    Raises: BadInput for a question without an answer, an answer without a judgement, or a prompt
    that shows another answer."""
    judged: defaultdict[str, set[object]] = defaultdict(set)
    for place, row in records:
        prompts = [str(row[key]) for key in ("user_prompt", "g1_user_prompt") if key in row]
        for key in ("model", "model_1", "model_2"):
            name, question = str(row.get(key)), row.get("question_id")
            if name not in answers:
                continue
            judged[name].add(question)
            turns = answers[name].get(question)
            if turns is None:
                raise BadInput(f"{place}: the file of {name} has no answer to question {question}")
            if any(turns[int(row["turn"]) - 1] not in prompt for prompt in prompts):
                raise BadInput(
                    f"{place}: the judgement of question {question} is about another answer than "
                    f"that in the file of {name}: judge these answers again"
                )
    for name, of_model in answers.items():
        if extra := [question for question in of_model if question not in judged[name]]:
            raise BadInput(f"{name}: no judgement of its answer to question {extra[0]!r}")


def game_verdict(row: Row, game: int) -> str | None:
    """The verdict of game 1 or 2 as A, the answer shown first, B or tie; None: no verdict."""
    shown = ("model_1", "model_2") if game == 1 else ("model_2", "model_1")
    names = {shown[0]: "A", shown[1]: "B", "tie": "tie"}
    return names.get(str(row[f"g{game}_winner"]))
