"""The faults of `zephyr/reference.py`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/reference.py",
        (
            "tests/training/test_engine.py::test_reference_is_each_pairs_own",
            (
                "tests/training/test_engine.py::test_what_decides_a_log_prob_is_in_the_stores"
                "_address"
            ),
            ("tests/training/test_engine.py::test_other_ids_are_another_pair_whatever_their_id"),
            "tests/training/test_engine.py::test_only_what_is_missing_is_computed",
            "tests/training/test_engine.py::test_a_reference_gives_each_pair_its_own",
            ("tests/training/test_engine.py::test_parts_are_read_whole_and_the_first_value_stays"),
            "tests/training/test_engine.py::test_a_store_of_other_values_is_found_out",
        ),
        (
            ('return {\n        "weights": weights,'),
            "return {",
        ),
        (
            ('"weights": weights,\n        "dtype": hardware.dtype,'),
            '"weights": weights,',
        ),
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
            "if not abs(new - old) <= tolerance:",
            "if not abs(new - old) <= 100 * tolerance:",
        ),
        (
            'sides = zip(("chosen", "rejected"), responses, fresh, known[keys[i]])',
            'sides = zip(("chosen",), responses, fresh, known[keys[i]])',
        ),
        (
            'sides = zip(("chosen", "rejected"), responses, fresh, known[keys[i]])',
            'sides = zip(("chosen", "rejected"), responses, fresh, fresh)',
        ),
        (
            "for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):",
            "for ids in (pair.prompt_ids, pair.chosen_ids):",
        ),
        (
            "for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):",
            "for ids in (pair.chosen_ids, pair.rejected_ids):",
        ),
        (
            "for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):",
            "for ids in (pair.prompt_ids, *sorted((pair.chosen_ids, pair.rejected_ids))):",
        ),
        (
            ('        digest.update(len(content).to_bytes(8, "little"))\n'),
            "",
        ),
        (
            'if hashlib.sha256(content).hexdigest() != path.stem.removeprefix("part-"):',
            'if not path.stem.removeprefix("part-"):',
        ),
        (
            "path.stat().st_mtime_ns, reverse=True):",
            "path.stat().st_mtime_ns):",
        ),
        (
            ("        if step.epoch < 1\n"),
            "",
        ),
        (
            "if not missing.isdisjoint(chain(*micro_batches))",
            "if True",
        ),
        (
            "for i, both in logp.items() if i in missing}",
            "for i, both in logp.items()}",
        ),
        (
            "ref_chosen_P, ref_rejected_P = self.logp[indices_P].unbind(-1)",
            "ref_chosen_P, ref_rejected_P = self.logp[indices_P].flip(-1).unbind(-1)",
        ),
        (
            "ref_chosen_P, ref_rejected_P = self.logp[indices_P].unbind(-1)",
            "ref_chosen_P, ref_rejected_P = self.logp[: len(indices_P)].unbind(-1)",
        ),
        (
            "return hashlib.sha256(self.logp.cpu().numpy().tobytes()).hexdigest()",
            "return hashlib.sha256(bytes(self.logp.shape)).hexdigest()",
        ),
        (
            "logp.append(torch.stack(response_logprobs(engine, batch), dim=-1))",
            "logp.append(torch.stack(response_logprobs(engine, batch)[::-1], dim=-1))",
        ),
        (
            "indices += batch.indices",
            "indices += batch.indices[::-1]",
        ),
    ),
]
