"""Which tokenizer is read, what is set on it, and that one made of a SentencePiece model has that
model's ids."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tiny import SENTENCES, VOCAB_SIZE, tiny_tokenizer
from transformers import MistralConfig

from zephyr.chat import HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE
from zephyr.config import BadInput
from zephyr.data.tokenizer import (
    from_sentencepiece,
    has_foreign_template,
    load_tokenizer,
    prepare_tokenizer,
    require_vocabulary,
    resolve_chat_template,
)

OWN = "{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
OWN += "{% if add_generation_prompt %}a{% endif %}"
TEXTS = (
    "The river runs",
    "  two spaces first, then   three",
    "\n\tlines ",
    "日本 🦊 é",
    "the sky's red <0x41> </s",
    "▁ is a space",
    "",
)


@pytest.fixture(scope="module")
def trained() -> ModelProto:
    """A small BPE model in the way of Llama 2 and Mistral, trained on `tiny.SENTENCES`."""
    return train()


def train(**options: object) -> ModelProto:
    file = io.BytesIO()
    settings = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 400, "minloglevel": 2}
    settings |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=file, **{**settings, **options}
    )
    return ModelProto.FromString(file.getvalue())


def saved(proto: ModelProto, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder / "tokenizer.model"


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("scores", ["trained", "shuffled"])
def test_ids_are_those_of_the_sentencepiece_model(
    scores: str, dummy_prefix: bool, trained: ModelProto, tmp_path: Path
) -> None:
    """Also where the order of ids is not that of the scores, as of Mistral's runs of spaces. Fails
    where a model is trained on other pieces than it learned."""
    proto = ModelProto.FromString(trained.SerializeToString())
    proto.normalizer_spec.add_dummy_prefix = dummy_prefix
    normal = [piece for piece in proto.pieces if piece.type == piece.NORMAL]
    if scores == "shuffled":
        shuffled = random.Random(0).sample([piece.score for piece in normal], len(normal))
        for piece, score in zip(normal, shuffled):
            piece.score = score
    model = saved(proto, tmp_path)
    tokenizer, expected = load_tokenizer(tmp_path), SentencePieceProcessor(str(model))
    assert len(tokenizer) == 400 and len(normal) > 50
    for text in (*TEXTS, *SENTENCES):
        ids = tokenizer(text)["input_ids"]
        assert ids == [expected.bos_id(), *expected.encode(text)], text
        assert tokenizer.decode(ids[1:]) == text.replace("▁", " ")


def test_special_tokens_are_those_of_the_model(trained: ModelProto, tmp_path: Path) -> None:
    """Fails where padding is taken for what it is not, or a token that the model has not got is
    named."""
    tokenizer = from_sentencepiece(saved(trained, tmp_path))
    named = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert named == ("<unk>", "<s>", "</s>", None) and tokenizer.chat_template is None
    padded = train(pad_id=3)
    assert from_sentencepiece(saved(padded, tmp_path)).pad_token == "<pad>"
    assert load_tokenizer(tmp_path).pad_token == "<pad>"
    bare = train(bos_id=-1)
    tokenizer = from_sentencepiece(saved(bare, tmp_path))
    assert tokenizer.bos_token is None and tokenizer("The")["input_ids"][0] != 1


def test_the_template_beside_a_sentencepiece_model_is_kept(
    trained: ModelProto, tmp_path: Path
) -> None:
    """Fails where an instruct model's own format is lost, or a broken file of settings is passed
    over."""
    model = saved(trained, tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": OWN}))
    assert from_sentencepiece(model).chat_template == load_tokenizer(tmp_path).chat_template == OWN
    for broken in ("{", "[]"):
        settings.write_text(broken)
        with pytest.raises(BadInput, match="tokenizer_config.json holds no JSON object"):
            from_sentencepiece(model)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
    ],
)
def test_a_model_of_another_kind_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    """Its merges, or what it makes of a text before it, are not written here: the ids would be
    others."""
    model = saved(train(**{"vocab_size": 320, **options}), tmp_path)
    with pytest.raises(BadInput, match="is no BPE model that leaves the text unchanged"):
        from_sentencepiece(model)


def test_a_folder_with_both_files_is_read_by_the_newer(tmp_path: Path) -> None:
    """tokenizer.json has what was added since. Fails where the old file is read."""
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    assert load_tokenizer(tmp_path).get_vocab() == tiny_tokenizer().get_vocab()


def test_the_model_has_an_embedding_for_each_token(tmp_path: Path) -> None:
    """Fails where an id that the model does not know comes up in the middle of a run, or a full
    vocabulary is refused."""
    MistralConfig(vocab_size=VOCAB_SIZE).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    require_vocabulary(tokenizer, str(tmp_path))
    tokenizer.add_tokens(["one_more"])
    with pytest.raises(
        BadInput, match=f"the tokenizer has 385 tokens, expected at most {VOCAB_SIZE}"
    ):
        require_vocabulary(tokenizer, str(tmp_path))


def test_what_is_set_on_a_tokenizer() -> None:
    """EOS by name, else its own; padding where it has none. Fails where an answer could never
    end."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "</s>")
    padded = tiny_tokenizer()
    padded.pad_token = "<unk>"
    assert (
        prepare_tokenizer(padded, eos_token="<s>").pad_token == "<unk>"
        and padded.eos_token == "<s>"
    )
    with pytest.raises(BadInput, match="eos_token is '<none>', expected a token of the vocabulary"):
        prepare_tokenizer(tiny_tokenizer(), eos_token="<none>")
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(BadInput, match="the tokenizer has no EOS token"):
        prepare_tokenizer(endless)
    assert prepare_tokenizer(endless, eos_token="</s>").eos_token_id == 2


def test_a_template_is_tried_when_it_is_read(tmp_path: Path) -> None:
    """Fails where each row is blamed for a template that ends no answer."""
    path = tmp_path / "t.jinja"
    path.write_text(OWN)
    assert prepare_tokenizer(tiny_tokenizer(), str(path)).chat_template == OWN
    path.write_text(OWN.replace(" + eos_token", ""))
    with pytest.raises(
        BadInput, match="chat_template is .*t.jinja.*expected auto, zephyr, model or a readable"
    ):
        prepare_tokenizer(tiny_tokenizer(), str(path))


def test_the_models_own_template_is_the_default_of_several() -> None:
    """Fails where a run trains on whatever stands first, or on none."""
    tokenizer = tiny_tokenizer()
    with pytest.raises(
        BadInput, match="chat_template: model, but the tokenizer has no template of its own"
    ):
        prepare_tokenizer(tokenizer, "model")
    tokenizer.chat_template = {"tool_use": "x", "default": OWN}
    assert prepare_tokenizer(tokenizer, "model").chat_template == OWN


def test_which_templates_are_zephyrs_own() -> None:
    """With the empty system turn in front, and without. Fails where a Zephyr model is warned of its
    own format."""
    for own, choice, foreign in (
        (None, "zephyr", False),
        (HANDBOOK_TEMPLATE, "model", False),
        (ZEPHYR_TEMPLATE, "model", False),
        (OWN, "model", True),
    ):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = own
        assert (resolve_chat_template(tokenizer, "auto"), has_foreign_template(tokenizer)) == (
            choice,
            foreign,
        )
        assert resolve_chat_template(tokenizer, "zephyr") == "zephyr"
