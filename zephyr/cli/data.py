"""The commands that make data: a teacher's rows, clean rows, feedback, pairs, where each pair comes
from, and the embedded world."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from zephyr.cli.asking import (
    SPEC,
    Asking,
    DryRun,
    ShardOption,
    open_ask,
    read_shard,
    shard_files,
)
from zephyr.cli.reports import format_counts, part, print_unread_keys, print_warnings, write_summary

if TYPE_CHECKING:
    from zephyr.teacher import Teacher


def self_instruct(
    seeds: Annotated[Path, Option(metavar="FILE", help="Seed tasks; for dialogues: topics.")],
    n: Annotated[int, Option(metavar="N", min=1, help="Rows to make.")],
    teacher: Annotated[str, Option(metavar="SPEC", help=f"The teacher: {SPEC}.")],
    out: Annotated[
        Path, Option(metavar="FILE", help="Rows of `messages` with their lineage (.jsonl).")
    ],
    variant: Annotated[
        Literal["self-instruct", "alpaca", "dialogue"],
        Option(help="Instructions, then instances; both at once; or UltraChat's dialogues."),
    ] = "self-instruct",
    turns: Annotated[int, Option(metavar="N", min=1, help="User turns of a dialogue.")] = 3,
    instances: Annotated[
        int, Option(metavar="N", min=1, help="Largest number of rows from one instruction.")
    ] = 1,
    largest_rouge_l: Annotated[
        float,
        Option(
            metavar="X",
            help="Drop an instruction whose ROUGE-L with a kept one is larger; 1 drops only "
            "equal ones.",
        ),
    ] = 0.7,
    batch: Annotated[
        int,
        Option(
            metavar="N",
            min=1,
            help="Requests for instructions at a time. A larger number keeps more servers busy, "
            "and makes other rows.",
        ),
    ] = 8,
    shard: ShardOption = None,
    dry_run: DryRun = False,
    *,
    asking: Asking,
) -> None:
    """Let a teacher write instructions or dialogues.

    It starts from seed tasks and also writes the answers.

    \b
    example: zephyr self-instruct --seeds seeds.jsonl --n 1000 --out rows.jsonl \\
        --teacher openai:gpt-4o@https://api.openai.com/v1
    """
    from zephyr.distill.costs import self_instruct_costs
    from zephyr.distill.self_instruct import self_instruct
    from zephyr.distill.shards import shard_path

    writer, part_of = asking.open_teacher(teacher), read_shard(shard)
    written = shard_path(out, part_of) if part_of else out
    if dry_run:
        of, (own, paid, _) = part_of.of if part_of else 1, shard_files(asking, out, part_of)
        for line in self_instruct_costs(
            out, writer.name, n, variant, turns, [own, *paid], asking.prices(), of
        ):
            print(line)
        return
    with open_ask(asking, out, part_of, together=True) as (ask, spent):
        report = self_instruct(
            seeds,
            written,
            partial(ask, writer),
            n=n,
            seed=asking.seed,
            variant=variant,
            turns=turns,
            templates=asking.templates,
            instances=instances,
            largest_rouge_l=largest_rouge_l,
            batch=batch,
            shard=(part_of, writer) if part_of else None,
        )
        write_summary(
            written,
            {"command": "self-instruct", "teacher": writer.name, **report, **spent()},
            f"{report['rows']} rows in {report['rounds']} rounds",
        )


def prepare(
    sources: Annotated[
        list[str], Argument(metavar="SOURCE", help="path-or-hub-id[:split] of SFT rows.")
    ],
    out: Annotated[
        Path,
        Option(metavar="FILE", help="Rows of the training split. Other splits go beside it."),
    ],
    no_truecase: Annotated[
        bool, Option("--no-truecase", help="Leave the case of letters as it is.")
    ] = False,
    keep_refusals: Annotated[
        bool, Option("--keep-refusals", help="Keep refusals of requests that are not personal.")
    ] = False,
    near_duplicates: Annotated[
        float,
        Option(
            metavar="X",
            help="Jaccard similarity of word 5-grams from which a row is a near duplicate; 0 turns "
            "the filter off.",
        ),
    ] = 0.8,
    decontaminate: Annotated[
        list[str] | None,
        Option(metavar="FILE", help="Benchmark prompts to keep out. Can be repeated."),
    ] = None,
    ngram: Annotated[
        int, Option(metavar="N", min=1, help="Words in common that make a row contaminated.")
    ] = 13,
    language: Annotated[
        str | None, Option(metavar="CODE", help="Keep only dialogues in this language, as en.")
    ] = None,
    min_words: Annotated[
        int | None, Option(metavar="N", help="Fewest words of a dialogue.")
    ] = None,
    max_words: Annotated[int | None, Option(metavar="N", help="Most words of a dialogue.")] = None,
    min_turns: Annotated[
        int | None, Option(metavar="N", help="Fewest turns of a dialogue.")
    ] = None,
    max_turns: Annotated[int | None, Option(metavar="N", help="Most turns of a dialogue.")] = None,
    held_out: Annotated[
        list[str] | None,
        Option(metavar="FILE", help="Rows that must never be trained on. Can be repeated."),
    ] = None,
    on_bad_row: Annotated[
        Literal["error", "skip"], Option(help="skip: count the row and continue.")
    ] = "error",
    workers: Annotated[
        int, Option(metavar="N", min=1, help="Processes. The result does not depend on it.")
    ] = 1,
    shard: ShardOption = None,
) -> None:
    """Clean dialogues for train_sft.py.

    It corrects the case of letters, and drops refusals, duplicates, benchmark prompts, and
    dialogues of another language or length.

    \b
    example: zephyr prepare HuggingFaceH4/ultrachat_200k:train_sft \\
        --decontaminate mt_bench.jsonl --out clean.jsonl
    """
    from zephyr.distill.prepare import PrepareSettings, check_shard, prepare
    from zephyr.distill.shards import shard_path

    settings = PrepareSettings(
        truecase=not no_truecase,
        drop_refusals=not keep_refusals,
        near_duplicates=near_duplicates or None,
        decontaminate=tuple(decontaminate or ()),
        ngram=ngram,
        language=language,
        min_words=min_words,
        max_words=max_words,
        min_turns=min_turns,
        max_turns=max_turns,
        held_out=tuple(held_out or ()),
        on_bad_row=on_bad_row,
        workers=workers,
    )
    part_of = read_shard(shard)
    if part_of is not None:
        written = shard_path(out, part_of, ".arrow")
        report = check_shard(sources, written, settings, part_of)
        print(f"{written}: {report['rows']} rows checked")
        return
    report = prepare(sources, out, settings)
    removed = {name: of["rows"] for name, of in part(report, "removed").items()}
    print(
        f"{out}: {report['rows_kept']} of {report['rows_read']} rows; "
        f"left out: {format_counts(removed)}"
    )


def feedback(
    prompts: Annotated[
        list[str],
        Argument(metavar="PROMPTS", help="path-or-hub-id[:split] of rows with a prompt."),
    ],
    answerers: Annotated[
        str, Option(metavar="SPEC,SPEC,...", help=f"Who answers, each as {SPEC}.")
    ],
    out: Annotated[Path, Option(metavar="FILE", help="Feedback rows (.jsonl).")],
    judge: Annotated[
        str | None,
        Option(
            metavar="SPEC",
            help=f"Who scores the answers: {SPEC}. Default: nobody, for rule delta of binarize.",
        ),
    ] = None,
    per_prompt: Annotated[
        int, Option(metavar="N", help="Answerers of a prompt, drawn from all.")
    ] = 4,
    no_principles: Annotated[
        bool, Option("--no-principles", help="Ask without a principle in the system turn.")
    ] = False,
    max_new_tokens: Annotated[
        int, Option(metavar="N", min=1, help="Limit of an answer or a judgement.")
    ] = 1024,
    shard: ShardOption = None,
    dry_run: DryRun = False,
    *,
    asking: Asking,
) -> None:
    """Let models answer prompts, and a judge score the answers.

    Without --judge the rows hold the answers alone, which `zephyr binarize --rule delta` reads.

    \b
    example: zephyr feedback prompts.jsonl --out feedback.jsonl \\
        --answerers hf:runs/a,hf:runs/b,hf:runs/c,hf:runs/d \\
        --judge openai:gpt-4o@https://api.openai.com/v1
    """
    from zephyr.distill.costs import feedback_costs, plan_feedback
    from zephyr.distill.feedback import collect_feedback
    from zephyr.distill.shards import shard_path
    from zephyr.teacher.spec import split_specs

    part_of = read_shard(shard)
    written = shard_path(out, part_of) if part_of else out
    teachers = [asking.open_teacher(spec) for spec in split_specs(answerers)]
    scorer = None if judge is None else asking.open_teacher(judge)
    if dry_run:
        own, paid, _ = shard_files(asking, out, part_of)
        run = plan_feedback(
            teachers,
            scorer,
            per_prompt=per_prompt,
            seed=asking.seed,
            principles=not no_principles,
            max_tokens=max_new_tokens,
            templates=asking.templates,
            shard=part_of,
        )
        for line in feedback_costs(run, prompts, [own, *paid], asking.prices()):
            print(line)
        return
    with open_ask(asking, out, part_of) as (ask, spent):
        report = collect_feedback(
            prompts,
            written,
            teachers,
            scorer,
            ask,
            per_prompt=per_prompt,
            seed=asking.seed,
            principles=not no_principles,
            max_tokens=max_new_tokens,
            templates=asking.templates,
            shard=part_of,
        )
        print_unread_keys(report)
        write_summary(
            written,
            {**report, **spent()},
            f"{report['rows']} prompts, each answered by {per_prompt} and "
            f"{judged_by(scorer, report)}",
        )


def judged_by(judge: "Teacher | None", report: Mapping[str, object]) -> str:
    """What the summary of `feedback` says of the judge."""
    if judge is None:
        return "judged by nobody"
    return f"judged by {judge.name}; {report.get('unparsed', 0)} judgements could not be read"


def merge(
    out: Annotated[
        Path, Argument(metavar="OUT", help="The output that --out named for every shard.")
    ],
    parts: Annotated[
        list[Path] | None,
        Argument(metavar="PART", help="What the shards wrote, in any order. Default: beside OUT."),
    ] = None,
) -> None:
    """Make one file of the shards of self-instruct, prepare or feedback.

    It writes OUT, its report and its ledger as one run without --shard does, and asks nobody. Run
    it in the folder in which the shards ran: it reads the same sources.

    \b
    example: zephyr feedback prompts.jsonl ... --out feedback.jsonl --shard 0/2
             zephyr feedback prompts.jsonl ... --out feedback.jsonl --shard 1/2
             zephyr merge feedback.jsonl
    """
    from zephyr.distill.merge import merge, summary

    report = merge(out, parts or [])
    if "rows_kept" in report:  # of prepare, which has written it
        print(f"{out}: {summary(report)}")
    else:
        write_summary(out, report, summary(report))


def binarize(
    sources: Annotated[
        list[str],
        Argument(metavar="SOURCE", help="path-or-hub-id[:split] of feedback or pairwise rows."),
    ],
    out: Annotated[Path, Option(metavar="FILE", help="Pair rows (.jsonl).")],
    rule: Annotated[
        str,
        Option(metavar="RULE", help="One of the rules above; K of margin>=K is a number > 0."),
    ] = "paper",
    strong: Annotated[
        list[str] | None,
        Option(metavar="MODEL", help="Rule delta: its answers are chosen. Can be repeated."),
    ] = None,
    weak: Annotated[
        list[str] | None,
        Option(metavar="MODEL", help="Rule delta: its answers are rejected. Can be repeated."),
    ] = None,
    max_length_difference: Annotated[
        int | None,
        Option(metavar="N", help="Leave out pairs whose answers differ by more than N words."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        Option(metavar="PATH", help="Count this tokenizer's tokens for it instead of words."),
    ] = None,
    take: Annotated[
        list[str] | None,
        Option(
            metavar="SOURCE=N",
            help="Write N pairs, drawn by --seed, of a SOURCE as it is given here, or of rows "
            "whose source or dataset is SOURCE; all of the others. Can be repeated.",
        ),
    ] = None,
    on_policy: Annotated[
        list[str] | None,
        Option(
            metavar="MODEL",
            help="The policy's name in the rows: every pair has one of its answers. Can be "
            "repeated.",
        ),
    ] = None,
    on_policy_side: Annotated[
        Literal["any", "chosen", "rejected"], Option(help="Where the policy's answer stands.")
    ] = "any",
    mix: Annotated[
        str | None,
        Option(
            metavar="on=N,off=M",
            help="Write N pairs with an answer of --on-policy and M without, drawn by --seed, each "
            "of another row.",
        ),
    ] = None,
    seed: Annotated[int, Option(help="Seed of the random choices of the rule.")] = 42,
    drop_source: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Leave out the rows whose source or dataset is NAME, such as truthful_qa. Can be "
            "repeated.",
        ),
    ] = None,
    drop_prompts: Annotated[
        list[str] | None,
        Option(
            metavar="FILE",
            help="Leave out the rows whose prompt is one of this file's, such as TruthfulQA's "
            "questions. Can be repeated.",
        ),
    ] = None,
    test_rows: Annotated[
        int | None,
        Option(
            metavar="N",
            help="Rule handbook: write the pairs of N rows to OUT's name with .test before the "
            "ending, drawn as the published set's were (2000).",
        ),
    ] = None,
    fix_overall: Annotated[
        bool,
        Option(
            "--fix-overall",
            help="Correct UltraFeedback's overall scores of 10 that contradict a low mean of the "
            "aspects: 1 if the mean is at most 2, no score if it is at most 4.",
        ),
    ] = False,
) -> None:
    """Turn feedback into preference pairs for train_dpo.py.

    It also reads pairwise preferences, which keep their own verdict. Rules for feedback:

    \b
      paper          highest mean score against a random other answer
      handbook       highest overall score against a random other answer
      argilla        highest mean score against a random one with a lower mean
      best-vs-worst  highest mean score against the lowest mean
      margin>=K      highest mean score against the highest that is lower by K or more
      delta          an answer of a --strong model against one of a --weak model, no scores

    \b
    example: zephyr binarize feedback.jsonl --rule paper --seed 42 --out pairs.jsonl

    \b
    the script of HuggingFaceH4/ultrafeedback_binarized:
      zephyr binarize openbmb/UltraFeedback --rule handbook --drop-source truthful_qa \\
          --drop-prompts truthful_qa:generation:validation --test-rows 2000 --out pairs.jsonl

    \b
    delta learning, and a mix of on- and off-policy pairs:
      zephyr binarize answers.jsonl --rule delta --strong qwen3-32b --weak qwen3-0.6b \\
          --max-length-difference 100 --out delta.jsonl
      zephyr binarize feedback.jsonl --rule argilla --on-policy sft --mix on=5000,off=15000 \\
          --out mixed.jsonl
    """
    from zephyr.distill.binarize import binarize
    from zephyr.distill.pair_options import PairOptions, read_mix, read_take

    report = binarize(
        sources,
        out,
        rule=rule,
        seed=seed,
        drop_sources=tuple(drop_source or ()),
        fix_overall=fix_overall,
        options=PairOptions(
            strong=tuple(strong or ()),
            weak=tuple(weak or ()),
            max_length_difference=max_length_difference,
            tokenizer=tokenizer,
            take=read_take(take or ()),
            on_policy=tuple(on_policy or ()),
            on_policy_side=on_policy_side,
            mix=read_mix(mix),
            drop_prompts=tuple(drop_prompts or ()),
            test_rows=test_rows,
        ),
    )
    print_warnings(report)
    print_unread_keys(report)
    print(
        f"{out}: {report['pairs']} pairs of {report['rows']} rows; "
        f"left out: {format_counts(part(report, 'dropped'))}"
    )
    if test_rows is not None:
        test = part(report, "test")
        print(f"{test['out']}: {test['pairs']} of these pairs, of {test['rows']} rows")


def lineage(
    id: Annotated[str, Argument(metavar="ID", help="Of the pair, or of its prompt.")],
    pairs: Annotated[
        Path | None,
        Option(metavar="FILE", help="The pairs. Default: what --run was trained on."),
    ] = None,
    run: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="A run folder, to show in which steps the pair was used."),
    ] = None,
    whole: Annotated[bool, Option("--whole", help="Do not cut long texts.")] = False,
) -> None:
    """Show where a pair comes from and which steps used it.

    \b
    example: zephyr lineage 6f1c0b --run runs/dpo
    """
    from zephyr.distill.lineage import trace_pair

    for line in trace_pair(id, pairs, run, whole=whole):
        print(line)


def world(
    dir: Annotated[Path, Argument(metavar="FOLDER", help="Folder to write.")],
    seed: Annotated[int, Option(help="Seed of facts, prompts and initial weights.")] = 0,
) -> None:
    """Write the embedded world, a tiny data set for tests.

    It holds facts, prompts, prose, demonstrations and an untrained model.

    \b
    example: zephyr world runs/tiny/world
    """
    from zephyr.data.jsonl import write_rows
    from zephyr.world import facts, recipe, untrained

    built = facts.build_world(seed)
    rows = recipe.world_rows(built, seed)
    for name, of_file in rows.items():
        write_rows(dir / f"{name}.jsonl", of_file)
        print(f"{dir / name}.jsonl: {len(of_file)} rows")
    facts.save_world(built, dir / "world.json")
    texts = recipe.tokenizer_texts(rows)
    parameters = untrained.save_untrained(texts, dir / "untrained", seed=seed)
    print(f"{dir / 'untrained'}: tokenizer and untrained model, {parameters:,} parameters")
