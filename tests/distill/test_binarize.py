"""Feedback rows become pairs by a rule."""

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zephyr.chat import check_pair
from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.data.jsonl import write_rows
from zephyr.distill.binarize import binarize

Row = dict[str, object]


def row(
    number: int, scores: Sequence[float | None] = (2, 5, 3, 4), texts: str = "abcd", **more: object
) -> Row:
    completions = [
        {
            "model": f"m{i}",
            "text": t,
            "scores": {"honesty": s, "helpfulness": s},
            "overall": 11 - s if s else None,
        }
        for i, (s, t) in enumerate(zip(scores, texts))
    ]
    return {
        "prompt_id": f"p{number}",
        "prompt": f"question {number}",
        "completions": completions,
        **more,
    }


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def made(
    folder: Path, rows: Sequence[Row], rule: str = "paper", **options: object
) -> tuple[list[Row], Row]:
    """Pairs and report as the files hold them."""
    write_rows(folder / "feedback.jsonl", rows)
    report = binarize([folder / "feedback.jsonl"], folder / "pairs.jsonl", rule=rule, **options)
    assert json.loads((folder / "pairs.report.json").read_text()) == report
    assert report["digests"] == {
        "feedback.jsonl": hashlib.sha256((folder / "feedback.jsonl").read_bytes()).hexdigest()
    }
    assert sorted(path.name for path in folder.iterdir()) == [
        "feedback.jsonl",
        "pairs.jsonl",
        "pairs.report.json",
    ]
    pairs = lines(folder / "pairs.jsonl")
    assert report["rows"] == len(rows) == report["pairs"] + sum(
        report["dropped"].values()
    ) and report["pairs"] == len(pairs)
    return pairs, report


def sides(pairs: Sequence[Row]) -> list[tuple[object, object]]:
    return [(pair["chosen"], pair["rejected"]) for pair in pairs]


def even(counts: Counter[object], keys: str, n: int) -> None:
    """Fails where a count is more than five standard errors from the same share for each key."""
    share = 1 / len(keys)
    assert set(counts) == set(keys) and all(
        abs(c - n * share) < 5 * (n * share * (1 - share)) ** 0.5 for c in counts.values()
    ), counts


def test_paper_takes_the_best_mean_and_a_uniform_other(tmp_path: Path) -> None:
    """The highest mean aspect score, not the overall (which points the other way here), against
    each other equally often."""
    pairs, report = made(tmp_path, [row(i) for i in range(3000)], seed=0)
    assert {pair["chosen"] for pair in pairs} == {"b"} and report["chosen"] == {"m1": 3000}
    even(Counter(pair["rejected"] for pair in pairs), "acd", 3000)
    assert pairs[0] | {"rejected": "", "score_rejected": 0, "rejected_model": ""} == {
        "id": "p0",
        "prompt_id": "p0",
        "prompt": "question 0",
        "chosen": "b",
        "rejected": "",
        "chosen_model": "m1",
        "rejected_model": "",
        "score_chosen": 5.0,
        "score_rejected": 0,
        "rule": "paper",
    }
    assert (
        report["win_rate"]["m1"] == {"judged": 3000, "rate": 1.0}
        and report["win_rate"]["m0"]["rate"] == 0.0
    )


def test_the_paper_rule_draws_as_it_always_did(tmp_path: Path) -> None:
    """Pairs made before must come out again: the same generator, from seed and prompt id, and the
    same two draws."""
    scores = random.Random(1)
    rows = [row(i, [scores.choice((1, 2, 3)) for _ in range(4)], "abca") for i in range(300)]
    wanted = []
    for given_row in rows:
        rng, completions = random.Random(f"7/{given_row['prompt_id']}"), given_row["completions"]
        means = [fmean(c["scores"].values()) for c in completions]
        best = rng.choice([i for i, mean in enumerate(means) if mean == max(means)])
        other = rng.choice(
            [i for i, c in enumerate(completions) if c["text"] != completions[best]["text"]]
        )
        wanted.append(
            (completions[best]["text"], completions[other]["text"], means[best], means[other])
        )
    pairs, _ = made(tmp_path, rows, seed=7)
    assert [
        (p["chosen"], p["rejected"], p["score_chosen"], p["score_rejected"]) for p in pairs
    ] == wanted


