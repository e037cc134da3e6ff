"""The edits before the softmax by FlexAttention: compiled on CUDA; on the CPU its dense form, without a gradient."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from attn.core_kernels.edit.arguments import Attention
from attn.core_kernels.edit.scores.decay import Decay

Edit = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def _attend(attention: Attention, edit: Edit) -> Tensor:
    """The output of scores that went through ``edit(score, batch, head, query, key)``."""
    rule, query = attention.visibility, attention.query

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        edited, position = (
            edit(score, b, h, i, j),
            i + rule.offset if rule.positions is None else rule.positions[b * (rule.positions.shape[0] > 1), i],
        )
        if rule.causal:
            edited = torch.where(j <= position, edited, -torch.inf)
        if rule.window is not None:
            edited = torch.where((j - position).abs() < rule.window, edited, -torch.inf)
        if rule.key_mask is not None:
            edited = torch.where(rule.key_mask[b, j], edited, -torch.inf)
        return edited

    flex = _compiled() if query.device.type == "cuda" and not torch.compiler.is_compiling() else flex_attention
    key, value = attention.key, attention.value
    grouped = key.shape[1] != query.shape[1]
    out, aux = flex(
        query, key, value, score_mod, scale=attention.scale, enable_gqa=grouped, return_aux=AuxRequest(lse=True)
    )
    return out.masked_fill(aux.lse[..., None] == -torch.inf, 0)


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
