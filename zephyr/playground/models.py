"""A model becomes a stream: the answer to a conversation while it is being written, by a local
folder or an endpoint."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple

from zephyr.chat.messages import Messages, check_messages
from zephyr.config import BadInput, redact

# Yields the answer as far as it is written, and "" or why it ends. Raises: ValueError if there can
# be no answer.
Answer = Generator[tuple[str, str], None, None]
Stream = Callable[[Messages, int], Answer]  # of a conversation and a seed


class Sampling(NamedTuple):
    """How an answer is drawn."""

    max_new_tokens: int
    temperature: float  # 0: greedy
    top_p: float
    top_k: int  # 0: all


def check_sampling(sampling: Sampling) -> None:
    """Raises: BadInput for values outside their ranges, NaN among them."""
    in_range = (
        sampling.max_new_tokens >= 1
        and sampling.temperature >= 0
        and 0 < sampling.top_p <= 1
        and sampling.top_k >= 0
    )
    if not in_range:
        raise BadInput(
            f"--max-new-tokens {sampling.max_new_tokens} --temperature {sampling.temperature} "
            f"--top-p {sampling.top_p} --top-k {sampling.top_k}: expected at least 1, at least 0, "
            "0 < P <= 1, and at least 0"
        )


def open_model(spec: str, sampling: Sampling, key_variable: str = "OPENAI_API_KEY") -> Stream:
    """The stream of a spec. Raises: BadInput for a spec of another form, or what is not there."""
    found = re.fullmatch(r"openai:(.+)@(https?://.+)|(?:hf:)?((?!\w+:).+)", spec)
    if not found:
        raise BadInput(f"model {spec!r}: expected a model folder, hf:PATH or openai:MODEL@BASE_URL")
    if found[3]:
        return local_stream(found[3], sampling)
    return endpoint_stream(found[1], found[2], sampling, key_variable)


def local_stream(path: str, sampling: Sampling) -> Stream:
    """A model on this machine. It answers what `model.generate` gives for the same conversation,
    settings and seed."""
    import torch

    from zephyr.model.generate import prompt_ids, sampler
    from zephyr.teacher.spec import load_chat_model

    lm, tokenizer = load_chat_model(path)
    lm.eval()  # type: ignore[no-untyped-call]  # transformers does not annotate it
    # transformers 5.24 renamed the argument and warns of the older name.
    renamed = "cache" in inspect.signature(lm.forward).parameters
    cache_name = "cache" if renamed else "past_key_values"

    def stream(turns: Messages, seed: int) -> Answer:
        new = prompt_ids(lm, tokenizer, turns, 1)
        limit = min(sampling.max_new_tokens, lm.config.max_position_embeddings - len(new))
        warps = sampler(
            [new], [seed], sampling.temperature, sampling.top_p, sampling.top_k, lm.device
        )
        answer: list[int] = []
        cache = None
        end = ""
        while not end:
            new_1L = torch.tensor([new], device=lm.device)
            with torch.no_grad():
                output = lm(new_1L, use_cache=True, logits_to_keep=1, **{cache_name: cache})
            cache = output[cache_name]
            scores_1V = output.logits[:, -1].float()
            for warp in warps:
                scores_1V = warp(new_1L, scores_1V)
            new = [int(scores_1V.argmax())]
            answer += new
            if new == [tokenizer.eos_token_id]:
                end = "stop"
            elif len(answer) == limit:
                end = "length"
            text = str(tokenizer.decode(answer, skip_special_tokens=True))
            # The last bytes of a character may come later: until then there is a replacement sign.
            yield (text if end else text.rstrip("\ufffd")), end

    return stream


def endpoint_stream(model: str, url: str, sampling: Sampling, key_variable: str) -> Stream:
    """A model behind an OpenAI-compatible server, which renders the conversation by its own
    template. Raises: BadInput for a bad URL or key, and without the package openai."""
    from zephyr.teacher.endpoint import MAX_REPLY_BYTES, endpoint, redact_key, refuse_redirect

    endpoint(model, url, key_variable=key_variable)  # checks URL, key and package
    import openai

    key = os.environ.get(key_variable, "")
    guarded = openai.DefaultHttpxClient(
        follow_redirects=False, event_hooks={"response": [refuse_redirect]}
    )
    # httpx, or httpx2 for a newer openai
    library = sys.modules[type(guarded).__mro__[1].__module__]
    client = openai.OpenAI(api_key=key or "none", base_url=url, http_client=guarded)

    def stream(turns: Messages, seed: int) -> Answer:
        text = ""
        request = {
            "model": model,
            "messages": check_messages(turns, last="user"),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stream": True,
        }
        try:
            with client.chat.completions.create(**request) as chunks:  # type: ignore[call-overload]  # a conversation of any user
                for chunk in chunks:
                    for choice in chunk.choices[:1]:
                        text += choice.delta.content or ""
                        if len(text) > MAX_REPLY_BYTES:
                            raise BadInput(f"its answer is over {MAX_REPLY_BYTES} characters")
                        yield text, choice.finish_reason or ""
        except (openai.OpenAIError, library.HTTPError, BadInput) as error:
            cause = error.__cause__ if isinstance(error.__cause__, BadInput) else error
            raise ValueError(redact_key(redact(f"{model} at {url}: {cause}"), key)) from None

    return stream


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Add a line to a .jsonl file, which is made if it is missing. Raises: OSError."""
    from zephyr.data.jsonl import json_line

    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("ab") as file:
        file.write(b"\n" * cut_off + json_line(row))
