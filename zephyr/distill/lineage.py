"""A pair's id becomes its history: prompt, answers, the judge's requests and scores, the rule, and
the steps that trained on it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten

from zephyr.config import NOT_YAML, BadInput, read_yaml, source_paths
from zephyr.data.jsonl import read_rows, report_path
from zephyr.teacher import Ledger
from zephyr.teacher.rubric import ASPECTS
from zephyr.training.files import step_paths, synced_digest

Row = Mapping[str, object]
Cut = Callable[[object], str]  # shortens a text

MAX_CHARS = 160  # of a text that is cut


def trace_pair(
    name: str, pairs: Path | None, run: Path | None, *, whole: bool = False
) -> Iterator[str]:
    """Yield lines that tell where a pair comes from and which steps trained on it.

    Other files are found by the reports beside these.

    Args:
        name: the pair's `id` or `prompt_id`.
        pairs: the file that `binarize` wrote; None for the files that the run was trained on.
        run: a run folder, for its records of each visit to the pair; None for none.
        whole: long texts are not cut.
    Raises:
        BadInput: if no pair has this id.
    """
    cut: Cut = str if whole else _shorten
    file, pair = find_pair(name, [pairs] if pairs else pair_files(run))
    yield f"pair {pair.get('id')} in {file}"
    yield f"  prompt    {cut(pair['prompt'])}"
    for side in ("chosen", "rejected"):
        model, score = pair.get(f"{side}_model", "?"), pair.get(f"score_{side}")
        of_rule = "" if score is None else f", score {score}"
        yield f"  {side:9} {model}{of_rule}: {cut(pair[side])}"
    report = read_report(file)
    sources = _strings(report.get("sources"))
    if report:
        yield (
            f"  rule      {report.get('rule')}, seed {report.get('seed')}, from "
            f"{', '.join(sources)}"
        )
        yield from describe_options(report)
    for source in map(Path, sources):
        if not source.exists():
            source = file.parent / source.name
        if source.is_file() and synced_digest(source) not in _object(report, "digests").values():
            yield (
                f"  {source} is not the file that the pairs were made of: it was written again "
                "since"
            )
        else:
            yield from trace_feedback(str(pair.get("prompt_id", pair.get("id"))), source, cut)
    if run:
        yield from training_steps(str(pair.get("id")), run)


def describe_options(report: Row) -> Iterator[str]:
    """Yield a line for each option of binarize that left pairs out, or chose among them."""
    stages = _object(report, "stages")
    made, within = (_object(stages, name).get("pairs") for name in ("made", "within_length"))
    if "strong" in report:
        strong, weak = (", ".join(_strings(report.get(side))) for side in ("strong", "weak"))
        yield f"            stronger {strong}, weaker {weak}"
    limit = _object(report, "max_length_difference")
    if limit:
        yield (
            f"            lengths at most {limit.get('most')} {limit.get('unit')} apart: "
            f"{within} of {made} pairs"
        )
    for name, number in _object(report, "take").items():
        of = _object(_object(report, "by_source"), name).get("within_length", "the")
        yield f"            {number} of {of} pairs of {name}"
    policy = _object(report, "on_policy")
    if policy:
        counts = _object(policy, "pairs")
        yield (
            f"            on-policy {', '.join(_strings(policy.get('models')))} (side: "
            f"{policy.get('side')}): {counts.get('on')} pairs with its answer, "
            f"{counts.get('off')} without"
        )


def find_pair(name: str, files: Sequence[Path]) -> tuple[Path, Row]:
    """Return the first pair of an id or prompt id, and its file. Raises: BadInput without one."""
    for file in files:
        rows: Iterator[tuple[str, Row]] = read_rows([file])
        for _, row in rows:
            if name in (row.get("id"), row.get("prompt_id")):
                return file, row
    raise BadInput(f"no pair has the id {name!r} in {', '.join(map(str, files))}")


def trace_feedback(prompt_id: str, source: Path, cut: Cut) -> Iterator[str]:
    """Yield the answers to a prompt with the requests and scores that belong to them.

    Args:
        source: a feedback file.
        cut: shortens a text.
    """
    if not source.exists():
        yield f"  {source} is not here: no more is known of its answers"
        return
    row = find_feedback(prompt_id, source)
    if row is None or "completions" not in row:
        return
    ledger = ledger_of(source)
    yield f"  feedback  {source}, judged by {row.get('judge', 'nobody')}"
    completions = row["completions"]
    for n, completion in enumerate(completions if isinstance(completions, list) else ()):
        if "sample" in completion:  # of a round: one score, whoever gave it
            yield from describe_sample(ledger, row, completion, cut)
            continue
        scores = _object(completion, "scores")
        listed = ", ".join(f"{aspect} {scores.get(aspect)}" for aspect in ASPECTS)
        yield (
            f"    answer {n} by {completion.get('model')} (principle "
            f"{completion.get('principle')}): {cut(completion.get('text'))}"
        )
        if scores:
            yield f"      {listed}; overall {completion.get('overall')}"
        for aspect, rationale in _object(completion, "rationales").items():
            yield f"      {aspect}: {cut(rationale)}"
        yield from describe_calls(ledger, "answered", [completion.get("call")])
        critique_calls = _strings(completion.get("critique_calls"))
        yield from describe_calls(ledger, "critique", critique_calls)
    orders = _object(row, "order")
    for aspect, digests in _object(row, "calls").items():
        what = f"judged {aspect} in the order {orders[aspect]}"
        yield from describe_calls(ledger, what, _strings(digests))


def describe_sample(ledger: Ledger | None, row: Row, completion: Row, cut: Cut) -> Iterator[str]:
    """Yield what is known of an answer that a policy sampled in a round (`zephyr rounds`)."""
    yield (
        f"    answer {completion['sample']} by {completion.get('model')}, weights "
        f"{str(row.get('weights'))[:16]}: {cut(completion.get('text'))}"
    )
    yield f"      score {completion.get('score')}: {cut(completion.get('critique'))}"
    yield from describe_calls(ledger, "scored", _strings(completion.get("critique_calls")))


def find_feedback(prompt_id: str, source: Path) -> Row | None:
    """Return the row of a prompt, if the file has it."""
    rows: Iterator[tuple[str, Row]] = read_rows([source])
    return next((row for _, row in rows if str(row.get("prompt_id")) == prompt_id), None)


def describe_calls(
    ledger: Ledger | None, purpose: str, digests: Sequence[str | None]
) -> Iterator[str]:
    """Yield a line for each request, with model, tokens, price and time if the ledger has it."""
    for digest in digests:
        if not digest:
            continue
        line = f"      call {digest[:16]} {purpose}"
        reply = ledger.get(digest) if ledger else None
        if reply:
            line += (
                f": {reply.model} {reply.version}, {reply.prompt_tokens} + "
                f"{reply.completion_tokens} tokens, price {reply.price:g}, {reply.time}"
            )
        yield line


def training_steps(name: str, run: Path) -> Iterator[str]:
    """Yield a line for each step that trained on the pair, from the parquet files in `pairs`."""
    import pyarrow.parquet as pq

    for path in step_paths(run / "pairs", ".parquet"):
        for row in pq.read_table(path, filters=[("id", "==", name)]).to_pylist():
            yield (
                f"  step {row['step']:6} of {run} (epoch {row['epoch']:.2f}): loss "
                f"{row['loss']:.4f}, rewards {row['rewards/chosen']:+.4f} / "
                f"{row['rewards/rejected']:+.4f}, log-probs {row['logps/chosen']:.2f} / "
                f"{row['logps/rejected']:.2f}"
            )


def pair_files(run: Path | None) -> list[Path]:
    """Return the files that a run was trained on, by its config.yaml. Raises: BadInput without a
    run, or without a readable config."""
    if run is None:
        raise BadInput("lineage: expected --pairs FILE or --run FOLDER")
    try:
        config = read_yaml(run / "config.yaml")
    except (OSError, *NOT_YAML) as error:
        raise BadInput(f"{run}: expected a run folder with config.yaml: {error!r}") from None
    data = config.get("data") if isinstance(config, dict) else None
    train = data.get("train") if isinstance(data, dict) else None
    if not isinstance(train, list):
        raise BadInput(f"{run}: expected a list of sources in config.yaml, data.train: {train!r}")
    return [Path(source) for source in source_paths(train)]


def read_report(file: Path) -> Row:
    """Return the report beside a file, empty if there is none."""
    path = report_path(file)
    if not path.exists():
        return {}
    report: Row = json.loads(path.read_text(encoding="utf-8"))
    return report


def ledger_of(source: Path) -> Ledger | None:
    """Return the ledger of replies beside a feedback file, which the file's report names."""
    default = source.with_suffix(".ledger.jsonl").name
    path = source.parent / str(read_report(source).get("ledger", default))
    return Ledger(path, read_only=True) if path.exists() else None


def _shorten(text: object) -> str:
    return shorten(str(text), MAX_CHARS, placeholder=" ...")


def _object(row: Row, key: str) -> Row:
    """The object in a field; empty if the field is missing or null."""
    value = row.get(key)
    return value if isinstance(value, Mapping) else {}


def _strings(value: object) -> list[str]:
    """The texts in a list; none if it is no list."""
    return [str(item) for item in value] if isinstance(value, list) else []
