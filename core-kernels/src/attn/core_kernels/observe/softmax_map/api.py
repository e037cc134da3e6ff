"""The public observe operators: statistics and parts of the softmax map that never store the whole of it.

All see the map ``A = softmax(scale * query @ key.T)`` over the keys that `Visibility` lets a query see. A row that sees
no key is zero in the map: output and mass 0, log-sum-exp -inf. Statistics are float32, float64 for float64 arguments,
under autocast too. The arguments that all share are described in `attention_with_lse`. Bad arguments raise TypeError or
ValueError that names the argument, the rule and what came; NotImplementedError if the implementation named does not
serve the call, as `capability_table` says.
"""
# ruff: noqa: D417 (arguments that all operators share are described once)

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from attn.core_kernels.checks import (
    check_indices,
    check_number,
    check_places,
    check_query_key,
    check_size,
    check_value,
)
from attn.core_kernels.implementations import Impl, choose_implementation
from attn.core_kernels.observe.softmax_map import blockwise, reference, sdpa
from attn.core_kernels.observe.softmax_map.results import KeyMoments, RowStats, TileStats
from attn.core_kernels.visibility import Visibility, check_rule, hide_tokens, make_visibility

Reduce = Literal["none", "mean_heads"]


def attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention output ``A @ value`` and the log-sum-exp of the visible logits of every row. Differentiable, both.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]`` of at least one key, ``heads`` a multiple of ``key_heads``.
        value: ``[batch, key_heads, keys, value_dim]``.
        causal: hide the keys after each query; the last query is level with the last key, so that query ``i`` sees key
            ``j`` if ``j <= i + keys - queries``.
        window: hide the keys at this distance and further, so that 1 leaves a query the key level with it; a causal
            window of ``w`` is at most ``w`` keys. None for no limit.
        key_mask: bool ``[batch, keys]``, True where a key may be seen; what is stored at the others never matters.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
        impl: ``"torch"``, whose memory grows with queries plus keys and with what is returned; ``"reference"``, dense
            and always differentiable; ``"auto"`` for the best that serves the call and is not the reference.

    Returns:
        Output ``[batch, heads, queries, value_dim]`` in query's dtype, and lse ``[batch, heads, queries]``, natural
        log. The kernel behind scaled_dot_product_attention computes both if it can (no window, as many queries as keys
        if causal, one head_dim; on CUDA half precision and no key mask): with ``"torch"``, and with ``"auto"`` also on
        CUDA if no gradient is asked for. On CPU its lse is good to about 1e-4 for bfloat16 and float16.
    """
    check_query_key(query, key)
    check_value(value, key)
    scale, visibility, key = check_rule(query, key, causal=causal, window=window, key_mask=key_mask, scale=scale)
    if key_mask is not None:
        value = hide_tokens(value, key_mask)
    chosen = choose_implementation("attention_with_lse", impl, query, key, value)
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if impl == "auto" and not needs_gradient and sdpa.serves(query, value, *visibility.as_arguments()):
        chosen = "torch"  # which calls PyTorch's kernel; its backward, blockwise, is the slower one
    if chosen == "reference":
        return reference.attention_with_lse(query, key, value, scale, visibility)
    return _registered(chosen).attention_with_lse(query, key, value, scale, *visibility.as_arguments())


def key_mass(
    query: Tensor,
    key: Tensor,
    row_weights: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Weighted column sums of the map: ``mass_j = sum_i row_weights_i A_ij``, the attention that key ``j`` receives.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        lse: ``[batch, heads, queries]``, what `attention_with_lse` gives for the same arguments, if it is known; it
            saves a pass over the map.
        row_weights: ``[queries]``, ``[batch or 1, heads or 1, queries]``, or several sets of weights at once,
            ``[batch or 1, heads or 1, sets, queries]``; None for ones. Zero leaves a row out, e.g. a padded query.

    Returns:
        ``[batch, heads, keys]``, with an axis ``sets`` before the last if the weights have one. The reference is
        differentiable; it must be asked for.
    """
    weights, squeeze = _row_weights(query, key, row_weights)
    mass, _ = _key_moments("key_mass", query, key, weights, False, causal, window, key_mask, scale, lse, impl)
    return mass.squeeze(2) if squeeze else mass


