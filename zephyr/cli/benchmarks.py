"""`zephyr eval`, what came after MT-Bench and AlpacaEval: Arena-Hard, IFEval and IFBench, and the
best of n answers."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from zephyr.cli.asking import SPEC, Asking, open_ask
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
from zephyr.config import BadInput

OptionalSamplers = Annotated[
    list[str] | None, Argument(metavar="[NAME=]MODEL", help=f"A model folder or {SPEC}.")
]


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
    from zephyr.evaluation.answers import answer_digests, record_digests
    from zephyr.evaluation.arena_hard import result_lines, score_judgments
    from zephyr.evaluation.results import print_results
    from zephyr.evaluation.style import open_token_counter

    if length_tokenizer is not None and not style_control:
        raise BadInput("--length-tokenizer: nothing counts tokens, expected --style-control")
    named = [*(models or ()), *(answers or ())]
    about: dict[str, object]
    if from_judgments:
        stored = arena_games.read_stored_judgments(
            from_judgments,
            named,
            [folder for folder in (out, bench_dir) if folder],
            categories=category,
            count_tokens=open_token_counter(length_tokenizer) if length_tokenizer else None,
        )
        judgments, styles = stored.judgments, stored.styles
        about = {
            "records": record_digests(from_judgments),
            "answers": answer_digests({name: of.items() for name, of in stored.texts.items()}),
        }
    else:
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


def ifeval(
    prompts: Annotated[
        str,
        Option(
            metavar="FILE",
            help="IFEval's input_data.jsonl or IFBench's IFBench_test.jsonl: rows of key, prompt, "
            "instruction_id_list and kwargs.",
        ),
    ],
    out: Annotated[
        Path,
        Option(metavar="FOLDER", help="For responses, what they follow, and results.json."),
    ],
    models: OptionalModels = None,
    answers: Answers = None,
    max_new_tokens: AnswerTokens = 1280,
    temperature: Temperature = 0.0,
    json: Json = False,
    *,
    asking: Asking,
) -> None:
    """Check how often answers follow instructions that code can verify.

    The prompts and checkers are those of IFEval, or of IFBench.

    \b
    example: zephyr eval ifeval runs/dpo/model --prompts input_data.jsonl --out runs/ifeval
    """
    from zephyr.evaluation.instruction_following import (
        evaluate_instructions,
        read_tasks,
        result_lines,
    )
    from zephyr.evaluation.results import print_results

    named = [*(models or ()), *(answers or ())]
    if not named:
        raise BadInput("a MODEL or --answers: required")
    tasks = read_tasks(prompts)
    with open_ask(asking, out) as (ask, _):
        results = evaluate_instructions(
            named,
            tasks,
            open_teacher=asking.open_teacher,
            ask=ask,
            out=out,
            seed=asking.seed,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
    print_results(results, result_lines(results), out / "results.json", json)


def best_of_n(
    prompts: Annotated[
        list[str], Option(metavar="FILE", help="Rows with a prompt. Can be repeated.")
    ],
    out: Annotated[
        Path,
        Option(
            metavar="FOLDER",
            help="For NAME.jsonl of the best answers, NAME.candidates.jsonl of all, results.json.",
        ),
    ],
    models: OptionalSamplers = None,
    answers: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]FILE",
            help="Stored answers: rows of prompt_id and completions with a text each, as many of "
            "each prompt. Can be repeated.",
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        Option(
            metavar="SCORER",
            help=f"A judge ({SPEC}), rm:PATH, a sequence classifier, or implicit:POLICY@REFERENCE, "
            "a log-ratio. Default: the scores that are stored with --answers.",
        ),
    ] = None,
    samples: Annotated[int, Option(metavar="N", min=1, help="Answers of each prompt.")] = 8,
    max_new_tokens: AnswerTokens = 1024,
    judge_tokens: JudgeTokens = 1024,
    temperature: Temperature = 1.0,
    json: Json = False,
    *,
    asking: Asking,
) -> None:
    """Score n answers of each prompt and choose the best.

    The mean score of the best of k answers is given for k = 1, 2, 4, ... and n.

    \b
    example: zephyr eval best-of-n runs/dpo/model --prompts test.jsonl --samples 16 \\
        --scorer rm:REWARD_MODEL --out runs/best
    """
    from zephyr.evaluation import best_of_n as best
    from zephyr.evaluation.results import print_results
    from zephyr.teacher.prompts import read_prompts

    if not models and not answers:
        raise BadInput("a MODEL or --answers: required")
    if models and scorer is None:
        raise BadInput("--scorer: required to score new answers")
    best.require_candidate_names(answers or (), models or ())
    rows = list(read_prompts(prompts))
    with open_ask(asking, out) as (ask, _):
        found = [best.read_candidates(argument, rows, out) for argument in answers or ()]
        for argument in models or ():
            candidates = best.sample_answers(
                argument,
                rows,
                n=samples,
                open_teacher=asking.open_teacher,
                ask=ask,
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=asking.seed,
            )
            found.append(candidates)
        results = best.choose(
            found,
            rows,
            scorer,
            ask,
            out,
            open_teacher=asking.open_teacher,
            templates=asking.templates,
            seed=asking.seed,
            judge_tokens=judge_tokens,
        )
    print_results(results, best.result_lines(results), out / "results.json", json)
