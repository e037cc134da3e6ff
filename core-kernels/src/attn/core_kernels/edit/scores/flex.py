"""The edits before the softmax by FlexAttention."""

import torch
from torch import Tensor

from attn.core_kernels.edit.arguments import Attention
from attn.core_kernels.edit.scores.decay import Decay
from attn.core_kernels.flex import Edit, attend


def _attend(attention: Attention, edit: Edit) -> Tensor:
    rows = attention.query, attention.key, attention.value
    return attend(*rows, attention.scale, attention.visibility, edit=edit)[0]


def decay_outside_window(attention: Attention, places: tuple[Tensor, Tensor], decay: Decay) -> Tensor:
    """Positive scores times the factor of their distance."""
    of_query, of_key = places
    # A tensor, for FlexAttention compiles numbers into its kernel, and refuses them once they have changed.
    numbers = decay.numbers(attention.precision, attention.query.device)

    def edit(score: Tensor, _b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(score > 0, score * decay.factor(of_query[i], of_key[j], numbers).to(score.dtype), score)

    return _attend(attention, edit)


def boost_keys(attention: Attention, gain: Tensor) -> Tensor:
    """Scores plus ``gain [batch or 1, heads or 1, keys]`` times their magnitude."""
    gain = gain.expand(*attention.query.shape[:2], -1).to(attention.precision).contiguous()

    def edit(score: Tensor, b: Tensor, h: Tensor, _i: Tensor, j: Tensor) -> Tensor:
        return score + gain[b, h, j].to(score.dtype) * score.abs()

    return _attend(attention, edit)
