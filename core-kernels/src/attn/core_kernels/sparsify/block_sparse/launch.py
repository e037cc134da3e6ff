"""Block-sparse attention by the Triton kernels: their tiles, grids and launch options, and the registered operators."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from attn.core_kernels.sparsify.block_sparse import kernels
from attn.core_kernels.sparsify.block_sparse.registration import complete


class Tuning(NamedTuple):
    """Largest tile and launch options of one kernel for one size of numbers and one width of rows."""

    block_m: int
    block_n: int
    slice: int
    num_warps: int
    num_stages: int


# By kernel and dtype for rows of up to 64, 128 and 256 numbers. No entry spills on sm_80, sm_90 or sm_100, which
# benchmarks/compile_table.py checks for most; times were not measured yet.
TUNING = {
    ("attention_kernel", "bfloat16"): (
        Tuning(128, 64, 256, 8, 3),
        Tuning(128, 64, 256, 8, 3),
        Tuning(64, 32, 256, 8, 2),
    ),
    ("attention_kernel", "float16"): (
        Tuning(128, 64, 256, 8, 3),
        Tuning(128, 64, 256, 8, 3),
        Tuning(64, 32, 256, 8, 2),
    ),
    ("attention_kernel", "float32"): (
        Tuning(64, 32, 256, 8, 2),
        Tuning(64, 32, 32, 8, 1),
        Tuning(32, 32, 32, 8, 1),
    ),
    ("query_bwd_kernel", "bfloat16"): (
        Tuning(64, 64, 256, 4, 2),
        Tuning(64, 32, 256, 8, 2),
        Tuning(64, 16, 256, 8, 2),
    ),
    ("query_bwd_kernel", "float16"): (
        Tuning(64, 32, 256, 4, 2),
        Tuning(64, 32, 256, 8, 2),
        Tuning(32, 32, 256, 4, 1),
    ),
    ("query_bwd_kernel", "float32"): (
        Tuning(32, 32, 256, 8, 1),
        Tuning(32, 32, 32, 4, 1),
        Tuning(32, 16, 32, 8, 1),
    ),
    ("key_bwd_kernel", "bfloat16"): (
        Tuning(64, 32, 256, 4, 2),
        Tuning(32, 64, 256, 8, 2),
        Tuning(32, 32, 256, 8, 1),
    ),
    ("key_bwd_kernel", "float16"): (
        Tuning(32, 32, 256, 4, 2),
        Tuning(32, 64, 256, 8, 1),
        Tuning(16, 32, 256, 8, 1),
    ),
    ("key_bwd_kernel", "float32"): (
        Tuning(32, 32, 32, 8, 1),
        Tuning(32, 16, 32, 8, 1),
        Tuning(32, 16, 32, 8, 1),
    ),
}


def launch_options(
    kernel: str, dtype: torch.dtype, head_dim: int, value_dim: int, block_size: list[int], *, rocm: bool = False
) -> dict[str, object]:
    """Tiles, format of products and launch options of a kernel.

    Args:
        kernel: the kernel's name.
        dtype: dtype of query, key and value.
        head_dim: width of queries and keys, at most 256.
        value_dim: width of values, at most 256.
        block_size: queries and keys of a block of the layout, which no tile exceeds but to reach 16.
        rocm: whether the chip is AMD's, whose tensor cores multiply float32 as it is.
    """
    widths = [max(triton.next_power_of_2(x), 16) for x in (head_dim, value_dim)]
    tuning = TUNING[kernel, str(dtype).removeprefix("torch.")][sum(max(widths) > limit for limit in (64, 128))]
    rows, columns = (max(triton.next_power_of_2(x), 16) for x in block_size)
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    half = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    dot = tl.float32 if triton.knobs.runtime.interpret else half.get(dtype, tl.float32)
    options = {
        "ROWS": block_size[0],
        "COLUMNS": block_size[1],
        "BLOCK_M": min(tuning.block_m, rows),
        "BLOCK_N": min(tuning.block_n, columns),
        "WIDTH": widths[0],
        "VALUE_WIDTH": widths[1],
        "SLICE": tuning.slice,
        "DOT": dot,
        "PRECISION": "ieee" if rocm else "tf32x3" if dtype == torch.float32 else "tf32",
        "num_warps": tuning.num_warps,
        # Triton 3.9 cannot overlap this kernel's loads on AMD's chips: its compiler fails.
        "num_stages": 1 if rocm and kernel == "key_bwd_kernel" else tuning.num_stages,
    }
    if kernel != "attention_kernel":
        # TF32 holds what float16 does, without its narrow range.
        options["GRAD_DOT"] = tl.float32 if dtype == torch.float16 else dot
    return options


@torch.library.custom_op("attn::block_sparse_triton", mutates_args=())
def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    tables: list[Tensor],
    block_size: list[int],
    layout_batch: int,
    layout_heads: int,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, queries, value_dim]`` in query's dtype and lse ``[batch, heads, queries]``.

    The tables are what `BlockLayout.tables` gives.
    """
    query, key, value = map(_dense_rows, (query, key, value))
    batch, heads, queries, _ = query.shape
    out = query.new_empty(batch, heads, queries, value.shape[3])
    lse = query.new_empty(batch, heads, queries, dtype=torch.float32)
    layout = block_size, layout_batch, layout_heads
    _launch(
        kernels.attention_kernel, (batch, heads, queries), (query, key, value), key_mask, [*tables[:3], tables[6]],
        (out, lse), (), layout, scale, causal, window,
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("attn::block_sparse_triton_backward", mutates_args=())
def block_sparse_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    key_mask: Tensor | None,
    tables: list[Tensor],
    block_size: list[int],
    layout_batch: int,
    layout_heads: int,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value: ``ds = p * (dout @ v.T - (dout . out) + dlse)``."""
    grad_query, grad_key, grad_value = (x.new_empty(x.shape) for x in (query, key, value))
    query, key, value, grad_out = map(_dense_rows, (query, key, value, grad_out))
    with torch.autocast(query.device.type, enabled=False):
        shift = grad_lse - torch.linalg.vecdot(grad_out.float(), out.float())
    of_rows = grad_out, lse.contiguous(), shift.contiguous()
    rule = (block_size, layout_batch, layout_heads), scale, causal, window
    _launch(
        kernels.query_bwd_kernel, query.shape[:3], (query, key, value), key_mask, [*tables[:3], tables[6]],
        (*of_rows, grad_query), grad_out.stride()[:3], *rule,
    )  # fmt: skip
    _launch(
        kernels.key_bwd_kernel, key.shape[:3], (query, key, value), key_mask, tables[3:],
        (*of_rows, grad_key, grad_value), grad_out.stride()[:3], *rule,
    )  # fmt: skip
    return grad_query, grad_key, grad_value


complete(block_sparse_attention, block_sparse_attention_backward)


def _launch(
    kernel: triton.runtime.JITFunction,
    owners: tuple[int, ...],
    rows: tuple[Tensor, Tensor, Tensor],
    key_mask: Tensor | None,
    tables: list[Tensor],
    others: tuple[Tensor, ...],
    other_strides: tuple[int, ...],
    layout: tuple[list[int], int, int],
    scale: float,
    causal: bool,
    window: int | None,
) -> None:
    """Run a kernel on all tiles of rows or keys.

    Args:
        kernel: one of `kernels`.
        owners: batch, heads and tokens of what the programs own.
        rows: query, key and value.
        key_mask: bool ``[batch, keys]`` or None.
        tables: the table's three tensors and the tiles.
        others: what else the kernel reads, and what it writes.
        other_strides: strides of it.
        layout: block size, batch and heads of the layout.
        scale: factor of the scores.
        causal: whether keys after a query are hidden.
        window: distance from which keys are hidden, or None.
    """
    query, key, value = rows
    *table, tiles = tables
    (queries, head_dim), (keys, value_dim), heads = query.shape[2:], value.shape[2:], query.shape[1]
    block_size, layout_batch, layout_heads = layout
    rocm = torch.version.hip is not None
    options = launch_options(kernel.__name__, query.dtype, head_dim, value_dim, block_size, rocm=rocm)
    by_key = kernel is kernels.key_bwd_kernel
    size, tile = (block_size[1], options["BLOCK_N"]) if by_key else (block_size[0], options["BLOCK_M"])
    batch, owning_heads, tokens = owners
    programs = batch * owning_heads * triton.cdiv(tokens, size) * triton.cdiv(size, tile)
    if not programs:
        return
    mask = query if key_mask is None else key_mask.contiguous().view(torch.uint8)  # query's is never read
    factors = [scale * kernels.LOG2_E.value, *[scale] * bool(other_strides)]
    with torch.cuda.device_of(query):  # Triton launches on the current device
        kernel[(programs,)](
            query, key, value, mask, *table, tiles.view(torch.uint8), *others,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *other_strides,
            queries, keys, head_dim, value_dim, heads, heads // key.shape[1], heads // layout_heads,
            layout_heads if layout_batch > 1 else 0, keys - queries,
            0 if window is None else min(window, queries + keys), *factors,
            CAUSAL=causal, WINDOW=window is not None, MASK=key_mask is not None, **options,
        )  # fmt: skip


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()
