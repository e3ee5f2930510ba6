"""`zephyr eval arena-hard`: labels, battles and style control against plain recomputation, and the
command on the embedded world."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from proxy import Proxy
from scipy.optimize import minimize

from zephyr import cli
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.arena_hard import (
    POINTS,
    Judgment,
    parse_label,
    read_judgment,
    read_judgments,
    score_judgments,
)
from zephyr.evaluation.style import Style, markdown_counts, read_style
from zephyr.world.answerers import answer
from zephyr.world.facts import build_world
from zephyr.world.rules import judge
from zephyr.world.teacher import prompts_by_text

WORLD = build_world(0)
PROMPTS = list(prompts_by_text(WORLD).values())[:20]
LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


def run(*arguments: object) -> None:
    """The command, without `main`, which would turn BadInput into a line."""
    cli.run(["eval", "arena-hard", *map(str, arguments)])


@pytest.mark.parametrize(
    "reply,label",
    [
        ("My final verdict is tie: [[A=B]]", "A=B"),
        ("at first [[A>B]], but: [[b>>a]].", "B>>A"),
        ("[A>B] in one bracket", "A>B"),
        ("[A>B] first, then [[B>A]]", "B>A"),
        ("[[A<<B]]", "A<<B"),
        ("[[A>>>B]]", None),
        ("[[C]]", None),
        ("", None),
    ],
)
def test_the_last_label_counts(reply: str, label: str | None) -> None:
    """arena-hard-auto takes the last label in two brackets, else in one. Fails where the first is
    taken, or an unknown label is a verdict."""
    assert parse_label(reply) == label


def drawn_judgments(
    models: int, questions: int
) -> tuple[list[Judgment], dict[str, dict[str, Style]]]:
    """Random labels, some missing, and the styles of all answers; longer answers win more often."""
    rng = random.Random(0)
    names = [f"m{i}" for i in range(models)]
    styles = {
        name: {
            f"q{q}": Style(
                rng.randint(50, 900), rng.randint(0, 9), rng.randint(0, 30), rng.randint(0, 12)
            )
            for q in range(questions)
        }
        for name in (*names, "base")
    }
    judgments = []
    for strength, name in enumerate(names):
        for uid, style in styles[name].items():
            tilt = strength / 2 - 0.5 + (style.tokens - styles["base"][uid].tokens) / 600

            def label(sign: int, tilt: float = tilt) -> str | None:
                x = sign * tilt + rng.gauss(0, 1)
                at = sum(x < edge for edge in (1, 0.2, -0.2, -1))
                return None if rng.random() < 0.03 else LABELS[at]

            games = (label(-1), label(1))
            judgments.append(Judgment(uid, "hard_prompt", "j", name, "base", games, None))
    return judgments, styles


def test_battles_are_arena_hard_autos() -> None:
    """The win rate and the 90 % interval of battles, from labels spelled out one by one. Fails
    where game 1 is not the baseline's turn as A, a clear win does not count for three, or half a
    question is kept."""
    judgments, _ = drawn_judgments(2, 120)
    results = score_judgments(judgments)
    of_a = {"A>>B": [1] * 3, "A>B": [1], "A=B": [0.5], "B>A": [0], "B>>A": [0] * 3}
    for name in ("m0", "m1"):
        battles, read, unparsed = [], 0, 0
        for of in judgments:
            if of.model == name and None in of.labels:
                unparsed += 1
            elif of.model == name:
                battles += of_a[of.labels[1]] + [1 - points for points in of_a[of.labels[0]]]
                read += 1
        found = results[f"{name} on hard_prompt"]
        assert found["win_rate"] == pytest.approx(100 * sum(battles) / len(battles))
        assert (found["n"], found["unparsed"], found["battles"]["n"]) == (
            read,
            unparsed,
            len(battles),
        )
        draws = np.random.default_rng(1).choice(battles, (2000, len(battles))).mean(axis=1)
        assert found["battles"]["ci90"] == pytest.approx(
            100 * np.quantile(draws, [0.05, 0.95]), abs=0.6
        )
        low, high = found["ci95"]
        ninety = found["battles"]["ci90"]
        assert low < ninety[0] < found["win_rate"] < ninety[1] < high


def test_exchanging_the_games_mirrors_the_rate() -> None:
    """The same games from the baseline's side give 100 minus the rate. Fails where a label is not
    the mirror of its other spelling."""
    mirrored = {label: label.translate(str.maketrans("AB", "BA")) for label in POINTS}
    assert all(
        POINTS[other] == (1 - POINTS[label][0], POINTS[label][1])
        for label, other in mirrored.items()
    )
    judgments, _ = drawn_judgments(1, 60)
    turned = [of._replace(labels=of.labels[::-1]) for of in judgments]
    (rate,) = (of["win_rate"] for of in score_judgments(judgments).values())
    (other,) = (of["win_rate"] for of in score_judgments(turned).values())
    assert rate == pytest.approx(100 - other) and rate != 50


def plain_style_fit(
    judgments: list[Judgment], styles: dict[str, dict[str, Style]]
) -> tuple[np.ndarray, np.ndarray]:
    """arena-hard-auto's control of style, battle by battle: one column per model, +1, and one for
    the baseline, -1; features normalised over battles; the likelihood's maximum by SciPy."""
    names = sorted({of.model for of in judgments} | {"base"})
    columns, features, points = [], [], []
    for of in judgments:
        if None in of.labels:
            continue
        column = np.zeros(len(names))
        column[names.index(of.model)], column[names.index("base")] = 1, -1
        ours, theirs = styles[of.model][of.uid], styles["base"][of.uid]
        feature = [(ours.tokens - theirs.tokens) / (ours.tokens + theirs.tokens)]
        for our, their in zip(ours[1:], theirs[1:]):
            density, other = our / (ours.tokens + 1), their / (theirs.tokens + 1)
            feature.append((density - other) / (density + other + 1))
        for point in of.battles() or ():
            columns.append(column)
            features.append(feature)
            points.append(point)
    raw, won = np.array(features), np.array(points)
    normal = (raw - raw.mean(axis=0)) / raw.std(axis=0, ddof=1)
    design = np.concatenate([np.array(columns), normal], axis=1)

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        logits = design @ fit
        grad = design.T @ (1 / (1 + np.exp(-logits)) - won)
        return float(np.logaddexp(0, logits).sum() - won @ logits), grad

    fit = minimize(loss, np.full(design.shape[1], 0.5), jac=True, tol=1e-12).x
    strengths = fit[: len(names)] - fit[names.index("base")]
    rates = 100 / (1 + np.exp(-np.delete(strengths, names.index("base"))))
    return rates, fit[len(names) :]


