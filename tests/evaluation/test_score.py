"""`zephyr score`: rows, encoding, log-probs, rewards against a run's own ledger, and figures."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracle import Conversation, response_logps
from pair_files import jsonl
from runs import ledger, records
from scipy.stats import binomtest
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from zephyr import chat, cli
from zephyr.config import BadInput
from zephyr.data.encode import load_pairs
from zephyr.data.jsonl import read_rows
from zephyr.data.tables import write_table
from zephyr.data.tokenizer import from_sentencepiece, load_tokenizer
from zephyr.evaluation.questions import Limits, Question, load_questions
from zephyr.evaluation.reward_benchmarks import (
    TIES_WEIGHTS,
    reward_bench,
    reward_bench_2,
    ties_scores,
)
from zephyr.evaluation.reward_figures import decide
from zephyr.evaluation.reward_rows import SECTIONS
from zephyr.evaluation.score import score, score_model
from zephyr.evaluation.score_settings import Settings, read_settings
from zephyr.evaluation.statistics import share_with_interval
from zephyr.evaluation.token_texts import token_texts
from zephyr.training.tolerance import response_tolerance_nats

LLMBAR = {"input": "Name a colour.", "output_1": "Blue, as the sky.", "output_2": "", "label": 1}
PANDALM = {
    "idx": 7,
    "cmp_key": "a_b",
    "instruction": "Is it true?",
    "input": "All is one.",
    "response1": True,
    "response2": "No, not at all.",
    "annotator1": 2,
    "annotator2": 1,
    "annotator3": 2,
}
BEST_OF = {
    "id": "tied:3",
    "prompt": "Name a colour of the rainbow.",
    "chosen": ["Red.", "Blue is one of them.", "Green"],
    "rejected": ["The answer is four.", "Brown"],
    "num_correct": 3,
    "num_incorrect": 2,
    "total_completions": 5,
    "subset": "Ties",
    "models": ["a"],
    "additional_metadata": None,
}
REWARD_BENCH = {
    "id": 4,
    "prompt": "How are you?",
    "chosen": "I am well.",
    "rejected": "Go away, please.",
    "chosen_model": "a",
    "rejected_model": "b",
    "subset": "llmbar-natural",
}
BENCHMARK_ROWS = (LLMBAR, PANDALM, BEST_OF, REWARD_BENCH)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model with the tokenizer of the first."""
    return tiny_model(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture
def benchmark_file(tmp_path: Path) -> str:
    return jsonl(tmp_path / "rows.jsonl", BENCHMARK_ROWS)


def settings(model: Path, **given: object) -> Settings:
    return read_settings(str(model), given)


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(
        rng.choice("sky red four true river letter".split()) for _ in range(rng.randint(low, high))
    )


def test_rows_of_benchmarks_become_questions(tiny: Path, benchmark_file: str) -> None:
    """Which answers are the better ones, in which order, under which id and source. Fails where a
    label is read the other way round, or an answer is lost or given to another prompt."""
    tokenizer = load_tokenizer(tiny)
    questions = load_questions([benchmark_file], tokenizer, Limits())
    found = {}
    for question in questions.rows:
        texts = []
        for pair_number, side in question.places:
            pair = questions.pairs[pair_number]
            ids = pair.rejected_ids if side else pair.chosen_ids
            assert ids[-1] == tokenizer.eos_token_id
            texts.append(tokenizer.decode(ids[:-1]))
        prompt = tokenizer.decode(pair.prompt_ids)
        found[question.id] = (question.source, question.benchmark, question.better, prompt, texts)
    assert [of[:3] for of in found.values()] == [
        ("rows.jsonl", "LLMBar", 1),
        ("a_b", "PandaLM", 1),
        ("Ties", "RewardBench 2", 3),
        ("llmbar-natural", "RewardBench", 1),
    ]
    assert list(found) == ["rows.jsonl:1", "7", "tied:3", "4"]
    assert [of[4] for of in found.values()] == [
        ["Blue, as the sky.", ""],
        ["No, not at all.", "True"],
        [*BEST_OF["chosen"], *BEST_OF["rejected"]],
        ["I am well.", "Go away, please."],
    ]
    prompts = ["Name a colour.", "Is it true?\n\nAll is one.", BEST_OF["prompt"], "How are you?"]
    assert all(prompt in of[3] for prompt, of in zip(prompts, found.values()))


def test_answers_are_encoded_as_those_of_pairs(tiny: Path, tmp_path: Path) -> None:
    """A file of pairs gives the ids that training reads, cut or not, and LLMBar's rows give those
    of the same texts in a pair. Fails where scores would be of other ids than the run's."""
    rng, tokenizer = random.Random(0), load_tokenizer(tiny)
    rows = [
        {"prompt": words(rng, 1, 60), "chosen": words(rng, 1, 30), "rejected": words(rng, 31, 60)}
        for _ in range(40)
    ]
    plain = jsonl(tmp_path / "plain.jsonl", rows)
    labels = [rng.choice([1, 2]) for _ in rows]
    llmbar = jsonl(
        tmp_path / "llmbar.jsonl",
        (
            {
                "input": row["prompt"],
                "output_1": row[first],
                "output_2": row[second],
                "label": label,
            }
            for row, label in zip(rows, labels)
            for first, second in [("chosen", "rejected") if label == 1 else ("rejected", "chosen")]
        ),
    )
    limits = {"max_tokens": 90, "max_prompt_tokens": 40}
    expected, report = load_pairs([plain], tokenizer, **limits)
    assert report["cut"]["prompt"]["rows"] and report["cut"]["chosen"]["rows"]
    for file in (plain, llmbar):
        questions = load_questions([file], tokenizer, Limits(**limits))
        assert [pair[1:4] for pair in questions.pairs] == [pair[1:4] for pair in expected]
        assert 0 < questions.cut_rows < len(rows)


def test_answers_of_a_long_contest_follow_one_prompt(tiny: Path, tmp_path: Path) -> None:
    """Fails where the pair of a long answer has its prompt cut, and that of a short one has not:
    their log-probs would be of two questions."""
    row = {
        **BEST_OF,
        "prompt": "word " * 60,
        "chosen": ["A.", "B.", "C."],
        "rejected": ["D " * 70, "E"],
    }
    file, tokenizer = jsonl(tmp_path / "rows.jsonl", [row]), load_tokenizer(tiny)
    questions = load_questions([file], tokenizer, Limits(max_tokens=100, max_prompt_tokens=50))
    prompts = [pair.prompt_ids for pair in questions.pairs]
    assert len(prompts) == 3 and all(prompt == prompts[0] for prompt in prompts)
    assert len(prompts[0]) == 50 and questions.cut_rows == 1
    assert max(len(pair.chosen_ids) for pair in questions.pairs) <= 50


@pytest.mark.parametrize(
    "row, message",
    [
        ({**LLMBAR, "label": 3}, "`label` is int 3, expected 1 or 2"),
        ({**LLMBAR, "output_2": 5}, "`output_2` is int 5, expected a string"),
        ({**LLMBAR, "input": " "}, "empty"),
        ({**PANDALM, "annotator2": "2"}, "`annotator2` is str '2', expected 0 or 1 or 2"),
        ({**PANDALM, "annotator2": None}, "`annotator2` is missing"),
        ({**BEST_OF, "num_correct": 2}, "`num_correct` is int 2, expected 3"),
        ({**BEST_OF, "rejected": []}, "`rejected` is list [], expected a list of texts"),
        ({**BEST_OF, "chosen": "Red."}, "`chosen` is str 'Red.', expected a list of texts"),
        ({**REWARD_BENCH, "chosen": None}, "`chosen` is missing"),
        (json.dumps(REWARD_BENCH), "is also the id of"),
        ("{", "no valid JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_an_error_or_listed(
    row: object, message: str, tiny: Path, tmp_path: Path
) -> None:
    """Its file, line and field. Fails where a bad row is dropped in silence or stops at another
    place."""
    file, tokenizer = jsonl(tmp_path / "rows.jsonl", [REWARD_BENCH, row]), load_tokenizer(tiny)
    with pytest.raises(BadInput, match=re.escape(f"{file}:2: ") + ".*" + re.escape(message)):
        load_questions([file], tokenizer, Limits())
    questions = load_questions([file], tokenizer, Limits(on_bad_row="skip"))
    assert len(questions.rows) == 1
    ((place, reason),) = questions.skipped
    assert place == f"{file}:2" and message in reason


def test_rows_without_a_preference_are_counted(tiny: Path, tmp_path: Path) -> None:
    """Ties of PandaLM's annotators, also without a majority, and equal answers. Fails where one is
    scored as if it preferred an answer, or is lost from the counts."""
    no_majority = {**PANDALM, "idx": 8, "annotator3": 0}
    tied = {**PANDALM, "idx": 9, "annotator1": 0, "annotator3": 0}
    same = {**LLMBAR, "output_2": "Blue, as the sky. "}
    file = jsonl(tmp_path / "rows.jsonl", [PANDALM, no_majority, tied, same])
    questions = load_questions([file], load_tokenizer(tiny), Limits())
    assert [question.id for question in questions.rows] == ["7"]
    assert questions.left_out == {
        "a tie: the annotators prefer neither response": 2,
        "both sides equal but for white space": 1,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_answer_has_its_own_log_prob(
    dtype: str, tiny: Path, other: Path, tmp_path: Path
) -> None:
    """Packed as it comes, and one pair at a time, against the padded forward of transformers.
    Fails where an answer gets the log-prob of another, or tokens don't add up to it."""
    rng = random.Random(1)
    pairs = [
        {"prompt": words(rng, 1, 9), "chosen": words(rng, 1, 9), "rejected": words(rng, 10, 15)}
        for _ in range(6)
    ]
    file = jsonl(tmp_path / "rows.jsonl", [*BENCHMARK_ROWS, *pairs])
    options = settings(tiny, dtype=dtype)
    scored, _ = score([file], options, reference=str(other), per_token=True)
    encoded = scored.questions.pairs
    conversations = [
        Conversation(prompt + ids, [False] * len(prompt) + [True] * len(ids))
        for question in scored.questions.rows
        for pair_number, side in question.places
        for prompt, ids in [(encoded[pair_number].prompt_ids, encoded[pair_number][2 + side])]
    ]
    alone = score_model(
        str(tiny),
        encoded,
        options._replace(tokens_per_micro_batch=longest(encoded)),
        per_token=True,
    )
    places = [place for question in scored.questions.rows for place in question.places]
    for folder, logp_A, tokens in (
        (tiny, scored.logp_A, scored.token_logps),
        (other, scored.ref_logp_A, scored.ref_token_logps),
        (tiny, [alone.logp_P2[place] for place in places], [alone.tokens[p][s] for p, s in places]),
    ):
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        with torch.no_grad():
            expected_A = response_logps(lm, conversations)
        for i, (found, expected) in enumerate(zip(logp_A, expected_A.tolist(), strict=True)):
            count = scored.tokens_A[i]
            assert found == pytest.approx(expected, abs=response_tolerance_nats(dtype, count))
            assert len(tokens[i]) == count and tokens[i].sum() == pytest.approx(found, rel=1e-6)
    assert len({round(logp, 3) for logp in scored.logp_A}) == len(places)  # so no two can be mixed


def longest(pairs: object) -> int:
    return max(
        len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs
    )


def test_scores_are_those_of_the_run(finished: Path, tiny: Path, tmp_path: Path) -> None:
    """The exported model against the dSFT model gives the run's last evaluation, and the dSFT model
    the log-probs of the ledger at step 0. Fails where score and training differ in ids, settings,
    beta, or which model is the reference."""
    run, file = finished / "run", str(finished / "pairs.jsonl")
    options = settings(run)
    assert (options.model, options.reference) == (str(run / "model"), str(tiny))
    scored, _ = score([file], options, reference=str(tiny))
    rewards = scored.reward_A.reshape(-1, 2)
    last = records(run, "eval")[-1]
    expected = {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(),
        "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).mean(),
        "logps/chosen": scored.logp_A[::2].mean(),
        "logps/rejected": scored.logp_A[1::2].mean(),
        "loss": np.logaddexp(0, rewards[:, 1] - rewards[:, 0]).mean(),
    }
    assert {name: last[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert abs(last["rewards/margins"]) > 1e-3
    start, _ = score([file], settings(tiny, max_tokens=1024))
    numbers = {question.id: i for i, question in enumerate(start.questions.rows)}
    visits = [visit for visit in ledger(run) if visit["step"] == 0]
    assert len(visits) == 8
    for visit in visits:
        found = start.logp_A[2 * numbers[visit["id"]] :][:2]
        assert found == pytest.approx([visit["logps/chosen"], visit["logps/rejected"]], abs=1e-4)
        assert scored.ref_logp_A[2 * numbers[visit["id"]]] == pytest.approx(found[0], abs=1e-4)


def test_one_model_twice_is_said(
    tiny: Path, benchmark_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model as its own reference: each reward is 0, and each question counts as half. Fails where
    rounding decides, and an untrained model looks as if it had learned."""
    cli.run(["score", str(tiny), benchmark_file, "--reference", str(tiny)])
    printed = capsys.readouterr().out
    assert "Both models have the same weights: every reward is 0." in printed
    assert re.search(r"implicit reward accuracy +0\.525 ", printed)  # 3 of a half, and 3 of 5
    assert "in 4 the scores are equal" in printed


def test_two_tokenizers_are_refused(tiny: Path, benchmark_file: str, tmp_path: Path) -> None:
    """Fails where the reference reads ids that mean other tokens to it."""
    foreign = tiny_model(tmp_path / "foreign")
    path = foreign / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tree))
    with pytest.raises(BadInput, match="its tokenizer is another one"):
        score([benchmark_file], settings(tiny), reference=str(foreign))


def test_tables_and_tokens(tiny: Path, other: Path, benchmark_file: str, tmp_path: Path) -> None:
    """Three formats of one table; texts of tokens join to the answers, their log-probs to the
    row's. Fails where a side, a list or a format holds something else."""
    paths = [tmp_path / f"scores.{suffix}" for suffix in ("parquet", "csv", "jsonl")]
    options = ["--reference", str(other), "--out", str(paths[0]), "--per-token"]
    cli.run(["score", str(tiny), benchmark_file, *options])
    for path in paths[1:]:
        write_table(path, pq.read_table(paths[0]))
    rows = pq.read_table(paths[0]).to_pylist()
    assert rows == [row for _, row in read_rows([paths[2]])]
    with paths[1].open(newline="") as file:
        for row, of_csv in zip(rows, csv.DictReader(file), strict=True):
            assert float(of_csv["rewards/margins"]) == pytest.approx(row["rewards/margins"])
            assert json.loads(of_csv["token_texts/chosen"]) == row["token_texts/chosen"]
    assert "".join(rows[0]["token_texts/chosen"]) == "Blue, as the sky.</s>"
    assert rows[0]["token_texts/rejected"] == ["</s>"]
    for row in rows:
        for side in ("chosen", "rejected"):
            assert sum(row[f"token_logps/{side}"]) == pytest.approx(row[f"logps/{side}"], abs=1e-4)
            ref = row[f"ref_logps/{side}"]
            assert sum(row[f"ref_token_logps/{side}"]) == pytest.approx(ref, abs=1e-4)
            reward = 0.1 * (row[f"logps/{side}"] - ref)
            assert row[f"rewards/{side}"] == pytest.approx(reward, abs=1e-5)
            assert len(row[f"token_texts/{side}"]) == row[f"{side}_tokens"]
        better, worse = (row[f"rewards/{side}"] for side in ("chosen", "rejected"))
        assert row["correct"] == float(better > worse)
        assert row["rewards/margins"] == pytest.approx(better - worse)
    best_of = rows[2]
    assert best_of["rewards/chosen"] == max(best_of["rewards/answers"][:3])
    assert best_of["rewards/rejected"] == max(best_of["rewards/answers"][3:])


def test_results_as_json(
    tiny: Path, benchmark_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a reference: figures of log p only, in valid JSON. Fails where a reward is told that
    nothing gave."""
    cli.run(["score", str(tiny), benchmark_file, "--json"])
    results = json.loads(capsys.readouterr().out)
    assert set(results["all"]) == {
        "chosen is the likelier",
        "chosen is the likelier a token",
        "chosen is the longer",
    }
    assert results["rows"] == 4 and len(results["by_source"]) == 4
    assert set(results["benchmarks"]) == {"PandaLM", "RewardBench", "RewardBench 2"}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "scores.xlsx"], "--out: expected a name that ends in"),
        (["--per-token"], "--per-token: expected --out FILE"),
        (["--beta", "0"], "beta: expected a number above 0"),
        (["--max-tokens", "2"], "max_prompt_tokens"),
        (["--attention", "flash_attn"], "attention: flash_attn"),
    ],
)
def test_bad_options(options: list[str], message: str, tiny: Path, benchmark_file: str) -> None:
    """Fails where an option that can't be met is found out after minutes of scoring, or ignored."""
    with pytest.raises(BadInput, match=message):
        cli.run(["score", str(tiny), benchmark_file, *options])


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_texts_of_tokens_join_to_the_answer(
    kind: str, tiny: Path, request: pytest.FixtureRequest
) -> None:
    """Also where a character takes several tokens, and where a tokenizer hides a text's first
    space. Fails where a page of tokens shows other text than the answer."""
    tokenizer = load_tokenizer(tiny)
    if kind == "sentencepiece":
        folder = request.getfixturevalue("real_data") / "tokenizers"
        tokenizer = from_sentencepiece(folder / "mistral_v1_tokenizer.model")
    for answer in ("Yes, two\n\n and  two.", "naïve 日本語 🙂🙂!", " leading"):
        pair = {"prompt": "Say it.", "chosen": answer, "rejected": "no"}
        encoded = chat.tokenize_pair(tokenizer, pair, template=chat.ZEPHYR_TEMPLATE)
        texts = token_texts(tokenizer, encoded.prompt_ids[-1], encoded.chosen_ids)
        assert len(texts) == len(encoded.chosen_ids)
        assert "".join(texts) == answer + tokenizer.eos_token
        assert texts[-1] == tokenizer.eos_token


def question(id: str, source: str, answers: int, better: int = 1) -> Question:
    return Question(id, source, better, [(i // 2, i % 2) for i in range(answers)], "")


def test_decisions_against_their_definition() -> None:
    """Random questions of two to six answers, many scores equal to rounding, against plain Python.
    Fails where the best answer of a neighbour counts, or equal scores are given to one side."""
    rng = random.Random(0)
    questions = [
        question(str(i), "", n := rng.randint(2, 6), rng.randint(1, n - 1)) for i in range(300)
    ]
    whole_A = np.array([rng.randint(0, 4) for one in questions for _ in one.places], dtype=float)
    score_A = whole_A + np.array([rng.uniform(-2e-4, 2e-4) for _ in whole_A])
    found = decide(score_A, np.full(len(score_A), 1e-3), questions)
    start = 0
    for i, one in enumerate(questions):
        scores = whole_A[start : start + len(one.places)].tolist()
        better, worse = scores[: one.better], scores[one.better :]
        assert found.points_Q[i] == better.count(max(scores)) / scores.count(max(scores))
        assert found.is_tie_Q[i] == (max(better) == max(worse))
        middle = start + one.better
        assert found.better_Q[i] == start + score_A[start:middle].argmax()
        assert found.worse_Q[i] == middle + score_A[middle : start + len(scores)].argmax()
        start += len(scores)


def test_reward_bench_weights_math_as_all_code() -> None:
    """Its README: sections count by prompts, and math-prm as much as code. Fails where a section is
    a plain mean of subsets or of rows."""
    rows = {"mt-bench-hard": [1.0] * 3, "llmbar-natural": [0.0], "math-prm": [1.0] * 5}
    rows |= {"hep-cpp": [0.0] * 20, "hep-go": [1.0] * 10, "mt-bench-easy": [1.0, 0.5]}
    rows |= {"donotanswer": [0.0, 1.0]}
    questions = [
        question(str(i), name, 2) for name, points in rows.items() for i in range(len(points))
    ]
    figures = reward_bench(questions, np.concatenate([*rows.values()]))
    shares = {name: figure["share"] for name, figure in figures.items()}
    reasoning = (30 * 1.0 + 20 * 0.0 + 10 * 1.0) / 60
    expected = {"Chat": 0.75, "Chat Hard": 0.75, "Safety": 0.5, "Reasoning": reasoning}
    assert shares == pytest.approx({**expected, "score": sum(expected.values()) / 4})
    assert list(SECTIONS) == list(expected)
    assert "score" not in reward_bench(questions[:4], np.ones(4))


def test_ties_by_hand() -> None:
    """Prompts whose score the benchmark's own function gives: gap and spread of both rows. Fails
    where a part has another weight, takes the wrong row, or an unpaired row counts."""
    weights = TIES_WEIGHTS
    cases = {
        # tied gap 3 > spread 1; ref gap 2 > spread
        "0": ([5, 4, 1, 0], 2, [4, 2], 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * np.tanh(2 / 1 - 1)),
        # tied gap 3 > spread 1; ref gap 0.5 is not
        "1": ([5, 4, 1, 0], 2, [4, 3.5], 0.3 + 0.3 + 0.2 + 0.01 * np.tanh(0.5 - 1)),
        # tied gap -1; ref right
        "2": ([5, 1, 2], 2, [4, 0], 0.3 + 0.01 * np.tanh(-1 / 4 - 1)),
        # all right, but the gap 1 < spread 3 in both rows
        "4": ([5, 2, 1], 2, [4, 2], 0.3 + 0.3 + 0.01 * np.tanh(1 / 3 - 1)),
        # no spread: the limit of tanh
        "3": ([2, 2, 1], 2, [3, 1], 0.3 + 0.3 + 0.2 + 0.2 + 0.01),
    }
    assert sum(weights.values()) == pytest.approx(1.01)
    questions, rewards = [], []
    for name, (tied, better, ref, _) in cases.items():
        questions += [question(f"tied:{name}", "Ties", len(tied), better)]
        questions += [question(f"ref:{name}", "Ties", len(ref))]
        rewards += [np.array(tied, float), np.array(ref, float)]
    questions.append(question("tied:9", "Ties", 2))
    rewards.append(np.array([1.0, 0.0]))
    assert ties_scores(questions, rewards) == pytest.approx([case[3] for case in cases.values()])
    figures = reward_bench_2(questions, np.ones(len(questions)), rewards)
    assert set(figures) == {"Ties"}  # no score of all without the other subsets
    others = [question("1", name, 4) for name in ("Factuality", "Precise IF", "Math", "Safety")]
    more = [*questions, *others, question("1", "Focus", 4)]
    points = np.array([1.0] * len(questions) + [1.0, 0.0, 0.5, 1.0, 0.0])
    figures = reward_bench_2(more, points, [*rewards, *[np.zeros(4)] * 5])
    ties = np.mean([case[3] for case in cases.values()])
    assert figures["score"]["share"] == pytest.approx((2.5 + ties) / 6)


@pytest.mark.parametrize("right, n", [(0, 7), (7, 7), (13, 20), (1, 1)])
def test_interval_of_a_share_is_wilsons(right: int, n: int) -> None:
    """Against scipy. Fails where the formula is another: a small sample that is all right would be
    told to be certain."""
    found = share_with_interval("share", [1.0] * right + [0.0] * (n - right))
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert found["ci95"] == pytest.approx([expected.low, expected.high])
    assert found["share"] == right / n and found["n"] == n


def test_real_rows_of_llmbar(
    real_data: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published rows as they are. Fails where a field has another name or a label another
    meaning there."""
    files = [
        real_data / "preferences" / f"llmbar_processed_{name}.jsonl"
        for name in ("faireval", "llmeval2")
    ]
    sizes = [sum(1 for _ in read_rows([file])) for file in files]
    tokenizer = load_tokenizer(tiny)
    questions = load_questions([str(file) for file in files], tokenizer, Limits(max_tokens=4096))
    assert len(questions.rows) + sum(questions.left_out.values()) == sum(sizes)
    first = next(row for _, row in read_rows([files[0]]))
    better = tokenizer.decode(questions.pairs[0].chosen_ids[:-1])
    assert better == first[f"output_{first['label']}"][: len(better)]
