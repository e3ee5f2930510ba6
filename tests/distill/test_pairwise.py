"""Rows in which two answers were compared become pairs whose chosen side is the one that the source
prefers."""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from published import probability_of_m, ranked_verdict

from zephyr.chat import check_pair
from zephyr.config import BadInput
from zephyr.distill.binarize import binarize
from zephyr.distill.pairwise import parse_pairwise

Row = dict[str, object]


def read(path: Path) -> list[Row]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.split(b"\n") if line]


def made(folder: Path, rows: Sequence[Row], **options: object) -> tuple[list[Row], Row]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = binarize([folder / "rows.jsonl"], folder / "pairs.jsonl", rule="paper", **options)
    assert report["rows"] == len(rows) == report["pairs"] + sum(report["dropped"].values())
    pairs = read(folder / "pairs.jsonl")
    for pair in pairs:
        check_pair(pair)
    return pairs, report


def turns(*contents: str) -> list[Row]:
    return [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]


ALPACA = {
    "prompt_id": "p1",
    "dataset": "helpful",
    "prompt": "q",
    "model_a": "base",
    "completion_a": "A",
    "model_b": "new",
    "completion_b": "B!",
    "annotator": "gpt",
}
OWN = {
    "instruction": "q",
    "output_1": "A",
    "output_2": "B!",
    "generator_1": "base",
    "generator_2": "new",
    "dataset": "helpful",
}
ARENA = {
    "question_id": "x7",
    "model_a": "m",
    "model_b": "n",
    "judge": "j",
    "conversation_a": turns("q", "A"),
    "conversation_b": turns("q", "B!"),
}


@pytest.mark.parametrize("shape", [ALPACA, OWN], ids=["preferences", "annotations"])
def test_alpaca_eval_prefers_the_second_answer_near_two(tmp_path: Path, shape: Row) -> None:
    """Its own documentation has one sentence that says the reverse; 0 and 1.5 are ties and null is
    no verdict."""
    rows = [shape | {"preference": p} for p in (1, 2.0, 1.25, 1.9, 0, 1.5, None)]
    pairs, report = made(tmp_path, rows)
    assert [(p["chosen"], p["rejected"], p["score_chosen"]) for p in pairs] == [
        ("A", "B!", 1),
        ("B!", "A", 1),
        ("A", "B!", 0.75),
        ("B!", "A", pytest.approx(0.9)),
    ]
    assert [(p["chosen_model"], p["rejected_model"]) for p in pairs[:2]] == [
        ("base", "new"),
        ("new", "base"),
    ]
    assert all(p["score_chosen"] + p["score_rejected"] == pytest.approx(1) for p in pairs) and {
        p["rule"] for p in pairs
    } == {"verdict"}
    assert report["dropped"] == {"tie": 2, "no verdict": 1} and report["longer_chosen"] == 0.5
    assert report["win_rate"]["new"] == {
        "judged": 6,
        "rate": pytest.approx((0 + 1 + 0.25 + 0.9 + 0.5 + 0.5) / 6),
    }
    assert {p["source"] for p in pairs} == {"helpful"} and len({p["id"] for p in pairs}) == 4
    for bad in (2.1, 0.5, -1, "1", True, float("nan")):
        with pytest.raises(BadInput, match="rows.jsonl:1: `preference`.*1 to 2"):
            made(tmp_path, [shape | {"preference": bad}])


def test_ids_lead_back_to_the_prompt_or_the_line(tmp_path: Path) -> None:
    """One prompt is judged for many models: the prompt's id alone would be a second pair's too."""
    pairs, report = made(
        tmp_path,
        [
            ALPACA | {"preference": 1},
            ALPACA | {"preference": 1, "model_b": "newer"},
            OWN | {"preference": 1},
            OWN | {"preference": 1, "id": 9},
            ALPACA | {"preference": 2},
        ],
    )
    assert [pair["id"] for pair in pairs] == [
        "p1/gpt/base/new",
        "p1/gpt/base/newer",
        "rows.jsonl:3",
        "9",
        "p1/gpt/base/new-2",
    ]
    assert [pair["prompt_id"] for pair in pairs[:2]] == ["p1", "p1"] and len(
        str(pairs[2]["prompt_id"])
    ) == 64
    assert report["repeated_ids"] == 1 and pairs[2]["prompt_id"] == pairs[3]["prompt_id"]


