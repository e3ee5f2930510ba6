"""Loads the tokenizer that the whole program uses, and sets the config's chat template on it.

Also builds a fast tokenizer from a SentencePiece model, with the ids that Llama 2, Mistral and
Zephyr were trained with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zephyr.chat import (
    HANDBOOK_TEMPLATE,
    ZEPHYR_TEMPLATE,
    check_template_limits,
    encode_messages,
    own_template,
)
from zephyr.chat.template_limits import TURNS
from zephyr.config import BadInput
from zephyr.model.adapter_files import is_adapter
from zephyr.model.export import PROBES
from zephyr.model.load import base_folder, local_folder, read_config

if TYPE_CHECKING:
    # protobuf makes its classes at import, where mypy does not see them
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

SPACE = "\u2581"  # how SentencePiece writes a space
BPE_MODEL = 2  # sentencepiece_model.proto, TrainerSpec.ModelType
# the same file, SentencePiece.Type; a byte is 6
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5


def load_tokenizer(
    path: str | Path, chat_template: str = "auto", eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, prepared for use.

    Args: chat_template, eos_token: as `prepare_tokenizer`.
    Raises: BadInput if no tokenizer loads, it has no EOS, or the template is missing."""
    return prepare_tokenizer(read_tokenizer(path), chat_template, eos_token)


def read_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, unchanged; of an adapter without one, its base's.

    A folder with a SentencePiece `tokenizer.model` and without `tokenizer.json` is read by
    `from_sentencepiece` (needs sentencepiece and protobuf): transformers 5 would build a tokenizer
    with other ids, without dummy space and BOS, and with merges in the order of ids.
    Warns if AutoTokenizer makes other ids than the folder's tokenizer.json.
    Raises: BadInput if no tokenizer loads."""
    folder = Path(path)
    if is_adapter(folder) and not any(folder.glob("tokenizer*")):
        path = folder = base_folder(folder)[0]
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        return from_sentencepiece(folder / "tokenizer.model")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path))
        mismatch = describe_id_mismatch(tokenizer, folder)
        if mismatch:
            warnings.warn(mismatch, stacklevel=2)
        return tokenizer
    except Exception as error:  # Rust reports a damaged tokenizer.json as a plain Exception
        raise BadInput(
            f"no tokenizer loads from {str(path)!r}: {error or type(error).__name__}"
        ) from error


def describe_id_mismatch(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """A warning if the tokenizer makes other ids than the folder's own tokenizer.json, else "".

    For some types of models AutoTokenizer takes a class that builds its splitting and BOS itself
    and ignores those of the file."""
    if not tokenizer.is_fast or not (folder / "tokenizer.json").is_file():
        return ""
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    name = type(tokenizer).__name__
    for text in PROBES:
        ids, theirs = tokenizer(text)["input_ids"], own.encode(text).ids
        if ids != theirs:
            return (
                f"{folder}: AutoTokenizer takes {name} for a model of this type, which makes other "
                f"ids than tokenizer.json ({len(ids)} for {len(theirs)} of {text!r:.40}). Training "
                f"and transformers of this version use those of {name}; the model may have been "
                "pretrained on the others"
            )
    return ""


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Raises: BadInput if the tokenizer makes ids for which the model of that folder or hub id has
    no embedding."""
    vocabulary = read_config(local_folder(model, weights=False)).vocab_size
    if len(tokenizer) > vocabulary:
        raise BadInput(
            f"the tokenizer has {len(tokenizer)} tokens, expected at most {vocabulary}, the "
            f"vocabulary of {model}"
        )


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, chat_template: str = "auto", eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """Set the chat template and EOS that the config names, and EOS as pad token if there is none.

    Args:
        chat_template: `zephyr`, `model` (the tokenizer's own), `auto` (its own if it has one, else
            zephyr), or the path of a jinja file.
        eos_token: a token of the vocabulary that replaces the tokenizer's EOS; None keeps that.
    Returns: the same tokenizer.
    Raises: BadInput for `model` if the tokenizer has no template, for a template that cannot be
        read or used, and for an EOS that is missing or unknown."""
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise BadInput(f"eos_token is {eos_token!r}, expected a token of the vocabulary")
        tokenizer.add_special_tokens({"eos_token": eos_token})
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "the tokenizer has no EOS token, expected one: an answer could never end; "
            "eos_token: TOKEN names one of its vocabulary"
        )
    _set_template(tokenizer, resolve_chat_template(tokenizer, chat_template))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _set_template(tokenizer: PreTrainedTokenizerBase, chosen: str) -> None:
    if chosen == "zephyr":
        tokenizer.chat_template = ZEPHYR_TEMPLATE
    elif chosen == "model":
        tokenizer.chat_template = own_template(tokenizer)
        if tokenizer.chat_template is None:
            raise BadInput(
                "chat_template: model, but the tokenizer has no template of its own, expected "
                "zephyr or a jinja file"
            )
        try:
            check_template_limits(tokenizer, tokenizer.chat_template)
        except ValueError as error:
            raise BadInput(
                f"the model's own chat template can't be used: {error}; chat_template: zephyr, or "
                "a jinja file, replaces it"
            ) from error
    else:
        try:
            tokenizer.chat_template = Path(chosen).read_text(encoding="utf-8")
            check_template_limits(tokenizer, tokenizer.chat_template)
            encode_messages(tokenizer, TURNS, template=tokenizer.chat_template)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"chat_template is {chosen!r}, expected auto, zephyr, model or a readable jinja "
                f"file: {getattr(error, 'strerror', None) or error}"
            ) from error