def key_moments(
    query: Tensor,
    key: Tensor,
    row_weights: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    impl: Impl = "auto",
) -> KeyMoments:
    """Mean and variance of the attention that each key receives from the rows that see it, as sums.

    ``weight_j``, ``mass_j`` and ``square_j`` are the sums over rows ``i`` that see ``j`` of ``row_weights_i`` times 1,
    ``A_ij`` and ``A_ij ** 2``; ``mean`` and ``variance`` of the result follow. With ``causal``, and weights of 0 at
    padded queries, ``mean`` is the received attention averaged over the tokens from ``j`` on, of which there are n - j.

    Args:
        query, key, row_weights, lse: as for `key_mass`.
    """
    weights, squeeze = _row_weights(query, key, row_weights)
    mass, square = _key_moments("key_moments", query, key, weights, True, causal, window, key_mask, scale, lse, impl)
    visibility = make_visibility(query, key, causal=causal, window=window, key_mask=key_mask)
    weight = visibility.sum_seeing_rows(weights.to(mass.dtype)).expand_as(mass)
    moments = weight, mass, square
    return KeyMoments(*(x.squeeze(2) for x in moments)) if squeeze else KeyMoments(*moments)


def suffix_key_mass(
    query: Tensor,
    key: Tensor,
    *,
    block_size: int,
    reduce: Reduce = "none",
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Column sums over row suffixes: entry ``[b, j]`` is ``sum of A_ij over rows i >= b * block_size``.

    Differences of two of them are column sums over any run of row blocks.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        lse: ``[batch, heads, queries]``, what `attention_with_lse` gives for the same arguments, if it is known; it
            saves a pass over the map.
        block_size: rows from one suffix to the next.
        reduce: ``"none"``, or ``"mean_heads"`` for the mean over heads, which is all that is then stored.

    Returns:
        ``[batch, heads, ceil(queries / block_size), keys]``, without ``heads`` for the mean.
    """
    scale, visibility, key = _checked(query, key, causal, window, key_mask, scale)
    check_size("block_size", block_size)
    mean_heads = _mean_heads(reduce)
    lse = _checked_lse(lse, query)
    chosen = choose_implementation("suffix_key_mass", impl, query, key)
    if chosen == "reference":
        mass = reference.suffix_key_mass(query, key, block_size, scale, visibility)
        return mass.mean(1) if mean_heads else mass
    return _registered(chosen).suffix_key_mass(
        query, key, block_size, mean_heads, lse, scale, *visibility.as_arguments()
    )


def row_stats(
    query: Tensor,
    key: Tensor,
    *,
    span: tuple[int, int] | None = None,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> RowStats:
    """Log-sum-exp, largest logit, its key and entropy of every row of the map.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        span: ``(start, stop)``: use the keys from start to stop - 1 alone, normalised over them. The mass of the span
            in the whole row is ``exp(lse of the span - lse of the row)``. None for all keys.
    """
    scale, visibility, key = _checked(query, key, causal, window, key_mask, scale)
    start, stop = _checked_span(span, key.shape[2])
    visibility, key = visibility.select_span(start, stop), key[:, :, start:stop]
    chosen = choose_implementation("row_stats", impl, query, key)
    if chosen == "reference":
        stats = reference.row_stats(query, key, scale, visibility)
    else:
        stats = RowStats(*_registered(chosen).row_stats(query, key, scale, *visibility.as_arguments()))
    return stats._replace(argmax=torch.where(stats.argmax < 0, -1, stats.argmax + start))


def submap(
    query: Tensor,
    key: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    reduce: Reduce = "none",
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The map at chosen rows and columns, normalised over all visible keys. Differentiable.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        rows: int64 indices of queries, ``[rows]`` or ``[batch, rows]``, in any order; None for all.
        columns: int64 indices of keys, ``[columns]`` or ``[batch, columns]``; None for all.
        reduce: ``"none"``, or ``"mean_heads"`` for the mean over heads, which is all that is then stored.

    Returns:
        ``[batch, heads, rows, columns]``, without ``heads`` for the mean.
    """
    scale, visibility, key = _checked(query, key, causal, window, key_mask, scale)
    rows = check_indices("rows", rows, query)
    columns = check_indices("columns", columns, key)
    mean_heads = _mean_heads(reduce)
    if rows is not None:
        visibility = visibility.select_rows(rows)
        query = query.gather(2, rows[:, None, :, None].expand(*query.shape[:2], -1, query.shape[3]))
    chosen = choose_implementation("submap", impl, query, key)
    if chosen == "reference":
        return reference.submap(query, key, columns, mean_heads, scale, visibility)
    return _registered(chosen).submap(query, key, columns, mean_heads, scale, *visibility.as_arguments())[0]


def mean_map(
    query: Tensor,
    key: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The map averaged over heads, which are added up one after another. Differentiable.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.

    Returns:
        ``[batch, queries, keys]``.
    """
    return submap(
        query,
        key,
        reduce="mean_heads",
        causal=causal,
        window=window,
        key_mask=key_mask,
        scale=scale,
        impl=impl,
    )


def tile_stats(
    query: Tensor,
    key: Tensor,
    *,
    block_size: int | tuple[int, int],
    eps: float,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    impl: Impl = "auto",
) -> TileStats:
    """Sum, maximum, number of visible entries below ``eps`` and of visible entries, for each tile of the map.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        lse: ``[batch, heads, queries]``, what `attention_with_lse` gives for the same arguments, if it is known; it
            saves a pass over the map.
        block_size: rows and columns of a tile, one number for both or a pair; the last tiles may be ragged.
        eps: probability; note that the mean of a row is ``1 / keys``.
    """
    scale, visibility, key = _checked(query, key, causal, window, key_mask, scale)
    block = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(block) != 2:
        raise ValueError(f"block_size must be one size or two, got {len(block)}")
    for size in block:
        check_size("block_size", size)
    check_number("eps", eps)
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], got {eps}")
    lse = _checked_lse(lse, query)
    chosen = choose_implementation("tile_stats", impl, query, key)
    if chosen == "reference":
        return reference.tile_stats(query, key, block, eps, scale, visibility)
    return TileStats(
        *_registered(chosen).tile_stats(query, key, *block, float(eps), lse, scale, *visibility.as_arguments())
    )


def mass_by_distance(
    query: Tensor,
    key: Tensor,
    edges: Sequence[int],
    *,
    places: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention mass of every row in bands of distance between query and key.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        lse: ``[batch, heads, queries]``, what `attention_with_lse` gives for the same arguments, if it is known; it
            saves a pass over the map.
        edges: increasing distances, 0 or more: band ``b`` holds those from ``edges[b]`` to ``edges[b + 1] - 1``, the
            last band all from ``edges[-1]`` on. ``(0, w + 1)`` parts the keys up to ``w`` away from the rest.
        places: int64 ``[keys]``: where each key stands on the axis on which distance is measured, e.g. its frame; a
            negative place is in no band. Queries stand where the last keys do. None for the token's index.

    Returns:
        ``[batch, heads, queries, bands]``.
    """
    scale, visibility, key = _checked(query, key, causal, window, key_mask, scale)
    edges, both = _checked_edges(edges), check_places(places, query, key)
    lse = _checked_lse(lse, query)
    chosen = choose_implementation("mass_by_distance", impl, query, key)
    if chosen == "reference":
        return reference.mass_by_distance(query, key, both, edges, scale, visibility)
    return _registered(chosen).mass_by_distance(query, key, *both, edges, lse, scale, *visibility.as_arguments())


def logit_by_distance(
    query: Tensor,
    key: Tensor,
    edges: Sequence[int],
    *,
    places: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Mean visible logit, ``scale * query . key``, in bands of distance between query and key.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        edges: as for `mass_by_distance`.
        places: as for `mass_by_distance`.

    Returns:
        ``[batch, heads, bands]``; NaN for a band without a visible pair.
    """
    scale, visibility, key = _checked(query, key, causal, window, key_mask, scale)
    edges, both = _checked_edges(edges), check_places(places, query, key)
    chosen = choose_implementation("logit_by_distance", impl, query, key)
    if chosen == "reference":
        return reference.logit_by_distance(query, key, both, edges, scale, visibility)
    return _registered(chosen).logit_by_distance(query, key, *both, edges, scale, *visibility.as_arguments())


def _key_moments(
    operator: str,
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    squares: bool,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    scale: float | None,
    lse: Tensor | None,
    impl: Impl,
) -> tuple[Tensor, Tensor]:
    scale, visibility, key = _checked(query, key, causal, window, key_mask, scale)
    lse = _checked_lse(lse, query)
    chosen = choose_implementation(operator, impl, query, key, weights[..., :1])  # their last axis is no head_dim
    if chosen == "reference":
        return reference.key_moments(query, key, weights, scale, visibility)
    return _registered(chosen).key_moments(query, key, weights, lse, squares, scale, *visibility.as_arguments())


def _registered(chosen: str) -> Any:
    """The module whose registered operators compute."""
    if chosen == "triton":
        from attn.core_kernels.observe.softmax_map import launch

        return launch
    return blockwise


def _checked(
    query: Tensor, key: Tensor, causal: bool, window: int | None, key_mask: Tensor | None, scale: float | None
) -> tuple[float, Visibility, Tensor]:
    check_query_key(query, key)
    return check_rule(query, key, causal=causal, window=window, key_mask=key_mask, scale=scale)


def _row_weights(query: Tensor, key: Tensor, row_weights: Tensor | None) -> tuple[Tensor, bool]:
    """Weights as ``[batch or 1, heads or 1, sets, queries]``, and whether the axis of sets is to be removed again."""
    check_query_key(query, key)
    batch, heads, queries = query.shape[:3]
    if row_weights is None:
        precision = torch.promote_types(query.dtype, torch.float32)
        return torch.ones(1, 1, 1, queries, dtype=precision, device=query.device), True
    if not isinstance(row_weights, Tensor) or not row_weights.is_floating_point():
        got = row_weights.dtype if isinstance(row_weights, Tensor) else type(row_weights).__name__
        raise TypeError(f"row_weights must be a floating-point tensor, got {got}")
    shape = row_weights.shape
    fits = len(shape) in (1, 3, 4) and shape[-1] == queries
    if not fits or (len(shape) > 1 and (shape[0] not in (1, batch) or shape[1] not in (1, heads))):
        raise ValueError(
            f"row_weights must have shape [{queries}], [{batch} or 1, {heads} or 1, {queries}] or "
            f"[{batch} or 1, {heads} or 1, sets, {queries}], got {list(shape)}"
        )
    if row_weights.device != query.device:
        raise ValueError(f"row_weights must be on query's device {query.device}, got {row_weights.device}")
    if len(shape) == 4:
        return row_weights, False
    return (row_weights[None, None, None] if len(shape) == 1 else row_weights[:, :, None]), True


def _checked_lse(lse: Tensor | None, query: Tensor) -> Tensor | None:
    if lse is None:
        return None
    precision = torch.promote_types(query.dtype, torch.float32)
    if not isinstance(lse, Tensor) or lse.dtype != precision:
        got = lse.dtype if isinstance(lse, Tensor) else type(lse).__name__
        raise TypeError(f"lse must be a tensor of dtype {precision}, got {got}")
    if lse.shape != query.shape[:3]:
        raise ValueError(
            f"lse must have shape [batch, heads, queries] = {list(query.shape[:3])}, got {list(lse.shape)}"
        )
    if lse.device != query.device:
        raise ValueError(f"lse must be on query's device {query.device}, got {lse.device}")
    return lse.detach()


def _mean_heads(reduce: str) -> bool:
    if reduce not in ("none", "mean_heads"):
        raise ValueError(f"reduce must be 'none' or 'mean_heads', got {reduce!r}")
    return reduce == "mean_heads"


def _checked_span(span: tuple[int, int] | None, keys: int) -> tuple[int, int]:
    if span is None:
        return 0, keys
    if len(span) != 2 or not all(isinstance(end, int) for end in span):
        raise TypeError(f"span must be a pair of integers, got {span!r}")
    start, stop = span
    if not 0 <= start < stop <= keys:
        raise ValueError(f"span must satisfy 0 <= start < stop <= {keys}, got {span}")
    return start, stop


def _checked_edges(edges: Sequence[int]) -> list[int]:
    edges = list(edges)
    if not edges or not all(isinstance(edge, int) for edge in edges):
        raise TypeError(f"edges must be at least one integer, got {edges!r}")
    if edges[0] < 0 or any(after <= before for before, after in pairwise(edges)):
        raise ValueError(f"edges must increase from 0 or more, got {edges}")
    return edges
