"""Hidden states become log-probabilities of target tokens, and these the sums that the losses take.

T scored tokens, D hidden size, V vocabulary, C rows of a chunk, R responses, P pairs."""

import torch
from torch import Tensor, nn

from zephyr.packing import PackedBatch

CHUNK_ELEMENTS = {
    "cuda": 2**25,
    "cpu": 2**23,
}  # logits at a time: 128 MiB in float32 keep a GPU busy, 32 MiB suit a CPU's cache
KEPT_ELEMENTS = (
    2**26
)  # of a micro-batch's exponentials that are kept for the backward; more are computed again
BLOCK_ROWS = 8192  # of the weight's gradient at a time, on a GPU


class LogProbHead(nn.Linear):
    """The output layer that also scores: `head(hidden_TD, targets_T)` -> log p(target) in float32
    [T], no [T, V] ever stored.

    Without targets it returns logits, for generation. It stands in the `lm_head` slot and owns its
    weight, so ZeRO-3 gathers and releases that around the one call, forward and backward."""

    factor = 1.0  # of the logits that are scored; a decoder applies its own to those returned

    def forward(self, hidden_TD: Tensor, targets_T: Tensor | None = None) -> Tensor:
        if targets_T is None:
            return super().forward(hidden_TD)
        return ChunkedLogProb.apply(hidden_TD, self.weight, targets_T, self.factor)

    @classmethod
    def from_linear(cls, linear: nn.Linear, factor: float = 1.0) -> "LogProbHead":
        """A head with the very parameter of `linear`, for logits that are multiplied with `factor`
        behind it.

        Raises: ValueError where `linear` has a bias."""
        if linear.bias is not None:
            raise ValueError(
                "the output layer has a bias, which the log-prob head does not implement"
            )
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight, head.factor = linear.weight, factor
        return head


class ChunkedLogProb(torch.autograd.Function):
    """log softmax(factor hidden W^T)[target] in float32, rows in chunks; the backward computes
    exponentials again where too many to keep.

    d logp / d logits = onehot(target) - softmax, of the logits with their factor. The weight's
    gradient is summed over chunks in float32."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        factor: float = 1.0,
    ) -> Tensor:
        logp_T = hidden_TD.new_empty(
            len(targets_T), dtype=torch.promote_types(hidden_TD.dtype, torch.float32)
        )
        top_T, sum_T, kept = torch.empty_like(logp_T), torch.empty_like(logp_T), []
        for rows in chunks(len(targets_T), weight_VD):
            exp_CV = scaled_matmul(
                hidden_TD[rows], weight_VD.t(), logp_T.dtype, factor
            )  # the logits, until they are overwritten
            top_T[rows] = exp_CV.amax(-1)
            logit_C = exp_CV.gather(-1, targets_T[rows, None]).squeeze(-1)
            sum_T[rows] = exp_CV.sub_(top_T[rows, None]).exp_().sum(-1)
            logp_T[rows] = logit_C - top_T[rows] - sum_T[rows].log()
            if len(targets_T) * len(weight_VD) <= KEPT_ELEMENTS:
                kept.append(exp_CV)
        ctx.factor = factor
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, top_T, sum_T, *kept)
        return logp_T

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_T: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        hidden_TD, weight_VD, targets_T, top_T, sum_T, *kept = ctx.saved_tensors
        grad_T = grad_T * ctx.factor  # d (factor x logit) / d logit, in one place
        grad_hidden_TD = torch.empty_like(hidden_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=sum_T.dtype)
        scratch_CV = (
            torch.empty_like(kept[0]) if kept else None
        )  # one for all chunks: fresh memory costs a CPU more than the product
        for i, rows in enumerate(chunks(len(targets_T), weight_VD)):
            exp_CV = (
                kept[i]
                if kept
                else scaled_matmul(hidden_TD[rows], weight_VD.t(), sum_T.dtype, ctx.factor)
                .sub_(top_T[rows, None])
                .exp_()
            )
            grad_CV = torch.mul(
                exp_CV,
                (-grad_T[rows] / sum_T[rows])[:, None],
                out=scratch_CV[: len(exp_CV)] if kept else exp_CV,
            )
            grad_CV = grad_CV.scatter_add_(-1, targets_T[rows, None], grad_T[rows, None]).to(
                hidden_TD.dtype
            )
            torch.mm(grad_CV, weight_VD, out=grad_hidden_TD[rows])
            add_matmul(grad_weight_VD, grad_CV.t(), hidden_TD[rows])
        return grad_hidden_TD, grad_weight_VD.to(weight_VD.dtype), None, None


def chunks(tokens: int, weight_VD: Tensor) -> list[slice]:
    """Slices of rows whose logits are at most CHUNK_ELEMENTS of the weight's device."""
    rows = max(1, CHUNK_ELEMENTS[weight_VD.device.type] // len(weight_VD))
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def scaled_matmul(left: Tensor, right: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
    """factor (left @ right) in a wider dtype than theirs: on a GPU not rounded in between. A fresh
    tensor."""
    wide = left.is_cuda and left.dtype != dtype
    result = torch.mm(left, right, out_dtype=dtype) if wide else (left @ right).to(dtype)
    return result if factor == 1.0 else result.mul_(factor)


def add_matmul(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """total += left @ right, no chunk's product rounded to the factors' dtype; on a GPU by blocks
    of rows, each product a small one."""
    if left_VC.is_cuda:
        for block, left in zip(total_VD.split(BLOCK_ROWS), left_VC.split(BLOCK_ROWS)):
            block.add_(scaled_matmul(left, right_CD, total_VD.dtype))
    else:
        total_VD.addmm_(left_VC.to(total_VD.dtype), right_CD.to(total_VD.dtype))


def scored_hidden(hidden_ND: Tensor, batch: PackedBatch) -> Tensor:
    """The hidden states that predict targets [T, D]. Each gather holds no position twice, so its
    backward is deterministic."""
    first_T, rest_T = (
        batch.scored_T[: batch.num_unique_scored],
        batch.scored_T[batch.num_unique_scored :],
    )
    if not len(rest_T):
        return hidden_ND.index_select(0, first_T)
    return torch.cat([hidden_ND.index_select(0, first_T), hidden_ND.index_select(0, rest_T)])


def response_logprobs(model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """log p(response | prompt) of both sides of each pair, summed over response tokens, in nats.

    Args: model: what `load_policy` returns, or the DeepSpeed engine around it. batch: from
    `collate_pairs`. Returns: (chosen_P, rejected_P), float32 (float64 for a float64 model)."""
    logp_R = sum_by_response(model(batch), batch)
    return logp_R[: batch.units], logp_R[batch.units :]


def sum_by_response(logp_T: Tensor, batch: PackedBatch) -> Tensor:
    """Token log-probs [T] summed over each response [R], which lie one behind the other; in
    float64, as single float32 additions of hundreds of tokens are off by a thousandth of a nat."""
    return torch.segment_reduce(
        logp_T.double(), "sum", lengths=batch.response_tokens_R, unsafe=True
    ).to(logp_T.dtype)
