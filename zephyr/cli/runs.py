"""The commands about training runs: what a run will take, what runs did, whether a run depends on
its layout, and its model on the Hub."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from zephyr import progress
from zephyr.cli.reports import part
from zephyr.config import BadInput

Stage = Annotated[
    Literal["sft", "dpo"] | None,
    Option(
        help="The script that the config is for: train_sft.py or train_dpo.py. Required only where "
        "the config's keys do not show it."
    ),
]


def device_names(incomplete: str) -> list[str]:
    """The names that complete a part of one, for the shell."""
    from zephyr.training.devices import DEVICES

    return [name for name in (*DEVICES, "cpu") if name.startswith(incomplete)]


def plan(
    target: Annotated[
        str,
        Argument(
            metavar="CONFIG",
            help="The YAML file of a training run, as train_sft.py or train_dpo.py take it.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        Argument(metavar="KEY.SUB=VALUE", help="Overrides of its keys, anywhere on the line."),
    ] = None,
    stage: Stage = None,
    gpus: Annotated[int, Option(metavar="N", help="The number of GPUs (ranks) of the run.")] = 1,
    device: Annotated[
        str | None,
        Option(
            metavar="NAME",
            autocompletion=device_names,
            help="The type of the GPUs, as h100 or rtx-4090; cpu: this machine, whose speed is "
            "measured. Default: a100-80. An unknown name prints those that are known.",
        ),
    ] = None,
    memory: Annotated[
        float | None,
        Option(metavar="GB", help="Memory of a GPU that --device does not know."),
    ] = None,
    bandwidth: Annotated[
        float | None, Option(metavar="GB/S", help="The rate of its memory, with --memory.")
    ] = None,
    rate: Annotated[
        float | None,
        Option(metavar="TFLOP/S", help="Its dense bfloat16 rate, with --memory."),
    ] = None,
    host_memory: Annotated[
        float | None,
        Option(
            metavar="GB",
            help="Memory of a machine, which what DeepSpeed offloads to the CPU must fit in.",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        Option(
            metavar="PROFILE|FILE",
            help="Token counts that replace those of the config's data: ultrafeedback, hh, tldr "
            "(pairs), ultrachat (texts), or a .jsonl of prompt, chosen and rejected, or of tokens "
            "and targets.",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        Option(
            metavar="TYPE",
            help="A model type whose default sizes replace the model's config.json; mistral: "
            "Mistral-7B.",
        ),
    ] = None,
    table: Annotated[
        bool,
        Option(
            "--table",
            help="Also print tables of strong and weak scaling up to 1,024 ranks; weak scaling is "
            "predicted for several step sizes.",
        ),
    ] = False,
    json: Annotated[bool, Option("--json", help="Print everything as JSON.")] = False,
    published: Annotated[
        bool,
        Option(
            "--published",
            help="Print the steps of the config on each release of Zephyr's sets, and those of "
            "published runs, instead of a prediction; no data and no model are read.",
        ),
    ] = False,
    compare: Annotated[
        str | None,
        Option(
            metavar="STEP@EPOCH|FILE",
            help="With --published: the last step of a run, as 272@0.67, or its "
            "trainer_state.json; says which release it saw, and if its schedule was too long.",
        ),
    ] = None,
) -> None:
    """Predict the memory and time of a training run.

    It also prints the steps, the packing, and advice for the `hardware` keys of the config.

    \b
    example: zephyr plan configs/zephyr-7b-beta/dpo.yaml optim.epochs=1 \\
        --shape mistral --lengths ultrafeedback --gpus 16 --device a100-80

    \b
    steps of published runs:
      zephyr plan configs/zephyr-7b-beta/sft.yaml --published --compare 272@0.67
    """
    from zephyr.costs.predict import Card, page
    from zephyr.costs.published import published_page

    config, changes = config_and_overrides([target, *(overrides or ())])
    if compare is not None and not published:
        raise BadInput(f"--compare {compare}: expected --published with it")
    if published:
        print(published_page(config, changes, stage=stage, compare=compare))
        return
    print(
        page(
            config,
            changes,
            stage=stage,
            gpus=gpus,
            device=device,
            card=Card(memory, bandwidth, rate),
            host_memory=host_memory,
            lengths=lengths,
            shape=shape,
            table=table,
            as_json=json,
        )
    )


def config_and_overrides(words: list[str]) -> tuple[Path, list[str]]:
    """The one word that is a file, or has no `=`; and all others. Raises: BadInput."""
    configs = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(configs) != 1:
        raise BadInput(
            f"expected one CONFIG and overrides like optim.epochs=2, got {' '.join(words)}"
        )
    rest = list(words)
    rest.remove(configs[0])
    return Path(configs[0]), rest


def verify(
    target: Annotated[
        Path, Argument(metavar="RUN_OR_CONFIG", help="A run folder, or the YAML file of a run.")
    ],
    stage: Stage = None,
    rows: Annotated[int, Option(metavar="N", help="How many of the first rows to use.")] = 32,
    ranks: Annotated[
        int | None,
        Option(
            metavar="N", help="Processes. Default: the GPUs of this machine, or two on the CPU."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="Folder for certificate.json. Default: the run folder, or the config's run.dir.",
        ),
    ] = None,
) -> int:
    """Check that a run does not depend on its layout.

    It trains a short prefix of the run under other layouts and compares the trajectories.

    \b
    example: zephyr verify configs/tiny/dpo.yaml
    """
    from zephyr.verify.certificate import certify, read_config

    config = target / "config.yaml" if target.is_dir() else target
    if out is None:
        out = target if target.is_dir() else Path(read_config(config, stage)[1].run.dir)
    report = certify(config, out, stage=stage, rows=rows, ranks=ranks)
    verdict = "the same trajectory" if report["same"] else "NOT the same trajectory"
    compared = ", ".join(name for name, of in part(report, "variants").items() if "same" in of)
    print(f"{out / 'certificate.json'}: {verdict} under {compared}")
    return 0 if report["same"] else 1


def report(
    runs: Annotated[
        list[Path], Argument(metavar="RUN", help="Run folders, of finished or running runs.")
    ],
    out: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="The page (.html). Default: RUN/report.html; required for several runs.",
        ),
    ] = None,
) -> None:
    """Write a page about training runs.

    It shows curves over each other, alarms, pairs, samples and data.

    \b
    example: zephyr report runs/beta-0.01 runs/beta-0.1 --out runs/sweep.html
    """
    from zephyr.report.page import write_html

    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path())
    if page.suffix != ".html":
        raise BadInput(f"--out: expected a name that ends in .html for {len(runs)} runs, got {out}")
    write_html(runs, page)
    print(page)


def push(
    run: Annotated[
        Path,
        Argument(metavar="RUN", help="A run folder, or the folder of a model or an adapter."),
    ],
    repo_id: Annotated[
        str, Argument(metavar="REPO_ID", help="NAMESPACE/NAME of the repository on the Hub.")
    ],
    adapter: Annotated[
        bool, Option("--adapter", help="Upload RUN/adapter instead of RUN/model.")
    ] = False,
    private: Annotated[
        bool, Option("--private", help="Make the repository private; refuse a public one.")
    ] = False,
    revision: Annotated[
        str | None,
        Option(metavar="BRANCH", help="The branch, made where it is missing. Default: main."),
    ] = None,
    license: Annotated[
        str | None,
        Option(metavar="ID", help="The license in the card, as the Hub writes it: apache-2.0."),
    ] = None,
    base_model: Annotated[
        str | None,
        Option(metavar="REPO_ID", help="The base model in the card, where the card names none."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        Option(metavar="REPO_ID", help="A dataset in the card; repeat it for several."),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check the export, list its files and sizes, and exit.")
    ] = False,
) -> None:
    """Upload a trained model and its card to the Hugging Face Hub.

    All files become one commit. A command that broke off is run again: large files that have
    arrived are not sent twice. The token is that of `hf auth login`, or HF_TOKEN.

    \b
    example: zephyr push runs/dpo me/zephyr-7b-mine --private --license apache-2.0 --dry-run
    """
    from zephyr.report.publish import Tags, files_of, find_export, require_hub_id, upload

    require_hub_id(repo_id, "REPO_ID")
    folder = find_export(run, adapter=adapter)
    files = files_of(folder, Tags(license, base_model, dataset or ()), progress.warn)
    if dry_run:
        for file in files:
            progress.print_result(f"{file.size:>16,}  {file.name}")
        total = sum(file.size for file in files)
        progress.print_result(f"{total:>16,}  bytes in {len(files)} files, to {repo_id}")
        return
    with progress.library_bars():
        url = upload(files, repo_id, private=private, revision=revision, info=progress.info)
    progress.print_result(url)
