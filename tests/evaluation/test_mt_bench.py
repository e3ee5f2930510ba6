"""`zephyr eval mt-bench`: questions, answers, judgements, scores, with GPT-4's stored judgements,
the embedded judge and a real server."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from proxy import Proxy

from zephyr import cli
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation import benchmarks
from zephyr.evaluation.benchmarks import judge_answers, load_bench, read_answers
from zephyr.evaluation.mt_bench import judge_messages, parse_rating, score_judgments, temperature
from zephyr.teacher import Budget, Ledger, Request, ask, embedded
from zephyr.world.facts import build_world
from zephyr.world.teacher import prompts_by_text

PROMPTS = list(prompts_by_text(build_world(0)).values())[:12]
PUBLISHED = {
    "llama2_chat_7b": 6.19,
    "llama2_7b": 3.97,
    "ultrachat_baseline": 6.39,
    "dolphin-2.2.1-mistral-7b": 7.47,
    "mistral-7b_dolphin_orca_wgm_dpo_bf16": 7.81,
}


def run(*arguments: str | Path) -> None:
    """The command, without `main`, which would turn BadInput into a line."""
    cli.run(["eval", "mt-bench", *map(str, arguments)])


def fastchat(number: object, model: str, turns: list[str]) -> dict[str, object]:
    return {
        "question_id": number,
        "answer_id": "a",
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": 1.0,
    }


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Six questions of the embedded world, one of them mathematics with its reference, in
    FastChat's layout."""
    folder = tmp_path / "bench"
    categories = ("writing", "stem", "math", "coding", "humanities", "extraction")
    turns = [[first.prompt, second.prompt] for first, second in zip(PROMPTS[::2], PROMPTS[1::2])]
    write_rows(
        folder / "question.jsonl",
        (
            {"question_id": 81 + n, "category": category, "turns": turns[n]}
            for n, category in enumerate(categories)
        ),
    )
    write_rows(
        folder / "reference_answer" / "gpt-4.jsonl",
        (fastchat(n, "gpt-4", ["the first", "the second"]) for n in (83, 84)),
    )
    return folder


@pytest.mark.parametrize(
    "text,score",
    [
        ("Rating: [[7]]", 7),
        ("Rating: [[7.5]]", 7.5),
        ("so [[3]], not [[9]]", 3),
        ("Rating: [7]", 7),
        ("see [2], thus [[6]]", 6),
        ("Rating: 7", -1),
        ("[[seven]]", -1),
        ("$ERROR$", -1),
        ("", -1),
        ("as in [2023]", -1),
        ("[[-1]]", -1),
        ("[[10]]", 10),
        ("[[0]]", 0),
    ],
)
def test_ratings(text: str, score: float) -> None:
    """FastChat's rule: the first [[n]], else the first [n]. Fails where a year becomes a rating, or
    a rating is missed."""
    assert parse_rating(text) == score


def test_temperatures() -> None:
    """FastChat's table; fails where a question's own temperature does not go first, or a category's
    is another."""
    wanted = {
        "writing": 0.7,
        "roleplay": 0.7,
        "extraction": 0,
        "math": 0,
        "coding": 0,
        "reasoning": 0,
        "stem": 0.1,
        "humanities": 0.1,
    }
    assert {category: temperature({"category": category}) for category in wanted} == wanted
    assert (
        temperature({"category": "other"}) == 0.7
        and temperature({"category": "math", "required_temperature": 0.3}) == 0.3
    )


