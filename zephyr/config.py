"""YAML and `key.sub=value` overrides become one frozen dataclass, checked before any model is touched."""
import difflib
import math
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

Value = Union[None, bool, int, float, str, list["Value"], dict[str, "Value"]]
T = TypeVar("T")


class BadInput(ValueError):
    """Input that a person can mend: the scripts print it as one short line and exit with code 2."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        return line if len(line) <= 600 else f"{line[:400]} ... {line[-190:]}"


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
    activation_checkpointing: Literal[True, False, "mlp"] = True         # what the backward computes again: all of a layer, or its MLP
    deepspeed: str = "configs/deepspeed/zero3.json"


@dataclass(frozen=True)
class Samples:
    prompts: tuple[str, ...] = ()                           # path-or-hub-id[:split] of rows with a prompt, answered at each evaluation
    max_new_tokens: int = 128
    judge: str | None = None                                # SPEC of a teacher that compares the answers with those at step 0


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
    chat_template: str = "auto"                             # auto | zephyr | model | path to a jinja file
    eos_token: str | None = None                            # what ends a turn; null: the tokenizer's EOS
    beta: float = 0.1
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    optim: Optim = field(default_factory=Optim)
    reference: Reference = field(default_factory=Reference)
    hardware: Hardware = field(default_factory=Hardware)
    samples: Samples = field(default_factory=Samples)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class SFTData(Data):
    max_tokens: int = 2048                                  # the window


@dataclass(frozen=True)
class SFTRun(Run):
    dir: str = "runs/sft"


@dataclass(frozen=True)
class SFTConfig:
    model: str
    data: SFTData
    tokenizer: str | None = None
    chat_template: str = "auto"                             # auto | zephyr | model | path to a jinja file
    eos_token: str | None = None                            # what ends a turn; null: the tokenizer's EOS
    optim: SFTOptim = field(default_factory=SFTOptim)
    hardware: Hardware = field(default_factory=Hardware)
    samples: Samples = field(default_factory=Samples)
    run: SFTRun = field(default_factory=SFTRun)


C = TypeVar("C", DPOConfig, SFTConfig)

# what is wanted -> (is the value that, the keys that want it)
LIMITS: dict[str, tuple[Callable[..., bool], str]] = {
    "a number > 0": (lambda v: v > 0, "beta optim.lr_peak"),
    "a number >= 0": (lambda v: v >= 0, "optim.weight_decay optim.grad_clip"),
    "0 <= number < 0.5": (lambda v: 0 <= v < 0.5, "label_smoothing"),
    "0 <= number < 1": (lambda v: 0 <= v < 1, "optim.warmup_fraction"),
    "two of 0 <= number < 1": (lambda v: all(0 <= beta < 1 for beta in v), "optim.adam_betas"),
    "at least one path or hub id": (lambda v: len(v) > 0, "data.train"),
    "null or 1 <= integer < 2**63": (lambda v: v is None or 1 <= v < 2**63, "data.limit"),
    "0 <= integer < 2**63": (lambda v: 0 <= v < 2**63, "run.seed"),
    "1 <= integer < 2**31": (lambda v: 1 <= v < 2**31, "optim.epochs optim.pairs_per_step optim.windows_per_step run.log_every "
                                          "run.eval_every run.save_every run.keep samples.max_new_tokens"),
    "2 <= integer < 2**31": (lambda v: 1 < v < 2**31, "data.max_tokens data.max_prompt_tokens hardware.tokens_per_micro_batch")}
WANTED = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}
NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|^$")     # in no path or name: control characters, half characters, nothing
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)     # all that PyYAML raises


def load(kind: type[C], path: str, overrides: Sequence[str] = ()) -> C:
    """The config in the YAML file `path` with `key.sub=value` overrides, `$VARIABLES` in texts filled in.

    Raises: ConfigError naming the key, its value and what was wanted: unknown or missing key, wrong type, value out of
    range, combination that can't work, file that can't be read."""
    try:
        repr(tree := yaml.safe_load(Path(path).read_text(encoding="utf-8")))     # no error can show thousands of digits
    except (OSError, *NOT_YAML) as error:
        raise ConfigError(f"config {path}: {getattr(error, 'strerror', None) or f'not YAML: {error}'}") from None
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
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: key.sub=value is wanted")
    try:
        repr(value := yaml.safe_load(text))
    except NOT_YAML:
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
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: unknown key; {nearest_key(str(key), prefix, kind)}")
    for spec in fields(kind):
        if spec.name not in tree and spec.default is spec.default_factory is MISSING:
            raise ConfigError(f"{prefix}{spec.name}: missing; it is required")
    return kind(**{key: read_value(hints[key], value, prefix + key) for key, value in tree.items()})


def read_value(hint: object, value: Value, key: str) -> object:
    """`value` as the type `hint`. Raises: ConfigError naming key, value and the wanted type."""
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: a group of keys is wanted, got {value!r}")
        return build(hint, value, key + ".")
    origin, args = get_origin(hint), get_args(hint)
    if origin is types.UnionType:                           # `X | None`
        return None if value is None else read_value(args[0], value, key)
    if origin is Literal:
        if value not in args or type(value) not in map(type, args):
            raise ConfigError(f"{key}: one of {', '.join(str(arg).lower() for arg in args)} is wanted, got {value!r}")
        return value
    if origin is tuple:
        length = "" if args[-1] is Ellipsis else f" of {len(args)}"
        if not isinstance(value, list) or (length and len(value) != len(args)):
            raise ConfigError(f"{key}: a list{length} is wanted, got {value!r}")
        return tuple(read_value(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if isinstance(value, str) and re.search(r"\$\{?\w*(KEY|TOKEN|SECRET|PASSWORD)", value):
        raise ConfigError(f"{key}: a secret stays in the environment, got {value!r}: the config is kept beside the model")
    value = os.path.expandvars(value) if isinstance(value, str) else value
    if type(value) is not hint or (hint is float and not math.isfinite(value)) or (hint is str and NO_TEXT.search(value)):
        exponent = hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", value)
        note = f" (a text in YAML; write {yaml.safe_dump(float(value)).split()[0]})" if exponent else ""
        raise ConfigError(f"{key}: {WANTED[hint]} is wanted, got {value!r}{note}")
    return value


def nearest_key(key: str, prefix: str, kind: type) -> str:
    """The valid key that was most likely meant, in this group first, then anywhere in the config."""
    names = [spec.name for spec in fields(kind)]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5) or [name for name in names if name.startswith(key)]
    meant = [prefix + name for name in close]
    meant += [other for root in (DPOConfig, SFTConfig) for other in keys(root, "") if other.split(".")[-1] == key]
    return f"the nearest valid key is {meant[0]}" if meant else f"valid here: {', '.join(names)}"


def keys(kind: type, prefix: str) -> Iterator[str]:
    """Every full key of a config dataclass."""
    for name, hint in get_type_hints(kind).items():
        yield from keys(hint, f"{prefix}{name}.") if is_dataclass(hint) else [prefix + name]


def check(config: DPOConfig | SFTConfig) -> None:
    """Ranges of single values and combinations of two. Raises: ConfigError."""
    known = set(keys(type(config), ""))
    for wanted, (accepts, names) in LIMITS.items():
        for key in names.split():
            if key in known and not accepts(value := attrgetter(key)(config)):
                raise ConfigError(f"{key}: {wanted} is wanted, got {value!r}")
    if isinstance(config, DPOConfig) and config.data.max_prompt_tokens >= config.data.max_tokens:
        raise ConfigError(f"data.max_prompt_tokens: less than data.max_tokens ({config.data.max_tokens}) is wanted, "
                          f"got {config.data.max_prompt_tokens}: no room would be left for a response")


def to_yaml(config: DPOConfig | SFTConfig) -> str:
    """The resolved config, every key written: `config.yaml` of the run folder."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