def test_style_control_is_the_plain_fit() -> None:
    """Against the maximum of the likelihood over single battles, three models in one fit. Fails
    where features, their normalisation, or the weight of a battle differ."""
    judgments, styles = drawn_judgments(3, 80)
    found = [of["style_controlled"] for of in score_judgments(judgments, styles).values()]
    rates, weights = plain_style_fit(judgments, styles)
    assert [of["win_rate"] for of in found] == pytest.approx(rates.tolist(), abs=1e-3)
    assert list(found[0]["weights"].values()) == pytest.approx(weights.tolist(), abs=1e-4)
    assert weights[0] > 0.3, "length must matter, or there is nothing to control"
    assert all(of["ci95"][0] < of["win_rate"] < of["ci95"][1] for of in found)


def test_one_model_is_not_controlled_but_at_equal_style() -> None:
    """Features are centred on the battles of the fit: with one model the rate stays about what it
    was, as in arena-hard-auto, while `equal_style` takes the length away. Fails where one is told
    for the other."""
    judgments, styles = drawn_judgments(1, 150)
    longer = {
        "base": styles["base"],
        "m0": {
            uid: style._replace(tokens=style.tokens + 800) for uid, style in styles["m0"].items()
        },
    }
    won = [of._replace(labels=("B>A" if i % 4 else "A>B",) * 2) for i, of in enumerate(judgments)]
    won = [
        of._replace(labels=(of.labels[0], of.labels[0].translate({65: 66, 66: 65}))) for of in won
    ]
    (of,) = score_judgments(won, longer).values()
    controlled = of["style_controlled"]
    assert abs(controlled["win_rate"] - of["win_rate"]) < 1
    assert controlled["equal_style"]["ci95"][1] - controlled["equal_style"]["ci95"][0] > (
        controlled["ci95"][1] - controlled["ci95"][0]
    )


