"""The corpus: what a person can get wrong, and the parts that the one line about it must hold."""

from __future__ import annotations

import gzip
import json
from typing import NamedTuple

from inputs import (
    GOOD,
    ROWS,
    Make,
    config,
    config_and,
    deepspeed,
    directory_as_config,
    edited,
    file,
    folder_of,
    given,
    model,
    model_file,
    other_model,
    parquet,
    parquet_of_bytes,
    saved_dataset,
    sharded,
    used_run,
    weights,
)


class Case(NamedTuple):
    """`says`: parts of the message, what is wrong and where. `paid`: the reference log-probs were
    taken, and rightly kept."""

    make: Make
    says: tuple[str, ...]
    paid: bool = False


LINE = json.dumps(GOOD) + "\n"
MANY = "".join(json.dumps({**GOOD, "id": i}) + "\n" for i in range(600)).encode()
UNDER_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MINIMAL = "model: m\ndata: {train: [d.jsonl]}\n"

CONFIG = {
    "config missing": Case(
        lambda at: [str(at / "nowhere.yaml")], ("config", "nowhere.yaml", "No such file")
    ),
    "config a directory": Case(directory_as_config, ("config.yaml", "Is a directory")),
    "config empty": Case(config(""), ("config.yaml", "a mapping of keys", "NoneType")),
    "config a list": Case(config("- model\n"), ("config.yaml", "a mapping of keys", "list")),
    "config a bracket short": Case(
        config("model: m\ndata: {train: [a\n"), ("config.yaml", "not YAML", "line 3")
    ),
    "config with a tab": Case(
        config("model: m\ndata:\n\ttrain: [a]\n"), ("config.yaml", "not YAML", "line 3")
    ),
    "config latin-1": Case(
        config("model: é\n".encode("latin-1")), ("config.yaml", "not YAML", "utf-8", "0xe9")
    ),
    "config utf-16": Case(config(MINIMAL.encode("utf-16")), ("config.yaml", "not YAML", "utf-8")),
    "config with a NUL byte": Case(config(b"model: a\0b\n"), ("config.yaml", "not YAML", "#x0000")),
    "config with a python object": Case(
        config("model: !!python/object/apply:os.getcwd []\n"),
        ("config.yaml", "not YAML", "os.getcwd"),
    ),
    "config with a date that is none": Case(
        config(MINIMAL + "beta: 2024-13-01\n"), ("config.yaml", "not YAML", "month")
    ),
    "config with a tag that does not fit": Case(
        config(MINIMAL + "beta: !!int ''\n"), ("config.yaml", "not YAML")
    ),
    "config nested too deeply": Case(config("[" * 3000), ("config.yaml", "not YAML", "recursion")),
    "config with a number of thousands of digits": Case(
        config(MINIMAL + f"beta: 0x{'f' * 5000}\n"), ("config.yaml", "4300 digits")
    ),
    "config of two documents": Case(
        config(f"{MINIMAL}---\n{MINIMAL}"), ("config.yaml", "not YAML", "single document")
    ),
    "config without model": Case(config("data: {train: [d.jsonl]}\n"), ("model: missing",)),
    "config without data": Case(config("model: m\n"), ("data: missing",)),
    "config without data.train": Case(
        config("model: m\ndata: {limit: 3}\n"), ("data.train: missing",)
    ),
    "unknown key": Case(given("optim.lr=1e-3"), ("optim.lr: unknown key", "optim.lr_peak")),
    "unknown key of another group": Case(
        given("epochs=1"), ("epochs: unknown key", "optim.epochs")
    ),
    "unknown key of a megabyte": Case(
        config_and(f"? {'x' * 1_000_000}\n: 1\n"), ("unknown key", "xxx")
    ),
    "key of SFT": Case(
        given("optim.windows_per_step=8"), ("optim.windows_per_step: unknown key", "nearest")
    ),
    "number a text": Case(
        given("optim.lr_peak=5e-7x"), ("optim.lr_peak", "'5e-7x'", "a finite number")
    ),
    "number a list": Case(given("beta=[0.1]"), ("beta", "[0.1]", "a finite number")),
    "number infinite": Case(given("beta=.inf"), ("beta", "inf", "a finite number")),
    "integer a fraction": Case(given("optim.epochs=1.5"), ("optim.epochs", "1.5", "an integer")),
    "integer true": Case(given("optim.epochs=true"), ("optim.epochs", "True", "an integer")),
    "flag a text": Case(given("data.shuffle='no'"), ("data.shuffle", "'no'", "true or false")),
    "text a number": Case(given("model=7"), ("model", "7", "a string")),
    "text null": Case(given("run.dir="), ("run.dir", "None", "a string")),
    "text empty": Case(given("run.dir=''"), ("run.dir", "''", "a string")),
    "text of two lines": Case(given('model="a\\nb"'), ("model", r"'a\nb'", "a string")),
    "text with a NUL": Case(given('run.dir="a\\0b"'), ("run.dir", r"'a\x00b'", "a string")),
    "text with half a surrogate pair": Case(
        given('run.dir="a\\uD800b"'), ("run.dir", r"'a\ud800b'", "a string")
    ),
    "text naming a secret": Case(
        given("run.wandb.name=$WANDB_API_KEY"), ("run.wandb.name", "WANDB_API_KEY", "environment")
    ),
    "group a number": Case(given("optim=3"), ("optim", "3", "a group of keys")),
    "group null": Case(given("data="), ("data", "None", "a group of keys")),
    "list a text": Case(given("data.train={a: b}"), ("data.train", "{'a': 'b'}", "a list")),
    "list empty": Case(given("data.train=[]"), ("data.train", "at least one")),
    "list with a number": Case(given("data.eval=[a, 3]"), ("data.eval[1]", "3", "a string")),
    "list too short": Case(
        given("optim.adam_betas=[0.9]"), ("optim.adam_betas", "[0.9]", "a list of 2")
    ),
    "choice unknown": Case(given("optim.schedule=step"), ("optim.schedule", "'step'", "cosine")),
    "choice of YAML's own": Case(given("run.resume=no"), ("run.resume", "False", "never")),
    "wandb.mode unknown": Case(
        given("run.wandb.mode=maybe"), ("run.wandb.mode", "'maybe'", "offline")
    ),
    "truncation unknown": Case(
        given("data.truncation=keep_start"), ("data.truncation", "'keep_start'", "keep_end")
    ),
    "beta 0": Case(given("beta=0"), ("beta", "> 0", "0.0")),
    "beta negative": Case(given("beta=-0.1"), ("beta", "> 0", "-0.1")),
    "lr_peak 0": Case(given("optim.lr_peak=0.0"), ("optim.lr_peak", "> 0")),
    "grad_clip negative": Case(given("optim.grad_clip=-1.0"), ("optim.grad_clip", ">= 0", "-1.0")),
    "adam_betas of 1": Case(
        given("optim.adam_betas=[0.9, 1.0]"), ("optim.adam_betas", "1.0", "< 1")
    ),
    "warmup longer than the run": Case(
        given("optim.warmup_fraction=1.0"), ("optim.warmup_fraction", "< 1", "1.0")
    ),
    "pairs_per_step 0": Case(given("optim.pairs_per_step=0"), ("optim.pairs_per_step", "got 0")),
    "limit 0": Case(given("data.limit=0"), ("data.limit", "got 0")),
    "limit of 100 bits": Case(given(f"data.limit={2**100}"), ("data.limit", str(2**100))),
    "budget of 100 bits": Case(
        given(f"hardware.tokens_per_micro_batch={2**100}"),
        ("hardware.tokens_per_micro_batch", str(2**100)),
    ),
    "seed negative": Case(given("run.seed=-1"), ("run.seed", "got -1")),
    "prompt takes all room": Case(
        given("data.max_tokens=64", "data.max_prompt_tokens=64"),
        ("data.max_prompt_tokens", "64", "no tokens"),
    ),
    "loss unknown": Case(given("loss=dpo"), ("loss", "'dpo'", "sigmoid")),
    "label_smoothing a half": Case(
        given("label_smoothing=0.5"), ("label_smoothing", "< 0.5", "0.5")
    ),
    "label_smoothing without effect": Case(
        given("loss=ipo", "label_smoothing=0.1"), ("label_smoothing", "0.1", "'ipo'")
    ),
    "label_smoothing wanted": Case(given("loss=exo_pair"), ("'exo_pair'", "label_smoothing")),
    "loss unknown in a group": Case(given("loss={name: simpoo}"), ("loss", "'simpoo'", "simpo")),
    "loss without a name": Case(given("loss={gamma: 1}"), ("loss.name", "missing", "sigmoid")),
    "loss null": Case(given("loss=null"), ("loss", "expected a string or a group", "None")),
    "loss a list": Case(given("loss=[simpo]"), ("loss", "expected a string or a group")),
    "loss a number": Case(given("loss=1"), ("loss", "expected a string or a group", "got 1")),
    "setting of another loss": Case(
        given("loss={name: sigmoid, gamma: 1}"), ("loss.gamma", "'sigmoid'", "no settings")
    ),
    "setting misspelt": Case(
        given("loss={name: simpo, gama: 1}"), ("loss.gama", "'simpo'", "gamma")
    ),
    "setting a text": Case(
        given("loss={name: simpo, gamma: high}"), ("loss.gamma", "a number", "'high'")
    ),
    "setting true": Case(
        given("loss={name: simpo, gamma: true}"), ("loss.gamma", "number", "True")
    ),
    "setting nan": Case(given("loss={name: simpo, gamma: .nan}"), ("loss.gamma", "nan")),
    "setting negative": Case(
        given("loss={name: dpop, penalty: -1}"), ("loss.penalty", ">= 0", "-1")
    ),
    "setting a group": Case(given("loss={name: simpo, gamma: {a: 1}}"), ("loss.gamma", "'a': 1")),
    "sft_weight negative": Case(given("sft_weight=-1"), ("sft_weight", ">= 0", "-1")),
    "sft_weight nan": Case(given("sft_weight=.nan"), ("sft_weight", "nan")),
    "sft_weight a text": Case(given("sft_weight=much"), ("sft_weight", "number", "'much'")),
    "weighting unknown": Case(given("weighting=ipo"), ("weighting", "none, wpo", "'ipo'")),
    "override without a value": Case(given("beta"), ("override 'beta'", "key.sub=value")),
    "override without a key": Case(given("=0.1"), ("override '=0.1'", "key.sub=value")),
    "override with a part of a key": Case(
        given("run..dir=x"), ("override 'run..dir=x'", "key.sub=value")
    ),
    "override under a value": Case(
        given("model.path=x"), ("override 'model.path=x'", "model is not a group")
    ),
    "override that is no YAML": Case(given("beta=[0.1"), ("override 'beta=[0.1'", "not YAML")),
    "override with a date that is none": Case(
        given("beta=2024-13-01"), ("override 'beta=2024-13-01'", "not YAML")
    ),
    "option misspelt": Case(given("--dryrun"), ("unknown option '--dryrun'", "key.sub=value")),
    "chat_template missing": Case(
        given("chat_template=AT/none.jinja"), ("chat_template", "none.jinja", "No such file")
    ),
    "chat_template a directory": Case(
        given("chat_template=AT/model"), ("chat_template", "/model'", "directory")
    ),
    "chat_template of a name too long": Case(
        given(f"chat_template={'x' * 300}"), ("chat_template", "too long")
    ),
    "chat_template without an end": Case(
        file("t.jinja", "{% for m in messages %}", "chat_template=AT/t.jinja"),
        ("chat_template", "t.jinja", "end of template"),
    ),
    "chat_template that divides by 0": Case(
        file("t.jinja", "{{ 1 / 0 }}", "chat_template=AT/t.jinja"),
        ("chat_template", "t.jinja", "division by zero"),
    ),
    "chat_template that adds a number": Case(
        file("t.jinja", "{{ 'a' + 1 }}", "chat_template=AT/t.jinja"),
        ("chat_template", "t.jinja", "int"),
    ),
    "chat_template that refuses": Case(
        file("t.jinja", "{{ raise_exception('no\nno') }}", "chat_template=AT/t.jinja"),
        ("chat_template", "t.jinja", "no no"),
    ),
    "chat_template without EOS": Case(
        file(
            "t.jinja",
            "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "chat_template=AT/t.jinja",
        ),
        ("chat_template", "t.jinja", "EOS '</s>'"),
    ),
    "chat_template latin-1": Case(
        file("t.jinja", b"\xe9", "chat_template=AT/t.jinja"), ("chat_template", "t.jinja", "utf-8")
    ),
    "chat_template with two BOS": Case(
        file("t.jinja", "{{ bos_token + bos_token }}" + UNDER_TEMPLATE, "chat_template=AT/t.jinja"),
        ("chat_template", "t.jinja", "BOS more than once"),
    ),
    "chat_template of a model without one": Case(
        given("chat_template=model"), ("chat_template: model", "no template of its own")
    ),
    "run.dir a file": Case(file("run", "", "run.dir=AT/run"), ("run.dir", "/run", "File exists")),
    "run.dir below a file": Case(
        file("run", "", "run.dir=AT/run/mine"), ("run.dir", "/run/mine", "Not a directory")
    ),
    "run.dir of a name too long": Case(given(f"run.dir=AT/{'x' * 300}"), ("run.dir", "too long")),
    "run.dir of another run": Case(used_run, ("run.resume is never", "/used", "holds a run")),
    "reference.dir a file": Case(
        file("store", "", "reference.dir=AT/store"), ("reference.dir", "/store", "Not a directory")
    ),
}

