"""Samples come from the distribution that they should, and belong to their request alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zephyr.chat import encode_prompt
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.generate import Answer, generate, generate_from_ids, prompt_ids, sampler
from zephyr.model.load import load_policy

Model = tuple[PreTrainedModel, PreTrainedTokenizerBase]
USER = [{"role": "user", "content": "What colour is the sky?"}]
SAMPLES = 4000


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_policy(tiny).lm, load_tokenizer(tiny)


def next_logits(model: Model) -> Tensor:
    """Of the first token of the answer to `USER` [V]."""
    with torch.no_grad():
        return model[0](torch.tensor([prompt_ids(*model, USER, 1)])).logits[0, -1]


def drawn(logits_V: Tensor, **settings: float) -> Tensor:
    """How often each token is taken, of as many seeds as there are SAMPLES [V]."""
    rows = [[0]] * SAMPLES
    scores_BV = logits_V.repeat(SAMPLES, 1)
    for warp in sampler(
        rows,
        range(SAMPLES),
        **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, **settings},
        device=torch.device("cpu"),
    ):
        scores_BV = warp(torch.tensor(rows), scores_BV)
    return scores_BV.argmax(-1).bincount(minlength=len(logits_V))


def assert_drawn_from(counts_V: Tensor, p_V: Tensor) -> None:
    """Chi-squared over tokens that are expected 5 times or more, and the rest together, below its
    mean + 5 standard deviations."""
    expected_V = p_V.double() * SAMPLES
    often = expected_V >= 5
    expected, found = (
        torch.cat([x[often].double(), x[~often].sum()[None].double()])
        for x in (expected_V, counts_V)
    )
    used = expected > 0
    freedom = int(used.sum()) - 1
    chi2 = ((found - expected)[used] ** 2 / expected[used]).sum().item()
    assert (
        freedom > 1 and chi2 < freedom + 5 * (2 * freedom) ** 0.5 and counts_V[p_V == 0].sum() == 0
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_softmaxs(model: Model, temperature: float) -> None:
    """Fails where the noise is no Gumbel noise, comes before the temperature, or one seed's
    resembles the next one's."""
    logits_V = next_logits(model)
    assert_drawn_from(
        drawn(logits_V, temperature=temperature), (logits_V / temperature).softmax(-1)
    )
    with pytest.raises(AssertionError):
        assert_drawn_from(
            drawn(logits_V, temperature=temperature), (logits_V / (1.5 * temperature)).softmax(-1)
        )


def test_tails_are_cut(model: Model) -> None:
    """top_k keeps the k likeliest; top_p the fewest that reach p together; what is kept keeps its
    proportions."""
    p_V = next_logits(model).softmax(-1)
    by_p = p_V.argsort(descending=True)
    nucleus = int((p_V[by_p].cumsum(-1) < 0.5).sum()) + 1
    for settings, kept in (
        ({"top_k": 5}, by_p[:5]),
        ({"top_p": 0.5}, by_p[:nucleus]),
        ({"top_k": 9, "top_p": 1.0}, by_p[:9]),
    ):
        cut_V = torch.zeros_like(p_V).index_copy(0, kept, p_V[kept])
        assert_drawn_from(drawn(p_V.log(), **settings), cut_V / cut_V.sum())
    assert (
        drawn(p_V.log(), top_p=1e-6).argmax() == by_p[0]
        and drawn(p_V.log(), top_k=1)[by_p[0]] == SAMPLES
    )


def test_the_models_own_samples(model: Model) -> None:
    """Through transformers' whole loop: the frequencies of the first token, 1,000 prompts of it at
    a time. Fails where the processor is not reached, its rows are mixed up, or a model's own
    sampling settings get in between."""
    ids, p_V = prompt_ids(*model, USER, 1), next_logits(model).softmax(-1)
    vocabulary = [model[1].decode([i], skip_special_tokens=True) for i in range(len(p_V))]
    answers = generate_from_ids(
        *model, [ids] * SAMPLES, [1] * SAMPLES, range(SAMPLES), temperature=1.0, batch=1000
    )
    counts = dict.fromkeys(vocabulary, 0) | {a.text: 0 for a in answers}
    for answer in answers:
        counts[answer.text] += 1
    texts = list(dict.fromkeys(vocabulary))
    p_of = torch.tensor(
        [sum(p for p, text in zip(p_V.tolist(), vocabulary) if text == own) for own in texts]
    )
    assert_drawn_from(torch.tensor([counts[text] for text in texts]), p_of)


