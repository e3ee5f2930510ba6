"""Texts joined end to end become windows of one length, as TRL's `ConstantLengthDataset` made them.

It reproduces a quirk of published runs (TRL 0.7, `SFTTrainer` with `packing=True`): a token attends
to all before it in its window, also to those of other texts, and the first window after a cut
begins in the middle of a text. Best-fit packing, which new work wants, is `zephyr.packing`.

Two things are not as there. TRL joined texts in stretches of about 7.5 million characters and lost
the last, short window of each (about one token in two thousand); here only the last of all is lost.
TRL drew the order of windows within a stretch; here `packing.plan_epochs` draws it over all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow.ipc import RecordBatchStreamWriter

from zephyr.config import BadInput, SFTConfig
from zephyr.data.encode import encoding_resources
from zephyr.data.report import Report
from zephyr.data.store import TEXT_SCHEMA, Texts, cached_table, content_digest
from zephyr.data.text_digests import NO_DIGEST

ROWS_AT_A_TIME = 4096

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


def joined_windows(
    texts: Texts,
    report: Report,
    *,
    window_tokens: int,
    seed: int | None,
    cache_dir: str | Path | None = None,
) -> tuple[Texts, Report]:
    """The windows of all texts, each an example of exactly `window_tokens` tokens.

    The texts are those of `encode.load_texts(..., joined=True)`. Every token of a window is a
    target but its first, and but those that are none in their row (`train: false`).

    Args:
        report: of the texts.
        seed: of the order of the texts, that of `datasets.Dataset.shuffle(seed)`; None: as they
            stand.
        cache_dir: where windows are kept, under a digest of texts and settings. None: in memory.
    Returns: the windows, and the report with their counts.
    Raises: BadInput where the texts do not fill a window."""

    def write(writer: RecordBatchStreamWriter) -> Report:
        count = 0
        for ids, flags in _full_windows(texts, window_tokens, seed):
            writer.write_batch(_batch(ids, flags, window_tokens, first=count))
            count += len(ids) // window_tokens
        tokens = int(texts.tokens.sum())
        if not count:
            raise BadInput(
                f"data.packing: constant_length: the {len(texts)} texts of "
                f"{', '.join(report['sources'])} hold {tokens} tokens, expected at least one "
                f"window of data.max_tokens ({window_tokens})"
            )
        lost = tokens - count * window_tokens
        return {
            **report,
            "windows": {"windows": count, "tokens": tokens, "tokens_left_out": lost},
            "quirks": ["data.packing: constant_length"],
        }

    code = Path(__file__).read_text(encoding="utf-8")
    parts = [content_digest(texts), str(window_tokens), str(seed), repr(report), code]
    key = hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()
    entry = None if cache_dir is None else Path(cache_dir) / key
    table, whole = cached_table(entry, TEXT_SCHEMA, write)
    return Texts(table, entry), whole


def packer(config: SFTConfig) -> Callable[[Texts, Report, str], tuple[Texts, Report]] | None:
    """What `data.packing` makes of the encoded rows of a split; None where they stay as they are.

    Rows of `eval` keep their order, as TRL's evaluation."""
    if config.data.packing == "best_fit":
        return None
    seed = config.run.seed if config.data.shuffle else None
    cache_dir = encoding_resources()["cache_dir"]

    def pack(texts: Texts, report: Report, split: str) -> tuple[Texts, Report]:
        return joined_windows(
            texts,
            report,
            window_tokens=config.data.max_tokens,
            seed=seed if split == "train" else None,
            cache_dir=cache_dir,
        )

    return pack


def _full_windows(
    texts: Texts, window_tokens: int, seed: int | None
) -> Iterator[tuple[Ids, Flags]]:
    """Ids and flags of whole windows, some at a time; what fills no window at the end is left out.

    Yields: (ids, is_target), both of a multiple of `window_tokens`."""
    order = np.arange(len(texts))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(texts))
    ids, flags = np.empty(0, np.int32), np.empty(0, np.bool_)
    for start in range(0, len(order), ROWS_AT_A_TIME):
        rows = texts.table.take(pa.array(order[start : start + ROWS_AT_A_TIME]))
        ids = np.concatenate([ids, _flat(rows["ids"])])
        flags = np.concatenate([flags, _flat(rows["is_target"])])
        whole = len(ids) // window_tokens * window_tokens
        if whole:
            yield ids[:whole], flags[:whole]
            ids, flags = ids[whole:], flags[whole:]


def _flat(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    """The values of a column of lists, one after the other."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts)


def _batch(ids: Ids, flags: Flags, window_tokens: int, *, first: int) -> pa.RecordBatch:
    """Windows as rows of `TEXT_SCHEMA`. Args: first: the number of the first window."""
    count = len(ids) // window_tokens
    targets = flags.reshape(count, window_tokens).copy()
    targets[:, 0] = False  # nothing in the window comes before it
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * window_tokens)
    arrays = [
        pa.array([f"window {first + i}" for i in range(count)]),
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(targets.ravel())),
        pa.array(targets.sum(1, dtype=np.int64)),
        pa.array([NO_DIGEST] * count, pa.binary()),
    ]
    return pa.record_batch(arrays, schema=TEXT_SCHEMA)
