"""Rows of every accepted shape and kind of file become examples; whatever is wrong with one names
its file and line."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pytest
from pair_files import contents, jsonl, pair_rows
from row_samples import TOOLS_TEMPLATE
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat import EncodedPair, EncodedText, encode_messages, encode_pair, encode_text
from zephyr.config import BadInput, DataSource
from zephyr.data import encode, store
from zephyr.data.encode import encoding_resources, load_pairs, load_texts
from zephyr.data.report import Report, format_report
from zephyr.data.store import Pairs, Texts
from zephyr.data.tokenizer import load_tokenizer, prepare_tokenizer

GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


def test_mixed_shapes_in_one_file(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Strings and message lists in one column break readers that fix a schema; U+2028 those that
    split at it."""
    turns = [{"role": "user", "content": "q"}]
    rows = [
        GOOD,
        {**GOOD, "chosen": [*turns, {"role": "assistant", "content": "good"}], "score_chosen": 9.5},
        {"prompt": "q", "chosen": "one\u2028two", "rejected": "bad\u0085"},
    ]
    pairs, _ = load_pairs(
        [jsonl(tmp_path / "mixed.jsonl", ["\ufeff" + json.dumps(rows[0]), "", *rows[1:]])],
        tokenizer,
    )
    assert contents(pairs) == [encode_pair(tokenizer, row)[1:] for row in rows]
    assert contents(pairs)[0] == contents(pairs)[1]
    assert pairs.ids == ["mixed.jsonl:1", "mixed.jsonl:3", "mixed.jsonl:4"]


def test_sft_shapes(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Each shape of the ecosystem, and the nulls that Arrow puts where another row has a field."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows: list[dict[str, object]] = [
        {"messages": turns, "prompt": "q", "prompt_id": "x"},
        {"prompt": "q", "completion": "a"},
        {"prompt": turns[:1], "completion": turns[1:]},
        {"instruction": "q", "input": "", "output": "a", "text": "### q"},
        {"instruction": "q", "output": "a", "messages": None},
        {"instruction": "q", "input": "i", "output": "a"},
        {"text": "plain", "id": 7},
    ]
    texts, report = load_texts([jsonl(tmp_path / "sft.jsonl", rows)], tokenizer, max_tokens=64)
    conversation = encode_messages(tokenizer, turns)
    assert [text[1:] for text in texts][:5] == [conversation[1:]] * 5
    assert (
        texts[5].ids
        == encode_messages(tokenizer, [{"role": "user", "content": "q\n\ni"}, turns[1]]).ids
    )
    assert texts[6] == encode_text(tokenizer, "plain", id="7")
    assert texts.tokens.tolist() == [len(text.ids) for text in texts]
    assert texts.target_tokens.tolist() == [sum(text.is_target) for text in texts]
    assert report["tokens"] == {"text": sum(len(text.ids) for text in texts)}
    everything, _ = load_texts([str(tmp_path / "sft.jsonl")], tokenizer, targets="all")
    assert everything.target_tokens.tolist() == [len(text.ids) - 1 for text in everything]


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (load_pairs, '{"prompt": "q", ', "no valid JSON"),
        (load_pairs, "[1, 2]", "type list, expected an object"),
        (load_pairs, {"prompt": "q", "chosen": "a"}, "`rejected` is missing"),
        (load_pairs, {**GOOD, "chosen": 3}, "`chosen` is int 3"),
        (load_pairs, {**GOOD, "chosen": "bad"}, "are equal"),
        (load_pairs, {**GOOD, "id": [1]}, "`id` is list"),
        (load_texts, {"question": "q"}, "fields \\['question'\\], expected `messages`"),
        (load_texts, {"messages": [{"role": "bot", "content": "a"}]}, "'bot', .*one of"),
        (
            load_texts,
            {"messages": [{"role": "assistant", "content": "a"}]},
            "is 'assistant', .*'user'",
        ),
        (load_texts, {"messages": [{"role": "user", "content": "a"}]}, "ends with a user turn"),
        (load_texts, {"instruction": "a", "output": ""}, "`output` is empty"),
        (load_texts, {"instruction": "a"}, "`output` is missing"),
        (load_texts, {"prompt": "a", "completion": 3}, "`completion` is int 3"),
        (load_texts, {"text": "  "}, "`text` is empty"),
    ],
)
def test_bad_row_names_file_line_and_field(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    load: Callable[..., object],
    row: object,
    message: str,
) -> None:
    """A person with 60,000 rows needs the line; with `skip` the others must come through, and the
    count be right."""
    good = GOOD if load is load_pairs else {"text": "fine"}
    path = jsonl(tmp_path / "rows.jsonl", [good, good, row, good])
    with pytest.raises(BadInput, match=message) as error:
        load([path], tokenizer)
    assert str(error.value).startswith(f"{path}:3: ") and "\n" not in str(error.value)
    examples, report = load([path], tokenizer, on_bad_row="skip")
    assert len(examples) == 3 and report["rows_read"] == 4 and report["rows_skipped"] == 1
    assert [skipped["place"] for skipped in report["skipped"]] == [f"{path}:3"]
    assert f"{path}:3" in format_report(report)
    assert json.loads(json.dumps(report)) == report


