"""`zephyr eval alpaca-eval`: outputs, annotations, win rates, with AlpacaEval's stored ones, the
embedded judge and a real server."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import statistics
from collections import defaultdict
from pathlib import Path

import pytest
from proxy import Proxy
from published import ranked_verdict

from zephyr import cli
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.alpaca import score_annotations
from zephyr.evaluation.benchmarks import annotate
from zephyr.evaluation.win_rate import judge_panel
from zephyr.teacher import Budget, Ledger, Request, ask, embedded
from zephyr.world.answerers import answer
from zephyr.world.facts import build_world
from zephyr.world.teacher import prompts_by_text

WORLD = build_world(0)
PROMPTS = list(prompts_by_text(WORLD).values())[:20]
NAMES = ("a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz")
PUBLISHED = {
    "alpaca_eval_gpt4": "leaderboard_v1_alpaca_eval_gpt4.csv",
    "weighted_alpaca_eval_gpt4_turbo": "leaderboard_v2_weighted_gpt4_turbo.csv",
}


def run(*arguments: str | Path) -> None:
    """The command, without `main`, which would turn BadInput into a line."""
    cli.run(["eval", "alpaca-eval", *map(str, arguments)])


def annotation(preference: object, model: str = "m", **fields: object) -> dict[str, object]:
    return {
        "instruction": "i",
        "output_1": "of the base",
        "generator_1": "base",
        "output_2": "ours",
        "generator_2": model,
        "annotator": "j",
        "preference": preference,
        **fields,
    }


def test_gpt4s_preferences(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """16,250 stored preferences of 25 (annotator, model): plain sums, sample standard errors, 7
    nulls left out, zeros as ties; and the published rates, of 805 prompts where these are 650, to
    2.3 points and 1.3 of their standard errors. Fails where a 0, a null, the side of the baseline
    or the scale is taken otherwise than AlpacaEval does."""
    file = real_data / "alpaca_eval" / "preferences.jsonl.gz"
    run("--from-annotations", file, "--json")
    results = json.loads(capsys.readouterr().out)
    of: dict[str, list[float]] = defaultdict(list)
    for _, row in read_rows([file]):
        if "preference" in row:
            of[f"{row['model_b']} ({row['annotator']})"].append(
                100 * ((row["preference"] or 1.5) - 1)
            )
    assert (
        results.keys() == of.keys()
        and len(of) == 25
        and sum(result["unparsed"] for result in results.values()) == 7
    )
    for name, shares in of.items():
        result = results[name]
        assert result["win_rate"] == pytest.approx(statistics.fmean(shares)) and result["n"] == len(
            shares
        )
        assert result["stderr"] == pytest.approx(statistics.stdev(shares) / math.sqrt(len(shares)))
        assert result["n_wins"] + result["n_wins_base"] + result["n_draws"] == len(
            shares
        ) and result["n_draws"] == shares.count(50)
        assert result["ci95"][0] < result["win_rate"] < result["ci95"][1]
    compared = 0
    for annotator, leaderboard in PUBLISHED.items():
        for row in csv.DictReader((real_data / "alpaca_eval" / leaderboard).open(encoding="utf-8")):
            if ours := results.get(f"{row['']} ({annotator})"):
                apart = abs(ours["win_rate"] - float(row["win_rate"]))
                assert apart < 2.3 and apart < 1.3 * float(row["standard_error"]), row[""]
                assert ours["avg_length"] == pytest.approx(float(row["avg_length"]), rel=0.03)
                compared += 1
    assert compared == 23


def test_position_bias_of_a_stored_judge(real_data: Path) -> None:
    """The explained judge's raw replies tell which answer was shown first: its share of wins is
    that of counting replies by hand; the log-probability judge's don't, so none is told. Fails
    where the first answer is taken for the other one."""
    rows = [row for _, row in read_rows([real_data / "alpaca_eval" / "judge_raw.jsonl.gz"])]
    results = score_annotations(("", row) for row in rows)
    explained = [row for row in rows if row["annotator"] == "alpaca_eval_cot_gpt4_turbo_fn"]
    won = [
        ranked_verdict(row["raw_completion"], row["referenced_models"]).preference
        for row in explained
    ]
    first = [
        row["referenced_models"]["m"] == f"output_{preference}"
        for row, preference in zip(explained, won)
    ]
    (of,) = [result["position_bias"] for result in results.values() if "position_bias" in result]
    assert (
        of["n"] == 650 == len(first)
        and of["first_won"] == pytest.approx(sum(first) / 650)
        and 0.45 < of["first_won"] < 0.6
    )


def test_preferences() -> None:
    """1 is the baseline's answer, 2 the model's, 0 and 1.5 a tie, null and NaN no verdict; in
    percent. Fails where one is another."""
    rows = [("", annotation(preference)) for preference in (1, 2, 0, 1.5, None, math.nan, 1.25)]
    result = score_annotations(rows)["m"]
    assert result["win_rate"] == pytest.approx(100 * (0 + 1 + 0.5 + 0.5 + 0.25) / 5) and (
        result["n"],
        result["unparsed"],
    ) == (5, 2)
    assert (result["n_wins"], result["n_wins_base"], result["n_draws"]) == (1, 2, 2) and result[
        "discrete"
    ]["win_rate"] == 40
    assert (
        "position_bias" not in result and result["baseline"] == "base" and result["avg_length"] == 4
    )
    mirrored = score_annotations(
        [("", annotation(preference)) for preference in (2, 1, 0, 1.5, 1.75)]
    )["m"]
    assert mirrored["win_rate"] == pytest.approx(100 - result["win_rate"]) and mirrored[
        "stderr"
    ] == pytest.approx(result["stderr"])
    for preference in (2.5, 0.5, -1, "2", math.inf):
        with pytest.raises(BadInput, match="f:7: .*preference from 1 to 2, 0 or null; got"):
            score_annotations([("f:7", annotation(preference))])


def test_files_of_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list, lines, and both compressed are the same; several models have their own results, and
    several annotators too, as "MODEL (ANNOTATOR)". Fails where they are pooled, or a model's two
    baselines are."""
    rows = [
        annotation(p, model) for p, model in ((1, "a"), (2, "a"), (2, "b"), (1.5, "b"), (2, "b"))
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    write_rows(tmp_path / "a.jsonl", rows)
    for name in ("a.json", "a.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    printed = []
    for name in NAMES:
        run("--from-annotations", tmp_path / name, "--json")
        printed.append(json.loads(capsys.readouterr().out))
    read = [of.pop("records") for results in printed for of in results.values()]
    assert [*map(list, read)] == [[name] for name in NAMES for _ in "ab"]
    assert all(results == printed[0] for results in printed)
    assert [of["win_rate"] for of in printed[0].values()] == pytest.approx([50, 250 / 3])
    several = score_annotations([("", annotation(1)), ("", annotation(2, annotator="k"))])
    assert {name: of["win_rate"] for name, of in several.items()} == {"m (j)": 0, "m (k)": 100}
    with pytest.raises(BadInput, match="f:2: m is compared with other here, with base before"):
        score_annotations([("f:1", annotation(1)), ("f:2", annotation(1, generator_1="other"))])


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Twenty prompts of the embedded world with outputs that know nothing, in AlpacaEval's
    layout."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "alpaca_eval.json").write_text(
        json.dumps(
            [
                {
                    "instruction": p.prompt,
                    "output": answer("evasive", p, WORLD, 0),
                    "generator": "evasive",
                    "dataset": p.family,
                }
                for p in PROMPTS
            ]
        )
    )
    return tmp_path / "bench"


def test_stored_answers(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files of outputs against the bench's: the one that knows wins, the baseline's own ties;
    files are AlpacaEval's and score the same again; a second run asks nobody and gives the same
    bytes. Fails where answers go to other prompts."""
    files = {"good": "expert", "same": "evasive"}
    for name, who in files.items():
        rows = [
            {"instruction": p.prompt, "output": answer(who, p, WORLD, 0), "generator": who}
            for p in reversed(PROMPTS)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    arguments = (
        "--answers",
        f"good={tmp_path / 'good.json'}",
        f"same={tmp_path / 'same.json'}",
        "--bench-dir",
        bench,
        "--judge",
        "world:judge",
        "--out",
        tmp_path / "out",
        "--json",
    )
    run(*arguments)
    results = json.loads(capsys.readouterr().out)
    assert results["good"]["win_rate"] > 75 and results["good"]["n"] == 20
    assert results["same"]["n_draws"] == 20 and results["same"]["win_rate"] == 50
    assert (
        results["good"]["position_bias"]["first_won"] == 0.5
        and "position_bias" not in results["same"]
    )
    assert (
        results["good"]["judge"]["name"] == "judge"
        and len(results["good"]["judge"]["templates"]["compare"]) == 64
    )
    outputs = json.loads((tmp_path / "out/good/model_outputs.json").read_text())
    assert outputs == [
        {
            "dataset": p.family,
            "instruction": p.prompt,
            "output": answer("expert", p, WORLD, 0),
            "generator": "good",
        }
        for p in PROMPTS
    ]
    annotations = json.loads((tmp_path / "out/good/judge/annotations.json").read_text())
    assert annotations[0].keys() > {
        "instruction",
        "output_1",
        "generator_1",
        "output_2",
        "generator_2",
        "dataset",
        "annotator",
        "preference",
    }
    assert [row["output_2"] for row in annotations] == [row["output"] for row in outputs] and len(
        annotations[0]["raw_completion"]
    ) == 2
    files_before = {
        path: path.read_bytes()
        for path in (tmp_path / "out.ledger.jsonl", *(tmp_path / "out").rglob("*.json"))
    }
    run(*arguments)
    assert (
        all(path.read_bytes() == content for path, content in files_before.items())
        and len(files_before) == 6
    )
    capsys.readouterr()
    run("--from-annotations", tmp_path / "out/good/judge/annotations.json", "--json")
    again = json.loads(capsys.readouterr().out)["good"]
    assert again.pop("records").keys() == {"annotations.json"}
    assert again.pop("answers")["good"] == results["good"]["answers"]["good"]
    assert again == {
        key: value for key, value in results["good"].items() if key not in ("judge", "answers")
    }
    stored = ("--from-annotations", tmp_path / "out/good/judge/annotations.json", "--answers")
    run(*stored, f"good={tmp_path / 'good.json'}")
    for name, said in (
        ("good=same", "is about another answer than that in the file of good"),
        ("same=same", "same: expected the file of .*about good"),
        ("good=few", "good: no answer to 19 of 20 prompts"),
    ):
        (tmp_path / "few.json").write_text(json.dumps(rows[:1]))
        given = f"{name.partition('=')[0]}={tmp_path / name.partition('=')[2]}.json"
        with pytest.raises(BadInput, match=said):
            run(*stored, given)


@pytest.mark.parametrize(
    "replies,preference",
    [
        ("[[B]] [[A]]", 2),
        ("[[A]] [[B]]", 1),
        ("[[A]] [[A]]", 1.5),
        ("[[C]] [[A]]", 1.75),
        ("[[C]] [[B]]", 1.25),
        ("[[C]] [[C]]", 1.5),
        ("neither [[A]]", None),
    ],
)
def test_the_mean_of_both_orders(replies: str, preference: float | None, tmp_path: Path) -> None:
    """The baseline's answer is shown first, then last. Fails where an order isn't asked, is read
    the wrong way round, or a missing verdict counts as one."""
    first, last = replies.split()

    def judge(request: Request) -> str:
        return first if request.about["texts"][0] == "theirs" else last

    prompts = [{"prompt_id": "q", "prompt": "why?"}]
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        panel = judge_panel(
            embedded("j", judge, "1"),
            lambda teacher, requests: ask(teacher, requests, ledger, Budget()),
        )
        (row,) = annotate(panel, prompts, ("base", "m"), ["theirs"], ["ours"])
    assert row["preference"] == preference and (
        row["output_1"],
        row["output_2"],
        row["generator_1"],
    ) == ("theirs", "ours", "base")
    result = score_annotations([("", row)])["m"]
    assert result["win_rate"] == (
        None if preference is None else 100 * (preference - 1)
    ) and result["unparsed"] == (preference is None)


def test_a_real_server(tmp_path: Path, proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    """A server answers three prompts and judges: its replies are noise. All is asked in both
    orders, what can't be read is counted."""
    write_rows(
        tmp_path / "prompts.jsonl",
        [{"prompt_id": f"q{n}", "prompt": f"why is the sky blue {n}"} for n in range(3)],
    )
    write_rows(
        tmp_path / "base.jsonl", [{"prompt_id": f"q{n}", "text": f"because {n}"} for n in range(3)]
    )
    spec = f"openai:{proxy.model}@{proxy.url}"
    arguments = (
        f"m={spec}",
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--baseline",
        f"base={tmp_path / 'base.jsonl'}",
        "--judge",
        spec,
        "--out",
        tmp_path / "out",
        "--max-new-tokens",
        "8",
        "--judge-tokens",
        "8",
        "--json",
    )
    run(*arguments)
    result = json.loads(capsys.readouterr().out)["m"]
    assert (
        result["n"] + result["unparsed"] == 3
        and result["unparsed"] > 0
        and result["baseline"] == "base"
    )
    shown = [
        call.asked["messages"][1]["content"]
        for call in proxy.calls[3:]
        if len(call.asked["messages"]) == 2
    ]
    assert (
        len(shown) == 6
        and sum(text.index("because") < text.index("Answer B:") for text in shown) == 3
    )
    calls = len(proxy.calls)
    run(*arguments)
    assert json.loads(capsys.readouterr().out)["m"] == result and len(proxy.calls) == calls


def test_the_packages_length_controlled_win_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge who likes the longer answer, and ours at hard prompts: ours is mostly longer, so it
    wins; at equal lengths it would not. The number is the package's own for the same prompts;
    without its file of difficulties a line says where that comes from. Fails for rows that get
    another prompt's difficulty."""
    pytest.importorskip("alpaca_eval", reason="alpaca_eval can't be imported", exc_type=ImportError)
    import huggingface_hub.constants as hub
    import pandas as pd
    from alpaca_eval.metrics.glm_winrate import get_length_controlled_winrate

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    rng = random.Random(0)
    difficulties, rows = [rng.gauss(0, 1) for _ in range(805)], []
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for n in rng.sample(range(805), 600):
        longer = rng.random() < 0.85
        liked = difficulties[n] > 0 if rng.random() < 0.4 else longer
        rows.append(
            annotation(
                2 if liked else 1,
                prompt_id=f"alpacaeval-{n:04}",
                output_1="x" * 500,
                output_2="x" * (rng.randint(600, 900) if longer else 200),
            )
        )
    for model in "ab":
        for n, difficulty in enumerate(difficulties):
            delta = rng.gauss(0, 1)
            lines.append(f"{model},{n},{0.8 if delta < 0 else 0.2},{delta},{difficulty},False")

    def scored(rows: list[dict[str, object]]) -> dict[str, dict[str, object]]:
        return score_annotations((("", row) for row in rows), length_controlled=True)

    with pytest.raises(
        BadInput, match="hf download --repo-type dataset tatsu-lab/alpaca_eval df_gamed.csv"
    ):
        scored(rows)
    with pytest.raises(BadInput, match="all 805 prompts .* got 600 rows"):
        scored([{**row, "prompt_id": "q"} for row in rows])
    cached = tmp_path / "datasets--tatsu-lab--alpaca_eval"
    for file, text in (
        ("refs/main", "0" * 40),
        (f"snapshots/{'0' * 40}/df_gamed.csv", "\n".join(lines) + "\n"),
    ):
        (cached / file).parent.mkdir(parents=True)
        (cached / file).write_text(text)
    result = scored(rows)["m"]
    lc = result["length_controlled"]
    theirs = get_length_controlled_winrate(
        pd.DataFrame(rows, index=[int(row["prompt_id"][-4:]) for row in rows]),
        save_weights_dir=None,
    )
    others = get_length_controlled_winrate(pd.DataFrame(rows), save_weights_dir=None)
    assert lc["win_rate"] == pytest.approx(theirs["length_controlled_winrate"])
    assert lc["stderr"] == pytest.approx(theirs["lc_standard_error"])
    assert lc["stderr"] > 2 * others["lc_standard_error"]
    assert result["win_rate"] == pytest.approx(theirs["win_rate"]) and result[
        "stderr"
    ] == pytest.approx(theirs["standard_error"])
    assert (
        result["win_rate"] > 60
        and 40 < lc["win_rate"] < 60
        and lc["n"] == 600
        and lc["ci95"][0] < lc["win_rate"] < lc["ci95"][1]
    )
    whole = [
        annotation(1 + n % 2, output_1="x" * 500, output_2="x" * (400 + n)) for n in range(805)
    ]
    assert scored(whole)["m"]["length_controlled"]["n"] == 805


def test_bad_input(bench: Path, tmp_path: Path) -> None:
    """Each is one line that names what is wrong."""
    rest = ("--judge", "world:judge", "--out", tmp_path / "out")
    for says, arguments in (
        ("--judge, --out, --bench-dir: required", ("world:expert",)),
        ("a MODEL or --answers: required", ("--bench-dir", bench, *rest)),
        (
            "no alpaca_eval_gpt4_baseline.json or alpaca_eval.json; it comes from hugg",
            ("world:expert", "--bench-dir", tmp_path, *rest),
        ),
        ("no such folder or file", ("nobody", "--bench-dir", bench, *rest)),
    ):
        with pytest.raises(BadInput, match=says):
            run(*arguments)
    write_rows(tmp_path / "few.jsonl", [{"instruction": PROMPTS[0].prompt, "output": "x"}])
    with pytest.raises(BadInput, match="few: no answer to 19 of 20 prompts"):
        run(f"few={tmp_path / 'few.jsonl'}", "--bench-dir", bench, *rest)
    write_rows(tmp_path / "odd.jsonl", [{"a": 1}])
    with pytest.raises(BadInput, match="odd.jsonl:1: expected generator_1"):
        run("--from-annotations", tmp_path / "odd.jsonl")
