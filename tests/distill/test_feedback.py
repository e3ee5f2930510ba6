"""Feedback: drawn answerers, shuffled texts, strict scores, re-asks, a killed run that asks nothing
twice; a pair's story."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import ROOT
from proxy import Proxy
from runs import records

from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.distill.feedback import collect_feedback
from zephyr.distill.lineage import trace_pair
from zephyr.teacher import Budget, Ledger, Reply, Request, Teacher, ask, embedded
from zephyr.teacher.panel import MAX_REASKS
from zephyr.teacher.prompts import Row, prompt_of
from zephyr.teacher.rubric import (
    ASPECTS,
    Critique,
    Rating,
    format_critique,
    format_ratings,
    parse_critique,
    parse_ratings,
)

ZEPHYR = [str(Path(sys.executable).with_name("zephyr"))]
reasons = (
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
    .map(lambda text: f"x{text}".strip())
    .filter(lambda text: parse_ratings(f"## Text 1\nRating: 1\nRationale: {text}", 1) is not None)
)


@given(st.lists(st.builds(Rating, st.integers(1, 5), reasons), min_size=1, max_size=5))
def test_ratings_are_read_back(ratings: list[Rating]) -> None:
    """Fails where a rating goes to another text, or a reason is cut."""
    assert parse_ratings(format_ratings(ratings), len(ratings)) == ratings
    assert parse_ratings(format_ratings(ratings), len(ratings) + 1) is None


GOOD = "## Text 1\nRating: 4\nRationale: fine\n\n## Text 2\nRating: 2\nRationale: so so,\nand long"


@pytest.mark.parametrize(
    "was,becomes",
    [
        ("Rating: 4", "Rating: 6"),
        ("Rating: 4", "Rating: 0"),
        ("Rating: 4", "Rating: N/A"),
        ("Rating: 4", "Rating: 4.5"),
        ("Rating: 4", "Rating: four"),
        ("Rating: 4", "Rating: 4 or 5"),
        ("Rating: 4\n", ""),
        ("Rationale: fine", "Rationale:"),
        ("Rationale: fine\n", ""),
        ("## Text 2", "## Text 3"),
        ("## Text 2", "## Text 1"),
        ("## Text 1\n", ""),
        ("## Text 1", "Sure!\n## Text 1"),
        (GOOD, ""),
        (GOOD, "4 2"),
        ("Rating: 4\n", "Rating: 4\nRating: 5\n"),
        ("fine", "fine\nRating: 5"),
    ],
)
def test_what_is_not_in_the_form_is_no_rating(was: str, becomes: str) -> None:
    """One change to a reply that is read: fails where a number is guessed from what is left."""
    assert parse_ratings(GOOD, 2) == [Rating(4, "fine"), Rating(2, "so so,\nand long")]
    assert parse_ratings(GOOD.replace(was, becomes, 1), 2) is None


@pytest.mark.parametrize(
    "reply,found",
    [
        ("Feedback: be brief.\nOverall score: 7", Critique(7, "be brief.")),
        ("### Feedback\nIt is\n\nlong.\nOverall Score: 10/10\n", Critique(10, "It is\n\nlong.")),
        (format_critique(Critique(1, "bad")), Critique(1, "bad")),
        ("Feedback: x\nOverall score: 11", None),
        ("Feedback: x\nOverall score: 0", None),
        ("Feedback: x\nOverall score: 7.5", None),
        ("Feedback: x", None),
        ("Overall score: 7", None),
        ("Feedback: x\nOverall score: 7\nThanks!", None),
        ("Feedback: x\nOverall score: 7/5", None),
        ("", None),
        ("Feedback: x\nOverall score: 3\nOverall score: 7", None),
        ("Feedbacks vary\nOverall score: 3", None),
        ("Feedback x\nOverall score: 3", None),
    ],
)
def test_critiques(reply: str, found: Critique | None) -> None:
    """Fails where a score is taken from a reply of another form, as a 10 for a 1."""
    assert parse_critique(reply) == found


def points(aspect: str, text: str) -> int:
    """What the test's judge thinks of a text: nothing that its place tells."""
    return 1 + sum(map(ord, aspect + text)) % 5