def test_an_answer_belongs_to_its_request(model: Model) -> None:
    """Shuffled, in other batches, alone, with other limits beside it: the same samples, and the
    global random state is untouched. Fails where a row's noise depends on its place, or a
    neighbour's limit cuts it."""
    encoded = [
        prompt_ids(*model, [{"role": "user", "content": "Why? " * (i % 7 + 1)}], 12)
        for i in range(20)
    ]
    limits, seeds = [3 + i % 9 for i in range(20)], [i // 2 for i in range(20)]
    before = torch.get_rng_state()

    def answers(order: list[int], batch: int) -> list[Answer]:
        found = generate_from_ids(
            *model,
            [encoded[i] for i in order],
            [limits[i] for i in order],
            [seeds[i] for i in order],
            temperature=1.0,
            top_p=0.9,
            top_k=50,
            batch=batch,
        )
        return [answer for _, answer in sorted(zip(order, found))]

    first = answers(list(range(20)), 20)
    assert all(
        (a.finish_reason == "length") == (a.completion_tokens == n) or a.finish_reason == "stop"
        for a, n in zip(first, limits)
    )
    assert all(a.completion_tokens <= n for a, n in zip(first, limits))
    assert len({a.text for a in first}) > 15 and all(
        a.prompt_tokens == len(ids) for a, ids in zip(first, encoded)
    )
    assert (
        answers(random.Random(0).sample(range(20), 20), 7) == first
        and answers(list(range(20)), 1) == first
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_it_ends_at_eos(model: Model) -> None:
    """Greedy answers of which a token is made the EOS: the text ends before it, which counts. Fails
    where what follows is kept."""
    lm, tokenizer = model
    ids = prompt_ids(lm, tokenizer, USER, 8)
    with torch.no_grad():
        tokens = lm.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=2,
        )[0, len(ids) :].tolist()
    end = next(n for n in range(2, 8) if tokens[n] not in tokens[:n])
    was, tokenizer.eos_token = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(tokens[end])
    try:
        found = generate_from_ids(lm, tokenizer, [ids, ids], [8, end], [0, 0])
    finally:
        tokenizer.eos_token = was
    assert [(a.finish_reason, a.completion_tokens) for a in found] == [
        ("stop", end + 1),
        ("length", end),
    ]
    assert found[1].text == tokenizer.decode(tokens[:end], skip_special_tokens=True)


def test_prompt_and_answer_fit_the_positions(model: Model) -> None:
    """To the last one. Fails where the prompt does not count, or the last position is not used."""
    lm, tokenizer = model
    room = lm.config.max_position_embeddings - len(prompt_ids(lm, tokenizer, USER, 1))
    assert 0 < room < lm.config.max_position_embeddings and prompt_ids(lm, tokenizer, USER, room)
    with pytest.raises(
        ValueError,
        match=f"with {room + 1} new ones that is over the model's "
        f"{lm.config.max_position_embeddings} positions",
    ):
        prompt_ids(lm, tokenizer, USER, room + 1)


def test_the_whole_conversation_is_answered(model: Model) -> None:
    """Fails where a turn before the question is left out."""
    turns = [
        *USER,
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "At night?"},
    ]
    assert prompt_ids(*model, turns, 1) == encode_prompt(
        model[1], turns, template=model[1].chat_template
    )
    assert (
        len(prompt_ids(*model, turns, 1))
        > len(prompt_ids(*model, USER, 1))
        > len(prompt_ids(*model, turns[-1:], 1))
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_model_answers_without_dropout_and_trains_on_as_it_did(
    training: bool, model: Model
) -> None:
    """Also behind an error. Fails where answers are those of a model that trains, or the rest of
    the training is without dropout, or an evaluation with it."""
    lm, tokenizer = model
    modes: list[bool] = []
    hook = lm.get_input_embeddings().register_forward_hook(lambda *_: modes.append(lm.training))
    try:
        lm.train(training)
        generate_from_ids(lm, tokenizer, [prompt_ids(lm, tokenizer, USER, 2)], [2], [0])
        assert lm.training == training and set(modes) == {False}
        with pytest.raises(IndexError):
            generate_from_ids(lm, tokenizer, [[10**6]], [2], [0])
        assert lm.training == training
    finally:
        hook.remove()
        lm.eval()


def test_prompts_with_one_seed_are_drawn_apart() -> None:
    """The usual way to ask: one seed for all. Fails where every prompt of an evaluation gets the
    same noise, so that its answers fall together."""
    even_BV = torch.zeros(50, 1000)
    (_, noise) = sampler([[i] for i in range(50)], [3] * 50, 1.0, 1.0, 0, torch.device("cpu"))
    drawn_B = noise(torch.tensor([[0]]), even_BV).argmax(-1)
    assert len(set(drawn_B.tolist())) > 40


def test_noise_is_as_fine_as_a_vocabulary_is_large() -> None:
    """Of 128,000 tokens, as large vocabularies have: hardly two get the same noise, none an
    infinite one. Fails where its dtype rounds: ties go to the first tokens, and a zero is drawn for
    certain."""
    (_, noise) = sampler([[0]], [0], 1.0, 1.0, 0, torch.device("cpu"))
    found_V = noise(torch.tensor([[0]]), torch.zeros(1, 128_000, dtype=torch.float64))[0]
    assert found_V.isfinite().all() and len(found_V.unique()) > 127_990


def test_one_limit_and_seed_for_each(model: Model) -> None:
    """Fails where a sequence of limits or seeds is not that of the prompts, or a single one is not
    for all."""
    prompts = [USER, [{"role": "user", "content": "Hi"}]]
    together = generate(*model, prompts, max_new_tokens=[4, 9], seed=[5, 6], temperature=1.0)
    assert together == [
        generate(*model, [p], max_new_tokens=n, seed=s, temperature=1.0)[0]
        for p, n, s in zip(prompts, (4, 9), (5, 6))
    ]
    assert generate(*model, prompts, max_new_tokens=9, seed=6, temperature=1.0)[1] == together[1]
    with pytest.raises(ValueError, match="positions"):
        generate(*model, prompts, max_new_tokens=[4, 10**6])
    with pytest.raises(ValueError):
        generate(*model, prompts, max_new_tokens=[4])
