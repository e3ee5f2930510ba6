"""A model becomes a stream: the answer to a conversation while it is being written, by a local
folder or an endpoint."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from zephyr.chat import Messages, check_messages
from zephyr.config import BadInput, redact

# Of a conversation and a seed: the answer as far as it is written, and "" or why it ends. Raises
# ValueError where there can be none.
Stream = Callable[[Messages, int], Iterator[tuple[str, str]]]


def open_model(spec: str, options: argparse.Namespace) -> Stream:
    """What answers in the name of a spec. Raises: BadInput for a spec of another form, or what is
    not there."""
    found = re.fullmatch(r"openai:(.+)@(https?://.+)|(?:hf:)?((?!\w+:).+)", spec)
    if not found:
        raise BadInput(
            f"model {spec!r}: a model folder, hf:PATH or openai:MODEL@BASE_URL is wanted"
        )
    return (
        local_stream(found[3], options)
        if found[3]
        else endpoint_stream(found[1], found[2], options)
    )


def local_stream(path: str, options: argparse.Namespace) -> Stream:
    """A model on this machine; what it says is what `model.generate` makes of the same
    conversation, settings and seed."""
    import torch

    from zephyr.model.generate import prompt_ids, sampler
    from zephyr.teacher.spec import load_chat_model

    lm, tokenizer = load_chat_model(path)
    lm.eval()

    def stream(turns: Messages, seed: int) -> Iterator[tuple[str, str]]:
        new, said, cache, end = prompt_ids(lm, tokenizer, turns, 1), [], None, ""
        limit = min(options.max_new_tokens, lm.config.max_position_embeddings - len(new))
        warps = sampler([new], [seed], options.temperature, options.top_p, options.top_k, lm.device)
        while not end:
            new_1L = torch.tensor([new], device=lm.device)
            with torch.no_grad():
                output = lm(new_1L, past_key_values=cache, use_cache=True, logits_to_keep=1)
            scores_1V, cache = output.logits[:, -1].float(), output.past_key_values
            for warp in warps:
                scores_1V = warp(new_1L, scores_1V)
            new = [int(scores_1V.argmax())]
            said += new
            end = (
                "stop"
                if new == [tokenizer.eos_token_id]
                else "length"
                if len(said) == limit
                else ""
            )
            text = tokenizer.decode(said, skip_special_tokens=True)
            yield (
                text if end else text.rstrip("\ufffd"),
                end,
            )  # a character's last byte may be yet to come

    return stream


def endpoint_stream(model: str, url: str, options: argparse.Namespace) -> Stream:
    """A model behind an OpenAI-compatible server, which renders the conversation by its own
    template."""
    from zephyr.teacher.endpoint import MAX_REPLY_BYTES, endpoint, redact_key, refuse_redirect

    endpoint(
        model, url, key_variable=options.key_variable
    )  # refuses a bad URL or key, and a missing package
    import openai

    key = os.environ.get(options.key_variable, "")
    guarded = openai.DefaultHttpxClient(
        follow_redirects=False, event_hooks={"response": [refuse_redirect]}
    )
    library = sys.modules[
        type(guarded).__mro__[1].__module__
    ]  # httpx, or httpx2 for a newer openai
    client = openai.OpenAI(api_key=key or "none", base_url=url, http_client=guarded)

    def stream(turns: Messages, seed: int) -> Iterator[tuple[str, str]]:
        asked, text = check_messages(turns, last="user"), ""
        try:
            with client.chat.completions.create(
                model=model,
                messages=asked,
                max_tokens=options.max_new_tokens,
                stream=True,
                seed=seed,
                temperature=options.temperature,
                top_p=options.top_p,
            ) as chunks:
                for choice in (choice for chunk in chunks for choice in chunk.choices[:1]):
                    text += choice.delta.content or ""
                    if len(text) > MAX_REPLY_BYTES:
                        raise BadInput(f"its answer is over {MAX_REPLY_BYTES} characters")
                    yield text, choice.finish_reason or ""
        except (openai.OpenAIError, library.HTTPError, BadInput) as error:
            cause = error.__cause__ if isinstance(error.__cause__, BadInput) else error
            raise ValueError(redact_key(redact(f"{model} at {url}: {cause}"), key)) from None

    return stream


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """One line more of a .jsonl file, which is made where it is missing. Raises: OSError."""
    from zephyr.data.jsonl import json_line

    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("ab") as file:
        file.write(b"\n" * cut_off + json_line(row))