def honest(request: Request) -> str:
    about = request.about
    if about["task"] == "rate":
        return format_ratings(
            [Rating(points(str(about["aspect"]), text), f"of {text}") for text in about["texts"]]
        )
    return format_critique(
        Critique(2 * points("overall", str(about["text"])), f"on {about['text']}")
    )


def answerers(count: int) -> list[Teacher]:
    return [
        embedded(f"m{n}", lambda request, n=n: f"m{n} says {request.messages[-1]['content']}", "1")
        for n in range(count)
    ]


def run(
    tmp_path: Path,
    judge: Callable[[Request], str] = honest,
    pool: list[Teacher] | None = None,
    prompts: list[Row] | None = None,
    name: str = "out",
    **options: object,
) -> tuple[list[Row], Row]:
    """The rows and the report of one collection, with a ledger of its own."""
    source = tmp_path / f"{name}-prompts.jsonl"
    write_rows(
        source, prompts or [{"prompt_id": f"q{n}", "prompt": f"why {n}?"} for n in range(30)]
    )
    with Ledger(tmp_path / f"{name}.ledger.jsonl") as ledger:
        report = collect_feedback(
            [str(source)],
            tmp_path / f"{name}.jsonl",
            pool or answerers(4),
            embedded("judge", judge, "1"),
            lambda teacher, requests: ask(teacher, requests, ledger, Budget()),
            **options,
        )
    return [dict(row) for _, row in read_rows([tmp_path / f"{name}.jsonl"])], report


def test_scores_go_to_their_answers(tmp_path: Path) -> None:
    """Texts are judged in an order drawn for each question and kept in the row. Fails where a
    score, a reason or a critique ends at another answer, where the order is always the same, or is
    not the one that the judge saw."""
    seen: dict[tuple[str, str], list[str]] = {}

    def watching(request: Request) -> str:
        if request.about["task"] == "rate":
            seen[request.about["row"]["prompt_id"], str(request.about["aspect"])] = list(
                request.about["texts"]
            )
            shown = [
                request.messages[-1]["content"].index(f"## Text {n}\n{text}")
                for n, text in enumerate(request.about["texts"], 1)
            ]
            assert shown == sorted(shown)
        return honest(request)

    rows, report = run(tmp_path, watching)
    orders = Counter()
    for row in rows:
        for completion in row["completions"]:
            text = completion["text"]
            assert completion["scores"] == {aspect: points(aspect, text) for aspect in ASPECTS}
            assert completion["rationales"] == dict.fromkeys(ASPECTS, f"of {text}")
            assert (
                completion["overall"] == 2 * points("overall", text)
                and completion["critique"] == f"on {text}"
            )
        for aspect in ASPECTS:
            assert seen[row["prompt_id"], aspect] == [
                row["completions"][n]["text"] for n in row["order"][aspect]
            ]
            orders[tuple(row["order"][aspect])] += 1
    assert len(orders) > 20 and report["rows"] == 30 and report["unparsed"] == 0


def test_replies_that_cannot_be_read(tmp_path: Path) -> None:
    """Nonsense about one aspect at first, then a good reply; nonsense for ever about another, and
    in one critique. Fails where a number is made up, the raw reply is lost, or the judge is asked
    for ever."""
    asked: Counter[tuple[str, str]] = Counter()

    def faulty(request: Request) -> str:
        about = request.about
        key = (about["row"]["prompt_id"], str(about.get("aspect", about.get("text"))))
        asked[key] += 1
        if (about.get("aspect") == "honesty" and asked[key] == 1) or (
            about.get("aspect") == "truthfulness" and key[0] == "q3"
        ):
            return f"I would say 5 all round ({asked[key]})."
        if about["task"] == "critique" and about["text"].startswith("m2 says why 4"):
            return "10"
        if asked[key] > 1:
            assert (
                request.messages[-2]["role"] == "assistant"
                and "form" in request.messages[-1]["content"]
            )
        return honest(request)

    rows, report = run(tmp_path, faulty)
    for row in rows:
        calls = row["calls"]
        assert (
            len(calls["honesty"]) == 2
            and len(set(calls["honesty"])) == 2
            and len(calls["helpfulness"]) == 1
        )
        for completion in row["completions"]:
            assert completion["scores"]["honesty"] == points("honesty", completion["text"])
    q3, q4 = rows[3], rows[4]
    assert all(
        c["scores"]["truthfulness"] is None and c["scores"]["helpfulness"]
        for c in q3["completions"]
    )
    assert (
        q3["unparsed"] == {"truthfulness": f"I would say 5 all round ({1 + MAX_REASKS})."}
        and len(q3["calls"]["truthfulness"]) == 1 + MAX_REASKS
    )
    assert q4["unparsed"] == {"critique m2": "10"} and [
        c["overall"] is None for c in q4["completions"]
    ] == [False, False, True, False]
    assert report["unparsed"] == 2 and "unparsed" not in rows[5]


