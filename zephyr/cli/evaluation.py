"""`zephyr eval`: models answer, and a judge compares or grades the answers; academic tasks; stored
records are scored again. `zephyr score`: implicit rewards of given answers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from zephyr.cli.asking import SPEC, Asking, open_ask
from zephyr.config import BadInput

if TYPE_CHECKING:
    from zephyr.evaluation.score import TokenScores

MODEL = f"A model folder, {SPEC}, or a file of answers."
OptionalModels = Annotated[list[str] | None, Argument(metavar="[NAME=]MODEL", help=MODEL)]
Answers = Annotated[
    list[str] | None,
    Option(metavar="[NAME=]FILE", help="A file of answers, as another MODEL. Can be repeated."),
]
Judge = Annotated[str | None, Option(metavar="SPEC", help=f"The judge: {SPEC}.")]
OutFolder = Annotated[
    Path | None, Option(metavar="FOLDER", help="For answers, judgements and results.json.")
]
AnswerTokens = Annotated[int, Option("--max-new-tokens", metavar="N", help="Limit of an answer.")]
JudgeTokens = Annotated[int, Option("--judge-tokens", metavar="N", help="Limit of a judgement.")]
Temperature = Annotated[float, Option(metavar="T", help="Of the answers; 0: greedy.")]
Json = Annotated[bool, Option("--json", help="Print the results as JSON, and nothing else.")]
STORED = "Score these records (.json, .jsonl, also .gz), and ask nobody."


def win_rate(
    models: Annotated[
        list[str],
        Argument(
            metavar="[NAME=]MODEL",
            help=f"A model folder, {SPEC}, or answers: rows of prompt_id and text, or AlpacaEval's "
            "model_outputs.json.",
        ),
    ],
    prompts: Annotated[
        list[str], Option(metavar="FILE", help="Rows with a prompt. Can be repeated.")
    ],
    out: Annotated[
        Path,
        Option(metavar="FOLDER", help="For NAME.jsonl of answers, verdicts.jsonl, results.json."),
    ],
    judge: Annotated[
        str | None,
        Option(metavar="SPEC", help=f"The judge: {SPEC}. Required without --from-verdicts."),
    ] = None,
    from_verdicts: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Score the verdicts of this verdicts.jsonl, and ask nobody. Models are the files "
            "of answers that it is about.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        Option(metavar="FIELD", help="Also give all results for each value of this prompt field."),
    ] = None,
    scores: Annotated[
        bool, Option("--scores", help="Also ask for a score of each answer, 1 to 10.")
    ] = False,
    labels: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Preferences of people: rows of prompt_id and preferred, which is a NAME or tie.",
        ),
    ] = None,
    max_new_tokens: AnswerTokens = 1024,
    judge_tokens: JudgeTokens = 1024,
    temperature: Temperature = 0.0,
    json: Json = False,
    *,
    asking: Asking,
) -> None:
    """Let a judge compare the answers of models.

    Each model is compared with every one before it, in both orders.

    \b
    example: zephyr eval win-rate dSFT=runs/sft/model dDPO=runs/dpo/model --prompts test.jsonl \\
        --judge openai:gpt-4o@https://api.openai.com/v1 --out runs/eval
    """
    from zephyr.evaluation.answers import record_digests
    from zephyr.evaluation.results import print_results, win_rate_lines
    from zephyr.evaluation.win_rate import evaluate_win_rate, score_verdicts

    if from_verdicts is not None:
        if scores:
            raise BadInput("--scores: verdicts are no scores; ask a judge, without --from-verdicts")
        again = score_verdicts(
            models,
            prompts=prompts,
            verdicts=from_verdicts,
            open_teacher=asking.open_teacher,
            by=by,
            labels=labels,
        )
        about = {"records": record_digests([str(from_verdicts)])}
        print_results({**again, **about}, win_rate_lines(again), out / "results.json", json)
        return
    if judge is None:
        raise missing({"--judge": judge})
    judging = asking.open_teacher(judge)
    with open_ask(asking, out) as (ask, spent):
        compared, judged_by = evaluate_win_rate(
            models,
            prompts=prompts,
            judge=judging,
            open_teacher=asking.open_teacher,
            ask=ask,
            out=out,
            by=by,
            scores=scores,
            labels=labels,
            templates=asking.templates,
            seed=asking.seed,
            max_new_tokens=max_new_tokens,
            judge_tokens=judge_tokens,
            temperature=temperature,
        )
        results = {**compared, **spent(), "judge": judged_by}
    print_results(results, win_rate_lines(compared), out / "results.json", json)


def mt_bench(
    models: OptionalModels = None,
    answers: Answers = None,
    from_judgments: Annotated[str | None, Option(metavar="FILE", help=STORED)] = None,
    bench_dir: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="FastChat's question.jsonl, reference_answer/gpt-4.jsonl and, to replace our "
            "judge prompts, judge_prompts.jsonl.",
        ),
    ] = None,
    judge: Judge = None,
    out: OutFolder = None,
    max_new_tokens: AnswerTokens = 1024,
    judge_tokens: JudgeTokens = 2048,
    json: Json = False,
    mode: Annotated[
        Literal["single", "pairwise"],
        Option(help="pairwise: compare each two models, in both orders."),
    ] = "single",
    *,
    asking: Asking,
) -> None:
    """Ask MT-Bench's questions and let a judge grade.

    The questions have two turns. The judge can also compare the answers.

    \b
    example: zephyr eval mt-bench runs/dpo/model --bench-dir mt --out runs/mt \\
        --judge openai:gpt-4@https://api.openai.com/v1
    """
    from zephyr.data.jsonl import read_rows
    from zephyr.evaluation.answers import answer_digests, record_digests
    from zephyr.evaluation.benchmarks import evaluate_mt_bench, load_bench, stored_turns
    from zephyr.evaluation.mt_bench import require_turns, score_judgments
    from zephyr.evaluation.results import print_scores

    named = [*(models or ()), *(answers or ())]
    bench = load_bench(bench_dir, asking.templates) if bench_dir else None
    questions = bench.questions if bench else []
    categories = {row["question_id"]: str(row["category"]) for row in questions}
    if from_judgments is not None:
        about: dict[str, object] = {"records": record_digests([from_judgments])}
        stored = stored_turns(named)
        if stored:
            require_turns(read_rows([from_judgments]), stored)
            about["answers"] = answer_digests({name: of.items() for name, of in stored.items()})
        scores = score_judgments(read_rows([from_judgments]), categories)
        print_scores(scores, about, out and out / "results.json", json)
        return
    if not named or judge is None or out is None or bench is None:
        raise missing(
            {
                "a MODEL or --answers": named,
                "--judge": judge,
                "--out": out,
                "--bench-dir": bench_dir,
            }
        )
    judging = asking.open_teacher(judge)
    with open_ask(asking, out) as (ask, _):
        rows, about = evaluate_mt_bench(
            bench,
            named,
            judge=judging,
            open_teacher=asking.open_teacher,
            ask=ask,
            out=out,
            pairwise=mode == "pairwise",
            seed=asking.seed,
            max_new_tokens=max_new_tokens,
            judge_tokens=judge_tokens,
        )
    scores = score_judgments((("", row) for row in rows), categories)
    print_scores(scores, about, out / "results.json", json)


def alpaca_eval(
    models: OptionalModels = None,
    answers: Answers = None,
    from_annotations: Annotated[str | None, Option(metavar="FILE", help=STORED)] = None,
    bench_dir: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="AlpacaEval's alpaca_eval_gpt4_baseline.json or alpaca_eval.json: prompts, and "
            "the baseline's outputs.",
        ),
    ] = None,
    judge: Judge = None,
    out: OutFolder = None,
    max_new_tokens: AnswerTokens = 2048,
    judge_tokens: JudgeTokens = 2048,
    json: Json = False,
    prompts: Annotated[
        str | None,
        Option(metavar="FILE", help="Rows with a prompt or instruction that replace the bench's."),
    ] = None,
    baseline: Annotated[
        str | None, Option(metavar="[NAME=]MODEL", help="Replaces the bench's outputs.")
    ] = None,
    temperature: Temperature = 0.7,
    length_controlled: Annotated[
        bool,
        Option(
            "--length-controlled",
            help="Also the length-controlled win rate, by the package alpaca_eval.",
        ),
    ] = False,
    *,
    asking: Asking,
) -> None:
    """Compare models with a baseline on AlpacaEval.

    A judge compares the answers with those of the baseline, in both orders.

    \b
    example: zephyr eval alpaca-eval runs/dpo/model --bench-dir ae --out runs/ae \\
        --judge openai:gpt-4@https://api.openai.com/v1
    """
    from zephyr.data.jsonl import read_rows
    from zephyr.evaluation.alpaca import annotated_answers, score_annotations
    from zephyr.evaluation.answers import (
        answer_digests,
        open_contenders,
        record_digests,
        require_answers_of,
    )
    from zephyr.evaluation.benchmarks import alpaca_file, evaluate_alpaca
    from zephyr.evaluation.results import print_scores

    named = [*(models or ()), *(answers or ())]
    if from_annotations is not None:
        judged = annotated_answers(read_rows([from_annotations]))
        contenders = open_contenders(named, asking.open_teacher)
        require_answers_of(from_annotations, judged, contenders)
        scores = score_annotations(
            read_rows([from_annotations]), length_controlled=length_controlled
        )
        about = {
            "records": record_digests([from_annotations]),
            "answers": answer_digests(
                {
                    name: [(row["prompt_id"], text) for row, text in of]
                    for name, of in judged.items()
                }
            ),
        }
        print_scores(scores, about, out and out / "results.json", json)
        return
    bench = bench_dir or (prompts and baseline)
    if not named or judge is None or out is None or not bench:
        raise missing(
            {"a MODEL or --answers": named, "--judge": judge, "--out": out, "--bench-dir": bench}
        )
    theirs = alpaca_file(bench_dir) if bench_dir else Path()
    judging = asking.open_teacher(judge)
    with open_ask(asking, out) as (ask, _):
        rows, about = evaluate_alpaca(
            named,
            prompts=prompts or theirs,
            baseline=baseline or f"baseline={theirs}",
            judge=judging,
            open_teacher=asking.open_teacher,
            ask=ask,
            out=out,
            templates=asking.templates,
            seed=asking.seed,
            max_new_tokens=max_new_tokens,
            judge_tokens=judge_tokens,
            temperature=temperature,
        )
    annotations = (("", row) for row in rows)
    scores = score_annotations(annotations, length_controlled=length_controlled)
    print_scores(scores, about, out / "results.json", json)


def missing(given: Mapping[str, object]) -> BadInput:
    """What an evaluation lacks that does not score stored records."""
    names = ", ".join(name for name, value in given.items() if not value)
    return BadInput(f"{names}: required, except to score stored records")


def academic(
    models: Annotated[
        list[str],
        Argument(metavar="[NAME=]MODEL", help="A model folder, hf:FOLDER, or a hub id."),
    ],
    tasks: Annotated[
        str,
        Option(
            metavar="NAME-SHOTS,...",
            help="Of arc, arc-easy, hellaswag, mmlu, truthfulqa, gsm8k.",
        ),
    ] = "arc-25,hellaswag-10,mmlu-5,truthfulqa-0",
    local: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Files with the rows. Default: the hub has them."),
    ] = None,
    limit: Annotated[
        int | None,
        Option(metavar="N", help="First questions of each task, and of each of MMLU's subjects."),
    ] = None,
    batch: Annotated[int, Option(metavar="N", help="Questions at a time.")] = 8,
    out: Annotated[Path | None, Option(metavar="FILE", help="For the results (.json).")] = None,
    json: Json = False,
) -> None:
    """Score models on the Open LLM Leaderboard's tasks.

    It runs them by lm-evaluation-harness.

    \b
    example: zephyr eval academic dSFT=runs/sft/model dDPO=runs/dpo/model --out runs/academic.json
    """
    from zephyr.evaluation.academic import evaluate_academic, parse_tasks, result_lines
    from zephyr.evaluation.results import print_results

    results = evaluate_academic(
        models, parse_tasks(tasks), local=local, limit=limit, batch_size=batch
    )
    print_results(results, result_lines(results), out, json)


def score(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="A model folder, a hub id, or a run folder: its exported model, with its "
            "settings as defaults.",
        ),
    ],
    pairs: Annotated[
        list[str],
        Argument(
            metavar="PAIRS...",
            help="Rows as train_dpo.py reads them, or of RewardBench, RewardBench 2, LLMBar or "
            "PandaLM: files, folders or hub data sets, PATH[:SPLIT].",
        ),
    ],
    reference: Annotated[
        str | None,
        Option(metavar="MODEL", help="The reference. Default: none, log-probs only."),
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="For a row a pair: .parquet, .csv or .jsonl.")
    ] = None,
    per_token: Annotated[
        bool, Option("--per-token", help="Also the text and log-probs of each token, in --out.")
    ] = False,
    tokens: Annotated[
        Path | None,
        Option(metavar="FILE", help="For a page (.html) that colours tokens by their log-ratio."),
    ] = None,
    tokens_rows: Annotated[
        int,
        Option(metavar="N", min=1, help="Rows on that page: those with the lowest margins."),
    ] = 200,
    beta: Annotated[
        float | None, Option(metavar="B", help="Of the rewards. Default: the run's, else 0.1.")
    ] = None,
    max_tokens: Annotated[
        int | None, Option(metavar="N", help="As data.max_tokens. Default: the run's, else 1024.")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None,
        Option(metavar="N", help="As data.max_prompt_tokens. Default: the run's, else 512."),
    ] = None,
    limit: Annotated[int | None, Option(metavar="N", min=1, help="Rows read at most.")] = None,
    on_bad_row: Annotated[
        Literal["error", "skip"], Option(help="As data.on_bad_row: skipped rows are listed.")
    ] = "error",
    chat_template: Annotated[
        str | None,
        Option(metavar="NAME|FILE", help="As chat_template. Default: the run's, else auto."),
    ] = None,
    tokenizer: Annotated[
        str | None, Option(metavar="PATH", help="As tokenizer. Default: the model's.")
    ] = None,
    eos_token: Annotated[
        str | None, Option(metavar="TOKEN", help="As eos_token. Default: the run's.")
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        Option(help="Default: the run's, else bfloat16 on a GPU and float32 on a CPU."),
    ] = None,
    attention: Annotated[
        Literal["flash_attn", "torch_varlen", "sdpa"] | None,
        Option(help="Default: the run's, else torch_varlen on a GPU and sdpa on a CPU."),
    ] = None,
    tokens_per_micro_batch: Annotated[
        int | None,
        Option(metavar="N", help="Default: the run's, else 16384 on a GPU and 2048 on a CPU."),
    ] = None,
    json: Json = False,
) -> None:
    """Score pairs by the implicit reward of a model.

    The reward of an answer is beta times its log-ratio under the model and the reference.

    \b
    example: zephyr score runs/dpo test.jsonl --reference runs/sft/model --out scores.parquet
    """
    given = {
        "beta": beta,
        "max_tokens": max_tokens,
        "max_prompt_tokens": max_prompt_tokens,
        "chat_template": chat_template,
        "tokenizer": tokenizer,
        "eos_token": eos_token,
        "dtype": dtype,
        "attention": attention,
        "tokens_per_micro_batch": tokens_per_micro_batch,
    }
    if out is not None:
        require_suffix("--out", out, ".parquet", ".csv", ".jsonl")
    if tokens is not None:
        require_suffix("--tokens", tokens, ".html")
        if reference is None:
            raise BadInput("--tokens: colours are log-ratios, expected a --reference")
    if per_token and out is None:
        raise BadInput("--per-token: expected --out FILE, where they are written")
    from zephyr.data.tables import write_table
    from zephyr.evaluation import score as scoring
    from zephyr.evaluation import score_table
    from zephyr.evaluation.results import print_results
    from zephyr.evaluation.score_settings import read_settings

    settings = read_settings(model, given)
    scored, read_tokenizer = scoring.score(
        pairs,
        settings,
        reference=reference,
        limit=limit,
        on_bad_row=on_bad_row,
        per_token=per_token or tokens is not None,
    )
    if out is not None:
        table = score_table.score_table(scored, read_tokenizer, per_token=per_token)
        write_table(out, table)
    if tokens is not None:
        write_tokens_page(tokens, score_table.pairs_by_margin(scored, read_tokenizer, tokens_rows))
    results = score_table.score_results(scored, settings, reference)
    print_results(results, score_table.score_lines(scored, results), None, json)
    for path in (out, tokens) if not json else ():
        if path is not None:
            print(path)


def require_suffix(option: str, path: Path, *suffixes: str) -> None:
    """Raises: BadInput for a name that ends in none of them, or that is a folder."""
    if path.suffix not in suffixes:
        raise BadInput(f"{option}: expected a name that ends in {', '.join(suffixes)}, got {path}")
    if path.is_dir():
        raise BadInput(f"{option}: {path} is a folder, expected a file")


def write_tokens_page(
    path: Path, rows: "Iterable[tuple[str, str, TokenScores, TokenScores]]"
) -> None:
    """Args: rows: id, prompt, chosen and rejected of each. Raises: BadInput if the disk refuses."""
    from zephyr.report.tokens import ScoredPair, tokens_page
    from zephyr.training.files import write_atomic

    pairs = [ScoredPair(*row) for row in rows]
    page = tokens_page(pairs, f"Tokens of {len(pairs)} pairs, lowest margin first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page.encode())
    except OSError as error:
        raise BadInput(f"--tokens: {path} can't be written: {error.strerror}") from None
