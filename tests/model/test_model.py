"""Packed log-probs and every gradient equal those of Hugging Face's padded forward; the head is
exact and small."""

import gc
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import BadInput, ConfigError, Data, DPOConfig, Hardware
from zephyr.model import logprobs
from zephyr.model.load import (
    digest,
    load_policy,
    local_folder,
    read_config,
    require_runnable,
    weight_files,
)
from zephyr.model.logprobs import LogProbHead, response_logprobs, sum_by_response
from zephyr.model.policy import build, learned_positions, logit_factor
from zephyr.model.recompute import checkpoint_activations
from zephyr.packing import collate_pairs, collate_texts

FAMILIES = [
    ("mistral", {"sliding_window": 16}),
    ("qwen3", {"tied": True}),
]  # the others: tests/model/test_families.py


def random_pairs(vocabulary: int, count: int = 5, longest: int = 30) -> list[EncodedPair]:
    rng = random.Random(0)
    draw = lambda high: [rng.randrange(vocabulary) for _ in range(rng.randint(1, high))]  # noqa: E731
    return [EncodedPair(str(i), draw(longest), draw(longest), draw(longest)) for i in range(count)]


def padded_logprobs(lm: torch.nn.Module, pairs: list[EncodedPair]) -> tuple[Tensor, Tensor]:
    """The oracle: right-padded rows, Hugging Face's own forward and mask, log-softmax over full
    logits."""
    rows = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [
        (p.prompt_ids, p.rejected_ids) for p in pairs
    ]
    length = max(len(a) + len(b) for a, b in rows)
    ids = torch.tensor([a + b + [0] * (length - len(a) - len(b)) for a, b in rows])
    mask = torch.tensor(
        [[1] * (len(a) + len(b)) + [0] * (length - len(a) - len(b)) for a, b in rows]
    )
    scored = torch.tensor(
        [
            [0.0] * (len(a) - 1) + [1.0] * len(b) + [0.0] * (length - len(a) - len(b))
            for a, b in rows
        ]
    )
    logp = (
        lm(ids, attention_mask=mask)
        .logits.float()
        .log_softmax(-1)[:, :-1]
        .gather(-1, ids[:, 1:, None])
        .squeeze(-1)
    )
    sums = torch.where(scored.bool(), logp, 0.0).sum(-1)
    return sums[: len(pairs)], sums[len(pairs) :]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("prefix_sharing", [True, False])
@pytest.mark.parametrize("family,options", FAMILIES, ids=str)
def test_packed_equals_padded(
    family: str,
    options: dict[str, object],
    prefix_sharing: bool,
    checkpointing: bool,
    tmp_path: Path,
) -> None:
    """Log-probs to 1e-3 nats in thousands and all gradients to 2e-5 relative, float32. Fails for a
    leak between segments, a wrong position or window, a prompt whose gradient is lost on one side,
    a tied weight that gets half its gradient."""
    folder = tiny_model(tmp_path / "m", family=family, **options)
    plain, policy = (
        AutoModelForCausalLM.from_pretrained(folder),
        load_policy(folder, activation_checkpointing=checkpointing),
    )
    pairs = random_pairs(plain.config.vocab_size)
    policy.train()
    weights = torch.randn(2, len(pairs), generator=torch.Generator().manual_seed(1))
    expected = padded_logprobs(plain, pairs)
    ours = response_logprobs(
        policy, collate_pairs(pairs, range(len(pairs)), prefix_sharing=prefix_sharing)
    )
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-3)
    (torch.stack(ours) * weights).sum().backward()
    (torch.stack(expected) * weights).sum().backward()
    gradients = dict(plain.named_parameters())
    assert {name for name, _ in policy.lm.named_parameters()} == set(gradients)
    for name, parameter in policy.lm.named_parameters():
        error = (parameter.grad - gradients[name].grad).norm() / gradients[name].grad.norm()
        assert error < 2e-5, f"{name}: {error}"


