"""A key of a row or turn that carries meaning is honoured, or refused by name; what nothing reads
is in the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pair_files import jsonl, pair_rows
from row_samples import SAID, THINKING_TEMPLATE, TOOL, TOOLS_TEMPLATE, rendered
from tiny import tiny_tokenizer
from tokenizer_kinds import CHATML, KINDS, make_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat import encode_messages, encode_pair, encode_prompt
from zephyr.chat.template import render
from zephyr.chat.template_check import require_rendered
from zephyr.config import BadInput, Data
from zephyr.data.encode import load_pairs, load_splits, load_texts
from zephyr.data.ratings import margins
from zephyr.data.report import format_report
from zephyr.data.store import content_digest
from zephyr.data.tokenizer import prepare_tokenizer
from zephyr.data.workers import NO_TARGET

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Bern"}},
}
ASKED = [{"role": "user", "content": "Rain in Bern?"}]
CALLED = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "rain"}
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


def with_template(template: str) -> PreTrainedTokenizerBase:
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def targets(tokenizer: PreTrainedTokenizerBase, text: object) -> str:
    return tokenizer.decode([id for id, flag in zip(text.ids, text.is_target) if flag])


def changed_call(city: str) -> dict[str, object]:
    return {
        **CALLED,
        "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": {"city": city}}}],
    }


def test_tools_reach_the_ids_where_the_template_writes_them() -> None:
    """Answers that differ in a call alone were equal, and the tools gone. The prompt must be the
    one generation is given."""
    tokenizer = with_template(TOOLS_TEMPLATE)
    row = {"prompt": ASKED, "tools": [TOOL], "chosen": [CALLED], "rejected": [changed_call("Rome")]}
    pair = encode_pair(tokenizer, row, template=TOOLS_TEMPLATE)
    assert tokenizer.decode(pair.chosen_ids) == 'I look.<call>weather {"city": "Bern"}</call></s>'
    assert tokenizer.decode(pair.rejected_ids) == 'I look.<call>weather {"city": "Rome"}</call></s>'
    assert json.dumps(TOOL) in tokenizer.decode(pair.prompt_ids)
    assert pair.prompt_ids == encode_prompt(tokenizer, ASKED, template=TOOLS_TEMPLATE, tools=[TOOL])
    text = tokenizer.apply_chat_template(
        ASKED, tools=[TOOL], add_generation_prompt=True, tokenize=False
    )
    assert pair.prompt_ids == tokenizer(text).input_ids, "what a pipeline feeds"
    spoken = {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
    }
    as_text = {
        **row,
        "tools": json.dumps([TOOL]),
        "chosen": [{"role": "assistant", "content": "I look.", "tool_calls": [spoken]}],
    }
    assert encode_pair(tokenizer, as_text, template=TOOLS_TEMPLATE) == pair, (
        "OpenAI's JSON text of tools and arguments"
    )
    silent = {
        **row,
        "chosen": [{**CALLED, "content": None}],
        "rejected": [{**changed_call("Rome"), "content": None}],
    }
    assert tokenizer.decode(
        encode_pair(tokenizer, silent, template=TOOLS_TEMPLATE).chosen_ids
    ).startswith("<call>")


def test_a_tools_result_is_in_the_prompt_and_no_target(tmp_path: Path) -> None:
    """A call, its result and the answer: as a pair, and as dialogue whose targets are the call and
    the answer."""
    tokenizer = with_template(TOOLS_TEMPLATE)
    prompt = [*ASKED, CALLED, RESULT]
    pair = encode_pair(
        tokenizer,
        {"prompt": prompt, "chosen": "It rains.", "rejected": "Dry."},
        template=TOOLS_TEMPLATE,
    )
    assert "<result>rain</result>" in tokenizer.decode(pair.prompt_ids)
    assert pair.prompt_ids == encode_prompt(tokenizer, prompt, template=TOOLS_TEMPLATE)
    dialogue = [*prompt, {"role": "assistant", "content": "It rains."}]
    text = encode_messages(tokenizer, dialogue, template=TOOLS_TEMPLATE, tools=[TOOL])
    assert (
        targets(tokenizer, text) == 'I look.<call>weather {"city": "Bern"}</call></s>It rains.</s>'
    )
    assert json.dumps(TOOL) in tokenizer.decode(text.ids)
    untold = encode_messages(tokenizer, dialogue, template=TOOLS_TEMPLATE)
    assert untold.ids[: len(pair.prompt_ids)] == pair.prompt_ids, (
        "the prefix of the last answer is that of the pair"
    )
    (loaded,), report = load_texts(
        [jsonl(tmp_path / "rows.jsonl", [{"messages": dialogue, "tools": [TOOL]}])], tokenizer
    )
    assert loaded[1:] == text[1:], "tools and all"
    unread = {
        f"messages[].{key}": 1
        for key in ("name", "tool_call_id", "tool_calls[].id", "tool_calls[].type")
    }
    assert report["keys_not_read"] == unread, (
        "what this template does not write, and only links call and result"
    )
    row = {"prompt": prompt, "chosen": "It rains.", "rejected": "Dry."}
    _, report = load_pairs([jsonl(tmp_path / "pairs.jsonl", [row])], tokenizer)
    assert report["keys_not_read"] == {key.replace("messages", "prompt"): 1 for key in unread}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": ASKED, "chosen": [CALLED], "rejected": [changed_call("Rome")]},
            r"`chosen\[0\].tool_calls\[0\].function.name` is not written",
        ),
        (
            {"prompt": ASKED, "tools": [TOOL], "chosen": "a", "rejected": "b"},
            r"`tools\[0\].function.name` is not written by the chat template",
        ),
        (
            {"prompt": [*ASKED, CALLED, RESULT], "chosen": "a", "rejected": "b"},
            r"`prompt\[1\].tool_calls",
        ),
        (
            {"prompt": ASKED, "chosen": [{**SAID[1], "reasoning_content": "t"}], "rejected": "b"},
            r"`chosen\[0\].reasoning_content` is not written",
        ),
        (
            {"chosen": [*ASKED, SAID[1]], "rejected": [*ASKED, {**SAID[1], "thinking": "t"}]},
            r"`rejected\[1\].thinking` is not written",
        ),
        (
            {"prompt": "q", "chosen": "<think>\nhm\n</think>\n\na", "rejected": "b"},
            "`chosen.content` holds a <think> block",
        ),
        ({**PAIR, "images": ["a.png"]}, r"`images` is list \['a.png'\].*data.columns.images=null"),
        ({**PAIR, "functions": [{"name": "f"}]}, "`functions` is list.*expected `tools`"),
        ({**PAIR, "context": "c"}, "`context` is str 'c'"),
        ({**PAIR, "weight": -1}, "`weight` is int -1"),
        ({**PAIR, "weight": "1"}, "`weight` is str '1'"),
        ({**PAIR, "weight": 1e400}, "`weight` is float inf"),
        ({**PAIR, "tools": "weather"}, "`tools` is str 'weather'"),
        ({**PAIR, "system": 3}, "`system` is int 3"),
        ({**PAIR, "history": "q"}, "`history` is str 'q'"),
        ({**PAIR, "system": "a", "system_prompt": "b"}, "`system` and `system_prompt` differ"),
        (
            {
                "system": "a",
                "prompt": [{"role": "system", "content": "b"}, *ASKED],
                "chosen": "a",
                "rejected": "b",
            },
            "two system turns",
        ),
        (
            {"prompt": ASKED, "chosen": [{**SAID[1], "weight": 0}], "rejected": "b"},
            "last turn of `chosen` is not to be trained",
        ),
        (
            {
                "prompt": [{**ASKED[0], "function_call": {"name": "f"}}],
                "chosen": "a",
                "rejected": "b",
            },
            r"`prompt\[0\].function_call`",
        ),
        (
            {
                "prompt": ASKED,
                "chosen": [
                    {
                        **CALLED,
                        "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}],
                    }
                ],
                "rejected": "b",
            },
            r"`chosen\[0\].tool_calls\[0\]` has the arguments str '{'",
        ),
        ({**PAIR, "chosen": json.dumps(SAID)}, "`chosen` is the text of a list of messages"),
        ({**PAIR, "prompt": str(SAID)}, "`prompt` is the text of a list of messages"),
    ],
)
def test_what_zephyrs_template_has_no_place_for_is_named(
    row: dict[str, object], message: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Each of these was dropped in silence, or trained as words."""
    path = jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(BadInput, match=message) as error:
        load_pairs([path], tokenizer)
    assert str(error.value).startswith(f"{path}:1: ")