def test_gpt4s_judgements(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2,080 stored judgements: the stated means, 15 records of -1 left out, every score found again
    in its text, plain sums for all else. Fails where a -1 is counted, a rating is read otherwise
    than FastChat did, or the standard output holds more than JSON."""
    file = real_data / "mt_bench" / "judgments_gpt4_single.jsonl.gz"
    run("--from-judgments", file, "--bench-dir", real_data / "mt_bench", "--json")
    results = json.loads(capsys.readouterr().out)
    rows = [row for _, row in read_rows([file])]
    assert len(rows) == 2080 and sum(of["unparsed"] for of in results.values()) == 15 == sum(
        row["score"] == -1 for row in rows
    )
    assert [row["judgment"] for row in rows if parse_rating(row["judgment"]) != row["score"]] == []
    for model, mean in PUBLISHED.items():
        assert results[model]["score"] == pytest.approx(mean, abs=0.005)
    of_model: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["score"] != -1:
            of_model[row["model"]][row["question_id"]].append(row["score"])
    for model, questions in of_model.items():
        scores, of = [score for given in questions.values() for score in given], results[model]
        assert (
            of["score"] == pytest.approx(statistics.fmean(scores))
            and of["n"] == len(scores)
            and of["questions"] == len(questions)
        )
        assert (
            of["ci95"][0] < of["score"] < of["ci95"][1]
            and len(of["categories"]) == 8
            and of["turns"].keys() == {"1", "2"}
        )
        assert of["ci95"][1] - of["ci95"][0] == pytest.approx(2 * 1.96 * of["stderr"], rel=0.1)
        if all(len(given) == 2 for given in questions.values()):
            means = [statistics.fmean(given) for given in questions.values()]
            assert of["stderr"] == pytest.approx(statistics.stdev(means) / math.sqrt(80))
            assert of["score"] == pytest.approx(
                (of["turns"]["1"]["score"] + of["turns"]["2"]["score"]) / 2
            )


def test_prompts_are_fastchats(real_data: Path) -> None:
    """From FastChat's questions, references and templates and the stored answers, the very prompts
    come out that GPT-4 was shown, for all 2,080. Fails for a wrong template, turn, reference or
    answer, to the letter."""
    folder = real_data / "mt_bench"
    bench, answers = load_bench(folder), read_answers(folder / "model_answers_judged.jsonl.gz")
    questions = {row["question_id"]: row for row in bench.questions}
    answers["finetune_llama2_chat_7b_FFNet"] = answers[
        "llama2_chat_7b_FFNet"
    ]  # the one model with another id in each of the two files
    other = []
    for _, row in read_rows([folder / "judgments_gpt4_single.jsonl.gz"]):
        number = row["question_id"]
        name, (_, user) = judge_messages(
            "single",
            bench.templates,
            questions[number],
            bench.references.get(number, ()),
            [answers[row["model"]][number]],
            row["turn"],
        )
        other += (
            [(number, row["turn"])]
            if (name, user["content"]) != (row["judge"][1], row["user_prompt"])
            else []
        )
    assert other == [] and len(answers) == 14
    name, (system, user) = judge_messages(
        "pair",
        bench.templates,
        questions[101],
        bench.references[101],
        [("a1", "a2"), ("b1", "b2")],
        2,
    )
    assert name == "pair-math-v1-multi-turn" and system["content"].startswith(
        "Please act as an impartial judge"
    )
    assert [
        user["content"].count(text) for text in ("a1", "a2", "b1", "b2", *bench.references[101])
    ] == [1] * 6


def test_turns_of_a_question_go_together() -> None:
    """Two equal turns are no more evidence than one: the interval is that of the questions. Where a
    turn has no verdict the mean is of the judgements, as FastChat's. Fails where 2 n judgements
    count as independent."""
    scores = [1, 3, 4, 8, 9, 10, 2, 7]

    def judged(turns: tuple[int, ...], lacking: tuple[int, int] = (-1, -1)) -> dict[str, object]:
        rows = [
            {
                "question_id": q,
                "model": "m",
                "turn": turn,
                "score": -1 if (q, turn) == lacking else score,
            }
            for q, score in enumerate(scores)
            for turn in turns
        ]
        return score_judgments((("", row) for row in rows), {})["m"]

    once, twice, lacks = judged((1,)), judged((1, 2)), judged((1, 2), (5, 2))
    assert (
        twice["stderr"]
        == pytest.approx(once["stderr"])
        == pytest.approx(statistics.stdev(scores) / math.sqrt(8))
    )
    assert twice["ci95"] == pytest.approx(once["ci95"]) and (
        once["n"],
        twice["n"],
        lacks["n"],
        lacks["unparsed"],
    ) == (8, 16, 15, 1)
    assert (
        lacks["score"] == pytest.approx((2 * sum(scores) - 10) / 15)
        and lacks["turns"]["2"]["n"] == 7
    )
    nothing = score_judgments([("", {"question_id": 1, "model": "m", "turn": 1, "score": -1})], {})[
        "m"
    ]
    assert nothing["score"] is None and (nothing["n"], nothing["unparsed"]) == (0, 1)


def answer_files(tmp_path: Path) -> tuple[Path, Path]:
    """A model that knows, and one that does not."""
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    run(
        "good=world:expert",
        "--bench-dir",
        tmp_path / "bench",
        "--judge",
        "world:judge",
        "--out",
        tmp_path / "made",
    )
    (tmp_path / "made/model_answer/good.jsonl").rename(good)
    write_rows(bad, (fastchat(81 + n, "bad", ["Blue blue, I think?", "No."]) for n in range(6)))
    return good, bad


def test_stored_answers(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files of answers are graded by the embedded judge: the better model scores more; records
    are FastChat's; the result names judge and template; a second run asks nobody and gives the same
    bytes. Fails where a judgement goes to another answer."""
    good, bad = answer_files(tmp_path)
    arguments = (
        "--answers",
        good,
        "--answers",
        bad,
        "--bench-dir",
        bench,
        "--judge",
        "world:judge",
        "--out",
        tmp_path / "out",
        "--json",
    )
    capsys.readouterr()
    run(*arguments)
    results = json.loads(capsys.readouterr().out)
    assert (
        results["good"]["score"] > 6 > results["bad"]["score"]
        and results["good"]["n"] == 12
        and results["bad"]["unparsed"] == 0
    )
    assert results["good"]["categories"].keys() == {
        "writing",
        "stem",
        "math",
        "coding",
        "humanities",
        "extraction",
    }
    assert (
        results["good"]["judge"]["name"] == "judge"
        and len(results["good"]["judge"]["templates"]["mt_bench_single"]) == 64
    )
    rows = [row for _, row in read_rows([tmp_path / "out/model_judgment/judge_single.jsonl"])]
    assert {tuple(row) for row in rows} == {
        ("question_id", "model", "judge", "turn", "score", "user_prompt", "judgment", "tstamp")
    }
    for row in rows:
        texts = {"good": read_answers(good), "bad": read_answers(bad)}[row["model"]][row["model"]][
            row["question_id"]
        ]
        assert (
            row["user_prompt"].count(f"[assistant]\n{texts[row['turn'] - 1]}") >= 1
            and parse_rating(row["judgment"]) == row["score"]
        )
        assert ("the first" in row["user_prompt"]) == (row["question_id"] in (83, 84))
        assert ("the second" in row["user_prompt"]) == (
            row["question_id"] in (83, 84) and row["turn"] == 2
        )
    before = {path: path.read_bytes() for path in tmp_path.rglob("out*") if path.is_file()} | {
        path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    run(*arguments)
    assert (
        all(path.read_bytes() == content for path, content in before.items()) and len(before) == 3
    )
    capsys.readouterr()
    run(
        "--from-judgments",
        tmp_path / "out/model_judgment/judge_single.jsonl",
        "--bench-dir",
        bench,
        "--json",
    )
    again = json.loads(capsys.readouterr().out)
    records = {"judge_single.jsonl": again["good"]["records"]["judge_single.jsonl"]}
    assert again == {
        model: {
            **{key: value for key, value in of.items() if key not in ("judge", "answers")},
            "records": records,
        }
        for model, of in results.items()
    }
    stored = ("--from-judgments", tmp_path / "out/model_judgment/judge_single.jsonl", "--answers")
    run(*stored, good, "--json")
    answers = read_answers(bad)["bad"]
    for turns, said in (
        ({**answers, 81: ["Green.", "No."]}, "question 81 is about another answer than that"),
        ({**answers, 99: ["x", "y"]}, "bad: no judgement of its answer to question 99"),
        ({81: answers[81]}, "the file of bad has no answer to question 82"),
    ):
        write_rows(tmp_path / "other.jsonl", (fastchat(n, "bad", [*of]) for n, of in turns.items()))
        with pytest.raises(BadInput, match=said):
            run(*stored, tmp_path / "other.jsonl")
    write_rows(tmp_path / "other.jsonl", [fastchat(99, "bad", ["x", "y"])])
    with pytest.raises(BadInput, match="bad answers question 99, which is none of the 6"):
        run("--answers", tmp_path / "other.jsonl", *arguments[4:-1])


def pairwise(
    bench: Path, tmp_path: Path, reply: Callable[[Request], str]
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Rows and results of comparing a model that writes long answers with one that writes short
    ones."""
    answers = {
        "short": {81 + n: ("s", "s") for n in range(6)},
        "long": {81 + n: ("much longer", "much longer") for n in range(6)},
    }
    judge = embedded("j", reply, "1")
    with Ledger(tmp_path / "pair.ledger.jsonl") as ledger:
        rows, _ = judge_answers(
            "pair",
            load_bench(bench),
            answers,
            judge,
            lambda *asked: ask(*asked, ledger, Budget()),
            max_tokens=64,
            seed=0,
        )
    return rows, score_judgments((("", row) for row in rows), {})["short over long"]


def test_pairs_are_judged_in_both_orders(bench: Path, tmp_path: Path) -> None:
    """A judge of lengths finds the longer answer on either side; one that prefers whatever comes
    first gives ties and a bias of 1; replies without one verdict are counted. Fails where the
    second order is not asked, or its verdict not turned round."""

    def longest(request: Request) -> str:
        first, second = request.about["texts"]
        return "[[A]]" if len(first) > len(second) else "[[B]]"

    rows, result = pairwise(bench, tmp_path / "1", longest)
    assert {(row["g1_winner"], row["g2_winner"]) for row in rows} == {
        ("model_2", "model_2")
    } and len(rows) == 12
    assert (result["win_rate"], result["losses"], result["position_bias"]["first_won"]) == (
        0,
        12,
        0.5,
    )
    assert all(row["g1_user_prompt"] != row["g2_user_prompt"] for row in rows)
    assert rows[0].keys() == {
        "question_id",
        "model_1",
        "model_2",
        "g1_winner",
        "g2_winner",
        "judge",
        "g1_user_prompt",
        "g1_judgment",
        "g2_user_prompt",
        "g2_judgment",
        "turn",
        "tstamp",
    }
    rows, result = pairwise(bench, tmp_path / "2", lambda _: "[[A]]")
    assert {(row["g1_winner"], row["g2_winner"]) for row in rows} == {("model_1", "model_2")}
    assert (
        result["win_rate"],
        result["ties"],
        result["n"],
        result["position_bias"]["first_won"],
    ) == (0.5, 12, 12, 1)
    rows, result = pairwise(bench, tmp_path / "3", lambda request: "either [[A]] or [[B]]")
    assert {row["g1_winner"] for row in rows} == {"error"} and (
        result["n"],
        result["unparsed"],
        result["win_rate"],
    ) == (0, 12, None)


def test_a_real_server(
    bench: Path, tmp_path: Path, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server answers and judges three questions. Fails where the second turn lacks the first
    one's answer, a category's temperature is not sent, a judgement that can't be read is scored, or
    a second run asks again."""
    write_rows(
        bench / "question.jsonl",
        [dict(row) for _, row in read_rows([bench / "question.jsonl"])][:3],
    )
    spec = f"openai:{proxy.model}@{proxy.url}"
    arguments = (
        f"m={spec}",
        "--bench-dir",
        bench,
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
        result["n"] + result["unparsed"] == 6 and result["unparsed"] > 0 and len(proxy.calls) == 12
    )
    answers = read_answers(tmp_path / "out/model_answer/m.jsonl")["m"]
    asked = [call.asked for call in proxy.calls[:6]]
    for number, question in (
        (row["question_id"], row) for _, row in read_rows([bench / "question.jsonl"])
    ):
        (second,) = [
            call for call in asked if call["messages"][-1]["content"] == question["turns"][1]
        ]
        assert [m["content"] for m in second["messages"]] == [
            question["turns"][0],
            answers[number][0],
            question["turns"][1],
        ]
        assert second["temperature"] == temperature(question)
    assert {call.asked["temperature"] for call in proxy.calls[6:]} == {0.0}
    run(*arguments)
    assert json.loads(capsys.readouterr().out)["m"] == result and len(proxy.calls) == 12


def test_bad_input(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one line that names what is wrong, before anything is asked."""
    good = tmp_path / "good.jsonl"
    write_rows(good, (fastchat(81 + n, "good", ["a", "b"]) for n in range(6)))
    rest = ("--judge", "world:judge", "--out", tmp_path / "out")
    monkeypatch.setattr(benchmarks, "Request", lambda *_, **__: pytest.fail("a request was made"))

    def refused(says: str, *arguments: str | Path) -> None:
        with pytest.raises(BadInput, match=says):
            run(*arguments)

    refused("--judge, --out, --bench-dir: required", good)
    refused("a MODEL or --answers", "--bench-dir", bench, *rest)
    refused(
        "no question.jsonl; it comes from fastchat/llm_judge", good, "--bench-dir", tmp_path, *rest
    )
    refused("two models have one name: good ", good, "--answers", good, "--bench-dir", bench, *rest)
    write_rows(tmp_path / "few.jsonl", [fastchat(81, "few", ["a"])])
    refused(
        "few.jsonl:1: expected question_id, model_id and choices.* of two texts",
        tmp_path / "few.jsonl",
        "--bench-dir",
        bench,
        *rest,
    )
    write_rows(tmp_path / "few.jsonl", [fastchat(81, "few", ["a", "b"])] * 2)
    refused(
        "few.jsonl:2: few answers question 81 a second time",
        tmp_path / "few.jsonl",
        "--bench-dir",
        bench,
        *rest,
    )
    write_rows(tmp_path / "judged.jsonl", [{"question_id": 1, "model": "m", "score": 3}])
    refused(
        "judged.jsonl:1: expected a judgement of FastChat's",
        "--from-judgments",
        tmp_path / "judged.jsonl",
    )
    (bench / "reference_answer/gpt-4.jsonl").unlink()
    refused("no reference_answer/gpt-4.jsonl or", good, "--bench-dir", bench, *rest)
    monkeypatch.undo()  # these are found when the question to the judge is written
    write_rows(bench / "reference_answer_gpt-4.jsonl", [fastchat(83, "gpt-4", ["x", "y"])])
    refused(
        "question 84 .coding.: no reference answer, of fastchat", good, "--bench-dir", bench, *rest
    )
    write_rows(
        bench / "reference_answer_gpt-4.jsonl", (fastchat(n, "gpt-4", ["x", "y"]) for n in (83, 84))
    )
    write_rows(tmp_path / "few.jsonl", [fastchat(81, "few", ["a", "b"])])
    refused(
        "question 82 .stem.: no answer of few", tmp_path / "few.jsonl", "--bench-dir", bench, *rest
    )
    write_rows(
        bench / "judge_prompts.jsonl",
        [{"name": "single-v1", "system_prompt": "s", "prompt_template": "{questions}"}],
    )
    refused(
        "judge template 'single-v1': KeyError.'questions'.*question_1",
        good,
        "--bench-dir",
        bench,
        *rest,
    )
