"""Each family that zephyr/model/README.md lists: packed log-probs and gradients equal those of
transformers' eager forward."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
import transformers
from processes import Launch
from runs import records, rows, write_config, write_lines
from tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from zephyr.chat import EncodedPair
from zephyr.model.load import load_policy
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import collate_pairs

MAX_TOKENS = 64
SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LOCAL_AND_GLOBAL = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
GROWING = {"max_position_embeddings": 128, "original_max_position_embeddings": 24}


def rope(kind: str, **settings: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


# The guide's list. Windows of 16 and pretraining lengths of 24 tokens bind: the pairs below have
# up to 60.
FAMILIES: dict[str, list[tuple[str, dict[str, object]]]] = {
    "Mistral": [("Mistral", {"sliding_window": None}), ("Mistral", {"sliding_window": 16})],
    "Llama": [
        ("Llama", {}),
        (
            "Llama",
            rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=24,
            ),
        ),
        ("Llama", {**rope("dynamic", factor=4.0), "max_position_embeddings": 24}),
    ],
    "Qwen2": [
        ("Qwen2", {}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ],
    "Qwen3": [("Qwen3", {"head_dim": 16})],
    "Gemma": [("Gemma", {"head_dim": 32})],
    "Gemma 3": [("Gemma3Text", {"head_dim": 32, **LOCAL_AND_GLOBAL})],
    "Phi-3": [
        ("Phi3", {"sliding_window": 16}),
        (
            "Phi3",
            {
                **GROWING,
                **rope(
                    "longrope",
                    short_factor=[1.0] * 8,
                    long_factor=[4.0] * 8,
                    original_max_position_embeddings=24,
                ),
            },
        ),
    ],
    "OLMo 2": [("Olmo2", {})],
    "OLMo 3": [("Olmo3", LOCAL_AND_GLOBAL)],
    "SmolLM3": [("SmolLM3", {"no_rope_layers": [1, 0]})],
    "Granite": [
        (
            "Granite",
            {
                "attention_multiplier": 0.1,
                "residual_multiplier": 0.5,
                "embedding_multiplier": 3.0,
                "logits_scaling": 6.0,
            },
        )
    ],
    "GLM-4": [("Glm4", {"head_dim": 16})],
    "Starcoder2": [("Starcoder2", {"sliding_window": 16})],
}
CASES = [
    (name, f"{name} {i}" if i else name, kind, options)
    for name, cases in FAMILIES.items()
    for i, (kind, options) in enumerate(cases)
]


def tiny_config(kind: str, options: dict[str, object], tied: bool) -> PreTrainedConfig:
    config = getattr(transformers, f"{kind}Config")(
        **{**SHAPE, **options, "tie_word_embeddings": tied}
    )
    for key in (
        "attention_dropout",
        "residual_dropout",
        "embedding_dropout",
        "resid_pdrop",
        "embd_pdrop",
    ):
        if getattr(config, key, 0.0):
            setattr(config, key, 0.0)
    return config


def saved(config: PreTrainedConfig, folder: Path) -> Path:
    """The folder of a random model, standard deviation 0.1 around 1 for gains and 0 for the rest:
    see `tiny.tiny_model`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in lm.parameters():
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            nn.init.normal_(parameter, centre, 0.1)
    lm.save_pretrained(folder)
    return folder


def pairs() -> list[EncodedPair]:
    """Sequences of 6 to 60 tokens: below and above the windows and pretraining lengths of
    FAMILIES."""
    rng = random.Random(0)
    draw = lambda length: [rng.randrange(3, 384) for _ in range(length)]  # noqa: E731
    return [
        EncodedPair(str(i), draw(a), draw(b), draw(c))
        for i, (a, b, c) in enumerate([(4, 2, 5), (20, 40, 7), (1, 30, 1), (9, 3, 25)])
    ]


