"""Here the tokenizer that the whole program uses is loaded, with the chat template that the config
names set on it."""

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
from zephyr.model.export import PROBES
from zephyr.model.load import local_folder, read_config

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

SPACE = "\u2581"  # how SentencePiece writes a space
BPE_MODEL = 2  # sentencepiece_model.proto, TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = (
    1,
    2,
    3,
    4,
    5,
)  # the same file, SentencePiece.Type; a byte is 6


def load_tokenizer(
    path: str | Path, chat_template: str = "auto", eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, prepared (`prepare_tokenizer`, where the arguments are
    explained).

    Raises: BadInput in one line where nothing loads, there is no EOS, or the template is
    missing."""
    return prepare_tokenizer(read_tokenizer(path), chat_template, eos_token)


def read_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id as it is.

    A folder without `tokenizer.json` but with a SentencePiece `tokenizer.model` is read here
    (`from_sentencepiece`): transformers 5 builds another tokenizer of it: no dummy space, no BOS,
    merges in the order of ids. Needs sentencepiece and protobuf. Raises: BadInput in one line where
    nothing loads."""
    folder = Path(path)
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        return from_sentencepiece(folder / "tokenizer.model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        if own := describe_id_mismatch(tokenizer, folder):
            warnings.warn(own, stacklevel=2)
        return tokenizer
    except (
        Exception
    ) as error:  # what is wrong in tokenizer.json comes from Rust as a plain Exception
        raise BadInput(
            f"no tokenizer loads from {str(path)!r}: {error or type(error).__name__}"
        ) from error


def describe_id_mismatch(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """What to tell where the tokenizer makes other ids than the folder's own tokenizer.json; else
    "".

    For some types of models AutoTokenizer takes a class that builds its splitting and BOS anew,
    whatever the file says."""
    if not tokenizer.is_fast or not (folder / "tokenizer.json").is_file():
        return ""
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    for text in PROBES:
        ids, theirs = tokenizer(text)["input_ids"], own.encode(text).ids
        if ids != theirs:
            return (
                f"{folder}: AutoTokenizer takes {type(tokenizer).__name__} for a model of this type, which makes other ids than "
                f"tokenizer.json ({len(ids)} for {len(theirs)} of {text!r:.40}). Training and transformers of this version use those of "
                f"{type(tokenizer).__name__}; the model may have been pretrained on the others"
            )
    return ""


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Raises: BadInput where the tokenizer makes ids that the model of that folder or hub id has no
    embedding for."""
    vocabulary = read_config(local_folder(model)).vocab_size
    if len(tokenizer) > vocabulary:
        raise BadInput(
            f"tokenizer: at most {vocabulary} tokens are wanted, the vocabulary of {model}, got {len(tokenizer)}"
        )


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, chat_template: str = "auto", eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """Sets the chat template and EOS that the config names, and EOS as pad token where there is
    none; returns the same tokenizer.

    Args: chat_template: `zephyr`, `model` (the tokenizer's own), `auto` (its own where it has one,
    else zephyr), or the path of a jinja file. eos_token: a token of the vocabulary in the place of
    the tokenizer's EOS; None: that one. Raises: BadInput where `model` is asked for and the
    tokenizer has no template, the jinja file cannot be read, or the EOS is missing or unknown."""
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise BadInput(f"eos_token: a token of the vocabulary is wanted, got {eos_token!r}")
        tokenizer.add_special_tokens({"eos_token": eos_token})
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "the tokenizer has no EOS token, wanted one: an answer could never end; eos_token: TOKEN names one "
            "of its vocabulary"
        )
    chosen = resolve_chat_template(tokenizer, chat_template)
    if chosen == "zephyr":
        tokenizer.chat_template = ZEPHYR_TEMPLATE
    elif chosen == "model":
        tokenizer.chat_template = own_template(tokenizer)
        if tokenizer.chat_template is None:
            raise BadInput(
                "chat_template: model, but the tokenizer has no template of its own, wanted zephyr or a jinja file"
            )
        try:
            check_template_limits(tokenizer, tokenizer.chat_template)
        except ValueError as error:
            raise BadInput(
                f"the model's own chat template can't be used: {error}; chat_template: zephyr, or a jinja file, takes its place"
            ) from error
    else:
        try:
            tokenizer.chat_template = Path(chosen).read_text(encoding="utf-8")
            check_template_limits(tokenizer, tokenizer.chat_template)
            encode_messages(tokenizer, TURNS, template=tokenizer.chat_template)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"chat_template is {chosen!r}, wanted auto, zephyr, model or a readable jinja file: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def resolve_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> str:
    """What the config key `chat_template` comes to: `auto` is `model` where the tokenizer has a
    template, else `zephyr`."""
    if chat_template != "auto":
        return chat_template
    return "zephyr" if own_template(tokenizer) is None else "model"


def has_foreign_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer came with a template that is not Zephyr's."""
    own = own_template(tokenizer)
    return own is not None and not own.endswith((HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE))


def from_sentencepiece(model: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer whose ids are SentencePiece's own, in the way Llama 2, Mistral and Zephyr
    were trained ("legacy").

    Text between special tokens is encoded by itself, each time behind a dummy space: hence piece
    28705 after `</s>` in Mistral's ids. A `chat_template` in a `tokenizer_config.json` beside the
    model is kept. Raises: BadInput for a model that is not BPE, that rewrites the text before
    encoding it, or lacks EOS."""
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto()
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
            f"{model} is not a BPE model that leaves the text as it is, wanted a folder with its tokenizer.json"
        )
    ids = {
        "unk_token": spec.unk_id,
        "bos_token": spec.bos_id,
        "eos_token": spec.eos_id,
        "pad_token": spec.pad_id,
    }
    names = {name: proto.pieces[i].piece for name, i in ids.items() if i >= 0}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_fast_bpe(proto, names.get("bos_token")),
        **names,
        clean_up_tokenization_spaces=False,
    )
    settings = model.with_name("tokenizer_config.json")
    if settings.is_file():
        try:
            tokenizer.chat_template = json.loads(settings.read_text(encoding="utf-8")).get(
                "chat_template"
            )
        except (ValueError, AttributeError) as error:
            raise BadInput(f"{settings} holds no JSON object: {error}") from error
    return tokenizer


def _fast_bpe(proto: "ModelProto", bos: str | None) -> Tokenizer:
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


def _merges(proto: "ModelProto") -> list[tuple[str, str]]:
    """Every split of every piece into two pieces, best score first: SentencePiece merges the pair
    whose piece scores best.

    The order of ids is not that order: Mistral's runs of spaces have ids 259 and 260, and the worst
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
