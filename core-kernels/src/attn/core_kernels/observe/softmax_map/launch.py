"""The observe operators by Triton kernels: their grids, constants and passes, and the registered operators.

Arguments and results are those of the operators of the same names in PyTorch. A statistic of the map takes one pass for
the log-sum-exp, unless it is given, and one for itself.
"""

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from attn.core_kernels.observe.softmax_map import kernels
from attn.core_kernels.observe.softmax_map.registration import (
    differentiate_attention,
    differentiate_submap,
    register,
)

LARGEST_BLOCK = 64  # rows and columns of a tile of logits
_register = partial(register, suffix="_triton")


@dataclass(frozen=True)
class _Walk:
    """What the launches of one call share."""

    query: Tensor
    key: Tensor
    key_mask: Tensor
    positions: Tensor
    strides: tuple[int, ...]
    sizes: tuple[float, ...]
    constants: dict[str, object]

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        scale: float,
        offset: int,
        causal: bool,
        window: int | None,
        key_mask: Tensor | None,
        positions: Tensor | None,
    ) -> "_Walk":
        query, key = _dense_rows(query), _dense_rows(key)
        batch, heads, queries, head_dim = query.shape
        keys = key.shape[2]
        if positions is not None:
            positions = positions.expand(batch, -1).contiguous()
        unused = query
        return cls(
            query,
            key,
            unused if key_mask is None else key_mask.contiguous().view(torch.uint8),
            unused if positions is None else positions,
            (*query.stride()[:3], *key.stride()[:3], queries),
            (
                queries, keys, head_dim, heads, heads // key.shape[1], offset,
                0 if window is None else min(window, queries + keys), scale * kernels.LOG2_E.value,
            ),
            {
                **_blocks(head_dim, query.dtype),
                "WIDTH": _width(head_dim),
                "CAUSAL": causal,
                "WINDOW": window is not None,
                "MASK": key_mask is not None,
                "POSITIONS": positions is not None,
                "DOT": _dot(query.dtype),
                "PRECISION": "tf32x3" if query.dtype == torch.float32 else "tf32",
            },
        )  # fmt: skip

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.query, self.key, self.key_mask, self.positions

    @property
    def rows(self) -> int:
        """Programs that cover all rows of all heads."""
        return self.rows_in(self.constants["BLOCK_M"])

    def rows_in(self, block: object) -> int:
        batch, heads, queries, _ = self.query.shape
        return int(batch * heads * triton.cdiv(queries, block))

    def blocks_of(self, columns: int) -> int:
        return triton.cdiv(columns, self.constants["BLOCK_N"])

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.query.new_empty(shape, dtype=dtype)

    def lse(self, lse: Tensor | None = None) -> Tensor:
        """Log-sum-exp of the rows, ``[batch, heads, queries]``, computed unless it is known."""
        if lse is not None:
            return lse.contiguous()
        lse = self.new(*self.query.shape[:3])
        _launch(
            kernels.row_stats_kernel, self.rows, *self.inputs, lse, lse, lse, lse, *self.strides, *self.sizes,
            STATS=False, **self.constants,
        )  # fmt: skip
        return lse


def _launch(kernel, programs: int, *args: object, **constants: object) -> None:  # type: ignore[no-untyped-def]
    if programs:
        kernel[(programs,)](*args, **constants)


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _width(columns: int) -> int:
    """Columns of a tile that holds whole rows; products need 16."""
    return int(max(triton.next_power_of_2(columns), 16))