def test_markdown_is_counted_as_there() -> None:
    """By hand: text in a block of code does not count, nor a mark without its space."""
    text = (
        "# One\n### Three\n#none\n* a\n  - b\n1. c\n10. d\n**bold** and __also__ and **broken\n"
        "```py\n# not one\n- nor this\n```\n"
    )
    counts = markdown_counts(text)
    assert counts["header_count"] == {"h1": 1, "h2": 0, "h3": 1, "h4": 0, "h5": 0, "h6": 0}
    assert counts["list_count"] == {"ordered": 2, "unordered": 2}
    assert counts["bold_count"] == {"**": 1, "__": 1}
    assert read_style({"token_len": 7, **counts}) == Style(7, 2, 4, 2)


def test_records_of_the_first_version_are_read() -> None:
    """v0.1 wrote question_id, and one text a judgement. Fails where its baseline is unknown, or a
    game without a verdict is not left out."""
    row = {
        "question_id": "1",
        "model": "m",
        "judge": "j",
        "games": [
            {"user_prompt": "?", "judgment": "[[A>>B]]", "score": "A>>B"},
            {"user_prompt": "?", "judgment": "[[B>>A]]", "score": "B>>A"},
        ],
    }
    found = read_judgment("", row)
    assert found.baseline == "gpt-4-0314" and found.battles() == [0, 0, 0, 0, 0, 0]
    assert read_judgment("", {**row, "games": [None, row["games"][1]]}).battles() is None
    with pytest.raises(BadInput, match="f:1: expected a judgment.*'A>>>B' is none of"):
        read_judgment("f:1", {**row, "games": [{"score": "A>>>B"}, {}]})
    with pytest.raises(BadInput, match="f:2: j judges m on 1 twice"):
        read_judgments([("f:1", row), ("f:2", row)])
    other = {**row, "question_id": "2", "baseline": "gpt-5"}
    with pytest.raises(BadInput, match="the baseline gpt-5 here, gpt-4-0314 before"):
        read_judgments([("f:1", row), ("f:2", other)])


