"""Self-Instruct, Alpaca and dialogues with a scripted teacher: a function of the request, as the
embedded ones are."""

import gzip
import json
import random
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zephyr.config import BadInput
from zephyr.data.shapes import sft_row
from zephyr.distill import task_pool
from zephyr.distill.self_instruct import read_seeds, self_instruct
from zephyr.distill.task_pool import SimilarityIndex
from zephyr.distill.tasks import parse_blocks, parse_numbered
from zephyr.teacher import Budget, BudgetSpent, Ledger, Reply, Request, ask, embedded
from zephyr.teacher.templates import fill, load_templates

WORDS = (
    "amber boat candle dune ember forest granite harbour island jungle kettle lantern meadow "
    "needle orchard pepper quarry river saddle timber umbrella valley window yarrow zephyr"
).split()
SEEDS = [
    {
        "id": f"s{i}",
        "instruction": f"Tell what {word} means to {WORDS[-i]} people",
        "is_classification": i % 3 == 0,
        "instances": [{"input": f"about {word}" if i % 2 else "", "output": f"much {i}"}],
    }
    for i, word in enumerate(WORDS[:12])
]
TOPICS = [{"topic": f"the {word}"} for word in WORDS[:5]]
Answer = str | None | tuple[str, str]
Teacher = Callable[[Request], Answer]


def seeds(folder: Path, rows: list[dict] = SEEDS) -> Path:
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentence(rng: random.Random) -> str:
    return f"Say {' '.join(rng.sample(WORDS, rng.randint(6, 9)))} in your words"


def block(number: int, instruction: str, given: str, output: str) -> str:
    return (
        f"###\n{number}. Instruction: {instruction}\n{number}. Input:\n{given}\n"
        f"{number}. Output:\n{output}"
    )


def good(request: Request) -> Answer:
    """A teacher that does what it is asked, by the fields alone."""
    about = request.about
    rng = random.Random(f"{about['seed']}")
    if about["task"] == "instructions":
        return "\n".join(f"{k}. {sentence(rng)}" for k in range(9, 9 + about["count"]))
    if about["task"] == "classify":
        return "Yes" if len(about["instruction"]) % 2 else "no."
    if about["task"] == "instances":
        pairs = [(rng.choice(WORDS) + str(k), rng.choice(WORDS) + "!") for k in range(2)]
        form = (
            "Class label: {1}\nInput: {0}"
            if about["is_classification"]
            else "Example 1\nInput: {0}\nOutput: {1}"
        )
        return "\n".join(form.format(*pair) for pair in pairs)
    if about["task"] == "alpaca":
        return "\n".join(
            block(k, sentence(rng), "<noinput>", rng.choice(WORDS)) for k in range(about["count"])
        )
    return sentence(rng) + ("?" if about["task"] != "answer" else ".")


def asker(
    teacher: Teacher,
    memo: dict[str, Reply] | None = None,
    *,
    asked: list[Request] | None = None,
    stop_after: int | None = None,
    order: int = 0,
) -> Callable[[list[Request]], list[Reply]]:
    """What the command binds: replies in order, whatever the order they come in; a request in
    `memo` is not asked again."""
    memo, asked = {} if memo is None else memo, [] if asked is None else asked

    def answer(requests: list[Request]) -> list[Reply]:
        for request in random.Random(order).sample(list(requests), len(requests)):
            if (digest := request.digest("t")) not in memo:
                if len(asked) == stop_after:
                    raise KeyboardInterrupt
                asked.append(request)
                text = teacher(request)
                text, finish = text if isinstance(text, tuple) else (text, "stop")
                memo[digest] = Reply(digest, text, "t", "", 1, 1, 0.0, "", finish_reason=finish)
        return [memo[request.digest("t")] for request in requests]

    return answer


def run(
    folder: Path,
    teacher: Teacher,
    variant: str = "self-instruct",
    n: int = 20,
    name: str = "rows.jsonl",
    *,
    asking: dict | None = None,
    **keywords: object,
) -> tuple[list[dict], dict]:
    """The rows written, and the report; `asking` goes to `asker`."""
    report = self_instruct(
        seeds(folder, TOPICS if variant == "dialogue" else SEEDS),
        folder / name,
        asker(teacher, **asking or {}),
        n=n,
        variant=variant,
        **{"seed": 1, "batch": 3} | keywords,
    )
    return [json.loads(line) for line in (folder / name).read_text().split("\n")[:-1]], report