def test_answers_that_are_none(tmp_path: Path) -> None:
    """An answerer that refuses, and one that says nothing: their answers are left out and counted;
    a prompt with one answer left is named. Fails where an empty text is judged, or a prompt
    vanishes without a word."""

    def refuses(requests: list[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        for request in requests:
            keep(Reply(request.digest("no"), None, "no", "", 1, 0, 0.0, "", error="too long"))

    silent = embedded("silent", lambda request: " \n", "1")
    rows, report = run(tmp_path, pool=[*answerers(2), Teacher("no", refuses), silent])
    assert [[c["model"] for c in row["completions"]] for row in rows] == [["m0", "m1"]] * 30
    assert (report["refused"], report["empty"], report["too_few_answers"]) == (30, 30, 0)
    pool = [*answerers(2), Teacher("no", refuses), silent]
    few = list(run(tmp_path, pool=pool, per_prompt=2, name="few")[0])
    _, report = run(tmp_path, pool=pool, per_prompt=2, name="few")
    assert report["rows"] == len(few) == 30 - report["too_few_answers"] and 0 < len(few) < 30
    assert {row["prompt_id"] for row in few}.isdisjoint(report["left_out"]) and len(
        report["left_out"]
    ) == 30 - len(few)
    with pytest.raises(BadInput, match="no prompt got two answers"):
        run(tmp_path, pool=[*answerers(1), Teacher("no", refuses)], per_prompt=2, name="none")
    assert not list(tmp_path.glob("none.jsonl*"))


def test_a_pool_is_drawn_from(tmp_path: Path) -> None:
    """Four of seven, drawn by prompt: each as often as any other, the same whatever the order of
    the prompts. Fails for a draw that depends on what was drawn before, or prefers the first."""
    prompts = [{"prompt_id": f"q{n}", "prompt": f"why {n}?"} for n in range(280)]
    rows, _ = run(tmp_path, pool=answerers(7), prompts=prompts)
    drawn = Counter(completion["model"] for row in rows for completion in row["completions"])
    assert all(len({c["model"] for c in row["completions"]}) == 4 for row in rows)
    assert len(drawn) == 7 and all(
        120 <= count <= 200 for count in drawn.values()
    )  # 160 each; sd 8
    shuffled, _ = run(
        tmp_path, pool=answerers(7), prompts=random.Random(1).sample(prompts, 280), name="shuffled"
    )
    assert sorted(map(json.dumps, shuffled)) == sorted(map(json.dumps, rows))
    principles = Counter(
        completion["principle"] for row in rows for completion in row["completions"]
    )
    assert len(principles) == 5 and min(principles.values()) > 40
    plain, _ = run(tmp_path, prompts=prompts[:3], principles=False, name="plain")
    assert {completion["principle"] for row in plain for completion in row["completions"]} == {None}


def test_without_a_judge_the_answers_are_written(tmp_path: Path) -> None:
    """What delta learning needs. Fails where nobody's scores are written as null ratings, or other
    answers are asked for than a judge would have seen."""
    judged, _ = run(tmp_path)
    with Ledger(tmp_path / "alone.ledger.jsonl") as ledger:
        report = collect_feedback(
            [str(tmp_path / "out-prompts.jsonl")],
            tmp_path / "alone.jsonl",
            answerers(4),
            None,
            lambda teacher, requests: ask(teacher, requests, ledger, Budget()),
        )
    rows = [row for _, row in read_rows([tmp_path / "alone.jsonl"])]
    assert report["judge"] is None and all(
        row.keys() == {"prompt_id", "prompt", "completions"} for row in rows
    )
    answered = ("model", "principle", "text", "call")
    for row, other in zip(rows, judged, strict=True):
        assert row["completions"] == [
            {key: completion[key] for key in answered} for completion in other["completions"]
        ]


@pytest.mark.parametrize(
    "row,prompt",
    [
        ({"prompt": "why?"}, "why?"),
        (
            {"prompt": "why?", "system": "S"},
            [{"role": "system", "content": "S"}, {"role": "user", "content": "why?"}],
        ),
        ({"prompt": [{"role": "user", "content": "why?"}]}, "why?"),
        ({"instruction": "sum", "input": "1 2"}, "sum\n\n1 2"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": "d"},
                ]
            },
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
        ),
    ],
)
def test_prompts_of_rows(row: Row, prompt: object) -> None:
    """Fails where the answer of a row is shown to those who shall answer it, or a dialogue is
    cut."""
    assert prompt_of(row) == (prompt, [])