@pytest.mark.parametrize("rule", ["paper", "argilla", "best-vs-worst", "margin>=1"])
def test_pairs_do_not_depend_on_the_order_or_the_split_of_rows(tmp_path: Path, rule: str) -> None:
    """A generator shared by rows would give other pairs for another number of workers."""
    scores = random.Random(2)
    rows = [row(i, [scores.choice((1, 2, 4)) for _ in range(4)]) for i in range(200)]
    pairs, _ = made(tmp_path, rows, rule, seed=5)
    shuffled, by_id = random.Random(3).sample(rows, len(rows)), lambda pair: pair["id"]
    parts = [
        pair
        for part in (shuffled[150:], shuffled[:150])
        for pair in made(tmp_path, part, rule, seed=5)[0]
    ]
    assert sorted(parts, key=by_id) == sorted(pairs, key=by_id) and len(pairs) > 100
    assert made(tmp_path, rows, rule, seed=6)[0] != pairs


def test_ties_for_the_best_are_drawn_evenly(tmp_path: Path) -> None:
    """Taking the first of the best would favour whoever answers first."""
    rows = [row(i, (5, 5, 1, 1)) for i in range(1500)]
    even(Counter(pair["chosen"] for pair in made(tmp_path, rows, seed=0)[0]), "ab", 1500)
    for rule in ("argilla", "best-vs-worst", "margin>=4"):
        pairs, _ = made(tmp_path, rows, rule, seed=0)
        even(Counter(pair["chosen"] for pair in pairs), "ab", 1500)
        even(Counter(pair["rejected"] for pair in pairs), "cd", 1500)


def test_argilla_draws_evenly_from_what_scores_lower(tmp_path: Path) -> None:
    """An equal score, or always the same other, would be another rule; rows of equal scores have no
    pair, and are counted."""
    pairs, report = made(tmp_path, [row(i, (5, 1, 5, 4)) for i in range(1500)], "argilla")
    even(Counter(pair["rejected"] for pair in pairs), "bd", 1500)
    pairs, report = made(tmp_path, [row(0, (3, 3, 3, 3)), row(1)], "argilla")
    assert [pair["id"] for pair in pairs] == ["p1"] and report["dropped"] == {
        "no other scores lower": 1
    }


def test_best_vs_worst_and_margins(tmp_path: Path) -> None:
    """Closed cases: the lowest; the highest that is k lower (also where k is met but for rounding),
    else no pair."""
    rows = [
        row(0, (2, 5, 3, 4)),
        row(1, (5, 4.5, 4.5, 4)),
        row(2, (4, 4, 4, 4)),
        row(3, (3, 1, 2.8, 2.7)),
    ]
    wanted = {
        "best-vs-worst": [("b", "a"), ("a", "d"), ("a", "b")],
        "margin>=1": [("b", "d"), ("a", "d"), ("a", "b")],
        "margin>=1.5": [("b", "c"), ("a", "b")],
        "margin>=0.3": [("b", "d"), ("a", "d")],
    }
    for rule, expected in wanted.items():
        pairs, report = made(tmp_path, rows, rule)
        found = sides(pairs) if rule != "margin>=0.3" else [sides(pairs)[0], sides(pairs)[-1]]
        assert found == expected, rule
    assert report["dropped"] == {"no other scores 0.3 lower": 1} and {
        pair["rule"] for pair in pairs
    } == {"margin>=0.3"}


def test_handbook_replays_the_script(tmp_path: Path) -> None:
    """Against the script's own way, written plainly: argmax of the overall score, one global
    generator in the order of rows, a draw again only for the chosen completion itself (score, text
    and model). Fails where another model's equal answer is drawn again: all later draws shift."""
    scores = random.Random(4)
    rows = [
        row(
            i, [scores.choice((1, 2, 3)) for _ in range(4)], scores.choice(("abcd", "aabb", "aaaa"))
        )
        for i in range(300)
    ]
    wanted = []
    random.seed(42)
    for completions in [given_row["completions"] for given_row in rows]:
        best = completions[0]
        for completion in completions:
            best = completion if completion["overall"] > best["overall"] else best
        rejected = random.choice(completions)
        while rejected == best:
            rejected = random.choice(completions)
        if rejected["text"] != best["text"]:
            both = (best, rejected)
            wanted.append(tuple(c[key] for c in both for key in ("text", "overall")))
    pairs, report = made(tmp_path, rows, "handbook")
    assert [
        (p["chosen"], p["score_chosen"], p["rejected"], p["score_rejected"]) for p in pairs
    ] == wanted
    assert report["equal_scores"] > 0 and report["dropped"]["texts equal"] == 300 - len(wanted) > 50
    assert made(tmp_path, rows[::-1], "handbook")[0] != pairs[::-1]


