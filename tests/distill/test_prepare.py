"""`prepare` over closed cases and the real data: each filter takes what it should and nothing else,
whatever happens to the process."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from zephyr.config import BadInput
from zephyr.distill import clean
from zephyr.distill.clean import find_refusal, truecase
from zephyr.distill.prepare import PrepareSettings, prepare

Row = Mapping[str, object]
ONLY_PARTED = {"truecase": False, "drop_refusals": False, "near_duplicates": None}


def dialogue(*texts: str, **fields: object) -> Row:
    return {
        "messages": [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
        ],
        **fields,
    }


def write(path: Path, rows: Iterable[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def run(
    folder: Path, rows: Iterable[Row], **settings: object
) -> tuple[list[Row], dict[str, int], Row]:
    """What stays of the rows, what each filter took, and the report."""
    report = prepare(
        [write(folder / "rows.jsonl", rows)],
        folder / "out" / "clean.jsonl",
        PrepareSettings(**settings),
    )
    removed = {name: taken["rows"] for name, taken in report["removed"].items() if taken["rows"]}
    return read(folder / "out" / "clean.jsonl"), removed, report


@pytest.mark.parametrize(
    "before, after",
    [
        ("Hello. how are you?", "Hello. How are you?"),
        (
            "yesterday i walked home. i'm tired! so what? nothing.",
            "Yesterday I walked home. I'm tired! So what? Nothing.",
        ),
        ("i think i know. i would go.", "I think I know. I would go."),
        ("It works. élan helps.", "It works. Élan helps."),
        ("Use `a. b` now. then stop.", "Use `a. b` now. Then stop."),
    ],
)
def test_wrong_case_is_set_right(before: str, after: str) -> None:
    """The commonest fault of UltraChat's rows; a pattern that never fires would go unseen among the
    texts that must not change."""
    assert truecase(before) == after
    assert truecase(after) == after


@pytest.mark.parametrize(
    "text",
    [
        "Fruit, e.g. apples, i.e. food, etc. and so on vs. nothing.",
        "We met Dr. van Dyke at 5 p.m. today in the U.S. capital.",
        "Well... maybe. Or so… perhaps.",
        "Open main.py. os.path has it. See www.a.org/x. It is there.",
        "I like it. iPhone and eBay do. macOS, too.",
        '"Why?" she asked. "Stop!" he cried.',
        "Run it:\n```\nx. y\nfor i in z\n```\nDone.",
        "Then\n    it ends. here in code\nDone.",
        "Let i be 3. The index i grows. For i from 1 to 3, $a. b$ holds.",
        "1. apples\n2. pears, a. b.",
        "positive",
        "apple, pear, plum. fig",
        "def f(x):\n  return x. then",
        "Ecco i gatti e i cani. È vero.",
        "See https://x.org/a. b is one letter.",
        "positive.\nnegative.\n\nneutral.",
        "A. Then:\nimport os. path\nx = 1. so it ends",
        "",
    ],
)
def test_right_case_stays(text: str) -> None:
    """Abbreviations, ellipses, quotes, names, code, formulas, lists, labels and another language's
    "i" are no wrong case."""
    assert truecase(text) == text.replace(
        "plum. fig", "plum. Fig"
    )  # the one sentence start among them


def test_case_changes_in_text_fields_only(tmp_path: Path) -> None:
    """A row's other fields, and rows whose task is case, would be spoilt by a cleaner that looks at
    every string."""
    rows = [
        dialogue(
            "Hi there. how are you?",
            "Good. and you?",
            prompt="Hi there. how are you?",
            note="so. it is",
            prompt_id="p. q",
        ),
        {
            "instruction": "Say it. do it.",
            "input": "raw. data",
            "output": "Yes. it is.",
            "extra": {"text": "a. be"},
        },
        dialogue("Put this in lower case: Hi. All.", "hi. all. of it."),
        {"text": "One day. it rained."},
    ]
    kept, removed, report = run(tmp_path, rows)
    assert [row.get("messages", [{}])[-1].get("content") for row in kept[:1]] == ["Good. And you?"]
    assert kept[0] == {
        **dialogue("Hi there. How are you?", "Good. And you?"),
        "prompt": "Hi there. How are you?",
        "note": "so. it is",
        "prompt_id": "p. q",
    }
    assert kept[1] == {
        "instruction": "Say it. Do it.",
        "input": "raw. data",
        "output": "Yes. It is.",
        "extra": {"text": "a. be"},
    }
    assert kept[2] == rows[2] and kept[3] == {"text": "One day. It rained."}
    assert report["truecased"] == 3 and not removed


@pytest.mark.parametrize(
    "asked, answer",
    [
        (
            "What is good music?",
            "As an AI language model, I don't have personal opinions, but here is some.",
        ),
        ("Why do cats purr?", "I do not have emotions. Cats purr because"),
        ("Is it rational?", "I’m just an AI, I don’t have beliefs or opinions."),
        ("Who won?", "As an AI, I cannot express personal preferences."),
        ("Where is Rome?", "I am not capable of having feelings."),
    ],
)
def test_refusals_where_nothing_personal_was_asked(asked: str, answer: str) -> None:
    """The same words are right where a person was asked for: that must be kept, and the rest
    dropped."""
    assert find_refusal(asked, answer)
    for personal in (
        "What is your opinion?",
        "Do you feel pain?",
        "Are you human?",
        "What's your favourite song?",
    ):
        assert find_refusal(personal, answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "I don't have time for this.",
        "He said that I have opinions.",
        "I have no feelings for you any more.",
        "As an AI language model, I can help: Rome.",
        "I do not have much experience as a speaker.",
        "The company has no personal opinions.",
        "I can't wait to share the experiences with you.",
    ],
)
def test_no_refusal(answer: str) -> None:
    """Words near those of a refusal, as people and letters use them."""
    assert find_refusal("Write a letter.", answer) is None


GERMAN = (
    "Ich weiß nicht, was soll es bedeuten, dass ich so traurig bin; ein Märchen aus alten Zeiten "
    "kommt mir nicht aus dem Sinn."
)
ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and then it goes home to sleep until the morning "
    "comes again."
)
PROMPT = (
    "Name three famous actors who started their careers on the stages of Broadway and later made "
    "films"
)


def test_filters_in_their_order(tmp_path: Path) -> None:
    """Each row is made for one filter; a row counts once, under the first that takes it, and what
    stays keeps its order."""
    bench = write(tmp_path / "bench.jsonl", [{"turns": [PROMPT, "Short one here"]}])
    held = write(tmp_path / "held.jsonl", [dialogue("Held question?", "A")])
    rows = [
        dialogue("One?", ENGLISH),
        dialogue("Two?", f"{ENGLISH} I do not have personal opinions."),
        dialogue("Drei?", GERMAN),
        dialogue("Four?", "No."),
        dialogue("Five?", ENGLISH + " Five.", "More?", ENGLISH),
        dialogue("HELD  question?", ENGLISH + " It is six."),
        dialogue("Seven?", f"{ENGLISH} {PROMPT.upper()}!"),
        dialogue("short one, here", ENGLISH + " Eight."),
        dialogue("one?", ENGLISH.upper()),
        dialogue("One!", ENGLISH),
        dialogue(
            "A short one here is fine",
            f"Another: {ENGLISH} " + " ".join(f"word{i}" for i in range(40)),
        ),
    ]
    kept, removed, report = run(
        tmp_path,
        rows,
        language="en",
        min_words=10,
        max_turns=2,
        decontaminate=(bench,),
        held_out=(held,),
        truecase=False,
    )
    assert kept == [rows[0], rows[10]]
    assert removed == {
        "refusal": 1,
        "language": 1,
        "length": 1,
        "turns": 1,
        "held_out": 1,
        "contaminated": 2,
        "duplicate": 1,
        "near_duplicate": 1,
    }
    assert (
        report["rows_read"] == 11
        and report["rows_kept"] == 2
        and report["files"] == {"clean.jsonl": 2}
    )
    (example,) = report["removed"]["near_duplicate"]["examples"]
    assert (
        example["place"].endswith("rows.jsonl:10")
        and example["why"].endswith("rows.jsonl:1")
        and example["excerpt"] == "One!"
    )
    assert [e["why"] for e in report["removed"]["contaminated"]["examples"]] == [
        " ".join(PROMPT.lower().split()[:13]),
        "short one here",
    ]
    assert json.loads((tmp_path / "out" / "clean.report.json").read_text()) == json.loads(
        json.dumps(report)
    )
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


def test_strange_texts_survive(tmp_path: Path) -> None:
    """Lines end at \\n only. A row that is not truecased keeps its bytes; one that is keeps every
    other character and field."""
    text = "A\u2028b \x00 \U0001f600 e\u0301 \ufffd \r\n c."
    rows = [
        {**dialogue("Q?", text), "meta": {"a": [1, None, {"b": 1.50}], "c": "\u2029"}, "n": None},
        dialogue("Well. so?", text),
    ]
    source = tmp_path / "rows.jsonl"
    lines = [json.dumps(rows[0]).replace("1.5", "1.50"), json.dumps(rows[1])]
    source.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    prepare([str(source)], tmp_path / "clean.jsonl", PrepareSettings())
    assert (tmp_path / "clean.jsonl").read_bytes().split(b"\n")[0] == lines[0].encode()
    assert read(tmp_path / "clean.jsonl") == [rows[0], dialogue("Well. So?", text)]


def test_every_kind_of_source(tmp_path: Path) -> None:
    """Parquet and lists hold rows, not lines; each has another way to the same output."""
    from datasets import Dataset

    rows = [
        {"instruction": f"Say {i} – “x”", "input": "", "output": f"It's {i}."} for i in range(5)
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl.gz").write_bytes(
        gzip.compress(Path(write(tmp_path / "x.jsonl", rows)).read_bytes())
    )
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for name in ("list.json", "rows.jsonl.gz", "rows.parquet", "x.jsonl"):
        prepare([str(tmp_path / name)], tmp_path / "out" / "clean.jsonl", PrepareSettings())
        assert read(tmp_path / "out" / "clean.jsonl") == rows, name


def test_held_out_rows_never_enter_training(tmp_path: Path) -> None:
    """The leak that this is for: a test dialogue, or another answer to its first turn, among the
    training rows, before or after it."""
    test = [
        dialogue("Secret?", "A."),
        dialogue("Other?", "B.", "More?", "C."),
        dialogue("Secret?", "A."),
    ]
    train = [
        dialogue("secret?", "a."),
        dialogue("Free?", "D."),
        dialogue("Other?", "E."),
        dialogue("More?", "C."),
        dialogue("Free?", "D."),
    ]
    specs = [
        write(tmp_path / "set" / "train_sft.jsonl", train),
        write(tmp_path / "set" / "test_sft-00000-of-00001.jsonl", test),
    ]
    for sources in (specs, specs[::-1], [f"{tmp_path}/set:train_sft", f"{tmp_path}/set:test_sft"]):
        report = prepare(sources, tmp_path / "out" / "clean.jsonl", PrepareSettings(**ONLY_PARTED))
        assert read(tmp_path / "out" / "clean.jsonl") == [train[1], train[3]]
        assert read(tmp_path / "out" / "clean.test_sft.jsonl") == test  # duplicates and all
        assert report["files"] == {"clean.jsonl": 2, "clean.test_sft.jsonl": 3}
        assert (report["removed"]["held_out"]["rows"], report["removed"]["duplicate"]["rows"]) == (
            2,
            1,
        )
    report = prepare(specs[1:], tmp_path / "alone" / "clean.jsonl", PrepareSettings(**ONLY_PARTED))
    assert report["files"] == {"clean.jsonl": 2}  # a sole split is no other's held-out one
    for name, other in (
        ("v1.2", "v1.2.test_sft.jsonl"),
        ("read", "read.test_sft.jsonl"),
        ("index.sqlite", "index.sqlite.test_sft.jsonl"),
    ):
        report = prepare(specs, tmp_path / name / name, PrepareSettings(**ONLY_PARTED))
        assert report["files"] == {name: 2, other: 3} and read(tmp_path / name / name) == [
            train[1],
            train[3],
        ]
        assert read(tmp_path / name / other) == test


@pytest.mark.parametrize(
    "piece", ["word ", "a", " ", "`", "i ", "\n", ". ", "a'", "I do not have "]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    """Patterns that try again from every character would take hours for a megabyte of one thing,
    and stop all of a run."""
    text = piece * (1_000_000 // len(piece))
    assert truecase(text).lower() == text.lower() and find_refusal(text, text) is None


@pytest.mark.parametrize(
    "name, split",
    [
        ("rows.test.jsonl", "test"),
        ("ultrachat_validation-00000-of-00002.jsonl", "validation"),
        ("test/part-1.jsonl", "test"),
        ("contest.jsonl", ""),
        ("values.jsonl", ""),
        ("dev/rows.jsonl", ""),
        ("training.jsonl", ""),
        ("test_workers0/rows.jsonl", ""),
        ("a-eval.jsonl", "eval"),
    ],
)
def test_which_split_a_file_is(tmp_path: Path, name: str, split: str) -> None:
    """A file taken for training that is not leaks; one taken for a test set though it isn't is
    missing."""
    sources = [
        write(tmp_path / "x" / name, [dialogue("Q?", "A.")]),
        write(tmp_path / "x" / "base.jsonl", [dialogue("R?", "B.")]),
    ]
    report = prepare(sources, tmp_path / "clean.jsonl", PrepareSettings(**ONLY_PARTED))
    assert list(report["files"]) == ["clean.jsonl", *([f"clean.{split}.jsonl"] if split else [])]


def test_near_duplicates_against_exact_jaccard(tmp_path: Path) -> None:
    """Families of rows edited more and more: against the true Jaccard of word 5-grams, all well
    above are found, none well below."""
    rng = random.Random(1)
    rows, grams, wanted = [], [], {}
    for family in range(60):
        words = [f"w{rng.randrange(5000)}" for _ in range(120)]
        for member in range(5):
            edited = [
                f"v{rng.randrange(5000)}" if rng.random() < 0.012 * member else word
                for word in words
            ]
            rows.append({"text": " ".join(edited), "family": family})
            grams.append({tuple(edited[i : i + 5]) for i in range(len(edited) - 4)})
    order = rng.sample(range(len(rows)), len(rows))
    kept, _, _ = run(tmp_path, [{**rows[i], "n": i} for i in order], truecase=False)
    stayed = {row["n"] for row in kept}
    before: list[int] = []
    for i in order:
        kin = [j for j in before if j in stayed and j // 5 == i // 5]
        wanted[i] = max(
            (len(grams[i] & grams[j]) / len(grams[i] | grams[j]) for j in kin), default=0.0
        )
        before.append(i)
    above, below = [i for i in order if wanted[i] >= 0.9], [i for i in order if wanted[i] <= 0.7]
    assert len(above) > 30 and len(below) > 100
    assert sum(i in stayed for i in above) == 0 and all(i in stayed for i in below)
    between = [i for i in order if 0.7 < wanted[i] < 0.9]
    assert sum((i not in stayed) == (wanted[i] >= 0.8) for i in between) >= 0.75 * len(between)


def test_hashes_of_ngrams_are_of_their_words() -> None:
    """Hashes that forget order or length would call other texts contaminated."""
    texts = ["a b c d", "d c b a", "a b c d e", "b c d e", "a a a a", "a a a"]
    seen = {}
    for text in texts:
        for n in (1, 2, 3, 4):
            words = text.split()
            for i, value in enumerate(clean.hash_ngrams(words, n).tolist()):
                assert seen.setdefault((n, value), words[i : i + n]) == words[i : i + n]
    assert len(clean.hash_ngrams(["a"], 2)) == 0 and len({value for _, value in seen}) == len(seen)
    assert clean.minhash_signature(
        clean.hash_ngrams("a b c".split(), 1)
    ) == clean.minhash_signature(np.tile(clean.hash_ngrams("c b a".split(), 1), 3000))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = random.Random(2)
    said = [" ".join(f"word{rng.randrange(3000)}" for _ in range(30)) for _ in range(20)]
    rows = [
        dialogue(
            f"Question {rng.randrange(300)}?",
            f"So it is. {rng.choice(said)}.",
            "And. then?",
            rng.choice(said),
            n=i,
        )
        for i in range(600)
    ]
    return write(tmp_path_factory.mktemp("many") / "rows.jsonl", rows)


PROCESS = """
import sys
from pathlib import Path
from zephyr.distill import prepare
prepare.PIECE_ROWS = 150
prepare.prepare(sys.argv[1:2], Path(sys.argv[2]), prepare.PrepareSettings(workers=int(sys.argv[3])))
"""


def outputs(out: Path) -> list[bytes]:
    return [out.read_bytes(), out.with_suffix(".report.json").read_bytes()]


def test_killed_and_run_again(many: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle: the next run takes the pieces that are done as they are and ends with
    the bytes of an undisturbed one, which are those of one worker and of pieces of another size,
    too."""
    prepare([many], tmp_path / "whole" / "clean.jsonl", PrepareSettings())
    out = tmp_path / "killed" / "clean.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, many, str(out), "2"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    while not (begun := list(out.parent.glob("clean.jsonl.work/*/piece-00002*.arrow"))):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and process.stdout.read() == b"" and not out.exists()
    shutil.copytree(begun[0].parent, tmp_path / "left")
    monkeypatch.setattr("zephyr.distill.prepare.PIECE_ROWS", 150)
    prepare([many], out, PrepareSettings(workers=2))
    assert outputs(out) == outputs(tmp_path / "whole" / "clean.jsonl")
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "clean.jsonl",
        "clean.report.json",
    ]
    report = json.loads(outputs(out)[1])
    assert (
        0 < report["rows_kept"] < report["rows_read"] == 600
        and report["truecased"] == report["rows_kept"]
    )
    shutil.copytree(
        tmp_path / "left", begun[0].parent
    )  # now with a done part in place of another: used as it is, it shows
    shutil.copy(
        begun[0].with_name("piece-00000_00001_of_00002.arrow"),
        begun[0].with_name("piece-00000_00000_of_00002.arrow"),
    )
    prepare([many], out, PrepareSettings(workers=2))
    assert read(out)[0]["n"] == 75


def test_other_settings_use_no_old_work(many: str, tmp_path: Path) -> None:
    """Work left by a run of other settings would be another run's rows."""
    out = tmp_path / "clean.jsonl"
    left = tmp_path / "clean.jsonl.work" / ("0123" * 8)
    left.mkdir(parents=True)
    (left / "piece-00000.arrow").write_bytes(b"not this")
    assert prepare([many], out, PrepareSettings(**ONLY_PARTED))["truecased"] == 0
    assert not left.parent.exists()


def test_only_its_own_work_is_removed(tmp_path: Path) -> None:
    """Somebody's folder, file or link in OUT.work/, in a folder of earlier work, or in its place:
    an error that names it, before a row is read. Fails where it is removed, or ends in a traceback
    after the output is written."""
    out, work, mine = tmp_path / "clean.jsonl", tmp_path / "clean.jsonl.work", tmp_path / "mine"
    source = write(tmp_path / "rows.jsonl", [dialogue("Q?", "A.")])
    (mine / "folder").mkdir(parents=True)
    (mine / "folder" / "f").write_text("precious")
    places = [work, work / "mine", work / ("0123" * 8), work / ("0123" * 8) / "notes"]
    for place in places:
        for make in (
            lambda path: path.symlink_to(mine),
            lambda path: path.write_text("x"),
            lambda path: shutil.copytree(mine, path),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            make(place)
            if place == work and not place.is_symlink() and place.is_dir():
                place = work / "folder"
            with pytest.raises(BadInput, match=f"out: {place}") as error:
                prepare([source], out, PrepareSettings())
            assert (
                "choose another out" in str(error.value)
                and os.path.lexists(place)
                and not out.exists()
            )
            assert (mine / "folder" / "f").read_text() == "precious"
            work.unlink() if work.is_symlink() or work.is_file() else shutil.rmtree(work)
    prepare([source], out, PrepareSettings())
    assert out.exists() and not work.exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"near_duplicates": 0.0}, "near_duplicates is 0.0"),
        ({"ngram": 0}, "ngram is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"min_turns": 3, "max_turns": 2}, "min_turns is 3, max_turns is 2"),
        ({"language": "english"}, "language is 'english'"),
        ({"decontaminate": ("no_prompts.jsonl",)}, "no prompt found"),
        ({"held_out": ("bad.jsonl",)}, "bad.jsonl:1: the row has the fields"),
        ({"held_out": ("missing.jsonl",)}, "missing.jsonl"),
        ({}, "rows.jsonl:2: `messages` is an empty list"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str
) -> None:
    """Each is a person's mistake, told in one line that names it, before anything is written."""
    monkeypatch.chdir(tmp_path)
    write(Path("no_prompts.jsonl"), [{"answer": "x"}])
    write(Path("bad.jsonl"), [{"nothing": 1}])
    source = write(Path("rows.jsonl"), [dialogue("Q?", "A."), {"messages": []}])
    with pytest.raises(BadInput, match=message):
        prepare([source], tmp_path / "clean.jsonl", PrepareSettings(**settings))
    assert not (tmp_path / "clean.jsonl").exists()
    report = prepare([source], tmp_path / "clean.jsonl", PrepareSettings(on_bad_row="skip"))
    assert report["removed"]["bad_row"]["rows"] == 1 and read(tmp_path / "clean.jsonl") == [
        dialogue("Q?", "A.")
    ]
    for out, sources in (
        (source, [source]),
        ("in/clean.jsonl", ["in"]),
        ("in", [source]),
        ("clean.jsonl", []),
    ):
        write(Path("in/rows.jsonl"), [dialogue("Q?", "A.")])
        with pytest.raises(BadInput, match="among the sources|is a folder|no row is left"):
            prepare(sources, tmp_path / out, PrepareSettings())


@pytest.mark.long
def test_real_rows(real_data: Path, tmp_path: Path) -> None:
    """People's and models' own texts: nearly all stay, what goes can be named, and a benchmark's
    own prompts are all found."""
    benchmarks = (
        str(real_data / "alpaca_eval/prompts.jsonl"),
        str(real_data / "mt_bench/question.jsonl"),
    )
    sources = [
        str(real_data / "sft" / name) for name in ("alpaca_random_9k.jsonl.gz", "dolly_3k.jsonl.gz")
    ]
    settings = PrepareSettings(decontaminate=benchmarks, on_bad_row="skip", workers=2)
    report = prepare(sources, tmp_path / "clean.jsonl", settings)
    removed = {name: taken["rows"] for name, taken in report["removed"].items()}
    assert report["rows_read"] == 12225 and removed["bad_row"] == 4 and removed["refusal"] == 0
    assert (
        removed["contaminated"] == 1 and removed["duplicate"] > 0 and removed["near_duplicate"] > 0
    )
    assert (
        report["rows_kept"] == 12225 - sum(removed.values()) > 12150
        and 0 < report["truecased"] < 250
    )
    leaked = [
        {"prompt": row["prompt"], "completion": "Yes."}
        for row in read(Path(benchmarks[0]))
        if clean.split_words(row["prompt"])
    ]
    assert len(leaked) > 600
    with pytest.raises(BadInput, match=f"no row is left; .*contaminated {len(leaked)}"):
        run(tmp_path / "leak", leaked, decontaminate=benchmarks, truecase=False)
