"""Win rates: verdicts of both orders, intervals, length control, agreement with people, and the
command from end to end."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from proxy import Proxy
from scipy.stats import binom

from zephyr import cli
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.answers import collect_answers, open_contender, read_stored
from zephyr.evaluation.compare import Comparison, parse_verdict, summarise
from zephyr.evaluation.statistics import agreement, length_controlled, mean_with_interval
from zephyr.evaluation.win_rate import compare_models, judge_panel, read_human_labels
from zephyr.teacher import Budget, Ledger, Request, ask, embedded
from zephyr.teacher.panel import MAX_REASKS
from zephyr.teacher.prompts import Row, read_prompts
from zephyr.world.facts import build_world
from zephyr.world.prompts import draw_prompts
from zephyr.world.rules import judge

VERDICTS = ("A", "B", "tie", None)


def command(*arguments: object) -> None:
    """The command, without `main`, which would turn BadInput into a line."""
    cli.run(["eval", "win-rate", *map(str, arguments)])


@pytest.mark.parametrize("wins,n", [(300, 400), (12, 100), (40, 50)])
def test_interval_of_a_binary_mean_is_the_binomial_one(wins: int, n: int) -> None:
    """The means of resampled zeros and ones are binomial, so the quantiles are known. Fails where
    resamples are of another size or the quantiles of another level, and luck is then told as a
    result."""
    found = mean_with_interval("rate", [1.0] * wins + [0.0] * (n - wins))
    assert found["rate"] == wins / n and found["n"] == n
    assert found["ci95"] == pytest.approx(binom.ppf([0.025, 0.975], n, wins / n) / n, abs=1.01 / n)
    assert found["stderr"] == pytest.approx((wins / n * (1 - wins / n) / (n - 1)) ** 0.5)
    assert mean_with_interval("rate", []) == {"rate": None, "n": 0, "stderr": None, "ci95": None}
    assert mean_with_interval("rate", [0.5]) == {
        "rate": 0.5,
        "n": 1,
        "stderr": None,
        "ci95": [0.5, 0.5],
    }


@pytest.mark.parametrize(
    "reply,found",
    [
        ("Both are fine, the first is truer.\n[[A]]", "A"),
        ("[[B]]", "B"),
        ("So:\n[[C]]", "tie"),
        ("[[A]], yes, [[A]]", "A"),
        ("", None),
        ("[[A]] would be kind, [[B]] it is", None),
        ("[A]", None),
        ("A", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("[[A]", None),
    ],
)
def test_verdicts_are_read_or_not_at_all(reply: str, found: str | None) -> None:
    """Fails where the first of two verdicts is taken, or a letter that is none."""
    assert parse_verdict(reply) == found


@pytest.mark.parametrize(
    "first,second,points",
    [
        ("A", "B", 1.0),
        ("B", "A", 0.0),
        ("tie", "tie", 0.5),
        ("A", "A", 0.5),
        ("B", "B", 0.5),
        ("A", "tie", 0.5),
        ("tie", "A", 0.5),
        (None, "B", None),
        ("A", None, None),
        (None, None, None),
    ],
)
def test_a_win_takes_both_orders(
    first: str | None, second: str | None, points: float | None
) -> None:
    """The rule of the command: fails where one order is enough, or a missing verdict is a tie."""
    assert Comparison(first, second, (1, 1)).points() == points


def swapped(row: Comparison | None) -> Comparison | None:
    """The same two calls from the other model's side."""
    return row and Comparison(row.shown_second, row.shown_first, row.lengths[::-1], row.was_judged)


