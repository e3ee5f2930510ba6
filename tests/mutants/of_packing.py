"""The faults of `zephyr/packing/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/packing/share.py",
        ("tests/model/test_sequence.py::test_shares_are_the_row",),
        ("scored_T=batch.scored_T[is_own_T] // ranks,", "scored_T=batch.scored_T[is_own_T],"),
        ("num_unique_scored=int(is_own_T[:unique].sum()),", "num_unique_scored=unique,"),
        ("F.pad(row_N, (0, -len(row_N) % ranks))", "F.pad(row_N, (0, 0))"),
        ("targets_T=batch.targets_T[is_own_T],", "targets_T=batch.targets_T,"),
    ),
    *of(
        "zephyr/packing/collate.py",
        ("tests/packing/test_packing.py",),
        (
            ("range(keys - queries, keys) for queries, keys in zip(query_lengths, key_lengths)"),
            "range(queries) for queries, keys in zip(query_lengths, key_lengths)",
        ),
        (
            (
                "scored = [[prompt_end - 1, *place[:-1]] for prompt_end, place in "
                "zip(prompt_ends, places)]"
            ),
            (
                "scored = [[prompt_end, *place[:-1]] for prompt_end, place in "
                "zip(prompt_ends, places)]"
            ),
        ),
        (
            (
                "scored = [[prompt_end - 1, *place[:-1]] for prompt_end, place in "
                "zip(prompt_ends, places)]"
            ),
            (
                "scored = [[place.start - 1, *place[:-1]] for prompt_end, place in "
                "zip(prompt_ends, places)]"
            ),
        ),
        (
            (
                "scored = [[prompt_end - 1, *place[:-1]] for prompt_end, place in "
                "zip(prompt_ends, places)]"
            ),
            (
                "scored = [[prompt_end - 1, *place[1:]] for prompt_end, place in "
                "zip(prompt_ends, places)]"
            ),
        ),
        (
            "appended += [*range(prompt_end - len(prompt), prompt_end), *place]",
            "appended += [*place, *range(prompt_end - len(prompt), prompt_end)]",
        ),
        (
            "appended += [*range(prompt_end - len(prompt), prompt_end), *place]",
            "appended += [*range(prompt_end - len(prompt) + 1, prompt_end + 1), *place]",
        ),
        (
            "segments[num_pairs:] = responses[num_pairs:]",
            "segments[num_pairs:] = segments[num_pairs:]",
        ),
        (
            (
                "responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for "
                "pair in pairs]"
            ),
            (
                "responses = [pair.rejected_ids for pair in pairs] + [pair.chosen_ids for "
                "pair in pairs]"
            ),
        ),
        (
            "num_unique_scored=sum(len(response) for response in responses[:num_pairs]),",
            "num_unique_scored=sum(len(response) for response in responses),",
        ),
        (
            "units=len(pairs),",
            "units=len(responses),",
        ),
        (
            "if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):",
            "if not (pair.prompt_ids and pair.rejected_ids):",
        ),
        (
            (
                "scored = [[start + j - 1 for j in of_text] for start, of_text in "
                "zip(starts, places)]"
            ),
            ("scored = [[start + j for j in of_text] for start, of_text in zip(starts, places)]"),
        ),
        (
            ("targets = [[text.ids[j] for j in of_text] for text, of_text in zip(texts, places)]"),
            (
                "targets = [[text.ids[j - 1] for j in of_text] for text, of_text in "
                "zip(texts, places)]"
            ),
        ),
        (
            "starts = accumulate(lengths, initial=0)",
            "starts = accumulate(lengths)",
        ),
        (
            "if not text.ids or text.is_target[0]:",
            "if not text.ids:",
        ),
        (
            "units = sum(len(of_text) for of_text in targets)",
            "units = sum(lengths)",
        ),
        (
            "return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)",
            "return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)",
        ),
        (
            "cumulative(key_lengths) if appended else cu_query,",
            "cumulative(key_lengths),",
        ),
        (
            "sum(key_lengths) - len(appended),",
            "sum(query_lengths),",
        ),
        (
            "cu_query if one_tensor else copy_tensor(self.cu_key, device),",
            "copy_tensor(self.cu_key.clone(), device),",
        ),
        (
            "return max(self.key_lengths)",
            "return max(self.query_lengths)",
        ),
        (
            "response_tokens = [len(of_response) for of_response in scored]",
            "response_tokens = [len(of_response) - 1 for of_response in scored]",
        ),
        (
            "tuple(indices),",
            "tuple(sorted(indices)),",
        ),
    ),
    *of(
        "zephyr/packing/plan.py",
        ("tests/packing/test_packing.py",),
        (
            "for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):",
            "for i in sorted(range(len(lengths)), key=lengths.__getitem__):",
        ),
        (
            "fitting = bisect_left(spaces, length)",
            "fitting = bisect_left(spaces, length + 1)",
        ),
        (
            "if not 0 < length <= budget:",
            "if not 0 <= length <= budget:",
        ),
        (
            "space = spaces[fitting]",
            "space = spaces[-1]",
        ),
        (
            'rng = random.Random(f"{seed}:{epoch}") if shuffle else None',
            'rng = random.Random(f"{seed}") if shuffle else None',
        ),
        (
            'rng = random.Random(f"{seed}:{epoch}") if shuffle else None',
            'rng = random.Random(f"{epoch}") if shuffle else None',
        ),
        (
            "epoch + done / len(lengths),",
            "epoch + start / len(units),",
        ),
        (
            "done += len(examples)",
            "done = len(examples)",
        ),
        (
            "for start in range(0, len(units), per_step):",
            "for start in range(0, len(units) - len(units) % per_step, per_step):",
        ),
        (
            "if taken >= 0:",
            "if taken > 0:",
        ),
        (
            "        rebalance(of_rank, costs)\n",
            "        pass\n",
        ),
        (
            "return packed + [idle] * (ranks - busy)",
            "return packed",
        ),
        (
            "gifts_R[loaded] = np.inf",
            "gifts_R[loaded] = left",
        ),
        (
            "step.rank[step.example == taken] = loaded",
            "pass",
        ),
        (
            ("        micro_batches += [[] for _ in range(most - len(micro_batches))]\n    idle"),
            ("        micro_batches += []\n    idle"),
        ),
        (
            "units = sorted(sorted(order[j] for j in window) for window in windows)",
            "units = [[order[j] for j in window] for window in windows]",
        ),
        (
            "rng.shuffle(units)",
            "rng.random()",
        ),
        (
            "rng.shuffle(order)",
            "rng.random()",
        ),
        (
            "indices = range(len(lengths)) if indices is None else indices",
            "indices = range(len(lengths))",
        ),
        (
            "for rank in step.ranks for micro in rank if micro)",
            "for rank in step.ranks for micro in rank)",
        ),
        (
            "most_load += max(loads)",
            "most_load += min(loads)",
        ),
        (
            '"epochs": epochs, "ranks": ranks,',
            '"ranks": ranks,',
        ),
        (
            "MAX_IMBALANCE = 1.01",
            "MAX_IMBALANCE = 1.5",
        ),
        (
            "costs = lengths if costs is None else costs",
            "costs = lengths",
        ),
    ),
]
