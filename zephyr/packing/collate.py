"""Chosen examples become one packed row of tensors with the layout that attention needs.

N packed tokens of the row, S segments (what one causal attention runs over), M keys appended for
shared prompts, T scored tokens (targets), R responses or documents that log-probs are summed over.

A pair shares its prompt: the row is `prompt chosen` of every pair, then `rejected` of every pair:

    row      P1 C1  P2 C2 | R1  R2            queries, S = 4 segments: P1C1  P2C2  R1  R2
    keys     P1 C1  P2 C2 | P1 R1  P2 R2      the same segments; R1 sees P1 R1, aligned at its last token

so one variable-length attention call does it, with causality aligned at the bottom right where a
segment has more keys than queries. The positions of R start at len(P). The last prompt token
predicts the first token of both responses."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from zephyr.chat import EncodedPair, EncodedText


@dataclass(frozen=True)
class Layout:
    """Where the segments of a row lie. Host numbers are plain integers: reading them never waits
    for a device."""

    query_lengths: tuple[int, ...]  # of each segment, as they follow each other in the row
    key_lengths: tuple[int, ...]  # of each segment, >= its query length
    cu_query: Tensor  # int32 [S+1], cumulative query lengths
    cu_key: Tensor  # int32 [S+1]; the same tensor as cu_query where no prompt is shared
    num_own_keys: int  # the first so many tokens of the row are their own keys
    appended_M: Tensor | None  # int64: row positions of the keys that follow; each occurs once

    @property
    def max_query(self) -> int:
        return max(self.query_lengths)

    @property
    def max_key(self) -> int:
        return max(self.key_lengths)


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch. Log-probs are wanted of `targets_T`, each predicted by the hidden state at
    `scored_T`.

    Scored tokens lie response by response: pair i's chosen is response i, its rejected is response
    P + i."""

    tokens_N: Tensor  # int64
    positions_N: Tensor  # int64
    layout: Layout
    scored_T: Tensor  # int64, positions in the row
    targets_T: Tensor  # int64, token ids
    response_tokens_R: Tensor  # int64, scored tokens of each response; sums to T
    num_unique_scored: int  # the first so many of scored_T hold no position twice, nor the rest
    indices: tuple[int, ...]  # of the examples, as the plan names them
    units: int  # what a loss sum is divided by, over all ranks: pairs or targets

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on a device; to a GPU by way of pinned memory, so that the host does not
        wait for the copy."""

        def moved(value: object) -> object:
            if isinstance(value, Layout):
                same = value.cu_key is value.cu_query
                fields = {k: moved(v) for k, v in vars(value).items()}
                return Layout(**{**fields, "cu_key": fields["cu_query"]} if same else fields)
            return (
                (value.pin_memory() if on_gpu else value).to(device, non_blocking=on_gpu)
                if isinstance(value, Tensor)
                else value
            )

        on_gpu = torch.device(device).type == "cuda"
        return replace(self, **{k: moved(v) for k, v in vars(self).items()})


def collate_pairs(
    examples: Sequence[EncodedPair], indices: Sequence[int], *, prefix_sharing: bool = True
) -> PackedBatch:
    """Preference pairs `examples[i]` as one row, each prompt once (`prefix_sharing`) or with either
    response.

    No indices: a row of one token that scores nothing, for a rank with nothing to do in a
    micro-batch. Raises: ValueError naming an example with an empty prompt or response."""
    pairs = [examples[i] for i in indices]
    for i, pair in zip(indices, pairs):
        if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):
            raise ValueError(
                f"example {i}: prompt, chosen and rejected need at least one token each"
            )
    first = len(pairs)  # of what belongs to the rejected responses, in each list here
    prompts = [pair.prompt_ids for pair in pairs] * 2
    responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    segments = [prompt + response for prompt, response in zip(prompts, responses)]
    key_lengths = [len(segment) for segment in segments]
    if prefix_sharing:
        segments[first:] = responses[first:]
    # Where each response lies in the row, and where the prompt before it ends, whose last token
    # predicts its first.
    places = [
        range(end - len(response), end)
        for end, response in zip(accumulate(map(len, segments)), responses)
    ]
    prompt_ends = [place.start for place in places]
    appended: list[int] = []
    if prefix_sharing:
        prompt_ends[first:] = prompt_ends[:first]
        for prompt, prompt_end, place in zip(prompts[first:], prompt_ends, places[first:]):
            appended += [*range(prompt_end - len(prompt), prompt_end), *place]
    scored = [[prompt_end - 1, *place[:-1]] for prompt_end, place in zip(prompt_ends, places)]
    return pack(
        segments,
        key_lengths,
        appended,
        scored,
        responses,
        num_unique_scored=sum(map(len, responses[:first])),
        indices=indices,
        units=len(pairs),
    )


def collate_texts(examples: Sequence[EncodedText], indices: Sequence[int]) -> PackedBatch:
    """Texts `examples[i]` (SFT) as one row, each attending to itself alone; the log-probs of their
    target tokens.

    No indices: as in collate_pairs. Raises: ValueError naming an example that is empty or begins
    with a target."""
    texts = [examples[i] for i in indices]
    for i, text in zip(indices, texts):
        if not text.ids or text.is_target[0]:
            raise ValueError(
                f"example {i}: at least one token is wanted, the first, which nothing predicts, no target"
            )
    lengths = [len(text.ids) for text in texts]
    places = [[j for j, is_target in enumerate(text.is_target) if is_target] for text in texts]
    targets = [[text.ids[j] for j in of_text] for text, of_text in zip(texts, places)]
    scored = [
        [start + j - 1 for j in of_text]
        for start, of_text in zip([0, *accumulate(lengths)], places)
    ]
    units = sum(map(len, targets))
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
) -> PackedBatch:
    """Python lists as the tensors of a batch; without a segment, of one that is one token and
    scores nothing.

    Positions end where the segment's keys do: a rejected response of its own continues those of the
    shared prompt."""

    def flat(lists: Iterable[Iterable[int]]) -> Tensor:
        return torch.tensor([*chain.from_iterable(lists)], dtype=torch.int64)

    def cumulative(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)

    segments, key_lengths = segments or [[0]], key_lengths or [1]
    query_lengths = [len(segment) for segment in segments]
    cu_query = cumulative(query_lengths)
    layout = Layout(
        tuple(query_lengths),
        tuple(key_lengths),
        cu_query,
        cumulative(key_lengths) if appended else cu_query,
        sum(key_lengths) - len(appended),
        torch.tensor(appended) if appended else None,
    )
    positions_N = flat(
        range(keys - queries, keys) for queries, keys in zip(query_lengths, key_lengths)
    )
    response_tokens_R = torch.tensor([len(places) for places in scored], dtype=torch.int64)
    return PackedBatch(
        flat(segments),
        positions_N,
        layout,
        flat(scored),
        flat(targets),
        response_tokens_R,
        num_unique_scored,
        tuple(indices),
        units,
    )
