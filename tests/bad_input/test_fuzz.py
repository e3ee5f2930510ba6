"""Any bytes as rows and any text as a config: read, or refused in one line that says where; never
another exception."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cases import GOOD
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr import config as configs
from zephyr.config import BadInput, ConfigError, DPOConfig, SFTConfig
from zephyr.data.encode import load_pairs, load_texts
from zephyr.data.store import Pairs, Texts
from zephyr.data.tokenizer import prepare_tokenizer

LONGEST = 600  # characters of a message
Loaded = tuple[Pairs | Texts, dict[str, object]]
Load = Callable[..., Loaded]

texts = st.text(
    st.characters() | st.sampled_from("\0\n\ud83d\ude00\ufdd0"), max_size=12
)  # halves of surrogate pairs too
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])
    | st.floats()
    | texts
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "bot"]) | scalars,
        "content": st.sampled_from(["why", "so", " "]) | scalars,
    },
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["so", "because", ""]) | st.lists(turns, max_size=4) | values
good_rows = st.sampled_from(
    [
        GOOD,
        {"text": "plain"},
        {"instruction": "why", "input": "", "output": "so"},
        {"prompt": "why", "completion": "so"},
        {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]},
    ]
)
names = st.sampled_from(
    [
        "id",
        "prompt",
        "chosen",
        "rejected",
        "score_chosen",
        "score_rejected",
        "messages",
        "completion",
        "instruction",
        "input",
        "output",
        "text",
    ]
)
changes = st.dictionaries(names, fields, max_size=3)
marks = st.fixed_dictionaries(
    {}, optional={"id": texts | scalars, "score_chosen": scalars, "score_rejected": scalars}
)
rows = st.builds(lambda row, change: {**row, **change}, good_rows, changes | marks) | values
whole_lines = st.builds(
    lambda row, ascii: json.dumps(row, ensure_ascii=ascii).encode("utf-8", "surrogatepass"),
    rows,
    st.booleans(),
)
spoilt_lines = st.builds(
    lambda line, at, other: line[:at] + other + line[at + 1 :],
    whole_lines,
    st.integers(0, 80),
    st.binary(max_size=4),
)
files = st.lists(whole_lines | spoilt_lines | st.binary(max_size=30), max_size=5).map(b"\n".join)
lists = st.lists(rows, max_size=4).map(lambda items: json.dumps(items).encode())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def one_line(error: BadInput, where: str) -> None:
    """Fails where a message is long, of several lines, or does not hold the pattern `where`."""
    message = str(error)
    assert "\n" not in message and len(message) <= LONGEST and re.search(where, message), message


def read(
    load: Load, path: Path, tokenizer: PreTrainedTokenizerBase, on_bad_row: str
) -> Loaded | None:
    """What `load` gives; None where it refuses the file, in one line that names it."""
    options = (
        {"max_tokens": 64, "max_prompt_tokens": 32} if load is load_pairs else {"max_tokens": 64}
    )
    try:
        return load([str(path)], tokenizer, on_bad_row=on_bad_row, **options)
    except BadInput as error:
        of_a_row = r":\d+: |, element \d+: |, row \d+: "
        of_the_file = r" is damaged| holds no rows|: \d+ bad|: the file| is not UTF-8"
        one_line(error, f"{re.escape(path.name)}({of_a_row}|{of_the_file})")
        return None


def read_or_refused(path: Path, content: bytes, tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Reads the bytes as pairs and as texts; says for each whether anything was read."""
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    outcomes = []
    for load in (load_pairs, load_texts):
        skipped, strict = read(load, path, tokenizer, "skip"), read(load, path, tokenizer, "error")
        if skipped:
            examples, report = skipped
            assert report["rows_read"] == len(examples) + report["rows_skipped"] + sum(
                report["dropped"].values()
            )
            assert json.loads(json.dumps(report, ensure_ascii=False).encode("utf-8")) is not None
            assert (strict is None) == (report["rows_skipped"] > 0)
        if strict:
            assert skipped and list(strict[0]) == list(skipped[0]) and strict[1] == skipped[1]
        outcomes.append(skipped is not None)
    return outcomes


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=files, suffix=st.sampled_from([".jsonl", ".json", ".jsonl.gz"]))
@example(content=b'{"id": "\\ud83d", "text": "plain"}', suffix=".jsonl")
@example(
    content=json.dumps({**GOOD, "score_chosen": 10**400, "score_rejected": 0.5}).encode(),
    suffix=".jsonl",
)
def test_any_lines(
    content: bytes, suffix: str, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Lines of JSON that are almost rows, and bytes. Fails for an exception that is no BadInput, a
    message without file and line, or a row that is neither kept, skipped nor dropped."""
    read_or_refused(folder / f"lines{suffix}", content, tokenizer)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=lists | st.builds(lambda whole, at: whole[:at], lists, st.integers(0, 200)))
@example(content=json.dumps([GOOD]).encode())
def test_any_list(content: bytes, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A JSON list, whole or cut. Fails as the test above."""
    read_or_refused(folder / "list.json", content, tokenizer)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    content=st.binary(max_size=60),
    suffix=st.sampled_from([".parquet", ".jsonl.gz", ".parquet.gz"]),
    wrapped=st.booleans(),
)
def test_any_bytes_of_a_binary_kind(
    content: bytes, suffix: str, wrapped: bool, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """What says parquet or gz in its name and is neither. Fails where a library's own error comes
    through, or rows do."""
    path = folder / f"bytes{suffix}"
    path.write_bytes(b"PAR1" + content + b"PAR1" if wrapped else content)
    assert read(load_pairs, path, tokenizer, "skip") is None


def test_any_depth(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Brackets around the depth that python gives up at. Fails where a value can be read, but not
    shown in the message."""
    for depth in range(800, 1000, 2):
        (folder / "deep.jsonl").write_text('{"prompt": ' + "[" * depth + "]" * depth + "}")
        assert read(load_pairs, folder / "deep.jsonl", tokenizer, "error") is None


def test_fuzzing_reads_good_rows(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fails where the tests above would hold because nothing is ever read."""
    assert read_or_refused(folder / "good.jsonl", json.dumps(GOOD).encode(), tokenizer) == [
        True,
        False,
    ]
    assert read_or_refused(folder / "good.jsonl", b'{"text": "plain"}\n{"id": 1}', tokenizer) == [
        False,
        True,
    ]


MINIMAL = {"model": "m", "data": {"train": ["d.jsonl"]}}
KEYS = sorted({*configs.keys(DPOConfig, ""), *configs.keys(SFTConfig, "")})
GROUPS = sorted({key.split(".")[0] for key in KEYS})
WHERE = rf"^(config .*c\.yaml|override .+|({'|'.join(GROUPS)})[\w.\[\]]*): |: unknown key; "
yaml_texts = st.text(st.sampled_from("[]{}:&*!|>'\"%@`,-?#~<=. \n\t0123456789abxeE_+"), max_size=16)
plausible = st.sampled_from(
    [
        "1",
        "0.1",
        "true",
        "[0.9, 0.99]",
        "[a.jsonl]",
        "sdpa",
        "null",
        "0x" + "f" * 4000,
        "2024-13-01",
        "!!int ''",
        "$HOME",
        "'\\0'",
    ]
)
trees = st.dictionaries(texts, values, max_size=4) | st.builds(
    lambda key, value: {**MINIMAL, key: value}, st.sampled_from(GROUPS), values
)


def loaded_or_refused(text: bytes, overrides: list[str], folder: Path) -> bool:
    """Whether both scripts' configs are refused, each in one line; one that loads is read back from
    what it writes."""
    path, refused = folder / "c.yaml", True
    for kind in (DPOConfig, SFTConfig):
        path.write_bytes(text)
        try:
            config = configs.load(kind, str(path), overrides)
        except ConfigError as error:
            one_line(error, WHERE)
            continue
        path.write_text(configs.to_yaml(config), encoding="utf-8")
        assert configs.load(kind, str(path)) == config
        refused = False
    return refused


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.binary(max_size=40)
    | yaml_texts.map(str.encode)
    | trees.map(lambda tree: yaml.safe_dump(tree).encode())
)
@example(text=b"[" * 1500)
@example(text=b"model: &m [*m]\ndata: {train: [*m]}\n")
def test_any_text_as_a_config(text: bytes, folder: Path) -> None:
    """Fails for an exception of PyYAML's own, a message without key or file, or a config that is
    not read back."""
    loaded_or_refused(text, [], folder)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    overrides=st.lists(
        st.builds(
            "{}={}".format, st.sampled_from(KEYS) | yaml_texts, plausible | yaml_texts | texts
        )
        | texts,
        min_size=1,
        max_size=2,
    )
)
def test_any_override(overrides: list[str], folder: Path) -> None:
    """Fails for an exception that is no ConfigError, or a message that names neither key nor
    override."""
    loaded_or_refused(yaml.safe_dump(MINIMAL).encode(), overrides, folder)


def test_fuzzing_loads_good_configs(folder: Path) -> None:
    """Fails where the tests above would hold because every config is refused."""
    minimal = yaml.safe_dump(MINIMAL).encode()
    assert not loaded_or_refused(minimal, ["run.seed=1"], folder) and loaded_or_refused(
        minimal, ["run.seed=x"], folder
    )