def test_neighbours_in_a_row_get_exactly_no_gradient(tiny: Path) -> None:
    """Embeddings of tokens that occur only in other pairs of the row stay untouched to the bit.
    Fails for any leak, however small, across segments."""
    pairs = [
        EncodedPair("a", [10, 11], [12, 2], [13, 2]),
        EncodedPair("b", [20, 21], [22, 2], [23, 2]),
        EncodedPair("c", [30], [31, 2], [32, 2]),
    ]
    policy = load_policy(tiny)
    embedding = policy.lm.get_input_embeddings().weight
    assert (
        embedding is not policy.lm.get_output_embeddings().weight
    )  # a tied output layer would touch every token
    chosen_P, rejected_P = response_logprobs(policy, collate_pairs(pairs, range(3)))
    for side_P, own in ((chosen_P, {20, 21, 22}), (rejected_P, {20, 21, 23})):
        (gradient,) = torch.autograd.grad(side_P[1], embedding, retain_graph=True)
        assert set(gradient.abs().sum(-1).nonzero().flatten().tolist()) == own


def test_log_probs_do_not_depend_on_the_row(tiny: Path) -> None:
    """Alone, in another order, shared or not: the same log-probs. Fails where a neighbour or a
    place in the row counts."""
    pairs, policy = random_pairs(300), load_policy(tiny)
    whole = torch.stack(response_logprobs(policy, collate_pairs(pairs, range(5)))).detach()
    for indices in ([3], [4, 2, 0]):
        for prefix_sharing in (True, False):
            part = torch.stack(
                response_logprobs(
                    policy, collate_pairs(pairs, indices, prefix_sharing=prefix_sharing)
                )
            )
            torch.testing.assert_close(part, whole[:, indices], rtol=1e-6, atol=1e-4)


