"""YAML and `key.sub=value` overrides become one frozen dataclass, checked before any model is touched."""
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, Union

import yaml

Value = Union[None, bool, int, float, str, list["Value"], dict[str, "Value"]]
T = TypeVar("T")


class BadInput(ValueError):
    """Input that a person can mend: the scripts print it as one line and exit with code 2."""


class ConfigError(BadInput):
    """A config key, its value, and what was wanted."""


@dataclass(frozen=True)
class Data:
    train: tuple[str, ...]                                  # path-or-hub-id[:split]
    eval: tuple[str, ...] = ()
    max_tokens: int = 1024
    max_prompt_tokens: int = 512                            # DPO only
    truncation: Literal["keep_end"] = "keep_end"
    limit: int | None = None
    shuffle: bool = True
    on_bad_row: Literal["error", "skip"] = "error"
    targets: Literal["assistant", "all"] = "assistant"      # SFT only


@dataclass(frozen=True)
class Optim:
    lr_peak: float = 5.0e-7
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = 0.1
    epochs: int = 3
    pairs_per_step: int = 32
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0                                  # 0: no clipping


@dataclass(frozen=True)
class SFTOptim:
    lr_peak: float = 2.0e-5
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_fraction: float = 0.1
    epochs: int = 1
    windows_per_step: int = 512
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Reference:
    dir: str = "runs/reference"


@dataclass(frozen=True)
class Hardware:
    tokens_per_micro_batch: int = 16384
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["flash_attn", "torch_varlen", "sdpa"] = "flash_attn"
    prefix_sharing: bool = True                             # DPO only
    activation_checkpointing: bool = True
    deepspeed: str = "configs/deepspeed/zero3.json"


@dataclass(frozen=True)
class Wandb:
    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "zephyr"
    name: str | None = None


@dataclass(frozen=True)
class Run:
    dir: str = "runs/dpo"
    seed: int = 42
    log_every: int = 1
    eval_every: int = 100
    save_every: int = 100
    keep: int = 2
    resume: Literal["auto", "never", "force"] = "auto"
    preflight: bool = True
    wandb: Wandb = field(default_factory=Wandb)


@dataclass(frozen=True)
class DPOConfig:
    model: str
    data: Data
    tokenizer: str | None = None
    chat_template: str = "zephyr"
    beta: float = 0.1
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    optim: Optim = field(default_factory=Optim)
    reference: Reference = field(default_factory=Reference)
    hardware: Hardware = field(default_factory=Hardware)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class SFTData(Data):
    max_tokens: int = 2048                                  # the window


@dataclass(frozen=True)
class SFTConfig:
    model: str
    data: SFTData
    tokenizer: str | None = None
    chat_template: str = "zephyr"
    optim: SFTOptim = field(default_factory=SFTOptim)
    hardware: Hardware = field(default_factory=Hardware)
    run: Run = field(default_factory=lambda: Run(dir="runs/sft"))


C = TypeVar("C", DPOConfig, SFTConfig)

# key -> (is the value acceptable, what is wanted)
LIMITS = {
    "beta": (lambda v: v > 0, "a number > 0"),
    "label_smoothing": (lambda v: 0 <= v < 0.5, "0 <= number < 0.5"),
    "data.train": (lambda v: len(v) > 0, "at least one path or hub id"),
    "data.max_tokens": (lambda v: v >= 2, "an integer >= 2"),
    "data.max_prompt_tokens": (lambda v: v >= 1, "an integer >= 1"),
    "data.limit": (lambda v: v is None or v >= 1, "null or an integer >= 1"),
    "optim.lr_peak": (lambda v: v > 0, "a number > 0"),
    "optim.warmup_fraction": (lambda v: 0 <= v < 1, "0 <= number < 1"),
    "optim.epochs": (lambda v: v >= 1, "an integer >= 1"),
    "optim.pairs_per_step": (lambda v: v >= 1, "an integer >= 1"),
    "optim.windows_per_step": (lambda v: v >= 1, "an integer >= 1"),
    "optim.weight_decay": (lambda v: v >= 0, "a number >= 0"),
    "optim.adam_betas": (lambda v: all(0 <= b < 1 for b in v), "two numbers, 0 <= number < 1"),
    "optim.grad_clip": (lambda v: v >= 0, "a number >= 0 (0: no clipping)"),
    "hardware.tokens_per_micro_batch": (lambda v: v >= 2, "an integer >= 2"),
    "run.seed": (lambda v: 0 <= v < 2**63, "an integer >= 0"),
    "run.log_every": (lambda v: v >= 1, "an integer >= 1"),
    "run.eval_every": (lambda v: v >= 1, "an integer >= 1"),
    "run.save_every": (lambda v: v >= 1, "an integer >= 1"),
    "run.keep": (lambda v: v >= 1, "an integer >= 1"),
}
PATHS = {"model", "tokenizer", "chat_template", "data.train", "data.eval", "reference.dir", "hardware.deepspeed", "run.dir"}


