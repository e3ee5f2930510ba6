"""Chat templates, BOS and EOS of the kinds of tokenizers that real families have."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from processes import Launch
from runs import rows, write_config, write_lines
from tiny import tiny_model
from tokenizer_kinds import KINDS, LLAMA3, make_tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from zephyr.chat import (
    ZEPHYR_TEMPLATE,
    encode_messages,
    encode_pair,
    encode_prompt,
    encode_text,
    freeze_date,
    frozen_date,
    leading_bos,
    template_bos,
    unfreeze_date,
)
from zephyr.chat.template import render
from zephyr.config import BadInput
from zephyr.data.encode import load_pairs
from zephyr.data.template import template_date
from zephyr.data.tokenizer import has_foreign_template, load_tokenizer, prepare_tokenizer
from zephyr.model.export import save_tokenizer
from zephyr.teacher.spec import load_chat_model

DIALOGUES = (
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "What colour is the sky?"},
        {"role": "assistant", "content": "The sky is blue."},
        {"role": "user", "content": "At night?\n"},
    ],
)
PAIR = {"prompt": "Hi", "chosen": "The answer is four.", "rejected": " no"}


@pytest.mark.parametrize("template", ["auto", "zephyr"])
@pytest.mark.parametrize("name", KINDS)
def test_the_export_renders_the_ids_of_training(name: str, template: str, tmp_path: Path) -> None:
    """Tokenizer and template of an export, read by transformers alone, give the prompt that was
    trained, BOS included, for every way of adding it. Fails where training puts a BOS in front that
    `apply_chat_template` never writes, or the other way round."""
    kind = KINDS[name]
    tokenizer = prepare_tokenizer(
        make_tokenizer(kind), template, kind.eos_token if template == "auto" else None
    )
    save_tokenizer(tokenizer, tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    for turns in DIALOGUES:
        ids = encode_prompt(tokenizer, turns, template=tokenizer.chat_template)
        assert (
            exported.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            == ids
        )
        assert ids[:2] != [tokenizer.bos_token_id] * 2
    whole = [*DIALOGUES[1], {"role": "assistant", "content": "It is red."}]
    assert (
        exported.apply_chat_template(whole, return_dict=False)
        == encode_messages(tokenizer, whole, template=tokenizer.chat_template).ids
    )
    assert exported.eos_token == (
        kind.eos_token if template == "auto" and kind.eos_token else kind.eos
    )
    again = load_tokenizer(tmp_path)  # and a run that starts from the export trains on the same
    assert encode_prompt(again, turns, template=again.chat_template) == ids
    assert encode_text(again, "four") == encode_text(tokenizer, "four")


@pytest.mark.parametrize("name", KINDS)
def test_bos_is_in_front_where_the_tokenizer_adds_it(name: str) -> None:
    """Text behind a template that writes no BOS begins as the tokenizer begins any text. Fails
    where a BOS that is only defined (GPT-2, Pythia, SmolLM2) is added, or one that the tokenizer
    adds is not."""
    kind, tokenizer = KINDS[name], prepare_tokenizer(make_tokenizer(KINDS[name]), "zephyr")
    first = tokenizer.bos_token_id if kind.adds_bos else None
    assert leading_bos(tokenizer) == first
    text = tokenizer.apply_chat_template(DIALOGUES[0], tokenize=False, add_generation_prompt=True)
    assert encode_prompt(tokenizer, DIALOGUES[0]) == tokenizer(text)["input_ids"]
    assert (
        (encode_prompt(tokenizer, DIALOGUES[0])[0] == first)
        == kind.adds_bos
        == (encode_text(tokenizer, "four").ids[0] == first)
    )


def test_a_cut_prompt_keeps_bos_but_no_turn_mark() -> None:
    """SmolLM2's BOS begins every turn: in front of a prompt that lost its beginning it would open a
    turn in the middle of one."""
    kept = {
        name: template_bos(tokenizer, tokenizer.chat_template) == tokenizer.bos_token_id is not None
        for name in KINDS
        if (
            tokenizer := prepare_tokenizer(
                make_tokenizer(KINDS[name]), "auto", KINDS[name].eos_token
            )
        )
    }
    assert [name for name, bos in kept.items() if bos] == [
        "mistral",
        "mistral-tools",
        "llama3",
        "llama3-base",
        "gemma",
    ]
    smollm2, gemma = (
        prepare_tokenizer(make_tokenizer(KINDS[name]), "auto", KINDS[name].eos_token)
        for name in ("smollm2", "gemma")
    )
    for tokenizer, bos in ((smollm2, []), (gemma, [gemma.bos_token_id])):
        whole = encode_pair(tokenizer, PAIR, template=tokenizer.chat_template).prompt_ids
        cut = encode_pair(
            tokenizer, PAIR, template=tokenizer.chat_template, max_tokens=12, max_prompt_tokens=8
        ).prompt_ids
        assert cut == [*bos, *whole[len(bos) - 8 :]] and len(whole) > 8


def test_rows_are_cut_as_pairs_are(tmp_path: Path) -> None:
    """Fails where the data pipeline keeps another BOS than the encoding of one pair."""
    data = str(write_lines(tmp_path / "pairs.jsonl", [PAIR]))
    for name in ("smollm2", "gemma", "mistral"):
        tokenizer = prepare_tokenizer(make_tokenizer(KINDS[name]), "auto", KINDS[name].eos_token)
        limits = {"max_tokens": 12, "max_prompt_tokens": 8}
        one = encode_pair(tokenizer, PAIR, template=tokenizer.chat_template, **limits)
        (pair,), report = load_pairs([data], tokenizer, **limits)
        assert pair[1:] == one[1:] and report["cut"]["prompt"]["rows"] == 1


def test_bos_twice_is_refused_and_bos_as_a_turn_mark_is_not() -> None:
    """Fails where a template that writes BOS twice trains, or one that writes it before every turn
    is refused."""
    tokenizer = prepare_tokenizer(make_tokenizer(KINDS["smollm2"]))
    ids = encode_pair(tokenizer, PAIR, template=tokenizer.chat_template).prompt_ids
    assert ids.count(tokenizer.bos_token_id) == 3 and ids[0] == tokenizer.bos_token_id
    with pytest.raises(ValueError, match="BOS more than once"):
        encode_pair(tokenizer, PAIR, template="{{ bos_token }}" + tokenizer.chat_template)


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].eos_token])
def test_a_turn_that_ends_with_another_token_names_it(name: str) -> None:
    """Fails where the error does not say what to write, or what it says does not train."""
    kind = KINDS[name]
    tokenizer = prepare_tokenizer(make_tokenizer(kind))
    with pytest.raises(ValueError, match="eos_token: ") as error:
        encode_pair(tokenizer, PAIR, template=tokenizer.chat_template)
    assert f"eos_token: {kind.eos_token!r}" in str(error.value) and repr(kind.eos) in str(
        error.value
    )
    tokenizer = prepare_tokenizer(make_tokenizer(kind), "auto", kind.eos_token)
    pair = encode_pair(tokenizer, PAIR, template=tokenizer.chat_template)
    end = tokenizer.convert_tokens_to_ids(kind.eos_token)
    assert pair.chosen_ids[-1] == end and tokenizer.decode(pair.chosen_ids[:-1]) == PAIR["chosen"]


def test_auto_is_the_models_own_else_zephyrs() -> None:
    """Fails where an instruct model is trained in a foreign format, or a base model in none."""
    assert (
        prepare_tokenizer(make_tokenizer(KINDS["qwen25"])).chat_template == KINDS["qwen25"].template
    )
    assert prepare_tokenizer(make_tokenizer(KINDS["mistral"])).chat_template == ZEPHYR_TEMPLATE
    assert (
        prepare_tokenizer(make_tokenizer(KINDS["qwen25"]), "zephyr").chat_template
        == ZEPHYR_TEMPLATE
    )
    several = make_tokenizer(KINDS["qwen25"])
    several.chat_template = {"tool_use": "x", "default": KINDS["qwen25"].template}
    assert prepare_tokenizer(several).chat_template == KINDS["qwen25"].template
    with pytest.raises(BadInput, match="eos_token: .*'<|im_emd|>'"):
        prepare_tokenizer(make_tokenizer(KINDS["qwen25"]), eos_token="<|im_emd|>")


LISTS_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + LLAMA3


def test_what_a_template_may_write_grows_with_what_it_is_given() -> None:
    """Fails where a long conversation, or many tools, are taken for a template that multiplies."""
    tokenizer, long = make_tokenizer(KINDS["llama3"]), "word " * 2**16
    asked = [{"role": "user", "content": long}]
    assert long.strip() in render(tokenizer, asked, LLAMA3, answer=True)
    tools = [{"type": "function", "function": {"name": "f", "description": long}}]
    assert long in render(tokenizer, DIALOGUES[0], LISTS_TOOLS, answer=True, tools=tools)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{% for m in messages %}",
        "{{ messages[9].content }}",
        "{{ 'a'.join(1) }}",
        "{{ messages | map('abs') | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_whatever_a_template_raises_is_a_refusal(template: str) -> None:
    """Python's own errors come through jinja as they are. Fails where one of them ends a run."""
    with pytest.raises(ValueError, match="the chat template refuses the conversation: ."):
        render(make_tokenizer(KINDS["llama3"]), DIALOGUES[0], template, answer=True)


