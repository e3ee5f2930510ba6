"""YAML and `key.sub=value` overrides become one frozen dataclass, checked before any model is
touched."""

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
from urllib.parse import unquote

import yaml

Value = Union[None, bool, int, float, str, list["Value"], dict[str, "Value"]]
T = TypeVar("T")


class BadInput(ValueError):
    """Input that a person can mend: the scripts print it as one short line, without the secrets
    that it holds, and exit with code 2."""

    def __str__(self) -> str:
        line = redact(" ".join(super().__str__().split()))
        return line if len(line) <= 600 else f"{line[:400]} ... {line[-190:]}"


# How keys of known services begin, with the long run of letters and digits that is in every one of
# them.
KNOWN_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-|rk-|hf_|gh[opsu]_|github_pat_|glpat-|gsk_|xai-|xox[abp]-|nvapi-|pplx-|r8_|AKIA|AIza|eyJ)"
    r"[\w-]*?(?=[A-Za-z]*[0-9])[A-Za-z0-9]{16,}[\w-]*"
)
USER = re.compile(
    r"://[^\s'\"]*@(?!https?://)"
)  # `@` after a password may be followed by another teacher's SPEC
URL = re.compile(r"\w+://[^\s'\"]*")
RANDOM = re.compile(
    r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{20,}|(?=[a-fA-F]*[0-9])[0-9a-fA-F]{16,}|[A-Za-z]{32,}|"
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)  # no word, no date, no version
NAMED = re.compile(
    r"(?:^|/)(?:api[-_]?keys?|keys?|tokens?|secrets?|passwords?)/[^/]+", re.IGNORECASE
)  # /token/VALUE


def redact(text: str) -> str:
    """The text without the user and password of any URL, and without what begins as a known
    service's key."""
    return KNOWN_KEY.sub("[key]", USER.sub("://[user]@", text))


def find_secret(text: str) -> str:
    """What is or may be a secret in a text that will be written to files, "" where there is none.

    A key of a known service anywhere; of a URL: user and password, a query, a fragment, a path that
    holds a parameter or a random part."""
    if KNOWN_KEY.search(text):
        return "what looks like a key"
    for url in URL.findall(text):
        if USER.search(url):
            return "a user or password"
        path = unquote(url.partition("://")[2].partition("/")[2])
        for mark, what in {
            "?": "a query",
            "#": "a fragment",
            "=": "a parameter",
            "@": "a user or password",
        }.items():
            if mark in url.partition("://")[2] or mark in path:
                return what
        if RANDOM.search(path) or NAMED.search(path) or KNOWN_KEY.search(path):
            return "what looks like a key in its path"
    return ""


class ConfigError(BadInput):
    """A config key, its value, and what was wanted."""


@dataclass(frozen=True)
class Data:
    train: tuple[str, ...]  # path-or-hub-id[:split]
    eval: tuple[str, ...] = ()
    max_tokens: int = 1024
    max_prompt_tokens: int = 512  # DPO only
    truncation: Literal["keep_end"] = "keep_end"
    limit: int | None = None
    shuffle: bool = True
    on_bad_row: Literal["error", "skip"] = "error"
    targets: Literal["assistant", "all"] = "assistant"  # SFT only
    columns: dict[str, str | None] | None = (
        None  # field -> where the rows have it (answers.0), null: left out
    )


@dataclass(frozen=True)
class Optim:
    lr_peak: float = 5.0e-7
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = 0.1
    epochs: int = 3
    pairs_per_step: int = 32
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0  # 0: no clipping


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
    prefix_sharing: bool = True  # DPO only
    activation_checkpointing: Literal[True, False, "mlp"] = (
        True  # what the backward computes again: all of a layer, or its MLP
    )
    deepspeed: str = "configs/deepspeed/zero3.json"


@dataclass(frozen=True)
class Samples:
    prompts: tuple[
        str, ...
    ] = ()  # path-or-hub-id[:split] of rows with a prompt, answered at each evaluation
    max_new_tokens: int = 128
    judge: str | None = None  # SPEC of a teacher that compares the answers with those at step 0


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
    chat_template: str = "auto"  # auto | zephyr | model | path to a jinja file
    eos_token: str | None = None  # what ends a turn; null: the tokenizer's EOS
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
    max_tokens: int = 2048  # the window


