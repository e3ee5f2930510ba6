"""RMSNorm, SwiGLU and rotary positions as Triton kernels, forward and backward.

Each reads its inputs from memory once and writes its outputs once. PyTorch's separate operations
read and write every intermediate tensor: at 7B width in bfloat16 a layer moves 2 MB a token that
way, and 0.6 MB fused.

Arithmetic is in float32. The forward rounds where transformers' modules round, so that values
differ from theirs by the order of sums and the last bit of an exponential at most. The backward
rounds once, when it stores.

The kernels run on CUDA tensors. With TRITON_INTERPRET=1 in the environment before this module is
imported they run on the CPU, slowly: that is for tests. The interpreter truncates to bfloat16,
where a GPU rounds to nearest. Triton launches on the current GPU, wherever the tensors are: hence
`torch.cuda.device_of` around each launch.

Shape letters:
    R  rows: all dimensions before the last
    D  size of a row
    P  programs of a launch: each writes a partial sum
    B  sequences of a batch
    T  tokens of a sequence
    H  heads
    E  size of a head
    A  elements of a head that are rotated, in pairs (i, i + A/2)
"""

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4096  # elements of a program's tile; rows that are longer make longer tiles
SWIGLU_TILE = 2048
PROGRAMS_PER_PROCESSOR = 2  # of RMSNorm's backward, which keeps a sum in each program


class Context(Protocol):
    """What autograd hands from forward to backward."""

    saved_tensors: tuple[Tensor, ...]
    offset: float
    rounds_first: bool

    def save_for_backward(self, *tensors: Tensor) -> None: ...


# -- RMSNorm


