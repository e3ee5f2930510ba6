"""The shards of a command become its output, to the byte that of one run without shards.

A merge makes the same call as the shards did, on all rows, and asks nobody: `feedback` and
`self-instruct` find every reply in the shards' ledgers, `prepare` finds its checked rows in the
shards' files. So it also writes the ledger and the report that one run would have written."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import report_path
from zephyr.distill.feedback import collect_feedback, feedback_inputs
from zephyr.distill.prepare import CheckedPart, PrepareSettings, prepare, prepare_inputs
from zephyr.distill.self_instruct import self_instruct, self_instruct_inputs
from zephyr.distill.shards import Shard, parts_beside, shard_path
from zephyr.progress import track
from zephyr.teacher import Budget, Ledger, Reply, Request, Teacher, ask
from zephyr.teacher.ledger import ledger_lines, parse_reply
from zephyr.teacher.shares import absent, open_existing, reusing
from zephyr.training.files import READ_ERRORS, as_dict, read_json, synced_digest

Report = dict[str, object]
ADVICE = "run this shard again"


class Part(NamedTuple):
    """A shard that is done.

    path: what it wrote. report: beside it. call, inputs: see `shards.describe_shard`.
    """

    path: Path
    report: Mapping[str, object]
    shard: Shard
    call: Mapping[str, object]
    inputs: Mapping[str, object]


def find_parts(out: Path, paths: Sequence[Path]) -> list[Part]:
    """Read the reports of all shards, in their order.

    Args:
        paths: what the shards wrote, in any order; none for the files of shards beside `out`.
    Raises:
        BadInput: naming the file, if one is no shard or was changed, a shard is missing or there
            twice, or two are of different calls or inputs.
    """
    paths = list(paths) or parts_beside(out)
    if not paths:
        example = shard_path(out, Shard(0, 2))
        raise BadInput(f"merge: no shards of {out} beside it, expected files like {example}")
    if out.resolve() in {path.resolve() for path in paths}:
        raise BadInput(f"merge: {out} is the output and a shard of it, expected another output")
    parts = [read_part(path) for path in paths]
    first = parts[0]
    for part in parts[1:]:
        require_same_call(first, part)
    by_number: dict[int, Part] = {}
    for part in parts:
        twin = by_number.setdefault(part.shard.number, part)
        if twin is not part:
            raise BadInput(
                f"merge: {part.path} and {twin.path} are both shard {part.shard}, expected each "
                "shard once"
            )
    missing = [number for number in range(first.shard.of) if number not in by_number]
    if missing:
        name = f"{first.path.stem.rpartition('.shard-')[0]}{first.path.suffix}"
        wanted = shard_path(first.path.with_name(name), Shard(missing[0], first.shard.of))
        raise BadInput(
            f"merge: of {first.shard.of} shards {len(missing)} are missing, the first is {wanted}; "
            f"run it with --shard {missing[0]}/{first.shard.of}, or name it"
        )
    return [by_number[number] for number in sorted(by_number)]


def read_part(path: Path) -> Part:
    """Read the report beside what a shard wrote. Raises: BadInput naming the file."""
    report_file = report_path(path)
    if not report_file.is_file():
        raise BadInput(f"merge: {path} has no {report_file.name}: it is not done; {ADVICE}")
    try:
        report = read_json(report_file)
        entry = as_dict(report["shard"])
        number, of = int(str(entry["number"])), int(str(entry["of"]))
        call, inputs = as_dict(entry["call"]), as_dict(entry["inputs"])
    except (*READ_ERRORS, ValueError):
        raise BadInput(
            f"merge: {report_file} is no report of a shard, expected one that --shard I/N wrote"
        ) from None
    if not path.is_file() or report.get("sha256") != synced_digest(path):
        raise BadInput(
            f"merge: {path} is not the file of {report_file.name}: it was changed or removed "
            f"since; {ADVICE}"
        )
    return Part(path, report, Shard(number, of), call, inputs)


def require_same_call(first: Part, other: Part) -> None:
    """Raises: BadInput naming the files and the first key that differs."""
    if other.shard.of != first.shard.of:
        raise BadInput(
            f"merge: {other.path} is one of {other.shard.of} shards, {first.path} one of "
            f"{first.shard.of}; name the shards of one of them"
        )
    for what, mine, its in (
        ("call", first.call, other.call),
        ("input", first.inputs, other.inputs),
    ):
        for key in {**mine, **its}:
            if mine.get(key) != its.get(key):
                raise BadInput(
                    f"merge: {other.path} is a shard of another {what} than {first.path}: {key} is "
                    f"{its.get(key)!r:.120}, there {mine.get(key)!r:.120}"
                )


def merge(out: Path, paths: Sequence[Path]) -> Report:
    """Write what the command would have written to `out` without shards.

    Args:
        out: the command's output. Its ledger may exist: it is appended to.
        paths: as `find_parts`.
    Returns:
        The report. That of `prepare` is written already.
    Raises:
        BadInput: as `find_parts`, if an input has changed since, if a reply is missing, or as the
            command.
    """
    parts = find_parts(out, paths)
    command = parts[0].call.get("command")
    if command == "prepare":
        return merge_prepare(out, parts)
    merges = {"feedback": merge_feedback, "self-instruct": merge_self_instruct}
    if command not in merges:
        raise BadInput(f"merge: {parts[0].path} is a shard of {command!r}, expected a command here")
    run = merges[str(command)]
    paths = list(dict.fromkeys(part_ledger(part) for part in parts))
    return merge_replies(out, paths, lambda ask: run(out, parts, ask))


def merge_replies(out: Path, paths: Sequence[Path], run: Callable[["Ask"], Report]) -> Report:
    """Make a call with the replies of ledgers, and write its own ledger, which gets all of them.

    Args:
        paths: the ledgers.
        run: makes the call with an `ask` that asks nobody.
    Returns:
        What `run` returns, with the entries about the ledger.
    Raises:
        BadInput: if a reply is missing. What `run` raises.
    """
    where = f"merge: {', '.join(path.name for path in paths)}"
    ledgers = open_existing(paths)
    with Ledger(out.with_suffix(".ledger.jsonl")) as ledger:

        def ask_parts(teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
            teacher = reusing(absent(teacher.name, teacher.identity, where), ledgers)
            return ask(teacher, requests, ledger, Budget())

        report = run(ask_parts)
        copy_the_rest(ledger, paths)
        ledger_name = ledger.path.name
        return {**report, "ledger": ledger_name, "spent": ledger.held._asdict()}


Ask = Callable[[Teacher, Sequence[Request]], list[Reply]]


def part_ledger(part: Part) -> Path:
    """The ledger of a shard. Raises: BadInput if it is not there."""
    path = part.path.parent / str(part.report.get("ledger"))
    if not path.is_file():
        raise BadInput(f"merge: the ledger of {part.path} is not there, expected {path}; {ADVICE}")
    return path


def copy_the_rest(ledger: Ledger, paths: Sequence[Path]) -> None:
    """Append what the shards paid for beside the replies that were used: failed attempts, and
    replies that two shards asked for. Copies of one reply count once. A second merge appends
    nothing."""
    have = Counter(map(reply_key, ledger_lines(ledger.path)))
    for path in paths:
        for line in track(ledger_lines(path), f"ledger {path.name}", "replies"):
            key = reply_key(line)
            is_reply = bool(key[0])
            if not have[key]:
                ledger.append_line(line)
                have[key] += is_reply
            elif not is_reply:
                have[key] -= 1


def reply_key(line: bytes) -> tuple[str, ...]:
    """What tells a line of a ledger from the others."""
    reply = parse_reply(line)
    return reply.digest, reply.time, reply.model, reply.error


def merge_feedback(out: Path, parts: Sequence[Part], ask: Ask) -> Report:
    """`feedback` of all prompts. Raises: BadInput."""
    call = parts[0].call
    sources = [str(source) for source in of_list(call["sources"])]
    templates = optional_path(call["templates"])
    require_inputs(parts[0], feedback_inputs(sources, templates))
    return collect_feedback(
        sources,
        out,
        [named_teacher(pair) for pair in of_list(call["answerers"])],
        None if call["judge"] is None else named_teacher(call["judge"]),
        ask,
        per_prompt=int(str(call["per_prompt"])),
        seed=int(str(call["seed"])),
        principles=bool(call["principles"]),
        max_tokens=int(str(call["max_tokens"])),
        templates=templates,
    )


def merge_self_instruct(out: Path, parts: Sequence[Part], ask: Ask) -> Report:
    """`self-instruct` once more, with the replies of all shards. Raises: BadInput."""
    call = parts[0].call
    seeds, variant = Path(str(call["seeds"])), str(call["variant"])
    templates = optional_path(call["templates"])
    require_inputs(parts[0], self_instruct_inputs(seeds, variant, templates))
    teacher = named_teacher(call["teacher"])
    report = self_instruct(
        seeds,
        out,
        lambda requests: ask(teacher, requests),
        variant=variant,
        templates=templates,
        largest_rouge_l=float(str(call["largest_rouge_l"])),
        n=int(str(call["n"])),
        seed=int(str(call["seed"])),
        turns=int(str(call["turns"])),
        instances=int(str(call["instances"])),
        batch=int(str(call["batch"])),
        patience=int(str(call["patience"])),
    )
    return {"command": "self-instruct", "teacher": teacher.name, **report}


def merge_prepare(out: Path, parts: Sequence[Part]) -> Report:
    """Compare the checked rows of all shards, and write those that stay. Raises: BadInput."""
    call = parts[0].call
    sources = [str(source) for source in of_list(call["sources"])]
    known = {field.name for field in fields(PrepareSettings)}
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in as_dict(call["settings"]).items()
        if key in known
    }
    settings = PrepareSettings(**given)  # type: ignore[arg-type]  # as `asdict` made them
    require_inputs(parts[0], prepare_inputs(sources, settings))
    checked = [
        CheckedPart(part.path, [int(str(n)) for n in of_list(part.report["pieces"])])
        for part in parts
    ]
    return prepare(sources, out, settings, checked)


def require_inputs(part: Part, found: Mapping[str, str]) -> None:
    """Raises: BadInput naming what is no longer what the shards read."""
    for name in {**part.inputs, **found}:
        if part.inputs.get(name) != found.get(name):
            raise BadInput(
                f"merge: {name} is not what the shards read: {found.get(name)!r:.80}, in "
                f"{report_path(part.path)} {part.inputs.get(name)!r:.80}; merge where and as the "
                "shards ran, or run them again"
            )


def named_teacher(pair: object) -> Teacher:
    """A teacher of whom only name and identity are known. `merge_replies` asks the ledgers."""
    name, identity = map(str, of_list(pair))
    return absent(name, identity, "merge")


def optional_path(value: object) -> Path | None:
    return None if value is None else Path(str(value))


def of_list(value: object) -> list[object]:
    """The value, which must be a list. Raises: TypeError."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def summary(report: Mapping[str, object]) -> str:
    """What was merged, in a line."""
    if "rows_kept" in report:
        return f"{report['rows_kept']} of {report['rows_read']} rows"
    return f"{report['rows']} rows, {json.dumps(report['spent'])} spent by all shards"
