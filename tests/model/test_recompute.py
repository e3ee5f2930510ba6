"""Activation policies: the same gradients, no product twice, under ZeRO-3 too."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from processes import ROOT
from test_families import CASES, MAX_TOKENS, gradients, pairs, saved, tiny_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zephyr.config import ConfigError, Hardware, Optim
from zephyr.model.load import load_policy
from zephyr.model.policy import Policy
from zephyr.model.recompute import (
    checkpoint_activations,
    ends_with_product,
    is_product,
    recompute_elementwise,
)
from zephyr.packing import collate_pairs
from zephyr.training.engine import Engine

POLICIES = [True, "mlp", "elementwise"]
TORCH_LINEAR = torch._C._nn.linear  # once an engine has run, DeepSpeed's is in its place


class CountProducts(TorchDispatchMode):
    """Counts matrix products and calls of attention kernels, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(
        self,
        op: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.products += is_product(op)
        return op(*args, **(kwargs or {}))


def log_probs_and_gradients(policy: Policy) -> tuple[Tensor, dict[str, Tensor], int]:
    """Of a packed row with shared prompts; and the products that both take."""
    with CountProducts() as count:
        logp_T = policy(collate_pairs(pairs(), range(4)))
        found = gradients(logp_T, policy.lm)
    return logp_T.detach(), found, count.products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label,kind,options", [case[1:] for case in CASES], ids=lambda x: str(x))
def test_elementwise_repeats_no_product_and_changes_nothing(
    label: str, kind: str, options: dict[str, object], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Log-probs and gradients to the bit, as many products as without recomputation; and with
    DeepSpeed's linear, which adds biases in place. Fails where products are answered in another
    order, a bias is added twice, or a layer whose end needs its last product (norms behind the MLP)
    gets a product without values."""
    folder = saved(tiny_config(kind, options, False), tmp_path)
    load = partial(load_policy, folder, max_tokens=MAX_TOKENS, dtype=dtype)
    plain = load().train()
    ours = load(activation_checkpointing="elementwise").train()
    for linear in (TORCH_LINEAR, zero3_linear_wrap):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "linear", linear)
            logp_T, found, products = log_probs_and_gradients(ours)
            expected_T, wanted, least = log_probs_and_gradients(plain)
        assert torch.equal(logp_T, expected_T) and products == least > 50
        for parameter, gradient in found.items():
            assert torch.equal(gradient, wanted[parameter]), parameter
            assert gradient.norm() > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_repeats_what_it_says(
    policy: bool | str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products beyond those of `false`, a layer: of the MLP gate and up, and of a whole layer four
    more and its attention (its last one only where DeepSpeed's linear runs). Fails where a policy
    repeats work that its name does not say, or is not heard."""
    monkeypatch.setattr(torch.nn.functional, "linear", TORCH_LINEAR)
    plain = load_policy(tiny).train()
    ours = load_policy(tiny, activation_checkpointing=policy).train()
    batch = collate_pairs(pairs(), range(4))
    layers = plain.lm.config.num_hidden_layers
    attention = len(batch.layout.query_lengths)  # sdpa is called once a segment
    more = {"mlp": 2, "elementwise": 0, True: 6 + attention}[policy]
    *_, products = log_probs_and_gradients(ours)
    *_, least = log_probs_and_gradients(plain)
    assert products - least == layers * more


def test_a_second_backward_is_named(tiny: Path) -> None:
    """Fails where it ends in an error about a queue, or takes products of another layer."""
    policy = load_policy(tiny, activation_checkpointing="elementwise").train()
    loss = policy(collate_pairs(pairs(), range(4))).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="elementwise .* backward can't run a second time"):
        loss.backward()


def test_evaluation_keeps_nothing(tiny: Path) -> None:
    """Without gradients, in training and in evaluation, log-probs are the same. Fails where the
    modes run where there is no backward to come."""
    policy, batch = load_policy(tiny, activation_checkpointing="elementwise"), pairs()
    row = collate_pairs(batch, range(4))
    trained_T = policy.train()(row).detach()
    with torch.no_grad():
        assert torch.equal(policy(row), trained_T) and torch.equal(policy.eval()(row), trained_T)


@pytest.mark.parametrize("policy", [True, "elementwise"])
def test_layers_that_cannot_be_checkpointed_are_named(policy: bool | str, tiny: Path) -> None:
    """Fails where the policy is not heard, in silence, or by an error of transformers."""
    lm = load_policy(tiny).lm
    lm.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="activation_checkpointing: .*MistralForCausalLM does"):
        checkpoint_activations(lm, policy)


