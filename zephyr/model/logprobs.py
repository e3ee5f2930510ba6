"""Hidden states become log-probabilities of target tokens, and those become sums over responses.

The output layer of a decoder maps T hidden states to [T, V] logits: at 8,192 tokens and a
vocabulary of 128,000, 3.9 GiB in float32. `LogProbHead` computes them a chunk of rows at a time and
keeps three numbers a token: the log-prob, and the maximum and the sum that its softmax needs. Large
[T, V] are never whole in memory, forward or backward; small ones (at most KEPT_ELEMENTS = 2**26
elements) are kept, as exponentials, for the backward.

Shape letters:
    N  tokens of the packed row
    T  scored tokens: those with a log-probability in the loss
    D  hidden size
    V  vocabulary
    C  rows (scored tokens) of a chunk
    R  responses
    P  pairs
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from zephyr.packing import PackedBatch

# Logits of a chunk, by device: 128 MiB in float32 keep a GPU busy, 32 MiB suit a CPU's cache.
CHUNK_ELEMENTS = {"cuda": 2**25, "cpu": 2**23}
# The exponentials [T, V] of a micro-batch are kept for the backward where they are at most so many.
# Where they are more, all of them are computed again.
KEPT_ELEMENTS = 2**26
# Rows of the weight's gradient at a time, on a GPU.
BLOCK_ROWS = 8192


class LogProbHead(nn.Linear):
    """The output layer of a decoder that also scores: `head(hidden_TD, targets_T)`.

    With targets it returns log p(target) [T] in float32 (float64 for a float64 model); with
    `collision` [2, T], the second row log sum_v p(v)^2, which has no gradient. Without targets it
    returns logits, as generation needs them.

    It stands in the `lm_head` slot and owns the weight. So ZeRO-3 gathers and releases the weight
    around this one call, forward and backward, as for any other module.
    """

    factor = 1.0  # of the logits that are scored; a decoder applies its own to those returned

    def forward(
        self, hidden_TD: Tensor, targets_T: Tensor | None = None, collision: bool = False
    ) -> Tensor:
        if targets_T is None:
            return super().forward(hidden_TD)
        logp_T, collision_T = chunked_logprob(
            hidden_TD, self.weight, targets_T, self.factor, collision
        )
        return torch.stack([logp_T, collision_T]) if collision else logp_T

    @classmethod
    def from_linear(cls, linear: nn.Linear, factor: float = 1.0) -> "LogProbHead":
        """A head with the parameter of `linear` itself, not a copy.

        Args:
            linear: the decoder's output layer.
            factor: what the decoder multiplies its logits with behind that layer.

        Raises:
            ValueError: `linear` has a bias.
        """
        if linear.bias is not None:
            raise ValueError(
                "the output layer has a bias, which the log-prob head does not implement"
            )
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight, head.factor = linear.weight, factor
        return head


class LogProbContext(Protocol):
    """The type of autograd's `ctx`: what the forward of ChunkedLogProb keeps for its backward."""

    factor: float
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class ChunkedLogProb(torch.autograd.Function):
    """log softmax(factor * hidden W^T)[target] in float32, a chunk of rows at a time.

    Backward: d logp / d logits = onehot(target) - softmax(logits), the logits with their factor.
    The backward keeps all exponentials of the forward or, above KEPT_ELEMENTS, computes all again.
    The weight's gradient is summed over chunks in float32; a frozen weight gets none.

    The second output is log sum_v p(v)^2, the log of the probability that two samples of a position
    are the same token. It has no gradient, and is empty unless it is asked for.
    """

    @staticmethod
    def forward(
        ctx: LogProbContext,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        factor: float = 1.0,
        collision: bool = False,
    ) -> tuple[Tensor, Tensor]:
        logp_T = hidden_TD.new_empty(
            len(targets_T), dtype=torch.promote_types(hidden_TD.dtype, torch.float32)
        )
        max_T, sum_T = torch.empty_like(logp_T), torch.empty_like(logp_T)
        collision_T = torch.empty_like(logp_T) if collision else logp_T.new_empty(0)
        keep = len(targets_T) * len(weight_VD) <= KEPT_ELEMENTS
        kept = []
        for rows in chunks(len(targets_T), weight_VD):
            logits_CV = scaled_matmul(hidden_TD[rows], weight_VD.t(), logp_T.dtype, factor)
            max_T[rows] = logits_CV.amax(-1)
            target_C = logits_CV.gather(-1, targets_T[rows, None]).squeeze(-1)
            exp_CV = logits_CV.sub_(max_T[rows, None]).exp_()  # in the memory of the logits
            sum_T[rows] = exp_CV.sum(-1)
            logp_T[rows] = target_C - max_T[rows] - sum_T[rows].log()
            if collision:
                norm_C = torch.linalg.vector_norm(exp_CV, dim=-1)
                collision_T[rows] = 2 * (norm_C.log() - sum_T[rows].log())
            if keep:
                kept.append(exp_CV)
        ctx.factor = factor
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, max_T, sum_T, *kept)
        ctx.mark_non_differentiable(collision_T)
        return logp_T, collision_T

    @staticmethod
    def backward(
        ctx: LogProbContext, grad_T: Tensor, _grad_collision_T: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_TD, weight_VD, targets_T, max_T, sum_T, *kept = ctx.saved_tensors
        grad_T = grad_T * ctx.factor  # d (factor * logit) / d logit, in one place
        grad_hidden_TD = torch.empty_like(hidden_TD)
        grad_weight_VD = None
        if ctx.needs_input_grad[1]:
            grad_weight_VD = torch.zeros_like(weight_VD, dtype=sum_T.dtype)
        # One for all chunks: on a CPU, fresh memory takes longer than the product.
        scratch_CV = torch.empty_like(kept[0]) if kept else None
        for i, rows in enumerate(chunks(len(targets_T), weight_VD)):
            if scratch_CV is not None:
                exp_CV = kept[i]
                out_CV = scratch_CV[: len(exp_CV)]  # a second backward needs exp_CV as it is
            else:
                logits_CV = scaled_matmul(hidden_TD[rows], weight_VD.t(), sum_T.dtype, ctx.factor)
                exp_CV = out_CV = logits_CV.sub_(max_T[rows, None]).exp_()
            grad_CV = torch.mul(exp_CV, (-grad_T[rows] / sum_T[rows])[:, None], out=out_CV)
            grad_CV.scatter_add_(-1, targets_T[rows, None], grad_T[rows, None])
            grad_CV = grad_CV.to(hidden_TD.dtype)
            torch.mm(grad_CV, weight_VD, out=grad_hidden_TD[rows])
            if grad_weight_VD is not None:
                add_matmul(grad_weight_VD, grad_CV.t(), hidden_TD[rows])
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_TD, grad_weight_VD, None, None, None


def chunked_logprob(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    factor: float = 1.0,
    collision: bool = False,
) -> tuple[Tensor, Tensor]:
    """log softmax(factor * hidden W^T)[target] [T], differentiable in hidden and weight, and
    log sum_v p(v)^2 [T] of the same softmax, without gradient.

    Args:
        hidden_TD: hidden states that predict the targets, any float dtype.
        weight_VD: of the output layer, same dtype.
        targets_T: token ids, int64.
        factor: of the logits.
        collision: False: the second tensor is empty.

    Returns:
        Both in nats, float32 (float64 for float64 inputs).
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = ChunkedLogProb.apply
    return apply(hidden_TD, weight_VD, targets_T, factor, collision)


def chunks(tokens: int, weight_VD: Tensor) -> list[slice]:
    """Slices of rows, each with at most CHUNK_ELEMENTS logits for the weight's device."""
    rows = max(1, CHUNK_ELEMENTS[weight_VD.device.type] // len(weight_VD))
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def scaled_matmul(left: Tensor, right: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
    """factor * (left @ right) in `dtype`, a fresh tensor.

    On a GPU, a product of narrower inputs is not rounded to their dtype in between.
    """
    if left.is_cuda and left.dtype != dtype:
        result = torch.mm(left, right, out_dtype=dtype)
    else:
        result = (left @ right).to(dtype)
    return result if factor == 1.0 else result.mul_(factor)


def add_matmul(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """total += left @ right, in the dtype of `total`: no chunk's product is rounded to theirs.

    On a GPU by blocks of BLOCK_ROWS rows, so that the product takes little memory.
    """
    if left_VC.is_cuda:
        blocks = torch.split(total_VD, BLOCK_ROWS)
        for block, left in zip(blocks, torch.split(left_VC, BLOCK_ROWS)):
            block.add_(scaled_matmul(left, right_CD, total_VD.dtype))
    else:
        total_VD.addmm_(left_VC.to(total_VD.dtype), right_CD.to(total_VD.dtype))


def scored_hidden(hidden_ND: Tensor, batch: PackedBatch) -> Tensor:
    """The hidden states [T, D] that predict the targets of a batch.

    A prompt's last position predicts two tokens, the first of each response. The positions are
    gathered in two parts, neither with a position twice, so the backward is deterministic.
    """
    first_T = batch.scored_T[: batch.num_unique_scored]
    rest_T = batch.scored_T[batch.num_unique_scored :]
    if not len(rest_T):
        return hidden_ND.index_select(0, first_T)
    return torch.cat([hidden_ND.index_select(0, first_T), hidden_ND.index_select(0, rest_T)])


def response_logprobs(
    model: Callable[[PackedBatch], Tensor], batch: PackedBatch
) -> tuple[Tensor, Tensor]:
    """log p(response | prompt) of both sides of each pair, summed over response tokens, in nats.

    Args:
        model: what `load_policy` returns, or the DeepSpeed engine around it. `model(batch)` returns
            the log-probs [T] of the batch's targets, not logits: `Policy.forward` in
            `zephyr.model.policy` holds the one call of the head with targets.
        batch: from `collate_pairs`.

    Returns:
        (chosen_P, rejected_P), float32 (float64 for a float64 model).
    """
    logp_R = sum_by_response(model(batch), batch)
    return logp_R[: batch.units], logp_R[batch.units :]


def aligned_logprobs(model: Callable[..., Tensor], batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Log-probs of the responses, and how far each is from a sample of the model.

    Args:
        model, batch: as `response_logprobs`.

    Returns:
        logp_R: log p(response | prompt), summed over tokens, in nats; all chosen responses, then
            all rejected ones.
        alignment_R: log p(token) - log sum_v p(v)^2, averaged over the tokens of the response,
            detached: 0 for a token as probable as the model's own samples are on average
            (`zephyr.losses.wpo_weight`). Both float32 (float64 for a float64 model).
    """
    logp_T, collision_T = model(batch, collision=True)
    alignment_R = sum_by_response(logp_T.detach() - collision_T, batch) / batch.response_tokens_R
    return sum_by_response(logp_T, batch), alignment_R


def sum_by_response(logp_T: Tensor, batch: PackedBatch) -> Tensor:
    """Token log-probs [T] summed over each response [R].

    Added in float64: a sum of hundreds of tokens in float32 is off by a thousandth of a nat.
    """
    return torch.segment_reduce(
        logp_T.double(), "sum", lengths=batch.response_tokens_R, unsafe=True
    ).to(logp_T.dtype)


def token_logprobs(
    model: Callable[[PackedBatch], Tensor], batch: PackedBatch
) -> tuple[Tensor, ...]:
    """log p of each response token, given the prompt and the tokens before it, in nats.

    Their sum over a response is that of `response_logprobs`. It waits for the device to know the
    lengths, so training does not call it.

    Args:
        model, batch: as `response_logprobs`.

    Returns:
        One tensor [tokens of the response] for each of the R responses, EOS included: those of the
        chosen responses in the order of the pairs, then those of the rejected ones; float32
        (float64 for a float64 model).
    """
    of_responses: tuple[Tensor, ...] = model(batch).split(batch.response_tokens_R.tolist())
    return of_responses