def test_a_template_that_leaves_anything_out_is_seen() -> None:
    """By trying, not by reading the template: a system turn, a call's arguments, the words beside a
    call, a tool's parameters."""
    end = "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
    quiet = (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.role[0] | upper + m.content }}"
        + end
    )
    names = (
        "{% for m in messages %}{% if true %}{{ m.role[0] | upper + m.content }}{% for c in "
        "m.tool_calls %}{{ c.function.name }}{% endfor %}" + end
    )
    wordless = (
        "{% for m in messages %}{% if true %}{{ m.role[0] | upper }}{% if m.tool_calls %}{{ "
        "m.tool_calls | tojson }}"
        "{% else %}{{ m.content }}{% endif %}" + end
    )
    listed = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + wordless
    system = [{"role": "system", "content": "S"}]
    tokenizer = with_template(quiet)
    for template, turns, tools, lost in (
        (quiet, system + SAID, None, r"messages\[0\].content"),
        (
            quiet,
            [
                {"role": "system", "content": "Answer in verse, and always be kind."},
                {"role": "user", "content": "Answer in verse, and always be kind."},
                SAID[1],
            ],
            None,
            r"messages\[0\].content",
        ),
        ("{% set own = 'S' %}{{ own }}" + quiet, system + SAID, None, r"messages\[0\].content"),
        (names, [*ASKED, CALLED], None, r"function.arguments.city"),
        (wordless, [*ASKED, CALLED], None, r"messages\[1\].content"),
        (listed, SAID, [TOOL], r"tools\[0\].function.description"),
    ):
        with pytest.raises(ValueError, match=f"{lost}` is not written by the chat template"):
            encode_messages(tokenizer, turns, template=template, tools=tools)
    assert targets(tokenizer, encode_messages(tokenizer, SAID, template=quiet)) == "Ahoy</s>"