def _blocks(columns: int, dtype: torch.dtype) -> dict[str, int]:
    """Rows and columns of a tile of logits, so that rows and keys fit in registers and shared memory."""
    block = min(LARGEST_BLOCK, max(16, 2**14 // (_width(columns) * dtype.itemsize)))
    return {"BLOCK_M": block, "BLOCK_N": block}


def _dot(dtype: torch.dtype) -> tl.dtype:
    """Format of products of rows; Triton's interpreter multiplies the bits of bfloat16 as integers."""
    if triton.knobs.runtime.interpret or dtype == torch.float32:
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16


def _gradient_dot(dtype: torch.dtype) -> tl.dtype:
    """Format of products with gradients: TF32 holds what float16 does, without its narrow range."""
    return tl.float32 if dtype == torch.float16 else _dot(dtype)


@_register
def attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, queries, value_dim]`` in query's dtype and lse ``[batch, heads, queries]``."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    value = _dense_rows(value)
    out, lse = walk.new(*query.shape[:3], value.shape[3], dtype=query.dtype), walk.new(*query.shape[:3])
    constants = walk.constants | _blocks(max(query.shape[3], value.shape[3]), query.dtype)
    _launch(
        kernels.attention_kernel, out.numel() and walk.rows_in(constants["BLOCK_M"]),
        walk.query, walk.key, value, walk.key_mask, walk.positions, out, lse,
        *walk.strides, *value.stride()[:3], *walk.sizes, value.shape[3],
        VALUE_WIDTH=_width(value.shape[3]), **constants,
    )  # fmt: skip
    return out, lse


@_register
def attention_with_lse_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    shift = grad_lse - torch.linalg.vecdot(grad_out.float(), out.float())
    gradients = _Gradients(walk, lse.contiguous(), shift.contiguous(), _dense_rows(grad_out), scale)
    grad_query, grad_key, grad_value = (x.new_empty(x.shape) for x in (query, key, value))
    gradients.launch(grad_query, grad_key, shift=True, value=_dense_rows(value), grad_value=grad_value)
    return grad_query, grad_key, grad_value


differentiate_attention(attention_with_lse, attention_with_lse_backward)


@dataclass(frozen=True)
class _Gradients:
    """Launches of the two backward kernels; grad is that of the output or of the map, ``[batch, heads, rows, ...]``."""

    walk: _Walk
    lse: Tensor
    shift: Tensor
    grad: Tensor
    scale: float

    def launch(
        self,
        grad_query: Tensor,
        grad_key: Tensor,
        *,
        shift: bool,
        of_map: bool = False,
        columns: Tensor | None = None,
        value: Tensor | None = None,
        grad_value: Tensor | None = None,
    ) -> None:
        """Write gradients of query, and of key or of its columns, with the parts of the logits' gradient asked for."""
        walk, of_value = self.walk, value is not None
        value, grad_value = (walk.key if x is None else x for x in (value, grad_value))
        width = walk.key.shape[2] if columns is None else columns.shape[1]
        shared = (walk.query, walk.key, value, walk.key_mask, walk.positions)
        arguments = (
            *walk.strides, 0 if columns is None else columns.shape[1], *value.stride()[:3], *self.grad.stride()[:3],
            *walk.sizes, width, value.shape[3], self.scale,
        )  # fmt: skip
        constants = walk.constants | _blocks(2 * max(walk.query.shape[3], value.shape[3]), walk.query.dtype) | {
            "VALUE_WIDTH": _width(value.shape[3]) if of_value else 16,
            "COLUMNS": columns is not None,
            "OF_MAP": of_map,
            "OF_VALUE": of_value,
            "SHIFT": shift,
            "GRAD_DOT": _gradient_dot(walk.query.dtype),
        }  # fmt: skip
        tables = (walk.key if columns is None else columns, self.lse, self.shift, self.grad)
        _launch(
            kernels.query_bwd_kernel, walk.rows_in(constants["BLOCK_M"]), *shared, *tables, grad_query, *arguments,
            **constants,
        )  # fmt: skip
        batch, key_heads = walk.key.shape[:2]
        _launch(
            kernels.key_bwd_kernel, batch * key_heads * triton.cdiv(width, constants["BLOCK_N"]), *shared, *tables,
            grad_key, grad_value, *arguments, **constants,
        )  # fmt: skip


@_register
def key_moments(
    query: Tensor,
    key: Tensor,
    row_weights: Tensor,
    lse: Tensor | None,
    squares: bool,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weighted column sums ``[batch, heads, sets, keys]``, and those of the squares, empty unless ``squares``."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    batch, heads, keys, sets = *query.shape[:2], key.shape[2], row_weights.shape[2]
    weights = row_weights.float().expand(batch, heads, -1, -1)
    mass = walk.new(batch, heads, sets, keys)
    square = walk.new(batch if squares else 0, heads, sets, keys)
    at_once = 1 if sets == 1 else 16
    _launch(
        kernels.key_moments_kernel, batch * heads * walk.blocks_of(keys) * triton.cdiv(sets, at_once),
        *walk.inputs, walk.lse(lse), weights, mass, square,
        *walk.strides, *weights.stride(), *walk.sizes, sets, SETS=at_once, SQUARES=squares, **walk.constants,
    )  # fmt: skip
    return mass, square


@_register
def suffix_key_mass(
    query: Tensor,
    key: Tensor,
    block_size: int,
    mean_heads: bool,
    lse: Tensor | None,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Column sums over the rows from each block's first on, ``[batch, (heads,) query_blocks, keys]``."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    lead, count = _heads_together(query, mean_heads)
    out = walk.new(*lead, triton.cdiv(query.shape[2], block_size), key.shape[2])
    _launch(
        kernels.suffix_key_mass_kernel, out.numel() and lead.numel() * walk.blocks_of(key.shape[2]),
        *walk.inputs, walk.lse(lse), out, *walk.strides, *walk.sizes, count, block_size, **walk.constants,
    )  # fmt: skip
    return out


def _heads_together(query: Tensor, mean_heads: bool) -> tuple[torch.Size, int]:
    """Leading axes of what is kept per head or averaged over heads, and the heads that one program adds up."""
    return query.shape[: 1 if mean_heads else 2], query.shape[1] if mean_heads else 1


@_register
def row_stats(
    query: Tensor,
    key: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp, largest logit, its key and entropy of every row, ``[batch, heads, queries]`` each."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    lse, highest, entropy = (walk.new(*query.shape[:3]) for _ in range(3))
    argmax = walk.new(*query.shape[:3], dtype=torch.int64)
    _launch(
        kernels.row_stats_kernel, walk.rows, *walk.inputs, lse, highest, argmax, entropy, *walk.strides, *walk.sizes,
        STATS=True, **walk.constants,
    )  # fmt: skip
    return lse, highest, argmax, entropy


@_register
def tile_stats(
    query: Tensor,
    key: Tensor,
    tile_rows: int,
    tile_keys: int,
    eps: float,
    lse: Tensor | None,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, maximum, visible entries below eps and visible entries, ``[batch, heads, query_tiles, key_tiles]`` each."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    shape = *query.shape[:2], triton.cdiv(query.shape[2], tile_rows), triton.cdiv(key.shape[2], tile_keys)
    total, highest = walk.new(*shape), walk.new(*shape)
    below, seen = walk.new(*shape, dtype=torch.int64), walk.new(*shape, dtype=torch.int64)
    _launch(
        kernels.tile_stats_kernel, total.numel(), *walk.inputs, walk.lse(lse), total, highest, below, seen,
        *walk.strides, *walk.sizes, tile_rows, tile_keys, eps, **walk.constants,
    )  # fmt: skip
    return total, highest, below, seen


@_register
def mass_by_distance(
    query: Tensor,
    key: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    edges: list[int],
    lse: Tensor | None,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Attention mass of every row in every band, ``[batch, heads, queries, bands]``."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    mass = walk.new(*query.shape[:3], len(edges))
    _launch_by_distance(walk, (query_places, key_places), edges, walk.lse(lse), mass, mass, logits=False)
    return mass


@_register
def logit_by_distance(
    query: Tensor,
    key: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    edges: list[int],
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Mean visible logit of every band, ``[batch, heads, bands]``; NaN for a band without visible pairs."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    shape = *query.shape[:2], triton.cdiv(query.shape[2], walk.constants["BLOCK_M"]), len(edges)
    sums, pairs = walk.new(*shape), walk.new(*shape, dtype=torch.int64)
    _launch_by_distance(walk, (query_places, key_places), edges, sums, sums, pairs, logits=True)
    return (sums.sum(2, dtype=torch.float64) / pairs.sum(2)).float()


def _launch_by_distance(
    walk: _Walk,
    places: tuple[Tensor, Tensor],
    edges: list[int],
    lse: Tensor,
    sums: Tensor,
    pairs: Tensor,
    *,
    logits: bool,
) -> None:
    bounds = torch.tensor([*edges, torch.iinfo(torch.int64).max], device=sums.device)
    _launch(
        kernels.by_distance_kernel, walk.rows, *walk.inputs, *(x.contiguous() for x in places), bounds, lse, sums,
        pairs, *walk.strides, *walk.sizes, len(edges), BANDS=triton.next_power_of_2(len(edges)), LOGITS=logits,
        **walk.constants,
    )  # fmt: skip


@_register
def submap(
    query: Tensor,
    key: Tensor,
    columns: Tensor | None,
    mean_heads: bool,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The map at chosen columns, ``[batch, (heads,) queries, columns]``, and the lse ``[batch, heads, queries]``."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    columns = _columns_by_batch(columns, query)
    width = key.shape[2] if columns is None else columns.shape[1]
    lead, count = _heads_together(query, mean_heads)
    lse = walk.lse()
    out = walk.new(*lead, query.shape[2], width)
    _launch(
        kernels.submap_kernel, walk.rows // count * walk.blocks_of(width),
        *walk.inputs, walk.key if columns is None else columns, lse, out,
        *walk.strides, width, *walk.sizes, count, width, COLUMNS=columns is not None, **walk.constants,
    )  # fmt: skip
    return out, lse


@_register
def submap_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    columns: Tensor | None,
    lse: Tensor,
    mean_heads: bool,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of query and key: every visible key takes part through the softmax, the chosen columns directly."""
    walk = _Walk.of(query, key, scale, offset, causal, window, key_mask, positions)
    columns = _columns_by_batch(columns, query)
    width = key.shape[2] if columns is None else columns.shape[1]
    if mean_heads:
        grad = (grad / query.shape[1])[:, None]
    grad = _dense_rows(grad).expand(-1, query.shape[1], -1, -1)
    shift = walk.new(*query.shape[:3])
    _launch(
        kernels.map_shift_kernel, walk.rows, *walk.inputs, walk.key if columns is None else columns, lse, grad, shift,
        *walk.strides, width, *grad.stride()[:3], *walk.sizes, width, COLUMNS=columns is not None, **walk.constants,
    )  # fmt: skip
    gradients = _Gradients(walk, lse, shift, grad, scale)
    grad_query, grad_key = walk.new(*query.shape), walk.new(*key.shape)
    gradients.launch(grad_query, grad_key, shift=True, of_map=columns is None)
    if columns is not None:
        direct_query = walk.new(*query.shape)
        direct_key = walk.new(*key.shape[:2], width, key.shape[3])
        gradients.launch(direct_query, direct_key, shift=False, of_map=True, columns=columns)
        grad_query += direct_query
        batch = torch.arange(query.shape[0], device=query.device)[:, None]
        grad_key.transpose(1, 2).index_put_((batch, columns), direct_key.transpose(1, 2), accumulate=True)
    return grad_query.to(query.dtype), grad_key.to(key.dtype)


def _columns_by_batch(columns: Tensor | None, query: Tensor) -> Tensor | None:
    return None if columns is None else columns.expand(query.shape[0], -1).contiguous()


differentiate_submap(submap, submap_backward)