def test_arena_votes(tmp_path: Path) -> None:
    """Either side can win; both kinds of tie, and conversations that part before the last answer,
    make no pair."""
    long = {
        "conversation_a": turns("q", "A", "r", "C"),
        "conversation_b": turns("q", "B!", "r", "D"),
    }
    same = {
        "conversation_a": turns("q", "A", "r", "C"),
        "conversation_b": turns("q", "A", "r", "D"),
    }
    rows = [ARENA | {"winner": w} for w in ("model_a", "model_b", "tie", "tie (bothbad)")] + [
        ARENA | long | {"winner": "model_a"},
        ARENA | same | {"winner": "model_b"},
        ARENA | {"winner": "model_a", "conversation_a": turns("q"), "conversation_b": turns("q")},
    ]
    pairs, report = made(tmp_path, rows)
    assert [(p["chosen"], p["rejected"], p["chosen_model"], p["prompt"]) for p in pairs] == [
        ("A", "B!", "m", turns("q")),
        ("B!", "A", "n", turns("q")),
        ("D", "C", "n", turns("q", "A", "r")),
    ]
    assert (
        report["dropped"] == {"tie": 2, "prompts differ": 1, "the last turn is no answer": 1}
        and pairs[0]["id"] == "x7/j/m/n"
    )
    assert report["win_rate"] == {"m": {"judged": 5, "rate": 0.4}, "n": {"judged": 5, "rate": 0.6}}
    for bad in (
        {"winner": "model_c"},
        {"winner": 1},
        {"winner": "tie", "conversation_a": [{"role": "user"}]},
        {"winner": "tie", "conversation_b": "x"},
    ):
        with pytest.raises(BadInput, match="rows.jsonl:1: "):
            made(tmp_path, [ARENA | bad])


def test_transcripts(tmp_path: Path) -> None:
    """hh-rlhf: the mark alone parts the turns, blank lines inside one do not; what is out of order
    is left out with its reason."""

    def dialogue(*said: str) -> str:
        return "".join(
            f"\n\n{('Human', 'Assistant')[i % 2]}: {words}" for i, words in enumerate(said)
        )

    rows = [
        {
            "chosen": dialogue("a\n\nb", "so ", "c", "good"),
            "rejected": dialogue("a\n\nb", "so ", "c", "bad"),
        },
        {"chosen": dialogue("a", "good"), "rejected": dialogue("b", "bad")},
        {"chosen": dialogue("a", ""), "rejected": dialogue("a", "bad")},
        {"chosen": dialogue("a", "", "c", "x"), "rejected": dialogue("a", "", "c", "y")},
        {"chosen": dialogue("a"), "rejected": dialogue("a")},
    ]
    pairs, report = made(tmp_path, rows)
    assert [(p["prompt"], p["chosen"], p["rejected"], p["id"]) for p in pairs] == [
        (turns("a\n\nb", "so", "c"), "good", "bad", "rows.jsonl:1")
    ]
    assert (pairs[0]["score_chosen"], pairs[0]["score_rejected"], pairs[0]["chosen_model"]) == (
        1,
        0,
        None,
    ) and report["win_rate"] == {}
    assert report["dropped"] == {
        "prompts differ": 1,
        "a text is empty": 1,
        "turns before the answer empty or out of order": 1,
        "the last turn is no answer": 1,
    }
    for bad in ("Human: a", "", "x" + dialogue("a", "b")):
        with pytest.raises(BadInput, match="rows.jsonl:1: `chosen`.*transcript"):
            made(tmp_path, [{"chosen": bad, "rejected": dialogue("a", "b")}])