@pytest.mark.parametrize(
    "row,prompt",
    [
        (
            {"prompt": "q", "system_message": "S"},
            [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}],
        ),
        (
            {"prompt": "q", "History": [["a", "b"]]},
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "q"},
            ],
        ),
        ({"instruction": "sum", "context": "1 2"}, "sum\n\n1 2"),
        ({"prompt": "q", "tools": [{"name": "f"}]}, "`tools` is"),
        ({"prompt": "Translate", "input": "Good day to you"}, "`input` is"),
        ({"prompt": "Translate", "context": "Good day"}, "`context` is"),
        ({"question": "q"}, r"\['question'\], expected `prompt`"),
        ({"prompt": "\n\nHuman: q\n\nAssistant:"}, "`prompt` is a transcript"),
        ({"prompt": "q", "images": ["x"]}, "`images` is"),
        (
            {"prompt": '[{"role": "user", "content": "q"}]'},
            "`prompt` is the text of a list of messages",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}], "prompt": "Another one, not q."},
            "`prompt` is",
        ),
    ],
)
def test_what_stands_beside_a_prompt(row: Row, prompt: object) -> None:
    """Another question was asked than the row's: its system, history or context went unsaid, or a
    transcript was one turn's words."""
    if not isinstance(prompt, str) or prompt.startswith("sum"):
        assert prompt_of(row) == (prompt, []) and prompt_of({**row, "colour": 1}) == (
            prompt,
            ["colour"],
        )
        return
    with pytest.raises(ValueError, match=prompt) as error:
        prompt_of(row)
    assert "data.columns" not in str(error.value)


@pytest.mark.parametrize(
    "rows,says",
    [
        ([{"prompt": ""}], "prompts.jsonl:1: "),
        ([{"text": "why?"}], "prompts.jsonl:1: "),
        ([{"prompt": 3}], "prompts.jsonl:1: "),
        (
            [{"prompt_id": "a", "prompt": "x"}, {"prompt_id": "a", "prompt": "y"}],
            "prompts.jsonl:2: prompt_id 'a' comes twice, first at",
        ),
    ],
)
def test_bad_prompts(rows: list[Row], says: str, tmp_path: Path) -> None:
    """Fails where a bad row is no error of one line with file and line, or half of the output is
    left."""
    with pytest.raises(BadInput, match=says):
        run(tmp_path, prompts=rows)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(BadInput, match="at least 5 answerers"):
        run(tmp_path, per_prompt=5)
    with pytest.raises(BadInput, match="different names"):
        run(tmp_path, pool=answerers(2) * 2)


