"""What a row says is never lost because another key, or another name, is read first."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pair_files import jsonl
from row_samples import SAID
from tiny import tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zephyr.chat import encode_messages, encode_pair
from zephyr.config import BadInput
from zephyr.data.encode import load_pairs, load_texts
from zephyr.data.ratings import margins
from zephyr.data.refusals import suspicious_texts
from zephyr.data.report import format_report
from zephyr.data.shapes import pair_row, sft_conversation, sft_row
from zephyr.data.tokenizer import prepare_tokenizer

SIDES = {"chosen": "good", "rejected": "bad"}
ANSWERS = [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer(), "zephyr")


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"prompt": "Translate.", "input": "Good day", **SIDES}, "prompt"),
        ({"instruction": "To German.", "prompt": "Good day", **SIDES}, "prompt"),
        ({"prompt": "a", "question": "b", **SIDES}, "prompt"),
        ({"prompt": "a", "conversations": [{"from": "human", "value": "b"}], **SIDES}, "prompt"),
        ({"prompt": "a", "question": "ban", **SIDES}, "prompt"),
    ],
)
def test_a_pair_with_two_prompts_is_refused(row: dict[str, object], lost: str) -> None:
    """Fails where the first key that is known is read, and the other is counted as if it said
    nothing."""
    with pytest.raises(ValueError, match=f"`{lost}` is .*data.columns.{lost}=null leaves it out"):
        pair_row(row)
    made, _ = pair_row({key: value for key, value in row.items() if key != lost})
    assert made["chosen"] == "good"


def test_the_answer_that_a_pair_replaced(tokenizer: PreTrainedTokenizerBase) -> None:
    """argilla's capybara: `conversation` holds the same questions, and the first author's last
    answer. Fails where the set is refused, or where another question passes."""
    turns = [
        {"role": "user", "content": "Hi 0"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Joke?"},
    ]
    row = {
        "conversation": [
            {"input": "Hi 0", "output": "Hello"},
            {"input": "Joke?", "output": "Knock."},
        ],
        "prompt": "Joke?",
        **{
            side: [*turns, {"role": "assistant", "content": said}]
            for side, said in (("chosen", "Knock, knock."), ("rejected", "No."))
        },
    }
    assert pair_row(row)[1] == ["conversation"]
    with pytest.raises(
        ValueError, match="`conversation` is .*data.columns.conversation=null leaves it out"
    ):
        pair_row(
            {
                **row,
                "conversation": [
                    *row["conversation"][:1],
                    {"input": "A riddle, please?", "output": "Knock."},
                ],
            }
        )


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"instruction": "To German.", "prompt": "Good day", "response": "c"}, "instruction"),
        ({"instruction": "To German.", "question": "Good day", "answer": "c"}, "instruction"),
        ({"prompt": "Translate.", "input": "Good day", "completion": "c"}, "input"),
        (
            {"prompt": "a", "trajectory": [{"from": "user", "value": "b"}], "completion": "c"},
            "trajectory",
        ),
        ({"prompt": "a", "query": "b", "completion": "c"}, "query"),
        (
            {
                "messages": SAID,
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No"}],
            },
            "conversations",
        ),
    ],
)
def test_a_text_with_two_prompts_is_refused(row: dict[str, object], lost: str) -> None:
    """The same of rows for SFT."""
    with pytest.raises(ValueError, match=f"`{lost}` is .*data.columns.{lost}=null leaves it out"):
        sft_row(row)


def test_a_prompt_that_the_turns_hold_is_not_lost() -> None:
    """UltraChat's `prompt` is the first turn of its `messages`, Magpie's `instruction` that of
    `conversations`; an empty `input` asks nothing. Fails where good rows are refused."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert sft_row({"prompt": "Why?", "prompt_id": "1", "messages": turns}) == turns
    said = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    assert sft_row({"instruction": "Why?", "response": "So.", "conversations": said}) == turns
    long = "Why is the sky blue in the morning?"
    asked = [{"role": "user", "content": f"Be brief. {long}"}, turns[1]]
    assert sft_row({"prompt": long, "messages": asked}) == asked
    made, unread = pair_row({"prompt": "Why?", "input": "", **SIDES})
    assert made["prompt"] == "Why?" and unread == ["input"]


