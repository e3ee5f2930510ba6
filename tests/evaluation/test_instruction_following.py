"""`zephyr eval ifeval`: strict and loose accuracy against lm-evaluation-harness's own functions,
and the command on the embedded world."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from zephyr import cli
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation import instruction_following
from zephyr.evaluation.instruction_following import (
    Checked,
    check,
    import_checkers,
    load_checkers,
    loose_variants,
    read_tasks,
    summarise,
)
from zephyr.world.answerers import answer
from zephyr.world.facts import build_world
from zephyr.world.teacher import prompts_by_text

pytest.importorskip(
    "langdetect", reason="langdetect is not installed, which IFEval's checkers need"
)

WORLD = build_world(0)
WORDS = 10
PROMPTS = list(prompts_by_text(WORLD).values())[::180][:20]
NO_COMMA: tuple[str, dict[str, object]] = ("punctuation:no_comma", {})
INSTRUCTIONS: list[tuple[str, dict[str, object]]] = [
    NO_COMMA,
    ("keywords:existence", {"keywords": ["river", "stone"]}),
    ("keywords:frequency", {"relation": "at least", "keyword": "stone", "frequency": 2}),
    ("keywords:forbidden_words", {"forbidden_words": ["bridge"]}),
    ("keywords:letter_frequency", {"let_relation": "less than", "letter": "q", "let_frequency": 1}),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 12}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
    ("detectable_format:title", {}),
    ("detectable_format:json_format", {}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}),
    ("change_case:english_lowercase", {}),
    ("startend:end_checker", {"end_phrase": "That is all."}),
    ("startend:quotation", {}),
    ("language:response_language", {"language": "en"}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Tell me of the river."}),
]
LINES = (
    "Sure, here it is:",
    "<<The stone>>",
    "*a river* of stone and stone",
    "* one\n* two",
    "the river runs past the old mill and under the stone bridge for a very long way",
    "***",
    "[name] of the stone",
    "P.S. the river",
    "That is all.",
    '"quoted"',
    '{"a": 1}',
    "Tell me of the river.",
    "",
)


def run(*arguments: object) -> None:
    """The command, without `main`, which would turn BadInput into a line."""
    cli.run(["eval", "ifeval", *map(str, arguments)])


def task(
    key: int, *instructions: tuple[str, dict[str, object]], prompt: str = ""
) -> dict[str, object]:
    return {
        "key": key,
        "prompt": prompt or f"prompt {key}",
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [kwargs for _, kwargs in instructions],
        "prompt_id": str(key),
    }


def test_checks_are_those_of_the_harness() -> None:
    """A hundred answers of random lines under 18 kinds of instruction: both scores as the harness's
    own functions say, and its mean over instructions. Fails where a form of the loose score is
    missing, an empty one follows something, or an argument does not arrive."""
    from lm_eval.tasks.ifeval.utils import (
        InputExample,
        agg_inst_level_acc,
        test_instruction_following_loose,
        test_instruction_following_strict,
    )

    rng = random.Random(0)
    tasks = [task(key, *rng.sample(INSTRUCTIONS, 3)) for key in range(100)]
    checkers, package = load_checkers(tasks)
    assert package == "lm_eval"
    texts = ["\n".join(rng.sample(LINES, rng.randint(1, 6))) for _ in tasks]
    texts[0] = ""
    found, wanted = [], []
    for row, text in zip(tasks, texts):
        example = InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
        wanted.append(
            Checked(
                test_instruction_following_strict(example, text).follow_instruction_list,
                test_instruction_following_loose(example, text).follow_instruction_list,
            )
        )
        found.append(check(row, text, checkers))
    assert found == wanted
    assert any(of.loose != of.strict for of in found) and not any(found[0].loose)
    results = summarise(tasks, texts, found)
    for level in ("strict", "loose"):
        lists = [getattr(of, level) for of in found]
        assert results[level]["instruction"]["accuracy"] == pytest.approx(agg_inst_level_acc(lists))
        assert results[level]["prompt"]["accuracy"] == sum(map(all, lists)) / 100
        assert results[level]["instruction"]["n"] == 300 and results[level]["prompt"]["n"] == 100


def test_figures_by_hand() -> None:
    """Two of three prompts follow all, four of five instructions are followed; groups are the first
    word of the id. Fails where an unanswered prompt is left out."""
    tasks = [
        task(1, NO_COMMA, INSTRUCTIONS[1]),
        task(2, NO_COMMA, INSTRUCTIONS[2]),
        task(3, NO_COMMA),
    ]
    checked = [Checked([True] * 2, [True] * 2), Checked([True, True], [True] * 2)]
    found = summarise(tasks, ["a", "b", None], [*checked, Checked([False], [True])])
    strict = found["strict"]
    assert strict["prompt"]["accuracy"] == pytest.approx(2 / 3)
    assert strict["instruction"]["accuracy"] == pytest.approx(4 / 5)
    assert found["average"] == pytest.approx((2 / 3 + 4 / 5) / 2) and found["unanswered"] == 1
    assert strict["groups"]["punctuation"]["accuracy"] == pytest.approx(2 / 3)
    assert (
        strict["groups"]["keywords"]["accuracy"] == 1 and found["loose"]["prompt"]["accuracy"] == 1
    )
    low, high = strict["prompt"]["ci95"]
    assert 0 < low < 2 / 3 < high < 1


def test_loose_forms() -> None:
    """The eight forms of the paper: with and without asterisks, first and last line."""
    assert (
        loose_variants("*a*\nb\nc*")
        == ["*a*\nb\nc*", "a\nb\nc", "b\nc*", "b\nc", "*a*\nb", "a\nb"] + ["b"] * 2
    )


def test_a_draw_can_be_repeated() -> None:
    """The harness's checker does not know `#` as a letter and draws another one. Fails where a
    second run gives another score, or where the draw disturbs the random numbers of the program."""
    hashes = (
        "keywords:letter_frequency",
        {"let_relation": "at least", "letter": "#", "let_frequency": 4},
    )
    checkers = import_checkers("lm_eval")
    before = random.getstate()
    found = [
        [check(task(key, hashes), "eee aaaa tttt sss", checkers).strict for key in range(40)]
        for _ in range(2)
    ]
    assert found[0] == found[1] and [True] in found[0] and [False] in found[0]
    assert random.getstate() == before


def test_command_on_the_embedded_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An answerer's own texts under two instructions; files are IFEval's, and score the same again
    without asking. Fails where an answer is checked by another prompt's instructions."""
    rows = [
        task(
            1000 + n,
            NO_COMMA,
            ("length_constraints:number_words", {"relation": "less than", "num_words": WORDS}),
            prompt=p.prompt,
        )
        for n, p in enumerate(PROMPTS)
    ]
    write_rows(
        tmp_path / "input_data.jsonl",
        ({k: v for k, v in row.items() if k != "prompt_id"} for row in rows),
    )
    out = tmp_path / "out"
    run("m=world:expert", "--prompts", tmp_path / "input_data.jsonl", "--out", out)
    line = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())["m"]
    texts = [answer("expert", p, WORLD, 0) for p in PROMPTS]
    follows = [["," not in text, len(text.split()) < WORDS] for text in texts]
    accuracy = sum(map(all, follows)) / 20
    assert results["strict"]["prompt"]["accuracy"] == accuracy and 0 < accuracy < 1
    assert results["strict"]["instruction"]["accuracy"] == sum(map(sum, follows)) / 40
    assert f"{accuracy:.2f} [" in line and "n 20 and 40, 0 unanswered" in line
    strict = [row for _, row in read_rows([out / "m/eval_results_strict.jsonl"])]
    assert list(strict[0]) == [
        "follow_all_instructions",
        "follow_instruction_list",
        "instruction_id_list",
        "prompt",
        "response",
    ]
    assert [row["follow_instruction_list"] for row in strict] == follows
    assert [row["response"] for row in strict] == texts
    responses = [row for _, row in read_rows([out / "m/responses.jsonl"])]
    theirs = [{"prompt": row["prompt"], "response": row["response"]} for row in responses]
    write_rows(tmp_path / "theirs.jsonl", reversed(theirs))
    for file in (out / "m/responses.jsonl", tmp_path / "theirs.jsonl"):
        answers = f"m={file}"
        run(
            "--answers",
            answers,
            "--prompts",
            tmp_path / "input_data.jsonl",
            "--out",
            tmp_path / "again",
        )
        assert json.loads((tmp_path / "again/results.json").read_text())["m"] == results
    for rows_of, said in (
        (theirs[1:], "m: no answer to 1 of 20 prompts in its file, the first is '1000'"),
        ([*theirs, {"prompt": "other", "response": "x"}], "1 answers in its file.*'other'"),
    ):
        write_rows(tmp_path / "bad.jsonl", rows_of)
        with pytest.raises(BadInput, match=said):
            run(
                "--answers",
                f"m={tmp_path / 'bad.jsonl'}",
                "--prompts",
                tmp_path / "input_data.jsonl",
                "--out",
                tmp_path / "again",
            )


