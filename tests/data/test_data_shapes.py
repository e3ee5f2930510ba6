"""Every known shape of row becomes what it says, one by one worked out by hand; what is no shape
names the command that takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import row_samples
from pair_files import jsonl
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.config import BadInput
from zephyr.data import keys
from zephyr.data.encode import load_pairs, load_texts
from zephyr.data.pair_shapes import PAIRS
from zephyr.data.report import format_report
from zephyr.data.sft_shapes import TEXTS
from zephyr.data.shapes import pair_row
from zephyr.data.tokenizer import prepare_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_every_shape(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Fails where a shape is read with its sides exchanged, a turn or the system prompt lost, or
    stands in the table untested."""
    for row, prompt, chosen, rejected in row_samples.PAIRS[name]:
        pairs, report = load_pairs([jsonl(tmp_path / "rows.jsonl", [row])], tokenizer)
        (pair,) = pairs
        assert (
            tokenizer.decode(pair.prompt_ids)
            == "<s>" + row_samples.rendered(prompt) + "<|assistant|>\n"
        )
        assert [tokenizer.decode(ids) for ids in (pair.chosen_ids, pair.rejected_ids)] == [
            f"{chosen}</s>",
            f"{rejected}</s>",
        ]
        assert not report["inverted"] and not report["warnings"]
        assert list(report["keys_not_read"]) == [
            "answers[] between the first and the last in rank"
        ] * ("answers" in row)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_every_shape(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Fails as the test above; the targets are each answer and its EOS."""
    for row, said in row_samples.TEXTS[name]:
        (text,), report = load_texts([jsonl(tmp_path / "rows.jsonl", [row])], tokenizer)
        assert report["keys_not_read"] == {}
        targets = tokenizer.decode([id for id, flag in zip(text.ids, text.is_target) if flag])
        if isinstance(said, str):
            assert tokenizer.decode(text.ids) == f"<s>{said}</s>" and targets == f"{said}</s>"
        else:
            assert tokenizer.decode(text.ids) == "<s>" + row_samples.rendered(said)
            assert targets == "".join(f"{words}</s>" for words in said[2::2])


def test_ties_are_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A tie is no fault of the row, and no pair: taken as one, it would be a coin's verdict."""
    steer = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 0}
    nectar = {
        "prompt": "\n\nHuman: q\n\nAssistant:",
        "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}],
    }
    path = jsonl(tmp_path / "rows.jsonl", [steer, nectar, {**steer, "preference_strength": 1}])
    pairs, report = load_pairs([path], tokenizer)
    assert len(pairs) == 1 and sorted(report["dropped"].values()) == [0, 1, 1]
    said = format_report(report)
    assert (
        "dropped, a tie: preference_strength is 0: 1" in said
        and "after the cut" not in said
        and said.count("dropped, ") == 2
    )


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (
            load_pairs,
            {"prompt": "q", "prompt_id": "1", "completions": [{"model": "a"}]},
            "`zephyr binarize SOURCE --rule paper",
        ),
        (
            load_pairs,
            {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1},
            "`zephyr binarize",
        ),
        (
            load_pairs,
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "`zephyr binarize",
        ),
        (
            load_pairs,
            {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
            "`prompt` is a transcript.*`zephyr binarize",
        ),
        (
            load_pairs,
            {"ask": "q", "answers": ["a", "b"]},
            r"fields \['answers', 'ask'\], expected .*data.columns.chosen=answers.0",
        ),
        (
            load_pairs,
            {"chosen": "a", "rejected": "b", "ask": "q"},
            "`prompt` is missing; .*data.columns",
        ),
        (load_pairs, {"messages": row_samples.SAID}, "train_sft.py"),
        (
            load_pairs,
            {"prompt": "q", "response": "a", "helpfulness": 4, "correctness": 4, "coherence": 4},
            "a pair needs two",
        ),
        (
            load_texts,
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "train_dpo.py; data.columns.messages=chosen",
        ),
        (load_texts, {"ask": "q", "say": "a"}, "data.columns.prompt=FIELD"),
        (
            load_texts,
            {"prompt": "q", "response": "a", "helpfulness": 0, "correctness": 0, "coherence": 3},
            "data.columns.helpfulness=null",
        ),
        (
            load_pairs,
            {
                "prompt": "q",
                "response_0": "a",
                "response_1": "b",
                "better_response_id": 0,
                "safer_response_id": 1,
            },
            "data.columns.safer_response_id=null follows the better",
        ),
        (
            load_pairs,
            {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": -1},
            "`better_response_id` is int -1",
        ),
        (
            load_pairs,
            {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": "A"},
            "`labels` is str 'A'",
        ),
        (load_pairs, {"prompt": "q", "answers": [{"answer": "a", "rank": 1}]}, "`answers` is list"),
        (
            load_pairs,
            {"trajectory": [{"from": "bot", "value": "q"}], "chosen": "a", "rejected": "b"},
            r"`trajectory\[0\]` is dict",
        ),
    ],
)
def test_what_is_no_shape_says_what_takes_it(
    load: object,
    row: dict[str, object],
    message: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    """Fails where a person with usable rows is sent away without the command or the key, or a
    verdict is guessed."""
    path = jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(BadInput, match=message) as error:
        load([path], tokenizer)
    assert str(error.value).startswith(f"{path}:1: ")


def test_columns(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Other names for fields, paths into them, sides exchanged, and a key set aside; what no row
    has is a slip, and said."""
    rows = [
        {
            "ask": {"text": "q"},
            "answers": ["good", "bad", "other"],
            "sys": "S",
            "context": "c",
            "id": f"r{i}",
        }
        for i in range(2)
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    columns = {
        "prompt": "ask.text",
        "chosen": "answers.0",
        "rejected": "answers.1",
        "system": "sys",
        "context": None,
    }
    pairs, report = load_pairs([path], tokenizer, columns=columns)
    assert (
        tokenizer.decode(pairs[0].prompt_ids)
        == "<s>" + row_samples.rendered(("S", "q")) + "<|assistant|>\n"
    )
    assert [tokenizer.decode(ids) for ids in pairs[0][2:4]] == ["good</s>", "bad</s>"]
    assert report["columns"] == {"chosen": 2, "prompt": 2, "rejected": 2, "system": 2}
    assert report["keys_not_read"] == {
        "answers, but for answers.0": 2,
        "answers, but for answers.1": 2,
        "ask, but for ask.text": 2,
        "context": 2,
    }
    swapped, _ = load_pairs(
        [path], tokenizer, columns={**columns, "chosen": "answers.1", "rejected": "answers.0"}
    )
    assert swapped[0][2:4] == (pairs[0].rejected_ids, pairs[0].chosen_ids)
    with pytest.raises(BadInput, match="data.columns.system: no row of rows.jsonl has 'sistem'"):
        load_pairs([path], tokenizer, columns={**columns, "system": "sistem"})
    with pytest.raises(
        BadInput, match="data.columns.promt: no field of a row has this name, the nearest is prompt"
    ):
        load_pairs([path], tokenizer, columns={"promt": "ask.text"})
    named, _ = load_texts(
        [jsonl(tmp_path / "sft.jsonl", [{"q": "Hi", "prompt": "other", "a": "Ahoy"}])],
        tokenizer,
        columns={"prompt": "q", "completion": "a"},
    )
    assert tokenizer.decode(named[0].ids) == "<s>" + row_samples.rendered(("", "Hi", "Ahoy"))
    exchanged, _ = load_pairs(
        [jsonl(tmp_path / "pair.jsonl", [{"prompt": "q", "chosen": "bad", "rejected": "good"}])],
        tokenizer,
        columns={"chosen": "rejected", "rejected": "chosen"},
    )
    assert tokenizer.decode(exchanged[0].chosen_ids) == "good</s>"


def test_a_path_leads_to_a_value_or_to_none() -> None:
    """A name with a dot is a name; an index behind the end, or into words, leads nowhere. Fails
    where another key is taken."""
    row = {"meta.ask": "q", "answers": ["a"], "say": {"0": "c"}}
    assert keys.select(row, {"prompt": "meta.ask"}) == (
        {"prompt": "q", "answers": ["a"], "say": {"0": "c"}},
        ["prompt"],
        [],
    )
    for path in ("answers.1", "answers.x", "answers.0.0", "say.1", "meta", "none.0"):
        assert keys.select(row, {"chosen": path})[1] == []
    assert keys.select(row, {"chosen": "say.0"})[0] == {
        "meta.ask": "q",
        "answers": ["a"],
        "chosen": "c",
    }


def test_a_column_is_a_field_of_some_shape_or_a_rating() -> None:
    """Fails where `data.columns` refuses the name that an error says, or takes a slip."""
    for name in (
        "score_chosen",
        "rejected_rating",
        "margin",
        "weight",
        "label",
        "images",
        "human_ref_A",
        "system_message",
    ):
        assert keys.nearest_column(name) is None
    assert keys.nearest_column("mesages") == "the nearest is messages"
    assert (keys.nearest_column("qqq") or "").startswith("expected one of answer, answers, ")


def test_safer_of_two_verdicts(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """PKU's two verdicts differ in many rows: each command that the error names must train what it
    says."""
    path = jsonl(
        tmp_path / "rows.jsonl",
        [
            {
                "prompt": "q",
                "response_0": "useful",
                "response_1": "safe",
                "better_response_id": 0,
                "safer_response_id": 1,
            }
        ],
    )
    for columns, expected in (
        ({"safer_response_id": None}, "useful</s>"),
        ({"better_response_id": "safer_response_id"}, "safe</s>"),
    ):
        pairs, _ = load_pairs([path], tokenizer, columns=columns)
        assert tokenizer.decode(pairs[0].chosen_ids) == expected


def test_a_pair_by_other_names_is_no_row_for_sft() -> None:
    """Fails where a row of `chosen_response` and `rejected_response` is sent to the other script,
    for the instruction it has."""
    with pytest.raises(
        ValueError, match="data.columns names other fields, as data.columns.chosen=answers.0"
    ):
        pair_row(
            {
                "instruction": "Hi",
                "response": "x",
                "chosen_response": "yes",
                "rejected_response": "no",
            }
        )
    with pytest.raises(ValueError, match="which are those of a row for train_sft.py"):
        pair_row({"instruction": "Hi", "response": "yes"})