def test_identical_or_empty_answers_make_no_pair(tmp_path: Path) -> None:
    """A pair of two equal texts has no gradient, and training refuses it and an empty answer."""
    pairs, report = made(
        tmp_path,
        [row(0, texts="bbbb"), row(1, texts="bbxb"), row(2, (1, 2), "a "), row(3) | {"prompt": ""}],
        seed=0,
    )
    assert [pair["id"] for pair in pairs] == ["p1"] and {
        pairs[0]["chosen"],
        pairs[0]["rejected"],
    } == {"b", "x"}
    assert report["dropped"] == {"texts equal": 1, "a text is empty": 2}


def test_missing_scores_are_never_guessed(tmp_path: Path) -> None:
    """A null is no 0: it stays out of the mean; a completion without any score can be neither
    side."""
    partly, gone, lonely = (
        row(0, (4, 3, None, None)),
        row(1, (1, 2, 3, 4)),
        row(2, (4, None, None, None)),
    )
    partly["completions"][0]["scores"]["honesty"] = None
    gone["completions"][3]["text"] = None
    for completion in gone["completions"]:
        completion["scores"] = None if completion["model"] == "m2" else completion["scores"]
    pairs, report = made(tmp_path, [partly, gone, lonely])
    assert [
        (p["chosen"], p["rejected"], p["score_chosen"], p["score_rejected"]) for p in pairs
    ] == [("a", "b", 4, 3), ("b", "a", 2, 1)]
    assert report["completions_left_out"] == {"no mean score": 6, "no text": 1}
    assert report["dropped"] == {"fewer than 2 scored completions": 1}


def test_ten_for_one_is_found_and_mended_only_when_asked(tmp_path: Path) -> None:
    """UltraFeedback's overall 10 beside bad aspect scores: 1 where the mean is at most 2, unknown
    up to 4, right above."""
    rows = [
        row(0, (1.5, 4, 3)),
        row(1, (2, 4, 3)),
        row(2, (2.5, 4, 3)),
        row(3, (4, 3, 2)),
        row(4, (4.5, 4, 3)),
    ]
    for given_row in rows:
        for n, completion in enumerate(given_row["completions"]):
            completion["overall"] = (10, 7, 6)[n]
    pairs, report = made(tmp_path, rows, "handbook")
    assert {pair["chosen"] for pair in pairs} == {"a"} and report["faults"] == {
        "10 for 1": {"count": 2, "first": ["p0/m0", "p1/m0"]},
        "10 doubtful": {"count": 2, "first": ["p2/m0", "p3/m0"]},
    }
    pairs, mended = made(tmp_path, rows, "handbook", fix_overall=True)
    assert [pair["chosen"] for pair in pairs] == list("bbbba") and mended["faults"] == report[
        "faults"
    ]
    assert sides(pairs)[2:4] == [("b", "c")] * 2 and mended["completions_left_out"] == {
        "no overall score": 2
    }


def test_inverted_scores_are_told(tmp_path: Path) -> None:
    """Overall scores on a scale turned round disagree with the aspects nearly everywhere; equal
    ones say nothing."""
    _, report = made(tmp_path, [row(i) for i in range(30)])
    assert (
        report["disagreement"] == {"comparable": 30, "share": 1.0}
        and "inverted" in report["warnings"][0]
    )
    rows = [row(i) for i in range(30)]
    for completion in [completion for given_row in rows for completion in given_row["completions"]]:
        completion["overall"] = completion["scores"]["honesty"]
    _, report = made(tmp_path, rows)
    assert report["disagreement"] == {"comparable": 30, "share": 0.0} and report["warnings"] == []


