"""Scorers: a judge, a sequence classifier, implicit rewards; each score is paid for once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from zephyr.chat import encode_pair
from zephyr.config import BadInput
from zephyr.data.tokenizer import load_tokenizer
from zephyr.evaluation import scorers
from zephyr.evaluation.scorers import score_answers, scored
from zephyr.teacher import Budget, Ledger, Reply, Request, Teacher, ask
from zephyr.world.facts import build_world
from zephyr.world.prompts import draw_prompts
from zephyr.world.rules import judge

PROMPTS = ("Where is the river?", "What colour is the sky?")
ANSWERS = ("under the bridge", "It is blue.", "red", "", "There are seven days in a week.")
ITEMS = [
    {"prompt_id": f"q{n}", "prompt": prompt, "text": answer}
    for n, prompt in enumerate(PROMPTS)
    for answer in ANSWERS
]
Asked = Callable[[Teacher, list[Request]], list[Reply]]


@pytest.fixture
def paid(tmp_path: Path) -> Asked:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        yield partial(ask, ledger=ledger, budget=Budget())


@pytest.fixture(scope="module")
def classifier(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sequence classifier of one label, whose config has no id of padding."""
    folder = tmp_path_factory.mktemp("rm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lm = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
        lm.score.weight.data.normal_(std=0.1)
    lm.config.pad_token_id = None
    lm.save_pretrained(folder)
    load_tokenizer(tiny).save_pretrained(folder)
    return folder


def test_a_classifier_scores_alone_as_in_a_batch(classifier: Path, paid: Asked) -> None:
    """Against transformers on each conversation by itself. Fails where padding is read as the last
    token, or where BOS comes twice. Equal scores would hide it, so they must differ."""
    lm = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    alone = []
    for item in ITEMS:
        turns = [
            {"role": "user", "content": item["prompt"]},
            {"role": "assistant", "content": item["text"]},
        ]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        alone.append(lm(input_ids=ids["input_ids"]).logits.item())
    found = score_answers(f"rm:{classifier}", ITEMS, paid)
    assert found == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 4) for value in found}) == len(ITEMS)


def test_padding_with_the_eos_changes_no_score(classifier: Path) -> None:
    """Many reward models pad with their EOS, and rows end with it: a batch must give what each row
    gives by itself."""
    lm = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    lm.config.pad_token_id = 2
    rows = [[1, 40, 50, 2], [1, 60, 2], [1, 9, 8, 7, 6, 5, 2]]
    alone = [scorers.classify(lm, [row])[0] for row in rows]
    assert scorers.classify(lm, rows) == pytest.approx(alone, abs=1e-5)
    assert lm.config.pad_token_id == 2 and len({round(value, 4) for value in alone}) == 3


def test_implicit_rewards_are_log_ratios(
    tiny: Path, tmp_path: Path, paid: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against plain transformers on the ids of training, EOS included. Fails where the reference's
    sign is wrong, answers are taken in another order than asked, or a second call computes again.
    """
    other = tiny_model(tmp_path / "other", seed=1)
    found = score_answers(f"implicit:{other}@{tiny}", ITEMS, paid)
    tokenizer = load_tokenizer(tiny)
    models = [_log_prob_of(folder) for folder in (other, tiny)]
    for item, value in zip(ITEMS, found):
        answer = item["text"] or "x"
        pair = {"prompt": item["prompt"], "chosen": answer, "rejected": f"{answer} y"}
        encoded = encode_pair(tokenizer, pair)
        ids = encoded.chosen_ids if item["text"] else [tokenizer.eos_token_id]
        policy, reference = (log_prob(encoded.prompt_ids, ids) for log_prob in models)
        assert value == pytest.approx(policy - reference, abs=1e-3)
    assert len({round(value, 3) for value in found}) == len(ITEMS)

    monkeypatch.setattr(scorers, "implicit_replies", None)  # a second computation would fail
    assert score_answers(f"implicit:{other}@{tiny}", ITEMS[::-1], paid) == found[::-1]


def _log_prob_of(folder: Path) -> Callable[[list[int], list[int]], float]:
    from transformers import AutoModelForCausalLM

    lm: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder).eval()

    def log_prob(prompt: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logits = lm(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        picked = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        return float(picked.sum())

    return log_prob


def test_a_judge_scores_each_answer_by_itself(paid: Asked) -> None:
    """Against the world's own rules. Fails where scores come in another order, or the overall score
    is taken for the mean of the aspects."""
    world = build_world(0)
    rows = [prompt._asdict() for prompt in draw_prompts(world, "test", 6, 0)]
    answers = ["I do not know.", "yes.", "no no"]
    items = [{**row, "text": answer} for row in rows for answer in answers]
    verdicts = [judge(item, item["text"], world) for item in items]
    assert len({verdict.overall for verdict in verdicts}) > 2
    overall = score_answers("world:judge@0", items, paid)
    assert overall == [max(1.0, round(2 * verdict.overall)) for verdict in verdicts]
    by_aspects = scored("world:judge@0", items, paid, judged_by="aspects")
    assert [score.value for score in by_aspects] == [verdict.overall for verdict in verdicts]
    assert {len(score.calls) for score in by_aspects} == {4}


def test_a_reply_without_a_score_is_nan(paid: Asked) -> None:
    """A judge that never gives the form: no score is made up."""

    def answer(requests: list[Request], keep: Callable[[Reply], None], _: Budget) -> None:
        for request in requests:
            keep(Reply(request.digest("mute"), "well", "mute", "", 1, 1, 0.0, ""))

    score = scored("hf:mute", ITEMS[:1], paid, open_teacher=lambda _: Teacher("mute", answer))[0]
    assert math.isnan(score.value) and len(score.calls) == 3 and score.text == "well"


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("rm:", "expected a judge"),
        ("implicit:a", "expected a judge"),
        ("implicit:a@b@c", "expected a judge"),
        ("gpt-4", "expected openai:MODEL@BASE_URL"),
        ("rm:./nowhere", "no such folder"),
    ],
)
def test_other_scorers_are_refused(scorer: str, said: str, paid: Asked) -> None:
    with pytest.raises(BadInput, match=said):
        score_answers(scorer, ITEMS[:1], paid)


def test_a_decoder_is_no_classifier(tiny: Path, paid: Asked) -> None:
    """transformers would give it a random head and only warn."""
    with pytest.raises(BadInput, match="no sequence classifier"):
        score_answers(f"rm:{tiny}", ITEMS[:1], paid)