CLOCK = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string "
    "= strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{{ bos_token }}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + "
    "strftime_now(' %H:%M, %-d%%') + '<|eot_id|>' }}"
    "{% for m in messages %}{% if true %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] + "
    "'<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' "
    "}}{% endif %}"
)


def test_a_stopped_clock_writes_the_day_and_nothing_else() -> None:
    """Fails where the template writes today's date all the same, its other text changes, or the
    clock can't be started again."""
    tokenizer = make_tokenizer(KINDS["llama3"])
    day = date(2024, 2, 3)
    stopped = freeze_date(CLOCK, day)
    text = render(tokenizer, DIALOGUES[0], stopped, answer=True)
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 03 Feb 2024 "
        "00:00, 3%<|eot_id|>"
    )
    fixed = CLOCK.replace("strftime_now('%d %b %Y')", "'03 Feb 2024'").replace(
        "strftime_now(' %H:%M, %-d%%')", "' 00:00, 3%'"
    )
    assert text == render(tokenizer, DIALOGUES[0], fixed, answer=True)
    assert (
        frozen_date(stopped) == day
        and unfreeze_date(stopped) == CLOCK
        and freeze_date(stopped, date(2025, 1, 1)) == stopped
    )
    assert (
        freeze_date(LLAMA3, day) == LLAMA3
        and frozen_date(LLAMA3) is None
        and frozen_date(CLOCK) is None
    )