VARIANTS = ("self-instruct", "alpaca", "dialogue")


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_sft_rows_and_exactly_n(tmp_path: Path, variant: str) -> None:
    """Every row must be what training reads, with an id of its own; a round gives more than is
    missing, and n stays n."""
    for n in (1, 7, 40):
        rows, report = run(tmp_path, good, variant, n)
        assert len(rows) == n == report["rows"] and len({row["id"] for row in rows}) == n
        assert all(sft_row(row)[-1]["role"] == "assistant" for row in rows)
        assert json.loads(json.dumps(report))["counts"] == report["counts"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "seeds.jsonl"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_seed_same_rows_in_any_order_of_replies(tmp_path: Path, variant: str) -> None:
    """Replies come in any order, so no row may hang on it; another seed asks other questions; a
    longer run begins with the shorter one."""
    rows, _ = run(tmp_path, good, variant, 30)
    again, _ = run(tmp_path, good, variant, 30, asking={"order": 5})
    fewer, _ = run(tmp_path, good, variant, 11)
    other, _ = run(tmp_path, good, variant, 30, seed=2)
    assert again == rows and fewer == rows[:11]
    assert not {row["messages"][0]["content"] for row in rows} & {
        row["messages"][0]["content"] for row in other
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_anywhere_it_goes_on_to_the_same_file(tmp_path: Path, variant: str) -> None:
    """A killed run leaves no file and its replies: run again it must ask only what is missing, and
    end alike."""
    asked: list[Request] = []
    whole, _ = run(tmp_path, good, variant, 25, batch=8, asking={"asked": asked})
    assert len({request.digest("t") for request in asked}) == len(asked) > 7, (
        "the same question is asked once"
    )
    for stop in (0, 1, 3, len(asked) // 2, len(asked) - 1):
        memo: dict[str, Reply] = {}
        first: list[Request] = []
        second: list[Request] = []
        with pytest.raises(KeyboardInterrupt):
            run(
                tmp_path,
                good,
                variant,
                25,
                "resumed.jsonl",
                batch=8,
                asking={"memo": memo, "asked": first, "stop_after": stop},
            )
        assert not (tmp_path / "resumed.jsonl").exists() and len(first) == stop
        resumed, _ = run(
            tmp_path,
            good,
            variant,
            25,
            "resumed.jsonl",
            batch=8,
            asking={"memo": memo, "asked": second},
        )
        (tmp_path / "resumed.jsonl").unlink()
        assert resumed == whole and len(first) + len(second) == len(asked)
        assert not {r.digest("t") for r in first} & {r.digest("t") for r in second}


def test_with_the_real_ledger_and_a_budget(tmp_path: Path) -> None:
    """A spent budget stops it with nothing written; with a larger one it goes on from the ledger,
    and a third run asks nothing."""
    path, calls = seeds(tmp_path), []
    teacher = embedded("scripted", lambda request: calls.append(request) or good(request), "1")

    def go(requests: int) -> dict:
        with Ledger(tmp_path / "ledger.jsonl") as ledger:
            budget = Budget(requests, None, None, {})
            return self_instruct(
                path,
                tmp_path / "rows.jsonl",
                lambda asked: ask(teacher, asked, ledger, budget),
                n=10,
                seed=3,
                variant="alpaca",
                batch=2,
            )

    with pytest.raises(BudgetSpent):
        go(1)
    assert len(calls) == 1 and not (tmp_path / "rows.jsonl").exists()
    go(50)
    rows, count = (
        [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()],
        len(calls),
    )
    go(50)
    assert len(calls) == count
    digests = {
        json.loads(line)["digest"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()
    }
    assert (
        len(rows) == 10
        and {digest for row in rows for digest in row["lineage"]["calls"]["alpaca"]} <= digests
    )


SEED = SEEDS[0]["instruction"]
FRESH = "Explain how granite and timber bear the weight of a harbour wall"
LISTED = [
    ("short", "Do it now"),
    ("short", ""),
    ("long", "Say " + "word " * 150),
    ("blacklist", "Look at this Image and say what it shows"),
    ("blacklist", "Please go to the shop and buy some bread"),
    ("write_a_program", "Write a program that adds two given numbers"),
    ("punctuation_start", "'Tis a fine day, describe it to me"),
    ("non_ascii_start", "Écris une phrase sur la mer bleue"),
    ("duplicate", SEED.upper()),
    ("kept", FRESH),
    ("duplicate", FRESH.lower()),
    ("similar", FRESH + " today"),
    ("kept", "Imagine a roadmap for the profile of an old mapmaker"),
    ("kept", "Say " + "word " * 149),
]


def first(task: str, *replies: Answer) -> Teacher:
    """Gives these replies to the first questions of the kind `task`, whoever asks; refuses further
    ones, and is good at the rest."""
    left = iter(replies)
    return lambda request: next(left, None) if request.about["task"] == task else good(request)


def test_yield_of_every_filter(tmp_path: Path) -> None:
    """Each instruction ends under the first filter that takes it, and under one only; each reply
    that gives none is told too."""
    listed = "\n".join(f"{k}. {text}" for k, (_, text) in enumerate(LISTED, 9))
    teacher = first(
        "instructions",
        f"Sure!\n{listed}\n\nI hope it helps.",
        (listed + "\n23. Cut off in the mid", "length"),
        None,
        " ",
    )
    _, report = run(tmp_path, teacher, n=3, batch=4)
    counts = dict(report["counts"]["instructions"])
    once = {name: sum(name == other for other, _ in LISTED) for name in task_pool.FILTERS}
    assert all(once.values())
    twice = {name: 2 * number for name, number in once.items()}
    assert {name: counts[name] for name in once} == twice | {"duplicate": twice["duplicate"] + 3}, (
        "what was kept once is a duplicate then"
    )
    assert counts["kept"] == 3 and counts["parsed"] == 2 * len(LISTED) == 3 + sum(
        counts[name] for name in once
    )
    assert (counts["requests"], counts["refused"], counts["cut"], counts["unparsed"]) == (
        4,
        1,
        1,
        3,
    )


def test_yield_of_instances(tmp_path: Path) -> None:
    """An instance without an answer of its own must not become a row, and a reply in another form
    none that was guessed."""
    pairs = [
        ("a", "1"),
        ("a", "1"),
        ("b", ""),
        ("c", "2"),
        ("c", "3"),
        ("d", "D"),
        ("e", "e"),
        ("f", "4"),
        ("", "5"),
    ]
    text = "\n".join(f"Input: {given or '<NOINPUT>'}\nOutput: {output}" for given, output in pairs)
    replies = [
        text,
        (text + "\nInput: g\nOutput: half of", "length"),
        "Here you are:\n" + text,
        text + "\nInput: h",
        None,
        "\ud83d",
    ]
    left = {
        "instructions": iter(
            ["\n".join(f"{k}. {sentence(random.Random(k))}" for k in range(9, 9 + len(replies)))]
        ),
        "classify": iter(["No"] * len(replies)),
        "instances": iter(replies),
    }
    rows, report = run(
        tmp_path,
        lambda request: next(left[request.about["task"]], None),
        n=99,
        batch=1,
        instances=3,
        patience=2,
    )
    assert report["counts"]["instances"] == {
        "empty_output": 2,
        "repeated_input": 2,
        "input_equals_output": 2,
        "conflicting_output": 4,
        "kept": 8,
        "parsed": 18,
        "surplus": 2,
        "requests": 6,
        "cut": 1,
        "unparsed": 2,
        "refused": 1,
        "not_text": 1,
    }
    assert [row["messages"][1]["content"] for row in rows] == ["1", "D", "4"] * 2 and report[
        "rounds"
    ] == 3
    assert all(
        row["messages"][0]["content"].endswith("\n\n" + given)
        for row, given in zip(rows, "adf" * 2)
    )


def test_what_is_not_yes_or_no_is_asked_once_more(tmp_path: Path) -> None:
    """A verdict is never guessed: "maybe" is asked again by another request; unclear twice, or
    refused once, gives no row."""
    asked: list[Request] = []
    told: dict[str, list[Answer]] = {}
    script = [["maybe", "Yes."], ["Yes and no", "No idea"], [None], ["NO"], ["yes"]]

    def teacher(request: Request) -> Answer:
        if request.about["task"] == "classify":
            if request.about["instruction"] not in told:
                told[request.about["instruction"]] = script.pop(0)
            return told[request.about["instruction"]].pop(0)
        if request.about["task"] == "instructions":
            return None if told else "\n".join(good(request).split("\n")[:5])
        return good(request)

    rows, report = run(tmp_path, teacher, n=99, batch=1, patience=1, asking={"asked": asked})
    tries = [request for request in asked if request.about["task"] == "classify"]
    assert len(tries) == 7 == len({request.seed for request in tries}) and not any(told.values())
    assert [request.temperature for request in tries] == [0.0] * 5 + [0.7] * 2, (
        "at 0.0 another seed would change nothing"
    )
    assert report["counts"]["classification"] == {
        "requests": 7,
        "refused": 1,
        "not_text": 0,
        "unparsed": 1,
    }
    assert sorted(row["lineage"]["is_classification"] for row in rows) == [False, True, True]
    assert sorted(len(row["lineage"]["calls"]["classify"]) for row in rows) == [1, 1, 2]
    for row in rows:
        assert row["messages"][0]["content"].split("\n\n")[0] in told
        assert row["messages"][1]["content"].endswith("!"), (
            "labels come first in the reply, but are the row's answer"
        )


def test_demonstrations_are_seeds_and_two_that_were_kept(tmp_path: Path) -> None:
    """The pool grows by what was kept; the lineage names those shown, and the nearest by its true
    ROUGE-L."""
    asked: list[Request] = []
    rows, _ = run(tmp_path, good, "self-instruct", 60, batch=1, asking={"asked": asked})
    texts = {seed["id"]: seed["instruction"] for seed in SEEDS}
    texts |= {
        row["id"].split(".")[0]: row["messages"][0]["content"].split("\n\n")[0] for row in rows
    }
    shown = [row["lineage"]["demonstrations"] for row in rows]
    assert len(shown[0]) == 8 and set(shown[0]) < {seed["id"] for seed in SEEDS}
    assert [sum(name.startswith("self-instruct-1-") for name in ids) for ids in shown[10:]] == [
        2
    ] * 50
    assert len({k for ids in shown for k, name in enumerate(ids) if name.startswith("self")}) > 4, (
        "in random order"
    )
    for row in rows:
        nearest, rouge_l = row["lineage"]["nearest"].values()
        index = SimilarityIndex()
        index.add(nearest, texts[nearest])
        assert (
            index.nearest(row["messages"][0]["content"].split("\n\n")[0]) == (nearest, rouge_l)
            and 0 < rouge_l <= 0.7
        )
    by_digest = {request.digest("t"): request for request in asked}
    for row in rows:
        kinds = {
            kind: by_digest[digest].about["task"]
            for kind, digests in row["lineage"]["calls"].items()
            for digest in digests
        }
        assert kinds == {kind: kind for kind in ("instructions", "classify", "instances")}


def test_alpaca_drops_the_block_that_was_cut(tmp_path: Path) -> None:
    """The last of a cut list is half a task; a block without its three headings is none; those
    around them stand."""
    text = "\n".join(
        [
            block(4, "Tell me about the candle", "an input", "A candle is\n###-like\nand old"),
            "###\n5. Instruction: Nothing else here now\n5. Output:\nx",
            block(6, "Why do boats sink at sea?", "<noinput>", "Leaks."),
            block(7, "What was left unfinished here", "<noinput>", "Hal"),
        ]
    )
    rows, report = run(
        tmp_path, first("alpaca", (text, "length")), "alpaca", 9, batch=1, patience=1
    )
    counts = report["counts"]["instructions"]
    assert (len(rows), counts["cut"], counts["unparsed"], counts["kept"]) == (2, 1, 1, 2)
    assert [[turn["content"] for turn in row["messages"]] for row in rows] == [
        ["Tell me about the candle\n\nan input", "A candle is\n###-like\nand old"],
        ["Why do boats sink at sea?", "Leaks."],
    ]


def test_dialogues_alternate(tmp_path: Path) -> None:
    """The assistant is asked with the plain dialogue, the user's turns with what was said; each
    dialogue has `turns` of both."""
    asked: list[Request] = []
    rows, report = run(tmp_path, good, "dialogue", 12, turns=4, asking={"asked": asked})
    by_digest = {request.digest("t"): request for request in asked}
    for row in rows:
        said = row["messages"]
        assert [turn["role"] for turn in said] == ["user", "assistant"] * 4 and sft_row(row) == said
        calls = row["lineage"]["calls"]
        assert [list(by_digest[digest].messages) for digest in calls["answer"]] == [
            said[:1],
            said[:3],
            said[:5],
            said[:7],
        ]
        for k, digest in enumerate(calls["user_turn"]):
            assert by_digest[digest].about["said"] == [
                turn["content"] for turn in said[: 2 * k + 2]
            ]
            assert all(
                turn["content"] in by_digest[digest].messages[0]["content"]
                for turn in said[: 2 * k + 2]
            )
        assert {"topic": row["lineage"]["topic"]} in TOPICS and row["lineage"]["demonstrations"][
            0
        ].startswith("seed-")
    assert report["counts"]["dialogues"]["kept"] == 12


def test_a_bad_turn_ends_its_dialogue_alone(tmp_path: Path) -> None:
    """A refused, cut or empty turn, or one that plays both sides, has no place in a row; the other
    dialogues go on as without it."""
    whole, _ = run(tmp_path, good, "dialogue", 6, batch=6, patience=1)
    bad = {2: None, 3: ("Say more of", "length"), 4: "  ", 5: "Go on.\nAssistant: I will."}
    spoilt = {
        whole[k]["messages"][2 if k == 5 else 1]["content"]: reply for k, reply in bad.items()
    }
    rows, report = run(
        tmp_path, lambda request: spoilt.get(good(request), good(request)), "dialogue", 6, batch=6
    )
    assert rows[:2] == whole[:2] and len(rows) == 6
    counts = report["counts"]["dialogues"]
    assert (counts["refused"], counts["cut"], counts["unparsed"]) == (1, 1, 2)


BAD_SEEDS = [
    ({"id": "a", "instruction": 5, "output": "x"}, "instruction"),
    ({"id": "a", "instances": []}, "instances"),
    ({"instruction": " ", "output": "x"}, "instruction"),
    ({"instruction": "Say it", "output": ""}, "output"),
    ({"instruction": "Say it", "instances": [{"input": 1, "output": "x"}]}, "input"),
    ({"instruction": "Say it", "output": "x", "is_classification": 1}, "is_classification"),
    ([], "list"),
    ({"instruction": "Say \ud800 it", "output": "x"}, "instruction"),
    (SEEDS[0], "twice"),
]


@pytest.mark.parametrize("bad, named", BAD_SEEDS, ids=[str(k) for k in range(len(BAD_SEEDS))])
def test_a_bad_seed_is_named(tmp_path: Path, bad: object, named: str) -> None:
    """Nobody finds the bad one of 175 without its line; nothing may be asked before."""
    with pytest.raises(BadInput, match=rf"seeds.jsonl:2: .*{named}"):
        self_instruct(
            seeds(tmp_path, [SEEDS[0], bad]),
            tmp_path / "rows.jsonl",
            asker(good, stop_after=0),
            n=1,
            seed=0,
            variant="alpaca",
        )


@pytest.mark.parametrize(
    "keywords, named",
    [
        ({"n": 0}, "n: "),
        ({"turns": 0}, "turns"),
        ({"templates": Path("/nowhere")}, "/nowhere"),
        ({"variant": "ultra"}, "self-instruct, alpaca, dialogue"),
    ],
)
def test_bad_settings(tmp_path: Path, keywords: dict, named: str) -> None:
    """A number that gives nothing, or a name that is none, would else end in an endless or an empty
    run."""
    with pytest.raises(BadInput, match=named):
        self_instruct(
            seeds(tmp_path),
            tmp_path / "rows.jsonl",
            asker(good),
            **{"n": 1, "seed": 0, "variant": "alpaca"} | keywords,
        )


def test_rounds_without_a_row_count_only_in_a_row(tmp_path: Path) -> None:
    """A teacher that gives something in every third round must not be left before `n` is reached;
    instances past `n` are left out."""
    turn = count()
    rows, report = run(
        tmp_path,
        lambda request: (
            None if request.about["task"] == "instructions" and next(turn) % 3 else good(request)
        ),
        n=99,
        patience=3,
        batch=1,
        instances=2,
    )
    assert (
        len(rows) == 99 == report["rows"]
        and report["rounds"] > 12
        and report["counts"]["instructions"]["refused"] > 9
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_teacher_that_gives_nothing(tmp_path: Path, variant: str) -> None:
    """It must stop after `patience` rounds, not ask for ever, and say what it got."""
    asked: list[Request] = []
    with pytest.raises(BadInput, match="in 4 rounds.*refused"):
        run(tmp_path, lambda request: None, variant, patience=4, batch=2, asking={"asked": asked})
    assert len(asked) == 8


def test_templates_of_the_user(tmp_path: Path) -> None:
    """A user's text takes the place of ours and changes the digest; braces stay; what we would
    never fill in, or never read, is refused."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "opening.txt").write_text('On {topic}: {"a": {}} {{topic}} \n')
    assert (
        fill(load_templates(["opening"], folder)["opening"], topic="{x}")
        == 'On {x}: {"a": {}} {{x}}'
    )
    asked: list[Request] = []
    _, mine = run(tmp_path, good, "dialogue", 1, templates=folder, asking={"asked": asked})
    _, ours = run(tmp_path, good, "dialogue", 1)
    assert asked[0].messages[0]["content"].startswith("On the ")
    assert {
        name for name in ours["templates"] if ours["templates"][name] != mine["templates"][name]
    } == {"opening"}
    for name, text, named in (
        ("opening.txt", "{none}", r"\{none\}.*topic"),
        ("openings.txt", "", "opening.txt"),
        ("a.md", "", "a.md"),
    ):
        (folder / name).write_text(text)
        with pytest.raises(BadInput, match=named):
            load_templates(["opening"], folder)
        (folder / name).unlink()


LINES = [
    "Input:",
    "Output:",
    "Class label:",
    "9. ",
    "1. ",
    "###",
    "Instruction:",
    "<noinput>",
    "a",
    "Say four words at least",
    "\n",
    "Yes",
]
REPLY = st.text(
    st.sampled_from(
        "Input:Output Class label Instruction Task Yes\n\n###0123456789. <noinput>é{}\x00\u2028"
    ),
    max_size=80,
)
REPLY |= st.lists(st.sampled_from(LINES), max_size=14).map("\n".join)


@given(
    REPLY,
    st.sampled_from(
        [("Input", "Output"), ("Class label", "Input"), ("Instruction", "Input", "Output")]
    ),
)
@settings(max_examples=300, deadline=None)
def test_parsers_take_any_text(text: str, heads: tuple[str, ...]) -> None:
    """A teacher may write anything: no exception, and no text that was not in the reply, or is in
    two pieces."""
    for found, width in ((parse_blocks(text, heads), len(heads)), (parse_numbered(text), 1)):
        assert all(len(piece) == width for piece in found if piece)
        assert all(
            part == part.strip() and all(word in text for word in part.split())
            for piece in found
            if piece
            for part in piece
        )
        assert sum(len("".join(part.split())) for piece in found if piece for part in piece) <= len(
            "".join(text.split())
        )
        assert found or not text.replace("###", "").strip()


@given(
    st.lists(REPLY | st.none(), min_size=1, max_size=12), st.sampled_from(VARIANTS), st.booleans()
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_replies_give_sound_rows_or_a_bad_input(
    tmp_path: Path, replies: list[str | None], variant: str, cut: bool
) -> None:
    """Whatever comes at whatever place, a row has a question and an answer that are not empty."""

    def teacher(request: Request) -> Answer:
        text = replies[request.seed % len(replies)] if request.seed % 3 else good(request)
        return (text, "length") if cut and text and request.seed % 5 == 0 else text

    try:
        rows, report = run(tmp_path, teacher, variant, 6, patience=2)
    except BadInput as error:
        assert "no row could be made" in str(error)
        return
    assert rows and all(
        sft_row(row) == row["messages"] and all(turn["content"].strip() for turn in row["messages"])
        for row in rows
    )
    counts = report["counts"]["instructions"]
    assert counts["parsed"] == counts["kept"] + sum(counts[name] for name in task_pool.FILTERS)


def alpaca_rows(real_data: Path) -> list[dict[str, str]]:
    with gzip.open(real_data / "sft" / "alpaca_random_9k.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_nearest_is_rouge_scores_own(real_data: Path) -> None:
    """The filter is that of the papers only if the number is: the largest over all kept, of the
    library that they used."""
    library = pytest.importorskip(
        "rouge_score.rouge_scorer", reason="rouge-score is the judge here"
    )
    rouge = library.RougeScorer(["rougeL"], use_stemmer=False)
    texts = [row["instruction"] for row in alpaca_rows(real_data)]
    kept, shortened = texts[:300], [" ".join(text.split()[1:]) for text in texts[:40]]
    new = [*texts[300:340], *shortened, "", "日本語", "the the the", texts[5].upper()]
    index = SimilarityIndex()
    for k, text in enumerate(kept):
        index.add(str(k), text)
    above = 0
    for text in new:
        scores = [rouge.score(old, text)["rougeL"].fmeasure for old in kept]
        nearest, rouge_l = index.nearest(text)
        assert abs(rouge_l - max(scores)) < 1e-12
        assert nearest == "" if rouge_l == 0 else abs(scores[int(nearest)] - max(scores)) < 1e-12
        above += rouge_l > 0.7
    assert 30 < above < 80
    assert index.nearest(kept[17]) == (
        str(next(k for k, text in enumerate(kept) if text == kept[17])),
        1.0,
    )


@given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=8), st.text("ab c", max_size=12))
@settings(max_examples=200, deadline=None)
def test_nearest_is_the_largest_of_all(kept: list[str], text: str) -> None:
    """Few letters make many repetitions and ties: the bound must never leave out the nearest, and
    equals go to the first."""
    index = SimilarityIndex()
    for k, old in enumerate(kept):
        index.add(str(k), old)

    def lcs(a: list[str], b: list[str]) -> int:
        row = [0] * (len(b) + 1)
        for word in a:
            above, row = row, [0]
            for j, other in enumerate(b):
                row.append(max(above[j + 1], row[j], above[j] + (word == other)))
        return row[-1]

    def f1(a: list[str], b: list[str]) -> float:
        return 2 * lcs(a, b) / max(1, len(a) + len(b))

    scores = [f1(old.split(), text.split()) for old in kept]
    assert index.nearest(text) == (
        (str(scores.index(max(scores))), max(scores)) if max(scores) else ("", 0.0)
    )


def test_real_seed_tasks(tmp_path: Path, real_data: Path) -> None:
    """All 175 of the original are read; its instructions, shown as a list, are read back as they
    are, numbers and lists in them too."""
    path = real_data / "sft" / "self_instruct_seed_tasks.jsonl"
    tasks, digests = read_seeds(path, False)
    assert len(tasks) == 175 and list(digests) == [path.name]
    assert (
        sum(bool(task.is_classification) for task in tasks)
        == path.read_text().count('"is_classification": true')
        > 20
    )
    lines = [" ".join(task.instruction.split()) for task in tasks]
    assert parse_numbered("\n".join(f"{k}. {line}" for k, line in enumerate(lines, 1))) == [
        (line,) for line in lines
    ]
    report = self_instruct(
        path, tmp_path / "rows.jsonl", asker(good), n=20, seed=0, variant="self-instruct"
    )
    assert report["rows"] == 20
    taken = [
        [
            name
            for name, takes in list(task_pool.FILTERS.items())[:6]
            if takes(None, task.instruction, 0.0)
        ]
        for task in tasks
    ]
    assert taken.count([]) > 150, [(line, names) for line, names in zip(lines, taken) if names]


def test_real_alpaca_rows_come_back_from_their_blocks(real_data: Path) -> None:
    """A row's texts are read back as they were; one that holds headings itself (a few are two tasks
    run together) gives no such row."""
    heads, odd = ("Instruction", "Input", "Output"), 0
    rows = [
        {key: "" if value.lower() == "<noinput>" else value.strip() for key, value in row.items()}
        for row in alpaca_rows(real_data)
    ]
    for row in rows:
        texts = tuple(row[name.lower()] for name in heads)
        text = block(4, texts[0], texts[1] or "<noinput>", texts[2])
        whole = not re.search(
            r"^(\d+\. ?)?(Instruction|Input|Output|Task):|^###[ \t]*$",
            "\n".join(texts),
            re.MULTILINE,
        )
        assert parse_blocks(text, heads) == [texts] or (
            not whole and texts not in parse_blocks(text, heads)
        )
        odd += not whole
    assert 0 < odd < 0.01 * len(rows)
    some = rows[:2000]
    text = "\n".join(block(k, *(row[name.lower()] for name in heads)) for k, row in enumerate(some))
    assert len([piece for piece in parse_blocks(text, heads) if piece]) > 0.99 * len(some)