def test_exchanging_the_models_mirrors_everything() -> None:
    """B over A is A over B from the other side: shown first for one is shown second for the other.
    Fails where a side is favoured."""
    rng = random.Random(0)
    rows = [
        None
        if rng.random() < 0.05
        else Comparison(
            rng.choice(VERDICTS), rng.choice(VERDICTS), (rng.randrange(99), rng.randrange(99))
        )
        for _ in range(400)
    ]
    labels = [rng.choice((0.0, 0.5, 1.0, None)) for _ in rows]
    one, other = (
        summarise(rows, labels),
        summarise(list(map(swapped, rows)), [None if p is None else 1 - p for p in labels]),
    )
    assert (one["wins"], one["ties"], one["losses"]) == (
        other["losses"],
        other["ties"],
        other["wins"],
    ) and one["wins"] != one["losses"]
    for key in (
        "unparsed",
        "unanswered",
        "n",
        "position_bias",
        "consistent",
        "agreement",
        "decided",
    ):
        assert one[key] == other[key]
    assert min(one["unparsed"], one["unanswered"]) > 0 and one["lengths"] == other["lengths"][::-1]
    for a, b in (
        (one, other),
        (one["length_controlled"], other["length_controlled"]),
        (one["of_decided"], other["of_decided"]),
    ):
        assert a["win_rate"] == pytest.approx(1 - b["win_rate"]) and a["stderr"] == pytest.approx(
            b["stderr"]
        )
        assert a["ci95"] == pytest.approx([1 - end for end in b["ci95"][::-1]])
    assert one["kappa"]["kappa"] == pytest.approx(other["kappa"]["kappa"])


def test_length_control() -> None:
    """Fails where the slope takes a part of the real difference, or leaves a part of the length's;
    the truth is known in each case."""
    rng = np.random.default_rng(0)
    points = [1.0] * 60 + [0.5] * 20 + [0.0] * 20
    assert length_controlled(points, [7.0] * 100)["win_rate"] == pytest.approx(
        0.7, abs=1e-4
    )  # all differ alike
    balanced = length_controlled(points * 2, [30.0] * 100 + [-30.0] * 100)  # length tells nothing
    assert (
        balanced["win_rate"] == pytest.approx(0.7, abs=1e-4)
        and balanced["ci95"][0] < 0.7 < balanced["ci95"][1]
    )
    lengths = rng.normal(200, 200, 3000)  # drawn from the model itself:
    for real in (0.0, -0.5):  # length is all, or not
        chances = 1 / (1 + np.exp(-(real + 2 * np.tanh(lengths / lengths.std()))))
        points = (rng.random(3000) < chances).astype(float).tolist()
        found, truth = length_controlled(points, lengths.tolist()), 1 / (1 + np.exp(-real))
        assert (
            found["win_rate"] == pytest.approx(truth, abs=0.04)
            and found["ci95"][0] < truth < found["ci95"][1]
        )
        assert mean_with_interval("x", points)["x"] > truth + 0.15
    assert length_controlled([1.0] * 50, list(range(50)))["win_rate"] > 0.99  # finite at the edge
    assert length_controlled([], [])["win_rate"] is None


