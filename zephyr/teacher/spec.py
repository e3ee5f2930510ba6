"""A SPEC becomes a teacher: `openai:MODEL@BASE_URL`, `pool:MODEL@BASE_URL,BASE_URL,...`, `hf:PATH`,
or one of the embedded world, `world:NAME[@FOLDER or seed]`."""

import os
import re
from functools import partial
from typing import TYPE_CHECKING

from zephyr.config import BadInput
from zephyr.teacher.endpoint import endpoint
from zephyr.teacher.local import local
from zephyr.teacher.pool import pool
from zephyr.teacher.request import Teacher
from zephyr.teacher.world import open_world_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPEC_FORMS = (
    "openai:MODEL@BASE_URL, pool:MODEL@BASE_URL,BASE_URL,..., hf:PATH, or world:NAME, "
    "world:NAME@FOLDER, world:NAME@SEED"
)
SPEC_START = re.compile("(?:openai|pool|hf|world):")
# between two SPECs of a list; the URLs of a pool are also separated by commas
BETWEEN_SPECS = re.compile(r",(?=(?!https?:)[a-z]\w*:)")


def open_teacher(
    spec: str,
    *,
    concurrency: int = 16,
    timeout_seconds: float = 120.0,
    retries: int = 6,
    key_variable: str = "OPENAI_API_KEY",
) -> Teacher:
    """Return the teacher that `spec` names.

    Args:
        spec: one of `SPEC_FORMS`.
        concurrency, timeout_seconds, retries, key_variable: of endpoints only, see `endpoint` and
            `pool`.
    Raises:
        BadInput: for a spec of another form, or if what it names does not exist.
    """
    kind, _, rest = spec.partition(":")
    found = re.fullmatch(r"(.+)@(https?://.+)", rest)
    if kind == "openai" and found:
        model, base_url = found.groups()
        return endpoint(
            model,
            base_url,
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            retries=retries,
            key_variable=key_variable,
        )
    if kind == "pool" and found:
        model, base_urls = found.groups()
        return pool(
            model,
            base_urls.split(","),
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            retries=retries,
            key_variable=key_variable,
        )
    if kind == "hf" and rest:
        return local(rest, load=partial(load_chat_model, rest))
    if kind == "world" and rest:
        name, _, where = rest.partition("@")
        return open_world_teacher(spec, name, where)
    raise BadInput(f"teacher {spec!r}: expected {SPEC_FORMS}")


def split_specs(text: str) -> list[str]:
    """The SPECs of a list that is separated by commas."""
    return BETWEEN_SPECS.split(text)


def load_chat_model(path: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a model that answers, and its tokenizer.

    The model is in bfloat16 on this rank's GPU if there is one, otherwise in float32 on the CPU.
    The tokenizer has its own chat template, or Zephyr's if it has none. If that template ends a
    turn with another token than the tokenizer's EOS, this token becomes the EOS.
    """
    import torch

    from zephyr.chat import end_of_turn_token
    from zephyr.data.tokenizer import load_tokenizer
    from zephyr.model.load import load_policy

    device = model_device()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    policy = load_policy(path, attention="sdpa", dtype=dtype)
    tokenizer = load_tokenizer(path)
    end = end_of_turn_token(tokenizer, tokenizer.chat_template)
    if end not in (None, tokenizer.eos_token):
        tokenizer.add_special_tokens({"eos_token": end})
    policy.lm.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
    return policy.lm, tokenizer


def model_device() -> str:
    """Return where this rank runs a model: its GPU if there is one, otherwise the CPU."""
    import torch

    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else "cpu"
