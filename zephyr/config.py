"""YAML and `key.sub=value` overrides become one frozen, checked dataclass.

The dataclasses are the documentation of the config: the text below each field is its meaning, which
`--help` of the training scripts prints and `configs/README.md` lists
(`python -m zephyr.config configs/README.md` writes it). This module imports no torch.
"""

from __future__ import annotations

import ast
import difflib
import math
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import unquote

import yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]  # of YAML


BAD_INPUT = 2  # exit code
# Options of the training scripts, beside --help; the second kind takes a value.
OPTIONS = ("--dry-run", "--quiet")
DRY_RUN_OPTIONS = ("--gpus", "--device", "--lengths")


class BadInput(ValueError):
    """Input that a user can correct.

    The scripts print it as one short line, without the secrets in it, and exit with code 2.
    """

    def __str__(self) -> str:
        line = redact(" ".join(super().__str__().split()))
        return line if len(line) <= 600 else f"{line[:400]} ... {line[-190:]}"


class ConfigError(BadInput):
    """Names a config key, its value, and what was expected."""


# ---------------------------------------------------------------------------------------- secrets

# The prefixes of keys of known services, and the long run of letters and digits that follows.
KNOWN_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-|rk-|hf_|gh[opsu]_|github_pat_|glpat-|gsk_|xai-|xox[abp]-|nvapi-|pplx-"
    r"|r8_|AKIA|AIza|eyJ)[\w-]*?(?=[A-Za-z]*[0-9])[A-Za-z0-9]{16,}[\w-]*"
)
# A URL's user and password; after the `@` may come the URL of another teacher's SPEC.
USER = re.compile(r"://[^\s'\"]*@(?!https?://)")
URL = re.compile(r"\w+://[^\s'\"]*")
# A part of a path that is no word, date or version.
RANDOM = re.compile(
    r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{20,}|(?=[a-fA-F]*[0-9])[0-9a-fA-F]{16,}"
    r"|[A-Za-z]{32,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)
# /token/VALUE
NAMED = re.compile(
    r"(?:^|/)(?:api[-_]?keys?|keys?|tokens?|secrets?|passwords?)/[^/]+", re.IGNORECASE
)
# Characters that may carry a secret in a URL -> what they mark.
MARKS = {"?": "a query", "#": "a fragment", "=": "a parameter", "@": "a user or password"}


def redact(text: str) -> str:
    """The text with the user and password of every URL, and every known service's key, replaced."""
    return KNOWN_KEY.sub("[key]", USER.sub("://[user]@", text))


def find_secret(text: str) -> str:
    """What is or may be a secret in a text that will be written to files; "" if nothing is.

    A key of a known service anywhere; in a URL a user and password, a query, a fragment, or a path
    with a parameter or a random part.
    """
    if KNOWN_KEY.search(text):
        return "what looks like a key"
    for url in URL.findall(text):
        if USER.search(url):
            return "a user or password"
        address = url.partition("://")[2]
        path = unquote(address.partition("/")[2])
        for mark, meaning in MARKS.items():
            if mark in address or mark in path:
                return meaning
        if RANDOM.search(path) or NAMED.search(path) or KNOWN_KEY.search(path):
            return "what looks like a key in its path"
    return ""


# ------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class DataSource:
    path: str
    """The source, written as a string in `data.train` is."""
    limit: int | None = None
    """Read at most the first so many rows of this source; null: all of them. `data.limit` counts
    the rows that are then left of all sources together."""
    weight: float = 1.0
    """Multiplies the weight that each row of this source has in the loss of train_dpo.py;
    train_sft.py accepts 1 only."""


@dataclass(frozen=True)
class Data:
    train: tuple[str | DataSource, ...]
    """Sources of the training rows: files (.jsonl, .json, .parquet, also .gz), folders or hub ids,
    each as `path-or-hub-id[[:subset]:split]`, or as a group `{path: ..., limit: ..., weight:
    ...}`."""
    eval: tuple[str | DataSource, ...] = ()
    """Sources of the evaluation rows, written as in `data.train`; an empty list or null: no
    evaluation."""
    max_tokens: int = 1024
    """The most tokens of an example, prompt and longer response together; longer examples are
    truncated."""
    max_prompt_tokens: int = 512
    """The most tokens that the prompt keeps when a pair is truncated, BOS included. train_sft.py
    accepts the key and ignores it."""
    truncation: Literal["keep_end", "trl_0.7"] = "keep_end"
    """How a long pair is cut: the prompt keeps its BOS and its end, responses lose their end;
    `trl_0.7` as TRL did then: BOS is lost too, and responses are cut to `max_tokens` less
    `max_prompt_tokens`, which reproduces a published quirk and is not for new work. train_sft.py
    accepts `keep_end` and ignores it."""
    encoding: Literal["zephyr", "handbook_a", "handbook_b"] = "zephyr"
    """How a pair becomes ids: as generation continues its prompt (`zephyr`), or as the alignment
    handbook and TRL did at commit e316174 (`handbook_a`) and at f0ffa0d (`handbook_b`),
    which reproduces published quirks and is not for new work. train_sft.py accepts `zephyr` and
    ignores it."""
    limit: int | None = None
    """Read at most so many rows of `data.train`, and as many of `data.eval`, over all their
    sources; null: all rows."""
    shuffle: bool = True
    """Draw a new order of the examples for every epoch, from `run.seed`."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a row that cannot be read: the run stops and names it, or it is left out,
    counted and listed in `data.json`."""
    targets: Literal["assistant", "all"] = "assistant"
    """Which tokens the loss counts: the assistant's words and the EOS after them, or every token
    but the first. train_dpo.py accepts the key and ignores it."""
    columns: dict[str, str | None] | None = None
    """Other names of the rows' fields, as `{prompt: question, chosen: answers.0}`; `FIELD: null`
    leaves a field out."""


@dataclass(frozen=True)
class Optim:
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """The optimizer: AdamW, or torch's RMSprop as one published recipe used it (alpha 0.99; it has
    no betas and no weight decay here)."""
    lr_peak: float = 5.0e-7
    """The learning rate at the end of the warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls from `optim.lr_peak` to 0 at the last step; `constant`: it does
    not."""
    warmup_fraction: float = 0.1
    """The fraction of all steps over which the learning rate rises linearly from 0; 0: no
    warm-up."""
    epochs: int = 3
    """Passes over the training examples."""
    pairs_per_step: int = 32
    """Pairs of an update, over all ranks and micro-batches: the global batch size."""
    weight_decay: float = 0.0
    """AdamW's weight decay, applied to matrices and not to vectors (norms, biases)."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and the second moment."""
    grad_clip: float = 1.0
    """The largest global norm of the gradient; longer gradients are scaled down to it. 0: no
    clipping."""


@dataclass(frozen=True)
class SFTOptim:
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """The optimizer: AdamW, or torch's RMSprop as one published recipe used it (alpha 0.99; it has
    no betas and no weight decay here)."""
    lr_peak: float = 2.0e-5
    """The learning rate at the end of the warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls from `optim.lr_peak` to 0 at the last step; `constant`: it does
    not."""
    warmup_fraction: float = 0.1
    """The fraction of all steps over which the learning rate rises linearly from 0; 0: no
    warm-up."""
    epochs: int = 1
    """Passes over the training examples."""
    windows_per_step: int = 512
    """Windows of `data.max_tokens` tokens of an update, over all ranks and micro-batches: the
    global batch size."""
    weight_decay: float = 0.0
    """AdamW's weight decay, applied to matrices and not to vectors (norms, biases)."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and the second moment."""
    grad_clip: float = 1.0
    """The largest global norm of the gradient; longer gradients are scaled down to it. 0: no
    clipping."""


@dataclass(frozen=True)
class Adapter:
    r: int = 16
    """The rank of LoRA: a matrix of n x m gets r * (n + m) trained numbers."""
    alpha: int = 16
    """The scale of LoRA: what the adapter adds to a matrix is multiplied by `alpha / r`."""
    targets: tuple[str, ...] = ("all-linear",)
    """The linear layers that get an adapter, by the end of their names (`q_proj`), or `all-linear`:
    all but the output layer."""
    dropout: float = 0.0
    """Dropout before the adapter; only 0 is possible: a shared prompt is computed once for both
    responses, and a resumed run must repeat the steps exactly."""
    quantize: Literal["none", "nf4"] = "none"
    """`nf4` keeps the frozen matrices of linear layers in 4 bits (QLoRA, by the bitsandbytes
    package), whole on every rank; `none` keeps them in `hardware.dtype`, sharded over ranks."""


@dataclass(frozen=True)
class Reference:
    dir: str = "runs/reference"
    """The folder that keeps the log-probs of the reference model. Runs may share it: a sweep over
    `beta` computes them once."""
    model: str | None = None
    """Path or hub id of the reference model, of the same architecture and vocabulary as the policy;
    null: the model that the policy starts from."""


@dataclass(frozen=True)
class Hardware:
    tokens_per_micro_batch: int = 16384
    """The most packed tokens of a micro-batch on one rank. It changes memory and speed, not the
    result; `zephyr plan` finds the largest that fits."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype of forward and backward; master weights, optimizer states, log-probs and losses are
    float32 always."""
    attention: Literal["flash_attn", "torch_varlen", "sdpa"] = "flash_attn"
    """The attention kernel: the flash-attn package, the flash kernel inside torch, or torch's sdpa,
    which runs anywhere. One that cannot run is an error."""
    prefix_sharing: bool = True
    """Compute the prompt of a pair once for both responses; `false` computes it twice, to compare.
    train_sft.py accepts the key and ignores it."""
    activation_checkpointing: Literal[True, False, "mlp", "elementwise"] = True
    """What the backward pass computes again to save memory: each whole layer (`true`), its MLP and
    norms (`mlp`), norms, rotary positions and SwiGLU but no matrix product (`elementwise`), or
    nothing (`false`)."""
    deepspeed: str = "configs/deepspeed/zero3.json"
    """DeepSpeed's JSON with memory and communication settings. Batch sizes, precision, clipping and
    the optimizer belong to this YAML: in the JSON they are an error."""
    fused: Literal["none", "liger", "triton"] = "none"
    """Norms, SwiGLU and rotary positions: as separate operations of transformers (`none`), by the
    kernels of the liger-kernel package, or by this package's Triton kernels. A choice that cannot
    run, or does not serve the model, is an error."""
    gradient_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype in which a rank sums the gradients of its micro-batches. `auto`: bfloat16 where no
    step has more than one micro-batch a rank, so that nothing is summed, else float32."""
    gather: Literal["layer", "module"] = "layer"
    """ZeRO-3 gathers the weights of a whole decoder layer at once, or of each module in it. `layer`
    takes less time of the host."""
    sequence_parallel: int = 1
    """How many adjacent ranks compute a packed row together, each a part of its tokens, for rows
    that do not fit on one GPU. It must divide the number of ranks and of the model's attention
    heads, and does not change the result."""
    collective_timeout_seconds: int = 600
    """The run ends if a rank cannot be reached for this long, or a collective of the GPUs takes
    longer; at least 20. Waiting for a rank that encodes rows or downloads does not count."""


@dataclass(frozen=True)
class Samples:
    prompts: tuple[str, ...] = ()
    """Sources of prompts that the policy answers at the start and at every evaluation, written as
    in `data.train`; the answers go to `samples.jsonl`."""
    max_new_tokens: int = 128
    """The most tokens of an answer to `samples.prompts`."""
    judge: str | None = None
    """SPEC of a teacher that compares each answer with the one at step 0; null: no comparison."""


@dataclass(frozen=True)
class Wandb:
    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes a wandb run inside the run folder, `online` sends it, `disabled` writes
    none."""
    project: str = "zephyr"
    """The wandb project."""
    name: str | None = None
    """The name of the wandb run; null: wandb chooses one."""


@dataclass(frozen=True)
class Run:
    dir: str = "runs/dpo"
    """The run folder: metrics, checkpoints, the exported model and the report. On several nodes it
    must be on a shared file system."""
    seed: int = 42
    """Seed of the order of the examples; the same seed, data and settings give the same run."""
    log_every: int = 1
    """Steps between two records of split `train` in `metrics.jsonl`."""
    eval_every: int = 100
    """Steps between two evaluations of `data.eval`; there is also one before the first step and one
    after the last."""
    save_every: int = 100
    """Steps between two checkpoints; the last step, and a run that is asked to stop, always save
    one."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""
    resume: Literal["auto", "never", "force"] = "auto"
    """`auto` goes on from the newest checkpoint of the same run, `never` refuses a folder that
    holds a run, `force` goes on under changed settings."""
    preflight: bool = True
    """Check rows, model, memory and disk before step 0; `false` skips it."""
    wandb: Wandb = field(default_factory=Wandb)


@dataclass(frozen=True)
class Published:
    eval_loss: float
    """The loss on `data.eval` at the end of a published run. The last evaluation is compared with
    it."""
    source: str
    """Where that loss is published, and of which run: a model card, a paper."""
    within: float = 0.01
    """The largest difference from `published.eval_loss` that counts as reached."""


@dataclass(frozen=True)
class DPOConfig:
    model: str
    """Path or hub id of the dSFT model: the start of the policy, and the frozen reference unless
    `reference.model` names another."""
    data: Data
    tokenizer: str | None = None
    """Path or hub id of the tokenizer; null: that of the model."""
    chat_template: str = "auto"
    """`auto` (the model's own template, else Zephyr's), `zephyr`, `model`, or the path of a jinja
    file."""
    eos_token: str | None = None
    """The token that ends an assistant turn; null: the tokenizer's EOS."""
    beta: float = 0.1
    """The weight of the KL penalty: the smaller it is, the further the policy may move from the
    reference (`tau` in IPO)."""
    loss: str | dict[str, str | float] = "sigmoid"
    """The preference loss: `sigmoid` (DPO; with `label_smoothing` conservative DPO), `robust`,
    `ipo`, `sigmoid_norm`, `hinge`, `exo_pair`, `nca_pair`, `sppo_hard`, `apo_zero`, `apo_down`,
    `dpop`, `simpo`, `orpo` or `cpo` (`LOSSES` in `zephyr/losses.py`); with settings of its own as a
    group, `{name: simpo, gamma: 0.5}`."""
    label_smoothing: float = 0.0
    """The probability that a preference is the wrong way round; taken by `sigmoid`, `sigmoid_norm`,
    `robust` and `cpo`, required by `exo_pair`."""
    sft_weight: float | None = None
    """The weight of the SFT term, the mean negative log-likelihood a token of the chosen response;
    null: the loss's own, 1 for `orpo` and `cpo`, else 0."""
    weighting: Literal["none", "wpo"] = "none"
    """`wpo` multiplies the loss of each pair with its probability under the policy (WPO), so that
    responses of other models count as if the policy had sampled them."""
    optim: Optim = field(default_factory=Optim)
    adapter: Adapter | None = None
    """LoRA: only low-rank adapters beside the frozen weights are trained (`pip install
    'zephyr[lora]'`); null: all weights are trained."""
    reference: Reference = field(default_factory=Reference)
    hardware: Hardware = field(default_factory=Hardware)
    samples: Samples = field(default_factory=Samples)
    run: Run = field(default_factory=Run)
    published: Published | None = None
    """A published run of this config: its loss is compared with this run's last evaluation; null:
    no comparison. It never changes the exit code."""


@dataclass(frozen=True)
class SFTData(Data):
    max_tokens: int = 2048
    """The tokens of a window, into which whole conversations are packed; longer conversations are
    cut at their end."""
    packing: Literal["best_fit", "constant_length"] = "best_fit"
    """How windows are filled: with whole conversations that don't see each other (`best_fit`), or
    as TRL's ConstantLengthDataset did (`constant_length`): all conversations joined by EOS and cut
    every `max_tokens`, without isolation, which reproduces a published quirk and is not for new
    work."""


@dataclass(frozen=True)
class SFTRun(Run):
    dir: str = "runs/sft"
    """The run folder: metrics, checkpoints, the exported model and the report. On several nodes it
    must be on a shared file system."""


@dataclass(frozen=True)
class SFTConfig:
    model: str
    """Path or hub id of the base model that is fine-tuned."""
    data: SFTData
    tokenizer: str | None = None
    """Path or hub id of the tokenizer; null: that of the model."""
    chat_template: str = "auto"
    """`auto` (the model's own template, else Zephyr's), `zephyr`, `model`, or the path of a jinja
    file."""
    eos_token: str | None = None
    """The token that ends an assistant turn; null: the tokenizer's EOS."""
    optim: SFTOptim = field(default_factory=SFTOptim)
    adapter: Adapter | None = None
    """LoRA: only low-rank adapters beside the frozen weights are trained (`pip install
    'zephyr[lora]'`); null: all weights are trained."""
    hardware: Hardware = field(default_factory=Hardware)
    samples: Samples = field(default_factory=Samples)
    run: SFTRun = field(default_factory=SFTRun)
    published: Published | None = None
    """A published run of this config: its loss is compared with this run's last evaluation; null:
    no comparison. It never changes the exit code."""


C = TypeVar("C", DPOConfig, SFTConfig)
T = TypeVar("T", bound="DataclassInstance")


class Limit(NamedTuple):
    """Which values some keys accept: the words of errors and of the documentation, and the test."""

    words: str
    accepts: Callable[..., bool]
    keys: str


LIMITS = [
    Limit(
        "a number > 0",
        lambda v: v > 0,
        "beta optim.lr_peak data.train[].weight published.eval_loss",
    ),
    Limit("a number >= 0", lambda v: v >= 0, "optim.weight_decay optim.grad_clip published.within"),
    Limit("null or a number >= 0", lambda v: v is None or v >= 0, "sft_weight"),
    Limit("0 <= number < 0.5", lambda v: 0 <= v < 0.5, "label_smoothing"),
    Limit("0 <= number < 1", lambda v: 0 <= v < 1, "optim.warmup_fraction"),
    Limit(
        "a list of two of 0 <= number < 1",
        lambda v: all(0 <= beta < 1 for beta in v),
        "optim.adam_betas",
    ),
    Limit("a list of at least one path or hub id", lambda v: len(v) > 0, "data.train"),
    Limit("a list of at least one name", lambda v: len(v) > 0, "adapter.targets"),
    Limit("0, the only value implemented", lambda v: v == 0, "adapter.dropout"),
    Limit(
        "null or 1 <= integer < 2**63",
        lambda v: v is None or 1 <= v < 2**63,
        "data.limit data.train[].limit",
    ),
    Limit("0 <= integer < 2**63", lambda v: 0 <= v < 2**63, "run.seed"),
    Limit(
        "1 <= integer < 2**31",
        lambda v: 1 <= v < 2**31,
        "optim.epochs optim.pairs_per_step optim.windows_per_step run.log_every "
        "run.eval_every run.save_every run.keep samples.max_new_tokens adapter.r adapter.alpha "
        "hardware.sequence_parallel",
    ),
    Limit(
        "2 <= integer < 2**31",
        lambda v: 2 <= v < 2**31,
        "data.max_tokens data.max_prompt_tokens hardware.tokens_per_micro_batch sampling.samples",
    ),
    Limit(
        "20 <= integer < 2**31",
        lambda v: 20 <= v < 2**31,
        "hardware.collective_timeout_seconds",
    ),
    # of `zephyr rounds` (zephyr/rounds/config.py)
    Limit(
        "1 <= integer < 2**31",
        lambda v: 1 <= v < 2**31,
        "rounds sampling.max_new_tokens sampling.batch scoring.max_tokens scoring.concurrency "
        "scoring.timeout_seconds scoring.tries server.start_seconds server.request_seconds "
        "server.concurrency eval.max_new_tokens train.processes",
    ),
    Limit(
        "null or 1 <= integer < 2**63",
        lambda v: v is None or 1 <= v < 2**63,
        "prompts.per_round scoring.budget_requests scoring.budget_tokens",
    ),
    Limit("a list of at least one path or hub id", lambda v: len(v) > 0, "prompts.sources"),
    Limit(
        "a name of letters, digits and _",
        lambda v: re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", v) is not None,
        "scoring.key_variable",
    ),
    Limit("0 <= integer < 2**31", lambda v: 0 <= v < 2**31, "seed"),
    Limit("a number > 0", lambda v: v > 0, "sampling.temperature"),
    Limit("a number >= 0", lambda v: v >= 0, "pairs.margin"),
    Limit("0 < number <= 1", lambda v: 0 < v <= 1, "sampling.top_p"),
]

# The keys in which $VARIABLES are filled in.
PATHS = frozenset(
    "model tokenizer chat_template data.train data.eval reference.dir reference.model "
    "hardware.deepspeed "
    "samples.prompts samples.judge run.dir "
    # of `zephyr rounds`
    "dir prompts.sources scoring.scorer scoring.templates train.config server.command eval.prompts "
    "eval.judge".split()
)
# Which variables. The resolved config is kept beside the model and sent to wandb, so that one that
# may hold a secret is refused.
VARIABLES = frozenset(
    "HOME USER LOGNAME TMPDIR SCRATCH PSCRATCH WORK WORKDIR WRKDIR PROJECT STORE DATA DATA_DIR "
    "DATASETS MODELS MODEL_DIR OUTPUT_DIR RUN_DIR HF_HOME XDG_CACHE_HOME ZEPHYR_CACHE SLURM_TMPDIR "
    "SLURM_SUBMIT_DIR SLURM_JOB_ID SLURM_ARRAY_TASK_ID".split()
)
VARIABLE = re.compile(r"\$(?:\{([^}]*)\}?|([A-Za-z_]\w*))")

TYPE_WORDS = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false"}
# What no path or name holds: control characters, half a surrogate pair, nothing at all.
NOT_A_NAME = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|^$")
# A number that YAML 1.1 reads as a string, such as 5e-7.
EXPONENT = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d{1,3}")


# ------------------------------------------------------------------------------------------- YAML

LARGEST_YAML = 2**20  # bytes of a file, and values once its aliases are written out
# All that PyYAML raises for a text that is no YAML.
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


def read_yaml(path: Path) -> Value:
    """The value of a YAML file.

    Raises:
        OSError: for a file that cannot be read.
        NOT_YAML: for one over `LARGEST_YAML` bytes, or that is not YAML.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_YAML + 1)
    if len(content) > LARGEST_YAML:
        raise ValueError(f"over {LARGEST_YAML} bytes")
    return parse_yaml(content.decode("utf-8"))


def parse_yaml(text: str) -> Value:
    """The value of a YAML text.

    Raises:
        NOT_YAML: also where its aliases stand for more than `LARGEST_YAML` values, or an anchor
            contains itself.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    if root is not None and count_values(root, {}) > LARGEST_YAML:
        raise ValueError(f"its anchors stand for more than {LARGEST_YAML} values")
    value: Value = yaml.safe_load(text)
    return value


def count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Values below a node, itself included, with every alias counted as what it stands for.

    Args:
        counts: id of a node -> its count, filled in here.
    """
    if id(node) in counts:
        return counts[id(node)]
    counts[id(node)] = LARGEST_YAML + 1  # until it is known: a node met again contains itself
    count = 1
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            count += count_values(item, counts)
    elif isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            count += count_values(key, counts) + count_values(item, counts)
    counts[id(node)] = count
    return count


# -------------------------------------------------------------------------------------- the config


def load(kind: type[C], path: str, overrides: Sequence[str] = ()) -> C:
    """The config in the YAML file `path`, with `key.sub=value` overrides and $VARIABLES filled in.

    Raises:
        ConfigError: naming the key, its value and what was expected, for an unknown or missing key,
            a wrong type, a value out of range, a combination that cannot work, or a file that
            cannot be read.
    """
    config = build(kind, read_tree(path, overrides), "")
    check(config)
    return config


def read_tree(path: str, overrides: Sequence[str] = ()) -> dict[str, Value]:
    """The keys in a YAML file, with `key.sub=value` overrides.

    Raises:
        ConfigError: for a file that cannot be read or holds no mapping, or a bad override.
    """
    try:
        tree = read_yaml(Path(path))
        repr(tree)  # raises for a number with thousands of digits, which no error could show
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror or error}") from None
    except NOT_YAML as error:
        raise ConfigError(f"config {path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: expected a mapping of keys, got {type(tree).__name__}")
    for override in overrides:
        set_key(tree, override)
    return tree


class DryRun(NamedTuple):
    """What a dry run predicts; None: the ranks and the device of this start, the config's rows."""

    gpus: int | None = None  # ranks
    device: str | None = None  # a name that `zephyr plan --device` knows
    lengths: str | None = None  # as `zephyr plan --lengths`


def load_arguments(kind: type[C], arguments: Sequence[str]) -> C:
    """The config that the arguments of a training script name, with their overrides.

    Raises:
        ConfigError: as `split_arguments`, `read_dry_run` and `load`.
    """
    read_dry_run(arguments)
    rest, _ = take_values(arguments)
    path, overrides = split_arguments([a for a in rest if a not in OPTIONS])
    return load(kind, path, overrides)


def read_dry_run(arguments: Sequence[str]) -> DryRun | None:
    """What a training script's arguments ask a dry run to predict; None: no dry run.

    Raises:
        ConfigError: an option of a dry run has no value or a wrong one, or stands without it.
    """
    _, values = take_values(arguments)
    if "--dry-run" not in arguments:
        if values:
            raise ConfigError(f"{next(iter(values))}: only a dry run takes it: add --dry-run")
        return None
    gpus = values.get("--gpus")
    if gpus is not None and not (gpus.isascii() and gpus.isdigit() and 0 < int(gpus) <= 2**20):
        raise ConfigError(f"--gpus: expected an integer from 1 to {2**20:,}, got {gpus!r}")
    return DryRun(
        None if gpus is None else int(gpus), values.get("--device"), values.get("--lengths")
    )


def take_values(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without DRY_RUN_OPTIONS (`--gpus 8` or `--gpus=8`), and the values of these.

    Raises:
        ConfigError: one has no value, or two.
    """
    rest: list[str] = []
    values: dict[str, str] = {}
    following = iter(arguments)
    for argument in following:
        name, equals, value = argument.partition("=")
        if name not in DRY_RUN_OPTIONS:
            rest.append(argument)
            continue
        if not equals:
            value = next(following, "")
        if not value or value.startswith("-"):
            raise ConfigError(f"{name}: a value is wanted after it, got {value!r}")
        if name in values:
            raise ConfigError(f"{name}: given twice, {values[name]} and {value}")
        values[name] = value
    return rest, values


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The path of the config and the overrides among a command's arguments, in any order.

    The first argument without `=`, or with a `/` before it, is the path. All others are overrides,
    which `set_key` checks.

    Raises:
        ConfigError: for an unknown option, or where no argument is a path.
    """
    if not arguments:
        raise ConfigError(
            "expected CONFIG.yaml [key.sub=value ...] [--dry-run] [--quiet], got no config; --help "
            "lists all keys"
        )
    path = ""
    overrides = []
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(
                f"unknown option {argument!r}: expected --dry-run, --quiet or --help; a config key "
                "is overridden as key.sub=value"
            )
        key, equals, _ = argument.partition("=")
        if not path and (not equals or "/" in key):
            path = argument
        else:
            overrides.append(argument)
    if not path:
        raise ConfigError(
            f"no config file among the arguments {' '.join(arguments)!r}; "
            "write a path with = in its name as ./NAME"
        )
    return path, overrides


def set_key(tree: dict[str, Value], override: str) -> None:
    """Write `key.sub=value` into the tree; the value is read as YAML.

    Raises:
        ConfigError: naming an override of another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: expected key.sub=value")
    try:
        value = parse_yaml(text)
        repr(value)  # as in `load`
    except NOT_YAML:
        raise ConfigError(f"override {override!r}: the value is not YAML") from None
    *parents, leaf = key.split(".")
    for parent in parents:
        node = tree.get(parent)
        if node is None:
            node = tree[parent] = {}
        if not isinstance(node, dict):
            raise ConfigError(
                f"override {override!r}: {parent} is not a group of keys, it is {node!r}; override "
                f"it whole, as {parent}={{KEY: value, ...}}"
            )
        tree = node
    tree[leaf] = value


def build(kind: type[T], tree: Mapping[str, Value], prefix: str) -> T:
    """The dataclass `kind` from a mapping.

    Raises:
        ConfigError: for an unknown or a missing key, or a value of another type.
    """
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise ConfigError(
                f"{prefix}{key}: unknown key{other_script(str(key), prefix)}; "
                f"{nearest_key(str(key), prefix, kind)}"
            )
    for spec in fields(kind):
        if spec.name not in tree and spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(f"{prefix}{spec.name}: missing; it is required")
    values = {key: read_value(hints[key], value, prefix + key) for key, value in tree.items()}
    return kind(**values)


def read_value(hint: object, value: Value, key: str) -> object:
    """`value` as the type `hint`.

    Raises:
        ConfigError: naming key, value and the expected type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: expected a group of keys, got {value!r}")
        return build(hint, value, f"{key}.")
    if origin is types.UnionType:
        return read_union(args, value, key)
    if origin is Literal:
        if value not in args or type(value) not in map(type, args):
            raise ConfigError(f"{key}: expected {type_words(hint)}, got {value!r}")
        return value
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{key}: expected a group of names, got {value!r}")
        return {name: read_value(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if origin is tuple:
        return read_list(args, value, key)
    if isinstance(value, str):
        value = fill_variables(value, key)
    if hint is float:
        value = read_number(value)
    accepted = type(value) is hint
    if isinstance(value, float) and not math.isfinite(value):
        accepted = False
    if isinstance(value, str) and NOT_A_NAME.search(value):
        accepted = False
    if not accepted:
        raise ConfigError(f"{key}: expected {type_words(hint)}, got {value!r}")
    return value


def read_union(args: tuple[object, ...], value: Value, key: str) -> object:
    """`value` as the type of `X | Y | None` that it has the form of.

    Raises:
        ConfigError: naming key, value and all types, where it has the form of none.
    """
    if value is None and types.NoneType in args:
        return None
    types_of_values = [arg for arg in args if arg is not types.NoneType]
    fitting = [arg for arg in types_of_values if has_form(value, arg)]
    if not fitting and len(types_of_values) > 1:
        words = " or ".join(type_words(arg) for arg in types_of_values)
        raise ConfigError(f"{key}: expected {words}, got {value!r}")
    return read_value((fitting or types_of_values)[0], value, key)


def has_form(value: Value, hint: object) -> bool:
    """Whether a value of YAML has the form of a type: a mapping, a text, or a number."""
    if isinstance(value, dict):
        return get_origin(hint) is dict or (isinstance(hint, type) and is_dataclass(hint))
    if isinstance(value, str):
        return hint is (float if EXPONENT.fullmatch(value) else str)
    return hint is float


def read_list(args: tuple[object, ...], value: Value, key: str) -> tuple[object, ...]:
    """`value` as a tuple: `(X, ...)` of any length, `(X, X)` of two.

    For one of any length, null is an empty list, and a single string a list of one.
    """
    any_length = args[-1] is Ellipsis
    if any_length and value is None:
        value = []
    if any_length and isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or (not any_length and len(value) != len(args)):
        length = "" if any_length else f" of {len(args)}"
        raise ConfigError(f"{key}: expected a list{length}, got {value!r}")
    return tuple(read_value(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))


def read_number(value: Value) -> Value:
    """An integer, or a string that YAML 1.1 does not read as a number (5e-7), as a float; any other
    value as it is."""
    if type(value) is int and abs(value) < 1e300:
        return float(value)
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    return value


def fill_variables(text: str, key: str) -> str:
    """The text with its $VARIABLES.

    Raises:
        ConfigError: as `expand_variables`, for a variable in a key that is no path, and for a text
            that holds a secret, because it would be written to the run folder.
    """
    found = VARIABLE.search(text)
    if found and key.partition("[")[0] not in PATHS:
        raise ConfigError(
            f"{key}: variables are filled in only where a path is expected, got {found[0]!r}; keep "
            "secrets in the environment"
        )
    whole = expand_variables(text, key)
    secret = find_secret(whole)
    if secret:
        raise ConfigError(
            f"{key}: expected a string without a secret, it holds {secret}; keep keys in the "
            "environment"
        )
    return whole


def expand_variables(text: str, key: str) -> str:
    """The text with its $VARIABLES.

    A text that names an existing file with `$` in its name, or such a file and its split
    (`FILE:SPLIT`), stays as it is.

    Raises:
        ConfigError: for a variable that is not one of `VARIABLES`, or is not set.
    """
    if VARIABLE.search(text):
        file = text.partition(":")[0]
        if os.path.lexists(text) or os.path.lexists(file):
            return text
    for found in VARIABLE.finditer(text):
        name = found[1] or found[2] or ""
        if name not in VARIABLES:
            raise ConfigError(
                f"{key}: the variable {found[0]!r} is not among those that name folders or jobs: "
                f"{', '.join(sorted(VARIABLES))}; keep secrets in the environment, because the "
                "config is kept beside the model"
            )
        if name not in os.environ:
            raise ConfigError(f"{key}: the variable {name} is not set")
    return VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], text)


def nearest_key(key: str, prefix: str, kind: type[DataclassInstance]) -> str:
    """The valid key that was most likely meant: of this group, else of the whole config."""
    names = [spec.name for spec in fields(kind)]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    close += [name for name in names if name.startswith(key)]
    meant = [prefix + name for name in close]
    for root in (DPOConfig, SFTConfig):
        meant += [other for other in keys(root, "") if other.split(".")[-1] == key]
    if not meant:
        return f"valid here: {', '.join(names)}"
    return f"the nearest valid key is {meant[0]}"


def other_script(key: str, prefix: str) -> str:
    """` (a key of SCRIPT)` for an unknown key that the other training script has, else ""."""
    for root, script in ((DPOConfig, "train_dpo.py"), (SFTConfig, "train_sft.py")):
        known = [f"{name}." for name in keys(root, "")]
        if "." not in key and any(name.startswith(f"{prefix}{key}.") for name in known):
            return f" (a key of {script})"
    return ""


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The name that was most likely meant."""
    return difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)[0]


def group_of(hint: object) -> type[DataclassInstance] | None:
    """The dataclass of a group of keys, also of one that may be null; None: it is a single key."""
    if get_origin(hint) is types.UnionType:
        hint = get_args(hint)[0]
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def keys(kind: type[DataclassInstance], prefix: str) -> Iterator[str]:
    """Every full key of a config dataclass, such as `optim.lr_peak`; a group that may be null is a
    key too, beside those in it."""
    for name, hint in get_type_hints(kind).items():
        group = group_of(hint)
        if group is None or group is not hint:
            yield prefix + name
        if group is not None:
            yield from keys(group, f"{prefix}{name}.")


def check(config: DPOConfig | SFTConfig) -> None:
    """Check the range of each value, and combinations of two.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    check_limits(config)
    check_sources(config)
    data = config.data
    if isinstance(config, DPOConfig) and data.max_prompt_tokens >= data.max_tokens:
        raise ConfigError(
            f"data.max_prompt_tokens: expected less than data.max_tokens ({data.max_tokens}), got "
            f"{data.max_prompt_tokens}: no tokens would be left for a response"
        )
    if config.published is not None and not data.eval:
        raise ConfigError(
            f"published: expected null without data.eval, got eval_loss "
            f"{config.published.eval_loss}: name the rows that it is compared on in data.eval"
        )
    check_eras(config)


def check_eras(config: DPOConfig | SFTConfig) -> None:
    """Check the combinations of options that reproduce published quirks.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    data = config.data
    if config.optim.optimizer == "rmsprop" and config.optim.weight_decay:
        raise ConfigError(
            f"optim.weight_decay: expected 0 with optim.optimizer: rmsprop, got "
            f"{config.optim.weight_decay!r}: torch's RMSprop would add it to the gradient"
        )
    if isinstance(config, DPOConfig):
        return
    for key, value, wanted in (
        ("truncation", data.truncation, "keep_end"),
        ("encoding", data.encoding, "zephyr"),
    ):
        if value != wanted:
            raise ConfigError(
                f"data.{key}: expected {wanted}, got {value!r}: it is an option of train_dpo.py"
            )
    if config.data.packing == "constant_length" and data.targets != "all":
        raise ConfigError(
            f"data.targets: expected all with data.packing: constant_length, got {data.targets!r}: "
            "the windows of those recipes counted every token"
        )


# Keys of options that reproduce published quirks -> the value of those that don't.
USUAL = {
    "data.encoding": "zephyr",
    "data.truncation": "keep_end",
    "data.packing": "best_fit",
    "optim.optimizer": "adamw",
}
QUIRK = "reproduces published quirks; it is not for new work"


def quirks(values: Mapping[str, object]) -> list[str]:
    """The options that reproduce published quirks, as `key: value`. Args: values: by full key."""
    on = [key for key, usual in USUAL.items() if values.get(key, usual) != usual]
    return [f"{key}: {values[key]}" for key in on]


def config_quirks(config: DPOConfig | SFTConfig) -> list[str]:
    """`quirks` of a config."""
    known = set(keys(type(config), ""))
    return quirks({key: attrgetter(key)(config) for key in USUAL if key in known})


def check_limits(config: DataclassInstance) -> None:
    """Check the range of each value. Raises: ConfigError, as `check`."""
    known = set(keys(type(config), ""))
    for limit in LIMITS:
        for key in limit.keys.split():
            if key not in known or is_absent(config, key):
                continue
            value = attrgetter(key)(config)
            if not limit.accepts(value):
                raise ConfigError(f"{key}: expected {limit.words}, got {value!r}")


def is_absent(config: DataclassInstance, key: str) -> bool:
    """Whether the key is of a group that is null."""
    group = key.rpartition(".")[0]
    return group != "" and attrgetter(group)(config) is None


def check_sources(config: DPOConfig | SFTConfig) -> None:
    """Check `limit` and `weight` of each group in `data.train` and `data.eval`.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    for name, entries in (("train", config.data.train), ("eval", config.data.eval)):
        for number, entry in enumerate(entries):
            key, source = f"data.{name}[{number}]", read_source(entry)
            if source.limit is not None and not 1 <= source.limit < 2**63:
                raise ConfigError(
                    f"{key}.limit: expected null or 1 <= integer < 2**63, got {source.limit!r}"
                )
            if source.weight <= 0:
                raise ConfigError(
                    f"{key}.weight: expected a number > 0, got {source.weight!r}; to leave "
                    f"{source.path} out, take it out of the list"
                )
            if isinstance(config, SFTConfig) and source.weight != 1:
                raise ConfigError(
                    f"{key}.weight: expected 1, got {source.weight!r}: train_sft.py counts each "
                    "target token alike; `limit` reads fewer rows of a source"
                )


def read_source(entry: object) -> DataSource:
    """An entry of `data.train` or `data.eval` as a group, also as the YAML of a run folder holds
    it: a string, or a mapping."""
    if isinstance(entry, DataSource):
        return entry
    if isinstance(entry, Mapping):
        limit, weight = entry.get("limit"), entry.get("weight", 1.0)
        return DataSource(
            str(entry.get("path")),
            limit if isinstance(limit, int) else None,
            float(weight) if isinstance(weight, (int, float)) else 1.0,
        )
    return DataSource(str(entry))


def source_paths(entries: object) -> list[str]:
    """The paths or hub ids of a list of sources (`read_source`); of what is no list, none."""
    listed = entries if isinstance(entries, (list, tuple)) else ()
    return [read_source(entry).path for entry in listed]


def to_yaml(config: DataclassInstance) -> str:
    """The resolved config, every key written: `config.yaml` of the run folder."""
    text: str = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    return text


# -------------------------------------------------------------------- documentation of the keys


class Key(NamedTuple):
    """What a reader wants to know of a config key. default: as YAML; "required" if it has none."""

    name: str
    type: str
    default: str
    meaning: str


def describe_keys(kind: type[DataclassInstance], prefix: str = "") -> Iterator[Key]:
    """Every key of a config dataclass, in the order of its fields."""
    hints = get_type_hints(kind)
    for spec in fields(kind):
        hint, key = hints[spec.name], prefix + spec.name
        group = group_of(hint)
        if group is not None and group is not hint:
            yield Key(key, type_words(hint), yaml_of(spec.default), meaning(kind, spec.name))
        if group is not None:
            yield from describe_keys(group, f"{key}.")
            continue
        words = [limit.words for limit in LIMITS if key in limit.keys.split()]
        default = "required" if spec.default is MISSING else yaml_of(spec.default)
        yield Key(key, words[0] if words else type_words(hint), default, meaning(kind, spec.name))


def type_words(hint: object) -> str:
    """The type of a key in words, as errors and the documentation name it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return " or ".join("null" if arg is types.NoneType else type_words(arg) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(str(arg).lower() for arg in args)}"
    if origin is dict:
        return "a group of names"
    if origin is tuple:
        of_groups = get_origin(args[0]) is types.UnionType
        words = "a list of strings or groups" if of_groups else "a list of strings"
        return words if args[-1] is Ellipsis else f"a list of {len(args)} numbers"
    assert isinstance(hint, type), hint
    return "a group of keys" if is_dataclass(hint) else TYPE_WORDS[hint]


def yaml_of(value: object) -> str:
    """A default as it is written in a YAML file: on one line, tuples as lists."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True)
    return text.removesuffix("...\n").strip().replace("e-0", "e-")


def meaning(kind: type[DataclassInstance], name: str) -> str:
    """The text below a field, of the dataclass itself or of the one that it inherits it from.

    Raises:
        LookupError: where there is none.
    """
    for parent in kind.__mro__:
        docstrings = field_docstrings(getattr(sys.modules[parent.__module__], "__file__", None))
        if (parent.__name__, name) in docstrings:
            return docstrings[parent.__name__, name]
    raise LookupError(f"{kind.__name__}.{name}: write its meaning as a string below the field")


@lru_cache(maxsize=4)
def field_docstrings(module: str | None = __file__) -> dict[tuple[str, str], str]:
    """(dataclass, field) -> the string below the field, which Python itself does not keep.

    Args: module: the file of the dataclass; None for one of Python's own, which has none.
    """
    docstrings: dict[tuple[str, str], str] = {}
    if module is None:
        return docstrings
    tree = ast.parse(Path(module).read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, next_one in zip(node.body, node.body[1:]):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(next_one, ast.Expr):
                continue
            if isinstance(statement.target, ast.Name) and isinstance(next_one.value, ast.Constant):
                text = " ".join(str(next_one.value.value).split())
                docstrings[node.name, statement.target.id] = text
    return docstrings


def help_text(kind: type[DataclassInstance], usage: str) -> str:
    """What `--help` of a training script prints. Args: usage: the docstring of the script."""
    lines = [
        usage.strip(),
        "",
        "options, anywhere on the line:",
        "  --dry-run        print the plan, memory and time, and exit; needs no weights",
        "  --gpus N         with --dry-run: predict for N GPUs instead of those of this machine",
        "  --device NAME    with --dry-run: predict for GPUs of this type, as a100-80 or h100",
        "  --lengths FILE   with --dry-run: token counts (.jsonl) in place of the rows, or those",
        "                   of a published set: ultrafeedback, hh, tldr (pairs), ultrachat (texts)",
        "  --quiet          no progress and no log: only warnings, alarms and errors",
        "  -h, --help       print this and exit",
        "  key.sub=value    override a key of CONFIG.yaml; the value is read as YAML",
        "",
        "keys of CONFIG.yaml (type; default):",
    ]
    for key in (*describe_keys(kind), *describe_keys(DataSource, SOURCE_PREFIX)):
        lines.append(f"  {key.name}  ({key.type}; {key.default})")
        lines += textwrap.wrap(key.meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def check_arguments(kind: type[C], usage: str, arguments: Sequence[str]) -> None:
    """Answer `--help`, and refuse a wrong option, key or value, as `launch` does.

    The scripts call it before they import torch, so that the answer does not take seconds.

    Raises:
        SystemExit: with code 0 after the help, with code 2 after one line about what is wrong.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text(kind, usage))
        raise SystemExit(0)
    try:
        load_arguments(kind, arguments)
    except ConfigError as error:
        print_bad_input(error)
        raise SystemExit(BAD_INPUT) from None


def print_bad_input(error: BadInput) -> None:
    """Print the line about bad input once a node."""
    if is_first_of_node():
        print(f"error: {error}", file=sys.stderr)


def is_first_of_node() -> bool:
    """Whether this process is the first of its node, of those that were started together.

    LOCAL_RANK is the number of its GPU, which is 0 in every task that sees one GPU only: there
    `zephyr.training.launchers` sets the first name. The last ones count before that.
    """
    names = (
        "ZEPHYR_RANK_ON_NODE",
        "LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "MPI_LOCALRANKID",
        "SLURM_LOCALID",
    )
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


SOURCE_PREFIX = "data.train[]."  # of the keys of a group in `data.train` or `data.eval`
README_MARK = "<!-- keys: written by `make configs-readme` from zephyr/config.py; do not edit -->\n"


def keys_as_markdown() -> str:
    """One table per group of keys, for both training scripts."""
    by_script = [{key.name: key for key in describe_keys(kind)} for kind in (DPOConfig, SFTConfig)]
    dpo, sft = by_script
    names = list(dpo) + [name for name in sft if name not in dpo]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    lines = []
    for group, members in groups.items():
        lines += ["", f"### {group or 'Top level'}", ""]
        lines.append("| key | type | train_dpo.py | train_sft.py | meaning |")
        lines.append("|---|---|---|---|---|")
        for name in members:
            lines.append(markdown_row(name, dpo.get(name), sft.get(name)))
    lines += ["", "### A group in `data.train` or `data.eval`", ""]
    lines.append("| key | type | default | meaning |")
    lines.append("|---|---|---|---|")
    for key in describe_keys(DataSource, SOURCE_PREFIX):
        lines.append(f"| `{key.name}` | {key.type} | `{key.default}` | {key.meaning} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def markdown_row(name: str, dpo: Key | None, sft: Key | None) -> str:
    """A key with its default under either script; a dash where a script does not have it."""
    first = dpo or sft
    assert first is not None
    text = first.meaning
    if dpo is not None and sft is not None and dpo.meaning != sft.meaning:
        text = f"train_dpo.py: {dpo.meaning} train_sft.py: {sft.meaning}"
    defaults = [f"`{key.default}`" if key else "-" for key in (dpo, sft)]
    return table_row([f"`{name}`", first.type, *defaults, text])


def table_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_readme(path: Path) -> None:
    """Replace what follows `README_MARK` in the file by the tables of keys. Raises: BadInput."""
    write_tables(path, README_MARK, keys_as_markdown())


def write_tables(path: Path, mark: str, tables: str) -> None:
    """Replace what follows the line `mark` in the file. Raises: BadInput where it has none."""
    before, found, _ = path.read_text(encoding="utf-8").partition(mark)
    if not found:
        raise BadInput(f"{path}: expected the line {mark.strip()}")
    path.write_text(f"{before}{mark}\n{tables}", encoding="utf-8")


if __name__ == "__main__":
    write_readme(Path(sys.argv[1]))
