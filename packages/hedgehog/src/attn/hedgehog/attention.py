"""Linear attention with feature maps (section 3 of the paper), and the layer that learns it from softmax attention."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from attn.core_kernels import LinearState, linear_attention, linear_attention_step
from attn.hedgehog.feature_maps import FeatureMap
from attn.hedgehog.losses import attention_cross_entropy, output_mse

Mode = Literal["softmax", "distill", "linear"]
Objective = Literal["cross_entropy", "output_mse"]


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
        """The attention output and, when causal, the state from which the next tokens go on.

        Args:
            query: ``[batch, heads, tokens, head_dim]``, after rotary embedding if the model has one.
            key: ``[batch, key_value_heads, tokens, head_dim]``; grouped heads are repeated before the map, as the maps
                belong to query heads.
            value: ``[batch, key_value_heads, tokens, value_dim]``.
            causal: each token sees itself and those before it; otherwise all tokens see all.
            key_mask: ``[batch, tokens]``, True where a token is visible; None is everywhere. The rows of the others
                are zero.
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
        if state is not None and positions is None and self.query_map.uses_positions:
            raise ValueError("positions must be given with a state to a map that uses them, got None")
        key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
        query_features, key_features = self.query_map(query, positions), self.key_map(key, positions)
        if not causal:
            out = linear_attention(query_features, key_features, value, causal=False, key_mask=key_mask)
            return cast(Tensor, out), None
        if state is not None and query.shape[-2] == 1:
            if key_mask is not None:
                hidden = ~key_mask[:, None, :, None]
                query_features, key_features, value = (
                    x.masked_fill(hidden, 0) for x in (query_features, key_features, value)
                )
            return linear_attention_step(query_features, key_features, value, state)
        result = linear_attention(
            query_features, key_features, value, key_mask=key_mask, state=state, return_state=True
        )
        return cast(tuple[Tensor, LinearState], result)


class ConvertedAttention(LinearAttention):
    """An attention that is softmax, learns from softmax, or is linear, by its `mode`.

    - ``"linear"``: `LinearAttention`.
    - ``"softmax"``: the attention that it was converted from, without state.
    - ``"distill"``: returns the softmax output, so that every layer sees the activations of the original model, and
      records the loss of the linear weights (teacher forcing, section 4.2).

    Args:
        query_map: phi_q.
        key_map: phi_k.
        mode: see above.

    Attributes:
        distillation_objective: ``"cross_entropy"`` of attention weights (the paper's) or ``"output_mse"`` (LoLCATs').
        distillation_loss: of the latest forward in mode ``"distill"``; a scalar with gradient in the maps.
        teacher_entropy: of the softmax rows in that forward, in nats; None for ``"output_mse"``.
    """

    def __init__(self, query_map: FeatureMap, key_map: FeatureMap, *, mode: Mode = "linear") -> None:
        super().__init__(query_map, key_map)
        self.mode: Mode = mode
        self.distillation_objective: Objective = "cross_entropy"
        self.distillation_loss: Tensor | None = None
        self.teacher_entropy: Tensor | None = None

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
        scale: float | None = None,
    ) -> tuple[Tensor, LinearState | None]:
        """As `LinearAttention.forward`; `scale` is that of the softmax scores, by default ``head_dim ** -0.5``.

        Raises:
            ValueError: if a state is given in another mode than ``"linear"``.
        """
        if self.mode == "linear":
            return super().forward(
                query, key, value, causal=causal, key_mask=key_mask, positions=positions, state=state
            )
        if state is not None:
            raise ValueError(f"state must be None in mode {self.mode!r}, got a state")
        out = softmax_attention(query, key, value, causal=causal, key_mask=key_mask, scale=scale)
        if self.mode == "distill":
            self.record_distillation(
                query, key, value, out, causal=causal, key_mask=key_mask, positions=positions, scale=scale
            )
        return out, None

    def record_distillation(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        teacher_output: Tensor,
        *,
        causal: bool,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        """Set `distillation_loss` and `teacher_entropy` for one forward of the softmax teacher.

        Only the maps get a gradient.

        Args:
            query: ``[batch, heads, tokens, head_dim]``, as the teacher's scores use it.
            key: ``[batch, key_value_heads, tokens, head_dim]``.
            value: ``[batch, key_value_heads, tokens, value_dim]``; read by ``"output_mse"`` only.
            teacher_output: ``[batch, heads, tokens, value_dim]``; read by ``"output_mse"`` only.
            causal: each token sees itself and those before it.
            key_mask: ``[batch, tokens]``, False at padding, whose keys and rows count for nothing.
            positions: of the tokens, for maps that use them.
            scale: of the softmax scores; None is ``head_dim ** -0.5``.
        """
        query, key, value = query.detach(), key.detach(), value.detach()
        if self.distillation_objective == "output_mse":
            out, _ = super().forward(query, key, value, causal=causal, key_mask=key_mask, positions=positions)
            self.distillation_loss = output_mse(out, teacher_output.detach(), row_mask=key_mask)
            self.teacher_entropy = None
            return
        features = self.query_map(query, positions), self.key_map(repeat_heads(key, query.shape[1]), positions)
        rows = attention_cross_entropy(query, key, *features, scale=scale, causal=causal, key_mask=key_mask)
        self.distillation_loss, self.teacher_entropy = rows


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The teacher: PyTorch's scaled dot-product attention with a padding mask ``[batch, tokens]``, True at keys."""
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    if key_mask is None:
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    visible = key_mask[:, None, None, :].expand(-1, 1, query.shape[-2], -1)
    if causal:
        visible = visible & torch.ones(visible.shape[-2:], dtype=torch.bool, device=query.device).tril()
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each key/value head for its group of query heads: ``[batch, heads, tokens, width]``.

    Raises:
        ValueError: if heads is no multiple of x's.
    """
    groups, rest = divmod(heads, x.shape[1])
    if rest:
        raise ValueError(f"heads must be a multiple of the {x.shape[1]} key/value heads, got {heads}")
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def hedgehog_layers(model: nn.Module) -> list[ConvertedAttention]:
    """The converted attentions of a model, in the order in which it registers them.

    Raises:
        ValueError: if the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, ConvertedAttention)]
    if not layers:
        raise ValueError(f"model must have converted attention layers, got a {type(model).__name__} without any")
    return layers
