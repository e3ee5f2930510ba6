"""Texts of pairs are read again from a run's sources: under the ids that training gave them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pair_files import jsonl
from tiny import tiny_tokenizer

from zephyr.analysis.pairs import PairText, pair_rows, read_texts
from zephyr.analysis.runs import Run
from zephyr.config import DataSource, read_source
from zephyr.data.encode import load_pairs
from zephyr.data.tokenizer import prepare_tokenizer
from zephyr.distill import lineage
from zephyr.report.facts import story
from zephyr.report.pairs_data import train_files


def run_of(folder: Path, sources: Sequence[object], **config: object) -> Run:
    leaves = {"beta": 0.1, "data.train": sources, "run.dir": "runs/a", **config}
    return Run(folder / "runs" / "a", "a", leaves, {}, {}, {}, {}, {})


def trained_ids(sources: Sequence[str | DataSource], **options: object) -> list[str]:
    """The ids that the ledger of a run on these sources would hold."""
    tokenizer = tiny_tokenizer()
    prepare_tokenizer(tokenizer, chat_template="zephyr")
    pairs, _ = load_pairs(sources, tokenizer, on_bad_row="skip", **options)
    return list(pairs.ids)


def two_files_of_one_name(folder: Path) -> list[str]:
    """Rows of several shapes: with an id and without, bad ones, a tie, an id that comes twice."""
    for name in "ab":
        (folder / name).mkdir()
    first = [
        {"id": "one", "prompt": "p", "chosen": "yes", "rejected": "no", "source": "mine"},
        {"prompt": "p", "chosen": "same", "rejected": "same"},  # bad
        {"id": 7, "prompt": "q", "chosen": "long answer", "rejected": "short"},
        {"question": "q2", "chosen": "c", "rejected": "r", "system": "Be kind."},
        "{broken",
        {"id": "one", "prompt": "p", "chosen": "c", "rejected": "r", "weight": 0},  # not trained
        {"id": "one", "prompt": "p3", "chosen": "c", "rejected": "r"},  # the id of another
        {"prompt": "p", "chosen": "a b", "rejected": "ab"},  # equal but for white space
    ]
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    second = [
        {"messages": [*turns, {"role": "user", "content": "u2"}, turns[1]]}
        | {"rejected_response": "b"},
        {
            "prompt": "p",
            "response_1": "r1",
            "response_2": "r2",
            "preference_strength": 2,
        },
        {"prompt": "p", "response_1": "r1", "response_2": "r2", "preference_strength": 0},  # a tie
        {"prompt": "p", "chosen": "last", "rejected": "cut off by a limit of ten or less"},
    ]
    return [
        jsonl(folder / "a" / "pairs.jsonl", first),
        jsonl(folder / "b" / "pairs.jsonl", second),
    ]


@pytest.mark.parametrize("limit", [None, 10, 1])
def test_ids_are_those_of_training(limit: int | None, tmp_path: Path) -> None:
    """Fails where a row that training skips is read, where a default id is another file's or
    line's, or where the limit counts rows otherwise."""
    sources = two_files_of_one_name(tmp_path)
    expected = trained_ids(sources, limit=limit)
    texts, problems = read_texts(run_of(tmp_path, sources, **{"data.limit": limit}))
    assert list(texts) == expected and not problems
    assert len(expected) == {None: 6, 10: 5, 1: 1}[limit]


def test_sources_with_limits_of_their_own(tmp_path: Path) -> None:
    """The groups of `data.train` are mappings in a run's config.yaml. Fails where the texts of a
    run are those of rows that it never read, or where what reads the list wants strings."""
    first, second = two_files_of_one_name(tmp_path)
    groups = [{"path": first, "limit": 3, "weight": 2.0}, {"path": second, "limit": None}]
    expected = trained_ids([read_source(group) for group in groups])
    run = run_of(tmp_path, groups)
    texts, problems = read_texts(run)
    assert list(texts) == expected and len(expected) == 5 and not problems
    assert train_files(run) == [first, second]
    assert f"<b>{first}</b> (its first 3 rows, weight 2), <b>{second}</b>." in story(
        run._replace(records={"train": []})
    )
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(json.dumps({"data": {"train": groups}}))
    assert lineage.pair_files(run.folder) == [Path(first), Path(second)]