def test_texts_equal_padded_cross_entropy(tiny: Path) -> None:
    """SFT's sum over target tokens against Hugging Face's own loss. Fails for a shifted or
    miscounted target."""
    rng = random.Random(0)
    texts = []
    for i in range(4):
        ids = [rng.randrange(300) for _ in range(rng.randint(2, 20))]
        texts.append(
            EncodedText(
                str(i), ids, [False] + [rng.random() < 0.6 or j == 0 for j in range(len(ids) - 1)]
            )
        )
    policy, plain = load_policy(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    batch = collate_texts(texts, [0, 1, 2, 3])
    expected = sum(
        plain(
            torch.tensor([t.ids]),
            labels=torch.tensor([[i if flag else -100 for i, flag in zip(t.ids, t.is_target)]]),
        ).loss
        * sum(t.is_target)
        for t in texts
    )
    torch.testing.assert_close(-policy(batch).sum(), expected, rtol=1e-5, atol=1e-4)


def head_inputs(
    tokens: int, size: int, vocabulary: int, dtype: torch.dtype
) -> tuple[LogProbHead, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = LogProbHead.from_linear(torch.nn.Linear(size, vocabulary, bias=False, dtype=dtype))
    hidden_TD = torch.randn(tokens, size, generator=generator).to(dtype).requires_grad_()
    return head, hidden_TD, torch.randint(vocabulary, (tokens,), generator=generator)


def chunked(monkeypatch: pytest.MonkeyPatch, elements: int, *, keeps: bool) -> None:
    """The head in chunks of so many logits, whose exponentials are all kept for the backward, or
    all computed again."""
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", elements)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", 10**9 if keeps else 0)


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("elements", [1, 100, 777, 10**6])
def test_head_is_log_softmax_whatever_the_chunk(
    elements: int, keeps: bool, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and both gradients in float64 against log_softmax, for chunks of one row up to all.
    Fails for a row lost or doubled at a chunk's edge, where a second backward through the same
    graph finds what the first has overwritten, or where a factor of the logits is forgotten in one
    of the three places."""
    chunked(monkeypatch, elements, keeps=keeps)
    head, hidden_TD, targets_T = head_inputs(13, 6, 50, torch.float64)
    head.factor = factor
    weights_T = torch.randn(13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours_T = head(hidden_TD, targets_T)
    plain_T = (
        (factor * (hidden_TD @ head.weight.t()))
        .log_softmax(-1)
        .gather(-1, targets_T[:, None])
        .squeeze(-1)
    )
    torch.testing.assert_close(ours_T, plain_T, rtol=1e-12, atol=1e-12)
    ours, again, plain = (
        torch.autograd.grad((t * weights_T).sum(), [hidden_TD, head.weight], retain_graph=True)
        for t in (ours_T, ours_T, plain_T)
    )
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, ours, again))
    assert torch.autograd.gradcheck(lambda h: head(h, targets_T), hidden_TD)


@pytest.mark.parametrize("rows", [64, 2])
@pytest.mark.parametrize("keeps", [True, False])
def test_head_in_bfloat16_errs_at_most_twice_as_torch(
    keeps: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Error against float64 of the same bfloat16 inputs, ours against torch's log_softmax in
    float32 of bfloat16 logits. Fails where log-sum-exp or the weight's gradient is rounded to
    bfloat16 on the way."""
    chunked(monkeypatch, rows * 300, keeps=keeps)
    head, hidden_TD, targets_T = head_inputs(256, 32, 300, torch.bfloat16)

    def results(hidden: Tensor, weight: Tensor, score: object) -> list[Tensor]:
        logp_T = score(hidden, weight)
        return [logp_T.detach(), *torch.autograd.grad(logp_T.sum(), [hidden, weight])]

    def torch_score(hidden: Tensor, weight: Tensor) -> Tensor:
        return (
            (hidden @ weight.t())
            .to(torch.promote_types(hidden.dtype, torch.float32))
            .log_softmax(-1)
            .gather(-1, targets_T[:, None])
            .squeeze(-1)
        )

    exact = results(
        hidden_TD.detach().double().requires_grad_(),
        head.weight.detach().double().requires_grad_(),
        torch_score,
    )
    plain = results(hidden_TD, head.weight, torch_score)
    ours = results(hidden_TD, head.weight, lambda h, w: head(h, targets_T))
    for mine, theirs, truth in zip(ours, plain, exact):
        assert (mine.double() - truth).abs().max() <= 2 * (theirs.double() - truth).abs().max()


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("elements", [1, 100, 10**6])
def test_the_head_s_collision_is_that_of_the_full_softmax(
    elements: int, keeps: bool, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log sum_v p(v)^2 in float64 against a whole softmax, for chunks of one row up to all. Fails
    where the sum of the exponentials is not squared, where keeping them for the backward spoils
    them, or where asking for it changes the log-probs, the gradients, or has a gradient itself."""
    chunked(monkeypatch, elements, keeps=keeps)
    head, hidden_TD, targets_T = head_inputs(13, 6, 50, torch.float64)
    head.factor = factor
    logp_T, collision_T = head(hidden_TD, targets_T, collision=True)
    p_TV = (factor * (hidden_TD @ head.weight.t())).softmax(-1)
    torch.testing.assert_close(collision_T, p_TV.square().sum(-1).log(), rtol=1e-12, atol=1e-12)
    alone_T = head(hidden_TD, targets_T)
    assert torch.equal(logp_T, alone_T) and collision_T.std() > 0.01
    of = [hidden_TD, head.weight]
    both = torch.autograd.grad((logp_T + 7 * collision_T).sum(), of)
    assert all(map(torch.equal, both, torch.autograd.grad(alone_T.sum(), of)))


@pytest.mark.parametrize("keeps", [True, False])
def test_the_collision_errs_at_most_twice_as_torch(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, against float64 of the same inputs, also where one token has nearly all the
    probability and where a row's logits are hundreds. Fails where squares or sums are rounded to
    bfloat16, or overflow."""
    chunked(monkeypatch, 7 * 300, keeps=keeps)
    head, hidden_TD, targets_T = head_inputs(64, 32, 300, torch.bfloat16)
    with torch.no_grad():
        hidden_TD[::9] *= 400
    _, ours_T = head(hidden_TD, targets_T, collision=True)
    logits_TV = (hidden_TD @ head.weight.t()).float()
    theirs_T = logits_TV.softmax(-1).square().sum(-1).log().detach()
    exact_TV = (hidden_TD.double() @ head.weight.double().t()).log_softmax(-1)
    exact_T = (2 * exact_TV).logsumexp(-1).detach()
    assert float(exact_T.max().exp()) > 0.99 and ours_T.dtype == torch.float32
    assert (ours_T - exact_T).abs().max() <= 2 * (theirs_T - exact_T).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keeps", [True, False])
def test_head_at_sure_predictions_errs_at_most_twice_as_torch(
    keeps: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets of probability .5 up to .9999, where 1 - p is what is left of the gradient, and
    logits of hundreds, where an exponential without its maximum overflows. Errors against float64
    as above. Fails where the target's own term is subtracted after rounding."""
    chunked(monkeypatch, 7 * 300, keeps=keeps)
    head, hidden_TD, targets_T = head_inputs(64, 32, 300, torch.float64)
    with torch.no_grad():  # a step towards each target: sure, from hardly to almost wholly
        pull_T = torch.linspace(4, 16, 64, dtype=torch.float64)
        hidden_TD += (pull_T / head.weight[targets_T].square().sum(-1))[:, None] * head.weight[
            targets_T
        ]
        hidden_TD[::9] *= 40
    hidden_TD, weight_VD = (
        hidden_TD.detach().to(dtype).requires_grad_(),
        head.weight.detach().to(dtype).requires_grad_(),
    )
    head.weight = torch.nn.Parameter(weight_VD.detach())

    def torch_score(hidden: Tensor, weight: Tensor) -> Tensor:
        logits_TV = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
        return logits_TV.log_softmax(-1).gather(-1, targets_T[:, None]).squeeze(-1)

    def gradients(logp_T: Tensor, *of: Tensor) -> list[Tensor]:
        return [logp_T.detach(), *torch.autograd.grad(logp_T.sum(), of)]

    doubles = (
        hidden_TD.detach().double().requires_grad_(),
        weight_VD.detach().double().requires_grad_(),
    )
    exact = gradients(torch_score(*doubles), *doubles)
    assert float(exact[0].exp().max()) > 0.999 and float(exact[0].exp().min()) < 0.9
    plain = gradients(torch_score(hidden_TD, weight_VD), hidden_TD, weight_VD)
    ours = gradients(head(hidden_TD, targets_T), hidden_TD, head.weight)
    for mine, theirs, truth in zip(ours, plain, exact):
        assert (
            mine.isfinite().all()
            and (mine.double() - truth).norm() <= 2 * (theirs.double() - truth).norm()
        )


def test_without_targets_the_head_gives_logits(tiny: Path) -> None:
    """Sampling and other people's code want logits, whose differences alone greedy decoding sees.
    Fails where they are normalised."""
    head, hidden_TD, _ = head_inputs(5, 6, 50, torch.float32)
    torch.testing.assert_close(head(hidden_TD), hidden_TD @ head.weight.t())
    with pytest.raises(ValueError, match="bias"):
        LogProbHead.from_linear(torch.nn.Linear(3, 4))
    ids = torch.tensor([[1, 5, 6]])
    torch.testing.assert_close(
        load_policy(tiny).lm(ids).logits,
        AutoModelForCausalLM.from_pretrained(tiny)(ids).logits,
        rtol=1e-4,
        atol=1e-4,
    )


def test_long_responses_are_summed_exactly() -> None:
    """4,000 log-probs about -10 nats, as a random model gives: the float32 nearest to their sum.
    Fails for a sum of float32 additions, which is off by hundreds of roundings, more than an update
    of the policy moves it."""
    batch = collate_pairs([EncodedPair("0", [1], [3] * 4000, [4] * 2000)], [0])
    logp_T = -torch.rand(6000, generator=torch.Generator().manual_seed(0)) * 20
    exact_R = torch.stack([logp_T[:4000].double().sum(), logp_T[4000:].double().sum()])
    assert torch.equal(sum_by_response(logp_T, batch), exact_R.float())


def peak_bytes(call: object) -> int:
    """The most bytes of tensors alive at once, from torch's own record of allocations."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def test_memory_of_the_head_does_not_grow_with_vocabulary_times_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Measured forward and backward: four times the tokens cost four times the hidden states, not
    four times the logits. Fails where [tokens, vocabulary] exists anywhere."""
    chunked(monkeypatch, 2**16, keeps=False)

    def peak(tokens: int) -> int:
        head, hidden_TD, targets_T = head_inputs(tokens, 16, 4096, torch.float32)
        return peak_bytes(lambda: head(hidden_TD, targets_T).sum().backward())

    small, large = peak(1024), peak(4096)
    assert small > 2**16 * 4  # a chunk's logits are seen by the measurement
    assert large - small < 3072 * 4096 * 4 / 10  # a tenth of the logits of the added tokens


def test_activation_policies_keep_less_and_change_nothing(tiny: Path) -> None:
    """Bytes alive between forward and backward fall with what is computed again, gradients stay as
    they are. Fails where a policy is not heard, keeps what its name says is computed again, or
    recomputes something else than the forward did."""
    batch = collate_pairs(random_pairs(384), range(4))
    bytes_of, gradients = {}, {}
    for policy in (False, "elementwise", "mlp", True):
        model = load_policy(tiny, activation_checkpointing=policy).train()
        gc.collect()
        gc.disable()  # what a collection frees meanwhile would count as freed by the forward
        try:
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                total = sum(t.sum() for t in response_logprobs(model, batch))
        finally:
            gc.enable()
        bytes_of[policy] = sum(
            event.nbytes()
            for event in profile.profiler.kineto_results.events()
            if event.name() == "[memory]"
        )
        total.backward()
        gradients[policy] = torch.cat([p.grad.flatten() for p in model.parameters()])
    for policy in ("elementwise", "mlp"):
        assert bytes_of[False] > 1.3 * bytes_of[policy] > 1.3**2 * bytes_of[True], bytes_of
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, gradients[False], rtol=1e-5, atol=1e-6)


def test_weights_have_one_digest_however_sharded(tiny: Path, tmp_path: Path) -> None:
    """Fails where the digest depends on files, or does not on a single changed weight."""
    tensors = load_file(tiny / "model.safetensors")
    split, changed = (
        shutil.copytree(tiny, tmp_path / "split"),
        shutil.copytree(tiny, tmp_path / "changed"),
    )
    (split / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:3]}, split / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[3:]}, split / "model-00002-of-00002.safetensors")
    files = {n: f"model-0000{1 + (i >= 3)}-of-00002.safetensors" for i, n in enumerate(names)}
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert digest(split) == digest(tiny)
    tensors[names[0]].view(-1)[0] += 1e-3
    save_file(tensors, changed / "model.safetensors")
    assert digest(changed) != digest(tiny)