def test_a_call_may_hold_any_json() -> None:
    """Each argument is changed to see that it is written. Fails where one of a kind that nobody
    thought of ends the run."""
    arguments = {"city": None, "all": True, "days": 2, "part": 0.5, "of": [], "in": {}, "said": ""}
    call = {**CALL, "function": {"name": "weather", "arguments": arguments, "strict": None}}
    tokenizer, told = with_template(TOOLS_TEMPLATE), []
    text = encode_messages(
        tokenizer,
        [*ASKED, {**CALLED, "tool_calls": [call]}],
        template=TOOLS_TEMPLATE,
        left_out=told,
    )
    assert json.dumps(arguments) in targets(tokenizer, text)
    assert told == [f"messages[].tool_calls[].{key}" for key in ("function.strict", "id", "type")]


def test_a_template_that_refuses_another_value_reads_it() -> None:
    """What is changed to see whether it is written may be what the template checks. Fails where the
    row is refused for that."""
    checks = (
        "{% if messages[0].content not in ('S', 'Hi') %}{{ raise_exception('no') }}{% endif %}{% "
        "for m in messages %}"
        "{{ m.role[0] }}{% if m.role != 'system' %}{{ m.content }}{% endif %}{{ eos_token }}{% "
        "endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    tokenizer = with_template(checks)
    told: list[str] = []
    system = [{"role": "system", "content": "S"}]
    text = encode_messages(tokenizer, system + SAID, template=checks, left_out=told)
    assert targets(tokenizer, text) == "Ahoy</s>" and told == []


def test_a_result_that_the_text_holds_by_chance_is_not_written() -> None:
    """The town of the result stands in the answer too. Fails where a tool's words are taken for
    written because they are found."""
    said = (
        "{% for m in messages %}{% if m.role != 'tool' %}{{ m.role[0] + m.content + eos_token "
        "}}{% endif %}"
    )
    deaf = (
        said + "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    turns = [*ASKED, CALLED, RESULT, {"role": "assistant", "content": "It will rain."}]
    tokenizer = with_template(deaf)
    with pytest.raises(
        ValueError, match=r"`messages\[2\].content` is not written by the chat template"
    ):
        encode_messages(tokenizer, turns, template=deaf)
    pair = {"prompt": turns[:-1], "chosen": "It will rain.", "rejected": "No."}
    with pytest.raises(
        ValueError, match=r"`prompt\[2\].content` is not written by the chat template"
    ):
        encode_pair(
            tokenizer,
            {**pair, "prompt": [*ASKED, CALLED, {**RESULT, "content": "a"}]},
            template=deaf,
        )


def test_words_on_either_side_of_a_thought_are_not_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    """A template that parts an answer at `</think>` writes what it finds inside and behind. Fails
    where the words in front of the thought, or behind it, go without a word; a thought without its
    first mark is one."""

    def said(
        *contents: str, template: str = THINKING_TEMPLATE, told: list[str] | None = None
    ) -> str:
        turns = [
            turn
            for content in contents
            for turn in (SAID[0], {"role": "assistant", "content": content})
        ]
        turns = [turns[0], {**turns[1], "train": False}, *turns[2:]] if told is not None else turns
        return targets(own, encode_messages(own, turns, template=template, left_out=told))

    own = with_template(THINKING_TEMPLATE)
    silent = THINKING_TEMPLATE.replace("{{ said }}", "{{ said if not thought }}")
    for content, template in (
        ("Well.\n<think>\nhm\n</think>\n\nAhoy", THINKING_TEMPLATE),
        ("<think>a</think>b</think>c", THINKING_TEMPLATE),
        ("<think>hm</think>Ahoy", silent),
    ):
        with pytest.raises(
            ValueError,
            match=r"`messages\[1\].content`( holds a <think> block, which)? is not written",
        ):
            said(content, template=template)
    assert said("hm</think>Ahoy") == "<think>\nhm\n</think>\n\nAhoy</s>"
    told: list[str] = []
    assert said("hm</think>Ahoy", "No", told=told) == "No</s>" and told == ["messages[].content"]
    with pytest.raises(ValueError, match=r"`messages\[1\].content` is not written"):
        said("Well. <think>hm</think>Ahoy", "No", told=told)
    plain = encode_messages(
        tokenizer, [SAID[0], {**SAID[1], "content": "Well. <think>hm</think> Ahoy"}]
    )
    assert targets(tokenizer, plain) == "Well. <think>hm</think> Ahoy</s>", (
        "Zephyr's template changes no words"
    )


def test_thoughts_are_trained_where_the_template_writes_them() -> None:
    """The answer's prefix is generation's, with the thoughts behind it; a thought that the template
    leaves out of an earlier answer is refused in a target, and told where it is only context."""
    tokenizer = with_template(THINKING_TEMPLATE)
    for answer in (
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nAhoy"},
        {"role": "assistant", "content": "Ahoy", "reasoning_content": "hm"},
    ):
        pair = encode_pair(
            tokenizer,
            {"prompt": "Hi", "chosen": [answer], "rejected": "No"},
            template=THINKING_TEMPLATE,
        )
        assert tokenizer.decode(pair.chosen_ids) == "<think>\nhm\n</think>\n\nAhoy</s>"
        assert tokenizer.decode(pair.rejected_ids) == "No</s>"
        assert pair.prompt_ids == encode_prompt(tokenizer, SAID[:1], template=THINKING_TEMPLATE)
        text = tokenizer.apply_chat_template(SAID[:1], add_generation_prompt=True, tokenize=False)
        assert pair.prompt_ids == tokenizer(text).input_ids, "what a pipeline feeds"
        encoded = encode_messages(tokenizer, [SAID[0], answer], template=THINKING_TEMPLATE)
        assert targets(tokenizer, encoded) == "<think>\nhm\n</think>\n\nAhoy</s>"
        longer = [SAID[0], answer, *SAID]
        with pytest.raises(
            ValueError,
            match=r"`messages\[1\].(content` holds a <think> block, which|reasoning_content`) is "
            r"not written",
        ):
            encode_messages(tokenizer, longer, template=THINKING_TEMPLATE)
        told: list[str] = []
        masked = encode_messages(
            tokenizer,
            [SAID[0], {**answer, "train": False}, *SAID],
            template=THINKING_TEMPLATE,
            left_out=told,
        )
        assert (
            targets(tokenizer, masked) == "Ahoy</s>"
            and len(told) == 1
            and told[0].startswith("messages[].")
        )
        encode_pair(
            tokenizer,
            {"prompt": longer[:-1], "chosen": "a", "rejected": "b"},
            template=THINKING_TEMPLATE,
        )


@pytest.mark.parametrize(
    "key",
    [
        "train",
        "trainable",
        "training",
        "weight",
        "loss",
        "loss_weight",
        "loss_mask",
        "step_loss_mask",
    ],
)
def test_masked_turns_are_no_targets(
    key: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """By every name it goes by, in both ways of choosing targets; a weight between 0 and 1 is not
    rounded."""
    turns = [
        SAID[0],
        {**SAID[1], key: 0},
        SAID[0],
        {"role": "assistant", "content": "Bye", key: True},
    ]
    path = jsonl(
        tmp_path / "rows.jsonl",
        [
            {"messages": turns},
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Ahoy", key: False},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Bye"},
                ]
            },
        ],
    )
    for text in load_texts([path], tokenizer)[0]:
        assert targets(tokenizer, text) == "Bye</s>" and tokenizer.decode(
            text.ids
        ) == "<s>" + rendered(("", "Hi", "Ahoy", "Hi", "Bye"))
    (whole, _), _ = load_texts([path], tokenizer, targets="all")
    assert targets(tokenizer, whole) == rendered(("", "Hi", "Ahoy", "Hi", "Bye")).replace(
        "Ahoy</s>", ""
    )
    bad = [({**SAID[1], key: 0.5}, r"0\.5, .*1 or true"), ({**SAID[1], key: "no"}, "str 'no'")]
    bad += [
        ({**SAID[1], key: 0, "train" if key != "train" else "loss": 1}, "both that it is trained")
    ]
    for turn, message in bad:
        with pytest.raises(BadInput, match=rf"{message}"):
            load_texts([jsonl(tmp_path / "bad.jsonl", [{"messages": [SAID[0], turn]}])], tokenizer)
    user = jsonl(tmp_path / "user.jsonl", [{"messages": [{**SAID[0], key: 1}, SAID[1]]}])
    with pytest.raises(BadInput, match=r"`messages\[0\]` is marked as trained, and is the user's"):
        load_texts([user], tokenizer)
    nothing = jsonl(
        tmp_path / "none.jsonl", [{"messages": [SAID[0], {**SAID[1], key: 0}]}, {"messages": SAID}]
    )
    dropped = load_texts([nothing], tokenizer)[1]["dropped"]
    assert sum(dropped.values()) == dropped[NO_TARGET] == 1, (
        "a row without a target is dropped, and counted"
    )


