"""Softmax attention over chosen blocks of the map, and over a sliding window: check, choose, call.

Bad arguments raise TypeError or ValueError that names the argument, the rule and what came; NotImplementedError if the
implementation named does not serve the call, as `capability_table` says.
"""

import torch
from torch import Tensor

from attn.core_kernels.checks import check_query_key, check_size, check_value
from attn.core_kernels.implementations import Impl, choose_implementation
from attn.core_kernels.observe.softmax_map.api import attention_with_lse
from attn.core_kernels.sparsify.block_layout import BlockLayout
from attn.core_kernels.visibility import check_rule, hide_tokens


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention whose softmax runs over the pairs that the layout keeps and the query sees. Differentiable.

    Time grows with the number of blocks kept, memory with queries plus keys plus blocks kept. A query without a key has
    output 0 and log-sum-exp -inf. Gradients are added up in a fixed order: the same call gives the same bits.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]`` of at least one key, ``heads`` a multiple of ``key_heads``.
        value: ``[batch, key_heads, keys, value_dim]``.
        layout: made for these lengths, on this device; its heads must divide ``heads``.
        causal: hide the keys after each query; the last query is level with the last key.
        window: hide the keys at this distance and further, so that 1 leaves a query the key level with it; None for no
            limit.
        key_mask: bool ``[batch, keys]``, True where a key may be seen; what is stored at the others never matters.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
        return_lse: whether to return the log-sum-exp of the rows too, with which partial results are merged.
        impl: ``"torch"``; ``"reference"``, dense; ``"auto"`` for the best that serves the call and is not the
            reference.

    Returns:
        ``[batch, heads, queries, value_dim]`` in query's dtype, and if asked for the lse ``[batch, heads, queries]``,
        natural log, float32 (float64 for float64). Both are differentiable.
    """
    check_query_key(query, key)
    check_value(value, key)
    check_layout(layout, query, key)
    scale, visibility, key = check_rule(query, key, causal=causal, window=window, key_mask=key_mask, scale=scale)
    if not isinstance(return_lse, bool):
        raise TypeError(f"return_lse must be a bool, got {type(return_lse).__name__}")
    if key_mask is not None:
        value = hide_tokens(value, key_mask)
    chosen = choose_implementation("block_sparse_attention", impl, query, key, value)
    if chosen == "reference":
        from attn.core_kernels.sparsify.block_sparse import reference

        with torch.autocast(query.device.type, enabled=False):
            out, lse = reference.block_sparse_attention(query, key, value, layout, scale, visibility)
    else:
        from attn.core_kernels.sparsify.block_sparse import gathered

        of_layout = layout.tables(), layout.block_size, layout.batch, layout.heads
        out, lse = gathered.block_sparse_attention(query, key, value, key_mask, *of_layout, scale, causal, window)
    return (out, lse) if return_lse else out


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention over the keys nearer than ``window`` to each query. Differentiable.

    Time grows with queries times window, memory with queries plus keys: no copies of keys are gathered.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]`` of at least one key, ``heads`` a multiple of ``key_heads``.
        value: ``[batch, key_heads, keys, value_dim]``.
        window: tokens, at least 1, the query's own counted: a query sees ``window`` keys if causal, ``2 * window - 1``
            if not. The last query is level with the last key.
        causal: hide the keys after each query.
        key_mask: bool ``[batch, keys]``, True where a key may be seen; what is stored at the others never matters.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
        impl: ``"torch"``; ``"reference"``, dense; ``"auto"`` for the best that serves the call and is not the
            reference.

    Returns:
        ``[batch, heads, queries, value_dim]`` in query's dtype; 0 for a query that sees no key.
    """
    check_query_key(query, key)
    check_value(value, key)
    check_size("window", window)
    chosen = choose_implementation("windowed_attention", impl, query, key, value)
    rule = {"causal": causal, "window": window, "key_mask": key_mask, "scale": scale}
    return attention_with_lse(query, key, value, impl=chosen, **rule)[0]  # type: ignore[arg-type]


def check_layout(layout: BlockLayout, query: Tensor, key: Tensor) -> None:
    """Require a layout made for the lengths, batch, heads and device of a query and key that were checked.

    Raises:
        TypeError: if it is no `BlockLayout`.
        ValueError: if it does not fit.
    """
    if not isinstance(layout, BlockLayout):
        raise TypeError(f"layout must be a BlockLayout, got {type(layout).__name__}")
    lengths, made_for = (query.shape[2], key.shape[2]), (layout.num_queries, layout.num_keys)
    if lengths != made_for:
        raise ValueError(
            f"layout must be made for {lengths[0]} queries and {lengths[1]} keys, got one for {made_for[0]} and "
            f"{made_for[1]}"
        )
    if layout.batch not in (1, query.shape[0]):
        raise ValueError(f"layout must have batch 1 or {query.shape[0]}, got {layout.batch}")
    if query.shape[1] % layout.heads:
        raise ValueError(f"layout must have a number of heads that divides {query.shape[1]}, got {layout.heads}")
    if layout.device != query.device:
        raise ValueError(f"layout must be on query's device {query.device}, got {layout.device}")