def test_sources_can_be_dropped_and_a_name_that_never_comes_is_told(tmp_path: Path) -> None:
    """A misspelt name would leave the benchmark's own rows in training, unseen."""
    rows = [
        row(0, source="truthful_qa"),
        row(1, source="flan"),
        row(2, dataset="truthful_qa"),
        row(3),
    ]
    pairs, report = made(tmp_path, rows, drop_sources=("truthful_qa", "trutful_qa"))
    assert [(pair["id"], pair.get("source")) for pair in pairs] == [("p1", "flan"), ("p3", None)]
    assert report["dropped"] == {"source truthful_qa": 2} and [
        "trutful_qa" in text for text in report["warnings"]
    ] == [True]


def ultra(instruction: str, ratings: Sequence[Sequence[str]], overall: Sequence[float]) -> Row:
    return {
        "source": "flan",
        "instruction": instruction,
        "completions": [
            {
                "model": f"m{i}",
                "principle": "honesty",
                "response": f"answer {i}",
                "overall_score": whole,
                "critique": "so",
                "fine-grained_score": 0.5,
                "annotations": {
                    aspect: {"Rating": rating, "Rationale": "why"}
                    for aspect, rating in zip(("honesty", "helpfulness"), of)
                },
            }
            for i, (of, whole) in enumerate(zip(ratings, overall))
        ],
    }


def test_ultrafeedbacks_own_nesting(tmp_path: Path) -> None:
    """Ratings are texts and "N/A" is none; the prompt's digest is its id, numbered where the prompt
    comes again."""
    rows = [
        ultra("why", [("1", "N/A"), ("4", "5"), ("N/A", "N/A")], (10, 6.5, 8)),
        ultra("why", [("2", "2"), ("1", "1")], (1, 2)),
    ]
    pairs, report = made(tmp_path, rows, "best-vs-worst")
    digest = hashlib.sha256(b"why").hexdigest()
    assert [(p["id"], p["chosen"], p["score_chosen"], p["score_rejected"]) for p in pairs] == [
        (digest, "answer 1", 4.5, 1),
        (f"{digest}-2", "answer 0", 2, 1),
    ]
    assert (
        report["shapes"] == {"UltraFeedback": 2}
        and report["repeated_ids"] == 1
        and report["completions_left_out"] == {"no mean score": 1}
    )
    assert [
        made(tmp_path, rows, "handbook", fix_overall=fix)[0][0]["chosen"] for fix in (False, True)
    ] == ["answer 0", "answer 2"]
    assert (
        report["faults"]["10 for 1"] == {"count": 1, "first": [f"{digest}/m0"]}
        and pairs[0]["source"] == "flan"
    )


def test_bad_feedback_is_refused_by_file_and_line(tmp_path: Path) -> None:
    """A row that cannot be read would otherwise end in a traceback far from its cause, or in a
    guessed score."""

    def changed(**fields: object) -> Row:
        bad = row(1)
        bad["completions"][2] |= fields
        return bad

    cases = [
        ({"prompt": "x", "completions": []}, "prompt_id"),
        (changed(model=None), r"completions\[2\].model"),
        ({"x": 1}, "fields"),
        (changed(scores={"honesty": "4/5"}), "'4/5', expected a finite number"),
        (changed(scores={"honesty": True}), "bool"),
        (changed(overall=float("nan")), "nan"),
        (changed(scores=[1]), "object"),
        (row(1) | {"completions": "no"}, "expected a list"),
        (row(1) | {"prompt_id": 1.5}, "prompt_id.*1.5"),
        (row(1) | {"prompt": [{"role": "assistant", "content": "a"}]}, "role"),
        (row(0), f"'p0' comes twice, the first time at {tmp_path}/feedback.jsonl:1"),
        ([], "type list"),
    ]
    for bad, word in cases:
        with pytest.raises(BadInput, match=f"feedback.jsonl:2: .*{word}"):
            made(tmp_path, [row(0), bad])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["feedback.jsonl"]
    for rule in ("papr", "margin>=0", "margin>=x", "margin>1", "margin>=-1"):
        with pytest.raises(
            BadInput, match="argilla, best-vs-worst, delta, handbook, paper and margin>=K"
        ):
            made(tmp_path, [row(0)], rule)