def test_weights_are_kept(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Also through the cache, and the report counts them. Fails where a weight is lost, where a row
    of weight 0 is trained, or where `data.columns.weight=null` does not leave weights out."""
    path = jsonl(
        tmp_path / "rows.jsonl",
        [
            PAIR,
            {**PAIR, "prompt": "r", "weight": 0.3},
            {**PAIR, "prompt": "s", "weight": 1},
            {**PAIR, "prompt": "t", "weight": 0},
        ],
    )
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        pairs, report = load_pairs([path], tokenizer, cache_dir=cache)
        assert pairs.weights.tolist() == [1, 0.3, 1] and pairs[1].weight == 0.3
        assert report["weighted"] is not None and report["weighted"]["rows"] == 1
        assert report["weight"] == 2.3 and report["dropped"]["weight 0"] == 1
        assert "1 pairs have another weight than 1, the first at " in format_report(report)
        assert "all together weigh 2.3" in format_report(report)
    unweighted, report = load_pairs([path], tokenizer, columns={"weight": None})
    assert unweighted.weights.tolist() == [1, 1, 1, 1] and report["weight"] == 4
    assert "all together weigh" not in format_report(report)
    assert content_digest(unweighted) != content_digest(pairs)
    with pytest.raises(
        BadInput, match="`weight` is float 0.5: rows of train_sft.py are not weighted"
    ):
        load_texts([jsonl(tmp_path / "sft.jsonl", [{"messages": SAID, "weight": 0.5}])], tokenizer)


class OneRank:
    """What `load_splits` asks of an engine."""

    rank = first_of_node = 0
    num_nodes = 1

    def __init__(self) -> None:
        self.said: list[str] = []
        self.log = self.said.append

    def warn(self, text: str) -> None:
        self.said.append(f"warning: {text}")

    def on_all_ranks(self, make):
        return make() if make else None

    def all_gather(self, value):
        return [value]

    def require_same(self, what, value):
        return None


def splits(
    tokenizer: PreTrainedTokenizerBase,
    train: list[str],
    evaluation: Sequence[str] = (),
    **options: object,
) -> str:
    """What the log says of a run's data."""
    engine, load = OneRank(), options.pop("load", load_pairs)
    data = Data(tuple(train), tuple(evaluation))
    load_splits(engine, data, lambda sources: load(sources, tokenizer, **options))
    return "\n".join(engine.said)


def test_prompts_of_eval_that_are_in_train(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Counted by the words of the user, whatever the answers are; in plain text by the whole."""
    train = jsonl(tmp_path / "train.jsonl", pair_rows(12))
    other = [{**row, "chosen": "other"} for row in pair_rows(3)] + [{**PAIR, "prompt": "new"}]
    assert "warning: 3 of 4 have a prompt that is in data.train too" in splits(
        tokenizer, [train], [jsonl(tmp_path / "eval.jsonl", other)]
    )
    assert "in data.train too" not in splits(
        tokenizer, [train], [jsonl(tmp_path / "new.jsonl", other[3:])]
    )
    texts = [
        {"prompt": "q", "completion": "a"},
        {"text": "plain words"},
        {"prompt": "r", "completion": "a"},
    ]
    train = jsonl(tmp_path / "texts.jsonl", texts)
    held = jsonl(
        tmp_path / "held.jsonl",
        [{"prompt": "q", "completion": "b"}, {"text": "plain words"}, {"text": "plain"}],
    )
    assert "warning: 2 of 3" in splits(tokenizer, [train], [held], load=load_texts)
    assert "warning: 2 of 3" in splits(tokenizer, [train], [held], load=load_texts, targets="all")


def test_the_same_question_in_other_dress(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Other white space or case, another system turn, other answers with every token a target, and
    a longer conversation: equal ids alone were counted, and an evaluation on its own training
    prompts went unsaid."""
    ask, answer = (
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "Fig."},
    )
    pair = {"prompt": "Name a fruit.", "chosen": "fig", "rejected": "tea"}
    train = jsonl(
        tmp_path / "train.jsonl", [pair, {"prompt": "other", "chosen": "x", "rejected": "y"}]
    )
    dressed = [
        {**pair, "prompt": said}
        for said in ("Name  a fruit.", "name a fruit.\n", " Name\ta fruit.")
    ]
    held = jsonl(
        tmp_path / "held.jsonl",
        [
            *dressed,
            {**pair, "system": "Be kind."},
            {**pair, "prompt": "Name a tree."},
            {**pair, "prompt": [ask, answer, {"role": "user", "content": "more"}]},
        ],
    )
    said = splits(tokenizer, [train], [held])
    assert "warning: 4 of 6 have a prompt that is in data.train too" in said
    assert "warning: 1 of 6 begin with a question that is in data.train too" in said
    texts = jsonl(tmp_path / "texts.jsonl", [{"messages": [ask, answer]}])
    held = jsonl(
        tmp_path / "held_texts.jsonl",
        [
            {"messages": [{**ask, "content": "Name a  fruit."}, {**answer, "content": "Date."}]},
            {"messages": [ask, answer, {**ask, "content": "more"}, answer]},
        ],
    )
    said = splits(tokenizer, [texts], [held], load=load_texts, targets="all")
    assert "warning: 1 of 2 have" in said and "warning: 1 of 2 begin" in said


def test_duplicates_and_contradictions_are_counted(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Four of A over B and four of B over A teach nothing, and were trained on without a word."""
    a, b = (
        {"prompt": "tea?", "chosen": "Green.", "rejected": "Black."},
        {"prompt": "tea?", "chosen": "Black.", "rejected": "Green."},
    )
    path = jsonl(tmp_path / "rows.jsonl", [a, a, b, PAIR, b])
    _, report = load_pairs([path], tokenizer)
    again, opposite = (
        report["warnings"]["the same example again"],
        report["warnings"]["the opposite of an earlier pair, chosen and rejected exchanged"],
    )
    assert again == {"rows": 2, "first": [f"{path}:2", f"{path}:5"]} and opposite == {
        "rows": 2,
        "first": [f"{path}:3", f"{path}:5"],
    }
    assert f"exchanged: 2 rows, the first at {path}:3" in format_report(report)
    assert load_pairs([jsonl(tmp_path / "fine.jsonl", [a, PAIR])], tokenizer)[1]["warnings"] == {}


def test_text_that_looks_like_turns_is_counted(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """It may be meant (a question about JSON, a play), so it is trained, and said; the plain words
    beside it are not blamed."""
    rows = [
        {"prompt": "Write on:\nHuman: Hi\nAssistant:", "chosen": "a", "rejected": "b"},
        {"prompt": "<|im_start|>user\nHi<|im_end|>", "chosen": "a", "rejected": "b"},
        {"prompt": "[INST] Hi [/INST]", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": json.dumps(SAID)}], "chosen": "a", "rejected": "b"},
        {"prompt": "The Human: a book. What is [1, 2] in JSON?", "chosen": "a", "rejected": "b"},
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    _, report = load_pairs([path], tokenizer)
    assert sorted((of["rows"], of["first"][0]) for of in report["warnings"].values()) == [
        (1, f"{path}:1"),
        (1, f"{path}:4"),
        (2, f"{path}:2"),
    ]
    assert "zephyr binarize" in format_report(report)


@pytest.mark.parametrize(
    ("label", "good"),
    [
        (True, True),
        (1, True),
        ("desirable", True),
        (False, False),
        (0, False),
        ("undesirable", False),
    ],
)
@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_answers_called_bad_are_no_model(
    key: str, label: object, good: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """KTO's rows were trained on as if every answer were good."""
    row = {"prompt": "Hi", "completion": "Go away.", key: label}
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Ahoy", key: True}, row])
    if good:
        assert len(load_texts([path], tokenizer)[0]) == 2
        return
    with pytest.raises(BadInput, match=rf"rows.jsonl:2: `{key}` is .*an answer called bad"):
        load_texts([path], tokenizer)
    texts, report = load_texts([path], tokenizer, on_bad_row="skip")
    assert len(texts) == 1 and report["rows_skipped"] == 1
    texts, report = load_texts([path], tokenizer, columns={key: None})
    assert len(texts) == 2 and report["keys_not_read"] == {key: 2}
    classes = [{"text": "words", key: label}]
    assert load_texts([jsonl(tmp_path / "text.jsonl", classes)], tokenizer)[1]["keys_not_read"] == {
        key: 1
    }, "a class, no verdict"


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        ({"chosen-rating": 2.0, "rejected-rating": 4.5}, -2.5),
        ({"rating_chosen": 5, "rating_rejected": 3}, 2),
        ({"chosen_score": 8.0, "rejected_score": 6.0}, 2),
        ({"score_chosen": 1, "score_rejected": 1}, 0),
        ({"chosen_avg_rating": 3.5, "rejected_avg_rating": 4}, -0.5),
        ({"reward_chosen": 0.25, "reward_rejected": 0.5}, -0.25),
        ({"chosen_rank": 1, "rejected_rank": 3}, 2),
        ({"chosen_rank": 3, "rejected_rank": 1}, -2),
        ({"margin": -0.5}, -0.5),
        ({"score_chosen": 3, "score_rejected": 1, "chosen-rating": 1, "rejected-rating": 3}, -2),
        ({"score_chosen": 2}, None),
        ({"chosen_model": "a", "rejected_model": "b"}, None),
    ],
)
def test_polarity_under_every_name(
    row: dict[str, object], margin: float | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Fails where a rating goes unseen under another name, or a rank, lower is better, is taken for
    a score."""
    assert min(margins({**PAIR, **row}), default=None) == margin
    _, report = load_pairs([jsonl(tmp_path / "rows.jsonl", [{**PAIR, **row}])], tokenizer)
    assert bool(report["inverted"]) == (margin is not None and margin < 0) and (margin is None) == (
        report["mean_preference"] is None
    )
    assert report["keys_not_read"] == (dict.fromkeys(sorted(row), 1) if margin is None else {})


def test_nulls_of_arrow_are_no_keys(tmp_path: Path) -> None:
    """A column that another row fills puts null into every turn, call and schema: rendered, they
    would be words."""
    from datasets import Dataset

    tokenizer = with_template(TOOLS_TEMPLATE)
    other = {
        "type": "function",
        "function": {
            "name": "add",
            "description": "of numbers",
            "parameters": {"type": "object", "properties": {"n": {"type": "string"}}},
        },
    }
    rows = [
        {"messages": [*ASKED, changed_call("Bern")], "tools": [TOOL]},
        {"messages": SAID, "tools": [other]},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    lines = jsonl(tmp_path / "rows.jsonl", rows)
    assert [text.ids for text in load_texts([str(tmp_path / "rows.parquet")], tokenizer)[0]] == [
        text.ids for text in load_texts([lines], tokenizer)[0]
    ]


def test_a_turn_unread_is_told(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Keys of rows and turns that nobody knows are listed once, with the number of rows."""
    turns = [{**SAID[0], "name": "Bob", "lang": "en"}, {**SAID[1], "lang": "en"}]
    path = jsonl(
        tmp_path / "rows.jsonl",
        [
            {"messages": turns, "source": "made", "prompt": "Hi"},
            {"messages": SAID, "source": "made"},
        ],
    )
    _, report = load_texts([path], tokenizer)
    assert report["keys_not_read"] == {
        "messages[].lang": 1,
        "messages[].name": 1,
        "prompt": 1,
        "source": 2,
    }
    assert (
        "keys not read: messages[].lang (1 rows), messages[].name (1 rows), prompt (1 rows), "
        "source (2 rows)" in format_report(report)
    )


def test_special_names_in_calls_stay_text() -> None:
    """Nobody's words end a turn: a `</s>` in the arguments of a call, a thought or a tool is
    spelled out."""
    tokenizer = with_template(TOOLS_TEMPLATE)
    tool = {**TOOL, "function": {**TOOL["function"], "description": "ends </s>"}}
    turns = [*ASKED, changed_call("a</s>b")]
    text = encode_messages(tokenizer, turns, template=TOOLS_TEMPLATE, tools=[tool])
    assert text.ids.count(
        tokenizer.eos_token_id
    ) == 3 and 'weather {"city": "a</s>b"}</call></s>' in tokenizer.decode(text.ids)


def test_marks_of_a_template_inside_an_answer_are_the_answers() -> None:
    """Mistral's `[TOOL_CALLS]` is a special token, the first of the answer that calls: it is a
    target, after the prompt that generation is given. Fails where such a call is refused, or where
    an answer runs on over another turn's marks to a later EOS."""
    tokenizer = prepare_tokenizer(make_tokenizer(KINDS["mistral-tools"]), "model")
    silent = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    other = {**silent, "tool_calls": changed_call("Rome")["tool_calls"]}
    pair = encode_pair(
        tokenizer, {"prompt": ASKED, "tools": [TOOL], "chosen": [silent], "rejected": [other]}
    )
    called = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bern"}}]</s>'
    assert tokenizer.decode(pair.chosen_ids) == called
    assert pair.chosen_ids[0] == tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    assert pair.prompt_ids == encode_prompt(tokenizer, ASKED, tools=[TOOL])
    text = encode_messages(tokenizer, [*ASKED, silent, RESULT, SAID[1]], tools=[TOOL])
    assert targets(tokenizer, text) == called + " " + SAID[1]["content"] + "</s>"
    assert text.ids == tokenizer.apply_chat_template(
        [*ASKED, silent, RESULT, SAID[1]], tools=[TOOL], return_dict=False
    )
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ ']' + eos_token }}", "{{ ']' }}")
    with pytest.raises(ValueError, match=r"ends an answer with '\[TOOL_CALLS\]'"):
        encode_messages(tokenizer, [*ASKED, silent, RESULT, SAID[1]], tools=[TOOL])