def arena_row(uid: str, model: str, text: str) -> dict[str, object]:
    return {
        "uid": uid,
        "ans_id": "a",
        "model": model,
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": {"answer": text}},
        ],
        "tstamp": 1.0,
    }


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Twenty prompts of the embedded world in arena-hard-auto's layout, with baselines that know
    nothing."""
    folder = tmp_path / "bench"
    categories = ["hard_prompt"] * 12 + ["creative_writing"] * 8
    write_rows(
        folder / "question.jsonl",
        (
            {"uid": f"u{n}", "category": category, "subcategory": "", "prompt": p.prompt}
            for n, (category, p) in enumerate(zip(categories, PROMPTS))
        ),
    )
    for name, share in (("o3-mini-2025-01-31", range(20)), ("gemini-2.0-flash-001", range(12, 20))):
        write_rows(
            folder / "model_answer" / f"{name}.jsonl",
            (arena_row(f"u{n}", name, answer("evasive", PROMPTS[n], WORLD, 0)) for n in share),
        )
    return folder


def test_command_on_the_embedded_world(
    bench: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that knows against baselines that don't: win rates by the world's rules, files in
    arena-hard-auto's forms; a second run asks nobody and gives the same bytes; the records score
    the same again, and not with a changed file of answers. Fails where a game shows the wrong
    order, or goes to another question."""
    out = tmp_path / "out"
    line = (
        "good=world:expert",
        "--bench-dir",
        bench,
        "--judge",
        "world:judge",
        "--out",
        out,
        "--style-control",
        "--length-tokenizer",
        tiny,
    )
    run(*line)
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    points: dict[str, list[float]] = {"hard_prompt": [], "creative_writing": []}
    for n, prompt in enumerate(PROMPTS):
        category = "hard_prompt" if n < 12 else "creative_writing"
        ours, theirs = (
            judge(prompt._asdict(), answer(who, prompt, WORLD, 0), WORLD).overall
            for who in ("expert", "evasive")
        )
        count = 3 if abs(ours - theirs) >= 1 else 1
        points[category] += [(ours > theirs) + (ours == theirs) / 2] * 2 * count
    for category, won in points.items():
        of = results[f"good on {category}"]
        assert of["win_rate"] == pytest.approx(100 * sum(won) / len(won)) and of["unparsed"] == 0
        assert f"good on {category}" in printed and "at equal style" in printed
        assert of["position_bias"]["first_won"] == 0.5 and of["judges"] == ["judge"]
    assert results["good on creative_writing"]["baseline"] == "gemini-2.0-flash-001"
    rows = [row for _, row in read_rows([out / "model_judgment/judge/good.jsonl"])]
    assert list(rows[0]) == ["uid", "category", "judge", "model", "baseline", "games"]
    for row in rows:
        question, evasive = (
            PROMPTS[int(row["uid"][1:])].prompt,
            answer("evasive", PROMPTS[int(row["uid"][1:])], WORLD, 0),
        )
        for game, at in zip(row["games"], ("A", "B")):
            assert list(game) == ["score", "judgment", "prompt"]
            system, user = (message["content"] for message in game["prompt"])
            assert user.startswith(f"<|User Prompt|>\n{question}\n\n<|The Start of Assistant A's")
            assert f"Start of Assistant {at}'s Answer|>\n{evasive}\n<|The End" in user
            is_hard = "generating your own answer" in system
            assert is_hard == (row["category"] == "hard_prompt")
    (first, *_) = (row for _, row in read_rows([out / "model_answer/good.jsonl"]))
    assert list(first) == ["uid", "ans_id", "model", "messages", "tstamp"]
    files = {path: path.read_bytes() for path in (tmp_path).rglob("out*/**/*") if path.is_file()}
    run(*line)
    assert len(files) == 5 and all(path.read_bytes() == of for path, of in files.items())
    again = ("--from-judgments", out / "model_judgment/judge", "--bench-dir", bench)
    capsys.readouterr()
    run(*again, *line[5:], "--json")
    scored = json.loads(capsys.readouterr().out)
    for name, of in results.items():
        same = {key: value for key, value in of.items() if key not in ("judge",)}
        assert {key: scored[name][key] for key in same if key != "answers"} == {
            key: value for key, value in same.items() if key != "answers"
        }
        assert scored[name]["answers"]["good"] == of["answers"]["good"]
    changed = tmp_path / "changed.jsonl"
    answers = [row for _, row in read_rows([out / "model_answer/good.jsonl"])]
    write_rows(changed, [*answers[:3], arena_row("u3", "good", "x"), *answers[4:]])
    with pytest.raises(BadInput, match="at u3 is about another answer than that in the file of"):
        run(*again, "--answers", f"good={changed}")