def test_a_transcript_as_the_prompt(tmp_path: Path) -> None:
    """full-hh-rlhf: `prompt` ends where the answers begin; a row that holds it again in both sides
    is read once."""
    prompt, answers = (
        "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:",
        {"chosen": " Good.", "rejected": " Bad."},
    )
    whole = {side: prompt + said for side, said in answers.items()}
    pairs, _ = made(tmp_path, [{"prompt": prompt, **answers}, {"prompt": prompt, **whole}, whole])
    assert (
        all(
            (p["prompt"], p["chosen"], p["rejected"]) == (turns("q", "a", "r"), "Good.", "Bad.")
            for p in pairs
        )
        and len(pairs) == 3
    )


def test_system_turns_and_inputs_stay_with_the_prompt(tmp_path: Path) -> None:
    """A prompt without its system turn or its input is another question."""
    told = {
        "system": "s",
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    }
    pairs, _ = made(tmp_path, [told, OWN | {"input": "x", "preference": 1}])
    assert (
        pairs[0]["prompt"] == [{"role": "system", "content": "s"}, *turns("q")]
        and pairs[1]["prompt"] == "q\n\nx"
    )


def test_published_win_rates_and_codes(real_data: Path, tmp_path: Path) -> None:
    """AlpacaEval as it was judged: by plain sums over the raw preferences, 45 zeros and 7 nulls
    among the first judge's."""
    rows = read(real_data / "alpaca_eval/preferences.jsonl.gz")
    first = [row["preference"] for row in rows if row["annotator"] == "alpaca_eval_gpt4"]
    assert (first.count(0), first.count(None)) == (45, 7)
    sums: defaultdict[tuple[object, object], list[float]] = defaultdict(list)
    for row in rows:
        if row["preference"] is not None:
            sums[row["annotator"], row["model_b"]].append((row["preference"] or 1.5) - 1)
    for annotator in {row["annotator"] for row in rows}:
        of = [row for row in rows if row["annotator"] == annotator]
        pairs, report = made(tmp_path, of)
        models = {model for judge, model in sums if judge == annotator}
        for model in models:
            share = sums[annotator, model]
            assert report["win_rate"][model] == {
                "judged": len(share),
                "rate": pytest.approx(sum(share) / len(share)),
            }
        prefers = {
            f"{row['prompt_id']}/{annotator}/{row['model_a']}/{row['model_b']}": row for row in of
        }
        for pair in pairs:
            row = prefers[pair["id"]]
            side = "b" if row["preference"] > 1.5 else "a"
            assert (pair["chosen"], pair["chosen_model"]) == (
                row[f"completion_{side}"],
                row[f"model_{side}"],
            )
        if annotator == "alpaca_eval_gpt4":  # published over 805 prompts; here over 650 of them
            published = {
                "zephyr-7b-beta": 90.60,
                "zephyr-7b-alpha": 85.76,
                "llama-2-70b-chat-hf": 92.66,
                "gpt4": 95.28,
                "alpaca-7b": 26.46,
            }
            assert all(
                abs(100 * report["win_rate"][model]["rate"] - rate) < 2
                for model, rate in published.items()
            )
            assert report["dropped"]["no verdict"] == 7 and report["dropped"]["tie"] == 49
    assert len(sums) == 25


def test_the_judges_raw_replies_state_the_stored_verdicts(real_data: Path) -> None:
    """A ranking names the better answer; log-probabilities give the share of one of the two, whose
    order was not kept."""
    seen: Counter[str] = Counter()
    for row in read(real_data / "alpaca_eval/judge_raw.jsonl.gz"):
        if row["annotator"] == "alpaca_eval_cot_gpt4_turbo_fn":
            for raw in (row["raw_completion"], json.dumps(row["raw_completion"])):
                verdict = ranked_verdict(raw, row["referenced_models"])
                assert verdict.preference == row["preference"]
            seen["tied" if verdict.tied else f"rank {verdict.preference}"] += 1
        elif (share := probability_of_m(row["raw_completion"])) is None:
            assert row["preference"] == 1.5
            seen["no reply"] += 1
        else:
            second = row["preference"] - 1
            assert min(abs(second - share), abs(1 - second - share)) < 1e-6
            seen["m second" if abs(second - share) < 1e-6 else "m first"] += 1
    assert (seen["rank 1"], seen["rank 2"], seen["tied"], seen["no reply"]) == (540, 109, 1, 3)
    assert (
        seen["m first"] + seen["m second"] == 647 and min(seen["m first"], seen["m second"]) > 250
    )


