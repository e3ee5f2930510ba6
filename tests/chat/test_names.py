"""Keys in any spelling, and words that say the same by another name: honoured, or refused by
name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pair_files import jsonl
from row_samples import SAID
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat.messages import check_messages
from zephyr.chat.names import parse_yes_no, plain, unify_keys
from zephyr.config import BadInput
from zephyr.data.encode import load_pairs, load_texts
from zephyr.data.keys import nearest_column
from zephyr.data.ratings import Tie, margins
from zephyr.data.shapes import pair_row, sft_conversation, sft_row
from zephyr.data.tokenizer import prepare_tokenizer

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
ASK = {"prompt": "Hi", "completion": "Go away."}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": said} for said in texts]


def test_spellings_of_one_name() -> None:
    """Fails where a case or a separator makes another key of it, or one of two that differ is
    dropped."""
    for key in (
        "Chosen-Rating",
        "chosenRating",
        "CHOSEN_RATING",
        "chosen.rating",
        "Chosen rating",
        "chosen_rating",
    ):
        assert plain(key) == "chosen_rating"
    assert plain("SYSTEMPrompt") == "system_prompt"
    assert unify_keys({"Label": 1, "x": 2}, frozenset({"label"})) == (
        {"label": 1, "x": 2},
        {"label": "Label"},
    )
    with pytest.raises(
        ValueError, match="`system` and `System` are spellings of one name, and differ"
    ):
        pair_row({**PAIR, "System": "a", "system": "b"})
    assert pair_row({**PAIR, "System": "a", "system": "a"})[0]["system"] == "a"
    assert [
        parse_yes_no(value) for value in ("No", "thumbs-down", [True, 0], "Yes", 2, {}, [])
    ] == [
        False,
        False,
        False,
        True,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Chosen-Rating", "Rejected-Rating"),
        ("scoreChosen", "scoreRejected"),
        ("CHOSEN_SCORE", "REJECTED_SCORE"),
        ("score_w", "score_l"),
        ("chosen_score", "reject_score"),
        ("preferred_rating", "dispreferred_rating"),
        ("preferred_rating", "non_preferred_rating"),
        ("chosen_helpfulness", "rejected_helpfulness"),
        ("chosen_win_rate", "rejected_win_rate"),
        ("gpt4_chosen", "gpt4_rejected"),
        ("rejected_toxicity", "chosen_toxicity"),
    ],
)
def test_ratings_by_their_words(chosen: str, rejected: str) -> None:
    """A pair of numbers is a rating under any name, lower toxicity better. Fails where one goes
    unseen."""
    assert (
        margins({**PAIR, chosen: 1, rejected: 5}) == (-4,)
        and not pair_row({**PAIR, chosen: 1, rejected: 5})[1]
    )


@pytest.mark.parametrize(
    "rest", ["tokens", "length", "logps", "id", "created", "text_length", "rating_rationale"]
)
def test_numbers_that_rate_nothing(rest: str) -> None:
    """Fails where a longer or likelier answer counts as a better one."""
    row = {**PAIR, f"chosen_{rest}": 1, f"rejected_{rest}": 5}
    assert margins(row) == () and pair_row(row)[1] == [f"chosen_{rest}", f"rejected_{rest}"]


@pytest.mark.parametrize(
    ("more", "unread"),
    [
        ({"scores": {"chosen": 1, "rejected": 5}}, []),
        ({"meta": {"chosen_score": 1, "rejected_score": 5, "by": "me"}}, ["meta.by"]),
        (
            {
                "chosen": [{**SAID[1], "rating": 1, "n": "x"}],
                "rejected": [{"role": "assistant", "content": "No", "rating": 5}],
            },
            ["chosen[].n"],
        ),
        ({"score_diff": -4}, []),
        ({"rewardMargin": -4}, []),
        ({"preference_margin": -4}, []),
    ],
)
def test_ratings_inside_and_margins(more: dict[str, object], unread: list[str]) -> None:
    """Fails where a rating in an object, in a turn, or given as a difference goes unseen, or what
    lies beside it goes untold."""
    made, told = pair_row({**PAIR, **more})
    assert made["margins"] == (-4,) and told == unread


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("winner", "rejected"),
        ("Preference", "rejected"),
        ("preferred", "loser"),
        ("better", "rejected_response"),
        ("chosen_is_better", False),
        ("rejected_is_better", True),
        ("labels", 0),
        ("Label", False),
        ("is_valid", False),
        ("preferred_response", "bad"),
    ],
)
def test_a_verdict_for_the_other_answer_is_refused(key: str, value: object) -> None:
    """Fails where it is trained, or the error does not name the row's own key, or the key that
    leaves it out."""
    with pytest.raises(ValueError, match=f"`{key}` is .*a pair called bad.*=null trains them"):
        pair_row({**PAIR, key: value})
    assert nearest_column(key) is None
    agrees = {
        "rejected": "chosen",
        "loser": "winner",
        "rejected_response": "chosen_response",
        "bad": "good",
        0: 1,
    }.get(value)
    assert pair_row(
        {
            **PAIR,
            key: agrees
            if isinstance(value, str) or (value == 0 and type(value) is int)
            else not value,
        }
    )


def test_ties_and_verdicts_that_cannot_be_told() -> None:
    """Fails where a tie is a pair, or a letter of another order is followed or passed over."""
    for key, value in (
        ("tie", True),
        ("is_tie", "yes"),
        ("winner", "tie"),
        ("winner", "tie (bothbad)"),
        ("preference", "both"),
    ):
        with pytest.raises(Tie, match=f"`{key}`"):
            pair_row({**PAIR, key: value})
    for key, value in (
        ("winner", "b"),
        ("preference", 1),
        ("better", "response_1"),
        ("tie", 0.5),
        ("swapped", True),
        ("winner", "gpt"),
    ):
        with pytest.raises(
            ValueError, match=f"`{key}` is .*nothing says|`{key}` is .*expected true or false"
        ):
            pair_row({**PAIR, key: value})
        assert nearest_column(key) is None
    models = {"chosen_model": "a", "rejected_model": "b"}
    assert pair_row({**PAIR, **models, "winner": "a", "tie": False, "swapped": False})[1] == [
        "chosen_model",
        "rejected_model",
    ]
    with pytest.raises(ValueError, match="called bad"):
        pair_row({**PAIR, **models, "winner": "b"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Label", False),
        ("LABEL", "False"),
        ("label", "no"),
        ("label", "negative"),
        ("label", [False]),
        ("kto_label", False),
        ("accepted", 0),
        ("is_chosen", False),
        ("chosen", False),
        ("is_desirable", "false"),
        ("thumbs_up", False),
        ("is_good", "no"),
        ("rejected", True),
        ("thumbs_down", "yes"),
    ],
)
def test_answers_called_bad_by_other_names(key: str, value: object) -> None:
    """Fails where such a row is trained. A number on a scale is only told."""
    with pytest.raises(ValueError, match=f"`{key}` is .*an answer called bad"):
        sft_row({**ASK, key: value})
    for told in ({"score": 0}, {"rating": 1}, {"label": "class 7"}, {"chosen": 0}):
        assert sft_conversation({**ASK, **told})[1] == [*told]


def test_labels_in_turns() -> None:
    """Fails where a turn's own label goes unread, or the rejected answer's is taken for a fault."""
    with pytest.raises(
        ValueError,
        match=r"`label` in a turn of `messages\[1\]` is bool False: an answer called bad",
    ):
        sft_row({"messages": [SAID[0], {**SAID[1], "label": False}]})
    sides = {
        "chosen": [{**SAID[1], "label": True}],
        "rejected": [{"role": "assistant", "content": "No", "label": False}],
    }
    assert pair_row({"prompt": "Hi", **sides})
    for side in sides:
        with pytest.raises(ValueError, match=f"`label` in a turn of `{side}`"):
            pair_row(
                {"prompt": "Hi", **sides, side: [{**sides[side][0], "label": side == "rejected"}]}
            )


@pytest.mark.parametrize(
    "key",
    [
        "trained",
        "is_target",
        "Weight",
        "Train",
        "compute_loss",
        "requires_loss",
        "masked",
        "ignore",
        "noLoss",
    ],
)
def test_masks_by_other_names(key: str) -> None:
    """Fails where a turn is trained that is marked, or a mark that says the opposite is read as the
    others."""
    masked = plain(key) in ("masked", "ignore", "no_loss")
    for value in (False, True):
        assert check_messages([SAID[0], {**SAID[1], key: value}])[1]["train"] is (value != masked)
    with pytest.raises(ValueError, match=f"`{key}`"):
        sft_row({**ASK, key: masked})


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"loss": 0}, "loss"),
        ({"loss_weight": 0}, "loss_weight"),
        ({"Weight": 0}, "Weight"),
        ({"importance": 0}, "importance"),
        ({"skip": True}, "skip"),
        ({"use_loss": False}, "use_loss"),
        ({"passage": "Bees dance."}, "passage"),
        ({"choices": ["3", "4"]}, "choices"),
        ({"persona": "A pirate."}, "persona"),
    ],
)
def test_what_a_row_says_beside_its_shape_is_refused(more: dict[str, object], key: str) -> None:
    """Fails where it is only counted, and nobody could leave it out by the key that the error
    names."""
    with pytest.raises(ValueError, match=f"`{key}` is .*data.columns.{plain(key)}=null"):
        sft_row({**ASK, **more})
    assert nearest_column(key) is None


def test_a_mark_of_a_turn_that_no_table_holds() -> None:
    """Fails where a word of training is only counted: the turn would be trained all the same."""
    with pytest.raises(
        ValueError, match=r"`messages\[1\].use_in_loss` is bool False, which may say whether"
    ):
        check_messages([SAID[0], {**SAID[1], "use_in_loss": False}])


def test_texts_in_parts(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Parts of text are one text; a part of another type is named, and a key beside a part's text
    is told."""
    whole = {"prompt": SAID[:1], "chosen": SAID[1:], "rejected": "No"}
    for row in (
        {
            "prompt": [{"role": "user", "content": parts("H", "i")}],
            "chosen": [{"role": "assistant", "content": parts("Ahoy")}],
            "rejected": parts("N", "o"),
        },
        {**whole, "prompt": parts("Hi")},
        {**whole, "chosen": SAID[1]},
    ):
        pairs, _ = load_pairs(
            [jsonl(tmp_path / "rows.jsonl", [row, {**whole, "chosen": "other"}])], tokenizer
        )
        assert tokenizer.decode(pairs[0].prompt_ids) == tokenizer.decode(pairs[1].prompt_ids)
        assert [tokenizer.decode(ids) for ids in pairs[0][2:4]] == ["Ahoy</s>", "No</s>"]
    assert sft_row({"prompt": parts("H", "i"), "completion": parts("Ahoy")}) == SAID
    image = [*parts("See"), {"type": "image_url", "image_url": "a.png"}]
    with pytest.raises(
        BadInput,
        match=r"rows.jsonl:1: `messages\[0\].content\[1\]` is .*"
        "expected only parts of the type 'text'",
    ):
        load_texts(
            [
                jsonl(
                    tmp_path / "rows.jsonl",
                    [{"messages": [{"role": "user", "content": image}, SAID[1]]}],
                )
            ],
            tokenizer,
        )
    told = sft_conversation(
        {"messages": [{"role": "user", "content": [{**parts("Hi")[0], "cache": 1}]}, SAID[1]]}
    )[1]
    assert told == ["messages[].content[].cache"]