def test_agreement_and_kappa_by_hand() -> None:
    """20 both yes, 5 and 10 apart, 15 both no: 0.7 agree, 0.5 by chance, kappa 0.4. Fails where
    rows and columns are taken for each other, or ties fall into a neighbouring cell."""
    found = agreement([1.0] * 25 + [0.0] * 25, [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15)
    assert found["agreement"]["share"] == pytest.approx(0.7) and found["kappa"][
        "kappa"
    ] == pytest.approx(0.4)
    assert (
        found["kappa"]["ci95"][0] < 0.4 < found["kappa"]["ci95"][1]
        and found["kappa"]["n"] == found["agreement"]["n"] == 50
    )
    with_ties = agreement(
        [1.0, 0.5, 0.0, 0.5], [1.0, 0.5, 0.5, 0.0]
    )  # 2 of 4; chance (1 + 2 * 2 + 1) / 16
    assert with_ties["kappa"]["kappa"] == pytest.approx((0.5 - 0.375) / 0.625)
    assert agreement([1.0, 1.0], [1.0, 1.0])["kappa"]["kappa"] is None


PROMPTS: list[Row] = [
    {"prompt_id": f"q{n}", "prompt": f"why {n}?", "kind": "odd" if n % 2 else "even"}
    for n in range(12)
]


def run(
    folder: Path,
    reply: Callable[[Request], str],
    answers: Mapping[str, list[str | None]],
    prompts: list[Row] = PROMPTS,
    labels: list[float | None] | None = None,
    **options: object,
) -> Row:
    """A contest with a judge of the test's own."""
    with Ledger(folder / "ledger.jsonl") as ledger:
        panel = judge_panel(
            embedded("judge", reply, "1"),
            lambda teacher, requests: ask(teacher, requests, ledger, Budget()),
        )
        return compare_models(
            panel,
            prompts,
            answers,
            labels or [None] * len(prompts),
            folder / "out",
            **{"by": None, "scores": False, **options},
        )


def texts_of(name: str) -> list[str]:
    return [f"{name} to {n}" for n in range(12)]


def test_a_judge_who_looks_at_the_place_alone(tmp_path: Path) -> None:
    """All are ties, and the bias is 1. Fails where one order alone is asked, or both with the same
    text first; where equal texts are asked about, or a further run asks anything again."""
    asked: list[tuple[str, ...]] = []

    def first(request: Request) -> str:
        texts = request.about["texts"]
        shown = [
            request.messages[-1]["content"].index(f'Answer {letter}:\n"""\n{text}\n"""')
            for letter, text in zip("AB", texts)
        ]
        assert shown == sorted(shown)
        asked.append(tuple(texts))
        return "[[A]]"

    answers = {"one": texts_of("one"), "two": [*texts_of("two")[:10], *texts_of("one")[10:]]}
    results = run(tmp_path, first, answers)
    pair = results["pairs"]["two over one"]
    assert (pair["wins"], pair["ties"], pair["losses"], pair["win_rate"], pair["n"]) == (
        0,
        12,
        0,
        0.5,
        12,
    )
    assert (
        pair["position_bias"]["first_won"],
        pair["position_bias"]["n"],
        pair["consistent"]["share"],
    ) == (1.0, 10, 0.0)
    assert Counter(asked) == Counter(
        order
        for n in range(10)
        for order in ((f"two to {n}", f"one to {n}"), (f"one to {n}", f"two to {n}"))
    )
    rows = [row for _, row in read_rows([tmp_path / "out" / "verdicts.jsonl"])]
    assert Counter((row["shown_as"], row["verdict"]) for row in rows) == {
        ("A", "A"): 10,
        ("B", "A"): 10,
    }
    before = (tmp_path / "out" / "verdicts.jsonl").read_bytes()
    assert run(tmp_path, first, answers) == results and len(asked) == 20
    assert (tmp_path / "out" / "verdicts.jsonl").read_bytes() == before


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    """A prompt without both verdicts, or without both answers, is in no count but its own. Fails
    where it is a tie or a loss, where it is not asked for again, or where groups don't add up."""
    calls: Counter[str] = Counter()

    def mumbling(request: Request) -> str:
        number = int(request.messages[1]["content"].split("why ")[1].split("?")[0])
        calls[str(number)] += 1
        better = request.about["texts"].index(f"two to {number}")
        return "hard to say" if number < 3 and better == 0 else f"[[{'AB'[better]}]]"

    results = run(
        tmp_path,
        mumbling,
        {"one": texts_of("one"), "two": [*texts_of("two")[:11], None]},
        by="kind",
    )
    pair = results["pairs"]["two over one"]
    assert (pair["wins"], pair["n"], pair["unparsed"], pair["unanswered"], pair["win_rate"]) == (
        8,
        8,
        3,
        1,
        1.0,
    )
    assert calls["0"] == 1 + 1 + MAX_REASKS and calls["5"] == 2 and "11" not in calls
    assert {
        name: (of["n"], of["unparsed"], of["unanswered"]) for name, of in pair["by"].items()
    } == {"even": (4, 2, 0), "odd": (4, 1, 1)}
    written = [dict(row) for _, row in read_rows([tmp_path / "out" / "two.jsonl"])]
    assert written[11] == {"prompt_id": "q11", "prompt": "why 11?", "unanswered": True}
    assert read_stored(tmp_path / "out" / "two.jsonl", "text", "output") == {
        row["prompt_id"]: row.get("text") for row in written
    }


def test_each_model_meets_every_one_before_it(tmp_path: Path) -> None:
    """Fails where a pair is left out or turned round: the judge likes what is later in the
    alphabet."""

    def later(request: Request) -> str:
        first, second = request.about["texts"]
        return f"[[{'A' if first > second else 'B'}]]"

    results = run(tmp_path, later, {name: texts_of(name) for name in ("b", "c", "a")})
    assert {name: pair["win_rate"] for name, pair in results["pairs"].items()} == {
        "c over b": 1.0,
        "a over b": 0.0,
        "a over c": 0.0,
    }


@pytest.fixture(scope="module")
def of_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of the embedded world, in a folder."""
    folder = tmp_path_factory.mktemp("world")
    write_rows(
        folder / "prompts.jsonl",
        (prompt._asdict() for prompt in draw_prompts(build_world(0), "test", 100, 0)[:60]),
    )
    return folder


def test_command_on_the_embedded_world(of_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Win rates and scores by the rules themselves, next to what the command makes of replies in
    words, overall and by family; the table shows the same numbers. Fails where an answer is judged
    by another prompt's facts, or a second run pays or changes anything."""
    prompts, out = [row for _, row in read_rows([of_world / "prompts.jsonl"])], of_world / "out"
    line = (
        "terse=world:terse",
        "expert=world:expert",
        "--prompts",
        of_world / "prompts.jsonl",
        "--judge",
        "world:judge",
        "--out",
        out,
        "--by",
        "family",
        "--scores",
    )
    command(*line)
    table = capsys.readouterr().out
    world = build_world(0)
    points = {
        name: [
            judge(row, answer["text"], world).overall
            for row, (_, answer) in zip(prompts, read_rows([out / f"{name}.jsonl"]))
        ]
        for name in ("terse", "expert")
    }
    results = json.loads((out / "results.json").read_text())
    pair, won = (
        results["pairs"]["expert over terse"],
        [(a > b) + (a == b) / 2 for a, b in zip(points["expert"], points["terse"])],
    )
    assert (
        pair["win_rate"] == sum(won) / 60
        and 0 < pair["wins"] == won.count(1.0)
        and pair["losses"] == won.count(0.0) > 0
    )
    assert results["models"]["terse"]["score"] == sum(round(2 * p) for p in points["terse"]) / 60
    for family in {row["family"] for row in prompts}:
        here = [i for i, row in enumerate(prompts) if row["family"] == family]
        assert pair["by"][family]["win_rate"] == pytest.approx(
            sum(won[i] for i in here) / len(here)
        )
        assert f"\n{family:20}{len(here):>8}" in table
    low, high = pair["ci95"]
    rate = f"{pair['win_rate']:.2f} [{low:.2f}, {high:.2f}]"
    assert f"expert over terse: win rate {rate}, n 60" in table
    assert table.splitlines()[0].split() == ["score", "prompts", "terse", "expert"]
    assert len(results["judge"]["templates"]["compare"]) == 64 and results["judge"]["versions"][
        0
    ].startswith("judge ")
    ledger, files = (
        of_world / "out.ledger.jsonl",
        {path: path.read_bytes() for path in out.iterdir()},
    )
    replies = ledger.read_bytes()
    command(*line, "--json")
    assert json.loads(capsys.readouterr().out) == results and ledger.read_bytes() == replies
    assert {path: path.read_bytes() for path in out.iterdir()} == files
    command(
        out / "terse.jsonl", f"new={out / 'expert.jsonl'}", *line[2:-1]
    )  # as answer files; what the judge said is known
    again = json.loads((out / "results.json").read_text())["pairs"]
    assert len(again) == 1 and next(iter(again.values())) == pair and ledger.read_bytes() == replies


def test_stored_verdicts_score_the_same(of_world: Path, tmp_path: Path) -> None:
    """verdicts.jsonl with the files of answers gives the same figures without a judge, and not with
    a changed answer, a missing prompt, one too many, or a missing verdict. Fails where a verdict
    counts for an answer that it is not about."""
    models = ("terse=world:terse", "expert=world:expert")
    asked = [row for _, row in read_rows([of_world / "prompts.jsonl"])][:15]
    write_rows(tmp_path / "prompts.jsonl", asked)
    prompts = ("--prompts", tmp_path / "prompts.jsonl", "--by", "family")
    out = tmp_path / "out"
    command(*models, *prompts, "--judge", "world:judge", "--out", out)
    results = json.loads((out / "results.json").read_text())
    rows = {
        name: [row for _, row in read_rows([out / f"{name}.jsonl"])]
        for name in ("terse", "verdicts")
    }
    stored = (out / "terse.jsonl", f"expert={out / 'expert.jsonl'}", *prompts)
    again = ("--from-verdicts", out / "verdicts.jsonl", "--out", tmp_path / "again")
    command(f"terse={stored[0]}", *stored[1:], *again)
    scored = json.loads((tmp_path / "again" / "results.json").read_text())
    assert (scored["pairs"], scored["answers"]) == (results["pairs"], results["answers"])
    assert list(scored["records"]) == ["verdicts.jsonl"] and "judge" not in scored
    bad = tmp_path / "bad.jsonl"
    changed = [{**row, "text": "x"} for row in rows["terse"]]
    for answers, said in (
        (changed, r"verdicts.jsonl:\d+: the verdict at prompt '.*' is about other answers"),
        (rows["terse"][1:], "no answer to 1 of 15 prompts"),
        ([*rows["terse"], {"prompt_id": "new", "text": "x"}], "to none of the 15 prompts.*'new'"),
    ):
        write_rows(bad, answers)
        with pytest.raises(BadInput, match=said):
            command(f"terse={bad}", *stored[1:], *again)
    write_rows(bad, rows["verdicts"][1:])
    with pytest.raises(BadInput, match="bad.jsonl: no verdict at prompt"):
        command(f"terse={stored[0]}", *stored[1:], "--from-verdicts", bad, *again[2:])
    for line, said in (
        ((*models, *prompts, *again), "terse: it would be asked, expected a file"),
        ((*models, *prompts, *again, "--scores"), "verdicts are no scores"),
        ((*models, *prompts, *again[2:]), "--judge: required"),
    ):
        with pytest.raises(BadInput, match=said):
            command(*line)


@pytest.mark.parametrize(
    "spec", ["openai:m@http://h/v1", "pool:m@http://h/v1,http://i/v1", "hf:owner/m", "world:base"]
)
def test_every_kind_of_teacher_is_a_contender(spec: str) -> None:
    """Fails where a form that the error lists is not read."""
    opened: list[str] = []
    contender = open_contender(f"name={spec}", lambda text: opened.append(text))  # type: ignore[func-returns-value, arg-type]
    assert contender.name == "name" and opened == [spec]


def test_a_folder_answers_as_generate_does(tiny: Path, tmp_path: Path) -> None:
    """A model folder is asked greedily with the ids of training's template. Fails where a prompt is
    encoded otherwise, or answers go to other prompts."""
    import torch

    from zephyr.data.tokenizer import load_tokenizer
    from zephyr.model.generate import generate
    from zephyr.model.load import load_policy
    from zephyr.teacher.spec import open_teacher

    contender = open_contender(f"tiny={tiny}", open_teacher)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        found = collect_answers(
            contender,
            PROMPTS,
            lambda teacher, requests: ask(teacher, requests, ledger, Budget()),
            max_tokens=12,
        )
    lm = load_policy(str(tiny), attention="sdpa", dtype=torch.float32).lm
    conversations = [[{"role": "user", "content": row["prompt"]}] for row in PROMPTS]
    wanted = generate(lm, load_tokenizer(str(tiny), "zephyr"), conversations, max_new_tokens=12)
    assert contender.name == "tiny" and found == wanted and len(set(found)) > 1


def test_a_real_server_that_does_not_judge(
    of_world: Path,
    proxy: Proxy,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An untrained model states no verdict: nothing is won, and all is counted. Fails where rubbish
    becomes a tie, or where a run without any verdict can't be told."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    write_rows(
        tmp_path / "two.jsonl",
        (
            row
            for row, _ in zip((row for _, row in read_rows([of_world / "prompts.jsonl"])), range(2))
        ),
    )
    line = (
        "world:terse",
        "world:expert",
        "--prompts",
        tmp_path / "two.jsonl",
        "--judge",
        f"openai:{proxy.model}@{proxy.url}",
        "--out",
        tmp_path / "out",
        "--judge-tokens",
        4,
    )
    command(*line, "--json")
    pair = json.loads(capsys.readouterr().out)["pairs"]["world_expert over world_terse"]
    differ = 2 - pair["ties"]
    assert (pair["unparsed"], pair["n"]) == (differ, 2 - differ) and len(
        proxy.calls
    ) == differ * 2 * (1 + MAX_REASKS) > 0
    command(*line)
    assert (
        len(proxy.calls) == differ * 2 * (1 + MAX_REASKS)
        and f"{differ} unparsed" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda line, folder: line.__setitem__(1, line[0]), "have one name"),
        (lambda line, folder: line.pop(1), "two or more"),
        (lambda line, folder: line.__setitem__(0, "results=world:terse"), "other than results"),
        (lambda line, folder: line.__setitem__(0, "runs/nothing"), "no such folder or file"),
        (lambda line, folder: line.__setitem__(0, "."), "expected NAME=... before it, other"),
        (lambda line, folder: line.__setitem__(0, "a=elsewhere:x"), "no such folder or file"),
        (lambda line, folder: line.extend(["--by", "colour"]), "'colour|colour: prompt"),
        (
            lambda line, folder: line.__setitem__(0, folder / "few.jsonl"),
            "no answer to 59 of 60 prompts",
        ),
        (
            lambda line, folder: line.__setitem__(0, folder / "twice.jsonl"),
            r"twice.jsonl.*2.*each once",
        ),
        (
            lambda line, folder: line.__setitem__(0, folder / "bare.jsonl"),
            r"bare.jsonl.*1.*text or output",
        ),
        (lambda line, folder: line.extend(["--labels", folder / "labels.jsonl"]), "'nobody'"),
        (
            lambda line, folder: (
                line.extend(["--labels", folder / "fine.jsonl"])
                or line.insert(0, "third=world:evasive")
            ),
            "exactly two models",
        ),
    ],
)
def test_bad_input_is_named(
    of_world: Path, tmp_path: Path, change: Callable[[list[object], Path], object], said: str
) -> None:
    """Each would else end in numbers about fewer prompts, or about other models, than the user
    thinks."""
    first = next(str(row["prompt_id"]) for _, row in read_rows([of_world / "prompts.jsonl"]))
    for name, rows in {
        "few": [{"prompt_id": first, "text": "x"}],
        "twice": [{"prompt_id": "a", "text": "x"}] * 2,
        "bare": [{"prompt_id": "a"}],
        "labels": [{"prompt_id": first, "preferred": "nobody"}],
        "fine": [{"prompt_id": first, "preferred": "tie"}],
    }.items():
        write_rows(tmp_path / f"{name}.jsonl", rows)
    line: list[object] = [
        "world:terse",
        "world:expert",
        "--prompts",
        of_world / "prompts.jsonl",
        "--judge",
        "world:judge",
        "--out",
        tmp_path / "out",
    ]
    change(line, tmp_path)
    with pytest.raises(BadInput, match=said):
        command(*line)