def resolve_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> str:
    """The value of the config key `chat_template`, with `auto` resolved: `model` if the tokenizer
    has a template, else `zephyr`."""
    if chat_template != "auto":
        return chat_template
    return "zephyr" if own_template(tokenizer) is None else "model"


def has_foreign_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a template of its own that is not Zephyr's."""
    own = own_template(tokenizer)
    return own is not None and not own.endswith((HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE))


def from_sentencepiece(model: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer with SentencePiece's own ids, as Llama 2, Mistral and Zephyr were trained
    ("legacy").

    Text between special tokens is encoded separately, each part after a dummy space: hence piece
    28705 after `</s>` in Mistral's ids. A `chat_template` in a `tokenizer_config.json` beside the
    model is kept.
    Raises: BadInput for a model that is not BPE, or that rewrites the text before encoding it."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: ModelProto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # as above
    try:
        proto.ParseFromString(model.read_bytes())
    except DecodeError as error:
        raise BadInput(f"{model} is no readable SentencePiece model: {error}") from error
    spec = proto.trainer_spec
    rewrites = (
        proto.normalizer_spec.precompiled_charsmap or proto.normalizer_spec.remove_extra_whitespaces
    )
    if spec.model_type != BPE_MODEL or rewrites:
        raise BadInput(
            f"{model} is no BPE model that leaves the text unchanged, expected a folder with its "
            "tokenizer.json"
        )
    ids = {
        "unk_token": spec.unk_id,
        "bos_token": spec.bos_id,
        "eos_token": spec.eos_id,
        "pad_token": spec.pad_id,
    }
    names = {name: proto.pieces[i].piece for name, i in ids.items() if i >= 0}
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # no stubs
        tokenizer_object=_fast_bpe(proto, names.get("bos_token")),
        **names,
        clean_up_tokenization_spaces=False,
    )
    settings = model.with_name("tokenizer_config.json")
    if settings.is_file():
        try:
            kept = json.loads(settings.read_text(encoding="utf-8"))
            tokenizer.chat_template = kept.get("chat_template")
        except (ValueError, AttributeError) as error:
            raise BadInput(f"{settings} holds no JSON object: {error}") from error
    return tokenizer


def _fast_bpe(proto: ModelProto, bos: str | None) -> Tokenizer:
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    unknown = next((piece.piece for piece in proto.pieces if piece.type == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(proto),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    dummy_space = [normalizers.Prepend(SPACE)] if proto.normalizer_spec.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*dummy_space, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", left=1, right=0)] if dummy_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    specials = [piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in specials]
    )
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
        )
    return tokenizer


def _merges(proto: ModelProto) -> list[tuple[str, str]]:
    """Every split of every piece into two pieces, in the order in which SentencePiece prefers them:
    by the score of the piece, best first.

    That is not the order of ids: Mistral's runs of spaces have ids 259 and 260, and the worst
    score."""
    usable = {piece.piece for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED, UNUSED)}
    splits = [
        (-piece.score, i, cut, piece.piece)
        for i, piece in enumerate(proto.pieces)
        if piece.piece in usable
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in usable and piece.piece[cut:] in usable
    ]
    return [(piece[:cut], piece[cut:]) for _, _, cut, piece in sorted(splits)]