@pytest.mark.parametrize(
    "change,said",
    [
        (["--answers", "good=few.jsonl"], "good: no answer to 19 of 20 prompts.*'u1'"),
        (["--answers", "good=more.jsonl"], "1 answers in its file are to none of the 20.*'u99'"),
        (["world:expert", "--category", "poems"], "poems: no question has it; there are creative"),
        (["o3-mini-2025-01-31=world:expert"], r"o3-mini-2025-01-31 \(a baseline\) and o3"),
        (["world:expert", "--bench-dir", "."], r"no question.jsonl; it comes from data/arena-hard"),
    ],
)
def test_bad_input_is_named(bench: Path, tmp_path: Path, change: list[str], said: str) -> None:
    """Each would else end in figures about other questions than the user thinks."""
    rows = [arena_row(f"u{n}", "good", "x") for n in range(20)]
    write_rows(tmp_path / "few.jsonl", rows[:1])
    write_rows(tmp_path / "more.jsonl", [*rows, arena_row("u99", "good", "x")])
    change = [text.replace("=", f"={tmp_path}/") if ".jsonl" in text else text for text in change]
    bench_dir = [] if "--bench-dir" in change else ["--bench-dir", bench]
    change = [str(tmp_path) if text == "." else text for text in change]
    with pytest.raises(BadInput, match=said):
        run(*change, *bench_dir, "--judge", "world:judge", "--out", tmp_path / "out")


def test_styles_that_are_not_there_are_named(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored judgments with control of style take every answer's metadata, and without tiktoken no
    other can be counted. Fails where a missing one is taken as zero."""
    row = {
        "uid": "u0",
        "category": "hard_prompt",
        "judge": "j",
        "model": "m",
        "baseline": "o3-mini-2025-01-31",
        "games": [{"score": "A>B"}, {"score": "A=B"}],
    }
    write_rows(tmp_path / "j.jsonl", [row])
    with pytest.raises(BadInput, match="no answer of m to u0 with its style"):
        run("--from-judgments", tmp_path / "j.jsonl", "--bench-dir", bench, "--style-control")
    for name, tokens in (("m", 9), ("o3-mini-2025-01-31", 7)):
        styled = {**arena_row("u0", name, "x"), "metadata": {"token_len": tokens}}
        styled["metadata"] |= markdown_counts("x")
        write_rows(tmp_path / "out" / "model_answer" / f"{name}.jsonl", [styled])
    stored = ("--from-judgments", tmp_path / "j.jsonl", "--out", tmp_path / "out")
    run(*stored, "--style-control", "--json")
    (of,) = json.loads(capsys.readouterr().out).values()
    assert of["style_controlled"]["models_in_fit"] == 1 and of["answers"].keys() > {"m"}
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    line = ("world:expert", "--bench-dir", bench, "--judge", "world:judge", "--out", tmp_path)
    with pytest.raises(BadInput, match="counted by tiktoken: pip install"):
        run(*line, "--style-control")
    with pytest.raises(BadInput, match="nothing counts tokens, expected --style-control"):
        run(*line, "--length-tokenizer", tmp_path)
    with pytest.raises(BadInput, match="no judgment is about other; they are about m, o3-mini"):
        run(*stored, "--answers", f"other={tmp_path / 'j.jsonl'}")


@pytest.mark.long
def test_a_real_server(
    bench: Path, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained model over HTTP answers, and judges without a label: nothing is won, every
    question is counted, and a second run asks nothing."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    spec = f"openai:{proxy.model}@{proxy.url}"
    line = (f"m={spec}", "--bench-dir", bench, "--judge", spec, "--out", tmp_path / "out")
    limits = ("--max-new-tokens", 4, "--judge-tokens", 4, "--category", "creative_writing")
    run(*line, *limits)
    results = json.loads((tmp_path / "out/results.json").read_text())
    of = results["m on creative_writing"]
    assert (of["n"], of["unparsed"], of["win_rate"]) == (0, 8, None)
    calls = len(proxy.calls)
    assert calls == 8 + 16
    run(*line, *limits)
    assert (
        len(proxy.calls) == calls
        and not math.isnan(calls)
        and re.match("m on", next(iter(results)))
    )