@pytest.fixture(scope="module")
def clocked(
    tmp_path_factory: pytest.TempPathFactory, launch: Launch
) -> tuple[Path, CompletedProcess[str]]:
    """A run on Llama 3's kind of base model with a clock in its template, in a folder whose run
    began on 3 February 2024."""
    folder = tmp_path_factory.mktemp("clocked")
    model = tiny_model(folder / "model")
    tokenizer = make_tokenizer(KINDS["llama3-base"])
    tokenizer.chat_template = CLOCK
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").write_text(
        json.dumps(
            {
                "eos_token_id": [1, 7],
                "do_sample": True,
                "temperature": 0.6,
                "_from_model_config": True,
            }
        )
    )
    (folder / "run").mkdir()
    (folder / "run" / "chat_template.jinja").write_text(freeze_date(CLOCK, date(2024, 2, 3)))
    config = write_config(
        folder,
        model,
        write_lines(folder / "pairs.jsonl", rows(8)),
        optim__epochs=1,
        eos_token="<|eot_id|>",
    )
    return folder, launch("train_dpo.py", config)


def test_a_run_tells_and_keeps_its_template(clocked: tuple[Path, CompletedProcess[str]]) -> None:
    """Fails where `auto` stays in the run's config, the log does not show what was trained on, or a
    run that goes on takes today's date."""
    folder, done = clocked
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["chat_template"] == "model"
    assert (
        "chat_template: model, the model's own; an answer ends with '<|eot_id|>'; its date is "
        "frozen at 2024-02-03"
    ) in done.stderr
    (shown,) = [line for line in done.stderr.splitlines() if "the first prompt: " in line]
    assert (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\nToday: 03 Feb "
        "2024 00:00, 3%<|eot_id|>" in shown
    )
    assert (
        shown.endswith("<|start_header_id|>assistant<|end_header_id|>\\n\\n'")
        and "warning: chat_template" not in done.stderr
    )
    assert frozen_date((folder / "run" / "chat_template.jinja").read_text()) == date(2024, 2, 3)


