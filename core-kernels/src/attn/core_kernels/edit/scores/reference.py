"""The specification of the edits before the softmax: the scores, dense, changed, and then normalised.

Every function works in float32, float64 for float64, can be differentiated, and needs queries times keys of memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attn.core_kernels.edit.arguments import Attention
from attn.core_kernels.edit.scores.decay import Decay
from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.observe.softmax_map import reference


def edit_scores(attention: Attention, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The output of scores that went through ``edit``, which gets zeros where they are hidden."""
    _, logits, _ = reference.softmax_map(attention.query, attention.key, attention.scale, attention.visibility)
    hidden = logits == -torch.inf
    logits = edit(logits.masked_fill(hidden, 0)).masked_fill(hidden, -torch.inf)
    sees_none = hidden.all(-1, keepdim=True)
    probability = logits.masked_fill(sees_none, 0).softmax(-1).masked_fill(sees_none, 0)
    value = repeat_heads(attention.value, attention.query.shape[1])
    return (probability @ value.to(probability.dtype)).to(attention.query.dtype)


def decay_outside_window(attention: Attention, places: tuple[Tensor, Tensor], decay: Decay) -> Tensor:
    """Positive scores times the factor of their distance."""
    numbers = decay.numbers(torch.float64, places[1].device)
    factor = decay.factor(places[0][:, None], places[1], numbers)

    def edit(logits: Tensor) -> Tensor:
        return torch.where(logits > 0, logits * factor.to(logits.dtype), logits)

    return edit_scores(attention, edit)


def boost_keys(attention: Attention, gain: Tensor) -> Tensor:
    """Scores plus ``gain [batch or 1, heads or 1, keys]`` times their magnitude."""
    return edit_scores(attention, lambda logits: logits + gain[:, :, None].to(logits.dtype) * logits.abs())