def test_a_prompt_that_opens_a_thought() -> None:
    """Qwen3-Thinking's generation prompt ends in `<think>`: what is trained begins behind it,
    thought or none."""
    thinking = (
        "(('<think>\\n' + (m['reasoning_content'] or '') + '\\n</think>\\n\\n') if "
        "m['role'] == 'assistant' else '')"
    )
    opened = CHATML.replace("+ m['content'] +", f"+ {thinking} + m['content'] +").replace(
        "assistant\n' }}", "assistant\n<think>\n' }}"
    )
    tokenizer = prepare_tokenizer(make_tokenizer(KINDS["qwen25"]), "model")
    thought, plain = (
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        {"role": "assistant", "content": "b"},
    )
    pair = encode_pair(
        tokenizer, {"prompt": ASKED, "chosen": [thought], "rejected": [plain]}, template=opened
    )
    assert tokenizer.decode(pair.prompt_ids).endswith("<|im_start|>assistant\n<think>\n")
    assert tokenizer.decode(pair.chosen_ids) == "hm\n</think>\n\na<|im_end|>"
    assert tokenizer.decode(pair.rejected_ids) == "\n</think>\n\nb<|im_end|>"


def test_duplicates_by_their_words(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """One blank more is no other example; another system turn, or case, is."""
    a = {"prompt": "Best tea?", "chosen": "Green tea.", "rejected": "Black."}
    rows = [
        a,
        {**a, "chosen": "Green  tea.\n"},
        {"prompt": "Best tea? ", "chosen": "Black.", "rejected": "Green tea. "},
        {**a, "system": "Be brief."},
        {**a, "chosen": "green tea."},
    ]
    _, report = load_pairs([jsonl(tmp_path / "rows.jsonl", rows)], tokenizer)
    assert {what[:8]: of["first"] for what, of in report["warnings"].items()} == {
        "the same": [f"{tmp_path}/rows.jsonl:2"],
        "the oppo": [f"{tmp_path}/rows.jsonl:3"],
    }


def test_a_call_without_words_has_none_to_write() -> None:
    """By a template that changes words, so that each has to be looked for. Fails where the empty
    content beside a call is wanted in the text, and the row is refused."""
    template = (
        "{% for m in messages %}{{ m.role }}: {% if m.tool_calls %}{{ m.tool_calls | tojson }}{% "
        "else %}"
        "{{ m.content | upper }}{% endif %}{{ eos_token }}{% endfor %}"
    )
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
    }
    turns = [SAID[0], call, {"role": "tool", "content": "three"}, SAID[1]]
    tokenizer = with_template(template)
    text = render(tokenizer, turns, template, answer=False)
    names = [f"messages[{i}]" for i in range(4)]
    assert require_rendered(tokenizer, turns, template, text=text, names=names, trained=[3]) == []
    turns[1] = {**call, "content": "Let me add."}
    with pytest.raises(
        ValueError, match=r"`messages\[1\].content` is not written by the chat template"
    ):
        require_rendered(tokenizer, turns, template, text=text, names=names, trained=[3])


