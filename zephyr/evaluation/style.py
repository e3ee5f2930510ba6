"""The style of answers, their length and Markdown, is told apart from what else wins battles: a
Bradley-Terry fit with style features, as arena-hard-auto's style control (Li et al. 2024,
lmsys.org/blog/2024-08-28-style-control).

Shapes: J judgments, M models, F features, D = M + F, B resamples."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zephyr.config import BadInput
from zephyr.evaluation.statistics import described

CODE = re.compile(r"```([^`]*)```")
HEADERS = re.compile(r"^(#{1,6})\s", re.MULTILINE)
ORDERED = re.compile(r"^\s*\d+\.\s", re.MULTILINE)
UNORDERED = re.compile(r"^\s*[-*+]\s", re.MULTILINE)
STARS = re.compile(r"\*\*[^*\n]+\*\*")
UNDERSCORES = re.compile(r"__[^_\n]+__")
FEATURES = ("token_len", "header_count", "list_count", "bold_count")
REFITS = 200
RIDGE = 1e-6  # keeps the fit finite where a model wins or loses every battle
NEWTON_STEPS = 60


class Style(NamedTuple):
    """What is controlled of an answer: its tokens, and its headers, list items and bold texts."""

    tokens: int
    headers: int
    items: int
    bold: int


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """The counts of arena-hard-auto's `metadata`, without `token_len`. What stands in a block of
    code is taken out first, here as there wherever else in the answer it stands too."""
    for block in CODE.findall(text):
        text = text.replace(block, "") if block else text
    levels = [len(marks) for marks in HEADERS.findall(text)]
    return {
        "header_count": {f"h{level}": levels.count(level) for level in range(1, 7)},
        "list_count": {
            "ordered": len(ORDERED.findall(text)),
            "unordered": len(UNORDERED.findall(text)),
        },
        "bold_count": {"**": len(STARS.findall(text)), "__": len(UNDERSCORES.findall(text))},
    }


def style_metadata(text: str, count_tokens: Callable[[str], int]) -> dict[str, Any]:
    """The `metadata` that arena-hard-auto gives an answer."""
    return {"token_len": count_tokens(text), **markdown_counts(text)}


def read_style(metadata: Mapping[str, Any]) -> Style:
    """The style that an answer's `metadata` tells. Raises: KeyError without one of `FEATURES`."""
    counts = [metadata[name] for name in FEATURES]
    return Style(*(count if isinstance(count, int) else sum(count.values()) for count in counts))


def open_token_counter(tokenizer: str | None) -> Callable[[str], int]:
    """A function that counts the tokens of a text.

    Args: tokenizer: of a model folder or hub id; None: gpt-4o's in `tiktoken`, as arena-hard-auto.
    Raises: BadInput without tiktoken or its file."""
    if tokenizer is not None:
        from zephyr.data.tokenizer import read_tokenizer

        loaded = read_tokenizer(tokenizer)
        return lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])
    try:
        import tiktoken

        encoding = tiktoken.encoding_for_model("gpt-4o")
    except ImportError:
        raise BadInput(
            "the length of an answer is counted by tiktoken: pip install 'zephyr[eval]', or name "
            "a tokenizer with --length-tokenizer"
        ) from None
    except OSError as error:
        raise BadInput(
            "tiktoken can't load gpt-4o's tokens, which it downloads once "
            f"({type(error).__name__}): name a tokenizer with --length-tokenizer"
        ) from None
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def style_differences(ours_J: Sequence[Style], theirs_J: Sequence[Style]) -> np.ndarray:
    """How a model's answers differ from the baseline's in each feature, relative to their sum:
    length as it is, the others per token. [J, F]"""
    ours_JF, theirs_JF = np.array(ours_J, dtype=float), np.array(theirs_J, dtype=float)
    both_J = ours_JF[:, 0] + theirs_JF[:, 0]
    length_J = (ours_JF[:, 0] - theirs_JF[:, 0]) / np.where(both_J > 0, both_J, 1)
    ours_JF, theirs_JF = (of[:, 1:] / (of[:, :1] + 1) for of in (ours_JF, theirs_JF))
    markdown_JF = (ours_JF - theirs_JF) / (ours_JF + theirs_JF + 1)
    return np.concatenate([length_J[:, None], markdown_JF], axis=1)


