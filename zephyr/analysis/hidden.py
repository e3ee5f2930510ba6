"""The pairs of a run pass through a model once more: hidden states of their responses, and CHES.

Shape letters:
    N  tokens of the packed row
    T  scored tokens
    D  hidden size
    R  responses of a batch: all chosen ones, then all rejected ones
    P  pairs
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from zephyr import chat, progress
from zephyr.analysis.pairs import pair_rows, source_root
from zephyr.analysis.runs import Run
from zephyr.analysis.visits import TOKENS, Floats, Visits
from zephyr.chat import EncodedPair
from zephyr.config import BadInput
from zephyr.data.template import TEMPLATE_FILE
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.load import DTYPES, load_policy
from zephyr.model.policy import Policy
from zephyr.packing import PackedBatch, collate_pairs, plan_pass

BUDGET_TOKENS = {"cpu": 2048, "cuda": 16384}  # of a micro-batch, or a pair's where it is longer


class HiddenStates(NamedTuple):
    """What one forward pass says of pairs, in the order that they were given.

    A hidden state is the last layer's, after the final norm, at a position that predicts a token of
    the response: the last of the prompt, and all of the response but its last (EOS).
    """

    ches_P: Floats  # Centered hidden embedding similarity, NaN where a pair was not passed through
    ches_normalized_P: Floats
    difference_PD: Floats  # mean hidden state of the chosen response less that of the rejected one


def hidden_states(run: Run, visits: Visits, model: str | None = None) -> HiddenStates:
    """Pass the pairs that a run trained on through a model, as the run encoded them.

    Args:
        model: folder or hub id; None: the run's `model`, which is its reference.
    Returns: in the order of `visits.ids`; NaN for a pair whose row is gone.
    Raises: BadInput where the rows or the model can't be read, or where the pairs are not those
        that were trained: their numbers of tokens are others.
    """
    tokenizer = run_tokenizer(run)
    found = {pair.id: pair for pair in encoded_pairs(run, tokenizer)}
    require_same_tokens(run, visits, found)
    passed = [i for i, id in enumerate(visits.ids) if id in found]
    path = model or rooted_model(run, str(run.config["model"]))
    of_passed = pass_through(load(run, path), [found[visits.ids[i]] for i in passed])
    whole = []
    for values in of_passed:
        of_all = np.full((len(visits.ids), *values.shape[1:]), np.nan)
        of_all[passed] = values
        whole.append(of_all)
    return HiddenStates(*whole)


def run_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer of a run, with the chat template that it kept. Raises: BadInput."""
    named = str(run.config.get("tokenizer") or run.config["model"])
    eos_token = run.config.get("eos_token")
    kept = run.folder / TEMPLATE_FILE
    template = str(kept) if kept.is_file() else str(run.config.get("chat_template", "auto"))
    return load_tokenizer(
        rooted_model(run, named), template, None if eos_token is None else str(eos_token)
    )


def rooted_model(run: Run, name: str) -> str:
    """The folder of a model from where the run was started, if it is there; else the name."""
    path = source_root(run) / name
    return str(path) if path.is_dir() else name


def encoded_pairs(run: Run, tokenizer: PreTrainedTokenizerBase) -> Iterator[EncodedPair]:
    """The pairs of a run's rows as the run encoded them; those that it dropped are left out."""
    template = str(tokenizer.chat_template)
    bos_id = chat.template_bos(tokenizer, template)
    max_tokens = run.config["data.max_tokens"]
    max_prompt_tokens = run.config["data.max_prompt_tokens"]
    assert isinstance(max_tokens, int) and isinstance(max_prompt_tokens, int), "a run's own config"
    for row in pair_rows(run):
        try:
            whole = chat.tokenize_pair(
                tokenizer,
                {**row.fields, "id": row.id},
                template=template,
                left_out=[],
                encoding=str(run.config.get("data.encoding", "zephyr")),
            )
        except ValueError:  # a bad row, which the run has refused or skipped
            continue
        pair = chat.truncate_pair(
            whole,
            max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens,
            truncation=str(run.config.get("data.truncation", "keep_end")),
            bos_id=bos_id,
        )
        if pair.chosen_ids != pair.rejected_ids:
            yield pair