def test_other_instructions_come_from_ifbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package in the form of `ifbench`, which has to be installed by hand. Fails where its
    checkers are not used, or the message does not name the package that is missing."""
    tasks = [task(1, ("count:numbers", {"N": 3}), NO_COMMA)]
    monkeypatch.delitem(sys.modules, "ifbench", raising=False)
    monkeypatch.setitem(sys.modules, "ifbench.instructions_registry", None)
    with pytest.raises(
        BadInput, match="does not know 'count:numbers'; ifbench can't.*pip install ifbench"
    ):
        load_checkers(tasks)
    monkeypatch.delitem(sys.modules, "ifbench.instructions_registry")
    folder = tmp_path / "ifbench"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "instructions_registry.py").write_text(
        "class Numbers:\n"
        "    def __init__(self, name): self.name = name\n"
        "    def build_description(self, *, N): self.n = N\n"
        "    def get_instruction_args(self): return {'N': self.n}\n"
        "    def check_following(self, text): return sum(c.isdigit() for c in text) == self.n\n"
        "INSTRUCTION_DICT = {'count:numbers': Numbers, 'punctuation:no_comma': Numbers}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    checkers, package = load_checkers(tasks)
    numbers = task(1, ("count:numbers", {"N": 3, "keyword": None}))
    assert package == "ifbench" and check(numbers, "1 2 3", checkers).strict == [True]
    with pytest.raises(BadInput, match="key 1: kwargs .*'M': 3.*unexpected keyword"):
        check(task(1, ("count:numbers", {"M": 3})), "1", checkers)
    for name in ("ifbench", "ifbench.instructions_registry"):
        monkeypatch.delitem(sys.modules, name)


def test_missing_data_and_bad_rows_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a sentence counter without NLTK's data ends in NLTK's own page of text, or where
    a row without instructions counts as followed."""
    import nltk

    checkers = import_checkers("lm_eval")
    sentences = (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 1},
    )
    from lm_eval.tasks.ifeval import instructions_util

    instructions_util._get_sentence_tokenizer.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(BadInput, match="key 7: .*python -m nltk.downloader punkt_tab"):
        check(task(7, sentences), "One.", checkers)
    good = {key: value for key, value in task(1, NO_COMMA).items() if key != "prompt_id"}
    for bad in (
        [{**good, "instruction_id_list": [], "kwargs": []}],
        [{**good, "kwargs": []}],
        [good, good],
        [{key: value for key, value in good.items() if key != "key"}],
        [],
    ):
        write_rows(tmp_path / "bad.jsonl", bad)
        with pytest.raises(BadInput, match="bad.jsonl"):
            read_tasks(str(tmp_path / "bad.jsonl"))
    monkeypatch.setattr(instruction_following, "import_checkers", missing_package)
    with pytest.raises(BadInput, match=r"lm_eval can't be imported.*pip install 'zephyr\[eval\]'"):
        load_checkers([task(1, NO_COMMA)])


def missing_package(package: str) -> None:
    raise ImportError(f"No module named {package!r}")
