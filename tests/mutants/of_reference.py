"""The faults of `zephyr/reference.py`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/reference.py",
        (
            "tests/training/test_engine.py::test_reference_is_each_pairs_own",
            (
                "tests/training/test_engine.py::test_what_decides_a_log_prob_is_in_the_st"
                "ores_address"
            ),
            ("tests/training/test_engine.py::test_other_ids_are_another_pair_whatever_their_id"),
            "tests/training/test_engine.py::test_only_what_is_missing_is_computed",
            "tests/training/test_engine.py::test_a_reference_gives_each_pair_its_own",
            ("tests/training/test_engine.py::test_parts_are_read_whole_and_the_first_value_stays"),
            "tests/training/test_engine.py::test_a_store_of_other_values_is_found_out",
        ),
        (('return {\n        "weights": weights,'), "return {"),
        (('"weights": weights,\n        "dtype": hardware.dtype,'), '"weights": weights,'),
        (
            ('"dtype": hardware.dtype,\n        "attention": hardware.attention,'),
            '"dtype": hardware.dtype,',
        ),
        (
            (
                '"weights": weights,\n'
                '        "dtype": hardware.dtype,\n'
                '        "attention": hardware.attention,'
            ),
            '"weights": weights,',
        ),
        (
            (
                "if len(missing) < len(keys):\n"
                "        verify_sample(engine, examples, keys, known, collate, lengths, "
                "folder)"
            ),
            "if len(missing) < len(keys):",
        ),
        (
            ("if not abs(new - old) <= response_tolerance_nats(engine.hardware.dtype, len(ids)):"),
            (
                "if not abs(new - old) <= 100 * "
                "response_tolerance_nats(engine.hardware.dtype, len(ids)):"
            ),
        ),
        (
            (
                'for side, ids, new, old in zip(("chosen", "rejected"), pair[2:], fresh, '
                "known[keys[i]]):"
            ),
            ('for side, ids, new, old in zip(("chosen",), pair[2:], fresh, known[keys[i]]):'),
        ),
        (
            (
                'for side, ids, new, old in zip(("chosen", "rejected"), pair[2:], fresh, '
                "known[keys[i]]):"
            ),
            ('for side, ids, new, old in zip(("chosen", "rejected"), pair[2:], fresh, fresh):'),
        ),
        (
            (
                "parts = [\n"
                "        np.asarray(ids, np.int32).tobytes()\n"
                "        for ids in (pair.prompt_ids, pair.chosen_ids, "
                "pair.rejected_ids)\n"
                "    ]"
            ),
            (
                "parts = [np.asarray(ids, np.int32).tobytes() for ids in "
                "(pair.prompt_ids, pair.chosen_ids)]"
            ),
        ),
        (
            (
                "parts = [\n"
                "        np.asarray(ids, np.int32).tobytes()\n"
                "        for ids in (pair.prompt_ids, pair.chosen_ids, "
                "pair.rejected_ids)\n"
                "    ]"
            ),
            (
                "parts = [np.asarray(ids, np.int32).tobytes() for ids in "
                "(pair.chosen_ids, pair.rejected_ids)]"
            ),
        ),
        (
            "for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)",
            ("for ids in (pair.prompt_ids, *sorted((pair.chosen_ids, pair.rejected_ids)))"),
        ),
        (
            (
                "return hashlib.sha256(\n"
                '        b"".join(len(part).to_bytes(8, "little") + part for part in '
                "parts)\n"
                "    ).digest()"
            ),
            'return hashlib.sha256(b"".join(part for part in parts)).digest()',
        ),
        (
            ('if hashlib.sha256(content).hexdigest() != path.stem.removeprefix("part-"):'),
            'if not path.stem.removeprefix("part-"):',
        ),
        (
            (
                "for path in sorted(\n"
                '        folder.glob("part-*.safetensors"), key=lambda path: '
                "path.stat().st_mtime_ns, reverse=True\n"
                "    ):"
            ),
            (
                'for path in sorted(folder.glob("part-*.safetensors"), key=lambda path: '
                "path.stat().st_mtime_ns):"
            ),
        ),
        (
            ("for step in first_epoch.steps\n        if step.epoch < 1"),
            "for step in first_epoch.steps",
        ),
        (
            (
                "ranks\n"
                "        for step in first_epoch.steps\n"
                "        if step.epoch < 1\n"
                "        for ranks in zip(*step.ranks)\n"
                "        if not missing.isdisjoint(chain(*ranks))"
            ),
            (
                "ranks for step in first_epoch.steps if step.epoch < 1 for ranks in "
                "zip(*step.ranks) if True"
            ),
        ),
        ((").items()\n            if i in missing"), ").items()"),
        (
            "return self.logp[indices_P].unbind(-1)",
            "return self.logp[indices_P].flip(-1).unbind(-1)",
        ),
        ("return self.logp[indices_P].unbind(-1)", "return self.logp[: len(indices_P)].unbind(-1)"),
        (
            "return hashlib.sha256(self.logp.cpu().numpy().tobytes()).hexdigest()",
            "return hashlib.sha256(bytes(self.logp.shape)).hexdigest()",
        ),
        (
            "logp.append(torch.stack(response_logprobs(engine, batch), dim=-1))",
            "logp.append(torch.stack(response_logprobs(engine, batch)[::-1], dim=-1))",
        ),
        ("indices += batch.indices", "indices += batch.indices[::-1]"),
    ),
]
