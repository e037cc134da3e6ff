"""What the feature maps are trained with: softmax mimicry (section 4.2 of the paper) and LoLCATs' output matching."""

from typing import NamedTuple

from torch import Tensor

from attn.core_kernels import mimicry_cross_entropy


class AttentionCrossEntropy(NamedTuple):
    """The distillation loss of one layer, in nats, averaged over batch, heads and visible rows.

    Attributes:
        cross_entropy: of the linear weights under the softmax weights; differentiable in the features.
        teacher_entropy: of the softmax weights, the least that the cross-entropy can be; no gradient.
    """

    cross_entropy: Tensor
    teacher_entropy: Tensor

    @property
    def kl(self) -> Tensor:
        """The Kullback-Leibler divergence of the linear weights from the softmax weights; no gradient."""
        return self.cross_entropy.detach() - self.teacher_entropy


def attention_cross_entropy(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    key_mask: Tensor | None = None,
) -> AttentionCrossEntropy:
    r"""Attention-weight distillation: soft-label cross-entropy of linear under softmax attention weights.

    .. math:: L = -\operatorname{mean}_{b, h, i} \sum_j a_{ij} \log s_{ij}, \quad
        a_{ij} = \operatorname{softmax}_j(q_i^\top k_j / \sqrt d), \quad
        s_{ij} = \phi_q(q_i)^\top \phi_k(k_j) \Big/ \sum_m \phi_q(q_i)^\top \phi_k(k_m)

    The weights are never stored: memory is linear in tokens.

    Args:
        query: the teacher's, ``[batch, heads, tokens, head_dim]``.
        key: the teacher's, ``[batch, key_value_heads, tokens, head_dim]``.
        query_features: ``[batch, heads, tokens, num_features]``.
        key_features: ``[batch, heads, tokens, num_features]``.
        scale: of the teacher's scores; None is ``head_dim ** -0.5``.
        causal: a row sees its own and earlier keys; otherwise all.
        key_mask: ``[batch, tokens]``, False at padding, whose keys and rows count for nothing.

    Returns:
        Means in float32 (float64 for float64); both are 0 if no row is visible.
    """
    rows = mimicry_cross_entropy(
        query, key, query_features, key_features, scale=scale, causal=causal, key_mask=key_mask
    )
    return AttentionCrossEntropy(
        _mean_over_rows(rows.cross_entropy, key_mask), _mean_over_rows(rows.teacher_entropy, key_mask).detach()
    )


def output_mse(
    output: Tensor, teacher_output: Tensor, *, factor: float = 1000.0, row_mask: Tensor | None = None
) -> Tensor:
    """LoLCATs' alternative to Hedgehog's loss: `factor` times the mean squared difference of the attention outputs.

    Args:
        output: of linear attention, ``[batch, heads, tokens, value_dim]``, before the output projection.
        teacher_output: of softmax attention, of the same shape.
        factor: LoLCATs' weight is 1000.
        row_mask: ``[batch, tokens]``, False at padding, whose rows count for nothing.

    Raises:
        ValueError: if the shapes differ.
    """
    if output.shape != teacher_output.shape:
        raise ValueError(
            f"teacher_output must have output's shape {tuple(output.shape)}, got {tuple(teacher_output.shape)}"
        )
    squares = (output.float() if output.dtype.itemsize < 4 else output).sub(teacher_output).square().mean(dim=-1)
    return factor * _mean_over_rows(squares, row_mask)


def _mean_over_rows(rows: Tensor, row_mask: Tensor | None) -> Tensor:
    """Mean of ``[batch, heads, tokens]`` over the rows where the ``[batch, tokens]`` mask is True."""
    if row_mask is None:
        return rows.mean()
    visible = row_mask.unsqueeze(1).expand_as(rows)
    return rows.masked_fill(~visible, 0).sum() / visible.sum().clamp(min=1)
