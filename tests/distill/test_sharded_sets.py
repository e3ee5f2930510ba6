"""Shards: merged, they are one run to the byte, whatever their number, their order and what was
killed; each reply is paid for once; a wrong set of shards is refused by name."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.data.jsonl import save_report, write_rows
from zephyr.distill import prepare as prepare_module
from zephyr.distill.feedback import collect_feedback
from zephyr.distill.merge import merge
from zephyr.distill.prepare import PrepareSettings, check_shard, prepare
from zephyr.distill.self_instruct import self_instruct
from zephyr.distill.shards import Shard, parse_shard, shard_ledgers, shard_path
from zephyr.teacher import Budget, Ledger, Reply, Request, ask, embedded
from zephyr.teacher import shares as shares_module
from zephyr.teacher.request import Spending
from zephyr.teacher.rubric import Critique, Rating, format_critique, format_ratings
from zephyr.teacher.shares import ShardsAway, Shares
from zephyr.world.facts import build_world
from zephyr.world.prompts import draw_prompts

FOLDERS = iter(range(10_000))
WORDS = "amber boat candle dune ember forest granite harbour island jungle kettle lantern".split()


class Killed(Exception):
    """What a kill is to a shard that runs in this process: nothing after it is done."""


class Asked(Counter[str]):
    """How often each request reached a teacher; the attempt number `dies_at` kills the run."""

    dies_at = -1

    def reply(self, name: str, text: Callable[[Request], str]) -> Callable[[Request], str]:
        def answer(request: Request) -> str:
            if self.total() == self.dies_at:
                self.dies_at = -1
                raise Killed
            self[request.digest(name)] += 1
            return text(request)

        return answer


def answer_of(name: str) -> Callable[[Request], str]:
    """Some answers are empty, so that prompts are left out."""

    def text(request: Request) -> str:
        asked = str(request.messages[-1]["content"])
        return "" if sum(map(ord, name + asked)) % 4 == 0 else f"{name} on {asked}"

    return text


def judge_text(request: Request) -> str:
    """Some replies have no form, so that they are asked for again."""
    about = request.about
    if request.messages[-1]["content"].endswith("7?") and len(request.messages) == 2:
        return "well"
    if about["task"] == "rate":
        return format_ratings([Rating(1 + len(text) % 5, "so") for text in about["texts"]])
    return format_critique(Critique(3, "so"))


def feedback_run(
    source: Path, out: Path, asked: Asked, shard: Shard | None = None, seed: int = 0
) -> None:
    """`zephyr feedback` with teachers that count."""
    answerers = [embedded(n, asked.reply(n, answer_of(n)), "1") for n in ("a", "b", "c")]
    judge = embedded("judge", asked.reply("judge", judge_text), "1")
    written = shard_path(out, shard) if shard else out
    with Ledger(written.with_suffix(".ledger.jsonl")) as ledger:
        report = collect_feedback(
            [str(source)],
            written,
            answerers,
            judge,
            lambda teacher, requests: ask(teacher, requests, ledger, Budget()),
            per_prompt=2,
            seed=seed,
            shard=shard,
        )
        kept = {"ledger": ledger.path.name, "spent": ledger.held._asdict()}
    save_report(written, {**report, **kept})


def merged(out: Path, parts: Sequence[Path] = ()) -> None:
    """`zephyr merge`."""
    report = merge(out, parts)
    if "rows_kept" not in report:
        save_report(out, report)


def outputs(out: Path) -> list[object]:
    """Rows, report and ledger; of the ledger all but the times."""
    ledger = out.with_suffix(".ledger.jsonl")
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    replies = [{**json.loads(line), "time": ""} for line in lines]
    return [out.read_bytes(), out.with_suffix(".report.json").read_bytes(), replies]


def until_done(run: Callable[[], None]) -> None:
    """Start the run again after each kill."""
    while True:
        try:
            return run()
        except Killed:
            continue


@given(
    rows=st.integers(2, 9), of=st.integers(1, 5), seed=st.integers(0, 99), dies=st.integers(0, 40)
)
@example(rows=2, of=5, seed=1, dies=3)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_feedback_of_shards(tmp_path: Path, rows: int, of: int, seed: int, dies: int) -> None:
    """Equal prompts under two ids, prompts that are left out, replies that are asked for again, a
    kill, shards without a prompt. Fails where a row, its place, a count of the report or a reply of
    the ledger is another one than without shards, or anything is paid for twice."""
    folder = tmp_path / str(next(FOLDERS))
    texts = [f"why {random.Random(seed + n).randrange(10)}?" for n in range(rows)]
    source = folder / "prompts.jsonl"
    prompts = [{"prompt_id": f"q{n}", "prompt": text} for n, text in enumerate(texts)]
    write_rows(source, [*prompts, {"prompt_id": "sure", "prompt": "why else?"}])
    asked_by_one, asked = Asked(), Asked()
    feedback_run(source, folder / "one" / "f.jsonl", asked_by_one, seed=seed)
    asked.dies_at = dies
    out = folder / "many" / "f.jsonl"
    shards = [Shard(number, of) for number in range(of)]
    for shard in random.Random(seed).sample(shards, of):
        until_done(partial(feedback_run, source, out, asked, shard, seed))
    assert asked == asked_by_one and max(asked.values()) == 1
    paths = [shard_path(out, shard) for shard in shards]
    merged(out, random.Random(seed).sample(paths, of))
    assert outputs(out) == outputs(folder / "one" / "f.jsonl")
    before = out.with_suffix(".ledger.jsonl").read_bytes()
    merged(out)  # those beside it, once more
    assert outputs(out)[:2] == outputs(folder / "one" / "f.jsonl")[:2]
    assert out.with_suffix(".ledger.jsonl").read_bytes() == before


def written(request: Request) -> str:
    """A teacher of instructions, instances and dialogues that does what it is asked."""
    about = request.about
    rng = random.Random(f"{about['seed']}")
    sentence = f"Say {' '.join(rng.sample(WORDS, 7))} in your words"
    if about["task"] == "instructions":
        lines = [f"Say {' '.join(rng.sample(WORDS, 7))} in your words" for _ in range(8)]
        return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 9))
    if about["task"] == "classify":
        return "No" if len(about["instruction"]) % 2 else "Perhaps"
    if about["task"] == "instances":
        return f"Input: {rng.choice(WORDS)}\nOutput: {sentence}"
    if about["task"] == "alpaca":
        return "\n".join(
            f"###\n{k}. Instruction: Say {' '.join(rng.sample(WORDS, 7))} now\n{k}. Input:\n"
            f"<noinput>\n{k}. Output:\nno {k}"
            for k in range(4, 8)
        )
    return sentence + ("?" if about["task"] != "answer" else ".")


def instruct_run(
    seeds: Path, out: Path, variant: str, asked: Asked, shard: Shard | None = None
) -> None:
    """`zephyr self-instruct`; a shard divides the requests with the others that run now."""
    teacher = embedded("t", asked.reply("t", written), "1")
    path = shard_path(out, shard) if shard else out
    shares = Shares(shard.number, shard_ledgers(out, shard.of)) if shard else None
    with Ledger(path.with_suffix(".ledger.jsonl")) as ledger:

        def ask_all(requests: Sequence[Request]) -> list[Reply]:
            return (shares.ask if shares else ask)(teacher, requests, ledger, Budget())

        report = self_instruct(
            seeds,
            path,
            ask_all,
            n=9,
            seed=3,
            variant=variant,
            batch=3,
            shard=(shard, teacher) if shard else None,
        )
        kept = {"ledger": ledger.path.name, "spent": ledger.held._asdict()}
    save_report(path, {"command": "self-instruct", "teacher": "t", **report, **kept})


@pytest.mark.parametrize("variant", ["self-instruct", "alpaca", "dialogue"])
def test_self_instruct_of_shards(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards at the same time, one of which is killed and comes back. Fails where the shards
    go on with other replies, a request is asked by two, or the choice of instructions, which
    depends on all earlier ones, is another one than without shards."""
    monkeypatch.setattr(shares_module, "POLL_SECONDS", 0.005)
    seeds = tmp_path / "seeds.jsonl"
    rows = [
        {"instruction": f"Tell of {w}", "output": "so", "is_classification": False, "topic": w}
        for w in WORDS
    ]
    write_rows(seeds, rows)
    asked_by_one, asked = Asked(), [Asked() for _ in range(3)]
    instruct_run(seeds, tmp_path / "one" / "i.jsonl", variant, asked_by_one)
    asked[1].dies_at = 2
    out = tmp_path / "many" / "i.jsonl"

    def run(number: int) -> None:
        until_done(partial(instruct_run, seeds, out, variant, asked[number], Shard(number, 3)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert asked[0] + asked[1] + asked[2] == asked_by_one and min(map(len, asked)) > 0
    merged(out, [shard_path(out, Shard(number, 3)) for number in (2, 0, 1)])
    assert outputs(out) == outputs(tmp_path / "one" / "i.jsonl")


def test_a_shard_whose_others_are_away_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where it waits for ever, or does not name the ledger that it waits for."""
    monkeypatch.setattr(shares_module, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(shares_module, "TOLD_SECONDS", 0.02)
    monkeypatch.setattr(shares_module, "MAX_WAIT_SECONDS", 0.1)
    paths = shard_ledgers(tmp_path / "i.jsonl", 2)
    teacher = embedded("t", lambda request: "yes", "1")
    requests = [Request(({"role": "user", "content": f"{n}?"},)) for n in range(3)]
    with Ledger(paths[0]) as ledger, pytest.raises(ShardsAway, match="i.shard-1-of-2.ledger.jsonl"):
        Shares(0, paths).ask(teacher, requests, ledger, Budget())
    assert len(paths[0].read_text().splitlines()) == 2
    assert "waits for 1 replies of other shards" in capsys.readouterr().err


def dialogues() -> Iterator[dict[str, object]]:
    rng = random.Random(2)
    said = [" ".join(f"word{rng.randrange(3000)}" for _ in range(30)) for _ in range(12)]
    for number in range(90):
        turns = [f"Question {rng.randrange(60)}?", f"So it is. {rng.choice(said)}."]
        messages = [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant"), turns, strict=True)
        ]
        yield {"messages": messages, "n": number}


def test_prepare_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Duplicates, near duplicates and held-out rows lie in the pieces of other shards; one shard is
    killed after a piece; more shards than pieces. Fails where rows are compared within a shard
    only, in another order, or are left out."""
    monkeypatch.setattr(prepare_module, "PIECE_ROWS", 25)
    rows = list(dialogues())
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows[3:5])
    sources = [str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")]
    prepare(sources, tmp_path / "one" / "c.jsonl", PrepareSettings())
    whole = sorted((tmp_path / "one").iterdir())
    removed = json.loads((tmp_path / "one" / "c.report.json").read_text())["removed"]
    assert all(removed[name]["rows"] for name in ("held_out", "duplicate", "near_duplicate"))
    check_piece, left = prepare_module.check_piece, [2]

    def dying(*arguments: object) -> list[str]:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return check_piece(*arguments)

    monkeypatch.setattr(prepare_module, "check_piece", dying)
    for of in (1, 2, 5):
        out = tmp_path / f"of{of}" / "c.jsonl"
        left[0] = 2
        for number in reversed(range(of)):
            shard = Shard(number, of)
            part = shard_path(out, shard, ".arrow")
            until_done(partial(check_shard, sources, part, PrepareSettings(), shard))
        merged(out)
        for path in whole:
            assert out.with_name(path.name).read_bytes() == path.read_bytes()
        parts = {shard_path(out, Shard(n, of), end) for n in range(of) for end in ENDS}
        assert set(out.parent.iterdir()) == parts | {out.with_name(path.name) for path in whole}


ENDS = (".arrow", ".report.json")


def test_a_wrong_set_of_shards_is_refused(tmp_path: Path) -> None:
    """A shard that is missing, there twice, of another seed, of other prompts, of another number,
    changed, not done, or no shard; prompts that changed since, a ledger that is gone or cut. Fails
    where any of these is merged, or the file is not named."""
    source, other = tmp_path / "prompts.jsonl", tmp_path / "other" / "prompts.jsonl"
    for path, count in ((source, 4), (other, 5)):
        write_rows(path, [{"prompt": f"what about {n}?"} for n in range(count)])
    out, asked = tmp_path / "f.jsonl", Asked()
    for shard in (Shard(0, 2), Shard(1, 2), Shard(2, 3)):
        feedback_run(source, out, asked, shard)
    zero, one = (shard_path(out, Shard(number, 2)) for number in range(2))
    of_seed, of_source = tmp_path / "seed" / "f.jsonl", other.parent / "f.jsonl"
    feedback_run(source, of_seed, asked, Shard(1, 2), seed=7)
    feedback_run(other, of_source, asked, Shard(1, 2))
    feedback_run(source, tmp_path / "plain.jsonl", asked)
    twin = tmp_path / "twin" / zero.name
    twin.parent.mkdir()
    for path in (zero, zero.with_suffix(".report.json"), zero.with_suffix(".ledger.jsonl")):
        shutil.copy(path, twin.parent)
    changed = tmp_path / "changed" / zero.name
    shutil.copytree(twin.parent, changed.parent)
    changed.write_bytes(zero.read_bytes() + b"{}\n")
    for parts, words in (
        ([zero], f"of 2 shards 1 are missing, the first is {one}"),
        ([zero, one, twin], f"{twin} and {zero} are both shard 0/2"),
        (
            [zero, shard_path(of_seed, Shard(1, 2))],
            f"of another call than {zero}: seed is 7, there 0",
        ),
        ([zero, shard_path(of_source, Shard(1, 2))], f"another call than {zero}: sources is"),
        ([], "is one of 3 shards"),
        ([changed, one], f"{changed} is not the file of"),
        ([zero, tmp_path / "nothing.jsonl"], "nothing.jsonl has no nothing.report.json: it is not"),
        ([zero, tmp_path / "plain.jsonl"], "plain.report.json is no report of a shard"),
        ([zero, zero.with_suffix(".ledger.jsonl")], "ledger.jsonl has no"),
    ):
        with pytest.raises(BadInput) as error:
            merge(out, parts)
        assert words in str(error.value) and not out.exists()
    ledger = one.with_suffix(".ledger.jsonl")
    whole = ledger.read_bytes()
    ledger.write_bytes(b"".join(whole.splitlines(True)[1:]))
    with pytest.raises(BadInput, match=f"{ledger.name}: 1 replies of . are missing"):
        merge(out, [zero, one])
    ledger.unlink()
    with pytest.raises(BadInput, match="the ledger of .*f.shard-1-of-2.jsonl is not there"):
        merge(out, [zero, one])
    ledger.write_bytes(whole)
    write_rows(source, [{"prompt": "what else?"}])
    with pytest.raises(BadInput, match="prompts.jsonl is not what the shards read"):
        merge(out, [zero, one])
    with pytest.raises(ValueError, match="expected 0 <= I < N"):
        parse_shard("2/2")


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--shard` and `merge` on the embedded world. A pilot, whose ledger is OUT's, and a shard of
    three that was not finished come first. Fails where what they paid for is asked again, a shard
    takes more than its share of the budget, or the merge is not one run to the byte."""
    monkeypatch.chdir(tmp_path)
    drawn = {prompt.prompt: prompt for prompt in draw_prompts(build_world(0), "train", 12, 0)}
    rows = [prompt._asdict() for prompt in drawn.values()][:6]
    write_rows(Path("prompts.jsonl"), rows)
    write_rows(Path("pilot.jsonl"), rows[4:6])
    teachers = ["--answerers", "world:expert,world:terse,world:careless", "--per-prompt", "2"]
    teachers += ["--judge", "world:judge"]

    def feedback(prompts: str, out: str, *options: str) -> int:
        return main(["feedback", prompts, *teachers, "--out", out, *options])

    def lines_of(path: str) -> int:
        return len(Path(path).read_text().splitlines())

    assert feedback("prompts.jsonl", "one/f.jsonl") == 0
    assert feedback("pilot.jsonl", "pilot.out.jsonl", "--ledger", "f.ledger.jsonl") == 0
    assert lines_of("f.ledger.jsonl") == 2 * 8
    with pytest.raises(SystemExit) as end:
        feedback("prompts.jsonl", "f.jsonl", "--shard", "0/3", "--budget-requests", "15")
    assert end.value.code == 75 and lines_of("f.shard-0-of-3.ledger.jsonl") == 5
    for number in "01":
        assert feedback("prompts.jsonl", "f.jsonl", "--shard", f"{number}/2") == 0
    digests = Counter(
        (reply["digest"], reply["time"])
        for path in tmp_path.glob("f.*ledger.jsonl")
        for reply in map(json.loads, path.read_text().splitlines())
    )
    assert len({digest for digest, _ in digests}) == len(digests) == 6 * 8, "each is paid for once"
    assert main(["merge", "f.jsonl", "f.shard-1-of-2.jsonl", "f.shard-0-of-2.jsonl"]) == 0
    assert Path("f.jsonl").read_bytes() == Path("one/f.jsonl").read_bytes()
    assert Path("f.report.json").read_bytes() == Path("one/f.report.json").read_bytes()
    assert feedback("prompts.jsonl", "f.jsonl") == 0 and lines_of("f.ledger.jsonl") == 6 * 8
    assert feedback("prompts.jsonl", "f.jsonl", "--shard", "0/2", "--ledger", "x.jsonl") == 2
    assert feedback("prompts.jsonl", "f.jsonl", "--shard", "3/2") == 2
    errors = capsys.readouterr().err
    assert "expected no --ledger" in errors and "'3/2' is no shard I/N" in errors


def test_what_was_paid_for_is_merged_once(tmp_path: Path) -> None:
    """The costs of a merge are those of all shards: failed attempts too, a reply that two asked for
    twice, the copies of one reply once. Fails where any vanishes, or a second merge adds to it."""
    source, out = tmp_path / "prompts.jsonl", tmp_path / "f.jsonl"
    write_rows(source, [{"prompt": f"what about {n}?"} for n in range(3)])
    for number in range(2):
        feedback_run(source, out, Asked(), Shard(number, 2))
    failed = Reply("", None, "a", "", 100, 0, 0.5, "2026-01-01T00:00:00.000+00:00", "", "500")
    one = shard_path(out, Shard(1, 2), ".ledger.jsonl")
    with Ledger(one) as ledger:
        ledger.append(failed, "a", None)
        ledger.append(failed, "a", None)
        line = shard_path(out, Shard(0, 2), ".ledger.jsonl").read_text().splitlines()[0]
        ledger.append_line(line.encode() + b"\n")  # a copy
    again = {**json.loads(line), "time": "2026-01-01T00:00:01.000+00:00", "prompt_tokens": 7}
    for path in shard_ledgers(out, 2):  # one is a copy
        with Ledger(path) as ledger:
            ledger.append_line(json.dumps(again).encode() + b"\n")
    tokens = 2 * again["completion_tokens"] + json.loads(line)["prompt_tokens"] + 7
    copied = Spending(2, tokens, 0.0)
    held = [Ledger(path, read_only=True).held for path in shard_ledgers(out, 2)]
    for _ in range(2):
        report = merge(out, [])
        assert report["spent"] == held[0].plus(held[1]).minus(copied)._asdict()
        assert report["spent"]["cost"] == 1.0


def test_costs_are_told_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry-run` before and after a pilot of two of five prompts, with figures by hand: 2 answers,
    4 ratings and 2 critiques a prompt. Fails where anything is asked or written, a paid reply is
    told as missing, or a mean, a price or the share of a shard is wrong."""
    source, pilot, out = (tmp_path / name for name in ("p.jsonl", "pilot.jsonl", "f.jsonl"))
    drawn = {prompt.prompt: prompt for prompt in draw_prompts(build_world(0), "train", 12, 0)}
    rows = [prompt._asdict() for prompt in drawn.values()][:5]
    write_rows(source, rows)
    write_rows(pilot, rows[:2])

    def feedback(prompts: Path, to: Path, *options: str) -> list[str]:
        words = ["feedback", str(prompts), "--answerers", "world:expert,world:terse", "--out"]
        words += [str(to), "--per-prompt", "2", "--judge", "world:judge", *options]
        assert main(words) == 0
        return capsys.readouterr().out.splitlines()

    asked = ["--dry-run", "--price", "judge=1000,2000", "--max-new-tokens", "100"]
    told = feedback(source, out, *asked)
    assert told[0] == "5 prompts" and told[1].startswith("expert: 5 requests; reads about ")
    assert told[1].endswith("writes up to 500") and told[3].endswith("writes up to 9,000")
    assert told[3].startswith("judge: 30 requests (and at most 60 again)")
    assert told[-1].startswith("time: not known") and not list(tmp_path.glob("f.*"))
    ledger = tmp_path / "f.ledger.jsonl"
    feedback(pilot, tmp_path / "pilot.out.jsonl", "--ledger", str(ledger), *asked[3:])
    replies = [json.loads(line) for line in ledger.read_text().splitlines()]
    judged = [reply for reply in replies if reply["teacher"] == "judge"]
    told = feedback(source, out, *asked, "--shard", "0/2")
    assert told[0] == "5 prompts, 2 to 3 in each of 2 shards"
    assert told[1] == "4 of 10 answers are in the ledger"
    reads = sum(reply["prompt_tokens"] for reply in judged) * 18 / 12
    writes = sum(reply["completion_tokens"] for reply in judged) * 18 / 12
    assert len(judged) == 12 and told[4] == (
        f"judge: 18 requests (and at most 36 again); reads about {reads:,.0f} tokens, writes about "
        f"{writes:,.0f} as 12 replies did, up to 5,400"
    )
    cost = (1000 * reads + 2000 * writes) / 1e6
    full = (1000 * reads + 2000 * 5400) / 1e6
    assert told[6].startswith(f"cost: about {cost:.2f}, {full:.2f} if each reply has full length")
    assert f", {cost / 2:.2f} for each of 2 shards; without expert, terse" in told[6]
    assert told[7].startswith("time: about 0.00 h at the speed of the replies")
    assert [path.name for path in sorted(tmp_path.glob("f.*"))] == ["f.ledger.jsonl"]


@pytest.mark.parametrize(
    ("variant", "requests"),
    [("self-instruct", 4 + 2 * 30), ("alpaca", 2), ("dialogue", 30 * (1 + 3 + 2))],
)
def test_costs_of_instructions(
    variant: str, requests: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a kind of request is left out, or an earlier run of the OUT tells nothing."""
    out = tmp_path / "i.jsonl"
    words = ["self-instruct", "--seeds", "seeds.jsonl", "--n", "30", "--variant", variant]
    words += ["--teacher", "world:teacher", "--out", str(out), "--dry-run"]
    assert main(words) == 0
    assert f"30 rows: at least {requests} requests (" in capsys.readouterr().out
    report = {"rows": 3, "variant": variant, "spent": {"requests": 100}}
    out.with_suffix(".report.json").write_text(json.dumps(report))
    assert main(words) == 0
    assert "about 1,000 requests, as" in capsys.readouterr().out