# name of the file in rows/ -> what its message must hold beside "name.jsonl:2: "
BAD_ROWS = {
    "broken_json": "no valid JSON",
    "two_objects_in_a_line": "Extra data at column",
    "trailing_comma": "no valid JSON",
    "single_quotes": "no valid JSON",
    "tab_inside_a_string": "Invalid control character",
    "comma_separated_values": "no valid JSON",
    "row_is_a_list": "type list, expected an object",
    "row_is_a_text": "type str",
    "row_is_a_number": "type int",
    "row_is_null": "type NoneType",
    "prompt_missing": "`prompt` is missing",
    "chosen_missing": "`chosen` is missing",
    "rejected_missing": "`rejected` is missing",
    "rejected_null": "`rejected`",
    "prompt_empty": "`prompt[0].content` is empty",
    "prompt_blank": "`prompt[0].content` is empty",
    "prompt_a_number": "`prompt` is int 3",
    "prompt_an_empty_list": "`prompt` is an empty list",
    "chosen_empty": "`chosen` is empty",
    "rejected_blank": "`rejected` is empty",
    "chosen_a_number": "`chosen` is float 1.5",
    "chosen_an_object": "`chosen` is dict",
    "chosen_an_empty_list": "`chosen` is an empty list",
    "chosen_true": "`chosen` is bool",
    "sides_equal": "`chosen` and `rejected` are equal",
    "sides_equal_text_and_list": "`chosen` and `rejected` are equal",
    "role_unknown": "`prompt[0].role` is 'narrator'",
    "role_missing": "`prompt[0].role` is missing",
    "role_a_number": "`prompt[0].role` is int 1",
    "content_missing": "`chosen[1].content` is missing",
    "content_null": "`chosen[1].content` is NoneType",
    "content_a_list": "`prompt[0].content[0]` is dict",
    "content_blank": "`chosen[1].content` is empty",
    "turn_a_text": "`prompt[0]` is str",
    "assistant_first": "`chosen[0].role` is 'assistant', ",
    "two_user_turns": "`prompt[1].role` is 'user', ",
    "system_in_the_middle": "`prompt[2].role` is 'system', ",
    "system_alone": "`prompt` holds a system turn only",
    "prompt_ends_with_assistant": "`prompt` ends with an assistant turn",
    "chosen_ends_with_user": "`chosen` ends with a user turn",
    "prompts_differ": "turns before the last of `chosen` and `rejected` differ",
    "prompt_of_another_row": "`prompt` (str 'How are you?') is no user turn of `chosen`",
    "id_a_list": "`id` is list [1]",
    "id_a_fraction": "`id` is float 1.5",
    "id_empty": "`id` is str ''",
    "score_a_text": "`score_chosen` is str '7'",
    "score_not_a_number": "`score_chosen` is float nan",
    "half_a_surrogate_pair": "U+D83D",
    "half_a_surrogate_pair_in_the_answer": "assistant's turn holds U+DC00",
    "half_a_surrogate_pair_in_the_id": r"`id` is '\ud83d'",
    "noncharacter": "U+FDD0",
    "rows_of_sft": "`chosen` is missing",
}
ON_FILE = {
    name: Case(given(f"data.train=[{ROWS}/{name}.jsonl]"), (f"/{name}.jsonl:2: ", what))
    for name, what in BAD_ROWS.items()
}
GENERATED = {
    "pretty-printed rows": Case(
        given(f"data.train=[{ROWS}/pretty_printed.jsonl]"),
        ("pretty_printed.jsonl:1: ", "one object a line"),
    ),
    "an id twice": Case(
        given(f"data.train=[{ROWS}/id_twice.jsonl]"),
        ("id_twice.jsonl:3: ", "`id` 'a'", "id_twice.jsonl:1"),
    ),
    "an id twice in two files": Case(
        file(
            "more.jsonl",
            '{"id": "second", ' + LINE[1:],
            f"data.train=[{ROWS}/good.jsonl, AT/more.jsonl]",
        ),
        ("more.jsonl:1: ", "'second'", "good.jsonl:2"),
    ),
    "all rows bad, and skipped": Case(
        given(f"data.train=[{ROWS}/all_bad.jsonl]", "data.on_bad_row=skip"),
        (
            "no pair is left of the 2 rows of all_bad.jsonl",
            "2 bad",
            "all_bad.jsonl:1: `chosen` is missing",
        ),
    ),
    "all answers equal once cut": Case(
        file(
            "same.jsonl",
            json.dumps({"prompt": "q", "chosen": "so " * 99 + "a", "rejected": "so " * 99 + "b"}),
            "data.max_tokens=64",
            "data.max_prompt_tokens=32",
            "data.train=[AT/same.jsonl]",
        ),
        ("no pair is left", "same.jsonl", "1 dropped"),
    ),
    "a megabyte of broken JSON": Case(
        file("long.jsonl", LINE + '{"prompt": "' + "word " * 200_000),
        ("long.jsonl:2: ", "no valid JSON", "column 12"),
    ),
    "a megabyte as a role": Case(
        file(
            "long.jsonl",
            LINE + json.dumps({**GOOD, "prompt": [{"role": "u" * 1_000_000, "content": "a"}]}),
        ),
        ("long.jsonl:2: ", "`prompt[0].role`"),
    ),
    "a megabyte as an id, twice": Case(
        file("long.jsonl", ('{"id": "' + "x" * 1_000_000 + '", ' + LINE[1:]) * 2),
        ("long.jsonl:2: ", "`id` 'xxx", "long.jsonl:1"),
    ),
    "a megabyte of spaces": Case(
        file("long.jsonl", LINE + json.dumps({**GOOD, "chosen": " " * 1_000_000})),
        ("long.jsonl:2: ", "`chosen` is empty"),
    ),
    "a megabyte of turns": Case(
        file("long.jsonl", LINE + json.dumps({**GOOD, "chosen": [1] * 300_000})),
        ("long.jsonl:2: ", "`chosen[0]` is int 1"),
    ),
    "a number of thousands of digits": Case(
        file("digits.jsonl", LINE + '{"id": ' + "1" * 5000 + ", " + LINE[1:]),
        ("digits.jsonl:2: ", "digits"),
    ),
    "a score beyond all numbers": Case(
        file(
            "digits.jsonl",
            LINE + '{"score_chosen": 1' + "0" * 400 + ', "score_rejected": 0.5, ' + LINE[1:],
        ),
        ("digits.jsonl:2: ", "`score_chosen`"),
    ),
    "JSON nested too deeply": Case(
        file("deep.jsonl", LINE + '{"prompt": ' + "[" * 100_000),
        ("deep.jsonl:2: ", "nested too deeply"),
    ),
    "JSON nested as deeply as can be read": Case(
        file(
            "deep.jsonl",
            LINE + '{"prompt": ' + "[" * 970 + "]" * 970 + ', "chosen": "a", "rejected": "b"}',
        ),
        ("deep.jsonl:2: ",),
    ),
    "a list behind whose many rows one is deep": Case(
        file(
            "deep.json",
            b"["
            + b", ".join(MANY.splitlines())
            + b', {"prompt": '
            + b"[" * 800
            + b"]" * 800
            + b', "chosen": "a", "rejected": "b"}]',
        ),
        ("deep.json, element 601", "`prompt[0]` is list"),
    ),
    "latin-1": Case(
        file("latin.jsonl", LINE.encode() + '{"prompt": "é"}'.encode("latin-1")),
        ("latin.jsonl:2: ", "not UTF-8", "byte 13", r"\xe9"),
    ),
    "a character cut in two": Case(
        file("cut.jsonl", LINE.encode() + '{"prompt": "é'.encode()[:-1]),
        ("cut.jsonl:2: ", "not UTF-8"),
    ),
    "half a surrogate pair, as bytes": Case(
        file("half.jsonl", LINE.encode() + b'{"prompt": "\xed\xa0\x80"}'),
        ("half.jsonl:2: ", "not UTF-8"),
    ),
    "utf-16": Case(
        file("wide.jsonl", LINE.encode("utf-16")), ("wide.jsonl:1: ", "not UTF-8", r"\xff")
    ),
    "a NUL byte in a text": Case(
        file("nul.jsonl", LINE.encode() + b'{"prompt": "a\0b"}'),
        ("nul.jsonl:2: ", "Invalid control character"),
    ),
    "a line of NUL bytes": Case(
        file("nul.jsonl", LINE.encode() + b"\0" * 4096), ("nul.jsonl:2: ", "no valid JSON")
    ),
    "a bad row of data.eval": Case(
        given(f"data.eval=[{ROWS}/role_unknown.jsonl]"), ("role_unknown.jsonl:2: ", "'narrator'")
    ),
    "a bad row behind many good ones": Case(
        file("many.jsonl", MANY + b"{}\n"), ("many.jsonl:601: ", "`chosen` is missing")
    ),
    "a bad element of a list": Case(
        file("list.json", json.dumps([GOOD, 3])), ("list.json, element 2", "type int")
    ),
    "a bad row of a parquet": Case(
        parquet(
            "null.parquet",
            {**{key: [value, value] for key, value in GOOD.items()}, "chosen": ["a", None]},
        ),
        ("null.parquet, row 2", "`chosen` is missing"),
    ),
}