def padded(lm: nn.Module, examples: list[EncodedPair]) -> Tensor:
    """The oracle: log-probs of response tokens, in the order of a batch, by transformers' eager
    forward over rows padded to MAX_TOKENS.

    So the frequencies of rotary embeddings that grow are those of MAX_TOKENS, which is the rule of
    a run."""
    rows = [(p.prompt_ids, p.chosen_ids) for p in examples] + [
        (p.prompt_ids, p.rejected_ids) for p in examples
    ]
    ids = torch.zeros(len(rows), MAX_TOKENS, dtype=torch.int64)
    mask, scored = torch.zeros_like(ids), torch.zeros(len(rows), MAX_TOKENS - 1, dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[i, :end], mask[i, :end], scored[i, len(prompt) - 1 : end - 1] = (
            torch.tensor(prompt + response),
            1,
            True,
        )
    logp = (
        lm(ids, attention_mask=mask, use_cache=False)
        .logits.float()
        .log_softmax(-1)[:, :-1]
        .gather(-1, ids[:, 1:, None])
        .squeeze(-1)
    )
    return logp[scored]


def gradients(logp_T: Tensor, lm: nn.Module) -> dict[str, Tensor]:
    weights_T = torch.randn(logp_T.shape, generator=torch.Generator().manual_seed(1))
    named = dict(lm.named_parameters())
    return dict(zip(named, torch.autograd.grad((logp_T * weights_T).sum(), list(named.values()))))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name,label,kind,options", CASES, ids=[case[1] for case in CASES])
def test_packed_equals_eager(
    name: str, label: str, kind: str, options: dict[str, object], tied: bool, tmp_path: Path
) -> None:
    """Log-probs of each token to 1e-4 nats, each gradient to 2e-5 relative in float32, with prompts
    shared and not. Fails where a family's window, scale, bias, position or kind of layer is
    dropped, a scaled logit's gradient is not scaled, or activations that are computed again are
    others."""
    folder = saved(tiny_config(kind, options, tied), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    policy = load_policy(
        folder, max_tokens=MAX_TOKENS, activation_checkpointing=True if tied else "mlp"
    ).train()
    examples = pairs()
    assert (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight) == tied
    expected = padded(plain, examples)
    wanted = gradients(expected, plain)
    for prefix_sharing in (True, False):
        ours = policy(collate_pairs(examples, range(4), prefix_sharing=prefix_sharing))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
        found = gradients(ours, policy.lm)
        assert set(found) == set(wanted)
        for parameter, gradient in found.items():
            assert (gradient - wanted[parameter]).norm() < 2e-5 * wanted[parameter].norm() + 1e-7, (
                parameter
            )


@pytest.mark.parametrize("name,label,kind,options", CASES, ids=[case[1] for case in CASES])
def test_bfloat16_errs_at_most_twice_as_eager(
    name: str, label: str, kind: str, options: dict[str, object], tmp_path: Path
) -> None:
    """Root mean square of the error of log-probs and of the gradient against float32, ours against
    transformers' eager forward in bfloat16, output layer tied. Fails where something is rounded
    that transformers keeps in float32 (frequencies, gains)."""
    folder = saved(tiny_config(kind, options, True), tmp_path / "m")
    exact = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with (
        torch.no_grad()
    ):  # not .bfloat16().float(): zero.Init leaves its wrapper of that in the process
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16())
    plain = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.bfloat16
    )
    policy, examples = (
        load_policy(folder, max_tokens=MAX_TOKENS, dtype=torch.bfloat16).train(),
        pairs(),
    )
    assert policy.lm.get_input_embeddings().weight is policy.lm.get_output_embeddings().weight
    assert (
        {parameter.dtype for parameter in policy.parameters()}
        == {torch.bfloat16}
        == {policy.lm.config.dtype}
    )
    truth, torchs = padded(exact, examples), padded(plain, examples)
    ours = policy(collate_pairs(examples, range(4)))
    assert (ours - truth).norm() <= 2 * (torchs - truth).norm()
    true, theirs, mine = (
        torch.cat([g.float().flatten() for g in gradients(logp, lm).values()])
        for logp, lm in ((truth, exact), (torchs, plain), (ours, policy.lm))
    )
    assert (mine - true).norm() <= 2 * (theirs - true).norm()


@pytest.mark.parametrize("name,label,kind,options", CASES, ids=[case[1] for case in CASES])
def test_an_untrained_second_epoch_stays_at_ln_2(
    name: str, label: str, kind: str, options: dict[str, object], tmp_path: Path
) -> None:
    """A pair's log-probs alone, beside the others, in another order, without max_tokens too while
    no pair is longer than what the model was pretrained on. Fails where a long neighbour changes a
    short example, as it does with rotary frequencies that grow: at the second epoch its neighbours
    are others."""
    folder, examples = saved(tiny_config(kind, options, False), tmp_path / "m"), pairs()
    policy = load_policy(folder, max_tokens=MAX_TOKENS)
    with torch.no_grad():
        whole_2P = torch.stack(response_logprobs(policy, collate_pairs(examples, range(4))))
        for indices in ([0], [1], [3, 2], [2, 0, 3]):
            part_2P = torch.stack(response_logprobs(policy, collate_pairs(examples, indices)))
            torch.testing.assert_close(part_2P, whole_2P[:, indices], rtol=0, atol=2e-5)
        growing = "rope_parameters" in options and options["rope_parameters"]["rope_type"] in (
            "dynamic",
            "longrope",
        )
        library = load_policy(folder)
        assert library.max_sequence_tokens == (24 if growing else None)
        if growing:
            with pytest.raises(ValueError, match="60 tokens, .* max_tokens"):
                library(collate_pairs(examples, [0, 1]))


@pytest.mark.long
@pytest.mark.parametrize("label", [label for _, label, _, _ in CASES])
def test_a_run_that_learns_nothing_stays_at_ln_2(
    label: str, launch: Launch, tmp_path: Path
) -> None:
    """Two ranks under ZeRO-3, two epochs at a rate of 1e-12, the second with other neighbours:
    every loss is ln 2, rewards 0. Fails where a row's neighbours, or partitioned buffers, change
    log-probs; the store of reference log-probs knows the length."""
    kind, options = next((kind, options) for _, name, kind, options in CASES if name == label)
    folder = saved(tiny_config(kind, options, False), tmp_path / "m")
    # Beside a config.json of type qwen2, AutoTokenizer adds a token to it.
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    data = write_lines(tmp_path / "pairs.jsonl", rows(12))
    config = write_config(
        tmp_path,
        folder,
        data,
        tokenizer=str(tmp_path / "tokenizer"),
        data__max_tokens=200,
        data__max_prompt_tokens=100,
        optim__lr_peak=1e-12,
        hardware__activation_checkpointing=True,
    )
    launch("train_dpo.py", config, ranks=2)
    found = records(tmp_path / "run")
    assert len(found) == 4 and found[-1]["epoch"] > 1
    for record in found:
        assert abs(record["loss"] - math.log(2)) < 1e-5 and abs(record["rewards/margins"]) < 1e-4, (
            record
        )
    profile = json.loads(next((tmp_path / "reference").glob("*/profile.json")).read_text())
    assert profile.get("rotary_tokens") == ("200" if label in ("Phi-3 1", "Llama 2") else None)


def test_the_readme_lists_what_is_tested() -> None:
    """Fails where the guide promises a family that no test runs, or leaves one out."""
    text = (Path(__file__).resolve().parents[2] / "zephyr/model/README.md").read_text()
    listed = text.partition("Tested families: ")[2].partition(".")[0]
    assert listed.replace("\n", " ").split(", ") == list(FAMILIES)