def test_model_outputs_are_found_by_their_instruction(tmp_path: Path) -> None:
    """AlpacaEval's file has no ids. Fails where order is taken for identity."""
    rows = [
        {"instruction": f"why {n}?", "output": f"because {n}", "generator": "m"}
        for n in reversed(range(12))
    ]
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    contender = open_contender(str(tmp_path / "model_outputs.json"), lambda spec: pytest.fail(spec))
    assert collect_answers(contender, PROMPTS, lambda *_: pytest.fail("asked"), max_tokens=1) == [
        f"because {n}" for n in range(12)
    ]


def test_agreement_with_the_labels_of_llmbar(real_data: Path, tmp_path: Path) -> None:
    """A judge who likes the longer text, against the published labels. Fails where labels go to the
    wrong model or prompt."""
    files = sorted((real_data / "preferences").glob("llmbar_processed_*.jsonl"))
    rows = [json.loads(text) for path in files for text in path.read_text().splitlines()]
    write_rows(
        tmp_path / "prompts.jsonl",
        ({"prompt_id": str(n), "prompt": row["input"]} for n, row in enumerate(rows)),
    )
    write_rows(
        tmp_path / "labels.jsonl",
        (
            {"prompt_id": str(n), "preferred": f"output_{row['label']}"}
            for n, row in enumerate(rows)
        ),
    )
    prompts, names = list(read_prompts([str(tmp_path / "prompts.jsonl")])), ("output_1", "output_2")

    def longer(request: Request) -> str:
        a, b = map(len, request.about["texts"])
        return f"[[{'A' if a > b else 'B' if b > a else 'C'}]]"

    pair = run(
        tmp_path,
        longer,
        {name: [row[name] for row in rows] for name in names},
        prompts,
        read_human_labels(tmp_path / "labels.jsonl", names, prompts),
    )["pairs"]["output_2 over output_1"]
    right = [
        (len(row["output_2"]) - len(row["output_1"])) * (1 if row["label"] == 2 else -1) > 0
        for row in rows
    ]
    assert (
        pair["agreement"]["n"] == len(rows) == 250
        and pair["agreement"]["share"] == sum(right) / 250
    )
    assert 0 < pair["kappa"]["ci95"][0] < pair["kappa"]["kappa"] < pair["kappa"]["ci95"][1] < 1
    assert pair["position_bias"]["first_won"] == 0.5 and pair["consistent"]["share"] == 1.0
    print(
        "llmbar:",
        json.dumps(
            {key: pair[key] for key in ("win_rate", "agreement", "kappa", "length_controlled")}
        ),
    )


