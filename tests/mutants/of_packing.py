"""The faults of `zephyr/packing/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/packing/collate.py",
        ("tests/packing/test_packing.py",),
        (
            (
                "positions_N = flat(\n"
                "        range(keys - queries, keys) for queries, keys in "
                "zip(query_lengths, key_lengths)\n"
                "    )"
            ),
            (
                "positions_N = flat(range(queries) for queries, keys in "
                "zip(query_lengths, key_lengths))"
            ),
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
            ("appended += [*range(prompt_end - len(prompt) + 1, prompt_end + 1), *place]"),
        ),
        ("segments[first:] = responses[first:]", "segments[first:] = segments[first:]"),
        (
            (
                "responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids "
                "for pair in pairs]"
            ),
            (
                "responses = [pair.rejected_ids for pair in pairs] + [pair.chosen_ids "
                "for pair in pairs]"
            ),
        ),
        (
            "num_unique_scored=sum(map(len, responses[:first])),",
            "num_unique_scored=sum(map(len, responses)),",
        ),
        ("units=len(pairs),", "units=len(responses),"),
        (
            "if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):",
            "if not (pair.prompt_ids and pair.rejected_ids):",
        ),
        (
            (
                "[start + j - 1 for j in of_text]\n"
                "        for start, of_text in zip([0, *accumulate(lengths)], places)"
            ),
            (
                "[start + j for j in of_text] for start, of_text in zip([0, "
                "*accumulate(lengths)], places)"
            ),
        ),
        (
            ("targets = [[text.ids[j] for j in of_text] for text, of_text in zip(texts, places)]"),
            (
                "targets = [[text.ids[j - 1] for j in of_text] for text, of_text in "
                "zip(texts, places)]"
            ),
        ),
        (
            (
                "[start + j - 1 for j in of_text]\n"
                "        for start, of_text in zip([0, *accumulate(lengths)], places)"
            ),
            (
                "[start + j - 1 for j in of_text] for start, of_text in "
                "zip(accumulate(lengths), places)"
            ),
        ),
        ("if not text.ids or text.is_target[0]:", "if not text.ids:"),
        ("units = sum(map(len, targets))", "units = sum(lengths)"),
        (
            "return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)",
            "return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)",
        ),
        ("cumulative(key_lengths) if appended else cu_query,", "cumulative(key_lengths),"),
        ("sum(key_lengths) - len(appended),", "sum(query_lengths),"),
        (
            ('return Layout(**{**fields, "cu_key": fields["cu_query"]} if same else fields)'),
            (
                "return Layout(\n"
                '                    **{**fields, "cu_key": fields["cu_query"].clone()} '
                "if same else fields\n"
                "                )"
            ),
        ),
        ("return max(self.key_lengths)", "return max(self.query_lengths)"),
        (
            (
                "response_tokens_R = torch.tensor([len(places) for places in scored], "
                "dtype=torch.int64)"
            ),
            (
                "response_tokens_R = torch.tensor([len(places) - 1 for places in "
                "scored], dtype=torch.int64)"
            ),
        ),
        ("tuple(indices),", "tuple(sorted(indices)),"),
    ),
    *of(
        "zephyr/packing/plan.py",
        ("tests/packing/test_packing.py",),
        (
            ("for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):"),
            "for i in sorted(range(len(lengths)), key=lengths.__getitem__):",
        ),
        ("fitting = bisect_left(rooms, length)", "fitting = bisect_left(rooms, length + 1)"),
        ("if not 0 < length <= budget:", "if not 0 <= length <= budget:"),
        ("room = rooms[fitting]", "room = rooms[-1]"),
        (
            (
                "units = epoch_units(\n"
                '            lengths, random.Random(f"{seed}:{epoch}") if shuffle else '
                "None, window_tokens\n"
                "        )"
            ),
            (
                'units = epoch_units(lengths, random.Random(f"{seed}") if shuffle else '
                "None, window_tokens)"
            ),
        ),
        (
            (
                "units = epoch_units(\n"
                '            lengths, random.Random(f"{seed}:{epoch}") if shuffle else '
                "None, window_tokens\n"
                "        )"
            ),
            (
                'units = epoch_units(lengths, random.Random(f"{epoch}") if shuffle else '
                "None, window_tokens)"
            ),
        ),
        ("epoch + done / len(lengths),", "epoch + start / len(units),"),
        ("done += len(examples)", "done = len(examples)"),
        (
            "for start in range(0, len(units), per_step):",
            "for start in range(0, len(units) - len(units) % per_step, per_step):",
        ),
        (
            ("of_rank[of] = [i for i in of_rank[of] if i != lost] + [gained] * (gained >= 0)"),
            ("of_rank[of] = [i for i in of_rank[of] if i != lost] + [gained] * (gained > 0)"),
        ),
        (
            (
                "heapq.heappush(cheapest, (spent + costs[i], count + 1, rank))\n"
                "    rebalance(of_rank, costs)"
            ),
            "heapq.heappush(cheapest, (spent + costs[i], count + 1, rank))",
        ),
        (
            (
                "return [micro_batches + [[]] * (most - len(micro_batches)) for "
                "micro_batches in packed]"
            ),
            "return packed",
        ),
        (
            (
                "units = sorted(\n"
                "        sorted(order[j] for j in window) for window in windows\n"
                "    )  # best fit put the longest examples first"
            ),
            (
                "units = [\n"
                "        [order[j] for j in window] for window in windows\n"
                "    ]  # best fit put the longest examples first"
            ),
        ),
        ("rng.shuffle(units)", "rng.random()"),
        ("rng.shuffle(order)", "rng.random()"),
        (
            "indices = range(len(lengths)) if indices is None else indices",
            "indices = range(len(lengths))",
        ),
        (
            (
                "micro_batches = sum(1 for step in steps for rank in step.ranks for "
                "micro in rank if micro)"
            ),
            ("micro_batches = sum(1 for step in steps for rank in step.ranks for micro in rank)"),
        ),
        (
            (
                "sum(map(max, loads)) / sum(sum(load) / len(load) for load in loads) if "
                "steps else 1.0"
            ),
            (
                "sum(map(min, loads)) / sum(sum(load) / len(load) for load in loads) if "
                "steps else 1.0"
            ),
        ),
        (
            (
                "for name, value in (\n"
                '        ("per_step", per_step),\n'
                '        ("epochs", epochs),\n'
                '        ("ranks", ranks),\n'
                '        ("len(lengths)", len(lengths)),\n'
                "    ):"
            ),
            (
                'for name, value in (("per_step", per_step), ("ranks", ranks), '
                '("len(lengths)", len(lengths))):'
            ),
        ),
        (
            "while (most := max(loads)) > 1.01 * sum(loads) / len(loads):",
            "while (most := max(loads)) > 1.5 * sum(loads) / len(loads):",
        ),
        ("costs = lengths if costs is None else costs", "costs = lengths"),
    ),
]