@triton.jit
def rms_norm_forward(
    x_ptr,
    weight_ptr,
    y_ptr,
    scale_ptr,
    rows,
    size,
    eps,
    OFFSET: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_D: tl.constexpr,
):
    """y = x * scale * (OFFSET + weight), scale = 1 / sqrt(mean(x^2) + eps), for TILE_R rows."""
    row = tl.program_id(0).to(tl.int64) * TILE_R + tl.arange(0, TILE_R)
    column = tl.arange(0, TILE_D)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    place = row[:, None] * size + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / size + eps)
    tl.store(scale_ptr + row, scale, mask=row < rows)
    normal = x * scale[:, None]
    if ROUNDS_FIRST:
        normal = normal.to(x_ptr.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight_ptr + column, mask=column < size, other=0.0).to(tl.float32) + OFFSET
    y = normal * gain[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward(
    dy_ptr,
    x_ptr,
    weight_ptr,
    scale_ptr,
    dx_ptr,
    dweight_ptr,
    rows,
    size,
    OFFSET: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_D: tl.constexpr,
):
    """With normal = x * scale and g = dy * (OFFSET + weight):

    dx = scale * (g - normal * mean(g * normal)), for every P-th tile of rows, and this program's
    part of dweight = sum over rows of dy * normal.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, TILE_D)
    gain = tl.load(weight_ptr + column, mask=column < size, other=0.0).to(tl.float32) + OFFSET
    dweight = tl.zeros((TILE_D,), dtype=tl.float32)
    for start in range(program * TILE_R, rows, programs * TILE_R):
        row = (start + tl.arange(0, TILE_R)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < size)[None, :]
        place = row[:, None] * size + column[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + place, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0)[:, None]
        normal = x * scale
        g = dy * gain[None, :]
        mean = tl.sum(g * normal, axis=1) / size
        dx = scale * (g - normal * mean[:, None])
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if ROUNDS_FIRST:  # the weight multiplied the rounded value
            normal = normal.to(x_ptr.dtype.element_ty).to(tl.float32)
        dweight += tl.sum(dy * normal, axis=0)
    # int64: the place is this program's row of [P, D].
    tl.store(dweight_ptr + program.to(tl.int64) * size + column, dweight, mask=column < size)


class RMSNorm(torch.autograd.Function):
    """`rms_norm` with its gradient. Saves x, the weight, and one float32 number a row."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool
    ) -> Tensor:
        x = x.contiguous()
        rows, size = row_shape(x)
        y, scale_R = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
        tile = norm_tile(size)
        grid = (triton.cdiv(rows, tile["TILE_R"]),)
        with torch.cuda.device_of(x):
            rms_norm_forward[grid](
                x, weight, y, scale_R, rows, size, eps, offset, rounds_first, **tile
            )
        ctx.save_for_backward(x, weight, scale_R)
        ctx.offset, ctx.rounds_first = offset, rounds_first
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale_R = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        rows, size = row_shape(x)
        tile = norm_tile(size)
        programs = min(backward_programs(x), max(1, triton.cdiv(rows, tile["TILE_R"])))
        dweight_PD = x.new_empty(programs, size, dtype=torch.float32)
        with torch.cuda.device_of(x):
            rms_norm_backward[(programs,)](
                dy,
                x,
                weight,
                scale_R,
                dx,
                dweight_PD,
                rows,
                size,
                ctx.offset,
                ctx.rounds_first,
                **tile,
            )
        return dx, dweight_PD.sum(0).to(weight.dtype), None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last dimension (arXiv:1910.07467).

    The gradient of the weight is summed in float32, in an order that depends only on the shape and
    the card: equal inputs give equal bits.

    Args:
        x: [..., D]; bfloat16, float16 or float32.
        weight: [D], of the dtype of x.
        eps: added to the mean square.
        offset: 1 where the weight is kept as its distance from 1 (Gemma), else 0.
        rounds_first: the normalised x is rounded to its dtype before the weight multiplies it
            (Llama); otherwise the product is (Gemma, OLMo 2).

    Returns:
        Of the shape and dtype of x.
    """
    y: Tensor = RMSNorm.apply(x, weight, eps, offset, rounds_first)
    return y


def row_shape(x: Tensor) -> tuple[int, int]:
    """(R, D) of a tensor [..., D]."""
    return x.numel() // max(1, x.shape[-1]), x.shape[-1]


def norm_tile(size: int) -> dict[str, int]:
    """Tile of RMSNorm's programs, for rows of a size: whole rows, several where they are short."""
    width: int = triton.next_power_of_2(size)
    height = max(1, TILE // width)
    return {"TILE_R": height, "TILE_D": width, "num_warps": warps(width * height)}


def warps(elements: int) -> int:
    """Warps of a program with a tile of so many elements: 16 elements a thread, 4 to 32 warps."""
    return max(4, min(32, elements // 512))


def backward_programs(x: Tensor) -> int:
    """Programs of RMSNorm's backward on the device of x."""
    if x.device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    return PROGRAMS_PER_PROCESSOR * int(processors)


# -- SwiGLU


@triton.jit
def swiglu_forward(gate_ptr, up_ptr, y_ptr, size, gate_stride, up_stride, TILE_D: tl.constexpr):
    """y = silu(gate) * up, for TILE_D columns of one row. Strides are those of rows."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    inside = column < size
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + row * size + column, (silu * up).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(
    dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, size, gate_stride, up_stride, TILE_D: tl.constexpr
):
    """dup = dy * silu(gate), dgate = dy * up * silu'(gate).

    silu(g) = g s and silu'(g) = s (1 + g (1 - s)), with s = sigmoid(g).
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    inside = column < size
    dy = tl.load(dy_ptr + row * size + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    dup = dy * gate * sigmoid
    dgate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(dgate_ptr + row * size + column, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + row * size + column, dup.to(dup_ptr.dtype.element_ty), mask=inside)


class SwiGLU(torch.autograd.Function):
    """`swiglu` with its gradient. Saves gate and up, and overwrites neither."""

    @staticmethod
    def forward(ctx: Context, gate: Tensor, up: Tensor) -> Tensor:
        shape, size = gate.shape, gate.shape[-1]
        gate_RD, up_RD = as_rows(gate), as_rows(up)
        y_RD = gate_RD.new_empty(gate_RD.shape)
        with torch.cuda.device_of(gate):
            swiglu_forward[swiglu_grid(gate_RD)](
                gate_RD, up_RD, y_RD, size, gate_RD.stride(0), up_RD.stride(0), **swiglu_tile(size)
            )
        ctx.save_for_backward(gate, up)
        return y_RD.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        shape, size = gate.shape, gate.shape[-1]
        gate_RD, up_RD, dy = as_rows(gate), as_rows(up), dy.contiguous()
        dgate_RD, dup_RD = gate_RD.new_empty(gate_RD.shape), gate_RD.new_empty(gate_RD.shape)
        with torch.cuda.device_of(gate):
            swiglu_backward[swiglu_grid(gate_RD)](
                dy,
                gate_RD,
                up_RD,
                dgate_RD,
                dup_RD,
                size,
                gate_RD.stride(0),
                up_RD.stride(0),
                **swiglu_tile(size),
            )
        return dgate_RD.view(shape), dup_RD.view(shape)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202), silu rounded to the dtype of its input.

    Args:
        gate, up: [..., D] of one shape and dtype; halves of one tensor [..., 2 D] are not copied.

    Returns:
        Of the shape and dtype of gate, contiguous.
    """
    y: Tensor = SwiGLU.apply(gate, up)
    return y


def as_rows(x: Tensor) -> Tensor:
    """[..., D] as [R, D], whose rows lie in memory without gaps in them; copied only if need be."""
    x_RD = x.reshape(-1, x.shape[-1])
    return x_RD if x_RD.stride(1) == 1 else x_RD.contiguous()


def swiglu_tile(size: int) -> dict[str, int]:
    """Tile of SwiGLU's programs, for rows of a size."""
    return {"TILE_D": min(SWIGLU_TILE, triton.next_power_of_2(size)), "num_warps": 4}


def swiglu_grid(gate_RD: Tensor) -> tuple[int, int]:
    """Programs for rows, and for tiles of a row."""
    rows, size = gate_RD.shape
    return rows, triton.cdiv(size, swiglu_tile(size)["TILE_D"])


# -- rotary positions


@triton.jit
def rotate_heads(
    x_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    heads,
    head_size,
    half,
    BACKWARD: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_A: tl.constexpr,
):
    """Rotate all heads of one token, or apply the transpose, which is the backward.

    The pair (x1, x2) = (x[i], x[i + half]) becomes (x1 cos - x2 sin, x2 cos + x1 sin), where cos
    and sin are taken at i for the first and at i + half for the second.
    """
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, TILE_H)[:, None], tl.arange(0, TILE_A)[None, :]
    rotated = column < half
    inside = (head < heads) & rotated
    first = (token * heads + head) * head_size + column
    x1 = tl.load(x_ptr + first, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + first + half, mask=inside, other=0.0).to(tl.float32)
    angle = token * 2 * half + column
    cos1 = tl.load(cos_ptr + angle, mask=rotated, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + angle + half, mask=rotated, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + angle, mask=rotated, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + angle + half, mask=rotated, other=0.0).to(tl.float32)
    if BACKWARD:
        y1 = x1 * cos1 + x2 * sin2
        y2 = x2 * cos2 - x1 * sin1
    else:  # transformers rounds each product to the dtype of cos
        dtype = cos_ptr.dtype.element_ty
        y1 = (x1 * cos1).to(dtype).to(tl.float32) - (x2 * sin1).to(dtype).to(tl.float32)
        y2 = (x2 * cos2).to(dtype).to(tl.float32) + (x1 * sin2).to(dtype).to(tl.float32)
    tl.store(y_ptr + first, y1.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + first + half, y2.to(y_ptr.dtype.element_ty), mask=inside)


def launch_rotation(x_BHTE: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    """Launch `rotate_heads` on every token. Args: cos, sin: [1 or B, T, A]. Returns: [B, H, T, E].

    In memory heads lie beside each other, as the projections write them: nothing is copied.
    """
    x_BTHE = x_BHTE.transpose(1, 2).contiguous()
    batch, tokens, heads, head_size = x_BTHE.shape
    size = cos.shape[-1]
    cos_BTA, sin_BTA = (t.expand(batch, tokens, size).contiguous() for t in (cos, sin))
    y_BTHE = torch.empty_like(x_BTHE) if size == head_size else x_BTHE.clone()
    tile = {"TILE_H": triton.next_power_of_2(heads), "TILE_A": triton.next_power_of_2(size // 2)}
    with torch.cuda.device_of(x_BTHE):
        rotate_heads[(batch * tokens,)](
            x_BTHE,
            cos_BTA,
            sin_BTA,
            y_BTHE,
            heads,
            head_size,
            size // 2,
            backward,
            **tile,
            num_warps=warps(2 * tile["TILE_H"] * tile["TILE_A"]),
        )
    return y_BTHE.transpose(1, 2)


class Rotation(torch.autograd.Function):
    """The rotation of one tensor with its gradient. Saves cos and sin only."""

    @staticmethod
    def forward(ctx: Context, x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return launch_rotation(x_BHTE, cos, sin, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy_BHTE: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return launch_rotation(dy_BHTE, cos, sin, backward=True), None, None


def rotate(query_BHTE: Tensor, key_BHTE: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key rotated by their positions (RoPE, arXiv:2104.09864), in the dtype of each.

    Args:
        query_BHTE, key_BHTE: [B, H, T, E], the key with fewer heads or as many.
        cos, sin: [1 or B, T, A] of each angle, for the first A <= E elements of a head; the others
            stay. No gradient flows to them.
    """
    return Rotation.apply(query_BHTE, cos, sin), Rotation.apply(key_BHTE, cos, sin)