def test_another_tensor_in_place_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product whose memory is free when the next tensor is made, which often gets its place, and
    is then changed by an operation in place. Fails where that operation is taken for the bias that
    DeepSpeed's linear adds in place, and is left out."""
    monkeypatch.setattr(torch.nn.functional, "linear", TORCH_LINEAR)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 8, 8), (8, 8), (8, 8)]
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    x, first, second = leaves

    def layer(x: Tensor) -> Tensor:
        y = x + torch.nn.functional.linear(x, first)
        doubled = [y.clone().mul_(2) for _ in range(4)]
        return x + torch.nn.functional.linear(sum(doubled).sin(), second)

    outputs = [layer(x), recompute_elementwise(layer, x)]
    wanted, found = (torch.autograd.grad(y.sum(), leaves) for y in outputs)
    assert all(map(torch.equal, found, wanted)) and all(grad.norm() > 0 for grad in found)


def test_what_ends_with_a_product() -> None:
    """A sum or a view of it does; a norm, a gate or an activation behind it does not, even where
    the sum's other term, computed before, is a product."""
    x, weight = torch.randn(1, 3, 4), torch.randn(4, 4, requires_grad=True)
    y = torch.nn.functional.linear(x, weight)
    assert ends_with_product(x + y) and ends_with_product((x + y).view(3, 4))
    assert ends_with_product(x + zero3_linear_wrap(x, weight))
    gated = y * y
    z = torch.nn.functional.linear(x, weight)
    assert ends_with_product(gated + z) and ends_with_product(z + gated)
    gated = z * z
    assert not ends_with_product(gated + y) and not ends_with_product(y + gated)
    for other in (y.relu(), x + y * y, x + y.softmax(-1), x.exp(), (y, y)):
        assert not ends_with_product(other)


@pytest.fixture
def engine_of() -> Iterator[Callable[[Path, str], Engine]]:
    """Makes engines with a bfloat16 policy under ZeRO-3, every parameter partitioned."""
    made: list[Engine] = []

    def make(folder: Path, gather: str) -> Engine:
        settings = str(ROOT / "configs/deepspeed/cpu.json")
        made.append(Engine(Hardware(attention="sdpa", deepspeed=settings, gather=gather), 0))
        load = partial(load_policy, folder, dtype=torch.bfloat16)
        made[-1].initialize(load, Optim(grad_clip=0.0))
        return made[-1]

    yield make
    for engine in made:
        engine.engine.destroy()
    made[0].close()  # the one that set torchrun's variables


def test_policies_under_zero3(engine_of: Callable[[Path, str], Engine], tiny: Path) -> None:
    """One and three micro-batches, hooks at layers and at modules: losses and summed gradients of
    each policy are those of `false` to the bit. Fails where a recomputation reads a parameter that
    is not gathered, or ZeRO-3 counts a gradient twice."""
    for gather in ("layer", "module"):
        engine = engine_of(tiny, gather)
        lm = engine.policy.lm
        for micro_batches in ([[0, 1, 2, 3]], [[0, 2], [1], [3]]):
            wanted = step_of(engine, micro_batches)
            assert wanted[1].norm() > 0
            for policy in POLICIES:
                checkpoint_activations(lm, policy)
                found = step_of(engine, micro_batches)
                assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
                lm.gradient_checkpointing_disable()
                for module in lm.modules():
                    vars(module).pop("forward", None)  # of "mlp"


def step_of(engine: Engine, micro_batches: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Losses of micro-batches, and the sum of their gradients, which is then discarded."""
    engine.train()
    losses = []
    for indices in micro_batches:
        logp_T = engine(collate_pairs(pairs(), indices))
        weights_T = torch.randn(logp_T.shape, generator=torch.Generator().manual_seed(len(losses)))
        losses.append((logp_T * weights_T).sum())
        engine.backward(losses[-1], last=len(losses) == len(micro_batches))
    gradient = engine.engine.optimizer.grad_partitions_flat_buffer.clone()
    engine.discard_gradient()
    return torch.stack(losses).detach(), gradient
