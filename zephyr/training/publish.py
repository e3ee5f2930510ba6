"""A trained policy becomes `run.dir/model/`, a Hugging Face folder that generates by the template it was trained with."""
import dataclasses
import json
import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from zephyr.config import ConfigError, DPOConfig, SFTConfig, to_yaml
from zephyr.model.export import export
from zephyr.model.load import local_folder, read_config
from zephyr.training.engine import Engine


def publish(engine: Engine, config: DPOConfig | SFTConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `run.dir/model/`. A collective: rank 0 holds one shard at a time, no rank the whole model."""
    folder = Path(config.run.dir) / "model"
    engine.say(f"export: {folder}")
    export(folder, engine.full_parameters(), engine.parameter_bytes(), engine.policy.lm.config, tokenizer, card(config),
           writes=engine.rank == 0)
    engine.barrier()


def save_report(engine: Engine, config: DPOConfig | SFTConfig, split: str, report: dict[str, object]) -> None:
    """Add what encoding did to a split (rows, tokens cut, rows left out) to `run.dir/data.json`."""
    if engine.rank > 0:
        return
    path = Path(config.run.dir) / "data.json"
    reports = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**reports, split: report}, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(part, path)


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, config: DPOConfig | SFTConfig) -> None:
    """Raises: ConfigError where the tokenizer makes ids that the model has no embedding for, or has no EOS."""
    vocabulary = read_config(local_folder(config.model)).vocab_size
    if len(tokenizer) > vocabulary:
        raise ConfigError(f"tokenizer: at most {vocabulary} tokens are wanted, the vocabulary of {config.model}, got "
                          f"{len(tokenizer)} from {config.tokenizer or config.model}")


def card(config: DPOConfig | SFTConfig) -> str:
    """The model card: what was trained, from what, on what, how."""
    method = "distilled DPO" if isinstance(config, DPOConfig) else "distilled SFT"
    data = "\n".join(f"- `{source}`" for source in config.data.train)
    optim = "\n".join(f"| {key} | {value} |" for key, value in dataclasses.asdict(config.optim).items())
    return (f"---\nbase_model: {config.model}\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- zephyr\n"
            f"- {'dpo' if isinstance(config, DPOConfig) else 'sft'}\n---\n\n# {Path(config.run.dir).name}\n\n"
            f"Trained by {method} (arXiv:2310.16944) from `{config.model}` on\n\n{data}\n\n"
            f"| hyperparameter | value |\n|---|---|\n{optim}\n\n## Config\n\n```yaml\n{to_yaml(config)}```\n")