def test_bytes_that_are_no_utf8(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Replaced silently, they would train the model on U+FFFD."""
    (tmp_path / "latin.jsonl").write_bytes(
        json.dumps(GOOD).encode() + b"\n" + '{"prompt": "é"}\n'.encode("latin-1")
    )
    with pytest.raises(BadInput, match="latin.jsonl:2: the line is not UTF-8"):
        load_pairs([str(tmp_path / "latin.jsonl")], tokenizer)


def test_ids_must_differ(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The pairs ledger and the reference store know a pair by its id."""
    path = jsonl(tmp_path / "ids.jsonl", [{**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"}])
    with pytest.raises(BadInput, match=r"ids.jsonl:3: `id` 'a' is also the id of .*ids.jsonl:1"):
        load_pairs([path], tokenizer)
    pairs, report = load_pairs([path], tokenizer, on_bad_row="skip")
    assert (
        pairs.ids == ["a", "ids.jsonl:2"]
        and report["rows_skipped"] == 1
        and report["examples"] == 2
    )
    with pytest.raises(BadInput, match="is also the id of"):
        load_pairs([path, path], tokenizer)
    (tmp_path / "other").mkdir()
    other = jsonl(tmp_path / "other/ids.jsonl", [GOOD])
    pairs, _ = load_pairs([jsonl(tmp_path / "ids.jsonl", [GOOD]), other], tokenizer)
    assert pairs.ids == [f"{path}:1", f"{other}:1"], "two files of one name"


def test_truncation_is_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The report is what a person decides on: rows and tokens per side, and pairs that the cut made
    equal."""
    rows = [
        {"prompt": "q", "chosen": "short", "rejected": "brief"},
        {"prompt": "long " * 40, "chosen": "good " * 40, "rejected": "brief"},
        {"prompt": "q", "chosen": "same " * 200 + "a", "rejected": "same " * 200 + "b"},
    ]
    path = jsonl(tmp_path / "long.jsonl", rows)
    pairs, report = load_pairs([path], tokenizer, max_tokens=100, max_prompt_tokens=60)
    whole = encode_pair(tokenizer, rows[1], max_tokens=10000)
    assert len(pairs) == 2 and pairs[1].prompt_ids == whole.prompt_ids[:1] + whole.prompt_ids[-59:]
    assert report["cut"] == {
        "prompt": {"rows": 1, "tokens": len(whole.prompt_ids) - 60},
        "chosen": {"rows": 1, "tokens": len(whole.chosen_ids) - 40},
        "rejected": {"rows": 0, "tokens": 0},
    }
    assert list(report["dropped"].values()) == [1] and report["rows_read"] == 3
    assert f"{len(whole.chosen_ids) - 40:,} tokens lost" in format_report(report)
    jsonl(tmp_path / "long.jsonl", rows[2:])
    with pytest.raises(
        BadInput, match=r"no pair is left of the 1 rows of long.jsonl: 0 bad, 1 dropped"
    ):
        load_pairs([path], tokenizer, max_tokens=100, max_prompt_tokens=60)


def test_sft_cut_without_a_target_is_dropped(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A window of nothing but a prompt trains nothing, and a mean over no targets is not a
    number."""
    rows = [
        {"prompt": "q " * 300, "completion": "a"},
        {"prompt": "q", "completion": "a " * 300},
        {"text": "b " * 300},
    ]
    texts, report = load_texts([jsonl(tmp_path / "long.jsonl", rows)], tokenizer, max_tokens=90)
    assert texts.ids == ["long.jsonl:2", "long.jsonl:3"] and texts.tokens.tolist() == [90, 90]
    assert tokenizer.eos_token_id not in texts[1].ids
    assert list(report["dropped"].values()) == [1] and report["cut"]["text"]["rows"] == 2
    lost = report["cut"]["text"]["tokens"]
    path = jsonl(tmp_path / "more.jsonl", [*rows, {"text": "short"}])
    assert load_texts([path], tokenizer, max_tokens=90)[1]["cut"]["text"] == {
        "rows": 2,
        "tokens": lost,
    }
    assert (
        lost
        == len(encode_text(tokenizer, "b " * 300).ids) - 90 + len(whole_of(tokenizer, rows[1])) - 90
    )


def whole_of(tokenizer: PreTrainedTokenizerBase, row: dict[str, str]) -> list[int]:
    turns = [
        {"role": role, "content": row[key]}
        for role, key in (("user", "prompt"), ("assistant", "completion"))
    ]
    return encode_messages(tokenizer, turns).ids


def test_a_row_nested_too_deeply_is_left_out(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """JSON that can be read may still be too deep to be looked through: some depth is for one, and
    not for the other. Fails where it ends the run with a traceback."""
    row = '{{"prompt": "q", "completion": "a", "input": {}"q"{}}}'
    lines = [row.format("[" * depth, "]" * depth) for depth in (*range(600, 1000), 3000, 100_000)]
    path = jsonl(tmp_path / "rows.jsonl", [{"text": "fine"}, *lines])
    texts, report = load_texts([path], tokenizer, on_bad_row="skip")
    reasons = {skipped["reason"].partition(",")[0] for skipped in report["skipped"]}
    assert {"the row is nested too deeply", "the line's JSON is nested too deeply"} <= reasons
    assert report["rows_read"] == len(lines) + 1 == len(texts) + report["rows_skipped"]


def test_limit_counts_rows_of_all_sources(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A limit per source, or one that reads the whole file first, is another dataset or a long
    wait."""
    paths = [jsonl(tmp_path / f"{name}.jsonl", pair_rows(3)) for name in "ab"]
    pairs, _ = load_pairs(paths, tokenizer, limit=4)
    assert pairs.ids == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1"]


def test_sources_have_limits_and_weights_of_their_own(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Fails where a source's limit counts another's rows, its weight replaces those of its rows,
    the total limit stands before the sources', the report mixes the sources up, or an entry of the
    cache is taken for other limits or weights."""
    rows = [{**row, "weight": 3.0} for row in pair_rows(3)]
    paths = [
        jsonl(tmp_path / "a.jsonl", pair_rows(3)),
        jsonl(tmp_path / "b.jsonl", rows),
        jsonl(tmp_path / "c.jsonl", [{**GOOD, "rejected": "go od"}, *pair_rows(3)]),
    ]

    def load(*sources: str | DataSource, limit: int | None = None) -> tuple[Pairs, Report]:
        return load_pairs(sources, tokenizer, limit=limit, cache_dir=tmp_path / "cache")

    mix = (DataSource(paths[0], limit=1), DataSource(paths[1], 2, 0.5), paths[2])
    pairs, report = load(*mix)
    ids = ["a.jsonl:1", "b.jsonl:1", "b.jsonl:2", "c.jsonl:2", "c.jsonl:3", "c.jsonl:4"]
    assert pairs.ids == ids
    assert pairs.weights.tolist() == [1.0, 1.5, 1.5, 1.0, 1.0, 1.0]
    assert [tuple(source.values()) for source in report["by_source"]] == [
        (paths[0], 1, 1.0, 1, 1),
        (paths[1], 2, 0.5, 2, 2),
        (paths[2], None, 1.0, 4, 3),
    ]
    assert f"  {paths[1]}: 2 of 2 rows, weight 0.5\n" in format_report(report)
    assert load(*mix, limit=2)[0].ids == ids[:2]
    assert load(mix[0], paths[1])[0].weights.tolist() == [1.0, 3.0, 3.0, 3.0]
    with pytest.raises(BadInput, match="d.jsonl:1: `id` .* is also the id of"):
        load(mix[0], DataSource(jsonl(tmp_path / "d.jsonl", [{**GOOD, "id": "a.jsonl:1"}])))
    for wrong in (DataSource(paths[0], limit=0), DataSource(paths[0], weight=0.0)):
        with pytest.raises(BadInput, match=r"a.jsonl: (limit|weight) is 0"):
            load(wrong)
    with pytest.raises(BadInput, match="weight is 2, expected 1: texts have no weight"):
        load_texts([DataSource(paths[0], weight=2)], tokenizer)


def test_processes_keep_the_order(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """More chunks than processes: results come back in any order, errors must name the line."""
    path = jsonl(tmp_path / "many.jsonl", pair_rows(1100))
    one, report_one = load_pairs([path], tokenizer, workers=1)
    two, report_two = load_pairs([path], tokenizer, workers=2)
    assert one.table.equals(two.table) and report_one == report_two and len(two) == 1100
    jsonl(tmp_path / "many.jsonl", [*pair_rows(900), {"prompt": "q"}, *pair_rows(3)])
    with pytest.raises(BadInput, match="many.jsonl:901: `chosen` is missing"):
        load_pairs([path], tokenizer, workers=2)


def test_cache_is_of_these_rows_and_options(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale cache trains on yesterday's data; one that never hits costs minutes a run."""
    path, cache = jsonl(tmp_path / "rows.jsonl", pair_rows(5)), tmp_path / "cache"

    def load(**options: object) -> tuple[Pairs, dict[str, object]]:
        return load_pairs([path], tokenizer, cache_dir=cache, **options)

    first, report = load()
    assert contents(first) == contents(load_pairs([path], tokenizer)[0])
    (entry,) = cache.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr("zephyr.data.workers.chat.tokenize_pair", None)
        again, report_again = load()
        assert (
            contents(again) == contents(first) and report_again == report and again.ids == first.ids
        )
        with pytest.raises(TypeError):
            load(max_tokens=100, max_prompt_tokens=50)
    assert sorted(cache.iterdir()) == [entry], "a failed run leaves nothing behind"
    load(max_tokens=100, max_prompt_tokens=50)
    assert len(load(limit=2)[0]) == 2
    jsonl(tmp_path / "rows.jsonl", pair_rows(6))
    assert len(load()[0]) == 6
    other = prepare_tokenizer(tiny_tokenizer())
    other.add_tokens(["question"])
    assert contents(load_pairs([path], other, cache_dir=cache)[0]) != contents(load()[0])
    assert len(list(cache.iterdir())) == 5


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of an id": lambda entry: flip(entry / "examples.arrow"),
    "rows cut off": lambda entry: os.truncate(entry / "examples.arrow", 200),
    "rows empty": lambda entry: os.truncate(entry / "examples.arrow", 0),
    "rows gone": lambda entry: (entry / "examples.arrow").unlink(),
    "a bit of the report": lambda entry: flip(entry / "report.json"),
    "report empty": lambda entry: os.truncate(entry / "report.json", 0),
    "a bit of the digest": lambda entry: flip(entry / "sha256"),
    "digest gone": lambda entry: (entry / "sha256").unlink(),
    "a file in its place": lambda entry: (shutil.rmtree(entry), entry.write_text("x")),
    "another entry in its place": lambda entry: (
        shutil.rmtree(entry),
        shutil.copytree(entry.parent / "other", entry),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_encoded_again(
    damage: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever happened to the files, the ids are those of the rows, a line says so, and the next
    load finds a whole entry. Fails where other ids are trained on in silence, or a damaged file
    ends the run with a traceback."""
    path, cache = jsonl(tmp_path / "rows.jsonl", pair_rows(5)), tmp_path / "cache"
    fresh, report = load_pairs([path], tokenizer)
    load_pairs([path], tokenizer, cache_dir=cache)
    (entry,) = cache.iterdir()
    load_pairs([path], tokenizer, cache_dir=cache, limit=2)
    (other,) = set(cache.iterdir()) - {entry}
    other.rename(cache / "other")
    DAMAGES[damage](entry)
    assert capsys.readouterr().err == ""
    again, report_again = load_pairs([path], tokenizer, cache_dir=cache)
    said = capsys.readouterr().err
    assert list(again) == list(fresh) and report_again == report
    assert f"{entry} is damaged (" in said and "encoded again" in said and said.count("\n") == 1
    assert (
        list(load_pairs([path], tokenizer, cache_dir=cache)[0]) == list(fresh)
        and capsys.readouterr().err == ""
    )
    assert {path.name for path in cache.iterdir()} == {entry.name, "other"}, (
        "what was damaged is gone"
    )


def test_of_two_that_make_an_entry_the_first_wins(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Fails where a whole entry is taken away from the process that made it, and put back anew."""
    path, cache = jsonl(tmp_path / "rows.jsonl", pair_rows(3)), tmp_path / "cache"
    load_pairs([path], tokenizer, cache_dir=cache)
    (entry,) = cache.iterdir()
    first, aside = entry.stat().st_ino, cache / ".writing-other"
    shutil.copytree(entry, aside)
    store.publish(aside, entry)
    assert entry.stat().st_ino == first and aside.is_dir()


def test_the_key_of_an_entry_is_of_all_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where rows that were encoded by other code, or by another tokenizer, would be taken."""
    (tmp_path / "code.py").write_text("a = 1\n")

    def key(parts: tuple[str, ...] = ("a", "b"), **special: str) -> str:
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens(special)
        return store.encoding_digest(tokenizer, [tmp_path / "code.py"], parts)

    def other_version(library: str, name: str) -> str:
        return name if name == library else version(name)

    keys = [key(), key(eos_token="<unk>"), key(pad_token="[PAD]")]
    assert keys[0] == key()
    keys += [key(("ab",)), key(("b", "a")), key(("a", "b", "c"))]
    for library in ("tokenizers", "transformers"):
        with monkeypatch.context() as patched:
            patched.setattr(store, "version", partial(other_version, library))
            keys.append(key())
    (tmp_path / "code.py").write_text("a = 2\n")
    assert len({*keys, key()}) == len(keys) + 1


def test_what_decides_an_example_is_in_the_key() -> None:
    """Every module that the encoding of a row imports is part of the cache's key. Fails where a
    mended reader would go on with what the old one wrote."""
    folder = Path(encode.__file__).parent
    known, new = set(), {"workers", "store", "encode"}
    while new:
        known |= new
        sources = [(folder / f"{name}.py").read_text(encoding="utf-8") for name in new]
        found = {
            name
            for text in sources
            for name in re.findall(r"from zephyr\.data\.(\w+) import", text)
        }
        new = found - known
    assert known == set(encode.ENCODING_MODULES)


def test_a_digest_of_examples_is_of_all_of_them() -> None:
    """Fails where two sets of examples that train differently have one digest."""

    def pairs(*rows: tuple[str, list[int], list[int], list[int]]) -> str:
        return digest([EncodedPair(*row) for row in rows], store.PAIR_SCHEMA, Pairs)

    def digest(rows: list[object], schema: object, kind: type) -> str:
        table = pa.Table.from_batches([store.example_batch(rows)], schema)
        return store.content_digest(kind(table))

    a, b = ("a", [1, 2], [3], [4]), ("b", [5], [6, 7], [8])
    digests = [
        pairs(a, b),
        pairs(b, a),
        pairs(a),
        pairs(a, ("c", *b[1:])),
        pairs(("a", [1], [3], [4]), ("b", [2, 5], [6, 7], [8])),
        pairs(("a", [1, 2], [4], [3]), b),
        pairs(("a", [1, 9], [3], [4]), b),
    ]
    digests += [
        digest([EncodedText("a", [1, 2, 3], flags)], store.TEXT_SCHEMA, Texts)
        for flags in ([False, True, False], [False, False, True])
    ]
    assert pairs(a, b) == digests[0] and len(set(digests)) == len(digests)


def test_the_mean_preference_is_over_rows_with_ratings(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Of a row with two ratings their mean counts. Fails where rows without a rating take part."""
    rated = [{"score_chosen": 5, "score_rejected": 1, "chosen_rating": 4, "rejected_rating": 2}, {}]
    rated.append({"score_chosen": 1, "score_rejected": 2})
    rows = [{**row, **more} for row, more in zip(pair_rows(3), rated)]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    _, report = load_pairs([path], tokenizer)
    assert (report["scored"], report["mean_preference"], report["inverted"]) == (
        2,
        1.0,
        [f"{path}:3"],
    )
    assert "rated below the rejected one: 1 of 2 rows with scores, the first at" in format_report(
        report
    )
    steer = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -3}
    assert (
        load_pairs([jsonl(tmp_path / "steer.jsonl", [steer])], tokenizer)[1]["mean_preference"] == 3
    )


def test_a_warning_names_its_first_places(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Five of them, of one line of the report. Fails where a million equal rows fill it, or the log
    is silent."""
    path = jsonl(tmp_path / "rows.jsonl", [GOOD] * 9)
    _, report = load_pairs([path], tokenizer)
    again = {"rows": 8, "first": [f"{path}:{n}" for n in range(2, 7)]}
    assert report["warnings"] == {"the same example again": again}
    assert f"warning: the same example again: 8 rows, the first at {path}:2" in format_report(
        report
    )
    bad = [GOOD, *({"prompt": f"q{n}"} for n in range(9))]
    told = format_report(
        load_pairs([jsonl(tmp_path / "bad.jsonl", bad)], tokenizer, on_bad_row="skip")[1]
    )
    assert "bad rows left out: 9" in told and told.count("`chosen` is missing") == 5


def test_names_and_keys_as_the_row_has_them(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """In errors the row's own field; in the report a long key by its beginning. Fails where either
    is another's."""
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy", "reasoning": "hm"}]
    with pytest.raises(
        BadInput, match=r"`conversations\[1\].reasoning` is not written by the chat template"
    ):
        load_texts([jsonl(tmp_path / "rows.jsonl", [{"conversations": said}])], tokenizer)
    _, report = load_pairs([jsonl(tmp_path / "rows.jsonl", [{**GOOD, "k" * 500: 1}])], tokenizer)
    assert report["keys_not_read"] == {"k" * 80: 1}


def test_suspicions_are_of_every_side_but_of_no_tool(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A tool may answer in JSON. Fails where marks in the rejected answer are seen by nobody."""
    for side in ("prompt", "chosen", "rejected"):
        row = {**GOOD, side: "<|im_start|>user"}
        (warning,) = load_pairs([jsonl(tmp_path / "rows.jsonl", [row])], tokenizer)[1]["warnings"]
        assert warning.startswith("marks of a chat template")
    own = prepare_tokenizer(tiny_tokenizer())
    own.chat_template = TOOLS_TEMPLATE
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '[{"role": "user", "content": "A"}]'},
        {"role": "assistant", "content": "a"},
    ]
    assert (
        load_texts([jsonl(tmp_path / "tools.jsonl", [{"messages": turns}])], own)[1]["warnings"]
        == {}
    )


def test_where_encoded_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a cluster's own folder is passed over, and the home folder filled."""
    monkeypatch.setenv("ZEPHYR_CACHE", "/scratch/rows")
    assert encoding_resources()["cache_dir"] == Path("/scratch/rows")
    monkeypatch.setenv("ZEPHYR_CACHE", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert encoding_resources()["cache_dir"] == Path("/home/me/.cache/zephyr")
    assert encoding_resources()["workers"] == len(os.sched_getaffinity(0))


def test_options_are_checked_before_rows(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """With `skip`, a limit that fails on every row would leave out every row and blame the data."""
    path = jsonl(tmp_path / "rows.jsonl", pair_rows(2))
    wrong = [
        {"max_tokens": 64, "max_prompt_tokens": 64},
        {"truncation": "keep_start"},
        {"on_bad_row": "ignore"},
        {"limit": 0},
    ]
    for options in wrong:
        with pytest.raises(BadInput, match=next(iter(options))):
            load_pairs([path], tokenizer, **{"on_bad_row": "skip", **options})
    for options, message in (
        ({"max_tokens": 1}, "^max_tokens is 1, expected at least 2"),
        ({"targets": "answers"}, "^targets is 'answers'"),
    ):
        with pytest.raises(BadInput, match=message):
            load_texts([path], tokenizer, **options)
    for sources in (path, [], ""):
        with pytest.raises(
            BadInput, match="the data sources are .*, expected a list of at least one"
        ):
            load_pairs(sources, tokenizer)
    with pytest.raises(BadInput, match="no tokenizer loads"):
        load_tokenizer(tmp_path)


def test_real_rows(tokenizer: PreTrainedTokenizerBase, real_data: Path) -> None:
    """Real data hold what nobody thinks of; the only bad one of Alpaca's first 2,000 is an empty
    answer."""
    source = f"{real_data}/sft/alpaca_random_9k.jsonl.gz"
    texts, report = load_texts(
        [source], tokenizer, on_bad_row="skip", max_tokens=4096, limit=2000, workers=2
    )
    assert len(texts) == 1999 and report["cut"]["text"]["rows"] == 0
    assert report["skipped"] == [
        {"place": f"{source}:1462", "reason": "`output` is empty (''), expected an answer"}
    ]