def test_broken_models_are_named(tiny: Path, tmp_path: Path) -> None:
    """Fails where a missing or misshapen tensor, or a pickle, would load as random weights or run
    code."""
    tensors = load_file(tiny / "model.safetensors")

    def broken(name: str, edit: object) -> Path:
        folder = shutil.copytree(tiny, tmp_path / name)
        edit(folder)
        return folder

    cases = {
        "config.json is missing": broken("a", lambda f: (f / "config.json").unlink()),
        "neither model.safetensors nor": broken(
            "b", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")
        ),
        "missing \\['lm_head": broken(
            "c",
            lambda f: save_file(
                {k: v for k, v in tensors.items() if k != "lm_head.weight"}, f / "model.safetensors"
            ),
        ),
        "model.norm.weight has shape": broken(
            "d",
            lambda f: save_file(
                {**tensors, "model.norm.weight": torch.ones(3)}, f / "model.safetensors"
            ),
        ),
        "is broken": broken("e", lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100)),
        "attention_dropout": broken(
            "f",
            lambda f: (f / "config.json").write_text(
                json.dumps(
                    {**json.loads((f / "config.json").read_text()), "attention_dropout": 0.1}
                )
            ),
        ),
    }
    for message, folder in cases.items():
        with pytest.raises(BadInput, match=message):
            load_policy(folder)
    with pytest.raises(BadInput, match="no such folder"):
        load_policy(tmp_path / "nowhere")