SOURCES = {
    "file missing": Case(given("data.train=[AT/none.jsonl]"), ("none.jsonl' does not exist",)),
    "second file missing": Case(
        given(f"data.train=[{ROWS}/good.jsonl, AT/none.jsonl]"), ("none.jsonl' does not exist",)
    ),
    "file of data.eval missing": Case(
        given("data.eval=[AT/none.jsonl]"), ("none.jsonl' does not exist",)
    ),
    "file in nobody's home": Case(
        given("data.train=['~no.such.user/a.jsonl']"), ("~no.such.user/a.jsonl", "does not exist")
    ),
    "file of a name too long": Case(
        given(f"data.train=[AT/{'x' * 300}.jsonl]"), ("xxx.jsonl' does not exist",)
    ),
    "file named by an unset variable": Case(
        given("data.train=[$NO_SUCH_VARIABLE/a.jsonl]"),
        ("data.train[0]", "$NO_SUCH_VARIABLE", "SCRATCH"),
    ),
    "file named by a slip": Case(given("data.train=[json]"), ("'json' does not exist",)),
    "file of an unknown kind": Case(
        file("rows.csv", "prompt,chosen\n"), ("rows.csv", "of no known kind", ".jsonl")
    ),
    "file empty": Case(file("none.jsonl", ""), ("none.jsonl", "holds no rows")),
    "file blank": Case(file("blank.jsonl", "\n \n\t\n"), ("blank.jsonl", "holds no rows")),
    "file twice": Case(
        given(f"data.train=[{ROWS}/good.jsonl, {ROWS}/good.jsonl]"),
        ("good.jsonl:1: ", "also the id of"),
    ),
    "split of a file": Case(
        given(f"data.train=['{ROWS}/good.jsonl:train']"), ("good.jsonl", "no split 'train'")
    ),
    "json empty list": Case(file("none.json", "[]"), ("none.json", "holds no rows")),
    "json cut off": Case(
        file("cut.json", f"[{LINE},\n{LINE[:30]}"), ("cut.json:3", "no valid JSON")
    ),
    "json latin-1": Case(file("latin.json", b'["\xe9"]'), ("latin.json", "not UTF-8", "byte 3")),
    "json nested too deeply": Case(
        file("deep.json", "[" * 100_000), ("deep.json", "nested too deeply")
    ),
    "json with a number of thousands of digits": Case(
        file("digits.json", f"[{'1' * 5000}]"), ("digits.json", "digits")
    ),
    "json pretty-printed object": Case(
        file("one.json", json.dumps(GOOD, indent=1)), ("one.json:1", "one object a line")
    ),
    "gz truncated": Case(
        file("cut.jsonl.gz", gzip.compress(MANY)[:-1000]),
        ("cut.jsonl.gz", "is damaged", "end-of-stream"),
    ),
    "gz cut in its header": Case(
        file("cut.jsonl.gz", gzip.compress(MANY)[:5]), ("cut.jsonl.gz", "is damaged after 0 rows")
    ),
    "gz not compressed": Case(
        file("plain.jsonl.gz", LINE), ("plain.jsonl.gz", "Not a gzipped file")
    ),
    "gz of other bytes": Case(
        file("crc.jsonl.gz", gzip.compress(MANY)[:-8] + bytes(8)),
        ("crc.jsonl.gz", "is damaged after 600 rows", "CRC"),
    ),
    "gz empty": Case(file("none.jsonl.gz", ""), ("none.jsonl.gz", "holds no rows")),
    "parquet of other columns": Case(
        parquet("other.parquet", {"question": ["a"], "answer": ["b"]}),
        ("other.parquet, row 1", "`chosen` is missing"),
    ),
    "parquet of other types": Case(
        parquet("types.parquet", {"prompt": ["a"], "chosen": [1], "rejected": ["b"]}),
        ("types.parquet, row 1", "`chosen` is int 1"),
    ),
    "parquet without rows": Case(
        parquet("none.parquet", {"prompt": [], "chosen": [], "rejected": []}),
        ("none.parquet", "holds no rows"),
    ),
    "parquet truncated": Case(
        parquet("cut.parquet", {key: [value] * 100 for key, value in GOOD.items()}, cut=-50),
        ("cut.parquet", "is damaged"),
    ),
    "parquet with bytes for text": Case(parquet_of_bytes, ("bytes.parquet", "is damaged", "utf-8")),
    "parquet that is a jsonl": Case(file("rows.parquet", LINE), ("rows.parquet", "is damaged")),
    "parquet.gz truncated": Case(
        file("cut.parquet.gz", gzip.compress(b"PAR1" * 99)[:-9]), ("cut.parquet.gz", "is damaged")
    ),
    "folder without data": Case(
        file("set/notes.txt", "", "data.train=[AT/set]"), ("/set", "holds no data", ".jsonl")
    ),
    "folder of splits, none named": Case(
        folder_of("train.jsonl", "test.jsonl"), ("/set", "splits test, train", "/set:train")
    ),
    "folder without that split": Case(
        folder_of("train.jsonl", "test.jsonl", spec="AT/set:dev"),
        ("/set", "no split 'dev'", "test, train"),
    ),
    "folder with a name that is no text": Case(
        folder_of("caf\udce9.jsonl"), (r"caf\udce9.jsonl", "not UTF-8")
    ),
    "saved dataset without its state": Case(
        saved_dataset(lambda at: (at / "state.json").write_text("{")),
        ("/saved", "damaged saved dataset", "JSON"),
    ),
    "saved dataset truncated": Case(
        saved_dataset(lambda at: next(at.glob("*.arrow")).write_bytes(b"ARROW1")),
        ("/saved", "damaged saved dataset"),
    ),
    "saved splits, none named": Case(
        saved_dataset(lambda at: None, splits=("train", "test")),
        ("/saved", "more than one split", "/saved:test"),
    ),
    "saved splits without that one": Case(
        saved_dataset(lambda at: None, "AT/saved:dev", ("train", "test")),
        ("/saved", "no split 'dev'", "test, train"),
    ),
    "hub dataset out of reach": Case(
        given("data.train=[no-one/no-such-set]"), ("'no-one/no-such-set'", "no hub dataset loads")
    ),
    "split of a hub dataset out of reach": Case(
        given("data.train=['no-one/no-such-set:train_prefs']"),
        ("'no-one/no-such-set'", "no hub dataset loads"),
    ),
}