def require_same_tokens(run: Run, visits: Visits, found: dict[str, EncodedPair]) -> None:
    """Raises: BadInput where pairs have other numbers of tokens than in the run's ledger."""
    other = []
    for i, id in enumerate(visits.ids):
        pair = found.get(id)
        if pair is None:
            continue
        lengths = [len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)]
        if lengths != [int(visits.tokens[name][i]) for name in TOKENS]:
            other.append(id)
    if other or found.keys().isdisjoint(visits.ids):
        what = f"{len(other)} pairs have" if other else "no pair is found; pairs have"
        raise BadInput(
            f"{run.folder}: {what} other numbers of tokens than in the run ({', '.join(other[:3])})"
            ", expected the rows of data.train and the tokenizer as they were when it trained"
        )


def load(run: Run, path: str) -> Policy:
    """The model on the GPU with the run's kernels, or on the CPU in float32 with sdpa."""
    on_gpu = torch.cuda.is_available()
    attention = str(run.config.get("hardware.attention", "sdpa")) if on_gpu else "sdpa"
    dtype = DTYPES[str(run.config.get("hardware.dtype", "float32"))] if on_gpu else torch.float32
    longest = run.config.get("data.max_tokens")
    max_tokens = longest if isinstance(longest, int) else None
    policy = load_policy(path, attention=attention, dtype=dtype, max_tokens=max_tokens)
    return policy.to("cuda" if on_gpu else "cpu").eval()


@torch.no_grad()
def pass_through(policy: Policy, pairs: Sequence[EncodedPair]) -> HiddenStates:
    """The hidden states of pairs, in the order given, packed with shared prompts as in training."""
    device = next(policy.parameters()).device
    lengths = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
    budget = max(BUDGET_TOKENS[device.type], *lengths)
    ches_P, normalized_P = np.empty(len(pairs)), np.empty(len(pairs))
    difference_PD: Floats | None = None
    plan = plan_pass(lengths, ranks=1, budget_tokens=budget)
    with progress.Bar("hidden states", len(pairs), "pairs") as bar, kept_hidden(policy) as kept:
        for indices in plan.steps[0].ranks[0]:
            batch = collate_pairs(pairs, indices).to(device)
            policy(batch)
            sum_RD = response_sums(kept.pop(), batch)
            chosen_PD, rejected_PD = sum_RD[: batch.units], sum_RD[batch.units :]
            counts_R = batch.response_tokens_R.double()
            mean_chosen_PD = chosen_PD / counts_R[: batch.units, None]
            mean_rejected_PD = rejected_PD / counts_R[batch.units :, None]
            places = list(batch.indices)
            if difference_PD is None:
                difference_PD = np.empty((len(pairs), sum_RD.shape[1]), np.float32)
            ches_P[places] = ches(chosen_PD, rejected_PD).cpu().numpy()
            normalized_P[places] = ches(mean_chosen_PD, mean_rejected_PD).cpu().numpy()
            difference_PD[places] = (mean_chosen_PD - mean_rejected_PD).float().cpu().numpy()
            bar.update(batch.units)
    assert difference_PD is not None, "there is at least one pair"
    return HiddenStates(ches_P, normalized_P, difference_PD)


def ches(chosen_PD: Tensor, rejected_PD: Tensor) -> Tensor:
    """Centered hidden embedding similarity [P]: <c, r> - |c|^2.

    Razin et al. 2024 (arXiv:2410.08847), Definition 2. c and r are the sums of the hidden states
    that predict the tokens of the chosen and of the rejected response: sum_k h(x, y_<k). A pair
    with a high score tends to lower the likelihood of its chosen response in training. With means
    for sums it is the paper's length-normalised score, by which responses of other lengths can be
    compared.
    """
    return (chosen_PD * rejected_PD).sum(-1) - chosen_PD.square().sum(-1)


def response_sums(hidden_TD: Tensor, batch: PackedBatch) -> Tensor:
    """Sum of the hidden states of each response [R, D], in float64."""
    return torch.segment_reduce(
        hidden_TD.double(), "sum", lengths=batch.response_tokens_R, unsafe=True
    )


@contextmanager
def kept_hidden(policy: Policy) -> Iterator[list[Tensor]]:
    """A list that gets the hidden states [T, D] which each forward pass gives to the head."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0])

    handle = policy.lm.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
