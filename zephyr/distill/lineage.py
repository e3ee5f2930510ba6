"""A pair's id becomes its story: prompt, answers, judge calls, scores, rule, and the steps that
trained on it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten

from zephyr.config import NOT_YAML, BadInput, read_yaml
from zephyr.data.jsonl import read_rows, report_path
from zephyr.teacher import Ledger
from zephyr.teacher.rubric import ASPECTS
from zephyr.training.files import step_paths, synced_digest

Row = Mapping[str, object]


def trace_pair(
    name: str, pairs: Path | None, run: Path | None, *, whole: bool = False
) -> Iterator[str]:
    """Lines that tell where the pair `name` comes from and where it was trained on.

    Args: pairs: the file that `binarize` wrote; by default what the run was trained on. run: a run
    folder, for its ledger of visits. whole: long texts are not cut. Files are found by the reports
    beside them. Raises: BadInput where no pair has this id."""
    cut = (
        (lambda text: str(text))
        if whole
        else (lambda text: shorten(str(text), 160, placeholder=" ..."))
    )
    files = [pairs] if pairs else pair_files(run)
    pair, file = next(
        (
            (row, file)
            for file in files
            for _, row in read_rows([file])
            if name in (row.get("id"), row.get("prompt_id"))
        ),
        (None, None),
    )
    if pair is None:
        raise BadInput(f"no pair has the id {name!r} in {', '.join(map(str, files))}")
    yield f"pair {pair.get('id')} in {file}"
    yield f"  prompt    {cut(pair['prompt'])}"
    for side in ("chosen", "rejected"):
        yield f"  {side:9} {pair.get(f'{side}_model', '?')}, score {pair.get(f'score_{side}', '?')}: {cut(pair[side])}"
    made = read_report(file)
    if made:
        yield f"  rule      {made.get('rule')}, seed {made.get('seed')}, from {', '.join(made.get('sources', []))}"
    for source in map(Path, made.get("sources", [])):
        source = source if source.exists() else file.parent / source.name
        if source.is_file() and synced_digest(source) not in made.get("digests", {}).values():
            yield f"  {source} is not the file that the pairs were made of: it was written again since"
        else:
            yield from trace_feedback(str(pair.get("prompt_id", pair.get("id"))), source, cut)
    if run:
        yield from training_steps(str(pair.get("id")), run)


def trace_feedback(prompt_id: str, source: Path, cut: object) -> Iterator[str]:
    """The answers to a prompt, who gave them by which call, and every judge call with its
    scores."""
    if not source.exists():
        yield f"  {source} is not here: no more is known of its answers"
        return
    row = next(
        (row for _, row in read_rows([source]) if str(row.get("prompt_id")) == prompt_id), None
    )
    if row is None or "completions" not in row:
        return
    ledger = ledger_of(source)
    yield f"  feedback  {source}, judged by {row.get('judge', '?')}"
    for n, completion in enumerate(row["completions"]):
        scores = ", ".join(
            f"{aspect} {(completion.get('scores') or {}).get(aspect)}" for aspect in ASPECTS
        )
        yield f"    answer {n} by {completion.get('model')} (principle {completion.get('principle')}): {cut(completion.get('text'))}"
        yield f"      {scores}; overall {completion.get('overall')}"
        yield from (
            f"      {aspect}: {cut(why)}"
            for aspect, why in (completion.get("rationales") or {}).items()
        )
        yield from calls(ledger, "answered", [completion.get("call")])
        yield from calls(ledger, "critique", completion.get("critique_calls") or [])
    for aspect, digests in (row.get("calls") or {}).items():
        yield from calls(ledger, f"judged {aspect} in the order {row['order'][aspect]}", digests)


def calls(ledger: Ledger | None, what: str, digests: list[str | None]) -> Iterator[str]:
    for digest in filter(None, digests):
        reply = ledger.get(digest) if ledger else None
        cost = (
            f": {reply.model} {reply.version}, {reply.prompt_tokens} + {reply.completion_tokens} tokens, price {reply.price:g}, {reply.time}"
            if reply
            else ""
        )
        yield f"      call {digest[:16]} {what}{cost}"


def training_steps(name: str, run: Path) -> Iterator[str]:
    """Each step that trained on the pair, with its loss, by the run's ledger."""
    import pyarrow.parquet as pq

    for path in step_paths(run / "pairs", ".parquet"):
        for row in pq.read_table(path, filters=[("id", "==", name)]).to_pylist():
            yield (
                f"  step {row['step']:6} of {run} (epoch {row['epoch']:.2f}): loss {row['loss']:.4f}, rewards {row['rewards/chosen']:+.4f} "
                f"/ {row['rewards/rejected']:+.4f}, log-probs {row['logps/chosen']:.2f} / {row['logps/rejected']:.2f}"
            )


def pair_files(run: Path | None) -> list[Path]:
    """The files that a run was trained on, by its config.yaml. Raises: BadInput where they can't be
    told."""
    if run is None:
        raise BadInput("lineage: --pairs FILE or --run FOLDER is wanted")
    try:
        return [Path(source) for source in read_yaml(run / "config.yaml")["data"]["train"]]
    except (OSError, *NOT_YAML) as error:
        raise BadInput(f"{run}: a run folder with config.yaml is wanted: {error!r}") from None


def read_report(file: Path) -> Row:
    path = report_path(file)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def ledger_of(source: Path) -> Ledger | None:
    """The ledger of replies beside a feedback file, as its report names it."""
    path = source.parent / str(
        read_report(source).get("ledger", source.with_suffix(".ledger.jsonl").name)
    )
    return Ledger(path, read_only=True) if path.exists() else None