def controlled_win_rates(
    models_J: Sequence[str],
    uids_J: Sequence[str],
    ours_J: Sequence[Style],
    theirs_J: Sequence[Style],
    battles_J: Sequence[Sequence[float]],
) -> dict[str, dict[str, object]]:
    """Win rates in percent over one baseline, by model, from one fit of all judgments:
    P(win) = sigmoid(strength of the model + weights . features).

    Features are normalised over battles to mean 0 and standard deviation 1, as in arena-hard-auto.
    So `win_rate` is at the mean style of all battles in the fit: with one model that is its own
    style, and nothing is controlled. `equal_style` is of the same fit, where both answers have the
    same style. ci95 is over resampled questions; ci90 over battles, arena-hard-auto's interval.

    Args: *_J: of each judgment: model, question, style of the model's and of the baseline's answer,
    and the points of its battles."""
    names = sorted(set(models_J))
    model_J = np.array([names.index(name) for name in models_J])
    count_J = np.array([len(points) for points in battles_J], dtype=float)
    won_J = np.array([sum(points) for points in battles_J])
    feature_JF = style_differences(ours_J, theirs_J)
    mean_F = count_J @ feature_JF / count_J.sum()
    spread_F = np.sqrt(
        count_J @ (feature_JF - mean_F) ** 2 / max(1.0, count_J.sum() - 1)
    )  # of the sample, as torch.std
    scale_F = np.where(spread_F > 1e-12, spread_F, 1.0)
    design_JD = np.concatenate(
        [np.eye(len(names))[model_J], (feature_JF - mean_F) / scale_F], axis=1
    )
    fit_D = fit_battles(design_JD, count_J, won_J)
    shift_D = np.concatenate([np.ones(len(names)), -mean_F / scale_F])  # to equal styles
    by_question = resampled_fits(
        fit_D, design_JD, question_weights(uids_J), count_J, won_J
    )  # [B, D]
    by_battle_BD = battle_fits(fit_D, design_JD, battles_J)
    results = {}
    for m, name in enumerate(names):
        fits_BD = np.concatenate([fit_D[None], by_question])
        rates_B = percent(fits_BD[:, m])
        equal_B = percent(fits_BD[:, m] + fits_BD[:, len(names) :] @ shift_D[len(names) :])
        battles_B = percent(by_battle_BD[:, m])
        n = len({uid for uid, of in zip(uids_J, models_J) if of == name})
        results[name] = {
            **described("win_rate", rates_B, n),
            "ci90": np.quantile(battles_B, [0.05, 0.95]).tolist(),
            "equal_style": described("win_rate", equal_B, n),
            "weights": dict(zip(FEATURES, fit_D[len(names) :].tolist())),
            "models_in_fit": len(names),
        }
    return results


def percent(logit_B: np.ndarray) -> np.ndarray:
    rate_B: np.ndarray = 100 / (1 + np.exp(-logit_B))
    return rate_B


def fit_battles(
    design_JD: np.ndarray,
    count_J: np.ndarray,
    won_J: np.ndarray,
    start_D: np.ndarray | None = None,
) -> np.ndarray:
    """The logistic fit of `won_J` points of `count_J` battles, by Newton's method. [D]"""
    fit_D = np.zeros(design_JD.shape[1]) if start_D is None else start_D.copy()
    ridge_DD = RIDGE * np.eye(len(fit_D))
    for _ in range(NEWTON_STEPS):
        p_J = 1 / (1 + np.exp(-design_JD @ fit_D))
        slope_D = (won_J - count_J * p_J) @ design_JD - RIDGE * fit_D
        curve_DD = (design_JD * (count_J * p_J * (1 - p_J))[:, None]).T @ design_JD + ridge_DD
        step_D = np.linalg.solve(curve_DD, slope_D).clip(-1, 1)
        fit_D += step_D
        if np.abs(step_D).max() < 1e-9:
            break
    return fit_D


def question_weights(uids_J: Sequence[str]) -> np.ndarray:
    """How often each judgment's question is drawn in every resample. [B, J]"""
    _, question_J = np.unique(np.array(uids_J), return_inverse=True)
    questions = int(question_J.max()) + 1
    rng = np.random.default_rng(0)
    drawn_BQ = rng.multinomial(questions, np.full(questions, 1 / questions), size=REFITS)
    return drawn_BQ[:, question_J].astype(float)


def resampled_fits(
    fit_D: np.ndarray,
    design_JD: np.ndarray,
    weight_BJ: np.ndarray,
    count_J: np.ndarray,
    won_J: np.ndarray,
) -> np.ndarray:
    """The fit of every resample. [B, D]"""
    fits = [
        fit_battles(design_JD, weight_J * count_J, weight_J * won_J, fit_D)
        for weight_J in weight_BJ
    ]
    return np.array(fits)


def battle_fits(
    fit_D: np.ndarray, design_JD: np.ndarray, battles_J: Sequence[Sequence[float]]
) -> np.ndarray:
    """The fits of resampled battles, each drawn by itself. [B, D]"""
    of_battle = np.repeat(np.arange(len(battles_J)), [len(points) for points in battles_J])
    points = np.concatenate([np.array(of) for of in battles_J])
    rng = np.random.default_rng(0)
    fits = []
    for _ in range(REFITS // 2):
        drawn = rng.integers(len(points), size=len(points))
        counts_J = np.bincount(of_battle[drawn], minlength=len(battles_J)).astype(float)
        won_J = np.bincount(of_battle[drawn], weights=points[drawn], minlength=len(battles_J))
        fits.append(fit_battles(design_JD, counts_J, won_J, fit_D))
    return np.array(fits)
