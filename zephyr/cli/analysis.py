"""The commands about what each pair of a run did, and about published cards."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from zephyr import progress
from zephyr.config import BadInput


def pairs(
    run: Annotated[Path, Argument(metavar="RUN", help="The folder of a run of train_dpo.py.")],
    out: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="The table, .parquet or .csv (default: RUN/pairs.parquet); with --select the "
            "rows, .jsonl.",
        ),
    ] = None,
    rows: Annotated[
        Literal["visit", "pair"],
        Option(help="A row for each pair and visit, or for each pair, with its last visit."),
    ] = "visit",
    select: Annotated[
        str | None,
        Option(
            metavar="RULE",
            help="Write rows of the run's data.train instead: [not] top N|N%, bottom N|N% or band "
            "A..B, then `of COLUMN`; `and` joins several.",
        ),
    ] = None,
    weight: Annotated[
        float | None,
        Option(
            metavar="W",
            help="With --select: write all rows, with `weight` 1 where RULE selects and W "
            "elsewhere. train_dpo.py trains on the weights.",
        ),
    ] = None,
    similarity: Annotated[
        bool,
        Option(
            "--similarity/--no-similarity",
            help="The column similarity, which needs rapidfuzz (zephyr[data]).",
        ),
    ] = True,
    ches: Annotated[
        bool,
        Option("--ches", help="The columns ches and ches_normalized: a forward pass of a model."),
    ] = False,
    folds: Annotated[
        int | None,
        Option(
            metavar="K",
            help="The column flip_suspicion_folds: cross-validated over K parts of the pairs, on "
            "hidden states of a model.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="The model of --ches and --folds. Default: the run's own, which is its reference.",
        ),
    ] = None,
) -> None:
    """Write a table of every pair that a run trained on, or a new training set.

    The table has texts, lengths, log-probs, rewards and suspected flipped labels; its columns are
    in zephyr/analysis/README.md.

    \b
    example: zephyr pairs runs/tiny/dpo --out pairs.csv
             zephyr pairs runs/tiny/dpo --select "not top 5% of flip_suspicion" --out kept.jsonl
    """
    from zephyr.analysis.export import Wanted, export_selection, export_table

    wanted = Wanted(similarity, ches, folds, model)
    if select is None and weight is not None:
        raise BadInput("--weight: expected --select RULE beside it, which says whose weight it is")
    if select is not None:
        said = export_selection(run, out, select, weight, wanted)
    else:
        said = export_table(run, out, rows, wanted)
    for line in said:
        if line.startswith("warning:"):
            progress.warn(line.removeprefix("warning: "))
        else:
            progress.print_result(line)


def cards(
    run: Annotated[
        Path,
        Argument(
            metavar="RUN",
            help="The folder of a run of train_dpo.py with data.eval, or a .parquet of "
            "zephyr score --reference.",
        ),
    ],
    step: Annotated[
        int | None,
        Option(metavar="N", help="The evaluation after N updates. Default: the last."),
    ] = None,
    card: Annotated[
        str | None, Option(metavar="NAME", help="Only this card. Default: all that are known.")
    ] = None,
    gpus: Annotated[
        int | None, Option(metavar="N", help="With --batch: another layout, without a card.")
    ] = None,
    batch: Annotated[
        int | None, Option(metavar="N", help="Rows of a GPU in a batch of the evaluation.")
    ] = None,
    rows: Annotated[
        int | None, Option(metavar="N", help="With --gpus: only the first N rows. Default: all.")
    ] = None,
    json: Annotated[bool, Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare a run with published cards, on the pairs that they are about.

    The rewards of cards from before 2025 are of the pairs of one GPU. The loss is of all pairs.

    \b
    example: zephyr cards runs/zephyr-7b-beta/dpo --card zephyr-7b-beta
    """
    from json import dumps

    from zephyr.analysis import cards as published

    evaluated = published.read_evaluated(run, step)
    if (gpus is None) != (batch is None) or (rows is not None and gpus is None):
        raise BadInput("a layout is --gpus N and --batch N, and --rows N if you like")
    if gpus is not None and batch is not None:
        chosen = [published.custom_card(gpus, batch, rows, evaluated)]
    else:
        chosen = published.named_cards(card)
    compared = [published.compare_card(one, evaluated) for one in chosen]
    if json:
        print(dumps({"evaluation": evaluated.name, "notes": evaluated.notes, "cards": compared}))
        return
    print("\n".join(published.page_lines(evaluated, compared)))
