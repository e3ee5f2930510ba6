"""`zephyr eval`, what came after MT-Bench and AlpacaEval: Arena-Hard."""

from pathlib import Path
from typing import Annotated

from typer import Option

from zephyr.cli.asking import Asking, open_ask
from zephyr.cli.evaluation import (
    STORED,
    Answers,
    AnswerTokens,
    Json,
    Judge,
    JudgeTokens,
    OptionalModels,
    OutFolder,
    Temperature,
    missing,
)


def arena_hard(
    models: OptionalModels = None,
    answers: Answers = None,
    from_judgments: Annotated[
        list[str] | None,
        Option(
            metavar="FILE",
            help=f"{STORED} Can be repeated, also for judgments of other models and judges.",
        ),
    ] = None,
    bench_dir: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="arena-hard-auto's data/arena-hard-v2.0: question.jsonl, and the baselines' "
            "answers in model_answer.",
        ),
    ] = None,
    judge: Judge = None,
    out: OutFolder = None,
    category: Annotated[
        list[str] | None,
        Option(
            metavar="NAME", help="hard_prompt or creative_writing. Default: all. Can be repeated."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        Option(metavar="[NAME=]MODEL", help="Replaces the bench's, for all categories."),
    ] = None,
    style_control: Annotated[
        bool,
        Option(
            "--style-control",
            help="Also the win rate with control of length and Markdown. All models of a run are "
            "in one fit.",
        ),
    ] = False,
    length_tokenizer: Annotated[
        str | None,
        Option(
            metavar="PATH",
            help="Counts tokens for --style-control. Default: gpt-4o's, of tiktoken.",
        ),
    ] = None,
    max_new_tokens: AnswerTokens = 4096,
    judge_tokens: JudgeTokens = 16000,
    temperature: Temperature = 0.0,
    json: Json = False,
    *,
    asking: Asking,
) -> None:
    """Compare models with the baselines of Arena-Hard.

    A judge compares the answers with those of the baseline, in both orders; a clear win counts for
    three.

    \b
    example: zephyr eval arena-hard runs/dpo/model --bench-dir arena-hard-v2.0 --out runs/arena \\
        --judge openai:gpt-4.1@https://api.openai.com/v1
    """
    from zephyr.evaluation import arena_games
    from zephyr.evaluation.answers import record_digests
    from zephyr.evaluation.arena_hard import result_lines, score_judgments
    from zephyr.evaluation.results import print_results
    from zephyr.evaluation.style import open_token_counter

    about: dict[str, object]
    if from_judgments:
        stored = arena_games.read_stored_judgments(
            from_judgments,
            answers or (),
            [folder for folder in (out, bench_dir) if folder],
            categories=category,
            count_tokens=open_token_counter(length_tokenizer) if length_tokenizer else None,
        )
        judgments, styles = stored.judgments, stored.styles
        about = {
            "records": record_digests(from_judgments),
            "answers": arena_games.text_digests(stored.texts),
        }
    else:
        named = [*(models or ()), *(answers or ())]
        if not named or judge is None or out is None or bench_dir is None:
            needed = {"--judge": judge, "--out": out, "--bench-dir": bench_dir}
            raise missing({"a MODEL or --answers": named, **needed})
        arena = arena_games.open_arena(
            bench_dir, asking.open_teacher, categories=category, baseline=baseline
        )
        judging = asking.open_teacher(judge)
        with open_ask(asking, out) as (ask, _):
            judgments, about, styles = arena_games.play(
                named,
                arena,
                judge=judging,
                open_teacher=asking.open_teacher,
                ask=ask,
                out=out,
                limits=arena_games.AnswerLimits(max_new_tokens, temperature, asking.seed),
                judge_tokens=judge_tokens,
                count_tokens=open_token_counter(length_tokenizer) if style_control else None,
                with_metadata=length_tokenizer is None,
                templates=asking.templates,
            )
    scores = score_judgments(judgments, styles if style_control else None)
    results = {name: {**of, **about} for name, of in scores.items()}
    print_results(results, result_lines(results), out and out / "results.json", json)