def test_weights_are_those_that_hugging_face_reads(tiny: Path, tmp_path: Path) -> None:
    """An average of the weights, or a stale shard, beside them is named and not read, and an index
    is kept to. Fails where the last file that holds a name wins, which is what glob patterns
    give."""
    tensors = load_file(tiny / "model.safetensors")
    names, other = sorted(tensors), {name: tensor + 1 for name, tensor in tensors.items()}
    whole, split = (shutil.copytree(tiny, tmp_path / name) for name in ("whole", "split"))
    save_file(other, whole / "model_ema.safetensors")
    save_file(other, whole / "model-00001-of-00001.safetensors")
    (whole / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model_ema.safetensors")})
    )
    with pytest.warns(
        UserWarning, match="model-00001-of-00001.safetensors, model_ema.safetensors not read"
    ):
        files = weight_files(whole)
    assert set(files.values()) == {whole / "model.safetensors"} and set(files) == set(names)

    (split / "model.safetensors").unlink()
    shards = {
        "model-00001-of-00002.safetensors": names[:3],
        "model-00002-of-00002.safetensors": names[3:],
    }
    for file, held in shards.items():
        save_file({n: tensors[n] for n in held}, split / file)
    index = split / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {n: file for file, held in shards.items() for n in held}})
    )
    save_file(other, split / "model-00003-of-00003.safetensors")
    with pytest.warns(UserWarning, match="model-00003-of-00003.safetensors not read: .*index.json"):
        policy = load_policy(split)
    assert all(torch.equal(p, tensors[n]) for n, p in policy.lm.named_parameters())

    save_file({n: tensors[n] for n in names[4:]}, split / "model-00002-of-00002.safetensors")
    with pytest.raises(
        BadInput, match=f"model-00002-of-00002.safetensors .*missing \\['{names[3]}"
    ):
        weight_files(split)
    save_file({n: tensors[n] for n in names[2:]}, split / "model-00002-of-00002.safetensors")
    with pytest.raises(BadInput, match=f"left over \\['{names[2]}"):
        weight_files(split)
    (split / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        BadInput,
        match="model-00002-of-00002.safetensors is missing, which model.safetensors.index.json",
    ):
        weight_files(split)
    index.write_text("[]")
    with pytest.raises(BadInput, match="has no weight_map"):
        weight_files(split)