def test_inverted_ratings_of_eval_are_told(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The line of the log names how many and the first. Fails where only preflight, of `train`,
    looks."""
    rows = [
        {
            "prompt": f"q{i}",
            "chosen": "a",
            "rejected": "b",
            "chosen-rating": 1,
            "rejected-rating": 5,
        }
        for i in range(3)
    ]
    _, report = load_pairs([jsonl(tmp_path / "rows.jsonl", rows)], tokenizer)
    told = format_report(report)
    assert (
        "rated below the rejected one: 3 of 3 rows with scores, the first at" in told
        and "rows.jsonl:1" in told
    )
    assert margins(
        {
            "score_chosen": 1,
            "score_rejected": 0,
            "chosen_rating_rationale": "x",
            "rejected_rating_rationale": "y",
        }
    ) == (1.0,)


@pytest.mark.parametrize(
    "said",
    [
        "<|im_start|>user\nHi<|im_end|>",
        "### Human: Hi\n### Assistant: Ahoy",
        "\n\nHuman: Hi\n\nAssistant: Ahoy",
        "Human: Hi Assistant:",
        "User: Hi\nAssistant:",
        "Assistant: Ahoy",
        '{"role": "assistant", "content": "A"}',
        '{"messages": [{"role": "user", "content": "A"}]}',
        '[{"id": 1, "role": "user", "content": "A"}]',
    ],
)
def test_marks_of_turns_are_counted_in_plain_text(
    said: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Every token of a plain text is a target, so its marks would all be trained. Fails for a form
    that nobody sees."""
    _, report = load_texts([jsonl(tmp_path / "rows.jsonl", [{"text": said}])], tokenizer)
    assert report["warnings"] and suspicious_texts([said])


@pytest.mark.parametrize(
    "said",
    [
        "My assistant: a robot",
        "The user is kind.",
        '{"city": "Rome"}',
        "[1, 2]",
        "Humans and assistants",
        "Their Assistant: a robot. The User: a child.",
    ],
)
def test_words_without_marks_are_not_counted(said: str) -> None:
    """Fails where the patterns see a transcript in any text about users, or in any JSON."""
    assert not suspicious_texts([said])


@pytest.mark.parametrize(
    "chosen",
    [
        '{"role": "assistant", "content": "A"}',
        '{"messages": [{"role": "user", "content": "A"}]}',
        '[{"id": 1, "role": "user", "content": "A"}]',
    ],
)
def test_turns_as_text_are_refused_whatever_their_first_key(
    chosen: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Fails where only a list that begins with a role is known."""
    with pytest.raises(ValueError, match="`chosen` is the text of a list of messages"):
        encode_pair(tokenizer, {"prompt": "q", "chosen": chosen, "rejected": "b"})


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"train": False}, "train"),
        ({"train_on_turn": 0}, "train_on_turn"),
        ({"loss_mask": [0, 0]}, "loss_mask"),
        ({"mask": [1]}, "mask"),
        ({"trainable": False}, "trainable"),
        ({"sample_weight": 0.5}, "sample_weight"),
        ({"weights": 2}, "weights"),
    ],
)
def test_marks_of_a_whole_row_are_refused(row: dict[str, object], key: str) -> None:
    """Fails where a row that is not to be trained, or by half, is trained as the others."""
    for read, more in (
        (pair_row, {"prompt": "q", **SIDES}),
        (sft_row, {"prompt": "q", "completion": "c"}),
    ):
        with pytest.raises(ValueError, match=f"`{key}` is .*data.columns.{key}=null"):
            read({**more, **row})
        read({**more, key: 1})


def test_other_names_for_bad_answers_and_the_system(tokenizer: PreTrainedTokenizerBase) -> None:
    """KTO's label as -1 or `unsafe`, a pair's `label`, a system under `system_message`."""
    for row in (
        {"label": -1},
        {"label": "unsafe"},
        {"labels": False},
        {"is_good": False},
        {"desirable": 0},
        {"label": "Rejected"},
        {"label": "BAD"},
        {"kto_tag": "False"},
    ):
        with pytest.raises(ValueError, match="called bad"):
            sft_row({"prompt": "q", "completion": "c", **row})
    with pytest.raises(ValueError, match="a pair called bad"):
        pair_row({"prompt": "q", **SIDES, "label": False})
    assert sft_row({"prompt": "q", "completion": "c", "system_message": "S"})[0] == {
        "role": "system",
        "content": "S",
    }


@pytest.mark.parametrize(
    "key",
    "image images video videos audio audios functions function_call documents context "
    "chat_template_kwargs".split(),
)
def test_a_key_that_no_shape_has_a_place_for_is_refused(key: str) -> None:
    """Fails where a row is trained without what it is about."""
    for read, row in ((pair_row, {"prompt": "q", **SIDES}), (sft_row, {"messages": SAID})):
        with pytest.raises(
            ValueError, match=f"`{key}` is str 'x', .*data.columns.{key}=null leaves it out"
        ):
            read({**row, key: "x"})
        read({**row, key: ""})


def test_turns_before_are_kept_or_refused() -> None:
    """Behind the system turn, in front of the others, each by its name. Fails where a shape drops
    them."""
    row = {"messages": [{"role": "system", "content": "S"}, *SAID], "history": [["q", "a"]]}
    made, unread = sft_conversation(row)
    assert [turn["content"] for turn in made.turns] == ["S", "q", "a", "Hi", "Ahoy"] and not unread
    assert made.names == [
        "messages[0]",
        "history[0][0]",
        "history[0][1]",
        "messages[1]",
        "messages[2]",
    ]
    safe = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}
    for read, other in ((pair_row, safe), (sft_row, {"text": "words"})):
        with pytest.raises(ValueError, match="`history` is list .*data.columns.history=null"):
            read({**other, "history": [["q", "a"]]})
    with pytest.raises(ValueError, match="`tools` is list .*plain text has no place for"):
        sft_row({"text": "words", "tools": [{"name": "f"}]})
    with pytest.raises(ValueError, match="ends with a user turn"):
        sft_row({"messages": SAID[:1]})


def test_what_lies_inside_a_field_is_read_or_told() -> None:
    """OpenAI's tools, SHP's scores, a label that says neither, a mark that nothing reads. Fails
    where one is lost."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {
        "input": {"messages": SAID[:1], "tools": tools, "parallel_tool_calls": True},
        "preferred_output": SAID[1:],
        "non_preferred_output": [{"role": "assistant", "content": "No"}],
    }
    made, unread = pair_row(row)
    assert made["tools"] == tools and unread == ["input.parallel_tool_calls"]
    shp = {
        "history": "q",
        "human_ref_A": "a",
        "human_ref_B": "b",
        "labels": 1,
        "score_A": 20,
        "score_B": 3,
    }
    assert pair_row(shp)[0]["margins"] == (17,) and pair_row({**shp, "labels": 0})[0][
        "margins"
    ] == (-17,)
    assert sft_conversation({"messages": SAID, "label": "class 7"})[1] == ["label"]
    assert sft_conversation({"messages": SAID, "label": "good"})[1] == []
    assert pair_row({"prompt": [{**SAID[0], "weight": 0}], **SIDES})[1] == ["prompt[].weight"]


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (
            pair_row,
            {"prompt": "\n\nHuman: q", "answers": ANSWERS},
            "`prompt` is .*that ends with the latter",
        ),
        (
            pair_row,
            {"prompt": "\n\nHuman: q\n\nAssistant: a", "answers": ANSWERS},
            "`prompt` is .*that ends with the latter",
        ),
        (
            pair_row,
            {"prompt": "Well\n\nHuman: q\n\nAssistant:", "answers": ANSWERS},
            "`prompt` is .*expected a transcript",
        ),
        (
            sft_row,
            {"instruction": "q", "input": "a", "context": "b", "output": "c"},
            "`input` and `context` are both given",
        ),
    ],
)
def test_half_of_a_prompt_is_no_prompt(
    read: Callable[[object], object], row: dict[str, object], message: str
) -> None:
    """Fails where a part is read as the whole."""
    with pytest.raises(ValueError, match=message):
        read(row)