def test_unreadable_judgements_are_refused() -> None:
    """A reply that ranks nobody must not become a verdict."""
    shown = {"m": "output_1", "M": "output_2"}
    for raw in (
        {},
        "[]",
        "no",
        None,
        {"ordered_models": 3},
        {"ordered_models": [{"model": "m", "rank": 1}]},
        {"ordered_models": [{"model": "m", "rank": 1}, {"model": "M", "rank": 3}]},
    ):
        with pytest.raises(ValueError):
            ranked_verdict(raw, shown)
    top = {
        "logprobs": {
            "content": [
                {"top_logprobs": [{"token": "M", "logprob": -0.5}, {"token": "The", "logprob": -1}]}
            ]
        }
    }
    assert probability_of_m(top) == 0.0
    top["logprobs"]["content"][0]["top_logprobs"].pop(0)
    for raw in (top, {}, [], {"logprobs": None}, {"logprobs": {"content": []}}):
        with pytest.raises(ValueError, match="first token"):
            probability_of_m(raw)


def test_real_human_preferences(real_data: Path, tmp_path: Path) -> None:
    """All of hh-rlhf's harmless test split: what is kept shares its prompt to the letter with both
    transcripts."""
    rows = read(real_data / "preferences/hh_harmless_base_test.jsonl.gz")
    pairs, report = made(tmp_path, rows)
    assert (
        len(rows) == 2312
        and report["pairs"] == 2299
        and report["dropped"]
        == {
            "prompts differ": 5,
            "a text is empty": 4,
            "turns before the answer empty or out of order": 4,
        }
    )
    for pair in pairs:
        row = rows[int(str(pair["id"]).split(":")[1]) - 1]
        for side in ("chosen", "rejected"):
            parts = [*(turn["content"] for turn in pair["prompt"]), pair[side]]
            marked = "".join(
                f"\n\n{('Human', 'Assistant')[i % 2]}:{part}" for i, part in enumerate(parts)
            )
            assert "".join(marked.split()) == "".join(str(row[side]).split())


def test_real_pairs_of_other_shapes(real_data: Path, tmp_path: Path) -> None:
    """LLMBar's label and ShareGPT's sides, row by row; a set of single verdicts (KTO) is none of
    these shapes."""
    for name, dropped in (("faireval", {}), ("llmeval2", {"texts equal": 1, "a text is empty": 1})):
        rows = read(real_data / f"preferences/llmbar_processed_{name}.jsonl")
        pairs, report = made(tmp_path, rows)
        assert report["dropped"] == dropped and report["shapes"] == {"LLMBar": len(rows)}
        for pair in pairs:
            row = rows[int(str(pair["id"]).split(":")[1]) - 1]
            assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (
                row["input"],
                row[f"output_{row['label']}"],
                row[f"output_{3 - row['label']}"],
            )
    rows = read(real_data / "preferences/dpo_en_demo.jsonl.gz")
    pairs, report = made(tmp_path, rows)
    assert len(pairs) == 300 and [(p["chosen"], p["rejected"]) for p in pairs] == [
        (r["chosen"]["value"], r["rejected"]["value"]) for r in rows
    ]
    assert [[turn["content"] for turn in p["prompt"]] for p in pairs] == [
        [turn["value"] for turn in r["conversations"]] for r in rows
    ]
    with pytest.raises(
        BadInput, match=r"kto_en_demo.jsonl.gz:1: the row has the fields \['label', 'messages'\]"
    ):
        binarize(
            [real_data / "preferences/kto_en_demo.jsonl.gz"], tmp_path / "none.jsonl", rule="paper"
        )


def test_feedback_and_verdicts_go_into_one_file(tmp_path: Path) -> None:
    """Shapes are told row by row: a mixed file loses nothing, and what is no pairwise row is left
    to the other readers."""
    feedback = {
        "prompt_id": "f",
        "prompt": "q",
        "completions": [
            {"model": m, "text": m, "scores": {"a": s}} for m, s in (("x", 1), ("y", 2))
        ],
    }
    pairs, report = made(
        tmp_path, [feedback, ALPACA | {"preference": 1}, ARENA | {"winner": "model_b"}]
    )
    assert [pair["rule"] for pair in pairs] == ["paper", "verdict", "verdict"] and parse_pairwise(
        feedback
    ) is None
    assert report["shapes"] == {"feedback": 1, "AlpacaEval preferences": 1, "arena": 1}