@dataclass(frozen=True)
class SFTRun(Run):
    dir: str = "runs/sft"


@dataclass(frozen=True)
class SFTConfig:
    model: str
    data: SFTData
    tokenizer: str | None = None
    chat_template: str = "auto"  # auto | zephyr | model | path to a jinja file
    eos_token: str | None = None  # what ends a turn; null: the tokenizer's EOS
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
    "1 <= integer < 2**31": (
        lambda v: 1 <= v < 2**31,
        "optim.epochs optim.pairs_per_step optim.windows_per_step run.log_every "
        "run.eval_every run.save_every run.keep samples.max_new_tokens",
    ),
    "2 <= integer < 2**31": (
        lambda v: 1 < v < 2**31,
        "data.max_tokens data.max_prompt_tokens hardware.tokens_per_micro_batch",
    ),
}
PATHS = frozenset(
    "model tokenizer chat_template data.train data.eval reference.dir hardware.deepspeed samples.prompts samples.judge "
    "run.dir".split()
)  # the keys in which $VARIABLES are filled in
VARIABLES = frozenset(
    "HOME USER LOGNAME TMPDIR SCRATCH PSCRATCH WORK WORKDIR WRKDIR PROJECT STORE DATA DATA_DIR DATASETS MODELS MODEL_DIR "
    "OUTPUT_DIR RUN_DIR HF_HOME XDG_CACHE_HOME ZEPHYR_CACHE SLURM_TMPDIR SLURM_SUBMIT_DIR SLURM_JOB_ID "
    "SLURM_ARRAY_TASK_ID".split()
)  # which ones: the resolved config is kept beside the model, and told to wandb
VARIABLE = re.compile(r"\$(?:\{([^}]*)\}?|([A-Za-z_]\w*))")
WANTED = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}
NO_TEXT = re.compile(
    r"[\x00-\x1f\x7f\ud800-\udfff]|^$"
)  # in no path or name: control characters, half characters, nothing
EXPONENT = re.compile(
    r"[-+]?\d+\.?\d*[eE][-+]?\d{1,3}"
)  # a number that YAML 1.1 takes for a text, as 5e-7
LARGEST_YAML = 2**20  # bytes of a file, and values once its aliases are written out
NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
)  # all that PyYAML raises