def test_words_beside_a_call_are_not_those_of_the_call(tokenizer: PreTrainedTokenizerBase) -> None:
    """The words are also the function's name, so the text holds them without having been given
    them."""
    template = (
        "{% for m in messages %}{% if m.tool_calls %}<{{ m.tool_calls | tojson }}{{ eos_token "
        "}}{% elif m.role == 'assistant' %}"
        "<{{ m.content }}{{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}{% if "
        "add_generation_prompt %}<{% endif %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "weather", "tool_calls": [call]},
    ]
    with pytest.raises(
        ValueError, match=r"`messages\[1\].content` is not written by the chat template"
    ):
        encode_messages(tokenizer, turns, template=template)


def test_the_tokenizers_own_template_is_the_default(tokenizer: PreTrainedTokenizerBase) -> None:
    """A notebook that names no template trains in the model's own format, as the scripts do."""
    own = tiny_tokenizer()
    own.chat_template = (
        "{% for m in messages %}{{ m.role[0] + m.content }}{% if m.role == 'assistant' %}{{ "
        "eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    )
    pair = {"prompt": "hi", **SIDES}
    assert (
        encode_pair(own, pair)
        == encode_pair(own, pair, template=own.chat_template)
        != encode_pair(tokenizer, pair)
    )


def test_subsets_that_the_card_names(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Files of several subsets lie side by side, and README.md says which is whose. Fails where
    they are united in silence."""
    (tmp_path / "data").mkdir()
    for name in ("joke", "maths"):
        jsonl(tmp_path / f"data/{name}-00000.jsonl", [{"prompt": name, **SIDES}])
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: data/{name}-*\n"
        for name in ("joke", "maths")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# A set\n")
    with pytest.raises(BadInput, match="has the subsets joke, maths, expected one to be named"):
        load_pairs([str(tmp_path)], tokenizer)
    pairs, _ = load_pairs([f"{tmp_path}:maths"], tokenizer)
    assert len(pairs) == 1 and "maths" in tokenizer.decode(pairs[0].prompt_ids)


TWICE = '{"prompt": "q", "chosen": "a", "chosen": "z", "rejected": "b"}'
TWICE_INSIDE = (
    '{"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "content": '
    '"z"}], "rejected": "b"}'
)


@pytest.mark.parametrize(("line", "key"), [(TWICE, "chosen"), (TWICE_INSIDE, "content")])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_key_twice_is_a_bad_row(
    line: str, key: str, kind: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Fails where JSON's reader takes the last of two values in silence."""
    path = tmp_path / f"rows.{kind}"
    path.write_text(line + "\n" if kind == "jsonl" else f"[{line}]")
    with pytest.raises(BadInput, match=f"{path}.* has the key '{key}' twice"):
        load_pairs([str(path)], tokenizer)


def test_masked_is_not_cut(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Rows of which no turn is trained, beside one that the cut leaves no target: each is counted
    by its own reason. Fails where the user lengthens data.max_tokens for rows that are masked."""
    asked, answer = {"role": "user", "content": "why " * 50}, {"role": "assistant", "content": "so"}
    rows = [
        {"messages": [asked, {**answer, "train": False}]},
        {"messages": [asked, answer]},
        {"text": "a whole text"},
    ]
    _, report = load_texts([jsonl(tmp_path / "rows.jsonl", rows)], tokenizer, max_tokens=20)
    assert report["dropped"] == {
        "no target left after the cut": 1,
        "no target: each of the assistant's turns is marked as not trained": 1,
    }


def test_a_cached_report_names_these_files(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Two files of one name and the same bytes, in two folders. Fails where the second's report
    sends the user to the first."""
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = jsonl(tmp_path / folder / "rows.jsonl", rows)
        _, report = load_pairs([path], tokenizer, cache_dir=tmp_path / "cache")
        assert report["inverted"] == [f"{path}:1"]


def test_a_tokenizer_without_ids_for_a_text_is_a_bad_row(tmp_path: Path) -> None:
    """A vocabulary without an unknown token: tokenizers raise `Exception` itself. Fails where a row
    ends the program in a traceback; errors of other kinds are no row's, and stay."""
    names = [*map(chr, range(32, 127)), "\n", "</s>"]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = prepare_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>"), "zephyr"
    )
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "\u65e5", "rejected": "b"},
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(BadInput, match=f"{path}:2: the tokenizer can't encode .*UNK"):
        load_pairs([path], tokenizer)
    assert load_pairs([path], tokenizer, on_bad_row="skip")[1]["examples"] == 1
