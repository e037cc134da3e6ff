"""Linear attention with feature maps (section 3.1 of the paper), in parallel and recurrent form."""

from torch import Tensor, nn

from attn.core_kernels import LinearState, linear_attention, linear_attention_step
from attn.hedgehog.feature_maps import FeatureMap


class LinearAttention(nn.Module):
    r"""Attention whose weights are normalized dot products of features.

    .. math:: y_i = \sum_j w_{ij} v_j \Big/ \Big(\sum_j w_{ij} + 10^{-12}\Big), \quad
        w_{ij} = \phi_q(q_i)^\top \phi_k(k_j)

    The sums run over the visible keys, ``j <= i`` when causal. There is no factor ``1 / sqrt(head_dim)``: the maps
    absorb it. Time and memory grow linearly with tokens.

    Args:
        query_map: phi_q.
        key_map: phi_k, with as many features.

    Raises:
        ValueError: if the maps' numbers of features differ.
    """

    def __init__(self, query_map: FeatureMap, key_map: FeatureMap) -> None:
        super().__init__()
        if query_map.num_features != key_map.num_features:
            sizes = f"{query_map.num_features} and {key_map.num_features}"
            raise ValueError(f"query_map and key_map must have the same number of features, got {sizes}")
        self.query_map = query_map
        self.key_map = key_map

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: LinearState | None = None,
    ) -> tuple[Tensor, LinearState | None]:
        """`mapped_attention` with these maps."""
        return mapped_attention(
            self.query_map,
            self.key_map,
            query,
            key,
            value,
            causal=causal,
            key_mask=key_mask,
            positions=positions,
            state=state,
        )


def mapped_attention(
    query_map: FeatureMap,
    key_map: FeatureMap,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None = None,
    positions: Tensor | None = None,
    state: LinearState | None = None,
) -> tuple[Tensor, LinearState | None]:
    """The attention output and, when causal, the state from which the next tokens go on.

    Args:
        query_map: phi_q.
        key_map: phi_k.
        query: ``[batch, heads, tokens, head_dim]``, after rotary embedding if the model has one.
        key: ``[batch, key_value_heads, tokens, head_dim]``; grouped heads are repeated before the map, as the maps
            belong to query heads.
        value: ``[batch, key_value_heads, tokens, value_dim]``.
        causal: each token sees itself and those before it; otherwise all tokens see all.
        key_mask: ``[batch, tokens]``, True where a key is visible; None is everywhere.
        positions: of the tokens, ``[tokens]`` or ``[batch, tokens]``, for maps that use them; must be given with a
            state then.
        state: sums over the tokens before these; only with causal.

    Returns:
        The output ``[batch, heads, tokens, value_dim]`` in value's dtype, summed in float32 (float64 for float64),
        and the state, None unless causal.

    Raises:
        ValueError: if a state is given without causal, or without positions to a map that uses them.
    """
    if state is not None and not causal:
        raise ValueError("state must be None when causal is False, got a state")
    if state is not None and positions is None and query_map.uses_positions:
        raise ValueError("positions must be given with a state to a map that uses them, got None")
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    query_features, key_features = query_map(query, positions), key_map(key, positions)
    summed = value.to(query_features.dtype)
    if not causal:
        return linear_attention(query_features, key_features, summed, causal=False, key_mask=key_mask).to(
            value.dtype
        ), None
    if state is not None and query.shape[-2] == 1:
        if key_mask is not None:
            key_features = key_features * key_mask[:, None, :, None]
        out, state = linear_attention_step(query_features, key_features, summed, state)
    else:
        out, state = linear_attention(
            query_features, key_features, summed, causal=True, key_mask=key_mask, state=state, return_state=True
        )
    return out.to(value.dtype), state


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each key/value head for its group of query heads: ``[batch, heads, tokens, width]``.

    Raises:
        ValueError: if heads is no multiple of x's.
    """
    groups, rest = divmod(heads, x.shape[1])
    if rest:
        raise ValueError(f"heads must be a multiple of the {x.shape[1]} key/value heads, got {heads}")
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)
