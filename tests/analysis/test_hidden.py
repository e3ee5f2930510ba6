"""Hidden states and CHES of packed pairs are those of plain forward passes, one response each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pair_files import jsonl, pair_rows
from test_pair_texts import run_of
from transformers import AutoModelForCausalLM

from zephyr.analysis.hidden import encoded_pairs, hidden_states, run_tokenizer
from zephyr.analysis.runs import Run
from zephyr.analysis.visits import LOG_PROBS, TOKENS, VALUES, Visits
from zephyr.config import BadInput


def run_on(tiny: Path, folder: Path, rows: list[dict[str, object]]) -> Run:
    config = {
        "model": str(tiny),
        "chat_template": "zephyr",
        "data.max_tokens": 64,
        "data.max_prompt_tokens": 40,
    }
    return run_of(folder, [jsonl(folder / "pairs.jsonl", rows)], **config)


def ledger(run: Run) -> Visits:
    """One visit of each pair, in another order than that of the rows."""
    pairs = list(encoded_pairs(run, run_tokenizer(run)))[::-1]
    lengths = [[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs]
    count_V = np.arange(len(pairs))
    return Visits(
        [pair.id for pair in pairs],
        count_V,
        np.zeros_like(count_V),
        count_V,
        np.zeros(len(pairs)),
        dict.fromkeys((*VALUES, *LOG_PROBS), np.zeros(len(pairs))),
        dict(zip(TOKENS, np.array(lengths).T)),
    )


def naive_sum(model: torch.nn.Module, prompt_ids: list[int], ids: list[int]) -> torch.Tensor:
    """sum_k h(x, y_<k): the last layer's states from the prompt's last token to the response's
    last but one, each response alone in its own forward pass, without padding or packing."""
    states = model(torch.tensor([prompt_ids + ids]), output_hidden_states=True).hidden_states[-1]
    first = len(prompt_ids) - 1
    return states[0, first : first + len(ids)].double().sum(0)


@torch.no_grad()
def test_ches_is_that_of_plain_forward_passes(tiny: Path, tmp_path: Path) -> None:
    """Razin et al. 2024 (arXiv:2410.08847): <c, r> - |c|^2 of sums, and of means. Fails where a
    position is off by one, the sides are exchanged, pairs are returned in the order of packing, or
    a row is taken for another pair's."""
    run = run_on(tiny, tmp_path, pair_rows(9))
    visits = ledger(run)
    found = hidden_states(run, visits)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    pairs = {pair.id: pair for pair in encoded_pairs(run, run_tokenizer(run))}
    assert len(pairs) == 9 and visits.ids != list(pairs)
    for i, id in enumerate(visits.ids):
        prompt_ids, chosen_ids, rejected_ids = pairs[id][1:4]
        chosen = naive_sum(model, prompt_ids, chosen_ids)
        rejected = naive_sum(model, prompt_ids, rejected_ids)
        lengths = len(chosen_ids), len(rejected_ids)
        expected = (chosen @ rejected - chosen @ chosen).item()
        by_length = (chosen @ rejected / (lengths[0] * lengths[1])) - (
            chosen @ chosen / lengths[0] ** 2
        )
        difference = chosen / lengths[0] - rejected / lengths[1]
        assert found.ches_P[i] == pytest.approx(expected, rel=1e-4)
        assert found.ches_normalized_P[i] == pytest.approx(by_length.item(), rel=1e-4)
        np.testing.assert_allclose(found.difference_PD[i], difference, rtol=1e-3, atol=1e-5)


def test_a_row_that_is_gone_has_none(tiny: Path, tmp_path: Path) -> None:
    """Fails where the states of the rows that are left move to other pairs."""
    rows = [{"id": f"p{i}", **row} for i, row in enumerate(pair_rows(5))]
    run = run_on(tiny, tmp_path, rows)
    visits = ledger(run)
    whole = hidden_states(run, visits)
    fewer = hidden_states(run_on(tiny, tmp_path, rows[:2] + rows[3:]), visits)
    gone = visits.ids.index("p2")
    left = [i for i in range(5) if i != gone]
    assert np.isnan(fewer.ches_P[gone]) and np.isnan(fewer.difference_PD[gone]).all()
    np.testing.assert_allclose(fewer.ches_P[left], whole.ches_P[left], rtol=1e-4)


def test_other_rows_than_those_of_training_are_refused(tiny: Path, tmp_path: Path) -> None:
    """Fails where the texts of a file that was written anew are taken for those of the run."""
    run = run_on(tiny, tmp_path, pair_rows(4))
    visits = ledger(run)
    other = run_on(tiny, tmp_path, pair_rows(5)[1:])
    with pytest.raises(BadInput, match="4 pairs have other numbers of tokens than in the run"):
        hidden_states(other, visits)
    renamed = run_on(tiny, tmp_path, [{"id": "x", **row} for row in pair_rows(1)])
    with pytest.raises(BadInput, match="no pair is found"):
        hidden_states(renamed, visits)