def test_speakers_and_calls() -> None:
    """ShareGPT's names for who speaks, in `messages` too; its calls and results. Fails where one is
    guessed or lost."""
    assert (
        sft_row(
            {"messages": [{"Role": "human", "Content": "Hi"}, {"role": "GPT", "content": "Ahoy"}]}
        )
        == SAID
    )
    with pytest.raises(
        ValueError, match="'developer', expected one of .*OpenAI's later name for `system`"
    ):
        check_messages([{"role": "developer", "content": "S"}, *SAID])
    row = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "Yes."},
        ]
    }
    assert sft_row(row) == [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Yes."},
    ]
    row["conversations"][1]["value"] = "f(1)"
    with pytest.raises(
        ValueError,
        match=r"`conversations\[1\].value` is str 'f\(1\)', expected the JSON text of a call",
    ):
        sft_row(row)


def test_messages_beside_a_pair() -> None:
    """UltraFeedback's `messages` are its chosen side; others are a conversation that would be
    lost."""
    row = {
        "prompt": "Hi",
        "chosen": SAID,
        "rejected": [SAID[0], {"role": "assistant", "content": "No"}],
    }
    assert pair_row({**row, "messages": SAID})[1] == ["messages"]
    assert (
        pair_row(
            {key: value for key, value in {**row, "messages": SAID}.items() if key != "prompt"}
        )[0]["prompt"]
        == SAID[:1]
    )
    with pytest.raises(ValueError, match="`messages` is list"):
        pair_row(
            {**row, "messages": [{"role": "user", "content": "Something else entirely"}, SAID[1]]}
        )


def test_a_word_of_another_matter_makes_no_mark() -> None:
    """argilla's Orca pairs say where a question is from, OpenHermes how a prompt was made. Fails
    where sets that everybody trains on are refused for a word in a key; a mark stays one."""
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no", "in_gsm8k_train": False}
    assert pair_row(row)[1] == ["in_gsm8k_train"]
    told = {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "yes"}],
        "skip_prompt_formatting": False,
    }
    assert sft_conversation(told)[1] == ["skip_prompt_formatting"]
    for key in ("not_for_training_loss", "use_in_train", "ignore_this_sample"):
        with pytest.raises(
            ValueError, match=f"`{key}` is bool False, which may say whether the row is trained"
        ):
            pair_row({**row, key: False})