SMALL = {
    "vocab_size": 384,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
MODELS = {
    "model missing": Case(
        given("model=/no/such/folder"), ("model /no/such/folder", "no such folder")
    ),
    "model a file": Case(given("model=AT/config.yaml"), ("config.yaml", "no such folder")),
    "model of a name too long": Case(given(f"model=AT/{'x' * 300}"), ("model", "no such folder")),
    "model of the hub out of reach": Case(
        given("model=no-one/no-such-model"), ("model no-one/no-such-model", "hub")
    ),
    "model of a name that the hub has not": Case(
        given("model='no one/no such model'"), ("model no one/no such model", "hub")
    ),
    "config.json missing": Case(
        model(lambda at: (at / "config.json").unlink()), ("/model", "config.json is missing")
    ),
    "config.json cut off": Case(
        model_file("config.json", '{"model_type": '), ("/model", "config.json", "not a valid JSON")
    ),
    "config.json nested too deeply": Case(
        model_file("config.json", "[" * 100_000), ("/model", "config.json", "recursion")
    ),
    "config.json a list": Case(model_file("config.json", "[]"), ("/model", "config.json")),
    "config.json without model_type": Case(
        edited("config.json", model_type=None), ("/model", "config.json", "model_type")
    ),
    "config.json of an unknown kind": Case(
        edited("config.json", model_type="zephyrus"), ("/model", "config.json", "`zephyrus`")
    ),
    "config.json of a kind that is a list": Case(
        edited("config.json", model_type=["mistral"]), ("/model", "config.json", "list")
    ),
    "config.json of remote code": Case(
        edited("config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),
        ("/model", "config.json", "code"),
    ),
    "config.json with a text for a number": Case(
        edited("config.json", hidden_size="64"), ("/model", "config.json", "'hidden_size'", "'64'")
    ),
    "config.json with an unknown dtype": Case(
        edited("config.json", dtype="float33"), ("/model", "config.json", "float33")
    ),
    "config.json with an unknown activation": Case(
        edited("config.json", hidden_act="swish_of_mine"), ("/model", "swish_of_mine")
    ),
    "config.json with a pad id out of range": Case(
        edited("config.json", pad_token_id=999), ("/model", "config.json", "num_embeddings")
    ),
    "an encoder": Case(other_model(model_type="bert", **SMALL), ("/model", "bert", "output layer")),
    "an encoder and decoder": Case(
        other_model(model_type="t5", vocab_size=384, d_model=64), ("/model", "t5", "not a decoder")
    ),
    "a model of images": Case(other_model(model_type="vit"), ("/model", "vit", "not a decoder")),
    "a decoder with its own attention": Case(
        other_model(
            model_type="gptj",
            vocab_size=384,
            n_embd=64,
            n_layer=2,
            n_head=4,
            rotary_dim=8,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
        ),
        ("/model", "gptj", "attention"),
    ),
    "a decoder with dropout": Case(
        other_model(model_type="gpt2", vocab_size=384), ("/model", "attn_pdrop=0.1")
    ),
    "attention dropout": Case(
        edited("config.json", attention_dropout=0.1), ("/model", "attention_dropout=0.1")
    ),
    "logit softcap": Case(
        edited("config.json", final_logit_softcapping=30.0),
        ("/model", "final_logit_softcapping=30.0"),
    ),
    "no weights": Case(
        model(lambda at: (at / "model.safetensors").unlink()),
        ("/model", "neither model.safetensors"),
    ),
    "only a pickle": Case(
        model(lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin")),
        ("/model", "neither model.safetensors", "pickles"),
    ),
    "weights empty": Case(
        model_file("model.safetensors", ""), ("/model", "model.safetensors is broken")
    ),
    "weights truncated": Case(
        model(
            lambda at: (at / "model.safetensors").write_bytes(
                (at / "model.safetensors").read_bytes()[:-99]
            )
        ),
        ("/model", "model.safetensors is broken"),
    ),
    "weights a pointer of git lfs": Case(
        model_file(
            "model.safetensors",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        ),
        ("/model", "model.safetensors is broken"),
    ),
    "weights a directory": Case(
        model(lambda at: [(at / "model.safetensors").unlink(), (at / "model.safetensors").mkdir()]),
        ("/model", "neither model.safetensors"),
    ),
    "weights of half the shards": Case(
        model(sharded), ("/model", "missing", "model-00002-of-00002")
    ),
    "tensor missing": Case(
        weights(lambda tensors: tensors.pop("model.norm.weight")),
        ("/model", "missing ['model.norm.weight']"),
    ),
    "tensor left over": Case(
        weights(lambda tensors: tensors.update(extra=tensors["model.norm.weight"].clone())),
        ("/model", "left over ['extra']"),
    ),
    "tensor of another shape": Case(
        weights(
            lambda tensors: tensors.update(
                {"model.norm.weight": tensors["model.norm.weight"][:9].clone()}
            )
        ),
        ("/model", "model.norm.weight", "[9]", "[64]"),
    ),
    "a layer less than config.json says": Case(
        edited("config.json", num_hidden_layers=3), ("/model", "missing ['model.layers.2.")
    ),
    "a tokenizer larger than the model": Case(
        edited("config.json", vocab_size=100), ("tokenizer", "100", "384")
    ),
    "a token that the model does not know": Case(
        edited("tokenizer_config.json", eos_token="<|im_end|>"), ("tokenizer", "384", "385")
    ),
    "tokenizer missing": Case(
        model(
            lambda at: [
                (at / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")
            ]
        ),
        ("no tokenizer loads from", "/model'"),
    ),
    "tokenizer missing where named": Case(
        given("tokenizer=/no/such/tokenizer"), ("no tokenizer loads from", "'/no/such/tokenizer'")
    ),
    "tokenizer out of reach": Case(
        given("tokenizer=no-one/no-such-tokenizer"),
        ("no tokenizer loads from", "'no-one/no-such-tokenizer'"),
    ),
    "tokenizer.json cut off": Case(
        model(
            lambda at: (at / "tokenizer.json").write_bytes(
                (at / "tokenizer.json").read_bytes()[:500]
            )
        ),
        ("no tokenizer loads from", "/model'"),
    ),
    "tokenizer.json an empty object": Case(
        model_file("tokenizer.json", "{}"), ("no tokenizer loads from", "/model'")
    ),
    "tokenizer.json of an unknown kind": Case(
        edited("tokenizer.json", model={"type": "Own"}), ("no tokenizer loads from", "/model'")
    ),
    "tokenizer_config.json a list": Case(
        model_file("tokenizer_config.json", "[]"), ("no tokenizer loads from", "/model'")
    ),
    "tokenizer without EOS": Case(
        edited("tokenizer_config.json", eos_token=None), ("tokenizer", "no EOS", "eos_token")
    ),
    "tokenizer.model damaged": Case(
        model(
            lambda at: [
                (at / "tokenizer.json").unlink(),
                (at / "tokenizer.model").write_bytes(b"abc"),
            ]
        ),
        ("tokenizer.model", "no readable SentencePiece"),
    ),
    "template of the model's own that fails": Case(
        lambda at: [
            *edited("tokenizer_config.json", chat_template="{{ 1 / 0 }}")(at),
            "chat_template=model",
        ],
        ("the chat template", "division by zero"),
    ),
}


HARDWARE = {
    "attention unknown": Case(
        given("hardware.attention=eager"), ("hardware.attention", "'eager'", "sdpa")
    ),
    "attention of a GPU": Case(
        given("hardware.attention=flash_attn"), ("hardware.attention", "flash_attn", "CPU", "sdpa")
    ),
    "attention of torch on a GPU": Case(
        given("hardware.attention=torch_varlen"),
        ("hardware.attention", "torch_varlen", "CPU", "sdpa"),
    ),
    "dtype unknown": Case(
        given("hardware.dtype=float16"), ("hardware.dtype", "'float16'", "bfloat16")
    ),
    "budget below the longest example": Case(
        given("hardware.tokens_per_micro_batch=40"),
        ("hardware.tokens_per_micro_batch", "40", "(second)"),
    ),
    "budget below the longest of data.eval": Case(
        file(
            "long.jsonl",
            json.dumps({**GOOD, "prompt": "why " * 150}),
            "data.eval=[AT/long.jsonl]",
            "hardware.tokens_per_micro_batch=250",
        ),
        ("hardware.tokens_per_micro_batch", "250", "long.jsonl:1"),
    ),
    "budget of 1": Case(
        given("hardware.tokens_per_micro_batch=1"), ("hardware.tokens_per_micro_batch", "got 1")
    ),
    "deepspeed missing": Case(
        given("hardware.deepspeed=AT/none.json"),
        ("hardware.deepspeed", "no such file", "none.json"),
    ),
    "deepspeed a directory": Case(
        given("hardware.deepspeed=AT/model"), ("hardware.deepspeed", "/model")
    ),
    "deepspeed cut off": Case(
        deepspeed("{"), ("hardware.deepspeed", "ds.json", "not JSON", "line 1")
    ),
    "deepspeed latin-1": Case(
        deepspeed(b'{"a": "\xe9"}'), ("hardware.deepspeed", "ds.json", "not JSON", "utf-8")
    ),
    "deepspeed a list": Case(deepspeed("[]"), ("hardware.deepspeed", "ds.json", "stage 3")),
    "deepspeed stage 2": Case(
        deepspeed('{"zero_optimization": {"stage": 2}}'),
        ("hardware.deepspeed", "ds.json", "stage 3", "'stage': 2"),
    ),
    "deepspeed with a batch size": Case(
        deepspeed('{"zero_optimization": {"stage": 3}, "train_batch_size": 8}'),
        ("hardware.deepspeed", "ds.json", "train_batch_size", "optim.pairs_per_step"),
    ),
    "deepspeed with a precision": Case(
        deepspeed('{"zero_optimization": {"stage": 3}, "fp16": {"enabled": true}}'),
        ("hardware.deepspeed", "ds.json", "fp16", "hardware.dtype"),
    ),
    "deepspeed with an unknown key": Case(
        deepspeed('{"zero_optimization": {"stage": 3, "bucket": 1}}'),
        ("hardware.deepspeed", "ds.json", "bucket"),
    ),
    "deepspeed with a text for a number": Case(
        deepspeed('{"zero_optimization": {"stage": 3, "reduce_bucket_size": "many"}}'),
        ("hardware.deepspeed", "ds.json", "reduce_bucket_size"),
    ),
    "deepspeed with an unknown dtype": Case(
        deepspeed(
            '{"zero_optimization": {"stage": 3}, "data_types": {"grad_accum_dtype": "fp33"}}'
        ),
        ("hardware.deepspeed", "ds.json", "fp33"),
    ),
    "deepspeed nested too deeply": Case(
        deepspeed("[" * 100_000), ("hardware.deepspeed", "ds.json", "not JSON")
    ),
    "deepspeed of a name too long": Case(
        given(f"hardware.deepspeed={'x' * 300}"), ("hardware.deepspeed", "xxx")
    ),
    "dry run of nothing": Case(lambda at: ["--dry-run"], ("config",)),
}
CASES = CONFIG | ON_FILE | GENERATED | SOURCES | MODELS | HARDWARE