def test_no_pair_left_is_an_error(tmp_path: Path) -> None:
    """An empty file of pairs would fail in training only; the pairs of an earlier run, and their
    report, stay as they were."""
    made(tmp_path, [row(0)])
    before, report = (
        (tmp_path / "pairs.jsonl").read_bytes(),
        (tmp_path / "pairs.report.json").read_bytes(),
    )
    with pytest.raises(BadInput, match=r'feedback.jsonl: no pair.*"texts equal": 1'):
        made(tmp_path, [row(0, texts="aaaa")])
    assert (tmp_path / "pairs.jsonl").read_bytes() == before
    assert (tmp_path / "pairs.report.json").read_bytes() == report


def singles(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def test_real_scores_of_four_models(real_data: Path, tmp_path: Path) -> None:
    """One row per completion, groups strewn over the file: every group's best and worst by hand,
    whatever the order of lines."""
    rows = singles(real_data / "feedback4/vicuna80_4models_gpt4_scores.jsonl.gz")
    groups: dict[object, list[tuple[float, object]]] = {}
    for single in rows:
        groups.setdefault(str(single["idx"]), []).append(
            (sum(single["gpt4_score"]) / 3, single["response"])
        )
    results = []
    for order in (rows, random.Random(0).sample(rows, len(rows))):
        write_rows(tmp_path / "singles.jsonl", order)
        report = binarize(
            [tmp_path / "singles.jsonl"], tmp_path / "pairs.jsonl", rule="best-vs-worst"
        )
        results.append(lines(tmp_path / "pairs.jsonl"))
    assert (
        results[0] == results[1]
        and report["shapes"] == {"single completions": 252, "feedback": 63}
        and report["rows"] == 63
    )
    decided = {idx for idx, answers in groups.items() if max(answers)[0] > min(answers)[0]}
    assert {pair["id"] for pair in results[0]} == decided and report["dropped"] == {
        "no other scores lower": 63 - len(decided)
    }
    for pair in results[0]:
        best, worst = max(groups[pair["id"]])[0], min(groups[pair["id"]])[0]
        assert (pair["score_chosen"], pair["score_rejected"]) == (
            pytest.approx(best),
            pytest.approx(worst),
        )
        assert any(
            pair["chosen"] == text and score == pytest.approx(best)
            for score, text in groups[pair["id"]]
        )
        check_pair(pair)


def test_answers_to_different_prompts_are_no_pair(real_data: Path, tmp_path: Path) -> None:
    """MT-Bench's second turns hold each model's own first answer: a pair of them would compare
    answers to two prompts."""
    with pytest.raises(BadInput, match='"prompts differ": 80'):
        binarize(
            [real_data / "feedback4/mt_bench_4models_gpt4_scores.jsonl.gz"],
            tmp_path / "pairs.jsonl",
            rule="paper",
        )
    report = binarize([real_data / "feedback4"], tmp_path / "pairs.jsonl", rule="paper")
    assert (
        report["rows"] == 143
        and report["pairs"] == 63
        and report["shapes"]["single completions"] == 572
    )


def test_ultrafeedbacks_published_example(real_data: Path, tmp_path: Path) -> None:
    """Three of its four completions have no ratings there: no pair, and not four guessed ones."""
    example = real_data / "ultra/ultrafeedback_readme_example.jsonl"
    with pytest.raises(BadInput, match='"fewer than 2 scored completions": 1'):
        binarize([example], tmp_path / "pairs.jsonl", rule="paper")
    (given_row,) = lines(example)
    given_row["completions"][1]["annotations"] = {"honesty": {"Rating": "5", "Rationale": "so"}}
    write_rows(tmp_path / "example.jsonl", [given_row])
    binarize([tmp_path / "example.jsonl"], tmp_path / "pairs.jsonl", rule="paper")
    (pair,) = lines(tmp_path / "pairs.jsonl")
    assert (
        pair["chosen_model"],
        pair["score_chosen"],
        pair["rejected_model"],
        pair["score_rejected"],
        pair["source"],
    ) == ("gpt-4", 5, "falcon-40b-instruct", 2.75, "sharegpt")


words = st.text(st.characters() | st.sampled_from("\0\n\ud83d"), max_size=6)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, "N/A", "4", "-1.5", ""])
    | st.floats()
    | words
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "bot"]),
            "content": st.sampled_from(["a", "b", ""]),
            "from": st.sampled_from(["human", "gpt"]) | values,
            "value": st.sampled_from(["a", "b"]) | values,
        },
    ),
    max_size=3,
)
rated = st.fixed_dictionaries(
    {
        "model": st.sampled_from("mn"),
        "text": st.sampled_from("abc"),
        "scores": st.dictionaries(words, st.integers(1, 5)),
    },
    optional={
        "overall": st.integers(1, 10),
        "response": words,
        "annotations": st.dictionaries(words, values, max_size=2),
    },
)
answers = st.builds(
    lambda items, n, change: [
        {**item, **(change if i == n else {})} for i, item in enumerate(items)
    ],
    st.lists(rated, max_size=4),
    st.integers(0, 9),
    st.dictionaries(
        st.sampled_from(["model", "text", "scores", "overall", "response"]), values, max_size=2
    ),
)
GOOD = [
    row(0),
    row(1, (3, 3, None, 1)),
    ultra("why", [("1", "2"), ("3", "N/A")], (10, 5)),
    {"idx": 1, "response_source": "m", "gpt4_score": [1, 2], "prompt": "why", "response": "so"},
    {
        "idx": 1,
        "response_source": "n",
        "gpt4_score": [3, None],
        "prompt": "why",
        "response": "because",
    },
    {
        "prompt": "why",
        "completion_a": "so",
        "completion_b": "because",
        "model_a": "m",
        "preference": 1.2,
        "prompt_id": 7,
    },
    {"instruction": "why", "input": "", "output_1": "so", "output_2": "because", "preference": 2},
    {"input": "why", "output_1": "so", "output_2": "because", "label": 1},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {
        "conversation_a": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "winner": "model_a",
        "conversation_b": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
    },
    {
        "conversations": [{"from": "human", "value": "a"}],
        "chosen": {"from": "gpt", "value": "b"},
        "rejected": {"from": "gpt", "value": "c"},
    },
]
names = st.sampled_from(
    sorted(
        {name for good in GOOD for name in good}
        | {"id", "question_id", "source", "judge", "system"}
    )
)
changes = st.dictionaries(
    names, values | turns | st.sampled_from(["a", "model_b", "tie"]) | st.floats(0, 2), max_size=2
)
any_row = (
    st.builds(lambda good, change: {**good, **change}, st.sampled_from(GOOD), changes)
    | st.builds(
        lambda number, found: row(number) | {"completions": found}, st.integers(0, 3), answers
    )
    | values
)
rules = st.sampled_from(["paper", "handbook", "argilla", "best-vs-worst", "margin>=0.5"])


