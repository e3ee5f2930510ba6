"""Answers to two-turn questions become a judge's questions, and its judgements scores; all records
are in FastChat's formats."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from zephyr.config import BadInput
from zephyr.evaluation.compare import FIRST_WON, Comparison
from zephyr.evaluation.statistics import mean_with_interval

Row = Mapping[str, object]
Value = tuple[object, int, float | None]  # question, turn, and score or points; None: no verdict
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


def temperature(question: Row) -> float:
    """At which a question is answered: its own, or its category's; 0.7 where it has neither."""
    return float(
        question.get("required_temperature", TEMPERATURES.get(str(question["category"]), 0.7))
    )


def parse_rating(judgment: str) -> int | float:
    """The first [[n]] of a judgement, else its first [n], as FastChat reads it; -1 where there is
    neither, or n is above 10."""
    found = RATINGS[0].search(judgment) or RATINGS[1].search(judgment)
    number = float(found[1]) if found else -1
    return -1 if number > 10 else int(number) if number == int(number) else number


def judge_messages(
    kind: str,
    templates: Mapping[str, Row],
    question: Row,
    reference: Sequence[str],
    answers: Sequence[Sequence[str]],
    turn: int,
) -> tuple[str, tuple[dict[str, str], ...]]:
    """The template's name, and the system's and the user's turn of a question to the judge, of
    `kind` single or pair.

    Args: templates: FastChat's by name, or ours. reference: right answers to both turns, or none.
    answers: both turns of each model. Raises: BadInput where there is no such template, or no such
    field as it has."""
    name = FASTCHAT_TEMPLATES[kind][question["category"] in WITH_REFERENCE] + (
        "-multi-turn" if turn == 2 else ""
    )
    name, fields = (
        name if name in templates else f"mt_bench_{kind}",
        {"question": question["turns"][0]},
    )
    fields["reference"] = "".join(
        f'\nA right answer to turn {n}:\n"""\n{text}\n"""\n'
        for n, text in enumerate(reference[:turn], 1)
    )
    for key, texts in (("question", question["turns"]), ("ref_answer", reference)):
        fields |= {f"{key}_{n}": text for n, text in enumerate(texts, 1)}
    for who, turns in zip(("_a", "_b") if kind == "pair" else ("",), answers):
        said = "\n\n".join(
            f"[user]\n{user}\n\n[assistant]\n{text}"
            for user, text in list(zip(question["turns"], turns))[:turn]
        )
        fields |= {
            f"answer{who}": turns[0],
            f"answer{who}_1": turns[0],
            f"answer{who}_2": turns[1],
            f"conversation{who}": said,
        }
    try:
        contents = (
            str(templates[name]["system_prompt"]),
            str(templates[name]["prompt_template"]).format(**fields),
        )
    except (LookupError, ValueError) as error:
        raise BadInput(
            f"judge template {name!r}: {error!r}; a prompt_template with {', '.join(fields)} is wanted"
        ) from None
    return name, tuple(
        {"role": role, "content": content} for role, content in zip(("system", "user"), contents)
    )


def score_breakdown(
    name: str, values: Sequence[Value], categories: Mapping[object, str]
) -> dict[str, object]:
    """The mean `name` with n, stderr, ci95 and unparsed, of all values, by turn, and by category
    where these are known.

    The turns of a question go together: stderr and ci95 are over questions, of the mean's linear
    expansion (Cochran 1977, chapter 6)."""

    def of(part: Sequence[Value]) -> dict[str, object]:
        read = [(question, value) for question, _, value in part if value is not None]
        mean, apart = sum(value for _, value in read) / max(1, len(read)), defaultdict(float)
        for question, value in read:
            apart[question] += value - mean
        over_questions = mean_with_interval(
            name, [mean + distance * len(apart) / len(read) for distance in apart.values()]
        )
        return {
            **over_questions,
            "n": len(read),
            "questions": len(apart),
            "unparsed": len(part) - len(read),
        }

    by = {
        "turns": {
            str(turn): of([v for v in values if v[1] == turn])
            for turn in sorted({v[1] for v in values})
        }
    }
    if categories:
        by["categories"] = {
            c: of([v for v in values if categories.get(v[0]) == c])
            for c in sorted(set(categories.values()))
        }
    return {**of(values), **by}


def score_judgments(
    records: Iterable[tuple[str, Row]], categories: Mapping[object, str]
) -> dict[str, dict[str, object]]:
    """Scores by model, of FastChat's single judgements; or win rates by "A over B", of its pairwise
    ones.

    A score of -1, none, or one outside 0 to 10 is no verdict: left out and counted. A win is one in
    both orders; verdicts that differ are a tie, 0.5. Args: records: place and row. categories: of
    questions. Raises: BadInput naming the place of a row that is neither."""
    values, bias = defaultdict(list), defaultdict(list)
    for place, row in records:
        try:
            question, turn = row["question_id"], int(row["turn"])
            if "g1_winner" in row:
                verdicts = (
                    {"model_1": a, "model_2": b, "tie": "tie"}.get(str(row[f"g{n}_winner"]))
                    for n, a, b in ("1AB", "2BA")
                )
                name, pair = (
                    f"{row['model_1']} over {row['model_2']}",
                    Comparison(*verdicts, (0, 0)),
                )
                value = pair.points()
                bias[name] += (
                    [(question, turn, FIRST_WON[pair[0]] + FIRST_WON[pair[1]])]
                    if value is not None
                    else []
                )
            else:
                name, value = str(row["model"]), float(row.get("score", -1))
                value = value if 0 <= value <= 10 else None
            values[name].append((question, turn, value))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{place}: a judgement of FastChat's is wanted (question_id, model, score, turn): {error!r}"
            ) from None
    results = {
        name: score_breakdown("win_rate" if name in bias else "score", of, categories)
        for name, of in values.items()
    }
    for name, of in bias.items():
        points = [value for *_, value in values[name]]
        results[name] |= {
            "wins": points.count(1.0),
            "ties": points.count(0.5),
            "losses": points.count(0.0),
            "position_bias": score_breakdown("first_won", of, {}),
        }
    return results