def test_duplicates_once_cut(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Other words behind the cut train nothing else. Fails where words alone are compared."""
    begin = {"chosen": "Green tea. " * 9, "rejected": "Black tea. " * 9}
    rows = [
        {"prompt": "tea?", **{side: f"{said} {end}" for side, said in begin.items()}}
        for end in ("Well.", "So.")
    ]
    rows.append(
        {
            "prompt": "tea?",
            "chosen": f"{begin['rejected']} Ah.",
            "rejected": f"{begin['chosen']} Oh.",
        }
    )
    _, report = load_pairs(
        [jsonl(tmp_path / "rows.jsonl", rows)], tokenizer, max_tokens=40, max_prompt_tokens=30
    )
    assert [of["rows"] for of in report["warnings"].values()] == [1, 1], report["warnings"]
    _, report = load_pairs([jsonl(tmp_path / "rows.jsonl", rows)], tokenizer)
    assert report["warnings"] == {}, "whole, they are three"


def test_half_a_surrogate_in_a_key_is_skipped_and_kept(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The reason of a bad row shows its key, and the cache's report is UTF-8: the run ended in a
    UnicodeEncodeError."""
    bad = (
        '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score\\ud800": 1, '
        '"rejected_score\\ud800": "x"}'
    )
    path = jsonl(tmp_path / "rows.jsonl", [PAIR, bad])
    for _ in range(2):  # made, then read from the cache
        _, report = load_pairs([path], tokenizer, on_bad_row="skip", cache_dir=tmp_path / "cache")
        assert "score\\ud800" in report["skipped"][0]["reason"] and format_report(report).encode()