@pytest.fixture(scope="module")
def of_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty prompts of the embedded world, answered, judged and made into pairs by the commands."""
    folder = tmp_path_factory.mktemp("world")
    assert main(["world", str(folder / "world")]) == 0
    prompts = (folder / "world" / "prompts" / "feedback.jsonl").read_text().splitlines(True)
    (folder / "prompts.jsonl").write_text("".join(prompts[:60]))
    (folder / "feedback.yaml").write_text(
        json.dumps(
            {
                "prompts": [str(folder / "prompts.jsonl")],
                "answerers": [
                    f"world:{n}@{folder / 'world'}"
                    for n in ("expert", "terse", "careless", "evasive")
                ],
                "judge": f"world:judge@{folder / 'world'}",
                "out": str(folder / "feedback.jsonl"),
            }
        )
    )
    assert main(["feedback", "--config", str(folder / "feedback.yaml")]) == 0
    assert (
        main(
            [
                "binarize",
                str(folder / "feedback.jsonl"),
                "--rule",
                "paper",
                "--seed",
                "42",
                "--out",
                str(folder / "pairs.jsonl"),
            ]
        )
        == 0
    )
    return folder


def test_the_commands_on_the_world(of_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where the judge's own scores are not those in the rows, or a second run asks anything
    or writes other bytes."""
    from zephyr.world.facts import load_world
    from zephyr.world.rules import judge

    facts = load_world(of_world / "world" / "world.json")
    prompts = {row["prompt_id"]: row for _, row in read_rows([of_world / "prompts.jsonl"])}
    rows = [row for _, row in read_rows([of_world / "feedback.jsonl"])]
    for row in rows:
        for completion in row["completions"]:
            assert (
                completion["scores"]
                == judge(prompts[row["prompt_id"]], completion["text"], facts).scores
            )
    assert len(rows) == 60 and {
        completion["model"] for row in rows for completion in row["completions"]
    } == {"expert", "terse", "careless", "evasive"}
    before = {path.name: path.read_bytes() for path in of_world.glob("feedback.*")}
    assert main(["feedback", "--config", str(of_world / "feedback.yaml")]) == 0
    assert {path.name: path.read_bytes() for path in of_world.glob("feedback.*")} == before
    assert set(before) == {
        "feedback.jsonl",
        "feedback.report.json",
        "feedback.ledger.jsonl",
        "feedback.yaml",
    }
    for line in map(json.loads, before["feedback.ledger.jsonl"].splitlines()[:3]):
        assert {
            "digest",
            "text",
            "model",
            "version",
            "prompt_tokens",
            "completion_tokens",
            "price",
            "time",
            "request",
        } <= line.keys()