def test_length_control_against_the_published_one(real_data: Path) -> None:
    """AlpacaEval 1's judgements of twelve models: ours lacks the term for an instruction's
    difficulty, and 155 of 805 prompts, but comes to where the published ones are. Fails where the
    sign of the length is wrong, or too much or little of it is taken away."""
    judged: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    with gzip.open(real_data / "alpaca_eval" / "preferences.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            if row["annotator"] == "alpaca_eval_gpt4" and row["preference"] is not None:
                judged[row["model_b"]].append(
                    (
                        (row["preference"] or 1.5) - 1,
                        len(row["completion_b"]) - len(row["completion_a"]),
                    )
                )
    with (real_data / "alpaca_eval" / "leaderboard_v1_alpaca_eval_gpt4.csv").open() as file:
        published = {row[""]: row for row in csv.DictReader(file)}
    away: dict[str, float] = {}
    for model, of in judged.items():
        points, differences = zip(*of)
        wanted = float(published[model]["length_controlled_winrate"])
        away[model] = 100 * length_controlled(points, differences)["win_rate"] - wanted
        assert (
            abs(100 * mean_with_interval("x", points)["x"] - float(published[model]["win_rate"]))
            < 2.5
        )
    assert len(away) == 12 and abs(away["zephyr-7b-beta"]) < 1 and max(map(abs, away.values())) < 8
    assert np.mean(np.abs(list(away.values()))) < 3.5  # the plain win rates are 13 away
