"""Rows become encoded examples: what `train_sft.py` and `train_dpo.py` read.

The walk of a row, and the module of each step:

1. `sources.py`: a spec of `data.train` (`path-or-hub-id[:split]`) becomes files, and each file raw
   rows with their place. `folders.py` chooses the files of a folder, `parquet.py` reads parquet.
2. `rows.py`: a line becomes a row, a mapping of keys to values; its `id` is read.
3. `keys.py`: `data.columns` renames keys; a key that is known in any spelling gets its one name.
4. `shapes.py`: the row becomes a conversation or plain text (`sft_conversation`) or a pair
   (`pair_row`). The tables of known shapes are in `sft_shapes.py` and `pair_shapes.py`, the ratings
   of a pair in `ratings.py`, what is refused and the hints of errors in `refusals.py`.
5. `workers.py`: **the row becomes ids** (`_encode_row`), by `zephyr.chat.tokenize_pair`,
   `encode_messages` or `encode_text`, in several processes.
6. `encode.py`: `load_pairs` and `load_texts` run all of this; `report.py` counts what was cut,
   dropped or skipped, with digests of `text_digests.py` to find duplicates.
7. `store.py`: examples lie in an Arrow table (`Pairs`, `Texts`), on disk under a digest of all that
   made them.

Beside the walk: `tokenizer.py` loads the tokenizer, `template.py` sets a run's chat template,
`jsonl.py` reads and writes files of rows for commands, `pairwise.py` names the fields of rows in
which a judge compared two answers.

Import from the modules themselves: this file imports nothing, so that a command that reads rows
starts without torch, transformers and pyarrow."""
