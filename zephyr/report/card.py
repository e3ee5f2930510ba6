"""A finished run becomes what a person looks at: the model card of its export, in the Hub's
format."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from zephyr.config import DPOConfig, SFTConfig, to_yaml
from zephyr.training.files import read_forced_resumes

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::[\w.-]+)?")


def card(config: DPOConfig | SFTConfig, digests: Mapping[str, str]) -> str:
    """The model card: what was trained, from what, on what, how, and the run's last evaluation.

    Its header names hub ids alone, since the Hub refuses paths, and no licence: base model and data
    decide that. Args: digests: SHA-256 of model and data, by name."""
    run, method = Path(config.run.dir), "dpo" if isinstance(config, DPOConfig) else "sft"
    models, datasets = (
        sorted(
            {
                found[1]
                for source in sources
                if (found := HUB_ID.fullmatch(source)) and not Path(found[1]).exists()
            }
        )
        for sources in ([config.model], config.data.train)
    )
    header = {
        "base_model": models[0] if models else None,
        "datasets": datasets,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["zephyr", method],
    }
    lines = (
        (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        if (run / "metrics.jsonl").exists()
        else []
    )
    last = next(
        (record for record in map(json.loads, reversed(lines)) if record["split"] == "eval"), {}
    )
    numbers = "".join(
        f"| {name} | {value:.6g} |\n"
        for name, value in last.items()
        if name != "split" and value is not None
    )
    before = "".join(
        f"The first {of['step']} steps were trained under other settings, which `run.resume=force` went on from: "
        f"{', '.join(f'{name} `{value}`' for name, value in of['was'].items())}.\n\n"
        for of in read_forced_resumes(run)
    )
    return (
        f"---\n{yaml.safe_dump({key: value for key, value in header.items() if value}, sort_keys=False)}---\n\n# {run.name}\n\n"
        f"Trained by distilled {method.upper()} (arXiv:2310.16944) from `{config.model}` on {', '.join(f'`{s}`' for s in config.data.train)}.\n\n"
        "The licence follows from those of base model and data: whoever publishes this adds `license: ...` to the header above.\n\n"
        + (
            "## Evaluation\n\nMeans over the run's held-out data after its last step.\n\n| metric | value |\n|---|---|\n"
            + numbers
            + "\n"
            if numbers
            else ""
        )
        + "## Recipe\n\n"
        + before
        + "SHA-256 of what it was made from:\n\n"
        + "".join(f"- {name}: `{digest}`\n" for name, digest in digests.items())
        + f"\n```yaml\n{to_yaml(config)}```\n"
    )
