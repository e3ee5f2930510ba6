"""The examples of a micro-batch become one packed row of tensors, with the layout attention needs.

A row has no padding and no batch dimension: segments follow each other, and each attends only to
itself. A preference pair shares its prompt: the prompt is computed once, for both responses. The
row is `prompt chosen` of every pair, then `rejected` of every pair:

    queries  prompt1 chosen1  prompt2 chosen2 | rejected1          rejected2
    keys     prompt1 chosen1  prompt2 chosen2 | prompt1 rejected1  prompt2 rejected2

These are S = 4 segments. The queries are the row itself. The keys left of the bar are the row's
own; those right of it are appended, so that `rejected1` sees the keys of `prompt1 rejected1`.

One variable-length attention call computes the whole row: where a segment has more keys than
queries, the causal mask is aligned at the bottom right (`zephyr.model.attention`). The positions of
a rejected response start at the length of its prompt. The last token of a prompt predicts the first
token of both responses.

Shape letters:
    N  tokens of the row
    S  segments of the row; one segment is one causal attention
    A  keys appended for the rejected responses of shared prompts; 0 where no prompt is shared
    M  keys of the row: its own keys, then the A appended ones; M = N where no prompt is shared
    T  scored tokens: those with a log-probability in the loss
    P  preference pairs
    R  responses (two a pair, all chosen before all rejected) or texts: T is the sum over R
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from zephyr.chat import EncodedPair, EncodedText


@dataclass(frozen=True)
class Layout:
    """Where the segments of a row begin and end, and which keys each of them sees.

    Lengths are Python integers: reading them never waits for a device.
    """

    query_lengths: tuple[int, ...]  # S lengths, in the order of the row; they sum to N
    key_lengths: tuple[int, ...]  # S lengths, each >= its query length
    cu_query: Tensor  # int32 [S + 1], cumulative query lengths, from 0 to N
    cu_key: Tensor  # int32 [S + 1]; the same tensor as cu_query where no prompt is shared
    num_own_keys: int  # n: the first n keys are those of the row's first n tokens
    # int64, row positions of the keys after those; no position occurs twice. None: A is 0.
    appended_A: Tensor | None

    @property
    def max_query(self) -> int:
        """Queries of the longest segment."""
        return max(self.query_lengths)

    @property
    def max_key(self) -> int:
        """Keys of the longest segment: the tokens of the longest sequence in the row."""
        return max(self.key_lengths)

    def to(self, device: torch.device | str) -> "Layout":
        """The same layout with its tensors on a device."""
        cu_query = copy_tensor(self.cu_query, device)
        one_tensor = self.cu_key is self.cu_query
        return replace(
            self,
            cu_query=cu_query,
            cu_key=cu_query if one_tensor else copy_tensor(self.cu_key, device),
            appended_A=None if self.appended_A is None else copy_tensor(self.appended_A, device),
        )


@dataclass(frozen=True)
class Share:
    """Which scored tokens of a row a batch has, where several ranks compute the row together
    (`zephyr.packing.share`)."""

    places_T: Tensor  # int64, ascending: of this rank's scored tokens among all of the row
    row_scored: int  # all scored tokens of the row


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: a row of tokens, and the tokens whose log-probabilities the loss needs.

    The hidden state at position `scored_T[t]` predicts the token `targets_T[t]`. Scored tokens lie
    response by response. In a batch of pairs, the chosen response of pair i is response i and its
    rejected response is response `units + i`.
    """

    tokens_N: Tensor  # int64, token ids
    positions_N: Tensor  # int64, position of each token in its own sequence
    layout: Layout
    scored_T: Tensor  # int64, row positions that predict the scored tokens, not those of the tokens
    targets_T: Tensor  # int64, token ids
    response_tokens_R: Tensor  # int64, scored tokens of each response; they sum to T
    # n: scored_T[:n] has no repeats, and neither has scored_T[n:]
    num_unique_scored: int
    indices: tuple[int, ...]  # of the examples, as the plan numbers them
    units: int  # pairs, or target tokens
    weight_P: Tensor  # float32, of each pair in sums and means; empty for texts
    share: Share | None = None  # None: tokens and scored tokens are those of the whole row

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch with its tensors on a device."""
        share = self.share
        if share is not None:
            share = replace(share, places_T=copy_tensor(share.places_T, device))
        return replace(
            self,
            tokens_N=copy_tensor(self.tokens_N, device),
            positions_N=copy_tensor(self.positions_N, device),
            layout=self.layout.to(device),
            scored_T=copy_tensor(self.scored_T, device),
            targets_T=copy_tensor(self.targets_T, device),
            response_tokens_R=copy_tensor(self.response_tokens_R, device),
            weight_P=copy_tensor(self.weight_P, device),
            share=share,
        )


def copy_tensor(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; to a GPU through pinned memory, so the host does not wait."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def collate_pairs(
    examples: Sequence[EncodedPair], indices: Sequence[int], *, prefix_sharing: bool = True
) -> PackedBatch:
    """Pack the preference pairs `examples[i]`, i in `indices`, into one row.

    Args:
        examples: all encoded pairs of the data set.
        indices: the pairs of this micro-batch. Empty: the row is one token and scores nothing, for
            a rank that has no pairs in a micro-batch but must join the collectives.
        prefix_sharing: compute each prompt once, as drawn at the top of this module. False: the row
            is `prompt chosen` of every pair, then `prompt rejected` of every pair.

    Raises:
        ValueError: a prompt or response is empty; names the example.
    """
    pairs = [examples[i] for i in indices]
    for i, pair in zip(indices, pairs):
        if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):
            raise ValueError(
                f"example {i}: prompt, chosen and rejected need at least one token each"
            )
    # All lists below have two entries a pair: those of the chosen responses, then, from `num_pairs`
    # on, those of the rejected ones.
    num_pairs = len(pairs)
    prompts = [pair.prompt_ids for pair in pairs] * 2
    responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    segments = [prompt + response for prompt, response in zip(prompts, responses)]
    key_lengths = [len(segment) for segment in segments]
    if prefix_sharing:
        segments[num_pairs:] = responses[num_pairs:]
    # The positions of each response in the row, and the end of its prompt, whose last token
    # predicts the first of the response.
    ends = accumulate(len(segment) for segment in segments)
    places = [range(end - len(response), end) for end, response in zip(ends, responses)]
    prompt_ends = [place.start for place in places]
    appended: list[int] = []
    if prefix_sharing:
        prompt_ends[num_pairs:] = prompt_ends[:num_pairs]
        rejected = zip(prompts[num_pairs:], prompt_ends, places[num_pairs:])
        for prompt, prompt_end, place in rejected:
            appended += [*range(prompt_end - len(prompt), prompt_end), *place]
    scored = [[prompt_end - 1, *place[:-1]] for prompt_end, place in zip(prompt_ends, places)]
    return pack(
        segments,
        key_lengths,
        appended,
        scored,
        responses,
        num_unique_scored=sum(len(response) for response in responses[:num_pairs]),
        indices=indices,
        units=len(pairs),
        weights=[pair.weight for pair in pairs],
    )


def collate_texts(examples: Sequence[EncodedText], indices: Sequence[int]) -> PackedBatch:
    """Pack the texts `examples[i]`, i in `indices`, into one row (SFT); each attends to itself.

    Args:
        examples: all encoded texts of the data set.
        indices: the texts of this micro-batch; empty: as in `collate_pairs`.

    Raises:
        ValueError: a text is empty, or its first token is a target; names the example.
    """
    texts = [examples[i] for i in indices]
    for i, text in zip(indices, texts):
        if not text.ids or text.is_target[0]:
            raise ValueError(
                f"example {i}: expected at least one token, and a first token that is no target "
                "(nothing predicts it)"
            )
    lengths = [len(text.ids) for text in texts]
    starts = accumulate(lengths, initial=0)
    places = [[j for j, is_target in enumerate(text.is_target) if is_target] for text in texts]
    targets = [[text.ids[j] for j in of_text] for text, of_text in zip(texts, places)]
    scored = [[start + j - 1 for j in of_text] for start, of_text in zip(starts, places)]
    units = sum(len(of_text) for of_text in targets)
    return pack(
        [text.ids for text in texts],
        lengths,
        [],
        scored,
        targets,
        num_unique_scored=units,
        indices=indices,
        units=units,
    )


def pack(
    segments: list[list[int]],
    key_lengths: list[int],
    appended: list[int],
    scored: list[list[int]],
    targets: list[list[int]],
    *,
    num_unique_scored: int,
    indices: Sequence[int],
    units: int,
    weights: Sequence[float] = (),
) -> PackedBatch:
    """Turn Python lists into the tensors of a batch.

    Positions of a segment end at its number of keys: a rejected response continues the positions of
    the prompt that it shares.

    Args:
        segments: token ids of the S segments. Empty: the row is one token and scores nothing.
        key_lengths: keys of each segment.
        appended: row positions of the keys after the row's own, as `Layout.appended_A`.
        scored: row positions that predict the targets of each response.
        targets: token ids of those targets.
    """
    segments, key_lengths = segments or [[0]], key_lengths or [1]
    query_lengths = [len(segment) for segment in segments]
    cu_query = cumulative(query_lengths)
    layout = Layout(
        query_lengths=tuple(query_lengths),
        key_lengths=tuple(key_lengths),
        cu_query=cu_query,
        cu_key=cumulative(key_lengths) if appended else cu_query,
        num_own_keys=sum(key_lengths) - len(appended),
        appended_A=torch.tensor(appended) if appended else None,
    )
    positions = [range(keys - queries, keys) for queries, keys in zip(query_lengths, key_lengths)]
    response_tokens = [len(of_response) for of_response in scored]
    return PackedBatch(
        tokens_N=flat(segments),
        positions_N=flat(positions),
        layout=layout,
        scored_T=flat(scored),
        targets_T=flat(targets),
        response_tokens_R=torch.tensor(response_tokens, dtype=torch.int64),
        num_unique_scored=num_unique_scored,
        indices=tuple(indices),
        units=units,
        weight_P=torch.tensor(weights, dtype=torch.float32),
    )


def flat(lists: Iterable[Iterable[int]]) -> Tensor:
    """The lists, one after the other, as one int64 tensor."""
    return torch.tensor([*chain.from_iterable(lists)], dtype=torch.int64)


def cumulative(lengths: list[int]) -> Tensor:
    """int32 [S + 1]: where each segment begins, and where the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
