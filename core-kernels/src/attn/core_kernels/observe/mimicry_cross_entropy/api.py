"""The public function of the mimicry cross-entropy: check, choose, call."""

from typing import NamedTuple

import torch
from torch import Tensor

from attn.core_kernels import checks
from attn.core_kernels.implementations import Impl, choose_implementation


class MimicryRows(NamedTuple):
    """Row by row, in nats and float32 (float64 for float64).

    Args:
        cross_entropy: ``[batch, heads, tokens]``, of the student's weights under the teacher's.
        teacher_entropy: ``[batch, heads, tokens]``; their difference is the Kullback-Leibler divergence.
    """

    cross_entropy: Tensor
    teacher_entropy: Tensor


def mimicry_cross_entropy(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    key_mask: Tensor | None = None,
    eps: float = 1e-12,
    row_chunk: int = 128,
    impl: Impl = "auto",
) -> MimicryRows:
    r"""Cross-entropy of linear attention's weights under softmax attention's, without storing either map.

    .. math:: L_i = -\sum_j a_{ij} \log \max(s_{ij}, \epsilon), \quad
              a_i = \mathrm{softmax}_j(\text{scale} \cdot q_i^\top k_j), \quad
              s_{ij} = \frac{\phi(q_i)^\top \phi(k_j)}{\sum_m \phi(q_i)^\top \phi(k_m)}

    This is the attention-weight distillation loss of The Hedgehog & the Porcupine (section 4.2 of Zhang et al., 2024).
    The sums run over the visible keys: not masked and, if ``causal``, not later than the row. A row whose own token is
    masked is zero. A student's row that sums to zero has zero weights.

    The teacher is a constant: gradients reach the features only. Where a student's weight is below ``eps`` it is held
    there and passes no gradient, as in ``clamp``.

    Args:
        query: the teacher's queries, ``[batch, heads, tokens, head_dim]``.
        key: the teacher's keys, ``[batch, key_heads, tokens, head_dim]``, ``heads`` a multiple of ``key_heads``.
        query_features: ``[batch, heads, tokens, features]``.
        key_features: ``[batch, feature_heads, tokens, features]``, ``heads`` a multiple of ``feature_heads``.
        scale: of the teacher's scores; ``head_dim ** -0.5`` by default.
        causal: whether a token sees itself and earlier ones only, rather than all.
        key_mask: boolean ``[batch, tokens]``, True where a token is visible.
        eps: least weight of the student before the logarithm; 1e-12 by default.
        row_chunk: rows of the maps held at once; changes time and rounding only. Memory grows with
            ``row_chunk * tokens``.
        impl: ``"auto"``, ``"reference"`` (stores both maps) or ``"torch"``.

    Returns:
        `MimicryRows`; ``cross_entropy`` is differentiable once in the features.

    Raises:
        TypeError: if an argument has another type or dtype than stated.
        ValueError: if shapes or devices disagree or a number is out of its range.
        NotImplementedError: if the implementation that ``impl`` names does not serve the call.
    """
    checks.check_query_key(query, key, same_tokens=True)
    checks.check_query_key(query_features, key_features, same_tokens=True, names=("query_features", "key_features"))
    if query_features.shape[:3] != query.shape[:3]:
        raise ValueError(
            f"query_features must have query's batch, heads and tokens {list(query.shape[:3])}, "
            f"got {list(query_features.shape)}"
        )
    if query_features.device != query.device:
        raise ValueError(f"query_features must be on query's device {query.device}, got {query_features.device}")
    scale = checks.check_scale(scale, query.shape[3])
    checks.check_key_mask(key_mask, key)
    checks.check_positive("eps", eps)
    checks.check_size("row_chunk", row_chunk)
    chosen = choose_implementation("mimicry_cross_entropy", impl, query, key, query_features, key_features)

    query, key = query.detach(), key.detach()
    if key_mask is not None:  # whatever padding holds, it must not reach a product
        hidden = ~key_mask[:, None, :, None]
        query, key, query_features, key_features = (
            x.masked_fill(hidden, 0) for x in (query, key, query_features, key_features)
        )
    with torch.autocast(query.device.type, enabled=False):
        if chosen == "reference":
            from attn.core_kernels.observe.mimicry_cross_entropy import reference

            rows = reference.row_entropies(query, key, query_features, key_features, key_mask, scale, causal, eps)
        else:
            from attn.core_kernels.observe.mimicry_cross_entropy import row_blocks

            rows = row_blocks.row_entropies(
                query, key, query_features, key_features, key_mask, scale, causal, eps, row_chunk
            )[:2]
    return MimicryRows(*rows)