def test_the_export_of_a_run_ends_and_samples_as_its_model(
    clocked: tuple[Path, CompletedProcess[str]],
) -> None:
    """Fails where the export's clock stands still, or one of the tokens that end an answer, or the
    temperature, is lost."""
    model = clocked[0] / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.chat_template == CLOCK and tokenizer.eos_token == "<|eot_id|>"
    settings, end = (
        GenerationConfig.from_pretrained(model),
        tokenizer.convert_tokens_to_ids("<|eot_id|>"),
    )
    assert settings.eos_token_id == [end, 1, 7] == AutoConfig.from_pretrained(model).eos_token_id
    assert (
        settings.temperature == 0.6
        and settings.do_sample
        and settings.bos_token_id == tokenizer.bos_token_id
    )
    assert "_from_model_config" not in json.loads((model / "generation_config.json").read_text())


def test_zephyr_over_another_template_is_a_warning(
    clocked: tuple[Path, CompletedProcess[str]], launch: Launch
) -> None:
    """Fails where an instruct model is trained in Zephyr's format without a word, or a model with
    Zephyr's own is warned of."""
    folder, _ = clocked
    done = launch(
        "train_dpo.py",
        folder / "config.yaml",
        "chat_template=zephyr",
        "eos_token=null",
        "data.train=[none.jsonl]",
        "--dry-run",
        check=False,
    )  # ends where the rows would be read: what comes before is what is tested
    assert (
        "warning: chat_template: zephyr replaces the model's own" in done.stderr
        and "none.jsonl" in done.stderr
    )
    for kind, template, foreign in (
        ("qwen25", "model", True),
        ("mistral", "zephyr", False),
        ("mistral", "auto", False),
    ):
        tokenizer = make_tokenizer(KINDS[kind])
        assert has_foreign_template(tokenizer) == foreign
        assert has_foreign_template(prepare_tokenizer(tokenizer, template)) == foreign


def test_the_day_is_todays_unless_one_was_kept(tmp_path: Path) -> None:
    """Fails where a first start takes another day than today, or a kept file that is broken is
    passed over."""
    assert template_date(tmp_path / "chat_template.jinja") == date.today()
    (tmp_path / "chat_template.jinja").write_text(LLAMA3)
    assert template_date(tmp_path / "chat_template.jinja") == date.today()
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadInput, match="chat_template.jinja can't be read"):
        template_date(tmp_path / "chat_template.jinja")


def test_the_day_is_part_of_what_is_cached(tmp_path: Path) -> None:
    """Fails where rows that were encoded on one day are taken for those of another."""
    tokenizer = prepare_tokenizer(make_tokenizer(KINDS["llama3"]))
    data, prompts = str(write_lines(tmp_path / "pairs.jsonl", rows(2))), []
    for day in (date(2024, 2, 3), date(2024, 2, 4), date(2024, 2, 3)):
        tokenizer.chat_template = freeze_date(CLOCK, day)
        pairs, _ = load_pairs([data], tokenizer, cache_dir=tmp_path / "cache")
        prompts.append(tokenizer.decode(pairs[0].prompt_ids))
    assert (
        prompts[0] == prompts[2] != prompts[1]
        and "04 Feb 2024" in prompts[1]
        and len(list((tmp_path / "cache").iterdir())) == 2
    )


def test_a_local_model_s_answer_ends_with_its_turn(tmp_path: Path) -> None:
    """Gemma's tokenizer ends texts with <eos>, its turns with <end_of_turn>: an answerer that waits
    for <eos> goes on to its limit."""
    model = tiny_model(tmp_path / "model")
    make_tokenizer(KINDS["gemma"]).save_pretrained(model)
    tokenizer = load_chat_model(str(model))[1]
    assert (
        tokenizer.eos_token == "<end_of_turn>"
        and tokenizer.chat_template == KINDS["gemma"].template
    )


@pytest.mark.filterwarnings("error::UserWarning")
def test_ids_that_are_not_those_of_the_file_are_told(tmp_path: Path) -> None:
    """transformers 5 takes its own class for a model of type qwen2, with its own splitting of
    digits. Fails where other ids than those of tokenizer.json are trained without a word, or where
    a tokenizer that is read as it is written is warned of."""
    tokenizer = make_tokenizer(KINDS["qwen25"], ["12345 is 12345"] * 9)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("12345")["input_ids"] == tokenizer("12345")["input_ids"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.warns(
        UserWarning,
        match="AutoTokenizer takes Qwen2Tokenizer for a model of this type, which makes other "
        "ids than tokenizer.json",
    ):
        load_tokenizer(tmp_path)