def test_relative_paths_start_where_the_run_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files of one name have their paths in default ids. Fails where these are the paths of
    today's folder, or where the texts of a run are read only from the folder it was started in."""
    two_files_of_one_name(tmp_path)
    sources = ["a/pairs.jsonl", "b/pairs.jsonl"]
    monkeypatch.chdir(tmp_path)
    expected = trained_ids(sources)
    assert "b/pairs.jsonl:1" in expected
    run = run_of(tmp_path, sources)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")
    assert list(read_texts(run)[0]) == expected


def test_columns_and_fields(tmp_path: Path) -> None:
    """Fails where `data.columns` is not followed, or a field of the row is lost."""
    row = {
        "key": "x1",
        "ask": "What?",
        "answers": ["This.", "That."],
        "Chosen-Model": "big",
        "rejected_model": "small",
        "chosen_rating": 4,
        "rejected_rating": 1.5,
        "margin": 2.5,
        "subset": "chat",
    }
    source = jsonl(tmp_path / "rows.jsonl", [row])
    columns = {"id": "key", "prompt": "ask", "chosen": "answers.0", "rejected": "answers.1"}
    run = run_of(tmp_path, [source], **{f"data.columns.{k}": v for k, v in columns.items()})
    texts, _ = read_texts(run)
    assert list(texts) == trained_ids([source], columns=columns)
    assert texts == {
        "x1": PairText("What?", "This.", "That.", "chat", "big", "small", 4.0, 1.5),
    }
    (found,) = pair_rows(run)
    assert isinstance(found.raw.value, bytes) and json.loads(found.raw.value) == row


def test_conversations_are_readable(tmp_path: Path) -> None:
    """A prompt of one turn is its words, others name who speaks. Fails where a turn is lost."""
    sources = two_files_of_one_name(tmp_path)
    texts, _ = read_texts(run_of(tmp_path, sources))
    by_prompt = {text.prompt: text for text in texts.values()}
    assert by_prompt["p"].source in ("mine", sources[1])
    assert by_prompt["system: Be kind.\n\nuser: q2"].rejected == "r"
    assert by_prompt["user: u\n\nassistant: a\n\nuser: u2"].chosen == "a"


def test_what_is_gone_is_said(tmp_path: Path) -> None:
    """Fails where a missing or damaged file raises, or where rows that are fewer now than in the
    run pass without a word."""
    sources = two_files_of_one_name(tmp_path)
    gone, said = read_texts(run_of(tmp_path, ["nowhere.jsonl"]))
    assert gone == {} and "'nowhere.jsonl' does not exist" in said[0]
    Path(sources[1]).write_bytes(b"")
    half, said = read_texts(run_of(tmp_path, sources))
    assert "one" in half and "holds no rows" in said[0]
    run = run_of(tmp_path, sources[:1])._replace(data={"train.examples": 4})
    texts, said = read_texts(run)
    assert len(texts) == 3 and "trained on 4 pairs, 3 are found" in said[0]
    no_dpo = run._replace(config={"model": "m"})
    assert read_texts(no_dpo) == ({}, ["a is no run of train_dpo.py: it trained on no pairs"])


def test_the_first_row_of_an_id_counts(tmp_path: Path) -> None:
    """Where rows were added since the run, under an id that was there: the text is that of the row
    that the run read. Fails where a later row replaces it."""
    rows = [{"id": "a", "prompt": "p", "chosen": side, "rejected": "r"} for side in ("1", "2")]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    texts, _ = read_texts(run_of(tmp_path, [str(tmp_path / "rows.jsonl")]))
    assert texts["a"].chosen == "1"