HH = {"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}
TALK = {
    "conversations": [{"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "x"},
    "rejected": {"from": "gpt", "value": "y"},
}
RATED = {
    "prompt_id": "1",
    "prompt": "q",
    "completions": [
        {"model": m, "text": m, "scores": {"a": s}, "overall": s} for m, s in (("x", 5), ("y", 1))
    ],
}
ALL = {
    "hh": HH,
    "sharegpt": TALK,
    "feedback": RATED,
    "arena": ARENA | {"winner": "model_a"},
    "alpaca": ALPACA | {"preference": 1},
}


@pytest.mark.parametrize("shape", ALL.values(), ids=ALL)
def test_what_stands_beside_the_answers_goes_with_the_pair(tmp_path: Path, shape: Row) -> None:
    """System, tools, history and weight were left behind without a word, and the pair was one of
    another question; what training refuses by name is refused here, all else told."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    (pair,), report = made(
        tmp_path, [shape | {"system": "Be brief.", "tools": tools, "weight": 3, "colour": 1}]
    )
    turn = pair["prompt"][0] if isinstance(pair["prompt"], list) else {}
    assert pair.get("system") == "Be brief." or turn == {"role": "system", "content": "Be brief."}
    assert pair["tools"] == tools and pair["weight"] == 3 and report["keys_not_read"]["colour"] == 1
    if isinstance(pair["prompt"], str):
        (pair,), _ = made(tmp_path, [shape | {"history": [["a", "b"]], "System-Prompt": "S"}])
        assert pair["history"] == [["a", "b"]] and pair["system"] == "S"
    for bad, says in (
        ({"label": False}, "`label`.*a pair called bad"),
        ({"image": "x.png"}, "`image`.*text alone"),
        ({"question": "Another question, not q?"}, "`question`.*one field"),
        ({"loss_mask": 0}, "`loss_mask`"),
        ({"history": "a"}, "`history`"),
        ({"tools": "f"}, "`tools`"),
    ):
        with pytest.raises(BadInput, match=f"rows.jsonl:1: {says}") as error:
            made(tmp_path, [shape | bad])
        assert "data.columns" not in str(error.value)


def test_ratings_are_not_laundered(tmp_path: Path) -> None:
    """A pair whose own scores prefer the other side became one with the scores 1 and 0."""
    rows = [shape | {"chosen_score": 1, "rejected_score": 5} for shape in (HH, TALK)] + [
        HH | {"score_chosen": 2, "score_rejected": 3}
    ]
    pairs, report = made(tmp_path, [*rows, HH | {"chosen_score": 5, "rejected_score": 1}])
    assert [(pair["chosen_score"], pair["rejected_score"]) for pair in pairs[:2] + pairs[3:]] == [
        (1, 5),
        (1, 5),
        (5, 1),
    ]
    assert (pairs[2]["score_chosen"], pairs[2]["score_rejected"]) == (2, 3)
    assert report["inverted"] == {
        "count": 3,
        "first": [f"{tmp_path}/rows.jsonl:{n}" for n in (1, 2, 3)],
    }
    assert (
        "below the rejected one: 3 pairs" in report["warnings"][0] and report["keys_not_read"] == {}
    )


def test_calls_in_a_compared_answer_are_refused(tmp_path: Path) -> None:
    """An arena's turn has words alone: a call beside them was dropped."""
    calls = [
        *turns("q", "A")[:1],
        {"role": "assistant", "content": "A", "tool_calls": [{"name": "f", "arguments": {}}]},
    ]
    with pytest.raises(BadInput, match=r"rows.jsonl:1: `conversation_a\[1\].tool_calls` is"):
        made(tmp_path, [ARENA | {"winner": "model_a", "conversation_a": calls}])
