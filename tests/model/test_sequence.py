"""Rows that several ranks compute together: attention, its exchanges, and what each rank has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import Launch
from sequence_ranks import PAIRS

from zephyr.packing import collate_pairs, share_of_row


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_attention_of_several_ranks_is_that_of_one(
    ranks: int, launch: Launch, tmp_path: Path
) -> None:
    """In float64, with shared prompts and without, with a window, and with fewer key heads than
    ranks. Fails where a head meets keys of another, tokens come back in another order, padding is
    a key, or the backward of an exchange is not its transpose. Values of scored tokens, and their
    gradients, are the same to the bit."""
    launch("tests/model/sequence_ranks.py", tmp_path / "out.pt", ranks=ranks)
    found = torch.load(tmp_path / "out.pt")
    assert len(found) == 1 + 2 * (1 + 3 * 2 * 4)
    assert max(found.values()) < 1e-13, found


@pytest.mark.parametrize("ranks", [2, 3, 4, 100])
def test_shares_are_the_row(ranks: int) -> None:
    """Every token and every scored token is on one rank, with its own position and target; shares
    are equal in length, and have as many scored tokens, but for three a pair at most. Fails
    where a first token of a response is lost, which the last token of its prompt predicts."""
    row = collate_pairs(PAIRS, range(len(PAIRS)))
    shares = [share_of_row(row, rank, ranks) for rank in range(ranks)]
    tokens = len(row.tokens_N)
    for name in ("tokens_N", "positions_N"):
        parts = [getattr(share, name) for share in shares]
        assert len({len(part) for part in parts}) == 1
        whole = torch.stack(parts, dim=1).flatten()
        assert torch.equal(whole[:tokens], getattr(row, name)) and not whole[tokens:].any()
    places, scored, targets = [], [], []
    for rank, share in enumerate(shares):
        assert share.share is not None and share.share.row_scored == len(row.targets_T)
        places.append(share.share.places_T)
        scored.append(share.scored_T * ranks + rank)
        targets.append(share.targets_T)
        first, rest = share.scored_T.tensor_split([share.num_unique_scored])
        assert len(first.unique()) == len(first) and len(rest.unique()) == len(rest)
        assert share.num_unique_scored == int((places[-1] < row.num_unique_scored).sum())
    order = torch.cat(places).argsort()
    assert torch.equal(torch.cat(places)[order], torch.arange(len(row.targets_T)))
    assert torch.equal(torch.cat(scored)[order], row.scored_T)
    assert torch.equal(torch.cat(targets)[order], row.targets_T)
    counts = [len(share.targets_T) for share in shares]
    assert max(counts) - min(counts) <= 3 * len(PAIRS)


def test_a_share_is_not_shared_again() -> None:
    """Else a rank would compute a part of its part, and log-probs would be missing in silence."""
    share = share_of_row(collate_pairs(PAIRS, [0]), 0, 2)
    with pytest.raises(ValueError, match="share of a rank already"):
        share_of_row(share, 0, 2)