def test_any_rows_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever JSON can hold: pairs that training accepts and whose scores are in order, or one
    line that names the place."""
    seen: Counter[str] = Counter()

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(any_row, min_size=1, max_size=2), rules, st.booleans())
    def try_them(rows: list[object], rule: str, fix: bool) -> None:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
        try:
            report = binarize(
                [tmp_path / "rows.jsonl"], tmp_path / "pairs.jsonl", rule=rule, fix_overall=fix
            )
        except BadInput as error:
            assert "rows.jsonl" in str(error) and "\n" not in str(error)
            seen["no pair" if "no pair" in str(error) else "refused"] += 1
        else:
            pairs = lines(tmp_path / "pairs.jsonl")
            assert (
                len({pair["id"] for pair in pairs})
                == len(pairs)
                == report["pairs"]
                == report["rows"] - sum(report["dropped"].values())
            )
            for pair in pairs:
                check_pair(pair)
                assert pair["score_chosen"] >= pair["score_rejected"]
                seen[str(pair["rule"])] += 1

    try_them()
    assert seen.keys() > {"no pair", "refused", "verdict"}, seen  # and a rule's pairs


def test_the_command_writes_pairs_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickstart's own command, and code 2 with one line where the input is bad."""
    write_rows(tmp_path / "f.jsonl", [row(i) for i in range(9)])
    assert (
        main(
            [
                "binarize",
                str(tmp_path / "f.jsonl"),
                "--rule",
                "margin>=1",
                "--out",
                str(tmp_path / "p.jsonl"),
            ]
        )
        == 0
    )
    assert len(lines(tmp_path / "p.jsonl")) == 9 and "9 pairs of 9 rows" in capsys.readouterr().out
    assert (
        main(
            [
                "binarize",
                str(tmp_path / "f.jsonl"),
                "--rule",
                "best",
                "--out",
                str(tmp_path / "q.jsonl"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: binarize: unknown rule 'best'") and error.count("\n") == 1