def test_a_budget_ends_a_command_which_goes_on(
    of_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 75 at the budget, nothing written but the ledger; with a larger one, the file of a run
    without. Fails where replies are lost."""
    arguments = [
        "feedback",
        "--config",
        str(of_world / "feedback.yaml"),
        "--out",
        str(tmp_path / "feedback.jsonl"),
    ]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--budget-requests", "100"])
    assert end.value.code == 75 and capsys.readouterr().err.startswith(
        "stopped: budget: requests: the limit is 100"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["feedback.ledger.jsonl"]
    assert len((tmp_path / "feedback.ledger.jsonl").read_text().splitlines()) == 100
    assert (
        main([*arguments, "--budget-requests", "720"]) == 0
    )  # 60 x (4 answers + 4 aspects + 4 critiques)
    assert (tmp_path / "feedback.jsonl").read_bytes() == (of_world / "feedback.jsonl").read_bytes()


@pytest.mark.parametrize(
    "tree,says",
    [
        ("answerer: [a]", "answerer: unknown option; the nearest is answerers"),
        ("concurrency: many", "concurrency: expected N, got 'many'"),
        ("no-principles: 3", "no-principles: expected true or false"),
        ("- a", "expected a mapping of options"),
        ("a: [", "not YAML"),
        ("price: {m: [1]}", "price: expected MODEL=PROMPT,COMPLETION"),
    ],
)
def test_bad_config_of_a_command(
    tree: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a wrong key or value of --config is no line that names both, with code 2."""
    (tmp_path / "c.yaml").write_text(tree)
    assert main(["feedback", "--config", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config ") and says in error and error.count("\n") == 1
    assert main(["feedback", "--config", str(tmp_path / "nowhere.yaml")]) == 2


@pytest.mark.parametrize(
    "spec", ["gpt-4", "openai:gpt-4", "world:nobody", "hf:", "world:", "openai:m@ftp://x"]
)
def test_bad_specs(
    spec: str, of_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a SPEC that names no teacher is no line that shows what would."""
    code = main(
        [
            "feedback",
            str(of_world / "prompts.jsonl"),
            "--answerers",
            "world:expert,world:terse,world:careless,world:evasive",
            "--judge",
            spec,
            "--out",
            str(tmp_path / "out.jsonl"),
        ]
    )
    assert (
        code == 2
        and spec in (error := capsys.readouterr().err)
        and error.count("\n") == 1
        and not (tmp_path / "out.jsonl").exists()
    )


def test_kill_9_and_nothing_is_asked_twice(proxy: Proxy, tmp_path: Path) -> None:
    """A real server answers and judges; the command is killed twice in the middle, then left alone:
    the rows of an undisturbed run, and every request reached the server once, but those in flight
    at a kill. Fails for a lost, doubled or repeated call."""
    write_rows(
        tmp_path / "prompts.jsonl",
        [{"prompt_id": f"q{n}", "prompt": f"why is the sky blue {n}"} for n in range(5)],
    )
    spec = f"openai:{proxy.model}@{proxy.url}"

    def command(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *ZEPHYR,
                "feedback",
                str(tmp_path / "prompts.jsonl"),
                "--answerers",
                f"{spec},world:expert",
                "--per-prompt",
                "2",
                "--judge",
                spec,
                "--out",
                str(tmp_path / out),
                "--max-new-tokens",
                "8",
                "--concurrency",
                "2",
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OPENAI_API_KEY": "sk-planted", "OMP_NUM_THREADS": "1"},
        )

    for wanted in (3, 12):
        process = command("killed.jsonl")
        deadline = time.monotonic() + 120
        while len(proxy.calls) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed.jsonl").exists()
    assert command("killed.jsonl").wait(timeout=120) == 0
    calls, lines = len(proxy.calls), (tmp_path / "killed.ledger.jsonl").read_text().splitlines()
    asked = Counter(json.dumps(call.asked, sort_keys=True) for call in proxy.calls)
    from_server = [line for line in map(json.loads, lines) if line["model"] != "expert"]
    assert len(from_server) == len(asked) and calls - len(asked) <= 2 * 2
    assert len({line["digest"] for line in from_server}) == len(
        from_server
    ) and "sk-planted" not in "".join(lines)
    assert command("killed.jsonl").wait(timeout=120) == 0 and len(proxy.calls) == calls
    assert command("undisturbed.jsonl").wait(timeout=120) == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_the_story_of_a_pair(
    of_world: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From id to prompt, four answers, twelve calls and their scores; and from a run, the steps
    with their losses. Fails where a link of the chain is broken, or another pair's is told."""
    _, pair = next(read_rows([of_world / "pairs.jsonl"]))
    assert main(["lineage", str(pair["id"]), "--pairs", str(of_world / "pairs.jsonl")]) == 0
    told = capsys.readouterr().out
    assert all(
        text in told
        for text in (
            pair["prompt"],
            pair["chosen"][:100],
            pair["rejected"][:100],
            "rule      paper, seed 42",
        )
    )
    row = next(
        row
        for _, row in read_rows([of_world / "feedback.jsonl"])
        if row["prompt_id"] == pair["prompt_id"]
    )
    digests = (
        [c["call"] for c in row["completions"]]
        + [d for c in row["completions"] for d in c["critique_calls"]]
        + [d for of in row["calls"].values() for d in of]
    )
    assert (
        len(digests) == 12
        and all(f"call {digest[:16]}" in told for digest in digests)
        and told.count(" tokens, price 0, ") == 12
    )
    assert told.count("by the facts") == 16
    lines = list(trace_pair("p7", None, finished / "run"))
    losses = [line.split("loss ")[1].split(",")[0] for line in lines if line.startswith("  step")]
    assert (
        len(losses) == 2
        and losses[0] == "0.6931"
        and losses[1] != "0.6931"
        and len(records(finished / "run")) == 6
    )
    with pytest.raises(BadInput, match="no pair has the id 'p77'"):
        list(trace_pair("p77", None, finished / "run"))
    with pytest.raises(BadInput, match="--pairs FILE or --run"):
        list(trace_pair("p7", None, None))