def load(kind: type[C], path: str, overrides: Sequence[str] = ()) -> C:
    """The config in the YAML file `path` with `key.sub=value` overrides, `$VARIABLES` of paths filled in.

    Raises: ConfigError naming the key, its value and what was wanted: unknown or missing key, wrong type, value out of
    range, combination that can't work, file that can't be read."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: a mapping of keys is wanted, got {type(tree).__name__}")
    for override in overrides:
        set_key(tree, override)
    config = build(kind, tree, "")
    check(config)
    return config


def set_key(tree: dict[str, Value], override: str) -> None:
    """Write `key.sub=value` into the tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: key.sub=value is wanted")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not YAML") from None
    *parents, leaf = key.split(".")
    for parent in parents:
        node = tree.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {parent} is not a group of keys")
        tree = node
    tree[leaf] = value


def build(kind: type[T], tree: Mapping[str, Value], prefix: str) -> T:
    """The dataclass `kind` from a mapping; every key known, every value of the field's type."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in tree:
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: unknown key{nearest_key(str(key), prefix, kind)}")
    values = {}
    for name, spec in fields.items():
        if name in tree:
            values[name] = read_value(hints[name], tree[name], prefix + name)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            if dataclasses.is_dataclass(hints[name]):
                read_value(hints[name], {}, prefix + name)
            raise ConfigError(f"{prefix}{name}: missing; it is required")
    return kind(**values)


def read_value(hint: object, value: Value, key: str) -> object:
    """`value` as the type `hint`. Raises ConfigError naming key, value and the wanted type."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: a group of keys is wanted, got {value!r}")
        return build(hint, value, key + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else read_value(next(a for a in args if a is not type(None)), value, key)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise ConfigError(f"{key}: one of {', '.join(map(str, args))} is wanted, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(value) != len(args)):
            length = "" if args[-1] is Ellipsis else f" of {len(args)}"
            raise ConfigError(f"{key}: a list{length} is wanted, got {value!r}")
        return tuple(read_value(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise ConfigError(f"{key}: {wanted_type(hint)} is wanted, got {value!r}{number_hint(hint, value)}")
    return os.path.expandvars(value) if isinstance(value, str) and key.split("[")[0] in PATHS else value


def wanted_type(hint: object) -> str:
    return {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}[hint]


def number_hint(hint: object, value: Value) -> str:
    """YAML 1.1 reads `5e-7` as a text: say so, instead of guessing the number."""
    if hint is float and isinstance(value, str):
        try:
            return f" (a text in YAML; write {float(value):.1e})" if "." not in value else ""
        except ValueError:
            return ""
    return ""


def nearest_key(key: str, prefix: str, kind: type) -> str:
    """The valid key that was most likely meant, in this group first, then anywhere in the config."""
    names = [f.name for f in dataclasses.fields(kind)]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5) or [n for n in names if n.startswith(key)][:1]
    if close:
        return f"; the nearest valid key is {prefix}{close[0]}"
    elsewhere = [k for root in (DPOConfig, SFTConfig) for k in keys(root, "") if k.split(".")[-1] == key]
    return f"; the nearest valid key is {elsewhere[0]}" if elsewhere else f"; valid here: {', '.join(names)}"


def keys(kind: type, prefix: str) -> Iterator[str]:
    """Every full key of a config dataclass."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def check(config: DPOConfig | SFTConfig) -> None:
    """Ranges of single values and combinations of two. Raises ConfigError."""
    for key, (accepts, wanted) in LIMITS.items():
        value: object = config
        for part in key.split("."):
            value = getattr(value, part, LIMITS)
        if value is not LIMITS and not accepts(value):
            raise ConfigError(f"{key}: {wanted} is wanted, got {list(value) if isinstance(value, tuple) else value!r}")
    if isinstance(config, DPOConfig) and config.data.max_prompt_tokens >= config.data.max_tokens:
        raise ConfigError(f"data.max_prompt_tokens: less than data.max_tokens ({config.data.max_tokens}) is wanted, "
                          f"got {config.data.max_prompt_tokens}: no room would be left for a response")


def to_yaml(config: DPOConfig | SFTConfig) -> str:
    """The resolved config, every key written: `config.yaml` of the run folder."""
    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value
    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)