def test_learned_positions_are_an_end(tmp_path: Path) -> None:
    """GPT-2 has an embedding of 16 positions: longer sequences to come are refused at load, and one
    that comes all the same at the forward. Fails where an index runs out of the embedding, in the
    middle of a run."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(
            n_positions=16,
            n_embd=16,
            n_layer=1,
            n_head=2,
            vocab_size=50,
            attn_pdrop=0,
            resid_pdrop=0,
            embd_pdrop=0,
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(
        BadInput, match="gpt2 has 16 learned positions, and sequences have up to 17 tokens"
    ):
        load_policy(tmp_path, max_tokens=17)
    pairs = [EncodedPair("a", [1] * 10, [2] * 6, [3] * 2), EncodedPair("b", [1] * 10, [2] * 7, [3])]
    for policy in (load_policy(tmp_path), load_policy(tmp_path, max_tokens=16)):
        assert policy(collate_pairs(pairs, [0])).isfinite().all()
        with pytest.raises(ValueError, match="a packed sequence has 17 tokens"):
            policy(collate_pairs(pairs, [1]))


def edited(folder: Path, **changes: object) -> Path:
    """The model folder with other values in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_digest_is_of_all_that_decides_a_log_prob(tiny: Path, tmp_path: Path) -> None:
    """A tensor's name, dtype, shape, any of the config's keys: each changes it; what decides none
    does not. Fails where a reference of other weights would be found in the store, or a copy of the
    same ones, written by another version, would not."""
    tensors = load_file(tiny / "model.safetensors")
    count = iter(range(100))

    def changed(replaced: dict[str, Tensor], **config: object) -> str:
        folder = edited(shutil.copytree(tiny, tmp_path / str(next(count))), **config)
        save_file({**tensors, **replaced}, folder / "model.safetensors")
        return digest(folder)

    same, (a, b) = (
        digest(tiny),
        ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"),
    )
    assert changed({a: tensors[b].clone(), b: tensors[a].clone()}) != same
    assert changed({a: tensors[a].view(torch.int32).clone()}) != same  # the same bytes
    assert changed({a: tensors[a].reshape(-1, 2, 64).clone()}) != same
    assert changed({}, rms_norm_eps=1e-3) != same != changed({}, sliding_window=7)
    assert (
        changed(
            {},
            transformers_version="4.0",
            torch_dtype="bfloat16",
            use_cache=False,
            _name_or_path="x",
        )
        == same
    )
    config = json.loads((tiny / "config.json").read_text())
    other = shutil.copytree(tiny, tmp_path / "order")
    (other / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert digest(other) == same


def test_what_a_file_holds_beside_the_weights(tiny: Path, tmp_path: Path) -> None:
    """Frequencies that old checkpoints hold and a tied output layer beside its embedding are no
    weights; any other tensor is one too many. Fails where a folder that Hugging Face reads is
    refused, or one of another model is trained."""
    tensors = load_file(tiny / "model.safetensors")
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    old = shutil.copytree(tiny, tmp_path / "old")
    save_file({**tensors, **buffers}, old / "model.safetensors")
    assert all(torch.equal(p, tensors[n]) for n, p in load_policy(old).lm.named_parameters())
    tied = tiny_model(tmp_path / "tied", tied=True)
    held = load_file(tied / "model.safetensors")
    save_file(
        {**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()},
        tied / "model.safetensors",
    )
    lm = load_policy(tied).lm
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    assert torch.equal(lm.get_input_embeddings().weight, held["model.embed_tokens.weight"])
    save_file(
        {**held, "lm_head.weight": held["model.embed_tokens.weight"] * 0.5},
        tied / "model.safetensors",
    )
    with pytest.raises(
        BadInput,
        match="lm_head.weight differs from model.embed_tokens.weight, to which config.json ties it",
    ):
        load_policy(tied)
    save_file(
        {**tensors, "model.layers.7.mlp.up_proj.weight": torch.ones(2)}, old / "model.safetensors"
    )
    with pytest.raises(
        BadInput, match=r"missing \[\], left over \['model.layers.7.mlp.up_proj.weight'\]"
    ):
        load_policy(old)


def test_quantised_weights_are_no_weights(tiny: Path, tmp_path: Path) -> None:
    """Fails where eight-bit integers are taken for the numbers that their scales make of them."""
    folder = shutil.copytree(tiny, tmp_path / "quantised")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: (tensors[name] * 100).to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=f"tensor {name} is stored as I8, expected one of BF16"):
        load_policy(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(BadInput, match=r"its weights are quantised \(gptq\)"):
        load_policy(folder)


def test_no_tensor_is_written_before_all_are_known_to_fit(tiny: Path, tmp_path: Path) -> None:
    """Under ZeRO-3 a write is a collective. Fails where one rank's error comes after it, for which
    the others wait; or where a parameter is not given by `write`, which alone fills a partitioned
    one."""
    tensors, written = load_file(tiny / "model.safetensors"), []
    load_policy(tiny, write=lambda parameter, read: written.append(read()))
    assert [value.shape for value in written] == [
        p.shape for p in load_policy(tiny).lm.parameters()
    ]
    last = list(load_policy(tiny).lm.named_parameters())[-1][0]
    broken = shutil.copytree(tiny, tmp_path / "broken")
    save_file({**tensors, last: tensors[last].t().contiguous()}, broken / "model.safetensors")
    with pytest.raises(BadInput, match=rf"tensor {last} has shape \[64, \d+\], expected"):
        load_policy(broken, write=lambda *_: pytest.fail("written"))


def test_models_that_are_no_decoder_are_refused(tiny: Path, tmp_path: Path) -> None:
    """Before a weight is read, for the reason that holds. Fails for a traceback, or a model whose
    logits the head would get wrong."""
    from transformers import BertConfig, DistilBertConfig, GPT2Config, T5Config

    for kind in (T5Config, BertConfig, DistilBertConfig):
        kind().save_pretrained(tmp_path / kind.model_type)
    with pytest.raises(
        BadInput, match="config.json has model_type distilbert, which is not a decoder"
    ):
        read_config(tmp_path / "distilbert")
    with pytest.raises(BadInput, match="config.json has model_type t5, which is not a decoder"):
        read_config(tmp_path / "t5")
    with pytest.raises(BadInput, match="bert is not supported|is not a decoder"):
        load_policy(tmp_path / "bert")
    for name, changes, reason in (
        (
            "cap",
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping=30.0 is not implemented here, expected None",
        ),
        ("drop", {"resid_pdrop": 0.1}, "resid_pdrop=0.1 is not implemented here, expected 0.0"),
        ("odd", {"model_type": "nothing_known"}, "is not one of a known decoder"),
        ("encoder", {"is_encoder_decoder": True}, "which is not a decoder"),
        ("wrong", {"num_attention_heads": "four"}, "is not one of a known decoder|not supported"),
    ):
        with pytest.raises(BadInput, match=reason):
            load_policy(edited(shutil.copytree(tiny, tmp_path / name), **changes))
    GPT2Config(
        n_embd=66, n_head=4, n_layer=1, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
    ).save_pretrained(tmp_path / "sizes")
    with pytest.raises(
        BadInput,
        match="no model can be made of its config.json: ValueError: .*must be divisible by",
    ):
        load_policy(tmp_path / "sizes")  # which its twin can't tell: it has sizes of its own
    assert read_config(
        edited(shutil.copytree(tiny, tmp_path / "idle"), attention_dropout=0.0, embd_pdrop=None)
    )


def test_a_path_is_a_folder_or_a_hub_id(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hub to ask. Fails where a mistyped folder is looked for on the hub, or what the hub
    does not give ends in a traceback."""
    assert local_folder(tiny) == local_folder(str(tiny)) == tiny
    for path in ("./runs/sft", "/no/where", "~/model", "runs/sft/model", "model"):
        with pytest.raises(BadInput, match=f"model {path}: no such folder, and not a hub id"):
            local_folder(path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in ("owner/name", "owner/na me"):
        with pytest.raises(
            BadInput, match=f"model {path}: no such folder, and the hub did not give it"
        ):
            local_folder(path)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "owner" / "name")
    assert local_folder("owner/name") == Path("owner/name")


def test_an_index_names_files_beside_it(tiny: Path, tmp_path: Path) -> None:
    """Fails where an index leads out of its folder, or a file's name that is no text ends in a
    traceback."""
    split = shutil.copytree(tiny, tmp_path / "split")
    (split / "model.safetensors").rename(tmp_path / "other.safetensors")
    names = sorted(load_file(tmp_path / "other.safetensors"))
    index = split / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../other.safetensors")}))
    with pytest.raises(BadInput, match="names files of another folder"):
        weight_files(split)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, 1)}))
    with pytest.raises(BadInput, match="has no weight_map of tensor names to files"):
        weight_files(split)


def test_what_cant_run_is_known_before_anything_loads(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel, config, weights, in this order; the other ranks of a machine leave the model to the
    first. Fails where a run finds out behind its data, or every rank fetches a hub's model."""

    def config(model: Path, attention: str = "sdpa") -> DPOConfig:
        return DPOConfig(str(model), Data(("rows",)), hardware=Hardware(attention=attention))

    require_runnable(config(tiny))
    with pytest.raises(ConfigError, match="hardware.attention: .*sdpa"):
        require_runnable(config(tmp_path / "nowhere", "flash_attn"))
    with pytest.raises(BadInput, match="nowhere: no such folder"):
        require_runnable(config(tmp_path / "nowhere"))
    hybrid = edited(
        shutil.copytree(tiny, tmp_path / "hybrid"), layer_types=["conv", "full_attention"]
    )
    (bare := shutil.copytree(tiny, tmp_path / "bare")).joinpath("model.safetensors").unlink()
    for model, reason in (
        (hybrid, "is not supported: 1 of its 2 layers are conv"),
        (bare, "neither model.safetensors nor"),
    ):
        with pytest.raises(BadInput, match=reason):
            require_runnable(config(model))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCAL_RANK", "1")
            require_runnable(config(model))


def test_layers_without_an_mlp_are_named() -> None:
    """Fails where "mlp" is asked for and nothing is computed again, in silence."""
    from transformers import OPTConfig, OPTForCausalLM

    with torch.device("meta"):
        lm = OPTForCausalLM(
            OPTConfig(
                hidden_size=16,
                ffn_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=50,
            )
        )
    with pytest.raises(
        ConfigError,
        match="hardware.activation_checkpointing: .* which OPTForCausalLM does not have",
    ):
        checkpoint_activations(lm, "mlp")


def test_the_factor_of_the_logits() -> None:
    """Granite divides, Cohere multiplies, the others do neither. Fails where a key is not heard, or
    taken the wrong way round."""
    from transformers import CohereConfig, GraniteConfig, MistralConfig

    assert logit_factor(GraniteConfig(logits_scaling=8.0)) == 1 / 8
    assert (
        logit_factor(CohereConfig(logit_scale=0.25)) == 0.25
        and logit_factor(MistralConfig()) == 1.0
    )


def test_fixed_frequencies_are_for_so_many_tokens_and_no_more(tmp_path: Path) -> None:
    """Llama with dynamic NTK, pretrained on 16 tokens. Fails where a sequence longer than the run's
    longest is scored with frequencies that are not its own, which no number would show."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        max_position_embeddings=16,
        rope_parameters=rope,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    pair = EncodedPair("a", [1] * 10, [2] * 15, [3] * 2)
    policy = load_policy(tmp_path, max_tokens=24)
    assert (
        policy.max_sequence_tokens == 24
        and policy(collate_pairs([pair._replace(chosen_ids=[2] * 14)], [0])).isfinite().all()
    )
    with pytest.raises(
        ValueError,
        match="a packed sequence has 25 tokens, and the positions of this LlamaForCausalLM are "
        "made for at most 24",
    ):
        policy(collate_pairs([pair], [0]))


def test_positions_that_are_no_embedding_have_no_end(tmp_path: Path) -> None:
    """A rotary decoder with as many words as positions. Fails where its vocabulary is taken for an
    embedding of positions, and longer sequences are refused."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
    )
    assert learned_positions(build(config, "eager", torch.float32)) is None