def load(kind: type[C], path: str, overrides: Sequence[str] = ()) -> C:
    """The config in the YAML file `path` with `key.sub=value` overrides, `$VARIABLES` in texts
    filled in.

    Raises: ConfigError naming the key, its value and what was wanted: unknown or missing key, wrong
    type, value out of range, combination that can't work, file that can't be read."""
    try:
        repr(tree := read_yaml(Path(path)))  # no error can show thousands of digits
    except (OSError, *NOT_YAML) as error:
        raise ConfigError(
            f"config {path}: {getattr(error, 'strerror', None) or f'not YAML: {error}'}"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: a mapping of keys is wanted, got {type(tree).__name__}")
    for override in overrides:
        set_key(tree, override)
    config = build(kind, tree, "")
    check(config)
    return config


def read_yaml(path: Path) -> Value:
    """What a YAML file holds. Raises: OSError, and whatever is in `NOT_YAML`, for one that can't be
    read, is over `LARGEST_YAML`, or is none."""
    with path.open("rb") as file:
        content = file.read(LARGEST_YAML + 1)
    if len(content) > LARGEST_YAML:
        raise ValueError(f"over {LARGEST_YAML} bytes")
    return parse_yaml(content.decode("utf-8"))


def parse_yaml(text: str) -> Value:
    """The value of a YAML text. Raises: `NOT_YAML`, also where its anchors stand for more than
    `LARGEST_YAML` values, or hold themselves."""
    sizes: dict[int, int] = {}  # of a node, with all that its aliases stand for

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = (
                LARGEST_YAML + 1
            )  # while it is looked at: one that is met again holds itself
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            sizes[id(node)] = 1 + sum(
                size(part)
                for item in inner
                for part in (item if isinstance(item, tuple) else (item,))
            )
        return sizes[id(node)]

    if (root := yaml.compose(text, yaml.SafeLoader)) is not None and size(root) > LARGEST_YAML:
        raise ValueError(f"its anchors stand for more than {LARGEST_YAML} values")
    return yaml.safe_load(text)


def set_key(tree: dict[str, Value], override: str) -> None:
    """Write `key.sub=value` into the tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: key.sub=value is wanted")
    try:
        repr(value := parse_yaml(text))
    except NOT_YAML:
        raise ConfigError(f"override {override!r}: the value is not YAML") from None
    *parents, leaf = key.split(".")
    for parent in parents:
        node = tree[parent] = {} if tree.get(parent) is None else tree[parent]
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
    if origin is types.UnionType:  # `X | None`
        return None if value is None else read_value(args[0], value, key)
    if origin is Literal:
        if value not in args or type(value) not in map(type, args):
            raise ConfigError(
                f"{key}: one of {', '.join(str(arg).lower() for arg in args)} is wanted, got {value!r}"
            )
        return value
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{key}: a group of names is wanted, got {value!r}")
        return {name: read_value(args[1], path, f"{key}.{name}") for name, path in value.items()}
    if origin is tuple:
        if args[-1] is Ellipsis and (value is None or isinstance(value, str)):
            value = [] if value is None else [value]  # null is none; one path is a list of one
        length = "" if args[-1] is Ellipsis else f" of {len(args)}"
        if not isinstance(value, list) or (length and len(value) != len(args)):
            raise ConfigError(f"{key}: a list{length} is wanted, got {value!r}")
        return tuple(read_value(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if hint is float and (
        (type(value) is int and abs(value) < 1e300)
        or (isinstance(value, str) and EXPONENT.fullmatch(value))
    ):
        value = float(value)
    value = fill_variables(value, key) if isinstance(value, str) else value
    if (
        type(value) is not hint
        or (hint is float and not math.isfinite(value))
        or (hint is str and NO_TEXT.search(value))
    ):
        raise ConfigError(f"{key}: {WANTED[hint]} is wanted, got {value!r}")
    return value


def fill_variables(text: str, key: str) -> str:
    """The text with its $VARIABLES. Raises: ConfigError as `expand_variables`, for a variable in a
    key that is no path, and for a text that holds a secret: it would be written to the run
    folder."""
    if key.partition("[")[0] not in PATHS and (found := VARIABLE.search(text)):
        raise ConfigError(
            f"{key}: variables are filled in where a path is wanted, got {found[0]!r}; a secret stays in the environment"
        )
    whole = expand_variables(text, key)
    if found := find_secret(whole):
        raise ConfigError(
            f"{key}: a text without a secret is wanted, it holds {found}; keys stay in the environment"
        )
    return whole


def expand_variables(text: str, key: str) -> str:
    """The text with its $VARIABLES; one that names a file (or file:split) as it is, with `$` in its
    name, stays so. Raises: ConfigError for a variable that is none of `VARIABLES` or is not set."""
    if VARIABLE.search(text) and any(
        os.path.lexists(name) for name in (text, text.partition(":")[0])
    ):
        return text
    for found in VARIABLE.finditer(text):
        name = found[1] or found[2] or ""
        if name not in VARIABLES:
            raise ConfigError(
                f"{key}: the variable {found[0]!r} is not among those that name folders or jobs: {', '.join(sorted(VARIABLES))}"
                "; a secret stays in the environment, the config is kept beside the model"
            )
        if name not in os.environ:
            raise ConfigError(f"{key}: the variable {name} is not set")
    return VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], text)


def nearest_key(key: str, prefix: str, kind: type) -> str:
    """The valid key that was most likely meant, in this group first, then anywhere in the
    config."""
    names = [spec.name for spec in fields(kind)]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5) or [
        name for name in names if name.startswith(key)
    ]
    meant = [prefix + name for name in close]
    meant += [
        other
        for root in (DPOConfig, SFTConfig)
        for other in keys(root, "")
        if other.split(".")[-1] == key
    ]
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
        raise ConfigError(
            f"data.max_prompt_tokens: less than data.max_tokens ({config.data.max_tokens}) is wanted, "
            f"got {config.data.max_prompt_tokens}: no room would be left for a response"
        )


def to_yaml(config: DPOConfig | SFTConfig) -> str:
    """The resolved config, every key written: `config.yaml` of the run folder."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
