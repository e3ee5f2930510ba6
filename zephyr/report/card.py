"""A finished run becomes the model card of its export, in the Hub's format."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from zephyr.config import DPOConfig, SFTConfig, source_paths, to_yaml
from zephyr.training.files import read_forced_resumes

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::[\w.-]+)?")
LICENCE_NOTE = (
    "The licence follows from those of base model and data: whoever publishes this adds "
    "`license: ...` to the header above.\n\n"
)


def card(
    config: DPOConfig | SFTConfig, digests: Mapping[str, str], *, adapter: bool = False
) -> str:
    """Write the model card: model, data, settings and last evaluation of a run.

    Its header names hub ids only, since the Hub refuses paths, and no licence, since that depends
    on the base model and the data.
    Args:
        digests: SHA-256 of model and data, by name.
        adapter: whether the card is that of the adapter alone, which peft loads.
    """
    run = Path(config.run.dir)
    method = "dpo" if isinstance(config, DPOConfig) else "sft"
    header = card_header(config, method, adapter=adapter)
    sources = ", ".join(f"`{source}`" for source in source_paths(config.data.train))
    files = "".join(f"- {name}: `{digest}`\n" for name, digest in digests.items())
    return (
        f"---\n{header}---\n\n# {run.name}\n\n"
        f"Trained by distilled {method.upper()} (arXiv:2310.16944) from `{config.model}` "
        f"on {sources}.\n\n"
        f"{LICENCE_NOTE}{evaluation_section(run)}## Recipe\n\n{forced_resumes(run)}"
        f"SHA-256 of what it was made from:\n\n{files}"
        f"\n```yaml\n{to_yaml(config)}```\n"
    )


def card_header(config: DPOConfig | SFTConfig, method: str, *, adapter: bool = False) -> str:
    """The YAML that the Hub reads."""
    header: dict[str, object] = {}
    if base := base_model(config.model):
        header["base_model"] = base
    if datasets := hub_ids(source_paths(config.data.train)):
        header["datasets"] = datasets
    header["library_name"] = "peft" if adapter else "transformers"
    header["pipeline_tag"] = "text-generation"
    header["tags"] = ["zephyr", method, "lora"] if adapter else ["zephyr", method]
    text: str = yaml.safe_dump(header, sort_keys=False)
    return text


def base_model(model: str) -> str | None:
    """The hub id of a model; of a folder, the base model that its own card names, if it names one.

    So the card of dDPO names the hub model that dSFT started from."""
    if found := hub_ids([model]):
        return found[0]
    path = Path(model) / "README.md"
    parts = path.read_text(encoding="utf-8").split("---\n") if path.is_file() else []
    try:
        header = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
    except yaml.YAMLError:
        return None  # someone else's file; the run must not fail for it
    named = header.get("base_model") if isinstance(header, dict) else None
    return named if isinstance(named, str) and HUB_ID.fullmatch(named) else None


def hub_ids(sources: Sequence[str]) -> list[str]:
    """Those of the sources that are ids of the Hub, without their splits, sorted."""
    found = {match[1] for source in sources if (match := HUB_ID.fullmatch(source))}
    return sorted(name for name in found if not Path(name).exists())


def evaluation_section(run: Path) -> str:
    """The last evaluation in the run's records as a table; "" without one."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    records = map(json.loads, reversed(lines))
    evaluations = (record for record in records if record["split"] == "eval")
    last: dict[str, float | None] = next(evaluations, {})
    numbers = "".join(
        f"| {name} | {value:.6g} |\n"
        for name, value in last.items()
        if name != "split" and value is not None
    )
    if not numbers:
        return ""
    return (
        "## Evaluation\n\nMeans over the run's held-out data after its last step.\n\n"
        f"| metric | value |\n|---|---|\n{numbers}\n"
    )


def forced_resumes(run: Path) -> str:
    """A paragraph for each resume under other settings; "" where there was none."""
    paragraphs = ""
    for resume in read_forced_resumes(run):
        old = ", ".join(f"{name} `{value}`" for name, value in resume["was"].items())
        paragraphs += (
            f"The first {resume['step']} steps were trained under other settings, which "
            f"`run.resume=force` went on from: {old}.\n\n"
        )
    return paragraphs
